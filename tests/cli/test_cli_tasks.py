"""`rise tasks`, `rise suspended`: look at messages, let them go on, end them."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from cli_directory import BOT, Directory, Rise

from rise.cli.tasks import OpenStatus, SuspendedFor
from rise.envelope import Reason, Status, TaskId
from rise.errors import QueueOwed
from rise.queue.port import Suspend
from rise.runtime.operations import Operations

POISON = Suspend(Reason.POISON, "the worker process died 3 times while running it")
BLOCKED = Suspend(Reason.LANE_BLOCKED, "too long")


def test_open_tasks_are_listed_oldest_first(rise: Rise, directory: Directory):
    first, second, third = directory.accept(1, 2, 3)
    for number, task_id in enumerate((third, first, second)):
        head = b'"accepted_at_ms":' + str(number).encode()
        directory.write(
            "UPDATE tasks SET head = CAST(replace(CAST(head AS TEXT), '\"accepted_at_ms\":', ?) AS BLOB)"
            " WHERE task_id = ?",
            head.decode(),
            task_id,
        )
    listed = rise("tasks", "--json").json
    assert [task["taskId"] for task in listed["tasks"]] == [third, first, second]
    assert [task["taskId"] for task in rise("tasks", "--json", "--limit", "1").json["tasks"]] == [third]
    assert listed["found"] == 3


def test_lists_narrow_by_state_channel_and_reason(rise: Rise, directory: Directory):
    poisoned, blocked, pending = directory.accept(1, 2, 3)
    directory.suspend(POISON, poisoned)
    directory.suspend(BLOCKED, blocked)

    def ids(*words: str) -> set[str]:
        return {task["taskId"] for task in rise(*words, "--json").json["tasks"]}

    assert ids("tasks", "--status", "pending") == {pending}
    assert ids("tasks", "--channel", "http") == set()
    assert ids("suspended") == {poisoned, blocked}
    assert ids("suspended", "--reason", "poison") == {poisoned}
    assert "the worker process died 3 times" in rise("suspended").out


def test_lists_narrow_to_one_chat_whichever_of_its_ids_is_named(rise: Rise, directory: Directory):
    waiting, blocked, _ = directory.accept(1, 2, 3)
    directory.suspend(BLOCKED, blocked)
    directory.do(lambda house: house.ledger.move_chat("telegram", BOT, "1", "-1001"))

    def ids(*words: str) -> list[str]:
        return [task["taskId"] for task in rise(*words, "--json").json["tasks"]]

    assert ids("tasks", "--chat", "1") == ids("tasks", "--chat", "-1001") == [waiting]
    assert ids("tasks", "--chat", "2") == ids("suspended", "--chat", "2") == [blocked]
    assert ids("suspended", "--chat", "1") == ids("tasks", "--chat", "1", "--channel", "http") == []
    assert rise("tasks", "--chat", "1", "--json").json.keys() == {"tasks", "found"}


def test_finished_tasks_are_counted_and_not_listed(rise: Rise, directory: Directory):
    done, _ = directory.accept(1, 2)
    directory.finish(done)
    assert rise("tasks", "--json").json["finished"] == {"completed.silent": 1}
    assert "ended: 1 completed.silent" in rise("tasks").out
    assert list(OpenStatus) == [status for status in Status if not status.is_finished], "what is offered works"
    assert rise("tasks", "--status", "completed").code == 2


def test_the_reasons_offered_are_those_that_occur(rise: Rise, directory: Directory):
    directory.accept(1)
    states = (Path(__file__).parents[2] / "docs" / "states.md").read_text()
    table = states.partition("| Reason of a suspension |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [reason.value for reason in SuspendedFor]
    assert set(SuspendedFor) <= set(Reason)
    assert rise("suspended", "--reason", "nonsense").code == 2
    for reason in SuspendedFor:
        assert rise("suspended", "--reason", reason).code == 0


def test_a_list_of_nothing_says_of_what(rise: Rise, directory: Directory):
    directory.accept(1)
    assert rise("suspended").out == "nothing is suspended\n"
    assert rise("tasks", "--status", "replying").out == "nothing is replying\n"
    assert rise("tasks", "--channel", "http").out == "nothing is open\n"


@pytest.mark.req("SEC-4")
def test_text_of_a_message_is_printed_as_text(rise: Rise, directory: Directory):
    directory.accept(1, text="[bold red]x[/] \x1b[2J \u202e evil\nt_forged")
    printed = rise("tasks").out
    assert "[bold red]x[/]" in printed
    assert "\x1b" not in printed
    assert "\\u001b[2J" in printed
    assert "\\u202e" in printed
    assert "\nt_forged" not in printed


def test_one_tasks_whole_life_is_told(rise: Rise, directory: Directory):
    [task_id] = directory.accept(1, text="What is this?")
    directory.accept(1)
    directory.finish(task_id)
    told = rise("tasks", "show", task_id)
    assert told.code == 0
    for words in ("What is this?", "completed", "tg:7:u:1001", "1 more deliveries", "accepted", "wf_test"):
        assert words in told.out
    shown = rise("tasks", "show", task_id, "--json").json
    assert (shown["taskId"], shown["status"], shown["outcome"]) == (task_id, "completed", "silent")
    assert shown["payload"]["channelPayload"]["raw"]["message"]["text"] == "What is this?"
    assert (shown["deliveryKey"], shown["duplicates"]) == ("tg:7:u:1001", 1)


@pytest.mark.req("CHN-3")
def test_a_message_that_was_merged_says_which_one_answered_it_and_that_one_what_it_answered(
    rise: Rise, directory: Directory
):
    first, second = directory.accept(1, 2)
    directory.merge(second, first)
    told = rise("tasks", "show", second).out
    assert "merged" in told
    assert re.search(rf"answered with +{first}", told)
    assert re.search(rf"answers also +{second}", rise("tasks", "show", first).out)
    shown = rise("tasks", "show", second, "--json").json
    assert (shown["outcome"], shown["result"]) == ("merged", {"mergedInto": first})


def test_a_task_that_is_not_due_yet_says_when_it_is(rise: Rise, directory: Directory):
    later, now = directory.accept(1, 2)
    due = "2096-02-03T04:05:06"
    due_at_ms = int(datetime.fromisoformat(f"{due}+00:00").timestamp() * 1000)
    directory.write("UPDATE tasks SET due_at = ? WHERE task_id = ?", due_at_ms, later)
    assert rise("tasks").out.count(f"pending (due {due}") == 1
    assert f"pending (due {due}" in rise("tasks", "show", later).out
    assert "due" not in rise("tasks", "show", now).out
    listed = {task["taskId"]: task["dueAt"] for task in rise("tasks", "--json").json["tasks"]}
    assert (listed[later][:19], listed[now]) == (due, None)
    assert rise("tasks", "show", later, "--json").json["dueAt"] == listed[later]


def test_a_task_of_a_bot_that_is_not_configured_says_that_it_waits_for_it(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch
):
    first, second = directory.accept(1, 2)
    directory.finish(second)
    assert "waits for" in rise("tasks", "show", first).out
    waits_for = rise("tasks", "show", first, "--json").json["waitsFor"]
    assert waits_for.startswith("account 7 of telegram, which is not configured here")
    assert rise("tasks", "show", second, "--json").json["waitsFor"] is None, "it has ended"
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", "7:ABC")
    assert rise("tasks", "show", first, "--json").json["waitsFor"] is None


@pytest.mark.req("ENV-2")
def test_the_bytes_received_are_given_exactly(rise: Rise, tmp_path, directory: Directory):
    line = (
        b'{ "update_id" : 5,\t"message": {"message_id": 1, "date": 1762587000, "chat": {"id": 3}, "text": "\xc3\xa9"}}'
    )
    (tmp_path / "one.jsonl").write_bytes(line + b"\n")
    replayed = rise("replay", "one.jsonl", "--channel", "telegram", "--account", "7", "--yes", "--json").json
    [task_id] = [entry["taskId"] for entry in replayed["updates"]]
    assert rise("tasks", "show", task_id, "--raw").out.encode() == line


def test_who_has_only_the_delivery_key_is_shown_its_task(rise: Rise, directory: Directory):
    open_one, ended_one = directory.accept(1, 2)
    directory.finish(ended_one)
    keys = [rise("tasks", "show", one, "--json").json["deliveryKey"] for one in (open_one, ended_one)]
    assert [rise("tasks", "show", key, "--json").json["taskId"] for key in keys] == [open_one, ended_one]
    assert rise("tasks", "show", "http:anna:order-7").code == 1


@pytest.mark.req("SUS-3")
@pytest.mark.failure("B14", "M4")
def test_a_finished_task_that_a_newer_version_wrote_is_shown_as_far_as_it_can_be_read(rise: Rise, directory: Directory):
    [task_id] = directory.accept(1)
    directory.finish(task_id)
    directory.write("UPDATE runs SET head = ?, status = 'delegated'", b'{"schema":"of tomorrow"}')
    for words in ([task_id], [task_id, "--json"]):
        told = rise("tasks", "show", *words)
        assert told.code == 0
        assert "a newer version of Rise says of it: delegated; the stored head is unreadable" in told.out
    assert rise("tasks", "show", task_id, "--raw").json["update_id"] == 1001


def test_a_task_that_is_not_there_is_one_clear_line_and_where_to_look(rise: Rise, directory: Directory):
    directory.accept(1)
    ended = rise("tasks", "show", "t_nothing")
    assert (ended.code, ended.out) == (1, "")
    problem, remedy = ended.err.splitlines()
    assert problem == "rise: there is no such task, or it has been forgotten"
    assert remedy.startswith("      → `rise tasks` lists what is open")


def test_a_directory_without_a_database_is_named_and_not_made(rise: Rise, directory: Directory):
    for words in (["tasks"], ["suspended"], ["audit"], ["tasks", "show", "t_x"], ["replay", "--status", "suspended"]):
        ended = rise(*words)
        assert ended.code == 1
        assert "holds no Rise database" in ended.err
    assert not directory.path.exists()


@pytest.mark.req("EMB-1")
def test_who_looks_for_the_demos_messages_is_told_where_they_are(
    rise: Rise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RISE_DATA_DIR")
    [task_id] = Directory(tmp_path / ".rise-demo").accept(1)
    for words in (["tasks"], ["tasks", "show", task_id], ["suspended"], ["audit"], ["backup", "copy"]):
        ended = rise(*words)
        assert ended.code == 1
        assert ended.err == (
            "rise: .rise holds no Rise database: the demo keeps its messages in .rise-demo, add --data-dir .rise-demo\n"
        )
    assert "add --data-dir .rise-demo" in rise("doctor").out
    assert task_id in rise("tasks", "--data-dir", ".rise-demo").out


def test_wrong_settings_are_said_and_end_with_2(rise: Rise, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RISE_MIN_COPIES", "2")
    ended = rise("tasks")
    assert ended.code == 2
    assert ended.err.startswith("rise: RISE_MIN_COPIES is 2")


# --- changing ---------------------------------------------------------------------------------------------


@pytest.mark.req("SUS-3")
def test_dropping_is_recorded_with_who_and_why(rise: Rise, directory: Directory):
    [task_id] = directory.accept(1)
    assert rise("tasks", "drop", task_id).code == 2, "a reason is wanted"
    assert rise("tasks", "drop", task_id, "--why", "spam").code == 0
    assert directory.statuses() == {}
    assert directory.operations() == [("drop", task_id, "spam")]
    assert "spam" in rise("tasks", "show", task_id).out
    assert rise("audit", "--json").json["dropped"] == 1


@pytest.mark.req("SUS-2")
@pytest.mark.parametrize("words", [["--reason", "poison"], ["--channel", "telegram"], ["--all"]])
def test_suspended_tasks_are_resumed_by_filter(rise: Rise, directory: Directory, words: list[str]):
    poisoned, _ = directory.accept(1, 2)
    directory.suspend(POISON, poisoned)
    resumed = rise("suspended", "resume", *words, "--json")
    assert (resumed.code, resumed.json) == (0, {"resumed": [poisoned], "refused": {}})
    assert {status for status, _ in directory.statuses().values()} == {Status.PENDING}


@pytest.mark.req("SUS-2")
def test_suspended_tasks_are_resumed_by_id_and_each_refusal_is_named(rise: Rise, directory: Directory):
    poisoned, pending = directory.accept(1, 2)
    directory.suspend(POISON, poisoned)
    ended = rise("suspended", "resume", poisoned, pending, "t_nothing")
    assert ended.code == 1
    assert ended.out.startswith("1 resumed")
    assert f"rise: {pending}: the task is pending, not suspended" in ended.err
    assert "rise: t_nothing: there is no such task" in ended.err
    assert directory.statuses()[poisoned] == (Status.PENDING, 0)


@pytest.mark.req("SUS-2")
@pytest.mark.failure("C19")
def test_one_that_may_yet_be_brought_to_the_queue_keeps_none_of_the_others_from_being_resumed(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch
):
    first, brought, last = directory.accept(1, 2, 3)
    directory.suspend(POISON, first, brought, last)
    resume = Operations.resume

    async def resume_others(self: Operations, task_id: TaskId, **said: str) -> None:
        if task_id == brought:
            raise QueueOwed("nothing is known of it yet")
        await resume(self, task_id, **said)

    monkeypatch.setattr(Operations, "resume", resume_others)
    ended = rise("suspended", "resume", first, brought, last)
    assert (ended.code, ended.out.startswith("2 resumed")) == (1, True)
    assert f"rise: {brought}: nothing is known of it yet" in ended.err


def test_resuming_wants_to_know_which(rise: Rise, directory: Directory):
    directory.accept(1)
    assert rise("suspended", "resume").code == 2
    assert rise("suspended", "resume", "--all", "--reason", "poison").code == 2


def test_json_is_all_that_goes_to_standard_output(rise: Rise, directory: Directory):
    directory.accept(*range(1, 4))
    for words in (["tasks"], ["suspended"], ["audit"], ["doctor"]):
        printed = rise(*words, "--json").out
        assert printed.count("\n") == 1
        json.loads(printed)

"""`rise replay`: says what it would do, does it only when told to, and never twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_directory import BOT, Directory, Rise, update

from rise.envelope import Reason, Status, TaskId
from rise.errors import CopiesInsufficient
from rise.queue.port import Suspend
from rise.runtime.operations import Operations, Restarted

CHATS = 4
POISON = Suspend(Reason.POISON, "died 3 times")
OF_TOMORROW = b'{"schema":"of tomorrow"}'


def thirty_five_updates() -> list[dict[str, Any]]:
    """30 unique in 4 chats, 3 of them after a later one of their chat, and 5 repeated."""
    unique = [update(number, chat=42 + number % CHATS, text=f"message {number:02}") for number in range(30)]
    sent = list(unique)
    for number in (5, 13, 21):  # each changes places with the one its chat sends next
        sent[number], sent[number + CHATS] = sent[number + CHATS], sent[number]
    return sent + [unique[number] for number in (0, 7, 14, 22, 29)]


def written(path: Path, updates: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in updates))
    return str(path)


@pytest.fixture
def from_file(rise: Rise) -> Rise:
    return lambda *words: rise("replay", *words, "--channel", "telegram", "--account", BOT, "--json")


@pytest.mark.req("ENV-6", "OPS-1")
def test_thirty_five_updates_are_thirty_tasks_and_a_second_run_adds_none(
    from_file: Rise, rise: Rise, directory: Directory, tmp_path: Path
):
    path = written(tmp_path / "updates.jsonl", thirty_five_updates())
    first = from_file(path, "--yes").json
    assert (first["lines"], first["new"], first["duplicate"], first["dryRun"]) == (35, 30, 5, False)
    assert first["outOfOrder"] == 3
    assert len(directory.statuses()) == 30
    second = from_file(path, "--yes").json
    assert (second["new"], second["duplicate"], second["outOfOrder"]) == (0, 35, 0)
    assert len(directory.statuses()) == 30
    audit = rise("audit", "--json")
    assert (audit.code, audit.json["accepted"], audit.json["duplicate"]) == (0, 30, 40)


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M9")
def test_a_dry_run_foretells_exactly_what_is_done_and_changes_nothing(
    from_file: Rise, directory: Directory, tmp_path: Path
):
    updates = thirty_five_updates()
    from_file(written(tmp_path / "some.jsonl", updates[:10]), "--yes")
    before = directory.statuses()
    path = written(tmp_path / "updates.jsonl", updates)
    foretold = from_file(path).json
    assert directory.statuses() == before
    assert from_file(path).json == foretold
    done = from_file(path, "--yes").json

    def essence(told: dict[str, Any]) -> list[tuple[object, ...]]:
        return [(entry["line"], entry["taskId"], entry["deliveryKey"], entry["new"]) for entry in told["updates"]]

    assert essence(foretold) == essence(done)
    assert (foretold["new"], foretold["duplicate"]) == (done["new"], done["duplicate"]) == (20, 15)
    assert foretold["dryRun"]


@pytest.mark.req("OPS-1", "ENV-3")
@pytest.mark.failure("A8")
def test_what_was_answered_before_its_key_was_forgotten_is_not_answered_again(
    from_file: Rise, directory: Directory, tmp_path: Path
):
    answered = directory.accept(1, 2)
    directory.finish(*answered)
    directory.forget_keys()
    again = [update(number, chat=number) for number in (1, 2)]
    path = written(tmp_path / "updates.jsonl", [*again, again[0]])
    compact = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in again)
    (tmp_path / "written-anew.jsonl").write_text(compact)
    for words in ([path], [path, "--yes"], [str(tmp_path / "written-anew.jsonl"), "--yes"]):
        told = from_file(*words).json
        assert (told["new"], told["duplicate"]) == (0, told["lines"]), words
    assert directory.statuses() == {}


@pytest.mark.req("OPS-1", "ENV-3")
def test_another_message_under_a_forgotten_key_is_a_new_one(from_file: Rise, directory: Directory, tmp_path: Path):
    directory.finish(*directory.accept(1))
    directory.forget_keys()
    path = written(tmp_path / "updates.jsonl", [update(1, chat=1, text="numbered anew")])
    assert from_file(path).json["new"] == 1
    assert from_file(path, "--yes").json["new"] == 1
    assert len(directory.statuses()) == 1


def test_people_are_told_that_nothing_was_changed(rise: Rise, directory: Directory, tmp_path: Path):
    directory.accept(1)
    path = written(tmp_path / "updates.jsonl", thirty_five_updates())
    told = rise("replay", path, "--channel", "telegram", "--account", BOT)
    assert "35 updates: 29 new, 6 duplicates, 3 out of order" in told.out
    assert "Nothing was changed. Add --yes to do it." in told.out


def test_an_old_update_is_run_because_a_person_wants_it(from_file: Rise, directory: Directory, tmp_path: Path):
    old = update(1, chat=5)
    old["message"]["date"] = 1_500_000_000
    assert from_file(written(tmp_path / "old.jsonl", [old]), "--yes").json["unreadable"] == 0
    assert set(directory.statuses().values()) == {(Status.PENDING, 0)}


@pytest.mark.req("ENV-4")
def test_a_line_that_cannot_be_read_is_parked_with_its_bytes(from_file: Rise, rise: Rise, tmp_path: Path):
    lines = [b'{"update_id": 5, "message": ', b"\xff\xfe", b"", b'{"update_id": 6, "something_new": {}}\r']
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(lines))
    replayed = from_file("bad.jsonl", "--yes").json
    assert (replayed["lines"], replayed["new"], replayed["unreadable"]) == (3, 3, 3)
    assert [entry["line"] for entry in replayed["updates"]] == [1, 2, 4]
    suspended = rise("suspended", "--reason", "raw_payload_invalid", "--json").json["tasks"]
    assert len(suspended) == 3
    last = replayed["updates"][-1]["taskId"]
    assert rise("tasks", "show", last, "--raw").out == '{"update_id": 6, "something_new": {}}\r'


def test_a_line_longer_than_any_update_stops_it(from_file: Rise, tmp_path: Path):
    (tmp_path / "long.jsonl").write_bytes(b"x" * (1 << 20) + b"x\n")
    ended = from_file("long.jsonl", "--yes")
    assert ended.code == 2
    assert "line 1 is longer than any update" in ended.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "say what"),
        (["updates.jsonl"], "--channel telegram"),
        (["missing.jsonl", "--channel", "telegram"], "there is no file"),
        (["missing.jsonl", "--yes"], "there is no file missing.jsonl"),
        (["nope", "--yes"], "there is no file nope, and it is no task id"),
        (["updates.jsonl", "--channel", "telegram"], "no bot is configured"),
        (["updates.jsonl", "--channel", "telegram", "--status", "completed"], "not lines of a file"),
        (["a.jsonl", "b.jsonl"], "is no task id"),
        (["t_" + "a" * 26, "t_" + "b" * 26, "--channel", "telegram"], "not both"),
        (["--status", "pending"], "still on its way"),
        (["--since", "yesterday"], "say an age"),
        (["--since", "9" * 5000 + "d"], "say an age"),
    ],
)
def test_what_is_not_clear_is_refused(rise: Rise, directory: Directory, tmp_path: Path, words: list[str], problem: str):
    directory.accept(1)
    written(tmp_path / "updates.jsonl", [update(1, chat=1)])
    ended = rise("replay", *words)
    assert ended.code == 2
    assert problem in " ".join(ended.err.replace("│", " ").split())


@pytest.mark.req("OPS-1", "ENV-3")
@pytest.mark.failure("A8", "B14", "M4")
def test_what_was_answered_is_not_answered_again_though_a_newer_version_wrote_it(
    from_file: Rise, directory: Directory, tmp_path: Path
):
    answered = directory.accept(1, 2, 3)
    directory.finish(*answered)
    directory.write("UPDATE runs SET head = ?", OF_TOMORROW)
    directory.write("UPDATE runs SET raw = ? WHERE task_id = ?", b"\xff of tomorrow", answered[2])
    directory.forget_keys()
    again = [update(1, chat=1), update(2, chat=2, text="numbered anew"), update(3, chat=3, text="numbered anew")]
    told = from_file(written(tmp_path / "updates.jsonl", again), "--yes").json
    assert [line["new"] for line in told["updates"]] == [False, True, True]


# --- tasks once more --------------------------------------------------------------------------------------


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M9")
def test_run_again_raises_the_generation_once_even_if_pressed_twice(rise: Rise, directory: Directory):
    [task_id] = directory.accept(1)
    directory.finish(task_id)
    told = rise("replay", task_id, "--json")
    assert told.json["tasks"] == [{"taskId": task_id, "was": "completed", "generation": 1, "problem": None}]
    assert "1 would run again, 0 refused" in rise("replay", task_id).out
    assert directory.statuses() == {}, "a dry run"

    assert rise("replay", task_id, "--yes").code == 0
    assert directory.statuses() == {task_id: (Status.PENDING, 1)}
    again = rise("replay", task_id, "--yes")
    assert again.code == 1
    assert "still on its way" in again.out
    assert directory.statuses() == {task_id: (Status.PENDING, 1)}
    assert [action for action, _, _ in directory.operations()] == ["run again"]
    assert rise("audit").code == 0


def test_finished_and_suspended_tasks_are_selected_and_open_or_dropped_ones_are_not(rise: Rise, directory: Directory):
    done, suspended, dropped, _ = directory.accept(1, 2, 3, 4)
    directory.finish(done)
    directory.suspend(POISON, suspended)
    rise("tasks", "drop", dropped, "--why", "spam")

    def meant(*words: str) -> set[str]:
        return {task["taskId"] for task in rise("replay", *words, "--json").json["tasks"]}

    assert meant("--channel", "telegram") == {done, suspended}
    assert meant("--channel", "http") == set()
    assert meant("--status", "suspended") == {suspended}
    assert meant("--status", "dropped") == {dropped}
    assert meant("--since", "1h") == {done, suspended}
    assert meant("--since", "2999-01-01") == set()
    assert meant("--since", "9999999d") == {done, suspended}


def test_what_is_selected_runs_again_with_yes(rise: Rise, directory: Directory):
    done = directory.accept(*range(1, 6))
    directory.finish(*done)
    told = rise("replay", "--channel", "telegram", "--yes", "--json").json
    assert (told["again"], told["refused"]) == (5, 0)
    assert set(directory.statuses().values()) == {(Status.PENDING, 1)}
    nothing = rise("replay", "--channel", "telegram", "--yes", "--json").json
    assert nothing["again"] == 0


@pytest.mark.req("OPS-1", "SUS-3")
@pytest.mark.failure("B14", "M4")
def test_finished_messages_that_a_newer_version_wrote_are_refused_and_stop_no_other(rise: Rise, directory: Directory):
    sound, spoilt, reworded = directory.accept(1, 2, 3)
    directory.finish(sound, spoilt, reworded)
    directory.write("UPDATE runs SET head = ? WHERE task_id = ?", OF_TOMORROW, spoilt)
    directory.write("UPDATE runs SET status = 'delegated' WHERE task_id = ?", reworded)
    for words in (["--channel", "telegram"], [spoilt, sound, reworded], ["--channel", "telegram", "--yes"]):
        told = rise("replay", *words, "--json")
        assert (told.code, told.json["again"], told.json["refused"]) == (1, 2, 1), words
        problems = {task["taskId"]: task["problem"] for task in told.json["tasks"]}
        assert problems | {spoilt: ""} == {sound: None, spoilt: "", reworded: None}
        assert "this version of Rise cannot read it" in problems[spoilt]
    assert directory.statuses() == {sound: (Status.PENDING, 1), reworded: (Status.PENDING, 1)}


def after_running(task_id: TaskId, happens: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: run again it is all the same."""
    run_again = Operations.run_again

    async def running(operations: Operations, meant: TaskId, **words: Any) -> Restarted:
        restarted = await run_again(operations, meant, **words)
        if meant == task_id and not words["dry_run"]:
            monkeypatch.setattr(Operations, "run_again", run_again)
            happens()
        return restarted

    monkeypatch.setattr(Operations, "run_again", running)


def copies_are_away() -> None:
    raise CopiesInsufficient("1 of 2 copies hold it")


@pytest.mark.req("OPS-1", "ENV-3")
@pytest.mark.failure("M9")
@pytest.mark.parametrize("words", [["--channel", "telegram"], ["--channel", "telegram", "--data-dir", "data"]])
def test_where_a_store_goes_away_it_is_said_what_was_done_and_how_to_go_on_with_the_rest_alone(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    directory.finish(*directory.accept(*range(1, 6)))
    meant = [task["taskId"] for task in rise("replay", *words, "--json").json["tasks"]]
    after_running(meant[2], copies_are_away, monkeypatch)
    broken_off = rise("replay", *words, "--yes")
    assert broken_off.code == 1
    assert "2 run again, 0 refused" in broken_off.out
    assert f"stopped at {meant[2]}, which may run again all the same" in broken_off.err
    assert "2 were not tried" in broken_off.err
    assert "1 of 2 copies hold it" in broken_off.err
    assert set(directory.statuses()) == set(meant[:3])
    directory.finish(*meant[:3])
    go_on = shlex.split(broken_off.out.splitlines()[-1])
    assert go_on == ["rise", "replay", "--yes", *words[2:], *meant[3:]]
    assert rise(*go_on[1:]).code == 0
    assert directory.statuses() == dict.fromkeys(meant[3:], (Status.PENDING, 1)), "and none of the others once more"


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M9")
def test_programs_are_told_too_where_it_was_broken_off(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch
):
    done = directory.accept(1, 2, 3)
    directory.finish(*done)
    after_running(done[0], copies_are_away, monkeypatch)
    told = rise("replay", *done, "--yes", "--json")
    assert (told.code, told.json["again"], told.json["tasks"]) == (1, 0, [])
    assert (told.json["stoppedAt"], told.json["left"]) == (done[0], done[1:])
    rest = rise("replay", *done[1:], "--yes", "--json")
    assert (rest.code, rest.json["again"], rest.json["stoppedAt"], rest.json["left"]) == (0, 2, None, [])


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M9")
def test_whoever_interrupts_it_is_told_what_was_done_and_what_was_not(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch
):
    done = directory.accept(1, 2, 3)
    directory.finish(*done)
    after_running(done[1], lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    told = rise("replay", *done, "--yes")
    assert (told.code, directory.statuses()) == (130, dict.fromkeys(done[:2], (Status.PENDING, 1)))
    assert "2 run again, 0 refused" in told.out
    assert told.out.splitlines()[-1] == f"rise replay --yes {done[2]}"

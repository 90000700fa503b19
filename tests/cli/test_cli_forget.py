"""`rise forget`: what somebody wrote is gone from every file, and what was promised still holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_directory import BOT, Directory, Rise, update

from rise.channels.telegram import read_update
from rise.definitions.port import VERSIONS_KEPT, Definition, Kind
from rise.definitions.records import BindingRecord, account_name
from rise.envelope import Call, Outcome, Status, TaskId, chat_mark_of, reply_id_of
from rise.ledger.port import Attempt, HistoryLine, Reply, RunResult
from rise.queue.port import Finished
from rise.runtime.assembly.house import House

pytestmark = pytest.mark.req("SEC-5", "OPS-1")

CANARY = "canary-4711"
HERS, ANOTHERS = 987654321, 55
LONG = 9_000
"""More than a page of the database holds."""


def accept(directory: Directory, *numbers: int, chat: int = HERS, text: str = f"My name is {CANARY}") -> list[TaskId]:
    async def work(house: House) -> list[TaskId]:
        accepted = []
        for number in numbers:
            said = text + "." * (LONG if number % 5 == 0 else 0)
            body = json.dumps(update(number, chat=chat, text=said)).encode()
            read = read_update(body, account=BOT, now=house.clock.now(), webhook=False)
            accepted.append((await house.intake.accept(read)).task_id)
        return accepted

    return directory.do(work)


def answer(directory: Directory) -> int:
    """Everything that is open, as a worker does it: with tries, steps, a result, a reply and history."""

    async def work(house: House) -> int:
        count = 0
        while claims := (await house.queue.claim("test", {"telegram": 100}, takes_suspects=True)).claims:
            for first in claims:
                claim: Any = first
                while claim is not None:
                    task = claim.task
                    said = f"Hello {task.head.user_text}"
                    await house.ledger.add_attempt(task.run_id, Attempt(at_ms=1, error=f"not {said}", counted=True))
                    await house.ledger.save_step(task.run_id, "ask", said.encode())
                    reply = Reply(
                        reply_id=reply_id_of(task.run_id, 0),
                        run_id=task.run_id,
                        task_id=task.task_id,
                        channel="telegram",
                        account=BOT,
                        chat_id=task.head.chat_id or "",
                        call=Call("sendMessage", {"text": said}, said),
                        accepted_at_ms=task.head.accepted_at_ms,
                    )
                    turns = [HistoryLine(role=role, text=said, at_ms=1) for role in ("user", "assistant")]
                    result = RunResult(outcome=Outcome.ANSWERED, value={"text": said}, workflow_id="wf_test")
                    await house.ledger.save_result(task, result, [reply], turns, deliver=False)
                    claim = await house.queue.settle(claim, task, Finished())
                    count += 1
        return count

    return directory.do(work)


def files_with(path: Path, words: str) -> list[str]:
    """Also what is left of them in unused space of a file."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(str(file.relative_to(path)) for file in files if words.encode() in file.read_bytes())


def forget(rise: Rise, *words: str) -> Any:
    return rise("forget", "--channel", "telegram", "--account", BOT, "--chat", str(HERS), *words)


def test_what_was_forgotten_is_in_no_file_and_everything_is_accounted_for(rise: Rise, directory: Directory):
    hers = accept(directory, *range(1, 61))
    theirs = accept(directory, *range(101, 161), chat=ANOTHERS, text="hello")
    assert answer(directory) == 120
    assert files_with(directory.path, CANARY), "or this test would show nothing"
    done = forget(rise, "--yes", "--why", "she asked for it", "--json")
    assert done.code == 0
    counts = {name: done.json[name] for name in ("dryRun", "open", "dropped", "messages", "replies", "turns")}
    assert counts == {"dryRun": False, "open": 0, "dropped": 0, "messages": 60, "replies": 60, "turns": 50}
    assert files_with(directory.path, CANARY) == []
    audited = rise("audit", "--json")
    assert audited.code == 0
    assert (audited.json["accepted"], audited.json["done"], audited.json["unaccounted"]) == (120, 120, 0)
    assert accept(directory, 1) == hers[:1]
    assert directory.statuses() == {}, "it is a duplicate"
    kept = rise("tasks", "show", theirs[0], "--json").json
    assert (kept["payload"]["userText"], kept["replies"][0]["text"]) == ("hello", "Hello hello")


def test_the_chats_id_is_gone_when_its_lanes_are_forgotten(rise: Rise, directory: Directory):
    accept(directory, 1, 2)
    answer(directory)
    forget(rise, "--yes")
    directory.forget_keys()
    assert forget(rise, "--yes").code == 0
    assert files_with(directory.path, str(HERS)) == []
    assert rise("audit").code == 0


def test_the_audit_log_says_that_it_was_done_and_not_whose_chat_it_was(rise: Rise, directory: Directory):
    accept(directory, 1)
    answer(directory)
    forget(rise, "--yes", "--why", "she asked for it")
    mark = chat_mark_of("telegram", BOT, str(HERS))
    assert directory.operations() == [("forget", f"telegram {mark}", "she asked for it")]
    assert str(HERS) not in mark


def test_it_says_first_what_it_would_remove_and_until_when_what_stays(rise: Rise, directory: Directory):
    accept(directory, 1, 2)
    answer(directory)
    for words in ((), ("--dry-run",)):
        foreseen = forget(rise, *words)
        assert foreseen.code == 0
        for said in ("would be forgotten", "2 that have ended", "4 turns", "RISE_KEEP_FINISHED_DAYS", "backups"):
            assert said in foreseen.out
        assert "Add --yes" in foreseen.out
    assert directory.operations() == []
    assert files_with(directory.path, CANARY)
    assert forget(rise, "--yes", "--dry-run").code == 2


def bind(directory: Directory, versions: Sequence[int], engine: str) -> None:
    async def work(house: House) -> None:
        for version in versions:
            binding = BindingRecord(channel="telegram", account=BOT, workflow_id="wf_test", engine=engine)
            body = msgspec.json.encode([binding])
            name = account_name("telegram", BOT)
            made = Definition(kind=Kind.BINDINGS, name=name, version=version, body=body, at_ms=1, by="ann")
            await house.stores.definitions.put(made)

    directory.do(work)


def traces_of(forgotten: Any) -> str:
    return " ".join(trace["what"] + trace["until"] for trace in forgotten.json["traces"])


@pytest.mark.req("TMP-1")
def test_a_conversation_that_temporal_may_still_have_is_said_when_temporal_is_not_configured_any_more(
    rise: Rise, directory: Directory
):
    accept(directory, 1)
    answer(directory)
    bind(directory, [1], "native")
    assert "Temporal" not in traces_of(forget(rise, "--json"))
    bind(directory, [2], "temporal")
    bind(directory, [3], "native")
    assert "RISE_TEMPORAL_ADDRESS" in traces_of(forget(rise, "--json"))
    assert "RISE_TEMPORAL_ADDRESS" in traces_of(forget(rise, "--yes", "--json"))


@pytest.mark.req("TMP-1")
def test_where_it_is_not_known_any_more_how_an_account_was_bound_a_conversation_is_said_to_be_possible(
    rise: Rise, directory: Directory
):
    bind(directory, range(1, VERSIONS_KEPT + 2), "native")
    assert "RISE_TEMPORAL_ADDRESS" in traces_of(forget(rise, "--json"))


def test_while_something_is_open_nothing_is_forgotten_unless_it_may_be_dropped(rise: Rise, directory: Directory):
    accept(directory, 1, 2)
    answer(directory)
    [third, fourth] = accept(directory, 3, 4)
    [other] = accept(directory, 5, chat=ANOTHERS)
    refused = forget(rise, "--yes")
    assert refused.code == 1
    assert "2 of the chat's messages are still open" in refused.err
    assert "--drop-open" in refused.err
    assert directory.operations() == []
    assert rise("tasks", "show", third).code == 0
    done = forget(rise, "--yes", "--drop-open", "--json")
    assert (done.code, done.json["dropped"], done.json["messages"]) == (0, 2, 4)
    assert set(directory.statuses()) == {other}
    actions = [(action, target) for action, target, _ in directory.operations()]
    mark = f"telegram {chat_mark_of('telegram', BOT, str(HERS))}"
    assert sorted(actions) == sorted([("forget", mark), ("drop", third), ("drop", fourth)])
    audited = rise("audit", "--json").json
    assert (audited["done"], audited["dropped"], audited["pending"], audited["clean"]) == (2, 2, 1, True)


def test_what_needs_what_was_forgotten_says_so(rise: Rise, directory: Directory):
    [task_id] = accept(directory, 1)
    answer(directory)
    forget(rise, "--yes")
    raw = rise("tasks", "show", task_id, "--raw")
    assert (raw.code, raw.out) == (1, "")
    assert "have been forgotten" in raw.err
    told = rise("tasks", "show", task_id)
    assert told.code == 0
    assert "bytes that have been forgotten" in told.out
    shown = rise("tasks", "show", task_id, "--json").json
    assert (shown["status"], shown["outcome"], shown["result"]) == (Status.COMPLETED, Outcome.ANSWERED, None)
    assert shown["payload"]["channelPayload"]["raw"] is None
    assert shown["payload"]["telemetry"]["raw_size_bytes"] is None
    again = rise("replay", task_id, "--yes", "--json")
    assert again.code == 1
    assert "has been forgotten" in again.json["tasks"][0]["problem"]


def test_brought_again_from_a_file_when_its_key_is_forgotten_too_it_is_not_answered_again(
    rise: Rise, directory: Directory, tmp_path: Path
):
    line = json.dumps(update(1, chat=HERS, text=CANARY))
    (tmp_path / "one.jsonl").write_text(f"{line}\n")
    accept(directory, 1, text=CANARY)
    answer(directory)
    forget(rise, "--yes")
    directory.forget_keys()
    replayed = rise("replay", "one.jsonl", "--channel", "telegram", "--account", BOT, "--yes", "--json").json
    assert (replayed["new"], replayed["duplicate"]) == (0, 1)


def test_done_again_or_of_a_chat_that_nobody_knows_it_finds_nothing(rise: Rise, directory: Directory):
    accept(directory, 1)
    answer(directory)
    forget(rise, "--yes")
    again = forget(rise, "--yes", "--json")
    assert (again.code, again.json["messages"], again.json["turns"]) == (0, 0, 0)
    assert rise("forget", "--channel", "pigeon", "--chat", "1").code == 2
    assert rise("forget", "--chat", "1").code == 2, "no bot is configured"
    assert rise("forget", "--channel", "webchat", "--chat", "1").code == 0


def test_what_is_not_compacted_is_said_to_be_left_in_unused_space(rise: Rise, directory: Directory):
    accept(directory, 1)
    answer(directory)
    done = forget(rise, "--yes", "--no-compact", "--json")
    assert done.code == 0
    assert any("unused space" in trace["what"] for trace in done.json["traces"])
    assert "unused space" not in forget(rise, "--yes").out
    assert files_with(directory.path, CANARY) == []

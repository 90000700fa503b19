"""What former versions wrote is read, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from late_stage import LateStage
from mongodb_databases import Died, PlainDatabase
from mongodb_stage import MongoStage, staged
from structlog.testing import capture_logs

from rise.envelope import Outcome, Status, encode_json
from rise.ledger.kept import ATTEMPTS_KEPT, TURN_CHARS_MAX
from rise.ledger.late import LateEnd, LateResult, decode_late, encode_late
from rise.ledger.mongodb import MongoLedger
from rise.ledger.port import Attempt, Delivered, HistoryLine, RunResult, Sent, count_tries
from rise.queue.port import Replying
from rise.testing.conformance.ledger import (
    ANSWERED,
    answer,
    callback,
    callback_saying,
    chunks,
    numbered,
    send_everything,
    states,
    take_one,
    task,
)
from rise.testing.conformance.queue import claim_one
from rise.testing.servers import MongoServer


@pytest.fixture
async def stage(running_mongodb: MongoServer) -> AsyncIterator[MongoStage]:
    async for stage in staged(running_mongodb.url):
        yield stage


@pytest.mark.req("CPY-6", "ENV-3")
async def test_a_run_of_which_no_fingerprint_was_kept_is_known_by_when_its_message_came(stage: MongoStage):
    former = task(1)
    await answer(stage.ledger, former)
    stage.take_away("runs", former.run_id, "fingerprint")
    run = await stage.ledger.run(former.run_id)
    assert run is not None
    assert (run.fingerprint, run.status, run.is_of_former(former.head)) == ("", Status.REPLYING, False)
    assert await stage.ledger.latest_run(former.task_id) == run
    await answer(stage.ledger, task(1, generation=1))
    dropped = await stage.ledger.run(former.run_id)
    assert dropped is not None
    assert dropped.status is Status.DROPPED


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F1")
async def test_what_has_waited_for_the_ledger_since_then_is_written_back_with_all_behind_it():
    stage = LateStage()
    ledger = stage.process()
    ids = [await stage.accept(number) for number in (1, 2, 3)]
    stage.leave()
    for ending in ("result", "end", "result"):
        claim = msgspec.structs.replace(await claim_one(stage.queue), tasks_left=0)
        if ending == "result":
            await ledger.save_result(claim.task, ANSWERED, chunks(claim.task), [], deliver=True)
        else:
            await ledger.finish(claim.task, Status.EXPIRED)
        await stage.queue.settle(claim, claim.task, Replying())
    for key, kept in list(stage.redis.late.items())[:2]:
        written = msgspec.json.decode(kept.write)
        del written["fingerprint"]
        stage.redis.late[key] = kept._replace(write=msgspec.json.encode(written))
    waiting = [decode_late(kept.write) for kept in stage.redis.late.values()]
    assert [type(write) for write in waiting] == [LateResult, LateEnd, LateResult]
    assert [getattr(write, "fingerprint", None) for write in waiting[:2]] == ["", ""]
    known = await ledger.latest_run(ids[0])
    assert known is not None
    assert (known.result, known.fingerprint) == (ANSWERED.value, "")
    stage.come_back()
    assert await stage.write_back().write_back() == 3
    assert stage.redis.late == {}
    assert set(await stage.own.finished_among(ids)) == {ids[1]}
    assert [len(await stage.own.replies(task_id=task_id)) for task_id in ids] == [1, 0, 1]
    assert decode_late(encode_late(waiting[0])) == waiting[0]


async def doubled(stage: MongoStage, **first: object) -> None:
    """A run of which a former version could mean the callback twice: as it saved it, and as a person dropped it."""
    meant = [*chunks(task()), callback_saying(task(), "completed")]
    await stage.ledger.save_result(task(), ANSWERED, meant, [], deliver=False)
    answered, callback = stage.read("runs", {"_id": task().run_id})["replies"]
    call = encode_json(callback_saying(task(), "dropped").call)
    second = callback | {"call": call, "sequence": callback["sequence"] + 1}
    stage.write("runs", task().run_id, {"status": "dropped", "replies": [answered, callback | first, second]})


async def sent_by(ledger: MongoLedger, fence: int) -> list[str]:
    async with asyncio.timeout(20):
        return await send_everything(ledger, fence)


@pytest.mark.req("ENV-7", "OUT-1")
@pytest.mark.failure("E11", "G8")
@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({}, ["dropped"]),
        ({"state": "ready", "tries": 1}, ["completed"]),
        ({"state": "ready", "resends": 1}, ["completed"]),
        ({"state": "sent", "is_open": False}, []),
        ({"state": "failed", "is_open": False}, []),
        ({"state": "unknown", "is_open": False}, []),
    ],
    ids=["untried", "tried", "perhaps sent", "sent", "given up", "held"],
)
async def test_a_callback_that_was_meant_twice_is_posted_once_and_stops_nobody(
    stage: MongoStage, first: dict[str, object], said: list[str]
):
    await doubled(stage, **first)
    await answer(stage.ledger, task(2, chat="2"))
    with capture_logs() as logs:
        sent = await sent_by(stage.ledger, await stage.ledger.outbox_open())
    assert sorted(sent) == sorted(["2.0", *said])
    [closed] = [one for one in logs if one["event"] == "reply.closed"]
    assert (closed["reply_id"], closed["count"], bool(closed["consequence"])) == (callback(task()).reply_id, 1, True)
    kept = [reply.reply_id for reply in await stage.ledger.replies(run_id=task().run_id)]
    assert kept == [chunks(task())[0].reply_id, callback(task()).reply_id]
    assert await sent_by(await stage.another(), await stage.ledger.outbox_open()) == []


@pytest.mark.req("ENV-7", "OUT-1")
@pytest.mark.failure("E11", "G8")
async def test_a_callback_that_was_out_when_it_was_meant_again_is_recorded_and_its_chat_goes_on(stage: MongoStage):
    await stage.ledger.save_result(task(), ANSWERED, [callback_saying(task(), "completed")], [], deliver=False)
    fence = await stage.ledger.outbox_open()
    out = await take_one(stage.ledger, fence)
    await stage.ledger.outbox_sending(fence, out)
    [sending] = stage.read("runs", {"_id": task().run_id})["replies"]
    second = sending | {"state": "ready", "claim": None, "sequence": sending["sequence"] + 1}
    stage.write("runs", task().run_id, {"replies": [sending, second]})
    async with asyncio.timeout(20):
        for _ in range(2):
            assert await stage.ledger.outbox_record(fence, out, Sent()) == Delivered(None, None)
    await stage.ledger.add_notice(callback(task(), "kill_switch"))
    assert await sent_by(stage.ledger, fence) == ["kill_switch"]
    assert await states(stage.ledger, task().run_id) == ["sent", "sent"]


SILENT = RunResult(outcome=Outcome.SILENT)


@pytest.mark.failure("G8")
async def test_a_history_that_leaves_no_room_for_more_makes_some(stage: MongoStage):
    ledger = MongoLedger(await stage.connect(PlainDatabase), stage.clock)
    await ledger.save_result(task(1), SILENT, [], [HistoryLine(role="user", text="q", at_ms=1)], deliver=True)
    [kept] = stage.read("histories", {})["turns"]
    stage.write("histories", stage.keys("histories")[0], {"turns": [kept | {"text": "x" * 1_048_000}] * 16})
    for number in (2, 3):
        of, said = task(number), HistoryLine(role="user", text=f"{number}" * TURN_CHARS_MAX, at_ms=number)
        run = await ledger.save_result(of, ANSWERED, chunks(of), [said], deliver=True)
        assert run.status is Status.REPLYING
    assert [turn.text[0] for turn in await ledger.history("telegram", "7", "1", limit=50)] == [*"x" * 11, "2", "3"]
    assert sorted(await sent_by(ledger, await ledger.outbox_open())) == ["2.0", "3.0"]


async def test_a_long_turn_that_was_still_to_be_written_is_cut(stage: MongoStage):
    ledger, database = await stage.mortal()
    database.writes_left = 1
    with pytest.raises(Died):
        await ledger.save_result(task(), SILENT, [], [HistoryLine(role="user", text="q", at_ms=1)], deliver=True)
    stage.write("runs", task().run_id, {"history.0.text": "x" * 100_000})
    assert await stage.ledger.run(task().run_id) is not None
    [turn] = await stage.ledger.history("telegram", "7", "1", limit=9)
    assert len(turn.text) == TURN_CHARS_MAX


@pytest.mark.req("SUS-3")
@pytest.mark.failure("G8")
async def test_tries_of_which_nobody_kept_count_are_counted_and_make_room(stage: MongoStage):
    """As many as one record has room for."""
    ledger, run_id = MongoLedger(await stage.connect(PlainDatabase), stage.clock), task().run_id
    await ledger.add_attempt(run_id, Attempt(at_ms=0, error="no", counted=True))
    stage.take_away("attempts", run_id, "count")
    tries = [{"at": at, "error": "x" * 16_000, "counted": False} for at in range(1, 1044)]
    stage.write("attempts", run_id, {"tries": tries})
    assert count_tries(await ledger.attempts(run_id)) == len(tries)
    more = Attempt(at_ms=2000, error="x" * 16_000, counted=False)
    for _ in range(2):  # as if the first answer had been lost
        await ledger.add_attempt(run_id, more)
    kept = await ledger.attempts(run_id)
    assert (len(kept), kept[-1]) == (ATTEMPTS_KEPT, numbered(more, len(tries) + 1))
    assert kept[0].number == len(tries) + 2 - ATTEMPTS_KEPT


@pytest.mark.req("SUS-3")
async def test_what_a_former_version_notes_meanwhile_is_counted_as_far_as_it_is_kept(stage: MongoStage):
    await stage.ledger.add_attempt(task().run_id, Attempt(at_ms=1, error="no", counted=True))
    tries = [{"at": at, "error": "no", "counted": True} for at in (1, 2)]
    stage.write("attempts", task().run_id, {"tries": tries})
    assert [one.number for one in await stage.ledger.attempts(task().run_id)] == [1, 2]

"""Promised for later: a follow-up is armed once whatever dies, fires once, and not before its time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pipeline_stage import Stage

import rise
from rise.delivery import DeliveryLimits
from rise.envelope import DeliveryKey, Reason, run_id_of, task_id_of
from rise.testing.telegram import Fault
from rise.worker import WorkerLimits

MINUTE = 60
DAY = 86400


@rise.workflow("reminds", channels=["telegram"])
async def reminds(turn: rise.Turn) -> None:
    await turn.follow_up("don't forget", in_seconds=MINUTE)
    await turn.reply("I will remind you")


@pytest.mark.req("WFL-3")
async def test_a_follow_up_is_said_when_its_time_has_come_and_not_before(stage: Stage):
    await stage.start(reminds)
    [task_id] = await stage.write("remind me")
    assert await stage.said(1) == ["I will remind you"]
    later = task_id_of(DeliveryKey(f"fu:{run_id_of(task_id, 0)}:0"))
    task = await stage.queue.get(later)
    assert task is not None
    assert 0 < task.progress.due_at_ms - stage.queue.now_ms() <= MINUTE * 1000
    await stage.pass_time(MINUTE - 1)
    assert stage.texts() == ["I will remind you"]
    await stage.pass_time(2)
    assert await stage.said(2) == ["I will remind you", "don't forget"]
    await stage.ended(task_id, later)
    assert await stage.open_count() == 0


@pytest.mark.req("WFL-3", "QUE-2")
async def test_a_follow_up_does_not_hold_up_its_chat_until_then(stage: Stage):
    await stage.start(reminds)
    await stage.write("first", "second")
    assert await stage.said(2) == ["I will remind you"] * 2


@pytest.mark.req("WFL-3", "QUE-2")
@pytest.mark.failure("FU3")
async def test_what_one_run_planned_is_said_in_the_order_of_its_moments_and_then_as_it_was_planned(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=8)

    @rise.workflow("counts", channels=["telegram"])
    async def counts(turn: rise.Turn) -> None:
        await turn.follow_up("last", in_seconds=MINUTE * 2)
        for number in range(12):
            await turn.follow_up(f"part {number}", in_seconds=MINUTE)
        await turn.follow_up("first", in_seconds=MINUTE / 2)

    await stage.start(counts)
    chats = range(1, 5)
    for chat in chats:
        await stage.ended(*await stage.write("go", chat=chat))
    assert (await stage.queue.depth()).out_of_order == 0
    parts = [f"part {number}" for number in range(12)]
    for seconds, said in ((31, ["first"]), (30, ["first", *parts]), (60, ["first", *parts, "last"])):
        await stage.pass_time(seconds)
        await stage.said(len(said) * len(chats))
        assert {chat: stage.texts(chat) for chat in chats} == dict.fromkeys(chats, said)


@pytest.mark.req("WFL-3")
@pytest.mark.failure("D12", "M4")
async def test_what_was_promised_in_a_result_that_cannot_be_read_waits_for_who_can(stage: Stage):
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("remind me")
    worker = stage.new_worker(reminds)
    worker.die_at("ledger.save_result", "after")
    await stage.start_new_worker(worker, reminds)
    await worker.dead()
    kept = await stage.rewrite("runs", task_id, result=b"of tomorrow")
    await gateway.supervisor.reap()
    await stage.start_worker(reminds)
    waiting = await stage.suspended(task_id, Reason.SCHEMA_NEWER)
    assert "unreadable" in (waiting.error or "")
    assert await stage.said(1) == ["I will remind you"]
    await gateway.supervisor.sweep()
    await stage.suspended(task_id, Reason.SCHEMA_NEWER)
    await stage.rewrite("runs", task_id, result=kept)  # as a newer version reads it
    await stage.operations.resume(task_id, who="operator")
    await stage.ended(task_id)
    assert await stage.queue.get(task_id_of(DeliveryKey(f"fu:{run_id_of(task_id, 0)}:0"))) is not None


@pytest.mark.req("WFL-3", "WRK-4")
@pytest.mark.failure("FU3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", ["ledger.save_result", "queue.enqueue", "ledger.note_armed", "queue.settle"])
async def test_a_worker_killed_while_arming_arms_it_once(stage: Stage, step: str, edge: Any):
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("remind me")
    worker = stage.new_worker(reminds)
    worker.die_at(step, edge)
    await stage.start_new_worker(worker, reminds)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(reminds)
    await stage.ended(task_id)
    await stage.said(1)
    await stage.pass_time(MINUTE + 1)
    assert await stage.said(2) == ["I will remind you", "don't forget"]


@pytest.mark.req("WFL-3", "OUT-1")
@pytest.mark.failure("FU3", "G7")
@pytest.mark.parametrize("days", [8, 40])
async def test_what_was_said_already_is_not_said_again_when_its_held_run_is_resumed_much_later(stage: Stage, days: int):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.commit_then_close(), method="sendMessage")
    gateway, _ = await stage.start(reminds)
    [task_id] = await stage.write("remind me")
    await stage.suspended(task_id, Reason.REPLY_HELD)
    await stage.pass_time(MINUTE + 1)
    await stage.said(2)
    await stage.ended(task_id_of(DeliveryKey(f"fu:{run_id_of(task_id, 0)}:0")))
    stage.clock.advance(days * DAY)
    await gateway.supervisor.reap()
    await gateway.supervisor.sweep()
    await stage.operations.resume(task_id, who="operator")
    await stage.said(3)
    await stage.ended(task_id)
    await stage.pass_time(MINUTE + 1)
    assert await stage.open_count() == 0
    assert stage.texts() == ["I will remind you", "don't forget", "I will remind you"]


@pytest.mark.req("WFL-3")
async def test_a_follow_up_may_run_a_workflow_at_a_moment(stage: Stage):
    at = stage.clock.now() + timedelta(hours=1)

    @rise.workflow("asks", channels=["telegram"])
    async def asks(turn: rise.Turn) -> None:
        if turn.kind == "follow_up":
            await turn.reply(f"an hour later: {turn.text}")
        else:
            await turn.follow_up(turn.text, at=at, workflow="asks")

    await stage.start(asks)
    [task_id] = await stage.write("hello")
    await stage.ended(task_id)
    await stage.pass_time(3599)
    assert stage.texts() == []
    await stage.pass_time(2)
    assert await stage.said(1) == ["an hour later: hello"]


@pytest.mark.req("WFL-3", "TMP-5")
@pytest.mark.parametrize("days_off", [-2, 2])
async def test_a_moment_is_the_wall_clocks_however_far_the_stores_is_from_it(stage: Stage, days_off: int):
    @rise.workflow("asks", channels=["telegram"])
    async def asks(turn: rise.Turn) -> None:
        await turn.follow_up("an hour later", at=stage.clock.now() + timedelta(hours=1))

    await stage.start(asks)
    stage.clock.step_wall(days_off * DAY)
    [task_id] = await stage.write("hello")
    await stage.ended(task_id)
    await stage.pass_time(3599)
    assert stage.texts() == []
    await stage.pass_time(2)
    assert await stage.said(1) == ["an hour later"]


@pytest.mark.req("WFL-3")
async def test_a_follow_up_without_a_time_or_with_an_ambiguous_one_is_refused(stage: Stage):
    refused: list[str] = []

    @rise.workflow("wrong", channels=["telegram"])
    async def wrong(turn: rise.Turn) -> None:
        for plan in (
            {},
            {"in_seconds": 1.0, "at": datetime(2030, 1, 1, tzinfo=UTC)},
            {"at": datetime(2030, 1, 1)},  # noqa: DTZ001 - that is the mistake
        ):
            try:
                await turn.follow_up("later", **plan)
            except ValueError as error:
                refused.append(str(error))
        await turn.reply("done")

    await stage.start(wrong)
    await stage.write("go")
    await stage.said(1)
    assert len(refused) == 3

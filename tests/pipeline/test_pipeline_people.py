"""What people do to messages, at the same time as others do: who decided second is told, and nothing is lost."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from pipeline_stage import Stage

import rise
from rise.delivery import DeliveryLimits
from rise.envelope import Outcome, Reason, Status, encode_head, encode_json
from rise.errors import StateConflict
from rise.ledger.port import ReplyState
from rise.queue.port import QueueLimits, Selection
from rise.retries import RetryPolicy
from rise.runtime.operations import Operations
from rise.stories import shown
from rise.testing.telegram import Fault


@rise.workflow("echo", channels=["telegram"])
async def echo(turn: rise.Turn) -> None:
    await turn.reply(turn.text)


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("G7")
async def test_of_resuming_and_running_again_at_once_the_first_holds_and_the_message_is_answered(stage: Stage):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    gateway, _ = await stage.start(echo)
    [task_id] = await stage.write("question")
    await stage.suspended(task_id, Reason.REPLY_HELD)
    sending = gateway.hold_at("ledger.outbox_take", "before")

    async def resume() -> None:
        await stage.operations.resume(task_id, who="another")

    gateway.at("ledger.record_operation", "after", resume)
    with pytest.raises(StateConflict):
        await _people(stage, gateway).run_again(task_id, who="operator")
    sending.open()
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 0)
    assert stage.texts() == ["question"]


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("G7")
async def test_of_running_again_and_resuming_at_once_only_the_new_answer_goes_out(stage: Stage):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    gateway, _ = await stage.start(echo)
    [task_id] = await stage.write("question")
    await stage.suspended(task_id, Reason.REPLY_HELD)

    async def run_again() -> None:
        await stage.operations.run_again(task_id, who="another")

    gateway.at("ledger.record_operation", "after", run_again)
    with pytest.raises(StateConflict):
        await _people(stage, gateway).resume(task_id, who="operator")
    await stage.said(1)
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 1)
    assert stage.texts() == ["question"]


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("E2", "G7")
async def test_what_was_parked_after_its_answer_was_frozen_and_runs_again_answers_once(stage: Stage):
    gateway = await stage.start_gateway(sends=False)
    [task_id] = await stage.write("question")
    for _ in range(stage.queue_limits.deaths_max):
        worker = stage.new_worker(echo)
        worker.die_at("queue.settle", "before")
        await stage.start_new_worker(worker, echo)
        await worker.dead()
        await gateway.supervisor.reap()
    worker = await stage.start_worker(echo)
    await stage.suspended(task_id, Reason.POISON)
    saving = worker.hold_at("ledger.save_result", "before")
    await _people(stage, gateway).run_again(task_id, who="operator")
    await saving.reached()
    [former] = await stage.ledger.replies(task_id=task_id)
    assert former.state is ReplyState.FAILED
    await gateway.start(gateway.sender)
    saving.open()
    await stage.said(1)
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 1)
    assert (await stage.result(task_id)).status is Status.DROPPED
    assert stage.texts() == ["question"]


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("D2", "E2")
async def test_what_a_frozen_worker_still_has_to_say_of_a_message_that_was_run_again_is_not_said(stage: Stage):
    stage.queue_limits = QueueLimits(deaths_suspect=1, deaths_max=1)
    gateway, frozen = await stage.start(echo)
    held = [frozen.hold_at(step, "before") for step in ("queue.renew", "ledger.save_result")]
    [task_id] = await stage.write("question")
    await held[1].reached()
    frozen.hold_at("queue.claim", "before")
    await stage.start_worker(echo)
    await stage.pass_time(31)
    await stage.suspended(task_id, Reason.POISON)
    await _people(stage, gateway).run_again(task_id, who="operator")
    await stage.said(1)
    await stage.ended(task_id)
    for gate in reversed(held):
        gate.open()
        await stage.let_go_on()
    await stage.pass_time(5)
    assert stage.texts() == ["question"]
    former = await stage.result(task_id)
    assert (former.status, former.by, former.why) == (Status.DROPPED, "operator", "run again as generation 1")
    assert (await stage.result(task_id, generation=1)).status is Status.COMPLETED


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("G7")
async def test_held_replies_that_are_let_go_on_at_once_go_out_in_the_order_of_their_chats(stage: Stage):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    chats = range(1, 9)
    stage.telegram.fault(Fault.server_error(), method="sendMessage", times=2 * len(chats))
    gateway, _ = await stage.start(echo)
    tasks = [task_id for chat in chats for task_id in await stage.write("first", "second", chat=chat)]
    assert any(second < first for first, second in zip(tasks[::2], tasks[1::2], strict=True)), "not by their names"
    while len(await stage.queue.list_open(Selection(reason=Reason.REPLY_HELD), limit=99)) < len(tasks):
        await stage.pass_time(80)  # where calls fail, one at a time is tried
    await stage.pass_time(80)
    rearmed = itertools.count(1)

    async def send_it() -> None:
        stage.nudge()
        await stage.said(next(rearmed))

    gateway.at("ledger.outbox_rearm", "after", send_it, times=len(tasks))
    await _people(stage, gateway).resume_selected(Selection(reason=Reason.REPLY_HELD), who="operator")
    await stage.ended(*tasks)
    assert {chat: stage.texts(chat) for chat in chats} == {chat: ["first", "second"] for chat in chats}


@pytest.mark.req("SUS-1", "SUS-3")
@pytest.mark.failure("B14")
async def test_what_a_newer_version_put_aside_in_words_of_its_own_is_listed_and_left_to_it(stage: Stage):
    await stage.start_gateway()
    [task_id] = await stage.write("question")
    await stage.rewrite("tasks", task_id, status="of_tomorrow")
    assert [task.head.task_id for task in await stage.operations.suspended()] == [task_id]
    for ask in (stage.operations.resume, stage.operations.run_again):
        with pytest.raises(StateConflict, match="schema_newer: a newer version of Rise says of it: of_tomorrow"):
            await ask(task_id, who="operator")
    assert (await stage.operations.drop(task_id, who="operator")).status is Status.DROPPED


@pytest.mark.req("SUS-3", "CPY-5")
@pytest.mark.failure("B14")
async def test_what_this_version_cannot_read_is_not_run_again_and_stays_as_the_newer_one_wrote_it(stage: Stage):
    await stage.start_gateway()
    [task_id] = await stage.write("question")
    task = await stage.queue.get(task_id)
    assert task is not None
    newer = msgspec.json.encode(msgspec.json.decode(encode_head(task.head)) | {"schema": 99})
    await stage.rewrite("tasks", task_id, head=newer)
    worker = await stage.start_worker(echo)
    await stage.suspended(task_id, Reason.SCHEMA_NEWER)
    with pytest.raises(StateConflict, match="this version of Rise cannot read it"):
        await stage.operations.run_again(task_id, who="operator")
    await worker.stop()
    assert await stage.rewrite("tasks", task_id, head=encode_head(task.head)) == newer


@pytest.mark.req("SUS-3")
@pytest.mark.failure("C19")
async def test_what_is_being_answered_is_not_run_again_although_the_queue_has_lost_it(stage: Stage):
    gateway, _ = await stage.start(echo)
    recording = gateway.hold_at("ledger.outbox_record", "before")
    [task_id] = await stage.write("question")
    await recording.reached()
    await stage.queue.cancel(task_id)
    with pytest.raises(StateConflict, match="its answer is on the way"):
        await stage.operations.run_again(task_id, who="operator")
    recording.open()
    await stage.ended(task_id)
    assert stage.texts() == ["question"]


@pytest.mark.req("SUS-3")
@pytest.mark.failure("B14", "M4")
async def test_what_has_ended_and_this_version_cannot_read_is_shown_and_not_run_again(stage: Stage):
    await stage.start(echo)
    [task_id] = await stage.write("question")
    await stage.ended(task_id)
    await stage.rewrite("runs", task_id, head=b'{"schema":"of tomorrow"}')
    await stage.rewrite("runs", task_id, raw=b"\xff of tomorrow")
    told = shown(await stage.operations.story(task_id), RetryPolicy())
    assert (told["status"], told["outcome"], len(told["replies"])) == (Status.COMPLETED, Outcome.ANSWERED, 1)
    assert "the stored head is unreadable" in told["error"]
    raw = msgspec.json.decode(encode_json(told))["payload"]["channelPayload"]["raw"]
    assert raw == "\\xff of tomorrow", "whether it is JSON nobody here knows"
    with pytest.raises(StateConflict, match=r"this version of Rise cannot read it.*the stored head is unreadable"):
        await stage.operations.run_again(task_id, who="operator")


def _people(stage: Stage, process: Any) -> Operations:
    return Operations(process.queue, process.ledger, process.bus, stage.clock)

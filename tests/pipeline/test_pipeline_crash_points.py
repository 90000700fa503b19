"""kill -9 before and after every call on a message's way, once each: one result, one answer, doubts marked.

The calls are listed here, and a test compares the list with what a message really passes: whoever adds one finds
out that it has to be killed, too.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from pipeline_stage import MARK, Gateway, Killed, Process, Stage, WorkerProcess

import rise
from rise.delivery import DeliveryLimits
from rise.envelope import Outcome, Reason, Status, TaskId, run_id_of
from rise.errors import LedgerSilent
from rise.ledger.port import Office, ReplyKind, ReplyState
from rise.offices import ASK_SECONDS, LEASE_SECONDS
from rise.retries import RetryPolicy
from rise.runtime.operations import Operations
from rise.testing.telegram import Fault

ACCEPTING = ["queue.enqueue"]
WORKING = [
    "queue.claim",
    *("ledger.run", "ledger.add_notice", "ledger.history", "ledger.steps", "ledger.save_step", "ledger.save_result"),
    "queue.settle",
]
RESUMING_A_CHAT = ["queue.suspended_routes", "queue.next_in_lane", "queue.resume", "queue.settle"]
BECOMING_THE_SENDER = ["ledger.take_office"]
SENDING = ["ledger.outbox_take", "ledger.outbox_sending", "channel.send", "ledger.outbox_record", "queue.finish"]
SUPERVISING = {"queue.list_open", "queue.suspended_routes", "queue.resume"}
ASIDE = {"queue.sweep", "queue.depth", "queue.renew",
         "ledger.outbox_open", "ledger.outbox_depth", "ledger.finished_among", "ledger.purge", "ledger.replies",
         "ledger.chat_moves", "ledger.record_operation", "definitions.changes", "definitions.latest",
         "definitions.version", "definitions.put"}  # fmt: skip
"""Beside the way: looking, keeping house, and what a start does."""

EDGES = ["before", "after"]
IN_DOUBT = {("channel.send", "after"), ("ledger.outbox_record", "before")}
"""Where the platform has committed and nobody wrote it down."""


class Conversation:
    """Two messages in one chat; each answer takes a paid step and is said in two parts."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.paid: list[str] = []
        self.ran: list[str] = []

        @rise.workflow("shouts", channels=["telegram"])
        async def shouts(turn: rise.Turn) -> None:
            self.ran.append(turn.text)
            shouted = await turn.step("shout", self._shout, turn.text)
            await turn.reply(f"{shouted} 1")
            await turn.reply(f"{shouted} 2")

        self.workflow = shouts

    async def _shout(self, text: str) -> str:
        self.paid.append(text)
        return text.upper()

    async def go_on(self, *dead: Process) -> None:
        """Whatever died is replaced, and the supervisor does its rounds."""
        gateways = [process for process in dead if isinstance(process, Gateway)]
        for process in dead:
            await process.dead()
        gateway = await self.stage.start_gateway() if gateways else self._gateway()
        if any(isinstance(process, WorkerProcess) for process in dead):
            await gateway.supervisor.reap()
            await self.stage.start_worker(self.workflow)
        await gateway.supervisor.sweep()

    def _gateway(self) -> Gateway:
        return next(one for one in self.stage._processes if isinstance(one, Gateway) and not one.is_dead)

    async def check(self, tasks: list[Any], *, repeats_max: int) -> None:
        runs = await self.stage.ended(*tasks)
        for task_id, run in zip(tasks, runs, strict=True):
            assert (run.status, run.outcome, run.generation) == (Status.COMPLETED, Outcome.ANSWERED, 0)
            replies = await self.stage.ledger.replies(task_id=task_id)
            answers = [reply for reply in replies if reply.kind is ReplyKind.ANSWER]
            assert [reply.state for reply in answers] == [ReplyState.SENT] * 2
        seen = self.stage.texts()
        assert list(dict.fromkeys(text.removeprefix(MARK) for text in seen)) == ["ONE 1", "ONE 2", "TWO 1", "TWO 2"]
        unmarked = [text for text in seen if not text.startswith(MARK)]
        assert len(unmarked) == len(set(unmarked))
        assert len(seen) - 4 <= repeats_max
        assert await self.stage.open_count() == 0
        assert (await self.stage.ledger.outbox_depth()).by_state == {}


@pytest.mark.req("QUE-3", "WRK-4", "WRK-5", "OUT-1", "CPY-7")
@pytest.mark.failure("D1", "E2", "F11", "G1")
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", [step for step in WORKING if step != "ledger.add_notice"])
async def test_a_worker_killed_anywhere_leaves_one_result_and_one_answer(stage: Stage, step: str, edge: Any, nth: int):
    conversation = Conversation(stage)
    gateway = await stage.start_gateway()
    tasks = await stage.write("one", "two")
    worker = stage.new_worker(conversation.workflow)
    worker.die_at(step, edge, nth=nth)
    await stage.start_new_worker(worker, conversation.workflow)
    await conversation.go_on(worker)
    await conversation.check(tasks, repeats_max=0)
    before_it_was_saved = step == "ledger.save_step" and edge == "before"
    assert len(conversation.paid) == (3 if before_it_was_saved else 2), "a finished step is not paid for again"
    has_result = (step, edge) in {
        ("ledger.save_result", "after"),
        ("queue.settle", "before"),
        ("queue.settle", "after"),
    }
    if has_result and nth == 1:
        assert conversation.ran.count("one") == 1, "what has a result is not run again"
    assert gateway.steps.count("channel.send") == 4


@pytest.mark.req("CPY-6", "WRK-4", "CPY-7")
@pytest.mark.failure("D1", "F1")
@pytest.mark.parametrize("edge", EDGES)
async def test_a_worker_killed_while_it_asks_behind_a_silent_ledger_leaves_the_message_to_the_next(
    stage: Stage, edge: Any
):
    conversation = Conversation(stage)
    await stage.start_gateway()
    tasks = await stage.write("one", "two")
    worker = stage.new_worker(conversation.workflow)
    worker.fail_at("ledger.steps", "before", LedgerSilent("MongoDB does not answer"))
    worker.die_at("ledger.run", edge)
    await stage.start_new_worker(worker, conversation.workflow)
    await conversation.go_on(worker)
    await conversation.check(tasks, repeats_max=0)
    assert conversation.ran == ["one", "two"]


@pytest.mark.req("OUT-1", "CPY-7")
@pytest.mark.failure("G1", "G2", "G3", "F11")
@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", SENDING)
async def test_a_sender_killed_anywhere_repeats_only_what_nobody_could_know_and_marks_it(
    stage: Stage, step: str, edge: Any, nth: int
):
    if step in ("ledger.outbox_take", "queue.finish"):
        nth = min(nth, 2)
    conversation = Conversation(stage)
    gateway, worker = await stage.start(conversation.workflow)
    gateway.die_at(step, edge, nth=nth if step != "ledger.outbox_take" else nth + 1)
    # Not by the gateway, which may die of the first one's answer while the second is still being accepted.
    tasks = await stage.write("one", "two", by=worker)
    while not gateway.is_dead:
        stage.nudge()
        await stage.let_go_on()
    await conversation.go_on(gateway)
    await conversation.check(tasks, repeats_max=1 if (step, edge) in IN_DOUBT else 0)
    if (step, edge) in IN_DOUBT:
        assert len(stage.telegram.sent) == 5, "nobody can know that it was sent: it is said again, and marked"
    assert conversation.ran == ["one", "two"]


@pytest.mark.req("OUT-2", "EMB-3")
@pytest.mark.failure("G1")
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", BECOMING_THE_SENDER)
async def test_the_place_of_a_sender_killed_while_it_takes_it_is_free_at_once(
    stage: Stage, step: str, edge: Any, nth: int
):
    conversation = Conversation(stage)
    gateway = await stage.start_gateway(sends=False)
    await stage.start_worker(conversation.workflow)
    gateway.die_at(step, edge, nth=nth)
    await gateway.start(gateway.sender)
    while not gateway.is_dead:
        await stage.pass_time(1)
    died_at = stage.clock.monotonic()
    await gateway.dead()
    again = await stage.start_gateway()
    tasks = await stage.write("one", "two", by=again)
    await stage.said(4)
    assert stage.clock.monotonic() == died_at, "nobody waited for its lease"
    await conversation.check(tasks, repeats_max=0)


@pytest.mark.req("OUT-2", "EMB-3")
@pytest.mark.failure("G1")
async def test_the_place_of_a_sender_of_which_nobody_knows_that_it_died_is_free_after_its_lease(stage: Stage):
    await stage.ledger.take_office(Office.SENDER, "of a host that is gone", seconds=LEASE_SECONDS)
    conversation = Conversation(stage)
    gateway, _ = await stage.start(conversation.workflow)
    tasks = await stage.write("one", "two", by=gateway)
    for _ in range(int(LEASE_SECONDS) - 1):
        await stage.pass_time(1)
    assert stage.texts() == []
    for _ in range(2):
        await stage.pass_time(1)
    await stage.said(4)
    await conversation.check(tasks, repeats_max=0)


@pytest.mark.req("OUT-2", "EMB-3")
@pytest.mark.failure("G1")
@pytest.mark.parametrize("edge", EDGES)
async def test_whoever_dies_while_freeing_the_place_of_the_dead_leaves_that_to_the_next(stage: Stage, edge: Any):
    conversation = Conversation(stage)
    sender, _ = await stage.start(conversation.workflow)
    reaper = await stage.start_gateway(sends=False)
    await stage.until(lambda: _has_passed(sender, "ledger.outbox_open"))
    reaper.die_at("ledger.leave_offices", edge)
    await sender.kill()
    with suppress(Killed):  # it may be reaping by itself, and die of that
        await reaper.supervisor.reap()
    await reaper.dead()
    again = await stage.start_gateway()
    tasks = await stage.write("one", "two", by=again)
    await again.supervisor.reap()
    await stage.pass_time(ASK_SECONDS + 1)  # it may have asked for the place before it was free
    await stage.said(4)
    await conversation.check(tasks, repeats_max=0)


async def _has_passed(process: Process, step: str) -> bool:
    return step in process.steps


@pytest.mark.req("ENV-3", "CPY-7")
@pytest.mark.failure("A4", "A5", "C1", "C4")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ACCEPTING)
async def test_a_gateway_killed_while_accepting_keeps_it_once_or_was_never_believed(stage: Stage, step: str, edge: Any):
    conversation = Conversation(stage)
    gateway, _ = await stage.start(conversation.workflow)
    gateway.die_at(step, edge)
    one = stage.incoming("one")
    with pytest.raises(Killed):
        await gateway.intake.accept(one)
    await gateway.dead()
    again = await stage.start_gateway()
    accepted = await again.intake.accept(one)
    assert accepted.new == (edge == "before")
    tasks = [accepted.task_id, *await stage.write("two", by=again)]
    await conversation.check(tasks, repeats_max=0)


@pytest.mark.req("QUE-3", "CHN-4", "SUS-3")
@pytest.mark.failure("H1", "G16")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["ledger.add_attempt", "ledger.add_notice", "queue.settle"])
async def test_a_worker_killed_while_it_gives_up_tells_the_sender_once(stage: Stage, step: str, edge: Any):
    stage.retry_policy = RetryPolicy(retry_max=0)

    @rise.workflow("fails", channels=["telegram"])
    async def fails(turn: rise.Turn) -> None:
        raise ValueError("no luck")

    gateway, worker = await stage.start(fails)
    worker.die_at(step, edge)
    [task_id] = await stage.write("one")
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(fails)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert len(await stage.said(1)) == 1
    assert len(await stage.notices(task_id)) == 1


@pytest.mark.req("SUS-2", "QUE-3")
@pytest.mark.failure("E2", "F11")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", RESUMING_A_CHAT)
async def test_a_worker_killed_while_it_lets_go_on_what_waited_for_a_workflow_keeps_the_order_of_its_chat(
    stage: Stage, step: str, edge: Any
):
    conversation = Conversation(stage)
    gateway, nobody = await stage.start()
    [one] = await stage.write("one")
    await stage.suspended(one, Reason.WORKFLOW_PENDING)
    await nobody.stop()
    supervising = gateway.hold_at("queue.suspended_routes", "before")
    [two] = await stage.write("two")
    worker = stage.new_worker(conversation.workflow)
    worker.die_at(step, edge)
    starting = asyncio.ensure_future(stage.start_new_worker(worker, conversation.workflow))
    await worker.dead()
    await asyncio.wait([starting])
    await gateway.supervisor.reap()
    await stage.start_worker(conversation.workflow)
    await stage.ended(one, two)
    supervising.open()
    answers = [text for text in stage.texts() if text in ("ONE 1", "ONE 2", "TWO 1", "TWO 2")]
    assert answers == ["ONE 1", "ONE 2", "TWO 1", "TWO 2"]
    assert conversation.ran == ["one", "two"]


@pytest.mark.req("TGM-3")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["ledger.add_notice", "ledger.save_result", "queue.settle"])
async def test_a_worker_killed_over_a_tap_acknowledges_it_once(stage: Stage, step: str, edge: Any):
    conversation = Conversation(stage)
    _gateway, worker = await stage.start(conversation.workflow)
    worker.die_at(step, edge)
    task_id = await stage.tap("one")
    await conversation.go_on(worker)
    await stage.ended(task_id)
    assert stage.texts() == ["ONE 1", "ONE 2"]
    assert len(stage.calls("answerCallbackQuery")) == 1


@pytest.mark.req("WRK-4", "OUT-1")
@pytest.mark.failure("F11", "H1")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["ledger.finish", "queue.cancel"])
async def test_a_drop_killed_between_ledger_and_queue_never_answers(stage: Stage, step: str, edge: Any):
    conversation = Conversation(stage)
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("one")
    operator = Operations(gateway.queue, gateway.ledger, gateway.bus, stage.clock)
    gateway.die_at(step, edge)
    with pytest.raises(Killed):
        await operator.drop(task_id, who="operator")
    await gateway.dead()
    await stage.start(conversation.workflow)
    [run] = await stage.ended(task_id)
    was_dropped = (step, edge) != ("ledger.finish", "before")
    assert run.status is (Status.DROPPED if was_dropped else Status.COMPLETED)
    assert stage.texts() == ([] if was_dropped else ["ONE 1", "ONE 2"])


@pytest.mark.req("WRK-4", "SUS-3", "OUT-1")
@pytest.mark.failure("G7")
@pytest.mark.parametrize(
    ("step", "edge"),
    [("queue.restart", "before"), ("queue.restart", "after"), ("ledger.finish", "before"), ("ledger.finish", "after")],
)
async def test_running_a_held_message_again_killed_between_queue_and_ledger_answers_once_or_changed_nothing(
    stage: Stage, step: str, edge: Any
):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    conversation = Conversation(stage)
    gateway, _ = await stage.start(conversation.workflow)
    [task_id] = await stage.write("one")
    await stage.suspended(task_id, Reason.REPLY_HELD)
    gateway.die_at(step, edge)
    with pytest.raises(Killed):
        await Operations(gateway.queue, gateway.ledger, gateway.bus, stage.clock).run_again(task_id, who="operator")
    await conversation.go_on(gateway)
    if (step, edge) == ("queue.restart", "before"):
        await stage.suspended(task_id, Reason.REPLY_HELD)
        await stage.operations.resume(task_id, who="operator")
    await stage.said(2)
    [run] = await stage.ended(task_id)
    was_changed = (step, edge) != ("queue.restart", "before")
    assert (run.status, run.generation) == (Status.COMPLETED, int(was_changed))
    assert stage.texts() == ["ONE 1", "ONE 2"]
    assert (await stage.result(task_id)).status is (Status.DROPPED if was_changed else Status.COMPLETED)
    assert await stage.ledger.outbox_rearm(run_id_of(task_id, 0)) == 0, "the former's is never sent beside it"
    assert (await stage.ledger.outbox_depth()).by_state == {}


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("G7")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["queue.resume", "ledger.outbox_rearm"])
async def test_resuming_a_held_message_killed_between_queue_and_ledger_sends_it_or_holds_it_again(
    stage: Stage, step: str, edge: Any
):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    conversation = Conversation(stage)
    gateway, _ = await stage.start(conversation.workflow)
    [task_id] = await stage.write("one")
    await stage.suspended(task_id, Reason.REPLY_HELD)
    gateway.die_at(step, edge)
    with pytest.raises(Killed):
        await Operations(gateway.queue, gateway.ledger, gateway.bus, stage.clock).resume(task_id, who="operator")
    await gateway.dead()
    again = await stage.start_gateway()
    if (step, edge) != ("ledger.outbox_rearm", "after"):
        await stage.until(lambda: _held(stage, again, task_id))
        await stage.operations.resume(task_id, who="operator")
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 0)
    assert stage.texts() == ["ONE 1", "ONE 2"]
    assert conversation.ran == ["one"]


@pytest.mark.req("OUT-2", "CPY-7")
@pytest.mark.failure("G2")
@pytest.mark.parametrize("edge", EDGES)
async def test_a_sender_killed_before_the_queue_knows_that_a_reply_is_held_leaves_it_for_a_person(
    stage: Stage, edge: Any
):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    conversation = Conversation(stage)
    gateway, _ = await stage.start(conversation.workflow)
    gateway.die_at("queue.hold", edge)
    [task_id] = await stage.write("one")
    await gateway.dead()
    again = await stage.start_gateway()
    await stage.until(lambda: _held(stage, again, task_id))
    assert stage.texts() == [], "it may have been read: nobody but a person has it sent again"
    await stage.operations.resume(task_id, who="operator")
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 0)
    assert stage.texts() == ["ONE 1", "ONE 2"]
    assert conversation.ran == ["one"]


async def _held(stage: Stage, gateway: Gateway, task_id: TaskId) -> bool:
    await gateway.supervisor.sweep()
    task = await stage.look(task_id)
    return task is not None and task.reason is Reason.REPLY_HELD


async def test_the_calls_that_are_killed_are_all_the_calls_there_are(stage: Stage):
    conversation = Conversation(stage)
    gateway, nobody = await stage.start()
    [waits] = await stage.write("waits")
    await stage.suspended(waits, Reason.WORKFLOW_PENDING)
    await nobody.stop()
    supervising = gateway.hold_at("queue.suspended_routes", "before")
    tasks = [waits, *await stage.write("one", "two"), await stage.tap("three", chat=43)]
    worker = await stage.start_worker(conversation.workflow)
    await stage.ended(*tasks)
    supervising.open()
    assert set(worker.steps) - ASIDE == {*WORKING, *RESUMING_A_CHAT}
    assert set(gateway.steps) - ASIDE - SUPERVISING == {*ACCEPTING, *BECOMING_THE_SENDER, *SENDING}

"""A key that comes again after it was forgotten is another message: what became of the former says nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from pipeline_stage import Gateway, Killed, Stage

import rise
from rise.channels.port import Incoming
from rise.envelope import Reason, Status, TaskId
from rise.errors import StateConflict
from rise.queue.port import KEY_GRACE_SECONDS
from rise.runtime.audit import Audit, Fate
from rise.runtime.operations import Operations
from rise.runtime.supervisor import Duties

DAY = 86400
UNREADABLE = b'{"update_id": 77, "message": {"chat": "nonsense"}}'


@rise.workflow("echo", channels=["telegram"])
async def echo(turn: rise.Turn) -> None:
    await turn.reply(turn.text)


async def answered_and_forgotten(stage: Stage, gateway: Gateway) -> Incoming:
    """A message was answered, and its key forgotten. Returns another that has the same key, before it is accepted."""
    return under_the_same_key(stage, await forgotten_again(stage, gateway), "new")


async def forgotten_again(stage: Stage, gateway: Gateway) -> Incoming:
    former = stage.incoming("old")
    worker = await stage.start_worker(echo)
    await stage.ended((await gateway.intake.accept(former)).task_id)
    await worker.kill()
    stage.clock.advance(8 * DAY)
    await gateway.supervisor.reap()
    await gateway.supervisor.sweep()
    return former


def under_the_same_key(stage: Stage, former: Incoming, text: str) -> Incoming:
    return msgspec.structs.replace(stage.incoming(text), delivery_key=former.delivery_key)


async def accepted(gateway: Gateway, incoming: Incoming) -> TaskId:
    accepted = await gateway.intake.accept(incoming)
    assert accepted.new
    return accepted.task_id


@pytest.mark.req("ENV-3", "SUS-1")
@pytest.mark.parametrize(
    ("body", "again"),
    [(UNREADABLE, UNREADABLE.replace(b"nonsense", b"other nonsense")), (b"", b"")],
    ids=["under one key", "bytes that anybody may send"],
)
async def test_a_message_that_is_parked_stays_so_although_the_former_of_its_key_was_dropped(
    stage: Stage, body: bytes, again: bytes
):
    gateway = await stage.start_gateway()
    former = await accepted(gateway, stage.reading(body))
    await stage.operations.drop(former, who="operator")
    stage.clock.advance(8 * DAY)
    await gateway.supervisor.sweep()
    task_id = await accepted(gateway, stage.reading(again))
    await gateway.supervisor.sweep()
    assert (await stage.suspended(task_id, Reason.RAW_PAYLOAD_INVALID)).generation == 0
    assert (await stage.operations.story(task_id)).status is Status.SUSPENDED
    audit = Audit(queue=stage.queue, ledger=stage.ledger, keep_finished_seconds=30 * DAY)
    report = await audit.run()
    assert (report.fates[Fate.SUSPENDED], report.fates[Fate.DROPPED]) == (1, 0)
    assert not report.notices


@pytest.mark.req("ENV-3")
@pytest.mark.failure("A7")
async def test_a_message_that_waits_to_be_written_while_the_time_of_its_key_ends_is_known(stage: Stage):
    gateway, _ = await stage.start(echo)
    former = stage.incoming("former")
    task_id = (await gateway.intake.accept(former)).task_id
    await stage.ended(task_id)
    stage.clock.advance(former.receipt_seconds - 0.5)
    writing = gateway.hold_at("queue.enqueue", "before")
    coming = asyncio.ensure_future(gateway.intake.accept(under_the_same_key(stage, former, "next")))
    await writing.reached()
    stage.clock.advance(1)
    await gateway.supervisor.sweep()
    writing.open()
    assert not (await coming).new, "as new, it would be taken for the former, and nobody told"
    stage.clock.advance(KEY_GRACE_SECONDS)
    await gateway.supervisor.sweep()
    assert (await gateway.intake.accept(under_the_same_key(stage, former, "next"))).new
    assert await stage.said(2) == ["former", "next"]


@pytest.mark.req("ENV-3", "TGM-1")
@pytest.mark.failure("A7")
async def test_an_update_that_comes_again_when_its_key_is_forgotten_is_known_by_its_bytes(stage: Stage):
    """As from a host whose clock was days behind when it accepted it first, and that was started again since."""
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await forgotten_again(stage, gateway))
    await stage.start_worker(echo)
    await stage.ended(task_id)
    assert stage.texts() == ["old"]
    assert (await stage.operations.story(task_id)).replies, "what it was answered then is its answer"


@pytest.mark.req("ENV-3")
async def test_who_looks_at_it_sees_nothing_of_what_the_former_was_told_in_another_chat(stage: Stage):
    gateway = await stage.start_gateway()
    former = await answered_and_forgotten(stage, gateway)
    other = msgspec.structs.replace(stage.incoming("new", chat=43), delivery_key=former.delivery_key)
    task_id = await accepted(gateway, other)
    story = await stage.operations.story(task_id)
    assert (story.run, story.attempts, story.replies) == (None, [], [])
    await stage.start_worker(echo)
    await stage.said(1, chat=43)
    await stage.ended(task_id)
    story = await stage.operations.story(task_id)
    assert [(reply.chat_id, reply.call.text) for reply in story.replies] == [("43", "new")]


@pytest.mark.req("ENV-3", "WRK-4")
async def test_it_is_open_for_whoever_looks_and_answered_as_itself(stage: Stage):
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await answered_and_forgotten(stage, gateway))
    story = await stage.operations.story(task_id)
    assert (story.status, story.run) == (Status.PENDING, None)
    await stage.start_worker(echo)
    await stage.said(2)
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 1)
    assert stage.texts() == ["old", "new"]


@pytest.mark.req("ENV-3", "WRK-4")
@pytest.mark.failure("F11")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", ["ledger.run", "queue.settle"])
async def test_a_worker_killed_while_it_finds_that_out_runs_it_once(stage: Stage, step: str, edge: Any):
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await answered_and_forgotten(stage, gateway))
    worker = stage.new_worker(echo)
    worker.die_at(step, edge)
    await stage.start_new_worker(worker, echo)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(echo)
    await stage.said(2)
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.COMPLETED, 1)
    assert stage.texts() == ["old", "new"]


@pytest.mark.req("SUS-3", "WRK-4")
async def test_it_is_dropped_as_itself(stage: Stage):
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await answered_and_forgotten(stage, gateway))
    run = await stage.operations.drop(task_id, who="operator", why="nonsense")
    assert (run.status, run.generation, run.by) == (Status.DROPPED, 1, "operator")
    assert await stage.look(task_id) is None
    assert (await stage.result(task_id)).status is Status.COMPLETED, "the former stays as it ended"


@pytest.mark.req("SUS-3", "WRK-4")
@pytest.mark.failure("F11")
async def test_a_drop_of_it_killed_between_ledger_and_queue_never_answers(stage: Stage):
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await answered_and_forgotten(stage, gateway))
    gateway.die_at("ledger.finish", "after")
    with pytest.raises(Killed):
        await Operations(gateway.queue, gateway.ledger, gateway.bus, stage.clock).drop(task_id, who="operator")
    await gateway.dead()
    await stage.start(echo)
    [run] = await stage.ended(task_id)
    assert (run.status, run.generation) == (Status.DROPPED, 1)
    assert stage.texts() == ["old"]


@pytest.mark.req("SUS-3", "WRK-4")
@pytest.mark.failure("F11")
async def test_who_drops_what_was_answered_meanwhile_is_told_and_takes_nothing_from_the_queue(stage: Stage):
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("one")
    worker = stage.new_worker(echo)
    worker.die_at("ledger.save_result", "after")
    await stage.start_new_worker(worker, echo)
    await worker.dead()
    await stage.said(1)

    async def has_ended() -> bool:
        run = await stage.ledger.latest_run(task_id)
        return run is not None and run.status.is_finished

    await stage.until(has_ended)
    with pytest.raises(StateConflict, match="completed already"):
        await stage.operations.drop(task_id, who="operator")
    assert await stage.look(task_id) is not None, "whoever settles it arms what it promised for later"
    await gateway.supervisor.reap()
    await stage.start_worker(echo)
    await stage.ended(task_id)


@pytest.mark.req("ENV-3")
@pytest.mark.failure("A7")
async def test_a_host_that_starts_with_a_time_far_ahead_forgets_nothing_by_it(stage: Stage):
    gateway, _ = await stage.start(echo)
    former = stage.incoming("Hello")
    await stage.ended((await gateway.intake.accept(former)).task_id)
    await gateway.kill()
    stage.clock.advance(8 * DAY)  # the host is started again, and its clock is that far ahead
    gateway = await stage.start_gateway()
    await gateway.supervisor.sweep()
    assert (await gateway.intake.accept(former)).new is False
    stage.clock.step_wall(-8 * DAY)  # it is told the right time; the store's clock never goes back
    for _ in range(40):
        stage.clock.advance(30)
        await gateway.supervisor.sweep()
    assert (await gateway.intake.accept(former)).new is False
    stage.clock.step_wall(8 * DAY)
    await gateway.supervisor.sweep()
    assert (await gateway.intake.accept(former)).new is False
    stage.clock.advance(900)
    await gateway.supervisor.sweep()
    assert (await gateway.intake.accept(former)).new is True


@pytest.mark.req("ENV-3", "CHN-4")
async def test_its_sender_is_told_that_the_answer_is_late_although_the_former_had_one(stage: Stage):
    stage.duties = Duties(late_after_seconds=60.0)
    gateway = await stage.start_gateway()
    task_id = await accepted(gateway, await answered_and_forgotten(stage, gateway))
    stage.clock.advance(61)
    await gateway.supervisor.tell()
    assert len(await stage.notices(task_id)) == 1

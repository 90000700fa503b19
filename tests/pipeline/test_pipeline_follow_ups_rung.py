"""Timers beside the queue: they ring where nobody else need look; lost, late, early or away, it is said once.

What holds whoever keeps the time is in `test_pipeline_follow_ups_asked.py`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import msgspec
import pytest
from pipeline_stage import PATIENCE_SECONDS, Gateway, Stage
from test_pipeline_follow_ups_asked import MINUTE, echoes, fired, look, move, of, over, plan, said

from rise.envelope import Head, Status, TaskId
from rise.errors import RungEarly, StateConflict, TemporalUnavailable
from rise.follow_ups import arming
from rise.follow_ups.arming import Arming
from rise.follow_ups.planning import planning_id, waiting_lane
from rise.follow_ups.port import LEFT_TO_TIMERS, FollowUpId, FollowUpStatus
from rise.ledger.port import Run
from rise.queue.port import OpenTask, Selection
from rise.testing.fakes.timers import FakeTimers

LEFT_SECONDS = LEFT_TO_TIMERS.total_seconds()
STEPS_OF_A_RING = [
    "queue.get",
    "queue.list_open",
    "ledger.run",
    "ledger.save_result",
    "queue.enqueue",
    "ledger.note_armed",
    "queue.cancel",
]


@pytest.fixture
def timers(stage: Stage) -> FakeTimers:
    stage.timers = FakeTimers(stage.clock)
    return stage.timers


@pytest.fixture
def left_alone(stage: Stage) -> FakeTimers:
    """Which nobody arms and in nobody rings, but as a test does it by hand."""
    stage.timers = FakeTimers(stage.clock)
    return FakeTimers(stage.clock)


async def gateway_with_arming(stage: Stage) -> tuple[Gateway, Arming]:
    """As `rise serve` has it; its worker is another process."""
    assert stage.timers is not None
    gateway = await stage.start_gateway()
    service = Arming(stage.timers, gateway.queue, gateway.bus, stage.clock)
    await gateway.start(service)
    return gateway, service


async def armed(stage: Stage, timers: FakeTimers, *planned: str) -> None:
    """Wait until these have timers, and no others."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while timers.armed != set(planned):
                await stage.let_go_on()
    except TimeoutError:
        raise AssertionError(f"armed are {timers.armed}, not {set(planned)}") from None


async def taken(stage: Stage, one: str) -> bool:
    """Whether what it says has been accepted."""
    return (await look(stage, FollowUpId(one))).status is FollowUpStatus.FIRED


# --- who keeps the time ---


@pytest.mark.req("TMP-3")
async def test_a_timer_rings_at_the_moment_and_the_queue_comes_later_for_what_has_not_rung(
    stage: Stage, timers: FakeTimers
):
    gateway, _ = await gateway_with_arming(stage)
    rung = await plan(stage, "rung", MINUTE, by=gateway)
    await armed(stage, timers, rung)
    timers.work(stage.ringing_in(gateway))
    await stage.pass_time(MINUTE)
    assert await stage.until(lambda: taken(stage, rung)), "no worker runs: nobody else could have fired it"
    waiting = await plan(stage, "not rung", MINUTE, by=gateway, chat=7)
    timers.forget()
    await stage.start_worker(echoes)
    timers.is_away = True
    await stage.pass_time(MINUTE + LEFT_SECONDS - 1)
    assert not await taken(stage, waiting)
    await stage.pass_time(1)
    assert sorted(await said(stage, 2)) == ["not rung", "rung"]
    await over(stage)
    assert len(stage.telegram.sent) == 2


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU2")
async def test_what_is_accepted_while_the_timers_are_away_is_armed_when_they_are_back(stage: Stage, timers: FakeTimers):
    timers.is_away = True
    gateway, service = await gateway_with_arming(stage)
    planned = [await plan(stage, f"{number}", MINUTE + number, by=gateway) for number in range(3)]
    await stage.pass_time(5)
    assert not timers.armed
    timers.is_away = False
    service.arm_all()
    await stage.pass_time(5)
    await armed(stage, timers, *planned)


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU2")
async def test_what_the_timers_have_lost_they_are_given_again(stage: Stage, timers: FakeTimers):
    gateway, service = await gateway_with_arming(stage)
    planned = [await plan(stage, f"{number}", MINUTE, by=gateway, chat=number + 1) for number in range(3)]
    await armed(stage, timers, *planned)
    timers.forget()
    service.arm_all()
    await armed(stage, timers, *planned)


@pytest.mark.req("TMP-3")
async def test_timers_that_fail_again_and_again_are_given_the_rest_and_not_all_from_the_beginning(
    stage: Stage, timers: FakeTimers, monkeypatch: pytest.MonkeyPatch
):
    gateway = await stage.start_gateway()
    planned = [await plan(stage, f"{number}", MINUTE, by=gateway, chat=number + 1) for number in range(60)]
    calls, arm = 0, timers.arm

    async def sometimes(one: TaskId, due_at: datetime) -> None:
        nonlocal calls
        calls += 1
        if calls % 10 == 0:
            raise TemporalUnavailable("Temporal does not answer in time")
        await arm(one, due_at)

    monkeypatch.setattr(timers, "arm", sometimes)
    assert stage.timers is not None
    await gateway.start(Arming(stage.timers, gateway.queue, gateway.bus, stage.clock))
    for _ in range(20):
        await stage.pass_time(2)
        if timers.armed == set(planned):
            break
    assert timers.armed == set(planned)
    assert calls < 2 * len(planned)


@pytest.mark.req("TMP-3")
async def test_a_gateway_that_is_started_anew_arms_what_is_open(stage: Stage, timers: FakeTimers):
    gateway, _ = await gateway_with_arming(stage)
    one = await plan(stage, "one", MINUTE, by=gateway)
    await armed(stage, timers, one)
    await gateway.kill()
    timers.forget()
    await gateway_with_arming(stage)
    await armed(stage, timers, one)


@pytest.mark.req("TMP-3")
async def test_one_whose_plan_a_newer_version_has_written_keeps_no_other_from_its_timer(
    stage: Stage, timers: FakeTimers, monkeypatch: pytest.MonkeyPatch
):
    gateway, service = await gateway_with_arming(stage)
    newer = await plan(stage, "newer", MINUTE, by=gateway)
    await armed(stage, timers, newer)
    timers.forget()
    known = arming.plan_of
    monkeypatch.setattr(arming, "plan_of", lambda head: known(head if head.task_id != newer else _unread(head)))
    older = await plan(stage, "older", MINUTE, by=gateway, chat=7)
    service.arm_all()
    await armed(stage, timers, older)


def _unread(head: Head) -> Head:
    return msgspec.structs.replace(head, policy={"followUp": {"due": "in other words"}})


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU4")
async def test_what_is_long_overdue_is_left_to_the_queue(stage: Stage, timers: FakeTimers):
    gateway = await stage.start_gateway()
    overdue, one = await plan(stage, "overdue", MINUTE, by=gateway), await plan(stage, "one", 60 * MINUTE, by=gateway)
    await stage.pass_time(2 * MINUTE)
    await gateway.start(Arming(timers, gateway.queue, gateway.bus, stage.clock))
    await armed(stage, timers, one)
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["overdue"]
    assert overdue not in timers.rung


@pytest.mark.req("TMP-3")
async def test_what_is_due_at_once_has_no_timer_and_does_not_wait_for_one(stage: Stage, timers: FakeTimers):
    timers.is_away = True
    gateway, _ = await gateway_with_arming(stage)
    await stage.start_worker(echoes)
    await plan(stage, "now", 0, by=gateway)
    assert await stage.said(1) == ["now"]


# --- taking back ---


@pytest.mark.req("TMP-3")
async def test_what_is_moved_or_cancelled_has_its_timer_taken_back(stage: Stage, timers: FakeTimers):
    gateway, _ = await gateway_with_arming(stage)
    moved, cancelled = await plan(stage, "moved", MINUTE, by=gateway), await plan(stage, "cancelled", MINUTE, chat=7)
    await armed(stage, timers, moved, cancelled)
    await move(stage, moved, 2 * MINUTE, gateway)
    await of(stage, gateway).cancel(cancelled, who="olga")
    await armed(stage, timers, planning_id(moved, 1))


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU6")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_RING)
async def test_of_cancelling_and_ringing_one_wins_and_the_caller_is_told_which(
    stage: Stage, left_alone: FakeTimers, step: str, edge: Any
):
    gateway = await stage.start_gateway()
    one = await plan(stage, "perhaps", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ringer = await stage.start_ringer()
    held = ringer.hold_at(step, edge)
    ringing = asyncio.create_task(stage.ringing_in(ringer)(TaskId(one)))
    await held.reached()
    try:
        await of(stage, gateway).cancel(one, who="olga")
        is_cancelled = True
    except StateConflict:
        is_cancelled = False
    held.open()
    await ringing
    decided = STEPS_OF_A_RING.index("ledger.save_result")
    place = STEPS_OF_A_RING.index(step)
    assert is_cancelled == (place < decided or (place == decided and edge == "before"))
    await stage.start_worker(echoes)
    await said(stage, int(not is_cancelled))
    await stage.pass_time(2 * LEFT_SECONDS)
    await over(stage)
    assert stage.texts() == ([] if is_cancelled else ["perhaps"])


# --- crashes, and two who fire ---


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_RING)
@pytest.mark.parametrize("by", ["another ring", "the queue"])
async def test_a_ring_that_dies_is_gone_on_with_by_another_or_by_the_queue(
    stage: Stage, left_alone: FakeTimers, step: str, edge: Any, by: str
):
    gateway = await stage.start_gateway()
    one = await plan(stage, "don't forget", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ringer = await stage.start_ringer()
    ringer.die_at(step, edge)
    dying = asyncio.create_task(stage.ringing_in(ringer)(TaskId(one)))
    await ringer.dead()
    await asyncio.gather(dying, return_exceptions=True)
    if by == "another ring":
        await stage.ringing_in(gateway)(TaskId(one))
        assert await taken(stage, one)
    await stage.start_worker(echoes)
    await stage.pass_time(LEFT_SECONDS)
    assert await said(stage, 1) == ["don't forget"]
    await stage.ended(await fired(stage, one))
    await over(stage)
    assert stage.texts() == ["don't forget"]


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_RING)
async def test_a_ring_that_is_slow_and_a_worker_that_comes_say_it_once(
    stage: Stage, left_alone: FakeTimers, step: str, edge: Any
):
    gateway = await stage.start_gateway()
    one = await plan(stage, "don't forget", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ringer = await stage.start_ringer()
    held = ringer.hold_at(step, edge)
    ringing = asyncio.create_task(stage.ringing_in(ringer)(TaskId(one)))
    await held.reached()
    await stage.start_worker(echoes)
    await stage.pass_time(LEFT_SECONDS)
    assert await said(stage, 1) == ["don't forget"]
    held.open()
    await ringing
    await stage.pass_time(2 * LEFT_SECONDS)
    await over(stage)
    assert stage.texts() == ["don't forget"]


class _Saved:
    """A ledger of which what is saved comes back with something else about it."""

    def __init__(self, ledger: Any, **otherwise: Any) -> None:
        self._ledger = ledger
        self._otherwise = otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def save_result(self, *args: Any, **kwargs: Any) -> Run:
        run = await self._ledger.save_result(*args, **kwargs)
        return msgspec.structs.replace(run, **self._otherwise)


@pytest.mark.req("TMP-3")
@pytest.mark.parametrize(
    "otherwise",
    [{"status": Status.REPLYING}, {"unreadable": "a newer version's", "result": None}],
    ids=["it waits for a ledger that is away", "a newer version has saved it"],
)
async def test_as_long_as_a_result_is_not_in_the_ledger_and_read_the_queue_keeps_what_has_rung(
    stage: Stage, left_alone: FakeTimers, otherwise: dict[str, Any]
):
    gateway = await stage.start_gateway()
    one = await plan(stage, "once", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ringer = await stage.start_ringer()
    ringer.ledger = _Saved(ringer.ledger, **otherwise)
    await stage.ringing_in(ringer)(TaskId(one))
    assert await stage.queue.get(TaskId(one)) is not None
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["once"]
    await stage.pass_time(2 * LEFT_SECONDS)
    await over(stage)
    assert stage.texts() == ["once"]


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU3")
async def test_ringing_again_and_at_the_same_time_says_it_once(stage: Stage, left_alone: FakeTimers):
    gateway = await stage.start_gateway()
    one = await plan(stage, "once", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ring = stage.ringing_in(gateway)
    await asyncio.gather(*(ring(TaskId(one)) for _ in range(5)))
    await ring(TaskId(one))
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["once"]
    await over(stage)
    assert stage.texts() == ["once"]


# --- order, and clocks ---


class _Looks:
    """A queue that keeps what it was asked to list."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.asked: list[Selection] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def list_open(self, selection: Selection, **page: Any) -> list[OpenTask]:
        self.asked.append(selection)
        return await self._queue.list_open(selection, **page)


@pytest.mark.req("TMP-3")
async def test_a_ring_looks_once_at_what_its_chat_has_in_line_and_at_nothing_else(stage: Stage, left_alone: FakeTimers):
    gateway = await stage.start_gateway()
    one = await plan(stage, "once", MINUTE, by=gateway)
    await stage.pass_time(MINUTE)
    ringer = await stage.start_ringer()
    looks = ringer.queue = _Looks(ringer.queue)
    await stage.ringing_in(ringer)(TaskId(one))
    lane = waiting_lane("telegram", stage.account, "42")
    assert looks.asked == [Selection(lane=lane, is_runnable=True)]
    assert await taken(stage, one)


@pytest.mark.req("TMP-3", "QUE-2")
async def test_of_one_chat_the_earlier_is_said_first_whichever_rings_first(stage: Stage, left_alone: FakeTimers):
    gateway = await stage.start_gateway()
    later, sooner = await plan(stage, "later", MINUTE + 1, by=gateway), await plan(stage, "sooner", MINUTE)
    await stage.pass_time(MINUTE + 1)
    await stage.ringing_in(gateway)(TaskId(later))
    assert await taken(stage, sooner)
    await stage.ringing_in(gateway)(TaskId(sooner))
    await stage.start_worker(echoes)
    assert await said(stage, 2) == ["sooner", "later"]
    assert (await stage.queue.depth()).out_of_order == 0


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU5")
async def test_what_rings_too_early_is_not_said_before_its_moment(stage: Stage, left_alone: FakeTimers):
    gateway = await stage.start_gateway()
    one = await plan(stage, "in time", MINUTE, by=gateway)
    await stage.pass_time(MINUTE - 10)
    with pytest.raises(RungEarly) as early:
        await stage.ringing_in(gateway)(TaskId(one))
    assert early.value.seconds == pytest.approx(10, abs=0.1)
    assert not await taken(stage, one)


@pytest.mark.req("TMP-3")
async def test_what_is_no_open_follow_up_rings_in_vain(stage: Stage, left_alone: FakeTimers):
    gateway, _ = await stage.start(echoes)
    [task_id] = await stage.write("Hello")
    ring = stage.ringing_in(gateway)
    await ring(task_id)
    await ring(TaskId("t_nobody"))
    assert await stage.said(1) == ["echo Hello"]


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU4")
async def test_of_a_chats_missed_ones_the_latest_is_said_however_many_ring_at_once(
    stage: Stage, left_alone: FakeTimers
):
    gateway = await stage.start_gateway()
    planned = [await plan(stage, f"{number}", number * MINUTE, missed="coalesce", by=gateway) for number in (1, 2, 3)]
    await stage.pass_time(60 * MINUTE)
    others = [gateway, await stage.start_ringer()]
    await asyncio.gather(*(stage.ringing_in(by)(TaskId(one)) for by in others for one in reversed(planned)))
    statuses = [(await look(stage, one)).status for one in planned]
    assert statuses == [FollowUpStatus.MISSED, FollowUpStatus.MISSED, FollowUpStatus.FIRED]
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["3"]
    await over(stage)
    assert stage.texts() == ["3"]

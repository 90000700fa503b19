"""The queue in memory keeps every promise of the port."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rise.clock import epoch_ms
from rise.envelope import TaskId, words_of
from rise.queue.port import Finished, QueueLimits
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import (
    CLAIM,
    DEATHS_MAX,
    DEATHS_SUSPECT,
    TASKS_PER_CLAIM,
    QueueConformance,
    claim_one,
    delivery,
    enqueue,
)
from rise.testing.conformance.refilling import RefillingConformance
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState

LIMITS = QueueLimits(claim=CLAIM, tasks_per_claim=TASKS_PER_CLAIM, deaths_suspect=DEATHS_SUSPECT, deaths_max=DEATHS_MAX)


class MemoryStage:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.epoch_ms = epoch_ms(self.clock.now())
        self.state = MemoryQueueState(life="the first")
        self.queue = self.open()

    def open(self) -> MemoryQueue:
        return MemoryQueue(self.state, now_ms=self.now_ms, limits=LIMITS)

    def now_ms(self) -> int:
        return self.epoch_ms + int(self.clock.monotonic() * 1000)

    async def another(self) -> MemoryQueue:
        return self.open()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def step_wall_clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)

    async def empty(self) -> None:
        self.state.empty()

    async def lose(self, task_id: TaskId) -> None:
        del self.state.tasks[task_id]

    async def let_debts_lapse(self) -> None:
        self.pass_time(2)

    async def lose_hints(self) -> None:
        # Some lanes gone altogether, some there and silent.
        lanes = self.state.lanes
        self.state.lanes = {key: lane for key, lane in lanes.items() if lane.holder or ord(key[-1]) % 2 == 0}
        for lane in self.state.lanes.values():
            lane.ready_at_ms = None

    async def overwrite_head(self, task_id: TaskId, stored: bytes) -> None:
        self.state.tasks[task_id].stored_head = stored

    async def overwrite_words(self, task_id: TaskId, *, status: str, reason: str) -> None:
        said, known, error = words_of(status, reason, None)
        self.state.tasks[task_id].change(status=said, reason=known, error=error)

    async def leftovers(self) -> dict[str, int]:
        ready = [lane for lane in self.state.lanes.values() if lane.holder or lane.ready_at_ms is not None]
        return {"tasks": len(self.state.tasks), "hints": len(ready)}


@pytest.mark.req("TST-3")
class TestMemoryQueue(QueueConformance):
    @pytest.fixture
    async def stage(self) -> MemoryStage:
        return MemoryStage()


@pytest.mark.req("TST-3")
class TestRefillingMemory(RefillingConformance):
    @pytest.fixture
    async def stage(self) -> MemoryStage:
        stage = MemoryStage()
        stage.state.empty()
        return stage


@pytest.mark.req("TST-3")
async def test_an_idle_lane_is_forgotten_after_a_while():
    stage = MemoryStage()
    await enqueue(stage.queue, 5)
    claim = await claim_one(stage.queue)
    await stage.queue.settle(claim, claim.task, Finished())
    for memory, is_known in ((timedelta(minutes=59), True), (timedelta(minutes=2), False)):
        stage.pass_time(memory.total_seconds())
        await stage.queue.sweep()
        assert bool(stage.state.lanes) is is_known
    assert not (await stage.queue.enqueue(delivery(1))).out_of_order

"""What everything keeps to that keeps the time of follow-ups. Use it by inheriting the class in a test file and giving
it the fixture `timed`: timers of which each rings in `Timed.rings`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rise.clock import SystemClock
from rise.envelope import TaskId, new_key
from rise.errors import RungEarly, StoreUnavailable
from rise.follow_ups.port import Timers

PATIENCE_SECONDS = 150.0
FAR = timedelta(days=31)


class Rings:
    """What has rung, and who waits for it."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.order: list[str] = []
        self.at_once_max = 0
        self.before: Callable[[TaskId], Any] = lambda planning_id: None
        self._at_once = 0
        self._said = asyncio.Event()

    async def __call__(self, planning_id: TaskId) -> None:
        self.before(planning_id)
        self._at_once += 1
        self.at_once_max = max(self.at_once_max, self._at_once)
        await SystemClock().sleep(0)
        self._at_once -= 1
        self.count[planning_id] += 1
        self.order.append(planning_id)
        self._said.set()

    async def until(self, *planning_ids: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not set(planning_ids) <= set(self.count):
                self._said.clear()
                await self._said.wait()


@dataclass
class Timed:
    timers: Timers
    rings: Rings = field(default_factory=Rings)


def now() -> datetime:
    return SystemClock().now().astimezone(UTC)


def soon() -> datetime:
    return now() + timedelta(milliseconds=300)


@pytest.mark.req("TMP-3")
class TimersConformance:
    @pytest.mark.failure("FU1", "FU3")
    async def test_what_is_armed_again_before_it_rings_rings_once(self, timed: Timed) -> None:
        twice, later = TaskId(new_key()), TaskId(new_key())
        due_at = soon()
        await asyncio.gather(*(timed.timers.arm(twice, due_at) for _ in range(5)))
        await timed.rings.until(twice)
        await timed.timers.arm(later, soon())
        await timed.rings.until(later)
        assert timed.rings.count == {twice: 1, later: 1}

    async def test_what_is_due_already_rings_at_once(self, timed: Timed) -> None:
        past = TaskId(new_key())
        await timed.timers.arm(past, now() - FAR)
        await timed.rings.until(past)

    async def test_nothing_rings_before_its_moment(self, timed: Timed) -> None:
        one, rung_at = TaskId(new_key()), list[datetime]()
        timed.rings.before = lambda planning_id: rung_at.append(now())
        due_at = now() + timedelta(seconds=1)
        await timed.timers.arm(one, due_at)
        await timed.rings.until(one)
        assert rung_at[0] >= due_at - timedelta(milliseconds=10)  # two clocks' ticks

    @pytest.mark.failure("FU6")
    async def test_what_is_taken_back_does_not_ring_and_may_be_taken_back_again(self, timed: Timed) -> None:
        never, after = TaskId(new_key()), TaskId(new_key())
        due_at = now() + timedelta(seconds=1)
        await timed.timers.arm(never, due_at)
        for _ in range(2):
            await timed.timers.disarm(never)
        await timed.timers.disarm(TaskId(new_key()))
        await timed.timers.arm(after, due_at + timedelta(milliseconds=500))
        await timed.rings.until(after)
        assert never not in timed.rings.count

    async def test_what_cannot_be_fired_now_rings_again(self, timed: Timed) -> None:
        again, troubles = TaskId(new_key()), [StoreUnavailable("away"), RungEarly(0.2)]

        def fail(planning_id: TaskId) -> None:
            if troubles:
                raise troubles.pop(0)

        timed.rings.before = fail
        await timed.timers.arm(again, soon())
        await timed.rings.until(again)
        assert (timed.rings.count[again], troubles) == (1, [])

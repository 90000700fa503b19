"""Follow-ups that wait in the queue are given to whatever keeps the time, as soon as they are accepted.

Promises: what is open has a timer within a moment of its acceptance; what was accepted while the timers could not be
reached has one when they can again, and what they have lost they are given again then. What ends without having rung is
taken back, where this process knows of it. A timer that is missing all the same costs seconds, never the follow-up.

Refuses: to be what a promise rests on: everything stays in the queue, which fires what has not rung.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.envelope import Head, Status, TaskId, TaskType
from rise.errors import Unavailable
from rise.follow_ups.planning import late_by, plan_of
from rise.follow_ups.port import LEFT_TO_TIMERS, Timers
from rise.queue.port import Queue, Selection
from rise.service import Loop, Signal
from rise.telemetry import follow_ups_armed, log

AT_ONCE: Final = 16
LOOK_AT_ONCE: Final = 500
PAUSE_SECONDS_MAX: Final = 2.0
LOOK_SECONDS: Final = 600.0
"""How often all that is open is gone through, for what nobody has told."""


class Arming:
    """A service of the process that can reach the timers."""

    name = "follow-ups armed"

    def __init__(self, timers: Timers, queue: Queue, bus: Bus, clock: Clock) -> None:
        self._timers = timers
        self._queue = queue
        self._bus = bus
        self._clock = clock
        self._armed: set[TaskId] = set()
        """As far as this process knows. Whoever may have lost them is given all of them again."""
        self._planned: set[TaskId] = set()
        self._ended: set[TaskId] = set()
        self._is_look_due = True
        self._looked_at = clock.monotonic()
        self._more = Signal()
        self._unsubscribe: list[Callable[[], None]] = []
        self._loop = Loop(
            self.name, self._arm, sleep=clock.sleep, on_error=self._failed, pause_seconds_max=PAUSE_SECONDS_MAX
        )

    async def start(self) -> None:
        self._unsubscribe = [
            self._bus.subscribe(Topic.FOLLOW_UP_PLANNED, self._hear_planned),
            self._bus.subscribe(Topic.TASK_SETTLED, self._hear_settled),
        ]
        await self._loop.start()

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        await self._loop.stop()

    def arm_all(self) -> None:
        """Whatever keeps the time is there, or there again, and may have lost what it had."""
        self._armed.clear()
        self._is_look_due = True
        self._more.set()

    def _hear_planned(self, said: Mapping[str, Any]) -> None:
        if isinstance(task_id := said.get("task_id"), str):
            self._planned.add(TaskId(task_id))
            self._more.set()

    def _hear_settled(self, said: Mapping[str, Any]) -> None:
        """What has been fired needs nothing more: its timer has rung, or is about to, in vain."""
        task_id = said.get("task_id")
        if task_id not in self._armed:
            return
        if said.get("status") == Status.COMPLETED:
            self._armed.discard(TaskId(task_id))
            follow_ups_armed.set(len(self._armed))
        else:
            self._ended.add(TaskId(task_id))
            self._more.set()

    async def _arm(self) -> None:
        if self._clock.monotonic() - self._looked_at >= LOOK_SECONDS:
            self.arm_all()
        if self._is_look_due:
            await self._look_through()
        while self._planned or self._ended:
            planned, ended = list(self._planned)[:LOOK_AT_ONCE], list(self._ended)[:LOOK_AT_ONCE]
            await self._take_back(ended)
            await self._arm_those(planned)
            self._ended -= set(ended)
            self._planned -= set(planned)
        await self._more.wait(LOOK_SECONDS)

    async def _look_through(self) -> None:
        """What is armed already stays so: broken off, it is gone on with from where it came to."""
        self._is_look_due, self._looked_at = False, self._clock.monotonic()
        after = ""
        while page := await self._queue.list_open(Selection(), limit=LOOK_AT_ONCE, after=after):
            await self._arm_heads([one.head for one in page if one.status is not Status.SUSPENDED])
            after = page[-1].head.task_id

    async def _arm_those(self, planned: Sequence[TaskId]) -> None:
        if planned:
            found = await self._queue.list_open(Selection(task_ids=tuple(planned)), limit=len(planned))
            await self._arm_heads([one.head for one in found])

    async def _arm_heads(self, heads: Sequence[Head]) -> None:
        waiting = [head for head in heads if self._needs_a_timer(head)]
        for first in range(0, len(waiting), AT_ONCE):
            await asyncio.gather(*(self._arm_one(head) for head in waiting[first : first + AT_ONCE]))
        follow_ups_armed.set(len(self._armed))

    def _needs_a_timer(self, head: Head) -> bool:
        if head.task_type is not TaskType.FOLLOW_UP or head.task_id in self._armed:
            return False
        return late_by(head, self._queue.now_ms()) < LEFT_TO_TIMERS  # else the queue is at it

    async def _arm_one(self, head: Head) -> None:
        try:
            due_at = plan_of(head).due_at
        except (KeyError, msgspec.ValidationError):
            return  # a newer version's: the queue's worker says what becomes of it
        await self._timers.arm(head.task_id, due_at)
        self._armed.add(head.task_id)

    async def _take_back(self, ended: Sequence[TaskId]) -> None:
        for task_id in ended:
            await self._timers.disarm(task_id)
            self._armed.discard(task_id)

    def _failed(self, name: str, error: BaseException) -> None:
        """The loop tries again; if the timers are away, all is gone through when they are back."""
        self._is_look_due = True
        self._planned.clear()
        if isinstance(error, Unavailable):
            log.debug("follow_ups.arming_delayed", error=error)
        else:
            log.error("follow_ups.arming_failed", error=error, exc_info=error, consequence="the queue fires them")

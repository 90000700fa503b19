"""Timers as a dict, on a clock that a test moves: a server of its own, which outlives whoever arms it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from rise.clock import Clock
from rise.envelope import TaskId
from rise.errors import RungEarly, TemporalUnavailable, Unavailable
from rise.service import cancel_all, spawn

Ring = Callable[[TaskId], Awaitable[None]]

AT_ONCE: Final = 32
PAUSE_SECONDS: Final = 1.0


class FakeTimers:
    """`rise.follow_ups.port.Timers`. What is due rings in one of the workers that are there, until one has taken it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._armed: dict[TaskId, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._workers: list[Ring] = []
        self._hired = asyncio.Event()
        self._places = asyncio.Semaphore(AT_ONCE)
        self.is_away = False
        self.rung: list[TaskId] = []

    # --- the port ---

    async def arm(self, planning_id: TaskId, due_at: datetime) -> None:
        self._must_be_there()
        if planning_id not in self._armed:
            self._armed[planning_id] = spawn(self._run(planning_id, due_at), name="timer", into=self._tasks)

    async def disarm(self, planning_id: TaskId) -> None:
        self._must_be_there()
        if (waiting := self._armed.pop(planning_id, None)) is not None:
            waiting.cancel()

    # --- what tests do with it ---

    def work(self, ring: Ring) -> Callable[[], None]:
        """Somebody is there in whom it may ring; returns how he leaves."""
        self._workers.append(ring)
        self._hired.set()

        def leave() -> None:
            if ring in self._workers:
                self._workers.remove(ring)

        return leave

    def forget(self) -> None:
        """Its disk is lost."""
        for waiting in self._armed.values():
            waiting.cancel()
        self._armed.clear()

    @property
    def armed(self) -> set[TaskId]:
        return set(self._armed)

    async def close(self) -> None:
        await cancel_all(self._tasks)

    # --- details ---

    def _must_be_there(self) -> None:
        if self.is_away:
            raise TemporalUnavailable("Temporal cannot be reached")

    async def _run(self, planning_id: TaskId, due_at: datetime) -> None:
        await self._clock.sleep((due_at - self._clock.now()).total_seconds())
        while (pause := await self._try(planning_id)) is not None:
            await self._clock.sleep(pause)
        self.rung.append(planning_id)
        self._armed.pop(planning_id, None)

    async def _try(self, planning_id: TaskId) -> float | None:
        """After how long it is to be tried again; None: it has rung."""
        while not self._workers:
            self._hired.clear()
            await self._hired.wait()
        async with self._places:
            if self.is_away or not self._workers:
                return PAUSE_SECONDS
            try:
                await self._workers[0](planning_id)
            except RungEarly as early:
                return early.seconds
            except Unavailable:
                return PAUSE_SECONDS
        return None

"""Timers beside the simulated machine, as Temporal's: a server that is away at times, loses an answer, rings again what
nobody said was taken, and may lose its disk.

Refuses: to be needed. What it does not ring, the queue fires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from rise.clock import Clock
from rise.envelope import TaskId
from rise.errors import RiseError, TemporalUnavailable
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import World

ANSWER_SECONDS: Final = (0.001, 0.2)
RINGS_AGAIN_SECONDS: Final = 2.0
AWAY_SECONDS: Final = (1.0, 12.0)
AWAY_TIMES_MAX: Final = 3
BUSY_SECONDS: Final = 40.0
FORGETS: Final = 0.5
"""How likely it loses its disk once."""
LOSES_ANSWER: Final = 0.1

Ring = Callable[[TaskId], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Timer:
    planning_id: TaskId


@dataclass(frozen=True, slots=True)
class _Worker:
    ring: Ring
    on_back: Callable[[], None]


class SimTimers:
    """One for the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = dice = world.dice_for("timers")
        self._armed: dict[TaskId, _Timer] = {}
        self._workers: dict[Process, _Worker] = {}
        self._away: list[tuple[float, float]] = []
        self.rung = 0
        for _ in range(dice.randint(0, AWAY_TIMES_MAX)):
            begins = dice.uniform(0.0, BUSY_SECONDS)
            self._away.append((begins, begins + dice.uniform(*AWAY_SECONDS)))
            world.timeline.at(self._away[-1][1], self._back)
        if dice.random() < FORGETS:
            world.timeline.at(dice.uniform(0.0, BUSY_SECONDS), self._forget)

    # --- those in whom it rings ---

    def work(self, process: Process, ring: Ring, *, on_back: Callable[[], None]) -> None:
        self._workers[process] = _Worker(ring, on_back)

    def leave(self, process: Process) -> None:
        self._workers.pop(process, None)

    # --- what processes ask ---

    async def arm(self, planning_id: TaskId, seconds: float) -> None:
        await self._answered()
        if planning_id not in self._armed:
            timer = self._armed[planning_id] = _Timer(planning_id)
            self._world.timeline.after(max(0.0, seconds), partial(self._ring, timer))
        self._lose_answer()

    async def disarm(self, planning_id: TaskId) -> None:
        await self._answered()
        self._armed.pop(planning_id, None)
        self._lose_answer()

    async def _answered(self) -> None:
        await asyncio.sleep(self._dice.uniform(*ANSWER_SECONDS))  # noqa: TID251 - virtual
        if self._is_away():
            raise TemporalUnavailable("Temporal cannot be reached")

    def _lose_answer(self) -> None:
        if self._dice.random() < LOSES_ANSWER:
            raise TemporalUnavailable("Temporal does not answer in time")

    # --- what it does by itself ---

    def _is_away(self) -> bool:
        return any(begins <= self._world.now < ends for begins, ends in self._away)

    def _ring(self, timer: _Timer) -> None:
        """Until somebody has said that it was taken."""
        if self._armed.get(timer.planning_id) is not timer:
            return
        self._world.timeline.after(RINGS_AGAIN_SECONDS, partial(self._ring, timer))
        there = [process for process in self._workers if process.is_alive]
        if there and not self._is_away():
            process = self._dice.choice(there)
            process.spawn(self._rung(timer, self._workers[process]), name="ring")

    async def _rung(self, timer: _Timer, worker: _Worker) -> None:
        try:
            await worker.ring(timer.planning_id)
        except RiseError:
            return  # it rings again
        self.rung += 1
        if self._dice.random() >= LOSES_ANSWER and self._armed.get(timer.planning_id) is timer:
            del self._armed[timer.planning_id]

    def _forget(self) -> None:
        self._world.note("timers", "lose their disk", str(len(self._armed)))
        self._armed.clear()
        self._back()

    def _back(self) -> None:
        for process, worker in self._workers.items():
            if process.is_alive:
                process.call_from_outside(worker.on_back)


class ReachedTimers:
    """`rise.follow_ups.port.Timers`, as one process reaches them."""

    def __init__(self, timers: SimTimers, clock: Clock) -> None:
        self._timers = timers
        self._clock = clock

    async def arm(self, planning_id: TaskId, due_at: datetime) -> None:
        await self._timers.arm(planning_id, (due_at - self._clock.now()).total_seconds())

    async def disarm(self, planning_id: TaskId) -> None:
        await self._timers.disarm(planning_id)


class RungHere:
    """A service: as long as it runs, timers ring in its process."""

    name = "timers ring here"

    def __init__(self, timers: SimTimers, process: Process, ring: Ring, *, on_back: Callable[[], None]) -> None:
        self._timers = timers
        self._process = process
        self._ring = ring
        self._on_back = on_back

    async def start(self) -> None:
        self._timers.work(self._process, self._ring, on_back=self._on_back)
        self._on_back()

    async def stop(self) -> None:
        self._timers.leave(self._process)

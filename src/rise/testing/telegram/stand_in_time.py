"""The stand-in's own time: as fast as wanted, and able to jump.

Promises: all seconds of the rules, of faults and of records are these; `scale` of them pass in one real
second. Whoever sleeps or waits wakes when time jumps.
"""

from __future__ import annotations

import asyncio
from typing import Any

from rise.clock import Clock
from rise.service import cancel_all, spawn


class Changes:
    """Wakes all who wait whenever anything changed."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def waiter(self) -> asyncio.Future[None]:
        """Done at the next change. No change between this call and the await is missed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)
        return waiter


class StandInTime:
    def __init__(self, clock: Clock, *, scale: float = 1.0) -> None:
        self._clock = clock
        self._scale = scale
        self._began_at = clock.now().timestamp()
        self._began_monotonic = clock.monotonic()
        self._jumps = Changes()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._began_at + (self._clock.monotonic() - self._began_monotonic) * self._scale

    def jump(self, seconds: float) -> None:
        """Let so many seconds pass at once."""
        self._began_at += seconds
        self._jumps.notify()

    async def sleep(self, seconds: float) -> None:
        ends_at = self.now() + seconds
        while (now := self.now()) < ends_at:
            await self._first_of(ends_at - now, self._jumps.waiter())

    async def wait(self, changes: Changes, *, until: float | None) -> None:
        """Return at the next change, at the given time, or when time jumps."""
        waiters = (changes.waiter(), self._jumps.waiter())
        await self._first_of(None if until is None else until - self.now(), *waiters)

    async def _first_of(self, seconds: float | None, *waiters: asyncio.Future[None]) -> None:
        timers: set[asyncio.Task[Any]] = set()
        if seconds is not None:
            real_seconds = max(0.0, seconds) / self._scale
            spawn(self._clock.sleep(real_seconds), name="telegram stand-in timer", into=timers)
        try:
            await asyncio.wait({*waiters, *timers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await cancel_all(timers)

"""A clock that moves when it is told to."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random  # noqa: TID251 - this is a clock
from datetime import UTC, datetime, timedelta

PATIENCE_SECONDS = 10
START = datetime(2025, 11, 8, 7, 30, tzinfo=UTC)


class ManualClock:
    """`rise.clock.Clock` for tests. Time stands still until `advance`; the same seed, the same dice.

    Reading it from other threads is fine, moving it is for the event loop's.
    """

    def __init__(self, start: datetime = START, *, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self._wall = start
        self._monotonic = 1000.0
        self._boots = 1
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._arrivals: set[asyncio.Future[None]] = set()

    @property
    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Until the clock has been advanced that far. Nothing and less only lets others run."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251 - not a sleep, a turn
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._numbers), woken))
        for arrival in self._arrivals:
            if not arrival.done():
                arrival.set_result(None)
        await woken

    # --- what tests do with it ---

    def advance(self, seconds: float) -> None:
        """Time passes, and whoever slept until then wakes, the earliest first."""
        assert seconds >= 0, "time does not go back; step_wall() moves the wall clock alone"
        self._monotonic += seconds
        self._wall += timedelta(seconds=seconds)
        self._wake()

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward or back. Nothing else notices."""
        self._wall += timedelta(seconds=seconds)

    def reboot(self, *, seconds: float = 60.0) -> None:
        """The host was down for a while: the wall clock went on, the boot clock starts anew."""
        self._wall += timedelta(seconds=seconds)
        self._monotonic = seconds
        self._boots += 1
        # What slept died with the host.
        for _, _, woken in self._sleepers:
            woken.cancel()
        self._sleepers.clear()

    @property
    def sleepers(self) -> int:
        """How many sleep now."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    @property
    def next_wake_seconds(self) -> float | None:
        """How far to advance until somebody wakes; None if nobody sleeps."""
        wakes = [due for due, _, woken in self._sleepers if not woken.done()]
        return min(wakes) - self._monotonic if wakes else None

    async def until_sleeping(self, count: int = 1) -> None:
        """Wait for the signal that so many have gone to sleep; then it is time to `advance`.

        Raises `TimeoutError` if they do not: whoever should sleep has ended, or waits for something else.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.sleepers < count:
                arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._arrivals.add(arrival)
                try:
                    await arrival
                finally:
                    self._arrivals.discard(arrival)

    def _wake(self) -> None:
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

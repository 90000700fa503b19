"""The pulse of this process: how much it accepts and answers, how much is open, how long the oldest has waited.

Kept in memory for a few minutes, for whoever shows it. What passes by is counted as it passes, which costs nothing;
what is open has to be counted in the store, and that costs a walk over all of it. So somebody has to look, and the
longer a count takes the more seldom one is taken: at most a twentieth of the time goes into it.

Refuses: to show what was counted without saying when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.envelope import Outcome, Status
from rise.errors import Unavailable
from rise.queue.port import Queue, QueueDepth
from rise.service import Loop, Signal, sparingly
from rise.telemetry import accepted_total, log

BEAT_SECONDS: Final = 2.0
BEATS_KEPT: Final = 150
"""Five minutes."""
COUNT_SHARE_MAX: Final = 0.05
"""Of the time, for counting while somebody looks."""


class Counted(msgspec.Struct, frozen=True):
    """What was open, and when that was so."""

    at: datetime
    depth: QueueDepth

    @property
    def suspended(self) -> int:
        return self.depth.by_status.get(Status.SUSPENDED, 0)

    @property
    def moving(self) -> int:
        """What somebody or something should be moving: not what waits for a person, nor what is planned for later."""
        return sum(self.depth.by_status.values()) - self.suspended - self.depth.planned

    @property
    def oldest_seconds(self) -> float:
        return (self.depth.oldest_waiting_ms or 0) / 1000


class Beat(msgspec.Struct, frozen=True, rename="camel"):
    """One moment. Rates are per second since the one before."""

    at: datetime
    accepted: float
    answered: float
    open: int | None = None
    """None: not counted yet."""
    oldest_seconds: float | None = None


class Pulse:
    """What is known of it in this process."""

    def __init__(self) -> None:
        self.beats: deque[Beat] = deque(maxlen=BEATS_KEPT)
        self.counted: Counted | None = None
        self.number = 0
        """Of the last beat."""
        self._watchers: set[Signal] = set()

    @property
    def is_watched(self) -> bool:
        return bool(self._watchers)

    @contextmanager
    def watching(self) -> Iterator[Signal]:
        """Set with every beat, for as long as somebody looks."""
        beaten = Signal()
        self._watchers.add(beaten)
        try:
            yield beaten
        finally:
            self._watchers.discard(beaten)

    def after(self, number: int) -> list[Beat]:
        """The beats after that one, as far as they are remembered. By number: the wall clock may be set back."""
        count = min(self.number - number, len(self.beats))
        return list(self.beats)[len(self.beats) - count :]

    def wake(self) -> None:
        """Whoever watches looks up: there is something else to see."""
        for watcher in self._watchers:
            watcher.set()

    def note(self, depth: QueueDepth, at: datetime) -> None:
        """Somebody has counted, for whatever reason."""
        self.counted = Counted(at, depth)

    def beat(self, at: datetime, *, accepted: float, answered: float) -> None:
        counted = self.counted
        opened, oldest = (None, None) if counted is None else (counted.moving, counted.oldest_seconds)
        self.beats.append(Beat(at, accepted, answered, opened, oldest))
        self.number += 1
        self.wake()


class PulseTaker:
    """Takes it, every two seconds. One per process that shows it."""

    name = "pulse"

    def __init__(
        self, pulse: Pulse, queue: Queue, bus: Bus, clock: Clock, *, accepted: Callable[[], float] | None = None
    ) -> None:
        """`accepted`: how many messages this process has accepted since it started."""
        self._pulse = pulse
        self._queue = queue
        self._bus = bus
        self._clock = clock
        self._accepted = accepted or _accepted
        self._accepted_before = self._accepted()
        self._answered = 0
        self._beaten_at = clock.monotonic()
        self._count_at = self._beaten_at
        self._loop = Loop("pulse", self._beat_later, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        self._unsubscribe = self._bus.subscribe(Topic.TASK_SETTLED, self._hear)
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        self._unsubscribe()

    async def beat(self) -> None:
        now, accepted = self._clock.monotonic(), self._accepted()
        seconds = max(now - self._beaten_at, 0.001)
        if self._pulse.is_watched and now >= self._count_at:
            await self._count()
        self._pulse.beat(
            self._clock.now(),
            accepted=(accepted - self._accepted_before) / seconds,
            answered=self._answered / seconds,
        )
        self._beaten_at, self._accepted_before, self._answered = now, accepted, 0

    async def _beat_later(self) -> None:
        await self._clock.sleep(BEAT_SECONDS)
        await self.beat()

    async def _count(self) -> None:
        began_at = self._clock.monotonic()
        try:
            self._pulse.note(await self._queue.depth(), self._clock.now())
        except Unavailable:
            pass  # what was known stays, with the time at which it was so; the capabilities say why
        now = self._clock.monotonic()
        self._count_at = now + (now - began_at) * (1 / COUNT_SHARE_MAX - 1)

    def _hear(self, settled: Mapping[str, Any]) -> None:
        if settled.get("outcome") == Outcome.ANSWERED:
            self._answered += 1


def _accepted() -> float:
    samples = (sample for metric in accepted_total.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def _report(name: str, error: BaseException) -> None:
    log.warning("pulse.failed", error=error, consequence="the console shows older figures, with their time")

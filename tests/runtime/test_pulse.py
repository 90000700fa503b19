"""How much passes by is known at once; what is open is counted while somebody looks, and not too often."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.envelope import Outcome, Status
from rise.errors import StoreUnavailable
from rise.queue.port import QueueDepth
from rise.runtime.pulse import BEATS_KEPT, Pulse, PulseTaker
from rise.testing.clock import ManualClock

DEPTH = QueueDepth(
    by_status={"pending": 7, "processing": 2, "suspended": 4}, planned=1, waiting_ms_by_channel={"http": 2500}
)


class CountedQueue:
    """Takes its time for counting."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.counts = 0
        self.seconds = 0.0
        self.is_away = False

    async def depth(self) -> QueueDepth:
        self.counts += 1
        self._clock.advance(self.seconds)
        if self.is_away:
            raise StoreUnavailable("away")
        return DEPTH


class Stage:
    def __init__(self, clock: ManualClock, bus: LocalBus) -> None:
        self.clock = clock
        self.bus = bus
        self.queue = CountedQueue(clock)
        self.pulse = Pulse()
        self.accepted = 0
        self.taker = PulseTaker(self.pulse, self.queue, bus, clock, accepted=lambda: self.accepted)  # type: ignore[arg-type]

    async def beat(self, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        await self.taker.beat()


@pytest.fixture
async def stage(tmp_path) -> AsyncIterator[Stage]:
    clock = ManualClock()
    bus = LocalBus(tmp_path, clock)
    await bus.start()
    stage = Stage(clock, bus)
    await stage.taker.start()
    yield stage
    await stage.taker.stop()
    await bus.stop()


@pytest.mark.req("OPS-3")
async def test_rates_are_those_since_the_beat_before(stage: Stage) -> None:
    stage.accepted = 6
    await stage.beat()
    await stage.beat()
    assert [beat.accepted for beat in stage.pulse.beats] == [3.0, 0.0]


@pytest.mark.req("OPS-3")
async def test_what_was_answered_is_heard_of(stage: Stage) -> None:
    for outcome in (Outcome.ANSWERED, Outcome.SILENT, Outcome.ANSWERED, None):
        stage.bus.publish(Topic.TASK_SETTLED, {"task_id": "t_1", "status": Status.COMPLETED, "outcome": outcome})
    await stage.beat()
    assert stage.pulse.beats[-1].answered == 1.0


@pytest.mark.req("OPS-3")
async def test_nothing_is_counted_while_nobody_looks(stage: Stage) -> None:
    await stage.beat()
    assert (stage.queue.counts, stage.pulse.beats[-1].open) == (0, None)
    stage.pulse.note(DEPTH, stage.clock.now())  # the supervisor has counted
    await stage.beat()
    beat = stage.pulse.beats[-1]
    assert (stage.queue.counts, beat.open, beat.oldest_seconds) == (0, 8, 2.5)


@pytest.mark.req("OPS-3")
async def test_a_slow_count_is_taken_seldom(stage: Stage) -> None:
    stage.queue.seconds = 3.0
    with stage.pulse.watching():
        for _ in range(30):
            await stage.beat()
    assert 1 < stage.queue.counts <= 3, "of 60 s at most a twentieth"


@pytest.mark.req("OPS-3")
async def test_whoever_watches_hears_of_every_beat_and_counts_go_on_after_an_outage(stage: Stage) -> None:
    with stage.pulse.watching() as beaten:
        stage.queue.is_away = True
        await stage.beat()
        assert await beaten.wait(1)
        assert stage.pulse.counted is None
        stage.queue.is_away = False
        await stage.beat()
        assert stage.pulse.counted is not None
        assert stage.pulse.counted.depth == DEPTH
    assert not stage.pulse.is_watched


async def test_it_remembers_minutes_not_days(stage: Stage) -> None:
    for _ in range(BEATS_KEPT + 10):
        await stage.beat()
    assert len(stage.pulse.beats) == BEATS_KEPT
    assert len(stage.pulse.after(0)) == BEATS_KEPT
    assert stage.pulse.after(BEATS_KEPT + 8) == list(stage.pulse.beats)[-2:]
    assert stage.pulse.after(stage.pulse.number) == []

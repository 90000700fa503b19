"""How parts start, run and stop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import structlog

from rise.errors import MongoUnavailable, RedisUnavailable
from rise.service import Loop, Signal, cancel_all, sparingly, spawn, start_all, stop_all
from rise.testing.clock import ManualClock


class Part:
    def __init__(self, name: str, log: list[str], *, fails_to: str = "") -> None:
        self.name = name
        self._log = log
        self._fails_to = fails_to

    async def start(self) -> None:
        if self._fails_to == "start":
            raise OSError(self.name)
        self._log.append(f"+{self.name}")

    async def stop(self) -> None:
        self._log.append(f"-{self.name}")
        if self._fails_to == "stop":
            raise OSError(self.name)


async def test_parts_start_in_order_and_stop_in_reverse():
    log: list[str] = []
    parts = [Part(name, log) for name in "abc"]
    await start_all(parts, on_error=lambda name, error: None)
    await stop_all(parts, on_error=lambda name, error: None)
    assert log == ["+a", "+b", "+c", "-c", "-b", "-a"]


@pytest.mark.failure("L11", "L13")
async def test_a_part_that_fails_to_start_stops_those_before_it():
    log: list[str] = []
    with pytest.raises(OSError, match="c"):
        await start_all(
            [Part("a", log), Part("b", log), Part("c", log, fails_to="start"), Part("d", log)],
            on_error=lambda name, error: None,
        )
    assert log == ["+a", "+b", "-b", "-a"]


async def test_a_part_that_fails_to_stop_keeps_no_other_from_it():
    log: list[str] = []
    heard: list[str] = []
    parts = [Part("a", log), Part("b", log, fails_to="stop"), Part("c", log)]
    await stop_all(parts, on_error=lambda name, error: heard.append(f"{name}: {type(error).__name__}"))
    assert log == ["-c", "-b", "-a"]
    assert heard == ["b: OSError"]


async def test_whoever_is_cancelled_while_it_stops_parts_stops_the_others_all_the_same():
    log: list[str] = []
    reached, never = asyncio.Event(), asyncio.Event()

    class Stuck(Part):
        async def stop(self) -> None:
            reached.set()
            await never.wait()

    stopping = asyncio.create_task(
        stop_all([Part("a", log), Part("b", log), Stuck("c", log)], on_error=lambda name, error: None)
    )
    await reached.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert log == ["-b", "-a"]


async def test_what_serves_all_logs_in_nobodys_name():
    seen: list[dict[str, object]] = []
    tasks: set[asyncio.Task[None]] = set()

    async def look() -> None:
        seen.append(structlog.contextvars.get_contextvars())

    with structlog.contextvars.bound_contextvars(trace_id="of the first"):
        await spawn(look(), name="of the caller", into=tasks)
        await spawn(look(), name="of all", into=tasks, for_all=True)
    assert seen == [{"trace_id": "of the first"}, {}]


# --- loops ------------------------------------------------------------------------------------------------


class Body:
    """Does what it is told at each call, and can be waited for."""

    def __init__(self, *script: BaseException | None) -> None:
        self._script = list(script)
        self.calls = 0
        self._called = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        self._called.set()
        step = self._script.pop(0) if self._script else asyncio.CancelledError("the script is over")
        if isinstance(step, asyncio.CancelledError) and not self._script:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        if step is not None:
            raise step

    async def until(self, calls: int) -> None:
        while self.calls < calls:
            self._called.clear()
            await asyncio.wait_for(self._called.wait(), 10)


@contextlib.asynccontextmanager
async def running(body: Body, clock: ManualClock, heard: list[BaseException]):
    loop = Loop("test", body, sleep=clock.sleep, on_error=lambda name, error: heard.append(error))
    await loop.start()
    try:
        yield loop
    finally:
        await loop.stop()
        await loop.stop()


async def test_a_loop_calls_its_body_again_and_again():
    body = Body(None, None, None)
    async with running(body, ManualClock(), []):
        await body.until(4)


@pytest.mark.failure("I15", "L7")
async def test_a_loop_survives_its_errors_and_tells_of_them():
    clock, heard = ManualClock(), []
    body = Body(ValueError("one"), ValueError("two"), None, ValueError("three"))
    async with running(body, clock, heard):
        for pause in (0.2, 0.4, 0.2):  # doubling, and from the beginning after a success
            await clock.until_sleeping()
            assert clock.next_wake_seconds == pytest.approx(pause)
            clock.advance(pause)
        await body.until(5)
    assert [str(error) for error in heard] == ["one", "two", "three"]


async def test_the_pause_of_a_loop_is_bounded():
    clock = ManualClock()
    async with running(Body(*[ValueError("again")] * 20), clock, []):
        for _ in range(15):
            await clock.until_sleeping()
            pause = clock.next_wake_seconds
            clock.advance(pause)
        assert pause == 10.0


@pytest.mark.failure("I15", "L7")
async def test_a_cancellation_that_comes_from_within_does_not_end_a_loop_in_silence():
    """Awaiting something that another part cancelled raises CancelledError where nobody meant to stop."""
    clock, heard = ManualClock(), []
    async with running(Body(asyncio.CancelledError("not for me"), None, None), clock, heard) as loop:
        await clock.until_sleeping()
        assert len(heard) == 1
        clock.advance(1)
        assert loop._tasks


async def test_stopping_ends_a_loop_wherever_it_is():
    for body, clock in ((Body(), ManualClock()), (Body(ValueError("x")), ManualClock())):
        async with running(body, clock, []) as loop:
            await body.until(1)
        assert not loop._tasks


# --- tasks and signals ------------------------------------------------------------------------------------


@pytest.mark.failure("L7")
async def test_a_spawned_task_is_held_until_it_ends():
    held: set[asyncio.Task[None]] = set()
    signal = asyncio.Event()
    task = spawn(signal.wait(), name="held", into=held)
    assert held == {task}
    signal.set()
    await task
    await asyncio.sleep(0)
    assert held == set()


async def test_cancelling_waits_until_all_have_ended():
    ended = []

    async def stubborn(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)
            raise ValueError("on the way out")

    held: set[asyncio.Task[None]] = set()
    for number in range(3):
        spawn(stubborn(number), name=str(number), into=held)
    await asyncio.sleep(0)
    await cancel_all(held)
    assert sorted(ended) == [0, 1, 2]


async def test_a_signal_set_while_nobody_waits_is_not_lost():
    signal = Signal()
    signal.set()
    signal.set()
    assert await signal.wait(0.0) or await signal.wait(1.0)
    assert not await signal.wait(0.001)


async def test_a_signal_wakes_everybody_who_waits():
    signal = Signal()
    waiting = asyncio.gather(*(signal.wait(10) for _ in range(3)))
    await asyncio.sleep(0)
    signal.set()
    assert await waiting == [True, True, True]


# --- the clock of tests -----------------------------------------------------------------------------------


async def test_time_stands_still_until_it_is_advanced():
    clock, woken = ManualClock(), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.ensure_future(sleeper(seconds)) for seconds in (3, 1, 2)]
    await clock.until_sleeping(3)
    began = clock.now()
    clock.advance(2)
    await asyncio.gather(*tasks[1:])
    assert woken == [1, 2]
    assert (clock.now() - began).total_seconds() == 2
    assert clock.sleepers == 1
    clock.step_wall(-3600)
    assert clock.sleepers == 1
    clock.advance(1)
    await tasks[0]


async def test_a_reboot_ends_every_sleep_and_starts_the_boot_clock_anew():
    clock = ManualClock()
    before = clock.boot_id, clock.now(), clock.monotonic()
    sleeping = asyncio.ensure_future(clock.sleep(10))
    await clock.until_sleeping()
    clock.reboot(seconds=30)
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert clock.boot_id != before[0]
    assert (clock.now() - before[1]).total_seconds() == 30
    assert clock.monotonic() < before[2]


def test_the_same_seed_throws_the_same_dice():
    assert ManualClock(seed=7).random.random() == ManualClock(seed=7).random.random()


@pytest.mark.req("OPS-4")
@pytest.mark.failure("I15")
def test_what_is_away_for_hours_is_said_at_once_and_then_once_a_minute():
    clock, said = ManualClock(), []
    report = sparingly(lambda name, error: said.append((name, str(error))), clock)

    def goes_on(*, seconds: int) -> None:
        for _ in range(seconds):
            report("looking", RedisUnavailable("away"))
            clock.advance(1)

    goes_on(seconds=150)
    assert said == [("looking", "away")] * 3
    report("sending", RedisUnavailable("away"))
    report("looking", MongoUnavailable("away, too"))
    assert said[3:] == [("sending", "away"), ("looking", "away, too")], "another trouble is said at once"


def test_what_nobody_foresaw_is_said_each_time():
    said: list[str] = []
    report = sparingly(lambda name, error: said.append(str(error)), ManualClock())
    for _ in range(3):
        report("looking", ValueError("a bug"))
    assert said == ["a bug"] * 3

"""Virtual time, simulated processes, and that a run can be repeated."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rise.testing.clock import START
from rise.testing.simulator.host import Host, SimClock
from rise.testing.simulator.loop import Process, Timeline, TimeStandsStill

pytestmark = pytest.mark.req("TST-2")

LONG = 1e6


@pytest.fixture
def timeline() -> Iterator[Timeline]:
    with closing(Timeline(limit=1000)) as timeline:
        yield timeline


@pytest.fixture
def host(timeline: Timeline) -> Host:
    return Host(timeline)


@pytest.fixture
def process(timeline: Timeline, host: Host) -> Process:
    return Process(timeline, host, "a")


def finished(process: Process, work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it, once nothing is left to happen."""
    task = process.spawn(work, "main")
    process.timeline.run(process.timeline.now + LONG)
    return task.result()


# --- the timeline ---


def test_things_happen_in_the_order_of_their_time_and_then_of_their_planning(timeline: Timeline) -> None:
    seen: list[tuple[float, str]] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((timeline.now, name))

    timeline.at(2.0, note("second"))
    timeline.at(1.0, note("first"))
    timeline.after(2.0, note("second, planned later"))
    timeline.after(3.0, note("cancelled")).cancel()
    timeline.at(5.0, note("later"))
    timeline.run(until=4.0)
    assert seen == [(1.0, "first"), (2.0, "second"), (2.0, "second, planned later")]
    assert timeline.now == 4.0
    assert timeline.steps == 3


def test_what_is_planned_for_the_past_happens_now(timeline: Timeline) -> None:
    timeline.run(until=10.0)
    timeline.at(3.0, lambda: None)
    assert timeline.run_while(lambda: timeline.steps < 1)
    assert timeline.now == 10.0


def test_run_while_stops_between_steps_and_says_when_nothing_is_left(timeline: Timeline) -> None:
    for second in range(5):
        timeline.at(second, lambda: None)
    assert timeline.run_while(lambda: timeline.steps < 3)
    assert timeline.now == 2.0
    assert not timeline.run_while(lambda: True)


def test_on_step_is_called_after_each_step_and_what_it_raises_comes_out(timeline: Timeline, process: Process) -> None:
    seen: list[Process | None] = []
    timeline.on_step = lambda: seen.append(timeline.current)
    timeline.at(1.0, lambda: None)
    process.call_from_outside(lambda: None)
    timeline.run(until=2.0)
    assert seen == [process, None]

    def broken() -> None:
        raise ArithmeticError("an invariant")

    timeline.on_step = broken
    timeline.at(3.0, lambda: None)
    with pytest.raises(ArithmeticError, match="an invariant"):
        timeline.run(until=4.0)


def test_a_loop_that_is_busy_waiting_is_found(timeline: Timeline, process: Process) -> None:
    async def busy() -> None:
        while True:
            await asyncio.sleep(0)

    process.spawn(busy(), "the busy one")
    with pytest.raises(TimeStandsStill, match=r"1000 steps at 0.0 s and time has not moved; .*the busy one"):
        timeline.run(until=1.0)


def test_a_timeline_does_not_run_in_its_own_steps(timeline: Timeline, process: Process) -> None:
    process.call_from_outside(lambda: timeline.run(until=1.0))
    timeline.run(until=1.0)
    [error] = process.errors
    assert isinstance(error, RuntimeError)


# --- asyncio in it ---


def test_timers_fire_in_order_and_waiting_takes_no_time(process: Process) -> None:
    async def main() -> list[tuple[float, str]]:
        loop, seen = asyncio.get_running_loop(), list[tuple[float, str]]()
        loop.call_later(2, lambda: seen.append((loop.time(), "b")))
        loop.call_at(1, lambda: seen.append((loop.time(), "a")))
        loop.call_later(2, lambda: seen.append((loop.time(), "c")))
        loop.call_later(1.5, seen.clear).cancel()
        await asyncio.sleep(86400)
        return seen

    assert finished(process, main()) == [(1, "a"), (2, "b"), (2, "c")]


def test_time_limits_end_what_they_limit(process: Process) -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.Event().wait()
        first = loop.time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 4)
        assert await asyncio.wait_for(asyncio.sleep(1, "in time"), 2) == "in time"
        return first, loop.time()

    assert finished(process, main()) == (3, 8)


def test_gather_shield_wait_and_cancel_do_what_they_do(process: Process) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.gather(asyncio.sleep(2, "a"), asyncio.sleep(1, "b")) == ["a", "b"]
        kept = loop.create_task(asyncio.sleep(5, "kept"))
        shielding = asyncio.ensure_future(asyncio.shield(kept))
        await asyncio.sleep(1)
        shielding.cancel()
        done, pending = await asyncio.wait({shielding, kept}, return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({shielding}, {kept})
        assert await kept == "kept"
        assert loop.time() == 7

    finished(process, main())


def test_events_queues_semaphores_and_task_groups_work(process: Process) -> None:
    async def main() -> list[int]:
        queue, opened, places = asyncio.Queue[int](maxsize=1), asyncio.Event(), asyncio.Semaphore(2)

        async def put(number: int) -> None:
            await opened.wait()
            async with places:
                await queue.put(number)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(put(number))
            asyncio.get_running_loop().call_later(1, opened.set)
            return sorted([await queue.get() for _ in range(5)])

    assert finished(process, main()) == [0, 1, 2, 3, 4]


def test_a_failing_task_group_cancels_the_others(process: Process) -> None:
    async def fail() -> None:
        raise ArithmeticError

    async def main() -> float:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(100))
                group.create_task(fail())
        return asyncio.get_running_loop().time()

    assert finished(process, main()) == 0


def test_a_thread_is_a_step_of_its_own_without_a_loop(process: Process) -> None:
    def blocking(number: int) -> int:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return 10 // number

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, blocking, 2) == 5
        assert await asyncio.to_thread(blocking, 5) == 2
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(blocking, 0)
        return loop.time()

    assert 0 < finished(process, main()) < 0.01


def test_another_threads_call_is_a_step(process: Process) -> None:
    async def main() -> str:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        await asyncio.to_thread(loop.call_soon_threadsafe, told.set)
        await told.wait()
        return "told"

    assert finished(process, main()) == "told"


def test_a_generator_dropped_half_read_is_closed_in_its_process(process: Process) -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            closed.append(asyncio.get_running_loop())

    async def main() -> None:
        async for _ in numbers():
            break

    finished(process, main())
    assert closed == [process.loop]


def test_what_it_cannot_do_it_says(process: Process) -> None:
    with pytest.raises(NotImplementedError):
        finished(process, asyncio.open_connection("localhost", 80))


# --- exceptions ---


def test_what_nobody_catches_is_recorded_where_it_happened(
    timeline: Timeline, host: Host, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def main() -> None:
        asyncio.get_running_loop().create_task(fail(failures[0]))
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)
        await fail(failures[1])

    failures = [ArithmeticError("of a task nobody waits for"), LookupError("of the main task")]
    other = Process(timeline, host, "b")
    process.spawn(main(), "main")
    timeline.run(until=2)
    timeline.close()
    assert {type(error) for error in process.errors} == {ArithmeticError, ZeroDivisionError, LookupError}
    assert other.errors == []
    assert capsys.readouterr() == ("", "")


# --- death ---


async def wait_and_note(seen: list[str], waiting: Callable[[], Coroutine[Any, Any, object]]) -> None:
    try:
        await waiting()
        seen.append("went on")
    except BaseException:
        seen.append("except")
        raise
    finally:
        seen.append("finally")


@pytest.mark.parametrize("way", ["sleep", "event", "thread", "task", "yield"])
def test_a_killed_process_runs_nothing_more(timeline: Timeline, process: Process, way: str) -> None:
    ways: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "sleep": lambda: asyncio.sleep(1),
        "event": lambda: asyncio.Event().wait(),
        "thread": lambda: asyncio.to_thread(seen.append, "thread"),
        "task": lambda: wait_and_note(seen, ways["sleep"]),
        "yield": lambda: asyncio.sleep(0),
    }
    seen: list[str] = []
    task = process.spawn(wait_and_note(seen, ways[way]), "main")
    task.add_done_callback(lambda task: seen.append("callback"))
    process.loop.call_later(0.5, seen.append, "timer")
    assert timeline.run_while(lambda: timeline.steps < 1)
    process.kill()
    assert not process.is_alive
    timeline.run(until=LONG)
    timeline.close()
    assert seen == []
    assert not task.done()


def test_killed_in_its_own_step_it_ends_with_the_step(timeline: Timeline, process: Process) -> None:
    seen: list[str] = []

    async def main() -> None:
        process.kill()
        seen.append("the rest of the step")
        asyncio.get_running_loop().call_soon(seen.append, "callback")
        asyncio.get_running_loop().create_task(wait_and_note(seen, lambda: asyncio.sleep(0)))
        await wait_and_note(seen, lambda: asyncio.sleep(0))

    process.spawn(main(), "main")
    timeline.run(until=1)
    timeline.close()
    assert seen == ["the rest of the step"]


def test_die_here_does_not_return(timeline: Timeline, host: Host, process: Process) -> None:
    seen: list[str] = []

    async def port() -> None:
        await process.die_here()

    process.spawn(wait_and_note(seen, port), "main")
    survivor = Process(timeline, host, "b").spawn(asyncio.sleep(1, "alive"), "main")
    timeline.run(until=2)
    timeline.close()
    assert seen == []
    assert survivor.result() == "alive"


def test_answers_to_the_dead_are_ignored(timeline: Timeline, process: Process) -> None:
    seen: list[str] = []
    asked: list[asyncio.Future[str]] = []

    async def main() -> None:
        asked.append(asyncio.get_running_loop().create_future())
        seen.append(await asked[0])

    process.spawn(main(), "main")
    timeline.run(until=1)
    process.call_from_outside(asked[0].set_result, "on its way when it died")
    process.kill()
    process.call_from_outside(seen.append, "sent after")
    asked[0].set_result("set from outside")
    timeline.run(until=2)
    process.go_on()
    timeline.run(until=3)
    assert seen == []


def test_the_dead_start_nothing(timeline: Timeline, process: Process) -> None:
    seen: list[str] = []
    process.kill()
    process.kill()
    process.spawn(wait_and_note(seen, lambda: asyncio.sleep(0)), "too late")
    timeline.run(until=1)
    timeline.close()
    assert seen == []


# --- pauses ---


def test_a_paused_process_catches_up_in_order(timeline: Timeline, process: Process) -> None:
    seen: list[tuple[float, str]] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((timeline.now, name))

    process.loop.call_at(3.0, note("timer at 3"))
    process.loop.call_at(2.0, note("timer at 2"))
    process.loop.call_at(9.0, note("timer at 9"))
    process.pause()
    timeline.at(1.0, lambda: process.call_from_outside(note("answer at 1")))
    timeline.run(until=5.0)
    assert seen == []
    assert process.is_alive
    process.go_on()
    process.call_from_outside(note("answer at 5"))
    timeline.run(until=10.0)
    assert seen == [
        (5.0, "answer at 1"),
        (5.0, "timer at 2"),
        (5.0, "timer at 3"),
        (5.0, "answer at 5"),
        (9.0, "timer at 9"),
    ]


def test_a_pause_within_one_moment_keeps_the_order(timeline: Timeline, process: Process) -> None:
    seen: list[str] = []
    process.call_from_outside(process.pause)
    process.call_from_outside(seen.append, "first")
    timeline.at(0, process.go_on)
    process.call_from_outside(seen.append, "second")
    timeline.run(until=1)
    assert seen == ["first", "second"]


def test_a_time_limit_that_passed_in_a_pause_has_passed(timeline: Timeline, process: Process) -> None:
    async def main() -> str:
        try:
            async with asyncio.timeout(2):
                await asyncio.sleep(1)
                await asyncio.Event().wait()
        except TimeoutError:
            return f"at {timeline.now}"

    task = process.spawn(main(), "main")
    timeline.run(until=0.5)
    process.pause()
    timeline.run(until=30)
    process.go_on()
    timeline.run(until=31)
    assert task.result() == "at 30"


# --- clocks ---


def test_the_processes_of_a_host_share_its_clocks_and_its_boot(timeline: Timeline, host: Host) -> None:
    clocks = [SimClock(Process(timeline, host, name), random.Random(0)) for name in "ab"]
    timeline.run(until=60)
    host.wall_offset = -3600.0
    assert {clock.monotonic() for clock in clocks} == {1060.0}
    assert {(clock.now() - START).total_seconds() for clock in clocks} == {-3540.0}
    assert len({clock.boot_id for clock in clocks}) == 1


def test_a_reboot_kills_all_and_starts_the_boot_clock_anew(timeline: Timeline, host: Host, process: Process) -> None:
    elsewhere = Process(timeline, Host(timeline, "other"), "b")
    clock = SimClock(process, random.Random(0))
    before, wall = clock.boot_id, clock.now()
    host.reboot(up_seconds=20.0)
    assert not process.is_alive
    assert elsewhere.is_alive
    assert clock.boot_id != before
    assert clock.monotonic() == 20.0
    assert clock.now() == wall


def test_a_clock_sleeps_in_virtual_time(timeline: Timeline, process: Process) -> None:
    clock = SimClock(process, random.Random(0))
    finished(process, clock.sleep(3600))
    assert clock.monotonic() >= 4600


# --- that it can be repeated, and that nothing is left ---

PROGRAM = Path(__file__).with_name("simulated_crowd.py")


def traces(seed: int, hash_seed: int) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, str(PROGRAM), str(seed)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_same_seed_gives_the_same_trace_in_another_interpreter() -> None:
    first, again, other = traces(1, hash_seed=1), traces(1, hash_seed=2), traces(2, hash_seed=1)
    assert first.count("\n") > 1000
    assert first == again
    assert first != other


class Answer:
    """Awaited through Python's own wrapping of a coroutine, which shows nobody what it wraps."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __await__(self) -> Iterator[Any]:
        return wait_and_note(self.seen, lambda: asyncio.sleep(LONG)).__await__()


class LateAnswer(Answer):
    def __await__(self) -> Iterator[Any]:
        try:
            yield from super().__await__()
        finally:
            self.seen.append("late answer")


def small_world(seen: list[str]) -> None:
    """Some of everything that could be left behind: tasks asleep and dead, cycles, errors, generators, threads."""
    with closing(Timeline()) as timeline:
        host = Host(timeline)

        async def numbers() -> AsyncIterator[int]:
            try:
                await asyncio.sleep(0)
                yield 1
                await wait_and_note(seen, lambda: asyncio.sleep(LONG))
            finally:
                seen.append("generator")
                await asyncio.sleep(1)

        async def read() -> None:
            async for _ in numbers():
                pass

        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)

        async def main(process: Process) -> None:
            me = [asyncio.current_task()]
            unstarted = asyncio.sleep(1)
            tasks = {process.loop.create_task(work) for work in (read(), stubborn(), read())}
            tasks |= {asyncio.ensure_future(answer) for answer in (Answer(seen), LateAnswer(seen))}
            tasks |= {process.loop.create_task(wait_and_note(seen, lambda: asyncio.sleep(LONG))) for _ in range(20)}
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_and_note(seen, lambda: asyncio.to_thread(bytearray, 100_000)))
                group.create_task(asyncio.sleep(LONG))
            await unstarted
            del me

        for name in "abc":
            process = Process(timeline, host, name)
            process.spawn(main(process), "main")
        timeline.run(until=1)
        process.kill()
        timeline.run(until=2)


def test_the_end_of_a_world_is_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    seen: list[str] = []
    small_world(seen)
    gc.collect()
    assert sorted(seen) == ["finally"] * 3 + ["went on"] * 3  # the threads', before the end
    assert unraisable == []
    assert capfd.readouterr() == ("", "")


def test_worlds_leave_no_memory_behind() -> None:
    def memory_after(worlds: int) -> int:
        for _ in range(worlds):
            small_world([])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    memory_after(10)
    tracemalloc.start()
    try:
        before = memory_after(10)
        after = memory_after(200)
    finally:
        tracemalloc.stop()
    assert after - before < 20_000

"""Virtual time, and processes that live in it one step at a time.

What runs here is ordinary asyncio code. It sees no difference, except that waiting takes no time, that its
process may end between any two steps as `kill -9` would end it, and that the same seed gives the same run:
in another interpreter too, wherever objects lie in its memory.

Nothing here opens a socket, starts a thread or sleeps. What asyncio could do beyond that raises
`NotImplementedError`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import Any, Never, TypeVar

from rise.testing.simulator.graveyard import bury
from rise.testing.simulator.host import Host

T = TypeVar("T")

THREAD_SECONDS = 0.0001  # how long a function given to a thread takes
STEPS_AT_ONE_MOMENT_MAX = 100_000
STEPS_BETWEEN_COLLECTIONS = 100_000
TASKS_KEPT_MIN = 64


class TimeStandsStill(RuntimeError):
    """Steps follow each other and time does not move: somewhere a loop is busy waiting."""


class Handle:
    """Something that will happen, unless it is cancelled. What asyncio wants of its own handles, and no more."""

    __slots__ = ("args", "callback", "context", "due", "loop")

    def __init__(
        self,
        due: float,
        callback: Callable[..., object],
        args: tuple[Any, ...] = (),
        loop: SimLoop | None = None,
        context: Context | None = None,
    ) -> None:
        self.due = due
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.loop = loop  # None: the world's own, in no process
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.due


Entry = tuple[float, int, Handle]


class Timeline:
    """Everything that will happen, in the order in which it will: by time, and at one time as it was planned.

    `now` is in seconds and only moves between steps. `steps` counts those run. `current` is the process whose
    step it is, None for the world's own; after each step `on_step` is called. What it and the world's callbacks
    raise comes out of `run`; what a process's raise goes to its `errors`.
    """

    def __init__(self, *, limit: int = STEPS_AT_ONE_MOMENT_MAX) -> None:
        self.now = 0.0
        self.steps = 0
        self.on_step: Callable[[], None] | None = None
        self.current: Process | None = None
        self.processes: list[Process] = []  # the dead too
        self.number = itertools.count().__next__  # for whatever needs an order of its own
        self._limit = limit
        self._steps_at_this_moment = 0
        self._heap: list[Entry] = []

    def run(self, until: float) -> None:
        """Run everything due up to and including `until`; then it is `until`.

        Raises `TimeStandsStill` after more than `limit` steps at one moment.
        """
        with self._moving():
            while self._step(until):
                pass
        self.now = max(self.now, until)

    def run_while(self, predicate: Callable[[], bool]) -> bool:
        """Run until `predicate` is false. False if nothing is left to happen before: all wait for ever."""
        with self._moving():
            while predicate():
                if not self._step(sys.float_info.max):
                    return False
        return True

    def at(self, when: float, callback: Callable[[], object]) -> Handle:
        """Plan something in the world, outside of all processes. What is past happens next."""
        return self.plan(Handle(max(when, self.now), callback))

    def after(self, seconds: float, callback: Callable[[], object]) -> Handle:
        return self.at(self.now + seconds, callback)

    def plan(self, handle: Handle) -> Handle:
        heappush(self._heap, (handle.due, self.number(), handle))
        return handle

    def resume(self, entry: Entry) -> None:
        """Take back what was held, in the place in the order that it had."""
        heappush(self._heap, entry)

    def close(self) -> None:
        """The end of the world. All processes are dead, nothing of them runs, nothing is said.

        Read `errors` of the processes after this: only now they are complete.
        """
        for process in self.processes:
            process.kill()
        with _in_silence():
            for process in self.processes:
                process.loop.bury_tasks()
            self._heap.clear()
            # A world is full of cycles. Since nothing was collected while it ran, they are all young.
            gc.collect(1)

    def _step(self, until: float) -> bool:
        heap = self._heap
        while heap and heap[0][0] <= until:
            entry = heappop(heap)
            handle = entry[2]
            if handle.callback is None:
                continue
            process = None if handle.loop is None else handle.loop.process
            if process is not None and process.is_stopped:
                process.hold(entry)
                continue
            self._move(entry[0], handle)
            self.current = process
            _perform(handle)
            if self.on_step is not None:
                self.on_step()
            return True
        return False

    def _move(self, when: float, handle: Handle) -> None:
        if when > self.now:
            self.now = when
            self._steps_at_this_moment = 0
        elif self._steps_at_this_moment >= self._limit:
            busy = getattr(handle.callback, "__self__", handle.callback)  # a task, if it is a task's step
            raise TimeStandsStill(
                f"{self._limit} steps at {self.now} s and time has not moved; the next is of {busy!r}"
            )
        self.steps += 1
        self._steps_at_this_moment += 1
        if not self.steps % STEPS_BETWEEN_COLLECTIONS:
            gc.collect(1)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("a timeline runs outside of event loops and of its own steps")
        hooks, collects = sys.get_asyncgen_hooks(), gc.isenabled()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_close_dropped)
        # Collecting runs finalizers, and when it happens by itself depends on what ran before this world.
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()
            sys.set_asyncgen_hooks(*hooks)


def _perform(handle: Handle) -> None:
    assert handle.callback is not None
    if handle.loop is None or handle.context is None:
        handle.callback(*handle.args)
        return
    asyncio._set_running_loop(handle.loop)
    try:
        handle.context.run(handle.callback, *handle.args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - border: as in any event loop, the next step comes; it is recorded
        handle.loop.call_exception_handler({"message": "a callback failed", "exception": error})
    finally:
        asyncio._set_running_loop(None)


def _close_dropped(generator: AsyncGenerator[Any, Any]) -> None:
    """What a process dropped half read is closed in a task of its own, as asyncio does it."""
    loop = asyncio._get_running_loop()
    if loop is not None:  # else it was the world's end that dropped it
        loop.create_task(generator.aclose())


@contextmanager
def _in_silence() -> Iterator[None]:
    said = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = said


class Process:
    """One simulated operating-system process: an event loop of its own, which can be killed or stopped.

    `errors` are the exceptions that nobody caught. One of a task that nobody waited for is only known when the
    task is forgotten: in `Timeline.close` at the latest.
    """

    def __init__(self, timeline: Timeline, host: Host, name: str) -> None:
        self.timeline = timeline
        self.host = host
        self.name = name
        self.errors: list[BaseException] = []
        self.is_alive = True
        self.is_stopped = False  # paused or dead
        # Abstract only to type checkers: what it does not do raises NotImplementedError.
        self.loop = SimLoop(self)  # type: ignore[abstract]
        self._held: list[Entry] = []
        timeline.processes.append(self)
        host.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task in it from outside. Its failure is one of `errors` at once."""
        task = self.loop.create_task(work, name=name, context=Context())
        task.add_done_callback(self._note_failure, context=Context())
        return task

    def call_from_outside(self, callback: Callable[..., object], *args: Any) -> Handle:
        """How the world answers: `callback` is the process's next step. Late if it is paused, never if it is dead."""
        return self.loop.call_soon(callback, *args, context=Context())

    def kill(self) -> None:
        """`kill -9`. From now on nothing of it runs: no `finally`, no callback, no timer.

        Called in one of its own steps, this ends only after the step: see `die_here`.
        """
        if self.is_alive:
            self.is_alive, self.is_stopped = False, True
            self.host.processes.remove(self)
            self._held.clear()

    def die_here(self) -> asyncio.Future[Never]:
        """Kill it in its own step: `await process.die_here()` does not return."""
        self.kill()
        return self.loop.create_future()

    def pause(self) -> None:
        """SIGSTOP. Time goes on; what falls due waits. Called in its own step, it takes effect after the step."""
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT. What has fallen due runs now, in the order in which it would have."""
        if self.is_alive:
            self.is_stopped = False
            for entry in self._held:
                self.timeline.resume(entry)
            self._held.clear()

    def hold(self, entry: Entry) -> None:
        """Its turn has come while it is stopped."""
        if self.is_alive:
            self._held.append(entry)

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    def __repr__(self) -> str:
        return f"<Process {self.name}>"


class SimTask(asyncio.Task[T]):
    """A task that sets hold in the same order in every run: its hash is a number, not where it lies in memory."""

    __slots__ = ("_number",)

    def __init__(self, number: int, work: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = number
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._number


class SimFuture(asyncio.Future[T]):
    """A future, likewise."""

    __slots__ = ("_number",)

    def __init__(self, number: int, loop: SimLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one process. It holds its tasks until they are done: none vanishes by being forgotten."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._timeline = process.timeline
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_kept = TASKS_KEPT_MIN

    def time(self) -> float:
        return self._timeline.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        timeline = self._timeline
        return timeline.plan(Handle(timeline.now, callback, args, self, copy_context() if context is None else context))

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self._timeline.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        due = max(when, self._timeline.now)
        return self._timeline.plan(Handle(due, callback, args, self, copy_context() if context is None else context))

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """A thread is a step of its own a moment later. It runs even if nobody waits for it any more.

        It must not wait for the event loop in its turn: nothing else moves while it runs.
        """
        answer: asyncio.Future[T] = self.create_future()
        self.call_later(THREAD_SECONDS, _run_as_thread, answer, function, args, context=Context())
        return answer

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(self._timeline.number(), self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        number = self._timeline.number()
        task = SimTask(number, coro, loop=self, name=name or f"{self.process.name}-{number}", context=context)
        if len(self._tasks) >= 2 * self._tasks_kept:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
            self._tasks_kept = max(TASKS_KEPT_MIN, len(self._tasks))
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # Without an exception it tells of tasks thrown away unfinished, and only the world's end does that.
        if (error := context.get("exception")) is not None:
            self.process.errors.append(error)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return not self.process.is_alive

    def bury_tasks(self) -> None:
        bury(task.get_coro() for task in self._tasks if not task.done())
        self._tasks.clear()


def _run_as_thread(answer: asyncio.Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)  # no loop runs in a thread
    try:
        result = function(*args)
    except BaseException as error:  # noqa: BLE001 - border: whoever waits for the thread gets it
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)
    finally:
        asyncio._set_running_loop(loop)

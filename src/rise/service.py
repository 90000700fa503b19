"""How parts start, run and stop: in order, under supervision, never in silence.

Promises: what has started is stopped, in reverse, also when the next one fails to start; a loop survives its errors
and says them; no task is lost to the garbage collector.

Refuses: to decide what an error means. It is handed to whoever started the part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Final, Protocol, TypeVar

from rise.clock import Clock
from rise.errors import Unavailable

T = TypeVar("T")

SAID_AGAIN_SECONDS: Final = 60.0


class Service(Protocol):
    """Something with a beginning and an end."""

    name: str

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Leave nothing half done that a crash would not leave half done too. Safe to call twice."""
        ...


OnError = Callable[[str, BaseException], None]


async def start_all(services: Sequence[Service], *, on_error: OnError) -> None:
    """Start in order; if one fails, stop those already started and let the failure through."""
    started: list[Service] = []
    try:
        for service in services:
            await service.start()
            started.append(service)
    except BaseException:  # border: what has started is stopped, and it is passed on
        await stop_all(started, on_error=on_error)
        raise


async def stop_all(services: Sequence[Service], *, on_error: OnError) -> None:
    """Stop in reverse order of starting. One that fails to stop is reported and keeps no other from it; nor does it if
    whoever stops them is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    for service in reversed(services):
        try:
            await service.stop()
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception as error:  # noqa: BLE001 - border: stopping goes on; the caller hears of it
            on_error(service.name, error)
    if cancelled is not None:
        raise cancelled


def spawn(
    work: Coroutine[Any, Any, Any], *, name: str, into: set[asyncio.Task[Any]], for_all: bool = False
) -> asyncio.Task[Any]:
    """Start a task that is held until it ends. Its exception is the caller's to read.

    `for_all`: it serves more than whoever happens to start it. Its log lines and spans belong to no message then;
    otherwise they are of the caller's, for as long as it goes on.
    """
    context = Context() if for_all else None
    task = asyncio.get_running_loop().create_task(work, name=name, context=context)
    into.add(task)
    task.add_done_callback(into.discard)
    return task


async def cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel and wait until all have ended."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def insist(
    write: Callable[[], Awaitable[T]],
    *,
    sleep: Callable[[float], Awaitable[None]],
    on_refusal: Callable[[Unavailable], None],
) -> T:
    """Repeat a write until its store takes it, at most 5 s apart. For what must not be forgotten once it is known."""
    pause = 0.1
    while True:
        try:
            return await write()
        except Unavailable as error:
            on_refusal(error)
            await sleep(pause)
            pause = min(pause * 2, 5.0)


class Loop:
    """A service that does one thing again and again, and survives its own errors.

    `body` runs until it returns and is then called again. An unexpected error is handed to `on_error` and
    the body starts anew after `pause_seconds` (doubling up to `pause_seconds_max`): a loop that dies in silence is the
    failure where everything looks healthy and nothing moves.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[None]],
        on_error: Callable[[str, BaseException], None],
        pause_seconds: float = 0.2,
        pause_seconds_max: float = 10.0,
    ) -> None:
        self.name = name
        self._body = body
        self._sleep = sleep
        self._on_error = on_error
        self._pause_seconds = pause_seconds
        self._pause_seconds_max = pause_seconds_max
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        spawn(self._run(), name=self.name, into=self._tasks, for_all=True)

    async def stop(self) -> None:
        await cancel_all(self._tasks)

    async def _run(self) -> None:
        pause = self._pause_seconds
        while True:
            try:
                await self._once()
                pause = self._pause_seconds
            except Exception as error:  # noqa: BLE001 - border: the loop goes on, the error is reported
                self._on_error(self.name, error)
                await self._sleep(pause)
                pause = min(pause * 2, self._pause_seconds_max)

    async def _once(self) -> None:
        try:
            await self._body()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # stop() means us
            raise RuntimeError("what it waited for was cancelled by another part") from error


def sparingly(report: OnError, clock: Clock) -> OnError:
    """Reports what is away once a minute at most: said at every try, for hours, it would bury what else the log says.
    What goes wrong otherwise is reported each time."""
    said_at: dict[tuple[str, type[BaseException]], float] = {}

    def report_now_and_then(name: str, error: BaseException) -> None:
        what, now = (name, type(error)), clock.monotonic()
        if isinstance(error, Unavailable) and now - said_at.get(what, -SAID_AGAIN_SECONDS) < SAID_AGAIN_SECONDS:
            return
        said_at[what] = now
        report(name, error)

    return report_now_and_then


class Signal:
    """A wake-up that is never lost: set while nobody waits, the next wait returns at once.

    Made for hints, where many mean no more than one.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """True if signalled, False if the time ran out first."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

"""Processes: the worker process that runs user code, and the stop signal that all of them share.

A worker process is alive as long as its event loop says so once a second over a socket to its parent. One
that falls silent is killed; one whose parent is gone ends by itself, even when its own loop is blocked.

Refuses: to give up on it. However often it ends it is started again, after pauses that grow to ten seconds.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import uvloop

from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.clock import Clock
from rise.service import cancel_all, spawn
from rise.telemetry import log, worker_restarts_total

T = TypeVar("T")

BEAT_SECONDS: Final = 1.0
EXIT_WORN_OUT: Final = 3
EXIT_SETTINGS: Final = 2
RESTART_SECONDS: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
CAUSES: Final = ("worn_out", "settings", "stalled", "stuck", "exit 1", "exit -9", "exit -11")
"""Why it ends, most often. Counted from nothing: Prometheus takes the first value that it sees for what always was."""
STEADY_SECONDS: Final = 30.0
"""A process that lived this long is restarted at once when it ends."""


class WorkerProcess:
    """Keeps one worker process running beside this one."""

    name = "worker process"

    def __init__(
        self,
        *,
        capabilities: CapabilityRegistry,
        clock: Clock,
        stall_seconds: float,
        stop_seconds: float,
        stop: asyncio.Event,
    ) -> None:
        """`stop`: that of this process, set as soon as it is asked to end."""
        self._capabilities = capabilities
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._stop_seconds = stop_seconds
        self._stop = stop
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._is_stuck = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        for cause in CAUSES:
            worker_restarts_total.labels(cause)
        self._capabilities.begin("worker", "starting")
        spawn(self._keep_running(), name=self.name, into=self._tasks)

    async def stop(self) -> None:
        """Ask it to stop, wait as long as it may take, then insist."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None and self._socket is not None:
            # Not by a signal: service managers send theirs to every process at once, and a worker that took it
            # as its own would end before this one has closed its doors.
            self._socket.shutdown(socket.SHUT_WR)
            try:
                async with asyncio.timeout(self._stop_seconds + 5.0):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await cancel_all(self._tasks)

    async def restart(self) -> None:
        """It has been seen to do nothing, though it beats: a new one takes its place."""
        process = self._process
        if process is not None and process.returncode is None:
            self._is_stuck = True
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            began = self._clock.monotonic()
            try:
                cause = await self._run_once()
            except OSError as error:  # no memory or no process left for it: that passes
                cause = f"could not be started: {error.strerror}"
            # Whoever asked this process to end has asked the worker too, perhaps: one that still loads takes a signal
            # as its own. An end that was asked for is no error, and nothing comes after it.
            if self._stopping or self._stop.is_set():
                return
            worker_restarts_total.labels(cause).inc()
            lived = self._clock.monotonic() - began
            failures = 0 if lived > STEADY_SECONDS or cause == "worn_out" else failures + 1
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]
            self._capabilities.set(
                "worker", CapabilityStatus.UNAVAILABLE, f"it ended ({cause}); restarted in {pause:g} s"
            )
            log.error(
                "worker.ended",
                cause=cause,
                lived_seconds=round(lived, 1),
                restart_in_seconds=pause,
                consequence=CONSEQUENCES["worker"],
            )
            await self._clock.sleep(pause)

    async def _run_once(self) -> str:
        """One life of the process; returns why it ended."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "rise", "worker", "--parent-fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
            theirs.close()
            # What a workflow has forked keeps the socket open beyond its parent's end.
            ended = spawn(self._process.wait(), name="worker process.end", into=self._tasks)
            ended.add_done_callback(lambda _: _end_reading(ours))
            stalled = await self._watch(self._process, ours)
            code = await self._process.wait()
        finally:
            ours.close()
            theirs.close()
        was_stuck, self._is_stuck = self._is_stuck, False
        if stalled or was_stuck:
            return "stalled" if stalled else "stuck"
        return {EXIT_WORN_OUT: "worn_out", EXIT_SETTINGS: "settings"}.get(code, f"exit {code}")

    async def _watch(self, process: asyncio.subprocess.Process, ours: socket.socket) -> bool:
        """Until it ends. True if it had to be killed because its loop was blocked."""
        loop = asyncio.get_running_loop()
        ready = False
        while True:
            try:
                # Importing a bot's libraries may take its time; from the first beat on it must keep beating.
                async with asyncio.timeout(self._stall_seconds if ready else self._stall_seconds + 60.0):
                    beat = await loop.sock_recv(ours, 64)
            except TimeoutError:
                log.error("worker.stalled", pid=process.pid, seconds=self._stall_seconds, consequence="killed")
                with suppress(ProcessLookupError):
                    process.kill()
                return True
            except ConnectionError:
                return False
            if not beat:
                return False
            if not ready:
                ready = True
                self._capabilities.set("worker", CapabilityStatus.AVAILABLE, f"process {process.pid}")


def _end_reading(beats: socket.socket) -> None:
    with suppress(OSError):  # closed already
        beats.shutdown(socket.SHUT_RD)


class Parent:
    """The parent as its worker process sees it: gone, or done with it, when the socket ends."""

    def __init__(self, fd: int, clock: Clock) -> None:
        self._socket = socket.socket(fileno=fd)
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch(self, on_gone: Callable[[], None], *, grace_seconds: float) -> None:
        """Call `on_gone` when the parent is gone, and end by force after the grace, whatever is being waited for."""
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._wait_for_end, args=(loop, on_gone, grace_seconds), name="rise-parent", daemon=True
        ).start()

    def beat(self) -> None:
        """From now on say that the loop is alive; the first time, that it is ready."""
        spawn(self._beat(), name="parent.beat", into=self._tasks)

    async def stop(self) -> None:
        await cancel_all(self._tasks)

    async def _beat(self) -> None:
        while True:
            try:
                self._socket.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                return  # the other thread sees the end too, and acts on it
            await self._clock.sleep(BEAT_SECONDS)

    def _wait_for_end(self, loop: asyncio.AbstractEventLoop, on_gone: Callable[[], None], grace_seconds: float) -> None:
        # A thread, because a blocked event loop must not keep an orphan alive.
        self._socket.setblocking(True)
        # A parent that was killed with our beats unread resets the socket instead of ending it: gone all the same.
        with suppress(OSError):
            while self._socket.recv(1):
                pass
        try:
            loop.call_soon_threadsafe(on_gone)
        except RuntimeError:
            return  # it is ending already
        threading.Event().wait(grace_seconds + 5.0)
        os._exit(1)


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT ask for an orderly stop; a second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, ask)
    loop.add_signal_handler(signal.SIGTERM, stop.set)


async def until_told(work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM and SIGINT end it as an error would: nothing that was started stays behind."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for told in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(told, this.cancel)
    return await work


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a process's main coroutine on the fast event loop."""
    return uvloop.run(main)


def spare_the_collector() -> None:
    """Call once everything is loaded: what is there now stays, and need not be looked through again.

    Messages make hardly any cycles; at Python's usual pace the collector takes a fifth of an acceptance.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)

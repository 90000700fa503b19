"""A real `rise serve` in processes of its own, to be killed, stopped and started again by a test."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from rise.clock import SystemClock
from rise.service import cancel_all, spawn
from rise.settings import environment_of_another

READY_SECONDS = 60.0
COMMAND_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.1
ADMIN_TOKEN = "admin-token-of-a-test-installation"  # noqa: S105 - of tests only


def hold_port(port: int = 0) -> socket.socket:
    """Bound and not listening: who connects is refused, and the port is not given to others meanwhile.

    Whoever is to listen binds it too, with SO_REUSEADDR.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    held.setblocking(False)
    return held


class InstallationEnded(AssertionError):
    """It ended before it was ready."""


class Installation:
    """One data directory and the processes that work on it.

    `async with Installation(tmp_path, app="bot.py") as rise:` starts it and leaves nothing running behind.
    """

    def __init__(self, data_dir: Path, *, app: str | Path | None = None, **settings: object) -> None:
        """`settings`: as in the environment, without the prefix and in lower case."""
        self.data_dir = data_dir
        held = hold_port()
        self.port = int(held.getsockname()[1])
        """Fixed, because platforms remember where to deliver."""
        # Also while it is down: a connection of somebody else's could be given its port, and it would not start.
        weakref.finalize(self, held.close)
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self.surroundings: dict[str, str] = {}
        """Environment of its processes beside the settings."""
        self.serving: tuple[str, ...] = ("serve",)
        """How its gateway is started: `rise WORDS`."""
        self._settings = {"app": app, **settings}
        self._clock = SystemClock()
        self._process: asyncio.subprocess.Process | None = None
        self._added: list[asyncio.subprocess.Process] = []
        self._printed: asyncio.StreamReader | None = None
        self._reading: asyncio.ReadTransport | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    @property
    def environment(self) -> dict[str, str]:
        own: Mapping[str, object] = {
            "data_dir": self.data_dir,
            "port": self.port,
            "admin_token": ADMIN_TOKEN,
            "log": "json",
            **self._settings,
        }
        return environment_of_another(own) | self.surroundings

    def configure(self, **settings: object) -> None:
        """Change settings. What runs keeps what it was started with."""
        self._settings |= settings

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill(added=True)
        self._stop_reading()

    async def start(self, *, wait: bool = True) -> None:
        """Start `rise serve`; returns when it accepts requests, unless told not to wait."""
        assert self._process is None or self._process.returncode is not None, "it runs already"
        reading, writing = os.pipe()
        try:
            self._process = await self._spawn(*self.serving, stdout=writing)
        finally:
            os.close(writing)
        await self._read_from(reading)
        if wait:
            await self.ready()

    async def ready(self) -> None:
        """Wait for the line it prints once it accepts requests."""
        async with asyncio.timeout(READY_SECONDS):
            line = await self._first_line()
        if not line.startswith(b"Rise listens"):
            raise InstallationEnded(f"rise serve ended before it was ready; its log:\n{self.log()[-4000:]}")

    async def _read_from(self, pipe: int) -> None:
        # A pipe of our own: asyncio takes a process for running as long as anybody holds one of its pipes, and
        # a killed gateway leaves its worker behind, which ends in its own time.
        self._stop_reading()
        self._printed = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self._printed)
        self._reading, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: protocol, os.fdopen(pipe, "rb", buffering=0)
        )

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    async def _first_line(self) -> bytes:
        """Nothing if it ends before."""
        assert self._process is not None and self._printed is not None
        tasks: set[asyncio.Task[Any]] = set()
        reading = spawn(self._printed.readline(), name="installation.ready", into=tasks)
        spawn(self._process.wait(), name="installation.ended", into=tasks)
        try:
            await asyncio.wait(set(tasks), return_when=asyncio.FIRST_COMPLETED)
            return bytes(reading.result()) if reading.done() else b""
        finally:
            await cancel_all(tasks)

    async def until_capability(self, name: str, status: str = "available") -> str:
        """Wait until `/healthz` says so, and return the detail."""
        async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.url}/healthz") as response:
                    state = (await response.json())["capabilities"].get(name, {})
                if state.get("status") == status:
                    return str(state["detail"])
                await self._clock.sleep(LOOK_SECONDS)  # across processes there is no signal to wait for

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended. Returns the exit code."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self._process.wait()

    async def add_worker(self) -> None:
        """Start a `rise worker` beside the gateway's own."""
        self._added.append(await self._spawn("worker", stdout=asyncio.subprocess.DEVNULL))

    async def kill(self, *, gateway: bool = True, worker: bool = True, added: bool = False) -> None:
        """kill -9 of the gateway, its worker process, the workers that were added. Waits until they are gone."""
        victims = (self.worker_pids() if worker else []) + ([self.pid] if gateway and self.pid else [])
        victims += self.added_pids() if added else []
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if gateway and self._process is not None:
            await self._process.wait()
        if added:
            await asyncio.gather(*(process.wait() for process in self._added))

    @property
    def pid(self) -> int | None:
        """The gateway's, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def worker_pids(self) -> list[int]:
        """Worker processes of this gateway, by what the kernel says."""
        if self.pid is None:
            return []
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def added_pids(self) -> list[int]:
        """Workers that were added and run."""
        return [process.pid for process in self._added if process.returncode is None]

    def pids(self) -> list[int]:
        """All of its processes, a parent before its children."""
        return ([self.pid] if self.pid is not None else []) + self.worker_pids() + self.added_pids()

    async def command(self, *words: str) -> tuple[int, str]:
        """Run `rise WORDS` on the same directory. Returns exit code and what it printed; `TimeoutError` if it hangs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rise", *words),
            env=self.environment,
            cwd=self.data_dir.parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS_MAX):
                printed, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        return process.returncode or 0, printed.decode()

    async def _spawn(self, *words: str, stdout: int) -> asyncio.subprocess.Process:
        with self.log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rise", *words),
                env=self.environment,
                cwd=self.data_dir.parent,
                stdout=stdout,
                stderr=log,
            )

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

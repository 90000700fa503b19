"""A real `rise serve` in processes of its own, to be killed, stopped and started again by a test."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 60.0
ADMIN_TOKEN = "admin-token-of-a-test-installation"  # noqa: S105 - of tests only


def free_port() -> int:
    """A port nobody listens on now. Fixed for an installation, because platforms remember where to deliver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    """One data directory and the processes that work on it.

    `async with Installation(tmp_path, app="bot.py") as rise:` starts it and leaves nothing running behind.
    """

    def __init__(self, data_dir: Path, *, app: str | Path | None = None, **settings: object) -> None:
        """`settings`: as in the environment, without the prefix and in lower case."""
        self.data_dir = data_dir
        self.port = free_port()
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self._settings = {"app": app, **settings}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RISE_")}
        own: Mapping[str, object] = {
            "data_dir": self.data_dir,
            "port": self.port,
            "admin_token": ADMIN_TOKEN,
            "log": "json",
            **self._settings,
        }
        return inherited | {f"RISE_{name.upper()}": str(value) for name, value in own.items() if value is not None}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self, *, wait: bool = True) -> None:
        """Start `rise serve`; returns when it accepts requests, unless told not to wait."""
        assert self._process is None or self._process.returncode is not None, "it runs already"
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rise", "serve"),
                env=self.environment,
                cwd=self.data_dir.parent,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        if wait:
            await self.ready()

    async def ready(self) -> None:
        """Wait for the line it prints once it accepts requests."""
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(READY_SECONDS):
            line = await self._process.stdout.readline()
        if not line.startswith(b"Rise listens"):
            raise AssertionError(f"rise serve ended before it was ready; its log:\n{self.log()[-4000:]}")

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended. Returns the exit code."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self._process.wait()

    async def kill(self, *, gateway: bool = True, worker: bool = True) -> None:
        """kill -9 of the gateway, its worker process, or both."""
        victims = (self.worker_pids() if worker else []) + ([self.pid] if gateway and self.pid else [])
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if gateway and self._process is not None:
            await self._process.wait()

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

    async def command(self, *words: str) -> tuple[int, str]:
        """Run `rise WORDS` on the same directory. Returns exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rise", *words),
            env=self.environment,
            cwd=self.data_dir.parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

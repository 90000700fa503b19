"""Real servers for tests, each on a free port with a directory of its own; never one that happens to run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from rise.testing.installation import hold_port

READY_SECONDS: Final = 20.0


def has_redis() -> bool:
    return shutil.which("redis-server") is not None


class RedisServer:
    """A `redis-server` that fsyncs every write before it answers, to be killed, frozen and started again.

    `with RedisServer(tmp_path) as server:` starts it and leaves nothing running behind.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        """`settings`: as in redis.conf, underscores for hyphens."""
        self._held_port = hold_port()
        self.port = int(self._held_port.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.log: list[str] = []
        self._directory = directory
        own = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._settings = own | {name.replace("_", "-"): value for name, value in settings.items()}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._held_port.close()

    def start(self) -> None:
        """Until it accepts connections, its data read."""
        place = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._directory)}
        settings = (part for name, value in (place | self._settings).items() for part in (f"--{name}", value))
        command = ["redis-server", *settings]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own arguments
        is_ready = threading.Event()
        threading.Thread(target=self._read_log, args=(self._process, is_ready), daemon=True).start()
        if not is_ready.wait(READY_SECONDS):
            self.kill()
            raise AssertionError("redis-server did not start:\n" + "\n".join(self.log[-20:]))

    def kill(self) -> None:
        """-9, and gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def ask(self, *command: str | bytes | float) -> Any:
        """A command, as an operator gives it, and its answer as it comes over the wire."""
        with redis.Redis(port=self.port, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, str]:
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _read_log(self, process: subprocess.Popen[str], is_ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log.append(line.rstrip())
                if "Ready to accept connections" in line:
                    is_ready.set()

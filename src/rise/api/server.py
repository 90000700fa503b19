"""The HTTP server as a service: uvicorn, told when to start and stop, with bounds it does not have itself.

Signals are the caller's. A connection must send its headers in time and of bearable size; afterwards the
reading of bodies has bounds of its own.

Refuses: an address that cannot be listened on (`SettingsInvalid`); to believe a header about who calls.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from asyncio.events import TimerHandle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rise.api.app import build_app
from rise.api.reading import BODY_HAS_ARRIVED, Receive, Scope, Send
from rise.errors import SettingsInvalid
from rise.runtime.assembly.house import House
from rise.service import spawn

HEADER_SECONDS: Final = 10.0
HEADER_BYTES_MAX: Final = 64 * 1024
KEEP_ALIVE_SECONDS: Final = 65
"""Longer than proxies and Telegram keep theirs, so that they close first and never write into a closed one."""
BACKLOG: Final = 2048


class Application(Protocol):
    """What can be served."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def close(self) -> None:
        """End what would hold up a stop."""
        ...


class ApiServer:
    """Serves a house's API from `start` to `stop`. `port` is known as soon as it has started."""

    name = "api"

    def __init__(self, house: House, build: Callable[[House], Application] = build_app) -> None:
        """`build`: what is served, if it is more than the API."""
        self._host = house.settings.host
        self._wanted_port = house.settings.port
        self._stop_seconds = house.settings.stop_seconds
        self._app = build(house)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: _Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Raises `SettingsInvalid` if the address cannot be listened on."""
        listener = _listen(self._host, self._wanted_port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            log_level="error",
            proxy_headers=False,  # who calls is who connects; headers can be written by anybody
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, int(self._stop_seconds)),
        )
        server = self._server = _Server(config)
        serving = spawn(server.serve(sockets=[listener]), name="api", into=self._tasks)
        serving.add_done_callback(lambda _: server.up.set())
        await server.up.wait()
        if serving.done():
            serving.result()  # it failed to start, and says why

    async def stop(self) -> None:
        """Take no more connections, answer what is being answered, end streams and waits."""
        if self._server is None:
            return
        self._app.close()
        self._server.should_exit = True
        await asyncio.gather(*self._tasks)
        self._server = None


class _Server(uvicorn.Server):
    """Leaves signals alone, and says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class _Protocol(HttpToolsProtocol):
    """Closes connections whose headers do not come: a trickle of bytes could hold one open for ever.

    What says something of a request stands before its body. Lines after a chunked body, its trailers, are read
    over: nobody here asks for any, and a proxy looks at headers only.
    """

    _header_timer: TimerHandle | None = None
    _header_bytes = 0
    """Of what has come since a request's headers were complete, or a part of its body was."""
    _reads_headers = False
    _gets_on = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        self._gets_on = False
        super().data_received(data)
        if self._reads_headers or not self._gets_on:
            # Also while an earlier request is being answered: else they could grow for as long as that takes.
            # And trailers: the parser keeps one line of them, however long, until it ends.
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES_MAX:
                self.timeout_keep_alive_handler()
        if self._reads_headers or self._is_between_requests():
            self._wait_for_headers()  # or blank lines, or what is left of a body nobody reads

    def on_message_begin(self) -> None:
        self._reads_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reads_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._reads_headers = False
        self._gets_on = True
        self._forget_headers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._gets_on = True
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        # With the headers in one piece, and so before the request's task has begun; or too late, and of no use.
        self.scope[BODY_HAS_ARRIVED] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        is_served = self.cycle is not None and not self.cycle.response_complete
        return not is_served and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _wait_for_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def _forget_headers(self) -> None:
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no host's name"
        raise SettingsInvalid([f"RISE_HOST={host} is no address of this machine: {why}."]) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Now, not when the loop serves: on Linux the second of two binds succeeds until one of them listens.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsInvalid([_refusal(host, port, error)]) from error
    listener.setblocking(False)
    return listener


def _refusal(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"RISE_PORT={port} is taken on {host}: another program listens there. Stop it, or set RISE_PORT."
        case errno.EACCES:
            return f"RISE_PORT={port} is reserved for the system. Set RISE_PORT to 1024 or more, or grant the right."
        case errno.EADDRNOTAVAIL:
            return f"RISE_HOST={host} is no address of this machine."
        case _:
            return f"RISE_HOST={host}, RISE_PORT={port} cannot be listened on: {error.strerror}."

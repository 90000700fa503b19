"""A link between two processes that misbehaves as it is told, while it is in use.

Promises: until a fault is applied, and after it is healed, bytes, ends and resets go through as they came, in
order; a fault strikes the connections that are open and those that come; its port stays its own while it
refuses. What a fault has torn never comes whole again: such a connection is reset when the link heals.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

from rise.clock import Clock, SystemClock
from rise.service import cancel_all, spawn
from rise.testing.installation import hold_port
from rise.testing.telegram.stand_in_time import Changes

_CHUNK_BYTES: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Direction(StrEnum):
    REQUESTS = "requests"
    """From who connects to who listens."""
    ANSWERS = "answers"


@dataclass(frozen=True, slots=True)
class LinkFault:
    """What a link does to what passes. Use the constructors below; their names say it."""

    name: str
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    holds: frozenset[Direction] = frozenset()
    refuses: bool = False
    resets: bool = False
    cuts: Direction | None = None
    cut_after_bytes: int = 0
    loses_answers: bool = False
    hangs: bool = False

    @classmethod
    def latency(cls, seconds: float, *, jitter_seconds: float = 0.0) -> LinkFault:
        """Everything comes so much later, give or take the jitter."""
        return cls("latency", delay_seconds=seconds, jitter_seconds=jitter_seconds)

    @classmethod
    def blackhole(cls, *directions: Direction) -> LinkFault:
        """Nothing comes through that way, and nobody is told. What was sent meanwhile comes once it is healed."""
        return cls("blackhole", holds=frozenset(directions or Direction))

    @classmethod
    def refusal(cls) -> LinkFault:
        """Nobody listens: who connects is refused. What is connected stays."""
        return cls("refusal", refuses=True)

    @classmethod
    def reset(cls) -> LinkFault:
        """Open connections are reset at once, new ones at their first byte."""
        return cls("reset", resets=True)

    @classmethod
    def cut(cls, after_bytes: int, direction: Direction = Direction.REQUESTS) -> LinkFault:
        """A connection ends when so many more bytes have passed that way."""
        return cls("cut", cuts=direction, cut_after_bytes=after_bytes)

    @classmethod
    def lost_answer(cls, *, hangs: bool = False) -> LinkFault:
        """The whole request arrives, its answer never. The connection is closed, or hangs until it is healed."""
        return cls("lost_answer", loses_answers=True, hangs=hangs)


HEALTHY: Final = LinkFault("healthy")


class FaultProxy:
    """One link. `async with FaultProxy(port) as link:` listens on `link.url` and passes everything on to `port`.

    Of several ports, each connection goes to the next in turn; to another, where nobody listens.
    """

    def __init__(self, *to_ports: int, to_host: str = "127.0.0.1", clock: Clock | None = None) -> None:
        self._to = deque((to_host, port) for port in to_ports)
        self._clock = clock or SystemClock()
        self._fault = HEALTHY
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes = Changes()
        self._listener: socket.socket | None = None
        self.struck = 0
        """How often a fault has met something: bytes held, delayed, lost or cut, a connection reset."""
        # Also while the link refuses.
        self._holder = hold_port()
        self.port = int(self._holder.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._refuse()
        await cancel_all(self._tasks)
        self._holder.close()

    # --- steering ---

    def apply(self, fault: LinkFault) -> None:
        """From now on, instead of what was applied before."""
        self.heal()
        self._fault = fault
        if fault.refuses:
            self._refuse()
        for connection in list(self._connections):
            connection.passed.clear()
            if fault.resets:
                self._strike()
                connection.end()
        self._changes.notify()

    def heal(self) -> None:
        """Everything passes again; what was held goes on, what was torn is reset."""
        self._fault = HEALTHY
        for connection in list(self._connections):
            if connection.is_torn:
                connection.end()
        self._listen()
        self._changes.notify()

    async def until_struck(self, count: int = 1, *, timeout_seconds: float = 10.0) -> None:
        """Wait until faults have met something so many times in all."""
        async with asyncio.timeout(timeout_seconds):
            while self.struck < count:
                await self._changes.waiter()

    # --- carrying ---

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = hold_port(self.port)
            self._listener.listen(256)
            asyncio.get_running_loop().add_reader(self._listener, self._take)

    def _refuse(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _take(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # whoever came has left again
        client.setblocking(False)
        spawn(self._carry(client), name="link", into=self._tasks)

    async def _carry(self, client: socket.socket) -> None:
        connection = _Connection(self, client, _new_socket())
        self._connections.add(connection)
        try:
            await self._connect(connection)
            await connection.carry()
        except OSError:
            connection.resets = True  # nobody there: the nearest a connection that stands can come to a refusal
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _connect(self, connection: _Connection) -> None:
        for tries_left in reversed(range(len(self._to))):
            place = self._to[0]
            self._to.rotate(-1)
            try:
                await asyncio.get_running_loop().sock_connect(connection.server, place)
                return
            except OSError:
                if not tries_left:
                    raise
                connection.server.close()
                connection.server = _new_socket()

    async def pass_on(self, connection: _Connection, direction: Direction, data: bytes) -> bytes:
        """What of these bytes goes on, once it may. None of them: the other side has ended."""
        if direction in self._fault.holds:
            self._strike()
            while direction in self._fault.holds:
                await self._changes.waiter()
        if self._fault.delay_seconds:
            self._strike()
            await self._clock.sleep(self._delay_seconds(self._fault))
        if self._fault.loses_answers and direction is Direction.ANSWERS:
            await self._lose(connection)
        return self._left_of(data, connection, direction) if data else data

    async def _lose(self, connection: _Connection) -> None:
        """Nothing more comes of this connection: it ends now, or when the link heals."""
        hangs = self._fault.hangs
        connection.is_torn = True
        self._strike()
        while hangs:
            await self._changes.waiter()
        raise _CutOff(b"")

    def _left_of(self, data: bytes, connection: _Connection, direction: Direction) -> bytes:
        fault = self._fault
        if fault.resets:
            self._strike()
            raise ConnectionResetError
        left = fault.cut_after_bytes - connection.passed[direction]
        if fault.cuts is direction and len(data) >= left:
            self._strike()
            raise _CutOff(data[:left])
        connection.passed[direction] += len(data)
        return data

    def _delay_seconds(self, fault: LinkFault) -> float:
        return max(0.0, fault.delay_seconds + self._clock.random.uniform(-1, 1) * fault.jitter_seconds)

    def _strike(self) -> None:
        self.struck += 1
        self._changes.notify()


def _new_socket() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setblocking(False)
    return server


class _CutOff(Exception):
    """The connection ends here."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest
        """What still goes through."""


@dataclass(eq=False, slots=True)
class _Connection:
    link: FaultProxy
    client: socket.socket
    server: socket.socket
    passed: Counter[Direction] = field(default_factory=Counter)
    """Bytes since the last fault was applied."""
    is_torn: bool = False
    resets: bool = False
    _pumps: list[asyncio.Task[None]] = field(default_factory=list)

    async def carry(self) -> None:
        """Until both sides have ended, or one was lost."""
        async with asyncio.TaskGroup() as pumps:
            self._pumps = [
                pumps.create_task(self._pump(Direction.REQUESTS, self.client, self.server)),
                pumps.create_task(self._pump(Direction.ANSWERS, self.server, self.client)),
            ]

    async def _pump(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        try:
            await self._forward(direction, source, target)
        except OSError:
            # One side was reset or is gone: so that the other finds out the same way.
            self.end()

    async def _forward(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, _CHUNK_BYTES):
                await loop.sock_sendall(target, await self.link.pass_on(self, direction, data))
            await self.link.pass_on(self, direction, data)
            target.shutdown(socket.SHUT_WR)
        except _CutOff as cut:
            await loop.sock_sendall(target, cut.rest)
            self._stop()

    def end(self) -> None:
        """Reset both sides."""
        self.resets = True
        self._stop()

    def _stop(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    def close(self) -> None:
        for side in (self.client, self.server):
            if self.resets:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.close()

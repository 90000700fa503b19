"""Processes that reach one RabbitMQ, each through a link of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from rise.clock import SystemClock
from rise.connections.amqp import Address, AmqpChannel, AmqpConnection, Message
from rise.copies.rabbitmq import DURABLE, RabbitMirror
from rise.envelope import new_key
from rise.errors import RabbitUnavailable, Unavailable
from rise.testing.conformance.mirror import PATIENCE_SECONDS
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.servers import RabbitServer

T = TypeVar("T")


class Troubles(list[str | None]):
    """What a process was told of its RabbitMQ, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.more = asyncio.Event()

    def __call__(self, trouble: Unavailable | None) -> None:
        self.append(trouble and str(trouble))
        self.more.set()


class RabbitStage:
    def __init__(self, server: RabbitServer) -> None:
        self.server = server
        self.links: dict[RabbitMirror, FaultProxy] = {}
        self.troubles: dict[RabbitMirror, Troubles] = {}

    async def mirror(self, **how: Any) -> RabbitMirror:
        """Patient, so that nothing fails because the machine is slow."""
        link = FaultProxy(self.server.port)
        await link.__aenter__()
        troubles, patience = Troubles(), {"publish_seconds": PATIENCE_SECONDS, "answer_seconds": PATIENCE_SECONDS}
        url = f"amqp://guest:guest@127.0.0.1:{link.port}/"
        mirror = RabbitMirror(url, on_trouble=troubles, **{"clock": SystemClock(), **patience, **how})
        self.links[mirror], self.troubles[mirror] = link, troubles
        await mirror.start()
        return mirror

    async def kill(self, mirror: RabbitMirror) -> None:
        """The same to RabbitMQ: its connections are reset without a word."""
        link = self.links.pop(mirror)
        link.apply(LinkFault.reset())
        await mirror.stop()
        await link.__aexit__(None, None, None)

    async def well(self, mirror: RabbitMirror) -> None:
        """It has been told that there is no trouble (any more)."""
        await self._until(mirror, lambda troubles: not troubles or troubles[-1] is None)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await told(mirror.depth()):
                pass

    async def ill(self, mirror: RabbitMirror) -> None:
        await self._until(mirror, lambda troubles: bool(troubles) and troubles[-1] is not None)

    async def _until(self, mirror: RabbitMirror, is_so: Callable[[Troubles], bool]) -> None:
        troubles = self.troubles[mirror]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so(troubles):
                troubles.more.clear()
                await troubles.more.wait()

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[AmqpChannel]:
        """Somebody else who is connected to the same RabbitMQ."""
        address = Address.read(self.server.url)
        connection = await AmqpConnection.open(address, clock=SystemClock(), answer_seconds=PATIENCE_SECONDS)
        yield await connection.channel()
        await connection.close()

    def message(self, queue: str, body: bytes) -> Message:
        return Message(DURABLE, queue, body, new_key())

    async def end(self) -> None:
        for mirror in list(self.links):
            await self.kill(mirror)


async def told(asked: Awaitable[T]) -> T | bool:
    """What was answered, or True for nothing; False: that RabbitMQ is unavailable."""
    try:
        answer = await asked
    except RabbitUnavailable:
        await asyncio.sleep(0)
        return False
    return True if answer is None else answer


class RecordingClock(SystemClock):
    """Whoever sleeps wakes soon, and how long it meant to is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self._more = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._more.set()
        await super().sleep(seconds / 50)

    async def until_slept(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.slept) < count:
                self._more.clear()
                await self._more.wait()

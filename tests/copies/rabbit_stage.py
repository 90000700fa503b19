"""Processes that reach one RabbitMQ, each through a link of its own."""

from __future__ import annotations

from typing import Any

from rise.clock import SystemClock
from rise.copies.rabbitmq import RabbitMirror
from rise.errors import Unavailable
from rise.testing.conformance.mirror import PATIENCE_SECONDS
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.servers import RabbitServer


class Troubles(list[str | None]):
    """What a process was told of its RabbitMQ, in order."""

    def __call__(self, trouble: Unavailable | None) -> None:
        self.append(trouble and str(trouble))


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
        mirror = RabbitMirror(url, clock=SystemClock(), on_trouble=troubles, **{**patience, **how})
        self.links[mirror], self.troubles[mirror] = link, troubles
        await mirror.start()
        return mirror

    async def kill(self, mirror: RabbitMirror) -> None:
        """The same to RabbitMQ: its connections are reset without a word."""
        link = self.links.pop(mirror)
        link.apply(LinkFault.reset())
        await mirror.stop()
        await link.__aexit__(None, None, None)

    async def end(self) -> None:
        for mirror in list(self.links):
            await self.kill(mirror)

"""The servers of the full profile while one contender is measured: a Redis of its own, and a RabbitMQ without queues.

Redis syncs once a second, as most run it; a majority of one node confirms what is on its disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rise.clock import SystemClock
from rise.testing.bench.peers import QUEUE
from rise.testing.servers import RabbitServer, RedisServer


@dataclass(frozen=True, slots=True)
class Servers:
    redis: RedisServer
    rabbit: RabbitServer

    def settings(self) -> dict[str, object]:
        return {"redis_url": self.redis.url, "rabbitmq_url": self.rabbit.url}


@asynccontextmanager
async def servers_for_one(directory: Path, rabbit: RabbitServer) -> AsyncIterator[Servers]:
    """Empty ones. `rabbit` runs all the time, because it takes long to start."""
    (directory / "redis").mkdir()
    await _delete_queues(rabbit)
    with RedisServer(directory / "redis", appendfsync="everysec") as redis:
        yield Servers(redis, rabbit)


async def _delete_queues(rabbit: RabbitServer) -> None:
    # Here, because the embedded profile is measured where there is no client of a server.
    from pamqp import commands

    from rise.connections.amqp import Address, AmqpConnection
    from rise.copies.rabbitmq import DEAD, FRESH, PARKED

    connection = await AmqpConnection.open(Address.read(rabbit.url), clock=SystemClock(), answer_seconds=30.0)
    try:
        channel = await connection.channel()
        for queue in (FRESH, PARKED, DEAD, QUEUE):
            await channel.ask(commands.Queue.Delete(queue=queue))
    finally:
        await connection.close()

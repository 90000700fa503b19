"""Redis and RabbitMQ of an installation's own, and what befalls them while they are in use.

Promises: each server is started for the drill, in its directory, and is gone afterwards; whatever befell one is undone
when its block ends, except that what it held and lost stays lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rise.copies.rabbitmq import FRESH
from rise.queue.redis import GROUP, HINTS
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.faults.schedule import Link, Mishap
from rise.testing.servers import RabbitServer, RedisServer

_MEMORY_SHARE: Final = "0.4"
_DISK_BYTES: Final = "50000000"
"""What RabbitMQ has unless told otherwise."""
_NOWHERE: Final = ("127.0.0.1", "1")


class AppendFsync(StrEnum):
    """How much of what Redis was told it remembers when it is killed."""

    ALWAYS = "always"
    EVERYSEC = "everysec"
    NO = "no"
    OFF = "off"
    """Nothing at all: no append-only file."""

    @property
    def settings(self) -> dict[str, str]:
        return {"appendonly": "no"} if self is AppendFsync.OFF else {"appendfsync": self.value}


class Stores:
    """Both servers, and the links through which an installation reaches them."""

    def __init__(self, directory: Path, appendfsync: AppendFsync) -> None:
        places = {name: directory / name for name in ("redis", "rabbitmq")}
        for place in places.values():
            place.mkdir()
        self.redis = RedisServer(places["redis"], **appendfsync.settings)
        self.rabbit = RabbitServer(places["rabbitmq"])
        self._links = {Link.REDIS: FaultProxy(self.redis.port), Link.RABBIT: FaultProxy(self.rabbit.port)}

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(asyncio.to_thread(server.__enter__) for server in (self.redis, self.rabbit)))
        except BaseException:
            self._end_servers()
            raise
        for link in self._links.values():
            await link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links.values():
            await link.__aexit__(kind, error, trace)
        self._end_servers()

    def _end_servers(self) -> None:
        for server in (self.redis, self.rabbit):
            server.__exit__(None, None, None)

    @property
    def links(self) -> Mapping[Link, FaultProxy]:
        return self._links

    @property
    def settings(self) -> dict[str, object]:
        """Of the installation that is to use them."""
        redis, rabbit = self._links[Link.REDIS], self._links[Link.RABBIT]
        return {
            "redis_url": f"redis://127.0.0.1:{redis.port}/0",
            "rabbitmq_url": f"amqp://guest:guest@127.0.0.1:{rabbit.port}/",
        }

    @asynccontextmanager
    async def befall(self, mishap: Mishap) -> AsyncIterator[None]:
        """For the length of the block; it begins when it has happened, and ends when it is over."""
        await self._do(mishap)
        try:
            yield
        finally:
            await self._undo(mishap)

    async def _do(self, mishap: Mishap) -> None:
        match mishap:
            case Mishap.REDIS_KILLED:
                self.redis.kill()
            case Mishap.REDIS_FROZEN:
                self.redis.freeze()
            case Mishap.REDIS_EMPTIED:
                await self._tell_redis("FLUSHALL")
            case Mishap.REDIS_STREAM_DELETED:
                await self._tell_redis("DEL", HINTS)
            case Mishap.REDIS_GROUP_DESTROYED:
                await self._tell_redis("XGROUP", "DESTROY", HINTS, GROUP)
            case Mishap.REDIS_FULL:
                await self._tell_redis("CONFIG", "SET", "maxmemory", "1mb")
            case Mishap.REDIS_READ_ONLY:
                await self._tell_redis("REPLICAOF", *_NOWHERE)
            case Mishap.RABBIT_KILLED:
                self.rabbit.kill()
            case Mishap.RABBIT_FROZEN:
                self.rabbit.freeze()
            case Mishap.RABBIT_MEMORY_ALARM:
                await self._tell_rabbit("set_vm_memory_high_watermark", "0.00001")
            case Mishap.RABBIT_DISK_ALARM:
                await self._tell_rabbit("set_disk_free_limit", str(10**15))
            case Mishap.RABBIT_QUEUE_DELETED:
                await self._tell_rabbit("delete_queue", FRESH)
            case Mishap.BOTH_UNREACHABLE:
                for link in self._links.values():
                    link.apply(LinkFault.reset())

    async def _undo(self, mishap: Mishap) -> None:
        match mishap:
            case Mishap.REDIS_KILLED:
                await asyncio.to_thread(self.redis.start)
            case Mishap.REDIS_FROZEN:
                self.redis.thaw()
            case Mishap.REDIS_FULL:
                await self._tell_redis("CONFIG", "SET", "maxmemory", "0")
            case Mishap.REDIS_READ_ONLY:
                await self._tell_redis("REPLICAOF", "NO", "ONE")
            case Mishap.RABBIT_KILLED:
                await asyncio.to_thread(self.rabbit.start)
            case Mishap.RABBIT_FROZEN:
                self.rabbit.thaw()
            case Mishap.RABBIT_MEMORY_ALARM:
                await self._tell_rabbit("set_vm_memory_high_watermark", _MEMORY_SHARE)
            case Mishap.RABBIT_DISK_ALARM:
                await self._tell_rabbit("set_disk_free_limit", _DISK_BYTES)
            case Mishap.BOTH_UNREACHABLE:
                for link in self._links.values():
                    link.heal()
            case _:
                return  # what was taken away is made again by those who need it

    async def _tell_redis(self, *command: str) -> None:
        await asyncio.to_thread(self.redis.ask, *command)

    async def _tell_rabbit(self, *command: str) -> None:
        await asyncio.to_thread(self.rabbit.ctl, *command)

"""Redis, RabbitMQ and MongoDB of an installation's own, and what befalls them while they are in use.

Promises: each server is started for the drill, in its directory, and is gone afterwards; whatever befell one is undone
when its block ends, except that what it held and lost stays lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rise.copies.rabbitmq import FRESH
from rise.queue.redis import GROUP, HINTS
from rise.testing.faults.order import AppendFsync
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.faults.schedule import Link, Mishap
from rise.testing.servers import MongoServer, RabbitServer, RedisServer

_MEMORY_SHARE: Final = "0.4"
_DISK_BYTES: Final = "50000000"
"""What RabbitMQ has unless told otherwise."""
_NOWHERE: Final = ("127.0.0.1", "1")
_KEY: Final = "shared-by-all-gateways-of-a-drill"
"""With the ledger on a server, one that is made by each host for itself is said to be wrong."""


class Stores:
    """The servers, and the links through which an installation reaches them."""

    def __init__(self, directory: Path, appendfsync: AppendFsync, *, mongo: bool = False) -> None:
        places = {name: directory / name for name in ("redis", "rabbitmq", "mongodb")}
        for place in places.values():
            place.mkdir()
        self.redis = RedisServer(places["redis"], **appendfsync.settings)
        self.rabbit = RabbitServer(places["rabbitmq"])
        self._mongo = MongoServer(places["mongodb"]) if mongo else None
        self._links = {Link.REDIS: FaultProxy(self.redis.port), Link.RABBIT: FaultProxy(self.rabbit.port)}
        if self._mongo is not None:
            self._links[Link.MONGO] = FaultProxy(self._mongo.port)

    @property
    def mongo(self) -> MongoServer:
        assert self._mongo is not None, "a mishap of a server that this profile does not have"
        return self._mongo

    @property
    def _servers(self) -> list[RedisServer | RabbitServer | MongoServer]:
        return [self.redis, self.rabbit, *([] if self._mongo is None else [self._mongo])]

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(asyncio.to_thread(server.__enter__) for server in self._servers))
        except BaseException:  # border: those that run are ended, and it is passed on
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
        for server in self._servers:
            server.__exit__(None, None, None)

    @property
    def links(self) -> Mapping[Link, FaultProxy]:
        return self._links

    @property
    def settings(self) -> dict[str, object]:
        """Of the installation that is to use them."""
        redis, rabbit, mongo = (self._links.get(link) for link in (Link.REDIS, Link.RABBIT, Link.MONGO))
        assert redis is not None and rabbit is not None
        settings: dict[str, object] = {
            "redis_url": f"redis://127.0.0.1:{redis.port}/0",
            "rabbitmq_url": f"amqp://guest:guest@127.0.0.1:{rabbit.port}/",
        }
        if mongo is not None:
            # To this address alone: a server that told its own would be reached beside the link.
            settings["mongodb_url"] = f"mongodb://127.0.0.1:{mongo.port}/rise?directConnection=true"
            settings["secret_key"] = _KEY
        return settings

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
                for link in (Link.REDIS, Link.RABBIT):
                    self._links[link].apply(LinkFault.reset())
            case Mishap.MONGO_KILLED:
                self.mongo.kill()
            case Mishap.MONGO_FROZEN:
                self.mongo.freeze()
            case Mishap.MONGO_STOPPED:
                await asyncio.to_thread(self.mongo.stop)

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
                for link in (Link.REDIS, Link.RABBIT):
                    self._links[link].heal()
            case Mishap.MONGO_KILLED | Mishap.MONGO_STOPPED:
                await asyncio.to_thread(self.mongo.start)
            case Mishap.MONGO_FROZEN:
                self.mongo.thaw()
            case _:
                return  # what was taken away is made again by those who need it

    async def _tell_redis(self, *command: str) -> None:
        await asyncio.to_thread(self.redis.ask, *command)

    async def _tell_rabbit(self, *command: str) -> None:
        await asyncio.to_thread(self.rabbit.ctl, *command)

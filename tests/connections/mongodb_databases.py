"""Databases on MongoDB for tests: each in one of its own, by the test's clock, and with processes that die over it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.uri_parser import parse_uri

from rise.connections.mongodb import Document, Documents, Index, MongoDatabase, Query
from rise.errors import MongoUnavailable, RecordTooLarge
from rise.testing.clock import ManualClock

REAL_URL = os.environ.get("RISE_TEST_MONGODB_URL", "")
"""Of a real MongoDB, which is used beside the one that the suite starts."""
PATIENCE_SECONDS = 30.0
"""A busy machine's fsync may take long."""
D = TypeVar("D", bound="StagedDatabase")
T = TypeVar("T")
_INTERNAL_ERROR = 1
_databases = itertools.count(1)


class Died(BaseException):
    """The process, right after a write."""


class StagedDatabase(MongoDatabase):
    """One whose server's clock is moved by the test, for all who use it."""

    started_ms: int | None = None

    async def now_ms(self) -> int:
        heard_ms = await super().now_ms()
        return heard_ms if self.started_ms is None else self.started_ms + int(self._clock.monotonic() * 1000)


class PlainDatabase(StagedDatabase):
    """One that says so when something is too large. SecantusDB says of some writes only that they failed."""

    async def ask(self, name: str, work: Callable[[AsyncCollection[Document]], Awaitable[T]]) -> T:
        try:
            return await super().ask(name, work)
        except MongoUnavailable as error:
            if isinstance(error.__cause__, OperationFailure) and error.__cause__.code == _INTERNAL_ERROR:
                raise RecordTooLarge("over 16 MB") from error
            raise


class MortalDatabase(StagedDatabase):
    """One whose process ends after so many writes: what was written is there, and nothing else happens any more."""

    writes_left: int | None = None
    ending: type[BaseException] = Died

    def __getitem__(self, name: str) -> Documents:
        return _MortalDocuments(self, name)

    def count_write(self) -> None:
        if self.writes_left is None:
            return
        self.writes_left -= 1
        if self.writes_left <= 0:
            if self.ending is not Died:
                self.writes_left = None
            raise self.ending("the answer was lost")


class _MortalDocuments(Documents):
    async def insert(self, document: Document) -> bool:
        return self._counted(await super().insert(document))

    async def change(
        self, query: Query, update: Query, *, fields: Query | None = None, upsert: bool = False
    ) -> Document | None:
        return self._counted(await super().change(query, update, fields=fields, upsert=upsert))

    async def change_all(self, query: Query, update: Query) -> int:
        return self._counted(await super().change_all(query, update))

    async def remove(self, query: Query) -> int:
        return self._counted(await super().remove(query))

    def _counted(self, answer: Any) -> Any:
        assert isinstance(self._database, MortalDatabase)
        self._database.count_write()
        return answer


class SlowDatabase(StagedDatabase):
    """One whose process stops before one of its writes, with what it has read until then, and goes on when it may."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writes_left: int | None = None
        self.has_stopped = asyncio.Event()
        self.may_go_on = asyncio.Event()

    def __getitem__(self, name: str) -> Documents:
        return _SlowDocuments(self, name)

    async def wait_for_it(self) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left == 0:
                self.has_stopped.set()
                await self.may_go_on.wait()


class _SlowDocuments(Documents):
    _database: SlowDatabase

    async def insert(self, document: Document) -> bool:
        await self._database.wait_for_it()
        return await super().insert(document)

    async def change(
        self, query: Query, update: Query, *, fields: Query | None = None, upsert: bool = False
    ) -> Document | None:
        await self._database.wait_for_it()
        return await super().change(query, update, fields=fields, upsert=upsert)

    async def change_all(self, query: Query, update: Query) -> int:
        await self._database.wait_for_it()
        return await super().change_all(query, update)

    async def remove(self, query: Query) -> int:
        await self._database.wait_for_it()
        return await super().remove(query)


class MongoPlace:
    """A database that is empty at first, and as many processes' ways to it as are asked for."""

    indexes: Mapping[str, Sequence[Index]]

    def __init__(self, url: str) -> None:
        self.url = in_a_database_of_its_own(url)
        self.clock = ManualClock()
        self.databases: list[StagedDatabase] = []
        self._started_ms: int | None = None

    async def connect(self, kind: type[D]) -> D:
        database = kind(self.url, clock=self.clock, indexes=self.indexes, answer_seconds=PATIENCE_SECONDS)
        now_ms = await database.now_ms()
        if self._started_ms is None:
            self._started_ms = now_ms - int(self.clock.monotonic() * 1000)
        database.started_ms = self._started_ms
        self.databases.append(database)
        return database

    async def close(self) -> None:
        for database in self.databases:
            await database.close()
        with MongoClient(self.url) as client:
            client.drop_database(client.get_default_database().name)

    # --- as somebody else reads and writes it ---

    def read(self, collection: str, query: dict[str, Any]) -> dict[str, Any]:
        with MongoClient(self.url) as client:
            return client.get_default_database()[collection].find_one(query) or {}

    def keys(self, collection: str) -> list[Any]:
        with MongoClient(self.url) as client:
            return client.get_default_database()[collection].distinct("_id")

    def write(self, collection: str, key: str, fields: dict[str, Any]) -> None:
        with MongoClient(self.url) as client:
            client.get_default_database()[collection].update_one({"_id": key}, {"$set": fields})

    def take_away(self, collection: str, key: str, *fields: str) -> None:
        with MongoClient(self.url) as client:
            client.get_default_database()[collection].update_one({"_id": key}, {"$unset": dict.fromkeys(fields, "")})


def in_a_database_of_its_own(url: str) -> str:
    """The same server, another database."""
    name = parse_uri(url)["database"] or ""
    host, _, options = url.partition("?")
    host = host.removesuffix(f"/{name}").rstrip("/")
    return f"{host}/rise_test_{os.getpid()}_{next(_databases)}" + (f"?{options}" if options else "")

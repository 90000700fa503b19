"""A ledger on MongoDB in a database of its own, and processes that die over it."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from rise.connections.mongodb import Document, Documents, MongoDatabase, Query
from rise.envelope import ReplyId, RunId, TaskId
from rise.ledger.kept import HISTORY_KEPT
from rise.ledger.mongodb import INDEXES, MongoLedger
from rise.testing.clock import ManualClock

PATIENCE_SECONDS = 30.0
"""A busy machine's fsync may take long."""
_databases = itertools.count(1)


class Died(BaseException):
    """The process, right after a write."""


class StagedDatabase(MongoDatabase):
    """One whose server's clock is moved by the test, for all who use it."""

    started_ms: int | None = None

    async def now_ms(self) -> int:
        heard_ms = await super().now_ms()
        return heard_ms if self.started_ms is None else self.started_ms + int(self._clock.monotonic() * 1000)


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


class MongoStage:
    history_kept = HISTORY_KEPT
    ledger: MongoLedger

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = ManualClock()
        self.databases: list[StagedDatabase] = []
        self.started_ms: int | None = None

    async def open(self) -> MongoLedger:
        return MongoLedger(await self._database(StagedDatabase), self.clock)

    another = open

    async def mortal(self) -> tuple[MongoLedger, MortalDatabase]:
        database = await self._database(MortalDatabase)
        assert isinstance(database, MortalDatabase)
        return MongoLedger(database, self.clock), database

    async def _database(self, kind: type[StagedDatabase]) -> StagedDatabase:
        database = kind(self.url, clock=self.clock, indexes=INDEXES, answer_seconds=PATIENCE_SECONDS)
        now_ms = await database.now_ms()
        if self.started_ms is None:
            self.started_ms = now_ms - int(self.clock.monotonic() * 1000)
        database.started_ms = self.started_ms
        self.databases.append(database)
        return database

    async def close(self) -> None:
        for database in self.databases:
            await database.close()
        self.databases.clear()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def spoil_call(self, reply_id: ReplyId) -> None:
        run = self.read("runs", {"replies.reply_id": reply_id})
        place = [reply["reply_id"] for reply in run["replies"]].index(reply_id)
        self.write("runs", run["_id"], {f"replies.{place}.call": b'{"method":["of tomorrow"]}'})

    async def spoil_result(self, run_id: RunId) -> None:
        self.write("runs", run_id, {"result": b"\x89 of tomorrow"})

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        run = self.read("runs", {"task_id": task_id, "is_notice": False})
        said = {"kind": kind, "state": state}
        words = {f"replies.{n}.{name}": word for n in range(len(run["replies"])) for name, word in said.items()}
        self.write("runs", run["_id"], {"status": status, "outcome": outcome} | words)

    async def spoil_definition(self, workflow_id: str) -> None:
        kept = self.read("ledger", {"_id": "definitions"})
        for one in (*kept["workflows"], *kept["bindings"]):
            if one["workflow_id"] == workflow_id:
                one["record"] = b'{"version":[]}'
        self.write("ledger", "definitions", kept)

    # --- as somebody else reads and writes it ---

    def read(self, collection: str, query: dict[str, Any]) -> dict[str, Any]:
        with MongoClient(self.url) as client:
            return client.get_default_database()[collection].find_one(query) or {}

    def write(self, collection: str, key: str, fields: dict[str, Any]) -> None:
        with MongoClient(self.url) as client:
            client.get_default_database()[collection].update_one({"_id": key}, {"$set": fields})


async def staged(url: str) -> AsyncIterator[MongoStage]:
    stage = MongoStage(in_a_database_of_its_own(url))
    stage.ledger = await stage.open()
    yield stage
    await stage.close()
    with MongoClient(stage.url) as client:
        client.drop_database(client.get_default_database().name)


def in_a_database_of_its_own(url: str) -> str:
    """The same server, another database."""
    name = parse_uri(url)["database"] or ""
    host, _, options = url.partition("?")
    host = host.removesuffix(f"/{name}").rstrip("/")
    return f"{host}/rise_test_{os.getpid()}_{next(_databases)}" + (f"?{options}" if options else "")

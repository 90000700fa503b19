"""The ledger on MongoDB keeps every promise of the port, on a server that speaks its protocol and on a real one."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from rise.connections.mongodb import MongoDatabase
from rise.envelope import ReplyId, RunId, TaskId
from rise.ledger.mongodb import HISTORY_KEPT, INDEXES, MongoLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import LedgerConformance
from rise.testing.servers import MongoServer

REAL_URL = os.environ.get("RISE_TEST_MONGODB_URL", "")
"""Of a real MongoDB, which is used beside the one that the suite starts."""
PATIENCE_SECONDS = 30.0
"""A busy machine's fsync may take long."""
_databases = itertools.count(1)


class MongoStage:
    history_kept = HISTORY_KEPT

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = ManualClock()
        self.databases: list[MongoDatabase] = []

    async def open(self) -> MongoLedger:
        # Looked at once: the server's clock is not moved by `pass_time`, only what is counted on from there.
        database = MongoDatabase(
            self.url, clock=self.clock, indexes=INDEXES, answer_seconds=PATIENCE_SECONDS, checked_seconds=1e9
        )
        await database.open()
        self.databases.append(database)
        return MongoLedger(database, self.clock)

    another = open

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
        words = {
            f"replies.{n}.{name}": word
            for n in range(len(run["replies"]))
            for name, word in (("kind", kind), ("state", state))
        }
        self.write("runs", run["_id"], {"status": status, "outcome": outcome} | words)

    async def spoil_definition(self, workflow_id: str) -> None:
        kept = self.read("ledger", {"_id": "definitions"})
        for one in (*kept["workflows"], *kept["bindings"]):
            if one["workflow_id"] == workflow_id:
                one["record"] = b'{"version":[]}'
        self.write("ledger", "definitions", kept)

    # --- as somebody else writes to it ---

    def read(self, collection: str, query: dict[str, Any]) -> dict[str, Any]:
        with MongoClient(self.url) as client:
            return client.get_default_database()[collection].find_one(query) or {}

    def write(self, collection: str, key: str, fields: dict[str, Any]) -> None:
        with MongoClient(self.url) as client:
            client.get_default_database()[collection].update_one({"_id": key}, {"$set": fields})


def in_a_database_of_its_own(url: str) -> str:
    """The same server, another database."""
    name = parse_uri(url)["database"] or ""
    host, _, options = url.partition("?")
    host = host.removesuffix(f"/{name}").rstrip("/")
    return f"{host}/rise_test_{os.getpid()}_{next(_databases)}" + (f"?{options}" if options else "")


async def staged(url: str) -> AsyncIterator[MongoStage]:
    stage = MongoStage(in_a_database_of_its_own(url))
    stage.ledger = await stage.open()
    yield stage
    await stage.close()
    with MongoClient(stage.url) as client:
        client.drop_database(client.get_default_database().name)


@pytest.mark.req("TST-3", "CPY-6")
class TestMongoLedger(LedgerConformance):
    @pytest.fixture
    async def stage(self, running_mongodb: MongoServer) -> AsyncIterator[MongoStage]:
        async for stage in staged(running_mongodb.url):
            yield stage


if REAL_URL:

    @pytest.mark.req("TST-3", "CPY-6")
    class TestRealMongoLedger(LedgerConformance):
        @pytest.fixture
        async def stage(self) -> AsyncIterator[MongoStage]:
            async for stage in staged(REAL_URL):
                yield stage

"""A ledger on MongoDB in a database of its own, and processes that die over it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mongodb_databases import MongoPlace, MortalDatabase, SlowDatabase, StagedDatabase

from rise.envelope import ReplyId, RunId, TaskId
from rise.ledger.kept import HISTORY_KEPT
from rise.ledger.mongodb import INDEXES, MongoLedger


class MongoStage(MongoPlace):
    indexes = INDEXES
    history_kept = HISTORY_KEPT
    ledger: MongoLedger

    async def open(self) -> MongoLedger:
        return MongoLedger(await self.connect(StagedDatabase), self.clock)

    another = open

    async def mortal(self) -> tuple[MongoLedger, MortalDatabase]:
        database = await self.connect(MortalDatabase)
        return MongoLedger(database, self.clock), database

    async def slow(self) -> tuple[MongoLedger, SlowDatabase]:
        database = await self.connect(SlowDatabase)
        return MongoLedger(database, self.clock), database

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def spoil_call(self, reply_id: ReplyId) -> None:
        run = self.read("runs", {"replies.reply_id": reply_id})
        place = [reply["reply_id"] for reply in run["replies"]].index(reply_id)
        self.write("runs", run["_id"], {f"replies.{place}.call": b'{"method":["of tomorrow"]}'})

    async def spoil_result(self, run_id: RunId) -> None:
        self.write("runs", run_id, {"result": b"\x89 of tomorrow"})

    async def spoil_head(self, run_id: RunId) -> None:
        self.write("runs", run_id, {"head": b'{"schema":"of tomorrow"}'})

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        run = self.read("runs", {"task_id": task_id, "is_notice": False})
        said = {"kind": kind, "state": state}
        words = {f"replies.{n}.{name}": word for n in range(len(run.get("replies", ()))) for name, word in said.items()}
        self.write("runs", run["_id"], {"status": status, "outcome": outcome} | words)


async def staged(url: str) -> AsyncIterator[MongoStage]:
    stage = MongoStage(url)
    stage.ledger = await stage.open()
    yield stage
    await stage.close()

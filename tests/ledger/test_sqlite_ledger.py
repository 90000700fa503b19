"""The embedded ledger keeps every promise of the port, on a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from rise.connections.sqlite import Database
from rise.envelope import ReplyId, RunId, TaskId
from rise.ledger.kept import ATTEMPTS_KEPT, HISTORY_KEPT
from rise.ledger.port import Attempt
from rise.ledger.sqlite import SCHEMA, SqliteLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import LedgerConformance, task


class SqliteStage:
    history_kept = HISTORY_KEPT

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.path = path
        self.databases: list[Database] = []

    async def open(self) -> SqliteLedger:
        database = Database(self.path, clock=self.clock, schema={"ledger": SCHEMA})
        await database.open()
        self.databases.append(database)
        return SqliteLedger(database)

    another = open

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def spoil_call(self, reply_id: ReplyId) -> None:
        await self._write("UPDATE replies SET call = ? WHERE reply_id = ?", b'{"method":["of tomorrow"]}', reply_id)

    async def spoil_result(self, run_id: RunId) -> None:
        await self._write("UPDATE runs SET result = ? WHERE run_id = ?", b"\x89 of tomorrow", run_id)

    async def spoil_head(self, run_id: RunId) -> None:
        await self._write("UPDATE runs SET head = ? WHERE run_id = ?", b'{"schema":"of tomorrow"}', run_id)

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        await self._write("UPDATE replies SET kind = ?, state = ? WHERE task_id = ?", kind, state, task_id)
        await self._write("UPDATE runs SET status = ?, outcome = ? WHERE task_id = ?", status, outcome, task_id)

    async def _write(self, sql: str, *values: object) -> None:
        await self.databases[0].write(lambda connection: list(connection.execute(sql, values)))


@pytest.mark.req("TST-3", "EMB-2")
class TestSqliteLedger(LedgerConformance):
    @pytest.fixture
    async def stage(self, tmp_path: Path) -> AsyncIterator[SqliteStage]:
        stage = SqliteStage(tmp_path / "rise.db")
        stage.ledger = await stage.open()
        yield stage
        for database in stage.databases:
            await database.close()


@pytest.mark.failure("A13")
async def test_what_an_older_version_knew_of_chats_that_had_moved_makes_them_one(tmp_path: Path):
    older = Database(tmp_path / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA[:2]})
    await older.open()
    said = "INSERT INTO history (channel, account, chat_id, role, text, at) VALUES ('telegram', '7', ?, 'user', ?, 1)"

    def remember(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO chat_aliases VALUES ('telegram', '7', 'old', 'new')")
        for chat, text in (("old", "one"), ("new", "two"), ("other", "three")):
            connection.execute(said, (chat, text))

    await older.write(remember)
    await older.close()
    database = Database(tmp_path / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA})
    await database.open()
    ledger = SqliteLedger(database)
    assert [(move.chat_id, move.first_id) for move in await ledger.chat_moves()] == [("new", "old")]
    for chat in ("old", "new"):
        assert [turn.text for turn in await ledger.history("telegram", "7", chat, limit=9)] == ["one", "two"]
    assert len(await ledger.history("telegram", "7", "other", limit=9)) == 1
    await database.close()


@pytest.mark.req("SUS-3")
async def test_the_tries_that_an_older_version_noted_are_counted(tmp_path: Path):
    older = Database(tmp_path / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA[:6]})
    await older.open()
    noted = [(task(number).run_id, at) for at in range(1, ATTEMPTS_KEPT + 6) for number in (1, 2)][:-1]
    await older.write(lambda connection: connection.executemany("INSERT INTO attempts VALUES (?, ?, 'no', 1)", noted))
    await older.close()
    database = Database(tmp_path / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA})
    await database.open()
    ledger = SqliteLedger(database)
    for number, count in ((1, ATTEMPTS_KEPT + 5), (2, ATTEMPTS_KEPT + 4)):
        for more in (0, 1):
            kept = await ledger.attempts(task(number).run_id)
            assert [one.number for one in kept] == [*range(count + more - ATTEMPTS_KEPT + 1, count + more + 1)]
            assert (kept[0].at_ms, len(kept)) == (kept[0].number, ATTEMPTS_KEPT)
            await ledger.add_attempt(task(number).run_id, Attempt(at_ms=count + 1, error="no", counted=True))
    await database.close()

"""SQLite without threads keeps the same promises, so that what holds on it holds on the file."""

from __future__ import annotations

import apsw
import pytest

from rise.envelope import ReplyId, RunId, TaskId
from rise.errors import StoreUnavailable
from rise.ledger.kept import HISTORY_KEPT
from rise.ledger.sqlite import SCHEMA, SqliteLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import LedgerConformance
from rise.testing.simulator.database import InlineDatabase, memory_disk

NOTES = ("CREATE TABLE notes (number INTEGER PRIMARY KEY)",)


class InlineStage:
    history_kept = HISTORY_KEPT

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.disk = memory_disk()

    async def open(self) -> SqliteLedger:
        self.database = InlineDatabase(self.disk, clock=self.clock, schema={"ledger": SCHEMA})
        await self.database.open()
        return SqliteLedger(self.database)

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
        await self.database.write(lambda connection: list(connection.execute(sql, values)))


@pytest.mark.req("TST-3", "EMB-2")
class TestSqliteLedgerInline(LedgerConformance):
    @pytest.fixture
    async def stage(self) -> InlineStage:
        stage = InlineStage()
        stage.ledger = await stage.open()
        return stage


async def opened(disk: apsw.Connection, clock: ManualClock | None = None) -> InlineDatabase:
    database = InlineDatabase(disk, clock=clock or ManualClock(), schema={"notes": NOTES})
    await database.open()
    return database


async def note(database: InlineDatabase, number: int) -> None:
    await database.write(lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (number,)) and None)


async def notes(database: InlineDatabase) -> list[int]:
    return await database.read(lambda connection: [number for (number,) in connection.execute("SELECT * FROM notes")])


async def test_what_one_process_writes_all_others_read_even_those_that_start_later():
    disk = memory_disk()
    one, other = await opened(disk), await opened(disk)
    await note(one, 1)
    assert await notes(other) == [1]
    await one.close()
    await other.close()
    assert await notes(await opened(disk)) == [1]


async def test_a_change_that_raises_changes_nothing():
    database = await opened(memory_disk())

    def half(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (1)")
        connection.execute("INSERT INTO notes VALUES (1)")

    with pytest.raises(apsw.ConstraintError):
        await database.write(half)
    assert await notes(database) == []
    await note(database, 2)
    assert await notes(database) == [2]


async def test_a_vendors_error_becomes_ours():
    database = await opened(memory_disk())

    def fails(connection: apsw.Connection) -> None:
        raise apsw.FullError("database or disk is full")

    for work in (database.write, database.read):
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await work(fails)


async def test_a_handle_that_is_not_open_does_not_answer():
    database = InlineDatabase(memory_disk(), clock=ManualClock(), schema={"notes": NOTES})
    with pytest.raises(StoreUnavailable):
        await note(database, 1)
    await database.open()
    await database.close()
    with pytest.raises(StoreUnavailable):
        await notes(database)


async def test_after_a_reboot_the_stores_clock_goes_on():
    disk, clock = memory_disk(), ManualClock()
    database = await opened(disk, clock)
    clock.advance(120)
    await note(database, 1)
    before = database.now_ms()
    clock.reboot()
    clock.step_wall(-86_400)
    assert (await opened(disk, clock)).now_ms() >= before

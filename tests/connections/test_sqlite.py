"""What the embedded store promises of its file, on real files, disks and processes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from disks import faulty_disk, remount, small_disk
from sqlite_child import SCHEMA

from rise.clock import SystemClock
from rise.connections import sqlite as sqlite_connection
from rise.connections.sqlite import Database, sqlite_errors
from rise.errors import StoreCorrupt, StoreUnavailable
from rise.testing.clock import ManualClock

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
CHILD = Path(__file__).with_name("sqlite_child.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rise.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = await opened(path)
    yield database
    await database.close()


async def opened(path: Path, schema=SCHEMA) -> Database:
    database = Database(path, clock=ManualClock(), schema=schema)
    try:
        await database.open()
    except BaseException:
        await database.close()
        raise
    return database


async def test_who_opens_what_others_write_to_writes_nothing(path: Path, database: Database):
    """Nor syncs: those who write would wait for it."""
    await note(database, 1)
    wal = path.with_name("rise.db-wal")
    before = wal.stat().st_size
    for _ in range(3):
        await (await opened(path)).close()
    assert wal.stat().st_size == before > 0


async def note(database: Database, number: int, writer: str = "test") -> None:
    def change(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES (?,?)", (writer, number))

    await database.write(change)


@pytest.mark.req("SEC-4")
async def test_what_is_made_in_a_directory_of_everybodys_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    former = os.umask(0o022)
    try:
        database = await opened(tmp_path / "rise.db")
        await note(database, 1)
        await database.backup_to(tmp_path / "copy.db")
        made = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
        await database.close()
    finally:
        os.umask(former)
    assert made == dict.fromkeys(("rise.db", "rise.db-wal", "rise.db-shm", "copy.db"), "0o600")


async def noted(database: Database, writer: str = "test") -> list[int]:
    return await database.read(
        lambda connection: [
            number
            for (number,) in connection.execute("SELECT number FROM notes WHERE writer = ? ORDER BY 1", (writer,))
        ]
    )


async def noted_in(path: Path, writer: str = "test") -> list[int]:
    database = await opened(path)
    try:
        return await noted(database, writer)
    finally:
        await database.close()


class Gate:
    """A change that keeps the writer busy until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection: apsw.Connection) -> None:
        self.reached.set()
        assert self.opened.wait(10)


@contextmanager
def child(what: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, CHILD, what, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- changes and their commits ----------------------------------------------------------------------------


@pytest.mark.req("CPY-2")
async def test_changes_that_wait_together_share_one_commit(database: Database):
    commits = []
    gate = Gate()

    def count_commits(connection: apsw.Connection) -> None:
        connection.set_commit_hook(lambda: bool(commits.append(1)))
        connection.execute("INSERT INTO notes VALUES ('counter', 0)")

    await database.write(count_commits)
    commits.clear()
    busy = asyncio.gather(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    waiting = asyncio.gather(*(note(database, number) for number in range(200)))
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(busy, waiting)
    assert len(commits) == 2, "one for what kept the writer busy, one for all the rest"
    assert await noted(database) == list(range(200))


async def test_a_change_that_fails_is_undone_alone(database: Database):
    def fails(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES ('test', 1000)")
        raise ValueError("mine")

    gate = Gate()
    busy = asyncio.gather(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    together = asyncio.gather(
        note(database, 1),
        database.write(fails),
        note(database, 1),  # violates the key
        note(database, 2),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    gate.opened.set()
    await busy
    results = await together
    assert [type(result) for result in results] == [type(None), ValueError, apsw.ConstraintError, type(None)]
    assert await noted(database) == [1, 2]


@pytest.mark.failure("A20")
async def test_a_caller_that_hangs_up_harms_nobody_and_its_change_is_made(database: Database):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    gate = Gate()
    busy = asyncio.gather(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    hung_up = asyncio.gather(note(database, 1))
    other = asyncio.gather(note(database, 2))
    await asyncio.sleep(0)
    hung_up.cancel()
    gate.opened.set()
    await asyncio.gather(busy, other)
    with pytest.raises(asyncio.CancelledError):
        await hung_up
    assert await noted(database) == [1, 2]
    assert complaints == []


async def test_reading_sees_only_what_is_committed(database: Database):
    await note(database, 1)
    gate = Gate()

    def half_done(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes VALUES ('test', 2)")
        gate(connection)

    busy = asyncio.gather(database.write(half_done))
    await asyncio.to_thread(gate.reached.wait, 10)
    assert await noted(database) == [1]
    gate.opened.set()
    await busy
    assert await noted(database) == [1, 2]


async def test_closing_writes_what_was_handed_in_and_refuses_the_rest(path: Path):
    database = await opened(path)
    gate = Gate()
    busy = asyncio.gather(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    before = asyncio.gather(*(note(database, number) for number in range(5)))
    closing = asyncio.gather(database.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await note(database, 99)
    gate.opened.set()
    await asyncio.gather(busy, before, closing)
    await database.close()
    with pytest.raises(StoreUnavailable):
        await note(database, 99)
    with pytest.raises(StoreUnavailable):
        await noted(database)
    assert await noted_in(path) == list(range(5))


async def test_a_mistake_of_ours_in_a_query_is_not_taken_for_a_broken_store(database: Database):
    def mistaken(connection: apsw.Connection) -> None:
        raise RecursionError("mine")

    with pytest.raises(RecursionError):
        await database.read(mistaken)
    with pytest.raises(RecursionError):
        await database.write(mistaken)
    await note(database, 1)
    assert await noted(database) == [1]


def test_every_sqlite_error_is_translated_or_ours():
    """A new version of apsw with a new error makes somebody decide."""
    classes = {value for value in vars(apsw).values() if isinstance(value, type) and issubclass(value, apsw.Error)}
    let_through = set()
    for error_class in classes:
        try:
            with sqlite_errors():
                raise error_class("x")
        except StoreUnavailable as error:
            assert isinstance(error.__cause__, error_class)
        except apsw.Error:
            let_through.add(error_class.__name__)
    # Mistakes in our statements or our use of apsw. Waiting mends none of them.
    assert let_through == {
        "AbortError", "BindingsError", "ConnectionNotClosedError", "ConstraintError", "CursorClosedError",
        "EmptyError", "Error", "ExecTraceAbort", "ExecutionCompleteError", "ExtensionLoadingError",
        "ForkingViolationError", "FormatError", "IncompleteExecutionError", "InternalError", "InvalidContextError",
        "MismatchError", "MisuseError", "NoFTS5Error", "NotFoundError", "RangeError", "SQLError",
        "SchemaChangeError", "ThreadingViolationError", "TooBigError", "VFSFileClosedError", "VFSNotImplementedError",
    }  # fmt: skip


# --- the disk ---------------------------------------------------------------------------------------------


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5")
@NEEDS_ROOT
async def test_a_full_disk_refuses_and_works_again_when_there_is_room(tmp_path: Path):
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        database = await opened(disk / "rise.db", {"big": ["CREATE TABLE big (number INTEGER, body BLOB)"]})

        async def add(number: int) -> None:
            await database.write(
                lambda connection: connection.execute("INSERT INTO big VALUES (?, zeroblob(20000))", (number,)) and None
            )

        async def kept() -> list[int]:
            rows = await database.read(lambda connection: list(connection.execute("SELECT number FROM big ORDER BY 1")))
            return [number for (number,) in rows]

        acknowledged = []
        with pytest.raises(StoreUnavailable, match="full"):
            for number in range(1000):
                await add(number)
                acknowledged.append(number)
        assert 10 < len(acknowledged) < 1000
        with pytest.raises(StoreUnavailable):
            await add(1000)
        assert await kept() == acknowledged
        ballast.unlink()
        await add(2000)
        assert await kept() == [*acknowledged, 2000]
        await database.close()


@pytest.mark.failure("C5")
async def test_a_full_database_refuses_and_keeps_what_it_has(database: Database):
    await note(database, 1)
    await database.write(lambda connection: connection.execute("PRAGMA max_page_count=12").fetchall() and None)

    def too_much(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE big (body BLOB)")
        connection.execute("INSERT INTO big VALUES (zeroblob(1000000))")

    with pytest.raises(StoreUnavailable, match="full"):
        await database.write(too_much)
    await note(database, 2)
    assert await noted(database) == [1, 2]


@pytest.mark.failure("L9")
@NEEDS_ROOT
async def test_a_read_only_disk_refuses_and_works_again_when_it_is_writable(tmp_path: Path):
    with small_disk(tmp_path / "disk") as disk:
        await (await opened(disk / "rise.db")).close()
        remount(disk, "ro")
        database = Database(disk / "rise.db", clock=ManualClock(), schema=SCHEMA)
        with pytest.raises(StoreUnavailable):
            await database.open()
        with pytest.raises(StoreUnavailable):
            await note(database, 1)
        remount(disk, "rw")
        await note(database, 2)
        assert await noted(database) == [2]
        await database.close()


async def test_a_directory_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(StoreUnavailable):
        await opened(tmp_path / "missing" / "rise.db")


@pytest.mark.req("CAP-3")
async def test_every_refusal_names_the_capability_that_the_database_is(tmp_path: Path):
    nowhere = Database(tmp_path / "nowhere" / "rise.db", clock=ManualClock(), schema=SCHEMA, capability="ledger")
    unopened = Database(tmp_path / "rise.db", clock=ManualClock(), schema=SCHEMA, capability="ledger")

    async def time_of(database: Database) -> None:
        database.now_ms()

    asked = [nowhere.open(), noted(nowhere), note(nowhere, 1), time_of(nowhere), nowhere.compact()]
    asked += [noted(unopened), note(unopened, 1), time_of(unopened), unopened.compact()]
    refusals = await asyncio.gather(*asked, return_exceptions=True)
    await nowhere.close()
    await unopened.close()
    refusals += await asyncio.gather(noted(nowhere), note(nowhere, 1), nowhere.compact(), return_exceptions=True)
    assert {type(error) for error in refusals} == {StoreUnavailable}
    assert {error.capability for error in refusals} == {"ledger"}


@pytest.mark.failure("C9")
@pytest.mark.parametrize("where", ["header", "all"])
async def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, where: str):
    database = await opened(path)
    await note(database, 1)
    await database.close()
    damaged = bytearray(path.read_bytes())
    damaged[: 16 if where == "header" else None] = b"\xa5" * (16 if where == "header" else len(damaged))
    path.write_bytes(damaged)
    with pytest.raises(StoreCorrupt, match="backup"):
        await opened(path)
    assert path.read_bytes() == damaged


@pytest.mark.failure("C9")
async def test_damage_in_the_middle_is_refused_where_it_is_met(path: Path):
    database = await opened(path)
    await asyncio.gather(*(note(database, number) for number in range(5000)))
    await database.close()
    damaged = bytearray(path.read_bytes())
    for page in range(10, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(damaged)
    database = await opened(path)
    with pytest.raises(StoreCorrupt):
        await noted(database)
    with pytest.raises(StoreCorrupt):
        await note(database, 5000)
    await database.close()


@pytest.mark.failure("C10")
async def test_a_file_that_vanishes_is_noticed_and_not_made_anew_in_silence(path: Path, tmp_path: Path):
    database = await opened(path)
    await note(database, 1)
    path.rename(tmp_path / "aside.db")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            await note(database, 2)
    assert not path.exists()
    (tmp_path / "aside.db").rename(path)
    await note(database, 3)
    assert await noted(database) == [1, 3]
    await database.close()


@pytest.mark.failure("C10", "M7")
async def test_a_file_that_is_replaced_is_not_written_to(path: Path, tmp_path: Path):
    await (await opened(tmp_path / "other.db")).close()
    database = await opened(path)
    await note(database, 1)
    other = (tmp_path / "other.db").read_bytes()
    (tmp_path / "other.db").replace(path)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            await note(database, 2)
    assert path.read_bytes() == other
    await database.close()


@pytest.mark.failure("C6")
async def test_after_a_failed_sync_the_log_is_folded_into_the_file_before_anything_is_promised(
    path: Path, tmp_path: Path
):
    """A second fsync of the same file would succeed without the pages having reached the disk."""
    with faulty_disk(tmp_path / "durable") as disk:
        database = await opened(path)
        await note(database, 1)
        assert await noted(database) == [1], "with a reader, closing the writer does not fold the log by itself"
        disk.events.clear()
        disk.sync_failures = 1
        with pytest.raises(StoreUnavailable):
            await note(database, 2)
        assert disk.events == ["rise.db-wal failed"]
        await note(database, 3)
        assert "rise.db synced" in disk.events
        assert disk.events.index("rise.db synced") < len(disk.events) - 1
        assert disk.events[-1] == "rise.db-wal synced"
        assert {1, 3} <= set(await noted(database))
        await database.close()


@pytest.mark.req("CPY-2", "CPY-7")
@pytest.mark.failure("C7", "L14")
@pytest.mark.parametrize("seed", range(8))
async def test_a_power_cut_takes_nothing_that_was_acknowledged(tmp_path: Path, seed: int):
    dice = random.Random(seed)
    (tmp_path / "data").mkdir()
    with faulty_disk(tmp_path / "durable") as disk:
        database = await opened(tmp_path / "data" / "rise.db")
        # Small pages of the log, so that it is folded into the file in between.
        await database.write(lambda connection: connection.execute("PRAGMA wal_autocheckpoint=10").fetchall() and None)
        number = 0
        for _ in range(dice.randrange(5, 40)):
            batch = range(number, number + dice.randrange(1, 6))
            await asyncio.gather(*(note(database, each) for each in batch))
            number = batch.stop
        # The cut comes while another commit is written and not yet acknowledged.
        disk.sync_failures = dice.randrange(2)
        unacknowledged = await asyncio.gather(note(database, number), return_exceptions=True)
        sure = number + (unacknowledged == [None])
        disk.after_power_cut(tmp_path / "data", tmp_path / "after", dice)
        await database.close()
    kept = await noted_in(tmp_path / "after" / "rise.db")
    assert kept[:sure] == list(range(sure))
    assert kept == list(range(len(kept)))


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C7")
@pytest.mark.parametrize("seed", range(8))
async def test_a_torn_log_costs_only_what_was_behind_the_tear(path: Path, tmp_path: Path, seed: int):
    dice = random.Random(seed)
    database = await opened(path)
    for number in range(10):
        await note(database, number)
    wal = path.with_name("rise.db-wal")
    sure = wal.stat().st_size
    for number in range(10, 20):
        await note(database, number)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path, copy)
    torn = bytearray(wal.read_bytes())
    if seed % 2:
        del torn[dice.randrange(sure, len(torn)) :]
    else:
        torn[dice.randrange(sure, len(torn))] ^= 0xFF
    (copy / "rise.db-wal").write_bytes(torn)
    await database.close()
    kept = await noted_in(copy / "rise.db")
    assert kept == list(range(len(kept)))
    assert 10 <= len(kept) < 20


# --- other processes --------------------------------------------------------------------------------------


@pytest.mark.req("CPY-2", "CPY-7")
@pytest.mark.failure("C1", "C4", "L4")
async def test_whatever_was_acknowledged_is_there_after_kill_9(path: Path):
    acknowledged: set[int] = set()
    for kill in range(4):
        with child("write_for_ever", path, f"writer{kill}") as process:
            assert process.stdout is not None
            for _ in range(20 + 33 * kill):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            lines = process.communicate()[0].split()
        acknowledged = {int(line) for line in lines}
        kept = await noted_in(path, f"writer{kill}")
        assert acknowledged <= set(kept)
        assert len(kept) >= 20


async def test_two_processes_write_at_once(path: Path):
    database = await opened(path)
    with child("write_some", path, "a", 150) as one, child("write_some", path, "b", 150) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for number in range(50):
            await note(database, number)
        for process in (one, two):
            await asyncio.to_thread(process.communicate)
            assert process.returncode == 0
    assert [len(await noted(database, writer)) for writer in ("test", "a", "b")] == [50, 150, 150]
    await database.close()


@pytest.mark.failure("C8")
async def test_a_lock_held_by_another_process_is_waited_for_briefly_each_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.2)
    database = await opened(path)
    await note(database, 1)
    with child("hold_the_lock", path) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "locked\n"
        for _ in range(3):
            began = SystemClock().monotonic()
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                await note(database, 2)
            assert SystemClock().monotonic() - began < 0.2 * 2
        assert await noted(database) == [1], "reading goes on"
        process.stdin.write("release\n")
        process.stdin.flush()
        assert process.stdout.readline() == "released\n"
    await note(database, 3)
    assert await noted(database) == [1, 3]
    await database.close()


# --- versions ---------------------------------------------------------------------------------------------

NEWER = {"notes": [*SCHEMA["notes"], "ALTER TABLE notes ADD COLUMN more TEXT"]}


async def version_in(path: Path) -> int:
    connection = apsw.Connection(str(path))
    version = connection.execute("SELECT version FROM schema_versions WHERE part = 'notes'").fetchone()[0]
    connection.close()
    return version


async def test_an_older_file_is_migrated(path: Path):
    await (await opened(path)).close()
    database = await opened(path, NEWER)
    await database.write(lambda connection: connection.execute("INSERT INTO notes VALUES ('a', 1, 'x')") and None)
    await database.close()
    assert await version_in(path) == 2


@pytest.mark.failure("M3", "M4")
async def test_a_newer_file_is_refused_and_left_as_it_is(path: Path):
    await (await opened(path, NEWER)).close()
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="newer Rise"):
        await opened(path)
    assert path.read_bytes() == before
    await (await opened(path, NEWER)).close()


@pytest.mark.failure("M3")
async def test_a_migration_that_fails_half_way_changes_nothing(path: Path):
    database = await opened(path)
    await note(database, 1)
    await database.close()
    broken = {"notes": [*NEWER["notes"], "DELETE FROM notes; SELECT * FROM nowhere"]}
    with pytest.raises(apsw.SQLError):
        await opened(path, broken)
    assert await version_in(path) == 1
    assert await noted_in(path) == [1]


@pytest.mark.failure("M3")
async def test_a_process_killed_while_migrating_changes_nothing(path: Path):
    database = await opened(path)
    await note(database, 1)
    await database.close()
    with child("die_while_migrating", path) as process:
        assert process.wait(20) == -signal.SIGKILL
    assert await version_in(path) == 1
    assert await noted_in(path) == [1]


async def test_a_backup_is_complete_and_stands_alone(database: Database, tmp_path: Path):
    await asyncio.gather(*(note(database, number) for number in range(500)))
    writing = asyncio.gather(*(note(database, number) for number in range(500, 900)))
    await database.backup_to(tmp_path / "copy.db")
    await writing
    assert sorted(file.name for file in tmp_path.glob("copy.db*")) == ["copy.db"]
    kept = await noted_in(tmp_path / "copy.db")
    assert kept == list(range(len(kept)))
    assert len(kept) >= 500


# --- the store's clock ------------------------------------------------------------------------------------


@pytest.mark.failure("L1", "D17")
async def test_all_processes_agree_on_the_time_whatever_their_wall_clocks_say(path: Path):
    here, there = ManualClock(), ManualClock()
    there.step_wall(3600)
    first, second = (Database(path, clock=clock, schema=SCHEMA) for clock in (here, there))
    await first.open()
    await second.open()
    assert first.now_ms() == second.now_ms()
    here.step_wall(-86_400)
    assert first.now_ms() == second.now_ms()
    here.advance(10)
    assert first.now_ms() == second.now_ms() + 10_000
    await first.close()
    await second.close()


async def test_a_database_that_was_never_opened_says_so(path: Path):
    database = Database(path, clock=ManualClock(), schema=SCHEMA)
    for call in (lambda: note(database, 1), lambda: noted(database)):
        with pytest.raises(StoreUnavailable):
            await call()
    with pytest.raises(StoreUnavailable):
        database.now_ms()
    await database.close()


# --- what was deleted -------------------------------------------------------------------------------------


@pytest.mark.req("SEC-5")
async def test_of_what_was_deleted_nothing_is_left_in_a_file_written_anew(path: Path, database: Database):
    another = await opened(path)
    for number in range(300):
        await note(database, number, f"keep {number}" if number % 3 else f"canary {'.' * (number * 20)}")
    await database.write(lambda connection: list(connection.execute("DELETE FROM notes WHERE writer LIKE 'canary%'")))
    assert await database.compact()
    assert path.read_bytes().count(b"canary") == 0
    assert Path(f"{path}-wal").read_bytes() == b""
    await note(another, 1000, "another process goes on")
    kept = await another.read(lambda connection: connection.execute("SELECT count(*) FROM notes").fetchone())
    assert kept == (201,)
    assert database.size_bytes == path.stat().st_size + Path(f"{path}-wal").stat().st_size
    await another.close()


@pytest.mark.req("SEC-5")
async def test_a_file_written_anew_while_somebody_reads_an_older_state_says_that_its_log_has_that(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_connection, "EMPTY_LOG_MS", 1)
    await note(database, 1)
    reader = apsw.Connection(str(path))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM notes").fetchall()
    await note(database, 2)
    assert not await database.compact()
    reader.execute("COMMIT")
    assert await database.compact()
    reader.close()


@pytest.mark.req("SEC-5")
async def test_a_file_that_another_process_writes_to_all_the_time_is_not_written_anew_and_says_so(
    path: Path, database: Database
):
    writer = apsw.Connection(str(path))
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await database.compact()
    writer.execute("ROLLBACK")
    writer.close()
    await note(database, 1)

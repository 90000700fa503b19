"""SQLite, for the embedded profile: one file, one writer thread per process, shared commits.

The promise: when `write` returns, the change is in the file and fsynced (WAL, `synchronous=FULL`). Everything
that waits at the same moment shares one transaction and so one fsync. When `write` raises `StoreUnavailable`
the change is not promised; it may still be found done, so changes must be safe to repeat.

What is deleted is overwritten where that costs nothing (`secure_delete=FAST`). Pieces of it stay in unused space of the
file, and in the log beside it, until those are overwritten in their turn or `compact` writes the file anew.

Refuses: to work on with a connection after an I/O error. It is closed, and before the next one is trusted
the log is folded into the file and synced anew, because a failed fsync leaves pages that look written. And to make
an empty file, or to use another, where a marker says that one was made.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from rise.clock import Clock, epoch_ms
from rise.connections.marker import Marker
from rise.errors import StoreCorrupt, StoreUnavailable

T = TypeVar("T")

BATCH_MAX: Final = 1000
UNTIL_THEN: Final = "Until then nothing is accepted (503, senders repeat) and nothing is lost; it goes on by itself."
BUSY_SECONDS: Final = 2.5
"""How long a write waits for another process. Below the acceptance deadline, so that the answer is ours."""

PUT_BACK_REMEDY: Final = (
    "put the file back, and it goes on by itself; or stop Rise, `rise restore --force` a backup, and start it again"
)
BACKUP_PAGES_PER_STEP: Final = 1000

EMPTY_LOG_MS: Final = 200
EMPTY_LOG_TRIES: Final = 10

SEEN_EVERY_MS: Final = 10_000
"""How exactly it is kept what time the store's clock has reached."""

_LOCKED = (apsw.BusyError, apsw.LockedError)
_CORRUPT = (apsw.CorruptError, apsw.NotADBError)
_UNAVAILABLE = (
    apsw.BusyError,
    apsw.LockedError,
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.NoMemError,
    apsw.NoLFSError,
    apsw.AuthError,
    apsw.InterruptError,
    apsw.ConnectionClosedError,
)


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """The one place where SQLite's errors become ours. What is left through is our own bug."""
    try:
        yield
    except _CORRUPT as error:
        raise StoreCorrupt(
            f"the database is damaged ({error}); stop Rise, keep the file, and restore a backup"
        ) from error
    except apsw.FullError as error:
        raise StoreUnavailable(f"the disk is full: free some space. {UNTIL_THEN}") from error
    except _LOCKED as error:
        raise StoreUnavailable(f"the database is locked by another process: end that one. {UNTIL_THEN}") from error
    except apsw.ReadOnlyError as error:
        raise StoreUnavailable(f"the database or its directory is read-only: make it writable. {UNTIL_THEN}") from error
    except _UNAVAILABLE as error:
        raise StoreUnavailable(f"the database cannot be used: {error}") from error


class _Change(NamedTuple):
    apply: Callable[[apsw.Connection], Any]
    done: asyncio.Future[Any]


class Database:
    """One SQLite file, written by one thread per process and read by two others."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        schema: Mapping[str, Sequence[str]],
        marker: Marker | None = None,
        capability: str = StoreUnavailable.capability,
        on_trouble: Callable[[StoreUnavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`schema`: for each part, its migrations in order; the number applied is its version.

        `marker`: written when it was made; from then on no other is made or used in its place, until it is removed.

        `capability`: as which it is away, in every error.

        `on_trouble` is told what keeps it from writing, and None when it writes again, before the callers are.
        """
        self.path = path
        self._clock = clock
        self._schema = schema
        self._marker = marker
        self._capability = capability
        self._on_trouble = on_trouble
        self._trouble: StoreUnavailable | None = None
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        # Two, so that counting everything for the metrics does not keep a claim waiting.
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="rise-sqlite-read")
        self._reading_idle: list[apsw.Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing: apsw.Connection | None = None
        self._inode: int | None = None
        self._distrusted = False
        self._clock_base_ms: int | None = None
        self._seen_ms = 0
        self._closed = False

    # --- what callers use ---

    async def open(self) -> None:
        """Create or migrate the file. Raises `StoreUnavailable`; the next `write` tries again by itself."""
        self._loop = asyncio.get_running_loop()
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_batches, name="rise-sqlite-write", daemon=True)
            self._writer.start()
        await self.write(lambda connection: None)

    async def close(self) -> None:
        """Everything handed in before is written; afterwards the file can be copied or moved."""
        # Closed to callers first: a change handed in behind the end would wait for ever.
        writer, self._writer = self._writer, None
        if writer is not None:
            self._changes.put(None)
            await asyncio.to_thread(writer.join)
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._readers.shutdown)
            while self._reading_idle:
                self._reading_idle.pop().close(True)

    async def write(self, apply: Callable[[apsw.Connection], T]) -> T:
        """Run `apply` in a transaction and return its result once that is durable.

        `apply` may be run more than once before it counts, so its only effects are on the connection.
        If it raises, its changes alone are undone.
        """
        if self._loop is None or self._writer is None:
            raise self._unopened()
        done: asyncio.Future[T] = self._loop.create_future()
        self._changes.put(_Change(apply, done))
        return await done

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` on a snapshot of what is committed."""
        if self._loop is None:
            raise self._unopened()
        if self._closed:
            raise self._unopened("the database is closed")
        return await self._loop.run_in_executor(self._readers, self._read, query)

    def now_ms(self) -> int:
        """The store's clock: wall time at the host's first use since boot, then the boot clock's pace.

        All processes agree on it, a step of the wall clock does not move it, and it never goes back, not even
        when the host comes up with its wall clock in 1970.
        """
        if self._clock_base_ms is None:
            raise self._unopened()
        return self._clock_base_ms + int(self._clock.monotonic() * 1000)

    @property
    def is_orphaned(self) -> bool:
        """Its file was deleted or replaced under it: nothing is written until that file is back."""
        return self._inode is not None and self._inode != _inode(self.path)

    async def backup_to(
        self, target: Path, on_progress: Callable[[int, int], None] = lambda pages_done, pages: None
    ) -> None:
        """Copy one moment's state to `target`, a file that stands alone, while work goes on."""
        await self.read(lambda source: _copy_snapshot(source, target, on_progress))

    @property
    def size_bytes(self) -> int:
        """With the log beside it."""
        return sum(_size(file) for file in (self.path, Path(f"{self.path}-wal")))

    async def compact(self) -> bool:
        """Write the file anew, so that nothing is left in it of what was deleted, nor in its log.

        Who writes waits for as long as that takes; whoever writes from another process gives up after `BUSY_SECONDS`.
        It takes twice the file's size on its disk. False: the file is new, but somebody was reading an older state all
        the time, which is still in the log.
        """
        if self._loop is None or self._closed:
            raise self._unopened()
        return await self._loop.run_in_executor(self._readers, self._compact)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with sqlite_errors():
                yield
        except StoreUnavailable as error:
            error.capability = self._capability
            raise

    def _unopened(self, why: str = "the database is not open") -> StoreUnavailable:
        error = StoreUnavailable(why)
        error.capability = self._capability
        return error

    def _compact(self) -> bool:
        with self._errors():
            connection = self._open_known(create=False)
            try:
                connection.execute("PRAGMA temp_store=FILE")  # the copy may be larger than the memory
                connection.execute("VACUUM")
                # Who writes waits for this, too: not for long, and rather once more.
                connection.set_busy_timeout(EMPTY_LOG_MS)
                connection.setlk_timeout(EMPTY_LOG_MS, 0)
                return any(_is_log_emptied(connection) for _ in range(EMPTY_LOG_TRIES))
            finally:
                connection.close(True)

    # --- the writer thread ---

    def _write_batches(self) -> None:
        while True:
            batch, closing = self._next_batch()
            if batch:
                self._resolve(batch, self._write_batch(batch))
            if closing:
                self._close_writer()
                return

    def _next_batch(self) -> tuple[list[_Change], bool]:
        """Wait for one change, then take all that have gathered meanwhile: they share the fsync."""
        batch: list[_Change] = []
        change = self._changes.get()
        while change is not None:
            batch.append(change)
            if len(batch) == BATCH_MAX:
                return batch, False
            try:
                change = self._changes.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _write_batch(self, batch: list[_Change]) -> list[Any | BaseException]:
        try:
            with self._errors():
                connection = self._connection()
                return self._commit(connection, batch)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, _LOCKED):
                # Another's lock says nothing about the file; all else may mean that it is not what it seems.
                self._distrust()
            return [error] * len(batch)
        except BaseException as error:  # noqa: BLE001 - border: the writer must outlive any change; callers are told
            self._distrust()
            return [error] * len(batch)

    def _commit(self, connection: apsw.Connection, batch: list[_Change]) -> list[Any | BaseException]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            results: list[Any | BaseException] = [change.apply(connection) for change in batch]
        except _UNAVAILABLE + _CORRUPT:
            _rollback(connection)
            raise
        except Exception:  # noqa: BLE001 - border: one change failed; find out which and let the others through
            _rollback(connection)
            connection.execute("BEGIN IMMEDIATE")
            results = [_apply_alone(connection, change) for change in batch]
        try:
            self._note_time(connection)
            connection.execute("COMMIT")
        except BaseException:  # border: nothing of the batch is written, and it is passed on
            _rollback(connection)
            raise
        return results

    def _resolve(self, batch: list[_Change], results: list[Any | BaseException]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._tell, batch, results)
        except RuntimeError:
            # The loop is closed: nobody waits for these any more, and what was committed stays committed.
            return

    def _tell(self, batch: list[_Change], results: list[Any | BaseException]) -> None:
        trouble = results[0] if isinstance(results[0], StoreUnavailable) else None
        if str(trouble) != str(self._trouble):
            self._trouble = trouble
            self._on_trouble(trouble)
        _set_results(batch, results)

    def _connection(self) -> apsw.Connection:
        if self._writing is not None and self.is_orphaned:
            self._distrust()
        if self._writing is None:
            self._writing = self._connect()
        return self._writing

    def _connect(self) -> apsw.Connection:
        if self.is_orphaned:
            # Creating an empty one in its place, or going on with another, would turn a loss into silence.
            raise StoreUnavailable(
                f"{self.path} was deleted or replaced while open; nothing is written until it is back",
                remedy="" if self._marker is None else PUT_BACK_REMEDY,
            )
        connection = self._open_known(create=True)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=2000")
            connection.execute("PRAGMA journal_size_limit=67108864")
            connection.execute("PRAGMA secure_delete=FAST")
            if self._distrusted:
                _fold_log(connection)
            self._migrate(connection)
            if self._marker is not None:
                self._marker.write(connection)
        except BaseException:  # border: the file is let go, and it is passed on
            connection.close(True)
            raise
        self._distrusted = False
        self._inode = _inode(self.path)
        return connection

    def _open_known(self, *, create: bool) -> apsw.Connection:
        """Raises `StoreCorrupt`, and leaves everything as it is, if what is there is not what was made there."""
        if self._marker is None:
            return _open(self.path, create=create)
        self._marker.refuse_lost(self.path)
        connection = _open(self.path, create=create)
        try:
            self._marker.refuse_another(self.path, connection)
        except BaseException:  # border: the file is let go, and it is passed on
            connection.close(True)
            raise
        return connection

    def _migrate(self, connection: apsw.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS store_clock"
                " (one INTEGER PRIMARY KEY CHECK (one = 1), boot_id TEXT NOT NULL, base_ms INTEGER NOT NULL,"
                " seen_ms INTEGER NOT NULL)"
            )
            for part, migrations in self._schema.items():
                _migrate_part(connection, part, migrations)
            self._clock_base_ms = self._agree_on_time(connection)
            connection.execute("COMMIT")
        except BaseException:  # border: nothing of it is written, and it is passed on
            _rollback(connection)
            raise

    def _agree_on_time(self, connection: apsw.Connection) -> int:
        """The first process after a boot fixes the offset; the others take it over."""
        row = connection.execute("SELECT boot_id, base_ms, seen_ms FROM store_clock").fetchone()
        if row is not None and row[0] == self._clock.boot_id:
            self._seen_ms = int(row[2])  # who only looks has nothing to note
            return int(row[1])
        now_ms = epoch_ms(self._clock.now())
        if row is not None:
            now_ms = max(now_ms, row[2] + SEEN_EVERY_MS)
        base_ms = now_ms - int(self._clock.monotonic() * 1000)
        connection.execute(
            "INSERT OR REPLACE INTO store_clock VALUES (1, ?, ?, ?)", (self._clock.boot_id, base_ms, now_ms)
        )
        return base_ms

    def _note_time(self, connection: apsw.Connection) -> None:
        """Now and then keep how late it is, for the next boot."""
        now_ms = self.now_ms()
        if now_ms - self._seen_ms >= SEEN_EVERY_MS:
            connection.execute("UPDATE store_clock SET seen_ms = max(seen_ms, ?)", (now_ms,))
            self._seen_ms = now_ms

    def _distrust(self) -> None:
        self._distrusted = True
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writing is not None:
            try:
                self._writing.close(True)
            except apsw.Error:
                # It is given up either way; the next connection checks the file itself.
                pass
            self._writing = None

    # --- the reader threads ---

    def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        with self._errors():
            connection = self._reading_idle.pop() if self._reading_idle else self._open_known(create=False)
            try:
                with connection:
                    result = query(connection)
            except _UNAVAILABLE + _CORRUPT:
                connection.close(True)
                raise
            except BaseException:  # border: the connection is not to blame and serves others; it is passed on
                self._reading_idle.append(connection)
                raise
            self._reading_idle.append(connection)
            return result


def _open(path: Path, *, create: bool = True) -> apsw.Connection:
    if create:
        _create_private(path)
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    connection.set_busy_timeout(int(BUSY_SECONDS * 1000))
    # Woken when the other process lets go, instead of looking again after ever longer pauses.
    connection.setlk_timeout(int(BUSY_SECONDS * 1000), 0)
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def _create_private(path: Path) -> None:
    """What is made is the owner's alone, whatever its directory is. What SQLite puts beside it gets the same mode."""
    # A file that is there is left alone: to open and close it here would give up the locks that this process has on it.
    with suppress(OSError):  # SQLite says what is wrong, in its own words
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _is_log_emptied(connection: apsw.Connection) -> bool:
    """Everything in the log is written to the file itself, synced, and the log begins anew; unless somebody reads."""
    [(is_busy, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not is_busy


def _fold_log(connection: apsw.Connection) -> None:
    if not _is_log_emptied(connection):
        raise StoreUnavailable("the log cannot be checked after an error while another process reads it")


def _copy_snapshot(source: apsw.Connection, target: Path, on_progress: Callable[[int, int], None]) -> None:
    # From the one snapshot that `source` reads: copied from the file as it changes, SQLite would start over
    # whenever somebody writes, and on a busy installation it would never end.
    source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    copy = _open(target)
    try:
        with copy.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(BACKUP_PAGES_PER_STEP)
                on_progress(backup.page_count - backup.remaining, backup.page_count)
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()
    finally:
        copy.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _migrate_part(connection: apsw.Connection, part: str, migrations: Sequence[str]) -> None:
    row = connection.execute("SELECT version FROM schema_versions WHERE part = ?", (part,)).fetchone()
    version = int(row[0]) if row else 0
    if version > len(migrations):
        raise StoreCorrupt(
            f"the directory was written by a newer Rise ({part} has version {version}, this one knows"
            f" {len(migrations)}); install that version, nothing was changed"
        )
    if version == len(migrations):
        return
    for migration in migrations[version:]:
        connection.execute(migration)
    connection.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (part, len(migrations)))


def _apply_alone(connection: apsw.Connection, change: _Change) -> Any | BaseException:
    connection.execute("SAVEPOINT one")
    try:
        result = change.apply(connection)
    except _UNAVAILABLE + _CORRUPT:
        raise
    except Exception as error:  # noqa: BLE001 - border: handed to the one who asked for the change
        connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return error
    connection.execute("RELEASE one")
    return result


def _rollback(connection: apsw.Connection) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except apsw.Error:
            # SQLite has rolled back by itself, or the connection is about to be given up.
            pass


def _set_results(batch: list[_Change], results: list[Any | BaseException]) -> None:
    for change, result in zip(batch, results, strict=True):
        if change.done.done():
            continue  # the caller hung up; what it asked for was done all the same
        if isinstance(result, BaseException):
            change.done.set_exception(result)
        else:
            change.done.set_result(result)

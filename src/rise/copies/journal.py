"""The journal: a copy of open work on the disk of the host that accepted it, fsynced before anything is promised.

A record is here from `keep` until `forget`; of a finished task only its receipt is left, until its time. Whoever waits
at the same moment shares one fsync (`rise.connections.sqlite`). Everything merges: any of this may be said twice, late,
or about a task that is not here.

Which other stores hold a record is remembered with the name of the *life* that the store had then. A store that was
emptied has another life, and everything lacks it again, without a row being touched.

Times: how long a record has been here and when it is to be looked at are told by the file's own clock, which no step of
the wall clock moves. Receipts end by the wall clock, because the host that dated them may have been another. No order
depends on either: records are numbered as they are kept.

A file that is damaged, or was deleted or replaced while it is open, is put aside with whatever bytes there are, and the
journal goes on with an empty one, loudly: the other copies hold what it held. Also one that was put in its place is not
used, because beside it lies the log of the former, which would be written into it. Refuses to do any of this for who
only reads the file, and for other trouble, which passes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import apsw
import msgspec

from rise.clock import Clock, epoch_ms
from rise.connections.sqlite import Database
from rise.copies.record import decode_task
from rise.envelope import DeliveryKey, Head, TaskId, encode_json, is_another
from rise.errors import EnvelopeMalformed, StateConflict, StoreUnavailable
from rise.queue.port import NewTask
from rise.service import spawn
from rise.telemetry import log

T = TypeVar("T")

Copy = Literal["redis", "rabbitmq"]

SCHEMA: Final = {
    "journal": (
        """
        CREATE TABLE receipts (
            delivery_key TEXT PRIMARY KEY,
            task_id TEXT NOT NULL,
            body_sha256 TEXT NOT NULL,
            generation INTEGER NOT NULL,
            accepted_at INTEGER NOT NULL,
            ends_at INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX receipts_by_end ON receipts (ends_at);

        CREATE TABLE tasks (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            task_id TEXT NOT NULL UNIQUE,
            generation INTEGER NOT NULL,
            kept_at INTEGER NOT NULL,
            redis TEXT NOT NULL DEFAULT '',
            rabbitmq TEXT NOT NULL DEFAULT '',
            looks INTEGER NOT NULL DEFAULT 0,
            look_at INTEGER NOT NULL,
            accepted_at INTEGER NOT NULL,
            receipt_ends_at INTEGER NOT NULL,
            record BLOB NOT NULL
        );
        CREATE INDEX tasks_by_redis ON tasks (redis);
        CREATE INDEX tasks_by_rabbitmq ON tasks (rabbitmq);
        CREATE INDEX tasks_by_look ON tasks (look_at);
        """,
        """
        ALTER TABLE tasks ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
        """,
    )
}

USED_AGAIN: Final = "its key was used again: the message that came under it since has to be run first"
PAGE_BYTES_MAX: Final = 16 << 20
"""A page ends early with so many bytes of records: a thousand of the largest would be over a gigabyte."""
FIRST_LOOK_MS: Final = 2_000
LOOK_MS_MAX: Final = 600_000
SWEEP_AT_ONCE: Final = 1000

_COLUMNS: Final[Mapping[Copy, str]] = {"redis": "redis", "rabbitmq": "rabbitmq"}


class RunName(NamedTuple):
    """A task in one of its generations, as a run id says it."""

    task_id: TaskId
    generation: int


class KeptRun(NamedTuple):
    """A run as a copy knows it."""

    task_id: TaskId
    generation: int
    accepted_at_ms: int
    receipt_ends_at_ms: int
    """Until then its key is remembered, and nobody else's message has its name."""
    fingerprint: str
    """`Head.fingerprint`."""

    @property
    def name(self) -> RunName:
        return RunName(self.task_id, self.generation)

    def is_another_than(self, former: KeptRun) -> bool:
        """Of the same key: see `envelope.is_another`."""
        return is_another(
            self.fingerprint,
            self.accepted_at_ms,
            self.receipt_ends_at_ms - self.accepted_at_ms,
            than_fingerprint=former.fingerprint,
            than_accepted_at_ms=former.accepted_at_ms,
        )


def run_of(task: NewTask) -> KeptRun:
    head = task.head
    ends_at = head.accepted_at_ms + head.receipt_seconds * 1000
    return KeptRun(head.task_id, task.generation, head.accepted_at_ms, ends_at, head.fingerprint)


class JournalKept(msgspec.Struct, frozen=True):
    new: bool
    """False: the delivery key was known, whether its task is open or finished."""
    same_body: bool = True


class JournalEntry(msgspec.Struct, frozen=True):
    """An open task as it lies here."""

    number: int
    """Grows in the order of keeping, and is never given out again."""
    task: NewTask
    record: bytes


class JournalReceipt(msgspec.Struct, frozen=True):
    """The memory of a delivery key. Times by the wall clock."""

    delivery_key: DeliveryKey
    task_id: TaskId
    body_sha256: str
    generation: int
    """The highest that was kept."""
    accepted_at_ms: int
    ends_at_ms: int


class JournalDepth(msgspec.Struct, frozen=True):
    open: int
    lacking: dict[Copy, int]
    """How many of them each store lacks."""
    receipts: int
    oldest_open_ms: int | None
    """Age of the oldest."""
    unreadable: int
    """Records met so far that this version cannot read."""


class Journal:
    """One file of it. Every method raises `StoreUnavailable`; what was asked for may then have happened or not."""

    def __init__(
        self,
        connect: Callable[[], Database],
        *,
        clock: Clock,
        number: int = 0,
        may_start_anew: bool = True,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`may_start_anew`: it is this process's own, so a file that is lost may be replaced by an empty one."""
        self.number = number
        self._connect = connect
        self._database = connect()
        self._clock = clock
        self._may_start_anew = may_start_anew
        self._on_close = on_close
        self._starting_anew: set[asyncio.Task[Any]] = set()
        self._unreadable: set[RunName] = set()

    async def open(self) -> None:
        """Raises `StoreUnavailable`; whatever is asked of it next tries again by itself."""
        await self._surely(self._database, lambda: self._database.open())

    async def close(self) -> None:
        await asyncio.gather(*self._starting_anew)
        try:
            await self._database.close()
        finally:
            self._on_close()

    # --- in, and out again ---

    async def keep(self, task: NewTask, record: bytes) -> JournalKept:
        """The task if it is not known, and its receipt, in one durable step.

        A record of a higher generation takes the place of the lower one, whether that is open or finished: a person
        ran the task again. All other stores lack it then. Raises `StateConflict` instead where another message is open
        here that came under its key after that had been forgotten.
        """
        head, kept = task.head, run_of(task)
        return await self._write(lambda connection: _keep(connection, head, kept, record, self._now_ms()))

    async def note(self, runs: Collection[RunName], copy: Copy, life: str) -> None:
        """These are in that store too, in its life of that name, which is never empty."""
        if not life:
            raise ValueError("a store's life has a name")
        statement = _NOTE.format(_COLUMNS[copy])
        named = _named(runs)
        await self._write(lambda connection: _run(connection, statement, (life, named)))

    async def looked(self, runs: Collection[RunName]) -> None:
        """These were looked at and are not finished: look again after twice the time."""
        named = _named(runs)
        await self._write(
            lambda connection: _run(connection, _LOOKED, (self._now_ms(), FIRST_LOOK_MS, LOOK_MS_MAX, named))
        )

    async def forget(self, runs: Collection[RunName]) -> int:
        """These are finished: the bytes go, the receipts stay. A higher generation kept meanwhile stays untouched."""
        self._unreadable.difference_update(runs)
        named = _named(runs)
        return await self._write(lambda connection: _run(connection, _FORGET, (named,)))

    async def sweep(self) -> int:
        """Receipts past their end go, but for those of open tasks; in small steps, so that nobody waits for long."""
        now = epoch_ms(self._clock.now())
        swept = step = await self._write(lambda connection: _run(connection, _SWEEP, (now, SWEEP_AT_ONCE)))
        while step == SWEEP_AT_ONCE:
            step = await self._write(lambda connection: _run(connection, _SWEEP, (now, SWEEP_AT_ONCE)))
            swept += step
        return swept

    # --- what is here ---

    async def lacking(
        self, copy: Copy, life: str | None, *, limit: int, older_than_ms: int = 0, after: int = 0
    ) -> list[JournalEntry]:
        """Open tasks that the store lacks in this life, in the order of keeping; None: it has none, all lack it.

        Pass the last `number` to go on; an empty page is the end, a short one is not. `older_than_ms`: they have been
        here for so long, so that those who are still handing them to all stores are not overtaken.
        """
        column = _COLUMNS[copy]

        def query(connection: apsw.Connection) -> _Page:
            kept_until = self._now_ms() - older_than_ms
            return _page(_lacking(connection, column, life, after, kept_until), limit)

        return self._readable(await self._read(query))

    async def open_tasks(self, *, limit: int, after: int = 0) -> list[JournalEntry]:
        """In the order of keeping. Pass the last `number` to go on; an empty page is the end, a short one is not."""
        return self._readable(await self._read(lambda connection: _page(connection.execute(_OPEN, (after,)), limit)))

    async def due(self, limit: int) -> list[KeptRun]:
        """Open ones whose turn it is to be looked at: are they finished? Say `looked` or `forget`, and ask again.

        Each is due 2 s after it was kept and then at growing intervals, at most 10 min. Readable or not.
        """
        return await self._read(
            lambda connection: [KeptRun(*row) for row in connection.execute(_DUE, (self._now_ms(), limit))]
        )

    async def receipts(self, *, limit: int, after: str = "") -> list[JournalReceipt]:
        """Those that have not ended, ordered by delivery key; pass the last one to go on."""
        now = epoch_ms(self._clock.now())
        return await self._read(
            lambda connection: [JournalReceipt(*row) for row in connection.execute(_RECEIPTS, (after, now, limit))]
        )

    async def entries(self, task_ids: Collection[TaskId]) -> list[JournalEntry]:
        """Those of these that are open here and can be read."""
        named = encode_json(list(task_ids)).decode()
        return self._readable(
            await self._read(lambda connection: _page(connection.execute(_ENTRIES, (named,)), len(task_ids)))
        )

    async def last_number(self) -> int:
        """Of what is open; 0: nothing is. Whoever goes through it ends there, and not where traffic does."""
        return await self._read(lambda connection: int(connection.execute(_LAST_NUMBER).fetchone()[0]))

    async def body_sha256(self, delivery_key: DeliveryKey) -> str | None:
        """Of what first came under this key. None: it is not known here, or its receipt is past its end."""
        known = (delivery_key, epoch_ms(self._clock.now()))
        row = await self._read(lambda connection: connection.execute(_BODY, known).fetchone())
        return None if row is None else str(row[0])

    async def noted_runs(self, copy: Copy, *, limit: int, after: TaskId | None = None) -> list[KeptRun]:
        """Open ones that the store is known to hold, in whatever life, by their ids; pass the last one to go on."""
        statement = _NOTED_RUNS.format(_COLUMNS[copy])
        return await self._read(
            lambda connection: [KeptRun(*row) for row in connection.execute(statement, (after or "", limit))]
        )

    async def noted_among(self, copy: Copy, runs: Collection[RunName]) -> set[RunName]:
        """Those of these that are open here, and that the store is known to hold, in whatever life."""
        statement, named = _NOTED_AMONG.format(_COLUMNS[copy]), _named(runs)
        return await self._read(lambda connection: {RunName(*row) for row in connection.execute(statement, (named,))})

    async def noted(self, copy: Copy) -> int:
        """How many open tasks that store is known to hold, in whatever life."""
        statement = f"SELECT count(*) FROM tasks WHERE {_COLUMNS[copy]} <> ''"  # noqa: S608 - one of our own columns
        return await self._read(lambda connection: int(connection.execute(statement).fetchone()[0]))

    async def note_lost(self, copy: Copy) -> None:
        """That store has lost what it held: all lack it."""
        statement = f"UPDATE tasks SET {_COLUMNS[copy]} = '' WHERE {_COLUMNS[copy]} <> ''"  # noqa: S608 - our own
        await self._write(lambda connection: _run(connection, statement, ()))

    async def has(self, task_ids: Collection[TaskId]) -> set[TaskId]:
        """Which of these are open here."""
        named = encode_json(list(task_ids)).decode()
        return await self._read(lambda connection: {task_id for (task_id,) in connection.execute(_HAS, (named,))})

    async def kept(self, task_id: TaskId) -> KeptRun | None:
        """As it is open here, readable or not."""
        row = await self._read(lambda connection: connection.execute(_KEPT, (task_id,)).fetchone())
        return None if row is None else KeptRun(*row)

    async def copies_of(self, task_id: TaskId) -> dict[Copy, str] | None:
        """The other stores known to hold it, each with the life it was in then. None: it is not open here."""
        lives = await self._read(lambda connection: connection.execute(_COPIES_OF, (task_id,)).fetchone())
        return None if lives is None else {copy: life for copy, life in zip(_COLUMNS, lives, strict=True) if life}

    async def has_work(self) -> bool:
        """Whether something is open, or a receipt is past its end."""
        now = epoch_ms(self._clock.now())
        return await self._read(lambda connection: bool(connection.execute(_HAS_WORK, (now,)).fetchone()[0]))

    async def depth(self, lives: Mapping[Copy, str | None]) -> JournalDepth:
        """`lives`: those the stores have now."""

        def query(connection: apsw.Connection) -> JournalDepth:
            [(count, receipts, oldest)] = connection.execute(_COUNTS)
            lacking = {copy: count - _held(connection, _COLUMNS[copy], life) for copy, life in lives.items()}
            age = None if oldest is None else max(0, self._now_ms() - oldest)
            return JournalDepth(count, lacking, receipts, age, len(self._unreadable))

        return await self._read(query)

    # --- inside ---

    def _now_ms(self) -> int:
        return self._database.now_ms()

    def _readable(self, page: _Page) -> list[JournalEntry]:
        for run, error in page.unreadable:
            if run not in self._unreadable:
                self._unreadable.add(run)
                log.error(
                    "journal.record_unreadable",
                    task_id=run.task_id,
                    error=error,
                    consequence="this version cannot bring it to the other stores; kept until its task is finished",
                )
        return page.entries

    async def _write(self, change: Callable[[apsw.Connection], T]) -> T:
        return await self._surely(self._database, lambda: self._database.write(change))

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        return await self._surely(self._database, lambda: self._database.read(query))

    async def _surely(self, database: Database, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, and if the file turns out to be lost, ask the empty one that takes its place."""
        try:
            return await ask()
        except StoreUnavailable as error:
            is_another = self._database is not database or bool(self._starting_anew)
            is_lost = _is_damaged(error) or database.is_orphaned
            if not self._may_start_anew or not (is_another or is_lost):
                raise
            if not is_another:
                spawn(self._start_anew(error), name="journal.start_anew", into=self._starting_anew, for_all=True)
        # Whoever hangs up meanwhile does not leave it half done for the others.
        await asyncio.gather(*map(asyncio.shield, self._starting_anew))
        return await ask()

    async def _start_anew(self, error: StoreUnavailable) -> None:
        lost, new = self._database, self._connect()
        await lost.close()
        aside = None
        try:
            aside = _put_aside(lost.path, epoch_ms(self._clock.now()), is_whole=_is_damaged(error))
        except OSError as refusal:
            log.error("journal.not_put_aside", path=str(lost.path), error=refusal, consequence="it keeps nothing")
        with suppress(StoreUnavailable):
            await new.open()  # who asks it next hears what is wrong, and tries again what can be tried again
        self._unreadable.clear()
        self._database = new
        log.error(
            "journal.lost",
            path=str(lost.path),
            error=error,
            put_aside=None if aside is None else str(aside),
            consequence="it goes on with an empty file; what was open in this one is only in the other copies",
        )


# --- statements -------------------------------------------------------------------------------------------

# Where {} stands, one of _COLUMNS is put.
_NOTE: Final = (
    "UPDATE tasks SET {} = ?1 FROM json_each(?2) AS run"
    " WHERE tasks.task_id = run.value ->> 0 AND tasks.generation = run.value ->> 1"
)
_LACKING: Final = (
    "SELECT number, task_id, generation, record FROM tasks WHERE {} = ? AND number > ? AND kept_at <= ? ORDER BY number"
)
_FIRST_LIFE: Final = "SELECT min({}) FROM tasks"
_NEXT_LIFE: Final = "SELECT min({0}) FROM tasks WHERE {0} > ?"
_HELD: Final = "SELECT count(*) FROM tasks WHERE {} = ?"
_OPEN: Final = "SELECT number, task_id, generation, record FROM tasks WHERE number > ? ORDER BY number"
_DUE: Final = (
    "SELECT task_id, generation, accepted_at, receipt_ends_at, fingerprint FROM tasks WHERE look_at <= ?"
    " ORDER BY look_at LIMIT ?"
)
_KEPT: Final = "SELECT task_id, generation, accepted_at, receipt_ends_at, fingerprint FROM tasks WHERE task_id = ?"
_LOOKED: Final = (
    "UPDATE tasks SET looks = looks + 1, look_at = ?1 + min(?2 << min(looks + 1, 20), ?3) FROM json_each(?4) AS run"
    " WHERE tasks.task_id = run.value ->> 0 AND tasks.generation = run.value ->> 1"
)
_FORGET: Final = (
    "DELETE FROM tasks WHERE number IN (SELECT number FROM json_each(?) AS run JOIN tasks"
    " ON tasks.task_id = run.value ->> 0 AND tasks.generation <= run.value ->> 1)"
)
_SWEEP: Final = (
    "DELETE FROM receipts WHERE delivery_key IN (SELECT delivery_key FROM receipts WHERE ends_at <= ?"
    " AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = receipts.task_id) LIMIT ?)"
)
_RECEIPTS: Final = (
    "SELECT delivery_key, task_id, body_sha256, generation, accepted_at, ends_at FROM receipts"
    " WHERE delivery_key > ? AND ends_at > ? ORDER BY delivery_key LIMIT ?"
)
_ENTRIES: Final = (
    "SELECT number, task_id, generation, record FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))"
)
_LAST_NUMBER: Final = "SELECT coalesce(max(number), 0) FROM tasks"
_BODY: Final = (
    "SELECT body_sha256 FROM receipts WHERE delivery_key = ?1"
    " AND (ends_at > ?2 OR EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = receipts.task_id))"
)
_NOTED_RUNS: Final = (
    "SELECT task_id, generation, accepted_at, receipt_ends_at, fingerprint FROM tasks WHERE {} <> '' AND task_id > ?"
    " ORDER BY task_id LIMIT ?"
)
_NOTED_AMONG: Final = (
    "SELECT task_id, generation FROM json_each(?) AS run JOIN tasks"
    " ON tasks.task_id = run.value ->> 0 AND tasks.generation = run.value ->> 1 WHERE {} <> ''"
)
_HAS: Final = "SELECT task_id FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))"
_COPIES_OF: Final = "SELECT redis, rabbitmq FROM tasks WHERE task_id = ?"
_HAS_WORK: Final = "SELECT EXISTS (SELECT 1 FROM tasks) OR EXISTS (SELECT 1 FROM receipts WHERE ends_at <= ?)"
_COUNTS: Final = (
    "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM receipts),"
    " (SELECT kept_at FROM tasks ORDER BY number LIMIT 1)"
)
_REMEMBER: Final = (
    # One past its end, which the next sweep would take, is none: the message would be turned away and kept nowhere.
    "INSERT INTO receipts VALUES (?1,?2,?3,?4,?5,?6) ON CONFLICT (delivery_key) DO UPDATE SET"
    " task_id = excluded.task_id, body_sha256 = excluded.body_sha256, generation = excluded.generation,"
    " accepted_at = excluded.accepted_at, ends_at = excluded.ends_at"
    " WHERE receipts.ends_at <= excluded.accepted_at"
    " AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = receipts.task_id)"
)
_RAISE_GENERATION: Final = "UPDATE receipts SET generation = max(generation, ?1) WHERE delivery_key = ?2"
_PUT: Final = (
    "INSERT INTO tasks (task_id, generation, accepted_at, receipt_ends_at, fingerprint, kept_at, look_at, record)"
    " VALUES (?,?,?,?,?,?,?,?)"
    " ON CONFLICT (task_id) DO UPDATE SET generation = excluded.generation, kept_at = excluded.kept_at,"
    " look_at = excluded.look_at, accepted_at = excluded.accepted_at,"
    " receipt_ends_at = excluded.receipt_ends_at, fingerprint = excluded.fingerprint,"
    " record = excluded.record, redis = '', rabbitmq = '', looks = 0"
)


def _keep(connection: apsw.Connection, head: Head, kept: KeptRun, record: bytes, now: int) -> JournalKept:
    task_id, generation, accepted_at, ends_at, _ = kept
    receipt = (head.delivery_key, task_id, head.raw_sha256, generation, accepted_at, ends_at)
    put = (*kept, now, now + FIRST_LOOK_MS, record)
    if _run(connection, _REMEMBER, receipt):
        connection.execute(_PUT, put)
        return JournalKept(new=True)
    # What is open has a receipt, which therefore speaks for both. One that is not open may be run under this name once
    # more, where the ledger was restored from before that.
    if (
        generation
        and _run(connection, _RAISE_GENERATION, (generation, head.delivery_key))
        and _has_no_record(connection, kept)
    ):
        connection.execute(_PUT, put)
    known = connection.execute("SELECT body_sha256 FROM receipts WHERE delivery_key = ?", (head.delivery_key,))
    return JournalKept(new=False, same_body=known.fetchone() == (head.raw_sha256,))


def _has_no_record(connection: apsw.Connection, kept: KeptRun) -> bool:
    """Of this generation or a later one. Raises `StateConflict` where its place is another message's."""
    row = connection.execute(_KEPT, (kept.task_id,)).fetchone()
    known = None if row is None else KeptRun(*row)
    if known is not None and known.is_another_than(kept):
        raise StateConflict(USED_AGAIN)
    return known is None or known.generation < kept.generation


def _lacking(
    connection: apsw.Connection, column: str, life: str | None, after: int, kept_until: int
) -> Iterable[tuple[Any, ...]]:
    # One look in the index per former life, merged. There are few: those of which something is still open.
    statement = _LACKING.format(column)
    lives = [former for former in _lives(connection, column) if former != life]
    return heapq.merge(
        *(connection.execute(statement, (former, after, kept_until)) for former in lives), key=lambda row: row[0]
    )


def _lives(connection: apsw.Connection, column: str) -> list[str]:
    """The different ones, each by a look in the index: to list them by DISTINCT would read all of it."""
    lives = []
    [(life,)] = connection.execute(_FIRST_LIFE.format(column))
    while life is not None:
        lives.append(life)
        [(life,)] = connection.execute(_NEXT_LIFE.format(column), (life,))
    return lives


def _held(connection: apsw.Connection, column: str, life: str | None) -> int:
    [(count,)] = connection.execute(_HELD.format(column), (life,))
    return int(count)


class _Page(NamedTuple):
    entries: list[JournalEntry]
    unreadable: list[tuple[RunName, EnvelopeMalformed]]


def _page(rows: Iterable[tuple[Any, ...]], limit: int) -> _Page:
    """Of those that can be read. The others are named and stop nobody."""
    page = _Page([], [])
    size = 0
    for number, task_id, generation, record in rows:
        try:
            page.entries.append(JournalEntry(number, decode_task(record), record))
        except EnvelopeMalformed as error:
            page.unreadable.append((RunName(task_id, generation), error))
            continue
        size += len(record)
        if len(page.entries) >= limit or size >= PAGE_BYTES_MAX:
            break
    return page


def _named(runs: Collection[RunName]) -> str:
    return encode_json(list(runs)).decode()


def _run(connection: apsw.Connection, statement: str, bindings: Sequence[Any]) -> int:
    """How many rows it changed."""
    connection.execute(statement, bindings)
    return int(connection.changes())


def _is_damaged(error: StoreUnavailable) -> bool:
    """Not merely one of a newer version, which is called corrupt too: that is sound, for a version that knows it."""
    return isinstance(error.__cause__, (apsw.CorruptError, apsw.NotADBError))


def _put_aside(path: Path, now_ms: int, *, is_whole: bool) -> Path | None:
    """What there is of the file and its log gets another name. None: nothing is there.

    `is_whole`: they belong together, and still do under the new names. Otherwise the log is perhaps another file's.
    """
    aside = f"{path.name}.lost-{now_ms}"
    while any(path.parent.glob(f"{aside}*")):
        now_ms += 1
        aside = f"{path.name}.lost-{now_ms}"
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)  # made from the log whenever it is opened
    found = False
    # The log before its file: between the two an empty journal must not find another's log.
    for suffix, suffix_aside in (("-wal", "-wal" if is_whole else "-log"), ("", "")):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(path.with_name(aside + suffix_aside))
            found = True
    return path.with_name(aside) if found else None

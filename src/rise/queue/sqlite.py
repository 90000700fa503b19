"""The embedded queue: lanes in SQLite, in the same file as everything else.

A lane's row says when it may next be claimed (`ready_at`). Enqueueing sets it to now, a claim to when it
lapses, a waiting retry to its due time, nothing left to do to NULL. So one index finds new work, due
retries and lapsed claims alike, and a wrong `ready_at` is only a hint: whoever claims looks at the tasks.

Refuses: a write under a fence that is not the lane's newest; to drop what this version cannot read, which is suspended.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import apsw
import msgspec

from rise.connections.sqlite import Database
from rise.envelope import (
    Head,
    LaneKey,
    Order,
    Place,
    Progress,
    Reason,
    Status,
    Task,
    TaskId,
    clean_text,
    decode_head,
    encode_head,
    encode_json,
    unreadable_head,
    words_of,
)
from rise.errors import ClaimLost, EnvelopeMalformed
from rise.queue.port import (
    Anew,
    Claim,
    Claimed,
    Enqueued,
    Finished,
    LaneDepth,
    NewTask,
    OpenTask,
    QueueDepth,
    QueueLimits,
    Receipt,
    Replying,
    RetryIn,
    Route,
    Selection,
    Settlement,
    Suspend,
    key_kept_ms,
)
from rise.queue.turns import Turns

SCHEMA: Final = (
    """
    CREATE TABLE receipts (
        delivery_key TEXT PRIMARY KEY,
        task_id TEXT NOT NULL,
        body_sha256 TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        duplicates INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX receipts_by_expiry ON receipts (expires_at);

    CREATE TABLE tasks (
        task_id TEXT PRIMARY KEY,
        lane TEXT NOT NULL,
        channel TEXT NOT NULL,
        account TEXT NOT NULL,
        order_at INTEGER NOT NULL,
        order_seq INTEGER NOT NULL,
        status TEXT NOT NULL,
        reason TEXT,
        generation INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        is_answered INTEGER NOT NULL DEFAULT 0,
        due_at INTEGER NOT NULL,
        deadline_at INTEGER,
        failing_since INTEGER,
        accepted_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        error TEXT,
        head BLOB NOT NULL,
        raw BLOB NOT NULL
    );
    CREATE INDEX tasks_runnable ON tasks (lane, order_at, order_seq, task_id)
        WHERE status IN ('pending', 'processing');
    CREATE INDEX tasks_suspended ON tasks (reason, channel, lane) WHERE status = 'suspended';
    CREATE INDEX tasks_processing ON tasks (lane) WHERE status = 'processing';
    CREATE INDEX tasks_replying ON tasks (task_id) WHERE status = 'replying';

    CREATE TABLE lanes (
        lane TEXT PRIMARY KEY,
        channel TEXT NOT NULL,
        ready_at INTEGER,
        holder TEXT,
        fence INTEGER NOT NULL DEFAULT 0,
        newest_at INTEGER NOT NULL,
        newest_seq INTEGER NOT NULL,
        started_at INTEGER NOT NULL DEFAULT 0,
        started_seq INTEGER NOT NULL DEFAULT 0,
        touched_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX lanes_ready ON lanes (channel, ready_at) WHERE ready_at IS NOT NULL;
    CREATE INDEX lanes_idle ON lanes (touched_at) WHERE ready_at IS NULL;

    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('fence', 0), ('duplicates', 0), ('out_of_order', 0), ('late', 0);
    """,
    """
    ALTER TABLE tasks ADD COLUMN workflow_id TEXT NOT NULL DEFAULT '';
    DROP INDEX tasks_suspended;
    CREATE INDEX tasks_suspended ON tasks (reason, channel, account, workflow_id, lane) WHERE status = 'suspended';
    """,
    """
    CREATE INDEX tasks_suspended_in ON tasks (lane, reason, channel, account, workflow_id) WHERE status = 'suspended';
    """,
    """
    ALTER TABLE tasks ADD COLUMN is_begun INTEGER NOT NULL DEFAULT 0;
    UPDATE tasks SET is_begun = 1;
    """,
    # What waits for a person, newer versions' words included, in the order in which it is listed.
    """
    CREATE INDEX tasks_waiting ON tasks (task_id) WHERE status NOT IN ('pending', 'processing', 'replying');
    """,
    # Where there is not room for all, lanes in which somebody waits are looked for by themselves.
    """
    ALTER TABLE tasks ADD COLUMN is_awaited INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE lanes ADD COLUMN is_awaited INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX lanes_awaited ON lanes (channel, ready_at) WHERE ready_at IS NOT NULL AND is_awaited;
    UPDATE tasks SET is_awaited = 0 WHERE lane GLOB 'fu:*';
    UPDATE lanes SET is_awaited = 0 WHERE lane GLOB 'fu:*';
    CREATE INDEX tasks_died ON tasks (lane) WHERE deaths > 0;
    """,
    # The same as `tasks_waiting`, of one lane.
    """
    CREATE INDEX tasks_waiting_in ON tasks (lane, task_id) WHERE status NOT IN ('pending', 'processing', 'replying');
    """,
)

FORGET_AT_ONCE: Final = 1000

_COLUMNS: Final = (
    "head, raw, status, reason, generation, attempts, deaths, due_at, deadline_at, failing_since, updated_at, error,"
    " accepted_at, is_begun, task_id"
)
_READY: Final = "lanes INDEXED BY lanes_ready WHERE ready_at IS NOT NULL"
_TURN_OF: Final = "turn of "
_AWAITED: Final = "lanes INDEXED BY lanes_awaited WHERE ready_at IS NOT NULL AND is_awaited"
_UNDATED: Final = Order(0, 0)
_RUNNABLE: Final = "status IN ('pending', 'processing')"
_PLACE: Final = "order_at, order_seq, task_id"


class SqliteQueue:
    """`rise.queue.port.Queue` on one SQLite file, for any number of processes on one host."""

    def __init__(self, database: Database, limits: QueueLimits | None = None) -> None:
        self._database = database
        self._limits = limits or QueueLimits()

    def now_ms(self) -> int:
        return self._database.now_ms()

    # --- in ---

    async def enqueue(self, task: NewTask) -> Enqueued:
        head = encode_head(task.head)  # encoded before the writer thread, once
        return await self._database.write(lambda connection: self._enqueue(connection, task, head))

    def _enqueue(self, connection: apsw.Connection, task: NewTask, head: bytes) -> Enqueued:
        now = self.now_ms()
        if not _remember(connection, task, now):
            return _duplicate(connection, task)
        due = max(now, task.due_at_ms or 0)
        status = Status.SUSPENDED if task.suspend else Status.PENDING
        known = task.head
        connection.execute(
            "INSERT OR IGNORE INTO tasks (task_id, lane, channel, account, order_at, order_seq, status, reason,"
            " due_at, deadline_at, accepted_at, updated_at, error, head, raw, workflow_id, is_awaited)"
            " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                known.task_id, known.lane, known.channel, known.account, known.order.at_ms, known.order.seq,
                status.value, task.suspend.value if task.suspend else None, due, task.deadline_at_ms, now, now,
                _storable(task.error), head, task.raw, known.workflow_id or "", known.is_awaited,
            ),
        )  # fmt: skip
        if not connection.changes():
            # The receipt had been forgotten, the task had not: suspended for longer than the key is kept.
            _remember_body(connection, task.head)
            return _duplicate(connection, task)
        if task.suspend:
            return Enqueued(known.task_id, new=True)
        out_of_order, late = _announce(connection, known, now, due=due)
        return Enqueued(known.task_id, new=True, out_of_order=out_of_order, late=late)

    # --- claims ---

    async def claim(
        self, holder: str, room: Mapping[str, int], *, takes_suspects: bool, counts_deaths: bool = True
    ) -> Claimed:
        if not await self._database.read(lambda connection: _anything_ready(connection, room, self.now_ms())):
            return Claimed([])  # most looks find nothing; they must not cost an fsync

        def change(connection: apsw.Connection) -> Claimed:
            return self._claim(connection, holder, room, takes_suspects, counts_deaths)

        return await self._database.write(change)

    def _claim(
        self,
        connection: apsw.Connection,
        holder: str,
        room: Mapping[str, int],
        takes_suspects: bool,
        counts_deaths: bool,
    ) -> Claimed:
        now = self.now_ms()
        if takes_suspects and (alone := self._suspect_alone(connection, holder, room, counts_deaths)):
            return Claimed([alone])
        claims: list[Claim] = []
        suspects_waiting = False
        for channel, places in room.items():
            turns = _turns(connection, channel, places, now)
            took = 0
            for lane in turns:
                if took >= places:
                    break
                first = self._first_runnable(connection, lane, now, counts_deaths)
                if first is None:
                    continue
                if first.progress.deaths >= self._limits.deaths_suspect:
                    suspects_waiting = True
                    continue
                turns.took()
                took += 1
                tasks_left = self._limits.tasks_per_claim
                claims.append(self._start(connection, lane, channel, holder, first, tasks_left=tasks_left, now=now))
            _keep_turn(connection, channel, turns)
        return Claimed(claims, suspects_waiting)

    def _suspect_alone(
        self, connection: apsw.Connection, holder: str, room: Mapping[str, int], counts_deaths: bool
    ) -> Claim | None:
        """What was running in several crashes gets a process to itself, so that if it kills once more nobody else's
        message is counted with it."""
        now = self.now_ms()
        lanes = connection.execute(
            "SELECT DISTINCT tasks.lane, lanes.channel FROM tasks INDEXED BY tasks_died JOIN lanes USING (lane)"
            f" WHERE deaths > 0 AND {_RUNNABLE} AND ready_at <= ? ORDER BY ready_at, lane",
            (now,),
        ).fetchall()
        for lane, channel in lanes:
            first = self._first_runnable(connection, lane, now, counts_deaths) if room.get(channel, 0) > 0 else None
            if first is not None and first.progress.deaths >= self._limits.deaths_suspect:
                return self._start(connection, lane, channel, holder, first, tasks_left=1, now=now)
        return None

    def _first_runnable(self, connection: apsw.Connection, lane: LaneKey, now: int, counts_deaths: bool) -> Task | None:
        """The lane's first task if it is due. Otherwise correct the lane's hint and return None."""
        self._count_deaths(connection, lane, now, int(counts_deaths))
        first = _first_task(connection, lane)
        if first is not None and first.progress.due_at_ms <= now:
            return first
        _let_go(connection, lane, first.progress.due_at_ms if first else None, now)
        return None

    def _count_deaths(self, connection: apsw.Connection, lane: LaneKey, now: int, deaths: int) -> None:
        # Count when the next worker claims, not when this one starts: only a task left running by a claim
        # that was never settled means that its process died, and a message that kills must not run for ever.
        left_running = connection.execute(
            "UPDATE tasks INDEXED BY tasks_processing SET status = 'pending', deaths = deaths + ?, updated_at = ?"
            " WHERE lane = ? AND status = 'processing' RETURNING task_id, deaths",
            (deaths, now, lane),
        ).fetchall()
        for task_id, died in left_running:
            if deaths and died >= self._limits.deaths_max:
                _suspend(connection, task_id, Reason.POISON, f"the worker process died {died} times while running it")
        if left_running:
            # Whoever was taken for dead has lost the lane, also when nobody gets it now: should it come back,
            # its late result must not undo what was decided about the task.
            connection.execute("UPDATE lanes SET holder = NULL WHERE lane = ?", (lane,))

    def _start(
        self,
        connection: apsw.Connection,
        lane: LaneKey,
        channel: str,
        holder: str,
        task: Task,
        *,
        tasks_left: int,
        now: int,
    ) -> Claim:
        fence = _count(connection, "fence")
        connection.execute("UPDATE lanes SET holder = ?, fence = ? WHERE lane = ?", (holder, fence, lane))
        started = _mark_processing(connection, task, now + self._claim_ms, now)
        return Claim(lane, channel, fence, holder, started, tasks_left - 1, _has_suspended(connection, lane))

    async def renew(self, claims: Sequence[Claim]) -> set[int]:
        return await self._database.write(lambda connection: self._renew(connection, claims))

    def _renew(self, connection: apsw.Connection, claims: Sequence[Claim]) -> set[int]:
        lost = set()
        for claim in claims:
            connection.execute(
                "UPDATE lanes SET ready_at = ? WHERE lane = ? AND fence = ? AND holder IS NOT NULL",
                (self.now_ms() + self._claim_ms, claim.lane, claim.fence),
            )
            if not connection.changes():
                lost.add(claim.fence)
        return lost

    async def settle(self, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        return await self._database.write(lambda connection: self._settle(connection, claim, task, settlement))

    def _settle(self, connection: apsw.Connection, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        held = connection.execute(
            "SELECT fence FROM lanes WHERE lane = ? AND holder IS NOT NULL", (claim.lane,)
        ).fetchone()
        if held is None or held[0] != claim.fence:
            raise ClaimLost(f"the claim on {claim.lane} has passed to another worker")
        now = self.now_ms()
        _apply(connection, task.task_id, settlement, now)
        # Whoever settles runs nothing else of the lane: a settle whose answer was lost has started it.
        connection.execute(
            "UPDATE tasks INDEXED BY tasks_processing SET status = 'pending' WHERE lane = ? AND status = 'processing'",
            (claim.lane,),
        )
        first = _first_task(connection, claim.lane)
        if first is None or first.progress.due_at_ms > now:
            _let_go(connection, claim.lane, first.progress.due_at_ms if first else None, now)
            return None
        if claim.tasks_left == 0 or first.progress.deaths >= self._limits.deaths_suspect:
            _let_go(connection, claim.lane, now, now)
            return None
        started = _mark_processing(connection, first, now + self._claim_ms, now)
        has_suspended = _has_suspended(connection, claim.lane)
        return msgspec.structs.replace(
            claim, task=started, tasks_left=claim.tasks_left - 1, has_suspended=has_suspended
        )

    async def hand_back(self, holder: str, *, keep: Collection[int] = ()) -> int:
        theirs = f"holder = ? AND fence NOT IN ({','.join('?' * len(keep))})"

        def change(connection: apsw.Connection) -> int:
            connection.execute(
                "UPDATE tasks INDEXED BY tasks_processing SET status = 'pending'"
                f" WHERE status = 'processing' AND lane IN (SELECT lane FROM lanes WHERE {theirs})",
                (holder, *keep),
            )
            connection.execute(
                f"UPDATE lanes SET holder = NULL, ready_at = ? WHERE {theirs}", (self.now_ms(), holder, *keep)
            )
            return int(connection.changes())

        return await self._database.write(change)

    async def reclaim(self, holder: str) -> int:
        def change(connection: apsw.Connection) -> int:
            connection.execute("UPDATE lanes SET ready_at = min(ready_at, ?) WHERE holder = ?", (self.now_ms(), holder))
            return int(connection.changes())

        return await self._database.write(change)

    async def sweep(self, *, forgets: bool = True) -> int:
        # Looked for in a snapshot and put right afterwards: the search takes long with many open tasks, and
        # acceptance must not wait for it.
        forgotten, expired = await self._database.read(lambda connection: _find_forgotten(connection, self.now_ms()))
        found = await self._database.write(lambda connection: self._sweep(connection, forgotten, expired))
        while forgets and await self._database.write(self._forget):
            pass  # in small steps, because messages are accepted in between
        return found

    def _sweep(
        self, connection: apsw.Connection, forgotten: Sequence[tuple[LaneKey, str, bool]], expired: Sequence[TaskId]
    ) -> int:
        now = self.now_ms()
        for lane, channel, is_awaited in forgotten:
            _make_ready(connection, lane, channel, now, is_awaited=is_awaited)
        for task_id in expired:
            # Too late to be of use to anybody: let the lane's next claim end it.
            row = connection.execute(
                "UPDATE tasks SET status = 'pending', reason = NULL, due_at = ?"
                " WHERE task_id = ? AND status = 'suspended' RETURNING lane, channel, is_awaited",
                (now, task_id),
            ).fetchone()
            if row is not None:
                _make_ready(connection, row[0], row[1], now, is_awaited=row[2])
        return len(forgotten) + len(expired)

    def _forget(self, connection: apsw.Connection) -> bool:
        """Some of what is old enough. True if there may be more."""
        now = self.now_ms()
        connection.execute(
            "DELETE FROM receipts WHERE delivery_key IN"
            " (SELECT delivery_key FROM receipts WHERE expires_at < ? ORDER BY expires_at LIMIT ?)",
            (now, FORGET_AT_ONCE),
        )
        is_more = connection.changes() == FORGET_AT_ONCE
        connection.execute(
            "DELETE FROM lanes WHERE lane IN"
            " (SELECT lane FROM lanes WHERE ready_at IS NULL AND touched_at < ? LIMIT ?)",
            (now - int(self._limits.lane_memory.total_seconds() * 1000), FORGET_AT_ONCE),
        )
        return bool(is_more or connection.changes() == FORGET_AT_ONCE)

    @property
    def _claim_ms(self) -> int:
        return int(self._limits.claim.total_seconds() * 1000)

    # --- out, and people's hands ---

    async def finish(self, task_id: TaskId, generation: int) -> bool:
        def change(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE tasks SET is_answered = 1 WHERE task_id = ? AND generation = ?", (task_id, generation)
            )
            is_there = bool(connection.changes())
            connection.execute(
                "DELETE FROM tasks WHERE task_id = ? AND status = 'replying' AND is_answered", (task_id,)
            )
            return is_there

        return await self._database.write(change)

    async def resume(self, selection: Selection, *, limit: int) -> list[TaskId]:
        return await self._database.write(lambda connection: self._resume(connection, selection, limit))

    def _resume(self, connection: apsw.Connection, selection: Selection, limit: int) -> list[TaskId]:
        now = self.now_ms()
        where, values = _where(msgspec.structs.replace(selection, status=Status.SUSPENDED))
        resumed: list[TaskId] = []
        for lane, channel in _whole_lanes(connection, where, values, limit):
            rows = connection.execute(
                "UPDATE tasks SET status = 'pending', reason = NULL, attempts = 0, deaths = 0, failing_since = NULL,"
                f" due_at = ?, updated_at = ? WHERE {where} AND lane = ? RETURNING task_id, is_awaited",
                (now, now, *values, lane),
            ).fetchall()
            resumed += [TaskId(task_id) for task_id, _ in rows]
            _make_ready(connection, lane, channel, now, is_awaited=any(is_awaited for _, is_awaited in rows))
        return resumed

    async def resumable(self, selection: Selection, *, limit: int) -> list[OpenTask]:
        where, values = _where(msgspec.structs.replace(selection, status=Status.SUSPENDED))

        def query(connection: apsw.Connection) -> list[OpenTask]:
            return [
                task
                for lane, _ in _whole_lanes(connection, where, values, limit)
                for task in _open_tasks(connection, f"{where} AND lane = ?", (*values, lane))
            ]

        return await self._database.read(query)

    async def hold(self, task_id: TaskId, generation: int, suspend: Suspend) -> bool:
        def change(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE tasks SET status = 'suspended', reason = ?, error = ?, updated_at = ?"
                " WHERE task_id = ? AND generation = ? AND status = 'replying'",
                (suspend.reason.value, _storable(suspend.error), self.now_ms(), task_id, generation),
            )
            return bool(connection.changes())

        return await self._database.write(change)

    async def restart(self, task: Task, *, generation: int) -> bool:
        head = encode_head(task.head)
        return await self._database.write(lambda connection: self._restart(connection, task, head, generation))

    def _restart(self, connection: apsw.Connection, task: Task, head: bytes, generation: int) -> bool:
        now, known = self.now_ms(), task.head
        row = connection.execute("SELECT generation, status FROM tasks WHERE task_id = ?", (known.task_id,)).fetchone()
        if row is not None and (row[0] >= generation or row[1] != Status.SUSPENDED):
            return False
        connection.execute(
            "INSERT OR REPLACE INTO tasks (task_id, lane, channel, account, order_at, order_seq, status, generation,"
            " due_at, accepted_at, updated_at, head, raw, workflow_id, is_awaited)"
            " VALUES (?,?,?,?,?,?,'pending',?,?,?,?,?,?,?,?)",
            (
                known.task_id, known.lane, known.channel, known.account, known.order.at_ms, known.order.seq,
                generation, now, now, now, head, task.raw, known.workflow_id or "", known.is_awaited,
            ),
        )  # fmt: skip
        _make_ready(connection, known.lane, known.channel, now, is_awaited=known.is_awaited)
        return True

    async def cancel(self, task_id: TaskId, *, generation: int | None = None) -> Task | None:
        return await self._database.write(lambda connection: self._cancel(connection, task_id, generation))

    def _cancel(self, connection: apsw.Connection, task_id: TaskId, generation: int | None) -> Task | None:
        task = _get(connection, task_id)
        if task is None or generation not in (None, task.progress.generation):
            return None
        connection.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))
        if task.progress.status is Status.PROCESSING:
            # A new fence: whatever its worker still writes about this lane is refused.
            connection.execute(
                "UPDATE lanes SET fence = ?, holder = NULL, ready_at = ? WHERE lane = ?",
                (_count(connection, "fence"), self.now_ms(), task.head.lane),
            )
        elif task.progress.status is Status.PENDING:
            # It may have been the lane's first, which waits for its retry, and the lane with it.
            head = task.head
            _make_ready(connection, head.lane, head.channel, self.now_ms(), is_awaited=head.is_awaited)
        return task

    # --- looking ---

    async def get(self, task_id: TaskId) -> Task | None:
        return await self._database.read(lambda connection: _get(connection, task_id))

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> list[OpenTask]:
        where, values = _where_shown(selection)
        # Few are being processed, however many there are: sorting them is less than walking past the others.
        source = "tasks INDEXED BY tasks_processing" if selection.status is Status.PROCESSING else "tasks"

        return await self._database.read(
            lambda connection: _open_tasks(connection, f"{where} AND task_id > ?", (*values, after), limit, source)
        )

    async def next_in_lane(self, lane: LaneKey, *, limit: int, after: Place | None = None) -> list[OpenTask]:
        where = f"lane = ? AND {_RUNNABLE} AND status = 'pending'"
        values: list[Any] = [lane]
        if after is not None:
            order, task_id = after
            where += f" AND ({_PLACE}) > (?,?,?)"
            values += [order.at_ms, order.seq, task_id]
        source = "tasks INDEXED BY tasks_runnable"

        return await self._database.read(
            lambda connection: _open_tasks(connection, where, values, limit, source, order=_PLACE)
        )

    async def suspended_routes(self, reason: Reason, *, lane: LaneKey | None = None) -> list[Route]:
        where, values = _where(Selection(status=Status.SUSPENDED, reason=reason, lane=lane))

        def query(connection: apsw.Connection) -> list[Route]:
            rows = connection.execute(
                f"SELECT DISTINCT channel, account, workflow_id FROM tasks WHERE {where} ORDER BY 1, 2, 3", values
            )
            return [Route(*row) for row in rows]

        return await self._database.read(query)

    async def receipts(self, *, limit: int, after: str = "") -> list[Receipt]:
        def query(connection: apsw.Connection) -> list[Receipt]:
            rows = connection.execute(
                "SELECT delivery_key, task_id, received_at, duplicates FROM receipts"
                " WHERE delivery_key > ? ORDER BY delivery_key LIMIT ?",
                (after, limit),
            )
            return [Receipt(*row) for row in rows]

        return await self._database.read(query)

    async def depth(self) -> QueueDepth:
        return await self._database.read(lambda connection: _depth(connection, self.now_ms()))

    async def longest_lanes(self, *, limit: int) -> list[LaneDepth]:
        def query(connection: apsw.Connection) -> list[LaneDepth]:
            rows = connection.execute(
                f"SELECT lane, count(*), min(accepted_at) FROM tasks WHERE {_RUNNABLE}"
                " GROUP BY lane ORDER BY 2 DESC, 3 LIMIT ?",
                (limit,),
            )
            now = self.now_ms()
            return [LaneDepth(lane, count, max(0, now - accepted_at)) for lane, count, accepted_at in rows]

        return await self._database.read(query)


# --- single steps, each inside its caller's transaction ---------------------------------------------------


def _remember(connection: apsw.Connection, task: NewTask, now: int) -> bool:
    """Claim the delivery key. False if it is taken."""
    connection.execute(
        "INSERT OR IGNORE INTO receipts (delivery_key, task_id, body_sha256, received_at, expires_at)"
        " VALUES (?,?,?,?,?)",
        (
            task.head.delivery_key,
            task.head.task_id,
            task.head.raw_sha256,
            now,
            now + key_kept_ms(task.head),
        ),
    )
    return bool(connection.changes())


def _remember_body(connection: apsw.Connection, head: Head) -> None:
    """The body that counts is that of the task."""
    (raw,) = connection.execute("SELECT raw FROM tasks WHERE task_id = ?", (head.task_id,)).fetchone()
    connection.execute(
        "UPDATE receipts SET body_sha256 = ? WHERE delivery_key = ?",
        (hashlib.sha256(raw).hexdigest(), head.delivery_key),
    )


def _duplicate(connection: apsw.Connection, task: NewTask) -> Enqueued:
    row = connection.execute(
        "UPDATE receipts SET duplicates = duplicates + 1 WHERE delivery_key = ? RETURNING task_id, body_sha256",
        (task.head.delivery_key,),
    ).fetchone()
    _count(connection, "duplicates")
    return Enqueued(TaskId(row[0]), new=False, same_body=row[1] == task.head.raw_sha256)


def _announce(connection: apsw.Connection, head: Head, now: int, *, due: int) -> tuple[bool, bool]:
    """Say that the lane has work, from when it is due; returns whether the task came out of order, and late. What is
    planned stands by its moment, in whatever order it came.
    """
    is_planned = due > now
    order = _UNDATED if is_planned else head.order
    row = connection.execute(
        "SELECT newest_at, newest_seq, started_at, started_seq FROM lanes WHERE lane = ?", (head.lane,)
    ).fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO lanes (lane, channel, ready_at, newest_at, newest_seq, touched_at, is_awaited)"
            " VALUES (?,?,?,?,?,?,?)",
            (head.lane, head.channel, due, order.at_ms, order.seq, now, head.is_awaited),
        )
        return False, False
    newest, started = Order(row[0], row[1]), Order(row[2], row[3])
    late = order < started and not is_planned
    out_of_order = late or (order < newest and not is_planned)
    newest = max(newest, order)
    connection.execute(
        "UPDATE lanes SET newest_at = ?, newest_seq = ?, touched_at = ?,"
        " is_awaited = ? OR (is_awaited AND ready_at IS NOT NULL),"
        " ready_at = CASE WHEN holder IS NULL THEN min(coalesce(ready_at, ?), ?) ELSE ready_at END WHERE lane = ?",
        (newest.at_ms, newest.seq, now, head.is_awaited, due, due, head.lane),
    )
    if out_of_order:
        _count(connection, "out_of_order")
    if late:
        _count(connection, "late")
    return out_of_order, late


def _find_forgotten(connection: apsw.Connection, now: int) -> tuple[list[tuple[LaneKey, str, bool]], list[TaskId]]:
    """Lanes that have work and no time to be claimed at, and whether somebody waits in them; suspended tasks past
    their deadline.
    """
    lanes = connection.execute(
        f"SELECT lane, channel, max(is_awaited) FROM tasks INDEXED BY tasks_runnable WHERE {_RUNNABLE} AND NOT EXISTS"
        " (SELECT 1 FROM lanes WHERE lanes.lane = tasks.lane AND ready_at IS NOT NULL) GROUP BY lane, channel"
    ).fetchall()
    expired = connection.execute(
        # It has been answered, perhaps; only a person can say what is to come of a held reply.
        "SELECT task_id FROM tasks WHERE status = 'suspended' AND reason <> ? AND deadline_at < ?",
        (Reason.REPLY_HELD, now),
    ).fetchall()
    return lanes, [task_id for (task_id,) in expired]


def _make_ready(connection: apsw.Connection, lane: LaneKey, channel: str, now: int, *, is_awaited: bool) -> None:
    connection.execute(
        "INSERT INTO lanes (lane, channel, ready_at, newest_at, newest_seq, touched_at, is_awaited)"
        " VALUES (?,?,?,0,0,?,?) ON CONFLICT (lane) DO UPDATE SET touched_at = excluded.touched_at,"
        " is_awaited = excluded.is_awaited OR (is_awaited AND ready_at IS NOT NULL),"
        " ready_at = CASE WHEN holder IS NULL OR ready_at IS NULL"
        " THEN min(coalesce(ready_at, excluded.ready_at), excluded.ready_at) ELSE ready_at END",
        (lane, channel, now, now, is_awaited),
    )


def _let_go(connection: apsw.Connection, lane: LaneKey, ready_at: int | None, now: int) -> None:
    connection.execute(
        "UPDATE lanes SET holder = NULL, ready_at = ?, touched_at = ? WHERE lane = ?", (ready_at, now, lane)
    )


def _anything_ready(connection: apsw.Connection, room: Mapping[str, int], now: int) -> bool:
    return any(
        connection.execute(
            f"SELECT 1 FROM {_READY} AND channel = ? AND ready_at <= ? LIMIT 1", (channel, now)
        ).fetchone()
        for channel, places in room.items()
        if places > 0
    )


def _turns(connection: apsw.Connection, channel: str, places: int, now: int) -> Turns[LaneKey]:
    """The lanes that may be claimed, each in its turn; where there is room for all, longest-waiting first. A few more
    than there is room for: some turn out not to be due."""

    def first_of(source: str) -> list[LaneKey]:
        found = connection.execute(
            f"SELECT lane FROM {source} AND channel = ? AND ready_at <= ? ORDER BY ready_at, lane LIMIT ?",
            (channel, now, places * 2 + 10),
        )
        return [LaneKey(lane) for (lane,) in found]

    lanes = first_of(_READY) if places > 0 else []
    if len(lanes) <= places:
        return Turns([], lanes, turn=0)
    row = connection.execute("SELECT value FROM counters WHERE name = ?", (_TURN_OF + channel,)).fetchone()
    return Turns(first_of(_AWAITED), lanes, turn=row[0] if row else 0)


def _keep_turn(connection: apsw.Connection, channel: str, turns: Turns[LaneKey]) -> None:
    if turns.turn:
        connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (_TURN_OF + channel, turns.turn))


def _first_task(connection: apsw.Connection, lane: LaneKey) -> Task | None:
    """The lane's first runnable task. What this version cannot read is suspended and the next one taken."""
    while True:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM tasks INDEXED BY tasks_runnable WHERE lane = ? AND {_RUNNABLE}"
            f" ORDER BY {_PLACE} LIMIT 1",
            (lane,),
        ).fetchone()
        if row is None:
            return None
        try:
            return _task(row, decode_head(row[0]))
        except EnvelopeMalformed as error:
            _suspend(connection, row[-1], Reason.SCHEMA_NEWER, str(error))


def _has_suspended(connection: apsw.Connection, lane: LaneKey) -> bool:
    found = connection.execute("SELECT 1 FROM tasks WHERE lane = ? AND status = 'suspended' LIMIT 1", (lane,))
    return found.fetchone() is not None


def _suspend(connection: apsw.Connection, task_id: TaskId, reason: Reason, error: str) -> None:
    connection.execute(
        "UPDATE tasks SET status = 'suspended', reason = ?, error = ? WHERE task_id = ?",
        (reason.value, error, task_id),
    )


def _get(connection: apsw.Connection, task_id: TaskId) -> Task | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
    return _task(row, _head_or_stand_in(connection, task_id, row[0])) if row else None


def _whole_lanes(
    connection: apsw.Connection, where: str, values: Sequence[Any], limit: int
) -> list[tuple[LaneKey, str]]:
    """The lanes of what is selected, oldest first, until they hold about `limit` tasks."""
    chosen: list[tuple[LaneKey, str]] = []
    count = 0
    for lane, channel, tasks in connection.execute(
        f"SELECT lane, channel, count(*) FROM tasks WHERE {where} GROUP BY lane ORDER BY min(order_at), lane", values
    ):
        if count >= limit:
            break
        count += tasks
        chosen.append((lane, channel))
    return chosen


def _open_tasks(
    connection: apsw.Connection,
    where: str,
    values: Sequence[Any],
    limit: int | None = None,
    source: str = "tasks",
    *,
    order: str = "task_id",
) -> list[OpenTask]:
    rows = connection.execute(
        "SELECT task_id, head, status, reason, error, generation, attempts, deaths, due_at, updated_at"
        f" FROM {source} WHERE {where} ORDER BY {order} LIMIT ?",
        (*values, -1 if limit is None else limit),
    ).fetchall()
    return [_open_task(connection, row) for row in rows]


def _open_task(connection: apsw.Connection, row: Sequence[Any]) -> OpenTask:
    task_id, stored, said, because, noted, generation, attempts, deaths, due_at, updated_at = row
    head = _head_or_stand_in(connection, task_id, stored)
    status, reason, error = words_of(said, because, noted)
    return OpenTask(head, status, reason, generation, attempts, deaths, due_at, updated_at, error)


def _head_or_stand_in(connection: apsw.Connection, task_id: str, stored: bytes) -> Head:
    try:
        return decode_head(stored)
    except EnvelopeMalformed:
        channel, account, lane, at_ms, seq, accepted_at = connection.execute(
            "SELECT channel, account, lane, order_at, order_seq, accepted_at FROM tasks WHERE task_id = ?",
            (task_id,),
        ).fetchone()
        return unreadable_head(
            TaskId(task_id),
            channel=channel,
            account=account,
            lane=lane,
            order=Order(at_ms, seq),
            accepted_at_ms=accepted_at,
        )


def _task(row: Sequence[Any], head: Head) -> Task:
    (
        _,
        raw,
        status,
        reason,
        generation,
        attempts,
        deaths,
        due_at,
        deadline_at,
        since,
        updated_at,
        error,
        accepted_at,
        is_begun,
        _,
    ) = row
    known_status, known_reason, error = words_of(status, reason, error)
    return Task(
        head,
        raw,
        Progress(
            status=known_status,
            reason=known_reason,
            generation=generation,
            attempts=attempts,
            deaths=deaths,
            due_at_ms=due_at,
            deadline_at_ms=deadline_at,
            failing_since_ms=since,
            updated_at_ms=updated_at,
            accepted_at_ms=accepted_at,
            is_begun=bool(is_begun),
            error=error,
        ),
    )


def _mark_processing(connection: apsw.Connection, task: Task, claimed_until: int, now: int) -> Task:
    order = task.head.order
    connection.execute(
        "UPDATE lanes SET ready_at = ?, touched_at = ? WHERE lane = ?", (claimed_until, now, task.head.lane)
    )
    connection.execute(
        "UPDATE lanes SET started_at = ?, started_seq = ? WHERE lane = ? AND (started_at, started_seq) < (?, ?)",
        (order.at_ms, order.seq, task.head.lane, order.at_ms, order.seq),
    )
    connection.execute(
        "UPDATE tasks SET status = 'processing', is_begun = 1, updated_at = ? WHERE task_id = ?", (now, task.task_id)
    )
    progress = msgspec.structs.replace(task.progress, status=Status.PROCESSING, updated_at_ms=now)
    return msgspec.structs.replace(task, progress=progress)


def _apply(connection: apsw.Connection, task_id: TaskId, settlement: Settlement, now: int) -> None:
    # Only what is still being processed is settled: a repeated settle, or one for a task that a person took
    # away or delivery has finished meanwhile, finds nothing to change.
    running = "task_id = ? AND status = 'processing'"
    match settlement:
        case Finished():
            connection.execute(f"DELETE FROM tasks WHERE {running}", (task_id,))
        case Replying():
            connection.execute(f"DELETE FROM tasks WHERE {running} AND is_answered", (task_id,))
            connection.execute(
                f"UPDATE tasks SET status = 'replying', reason = NULL, error = NULL, updated_at = ? WHERE {running}",
                (now, task_id),
            )
        case RetryIn(seconds, error, counts, is_begun):
            connection.execute(
                "UPDATE tasks SET status = 'pending', due_at = ?, error = ?, updated_at = ?, attempts = attempts + ?,"
                f" failing_since = iif(?, coalesce(failing_since, ?), NULL), is_begun = ? WHERE {running}",
                (now + int(seconds * 1000), _storable(error), now, int(counts), counts, now, is_begun, task_id),
            )
        case Anew(generation):
            connection.execute(
                "UPDATE tasks SET status = 'pending', is_answered = iif(generation = ?1, is_answered, 0),"
                " generation = ?1, updated_at = ?2 WHERE task_id = ?3 AND status = 'processing'",
                (generation, now, task_id),
            )
        case Suspend(reason, error):
            connection.execute(
                f"UPDATE tasks SET status = 'suspended', reason = ?, error = ?, updated_at = ? WHERE {running}",
                (reason.value, _storable(error), now, task_id),
            )


def _storable(text: str | None) -> str | None:
    """Errors quote what people wrote, and that may hold what SQLite's UTF-8 cannot."""
    return None if text is None else clean_text(text)


def _count(connection: apsw.Connection, name: str) -> int:
    row = connection.execute("UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (name,)).fetchone()
    return int(row[0])


def _where(selection: Selection) -> tuple[str, list[Any]]:
    parts: list[str] = ["1"]
    values: list[Any] = []
    for column, value in (
        ("status", selection.status.value if selection.status else None),
        ("reason", selection.reason.value if selection.reason else None),
        ("channel", selection.channel),
        ("account", selection.account),
        ("lane", selection.lane),
    ):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if selection.is_runnable or selection.status in (Status.PENDING, Status.PROCESSING):
        parts.append(_RUNNABLE)  # said as the index has it, or SQLite does not see that it would do
    if selection.status is Status.PROCESSING:
        parts.append("status = 'processing'")  # and so with that one's own
    if selection.routes:
        parts.append(f"(channel, account, workflow_id) IN (VALUES {','.join(['(?,?,?)'] * len(selection.routes))})")
        values += [part for route in selection.routes for part in msgspec.structs.astuple(route)]
    if selection.older_than_ms is not None:
        parts.append("accepted_at < ?")
        values.append(selection.older_than_ms)
    if selection.task_ids:
        # As one value: a person may select more than a statement may have parameters.
        parts.append("task_id IN (SELECT value FROM json_each(?))")
        values.append(encode_json(selection.task_ids).decode())
    return " AND ".join(parts), values


def _where_shown(selection: Selection) -> tuple[str, list[Any]]:
    """For looking: what a newer version says in words of its own is shown as suspended, `words_of`."""
    if selection.status is not Status.SUSPENDED or selection.reason not in (None, Reason.SCHEMA_NEWER):
        return _where(selection)
    where, values = _where(msgspec.structs.replace(selection, status=None, reason=None))
    # The first as the index has it, or a million that are not suspended would be gone through.
    where = f"{where} AND status NOT IN ('pending', 'processing', 'replying')"
    newer = f"status NOT IN ({_listed(Status)}) OR status = 'suspended' AND reason NOT IN ({_listed(Reason)})"
    known = "status = 'suspended'" + (" AND reason = 'schema_newer'" if selection.reason else "")
    return f"{where} AND ({known} OR {newer})", values


def _listed(words: type[StrEnum]) -> str:
    return ", ".join(f"'{word.value}'" for word in words)


def _depth(connection: apsw.Connection, now: int) -> QueueDepth:
    def one(sql: str, *values: Any) -> Any:
        return connection.execute(sql, values).fetchone()[0]

    # One walk over the open tasks, however many there are: it is taken often.
    groups = connection.execute(
        "SELECT status, channel, reason, count(*), sum(status = 'pending' AND due_at > ?1 AND error IS NOT NULL),"
        " sum(status = 'pending' AND due_at > ?1 AND error IS NULL), min(updated_at)"
        " FROM tasks GROUP BY status, channel, reason",
        (now,),
    ).fetchall()
    by_status: Counter[str] = Counter()
    by_channel: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    suspended_by_channel: Counter[str] = Counter()
    for status, channel, reason, count, *_ in groups:
        by_status[status] += count
        by_channel[channel] += count
        if status == Status.SUSPENDED:
            suspended_by_channel[channel] += count
        if reason is not None:
            by_reason[reason] += count
    suspended_since = [since for status, *_, since in groups if status == Status.SUSPENDED]
    firsts = f"SELECT channel, min(ready_at) FROM {_READY} AND ready_at <= ? GROUP BY channel"
    waiting = connection.execute(firsts, (now,))  # lapsed claims wait, too
    return QueueDepth(
        by_status=dict(by_status),
        by_channel=dict(by_channel),
        by_reason=dict(by_reason),
        suspended_by_channel=dict(suspended_by_channel),
        retrying=sum(retrying for *_, retrying, _, _ in groups),
        planned=sum(planned for *_, planned, _ in groups),
        waiting_ms_by_channel={channel: now - since for channel, since in waiting},
        oldest_suspended_ms=now - min(suspended_since) if suspended_since else None,
        lanes_claimed=one("SELECT count(*) FROM lanes WHERE holder IS NOT NULL AND ready_at > ?", now),
        accepted=one("SELECT count(*) FROM receipts"),
        duplicates=one("SELECT value FROM counters WHERE name = 'duplicates'"),
        out_of_order=one("SELECT value FROM counters WHERE name = 'out_of_order'"),
    )

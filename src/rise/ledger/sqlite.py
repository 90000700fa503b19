"""The embedded ledger: in the same SQLite file as the queue, behind its own port.

Its outbox has a file of its own, `sqlite_outbox.py`, and so has forgetting, `sqlite_forgetting.py`.

Refuses: to change a result that is there; to touch the queue's tables, though they are in the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import apsw

from rise.connections.sqlite import Database
from rise.envelope import (
    MOMENT_MS_MAX,
    Outcome,
    Progress,
    RunId,
    Status,
    Task,
    TaskId,
    clean_text,
    encode_head,
    encode_json,
)
from rise.ledger import sqlite_forgetting as forgetting
from rise.ledger import sqlite_outbox as outbox
from rise.ledger.kept import (
    ATTEMPTS_KEPT,
    HISTORY_KEPT,
    kept_text,
    known_status,
    known_word,
    read_head,
    read_result,
    read_task,
)
from rise.ledger.port import (
    AccountsHeld,
    Attempt,
    ChatForgotten,
    ChatMove,
    Delivered,
    Ended,
    HistoryLine,
    Office,
    Operation,
    OutboxDepth,
    Reply,
    ReplyKind,
    ReplyState,
    Run,
    RunResult,
    SendEnding,
)
from rise.ledger.sqlite_chats import Chat, first_id
from rise.ledger.sqlite_rows import forget_workings

SCHEMA: Final = (
    """
    CREATE TABLE runs (
        run_id TEXT PRIMARY KEY,
        task_id TEXT NOT NULL,
        generation INTEGER NOT NULL,
        channel TEXT NOT NULL,
        workflow_id TEXT,
        workflow_version INTEGER,
        status TEXT NOT NULL,
        outcome TEXT,
        result BLOB NOT NULL,
        head BLOB NOT NULL,
        raw BLOB NOT NULL,
        saved_at INTEGER NOT NULL,
        finished_at INTEGER,
        by_whom TEXT,
        why TEXT
    );
    CREATE INDEX runs_by_task ON runs (task_id, generation);
    CREATE INDEX runs_finished ON runs (finished_at, status, outcome) WHERE finished_at IS NOT NULL;

    CREATE TABLE steps (
        run_id TEXT NOT NULL, step TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (run_id, step)
    ) WITHOUT ROWID;
    CREATE TABLE attempts (
        run_id TEXT NOT NULL, at INTEGER NOT NULL, error TEXT NOT NULL, counted INTEGER NOT NULL
    );
    CREATE INDEX attempts_by_run ON attempts (run_id);

    CREATE TABLE history (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        channel TEXT NOT NULL, account TEXT NOT NULL, chat_id TEXT NOT NULL,
        role TEXT NOT NULL, text TEXT NOT NULL, at INTEGER NOT NULL, run_id TEXT
    );
    CREATE INDEX history_by_chat ON history (channel, account, chat_id, sequence);

    CREATE TABLE replies (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        reply_id TEXT NOT NULL UNIQUE,
        run_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        channel TEXT NOT NULL, account TEXT NOT NULL, chat_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        call BLOB NOT NULL,
        workflow_id TEXT,
        accepted_at INTEGER NOT NULL,
        deadline_at INTEGER,
        saved_at INTEGER NOT NULL,
        state TEXT NOT NULL,
        held INTEGER NOT NULL DEFAULT 0,
        fence INTEGER,
        tries INTEGER NOT NULL DEFAULT 0,
        resends INTEGER NOT NULL DEFAULT 0,
        platform_ref TEXT,
        error TEXT
    );
    CREATE INDEX replies_open ON replies (channel, account, chat_id, sequence)
        WHERE state IN ('ready', 'sending') AND held = 0;
    CREATE INDEX replies_by_run ON replies (run_id);
    CREATE INDEX replies_by_task ON replies (task_id);
    CREATE INDEX replies_by_chat ON replies (channel, account, chat_id, sequence);
    CREATE INDEX replies_waiting ON replies (state, held) WHERE state IN ('ready', 'sending', 'unknown');

    CREATE TABLE outbox_chats (
        channel TEXT NOT NULL, account TEXT NOT NULL, chat_id TEXT NOT NULL,
        ready_at INTEGER,
        PRIMARY KEY (channel, account, chat_id)
    ) WITHOUT ROWID;
    CREATE INDEX outbox_ready ON outbox_chats (ready_at) WHERE ready_at IS NOT NULL;
    CREATE TABLE chat_aliases (
        channel TEXT NOT NULL, account TEXT NOT NULL, chat_id TEXT NOT NULL, moved_to TEXT NOT NULL,
        PRIMARY KEY (channel, account, chat_id)
    ) WITHOUT ROWID;

    CREATE TABLE workflows (workflow_id TEXT PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE bindings (
        channel TEXT NOT NULL, account TEXT NOT NULL, workflow_id TEXT NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (channel, account, workflow_id)
    ) WITHOUT ROWID;
    CREATE TABLE operations (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL, why TEXT NOT NULL
    );
    CREATE TABLE ledger_counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO ledger_counters VALUES ('sender_fence', 0), ('definitions', 0), ('resent', 0);
    """,
    """
    ALTER TABLE runs ADD COLUMN accepted_at INTEGER NOT NULL DEFAULT 0;
    UPDATE runs SET accepted_at = saved_at;
    CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL);
    INSERT INTO identity VALUES (1, lower(hex(randomblob(16))));
    ALTER TABLE runs ADD COLUMN is_armed INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE offices (office TEXT PRIMARY KEY, member TEXT NOT NULL, until_at INTEGER NOT NULL) WITHOUT ROWID;
    ALTER TABLE outbox_chats ADD COLUMN claim INTEGER;
    ALTER TABLE outbox_chats ADD COLUMN claim_before INTEGER;
    INSERT INTO ledger_counters VALUES ('outbox_claims', 0);
    """,
    """
    ALTER TABLE replies ADD COLUMN too_late INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX outbox_urgent ON outbox_chats (ready_at) WHERE ready_at IS NOT NULL AND chat_id GLOB 'urgent:*';
    CREATE TABLE chat_moves (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        channel TEXT NOT NULL, account TEXT NOT NULL, chat_id TEXT NOT NULL, first_id TEXT NOT NULL,
        UNIQUE (channel, account, chat_id)
    );
    INSERT OR IGNORE INTO chat_moves (channel, account, chat_id, first_id)
        SELECT channel, account, moved_to, chat_id FROM chat_aliases;
    UPDATE history SET chat_id = moves.first_id FROM chat_moves moves
        WHERE (history.channel, history.account, history.chat_id) = (moves.channel, moves.account, moves.chat_id);
    """,
    # What code had bound is bound anew at the next start, in a room of its own; nobody else could bind anything.
    """
    DROP TABLE workflows;
    DROP TABLE bindings;
    DELETE FROM ledger_counters WHERE name = 'definitions';
    """,
    # What is in doubt first: in the order of this index 'sending' comes before 'ready'.
    """
    DROP INDEX replies_open;
    CREATE INDEX replies_open ON replies (channel, account, chat_id, state DESC, sequence)
        WHERE state IN ('ready', 'sending') AND held = 0;
    """,
    """
    ALTER TABLE runs ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE attempts ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
    UPDATE attempts SET number = numbered.number FROM
        (SELECT rowid AS row, row_number() OVER (PARTITION BY run_id ORDER BY rowid) AS number FROM attempts) numbered
        WHERE attempts.rowid = numbered.row;
    """,
)


_RUN_COLUMNS: Final = (
    "task_id, generation, status, outcome, result, workflow_id, saved_at, finished_at, by_whom, why, accepted_at,"
    " fingerprint, is_armed, workflow_version"
)


class SqliteLedger:
    """`rise.ledger.port.Ledger` on one SQLite file, for any number of processes on one host."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _now(self) -> int:
        return self._database.now_ms()

    # --- results ---

    async def save_result(
        self,
        task: Task,
        result: RunResult,
        replies: Sequence[Reply],
        history: Sequence[HistoryLine],
        *,
        deliver: bool,
    ) -> Run:
        value, head = encode_json(result.value), encode_head(task.head)
        calls = [encode_json(reply.call) for reply in replies]

        def change(connection: apsw.Connection) -> Run:
            known = _run(connection, task.run_id)
            if known is not None:
                return known
            now = self._now()
            open_replies = deliver and any(reply.kind is ReplyKind.ANSWER for reply in replies)
            is_open = open_replies or result.outcome is Outcome.MERGED
            status = Status.REPLYING if is_open else Status.COMPLETED
            _insert_run(connection, task, head, status, result, value, now, finished=not is_open)
            for reply, call in zip(replies, calls, strict=True):
                state = ReplyState.READY if deliver or reply.kind is ReplyKind.CALLBACK else ReplyState.SENT
                outbox.add_reply(connection, reply, call, state, now)
            _append_history(connection, task, history)
            if not is_open:
                forget_workings(connection, task.run_id)
            return _run(connection, task.run_id) or _missing(task.run_id)

        return await self._database.write(change)

    async def finish(
        self,
        task: Task,
        status: Status,
        outcome: Outcome | None = None,
        *,
        by: str = "",
        why: str = "",
        callback: Reply | None = None,
    ) -> Run:
        assert status.is_finished
        head = encode_head(task.head)
        call = None if callback is None else encode_json(callback.call)

        def change(connection: apsw.Connection) -> Run:
            now = self._now()
            known = _run(connection, task.run_id)
            if known is None:
                ended = RunResult(outcome=outcome or Outcome.SILENT)
                _insert_run(connection, task, head, status, ended, b"null", now, finished=True)
                connection.execute("UPDATE runs SET outcome = ? WHERE run_id = ?", (outcome, task.run_id))
            elif not known.status.is_finished:
                connection.execute(
                    "UPDATE runs SET status = ?, outcome = ?, finished_at = ? WHERE run_id = ?",
                    (status, outcome, now, task.run_id),
                )
                outbox.close_replies(connection, task.run_id, f"the task was {status}")
            else:
                return known
            if callback is not None and call is not None:
                outbox.add_callback(connection, callback, call, now)
            connection.execute(
                "UPDATE runs SET by_whom = ?, why = ? WHERE run_id = ?",
                (clean_text(by) or None, clean_text(why) or None, task.run_id),
            )
            forget_workings(connection, task.run_id)
            return _run(connection, task.run_id) or _missing(task.run_id)

        return await self._database.write(change)

    async def note_armed(self, run_id: RunId) -> None:
        def change(connection: apsw.Connection) -> None:
            connection.execute("UPDATE runs SET is_armed = 1 WHERE run_id = ?", (run_id,))

        await self._database.write(change)

    async def run(self, run_id: RunId) -> Run | None:
        return await self._database.read(lambda connection: _run(connection, run_id))

    async def latest_run(self, task_id: TaskId) -> Run | None:
        def query(connection: apsw.Connection) -> Run | None:
            row = connection.execute(
                f"SELECT {_RUN_COLUMNS} FROM runs WHERE task_id = ? ORDER BY generation DESC LIMIT 1",
                (task_id,),
            ).fetchone()
            return _as_run(row) if row else None

        return await self._database.read(query)

    async def archived(self, task_id: TaskId) -> Task | None:
        def query(connection: apsw.Connection) -> Task | None:
            row = connection.execute(
                "SELECT head, raw, channel, status, generation, finished_at, accepted_at, fingerprint FROM runs"
                " WHERE task_id = ? ORDER BY generation DESC LIMIT 1",
                (task_id,),
            ).fetchone()
            return _archived(task_id, row) if row else None

        return await self._database.read(query)

    async def finished_among(self, task_ids: Sequence[TaskId]) -> dict[TaskId, Run]:
        def query(connection: apsw.Connection) -> dict[TaskId, Run]:
            rows = connection.execute(
                # As one value: more may be asked after than a statement may have parameters.
                f"SELECT {_RUN_COLUMNS} FROM runs WHERE task_id IN (SELECT value FROM json_each(?))"
                " ORDER BY generation",
                (encode_json(task_ids).decode(),),
            )
            runs = {TaskId(row[0]): _as_run(row) for row in rows}
            return {task_id: run for task_id, run in runs.items() if run.status.is_finished}

        return await self._database.read(query) if task_ids else {}

    async def ended(self, *, limit: int, before_ms: int = MOMENT_MS_MAX) -> list[Ended]:
        rows = await self._rows(
            f"SELECT head, {_RUN_COLUMNS} FROM runs INDEXED BY runs_finished WHERE finished_at < ?1 AND finished_at >="
            " (SELECT min(finished_at) FROM (SELECT finished_at FROM runs INDEXED BY runs_finished"
            " WHERE finished_at < ?1 ORDER BY finished_at DESC LIMIT ?2)) ORDER BY finished_at DESC, run_id DESC",
            (before_ms, limit),
        )
        return [Ended(_as_run(run), read_head(head)) for head, *run in rows]

    async def save_step(self, run_id: RunId, step: str, value: bytes) -> bytes:
        def change(connection: apsw.Connection) -> bytes:
            connection.execute("INSERT OR IGNORE INTO steps VALUES (?,?,?)", (run_id, step, value))
            if connection.changes():
                return value
            kept = connection.execute(
                "SELECT value FROM steps WHERE run_id = ? AND step = ?", (run_id, step)
            ).fetchone()
            return bytes(kept[0])

        return await self._database.write(change)

    async def steps(self, run_id: RunId) -> dict[str, bytes]:
        return await self._database.read(
            lambda connection: dict(connection.execute("SELECT step, value FROM steps WHERE run_id = ?", (run_id,)))
        )

    async def add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO attempts (run_id, at, error, counted, number)"
                " SELECT ?1, ?2, ?3, ?4, ifnull(max(number), 0) + 1 FROM attempts WHERE run_id = ?1",
                (run_id, attempt.at_ms, clean_text(attempt.error), int(attempt.counted)),
            )
            connection.execute(
                "DELETE FROM attempts WHERE run_id = ?1"
                " AND number <= (SELECT max(number) FROM attempts WHERE run_id = ?1) - ?2",
                (run_id, ATTEMPTS_KEPT),
            )

        await self._database.write(change)

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        rows = await self._rows(
            "SELECT at, error, counted, number FROM attempts WHERE run_id = ? ORDER BY number DESC LIMIT ?",
            (run_id, ATTEMPTS_KEPT),
        )
        return [
            Attempt(at_ms=at, error=error, counted=bool(counted), number=number)
            for at, error, counted, number in reversed(rows)
        ]

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[HistoryLine]:
        def query(connection: apsw.Connection) -> list[Any]:
            known_as = first_id(connection, (channel, account, chat_id))
            newest_first = connection.execute(
                "SELECT role, text, at, run_id FROM history WHERE channel = ? AND account = ? AND chat_id = ?"
                " ORDER BY sequence DESC LIMIT ?",
                (channel, account, known_as, limit),
            )
            return list(newest_first)

        rows = await self._database.read(query)
        return [HistoryLine(role=role, text=text, at_ms=at, run_id=run_id) for role, text, at, run_id in reversed(rows)]

    # --- chats ---

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        old = (channel, account, chat_id)
        await self._database.write(lambda connection: outbox.move_chat(connection, old, moved_to))

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        rows = await self._rows(
            "SELECT channel, account, chat_id, first_id, sequence FROM chat_moves WHERE sequence > ? ORDER BY sequence",
            (after,),
        )
        return [
            ChatMove(channel=channel, account=account, chat_id=chat_id, first_id=first, sequence=sequence)
            for channel, account, chat_id, first, sequence in rows
        ]

    # --- outbox ---

    async def add_notice(self, reply: Reply, *, deliver: bool = True, unless_run: RunId | None = None) -> bool:
        call, state = encode_json(reply.call), ReplyState.READY if deliver else ReplyState.SENT

        def change(connection: apsw.Connection) -> bool:
            if connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (unless_run,)).fetchone():
                return False
            return outbox.add_reply(connection, reply, call, state, self._now())

        return await self._database.write(change)

    async def outbox_open(self) -> int:
        return await self._database.write(lambda connection: outbox.begin(connection, self._now()))

    async def outbox_take(
        self,
        fence: int,
        *,
        limit: int,
        urgent_limit: int = 0,
        accounts_excluded: Sequence[tuple[str, str]] = (),
        accounts_urgent_only: Sequence[tuple[str, str]] = (),
    ) -> list[Reply]:
        held = AccountsHeld(frozenset(accounts_excluded), frozenset(accounts_urgent_only))
        limits = {"limit": limit, "urgent_limit": urgent_limit}
        if not await self._database.read(lambda connection: outbox.has_due(connection, self._now(), held, **limits)):
            return []  # most looks find nothing; they must not cost an fsync
        return await self._database.write(
            lambda connection: outbox.take_due(connection, fence, self._now(), held, **limits)
        )

    async def outbox_sending(self, fence: int, reply: Reply) -> None:
        await self._database.write(lambda connection: outbox.begin_sending(connection, fence, reply))

    async def outbox_record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        return await self._database.write(
            lambda connection: outbox.record(connection, fence, self._now(), reply, ending)
        )

    async def outbox_release(self, fence: int, reply: Reply, *, seconds: float) -> None:
        await self._database.write(
            lambda connection: outbox.release(connection, fence, reply, self._now() + int(seconds * 1000))
        )

    async def outbox_rearm(self, run_id: RunId) -> int:
        return await self._database.write(lambda connection: outbox.rearm(connection, run_id, self._now()))

    async def outbox_depth(self) -> OutboxDepth:
        return await self._database.read(lambda connection: outbox.depth(connection, self._now()))

    async def replies(self, *, run_id: RunId | None = None, task_id: TaskId | None = None) -> list[Reply]:
        column, value = ("run_id", run_id) if run_id is not None else ("task_id", task_id)
        rows = await self._rows(
            f"SELECT {outbox.REPLY_COLUMNS} FROM replies WHERE {column} = ? ORDER BY sequence", (value,)
        )
        return [outbox.as_reply(row) for row in rows]

    async def transcript(self, channel: str, account: str, chat_id: str, *, after: int, limit: int) -> list[Reply]:
        rows = await self._rows(
            f"SELECT {outbox.REPLY_COLUMNS} FROM replies INDEXED BY replies_by_chat"
            " WHERE channel = ? AND account = ? AND chat_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (channel, account, chat_id, after, limit),
        )
        return [outbox.as_reply(row) for row in rows]

    # --- who it is ---

    async def identity(self) -> str:
        [(name,)] = await self._rows("SELECT name FROM identity", ())
        return str(name)

    # --- offices ---

    async def take_office(self, office: Office, member: str, *, seconds: float) -> bool:
        def change(connection: apsw.Connection) -> bool:
            now = self._now()
            connection.execute(
                "INSERT INTO offices VALUES (?1, ?2, ?3) ON CONFLICT (office) DO UPDATE"
                " SET member = excluded.member, until_at = excluded.until_at WHERE member = ?2 OR until_at <= ?4",
                (office, member, now + int(seconds * 1000), now),
            )
            return bool(connection.changes())

        return await self._database.write(change)

    async def leave_offices(self, member: str) -> None:
        def change(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM offices WHERE member = ?", (member,))

        await self._database.write(change)

    # --- people ---

    async def record_operation(self, operation: Operation) -> None:
        texts = map(clean_text, (operation.who, operation.action, operation.target, operation.why))
        values = (operation.at_ms, *texts)

        def change(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO operations (at, who, action, target, why) VALUES (?,?,?,?,?)", values)

        await self._database.write(change)

    async def operations(self, *, limit: int) -> list[Operation]:
        rows = await self._rows(
            "SELECT at, who, action, target, why FROM operations ORDER BY sequence DESC LIMIT ?", (limit,)
        )
        return [
            Operation(at_ms=at, who=who, action=action, target=target, why=why) for at, who, action, target, why in rows
        ]

    async def purge(self, *, finished_before_ms: int, limit: int = 5000) -> int:
        def change(connection: apsw.Connection) -> int:
            old = connection.execute(
                "SELECT run_id FROM runs WHERE finished_at < ? ORDER BY finished_at LIMIT ?",
                (finished_before_ms, limit),
            ).fetchall()
            for table in ("runs", "replies", "steps", "attempts"):
                connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", old)
            return len(old)

        return await self._database.write(change)

    async def forget_raw(self, *, finished_before_ms: int, after_ms: int = 0, limit: int = 500) -> int | None:
        ended = await self._database.read(
            lambda connection: forgetting.look_for_raw(connection, after_ms, finished_before_ms, limit)
        )
        if ended is None:
            return None
        if ended.is_anything_left:
            await self._database.write(lambda connection: forgetting.forget_raw(connection, ended))
        return ended.until_ms

    async def forget_history(self, *, said_before_ms: int, after: str = "", limit: int = 500) -> str | None:
        def query(connection: apsw.Connection) -> tuple[list[Chat], list[Chat]]:
            chats = forgetting.chats_beyond(connection, after, limit)
            return chats, [one for one in chats if forgetting.has_turns_before(connection, one, said_before_ms)]

        chats, old = await self._database.read(query)
        if old:
            await self._database.write(
                lambda connection: forgetting.forget_turns_before(connection, old, said_before_ms)
            )
        return encode_json(chats[-1]).decode() if 0 < limit <= len(chats) else None

    async def forget_chat(
        self, channel: str, account: str, chat_id: str, *, after: str = "", limit: int = 500, dry_run: bool = False
    ) -> ChatForgotten:
        chat = (channel, account, chat_id)
        found, late, seen = await self._database.read(
            lambda connection: forgetting.look_for(connection, chat, after, max(1, limit))
        )
        if dry_run:
            return seen
        if late:
            await self._database.write(lambda connection: forgetting.forget_late(connection, late))
        for bite in forgetting.bites(found):
            await self._database.write(partial(forgetting.forget_runs, bite=bite))
        if seen.after is None:
            await self._database.write(lambda connection: forgetting.forget_turns(connection, chat))
        return seen

    async def finished_counts(self) -> Mapping[str, int]:
        rows = await self._rows(
            "SELECT status, outcome, count(*) FROM runs INDEXED BY runs_finished"
            " WHERE finished_at IS NOT NULL GROUP BY 1, 2",
            (),
        )
        return {f"{status}.{outcome}" if outcome else status: count for status, outcome, count in rows}

    # --- shorthand ---

    async def _rows(self, sql: str, values: Sequence[Any]) -> list[Any]:
        def query(connection: apsw.Connection) -> list[Any]:
            return list(connection.execute(sql, values))

        return await self._database.read(query)


# --- single steps, each inside its caller's transaction ---------------------------------------------------


def _insert_run(
    connection: apsw.Connection,
    task: Task,
    head: bytes,
    status: Status,
    result: RunResult,
    value: bytes,
    now: int,
    *,
    finished: bool,
) -> None:
    _drop_former(connection, task, now)
    if task.head.moved is not None:
        old, moved_to = task.head.moved
        outbox.move_chat(connection, (task.head.channel, task.head.account, old), moved_to)
    connection.execute(
        "INSERT INTO runs (run_id, task_id, generation, channel, workflow_id, workflow_version, status, outcome,"
        " result, head, raw, saved_at, finished_at, accepted_at, fingerprint) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            task.run_id, task.task_id, task.progress.generation, task.head.channel, result.workflow_id,
            result.workflow_version, status, result.outcome, value, head, task.raw, now, now if finished else None,
            task.head.accepted_at_ms, task.head.fingerprint,
        ),
    )  # fmt: skip


def _drop_former(connection: apsw.Connection, task: Task, now: int) -> None:
    head, generation = task.head, task.progress.generation
    if not generation:
        return
    why = f"run again as generation {generation}"
    dropped = connection.execute(
        "UPDATE runs SET status = 'dropped', outcome = NULL, finished_at = ?, why = ? WHERE task_id = ?"
        " AND generation < ? AND finished_at IS NULL"
        " AND (? - accepted_at < ? OR (fingerprint = ? AND fingerprint <> '')) RETURNING run_id",
        (
            now,
            why,
            task.task_id,
            generation,
            head.accepted_at_ms,
            head.receipt_seconds * 1000,
            head.fingerprint,
        ),
    ).fetchall()
    for (run_id,) in dropped:
        outbox.close_replies(connection, run_id, why)
        forget_workings(connection, run_id)


def _append_history(connection: apsw.Connection, task: Task, history: Sequence[HistoryLine]) -> None:
    head = task.head
    if head.chat_id is None:
        return
    chat_id = first_id(connection, (head.channel, head.account, head.chat_id))
    for turn in history:
        connection.execute(
            "INSERT INTO history (channel, account, chat_id, role, text, at, run_id) VALUES (?,?,?,?,?,?,?)",
            (head.channel, head.account, chat_id, turn.role, kept_text(turn.text), turn.at_ms, turn.run_id),
        )
    connection.execute(
        "DELETE FROM history WHERE channel = ?1 AND account = ?2 AND chat_id = ?3 AND sequence <="
        " (SELECT sequence FROM history WHERE channel = ?1 AND account = ?2 AND chat_id = ?3"
        "  ORDER BY sequence DESC LIMIT 1 OFFSET ?4)",
        (head.channel, head.account, chat_id, HISTORY_KEPT),
    )


def _run(connection: apsw.Connection, run_id: RunId) -> Run | None:
    row = connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return _as_run(row) if row else None


def _archived(task_id: TaskId, row: Sequence[Any]) -> Task:
    head, raw, channel, status, generation, finished_at, accepted_at, fingerprint = row
    how_far, newer = known_status(status, has_ended=finished_at is not None)
    return read_task(
        head,
        raw,
        Progress(status=how_far, generation=generation, error=newer),
        task_id=task_id,
        channel=channel,
        accepted_at_ms=accepted_at,
        fingerprint=fingerprint,
    )


def _as_run(row: Sequence[Any]) -> Run:
    task_id, generation, status, outcome, stored, workflow_id, saved_at, finished_at, by, why = row[:10]
    accepted_at, fingerprint, is_armed, workflow_version = row[10:]
    result, unreadable = read_result(stored)
    how_far, newer = known_status(status, has_ended=finished_at is not None)
    return Run(
        task_id=TaskId(task_id),
        generation=generation,
        status=how_far,
        outcome=known_word(Outcome, outcome, None)[0] if outcome else None,
        result=result,
        workflow_id=workflow_id,
        workflow_version=workflow_version,
        saved_at_ms=saved_at,
        finished_at_ms=finished_at,
        accepted_at_ms=accepted_at,
        fingerprint=fingerprint,
        by=by,
        why=why,
        is_armed=bool(is_armed),
        unreadable=unreadable or newer,
    )


def _missing(run_id: RunId) -> Run:
    raise AssertionError(f"the run {run_id} was just written in this transaction")

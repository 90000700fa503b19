"""The embedded ledger: in the same SQLite file as the queue, behind its own port.

The outbox works like the lanes of the queue: a chat's row says when its first open reply may be sent, and
taking a chat sets that to NULL, so that one sender call is in flight per chat. Who takes is fenced by a
number that grows with every start of a sender; each taking has a number, too, the claim, so that what is
recorded again because its answer was lost is known from what is recorded now.

Refuses: to change a result that is there; to touch the queue's tables, though they are in the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import apsw
import msgspec

from rise.connections.sqlite import Database
from rise.envelope import (
    Call,
    Outcome,
    Progress,
    ReplyId,
    RunId,
    Status,
    Task,
    TaskId,
    clean_text,
    decode_head,
    encode_head,
    encode_json,
)
from rise.errors import ClaimLost
from rise.ledger.port import (
    CALL_UNREADABLE,
    Again,
    Attempt,
    BindingRecord,
    ChatMove,
    Definitions,
    Delivered,
    Delivery,
    Failed,
    HeldUnknown,
    Office,
    Operation,
    OutboxDepth,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    Run,
    RunEnded,
    RunResult,
    Sent,
    Turn,
    WorkflowRecord,
)

T = TypeVar("T")

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
)

HISTORY_KEPT: Final = 50
"""Turns kept per chat."""

_REPLY_COLUMNS: Final = (
    "sequence, reply_id, run_id, task_id, channel, account, chat_id, kind, call, workflow_id, accepted_at,"
    " deadline_at, state, tries, resends, platform_ref, error"
)
_RUN_COLUMNS: Final = (
    "task_id, generation, status, outcome, result, workflow_id, saved_at, finished_at, by_whom, why, accepted_at,"
    " is_armed"
)
_OPEN: Final = "state IN ('ready', 'sending') AND held = 0"

_decode_call = msgspec.json.Decoder(Call).decode
_decode_json = msgspec.json.Decoder().decode
_decode_workflow = msgspec.json.Decoder(WorkflowRecord).decode
_decode_binding = msgspec.json.Decoder(BindingRecord).decode

_NEWER: Final = "a newer version of Rise"
"""Whose a definition is that cannot be read: not code's, which may change only its own."""


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
        history: Sequence[Turn],
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
            open_replies = deliver and bool(replies)
            status = Status.REPLYING if open_replies else Status.COMPLETED
            _insert_run(connection, task, head, status, result, value, now, finished=not open_replies)
            for reply, call in zip(replies, calls, strict=True):
                state = ReplyState.READY if deliver else ReplyState.SENT
                _insert_reply(connection, reply, call, state, now)
            _append_history(connection, task, history)
            if not open_replies:
                _forget_workings(connection, task.run_id)
            return _run(connection, task.run_id) or _missing(task.run_id)

        return await self._database.write(change)

    async def finish(
        self, task: Task, status: Status, outcome: Outcome | None = None, *, by: str = "", why: str = ""
    ) -> Run:
        assert status.is_finished
        head = encode_head(task.head)

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
                _close_replies(connection, task.run_id, f"not sent: the task was {status}")
            else:
                return known
            connection.execute(
                "UPDATE runs SET by_whom = ?, why = ? WHERE run_id = ?",
                (clean_text(by) or None, clean_text(why) or None, task.run_id),
            )
            _forget_workings(connection, task.run_id)
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
                "SELECT head, raw, status, generation FROM runs WHERE task_id = ? ORDER BY generation DESC LIMIT 1",
                (task_id,),
            ).fetchone()
            if row is None:
                return None
            return Task(decode_head(row[0]), row[1], Progress(status=Status(row[2]), generation=row[3]))

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
                "INSERT INTO attempts VALUES (?,?,?,?)",
                (run_id, attempt.at_ms, clean_text(attempt.error), int(attempt.counted)),
            )

        await self._database.write(change)

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        rows = await self._rows("SELECT at, error, counted FROM attempts WHERE run_id = ? ORDER BY rowid", (run_id,))
        return [Attempt(at_ms=at, error=error, counted=bool(counted)) for at, error, counted in rows]

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[Turn]:
        def query(connection: apsw.Connection) -> list[Any]:
            first_id = _first_id(connection, channel, account, chat_id)
            newest_first = connection.execute(
                "SELECT role, text, at, run_id FROM history WHERE channel = ? AND account = ? AND chat_id = ?"
                " ORDER BY sequence DESC LIMIT ?",
                (channel, account, first_id, limit),
            )
            return list(newest_first)

        rows = await self._database.read(query)
        return [Turn(role=role, text=text, at_ms=at, run_id=run_id) for role, text, at, run_id in reversed(rows)]

    # --- chats ---

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        old = (channel, account, chat_id)
        await self._database.write(lambda connection: _move_chat(connection, old, moved_to))

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        rows = await self._rows(
            "SELECT channel, account, chat_id, first_id, sequence FROM chat_moves WHERE sequence > ? ORDER BY sequence",
            (after,),
        )
        return [
            ChatMove(channel=channel, account=account, chat_id=chat_id, first_id=first_id, sequence=sequence)
            for channel, account, chat_id, first_id, sequence in rows
        ]

    # --- outbox ---

    async def add_notice(self, reply: Reply, *, deliver: bool = True) -> bool:
        call, state = encode_json(reply.call), ReplyState.READY if deliver else ReplyState.SENT
        return await self._database.write(lambda connection: _insert_reply(connection, reply, call, state, self._now()))

    async def outbox_open(self) -> int:
        def change(connection: apsw.Connection) -> int:
            connection.execute(
                "UPDATE outbox_chats SET ready_at = ?, claim = NULL, claim_before = NULL WHERE ready_at IS NULL",
                (self._now(),),
            )
            return _count(connection, "sender_fence")

        return await self._database.write(change)

    async def outbox_take(
        self, fence: int, *, limit: int, accounts_excluded: Sequence[tuple[str, str]] = ()
    ) -> list[Reply]:
        excluded = set(accounts_excluded)

        def due(connection: apsw.Connection, count: int) -> list[tuple[str, str, str]]:
            rows = connection.execute(
                "SELECT channel, account, chat_id FROM outbox_chats WHERE ready_at <= ? ORDER BY ready_at",
                (self._now(),),
            )
            return list(islice((chat for chat in rows if chat[:2] not in excluded), count))

        def change(connection: apsw.Connection) -> list[Reply]:
            _check_fence(connection, fence)
            replies: list[Reply] = []
            # Chats with nothing left to send are forgotten on the way, and make room for others.
            while len(replies) < limit and (chats := due(connection, limit - len(replies))):
                taken = (_take(connection, chat) for chat in chats)
                replies += [reply for reply in taken if reply is not None]
            return replies

        if limit <= 0 or not await self._database.read(lambda connection: due(connection, 1)):
            return []  # most looks find nothing; they must not cost an fsync
        return await self._database.write(change)

    async def outbox_sending(self, fence: int, reply: Reply) -> None:
        def change(connection: apsw.Connection) -> None:
            _check_fence(connection, fence)
            connection.execute(
                "UPDATE replies SET state = 'sending', fence = ? WHERE reply_id = ? AND state = 'ready' AND held = 0",
                (fence, reply.reply_id),
            )
            if not connection.changes():
                raise ClaimLost(f"the reply {reply.reply_id} is not to be sent any more")

        await self._database.write(change)

    async def outbox_record(self, fence: int, reply: Reply, delivery: Delivery) -> Delivered:
        def change(connection: apsw.Connection) -> Delivered:
            _check_fence(connection, fence)
            chat = (reply.channel, reply.account, reply.chat_id)
            claim, before = _claims(connection, chat)
            if claim != reply.claim:
                # Recorded already. What was handed out then is handed out again, unless the chat is somebody else's.
                goes_on = before is not None and before == reply.claim
                following = _take(connection, chat, after=before, claim=claim) if goes_on else None
                return Delivered(_end_run(connection, reply, self._now()), following)
            pause = _record(connection, reply, delivery)
            if isinstance(delivery, Again) and delivery.chat_id is not None:
                _join_chats(connection, chat, delivery.chat_id)
                _move_line(connection, chat, delivery.chat_id, self._now() + int(pause * 1000))
                return Delivered(None, None)
            ended = _end_run(connection, reply, self._now())
            if pause:
                _let_go(connection, reply, self._now() + int(pause * 1000))
                return Delivered(ended, None)
            return Delivered(ended, _take(connection, chat, after=claim))

        return await self._database.write(change)

    async def outbox_release(self, fence: int, reply: Reply, *, seconds: float) -> None:
        def change(connection: apsw.Connection) -> None:
            _check_fence(connection, fence)
            _let_go(connection, reply, self._now() + int(seconds * 1000))

        await self._database.write(change)

    async def outbox_rearm(self, run_id: RunId) -> int:
        def change(connection: apsw.Connection) -> int:
            held = "run_id = ? AND kind = 'answer' AND (state = 'unknown' OR (state = 'ready' AND held = 1))"
            connection.execute(
                "UPDATE ledger_counters SET value = value +"
                f" (SELECT count(*) FROM replies WHERE {held} AND state = 'unknown') WHERE name = 'resent'",
                (run_id,),
            )
            rows = connection.execute(
                "UPDATE replies SET state = 'ready', held = 0, resends = resends + (state = 'unknown')"
                f" WHERE {held} RETURNING channel, account, chat_id",
                (run_id,),
            ).fetchall()
            for chat in set(rows):
                _queue_chat(connection, chat, self._now())
            return len(rows)

        return await self._database.write(change)

    async def outbox_depth(self) -> OutboxDepth:
        def query(connection: apsw.Connection) -> OutboxDepth:
            states = dict(
                connection.execute(
                    "SELECT CASE WHEN held THEN 'held' ELSE state END, count(*) FROM replies"
                    " INDEXED BY replies_waiting WHERE state IN ('ready', 'sending', 'unknown') GROUP BY 1"
                )
            )
            oldest = connection.execute("SELECT min(ready_at) FROM outbox_chats").fetchone()[0]
            resent = connection.execute("SELECT value FROM ledger_counters WHERE name = 'resent'").fetchone()[0]
            return OutboxDepth(
                by_state=states,
                oldest_waiting_ms=None if oldest is None else max(0, self._now() - oldest),
                unknown=states.get("unknown", 0),
                resent=resent,
            )

        return await self._database.read(query)

    async def replies(self, *, run_id: RunId | None = None, task_id: TaskId | None = None) -> list[Reply]:
        column, value = ("run_id", run_id) if run_id is not None else ("task_id", task_id)
        rows = await self._rows(f"SELECT {_REPLY_COLUMNS} FROM replies WHERE {column} = ? ORDER BY sequence", (value,))
        return [_as_reply(row) for row in rows]

    async def transcript(self, channel: str, account: str, chat_id: str, *, after: int, limit: int) -> list[Reply]:
        rows = await self._rows(
            f"SELECT {_REPLY_COLUMNS} FROM replies INDEXED BY replies_by_chat"
            " WHERE channel = ? AND account = ? AND chat_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (channel, account, chat_id, after, limit),
        )
        return [_as_reply(row) for row in rows]

    # --- definitions ---

    async def definitions_version(self) -> int:
        rows = await self._rows("SELECT value FROM ledger_counters WHERE name = 'definitions'", ())
        return int(rows[0][0])

    async def definitions(self) -> Definitions:
        def query(connection: apsw.Connection) -> Definitions:
            version = connection.execute("SELECT value FROM ledger_counters WHERE name = 'definitions'").fetchone()
            workflows = {
                workflow_id: _as_workflow(workflow_id, record)
                for workflow_id, record in connection.execute(
                    "SELECT workflow_id, record FROM workflows ORDER BY workflow_id"
                )
            }
            bindings = [
                _as_binding(*row)
                for row in connection.execute(
                    "SELECT channel, account, workflow_id, record FROM bindings ORDER BY channel, account, workflow_id"
                )
            ]
            return Definitions(int(version[0]), workflows, bindings)

        return await self._database.read(query)

    async def put_workflow(self, record: WorkflowRecord) -> int:
        def change(connection: apsw.Connection) -> int:
            row = connection.execute(
                "SELECT record FROM workflows WHERE workflow_id = ?", (record.workflow_id,)
            ).fetchone()
            if row is not None:
                known = _as_workflow(record.workflow_id, row[0])
                same = msgspec.structs.replace(record, version=known.version, updated_at=known.updated_at)
                if same == known:
                    return _value(connection, "definitions")
            connection.execute(
                "INSERT OR REPLACE INTO workflows VALUES (?,?)", (record.workflow_id, encode_json(record))
            )
            return _count(connection, "definitions")

        return await self._database.write(change)

    async def put_binding(self, record: BindingRecord) -> int:
        def change(connection: apsw.Connection) -> int:
            version = _count(connection, "definitions")
            if record.is_default:
                _demote_others(connection, record, version)
            numbered = msgspec.structs.replace(record, version=version)
            connection.execute(
                "INSERT OR REPLACE INTO bindings VALUES (?,?,?,?)",
                (record.channel, record.account, record.workflow_id, encode_json(numbered)),
            )
            return version

        return await self._database.write(change)

    async def remove_binding(self, channel: str, account: str, workflow_id: str) -> int:
        def change(connection: apsw.Connection) -> int:
            connection.execute(
                "DELETE FROM bindings WHERE channel = ? AND account = ? AND workflow_id = ?",
                (channel, account, workflow_id),
            )
            return _count(connection, "definitions") if connection.changes() else _value(connection, "definitions")

        return await self._database.write(change)

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
        _move_chat(connection, (task.head.channel, task.head.account, old), moved_to)
    connection.execute(
        "INSERT INTO runs (run_id, task_id, generation, channel, workflow_id, workflow_version, status, outcome,"
        " result, head, raw, saved_at, finished_at, accepted_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            task.run_id, task.task_id, task.progress.generation, task.head.channel, result.workflow_id,
            result.workflow_version, status, result.outcome, value, head, task.raw, now, now if finished else None,
            task.head.accepted_at_ms,
        ),
    )  # fmt: skip


def _drop_former(connection: apsw.Connection, task: Task, now: int) -> None:
    generation, accepted_at = task.progress.generation, task.head.accepted_at_ms
    if not generation:
        return
    why = f"run again as generation {generation}"
    dropped = connection.execute(
        "UPDATE runs SET status = 'dropped', outcome = NULL, finished_at = ?, why = ? WHERE task_id = ?"
        " AND generation < ? AND finished_at IS NULL AND ? - accepted_at < ? RETURNING run_id",
        (now, why, task.task_id, generation, accepted_at, task.head.receipt_seconds * 1000),
    ).fetchall()
    for (run_id,) in dropped:
        _close_replies(connection, run_id, f"not sent: {why}")
        _forget_workings(connection, run_id)


def _insert_reply(connection: apsw.Connection, reply: Reply, call: bytes, state: ReplyState, now: int) -> bool:
    # By its first id to where it is now: all its ids are one line, also while that still stands at the old one.
    first_id = _first_id(connection, reply.channel, reply.account, reply.chat_id)
    chat_id = _moved_to(connection, reply.channel, reply.account, first_id)
    connection.execute(
        "INSERT OR IGNORE INTO replies (reply_id, run_id, task_id, channel, account, chat_id, kind, call, workflow_id,"
        " accepted_at, deadline_at, saved_at, state) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            reply.reply_id, reply.run_id, reply.task_id, reply.channel, reply.account, chat_id, reply.kind, call,
            reply.workflow_id, reply.accepted_at_ms, reply.deadline_at_ms, now, state,
        ),
    )  # fmt: skip
    if not connection.changes():
        return False
    if state is ReplyState.READY:
        _queue_chat(connection, (reply.channel, reply.account, chat_id), now)
    return True


def _append_history(connection: apsw.Connection, task: Task, history: Sequence[Turn]) -> None:
    head = task.head
    if head.chat_id is None:
        return
    chat_id = _first_id(connection, head.channel, head.account, head.chat_id)
    for turn in history:
        connection.execute(
            "INSERT INTO history (channel, account, chat_id, role, text, at, run_id) VALUES (?,?,?,?,?,?,?)",
            (head.channel, head.account, chat_id, turn.role, clean_text(turn.text), turn.at_ms, turn.run_id),
        )
    connection.execute(
        "DELETE FROM history WHERE channel = ?1 AND account = ?2 AND chat_id = ?3 AND sequence <="
        " (SELECT sequence FROM history WHERE channel = ?1 AND account = ?2 AND chat_id = ?3"
        "  ORDER BY sequence DESC LIMIT 1 OFFSET ?4)",
        (head.channel, head.account, chat_id, HISTORY_KEPT),
    )


def _forget_workings(connection: apsw.Connection, run_id: RunId) -> None:
    connection.execute("DELETE FROM steps WHERE run_id = ?", (run_id,))


def _take(
    connection: apsw.Connection, chat: tuple[str, str, str], *, after: int | None = None, claim: int | None = None
) -> Reply | None:
    """The chat's first open reply, and the chat with it; forgets the chat if there is none.

    `after`: the claim that this one goes on from. `claim`: the same taking once more.
    """
    row = connection.execute(
        f"SELECT {_REPLY_COLUMNS} FROM replies INDEXED BY replies_open"
        f" WHERE channel = ? AND account = ? AND chat_id = ? AND {_OPEN} ORDER BY sequence LIMIT 1",
        chat,
    ).fetchone()
    if row is None:
        connection.execute("DELETE FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", chat)
        return None
    claim = claim or _count(connection, "outbox_claims")
    connection.execute(
        "UPDATE outbox_chats SET ready_at = NULL, claim = ?, claim_before = ?"
        " WHERE channel = ? AND account = ? AND chat_id = ?",
        (claim, after, *chat),
    )
    return _as_reply(row, claim=claim)


def _claims(connection: apsw.Connection, chat: tuple[str, str, str]) -> tuple[int | None, int | None]:
    """Who sends to the chat now, and whose place that took."""
    row = connection.execute(
        "SELECT claim, claim_before FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", chat
    ).fetchone()
    return row or (None, None)


def _queue_chat(connection: apsw.Connection, chat: tuple[str, str, str], ready_at: int) -> None:
    """A chat that is there already is being sent to, or waits for its time: what is new queues behind."""
    connection.execute(
        "INSERT OR IGNORE INTO outbox_chats (channel, account, chat_id, ready_at) VALUES (?,?,?,?)", (*chat, ready_at)
    )


def _let_go(connection: apsw.Connection, reply: Reply, ready_at: int) -> None:
    """Whoever has let go already, and says so again, lets go of nothing: the chat may be somebody else's by now."""
    connection.execute(
        "UPDATE outbox_chats SET ready_at = ?, claim = NULL, claim_before = NULL"
        " WHERE channel = ? AND account = ? AND chat_id = ? AND claim = ?",
        (ready_at, reply.channel, reply.account, reply.chat_id, reply.claim),
    )


def _record(connection: apsw.Connection, reply: Reply, delivery: Delivery) -> float:
    """Write down what became of a call; returns for how many seconds its chat pauses."""
    if isinstance(delivery, Again | Resend | HeldUnknown) and _is_ended(connection, reply):
        # Dropped while the call was out: what was dropped is not answered, so it is not tried once more.
        delivery = Failed(f"not tried again, the task had ended: {delivery.error}")
    match delivery:
        case Sent(platform_ref):
            _set_state(connection, reply, ReplyState.SENT, platform_ref=platform_ref)
        case Failed(error, chat_gone):
            _set_state(connection, reply, ReplyState.FAILED, error=error)
            if chat_gone and reply.kind is ReplyKind.ANSWER:
                _close_replies(connection, reply.run_id, f"not tried: {error}")
        case Again(seconds, error, call, _):
            _set_state(connection, reply, ReplyState.READY, error=error, call=call, tries=1)
            return seconds
        case Resend(error, call, seconds):
            _set_state(connection, reply, ReplyState.READY, error=error, call=call, resends=1)
            _count(connection, "resent")
            return seconds
        case HeldUnknown(error):
            _set_state(connection, reply, ReplyState.UNKNOWN, error=error)
            if reply.kind is ReplyKind.ANSWER:
                connection.execute(
                    "UPDATE replies SET held = 1 WHERE run_id = ? AND kind = 'answer' AND state = 'ready'"
                    " AND sequence > ?",
                    (reply.run_id, reply.sequence),
                )
    return 0.0


def _set_state(
    connection: apsw.Connection,
    reply: Reply,
    state: ReplyState,
    *,
    platform_ref: str | None = None,
    error: str | None = None,
    call: Call | None = None,
    tries: int = 0,
    resends: int = 0,
) -> None:
    connection.execute(
        "UPDATE replies SET state = ?, platform_ref = ?, error = ?, call = coalesce(?, call), tries = tries + ?,"
        " resends = resends + ? WHERE reply_id = ?",
        (
            state,
            platform_ref,
            None if error is None else clean_text(error),
            None if call is None else encode_json(call),
            tries,
            resends,
            reply.reply_id,
        ),
    )


def _is_ended(connection: apsw.Connection, reply: Reply) -> bool:
    if reply.kind is not ReplyKind.ANSWER:
        return False
    ended = "SELECT 1 FROM runs WHERE run_id = ? AND finished_at IS NOT NULL"
    return connection.execute(ended, (reply.run_id,)).fetchone() is not None


def _close_replies(connection: apsw.Connection, run_id: RunId, why: str) -> None:
    connection.execute(
        "UPDATE replies SET state = 'failed', error = ? WHERE run_id = ? AND kind = 'answer'"
        " AND state IN ('ready', 'unknown')",
        (clean_text(why), run_id),
    )


def _end_run(connection: apsw.Connection, reply: Reply, now: int) -> RunEnded | None:
    if reply.kind is not ReplyKind.ANSWER:
        return None
    states = [
        state
        for (state,) in connection.execute(
            "SELECT state FROM replies WHERE run_id = ? AND kind = 'answer' ORDER BY sequence",
            (reply.run_id,),
        )
    ]
    # None at all: the run ended while this was out, and has been forgotten since.
    if not states or not all(state in ("sent", "failed") for state in states):
        return None
    # What the person reads is the end of it: an answer that broke off was not delivered.
    outcome = Outcome.ANSWERED if states[-1] == "sent" else Outcome.UNDELIVERABLE
    connection.execute(
        "UPDATE runs SET status = 'completed', outcome = ?, finished_at = ? WHERE run_id = ? AND status = 'replying'",
        (outcome, now, reply.run_id),
    )
    if connection.changes():
        _forget_workings(connection, reply.run_id)
    # Also if it has ended so before: who asks again has not heard of it.
    row = connection.execute(
        "SELECT task_id, generation FROM runs WHERE run_id = ? AND status = 'completed' AND outcome = ?",
        (reply.run_id, outcome),
    ).fetchone()
    return RunEnded(TaskId(row[0]), row[1], outcome) if row else None


def _move_chat(connection: apsw.Connection, old: tuple[str, str, str], moved_to: str) -> None:
    _join_chats(connection, old, moved_to)
    line = connection.execute(
        "SELECT ready_at FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", old
    ).fetchone()
    if line is None:
        _redirect(connection, old, moved_to)
    elif line[0] is not None:
        _move_line(connection, old, moved_to, line[0])
    # Else a call is out, perhaps the one that is told so. Moved under it, what it sends could be taken again.


def _join_chats(connection: apsw.Connection, old: tuple[str, str, str], moved_to: str) -> None:
    """From now on the new id is another name of the chat that had the old one."""
    channel, account, _ = old
    first_id = _first_id(connection, *old)
    if first_id == moved_to:
        return
    connection.execute(
        "INSERT OR IGNORE INTO chat_moves (channel, account, chat_id, first_id) VALUES (?,?,?,?)",
        (channel, account, moved_to, first_id),
    )
    if connection.changes():
        # What was said there before anybody knew is part of the same history.
        connection.execute(
            "UPDATE history SET chat_id = ? WHERE channel = ? AND account = ? AND chat_id = ?",
            (first_id, channel, account, moved_to),
        )


def _first_id(connection: apsw.Connection, channel: str, account: str, chat_id: str) -> str:
    row = connection.execute(
        "SELECT first_id FROM chat_moves WHERE channel = ? AND account = ? AND chat_id = ?",
        (channel, account, chat_id),
    ).fetchone()
    return str(row[0]) if row else chat_id


def _move_line(connection: apsw.Connection, old: tuple[str, str, str], moved_to: str, ready_at: int) -> None:
    """What waits for the old chat goes to the new one, from now on too."""
    _redirect(connection, old, moved_to)
    connection.execute("DELETE FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", old)
    # Somebody may be sending to the new one at this moment; these come next.
    _queue_chat(connection, (*old[:2], moved_to), ready_at)


def _redirect(connection: apsw.Connection, old: tuple[str, str, str], moved_to: str) -> None:
    connection.execute(
        "UPDATE chat_aliases SET moved_to = ? WHERE channel = ? AND account = ? AND moved_to = ?", (moved_to, *old)
    )
    connection.execute("INSERT OR REPLACE INTO chat_aliases VALUES (?,?,?,?)", (*old, moved_to))
    connection.execute(
        "UPDATE replies SET chat_id = ? WHERE channel = ? AND account = ? AND chat_id = ?"
        " AND state IN ('ready', 'sending', 'unknown')",
        (moved_to, *old),
    )


def _moved_to(connection: apsw.Connection, channel: str, account: str, chat_id: str) -> str:
    row = connection.execute(
        "SELECT moved_to FROM chat_aliases WHERE channel = ? AND account = ? AND chat_id = ?",
        (channel, account, chat_id),
    ).fetchone()
    return str(row[0]) if row else chat_id


def _check_fence(connection: apsw.Connection, fence: int) -> None:
    if _value(connection, "sender_fence") != fence:
        raise ClaimLost("another process sends now")


def _demote_others(connection: apsw.Connection, chosen: BindingRecord, version: int) -> None:
    rows = connection.execute(
        "SELECT workflow_id, record FROM bindings WHERE channel = ? AND account = ? AND workflow_id <> ?",
        (chosen.channel, chosen.account, chosen.workflow_id),
    ).fetchall()
    for workflow_id, record in rows:
        known = _as_binding(chosen.channel, chosen.account, workflow_id, record)
        if not known.is_default:
            continue
        # Its version, too: who changes it on the strength of what it was must be told.
        demoted = msgspec.structs.replace(known, is_default=False, version=version)
        connection.execute(
            "UPDATE bindings SET record = ? WHERE channel = ? AND account = ? AND workflow_id = ?",
            (encode_json(demoted), chosen.channel, chosen.account, workflow_id),
        )


def _run(connection: apsw.Connection, run_id: RunId) -> Run | None:
    row = connection.execute(f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return _as_run(row) if row else None


def _as_run(row: Sequence[Any]) -> Run:
    task_id, generation, status, outcome, stored, workflow_id, saved_at, finished_at, by, why = row[:10]
    accepted_at, is_armed = row[10:]
    result, unreadable = _read(stored, _decode_json, None)
    known_status, newer = _word(Status, status, Status.REPLYING if finished_at is None else Status.COMPLETED)
    return Run(
        task_id=TaskId(task_id),
        generation=generation,
        status=known_status,
        outcome=_word(Outcome, outcome, None)[0] if outcome else None,
        result=result,
        workflow_id=workflow_id,
        saved_at_ms=saved_at,
        finished_at_ms=finished_at,
        accepted_at_ms=accepted_at,
        by=by,
        why=why,
        is_armed=bool(is_armed),
        unreadable=unreadable or newer,
    )


def _read(stored: Any, decode: Callable[[Any], T], stand_in: T) -> tuple[T, str | None]:
    """What is kept; if this version cannot read it, the stand-in, and why. One such row must not hide the others."""
    try:
        return decode(stored), None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        return stand_in, f"what is kept of it is unreadable: {error}"


def _as_workflow(workflow_id: str, stored: bytes) -> WorkflowRecord:
    """One that cannot be read serves nobody: what needs it waits."""
    unusable = WorkflowRecord(workflow_id=workflow_id, name=workflow_id, enabled=False, updated_by=_NEWER)
    return _read(stored, _decode_workflow, unusable)[0]


def _as_binding(channel: str, account: str, workflow_id: str, stored: bytes) -> BindingRecord:
    unusable = BindingRecord(
        channel=channel, account=account, workflow_id=workflow_id, is_default=False, enabled=False, updated_by=_NEWER
    )
    return _read(stored, _decode_binding, unusable)[0]


def _word(words: Callable[[str], T], stored: str, stand_in: T) -> tuple[T, str | None]:
    """The same with one word, which a newer version may have added."""
    try:
        return words(stored), None
    except ValueError:
        return stand_in, f"a newer version of Rise says of it: {stored}"


def _as_reply(row: Sequence[Any], *, claim: int = 0) -> Reply:
    sequence, reply_id, run_id, task_id, channel, account, chat_id, kind, stored, workflow_id = row[:10]
    accepted_at, deadline_at, state, tries, resends, platform_ref, error = row[10:]
    call, unreadable = _read(stored, _decode_call, CALL_UNREADABLE)
    known_kind, kind_newer = _word(ReplyKind, kind, ReplyKind.ANSWER)  # that it waits is seen; a notice's is not
    known_state, state_newer = _word(ReplyState, state, ReplyState.UNKNOWN)
    return Reply(
        reply_id=ReplyId(reply_id),
        run_id=RunId(run_id),
        task_id=TaskId(task_id),
        channel=channel,
        account=account,
        chat_id=chat_id,
        call=call,
        kind=known_kind,
        workflow_id=workflow_id,
        accepted_at_ms=accepted_at,
        deadline_at_ms=deadline_at,
        state=known_state,
        tries=tries,
        resends=resends,
        sequence=sequence,
        platform_ref=platform_ref,
        error=error,
        claim=claim,
        unreadable=unreadable or kind_newer or state_newer,
    )


def _missing(run_id: RunId) -> Run:
    raise AssertionError(f"the run {run_id} was just written in this transaction")


def _count(connection: apsw.Connection, name: str) -> int:
    row = connection.execute(
        "UPDATE ledger_counters SET value = value + 1 WHERE name = ? RETURNING value", (name,)
    ).fetchone()
    return int(row[0])


def _value(connection: apsw.Connection, name: str) -> int:
    return int(connection.execute("SELECT value FROM ledger_counters WHERE name = ?", (name,)).fetchone()[0])

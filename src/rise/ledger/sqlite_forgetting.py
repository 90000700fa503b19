"""Forgetting in the ledger in SQLite: what a chat said and was answered, and what has become old.

Functions over a connection. What looks runs beside all else; what changes is within a transaction of its caller, which
others wait for, so it comes in bites.

Promises: done twice, or broken off anywhere and begun anew, it comes to the same. Refuses: to touch a run that is not
over, or one of which it cannot be read whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from rise.envelope import Head, RunId, Status, decode_head, encode_head, forgotten_head
from rise.errors import EnvelopeMalformed
from rise.ledger.kept import is_of_chat, read_result
from rise.ledger.port import ChatForgotten
from rise.ledger.sqlite_chats import Chat, names_of

BITE_BYTES: Final = 4 << 20
"""Forgotten in one transaction. What is forgotten is overwritten, so it costs as much as writing it."""
BITE_RUNS: Final = 100


class Found(NamedTuple):
    """A run to be forgotten."""

    run_id: RunId
    head: Head
    size_bytes: int


class Look(NamedTuple):
    """What a page of runs has of a chat."""

    found: list[Found]
    late: list[RunId]
    """Runs, of any chat, that were forgotten before, and of which something has come since."""
    seen: ChatForgotten
    """All of it, as if it had been forgotten."""


def look_for(connection: apsw.Connection, chat: Chat, after: str, limit: int) -> Look:
    """What up to `limit` runs beyond `after` have of the chat; on the last page its history, too."""
    names = names_of(connection, chat)
    rows = connection.execute(
        "SELECT run_id, channel, status, finished_at, is_armed, head, length(head) + length(raw) + length(result)"
        " FROM runs WHERE run_id > ? ORDER BY run_id LIMIT ?",
        (after, limit),
    ).fetchall()
    found: list[Found] = []
    late: list[RunId] = []
    unfinished = unreadable = 0
    for run_id, channel, status, finished_at, is_armed, stored, size_bytes in rows:
        if channel != chat[0]:
            continue
        head = _read_head(stored)
        is_of = is_of_chat(head, *chat[:2], names)
        if is_of is None:
            unreadable += finished_at is not None
        elif head is not None and head.is_forgotten:
            late += [run_id] if _has_workings(connection, run_id) else []
        elif head is not None and is_of:
            if finished_at is not None and _is_over(connection, run_id, status, is_armed):
                found.append(Found(run_id, head, size_bytes))
            else:
                unfinished += 1
    is_last = len(rows) < limit
    seen = ChatForgotten(
        looked_at=len(rows),
        runs=len(found),
        replies=sum(_count_replies(connection, one.run_id) for one in found),
        turns=sum(_count_turns(connection, (*chat[:2], name)) for name in names) if is_last else 0,
        unfinished=unfinished,
        unreadable=unreadable,
        after=None if is_last else rows[-1][0],
    )
    return Look(found, late, seen)


def bites(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Few enough at a time that nobody waits long."""
    bite: list[Found] = []
    size_bytes = 0
    for one in found:
        if bite and (len(bite) == BITE_RUNS or size_bytes + one.size_bytes > BITE_BYTES):
            yield bite
            bite, size_bytes = [], 0
        bite.append(one)
        size_bytes += one.size_bytes
    if bite:
        yield bite


def forget_runs(connection: apsw.Connection, bite: Sequence[Found]) -> None:
    for run_id, head, _ in bite:
        connection.execute(
            "UPDATE runs SET head = ?, raw = x'', result = CAST('null' AS BLOB), why = NULL WHERE run_id = ?",
            (encode_head(forgotten_head(head)), run_id),
        )
        connection.execute("DELETE FROM replies WHERE run_id = ?", (run_id,))
        forget_late(connection, [run_id])


def forget_late(connection: apsw.Connection, run_ids: Sequence[RunId]) -> None:
    for table in ("steps", "attempts"):
        connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", [(run_id,) for run_id in run_ids])


def forget_turns(connection: apsw.Connection, chat: Chat) -> None:
    for name in names_of(connection, chat):
        connection.execute("DELETE FROM history WHERE channel = ? AND account = ? AND chat_id = ?", (*chat[:2], name))


# --- by age -----------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """Runs whose bytes are to be forgotten: from their first end, which is not among them, to their last."""

    after_ms: int
    until_ms: int
    is_anything_left: bool


def look_for_raw(connection: apsw.Connection, after_ms: int, before_ms: int, limit: int) -> Ended | None:
    rows = connection.execute(
        "SELECT finished_at, length(raw) FROM runs INDEXED BY runs_finished"
        " WHERE finished_at > ? AND finished_at < ? ORDER BY finished_at LIMIT ?",
        (after_ms, before_ms, limit),
    )
    until_ms: int | None = None
    size_bytes = 0
    for finished_at, raw_bytes in rows:
        if until_ms is not None and finished_at > until_ms and size_bytes + raw_bytes > BITE_BYTES:
            break
        until_ms = finished_at
        size_bytes += raw_bytes
    if until_ms is None:
        return None
    # Asked of all that ended by then: more may have ended in the last millisecond than were looked at.
    left = connection.execute(
        "SELECT 1 FROM runs WHERE finished_at > ?1 AND finished_at <= ?2"
        " AND (length(raw) > 0 OR EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.run_id)) LIMIT 1",
        (after_ms, until_ms),
    ).fetchone()
    return Ended(after_ms, until_ms, left is not None)


def forget_raw(connection: apsw.Connection, ended: Ended) -> None:
    within = (ended.after_ms, ended.until_ms)
    connection.execute(
        "DELETE FROM steps WHERE run_id IN (SELECT run_id FROM runs WHERE finished_at > ? AND finished_at <= ?)", within
    )
    connection.execute(
        "UPDATE runs SET raw = x'' WHERE finished_at > ? AND finished_at <= ? AND length(raw) > 0", within
    )


def chats_beyond(connection: apsw.Connection, after: str, limit: int) -> list[Chat]:
    """Chats with a history."""
    beyond = tuple(msgspec.json.decode(after, type=list[str])) if after else ("", "", "")
    rows = connection.execute(
        "SELECT DISTINCT channel, account, chat_id FROM history INDEXED BY history_by_chat"
        " WHERE (channel, account, chat_id) > (?,?,?) ORDER BY channel, account, chat_id LIMIT ?",
        (*beyond, limit),
    )
    return [(channel, account, chat_id) for channel, account, chat_id in rows]


def has_turns_before(connection: apsw.Connection, chat: Chat, before_ms: int) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM history WHERE channel = ? AND account = ? AND chat_id = ? AND at < ? LIMIT 1",
            (*chat, before_ms),
        ).fetchone()
        is not None
    )


def forget_turns_before(connection: apsw.Connection, chats: Sequence[Chat], before_ms: int) -> None:
    connection.executemany(
        "DELETE FROM history WHERE channel = ? AND account = ? AND chat_id = ? AND at < ?",
        [(*chat, before_ms) for chat in chats],
    )


# --- details ----------------------------------------------------------------------------------------------


def _read_head(stored: bytes) -> Head | None:
    try:
        return decode_head(stored)
    except EnvelopeMalformed:
        return None


def _is_over(connection: apsw.Connection, run_id: RunId, status: str, is_armed: int) -> bool:
    """Of one that has ended: whether nothing that it promised is still to be armed."""
    if is_armed or status == Status.DROPPED:
        return True
    [(stored,)] = connection.execute("SELECT result FROM runs WHERE run_id = ?", (run_id,)).fetchall()
    result: Any = read_result(stored)[0]
    return not (isinstance(result, dict) and result.get("followUps"))


def _has_workings(connection: apsw.Connection, run_id: RunId) -> bool:
    either = "SELECT 1 FROM steps WHERE run_id = ?1 UNION ALL SELECT 1 FROM attempts WHERE run_id = ?1 LIMIT 1"
    return connection.execute(either, (run_id,)).fetchone() is not None


def _count_replies(connection: apsw.Connection, run_id: RunId) -> int:
    [(count,)] = connection.execute("SELECT count(*) FROM replies WHERE run_id = ?", (run_id,)).fetchall()
    return int(count)


def _count_turns(connection: apsw.Connection, chat: Chat) -> int:
    [(count,)] = connection.execute(
        "SELECT count(*) FROM history WHERE channel = ? AND account = ? AND chat_id = ?", chat
    ).fetchall()
    return int(count)

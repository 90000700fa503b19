"""Chats of the ledger in SQLite: by which ids each is known, of which the first is the one it goes by for ever.

Functions over a connection, each within a transaction of its caller.
"""

from __future__ import annotations

from typing import TypeAlias

import apsw

Chat: TypeAlias = tuple[str, str, str]
"""Channel, account, chat id."""


def first_id(connection: apsw.Connection, chat: Chat) -> str:
    row = connection.execute(
        "SELECT first_id FROM chat_moves WHERE channel = ? AND account = ? AND chat_id = ?", chat
    ).fetchone()
    return str(row[0]) if row else chat[2]


def names_of(connection: apsw.Connection, chat: Chat) -> frozenset[str]:
    """All ids that it ever had."""
    channel, account, _ = chat
    first = first_id(connection, chat)
    others = connection.execute(
        "SELECT chat_id FROM chat_moves WHERE channel = ? AND account = ? AND first_id = ?", (channel, account, first)
    )
    return frozenset([first, *(name for (name,) in others)])


def join_chats(connection: apsw.Connection, old: Chat, moved_to: str) -> None:
    """From now on the new id is another name of the chat that had the old one; not if it has another name itself."""
    channel, account, _ = old
    first = first_id(connection, old)
    if first == moved_to:
        return
    connection.execute(
        "INSERT OR IGNORE INTO chat_moves (channel, account, chat_id, first_id) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS"
        " (SELECT 1 FROM chat_moves WHERE channel = ?1 AND account = ?2 AND first_id = ?3)",
        (channel, account, moved_to, first),
    )
    if connection.changes():
        # What was said there before anybody knew is part of the same history.
        connection.execute(
            "UPDATE history SET chat_id = ? WHERE channel = ? AND account = ? AND chat_id = ?",
            (first, channel, account, moved_to),
        )

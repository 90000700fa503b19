"""Rows: what the ledger in SQLite reads of what may be newer than itself, and its counters.

Promises: a row that this version cannot read says so and hides no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import apsw
import msgspec

from rise.envelope import RunId

T = TypeVar("T")


def read_kept(stored: Any, decode: Callable[[Any], T], stand_in: T) -> tuple[T, str | None]:
    """What is kept; if this version cannot read it, the stand-in, and why. One such row must not hide the others."""
    try:
        return decode(stored), None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        return stand_in, f"what is kept of it is unreadable: {error}"


def word_kept(words: Callable[[str], T], stored: str, stand_in: T) -> tuple[T, str | None]:
    """The same with one word, which a newer version may have added."""
    try:
        return words(stored), None
    except ValueError:
        return stand_in, f"a newer version of Rise says of it: {stored}"


def count(connection: apsw.Connection, name: str) -> int:
    """One more; returns how many it is."""
    row = connection.execute(
        "UPDATE ledger_counters SET value = value + 1 WHERE name = ? RETURNING value", (name,)
    ).fetchone()
    return int(row[0])


def value_of(connection: apsw.Connection, name: str) -> int:
    return int(connection.execute("SELECT value FROM ledger_counters WHERE name = ?", (name,)).fetchone()[0])


def forget_workings(connection: apsw.Connection, run_id: RunId) -> None:
    """What only served to repeat the run."""
    connection.execute("DELETE FROM steps WHERE run_id = ?", (run_id,))

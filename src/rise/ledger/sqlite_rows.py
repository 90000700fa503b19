"""Rows of the ledger in SQLite that more than one of its files needs: its counters, and what a run leaves behind."""

from __future__ import annotations

import apsw

from rise.envelope import RunId


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

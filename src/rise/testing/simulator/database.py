"""SQLite without threads and without a file: the same schema and statements, and no luck in their timing.

The connection is the disk. Handles are processes: as many as wanted share one connection, and whoever opens
a new one after all others are gone finds what they wrote. What is not simulated is the file: nothing here is
fsynced, locked or damaged; `tests/connections` does that with real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from rise.clock import Clock
from rise.connections.sqlite import Database, sqlite_errors
from rise.errors import StoreUnavailable

T = TypeVar("T")

IN_MEMORY = ":memory:"


def memory_disk() -> apsw.Connection:
    """An empty store, as long as somebody holds it."""
    return apsw.Connection(IN_MEMORY, statementcachesize=200)


class InlineDatabase(Database):
    """`rise.connections.sqlite.Database` on a shared connection: each change is committed before `write` yields."""

    def __init__(self, disk: apsw.Connection, *, clock: Clock, schema: Mapping[str, Sequence[str]]) -> None:
        super().__init__(Path(IN_MEMORY), clock=clock, schema=schema)
        self._disk = disk
        self._is_open = False

    async def open(self) -> None:
        with sqlite_errors():
            self._migrate(self._disk)
        self._is_open = True

    async def close(self) -> None:
        """The other handles and the disk stay."""
        self._is_open = False

    async def write(self, apply: Callable[[apsw.Connection], T]) -> T:
        def change(connection: apsw.Connection) -> T:
            result = apply(connection)
            self._note_time(connection)
            return result

        return self._transact(change)

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        return self._transact(query)

    def _transact(self, apply: Callable[[apsw.Connection], T]) -> T:
        """All of it or, if it raises, nothing."""
        if not self._is_open:
            raise StoreUnavailable("the database is not open")
        with sqlite_errors(), self._disk:
            return apply(self._disk)

"""Definitions in the embedded database. One table that only grows: its key is what lets only one writer through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import apsw

from rise.connections.sqlite import Database
from rise.definitions.port import VERSIONS_KEPT, Definition, Kind, Latest
from rise.errors import VersionStale

SCHEMA: Final[Sequence[str]] = (
    """
    CREATE TABLE definitions (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
        body BLOB, at INTEGER NOT NULL, by TEXT NOT NULL, comment TEXT NOT NULL,
        PRIMARY KEY (kind, name, version)
    ) WITHOUT ROWID;
    """,
)

_COLUMNS: Final = "kind, name, version, body, at, by, comment"
_LAST: Final = "version = (SELECT max(version) FROM definitions WHERE kind = one.kind AND name = one.name)"


class SqliteDefinitions:
    """`rise.definitions.port.Definitions` for the embedded profile."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def changes(self) -> int:
        return await self._database.read(_changes)

    async def latest(self, kinds: Collection[Kind]) -> Latest:
        places = ",".join("?" * len(kinds))

        def query(connection: apsw.Connection) -> Latest:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM definitions AS one"
                f" WHERE kind IN ({places}) AND body IS NOT NULL AND {_LAST} ORDER BY kind, name",
                tuple(kinds),
            )
            return Latest(_changes(connection), [_as_definition(row) for row in rows])

        return await self._database.read(query)

    async def version(self, kind: Kind, name: str, version: int | None = None) -> Definition | None:
        def query(connection: apsw.Connection) -> Definition | None:
            return _last(connection, kind, name) if version is None else _version(connection, kind, name, version)

        return await self._database.read(query)

    async def versions(self, kind: Kind, name: str, *, limit: int) -> list[Definition]:
        def query(connection: apsw.Connection) -> list[Definition]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM definitions WHERE kind = ? AND name = ? ORDER BY version DESC LIMIT ?",
                (kind, name, limit),
            )
            return [_as_definition(row) for row in rows]

        return await self._database.read(query)

    async def put(self, definition: Definition) -> None:
        def change(connection: apsw.Connection) -> None:
            last = _last(connection, definition.kind, definition.name)
            if last == definition:
                return
            if definition.version != (last.version if last else 0) + 1:
                raise VersionStale.of(definition.name, last.version if last else 0)
            connection.execute(
                "INSERT INTO definitions VALUES (?,?,?,?,?,?,?)",
                (definition.kind, definition.name, definition.version, definition.body, definition.at_ms,
                 definition.by, definition.comment),
            )  # fmt: skip
            connection.execute(
                "DELETE FROM definitions WHERE kind = ? AND name = ? AND version <= ?",
                (definition.kind, definition.name, definition.version - VERSIONS_KEPT),
            )

        await self._database.write(change)


def _changes(connection: apsw.Connection) -> int:
    """Each change makes a version one higher, so the versions in force add up to how many there have been."""
    row = connection.execute(
        "SELECT coalesce(sum(last), 0) FROM (SELECT max(version) AS last FROM definitions GROUP BY kind, name)"
    ).fetchone()
    return int(row[0])


def _last(connection: apsw.Connection, kind: Kind, name: str) -> Definition | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM definitions WHERE kind = ? AND name = ? ORDER BY version DESC LIMIT 1", (kind, name)
    ).fetchone()
    return _as_definition(row) if row else None


def _version(connection: apsw.Connection, kind: Kind, name: str, version: int) -> Definition | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM definitions WHERE kind = ? AND name = ? AND version = ?", (kind, name, version)
    ).fetchone()
    return _as_definition(row) if row else None


def _as_definition(row: Sequence[Any]) -> Definition:
    kind, name, version, body, at_ms, by, comment = row
    return Definition(kind=Kind(kind), name=name, version=version, body=body, at_ms=at_ms, by=by, comment=comment)

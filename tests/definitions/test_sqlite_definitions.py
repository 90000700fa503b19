"""The embedded definitions keep every promise of the port, on a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rise.connections.sqlite import Database
from rise.definitions.sqlite import SCHEMA, SqliteDefinitions
from rise.testing.clock import ManualClock
from rise.testing.conformance.definitions import DefinitionsConformance


class SqliteStage:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.databases: list[Database] = []

    async def another(self) -> SqliteDefinitions:
        database = Database(self.path, clock=ManualClock(), schema={"definitions": SCHEMA})
        await database.open()
        self.databases.append(database)
        return SqliteDefinitions(database)


@pytest.mark.req("TST-3", "EMB-2")
class TestSqliteDefinitions(DefinitionsConformance):
    @pytest.fixture
    async def stage(self, tmp_path: Path) -> AsyncIterator[SqliteStage]:
        stage = SqliteStage(tmp_path / "rise.db")
        stage.definitions = await stage.another()
        yield stage
        for database in stage.databases:
            await database.close()

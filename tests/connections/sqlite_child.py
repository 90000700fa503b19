"""What the tests run in processes of their own: `python sqlite_child.py <what> <path> …`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import apsw

from rise.clock import SystemClock
from rise.connections.sqlite import Database

SCHEMA = {"notes": ["CREATE TABLE notes (writer TEXT, number INTEGER, PRIMARY KEY (writer, number))"]}


async def write_for_ever(path: Path, writer: str) -> None:
    """Says every number once it is acknowledged."""
    database = Database(path, clock=SystemClock(), schema=SCHEMA)
    await database.open()
    number = 0
    while True:
        batch = range(number, number + 7)
        await asyncio.gather(*(_note(database, writer, each) for each in batch))
        number += 7


async def _note(database: Database, writer: str, number: int) -> None:
    await database.write(
        lambda connection: connection.execute("INSERT INTO notes VALUES (?,?)", (writer, number)) and None
    )
    os.write(1, b"%d\n" % number)


async def write_some(path: Path, writer: str, count: str) -> None:
    database = Database(path, clock=SystemClock(), schema=SCHEMA)
    await database.open()
    os.write(1, b"ready\n")
    sys.stdin.readline()
    for number in range(int(count)):
        await _note(database, writer, number)
    await database.close()


async def die_while_migrating(path: Path) -> None:
    class Dying(Database):
        def _agree_on_time(self, connection: apsw.Connection) -> int:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    newer = {"notes": [*SCHEMA["notes"], "ALTER TABLE notes ADD COLUMN more TEXT; DELETE FROM notes"]}
    await Dying(path, clock=SystemClock(), schema=newer).open()


async def hold_the_lock(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("BEGIN IMMEDIATE")
    os.write(1, b"locked\n")
    sys.stdin.readline()
    connection.execute("COMMIT")
    connection.close()
    os.write(1, b"released\n")


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    asyncio.run(globals()[what](Path(path), *rest))

"""A database that was made here and is lost: nobody makes an empty one in its place, and what is left stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.connections.marker import Marker
from rise.connections.sqlite import Database
from rise.errors import StoreCorrupt
from rise.ledger.sqlite import SCHEMA, SqliteLedger
from rise.testing.clock import ManualClock

pytestmark = [pytest.mark.req("CPY-2", "EMB-1"), pytest.mark.failure("C10")]


def database_in(directory: Path) -> Database:
    directory.mkdir(exist_ok=True)
    marker = Marker(directory / "marker")
    return Database(directory / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA}, marker=marker)


async def used(directory: Path) -> str:
    """Opened and closed once; its identity."""
    database = database_in(directory)
    await database.open()
    identity = await SqliteLedger(database).identity()
    await database.close()
    return identity


async def refused(directory: Path) -> StoreCorrupt:
    """To who writes, to who reads, and whenever it is tried again."""
    database = database_in(directory)
    try:
        with pytest.raises(StoreCorrupt) as told:
            await database.open()
        for again in (database.write, database.read):
            with pytest.raises(StoreCorrupt):
                await again(lambda connection: connection.execute("SELECT * FROM identity").fetchall())
        return told.value
    finally:
        await database.close()


async def test_the_marker_holds_the_identity_of_the_ledger_and_the_database_opens_again(tmp_path: Path):
    identity = await used(tmp_path)
    assert (tmp_path / "marker").read_text().strip() == identity
    assert await used(tmp_path) == identity


async def test_a_directory_from_before_there_were_markers_gets_one_at_the_next_start(tmp_path: Path):
    identity = await used(tmp_path)
    (tmp_path / "marker").unlink()
    assert await used(tmp_path) == identity
    assert (tmp_path / "marker").read_text().strip() == identity


@pytest.mark.parametrize("how", ["gone", "empty"])
@pytest.mark.parametrize("left", [["marker"], ["marker", "rise.db-wal"], ["rise.db-wal"]])
async def test_a_lost_database_is_not_made_anew_and_what_is_left_of_it_stays(tmp_path: Path, how: str, left: list[str]):
    await used(tmp_path)
    path, log = tmp_path / "rise.db", tmp_path / "rise.db-wal"
    path.unlink() if how == "gone" else path.write_bytes(b"")
    log.write_bytes(b"pages of the lost one")
    for name in {"marker", "rise.db-wal"} - set(left):
        (tmp_path / name).unlink()
    error = await refused(tmp_path)
    assert how in str(error) and "nothing is accepted" in str(error)
    assert "rise restore --force" in error.remedy and all(str(tmp_path / name) in error.remedy for name in left)
    assert path.exists() == (how == "empty") and (how == "gone" or not path.read_bytes())
    assert log.exists() == ("rise.db-wal" in left) and (
        not log.exists() or log.read_bytes() == b"pages of the lost one"
    )
    for name in left:
        (tmp_path / name).unlink()
    await used(tmp_path)  # begun anew, as the remedy says


async def test_another_database_is_not_taken_for_it_and_neither_is_touched(tmp_path: Path):
    await used(tmp_path / "here")
    await used(tmp_path / "elsewhere")
    path, log = tmp_path / "here" / "rise.db", tmp_path / "here" / "rise.db-wal"
    other = (tmp_path / "elsewhere" / "rise.db").read_bytes()
    path.rename(tmp_path / "aside")
    path.write_bytes(other)
    log.write_bytes(b"pages of the lost one" * 100)
    error = await refused(tmp_path / "here")
    assert "not the one" in str(error)
    assert path.read_bytes() == other and log.read_bytes() == b"pages of the lost one" * 100
    log.unlink()
    (tmp_path / "here" / "marker").unlink()
    await used(tmp_path / "here")  # gone on with, as the remedy says


async def test_it_goes_on_by_itself_when_the_file_is_back(tmp_path: Path):
    await used(tmp_path)
    (tmp_path / "rise.db").rename(tmp_path / "aside")
    database = database_in(tmp_path)
    with pytest.raises(StoreCorrupt):
        await database.open()
    (tmp_path / "aside").rename(tmp_path / "rise.db")
    assert await database.write(lambda connection: 1) == 1
    await database.close()

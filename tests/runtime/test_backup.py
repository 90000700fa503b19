"""A backup is whole, private and checked; a restore never makes anything worse."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from rise.bus.local import LocalBus
from rise.channels.telegram import read_update
from rise.clock import SystemClock
from rise.envelope import TaskId
from rise.errors import Rejected, StoreCorrupt, StoreLocked, StoreUnavailable
from rise.queue.port import Selection
from rise.runtime.assembly import House, build
from rise.runtime.audit import Audit
from rise.runtime.backup import back_up, restore
from rise.runtime.directory import DataDirectory
from rise.settings import load_settings

pytestmark = pytest.mark.req("CPY-7", "OPS-1")

CLOCK = SystemClock()
FILES = ["admin-token", "rise.db", "secret-key"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = house_of(tmp_path / "data")
    await house.stores.open()
    yield house
    await house.stores.close()


def house_of(path: Path) -> House:
    return build(load_settings(data_dir=path, _env_file=None))


async def accept(house: House, *numbers: int) -> list[TaskId]:
    accepted = []
    for number in numbers:
        message = {"message_id": number, "date": 1_762_587_000, "chat": {"id": number % 5, "type": "private"}}
        body = json.dumps({"update_id": number, "message": message}).encode()
        read = read_update(body, account="7", now=house.clock.now(), webhook=False)
        accepted.append((await house.intake.accept(read)).task_id)
    return accepted


async def open_tasks(path: Path) -> dict[TaskId, bytes]:
    """The open tasks of a directory with their bytes, after an audit found nothing amiss."""
    house = house_of(path)
    await house.stores.open()
    try:
        report = await Audit(house.queue, house.ledger, 30 * 86400).run()
        assert report.is_clean
        assert not report.notices
        listed = await house.queue.list_open(Selection(), limit=10_000)
        tasks = [await house.queue.get(task.head.task_id) for task in listed]
        return {task.task_id: task.raw for task in tasks if task is not None}
    finally:
        await house.stores.close()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- backup -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copy", "copy.tar.gz", "copy.tgz", "new/deep/copy"])
async def test_a_backup_restores_every_open_task_with_its_bytes(tmp_path: Path, house: House, name: str):
    accepted = await accept(house, *range(1, 31))
    contents = await back_up(house.stores.directory, tmp_path / name, CLOCK)
    assert (contents.files, contents.tasks_open, contents.receipts, contents.runs) == (FILES, 30, 30, 0)

    restored = await restore(tmp_path / name, DataDirectory(tmp_path / "again"), CLOCK)

    assert restored.contents == contents
    assert restored.moved_aside is None
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == FILES
    assert set(await open_tasks(tmp_path / "again")) == set(accepted)
    assert await open_tasks(tmp_path / "again") == await open_tasks(tmp_path / "data")
    for secret in ("admin-token", "secret-key"):
        assert (tmp_path / "again" / secret).read_text() == (tmp_path / "data" / secret).read_text()


@pytest.mark.req("SEC-4")
async def test_nobody_else_can_read_a_backup_or_what_was_restored(tmp_path: Path, house: House):
    before = os.umask(0)
    try:
        await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
        await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
        await restore(tmp_path / "copy.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "copy.tar.gz") == 0o600
    for folder in (tmp_path / "copy", tmp_path / "again"):
        assert mode_of(folder) == 0o700
        assert {mode_of(path) for path in folder.iterdir()} == {0o600}


async def test_a_backup_ends_while_others_never_stop_writing(tmp_path: Path, house: House):
    await accept(house, *range(1, 200))
    # Larger than one step of the copy, so that writers come in between.
    await house.stores.database.write(lambda c: c.execute("CREATE TABLE ballast (bytes BLOB)").fetchall())
    await house.stores.database.write(
        lambda c: c.executemany("INSERT INTO ballast VALUES (randomblob(?))", [(100_000,)] * 300)
    )
    stop = asyncio.Event()
    written: list[TaskId] = []

    async def write_for_ever() -> None:
        number = 200
        while not stop.is_set():
            written.extend(await accept(house, number))
            number += 1

    steps: list[tuple[int, int]] = []
    writing = asyncio.create_task(write_for_ever())
    try:
        async with asyncio.timeout(30):
            await back_up(
                house.stores.directory,
                tmp_path / "copy",
                CLOCK,
                lambda copied, total: steps.append((copied, total)),
            )
    finally:
        stop.set()
        await writing
    assert len(steps) > 2
    assert written, "somebody wrote meanwhile"
    await restore(tmp_path / "copy", DataDirectory(tmp_path / "again"), CLOCK)
    restored = set(await open_tasks(tmp_path / "again"))
    # One moment: if a message is in it, so is every one that was accepted before.
    assert [task_id in restored for task_id in written] == sorted((t in restored for t in written), reverse=True)
    assert len(restored) >= 199


async def test_a_backup_overwrites_nothing(tmp_path: Path, house: House):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy.tar.gz").symlink_to(tmp_path / "nowhere")
    for name in ("copy", "copy.tar.gz"):
        with pytest.raises(Rejected, match="exists"):
            await back_up(house.stores.directory, tmp_path / name, CLOCK)


async def test_a_directory_without_a_database_is_not_backed_up(tmp_path: Path):
    with pytest.raises(Rejected, match="holds no Rise database"):
        await back_up(DataDirectory(tmp_path / "elsewhere"), tmp_path / "copy", CLOCK)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "copy").exists()


async def test_a_damaged_database_gives_no_backup(tmp_path: Path, house: House):
    await accept(house, *range(1, 200))
    await house.stores.close()
    damage(tmp_path / "data" / "rise.db")
    with pytest.raises(StoreUnavailable):
        await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(4096, len(content), 4096):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(content)


# --- restore ----------------------------------------------------------------------------------------------


async def test_what_was_there_is_moved_aside_and_only_when_asked_for(tmp_path: Path, house: House):
    first = await accept(house, 1, 2, 3)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    await accept(house, 4)
    await house.stores.close()
    data = DataDirectory(tmp_path / "data")
    with pytest.raises(Rejected, match="--force"):
        await restore(tmp_path / "copy", data, CLOCK)
    assert len(await open_tasks(tmp_path / "data")) == 4

    for number in (1, 2):
        restored = await restore(tmp_path / "copy", data, CLOCK, replaces=True)
        assert restored.moved_aside == tmp_path / f"data.before-restore-{number}"
        assert set(await open_tasks(tmp_path / "data")) == set(first)
    assert len(await open_tasks(tmp_path / "data.before-restore-1")) == 4


async def test_an_empty_directory_that_is_there_already_is_used_as_it_is(tmp_path: Path, house: House):
    """It may be a mount point, which cannot be renamed or replaced."""
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    (tmp_path / "again").mkdir(mode=0o755)
    inode = (tmp_path / "again").stat().st_ino
    await restore(tmp_path / "copy.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
    assert (tmp_path / "again").stat().st_ino == inode
    assert mode_of(tmp_path / "again") == 0o700
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == FILES


async def test_nothing_is_restored_under_a_running_server(tmp_path: Path, house: House):
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    running = DataDirectory(tmp_path / "data")
    running.own()
    try:
        with pytest.raises(StoreLocked, match="rise serve"):
            await restore(tmp_path / "copy", house.stores.directory, CLOCK, replaces=True)
    finally:
        running.disown()


async def test_nothing_is_restored_under_a_worker_that_runs_alone(tmp_path: Path, house: House):
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    worker = LocalBus(house.stores.directory.bus)
    await worker.start()
    try:
        assert house.stores.directory.members() == [worker.member]
        with pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
            await restore(tmp_path / "copy", house.stores.directory, CLOCK, replaces=True)
    finally:
        await worker.stop()
    assert house.stores.directory.members() == []


@pytest.mark.parametrize("name", ["copy", "copy.tar.gz"])
async def test_a_damaged_backup_is_refused_and_nothing_is_touched(tmp_path: Path, house: House, name: str):
    await accept(house, *range(1, 200))
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    damage(tmp_path / "copy" / "rise.db")
    if name != "copy":
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            archive.add(tmp_path / "copy", arcname="rise-backup")
    await house.stores.close()
    with pytest.raises(StoreCorrupt, match="backup is"):
        await restore(tmp_path / name, DataDirectory(tmp_path / "data"), CLOCK, replaces=True)
    assert len(await open_tasks(tmp_path / "data")) == 199
    assert not list(tmp_path.glob("*before-restore*"))
    assert not list(tmp_path.glob(".rise-unfinished-*"))


async def test_a_cut_archive_is_refused(tmp_path: Path, house: House):
    await accept(house, *range(1, 100))
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    whole = (tmp_path / "copy.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Rejected, match="not a readable backup"):
        await restore(tmp_path / "cut.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
    assert not (tmp_path / "again").exists()


async def test_an_archive_of_which_one_bit_has_changed_is_refused(tmp_path: Path, house: House):
    """Where the change is inside a message, no look at the database would find it."""
    await accept(house, *range(1, 100))
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    whole = bytearray((tmp_path / "copy.tar.gz").read_bytes())
    for at in (len(whole) // 4, len(whole) // 2, len(whole) - 100):
        changed = whole.copy()
        changed[at] ^= 1
        (tmp_path / "changed.tar.gz").write_bytes(changed)
        with pytest.raises(Rejected, match="not a readable backup"):
            await restore(tmp_path / "changed.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
        assert not (tmp_path / "again").exists()


async def test_what_is_no_backup_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("not an archive")
    apsw.Connection(str(tmp_path / "folder" / "other.db")).close()
    again = DataDirectory(tmp_path / "again")
    for name, words in (("nothing", "there is no"), ("folder", "no rise.db in it"), ("text", "not a readable backup")):
        with pytest.raises(Rejected, match=words):
            await restore(tmp_path / name, again, CLOCK)
    (tmp_path / "folder" / "rise.db").write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="not usable"):
        await restore(tmp_path / "folder", again, CLOCK)
    assert not (tmp_path / "again").exists()


@pytest.mark.req("SEC-4")
async def test_nothing_in_an_archive_says_where_to_write(tmp_path: Path, house: House):
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    with tarfile.open(tmp_path / "crafted.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "copy" / "rise.db", arcname="../../rise.db")
        for name in ("../evil", "/tmp/evil-of-a-test", "rise-backup/serve.lock"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("rise-backup/secret-key")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    await restore(tmp_path / "crafted.tar.gz", DataDirectory(tmp_path / "deep" / "again"), CLOCK)
    assert [path.name for path in (tmp_path / "deep" / "again").iterdir()] == ["rise.db"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["again"]
    assert not Path("/tmp/evil-of-a-test").exists()

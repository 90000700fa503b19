"""A backup is whole, private and checked; a restore never makes anything worse."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from disks import small_disk

from rise import delivery
from rise.bus.local import LocalBus, _locked_file
from rise.bus.port import Topic
from rise.channels.telegram import read_update
from rise.clock import Clock, SystemClock
from rise.envelope import Outcome, TaskId, reply_id_of
from rise.errors import Rejected, RestoreUnfinished, StoreCorrupt, StoreLocked, StoreUnavailable
from rise.ledger.port import ReplyState, RunResult, reply_of
from rise.queue.port import Finished, Replying, Selection
from rise.runtime import backup
from rise.runtime.assembly.house import House, build
from rise.runtime.assembly.services import build_sender
from rise.runtime.audit import Audit
from rise.runtime.backup import back_up, restore
from rise.runtime.directory import DataDirectory
from rise.service import Signal
from rise.settings import load_settings
from rise.testing.telegram import TelegramStandIn

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


def restored_files(path: Path) -> list[str]:
    """Without the lock of who owned it meanwhile, and the marker of its database."""
    return sorted(file.name for file in path.iterdir() if file.name not in ("serve.lock", "ledger-identity"))


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
    assert restored_files(tmp_path / "again") == FILES
    assert set(await open_tasks(tmp_path / "again")) == set(accepted)
    assert await open_tasks(tmp_path / "again") == await open_tasks(tmp_path / "data")
    for secret in ("admin-token", "secret-key"):
        assert (tmp_path / "again" / secret).read_text() == (tmp_path / "data" / secret).read_text()


@pytest.mark.failure("C10")
@pytest.mark.parametrize("former", ["lost", "another"])
async def test_a_restored_directory_says_which_database_it_has_and_opens(tmp_path: Path, house: House, former: str):
    identity = await house.ledger.identity()
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    again = house_of(tmp_path / "again")
    await again.stores.open()
    await again.stores.close()
    if former == "lost":
        again.stores.directory.database.unlink()
        with pytest.raises(StoreCorrupt, match="is gone"):
            await back_up(again.stores.directory, tmp_path / "nothing", CLOCK)
    await restore(tmp_path / "copy", again.stores.directory, CLOCK, replaces=True)
    assert again.stores.directory.marker.path.read_text().strip() == identity
    restored = house_of(tmp_path / "again")
    await restored.stores.open()
    assert await restored.ledger.identity() == identity
    await restored.stores.close()


@pytest.mark.failure("C10")
@pytest.mark.parametrize("name", ["former", "former.tar.gz"])
async def test_what_a_killed_serve_left_is_restored_with_what_is_only_in_its_log(
    tmp_path: Path, house: House, name: str
):
    """As in `before-restore-1`, which people go back to after they have restored the wrong backup."""
    accepted = await accept(house, *range(1, 11))
    await house.stores.close()  # these are in the file itself, what follows is not yet
    killed = house_of(tmp_path / "data")
    await killed.stores.open()
    accepted += await accept(killed, *range(11, 31))
    former = tmp_path / "former"
    shutil.copytree(tmp_path / "data", former)
    await killed.stores.close()
    with tarfile.open(tmp_path / "former.tar.gz", "w:gz") as archive:
        archive.add(former, arcname="former")

    restored = await restore(tmp_path / name, DataDirectory(tmp_path / "again"), CLOCK)

    assert restored.contents.tasks_open == 30
    assert set(await open_tasks(tmp_path / "again")) == set(accepted)
    assert (former / "rise.db-wal").stat().st_size  # what is restored from stays as it was


@pytest.mark.failure("C5")
async def test_a_restore_whose_log_finds_no_room_in_the_file_is_refused_and_puts_nothing_in_place(
    tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch
):
    await accept(house, 1)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    number_on = backup._number_on

    async def on_a_full_disk(folder: Path, clock: Clock) -> None:
        await number_on(folder, clock)
        (folder / "rise.db-wal").write_bytes(b"what closing could not take into the file")

    monkeypatch.setattr(backup, "_number_on", on_a_full_disk)
    with pytest.raises(StoreUnavailable, match="free some space"):
        await restore(tmp_path / "copy", DataDirectory(tmp_path / "again"), CLOCK)
    assert not (tmp_path / "again" / "rise.db").exists()
    monkeypatch.undo()
    restored = await restore(tmp_path / "copy", DataDirectory(tmp_path / "again"), CLOCK)
    assert restored.contents.tasks_open == 1


async def test_what_is_in_use_is_no_backup(tmp_path: Path, house: House):
    await accept(house, 1)
    house.stores.directory.own()
    try:
        with pytest.raises(StoreLocked, match="rise backup"):
            await restore(house.stores.directory.path, DataDirectory(tmp_path / "again"), CLOCK)
    finally:
        house.stores.directory.disown()


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


@pytest.mark.failure("C1")
async def test_what_a_killed_backup_left_goes_with_the_next_one_and_that_of_one_that_lives_stays(
    tmp_path: Path, house: House
):
    dead, lives = tmp_path / ".rise-unfinished-dead", tmp_path / ".rise-unfinished-lives"
    for left in (dead, lives):
        (left / "rise-backup").mkdir(parents=True)
        (left / "rise-backup" / "rise.db").write_bytes(b"half of it")
    lock = os.open(lives, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Rejected):
        await back_up(house.stores.directory, tmp_path / "data", CLOCK)
    assert dead.exists(), "one that is refused does nothing"
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    os.close(lock)
    assert not dead.exists() and (lives / "rise-backup" / "rise.db").exists()
    assert sorted(path.name for path in tmp_path.glob(".rise-unfinished-*")) == [lives.name]


@pytest.mark.failure("C1")
async def test_of_two_backups_at_once_neither_removes_what_the_other_makes(tmp_path: Path, house: House):
    await asyncio.gather(*(back_up(house.stores.directory, tmp_path / f"copy-{number}", CLOCK) for number in range(3)))
    assert all((tmp_path / f"copy-{number}" / "rise.db").exists() for number in range(3))
    assert not list(tmp_path.glob(".rise-unfinished-*"))


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
        assert restored.moved_aside == tmp_path / "data" / f"before-restore-{number}"
        assert set(await open_tasks(tmp_path / "data")) == set(first)
    assert len(await open_tasks(tmp_path / "data" / "before-restore-1")) == 4


async def test_an_empty_directory_that_is_there_already_is_used_as_it_is(tmp_path: Path, house: House):
    """It may be a mount point, which cannot be renamed or replaced."""
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    (tmp_path / "again").mkdir(mode=0o755)
    inode = (tmp_path / "again").stat().st_ino
    await restore(tmp_path / "copy.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
    assert (tmp_path / "again").stat().st_ino == inode
    assert mode_of(tmp_path / "again") == 0o700
    assert restored_files(tmp_path / "again") == FILES


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
    worker = LocalBus(house.stores.directory.bus, CLOCK)
    await worker.start()
    try:
        assert house.stores.directory.members() == [worker.member]
        with pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
            await restore(tmp_path / "copy", house.stores.directory, CLOCK, replaces=True)
    finally:
        await worker.stop()
    assert house.stores.directory.members() == []


@pytest.fixture
def when_unpacked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen in the seconds that a restore takes."""

    def when(happens: Callable[[], None]) -> None:
        def unpack(*words: Any) -> None:
            unpacked(*words)
            happens()

        unpacked = backup._unpack
        monkeypatch.setattr(backup, "_unpack", unpack)

    return when


@pytest.mark.failure("C8")
@pytest.mark.parametrize("is_there", [True, False], ids=["into an empty directory", "into none"])
async def test_a_serve_that_starts_while_something_is_restored_is_refused(
    tmp_path: Path, house: House, when_unpacked: Callable[[Callable[[], None]], None], is_there: bool
):
    await accept(house, 1)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    again = DataDirectory(tmp_path / "again")
    if is_there:
        again.create()

    def start_serve() -> None:
        for alone in (True, False):
            with pytest.raises(StoreLocked, match="restore"):
                house_of(again.path).stores.directory.own(alone=alone)

    when_unpacked(start_serve)
    await restore(tmp_path / "copy", again, CLOCK)
    assert len(await open_tasks(again.path)) == 1
    assert (again.path / "secret-key").read_text() == (tmp_path / "data" / "secret-key").read_text()
    again.own()
    again.disown()


@pytest.mark.failure("C8")
@pytest.mark.parametrize("lives", [True, False])
async def test_what_a_command_brings_into_the_empty_directory_meanwhile_is_not_overwritten(
    tmp_path: Path, house: House, when_unpacked: Callable[[Callable[[], None]], None], lives: bool
):
    """Workers and commands use a directory that they do not own; this one is there still, or was killed."""
    await accept(house, 1)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    again = DataDirectory(tmp_path / "again")
    log = asyncio.Queue[bytes]()

    def command() -> None:
        shutil.copytree(tmp_path / "data", again.path, dirs_exist_ok=True)
        log.put_nowait((again.path / "rise.db-wal").read_bytes())
        if lives:
            bus.append(_locked_file(_made(again.bus), f"{os.getpid()}-command"))

    bus: list[int] = []
    when_unpacked(command)
    with pytest.raises(StoreLocked, match="pid" if lives else r"was empty and holds ledger-identity now"):
        await restore(tmp_path / "copy", again, CLOCK)
    assert log.get_nowait() == (again.path / "rise.db-wal").read_bytes()
    assert set(restored_files(again.path)) - {"bus"} == {*FILES, "rise.db-shm", "rise.db-wal"}
    for fd in bus:
        os.close(fd)


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


async def test_the_log_of_a_database_that_is_gone_is_not_mixed_with_the_restored_one(tmp_path: Path, house: House):
    await accept(house, 1)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "data" / "rise.db-wal", tmp_path / "again")
    with pytest.raises(Rejected, match="not empty"):
        await restore(tmp_path / "copy", DataDirectory(tmp_path / "again"), CLOCK)
    await restore(tmp_path / "copy", DataDirectory(tmp_path / "again"), CLOCK, replaces=True)
    assert restored_files(tmp_path / "again") == sorted([*FILES, "before-restore-1"])
    assert len(await open_tasks(tmp_path / "again")) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="a disk is mounted")
async def test_a_mount_point_is_restored_into_new_or_used(tmp_path: Path, house: House):
    """It can be neither renamed nor replaced; and a new one has a `lost+found`."""
    first = await accept(house, 1)
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    with small_disk(tmp_path / "disk", size="20m") as disk:
        (disk / "lost+found").mkdir()
        await restore(tmp_path / "copy.tar.gz", DataDirectory(disk), CLOCK)
        assert set(await open_tasks(disk)) == set(first)
        restored = await restore(tmp_path / "copy.tar.gz", DataDirectory(disk), CLOCK, replaces=True)
        assert restored.moved_aside == disk / "before-restore-1"
        for path in (disk, disk / "before-restore-1"):
            assert set(await open_tasks(path)) == set(first)
        assert (disk / "lost+found").is_dir()


# --- a restore that is cut off ----------------------------------------------------------------------------

KILLED_AT_EVERY_STEP = """
import asyncio, itertools, os, pathlib, shutil, signal, sys
from rise.clock import Clock, SystemClock
from rise.runtime.backup import restore
from rise.runtime.directory import DataDirectory

copy, former, killed = map(pathlib.Path, sys.argv[1:])
STEPS = ("rename", "mkdir", "unlink", "rmdir", "chmod")

def steps_until_killed(last):
    # Before the first step, behind it (before the second), and so on.
    count = itertools.count()

    def before(step):
        def stepped(*words, **named):
            if next(count) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*words, **named)
        return stepped

    for name in STEPS:
        setattr(os, name, before(getattr(os, name)))

for last in itertools.count():
    data = killed / str(last)
    if former.exists():
        shutil.copytree(former, data)
    child = os.fork()
    if not child:
        steps_until_killed(last)
        asyncio.run(restore(copy, DataDirectory(data), SystemClock(), replaces=True))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(last)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.failure("M3")
@pytest.mark.parametrize("was_there", [True, False], ids=["over another", "into none"])
async def test_a_restore_killed_anywhere_leaves_the_former_or_the_restored_or_what_nobody_opens(
    tmp_path: Path, house: House, was_there: bool
):
    """And run again it comes to its end; what was there before is whole then, its log and its secrets included."""
    restored = await accept(house, 1, 2)
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    added = await accept(house, 3)
    former = tmp_path / "former"
    if was_there:
        shutil.copytree(tmp_path / "data", former)  # as kill -9 leaves it: what came last is in the log alone
        (former / "admin-token").write_text("f" * 43)
    (tmp_path / "killed").mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED_AT_EVERY_STEP, tmp_path / "copy", former, tmp_path / "killed"),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    steps = int(printed)
    assert steps > (15 if was_there else 8)

    found = [await found_after_kill(tmp_path / "killed" / str(step)) for step in range(steps)]
    everything = {*restored, *added} if was_there else set()
    assert {frozenset(tasks) for tasks in found if tasks is not None} <= {frozenset(everything), frozenset(restored)}
    assert found[0] == everything
    assert found.count(None) > (10 if was_there else 4)

    for step in range(steps):
        data = tmp_path / "killed" / str(step)
        await restore(tmp_path / "copy", DataDirectory(data), CLOCK, replaces=True)
        assert set(await open_tasks(data)) == set(restored)
        assert not list(data.glob("*restor*ing")) + list(data.glob("restore-*"))
        if was_there:
            aside = data / "before-restore-1"
            assert (aside / "admin-token").read_text() == "f" * 43
            assert set(await open_tasks(aside)) == everything


async def found_after_kill(data: Path) -> set[TaskId] | None:
    """What a `rise serve` would find that is started next, without changing it; None if it is refused."""
    look = data.with_name(f"{data.name}-looked-at")
    if data.exists():
        shutil.copytree(data, look)
    try:
        return set(await open_tasks(look))
    except RestoreUnfinished:
        assert restored_files(look) == restored_files(data), "who is refused makes nothing"
        return None


@pytest.mark.failure("M3")
async def test_nobody_opens_what_is_half_restored(tmp_path: Path, house: House):
    data = house.stores.directory
    await house.stores.close()
    data.unfinished.mkdir()
    with pytest.raises(RestoreUnfinished, match="run it again"):
        house_of(data.path)
    with pytest.raises(RestoreUnfinished, match="run it again"):
        await house.stores.open()
    with pytest.raises(RestoreUnfinished, match="run it again"):
        await back_up(data, tmp_path / "copy", CLOCK)


# --- what may have been sent since ------------------------------------------------------------------------


BOT_TOKEN = "7:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi"


async def answer(house: House, number: int, *texts: str, deliver: bool) -> TaskId:
    """The result is saved; its replies wait for the sender, or lie where their reader fetches them."""
    [task_id] = await accept(house, number)
    claims = (await house.queue.claim("test", {"telegram": 1000}, takes_suspects=True)).claims
    [claim] = [claim for claim in claims if claim.task.task_id == task_id]
    task = claim.task
    replies = []
    for chunk, text in enumerate(texts):
        call = house.channels.by_name()["telegram"].notice(task.head, text)
        assert call is not None
        replies.append(reply_of(task.head, task.run_id, reply_id_of(task.run_id, chunk), call))
    await house.ledger.save_result(task, RunResult(outcome=Outcome.ANSWERED), replies, [], deliver=deliver)
    await house.queue.settle(claim, task, Replying() if deliver else Finished())
    return task_id


async def states(house: House, task_id: TaskId) -> list[ReplyState]:
    return [reply.state for reply in await house.ledger.replies(task_id=task_id)]


@pytest.mark.req("CHN-1")
@pytest.mark.parametrize("is_first", [True, False], ids=["the first", "not the first"])
async def test_who_fetches_replies_sees_what_is_said_after_a_restore(tmp_path: Path, is_first: bool):
    """A page of the web chat keeps the number of the last reply it has shown, and asks for those beyond it."""

    def house_with_bot(name: str) -> House:
        bot = {"telegram_token": BOT_TOKEN, "telegram_mode": "polling"}
        return build(load_settings(data_dir=tmp_path / name, _env_file=None, **bot))

    former, again = house_with_bot("data"), house_with_bot("again")
    await former.stores.open()
    if not is_first:
        await answer(former, 2, "before the backup", deliver=False)
    await back_up(former.stores.directory, tmp_path / "copy", CLOCK)
    await answer(former, 7, "after the backup", "and more", deliver=False)
    [*_, seen] = await former.ledger.transcript("telegram", "7", "2", after=0, limit=10)
    await former.stores.close()

    await restore(tmp_path / "copy", again.stores.directory, CLOCK, replaces=True)

    await again.stores.open()
    await answer(again, 12, "after the restore", deliver=False)
    fetched = await again.ledger.transcript("telegram", "7", "2", after=seen.sequence, limit=10)
    await again.stores.close()
    assert [reply.call.text for reply in fetched] == ["after the restore"]


@pytest.mark.req("OUT-1")
@pytest.mark.failure("M7", "G3")
@pytest.mark.parametrize("policy", ["resend_marked", "resend", "hold"])
async def test_replies_that_waited_in_the_backup_are_doubts_after_a_restore(tmp_path: Path, policy: str):
    async with TelegramStandIn(BOT_TOKEN) as telegram:

        def house_with_bot(name: str) -> House:
            bot = {"telegram_token": BOT_TOKEN, "telegram_api_base": telegram.url, "telegram_mode": "polling"}
            pace = {"telegram_rate_chat": 1000.0, "telegram_unknown": policy}
            return build(load_settings(data_dir=tmp_path / name, _env_file=None, **bot, **pace))

        former, again = house_with_bot("data"), house_with_bot("again")
        await former.stores.open()
        pushed = await answer(former, 1, "one", "two", deliver=True)
        fetched = await answer(former, 2, "three", deliver=False)
        await back_up(former.stores.directory, tmp_path / "copy", CLOCK)
        assert await states(former, pushed) == [ReplyState.READY] * 2
        await former.stores.close()
        shutil.rmtree(tmp_path / "again")

        restored = await restore(tmp_path / "copy", again.stores.directory, CLOCK)

        assert restored.replies_in_doubt == 2
        await again.stores.open()
        assert await states(again, pushed) == [ReplyState.SENDING] * 2
        assert await states(again, fetched) == [ReplyState.SENT]
        held = Signal()
        again.bus.subscribe(Topic.TASK_SETTLED, lambda payload: held.set())
        sender = build_sender(again)
        await again.bus.start()
        await sender.start()
        if policy == "hold":
            while (await again.ledger.outbox_depth()).unknown < 2:
                assert await held.wait(10)
        else:
            await telegram.wait_until(lambda platform: len(platform.sent) == 2)
        await sender.stop()
        await again.bus.stop()
        await again.channels.close()
        await again.stores.close()
        mark = "↻ " if policy == "resend_marked" else ""
        assert [message.text for message in telegram.sent] == ([] if policy == "hold" else [f"{mark}one", f"{mark}two"])


@pytest.mark.req("OUT-1")
@pytest.mark.failure("M7")
async def test_what_is_in_doubt_waits_for_its_channel_as_what_is_ready_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A backup is tried out, or started too soon, without the bot's token: its policy counts all the same later."""
    monkeypatch.setattr(delivery, "ACCOUNT_RETRY_SECONDS", 0.1)
    async with TelegramStandIn(BOT_TOKEN) as telegram:
        bot: dict[str, Any] = {"telegram_token": BOT_TOKEN, "telegram_api_base": telegram.url}

        def house_with(**settings: Any) -> House:
            return build(load_settings(data_dir=tmp_path / "data", _env_file=None, **settings))

        house = house_with(**bot)
        await house.stores.open()
        task_id = await answer(house, 1, "one", deliver=True)
        await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
        await house.stores.close()
        await restore(tmp_path / "copy", house.stores.directory, CLOCK, replaces=True)

        without_bot, given_back = house_with(), Signal()
        await without_bot.stores.open()
        release = without_bot.ledger.outbox_release

        async def released(*args: Any, **kwargs: Any) -> None:
            await release(*args, **kwargs)
            given_back.set()

        monkeypatch.setattr(without_bot.ledger, "outbox_release", released)
        await until_sent(without_bot, given_back.wait(2))
        assert await states(without_bot, task_id) == [ReplyState.SENDING]
        await without_bot.stores.close()

        again = house_with(**bot)
        await again.stores.open()
        await until_sent(again, telegram.wait_until(lambda platform: len(platform.sent) == 1))
        await again.channels.close()
        await again.stores.close()
        assert [message.text for message in telegram.sent] == ["↻ one"]


async def until_sent(house: House, done: Awaitable[object]) -> None:
    """Its sender runs until then."""
    sender = build_sender(house)
    await house.bus.start()
    await sender.start()
    await done
    await sender.stop()
    await house.ledger.leave_offices(house.bus.member)
    await house.bus.stop()


async def test_nothing_is_written_beside_the_directory(tmp_path: Path, house: House):
    """A service may own its directory and nothing around it."""
    await back_up(house.stores.directory, tmp_path / "copy", CLOCK)
    again = tmp_path / "there" / "again"
    for _ in range(2):
        await restore(tmp_path / "copy", DataDirectory(again), CLOCK, replaces=True)
        assert [path.name for path in again.parent.iterdir()] == ["again"]


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
    assert not list(tmp_path.glob("data/*restore*"))


async def test_a_cut_archive_is_refused(tmp_path: Path, house: House):
    await accept(house, *range(1, 100))
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    whole = (tmp_path / "copy.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Rejected, match="not a readable backup"):
        await restore(tmp_path / "cut.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
    assert restored_files(tmp_path / "again") == []


async def test_an_archive_of_which_one_bit_has_changed_is_refused(tmp_path: Path, house: House):
    """Inside a message no look at the database would find it. Behind the last file is only padding."""
    await accept(house, *range(1, 100))
    await back_up(house.stores.directory, tmp_path / "copy.tar.gz", CLOCK)
    whole = bytearray((tmp_path / "copy.tar.gz").read_bytes())
    for at in (len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        changed = whole.copy()
        changed[at] ^= 1
        (tmp_path / "changed.tar.gz").write_bytes(changed)
        with pytest.raises(Rejected, match="not a readable backup"):
            await restore(tmp_path / "changed.tar.gz", DataDirectory(tmp_path / "again"), CLOCK)
        assert restored_files(tmp_path / "again") == []


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
    assert restored_files(tmp_path / "again") == []


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
    assert restored_files(tmp_path / "deep" / "again") == ["rise.db"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["again"]
    assert not Path("/tmp/evil-of-a-test").exists()

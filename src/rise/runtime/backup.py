"""Backup and restore of the data directory: one command each, nothing lost on the way.

Promises: a backup is one consistent moment of the database, taken while work goes on, with the secrets that
belong to it, readable by the owner alone, checked by reading the copy, and on the disk when the command ends;
it appears under its name whole or not at all, and what a killed one has left goes with the next one there. A restore
checks the backup before it changes anything, holds the directory as its owner from before that until its end, and
whenever it is cut off, the directory is what it was, or what the backup says, or opened by nobody until it is restored
again.

Refuses: to overwrite a backup, to restore under running processes, to delete what was there before; to rename the
directory itself or to write beside it: it may be a mount point, in a place where nothing may be made.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import msgspec

from rise.clock import Clock, epoch_ms
from rise.connections.marker import sync
from rise.connections.sqlite import Database
from rise.errors import Rejected, StoreCorrupt, StoreLocked, StoreUnavailable
from rise.runtime.directory import DATABASE, MARKER, DataDirectory

SECRETS: Final = ("admin-token", "secret-key")
_LOG: Final = f"{DATABASE}-wal"
ARCHIVE_SUFFIXES: Final = (".tar.gz", ".tgz")

_FOLDER: Final = "rise-backup"
"""The one folder in an archive."""
_STAGING: Final = ".rise-unfinished-"
_UNPACKING: Final = ".restore-unpacking"
_NEW: Final = "new"
_FORMER: Final = "former"
_ASIDE: Final = "before-restore-"
_LOST_AND_FOUND: Final = "lost+found"
"""What a new ext4 volume has; it belongs to the disk."""
_NUMBERS_LEFT_OUT: Final = 1_000_000
_COUNTED: Final = ("tasks", "receipts", "runs")

Progress = Callable[[int, int], None]
"""Told now and then: how many pages of the database are copied, of how many."""


class Contents(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a backup holds, as read from it."""

    files: list[str]
    size_bytes: int
    tasks_open: int
    receipts: int
    runs: int


class Restored(msgspec.Struct, frozen=True):
    contents: Contents
    moved_aside: Path | None
    """Where what was there before is now."""
    replies_in_doubt: int
    """Were to be sent when the backup was made; whether they have been since, it cannot tell."""


async def back_up(
    directory: DataDirectory, target: Path, clock: Clock, on_progress: Progress = lambda copied, total: None
) -> Contents:
    """Copy the directory as it is at this moment to a new directory, or to a new archive `….tar.gz`.

    Raises `Rejected` if the target exists, `StoreUnavailable` if something cannot be read or written,
    `StoreCorrupt` if the copy does not pass its check; the target does not exist then.
    """
    _refuse_wrong_names(directory, target)
    with _file_errors(f"the backup {target}"), _staging(target.parent) as staging:
        folder = _new_folder(staging / _FOLDER)
        await _copy_database(directory.database, folder / DATABASE, clock, on_progress)
        _copy_files(directory.path, folder, SECRETS)
        contents = await _examined(folder, clock)
        await asyncio.to_thread(_deliver, folder, target)
    return contents


async def restore(source: Path, directory: DataDirectory, clock: Clock, *, replaces: bool = False) -> Restored:
    """Make the directory what the backup says; `replaces` moves what is there aside first, within it.

    Replies that were to be sent may have been sent since the backup: they become doubts, as after a crash of the
    sender, and the policy for those decides.

    Raises `StoreLocked` if processes use the directory, `Rejected` if it is not empty or the source is no backup,
    `StoreCorrupt` if the backup does not pass its check. Nothing was changed then, at most an empty directory made.
    """
    path = directory.path
    with _file_errors(str(path)), _owned(directory):
        was_empty = not _contents(path)
        _refuse_members(directory)
        if not (was_empty or replaces or directory.unfinished.exists()):
            raise Rejected(
                f"{path} is not empty. With --force what is there is moved aside, not deleted; or restore to another "
                "--data-dir",
                field="data_dir",
            )
        with _unpacking(path) as staging:
            new = _new_folder(staging / _NEW)
            await asyncio.to_thread(_unpack, source, new)
            contents = await _examined(new, clock)
            await _mark(new, clock)
            in_doubt = await _doubt_replies(new, clock)
            await _number_on(new, clock)
            _refuse_log_left(new)
            _sync_files(new)
            # Once more: that took its time, and workers and commands come without owning the directory.
            _refuse_members(directory)
            if was_empty:
                _refuse_what_came_meanwhile(path)
            _announce(directory, staging)
        moved_aside = _move_aside(directory)
        _put_in_place(directory)
    return Restored(contents, moved_aside, in_doubt)


@asynccontextmanager
async def opened_to_read(path: Path, clock: Clock) -> AsyncIterator[Database]:
    """For reading. Without a schema: nothing is migrated, and what a newer Rise wrote is read all the same."""
    database = Database(path, clock=clock, schema={})
    try:
        with suppress(StoreUnavailable):  # a full or read-only disk can still be read
            await database.open()
        yield database
    finally:
        await database.close()


# --- the copy ---------------------------------------------------------------------------------------------


async def _copy_database(path: Path, target: Path, clock: Clock, on_progress: Progress) -> None:
    _write_private(target)
    async with opened_to_read(path, clock) as database:
        await database.backup_to(target, on_progress)


async def _examined(folder: Path, clock: Clock) -> Contents:
    """Read the whole copy. Raises `StoreCorrupt` unless it is sound, and of Rise."""
    try:
        async with opened_to_read(folder / DATABASE, clock) as copy:
            verdict, counts = await copy.read(_examine)
    except StoreUnavailable as error:
        raise StoreCorrupt(f"the backup is not usable: {error}") from error
    if verdict != "ok":
        raise StoreCorrupt(f"the backup is damaged: {verdict}")
    if not counts:
        raise StoreCorrupt("the backup is not usable: it is not a database of Rise")
    files = _sizes(folder)
    return Contents(
        files=sorted(files),
        size_bytes=sum(files.values()),
        tasks_open=counts["tasks"],
        receipts=counts["receipts"],
        runs=counts["runs"],
    )


def _examine(connection: Any) -> tuple[str, dict[str, int]]:
    """What is wrong with it, or `ok`; and how much it holds, nothing if it is not ours."""
    verdict = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if verdict != "ok" or not tables.issuperset(_COUNTED):
        return verdict, {}
    return verdict, {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _COUNTED}  # noqa: S608 - our own names


def _deliver(folder: Path, target: Path) -> None:
    """Whole and on the disk, then under its name."""
    _sync_files(folder)
    if target.name.endswith(ARCHIVE_SUFFIXES):
        os.link(_packed(folder), target)
    else:
        folder.rename(target)
    sync(target.parent)


def _packed(folder: Path) -> Path:
    """The folder as an archive beside it, read back to the end."""
    archive = folder.with_name("archive")
    _write_private(archive)
    with archive.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
            tar.add(folder, arcname=_FOLDER)
        file.flush()
        os.fsync(file.fileno())
    with gzip.open(archive) as packed:
        while packed.read(1 << 20):
            pass
    return archive


def _refuse_wrong_names(directory: DataDirectory, target: Path) -> None:
    directory.refuse_without_database()
    if os.path.lexists(target):
        raise Rejected(f"{target} exists, and a backup overwrites nothing: choose another name", field="target")


# --- the way back -----------------------------------------------------------------------------------------


@contextmanager
def _owned(directory: DataDirectory) -> Iterator[None]:
    """A `rise serve` that starts meanwhile finds it taken."""
    directory.create()
    try:
        directory.own()
    except StoreLocked as error:
        raise StoreLocked(
            f"a `rise serve` or `rise restore` uses {directory.path}: stop it first, then restore"
        ) from error
    try:
        yield
    finally:
        directory.disown()


def _refuse_members(directory: DataDirectory) -> None:
    if alive := directory.members():
        pids = ", ".join(member.partition("-")[0] for member in alive)
        raise StoreLocked(f"processes use {directory.path} (pid {pids}): stop them first, then restore")


def _refuse_what_came_meanwhile(path: Path) -> None:
    """All but secrets: a `rise serve` that is refused has made those before."""
    if came := [entry.name for entry in _contents(path) if entry.name not in SECRETS]:
        raise StoreLocked(f"{path} was empty and holds {came[0]} now: stop what uses it first, then restore")


def _contents(path: Path) -> list[Path]:
    """What somebody may miss: not what a new disk has, and not what restores leave and need."""
    ours = (_LOST_AND_FOUND, DataDirectory(path).lock.name, DataDirectory(path).unfinished.name, _UNPACKING)
    return [entry for entry in sorted(path.iterdir()) if entry.name not in ours and not entry.name.startswith(_ASIDE)]


def _unpack(source: Path, staging: Path) -> None:
    if not source.exists():
        raise Rejected(f"there is no backup {source}: name what `rise backup` made", field="source")
    if source.is_dir():
        _refuse_in_use(DataDirectory(source))
        # A backup has no log. A directory that a killed `rise serve` left has one, as what was moved aside may have:
        # the newest is in it alone, and SQLite takes it into the copy when that is opened.
        _copy_files(source, staging, (DATABASE, _LOG, *SECRETS))
    else:
        _unpack_archive(source, staging)
    if not (staging / DATABASE).exists():
        raise Rejected(f"{source} is no backup: there is no {DATABASE} in it", field="source")


def _refuse_in_use(source: DataDirectory) -> None:
    """Its two files, copied one after the other, would be of two moments."""
    if source.is_owned() or source.members():
        raise StoreLocked(f"{source.path} is in use: `rise backup` it, and restore that")


def _unpack_archive(source: Path, staging: Path) -> None:
    """Only the files that a backup has, under names of ours: nothing in an archive says where to write."""
    try:
        with gzip.open(source) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in (DATABASE, _LOG, *SECRETS):
                    _write_private(staging / name, tar.extractfile(member))
            # The checksum is behind the last file, and only who reads on finds that a bit has changed.
            while packed.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, FileExistsError) as error:
        raise Rejected(f"{source} is not a readable backup archive: {error}", field="source") from error


async def _doubt_replies(folder: Path, clock: Clock) -> int:
    """Sent again as if for the first time, an answer would stand there twice without its mark."""
    async with opened_to_read(folder / DATABASE, clock) as copy:
        return await copy.write(_doubt)


async def _number_on(folder: Path, clock: Clock) -> None:
    async with opened_to_read(folder / DATABASE, clock) as copy:
        await copy.write(lambda connection: _leave_numbers_out(connection, epoch_ms(clock.now())))


def _leave_numbers_out(connection: Any, now_ms: int) -> None:
    """A page of the web chat asks for replies beyond the last it has shown, whose number may have been given since the
    backup: given again, it would never be shown. Of the former numbers none is as high as the time."""
    if not connection.execute("SELECT 1 FROM sqlite_sequence WHERE name = 'replies'").fetchone():
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('replies', 0)")
    # More, too, than any that came since, where the clock is wrong.
    connection.execute(
        "UPDATE sqlite_sequence SET seq = max(seq + ?, ?) WHERE name = 'replies'", (_NUMBERS_LEFT_OUT, now_ms)
    )


def _doubt(connection: Any) -> int:
    # Not what is held behind another: a person decides about that, and may look first. What channels fetch is `sent`.
    connection.execute("UPDATE replies SET state = 'sending' WHERE state = 'ready' AND held = 0")
    return int(connection.changes())


def _refuse_log_left(folder: Path) -> None:
    """Only the file itself is put in place. Closing takes the log into it, unless the disk had no room for that."""
    if (folder / _LOG).exists():
        raise StoreUnavailable(f"{folder / _LOG} could not be taken into {DATABASE}: free some space, restore again")


async def _mark(folder: Path, clock: Clock) -> None:
    """Which database it is from now on; one from before they had an identity gets both at the next start."""
    async with opened_to_read(folder / DATABASE, clock) as copy:
        await copy.read(DataDirectory(folder).marker.write)


# From here on the directory says that it is half restored; whoever restores again goes on where this one was cut off.
# `restore-unfinished/new` is what comes; `restore-unfinished/former` is there until all that was before is in it.


def _announce(directory: DataDirectory, staging: Path) -> None:
    unfinished = directory.unfinished
    if unfinished.exists():
        # What the one before had unpacked is not needed: this backup is whole, and perhaps another.
        shutil.rmtree(unfinished / _NEW, ignore_errors=True)
        (staging / _NEW).rename(unfinished / _NEW)
    else:
        if _contents(directory.path):
            _new_folder(staging / _FORMER)
        sync(staging)
        staging.rename(unfinished)
    sync(unfinished)
    sync(directory.path)


def _move_aside(directory: DataDirectory) -> Path | None:
    path, former = directory.path, directory.unfinished / _FORMER
    if not former.exists():
        return None  # there was nothing, or it has been moved by the one that was cut off
    for entry in _contents(path):
        if not os.path.lexists(former / entry.name):
            entry.rename(former / entry.name)
    sync(former)
    number = 1
    while os.path.lexists(aside := path / f"{_ASIDE}{number}"):
        number += 1
    former.rename(aside)
    sync(directory.unfinished)
    sync(path)
    return aside


def _put_in_place(directory: DataDirectory) -> None:
    """The database last. What lies there by these names came from a restore that was cut off."""
    path, new = directory.path, directory.unfinished / _NEW
    path.chmod(0o700)
    log = path / _LOG
    if log.exists():
        # Of another database: SQLite would write its pages into this one.
        raise StoreLocked(f"something has opened {path / DATABASE}: stop it, remove {log}, then restore again")
    for name in (*SECRETS, MARKER, DATABASE):
        if (new / name).exists():
            (new / name).rename(path / name)
        else:
            (path / name).unlink(missing_ok=True)
    sync(path)
    shutil.rmtree(new)
    directory.unfinished.rmdir()
    sync(path)
    sync(path.parent)


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A directory of the owner alone, on the same disk, gone afterwards; those of killed ones go first."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One after the other: else one that was made, and is not locked yet, looks dead.
    with _opened_folder(parent) as place:
        _is_locked_by_us(place, wait=True)
        _remove_dead(parent)
        path = Path(tempfile.mkdtemp(prefix=_STAGING, dir=parent))
        lives = ExitStack()
        _is_locked_by_us(lives.enter_context(_opened_folder(path)))
    with lives:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _remove_dead(parent: Path) -> None:
    """What a killed backup has left: the kernel has given up its lock. Where nothing can be locked, it stays."""
    for path in parent.glob(f"{_STAGING}*"):
        with suppress(OSError), _opened_folder(path) as folder:
            if _is_locked_by_us(folder):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_locked_by_us(folder: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False  # by another, or it is a disk without locks
    return True


@contextmanager
def _unpacking(path: Path) -> Iterator[Path]:
    """Within the directory: beside it may be another disk, and nothing may be written there."""
    staging = path / _UNPACKING
    shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
    staging.mkdir(mode=0o700)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _new_folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}


def _copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).exists():
            with (source / name).open("rb") as content:
                _write_private(target / name, content)


def _write_private(path: Path, content: IO[bytes] | None = None) -> None:
    """A new file, readable by the owner alone from its first byte on."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(fd, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file, 1 << 20)


def _sync_files(folder: Path) -> None:
    """On the disk: everything in it, and the directory that names it."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)


@contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """The one place where the file system's errors become ours."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{what} cannot be written: {error.strerror or error} ({error.filename})") from error

"""Backup and restore of the data directory: one command each, nothing lost on the way.

Promises: a backup is one consistent moment of the database, taken while work goes on, with the secrets that
belong to it, readable by the owner alone, checked by reading the copy, and on the disk when the command ends;
it appears under its name whole or not at all. A restore checks the backup before it touches anything.

Refuses: to overwrite a backup, to restore under running processes, to delete what was there before.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

import apsw
import msgspec

from rise.bus.local import LocalBus
from rise.connections.sqlite import sqlite_errors
from rise.errors import Rejected, StoreCorrupt, StoreLocked, StoreUnavailable
from rise.runtime.directory import DATABASE, DataDirectory

SECRETS: Final = ("admin-token", "secret-key")
ARCHIVE_SUFFIXES: Final = (".tar.gz", ".tgz")
PAGES_PER_STEP: Final = 2000
BUSY_MS: Final = 10_000

_FOLDER: Final = "rise-backup"
"""The one folder in an archive."""

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
    """Where the former directory is now."""


def back_up(directory: DataDirectory, target: Path, on_progress: Progress = lambda copied, total: None) -> Contents:
    """Copy the directory as it is at this moment to a new directory, or to a new archive `….tar.gz`.

    Raises `Rejected` if the target exists, `StoreUnavailable` if something cannot be read or written,
    `StoreCorrupt` if the copy does not pass its check; the target does not exist then.
    """
    if not directory.database.exists():
        raise Rejected(f"{directory.path} holds no Rise database: name the right one with --data-dir", field="data_dir")
    if os.path.lexists(target):
        raise Rejected(f"{target} exists, and a backup overwrites nothing: choose another name", field="target")
    with _file_errors(f"the backup {target}"):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _staging(target.parent) as staging:
            folder = staging / _FOLDER
            folder.mkdir(mode=0o700)
            _copy_database(directory.database, folder / DATABASE, on_progress)
            for name in SECRETS:
                if (directory.path / name).exists():
                    with (directory.path / name).open("rb") as source:
                        _write_private(folder / name, source)
            contents = _examined(folder)
            _sync_files(folder)
            if target.name.endswith(ARCHIVE_SUFFIXES):
                os.link(_packed(folder), target)
            else:
                folder.rename(target)
            _sync(target.parent)
    return contents


def restore(source: Path, directory: DataDirectory, *, replaces: bool = False) -> Restored:
    """Make the directory what the backup says; `replaces` moves a former one aside first.

    Raises `StoreLocked` if processes use the directory, `Rejected` if it is not empty or the source is no
    backup, `StoreCorrupt` if the backup does not pass its check. Nothing was changed then.
    """
    if not source.exists():
        raise Rejected(f"there is no {source}", field="source")
    _refuse_running(directory)
    path = directory.path
    is_empty = not path.exists() or not any(path.iterdir())
    if not is_empty and not replaces:
        raise Rejected(
            f"{path} is not empty. With --force it is moved aside, not deleted; or restore to another --data-dir",
            field="data_dir",
        )
    with _file_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside a directory that is to be moved, within one that is there to stay: it may be a mount point.
        with _staging(path if path.exists() and is_empty else path.parent) as staging:
            _unpack(source, staging)
            contents = _examined(staging)
            _sync_files(staging)
            moved_aside = None if is_empty else _move_aside(directory)
            _put_in_place(staging, path)
    return Restored(contents, moved_aside)


def members_alive(directory: DataDirectory) -> list[str]:
    """The processes that use the directory now: servers, workers, commands."""
    bus = LocalBus(directory.bus)
    gone = {bus.member, *bus.dead_members()}
    return sorted(lock.stem for lock in directory.bus.glob("*.lock") if lock.stem not in gone)


# --- the copy ---------------------------------------------------------------------------------------------


def _copy_database(path: Path, target: Path, on_progress: Progress) -> None:
    _write_private(target)
    with (
        sqlite_errors(),
        closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as source,
        closing(apsw.Connection(str(target))) as copy,
    ):
        source.set_busy_timeout(BUSY_MS)
        # One snapshot for the whole copy: without it, SQLite starts over whenever somebody writes, and on
        # a busy installation it would never end.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with copy.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(PAGES_PER_STEP)
                on_progress(backup.page_count - backup.remaining, backup.page_count)
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()


def _examined(folder: Path) -> Contents:
    """Read the whole copy as a stranger would. Raises `StoreCorrupt` unless it is sound."""
    try:
        with (
            sqlite_errors(),
            closing(
                apsw.Connection(
                    f"file:{str(folder / DATABASE).replace('?', '%3f').replace('#', '%23')}?immutable=1",
                    flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
                )
            ) as copy,
        ):
            verdict = [str(row[0]) for row in copy.execute("PRAGMA integrity_check")]
            if verdict != ["ok"]:
                raise StoreCorrupt(f"the backup is damaged: {verdict[0]}")
            tasks, receipts, runs = (
                copy.execute(sql).fetchone()[0]
                for sql in ("SELECT count(*) FROM tasks", "SELECT count(*) FROM receipts", "SELECT count(*) FROM runs")
            )
    except (StoreUnavailable, apsw.SQLError) as error:
        raise StoreCorrupt(f"the backup is not usable: {error}") from error
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return Contents(
        files=[file.name for file in files],
        size_bytes=sum(file.stat().st_size for file in files),
        tasks_open=tasks,
        receipts=receipts,
        runs=runs,
    )


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


# --- the way back -----------------------------------------------------------------------------------------


def _refuse_running(directory: DataDirectory) -> None:
    if directory.is_owned():
        raise StoreLocked(f"a `rise serve` uses {directory.path}: stop it first, then restore")
    if alive := members_alive(directory):
        pids = ", ".join(member.partition("-")[0] for member in alive)
        raise StoreLocked(f"processes use {directory.path} (pid {pids}): stop them first, then restore")


def _unpack(source: Path, staging: Path) -> None:
    if source.is_dir():
        for name in (DATABASE, *SECRETS):
            if (source / name).exists():
                with (source / name).open("rb") as file:
                    _write_private(staging / name, file)
    else:
        _unpack_archive(source, staging)
    if not (staging / DATABASE).exists():
        raise Rejected(f"{source} is no backup: there is no {DATABASE} in it", field="source")


def _unpack_archive(source: Path, staging: Path) -> None:
    """Only the files that a backup has, under names of ours: nothing in an archive says where to write."""
    try:
        with tarfile.open(source, mode="r:gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in (DATABASE, *SECRETS):
                    _write_private(staging / name, tar.extractfile(member))
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise Rejected(f"{source} is not a readable backup archive: {error}", field="source") from error


def _move_aside(directory: DataDirectory) -> Path:
    path = directory.path
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.before-restore-{number}")):
        number += 1
    directory.own()  # a `rise serve` that starts at this moment finds it taken
    try:
        path.rename(aside)
    finally:
        directory.disown()
    return aside


def _put_in_place(staging: Path, path: Path) -> None:
    """The database last: a directory without it is plainly not restored yet."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    for name in (*SECRETS, DATABASE):
        if (staging / name).exists():
            (staging / name).rename(path / name)
    _sync(path)
    _sync(path.parent)


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A directory of the owner alone, on the same disk, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=".rise-unfinished-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_private(path: Path, content: IO[bytes] | None = None) -> None:
    """A new file, readable by the owner alone from its first byte on."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(fd, "wb") as file:
        if content is not None:
            shutil.copyfileobj(content, file, 1 << 20)


def _sync_files(folder: Path) -> None:
    """On the disk: everything in it, and the directory that names it."""
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """The one place where the file system's errors become ours."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{what} cannot be written: {error.strerror or error} ({error.filename})") from error

"""Disks that misbehave on command, below SQLite."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw


class Disk(apsw.VFS):
    """Everything passes through to the real disk, is noted, and may be made to fail.

    It also keeps what a power cut would leave: of each file, the state it had when it was last synced.
    """

    def __init__(self, durable: Path) -> None:
        super().__init__("faulty", "", makedefault=True)
        self.durable = durable
        self.events: list[str] = []
        self.sync_failures = 0

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        return _File(self, name, flags)

    def xDelete(self, filename, syncdir):  # noqa: N802 - SQLite's name
        super().xDelete(filename, syncdir)
        (self.durable / Path(filename).name).unlink(missing_ok=True)

    def after_power_cut(self, source: Path, target: Path, dice: random.Random) -> None:
        """`target` gets the synced files; of the log, also any part of what was written behind the sync."""
        target.mkdir()
        for synced in self.durable.iterdir():
            kept = synced.read_bytes()
            written = (source / synced.name).read_bytes()
            if synced.name.endswith("-wal") and len(written) > len(kept):
                tail = bytearray(written[len(kept) :])
                tail = tail[: dice.randrange(len(tail) + 1)]
                for _ in range(dice.randrange(3)):
                    if tail:
                        tail[dice.randrange(len(tail))] ^= 0xFF
                kept += bytes(tail)
            (target / synced.name).write_bytes(kept)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name, flags) -> None:
        self._disk = disk
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else str(name))
        super().__init__("unix", name, flags)

    def xSync(self, flags):  # noqa: N802 - SQLite's name
        if self._disk.sync_failures and self._path.name.endswith("-wal"):
            self._disk.sync_failures -= 1
            self._disk.events.append(f"{self._path.name} failed")
            raise apsw.IOError("EIO")
        super().xSync(flags)
        self._disk.events.append(f"{self._path.name} synced")
        shutil.copy(self._path, self._disk.durable / self._path.name)


@contextmanager
def faulty_disk(durable: Path) -> Iterator[Disk]:
    durable.mkdir()
    disk = Disk(durable)
    try:
        yield disk
    finally:
        disk.unregister()


@contextmanager
def small_disk(where: Path, *, size: str = "2m") -> Iterator[Path]:
    """A file system of its own; needs root."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def remount(where: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", where], check=True)

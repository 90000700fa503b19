"""A disk of the installation's own, to be filled up and to fail; and a quota, where none can be made.

Promises: only what is inside of the given directory is touched; when the block ends, the mount is gone.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rise.clock import Clock, SystemClock

DISK_BYTES: Final = 4 << 30
"""Of a sparse file: only what is written takes room."""
_UNMOUNT_SECONDS: Final = 20.0


class DiskRefused(Exception):
    """A disk cannot be made or changed here; says why."""


class Disk:
    """A file system in a file. Needs root, loop devices and mkfs.ext4, and raises `DiskRefused` without."""

    def __init__(self, directory: Path, *, clock: Clock | None = None) -> None:
        self.where = directory / "disk"
        self._image = directory / "disk.image"
        self._clock = clock or SystemClock()

    async def __aenter__(self) -> Self:
        self.where.mkdir()
        self._image.touch()
        os.truncate(self._image, DISK_BYTES)
        # No blocks held back for root, or a full disk would not be full; no journal, so that an error is felt at once.
        await _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(self._image))
        await self._mount()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _run("umount", "-l", str(self.where))

    def fill(self) -> None:
        """To the last block."""
        with (self.where / "ballast").open("ab") as ballast:
            room = os.fstatvfs(ballast.fileno())
            size = room.f_bavail * room.f_frsize
            while size >= room.f_frsize:
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, size)
                except OSError:
                    size //= 2

    def free(self) -> None:
        (self.where / "ballast").unlink(missing_ok=True)

    async def fail(self) -> None:
        """The kernel is told that it has met an error: from now on the disk is read-only."""
        _report_error_on((await _run("findmnt", "-no", "SOURCE", str(self.where))).strip().rpartition("/")[2])

    async def mend(self) -> None:
        """Nothing may have a file open on it."""
        async with asyncio.timeout(_UNMOUNT_SECONDS):
            while True:
                try:
                    await _run("umount", str(self.where))
                    break
                except DiskRefused:
                    await self._clock.sleep(0.1)  # the last of its users is still being taken down
        with suppress(DiskRefused):  # it exits with 1 when it has repaired something
            await _run("e2fsck", "-y", "-f", str(self._image))
        await self._mount()

    async def _mount(self) -> None:
        await _run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.where))


def _report_error_on(device: str) -> None:
    try:
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a drill")
    except OSError as error:
        raise DiskRefused(f"trigger_fs_error of {device}: {error.strerror}") from error


def use_up_quota(pids: Iterable[int]) -> None:
    """From now on these processes, and those they start, cannot write to a file. Needs no rights."""
    _limit_files(pids, 0)


def give_back_quota(pids: Iterable[int]) -> None:
    """Parents first: what they start meanwhile has it back already."""
    _limit_files(pids, resource.RLIM_INFINITY)


def _limit_files(pids: Iterable[int], size: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size if size != resource.RLIM_INFINITY else most, most))


async def _run(*words: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise DiskRefused(f"{words[0]}: {error.strerror}") from error
    printed, _ = await process.communicate()
    if process.returncode:
        raise DiskRefused(f"{words[0]}: {printed.decode(errors='replace').strip()}")
    return printed.decode()

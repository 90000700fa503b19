"""The journals of one host: a file for each process that accepts, under a lock that dies with the process.

A process takes the lowest slot that is free, so there are as many files as processes ever ran at once, and none is ever
deleted: a file that somebody might just be opening is never taken from under him. What a dead process left open is
adopted by whoever runs: locked, brought to the other stores or found finished, and let go. Receipts of finished tasks
stay in it until their time, are read there by `every`, and bring an adopter once more when they are past it.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from rise.clock import Clock
from rise.connections.sqlite import Database
from rise.copies.journal import SCHEMA, Journal
from rise.errors import StoreCorrupt, StoreUnavailable, Unavailable
from rise.queue.port import NewTask
from rise.service import spawn
from rise.telemetry import log

T = TypeVar("T")

LOOK_SECONDS_MAX: Final = 5.0
"""For a look into all journals of the host, before what has been found by then has to do."""

_FILE: Final = re.compile(r"journal-(\d+)\.db")


class Slots:
    """The journals in a data directory."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        on_trouble: Callable[[StoreUnavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble`: hears what keeps the slot that was taken from being written, and None when it is again."""
        self.directory = directory
        self._clock = clock
        self._on_trouble = on_trouble
        self._looking: set[asyncio.Task[Any]] = set()

    async def take(self) -> Journal:
        """The lowest free slot, opened, until it is closed or this process ends.

        A damaged file is put aside and its slot starts anew; one of a newer version is left to that version. One that
        cannot be written now, on a full disk for example, is held all the same and used as soon as it can be: the
        other copies do meanwhile. Raises `StoreUnavailable` if no slot can even be locked.
        """
        for number in itertools.count():
            lock = self._lock(number)
            if lock is None:
                continue
            journal = self._journal(number, lock, on_trouble=self._on_trouble)
            try:
                await journal.open()
            except StoreCorrupt as error:
                await journal.close()
                log.error("journal.slot_skipped", slot=number, error=error, consequence="what it holds is left in it")
                continue
            except StoreUnavailable as error:
                log.error("journal.slot_unwritable", slot=number, error=error, consequence="nothing is kept in it yet")
            except BaseException:  # border: the slot is let go, and it is passed on
                await journal.close()
                raise
            return journal
        raise AssertionError

    async def abandoned(self) -> list[int]:
        """Slots that nobody holds and that hold work: open tasks, or receipts past their end."""
        found = []
        for number in self._numbers():
            journal = await self.adopt(number)
            if journal is not None:
                found.append(number)
                await journal.close()
        return found

    async def adopt(self, number: int) -> Journal | None:
        """The slot that a dead process left, until it is closed. None: somebody holds it, or it holds no work.

        One that cannot be used now is logged and left: the others are not kept waiting for it.
        """
        lock = self._lock(number)
        if lock is None:
            return None
        journal = self._journal(number, lock)
        try:
            await journal.open()
            if await journal.has_work():
                return journal
        except StoreUnavailable as error:
            log.warning("journal.slot_unusable", slot=number, error=error, consequence="what it holds waits in it")
        except BaseException:  # border: the slot is let go, and it is passed on
            await journal.close()
            raise
        await journal.close()
        return None

    @asynccontextmanager
    async def every(self) -> AsyncIterator[list[Journal]]:
        """All slots, held by whomever, for reading only. Each raises for itself if it cannot be read."""
        journals: list[Journal] = []
        try:
            for number in self._numbers():
                journal = self._journal(number, None)
                journals.append(journal)
                try:
                    await journal.open()
                except StoreUnavailable as error:
                    # A full or read-only disk can still be read; whoever asks it hears what is wrong otherwise.
                    log.warning("journal.slot_only_read", slot=number, error=error, consequence="none for who reads")
            yield journals
        finally:
            for journal in journals:
                await journal.close()

    async def ask_each(self, ask: Callable[[Journal], Awaitable[T]]) -> list[T]:
        """What they all say, as far as they can be read, and in time: no disk that hangs is waited for."""
        answers: list[T] = []

        async def look() -> None:
            async with self.every() as journals:
                for journal in journals:
                    with suppress(Unavailable):
                        answers.append(await ask(journal))

        looking = spawn(look(), name="slots.look", into=self._looking)
        await asyncio.wait({looking}, timeout=LOOK_SECONDS_MAX)
        if looking.done() and (error := looking.exception()) is not None and not isinstance(error, Unavailable):
            raise error
        return list(answers)

    async def open_tasks(self, *, limit: int) -> AsyncIterator[list[NewTask]]:
        """What all of them hold open, in pages of at most so many. Raises `Unavailable` if one cannot be read."""
        async with self.every() as journals:
            for journal in journals:
                after = 0
                while entries := await journal.open_tasks(limit=limit, after=after):
                    yield [entry.task for entry in entries]
                    after = entries[-1].number

    # --- inside ---

    def _numbers(self) -> list[int]:
        try:
            names = [file.name for file in self.directory.iterdir()]
        except OSError as error:
            raise StoreUnavailable(f"{self.directory} cannot be read: {error.strerror}") from error
        return sorted(int(found[1]) for found in map(_FILE.fullmatch, names) if found)

    def _journal(
        self,
        number: int,
        lock: _Lock | None,
        *,
        on_trouble: Callable[[StoreUnavailable | None], None] = lambda trouble: None,
    ) -> Journal:
        path = self.directory / f"journal-{number}.db"
        return Journal(
            partial(Database, path, clock=self._clock, schema=SCHEMA, on_trouble=on_trouble),
            clock=self._clock,
            number=number,
            may_start_anew=lock is not None,
            on_close=lock.release if lock is not None else lambda: None,
        )

    def _lock(self, number: int) -> _Lock | None:
        """None: another process, or another journal of this one, holds it."""
        path = self.directory / f"journal-{number}.lock"
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return _Lock(fd)


class _Lock:
    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        _held.add(self)

    def release(self) -> None:
        _held.discard(self)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_held: weakref.WeakSet[_Lock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The child's copy of a lock would outlive its holder, and hide that it died.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_after_fork_in_child)

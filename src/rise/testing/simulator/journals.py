"""Journals on the disk of a simulated world: the real statements, slots under locks that die with their process.

A file that takes no writes refuses them, and is read all the same. One that is lost with its disk is gone for whoever
opens it next; whoever has it open finds out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from rise.copies.journal import SCHEMA, Journal
from rise.copies.slots import Slots
from rise.errors import StoreUnavailable, Unavailable
from rise.testing.simulator.database import memory_disk
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.host import SimClock
from rise.testing.simulator.loop import Process
from rise.testing.simulator.servers import Witness
from rise.testing.simulator.store import SimDatabase
from rise.testing.simulator.world import World

T = TypeVar("T")
OnTrouble = Callable[[StoreUnavailable | None], None]

_TRIGGERS: Final = (
    "CREATE TEMP TRIGGER kept AFTER INSERT ON main.tasks"
    " BEGIN SELECT held('journal', NEW.task_id, NEW.generation); END",
    "CREATE TEMP TRIGGER kept_again AFTER UPDATE OF generation ON main.tasks"
    " BEGIN SELECT held('journal', NEW.task_id, NEW.generation); END",
    "CREATE TEMP TRIGGER forgotten AFTER DELETE ON main.tasks"
    " BEGIN SELECT left_journal(OLD.task_id, OLD.generation); END",
)
_NOWHERE: Final = Path("simulated")
"""A directory that does not exist."""


class SimJournalFile(SimDatabase):
    """`rise.connections.sqlite.Database` on one of the world's journals, for one process."""

    refused_while = FaultKind.JOURNAL_FULL
    gone_while = None

    def __init__(
        self, world: World, process: Process, witness: Any, number: int, *, clock: SimClock, on_trouble: OnTrouble
    ) -> None:
        super().__init__(world, process, clock=clock, schema=SCHEMA)
        self.path = _NOWHERE / f"journal-{number}.db"
        self._number = number
        self._witness = witness
        self._on_trouble = on_trouble
        self._file: apsw.Connection | None = None
        self._is_closed = False

    async def open(self) -> None:
        self._is_open = True
        self._connect_file()

    async def close(self) -> None:
        self._is_open = False
        self._is_closed = True

    @property
    def is_orphaned(self) -> bool:
        return self._file is not None and self._world.journals.get(self._number) is not self._file

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        if self._file is None and self._is_open:
            self._connect_file(to_read=True)
        self._refuse_orphan()
        return await super().read(query)

    def _refusal(self) -> Unavailable | None:
        try:
            if self._file is None:
                self._connect_file()
            self._refuse_orphan()
        except StoreUnavailable as error:
            return error
        return super()._refusal()

    def _answer(self, done: Any, outcome: Any) -> None:
        trouble = outcome if isinstance(outcome, StoreUnavailable) else None
        if str(trouble) != str(self._trouble):
            self._trouble = trouble
            self._on_trouble(trouble)
        super()._answer(done, outcome)

    def _connect_file(self, *, to_read: bool = False) -> None:
        """Raises `StoreUnavailable` if it cannot be written, as what is opened is; unless it is there to be read."""
        world, file = self._world, self._world.journals.get(self._number)
        is_full = world.is_struck(self.refused_while, self._process)
        if is_full and not (to_read and file is not None):
            raise StoreUnavailable("the disk is full")
        if file is None:
            file = world.journals[self._number] = memory_disk()
            self._disk = file
            self._migrate(file)
            self._watch(file)
        self._disk = file
        if not is_full:
            self._migrate(file)
            self._file = file

    def _watch(self, file: apsw.Connection) -> None:
        file.create_scalar_function("held", self._witness.held, 3)
        file.create_scalar_function("left_journal", self._witness.left_journal, 2)
        for trigger in _TRIGGERS:
            file.execute(trigger)

    def _refuse_orphan(self) -> None:
        if self.is_orphaned:
            raise StoreUnavailable(
                f"{self.path} was deleted or replaced while open; nothing is written until it is back"
            )


class SimSlots(Slots):
    """The real slots, in a directory of the world."""

    def __init__(
        self, world: World, process: Process, witness: Witness, *, clock: SimClock, on_trouble: OnTrouble
    ) -> None:
        super().__init__(_NOWHERE, clock=clock, on_trouble=on_trouble)
        self._world = world
        self._process = process
        self._witness = witness
        self._sim_clock = clock

    def _numbers(self) -> list[int]:
        return sorted(self._world.journals)

    def _lock(self, number: int) -> Any:
        holder = self._world.journal_locks.get(number)
        if holder is not None and holder.is_alive:
            return None
        self._world.journal_locks[number] = self._process
        return _SimLock(self._world, number)

    def _journal(self, number: int, lock: Any, *, on_trouble: OnTrouble = lambda trouble: None) -> Journal:
        connect = partial(
            SimJournalFile,
            self._world,
            self._process,
            self._witness,
            number,
            clock=self._sim_clock,
            on_trouble=on_trouble,
        )
        return Journal(
            connect,
            clock=self._sim_clock,
            number=number,
            may_start_anew=lock is not None,
            on_close=lock.release if lock is not None else lambda: None,
        )


class _SimLock:
    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    def release(self) -> None:
        self._world.journal_locks.pop(self._number, None)

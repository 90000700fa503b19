"""The journals that this process looks after: its own, and those that dead processes left behind.

Promises: a process that gets no slot at its start goes on and takes one as soon as it can; what a dead process left is
adopted, and let go of when it is drained; trouble with one journal keeps no other from being looked after.

Refuses: to adopt the journal of a process that lives; to name a journal of its own while it has none.
"""

from __future__ import annotations

import platform
from typing import Final

from rise.clock import Clock
from rise.copies.journal import Journal
from rise.copies.slots import Slots
from rise.errors import StoreCorrupt, StoreUnavailable, Unavailable
from rise.service import Loop, sparingly
from rise.telemetry import log

TAKE_SECONDS: Final = 2.0
ADOPT_SECONDS: Final = 15.0


class Journals:
    """One per process that accepts. Without a slot of its own it goes on, and takes one as soon as it can."""

    name = "journals"

    def __init__(self, slots: Slots, clock: Clock, *, adopts: bool) -> None:
        """`adopts`: whether it also drains what others left; those that end soon leave that to those that stay."""
        self.slots = slots
        self._clock = clock
        self._adopts = adopts
        self._own: Journal | None = None
        self._adopted: dict[int, Journal] = {}
        self._loop = Loop(self.name, self._look, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        try:
            self._own = await self.slots.take()
        except StoreUnavailable as error:
            _report(self.name, error)
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        for journal in self.all():
            await journal.close()
        self._own, self._adopted = None, {}

    @property
    def own(self) -> Journal:
        """Raises `StoreUnavailable` while there is none."""
        if self._own is None:
            raise StoreUnavailable("no journal can be opened: see that RISE_JOURNAL_DIR can be written")
        return self._own

    @property
    def place(self) -> str:
        """A name for this process among those of its host, taken over by whoever has its slot next."""
        return f"{platform.node()}-{'?' if self._own is None else self._own.number}"

    def all(self) -> list[Journal]:
        return [*([] if self._own is None else [self._own]), *self._adopted.values()]

    def numbers(self) -> set[int]:
        """Of the slots that this process has."""
        return {journal.number for journal in self.all()}

    async def _look(self) -> None:
        if self._own is None:
            await self._clock.sleep(TAKE_SECONDS)
            self._own = await self.slots.take()
            return
        if self._adopts:
            await self._let_go_of_drained()
            await self._adopt_abandoned()
        await self._clock.sleep(ADOPT_SECONDS)

    async def _adopt_abandoned(self) -> None:
        for number in await self.slots.abandoned():
            journal = await self.slots.adopt(number)
            if journal is not None:
                log.warning("journal.adopted", slot=number, consequence="what its process left is brought to its end")
                self._adopted[number] = journal

    async def _let_go_of_drained(self) -> None:
        for number, journal in list(self._adopted.items()):
            try:
                has_work = await journal.has_work()
            except StoreUnavailable as error:
                _report(self.name, error)  # its own trouble: the others are looked after all the same
                continue
            if not has_work:
                await journal.close()
                del self._adopted[number]


def _report(name: str, error: BaseException) -> None:
    if isinstance(error, Unavailable) and not isinstance(error, StoreCorrupt):  # a corrupt one does not come back
        log.warning("journal.unavailable", error=error, consequence="the other copies stand in; tried again by itself")
    else:
        log.error("journal.unavailable", error=error, consequence="the other copies stand in; tried again by itself")

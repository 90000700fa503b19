"""A person has the queue filled again from the other copies, and sees first what that would bring.

Safe at any time, any number of times: what is open there already, and what is finished, is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from rise.clock import Clock
from rise.errors import Rejected
from rise.queue.port import NewTask
from rise.runtime.assembly.house import House
from rise.runtime.assembly.services import build_keeper
from rise.runtime.assembly.stores import FullProfile

PAGE: Final = 500
LOOK_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Refilling:
    """Of one installation. Raises `Rejected` where the queue is the only copy."""

    house: House

    async def missing(self, channel: str | None = None) -> dict[str, int]:
        """How many open messages the journals hold and the queue does not, by channel."""
        counted: Counter[str] = Counter()
        async for tasks in self._open_in_journals(channel):
            counted.update(task.head.channel for task in await self._full.work.lacking(tasks))
        return dict(counted)

    async def bring(self, channel: str | None = None) -> int:
        """Bring just these, while everything else goes on. Returns how many were missing."""
        return sum([await self._full.work.restore(tasks) async for tasks in self._open_in_journals(channel)])

    async def refill(self) -> None:
        """Everything, from journals and mirror, in each chat's order; nothing is handed out until it is done."""
        await self._full.queue.end_life()
        if not self.house.stores.directory.is_owned():
            keeper = build_keeper(self.house)
            assert keeper is not None
            await keeper.refill()
        while await self._full.queue.life() is None:  # the server that keeps it does it
            await self._clock.sleep(LOOK_SECONDS)

    async def _open_in_journals(self, channel: str | None) -> AsyncIterator[list[NewTask]]:
        async for tasks in self._full.slots.open_tasks(limit=PAGE):
            yield [task for task in tasks if channel in (None, task.head.channel)]

    @property
    def _full(self) -> FullProfile:
        if self.house.stores.full is None:
            raise Rejected("everything is in one place here, RISE_DATA_DIR: there is nothing to fill it from")
        return self.house.stores.full

    @property
    def _clock(self) -> Clock:
        return self.house.clock

"""What people are shown of the copies: how much each store holds, and where a message is.

Refuses: to fail because a store is away; what it holds is not known then, and said to be so.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from rise.copies.port import JOURNAL, RABBITMQ, REDIS, Mirror
from rise.copies.slots import Slots
from rise.envelope import TaskId
from rise.errors import Unavailable
from rise.queue.port import RefillableQueue

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CopiesShown:
    queue: RefillableQueue
    slots: Slots
    mirror: Mirror | None

    async def depths(self) -> dict[str, int | None]:
        """Open messages in the journals, copies in the mirror; None where that cannot be told now."""
        depth = None if self.mirror is None else await _or_none(self.mirror.depth())
        return {
            "journalDepth": await _or_none(self._in_journals()),
            "rabbitmqDepth": None if depth is None else depth.fresh + depth.parked,
        }

    async def of(self, task_id: TaskId) -> list[str]:
        """The stores that hold an open task, as far as they can be asked."""
        found = {REDIS} if await _or_none(self.queue.get(task_id)) is not None else set()
        async with self.slots.every() as journals:
            for journal in journals:
                if (others := await _or_none(journal.copies_of(task_id))) is not None:
                    found |= {JOURNAL} | ({RABBITMQ} if "rabbitmq" in others else set())
        return sorted(found)

    async def _in_journals(self) -> int:
        async with self.slots.every() as journals:
            return sum([(await journal.depth({})).open for journal in journals])


async def _or_none(asked: Awaitable[T]) -> T | None:
    try:
        return await asked
    except Unavailable:
        return None

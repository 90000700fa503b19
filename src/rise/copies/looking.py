"""What people are shown of the copies: how much each store holds, and where a message is.

Refuses: to fail because a store is away; what it holds is not known then, and said to be so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rise.copies.port import JOURNAL, RABBITMQ, REDIS, Mirror
from rise.copies.slots import Slots
from rise.envelope import LaneKey, Order, Reason, Status, TaskId, unreadable_head
from rise.errors import Unavailable
from rise.queue.port import NewTask, OpenTask, Receipt, RefillableQueue

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
        for others in await self.slots.ask_each(lambda journal: journal.copies_of(task_id)):
            if others is not None:
                found |= {JOURNAL} | ({RABBITMQ} if "rabbitmq" in others else set())
        return sorted(found)

    async def may_be_brought(self, task_id: TaskId) -> bool:
        """Whether a task that the queue does not know may yet be brought to it: while an emptied queue is filled that
        may be any, and else what a journal of this host holds."""
        if await self.queue.life() is None:
            return True
        return any(await self.slots.ask_each(lambda journal: journal.has([task_id])))

    async def receipts(self, *, limit: int, after: str = "") -> list[Receipt]:
        """`Queue.receipts`, and what the journals remember besides: an emptied queue forgets what is finished.

        Raises `Unavailable` if one of them cannot be asked: an account with a book missing is none.
        """
        known = {one.delivery_key: one for one in await self.queue.receipts(limit=limit, after=after)}
        is_whole = len(known) < limit
        async with self.slots.every() as journals:
            for journal in journals:
                page = await journal.receipts(limit=limit, after=after)
                is_whole = is_whole and len(page) < limit
                for one in page:
                    receipt = Receipt(one.delivery_key, one.task_id, one.accepted_at_ms, 0)
                    known.setdefault(one.delivery_key, receipt)
        # Beyond the first so many keys some store may have had no room left on its page.
        return [known[key] for key in sorted(known)[: None if is_whole else limit]]

    async def open_in_journals(self, task_ids: Sequence[TaskId]) -> list[OpenTask]:
        """Those of these that a journal holds, on their way to the queue; what this version cannot read waits there for
        one that can."""
        found: dict[TaskId, OpenTask] = {}
        async with self.slots.every() as journals:
            for journal in journals:
                found |= {task_id: _unread(task_id) for task_id in await journal.has(task_ids) - found.keys()}
                found |= {entry.task.head.task_id: _as_open(entry.task) for entry in await journal.entries(task_ids)}
        return list(found.values())

    async def _in_journals(self) -> int:
        async with self.slots.every() as journals:
            return sum([(await journal.depth({})).open for journal in journals])


def _as_open(task: NewTask) -> OpenTask:
    status = Status.SUSPENDED if task.suspend else Status.PENDING
    accepted_at_ms = task.head.accepted_at_ms
    due_at_ms = task.due_at_ms or accepted_at_ms
    return OpenTask(task.head, status, task.suspend, task.generation, 0, 0, due_at_ms, accepted_at_ms, task.error)


def _unread(task_id: TaskId) -> OpenTask:
    head = unreadable_head(task_id, channel="", account="", lane=LaneKey(""), order=Order(0, 0), accepted_at_ms=0)
    return OpenTask(head, Status.SUSPENDED, Reason.SCHEMA_NEWER, 0, 0, 0, 0, 0, None)


async def _or_none(asked: Awaitable[T]) -> T | None:
    try:
        return await asked
    except Unavailable:
        return None

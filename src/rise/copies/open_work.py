"""Of what a copy holds: what is finished, and is the rest in the queue? One answer for journals and mirror.

Refuses: to take anything for finished when the ledger cannot be asked, or by the end of a former message of its key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rise.copies.journal import KeptRun, RunName, run_of
from rise.ledger.port import Ledger, Run
from rise.queue.port import NewTask, RefillableQueue


@dataclass(frozen=True, slots=True)
class OpenWork:
    """The ledger decides what is finished; the queue says what it has."""

    ledger: Ledger
    queue: RefillableQueue

    async def finished(self, kept: Collection[KeptRun]) -> set[RunName]:
        """Those that are over. Raises `Unavailable` when the ledger cannot be asked: then nothing is known to be."""
        if not kept:
            return set()
        ended = await self.ledger.finished_among([one.task_id for one in kept])
        return {one.name for one in kept if one.task_id in ended and _is_end_of(ended[one.task_id], one)}

    async def lacking(self, tasks: Sequence[NewTask]) -> list[NewTask]:
        """Those of these that the queue has not got and that are not over."""
        over = await self.finished([run_of(task) for task in tasks])
        missing = set(await self.queue.missing([task.head.task_id for task in tasks]))
        return [task for task in tasks if task.head.task_id in missing and run_of(task).name not in over]

    async def restore(self, tasks: Sequence[NewTask]) -> int:
        """Bring to the queue, in each lane's order, what it lacks of these and is not over. Returns how many."""
        if not tasks:
            return 0
        over = await self.finished([run_of(task) for task in tasks])
        missing = sorted((task for task in tasks if run_of(task).name not in over), key=lambda task: task.head.place)
        return len(await self.queue.restore(missing))


def _is_end_of(run: Run, kept: KeptRun) -> bool:
    """Whether it is this message's, and not that of a former one whose key had been forgotten."""
    receipt_ms = kept.receipt_ends_at_ms - kept.accepted_at_ms
    is_of_former = run.is_of_another(kept.fingerprint, kept.accepted_at_ms, receipt_ms)
    return run.generation >= kept.generation and not is_of_former

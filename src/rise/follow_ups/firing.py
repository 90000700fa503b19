"""Whether a follow-up whose moment has come is to be said: decided where its run begins, from what is durable.

Promises: of the plannings of one follow-up exactly one is said, whatever died while it was moved. A crash between the
decision and what comes of it changes nothing: it is decided again, from the same.

Refuses: to say it. Firing is the frozen result of a run that has it accepted, in its chat's lane, under a key of its
own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.envelope import Head, Status, Task, TaskId, run_id_of
from rise.follow_ups.planning import id_of, is_earlier_ones, late_by, plan_of, planning_id
from rise.follow_ups.port import MISSED_AFTER, Missed, Plan
from rise.ledger.port import Ledger
from rise.queue.port import OpenTask, Queue, Selection

LOOK_AT_ONCE: Final = 100
BY: Final = "rise"
"""Who ends what nobody ended."""


class Unsaid(msgspec.Struct, frozen=True):
    """It ends without being said."""

    status: Status
    why: str


class Firing:
    """Asked by the worker, once it has claimed a planning that is due."""

    def __init__(self, queue: Queue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger

    async def unsaid(self, task: Task) -> Unsaid | None:
        """Why it is not to be said; None: it fires."""
        plan = plan_of(task.head)
        if await self._is_moved(task.head):
            return Unsaid(Status.DROPPED, "it was moved to another moment")
        for number in range(plan.number):
            if not await self._takes_over(planning_id(id_of(task.head), number), task.head):
                return Unsaid(Status.DROPPED, "it had fired before it could be moved to this moment")
        return await self._missed(task, plan)

    async def _is_moved(self, head: Head) -> bool:
        """Whether there is a next planning of it, or was."""
        next_id = planning_id(id_of(head), plan_of(head).number + 1)
        # The queue first: what it forgets between the two looks is in the ledger.
        if (following := await self._queue.get(next_id)) is not None:
            return not is_earlier_ones(following.head.accepted_at_ms, head.accepted_at_ms)
        run = await self._ledger.latest_run(next_id)
        return run is not None and not is_earlier_ones(run.accepted_at_ms, head.accepted_at_ms)

    async def _takes_over(self, former_id: TaskId, head: Head) -> bool:
        """Whether the former planning will not fire any more, nor has. The ledger decides: a result, or this ending."""
        former = await self._queue.get(former_id)
        if former is None:
            run = await self._ledger.latest_run(former_id)
            is_another = run is not None and is_earlier_ones(head.accepted_at_ms, run.accepted_at_ms)
            return run is None or is_another or run.status is not Status.COMPLETED
        if is_earlier_ones(head.accepted_at_ms, former.head.accepted_at_ms):
            return True  # its key was used again: another follow-up, which fires by itself
        run = await self._ledger.finish(former, Status.DROPPED, by=BY, why="it was moved to another moment")
        if run.status is not Status.DROPPED:
            return False
        await self._queue.cancel(former_id, generation=former.progress.generation)
        return True

    async def _missed(self, task: Task, plan: Plan) -> Unsaid | None:
        late = late_by(task.head, self._queue.now_ms())
        if late <= MISSED_AFTER or plan.missed is Missed.FIRE:
            return None
        why = f"missed: due {iso(plan.due_at)}, met {late.total_seconds():.0f} s later"
        if plan.missed is Missed.SKIP:
            return Unsaid(Status.EXPIRED, f"{why}, and it is not to be said late")
        later = await self._later_of_its_chat(task)
        return None if later is None else Unsaid(Status.EXPIRED, f"{why}, and the chat's later one is said: {later}")

    async def _later_of_its_chat(self, task: Task) -> str | None:
        """Another that coalesces and is due, too. It cannot begin before this one has ended: they share a lane."""
        mine, now_ms, after = task.head.place, self._queue.now_ms(), ""
        waiting = Selection(status=Status.PENDING, lane=task.head.lane)
        while page := await self._queue.list_open(waiting, limit=LOOK_AT_ONCE, after=after):
            for one in page:
                # By its moment: what is left to a timer the queue holds for longer.
                is_due, is_later = one.head.order.at_ms <= now_ms, one.head.place > mine
                if is_due and is_later and await self._coalesces(one):
                    return id_of(one.head)
            after = page[-1].head.task_id
        return None

    async def _coalesces(self, one: OpenTask) -> bool:
        """Whether it takes in others, and will be said: one that was moved away, or has been ended just now, is not."""
        plan = plan_of(one.head)
        if plan.missed is not Missed.COALESCE or await self._ledger.run(run_id_of(one.head.task_id, one.generation)):
            return False
        return not await self._is_moved(one.head)


def fired_result(task: Task, now_ms: int) -> dict[str, object]:
    """The result of a planning that fires. What its run promises for later, now, is what is said."""
    late = late_by(task.head, now_ms)
    at = iso(from_epoch_ms(now_ms))
    return {
        "followUps": [{"text": task.head.user_text, "inSeconds": 0}],
        "firedAt": at,
        "lateSeconds": round(late.total_seconds(), 3),
    }

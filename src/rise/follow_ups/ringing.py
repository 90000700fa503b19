"""What happens when the timer of a follow-up rings: what its chat has due is fired, in order, beside the queue.

Promises: however often it rings, and whoever fires it meanwhile, a follow-up is said once: the ledger decides, by whose
write is first, and what is said is accepted under one key. A crash anywhere leaves what the queue's own worker, which
comes a few seconds later, ends in the same way; nothing is fired before its moment by the queue's clock, nor ahead of
what its chat has due before it.

Refuses: what a worker has in hand already, and what was named after a former follow-up: both are left to the queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from rise.bus.port import Bus, publish_settled
from rise.channels.port import Incoming
from rise.clock import Clock, epoch_ms
from rise.envelope import Outcome, Status, Task, TaskId, TaskType
from rise.errors import RungEarly
from rise.follow_ups.firing import BY, Firing, fired_result
from rise.follow_ups.planning import follow_up, late_by
from rise.ledger.port import Ledger, Run, RunResult
from rise.queue.port import OpenTask, Queue, Selection
from rise.telemetry import follow_up_lag_seconds, log

LOOK_AT_ONCE: Final = 200


class Ringing:
    """Asked by whatever keeps the time, in a process that may accept."""

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        bus: Bus,
        clock: Clock,
        *,
        accept: Callable[[Incoming], Awaitable[object]],
    ) -> None:
        """`accept`: the intake's, without the door's admission: what is due is part of the work that is too much."""
        self._queue = queue
        self._ledger = ledger
        self._bus = bus
        self._clock = clock
        self._accept = accept
        self._firing = Firing(queue, ledger)

    async def ring(self, planning_id: TaskId) -> None:
        """Returns when it is fired, has ended, or is left to the queue. Raises `RungEarly`; or `Unavailable`, and then
        it is to ring again."""
        mine = await self._queue.get(planning_id)
        if mine is None or mine.head.task_type is not TaskType.FOLLOW_UP:
            return
        if (early_ms := mine.head.order.at_ms - self._queue.now_ms()) > 0:
            raise RungEarly(early_ms / 1000)
        due = await self._due_in_its_chat(mine)
        if any(one.status is Status.PROCESSING for one in due):
            return  # its worker goes on with the chat's others
        for one in due:
            if (task := await self._queue.get(one.head.task_id)) is not None:
                await self._fire(task)

    async def _due_in_its_chat(self, mine: Task) -> list[OpenTask]:
        """This one, and what is to be said before it; not what waits for a person."""
        lane, last = Selection(lane=mine.head.lane, is_runnable=True), mine.head.place
        page = found = await self._queue.list_open(lane, limit=LOOK_AT_ONCE)
        while len(page) == LOOK_AT_ONCE:
            page = await self._queue.list_open(lane, limit=LOOK_AT_ONCE, after=page[-1].head.task_id)
            found = found + page
        return sorted((one for one in found if one.head.place <= last), key=lambda one: one.head.place)

    async def _fire(self, task: Task) -> None:
        """As the worker would: first the ledger, then what is promised, then the queue."""
        now_ms = self._queue.now_ms()
        known = await self._ledger.run(task.run_id)
        if known is not None and known.is_of_former(task.head):
            return
        run = known or await self._decide(task, now_ms)
        if run.unreadable is not None:
            return  # what it promised cannot be read either; a worker says so
        if run.status is not Status.DROPPED and run.follow_ups and not run.is_armed:
            await self._accept(follow_up(task, 0, run.follow_ups[0], now_ms, by=run.workflow_id))
            await self._ledger.note_armed(task.run_id)
        if not run.status.is_finished:
            return  # the ledger is away, and its result waits elsewhere: until it is back, the queue's copy stays
        await self._queue.cancel(task.task_id, generation=task.progress.generation)
        if known is None:
            self._say(task, run, now_ms)

    async def _decide(self, task: Task, now_ms: int) -> Run:
        if (unsaid := await self._firing.unsaid(task)) is not None:
            return await self._ledger.finish(task, unsaid.status, by=BY, why=unsaid.why)
        result = RunResult(outcome=Outcome.SILENT, value=fired_result(task, now_ms))
        return await self._ledger.save_result(task, result, [], [], deliver=False)

    def _say(self, task: Task, run: Run, now_ms: int) -> None:
        head = task.head
        follow_up_lag_seconds.observe(late_by(head, now_ms).total_seconds())
        log.info("follow_up.rung", task_id=task.task_id, status=run.status)
        seconds = round((epoch_ms(self._clock.now()) - head.accepted_at_ms) / 1000, 4)
        publish_settled(self._bus, head, run.status, outcome=run.outcome, seconds=seconds)

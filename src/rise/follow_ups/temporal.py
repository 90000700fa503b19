"""The timers of follow-ups in Temporal: one small workflow for each, which rings in this process.

Promises: armed again, it is the same timer; what is armed rings at least once, through every restart of Temporal on its
own disk and of Rise. Temporal learns of a follow-up its id and its moment, and nothing that is said.

Refuses: to decide anything. Whether and what is said, the ledger decides when it rings (`ringing.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from rise.clock import epoch_ms
from rise.connections.temporal import Temporal
from rise.connections.temporal_worker import WorkerDuties
from rise.envelope import TaskId
from rise.errors import ExecutionUnknown, RungEarly, Unavailable
from rise.follow_ups.temporal_workflow import RING, FollowUpTimer, Timer

TRY_SECONDS: Final = 2.0
_BENIGN: Final = ApplicationErrorCategory.BENIGN
"""Temporal tries it again, and nobody need read of it."""


class TemporalTimers:
    """`rise.follow_ups.port.Timers`."""

    def __init__(self, temporal: Temporal, task_queue: str) -> None:
        self._temporal = temporal
        self._task_queue = task_queue

    async def arm(self, planning_id: TaskId, due_at: datetime) -> None:
        timer = Timer(planning_id, epoch_ms(due_at))

        async def start(client: Client) -> None:
            await client.start_workflow(
                FollowUpTimer.run,
                timer,
                id=self._id_of(planning_id),
                task_queue=self._task_queue,
                # One that has rung, though its planning is still open, may ring again: that changes nothing twice.
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                rpc_timeout=timedelta(seconds=TRY_SECONDS),
            )

        await self._temporal.ask("follow_up.arm", start)

    async def disarm(self, planning_id: TaskId) -> None:
        async def signal(client: Client) -> None:
            handle = client.get_workflow_handle_for(FollowUpTimer.run, self._id_of(planning_id))
            await handle.signal(FollowUpTimer.cancel, rpc_timeout=timedelta(seconds=TRY_SECONDS))

        with suppress(ExecutionUnknown):
            await self._temporal.ask("follow_up.disarm", signal)

    def _id_of(self, planning_id: TaskId) -> str:
        return f"{self._task_queue}:follow-up:{planning_id}"


def duties_of(ring: Callable[[TaskId], Awaitable[None]]) -> WorkerDuties:
    """What Temporal's worker runs for follow-ups."""

    @activity.defn(name=RING)
    async def ring_one(timer: Timer) -> None:
        try:
            await ring(TaskId(timer.planning_id))
        except RungEarly as early:
            pause = timedelta(seconds=early.seconds)
            raise ApplicationError(str(early), type=early.code, category=_BENIGN, next_retry_delay=pause) from early
        except Unavailable as error:
            raise ApplicationError(error.public_message, type=error.code, category=_BENIGN) from error

    return WorkerDuties([FollowUpTimer], [ring_one])

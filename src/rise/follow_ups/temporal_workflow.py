"""The timer of one planning of a follow-up, as Temporal runs it: it waits, unless it is taken back, and rings.

Promises: the same history always leads to the same steps; Temporal runs this again from its history after every
restart. It has at most a dozen events whatever it waits for, so it is never continued as another.

Refuses: to know what is said, and to read a clock or a die of its own.

To change it: whoever is waiting now goes on with the steps that stand in its history. A step that is added, left out
or changed stands behind `workflow.patched("what is new")` for as long as one from before may wait: five years, as
`envelope.FOLLOW_UP_AHEAD_MAX` says. A history from before is added to the tests, which run all of them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

RING = "rise.follow_up.ring"
RING_SECONDS = 30
PAUSE_SECONDS_MAX = 60
"""Between tries to ring: the queue has fired it by then, if it can."""


@dataclass(frozen=True)
class Timer:
    """All that Temporal is told of a follow-up."""

    planning_id: str
    due_at_ms: int


@workflow.defn(name="rise.follow_up")
class FollowUpTimer:
    """Ends as `rung` or `cancelled`."""

    def __init__(self) -> None:
        self._is_cancelled = False

    @workflow.run
    async def run(self, timer: Timer) -> str:
        if await self._is_taken_back(until=datetime.fromtimestamp(timer.due_at_ms / 1000, UTC)):
            return "cancelled"
        await workflow.execute_activity(
            RING,
            timer,
            start_to_close_timeout=timedelta(seconds=RING_SECONDS),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=PAUSE_SECONDS_MAX)
            ),
        )
        return "rung"

    @workflow.signal
    def cancel(self) -> None:
        """It has been cancelled, or moved to another planning, which has a timer of its own."""
        self._is_cancelled = True

    async def _is_taken_back(self, *, until: datetime) -> bool:
        wait = until - workflow.now()
        if wait > timedelta():
            try:
                await workflow.wait_condition(lambda: self._is_cancelled, timeout=wait)
            except TimeoutError:
                pass
        return self._is_cancelled

"""Temporal's worker: what runs workflows and activities in this process, for as long as Temporal is there.

The promise: it is built when Temporal answers, and built anew when Temporal is back after it did not answer, or when
the worker ended by itself; never is a start or a stop held up by a Temporal that is away. Where another takes its
place, activities that run have `drain_seconds` to finish beside that; where it is stopped, `stop_seconds`. What does
not finish is tried again by Temporal, elsewhere or later.

Refuses: to be where user code runs unless it is built in a process for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from rise.clock import Clock
from rise.connections.temporal import Temporal, temporal_errors
from rise.errors import TemporalUnavailable, Unavailable
from rise.service import Loop, cancel_all, spawn
from rise.telemetry import log, temporal_worker_restarts_total, temporal_worker_up

ENDING_SECONDS: Final = 5.0
"""Beside what activities may take. A worker that needs longer is left behind; it asks for nothing more."""
PAUSE_SECONDS_MAX: Final = 2.0
"""Between tries to build one. Temporal's return is noticed by this, besides by the probe."""

# Nothing is routed by it. Left out, it is made from all the code that is loaded: half a second, in the event loop that
# accepts messages.
_BUILD: Final = "rise"
_STOPPED: Final = "the process that ran it stops"

# What the package itself imports. Workflows are read in a sandbox of their own, where all else is read again for each.
_SHARED_MODULES: Final = ("rise.errors", "rise.workflows")


def sandboxed() -> SandboxedWorkflowRunner:
    """How workflows are run: each in a sandbox that stops what would lead elsewhere when it is run again."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*_SHARED_MODULES))


@dataclass(frozen=True, slots=True)
class WorkerDuties:
    """What it runs, from one room of the house."""

    workflows: Sequence[type] = ()
    activities: Sequence[Callable[..., Any]] = ()


@dataclass(frozen=True, slots=True)
class TemporalWorkerLimits:
    activities: int = 32
    """At once: ten thousand timers of the same second are worked off by so many."""
    workflow_tasks: int = 32
    stop_seconds: float = 20.0
    drain_seconds: float = 20.0


class _Activities(Interceptor):
    """Which run in one worker, so that they can be ended before it would end them."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Activity(next, self)

    def cancel(self) -> None:
        for task in self.running:
            task.cancel(_STOPPED)


class _Activity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, activities: _Activities) -> None:
        super().__init__(next)
        self._running = activities.running

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self.next.execute_activity(input)
        except asyncio.CancelledError as error:
            if error.args != (_STOPPED,):
                raise
            # As Temporal's own worker says it: it is tried again, at once.
            raise ApplicationError(_STOPPED, category=ApplicationErrorCategory.BENIGN) from error
        finally:
            self._running.discard(task)


@dataclass(slots=True, eq=False)
class _Life:
    """One worker, and whether it has ended."""

    worker: Worker
    activities: _Activities
    running: asyncio.Task[Any]
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class TemporalWorker:
    """A service: at most one worker at a time that asks for work, in the event loop it is started in."""

    name = "temporal worker"

    def __init__(
        self,
        temporal: Temporal,
        duties: Sequence[WorkerDuties],
        clock: Clock,
        *,
        task_queue: str,
        identity: str,
        limits: TemporalWorkerLimits | None = None,
        on_built: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_built`: called whenever one has begun: what Temporal may have lost meanwhile can be given to it again."""
        self._temporal = temporal
        self._duties = duties
        self._task_queue = task_queue
        self._identity = identity
        self._limits = limits or TemporalWorkerLimits()
        self._on_built = on_built
        self._life: _Life | None = None
        self._drained: set[_Life] = set()
        """Those that ask for nothing more, and finish what they have begun."""
        self._left: set[asyncio.Task[Any]] = set()
        self._loop = Loop(
            self.name, self._live, sleep=clock.sleep, on_error=self._failed, pause_seconds_max=PAUSE_SECONDS_MAX
        )

    @property
    def is_running(self) -> bool:
        return self._life is not None and not self._life.running.done()

    async def start(self) -> None:
        """Does not wait for Temporal."""
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        await self._end()
        for task in self._left.copy():
            task.cancel()  # and not waited for: it may wait for a Temporal that is away

    async def _live(self) -> None:
        """From one worker's beginning to its end. Raises why it ended by itself, or could not begin."""
        client = await self._temporal.client()
        returns = self._temporal.returns
        life = self._life = self._begin(client)
        temporal_worker_up.set(1)
        log.info("temporal_worker.start", task_queue=self._task_queue, identity=self._identity)
        self._on_built()
        try:
            back = spawn(self._temporal.until_back(returns), name="temporal.back", into=life.tasks)
            await asyncio.wait({life.running, back}, return_when=asyncio.FIRST_COMPLETED)
            if life.running.done():
                temporal_worker_restarts_total.labels("ended").inc()
                with temporal_errors():
                    life.running.result()
                raise TemporalUnavailable("Temporal's worker has ended by itself")
            # It would go on by itself, but after pauses that have grown while Temporal was away.
            temporal_worker_restarts_total.labels("temporal_is_back").inc()
        finally:
            await cancel_all(life.tasks - {life.running})
        self._drain(life)

    def _begin(self, client: Client) -> _Life:
        limits = self._limits
        running = _Activities()
        with temporal_errors():
            worker = Worker(
                client,
                task_queue=self._task_queue,
                workflows=[workflow for duty in self._duties for workflow in duty.workflows],
                activities=[activity for duty in self._duties for activity in duty.activities],
                identity=self._identity,
                build_id=_BUILD,
                interceptors=[running],
                workflow_runner=sandboxed(),
                max_concurrent_activities=limits.activities,
                max_concurrent_workflow_tasks=limits.workflow_tasks,
                graceful_shutdown_timeout=timedelta(seconds=limits.drain_seconds),
            )
        tasks: set[asyncio.Task[Any]] = set()
        return _Life(worker, running, spawn(worker.run(), name="temporal.worker", into=tasks), tasks)

    def _drain(self, life: _Life) -> None:
        """Its successor begins at once: what it runs is Rise's own, and costs nothing to let it finish."""
        self._life = None
        self._drained.add(life)
        life.running.add_done_callback(lambda _: self._drained.discard(life))
        self._shut_down(life)

    def _shut_down(self, life: _Life) -> None:
        spawn(life.worker.shutdown(), name="temporal.worker.end", into=self._left)
        self._left.add(life.running)
        life.running.add_done_callback(self._left.discard)

    async def _end(self) -> None:
        life, self._life = self._life, None
        temporal_worker_up.set(0)
        if life is not None and not life.running.done():
            self._drain(life)
        if not self._drained:
            return
        lives = self._drained.copy()
        _, late = await asyncio.wait([life.running for life in lives], timeout=self._limits.stop_seconds)
        if late:
            for life in lives:
                life.activities.cancel()
            _, late = await asyncio.wait(late, timeout=ENDING_SECONDS)
        if late:
            left = "it is left behind; what it had begun is tried again by Temporal"
            log.warning("temporal_worker.stop_delayed", consequence=left)
        log.info("temporal_worker.stop", task_queue=self._task_queue)

    def _failed(self, name: str, error: BaseException) -> None:
        """The loop tries again. That Temporal is away has been said where that is known."""
        self._life = None
        temporal_worker_up.set(0)
        if isinstance(error, Unavailable):
            log.debug("temporal_worker.not_built", error=error)
        else:
            log.error("temporal_worker.failed", error=error, exc_info=error, consequence="it is built anew")

"""Running one workflow function for one task, within its time.

It gives the function its `Turn` and returns what that noted; it writes nothing but steps, and decides nothing.

Refuses: to wait, beyond a moment, for a function that goes on after its time; to take its `SystemExit` for ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec

from rise import tracing
from rise.bindings import Bound
from rise.bursts import Burst
from rise.bus.port import Bus, Topic
from rise.channels.port import Channel, is_pushed
from rise.clock import TICK_SECONDS, Clock, epoch_ms
from rise.definitions.records import CODE, STAGES, WorkflowRecord
from rise.envelope import Effect, Task, encode_json, notice_id_of
from rise.errors import PayloadInvalid, RunTimedOut, Unavailable, WaitsForDependency
from rise.ledger.port import Ledger, ReplyKind, reply_of
from rise.service import spawn
from rise.telemetry import log
from rise.workflows.building import StagedWorkflows, records_among, step_of_try
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.staged import StageRecord
from rise.workflows.turn import BlockingTurn, Turn, in_bounds, threads_left_behind

LOOK_SECONDS: Final = 1.0
CLEAN_UP_SECONDS: Final = 5.0
"""For a cancelled workflow to end; then it is left to itself."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    run_seconds: float = 300.0
    threads: int = 64
    history_turns: int = 20
    concurrency_for: Mapping[str, int] = field(default_factory=dict)
    """Runs at once of what is bound to an account, by `channel:account`."""


class Ran(msgspec.Struct, frozen=True):
    """What came of a run that ended well."""

    effects: list[Effect]
    """Which it noted."""
    value: Any
    stages: Sequence[Any] = ()
    """What its stages did, and those of its first tries that did not end well, if it has any."""


class Runner:
    """Runs one workflow function for one task, within its time. For all who run tasks in this process."""

    name = "runner"

    def __init__(
        self,
        ledger: Ledger,
        workflows: Mapping[str, WorkflowDefinition],
        channels: Mapping[str, Channel],
        bus: Bus,
        clock: Clock,
        limits: RunLimits,
        staged: StagedWorkflows | None = None,
    ) -> None:
        """`staged`: those that are not in the code."""
        self.workflows = workflows
        self._abandoned = 0
        self._is_closed = False
        self._running: set[asyncio.Task[Any]] = set()
        self._ledger = ledger
        self._channels = channels
        self._bus = bus
        self._clock = clock
        self._limits = limits
        self._staged = staged
        self._threads = ThreadPoolExecutor(max_workers=limits.threads, thread_name_prefix="rise-workflow")
        self._places = {
            workflow_id: asyncio.Semaphore(definition.concurrency)
            for workflow_id, definition in workflows.items()
            if definition.concurrency is not None
        }
        self._places_bound = {name: asyncio.Semaphore(count) for name, count in limits.concurrency_for.items()}

    @property
    def abandoned(self) -> int:
        """Functions that went on after their time, and functions of steps and stages that still do."""
        return self._abandoned + threads_left_behind()

    async def run(self, burst: Burst, bound: Bound, channel: Channel, steps: Mapping[str, bytes]) -> Ran:
        """`steps`: what former tries have saved. Raises what the workflow raises, or `RunTimedOut`."""
        definition = self.definition(bound.workflow)
        assert definition is not None
        followers = [follower.head for follower in burst.followers]
        workflow = bound.workflow
        named: tracing.Attributes = {
            "rise.workflow_id": workflow.workflow_id,
            "rise.workflow_version": workflow.version,
        }
        with tracing.span_of(burst.leader.head, "run", links=followers, attributes=named):
            return await self._run(definition, burst, bound, channel, steps)

    async def _run(
        self,
        definition: WorkflowDefinition,
        burst: Burst,
        bound: Bound,
        channel: Channel,
        steps: Mapping[str, bytes],
    ) -> Ran:
        task = burst.leader
        if not definition.answers_callbacks:
            await self.acknowledge(task, channel)
        memory = _RunMemory(self._ledger, burst, self._channels[task.head.channel])
        turn = await self._turn(definition, memory, steps)
        self._bus.publish(Topic.RUN_STARTED, _running(task))
        try:
            async with self._place_bound(bound), self._place(definition):
                value, stages = await self._watched(definition, turn, memory, bound.workflow)
        finally:
            effects = turn.close()
            self._bus.publish(Topic.RUN_ENDED, {"run_id": task.run_id})
        return Ran(effects, value, stages)

    def definition(self, workflow: WorkflowRecord) -> WorkflowDefinition | None:
        """What runs for it here; None if this worker does not have it, or cannot read it."""
        if workflow.kind == CODE:
            return self.workflows.get(workflow.workflow_id)
        return self._staged.definition(workflow) if self._staged and workflow.kind == STAGES else None

    async def start(self) -> None:
        """Its threads begin with the first function that needs one."""

    async def stop(self) -> None:
        """What would begin later is handed back, as a dependency's fault: it was no try."""
        self._is_closed = True
        # Not waited for: a function that never returns must not keep the process from ending.
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._staged is not None:
            await self._staged.close()

    async def _turn(self, definition: WorkflowDefinition, memory: _RunMemory, steps: Mapping[str, bytes]) -> Turn:
        burst = memory.burst
        task, followers = burst.leader, burst.followers
        head = task.head
        history: list[dict[str, Any]] = list(head.history_chunks)
        if not history and head.chat_id is not None and self._limits.history_turns:
            kept = await self._ledger.history(
                head.channel, head.account, head.chat_id, limit=self._limits.history_turns
            )
            history = [{"role": turn.role, "text": turn.text} for turn in kept]
        memory.former_tries, memory.former_records = records_among(steps)
        steps = burst.own_steps(steps)
        now_ms = epoch_ms(self._clock.now())
        if definition.is_async:
            return Turn(task, memory, steps=steps, history=history, now_ms=now_ms, followers=followers)
        loop = asyncio.get_running_loop()
        return BlockingTurn(task, memory, steps=steps, history=history, now_ms=now_ms, followers=followers, loop=loop)

    async def _call(self, definition: WorkflowDefinition, turn: Turn, memory: _RunMemory) -> Any:
        """Its time is its own: what it has to wait for a store or a platform is not counted, nor for how long the
        process was stopped."""
        seconds = definition.run_seconds or self._limits.run_seconds
        running = self._begin(definition, turn)
        began, stopped_seconds = _now(), 0.0
        try:
            # Not `asyncio.timeout`: that would wait for ever for a function that swallows its cancellation.
            while (left := began + seconds + memory.waited_seconds() + stopped_seconds - _now()) > TICK_SECONDS:
                # In short waits: only one that ends late shows that nothing ran here meanwhile.
                look_at = _now() + min(left, seconds / 10, LOOK_SECONDS)
                await asyncio.wait({running}, timeout=look_at - _now())
                if running.done():
                    if running.cancelled() and self._is_closed:
                        raise _stopped()  # it had not begun
                    return running.result()
                stopped_seconds += max(0.0, _now() - look_at)
        finally:
            await self._end(running, definition)
        raise RunTimedOut(f"the workflow {definition.name} did not return within {seconds:g} s")

    async def _watched(
        self, definition: WorkflowDefinition, turn: Turn, memory: _RunMemory, workflow: WorkflowRecord
    ) -> tuple[Any, Sequence[Any]]:
        """With what its stages did. Of a try that fails that is kept as a step; one that is handed back is no try."""
        if self._staged is None or workflow.kind != STAGES:
            return await self._call(definition, turn, memory), ()
        with self._staged.recording(memory.task.run_id) as records:
            try:
                value = await self._call(definition, turn, memory)
            except Exception:  # border: what its stages did is kept as a step, and it is passed on
                await memory.keep_records(records)
                raise
        return value, [*memory.former_records, *records]

    def _begin(self, definition: WorkflowDefinition, turn: Turn) -> asyncio.Future[Any]:
        if self._is_closed:
            raise _stopped()
        if definition.is_async:
            run = _in_bounds(definition.function, turn)
            return spawn(run, name=f"workflow {definition.name}", into=self._running)
        # With what is known of the run here: its trace, and what the log says of it.
        call = partial(copy_context().run, in_bounds, definition.function, turn)
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _end(self, running: asyncio.Future[Any], definition: WorkflowDefinition) -> None:
        """Cancel what still runs, and give it a moment to clean up. A thread cannot be stopped at all."""
        if running.done():
            # In the same moment as whoever waited for it was cancelled, perhaps: then it is run again.
            _ = running.cancelled() or running.exception()
            return
        running.cancel()
        running.add_done_callback(partial(_say_late_failure, definition))
        await asyncio.wait({running}, timeout=CLEAN_UP_SECONDS)
        if not isinstance(running, asyncio.Task) or not running.done():
            self._abandoned += 1  # it can do nothing more for this run

    async def acknowledge(self, task: Task, channel: Channel) -> None:
        """Answer a tap empty, so that the person's client stops waiting. Once, however often it is run."""
        call = channel.acknowledgement(task.head) if is_pushed(channel) else None
        if call is None:
            return
        reply_id, deadline = notice_id_of(task.task_id, "acknowledgement"), task.progress.deadline_at_ms
        await self._ledger.add_notice(
            reply_of(task.head, task.run_id, reply_id, call, kind=ReplyKind.NOTICE, deadline_at_ms=deadline)
        )
        self._bus.publish(Topic.OUTBOX_READY)

    def _place_bound(self, bound: Bound) -> Any:
        binding = bound.binding
        if binding is None:
            return _Unlimited()
        return self._places_bound.get(f"{binding.channel}:{binding.account}") or _Unlimited()

    def _place(self, definition: WorkflowDefinition) -> Any:
        return self._places.get(definition.workflow_id) or _Unlimited()


def _stopped() -> WaitsForDependency:
    return WaitsForDependency("this worker has stopped before it began", retry_after_seconds=LOOK_SECONDS)


class _Unlimited:
    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


@dataclass(slots=True)
class _RunMemory:
    """What a turn may ask for while it runs, and how long that has kept it waiting."""

    ledger: Ledger
    burst: Burst
    channel: Channel
    former_tries: int = 0
    former_records: Sequence[Any] = ()
    """What their stages did, of as many as that is kept of."""
    _waiting: int = 0
    _since: float = 0.0
    _waited: float = 0.0

    @property
    def task(self) -> Task:
        return self.burst.leader

    async def save_step(self, step: str, value: bytes) -> bytes:
        with self._wait():
            return await self.ledger.save_step(self.task.run_id, self.burst.step_name(step), value)

    async def download(self, file_id: str) -> bytes:
        channel = self.channel
        if not is_pushed(channel):
            raise PayloadInvalid(f"the channel {channel.name} keeps no files", field="file_id")
        with self._wait():
            return await channel.download(self.task.head.account, file_id)

    async def keep_records(self, records: Sequence[StageRecord]) -> None:
        """To look at, not to depend on: the try ends as it ends, whether they can be kept or not."""
        step = step_of_try(self.former_tries)
        if step is None:
            return
        try:
            await self.ledger.save_step(self.task.run_id, step, encode_json(records))
        except Unavailable as error:
            log.debug("stages.unrecorded", task_id=self.task.task_id, error=error)

    def waited_seconds(self) -> float:
        return self._waited + (_now() - self._since if self._waiting else 0.0)

    @contextmanager
    def _wait(self) -> Iterator[None]:
        # A workflow may wait for several things at once; that is one waiting.
        if not self._waiting:
            self._since = _now()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._waited += _now() - self._since


def _say_late_failure(definition: WorkflowDefinition, running: asyncio.Future[Any]) -> None:
    """Of what nobody waits for any more. Left unread, asyncio says it as an error of its own, some time later."""
    error = None if running.cancelled() else running.exception()
    if error is not None:
        log.info("workflow.failed_late", workflow=definition.name, error=error, consequence="none: its run was over")


async def _in_bounds(function: Callable[[Turn], Awaitable[Any]], turn: Turn) -> Any:
    try:
        return await function(turn)
    except BaseException as error:  # border: raised as what ends a run only
        if isinstance(error, Exception | asyncio.CancelledError | GeneratorExit | BaseExceptionGroup):
            raise
        # Let through, it would end whoever runs it, and look like the death of a process.
        raise RuntimeError(f"the workflow wanted to end the process, by {type(error).__name__}: {error}") from error


def _now() -> float:
    """By the clock that timeouts follow."""
    return asyncio.get_running_loop().time()


def _running(task: Task) -> dict[str, Any]:
    head = task.head
    return {"run_id": task.run_id, "channel": head.channel, "account": head.account, "chat_id": head.chat_id}

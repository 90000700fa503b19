"""Working: run what is bound to a claimed chat's first message, save the result, settle; then the chat's next.

Crash anywhere and the claim lapses; whoever takes over finds either no result and runs again (finished steps
are not repeated), or the result and goes on to the reply. A worker that was frozen and wakes up finds its
fence stale: what it still writes changes nothing.

Refuses: to send. What a run wants said is written into the outbox with its result, and delivery calls the platform.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec

from rise import tracing
from rise.bindings import BindingRegistry, Bound, allows
from rise.bursts import Burst, Bursts
from rise.bus.port import Bus, Topic, publish_settled
from rise.callbacks import Callbacks
from rise.channels.port import Channel, Incoming, is_pushed, read_anew
from rise.claims import ClaimLimits, Claims
from rise.clock import Clock, epoch_ms
from rise.conversations.asking import Conversations, is_conversation
from rise.conversations.port import CONVERSATION_LOOK_SECONDS
from rise.definitions.records import BindingRecord
from rise.envelope import (
    FOLLOW_UP,
    Call,
    Effect,
    Head,
    Outcome,
    Reason,
    Status,
    Task,
    TaskType,
    encode_json,
    notice_id_of,
    reply_id_of,
    run_id_of,
)
from rise.errors import ClaimLost, LedgerSilent, MongoUnavailable, TemporalUnavailable, Unavailable, WrittenByNewer
from rise.follow_ups.firing import BY, Firing, Unsaid, fired_result
from rise.follow_ups.planning import follow_up, planned_by
from rise.ledger.port import Attempt, HistoryLine, Ledger, Reply, ReplyKind, Run, RunResult, reply_of
from rise.merging import MergedFate, Merging
from rise.queue.port import Anew, Claim, Finished, OpenTask, Queue, Replying, RetryIn, Selection, Settlement, Suspend
from rise.rates import Windows
from rise.retries import RetryPolicy, uses_a_try
from rise.service import insist
from rise.telemetry import in_words, log, redact
from rise.workflows.runner import Ran, RunLimits, Runner

T = TypeVar("T")
Accept = Callable[[Incoming], Awaitable[object]]

ELSEWHERE_SECONDS: Final = 2.0
"""How long a message is left to workers that have its workflow."""
LOOK_AT_ONCE: Final = 1000
MINUTE_SECONDS: Final = 60.0
_NEVER_RAN: Final = frozenset({Reason.WORKFLOW_PENDING, Reason.RAW_PAYLOAD_INVALID, Reason.KILL_SWITCH})


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    concurrency: int = 32
    """Chats at once, per channel."""
    concurrency_for: Mapping[str, int] = field(default_factory=dict)
    """... of a channel that has it otherwise; as `channel:account`, of what is bound there."""
    claim: timedelta = timedelta(seconds=30)
    run_seconds: float = 300.0
    stop_seconds: float = 20.0
    history_turns: int = 20
    recovery_seconds: float = 0.0
    """After its store was away: so long others have to say which chats are owed earlier messages."""
    abandoned_max: int = 4
    """Functions that went on after their time; beyond this the process should be replaced."""

    def of_claims(self) -> ClaimLimits:
        return ClaimLimits(self.concurrency, self.claim, self.stop_seconds, self.recovery_seconds, self.concurrency_for)

    def of_a_run(self) -> RunLimits:
        chats = max([self.concurrency, *self.concurrency_for.values()])
        return RunLimits(
            self.run_seconds,
            threads=chats * 2,
            history_turns=self.history_turns,
            concurrency_for=self.concurrency_for,
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """What people are told when there is no answer."""

    workflow_missing: str = "Your message is saved. It will be answered as soon as this bot is set up."
    failed: str = "Sorry, your message could not be answered. A person has been told."
    maintenance: str = "This bot is being worked on. Your message is saved."


# --- how a run ends: a value, settled in one place --------------------------------------------------------


class Answered(msgspec.Struct, frozen=True):
    result: RunResult
    calls: list[Call]
    said: str
    burst: Burst | None = None
    """With whom it was answered; None: it did not get to a workflow."""


class AlreadyRun(msgspec.Struct, frozen=True):
    """A former worker saved the result and died before it settled."""

    run: Run


class KeyUsedAgain(msgspec.Struct, frozen=True):
    """The ledger's result is older than the message: it is of a former one, whose key had been forgotten."""

    generation: int


class TooLate(msgspec.Struct, frozen=True):
    pass


class Retry(msgspec.Struct, frozen=True):
    seconds: float
    error: str
    counts: bool
    is_noted: bool = True
    """Whether it belongs in the task's history."""
    has_begun: bool = True
    """Whether its workflow may have done anything."""


class Suspended(msgspec.Struct, frozen=True):
    reason: Reason
    error: str
    tell: str | None = None
    cause: str | None = None
    """What it has in common with others: of these a chat is told once. None: it is this run's alone."""


Ending = Answered | AlreadyRun | KeyUsedAgain | TooLate | Unsaid | Retry | Suspended


class Worker:
    """Runs workflows. Any number of them, in any number of processes."""

    name = "worker"

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        bindings: BindingRegistry,
        runner: Runner,
        channels: Mapping[str, Channel],
        retry_policy: RetryPolicy,
        accept: Accept,
        bus: Bus,
        clock: Clock,
        limits: WorkerLimits | None = None,
        texts: Texts | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        """`accept`: the intake's, for the follow-ups that runs ask for. `conversations`: None where no Temporal is
        configured."""
        self._queue = queue
        self._ledger = ledger
        self._bindings = bindings
        self._runner = runner
        self._channels = channels
        self._retry_policy = retry_policy
        self._accept = accept
        self._bus = bus
        self._clock = clock
        self._limits = limits or WorkerLimits()
        self._texts = texts or Texts()
        self._windows = Windows(MINUTE_SECONDS)
        self._bursts = Bursts(queue, ledger, bindings)
        self._merging = Merging(queue, ledger)
        self._callbacks = Callbacks(queue, ledger, retry_policy)
        self._firing = Firing(queue, ledger)
        self._conversations = conversations
        self._claims = Claims(
            queue=queue,
            channels=list(channels),
            finish=self._run_and_settle,
            bus=bus,
            clock=clock,
            limits=self._limits.of_claims(),
        )

    @property
    def is_worn_out(self) -> bool:
        """Too much is lost in functions that never return; a new process would do better."""
        return self._runner.abandoned > self._limits.abandoned_max

    async def start(self) -> None:
        await self._claims.start()
        log.info("task_worker.start", member=self._bus.member, workflows=sorted(self._runner.workflows))

    async def stop(self) -> None:
        """Claim nothing more, let runs finish within the grace, hand back the rest as if never claimed."""
        await self._claims.stop()
        log.info("task_worker.stop", member=self._bus.member)

    def wake(self) -> None:
        """There may be work."""
        self._claims.wake()

    # --- running ---

    async def _run_and_settle(self, claim: Claim) -> Claim | None:
        """Run the claim's task and settle it, whatever comes of either: a claim that lapses looks like a death.

        Returns the claim on the chat's next task, if there is one.
        """
        task = read_anew(claim.task, self._channels)
        with tracing.span_of(task.head, "claim", kind="consumer") as span:
            span.note({"rise.attempt": task.progress.attempts + 1})
            ending = await self._ending_of(claim, task)
            _note_ending(span, ending)
            return await self._settle_or_suspend(claim, task, ending)

    async def _settle_or_suspend(self, claim: Claim, task: Task, ending: Ending) -> Claim | None:
        try:
            return await self._settle(claim, task, ending)
        except ClaimLost:
            raise
        except Exception as error:  # noqa: BLE001 - border: a bug of ours is said where people look, and keeps no chat
            suspended = "the task is suspended"
            log.error("task.settle_failed", task_id=task.task_id, error=error, exc_info=error, consequence=suspended)
            why = f"it could not be settled: {redact(in_words(error))[:2000]}"
            return await self._settle(claim, task, Suspended(Reason.RETRIES_EXHAUSTED, why))

    async def _ending_of(self, claim: Claim, task: Task) -> Ending:
        """Run the task and say how that ended. Of it nothing is written but its steps; earlier messages of its chat may
        be resumed instead."""
        try:
            return await self._attempt(claim, task)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # Nobody cancelled this run: the workflow awaited something of its own that was. Taken for a stop,
            # it would leave the claim to lapse and be counted as the death of a process.
            return self._judge(task, RuntimeError("the workflow awaited something that was cancelled"))
        except (Exception, GeneratorExit, BaseExceptionGroup) as error:  # noqa: BLE001 - border: whatever a workflow raises, the retry policy judges
            return self._judge(task, error)

    async def _attempt(self, claim: Claim, task: Task) -> Ending:
        """What has ended, or whose turn it is not, is not run."""
        try:
            steps, former = await self._former_tries(task)
            found = self._ended_before(task, former) or await self._workflow_or_ending(claim, task, steps)
        except Unavailable as error:
            # Nothing was tried. But what may have ended waits for the ledger, whatever its binding says by then.
            waits_for_ledger = isinstance(error, LedgerSilent) or self._bursts.may_follow(task.head)
            return self._judge(task, error, is_noted=False, has_begun=waits_for_ledger)
        return await self._run(task, found, steps) if isinstance(found, Bound) else found

    async def _workflow_or_ending(self, claim: Claim, task: Task, steps: Mapping[str, bytes]) -> Ending | Bound:
        """The workflow that is to run it now, or what comes of it without. The order of these questions is part of the
        answer."""
        head, channel = task.head, self._channels[task.head.channel]
        if head.task_type is TaskType.FOLLOW_UP:
            return await self._fire(task)
        if head.task_type is not TaskType.MESSAGE_SEND or planned_by(head):
            await self._bindings.known()
        if claim.has_suspended and await self._let_earlier_go_first(head):
            return _later(0.0, "earlier messages of this chat go first")
        # Nothing is awaited between that look and this one: a workflow that appeared in between would let this
        # message overtake the earlier ones that wait for it, too. Here is decided which one workflow it meets.
        met = self._bindings.met_by(head)
        if (ending := await self._ended_without_run(task, met.binding, channel)) is not None:
            return ending
        if met.bound is None:
            return await self._without_workflow(task, channel)
        return await self._put_off(task, met.bound, steps) or met.bound

    async def _ended_without_run(self, task: Task, binding: BindingRecord | None, channel: Channel) -> Ending | None:
        """What no workflow is for, and what its binding keeps from it."""
        head = task.head
        if head.is_unread:
            return Suspended(Reason.RAW_PAYLOAD_INVALID, task.progress.error or "its bytes cannot be read")
        if head.task_type is TaskType.CHANNEL_TEST:
            return _answered(task, channel, [], value=None, bound=None)
        if head.task_type is TaskType.MESSAGE_SEND:
            return await self._say(task, channel)
        return None if binding is None else await self._kept_from(binding, task, channel)

    async def _put_off(self, task: Task, bound: Bound, steps: Mapping[str, bytes]) -> Ending | None:
        if self._runner.definition(bound.workflow) is None:
            return self._left_to_others(bound)
        if (seconds := await self._bursts.open_seconds(task, bound.binding, steps)) > 0:
            return _later(seconds, "more of its burst may still come")
        if (seconds := self._too_soon_seconds(bound.binding, task)) > 0:
            return _later(seconds, "more of its chat than its binding allows in a minute")
        return None

    async def _run(self, task: Task, bound: Bound, steps: Mapping[str, bytes]) -> Ending:
        channel = self._channels[task.head.channel]
        burst = await self._bursts.freeze(task, bound.binding, steps)
        with self._telling_of_failure(task, bound):
            ran = await self._run_here_or_in_conversation(burst, bound, channel, steps)
            if ran is None:
                return Retry(CONVERSATION_LOOK_SECONDS, "its conversation works on it", counts=False, is_noted=False)
            return _answered(task, channel, ran.effects, value=ran.value, bound=bound, stages=ran.stages, burst=burst)

    async def _run_here_or_in_conversation(
        self, burst: Burst, bound: Bound, channel: Channel, steps: Mapping[str, bytes]
    ) -> Ran | None:
        """Here, or where its binding says; None: there it goes on, and its lane is kept for it without a place here."""
        if not is_conversation(bound, burst.leader):
            return await self._runner.run(burst, bound, channel, steps)
        if self._conversations is None:
            unset = "its binding says engine: temporal, and RISE_TEMPORAL_ADDRESS is not set here"
            raise TemporalUnavailable(unset, remedy="set RISE_TEMPORAL_ADDRESS, or bind it with engine: native")
        return await self._conversations.answer(burst, bound)

    async def _say(self, task: Task, channel: Channel) -> Ending:
        """What a program says, or a follow-up without a workflow, which its workflow's kill switch stops."""
        head = task.head
        binding = self._bindings.binding(head.channel, head.account, planned_by(head))
        if binding is not None and (ending := await self._killed(binding, task, channel)) is not None:
            return ending
        return _answered(task, channel, [Effect(kind="reply", **head.policy["reply"])], value=None, bound=None)

    async def _fire(self, task: Task) -> Ending:
        """A follow-up's moment has come. What it says is armed as what any run promised: after its result is frozen."""
        if (ending := await self._firing.unsaid(task)) is not None:
            return ending
        return Answered(RunResult(outcome=Outcome.SILENT, value=fired_result(task, self._queue.now_ms())), [], "")

    @contextmanager
    def _telling_of_failure(self, task: Task, bound: Bound) -> Iterator[None]:
        """Of every try that fails by the workflow's own fault: what is suspended in the end is known too late."""
        try:
            yield
        except Exception as error:  # border: the binding's health hears of it, and the retry policy judges it
            self._tell_of_failure(task.head, bound, error)
            raise

    def _tell_of_failure(self, head: Head, bound: Bound, error: Exception) -> None:
        if uses_a_try(error):
            failed = {"workflow_id": bound.workflow.workflow_id, "error": redact(in_words(error))[:200]}
            self._bus.publish(Topic.RUN_FAILED, {"channel": head.channel, "account": head.account} | failed)

    async def _former_tries(self, task: Task) -> tuple[Mapping[str, bytes], Run | None]:
        """The steps and the result of former tries."""
        try:
            # In this order: what has ended has no steps any more, and would do them again.
            steps = await self._ledger.steps(task.run_id)
            return steps, await self._ledger.run(task.run_id)
        except WrittenByNewer:
            raise
        except LedgerSilent:
            return {}, await self._waiting_run(task)

    async def _waiting_run(self, task: Task) -> Run | None:
        """Its result, if one waits for the ledger, which is silent. None: nobody has begun it, and it need not wait.

        Also what seems new is looked for: its burst may have been run before its binding was changed. Raises
        `LedgerSilent` where only the ledger knows: of what somebody has begun, and of what may have been answered with
        another of its burst.
        """
        may_have_ended = not task.progress.is_untouched or self._bursts.may_follow(task.head)
        try:
            waiting = await self._ledger.run(task.run_id)
        except WrittenByNewer:
            raise
        except LedgerSilent:
            if may_have_ended:
                raise
            return None
        if waiting is None and may_have_ended:
            raise LedgerSilent("the ledger did not answer just now")
        return waiting

    def _ended_before(self, task: Task, former: Run | None) -> Ending | None:
        """By its result, which a former worker saved; or because its time is over."""
        deadline_at_ms = task.progress.deadline_at_ms
        if former is not None:
            return KeyUsedAgain(former.generation + 1) if former.is_of_former(task.head) else AlreadyRun(former)
        if deadline_at_ms is not None and deadline_at_ms < self._queue.now_ms():
            return TooLate()
        return None

    async def _kept_from(self, binding: BindingRecord, task: Task, channel: Channel) -> Ending | None:
        """What keeps it from the workflow that it is meant for, if anything does: strangers are told nothing."""
        head = task.head
        if head.workflow_id is None and not allows(binding, head, head.user.get("user_id")):
            return Answered(RunResult(outcome=Outcome.NOT_ALLOWED), [], "")
        return await self._killed(binding, task, channel)

    async def _killed(self, binding: BindingRecord, task: Task, channel: Channel) -> Ending | None:
        switch = binding.kill_switch
        if switch is None:
            return None
        await self._runner.acknowledge(task, channel)
        return Suspended(
            Reason.KILL_SWITCH,
            f"the kill switch of {binding.workflow_id} is on since {switch.since}: {switch.reason}",
            tell=self._texts.maintenance,
            cause=f"{binding.workflow_id} {switch.since}",
        )

    def _too_soon_seconds(self, binding: BindingRecord | None, task: Task) -> float:
        """How long it has to wait for its chat's turn; a message counts once, however often it is tried."""
        most = None if binding is None else binding.own.rate_limit_per_min
        if binding is None or most is None:
            return 0.0
        head = task.head
        chat = (head.channel, head.account, binding.workflow_id, head.conversation or head.lane)
        return self._windows.enter(chat, task.run_id, most=most, now=self._clock.monotonic())

    async def _without_workflow(self, task: Task, channel: Channel) -> Ending:
        head = task.head
        await self._runner.acknowledge(task, channel)
        binding = self._bindings.met_by(head).binding
        return Suspended(
            Reason.WORKFLOW_PENDING,
            f"no usable workflow for {head.channel}:{head.account}",
            tell=(binding and binding.workflow_missing_message) or self._texts.workflow_missing,
            cause=str(self._bindings.version_of(head.channel, head.account)),
        )

    def _left_to_others(self, bound: Bound) -> Ending:
        """Another worker has it. Given up here, the chat would go on without this message, and out of order."""
        # Never at the same pace as the other's looks, which it could miss again and again.
        seconds = ELSEWHERE_SECONDS * self._clock.random.uniform(0.2, 1.0)
        why = f"this worker has not loaded the workflow {bound.workflow.name}"
        return _later(seconds, why)

    async def _let_earlier_go_first(self, head: Head) -> bool:
        """Resume what of this chat waited for a workflow that is there now, all in one step. True: that, or another,
        goes before this task. So a chat is answered in its order, whoever gets to it first: this, another, or the
        supervisor.

        Each look sees what the one before it may have missed: what is resumed before the first waits in its lane at
        the second, and what is resumed later was among the first's.
        """
        # Suspended by its own word: what a newer version has put aside nobody here could resume.
        pending = Selection(status=Status.SUSPENDED, reason=Reason.WORKFLOW_PENDING, lane=head.lane)
        routes = await self._queue.suspended_routes(Reason.WORKFLOW_PENDING, lane=head.lane)
        known = self._bindings.routed(routes)
        waiting = await self._all_of(pending) if known else []
        if await self._is_behind(head):
            return True
        served, routed = self._bindings.served(routes), self._bindings.routed(routes)
        if routed != known:
            return True  # its routes have changed meanwhile: look again
        found = tuple(one.head.task_id for one in waiting if self._bindings.met_by(one.head).bound)
        if found:
            await self._queue.resume(msgspec.structs.replace(pending, task_ids=found), limit=1)
        elif served:
            await self._queue.resume(msgspec.structs.replace(pending, routes=served), limit=1)
        return bool(found or served)  # also if somebody else has resumed it just now

    async def _all_of(self, selection: Selection) -> list[OpenTask]:
        found: list[OpenTask] = []
        while page := await self._queue.list_open(
            selection, limit=LOOK_AT_ONCE, after=found[-1].head.task_id if found else ""
        ):
            found += page
        return found

    async def _is_behind(self, head: Head) -> bool:
        first = await self._queue.next_in_lane(head.lane, limit=1)
        return any(one.head.place < head.place for one in first)

    def _judge(self, task: Task, error: BaseException, *, is_noted: bool = True, has_begun: bool = True) -> Ending:
        text = redact(in_words(error))[:2000]
        counts = uses_a_try(error)
        verdict = self._retry_policy.verdict(
            task.head, task.progress, error, now_ms=self._queue.now_ms(), clock=self._clock
        )
        log.warning(
            "task.failed",
            task_id=task.task_id,
            error=error,
            counts=counts,
            exc_info=error if counts else None,
            consequence="it is suspended" if isinstance(verdict, Reason) else f"tried again in {verdict:.3g} s",
        )
        if isinstance(verdict, Reason):
            return Suspended(verdict, text, tell=self._texts.failed)
        # That the ledger or Temporal is away is known where that is shown, and nothing was tried.
        is_shown = isinstance(error, MongoUnavailable | TemporalUnavailable)
        return Retry(verdict, text, counts, is_noted and not is_shown, has_begun)

    # --- settling: what comes of a task that could be read; what cannot be, the queue itself suspends ---

    async def _settle(self, claim: Claim, task: Task, ending: Ending) -> Claim | None:
        settlement = await self._insist(lambda: self._record(claim, task, ending), task)
        following = await self._insist(lambda: self._queue.settle(claim, task, settlement), task)
        self._announce(task, ending, settlement)
        return following

    async def _record(self, claim: Claim, task: Task, ending: Ending) -> Settlement:
        """Write the ending into the ledger; only then may the queue know. Repeated, it may note a try twice, and no
        more.

        Raises `ClaimLost` where that would tell the sender what is for another to say.
        """
        match ending:
            case Answered(result, calls, said, burst):
                if not await self._ends_with(claim, burst):
                    return RetryIn(0.0, "a message of its burst was ended otherwise meanwhile", counts=False)
                return await self._record_answer(task, result, calls, said, burst)
            case AlreadyRun(run):
                return await self._go_on(task, run, saved_at_ms=min(run.saved_at_ms, self._queue.now_ms()))
            case KeyUsedAgain(generation):
                return Anew(generation)
            case TooLate():
                callback = await self._callbacks.of_end(task, Status.EXPIRED)
                run = await self._ledger.finish(task, Status.EXPIRED, callback=callback)
                return Finished() if run.status.is_finished else Replying()
            case Unsaid(status, why):
                run = await self._ledger.finish(task, status, by=BY, why=why)
                return await self._go_on(task, run, saved_at_ms=self._queue.now_ms())
            case Retry(seconds, error, counts, is_noted, has_begun):
                if is_noted:
                    await self._note_attempt(task, error, counts=counts)
                return RetryIn(seconds, error, counts, is_begun=has_begun or not task.progress.is_untouched)
            case Suspended(reason, error, tell, cause):
                await self._must_be_held(claim)
                await self._tell(task, reason, tell, cause or task.run_id)
                await self._callbacks.tell_suspended(task, reason, error)
                if reason not in _NEVER_RAN:
                    # Last, because it is the one write here that repeating would do twice.
                    await self._note_attempt(task, error, counts=True)
                return Suspend(reason, error)

    async def _must_be_held(self, claim: Claim) -> None:
        """Of results the ledger keeps the first; a notice of failure has nothing that it could be compared with. From a
        worker that was frozen it would come after the answer that another has given meanwhile."""
        if await self._queue.renew([claim]):
            raise ClaimLost(f"the claim on {claim.lane} has passed to another worker")

    async def _ends_with(self, claim: Claim, burst: Burst | None) -> bool:
        """Whether all that follow it end with it. A worker that was frozen must not end them: another may have gone on
        without some."""
        if burst is None or not burst.followers:
            return True
        await self._must_be_held(claim)
        return await self._merging.end_with(burst.leader.task_id, burst.followers)

    async def _record_answer(
        self, task: Task, result: RunResult, calls: Sequence[Call], said: str, burst: Burst | None
    ) -> Settlement:
        channel = self._channels[task.head.channel]
        replies = _replies(task, calls, result.workflow_id)
        run = await self._ledger.save_result(
            task,
            result,
            replies + await self._callbacks.of_result(task, result, replies),
            [] if result.outcome is Outcome.NOT_ALLOWED else await self._history(burst or Burst(task), said),
            deliver=is_pushed(channel),
        )
        return await self._go_on(task, run, saved_at_ms=self._queue.now_ms())

    async def _history(self, burst: Burst, said: str) -> list[HistoryLine]:
        """What the run adds to its chat's: what the person said, once however often it is run, and what it answers."""
        run_id, lines = burst.leader.run_id, []
        is_again = burst.leader.progress.generation > 0
        for task in burst.messages:
            head = task.head
            if _is_said_by_a_person(head) and not await self._is_in_history(task, is_again=is_again):
                text = head.user_text or ""
                lines.append(HistoryLine(role="user", text=text, at_ms=head.accepted_at_ms, run_id=task.run_id))
        if said:
            lines.append(HistoryLine(role="assistant", text=said, at_ms=epoch_ms(self._clock.now()), run_id=run_id))
        return lines

    async def _is_in_history(self, task: Task, *, is_again: bool) -> bool:
        """Whether a former run has put it there; not one that was another message's, of the same key. `is_again`: what
        leads it was run before, and perhaps with it."""
        head, generation = task.head, task.progress.generation
        if not (generation or is_again) or head.chat_id is None:
            return False
        formers = {run_id_of(task.task_id, former) for former in range(generation + 1)}
        kept = await self._ledger.history(head.channel, head.account, head.chat_id, limit=LOOK_AT_ONCE)
        return any(
            turn.role == "user" and turn.run_id in formers and turn.at_ms == head.accepted_at_ms for turn in kept
        )

    async def _go_on(self, task: Task, run: Run, *, saved_at_ms: int) -> Settlement:
        """After a result is frozen: end whom it answers as well, arm what it promised for later, each once, and let the
        task go on.

        `saved_at_ms`: by the queue's clock, because the queue waits until then; the ledger's may be another.
        """
        if run.status is not Status.DROPPED:
            if run.merged_into is not None and not run.status.is_finished:
                return await self._go_on_merged(task, run)
            if run.unreadable is not None:
                return Suspend(Reason.SCHEMA_NEWER, run.unreadable)  # what it promised cannot be read either
            if run.waits_for_ledger:  # one that is in the ledger never went ahead of the ends that it names
                await self._merging.end_named(run.merged_runs, run.task_id)
            await self._arm(task, run, saved_at_ms)
        return Finished() if run.status.is_finished else Replying()

    async def _go_on_merged(self, task: Task, run: Run) -> Settlement:
        match await self._merging.fate_of(run):
            case MergedFate.WAITS:
                return Replying()
            case MergedFate.ALONE:
                return Anew(run.generation + 1)
            case MergedFate.ANSWERED:
                run = await self._ledger.finish(task, Status.COMPLETED, Outcome.MERGED)
                return Finished() if run.status.is_finished else Replying()

    async def _arm(self, task: Task, run: Run, saved_at_ms: int) -> None:
        """Once, noted with the run: a task may wait for a person longer than a queue remembers keys."""
        if not run.follow_ups or run.is_armed:
            return
        ahead_ms = self._queue.now_ms() - epoch_ms(self._clock.now())
        plans = enumerate(run.follow_ups)
        armed = [
            follow_up(task, number, plan, saved_at_ms, by=run.workflow_id, ahead_ms=ahead_ms) for number, plan in plans
        ]
        # As they stand in their lane: otherwise they would be counted as messages that came out of order.
        for incoming in sorted(armed, key=lambda one: one.due_at_ms or 0):
            await self._accept(incoming)
        await self._ledger.note_armed(task.run_id)

    async def _note_attempt(self, task: Task, error: str, *, counts: bool) -> None:
        await self._ledger.add_attempt(
            task.run_id, Attempt(at_ms=epoch_ms(self._clock.now()), error=error, counted=counts)
        )

    async def _tell(self, task: Task, reason: Reason, text: str | None, cause: str) -> None:
        """A notice to the sender: once per chat and cause, never where nobody wrote."""
        head = task.head
        channel = self._channels[head.channel]
        call = channel.notice(head, text) if text and head.notifiable else None
        if call is None or head.conversation is None:
            return
        reply_id = notice_id_of(head.channel, head.account, head.conversation, reason, cause)
        notice = reply_of(head, task.run_id, reply_id, call, kind=ReplyKind.NOTICE)
        await self._ledger.add_notice(notice, deliver=is_pushed(channel))
        self._bus.publish(Topic.OUTBOX_READY)

    def _announce(self, task: Task, ending: Ending, settlement: Settlement) -> None:
        head = task.head
        if head.callback_url is not None:
            self._bus.publish(Topic.OUTBOX_READY)
        match settlement:
            case Replying():
                self._bus.publish(Topic.OUTBOX_READY)
                return
            case Finished():
                status = _status_at_end(ending)
            case Suspend():
                status = Status.SUSPENDED
            case _:
                return
        publish_settled(
            self._bus,
            head,
            status,
            outcome=_outcome_at_end(ending),
            reason=ending.reason if isinstance(ending, Suspended) else None,
            workflow_id=ending.result.workflow_id if isinstance(ending, Answered) else None,
            seconds=round((epoch_ms(self._clock.now()) - head.accepted_at_ms) / 1000, 4),
        )

    async def _insist(self, write: Callable[[], Awaitable[T]], task: Task) -> T:
        """Repeat a write until the store takes it: forgetting it would run the workflow again."""
        return await insist(
            write,
            sleep=self._clock.sleep,
            on_refusal=lambda error: log.warning(
                "task.settle_delayed",
                task_id=task.task_id,
                error=error,
                consequence="if this process stops now, it runs again, unless its result is kept already",
            ),
        )


def _later(seconds: float, why: str) -> Retry:
    """Before anything of it has been begun."""
    return Retry(seconds, why, counts=False, is_noted=False, has_begun=False)


def _answered(
    task: Task,
    channel: Channel,
    effects: Sequence[Effect],
    *,
    value: Any,
    bound: Bound | None,
    stages: Sequence[Any] = (),
    burst: Burst | None = None,
) -> Answered:
    calls = channel.compose(task.head, [effect for effect in effects if effect.kind != FOLLOW_UP])
    said = "\n\n".join(call.text for call in calls if call.text)
    shown: dict[str, Any] = {"text": said, "replies": [call.params for call in calls], "value": value}
    if plans := [{"text": effect.text, **effect.params} for effect in effects if effect.kind == FOLLOW_UP]:
        shown["followUps"] = plans
    if stages:
        shown["stages"] = msgspec.to_builtins(stages)
    if burst is not None and burst.followers:
        shown["merged"] = [follower.task_id for follower in burst.followers]
        shown["mergedRuns"] = [follower.run_id for follower in burst.followers]
    # Here, where it counts as the workflow's own error: what cannot be stored cannot be settled either.
    encode_json([shown, calls])
    result = RunResult(
        outcome=Outcome.ANSWERED if calls or value is not None else Outcome.SILENT,
        value=shown,
        workflow_id=bound.workflow.workflow_id if bound else None,
        workflow_version=bound.workflow.version if bound else None,
    )
    return Answered(result, calls, said, burst)


def _note_ending(span: tracing.Span, ending: Ending) -> None:
    match ending:
        case Retry(counts=True):
            span.fail("retry")
        case Suspended(reason):
            span.fail(reason.value)
    span.note({"rise.ending": type(ending).__name__})


def _status_at_end(ending: Ending) -> Status:
    match ending:
        case TooLate():
            return Status.EXPIRED
        case Unsaid(status):
            return status
        case AlreadyRun(run):
            return run.status
    return Status.COMPLETED


def _outcome_at_end(ending: Ending) -> Outcome | None:
    match ending:
        case Answered(result):
            return result.outcome
        case AlreadyRun(run):
            return run.outcome if run.merged_into else None
    return None


def _replies(task: Task, calls: Sequence[Call], workflow_id: str | None) -> list[Reply]:
    if not task.head.is_awaited:
        calls = [msgspec.structs.replace(call, is_awaited=False) for call in calls]
    return [
        reply_of(
            task.head,
            task.run_id,
            reply_id_of(task.run_id, chunk),
            call,
            workflow_id=workflow_id,
            deadline_at_ms=task.progress.deadline_at_ms,
        )
        for chunk, call in enumerate(calls)
    ]


def _is_said_by_a_person(head: Head) -> bool:
    """As opposed to what a program or an earlier run had said in their chat."""
    return bool(head.user_text) and head.task_type is not TaskType.MESSAGE_SEND and head.kind != FOLLOW_UP


def _is_being_cancelled() -> bool:
    """Whether somebody asked the current task to end, as opposed to something within it."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0

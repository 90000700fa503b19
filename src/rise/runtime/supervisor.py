"""Keeps it moving: whatever a crash, a lost hint or a half-done step left behind is found and set right.

Nothing here is on a message's way when all is well. Each duty is a loop of its own that survives its errors;
each may run at any time, any number of times, beside workers and senders.

Refuses: to run or to send anything itself; to resume what waits for a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from rise.bindings import BindingRegistry, allows
from rise.bursts import may_be_open
from rise.bus.port import Bus, Topic
from rise.callbacks import Callbacks
from rise.capabilities import CapabilityRegistry
from rise.channels.port import Channel, is_pushed
from rise.clock import Clock
from rise.definitions.records import BindingRecord
from rise.envelope import Head, Outcome, Reason, ReplyId, RunId, Status, TaskId, callback_id_of, notice_id_of
from rise.errors import Unavailable
from rise.ledger.port import Ledger, ReplyKind, ReplyState, Run, reply_of
from rise.merging import MergedFate, Merging
from rise.queue.port import OpenTask, Queue, QueueDepth, Route, Selection, Suspend
from rise.runtime.alerts import in_number
from rise.runtime.pipeline import Pipeline, clocks_apart, in_time
from rise.service import Loop, Signal, sparingly
from rise.telemetry import (
    enqueue_to_reply_seconds,
    log,
    settled_total,
    signal_to_query_hit_seconds,
    workflow_pending_total,
)

REAP_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 30.0
RESUME_SECONDS: Final = 5.0
TELL_SECONDS: Final = 5.0
MEASURE_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 1.0
PAGE: Final = 500
LOST_SECONDS: Final = 60.0
"""Longer than a result is on its way to where it is kept."""
FORGET_AFTER_SECONDS: Final = 900.0
ROUTED_PAGES: Final = 10
"""Looked at each time of what waits where chats and commands decide."""
HISTORY_PAGES: Final = 20
"""Of chats, looked at each time for what is too old: ten thousand chats in a sweep, a million in less than an hour."""

LATE: Final = "late"
_CANNOT_BE_ANSWERED: Final = frozenset({Reason.POISON})
"""Suspended by the queue itself, where no worker could tell the sender."""


SUSPENDED_REMEDY: Final = (
    "`rise suspended` shows which; mend the cause, then `rise suspended resume`, or `rise tasks drop`"
)


@dataclass(frozen=True, slots=True)
class Duties:
    """How eagerly."""

    resume_per_second: float = 50.0
    late_after_seconds: float = 30.0
    late_text: str = "Got it, running late. The answer will come."
    failed_text: str = "Sorry, your message could not be answered. A person has been told."
    keep_finished_seconds: float = 30 * 86400.0
    keep_raw_seconds: float | None = None
    """The bytes of finished messages; None: as long as these."""
    keep_history_seconds: float | None = None
    """What was said in a chat; None: for good."""
    forget_after_seconds: float = FORGET_AFTER_SECONDS
    """For so long the store's clock and the wall clock have to agree before anything is forgotten by them."""
    suspended_alert_count: int = 100
    suspended_alert_seconds: float = 86400.0


class Supervisor:
    """One per `rise serve`."""

    name = "supervisor"

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        bus: Bus,
        bindings: BindingRegistry,
        channels: Mapping[str, Channel],
        capabilities: CapabilityRegistry,
        pipeline: Pipeline,
        clock: Clock,
        duties: Duties | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._merging = Merging(queue, ledger)
        self._bus = bus
        self._bindings = bindings
        self._channels = channels
        self._capabilities = capabilities
        self._pipeline = pipeline
        self._clock = clock
        self._duties = duties or Duties()
        self._callbacks = callbacks or Callbacks(queue, ledger)
        self._agreeing_since = clock.monotonic()
        self._defined = Signal()
        self._told: set[ReplyId] = set()
        self._telling_after = ""
        self._apologizing_after: dict[Reason, str] = {}
        self._comparing_after = ""
        self._raw_forgotten_until_ms = 0
        self._history_looked_at = ""
        self._resuming_after: dict[Route, str] = {}
        self._loops = [
            self._every("supervisor.reap", REAP_SECONDS, self.reap),
            self._every("supervisor.sweep", SWEEP_SECONDS, self.sweep),
            self._every("supervisor.tell", TELL_SECONDS, self.tell),
            self._every("supervisor.probe", PROBE_SECONDS, capabilities.probe_due),
            self._every("supervisor.measure", MEASURE_SECONDS, self.measure),
            Loop("supervisor.assess", self._assess_when_changed, sleep=clock.sleep, on_error=sparingly(_report, clock)),
            Loop("supervisor.resume", self._resume_when_defined, sleep=clock.sleep, on_error=sparingly(_report, clock)),
        ]

    async def start(self) -> None:
        self._unsubscribe = (
            self._bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._defined.set()),
            self._bus.subscribe(Topic.TASK_SETTLED, _count_settled),
            self._bus.subscribe(Topic.CONVERSATION_ANSWERED, _count_answered),
            self._capabilities.on_change(self._pipeline.hear),
        )
        with suppress(Unavailable):
            await self.reap()  # before the sender asks for its office, which a former process may hold
        self._pipeline.changed.set()  # what a former process left behind is looked at right away
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        for loop in self._loops:
            await loop.stop()
        self._capabilities.close()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        with suppress(Unavailable):
            await self._ledger.leave_offices(self._bus.member)

    # --- duties ---

    async def reap(self) -> None:
        """Free at once what processes held that are certainly dead."""
        for member in self._bus.dead_members():
            lanes = await self._queue.reclaim(member)
            await self._ledger.leave_offices(member)
            self._bus.bury(member)
            if lanes:
                taken_over = "other workers take its chats over, and run again what it had not finished"
                log.warning("worker.reclaimed", member=member, lanes=lanes, consequence=taken_over)
                self._bus.publish(Topic.LANES_READY)

    async def sweep(self) -> None:
        """Find forgotten lanes and replies whose end the queue has not heard of; forget what is old enough."""
        may_forget = self._trusts_the_clocks()
        found = await self._queue.sweep(forgets=may_forget)
        if found:
            log.warning("queue.hints_remade", lanes=found, consequence="these chats had stood still and go on")
            self._bus.publish(Topic.LANES_READY)
        await self._bring_in_line()
        await self._forget_ended()
        if may_forget:
            await self._purge()
            await self._forget_raw()
            await self._forget_history()

    def _trusts_the_clocks(self) -> bool:
        """Whether what is old may be forgotten, which cannot be undone. A host that starts with a wrong time is told
        the right one within minutes, and until then nothing shows that it was wrong."""
        now = self._clock.monotonic()
        if clocks_apart(self._queue.now_ms(), self._clock.now()) is not None:
            self._agreeing_since = now
        return now - self._agreeing_since >= self._duties.forget_after_seconds

    async def _purge(self) -> None:
        old = self._queue.now_ms() - int(self._duties.keep_finished_seconds * 1000)
        while await self._ledger.purge(finished_before_ms=old, limit=PAGE) == PAGE:
            pass  # in small steps, because messages are accepted in between

    async def _forget_raw(self) -> None:
        """From where the last look came to; after a start from the beginning, which finds most of it done."""
        if self._duties.keep_raw_seconds is None:
            return
        old = self._queue.now_ms() - int(self._duties.keep_raw_seconds * 1000)
        while (
            until := await self._ledger.forget_raw(
                finished_before_ms=old, after_ms=self._raw_forgotten_until_ms, limit=PAGE
            )
        ) is not None:
            self._raw_forgotten_until_ms = until

    async def _forget_history(self) -> None:
        """Some chats are looked at each time."""
        if self._duties.keep_history_seconds is None:
            return
        old = self._queue.now_ms() - int(self._duties.keep_history_seconds * 1000)
        for _ in range(HISTORY_PAGES):
            after = await self._ledger.forget_history(said_before_ms=old, after=self._history_looked_at, limit=PAGE)
            self._history_looked_at = after or ""
            if after is None:
                return

    async def resume(self) -> int:
        """Let go on what waited for a workflow that is there now, oldest first per chat, at a bounded rate.

        In chats where somebody writes meanwhile, the worker does so by itself.
        """
        limit = max(1, int(self._duties.resume_per_second * RESUME_SECONDS))
        routes = await self._queue.suspended_routes(Reason.WORKFLOW_PENDING)
        resumed: list[TaskId] = []
        if served := self._bindings.served(routes):
            # All at once: a chat may have waited for several workflows, and its order holds across them.
            resumed = await self._queue.resume(Selection(reason=Reason.WORKFLOW_PENDING, routes=served), limit=limit)
        for route in self._bindings.routed(routes):
            if len(resumed) >= limit:
                break
            resumed += await self._resume_routed(route, limit - len(resumed))
        if resumed:
            log.info("suspended.resumed", count=len(resumed), reason=Reason.WORKFLOW_PENDING)
            self._bus.publish(Topic.LANES_READY)
        return len(resumed)

    async def tell(self) -> None:
        """Tell people, once each, that an answer will be late or could not be given."""
        if self._duties.late_after_seconds > 0:
            late_before = self._queue.now_ms() - int(self._duties.late_after_seconds * 1000)
            page = await self._queue.list_open(
                Selection(older_than_ms=late_before), limit=PAGE, after=self._telling_after
            )
            self._telling_after = page[-1].head.task_id if len(page) == PAGE else ""
            for task in page:
                if task.status in (Status.PENDING, Status.PROCESSING):
                    await self._tell_late(task)
        for reason in _CANNOT_BE_ANSWERED:
            for task in await self._next_suspended(reason):
                run = await self._ledger.run(task.run_id)
                if run is None or run.is_of_former(task.head):  # else it was answered
                    unless_run = task.run_id if run is None else None
                    await self._tell(task, reason, self._duties.failed_text, unless_run=unless_run)
                    await self._call_back(task, reason)

    async def measure(self) -> None:
        """Count what there is; see that it moves, and that it is not too much."""
        depth = await self._pipeline.measure()
        if depth is not None:
            self._alert_on_suspended(depth)
            await self._pipeline.watch_progress(depth)

    # --- details ---

    async def _next_suspended(self, reason: Reason) -> list[OpenTask]:
        """Some are looked at each time: what was told long ago may wait for a person for good."""
        suspended, after = Selection(status=Status.SUSPENDED, reason=reason), self._apologizing_after.get(reason, "")
        page = await self._queue.list_open(suspended, limit=PAGE, after=after)
        self._apologizing_after[reason] = page[-1].head.task_id if len(page) == PAGE else ""
        return page

    async def _tell_late(self, task: OpenTask) -> None:
        """In the words of its binding, unless that says that nobody waits, or that no answer will come. What may be
        waiting for the rest of its burst is not late."""
        head = task.head
        binding = self._bindings.met_by(head).binding
        if binding is not None and may_be_open(binding, head, self._queue.now_ms()):
            return
        if binding is not None and (not binding.waits_for_result or not _will_answer(binding, head)):
            return
        if _notice_id(task, LATE) in self._told:
            return
        known = await self._ledger.run(task.run_id)
        is_a_formers = known is not None and known.is_of_former(head)
        text = (binding and binding.timeout_message) or self._duties.late_text
        await self._tell(task, LATE, text, unless_run=None if is_a_formers else task.run_id)

    def _alert_on_suspended(self, depth: QueueDepth) -> None:
        count = depth.by_status.get(Status.SUSPENDED, 0)
        age_seconds = (depth.oldest_suspended_ms or 0) / 1000
        self._pipeline.alerts.follow(
            "suspended",
            count >= self._duties.suspended_alert_count or age_seconds >= self._duties.suspended_alert_seconds,
            summary=f"{in_number(count)} {'waits' if count == 1 else 'wait'} for a person, "
            f"the oldest for {in_time(age_seconds)}",
            count=count,
            oldest_seconds=round(age_seconds),
            consequence="they are kept, and stay unanswered until somebody ends the waiting",
            remedy=SUSPENDED_REMEDY,
        )

    async def _resume_routed(self, route: Route, limit: int) -> list[TaskId]:
        """Of an account where chats or commands decide, some are looked at each time. The worker keeps each chat's
        order: it lets earlier ones go on first."""
        waiting = Selection(
            status=Status.SUSPENDED, reason=Reason.WORKFLOW_PENDING, channel=route.channel, account=route.account
        )
        found: list[TaskId] = []
        for _ in range(ROUTED_PAGES):
            page = await self._queue.list_open(waiting, limit=PAGE, after=self._resuming_after.get(route, ""))
            self._resuming_after[route] = page[-1].head.task_id if len(page) == PAGE else ""
            found += [one.head.task_id for one in page if self._bindings.met_by(one.head).bound]
            if len(page) < PAGE or len(found) >= limit:
                break
        if not found:
            return []
        # Perhaps somebody else has resumed one, and it is suspended for another reason by now.
        selection = Selection(reason=Reason.WORKFLOW_PENDING, task_ids=tuple(found[:limit]))
        return await self._queue.resume(selection, limit=limit)

    async def _bring_in_line(self) -> None:
        """A crash between ledger and queue leaves a task `replying` whose run has ended or is held; the loss of what
        the ledger had, or of what waited for it, leaves one without a run."""
        after = ""
        while True:
            page = await self._queue.list_open(Selection(status=Status.REPLYING), limit=PAGE, after=after)
            finished = await self._ledger.finished_among([task.head.task_id for task in page])
            for task in page:
                if _is_end_of(finished.get(task.head.task_id), task):
                    await self._queue.finish(task.head.task_id, task.generation)
                elif await self._is_held(task):
                    held = Suspend(Reason.REPLY_HELD, "it is not known whether the reply was sent")
                    await self._queue.hold(task.head.task_id, task.generation, held)
                elif (why := await self._claimed_again_because(task)) is not None:
                    await self._have_claimed_again(task, why)
            if len(page) < PAGE:
                return
            after = page[-1].head.task_id

    async def _forget_ended(self) -> None:
        """A crash between ledger and queue leaves a task suspended that has ended. Some are looked at each time."""
        page = await self._queue.list_open(Selection(status=Status.SUSPENDED), limit=PAGE, after=self._comparing_after)
        self._comparing_after = page[-1].head.task_id if len(page) == PAGE else ""
        finished = await self._ledger.finished_among([task.head.task_id for task in page])
        for task in page:
            run = finished.get(task.head.task_id)
            if run is None or not _is_end_of(run, task):
                continue
            if run.generation > task.generation:
                # Delivered again when its key was forgotten, after a person had it run again and that has ended.
                await self._queue.cancel(task.head.task_id, generation=task.generation)
                continue
            promises = bool(run.follow_ups) or run.unreadable is not None
            is_all_done = run.is_armed or not promises or task.reason is Reason.REPLY_HELD
            if is_all_done or run.status is Status.DROPPED:
                await self._queue.cancel(task.head.task_id, generation=task.generation)
            elif task.reason is Reason.POISON:
                # What it promised for later is not armed yet. Nothing of the workflow runs for that.
                await self._queue.resume(Selection(task_ids=(task.head.task_id,)), limit=1)

    async def _is_held(self, task: OpenTask) -> bool:
        replies = await self._ledger.replies(run_id=task.run_id)  # a former generation's are nobody's concern
        return any(reply.kind is ReplyKind.ANSWER and reply.state is ReplyState.UNKNOWN for reply in replies)

    async def _claimed_again_because(self, task: OpenTask) -> str | None:
        """Nobody knows what it replies with, and is not about to; or it is known now whether it is answered."""
        if self._queue.now_ms() - task.updated_at_ms < LOST_SECONDS * 1000:
            return None
        run = await self._ledger.run(task.run_id)
        if run is None or run.is_of_former(task.head):
            log.warning("task.result_lost", task_id=task.head.task_id, consequence="it is run again")
            return "its result was lost before it was sent"
        if run.merged_into is None or await self._merging.fate_of(run) is MergedFate.WAITS:
            return None
        return f"{run.merged_into}, with which it went, has come to an end"

    async def _have_claimed_again(self, task: OpenTask, why: str) -> None:
        # The reason for which it goes on by itself, should this process die before it says so.
        if await self._queue.hold(task.head.task_id, task.generation, Suspend(Reason.WORKFLOW_PENDING, why)):
            await self._queue.resume(Selection(task_ids=(task.head.task_id,)), limit=1)

    async def _resume_when_defined(self) -> None:
        await self._defined.wait(RESUME_SECONDS)
        await self._bindings.refresh()
        await self.resume()

    async def _assess_when_changed(self) -> None:
        await self._pipeline.changed.wait()
        await self._pipeline.assess()

    async def _tell(self, task: OpenTask, cause: str, text: str, *, unless_run: RunId | None) -> None:
        """`unless_run`: once that is saved, which may be at this moment, it is not true any more."""
        head = task.head
        reply_id = _notice_id(task, cause)
        if reply_id in self._told or not head.notifiable or head.chat_id is None:
            return
        channel = self._channels.get(head.channel)
        call = channel.notice(head, text) if channel else None
        if channel is None or call is None:
            return
        notice = reply_of(head, task.run_id, reply_id, call, kind=ReplyKind.NOTICE)
        told = await self._ledger.add_notice(notice, deliver=is_pushed(channel), unless_run=unless_run)
        if not told and unless_run is not None and await self._ledger.run(unless_run) is not None:
            return  # others of its chat may have to be told yet
        if len(self._told) > 100_000:
            self._told.clear()  # the ledger knows; this only saves asking it
        self._told.add(reply_id)
        if told:
            log.info("notice.added", task_id=head.task_id, cause=cause)
            self._bus.publish(Topic.OUTBOX_READY)

    async def _call_back(self, waiting: OpenTask, reason: Reason) -> None:
        """To whoever asked for its result, that it waits."""
        callback_id = callback_id_of(waiting.run_id, reason)
        if waiting.head.callback_url is None or callback_id in self._told:
            return
        task = await self._queue.get(waiting.head.task_id)
        if task is not None and task.run_id == waiting.run_id:
            if await self._callbacks.tell_suspended(task, reason, task.progress.error or ""):
                self._bus.publish(Topic.OUTBOX_READY)
            self._told.add(callback_id)

    def _every(self, name: str, seconds: float, duty: Callable[[], Awaitable[None]]) -> Loop:
        async def body() -> None:
            await duty()
            await self._clock.sleep(seconds)

        return Loop(name, body, sleep=self._clock.sleep, on_error=sparingly(_report, self._clock))


def _will_answer(binding: BindingRecord, head: Head) -> bool:
    """As the worker will find: strangers are told nothing, and what is killed waits for a person."""
    is_a_strangers = head.workflow_id is None and not allows(binding, head, head.user.get("user_id"))
    return binding.kill_switch is None and not is_a_strangers


def _is_end_of(run: Run | None, task: OpenTask) -> bool:
    return run is not None and run.generation >= task.generation and not run.is_of_former(task.head)


def _notice_id(task: OpenTask, cause: str) -> ReplyId:
    """What could not be answered is said of each message; lateness of a chat, within an hour, once."""
    head = task.head
    if cause == LATE:
        hour = head.accepted_at_ms // 3_600_000
        return notice_id_of(head.channel, head.account, str(head.conversation), cause, str(hour))
    return notice_id_of(head.task_id, str(task.generation), cause)


def _count_settled(event: Mapping[str, Any]) -> None:
    """Workers are processes of their own; what they bring about is counted here, where metrics are read."""
    account = (str(event.get("channel")), str(event.get("account")))
    workflow = str(event.get("workflow_id") or "")
    outcome, reason = event.get("outcome"), event.get("reason")
    settled_total.labels(*account, workflow, str(outcome or reason or event.get("status"))).inc()
    if reason == Reason.WORKFLOW_PENDING:
        workflow_pending_total.labels(*account).inc()
    seconds = event.get("seconds")
    if outcome == Outcome.ANSWERED and isinstance(seconds, int | float):
        enqueue_to_reply_seconds.labels(*account, workflow).observe(seconds)


def _count_answered(event: Mapping[str, Any]) -> None:
    account = (str(event.get("channel")), str(event.get("account")))
    seconds = event.get("seconds")
    if isinstance(seconds, int | float):
        signal_to_query_hit_seconds.labels(*account, str(event.get("workflow_id") or "")).observe(seconds)


def _report(name: str, error: BaseException) -> None:
    log.warning("supervisor.duty_failed", duty=name, error=error, consequence="tried again after a pause")

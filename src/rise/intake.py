"""The door. One function for every way in: webhook, polling, HTTP, web chat, replay.

The promise: when `accept` returns, the message is on durable storage and will end done, expired, dropped by a person,
or suspended with a reason. When it raises `Unavailable`, nothing is promised: the message may or may not be kept, and
repeating it with the same key is always safe. It never runs a workflow.

Refuses: a key that came before with another body, where callers choose their keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache

import msgspec
from prometheus_client import Counter

from rise import tracing
from rise.admission import Admission
from rise.bindings import BindingRegistry
from rise.bus.port import Bus, Topic
from rise.channels.port import Incoming
from rise.chats import ChatRegistry
from rise.clock import Clock, epoch_ms, from_epoch_ms
from rise.envelope import RAW_SHOWN_BYTES_MAX, Head, Order, Reason, TaskId, TaskType, new_request_id, task_id_of
from rise.errors import Busy, CapabilityClosed, CopiesInsufficient, KeyReused, Unavailable
from rise.queue.port import Enqueued, NewTask, Queue
from rise.telemetry import (
    accept_seconds,
    accepted_total,
    duplicates_total,
    late_total,
    log,
    out_of_order_total,
    raw_truncated_total,
    refused_total,
)

Keep = Callable[[NewTask], Awaitable[Enqueued]]
"""Make it durable, in as many stores as are asked for. Raises `Unavailable`."""

# Looking a labelled metric up costs more than counting it.
_accept_seconds = cache(accept_seconds.labels)


@cache
def _accepted(channel: str, account: str, workflow_id: str) -> Counter:
    # What may be counted beside it is there from now on, as nothing: Prometheus takes the first value that it sees
    # for what always was, and what is not there cannot be added to anything.
    for beside in (duplicates_total, out_of_order_total, late_total):
        beside.labels(channel, account, workflow_id)
    return accepted_total.labels(channel, account, workflow_id)


class Accepted(msgspec.Struct, frozen=True):
    """The receipt."""

    task_id: TaskId
    new: bool
    """False: it was accepted before, and this names the first task."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Keep what a channel has read, and tell those who work on it."""

    queue: Queue
    bindings: BindingRegistry
    bus: Bus
    clock: Clock
    accept_seconds_max: float = 3.0
    same_body_required: frozenset[str] = frozenset({"http"})
    """Channels whose caller chooses the key: there, the same key with another body is a mistake of theirs."""
    admission: Admission = field(default_factory=Admission)
    keep: Keep | None = None
    """With further stores, what hands the message to all of them. None: the queue is the only one."""
    stores: tuple[str, ...] = ("journal",)
    chats: ChatRegistry | None = None
    """Who writes down that a chat has moved."""
    left_to_timers: timedelta | None = None
    """So much longer than to its moment the queue holds a follow-up, because something else keeps the time and fires
    it before. None: nothing does."""
    arrivals: Iterator[int] = field(default_factory=itertools.count)
    """What has no date of its own comes in the order of its arrival, also within a millisecond."""

    def now(self) -> datetime:
        """The store's time, which no step of the wall clock moves; the wall clock's as long as there is no store."""
        try:
            return from_epoch_ms(self.queue.now_ms())
        except Unavailable:
            return self.clock.now()

    def earliest_now(self) -> datetime:
        """The store's time or the wall clock's, whichever is earlier: what is old by this is old by both.

        Either may be days ahead, the store's for ever after one boot with a wrong wall clock. Taken for late, every
        message would be taken for a recording; taken for early, a recording that nobody can make is taken once.
        """
        return min(self.now(), self.clock.now())

    async def accept(self, incoming: Incoming) -> Accepted:
        """Make the delivery durable, once. Raises `Unavailable` (503) or `KeyReused` (422)."""
        with tracing.span("accept", kind="server", parent=incoming.trace_parent) as span:
            accepted = await self._accept(incoming)
            span.note(
                {
                    "rise.task_id": accepted.task_id,
                    "rise.channel": incoming.channel,
                    "rise.account": incoming.account,
                    "rise.duplicate": not accepted.new,
                }
            )
            return accepted

    async def _accept(self, incoming: Incoming) -> Accepted:
        began = self.clock.monotonic()
        head = self.head_of(incoming)
        task = NewTask(
            head,
            incoming.raw,
            suspend=incoming.suspend,
            error=incoming.error,
            deadline_at_ms=_deadline(head, incoming),
            due_at_ms=self._due_at_ms(head, incoming),
        )
        if incoming.moved is not None and self.chats is not None:
            # First: once this is promised, what the chat says next may come, to any process, also after a crash.
            await self.chats.record()
        enqueued = await self._keep(task)
        if not enqueued.same_body and incoming.channel in self.same_body_required:
            raise KeyReused("this idempotency key was used before with another body", field="idempotencyKey")
        if enqueued.new and incoming.suspend is None:
            self.bus.publish(Topic.LANES_READY)
            if self._is_for_timers(head, incoming):
                self.bus.publish(Topic.FOLLOW_UP_PLANNED, {"task_id": enqueued.task_id})
        self._count(incoming, enqueued, head.bound_workflow_id or "", self.clock.monotonic() - began)
        return Accepted(enqueued.task_id, enqueued.new)

    def _is_for_timers(self, head: Head, incoming: Incoming) -> bool:
        """One that is due at once is not worth a timer."""
        if self.left_to_timers is None or head.task_type is not TaskType.FOLLOW_UP:
            return False
        return (incoming.due_at_ms or 0) > head.accepted_at_ms

    def _due_at_ms(self, head: Head, incoming: Incoming) -> int | None:
        due_at_ms = incoming.due_at_ms
        if due_at_ms is None or self.left_to_timers is None or not self._is_for_timers(head, incoming):
            return due_at_ms
        return due_at_ms + int(self.left_to_timers.total_seconds() * 1000)

    async def _keep(self, task: NewTask) -> Enqueued:
        """The line where a message becomes durable: what is awaited here returns after the fsync it shares."""
        try:
            with self.admission.entry(task.head.channel), tracing.span("keep", kind="producer"):
                return await self._enqueue(task)
        except Unavailable as error:
            self._refuse(task.head, error)
            raise

    async def _enqueue(self, task: NewTask) -> Enqueued:
        try:
            async with asyncio.timeout(self.accept_seconds_max):
                return await (self.keep or self.queue.enqueue)(task)
        except TimeoutError as error:
            # It is still on its way and may yet be kept; not promised is all that can be said in time.
            raise CopiesInsufficient("the message could not be made durable in time") from error

    def head_of(self, incoming: Incoming) -> Head:
        """What a task of this delivery, accepted now, would know of it."""
        now_ms = epoch_ms(self.now())  # a step of the wall clock must not change the order of a chat
        request_id = incoming.request_id or new_request_id()
        met = self.bindings.met_by(incoming)
        bound = met.bound
        workflow_id = bound.workflow.workflow_id if bound else "pending"
        runs = bound is not None and incoming.task_type is TaskType.WORKFLOW_EXECUTE
        return Head(
            task_id=task_id_of(incoming.delivery_key),
            delivery_key=incoming.delivery_key,
            task_type=incoming.task_type,
            channel=incoming.channel,
            account=incoming.account,
            source=incoming.source,
            lane=incoming.lane,
            order=incoming.order or Order(now_ms, next(self.arrivals)),
            accepted_at_ms=now_ms,
            request_id=request_id,
            trace_id=incoming.trace_id or request_id,
            idempotency_key=f"{incoming.channel}:{workflow_id}:{incoming.message_label or incoming.delivery_key}",
            kind=incoming.kind,
            chat_id=incoming.chat_id,
            first_chat_id=incoming.first_chat_id,
            moved=incoming.moved,
            workflow_id=incoming.workflow_id,
            user_text=incoming.user_text,
            metadata=incoming.metadata,
            user=incoming.user,
            policy=incoming.policy,
            history_chunks=incoming.history_chunks,
            telemetry={
                "copies": self.stores,
                "bindingVersion": bound.binding.version if bound and bound.binding else None,
                "binding": {
                    "status": met.status,
                    "workflowId": workflow_id if runs else None,
                },
                **_trace(incoming),
            },
            raw_version=incoming.raw_version,
            raw_is_json=incoming.raw_is_json,
            raw_sha256=hashlib.sha256(incoming.raw).hexdigest(),
            raw_is_unique=incoming.raw_is_unique,
            retry_max=incoming.retry_max,
            callback_url=incoming.callback_url,
            notifiable=incoming.notifiable,
            is_unread=incoming.suspend is Reason.RAW_PAYLOAD_INVALID,
            receipt_seconds=incoming.receipt_seconds,
        )

    def _count(self, incoming: Incoming, enqueued: Enqueued, workflow_id: str, seconds: float) -> None:
        account = (incoming.channel, incoming.account)
        labels = (*account, workflow_id)
        _accept_seconds(incoming.channel).observe(seconds)
        accepted = _accepted(*labels)
        if not enqueued.new:
            duplicates_total.labels(*labels).inc()
            log.info("task.duplicate", channel=incoming.channel, task_id=enqueued.task_id)
            return
        accepted.inc()
        if enqueued.out_of_order:
            out_of_order_total.labels(*labels).inc()
        if enqueued.late:
            late_total.labels(*labels).inc()
        if len(incoming.raw) > RAW_SHOWN_BYTES_MAX:
            raw_truncated_total.labels(*account).inc()
            log.info("task.raw_truncated", task_id=enqueued.task_id, raw_size_bytes=len(incoming.raw))
        # One line for each message, at the level that is written unless somebody asks for less: without it nothing of a
        # message that all went well with is in the log.
        log.info(
            "telegram.queue.enqueued" if incoming.channel == "telegram" else "queue.enqueued",
            task_id=enqueued.task_id,
            channel=incoming.channel,
            kind=incoming.kind,
            suspended=incoming.suspend,
        )

    def _refuse(self, head: Head, error: Unavailable) -> None:
        refused_total.labels(head.channel, error.code).inc()
        # What was not even tried has been said once, when it began; a crowd at the door must not fill the log.
        report_refusal = log.debug if isinstance(error, Busy | CapabilityClosed) else log.warning
        report_refusal(
            "telegram.queue.enqueue_failed" if head.channel == "telegram" else "queue.enqueue_failed",
            task_id=head.task_id,
            code=error.code,
            consequence="answered 503; the sender keeps the message and repeats it",
        )


def _trace(incoming: Incoming) -> dict[str, str]:
    """What a trace goes on from, in every store: the acceptance, or whatever led to it where that is not exported."""
    trace_parent = tracing.trace_parent() or incoming.trace_parent
    return {} if trace_parent is None else {"traceparent": trace_parent}


def _deadline(head: Head, incoming: Incoming) -> int | None:
    if incoming.lifetime_seconds is None:
        return None
    return head.accepted_at_ms + int(incoming.lifetime_seconds * 1000)

"""How a webhook is called: when again, how many at once, and when the server gives up.

Promises: within a sub-queue one request is in flight and order holds; a failed update is tried until it
succeeds or its life ends; other sub-queues do not wait for it. It says what to send and is told what came
back; sending is somebody else's work, so a simulator can run the same rules on a virtual clock.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from rise.testing.telegram.rules.update_queue import Dice, DropReason, QueuedUpdate, UpdateQueue

ANSWER_SECONDS_MAX: Final = 60.0
RETRY_AFTER_SECONDS_MAX: Final = 3600
STALLED_AFTER_SECONDS: Final = 10.0
STALLED_CONNECTION_SECONDS: Final = 2.0
CONNECTION_IDLE_SECONDS_MAX: Final = 60.0
GONE_SECONDS_MAX: Final = 23 * 3600.0

_METHODS_NOT_CALLED_FROM_AN_ANSWER: Final = frozenset({"setwebhook", "deletewebhook", "close", "logout"})


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where updates go. Two that are equal are the same webhook."""

    url: str
    secret_token: str = ""
    max_connections: int = 40
    ip_address: str = ""
    has_custom_certificate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One request to make now."""

    webhook: WebhookDelivery
    update: QueuedUpdate
    number: int
    started_at: float


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What came back. No status: the connection failed or nothing came in time."""

    status: int | None
    reason: str = ""
    retry_after_header: str | None = None
    body: bytes = b""
    is_connection_kept: bool = True

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status <= 299


class AttemptOutcome(StrEnum):
    DELIVERED = "delivered"
    RETRIED = "retried"
    DROPPED = "dropped"
    WEBHOOK_DELETED = "webhook_deleted"
    IGNORED = "ignored"
    """The webhook was changed meanwhile; the update goes to the new one or stays."""


@dataclass(slots=True)
class _SubQueue:
    updates: deque[QueuedUpdate] = field(default_factory=deque)
    is_in_flight: bool = False
    failure_count: int = 0
    delay_seconds: float = 1.0

    def next_update(self) -> None:
        self.updates.popleft()
        self.failure_count = 0
        self.delay_seconds = 1.0


@dataclass(slots=True)
class WebhookDelivery:
    """One webhook at work."""

    settings: WebhookSettings
    queue: UpdateQueue
    dice: Dice
    is_closed: bool = False
    last_error_at: float | None = None
    last_error: str = ""
    _sub_queues: dict[str, _SubQueue] = field(default_factory=dict)
    _due: list[tuple[float, int, str]] = field(default_factory=list)
    _idle_since: list[float] = field(default_factory=list)
    _busy_count: int = 0
    _new_connection_at: float = float("-inf")
    _succeeded_at: float = float("-inf")
    _gone_since: float | None = None

    def __post_init__(self) -> None:
        for update in self.queue.pending():
            self.add(update, update.added_at)

    def add(self, update: QueuedUpdate, now: float) -> None:
        """Deliver this one too."""
        sub_queue = self._sub_queues.setdefault(update.sub_queue, _SubQueue())
        sub_queue.updates.append(update)
        if len(sub_queue.updates) == 1:
            self._schedule(update, now)

    def start_due(self, now: float) -> list[Attempt]:
        """The requests to make now. Each must come back through `finish`."""
        if self.is_closed:
            return []
        self.queue.expire(now)
        attempts = []
        while self._skip_to_the_next_pending(now) and self._due[0][0] <= now and self._connect(now):
            _, _, name = heapq.heappop(self._due)
            sub_queue = self._sub_queues[name]
            sub_queue.is_in_flight = True
            update = sub_queue.updates[0]
            update.is_in_flight = True
            attempts.append(Attempt(self, update, sub_queue.failure_count + 1, now))
        return attempts

    def next_due_at(self, now: float) -> float | None:
        """When `start_due` may have something, unless something else happens first."""
        if self.is_closed or not self._skip_to_the_next_pending(now):
            return None
        due_at = self._due[0][0]
        if due_at > now:
            return due_at
        if self._idle_since:
            return now
        if self._busy_count >= self._connection_count_max(now):
            return None
        return max(now, self._opens_connection_at(now))

    def finish(self, attempt: Attempt, answer: WebhookAnswer, now: float) -> AttemptOutcome:
        """Learn what became of a request."""
        if self.is_closed:
            return AttemptOutcome.IGNORED
        self._busy_count -= 1
        if answer.is_connection_kept and answer.status is not None:
            self._idle_since.append(now)
        sub_queue = self._sub_queues[attempt.update.sub_queue]
        sub_queue.is_in_flight = False
        attempt.update.is_in_flight = False
        if answer.is_success:
            self._succeeded_at = now
            self._gone_since = None
            self._end(attempt.update, now)
            self.queue.forget(attempt.update)
            return AttemptOutcome.DELIVERED
        return self._finish_failed(attempt.update, sub_queue, answer, now)

    def close(self) -> None:
        """Stop. What is pending stays pending; requests on their way no longer count."""
        self.is_closed = True
        for sub_queue in self._sub_queues.values():
            for update in sub_queue.updates:
                update.is_in_flight = False

    def _finish_failed(
        self, update: QueuedUpdate, sub_queue: _SubQueue, answer: WebhookAnswer, now: float
    ) -> AttemptOutcome:
        self.last_error_at = now
        self.last_error = (
            answer.reason
            if answer.status is None
            else f"Wrong response from the webhook: {answer.status} {answer.reason}"
        )
        if self._is_gone_for_good(answer, now):
            self._schedule(update, now)
            return AttemptOutcome.WEBHOOK_DELETED
        delay_seconds = self._delay_after_failure(sub_queue, answer)
        if now + delay_seconds > update.expires_at:
            self._end(update, now)
            self.queue.drop(update, DropReason.EXPIRED, now)
            return AttemptOutcome.DROPPED
        sub_queue.failure_count += 1
        self._schedule(update, now + delay_seconds)
        return AttemptOutcome.RETRIED

    def _delay_after_failure(self, sub_queue: _SubQueue, answer: WebhookAnswer) -> float:
        asked_for = retry_after_seconds(answer.retry_after_header) if answer.status is not None else 0
        if asked_for:
            return asked_for
        if sub_queue.failure_count == 0:
            return 0
        sub_queue.delay_seconds = min(sub_queue.delay_seconds * 2, self.dice.randint(60, 120))
        return sub_queue.delay_seconds

    def _is_gone_for_good(self, answer: WebhookAnswer, now: float) -> bool:
        if answer.status != 410:
            # A broken connection says nothing about being gone, so it does not start the count anew.
            if answer.status is not None:
                self._gone_since = None
            return False
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since > GONE_SECONDS_MAX

    def _end(self, update: QueuedUpdate, now: float) -> None:
        sub_queue = self._sub_queues[update.sub_queue]
        sub_queue.next_update()
        if sub_queue.updates:
            self._schedule(sub_queue.updates[0], now)
        else:
            del self._sub_queues[update.sub_queue]

    def _schedule(self, update: QueuedUpdate, at: float) -> None:
        heapq.heappush(self._due, (at, update.sequence, update.sub_queue))

    def _skip_to_the_next_pending(self, now: float) -> bool:
        """Pass over what expired while it waited; whether anything is left to send."""
        while self._due:
            _, sequence, name = self._due[0]
            sub_queue = self._sub_queues.get(name)
            if sub_queue is None or sub_queue.is_in_flight or sub_queue.updates[0].sequence != sequence:
                heapq.heappop(self._due)
            elif sub_queue.updates[0] not in self.queue:
                heapq.heappop(self._due)
                self._end(sub_queue.updates[0], now)
            else:
                return True
        return False

    def _connect(self, now: float) -> bool:
        """Take an idle connection or open one, within what is allowed now."""
        self._idle_since = [at for at in self._idle_since if now - at < CONNECTION_IDLE_SECONDS_MAX]
        if self._idle_since:
            self._idle_since.pop()
        elif self._busy_count < self._connection_count_max(now) and now >= self._opens_connection_at(now):
            self._new_connection_at = now + STALLED_CONNECTION_SECONDS
        else:
            return False
        self._busy_count += 1
        return True

    def _opens_connection_at(self, now: float) -> float:
        return self._new_connection_at if self._is_stalled(now) else now

    def _connection_count_max(self, now: float) -> int:
        return 1 if self._is_stalled(now) else self.settings.max_connections

    def _is_stalled(self, now: float) -> bool:
        return now - self._succeeded_at > STALLED_AFTER_SECONDS


def retry_after_seconds(header: str | None) -> int:
    """The delay that a `Retry-After` asks for; 0 for none, for a date and for anything else."""
    value = (header or "").strip()
    if not value.isascii() or not value.isdigit():
        return 0
    return min(int(value), RETRY_AFTER_SECONDS_MAX)


def called_method(answer: WebhookAnswer) -> tuple[str, dict[str, Any]] | None:
    """The Bot API call that a webhook made by answering with one."""
    if not answer.is_success or not answer.body:
        return None
    try:
        params = json.loads(answer.body)
    except ValueError:
        return None
    if not isinstance(params, dict) or not isinstance(params.get("method"), str):
        return None
    method = params.pop("method")
    if method.lower() in _METHODS_NOT_CALLED_FROM_AN_ANSWER or method.lower().startswith("get"):
        return None
    return method, params

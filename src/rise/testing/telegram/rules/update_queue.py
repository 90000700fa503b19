"""How updates are kept until a bot has taken them: numbered, bounded, and not for ever.

Promises: ids are sequential from a random start; an update is given out until it is confirmed, forgotten or
expired; whatever is lost is listed in `dropped` with the reason. No clock is read here: `now` is passed in,
in seconds since 1970.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

DAY_SECONDS: Final = 86_400.0
WEEK_SECONDS: Final = 7 * DAY_SECONDS

_LIFETIME_SECONDS: Final[dict[str, float]] = {
    "callback_query": 150,
    "shipping_query": 150,
    "pre_checkout_query": 150,
    "inline_query": 30,
    "chosen_inline_result": 600,
    "custom_event": 600,
}
_DATED_BY_SOMETHING_ELSE: Final = frozenset({"business_connection"})
"""Its date says when the connection was made, not when it was changed or ended."""
_BY_CHAT: Final[dict[str, str]] = {
    "message": "messages",
    "edited_message": "messages",
    "channel_post": "messages",
    "edited_channel_post": "messages",
    "my_chat_member": "own_membership",
    "message_reaction": "reactions",
    "message_reaction_count": "reaction_counts",
    "chat_boost": "boosts",
    "removed_chat_boost": "boosts",
    "business_message": "business",
    "edited_business_message": "business",
    "deleted_business_messages": "business",
}
_BY_USER: Final[dict[str, str]] = {
    "inline_query": "inline",
    "chosen_inline_result": "chosen_inline",
    "callback_query": "callbacks",
    "shipping_query": "payments",
    "pre_checkout_query": "payments",
    "chat_join_request": "members",
}


class Dice(Protocol):
    """The little randomness that the rules need; `random.Random` has it."""

    def randint(self, a: int, b: int) -> int: ...


class DropReason(StrEnum):
    """Why the bot never got an update, or never will again."""

    EXPIRED = "expired"
    QUEUE_FULL = "queue_full"
    TOO_LARGE = "too_large"
    NOT_ALLOWED = "not_allowed"
    DROPPED_BY_BOT = "dropped_by_bot"


@dataclass(frozen=True, slots=True)
class UpdateQueueLimits:
    """How much one bot may leave lying. Beyond it, new updates are gone."""

    updates_max: int = 100_000
    bytes_max: int = 128 * 1024 * 1024
    update_bytes_max: int = 512 * 1024


@dataclass(slots=True, eq=False)
class QueuedUpdate:
    """One update, with the exact bytes that the bot will receive."""

    sequence: int
    update_id: int
    kind: str
    sub_queue: str
    body: bytes
    added_at: float
    expires_at: float
    is_in_flight: bool = False


@dataclass(frozen=True, slots=True)
class DroppedUpdate:
    update_id: int | None
    kind: str
    reason: DropReason
    at: float


@dataclass(slots=True)
class UpdateQueue:
    """The updates of one bot, oldest first."""

    dice: Dice
    limits: UpdateQueueLimits = field(default_factory=UpdateQueueLimits)
    dropped: list[DroppedUpdate] = field(default_factory=list)
    _pending: dict[int, QueuedUpdate] = field(default_factory=dict)
    _by_expiry: list[tuple[float, int]] = field(default_factory=list)
    _size_bytes: int = 0
    _next_sequence: int = 0
    _next_update_id: int = 0
    _last_added_at: float = float("-inf")

    def add(self, update: Mapping[str, Any], now: float) -> QueuedUpdate | None:
        """Keep an update, or say in `dropped` why not.

        An `update_id` in it is kept, and numbering goes on from there; without one the next is given.
        """
        self.expire(now)
        kind = kind_of(update)
        content = update.get(kind)
        update_id = update.get("update_id")
        if update_id is None:
            update_id = self._number(now)
        else:
            self._next_update_id = update_id + 1
            self._last_added_at = now
        body = compact_json({"update_id": update_id, **{k: v for k, v in update.items() if k != "update_id"}})
        return self._keep(
            QueuedUpdate(
                sequence=self._next_sequence,
                update_id=update_id,
                kind=kind,
                sub_queue=sub_queue_of(kind, content) or f"alone:{update_id}",
                body=body,
                added_at=now,
                expires_at=expires_at(kind, content, now),
            ),
            now,
        )

    def add_raw(self, body: bytes, now: float, *, sub_queue: str = "raw") -> QueuedUpdate | None:
        """Keep bytes that will be delivered exactly as they are, valid or not, for a day."""
        self.expire(now)
        return self._keep(
            QueuedUpdate(
                sequence=self._next_sequence,
                update_id=self._number(now),
                kind="raw",
                sub_queue=sub_queue,
                body=body,
                added_at=now,
                expires_at=now + DAY_SECONDS,
            ),
            now,
        )

    def pending(self) -> list[QueuedUpdate]:
        return list(self._pending.values())

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, update: QueuedUpdate) -> bool:
        return update.sequence in self._pending

    def forget(self, update: QueuedUpdate) -> None:
        """The bot has it."""
        if self._pending.pop(update.sequence, None) is not None:
            self._size_bytes -= len(update.body)

    def drop(self, update: QueuedUpdate, reason: DropReason, now: float) -> None:
        """The bot will never have it."""
        if update in self:
            self.forget(update)
            self.dropped.append(DroppedUpdate(update.update_id, update.kind, reason, now))

    def drop_all(self, now: float) -> None:
        for update in self.pending():
            self.drop(update, DropReason.DROPPED_BY_BOT, now)

    def refuse(self, kind: str, reason: DropReason, now: float) -> None:
        """Note an update that never became one."""
        self.dropped.append(DroppedUpdate(None, kind, reason, now))

    def expire(self, now: float) -> None:
        """Drop what nobody took in time. One that is on its way right now lives until its answer."""
        on_their_way = []
        while self._by_expiry and self._by_expiry[0][0] <= now:
            entry = heapq.heappop(self._by_expiry)
            update = self._pending.get(entry[1])
            if update is not None and update.is_in_flight:
                on_their_way.append(entry)
            elif update is not None:
                self.drop(update, DropReason.EXPIRED, now)
        for entry in on_their_way:
            heapq.heappush(self._by_expiry, entry)

    def next_expiry_at(self, now: float) -> float | None:
        """When the next update is lost unless somebody takes it."""
        self.expire(now)
        while self._by_expiry and self._by_expiry[0][1] not in self._pending:
            heapq.heappop(self._by_expiry)
        if not self._by_expiry or self._by_expiry[0][0] <= now:
            return None
        return self._by_expiry[0][0]

    def restart_numbering(self) -> None:
        """What a log-out does: the next id is random again."""
        self._last_added_at = float("-inf")

    def _number(self, now: float) -> int:
        if now - self._last_added_at > WEEK_SECONDS and not self._pending:
            self._next_update_id = self.dice.randint(10_000_000, 999_999_999)
        self._last_added_at = now
        update_id = self._next_update_id
        self._next_update_id += 1
        return update_id

    def _keep(self, update: QueuedUpdate, now: float) -> QueuedUpdate | None:
        reason = self._refusal_of(update, now)
        if reason is not None:
            self.dropped.append(DroppedUpdate(update.update_id, update.kind, reason, now))
            return None
        self._next_sequence += 1
        self._pending[update.sequence] = update
        self._size_bytes += len(update.body)
        heapq.heappush(self._by_expiry, (update.expires_at, update.sequence))
        return update

    def _refusal_of(self, update: QueuedUpdate, now: float) -> DropReason | None:
        if update.expires_at <= now:
            return DropReason.EXPIRED
        if len(update.body) > self.limits.update_bytes_max:
            return DropReason.TOO_LARGE
        if len(self._pending) >= self.limits.updates_max:
            return DropReason.QUEUE_FULL
        if self._size_bytes + len(update.body) > self.limits.bytes_max:
            return DropReason.QUEUE_FULL
        return None


def kind_of(update: Mapping[str, Any]) -> str:
    """The name of the one field that is not `update_id`."""
    return next((name for name in update if name != "update_id"), "empty")


def expires_at(kind: str, content: Any, now: float) -> float:
    """When an update that nobody took is gone."""
    if kind in _LIFETIME_SECONDS:
        return now + _LIFETIME_SECONDS[kind]
    if isinstance(content, Mapping) and kind not in _DATED_BY_SOMETHING_ELSE:
        date = content.get("edit_date" if kind.startswith("edited_") else "date")
        if isinstance(date, int | float):
            return date + DAY_SECONDS
    return now + DAY_SECONDS


def sub_queue_of(kind: str, content: Any) -> str | None:
    """The queue within which updates wait for each other; None: it waits for nobody."""
    if not isinstance(content, Mapping):
        return None
    if kind in _BY_CHAT:
        return _named_queue(_BY_CHAT[kind], content.get("chat"))
    if kind in _BY_USER:
        return _named_queue(_BY_USER[kind], content.get("from"))
    if kind == "chat_member":
        member = content.get("new_chat_member")
        return _named_queue("members", member.get("user")) if isinstance(member, Mapping) else None
    if kind == "poll":
        return f"polls:{content.get('id')}"
    if kind == "poll_answer":
        return f"polls:{content.get('poll_id')}"
    if kind == "business_connection":
        return _named_queue("business_connections", content.get("user"))
    return None


def _named_queue(name: str, owner: Any) -> str | None:
    return f"{name}:{owner.get('id')}" if isinstance(owner, Mapping) else None


def compact_json(value: Any) -> bytes:
    """As the real server writes it: no blanks, everything outside ASCII escaped."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")

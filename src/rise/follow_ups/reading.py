"""What people ask for, read strictly: a follow-up, and another moment for one.

Refuses: what could not be said when the time has come, as far as that is known now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from rise.channels import http
from rise.channels.port import Incoming
from rise.chats import ChatRegistry
from rise.clock import Clock, epoch_ms
from rise.envelope import FOLLOW_UP, DeliveryKey, LaneKey, Order, TaskType
from rise.errors import PayloadInvalid
from rise.follow_ups.moments import instant_in, instant_of
from rise.follow_ups.planning import RAW_VERSION, policy_of, waiting_lane
from rise.follow_ups.port import Missed, Plan

_WHEN_FIELDS: Final = ("inSeconds", "at", "timeZone")
_FIELDS: Final = (
    "channel",
    "account",
    "chatId",
    *_WHEN_FIELDS,
    "text",
    "parseMode",
    "buttons",
    "replyTo",
    "workflowId",
    "missed",
    "idempotencyKey",
)


class FollowUpRequest(msgspec.Struct, frozen=True):
    """A request to say something later, read."""

    incoming: Incoming
    idempotency_key: str


def read_follow_up(
    body: bytes,
    *,
    accounts: Mapping[str, Sequence[str]],
    chats: ChatRegistry,
    principal: str,
    key: str | None,
    request_id: str | None,
    trace_id: str | None,
    clock: Clock,
    queue_now_ms: int,
) -> FollowUpRequest:
    """A body of `POST /api/follow-ups`. `queue_now_ms`: the queue waits by its own clock, moments are the wall clock's.

    Raises `ChannelUnknown` (404), `PayloadMalformed` or `PayloadInvalid` with the field.
    """
    fields = http.read_object(body)
    http.refuse_unknown(fields, _FIELDS)
    channel, account = http.sender(fields, accounts)
    chat_id = http.chat_named(fields, channel)
    first_chat_id = chats.first_id(channel, account, chat_id)
    now = clock.now()
    plan = _plan(fields, http.lane_of_chat(channel, account, first_chat_id or chat_id), now)
    workflow_id, reply = _what(fields)
    idempotency_key = http.idempotency_key_of(fields, key)
    due_at_ms = epoch_ms(plan.due_at) + queue_now_ms - epoch_ms(now)
    incoming = Incoming(
        channel=channel,
        account=account,
        source="http-api",
        delivery_key=DeliveryKey(f"fu-api:{principal}:{idempotency_key}"),
        lane=waiting_lane(channel, account, first_chat_id or chat_id),
        # Of one moment the first that was asked for is said first.
        order=Order(max(due_at_ms, queue_now_ms), queue_now_ms),
        raw=body,
        raw_version=RAW_VERSION,
        kind=FOLLOW_UP,
        chat_id=chat_id,
        first_chat_id=first_chat_id,
        message_label=f"{chat_id}:{idempotency_key}",
        user_text=http.optional(fields, "text", str) or "",
        user={"chat_id": chat_id, "user_id": principal},
        metadata={"chat_id": chat_id},
        due_at_ms=due_at_ms,
        task_type=TaskType.FOLLOW_UP,
        workflow_id=workflow_id,
        policy=policy_of(plan, reply),
        request_id=request_id,
        trace_id=trace_id,
    )
    return FollowUpRequest(incoming, idempotency_key)


def read_move(body: bytes, *, clock: Clock) -> Plan:
    """A body of `PATCH /api/follow-ups/{id}`: another moment. Raises as above."""
    fields = http.read_object(body)
    http.refuse_unknown(fields, _WHEN_FIELDS)
    return _plan(fields, LaneKey(""), clock.now())


def _plan(fields: dict[str, Any], lane: LaneKey, now: datetime) -> Plan:
    seconds, at = http.optional(fields, "inSeconds", int, float), http.optional(fields, "at", str)
    if (seconds is None) == (at is None):
        raise PayloadInvalid("say when: either inSeconds or at", field="at")
    time_zone = http.optional(fields, "timeZone", str)
    if at is None and time_zone is not None:
        raise PayloadInvalid("timeZone is how at is read: inSeconds has none", field="timeZone")
    due_at = instant_of(at, time_zone, now=now) if at is not None else instant_in(float(seconds), now=now)
    return Plan(due_at=due_at, at=at, time_zone=time_zone, missed=_missed(fields), lane=lane)


def _missed(fields: dict[str, Any]) -> Missed:
    asked = http.optional(fields, "missed", str)
    if asked is None:
        return Missed.FIRE
    if asked not in list(Missed):
        raise PayloadInvalid(f"missed is one of {', '.join(Missed)}", field="missed")
    return Missed(asked)


def _what(fields: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """The workflow to run, or the reply to say."""
    workflow_id = http.workflow_asked_for(fields)
    if workflow_id is None:
        return None, http.reply_asked_for(fields)
    for name in ("parseMode", "buttons", "replyTo"):
        if fields.get(name) is not None:
            raise PayloadInvalid(f"{name} is for what is said as it is: a workflow says its own", field=name)
    text = http.optional(fields, "text", str) or ""
    if len(text) > http.MESSAGE_CHARS_MAX:
        raise PayloadInvalid(f"text has more than {http.MESSAGE_CHARS_MAX} characters", field="text")
    return workflow_id, None

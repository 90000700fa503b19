"""A follow-up as a delivery: the one that waits, the one that it becomes, and the next when it is moved.

Promises: each has a key made from what it comes from, so that accepting it again changes nothing. What waits stands
in a lane that its chat's follow-ups share, by its moment: it holds up neither the chat nor one that is due earlier.

Refuses: to keep time, and to write anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec

from rise.channels.http import lane_of_chat
from rise.channels.port import Incoming
from rise.clock import epoch_ms, from_epoch_ms
from rise.envelope import (
    FOLLOW_UP,
    DeliveryKey,
    Head,
    LaneKey,
    Order,
    RunId,
    Task,
    TaskId,
    TaskType,
    encode_json,
    task_id_of,
)
from rise.follow_ups.port import FollowUpId, Plan

RAW_VERSION: Final = "follow-up.v1"
_CLOCKS_APART_MS: Final = 3_600_000
_PLAN: Final = "followUp"
"""Where the plan stands in the policy of what waits for it."""
_PLANNED_BY: Final = "plannedBy"
"""Where that stands in the policy of a text."""


def planned_by(head: Head) -> str | None:
    """The workflow that planned this text, without which nobody would say it."""
    return head.policy.get(_PLANNED_BY) if head.task_type is TaskType.MESSAGE_SEND else None


def follow_up(
    task: Task, number: int, plan: Mapping[str, Any], saved_at_ms: int, *, by: str | None, ahead_ms: int = 0
) -> Incoming:
    """What the `number`-th follow-up of a run `by` a workflow becomes, once the run's result is frozen.

    `saved_at_ms`: when that was, by the queue's clock. `ahead_ms`: of the wall clock, the queue's: a moment that is
    named is one of the wall clock's, and the queue waits by its own.
    """
    if task.head.task_type is TaskType.FOLLOW_UP:
        return _fired(task)
    head = task.head
    key = f"fu:{task.run_id}:{number}"
    due_at_ms = plan["atMs"] + ahead_ms if "atMs" in plan else saved_at_ms + int(plan["inSeconds"] * 1000)
    workflow = plan.get("workflow")
    planned = Plan(due_at=from_epoch_ms(due_at_ms - ahead_ms), lane=_chats_lane(head))
    return Incoming(
        channel=head.channel,
        account=head.account,
        source=FOLLOW_UP,
        delivery_key=DeliveryKey(key),
        lane=waiting_lane(head.channel, head.account, head.conversation or task.run_id),
        order=Order(max(due_at_ms, saved_at_ms), number),
        raw=encode_json(plan),
        raw_version=RAW_VERSION,
        kind=FOLLOW_UP,
        chat_id=head.chat_id,
        first_chat_id=head.first_chat_id,
        message_label=f"{head.chat_id}:{key}",
        user_text=plan["text"],
        user=head.user,
        metadata=head.metadata,
        due_at_ms=due_at_ms,
        task_type=TaskType.FOLLOW_UP,
        workflow_id=f"wf_{workflow}" if workflow else None,
        policy=policy_of(planned, None) if workflow else policy_of(planned, {"text": plan["text"]}) | {_PLANNED_BY: by},
        trace_id=head.trace_id,
    )


def _fired(task: Task) -> Incoming:
    """What a follow-up says, now that its moment has come: it takes its turn in its chat, as any message does."""
    head = task.head
    key = fired_key(task.run_id)
    return Incoming(
        channel=head.channel,
        account=head.account,
        source=FOLLOW_UP,
        delivery_key=key,
        lane=plan_of(head).lane,
        raw=task.raw,
        raw_version=head.raw_version,
        kind=FOLLOW_UP,
        chat_id=head.chat_id,
        first_chat_id=head.first_chat_id,
        message_label=f"{head.chat_id}:{key}",
        user_text=head.user_text,
        user=head.user,
        metadata=head.metadata,
        task_type=TaskType.WORKFLOW_EXECUTE if head.workflow_id else TaskType.MESSAGE_SEND,
        workflow_id=head.workflow_id,
        policy={name: value for name, value in head.policy.items() if name != _PLAN},
        trace_id=head.trace_id,
    )


def moved(task: Task, plan: Plan, *, now_ms: int, ahead_ms: int) -> Incoming:
    """The same for another moment: the next planning of it, in the place of this one. `now_ms`: the queue's."""
    head, former = task.head, plan_of(task.head)
    follow_up_id, number = id_of(head), former.number + 1
    key = planning_key(follow_up_id, number)
    due_at_ms = epoch_ms(plan.due_at) + ahead_ms
    planned = msgspec.structs.replace(plan, missed=former.missed, lane=former.lane, id=follow_up_id, number=number)
    return Incoming(
        channel=head.channel,
        account=head.account,
        source=FOLLOW_UP,
        delivery_key=key,
        lane=head.lane,
        order=Order(max(due_at_ms, now_ms), head.order.seq),
        raw=task.raw,
        raw_version=head.raw_version,
        kind=FOLLOW_UP,
        chat_id=head.chat_id,
        first_chat_id=head.first_chat_id,
        message_label=f"{head.chat_id}:{key}",
        user_text=head.user_text,
        user=head.user,
        metadata=head.metadata,
        due_at_ms=due_at_ms,
        task_type=TaskType.FOLLOW_UP,
        workflow_id=head.workflow_id,
        policy=head.policy | policy_of(planned, None),
        trace_id=head.trace_id,
    )


def policy_of(plan: Plan, reply: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the head of what waits keeps: the plan, and what is to be said if no workflow is to be run."""
    kept = {_PLAN: msgspec.to_builtins(plan)}
    return kept if reply is None else kept | {"reply": dict(reply)}


def plan_of(head: Head) -> Plan:
    return msgspec.convert(head.policy[_PLAN], Plan)


def id_of(head: Head) -> FollowUpId:
    """Whose planning this is."""
    return plan_of(head).id or FollowUpId(head.task_id)


def planning_id(follow_up_id: FollowUpId, number: int) -> TaskId:
    """The task that waits for it after so many moves."""
    return task_id_of(planning_key(follow_up_id, number)) if number else TaskId(follow_up_id)


def planning_key(follow_up_id: FollowUpId, number: int) -> DeliveryKey:
    return DeliveryKey(f"fu:{follow_up_id}:{number}")


def fired_key(run_id: RunId) -> DeliveryKey:
    """Of what the run of a planning has accepted: its only follow-up."""
    return DeliveryKey(f"fu:{run_id}:0")


def waiting_lane(channel: str, account: str, conversation: str) -> LaneKey:
    """Where a chat's follow-ups wait for their moments."""
    return LaneKey(f"fu:{channel}:{account}:{conversation}")


def is_earlier_ones(accepted_at_ms: int, first_at_ms: int) -> bool:
    """Whether a planning that was accepted then is of an earlier follow-up, of whose first planning the key was used
    again since: it came before its first, by more than clocks are apart."""
    return accepted_at_ms < first_at_ms - _CLOCKS_APART_MS


def late_by(head: Head, now_ms: int) -> timedelta:
    """How long it has been due, by the queue's clock; what was due when it was planned counts from then."""
    return timedelta(milliseconds=max(0, now_ms - head.order.at_ms))


def _chats_lane(head: Head) -> LaneKey:
    """The chat's, thread included; not the one of a tap, whose answer waits for nobody."""
    if head.chat_id is None:
        return head.lane
    whole = lane_of_chat(head.channel, head.account, head.conversation or head.chat_id)
    chat, _, thread = whole.rpartition(":")
    is_threads = thread == "0" and head.lane.rpartition(":")[0] == chat and head.lane.rpartition(":")[2].isdecimal()
    return head.lane if is_threads else whole

"""Messages promised for later: what a run planned becomes a delivery of its own, through the same door.

Promises: its key is the run's, so arming it again changes nothing as long as keys are remembered, and the run notes
that it is armed; what one run planned is said in the order of its moments, in a lane that holds up no chat.

Refuses: to keep time. The queue holds it until its moment, like any task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rise.channels.port import Incoming
from rise.envelope import DeliveryKey, LaneKey, Order, Task, TaskType, encode_json

FOLLOW_UP: Final = "follow_up"
"""The kind of effect, and of the delivery it becomes."""


def follow_up(task: Task, number: int, plan: Mapping[str, Any], saved_at_ms: int, *, ahead_ms: int = 0) -> Incoming:
    """The `number`-th follow-up of a run. Named after the run, so that arming it again changes nothing.

    It waits in a lane of its run's own: what is due in a week must not hold up the chat until then. There it stands by
    its moment, then by its number, so that it never waits behind one that is due later. `ahead_ms`: of the wall clock,
    the queue's: a moment that is named is one of the wall clock's, and the queue waits by its own.
    """
    head = task.head
    lane = f"fu:{task.run_id}"
    key = f"{lane}:{number}"
    due_at_ms = plan["atMs"] + ahead_ms if "atMs" in plan else saved_at_ms + int(plan["inSeconds"] * 1000)
    workflow = plan.get("workflow")
    return Incoming(
        channel=head.channel,
        account=head.account,
        source=FOLLOW_UP,
        delivery_key=DeliveryKey(key),
        lane=LaneKey(lane),
        order=Order(due_at_ms, number),
        raw=encode_json(plan),
        raw_version="follow-up.v1",
        kind=FOLLOW_UP,
        chat_id=head.chat_id,
        first_chat_id=head.first_chat_id,
        message_label=f"{head.chat_id}:{key}",
        user_text=plan["text"],
        user=head.user,
        metadata=head.metadata,
        due_at_ms=due_at_ms,
        task_type=TaskType.WORKFLOW_EXECUTE if workflow else TaskType.MESSAGE_SEND,
        workflow_id=f"wf_{workflow}" if workflow else None,
        policy={} if workflow else {"reply": {"text": plan["text"]}},
        trace_id=head.trace_id,
    )

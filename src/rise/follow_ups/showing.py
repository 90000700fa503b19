"""A follow-up as people and programs see it.

Promises: the same fields, in the same words, over HTTP and on the command line. `at` and `timeZone` are as
they were asked for; other moments are UTC, in ISO 8601.
"""

from __future__ import annotations

from typing import Any

from rise.clock import from_epoch_ms, iso
from rise.follow_ups.port import FollowUp


def shown(one: FollowUp) -> dict[str, Any]:
    """All that is known of it."""
    plan = one.plan
    return {
        "followUpId": one.follow_up_id,
        "status": one.status,
        "channel": one.channel,
        "account": one.account,
        "chatId": one.chat_id,
        "dueAt": iso(plan.due_at),
        "at": plan.at,
        "timeZone": plan.time_zone,
        "missed": plan.missed,
        "text": one.text,
        "workflowId": one.workflow_id,
        "moves": plan.number,
        "createdAt": iso(from_epoch_ms(one.created_at_ms)),
        "firedTaskId": one.fired_task_id,
        "endedBy": one.by or None,
        "why": one.why or None,
    }

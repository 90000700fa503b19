"""Where a follow-up waits, and where what it says takes its turn."""

from __future__ import annotations

import pytest

from rise.clock import from_epoch_ms
from rise.envelope import DeliveryKey, Head, LaneKey, Order, Progress, Status, Task, TaskType, task_id_of
from rise.follow_ups.planning import follow_up, id_of, moved, plan_of
from rise.follow_ups.port import Missed, Plan

KEY = DeliveryKey("tg:7:u:1")
DAY_MS = 86_400_000


def task_in(lane: str, *, channel: str = "telegram", chat_id: str | None = "42", **fields: object) -> Task:
    head = Head(
        task_id=task_id_of(KEY),
        delivery_key=KEY,
        channel=channel,
        account="7",
        source="webhook",
        lane=LaneKey(lane),
        order=Order(1, 1),
        accepted_at_ms=1,
        request_id="r",
        trace_id="r",
        idempotency_key="k",
        chat_id=chat_id,
        **fields,  # type: ignore[arg-type]
    )
    return Task(head, b"{}", Progress(status=Status.PROCESSING))


@pytest.mark.req("TMP-3", "QUE-2")
@pytest.mark.parametrize(
    ("lane", "fields", "expected"),
    [
        ("tg:7:42:0", {}, "tg:7:42:0"),
        ("tg:7:42:17", {}, "tg:7:42:17"),
        ("tg:7:42:u5:callback", {}, "tg:7:42:0"),
        ("tg:7:u5:inline", {}, "tg:7:42:0"),
        ("tg:7:-4:17", {"chat_id": "-1004", "first_chat_id": "-4"}, "tg:7:-4:17"),
        ("web:7:s-1", {"channel": "webchat", "chat_id": "s-1"}, "web:7:s-1"),
        ("http:7:c-1", {"channel": "http", "chat_id": "c-1"}, "http:7:c-1"),
    ],
)
def test_what_a_run_promised_takes_its_turn_in_its_chat_and_thread(lane: str, fields: dict[str, str], expected: str):
    incoming = follow_up(task_in(lane, **fields), 0, {"text": "x", "inSeconds": 5}, 1000, by="wf_bot")
    assert incoming.task_type is TaskType.FOLLOW_UP
    assert plan_of_policy(incoming.policy).lane == expected
    assert incoming.lane.startswith("fu:"), "until then it waits beside it"


@pytest.mark.req("TMP-3")
def test_a_planning_that_is_moved_keeps_all_but_its_moment():
    lane = "fu:telegram:7:42"
    plan = {"dueAt": "1970-01-02T00:00:00Z", "lane": "tg:7:42:0", "missed": "skip"}
    policy = {"followUp": plan, "reply": {"text": "x"}}
    first = task_in(lane, task_type=TaskType.FOLLOW_UP, policy=policy)
    later = at(DAY_MS * 3)
    second = moved(first, later, now_ms=1000, ahead_ms=500)
    kept = plan_of_policy(second.policy)
    assert (kept.id, kept.number) == (id_of(first.head), 1)
    assert (kept.missed, kept.lane) == (Missed.SKIP, "tg:7:42:0")
    assert kept.due_at == later.due_at
    assert second.due_at_ms == DAY_MS * 3 + 500
    assert (second.lane, second.policy["reply"]) == (lane, {"text": "x"})
    past = moved(first, at(0), now_ms=1000, ahead_ms=0)
    assert past.order is not None
    assert past.order.at_ms == 1000, "what is past is due since it was moved, and is not missed"


def at(due_at_ms: int) -> Plan:
    return Plan(due_at=from_epoch_ms(due_at_ms), lane=LaneKey(""))


def plan_of_policy(policy: dict[str, object]) -> Plan:
    return plan_of(task_in("x", policy=policy).head)

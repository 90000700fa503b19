"""States only move up, what was said first stays, and it does not matter in which order hosts hear of things.

Most of this is SQL (`ledger/sqlite.py`, `queue/sqlite.py`), so it is tried on a real file; the rest are the few places
where states meet in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count, permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, JSON, tried

from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.channels.port import Incoming, understood
from rise.connections.sqlite import Database
from rise.envelope import Order, Outcome, Progress, Reason, Status, Task
from rise.ledger.port import Again, Failed, HeldUnknown, ReplyState, Resend, Run, RunResult, Sent
from rise.ledger.sqlite import SCHEMA, SqliteLedger
from rise.stories import TaskStory
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import chunks
from rise.testing.conformance.queue import delivery

FINISHED = [status for status in Status if status.is_finished]
RANK = {Status.REPLYING: 1, **dict.fromkeys(FINISHED, 2)}

# --- a run ------------------------------------------------------------------------------------------------------

FAILURES = [Failed("no"), Failed("gone", chat_gone=True), Failed("late", too_late=True)]
DELIVERIES = [Sent("1"), *FAILURES, Again(0.0, "x"), Resend("x"), HeldUnknown("x")]
STEPS = st.one_of(
    st.tuples(st.just("save"), st.integers(0, 3), st.booleans(), JSON),
    st.tuples(st.just("finish"), st.sampled_from(FINISHED), st.sampled_from([None, *Outcome])),
    st.tuples(st.just("send"), st.sampled_from(DELIVERIES)),
    st.tuples(st.just("rearm")),
)
numbers = count(1)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    database = Database(tmp_path / "rise.db", clock=ManualClock(), schema={"ledger": SCHEMA})
    await database.open()
    yield SqliteLedger(database)
    await database.close()


async def take_step(ledger: SqliteLedger, fence: int, task: Task, step: tuple[Any, ...]) -> None:
    match step:
        case "save", replies, deliver, value:
            result = RunResult(outcome=Outcome.ANSWERED, value=value)
            await ledger.save_result(task, result, chunks(task, replies), [], deliver=deliver)
        case "finish", status, outcome:
            await ledger.finish(task, status, outcome, by="ann", why=f"{status}")
        case "send", how:
            for reply in await ledger.outbox_take(fence, limit=10):
                if reply.state is ReplyState.READY:
                    await ledger.outbox_sending(fence, reply)
                following = (await ledger.outbox_record(fence, reply, how)).next
                if following is not None:
                    await ledger.outbox_release(fence, following, seconds=0)
        case ("rearm",):
            await ledger.outbox_rearm(task.run_id)


def assert_moved_up(before: Run | None, after: Run | None) -> None:
    if before is None:
        return
    assert after is not None
    assert RANK[after.status] >= RANK[before.status]
    assert after.result == before.result
    if before.status.is_finished:
        assert after == before


@pytest.mark.req("OUT-1")
@pytest.mark.failure("F8", "H8", "I5")
@given(steps=st.lists(STEPS, min_size=1, max_size=8))
@tried(150)
async def test_a_run_only_moves_up_its_first_result_and_its_first_end_stay(ledger: SqliteLedger, steps):
    task = Task(delivery(next(numbers), chat="1").head, b"{}", Progress(status=Status.PROCESSING))
    fence, before = await ledger.outbox_open(), None
    for step in steps:
        await take_step(ledger, fence, task, step)
        after = await ledger.run(task.run_id)
        assert_moved_up(before, after)
        # Said twice, by a worker that died before it knew, changes nothing.
        if step[0] != "send":
            await take_step(ledger, fence, task, step)
            assert await ledger.run(task.run_id) == after
        before = after
    if before is not None and before.status.is_finished:
        open_replies = [one for one in await ledger.replies(run_id=task.run_id) if one.state is ReplyState.READY]
        assert open_replies == []
    await ledger.finish(task, Status.DROPPED)  # the next one finds nothing of it to send


@given(st.sampled_from(list(Status)), st.none() | st.sampled_from([*FINISHED, Status.REPLYING]))
@tried(60)
def test_what_the_ledger_calls_finished_is_finished_whatever_the_queue_still_says(queued: Status, kept: Status | None):
    task = Task(delivery(1).head, b"{}", Progress(status=queued))
    run = kept and Run(
        task_id=task.task_id, generation=0, status=kept, outcome=None, result=None, workflow_id=None, saved_at_ms=0,
        finished_at_ms=None,
    )  # fmt: skip
    shown = TaskStory(task, run, [], []).status
    assert shown is (kept if kept in FINISHED else queued)


# --- a place in a lane ------------------------------------------------------------------------------------------

ORDERS = st.builds(Order, st.integers(0, 3), st.integers(-2, 2)) | st.builds(Order, st.integers(), st.integers())


@pytest.mark.req("QUE-2")
@pytest.mark.failure("A9", "A10")
@given(st.lists(ORDERS, min_size=1, max_size=4))
@tried(300)
def test_the_newest_of_a_lane_is_the_same_in_whatever_order_they_came(orders: list[Order]):
    """It is what `max` makes of them one by one: commutative, associative, and again changes nothing."""
    newest = max(orders)
    for arrived in permutations(orders):
        so_far = arrived[0]
        for order in arrived:
            so_far = max(so_far, order)
        assert so_far == max(newest, so_far) == newest
    assert sorted(orders) == sorted(orders, key=msgspec.structs.astuple)
    assert [msgspec.json.decode(msgspec.json.encode(order), type=Order) for order in orders] == orders


# --- what was accepted unread -----------------------------------------------------------------------------------

READINGS = st.builds(
    lambda kind, chat_id, text, notifiable, error: Incoming(
        channel="telegram", account="7", source="x", delivery_key="k", lane="l", raw=b"", raw_version="tg.v1",
        kind=kind, chat_id=chat_id, user_text=text, notifiable=notifiable, error=error,
        suspend=None if error is None else Reason.RAW_PAYLOAD_INVALID,
    ),
    ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT, st.booleans(), st.none() | ANY_TEXT,
)  # fmt: skip


@pytest.mark.failure("B11")
@given(READINGS, READINGS)
@tried(200)
def test_reading_again_is_the_same_however_often_and_keeps_name_and_place(first: Incoming, second: Incoming):
    head = delivery(1).head
    read = understood(understood(head, first), second)
    assert read == understood(head, second) == understood(read, second)
    assert (read.task_id, read.delivery_key, read.lane, read.order) == (
        head.task_id, head.delivery_key, head.lane, head.order,
    )  # fmt: skip


# --- what can be done now ---------------------------------------------------------------------------------------

SAID = st.lists(
    st.tuples(st.sampled_from(["disk", "pipeline", "telegram"]), st.sampled_from(list(CapabilityStatus))), max_size=6
)
WORSE = ["ok", "degraded", "unavailable"]


def overall(said: list[tuple[str, CapabilityStatus]]) -> str:
    registry = CapabilityRegistry(ManualClock())
    for name, status in said:
        registry.set(name, status)
    return registry.overall()


@pytest.mark.req("CAP-6")
@given(SAID, st.randoms(use_true_random=False))
@tried(300)
def test_the_front_of_the_house_says_the_same_in_whatever_order_it_heard(said, random):
    latest = list(dict(said).items())
    shuffled = latest.copy()
    random.shuffle(shuffled)
    assert overall(said) == overall(latest) == overall(shuffled) == overall(shuffled * 2)


@pytest.mark.req("CAP-6")
@given(SAID, st.sampled_from(["disk", "pipeline", "telegram"]))
@tried(300)
def test_something_getting_worse_never_makes_the_whole_look_better(said, name: str):
    known = dict(said)
    words = [overall([*known.items(), (name, status)]) for status in CapabilityStatus]
    assert [WORSE.index(word) for word in words] == sorted(WORSE.index(word) for word in words)

"""Asked for from outside: a follow-up fires once whatever dies, is moved or cancelled or fires, and says which."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pipeline_stage import Killed, Process, Stage

import rise
from rise.envelope import Status, TaskId
from rise.errors import StateConflict, TaskUnknown
from rise.follow_ups.port import FollowUp, FollowUpId, FollowUpStatus, ListedStatus
from rise.follow_ups.queued import QueuedFollowUps
from rise.follow_ups.reading import read_follow_up, read_move
from rise.queue.port import QueueLimits
from rise.runtime.operations import Operations
from rise.testing.fakes.timers import FakeTimers
from rise.worker import WorkerLimits

pytestmark = pytest.mark.parametrize("kept_by", ["queue", "timers"], indirect=True)

MINUTE = 60
HOUR = 3600
DAY = 86400


@pytest.fixture(autouse=True)
def kept_by(request: pytest.FixtureRequest, stage: Stage) -> str:
    """Who keeps the time: the queue, or timers that ring where workers are, as Temporal's do."""
    if request.param == "timers":
        stage.timers = FakeTimers(stage.clock)
    return str(request.param)


@rise.workflow("echoes", channels=["telegram"])
async def echoes(turn: rise.Turn) -> None:
    await turn.reply(f"echo {turn.text}")


async def plan(
    stage: Stage, text: str, seconds: float, *, chat: int = 42, by: Process | None = None, **fields: Any
) -> FollowUpId:
    body = {
        "channel": "telegram",
        "account": stage.account,
        "chatId": chat,
        "inSeconds": seconds,
        "text": text,
    } | fields
    process = by or stage._a_living_process()
    asked = read_follow_up(
        json.dumps(body).encode(),
        accounts={"telegram": [stage.account]},
        chats=process.chats,
        principal="test",
        key=None,
        request_id=None,
        trace_id=None,
        clock=stage.clock,
        queue_now_ms=stage.queue.now_ms(),
    )
    return FollowUpId((await process.intake.accept(asked.incoming)).task_id)


def of(stage: Stage, process: Process | None = None) -> QueuedFollowUps:
    by = process or stage._a_living_process()
    operations = Operations(by.queue, by.ledger, by.bus, stage.clock)
    return QueuedFollowUps(by.queue, by.ledger, stage.clock, accept=by.intake.accept, drop=operations.drop)


async def move(stage: Stage, one: FollowUpId, seconds: float, process: Process | None = None) -> FollowUp:
    to = read_move(json.dumps({"inSeconds": seconds}).encode(), clock=stage.clock)
    return await of(stage, process).move(one, to, who="olga")


async def look(stage: Stage, one: FollowUpId) -> FollowUp:
    return await of(stage).get(one)


async def fired(stage: Stage, one: FollowUpId) -> TaskId:
    async def has_fired() -> TaskId | None:
        return (await look(stage, one)).fired_task_id

    found: TaskId = await stage.until(has_fired)
    return found


async def said(stage: Stage, count: int) -> list[str]:
    """Wait until people have seen so many. Time goes on: after a leap of it the sender takes its place anew."""
    for _ in range(30):
        if len(stage.telegram.sent) >= count:
            return [message.text for message in stage.telegram.sent]
        await stage.pass_time(0.5)
        try:
            await stage.telegram.wait_until(lambda telegram: len(telegram.sent) >= count, timeout_seconds=0.2)
        except TimeoutError:
            continue
    raise AssertionError(f"said only {len(stage.telegram.sent)} of {count}; {await stage.report()}")


async def over(stage: Stage) -> None:
    """Wait until nothing is open any more."""
    for _ in range(60):
        if not await stage.open_count():
            return
        await stage.pass_time(1)
    raise AssertionError(await stage.report())


# --- firing -----------------------------------------------------------------------------------------------


@pytest.mark.req("TMP-3", "TMP-5")
async def test_what_was_asked_for_is_said_at_its_moment_and_listed_until_then(stage: Stage):
    await stage.start(echoes)
    later, sooner = await plan(stage, "later", 2 * MINUTE), await plan(stage, "sooner", MINUTE)
    other = await plan(stage, "other", DAY, chat=7)
    page = await of(stage).page({}, status=None, limit=10)
    assert {row.follow_up_id for row in page.rows} == {later, sooner, other}
    lane = {"channel": "telegram", "account": stage.account, "chat_id": "7"}
    assert [row.follow_up_id for row in (await of(stage).page(lane, status=ListedStatus.PLANNED, limit=10)).rows] == [
        other
    ]
    of_chat = await of(stage).page(lane | {"chat_id": "42"}, status=None, limit=10)
    assert {row.follow_up_id for row in of_chat.rows} == {later, sooner}
    await stage.pass_time(MINUTE - 1)
    assert stage.texts() == []
    await stage.pass_time(2)
    assert await said(stage, 1) == ["sooner"]
    await stage.pass_time(MINUTE)
    assert await said(stage, 2) == ["sooner", "later"]
    await stage.ended(await fired(stage, later))
    assert (await look(stage, later)).status is FollowUpStatus.FIRED
    assert (await stage.queue.depth()).out_of_order == 0


@pytest.mark.req("TMP-3", "QUE-2")
async def test_what_fires_takes_its_turn_in_its_chat(stage: Stage):
    begun, going_on = asyncio.Event(), asyncio.Event()

    @rise.workflow("slow", channels=["telegram"])
    async def slow(turn: rise.Turn) -> None:
        begun.set()
        if turn.text == "first":
            await going_on.wait()
        await turn.reply(f"{turn.kind} {turn.text}")

    await stage.start(slow)
    waiting = await plan(stage, "second", 5, workflowId="wf_slow")
    await stage.write("first")
    await begun.wait()
    await stage.pass_time(6)
    await fired(stage, waiting)
    await stage.let_go_on()
    assert stage.texts() == [], "it waits behind the message that its chat is still answered"
    going_on.set()
    assert await said(stage, 2) == ["message first", "follow_up second"]


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU3", "FU6")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize(
    "step", ["queue.claim", "ledger.save_result", "queue.enqueue", "ledger.note_armed", "queue.settle"]
)
async def test_a_worker_killed_while_it_fires_says_it_once(stage: Stage, step: str, edge: Any):
    gateway = await stage.start_gateway()
    one = await plan(stage, "don't forget", MINUTE)
    await stage.pass_time(MINUTE + 1)
    worker = stage.new_worker(echoes)
    worker.die_at(step, edge)
    await stage.start_new_worker(worker, echoes)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["don't forget"]
    await stage.ended(await fired(stage, one))
    await over(stage)
    assert stage.texts() == ["don't forget"]


@pytest.mark.req("TMP-5")
async def test_two_workers_say_each_once(stage: Stage):
    await stage.start(echoes)
    await stage.start_worker(echoes)
    expected = sorted(f"{chat}: {number}" for chat in range(1, 6) for number in range(6))
    for chat in range(1, 6):
        for number in range(6):
            await plan(stage, f"{chat}: {number}", 5 + number % 2, chat=chat)
    await stage.pass_time(10)
    await said(stage, len(expected))
    await over(stage)
    assert sorted(message.text for message in stage.telegram.sent) == expected


@pytest.mark.req("TMP-5")
@pytest.mark.failure("FU8")
async def test_a_thousand_that_are_due_at_the_same_second_are_said_once_each_within_the_limits(stage: Stage):
    gateway = await stage.start_gateway()
    count = 1000
    for number in range(count):
        await plan(stage, f"{number}", MINUTE, chat=1 + number % 250, by=gateway)
    worker = await stage.start_worker(echoes)
    assert (await stage.queue.depth()).planned == count
    most_claimed = 0

    async def claimed() -> None:
        nonlocal most_claimed
        most_claimed = max(most_claimed, (await stage.queue.depth()).lanes_claimed)

    worker.at("ledger.save_result", "before", claimed, times=count)
    await stage.pass_time(MINUTE + 1)
    async with asyncio.timeout(240):
        while len(stage.telegram.sent) < count:
            await stage.pass_time(0.5)
    assert len({message.text for message in stage.telegram.sent}) == len(stage.telegram.sent) == count
    assert 0 < most_claimed <= stage.worker_limits.concurrency
    assert max(stage.out_max.values()) == 1


@pytest.mark.req("TMP-3", "TMP-5", "QUE-2")
@pytest.mark.failure("FU8")
async def test_follow_ups_that_take_long_to_run_leave_places_for_who_writes_however_long_they_have_been_due(
    stage: Stage,
):
    """As those do that ask a model. One place is free at a time, so of four that become free three are for people."""
    count, order, going_on = 40, list[str](), asyncio.Semaphore(0)

    @rise.workflow("thinks", channels=["telegram"])
    async def thinks(turn: rise.Turn) -> None:
        order.append(turn.text)
        await going_on.acquire()
        await turn.reply(turn.text)

    stage.worker_limits = WorkerLimits(run_seconds=1e6, concurrency=1)
    gateway = await stage.start_gateway()
    for number in range(count):
        await plan(stage, f"reminder {number}", MINUTE, chat=100 + number, by=gateway, workflowId="wf_thinks")
    await stage.pass_time(MINUTE + 1)
    await stage.start_worker(thinks)

    async def begun(number: int) -> None:
        async def has() -> bool:
            stage.nudge()
            return len(order) >= number

        await stage.until(has)

    await begun(1)
    await stage.pass_time(HOUR)
    for number in range(6):
        await stage.write(f"person {number}", chat=number + 1)
    while sum(text.startswith("person") for text in order) < 6:
        going_on.release()
        await begun(len(order) + 1)
    assert len(order) <= 1 + 6 + 3, "one of four is a reminder"
    assert [text for text in order if text.startswith("person")] == [f"person {number}" for number in range(6)]
    for _ in range(count + 6):
        going_on.release()
    await over(stage)
    assert sorted(stage.texts(100)) == ["reminder 0"]
    assert len(stage.telegram.sent) == count + 6


# --- moving -----------------------------------------------------------------------------------------------


@pytest.mark.req("TMP-3", "TMP-5")
async def test_one_that_is_moved_fires_at_the_new_moment_only_earlier_or_later(stage: Stage):
    await stage.start(echoes)
    delayed, hastened = await plan(stage, "delayed", MINUTE), await plan(stage, "hastened", HOUR, chat=7)
    assert (await move(stage, delayed, HOUR)).plan.number == 1
    await move(stage, delayed, 2 * HOUR)
    await move(stage, hastened, MINUTE)
    assert [row.follow_up_id for row in (await of(stage).page({}, status=None, limit=10)).rows] != []
    await stage.pass_time(MINUTE + 1)
    assert await said(stage, 1) == ["hastened"]
    await stage.pass_time(HOUR + 1)
    await stage.let_go_on()
    assert len(stage.telegram.sent) == 1
    await stage.pass_time(HOUR + 1)
    assert await said(stage, 2) == ["hastened", "delayed"]
    await over(stage)
    assert (await look(stage, delayed)).status is FollowUpStatus.FIRED
    with pytest.raises(StateConflict, match="fired"):
        await move(stage, delayed, HOUR)


STEPS_OF_A_MOVE = ["queue.enqueue", "ledger.finish", "queue.cancel", "ledger.record_operation"]


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU3")
@pytest.mark.parametrize("to", [10, HOUR])
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_MOVE)
async def test_whoever_dies_while_moving_one_it_fires_once(stage: Stage, step: str, edge: Any, to: float):
    await stage.start(echoes)
    one = await plan(stage, "don't forget", MINUTE)
    mover = await stage.start_gateway(sends=False)
    mover.die_at(step, edge)
    with pytest.raises(Killed):
        await move(stage, one, to, mover)
    for seconds in (11, MINUTE, HOUR, HOUR):
        await stage.pass_time(seconds)
        await stage.let_go_on()
    await said(stage, 1)
    await over(stage)
    assert stage.texts() == ["don't forget"]
    assert (await look(stage, one)).status is FollowUpStatus.FIRED or step != "queue.enqueue"


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.parametrize("to", [10, HOUR])
@pytest.mark.parametrize("step", STEPS_OF_A_MOVE)
async def test_a_move_that_is_said_again_after_a_crash_holds(stage: Stage, step: str, to: float):
    await stage.start(echoes)
    one = await plan(stage, "don't forget", MINUTE)
    mover = await stage.start_gateway(sends=False)
    mover.die_at(step, "after")
    with pytest.raises(Killed):
        await move(stage, one, to, mover)
    await move(stage, one, to)
    await stage.pass_time(11)
    await stage.let_go_on()
    await stage.pass_time(MINUTE)
    await stage.let_go_on()
    await said(stage, int(to == 10))
    assert len(stage.texts()) == int(to == 10)
    await stage.pass_time(HOUR)
    assert await said(stage, 1) == ["don't forget"]
    await over(stage)
    assert stage.texts() == ["don't forget"]


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU6")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", ["ledger.save_result", "queue.enqueue", "ledger.note_armed", "queue.settle"])
async def test_one_that_is_moved_while_it_fires_fires_once_and_the_mover_is_told_which(
    stage: Stage, step: str, edge: Any
):
    await stage.start_gateway()
    one = await plan(stage, "don't forget", MINUTE)
    worker = stage.new_worker(echoes)
    held = worker.hold_at(step, edge)
    await stage.start_new_worker(worker, echoes)
    await stage.pass_time(MINUTE + 1)
    await held.reached()
    try:
        await move(stage, one, HOUR)
        is_moved = True
    except StateConflict:
        is_moved = False
    held.open()
    assert is_moved == ((step, edge) == ("ledger.save_result", "before"))
    await stage.let_go_on()
    if is_moved:
        assert stage.texts() == []
        await stage.pass_time(HOUR + 1)
    await said(stage, 1)
    await over(stage)
    await stage.pass_time(HOUR + 1)
    assert stage.texts() == ["don't forget"]


@pytest.mark.req("TMP-3")
async def test_of_two_who_move_one_at_the_same_time_one_is_told_that_the_other_did(stage: Stage):
    await stage.start(echoes)
    one = await plan(stage, "don't forget", MINUTE)
    ended = await asyncio.gather(move(stage, one, HOUR), move(stage, one, 2 * HOUR), return_exceptions=True)
    refused = [result for result in ended if isinstance(result, BaseException)]
    assert all(isinstance(error, StateConflict) for error in refused)
    await stage.pass_time(MINUTE + 1)
    assert stage.texts() == []
    for _ in range(2):
        await stage.pass_time(HOUR + 1)
        await stage.let_go_on()
    await said(stage, 1)
    await over(stage)
    assert stage.texts() == ["don't forget"]


@pytest.mark.req("TMP-3", "ENV-3")
async def test_a_key_that_was_forgotten_and_is_used_again_is_another_follow_up_which_fires(stage: Stage):
    gateway, _ = await stage.start(echoes)
    one = await plan(stage, "first", MINUTE, idempotencyKey="k")
    await move(stage, one, 2 * MINUTE)
    await stage.pass_time(2 * MINUTE + 1)
    assert await said(stage, 1) == ["first"]
    await over(stage)
    await stage.pass_time(8 * DAY)
    await gateway.supervisor.sweep()
    assert await plan(stage, "second", MINUTE, idempotencyKey="k") == one
    assert (await look(stage, one)).text == "second"
    await stage.pass_time(MINUTE + 1)
    assert await said(stage, 2) == ["first", "second"]
    await over(stage)
    assert (await look(stage, one)).status is FollowUpStatus.FIRED


# --- cancelling -------------------------------------------------------------------------------------------


@pytest.mark.req("TMP-3", "TMP-5")
async def test_what_is_cancelled_never_fires_and_may_be_cancelled_again(stage: Stage):
    await stage.start(echoes)
    one = await plan(stage, "never", MINUTE)
    await move(stage, one, 2 * MINUTE)
    for _ in range(2):
        assert (await of(stage).cancel(one, who="olga", why="not needed")).status is FollowUpStatus.CANCELLED
    found = await look(stage, one)
    assert (found.by, found.why) == ("olga", "not needed")
    with pytest.raises(StateConflict):
        await move(stage, one, 5)
    await stage.pass_time(HOUR)
    await over(stage)
    assert stage.texts() == []


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU6")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize(
    "step", ["queue.claim", "ledger.save_result", "queue.enqueue", "ledger.note_armed", "queue.settle"]
)
async def test_of_cancelling_and_firing_one_wins_and_the_caller_is_told_which(
    stage: Stage, kept_by: str, step: str, edge: Any
):
    if (step, kept_by) == ("queue.claim", "timers"):
        step = "queue.get"  # the first step of what has rung
    await stage.start_gateway()
    one = await plan(stage, "perhaps", MINUTE)
    await stage.pass_time(MINUTE + 1)
    worker = stage.new_worker(echoes)
    held = worker.hold_at(step, edge)
    await stage.start_new_worker(worker, echoes)
    await held.reached()
    try:
        await of(stage).cancel(one, who="olga")
        is_cancelled = True
    except StateConflict:
        is_cancelled = False
    held.open()
    assert is_cancelled == (step in ("queue.claim", "queue.get") or (step, edge) == ("ledger.save_result", "before"))
    await over(stage)
    assert stage.texts() == ([] if is_cancelled else ["perhaps"])
    assert (await look(stage, one)).status is (FollowUpStatus.CANCELLED if is_cancelled else FollowUpStatus.FIRED)


@pytest.mark.req("TMP-3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", ["ledger.record_operation", "ledger.finish", "queue.cancel"])
async def test_whoever_dies_while_cancelling_one_it_fires_once_or_never(stage: Stage, step: str, edge: Any):
    await stage.start(echoes)
    one = await plan(stage, "perhaps", MINUTE)
    await move(stage, one, 2 * MINUTE)
    by = await stage.start_gateway(sends=False)
    by.die_at(step, edge)
    with pytest.raises(Killed):
        await of(stage, by).cancel(one, who="olga")
    await stage.pass_time(2 * MINUTE + 1)
    is_cancelled = (step, edge) in (("ledger.finish", "after"), ("queue.cancel", "before"), ("queue.cancel", "after"))
    await said(stage, int(not is_cancelled))
    await over(stage)
    assert stage.texts() == ([] if is_cancelled else ["perhaps"])


@pytest.mark.req("TMP-3")
async def test_what_a_run_promised_is_listed_moved_and_cancelled_too(stage: Stage):
    @rise.workflow("reminds", channels=["telegram"])
    async def reminds(turn: rise.Turn) -> None:
        await turn.follow_up("once", in_seconds=MINUTE)
        await turn.follow_up("never", in_seconds=MINUTE)

    await stage.start(reminds)
    await stage.ended(*await stage.write("go"))
    rows = {row.text: row.follow_up_id for row in (await of(stage).page({}, status=None, limit=10)).rows}
    assert set(rows) == {"once", "never"}
    await of(stage).cancel(rows["never"], who="olga")
    await move(stage, rows["once"], HOUR)
    await stage.pass_time(MINUTE + 1)
    assert stage.texts() == []
    await stage.pass_time(HOUR)
    assert await said(stage, 1) == ["once"]


@pytest.mark.req("TMP-3")
async def test_a_message_is_no_follow_up(stage: Stage):
    await stage.start(echoes)
    [task_id] = await stage.write("Hello")
    await stage.ended(task_id)
    for named in (task_id, "t_nothing"):
        with pytest.raises(TaskUnknown):
            await look(stage, FollowUpId(named))


@pytest.mark.req("TMP-3", "SUS-3")
@pytest.mark.failure("B14", "M4")
@pytest.mark.parametrize("ends", ["waiting", "cancelled", "fired"])
async def test_of_one_that_a_newer_version_planned_it_is_said_that_this_one_cannot_read_it(stage: Stage, ends: str):
    await stage.start(echoes)
    one, other = await plan(stage, "of tomorrow", MINUTE), await plan(stage, "other", HOUR)
    if ends == "cancelled":
        await of(stage).cancel(one, who="olga")
    elif ends == "fired":
        await stage.pass_time(MINUTE + 1)
        await stage.ended(TaskId(one))
    await stage.rewrite("tasks" if ends == "waiting" else "runs", TaskId(one), head=b'{"schema":"of tomorrow"}')
    for ask in (look(stage, one), move(stage, one, HOUR), of(stage).cancel(one, who="olga")):
        with pytest.raises(StateConflict, match="this version of Rise cannot read it"):
            await ask
    assert [row.follow_up_id for row in (await of(stage).page({}, status=None, limit=10)).rows] == [other]
    assert (await of(stage).cancel(other, who="olga")).status is FollowUpStatus.CANCELLED


@pytest.mark.req("TMP-3", "SUS-3")
@pytest.mark.failure("B14", "FU6")
async def test_of_one_that_fired_while_it_was_moved_it_is_said_too_that_it_cannot_be_read(stage: Stage):
    await stage.start(echoes)
    one = await plan(stage, "of tomorrow", MINUTE)
    by = await stage.start_gateway(sends=False)
    held = by.hold_at("queue.enqueue", "before")
    moving = asyncio.create_task(move(stage, one, HOUR, by))
    await held.reached()
    await stage.pass_time(MINUTE + 1)
    await stage.ended(TaskId(one))
    await stage.rewrite("runs", TaskId(one), head=b'{"schema":"of tomorrow"}')
    held.open()
    for ask in (moving, look(stage, one)):
        with pytest.raises(StateConflict, match="this version of Rise cannot read it"):
            await ask


# --- missed -----------------------------------------------------------------------------------------------


async def missed(stage: Stage, policy: str) -> list[FollowUpId]:
    """Three of one chat, and one of another, all met when they are long overdue."""
    await stage.start_gateway()
    planned = [await plan(stage, f"{number}", number * MINUTE, missed=policy) for number in (1, 2, 3)]
    planned.append(await plan(stage, "other", MINUTE, chat=7, missed=policy))
    await stage.pass_time(HOUR)
    return planned


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU4")
async def test_what_was_missed_is_said_late(stage: Stage):
    planned = await missed(stage, "fire")
    await stage.start_worker(echoes)
    await said(stage, 4)
    assert (stage.texts(), stage.texts(7)) == (["1", "2", "3"], ["other"])
    run = await stage.ledger.latest_run(TaskId(planned[0]))
    assert run is not None
    assert run.result["lateSeconds"] >= HOUR - MINUTE


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU4")
async def test_what_is_not_to_be_said_late_ends_with_a_reason(stage: Stage):
    planned = await missed(stage, "skip")
    on_time = await plan(stage, "on time", 0, missed="skip")
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["on time"]
    await over(stage)
    assert [message.text for message in stage.telegram.sent] == ["on time"]
    for one in planned:
        found = await look(stage, one)
        assert found.status is FollowUpStatus.MISSED
        assert found.why.startswith("missed: due ")
    assert (await look(stage, on_time)).status is FollowUpStatus.FIRED


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU4")
async def test_of_a_chats_missed_ones_the_latest_is_said(stage: Stage):
    planned = await missed(stage, "coalesce")
    await stage.start_worker(echoes)
    await said(stage, 2)
    await over(stage)
    assert (stage.texts(), stage.texts(7)) == (["3"], ["other"])
    statuses = [(await look(stage, one)).status for one in planned]
    assert statuses == [FollowUpStatus.MISSED, FollowUpStatus.MISSED, FollowUpStatus.FIRED, FollowUpStatus.FIRED]
    assert planned[2] in (await look(stage, planned[1])).why


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU4")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize(
    ("step", "nth"),
    [
        ("queue.claim", 1),
        ("queue.list_open", 1),
        ("ledger.finish", 1),
        ("ledger.finish", 2),
        ("queue.settle", 1),
        ("queue.settle", 2),
        ("ledger.save_result", 1),
    ],
)
async def test_a_crash_while_that_is_decided_changes_nothing(
    stage: Stage, kept_by: str, step: str, edge: Any, nth: int
):
    if (step, kept_by) == ("queue.settle", "timers"):
        nth = 1  # what has rung is not settled by a worker: only what it becomes is, for certain
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=1)
    gateway = await stage.start_gateway()
    planned = [await plan(stage, f"{number}", number * MINUTE, missed="coalesce") for number in (1, 2, 3)]
    await stage.pass_time(HOUR)
    worker = stage.new_worker(echoes)
    worker.die_at(step, edge, nth=nth)
    await stage.start_new_worker(worker, echoes)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(echoes)
    assert await said(stage, 1) == ["3"]
    await over(stage)
    assert stage.texts() == ["3"]
    assert [(await look(stage, one)).status for one in planned[:2]] == [FollowUpStatus.MISSED] * 2


@pytest.mark.req("TMP-5")
@pytest.mark.failure("FU5")
async def test_a_wall_clock_that_is_set_back_fires_nothing_twice(stage: Stage):
    await stage.start(echoes)
    one = await plan(stage, "once", MINUTE)
    await stage.pass_time(MINUTE + 1)
    assert await said(stage, 1) == ["once"]
    stage.clock.step_wall(-DAY)
    await stage.pass_time(2 * MINUTE)
    await over(stage)
    assert stage.texts() == ["once"]
    run = await stage.ledger.latest_run(TaskId(one))
    assert run is not None
    assert run.status is Status.COMPLETED


@pytest.mark.req("TMP-5")
async def test_what_kills_its_worker_waits_for_a_person_and_is_listed_as_that(stage: Stage):
    stage.queue_limits = QueueLimits(deaths_suspect=1, deaths_max=1)
    gateway = await stage.start_gateway()
    one = await plan(stage, "poison", 0)
    worker = stage.new_worker(echoes)
    worker.die_at("ledger.save_result", "before")
    await stage.start_new_worker(worker, echoes)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(echoes)

    async def is_suspended() -> bool:
        return (await look(stage, one)).status is FollowUpStatus.SUSPENDED

    await stage.until(is_suspended)
    rows = (await of(stage).page({}, status=ListedStatus.SUSPENDED, limit=10)).rows
    assert [row.follow_up_id for row in rows] == [one]
    chat = {"channel": "telegram", "account": stage.account, "chat_id": "42"}
    assert [row.follow_up_id for row in (await of(stage).page(chat, status=None, limit=10)).rows] == [one]
    await move(stage, one, 1)
    await stage.pass_time(2)
    assert await said(stage, 1) == ["poison"]

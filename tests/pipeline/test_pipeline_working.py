"""Working: a run that fails, waits, hangs, or has nothing to run, and what its chat and its sender see of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any

import msgspec
import pytest
from pipeline_stage import Stage, definition_of, record_of
from structlog.testing import capture_logs

import rise
from rise import telemetry
from rise import worker as worker_module
from rise.bus.port import Topic
from rise.channels.telegram import updates
from rise.definitions.port import Kind
from rise.definitions.records import BindingRecord, account_name, bindings_of
from rise.delivery import DeliveryLimits
from rise.envelope import (
    FOLLOW_UP_AHEAD_MAX,
    Head,
    Outcome,
    Progress,
    Reason,
    Status,
    Task,
    TaskId,
    TaskType,
    envelope,
    run_id_of,
)
from rise.errors import LedgerSilent, RedisUnavailable, StateConflict, StoreUnavailable, WrittenByNewer
from rise.queue.port import Selection
from rise.retries import RetryPolicy
from rise.runtime import supervisor
from rise.runtime.supervisor import Duties
from rise.settings import Settings
from rise.testing.telegram import Fault
from rise.worker import Texts, WorkerLimits
from rise.workflows import runner

FAILED = Texts().failed
MISSING = Texts().workflow_missing
COUNTED_AT_THE_DOOR = (
    telemetry.accepted_total,
    telemetry.duplicates_total,
    telemetry.out_of_order_total,
    telemetry.late_total,
)


@rise.workflow("echo", channels=["telegram", "http"])
async def echo(turn: rise.Turn) -> None:
    await turn.reply(f"echo {turn.text}")


# --- its own errors ---------------------------------------------------------------------------------------


@pytest.mark.req("QUE-4", "SUS-3", "CHN-4")
@pytest.mark.failure("E3", "H1")
async def test_an_error_is_retried_along_the_curve_then_suspended_and_its_sender_told_once(stage: Stage):
    @rise.workflow("fails", channels=["telegram"])
    async def fails(turn: rise.Turn) -> None:
        await turn.reply("never said, because the run did not end well")
        raise ValueError(f"no luck at attempt {turn.attempt}")

    await stage.start(fails)
    [task_id] = await stage.write("Hello")
    for attempts, seconds in enumerate((15, 60, 180), start=1):
        task = await stage.waiting_for_retry(task_id, attempts=attempts)
        wait = (task.due_at_ms - stage.queue.now_ms()) / 1000
        assert 0.8 * seconds <= wait <= 1.2 * seconds
        await stage.pass_time(wait)
    task = await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert "no luck at attempt 4" in (task.error or "")
    history = await stage.ledger.attempts(run_id_of(task_id, 0))
    assert [attempt.error.partition(": ")[2] for attempt in history] == [
        f"no luck at attempt {attempt}" for attempt in (1, 2, 3, 4)
    ]
    assert all(attempt.counted for attempt in history)
    assert await stage.said(1) == [FAILED]
    assert len(await stage.notices(task_id)) == 1


@pytest.mark.req("QUE-4")
async def test_a_caller_may_allow_fewer_retries(stage: Stage):
    @rise.workflow("fails", channels=["telegram"])
    async def fails(turn: rise.Turn) -> None:
        raise ValueError("no luck")

    gateway, _ = await stage.start(fails)
    incoming = msgspec.structs.replace(stage.incoming("Hello"), retry_max=0)
    task_id = (await gateway.intake.accept(incoming)).task_id
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert len(await stage.ledger.attempts(run_id_of(task_id, 0))) == 1


@pytest.mark.req("QUE-2", "QUE-4")
@pytest.mark.failure("E1")
async def test_a_dependency_that_is_down_uses_no_try_and_holds_only_its_own_chat(stage: Stage):
    is_down = True
    ran: list[str] = []

    @rise.workflow("asks", channels=["telegram"])
    async def asks(turn: rise.Turn) -> None:
        ran.append(turn.text)
        if is_down and turn.text == "first":
            raise rise.WaitsForDependency("the model is busy", retry_after_seconds=20)
        await turn.reply(f"echo {turn.text}")

    await stage.start(asks)
    [first, second] = await stage.write("first", "second", chat=1)
    [other] = await stage.write("other", chat=2)
    await stage.ended(other)
    for _ in range(8):
        task = await stage.waiting_for_retry(first)
        assert (task.attempts, task.status) == (0, Status.PENDING)
        await stage.pass_time((task.due_at_ms - stage.queue.now_ms()) / 1000)
    await stage.waiting_for_retry(first)
    assert "second" not in ran, "the head holds its lane, however long the dependency is down"
    is_down = False
    await stage.pass_time(30)
    await stage.ended(first, second)
    assert stage.texts(1) == ["echo first", "echo second"]
    assert not any(attempt.counted for attempt in await stage.ledger.attempts(run_id_of(first, 0)))


@pytest.mark.req("QUE-2", "SUS-3")
async def test_a_failing_message_holds_up_its_chat_no_longer_than_allowed(stage: Stage):
    stage.retry_policy = RetryPolicy(curve_seconds=(40.0,), retry_max=99, lane_block_max=timedelta(seconds=100))

    @rise.workflow("sometimes", channels=["telegram"])
    async def sometimes(turn: rise.Turn) -> None:
        if turn.text == "bad":
            raise ValueError("no luck")
        await turn.reply(f"echo {turn.text}")

    await stage.start(sometimes)
    [bad, good] = await stage.write("bad", "good")
    for attempts in (1, 2):
        task = await stage.waiting_for_retry(bad, attempts=attempts)
        await stage.pass_time((task.due_at_ms - stage.queue.now_ms()) / 1000)
    task = await stage.suspended(bad, Reason.LANE_BLOCKED)
    assert task.attempts == 2
    await stage.ended(good)
    assert sorted(stage.texts()) == sorted([FAILED, "echo good"])


@pytest.mark.req("QUE-2")
async def test_a_message_that_waits_for_its_retry_holds_its_own_chat_only(stage: Stage):
    @rise.workflow("second-time-lucky", channels=["telegram"])
    async def lucky(turn: rise.Turn) -> None:
        if turn.text == "first" and turn.attempt == 1:
            raise ValueError("no luck")
        await turn.reply(f"echo {turn.text}")

    await stage.start(lucky)
    [first, second] = await stage.write("first", "second", chat=1)
    [other] = await stage.write("other", chat=2)
    await stage.waiting_for_retry(first)
    await stage.ended(other)
    assert stage.texts(1) == []
    await stage.pass_time(20)
    await stage.ended(first, second)
    assert stage.texts(1) == ["echo first", "echo second"]


@pytest.mark.req("WRK-7")
async def test_a_workflow_that_cancels_itself_has_made_an_error_and_is_not_taken_for_a_dead_process(stage: Stage):
    @rise.workflow("cancels", channels=["telegram"])
    async def cancels(turn: rise.Turn) -> None:
        if turn.attempt == 1:
            never = asyncio.get_running_loop().create_future()
            never.cancel()
            await never
        await turn.reply("the second time")

    await stage.start(cancels)
    [task_id] = await stage.write("Hello")
    task = await stage.waiting_for_retry(task_id, attempts=1)
    assert task.deaths == 0
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert stage.texts() == ["the second time"]


# --- its time ---------------------------------------------------------------------------------------------


@pytest.mark.req("WRK-7")
@pytest.mark.failure("E5")
async def test_an_async_run_that_takes_too_long_is_stopped_and_counts_as_its_own_error(stage: Stage):
    stopped = asyncio.Event()

    @rise.workflow("slow", channels=["telegram"], run_seconds=0.05)
    async def slow(turn: rise.Turn) -> None:
        if turn.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        await turn.reply("in time")

    await stage.start(slow)
    [task_id] = await stage.write("Hello")
    task = await stage.waiting_for_retry(task_id, attempts=1)
    assert stopped.is_set()
    assert "did not return within 0.05 s" in (task.error or "")
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert stage.texts() == ["in time"]


@pytest.mark.req("WRK-3", "WRK-7")
@pytest.mark.failure("D2")
async def test_a_run_does_not_lose_its_time_while_its_process_is_stopped(stage: Stage):
    runs, goes_on = asyncio.Event(), asyncio.Event()

    @rise.workflow("thoughtful", channels=["telegram"], run_seconds=2.0)
    async def thoughtful(turn: rise.Turn) -> None:
        runs.set()
        await goes_on.wait()
        await turn.reply("in time")

    await stage.start(thoughtful)
    [task_id] = await stage.write("Hello")
    await runs.wait()
    time.sleep(3.0)  # nothing of this process runs
    for _ in range(3):
        await asyncio.sleep(0.01)  # whatever was due meanwhile comes now
    goes_on.set()
    await stage.ended(task_id)
    assert stage.texts() == ["in time"]
    assert await stage.ledger.attempts(run_id_of(task_id, 0)) == []


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets plain functions go that a test has left behind in their threads."""
    release = threading.Event()
    yield release
    release.set()


@pytest.mark.req("WRK-7")
@pytest.mark.failure("E5")
async def test_a_plain_function_that_takes_too_long_is_left_behind_and_cannot_say_anything_any_more(
    stage: Stage, release: threading.Event
):
    refused: list[str] = []
    over = threading.Event()

    @rise.workflow("slow", channels=["telegram"], run_seconds=0.1)
    def slow(turn: rise.Turn) -> None:
        if turn.attempt > 1:
            turn.reply("in time")
            return
        release.wait()
        for say in (lambda: turn.reply("too late"), lambda: turn.step("pay", lambda: 1)):
            try:
                say()
            except RuntimeError as error:
                refused.append(str(error))
        over.set()

    _, worker = await stage.start(slow)
    [task_id] = await stage.write("Hello")
    await stage.waiting_for_retry(task_id, attempts=1)
    assert worker.worker._runner.abandoned == 1
    release.set()
    await asyncio.to_thread(over.wait, 5)
    assert len(refused) == 2
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert stage.texts() == ["in time"]


@pytest.mark.req("WRK-7")
async def test_a_process_that_has_left_too_many_functions_behind_says_that_it_is_worn_out(
    stage: Stage, release: threading.Event
):
    stage.worker_limits = WorkerLimits(run_seconds=0.05, abandoned_max=1)

    @rise.workflow("stuck", channels=["telegram"])
    def stuck(turn: rise.Turn) -> None:
        release.wait()

    _, worker = await stage.start(stuck)
    [first] = await stage.write("one", chat=1)
    await stage.waiting_for_retry(first, attempts=1)
    assert not worker.worker.is_worn_out
    [second] = await stage.write("two", chat=2)
    await stage.waiting_for_retry(second, attempts=1)
    assert worker.worker.is_worn_out


@pytest.mark.req("WRK-7")
@pytest.mark.failure("E5")
async def test_functions_that_were_left_behind_take_nobodys_thread(stage: Stage, release: threading.Event):
    stage.worker_limits = WorkerLimits(run_seconds=30, concurrency=2)
    both = threading.Barrier(2, timeout=20)

    @rise.workflow("stuck", channels=["telegram"], run_seconds=0.05)
    def stuck(turn: rise.Turn) -> None:
        release.wait()

    @rise.workflow("plain")
    def plain(turn: rise.Turn) -> None:
        both.wait()  # two at once, or never
        turn.reply(f"echo {turn.text}")

    gateway, worker = await stage.start(stuck, plain)
    for chat in (1, 2):
        [left_behind] = await stage.write("one", chat=chat)
        await stage.waiting_for_retry(left_behind, attempts=1)
    assert worker.worker._runner.abandoned == 2
    tasks = []
    for chat in (3, 4):
        asked = msgspec.structs.replace(stage.incoming("two", chat=chat), workflow_id=definition_of(plain).workflow_id)
        tasks.append((await gateway.intake.accept(asked)).task_id)
    await stage.ended(*tasks)
    assert (stage.texts(3), stage.texts(4)) == (["echo two"], ["echo two"])


@pytest.mark.req("WRK-7")
@pytest.mark.failure("E5")
async def test_a_workflow_that_swallows_its_cancellation_does_not_keep_its_chat(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner, "CLEAN_UP_SECONDS", 0.05)
    release = asyncio.Event()

    @rise.workflow("stubborn", channels=["telegram"], run_seconds=0.05)
    async def stubborn(turn: rise.Turn) -> None:
        while turn.text == "stay" and not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        await turn.reply(f"heard {turn.text}")

    stage.retry_policy = RetryPolicy(retry_max=0)
    _, worker = await stage.start(stubborn)
    [stays, goes] = await stage.write("stay", "go")
    await stage.suspended(stays, Reason.RETRIES_EXHAUSTED)
    await stage.ended(goes)
    assert worker.worker._runner.abandoned == 1
    unread: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    with capture_logs() as logged:
        release.set()
        await stage.let_go_on()
        gc.collect()
    assert [text for text in stage.texts() if text.startswith("heard")] == ["heard go"]
    [said] = [line for line in logged if line["event"] == "workflow.failed_late"]
    assert (said["workflow"], "this run is over" in str(said["error"])) == ("stubborn", True)
    assert unread == [], "asyncio has nothing to add"


@pytest.mark.req("WRK-7", "WFL-3")
async def test_plain_functions_run_in_threads_and_may_use_steps(stage: Stage):
    threads: set[str] = set()
    both = threading.Barrier(2, timeout=5)

    async def look_up(text: str) -> str:
        return text.upper()

    @rise.workflow("plain", channels=["telegram"])
    def plain(turn: rise.Turn) -> None:
        threads.add(threading.current_thread().name)
        both.wait()  # two at once, or never
        shouted: Any = turn.step("shout", look_up, turn.text)
        counted: Any = turn.step("count", len, shouted)
        turn.reply(f"{shouted} {counted}")

    await stage.start(plain)
    await stage.ended(*await stage.write("one", chat=1), *await stage.write("three", chat=2))
    assert (stage.texts(1), stage.texts(2)) == (["ONE 3"], ["THREE 5"])
    assert len(threads) == 2
    assert threading.main_thread().name not in threads


# --- nothing to run it ------------------------------------------------------------------------------------


@pytest.mark.req("SUS-1", "SUS-2", "BND-9", "CHN-4")
async def test_without_a_workflow_messages_wait_are_told_so_once_and_go_on_by_themselves_in_order(stage: Stage):
    _gateway, worker = await stage.start()
    waiting = await stage.write("one", "two", "three", chat=1)
    other = await stage.write("four", chat=2)
    for task_id in (*waiting, *other):
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert sorted(await stage.said(2)) == [MISSING, MISSING]
    listed = await stage.operations.suspended(channel="telegram", reason=Reason.WORKFLOW_PENDING)
    assert {task.head.task_id for task in listed} == {*waiting, *other}
    assert not any([await stage.ledger.attempts(run_id_of(task_id, 0)) for task_id in waiting]), "none was run"
    await worker.stop()
    await stage.start_worker(echo)
    await stage.ended(*waiting, *other)
    assert stage.texts(1) == [MISSING, "echo one", "echo two", "echo three"]
    assert stage.texts(2) == [MISSING, "echo four"]


@pytest.mark.req("SUS-2", "QUE-3")
@pytest.mark.parametrize("looks", ["ledger.run", "queue.suspended_routes", "queue.next_in_lane", "queue.resume"])
async def test_what_waited_goes_first_also_when_somebody_else_lets_it_go_on_while_the_worker_looks(
    stage: Stage, looks: str
):
    gateway, nobody = await stage.start()
    [first] = await stage.write("first")
    await stage.suspended(first, Reason.WORKFLOW_PENDING)
    await nobody.stop()
    supervising = gateway.hold_at("queue.suspended_routes", "before")
    [second] = await stage.write("second")
    worker = stage.new_worker(echo)
    looking = worker.hold_at(looks, "before")
    await stage.start_new_worker(worker, echo)
    await looking.reached()
    await supervising.reached()
    supervising.open()

    async def goes_on() -> bool:
        task = await stage.look(first)
        return task is not None and task.status is Status.PENDING

    await stage.until(goes_on)
    looking.open()
    await stage.ended(first, second)
    assert [text for text in stage.texts() if text.startswith("echo")] == ["echo first", "echo second"]


@pytest.mark.req("SUS-2")
async def test_what_asks_for_a_workflow_by_name_waits_for_that_one_and_for_no_other(stage: Stage):
    gateway, worker = await stage.start(echo)
    asked = msgspec.structs.replace(stage.incoming("later"), workflow_id="wf_later")
    named = (await gateway.intake.accept(asked)).task_id
    await stage.suspended(named, Reason.WORKFLOW_PENDING)
    assert await gateway.supervisor.resume() == 0, "it would only be parked again"

    @rise.workflow("later")
    async def later(turn: rise.Turn) -> None:
        await turn.reply(f"at last: {turn.text}")

    await worker.stop()
    await stage.start_worker(echo, later)
    await stage.ended(named)
    assert stage.texts()[-1] == "at last: later"


@pytest.mark.req("WRK-3", "SUS-2")
@pytest.mark.failure("A4")
async def test_what_could_not_be_read_is_read_again_when_it_is_resumed(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    gateway, _ = await stage.start(echo)
    queued = stage.telegram.message("from the future", chat_id=42)
    assert queued is not None
    with monkeypatch.context() as an_older_version:
        an_older_version.delitem(updates.KINDS, "message")
        task_id = (await gateway.intake.accept(stage.reading(queued.body))).task_id
        before = await stage.suspended(task_id, Reason.RAW_PAYLOAD_INVALID)
        await stage.operations.resume(task_id, who="operator")
        task = await stage.suspended(task_id, Reason.RAW_PAYLOAD_INVALID)
        assert (task.attempts, task.error) == (0, before.error), "and why is not forgotten"
        assert before.error
        assert stage.texts() == []
    await stage.operations.resume(task_id, who="operator")
    await stage.ended(task_id)
    assert stage.texts() == ["echo from the future"]
    archived = await stage.ledger.archived(task_id)
    assert archived is not None
    assert archived.head.chat_id == "42"


@pytest.mark.req("WRK-3")
async def test_what_was_understood_when_it_came_is_not_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    _, worker = await stage.start(echo)
    monkeypatch.setattr(worker.telegram, "read_again", lambda head, raw: stage.incoming("something else"))
    await stage.ended(*await stage.write("Hello"))
    assert stage.texts() == ["echo Hello"]


@pytest.mark.req("QUE-4", "WFL-3")
@pytest.mark.failure("E3")
async def test_a_result_that_cannot_be_stored_is_the_workflows_own_error(stage: Stage):
    @rise.workflow("opaque", channels=["telegram"])
    async def opaque(turn: rise.Turn) -> object:
        await turn.reply("never said")
        return object() if turn.text == "result" else turn.call("sendDice", emoji=object())

    await stage.start(opaque)
    for text in ("result", "call"):
        [task_id] = await stage.write(text, chat=len(text))
        task = await stage.waiting_for_retry(task_id, attempts=1)
        assert (task.deaths, "TypeError" in (task.error or "")) == (0, True)
    assert stage.texts() == []


@pytest.mark.req("SUS-1")
async def test_what_can_never_be_said_is_parked_at_once(stage: Stage):
    @rise.workflow("mute", channels=["telegram"])
    async def mute(turn: rise.Turn) -> None:
        await turn.reply("choose", buttons=[[{"text": "yes", "data": "y" * 65}]])

    await stage.start(mute)
    [task_id] = await stage.write("Hello")
    task = await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert "data" in (task.error or "")


@pytest.mark.req("QUE-3", "CAP-1")
@pytest.mark.failure("E4")
async def test_a_store_that_is_away_for_longer_than_a_claim_makes_no_message_poison(stage: Stage):
    starts: list[int] = []
    there = asyncio.Event()

    @rise.workflow("patient", channels=["telegram"])
    async def patient(turn: rise.Turn) -> None:
        starts.append(turn.attempt)
        stage.touch()
        await there.wait()
        await turn.reply("at last")

    async def has_started_again() -> bool:
        return len(starts) > outages

    _, worker = await stage.start(patient)
    [task_id] = await stage.write("Hello")
    for outages in range(4):
        await stage.until(has_started_again)
        for step in ("queue.renew", "queue.claim"):
            worker.fail_at(step, "before", StoreUnavailable("cut off"), times=4)
        for _ in range(30):
            if len(starts) == outages + 1:
                await stage.pass_time(5)
    task = await stage.look(task_id)
    assert task is not None
    assert (len(starts), task.deaths) == (5, 0)
    there.set()
    await stage.ended(task_id)
    assert stage.texts() == ["at last"]


@pytest.mark.req("CPY-6", "WRK-4")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("comes_back", [True, False])
async def test_what_nobody_has_begun_does_not_wait_for_a_ledger_that_cannot_say_so(stage: Stage, comes_back: bool):
    runs: list[str] = []

    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        runs.append(turn.text)
        await turn.reply(turn.text)

    _, worker = await stage.start(echo)
    for question in ("ledger.steps",) if comes_back else ("ledger.steps", "ledger.run"):
        worker.fail_at(question, "before", LedgerSilent("MongoDB does not answer"))
    [task_id] = await stage.write("Hello")
    await stage.ended(task_id)  # at a clock that stands: what waits would not be tried again
    assert runs == stage.texts() == ["Hello"]


@pytest.mark.req("CPY-6", "WRK-4")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("question", ["ledger.steps", "ledger.run"])
async def test_one_moment_without_redis_has_nothing_wait_for_mongodb_that_nobody_has_begun(stage: Stage, question: str):
    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        await turn.reply(turn.text)

    _, worker = await stage.start(echo)
    worker.fail_at(question, "before", RedisUnavailable("cut off"))
    for silent in ("ledger.steps", "ledger.run"):
        worker.fail_at(silent, "before", LedgerSilent("MongoDB does not answer"), times=9)
    [task_id] = await stage.write("Hello")
    await stage.waiting_for_retry(task_id)
    assert await stage.ledger.attempts(run_id_of(task_id, 0)) == [], "nothing was tried"
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert stage.texts() == ["Hello"]


@pytest.mark.req("CPY-6", "WRK-4")
@pytest.mark.failure("D1", "F1")
async def test_what_a_former_worker_has_run_is_not_taken_for_new_after_a_moment_without_redis(stage: Stage):
    runs: list[str] = []

    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        runs.append(turn.text)
        await turn.reply(turn.text)

    gateway, worker = await stage.start(echo)
    worker.die_at("queue.settle", "before")
    [task_id] = await stage.write("Hello")
    await worker.dead()
    await gateway.supervisor.reap()
    other = stage.new_worker(echo)
    other.fail_at("ledger.steps", "before", RedisUnavailable("cut off"))
    for silent in ("ledger.steps", "ledger.run"):
        other.fail_at(silent, "before", LedgerSilent("MongoDB does not answer"), times=2)
    await stage.start_new_worker(other, echo)
    for _ in range(2):
        await stage.waiting_for_retry(task_id)
        await stage.pass_time(20)
    await stage.ended(task_id)
    assert runs == stage.texts() == ["Hello"]


@pytest.mark.req("CPY-6", "WRK-4")
@pytest.mark.failure("M4")
@pytest.mark.parametrize("what", ["steps", "run"])
async def test_what_waits_in_words_of_a_newer_version_is_not_taken_for_nothing(stage: Stage, what: str):
    runs: list[str] = []

    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        runs.append(turn.text)

    _, worker = await stage.start(echo)
    if what == "run":
        worker.fail_at("ledger.steps", "before", LedgerSilent("MongoDB does not answer"))
    worker.fail_at(f"ledger.{what}", "before", WrittenByNewer("a newer version of Rise has to write it back"))
    [task_id] = await stage.write("Hello")
    await stage.until(lambda: _has_waited(stage, task_id))
    assert runs == []


async def _has_waited(stage: Stage, task_id: TaskId) -> bool:
    task = await stage.queue.get(task_id)
    # Begun, so that it waits for the ledger also when what waits has been written back.
    return task is not None and "newer version" in (task.progress.error or "") and not task.progress.is_untouched


@pytest.mark.req("SUS-3")
@pytest.mark.failure("H8")
async def test_a_drop_that_was_cut_short_is_finished_by_the_sweep(stage: Stage):
    gateway, _ = await stage.start()
    dropped, kept = [(await stage.write("Hello", chat=chat))[0] for chat in (1, 2)]
    for task_id in (dropped, kept):
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    task = await stage.queue.get(dropped)
    assert task is not None
    await stage.ledger.finish(task, Status.DROPPED, by="operator")  # and here the command was killed
    await gateway.supervisor.sweep()
    listed = await stage.operations.suspended()
    assert [one.head.task_id for one in listed] == [kept]


@pytest.mark.req("SUS-3", "CPY-5")
@pytest.mark.parametrize(("generation", "accepted_before_seconds", "waits"), [(1, 0, False), (0, 73 * 3600, True)])
async def test_what_waits_goes_when_a_later_run_of_it_has_ended_and_not_for_a_former_messages_end(
    stage: Stage, generation: int, accepted_before_seconds: int, waits: bool
):
    gateway, _ = await stage.start()
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    task = await stage.queue.get(task_id)
    assert task is not None
    accepted_at_ms = task.head.accepted_at_ms - accepted_before_seconds * 1000
    sha256 = "another's" if accepted_before_seconds else task.head.raw_sha256
    other = msgspec.structs.replace(
        task,
        head=msgspec.structs.replace(task.head, accepted_at_ms=accepted_at_ms, raw_sha256=sha256),
        progress=msgspec.structs.replace(task.progress, generation=generation),
    )
    await stage.ledger.finish(other, Status.DROPPED, by="operator")
    await gateway.supervisor.sweep()
    assert [one.head.task_id for one in await stage.operations.suspended()] == [task_id] * waits


async def test_what_has_ended_is_kept_for_its_time_and_then_forgotten(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, keep_finished_seconds=86_400.0)
    gateway, _ = await stage.start(echo)
    [task_id] = await stage.write("Hello")
    await stage.ended(task_id)
    await stage.pass_time(86_000)
    await gateway.supervisor.sweep()
    assert await stage.ledger.latest_run(task_id) is not None
    await stage.pass_time(500)
    await gateway.supervisor.sweep()
    assert await stage.ledger.latest_run(task_id) is None


@pytest.mark.req("SEC-5")
async def test_bytes_of_what_has_ended_are_kept_for_their_time_and_then_it_cannot_run_again(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, keep_raw_seconds=3600.0)
    gateway, _ = await stage.start(echo)
    [former] = await stage.write("Hello")
    await stage.ended(former)
    await stage.pass_time(3000)
    [latter] = await stage.write("Hello again", chat=43)
    await stage.ended(latter)
    await stage.pass_time(900)
    await gateway.supervisor.sweep()
    kept = [(await stage.operations.story(task_id)).task for task_id in (former, latter)]
    assert [task.has_bytes for task in kept] == [False, True]
    assert [task.head.user_text for task in kept] == ["Hello", "Hello again"]
    with pytest.raises(StateConflict, match="has been forgotten"):
        await stage.operations.run_again(former, who="ann")
    assert (await stage.operations.run_again(latter, who="ann", dry_run=True)).generation == 1
    await stage.pass_time(3600)
    await gateway.supervisor.sweep()
    assert not (await stage.operations.story(latter)).task.has_bytes


@pytest.mark.req("SEC-5")
async def test_what_was_said_is_kept_for_its_time(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "PAGE", 1)
    stage.duties = Duties(late_after_seconds=0, keep_history_seconds=3600.0)
    gateway, _ = await stage.start(echo)
    for chat in (42, 43, 44):
        await stage.ended(*await stage.write("Hello", chat=chat))
    await stage.pass_time(3000)
    await stage.ended(*await stage.write("Hello again", chat=43))
    await stage.pass_time(900)
    await gateway.supervisor.sweep()
    kept = {chat: await stage.ledger.history("telegram", stage.account, chat, limit=9) for chat in ("42", "43", "44")}
    assert {chat: [turn.text for turn in turns] for chat, turns in kept.items()} == {
        "42": [],
        "43": ["Hello again", "echo Hello again"],
        "44": [],
    }


@pytest.mark.req("SEC-5")
async def test_nothing_is_forgotten_by_its_age_while_the_clocks_disagree(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, keep_raw_seconds=3600.0, keep_history_seconds=3600.0)
    gateway, _ = await stage.start(echo)
    [task_id] = await stage.write("Hello")
    await stage.ended(task_id)
    stage.clock.step_wall(-86_400)
    await stage.pass_time(4000)
    await gateway.supervisor.sweep()
    assert (await stage.operations.story(task_id)).task.has_bytes
    assert len(await stage.ledger.history("telegram", stage.account, "42", limit=9)) == 2


@pytest.mark.failure("H8")
async def test_what_a_crash_left_between_ledger_and_queue_is_found_however_much_it_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "PAGE", 2)
    gateway = await stage.start_gateway()
    gateway.fail_at("queue.finish", "before", StoreUnavailable("away"), times=5)
    await stage.start_worker(echo)
    replying = [(await stage.write("Hello", chat=chat))[0] for chat in range(1, 6)]
    await stage.until(lambda: _true(gateway.steps.count("queue.finish") == 5))
    for task_id in replying:
        await stage.until(lambda task_id=task_id: _is_replying(stage, task_id))
    await gateway.supervisor.sweep()
    assert await stage.queue.list_open(Selection(), limit=10) == []


@pytest.mark.failure("D12", "M4", "H8")
async def test_a_result_that_cannot_be_read_does_not_stop_the_sweep(stage: Stage):
    gateway = await stage.start_gateway()
    gateway.fail_at("queue.finish", "before", StoreUnavailable("away"), times=3)
    await stage.start_worker(echo)
    replying = [(await stage.write("Hello", chat=chat))[0] for chat in (1, 2, 3)]
    await stage.until(lambda: _true(gateway.steps.count("queue.finish") == 3))
    for task_id in replying:
        await stage.until(lambda task_id=task_id: _is_replying(stage, task_id))
    await stage.rewrite("runs", replying[1], result=b"of tomorrow")
    await gateway.supervisor.sweep()
    assert await stage.queue.list_open(Selection(), limit=10) == []


@pytest.mark.failure("D12", "M4")
@pytest.mark.parametrize(("result", "waits"), [(b"of tomorrow", True), (b'["another shape"]', False)])
async def test_what_has_ended_with_a_result_that_cannot_be_read_does_not_keep_others_suspended(
    stage: Stage, result: bytes, waits: bool
):
    gateway, _ = await stage.start()
    tasks = [(await stage.write("Hello", chat=chat))[0] for chat in (1, 2, 3)]
    for task_id in tasks:
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
        task = await stage.queue.get(task_id)
        assert task is not None
        await stage.ledger.finish(task, Status.EXPIRED)
    await stage.rewrite("runs", tasks[1], result=result)
    await gateway.supervisor.sweep()
    left = [one.head.task_id for one in await stage.operations.suspended()]
    assert left == [tasks[1]] * waits, "what it promised for later may not be done: a newer version can tell"


@pytest.mark.failure("H8")
async def test_a_hold_that_was_cut_short_is_finished_by_the_sweep(stage: Stage):
    @rise.workflow("twice", channels=["telegram"])
    async def twice(turn: rise.Turn) -> None:
        await turn.reply("one")
        await turn.reply("two")

    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    gateway = await stage.start_gateway()
    gateway.fail_at("queue.hold", "before", StoreUnavailable("away"))
    await stage.start_worker(twice)
    [task_id] = await stage.write("Hello")
    await stage.until(lambda: _true("queue.hold" in gateway.steps))
    await gateway.supervisor.sweep()
    await stage.suspended(task_id, Reason.REPLY_HELD)


@pytest.mark.req("SUS-3")
async def test_operators_hear_once_that_too_much_is_suspended(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, suspended_alert_count=2)
    gateway, _ = await stage.start()
    for chat in (1, 2):
        await gateway.supervisor.measure()
        assert not [event for event in stage.log if event["event"] == "alert.raised"]
        [task_id] = await stage.write("Hello", chat=chat)
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    for _ in range(2):
        await gateway.supervisor.measure()
    assert len([event for event in stage.log if event["event"] == "alert.raised"]) == 1
    suspended, pending = (telemetry.tasks_open.labels(status) for status in (Status.SUSPENDED, Status.PENDING))
    assert (suspended._value.get(), pending._value.get()) == (2, 0)


@pytest.mark.req("SUS-3")
async def test_operators_hear_of_a_single_one_that_was_suspended_for_long(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, suspended_alert_seconds=3600)
    gateway, _ = await stage.start()
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    for seconds, alerts in ((3599, 0), (1, 1)):
        await stage.pass_time(seconds)
        await gateway.supervisor.measure()
        raised = [one["alert"] for one in stage.log if one["event"] == "alert.raised"]
        assert raised.count("suspended") == alerts


@pytest.mark.req("SUS-2")
async def test_what_waits_for_a_workflow_is_let_go_at_a_bounded_rate(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, resume_per_second=1.0)
    gateway, worker = await stage.start()
    tasks = [task_id for chat in range(1, 21) for task_id in await stage.write("Hello", chat=chat)]
    for task_id in tasks:
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await worker.stop()
    for loop in gateway.supervisor._loops:
        await loop.stop()  # how often it looks is not what is asked here
    await stage.bind(echo)
    await gateway.bindings.refresh()
    assert await gateway.supervisor.resume() == 5, "a second's worth for each second between two looks"
    left = await stage.queue.list_open(Selection(reason=Reason.WORKFLOW_PENDING), limit=100)
    assert len(left) == 15


@pytest.mark.req("QUE-2", "SUS-2")
@pytest.mark.failure("H6")
async def test_who_writes_again_when_the_workflow_is_there_is_answered_in_order(stage: Stage):
    stage.duties = Duties(late_after_seconds=0, resume_per_second=0.2)
    gateway, worker = await stage.start()
    late: list[TaskId] = []
    for chat in (1, 2, 3):
        for task_id in await stage.write("first", "second", chat=chat):
            await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await worker.stop()
    for loop in gateway.supervisor._loops:
        await loop.stop()  # it gets to these chats much later
    worker = await stage.start_worker(echo)
    for chat in (3, 2):
        late += await stage.write("third", chat=chat)
    await stage.ended(*late)
    assert [stage.texts(chat)[1:] for chat in (3, 2)] == [["echo first", "echo second", "echo third"]] * 2
    assert len(stage.texts(1)) == 1, "nobody wrote there: that it is set up is for the supervisor to see"


@pytest.mark.req("QUE-2", "SUS-2")
@pytest.mark.failure("H6")
async def test_what_asked_for_a_workflow_by_name_goes_first_too_and_what_is_still_not_served_holds_up_nobody(
    stage: Stage,
):
    gateway, worker = await stage.start()
    tasks = []
    for text, name in (("one", "wf_never"), ("two", definition_of(echo).workflow_id), ("three", None)):
        asked = msgspec.structs.replace(stage.incoming(text), workflow_id=name)
        tasks.append((await gateway.intake.accept(asked)).task_id)
        await stage.suspended(tasks[-1], Reason.WORKFLOW_PENDING)
    await worker.stop()
    for loop in gateway.supervisor._loops:
        await loop.stop()
    await stage.start_worker(echo)
    await stage.ended(*await stage.write("four"))
    assert stage.texts()[1:] == ["echo two", "echo three", "echo four"]
    await stage.suspended(tasks[0], Reason.WORKFLOW_PENDING)


@pytest.mark.req("SUS-1", "ENV-3")
@pytest.mark.failure("H10")
async def test_a_repeat_of_what_waits_for_a_workflow_is_known_before_and_after_binding(stage: Stage):
    gateway, worker = await stage.start()
    incoming = stage.incoming("Hello")
    first = await gateway.intake.accept(incoming)
    await stage.suspended(first.task_id, Reason.WORKFLOW_PENDING)
    again = await gateway.intake.accept(incoming)
    assert (again.task_id, again.new) == (first.task_id, False)
    await worker.stop()
    await stage.start_worker(echo)
    assert not (await gateway.intake.accept(incoming)).new
    await stage.ended(first.task_id)
    assert not (await gateway.intake.accept(incoming)).new
    assert stage.texts() == [MISSING, "echo Hello"]


@pytest.mark.req("SUS-1", "BND-9")
async def test_a_binding_words_its_own_notice(stage: Stage):
    @rise.workflow("elsewhere")
    async def elsewhere(turn: rise.Turn) -> None: ...

    await stage.start_gateway()
    await stage.bind(elsewhere, workflow_missing_message="Back on Monday.")
    switched_off = msgspec.structs.replace(record_of(definition_of(elsewhere)), enabled=False)
    await stage.editor.publish(switched_off, by="a person")
    await stage.start_worker(follows_code=False)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert await stage.said(1) == ["Back on Monday."]


@pytest.mark.req("WRK-5", "SUS-1")
async def test_a_worker_without_the_workflow_leaves_it_to_one_that_has_it_and_the_order_holds(stage: Stage):
    @rise.workflow("other")
    async def other(turn: rise.Turn) -> None: ...

    await stage.start(echo)
    await stage.start_worker(other, follows_code=False)
    tasks = await stage.write(*(f"{number}" for number in range(1, 7)))
    for _ in range(10):
        await stage.pass_time(2.1)
    await stage.ended(*tasks)
    assert stage.texts() == [f"echo {number}" for number in range(1, 7)], "and nobody was told that there is no bot"
    assert not any([await stage.ledger.attempts(run_id_of(task_id, 0)) for task_id in tasks])


@pytest.mark.req("WFL-4")
@pytest.mark.failure("H9")
@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300, 1e17, -1.0, "5", True], ids=repr)
async def test_a_follow_up_that_has_no_time_is_the_workflows_own_error(stage: Stage, seconds: Any):
    @rise.workflow("plans", channels=["telegram"])
    async def plans(turn: rise.Turn) -> None:
        await turn.reply("ok")
        await turn.follow_up("later", in_seconds=seconds)

    await stage.start(plans)
    [task_id] = await stage.write("Hello")
    task = await stage.waiting_for_retry(task_id, attempts=1)
    assert "in_seconds" in (task.error or "")
    assert stage.texts() == []


@pytest.mark.req("WFL-4")
@pytest.mark.parametrize("at", ["9999-12-31T23:59:00-14:00", "soon", "1969-12-31T23:59:59+00:00"])
async def test_a_follow_up_further_ahead_than_five_years_is_the_workflows_own_error(stage: Stage, at: str):
    latest = stage.clock.now() + FOLLOW_UP_AHEAD_MAX
    too_late = latest + timedelta(seconds=1) if at == "soon" else datetime.fromisoformat(at)

    @rise.workflow("plans", channels=["telegram"])
    async def plans(turn: rise.Turn) -> None:
        await turn.follow_up("just in time", at=latest)
        await turn.follow_up("too late", at=too_late)

    await stage.start(plans)
    [task_id] = await stage.write("Hello")
    assert "`at` is a moment from the year 1970 to five years ahead" in (
        (await stage.waiting_for_retry(task_id, attempts=1)).error or ""
    )


@pytest.mark.req("WFL-4")
async def test_a_follow_up_in_a_time_zone_that_is_another_on_each_host_is_the_workflows_own_error(stage: Stage):
    class HostsOwn(tzinfo):
        """As `ZoneInfo` has it where there is one: not every host has."""

        key = "right/Europe/Berlin"

        def utcoffset(self, moment: datetime | None) -> timedelta:
            return timedelta(hours=1)

    @rise.workflow("plans", channels=["telegram"])
    async def plans(turn: rise.Turn) -> None:
        await turn.follow_up("later", at=(stage.clock.now() + timedelta(days=1)).replace(tzinfo=HostsOwn()))

    await stage.start(plans)
    [task_id] = await stage.write("Hello")
    assert "right/Europe/Berlin" in ((await stage.waiting_for_retry(task_id, attempts=1)).error or "")


class Interrupt(BaseException):
    """As some libraries have one, so that nobody catches it by mistake."""


@pytest.mark.req("WRK-7", "QUE-4")
@pytest.mark.failure("E3")
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), Interrupt("too slow")], ids=repr)
async def test_what_would_end_the_process_or_hang_a_thread_is_the_workflows_own_error(
    stage: Stage, error: BaseException
):
    @rise.workflow("plain", channels=["telegram"])
    def plain(turn: rise.Turn) -> None:
        if turn.text == "step":
            turn.step("next", _raise, error)
        _raise(error)

    await stage.start(plain)
    for chat, text in enumerate(("plain", "step"), start=1):
        [task_id] = await stage.write(text, chat=chat)
        task = await stage.waiting_for_retry(task_id, attempts=1)
        assert (task.deaths, "RuntimeError" in (task.error or "")) == (0, True)


@pytest.mark.req("WRK-7", "QUE-4")
@pytest.mark.failure("E3")
@pytest.mark.parametrize("error", [SystemExit(3), Interrupt("too slow"), GeneratorExit()], ids=repr)
async def test_what_would_end_the_task_that_runs_it_is_the_workflows_own_error(stage: Stage, error: BaseException):
    @rise.workflow("awaited", channels=["telegram"])
    async def awaited(turn: rise.Turn) -> None:
        _raise(error)

    await stage.start(awaited)
    [task_id] = await stage.write("hello")
    task = await stage.waiting_for_retry(task_id, attempts=1)
    assert task.deaths == 0
    assert type(error).__name__ in (task.error or "")


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.req("QUE-4", "SUS-3")
@pytest.mark.failure("E3")
async def test_what_cannot_be_settled_is_parked_with_its_error_and_stays_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(worker_module, "follow_up", broken)

    @rise.workflow("plans", channels=["telegram"])
    async def plans(turn: rise.Turn) -> None:
        await turn.reply("ok")
        await turn.follow_up("later", in_seconds=5)

    gateway, _ = await stage.start(plans)
    [task_id, following] = [(await stage.write("Hello", chat=chat))[0] for chat in (1, 2)]
    for one in (task_id, following):
        task = await stage.suspended(one, Reason.RETRIES_EXHAUSTED)
        assert (task.deaths, "a bug of ours" in (task.error or "")) == (0, True)
    await stage.said(2)
    await gateway.supervisor.sweep()
    assert (await stage.look(task_id)) is not None, "a promise is still open"
    assert [text for chat in (1, 2) for text in stage.texts(chat)] == ["ok", "ok"], "no apology beside the answer"


@pytest.mark.req("QUE-4")
@pytest.mark.failure("E3")
@pytest.mark.parametrize("kind", ["mute", "generator", "group"])
async def test_an_error_of_any_kind_is_the_workflows_own(stage: Stage, kind: str):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    errors = {"mute": Mute(), "generator": GeneratorExit(), "group": BaseExceptionGroup("two", [GeneratorExit()])}

    @rise.workflow("odd", channels=["telegram"])
    async def odd(turn: rise.Turn) -> None:
        raise errors[kind]

    await stage.start(odd)
    [task_id] = await stage.write("Hello")
    task = await stage.waiting_for_retry(task_id, attempts=1)
    assert (task.deaths, type(errors[kind]).__name__ in (task.error or "")) == (0, True)


@pytest.mark.req("SUS-1", "CHN-4")
async def test_whoever_runs_it_words_what_people_are_told(stage: Stage):
    @rise.workflow("fails", channels=["telegram"])
    async def fails(turn: rise.Turn) -> None:
        raise ValueError("boom")

    stage.retry_policy = RetryPolicy(retry_max=0)
    stage.wording = Texts(workflow_missing="Back on Monday.", failed="That went wrong.")
    _, worker = await stage.start()
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert await stage.said(1) == ["Back on Monday."]
    await worker.stop()
    await stage.start_worker(fails)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert await stage.said(2) == ["Back on Monday.", "That went wrong."]


@pytest.mark.req("BND-9")
async def test_nobody_is_told_anything_where_nobody_wrote(stage: Stage):
    gateway, _ = await stage.start()
    queued = stage.telegram.add_update(
        {"channel_post": {"chat": {"id": -1001, "type": "channel", "title": "News"}, "text": "Hello"}}
    )
    assert queued is not None
    accepted = await gateway.intake.accept(stage.reading(queued.body))
    await stage.suspended(accepted.task_id, Reason.WORKFLOW_PENDING)
    assert await stage.notices(accepted.task_id) == []


@pytest.mark.req("SUS-2")
@pytest.mark.failure("H2")
async def test_resume_pressed_twice_runs_it_once(stage: Stage):
    ran: list[str] = []
    works = False

    @rise.workflow("sometimes", channels=["telegram"])
    async def sometimes(turn: rise.Turn) -> None:
        ran.append(turn.text)
        if not works:
            raise ValueError("no luck")
        await turn.reply("now")

    stage.retry_policy = RetryPolicy(retry_max=0)
    await stage.start(sometimes)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    works = True
    pressed = await asyncio.gather(
        *(stage.operations.resume(task_id, who=f"operator {n}") for n in range(5)), return_exceptions=True
    )
    assert pressed.count(None) == 1
    assert all(isinstance(one, StateConflict) for one in pressed if one is not None)
    await stage.ended(task_id)
    assert ran == ["Hello", "Hello"]
    assert stage.texts() == [FAILED, "now"]
    with pytest.raises(StateConflict):
        await stage.operations.resume(task_id, who="operator")


@pytest.mark.req("SUS-2", "QUE-2")
@pytest.mark.failure("H3")
async def test_what_is_resumed_while_its_chat_runs_something_else_waits_its_turn(stage: Stage):
    held = asyncio.Event()
    started: list[str] = []
    works = False

    @rise.workflow("sometimes", channels=["telegram"])
    async def sometimes(turn: rise.Turn) -> None:
        started.append(turn.text)
        if turn.text == "one" and not works:
            raise ValueError("no luck")
        if turn.text == "two":
            await held.wait()
        await turn.reply(turn.text)

    stage.retry_policy = RetryPolicy(retry_max=0)
    await stage.start(sometimes)
    [one] = await stage.write("one")
    await stage.suspended(one, Reason.RETRIES_EXHAUSTED)
    [two, three] = await stage.write("two", "three")
    await stage.until(lambda: _true("two" in started))
    works = True
    await stage.operations.resume(one, who="operator")
    held.set()
    await stage.ended(one, two, three)
    assert started == ["one", "two", "one", "three"], "resumed work has its old place, before what came later"


@pytest.mark.failure("E6")
@pytest.mark.req("SUS-1", "WRK-2")
async def test_a_workflow_that_changed_between_acceptance_and_run_is_the_one_of_the_claim(stage: Stage):
    @rise.workflow("old", channels=["telegram"])
    async def old(turn: rise.Turn) -> None:
        await turn.reply("the old one")

    @rise.workflow("new", channels=["telegram"])
    async def new(turn: rise.Turn) -> None:
        await turn.reply("the new one")

    gateway, worker = await stage.start(old)
    await worker.stop()
    await gateway.bindings.refresh()
    [task_id] = await stage.write("Hello")
    assert ":wf_old:" in (await stage.queue.get(task_id)).head.idempotency_key
    await stage.start_worker(new)
    [run] = await stage.ended(task_id)
    assert (stage.texts(), run.workflow_id) == (["the new one"], "wf_new")


@pytest.mark.failure("E6")
@pytest.mark.req("SUS-1", "SUS-2")
async def test_a_workflow_that_is_gone_from_the_code_leaves_its_messages_waiting_not_failed(stage: Stage):
    @rise.workflow("other")
    async def other(turn: rise.Turn) -> None: ...

    _gateway, worker = await stage.start(echo)
    await worker.stop()
    [task_id] = await stage.write("Hello")
    worker = await stage.start_worker(other)
    task = await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert task.attempts == 0
    await worker.stop()
    await stage.start_worker(echo)
    await stage.ended(task_id)
    assert stage.texts() == [MISSING, "echo Hello"]


@pytest.mark.req("BND-9")
async def test_what_a_person_has_bound_or_switched_off_the_code_leaves_alone(stage: Stage):
    await stage.start_gateway()
    definition = echo.__rise_workflow__
    await stage.editor.publish(record_of(definition), by="Anna")
    switched_off = BindingRecord(channel="telegram", account=stage.account, workflow_id="wf_echo", enabled=False)
    await stage.editor.bind(switched_off, by="Anna")
    worker = await stage.start_worker(echo)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    kept = await worker.definitions.version(Kind.BINDINGS, account_name("telegram", stage.account))
    [binding] = bindings_of(kept)
    assert (binding.enabled, binding.updated_by) == (False, "Anna")


@pytest.mark.req("WRK-2")
async def test_a_channel_that_the_code_no_longer_asks_for_is_no_longer_bound_by_it(stage: Stage):
    @rise.workflow("echo", channels=["http"])
    async def elsewhere(turn: rise.Turn) -> None:
        await turn.reply("only for programs")

    _, worker = await stage.start(echo)
    await worker.stop()
    await stage.start_worker(elsewhere)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)


# --- people's hands ---------------------------------------------------------------------------------------


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("H8", "E11")
@pytest.mark.parametrize(
    ("process", "step", "edge", "may_be_seen"),
    [
        ("worker", "ledger.steps", "after", False),
        ("worker", "ledger.save_result", "before", False),
        ("worker", "ledger.save_result", "after", False),
        ("worker", "queue.settle", "before", False),
        ("worker", "queue.settle", "after", False),
        ("gateway", "ledger.outbox_take", "after", False),
        ("gateway", "ledger.outbox_sending", "before", False),
        ("gateway", "ledger.outbox_sending", "after", True),
        ("gateway", "channel.send", "after", True),
        ("gateway", "ledger.outbox_record", "after", True),
    ],
)
async def test_a_drop_that_races_with_the_run_ends_it_one_way_never_both(
    stage: Stage, process: str, step: str, edge: Any, may_be_seen: bool
):
    @rise.workflow("two-replies", channels=["telegram"])
    async def two_replies(turn: rise.Turn) -> None:
        await turn.reply(f"first of {turn.text}")
        await turn.reply(f"second of {turn.text}")

    gateway, worker = await stage.start(two_replies)
    holds_sender = process == "worker" and step in ("queue.settle", "ledger.save_result")
    sender_held = gateway.hold_at("ledger.outbox_sending", "before") if holds_sender else None
    held = {"worker": worker, "gateway": gateway}[process].hold_at(step, edge)
    [task_id] = await stage.write("Hello")
    await held.reached()
    dropped = await stage.operations.drop(task_id, who="operator", why="not meant for us")
    held.open()
    if sender_held is not None:
        sender_held.open()
    [run] = await stage.ended(task_id)
    assert (run.status, run.by, run.why) == (Status.DROPPED, "operator", "not meant for us")
    assert dropped.status is Status.DROPPED
    [after] = await stage.write("the next")
    await stage.ended(after)
    seen = [text for text in stage.texts() if text.endswith("Hello")]
    assert seen in ([[], ["first of Hello"]] if may_be_seen else [[]]), "nothing is sent after the drop"
    assert [text for text in stage.texts() if text.endswith("next")] == ["first of the next", "second of the next"]


@pytest.mark.req("SUS-3")
@pytest.mark.failure("H8")
async def test_what_has_been_answered_cannot_be_dropped_any_more(stage: Stage):
    gateway, _ = await stage.start(echo)
    held = gateway.hold_at("queue.finish", "before")
    [task_id] = await stage.write("Hello")
    await held.reached()
    with pytest.raises(StateConflict):
        await stage.operations.drop(task_id, who="operator")
    held.open()
    [run] = await stage.ended(task_id)
    assert run.status is Status.COMPLETED


@pytest.mark.req("SUS-3")
@pytest.mark.failure("E11")
async def test_dropping_what_runs_lets_its_chat_go_on_at_once(stage: Stage):
    never = asyncio.Event()

    @rise.workflow("hangs", channels=["telegram"])
    async def hangs(turn: rise.Turn) -> None:
        if turn.text == "hang":
            await never.wait()
        await turn.reply(f"echo {turn.text}")

    _, worker = await stage.start(hangs)
    [stuck, following] = await stage.write("hang", "next")
    await stage.until(lambda: _true("ledger.steps" in worker.steps))
    await stage.operations.drop(stuck, who="operator")
    await stage.ended(stuck, following)
    never.set()
    assert await stage.said(1) == ["echo next"]


@pytest.mark.req("SUS-3", "WFL-3")
@pytest.mark.failure("E11")
@pytest.mark.parametrize("read", ["ledger.steps", "ledger.run"])
async def test_a_try_that_begins_as_its_message_is_dropped_repeats_no_step(stage: Stage, read: str):
    """What has ended has no steps any more."""
    paid: list[str] = []

    @rise.workflow("pays", channels=["telegram"])
    async def pays(turn: rise.Turn) -> None:
        await turn.step("pay", lambda: paid.append(turn.text))
        raise rise.WaitsForDependency("not yet", retry_after_seconds=20)

    _, worker = await stage.start(pays)
    [task_id] = await stage.write("one")
    await stage.waiting_for_retry(task_id)
    held = worker.hold_at(read, "before")
    await stage.pass_time(25)
    await held.reached()
    await stage.operations.drop(task_id, who="operator")
    held.open()
    await stage.let_go_on()
    await stage.ended(task_id)
    assert paid == ["one"]


# --- what is said -----------------------------------------------------------------------------------------


@pytest.mark.req("OUT-3", "CHN-4")
@pytest.mark.failure("E8")
async def test_an_empty_reply_is_an_error_that_says_so(stage: Stage):
    stage.retry_policy = RetryPolicy(retry_max=0)

    @rise.workflow("empty", channels=["telegram"])
    async def empty(turn: rise.Turn) -> None:
        await turn.reply("  ")

    await stage.start(empty)
    [task_id] = await stage.write("Hello")
    task = await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert "no text" in (task.error or "")
    assert await stage.said(1) == [FAILED]


@pytest.mark.failure("E8")
@pytest.mark.req("WFL-3")
async def test_saying_nothing_is_an_answer_too(stage: Stage):
    @rise.workflow("silent", channels=["telegram"])
    async def silent(turn: rise.Turn) -> None: ...

    await stage.start(silent)
    [task_id] = await stage.write("Hello")
    [run] = await stage.ended(task_id)
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.SILENT)


@pytest.mark.req("TGM-5")
async def test_what_is_accepted_is_counted_by_how_it_came(stage: Stage):
    gateway, _ = await stage.start(echo)
    await gateway.bindings.refresh()
    counters = {one: one.labels("telegram", stage.account, "wf_echo") for one in COUNTED_AT_THE_DOOR}
    before = [counter._value.get() for counter in counters.values()]
    former, latter = stage.incoming("one"), stage.incoming("two")
    for incoming in (latter, latter, former):
        accepted = await gateway.intake.accept(incoming)
        await stage.ended(accepted.task_id)
    counted = [counter._value.get() - so_far for counter, so_far in zip(counters.values(), before, strict=True)]
    assert counted == [2, 1, 1, 1]


@pytest.mark.req("TGM-5")
async def test_every_ending_is_counted_by_what_came_of_it_and_an_answer_by_how_long_it_took(stage: Stage):
    heard: list[Any] = []
    release = asyncio.Event()

    @rise.workflow("mixed", channels=["telegram"])
    async def mixed(turn: rise.Turn) -> None:
        await release.wait()
        if turn.text == "fail":
            raise ValueError("boom")
        if turn.text == "answer":
            await turn.reply("yes")

    def hear(event: Any) -> None:
        heard.append(event)
        stage.touch()

    stage.retry_policy = RetryPolicy(retry_max=0)
    gateway, _ = await stage.start(mixed)
    gateway.bus.subscribe(Topic.TASK_SETTLED, hear)  # after whoever counts
    account, workflow_id = ("telegram", stage.account), definition_of(mixed).workflow_id
    endings = [(workflow_id, "answered"), (workflow_id, "silent"), ("", "retries_exhausted"), ("", "workflow_pending")]
    counters = [telemetry.settled_total.labels(*account, *ending) for ending in endings]
    counters.append(telemetry.workflow_pending_total.labels(*account))
    took = telemetry.enqueue_to_reply_seconds.labels(*account, workflow_id)
    before, took_before = [counter._value.get() for counter in counters], took._sum.get()
    for chat, text in enumerate(("answer", "silent", "fail"), start=1):
        await stage.write(text, chat=chat)
    await gateway.intake.accept(msgspec.structs.replace(stage.incoming("asks", chat=4), workflow_id="wf_never"))
    await stage.pass_time(7)
    release.set()
    await stage.until(lambda: _true(len(heard) == 4))
    assert [counter._value.get() for counter in counters] == [value + 1 for value in before]
    assert took._sum.get() - took_before == pytest.approx(7)


@pytest.mark.req("TGM-5")
async def test_a_workflow_that_only_its_caller_knows_is_nobodys_label(stage: Stage):
    gateway, _ = await stage.start(echo)
    before = telemetry.accepted_total.labels("telegram", stage.account, "")._value.get()
    await gateway.intake.accept(msgspec.structs.replace(stage.incoming("Hello"), workflow_id="wf_made_up"))
    assert telemetry.accepted_total.labels("telegram", stage.account, "")._value.get() == before + 1


@pytest.mark.req("OPS-4")
async def test_each_acceptance_is_a_line_of_the_log_as_it_is_unless_less_is_asked_for(stage: Stage):
    await stage.start_gateway()
    [task_id] = await stage.write("Hello")
    [line] = [entry for entry in stage.log if entry["event"] == "telegram.queue.enqueued"]
    assert (line["log_level"], line["task_id"]) == (Settings.model_fields["log_level"].default, task_id)


@pytest.mark.req("ENV-1")
async def test_the_envelope_names_the_workflow_that_was_bound_when_it_came(stage: Stage):
    gateway, _ = await stage.start(echo)
    await gateway.bindings.refresh()
    bound = gateway.intake.head_of(stage.incoming("Hello"))
    named = gateway.intake.head_of(msgspec.structs.replace(stage.incoming("Hello"), workflow_id="wf_other"))
    sent = gateway.intake.head_of(msgspec.structs.replace(stage.incoming("Hello"), task_type=TaskType.MESSAGE_SEND))
    nobodys = gateway.intake.head_of(msgspec.structs.replace(stage.incoming("Hello"), account="other"))

    def shown(head: Head) -> object:
        return envelope(Task(head, b"{}", Progress(status=Status.PENDING)))["payload"]["workflowId"]

    assert [shown(head) for head in (bound, named, sent, nobodys)] == ["wf_echo", "wf_other", None, None]
    assert [head.telemetry["binding"]["status"] for head in (bound, nobodys)] == ["bound", "missing"]
    assert bound.workflow_id is None, "what runs it is decided when it is claimed"


async def test_every_ending_is_announced_once_with_what_came_of_it(stage: Stage):
    @rise.workflow("mixed", channels=["telegram"])
    async def mixed(turn: rise.Turn) -> None:
        if turn.text == "fail":
            raise ValueError("boom")
        if turn.text == "answer":
            await turn.reply("yes")

    stage.retry_policy = RetryPolicy(retry_max=0)
    await stage.start(mixed)
    tasks = [(await stage.write(text, chat=chat))[0] for chat, text in enumerate(("answer", "silent", "fail"), start=1)]
    await stage.until(lambda: _true(len(stage.settled) == 3))
    heard = {event["task_id"]: (event["status"], event["outcome"], event["reason"]) for event in stage.settled}
    assert [heard[task_id] for task_id in tasks] == [
        (Status.COMPLETED, Outcome.ANSWERED, None),
        (Status.COMPLETED, Outcome.SILENT, None),
        (Status.SUSPENDED, None, Reason.RETRIES_EXHAUSTED),
    ]
    workflow_id = mixed.__rise_workflow__.workflow_id
    assert {event["workflow_id"] for event in stage.settled if event["outcome"]} == {workflow_id}


@pytest.mark.req("OUT-3")
@pytest.mark.failure("E8")
async def test_a_huge_reply_arrives_whole_in_pieces_and_in_order(stage: Stage):
    words = [f"word{n:05}" for n in range(12_000)]

    @rise.workflow("huge", channels=["telegram"])
    async def huge(turn: rise.Turn) -> None:
        await turn.reply(" ".join(words))

    await stage.start(huge)
    await stage.ended(*await stage.write("Hello"))
    pieces = stage.texts()
    assert len(pieces) > 25
    assert all(len(piece.encode("utf-16-le")) // 2 <= 4096 for piece in pieces)
    assert " ".join(pieces).split() == words


@pytest.mark.req("WFL-3", "WFL-5")
async def test_a_workflow_can_say_everything_that_telegram_can_show(stage: Stage):
    @rise.workflow("rich", channels=["telegram"], answers_callbacks=True)
    async def rich(turn: rise.Turn) -> None:
        if turn.kind == "callback_query":
            await turn.answer_callback("Noted")
            await turn.edit(f"You chose {turn.text}")
            return
        assert turn.update["message"]["text"] == turn.text
        await turn.reply("*Choose*", buttons=[[{"text": "Yes", "data": "yes"}]], parse_mode="Markdown")
        await turn.reply(media={"kind": "photo", "file": "https://example.org/1.jpg"}, text="a picture")
        await turn.call("sendDice", emoji="🎲")

    await stage.start(rich)
    await stage.ended(*await stage.write("Hello"))
    question = stage.telegram.sent[0]
    assert question.params["reply_markup"] is not None
    assert [call.method for call in stage.telegram.calls] == ["sendMessage", "sendPhoto", "sendDice"]
    await stage.ended(await stage.tap("yes", message_id=question.message_id))
    assert "You chose yes" in stage.telegram.texts(42)
    [answered] = stage.calls("answerCallbackQuery")
    assert answered.params["text"] == "Noted"


@pytest.mark.req("TGM-3", "WFL-3")
async def test_a_tap_is_answered_empty_at_once_and_once_however_often_it_is_run(stage: Stage):
    held = asyncio.Event()

    @rise.workflow("taps", channels=["telegram"])
    async def taps(turn: rise.Turn) -> None:
        await held.wait()
        if turn.attempt == 1:
            raise ValueError("no luck")
        await turn.reply(f"You chose {turn.text}")

    await stage.start(taps)
    task_id = await stage.tap("yes")
    await stage.telegram.wait_until(lambda t: any(call.method == "answerCallbackQuery" for call in t.calls))
    assert stage.texts() == [], "the person's client stops waiting while the workflow still runs"
    held.set()
    await stage.waiting_for_retry(task_id, attempts=1)
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert stage.texts() == ["You chose yes"]
    assert len(stage.calls("answerCallbackQuery")) == 1


@pytest.mark.req("TGM-3")
async def test_a_tap_that_comes_up_too_late_expires_without_a_run(stage: Stage):
    ran: list[str] = []

    @rise.workflow("taps", channels=["telegram"])
    async def taps(turn: rise.Turn) -> None:
        ran.append(turn.text)

    await stage.start_gateway()
    late, early = await stage.tap("late", chat=1), await stage.tap("early", chat=2)
    del early
    await stage.pass_time(2)
    in_time = await stage.tap("in time", chat=3)
    await stage.pass_time(149)
    await stage.start_worker(taps)
    [expired, answered] = await stage.ended(late, in_time)
    assert (expired.status, answered.status) == (Status.EXPIRED, Status.COMPLETED)
    assert ran == ["in time"]


@pytest.mark.req("TGM-3")
async def test_a_tap_does_not_wait_behind_its_chat(stage: Stage):
    held = asyncio.Event()

    @rise.workflow("taps", channels=["telegram"])
    async def taps(turn: rise.Turn) -> None:
        if turn.kind == "message":
            await held.wait()
        await turn.reply(f"echo {turn.text}")

    _, worker = await stage.start(taps)
    [message] = await stage.write("message")
    await stage.until(lambda: _true("ledger.steps" in worker.steps))
    await stage.ended(await stage.tap("tap"))
    assert stage.texts() == ["echo tap"]
    held.set()
    await stage.ended(message)


@pytest.mark.req("WFL-4")
async def test_a_workflow_is_given_the_last_turns_of_its_own_chat_and_no_more(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, history_turns=4)
    given: dict[str, list[Any]] = {}

    @rise.workflow("remembers", channels=["telegram"])
    async def remembers(turn: rise.Turn) -> None:
        given[turn.text] = [(one["role"], one["text"]) for one in turn.history]
        await turn.reply(f"echo {turn.text}")

    await stage.start(remembers)
    await stage.ended(*await stage.write("one", "two", "three", "four", chat=1))
    await stage.ended(*await stage.write("other", chat=2))
    assert given["one"] == given["other"] == []
    assert given["two"] == [("user", "one"), ("assistant", "echo one")]
    assert given["four"] == [
        ("user", "two"),
        ("assistant", "echo two"),
        ("user", "three"),
        ("assistant", "echo three"),
    ]
    await stage.ended(*await stage.write(*(f"more {n}" for n in range(40)), chat=1))
    assert len(await stage.ledger.history("telegram", stage.account, "1", limit=1000)) <= 50


@pytest.mark.req("WFL-4")
@pytest.mark.parametrize("is_answered_before", [True, False])
async def test_what_a_person_said_is_in_the_history_once_however_often_it_is_run(
    stage: Stage, is_answered_before: bool
):
    stage.retry_policy, runs = RetryPolicy(retry_max=0), 0

    @rise.workflow("counts", channels=["telegram"])
    async def counts(turn: rise.Turn) -> None:
        nonlocal runs
        runs += 1
        if runs == 1 and not is_answered_before:
            raise RuntimeError("no luck")
        await turn.reply(f"answer {runs}")

    await stage.start(counts)
    [task_id] = await stage.write("question")
    if is_answered_before:
        await stage.ended(task_id)
    else:
        await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    await stage.operations.run_again(task_id, who="operator")
    await stage.said(2)
    await stage.until(lambda: stage.ledger.run(run_id_of(task_id, 1)))
    answers = ["answer 1"] * is_answered_before + ["answer 2"]
    assert await remembered(stage) == [("user", "question"), *(("assistant", answer) for answer in answers)]


@pytest.mark.req("WFL-3", "WFL-4")
async def test_what_no_person_said_is_not_in_the_history_as_if_one_had(stage: Stage):
    @rise.workflow("plans", channels=["telegram"])
    async def plans(turn: rise.Turn) -> None:
        if turn.kind == "follow_up":
            await turn.reply("how was it?")
            return
        await turn.follow_up("said later", in_seconds=10)
        await turn.follow_up("asked later", in_seconds=20, workflow="plans")
        await turn.reply("noted")

    await stage.start(plans)
    await stage.ended(*await stage.write("remind me"))
    await stage.said(1)
    await stage.ended(await stage.say("said by a program", chat=42, account=stage.account))
    await stage.pass_time(11)
    await stage.said(3)
    await stage.pass_time(11)
    await stage.said(4)
    answers = ["noted", "said by a program", "said later", "how was it?"]
    assert await remembered(stage) == [("user", "remind me"), *(("assistant", answer) for answer in answers)]


async def remembered(stage: Stage) -> list[tuple[str, str]]:
    turns = await stage.ledger.history("telegram", stage.account, "42", limit=100)
    return [(turn.role, turn.text) for turn in turns]


# --- notices ----------------------------------------------------------------------------------------------


@pytest.mark.req("CHN-4")
async def test_a_sender_is_told_once_that_it_will_be_late_and_then_that_it_failed(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="late", failed_text="failed")
    stage.retry_policy = RetryPolicy(retry_max=0)
    held = asyncio.Event()

    @rise.workflow("slow", channels=["telegram"])
    async def slow(turn: rise.Turn) -> None:
        await held.wait()
        raise ValueError("no luck")

    await stage.start(slow)
    [task_id] = await stage.write("Hello")
    await stage.pass_time(5)
    assert await stage.notices(task_id) == []
    for _ in range(6):
        await stage.pass_time(4)
    assert await stage.said(1) == ["late"]
    held.set()
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert await stage.said(2) == ["late", FAILED]
    for _ in range(6):
        await stage.pass_time(4)
    assert len(await stage.notices(task_id)) == 2


@pytest.mark.req("CHN-4")
async def test_where_there_are_no_words_for_it_nobody_is_told(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="", failed_text="")
    stage.wording = Texts(workflow_missing="", failed="")
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("Hello")
    await stage.pass_time(11)
    await gateway.supervisor.tell()
    await stage.start_worker()
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert await stage.notices(task_id) == []


@pytest.mark.req("CHN-4")
@pytest.mark.failure("G16")
@pytest.mark.parametrize(
    "fault", [Fault.commit_then_close(), Fault.server_error(), Fault.blocked(), Fault.bad_request("no such thing")]
)
async def test_a_notice_that_fails_neither_blocks_nor_repeats_anything(stage: Stage, fault: Fault):
    _, worker = await stage.start()
    stage.telegram.fault(fault, method="sendMessage")
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await stage.until(lambda: _is_final(stage, task_id))
    await worker.stop()
    await stage.start_worker(echo)
    await stage.ended(task_id)
    assert [text for text in stage.texts() if text != MISSING] == ["echo Hello"]
    assert len(stage.calls("sendMessage")) == 2


async def _is_final(stage: Stage, task_id: Any) -> bool:
    return all(notice.state in ("sent", "failed", "unknown") for notice in await stage.notices(task_id))


# --- the store --------------------------------------------------------------------------------------------


@pytest.mark.req("WRK-4")
@pytest.mark.parametrize("step", ["ledger.save_result", "queue.settle"])
@pytest.mark.parametrize("edge", ["before", "after"])
async def test_a_store_that_fails_at_the_end_of_a_run_does_not_make_it_run_again(stage: Stage, step: str, edge: Any):
    ran: list[str] = []

    @rise.workflow("counts", channels=["telegram"])
    async def counts(turn: rise.Turn) -> None:
        ran.append(turn.text)
        await turn.reply(f"echo {turn.text}")

    _, worker = await stage.start(counts)
    worker.fail_at(step, edge, StoreUnavailable("the disk is full"), times=3)
    tasks = await stage.write("one", "two")
    for failures in (1, 2, 3):
        await stage.logged("task.settle_delayed", count=failures)
        await stage.pass_time(1)
    await stage.ended(*tasks)
    assert ran == ["one", "two"]
    assert stage.texts() == ["echo one", "echo two"]


@pytest.mark.req("CAP-6")
@pytest.mark.failure("C11")
@pytest.mark.parametrize(
    ("step", "event", "means"),
    [
        ("queue.claim", "worker.loop_failed", "nothing is claimed until it answers; what is accepted waits"),
        ("ledger.outbox_take", "delivery.look_failed", "replies wait until it answers, each chat's in order"),
    ],
)
async def test_a_store_that_is_away_is_no_error_and_its_loop_says_what_that_means(
    stage: Stage, step: str, event: str, means: str
):
    gateway, worker = await stage.start(echo)
    asks = worker if step.startswith("queue") else gateway
    asks.fail_at(step, "before", StoreUnavailable("cut off"))
    asks.fail_at(step, "before", KeyError("a bug of ours"), nth=2)
    tasks = await stage.write("Hello")
    for error, level in (("cut off", "warning"), ("a bug of ours", "error")):
        await stage.until(lambda error=error: _true(_said(stage, event, error)))
        said = _said(stage, event, error)[0]
        assert said["log_level"] == level
        assert (said["consequence"] == means) is (level == "warning")
        await stage.pass_time(10)
    await stage.ended(*tasks)


def _said(stage: Stage, event: str, error: str) -> list[Any]:
    return [one for one in stage.log if one["event"] == event and error in str(one["error"])]


@pytest.mark.req("SUS-3")
async def test_an_attempt_is_noted_once_however_often_the_store_fails_beside_it(stage: Stage):
    stage.retry_policy = RetryPolicy(retry_max=0)

    @rise.workflow("fails", channels=["telegram"])
    async def fails(turn: rise.Turn) -> None:
        raise ValueError("no luck")

    _, worker = await stage.start(fails)
    worker.fail_at("ledger.add_notice", "before", StoreUnavailable("the disk is full"), times=2)
    [task_id] = await stage.write("Hello")
    for failures in (1, 2):
        await stage.logged("task.settle_delayed", count=failures)
        await stage.pass_time(1)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert len(await stage.ledger.attempts(run_id_of(task_id, 0))) == 1


async def _is_replying(stage: Stage, task_id: TaskId) -> bool:
    task = await stage.look(task_id)
    return task is not None and task.status is Status.REPLYING


async def _true(value: Any) -> Any:
    return value


@pytest.mark.req("CHN-4")
async def test_a_chat_with_many_late_messages_is_told_once(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="late", failed_text="failed")
    gateway = await stage.start_gateway()
    await stage.write("one", "two", "three")
    await stage.pass_time(31)
    await gateway.supervisor.tell()
    assert len(await stage.said(1)) == 1
    await gateway.supervisor.tell()
    await stage.let_go_on()
    assert len(stage.texts()) == 1


# --- what the platform does not date ------------------------------------------------------------------------


@pytest.mark.req("QUE-2", "TGM-2")
async def test_what_has_no_date_runs_in_the_order_of_its_arrival_within_a_millisecond_too(stage: Stage):
    ran: list[str] = []

    @rise.workflow("taps", channels=["telegram"])
    async def taps(turn: rise.Turn) -> None:
        ran.append(turn.text)

    gateway = await stage.start_gateway()
    said = [str(number) for number in range(20)]
    arrivals = [stage.tapped(text, chat=42) for text in said]
    accepted = await asyncio.gather(*map(gateway.intake.accept, arrivals))
    await stage.start_worker(taps)
    await stage.ended(*(one.task_id for one in accepted))
    assert ran == said

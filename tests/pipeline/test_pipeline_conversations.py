"""`engine: temporal`: each chat is one workflow of Temporal's, and everything else stays as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conversation_stage import Talks
from pipeline_stage import Gate, Stage, definition_of

import rise
from rise.conversations.port import ConversationLimits, ConversationMessage, ResponseStatus
from rise.conversations.running import RAN_BYTES_MAX
from rise.definitions.records import BindingRoute, BurstPolicy
from rise.envelope import Outcome, Reason, Status, TaskId, new_key, run_id_of
from rise.ledger.port import Run
from rise.testing.servers import TemporalServer
from rise.testing.waiting import eventually
from rise.worker import WorkerLimits

PATIENCE_SECONDS = 60.0


class Shouts:
    """A workflow that counts its runs, pays for a step, and does what a test says beforehand."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.paid: list[str] = []
        self.before: dict[str, Callable[[], Awaitable[Any]]] = {}

        @rise.workflow("shouts", channels=["telegram"])
        async def shouts(turn: rise.Turn) -> None:
            self.ran.append(turn.text)
            shouted = await turn.step("shout", self._shout, turn.text)
            if (before := self.before.get(turn.text)) is not None:
                await before()
            await turn.reply(shouted)

        self.workflow = shouts

    async def _shout(self, text: str) -> str:
        self.paid.append(text)
        return text.upper()


@rise.workflow("echo")
async def echo(turn: rise.Turn) -> None:
    await turn.reply(f"echo {turn.text}")


async def on_stage(stage: Stage, talks: Talks, shouts: Shouts, **binding: Any) -> None:
    """A gateway, and a carrier; the worker is the test's."""
    await stage.start_gateway()
    await talks.start_carrier(shouts.workflow, echo)
    await talks.bind(shouts.workflow, **binding)


async def insist(stage: Stage, task_id: TaskId) -> None:
    """Until it is finished; whenever it waits for its next try, that time passes."""

    async def is_finished_or_waits() -> bool:
        run = await stage.ledger.latest_run(task_id)
        return await _is_waiting(stage, task_id) or (run is not None and run.status.is_finished)

    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            await stage.until(is_finished_or_waits)
            run = await stage.ledger.latest_run(task_id)
            if run is not None and run.status.is_finished:
                return
            await stage.pass_time(20)


async def ended(stage: Stage, *task_ids: TaskId) -> list[Run]:
    for task_id in task_ids:
        await insist(stage, task_id)
    return await stage.ended(*task_ids)


async def _is_waiting(stage: Stage, task_id: TaskId) -> bool:
    task = await stage.look(task_id)
    return task is not None and task.status is Status.PENDING and task.due_at_ms > stage.queue.now_ms()


# --- a message's way ---


@pytest.mark.req("TMP-1")
async def test_a_message_is_run_by_its_chats_conversation_and_answered_through_the_outbox(
    stage: Stage, talks: Talks
) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    worker = await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    [run] = await ended(stage, task_id)
    assert await stage.said(1) == ["HELLO"]
    assert shouts.ran == ["hello"]
    assert (run.outcome, run.workflow_id) == (Outcome.ANSWERED, definition_of(shouts.workflow).workflow_id)
    assert "conversation.tell" in worker.steps
    assert (await talks.counts()).told == 1


@pytest.mark.req("TMP-2", "ENV-3")
async def test_ten_updates_and_three_of_them_again_are_ten_answers_in_order(stage: Stage, talks: Talks) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    await stage.start_worker(shouts.workflow)
    sent = [stage.telegram.message(f"m{number}", chat_id=42) for number in range(10)]
    order = [*sent[:5], sent[2], *sent[5:], sent[0], sent[9]]
    task_ids = [await stage.take(update) for update in order]
    await ended(stage, *dict.fromkeys(task_ids))
    assert await stage.said(10) == [f"M{number}" for number in range(10)]
    assert shouts.ran == [f"m{number}" for number in range(10)]
    counts = await talks.counts()
    assert (counts.told, counts.unfinished) == (10, 0)


@pytest.mark.req("TMP-2")
async def test_told_directly_ten_updates_and_three_again_are_ten_responses_and_regressions_are_counted(
    stage: Stage, talks: Talks
) -> None:
    """The conversation by itself: whoever tells it, and however often."""
    await talks.start_carrier(echo)
    server = talks.server_of(talks.reach())
    numbers = [1, 2, 4, 3, 5, 2, 6, 7, 9, 8, 10, 4, 10]
    for number in numbers:
        said = ConversationMessage(str(number), "42", number, f"request-{number}", {"text": f"m{number}"})
        await server.tell(talks.conversation_id(), said)

    async def all_over() -> bool:
        return (await talks.counts()).unfinished == 0

    await eventually(all_over, seconds=PATIENCE_SECONDS)
    counts = await talks.counts()
    assert (counts.told, counts.duplicates, counts.regressions, counts.expected_sequence) == (10, 3, 2, 11)
    responses = [await server.ask(talks.conversation_id(), f"request-{number}") for number in range(1, 11)]
    # Rise knows of no such messages: each has come to that, once.
    assert all(one.status is ResponseStatus.FAILED for one in responses)
    assert (await server.ask(talks.conversation_id(), "request-11")).status is ResponseStatus.UNKNOWN


@pytest.mark.req("TMP-1")
async def test_begun_before_anybody_carries_it_on_a_conversation_waits_and_then_goes_on(
    stage: Stage, talks: Talks
) -> None:
    shouts = Shouts()
    await stage.start_gateway()
    await talks.bind(shouts.workflow)
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    waiting = await stage.waiting_for_retry(task_id, attempts=0)
    assert "no worker of Temporal's" in (waiting.error or "")
    await talks.start_carrier(shouts.workflow)
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]
    assert shouts.ran == ["hello"]
    assert (await talks.counts()).duplicates == 0, "it was told once, and asked about afterwards"


@pytest.mark.req("TMP-1", "TMP-2")
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"messages_per_history": 3, "quiet_seconds": 0.1}, id="when nobody writes"),
        pytest.param({"messages_per_history_max": 3}, id="while people write"),
    ],
)
async def test_its_history_is_begun_anew_in_the_middle_and_nothing_is_forgotten_by_that(
    stage: Stage, talks: Talks, limits: Any
) -> None:
    talks.limits = ConversationLimits(**limits)
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    await stage.start_worker(shouts.workflow)
    before = [queued for number in range(5) if (queued := stage.telegram.message(f"m{number}", chat_id=42))]
    task_ids = [await stage.take(update) for update in before]
    for task_id in task_ids:
        await insist(stage, task_id)
    await eventually(lambda: talks.is_another_history(), seconds=PATIENCE_SECONDS)
    after = await stage.write(*[f"m{number}" for number in range(5, 10)])
    for task_id in after:
        await insist(stage, task_id)
    assert await stage.said(10) == [f"M{number}" for number in range(10)]
    server = talks.server_of(talks.reach())
    run = await stage.result(task_ids[0])
    by = {"workflow_id": run.workflow_id, "workflow_version": run.workflow_version}
    first = ConversationMessage(str(before[0].update_id), "42", 1, f"{task_ids[0]}.0", by)
    await server.tell(talks.conversation_id(), first)
    assert (await server.ask(talks.conversation_id(), f"{task_ids[0]}.0")).status is ResponseStatus.ANSWERED
    counts = await talks.counts()
    assert (counts.told, counts.duplicates, counts.regressions, counts.unfinished) == (10, 1, 0, 0)


@pytest.mark.req("TMP-4")
async def test_a_namespace_that_is_missing_uses_up_no_try_and_nobody_is_told(stage: Stage, talks: Talks) -> None:
    shouts = Shouts()
    await stage.start_gateway()
    await talks.bind(shouts.workflow)
    talks.namespace = "nowhere"
    await stage.start_worker(shouts.workflow)
    talks.namespace = "default"
    [task_id] = await stage.write("hello")
    waiting = await stage.waiting_for_retry(task_id, attempts=0)
    assert "no namespace nowhere" in (waiting.error or "")
    assert await stage.ledger.attempts(run_id_of(task_id, 0)) == []
    assert stage.texts() == []


@pytest.mark.req("TMP-2")
async def test_two_messages_that_their_callers_number_alike_are_both_answered(stage: Stage, talks: Talks) -> None:
    """What is said of a call is the caller's own, and no number of a platform's."""
    shouts = Shouts()
    await stage.start_gateway()
    await talks.start_carrier(shouts.workflow, echo)
    await talks.bind(echo, channel="http")
    worker = await stage.start_worker(shouts.workflow, echo)
    alike = {"metadata": {"update_id": "7"}, "chat_id": new_key()}
    task_ids = [await stage.ask(text, key=text, **alike) for text in ("first", "second")]
    runs = await ended(stage, *task_ids)
    assert [run.result["text"] for run in runs] == ["echo first", "echo second"]
    assert "conversation.tell" in worker.steps


@pytest.mark.req("TMP-1", "BND-2")
@pytest.mark.parametrize("size", [1, RAN_BYTES_MAX], ids=["small", "large"])
async def test_what_a_workflow_came_to_that_is_not_bound_any_more_is_not_said(
    stage: Stage, talks: Talks, size: int
) -> None:
    """Another may have been bound because what the first one says must not go out."""
    talks.hold_seconds = 0.0
    gate = Gate()

    @rise.workflow("former", channels=["telegram"])
    async def former(turn: rise.Turn) -> str:
        await gate()
        await turn.reply("what must not go out")
        return "x" * size

    await stage.start_gateway()
    await talks.start_carrier(former, echo)
    await talks.bind(former)
    worker = await stage.start_worker(former, echo)
    [task_id] = await stage.write("hello")
    await gate.reached()
    await stage.waiting_for_retry(task_id)
    await talks.bind(echo)
    await worker.bindings.refresh(whole=True)
    gate.open()
    [run] = await ended(stage, task_id)
    assert (run.workflow_id, run.result["text"]) == (definition_of(echo).workflow_id, "echo hello")


@pytest.mark.req("TMP-1", "OPS-3")
async def test_what_a_person_drops_is_run_no_further(stage: Stage, talks: Talks) -> None:
    talks.hold_seconds = 0.0
    talks.limits = ConversationLimits(beat_seconds=1.0)
    gate, stopped = Gate(), Gate()

    @rise.workflow("pays", channels=["telegram"])
    async def pays(turn: rise.Turn) -> None:
        try:
            await gate()
        finally:
            await stopped()

    await stage.start_gateway()
    await talks.start_carrier(pays)
    await talks.bind(pays)
    await stage.start_worker(pays)
    [task_id] = await stage.write("hello")
    await gate.reached()
    await stage.waiting_for_retry(task_id)
    await stage.operations.drop(task_id, who="a person")
    await stopped.reached()
    stopped.open()

    async def is_over() -> bool:
        return (await talks.counts()).unfinished == 0

    await eventually(is_over, seconds=PATIENCE_SECONDS)


@pytest.mark.req("TMP-1")
async def test_what_has_no_chat_is_run_by_the_worker_itself(stage: Stage, talks: Talks) -> None:
    await stage.start_gateway()
    await stage.bind(echo, channel="http", engine="temporal")
    worker = await stage.start_worker(echo)
    task_id = await stage.ask("hello", workflow_id=None)
    [run] = await ended(stage, task_id)
    assert run.outcome is Outcome.ANSWERED
    assert "conversation.tell" not in worker.steps


@pytest.mark.req("TMP-1", "CHN-3")
async def test_a_burst_is_one_turn_of_its_conversation(stage: Stage, talks: Talks) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts, burst=BurstPolicy(quiet_seconds=2.0, longest_wait_seconds=10.0))
    task_ids = await stage.write("a", "b")
    await stage.start_worker(shouts.workflow)
    await stage.waiting_for_retry(task_ids[0])
    await stage.pass_time(3)
    runs = await ended(stage, *task_ids)
    assert await stage.said(1) == ["A\nB"]
    assert [run.outcome for run in runs] == [Outcome.ANSWERED, Outcome.MERGED]


@pytest.mark.req("TMP-1", "CHN-3")
async def test_what_is_dropped_while_its_burst_is_run_is_not_in_the_answer(stage: Stage, talks: Talks) -> None:
    shouts, gate = Shouts(), Gate()
    await on_stage(stage, talks, shouts, burst=BurstPolicy(quiet_seconds=2.0, longest_wait_seconds=10.0))
    shouts.before["a\nb"] = gate
    first, second = await stage.write("a", "b")
    await stage.start_worker(shouts.workflow)
    await stage.waiting_for_retry(first)
    await stage.pass_time(3)
    await gate.reached()
    await stage.operations.drop(second, who="a person", why="a slip")
    gate.open()
    await insist(stage, first)
    assert await stage.said(1) == ["A"]
    assert shouts.ran == ["a\nb", "a"]


@pytest.mark.req("TMP-1")
async def test_what_is_too_large_for_a_conversation_is_kept_by_the_ledger(stage: Stage, talks: Talks) -> None:
    @rise.workflow("large", channels=["telegram"])
    async def large(turn: rise.Turn) -> str:
        await turn.reply("here")
        return "x" * RAN_BYTES_MAX

    await stage.start_gateway()
    await talks.start_carrier(large)
    await talks.bind(large)
    await stage.start_worker(large)
    [task_id] = await stage.write("hello")
    [run] = await ended(stage, task_id)
    assert len(run.result["value"]) == RAN_BYTES_MAX
    response = await talks.server_of(talks.reach()).ask(talks.conversation_id(), f"{task_id}.0")
    assert response.is_kept and response.ran is None
    assert await stage.ledger.steps(run_id_of(task_id, 0)) == {}, "a step goes when there is a result"


# --- who dies when ---


@pytest.mark.req("TMP-1", "TMP-2", "WRK-1")
@pytest.mark.parametrize(
    ("step", "edge"),
    [
        ("conversation.tell", "before"),
        ("conversation.tell", "after"),
        ("conversation.ask", "before"),
        ("conversation.ask", "after"),
        ("ledger.save_result", "before"),
        ("ledger.save_result", "after"),
        ("queue.settle", "before"),
    ],
)
async def test_a_worker_that_dies_between_signal_and_result_has_it_answered_once(
    stage: Stage, talks: Talks, step: str, edge: Any
) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    dying = stage.new_worker(shouts.workflow)
    dying.die_at(step, edge)
    [task_id] = await stage.write("hello")
    await stage.start_new_worker(dying, shouts.workflow)
    await dying.dead()
    await stage.start_worker(shouts.workflow)
    await stage.pass_time(31)  # what the dead one held is free again
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]
    assert shouts.ran == ["hello"], "its answer is asked for, not computed again"


@pytest.mark.req("TMP-1", "WRK-1")
async def test_a_carrier_that_stops_in_the_middle_of_a_run_has_it_gone_on_with_by_another(
    stage: Stage, talks: Talks
) -> None:
    """That one which is killed has, too, is shown on real processes."""
    shouts, gate = Shouts(), Gate()
    await stage.start_gateway()
    stopping = await talks.start_carrier(shouts.workflow)
    await talks.bind(shouts.workflow)
    await stage.start_worker(shouts.workflow)
    shouts.before["hello"] = gate
    [task_id] = await stage.write("hello")
    await gate.reached()
    await stopping.stop()
    shouts.before.clear()
    await talks.start_carrier(shouts.workflow)
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]
    assert shouts.ran == ["hello", "hello"]
    assert shouts.paid == ["hello"], "what was paid for is not paid for again"


@pytest.mark.req("TMP-1")
async def test_a_conversation_that_a_person_ends_is_begun_anew_with_what_waits(stage: Stage, talks: Talks) -> None:
    talks.hold_seconds = 0.0
    shouts, gate = Shouts(), Gate()
    await on_stage(stage, talks, shouts)
    shouts.before["hello"] = gate
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    await gate.reached()
    await stage.waiting_for_retry(task_id)

    async def terminate(client: Any) -> None:
        await talks.handle(client).terminate("a person's word")

    await talks.reach().ask("terminate", terminate)
    shouts.before.clear()
    gate.open()
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]
    assert (await talks.counts()).told == 1


# --- what fails, and what takes long ---


@pytest.mark.req("TMP-1", "WRK-2")
async def test_what_a_run_fails_by_uses_up_the_messages_tries_and_a_person_can_have_it_run_again(
    stage: Stage, talks: Talks
) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)

    async def fail() -> None:
        raise ValueError("not yet")

    shouts.before["hello"] = fail
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    for attempts, seconds in ((1, 20), (2, 75), (3, 220)):
        waiting = await stage.waiting_for_retry(task_id, attempts=attempts)
        assert "ValueError: not yet" in (waiting.error or "")
        await stage.pass_time(seconds)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert len(shouts.ran) == 4
    shouts.before.clear()
    await stage.operations.resume(task_id, who="a person")
    await insist(stage, task_id)
    assert "HELLO" in stage.texts()
    assert (len(shouts.ran), len(shouts.paid)) == (5, 1)


@pytest.mark.req("TMP-1", "WRK-2")
async def test_a_dependency_of_a_run_that_is_away_uses_up_no_try(stage: Stage, talks: Talks) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)

    async def wait() -> None:
        raise rise.WaitsForDependency("the shop is closed", retry_after_seconds=7.0)

    shouts.before["hello"] = wait
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    for _ in range(5):
        waiting = await stage.waiting_for_retry(task_id, attempts=0)
        assert "the shop is closed" in (waiting.error or "")
        await stage.pass_time(10)
    await stage.waiting_for_retry(task_id, attempts=0)
    shouts.before.clear()
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]


@pytest.mark.req("TMP-1", "QUE-1")
async def test_a_long_run_holds_its_chat_and_no_place_of_its_worker(stage: Stage, talks: Talks) -> None:
    """A worker with one place answers another chat meanwhile; the long one's next message waits for it."""
    talks.hold_seconds = 0.0
    stage.worker_limits = WorkerLimits(concurrency=1, run_seconds=60.0, stop_seconds=5.0)
    shouts, gate = Shouts(), Gate()
    await on_stage(stage, talks, shouts)
    shouts.before["long"] = gate
    await stage.start_worker(shouts.workflow)
    [long, after] = await stage.write("long", "after")
    await gate.reached()
    await stage.waiting_for_retry(long)
    [other] = await stage.write("other", chat=43)
    await insist(stage, other)
    assert stage.texts(43) == ["OTHER"]
    assert shouts.ran == ["long", "other"], "the chat of the long run is held"
    gate.open()
    await insist(stage, long)
    await insist(stage, after)
    assert await stage.said(2, chat=42) == ["LONG", "AFTER"]
    attempts = await stage.ledger.attempts(run_id_of(long, 0))
    assert attempts == [], "that it was looked at every few seconds is nobody's failure"


@pytest.mark.req("TMP-1", "TGM-3")
async def test_a_tap_does_not_wait_behind_a_long_run_of_its_chats_conversation(stage: Stage, talks: Talks) -> None:
    shouts, gate = Shouts(), Gate()
    await on_stage(stage, talks, shouts)
    shouts.before["long"] = gate
    await stage.start_worker(shouts.workflow)
    [long] = await stage.write("long")
    await gate.reached()
    tap = await stage.tap("yes")
    await insist(stage, tap)
    assert len(shouts.ran) == 2
    assert len(stage.texts()) == 1, "the tap is answered, the long one is not yet"
    gate.open()
    await insist(stage, long)
    assert (await talks.counts()).told == 2, "both are of one conversation"


@pytest.mark.req("TMP-1", "BND-7")
async def test_what_a_kill_switch_stops_while_it_waits_for_a_carrier_reaches_no_workflow(
    stage: Stage, talks: Talks
) -> None:
    shouts = Shouts()
    await stage.start_gateway()
    await talks.bind(shouts.workflow)
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    await stage.waiting_for_retry(task_id)
    await talks.bind(shouts.workflow, kill_switch={"reason": "stop", "since": "now", "by": "a person"})
    await talks.start_carrier(shouts.workflow)
    await stage.pass_time(20)
    await stage.suspended(task_id, Reason.KILL_SWITCH)
    assert shouts.ran == []


# --- Temporal is away ---


@pytest.mark.req("TMP-4", "TMP-1")
async def test_while_temporal_is_down_other_messages_are_answered_and_its_own_wait_in_order(
    stage: Stage, temporal_of_its_own: TemporalServer
) -> None:
    talks = Talks(stage, temporal_of_its_own)
    temporal_of_its_own.kill()
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    await stage.bind(echo, is_default=False, routes=(BindingRoute("chat", "43"),))
    await stage.start_worker(shouts.workflow, echo)
    waiting = await stage.write("one", "two", "three")
    native = await stage.write("alpha", "beta", chat=43)
    await ended(stage, *native)
    assert stage.texts(43) == ["echo alpha", "echo beta"]
    for _ in range(3):
        first = await stage.waiting_for_retry(waiting[0], attempts=0)
        assert "Temporal" in (first.error or "")
        await stage.pass_time(20)
    assert stage.texts(42) == []
    assert await stage.ledger.attempts(run_id_of(waiting[0], 0)) == [], "however long it waits, that fills no ledger"
    temporal_of_its_own.start()
    for task_id in waiting:
        await insist(stage, task_id)
    assert await stage.said(3, chat=42) == ["ONE", "TWO", "THREE"]
    assert shouts.ran == ["one", "two", "three"]
    await talks.close()


@pytest.mark.slow
@pytest.mark.req("TMP-4", "TMP-1")
async def test_a_temporal_that_has_lost_everything_is_told_again_and_what_was_paid_for_is_not_paid_again(
    stage: Stage, temporal_of_its_own: TemporalServer
) -> None:
    talks = Talks(stage, temporal_of_its_own, hold_seconds=0.0)
    shouts, gate = Shouts(), Gate()
    await on_stage(stage, talks, shouts)
    shouts.before["two"] = gate
    await stage.start_worker(shouts.workflow)
    one, two, three = await stage.write("one", "two", "three")
    await insist(stage, one)
    await gate.reached()
    temporal_of_its_own.kill()
    temporal_of_its_own.forget()
    shouts.before.clear()
    gate.open()
    temporal_of_its_own.start()
    await insist(stage, two)
    await insist(stage, three)
    assert await stage.said(3) == ["ONE", "TWO", "THREE"]
    assert shouts.paid == ["one", "two", "three"]
    assert (await talks.counts()).told == 2, "of what was answered before it knows nothing, and need not"
    await talks.close()


@pytest.mark.req("TMP-4")
async def test_without_temporal_what_is_bound_to_it_waits_and_says_for_what(stage: Stage) -> None:
    shouts = Shouts()
    await stage.start_gateway()
    await stage.bind(shouts.workflow, engine="temporal")
    await stage.start_worker(shouts.workflow)
    [task_id] = await stage.write("hello")
    waiting = await stage.waiting_for_retry(task_id, attempts=0)
    assert "RISE_TEMPORAL_ADDRESS" in (waiting.error or "")
    await stage.bind(shouts.workflow, engine="native")
    await insist(stage, task_id)
    assert await stage.said(1) == ["HELLO"]


# --- forgetting ---


@pytest.mark.slow
@pytest.mark.req("SEC-5")
async def test_a_conversation_is_forgotten_with_all_its_histories(stage: Stage, talks: Talks) -> None:
    talks.limits = ConversationLimits(messages_per_history_max=2)
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    await stage.start_worker(shouts.workflow)
    await ended(stage, *await stage.write("one", "two", "three"))
    await eventually(talks.is_another_history, seconds=PATIENCE_SECONDS)
    run_ids = await talks.histories()
    server = talks.server_of(talks.reach())
    await server.forget(talks.conversation_id())
    await server.forget(talks.conversation_id())  # it may be said again
    # Temporal takes its time about what it lists, but nobody can look into it any more.
    await eventually(lambda: talks.are_gone(run_ids), seconds=3 * PATIENCE_SECONDS)
    await ended(stage, *await stage.write("four"))
    assert (await talks.counts()).told == 1, "whoever writes on is in a new one"


@pytest.mark.req("SEC-5")
async def test_of_a_chat_whose_name_ends_a_question_no_other_is_forgotten(stage: Stage, talks: Talks) -> None:
    shouts = Shouts()
    await on_stage(stage, talks, shouts)
    await stage.start_worker(shouts.workflow)
    await ended(stage, *await stage.write("one"))
    await eventually(talks.histories, seconds=PATIENCE_SECONDS)
    server = talks.server_of(talks.reach())
    for name in ("x' OR WorkflowId != '", 'x" OR "', "x\\' OR WorkflowId != '", "%"):
        await server.forget(f"chat:http:default:{name}")
    assert await talks.histories()
    assert (await talks.counts()).told == 1

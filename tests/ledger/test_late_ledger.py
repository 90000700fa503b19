"""While the ledger is away, what is written waits, and is written back once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from late_stage import LateStage

from rise.envelope import Outcome, Reason, ReplyId, RunId, Status, Task, TaskId, reply_id_of, run_id_of
from rise.errors import LedgerSilent, MongoUnavailable, RecordTooLarge, RedisUnavailable
from rise.ledger.kept import ATTEMPTS_KEPT, TURN_CHARS_MAX
from rise.ledger.late import Waiting, decode_late, encode_late
from rise.ledger.late_ledger import LATE_BYTES_MAX, LOOK_SECONDS, ONLY_THE_LEDGERS, REMEMBERED_SECONDS, LateLedger
from rise.ledger.port import Attempt, HistoryLine, Ledger, Reply, ReplyKind, Run, RunResult, count_tries
from rise.queue.port import Finished, NewTask, Replying, Selection, Suspend
from rise.runtime.operations import Operations
from rise.runtime.writing_back import LOST_SECONDS_MAX, PAGE
from rise.testing.conformance.ledger import LedgerConformance, chunks, notice, numbered
from rise.testing.conformance.queue import claim_one, delivery
from rise.testing.fakes.ledger import HISTORY_KEPT

ANSWERED = RunResult(outcome=Outcome.ANSWERED, value={"text": "yes"}, workflow_id="greeter")
SILENT = RunResult(outcome=Outcome.SILENT)


class _StageThroughLate(LateStage):
    """Nothing is away."""

    history_kept = HISTORY_KEPT

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.process()

    async def another(self) -> Ledger:
        return self.process()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def spoil_call(self, reply_id: ReplyId) -> None:
        self.kept.spoil_call(reply_id)

    async def spoil_result(self, run_id: RunId) -> None:
        self.kept.spoil_result(run_id)

    async def spoil_head(self, run_id: RunId) -> None:
        self.kept.spoil_head(run_id)

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        self.kept.overwrite_words(task_id, state=state)


@pytest.mark.req("CPY-6", "TST-3")
class TestLedgerThroughLate(LedgerConformance):
    @pytest.fixture
    async def stage(self) -> _StageThroughLate:
        return _StageThroughLate()


def test_of_each_call_of_the_port_is_decided_whether_it_waits():
    port = {name for name in vars(Ledger) if not name.startswith("_")}
    waits = {name for name in vars(LateLedger) if not name.startswith("_")}
    assert waits | ONLY_THE_LEDGERS == port
    assert not waits & ONLY_THE_LEDGERS


@pytest.fixture
def stage() -> LateStage:
    return LateStage()


async def work(stage: LateStage, ledger: Ledger, count: int = 1, *, result: RunResult = ANSWERED) -> Task:
    """Claim a message, save its result, settle it as the worker does."""
    claim = msgspec.structs.replace(await claim_one(stage.queue), tasks_left=0)
    task = claim.task
    history = [HistoryLine(role="user", text=task.task_id, at_ms=1, run_id=task.run_id)]
    run = await ledger.save_result(task, result, chunks(task, count), history, deliver=True)
    await stage.queue.settle(claim, task, Finished() if run.status.is_finished else Replying())
    return task


async def sent_in_order(ledger: Ledger) -> list[str]:
    fence, texts = await ledger.outbox_open(), []
    while replies := await ledger.outbox_take(fence, limit=100):
        for reply in replies:
            texts.append(reply.call.text)
            await ledger.outbox_sending(fence, reply)
            await ledger.outbox_release(fence, reply, seconds=1e6)
    return texts


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F1")
async def test_a_result_waits_for_the_ledger_and_is_written_back_once(stage: LateStage):
    ledger = stage.process()
    task_id = await stage.accept(1)
    stage.leave()
    task = await work(stage, ledger, 2)
    assert (await stage.queue.list_open(Selection(), limit=9))[0].status is Status.REPLYING, "it stays open"
    waiting = await ledger.run(task.run_id)
    assert waiting is not None
    assert (waiting.status, waiting.result, waiting.accepted_at_ms) == (
        Status.REPLYING, ANSWERED.value, task.head.accepted_at_ms,
    )  # fmt: skip
    assert await ledger.latest_run(task_id) == waiting
    with pytest.raises(LedgerSilent):
        await ledger.latest_run(TaskId("unknown"))
    with pytest.raises(MongoUnavailable):
        await stage.write_back().write_back()
    stage.come_back()
    assert await stage.process().latest_run(task_id) == waiting
    assert await stage.process().latest_run(TaskId("unknown")) is None
    assert await stage.write_back().write_back() == 1
    assert await stage.write_back().write_back() == 0
    run = await stage.own.run(task.run_id)
    assert run is not None
    assert (run.status, run.result) == (Status.REPLYING, ANSWERED.value)
    assert [reply.reply_id for reply in await stage.own.replies(task_id=task_id)] == [
        reply_id_of(task.run_id, chunk) for chunk in range(2)
    ]
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6")
async def test_what_needs_no_reply_ends_when_it_is_written_back(stage: LateStage):
    task_id = await stage.accept(1)
    stage.leave()
    task = await work(stage, stage.process(), 0, result=SILENT)
    assert await stage.queue.get(task_id) is not None
    stage.come_back()
    await stage.write_back().write_back()
    assert await stage.queue.get(task_id) is None
    run = await stage.own.run(task.run_id)
    assert run is not None
    assert run.status is Status.COMPLETED


@pytest.mark.req("CPY-6", "QUE-2")
async def test_as_long_as_anything_waits_a_chats_next_result_waits_behind_it(stage: LateStage):
    """Also by a process that does not know that the ledger was away."""
    await stage.accept(1)
    stage.leave()
    await work(stage, stage.process())
    stage.come_back()
    await stage.accept(2)
    second = await work(stage, stage.process())
    assert await stage.own.run(second.run_id) is None
    await stage.write_back().write_back()
    assert await sent_in_order(stage.own) == ["1.0"], "the chat's first is out"
    third = await stage.accept(3)
    await work(stage, stage.process())
    assert await stage.own.run(run_id_of(third, 0)) is not None, "nothing waits any more"
    assert [reply.call.text for reply in await stage.own.transcript("telegram", "7", "1", after=0, limit=9)] == [
        "1.0", "2.0", "3.0",
    ]  # fmt: skip


@pytest.mark.req("CPY-6", "WFL-4")
async def test_of_a_long_turn_that_waits_the_beginning_is_kept(stage: LateStage):
    ledger, said = stage.process(), HistoryLine(role="user", text="x" * LATE_BYTES_MAX, at_ms=1)
    await stage.accept(1)
    task = (await claim_one(stage.queue)).task
    stage.leave()
    await ledger.save_result(task, ANSWERED, chunks(task), [said], deliver=True)
    [turn] = await ledger.history("telegram", "7", "1", limit=9)
    assert turn.text == "x" * (TURN_CHARS_MAX - 1) + "…"


@pytest.mark.req("CPY-6", "WFL-4")
async def test_what_waits_is_part_of_its_chats_history(stage: LateStage):
    ledger = stage.process()
    first = await stage.accept(1)
    await work(stage, ledger)

    async def said(by: Ledger) -> list[str]:
        return [turn.text for turn in await by.history("telegram", "7", "1", limit=10)]

    assert await said(ledger) == [first]
    second = await stage.accept(2)
    stage.leave()
    await work(stage, ledger)
    assert await said(ledger) == [first, second]
    assert await said(stage.process()) == [second], "who has not read it since its start knows what waits"
    assert await ledger.history("telegram", "7", "2", limit=10) == []
    stage.clock.advance(REMEMBERED_SECONDS)
    assert await said(ledger) == [second], "a person may have had the rest forgotten"
    stage.come_back()
    assert await said(stage.process()) == [first, second]
    await stage.write_back().write_back()
    assert await said(stage.process()) == [first, second]


@pytest.mark.req("CPY-6", "WRK-4")
async def test_steps_wait_too_and_the_first_stands(stage: LateStage):
    ledger, run_id = stage.process(), RunId("run")
    await ledger.save_step(run_id, "before", b"0")
    stage.leave()
    assert await ledger.save_step(run_id, "ask", b"1") == b"1"
    assert await stage.process().save_step(run_id, "ask", b"2") == b"1"
    with pytest.raises(LedgerSilent):
        await ledger.steps(run_id)
    stage.come_back()
    assert await ledger.steps(run_id) == {"before": b"0", "ask": b"1"}
    await stage.write_back().write_back()
    assert await stage.own.steps(run_id) == {"before": b"0", "ask": b"1"}


@pytest.mark.req("CPY-6")
async def test_of_what_only_the_ledger_knows_nothing_is_said(stage: LateStage):
    ledger = stage.process()
    stage.leave()
    with pytest.raises(LedgerSilent):
        await ledger.run(RunId("unknown"))
    with pytest.raises(MongoUnavailable):
        await ledger.outbox_open()


@pytest.mark.req("CPY-6", "SUS-3")
async def test_what_a_person_drops_is_dropped_now_or_not_at_all(stage: LateStage):
    ledger = stage.process()
    task_id = await stage.accept(1)
    stage.leave()
    task = await work(stage, ledger)
    with pytest.raises(MongoUnavailable):
        await ledger.finish(task, Status.DROPPED, by="ada")
    stage.come_back()
    assert (await ledger.finish(task, Status.DROPPED, by="ada")).status is Status.DROPPED
    await stage.queue.cancel(task_id)
    await stage.write_back().write_back()
    run = await stage.own.run(task.run_id)
    assert run is not None
    assert run.status is Status.DROPPED
    assert await sent_in_order(stage.own) == []


@pytest.mark.req("CPY-6", "SUS-3")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("store", ["way", "late_way"])
async def test_whoever_dies_while_dropping_what_waits_has_dropped_it_or_not(stage: LateStage, store: str, edge: str):
    ledger = stage.process()
    task_id = await stage.accept(1)
    stage.leave()
    task = await work(stage, ledger)
    stage.come_back()
    way = getattr(stage, store)
    way.calls, way.cut_at = 0, (2, edge)  # the first is a look
    with pytest.raises((MongoUnavailable, RedisUnavailable)):
        await ledger.finish(task, Status.DROPPED, by="ada")
    way.cut_at = None
    was_dropped = await stage.own.run(task.run_id) is not None
    assert was_dropped is ((store, edge) != ("way", "before"))
    await stage.write_back().write_back()
    if was_dropped:
        await stage.queue.cancel(task_id)  # as the supervisor does with what has ended
    assert await sent_in_order(stage.own) == ([] if was_dropped else ["1.0"])
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_who_drops_again_because_the_answer_was_lost_is_told_that_it_is_dropped(
    stage: LateStage, monkeypatch: pytest.MonkeyPatch
):
    """Although its end by the answer to another was put aside at the same moment."""
    ledger, task_id = stage.process(), await stage.accept(1)
    task = await stage.queue.get(task_id)
    assert task is not None
    people = Operations(stage.queue, ledger, stage.bus, stage.clock)
    finish = stage.own.finish

    async def lose_the_answer(*args: Any, **kwargs: Any) -> Run:
        stage.leave()
        merged = RunResult(outcome=Outcome.MERGED, value={"mergedInto": "t_leader"})
        await stage.process().save_result(task, merged, [], [], deliver=False)
        stage.come_back()
        await finish(*args, **kwargs)
        raise MongoUnavailable("the answer was lost")

    with monkeypatch.context() as once:
        once.setattr(stage.own, "finish", lose_the_answer)
        with pytest.raises(MongoUnavailable):
            await people.drop(task_id, who="Ann")
    stage.come_back()
    assert (await people.drop(task_id, who="Ann")).status is Status.DROPPED
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6")
async def test_attempts_notices_ends_and_what_was_armed_wait_too(stage: LateStage):
    ledger = stage.process()
    task_id = await stage.accept(1)
    stage.leave()
    task = await work(stage, ledger)
    tried = Attempt(at_ms=5, error="boom", counted=True)
    for process in (ledger, stage.process()):
        await process.add_attempt(task.run_id, tried)
        await process.note_armed(task.run_id)
        assert await process.add_notice(notice(task, "sorry"))
        assert await process.add_notice(notice(task, "late"), unless_run=task.run_id)
    known = await ledger.run(task.run_id)
    assert known is not None
    assert known.is_armed
    too_late = await stage.accept(2)
    claim = await claim_one(stage.queue)
    assert not (await ledger.finish(claim.task, Status.EXPIRED)).status.is_finished, "not yet"
    await stage.queue.settle(claim, claim.task, Replying())
    stage.come_back()
    await stage.write_back().write_back()
    run = await stage.own.run(task.run_id)
    assert run is not None
    assert (run.is_armed, await stage.own.attempts(task.run_id)) == (True, [numbered(tried, 1)])
    notices = [one.call.text for one in await stage.own.replies(task_id=task_id) if one.kind is ReplyKind.NOTICE]
    assert notices == ["sorry"], "what is not true any more is not said"
    ended = await stage.own.run(run_id_of(too_late, 0))
    assert ended is not None
    assert ended.status is Status.EXPIRED
    assert await stage.queue.get(too_late) is None


@pytest.mark.req("CPY-6", "SUS-3")
async def test_tries_that_wait_are_counted_with_those_that_the_ledger_no_longer_keeps(stage: LateStage):
    ledger, run_id = stage.process(), RunId("run")
    tries = [Attempt(at_ms=at, error="down", counted=False) for at in range(ATTEMPTS_KEPT + 5)]
    for one in tries[:-2]:
        await ledger.add_attempt(run_id, one)
    stage.leave()
    for one in tries[-2:]:
        await ledger.add_attempt(run_id, one)
    stage.come_back()
    waiting = await ledger.attempts(run_id)
    assert (len(waiting), count_tries(waiting)) == (ATTEMPTS_KEPT, len(tries))
    await stage.own.add_attempt(run_id, tries[-2])  # one is written, and leaves what waits a moment later
    assert await ledger.attempts(run_id) == waiting
    await stage.late_way.remove(["attempt:run:203"])
    await stage.write_back().write_back()
    assert await ledger.attempts(run_id) == waiting


@pytest.mark.req("CPY-6")
async def test_without_redis_a_result_is_not_taken(stage: LateStage):
    """Written into the ledger past what may wait, it could overtake that."""
    ledger = stage.process()
    await stage.accept(1)
    task = (await claim_one(stage.queue)).task
    stage.late_way.is_cut = True
    with pytest.raises(RedisUnavailable):
        await ledger.save_result(task, ANSWERED, chunks(task), [], deliver=True)
    with pytest.raises(RedisUnavailable):
        await ledger.run(task.run_id)  # it may have a result that waits


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F7")
async def test_one_waits_for_a_ledger_that_does_not_answer_and_all_others_are_told_at_once(stage: LateStage):
    ledger = stage.process()
    stage.leave()
    for _ in range(10):
        await ledger.save_step(RunId("run"), "ask", b"1")
    assert stage.way.calls == 1
    stage.clock.advance(LOOK_SECONDS + 0.1)
    await ledger.save_step(RunId("run"), "next", b"1")
    assert stage.way.calls == 2
    stage.way.is_cut = False
    stage.clock.advance(LOOK_SECONDS + 0.1)
    await ledger.save_step(RunId("run"), "last", b"1")
    await ledger.save_step(RunId("run"), "more", b"1")
    assert stage.way.calls == 4


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F1", "F3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("store", ["way", "late_way", "queue_way"])
async def test_whoever_dies_while_writing_back_leaves_it_to_the_next(stage: LateStage, store: str, edge: str):
    """At every call to every store: what is written is the same, and each once."""
    ledger, ids = stage.process(), [await stage.accept(number, chat=str(number % 2)) for number in range(1, 5)]
    stage.leave()
    for _ in ids:
        task = await work(stage, ledger)
        await ledger.add_attempt(task.run_id, Attempt(at_ms=task.head.order.seq, error="boom", counted=True))
    stage.come_back()
    way, deaths = getattr(stage, store), 0
    for call in range(1, 100):
        way.calls, way.cut_at = 0, (call, edge)
        try:
            await stage.write_back().write_back()
        except (MongoUnavailable, RedisUnavailable):
            deaths += 1
        else:
            break
    way.cut_at = None
    assert deaths
    assert await stage.write_back().write_back() == 0
    for task_id in ids:
        run_id = run_id_of(task_id, 0)
        assert len(await stage.own.replies(task_id=task_id)) == 1
        assert 1 <= len(await stage.own.attempts(run_id)) <= deaths + 1
    assert {chat: await texts(stage.own, chat) for chat in "01"} == {"0": ["2.0", "4.0"], "1": ["1.0", "3.0"]}


async def texts(ledger: Ledger, chat: str) -> list[str]:
    replies: list[Reply] = await ledger.transcript("telegram", "7", chat, after=0, limit=99)
    return [reply.call.text for reply in replies]


@pytest.mark.req("CPY-6", "SUS-1")
async def test_a_result_that_the_ledger_refuses_suspends_its_message_and_holds_nothing_up(
    stage: LateStage, monkeypatch: pytest.MonkeyPatch
):
    task_id, other = await stage.accept(1, chat="1"), await stage.accept(2, chat="2")
    stage.leave()
    ledger = stage.process()
    await work(stage, ledger)
    await work(stage, ledger)
    stage.come_back()
    save = stage.own.save_result

    async def refuse_one(task: Task, *args: object, **kwargs: object) -> object:
        if task.task_id == task_id:
            raise RecordTooLarge("over 16 MB")
        return await save(task, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage.own, "save_result", refuse_one)
    await stage.write_back().write_back()
    [parked] = await stage.queue.list_open(Selection(status=Status.SUSPENDED), limit=9)
    assert (parked.head.task_id, parked.reason) == (task_id, Reason.RETRIES_EXHAUSTED)
    assert "over 16 MB" in str(parked.error)
    assert await stage.own.run(run_id_of(other, 0)) is not None
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6", "CPY-4")
@pytest.mark.failure("C19")
@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_result_whose_task_the_queue_has_lost_waits_until_that_is_brought_back(
    stage: LateStage, comes_back: bool
):
    task_id = await stage.accept(1)
    stage.leave()
    await work(stage, stage.process())
    del stage.redis.tasks[task_id]
    writes = stage.write_back()
    with pytest.raises(MongoUnavailable):
        await writes.write_back()  # which alone knows that nobody has dropped it
    stage.come_back()
    stage.clock.step_wall(2 * LOST_SECONDS_MAX)  # of which nothing follows
    await writes.write_back()
    assert len(stage.redis.late) == 1
    if comes_back:
        await stage.queue.restore([delivery(1)])
    else:
        stage.clock.advance(LOST_SECONDS_MAX + 1)
    await writes.write_back()
    assert (await stage.own.latest_run(task_id) is not None) is comes_back
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6", "CPY-4")
@pytest.mark.failure("C19")
async def test_a_result_whose_task_the_queue_has_lost_keeps_no_other_of_its_chat_waiting(stage: LateStage):
    """That it comes out of its order is counted as the queue gets it back."""
    lost, other = await stage.accept(1), await stage.accept(2)
    stage.leave()
    await work(stage, stage.process())
    await work(stage, stage.process())
    del stage.redis.tasks[lost]
    stage.come_back()
    await stage.write_back().write_back()
    assert [await stage.own.latest_run(task_id) is not None for task_id in (lost, other)] == [False, True]
    await stage.queue.restore([delivery(1)])
    assert (await stage.queue.depth()).out_of_order == 1
    await stage.write_back().write_back()
    assert await stage.own.latest_run(lost) is not None
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6")
async def test_what_a_newer_version_wrote_waits_for_one_and_holds_nothing_up(stage: LateStage):
    await stage.late_way.put("of tomorrow", "chat", b'{"type":"tomorrow"}')
    task_id = await stage.accept(1)
    await work(stage, stage.process())
    assert await stage.own.latest_run(task_id) is None, "it waits behind"
    await stage.write_back().write_back()
    assert await stage.own.latest_run(task_id) is not None
    assert list(stage.redis.late) == ["of tomorrow"]


async def test_what_waits_is_read_as_it_was_written(stage: LateStage):
    await stage.accept(1)
    stage.leave()
    task = await work(stage, stage.process(), 3)
    [waiting] = await stage.late_way.page(limit=9)
    assert isinstance(waiting, Waiting)
    write = decode_late(waiting.write)
    assert encode_late(write) == waiting.write
    assert msgspec.to_builtins(write)["replies"] == msgspec.to_builtins(chunks(task, 3))
    assert TaskId(task.task_id) == task.task_id


@pytest.mark.req("CPY-6")
async def test_what_is_refused_is_said_and_holds_up_nothing_behind_it(
    stage: LateStage, monkeypatch: pytest.MonkeyPatch
):
    ledger = stage.process()
    stage.leave()
    for number in range(PAGE + 1):
        await ledger.save_step(RunId(f"run {number}"), "ask", b"1")
    task_id = await stage.accept(1)
    await work(stage, ledger)
    stage.come_back()

    async def refuse(*_: object) -> bytes:
        raise RecordTooLarge("over 16 MB")

    monkeypatch.setattr(stage.own, "save_step", refuse)
    await stage.write_back().write_back()
    assert stage.redis.late == {}
    assert await stage.own.run(run_id_of(task_id, 0)) is not None


@pytest.mark.req("CPY-6", "QUE-2")
@pytest.mark.failure("F1")
async def test_what_cannot_be_written_keeps_waiting_only_what_comes_behind_it(
    stage: LateStage, monkeypatch: pytest.MonkeyPatch
):
    ledger = stage.process()
    stage.leave()
    for number in range(PAGE):
        await ledger.add_attempt(RunId(f"{number}"), Attempt(at_ms=1, error="down", counted=False))
    ids = [await stage.accept(number, chat=chat) for number, chat in ((1, "1"), (2, "2"), (3, "1"), (4, "2"))]
    tasks = [await work(stage, ledger) for _ in ids]
    for task in tasks:
        await ledger.note_armed(task.run_id)
        await ledger.add_notice(notice(task, "late"), unless_run=task.run_id)
        await ledger.add_notice(notice(task, "sorry"))
    stage.come_back()
    save, refused = stage.own.save_result, run_id_of(ids[0], 0)

    async def refuse(*_: object, **__: object) -> None:
        raise MongoUnavailable("MongoDB refuses")

    async def refuse_one(task: Task, *args: object, **kwargs: object) -> object:
        return await (refuse() if task.run_id == refused else save(task, *args, **kwargs))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(stage.own, "add_attempt", refuse)
        patch.setattr(stage.own, "save_result", refuse_one)
        for _ in range(2):
            with pytest.raises(MongoUnavailable, match="refuses"):
                await stage.write_back().write_back()
    assert {chat: await texts(stage.own, chat) for chat in "12"} == {"1": [], "2": ["2.0", "4.0", "sorry", "sorry"]}
    await stage.write_back().write_back()
    assert stage.redis.late == {}
    assert await texts(stage.own, "1") == ["1.0", "3.0", "sorry", "sorry"]
    runs = [await stage.own.run(run_id_of(task_id, 0)) for task_id in ids]
    assert all(run is not None and run.is_armed for run in runs)


@pytest.mark.req("CPY-6")
async def test_a_ledger_that_is_away_is_not_asked_page_by_page(stage: LateStage):
    ledger = stage.process()
    stage.leave()
    for number in range(3 * PAGE):
        await ledger.add_attempt(RunId(f"{number}"), Attempt(at_ms=1, error="down", counted=False))
    stage.way.calls = 0
    with pytest.raises(MongoUnavailable):
        await stage.write_back().write_back()
    assert stage.way.calls <= PAGE + 1


@pytest.mark.req("CPY-6")
async def test_what_is_too_large_for_redis_waits_with_its_worker(stage: LateStage):
    ledger = stage.process()
    await stage.accept(1)
    task = (await claim_one(stage.queue)).task
    stage.leave()
    large = msgspec.structs.replace(ANSWERED, value={"text": "x" * LATE_BYTES_MAX})
    with pytest.raises(LedgerSilent):
        await ledger.save_result(task, large, [], [], deliver=True)
    assert stage.redis.late == {}
    stage.come_back()
    await ledger.save_result(task, large, [], [], deliver=True)
    assert await stage.own.run(task.run_id) is not None


@pytest.mark.req("CPY-6", "SUS-3", "SEC-5")
async def test_what_was_dropped_is_neither_remembered_nor_written(stage: LateStage):
    ledger = stage.process()
    task_id = await stage.accept(1)
    stage.leave()
    claim = msgspec.structs.replace(await claim_one(stage.queue), tasks_left=0)
    await ledger.save_step(claim.task.run_id, "ask", b"1")
    said = [HistoryLine(role="user", text="forget this", at_ms=1, run_id=claim.task.run_id)]
    await ledger.save_result(claim.task, ANSWERED, chunks(claim.task), said, deliver=True)
    await stage.queue.settle(claim, claim.task, Replying())
    stage.come_back()
    await ledger.finish(claim.task, Status.DROPPED, by="ada")
    await stage.queue.cancel(task_id)
    assert await stage.process().history("telegram", "7", "1", limit=10) == []
    await stage.write_back().write_back()
    assert await stage.own.steps(claim.task.run_id) == {}
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6", "CHN-4")
async def test_what_a_person_is_told_is_said_in_its_turn(stage: LateStage):
    ledger = stage.process()
    await stage.accept(1)
    stage.leave()
    claim = msgspec.structs.replace(await claim_one(stage.queue), tasks_left=0)
    await ledger.add_notice(notice(claim.task, "sorry"))
    await stage.queue.settle(claim, claim.task, Suspend(Reason.RETRIES_EXHAUSTED))
    await stage.accept(2)
    await work(stage, ledger)
    stage.come_back()
    await stage.write_back().write_back()
    assert await texts(stage.own, "1") == ["sorry", "2.0"]


@pytest.mark.req("CPY-6", "ENV-3")
async def test_whose_key_was_that_of_a_former_message_is_left_to_be_run_again(stage: LateStage):
    """A month later, when keys are forgotten."""
    former = delivery(1).head
    later = msgspec.structs.replace(former, accepted_at_ms=former.accepted_at_ms + 10**10)
    task_id = (await stage.queue.enqueue(msgspec.structs.replace(delivery(1), head=later))).task_id
    claim = msgspec.structs.replace(await claim_one(stage.queue), tasks_left=0)
    await stage.own.save_result(msgspec.structs.replace(claim.task, head=former), SILENT, [], [], deliver=True)
    stage.leave()
    await stage.process().save_result(claim.task, ANSWERED, chunks(claim.task), [], deliver=True)
    stage.come_back()
    await stage.write_back().write_back()  # before its worker has settled it
    await stage.queue.settle(claim, claim.task, Replying())
    [task] = await stage.queue.list_open(Selection(), limit=9)
    assert (task.head.task_id, task.status) == (task_id, Status.REPLYING)
    known = await stage.process().run(claim.task.run_id)
    assert known is not None
    assert known.is_of_former(task.head), "so the supervisor takes its result for lost"


async def work_again(stage: LateStage, ledger: Ledger, task: Task) -> Task:
    """As the next generation, which a person has asked for."""
    await stage.queue.cancel(task.task_id, generation=task.progress.generation)
    assert await stage.queue.restart(task, generation=task.progress.generation + 1)
    return await work(stage, ledger)


@pytest.mark.req("CPY-6", "CHN-3")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("moment", ["before the look", "after the look"])
@pytest.mark.parametrize("store", ["way", "late_way"])
@pytest.mark.parametrize("formers", [0, 1, 2])
async def test_a_result_that_is_written_back_between_two_looks_is_seen(
    stage: LateStage, formers: int, store: str, moment: str
):
    ledger, task_id = stage.process(), await stage.accept(1)
    task = await work(stage, ledger) if formers else None
    for _ in range(formers - 1):
        assert task is not None
        task = await work_again(stage, ledger, task)
    stage.leave()
    latest = await work(stage, ledger) if task is None else await work_again(stage, ledger, task)
    stage.come_back()
    way, looks = getattr(stage, store), ("latest_run", "first_of", "get")

    class Interrupted:
        """Somebody writes it back at the first look at this store."""

        def __getattr__(self, name: str) -> Any:
            async def call(*args: Any, **kwargs: Any) -> Any:
                if name in looks and moment == "before the look":
                    await written_back()
                answer = await getattr(inner, name)(*args, **kwargs)
                if name in looks and moment == "after the look":
                    await written_back()
                return answer

            return call

    async def written_back() -> None:
        if way._inner is not inner:
            way._inner = inner
            await stage.write_back().write_back()

    inner, way._inner = way._inner, Interrupted()
    run = await ledger.latest_run(task_id)
    assert run is not None
    assert (run.generation, run_id_of(run.task_id, run.generation)) == (formers, latest.run_id)
    assert stage.redis.late == {}


@pytest.mark.req("CPY-6", "CHN-3", "ENV-3")
async def test_the_latest_result_that_waits_is_known_whether_or_not_the_ledger_can_be_asked_for_the_former(
    stage: LateStage,
):
    ledger, task_id = stage.process(), await stage.accept(1)
    first = await work(stage, ledger)
    stage.leave()
    with pytest.raises(LedgerSilent):
        await ledger.latest_run(task_id)
    second = await work_again(stage, ledger, first)
    for process in (ledger, stage.process()):
        run = await process.latest_run(task_id)
        assert run is not None
        assert run.generation == 1
    third = await work_again(stage, ledger, second)
    run = await ledger.latest_run(task_id)
    assert run is not None
    assert run.generation == third.progress.generation == 2
    stage.come_back()
    assert await ledger.latest_run(task_id) == run
    stage.late_way.is_cut = True
    with pytest.raises(RedisUnavailable):
        await ledger.latest_run(task_id)


async def a_leader_whose_followers_end_is_lost(
    stage: LateStage, ledger: Ledger, *, generation: int = 0
) -> tuple[Task, TaskId]:
    """MongoDB is away while the follower ends, and back when its leader's result is saved; Redis is emptied between.

    `generation`: of the follower, of which the queue knows the first.
    """
    await stage.accept(1)
    follower_id = await stage.accept(2)
    follower = await stage.queue.get(follower_id)
    leader = (await claim_one(stage.queue)).task
    assert follower is not None
    follower = follower.in_generation(generation)
    stage.leave()
    ended = RunResult(outcome=Outcome.MERGED, value={"mergedInto": leader.task_id})
    assert (await ledger.save_result(follower, ended, [], [], deliver=False)).waits_for_ledger
    stage.come_back()
    stage.redis.late.clear()
    named = msgspec.structs.replace(ANSWERED, value={"merged": [follower.task_id], "mergedRuns": [follower.run_id]})
    run = await ledger.save_result(leader, named, chunks(leader, 1), [], deliver=True)
    assert run.waits_for_ledger, "it goes behind the end that it names"
    assert await sent_in_order(stage.own) == []
    return leader, follower_id


@pytest.mark.req("CPY-6", "CHN-3")
@pytest.mark.failure("D1")
@pytest.mark.parametrize("generation", [0, 1])
async def test_a_result_does_not_go_ahead_of_the_ends_that_it_names_and_whoever_writes_it_ends_them(
    stage: LateStage, generation: int
):
    ledger = stage.process()
    leader, follower_id = await a_leader_whose_followers_end_is_lost(stage, ledger, generation=generation)
    await stage.write_back().write_back()
    follower = await stage.own.run(run_id_of(follower_id, generation))
    assert follower is not None
    assert follower.merged_into == leader.task_id
    assert await stage.own.run(leader.run_id) is not None
    assert len(await sent_in_order(stage.own)) == 1


@pytest.mark.req("CPY-6", "CHN-3")
@pytest.mark.failure("D1")
async def test_a_result_waits_for_those_that_it_names_to_be_brought_back(stage: LateStage):
    ledger, back = stage.process(), stage.write_back()
    leader, follower_id = await a_leader_whose_followers_end_is_lost(stage, ledger)
    lost = await stage.queue.get(follower_id)
    await stage.queue.cancel(follower_id)
    await back.write_back()
    assert await stage.own.run(leader.run_id) is None
    assert lost is not None
    stage.redis.finished.clear()
    await stage.queue.restore([NewTask(lost.head, lost.raw)])
    await back.write_back()
    assert await stage.own.run(leader.run_id) is not None
    assert (await stage.own.latest_run(follower_id)) is not None


@pytest.mark.req("CPY-6", "CHN-3")
async def test_a_result_whose_named_ones_have_ended_goes_straight_into_the_ledger(stage: LateStage):
    ledger = stage.process()
    await stage.accept(1)
    follower = await stage.queue.get(await stage.accept(2))
    leader = (await claim_one(stage.queue)).task
    assert follower is not None
    ended = RunResult(outcome=Outcome.MERGED, value={"mergedInto": leader.task_id})
    await ledger.save_result(follower, ended, [], [], deliver=False)
    named = msgspec.structs.replace(ANSWERED, value={"merged": [follower.task_id], "mergedRuns": [follower.run_id]})
    assert not (await ledger.save_result(leader, named, chunks(leader, 1), [], deliver=True)).waits_for_ledger

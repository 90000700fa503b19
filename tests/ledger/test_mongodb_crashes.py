"""Whatever the ledger on MongoDB was writing when its process died, nothing is lost, doubled or out of order.

Each step is done by a process that dies after its first write, by one that dies after its second, and so on, until one
gets through. What it began is then taken up in two ways: by another process that does the same again, as the queue
makes it, and by a sender that knows nothing of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import pytest
from mongodb_databases import Died
from mongodb_stage import MongoStage
from structlog.testing import capture_logs

from rise.envelope import Outcome, Status
from rise.errors import MongoUnavailable, RecordTooLarge
from rise.ledger.documents import Document
from rise.ledger.mongodb import MongoLedger
from rise.ledger.mongodb_histories import Histories
from rise.ledger.port import (
    Again,
    Attempt,
    HeldUnknown,
    HistoryLine,
    Reply,
    ReplyKind,
    Resend,
    RunResult,
    SendEnding,
    Sent,
)
from rise.testing.conformance.ledger import (
    ANSWERED,
    answer,
    callback,
    chunks,
    notice,
    send,
    send_everything,
    take_one,
    task,
)

pytestmark = pytest.mark.slow

Step = Callable[[MongoLedger], Awaitable[object]]

TURNS = [HistoryLine(role="user", text="q", at_ms=1), HistoryLine(role="assistant", text="a", at_ms=1)]


async def interrupted(stage: MongoStage, step: Step, writes: int) -> bool:
    """Whether the process died over it, after so many writes."""
    ledger, database = await stage.mortal()
    database.writes_left = writes
    try:
        await step(ledger)
    except Died:
        return True
    return False


async def sent_by_a_new_sender(stage: MongoStage) -> list[str]:
    stage.pass_time(10)
    ledger = await stage.another()
    return await send_everything(ledger, await ledger.outbox_open())


async def save(ledger: MongoLedger) -> object:
    urgent, *rest = chunks(task(), 3)
    urgent = msgspec.structs.replace(urgent, chat_id="urgent:1")
    return await ledger.save_result(task(), ANSWERED, [urgent, *rest], TURNS, deliver=True)


@pytest.mark.req("OUT-1", "WRK-4")
@pytest.mark.failure("E2", "F1", "F4")
@pytest.mark.parametrize("is_repeated", [True, False])
async def test_a_result_that_was_being_saved_is_saved_once_and_answered(stages, is_repeated: bool):
    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, save, writes)
        if is_repeated:
            assert (await save(stage.ledger)).status is Status.REPLYING
        assert sorted(await sent_by_a_new_sender(stage)) == ["1.0", "1.1", "1.2"], writes
        run = await stage.ledger.run(task().run_id)
        assert run is not None
        assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED)
        assert [turn.text for turn in await stage.ledger.history("telegram", "7", "1", limit=9)] == ["q", "a"]
        assert await stage.ledger.steps(task().run_id) == {}
        if not has_died:
            break
    assert writes > 6, "it is more than one write"


@pytest.mark.req("OUT-1")
@pytest.mark.failure("F1", "G7")
async def test_what_comes_after_a_result_that_was_being_saved_does_not_overtake_it(stages):
    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, save, writes)
        # The worker that has the lane next: it asks after the first message before it goes on with the second.
        assert await stage.ledger.run(task().run_id) is not None
        await answer(stage.ledger, task(2))
        sent = await sent_by_a_new_sender(stage)
        assert [text for text in sent if text != "1.0"] == ["1.1", "1.2", "2.0"], writes
        if not has_died:
            break


@pytest.mark.req("ENV-7", "OUT-1")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("is_repeated", [True, False])
@pytest.mark.parametrize("has_a_result", [True, False])
async def test_a_callback_that_was_being_meant_goes_out_once(stages, has_a_result: bool, is_repeated: bool):
    async def end(ledger: MongoLedger) -> object:
        meant = callback(task())
        if has_a_result:
            return await ledger.save_result(task(), ANSWERED, [*chunks(task(), 2), meant], TURNS, deliver=False)
        return await ledger.finish(task(), Status.DROPPED, callback=meant)

    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, end, writes)
        if is_repeated:
            await end(stage.ledger)
        assert await sent_by_a_new_sender(stage) == ["ended"], writes
        run = await stage.ledger.run(task().run_id)
        assert run is not None
        assert run.status is (Status.COMPLETED if has_a_result else Status.DROPPED)
        if not has_died:
            break
    assert writes > 2, "it is more than one write"


@pytest.mark.req("WRK-4")
@pytest.mark.failure("F1")
async def test_what_its_reader_fetches_is_all_there_before_its_run_has_ended(stages):
    async def keep(ledger: MongoLedger) -> object:
        return await ledger.save_result(task(), ANSWERED, chunks(task(), 2), TURNS, deliver=False)

    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, keep, writes)
        if task().task_id in await stage.ledger.finished_among([task().task_id]):
            assert len(await stage.ledger.transcript("telegram", "7", "1", after=0, limit=9)) == 2
        run = await stage.ledger.run(task().run_id)
        assert run is not None
        assert run.status is Status.COMPLETED
        shown = await stage.ledger.transcript("telegram", "7", "1", after=0, limit=9)
        assert [reply.call.text for reply in shown] == ["1.0", "1.1"]
        assert len(await stage.ledger.history("telegram", "7", "1", limit=9)) == 2
        if not has_died:
            break


@pytest.mark.req("OUT-1")
async def test_a_reader_never_meets_a_number_and_later_a_smaller_one(stages):
    async def say(ledger: MongoLedger) -> object:
        return await ledger.add_notice(notice(task(), "queued"), deliver=False)

    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, say, writes)
        await stage.ledger.save_result(task(2), ANSWERED, chunks(task(2)), [], deliver=False)
        seen = await stage.ledger.transcript("telegram", "7", "1", after=0, limit=9)
        assert "2.0" in [reply.call.text for reply in seen]
        assert not await stage.ledger.add_notice(notice(task(), "queued"), deliver=False), "said once, ever"
        missed = await stage.ledger.transcript("telegram", "7", "1", after=seen[-1].sequence, limit=9)
        assert sorted(reply.call.text for reply in [*seen, *missed]) == ["2.0", "queued"], writes
        if not has_died:
            break


@pytest.mark.req("CHN-4", "OUT-1")
@pytest.mark.failure("G16")
async def test_what_is_only_right_before_an_answer_is_said_before_it_or_not_at_all(stages):
    async def say(ledger: MongoLedger) -> object:
        return await ledger.add_notice(notice(task(), "late"), unless_run=task().run_id)

    outcomes = set()
    for writes in itertools.count(1):
        stage = await stages()
        has_died = await interrupted(stage, say, writes)
        await answer(stage.ledger, task())
        assert not await say(stage.ledger), "it is there already, or comes too late"
        sent = await sent_by_a_new_sender(stage)
        assert sent in (["1.0"], ["late", "1.0"]), writes
        outcomes.add(len(sent))
        if not has_died:
            assert sent == ["late", "1.0"]
            break
    assert outcomes == {1, 2}


@pytest.mark.req("CHN-4")
@pytest.mark.failure("G16")
async def test_a_notice_that_is_said_while_its_answer_is_saved_never_comes_after_it(stages):
    stage = await stages()
    ledgers = [stage.ledger, await stage.another()]
    numbers = range(1, 13)
    said = await asyncio.gather(
        *(
            ledgers[number % 2].add_notice(notice(task(number), "late"), unless_run=task(number).run_id)
            for number in numbers
        ),
        *(answer(ledgers[number % 2], task(number)) for number in numbers),
    )
    kinds = {task(number).task_id: [] for number in numbers}
    for reply in await stage.ledger.transcript("telegram", "7", "1", after=0, limit=99):
        kinds[reply.task_id].append(reply.kind)
    for number, was_said in zip(numbers, said, strict=False):
        notices = [ReplyKind.NOTICE] if was_said else []
        assert kinds[task(number).task_id] == [*notices, ReplyKind.ANSWER]


def recording(fence: int, reply: Reply, ending: SendEnding) -> Step:
    return lambda ledger: ledger.outbox_record(fence, reply, ending)


async def begin_sending(ledger: MongoLedger) -> tuple[int, Reply]:
    fence = await ledger.outbox_open()
    reply = await take_one(ledger, fence)
    await ledger.outbox_sending(fence, reply)
    return fence, reply


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G2", "G8", "C13")
@pytest.mark.parametrize(
    ("ending", "then"),
    [
        (Sent("m"), ["1.1", "2.0"]),
        (Again(5.0, "429"), ["1.0", "1.1", "2.0"]),
        (HeldUnknown("timeout"), ["2.0"]),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_an_ending_that_was_being_recorded_is_recorded_or_a_doubt(stages, ending: SendEnding, then: list[str]):
    for writes in itertools.count(1):
        stage = await stages()
        await answer(stage.ledger, task(), 2)
        await answer(stage.ledger, task(2))
        fence, reply = await begin_sending(stage.ledger)
        has_died = await interrupted(stage, recording(fence, reply, ending), writes)
        # Its first write is the ending: there is no instant in which the chat goes on without it.
        assert await sent_by_a_new_sender(stage) == then, writes
        if not has_died:
            break


@pytest.mark.req("OUT-1")
@pytest.mark.failure("C13", "G8")
@pytest.mark.parametrize("ending", [Sent("m"), Again(0.0, "429"), Again(5.0, "429"), Again(0.0, "moved", chat_id="9")])
async def test_an_ending_whose_answer_was_lost_is_recorded_once(stages, ending: SendEnding):
    for writes in itertools.count(1):
        stage = await stages()
        await answer(stage.ledger, task(), 2)
        ledger, database = await stage.mortal()
        fence, reply = await begin_sending(ledger)
        database.ending, database.writes_left = MongoUnavailable, writes
        try:
            delivered = await ledger.outbox_record(fence, reply, ending)
            has_failed = False
        except MongoUnavailable:
            delivered, has_failed = await ledger.outbox_record(fence, reply, ending), True
        database.writes_left = None
        stage.pass_time(6)
        following = delivered.next
        while following is not None:
            following = await send(ledger, fence, following, Sent())
        await send_everything(ledger, fence)
        replies = await ledger.replies(run_id=task().run_id)
        assert [str(one.state) for one in replies] == ["sent", "sent"], writes
        assert replies[0].tries == isinstance(ending, Again)
        if not has_failed:
            break


@pytest.mark.failure("A13")
async def test_a_chat_that_was_moving_arrives_with_everything(stages):
    moved = Again(0.0, "moved", chat_id="new")
    for writes in itertools.count(1):
        stage = await stages()
        for number in (1, 2):
            await answer(stage.ledger, task(number, chat="old"))
        await stage.ledger.add_notice(notice(task(3, chat="old"), "queued"))
        fence, reply = await begin_sending(stage.ledger)
        has_died = await interrupted(stage, recording(fence, reply, moved), writes)
        await answer(stage.ledger, task(4, chat="new"))
        sent = await sent_by_a_new_sender(stage)
        assert [text for text in sent if text != "4.0"] == ["1.0", "2.0", "queued"], writes
        assert "4.0" in sent
        if not has_died:
            break
    assert {reply.chat_id for reply in await stage.ledger.replies(run_id=task(2).run_id)} == {"new"}


@pytest.mark.req("QUE-2", "OUT-1")
@pytest.mark.failure("A13")
@pytest.mark.parametrize("is_repeated", [True, False])
@pytest.mark.parametrize("later_id", ["old", "new"])
async def test_nothing_overtakes_what_waits_in_a_chat_that_was_being_moved(stages, later_id: str, is_repeated: bool):
    async def move(ledger: MongoLedger) -> object:
        return await ledger.move_chat("telegram", "7", "old", "new")

    for writes in itertools.count(1):
        stage = await stages()
        for number in (1, 2):
            await answer(stage.ledger, task(number, chat="old"), 2)
        has_died = await interrupted(stage, move, writes)
        if is_repeated:
            await move(stage.ledger)
        await answer(stage.ledger, task(3, chat=later_id))
        assert await sent_by_a_new_sender(stage) == ["1.0", "1.1", "2.0", "2.1", "3.0"], writes
        if is_repeated:
            assert {reply.chat_id for reply in await stage.ledger.replies(run_id=task(1).run_id)} == {"new"}
        if not has_died:
            break
    assert writes > 6, "it is more than one write"


@pytest.mark.req("OUT-1")
@pytest.mark.failure("A13")
async def test_what_is_saved_while_its_chat_moves_is_not_left_behind(stages):
    stage = await stages()
    ledgers = [stage.ledger, await stage.another()]
    numbers = range(1, 13)
    await asyncio.gather(
        *(answer(ledgers[number % 2], task(number, chat="old")) for number in numbers),
        *(ledger.move_chat("telegram", "7", "old", "new") for ledger in ledgers),
    )
    assert sorted(await sent_by_a_new_sender(stage)) == sorted(f"{number}.0" for number in numbers)
    replies = [await stage.ledger.replies(run_id=task(number).run_id) for number in numbers]
    assert {reply.chat_id for [reply] in replies} == {"new"}


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_what_was_being_released_from_hold_goes_out(stages):
    for writes in itertools.count(1):
        stage = await stages()
        await answer(stage.ledger, task(), 2)
        fence = await stage.ledger.outbox_open()
        await send(stage.ledger, fence, await take_one(stage.ledger, fence), HeldUnknown("timeout"))
        has_died = await interrupted(stage, lambda ledger: ledger.outbox_rearm(task().run_id), writes)
        assert await sent_by_a_new_sender(stage) == ["1.0", "1.1"], writes
        if not has_died:
            break


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G8")
async def test_a_chat_that_was_being_taken_is_free_for_the_next_sender(stages):
    for writes in itertools.count(1):
        stage = await stages()
        for number in (1, 2, 3):
            await answer(stage.ledger, task(number, chat=str(number)))
        fence = await stage.ledger.outbox_open()
        has_died = await interrupted(stage, partial(MongoLedger.outbox_take, fence=fence, limit=2), writes)
        assert sorted(await sent_by_a_new_sender(stage)) == ["1.0", "2.0", "3.0"], writes
        if not has_died:
            break


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("G7", "E11")
async def test_a_former_generation_is_not_answered_beside_the_new_one(stages):
    former, new = task(1), task(1, generation=1)
    for writes in itertools.count(1):
        stage = await stages()
        await answer(stage.ledger, former, 2)
        has_died = await interrupted(stage, lambda ledger: answer(ledger, new), writes)
        await answer(stage.ledger, new)
        assert await sent_by_a_new_sender(stage) == ["1.0"], writes
        run = await stage.ledger.run(former.run_id)
        assert run is not None
        assert run.status is Status.DROPPED
        if not has_died:
            break


@pytest.mark.failure("E11", "H8")
async def test_a_task_that_was_being_dropped_is_dropped_or_answered(stages):
    for writes in itertools.count(1):
        stage = await stages()
        await answer(stage.ledger, task(), 2)
        await stage.ledger.save_step(task().run_id, "llm", b"1")
        has_died = await interrupted(
            stage, lambda ledger: ledger.finish(task(), Status.DROPPED, by="ann", why="spam"), writes
        )
        dropped = await stage.ledger.finish(task(), Status.DROPPED, by="ann", why="spam")
        assert (dropped.status, dropped.by, dropped.why) == (Status.DROPPED, "ann", "spam")
        assert await stage.ledger.steps(task().run_id) == {}
        assert await sent_by_a_new_sender(stage) == []
        if not has_died:
            break


@pytest.mark.req("SEC-5")
async def test_what_was_being_forgotten_is_forgotten_wholly_the_next_time(stages):
    for writes in itertools.count(1):
        stage = await stages()
        await stage.ledger.add_notice(notice(task(), "queued"))
        await stage.ledger.save_result(task(), RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
        has_died = await interrupted(stage, lambda ledger: ledger.purge(finished_before_ms=10**15), writes)
        await stage.ledger.purge(finished_before_ms=10**15)
        assert await stage.ledger.replies(task_id=task().task_id) == [], writes
        assert await stage.ledger.run(task().run_id) is None
        assert stage.read("chats", {"claim": {"$exists": False}, "due": {"$exists": False}}) == {}
        if not has_died:
            break


@pytest.mark.req("EMB-3", "CPY-7")
async def test_one_that_was_emptied_has_its_name_again(stages):
    stage = await stages()
    ledger = MongoLedger(stage.databases[0], stage.clock, remembered=lambda: "as it was")
    assert await ledger.identity() == "as it was"
    assert await stage.ledger.identity() == "as it was"


async def test_what_is_too_large_to_be_kept_is_said_and_leaves_nothing(stages):
    stage = await stages()
    with pytest.raises(RecordTooLarge):
        await stage.ledger.save_result(
            task(), RunResult(outcome=Outcome.SILENT, value="x" * (17 << 20)), [], [], deliver=True
        )
    assert await stage.ledger.run(task().run_id) is None


@pytest.mark.req("CPY-6", "OUT-1")
async def test_a_run_whose_history_cannot_be_written_stops_nobody(stages, monkeypatch: pytest.MonkeyPatch):
    stage = await stages()
    for number in (1, 2):
        of = task(number, chat=str(number))
        step = partial(MongoLedger.save_result, task=of, result=ANSWERED, replies=chunks(of), history=TURNS)
        assert await interrupted(stage, partial(step, deliver=True), 1)
    add = Histories.add

    async def refuse_one(histories: Histories, run: Document) -> None:
        if run["_id"] == task(1).run_id:
            raise RecordTooLarge("over 16 MB")
        await add(histories, run)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(Histories, "add", refuse_one)
        assert sorted(await sent_by_a_new_sender(stage)) == ["1.0", "2.0"]
    assert {one["run_id"] for one in logs if one["event"] == "run.not_paid"} == {task(1).run_id}
    assert len(await stage.ledger.history("telegram", "7", "2", limit=9)) == len(TURNS)
    assert await stage.ledger.history("telegram", "7", "1", limit=9) == []
    assert await sent_by_a_new_sender(stage) == []
    assert len(await stage.ledger.history("telegram", "7", "1", limit=9)) == len(TURNS)


@pytest.mark.req("EMB-3")
async def test_a_history_is_in_the_order_in_which_it_came_whatever_the_clocks_of_its_hosts_say(stages):
    stage = await stages()
    ahead, behind = [await stage.mortal() for _ in range(2)]
    for number in range(1, 5):
        ledger, database = ahead if number % 2 else behind
        assert database.started_ms is not None
        database.started_ms += 5 if number == 1 else 0
        turns = [HistoryLine(role="user", text=f"{number}", at_ms=number)]
        await ledger.save_result(task(number), RunResult(outcome=Outcome.SILENT), [], turns, deliver=True)
    assert [turn.text for turn in await stage.ledger.history("telegram", "7", "1", limit=9)] == ["1", "2", "3", "4"]


async def test_whoever_numbers_at_the_same_time_gives_each_a_number_of_its_own(stages):
    stage = await stages()
    ledgers = [stage.ledger, await stage.another()]
    await asyncio.gather(
        *(answer(ledgers[number % 2], task(number), 2) for number in range(1, 9)),
        *(ledgers[number % 2].add_notice(notice(task(number), "queued")) for number in range(1, 9)),
    )
    shown = await stage.ledger.transcript("telegram", "7", "1", after=0, limit=99)
    assert len({reply.sequence for reply in shown}) == len(shown) == 24
    assert sum(reply.kind is ReplyKind.NOTICE for reply in shown) == 8
    assert await sent_by_a_new_sender(stage) == [reply.call.text for reply in shown]


async def test_what_was_sent_once_more_stays_counted_when_it_is_forgotten(stages):
    stage = await stages()
    await answer(stage.ledger, task())
    fence, reply = await begin_sending(stage.ledger)
    following = (await stage.ledger.outbox_record(fence, reply, Resend("timeout"))).next
    assert following is not None
    await send(stage.ledger, fence, following, Sent())
    assert await stage.ledger.purge(finished_before_ms=10**15) == 1
    assert (await stage.ledger.outbox_depth()).resent == 1


# --- forgetting ---


@pytest.mark.req("SEC-5")
async def test_a_chat_that_was_being_forgotten_is_forgotten_when_that_is_begun_anew(stages):
    async def forget(ledger: MongoLedger) -> object:
        return await ledger.forget_chat("telegram", "7", "1")

    for writes in itertools.count(0):
        stage = await stages()
        for of in (task(1), task(2)):
            await stage.ledger.add_notice(notice(of, f"late {of.task_id}"), deliver=False)
            await stage.ledger.add_attempt(of.run_id, Attempt(at_ms=1, error="boom", counted=True))
            await stage.ledger.save_result(of, ANSWERED, chunks(of, 2), TURNS, deliver=False)
        await stage.ledger.save_result(task(3, chat="2"), ANSWERED, chunks(task(3, chat="2")), TURNS, deliver=False)
        has_died = await interrupted(stage, forget, writes)
        assert len(await stage.ledger.finished_among([task(n).task_id for n in (1, 2, 3)])) == 3, writes
        await forget(stage.ledger)
        for of in (task(1), task(2)):
            archived = await stage.ledger.archived(of.task_id)
            assert archived is not None
            assert (archived.raw, archived.head.chat_id) == (b"", None), writes
            assert await stage.ledger.replies(task_id=of.task_id) == []
            assert await stage.ledger.attempts(of.run_id) == []
        assert await stage.ledger.history("telegram", "7", "1", limit=9) == []
        assert len(await stage.ledger.replies(task_id=task(3).task_id)) == 1
        assert len(await stage.ledger.history("telegram", "7", "2", limit=9)) == 2
        if not has_died:
            break
    assert writes > 5, "it is more than one write"

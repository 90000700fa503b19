"""Two processes at the same thing: whatever one has read when the other gets in between, it comes to the same.

One of them stops before its first write, then before its second, and so on, until it has no more to make; meanwhile
the other does all of what it has to do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from mongodb_databases import Died
from mongodb_stage import MongoStage

from rise.envelope import Outcome, Status
from rise.ledger.documents import Document
from rise.ledger.mongodb import MongoLedger
from rise.ledger.port import HistoryLine, ReplyKind, Run, RunResult
from rise.testing.conformance.ledger import ANSWERED, callback_saying, chunks, send_everything, task

pytestmark = pytest.mark.slow

Step = Callable[[MongoLedger], Awaitable[Run]]

SILENT = RunResult(outcome=Outcome.SILENT)
TURNS = [HistoryLine(role="user", text="q", at_ms=1), HistoryLine(role="assistant", text="a", at_ms=1)]


async def interleaved(stage: MongoStage, slow: Step, other: Callable[[], Awaitable[object]], write: int) -> bool:
    """The other gets in before so many writes of the slow one. Whether that makes as many."""
    ledger, database = await stage.slow()
    database.writes_left = write
    going = asyncio.create_task(slow(ledger))
    stopping = asyncio.create_task(database.has_stopped.wait())
    await asyncio.wait({going, stopping}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    has_stopped = database.has_stopped.is_set()
    await other()
    database.may_go_on.set()
    await going
    return has_stopped


async def sent_by_a_new_sender(stage: MongoStage) -> list[str]:
    stage.pass_time(10)
    ledger = await stage.another()
    async with asyncio.timeout(30):
        return await send_everything(ledger, await ledger.outbox_open())


def saving(*, deliver: bool) -> Step:
    meant = [*chunks(task()), callback_saying(task(), "completed")]
    return lambda ledger: ledger.save_result(task(), ANSWERED, meant, TURNS, deliver=deliver)


def dropping(ledger: MongoLedger) -> Awaitable[Run]:
    return ledger.finish(task(), Status.DROPPED, by="ann", callback=callback_saying(task(), "dropped"))


@pytest.mark.req("ENV-7", "OUT-1")
@pytest.mark.failure("E11", "H8")
@pytest.mark.parametrize("deliver", [False, True], ids=["fetched", "sent out"])
@pytest.mark.parametrize("is_drop_slow", [False, True], ids=["save is slow", "drop is slow"])
async def test_what_is_dropped_while_its_result_is_saved_is_called_back_once_and_as_it_ended(
    stages, is_drop_slow: bool, deliver: bool
):
    save = saving(deliver=deliver)
    slow, other = (dropping, save) if is_drop_slow else (save, dropping)
    ends = set()
    for write in itertools.count(1):
        stage = await stages()
        other_ledger = await stage.another()
        has_stopped = await interleaved(stage, slow, lambda: other(other_ledger), write)  # noqa: B023
        run = await stage.ledger.run(task().run_id)
        assert run is not None
        kept = await stage.ledger.replies(run_id=task().run_id)
        assert [str(one.kind) for one in kept].count("callback") == 1, write
        said = [one.call.text for one in kept if one.kind is ReplyKind.CALLBACK]
        assert said == ["dropped" if run.status is Status.DROPPED else "completed"], write
        assert await sent_by_a_new_sender(stage) == said, write
        assert await save(stage.ledger) == await dropping(stage.ledger) == run, "it stays as it is"
        assert await sent_by_a_new_sender(stage) == []
        ends.add((run.status, run.outcome))
        if not has_stopped:
            break
    assert write > 2, "it is more than one write"
    dropped, completed = (Status.DROPPED, None), (Status.COMPLETED, Outcome.ANSWERED)
    # One whose reply is fetched is over with its first write; who drops what is sent out is in time.
    assert ends == ({dropped} if deliver else {dropped, completed})


@pytest.mark.req("ENV-7", "OUT-1")
@pytest.mark.failure("E11", "F1", "H8")
@pytest.mark.parametrize("deliver", [False, True], ids=["fetched", "sent out"])
@pytest.mark.parametrize("is_drop_first", [False, True], ids=["save dies", "drop dies"])
async def test_whoever_dies_over_one_of_them_leaves_one_callback_to_the_other(
    stages, is_drop_first: bool, deliver: bool
):
    save = saving(deliver=deliver)
    first, then = (dropping, save) if is_drop_first else (save, dropping)
    for writes in itertools.count(1):
        stage = await stages()
        ledger, database = await stage.mortal()
        database.writes_left = writes
        has_died = False
        try:
            await first(ledger)
        except Died:
            has_died = True
        run = await then(stage.ledger)
        said = ["dropped" if run.status is Status.DROPPED else "completed"]
        assert await sent_by_a_new_sender(stage) == said, writes
        assert await first(stage.ledger) == run
        assert await sent_by_a_new_sender(stage) == []
        if not has_died:
            break
    assert writes > 2, "it is more than one write"


# --- forgetting ---

SAID = [HistoryLine(role="user", text="my name is Ann", at_ms=1, run_id=task().run_id)]


async def dropped_and_forgotten(ledger: MongoLedger) -> Run:
    """As `rise forget --drop-open` does, in steps of one run."""
    run = await ledger.finish(task(), Status.DROPPED, by="ann")
    after: str | None = ""
    while after is not None:
        after = (await ledger.forget_chat("telegram", "7", "1", after=after, limit=1)).after
    return run


async def all_that_is_kept(stage: MongoStage) -> str:
    return "".join(str(stage.read(name, {"_id": key})) for name in ("runs", "histories") for key in stage.keys(name))


@pytest.mark.req("SEC-5")
@pytest.mark.failure("E11", "H8")
@pytest.mark.parametrize("has_history", [False, True], ids=["its first words", "among others"])
@pytest.mark.parametrize("slow", ["save", "read"])
async def test_what_was_forgotten_while_it_was_being_written_down_does_not_come_back(
    stages, slow: str, has_history: bool
):
    async def save(ledger: MongoLedger) -> Run:
        return await ledger.save_result(task(), ANSWERED, chunks(task()), SAID, deliver=True)

    async def read(ledger: MongoLedger) -> Run:
        return await ledger.run(task().run_id) or await save(ledger)

    for write in itertools.count(1):
        stage = await stages()
        if has_history:
            before = [HistoryLine(role="user", text="Ann before", at_ms=1)]
            await stage.ledger.save_result(task(2), SILENT, [], before, deliver=True)
        if slow == "read":
            dying, database = await stage.mortal()
            database.writes_left = 1
            with pytest.raises(Died):
                await save(dying)
        person = await stage.another()
        has_stopped = await interleaved(
            stage,
            save if slow == "save" else read,
            lambda: dropped_and_forgotten(person),  # noqa: B023
            write,
        )
        assert await stage.ledger.history("telegram", "7", "1", limit=50) == [], write
        assert "Ann" not in await all_that_is_kept(stage), write
        assert await sent_by_a_new_sender(stage) == []
        assert "Ann" not in await all_that_is_kept(stage), write
        later = [HistoryLine(role="user", text="hello", at_ms=2)]
        await stage.ledger.save_result(task(3), SILENT, [], later, deliver=True)
        assert [turn.text for turn in await stage.ledger.history("telegram", "7", "1", limit=50)] == ["hello"]
        if not has_stopped:
            break
    assert write > 4, "it is more than one write"


@pytest.mark.req("SEC-5")
@pytest.mark.failure("F1", "H8")
async def test_whatever_forgetting_has_done_when_a_worker_writes_down_the_words_they_are_gone_in_the_end(stages):
    for write in itertools.count(1):
        stage = await stages()
        worker, database = await stage.slow()
        add = worker._histories.add

        async def add_late(run: Document) -> None:
            database.writes_left = 1  # noqa: B023
            await add(run)  # noqa: B023

        worker._histories.add = add_late  # type: ignore[method-assign]
        saving = asyncio.create_task(worker.save_result(task(), ANSWERED, chunks(task()), SAID, deliver=True))
        await asyncio.wait_for(database.has_stopped.wait(), 20)

        async def work() -> None:
            database.may_go_on.set()  # noqa: B023
            await saving  # noqa: B023

        has_stopped = await interleaved(stage, dropped_and_forgotten, work, write)
        assert "Ann" not in await all_that_is_kept(stage), write
        if not has_stopped:
            break
    assert write > 6, "it is more than one write"


@pytest.mark.req("SEC-5")
async def test_that_a_chat_was_forgotten_is_itself_forgotten_with_what_ended_then(stages):
    stage = await stages()
    await dropped_and_forgotten(stage.ledger)
    [key] = stage.keys("histories")
    await stage.ledger.forget_history(said_before_ms=10**15)
    assert stage.keys("histories") == [key]
    run = await stage.ledger.run(task().run_id)
    assert run is not None
    await stage.ledger.purge(finished_before_ms=run.finished_at_ms or 0)
    assert stage.keys("histories") == [key]
    await stage.ledger.purge(finished_before_ms=10**15)
    assert stage.keys("histories") == []

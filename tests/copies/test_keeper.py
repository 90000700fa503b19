"""An emptied queue hands out nothing until everything is back; a mirror that lost its copies gets them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from copies_stage import Installation, Killed, Process, attempt, ids, in_journal
from structlog.testing import capture_logs

from rise.copies import keeper as keeper_module
from rise.copies.journal import FIRST_LOOK_MS
from rise.copies.keeper import COUNT_SECONDS, PATIENCE_SECONDS
from rise.copies.reaper import HOLD_SECONDS, PARKED_LOOK_SECONDS
from rise.copies.relay import YOUNG_MS
from rise.envelope import Progress, Status, Task
from rise.errors import StoreUnavailable, Unavailable
from rise.ledger.port import Office
from rise.offices import LEASE_SECONDS
from rise.queue.port import NewTask


@pytest.fixture
async def process(installation: Installation) -> AsyncIterator[Process]:
    """The one that has the office."""
    process = await installation.process()
    process.keeper._office._ours_until = float("inf")
    yield process
    await process.keeper.stop()


async def kept(process: Process, installation: Installation, *numbers: int, chat: str = "1") -> list[NewTask]:
    messages = [installation.message(number, chat=chat) for number in numbers]
    await process.keep(*messages)
    await process.asked()
    return messages


async def rounds(process: Process, count: int = 1, *, seconds: float = 0.0) -> None:
    """Of the keeper, as its loop makes them."""
    for _ in range(count):
        process.clock.advance(seconds)
        going = asyncio.ensure_future(process.keeper._round())
        await process.clock.until_sleeping()
        process.clock.advance(keeper_module.ROUND_SECONDS)
        await going


def events(logs: list[dict[str, object]], name: str) -> list[dict[str, object]]:
    return [each for each in logs if each["event"] == name]


# --- an emptied queue ---


@pytest.mark.req("CPY-5", "QUE-5", "CPY-7")
@pytest.mark.failure("C19", "M5", "M6")
async def test_an_emptied_queue_gets_everything_back_before_anything_is_handed_out(
    installation: Installation, process: Process
):
    dead, alive = await installation.process(), await installation.process()
    await kept(process, installation, 5, 2)
    await kept(dead, installation, 1, 6)
    await kept(alive, installation, 4)
    alive.journals._own = None
    [only_in_mirror] = await kept(alive, installation, 3)
    await dead.die()
    assert await installation.work(count=1) == [1]
    installation.queue.empty()
    accepted = await kept(process, installation, 7)
    assert await installation.work() == [], "half of the chat is missing"
    assert installation.in_queue() == ids(accepted), "accepting goes on"
    with capture_logs() as logs:
        await rounds(process)
    assert only_in_mirror.head.task_id in installation.in_queue()
    assert events(logs, "queue.refilled")[0]["count"] == 5
    assert await installation.work() == [2, 3, 4, 5, 6, 7]
    assert set(installation.runs.values()) == {1}


@pytest.mark.req("CPY-5")
async def test_only_the_one_with_the_office_does_any_of_it(installation: Installation):
    one, two = await installation.process(), await installation.process()
    await kept(one, installation, 1)
    installation.queue.empty()
    await rounds(two, 3)
    assert (two.queue.link.calls, two.mirror.link.calls if two.mirror else None) == ({"life": 1}, {})
    two.keeper._office._ours_until = float("inf")
    await rounds(two)
    assert await installation.work() == [1]


@pytest.mark.failure("I1", "I11")
async def test_who_loses_the_office_holds_back_nothing_from_who_has_it_now(
    installation: Installation, process: Process
):
    heir = await installation.process()
    await kept(process, installation, 1)
    await rounds(process)
    assert installation.mirror.looking == {False: process.mirror}
    heir.keeper._office._ours_until = float("inf")
    await rounds(heir)
    assert installation.mirror.looking == {False: process.mirror}
    process.keeper._office.doubt()
    await rounds(process)
    assert installation.mirror.looking == {}
    await rounds(heir)
    assert installation.mirror.looking == {False: heir.mirror}
    await rounds(process, 3)
    assert process.mirror is not None
    assert process.mirror.link.calls["let_go"] == 1, "once is enough"


@pytest.mark.req("CPY-5")
@pytest.mark.failure("I6")
@pytest.mark.parametrize("store", ["queue", "ledger", "mirror"])
async def test_killed_at_any_step_of_it_somebody_begins_again_and_nothing_is_lost_or_run_twice(
    installation: Installation, store: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeper_module, "PAGE", 2)
    first = await installation.process()
    await kept(first, installation, *range(1, 6))
    first.journals._own = None
    await kept(first, installation, 6, 7)
    assert await installation.work(count=2) == [1, 2]
    for step in range(40):
        installation.queue.empty()
        keeper = await installation.process(begins=False)
        stores = {"queue": keeper.queue, "ledger": keeper.ledger, "mirror": keeper.mirror}
        stores[store].link.dies_before_call = step  # type: ignore[union-attr]
        try:
            await keeper.keeper.refill()
        except Killed:
            assert await installation.work() == [], "a part of it is not handed out"
            await keeper.die()
            heir = await installation.process(begins=False)
            await heir.keeper.refill()
            assert {task.head.order.seq for task in installation.queue.tasks.values()} == {3, 4, 5, 6, 7}
            await heir.die()
        else:
            break
    else:
        pytest.fail("it never came to its end")
    assert step >= 3
    assert await installation.work() == [3, 4, 5, 6, 7]
    assert set(installation.runs.values()) == {1}


@pytest.mark.req("CPY-5")
@pytest.mark.failure("I6")
@pytest.mark.parametrize("store", ["queue", "ledger"])
async def test_a_store_that_fails_in_the_middle_ends_no_filling_too_early(
    installation: Installation, process: Process, store: str
):
    messages = await kept(process, installation, 1, 2)
    process.journals._own = None
    messages += await kept(process, installation, 3)
    installation.queue.empty()
    link = process.queue.link if store == "queue" else process.ledger.link
    with capture_logs() as logs:
        link.refuses = {"begin_life"} if store == "queue" else {"finished_among"}
        await rounds(process)
    said = events(logs, "keeper.delayed")[0]
    assert (said["duty"], said["consequence"]) == ("refill", "accepting goes on; done once it answers")
    for method in ("restore", "begin_life", "begin_refill") if store == "queue" else ("finished_among",):
        link.refuses = {method}
        await rounds(process, 3, seconds=PATIENCE_SECONDS)
        assert installation.queue.life is None, "that is no copy that can be done without"
    link.refuses = set()
    await rounds(process)
    assert installation.in_queue() == ids(messages)
    assert await installation.work() == [1, 2, 3]


@pytest.mark.req("CPY-5")
@pytest.mark.failure("I8", "C19")
@pytest.mark.parametrize("at", [("restore", 2), ("restore", 3), ("begin_life", 1)])
async def test_emptied_again_while_it_is_filled_it_is_filled_again(without_mirror: Installation, at: tuple[str, int]):
    process = await without_mirror.process()
    process.keeper._office._ours_until = float("inf")
    messages = await kept(process, without_mirror, 1, 2, 3)
    without_mirror.queue.empty()
    method, time = at
    calls, before = process.queue.link.calls, process.queue.link.calls[method]
    process.queue.link.before[method] = lambda: without_mirror.queue.empty() if calls[method] == before + time else None
    with capture_logs() as logs:
        await rounds(process)
    assert events(logs, "queue.emptied_again") != []
    assert without_mirror.queue.life is None
    assert await without_mirror.work() == []
    await rounds(process)
    assert without_mirror.in_queue() == ids(messages)
    assert await without_mirror.work() == [1, 2, 3]


@pytest.mark.req("CPY-5", "QUE-2")
@pytest.mark.failure("I7")
async def test_relays_workers_and_new_messages_beside_it_change_nothing(installation: Installation, process: Process):
    other = await installation.process()
    await kept(process, installation, *range(0, 40, 2))
    await kept(other, installation, *range(1, 40, 2))
    await other.round()
    done = await installation.work(count=5)
    for cycle in range(3):
        installation.queue.empty()
        new = [installation.message(100 * (cycle + 1) + number) for number in range(10)]
        installation.clock.advance(YOUNG_MS / 1000)
        await asyncio.gather(
            attempt(process.keeper.refill),
            attempt(other.keeper.refill),  # both think for a moment that they have the office
            process.round(),
            other.round(),
            *map(other.copies.keep, new),
        )
        await other.asked()
        await other.keeper._rest()
        await rounds(process)
        done += await installation.work(count=15)
    done += await installation.work()
    assert done == sorted(done)
    assert set(done) == {*range(40), *(100 * cycle + number for cycle in (1, 2, 3) for number in range(10))}
    assert set(installation.runs.values()) == {1}
    assert installation.queue.duplicates == 0


@pytest.mark.req("CPY-5")
@pytest.mark.failure("I7")
async def test_traffic_that_never_ends_does_not_keep_it_from_its_end(installation: Installation, process: Process):
    await kept(process, installation, 1)
    installation.queue.empty()
    number = 1
    restore = process.work.queue.restore

    async def with_traffic(tasks):
        nonlocal number
        number += 1
        await process.copies.keep(installation.message(number))
        await process.asked()
        return await restore(tasks)

    process.queue.restore = with_traffic  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        await process.keeper.refill()
    assert installation.queue.life is not None


@pytest.mark.failure("I5", "F11")
async def test_what_was_finished_while_the_queue_was_empty_is_not_run_again(
    installation: Installation, process: Process
):
    await kept(process, installation, 1, 2)
    worker = installation.worker()
    [claim] = (await worker.claim("worker", {"telegram": 1}, takes_suspects=True)).claims
    installation.queue.empty()
    await rounds(process)
    await installation.finish(claim.task)  # by the one who lost the claim meanwhile: the ledger has it
    installation.queue.empty()
    await rounds(process)
    assert await installation.work() == [2]
    assert set(installation.runs.values()) == {1}


# --- copies that are away, too ---


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C19", "C21")
async def test_a_mirror_that_is_away_too_is_waited_for_and_then_not(installation: Installation, process: Process):
    assert process.mirror is not None
    await kept(process, installation, 1)
    journal, process.journals._own = process.journals._own, None
    await kept(process, installation, 2)
    process.journals._own = journal
    installation.clock.advance(HOLD_SECONDS)
    await rounds(process)
    assert installation.mirror.count(parked=True) == 2, "it looks at them in ten minutes again"
    installation.queue.empty()
    process.mirror.link.is_down = True
    await rounds(process, 3, seconds=PATIENCE_SECONDS / 3 - 1)
    assert installation.queue.life is None
    with capture_logs() as logs:
        await rounds(process, 2, seconds=PATIENCE_SECONDS)
    assert events(logs, "queue.refilled_in_part")[0]["without"] == "the mirror"
    assert await installation.work() == [1]
    process.mirror.link.is_down = False
    await rounds(process)
    assert await installation.work() == [2], "at once, and not when it is looked at next"
    installation.queue.empty()
    process.mirror.link.is_down = True
    await rounds(process)
    assert installation.queue.life is None, "the patience begins anew"


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C9", "L9")
async def test_a_journal_that_cannot_be_read_is_waited_for_and_then_not(
    installation: Installation, process: Process, monkeypatch: pytest.MonkeyPatch
):
    other = await installation.process()
    await kept(process, installation, 1)
    await kept(other, installation, 2)
    number = process.journals.own.number
    installation.queue.empty()
    installation.mirror.empty()
    read = keeper_module.Journal.last_number

    async def unreadable(journal):
        if journal.number == number:
            raise StoreUnavailable("an error of the disk")
        return await read(journal)

    monkeypatch.setattr(keeper_module.Journal, "last_number", unreadable)
    await rounds(process)
    assert installation.queue.life is None
    await rounds(process, seconds=PATIENCE_SECONDS)
    assert await installation.work() == [2]
    monkeypatch.undo()
    installation.clock.advance(YOUNG_MS / 1000)
    await process.round()
    assert await installation.work() == [1], "its own relay brings it when it can be read"


@pytest.mark.req("CPY-5")
async def test_without_a_mirror_the_journals_are_enough(without_mirror: Installation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keeper_module, "PAGE", 2)
    process = await without_mirror.process()
    process.keeper._office._ours_until = float("inf")
    messages = await kept(process, without_mirror, *range(7))
    without_mirror.queue.empty()
    await rounds(process, 2)
    assert without_mirror.in_queue() == ids(messages)


# --- a mirror that lost what it held ---


@pytest.mark.req("CPY-7", "CPY-1")
@pytest.mark.failure("C22", "M5")
async def test_a_mirror_that_was_emptied_gets_its_copies_again(installation: Installation, process: Process):
    other = await installation.process()
    messages = await kept(process, installation, 1, 2) + await kept(other, installation, 3)
    await process.round()
    await other.round()
    await rounds(process)
    installation.mirror.empty()
    with capture_logs() as logs:
        await rounds(process, seconds=COUNT_SECONDS)
        assert events(logs, "copies.lost") == [], "it may have been a moment between two counts"
        await rounds(process, seconds=COUNT_SECONDS)
    [said] = events(logs, "copies.lost")
    assert (said["copy"], said["count"], said["log_level"]) == ("rabbitmq", 3, "error")
    await process.round()
    await other.round()
    assert installation.in_mirror() == dict.fromkeys(ids(messages), 1)


@pytest.mark.req("CPY-1")
@pytest.mark.failure("I5", "M10")
async def test_what_is_finished_and_still_in_a_journal_is_not_missed_in_the_mirror(
    installation: Installation, process: Process
):
    await kept(process, installation, *range(10))
    await process.round()
    installation.clock.advance(FIRST_LOOK_MS / 1000)
    await process.round()
    await installation.work(count=8)
    with capture_logs() as logs:
        await rounds(process, 6, seconds=COUNT_SECONDS)
    assert len(await in_journal(process.journals.own)) == 10, "it looks seldom"
    assert sum(installation.in_mirror().values()) == 2
    assert events(logs, "copies.lost") == []


@pytest.mark.req("CPY-7", "CPY-1")
@pytest.mark.failure("C22", "M10")
async def test_what_no_journal_knows_of_hides_no_loss_and_is_not_missed_when_it_ends(
    installation: Installation, process: Process
):
    known = await kept(process, installation, 1, 2)
    await process.round()
    own, process.journals._own = process.journals.own, None
    [unknown] = await kept(process, installation, 3, chat="2")
    process.journals._own = own
    await rounds(process, 2, seconds=HOLD_SECONDS)
    assert installation.mirror.count(parked=True) == 3
    lost = known[0].head.task_id
    installation.mirror.copies[:] = [copy for copy in installation.mirror.copies if copy.task_id != lost]
    with capture_logs() as logs:
        await rounds(process, 3, seconds=COUNT_SECONDS)
    assert [said["count"] for said in events(logs, "copies.lost")] == [1]
    await process.round()
    await rounds(process, 2, seconds=PARKED_LOOK_SECONDS)
    assert installation.in_mirror() == dict.fromkeys(ids([*known, unknown]), 1)
    with capture_logs() as logs:
        await installation.finish(Task(unknown.head, unknown.raw, Progress(status=Status.PENDING)))
        await rounds(process, 3, seconds=COUNT_SECONDS)
        await rounds(process, 3, seconds=PARKED_LOOK_SECONDS)
    assert installation.in_mirror() == dict.fromkeys(ids(known), 1)
    assert events(logs, "copies.lost") == []


@pytest.mark.req("CPY-1")
@pytest.mark.failure("I3", "M10")
async def test_of_what_two_journals_know_one_copy_is_enough(installation: Installation, process: Process):
    other = await installation.process()
    messages = await kept(process, installation, 1, 2)
    await other.keep(messages[0])
    await other.asked()
    await process.round()
    await other.round()
    with capture_logs() as logs:
        await rounds(process, 4, seconds=COUNT_SECONDS)
        assert installation.in_mirror() == dict.fromkeys(ids(messages), 1)
        assert events(logs, "copies.lost") == []
        installation.mirror.copies.pop()
        await rounds(process, 2, seconds=COUNT_SECONDS)
    assert [said["count"] for said in events(logs, "copies.lost")] == [1]


@pytest.mark.failure("M10")
async def test_a_journal_that_cannot_be_read_hides_nothing_of_the_others(
    installation: Installation, process: Process, monkeypatch: pytest.MonkeyPatch
):
    other = await installation.process()
    await kept(process, installation, 1)
    await kept(other, installation, 2)
    await process.round()
    await other.round()
    installation.mirror.empty()
    number, read = other.journals.own.number, keeper_module.Journal.last_number

    async def unreadable(journal):
        if journal.number == number:
            raise StoreUnavailable("an error of the disk")
        return await read(journal)

    monkeypatch.setattr(keeper_module.Journal, "last_number", unreadable)
    with capture_logs() as logs:
        await rounds(process, 3, seconds=COUNT_SECONDS)
    assert len(events(logs, "copies.lost")) == 1


# --- as it runs ---


@pytest.mark.req("CPY-5", "QUE-5")
@pytest.mark.failure("C19", "I1")
async def test_the_loop_does_it_by_itself_and_another_goes_on_when_its_process_dies(installation: Installation):
    one, two = await installation.process(), await installation.process()
    messages = await kept(one, installation, 1, 2)
    clock = installation.clock

    async def pass_time(seconds: float, sleepers: int) -> None:
        for _ in range(round(seconds * 2)):
            await clock.until_sleeping(sleepers)
            clock.advance(0.5)
        await clock.until_sleeping(sleepers)

    await one.keeper.start()
    await pass_time(1, 2)
    await two.keeper.start()
    await pass_time(1, 4)
    assert installation.ledger.offices[Office.KEEPER][0] == one.bus.member
    await one.keeper._loop.stop()  # it is gone, without a word
    await one.keeper._office._loop.stop()
    await one.die()
    installation.queue.empty()
    await pass_time(LEASE_SECONDS + 3, 2)
    assert installation.ledger.offices[Office.KEEPER][0] == two.bus.member
    assert installation.in_queue() == ids(messages)
    assert installation.queue.life is not None
    await two.keeper.stop()
    assert installation.mirror.looking == {}


@pytest.mark.failure("L7")
async def test_a_store_that_is_away_keeps_it_from_no_other_duty(installation: Installation, process: Process):
    await kept(process, installation, 1)
    process.queue.link.is_down = True
    await installation.work()
    await rounds(process)
    assert not installation.in_mirror()
    with pytest.raises(Unavailable):
        await process.keeper.refill()

"""Whatever a store lacks it gets, and what is finished is let go of; any number of times."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from copies_stage import HOUR_SECONDS, Installation, Process, attempt, ids, in_journal, until
from structlog.testing import capture_logs

from rise.copies import relay as relay_module
from rise.copies.journal import FIRST_LOOK_MS, LOOK_MS_MAX, Journal, RunName
from rise.envelope import LaneKey
from rise.errors import RabbitUnavailable, RedisFull, StoreUnavailable
from rise.queue.port import NewTask
from rise.testing.conformance.queue import delivery

YOUNG_SECONDS = relay_module.YOUNG_MS / 1000


async def kept(process: Process, installation: Installation, *numbers: int, chat: str = "1") -> list[NewTask]:
    messages = [installation.message(number, chat=chat) for number in numbers]
    await process.keep(*messages)
    await process.asked()
    return messages


def times_restored(process: Process) -> int:
    return process.queue.link.calls["restore"]


@pytest.mark.req("CPY-4")
@pytest.mark.failure("C2", "C11")
async def test_what_was_accepted_without_the_queue_comes_to_it_once_and_in_order(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    messages = await kept(process, installation, 3, 1, 2) + await kept(process, installation, 5, 4, chat="2")
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    assert installation.in_queue() == set()
    process.queue.link.is_down = False
    await process.round()
    assert installation.in_queue() == ids(messages)
    assert (installation.queue.duplicates, installation.queue.out_of_order) == (0, 0)
    before = times_restored(process)
    await process.round()
    assert times_restored(process) == before, "it is noted that they are there"
    assert await installation.work() == [1, 2, 3, 4, 5]


@pytest.mark.req("CPY-4", "QUE-2")
async def test_a_chat_that_is_worked_on_meanwhile_gets_its_messages_in_order(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    await kept(process, installation, 3, 1, 2)
    process.queue.link.is_down = False
    installation.clock.advance(YOUNG_SECONDS)
    order: list[int] = []
    restore = process.queue._restore

    def watched(task: NewTask) -> bool:
        order.append(task.head.order.seq)
        return restore(task)

    process.queue._restore = watched  # type: ignore[method-assign]
    await process.round()
    assert order == [1, 2, 3], "a worker may take the first before the second is there"


@pytest.mark.req("CPY-4", "QUE-2")
@pytest.mark.failure("C11")
async def test_when_the_queue_is_back_newer_messages_go_to_it_behind_those_that_waited(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    waiting = await kept(process, installation, 1, 2)
    await process.relay.catch_up()
    assert await process.relay.lacking() == {"redis": 2, "rabbitmq": 0}
    process.queue.link.is_down = False
    newer = await kept(process, installation, 3)
    assert installation.in_queue() == set(), "the third would be answered before the first"
    assert await process.relay.lacking() == {"redis": 3, "rabbitmq": 0}
    await process.relay.catch_up()
    assert installation.in_queue() == ids(waiting + newer)
    assert await process.relay.lacking() == {"redis": 0, "rabbitmq": 0}
    straight = await kept(process, installation, 4)
    assert installation.in_queue() == ids(waiting + newer + straight), "nothing is owed any more"
    assert await installation.work() == [1, 2, 3, 4]


@pytest.mark.req("CAP-7", "CPY-4")
@pytest.mark.failure("I14")
async def test_what_a_store_lacks_is_counted_once_however_often_it_came_and_whether_it_was_promised(
    installation: Installation,
):
    process = await installation.process()
    process.queue.link.is_down = process.mirror.link.is_down = True
    message = installation.message(1)
    for _ in range(5):
        assert not await attempt(lambda: process.copies.keep(message)), "one copy is no promise"
        await process.asked()
    assert (await process.relay.lacking())["redis"] == 1


@pytest.mark.req("CAP-7", "CPY-4")
async def test_what_is_known_is_written_down_by_one_at_a_time(installation: Installation):
    """By the relay, and by whoever counts: as often as somebody asks for the metrics."""
    process = await installation.process()
    messages = await kept(process, installation, 1, 2)
    await asyncio.gather(process.relay.note(), process.relay.lacking(), process.relay.lacking())
    assert await process.relay.lacking() == {"redis": 0, "rabbitmq": 0}
    assert installation.in_queue() == ids(messages)


@pytest.mark.req("CAP-7", "CPY-4")
@pytest.mark.failure("C5")
async def test_it_is_counted_also_on_a_disk_that_takes_no_writes(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    await kept(process, installation, 1)
    process.queue.link.is_down = True
    await kept(process, installation, 2, 3)

    async def is_full(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(process.journals.own, "note", is_full)
        assert (await process.relay.lacking())["redis"] == 3, "which has the first could not be written down"
    assert (await process.relay.lacking())["redis"] == 2


@pytest.mark.req("CAP-7", "CPY-4")
@pytest.mark.failure("C5")
async def test_it_is_counted_also_while_a_write_hangs_and_what_it_was_to_write_is_not_lost(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    await kept(process, installation, 1)
    process.queue.link.is_down = True
    await kept(process, installation, 2, 3)
    goes_on, note = asyncio.Event(), process.journals.own.note

    async def hangs(*noted: Any) -> None:
        await goes_on.wait()
        await note(*noted)

    monkeypatch.setattr(process.journals.own, "note", hangs)
    monkeypatch.setattr(relay_module, "COUNT_SECONDS", 0.2)
    assert (await process.relay.lacking())["redis"] == 3, "which has the first could not be written down"
    noting = asyncio.create_task(attempt(process.relay.note))
    assert (await process.relay.lacking())["redis"] == 3, "nor could it by another"
    goes_on.set()
    await noting
    assert (await process.relay.lacking())["redis"] == 2


@pytest.mark.req("CAP-7", "CPY-5")
@pytest.mark.failure("C19", "F1")
async def test_of_an_emptied_queue_nothing_is_certain_until_it_has_been_compared_with_the_journals(
    installation: Installation,
):
    process = await installation.process()
    await kept(process, installation, 1, 2)
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    assert process.relay.knows_queue
    installation.queue.empty()
    await process.relay.note()
    assert not process.relay.knows_queue
    await process.keeper.refill()
    await process.relay.note()
    process.ledger.link.is_down = True
    await attempt(process.relay.complete_queue)
    assert (await process.relay.lacking())["redis"] == 2, "they are there, and nobody could note it"
    assert not process.relay.knows_queue
    process.ledger.link.is_down = False
    await process.relay.complete_queue()
    assert process.relay.knows_queue
    assert (await process.relay.lacking())["redis"] == 0


@pytest.mark.req("CAP-7", "CPY-4")
@pytest.mark.failure("C5")
async def test_what_a_journal_cannot_note_it_says_with_no_certainty_that_the_queue_lacks(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    process.queue.link.is_down = True
    waiting = await kept(process, installation, 1, 2)
    assert process.relay.knows_queue

    async def takes_no_writes(*_: object) -> None:
        raise StoreUnavailable("attempt to write a readonly database")

    with monkeypatch.context() as patched:
        for name in ("note", "looked", "forget"):
            patched.setattr(process.journals.own, name, takes_no_writes)
        process.queue.link.is_down = False
        await attempt(process.relay.catch_up)
        assert installation.in_queue() == ids(waiting)
        installation.clock.advance(YOUNG_SECONDS)
        await attempt(process.relay.complete_queue)
        assert (await process.relay.lacking())["redis"] == 2
        assert not process.relay.knows_queue
    await process.relay.complete_queue()
    assert process.relay.knows_queue
    assert (await process.relay.lacking())["redis"] == 0


@pytest.mark.req("CAP-7", "CPY-4")
async def test_who_counts_waits_for_no_disk_that_hangs_and_leaves_out_what_cannot_be_read(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    process, other = await installation.process(), await installation.process()
    process.queue.link.is_down = True
    await kept(process, installation, 1, 2)
    adopted = other.journals.own
    process.journals._adopted[adopted.number] = adopted

    async def is_damaged(lives: object) -> None:
        raise StoreUnavailable("it is damaged")

    async def hangs(lives: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(adopted, "depth", is_damaged)
    assert (await process.relay.lacking())["redis"] == 2
    monkeypatch.setattr(adopted, "depth", hangs)
    monkeypatch.setattr(relay_module, "COUNT_SECONDS", 0.01)
    await process.relay.lacking()
    del process.journals._adopted[adopted.number]


@pytest.mark.req("CPY-4", "QUE-2")
@pytest.mark.failure("C11")
@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_chat_waits_for_its_message_that_is_on_its_way_into_the_journal(
    installation: Installation, monkeypatch, is_kept: bool
):
    process = await installation.process()
    process.queue.link.is_down = True
    before = await kept(process, installation, 1)
    process.queue.link.is_down = False
    opened, keep = asyncio.Event(), process.journals.own.keep

    async def slow(*message: Any) -> Any:
        await opened.wait()
        if not is_kept:
            raise StoreUnavailable("the disk is full")
        return await keep(*message)

    with monkeypatch.context() as patch:
        patch.setattr(process.journals.own, "keep", slow)
        late = installation.message(2)
        keeping = asyncio.create_task(attempt(lambda: process.copies.keep(late)))
        await until(lambda: process.notes.debt.includes(late.head.lane) and len(installation.in_mirror()) == 2)
    await process.relay.catch_up()
    assert installation.in_queue() == ids(before)
    other, after = installation.message(4, chat="2"), installation.message(3)
    await process.copies.keep(other)
    assert installation.in_queue() == ids([*before, other]), "another chat waits for nobody"
    await process.copies.keep(after)
    assert after.head.task_id not in installation.in_queue(), "it would be answered before the second"
    opened.set()
    await keeping
    await process.relay.catch_up()
    assert installation.in_queue() == ids([*before, other, after, *([late] if is_kept else [])])
    assert await installation.work() == ([1, 2, 3, 4] if is_kept else [1, 3, 4])
    straight = await kept(process, installation, 5)
    assert ids(straight) <= installation.in_queue(), "nothing is owed any more"


@pytest.mark.req("CPY-4", "QUE-2")
async def test_a_chat_waits_for_no_message_whose_sender_hung_up_before_the_journal_was_asked(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    process.queue.link.is_down = True
    waiting = await kept(process, installation, 1)
    process.queue.link.is_down = False
    debt = process.notes.debt
    send_behind = debt.send_behind

    def hang_up(lane: LaneKey) -> None:
        send_behind(lane)
        keeping.cancel()

    message = installation.message(2, channel="http")
    with monkeypatch.context() as patched:
        patched.setattr(debt, "send_behind", hang_up)
        keeping = asyncio.create_task(process.copies.keep(message))
        await asyncio.wait([keeping])
    assert keeping.cancelled()
    await process.asked()
    for _ in range(3):
        await process.relay.catch_up()
    assert not debt.includes(message.head.lane), "it would be brought by the relay from now on, for ever"
    assert installation.in_queue() == ids(waiting)


@pytest.mark.req("CPY-4", "QUE-2")
@pytest.mark.failure("C11", "C12")
async def test_what_a_frozen_process_holds_comes_before_what_others_have_accepted_since(installation: Installation):
    frozen, other = await installation.process(), await installation.process()
    frozen.queue.link.is_down = other.queue.link.is_down = True
    held = await kept(frozen, installation, 1, 2) + await kept(other, installation, 3)
    other.queue.link.is_down = False
    newer = await kept(other, installation, 4)
    await other.relay.catch_up()
    assert installation.in_queue() == ids(held + newer)
    assert await installation.work() == [1, 2, 3, 4]
    frozen.queue.link.is_down = False
    await frozen.relay.catch_up()
    assert installation.in_queue() == set()
    assert installation.queue.duplicates == 0
    straight = await kept(frozen, installation, 5)
    assert installation.in_queue() == ids(straight), "nothing is owed any more"


@pytest.mark.req("CPY-4")
async def test_a_journal_of_another_that_fails_while_it_is_brought_keeps_nobody_waiting(
    installation: Installation, monkeypatch
):
    spoilt, other = await installation.process(), await installation.process()
    spoilt.queue.link.is_down = other.queue.link.is_down = True
    await kept(spoilt, installation, 1)
    held = await kept(other, installation, 2)
    other.queue.link.is_down = False
    lacking, asked = Journal.lacking, []

    async def fails_later(journal: Journal, *given: Any, **named: Any) -> Any:
        if journal.number == spoilt.journals.own.number:
            asked.append(journal)
            if len(asked) > 1:
                raise StoreUnavailable("the disk is gone")
        return await lacking(journal, *given, **named)

    monkeypatch.setattr(Journal, "lacking", fails_later)
    await other.relay.catch_up()
    assert len(asked) == 2
    assert installation.in_queue() == ids(held)
    assert await installation.work() == [2]


@pytest.mark.req("CPY-4", "QUE-2")
@pytest.mark.failure("C11", "C12")
async def test_what_a_dead_process_held_is_brought_when_its_journal_is_adopted_before_what_is_newer(
    installation: Installation,
):
    dead, other = await installation.process(), await installation.process(adopts=True)
    await other.relay.catch_up()
    dead.queue.link.is_down = True
    held = await kept(dead, installation, 1, 2)
    await dead.die()
    await other.journals._adopt_abandoned()
    await other.relay.catch_up()
    newer = await kept(other, installation, 3)
    assert installation.in_queue() == ids(held + newer)
    assert await installation.work() == [1, 2, 3]


@pytest.mark.req("CPY-4")
async def test_a_journal_of_another_that_cannot_be_read_keeps_nobody_waiting(installation: Installation, monkeypatch):
    spoilt, other = await installation.process(), await installation.process()
    spoilt.queue.link.is_down = other.queue.link.is_down = True
    await kept(spoilt, installation, 1)
    held = await kept(other, installation, 2)
    other.queue.link.is_down = False

    async def unreadable(journal: Journal) -> int:
        if journal.number == spoilt.journals.own.number:
            raise StoreUnavailable("the disk is gone")
        return await last_number(journal)

    last_number = Journal.last_number
    monkeypatch.setattr(Journal, "last_number", unreadable)
    await other.relay.catch_up()
    assert installation.in_queue() == ids(held)
    assert await installation.work() == [2]


@pytest.mark.req("CPY-4")
@pytest.mark.failure("C12")
async def test_while_much_is_brought_its_lanes_are_owed_again_and_again(installation: Installation, monkeypatch):
    process = await installation.process()
    monkeypatch.setattr(relay_module, "PAGE", 1)
    process.queue.link.is_down = True
    messages = await kept(process, installation, 1, 2, 3)
    process.queue.link.is_down = False
    restore = process.queue.restore
    handed_out: list[int] = []

    async def slow(tasks: Sequence[NewTask]) -> Any:
        installation.clock.advance(relay_module.OWED_SECONDS / 2)
        handed_out.extend(await installation.work())
        return await restore(tasks)

    monkeypatch.setattr(process.queue, "restore", slow)
    await process.relay.catch_up()
    assert installation.in_queue() == ids(messages)
    assert handed_out == [], "something newer of theirs may be there, from another process"
    assert await installation.work() == [1, 2, 3]


@pytest.mark.req("CPY-4")
async def test_one_that_the_queue_cannot_take_keeps_no_other_from_it(installation: Installation, monkeypatch):
    process = await installation.process()
    process.queue.link.is_down = True
    messages = await kept(process, installation, 1, 2, 3)
    process.queue.link.is_down = False
    restore = process.queue.restore

    async def but_one(tasks: Sequence[NewTask]) -> Any:
        if messages[1] in tasks:
            raise ValueError("a bug of ours")
        return await restore(tasks)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(process.queue, "restore", but_one)
        await process.relay.catch_up()
        assert installation.in_queue() == ids([messages[0], messages[2]])
        assert [line["task_id"] for line in logs if line["event"] == "copy.failed"] == [messages[1].head.task_id]
        straight = await kept(process, installation, 4, chat="2")
        assert ids(straight) <= installation.in_queue(), "nor is anything owed for it"
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    assert installation.in_queue() == ids(messages + straight), "it was not taken for brought"


@pytest.mark.req("CPY-4", "CPY-7")
async def test_who_begins_with_nothing_left_by_a_former_process_owes_nothing(installation: Installation):
    first = await installation.process()
    await first.relay.start()
    await kept(first, installation, 1)
    assert len(installation.in_queue()) == 1, "not behind a look that has nothing to bring"
    await first.relay.stop()
    await first.relay.start()
    await kept(first, installation, 2)
    assert len(installation.in_queue()) == 1, "what was left may have to come before"
    await first.relay.stop()


@pytest.mark.req("CPY-4")
@pytest.mark.failure("C14")
async def test_lanes_wait_for_room_in_a_full_queue_but_not_for_ever(installation: Installation):
    process = await installation.process()
    link = process.queue.link
    await kept(process, installation, 1)
    link.error, link.refuses = RedisFull("full"), {"enqueue", "restore"}
    await kept(process, installation, 2)
    for _ in range(3):
        await process.relay.catch_up()
        assert await installation.work() == [], "it may get room in a moment"
        installation.clock.advance(relay_module.OWED_SECONDS / 3)
    await process.relay.catch_up()
    assert await installation.work() == [1], "only what is handed out makes room"
    await kept(process, installation, 3)
    await process.relay.catch_up()
    link.refuses = set()
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    assert await installation.work() == [2, 3]


@pytest.mark.req("CPY-4")
@pytest.mark.failure("C12")
async def test_what_broke_off_before_it_was_paid_is_paid_by_the_next(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    await kept(process, installation, 1)
    process.queue.link.is_down, process.queue.link.refuses = False, {"paid"}
    await process.relay.catch_up()
    assert await installation.work() == []
    process.queue.link.refuses = set()
    await process.relay.catch_up()
    installation.clock.advance(1)
    assert await installation.work() == [1]


@pytest.mark.req("CPY-2", "CPY-4")
@pytest.mark.failure("C5", "C11")
async def test_without_its_journal_a_process_owes_the_queue_nothing(installation: Installation, monkeypatch):
    process = await installation.process()
    process.queue.link.is_down = True
    await kept(process, installation, 1)
    process.queue.link.is_down = False

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    own = process.journals.own
    with monkeypatch.context() as broken:
        for name in ("keep", "lacking", "note", "last_number"):
            broken.setattr(own, name, away)
        with pytest.raises(StoreUnavailable):
            await process.relay.catch_up()
        message = installation.message(2)
        await process.copies.keep(message)
        assert ids([message]) <= installation.in_queue(), "queue and mirror hold it"


@pytest.mark.req("CPY-4")
async def test_who_is_still_handing_a_message_over_is_not_overtaken(installation: Installation):
    process = await installation.process()
    process.queue.link.stall()
    message = installation.message(1)
    await process.copies.keep(message)
    other = await installation.process(adopts=True)
    assert process.journals._own is not None
    other.journals._adopted[0] = process.journals._own  # the same file, whoever looks
    for seconds in (0, FIRST_LOOK_MS / 1000, 1):
        installation.clock.advance(seconds)
        await other.round()
    assert installation.in_queue() == set(), "or it would be called a repetition"
    process.queue.link.open.set()
    await process.asked()
    assert installation.queue.duplicates == 0
    installation.clock.advance(YOUNG_SECONDS)
    with capture_logs() as logs:
        await other.round()
    assert [each for each in logs if each["event"] == "copies.lost"] == []
    other.journals._adopted.clear()


@pytest.mark.req("CPY-3")
@pytest.mark.failure("C3", "C22")
async def test_what_was_accepted_without_the_mirror_is_copied_when_it_is_back(installation: Installation):
    process = await installation.process()
    assert process.mirror is not None
    process.mirror.link.is_down = True
    messages = await kept(process, installation, 1, 2, 3)
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    assert not installation.in_mirror()
    process.mirror.link.is_down = False
    await process.round()
    await process.round()
    assert installation.in_mirror() == dict.fromkeys(ids(messages), 1)


@pytest.mark.req("CPY-3")
@pytest.mark.failure("C25", "C26")
async def test_one_that_the_mirror_does_not_take_keeps_no_other_from_it_and_nothing_is_copied_again_and_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relay_module, "PAGE", 2)
    process = await installation.process()
    assert process.mirror is not None
    process.mirror.link.is_down = True
    messages = await kept(process, installation, *range(9))
    process.mirror.link.is_down = False
    refused = messages[2].head.task_id
    keep = process.mirror.keep

    async def keep_unless(task_id, record):
        if task_id == refused:
            raise RabbitUnavailable("too large")
        await keep(task_id, record)

    process.mirror.keep = keep_unless  # type: ignore[method-assign]
    installation.clock.advance(YOUNG_SECONDS)
    for _ in range(3):
        with pytest.raises(RabbitUnavailable):
            await process.relay.complete_mirror()
    assert installation.in_mirror() == dict.fromkeys(ids(messages) - {refused}, 1)


@pytest.mark.req("CPY-1")
@pytest.mark.failure("C30", "F1")
async def test_what_is_finished_leaves_the_journal_when_the_ledger_says_so_and_never_before(
    installation: Installation,
):
    process = await installation.process()
    [first, second] = await kept(process, installation, 1, 2)
    await installation.work(count=1)
    process.ledger.link.is_down = True
    installation.clock.advance(FIRST_LOOK_MS / 1000)
    await process.round()
    assert await in_journal(process.journals.own) == ids([first, second])
    process.ledger.link.is_down = False
    await process.round()
    assert await in_journal(process.journals.own) == ids([second])
    await installation.work()
    installation.clock.advance(LOOK_MS_MAX / 1000)
    await process.round()
    assert await in_journal(process.journals.own) == set()
    assert not (await process.copies.keep(first)).new, "its key is remembered"


@pytest.mark.failure("F1")
async def test_what_was_finished_while_a_store_lacked_it_is_not_brought_there(installation: Installation):
    process = await installation.process()
    assert process.mirror is not None
    process.mirror.link.is_down = True
    await kept(process, installation, 1, 2)
    assert await installation.work() == [1, 2]
    process.mirror.link.is_down = False
    installation.clock.advance(YOUNG_SECONDS)
    await process.relay.complete_mirror()
    assert not installation.in_mirror()
    assert await process.journals.own.noted("rabbitmq") == 0, "the mirror is not said to hold what it never had"
    installation.queue.empty()
    await process.keeper.refill()
    assert await installation.work() == []


@pytest.mark.req("CPY-7")
@pytest.mark.failure("D8", "M6")
async def test_what_the_queue_lost_in_silence_is_back_at_its_next_look(installation: Installation):
    process = await installation.process()
    [lost, _] = await kept(process, installation, 1, 2)
    await process.round()
    del installation.queue.tasks[lost.head.task_id]
    with capture_logs() as logs:
        installation.clock.advance(LOOK_MS_MAX / 1000)
        await process.round()
    assert await installation.work() == [1, 2]
    [said] = [each for each in logs if each["event"] == "copies.lost"]
    assert (said["copy"], said["count"], said["log_level"]) == ("redis", 1, "error")


@pytest.mark.failure("C30")
async def test_notes_that_died_with_their_process_cost_a_repetition_and_nothing_else(installation: Installation):
    process = await installation.process()
    messages = await kept(process, installation, 1, 2)
    await process.die()
    heir = await installation.process()
    installation.clock.advance(YOUNG_SECONDS)
    await heir.round()
    assert times_restored(heir) == 2
    assert installation.in_mirror() == dict.fromkeys(ids(messages), 2)
    await heir.round()
    assert (times_restored(heir), installation.queue.duplicates) == (2, 0)
    assert await installation.work() == [1, 2]


@pytest.mark.req("CPY-5", "QUE-5")
@pytest.mark.failure("C19")
async def test_an_emptied_queue_lacks_everything_again(installation: Installation):
    process = await installation.process()
    messages = await kept(process, installation, 1, 2)
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    installation.queue.empty()
    await process.round()
    assert installation.in_queue() == set(), "the keeper fills it"
    await process.queue.begin_life(await process.queue.begin_refill())
    await process.round()
    assert installation.in_queue() == ids(messages)


@pytest.mark.req("ENV-3")
async def test_a_message_whose_key_was_used_before_is_not_taken_for_finished(installation: Installation):
    process = await installation.process()
    await kept(process, installation, 1)
    await installation.work()
    installation.clock.advance(80 * HOUR_SECONDS)
    await process.round()
    await installation.worker().sweep()
    [anew] = await kept(process, installation, 1)
    assert installation.in_queue() == ids([anew]), "the key had been forgotten"
    installation.clock.advance(YOUNG_SECONDS)
    for _ in range(3):
        await process.round()
    assert await in_journal(process.journals.own) == ids([anew])
    installation.queue.empty()
    await process.keeper.refill()
    assert installation.in_queue() == ids([anew])


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5", "C8")
async def test_a_journal_that_cannot_be_used_keeps_nobody_from_the_others(installation: Installation):
    dead, process = await installation.process(), await installation.process()
    process.queue.link.is_down = dead.queue.link.is_down = True
    messages = await kept(dead, installation, 1)
    await dead.die()
    process.queue.link.is_down = False
    adopted = await process.slots.adopt(0)
    assert adopted is not None
    process.journals._adopted[0] = adopted
    await process.journals.own.close()  # what it is asked from now on, it refuses
    installation.clock.advance(YOUNG_SECONDS)
    assert not await attempt(process.relay.complete_queue)
    assert installation.in_queue() == ids(messages)


@pytest.mark.req("CPY-2")
@pytest.mark.failure("L4")
async def test_notes_do_not_pile_up_while_the_journal_takes_none(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rise.copies.notes.NOTES_MAX", 10)
    process = await installation.process()
    journal = process.journals.own
    note = journal.note

    async def refuse(runs, copy, life):
        for number in range(8):  # messages are accepted meanwhile
            process.notes.add(copy, RunName(installation.message(number).head.task_id, 0), life)
        raise StoreUnavailable("a full disk")

    journal.note = refuse  # type: ignore[method-assign]
    await kept(process, installation, *range(40))
    for _ in range(5):
        assert not await attempt(process.notes.write)
    assert all(len(runs) <= 10 for runs in process.notes._gathered.values())
    journal.note = note  # type: ignore[method-assign]
    await process.notes.write()
    assert not any(process.notes._gathered.values())


@pytest.mark.failure("C19")
async def test_what_goes_into_a_queue_without_a_life_is_not_counted_on(installation: Installation):
    process = await installation.process(begins=False)
    [message] = await kept(process, installation, 1)
    await process.queue.begin_life(await process.queue.begin_refill())
    await process.relay.note()
    assert await process.journals.own.copies_of(message.head.task_id) == {"rabbitmq": "1"}


@pytest.mark.failure("B14")
async def test_what_cannot_be_read_stays_and_stops_nobody(installation: Installation):
    process = await installation.process()
    unread = delivery(1)
    await process.journals.own.keep(unread, b"of another version")
    process.queue.link.is_down = True
    [message] = await kept(process, installation, 2)
    process.queue.link.is_down = False
    installation.clock.advance(YOUNG_SECONDS)
    await process.round()
    await process.round()
    assert installation.in_queue() == ids([message])
    assert await process.journals.own.has([unread.head.task_id])


@pytest.mark.req("CPY-4")
async def test_the_loops_do_it_by_themselves_and_say_when_they_cannot(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    [message] = await kept(process, installation, 1)
    with capture_logs() as logs:
        await process.relay.start()
        for _ in range(8):
            installation.clock.advance(1.0)
            await installation.clock.until_sleeping(4)
        assert any(each["event"] == "relay.delayed" for each in logs)
        process.queue.link.is_down = False
        for _ in range(12):
            installation.clock.advance(1.0)
            await installation.clock.until_sleeping(4)
    assert installation.in_queue() == ids([message])
    await process.relay.stop()
    assert await process.journals.own.copies_of(message.head.task_id) == {"redis": "life 1", "rabbitmq": "1"}

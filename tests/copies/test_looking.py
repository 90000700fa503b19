"""What people are shown of several stores: where a message is, and that none is unaccounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from journals import message, run

from rise.clock import epoch_ms
from rise.copies.looking import CopiesShown
from rise.copies.record import encode_task
from rise.copies.slots import Slots
from rise.envelope import Outcome, Progress, Status, Task
from rise.errors import QueueOwed, StoreUnavailable, TaskUnknown
from rise.queue.port import NewTask
from rise.runtime.audit import Audit, Fate
from rise.runtime.operations import Operations
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.fakes.mirror import MemoryMirror, MemoryMirrorState
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState


class Stores:
    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.epoch_ms = epoch_ms(self.clock.now())
        self.slots = Slots(directory, clock=self.clock)
        self.state = MemoryQueueState(life="the first")
        self.queue = MemoryQueue(self.state, now_ms=self.now_ms)
        self.ledger = MemoryLedger(MemoryLedgerState(), now_ms=self.now_ms)
        self.mirror = MemoryMirror(MemoryMirrorState(), self.clock)
        self.shown = CopiesShown(self.queue, self.slots, self.mirror)
        self.audit = Audit(self.queue, self.ledger, 30 * 86_400.0, copies=self.shown)

    def now_ms(self) -> int:
        return self.epoch_ms + int(self.clock.monotonic() * 1000)

    async def finish(self, task: NewTask) -> None:
        await self.ledger.finish(
            Task(task.head, task.raw, Progress(status=Status.PROCESSING)), Status.COMPLETED, Outcome.SILENT
        )


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores(tmp_path)
    stores.journal = await stores.slots.take()
    yield stores
    await stores.journal.close()


async def keep(stores: Stores, number: int) -> NewTask:
    task = message(number)
    await stores.journal.keep(task, encode_task(task))
    return task


@pytest.mark.req("CPY-2", "OPS-3")
async def test_it_is_said_which_stores_hold_a_message(stores: Stores):
    task = await keep(stores, 1)
    assert await stores.shown.of(task.head.task_id) == ["journal"]
    await stores.queue.enqueue(task)
    await stores.journal.note([run(1)], "rabbitmq", "1")
    assert await stores.shown.of(task.head.task_id) == ["journal", "rabbitmq", "redis"]
    assert await stores.shown.of(run(9).task_id) == []
    assert await stores.shown.depths() == {"journalDepth": 1, "rabbitmqDepth": 0}


@pytest.mark.req("OPS-2", "CPY-5")
@pytest.mark.failure("C19")
async def test_an_account_after_the_queue_was_emptied_knows_what_the_journals_remember(stores: Stores):
    for number in (1, 2, 3):
        task = await keep(stores, number)
        await stores.queue.enqueue(task)
        if number < 3:
            await stores.finish(task)
            await stores.journal.forget([run(number)])
    stores.state.empty()
    report = await stores.audit.run()
    assert (report.receipts, report.is_clean) == (3, True)
    assert (report.fates[Fate.DONE], report.fates[Fate.PENDING]) == (2, 1), "the third is on its way back"


@pytest.mark.req("OPS-2")
async def test_what_is_in_no_store_and_not_finished_is_unaccounted_for(stores: Stores):
    await keep(stores, 1)
    await stores.journal.forget([run(1)])
    report = await stores.audit.run()
    assert not report.is_clean
    assert [lost.task_id for lost in report.unaccounted] == [run(1).task_id]


@pytest.mark.req("OPS-2")
@pytest.mark.parametrize("page", [1, 2, 3, 10])
async def test_the_books_are_joined_page_by_page_whatever_is_in_which(stores: Stores, page: int):
    for number in range(1, 8):
        task = message(number)
        if number % 2:
            await stores.journal.keep(task, encode_task(task))
        if number % 3:
            await stores.queue.enqueue(task)
    keys, after = [], ""
    while receipts := await stores.shown.receipts(limit=page, after=after):
        keys += [receipt.delivery_key for receipt in receipts]
        after = keys[-1]
    expected = {message(number).head.delivery_key for number in range(1, 8) if number % 2 or number % 3}
    assert keys == sorted(expected)


@pytest.mark.req("OPS-2")
async def test_an_account_with_a_book_missing_is_none(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    async def away(journal: object, **page: object) -> list[object]:
        raise StoreUnavailable("away")

    monkeypatch.setattr("rise.copies.journal.Journal.receipts", away)
    with pytest.raises(StoreUnavailable):
        await stores.audit.run()


@pytest.mark.req("CPY-2")
async def test_a_message_suspended_at_the_door_is_shown_as_that(stores: Stores):
    task = msgspec.structs.replace(message(1), suspend="stale_replay")
    await stores.journal.keep(task, encode_task(task))
    [shown] = await stores.shown.open_in_journals([task.head.task_id])
    assert shown.status is Status.SUSPENDED


# --- what the queue has not got yet -----------------------------------------------------------------------------


def people(stores: Stores) -> Operations:
    return Operations(stores.queue, stores.ledger, MemoryBus(MemoryBusState()), stores.clock, copies=stores.shown)


@pytest.mark.req("CPY-5", "SUS-3")
@pytest.mark.failure("C19")
@pytest.mark.parametrize("is_filled", [True, False])
async def test_of_what_is_on_its_way_to_the_queue_nobody_is_told_that_there_is_no_such_task(
    stores: Stores, is_filled: bool
):
    """A journal has it; or the queue is being filled, by other hosts, too."""
    task_id = (await keep(stores, 1)).head.task_id if is_filled else message(1).head.task_id
    stores.state.life = "the second" if is_filled else None
    operations = people(stores)
    for ask in (
        operations.story(task_id),
        operations.resume(task_id, who="Ann"),
        operations.drop(task_id, who="Ann"),
        operations.run_again(task_id, who="Ann"),
    ):
        with pytest.raises(QueueOwed):
            await ask


@pytest.mark.req("SUS-3")
async def test_of_what_nobody_has_it_is_said_that_there_is_no_such_task(stores: Stores):
    with pytest.raises(TaskUnknown):
        await people(stores).story(message(1).head.task_id)


@pytest.mark.req("OPS-2", "ENV-3")
async def test_what_came_under_the_key_of_something_that_has_ended_is_not_done(stores: Stores):
    former = message(1)
    await stores.finish(former)
    kept_ms = former.head.receipt_seconds * 1000
    later = msgspec.structs.replace(
        former,
        raw=b'{"n":"later"}',
        head=msgspec.structs.replace(former.head, accepted_at_ms=former.head.accepted_at_ms + kept_ms),
    )
    await stores.journal.keep(later, encode_task(later))
    fates = (await stores.audit.run()).fates
    assert (fates[Fate.PENDING], fates[Fate.DONE]) == (1, 0)


@pytest.mark.req("OPS-2")
@pytest.mark.failure("B14")
async def test_what_only_a_newer_version_can_bring_to_the_queue_is_not_unaccounted_for(stores: Stores):
    await stores.journal.keep(message(1), b"of tomorrow")
    assert (await stores.audit.run()).fates[Fate.SUSPENDED] == 1


async def test_with_no_journals_at_all_a_task_is_shown_where_it_is(stores: Stores):
    await stores.queue.enqueue(message(1))
    stores.slots.directory = stores.slots.directory / "gone"
    assert await stores.shown.of(message(1).head.task_id) == ["redis"]

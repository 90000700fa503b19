"""A message is promised when enough stores hold it, and never before."""

from __future__ import annotations

import asyncio
import gc

import msgspec
import pytest
from copies_stage import HOUR_SECONDS, Installation, Link, Process, ids, in_journal, tasks_running, until
from structlog.testing import capture_logs

from rise.copies import keeping
from rise.copies.journal import run_of
from rise.copies.keeping import PUBLISH_TRIES
from rise.copies.record import encode_task
from rise.errors import CopiesInsufficient, StateConflict
from rise.queue.port import KEY_GRACE_SECONDS, Enqueued, NewTask
from rise.runtime.operations import Operations
from rise.telemetry import rabbit_mirror_failed

STORES = ("journal", "queue", "mirror")


class Disk:
    """The way to a process's journal, which is a real file."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.own = process.journals._own
        self.stalled: asyncio.Event | None = None

    def fail(self) -> None:
        self.process.journals._own = None

    def heal(self) -> None:
        self.process.journals._own = self.own

    def stall(self, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
        assert self.own is not None
        released, keep = asyncio.Event(), self.own.keep

        async def late(*said):
            await released.wait()
            return await keep(*said)

        monkeypatch.setattr(self.own, "keep", late)
        return released


def link_of(process: Process, store: str) -> Link:
    assert process.mirror is not None
    return {"queue": process.queue.link, "mirror": process.mirror.link}[store]


def fail(process: Process, store: str) -> None:
    if store == "journal":
        Disk(process).fail()
    else:
        link_of(process, store).is_down = True


@pytest.mark.req("CPY-1", "CPY-2", "CPY-3", "CPY-4")
@pytest.mark.failure("C5", "C11", "C21")
@pytest.mark.parametrize("down", [None, *STORES])
async def test_two_of_three_are_enough_whichever_is_down(installation: Installation, down: str | None):
    process = await installation.process()
    journal = process.journals.own
    if down is not None:
        fail(process, down)
    message = installation.message(1)
    assert await process.copies.keep(message) == Enqueued(message.head.task_id, new=True)
    await process.asked()
    holding = {
        "journal": await in_journal(journal),
        "queue": installation.in_queue(),
        "mirror": set(installation.in_mirror()),
    }
    assert holding == {store: set() if store == down else ids([message]) for store in STORES}


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C27", "C28")
@pytest.mark.parametrize("down", [("journal", "queue"), ("journal", "mirror"), ("queue", "mirror"), STORES])
async def test_one_is_not_enough_and_what_is_down_is_said(installation: Installation, down: tuple[str, ...]):
    process = await installation.process()
    for store in down:
        fail(process, store)
    with pytest.raises(CopiesInsufficient) as refused:
        await process.copies.keep(installation.message(1))
    named = {"journal": "journal:", "queue": "redis: Redis is away", "mirror": "rabbitmq: RabbitMQ is away"}
    assert all(named[store] in str(refused.value) for store in down)
    assert f"{3 - len(down)} of 2 copies" in str(refused.value)


@pytest.mark.req("CPY-2")
@pytest.mark.failure("A5", "C13", "C22")
async def test_what_was_refused_is_accepted_when_it_is_repeated(installation: Installation):
    process = await installation.process()
    disk, message = Disk(process), installation.message(1)
    disk.fail()
    link_of(process, "queue").loses_answers = True
    link_of(process, "mirror").is_down = True
    with pytest.raises(CopiesInsufficient):
        await process.copies.keep(message)
    disk.heal()
    link_of(process, "queue").loses_answers = False
    assert (await process.copies.keep(message)).task_id == message.head.task_id
    assert installation.in_queue() == await in_journal(process.journals.own) == ids([message])


@pytest.mark.req("CPY-2", "CPY-3")
@pytest.mark.failure("A6", "C12", "C21")
@pytest.mark.parametrize("stalled", STORES)
async def test_one_that_does_not_answer_holds_up_nobody(
    installation: Installation, stalled: str, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    if stalled == "journal":
        released = Disk(process).stall(monkeypatch)
    else:
        link_of(process, stalled).stall()
        released = link_of(process, stalled).open
    began = asyncio.get_running_loop().time()
    enqueued = await process.copies.keep(installation.message(1))  # for ever, if it waited for that one
    assert enqueued.new
    assert asyncio.get_running_loop().time() - began < 2, "a tenth of a second, and what a busy machine adds"
    assert not released.is_set()
    released.set()
    await process.asked()
    assert tasks_running() == set()
    assert installation.in_queue() == set(installation.in_mirror()) == await in_journal(process.journals.own)


@pytest.mark.failure("C12", "L4")
async def test_what_waits_for_a_store_that_does_not_answer_has_an_end(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeping, "ASKED_MAX", 5)
    process = await installation.process()
    released = Disk(process).stall(monkeypatch)
    for number in range(20):
        await process.copies.keep(installation.message(number))
    assert len(process.copies._asked["journal"]) == 5
    assert len(installation.queue.tasks) == len(installation.in_mirror()) == 20
    released.set()
    await process.asked()
    await process.copies.keep(installation.message(21))
    await process.asked()
    assert len(await in_journal(process.journals.own)) == 6


@pytest.mark.req("CPY-2")
async def test_without_a_mirror_the_journal_has_to_hold_it(without_mirror: Installation):
    process = await without_mirror.process(copies_min=1)
    process.queue.link.is_down = True
    assert (await process.copies.keep(without_mirror.message(1))).new
    process.queue.link.is_down = False
    Disk(process).fail()
    with pytest.raises(CopiesInsufficient, match="journal: no journal can be opened"):
        await process.copies.keep(without_mirror.message(2))


# --- what is said of it ---


@pytest.mark.req("CPY-2", "ENV-3")
@pytest.mark.failure("A1", "C29")
@pytest.mark.parametrize("down", [None, "queue", "journal"])
async def test_a_repetition_is_called_one_by_whoever_knows_it(installation: Installation, down: str | None):
    process = await installation.process()
    if down is not None:
        fail(process, down)
    message, other = installation.message(1), installation.message(1, raw=b'{"other": true}')
    assert (await process.copies.keep(message)).new
    again = await process.copies.keep(message)
    assert (again.new, again.same_body) == (False, True)
    assert (await process.copies.keep(other)).same_body is False


@pytest.mark.failure("C29")
async def test_the_queue_knows_what_another_host_accepted(installation: Installation):
    one, two = await installation.process(), await installation.process()
    await one.keep(installation.message(1))
    assert not (await two.copies.keep(installation.message(1))).new
    assert len(installation.queue.tasks) == 1


@pytest.mark.req("CPY-4")
async def test_the_missing_copy_is_said(installation: Installation):
    process = await installation.process()
    process.queue.link.is_down = True
    with capture_logs() as logs:
        await process.keep(installation.message(1), installation.message(2, channel="http"))
    failed = [each["event"] for each in logs if each["event"].endswith("enqueue_failed")]
    assert failed == ["telegram.queue.enqueue_failed", "queue.enqueue_failed"]


# --- keys that callers choose ---


@pytest.mark.req("CPY-1", "CPY-2")
@pytest.mark.failure("A19")
@pytest.mark.parametrize("down", [None, "queue", "journal", "queue, before and after"])
async def test_another_body_under_a_chosen_key_reaches_no_store_but_the_one_that_knows_it(
    installation: Installation, down: str | None
):
    process = await installation.process()
    journal, disk = process.journals.own, Disk(process)
    if down == "queue, before and after":
        fail(process, "queue")
    first = installation.message(1, channel="http")
    assert (await process.copies.keep(first)).new
    await process.asked()
    if down in STORES:
        fail(process, down)
    for _ in range(2):
        other = await process.copies.keep(installation.message(1, channel="http", raw=b'{"other": true}'))
        assert (other.task_id, other.new, other.same_body) == (first.head.task_id, False, False)
        await process.asked()
    assert [copy.body for copy in installation.mirror.copies] == [e.record for e in await journal.open_tasks(limit=9)]
    disk.heal()
    same = await process.copies.keep(first)
    assert (same.new, same.same_body) == (False, True), "whoever repeats the first is still right"


@pytest.mark.failure("A19")
async def test_another_body_is_known_for_one_after_the_queue_was_emptied(installation: Installation):
    process = await installation.process()
    await process.keep(first := installation.message(1, channel="http"))
    await process.asked()
    installation.queue.empty()
    other = await process.copies.keep(installation.message(1, channel="http", raw=b'{"other": true}'))
    assert not other.same_body
    await process.keeper.refill()
    assert installation.queue.tasks[first.head.task_id].raw == first.raw


@pytest.mark.failure("A2", "A19")
@pytest.mark.parametrize("down", [None, "queue", "journal"])
async def test_of_two_bodies_at_once_one_is_kept(installation: Installation, down: str | None):
    process = await installation.process()
    journal = process.journals.own
    if down is not None:
        fail(process, down)
    bodies = [installation.message(1, channel="http", raw=b'{"n": %d}' % number) for number in range(20)]
    kept = await asyncio.gather(*map(process.copies.keep, bodies))
    await process.asked()
    [winner] = [body for body, said in zip(bodies, kept, strict=True) if said.same_body]
    assert {copy.body for copy in installation.mirror.copies} == {keeping.encode_task(winner)}
    assert {entry.task.raw for entry in await journal.open_tasks(limit=9)} <= {winner.raw}


@pytest.mark.failure("A6", "A19")
@pytest.mark.parametrize("stalled", ["journal", "queue"])
async def test_a_chosen_key_waits_for_no_store_that_does_not_answer(
    installation: Installation, stalled: str, monkeypatch: pytest.MonkeyPatch
):
    process = await installation.process()
    if stalled == "journal":
        released = Disk(process).stall(monkeypatch)
    else:
        process.queue.link.stall()
        released = process.queue.link.open
    assert (await process.copies.keep(installation.message(1, channel="http"))).new
    assert not released.is_set()
    released.set()
    await process.asked()


# --- the mirror's tries ---


@pytest.mark.req("CPY-3")
@pytest.mark.failure("C21", "C23")
async def test_a_mirror_is_tried_three_times_and_while_it_is_down_once(installation: Installation):
    process = await installation.process()
    link, failed = link_of(process, "mirror"), rabbit_mirror_failed._value.get()
    link.is_down = True
    with capture_logs() as logs:
        await process.keep(installation.message(1))
        await process.asked()
        assert link.calls["keep"] == PUBLISH_TRIES == 3
        await process.keep(installation.message(2))
        await process.asked()
        assert link.calls["keep"] == PUBLISH_TRIES + 1
    timeouts = [each for each in logs if each["event"] == "rabbit.publisher.timeout"]
    assert [each["consequence"].split()[0] for each in timeouts] == ["tried", "tried", "the"]
    assert rabbit_mirror_failed._value.get() - failed == 2
    link.is_down = False
    await process.keep(installation.message(3))
    await process.asked()
    link.is_down = True
    await process.keep(installation.message(4))
    await process.asked()
    assert link.calls["keep"] == 2 * PUBLISH_TRIES + 2, "it had been back"


@pytest.mark.req("CPY-3")
async def test_a_try_that_is_not_confirmed_in_time_is_repeated(installation: Installation):
    process = await installation.process()
    process.copies._policy = keeping.CopiesPolicy(2, False, publish_seconds=0.01)
    link_of(process, "mirror").stall()
    await process.keep(installation.message(1))
    await process.asked()
    assert link_of(process, "mirror").calls["keep"] == PUBLISH_TRIES


# --- whoever hangs up ---


@pytest.mark.req("CPY-2")
@pytest.mark.failure("A20")
@pytest.mark.parametrize("channel", ["telegram", "http"])
@pytest.mark.parametrize("down", [(), ("queue",), ("mirror",), ("queue", "mirror")])
async def test_whoever_hangs_up_at_any_moment_leaves_nothing_half_done(
    installation: Installation, channel: str, down: tuple[str, ...]
):
    process = await installation.process()
    for store in down:
        fail(process, store)
    trouble: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context))
    for turns in range(30):
        message = installation.message(turns, channel=channel)
        hanging_up = asyncio.ensure_future(process.copies.keep(message))
        for _ in range(turns):
            await asyncio.sleep(0)
        hanging_up.cancel()
        await asyncio.gather(hanging_up, return_exceptions=True)
        await process.asked()
        kept = await asyncio.gather(process.copies.keep(message), return_exceptions=True)
        assert isinstance(kept[0], CopiesInsufficient if len(down) == 2 else Enqueued), "repeating is safe"
        await process.asked()
    assert tasks_running() == set()
    gc.collect()
    assert trouble == []
    if len(down) < 2:
        assert len(await in_journal(process.journals.own)) == 30


@pytest.mark.req("CPY-2")
async def test_who_waits_when_the_process_stops_is_not_promised_anything(installation: Installation):
    process = await installation.process()
    link_of(process, "queue").stall()
    link_of(process, "mirror").stall()
    waiting = asyncio.ensure_future(process.copies.keep(installation.message(1)))
    await until(lambda: process.queue.link.calls["enqueue"] == 1)
    await process.copies.stop()
    with pytest.raises(CopiesInsufficient):
        await waiting


@pytest.mark.failure("L7")
async def test_a_bug_on_the_way_to_one_store_is_said_and_costs_only_that_copy(installation: Installation):
    process = await installation.process()

    def bug() -> None:
        raise ZeroDivisionError

    link_of(process, "mirror").before["keep"] = bug
    with capture_logs() as logs:
        assert (await process.copies.keep(installation.message(1))).new
        await process.asked()
    assert [each["copy"] for each in logs if each["event"] == "copy.failed"] == ["rabbitmq"]


@pytest.mark.req("CPY-2")
async def test_hundreds_at_once_are_all_kept_everywhere(installation: Installation):
    process = await installation.process()
    messages = [installation.message(number, chat=str(number % 7)) for number in range(600)]
    kept = await asyncio.gather(*map(process.copies.keep, messages))
    assert all(each.new for each in kept)
    await process.asked()
    assert installation.in_queue() == set(installation.in_mirror()) == ids(messages)
    assert await in_journal(process.journals.own) == ids(messages)


# --- a key that is used again -----------------------------------------------------------------------------------


async def what_ended_and_what_came_under_its_key_since(installation: Installation, process: Process) -> list[NewTask]:
    """The latter while the queue was away: it has not been handed to it yet."""
    first = installation.message(1, raw=b'{"n":"first"}')
    await process.keep(first)
    await process.asked()
    assert await installation.work() == [1]
    await process.round()
    installation.clock.advance(73 * HOUR_SECONDS + KEY_GRACE_SECONDS)
    await process.round()
    await process.queue.sweep()
    process.queue.link.is_down = True
    second = installation.message(1, raw=b'{"n":"second"}')
    assert (await process.copies.keep(second)).new
    await process.asked()
    process.queue.link.is_down = False
    return [first, second]


@pytest.mark.req("ENV-3", "CPY-2", "SUS-3")
@pytest.mark.failure("M6")
@pytest.mark.parametrize("is_by_another_process", [False, True])
async def test_what_is_run_again_does_not_take_the_place_of_the_message_that_has_its_key_now(
    installation: Installation, is_by_another_process: bool
):
    process = await installation.process()
    first, second = await what_ended_and_what_came_under_its_key_since(installation, process)
    by = await installation.process() if is_by_another_process else process
    people = Operations(by.queue, by.ledger, by.bus, installation.clock, restart=by.copies.restart)
    with pytest.raises(StateConflict, match="its key was used again"):
        await people.run_again(first.head.task_id, who="Ann")
    for _ in range(3):
        installation.clock.advance(60)
        await process.round()
    brought = await process.queue.get(second.head.task_id)
    assert brought is not None and (brought.raw, brought.progress.generation) == (second.raw, 0)


@pytest.mark.req("ENV-3", "SUS-3")
async def test_a_journal_puts_nothing_that_is_run_again_in_the_place_of_another_message(installation: Installation):
    process = await installation.process()
    first, second = await what_ended_and_what_came_under_its_key_since(installation, process)
    again, journal = msgspec.structs.replace(first, generation=1), process.journals.own
    with pytest.raises(StateConflict, match="its key was used again"):
        await journal.keep(again, encode_task(again))
    assert [entry.task for entry in await journal.open_tasks(limit=10)] == [second]
    further = msgspec.structs.replace(second, generation=1)
    await journal.keep(further, encode_task(further))
    assert [entry.task for entry in await journal.open_tasks(limit=10)] == [further]


@pytest.mark.req("CPY-2", "SUS-3")
@pytest.mark.failure("C5")
async def test_what_is_run_again_needs_no_journal_where_the_others_suffice(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    """Nor a look into those of others, but for what was accepted so long ago that its key is forgotten."""
    process = await installation.process()
    task = installation.message(1)
    await process.keep(task)
    await process.asked()
    await installation.work()
    people = Operations(process.queue, process.ledger, process.bus, installation.clock, restart=process.copies.restart)
    Disk(process).fail()
    monkeypatch.setattr(process.journals, "slots", None)
    assert (await people.run_again(task.head.task_id, who="Ann")).generation == 1
    monkeypatch.undo()
    await installation.work()
    installation.clock.advance(73 * HOUR_SECONDS)
    monkeypatch.setattr(process.slots, "directory", process.slots.directory / "gone")
    assert (await people.run_again(task.head.task_id, who="Ann")).generation == 2


@pytest.mark.req("CPY-2", "ENV-3")
async def test_what_is_run_again_under_a_name_that_a_journal_has_forgotten_is_kept_there(installation: Installation):
    """The ledger was restored from before it was run under that name first."""
    process = await installation.process()
    journal = process.journals.own
    task, again = installation.message(1), msgspec.structs.replace(installation.message(1), generation=1)
    further = msgspec.structs.replace(task, generation=2)
    for one in (task, again, further):
        await journal.keep(one, encode_task(one))
    await journal.forget([run_of(further).name])
    await journal.keep(again, encode_task(again))
    assert [entry.task for entry in await journal.open_tasks(limit=10)] == [again]
    await journal.keep(again, encode_task(again))
    assert len(await journal.open_tasks(limit=10)) == 1


@pytest.mark.req("CPY-5", "ENV-3")
@pytest.mark.failure("C19", "M6")
async def test_what_has_a_formers_key_is_brought_back_when_the_queue_has_lost_it(installation: Installation):
    process = await installation.process()
    _, second = await what_ended_and_what_came_under_its_key_since(installation, process)
    await process.round()
    installation.queue.tasks.pop(second.head.task_id)
    for _ in range(20):
        installation.clock.advance(600)
        await process.round()
    assert second.head.task_id in installation.in_queue()

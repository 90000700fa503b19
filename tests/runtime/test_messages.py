"""What people see of messages: words for every reason, and searches that have an end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from rise.bus.local import LocalBus
from rise.connections.sqlite import Database
from rise.envelope import Reason, RunId, Status, TaskId
from rise.ledger.kept import ATTEMPTS_KEPT
from rise.ledger.port import Attempt, Operation
from rise.ledger.sqlite import SCHEMA as LEDGER_SCHEMA
from rise.ledger.sqlite import SqliteLedger
from rise.queue.sqlite import SCHEMA as QUEUE_SCHEMA
from rise.queue.sqlite import SqliteQueue
from rise.retries import RetryPolicy
from rise.runtime.messages import ENDINGS, LOOK_MAX, MEANINGS, Asked, Messages, State
from rise.runtime.operations import Operations, suspended_as
from rise.stories import shown
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import delivery

STATES = Path(__file__).parents[2] / "docs" / "states.md"


class Stage:
    def __init__(self, database: Database, bus: LocalBus, clock: ManualClock) -> None:
        self.queue, self.ledger = SqliteQueue(database), SqliteLedger(database)
        self.operations = Operations(self.queue, self.ledger, bus, clock)
        self.clock = clock
        self.messages = Messages(self.queue, self.ledger, self.operations)

    async def keep(self, number: int, reason: Reason | None = Reason.POISON, **fields: object) -> TaskId:
        new = delivery(number)
        head = msgspec.structs.replace(new.head, **fields)
        return (await self.queue.enqueue(msgspec.structs.replace(new, head=head, suspend=reason))).task_id


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = ManualClock()
    schema = {"queue": QUEUE_SCHEMA, "ledger": LEDGER_SCHEMA}
    database = Database(tmp_path / "rise.db", clock=clock, schema=schema)
    await database.open()
    bus = LocalBus(tmp_path / "bus", clock)
    await bus.start()
    yield Stage(database, bus, clock)
    await bus.stop()
    await database.close()


@pytest.mark.req("OPS-3")
def test_every_reason_has_a_meaning_and_an_end_and_the_document_lists_it() -> None:
    assert set(MEANINGS) == set(ENDINGS) == set(Reason)
    documented = set(re.findall(r"^\| `(\w+)` \|", STATES.read_text(), re.MULTILINE))
    assert documented == {reason.value for reason in Reason}


@pytest.mark.req("OPS-3")
async def test_a_look_through_texts_has_an_end_and_says_how_far_it_came(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rise.runtime.messages.LOOK_MAX", 100)
    for number in range(130):
        await stage.keep(number, user_text="needle" if number == 129 else "hay")
    asked = Asked(state=State.SUSPENDED, text="NEEDLE")
    first = await stage.messages.page(asked)
    assert (first.looked_at, bool(first.following)) == (100, True)
    second = await stage.messages.page(asked, after=first.following)
    assert (second.looked_at, second.following) == (30, "")
    assert [row.text for row in (*first.rows, *second.rows)] == ["needle"]
    assert LOOK_MAX >= 1000


@pytest.mark.req("OPS-3")
@pytest.mark.parametrize("at_once", [1, 7, 250])
@pytest.mark.parametrize("state", [State.SUSPENDED, State.ENDED])
async def test_page_by_page_a_search_shows_each_message_once_however_many_are_looked_at_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, state: State, at_once: int
) -> None:
    monkeypatch.setattr("rise.runtime.messages.LOOK_AT_ONCE", at_once)
    monkeypatch.setattr("rise.runtime.messages.PAGE", 5)
    kept = [await stage.keep(number, user_text="needle" if number % 2 else "hay") for number in range(40)]
    if state is State.ENDED:
        for number, task_id in enumerate(kept):
            task = await stage.queue.get(task_id)
            assert task is not None
            await stage.ledger.finish(task, Status.EXPIRED)
            if number % 7 > 2:  # several end in the same moment
                stage.clock.advance(1)
    asked, after, shown, pages = Asked(state=state, text="needle"), "", list[TaskId](), 0
    while True:
        page = await stage.messages.page(asked, after=after)
        shown, pages = shown + [row.task_id for row in page.rows], pages + 1
        if not (after := page.following):
            break
    assert sorted(shown) == sorted(kept[1::2])
    assert pages >= 3


@pytest.mark.req("OPS-3", "SUS-3")
@pytest.mark.parametrize("not_kept", [0, 3])
async def test_of_many_tries_the_last_are_shown_and_how_many_more_there_were(stage: Stage, not_kept: int) -> None:
    task_id = await stage.keep(1)
    for at_ms in range(ATTEMPTS_KEPT + not_kept):
        attempt = Attempt(at_ms=at_ms, error="down", counted=False)
        await stage.ledger.add_attempt(RunId(f"{task_id}.0"), attempt)
    life = await stage.messages.story(task_id)
    tries = [moment.what for moment in life.moments if "waited" in moment.what or "tries" in moment.what]
    assert tries == ["3 tries more until here"] * bool(not_kept) + ["waited for what was away"] * ATTEMPTS_KEPT
    told = shown(life.story, RetryPolicy())
    assert (told["attemptsNotKept"], len(told["attempts"])) == (not_kept, ATTEMPTS_KEPT)


@pytest.mark.req("OPS-3")
async def test_dropping_several_says_which_had_ended_meanwhile(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [await stage.keep(number) for number in range(3)]
    meant = await stage.operations.droppable(suspended_as(reason=Reason.POISON))
    assert sorted(one.head.task_id for one in meant) == sorted(kept)

    async def as_seen_before(*_: object, **__: object) -> object:
        return meant

    gone = await stage.queue.get(meant[0].head.task_id)
    assert gone is not None
    await stage.ledger.finish(gone, Status.EXPIRED)
    await stage.queue.cancel(gone.task_id)
    monkeypatch.setattr(stage.operations, "droppable", as_seen_before)
    dropped = await stage.operations.drop_selected(suspended_as(), who="ben", why="spam")
    assert sorted(dropped.task_ids) == sorted(set(kept) - {gone.task_id})
    assert dropped.refused == {gone.task_id: "the task is expired and cannot be dropped"}
    assert {one.target for one in await stage.ledger.operations(limit=9)} == set(kept) - {gone.task_id}


@pytest.mark.req("OPS-3")
async def test_a_life_tells_what_people_did(stage: Stage) -> None:
    task_id = await stage.keep(1)
    await stage.keep(2)
    for target in (task_id, "t_another"):
        await stage.ledger.record_operation(Operation(at_ms=1, who="ann", action="resume", target=target, why="mended"))
    life = await stage.messages.story(task_id)
    assert [moment.what for moment in life.moments if "ann" in moment.what] == ["resume by ann"]
    assert life.duplicates == 0

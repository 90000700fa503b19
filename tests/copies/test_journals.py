"""A process has a journal as soon as it can, and brings to its end what dead ones left."""

from __future__ import annotations

from pathlib import Path

import pytest
from copies_stage import Installation, ids, in_journal, until
from structlog.testing import capture_logs

from rise.copies import journals as journals_module
from rise.copies.journals import ADOPT_SECONDS, TAKE_SECONDS, Journals
from rise.copies.relay import YOUNG_MS
from rise.copies.slots import Slots
from rise.errors import StoreCorrupt, StoreUnavailable
from rise.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5", "C8", "L9", "I14")
async def test_without_a_place_for_a_journal_it_goes_on_and_takes_one_later(tmp_path: Path, clock: ManualClock):
    directory = tmp_path / "journals"
    directory.write_text("not a directory yet")
    journals = Journals(Slots(directory, clock=clock), clock, adopts=True)
    with capture_logs() as logs:
        await journals.start()
        with pytest.raises(StoreUnavailable, match="RISE_JOURNAL_DIR"):
            assert journals.own
        for _ in range(3):
            await clock.until_sleeping()
            clock.advance(TAKE_SECONDS)
    assert [each["log_level"] for each in logs if each["event"] == "journal.unavailable"][:1] == ["warning"]
    assert journals.all() == []
    directory.unlink()
    directory.mkdir()
    while not journals.all():
        await clock.until_sleeping()
        clock.advance(TAKE_SECONDS)
        await clock.until_sleeping()
    assert journals.own.number == 0
    await journals.stop()
    assert journals.all() == []


@pytest.mark.failure("C5", "M3")
@pytest.mark.parametrize(
    ("error", "level"), [(StoreUnavailable("away"), "warning"), (StoreCorrupt("torn"), "error"), (KeyError(), "error")]
)
def test_a_journal_that_comes_back_by_itself_is_no_error_and_any_other_trouble_is(error: Exception, level: str):
    with capture_logs() as logs:
        journals_module._report("journals", error)
    assert [each["log_level"] for each in logs] == [level]


@pytest.mark.req("CPY-2", "CPY-7")
@pytest.mark.failure("C2", "C4")
@pytest.mark.parametrize("adopts", [True, False])
async def test_what_a_dead_process_left_is_adopted_brought_to_its_end_and_let_go(
    installation: Installation, adopts: bool
):
    dead = await installation.process()
    dead.queue.link.is_down = True
    message = installation.message(1)
    await dead.keep(message)
    await dead.asked()
    process, clock = await installation.process(adopts=adopts), installation.clock
    await process.journals.stop()
    await process.journals.start()
    await clock.until_sleeping()
    assert len(process.journals.all()) == 1, "the other lives"
    await dead.die()
    clock.advance(ADOPT_SECONDS)
    await clock.until_sleeping()
    if not adopts:
        assert len(process.journals.all()) == 1, "it leaves that to those that stay"
        return
    own, adopted = process.journals.all()
    assert await in_journal(adopted) == ids([message])
    clock.advance(YOUNG_MS / 1000)
    await process.round()
    assert await installation.work() == [1]
    clock.advance(600)
    await process.round()
    await clock.until_sleeping()
    clock.advance(ADOPT_SECONDS)
    await until(lambda: process.journals.all() == [own])
    assert (await process.slots.abandoned(), await process.slots.adopt(adopted.number)) == ([], None)


@pytest.mark.failure("C8", "C9")
async def test_an_adopted_one_that_cannot_be_read_keeps_no_other_from_being_let_go(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    one, two, process = [await installation.process() for _ in range(3)]
    for each in (one, two):
        await each.keep(installation.message(each.journals.own.number))
        await each.asked()
        await each.die()
    await process.journals._adopt_abandoned()
    assert len(process.journals.all()) == 3
    await installation.work()
    installation.clock.advance(600)
    await process.round()
    bad = process.journals._adopted[0]

    async def unreadable() -> bool:
        raise StoreUnavailable("an error of the disk")

    monkeypatch.setattr(bad, "has_work", unreadable)
    await process.journals._let_go_of_drained()
    assert process.journals.all() == [process.journals.own, bad]


@pytest.mark.failure("C9")
async def test_it_says_what_it_adopts_and_what_it_cannot(installation: Installation, monkeypatch: pytest.MonkeyPatch):
    dead, process = await installation.process(), await installation.process()
    await dead.keep(installation.message(1))
    await dead.asked()
    await dead.die()
    with capture_logs() as logs:
        await process.journals._adopt_abandoned()
        await process.journals._adopt_abandoned()
    assert [each["slot"] for each in logs if each["event"] == "journal.adopted"] == [0]
    assert journals_module.ADOPT_SECONDS <= 60

"""Whose journal a file is, on real files and with processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from copies_stage import PATIENCE_SECONDS
from disks import small_disk
from journals import HOUR_SECONDS, keep, keep_all, lacking_in, open_in, run
from structlog.testing import capture_logs

from rise.connections.sqlite import Database
from rise.copies import journal as journal_module
from rise.copies import slots as slots_module
from rise.copies.slots import Slots
from rise.errors import StoreUnavailable
from rise.testing.clock import ManualClock

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
CHILD = Path(__file__).with_name("journal_child.py")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def slots(tmp_path: Path, clock: ManualClock) -> Slots:
    return Slots(tmp_path, clock=clock)


@contextmanager
def child(what: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, CHILD, what, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.req("CPY-2")
async def test_each_takes_the_lowest_slot_that_is_free(slots: Slots):
    first, second, third = [await slots.take() for _ in range(3)]
    assert [journal.number for journal in (first, second, third)] == [0, 1, 2]
    await second.close()
    again = await slots.take()
    assert again.number == 1
    for journal in (first, again, third):
        await journal.close()


@pytest.mark.req("CPY-2", "CPY-7")
@pytest.mark.failure("C1", "C2", "C4")
@pytest.mark.parametrize("count", [1, 40, 160])
async def test_whatever_was_acknowledged_is_there_for_the_adopter_of_a_killed_process(
    tmp_path: Path, slots: Slots, count: int
):
    with child("keep_for_ever", tmp_path, 0) as process:
        number = said(process)
        assert await slots.adopt(number) is None, "it lives"
        assert await slots.abandoned() == []
        acknowledged = [said(process) for _ in range(count)]
        process.send_signal(signal.SIGKILL)
        acknowledged += map(int, process.communicate()[0].split())
    assert await slots.abandoned() == [number]
    journal = await slots.adopt(number)
    assert journal is not None
    assert {run(each) for each in acknowledged} <= set(await open_in(journal))
    assert await lacking_in(journal, "redis", "one") == await open_in(journal)
    await journal.close()


@pytest.mark.req("CPY-2")
async def test_no_two_processes_ever_hold_one_slot(tmp_path: Path, slots: Slots):
    with (
        child("take_and_hold", tmp_path) as one,
        child("take_and_hold", tmp_path) as two,
        child("take_and_hold", tmp_path) as three,
    ):
        here = await slots.take()
        there = [await asyncio.to_thread(said, process) for process in (one, two, three)]
        assert sorted([here.number, *there]) == [0, 1, 2, 3]
        two.send_signal(signal.SIGKILL)
        two.wait(10)
        again = await slots.take()
        assert again.number == there[1]
        await here.close()
        await again.close()


@pytest.mark.req("CPY-2")
async def test_a_child_that_outlives_its_forked_parent_does_not_hold_its_slot(tmp_path: Path, slots: Slots):
    with child("fork_and_die", tmp_path) as process:
        number = said(process)
        process.wait(10)
        assert await slots.abandoned() == [number]


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C2")
async def test_a_slot_is_abandoned_while_it_holds_something_open_and_adopted_by_one_only(slots: Slots):
    journal = await slots.take()
    await keep_all(journal, range(3))
    assert await slots.abandoned() == []
    await journal.close()
    assert await slots.abandoned() == [0]
    one = await slots.adopt(0)
    assert one is not None
    assert await slots.adopt(0) is None
    assert await slots.abandoned() == []
    assert (await slots.take()).number == 1, "a slot that is being drained is not free"
    await one.forget([run(number) for number in range(3)])
    await one.close()
    assert await slots.abandoned() == []
    assert await slots.adopt(0) is None


async def test_receipts_past_their_end_bring_an_adopter_once_more(slots: Slots, clock: ManualClock):
    journal = await slots.take()
    await keep(journal, 1)
    await journal.forget([run(1)])
    await journal.close()
    assert await slots.abandoned() == []
    clock.advance(72 * HOUR_SECONDS)
    assert await slots.abandoned() == [0]
    adopted = await slots.adopt(0)
    assert adopted is not None
    assert await adopted.sweep() == 1
    await adopted.close()
    assert await slots.abandoned() == []


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C19")
async def test_all_slots_can_be_read_those_of_living_processes_too(tmp_path: Path, slots: Slots):
    with child("keep_for_ever", tmp_path, 1000) as process:
        theirs = said(process)
        acknowledged = {run(said(process)) for _ in range(50)}
        ours = await slots.take()
        await keep(ours, 1)
        left = await slots.take()
        await keep(left, 2)
        await left.close()
        async with slots.every() as journals:
            assert [journal.number for journal in journals] == [theirs, ours.number, left.number]
            assert acknowledged <= set(await open_in(journals[0]))
            assert [await open_in(journal) for journal in journals[1:]] == [[run(1)], [run(2)]]
        said(process)  # it goes on
    await keep(ours, 3)
    await ours.close()


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C29")
async def test_what_two_have_accepted_is_one_task_in_both(slots: Slots):
    one, two = await slots.take(), await slots.take()
    for journal in (one, two):
        assert (await keep(journal, 1)).new
    async with slots.every() as journals:
        assert [await open_in(journal) for journal in journals] == [[run(1)], [run(1)]]
    await one.close()
    await two.close()


@pytest.mark.req("CPY-7")
@pytest.mark.failure("C9")
async def test_a_damaged_slot_is_put_aside_and_the_same_slot_starts_anew(tmp_path: Path, slots: Slots):
    (tmp_path / "journal-0.db").write_bytes(b"\xa5" * 8192)
    with capture_logs() as logged:
        journal = await slots.take()
    assert journal.number == 0
    assert [line["event"] for line in logged] == ["journal.lost"]
    await keep(journal, 1)
    [aside] = tmp_path.glob("journal-0.db.lost-*")
    assert aside.read_bytes() == b"\xa5" * 8192
    async with slots.every() as journals:
        assert len(journals) == 1, "what was put aside is no slot"
    await journal.close()


@pytest.mark.failure("C9")
async def test_an_abandoned_slot_that_is_damaged_is_put_aside_too(tmp_path: Path, slots: Slots):
    (tmp_path / "journal-3.db").write_bytes(b"\xa5" * 8192)
    with capture_logs() as logged:
        assert await slots.abandoned() == []
    assert [line["event"] for line in logged] == ["journal.lost"]


@pytest.mark.failure("C9")
async def test_a_damaged_slot_of_a_living_process_is_left_to_it_and_stops_no_reader_of_the_others(
    tmp_path: Path, slots: Slots
):
    (tmp_path / "journal-0.db").write_bytes(b"\xa5" * 8192)
    other = await slots.take()
    await keep(other, 1)
    (tmp_path / "journal-1.db").write_bytes(b"\xa5" * 8192)
    async with slots.every() as journals:
        assert await open_in(journals[0]) == [run(1)]
        with pytest.raises(StoreUnavailable):
            await open_in(journals[1])
    assert (tmp_path / "journal-1.db").read_bytes() == b"\xa5" * 8192
    await other.close()


@pytest.mark.failure("M3", "M4")
async def test_a_slot_of_a_newer_version_is_left_to_it(tmp_path: Path, slots: Slots, clock: ManualClock):
    newer = {"journal": [*journal_module.SCHEMA["journal"], "ALTER TABLE tasks ADD COLUMN more TEXT"]}
    database = Database(tmp_path / "journal-0.db", clock=clock, schema=newer)
    await database.open()
    await database.close()
    before = (tmp_path / "journal-0.db").read_bytes()
    with capture_logs() as logged:
        journal = await slots.take()
        assert await slots.adopt(0) is None
    assert journal.number == 1
    assert [line["event"] for line in logged] == ["journal.slot_skipped", "journal.slot_unusable"]
    assert (tmp_path / "journal-0.db").read_bytes() == before
    await journal.close()


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5")
@NEEDS_ROOT
async def test_a_slot_on_a_full_disk_is_held_and_used_as_soon_as_there_is_room(tmp_path: Path, clock: ManualClock):
    with small_disk(tmp_path / "disk") as disk:
        slots = Slots(disk, clock=clock)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with capture_logs() as logged:
            journal = await slots.take()
        assert [(line["event"], line["log_level"]) for line in logged] == [("journal.slot_unwritable", "error")]
        with pytest.raises(StoreUnavailable):
            await keep(journal, 1)
        assert await slots.adopt(journal.number) is None, "it is held"
        ballast.unlink()
        await keep(journal, 1)
        assert await open_in(journal) == [run(1)]
        await journal.close()


async def test_a_directory_that_is_not_there_is_refused(tmp_path: Path, clock: ManualClock):
    slots = Slots(tmp_path / "missing", clock=clock)
    for attempt in (slots.take, slots.abandoned, lambda: slots.adopt(0)):
        with pytest.raises(StoreUnavailable):
            await attempt()


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5")
async def test_who_looks_into_all_journals_does_not_wait_for_a_disk_that_hangs(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
):
    journal = await slots.take()
    await keep(journal, 1)
    hangs = threading.Event()
    monkeypatch.setattr(slots_module, "LOOK_SECONDS_MAX", 0.1)

    def connect(database: Database) -> object:
        assert hangs.wait(PATIENCE_SECONDS)
        return connected(database)

    connected = Database._connect
    monkeypatch.setattr(Database, "_connect", connect)
    assert await slots.ask_each(lambda one: one.has([run(1).task_id])) == []
    hangs.set()
    await asyncio.gather(*slots._looking)
    assert await slots.ask_each(lambda one: one.has([run(1).task_id])) == [{run(1).task_id}]
    await journal.close()

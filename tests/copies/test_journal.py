"""What the journal promises of a record from its keeping until it is forgotten, on real files and disks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import msgspec
import pytest
from disks import faulty_disk, remount, small_disk
from journals import (
    HOUR_SECONDS,
    LIVES,
    database_at,
    due_in,
    keep,
    keep_all,
    lacking_in,
    message,
    open_in,
    run,
    runs_in,
)
from structlog.testing import capture_logs

from rise.copies import journal as journal_module
from rise.copies.journal import Journal, JournalKept
from rise.copies.record import encode_task
from rise.errors import StoreUnavailable
from rise.testing.clock import ManualClock

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal-0.db"


@pytest.fixture
async def journal(path: Path, clock: ManualClock) -> AsyncIterator[Journal]:
    journal = await opened(path, clock)
    yield journal
    await journal.close()


async def opened(path: Path, clock: ManualClock, **options) -> Journal:
    journal = Journal(lambda: database_at(path, clock), clock=clock, **options)
    await journal.open()
    return journal


def asked(path: Path, statement: str) -> list[tuple]:
    connection = apsw.Connection(str(path))
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# --- keeping ----------------------------------------------------------------------------------------------


@pytest.mark.req("CPY-2")
async def test_a_record_is_kept_once_with_its_exact_bytes(journal: Journal):
    task = message(1, raw=b'{"exact":  "bytes"}')
    record = encode_task(task)
    assert await journal.keep(task, record) == JournalKept(new=True)
    assert await journal.keep(task, record) == JournalKept(new=False)
    [entry] = await journal.open_tasks(limit=10)
    assert (entry.task, entry.record) == (task, record)


@pytest.mark.req("CPY-2")
async def test_the_same_key_with_another_body_is_told_apart_and_the_first_stays(journal: Journal):
    await keep(journal, 1, raw=b"first")
    assert await keep(journal, 1, raw=b"second") == JournalKept(new=False, same_body=False)
    [entry] = await journal.open_tasks(limit=10)
    assert entry.task.raw == b"first"


@pytest.mark.req("CPY-5")
async def test_a_finished_task_stays_finished_whoever_brings_it_again(journal: Journal):
    await keep(journal, 1)
    assert await journal.forget([run(1)]) == 1
    assert await keep(journal, 1) == JournalKept(new=False)
    assert await open_in(journal) == []
    assert await journal.forget([run(1)]) == 0


@pytest.mark.req("ENV-3", "CPY-2")
async def test_a_key_past_its_time_brings_a_new_message_also_before_it_was_swept(journal: Journal):
    await keep(journal, 1, raw=b"former", receipt_hours=1)
    again = message(1, raw=b"new", receipt_hours=1)
    later = msgspec.structs.replace(again.head, accepted_at_ms=again.head.accepted_at_ms + HOUR_SECONDS * 1000)
    again = msgspec.structs.replace(again, head=later)
    assert await journal.keep(again, encode_task(again)) == JournalKept(new=False, same_body=False), "it is open still"
    await journal.forget([run(1)])
    assert await journal.keep(again, encode_task(again)) == JournalKept(new=True)
    [entry] = await journal.open_tasks(limit=10)
    assert entry.task.raw == b"new"


@pytest.mark.req("CPY-5")
async def test_entries_are_found_by_their_tasks(journal: Journal):
    await keep_all(journal, range(3))
    found = await journal.entries([run(0).task_id, run(2).task_id, run(9).task_id])
    assert sorted(runs_in(found)) == sorted([run(0), run(2)])


@pytest.mark.req("CPY-1")
@pytest.mark.failure("M5")
async def test_a_store_that_lost_what_it_held_lacks_everything(journal: Journal):
    await keep_all(journal, range(3))
    await journal.note([run(0), run(1)], "rabbitmq", "1")
    await journal.note([run(0)], "redis", "1")
    assert (await journal.noted("rabbitmq"), await journal.noted("redis")) == (2, 1)
    asked = [run(0), run(1, generation=1), run(2), run(9)]
    assert await journal.noted_among("rabbitmq", asked) == {run(0)}, "of these, and in this generation"
    await journal.note_lost("rabbitmq")
    assert await journal.noted_among("rabbitmq", asked) == set()
    assert (await journal.noted("rabbitmq"), await journal.noted("redis")) == (0, 1)
    assert len(await lacking_in(journal, "rabbitmq", "1")) == 3


@pytest.mark.req("CPY-2")
@pytest.mark.parametrize("is_finished", [True, False])
async def test_a_task_that_a_person_runs_again_takes_the_place_of_the_former_and_lacks_all_copies(
    journal: Journal, is_finished: bool
):
    await keep(journal, 1)
    await journal.note([run(1)], "redis", "one")
    await journal.note([run(1)], "rabbitmq", "one")
    if is_finished:
        await journal.forget([run(1)])
    assert await keep(journal, 1, generation=2) == JournalKept(new=False)
    assert await open_in(journal) == [run(1, 2)]
    assert await journal.copies_of(run(1).task_id) == {}
    for lower in (0, 1, 2):
        await keep(journal, 1, generation=lower)
    assert await open_in(journal) == [run(1, 2)]


@pytest.mark.failure("C30")
async def test_what_is_said_of_a_lower_generation_does_not_touch_the_higher(journal: Journal):
    await keep(journal, 1)
    await keep(journal, 1, generation=1)
    await journal.note([run(1, 0)], "redis", "one")
    await journal.looked([run(1, 0)])
    assert await journal.forget([run(1, 0)]) == 0
    assert await journal.copies_of(run(1).task_id) == {}
    assert await journal.forget([run(1, 3)]) == 1


async def test_what_is_not_here_may_be_noted_looked_at_and_forgotten(journal: Journal):
    for runs in ([], [run(9)]):
        await journal.note(runs, "redis", "one")
        await journal.looked(runs)
        assert await journal.forget(runs) == 0
        assert await journal.has([each.task_id for each in runs]) == set()
    assert await journal.copies_of(run(9).task_id) is None


@pytest.mark.req("CPY-2")
async def test_messages_that_wait_together_share_their_commits(path: Path, clock: ManualClock):
    database = database_at(path, clock)
    journal = Journal(lambda: database, clock=clock)
    await journal.open()
    commits: list[int] = []
    await database.write(lambda connection: connection.set_commit_hook(lambda: bool(commits.append(1))))
    commits.clear()
    await keep_all(journal, range(64))
    assert len(commits) < 10
    assert len(await open_in(journal)) == 64
    await journal.close()


# --- the other copies -------------------------------------------------------------------------------------


@pytest.mark.req("CPY-3", "CPY-4")
@pytest.mark.failure("C2", "C3", "C30")
async def test_a_store_lacks_what_was_not_noted_in_the_order_of_keeping(journal: Journal):
    for number in (3, 1, 2, 5, 4):
        await keep(journal, number)
    assert await lacking_in(journal, "redis", "one") == [run(3), run(1), run(2), run(5), run(4)]
    await journal.note([run(1), run(5)], "redis", "one")
    assert await lacking_in(journal, "redis", "one") == [run(3), run(2), run(4)]
    assert len(await lacking_in(journal, "rabbitmq", "one")) == 5
    assert await journal.copies_of(run(1).task_id) == {"redis": "one"}


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C19")
async def test_a_store_that_was_emptied_lacks_everything_again(journal: Journal):
    await keep_all(journal, range(5))
    await journal.note([run(0), run(1)], "redis", "one")
    await journal.note([run(2)], "redis", "two")
    assert await lacking_in(journal, "redis", "two") == [run(0), run(1), run(3), run(4)]
    assert await lacking_in(journal, "redis", "one") == [run(2), run(3), run(4)]
    for life in ("three", None):
        assert await lacking_in(journal, "redis", life) == [run(number) for number in range(5)]


async def test_a_life_without_a_name_is_refused(journal: Journal):
    await keep(journal, 1)
    with pytest.raises(ValueError, match="name"):
        await journal.note([run(1)], "redis", "")


async def test_pages_go_on_behind_the_last_number_whatever_life_it_is_of(journal: Journal):
    await keep_all(journal, range(20))
    await journal.note([run(number) for number in range(0, 20, 3)], "redis", "former")
    found, after = [], 0
    while page := await journal.lacking("redis", "one", limit=3, after=after):
        assert len(page) <= 3
        found += runs_in(page)
        after = page[-1].number
    assert found == [run(number) for number in range(20)]


async def test_a_page_ends_early_when_its_records_are_large(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "PAGE_BYTES_MAX", 50_000)
    for number in range(5):
        await keep(journal, number, raw=bytes(30_000))
    assert len(await journal.open_tasks(limit=100)) == 2
    assert len(await open_in(journal)) == 5


async def test_what_was_kept_just_now_is_left_to_those_who_keep_it(journal: Journal, clock: ManualClock):
    await keep(journal, 1)
    clock.advance(5)
    await keep(journal, 2)
    assert await lacking_in(journal, "redis", "one", older_than_ms=5000) == [run(1)]


@pytest.mark.failure("L1")
async def test_a_step_of_the_wall_clock_keeps_nothing_from_being_brought_and_looked_at(
    journal: Journal, clock: ManualClock
):
    await keep(journal, 1)
    clock.step_wall(-86_400)
    clock.advance(5)
    assert await lacking_in(journal, "redis", "one", older_than_ms=5000) == [run(1)]
    assert await due_in(journal, 10) == [run(1)]


@pytest.mark.failure("B14", "B15")
async def test_a_record_that_cannot_be_read_stops_no_other_and_is_said_once(journal: Journal):
    await keep(journal, 1)
    await journal.keep(message(2), b"of a later version")
    await keep(journal, 3)
    with capture_logs() as logged:
        for _ in range(2):
            assert await lacking_in(journal, "redis", "one") == [run(1), run(3)]
            assert await open_in(journal) == [run(1), run(3)]
            assert runs_in(await journal.open_tasks(limit=1, after=1)) == [run(3)]
    assert [(line["event"], line["task_id"]) for line in logged] == [("journal.record_unreadable", run(2).task_id)]
    assert (await journal.depth(LIVES)).unreadable == 1
    assert await journal.forget([run(2)]) == 1
    assert (await journal.depth(LIVES)).unreadable == 0


# --- looking at them, and forgetting ----------------------------------------------------------------------


async def test_each_is_looked_at_after_growing_delays(journal: Journal, clock: ManualClock):
    await keep(journal, 1)
    delays, waited = [], 0
    while len(delays) < 12:
        clock.advance(1)
        waited += 1
        if await journal.due(10):
            delays.append(waited)
            waited = 0
            await journal.looked([run(1)])
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]


async def test_the_longest_waiting_are_looked_at_first_and_readable_or_not(journal: Journal, clock: ManualClock):
    await keep(journal, 1)
    clock.advance(1)
    await journal.keep(message(2), b"unreadable")
    assert await journal.due(10) == []
    clock.advance(2)
    assert await due_in(journal, 10) == [run(1), run(2)]
    assert await due_in(journal, 1) == [run(1)]
    await journal.looked([run(1)])
    assert await due_in(journal, 10) == [run(2)]


@pytest.mark.req("CPY-2")
async def test_receipts_outlive_their_tasks_until_their_time(journal: Journal, clock: ManualClock):
    await keep(journal, 1, receipt_hours=1)
    await keep(journal, 2, receipt_hours=1)
    await keep(journal, 3, receipt_hours=2)
    await journal.forget([run(1), run(3)])
    assert await journal.sweep() == 0
    clock.advance(HOUR_SECONDS)
    assert await journal.sweep() == 1, "the second task is still open"
    assert await keep(journal, 2) == JournalKept(new=False)
    assert await keep(journal, 1, receipt_hours=2) == JournalKept(new=True)
    await journal.forget([run(1), run(2)])
    assert await journal.sweep() == 1
    assert [receipt.task_id for receipt in await journal.receipts(limit=10)] == [run(1).task_id, run(3).task_id]


async def test_any_number_of_receipts_is_swept_in_steps(
    journal: Journal, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal_module, "SWEEP_AT_ONCE", 10)
    await keep_all(journal, range(40))
    await journal.forget([run(number) for number in range(35)])
    clock.advance(72 * HOUR_SECONDS)
    assert await journal.sweep() == 35
    assert (await journal.depth(LIVES)).receipts == 5


@pytest.mark.req("CPY-5")
async def test_receipts_are_paged_by_key_and_say_what_another_store_needs(journal: Journal, clock: ManualClock):
    await keep_all(journal, range(10))
    await keep(journal, 3, generation=1)
    await keep(journal, 77, receipt_hours=1)
    clock.advance(HOUR_SECONDS)
    found, after = [], ""
    while page := await journal.receipts(limit=3, after=after):
        found += page
        after = page[-1].delivery_key
    assert [receipt.delivery_key for receipt in found] == [f"tg:7:u:{number}" for number in range(10)]
    head = message(3).head
    assert (found[3].task_id, found[3].body_sha256, found[3].generation) == (head.task_id, head.raw_sha256, 1)
    assert found[3].ends_at_ms == found[3].accepted_at_ms + 72 * HOUR_SECONDS * 1000


@pytest.mark.failure("L14")
async def test_the_file_does_not_grow_with_what_passes_through_it(path: Path, journal: Journal, clock: ManualClock):
    async def pass_through(round_: int) -> int:
        numbers = range(round_ * 300, round_ * 300 + 300)
        await asyncio.gather(*(keep(journal, number, raw=bytes(3000), receipt_hours=1) for number in numbers))
        for copy in ("redis", "rabbitmq"):
            await journal.note([run(number) for number in numbers], copy, "one")
        await journal.looked([run(number) for number in numbers])
        assert await journal.forget([run(number) for number in numbers]) == 300
        clock.advance(HOUR_SECONDS)
        await keep(journal, 1_000_000 + round_)
        await journal.sweep()
        return asked(path, "PRAGMA page_count")[0][0]

    first = await pass_through(0)
    assert max([await pass_through(round_) for round_ in range(1, 12)]) <= first * 1.1
    await journal.forget([run(1_000_000 + round_) for round_ in range(12)])
    assert asked(path, "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM receipts)") == [(0, 12)]
    used = asked(path, "SELECT sum(pgsize) FROM dbstat")[0][0]
    assert used < 100_000, "of what is finished only the receipts are left"


async def test_the_depth_is_counted(journal: Journal, clock: ManualClock):
    assert (await journal.depth(LIVES)).oldest_open_ms is None
    await keep(journal, 1)
    clock.advance(10)
    await keep_all(journal, (2, 3))
    await journal.note([run(1), run(2)], "redis", "one")
    await journal.note([run(1)], "rabbitmq", "one")
    await journal.forget([run(3)])
    depth = await journal.depth(LIVES)
    assert (depth.open, depth.receipts, depth.oldest_open_ms, depth.lacking) == (
        2, 3, 10_000, {"redis": 0, "rabbitmq": 1},
    )  # fmt: skip
    assert (await journal.depth({"redis": None})).lacking == {"redis": 2}
    assert await journal.has([run(number).task_id for number in range(5)]) == {run(1).task_id, run(2).task_id}


@pytest.mark.req("CPY-5")
async def test_all_of_it_is_found_again_after_a_restart(path: Path, clock: ManualClock):
    journal = await opened(path, clock)
    await keep_all(journal, range(30))
    await journal.note([run(1)], "redis", "one")
    await journal.forget([run(2)])
    await journal.close()
    clock.reboot()
    journal = await opened(path, clock)
    assert await open_in(journal) == [run(number) for number in range(30) if number != 2]
    assert run(1) not in await lacking_in(journal, "redis", "one")
    assert await keep(journal, 2) == JournalKept(new=False)
    await journal.close()


# --- the plan of every statement that is asked often ------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (journal_module._DUE, (0, 1), "tasks_by_look"),
        (journal_module._LOOKED, (0, 0, 0, "[]"), "sqlite_autoindex_tasks_1"),
        (journal_module._FORGET, ("[]",), "sqlite_autoindex_tasks_1"),
        (journal_module._SWEEP, (0, 1), "receipts_by_end"),
        (journal_module._COPIES_OF, ("t",), "sqlite_autoindex_tasks_1"),
        (journal_module._HAS, ("[]",), "sqlite_autoindex_tasks_1"),
        (journal_module._OPEN, (0,), "INTEGER PRIMARY KEY"),
        (journal_module._NOTE.format("redis"), ("one", "[]"), "sqlite_autoindex_tasks_1"),
        (journal_module._LACKING.format("rabbitmq"), ("", 0, 0), "tasks_by_rabbitmq"),
    ],
)
async def test_no_statement_reads_all_that_is_open(journal: Journal, path: Path, statement, values, index):
    connection = apsw.Connection(str(path))
    plan = [step for *_, step in connection.execute("EXPLAIN QUERY PLAN " + statement, values)]
    connection.close()
    assert any(index in step for step in plan), plan
    assert not [step for step in plan if step.startswith(("SCAN tasks", "SCAN receipts"))], plan


# --- the disk ---------------------------------------------------------------------------------------------


@pytest.mark.req("CPY-2")
@pytest.mark.failure("C5")
@NEEDS_ROOT
async def test_a_full_disk_refuses_and_works_again_when_there_is_room(tmp_path: Path, clock: ManualClock):
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1 << 20))
        journal = await opened(disk / "journal-0.db", clock)
        acknowledged = []
        with pytest.raises(StoreUnavailable, match="full"):
            for number in range(1000):
                await keep(journal, number, raw=bytes(20_000))
                acknowledged.append(run(number))
        assert 10 < len(acknowledged) < 1000
        assert await open_in(journal) == acknowledged
        ballast.unlink()
        assert await keep(journal, 2000) == JournalKept(new=True)
        await journal.forget(acknowledged[1:])
        assert await open_in(journal) == [acknowledged[0], run(2000)]
        await journal.close()


@pytest.mark.failure("C6")
async def test_a_failed_sync_refuses_and_the_next_is_kept(path: Path, tmp_path: Path, clock: ManualClock):
    with faulty_disk(tmp_path / "durable") as disk:
        journal = await opened(path, clock)
        await keep(journal, 1)
        disk.sync_failures = 1
        with pytest.raises(StoreUnavailable):
            await keep(journal, 2)
        await keep(journal, 3)
        await keep(journal, 2)
        assert set(await open_in(journal)) == {run(1), run(2), run(3)}
        await journal.close()
    assert path.exists()
    assert not list(tmp_path.glob("*.lost-*")), "trouble with the disk is no reason to give up the file"


@pytest.mark.failure("L9")
@NEEDS_ROOT
async def test_a_read_only_disk_refuses_and_works_again_when_it_is_writable(tmp_path: Path, clock: ManualClock):
    with small_disk(tmp_path / "disk") as disk:
        journal = await opened(disk / "journal-0.db", clock)
        await keep(journal, 1)
        # Nobody may have it open for writing when it is made read-only.
        await journal.close()
        remount(disk, "ro")
        journal = Journal(lambda: database_at(disk / "journal-0.db", clock), clock=clock)
        for attempt in (journal.open, lambda: keep(journal, 2)):
            with pytest.raises(StoreUnavailable):
                await attempt()
        remount(disk, "rw")
        await keep(journal, 2)
        assert await open_in(journal) == [run(1), run(2)]
        await journal.close()


@pytest.mark.req("CPY-7")
@pytest.mark.failure("C10")
async def test_a_file_that_vanishes_is_said_loudly_and_an_empty_one_goes_on(
    path: Path, journal: Journal, clock: ManualClock
):
    await keep(journal, 1)
    path.unlink()
    with capture_logs() as logged:
        await asyncio.gather(*(keep(journal, number) for number in range(2, 12)))
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["journal.lost"]
    assert set(await open_in(journal)) == {run(number) for number in range(2, 12)}
    assert asked(path, "SELECT count(*) FROM tasks") == [(10,)]
    assert await keep(journal, 1) == JournalKept(new=True), "another copy brings it back"


@pytest.mark.failure("C9")
async def test_who_hangs_up_while_it_starts_anew_leaves_it_usable(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    path.write_bytes(b"\xa5" * 8192)
    journal = Journal(lambda: database_at(path, clock), clock=clock)
    waiting = asyncio.gather(journal.open())
    really = journal_module._put_aside
    monkeypatch.setattr(journal_module, "_put_aside", lambda *of, **how: (waiting.cancel(), really(*of, **how))[1])
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await keep(journal, 3) == JournalKept(new=True)
    assert await open_in(journal) == [run(3)]
    await journal.close()


@pytest.mark.failure("C9", "L9")
@NEEDS_ROOT
async def test_a_damaged_file_on_a_read_only_disk_is_put_aside_once_that_can_be_done(
    tmp_path: Path, clock: ManualClock
):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "journal-0.db"
        path.write_bytes(b"\xa5" * 8192)
        remount(disk, "ro")
        journal = Journal(lambda: database_at(path, clock), clock=clock)
        for attempt in (journal.open, lambda: keep(journal, 1)):
            with pytest.raises(StoreUnavailable):
                await attempt()
        remount(disk, "rw")
        assert await keep(journal, 1) == JournalKept(new=True)
        assert [aside.read_bytes() for aside in disk.glob("*.lost-*")] == [b"\xa5" * 8192]
        await journal.close()


@pytest.mark.failure("C5", "C10")
@NEEDS_ROOT
async def test_a_file_that_vanishes_from_a_full_disk_is_made_anew_when_there_is_room(
    tmp_path: Path, clock: ManualClock
):
    with small_disk(tmp_path / "disk") as disk:
        journal = await opened(disk / "journal-0.db", clock)
        await keep(journal, 1)
        (disk / "journal-0.db").unlink()
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StoreUnavailable):
            for number in range(1000):  # closing the vanished file gives some room back
                await keep(journal, 100 + number, raw=bytes(20_000))
        ballast.unlink()
        assert await keep(journal, 2) == JournalKept(new=True)
        assert run(2) in await open_in(journal)
        assert run(1) not in await open_in(journal)
        await journal.close()


@pytest.mark.failure("C10", "M7")
async def test_a_file_put_in_its_place_is_put_aside_unharmed(path: Path, tmp_path: Path, clock: ManualClock):
    other = await opened(tmp_path / "other.db", clock)
    await keep(other, 50)
    await other.close()
    bytes_of_other = (tmp_path / "other.db").read_bytes()
    journal = await opened(path, clock)
    await keep(journal, 1)
    assert await open_in(journal) == [run(1)]
    (tmp_path / "other.db").replace(path)
    with capture_logs() as logged:
        await keep(journal, 2)
    [said] = [line for line in logged if line["log_level"] == "error"]
    assert said["event"] == "journal.lost"
    assert Path(said["put_aside"]).read_bytes() == bytes_of_other
    assert await open_in(journal) == [run(2)], "and nothing out of the log that lay beside it"
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]
    await journal.close()
    restored = await opened(Path(said["put_aside"]), clock)
    assert await open_in(restored) == [run(50)]
    await restored.close()


@pytest.mark.req("CPY-7")
@pytest.mark.failure("C9")
@pytest.mark.parametrize("where", ["header", "all"])
async def test_a_damaged_file_is_put_aside_at_the_start_with_its_bytes(
    path: Path, tmp_path: Path, clock: ManualClock, where: str
):
    journal = await opened(path, clock)
    await keep(journal, 1)
    await journal.close()
    for _ in range(2):
        damaged = bytearray(path.read_bytes())
        damaged[: 16 if where == "header" else None] = b"\xa5" * (16 if where == "header" else len(damaged))
        path.write_bytes(damaged)
        with capture_logs() as logged:
            journal = await opened(path, clock)
        [said] = [line for line in logged if line["event"] == "journal.lost"]
        assert (said["log_level"], "other copies" in said["consequence"]) == ("error", True)
        assert Path(said["put_aside"]).read_bytes() == damaged
        assert await open_in(journal) == []
        await keep(journal, 2)
        await journal.close()
    assert len(list(tmp_path.glob("*.lost-*"))) == 2


@pytest.mark.failure("C9")
async def test_damage_met_while_running_is_put_aside_and_work_goes_on(path: Path, clock: ManualClock):
    journal = await opened(path, clock)
    await keep_all(journal, range(2000))
    await journal.close()
    damaged = bytearray(path.read_bytes())
    for page in range(10, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(damaged)
    journal = await opened(path, clock)
    await asyncio.gather(*(keep(journal, number) for number in range(3000, 3050)))
    assert {run(number) for number in range(3000, 3050)} <= set(await open_in(journal))
    await journal.close()


@pytest.mark.failure("C9", "C10")
async def test_who_only_reads_another_ones_file_never_replaces_it(path: Path, clock: ManualClock):
    path.write_bytes(b"\xa5" * 8192)
    reader = Journal(lambda: database_at(path, clock), clock=clock, may_start_anew=False)
    with pytest.raises(StoreUnavailable):
        await reader.open()
    with pytest.raises(StoreUnavailable):
        await reader.open_tasks(limit=1)
    await reader.close()
    assert path.read_bytes() == b"\xa5" * 8192


@pytest.mark.failure("C7")
async def test_a_change_is_not_acknowledged_before_its_commit(path: Path, clock: ManualClock):
    database = database_at(path, clock)
    journal = Journal(lambda: database, clock=clock)
    await journal.open()
    reached, gate = threading.Event(), threading.Event()

    def busy(connection: apsw.Connection) -> None:
        reached.set()
        assert gate.wait(10)

    holding = asyncio.gather(database.write(busy))
    await asyncio.to_thread(reached.wait, 10)
    kept = asyncio.gather(keep(journal, 1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not kept.done()
    assert await open_in(journal) == []
    gate.set()
    await asyncio.gather(holding, kept)
    assert await open_in(journal) == [run(1)]
    await journal.close()

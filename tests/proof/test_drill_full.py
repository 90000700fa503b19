"""The drill of the full profile: servers of its own, two gateways, and every trouble in its turn."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from rise.testing.clock import ManualClock
from rise.testing.faults.alarms import ALARM_SECONDS_MAX, Alarms
from rise.testing.faults.drill import run_drill
from rise.testing.faults.nemesis import CopyGone
from rise.testing.faults.order import PER_SECOND_WITH_MONGO, Order
from rise.testing.faults.report import CopiesSeen
from rise.testing.faults.schedule import (
    LINKS_OF_FULL,
    MISHAPS_OF_FULL,
    MISHAPS_OF_MONGO,
    Cycle,
    Freeze,
    Kill,
    Link,
    Mishap,
    Moment,
    StoreMishap,
    Victim,
    cycles,
)
from rise.testing.faults.singles import SINGLES, measure_singles, singles_of
from rise.testing.faults.stores import AppendFsync
from rise.testing.faults.table import BEGINS, ENDS, Row, Table
from rise.testing.servers import has_mongodb, has_rabbitmq, has_redis, missing

DECK = 29
"""Cycles that hold one of each trouble of the full profile."""
DECK_WITH_MONGO = 34

SINGLES_OF_A_TEST = [
    single
    for single in SINGLES
    if single.name
    in {
        *("a gateway killed -9", Mishap.REDIS_EMPTIED, Mishap.RABBIT_FROZEN, Mishap.RABBIT_MEMORY_ALARM),
        *("journal disk full", Mishap.BOTH_UNREACHABLE),
    }
]
"""One of each kind; `rise drill --table` measures all."""

with_servers = pytest.mark.skipif(
    not has_redis() or not has_rabbitmq(), reason="redis-server or rabbitmq-server is not installed"
)

with_mongodb = pytest.mark.skipif(not has_mongodb(), reason="SecantusDB is not installed")


# --- the schedule -----------------------------------------------------------------------------------------


@pytest.mark.req("TST-4")
@pytest.mark.parametrize(
    ("mongo", "count", "mishaps", "links"),
    [(False, DECK, MISHAPS_OF_FULL, LINKS_OF_FULL), (True, DECK_WITH_MONGO, Mishap, Link)],
    ids=["full", "mongo"],
)
def test_every_deck_holds_each_mishap_and_each_link(
    mongo: bool, count: int, mishaps: Iterable[Mishap], links: Iterable[Link]
):
    dealt = list(itertools.islice(cycles(1, full=True, mongo=mongo), 2 * count))
    for deck in (dealt[:count], dealt[count:]):
        troubles = [cycle.trouble for cycle in deck]
        assert {trouble.mishap for trouble in troubles if isinstance(trouble, StoreMishap)} == set(mishaps)
        assert {link for trouble in troubles if (link := getattr(trouble, "link", None))} == set(links)


@pytest.mark.req("TST-4")
def test_the_embedded_drill_knows_no_servers_and_no_second_gateway():
    dealt = list(itertools.islice(cycles(1), 300))
    assert not any(isinstance(cycle.trouble, StoreMishap) for cycle in dealt)
    assert not any(cycle.kill is not None and cycle.kill.victim is Victim.SECOND for cycle in dealt)


@pytest.mark.req("TST-4")
def test_an_embedded_seed_is_the_schedule_that_it_was_when_its_numbers_were_published():
    published = list(itertools.islice(cycles(20260101), 300))
    assert hashlib.sha256(repr(published).encode()).hexdigest().startswith("601f225afe90b495")


@pytest.mark.req("TST-4")
def test_a_full_seed_is_the_schedule_that_it_was_when_its_numbers_were_published():
    published = list(itertools.islice(cycles(20260101, full=True), 100))
    assert hashlib.sha256(repr(published).encode()).hexdigest().startswith("f4497cf53b677e3e")


@pytest.mark.req("TST-4", "OPS-1")
def test_the_same_again_is_said_with_its_profile():
    assert "--profile" not in Order(seed=1).command
    assert Order(seed=1, full=True).command == "rise drill --profile full --seed 1 --cycles 30"
    with_mongo = Order(seed=1, full=True, mongo=True, messages_per_second=PER_SECOND_WITH_MONGO)
    assert with_mongo.command == "rise drill --profile mongo --seed 1 --cycles 30"
    assert Order(seed=1, messages_per_second=2).command.endswith("--rate 2")


@pytest.mark.req("TST-4", "OPS-1")
def test_what_is_not_installed_is_said_with_what_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rise.testing.servers.has_redis", lambda: False)
    monkeypatch.setattr("rise.testing.servers.has_mongodb", lambda: False)
    assert [line.partition(":")[0] for line in missing()] == ["redis-server"]
    assert [line.partition(":")[0] for line in missing(mongo=True)] == [
        "redis-server",
        "a server that speaks MongoDB's protocol",
    ]


@pytest.mark.req("TST-4")
def test_the_table_of_the_mongo_profile_has_the_rows_of_the_full_one_and_mongodbs():
    rows = [single.name for single in singles_of(Order(seed=1, full=True, mongo=True))]
    assert rows == [single.name for single in SINGLES] + [str(mishap) for mishap in MISHAPS_OF_MONGO]
    assert singles_of(Order(seed=1, full=True)) == SINGLES


# --- alarms -----------------------------------------------------------------------------------------------


def said(log: Path, *lines: dict[str, object]) -> None:
    with log.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


LOUD = {"event": "capability.state_changed", "name": "redis", "status": "unavailable", "level": "warning"}
CALM = {"event": "capability.state_changed", "name": "redis", "status": "available", "level": "info"}


@pytest.mark.req("TST-4", "OPS-1")
def test_an_alarm_counts_from_its_fault_on_for_thirty_seconds_and_only_of_that_store(tmp_path: Path):
    log, clock = tmp_path / "log", ManualClock()
    alarms = Alarms(log, clock)
    said(log, LOUD)
    alarms.catch_up()
    clock.advance(1)
    began = clock.monotonic()
    assert alarms.since(began, "redis") is None, "it was said before"
    clock.advance(1)
    said(log, CALM)
    alarms.catch_up()
    assert alarms.since(began, "redis") is None, "that it is well is no alarm"
    said(log, LOUD)
    alarms.catch_up()
    assert alarms.since(began, "redis") is not None
    assert alarms.since(began, "rabbitmq") is None
    assert alarms.since(began - ALARM_SECONDS_MAX, "redis") is not None, "the one before it"
    clock.advance(ALARM_SECONDS_MAX)
    later = Alarms(log, clock)
    later.catch_up()
    assert later.since(began, "redis") is None, "too late"


@pytest.mark.req("TST-4", "OPS-1")
def test_the_alarm_of_the_next_fault_is_not_taken_for_that_of_the_one_before(tmp_path: Path):
    log, clock = tmp_path / "log", ManualClock()
    alarms = Alarms(log, clock)
    first = CopyGone("Redis frozen", "redis", clock.monotonic())
    clock.advance(5)
    second = CopyGone("Redis killed -9", "redis", clock.monotonic())
    said(log, LOUD)
    seen = CopiesSeen.of(alarms, [first, second])
    assert (seen.alarms_due, seen.alarms_missed) == (2, ["Redis frozen"])


@pytest.mark.req("TST-4", "OPS-1")
def test_what_befalls_a_store_that_is_said_to_be_away_is_no_news_until_it_is_said_to_be_back(tmp_path: Path):
    log, clock = tmp_path / "log", ManualClock()
    alarms = Alarms(log, clock)
    first = CopyGone("Redis killed -9", "redis", clock.monotonic())
    said(log, LOUD)
    alarms.catch_up()
    clock.advance(5)
    second = CopyGone("Redis frozen", "redis", clock.monotonic())
    seen = CopiesSeen.of(alarms, [first, second])
    assert (seen.alarms_due, seen.alarms_missed) == (1, [])
    clock.advance(1)
    said(log, CALM)
    alarms.catch_up()
    clock.advance(1)
    third = CopyGone("Redis frozen", "redis", clock.monotonic())
    seen = CopiesSeen.of(alarms, [first, second, third])
    assert (seen.alarms_due, seen.alarms_missed) == (2, ["Redis frozen"])


@pytest.mark.req("TST-4")
def test_copies_made_up_and_refills_are_counted_from_the_log_and_half_a_line_waits_for_its_rest(tmp_path: Path):
    log = tmp_path / "log"
    alarms = Alarms(log, ManualClock())
    said(log, {"event": "copies.made_up", "copy": "redis", "count": 3, "level": "info"})
    said(log, {"event": "queue.refilled", "count": 9, "level": "info"})
    with log.open("a") as file:
        file.write('{"event": "copies.made_up", "copy": "redis", "cou')
    alarms.catch_up()
    assert (alarms.made_up["redis"], alarms.refilled) == (3, 1)
    with log.open("a") as file:
        file.write('nt": 4, "level": "info"}\n')
    alarms.catch_up()
    assert alarms.made_up["redis"] == 7


# --- the table --------------------------------------------------------------------------------------------


def row(**changes: object) -> Row:
    kept = {
        "name": "something",
        "promises_accepting": True,
        "promises_executing": True,
        "alarm_is_due": True,
        "asked": 100,
        "accepted_per_second": 50.0,
        "accepts": True,
        "refused": 0,
        "refused_without_time": 0,
        "executes": True,
        "lost": 0,
        "repeated_marked": 0,
        "repeated_unmarked": 0,
        "order_breaks": 0,
        "well_after_seconds": 2.0,
        "alarm_after_seconds": 1.0,
    }
    return Row(**kept | changes)  # type: ignore[arg-type]


def table(*rows: Row) -> Table:
    return Table(
        rows=rows,
        left_out={"journal disk full": "no loop devices"},
        seed=1,
        commit="abc",
        per_second=200.0,
        seconds=6.0,
        appendfsync="everysec",
        command="rise drill --table --seed 1",
        finished=100,
        unaccounted=0,
        audit="clean",
    )


@pytest.mark.req("TST-4")
def test_each_promise_of_a_row_that_does_not_hold_is_said():
    assert row().broken() == []
    assert row(promises_executing=None, executes=False).broken() == []
    assert row(promises_accepting=False, accepts=False, refused=5).broken() == []
    assert row(alarm_is_due=False, alarm_after_seconds=None).broken() == []
    for changes in (
        {"accepts": False},
        {"promises_accepting": False, "accepts": True},
        {"executes": False},
        {"refused_without_time": 1},
        {"lost": 1},
        {"repeated_unmarked": 1},
        {"order_breaks": 1},
        {"well_after_seconds": None},
        {"alarm_after_seconds": None},
    ):
        assert len(row(**changes).broken()) == 1, changes
    doubted = msgspec.structs.replace(table(row()), audit='{"unaccounted": 1}', unaccounted=1)
    assert doubted.broken() == ['the audit is not clean: {"unaccounted": 1}']
    assert "100 finished, 1 unaccounted" in doubted.text()


@pytest.mark.req("TST-4")
def test_the_table_goes_between_its_marks_and_again_in_its_own_place(tmp_path: Path):
    document = tmp_path / "guarantees.md"
    document.write_text(f"before\n{BEGINS}\nold\n{ENDS}\nafter\n")
    for _ in range(2):
        table(row()).write_into(document)
    text = document.read_text()
    assert text.startswith(f"before\n{BEGINS}\n| Fails")
    assert text.endswith(f"{ENDS}\nafter\n")
    assert text.count("| something") == 1
    assert "old" not in text
    assert "Left out: journal disk full: no loop devices" in text
    document.write_text("without")
    with pytest.raises(ValueError, match="has no place for the table"):
        table(row()).write_into(document)


# --- the proof --------------------------------------------------------------------------------------------


@with_servers
@pytest.mark.slow
@pytest.mark.req("TST-4", "CPY-2", "CPY-3", "CPY-4", "CPY-5", "CPY-7", "QUE-5", "OPS-1")
@pytest.mark.failure(
    *("C11", "C12", "C13", "C14", "C16", "C19", "C20", "C21", "C22", "C23", "C27"),
    *("D1", "D2", "D6", "D14", "D16", "I1", "I2", "I7", "M5"),
)
async def test_kills_among_the_troubles_of_servers_break_no_promise(tmp_path: Path, request: pytest.FixtureRequest):
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--seed")
    report = await run_drill(Order(seed=seed, cycles=max(1, kills // 2), full=True), tmp_path)
    print(f"\n{report.text()}")
    assert not report.broken(), report
    assert report.kill_cycles > 0
    assert report.finished > 0


@with_servers
@pytest.mark.slow
@pytest.mark.req("CPY-2", "CPY-7", "OPS-1")
@pytest.mark.failure("C17")
@pytest.mark.parametrize("appendfsync", AppendFsync)
async def test_a_redis_killed_under_load_loses_nothing_whatever_it_had_on_disk(
    tmp_path: Path, appendfsync: AppendFsync
):
    kills = [Cycle(None, StoreMishap(Mishap.REDIS_KILLED, 2.0))] * 3
    report = await run_drill(Order(seed=0, schedule=kills, full=True, appendfsync=appendfsync), tmp_path)
    print(f"\n{report.text()}")
    assert report.faults == {Mishap.REDIS_KILLED: 3}
    assert report.finished > 0
    assert (report.lost, report.open, report.not_taken, report.repeated_unmarked) == ([], 0, 0, 0)
    assert report.copies is not None
    assert not report.copies.alarms_missed


@with_servers
@pytest.mark.slow
@pytest.mark.req("QUE-2", "CPY-4")
async def test_after_redis_was_away_each_chat_is_answered_in_order(tmp_path: Path):
    while_people_go_on = Freeze(Victim.ADDED, 6.0)
    schedule = [Cycle(None, StoreMishap(Mishap.REDIS_KILLED, 4.0)), Cycle(None, while_people_go_on)]
    report = await run_drill(Order(seed=0, schedule=schedule, full=True), tmp_path)
    assert report.finished > 0
    assert report.order_breaks == []


@with_servers
@pytest.mark.slow
@pytest.mark.req("CPY-2", "CPY-3", "CPY-4", "CPY-5", "CPY-7", "OPS-1")
@pytest.mark.failure("A6", "C5", "C11", "C14", "C19", "C22", "C23", "C27", "D14", "G14")
async def test_with_any_one_thing_gone_it_does_what_is_promised(tmp_path: Path):
    order = Order(seed=1, full=True, messages_per_second=50)
    measured = await measure_singles(order, tmp_path, seconds=4.0, singles=SINGLES_OF_A_TEST)
    print(f"\n{measured.text()}")
    assert not measured.broken()


@with_servers
@with_mongodb
@pytest.mark.slow
@pytest.mark.req("TST-4", "OPS-1", "OPS-2", "CPY-6", "CPY-7")
@pytest.mark.failure("F1")
async def test_kills_while_mongodb_goes_and_comes_break_no_promise(tmp_path: Path):
    """Its ledger's server is killed, frozen and stopped, each while a process of Rise is killed, too; for longer
    than anybody waits for an answer of it, so that it is noticed."""
    schedule = [
        Cycle(Kill(victim, Moment.SENDING, pause_seconds=1.0, awaits_start=True), StoreMishap(mishap, 12.0))
        for victim, mishap in zip((Victim.WORKER, Victim.GATEWAY, Victim.SECOND), MISHAPS_OF_MONGO, strict=True)
    ]
    order = Order(seed=0, schedule=schedule, full=True, mongo=True, messages_per_second=PER_SECOND_WITH_MONGO)
    report = await run_drill(order, tmp_path)
    print(f"\n{report.text()}")
    assert not report.broken(), report
    assert report.profile == "mongo"
    assert set(MISHAPS_OF_MONGO) <= report.faults.keys()
    assert report.finished > 0
    assert report.unaccounted == 0
    assert "clean, 0 unaccounted" in report.text()

"""The drill: every trouble beside the kills, in both ways in; and that it sees a promise broken when one is."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from rise.envelope import TaskId
from rise.testing.faults.drill import CountedLate, run_drill
from rise.testing.faults.order import Order
from rise.testing.faults.proxy import LinkFault
from rise.testing.faults.report import DrillReport
from rise.testing.faults.schedule import BadLink, Cycle, Kill, Link, Moment, StoreMishap, Trouble, Victim, cycles
from rise.testing.faults.seen import Question, compare
from rise.testing.telegram import SentMessage

DECK = 15
"""Cycles that hold one of each trouble."""


# --- the schedule -----------------------------------------------------------------------------------------


def scheduled(seed: int, count: int = 2 * DECK, **options: bool) -> list[Cycle]:
    return list(itertools.islice(cycles(seed, **options), count))


@pytest.mark.req("TST-4")
def test_a_seed_is_a_schedule():
    assert scheduled(1) == scheduled(1)
    assert scheduled(1) != scheduled(2)


@pytest.mark.req("TST-4")
def test_every_deck_holds_each_trouble():
    def kinds(dealt: list[Cycle]) -> set[type[Trouble]]:
        return {type(cycle.trouble) for cycle in dealt if cycle.trouble is not None}

    dealt = scheduled(1)
    assert kinds(dealt[:DECK]) == kinds(dealt[DECK:]) == set(Trouble.__args__) - {StoreMishap}  # type: ignore[attr-defined]


@pytest.mark.req("TST-4")
def test_the_kills_of_a_seed_are_the_same_with_and_without_troubles():
    alone = scheduled(1, troubles=False)
    assert [cycle.kill for cycle in alone] == [cycle.kill for cycle in scheduled(1)]
    assert all(cycle.trouble is None for cycle in alone)


# --- what it sees -----------------------------------------------------------------------------------------

ASKED = [Question(TaskId(f"t_{number}"), chat, f"Message {number}") for number, chat in enumerate([1, 2, 1, 2])]
ANSWERED = [(asked.chat_id, asked.text.upper()) for asked in ASKED]


def said(*answers: tuple[int, str]) -> list[SentMessage]:
    return [SentMessage(7, chat, at, "sendMessage", text, {}, float(at)) for at, (chat, text) in enumerate(answers)]


@pytest.mark.req("TST-4")
def test_of_answers_as_they_should_be_nothing_is_said():
    seen = compare(ASKED, said(*ANSWERED), parked=())
    assert (seen.lost, seen.strange, seen.order_breaks) == ([], [], [])
    assert (seen.repeated_marked, seen.repeated_unmarked, seen.repeated_too_often) == (0, 0, 0)


@pytest.mark.req("TST-4")
def test_an_answer_nobody_saw_is_a_loss_unless_it_waits_for_a_person():
    answers = said(*ANSWERED[:3])
    assert compare(ASKED, answers, parked=()).lost == ["Message 3"]
    assert compare(ASKED, answers, parked={ASKED[3].task_id}).lost == []


@pytest.mark.req("TST-4")
def test_a_copy_is_told_by_its_mark_and_one_is_allowed():
    chat, text = ANSWERED[0]
    marked, unmarked = (chat, f"↻ {text}"), (chat, text)
    assert compare(ASKED, said(*ANSWERED, marked), parked=()).repeated_marked == 1
    assert compare(ASKED, said(marked, *ANSWERED[1:]), parked=()).repeated_marked == 0, "the first was never seen"
    assert compare(ASKED, said(*ANSWERED, unmarked), parked=()).repeated_unmarked == 1
    assert compare(ASKED, said(*ANSWERED, marked), parked=()).repeated_too_often == 0
    assert compare(ASKED, said(*ANSWERED, marked, marked), parked=()).repeated_too_often == 1


@pytest.mark.req("TST-4")
def test_order_counts_within_a_chat_and_by_the_first_copies():
    one, two, three, four = ANSWERED
    assert compare(ASKED, said(two, one, four, three), parked=()).order_breaks == [], "chats go on beside each other"
    late = ["'MESSAGE 0' in chat 1, after 'MESSAGE 2'"]
    assert compare(ASKED, said(three, one, two, four), parked=()).order_breaks == late
    assert compare(ASKED, said(*ANSWERED, (one[0], f"↻ {one[1]}")), parked=()).order_breaks == []


@pytest.mark.req("TST-4", "QUE-2")
def test_what_came_late_is_counted_on_where_redis_has_lost_its_count_and_whoever_is_asked_may_be_away():
    late = CountedLate()
    for stats in ({"outOfOrder": 2}, {}, {"outOfOrder": 5}, {"outOfOrder": 0}, {"outOfOrder": 1}):
        late.hear(stats)
    assert late.total == 6


@pytest.mark.req("TST-4")
def test_an_answer_in_another_chat_than_its_question_is_strange():
    seen = compare(ASKED, said(*ANSWERED, (2, "MESSAGE 0")), parked=())
    assert seen.strange == ["'MESSAGE 0' in chat 2"]


@pytest.mark.slow
@pytest.mark.req("TST-4", "OPS-1")
async def test_a_drill_of_an_installation_that_repeats_without_a_mark_says_so(tmp_path: Path):
    """A harness that has never seen a promise broken proves nothing."""
    lost_answers = BadLink(Link.API, LinkFault.lost_answer(), seconds=2.0)
    kill = Kill(Victim.WORKER, Moment.SENDING, pause_seconds=0.0, awaits_start=True)
    order = Order(seed=0, schedule=[Cycle(kill, lost_answers)], settings={"telegram_unknown": "resend"})
    report = await run_drill(order, tmp_path)
    assert report.repeated_unmarked > 0
    assert report.broken() == [f"{report.repeated_unmarked} answers came twice without a mark"]
    assert "answered twice, unmarked" in report.text()
    disordered = msgspec.structs.replace(report, order_breaks=["one", "two", "three"], late=1)
    assert disordered.broken()[1:] == ["2 answers came out of order, and their messages not late"]


# --- the proof --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.req("TST-4", "OPS-1", "CPY-7", "QUE-3", "OUT-1", "OPS-2")
@pytest.mark.failure(
    *("A2", "A3", "A4", "A5", "A16", "C1", "C4", "C5", "C13", "D1", "D2", "D14", "D18", "E2"),
    *("F11", "G1", "G2", "G3", "G4", "G14", "H1", "L1", "L2", "L9"),
)
async def test_kills_among_all_troubles_break_no_promise(tmp_path: Path, request: pytest.FixtureRequest):
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--seed")
    report = await run_drill(Order(seed=seed, cycles=kills), tmp_path)
    kept_every_promise(report)
    assert report.faults.keys() | report.left_out.keys() >= {
        *("SIGSTOP of the gateway", "SIGSTOP of the worker", "SIGSTOP of the added worker", "SIGTERM and restart"),
        *("disk full", "disk read-only", "quota used up", "wall clock stepped"),
    }


@pytest.mark.slow
@pytest.mark.req("TST-4", "TGM-1", "ENV-6", "CPY-7")
@pytest.mark.failure("A21", "C1", "D1", "G3", "G14")
async def test_by_polling_too_they_break_none(tmp_path: Path, request: pytest.FixtureRequest):
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--seed")
    report = await run_drill(Order(seed=seed, cycles=max(1, kills // 3), mode="polling"), tmp_path)
    kept_every_promise(report)


def kept_every_promise(report: DrillReport) -> None:
    print(f"\n{report.text()}")
    assert not report.broken(), report
    assert report.kill_cycles > 0
    assert report.finished > 0

"""Worlds whose ledger is a server of its own: while it is away messages are run, and their results wait in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from test_simulator_crash_points import a_busy_plan, killed

from rise.envelope import Progress, RunId
from rise.ledger.late_ledger import LateLedger
from rise.runtime.writing_back import WriteBack
from rise.testing.simulator.copies import overtaking
from rise.testing.simulator.faults import Fault, FaultKind
from rise.testing.simulator.profile import Profile
from rise.testing.simulator.run import Outcome, Plan, draw_plan, simulate

pytestmark = pytest.mark.req("TST-2", "CPY-6")

ONCE_BROKEN = {
    30500941: "a message taken along was run again by itself: merging had been ended, and its end waited in Redis",
    30532546: "a message was dropped that was being answered with another: the ledger was slow to say what it knew",
    30510608: "a person dropped a message while its worker could not know: it was answered with the one before it",
    31000190: "a message taken along ended by an answer that waited in Redis, which was emptied then: never answered",
    31001256: "the checker asked for the place of an answer whose task Redis had lost while it waited for the ledger",
    32001300: "a result waited for its task by a clock that somebody set an hour ahead, and was run again",
    32006216: "that messages had been taken along was lost with Redis, and the answer for all was not: answered twice",
    40020903: "the checker did not know that what is being sent to a group's new id goes before what comes over to it",
    40050438: "the checker did not know that a tap read before its group's move was known plans under the later id",
    40002194: "the checker did not know that a try which is told of again after a later one may be run once more",
    40062256: "what was run again while an emptied Redis was filled had no key there that a repeat could be known by",
    40020940: "the world's Redis lost its last writes while it was filled, and nobody was told, as a real one's are",
}
"""Seeds that found something once, and what."""

IN_CI = range(400, 403)
BOUNDARIES = ("queue.late_put", "queue.late_remove")


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


def a_busy_minute_without_the_ledger(*faults: Fault) -> Outcome:
    away = [Fault(kind=FaultKind.LEDGER_GONE, at=at, seconds=3.0) for at in (5.0, 12.0, 20.0)]
    return simulate(replace(a_busy_plan(*away, *faults), profile=Profile.MONGO))


@pytest.mark.parametrize("seed", IN_CI)
def test_no_seed_with_a_ledger_that_goes_away_breaks_a_promise(seed: int):
    assert broken(draw_plan(seed, Profile.MONGO)) == []


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_seed_with_a_ledger_that_goes_away_that_found_something_once_finds_nothing_now(seed: int):
    assert broken(draw_plan(seed, Profile.MONGO)) == []


def test_what_somebody_deletes_while_redis_is_filled_is_not_held_against_who_fills_it():
    plan = draw_plan(40020940, Profile.MONGO)
    deleted = [Fault(kind=FaultKind.REDIS_RECORD_LOST, at=29.75 + number / 1000) for number in range(5)]
    outcome = simulate(replace(plan, faults=[*(fault for fault in plan.faults if fault.at < 29.6), *deleted]))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.struck["REDIS_RECORD_LOST"] == 5


def test_what_was_passed_over_may_be_overtaken_and_overtakes_nobody():
    one, two, three = map(RunId, ("one", "two", "three"))
    assert overtaking([(one, 1), (two, 2), (three, 3)], {two}) == []
    assert overtaking([(one, 1), (two, 3), (three, 2)], {two}) == []
    assert overtaking([(one, 1), (two, 3), (three, 2)], {one, three}) == [three]
    assert overtaking([(one, 2), (two, 1), (three, 3)], {two}) == [two]
    assert overtaking([(one, 2), (two, 3), (three, 1)], {two}) == [three]


def test_results_wait_and_are_written_back():
    outcome = a_busy_minute_without_the_ledger()
    assert [str(violation) for violation in outcome.violations] == []
    assert {step for step in BOUNDARIES if outcome.steps[step] < 3} == set()


@pytest.mark.slow
@pytest.mark.failure("F1", "F3")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", BOUNDARIES)
def test_a_kill_at_what_waits_for_the_ledger_breaks_no_promise(step: str, edge: str):
    outcome = a_busy_minute_without_the_ledger(killed(step, before=edge == "before"))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.struck["KILL"] == 1, "nobody was killed"


# --- bugs that are planted, and have to be found ----------------------------------------------------------

FIRST_SEED, SEEDS_MAX = 19, 30
"""Its world is one in which the rarest of them shows at once."""


def a_result_that_overtakes_what_waits(patch: pytest.MonkeyPatch) -> None:
    async def now_if_it_answers(self: LateLedger, write: Callable[[], Any]) -> Any:
        try:
            return await write()
        except Exception:
            return None

    patch.setattr(LateLedger, "_unless_late", now_if_it_answers)


def a_write_that_is_forgotten_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    write_lane = WriteBack._write_lane

    async def forget_first(self: WriteBack, writes: Any) -> None:
        await self._late.remove([key for key, _ in writes])
        await write_lane(self, writes)

    patch.setattr(WriteBack, "_write_lane", forget_first)


def a_lane_that_is_written_back_to_front(patch: pytest.MonkeyPatch) -> None:
    write_lane = WriteBack._write_lane

    async def last_first(self: WriteBack, writes: Any) -> None:
        await write_lane(self, writes[::-1])

    patch.setattr(WriteBack, "_write_lane", last_first)


def whatever_was_begun_is_begun_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "is_untouched", property(lambda self: True))


BUGS = [
    a_result_that_overtakes_what_waits,
    a_write_that_is_forgotten_before_it_is_written,
    a_lane_that_is_written_back_to_front,
    whatever_was_begun_is_begun_anew,
]


@pytest.mark.slow
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_simulator_finds_in_worlds_whose_ledger_goes_away(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch)
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS_MAX):
        if violations := simulate(draw_plan(seed, Profile.MONGO)).violations:
            print(f"found by seed {seed}: {violations[0]}")
            return
    pytest.fail(f"{SEEDS_MAX} seeds did not find it")

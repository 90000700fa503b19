"""Whole installations in virtual time: nothing is lost, whatever goes wrong, and every run can be had again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rise.chats import ChatRegistry
from rise.testing.simulator.faults import Fault, FaultKind
from rise.testing.simulator.people import GROUP, SUPERGROUP, Act, Doing
from rise.testing.simulator.run import SLOW_CALLS_FROM, Plan, draw_plan, shorten, simulate

ONCE_BROKEN = {
    1: "a worker that could not write at its start ended, and nobody started it again",
    23: "claims whose writing was never confirmed lapsed, and counted as deaths until the message was poison",
    49: "a held reply past its time was let go and held again, every 30 seconds, for ever",
    53: "a finished run's error was looked at by nobody when its worker was stopped",
    60: "the sender waited for a billionth of a second, for ever",
    85: "a step of a run that had ended meanwhile",
    107: "a message that was dropped while somebody ran it again: the new run was lost with the old one",
    119: "the same, where the drop came first",
    125: "the wall clock was four days ahead at a power cut: keys were forgotten, nothing else",
    217: "an answered message was taken for poison before what it promised for later was armed, and nobody went on",
    1063: "a run was out of time because the store took long to save its steps, and a try was counted",
    1001798: "a gateway that was frozen and did not send any more said for ever that the bot's token was refused",
    5001057: "that a group had become a supergroup was taken for a replay, dropped, and never known",
    5002281: "a worker that was told to stop waited for the rest of its grace in ever smaller steps, for ever",
    16000592: "a worker that was frozen before it saved the answer to a burst, of which a part was answered meanwhile",
    16002118: "the checker took a message that another had taken along for answered, when a person dropped that one",
    8003321: "a store that took longer to renew a claim than it lasts made a death of it",
    1002225: "a gateway that had been frozen put what came meanwhile into the lane of an id that its chat had left",
}
"""Seeds that found something once, and what."""


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


@pytest.mark.slow
@pytest.mark.req("TST-2", "ENV-3", "WRK-3", "QUE-3", "OUT-1", "SUS-2", "TGM-1")
@pytest.mark.failure("B2", "B4", "D1", "D4", "E4", "G3", "G4", "H6", "L1")
def test_no_seed_breaks_a_promise(pytestconfig: pytest.Config):
    found = {}
    for seed in range(1, pytestconfig.getoption("seeds") * 3 // 5 + 1):
        if violations := broken(draw_plan(seed)):
            found[f"rise simulate --seed {seed}"] = violations[:3]
    assert found == {}


@pytest.mark.req("TST-2")
@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_seed_that_found_something_once_finds_nothing_now(seed: int):
    assert broken(draw_plan(seed)) == []


@pytest.mark.req("TST-2")
def test_a_seed_is_the_same_run_in_another_interpreter_whatever_its_hashes_are():
    program = (
        "from rise.testing.simulator.run import draw_plan, simulate\n"
        "print([simulate(draw_plan(seed)).trace for seed in (3, 9, 18, 23)])"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1


@pytest.mark.req("TST-2")
def test_two_runs_of_a_seed_are_the_same_and_two_seeds_are_not():
    [first, again, other] = [simulate(draw_plan(seed)).trace for seed in (5, 5, 6)]
    assert first == again
    assert first != other


@pytest.mark.req("TST-2")
def test_plans_hold_what_they_should():
    plans = [draw_plan(seed) for seed in range(400)]
    assert {plan.gateways for plan in plans} == {1, 2, 3}
    assert {plan.workers for plan in plans} == {1, 2, 3, 4}
    assert {plan.is_polled for plan in plans} == {True, False}
    assert all(20 <= len(plan.doings) <= 303 for plan in plans)
    assert 100 < sum(any(doing.act is Act.MIGRATE for doing in plan.doings) for plan in plans) < 220
    assert all(3 <= len({doing.chat_id for doing in plan.doings if doing.chat_id}) <= 10 for plan in plans)
    stores = ("REDIS_", "RABBIT_", "JOURNAL_", "LEDGER_", "TEMPORAL_")
    kinds = {kind for kind in FaultKind if not kind.name.startswith(stores)}  # the others are of other worlds
    assert {fault.kind for plan in plans for fault in plan.faults} == kinds - {FaultKind.CALLS_SLOW}
    slow = [draw_plan(SLOW_CALLS_FROM + seed) for seed in range(60)]
    assert 20 < sum(any(fault.kind is FaultKind.CALLS_SLOW for fault in plan.faults) for plan in slow) < 40


@pytest.mark.req("TST-2")
def test_a_schedule_is_shortened_to_what_is_to_blame():
    kinds = [FaultKind.KILL, FaultKind.POWER_CUT, FaultKind.PAUSE, FaultKind.STOP, FaultKind.CLOCK_STEP] * 3
    faults = [Fault(kind=kind, at=float(at)) for at, kind in enumerate(kinds)]
    plan = Plan(1, 1, 1, False, "resend", [], faults)
    to_blame = {faults[4], faults[11]}
    shortened = shorten(plan, lambda tried: to_blame <= set(tried.faults))
    assert set(shortened.faults) == to_blame


@pytest.mark.req("CAP-4", "TST-2")
@pytest.mark.failure("L1")
def test_a_worker_whose_store_takes_no_writes_at_its_start_waits_for_it_and_does_not_end():
    doings = [Doing(act=Act.WRITE, at=1.0, name="m", chat_id=1)]
    away = Fault(kind=FaultKind.WRITES_REFUSED, target="worker-1", at=0.0, seconds=8.0)
    outcome = simulate(Plan(1, 1, 1, False, "resend", doings, [away]))
    assert (outcome.violations, outcome.counts["kills"]) == ([], 0)
    assert outcome.steps["queue.settle"] == 1


def a_group_that_moves_while_a_gateway_is_frozen(seed: int) -> Plan:
    moves = Doing(act=Act.MIGRATE, at=6.0, name="moved", chat_id=GROUP)
    after = [Doing(act=Act.WRITE, at=15.0 + n, name=f"m{n}", chat_id=SUPERGROUP) for n in range(8)]
    frozen = Fault(kind=FaultKind.PAUSE, target="gateway-1", at=5.0, seconds=20.0)
    return Plan(seed, 2, 1, False, "resend", [moves, *after], [frozen])


@pytest.mark.req("QUE-3", "TST-2")
@pytest.mark.failure("A13", "B4")
def test_what_a_frozen_gateway_finds_when_it_goes_on_is_in_the_lane_of_the_chats_first_id(
    monkeypatch: pytest.MonkeyPatch,
):
    plans = [a_group_that_moves_while_a_gateway_is_frozen(seed) for seed in range(1, 5)]
    assert [violation for plan in plans for violation in broken(plan)] == []

    async def nothing(self: ChatRegistry) -> None:
        return

    monkeypatch.setattr(ChatRegistry, "catch_up", nothing)
    assert any("the chat goes by" in violation for plan in plans for violation in broken(plan))


@pytest.mark.req("TST-2")
@pytest.mark.failure("A13")
def test_what_was_read_before_everybody_had_to_know_of_a_move_may_be_written_late():
    moves = Doing(act=Act.MIGRATE, at=6.0, name="moved", chat_id=GROUP)
    after = [Doing(act=Act.WRITE, at=6.5 + 0.3 * n, name=f"m{n}", chat_id=SUPERGROUP) for n in range(12)]
    faults = [
        Fault(kind=FaultKind.BUS_SILENT, at=5.0, seconds=20.0),
        Fault(kind=FaultKind.WRITES_SLOW, target="gateway-1", at=6.2, seconds=8.0),
        Fault(kind=FaultKind.PAUSE, target="gateway-1", at=8.5, seconds=8.0),
    ]
    for seed in (2, 3, 5):
        assert broken(Plan(seed, 2, 1, False, "resend", [moves, *after], faults)) == []

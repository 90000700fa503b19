"""Bursts in whole installations: whatever dies or freezes between their writes, each message is answered once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rise.bursts import Burst, Bursts
from rise.envelope import Task, TaskId
from rise.ledger.port import Run
from rise.merging import MergedFate, Merging
from rise.testing.simulator.bot import Behaviour
from rise.testing.simulator.faults import Fault, FaultKind
from rise.testing.simulator.people import Act, Doing
from rise.testing.simulator.run import BURSTS_FROM, Outcome, Plan, draw_plan, simulate

FIRST = 11_000_000
SEEDS_MAX = 40
WRITES = ["ledger.save_step", "ledger.save_result", "ledger.finish", "queue.settle", "queue.renew", "queue.claim"]


USUAL = (Behaviour.ECHO, Behaviour.STEPS, Behaviour.FAILS_ONCE, Behaviour.WAITS, Behaviour.THREE)


def bursts(
    seed: int, *faults: Fault, workers: int = 2, asked: Sequence[Behaviour] = USUAL, more: Sequence[Doing] = ()
) -> Plan:
    """Three people write in bursts; what is asked of the bot is said by the first of each."""
    writes = [
        Doing(
            act=Act.WRITE,
            at=round(2.0 + 3.0 * burst + 0.1 * number, 2),
            name=f"c{chat}b{burst}n{number}",
            chat_id=chat,
            behaviour=asked[(chat + burst) % len(asked)],
        )
        for chat in (1, 2, 3)
        for burst in range(4)
        for number in range(3)
    ]
    doings = [Doing(act=Act.MERGE, at=0.0, name="bursts", pick=0.2), *writes, *more]
    return Plan(seed, 1, workers, False, "resend", sorted(doings, key=lambda doing: doing.at), list(faults))


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


@pytest.mark.req("CHN-3", "TST-2")
def test_seeds_that_were_kept_before_there_were_bursts_are_the_runs_they_were():
    changes = {Act.MERGE, Act.PART}
    assert not any(doing.act in changes for seed in range(60) for doing in draw_plan(seed).doings)
    plans = [draw_plan(BURSTS_FROM + seed) for seed in range(60)]
    merging = [plan for plan in plans if any(doing.act is Act.MERGE for doing in plan.doings)]
    assert 30 < len(merging) < 58
    assert any(doing.act is Act.PART for plan in merging for doing in plan.doings)


@pytest.mark.req("CHN-3", "TST-2")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_seeds_in_which_bursts_are_merged_break_no_promise(seed: int):
    assert broken(draw_plan(seed)) == []


@pytest.mark.slow
@pytest.mark.req("CHN-3", "TST-2")
def test_no_seed_in_which_bursts_are_merged_breaks_a_promise(pytestconfig: pytest.Config):
    found = {}
    for seed in range(FIRST, FIRST + pytestconfig.getoption("seeds") // 5):
        if violations := broken(draw_plan(seed)):
            found[f"rise simulate --seed {seed}"] = violations[:3]
    assert found == {}


@pytest.mark.req("CHN-3", "TST-2")
@pytest.mark.failure("D1", "G1")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", WRITES)
@pytest.mark.parametrize("kind", [FaultKind.KILL, FaultKind.PAUSE], ids=["killed", "frozen"])
def test_a_worker_killed_or_frozen_at_any_write_of_a_burst_answers_each_message_once(
    kind: FaultKind, step: str, before: bool
):
    found = {}
    for nth in range(1, 9):
        faults = [
            Fault(kind=kind, target=f"worker-{worker}", at=2.0, seconds=6.0, nth=nth, step=step, before=before)
            for worker in (1, 2)
        ]
        if violations := broken(bursts(nth, *faults)):
            found[nth] = violations
    assert found == {}


def leaders_that_are_let_go(seed: int) -> Plan:
    """A worker dies at some result of a burst, and the bot is unbound before the next comes to it, or it is dropped."""
    kill = Fault(
        kind=FaultKind.KILL, target="worker-1", at=2.0, nth=1 + seed % 9, step="ledger.save_result", before=False
    )
    at = 2.6 + (seed % 40) / 20
    unbound = [
        Doing(act=Act.UNBIND, at=at, name="binding"),
        *(
            Doing(act=Act.DROP, at=at + 0.05 * number, name=f"d{number}", pick=(0.55 + 0.37 * number) % 1.0)
            for number in range(30)
        ),
        Doing(act=Act.BIND, at=at + 4.0, name="binding"),
    ]
    return bursts(seed, kill, workers=1, more=unbound)


@pytest.mark.req("CHN-3", "TST-2")
def test_followers_whose_leader_is_dropped_or_let_go_are_answered_once():
    assert {seed: found for seed in range(40) if (found := broken(leaders_that_are_let_go(seed)))} == {}


# --- bugs that are planted, and have to be found ----------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def followers_that_are_not_ended(patch: pytest.MonkeyPatch) -> None:
    async def ended(self: Merging, leader: TaskId, followers: Sequence[Task]) -> bool:
        return True

    async def nobody(self: Merging, names: Sequence[TaskId], leader: TaskId) -> bool:
        return True

    patch.setattr(Merging, "end_with", ended)
    patch.setattr(Merging, "end_named", nobody)


def followers_that_are_never_run_after_all(patch: pytest.MonkeyPatch) -> None:
    async def answered(self: Merging, run: Run) -> MergedFate:
        return MergedFate.ANSWERED

    patch.setattr(Merging, "fate_of", answered)


def the_last_said_first(patch: pytest.MonkeyPatch) -> None:
    freeze = Bursts.freeze

    async def reversed_burst(self: Bursts, task: Task, binding: Any, steps: Any) -> Burst:
        return Burst(task, (await freeze(self, task, binding, steps)).followers[::-1])

    patch.setattr(Bursts, "freeze", reversed_burst)


def an_answer_that_is_given_although_a_follower_ended_otherwise(patch: pytest.MonkeyPatch) -> None:
    end_with = Merging.end_with

    async def whatever(self: Merging, leader: TaskId, followers: Sequence[Task]) -> bool:
        await end_with(self, leader, followers)
        return True

    patch.setattr(Merging, "end_with", whatever)


def drops_while_bursts_run(seed: int) -> Plan:
    drops = [
        Doing(
            act=Act.DROP,
            at=round(2.4 + 0.15 * number, 2),
            name=f"d{number}",
            pick=0.52 + 0.019 * ((seed + number) % 25),
        )
        for number in range(40)
    ]
    return bursts(seed, asked=[Behaviour.SLOW], more=drops)


PLANS: dict[Plant, Callable[[int], Plan]] = {
    followers_that_are_never_run_after_all: leaders_that_are_let_go,
    an_answer_that_is_given_although_a_follower_ended_otherwise: drops_while_bursts_run,
}


@pytest.mark.req("CHN-3", "TST-2")
def test_drops_while_bursts_run_break_no_promise():
    assert {seed: found for seed in range(12) if (found := broken(drops_while_bursts_run(seed)))} == {}


@pytest.mark.slow
@pytest.mark.req("CHN-3", "TST-2")
@pytest.mark.parametrize(
    "plant",
    [
        followers_that_are_not_ended,
        followers_that_are_never_run_after_all,
        the_last_said_first,
        an_answer_that_is_given_although_a_follower_ended_otherwise,
    ],
    ids=lambda plant: plant.__name__,
)
def test_the_simulator_finds(plant: Plant, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    plan = PLANS.get(plant, lambda number: draw_plan(FIRST + number))
    for number in range(SEEDS_MAX):
        outcome: Outcome = simulate(plan(number))
        if outcome.violations:
            print(f"found by number {number}: {outcome.violations[0]}")
            return
    pytest.fail(f"{SEEDS_MAX} plans did not find it")

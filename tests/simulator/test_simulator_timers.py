"""Timers beside the queue, in whole installations: they are away, lose answers and their disk, and ring twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from rise.envelope import DeliveryKey, Task
from rise.follow_ups import ringing
from rise.follow_ups.ringing import Ringing
from rise.testing.simulator.bot import Behaviour
from rise.testing.simulator.faults import Fault, FaultKind
from rise.testing.simulator.people import Act, Doing
from rise.testing.simulator.run import TIMERS_FROM, Plan, draw_plan, simulate
from rise.testing.simulator.timers import SimTimers

FIRST = 5_000_000
SEEDS_MAX = 40


def with_timers(seed: int) -> Plan:
    """More is said later than otherwise."""
    plan = draw_plan(seed)
    later = [
        Doing(
            act=Act.WRITE,
            at=round(1.0 + 1.9 * number, 2),
            name=f"l{number}",
            chat_id=1 + number % 3,
            behaviour=Behaviour.LATER,
        )
        for number in range(12)
    ]
    doings = sorted([*plan.doings, *later], key=lambda doing: doing.at)
    return msgspec.structs.replace(plan, doings=doings, has_timers=True)


def with_deaths(seed: int) -> Plan:
    """Where it matters most: what is said has been accepted, and nobody has noted it."""
    plan = with_timers(seed)
    deaths = [
        Fault(kind=FaultKind.KILL, target=f"gateway-{number}", at=1.0, nth=nth, step="ledger.note_armed", before=True)
        for number in range(1, plan.gateways + 1)
        for nth in (1, 2, 3)
    ]
    return msgspec.structs.replace(plan, faults=sorted([*plan.faults, *deaths], key=lambda fault: fault.at))


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


@pytest.mark.req("TMP-3", "TST-2")
def test_seeds_that_were_kept_before_there_were_timers_are_the_runs_they_were():
    assert not any(draw_plan(seed).has_timers for seed in range(60))
    assert 20 < sum(draw_plan(TIMERS_FROM + seed).has_timers for seed in range(60)) < 40


@pytest.mark.req("TMP-3", "TST-2")
def test_the_same_seed_is_the_same_run_and_timers_ring_in_it(monkeypatch: pytest.MonkeyPatch):
    made: list[SimTimers] = []
    init = SimTimers.__init__

    def remember(self: SimTimers, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(SimTimers, "__init__", remember)
    plan = with_timers(FIRST)
    assert simulate(plan).trace == simulate(plan).trace
    assert made[0].rung == made[1].rung > 0


@pytest.mark.req("TMP-3", "TST-2")
@pytest.mark.failure("FU2", "FU3", "FU5")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_seeds_with_timers_break_no_promise(seed: int):
    assert broken(with_timers(seed)) == []


@pytest.mark.req("TMP-3", "TST-2")
@pytest.mark.failure("FU3")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_whoever_dies_while_it_rings_breaks_no_promise(seed: int):
    assert broken(with_deaths(seed)) == []


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TST-2")
@pytest.mark.failure("FU2", "FU3", "FU5")
def test_no_seed_with_timers_breaks_a_promise(pytestconfig: pytest.Config):
    found = {}
    for seed in range(FIRST, FIRST + pytestconfig.getoption("seeds") // 5):
        if violations := broken(with_timers(seed)):
            found[seed] = violations[:3]
    assert found == {}


# --- bugs that have to be found ---


def fire_under_a_key_of_its_own(patch: pytest.MonkeyPatch) -> None:
    follow_up = ringing.follow_up

    def otherwise(task: Task, *args: Any) -> Any:
        said = follow_up(task, *args)
        return msgspec.structs.replace(said, delivery_key=DeliveryKey(f"{said.delivery_key}:rung"))

    patch.setattr(ringing, "follow_up", otherwise)


def take_it_from_the_queue_first(patch: pytest.MonkeyPatch) -> None:
    fire = Ringing._fire

    async def fire_late(self: Ringing, task: Task) -> None:
        await self._queue.cancel(task.task_id, generation=task.progress.generation)
        await fire(self, task)

    patch.setattr(Ringing, "_fire", fire_late)


@pytest.mark.req("TST-2")
@pytest.mark.parametrize("plant", [fire_under_a_key_of_its_own, take_it_from_the_queue_first], ids=lambda p: p.__name__)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    assert any(broken(with_deaths(seed)) for seed in range(FIRST, FIRST + SEEDS_MAX))

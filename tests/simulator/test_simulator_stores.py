"""Worlds with Redis, RabbitMQ and journals: any of them may be away or lose what it holds, and nothing is lost."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from test_simulator_crash_points import a_busy_plan, killed

from rise.copies.journal import Journal
from rise.copies.keeper import Keeper
from rise.copies.keeping import CopiesPolicy
from rise.copies.port import Look, Mirror
from rise.copies.reaper import Reaper
from rise.copies.relay import Relay
from rise.ledger.port import Ledger
from rise.queue.port import Queue, RefillableQueue
from rise.testing.conformance.queue import delivery, run_everything
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState
from rise.testing.simulator.bot import Behaviour
from rise.testing.simulator.faults import LAST_BLOWS, Fault, FaultKind
from rise.testing.simulator.people import Act, Doing
from rise.testing.simulator.profile import Profile
from rise.testing.simulator.run import Outcome, Plan, draw_plan, simulate
from rise.testing.simulator.servers import rewind, snapshot_of

ONCE_BROKEN = {
    1: "what was planned for later waited until two clocks agreed: the ledger's and Redis's",
    2: "a message that was delivered again after a later run of it had ended waited for a person, for ever",
    2000064: "a second copy of one message hid, in the count of what the mirror holds, that it had lost another's",
    3000284: "a run whose process was stopped for a while was out of time when it went on, and a try was counted",
    4100190: "a copy that no journal knew of hid, in the same count, that the mirror had lost another's",
    7000234: "a try that began as its message was dropped did again what the run had done and saved",
    7001055: "a queue that had lost its last writes had two tasks of a lane running, for a worker that had settled one",
    9000068: "the power went in the very first moment, and the world could not be played",
    13000162: "a queue that handed out nothing for long, and claims that nobody knew of: deaths, it seemed",
    14003145: "clocks days behind that were put right, and an update that came again was taken for another",
    17000070: "what a host with a clock a day ahead had accepted waited until then for the rest of its burst",
    17000342: "the checker took a step of a run for one of the next, which a person had begun meanwhile",
    19002048: "the checker took what a message had planned for one that was read when its chat's other id was known",
    6000468: "what a person let go on went out while a later reply of its chat was still in doubt",
}
"""Seeds that found something once, and what."""

IN_CI = range(300, 305)

READS = {
    *("mirror.depth", "queue.life", "queue.missing"),
    *("journal.lacking", "journal.open_tasks", "journal.due", "journal.receipts", "journal.entries", "journal.noted"),
    *("journal.has", "journal.kept", "journal.copies_of", "journal.has_work", "journal.depth", "journal.last_number"),
    *("journal.noted_runs", "journal.noted_among", "journal.body_sha256"),
}
NO_STEPS = {"mirror.start", "mirror.stop", "journal.open", "journal.close"}


def methods(port: type, room: str) -> list[str]:
    names = [name for name, method in vars(port).items() if inspect.iscoroutinefunction(method)]
    return [f"{room}.{name}" for name in names if not name.startswith("_")]


ALL = [*methods(RefillableQueue, "queue"), *methods(Mirror, "mirror"), *methods(Journal, "journal")]
BOUNDARIES = [name for name in ALL if name not in READS | NO_STEPS]


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


def a_busy_minute_of_all_stores(*faults: Fault) -> Outcome:
    """With an emptied queue in it, one that is owed something, and a mirror that loses everything in the end."""
    emptied = Fault(kind=FaultKind.REDIS_EMPTIED, at=6.0)
    away = Fault(kind=FaultKind.RABBIT_GONE, at=10.0, seconds=2.0)
    owed = Fault(kind=FaultKind.REDIS_GONE, at=14.0, seconds=0.5)
    plan = a_busy_plan(emptied, away, owed, *faults)
    refill = Doing(act=Act.REFILL, at=16.0, name="refill")
    return simulate(
        replace(plan, doings=[*plan.doings, refill], profile=Profile.FULL, last_blow=FaultKind.RABBIT_EMPTIED)
    )


@pytest.mark.req("TST-2", "CPY-2")
@pytest.mark.parametrize("profile", [Profile.FULL, Profile.REDIS])
def test_no_seed_with_several_stores_breaks_a_promise(profile: Profile):
    found = {}
    for seed in IN_CI if profile is Profile.FULL else IN_CI[:2]:
        if violations := broken(draw_plan(seed, profile)):
            found[f"rise simulate --profile {profile} --seed {seed}"] = violations[:3]
    assert found == {}


@pytest.mark.req("TST-2")
@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_seed_with_several_stores_that_found_something_once_finds_nothing_now(seed: int):
    assert broken(draw_plan(seed, Profile.FULL)) == []


@pytest.mark.req("TST-2")
def test_a_seed_with_several_stores_is_the_same_run_in_another_interpreter():
    program = (
        "from rise.testing.simulator.profile import Profile\n"
        "from rise.testing.simulator.run import draw_plan, simulate\n"
        "print(simulate(draw_plan(20, Profile.FULL)).trace)"
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
def test_plans_with_several_stores_hold_what_they_should():
    plans = [draw_plan(seed, Profile.FULL) for seed in range(600)]
    kinds = {kind for kind in FaultKind if not kind.name.startswith(("LEDGER_", "TEMPORAL_", "CALLS_SLOW"))}
    assert {fault.kind for plan in plans for fault in plan.faults} == kinds
    assert {plan.last_blow for plan in plans} == set(LAST_BLOWS)
    assert not any(len(stores_that_lose(plan)) > 1 for plan in plans)


def stores_that_lose(plan: Plan) -> set[str]:
    """While the run is busy. What Redis has not synced goes with the power, if it is Redis that loses something."""
    losing = {"REDIS_EMPTIED", "REDIS_REWOUND", "REDIS_RECORD_LOST", "RABBIT_EMPTIED", "JOURNAL_LOST"}
    stores = {fault.kind.name.partition("_")[0] for fault in plan.faults if fault.kind.name in losing}
    rewound = any(fault.kind is FaultKind.POWER_CUT and fault.seconds for fault in plan.faults)
    return stores | ({"REDIS"} if rewound else set())


# --- kill -9 at everything that is done to a store --------------------------------------------------------


@pytest.mark.req("TST-2")
def test_everything_that_is_done_to_a_store_is_done():
    outcome = a_busy_minute_of_all_stores()
    assert outcome.violations == []
    queue_and_ledger = {*methods(Queue, "queue"), *methods(Ledger, "ledger")}
    assert sorted(set(BOUNDARIES) - set(outcome.steps)) == []
    assert set(ALL) >= READS | NO_STEPS, "a name that nothing has any more"
    assert {name for name in outcome.steps if name.startswith("queue.")} <= queue_and_ledger | set(ALL) | _OF_REDIS


_OF_REDIS = {"queue.open", "queue.facts"}


@pytest.mark.slow
@pytest.mark.req("TST-2", "CPY-2")
@pytest.mark.failure("C1", "C4", "D1")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", BOUNDARIES)
def test_a_kill_at_what_is_done_to_a_store_breaks_no_promise(step: str, edge: str):
    outcome = a_busy_minute_of_all_stores(killed(step, before=edge == "before"))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.struck["KILL"] == 1, "nobody was killed"


# --- bugs that are planted, and have to be found ----------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]
SEEDS_MAX = 20


def a_promise_when_one_store_has_answered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CopiesPolicy, "is_enough", lambda self, held: bool(held))


def no_relay(patch: pytest.MonkeyPatch) -> None:
    async def start(self: Relay) -> None:
        return

    patch.setattr(Relay, "start", start)


def a_reaper_that_lets_go_of_what_is_open(patch: pytest.MonkeyPatch) -> None:
    async def forget_all(self: Reaper, looks: list[Look]) -> list[Look]:
        await self._mirror.forget(looks)
        return []

    patch.setattr(Reaper, "_open_ones", forget_all)


def a_queue_that_is_handed_out_before_it_is_filled(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Keeper) -> int:
        return 0

    patch.setattr(Keeper, "_bring_from_journals", nothing)
    patch.setattr(Keeper, "_bring_from_mirror", nothing)


BUGS: list[Plant] = [
    a_promise_when_one_store_has_answered,
    no_relay,
    a_reaper_that_lets_go_of_what_is_open,
    a_queue_that_is_handed_out_before_it_is_filled,
]


@pytest.mark.slow
@pytest.mark.req("TST-2")
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_simulator_finds_in_worlds_with_several_stores(plant: Plant, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    for seed in range(1, SEEDS_MAX + 1):
        if violations := simulate(draw_plan(seed, Profile.FULL)).violations:
            print(f"found by seed {seed}: {violations[0]}")
            return
    pytest.fail(f"{SEEDS_MAX} seeds did not find it")


@pytest.mark.req("CPY-2")
def test_a_message_is_answered_once_though_redis_is_emptied_while_it_runs():
    doings = [Doing(act=Act.WRITE, at=5.0, name="m", chat_id=1, behaviour=Behaviour.SLOW)]
    emptied = Fault(kind=FaultKind.REDIS_EMPTIED, at=5.1)
    outcome = simulate(Plan(1, 1, 1, False, "resend", doings, [emptied], Profile.FULL))
    assert outcome.violations == []
    assert outcome.steps["queue.begin_life"] == 2
    assert outcome.steps["telegram.sendMessage"] == 1


@pytest.mark.req("TST-2", "CPY-5")
@pytest.mark.failure("C19", "I8")
async def test_a_filling_of_which_the_worlds_redis_loses_something_does_not_count():
    """As with a real one, of which `tests/queue/test_redis_queue.py` asks the same."""
    state = MemoryQueueState()
    queue = MemoryQueue(state, now_ms=lambda: 0)
    synced_before = snapshot_of(state)
    refill = await queue.begin_refill()
    await queue.restore([delivery(2)])
    synced = snapshot_of(state)
    await queue.restore([delivery(1)])
    rewind(state, synced)
    assert await queue.begin_life(refill) is None, "its name was saved, and the first of the chat was not"
    rewind(state, synced_before)
    anew = await queue.begin_refill()
    assert anew != refill, "no name is given twice"
    await queue.restore([delivery(1), delivery(2)])
    assert await queue.begin_life(refill) is None
    assert await queue.begin_life(anew) is not None
    assert await run_everything(queue) == [1, 2]


@pytest.mark.req("CPY-4", "WRK-4")
def test_a_claim_that_lapses_while_redis_is_away_for_long_counts_as_nobodys_death():
    doings = [
        Doing(act=Act.WRITE, at=5.0 + number / 100, name=f"m{number}", chat_id=number, behaviour=Behaviour.SLOW)
        for number in range(1, 13)
    ]
    away = Fault(kind=FaultKind.REDIS_GONE, at=5.2, seconds=12.0)
    outcome = simulate(Plan(1, 1, 3, False, "resend", doings, [away], Profile.FULL))
    assert outcome.violations == []

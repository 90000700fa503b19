"""kill -9 before and after everything that is ever written or called, by whoever does it, alone and in pairs.

Each write is named after the port's method that makes it. The names are taken from the ports: a method that is
added and never reached here makes a test fail.
"""

from __future__ import annotations

import inspect
import random

import pytest

from rise.definitions.port import Definitions
from rise.ledger.port import Ledger
from rise.queue.port import Queue
from rise.testing.simulator.bot import Behaviour
from rise.testing.simulator.faults import Fault, FaultKind
from rise.testing.simulator.people import GROUP, SUPERGROUP, Act, Doing
from rise.testing.simulator.run import Outcome, Plan, simulate

PORTS = {"queue": Queue, "ledger": Ledger, "definitions": Definitions}
READS = {
    "ledger.identity",
    *("queue.get", "queue.list_open", "queue.resumable", "queue.suspended_routes", "queue.receipts", "queue.depth"),
    *("queue.longest_lanes", "queue.next_in_lane"),
    *("ledger.run", "ledger.latest_run", "ledger.archived", "ledger.finished_among"),
    *("ledger.steps", "ledger.attempts", "ledger.history", "ledger.outbox_depth", "ledger.replies"),
    *("ledger.transcript", "ledger.operations", "ledger.ended"),
    *("definitions.changes", "definitions.latest", "definitions.version", "definitions.versions"),
    *("ledger.finished_counts", "ledger.chat_moves"),
}
FORGETTING = {"ledger.forget_raw", "ledger.forget_history", "ledger.forget_chat"}
"""After days, or by a person's word: `tests/ledger` and `tests/runtime/test_forgetting.py` break it off."""
CALLS = ["telegram.sendMessage", "telegram.answerCallbackQuery"]
PAIRS = 120


def written_by(port: type, room: str) -> list[str]:
    methods = [name for name, method in vars(port).items() if inspect.iscoroutinefunction(method)]
    return [name for method in methods if (name := f"{room}.{method}") not in READS | FORGETTING]


BOUNDARIES = [*(step for room, port in PORTS.items() for step in written_by(port, room)), *CALLS]


def a_busy_minute(*faults: Fault, policy: str = "hold") -> Outcome:
    return simulate(a_busy_plan(*faults, policy=policy))


def a_busy_plan(*faults: Fault, policy: str = "hold") -> Plan:
    """A little of everything, so that every write is made."""
    doings = [
        Doing(act=Act.WRITE, at=1.0 + number / 4, name=f"w{number}", chat_id=number % 3 + 1, behaviour=behaviour)
        for number, behaviour in enumerate(Behaviour)
    ]
    doings += [
        Doing(act=Act.TAP, at=3.0, name="tap", chat_id=1),
        Doing(act=Act.CALL, at=3.1, name="call", chat_id=1, behaviour=Behaviour.STEPS),
        Doing(act=Act.ALBUM, at=3.2, name="album", chat_id=2, behaviour=Behaviour.THREE),
        Doing(act=Act.UNBIND, at=8.0, name="binding"),
        *(Doing(act=Act.WRITE, at=8.5 + number / 10, name=f"u{number}", chat_id=number) for number in range(1, 5)),
        Doing(act=Act.DROP, at=9.5, name="drop"),
        Doing(act=Act.AGAIN, at=9.7, name="again"),
        Doing(act=Act.RESUME, at=9.9, name="resume"),
        Doing(act=Act.BIND, at=12.0, name="binding"),
        *(
            Doing(act=Act.WRITE, at=14.0 + number / 10, name=f"h{number}", chat_id=10 + number)
            for number in range(1, 4)
        ),
        Doing(act=Act.WRITE, at=15.0, name="before", chat_id=GROUP),
        Doing(act=Act.MIGRATE, at=15.2, name="moved", chat_id=GROUP),
        Doing(act=Act.WRITE, at=15.4, name="after", chat_id=SUPERGROUP),
        Doing(act=Act.RESUME, at=20.0, name="held", pick=0.99),
        *(Doing(act=Act.RESUME, at=21.0 + number, name=f"held{number}", pick=number / 8) for number in range(8)),
    ]
    doubts = [
        Fault(kind=FaultKind.CALLS_UNANSWERED, at=14.0, seconds=1.0),
        Fault(kind=FaultKind.WRITES_SLOW, target="worker-1", at=16.0, seconds=2.0),
        Fault(kind=FaultKind.STOP, target="worker-1", at=18.0),
        Fault(kind=FaultKind.CALLS_FLOODED, at=3.0, seconds=0.3),
    ]
    return Plan(1, 1, 2, False, policy, doings, [*doubts, *faults])


def killed(step: str, *, before: bool, nth: int = 1) -> Fault:
    return Fault(kind=FaultKind.KILL, at=0.0, nth=nth, step=step, before=before)


@pytest.mark.req("TST-2")
def test_every_write_that_a_port_has_is_made():
    outcome = a_busy_minute()
    assert outcome.violations == []
    assert sorted(set(BOUNDARIES) - set(outcome.steps)) == []
    assert set(every_method()) >= READS, "a name that no port has any more"


def every_method() -> list[str]:
    return [
        f"{room}.{name}"
        for room, port in PORTS.items()
        for name, method in vars(port).items()
        if inspect.iscoroutinefunction(method)
    ]


@pytest.mark.slow
@pytest.mark.req("TST-2", "ENV-3", "WRK-4", "OUT-1")
@pytest.mark.failure("D1", "E2", "F11", "G1", "G2", "G3", "C1", "C4", "H1")
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", BOUNDARIES)
def test_a_kill_at_a_write_breaks_no_promise(step: str, edge: str, nth: int):
    outcome = a_busy_minute(killed(step, before=edge == "before", nth=nth))
    assert [str(violation) for violation in outcome.violations] == []
    if nth == 1:
        assert outcome.struck["KILL"] == 1, "nobody was killed"


@pytest.mark.slow
@pytest.mark.req("TST-2")
def test_two_kills_at_two_writes_break_no_promise(pytestconfig: pytest.Config):
    dice = random.Random(pytestconfig.getoption("seed"))
    broken = {}
    for _ in range(PAIRS):
        pair = [killed(dice.choice(BOUNDARIES), before=dice.random() < 0.5, nth=dice.randint(1, 6)) for _ in range(2)]
        policy = dice.choice(("resend_marked", "resend", "hold"))
        if violations := a_busy_minute(*pair, policy=policy).violations:
            broken[policy, *map(str, pair)] = [str(violation) for violation in violations]
    assert broken == {}

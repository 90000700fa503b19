"""Conversations in whole installations: Temporal is away, loses answers and its disk, and who carries them on dies."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from rise.bursts import Burst
from rise.conversations.asking import Conversations, is_conversation
from rise.conversations.memory import ConversationMemory
from rise.conversations.port import ConversationMessage, Response, ResponseStatus, conversation_id_of, message_of
from rise.envelope import Task
from rise.testing.simulator.bot import Behaviour
from rise.testing.simulator.conversations import SimConversations
from rise.testing.simulator.faults import Fault, FaultKind, draw_faults_of_temporal
from rise.testing.simulator.invariants import Checker
from rise.testing.simulator.people import Act, Doing
from rise.testing.simulator.profile import Profile
from rise.testing.simulator.run import BUSY_SECONDS, CONVERSATIONS_FROM, Plan, draw_plan, simulate
from rise.worker import Worker

FIRST = 6_000_000
SEEDS_MAX = 20
USUAL = (Behaviour.ECHO, Behaviour.STEPS, Behaviour.FAILS_ONCE, Behaviour.WAITS, Behaviour.THREE)
CARRY = Doing(act=Act.CARRY, at=0.0, name="engine", pick=0.1)
ON_THE_WAY = ("temporal.tell", "temporal.ask", "temporal.carry", "temporal.end")


def carried(seed: int, profile: Profile = Profile.EMBEDDED) -> Plan:
    """A world as any, whose people's chats Temporal carries on from the beginning, if it can be reached."""
    plan = draw_plan(seed, profile)
    names = [f"worker-{number}" for number in range(1, plan.workers + 1)]
    faults = draw_faults_of_temporal(random.Random(f"{seed}: of Temporal"), members=names, seconds=BUSY_SECONDS)
    return msgspec.structs.replace(plan, doings=[CARRY, *plan.doings], faults=_in_order([*plan.faults, *faults]))


def talks(
    seed: int, *faults: Fault, workers: int = 2, asked: Sequence[Behaviour] = USUAL, begin_at: float = 2.0
) -> Plan:
    """Three people, each of whom writes a message every other second; the first may be one that Temporal waits for."""
    writes = [
        Doing(
            act=Act.WRITE,
            at=begin_at + 2.0 * number + 0.1 * chat,
            name=f"c{chat}n{number}",
            chat_id=chat,
            behaviour=asked[(chat + number) % len(asked)],
        )
        for number in range(6)
        for chat in (1, 2, 3)
    ]
    return Plan(seed, 1, workers, False, "resend", [CARRY, *writes], _in_order(faults))


def with_deaths(seed: int) -> Plan:
    """Of a worker, before and after everything there is between telling a conversation and hearing from it."""
    deaths = [
        Fault(
            kind=FaultKind.KILL,
            target=f"worker-{1 + number % 2}",
            at=2.0 + 3.0 * number,
            nth=1 + (seed + number) % 3,
            step=step,
            before=before,
        )
        for number, (step, before) in enumerate([(step, before) for step in ON_THE_WAY for before in (True, False)])
    ]
    return talks(seed, *deaths)


def _in_order(faults: Sequence[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.at)


def broken(plan: Plan) -> list[str]:
    return [str(violation) for violation in simulate(plan).violations]


def answers(checker: Checker) -> dict[str, int]:
    """How often each was said; not the notices that one will be late."""
    return {text: count for text, count in checker.said.items() if text.startswith("c")}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[SimConversations]:
    """The Temporals of the worlds to come."""
    remembered: list[SimConversations] = []
    init = SimConversations.__init__

    def remember(self: SimConversations, *args: Any) -> None:
        init(self, *args)
        remembered.append(self)

    monkeypatch.setattr(SimConversations, "__init__", remember)
    return remembered


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Checker]:
    """Who hears what people are told."""
    remembered: list[Checker] = []
    init = Checker.__init__

    def remember(self: Checker, *args: Any) -> None:
        init(self, *args)
        remembered.append(self)

    monkeypatch.setattr(Checker, "__init__", remember)
    return remembered


@pytest.mark.req("TMP-1", "TST-2")
def test_seeds_that_were_kept_before_there_were_conversations_are_the_runs_they_were():
    assert not any(draw_plan(seed).has_conversations for seed in range(CONVERSATIONS_FROM - 60, CONVERSATIONS_FROM))
    plans = [draw_plan(CONVERSATIONS_FROM + seed) for seed in range(60)]
    carrying = [plan for plan in plans if plan.has_conversations]
    assert 25 < len(carrying) < 50
    of_temporal = {kind for kind in FaultKind if kind.name.startswith("TEMPORAL_")}
    assert {fault.kind for plan in carrying for fault in plan.faults} >= of_temporal
    assert not any(fault.kind in of_temporal for plan in plans if not plan.has_conversations for fault in plan.faults)


@pytest.mark.req("TMP-1", "TST-2")
def test_the_same_seed_is_the_same_run_and_much_happens_to_its_conversations(made: list[SimConversations]):
    plan = talks(FIRST, Fault(kind=FaultKind.TEMPORAL_UNANSWERED, at=1.0, seconds=20.0))
    first, again = simulate(plan), simulate(plan)
    assert (first.violations, first.trace) == ([], again.trace)
    assert made[0].told_again > 0, "the client asks again for what it has not heard the end of"
    assert made[0].begun_anew > 0


@pytest.mark.req("TMP-1", "TMP-2", "TMP-4", "TST-2")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_seeds_with_conversations_break_no_promise(seed: int):
    assert broken(carried(seed)) == []


@pytest.mark.req("TMP-1", "TST-2")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 6))
def test_whoever_dies_between_telling_and_hearing_breaks_no_promise(seed: int):
    assert broken(with_deaths(seed)) == []


@pytest.mark.slow
@pytest.mark.req("TMP-1", "TMP-2", "TMP-4", "TST-2")
@pytest.mark.parametrize("profile", Profile)
def test_no_seed_with_conversations_breaks_a_promise(profile: Profile, pytestconfig: pytest.Config):
    found = {}
    for seed in range(FIRST, FIRST + pytestconfig.getoption("seeds") // 24):
        if violations := broken(carried(seed, profile)):
            found[seed] = violations[:3]
    assert found == {}


@pytest.mark.req("TMP-1", "TMP-4")
@pytest.mark.parametrize("kind", [FaultKind.TEMPORAL_KILLED, FaultKind.TEMPORAL_GONE])
def test_what_is_written_while_temporal_is_away_waits_and_is_answered_in_order_when_it_is_back(
    kind: FaultKind, made: list[SimConversations], said: list[Checker]
):
    """Of a chat each, so that nobody waits for another; none of them uses up a try (I13)."""
    plan = talks(FIRST, Fault(kind=kind, at=1.0, seconds=24.0), asked=[Behaviour.ECHO])
    assert broken(plan) == []
    assert answers(said[0]) == {f"c{chat}n{number}.0": 1 for chat in (1, 2, 3) for number in range(6)}
    assert made[0].begun_anew > 0


@pytest.mark.req("TMP-1")
def test_a_temporal_that_has_lost_everything_is_told_again(said: list[Checker]):
    losses = [Fault(kind=FaultKind.TEMPORAL_EMPTIED, at=2.1 + number / 4) for number in range(40)]
    plan = talks(FIRST, *losses, asked=[Behaviour.SLOW, Behaviour.STEPS])
    assert broken(plan) == []
    assert set(answers(said[0]).values()) == {1}


@pytest.mark.req("TMP-1")
def test_a_run_whose_message_a_person_drops_is_given_up(made: list[SimConversations]):
    plan = talks(FIRST, asked=[Behaviour.HANGS])
    drops = [Doing(act=Act.DROP, at=3.0 + number, name=f"drop{number}", pick=0.51) for number in range(6)]
    assert broken(msgspec.structs.replace(plan, doings=[*plan.doings, *drops])) == []
    assert made[0].given_up > 0


# --- bugs that have to be found ---

Plant = Callable[[pytest.MonkeyPatch], None]


def a_conversation_that_runs_whatever_it_is_told(patch: pytest.MonkeyPatch) -> None:
    hear = ConversationMemory.hear

    def hear_anything(self: ConversationMemory, message: ConversationMessage, *, now_ms: int) -> bool:
        self.updates.pop(message.update_id, None)
        return hear(self, message, now_ms=now_ms)

    patch.setattr(ConversationMemory, "hear", hear_anything)


def a_conversation_that_is_told_when_the_result_is_frozen(patch: pytest.MonkeyPatch) -> None:
    record = Worker._record_answer

    async def record_and_tell(self: Worker, task: Task, *result: Any) -> Any:
        settlement = await record(self, task, *result)
        bound = self._bindings.met_by(task.head).bound
        if bound is not None and is_conversation(bound, task) and self._conversations is not None:
            named = conversation_id_of(task.head) or ""
            await self._conversations.server.tell(named, message_of(Burst(task), bound, tries=0))
        return settlement

    patch.setattr(Worker, "_record_answer", record_and_tell)


def an_answer_that_is_taken_though_it_is_a_former_trys(patch: pytest.MonkeyPatch) -> None:
    async def known(self: Conversations, burst: Burst, named: str, message: ConversationMessage) -> Response | None:
        response = await self.server.ask(named, message.request_id)
        return None if response.status is ResponseStatus.UNKNOWN else response

    patch.setattr(Conversations, "_known", known)


PLANTED: dict[Plant, Callable[[int], Plan]] = {
    a_conversation_that_runs_whatever_it_is_told: lambda seed: talks(
        seed, Fault(kind=FaultKind.TEMPORAL_UNANSWERED, at=2.0, seconds=10.0)
    ),
    a_conversation_that_is_told_when_the_result_is_frozen: talks,
    an_answer_that_is_taken_though_it_is_a_former_trys: talks,
}


@pytest.mark.req("TST-2", "TMP-2")
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch):
    plan = PLANTED[plant]
    assert broken(plan(FIRST)) == []
    plant(monkeypatch)
    assert any(broken(plan(seed)) for seed in range(FIRST, FIRST + SEEDS_MAX))

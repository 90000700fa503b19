"""What goes wrong in a run, decided before it begins: so that it can be printed, shortened and repeated.

A fault strikes a target (a process, or all of them) at a time, or at the n-th thing that its target does after
that time: a kill at a random moment would hardly ever fall between two writes that belong together.
"""

from __future__ import annotations

import random  # noqa: TID251 - the dice are the seed's
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

EVERYBODY: Final = "*"


class FaultKind(StrEnum):
    KILL = "kill -9"
    PAUSE = "stopped for a while"
    STOP = "told to stop, and started again"
    POWER_CUT = "the power goes"
    CLOCK_STEP = "the wall clock is set"

    WRITES_REFUSED = "the store takes no writes"
    WRITES_UNANSWERED = "the store writes and does not say so"
    WRITES_SLOW = "the store takes seconds"
    BUS_SILENT = "hints are lost"

    REDIS_GONE = "Redis cannot be reached"
    REDIS_UNANSWERED = "Redis does what it is asked, and its answer is lost"
    REDIS_SLOW = "Redis takes seconds"
    REDIS_FULL = "Redis takes nothing in, and gives out"
    REDIS_EMPTIED = "Redis is emptied"
    REDIS_REWOUND = "Redis loses its last writes"
    REDIS_RECORD_LOST = "Redis loses one record"
    RABBIT_GONE = "RabbitMQ cannot be reached"
    RABBIT_UNANSWERED = "RabbitMQ keeps what it is given, and its confirm is lost"
    RABBIT_SLOW = "RabbitMQ takes seconds"
    RABBIT_BLOCKED = "RabbitMQ takes nothing in, and gives out"
    RABBIT_EMPTIED = "RabbitMQ loses its queues"
    JOURNAL_FULL = "the journal takes no writes"
    JOURNAL_LOST = "the journal's disk is lost"
    LEDGER_GONE = "MongoDB cannot be reached"

    TEMPORAL_GONE = "Temporal cannot be reached"
    TEMPORAL_UNANSWERED = "Temporal does what it is asked, and its answer is lost"
    TEMPORAL_SLOW = "Temporal takes seconds"
    TEMPORAL_KILLED = "Temporal is killed, and comes back with what is on its disk"
    TEMPORAL_EMPTIED = "Temporal loses all it knows"

    UPDATES_LOST = "updates do not get to the gateway"
    ANSWERS_LOST = "the platform does not hear the gateway's answers"
    UPDATES_DOUBLED = "updates come twice at once"

    PLATFORM_GONE = "the platform cannot be reached"
    CALLS_UNANSWERED = "the platform does what it is asked, and its answer is lost"
    CALLS_FAIL = "the platform answers 5xx, pages and halves"
    CALLS_FLOODED = "the platform answers 429"
    CALLS_SLOW = "the platform takes seconds for what it is asked"
    BOT_UNKNOWN = "the platform does not know the bot's token"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong. `nth`: not at `at`, but at the n-th write or call of its target from then on."""

    kind: FaultKind
    target: str = EVERYBODY
    at: float
    seconds: float = 0.0
    nth: int | None = None
    step: str | None = None
    """Count only these; without it, all writes and calls."""
    before: bool = True
    """Of the n-th: before it has its effect, or after it and before that is known."""

    @property
    def until(self) -> float:
        return self.at + self.seconds

    def strikes(self, target: str) -> bool:
        return self.target in (EVERYBODY, target)

    def __str__(self) -> str:
        when = f"{self.at:7.2f} s"
        if self.nth is not None:
            when += f" + {self.nth} × {self.step or 'a write or call'}, {'before' if self.before else 'after'} the last"
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{when}  {self.target}: {self.kind.value}{lasting}"


_OF_PROCESSES: Final = (FaultKind.KILL, FaultKind.KILL, FaultKind.KILL, FaultKind.PAUSE, FaultKind.STOP)
_OF_STORES: Final = (
    FaultKind.WRITES_REFUSED,
    FaultKind.WRITES_UNANSWERED,
    FaultKind.WRITES_UNANSWERED,
    FaultKind.WRITES_SLOW,
    FaultKind.BUS_SILENT,
)
_OF_PLATFORMS: Final = (
    FaultKind.UPDATES_LOST,
    FaultKind.ANSWERS_LOST,
    FaultKind.ANSWERS_LOST,
    FaultKind.UPDATES_DOUBLED,
    FaultKind.PLATFORM_GONE,
    FaultKind.CALLS_UNANSWERED,
    FaultKind.CALLS_UNANSWERED,
    FaultKind.CALLS_FAIL,
    FaultKind.CALLS_FLOODED,
    FaultKind.BOT_UNKNOWN,
)
_OF_HOSTS: Final = (FaultKind.POWER_CUT, FaultKind.CLOCK_STEP)

_OF_LINKS: Final = (
    FaultKind.REDIS_GONE,
    FaultKind.REDIS_GONE,
    FaultKind.REDIS_UNANSWERED,
    FaultKind.REDIS_SLOW,
    FaultKind.RABBIT_GONE,
    FaultKind.RABBIT_GONE,
    FaultKind.RABBIT_UNANSWERED,
    FaultKind.RABBIT_SLOW,
    FaultKind.RABBIT_BLOCKED,
    FaultKind.JOURNAL_FULL,
)
"""Several stores may be away at once: then nothing is accepted, and nothing that was is lost."""
_LOSSES: Final = (
    (FaultKind.REDIS_EMPTIED, FaultKind.REDIS_EMPTIED, FaultKind.REDIS_REWOUND, FaultKind.REDIS_RECORD_LOST),
    (FaultKind.RABBIT_EMPTIED,),
    (FaultKind.JOURNAL_LOST,),
)
"""What a store may lose, by store. While a run is busy one store alone loses something, however often: with two copies
the promise covers the loss of any one of them, and a copy that was lost takes up to a minute to be made again. At rest,
when all copies are there again, one more store may lose everything, whichever it is."""
LAST_BLOWS: Final = (None, FaultKind.REDIS_EMPTIED, FaultKind.RABBIT_EMPTIED, FaultKind.JOURNAL_LOST)
REWOUND_SECONDS_MAX: Final = 1.0
"""With `appendfsync everysec`."""

_OF_TEMPORAL: Final = (
    FaultKind.TEMPORAL_GONE,
    FaultKind.TEMPORAL_GONE,
    FaultKind.TEMPORAL_UNANSWERED,
    FaultKind.TEMPORAL_UNANSWERED,
    FaultKind.TEMPORAL_SLOW,
    FaultKind.TEMPORAL_KILLED,
    FaultKind.TEMPORAL_KILLED,
    FaultKind.TEMPORAL_EMPTIED,
)
_OF_A_MOMENT: Final = {FaultKind.KILL, FaultKind.STOP, FaultKind.POWER_CUT, FaultKind.CLOCK_STEP}
_SUDDEN: Final = frozenset({FaultKind.TEMPORAL_EMPTIED}.union(_OF_A_MOMENT, *_LOSSES))
_ON_THE_WAY_TO_TEMPORAL: Final = ("temporal.tell", "temporal.ask", "temporal.carry", "temporal.end")
_AT_A_STEP: Final = frozenset({FaultKind.KILL, FaultKind.PAUSE})


def draw_faults(dice: random.Random, *, members: Sequence[str], seconds: float) -> list[Fault]:
    """A schedule for the first `seconds`. Some runs have few faults, some have many, some have one kind only."""
    count = dice.choice((0, 1, 2, 3, 5, 8, 13, 21))
    families: list[tuple[FaultKind, ...]] = [_OF_PROCESSES, _OF_STORES, _OF_PLATFORMS, _OF_HOSTS]
    weights = [dice.choice((0, 1, 5)) for _ in families]
    if not any(weights):
        weights[0] = 1
    kinds = [dice.choice(dice.choices(families, weights)[0]) for _ in range(count)]
    return sorted((_draw(dice, kind, members, seconds) for kind in kinds), key=lambda fault: fault.at)


def draw_faults_of_stores(
    dice: random.Random, *, members: Sequence[str], seconds: float, has_mirror: bool
) -> list[Fault]:
    """What goes wrong besides where there are several stores, and which of them loses what it holds."""
    links = [kind for kind in _OF_LINKS if has_mirror or not kind.name.startswith("RABBIT")]
    losses = dice.choice(_LOSSES if has_mirror else _LOSSES[:1])  # without a mirror the journal is what is promised
    share = dice.choice((0.0, 0.3, 0.7))
    kinds = [dice.choice(losses if dice.random() < share else links) for _ in range(dice.choice((0, 1, 2, 3, 5, 8)))]
    return [_draw_of_stores(dice, kind, members, seconds) for kind in kinds]


def _draw_of_stores(dice: random.Random, kind: FaultKind, members: Sequence[str], seconds: float) -> Fault:
    is_of_one = (kind in _OF_LINKS and dice.random() < 0.4) or (kind is FaultKind.JOURNAL_LOST and dice.random() < 0.6)
    return Fault(
        kind=kind,
        target=dice.choice(members) if is_of_one else EVERYBODY,
        at=round(dice.uniform(0.0, seconds), 2),
        seconds=_back(dice) if kind is FaultKind.REDIS_REWOUND else _lasting(dice, kind),
    )


def draw_full_redis(dice: random.Random, *, seconds: float) -> list[Fault]:
    """In one run of four; a third of them for longer than anybody waits for room to be made."""
    if dice.random() >= 0.25:
        return []
    at, lasting = round(dice.uniform(0.0, seconds), 2), dice.choice((3.0, 15.0, 70.0))
    return [Fault(kind=FaultKind.REDIS_FULL, at=at, seconds=lasting)]


def draw_ledger_gone(dice: random.Random, *, members: Sequence[str], seconds: float) -> list[Fault]:
    """Once to three times, for all or for one; now and then for longer than anything else lasts."""
    return [
        Fault(
            kind=FaultKind.LEDGER_GONE,
            target=EVERYBODY if dice.random() < 0.7 else dice.choice(members),
            at=round(dice.uniform(0.0, seconds), 2),
            seconds=round(dice.choice((0.1, 1.0, 4.0, 10.0)) * dice.uniform(0.5, 2.0), 2),
        )
        for _ in range(dice.choice((1, 1, 2, 3)))
    ]


def draw_slow_calls(dice: random.Random, *, seconds: float) -> list[Fault]:
    """In half of the runs, and for long enough that more is said in a chat meanwhile."""
    return [
        Fault(
            kind=FaultKind.CALLS_SLOW,
            at=round(dice.uniform(0.0, seconds), 2),
            seconds=round(dice.choice((2.0, 5.0, 10.0)) * dice.uniform(0.5, 2.0), 2),
        )
        for _ in range(dice.choice((0, 0, 0, 1, 2, 3)))
    ]


def draw_faults_of_temporal(dice: random.Random, *, members: Sequence[str], seconds: float) -> list[Fault]:
    """For all or for one; and in half of the runs processes die between what is asked of Temporal and its answer."""
    faults = []
    for _ in range(dice.choice((0, 1, 2, 3, 5, 8))):
        kind, at = dice.choice(_OF_TEMPORAL), round(dice.uniform(0.0, seconds), 2)
        is_of_one = kind.name.endswith(("_GONE", "_UNANSWERED", "_SLOW")) and dice.random() < 0.4
        target = dice.choice(members) if is_of_one else EVERYBODY
        faults.append(Fault(kind=kind, target=target, at=at, seconds=_lasting(dice, kind)))
    deaths = dice.choice((0, 0, 1, 2, 3))
    return faults + [_draw_death_on_the_way(dice, members, seconds) for _ in range(deaths)]


def _draw_death_on_the_way(dice: random.Random, members: Sequence[str], seconds: float) -> Fault:
    return Fault(
        kind=FaultKind.KILL,
        target=dice.choice(members),
        at=round(dice.uniform(0.0, seconds), 2),
        nth=dice.randint(1, 6),
        step=dice.choice(_ON_THE_WAY_TO_TEMPORAL),
        before=dice.random() < 0.5,
    )


def with_redis_rewound(dice: random.Random, faults: Iterable[Fault]) -> list[Fault]:
    """The power cuts take what Redis had not synced, if it is Redis that loses something in this run."""
    faults = list(faults)
    if any(fault.kind in losses for fault in faults for losses in _LOSSES[1:]):
        return faults
    cut = FaultKind.POWER_CUT
    return [msgspec.structs.replace(fault, seconds=_back(dice)) if fault.kind is cut else fault for fault in faults]


def _back(dice: random.Random) -> float:
    return round(dice.uniform(0.02, REWOUND_SECONDS_MAX), 2)


def _draw(dice: random.Random, kind: FaultKind, members: Sequence[str], seconds: float) -> Fault:
    at_a_step = kind in _AT_A_STEP and dice.random() < 0.8
    of_the_world = kind in _OF_PLATFORMS or kind in _OF_HOSTS
    return Fault(
        kind=kind,
        target=EVERYBODY if of_the_world or (kind in _OF_STORES and dice.random() < 0.4) else dice.choice(members),
        at=round(dice.uniform(0.0, seconds), 2),
        seconds=_lasting(dice, kind),
        nth=dice.randint(1, 25) if at_a_step else None,
        before=dice.random() < 0.5,
    )


def _lasting(dice: random.Random, kind: FaultKind) -> float:
    if kind is FaultKind.CLOCK_STEP:
        return dice.choice((-90_000.0, -3600.0, -5.0, 5.0, 3600.0, 90_000.0))
    if kind in _SUDDEN:
        return 0.0
    return round(dice.choice((0.05, 0.5, 2.0, 10.0)) * dice.uniform(0.5, 2.0), 2)


class Weather:
    """Which faults strike now."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._lasting = [fault for fault in faults if fault.kind not in _SUDDEN and fault.nth is None]
        self._kinds = frozenset(fault.kind for fault in self._lasting)
        self._now: list[Fault] = []
        self._changes_at = 0.0

    def is_(self, kind: FaultKind, target: str, now: float) -> bool:
        if kind not in self._kinds:
            return False
        if now >= self._changes_at:
            self._look(now)
        return any(fault.kind is kind and fault.strikes(target) for fault in self._now)

    def _look(self, now: float) -> None:
        self._now = [fault for fault in self._lasting if fault.at <= now < fault.until]
        edges = [edge for fault in self._lasting for edge in (fault.at, fault.until) if edge > now]
        self._changes_at = min(edges, default=float("inf"))


class Tripwires:
    """Faults that wait for the n-th step of their target."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._waiting = [(fault, [0]) for fault in faults if fault.nth is not None]

    def step(self, target: str, name: str, now: float) -> Fault | None:
        """Count a step; returns the fault whose turn it is."""
        if not self._waiting:
            return None
        for index, (fault, count) in enumerate(self._waiting):
            if fault.at <= now and fault.strikes(target) and fault.step in (None, name):
                count[0] += 1
                if count[0] == fault.nth:
                    del self._waiting[index]
                    return fault
        return None

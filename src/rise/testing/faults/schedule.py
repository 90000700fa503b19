"""What will go wrong, and when: the same for the same seed, whatever the machine does meanwhile.

A cycle is one kill and, mostly, one trouble beside it. Troubles are dealt like cards from a shuffled deck, so that
every fifteen cycles hold one of each kind and no luck is needed to meet them all.
"""

from __future__ import annotations

import random  # noqa: TID251 - seeded, to be repeated
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from rise.testing.faults.proxy import Direction, LinkFault

T = TypeVar("T")
HOUR_SECONDS: Final = 3600.0


class Victim(StrEnum):
    GATEWAY = "gateway"
    WORKER = "worker"
    """The gateway's own."""
    BOTH = "gateway and worker"
    ADDED = "added worker"


class Moment(StrEnum):
    ANY = "any"
    ACCEPTING = "accepting"
    """While the platform waits for the answer to an update."""
    SENDING = "sending"
    """As soon as the platform has taken a message: the gateway cannot know that yet."""


class Link(StrEnum):
    WEBHOOK = "webhook"
    """From the platform to the gateway."""
    API = "Bot API"
    """From the gateway to the platform."""


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9."""

    victim: Victim
    moment: Moment
    pause_seconds: float
    """Before the moment is waited for."""
    awaits_start: bool
    """False: the next kill may come before what was started again is ready."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP, and SIGCONT so much later."""

    victim: Victim
    seconds: float

    @property
    def name(self) -> str:
        return f"SIGSTOP of the {self.victim}"


@dataclass(frozen=True, slots=True)
class Restart:
    """SIGTERM, and started again."""

    pause_seconds: float = 0.0
    name: str = "SIGTERM and restart"


@dataclass(frozen=True, slots=True)
class BadLink:
    link: Link
    fault: LinkFault
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.link} link: {self.fault.name}"


@dataclass(frozen=True, slots=True)
class FullDisk:
    seconds: float
    name: str = "disk full"


@dataclass(frozen=True, slots=True)
class FailingDisk:
    """The disk meets an error and turns read-only; it is repaired while nothing runs."""

    seconds: float
    name: str = "disk read-only"


@dataclass(frozen=True, slots=True)
class NoQuota:
    """No process may write to any file."""

    seconds: float
    name: str = "quota used up"


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The wall clock is wrong for a while."""

    by_seconds: float
    seconds: float
    name: str = "wall clock stepped"


Trouble = Freeze | Restart | BadLink | FullDisk | FailingDisk | NoQuota | ClockStep


@dataclass(frozen=True, slots=True)
class Cycle:
    kill: Kill | None
    trouble: Trouble | None


def cycles(seed: int, *, troubles: bool = True) -> Iterator[Cycle]:
    """Without end. `troubles=False`: kills alone."""
    dice = random.Random(seed)
    dealt = _deal(dice, _TROUBLES)
    while True:
        # Always dealt, so that the kills of a seed are the same with and without troubles beside them.
        make = next(dealt)
        trouble = make(dice)
        yield Cycle(_kill(dice), trouble if troubles else None)


def _kill(dice: random.Random) -> Kill:
    return Kill(
        victim=dice.choices(list(Victim), weights=(4, 3, 3, 1))[0],
        moment=dice.choices(list(Moment), weights=(5, 2, 3))[0],
        pause_seconds=dice.uniform(0.0, 1.2),
        awaits_start=dice.random() > 0.2,
    )


def _deal(dice: random.Random, cards: list[T]) -> Iterator[T]:
    while True:
        yield from dice.sample(cards, len(cards))


def _link_faults(dice: random.Random) -> LinkFault:
    return dice.choice(
        (
            LinkFault.latency(0.2, jitter_seconds=0.2),
            LinkFault.blackhole(Direction.REQUESTS),
            LinkFault.blackhole(Direction.ANSWERS),
            LinkFault.refusal(),
            LinkFault.reset(),
            LinkFault.cut(dice.randrange(1, 600), dice.choice(list(Direction))),
            LinkFault.lost_answer(),
            LinkFault.lost_answer(hangs=True),
        )
    )


def _bad_link(link: Link) -> Callable[[random.Random], Trouble]:
    return lambda dice: BadLink(link, _link_faults(dice), dice.uniform(0.3, 3.0))


def _freeze(victim: Victim) -> Callable[[random.Random], Trouble]:
    # From a blink to well beyond the claim and the patience with a silent worker.
    return lambda dice: Freeze(victim, dice.uniform(0.2, 5.0))


_TROUBLES: Final[list[Callable[[random.Random], Trouble | None]]] = [
    lambda dice: None,
    *[_bad_link(link) for link in Link] * 3,
    *[_freeze(victim) for victim in (Victim.GATEWAY, Victim.WORKER, Victim.ADDED)],
    lambda dice: Restart(dice.uniform(0.0, 1.0)),
    lambda dice: FullDisk(dice.uniform(1.0, 4.0)),
    lambda dice: FailingDisk(dice.uniform(0.5, 2.0)),
    lambda dice: NoQuota(dice.uniform(0.5, 3.0)),
    # Backwards as far as one likes. Forwards not beyond a day: fresh messages would then look like a replay.
    lambda dice: ClockStep(dice.uniform(-72, 20) * HOUR_SECONDS, dice.uniform(0.5, 4.0)),
]

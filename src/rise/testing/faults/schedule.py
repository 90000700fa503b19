"""What will go wrong, and when: the same for the same seed, whatever the machine does meanwhile.

A cycle is one kill and, mostly, one trouble beside it. Troubles are dealt like cards from a shuffled deck, so that
every fifteen cycles hold one of each kind and no luck is needed to meet them all; in the full profile, every 29; with
MongoDB, every 34.
"""

from __future__ import annotations

import random  # noqa: TID251 - seeded, to be repeated
from collections.abc import Callable, Iterator, Mapping
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
    SECOND = "second gateway"
    """With its worker; of the full profile."""


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
    REDIS = "Redis"
    RABBIT = "RabbitMQ"
    MONGO = "MongoDB"
    """Of the mongo profile."""


class Mishap(StrEnum):
    """What befalls the servers of the full profile, and those of MongoDB in the mongo profile."""

    REDIS_KILLED = "Redis killed -9"
    REDIS_FROZEN = "Redis frozen"
    REDIS_EMPTIED = "Redis emptied"
    REDIS_STREAM_DELETED = "stream in Redis deleted"
    REDIS_GROUP_DESTROYED = "consumer group in Redis destroyed"
    REDIS_FULL = "Redis out of memory"
    REDIS_READ_ONLY = "Redis read-only"
    RABBIT_KILLED = "RabbitMQ killed -9"
    RABBIT_FROZEN = "RabbitMQ frozen"
    RABBIT_MEMORY_ALARM = "RabbitMQ memory alarm"
    RABBIT_DISK_ALARM = "RabbitMQ disk alarm"
    RABBIT_QUEUE_DELETED = "queue in RabbitMQ deleted"
    BOTH_UNREACHABLE = "Redis and RabbitMQ unreachable"
    MONGO_KILLED = "MongoDB killed -9"
    MONGO_FROZEN = "MongoDB frozen"
    MONGO_STOPPED = "MongoDB stopped"


MISHAPS_OF_MONGO: Final = (Mishap.MONGO_KILLED, Mishap.MONGO_FROZEN, Mishap.MONGO_STOPPED)
MISHAPS_OF_FULL: Final = tuple(mishap for mishap in Mishap if mishap not in MISHAPS_OF_MONGO)
LINKS_OF_FULL: Final = tuple(link for link in Link if link is not Link.MONGO)


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


@dataclass(frozen=True, slots=True)
class StoreMishap:
    mishap: Mishap
    seconds: float

    @property
    def name(self) -> str:
        return str(self.mishap)


Trouble = Freeze | Restart | BadLink | FullDisk | FailingDisk | NoQuota | ClockStep | StoreMishap


@dataclass(frozen=True, slots=True)
class Cycle:
    kill: Kill | None
    trouble: Trouble | None


def cycles(seed: int, *, troubles: bool = True, full: bool = False, mongo: bool = False) -> Iterator[Cycle]:
    """Without end. `troubles=False`: kills alone. `full`: of the full profile, where more can go wrong; with `mongo`,
    MongoDB as well."""
    dice = random.Random(seed)
    with_servers = _TROUBLES_WITH_MONGO if mongo else _TROUBLES_OF_ALL
    dealt = _deal(dice, with_servers if full else _TROUBLES)
    while True:
        # Always dealt, so that the kills of a seed are the same with and without troubles beside them.
        make = next(dealt)
        trouble = make(dice)
        yield Cycle(_kill(dice, _KILLED_OF_ALL if full else _KILLED), trouble if troubles else None)


def _kill(dice: random.Random, weights: Mapping[Victim, int]) -> Kill:
    return Kill(
        victim=dice.choices(list(weights), weights=list(weights.values()))[0],
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


def _mishap(mishap: Mishap) -> Callable[[random.Random], Trouble]:
    # Beyond the three seconds that an acceptance and a confirm may take: what is over sooner is not noticed.
    return lambda dice: StoreMishap(mishap, dice.uniform(4.0, 8.0))


def _mishap_of_mongo(mishap: Mishap) -> Callable[[random.Random], Trouble]:
    # Beyond the five seconds that an answer of MongoDB's may take.
    return lambda dice: StoreMishap(mishap, dice.uniform(6.0, 10.0))


_KILLED: Final = {Victim.GATEWAY: 4, Victim.WORKER: 3, Victim.BOTH: 3, Victim.ADDED: 1}
_KILLED_OF_ALL: Final = _KILLED | {Victim.SECOND: 4}
_TROUBLES: Final[list[Callable[[random.Random], Trouble | None]]] = [
    lambda dice: None,
    *[_bad_link(link) for link in (Link.WEBHOOK, Link.API)] * 3,
    *[_freeze(victim) for victim in (Victim.GATEWAY, Victim.WORKER, Victim.ADDED)],
    lambda dice: Restart(dice.uniform(0.0, 1.0)),
    lambda dice: FullDisk(dice.uniform(1.0, 4.0)),
    lambda dice: FailingDisk(dice.uniform(0.5, 2.0)),
    lambda dice: NoQuota(dice.uniform(0.5, 3.0)),
    # Backwards as far as one likes. Forwards not beyond a day: fresh messages would then look like a replay.
    lambda dice: ClockStep(dice.uniform(-72, 20) * HOUR_SECONDS, dice.uniform(0.5, 4.0)),
]
_TROUBLES_OF_ALL: Final[list[Callable[[random.Random], Trouble | None]]] = [
    lambda dice: None,
    *[_bad_link(link) for link in (*LINKS_OF_FULL, Link.REDIS, Link.RABBIT)],
    *[_freeze(victim) for victim in (Victim.GATEWAY, Victim.WORKER, Victim.ADDED, Victim.SECOND)],
    *_TROUBLES[-5:],  # a restart, the disk (which is the journals' here), the quota and the clock
    *[_mishap(mishap) for mishap in MISHAPS_OF_FULL],
]
_TROUBLES_WITH_MONGO: Final[list[Callable[[random.Random], Trouble | None]]] = [
    *_TROUBLES_OF_ALL,
    *[_bad_link(Link.MONGO)] * 2,
    *[_mishap_of_mongo(mishap) for mishap in MISHAPS_OF_MONGO],
]

"""One failure after the other, each alone and under load: what still works meanwhile, and what came of every message.

The rows are those of the protocol's table of what must hold with any one thing gone. Each is measured on the same
installation, which comes to rest in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from rise.capabilities import CapabilityStatus
from rise.clock import Clock, SystemClock
from rise.testing.faults.alarms import ALARM_OF, Alarms
from rise.testing.faults.books import commit, read_books
from rise.testing.faults.drill import is_moving
from rise.testing.faults.ground import GROUND_LOOK_SECONDS, Ground, drill_ground
from rise.testing.faults.order import Order
from rise.testing.faults.proxy import LinkFault
from rise.testing.faults.schedule import MISHAPS_OF_MONGO, Link, Mishap
from rise.testing.faults.seen import compare
from rise.testing.faults.table import Row, Table
from rise.testing.faults.traffic import People
from rise.testing.telegram import TelegramStandIn

Failure = Callable[[Ground], AbstractAsyncContextManager[None]]
OnRow = Callable[[int, int], None]

CHATS: Final = 40
WARM_SECONDS: Final = 2.0
WELL_SECONDS_MAX: Final = 120.0
_OURS: Final = frozenset({"admission", "disk", "ledger", "mongo", "pipeline", "rabbitmq", "redis", "worker"})
"""Capabilities that follow what happens here. The webhook's is what Telegram says of the past, asked once a minute."""


@dataclass(frozen=True, slots=True)
class Single:
    """A row: what fails, and what must go on meanwhile."""

    name: str
    failure: Failure
    accepts: bool = True
    """False: nothing may be promised; people are told when to come again."""
    executes: bool | None = True
    """None: not promised, and not forbidden."""
    alarm: str | None = None
    """The store of which something has to be said."""


# --- what fails -------------------------------------------------------------------------------------------


def befalls(*mishaps: Mishap) -> Failure:
    @asynccontextmanager
    async def failure(ground: Ground) -> AsyncIterator[None]:
        assert ground.stores is not None
        async with AsyncExitStack() as stack:
            for mishap in mishaps:
                await stack.enter_async_context(ground.stores.befall(mishap))
            yield

    return failure


@asynccontextmanager
async def gateway_killed(ground: Ground) -> AsyncIterator[None]:
    await ground.rise.kill(worker=False)
    yield
    await ground.rise.start()


@asynccontextmanager
async def worker_killed(ground: Ground) -> AsyncIterator[None]:
    await ground.rise.kill(gateway=False)
    yield  # its gateway starts it again


@asynccontextmanager
async def all_killed(ground: Ground) -> AsyncIterator[None]:
    await ground.kill()
    yield
    await _start_all(ground)


async def _start_all(ground: Ground) -> None:
    await ground.rise.add_worker()
    for gateway in ground.gateways:
        await gateway.start()


@asynccontextmanager
async def journal_disk_full(ground: Ground) -> AsyncIterator[None]:
    assert ground.disk is not None
    # SQLite goes on in the room that it has: what it cannot do is grow.
    ground.disk.fill()
    try:
        yield
    finally:
        ground.disk.free()


@asynccontextmanager
async def journal_disk_read_only(ground: Ground) -> AsyncIterator[None]:
    """It has met an error. To be repaired while nothing uses it, so everything is killed and started again."""
    assert ground.disk is not None
    await ground.disk.fail()
    try:
        yield
    finally:
        await ground.kill()
        await ground.disk.mend()
        await _start_all(ground)


@asynccontextmanager
async def platform_unreachable(ground: Ground) -> AsyncIterator[None]:
    ground.links[Link.API].apply(LinkFault.reset())
    try:
        yield
    finally:
        ground.links[Link.API].heal()


def together(*failures: Failure) -> Failure:
    @asynccontextmanager
    async def failure(ground: Ground) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for one in failures:
                await stack.enter_async_context(one(ground))
            yield

    return failure


def _redis(mishap: Mishap) -> Single:
    return Single(str(mishap), befalls(mishap), executes=None, alarm=ALARM_OF.get(mishap))


def _rabbit(mishap: Mishap) -> Single:
    return Single(str(mishap), befalls(mishap), alarm=ALARM_OF.get(mishap))


SINGLES: Final = (
    Single("a gateway killed -9", gateway_killed),
    Single("a worker killed -9", worker_killed),
    Single("every process killed -9", all_killed, accepts=False, executes=None),
    _redis(Mishap.REDIS_KILLED),
    _redis(Mishap.REDIS_FROZEN),
    _redis(Mishap.REDIS_FULL),
    _redis(Mishap.REDIS_READ_ONLY),
    Single(str(Mishap.REDIS_EMPTIED), befalls(Mishap.REDIS_EMPTIED), alarm="redis"),
    Single(str(Mishap.REDIS_STREAM_DELETED), befalls(Mishap.REDIS_STREAM_DELETED)),
    _rabbit(Mishap.RABBIT_KILLED),
    _rabbit(Mishap.RABBIT_FROZEN),
    _rabbit(Mishap.RABBIT_MEMORY_ALARM),
    _rabbit(Mishap.RABBIT_DISK_ALARM),
    _rabbit(Mishap.RABBIT_QUEUE_DELETED),
    Single("journal disk full", journal_disk_full, alarm="disk"),
    Single("journal disk read-only", journal_disk_read_only, alarm="disk"),
    Single("Telegram unreachable", platform_unreachable, executes=None),
    Single(str(Mishap.BOTH_UNREACHABLE), befalls(Mishap.BOTH_UNREACHABLE), accepts=False, executes=None, alarm="redis"),
    Single(
        "Redis killed -9, journal disk read-only",
        together(befalls(Mishap.REDIS_KILLED), journal_disk_read_only),
        accepts=False,
        executes=None,
        alarm="redis",
    ),
    Single(
        "RabbitMQ frozen, journal disk read-only",
        together(befalls(Mishap.RABBIT_FROZEN), journal_disk_read_only),
        accepts=False,
        executes=None,
        alarm="rabbitmq",
    ),
)
SINGLES_OF_MONGO: Final = tuple(
    # What runs meanwhile keeps its replies until its result is written.
    Single(str(mishap), befalls(mishap), executes=None, alarm=ALARM_OF.get(mishap))
    for mishap in MISHAPS_OF_MONGO
)
"""Rows of the mongo profile, beside those of the full one."""


def singles_of(order: Order) -> Sequence[Single]:
    return (*SINGLES, *SINGLES_OF_MONGO) if order.mongo else SINGLES


# --- measuring --------------------------------------------------------------------------------------------


async def measure_singles(
    order: Order,
    directory: Path,
    *,
    seconds: float,
    singles: Sequence[Single] | None = None,
    on_row: OnRow = lambda done, of: None,
) -> Table:
    """Each for so many seconds, in that directory, which is to be empty. `singles`: unset, all of the profile."""
    clock = SystemClock()
    singles = singles_of(order) if singles is None else singles
    async with drill_ground(order, directory) as ground, Alarms(ground.rise.log_path, clock) as alarms:
        measuring = _Measuring(order, ground, alarms, clock, seconds)
        rows, left_out = [], {}
        for number, single in enumerate(singles, start=1):
            if ground.disk is None and "journal disk" in single.name:
                left_out[single.name] = ground.no_disk_because
            else:
                rows.append(await measuring.measure(single))
            on_row(number, len(singles))
        books = await read_books(ground.rise)
        return Table(
            rows=rows,
            left_out=left_out,
            seed=order.seed,
            commit=await commit(),
            per_second=order.messages_per_second,
            seconds=seconds,
            appendfsync=str(order.appendfsync),
            command=f"rise drill --table {' '.join(order.profile_words)} --seed {order.seed}"
            f" --rate {order.messages_per_second:g} --seconds {seconds:g}",
            finished=books.finished,
            unaccounted=int(books.audit["unaccounted"]),
            audit=books.verdict,
        )


@dataclass(frozen=True, slots=True)
class _Mark:
    """A moment on both clocks."""

    at: float
    on_platform: float


@dataclass(slots=True)
class _Measuring:
    order: Order
    ground: Ground
    alarms: Alarms
    clock: Clock
    seconds: float
    people: People = field(init=False)

    def __post_init__(self) -> None:
        order = self.order
        self.people = People(self.ground.telegram, self.clock, chats=CHATS, per_second=order.messages_per_second)

    async def measure(self, single: Single) -> Row:
        telegram, questions = self.ground.telegram, self.people.questions
        asked, sent, delivered = len(questions), len(telegram.sent), len(telegram.deliveries)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.people.write(stop))
            await self.clock.sleep(WARM_SECONDS)
            struck_at = self.clock.monotonic()
            async with single.failure(self.ground):
                began = self._mark()
                await self.clock.sleep(self.seconds / 2)
                half = self._mark()  # by now it has been noticed: what is done from here on is what goes on
                await self.clock.sleep(self.seconds / 2)
                ended = self._mark()
            healed = self._mark()
            await self.clock.sleep(WARM_SECONDS / 2)
            stop.set()
        well_after = await self._until_well(healed)
        alarm = self._alarm_after(single, struck_at)
        books = await read_books(self.ground.rise)
        deliveries = telegram.deliveries[delivered:]
        seen = compare(questions[asked:], telegram.sent[sent:], books.parked)
        during = [one for one in deliveries if began.on_platform <= (one.ended_at or 0) < ended.on_platform]
        refused = [one for one in during if one.status == 503]
        return Row(
            name=single.name,
            promises_accepting=single.accepts,
            promises_executing=single.executes,
            alarm_is_due=single.alarm is not None,
            asked=len(questions) - asked,
            accepted_per_second=sum(one.status == 200 for one in during) / (ended.at - began.at),
            accepts=any(one.status == 200 and (one.ended_at or 0) >= half.on_platform for one in during),
            refused=len(refused),
            refused_without_time=sum(not (one.retry_after_header or "").isdigit() for one in refused),
            executes=_has_sent(telegram, sent, half, ended),
            lost=len(seen.lost),
            repeated_marked=seen.repeated_marked,
            repeated_unmarked=seen.repeated_unmarked + len(seen.strange),
            order_breaks=len(seen.order_breaks),
            well_after_seconds=well_after,
            alarm_after_seconds=alarm,
        )

    def _mark(self) -> _Mark:
        return _Mark(self.clock.monotonic(), self.ground.telegram.now())

    async def _until_well(self, since: _Mark) -> float | None:
        """Everything is answered and every capability is there. None: not within two minutes."""
        while self.clock.monotonic() - since.at < WELL_SECONDS_MAX:
            if not await is_moving(self.ground, self.people.questions) and await self._is_well():
                return self.clock.monotonic() - since.at
            await self.clock.sleep(GROUND_LOOK_SECONDS)
        return None

    async def _is_well(self) -> bool:
        async with aiohttp.ClientSession() as session:
            for gateway in self.ground.gateways:
                try:
                    async with session.get(f"{gateway.url}/healthz") as response:
                        capabilities = (await response.json())["capabilities"]
                except (aiohttp.ClientError, OSError):
                    return False
                if any(
                    capabilities[name]["status"] != CapabilityStatus.AVAILABLE
                    for name in _OURS.intersection(capabilities)
                ):
                    return False
        return True

    def _alarm_after(self, single: Single, struck_at: float) -> float | None:
        if single.alarm is None:
            return None
        self.alarms.catch_up()
        alarm = self.alarms.since(struck_at, single.alarm)
        return None if alarm is None else alarm.at - struck_at


def _has_sent(telegram: TelegramStandIn, first: int, since: _Mark, until: _Mark) -> bool:
    return any(since.on_platform <= message.at < until.on_platform for message in telegram.sent[first:])

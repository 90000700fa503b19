"""A drill: people write, the nemesis works, everything heals and comes to rest, and then it is counted.

What people saw is taken from the platform's stand-in, what Rise says of itself from its audit; neither is believed
alone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from rise.clock import Clock, SystemClock
from rise.envelope import Status
from rise.testing.faults.alarms import Alarms
from rise.testing.faults.books import PlatformTime, commit, read_books, windows
from rise.testing.faults.ground import GROUND_LOOK_SECONDS, PLATFORM_SPEED, Ground, drill_ground
from rise.testing.faults.nemesis import Nemesis
from rise.testing.faults.order import Order
from rise.testing.faults.report import CopiesSeen, DrillReport, Window
from rise.testing.faults.schedule import Cycle, cycles
from rise.testing.faults.seen import Question, compare
from rise.testing.faults.traffic import FORGED_TEXT, Forger, People
from rise.testing.installation import Installation

OnCycle = Callable[[int, int], None]
"""Told after each cycle: how many are done, of how many; in seconds, if the drill is as long as that."""

REST_SECONDS_MAX: Final = 240.0
"""Backoffs and the supervisor's sweep included. More than enough, and waited for only if it is needed."""
FORGED_PER_SECOND: Final = 5.0
MOVING: Final = (Status.PENDING, Status.PROCESSING, Status.REPLYING)


async def run_drill(order: Order, directory: Path, on_cycle: OnCycle = lambda done, of: None) -> DrillReport:
    """In that directory, which is to be empty. If a promise was broken, it holds the evidence afterwards."""
    clock = SystemClock()
    async with drill_ground(order, directory) as ground, Alarms(ground.rise.log_path, clock) as alarms:
        drill = Drill(order, ground, alarms, clock)
        await drill.trouble(on_cycle)
        await drill.rest()
        report = await drill.report()
        if report.broken():
            drill.keep_evidence(report, directory)
    return report


class CountedLate:
    """What Rise counts of messages that came after a later one of their chat. Redis counts, and may be emptied."""

    def __init__(self) -> None:
        self.total = 0
        self._last = 0

    def hear(self, stats: Mapping[str, Any]) -> None:
        count = stats.get("outOfOrder")
        if count is not None:
            self.total += count - self._last if count >= self._last else count
            self._last = count


class Drill:
    """Its phases, in order."""

    def __init__(self, order: Order, ground: Ground, alarms: Alarms, clock: Clock) -> None:
        self._order = order
        self._ground = ground
        self._alarms = alarms
        self._clock = clock
        self._began = clock.monotonic()
        self._platform_time = PlatformTime(ground.telegram, clock, speed=PLATFORM_SPEED)
        self._nemesis = Nemesis(ground, clock)
        self._people = People(ground.telegram, clock, chats=order.chats, per_second=order.messages_per_second)
        self._late = CountedLate()
        self._forger = Forger(f"{ground.rise.url}/telegram/webhook", clock, per_second=FORGED_PER_SECOND)

    async def trouble(self, on_cycle: OnCycle) -> None:
        """People write for as long as things go wrong, and then everything is healed."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._people.write(stop))
            group.create_task(self._forger.forge(stop))
            for number, cycle in enumerate(self._cycles(), start=1):
                await self._nemesis.cycle(cycle)
                on_cycle(*self._progress(number))
                self._late.hear(await stats_of(self._ground.rise))
            await self._nemesis.heal()
            stop.set()

    async def rest(self) -> None:
        """Until nothing moves any more. What still does when patience ends is counted as open."""
        until = self._clock.monotonic() + REST_SECONDS_MAX
        while self._clock.monotonic() < until and await self._is_moving():
            await self._clock.sleep(GROUND_LOOK_SECONDS)  # across processes there is no signal to wait for

    def keep_evidence(self, report: DrillReport, directory: Path) -> None:
        """Beside the log: the report, what was done when, and the data, if their disk goes."""
        (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (directory / "diary").write_text("\n".join(self._nemesis.done.diary))
        if self._ground.disk is not None:
            not_evidence = shutil.ignore_patterns("*.sock", "ballast", "lost+found")
            shutil.copytree(self._ground.disk.where, directory / "from-the-disk", ignore=not_evidence)

    async def report(self) -> DrillReport:
        telegram, done, questions = self._ground.telegram, self._nemesis.done, self._people.questions
        books = await read_books(self._ground.rise)
        seen = compare(questions, telegram.sent, books.parked)
        forged = self._forger.answers
        stats = await stats_of(self._ground.rise)
        self._late.hear(stats)
        accepted = _accepted(stats) if self._order.full else int(books.audit["accepted"])
        return DrillReport(
            profile=self._order.profile,
            mode=self._order.mode,
            seed=self._order.seed,
            commit=await commit(),
            command=self._order.command,
            seconds=self._clock.monotonic() - self._began,
            kill_cycles=done.kill_cycles,
            faults=dict(done.applied),
            left_out=done.left_out,
            sent=len(questions),
            deliveries=dict(Counter(str(each.status or "with nothing") for each in telegram.deliveries)),
            not_taken=len(telegram.pending()) + len(telegram.dropped()),
            accepted=accepted,
            finished=sum(stats.get("finished", {}).values()) if self._order.full else books.finished,
            parked=dict(Counter(books.parked.values())),
            open=books.audit["pending"],
            lost=seen.lost,
            resent=stats.get("outbox", {}).get("resent", 0),
            repeated_marked=seen.repeated_marked,
            repeated_unmarked=seen.repeated_unmarked,
            repeated_too_often=seen.repeated_too_often,
            order_breaks=seen.order_breaks,
            late=self._late.total,
            strange=seen.strange,
            forged=forged.total(),
            forged_accepted=sum(forged[status] for status in forged if 200 <= status <= 299)
            + sum(FORGED_TEXT.upper() in said for said in seen.strange),
            window=Window.of(list(self._windows())),
            gave_up=done.gave_up,
            audit=books.verdict,
            unaccounted=int(books.audit["unaccounted"]),
            copies=CopiesSeen.of(self._alarms, done.copies_gone) if self._order.full else None,
        )

    def _cycles(self) -> Iterator[Cycle]:
        order = self._order
        schedule = cycles(order.seed, troubles=order.troubles, full=order.full, mongo=order.mongo)
        if self._order.schedule is not None:
            yield from self._order.schedule
            return
        if self._order.minutes is None:
            yield from islice(schedule, self._order.cycles)
            return
        until = self._clock.monotonic() + self._order.minutes * 60
        while self._clock.monotonic() < until:
            yield next(schedule)

    def _progress(self, number: int) -> tuple[int, int]:
        if self._order.minutes is None:
            return number, self._order.cycles
        return int(self._clock.monotonic() - self._began), int(self._order.minutes * 60)

    async def _is_moving(self) -> bool:
        return await is_moving(self._ground, self._people.questions)

    def _windows(self) -> Iterator[float]:
        """Measured by the wall clock, and so only while that was right."""
        wrong = self._nemesis.done.clock_wrong
        measured = windows(
            self._ground.rise.log_path, self._people.questions, self._ground.telegram, self._platform_time
        )
        for began, seconds in measured:
            if not any(since - 1 <= began <= until + 1 for since, until in wrong):
                yield seconds


async def is_moving(ground: Ground, questions: Sequence[Question]) -> bool:
    """Something is still to be taken, run or said."""
    by_status = (await stats_of(ground.rise)).get("byStatus")
    # What it does not say is not known to be at rest.
    if ground.telegram.pending() or by_status is None or any(map(by_status.get, MOVING)):
        return True
    # What only the copies hold is not counted there; all that is not answered must at least be parked.
    seen = compare(questions, ground.telegram.sent, parked=())
    return ground.stores is not None and len(seen.lost) > by_status.get(Status.SUSPENDED, 0)


def _accepted(stats: dict[str, Any]) -> int:
    """What is open and what the ledger knows to have ended. Receipts are no measure: Redis was emptied of some."""
    return int(sum(stats.get("byStatus", {}).values()) + sum(stats.get("finished", {}).values()))


async def stats_of(installation: Installation) -> dict[str, Any]:
    """What the gateway counts; nothing if it does not answer."""
    try:
        async with (
            aiohttp.ClientSession(headers=installation.headers) as session,
            session.get(f"{installation.url}/internal/tasks/stats") as response,
        ):
            return dict((await response.json()).get("data") or {})  # null while a store is away
    except (aiohttp.ClientError, OSError):
        return {}

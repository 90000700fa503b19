"""A drill: people write, the nemesis works, everything heals and comes to rest, and then it is counted.

What people saw is taken from the platform's stand-in, what Rise says of itself from its audit; neither is believed
alone.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from rise.capabilities import CapabilityStatus
from rise.clock import Clock, SystemClock
from rise.envelope import Status
from rise.testing.faults.books import PlatformTime, commit, read_books, windows
from rise.testing.faults.disk import Disk, DiskRefused
from rise.testing.faults.nemesis import Ground, Nemesis
from rise.testing.faults.proxy import FaultProxy
from rise.testing.faults.report import DrillReport, Window
from rise.testing.faults.schedule import Cycle, Link, cycles
from rise.testing.faults.seen import compare
from rise.testing.faults.traffic import FORGED_TEXT, Forger, People
from rise.testing.faults.wall_clock import WallClock
from rise.testing.installation import READY_SECONDS, Installation
from rise.testing.telegram import SendRates, TelegramStandIn

OnCycle = Callable[[int, int], None]
"""Told after each cycle: how many are done, of how many; in seconds, if the drill is as long as that."""

PLATFORM_SPEED: Final = 20.0
"""The platform's clock runs so much faster than ours: what it repeats after seconds comes in fractions of one."""
REST_SECONDS_MAX: Final = 240.0
"""Backoffs and the supervisor's sweep included. More than enough, and waited for only if it is needed."""
LOOK_SECONDS: Final = 0.25
CLAIM_SECONDS: Final = 2.0
STALL_SECONDS: Final = 3.0
STOP_SECONDS: Final = 5.0
FORGED_PER_SECOND: Final = 5.0
_MOVING: Final = (Status.PENDING, Status.PROCESSING, Status.REPLYING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do."""

    seed: int
    cycles: int = 30
    minutes: float | None = None
    """Instead of a number of cycles."""
    mode: str = "webhook"
    """How updates come in: `webhook` or `polling`."""
    troubles: bool = True
    """False: kills alone."""
    chats: int = 8
    messages_per_second: float = 25.0
    schedule: Sequence[Cycle] | None = None
    """Exactly this, whatever the seed."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the installation, instead of those of a drill."""

    @property
    def command(self) -> str:
        length = f"--cycles {self.cycles}" if self.minutes is None else f"--minutes {self.minutes:g}"
        words = ["rise drill", f"--seed {self.seed}", length]
        words += ["--mode polling"] if self.mode == "polling" else []
        words += ["--kills-only"] if not self.troubles else []
        return " ".join(words)


async def run_drill(order: Order, directory: Path, on_cycle: OnCycle = lambda done, of: None) -> DrillReport:
    """In that directory, which is to be empty. If a promise was broken, it holds the evidence afterwards."""
    async with drill_ground(order, directory) as ground:
        drill = Drill(order, ground, SystemClock())
        await drill.trouble(on_cycle)
        await drill.rest()
        report = await drill.report()
        if report.broken():
            drill.keep_evidence(report, directory)
    return report


class Drill:
    """Its phases, in order."""

    def __init__(self, order: Order, ground: Ground, clock: Clock) -> None:
        self._order = order
        self._ground = ground
        self._clock = clock
        self._began = clock.monotonic()
        self._platform_time = PlatformTime(ground.telegram, clock, speed=PLATFORM_SPEED)
        self._nemesis = Nemesis(ground, clock)
        self._people = People(ground.telegram, clock, chats=order.chats, per_second=order.messages_per_second)
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
            await self._nemesis.heal()
            stop.set()

    async def rest(self) -> None:
        """Until nothing moves any more. What still does when patience ends is counted as open."""
        until = self._clock.monotonic() + REST_SECONDS_MAX
        while self._clock.monotonic() < until and await self._is_moving():
            await self._clock.sleep(LOOK_SECONDS)  # across processes there is no signal to wait for

    def keep_evidence(self, report: DrillReport, directory: Path) -> None:
        """Beside the log: the report, what was done when, and the data, if their disk goes."""
        (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (directory / "diary").write_text("\n".join(self._nemesis.done.diary))
        if self._ground.disk is not None:
            shutil.copytree(self._ground.rise.data_dir, directory / "data", ignore=shutil.ignore_patterns("*.sock"))

    async def report(self) -> DrillReport:
        telegram, done, questions = self._ground.telegram, self._nemesis.done, self._people.questions
        books = await read_books(self._ground.rise)
        seen = compare(questions, telegram.sent, books.parked)
        forged = self._forger.answers
        return DrillReport(
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
            accepted=books.audit["accepted"],
            finished=books.finished,
            parked=dict(Counter(books.parked.values())),
            open=books.audit["pending"],
            lost=seen.lost,
            resent=(await self._stats()).get("outbox", {}).get("resent", 0),
            repeated_marked=seen.repeated_marked,
            repeated_unmarked=seen.repeated_unmarked,
            repeated_too_often=seen.repeated_too_often,
            order_breaks=seen.order_breaks,
            strange=seen.strange,
            forged=forged.total(),
            forged_accepted=sum(forged[status] for status in forged if 200 <= status <= 299)
            + sum(FORGED_TEXT.upper() in said for said in seen.strange),
            window=Window.of(list(self._windows())),
            gave_up=done.gave_up,
            audit="clean" if books.is_clean else json.dumps(books.audit),
        )

    def _cycles(self) -> Iterator[Cycle]:
        schedule = cycles(self._order.seed, troubles=self._order.troubles)
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
        by_status = (await self._stats()).get("byStatus")
        # What it does not say is not known to be at rest.
        return bool(self._ground.telegram.pending()) or by_status is None or any(map(by_status.get, _MOVING))

    async def _stats(self) -> dict[str, Any]:
        """What the gateway counts; nothing if it does not answer."""
        installation = self._ground.rise
        try:
            async with (
                aiohttp.ClientSession(headers=installation.headers) as session,
                session.get(f"{installation.url}/internal/tasks/stats") as response,
            ):
                return dict((await response.json()).get("data", {}))
        except (aiohttp.ClientError, OSError):
            return {}

    def _windows(self) -> Iterator[float]:
        """Measured by the wall clock, and so only while that was right."""
        wrong = self._nemesis.done.clock_wrong
        measured = windows(
            self._ground.rise.log_path, self._people.questions, self._ground.telegram, self._platform_time
        )
        for began, seconds in measured:
            if not any(since - 1 <= began <= until + 1 for since, until in wrong):
                yield seconds


@asynccontextmanager
async def drill_ground(order: Order, directory: Path) -> AsyncIterator[Ground]:
    """An installation with all that is around it, started; nothing of it is left running."""
    async with AsyncExitStack() as stack:
        telegram = await stack.enter_async_context(TelegramStandIn(time_scale=PLATFORM_SPEED))
        telegram.change_send_rates(SendRates.unlimited())
        disk, no_disk_because = await _disk(stack, directory)
        installation = Installation((disk.where if disk else directory) / "data", app="rise.testing.faults.bot")
        installation.log_path = directory / "rise.log"  # not on the disk that fills up
        wall_clock = WallClock(directory / "wall-clock")
        installation.surroundings = wall_clock.surroundings
        links = {
            Link.WEBHOOK: await stack.enter_async_context(FaultProxy(installation.port)),
            Link.API: await stack.enter_async_context(FaultProxy(urlsplit(telegram.url).port or 0)),
        }
        installation.configure(
            telegram_token=telegram.token,
            telegram_api_base=links[Link.API].url,
            telegram_mode=order.mode,
            public_url=links[Link.WEBHOOK].url if order.mode == "webhook" else None,
            telegram_rate_chat=10_000,
            telegram_rate_bot=10_000,
            late_after_seconds=0,
            claim_seconds=CLAIM_SECONDS,
            worker_stall_seconds=STALL_SECONDS,
            stop_seconds=STOP_SECONDS,
        )
        installation.configure(**order.settings)
        await stack.enter_async_context(installation)
        await installation.add_worker()
        await _until_working(installation, SystemClock())
        yield Ground(installation, telegram, links, wall_clock, disk, no_disk_because)


async def _until_working(installation: Installation, clock: Clock) -> None:
    """Until the gateway's own worker is up; what happens before is another matter."""
    async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{installation.url}/healthz") as response:
                worker = (await response.json())["capabilities"].get("worker", {})
            if worker.get("status") == CapabilityStatus.AVAILABLE:
                return
            await clock.sleep(LOOK_SECONDS)


async def _disk(stack: AsyncExitStack, directory: Path) -> tuple[Disk | None, str]:
    try:
        return await stack.enter_async_context(Disk(directory)), ""
    except DiskRefused as error:
        return None, str(error)

"""Does to an installation what a schedule says: its processes, its links, its disk, its wall clock.

Promises: nothing is touched that was not started or made for the drill; processes are held by descriptors while
they are stopped, so that a signal never reaches another that was given the number; whatever was done is undone
when its time is over, or the drill. What is not permitted here is left out, and said.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from rise.clock import Clock, iso
from rise.testing.faults.alarms import ALARM_OF
from rise.testing.faults.disk import DiskRefused, give_back_quota, use_up_quota
from rise.testing.faults.ground import Ground
from rise.testing.faults.schedule import (
    BadLink,
    ClockStep,
    Cycle,
    FailingDisk,
    Freeze,
    FullDisk,
    Kill,
    Mishap,
    Moment,
    NoQuota,
    Restart,
    StoreMishap,
    Trouble,
    Victim,
)
from rise.testing.installation import Installation, InstallationEnded
from rise.testing.telegram import TelegramStandIn

MOMENT_SECONDS_MAX: Final = 2.0
"""The moment to kill at may not come, because something else holds everything up: then it is now."""
STOP_SECONDS_MAX: Final = 60.0
START_AGAIN_SECONDS: Final = 0.5
LOG_SHOWN_CHARS: Final = 2000


@dataclass(slots=True)
class CopyGone:
    """A trouble that takes a copy, of which something has to be said."""

    trouble: str
    subject: str
    at: float
    """By the monotonic clock."""


@dataclass(slots=True)
class Done:
    """What it did."""

    applied: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    kill_cycles: int = 0
    gave_up: list[str] = field(default_factory=list)
    """Processes that ended, would not start or would not stop, with the last words of the log."""
    clock_wrong: list[tuple[float, float]] = field(default_factory=list)
    """From when to when, in seconds since 1970."""
    copies_gone: list[CopyGone] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)
    """All of it, with its time."""


class Nemesis:
    """One cycle after the other."""

    def __init__(self, ground: Ground, clock: Clock) -> None:
        self._ground = ground
        self._clock = clock
        # Starting and stopping the gateway is done by one hand at a time.
        self._at_processes = asyncio.Lock()
        self.done = Done()

    async def cycle(self, cycle: Cycle) -> None:
        """A kill, and a trouble around it. Returns when both are over."""
        async with asyncio.TaskGroup() as group:
            if cycle.trouble is not None:
                group.create_task(self._inflict(cycle.trouble))
            if cycle.kill is not None:
                await self._kill(cycle.kill)

    async def heal(self) -> None:
        """Nothing is wrong any more, and everything runs."""
        for link in self._ground.links.values():
            link.heal()
        async with self._at_processes:
            await self._see_to_processes()

    # --- kills ---

    async def _kill(self, kill: Kill) -> None:
        await self._clock.sleep(kill.pause_seconds)
        async with self._at_processes:
            await self._see_to_processes()
            await self._come(kill.moment)
            # A worker that is down already is on its way back; then it is the other's turn.
            victim = kill.victim if self._pids(kill.victim) else Victim.ADDED
            self._note(f"kill -9 of the {victim}")
            self.done.kill_cycles += 1
            await self._kill_and_start(victim, wait=kill.awaits_start)

    async def _kill_and_start(self, victim: Victim, *, wait: bool) -> None:
        rise = self._ground.rise
        match victim:
            case Victim.ADDED:
                await rise.kill(gateway=False, worker=False, added=True)
                await rise.add_worker()
            case Victim.WORKER:
                await rise.kill(gateway=False)  # which starts it again
            case Victim.GATEWAY | Victim.BOTH:
                await rise.kill(worker=victim is Victim.BOTH)
                await self._start(rise, wait=wait)
            case Victim.SECOND:
                assert self._ground.second is not None
                await self._ground.second.kill()
                await self._start(self._ground.second, wait=wait)

    async def _come(self, moment: Moment) -> None:
        telegram = self._ground.telegram
        sent, asked = len(telegram.sent), len(telegram.deliveries)
        has_come: dict[Moment, Callable[[TelegramStandIn], bool]] = {
            Moment.ANY: lambda t: True,
            Moment.SENDING: lambda t: len(t.sent) > sent,
            Moment.ACCEPTING: lambda t: len(t.deliveries) > asked,
        }
        with suppress(TimeoutError):
            await telegram.wait_until(has_come[moment], timeout_seconds=MOMENT_SECONDS_MAX)

    async def _see_to_processes(self) -> None:
        """What ended by itself is started again, as a service manager does it, and remembered."""
        if not self._ground.rise.added_pids():
            self._remember("The added worker ended by itself")
            await self._ground.rise.add_worker()
        for gateway in self._ground.gateways:
            if gateway.pid is None:
                self._remember("The gateway ended by itself")
                await self._start(gateway, wait=True)

    async def _start(self, gateway: Installation, *, wait: bool) -> None:
        while True:
            try:
                await gateway.start(wait=wait)
                return
            except InstallationEnded:
                self._remember("The gateway did not start")
                await self._clock.sleep(START_AGAIN_SECONDS)

    # --- troubles ---

    async def _inflict(self, trouble: Trouble) -> None:
        match trouble:
            case BadLink(link, fault, seconds):
                self._note(trouble.name)
                self._ground.links[link].apply(fault)
                await self._clock.sleep(seconds)
                self._ground.links[link].heal()
            case Freeze(victim, seconds):
                await self._freeze(trouble, victim, seconds)
            case Restart(pause_seconds):
                await self._clock.sleep(pause_seconds)
                await self._restart(trouble)
            case NoQuota(seconds):
                await self._use_up_quota(trouble, seconds)
            case ClockStep(by_seconds, seconds):
                await self._step_clock(trouble, by_seconds, seconds)
            case FullDisk() | FailingDisk() if self._ground.disk is None:
                self.done.left_out[trouble.name] = self._ground.no_disk_because
            case StoreMishap(mishap, seconds):
                await self._befall(trouble, mishap, seconds)
            case FullDisk(seconds):
                await self._fill(trouble, seconds)
            case FailingDisk(seconds):
                await self._fail(trouble, seconds)

    async def _freeze(self, trouble: Freeze, victim: Victim, seconds: float) -> None:
        with frozen(self._pids(victim)) as count:
            if count:
                self._note(trouble.name)
                await self._clock.sleep(seconds)

    async def _befall(self, trouble: StoreMishap, mishap: Mishap, seconds: float) -> None:
        stores = self._ground.stores
        assert stores is not None, "a mishap of servers, where there are none"
        self._note(trouble.name)
        began = self._clock.monotonic()  # the alarm may be raised before the command that caused it has returned
        async with stores.befall(mishap):
            if mishap in ALARM_OF:
                self.done.copies_gone.append(CopyGone(trouble.name, ALARM_OF[mishap], began))
            await self._clock.sleep(seconds)

    async def _restart(self, trouble: Restart) -> None:
        async with self._at_processes:
            await self._see_to_processes()
            self._note(trouble.name)
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    code = await self._ground.rise.stop()
            except TimeoutError:
                self._remember(f"The gateway did not stop within {STOP_SECONDS_MAX:g} s")
                await self._ground.rise.kill()
            else:
                # By the signal itself: so early in its start that it had not yet asked to be told.
                if code not in (0, -signal.SIGTERM):
                    self._remember(f"The gateway stopped with exit code {code}")
            await self._start(self._ground.rise, wait=True)

    async def _use_up_quota(self, trouble: NoQuota, seconds: float) -> None:
        self._note(trouble.name)
        use_up_quota(self._ground.pids())
        try:
            await self._clock.sleep(seconds)
        finally:
            give_back_quota(self._ground.pids())
            # And what a parent had started between being listed and having it back.
            give_back_quota(self._ground.pids())

    async def _step_clock(self, trouble: ClockStep, by_seconds: float, seconds: float) -> None:
        self._note(trouble.name)
        began = self._clock.now().timestamp()
        self._ground.wall_clock.step(by_seconds)
        try:
            await self._clock.sleep(seconds)
        finally:
            self._ground.wall_clock.step(0.0)
            self.done.clock_wrong.append((began, self._clock.now().timestamp()))

    async def _fill(self, trouble: FullDisk, seconds: float) -> None:
        assert self._ground.disk is not None
        self._note(trouble.name)
        self._ground.disk.fill()
        if self._ground.stores is not None:
            self.done.copies_gone.append(CopyGone(trouble.name, "disk", self._clock.monotonic()))
        try:
            await self._clock.sleep(seconds)
        finally:
            self._ground.disk.free()

    async def _fail(self, trouble: FailingDisk, seconds: float) -> None:
        """A disk is repaired while nothing uses it: all processes go down with kill -9, and come back."""
        assert self._ground.disk is not None
        rise = self._ground.rise
        async with self._at_processes:
            try:
                await self._ground.disk.fail()
            except DiskRefused as error:
                self.done.left_out[trouble.name] = str(error)
                return
            self._note(trouble.name)
            await self._clock.sleep(seconds)
            await self._ground.kill()
            await self._ground.disk.mend()
            await rise.add_worker()
            for gateway in self._ground.gateways:
                await self._start(gateway, wait=True)

    # --- details ---

    def _pids(self, victim: Victim) -> list[int]:
        rise = self._ground.rise
        gateway = [rise.pid] if rise.pid is not None else []
        match victim:
            case Victim.GATEWAY:
                return gateway
            case Victim.WORKER:
                return rise.worker_pids()
            case Victim.BOTH:
                return gateway + rise.worker_pids()
            case Victim.ADDED:
                return rise.added_pids()
            case Victim.SECOND:
                second = self._ground.second
                return [] if second is None else second.pids()

    def _note(self, name: str) -> None:
        self.done.applied[name] += 1
        self._write(name)

    def _remember(self, what: str) -> None:
        self.done.gave_up.append(f"{what}: …{self._ground.rise.log()[-LOG_SHOWN_CHARS:]}")
        self._write(what)

    def _write(self, what: str) -> None:
        self.done.diary.append(f"{iso(self._clock.now())} {what}")


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[int]:
    """Stopped for the length of the block. Yields how many are."""
    held = []
    for pid in pids:
        with suppress(ProcessLookupError):
            held.append(os.pidfd_open(pid))
    try:
        yield sum(_send(process, signal.SIGSTOP) for process in held)
    finally:
        for process in held:
            _send(process, signal.SIGCONT)
            os.close(process)


def _send(process: int, which: signal.Signals) -> bool:
    """False: it has ended, and its number may be another's by now."""
    try:
        signal.pidfd_send_signal(process, which)
    except ProcessLookupError:
        return False
    return True

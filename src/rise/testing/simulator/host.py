"""What the processes of one simulated machine share: its clocks and its boot."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - this is a clock
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rise.testing.clock import START

if TYPE_CHECKING:
    from rise.testing.simulator.loop import Process, Timeline


class Host:
    """One machine. `wall_offset` seconds are what its wall clock is wrong by; set it to step that clock."""

    def __init__(self, timeline: Timeline, name: str = "host", *, up_seconds: float = 1000.0) -> None:
        self.name = name
        self.wall_offset = 0.0
        self.processes: list[Process] = []  # those alive, the oldest first
        self._timeline = timeline
        self._booted_at = timeline.now - up_seconds
        self._boots = 1

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self._boots}"

    @property
    def uptime_seconds(self) -> float:
        return self._timeline.now - self._booted_at

    def reboot(self, *, up_seconds: float = 20.0) -> None:
        """The power went: every process here is dead, and the boot clock starts anew. The wall clock goes on.

        `up_seconds` is what the boot clock shows now, since booting takes a while before anything of ours runs.
        """
        for process in list(self.processes):
            process.kill()
        self._booted_at = self._timeline.now - up_seconds
        self._boots += 1


class SimClock:
    """`rise.clock.Clock` as one process sees it. Its dice are the caller's, so that a seed decides them."""

    def __init__(self, process: Process, dice: random.Random) -> None:
        self.random = dice
        self._timeline = process.timeline
        self._host = process.host

    @property
    def boot_id(self) -> str:
        return self._host.boot_id

    def now(self) -> datetime:
        return START + timedelta(seconds=self._timeline.now + self._host.wall_offset)

    def monotonic(self) -> float:
        return self._host.uptime_seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # noqa: TID251 - this is a clock

"""The only place where time, sleep and randomness come from.

Everything else is given a `Clock`, so that tests and the simulator decide what time it is.

Refuses: to tell by the wall clock who owns something, or for how long. That one may be set; `monotonic` is not.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

TICK_SECONDS: Final = 0.001
"""Less is not waited for: the difference of two times may be too small for a clock to pass."""


class Clock(Protocol):
    """Time as one host sees it."""

    random: random.Random

    @property
    def boot_id(self) -> str:
        """Names this boot of the host: `monotonic` values compare only within one."""
        ...

    def now(self) -> datetime:
        """Aware wall-clock time. May jump; never used to decide who owns something."""
        ...

    def monotonic(self) -> float:
        """Seconds since the host booted, time asleep included; the same for every process of the host."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real one."""

    def __init__(self) -> None:
        self.random = random.Random()

    @cached_property
    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        # BOOTTIME, not MONOTONIC: a laptop that slept must find its claims expired.
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def is_hosts_own(zone: str) -> bool:
    """Whether a time zone of this name is another one on each host, or is not there on some, or counts leap seconds,
    which clocks do not show: files that lie beside those of IANA's zones."""
    return zone.lower().startswith(("localtime", "posixrules", "posix/", "right/"))


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970, as stored."""
    return int(moment.timestamp() * 1000)


def from_epoch_ms(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def iso(moment: datetime) -> str:
    """`2025-11-08T07:30:12.123Z`, the one form in which Rise writes times."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

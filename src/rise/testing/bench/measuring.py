"""What the kernel says about a process, and how numbers of several rounds become one with its spread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from rise.clock import SystemClock

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_SYNC_BYTES: Final = b"x" * 1536


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far, all its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Memory of the process that is its own: what it shares with others and could be read again is not counted."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


class Spread(msgspec.Struct, frozen=True):
    """The middle of several rounds, and how far they lay apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def shown(self, digits: int = 2) -> str:
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f} – {self.high:,.{digits}f}]".replace(",", " ")


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Round by round, so that a slow minute of the machine slows both sides of a ratio."""
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])


def syncs_per_second(directory: Path, *, seconds: float = 0.5) -> float:
    """How often the disk makes 1.5 KB durable: what every durable figure stands on."""
    clock = SystemClock()
    path = directory / "sync-probe"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        count, began = 0, clock.monotonic()
        while (passed := clock.monotonic() - began) < seconds:
            os.write(fd, _SYNC_BYTES)
            os.fdatasync(fd)
            count += 1
        return count / passed
    finally:
        os.close(fd)
        path.unlink()

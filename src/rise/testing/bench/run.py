"""All parts in order, or the ones asked for."""

from __future__ import annotations

import os
import platform
import pstats
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.testing.bench import accepting, executing, holding, starting
from rise.testing.bench.measuring import syncs_per_second
from rise.testing.bench.report import Report
from rise.testing.bench.sizes import Sizes

Measure = Callable[[Path, Sizes, Report], Awaitable[None]]

PARTS: Final[dict[str, Measure]] = {
    accepting.PART: accepting.measure,
    executing.PART: executing.measure,
    starting.PART: starting.measure,
    holding.PART: holding.measure,
}
_PROFILES: Final = {
    accepting.PART: accepting.profile,
    executing.PART: executing.profile,
    starting.PART: starting.profile,
}
_SYNCS_OF_MEMORY: Final = 50_000
_PROFILE_LINES: Final = 25


async def run_bench(
    sizes: Sizes, *, directory: Path, parts: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> Report:
    """Measure in a directory of its own under `directory`, and leave nothing there."""
    report = Report(_machine(directory))
    if syncs_per_second(directory) > _SYNCS_OF_MEMORY:
        report.notes.append(
            f"{directory} is in memory: nothing is durable there, and nothing here says how it would be."
        )
    clock = SystemClock()
    for name in parts or PARTS:
        began = clock.monotonic()
        with tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place:
            await PARTS[name](Path(place), sizes, report)
        say(f"{name}: measured in {clock.monotonic() - began:.0f} s")
    return report


async def run_profile(sizes: Sizes, *, directory: Path, part: str) -> None:
    """Print what took the time. Profiled code is slower, its small functions most; the order is what counts."""
    if part not in _PROFILES:
        print(f"{part} has no profile; these have: {', '.join(_PROFILES)}")
        return
    with tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place:
        stats = pstats.Stats(str(await _PROFILES[part](Path(place), sizes)))
        stats.sort_stats("tottime").print_stats(_PROFILE_LINES)


def _machine(directory: Path) -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{syncs_per_second(directory):.0f} syncs of 1.5 KB per second"
    )

"""All parts in order, or the ones asked for."""

from __future__ import annotations

import os
import platform
import pstats
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.testing.bench import (
    accepting,
    executing,
    full_accepting,
    full_backlog,
    full_executing,
    full_latency,
    holding,
    starting,
)
from rise.testing.bench.measuring import syncs_per_second
from rise.testing.bench.peers import PEERS
from rise.testing.bench.report import Report
from rise.testing.bench.sizes import Sizes
from rise.testing.servers import RabbitServer

Measure = Callable[[Path, Sizes, Report], Awaitable[None]]
Why = Callable[[Path, Sizes], Awaitable[Path]]

EMBEDDED: Final = "embedded"
FULL: Final = "full"

PARTS: Final[dict[str, dict[str, Callable[..., Awaitable[None]]]]] = {
    EMBEDDED: {
        accepting.PART: accepting.measure,
        executing.PART: executing.measure,
        starting.PART: starting.measure,
        holding.PART: holding.measure,
    },
    FULL: {
        full_accepting.PART: full_accepting.measure,
        full_executing.PART: full_executing.measure,
        full_latency.PART: full_latency.measure,
        full_backlog.PART: full_backlog.measure,
    },
}
WHYS: Final[dict[str, dict[str, Callable[..., Awaitable[Path]]]]] = {
    EMBEDDED: {
        accepting.PART: accepting.profile,
        executing.PART: executing.profile,
        starting.PART: starting.profile,
    },
    FULL: {full_accepting.PART: full_accepting.profile, full_executing.PART: full_executing.profile},
}
_SYNCS_OF_MEMORY: Final = 50_000
_WHY_LINES: Final = 25


async def run_bench(
    sizes: Sizes,
    *,
    directory: Path,
    profile: str = EMBEDDED,
    parts: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure in a directory of its own under `directory`, and leave nothing there."""
    report = Report(_machine(directory), profile)
    if syncs_per_second(directory) > _SYNCS_OF_MEMORY:
        report.notes.append(
            f"{directory} is in memory: nothing is durable there, and nothing here says how it would be."
        )
    clock = SystemClock()
    with _parts(profile, directory, report.notes) as measures:
        for name in parts or measures:
            began = clock.monotonic()
            with tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place:
                await measures[name](Path(place), sizes, report)
            say(f"{name}: measured in {clock.monotonic() - began:.0f} s")
    report.notes.append(_load())
    return report


@contextmanager
def _parts(profile: str, directory: Path, notes: list[str]) -> Iterator[Mapping[str, Measure]]:
    """With what they need beside a directory: one RabbitMQ for all, which takes long to start."""
    if profile == EMBEDDED:
        yield PARTS[EMBEDDED]
        return
    notes += _not_installed()
    with tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place, RabbitServer(Path(place)) as rabbit:
        yield {name: partial(measure, rabbit=rabbit) for name, measure in PARTS[FULL].items()}


def _not_installed() -> list[str]:
    """What is left out, for want of its packages."""
    absent = [f"{peer.title} ({', '.join(missing)})" for peer in PEERS.values() if (missing := peer.missing())]
    if not absent:
        return []
    return [f"Not installed, and so not measured: {'; '.join(absent)}. `pip install 'rise-gateway[bench]'` brings all."]


async def run_why(sizes: Sizes, *, directory: Path, part: str, profile: str = EMBEDDED) -> None:
    """Print what took the time. Profiled code is slower, its small functions most; the order is what counts."""
    if part not in WHYS[profile]:
        print(f"{part} cannot be profiled; these can: {', '.join(WHYS[profile])}")
        return
    with _whys(profile, directory) as whys, tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place:
        stats = pstats.Stats(str(await whys[part](Path(place), sizes)))
        stats.sort_stats("tottime").print_stats(_WHY_LINES)


@contextmanager
def _whys(profile: str, directory: Path) -> Iterator[Mapping[str, Why]]:
    if profile == EMBEDDED:
        yield WHYS[EMBEDDED]
        return
    with tempfile.TemporaryDirectory(prefix="rise-bench-", dir=directory) as place, RabbitServer(Path(place)) as rabbit:
        yield {name: partial(why, rabbit=rabbit) for name, why in WHYS[FULL].items()}


def _load() -> str:
    """Ratios bear a busy machine better than times do; neither bears it well."""
    averages = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"Load of the machine at the end, over 1, 5 and 15 minutes: {averages}."


def _machine(directory: Path) -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{syncs_per_second(directory):.0f} syncs of 1.5 KB per second"
    )

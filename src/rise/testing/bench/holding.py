"""Holding: how much memory the processes take while many messages wait. It must not grow with their number."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.testing.bench.executing import first_run
from rise.testing.bench.measuring import ratios, resident_bytes
from rise.testing.bench.processes import installation, running
from rise.testing.bench.report import Report
from rise.testing.bench.seeding import copied, seed
from rise.testing.bench.sizes import Sizes

PART: Final = "memory"
GROWTH_MAX: Final = 1.1
"""What is left is SQLite's page cache, which is bounded, and how full it happens to be."""


async def measure(directory: Path, sizes: Sizes, report: Report) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    for count in (sizes.held_few, sizes.held_many):
        await seed(directory / f"held-{count}", count, "telegram")
    for turn in range(sizes.rounds):
        for count in (sizes.held_few, sizes.held_many):
            place = directory / f"memory-{turn}-{count}"
            place.mkdir()
            gateway, worker = await _hold(copied(directory / f"held-{count}", place / "data"), sizes.hold_seconds)
            found.setdefault(("gateway", count), []).append(gateway)
            found.setdefault(("worker", count), []).append(worker)
    for name in ("gateway", "worker"):
        few, many = found[name, sizes.held_few], found[name, sizes.held_many]
        report.add(PART, f"{name}, {sizes.held_few} open", few, "MiB", digits=1)
        report.add(PART, f"{name}, {sizes.held_many} open", many, "MiB", digits=1)
        report.add(
            PART, f"{name}, {sizes.held_many} open ÷ {sizes.held_few} open", ratios(many, few), "×", at_most=GROWTH_MAX
        )
    report.notes.append("memory: resident and not shared, a while after start, with a bot that never answers.")


async def _hold(data: Path, seconds: float) -> tuple[float, float]:
    """MiB of gateway and worker."""
    async with (
        running("telegram", data) as telegram,
        installation(
            data,
            telegram_api_base=f"http://127.0.0.1:{telegram.port}",
            app="rise.testing.bench.holding_bot",
            late_after_seconds=1,
        ) as rise,
    ):
        await first_run(data)
        await SystemClock().sleep(seconds)
        assert rise.pid is not None
        [worker] = rise.worker_pids()
        return resident_bytes(rise.pid) / 2**20, resident_bytes(worker) / 2**20

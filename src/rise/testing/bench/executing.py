"""Executing: how fast a queue of messages is worked off when the workflow itself does nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.settings import environment_of_another
from rise.testing.bench.bot import FIRST_RUN
from rise.testing.bench.measuring import cpu_seconds, ratios
from rise.testing.bench.processes import end, installation, profiled_worker, rise_settings, running
from rise.testing.bench.report import Report
from rise.testing.bench.seeding import copied, is_drained, seed, seed_rows, what_is_open
from rise.testing.bench.sizes import Sizes

PART: Final = "execute"
DRAIN_SECONDS_MAX: Final = 300.0

Drained = tuple[float, float]
"""Tasks per second, and CPU seconds per 1 000."""


async def measure(directory: Path, sizes: Sizes, report: Report) -> None:
    count = sizes.queued
    await seed(directory / "http", count, "http")
    await seed(directory / "telegram", count, "telegram")
    rows = seed_rows(directory / "rows", count)
    found: dict[str, list[Drained]] = {"rows": [], "http": [], "telegram": []}
    for turn in range(sizes.rounds):
        place = directory / f"execute-{turn}"
        place.mkdir()
        found["rows"].append(await _drain_rows(copied(rows, place / "rows"), count))
        found["http"].append(await _drain_http(copied(directory / "http", place / "http"), count))
        found["telegram"].append(await _drain_telegram(copied(directory / "telegram", place / "telegram"), count))
    titles = {
        "rows": "a plain table, a commit per task, no chats",
        "http": "Rise worker, result kept",
        "telegram": "Rise serve, reply delivered (gateway and worker)",
    }
    for name, title in titles.items():
        report.add(PART, f"{title}: rate", [rate for rate, _ in found[name]], "tasks/s", digits=0)
        report.add(PART, f"{title}: CPU", [cpu for _, cpu in found[name]], "s per 1 000", digits=3)
    plain = [rate for rate, _ in found["rows"]]
    report.add(PART, "Rise worker ÷ plain table", ratios([rate for rate, _ in found["http"]], plain), "×")
    report.add(PART, "Rise serve, delivered ÷ plain table", ratios([rate for rate, _ in found["telegram"]], plain), "×")
    report.notes.append(f"execute: {count} tasks in 1 000 chats, one worker process; the aims are against brokers.")


async def profile(directory: Path, sizes: Sizes) -> Path:
    """The worker again, under cProfile."""
    data = directory / "execute-profile"
    await seed(data, sizes.queued, "http")
    async with profiled_worker(data) as profile:
        await _until_drained(data)
    return profile


async def _drain_rows(data: Path, count: int) -> Drained:
    async with running("rows-worker", data) as worker:
        assert worker.process.stdout is not None
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            seconds, cpu = (await worker.process.stdout.readline()).split()
        return count / float(seconds), float(cpu) / count * 1000


async def _drain_http(data: Path, count: int) -> Drained:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise", "worker"), env=environment_of_another(rise_settings(data))
    )
    try:
        return await _watch(data, count, [process.pid])
    finally:
        await end(process)


async def _drain_telegram(data: Path, count: int) -> Drained:
    async with running("telegram", data) as telegram:
        api_base = f"http://127.0.0.1:{telegram.port}"
        async with installation(data, telegram_api_base=api_base, late_after_seconds=0) as rise:
            assert rise.pid is not None
            return await _watch(data, count, [rise.pid, *rise.worker_pids()])


async def _watch(data: Path, count: int, pids: list[int]) -> Drained:
    """From the first run of a workflow until nothing is open any more."""
    began = await first_run(data)
    cpu_before = sum(cpu_seconds(pid) for pid in pids)
    seconds = await _until_drained(data) - began
    return count / seconds, (sum(cpu_seconds(pid) for pid in pids) - cpu_before) / count * 1000


async def first_run(data: Path, *, seconds: float = 60.0) -> float:
    """When a workflow first ran. Raises `TimeoutError` if none does."""
    clock = SystemClock()
    async with asyncio.timeout(seconds):
        while not (said := _read(data / FIRST_RUN)):
            await clock.sleep(0.005)
    return float(said)


async def _until_drained(data: Path) -> float:
    """Raises `RuntimeError` that says what is left, if it takes too long."""
    clock = SystemClock()
    give_up_at = clock.monotonic() + DRAIN_SECONDS_MAX
    while not is_drained(data):
        if clock.monotonic() > give_up_at:
            raise RuntimeError(f"after {DRAIN_SECONDS_MAX:g} s there are still open: {what_is_open(data)}")
        await clock.sleep(0.02)
    return clock.monotonic()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""

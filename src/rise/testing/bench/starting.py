"""Starting: how long until the first message is taken, and until the first that waited is worked on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.testing.bench.bot import FIRST_RUN
from rise.testing.bench.executing import first_run
from rise.testing.bench.measuring import ratios
from rise.testing.bench.processes import installation, profiled_worker, running
from rise.testing.bench.report import Report
from rise.testing.bench.seeding import copied, seed
from rise.testing.bench.sizes import Sizes
from rise.testing.bench.update import Updates

PART: Final = "restart"


async def measure(directory: Path, sizes: Sizes, report: Report) -> None:
    few, many = directory / "open-few", directory / "open-many"
    await seed(few, sizes.open_few, "http")
    await seed(many, sizes.open_many, "http")
    python: list[float] = []
    imports: list[float] = []
    fastapi: list[float] = []
    rise: list[float] = []
    after_few: list[float] = []
    after_many: list[float] = []
    for turn in range(sizes.rounds):
        place = directory / f"restart-{turn}"
        place.mkdir()
        python.append(await _seconds_of("pass"))
        imports.append(await _seconds_of("import rise"))
        fastapi.append(await _fastapi_start(place))
        rise.append(await _cold_start(place))
        after_few.append(await _restart(copied(few, place / "few")))
        after_many.append(await _restart(copied(many, place / "many")))
    report.add(PART, "python starts", python, "s", digits=3)
    report.add(PART, "import rise, beyond that", [one - bare for one, bare in zip(imports, python, strict=True)], "s",
               at_most=0.15, digits=3)  # fmt: skip
    report.add(PART, "plain FastAPI, start to first 2xx", fastapi, "s")
    report.add(PART, "rise serve, start to first 2xx", rise, "s", at_most=1.0)
    report.add(PART, "rise serve ÷ plain FastAPI", ratios(rise, fastapi), "×")
    report.add(PART, f"restart to first dispatch, {sizes.open_few} open", after_few, "s", at_most=2.0)
    report.add(PART, f"restart to first dispatch, {sizes.open_many} open", after_many, "s", at_most=5.0)
    report.add(PART, f"{sizes.open_many} open ÷ {sizes.open_few} open", ratios(after_many, after_few), "×")
    report.notes.append(
        "restart: gateway and worker killed with kill -9 while working; from the start of `rise serve` to the first "
        "run of a workflow in its worker process."
    )


async def profile(directory: Path, sizes: Sizes) -> Path:
    """What `rise worker` does from its start until it has worked a few of many open tasks."""
    data = directory / "restart-profile"
    await seed(data, sizes.open_many, "http")
    async with profiled_worker(data) as profile:
        await first_run(data)
    return profile


async def _restart(data: Path) -> float:
    """Start, kill at the first run, start again."""
    async with installation(data) as rise:
        await first_run(data)
        await rise.kill()
        (data / FIRST_RUN).unlink()
        began = SystemClock().monotonic()
        await rise.start(wait=False)
        return await first_run(data) - began


async def _cold_start(place: Path) -> float:
    began = SystemClock().monotonic()
    async with installation(place / "cold") as rise:
        await _first_answer(rise.port)
        return SystemClock().monotonic() - began


async def _fastapi_start(place: Path) -> float:
    began = SystemClock().monotonic()
    async with running("fastapi", place) as server:
        await _first_answer(server.port)
        return SystemClock().monotonic() - began


async def _first_answer(port: int) -> None:
    """One request, without a process of its own: its start would be counted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(Updates().request(1))
        status = await reader.readline()
    finally:
        writer.close()
    if status.split()[1:2] != [b"200"]:
        raise RuntimeError(f"the first request was answered {status!r}")


async def _seconds_of(program: str) -> float:
    began = SystemClock().monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await process.wait()
    return SystemClock().monotonic() - began

"""Latency on the full profile: from the request on the wire to the first line of the user's code, at light load."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from rise.clock import SystemClock
from rise.testing.bench.bot import EVERY_RUN
from rise.testing.bench.full_servers import servers_for_one
from rise.testing.bench.measuring import ratios
from rise.testing.bench.paced import Pace, Sent
from rise.testing.bench.peers import PEERS, installed
from rise.testing.bench.processes import end, installation, rise_settings, running
from rise.testing.bench.report import Report
from rise.testing.bench.sizes import Sizes
from rise.testing.servers import RabbitServer

PART: Final = "latency"
WARM_UP: Final = 50
ARRIVE_SECONDS_MAX: Final = 60.0

_PEERS: Final = ("taskiq", "arq", "faststream")


async def measure(directory: Path, sizes: Sizes, report: Report, rabbit: RabbitServer) -> None:
    names = ["rise", *installed(_PEERS)]
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(sizes.rounds):
        for name in names:
            place = directory / f"latency-{turn}-{name}"
            place.mkdir()
            seen[name].append(await _one(name, place, sizes, rabbit))
    titles = {"rise": "Rise, two copies of three"} | {name: f"FastAPI + {PEERS[name].title}" for name in _PEERS}
    p50s = {name: [p50 for p50, _ in rounds] for name, rounds in seen.items()}
    for name in names:
        report.add(PART, f"{titles[name]}: p50", p50s[name], "ms")
        report.add(PART, f"{titles[name]}: p99", [p99 for _, p99 in seen[name]], "ms")
    for name in names[1:]:
        report.add(PART, f"p50 Rise ÷ {titles[name]}", ratios(p50s["rise"], p50s[name]), "×")
    if best := [min(of_round) for of_round in zip(*(p50s[name] for name in names[1:]), strict=True)]:
        report.add(PART, "p50 Rise ÷ the best of these", ratios(p50s["rise"], best), "×", at_most=1.0)
    report.notes.append(
        f"latency: {sizes.paced} requests at {sizes.per_second:g}/s, from sending each to the start of its handler in "
        "the worker process; Rise is `rise serve`, durable twice before anybody works on it."
    )


async def _one(name: str, place: Path, sizes: Sizes, rabbit: RabbitServer) -> tuple[float, float]:
    """p50 and p99 in ms."""
    async with servers_for_one(place, rabbit) as servers, AsyncExitStack() as stack:
        if name == "rise":
            data = place / "data"
            telegram = await stack.enter_async_context(running("telegram", place))
            api_base = f"http://127.0.0.1:{telegram.port}"
            rise = installation(data, telegram_api_base=api_base, **servers.settings())
            (data / EVERY_RUN).touch()
            port = (await stack.enter_async_context(rise)).port
        else:
            data, settings = place, rise_settings(place, **servers.settings())
            (data / EVERY_RUN).touch()
            port = (await stack.enter_async_context(running(f"{name}-accept", place, settings=settings))).port
            await stack.enter_async_context(running(f"{name}-worker", place, settings=settings))
        # Worked before anything is measured: whoever works has started then.
        await _send(Pace(port=port, first_number=0, count=WARM_UP, per_second=sizes.per_second))
        await _arrived(data / EVERY_RUN, WARM_UP)
        sent = await _send(Pace(port=port, first_number=WARM_UP, count=sizes.paced, per_second=sizes.per_second))
        return _percentiles(sent, await _arrived(data / EVERY_RUN, WARM_UP + sizes.paced))


async def _send(pace: Pace) -> Sent:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise.testing.bench.paced", msgspec.json.encode(pace).decode()),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        await end(process)
    sent = msgspec.json.decode(printed, type=Sent)
    if sent.refused:
        raise RuntimeError(f"{sent.refused} requests were refused: nothing was measured")
    return sent


async def _arrived(path: Path, count: int) -> dict[str, float]:
    """When each was first run, once all were."""
    clock = SystemClock()
    give_up_at = clock.monotonic() + ARRIVE_SECONDS_MAX
    while True:
        moments = _read(path)
        if len(moments) >= count:
            return moments
        if clock.monotonic() > give_up_at:
            raise RuntimeError(f"of {count} messages {count - len(moments)} were not run")
        await clock.sleep(0.2)


def _read(path: Path) -> dict[str, float]:
    moments: dict[str, float] = {}
    for line in path.read_text().splitlines():
        chat, moment = line.split()
        moments.setdefault(chat, float(moment))
    return moments


def _percentiles(sent: Sent, arrived: dict[str, float]) -> tuple[float, float]:
    ordered = sorted((arrived[chat] - moment) * 1000 for chat, moment in sent.moments.items())
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]

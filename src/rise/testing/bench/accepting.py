"""Accepting: from a message on the wire to its 2xx, at one connection and at many."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rise.testing.bench.load import Order, Seen
from rise.testing.bench.measuring import ratios
from rise.testing.bench.processes import ask, installation, rise_settings, running
from rise.testing.bench.report import Report
from rise.testing.bench.sizes import Sizes

PART: Final = "accept"

_CONTENDERS: Final = {
    "fastapi": "plain FastAPI, writes nothing",
    "asgi": "raw ASGI, writes nothing",
    "fastapi-row": "FastAPI, a commit per message",
    "rise": "Rise, durable",
    "rise-working": "Rise, durable, while answering",
}
_BUSY_SHARE: Final = 0.85


async def measure(directory: Path, sizes: Sizes, report: Report) -> None:
    """Each round starts every contender anew, on an empty directory, and asks it at every width."""
    seen: dict[tuple[str, int], list[Seen]] = {}
    for turn in range(sizes.rounds):
        for name in _CONTENDERS:
            place = directory / f"accept-{turn}-{name}"
            place.mkdir()
            for connections, found in (await _one(name, place, sizes)).items():
                seen.setdefault((name, connections), []).append(found)
    for connections in sizes.connections:
        _add(report, {name: seen[name, connections] for name in _CONTENDERS}, connections)
    report.notes.append(
        "accept: Rise is its whole door and intake with no worker beside it; “while answering” is `rise serve` with "
        "worker and sender busy on the same cores. CPU is the gateway's, all threads."
    )


async def profile(directory: Path, sizes: Sizes) -> Path:
    """The many connections again, the server under cProfile."""
    place = directory / "accept-profile"
    place.mkdir()
    settings = rise_settings(place / "data")
    async with running("rise", place, settings=settings, profile=place / "profile") as server:
        await ask(order_of(server.port, sizes.connections[-1], [server.pid], 1, sizes))
    return place / "profile"


async def _one(name: str, place: Path, sizes: Sizes) -> dict[int, Seen]:
    if name == "rise-working":
        return await _one_working(place, sizes)
    settings = rise_settings(place / "data") if name == "rise" else None
    async with running(name, place, settings=settings) as server:
        return await ask_all_widths(server.port, server.pid, sizes)


async def _one_working(place: Path, sizes: Sizes) -> dict[int, Seen]:
    async with (
        running("telegram", place) as telegram,
        installation(place / "data", telegram_api_base=f"http://127.0.0.1:{telegram.port}") as rise,
    ):
        assert rise.pid is not None
        return await ask_all_widths(rise.port, rise.pid, sizes)


async def ask_all_widths(port: int, pid: int, sizes: Sizes) -> dict[int, Seen]:
    seen, first = {}, 1
    for connections in sizes.connections:
        seen[connections] = await ask(order_of(port, connections, [pid], first, sizes))
        first = seen[connections].next_number
    return seen


def order_of(port: int, connections: int, pids: list[int], first: int, sizes: Sizes) -> Order:
    return Order(
        port=port,
        connections=connections,
        seconds=sizes.load_seconds,
        warm_up_seconds=sizes.warm_up_seconds,
        first_number=first,
        pids=pids,
    )


def _add(report: Report, seen: dict[str, list[Seen]], connections: int) -> None:
    at = f"at {connections}"
    rates = {name: [one.requests / one.seconds for one in rounds] for name, rounds in seen.items()}
    for name, title in _CONTENDERS.items():
        report.add(PART, f"{title}, {at}: rate", rates[name], "req/s", digits=0)
        report.add(PART, f"{title}, {at}: p50", [one.p50_ms for one in seen[name]], "ms")
        report.add(PART, f"{title}, {at}: p99", [one.p99_ms for one in seen[name]], "ms")
        spent = [one.cpu_seconds[0] / one.requests * 1e6 for one in seen[name]]
        report.add(PART, f"{title}, {at}: CPU", spent, "µs/req", digits=0)
    is_wide = connections > 1
    ours = rates["rise"]
    report.add(
        PART, f"Rise ÷ plain FastAPI, {at}", ratios(ours, rates["fastapi"]), "×", at_least=2 if is_wide else None
    )
    report.add(PART, f"Rise ÷ raw ASGI, {at}", ratios(ours, rates["asgi"]), "×", at_least=0.5 if is_wide else None)
    report.add(PART, f"Rise ÷ FastAPI with a commit each, {at}", ratios(ours, rates["fastapi-row"]), "×")
    p50s = [[one.p50_ms for one in seen[name]] for name in ("rise", "fastapi-row")]
    report.add(PART, f"p50 Rise ÷ FastAPI with a commit each, {at}", ratios(*p50s), "×", at_most=None if is_wide else 1)
    busiest = max(one.own_cpu_share for rounds in seen.values() for one in rounds)
    if busiest > _BUSY_SHARE:
        report.notes.append(
            f"accept, {at}: the load generator used {busiest:.0%} of a core and may have been the limit."
        )

"""Accepting on the full profile: from a message on the wire to two copies and its 2xx, beside what one might use.

All contenders take turns in one run, each on servers of its own that hold nothing yet.

Refuses: to compare what holds one copy with what holds two without saying so, in the contender's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rise.testing.bench.accepting import ask_all_widths, asking
from rise.testing.bench.full_servers import servers_for_one
from rise.testing.bench.load import Seen
from rise.testing.bench.measuring import ratios
from rise.testing.bench.peers import PEERS, installed
from rise.testing.bench.processes import ask, installation, rise_settings, running
from rise.testing.bench.report import Report
from rise.testing.bench.sizes import Sizes
from rise.testing.servers import RabbitServer

PART: Final = "accept"

_ONE_COPY: Final = ("taskiq", "arq", "faststream-quorum")
_OURS: Final = {"rise": "Rise, two copies of three", "rise-working": "Rise, two copies of three, while answering"}
_TITLES: Final = (
    _OURS | {name: f"FastAPI + {PEERS[name].title}" for name in _ONE_COPY} | {"naive": PEERS["naive"].title}
)


async def measure(directory: Path, sizes: Sizes, report: Report, rabbit: RabbitServer) -> None:
    """Each round starts every contender anew, on empty servers, and asks it at every width."""
    names = [*_OURS, *installed(("naive", *_ONE_COPY))]
    seen: dict[tuple[str, int], list[Seen]] = {}
    for turn in range(sizes.rounds):
        for name in names:
            place = directory / f"accept-{turn}-{name}"
            place.mkdir()
            for connections, found in (await _measure_contender(name, place, sizes, rabbit)).items():
                seen.setdefault((name, connections), []).append(found)
    for connections in sizes.connections:
        _report_width(report, {name: seen[name, connections] for name in names}, connections)
    report.notes.append(
        "accept: Rise waits for two of journal (fsynced), Redis and RabbitMQ, and goes on to the third; it is its "
        "whole door, intake and relay with no worker beside it. “While answering” is `rise serve` with worker, sender "
        "and keeper busy on the same cores. CPU is that of the process that accepts, all threads."
    )


async def profile(directory: Path, sizes: Sizes, rabbit: RabbitServer) -> Path:
    """The many connections again, the server under cProfile."""
    place = directory / "accept-profile"
    place.mkdir()
    async with servers_for_one(place, rabbit) as servers:
        settings = rise_settings(place / "data", **servers.settings())
        async with running("rise", place, settings=settings, profile=place / "profile") as server:
            await ask(asking(server.port, sizes.connections[-1], [server.pid], 1, sizes))
    return place / "profile"


async def _measure_contender(name: str, place: Path, sizes: Sizes, rabbit: RabbitServer) -> dict[int, Seen]:
    async with servers_for_one(place, rabbit) as servers:
        settings = rise_settings(place / "data", **servers.settings())
        if name == "rise-working":
            return await _measure_while_working(place, sizes, servers.settings())
        async with running(name if name in _OURS else f"{name}-accept", place, settings=settings) as server:
            return await ask_all_widths(server.port, server.pid, sizes)


async def _measure_while_working(place: Path, sizes: Sizes, servers: dict[str, object]) -> dict[int, Seen]:
    async with (
        running("telegram", place) as telegram,
        installation(place / "data", telegram_api_base=f"http://127.0.0.1:{telegram.port}", **servers) as rise,
    ):
        assert rise.pid is not None
        return await ask_all_widths(rise.port, rise.pid, sizes)


def _report_width(report: Report, seen: dict[str, list[Seen]], connections: int) -> None:
    """Of so many connections: each contender, each ratio, and the one against the best."""
    at, is_wide = f"at {connections}", connections > 1
    for name, rounds in seen.items():
        _report_contender(report, f"{_TITLES[name]}, {at}", rounds)
    for name in [name for name in seen if name not in _OURS]:
        _report_ratios(report, f"Rise ÷ {_TITLES[name]}, {at}", seen["rise"], seen[name], name == "naive", is_wide)
    rates = [_rates(seen[name]) for name in _ONE_COPY if name in seen]
    if best := [max(of_round) for of_round in zip(*rates, strict=True)]:
        title = f"Rise ÷ the best of these with one copy, {at}"
        report.add(PART, title, ratios(_rates(seen["rise"]), best), "×", at_least=5.0 if is_wide else None)


def _report_contender(report: Report, title: str, rounds: list[Seen]) -> None:
    report.add(PART, f"{title}: rate", _rates(rounds), "req/s", digits=0)
    report.add(PART, f"{title}: p50", [one.p50_ms for one in rounds], "ms")
    report.add(PART, f"{title}: p99", [one.p99_ms for one in rounds], "ms")
    report.add(PART, f"{title}: CPU", _cpu_micros(rounds), "µs/req", digits=0)


def _report_ratios(
    report: Report, title: str, ours: list[Seen], theirs: list[Seen], is_naive: bool, is_wide: bool
) -> None:
    """The aims are against the naive way to have two copies."""
    rate_aim, p50_aim = (6.0 if is_naive and is_wide else None), (1.0 if is_naive and not is_wide else None)
    p50s = ratios([one.p50_ms for one in ours], [one.p50_ms for one in theirs])
    report.add(PART, f"{title}: rate", ratios(_rates(ours), _rates(theirs)), "×", at_least=rate_aim)
    report.add(PART, f"{title}: CPU", ratios(_cpu_micros(ours), _cpu_micros(theirs)), "×")
    report.add(PART, f"{title}: p50", p50s, "×", at_most=p50_aim)


def _rates(rounds: list[Seen]) -> list[float]:
    return [one.requests / one.seconds for one in rounds]


def _cpu_micros(rounds: list[Seen]) -> list[float]:
    """Per request, of the process that accepts."""
    return [one.cpu_seconds[0] / one.requests * 1e6 for one in rounds]

"""Accepting on the full profile: from a message on the wire to two copies and its 2xx, beside what one might use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rise.testing.bench.accepting import ask_all_widths, order_of
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
            for connections, found in (await _one(name, place, sizes, rabbit)).items():
                seen.setdefault((name, connections), []).append(found)
    for connections in sizes.connections:
        _add(report, {name: seen[name, connections] for name in names}, connections)
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
            await ask(order_of(server.port, sizes.connections[-1], [server.pid], 1, sizes))
    return place / "profile"


async def _one(name: str, place: Path, sizes: Sizes, rabbit: RabbitServer) -> dict[int, Seen]:
    async with servers_for_one(place, rabbit) as servers:
        settings = rise_settings(place / "data", **servers.settings())
        if name == "rise-working":
            return await _one_working(place, sizes, servers.settings())
        async with running(name if name in _OURS else f"{name}-accept", place, settings=settings) as server:
            return await ask_all_widths(server.port, server.pid, sizes)


async def _one_working(place: Path, sizes: Sizes, servers: dict[str, object]) -> dict[int, Seen]:
    async with (
        running("telegram", place) as telegram,
        installation(place / "data", telegram_api_base=f"http://127.0.0.1:{telegram.port}", **servers) as rise,
    ):
        assert rise.pid is not None
        return await ask_all_widths(rise.port, rise.pid, sizes)


def _add(report: Report, seen: dict[str, list[Seen]], connections: int) -> None:
    at = f"at {connections}"
    rates = {name: [one.requests / one.seconds for one in rounds] for name, rounds in seen.items()}
    p50s = {name: [one.p50_ms for one in rounds] for name, rounds in seen.items()}
    spent = {name: [one.cpu_seconds[0] / one.requests * 1e6 for one in rounds] for name, rounds in seen.items()}
    for name, rounds in seen.items():
        title = f"{_TITLES[name]}, {at}"
        report.add(PART, f"{title}: rate", rates[name], "req/s", digits=0)
        report.add(PART, f"{title}: p50", p50s[name], "ms")
        report.add(PART, f"{title}: p99", [one.p99_ms for one in rounds], "ms")
        report.add(PART, f"{title}: CPU", spent[name], "µs/req", digits=0)
    is_wide = connections > 1
    for name in [name for name in seen if name not in _OURS]:
        aims = {"naive": 6.0} if is_wide else {}
        report.add(
            PART, f"Rise ÷ {_TITLES[name]}, {at}: rate", ratios(rates["rise"], rates[name]), "×",
            at_least=aims.get(name),
        )  # fmt: skip
        report.add(PART, f"Rise ÷ {_TITLES[name]}, {at}: CPU", ratios(spent["rise"], spent[name]), "×")
        report.add(
            PART, f"Rise ÷ {_TITLES[name]}, {at}: p50", ratios(p50s["rise"], p50s[name]), "×",
            at_most=1.0 if name == "naive" and not is_wide else None,
        )  # fmt: skip
    if best := [max(of_round) for of_round in zip(*(rates[name] for name in _ONE_COPY if name in rates), strict=True)]:
        report.add(
            PART, f"Rise ÷ the best of these with one copy, {at}", ratios(rates["rise"], best), "×",
            at_least=5.0 if is_wide else None,
        )  # fmt: skip

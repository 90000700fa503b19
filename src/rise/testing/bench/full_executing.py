"""Executing on the full profile: how fast a queue in Redis is worked off by one process, beside what one might use."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rise.clock import SystemClock
from rise.settings import environment_of_another
from rise.testing.bench.executing import DRAIN_SECONDS_MAX, Drained, first_run
from rise.testing.bench.full_servers import Servers, servers_for_one
from rise.testing.bench.measuring import cpu_seconds, ratios
from rise.testing.bench.peers import PEERS, STREAM, installed
from rise.testing.bench.processes import end, installation, profiled_worker, rise_settings, running
from rise.testing.bench.report import Report
from rise.testing.bench.seeding import seed
from rise.testing.bench.sizes import Sizes
from rise.testing.servers import RabbitServer, RedisServer

PART: Final = "execute"
OPEN_LOOK_SECONDS: Final = 0.05

_OURS: Final = {
    "http": "Rise worker, in order, result kept",
    "telegram": "Rise serve, in order, reply delivered (gateway and worker)",
}
_PEERS: Final = ("taskiq", "arq", "faststream")
_KEEPS_RESULTS: Final = {"taskiq": "result kept", "arq": "result kept", "faststream": "no results"}


async def measure(directory: Path, sizes: Sizes, report: Report, rabbit: RabbitServer) -> None:
    peers = installed(_PEERS)
    found: dict[str, list[Drained]] = {name: [] for name in (*_OURS, *peers)}
    for turn in range(sizes.rounds):
        for name, rounds in found.items():
            place = directory / f"execute-{turn}-{name}"
            place.mkdir()
            async with servers_for_one(place, rabbit) as servers:
                drain = _drain_ours if name in _OURS else _drain_peers
                rounds.append(await drain(name, place, servers, sizes.queued))
    titles = _OURS | {name: f"{PEERS[name].title}, {_KEEPS_RESULTS[name]}" for name in peers}
    for name in found:
        report.add(PART, f"{titles[name]}: rate", [rate for rate, _ in found[name]], "tasks/s", digits=0)
        report.add(PART, f"{titles[name]}: CPU", [cpu for _, cpu in found[name]], "s per 1 000", digits=3)
    _add_ratios(report, found, peers)
    report.notes.append(
        f"execute: {sizes.queued} tasks in 1 000 chats, one worker process. Rise's keeps the order of each chat and "
        "writes what came of a task to the ledger on disk, and here also clears the journal that its gateway left."
    )


def _add_ratios(report: Report, found: dict[str, list[Drained]], peers: list[str]) -> None:
    for name in peers:
        our, their = found["http"], found[name]
        title = f"Rise worker ÷ {PEERS[name].title}"
        report.add(PART, f"{title}: rate", ratios([rate for rate, _ in our], [rate for rate, _ in their]), "×")
        report.add(PART, f"{title}: CPU", ratios([cpu for _, cpu in our], [cpu for _, cpu in their]), "×")
    if not peers:
        return
    rounds = list(zip(*(found[name] for name in peers), strict=True))
    best_rates = [max(rate for rate, _ in of_round) for of_round in rounds]
    best_cpus = [min(cpu for _, cpu in of_round) for of_round in rounds]
    ours = {name: ([rate for rate, _ in found[name]], [cpu for _, cpu in found[name]]) for name in _OURS}
    report.add(PART, "Rise worker ÷ the best of these: rate", ratios(ours["http"][0], best_rates), "×", at_least=4.0)
    report.add(PART, "Rise worker ÷ the best of these: CPU", ratios(ours["http"][1], best_cpus), "×", at_most=0.25)
    report.add(
        PART, "Rise serve, delivered ÷ the best of these: rate", ratios(ours["telegram"][0], best_rates), "×",
        at_least=1.0,
    )  # fmt: skip


async def profile(directory: Path, sizes: Sizes, rabbit: RabbitServer) -> Path:
    """The worker again, under cProfile."""
    data = directory / "data"
    async with servers_for_one(directory, rabbit) as servers:
        await seed(data, sizes.queued, "http", **servers.settings())
        async with profiled_worker(data, **servers.settings()) as profile:
            await first_run(data)
            await until(lambda: is_drained(servers.redis))
    return profile


async def _drain_ours(name: str, place: Path, servers: Servers, count: int) -> Drained:
    data = place / "data"
    await seed(data, count, name, **servers.settings())
    if name == "telegram":
        async with running("telegram", place) as telegram:
            api_base = f"http://127.0.0.1:{telegram.port}"
            more = {"telegram_api_base": api_base, "late_after_seconds": 0, **servers.settings()}
            async with installation(data, **more) as rise:
                assert rise.pid is not None
                return await _watch(data, count, [rise.pid, *rise.worker_pids()], lambda: is_drained(servers.redis))
    process = await start_worker(data, servers)
    try:
        return await _watch(data, count, [process.pid], lambda: is_drained(servers.redis))
    finally:
        await end(process)


async def start_worker(data: Path, servers: Servers) -> asyncio.subprocess.Process:
    settings = rise_settings(data, **servers.settings())
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise", "worker"), env=environment_of_another(settings)
    )


async def _drain_peers(name: str, place: Path, servers: Servers, count: int) -> Drained:
    settings = rise_settings(place, **servers.settings())
    async with running(f"{name}-fill", place, settings=settings, count=count):
        pass  # it is ready when all are there
    async with running(f"{name}-worker", place, settings=settings) as worker:
        return await _watch(place, count, [worker.pid], lambda: _IS_DRAINED[name](servers.redis))


async def _watch(data: Path, count: int, pids: list[int], is_over: Callable[[], bool]) -> Drained:
    """From the first run of a task until nothing is open any more."""
    began = await first_run(data)
    cpu_before = sum(cpu_seconds(pid) for pid in pids)
    seconds = await until(is_over) - began
    return count / seconds, (sum(cpu_seconds(pid) for pid in pids) - cpu_before) / count * 1000


async def until(is_over: Callable[[], bool]) -> float:
    """The moment. Raises `RuntimeError` if it takes too long."""
    clock = SystemClock()
    give_up_at = clock.monotonic() + DRAIN_SECONDS_MAX
    while not is_over():
        if clock.monotonic() > give_up_at:
            raise RuntimeError(f"after {DRAIN_SECONDS_MAX:g} s not everything is done")
        await clock.sleep(OPEN_LOOK_SECONDS)
    return clock.monotonic()


def is_drained(redis: RedisServer) -> bool:
    return open_count(redis) == 0


def open_count(redis: RedisServer) -> int:
    return int(redis.ask("ZCARD", "{rise}:queue:open"))


def _is_stream_done(redis: RedisServer) -> bool:
    """Everything was handed out and acknowledged."""
    [group] = redis.ask("XINFO", "GROUPS", STREAM)
    facts = dict(zip(group[::2], group[1::2], strict=True))
    return not facts[b"pending"] and not facts[b"lag"]


_IS_DRAINED: Final[dict[str, Callable[[RedisServer], bool]]] = {
    "taskiq": _is_stream_done,
    "faststream": _is_stream_done,
    "arq": lambda redis: not redis.ask("ZCARD", "arq:queue"),
}

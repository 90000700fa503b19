"""A backlog on the full profile: are the last of many worked as fast as the first, and what do they cost in memory?"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from rise.clock import SystemClock
from rise.testing.bench.executing import first_run
from rise.testing.bench.full_executing import OPEN_LOOK_SECONDS, open_count, start_worker
from rise.testing.bench.full_servers import Servers, servers_for_one
from rise.testing.bench.measuring import cpu_seconds, resident_bytes
from rise.testing.bench.processes import end
from rise.testing.bench.report import Report
from rise.testing.bench.seeding import seed
from rise.testing.bench.sizes import Sizes
from rise.testing.servers import RabbitServer, RedisServer

PART: Final = "backlog"
STILL_SECONDS_MAX: Final = 60.0
"""Nothing was finished for so long: it does not go on."""

_CONTENT: Final = "{rise}:queue:content:*"
_OF_OPEN_WORK: Final = ("task:", "content:", "line:", "suspended:", "open", "work", "running", "retry", "claims")


class _Drain(msgspec.Struct, frozen=True):
    first_tenth: float
    """Tasks per second."""
    last_tenth: float
    cpu: float
    """Seconds per 1 000."""
    bytes_begun: int
    """Of the worker, when a tenth was done."""
    bytes_ended: int


async def measure(directory: Path, sizes: Sizes, report: Report, rabbit: RabbitServer) -> None:
    """One round: it is long, and compares its own end with its beginning."""
    count = sizes.backlog
    async with servers_for_one(directory, rabbit) as servers:
        empty = _used_bytes(servers.redis)
        await seed(directory / "data", count, "http", **servers.settings())
        each = (_used_bytes(servers.redis) - empty) / count
        payload = _payload_bytes(servers.redis)
        drain = await _drain(directory / "data", servers, count)
        left = (_used_bytes(servers.redis) - empty) / count
        keys = _keys_left(servers.redis)
    report.add(PART, f"{count} tasks, the first tenth", [drain.first_tenth], "tasks/s", digits=0)
    report.add(PART, f"{count} tasks, the last tenth", [drain.last_tenth], "tasks/s", digits=0)
    report.add(PART, "the last tenth ÷ the first", [drain.last_tenth / drain.first_tenth], "×", at_least=0.9)
    report.add(PART, "worker CPU", [drain.cpu], "s per 1 000", digits=3)
    report.add(PART, "worker memory, a tenth done", [drain.bytes_begun / 2**20], "MiB", digits=1)
    report.add(PART, "worker memory, all done", [drain.bytes_ended / 2**20], "MiB", digits=1)
    report.add(PART, "worker memory, all done ÷ a tenth done", [drain.bytes_ended / drain.bytes_begun], "×",
               at_most=1.1)  # fmt: skip
    report.add(PART, "Redis, memory per queued message", [each], "bytes", digits=0)
    report.add(PART, "Redis, memory per queued message ÷ its envelope and body", [each / payload], "×", at_most=1.4)
    report.add(PART, "Redis afterwards, keys and hints of open work", [keys], "left", at_most=0.0, digits=0)
    report.add(PART, "Redis afterwards, memory of receipts and tombstones", [left], "bytes per message", digits=0)
    report.notes.append(
        f"backlog: {count} messages, each {payload} bytes of envelope and body. What is left in Redis for three days "
        "is that each was there, so that it is not run again."
    )


async def _drain(data: Path, servers: Servers, count: int) -> _Drain:
    process = await start_worker(data, servers)
    try:
        began = await first_run(data)
        cpu_before = cpu_seconds(process.pid)
        tenth = await _when_open(servers.redis, count * 9 // 10)
        done_by_then = count - open_count(servers.redis)
        bytes_begun = resident_bytes(process.pid)
        nine_tenths = await _when_open(servers.redis, count // 10)
        left_by_then = open_count(servers.redis)
        over = await _when_open(servers.redis, 0)
        return _Drain(
            first_tenth=done_by_then / (tenth - began),
            last_tenth=left_by_then / (over - nine_tenths),
            cpu=(cpu_seconds(process.pid) - cpu_before) / count * 1000,
            bytes_begun=bytes_begun,
            bytes_ended=resident_bytes(process.pid),
        )
    finally:
        await end(process)


async def _when_open(redis: RedisServer, at_most: int) -> float:
    """When so few were still open. Raises `RuntimeError` if it does not go on."""
    clock = SystemClock()
    least, moved_at = open_count(redis), clock.monotonic()
    while (left := open_count(redis)) > at_most:
        if left < least:
            least, moved_at = left, clock.monotonic()
        elif clock.monotonic() - moved_at > STILL_SECONDS_MAX:
            raise RuntimeError(f"{left} tasks are open, and none was finished for {STILL_SECONDS_MAX:g} s")
        await clock.sleep(OPEN_LOOK_SECONDS)
    return clock.monotonic()


def _used_bytes(redis: RedisServer) -> int:
    return int(redis.info("memory")["used_memory"])


def _payload_bytes(redis: RedisServer) -> int:
    """Envelope and body of one of those that wait."""
    [_, [key, *_]] = redis.ask("SCAN", 0, "MATCH", _CONTENT, "COUNT", 1000)
    head, raw = redis.ask("HMGET", key, "head", "raw")
    return len(head) + len(raw)


def _keys_left(redis: RedisServer) -> int:
    """With the entries of the stream, which itself stays."""
    own = "{rise}:queue:"
    names: list[str] = [key.decode().removeprefix(own) for key in redis.ask("KEYS", f"{own}*")]
    return sum(name.startswith(_OF_OPEN_WORK) for name in names) + int(redis.ask("XLEN", f"{own}tasks"))

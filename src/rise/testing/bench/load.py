"""Who asks: `python -m rise.testing.bench.load '{"port": …}'` keeps connections busy and prints what it saw.

Each connection sends its next request when the answer to the last has come. Raw protocols and no HTTP library:
the asker must have time to spare, and says how busy it was, so that a reader can see that it had.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Final

import msgspec
import uvloop

from rise.clock import SystemClock
from rise.testing.bench.measuring import cpu_seconds
from rise.testing.bench.update import Updates

ANSWER_SECONDS_MAX: Final = 30.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do."""

    port: int
    connections: int
    seconds: float
    warm_up_seconds: float
    first_number: int
    pids: list[int]
    """Processes whose CPU time is counted over exactly the measured time."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it, within the measured time."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_seconds: list[float]
    """Of the processes named in the order."""
    own_cpu_share: float
    """Of one core. Near 1 the asker was the limit, and not what it asked."""
    next_number: int
    failures: int


class Load:
    """The connections and what they count together."""

    def __init__(self, order: Order) -> None:
        self.clock = SystemClock()
        self.measures = False
        self.stops = False
        self.latencies: list[float] = []
        self.answered = 0
        self.failures = 0
        self.broken: BaseException | None = None
        self._updates = Updates()
        self._next = order.first_number

    @property
    def next_number(self) -> int:
        return self._next

    def next_request(self) -> bytes:
        self._next += 1
        return self._updates.request(self._next - 1)

    def count(self, seconds: float, *, accepted: bool) -> None:
        self.answered += 1
        if not accepted:
            self.failures += 1
        elif self.measures:
            self.latencies.append(seconds)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._began = 0.0
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0 or len(received) < head_end + 4 + _content_length(received[:head_end]):
            return
        self._received = b""
        self._load.count(self._load.clock.monotonic() - self._began, accepted=received[9:12] == b"200")
        if not self._load.stops:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.stops:
            self._load.broken = exc or ConnectionError("the server closed a connection")

    def _ask(self) -> None:
        assert self._transport is not None
        self._began = self._load.clock.monotonic()
        self._transport.write(self._load.next_request())


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    return int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def ask(order: Order) -> Seen:
    """Raises `ConnectionError` if the server does not hold the connections."""
    loop = asyncio.get_running_loop()
    load = Load(order)
    for _ in range(order.connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", order.port)
    await load.clock.sleep(order.warm_up_seconds)
    await _until(lambda: load.answered > 0, load)
    everybody = [*order.pids, os.getpid()]
    cpu, began = [cpu_seconds(pid) for pid in everybody], load.clock.monotonic()
    load.measures = True
    await load.clock.sleep(order.seconds)
    await _until(lambda: bool(load.latencies), load)
    load.measures = False
    seconds = load.clock.monotonic() - began
    spent = [cpu_seconds(pid) - before for pid, before in zip(everybody, cpu, strict=True)]
    load.stops = True
    if load.broken is not None or not load.latencies:
        raise ConnectionError(f"the server stopped answering: {load.broken}")
    ordered = sorted(load.latencies)
    return Seen(
        requests=len(ordered),
        seconds=seconds,
        p50_ms=ordered[len(ordered) // 2] * 1000,
        p99_ms=ordered[len(ordered) * 99 // 100] * 1000,
        cpu_seconds=spent[:-1],
        own_cpu_share=spent[-1] / seconds,
        next_number=load.next_number,
        failures=load.failures,
    )


async def _until(is_so: Callable[[], bool], load: Load) -> None:
    """However slow the machine is: something was answered."""
    give_up_at = load.clock.monotonic() + ANSWER_SECONDS_MAX
    while not is_so() and load.broken is None and load.clock.monotonic() < give_up_at:
        await load.clock.sleep(0.01)


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    print(msgspec.json.encode(uvloop.run(ask(order))).decode())


if __name__ == "__main__":
    main()

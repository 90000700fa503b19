"""Who asks at light load: `python -m rise.testing.bench.paced '{"port": …}'` sends so many messages at an even pace.

Prints when each was sent, by the clock that all processes of a host share. Each has a chat of its own, by which it is
known again.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import msgspec
import uvloop

from rise.clock import SystemClock
from rise.testing.bench.update import Updates

CONNECTIONS: Final = 16
"""One after the other, so that a slow answer holds nobody up."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    first_number: int
    count: int
    per_second: float


class Sent(msgspec.Struct, frozen=True):
    """The moment per chat."""

    moments: dict[str, float]
    refused: int


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.accepted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.accepted += data.count(b"HTTP/1.1 200")


async def send(pace: Pace) -> Sent:
    clock, updates, loop = SystemClock(), Updates(chats=pace.first_number + pace.count), asyncio.get_running_loop()
    connections = [(await loop.create_connection(_Connection, "127.0.0.1", pace.port))[1] for _ in range(CONNECTIONS)]
    moments: dict[str, float] = {}
    began = clock.monotonic()
    for nth in range(pace.count):
        await clock.sleep(max(0.0, began + nth / pace.per_second - clock.monotonic()))
        number, transport = pace.first_number + nth, connections[nth % CONNECTIONS].transport
        assert transport is not None
        request = updates.request(number)
        moments[updates.chat(number)] = clock.monotonic()
        transport.write(request)
    await _until_answered(connections, pace.count, clock)
    return Sent(moments, pace.count - sum(connection.accepted for connection in connections))


async def _until_answered(connections: list[_Connection], count: int, clock: SystemClock) -> None:
    give_up_at = clock.monotonic() + 10.0
    while sum(connection.accepted for connection in connections) < count and clock.monotonic() < give_up_at:
        await clock.sleep(0.01)


def main() -> None:
    pace = msgspec.json.decode(sys.argv[1], type=Pace)
    print(msgspec.json.encode(uvloop.run(send(pace))).decode())


if __name__ == "__main__":
    main()

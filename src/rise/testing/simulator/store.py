"""The store as one simulated process reaches it: the real statements, and whatever comes between.

A write takes time, twice: until it is durable, and until that is known. The process may die in between, be
stopped, or be told that it failed. What has not been written when its process dies is gone with it; what has
been, stays. That is what an fsynced file promises, and all it promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import apsw

from rise.errors import MongoUnavailable, StoreUnavailable, Unavailable
from rise.testing.simulator.database import InlineDatabase
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.host import SimClock
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import World

T = TypeVar("T")

WRITE_SECONDS = (0.0002, 0.004)
SLOW_SECONDS = (0.5, 6.0)


class SimDatabase(InlineDatabase):
    """`rise.connections.sqlite.Database` for one process of a world."""

    refused_while = FaultKind.WRITES_REFUSED
    gone_while: FaultKind | None = FaultKind.LEDGER_GONE

    def __init__(self, world: World, process: Process, *, clock: SimClock, schema: Mapping[str, Sequence[str]]) -> None:
        super().__init__(world.disk, clock=clock, schema=schema)
        self._world = world
        self._process = process
        self._behind = 0.0
        """Until then a write that takes seconds is under way."""

    async def write(self, apply: Callable[[apsw.Connection], T]) -> T:
        if not self._is_open:
            raise StoreUnavailable("the database is not open")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        # Not a part of whoever waits: one who gives up waiting does not take back what was handed in.
        loop.call_later(self._seconds_in_line(), self._perform, apply, done)
        return await done

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        if (absence := self._absence()) is not None:
            raise absence
        return self._transact(query)

    def _perform(self, apply: Callable[[apsw.Connection], T], done: asyncio.Future[T]) -> None:
        world, process, name = self._world, self._process, boundary_of(apply)
        step = world.begin_step(process, name)
        if step.is_over:
            return
        if (refusal := self._refusal()) is not None:
            self._answer(done, refusal)
            return
        outcome: Any = None
        try:
            outcome = self._transact(lambda connection: self._change(connection, apply))
        except Exception as error:  # noqa: BLE001 - border: handed to the one who asked for the change
            outcome = error
        world.note(process.name, name, "raises" if isinstance(outcome, Exception) else "")
        if world.end_step(process, step):
            return
        if world.is_struck(FaultKind.WRITES_UNANSWERED, process):
            outcome = StoreUnavailable("the store did not say whether it was written")
        self._answer(done, outcome)

    def _absence(self) -> MongoUnavailable | None:
        if self.gone_while is None or not self._world.is_struck(self.gone_while, self._process):
            return None
        self._world.ledger_missed_at = self._world.now
        return MongoUnavailable("it cannot be reached")

    def _refusal(self) -> Unavailable | None:
        if (absence := self._absence()) is not None:
            return absence
        is_refused = self._world.is_struck(self.refused_while, self._process)
        return StoreUnavailable("the store takes no writes") if is_refused else None

    def _change(self, connection: apsw.Connection, apply: Callable[[apsw.Connection], T]) -> T:
        result = apply(connection)
        self._note_time(connection)
        return result

    def _answer(self, done: asyncio.Future[Any], outcome: Any) -> None:
        self._process.loop.call_later(self._seconds(), _settle, done, outcome)

    def _seconds_in_line(self) -> float:
        """Until a write's turn has come: one thread writes, so nothing overtakes one that takes seconds."""
        now, seconds = self._world.now, self._seconds()
        at = max(now + seconds, self._behind)
        if seconds >= SLOW_SECONDS[0]:
            self._behind = at
        return at - now

    def _seconds(self) -> float:
        world = self._world
        bounds = SLOW_SECONDS if world.is_struck(FaultKind.WRITES_SLOW, self._process) else WRITE_SECONDS
        return world.dice.uniform(*bounds)


_ROOMS = {"SqliteQueue": "queue", "SqliteLedger": "ledger", "SqliteDefinitions": "definitions", "Journal": "journal"}


def boundary_of(apply: Callable[..., Any]) -> str:
    """What is written, by the name of the port's method: `queue.settle`."""
    where, _, method = apply.__qualname__.partition(".<locals>")[0].rpartition(".")
    return f"{_ROOMS.get(where, where)}.{method}"


def _settle(done: asyncio.Future[Any], outcome: Any) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)

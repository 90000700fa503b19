"""A ledger that can be away, and what waits for it meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from rise.clock import epoch_ms
from rise.envelope import TaskId
from rise.errors import MongoUnavailable, RedisUnavailable, Unavailable
from rise.ledger.late_ledger import LateLedger
from rise.ledger.port import Ledger
from rise.queue.port import QueueLimits
from rise.runtime.writing_back import WriteBack
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import delivery
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.late import MemoryLateWrites
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState


class Way:
    """To a store. It can be cut; and at one call, before or after that has its effect."""

    def __init__(self, inner: Any, error: type[Unavailable]) -> None:
        self._inner = inner
        self._error = error
        self.is_cut = False
        self.calls = 0
        self.cut_at: tuple[int, str] | None = None

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._inner, name)
        if name == "now_ms":
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self._pass("before")
            answer = await method(*args, **kwargs)
            self._pass("after")
            return answer

        return call

    def _pass(self, edge: str) -> None:
        if self.is_cut or self.cut_at == (self.calls, edge):
            raise self._error("it does not answer")


class LateStage:
    """One installation: its ledger, its Redis, and as many processes as are asked for."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.redis = MemoryQueueState(life="the first")
        self.kept = MemoryLedgerState()
        self.own = MemoryLedger(self.kept, now_ms=self.now_ms)
        self.way = Way(self.own, MongoUnavailable)
        self.late_way = Way(MemoryLateWrites(self.redis), RedisUnavailable)
        self.queue_way = Way(MemoryQueue(self.redis, now_ms=self.now_ms, limits=QueueLimits()), RedisUnavailable)
        self.queue = cast(MemoryQueue, self.queue_way)
        self.bus = MemoryBus(MemoryBusState())

    def now_ms(self) -> int:
        return epoch_ms(self.clock.now())

    def process(self) -> Ledger:
        """The ledger as one more process has it."""
        return cast(Ledger, LateLedger(cast(Ledger, self.way), self.late_way, self.clock))  # type: ignore[arg-type]

    def write_back(self) -> WriteBack:
        return WriteBack(
            late=cast(Any, self.late_way),
            ledger=cast(Ledger, self.way),
            queue=self.queue,
            bus=self.bus,
            clock=self.clock,
        )

    def leave(self) -> None:
        self.way.is_cut = True

    def come_back(self) -> None:
        self.way.is_cut = False
        self.clock.advance(2)

    async def accept(self, number: int, *, chat: str = "1") -> TaskId:
        return (await self.queue.enqueue(delivery(number, chat=chat))).task_id

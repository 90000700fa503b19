"""Where writes wait for the ledger: in Redis, and in the memory that stands in for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rise.connections.redis import RedisDatabase
from rise.ledger.late_redis import RedisLateWrites
from rise.testing.clock import ManualClock
from rise.testing.conformance.late import LateWritesConformance, Reached
from rise.testing.fakes.late import MemoryLateWrites
from rise.testing.fakes.queue import MemoryQueueState
from rise.testing.servers import RedisServer

PATIENCE_SECONDS = 20.0


class TestMemoryLateWrites(LateWritesConformance):
    @pytest.fixture
    def late(self) -> Reached:
        state = MemoryQueueState()
        return lambda: MemoryLateWrites(state)


class TestRedisLateWrites(LateWritesConformance):
    @pytest.fixture
    async def late(self, redis_server: RedisServer) -> AsyncIterator[Reached]:
        databases = [
            RedisDatabase(redis_server.url, clock=ManualClock(), answer_seconds=PATIENCE_SECONDS) for _ in "ab"
        ]
        turns = 0

        def reached() -> RedisLateWrites:
            nonlocal turns
            turns += 1
            return RedisLateWrites(databases[turns % len(databases)])

        yield reached
        for database in databases:
            await database.close()

    @pytest.mark.failure("C5")
    async def test_a_full_redis_keeps_what_ends_work(self, late: Reached, redis_server: RedisServer) -> None:
        redis_server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            assert await late().put("run:1", "chat", b"result") == b"result"
        finally:
            redis_server.ask("CONFIG", "SET", "maxmemory", "0")

    async def test_a_write_that_somebody_deleted_holds_nothing_up(
        self, late: Reached, redis_server: RedisServer
    ) -> None:
        await late().put("run:1", "chat", b"1")
        await late().put("run:2", "chat", b"2")
        redis_server.ask("HDEL", "{rise}:late:writes", "run:1")
        assert [one.key for one in await late().page(limit=10)] == ["run:2"]
        assert (await late().depth(), await late().about("chat")) == (1, [b"2"])

    async def test_nothing_of_it_is_left_behind(self, late: Reached, redis_server: RedisServer) -> None:
        await late().put("run:1", "chat", b"1")
        await late().remove(["run:1"])
        left = {key.decode() for key in redis_server.ask("KEYS", "{rise}:late:*")}
        assert left == {"{rise}:late:count"}

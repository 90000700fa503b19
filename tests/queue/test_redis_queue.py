"""The queue on Redis keeps every promise of the port, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rise.connections.redis import CLOCK_KEY, RedisDatabase
from rise.envelope import TaskId
from rise.queue.port import QueueLimits
from rise.queue.redis import RedisQueue
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import (
    CLAIM,
    DEATHS_MAX,
    DEATHS_SUSPECT,
    TASKS_PER_CLAIM,
    QueueConformance,
)
from rise.testing.servers import RedisServer

LIMITS = QueueLimits(claim=CLAIM, tasks_per_claim=TASKS_PER_CLAIM, deaths_suspect=DEATHS_SUSPECT, deaths_max=DEATHS_MAX)
PATIENCE_SECONDS = 20.0
"""A busy machine's fsync may take long. How long is waited at most has a test of its own."""
QUEUE = "{rise}:queue:"
KEPT = ("receipts", "lane:", "idle", "counts", "channels", "fence", "finished:")
"""The memory of keys, idle lanes and finished tasks, and what was counted."""


class RedisStage:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.clock = ManualClock()
        self.databases: list[RedisDatabase] = []

    async def open(self) -> RedisQueue:
        database = RedisDatabase(self.server.url, clock=self.clock, answer_seconds=PATIENCE_SECONDS)
        await database.open()
        self.databases.append(database)
        return RedisQueue(database, LIMITS)

    another = open

    async def close(self) -> None:
        for database in self.databases:
            await database.close()
        self.databases.clear()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.ask("HINCRBY", CLOCK_KEY, "ahead", int(seconds * 1000))

    def step_wall_clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)

    async def lose_hints(self) -> None:
        # Some lanes gone altogether, some there and silent.
        for key in self.keys():
            name = key.removeprefix(QUEUE)
            is_silent_lane = name.startswith("lane:") and not self.server.ask("HEXISTS", key, "holder")
            if name.startswith(("ready:", "claims", "tasks")) or (is_silent_lane and ord(name[-1]) % 2):
                self.server.ask("DEL", key)

    async def overwrite_head(self, task_id: TaskId, stored: bytes) -> None:
        self.server.ask("HSET", f"{QUEUE}task:{task_id}", "head", stored)

    async def leftovers(self) -> dict[str, int]:
        names = [key.removeprefix(QUEUE) for key in self.keys() if key.startswith(QUEUE)]
        left = {name: 1 for name in names if not name.startswith((*KEPT, "tasks"))}
        return left | {"hints": self.server.ask("XLEN", f"{QUEUE}tasks")}

    def keys(self) -> list[str]:
        return [key.decode() for key in self.server.ask("KEYS", "*")]


@pytest.fixture
async def stage(redis_server: RedisServer) -> AsyncIterator[RedisStage]:
    stage = RedisStage(redis_server)
    stage.queue = await stage.open()
    yield stage
    await stage.close()


@pytest.mark.req("TST-3", "QUE-1", "QUE-2", "QUE-3", "QUE-4")
class TestRedisQueue(QueueConformance):
    @pytest.fixture
    def stage(self, stage: RedisStage) -> RedisStage:
        return stage

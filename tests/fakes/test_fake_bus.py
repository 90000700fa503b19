"""The bus in memory keeps every promise of the port."""

from __future__ import annotations

import pytest

from rise.bus.port import Topic
from rise.testing.conformance.bus import BusConformance, Heard
from rise.testing.fakes.bus import MemoryBus, MemoryBusState


class MemoryStage:
    def __init__(self) -> None:
        self.state = MemoryBusState()

    async def member(self) -> MemoryBus:
        bus = MemoryBus(self.state)
        await bus.start()
        return bus

    async def killed_member(self) -> str:
        bus = await self.member()
        bus.die()
        return bus.member

    async def flood(self, sender: MemoryBus) -> None:
        for number in range(5000):
            sender.publish(Topic.TASK_SETTLED, {"n": number})


@pytest.mark.req("TST-3")
class TestMemoryBus(BusConformance):
    @pytest.fixture
    async def stage(self) -> MemoryStage:
        return MemoryStage()


async def test_who_is_killed_neither_speaks_nor_hears():
    stage = MemoryStage()
    dead, alive = await stage.member(), await stage.member()
    heard_by_the_dead, heard = Heard(), Heard()
    dead.subscribe(Topic.TASK_SETTLED, heard_by_the_dead)
    alive.subscribe(Topic.TASK_SETTLED, heard)
    dead.die()
    dead.publish(Topic.TASK_SETTLED, {"n": 1})
    alive.publish(Topic.TASK_SETTLED, {"n": 2})
    await heard.until({"n": 2})
    assert (heard_by_the_dead.payloads, heard.payloads) == ([], [{"n": 2}])

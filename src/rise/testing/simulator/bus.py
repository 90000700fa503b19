"""Hints between simulated processes. They may be lost; who is dead is known for certain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from rise.bus.port import Listener, Topic
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import World

HINT_SECONDS = (0.0001, 0.002)


class SimBus:
    """`rise.bus.port.Bus` for one process of a world."""

    name = "bus"

    def __init__(self, world: World, process: Process) -> None:
        self.member = f"{process.name}-{world.timeline.number()}"
        self._world = world
        self._process = process
        self._listeners: defaultdict[Topic, list[Listener]] = defaultdict(list)

    async def start(self) -> None:
        self._world.members[self.member] = self

    async def stop(self) -> None:
        self._world.members.pop(self.member, None)

    @property
    def process(self) -> Process:
        return self._process

    def publish(self, topic: Topic, payload: Mapping[str, Any] | None = None) -> None:
        world = self._world
        if self.member not in world.members or world.is_struck(FaultKind.BUS_SILENT, self._process):
            return
        for bus in list(world.members.values()):
            if bus.process.is_alive:
                world.timeline.after(world.dice.uniform(*HINT_SECONDS), bus.hearing(topic, dict(payload or {})))

    def hearing(self, topic: Topic, payload: Mapping[str, Any]) -> Callable[[], object]:
        return lambda: self._process.call_from_outside(self._tell, topic, payload)

    def subscribe(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        listeners = self._listeners[topic]
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    async def has_queued(self) -> bool:
        return False

    def dead_members(self) -> list[str]:
        return [member for member, bus in self._world.members.items() if not bus.process.is_alive]

    def bury(self, member: str) -> None:
        self._world.members.pop(member, None)

    def _tell(self, topic: Topic, payload: Mapping[str, Any]) -> None:
        for listener in list(self._listeners[topic]):
            listener(payload)

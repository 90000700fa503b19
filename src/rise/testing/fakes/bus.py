"""The bus between the processes of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rise.bus.port import Listener, Topic
from rise.envelope import encode_json
from rise.telemetry import log


@dataclass(slots=True)
class MemoryBusState:
    """The installation: who is or was there, until it says goodbye or is buried."""

    members: dict[str, MemoryBus] = field(default_factory=dict)
    members_ever: int = 0


class MemoryBus:
    """`rise.bus.port.Bus`, as one process sees the state."""

    name = "bus"

    def __init__(self, state: MemoryBusState) -> None:
        state.members_ever += 1
        self.member = f"member-{state.members_ever}"
        self._state = state
        self._listeners: list[tuple[Topic, Listener]] = []
        self._is_alive = False

    async def start(self) -> None:
        self._is_alive = True
        self._state.members[self.member] = self

    async def stop(self) -> None:
        self._is_alive = False
        self._state.members.pop(self.member, None)

    def die(self) -> None:
        """Its process is killed: it says nothing more, not even goodbye."""
        self._is_alive = False

    def publish(self, topic: Topic, payload: Mapping[str, Any] | None = None) -> None:
        if not self._is_alive:
            return
        sent = msgspec.json.decode(encode_json(payload or {}))
        for other in list(self._state.members.values()):
            self._carry(other, topic, sent)

    def _carry(self, to: MemoryBus, topic: Topic, payload: Mapping[str, Any]) -> None:
        """Every event to every member passes here, for a simulation to override: it may be lost or late."""
        asyncio.get_running_loop().call_soon(to.hear, topic, payload)

    def hear(self, topic: Topic, payload: Mapping[str, Any]) -> None:
        for wanted, listener in list(self._listeners):
            if self._is_alive and wanted is topic:
                try:
                    listener(payload)
                except Exception as error:  # noqa: BLE001 - border: said where bugs are looked for; the others hear
                    log.error("bus.listener_failed", topic=topic, error=error, exc_info=error)

    def subscribe(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        subscription = (topic, listener)
        self._listeners.append(subscription)
        return lambda: self._listeners.remove(subscription) if subscription in self._listeners else None

    async def has_queued(self) -> bool:
        return False

    def dead_members(self) -> list[str]:
        return [name for name, bus in self._state.members.items() if not bus._is_alive]

    def bury(self, member: str) -> None:
        self._state.members.pop(member, None)

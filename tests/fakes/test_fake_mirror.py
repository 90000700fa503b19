"""The fake keeps every promise of the mirror."""

from __future__ import annotations

import pytest

from rise.clock import SystemClock
from rise.testing.conformance.mirror import MirrorConformance
from rise.testing.fakes.mirror import MemoryMirror, MemoryMirrorState


class MemoryStage:
    def __init__(self) -> None:
        self.state = MemoryMirrorState()

    async def mirror(self) -> MemoryMirror:
        return MemoryMirror(self.state, SystemClock())

    async def kill(self, mirror: MemoryMirror) -> None:
        mirror.die()


@pytest.mark.req("TST-3")
class TestMemoryMirror(MirrorConformance):
    @pytest.fixture
    def stage(self) -> MemoryStage:
        return MemoryStage()

"""The fake keeps the promises of the port that it stands in for."""

from __future__ import annotations

import pytest

from rise.testing.conformance.definitions import DefinitionsConformance
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState


class MemoryStage:
    def __init__(self) -> None:
        self.state = MemoryDefinitionsState()
        self.definitions = MemoryDefinitions(self.state)

    async def another(self) -> MemoryDefinitions:
        return MemoryDefinitions(self.state)


@pytest.mark.req("TST-3")
class TestMemoryDefinitions(DefinitionsConformance):
    @pytest.fixture
    def stage(self) -> MemoryStage:
        return MemoryStage()

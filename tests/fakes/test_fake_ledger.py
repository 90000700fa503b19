"""The ledger in memory keeps every promise of the port."""

from __future__ import annotations

import pytest

from rise.clock import epoch_ms
from rise.envelope import ReplyId, RunId, TaskId
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import LedgerConformance
from rise.testing.fakes.ledger import HISTORY_KEPT, MemoryLedger, MemoryLedgerState


class MemoryStage:
    history_kept = HISTORY_KEPT

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.state = MemoryLedgerState()
        self.ledger = self.open()

    def open(self) -> MemoryLedger:
        return MemoryLedger(self.state, now_ms=lambda: epoch_ms(self.clock.now()))

    async def another(self) -> MemoryLedger:
        return self.open()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def spoil_call(self, reply_id: ReplyId) -> None:
        self.state.spoil_call(reply_id)

    async def spoil_result(self, run_id: RunId) -> None:
        self.state.spoil_result(run_id)

    async def spoil_head(self, run_id: RunId) -> None:
        self.state.spoil_head(run_id)

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        self.state.overwrite_words(task_id, state=state)

    async def spoil_definition(self, workflow_id: str) -> None:
        self.state.spoil_definition(workflow_id)


@pytest.mark.req("TST-3")
class TestMemoryLedger(LedgerConformance):
    @pytest.fixture
    async def stage(self) -> MemoryStage:
        return MemoryStage()

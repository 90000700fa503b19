"""The queue of the full profile as its callers have it: what comes in goes through all stores, and all promises hold.

Journals are files; queue and mirror are the fakes, which are held to the suites of the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_fake_queue import LIMITS, MemoryStage

from rise.copies.journals import Journals
from rise.copies.keeping import Copies, CopiesPolicy
from rise.copies.notes import Notes
from rise.copies.port import Mirror
from rise.copies.slots import Slots
from rise.envelope import Task
from rise.queue.port import Enqueued, NewTask
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import QueueConformance
from rise.testing.fakes.mirror import MemoryMirror, MemoryMirrorState
from rise.testing.fakes.queue import MemoryQueue


class KeptQueue(MemoryQueue):
    copies: Copies

    async def enqueue(self, task: NewTask) -> Enqueued:
        return await self.copies.keep(task)

    async def restart(self, task: Task, *, generation: int) -> bool:
        return await self.copies.restart(task, generation=generation)


class KeptStage(MemoryStage):
    """All processes share the journal of one."""

    def __init__(self, directory: Path, mirror: Mirror | None) -> None:
        super().__init__()
        self.journals = Journals(Slots(directory, clock=self.clock), self.clock, adopts=False)
        self.copies = Copies(
            queue=MemoryQueue(self.state, now_ms=self.now_ms, limits=LIMITS),
            journals=self.journals,
            mirror=mirror,
            notes=Notes(self.journals),
            policy=CopiesPolicy(copies_min=2, journal_required=mirror is None),
            clock=self.clock,
        )
        self.queue = self.open_kept()

    def open_kept(self) -> KeptQueue:
        queue = KeptQueue(self.state, now_ms=self.now_ms, limits=LIMITS)
        queue.copies = self.copies
        return queue

    async def another(self) -> KeptQueue:
        return self.open_kept()


@pytest.mark.req("TST-3", "CPY-2")
class TestKeptQueue(QueueConformance):
    @pytest.fixture(params=["with a mirror", "without"])
    async def stage(self, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[KeptStage]:
        mirror = MemoryMirror(MemoryMirrorState(), ManualClock()) if request.param == "with a mirror" else None
        stage = KeptStage(tmp_path, mirror)
        stage.journals._own = await stage.journals.slots.take()  # its loop would do more in the background
        yield stage
        await stage.copies.stop()
        await stage.journals.own.close()

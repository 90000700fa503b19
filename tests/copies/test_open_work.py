"""What of a copy is over: by the end of its own message, not by that of another that had its key before."""

from __future__ import annotations

import msgspec
import pytest

from rise.copies.journal import run_of
from rise.copies.open_work import OpenWork
from rise.envelope import Progress, Status, Task
from rise.testing.conformance.queue import delivery
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState


@pytest.mark.req("CPY-3", "ENV-3")
@pytest.mark.failure("A7")
@pytest.mark.parametrize(
    ("seconds_later", "is_unique", "is_over"),
    [(0, False, True), (-9, False, True), (9, False, False), (9, True, True)],
    ids=["with it", "by another host", "when the key was forgotten", "the same bytes, by a clock that is days off"],
)
async def test_a_copy_is_over_by_the_end_of_its_own_message(seconds_later: int, is_unique: bool, is_over: bool):
    ledger = MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0)
    former = delivery(1, receipt_seconds=9)
    head = msgspec.structs.replace(former.head, accepted_at_ms=10**12, raw_is_unique=is_unique, raw_sha256="alike")
    await ledger.finish(Task(head, former.raw, Progress(status=Status.PROCESSING)), Status.DROPPED)
    later = msgspec.structs.replace(head, accepted_at_ms=head.accepted_at_ms + seconds_later * 1000)
    kept = run_of(msgspec.structs.replace(former, head=later))
    work = OpenWork(ledger, MemoryQueue(MemoryQueueState(), now_ms=lambda: 0))
    assert await work.finished([kept]) == ({kept.name} if is_over else set())

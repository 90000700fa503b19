"""What every queue promises that may lose what it holds and is filled again from the other copies, executable.

class TestMyQueue(RefillingConformance):
    @pytest.fixture
    async def stage(self, tmp_path): ...
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import pytest

from rise.envelope import Reason, Status, TaskId
from rise.errors import ClaimLost
from rise.queue.port import KEY_GRACE_SECONDS, Finished, NewTask, RefillableQueue, Replying, Selection, Suspend
from rise.testing.conformance.queue import claim_all, claim_one, delivery, number_of, open_task, run_everything


class RefillingStage(Protocol):
    """A queue that holds nothing and has not begun, and the hands that can empty it."""

    queue: RefillableQueue

    async def another(self) -> RefillableQueue:
        """The same store, as another process sees it."""
        ...

    async def empty(self) -> None:
        """Everything in it is lost, behind everybody's back."""
        ...

    async def lose(self, task_id: TaskId) -> None:
        """That it is open, and what it was."""
        ...

    def pass_time(self, seconds: float) -> None:
        """On the store's clock."""
        ...

    async def let_debts_lapse(self) -> None:
        """Longer than a second, also where the store counts it by itself."""
        ...


async def begin(queue: RefillableQueue) -> str:
    """All that is open is in it."""
    named = await queue.begin_life(await queue.begin_refill())
    assert named is not None
    return named


def again(task: NewTask, generation: int) -> NewTask:
    return msgspec.structs.replace(task, generation=generation)


def accepted_at(task: NewTask, at_ms: int) -> NewTask:
    return msgspec.structs.replace(task, head=msgspec.structs.replace(task.head, accepted_at_ms=at_ms))


class RefillingConformance:
    @pytest.fixture
    async def queue(self, stage: RefillingStage) -> RefillableQueue:
        return stage.queue

    @pytest.mark.req("CPY-5")
    async def test_nothing_is_handed_out_before_everything_is_there_and_then_in_order(
        self, queue: RefillableQueue
    ) -> None:
        assert (await queue.enqueue(delivery(2))).new, "accepting goes on"
        assert await claim_all(queue) == []
        assert await queue.restore([delivery(3), delivery(1)]) == [delivery(3).head.task_id, delivery(1).head.task_id]
        assert await claim_all(queue) == []
        await begin(queue)
        assert await run_everything(queue) == [1, 2, 3]

    @pytest.mark.req("QUE-5")
    @pytest.mark.failure("C19", "M6")
    async def test_an_emptied_queue_can_be_told_from_an_empty_one(self, stage: RefillingStage) -> None:
        queue = stage.queue
        assert await queue.life() is None
        named = await begin(queue)
        assert await begin(queue) == await (await stage.another()).life() == named
        await queue.enqueue(delivery(1))
        await run_everything(queue)
        assert await queue.life() == named, "empty, and not emptied"
        await stage.empty()
        assert await queue.life() is None
        assert await begin(queue) != named

    @pytest.mark.req("QUE-5", "CPY-5")
    @pytest.mark.failure("I8")
    async def test_emptied_while_it_is_filled_it_has_to_be_filled_again(self, stage: RefillingStage) -> None:
        queue, other = stage.queue, await stage.another()
        refill = await queue.begin_refill()
        assert await other.begin_refill() == refill, "they bring the same"
        await queue.restore([delivery(1)])
        await stage.empty()
        await other.restore([delivery(2)])
        assert await other.begin_life(refill) is None
        assert await claim_all(queue) == []
        anew = await queue.begin_refill()
        assert anew != refill
        assert await queue.begin_life(refill) is None, "whoever was slow speaks of what is lost"
        await queue.restore([delivery(1)])
        named = await queue.begin_life(anew)
        assert named == await other.begin_life(anew) == await queue.life()
        assert await run_everything(queue) == [1, 2]

    @pytest.mark.req("CPY-5", "OPS-1")
    async def test_a_person_can_have_it_filled_again(self, queue: RefillableQueue) -> None:
        first = await begin(queue)
        await queue.enqueue(delivery(1))
        await queue.end_life()
        assert await queue.life() is None
        assert await claim_all(queue) == []
        assert await begin(queue) != first
        assert await run_everything(queue) == [1], "what was there still is"

    @pytest.mark.req("CPY-5")
    async def test_what_is_brought_back_is_what_it_was(self, queue: RefillableQueue) -> None:
        await begin(queue)
        deadline, due = queue.now_ms() + 150_000, queue.now_ms() + 60_000
        parked = delivery(1, raw=b"\xff", suspend=Reason.RAW_PAYLOAD_INVALID)
        timed = msgspec.structs.replace(delivery(2), deadline_at_ms=deadline, due_at_ms=due, generation=3)
        await queue.restore([parked, timed])
        kept = await open_task(queue, parked.head.task_id)
        assert (kept.progress.status, kept.progress.reason, kept.raw) == (
            Status.SUSPENDED,
            Reason.RAW_PAYLOAD_INVALID,
            b"\xff",
        )
        waiting = await open_task(queue, timed.head.task_id)
        assert (waiting.progress.status, waiting.progress.generation) == (Status.PENDING, 3)
        assert (waiting.progress.deadline_at_ms, waiting.progress.due_at_ms) == (deadline, due)
        assert await claim_all(queue) == [], "its time has not come"

    @pytest.mark.req("CPY-5")
    async def test_of_what_was_brought_back_it_is_not_known_whether_anybody_has_begun_with_it(
        self, queue: RefillableQueue
    ) -> None:
        await queue.enqueue(delivery(1, chat="a"))
        await queue.restore([delivery(2, chat="b")])
        await begin(queue)
        claimed = {number_of(claim.task): claim.task.progress for claim in await claim_all(queue)}
        assert {number: progress.is_untouched for number, progress in claimed.items()} == {1: True, 2: False}

    async def test_what_is_open_is_left_as_it_is(self, queue: RefillableQueue) -> None:
        await begin(queue)
        await queue.enqueue(delivery(1))
        claim = await claim_one(queue)
        assert await queue.restore([delivery(1)]) == []
        assert await queue.renew([claim]) == set()
        await queue.settle(claim, claim.task, Suspend(Reason.WORKFLOW_PENDING, "no workflow"))
        assert await queue.restore([delivery(1)]) == []
        assert (await open_task(queue, claim.task.task_id)).progress.reason is Reason.WORKFLOW_PENDING

    @pytest.mark.req("CPY-5")
    @pytest.mark.parametrize("ending", ["finished by its worker", "delivered", "dropped"])
    async def test_what_is_finished_is_not_brought_back(self, queue: RefillableQueue, ending: str) -> None:
        await begin(queue)
        task_id = (await queue.enqueue(delivery(1))).task_id
        if ending == "dropped":
            await queue.cancel(task_id)
        else:
            claim = await claim_one(queue)
            await queue.settle(claim, claim.task, Finished() if ending == "finished by its worker" else Replying())
            await queue.finish(task_id, 0)
        assert await queue.restore([delivery(1)]) == []
        assert await queue.list_open(Selection(), limit=10) == []
        assert await queue.restore([again(delivery(1), 1)]) == [task_id], "a person said to run it again"

    async def test_a_later_generation_takes_the_place_of_an_earlier_one(self, queue: RefillableQueue) -> None:
        await begin(queue)
        await queue.restore([delivery(1, suspend=Reason.STALE_REPLAY)])
        assert await queue.restore([again(delivery(1), 1)]) == [delivery(1).head.task_id]
        assert await queue.restore([delivery(1), again(delivery(1), 1)]) == []
        claim = await claim_one(queue)
        assert (number_of(claim.task), claim.task.progress.generation) == (1, 1)
        assert (await queue.depth()).by_status == {"processing": 1}

    @pytest.mark.req("CPY-4", "QUE-2")
    @pytest.mark.failure("C11", "C14")
    async def test_a_lane_that_is_owed_earlier_messages_hands_out_nothing_until_they_are_there(
        self, stage: RefillingStage
    ) -> None:
        queue, other = stage.queue, await stage.another()
        await begin(queue)
        await queue.enqueue(delivery(1, chat="1"))
        held = await claim_one(queue)
        await queue.enqueue(delivery(5, chat="1"))
        await queue.enqueue(delivery(6, chat="2"))
        lane = held.lane
        await queue.owe("a", [lane], seconds=30)
        await other.owe("b", [lane], seconds=30)
        assert await queue.settle(held, held.task, Finished()) is None, "the fifth is not the next"
        [elsewhere] = await claim_all(queue)
        assert number_of(elsewhere.task) == 6
        await queue.restore([delivery(2, chat="1")])
        await queue.paid("a", [lane])
        stage.pass_time(1)
        assert await claim_all(queue) == [], "another still owes it something"
        await other.restore([delivery(3, chat="1")])
        await other.paid("b", [lane])
        stage.pass_time(1)
        assert await run_everything(queue) == [2, 3, 5]

    @pytest.mark.req("CPY-4", "QUE-3")
    async def test_what_is_owed_by_who_died_is_not_waited_for_for_ever(self, stage: RefillingStage) -> None:
        await begin(stage.queue)
        await stage.queue.enqueue(delivery(1))
        await stage.queue.owe("dies", [delivery(1).head.lane], seconds=1)
        assert await claim_all(stage.queue) == []
        await stage.let_debts_lapse()
        assert await run_everything(stage.queue) == [1]

    @pytest.mark.req("CPY-4", "QUE-3")
    async def test_what_the_dead_owe_is_renewed_by_nobody(self, stage: RefillingStage) -> None:
        await begin(stage.queue)
        await stage.queue.enqueue(delivery(1))
        await stage.queue.owe("dies", [delivery(1).head.lane], seconds=10)
        await stage.queue.owe("lives", [delivery(1).head.lane], seconds=60)
        await stage.queue.paid("lives", [delivery(1).head.lane])
        assert await claim_all(stage.queue) == []
        stage.pass_time(11)
        assert await run_everything(stage.queue) == [1]

    @pytest.mark.req("QUE-2", "CPY-5")
    @pytest.mark.failure("C19")
    async def test_a_claim_that_outlives_the_life_of_the_queue_ends_with_its_task(self, queue: RefillableQueue) -> None:
        await begin(queue)
        await queue.enqueue(delivery(1, chat="1"))
        claim = await claim_one(queue)
        await queue.end_life()
        await queue.enqueue(delivery(3, chat="1"))
        assert await queue.settle(claim, claim.task, Finished()) is None, "the second is not back yet"
        assert await claim_all(queue) == []
        await queue.restore([delivery(2, chat="1")])
        await begin(queue)
        assert await run_everything(queue) == [2, 3]
        assert (await queue.depth()).out_of_order == 0

    @pytest.mark.failure("M6", "D8")
    async def test_what_is_not_open_is_missing(self, queue: RefillableQueue) -> None:
        """Also what has finished: that the ledger knows, and whether it was this message."""
        await begin(queue)
        for number in (1, 2, 3):
            await queue.enqueue(delivery(number))
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Finished())
        ids = [delivery(number).head.task_id for number in (1, 2, 3, 4, 5)]
        assert await queue.missing(ids) == [ids[0], *ids[3:]]
        assert await queue.missing([]) == []

    @pytest.mark.req("ENV-3")
    async def test_its_key_is_remembered_with_it(self, queue: RefillableQueue) -> None:
        await begin(queue)
        now = queue.now_ms()
        task = recent = accepted_at(delivery(1, receipt_seconds=60), now - 30_000)
        await queue.restore([recent])
        again_received = await queue.enqueue(recent)
        assert (again_received.new, again_received.same_body) == (False, True)
        [receipt] = await queue.receipts(limit=10)
        assert (receipt.task_id, receipt.received_at_ms) == (task.head.task_id, now - 30_000)
        assert (await queue.depth()).duplicates == 1, "what was brought back counts as nobody's repetition"

    @pytest.mark.req("ENV-3", "CPY-5")
    @pytest.mark.failure("C19")
    async def test_what_is_run_again_while_it_was_emptied_has_its_key_remembered(self, stage: RefillingStage) -> None:
        """What is brought back afterwards finds the task there, and leaves it alone."""
        queue = stage.queue
        await begin(queue)
        now = queue.now_ms()
        recent, old = accepted_at(delivery(1, chat="1"), now - 30_000), accepted_at(delivery(2, chat="2"), 0)
        for task in (recent, old):
            await queue.enqueue(task)
        kept = [await open_task(queue, task.head.task_id) for task in (recent, old)]
        await stage.empty()
        for ended in kept:
            assert await queue.restart(ended, generation=1)
        assert await queue.restore([recent, old]) == [], "they are there, and further"
        [receipt] = await queue.receipts(limit=10)
        assert (receipt.task_id, receipt.received_at_ms) == (recent.head.task_id, now - 30_000)
        assert not (await queue.enqueue(recent)).new

    @pytest.mark.req("ENV-3", "CPY-5")
    @pytest.mark.failure("M6")
    async def test_the_end_of_a_former_message_keeps_out_none_that_came_under_its_key_since(
        self, stage: RefillingStage
    ) -> None:
        queue = stage.queue
        await begin(queue)
        former = accepted_at(delivery(1, receipt_seconds=60), queue.now_ms())
        await queue.enqueue(former)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Finished())
        assert await queue.restore([former]) == [], "it has finished"
        stage.pass_time(60 + KEY_GRACE_SECONDS + 1)
        await queue.sweep()
        assert await queue.restore([former]) == [], "nor now, when its key is forgotten"
        later = accepted_at(delivery(1, receipt_seconds=60, raw=b"{}"), queue.now_ms())
        assert await queue.restore([later]) == [later.head.task_id]
        assert (await claim_one(queue)).task.raw == b"{}"
        await stage.lose(later.head.task_id)
        assert await queue.restore([later]) == [later.head.task_id], "nor when it has to be brought a second time"

    @pytest.mark.req("QUE-3", "CPY-5")
    @pytest.mark.failure("C19", "I7")
    async def test_who_worked_while_it_was_emptied_has_lost_the_claim(self, stage: RefillingStage) -> None:
        queue = stage.queue
        await begin(queue)
        await queue.enqueue(delivery(1))
        former = await claim_one(queue)
        await stage.empty()
        await queue.restore([delivery(1)])
        await begin(queue)
        assert await queue.renew([former]) == {former.fence}
        with pytest.raises(ClaimLost):
            await queue.settle(former, former.task, Finished())
        claim = await claim_one(queue)
        assert claim.fence > former.fence
        with pytest.raises(ClaimLost):
            await queue.settle(former, former.task, Finished())
        assert await queue.renew([claim]) == set()

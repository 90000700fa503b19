"""What every queue promises, executable.

    class TestMyQueue(QueueConformance):
        @pytest.fixture
        async def stage(self, tmp_path): ...

The queue under test is configured with `CLAIM`, `TASKS_PER_CLAIM`, `DEATHS_SUSPECT` and `DEATHS_MAX`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final, Protocol

import msgspec
import pytest

from rise.envelope import FOLLOW_UP, DeliveryKey, Head, LaneKey, Order, Reason, Status, Task, TaskId, task_id_of
from rise.errors import ClaimLost
from rise.queue.port import (
    KEY_GRACE_SECONDS,
    Anew,
    Claim,
    Enqueued,
    Finished,
    NewTask,
    OpenTask,
    Queue,
    QueueLimits,
    Receipt,
    Replying,
    RetryIn,
    Route,
    Selection,
    Settlement,
    Suspend,
)
from rise.testing.clock import ManualClock

CLAIM: Final = timedelta(seconds=30)
TASKS_PER_CLAIM: Final = 3
DEATHS_SUSPECT: Final = 2
DEATHS_MAX: Final = 3
LANE_MEMORY: Final = QueueLimits().lane_memory

HOUR: Final = 3600
RECEIPT_SECONDS: Final = 72 * HOUR


class QueueStage(Protocol):
    """A queue, and the hands that reach where a worker cannot."""

    queue: Queue

    async def another(self) -> Queue:
        """The same store, as another process sees it."""
        ...

    def pass_time(self, seconds: float) -> None:
        """On the store's clock, and everywhere else."""
        ...

    def step_wall_clock(self, seconds: float) -> None:
        """On this host's wall clock alone."""
        ...

    async def lose_hints(self) -> None:
        """Everything that says that a lane has work, but the work itself."""
        ...

    async def overwrite_head(self, task_id: TaskId, stored: bytes) -> None: ...

    async def overwrite_words(self, task_id: TaskId, *, status: str, reason: str) -> None:
        """As a newer version may have said it."""
        ...

    async def leftovers(self) -> dict[str, int]:
        """What is stored for tasks, by kind; receipts and the memory of idle lanes apart."""
        ...


def delivery(
    number: int,
    *,
    chat: str = "1",
    account: str = "7",
    channel: str = "telegram",
    at: int | None = None,
    raw: bytes | None = None,
    suspend: Reason | None = None,
    deadline_at_ms: int | None = None,
    due_at_ms: int | None = None,
    receipt_seconds: int = RECEIPT_SECONDS,
    workflow_id: str | None = None,
) -> NewTask:
    """The update `number` of a bot: dated by it unless said otherwise, in the lane of its chat."""
    key = DeliveryKey(f"tg:{account}:u:{number}")
    body = raw if raw is not None else b'{"update_id":%d}' % number
    head = Head(
        task_id=task_id_of(key),
        delivery_key=key,
        channel=channel,
        account=account,
        source="webhook",
        lane=lane_of(chat, account=account, channel=channel),
        order=Order(number * 1000 if at is None else at, number),
        accepted_at_ms=number,
        request_id=f"r{number}",
        trace_id=f"r{number}",
        idempotency_key=f"telegram:pending:{chat}:{number}",
        chat_id=chat,
        workflow_id=workflow_id,
        user_text=f"message {number}",
        raw_sha256=hashlib.sha256(body).hexdigest(),
        receipt_seconds=receipt_seconds,
    )
    return NewTask(head, body, suspend=suspend, deadline_at_ms=deadline_at_ms, due_at_ms=due_at_ms)


def not_awaited(task: NewTask) -> NewTask:
    """What nobody has just written: a follow-up whose moment has come."""
    return msgspec.structs.replace(task, head=msgspec.structs.replace(task.head, kind=FOLLOW_UP))


def planned(number: int, *, due_at_ms: int) -> NewTask:
    """What waits for its moment, in a lane of its own."""
    return not_awaited(delivery(number, chat=f"planned {number}", at=due_at_ms, due_at_ms=due_at_ms))


async def taken(stage: QueueStage, count: int) -> list[int]:
    """The numbers of what one after the other is claimed, with one place, and finished."""
    numbers = []
    for _ in range(count):
        claim = await claim_one(stage.queue)
        numbers.append(number_of(claim.task))
        await stage.queue.settle(claim, claim.task, Finished())
        stage.pass_time(0.01)
    return numbers


def lane_of(chat: str, *, account: str = "7", channel: str = "telegram") -> LaneKey:
    return LaneKey(f"{channel}:{account}:{chat}")


def number_of(task: Task | OpenTask) -> int:
    return task.head.order.seq


async def enqueue(queue: Queue, *numbers: int, chat: str = "1") -> list[TaskId]:
    return [(await queue.enqueue(delivery(number, chat=chat))).task_id for number in numbers]


async def claim_all(queue: Queue, holder: str = "w1", *, room: int = 100, takes_suspects: bool = True) -> list[Claim]:
    return (await queue.claim(holder, {"telegram": room}, takes_suspects=takes_suspects)).claims


async def claim_one(queue: Queue, holder: str = "w1") -> Claim:
    [claim] = await claim_all(queue, holder, room=1)
    return claim


async def open_task(queue: Queue, task_id: TaskId) -> Task:
    task = await queue.get(task_id)
    assert task is not None, f"{task_id} is gone"
    return task


async def run_lane(queue: Queue, claim: Claim | None) -> list[int]:
    """Finish one task after the other until the claim is let go; returns their numbers."""
    ran = []
    while claim is not None:
        ran.append(number_of(claim.task))
        claim = await queue.settle(claim, claim.task, Finished())
    return ran


async def run_everything(queue: Queue) -> list[int]:
    ran = []
    while claims := await claim_all(queue, room=1):
        ran += await run_lane(queue, claims[0])
    return ran


async def die(stage: QueueStage, *holders: str) -> None:
    """The processes are killed, and their claims lapse."""
    stage.pass_time(CLAIM.total_seconds() + 1)


class QueueConformance:
    """Every promise of `rise.queue.port.Queue`."""

    @pytest.fixture
    async def stage(self) -> QueueStage:
        raise NotImplementedError("a backend's suite says how to make one")

    @pytest.fixture
    def queue(self, stage: QueueStage) -> Queue:
        return stage.queue

    # --- accepting ---

    @pytest.mark.req("ENV-3")
    async def test_a_delivery_becomes_a_task_that_can_be_claimed(self, queue: Queue) -> None:
        enqueued = await queue.enqueue(delivery(1))
        assert enqueued == Enqueued(task_id_of(DeliveryKey("tg:7:u:1")), new=True)
        claim = await claim_one(queue)
        assert claim.task.head == delivery(1).head
        assert claim.task.progress.status is Status.PROCESSING
        assert (claim.lane, claim.channel, claim.holder) == (lane_of("1"), "telegram", "w1")

    @pytest.mark.parametrize("raw", [b"", b"\x00\xff\xfe not JSON", b'{"text":"\\ud800"}', bytes(range(256)) * 4096])
    async def test_the_bytes_received_come_back_untouched(self, queue: Queue, raw: bytes) -> None:
        [task_id] = [(await queue.enqueue(delivery(1, raw=raw))).task_id]
        assert (await open_task(queue, task_id)).raw == raw
        assert (await claim_one(queue)).task.raw == raw

    @pytest.mark.req("ENV-3")
    @pytest.mark.failure("A1", "A3", "A4", "C13")
    async def test_a_duplicate_creates_nothing_and_names_the_first_task(self, queue: Queue) -> None:
        first = await queue.enqueue(delivery(1))
        again = await queue.enqueue(delivery(1))
        assert again == Enqueued(first.task_id, new=False)
        assert await run_everything(queue) == [1]
        depth = await queue.depth()
        assert (depth.accepted, depth.duplicates) == (1, 1)

    @pytest.mark.req("ENV-3")
    @pytest.mark.failure("A2", "C29")
    async def test_duplicates_at_the_same_moment_in_several_processes_create_one_task(self, stage: QueueStage) -> None:
        queues = [stage.queue, await stage.another(), await stage.another()]
        enqueued = await asyncio.gather(*(queue.enqueue(delivery(1)) for queue in queues * 10))
        assert sum(one.new for one in enqueued) == 1
        assert len({one.task_id for one in enqueued}) == 1
        assert await run_everything(stage.queue) == [1]
        assert (await stage.queue.depth()).duplicates == 29

    @pytest.mark.failure("A19")
    async def test_the_same_key_with_another_body_is_noticed(self, queue: Queue) -> None:
        await queue.enqueue(delivery(1, raw=b"one"))
        assert not (await queue.enqueue(delivery(1, raw=b"two"))).same_body
        assert (await queue.enqueue(delivery(1, raw=b"one"))).same_body
        assert (await claim_one(queue)).task.raw == b"one"

    @pytest.mark.failure("H10")
    async def test_a_duplicate_of_a_suspended_task_is_known(self, queue: Queue) -> None:
        await queue.enqueue(delivery(1))
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Suspend(Reason.WORKFLOW_PENDING))
        assert not (await queue.enqueue(delivery(1))).new

    async def test_a_key_is_remembered_after_its_task_is_finished(self, stage: QueueStage) -> None:
        await stage.queue.enqueue(delivery(1))
        await run_everything(stage.queue)
        stage.pass_time(RECEIPT_SECONDS - 1)
        await stage.queue.sweep()
        assert not (await stage.queue.enqueue(delivery(1))).new
        assert await claim_all(stage.queue) == []

    @pytest.mark.failure("A7")
    async def test_a_key_is_forgotten_when_its_time_is_over(self, stage: QueueStage) -> None:
        await stage.queue.enqueue(delivery(1))
        await run_everything(stage.queue)
        stage.pass_time(RECEIPT_SECONDS + KEY_GRACE_SECONDS + 1)
        await stage.queue.sweep()
        assert await stage.queue.receipts(limit=10) == []
        assert (await stage.queue.enqueue(delivery(1))).new

    @pytest.mark.req("ENV-3")
    @pytest.mark.failure("A7")
    async def test_a_key_is_remembered_for_whoever_read_the_time_just_before_that_was_over(
        self, stage: QueueStage
    ) -> None:
        await stage.queue.enqueue(delivery(1))
        await run_everything(stage.queue)
        stage.pass_time(RECEIPT_SECONDS + KEY_GRACE_SECONDS - 1)
        await stage.queue.sweep()
        assert not (await stage.queue.enqueue(delivery(1))).new

    @pytest.mark.req("ENV-3")
    @pytest.mark.failure("A7")
    async def test_a_sweep_that_doubts_the_clock_forgets_no_key(self, stage: QueueStage) -> None:
        await stage.queue.enqueue(delivery(1))
        await run_everything(stage.queue)
        stage.pass_time(RECEIPT_SECONDS + KEY_GRACE_SECONDS + 1)
        await stage.queue.sweep(forgets=False)
        assert len(await stage.queue.receipts(limit=10)) == 1
        await stage.queue.sweep()
        assert await stage.queue.receipts(limit=10) == []

    @pytest.mark.failure("H9")
    async def test_an_open_task_is_known_even_when_its_key_is_forgotten(self, stage: QueueStage) -> None:
        first = await stage.queue.enqueue(delivery(1, raw=b"first", suspend=Reason.RAW_PAYLOAD_INVALID))
        stage.pass_time(RECEIPT_SECONDS + KEY_GRACE_SECONDS + 1)
        await stage.queue.sweep()
        again = await stage.queue.enqueue(delivery(1, raw=b"second"))
        assert again == Enqueued(first.task_id, new=False, same_body=False)
        assert (await open_task(stage.queue, first.task_id)).raw == b"first"

    @pytest.mark.failure("A9")
    async def test_update_ids_may_jump_back(self, queue: Queue) -> None:
        for number in (5_000, 7, 4_999, 6):
            assert (await queue.enqueue(delivery(number, at=1))).new

    @pytest.mark.failure("A14")
    async def test_two_bots_with_the_same_numbers_have_two_tasks(self, queue: Queue) -> None:
        first = await queue.enqueue(delivery(1, account="7"))
        second = await queue.enqueue(delivery(1, account="8"))
        assert first.new
        assert second.new
        assert len(await claim_all(queue)) == 2

    async def test_a_delivery_accepted_as_suspended_is_kept_and_not_run(self, queue: Queue) -> None:
        enqueued = await queue.enqueue(delivery(1, raw=b"\xff", suspend=Reason.RAW_PAYLOAD_INVALID))
        await enqueue(queue, 2)
        assert await run_everything(queue) == [2]
        kept = await open_task(queue, enqueued.task_id)
        assert (kept.progress.status, kept.progress.reason) == (Status.SUSPENDED, Reason.RAW_PAYLOAD_INVALID)
        assert kept.raw == b"\xff"

    async def test_a_deadline_is_kept(self, queue: Queue) -> None:
        deadline = queue.now_ms() + 150_000
        await queue.enqueue(delivery(1, deadline_at_ms=deadline))
        assert (await claim_one(queue)).task.progress.deadline_at_ms == deadline

    @pytest.mark.req("ENV-6")
    async def test_35_updates_with_5_duplicates_and_3_reordered_make_30_tasks(self, queue: Queue) -> None:
        numbers = list(range(1, 31))
        for early, late in ((3, 4), (11, 12), (20, 21)):
            numbers[early], numbers[late] = numbers[late], numbers[early]
        numbers += [1, 5, 9, 13, 30]
        enqueued = [await queue.enqueue(delivery(number)) for number in numbers]
        assert sum(one.new for one in enqueued) == 30
        assert sum(one.out_of_order for one in enqueued) == 3
        depth = await queue.depth()
        assert (depth.accepted, depth.duplicates, depth.out_of_order) == (30, 5, 3)
        assert await run_everything(queue) == list(range(1, 31))

    # --- order ---

    @pytest.mark.req("QUE-2")
    @pytest.mark.parametrize("seed", range(5))
    async def test_a_lane_runs_in_the_platforms_order_whatever_the_arrival(self, queue: Queue, seed: int) -> None:
        dice = ManualClock(seed=seed).random
        # Several with one date: then the update id decides.
        deliveries = [delivery(number, at=dice.choice((1000, 2000, 3000))) for number in range(1, 13)]
        expected = [one.head.order.seq for one in sorted(deliveries, key=lambda one: one.head.order)]
        dice.shuffle(deliveries)
        await asyncio.gather(*(queue.enqueue(one) for one in deliveries))
        assert await run_everything(queue) == expected

    @pytest.mark.req("QUE-2")
    async def test_a_late_arrival_runs_next_and_is_counted(self, queue: Queue) -> None:
        await enqueue(queue, 5, 6)
        claim = await claim_one(queue)
        late = await queue.enqueue(delivery(3))
        assert (late.out_of_order, late.late) == (True, True)
        early = await queue.enqueue(delivery(7))
        assert (early.out_of_order, early.late) == (False, False)
        assert await run_lane(queue, claim) == [5, 3, 6]
        assert (await queue.depth()).out_of_order == 1

    async def test_out_of_order_is_not_late_while_the_later_one_has_not_started(self, queue: Queue) -> None:
        await enqueue(queue, 5)
        assert await queue.enqueue(delivery(3)) == Enqueued(
            task_id_of(DeliveryKey("tg:7:u:3")), new=True, out_of_order=True
        )
        assert await run_everything(queue) == [3, 5]

    @pytest.mark.req("QUE-2")
    async def test_an_idle_lane_notices_for_its_time_what_comes_late(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 5)
        assert await run_everything(stage.queue) == [5]
        stage.pass_time(LANE_MEMORY.total_seconds() - 1)
        await stage.queue.sweep()
        assert (await stage.queue.enqueue(delivery(3))).late
        assert await run_everything(stage.queue) == [3]
        stage.pass_time(LANE_MEMORY.total_seconds() + 1)
        await stage.queue.sweep()
        assert not (await stage.queue.enqueue(delivery(4))).out_of_order

    @pytest.mark.req("TMP-5")
    async def test_what_is_planned_is_in_order_however_it_came(self, queue: Queue) -> None:
        soon = queue.now_ms() + 60_000
        for number, due_at_ms in ((1, soon + 2000), (2, soon), (3, soon + 1000)):
            enqueued = await queue.enqueue(delivery(number, at=due_at_ms, due_at_ms=due_at_ms))
            assert (enqueued.out_of_order, enqueued.late) == (False, False)
        assert not (await queue.enqueue(delivery(4, at=queue.now_ms()))).out_of_order, "nor what is due before it"
        assert (await queue.depth()).out_of_order == 0

    async def test_of_one_date_the_number_tells_what_is_out_of_order(self, queue: Queue) -> None:
        one, two, three = (delivery(number, at=1000) for number in (1, 2, 3))
        assert [(await queue.enqueue(each)).out_of_order for each in (one, three, two)] == [False, False, True]

    async def test_what_comes_in_the_same_moment_is_not_out_of_order(self, queue: Queue) -> None:
        for number in (1, 2):
            task = delivery(number)
            same = msgspec.structs.replace(task.head, order=Order(1000, 0))
            enqueued = await queue.enqueue(msgspec.structs.replace(task, head=same))
            assert (enqueued.out_of_order, enqueued.late) == (False, False)
            await claim_all(queue)
        assert (await queue.depth()).out_of_order == 0

    @pytest.mark.req("QUE-2")
    @pytest.mark.failure("A10")
    async def test_chats_do_not_wait_for_each_other(self, queue: Queue) -> None:
        await enqueue(queue, 1, 2, chat="slow")
        slow = await claim_one(queue)
        await enqueue(queue, 3, chat="quick")
        quick = await claim_one(queue, "w2")
        assert number_of(quick.task) == 3
        assert await run_lane(queue, quick) == [3]
        assert await run_lane(queue, slow) == [1, 2]

    async def test_the_lane_that_waited_longest_comes_first(self, stage: QueueStage) -> None:
        for number, chat in ((9, "a"), (1, "b"), (5, "c")):
            await enqueue(stage.queue, number, chat=chat)
            stage.pass_time(0.01)
        claims = [await claim_one(stage.queue) for _ in range(3)]
        assert [number_of(claim.task) for claim in claims] == [9, 1, 5]

    @pytest.mark.req("QUE-2", "TMP-5")
    @pytest.mark.failure("FU8")
    @pytest.mark.parametrize("hours", [0, 24])
    async def test_of_four_places_three_are_for_those_who_wait_however_long_others_have_been_due(
        self, stage: QueueStage, hours: int
    ) -> None:
        queue, due_at_ms = stage.queue, stage.queue.now_ms() + 1000
        for number in range(1, 7):
            await queue.enqueue(planned(number, due_at_ms=due_at_ms))
        stage.pass_time(2 + hours * 3600)
        for number in range(11, 20):
            await enqueue(queue, number, chat=str(number))
            stage.pass_time(0.01)
        numbers = await taken(stage, 12)
        people = [number for number in numbers if number > 10]
        assert people == list(range(11, 20)), "each in its turn"
        for first in range(0, 12, 4):
            assert sum(number > 10 for number in numbers[first : first + 4]) == 3
        assert set(await taken(stage, 3)) | set(numbers) == {*range(1, 7), *range(11, 20)}

    @pytest.mark.req("QUE-2", "TMP-5")
    @pytest.mark.failure("FU8")
    async def test_whoever_takes_several_takes_so_many_of_each(self, stage: QueueStage) -> None:
        queue = stage.queue
        for number in range(1, 20):
            await queue.enqueue(not_awaited(delivery(number, chat=str(number))))
        stage.pass_time(60)
        await enqueue(queue, *range(31, 50), chat="long")
        for number in range(51, 70):
            await enqueue(queue, number, chat=str(number))
        claims = await claim_all(queue, room=8)
        assert sum(number_of(claim.task) > 30 for claim in claims) == 6

    @pytest.mark.req("QUE-2", "QUE-3")
    @pytest.mark.failure("E4")
    @pytest.mark.parametrize("is_awaited", [True, False])
    async def test_a_suspect_is_given_to_an_empty_worker_alone_however_much_else_waits_in_whichever_channel(
        self, stage: QueueStage, is_awaited: bool
    ) -> None:
        queue = stage.queue
        poison = delivery(1, chat="suspect", channel="http")
        await queue.enqueue(poison if is_awaited else not_awaited(poison))
        for death in range(DEATHS_SUSPECT):
            [claim] = (await queue.claim(f"w{death}", {"http": 1, "telegram": 1}, takes_suspects=True)).claims
            stage.pass_time(CLAIM.total_seconds() + 1)
        for number in range(101, 160):
            await queue.enqueue(delivery(number, chat=str(number)))
            await queue.enqueue(not_awaited(delivery(number + 100, chat=str(number + 100))))
            await queue.enqueue(delivery(number + 200, chat=str(number + 200), channel="http"))
        stage.pass_time(1)
        room = {"telegram": 32, "http": 32}
        seen = await queue.claim("others", room, takes_suspects=False)
        assert seen.suspects_waiting
        assert 1 not in {number_of(claim.task) for claim in seen.claims}
        [claim] = (await queue.claim("empty", room, takes_suspects=True)).claims
        assert number_of(claim.task) == 1
        assert claim.task.progress.deaths == DEATHS_SUSPECT

    @pytest.mark.req("QUE-2", "TMP-5")
    @pytest.mark.failure("FU8")
    async def test_what_cannot_be_claimed_uses_up_nobodys_turn(self, stage: QueueStage) -> None:
        queue = stage.queue
        await queue.enqueue(not_awaited(delivery(5, chat="suspect")))
        for death in range(DEATHS_SUSPECT):
            assert [number_of(claim.task) for claim in await claim_all(queue, f"w{death}")] == [5]
            stage.pass_time(CLAIM.total_seconds() + 1)
        for number in range(21, 60):
            await queue.enqueue(planned(number, due_at_ms=queue.now_ms() + HOUR * 1000))
        for number in range(1, 4):
            await queue.enqueue(planned(number, due_at_ms=queue.now_ms() + 1000))
        stage.pass_time(2)
        for number in range(101, 140):
            await enqueue(queue, number, chat=str(number))
            stage.pass_time(0.01)
        numbers = []
        for _ in range(12):
            [claim] = await claim_all(queue, room=1, takes_suspects=False)
            numbers.append(number_of(claim.task))
            await queue.settle(claim, claim.task, Finished())
        assert sum(number < 100 for number in numbers) == 3, numbers

    @pytest.mark.req("QUE-2", "TMP-5")
    async def test_each_channel_has_turns_of_its_own(self, stage: QueueStage) -> None:
        queue, others = stage.queue, Counter[str]()
        for channel, first in (("telegram", 1), ("http", 1001)):
            for number in range(first, first + 60):
                await queue.enqueue(delivery(number, chat=f"person {number}", channel=channel))
                await queue.enqueue(not_awaited(delivery(number + 100, chat=f"other {number}", channel=channel)))
        stage.pass_time(0.01)
        for _ in range(16):
            for claim in (await queue.claim("w1", {"telegram": 1, "http": 3}, takes_suspects=False)).claims:
                others[claim.channel] += not claim.task.head.is_awaited
        assert others == {"telegram": 4, "http": 12}

    @pytest.mark.req("QUE-2")
    async def test_where_there_is_room_for_all_the_longest_waiting_comes_first(self, stage: QueueStage) -> None:
        queue = stage.queue
        await queue.enqueue(not_awaited(delivery(1, chat="a")))
        stage.pass_time(0.01)
        await enqueue(queue, 2, chat="b")
        assert [number_of(claim.task) for claim in await claim_all(queue, room=2)] == [1, 2]

    @pytest.mark.req("QUE-2", "TMP-5")
    async def test_a_lane_is_one_of_those_from_when_somebody_writes_until_nothing_is_to_be_done_in_it(
        self, stage: QueueStage
    ) -> None:
        queue = stage.queue
        for number in range(1, 30):
            await queue.enqueue(not_awaited(delivery(number, chat=f"other {number}")))
            stage.pass_time(0.001)
        await queue.enqueue(not_awaited(delivery(31, chat="a")))
        await enqueue(queue, 32, chat="a")
        stage.pass_time(0.01)

        async def is_among_the_next(number: int) -> bool:
            claims = await claim_all(queue, room=2)
            await queue.hand_back("w1")
            return number in {number_of(claim.task) for claim in claims}

        assert await is_among_the_next(31), "somebody waits for what comes behind it"
        [claim] = [one for one in await claim_all(queue, room=2) if one.lane == lane_of("a")]
        await queue.settle(claim, claim.task, RetryIn(1.0, "again", counts=False))
        stage.pass_time(2)
        assert await is_among_the_next(31), "still"
        [claim] = [one for one in await claim_all(queue, room=2) if one.lane == lane_of("a")]
        assert await run_lane(queue, claim) == [31, 32]
        await queue.hand_back("w1")
        await queue.enqueue(not_awaited(delivery(33, chat="a")))
        stage.pass_time(0.01)
        assert not await is_among_the_next(33)
        assert not await is_among_the_next(33)

    @pytest.mark.req("QUE-2", "QUE-3")
    async def test_who_waits_goes_first_also_when_the_worker_died_or_failed_or_somebody_let_it_go_on(
        self, stage: QueueStage
    ) -> None:
        queue = stage.queue
        for number in range(1, 40):
            await queue.enqueue(not_awaited(delivery(number, chat=f"other {number}")))
        stage.pass_time(1)
        await enqueue(queue, 51, chat="a")
        await queue.enqueue(delivery(52, chat="b", suspend=Reason.WORKFLOW_PENDING))
        [claim] = [one for one in await claim_all(queue, "w2", room=2) if one.lane == lane_of("a")]
        assert number_of(claim.task) == 51
        await queue.reclaim("w2")
        stage.pass_time(0.01)
        assert 51 in {number_of(one.task) for one in await claim_all(queue, "w3", room=2)}
        assert await queue.resume(Selection(reason=Reason.WORKFLOW_PENDING), limit=10)
        stage.pass_time(0.01)
        assert 52 in {number_of(one.task) for one in await claim_all(queue, "w4", room=2)}

    async def test_no_more_lanes_are_taken_than_there_is_room_for(self, queue: Queue) -> None:
        for number in range(1, 6):
            await queue.enqueue(delivery(number, chat=str(number)))
            await queue.enqueue(delivery(number + 10, chat=str(number), channel="webchat"))
        claimed = await queue.claim("w1", {"telegram": 2, "webchat": 1}, takes_suspects=True)
        assert sorted(claim.channel for claim in claimed.claims) == ["telegram", "telegram", "webchat"]
        assert (await queue.claim("w1", {"telegram": 0}, takes_suspects=False)).claims == []
        assert (await queue.claim("w1", {}, takes_suspects=False)).claims == []

    @pytest.mark.failure("D13")
    async def test_a_long_lane_lets_others_have_their_turn(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, *range(1, 8), chat="long")
        stage.pass_time(0.01)
        await enqueue(stage.queue, 20, chat="short")
        stage.pass_time(0.01)
        turns = []
        while claims := await claim_all(stage.queue, room=1):
            turns.append(await run_lane(stage.queue, claims[0]))
            stage.pass_time(0.01)
        assert turns == [[1, 2, 3], [20], [4, 5, 6], [7]]

    # --- claims ---

    @pytest.mark.failure("D3")
    async def test_a_lane_has_one_live_claim_however_many_ask(self, stage: QueueStage) -> None:
        queues = [stage.queue, await stage.another(), await stage.another()]
        await enqueue(stage.queue, 1, 2)
        claimed = await asyncio.gather(*(claim_all(queue, f"w{n}") for n, queue in enumerate(queues * 5)))
        assert sum(len(claims) for claims in claimed) == 1
        assert (await stage.queue.depth()).lanes_claimed == 1

    async def test_settling_starts_the_next_task_of_the_lane(self, queue: Queue) -> None:
        await enqueue(queue, 1)
        claim = await claim_one(queue)
        await enqueue(queue, 2)
        following = await queue.settle(claim, claim.task, Finished())
        assert following is not None
        assert number_of(following.task) == 2
        assert following.fence == claim.fence
        assert following.tasks_left == claim.tasks_left - 1
        assert await queue.settle(following, following.task, Finished()) is None

    async def test_a_lane_that_was_let_go_is_claimable_when_something_comes(self, queue: Queue) -> None:
        await enqueue(queue, 1)
        await run_everything(queue)
        assert await claim_all(queue) == []
        await enqueue(queue, 2)
        assert number_of((await claim_one(queue)).task) == 2

    async def test_fences_only_grow(self, stage: QueueStage) -> None:
        fences = []
        for number in range(1, 6):
            await enqueue(stage.queue, number, chat=str(number % 2))
            claim = await claim_one(stage.queue)
            fences.append(claim.fence)
            if number % 2:
                await die(stage)
                fences.append((await claim_one(stage.queue)).fence)
            await die(stage)
        assert fences == sorted(set(fences))

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("D1")
    async def test_a_lost_workers_task_goes_to_another_with_one_death_counted(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1, 2)
        claim = await claim_one(stage.queue)
        stage.pass_time(CLAIM.total_seconds() - 1)
        assert await claim_all(stage.queue, "w2") == []
        stage.pass_time(2)
        again = await claim_one(stage.queue, "w2")
        assert (number_of(again.task), again.task.progress.deaths, again.task.progress.attempts) == (1, 1, 0)
        assert again.fence > claim.fence
        assert await run_lane(stage.queue, again) == [1, 2]

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("D2", "E5")
    @pytest.mark.parametrize(
        "settlement",
        [Finished(), Replying(), Suspend(Reason.KILL_SWITCH), RetryIn(1, "late", counts=True), Anew(1)],
        ids=lambda settlement: type(settlement).__name__,
    )
    async def test_who_lost_the_claim_changes_nothing(self, stage: QueueStage, settlement: Settlement) -> None:
        [task_id, _] = await enqueue(stage.queue, 1, 2)
        stale = await claim_one(stage.queue)
        await die(stage)
        claim = await claim_one(stage.queue, "w2")
        before = await open_task(stage.queue, task_id)
        with pytest.raises(ClaimLost):
            await stage.queue.settle(stale, stale.task, settlement)
        assert await stage.queue.renew([stale]) == {stale.fence}
        assert await open_task(stage.queue, task_id) == before
        assert await run_lane(stage.queue, claim) == [1, 2]

    @pytest.mark.failure("D2")
    async def test_who_lost_the_claim_changes_nothing_when_nobody_took_it_over(self, stage: QueueStage) -> None:
        """Its death was counted and the message parked: it must not come back to life behind that."""
        [task_id] = await enqueue(stage.queue, 1)
        for _ in range(DEATHS_MAX):
            stale = await claim_one(stage.queue)
            await die(stage)
        assert await claim_all(stage.queue) == []
        with pytest.raises(ClaimLost):
            await stage.queue.settle(stale, stale.task, Replying())
        assert await stage.queue.renew([stale]) == {stale.fence}
        progress = (await open_task(stage.queue, task_id)).progress
        assert (progress.status, progress.reason) == (Status.SUSPENDED, Reason.POISON)

    @pytest.mark.failure("D2")
    async def test_who_was_taken_for_dead_has_lost_its_claim(self, stage: QueueStage) -> None:
        """Also where the task now waits for a worker of its own."""
        await enqueue(stage.queue, 1)
        for _ in range(DEATHS_SUSPECT):
            stale = await claim_one(stage.queue)
            await die(stage)
        busy = await stage.queue.claim("w2", {"telegram": 1}, takes_suspects=False)
        assert (busy.claims, busy.suspects_waiting) == ([], True)
        assert await stage.queue.renew([stale]) == {stale.fence}
        with pytest.raises(ClaimLost):
            await stage.queue.settle(stale, stale.task, Finished())
        assert number_of((await claim_one(stage.queue, "w3")).task) == 1

    async def test_a_claim_that_lapsed_unnoticed_is_still_good(self, stage: QueueStage) -> None:
        """Nobody else has it: throwing the work away would help nobody."""
        await enqueue(stage.queue, 1)
        claim = await claim_one(stage.queue)
        await die(stage)
        assert await stage.queue.renew([claim]) == set()
        assert await claim_all(stage.queue, "w2") == []
        assert await stage.queue.settle(claim, claim.task, Finished()) is None

    async def test_a_claim_that_is_renewed_lasts_longer(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1)
        claim = await claim_one(stage.queue)
        for _ in range(5):
            stage.pass_time(CLAIM.total_seconds() - 1)
            assert await stage.queue.renew([claim]) == set()
        assert await claim_all(stage.queue, "w2") == []
        assert await run_lane(stage.queue, claim) == [1]

    async def test_renewing_tells_the_lost_from_the_kept(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1, chat="a")
        lost = await claim_one(stage.queue)
        await die(stage)
        await claim_one(stage.queue, "w2")
        await enqueue(stage.queue, 2, chat="b")
        kept = await claim_one(stage.queue)
        assert await stage.queue.renew([lost, kept]) == {lost.fence}

    async def test_a_claim_that_was_settled_cannot_be_renewed(self, queue: Queue) -> None:
        await enqueue(queue, 1)
        claim = await claim_one(queue)
        await run_lane(queue, claim)
        assert await queue.renew([claim]) == {claim.fence}
        with pytest.raises(ClaimLost):
            await queue.settle(claim, claim.task, Finished())

    @pytest.mark.failure("L1", "D17")
    async def test_steps_of_the_wall_clock_do_not_move_claims(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1)
        claim = await claim_one(stage.queue)
        before = stage.queue.now_ms()
        for seconds in (86_400, -2 * 86_400, 86_400):
            stage.step_wall_clock(seconds)
            assert await claim_all(stage.queue, "w2") == []
        assert abs(stage.queue.now_ms() - before) < 1000
        stage.step_wall_clock(-86_400)
        await die(stage)
        assert len(await claim_all(await stage.another(), "w2")) == 1
        assert await stage.queue.renew([claim]) == {claim.fence}

    @pytest.mark.req("QUE-3")
    async def test_the_claims_of_a_process_known_to_be_dead_are_free_at_once(self, stage: QueueStage) -> None:
        queue = stage.queue
        await enqueue(queue, 1, chat="a")
        await enqueue(queue, 2, chat="b")
        await claim_one(queue, "dead")
        alive = await claim_one(queue, "alive")
        assert await queue.reclaim("dead") == 1
        assert await queue.reclaim("never heard of") == 0
        again = await claim_all(queue, "w3")
        assert [(number_of(claim.task), claim.task.progress.deaths) for claim in again] == [(1, 1)]
        assert await queue.reclaim("dead") == 0
        assert await run_lane(queue, alive) == [2]

    # --- deaths ---

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("E4")
    async def test_a_message_that_killed_three_processes_is_parked_and_the_lane_goes_on(
        self, stage: QueueStage
    ) -> None:
        [poison, _] = await enqueue(stage.queue, 1, 2)
        for death in range(DEATHS_MAX):
            claim = await claim_one(stage.queue)
            assert (number_of(claim.task), claim.task.progress.deaths) == (1, death)
            await die(stage)
        assert await run_everything(stage.queue) == [2]
        progress = (await open_task(stage.queue, poison)).progress
        assert (progress.status, progress.reason, progress.deaths) == (Status.SUSPENDED, Reason.POISON, DEATHS_MAX)
        assert progress.error

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("E4")
    async def test_a_claim_that_nobody_could_renew_is_no_death(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1)
        claim = await claim_one(stage.queue)
        for _ in range(DEATHS_MAX):
            await die(stage)
            lost, [claim] = (
                claim,
                (await stage.queue.claim("w2", {"telegram": 1}, takes_suspects=True, counts_deaths=False)).claims,
            )
            assert claim.task.progress.deaths == 0
            assert await stage.queue.renew([lost]) == {lost.fence}

    @pytest.mark.failure("E4")
    async def test_a_suspect_is_given_only_to_an_idle_worker_and_alone(self, stage: QueueStage) -> None:
        queue = stage.queue
        await enqueue(queue, 1, 2, chat="suspect")
        for _ in range(DEATHS_SUSPECT):
            await claim_one(queue)
            await die(stage)
        stage.pass_time(1)
        await enqueue(queue, 3, chat="other")

        busy = await queue.claim("w1", {"telegram": 10}, takes_suspects=False)
        assert [number_of(claim.task) for claim in busy.claims] == [3]
        assert busy.suspects_waiting

        await enqueue(queue, 4, chat="third")
        idle = await queue.claim("w2", {"telegram": 10}, takes_suspects=True)
        assert [number_of(claim.task) for claim in idle.claims] in ([1], [4])
        if number_of(idle.claims[0].task) == 4:
            assert idle.suspects_waiting
            await run_lane(queue, idle.claims[0])
            idle = await queue.claim("w2", {"telegram": 10}, takes_suspects=True)
        [alone] = idle.claims
        assert (number_of(alone.task), alone.tasks_left) == (1, 0)
        assert await queue.settle(alone, alone.task, Finished()) is None, "the next task is claimed anew"
        assert 2 in await run_everything(queue)

    async def test_settling_never_hands_over_a_suspect(self, stage: QueueStage) -> None:
        """The claim's worker may be running other lanes."""
        await enqueue(stage.queue, 2)
        for _ in range(DEATHS_SUSPECT):
            await claim_one(stage.queue)
            await die(stage)
        await stage.queue.enqueue(delivery(1))
        claim = await claim_one(stage.queue)
        assert number_of(claim.task) == 1
        assert await stage.queue.settle(claim, claim.task, Finished()) is None
        assert number_of((await claim_one(stage.queue)).task) == 2

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("E4")
    async def test_messages_that_ran_beside_a_killer_are_not_parked_with_it(self, stage: QueueStage) -> None:
        queue, killer = stage.queue, 3
        for number in range(1, 6):
            await enqueue(queue, number, chat=str(number))
        answered = []
        for worker in range(20):
            claimed = await queue.claim(f"w{worker}", {"telegram": 10}, takes_suspects=True)
            numbers = [number_of(claim.task) for claim in claimed.claims]
            if not numbers:
                break
            if killer in numbers:
                await die(stage)
                continue
            for claim in claimed.claims:
                answered += await run_lane(queue, claim)
        assert sorted(answered) == [1, 2, 4, 5]
        [parked] = await queue.list_open(Selection(), limit=10)
        assert (number_of(parked), parked.reason) == (killer, Reason.POISON)

    # --- how work ends ---

    async def test_what_is_finished_leaves_nothing_behind(self, stage: QueueStage) -> None:
        ids = await enqueue(stage.queue, 1, 2, 3)
        assert await run_everything(stage.queue) == [1, 2, 3]
        assert [await stage.queue.get(task_id) for task_id in ids] == [None, None, None]
        assert not any((await stage.leftovers()).values()), await stage.leftovers()
        stage.pass_time(RECEIPT_SECONDS + HOUR * 2)
        await stage.queue.sweep()
        depth = await stage.queue.depth()
        assert (depth.by_status, depth.accepted, depth.oldest_waiting_ms) == ({}, 0, None)

    @pytest.mark.req("QUE-4")
    async def test_a_retry_holds_its_own_lane_and_no_other(self, stage: QueueStage) -> None:
        queue = stage.queue
        [retried, _] = await enqueue(queue, 1, 2, chat="a")
        await enqueue(queue, 3, chat="b")
        claim = next(claim for claim in await claim_all(queue) if number_of(claim.task) == 1)
        assert await queue.settle(claim, claim.task, RetryIn(15.0, "boom", counts=True)) is None
        waiting = (await open_task(queue, retried)).progress
        assert (waiting.status, waiting.attempts, waiting.error) == (Status.PENDING, 1, "boom")
        assert (await queue.depth()).retrying == 1
        await enqueue(queue, 4, chat="b")
        stage.pass_time(14)
        await queue.sweep()
        assert await claim_all(queue, "w2") == []
        stage.pass_time(2)
        again = await claim_one(queue, "w2")
        assert await run_lane(queue, again) == [1, 2]

    @pytest.mark.req("QUE-2", "WFL-3")
    async def test_in_a_lane_that_is_ordered_by_when_it_is_due_nothing_waits_for_what_is_due_later(
        self, stage: QueueStage
    ) -> None:
        queue, began = stage.queue, stage.queue.now_ms()

        async def plan(number: int, seconds: int) -> None:
            due_at_ms = began + seconds * 1000
            await queue.enqueue(delivery(number, at=due_at_ms, due_at_ms=due_at_ms))

        await plan(1, 300)
        assert await claim_all(queue) == []
        await plan(2, 30)
        assert await claim_all(queue) == []
        await plan(3, 30)
        stage.pass_time(31)
        claim = await claim_one(queue)
        await plan(4, 200)
        assert await run_lane(queue, claim) == [2, 3]
        await plan(5, 100)
        for seconds, number in ((70, 5), (100, 4), (100, 1)):
            assert await claim_all(queue) == []
            stage.pass_time(seconds)
            assert await run_everything(queue) == [number]

    async def test_something_new_does_not_overtake_a_waiting_retry(self, stage: QueueStage) -> None:
        queue = stage.queue
        await enqueue(queue, 1)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, RetryIn(60.0, "boom", counts=True))
        await enqueue(queue, 2)
        assert await claim_all(queue) == []
        stage.pass_time(61)
        assert await run_everything(queue) == [1, 2]

    @pytest.mark.req("QUE-4")
    @pytest.mark.failure("H1")
    async def test_a_due_retry_survives_the_worker_that_picked_it(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1)
        claim = await claim_one(stage.queue)
        await stage.queue.settle(claim, claim.task, RetryIn(15.0, "boom", counts=True))
        stage.pass_time(16)
        await claim_one(stage.queue, "dies")
        await die(stage)
        again = await claim_one(stage.queue, "w2")
        assert (again.task.progress.attempts, again.task.progress.deaths) == (1, 1)

    @pytest.mark.req("QUE-4")
    @pytest.mark.failure("E7")
    async def test_waiting_for_a_dependency_uses_no_try(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = await enqueue(queue, 1)
        for _ in range(10):
            claim = await claim_one(queue)
            await queue.settle(claim, claim.task, RetryIn(60.0, "the model is down", counts=False))
            stage.pass_time(61)
        progress = (await open_task(queue, task_id)).progress
        assert (progress.attempts, progress.deaths, progress.failing_since_ms) == (0, 0, None)

    async def test_it_is_remembered_since_when_a_task_has_been_failing(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = await enqueue(queue, 1)
        since = queue.now_ms()
        for _ in range(3):
            claim = await claim_one(queue)
            await queue.settle(claim, claim.task, RetryIn(60.0, "boom", counts=True))
            stage.pass_time(61)
        progress = (await open_task(queue, task_id)).progress
        assert progress.attempts == 3
        assert progress.failing_since_ms is not None
        assert abs(progress.failing_since_ms - since) < 1000

    @pytest.mark.req("QUE-4")
    @pytest.mark.failure("E7")
    async def test_the_time_a_dependency_was_away_is_not_counted_as_the_tasks_failing(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = await enqueue(queue, 1)
        for counts in (True, False, True):
            claim = await claim_one(queue)
            since = queue.now_ms()
            await queue.settle(claim, claim.task, RetryIn(60.0, "boom", counts=counts))
            failing_since = (await open_task(queue, task_id)).progress.failing_since_ms
            assert (failing_since is not None) == counts
            stage.pass_time(61)
        progress = (await open_task(queue, task_id)).progress
        assert progress.attempts == 2
        assert progress.failing_since_ms is not None
        assert abs(progress.failing_since_ms - since) < 1000

    @pytest.mark.failure("B2")
    async def test_errors_may_quote_anything(self, stage: QueueStage) -> None:
        """What no encoding has is replaced; it does not stop the task from being settled."""
        queue, odd = stage.queue, "half a \ud83d and \x00"
        [task_id] = [(await queue.enqueue(msgspec.structs.replace(delivery(1), error=odd))).task_id]
        for settlement in (RetryIn(1.0, odd, counts=True), Suspend(Reason.KILL_SWITCH, odd)):
            claim = await claim_one(queue)
            await queue.settle(claim, claim.task, settlement)
            assert ((await open_task(queue, task_id)).progress.error or "").startswith("half a ")
            stage.pass_time(2)

    @pytest.mark.failure("B2")
    async def test_a_head_may_quote_anything(self, queue: Queue) -> None:
        new = delivery(1)
        head = msgspec.structs.replace(new.head, user_text="half a \ud83d", metadata={"\ud83d": "\x00"})
        await queue.enqueue(msgspec.structs.replace(new, head=head))
        assert (await claim_one(queue)).task.head.user_text == "half a ?"

    @pytest.mark.req("QUE-2", "SUS-1")
    async def test_a_suspended_task_lets_its_lane_go_on(self, queue: Queue) -> None:
        [task_id, _, _] = await enqueue(queue, 1, 2, 3)
        claim = await claim_one(queue)
        following = await queue.settle(claim, claim.task, Suspend(Reason.WORKFLOW_PENDING, "no workflow"))
        assert await run_lane(queue, following) == [2, 3]
        progress = (await open_task(queue, task_id)).progress
        assert (progress.status, progress.reason) == (Status.SUSPENDED, Reason.WORKFLOW_PENDING)
        assert progress.error == "no workflow"

    async def test_a_task_being_answered_stays_open_and_its_lane_goes_on(self, queue: Queue) -> None:
        [task_id, _] = await enqueue(queue, 1, 2)
        claim = await claim_one(queue)
        following = await queue.settle(claim, claim.task, Replying())
        assert await run_lane(queue, following) == [2]
        assert (await open_task(queue, task_id)).progress.status is Status.REPLYING
        assert not await queue.finish(task_id, 1), "another generation"
        assert await queue.finish(task_id, 0)
        assert not await queue.finish(task_id, 0)
        assert await queue.get(task_id) is None

    @pytest.mark.failure("F11")
    async def test_what_was_answered_before_its_worker_settled_it_ends_with_that_settle(self, queue: Queue) -> None:
        [task_id, _] = await enqueue(queue, 1, 2)
        claim = await claim_one(queue)
        assert await queue.finish(task_id, 0)
        assert (await open_task(queue, task_id)).progress.status is Status.PROCESSING
        following = await queue.settle(claim, claim.task, Replying())
        assert await queue.get(task_id) is None
        assert await run_lane(queue, following) == [2]

    async def test_what_was_answered_is_not_forgotten_when_its_worker_dies_first(self, queue: Queue) -> None:
        """Whoever takes over finds the result, does what else it asks for, and settles."""
        [task_id] = await enqueue(queue, 1)
        claim = await claim_one(queue)
        assert await queue.finish(task_id, 0)
        await queue.reclaim(claim.holder)
        again = await claim_one(queue)
        assert again.task.task_id == task_id
        await queue.settle(again, again.task, Finished())
        assert await queue.get(task_id) is None

    @pytest.mark.req("ENV-3", "QUE-2")
    @pytest.mark.parametrize("is_former_answered", [False, True])
    async def test_a_task_that_is_named_anew_runs_next_and_ends_as_that_generation_only(
        self, queue: Queue, is_former_answered: bool
    ) -> None:
        [task_id, _] = await enqueue(queue, 1, 2)
        claim = await claim_one(queue)
        if is_former_answered:
            assert await queue.finish(task_id, 0)
        following = await queue.settle(claim, claim.task, Anew(3))
        assert following is not None
        assert (following.task.task_id, following.task.progress.generation) == (task_id, 3)
        assert following.task.raw == claim.task.raw
        assert not await queue.finish(task_id, 0), "the former's end is not its own"
        following = await queue.settle(following, following.task, Replying())
        assert (await open_task(queue, task_id)).progress.status is Status.REPLYING
        assert await run_lane(queue, following) == [2]
        assert await queue.finish(task_id, 3)
        assert await queue.get(task_id) is None

    async def test_a_reply_of_unknown_fate_suspends_the_task(self, queue: Queue) -> None:
        [task_id] = await enqueue(queue, 1)
        held = Suspend(Reason.REPLY_HELD, "timed out")
        assert not await queue.hold(task_id, 0, held)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Replying())
        assert not await queue.hold(task_id, 1, held)
        assert await queue.hold(task_id, 0, held)
        assert not await queue.hold(task_id, 0, held)
        progress = (await open_task(queue, task_id)).progress
        assert (progress.status, progress.reason) == (Status.SUSPENDED, Reason.REPLY_HELD)

    @pytest.mark.req("WRK-6")
    @pytest.mark.failure("D18")
    async def test_what_is_handed_back_is_as_if_it_had_never_been_claimed(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id, _] = await enqueue(queue, 1, 2)
        for _ in range(DEATHS_MAX + 2):
            claim = await claim_one(queue)
            assert await queue.hand_back("w1") == 1
            progress = (await open_task(queue, task_id)).progress
            assert (progress.status, progress.attempts, progress.deaths) == (Status.PENDING, 0, 0)
            with pytest.raises(ClaimLost):
                await queue.settle(claim, claim.task, Finished())
            assert await queue.renew([claim]) == {claim.fence}
        assert await queue.hand_back("w1") == 0
        assert await run_everything(queue) == [1, 2]

    async def test_handing_back_leaves_the_claims_of_others_alone(self, queue: Queue) -> None:
        await enqueue(queue, 1, chat="a")
        mine = await claim_one(queue, "mine")
        await enqueue(queue, 2, chat="b")
        await claim_one(queue, "stopping")
        assert await queue.hand_back("stopping") == 1
        assert await queue.renew([mine]) == set()
        assert [number_of(claim.task) for claim in await claim_all(queue, "w3")] == [2]

    @pytest.mark.failure("D16")
    async def test_claims_that_a_worker_never_heard_of_can_be_handed_back_alone(self, queue: Queue) -> None:
        await enqueue(queue, 1, chat="a")
        known = await claim_one(queue)
        await enqueue(queue, 2, chat="b")
        await claim_one(queue)  # and the answer is lost
        assert await queue.hand_back("w1", keep=[known.fence]) == 1
        assert await queue.renew([known]) == set()
        [again] = await claim_all(queue, "w2")
        assert (number_of(again.task), again.task.progress.deaths) == (2, 0)

    @pytest.mark.failure("D16", "C13")
    @pytest.mark.parametrize(
        "settlement",
        [Finished(), Replying(), Suspend(Reason.KILL_SWITCH), RetryIn(0.5, "boom", counts=True), Anew(1)],
        ids=lambda settlement: type(settlement).__name__,
    )
    async def test_settling_again_because_the_answer_was_lost_changes_nothing_more(
        self, stage: QueueStage, settlement: Settlement
    ) -> None:
        [task_id, _] = await enqueue(stage.queue, 1, 2)
        claim = await claim_one(stage.queue)
        following = await stage.queue.settle(claim, claim.task, settlement)
        before = await stage.queue.get(task_id)
        try:
            again = await stage.queue.settle(claim, claim.task, settlement)
        except ClaimLost:
            assert following is None
        else:
            assert following is not None
            assert again is not None
            assert again.task.head == following.task.head
        after = await stage.queue.get(task_id)
        assert (after and after.progress.attempts) == (before and before.progress.attempts)
        assert (after and after.progress.status) == (before and before.progress.status)

    @pytest.mark.req("CPY-6", "WRK-4")
    async def test_whether_anybody_has_begun_a_task_is_known_to_whoever_claims_it(self, stage: QueueStage) -> None:
        """Also to one that comes after a worker which was told to stop, and handed it back."""
        queue = stage.queue
        await enqueue(queue, 1)
        claim = await claim_one(queue)
        assert claim.task.progress.is_untouched
        assert await queue.hand_back("w1") == 1
        claim = await claim_one(queue)
        assert not claim.task.progress.is_untouched
        await queue.settle(claim, claim.task, Finished())
        await enqueue(queue, 2, 3)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, RetryIn(1.0, "others first", counts=False, is_begun=False))
        stage.pass_time(CLAIM.total_seconds() + 1)
        claim = await claim_one(queue, "w2")
        following = await queue.settle(claim, claim.task, RetryIn(60.0, "boom", counts=True))
        assert (claim.task.progress.is_untouched, following) == (True, None)
        stage.pass_time(61)
        claim = await claim_one(queue)
        assert not claim.task.progress.is_untouched
        following = await queue.settle(claim, claim.task, Finished())
        assert following is not None
        assert following.task.progress.is_untouched
        assert not (await open_task(queue, following.task.task_id)).progress.is_untouched

    @pytest.mark.req("QUE-2")
    @pytest.mark.failure("D16", "C13")
    async def test_settling_again_runs_one_task_of_a_lane_and_counts_no_death_of_another(self, queue: Queue) -> None:
        await enqueue(queue, 2, 4)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Finished())  # and the answer, that the next has been started, is lost
        await enqueue(queue, 3)
        again = await queue.settle(claim, claim.task, Finished())
        assert again is not None
        assert number_of(again.task) == 3
        running = await queue.list_open(Selection(status=Status.PROCESSING), limit=10)
        assert [number_of(one) for one in running] == [3]
        following = await queue.settle(again, again.task, Finished())
        assert following is not None
        assert (number_of(following.task), following.task.progress.deaths) == (4, 0)

    # --- people's hands ---

    @pytest.mark.req("SUS-2")
    async def test_what_is_resumed_runs_in_its_old_place(self, queue: Queue) -> None:
        ids = await self._suspend(queue, 1, 2)
        await enqueue(queue, 3)
        resumed = await queue.resume(Selection(reason=Reason.WORKFLOW_PENDING), limit=100)
        assert sorted(resumed) == sorted(ids)
        assert await run_everything(queue) == [1, 2, 3]

    @pytest.mark.req("SUS-2")
    @pytest.mark.failure("H2")
    async def test_resuming_twice_resumes_once(self, stage: QueueStage) -> None:
        [task_id] = await self._suspend(stage.queue, 1)
        other = await stage.another()
        twice = await asyncio.gather(
            *(queue.resume(Selection(task_ids=(task_id,)), limit=1) for queue in (stage.queue, other))
        )
        assert sorted(map(len, twice)) == [0, 1]
        assert await run_everything(stage.queue) == [1]

    @pytest.mark.failure("H3")
    async def test_what_is_resumed_waits_its_turn_in_a_lane_at_work(self, queue: Queue) -> None:
        await self._suspend(queue, 1)
        await enqueue(queue, 2, 3)
        claim = await claim_one(queue)
        await queue.resume(Selection(), limit=10)
        assert await claim_all(queue, "w2") == []
        assert await run_lane(queue, claim) == [2, 1, 3]

    @pytest.mark.req("SUS-2")
    @pytest.mark.failure("H6")
    async def test_many_are_resumed_by_whole_lanes_oldest_first(self, queue: Queue) -> None:
        for chat, first, second in (("young", 50, 51), ("old", 1, 60), ("middle", 20, 21)):
            await self._suspend(queue, first, second, chat=chat)
        waves = []
        while resumed := await queue.resume(Selection(reason=Reason.WORKFLOW_PENDING), limit=3):
            numbers = [number_of(await open_task(queue, task_id)) for task_id in resumed]
            waves.append(sorted(numbers))
        assert waves == [[1, 20, 21, 60], [50, 51]]

    async def test_resuming_starts_the_tries_over(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = await enqueue(queue, 1)
        for _ in range(3):
            claim = await claim_one(queue)
            await queue.settle(claim, claim.task, RetryIn(1.0, "boom", counts=True))
            stage.pass_time(2)
        await claim_one(queue)
        await die(stage)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Suspend(Reason.RETRIES_EXHAUSTED, "boom"))
        await queue.resume(Selection(task_ids=(task_id,)), limit=1)
        progress = (await open_task(queue, task_id)).progress
        assert (progress.status, progress.reason, progress.attempts, progress.deaths, progress.failing_since_ms) == (
            Status.PENDING,
            None,
            0,
            0,
            None,
        )

    async def test_only_what_is_meant_is_resumed(self, queue: Queue) -> None:
        await self._suspend(queue, 1)
        await queue.enqueue(delivery(2, chat="2", suspend=Reason.STALE_REPLAY))
        await queue.enqueue(delivery(3, chat="3", account="8", suspend=Reason.WORKFLOW_PENDING))
        await queue.enqueue(delivery(4, chat="4", channel="webchat", suspend=Reason.WORKFLOW_PENDING))
        assert await queue.suspended_routes(Reason.WORKFLOW_PENDING) == [
            Route("telegram", "7"),
            Route("telegram", "8"),
            Route("webchat", "7"),
        ]
        mine = Selection(reason=Reason.WORKFLOW_PENDING, channel="telegram", account="7")
        assert [number_of(await open_task(queue, one)) for one in await queue.resume(mine, limit=10)] == [1]
        assert await queue.resume(Selection(task_ids=(TaskId("t_unknown"),)), limit=10) == []
        many = tuple(TaskId(f"t_{number}") for number in range(40_000))
        assert await queue.resume(Selection(task_ids=many), limit=10) == []
        assert len(await queue.list_open(Selection(status=Status.SUSPENDED), limit=10)) == 3

    @pytest.mark.req("SUS-2")
    async def test_what_waits_for_several_workflows_is_resumed_by_route_in_the_chats_order(self, queue: Queue) -> None:
        for number, workflow_id in enumerate(("", "echo", "other", "echo"), start=1):
            await queue.enqueue(delivery(number, suspend=Reason.WORKFLOW_PENDING, workflow_id=workflow_id or None))
        routes = await queue.suspended_routes(Reason.WORKFLOW_PENDING)
        assert routes == [Route("telegram", "7", name) for name in ("", "echo", "other")]
        await queue.resume(Selection(routes=(routes[0], routes[1])), limit=10)
        assert await run_everything(queue) == [1, 2, 4]
        assert await queue.suspended_routes(Reason.WORKFLOW_PENDING) == [Route("telegram", "7", "other")]

    @pytest.mark.req("QUE-2", "SUS-2")
    @pytest.mark.failure("H6")
    async def test_a_claim_says_whether_others_of_its_lane_are_suspended(self, queue: Queue) -> None:
        await enqueue(queue, 1, 2)
        await self._suspend(queue, 5, chat="another")
        claim = await claim_one(queue)
        assert not claim.has_suspended
        parked = Suspend(Reason.WORKFLOW_PENDING, "nobody serves it")
        following = await queue.settle(claim, claim.task, parked)
        assert following is not None
        assert following.has_suspended, "said while going on"
        await queue.settle(following, following.task, Finished())
        await enqueue(queue, 3, 4)
        claim = await claim_one(queue)
        assert claim.has_suspended, "and with a new claim"
        await queue.resume(Selection(lane=claim.lane), limit=10)
        following = await queue.settle(claim, claim.task, RetryIn(0.0, "those before it go first", counts=False))
        assert following is not None
        assert (number_of(following.task), following.has_suspended) == (1, False)

    @pytest.mark.req("QUE-2", "SUS-2")
    async def test_what_a_newer_version_made_of_a_suspended_task_is_not_waited_for(self, stage: QueueStage) -> None:
        queue = stage.queue
        await self._suspend(queue, 1)
        [parked] = await queue.list_open(Selection(), limit=10)
        lane, pending = parked.head.lane, Reason.WORKFLOW_PENDING
        assert len(await queue.suspended_routes(pending, lane=lane)) == 1
        await stage.overwrite_words(parked.head.task_id, status="resting", reason=pending)
        assert await queue.suspended_routes(pending, lane=lane) == [], "nobody here could resume it"

    @pytest.mark.req("QUE-2", "SUS-2")
    async def test_what_one_lane_waits_for_is_told_and_resumed_apart(self, queue: Queue) -> None:
        for number, (chat, workflow_id) in enumerate((("1", ""), ("2", "echo"), ("1", "other"), ("1", "")), start=1):
            new = delivery(number, chat=chat, suspend=Reason.WORKFLOW_PENDING, workflow_id=workflow_id or None)
            await queue.enqueue(new)
        await queue.enqueue(delivery(5, suspend=Reason.STALE_REPLAY, workflow_id="else"))
        lane, pending = lane_of("1"), Reason.WORKFLOW_PENDING
        routes = await queue.suspended_routes(pending, lane=lane)
        assert routes == [Route("telegram", "7", name) for name in ("", "other")]
        assert await queue.suspended_routes(pending, lane=lane_of("3")) == []
        mine = Selection(reason=pending, lane=lane, routes=(routes[0],))
        assert [number_of(task) for task in await queue.resumable(mine, limit=10)] in ([1, 4], [4, 1])
        assert len(await queue.resume(mine, limit=10)) == 2
        assert await queue.suspended_routes(pending, lane=lane) == [routes[1]]
        assert await run_everything(queue) == [1, 4]

    @pytest.mark.req("BND-4", "SUS-2")
    async def test_of_what_one_lane_waits_for_only_the_named_are_looked_at_and_resumed(self, queue: Queue) -> None:
        for number in (1, 2, 3):
            await queue.enqueue(delivery(number, suspend=Reason.WORKFLOW_PENDING))
        await queue.enqueue(delivery(4, suspend=Reason.STALE_REPLAY))
        await queue.enqueue(delivery(5, chat="another", suspend=Reason.WORKFLOW_PENDING))
        lane = delivery(1).head.lane
        pending = Selection(reason=Reason.WORKFLOW_PENDING, lane=lane)
        listed = await queue.list_open(pending, limit=10)
        assert {one.head.task_id for one in listed} == {delivery(number).head.task_id for number in (1, 2, 3)}
        named = tuple(delivery(number).head.task_id for number in (1, 3, 4, 5))
        meant = Selection(reason=Reason.WORKFLOW_PENDING, lane=lane, task_ids=named)
        assert len(await queue.resume(meant, limit=1)) == 2, "the whole lane, whatever the limit"
        assert await run_everything(queue) == [1, 3]

    @pytest.mark.req("SUS-2")
    async def test_what_would_be_resumed_is_what_is_resumed(self, queue: Queue) -> None:
        for chat, first, second in (("young", 50, 51), ("old", 1, 60), ("middle", 20, 21)):
            await self._suspend(queue, first, second, chat=chat)
        shown = await queue.resumable(Selection(reason=Reason.WORKFLOW_PENDING), limit=3)
        assert sorted(map(number_of, shown)) == [1, 20, 21, 60]
        resumed = await queue.resume(Selection(reason=Reason.WORKFLOW_PENDING), limit=3)
        assert sorted(resumed) == sorted(task.head.task_id for task in shown)

    @pytest.mark.failure("H9")
    async def test_nothing_open_goes_away_by_time(self, stage: QueueStage) -> None:
        queue = stage.queue
        await self._suspend(queue, 1)
        await enqueue(queue, 2, chat="2")
        [replying] = await enqueue(queue, 3, chat="3")
        claim = next(claim for claim in await claim_all(queue) if number_of(claim.task) == 3)
        await queue.settle(claim, claim.task, Replying())
        for _ in range(30):
            stage.pass_time(86_400)
            await queue.sweep()
        assert [number_of(task) for task in await self._all_open(queue)] == [1, 2, 3]
        assert (await open_task(queue, replying)).raw == delivery(3).raw
        await queue.resume(Selection(), limit=10)
        assert sorted(await run_everything(queue)) == [1, 2]

    @pytest.mark.failure("E11", "H8")
    async def test_cancelling_a_running_task_voids_its_claim_and_the_lane_goes_on(self, queue: Queue) -> None:
        [task_id, _] = await enqueue(queue, 1, 2)
        claim = await claim_one(queue)
        cancelled = await queue.cancel(task_id)
        assert cancelled is not None
        assert (cancelled.head, cancelled.raw) == (claim.task.head, claim.task.raw)
        with pytest.raises(ClaimLost):
            await queue.settle(claim, claim.task, Replying())
        assert await queue.renew([claim]) == {claim.fence}
        assert await queue.get(task_id) is None
        assert await queue.cancel(task_id) is None
        assert await run_everything(queue) == [2]

    async def test_cancelling_a_task_that_waits_does_not_disturb_the_one_that_runs(self, queue: Queue) -> None:
        [_, task_id, _] = await enqueue(queue, 1, 2, 3)
        claim = await claim_one(queue)
        await queue.cancel(task_id)
        assert await run_lane(queue, claim) == [1, 3]

    async def test_cancelling_a_waiting_retry_frees_its_lane(self, queue: Queue) -> None:
        [task_id, _] = await enqueue(queue, 1, 2)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, RetryIn(600.0, "boom", counts=True))
        await queue.cancel(task_id)
        assert await run_everything(queue) == [2]

    async def test_cancelling_one_generation_leaves_the_next_alone(self, queue: Queue) -> None:
        [task_id] = await enqueue(queue, 1)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Suspend(Reason.RETRIES_EXHAUSTED))
        assert await queue.restart(claim.task, generation=1)
        assert await queue.cancel(task_id, generation=0) is None
        assert (await open_task(queue, task_id)).progress.generation == 1
        assert await queue.cancel(task_id, generation=1) is not None
        assert await queue.get(task_id) is None

    async def test_a_cancelled_task_is_known_to_duplicates(self, queue: Queue) -> None:
        [task_id] = await enqueue(queue, 1)
        await queue.cancel(task_id)
        assert not (await queue.enqueue(delivery(1))).new

    @pytest.mark.req("ENV-3")
    async def test_a_finished_task_can_be_run_again_as_the_next_generation(self, queue: Queue) -> None:
        await enqueue(queue, 1)
        claim = await claim_one(queue)
        first = claim.task
        await run_lane(queue, claim)
        assert await queue.restart(first, generation=1)
        assert not await queue.restart(first, generation=1), "it is there already"
        assert not (await queue.enqueue(delivery(1))).new
        again = await claim_one(queue)
        assert (again.task.head, again.task.raw) == (first.head, first.raw)
        assert (again.task.progress.generation, again.task.run_id) == (1, f"{first.task_id}.1")
        assert not await queue.restart(first, generation=2), "it runs"

    async def test_a_suspended_task_can_be_run_again_and_starts_over(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = await enqueue(queue, 1)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, RetryIn(1.0, "boom", counts=True))
        stage.pass_time(2)
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Suspend(Reason.RETRIES_EXHAUSTED))
        assert await queue.restart(claim.task, generation=1)
        progress = (await open_task(queue, task_id)).progress
        assert (progress.status, progress.generation, progress.attempts) == (Status.PENDING, 1, 0)
        assert not await queue.finish(task_id, 0), "an answer of the former run does not end this one"

    async def test_a_task_that_waits_or_runs_cannot_be_started_a_second_time(self, queue: Queue) -> None:
        [task_id] = await enqueue(queue, 1)
        task = await open_task(queue, task_id)
        assert not await queue.restart(task, generation=1)
        claim = await claim_one(queue)
        assert not await queue.restart(task, generation=1)
        await queue.settle(claim, claim.task, Replying())
        assert not await queue.restart(task, generation=1)

    # --- what is lost is found again ---

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("D7", "D8", "D9")
    async def test_lost_hints_are_made_again(self, stage: QueueStage) -> None:
        queue = stage.queue
        for number in range(1, 5):
            await enqueue(queue, number, chat=str(number))
        await enqueue(queue, 11, chat="1")
        await stage.lose_hints()
        assert await queue.sweep() == 4
        assert sorted(await run_everything(queue)) == [1, 2, 3, 4, 11]

    async def test_a_lane_that_lost_its_claim_with_the_hints_goes_to_one_worker(self, stage: QueueStage) -> None:
        await enqueue(stage.queue, 1)
        stale = await claim_one(stage.queue)
        await stage.lose_hints()
        await stage.queue.sweep()
        claim = await claim_one(stage.queue, "w2")
        assert claim.fence > stale.fence
        with pytest.raises(ClaimLost):
            await stage.queue.settle(stale, stale.task, Finished())

    @pytest.mark.failure("D10")
    async def test_sweeping_changes_nothing_when_all_is_well(self, stage: QueueStage) -> None:
        queue = stage.queue
        await enqueue(queue, 1, chat="a")
        await enqueue(queue, 2, chat="b")
        claim = await claim_one(queue)
        for _ in range(10):
            assert await queue.sweep() == 0
        assert len(await claim_all(queue, "w2")) == 1
        assert await claim_all(queue, "w3") == []
        assert await queue.renew([claim]) == set()

    async def test_a_suspended_task_whose_time_has_passed_comes_up_to_be_ended(self, stage: QueueStage) -> None:
        queue = stage.queue
        [task_id] = [(await queue.enqueue(delivery(1, deadline_at_ms=queue.now_ms() + 150_000))).task_id]
        await enqueue(queue, 2, chat="2")
        for claim in await claim_all(queue):
            await queue.settle(claim, claim.task, Suspend(Reason.WORKFLOW_PENDING))
        await queue.sweep()
        assert await claim_all(queue) == []
        stage.pass_time(151)
        await queue.sweep()
        [late] = await claim_all(queue)
        assert late.task.task_id == task_id
        assert late.task.progress.deadline_at_ms is not None
        assert late.task.progress.deadline_at_ms < queue.now_ms()
        assert (await queue.depth()).by_reason == {"workflow_pending": 1}, "it is not suspended any more"

    async def test_a_held_reply_waits_for_a_person_also_when_its_time_has_passed(self, stage: QueueStage) -> None:
        queue = stage.queue
        task_id = (await queue.enqueue(delivery(1, deadline_at_ms=queue.now_ms() + 150_000))).task_id
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, Replying())
        await queue.hold(task_id, 0, Suspend(Reason.REPLY_HELD))
        stage.pass_time(151)
        await queue.sweep()
        assert await claim_all(queue) == []
        assert (await open_task(queue, task_id)).progress.reason is Reason.REPLY_HELD

    # --- what cannot be read ---

    @pytest.mark.failure("B14", "B15", "D12", "M4")
    @pytest.mark.parametrize("stored", [b"\xff\x00 garbage", b"{}", b'{"schema":', "newer"])
    async def test_an_unreadable_record_is_set_aside_and_its_lane_goes_on(
        self, stage: QueueStage, stored: bytes | str
    ) -> None:
        queue = stage.queue
        [unreadable, _] = await enqueue(queue, 1, 2)
        if isinstance(stored, str):
            stored = msgspec.json.encode(msgspec.structs.replace(delivery(1).head, schema=99))
        await stage.overwrite_head(unreadable, stored)
        assert await run_everything(queue) == [2]

        [row] = await queue.list_open(Selection(), limit=10)
        assert (row.head.task_id, row.status, row.reason) == (unreadable, Status.SUSPENDED, Reason.SCHEMA_NEWER)
        assert row.head.lane == lane_of("1")
        assert (row.head.channel, row.head.account, row.head.order) == ("telegram", "7", delivery(1).head.order)
        assert (await open_task(queue, unreadable)).raw == delivery(1).raw
        assert (await queue.depth()).by_reason == {"schema_newer": 1}

        assert await queue.resume(Selection(reason=Reason.SCHEMA_NEWER), limit=10) == [unreadable]
        assert await run_everything(queue) == []
        dropped = await queue.cancel(unreadable)
        assert dropped is not None
        assert dropped.raw == delivery(1).raw

    @pytest.mark.failure("B14")
    async def test_a_record_set_aside_runs_when_it_can_be_read(self, stage: QueueStage) -> None:
        [task_id] = await enqueue(stage.queue, 1)
        await stage.overwrite_head(task_id, b"newer")
        assert await run_everything(stage.queue) == []
        await stage.overwrite_head(task_id, msgspec.json.encode(delivery(1).head))
        await stage.queue.resume(Selection(reason=Reason.SCHEMA_NEWER), limit=10)
        assert await run_everything(stage.queue) == [1]

    async def test_an_unreadable_record_in_the_middle_of_a_claim_is_passed_over(self, stage: QueueStage) -> None:
        [_, unreadable, _] = await enqueue(stage.queue, 1, 2, 3)
        claim = await claim_one(stage.queue)
        await stage.overwrite_head(unreadable, b"newer")
        assert await run_lane(stage.queue, claim) == [1, 3]

    @pytest.mark.failure("B14")
    @pytest.mark.parametrize(("status", "reason"), [("suspended", "of_tomorrow"), ("delegated", "of_tomorrow")])
    async def test_words_of_a_newer_version_hide_nothing_else(
        self, stage: QueueStage, status: str, reason: str
    ) -> None:
        queue = stage.queue
        [spoilt, sound] = await self._suspend(queue, 1, 2)
        await stage.overwrite_words(spoilt, status=status, reason=reason)
        shown = {row.head.task_id: row for row in await queue.list_open(Selection(), limit=10)}
        assert shown.keys() == {spoilt, sound}
        row = shown[spoilt]
        assert (row.status, row.reason) == (Status.SUSPENDED, Reason.SCHEMA_NEWER)
        assert reason in (row.error or ""), "and it says which"
        assert shown[sound].reason is Reason.WORKFLOW_PENDING
        assert (await open_task(queue, spoilt)).progress.reason is Reason.SCHEMA_NEWER
        suspended = Selection(status=Status.SUSPENDED)
        assert {one.head.task_id for one in await queue.list_open(suspended, limit=10)} == {spoilt, sound}
        newer = msgspec.structs.replace(suspended, reason=Reason.SCHEMA_NEWER)
        assert [one.head.task_id for one in await queue.list_open(newer, limit=10)] == [spoilt]
        await queue.sweep()
        assert await queue.resume(Selection(reason=Reason.WORKFLOW_PENDING), limit=10) == [sound]
        assert await run_everything(queue) == [2]
        dropped = await queue.cancel(spoilt)
        assert dropped is not None
        assert dropped.raw == delivery(1).raw
        assert await queue.list_open(Selection(), limit=10) == []

    # --- looking ---

    async def test_lists_come_in_pages(self, queue: Queue) -> None:
        await enqueue(queue, *range(1, 8))
        seen: list[OpenTask] = []
        while page := await queue.list_open(Selection(), limit=3, after=seen[-1].head.task_id if seen else ""):
            assert len(page) <= 3
            seen += page
        assert sorted(number_of(row) for row in seen) == list(range(1, 8))
        assert [row.head.task_id for row in seen] == sorted(row.head.task_id for row in seen)

    async def test_lists_can_be_narrowed(self, stage: QueueStage) -> None:
        queue = stage.queue
        await self._suspend(queue, 1)
        stage.pass_time(10)
        boundary = queue.now_ms()
        stage.pass_time(10)
        await queue.enqueue(delivery(2, chat="2", account="8"))
        await queue.enqueue(delivery(3, chat="3", channel="webchat"))

        async def found(**narrowing: Any) -> list[int]:
            return sorted(map(number_of, await queue.list_open(Selection(**narrowing), limit=10)))

        assert await found() == [1, 2, 3]
        assert await found(status=Status.PENDING) == [2, 3]
        assert await found(reason=Reason.WORKFLOW_PENDING) == [1]
        assert await found(channel="webchat") == [3]
        assert await found(account="8") == [2]
        assert await found(lane=lane_of("1")) == [1]
        assert await found(is_runnable=True) == [2, 3]
        assert await found(older_than_ms=boundary) == [1]
        assert await found(task_ids=(delivery(2).head.task_id, delivery(3).head.task_id), channel="webchat") == [3]

    async def test_of_a_lane_what_is_runnable_or_suspended_is_listed_by_itself_and_in_pages(self, queue: Queue) -> None:
        await self._suspend(queue, 1, 2)
        await enqueue(queue, 3, 4, 5)
        await enqueue(queue, 6, chat="another")
        await claim_one(queue)
        lane = lane_of("1")
        for meant, expected in (
            (Selection(lane=lane, is_runnable=True), [3, 4, 5]),
            (Selection(lane=lane, status=Status.PROCESSING), [3]),
            (Selection(lane=lane, status=Status.SUSPENDED), [1, 2]),
            (Selection(lane=lane, status=Status.SUSPENDED, reason=Reason.WORKFLOW_PENDING), [1, 2]),
        ):
            first = await queue.list_open(meant, limit=1)
            rest = await queue.list_open(meant, limit=10, after=first[0].head.task_id)
            assert sorted(map(number_of, [*first, *rest])) == expected
            assert [one.head.task_id for one in [*first, *rest]] == sorted(one.head.task_id for one in [*first, *rest])

    @pytest.mark.req("QUE-2")
    async def test_of_a_lane_the_next_that_wait_are_told_in_its_order(self, stage: QueueStage) -> None:
        queue, lane = stage.queue, lane_of("1")
        assert await queue.next_in_lane(lane, limit=3) == []
        await enqueue(queue, 5, 4, 1, 3, 2)
        await enqueue(queue, 6, chat="another")
        await self._suspend(queue, 7)

        async def following(limit: int, after: int | None = None) -> list[int]:
            place = None if after is None else delivery(after).head.place
            return [number_of(one) for one in await queue.next_in_lane(lane, limit=limit, after=place)]

        assert await following(9) == [1, 2, 3, 4, 5]
        assert await following(2) == [1, 2]
        assert await following(0) == []
        claim = await claim_one(queue)
        assert await following(2) == [2, 3], "not the one that is being processed"
        assert await following(2, after=3) == [4, 5]
        assert await following(9, after=5) == []
        await queue.cancel(delivery(3).head.task_id)
        assert await following(9, after=3) == [4, 5], "a place may be empty"
        assert await following(9, after=0) == [2, 4, 5]
        await queue.settle(claim, claim.task, RetryIn(60.0, "boom", counts=True))
        [first] = await queue.next_in_lane(lane, limit=1)
        assert first == (await queue.list_open(Selection(task_ids=(claim.task.task_id,)), limit=1))[0]

    @pytest.mark.req("QUE-2")
    async def test_of_a_lane_the_next_is_told_by_order_then_by_id(self, queue: Queue) -> None:
        orders = [
            Order(-5, 3),
            Order(-5, 4),
            Order(0, -1),
            Order(0, 0),
            Order(0, 0),
            Order(1 << 40, 1),
            Order(1 << 40, 2),
        ]
        for number, order in enumerate(orders):
            new = delivery(number)
            await queue.enqueue(msgspec.structs.replace(new, head=msgspec.structs.replace(new.head, order=order)))
        listed = await queue.next_in_lane(lane_of("1"), limit=9)
        places = [one.head.place for one in listed]
        assert [order for order, _ in places] == orders
        assert places == sorted(places)
        for number, place in enumerate(places):
            assert await queue.next_in_lane(lane_of("1"), limit=9, after=place) == listed[number + 1 :]

    @pytest.mark.failure("B14")
    async def test_of_a_lane_the_next_hides_nothing_that_cannot_be_read(self, stage: QueueStage) -> None:
        [spoilt, *_] = await enqueue(stage.queue, 1, 2)
        await stage.overwrite_head(spoilt, b"newer")
        listed = await stage.queue.next_in_lane(lane_of("1"), limit=9)
        assert [one.head.task_id for one in listed] == [delivery(1).head.task_id, delivery(2).head.task_id]
        await stage.overwrite_words(spoilt, status="delegated", reason="of_tomorrow")
        assert [number_of(one) for one in await stage.queue.next_in_lane(lane_of("1"), limit=1)] == [2]

    @pytest.mark.req("OPS-2")
    async def test_receipts_name_every_key_and_its_duplicates(self, queue: Queue) -> None:
        await enqueue(queue, 1, 2, 3, 2, 2)
        await run_everything(queue)
        seen: list[Receipt] = []
        while page := await queue.receipts(limit=2, after=seen[-1].delivery_key if seen else ""):
            seen += page
        assert [(receipt.delivery_key, receipt.duplicates) for receipt in seen] == [
            ("tg:7:u:1", 0),
            ("tg:7:u:2", 2),
            ("tg:7:u:3", 0),
        ]
        assert seen[0].task_id == task_id_of(DeliveryKey("tg:7:u:1"))

    async def test_what_is_not_there_is_none(self, queue: Queue) -> None:
        assert await queue.get(TaskId("t_unknown")) is None
        assert await queue.cancel(TaskId("t_unknown")) is None
        assert not await queue.finish(TaskId("t_unknown"), 0)

    @pytest.mark.failure("D14")
    async def test_work_that_nobody_does_is_seen_by_its_age(self, stage: QueueStage) -> None:
        queue = stage.queue
        assert (await queue.depth()).oldest_waiting_ms is None
        await enqueue(queue, 1)
        stage.pass_time(40)
        waiting = (await queue.depth()).oldest_waiting_ms
        assert waiting is not None
        assert 40_000 <= waiting < 41_000
        await claim_one(queue)
        assert (await queue.depth()).oldest_waiting_ms is None
        stage.pass_time(CLAIM.total_seconds() + 50)
        lapsed = (await queue.depth()).oldest_waiting_ms
        assert lapsed is not None, "its worker is gone: it waits again"
        assert 50_000 <= lapsed < 51_000

    @pytest.mark.req("CAP-6")
    async def test_how_long_work_has_waited_is_known_of_each_channel(self, stage: QueueStage) -> None:
        queue = stage.queue
        await queue.enqueue(delivery(1, channel="webchat"))
        stage.pass_time(20)
        await enqueue(queue, 2)
        stage.pass_time(10)
        depth = await queue.depth()
        assert {name: ms // 1000 for name, ms in depth.waiting_ms_by_channel.items()} == {"webchat": 30, "telegram": 10}
        assert depth.oldest_waiting_ms == depth.waiting_ms_by_channel["webchat"]
        await claim_one(queue)
        assert (await queue.depth()).waiting_ms_by_channel.keys() == {"webchat"}

    @pytest.mark.req("SUP-2", "TMP-5")
    async def test_what_is_planned_for_later_is_told_from_what_waits_for_its_next_try(self, stage: QueueStage) -> None:
        queue = stage.queue
        await queue.enqueue(delivery(1, due_at_ms=queue.now_ms() + 60_000))
        await queue.enqueue(delivery(2, chat="2", suspend=Reason.STALE_REPLAY, due_at_ms=queue.now_ms() + 60_000))
        depth = await queue.depth()
        assert (depth.planned, depth.retrying) == (1, 0)
        stage.pass_time(61)
        assert (await queue.depth()).planned == 0, "its time has come"
        claim = await claim_one(queue)
        await queue.settle(claim, claim.task, RetryIn(30.0, "boom", counts=False))
        depth = await queue.depth()
        assert (depth.planned, depth.retrying) == (0, 1)
        stage.pass_time(31)
        await run_everything(queue)
        depth = await queue.depth()
        assert (depth.planned, depth.retrying, depth.by_status) == (0, 0, {"suspended": 1})

    @pytest.mark.req("SUP-2", "SEC-1")
    async def test_how_much_is_suspended_is_known_of_each_channel(self, stage: QueueStage) -> None:
        queue = stage.queue
        await queue.enqueue(delivery(1, channel="webchat", suspend=Reason.STALE_REPLAY))
        await queue.enqueue(delivery(2, chat="2", channel="webchat"))
        await queue.enqueue(delivery(3, chat="3", suspend=Reason.STALE_REPLAY))
        await self._suspend(queue, 4)
        assert (await queue.depth()).suspended_by_channel == {"webchat": 1, "telegram": 2}
        await queue.resume(Selection(channel="telegram"), limit=10)
        assert (await queue.depth()).suspended_by_channel == {"webchat": 1}

    @pytest.mark.req("QUE-2", "QUE-3")
    @pytest.mark.failure("A1", "D1", "D2", "D3", "H8")
    @pytest.mark.parametrize("seed", range(12))
    async def test_whatever_happens_no_task_is_lost_doubled_or_overtaken(self, stage: QueueStage, seed: int) -> None:
        await _Happenings(stage, seed).run(steps=120)

    # --- shorthand ---

    async def _suspend(self, queue: Queue, *numbers: int, chat: str = "1") -> list[TaskId]:
        """Enqueue and suspend as `workflow_pending`."""
        ids = []
        for number in numbers:
            enqueued = await queue.enqueue(delivery(number, chat=chat, suspend=Reason.WORKFLOW_PENDING))
            ids.append(enqueued.task_id)
        return ids

    async def _all_open(self, queue: Queue) -> list[OpenTask]:
        return sorted(await queue.list_open(Selection(), limit=10_000), key=number_of)


class _Happenings:
    """Random commands, each checked against what may happen; a simple memory is the model."""

    CHATS = ("a", "b", "c", "d")

    def __init__(self, stage: QueueStage, seed: int) -> None:
        self._stage = stage
        self._queue = stage.queue
        self._dice = ManualClock(seed=seed).random
        self._number = 0
        self._accepted: dict[int, NewTask] = {}
        self._ended: set[int] = set()
        self._duplicates = 0
        self._live: dict[LaneKey, tuple[Claim, int]] = {}
        """By lane: the claim, and until when it certainly holds."""
        self._stale: list[Claim] = []
        self._fence_max = 0
        self._deaths_possible: dict[int, int] = {}

    async def run(self, *, steps: int) -> None:
        commands = (
            [self._enqueue] * 6
            + [self._claim] * 5
            + [self._settle] * 8
            + [self._settle_stale, self._renew, self._duplicate, self._time, self._time, self._reclaim, self._hand_back]
            + [self._sweep, self._resume, self._cancel, self._finish, self._lose_hints]
        )
        for _ in range(steps):
            await self._dice.choice(commands)()
            await self._check()
        await self._drain()

    async def _enqueue(self) -> None:
        self._number += 1
        new = delivery(self._number, chat=self._dice.choice(self.CHATS), at=self._dice.randrange(100))
        assert (await self._queue.enqueue(new)).new
        self._accepted[self._number] = new

    async def _duplicate(self) -> None:
        if self._accepted:
            assert not (await self._queue.enqueue(self._dice.choice(list(self._accepted.values())))).new
            self._duplicates += 1

    async def _claim(self) -> None:
        before = await self._runnable()
        takes_suspects = self._dice.random() < 0.7
        claimed = await self._queue.claim(
            f"w{self._dice.randrange(3)}", {"telegram": 10}, takes_suspects=takes_suspects
        )
        suspects = [claim for claim in claimed.claims if claim.task.progress.deaths >= DEATHS_SUSPECT]
        assert not suspects or (takes_suspects and len(claimed.claims) == 1)
        for claim in claimed.claims:
            live = self._live.pop(claim.lane, None)
            if live is not None:
                assert live[1] <= self._queue.now_ms(), "claimed while another's claim was good"
                self._lost(live[0])
            assert claim.fence > self._fence_max
            self._fence_max = claim.fence
            self._took(claim, before)

    def _took(self, claim: Claim, before: dict[LaneKey, list[OpenTask]]) -> None:
        parked = 0
        for row in before[claim.lane]:
            if row.head.task_id == claim.task.task_id:
                break
            # Only what died once too often is passed over.
            assert (row.status, row.deaths) == (Status.PROCESSING, DEATHS_MAX - 1)
            parked += 1
        assert parked <= 1
        assert claim.task.progress.due_at_ms <= self._queue.now_ms()
        self._live[claim.lane] = (claim, self._queue.now_ms() + int(CLAIM.total_seconds() * 1000))

    async def _settle(self) -> None:
        if not self._live:
            return
        claim, _ = self._live.pop(self._dice.choice(sorted(self._live)))
        settlements: list[Settlement] = [
            Finished(),
            Finished(),
            Replying(),
            RetryIn(self._dice.choice((0.0, 5.0, 50.0)), "boom", counts=self._dice.random() < 0.5),
            Suspend(self._dice.choice((Reason.WORKFLOW_PENDING, Reason.RETRIES_EXHAUSTED))),
        ]
        settlement = self._dice.choice(settlements)
        before = await self._runnable()
        try:
            following = await self._queue.settle(claim, claim.task, settlement)
        except ClaimLost:
            assert claim in self._stale, "a good claim was refused"
            return
        assert claim not in self._stale
        if isinstance(settlement, Finished):
            self._ended.add(number_of(claim.task))
        if following is None:
            self._stale.append(claim)
            return
        assert following.tasks_left == claim.tasks_left - 1
        assert following.task.progress.deaths < DEATHS_SUSPECT
        rest = [row for row in before[claim.lane] if row.head.task_id != claim.task.task_id]
        if isinstance(settlement, RetryIn) and following.task.task_id == claim.task.task_id:
            assert not rest or claim.task.head.order < rest[0].head.order
        else:
            assert rest[0].head.task_id == following.task.task_id
        self._live[claim.lane] = (following, self._queue.now_ms() + int(CLAIM.total_seconds() * 1000))

    async def _settle_stale(self) -> None:
        live = {claim.fence for claim, _ in self._live.values()}
        stale = [claim for claim in self._stale if claim.fence not in live]
        if stale:
            claim = self._dice.choice(stale)
            with pytest.raises(ClaimLost):
                await self._queue.settle(claim, claim.task, Finished())

    async def _renew(self) -> None:
        lost = await self._queue.renew([claim for claim, _ in self._live.values()])
        now = self._queue.now_ms()
        for lane, (claim, until) in list(self._live.items()):
            if claim.fence in lost:
                assert until <= now, "a good claim was lost"
                del self._live[lane]
                self._lost(claim)
            else:
                self._live[lane] = (claim, now + int(CLAIM.total_seconds() * 1000))

    async def _time(self) -> None:
        self._stage.pass_time(self._dice.choice((0.01, 1.0, 10.0, CLAIM.total_seconds() + 1)))

    async def _reclaim(self) -> None:
        holder = f"w{self._dice.randrange(3)}"
        await self._queue.reclaim(holder)
        for lane, (claim, _) in list(self._live.items()):
            if claim.holder == holder:
                # Dead for certain: none of its claims is used again.
                del self._live[lane]

    async def _hand_back(self) -> None:
        holder = f"w{self._dice.randrange(3)}"
        await self._queue.hand_back(holder)
        for lane, (claim, _) in list(self._live.items()):
            if claim.holder == holder:
                del self._live[lane]
                self._lost(claim)

    async def _lose_hints(self) -> None:
        await self._stage.lose_hints()
        await self._sweep()
        # Its claims are gone with them; whoever had one finds out at the next write.
        for lane, (claim, _) in list(self._live.items()):
            if await self._queue.renew([claim]):
                del self._live[lane]
                self._lost(claim)

    async def _sweep(self) -> None:
        await self._queue.sweep()

    async def _resume(self) -> None:
        await self._queue.resume(Selection(), limit=self._dice.randrange(1, 5))

    async def _cancel(self) -> None:
        rows = await self._open()
        if not rows or self._dice.random() < 0.7:
            return
        row = self._dice.choice(rows)
        assert await self._queue.cancel(row.head.task_id) is not None
        self._ended.add(number_of(row))
        live = self._live.get(row.head.lane)
        if live is not None and live[0].task.task_id == row.head.task_id:
            del self._live[row.head.lane]
            self._lost(live[0])

    async def _finish(self) -> None:
        for row in await self._open():
            if row.status is Status.REPLYING:
                assert await self._queue.finish(row.head.task_id, row.generation)
                self._ended.add(number_of(row))
                return

    def _lost(self, claim: Claim) -> None:
        self._stale.append(claim)

    async def _check(self) -> None:
        """Accepted = open + finished, the queue's own count says the same, and one task runs per lane."""
        rows = await self._open()
        assert {number_of(row) for row in rows} == set(self._accepted) - self._ended
        depth = await self._queue.depth()
        assert depth.by_status == _counted(row.status for row in rows)
        assert depth.by_reason == _counted(row.reason for row in rows if row.reason is not None)
        assert depth.by_channel == _counted(row.head.channel for row in rows)
        assert (depth.accepted, depth.duplicates) == (len(self._accepted), self._duplicates)
        assert all((row.reason is not None) == (row.status is Status.SUSPENDED) for row in rows)
        running = [row.head.lane for row in rows if row.status is Status.PROCESSING]
        assert len(running) == len(set(running)), "two tasks of a lane run at once"

    async def _drain(self) -> None:
        """In the end everything that may run does, in order, and nothing stays behind."""
        self._stage.pass_time(HOUR)
        await self._queue.resume(Selection(), limit=10_000)
        for row in await self._open():
            if row.status is Status.REPLYING:
                await self._queue.finish(row.head.task_id, row.generation)
        ran: dict[LaneKey, list[Order]] = {}
        while claims := await claim_all(self._queue, room=10):
            for claim in claims:
                following: Claim | None = claim
                while following is not None:
                    ran.setdefault(claim.lane, []).append(following.task.head.order)
                    following = await self._queue.settle(following, following.task, Finished())
        assert all(orders == sorted(orders) for orders in ran.values())
        left = await self._open()
        assert all(row.reason is Reason.POISON for row in left), left
        for row in left:
            await self._queue.cancel(row.head.task_id)
        assert not any((await self._stage.leftovers()).values())

    async def _open(self) -> list[OpenTask]:
        return await self._queue.list_open(Selection(), limit=10_000)

    async def _runnable(self) -> dict[LaneKey, list[OpenTask]]:
        lanes: dict[LaneKey, list[OpenTask]] = {}
        for row in sorted(await self._open(), key=lambda row: row.head.place):
            if row.status in (Status.PENDING, Status.PROCESSING):
                lanes.setdefault(row.head.lane, []).append(row)
        return lanes


def _counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    return counts

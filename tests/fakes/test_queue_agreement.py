"""Whatever is done to them, the queue in memory and the one in SQLite say the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from agreement import Answering, answer, answers_in, command, commands, compare, opened, picked, seldom
from hypothesis import strategies as st

from rise.clock import epoch_ms
from rise.connections.redis import Argument, RedisDatabase, Script
from rise.envelope import LaneKey, Progress, Reason, Status, Task, TaskId
from rise.queue.port import (
    KEY_GRACE_SECONDS,
    Anew,
    Claim,
    Claimed,
    Finished,
    OpenTask,
    Queue,
    QueueDepth,
    QueueLimits,
    Replying,
    RetryIn,
    Route,
    Selection,
    Settlement,
    Suspend,
)
from rise.queue.redis import RedisQueue
from rise.queue.sqlite import SCHEMA, SqliteQueue
from rise.testing.clock import START, ManualClock
from rise.testing.conformance.queue import claim_one, delivery, enqueue, lane_of, number_of, open_task
from rise.testing.conformance.refilling import begin
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState
from rise.testing.servers import RedisServer

LIMITS = QueueLimits(
    claim=timedelta(seconds=30),
    tasks_per_claim=3,
    deaths_suspect=2,
    deaths_max=3,
    # How much longer than promised a lane is remembered is each backend's own affair.
    lane_memory=timedelta(days=365),
)
RECEIPT_SECONDS = 100
PATIENCE_SECONDS = 60.0
ERRORS = ("boom", "down")

NUMBERS = st.integers(1, 8)
CHATS = st.sampled_from("abc")
CHANNELS = st.sampled_from(("telegram", "telegram", "telegram", "webchat"))
HOLDERS = st.sampled_from(("w1", "w2", "w3"))
GENERATIONS = st.integers(0, 2)
AHEAD = st.sampled_from((0, 0, 0, 1))
REASONS = st.sampled_from((Reason.WORKFLOW_PENDING, Reason.RETRIES_EXHAUSTED, Reason.REPLY_HELD))
PICKS = st.integers(0, 5)
LIMIT = st.integers(0, 3)
SETTLEMENTS = st.one_of(
    st.just(Finished()),
    st.just(Replying()),
    st.just(RetryIn(1.0, ERRORS[0], counts=True)),
    st.builds(RetryIn, st.sampled_from((0.0, 1.5, 15.0, 60.0)), st.sampled_from(ERRORS), st.booleans()),
    st.builds(Suspend, REASONS, st.sampled_from((None, *ERRORS))),
    st.builds(Anew, GENERATIONS),
)
EVERYTHING = Selection()
SELECTIONS = st.just(EVERYTHING) | st.builds(
    Selection,
    task_ids=st.lists(NUMBERS.map(lambda number: delivery(number).head.task_id), max_size=2).map(tuple),
    status=st.sampled_from((None, None, Status.PENDING, Status.SUSPENDED, Status.REPLYING)),
    reason=st.none() | REASONS,
    channel=st.none() | CHANNELS,
    account=st.sampled_from((None, "7", "8")),
    lane=st.none() | CHATS.map(lane_of),
    routes=st.lists(st.builds(Route, CHANNELS, st.just("7"), st.sampled_from(("", "echo"))), max_size=1).map(tuple),
)

COMMANDS = commands(
    command(
        10,
        "enqueue",
        number=NUMBERS,
        chat=CHATS,
        channel=CHANNELS,
        at=st.integers(0, 3),
        raw=st.sampled_from((b"one", b"two")),
        suspend=seldom(st.just(Reason.WORKFLOW_PENDING)),
        lives_seconds=seldom(st.just(20)),
        due_seconds=seldom(st.sampled_from((5, 50))),
        workflow_id=seldom(st.just("echo")),
    ),
    command(5, "claim", holder=HOLDERS, telegram=LIMIT, webchat=st.integers(0, 1), takes_suspects=st.booleans()),
    command(3, "claim_all", holder=HOLDERS, counts_deaths=st.sampled_from((True, True, False))),
    command(10, "settle", pick=PICKS, settlement=SETTLEMENTS),
    command(3, "settle_any", pick=PICKS, settlement=SETTLEMENTS),
    command(1, "renew", picks=st.lists(PICKS, max_size=3)),
    command(2, "hand_back", holder=HOLDERS, keep=st.lists(PICKS, max_size=2)),
    command(1, "reclaim", holder=HOLDERS),
    command(4, "workers_die", times=st.integers(1, 3)),
    command(2, "sweep"),
    command(3, "finish", pick=PICKS, ahead=AHEAD),
    command(3, "resume", selection=SELECTIONS, limit=LIMIT),
    command(1, "hold", pick=PICKS, ahead=AHEAD),
    command(2, "restart", pick=PICKS, generation=GENERATIONS),
    command(1, "restart_ended", number=NUMBERS, chat=CHATS, generation=GENERATIONS),
    command(2, "cancel", pick=PICKS, ahead=AHEAD),
    command(5, "pass_time", seconds=st.sampled_from((0.001, 1.0, 10.0, 30.0, 100.0, float(KEY_GRACE_SECONDS)))),
    command(1, "turn_pages", selection=SELECTIONS, limit=LIMIT),
)

Claims = dict[Queue, Claim]
"""The same claim, as each of them gave it out."""
Call = Callable[[Queue], Coroutine[Any, Any, Any]]


class TwoQueues:
    """Each command goes to both; `agree` compares what they say."""

    def __init__(self, clock: ManualClock, real: Queue, *, answer: Answering = answer) -> None:
        self.clock = clock
        self.real = real
        self.state = MemoryQueueState(life="the first")
        self.fake = MemoryQueue(self.state, now_ms=real.now_ms, limits=LIMITS)
        self.answer = answer
        self.claims: list[Claims] = []
        """All that were ever given out, the latest last."""
        self.unsettled: dict[LaneKey, Claims] = {}

    def look(self) -> None:
        rows, _ = self.agree(lambda queue: queue.list_open(EVERYTHING, limit=100))
        for row in rows:
            self.agree(lambda queue, task_id=row.head.task_id: queue.get(task_id))
        self.agree(lambda queue: queue.receipts(limit=100))
        self.agree(lambda queue: queue.longest_lanes(limit=100))
        self.agree(lambda queue: queue.suspended_routes(Reason.WORKFLOW_PENDING))
        for lane in {row.head.lane for row in rows}:
            self.agree(lambda queue, lane=lane: queue.suspended_routes(Reason.WORKFLOW_PENDING, lane=lane))
            in_line = Selection(status=Status.PENDING, lane=lane)
            first, _ = self.agree(lambda queue, meant=in_line: queue.list_open(meant, limit=1))
            after = first[0].head.task_id if first else ""
            self.agree(lambda queue, meant=in_line, after=after: queue.list_open(meant, limit=100, after=after))
            for limit in (1, 3, 100):
                self.agree(lambda queue, lane=lane, limit=limit: queue.next_in_lane(lane, limit=limit))
        for row in rows:
            head = row.head
            self.agree(lambda queue, head=head: queue.next_in_lane(head.lane, limit=2, after=head.place))
        for few in (Selection(status=Status.REPLYING), Selection(status=Status.SUSPENDED)):
            self.agree(lambda queue, meant=few: queue.list_open(meant, limit=100))
        fake, real = self.agree(lambda queue: queue.depth())
        # A lane is said to wait before somebody has looked whether its head is due; never the other way round.
        said = [real.oldest_waiting_ms] if real.oldest_waiting_ms is not None else []
        assert said == self._ages_said()[:1]
        assert fake.oldest_waiting_ms is None or fake.oldest_waiting_ms <= said[0]

    def _ages_said(self) -> list[int]:
        now = self.fake.now_ms()
        waiting = [lane.ready_at_ms for lane in self.state.lanes.values() if lane.ready_at_ms is not None]
        return sorted((now - since for since in waiting if since <= now), reverse=True)

    # --- commands ---

    def enqueue(
        self, number: int, due_seconds: int | None = None, lives_seconds: int | None = None, **fields: Any
    ) -> None:
        new = delivery(number, receipt_seconds=RECEIPT_SECONDS, **fields)
        timed = msgspec.structs.replace(new, due_at_ms=self._in(due_seconds), deadline_at_ms=self._in(lives_seconds))
        self.agree(lambda queue: queue.enqueue(timed))

    def _in(self, seconds: int | None) -> int | None:
        return None if seconds is None else self.fake.now_ms() + seconds * 1000

    def claim(self, holder: str, telegram: int, webchat: int, takes_suspects: bool) -> None:
        self._claim(holder, {"telegram": telegram, "webchat": webchat}, takes_suspects=takes_suspects)

    def claim_all(self, holder: str, counts_deaths: bool) -> None:
        self._claim(holder, {"telegram": 9, "webchat": 9}, takes_suspects=True, counts_deaths=counts_deaths)

    def _claim(self, holder: str, room: dict[str, int], **how: bool) -> None:
        fake, real = self.agree(lambda queue: queue.claim(holder, room, **how))
        for claims in zip(fake.claims, real.claims, strict=True):
            self._remember(*claims)

    def settle(self, pick: int, settlement: Settlement) -> None:
        """One of those that may still be good."""
        if self.unsettled:
            lane, claims = picked(list(self.unsettled.items()), pick)
            del self.unsettled[lane]
            self._settle(claims, settlement)

    def settle_any(self, pick: int, settlement: Settlement) -> None:
        """Also what is stale, and what was settled before."""
        for claims in self._picked([pick]):
            self._settle(claims, settlement)

    def _settle(self, claims: Claims, settlement: Settlement) -> None:
        fake, real = self.agree(lambda queue: queue.settle(claims[queue], claims[queue].task, settlement))
        if isinstance(fake, Claim):
            self._remember(fake, real)

    def renew(self, picks: list[int]) -> None:
        renewed = self._picked(picks)

        async def lost(queue: Queue) -> list[bool]:
            fences = await queue.renew([of[queue] for of in renewed])
            return [of[queue].fence in fences for of in renewed]

        self.agree(lost)

    def hand_back(self, holder: str, keep: list[int]) -> None:
        kept = self._picked(keep)
        self.agree(lambda queue: queue.hand_back(holder, keep=[of[queue].fence for of in kept]))

    def reclaim(self, holder: str) -> None:
        self.agree(lambda queue: queue.reclaim(holder))

    def workers_die(self, times: int) -> None:
        """One after the other, each with what it took over from the last."""
        for _ in range(times):
            for holder in ("w1", "w2", "w3"):
                self.reclaim(holder)
            self.claim_all("w1", counts_deaths=True)

    def sweep(self) -> None:
        self.agree(lambda queue: queue.sweep())

    def finish(self, pick: int, ahead: int) -> None:
        task_id, generation = self._open(pick)
        self.agree(lambda queue: queue.finish(task_id, generation + ahead))

    def resume(self, selection: Selection, limit: int) -> None:
        self.agree(lambda queue: queue.resume(selection, limit=limit), order=str)

    def hold(self, pick: int, ahead: int) -> None:
        task_id, generation = self._open(pick)
        held = Suspend(Reason.REPLY_HELD, ERRORS[0])
        self.agree(lambda queue: queue.hold(task_id, generation + ahead, held))

    def restart(self, pick: int, generation: int) -> None:
        task_id, _ = self._open(pick)
        task = self.answer(self.fake.get(task_id))
        if task is not None:
            self.agree(lambda queue: queue.restart(task, generation=generation))

    def restart_ended(self, number: int, chat: str, generation: int) -> None:
        """One that, as far as the ledger knows, has ended."""
        new = delivery(number, chat=chat)
        task = Task(new.head, new.raw, Progress(status=Status.COMPLETED))
        self.agree(lambda queue: queue.restart(task, generation=generation))

    def cancel(self, pick: int, ahead: int) -> None:
        task_id, generation = self._open(pick)
        self.agree(lambda queue: queue.cancel(task_id, generation=generation + ahead))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def turn_pages(self, selection: Selection, limit: int) -> None:
        self.agree(lambda queue: queue.list_open(selection, limit=limit, after="t_g"))
        self.agree(lambda queue: queue.resumable(selection, limit=limit), order=lambda row: row.head.task_id)
        self.agree(lambda queue: queue.receipts(limit=limit, after="tg:7:u:2"))
        self.agree(lambda queue: queue.longest_lanes(limit=limit))

    # --- comparing ---

    def agree(self, call: Call, *, order: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
        """`order`: the port leaves open in which order they are listed."""
        fake, real = self.answer(call(self.fake)), self.answer(call(self.real))
        if order is not None:
            fake, real = sorted(fake, key=order), sorted(real, key=order)
        assert _comparable(fake) == _comparable(real)
        return fake, real

    def _remember(self, fake: Claim, real: Claim) -> None:
        self.claims.append({self.fake: fake, self.real: real})
        self.unsettled[fake.lane] = self.claims[-1]

    def _picked(self, picks: list[int]) -> list[Claims]:
        return [picked(self.claims, pick) for pick in picks if self.claims]

    def _open(self, pick: int) -> tuple[TaskId, int]:
        """An open task and its generation; where there is none, one that is not there."""
        rows = self.answer(self.fake.list_open(EVERYTHING, limit=100))
        return picked([(row.head.task_id, row.generation) for row in rows] or [(TaskId("t_gone"), 0)], pick)


def _comparable(said: Any) -> Any:
    """Without what a backend may choose: the numbers of its fences, and its words for what it did itself."""
    match said:
        case Claim():
            return msgspec.structs.replace(said, fence=0, task=_comparable(said.task))
        case Claimed(claims, suspects_waiting):
            return _comparable(claims), suspects_waiting
        case Task():
            return msgspec.structs.replace(said, progress=_comparable(said.progress))
        case OpenTask() | Progress() if said.error not in (None, *ERRORS):
            return msgspec.structs.replace(said, error="in its own words")
        case QueueDepth():
            return msgspec.structs.replace(said, waiting_ms_by_channel={})
        case list():
            return [_comparable(one) for one in said]
    return said


def memory_and_sqlite() -> TwoQueues:
    clock = ManualClock()
    return TwoQueues(clock, SqliteQueue(opened(clock, queue=SCHEMA), LIMITS))


@pytest.mark.req("TST-3")
def test_both_say_the_same_whatever_is_done(request: pytest.FixtureRequest):
    compare(memory_and_sqlite, COMMANDS, request.config)


class RedisOnTheClock(RedisDatabase):
    """Its time stands still between steps of the clock: then two stores can say the same to the millisecond."""

    def now_ms(self) -> int:
        return epoch_ms(START) + round(self._clock.monotonic() * 1000)

    async def run(self, script: Script, *arguments: Argument) -> Any:
        return await super().run(replace(script, clock=f"local now = {self.now_ms()}"), *arguments)


@pytest.mark.req("TST-3")
def test_redis_says_what_the_fake_says_whatever_is_done(request: pytest.FixtureRequest, redis_server: RedisServer):
    with asyncio.Runner() as runner:
        databases: list[RedisDatabase] = []

        def memory_and_redis() -> TwoQueues:
            redis_server.ask("FLUSHALL")
            clock = ManualClock()
            databases.append(RedisOnTheClock(redis_server.url, clock=clock, answer_seconds=PATIENCE_SECONDS))
            queue = RedisQueue(databases[-1], LIMITS)
            runner.run(begin(queue))
            return TwoQueues(clock, queue, answer=answers_in(runner))

        try:
            compare(memory_and_redis, COMMANDS, request.config, examples_per_cent=10)
        finally:
            for database in databases:
                runner.run(database.close())


# --- where they once differed ---


class OneQueue(NamedTuple):
    """The fake as the port promises, or a real one, on a clock."""

    queue: Queue
    clock: ManualClock


@pytest.fixture(params=["fake", "sqlite", "redis"])
async def one(request: pytest.FixtureRequest) -> AsyncIterator[OneQueue]:
    clock = ManualClock()
    sqlite = SqliteQueue(opened(clock, queue=SCHEMA), LIMITS)
    match request.param:
        case "fake":
            yield OneQueue(MemoryQueue(MemoryQueueState(life="the first"), now_ms=sqlite.now_ms, limits=LIMITS), clock)
        case "sqlite":
            yield OneQueue(sqlite, clock)
        case "redis":
            server = request.getfixturevalue("redis_server")
            database = RedisOnTheClock(server.url, clock=clock, answer_seconds=PATIENCE_SECONDS)
            queue = RedisQueue(database, LIMITS)
            await begin(queue)
            yield OneQueue(queue, clock)
            await database.close()


@pytest.mark.req("QUE-2")
@pytest.mark.parametrize("hand", ["resume", "restart", "cancel"])
async def test_a_lane_that_waits_keeps_its_place_when_a_person_lays_hands_on_it(one: OneQueue, hand: str):
    queue = one.queue
    await enqueue(queue, 1, 2, chat="first")
    await queue.enqueue(delivery(3, chat="first", suspend=Reason.WORKFLOW_PENDING))
    one.clock.advance(1)
    await enqueue(queue, 4, chat="second")
    one.clock.advance(1)
    match hand:
        case "resume":
            await queue.resume(Selection(), limit=1)
        case "restart":
            await queue.restart(await open_task(queue, delivery(3).head.task_id), generation=1)
        case "cancel":
            await queue.cancel(delivery(2).head.task_id)
    assert number_of((await claim_one(queue)).task) == 1


@pytest.mark.req("QUE-2")
async def test_what_comes_late_has_come_out_of_order(one: OneQueue):
    await one.queue.enqueue(delivery(5, suspend=Reason.WORKFLOW_PENDING))
    await one.queue.resume(Selection(), limit=1)
    await claim_one(one.queue)
    late = await one.queue.enqueue(delivery(3))
    assert (late.out_of_order, late.late) == (True, True)
    assert (await one.queue.depth()).out_of_order == 1


@pytest.mark.req("QUE-3")
async def test_only_what_is_found_running_is_parked_as_poison(one: OneQueue):
    queue = one.queue
    await queue.enqueue(delivery(1, deadline_at_ms=queue.now_ms() + 100_000))
    for _ in range(LIMITS.deaths_max):
        await claim_one(queue, "dies")
        await queue.reclaim("dies")
    await enqueue(queue, 2)
    assert number_of((await claim_one(queue, "dies")).task) == 2
    one.clock.advance(101)
    assert await queue.sweep() == 1, "the first is too late and comes up to be ended"
    assert number_of((await claim_one(queue)).task) == 1


async def test_the_answer_of_a_former_run_does_not_end_the_one_that_is_run_anew(one: OneQueue):
    [task_id] = await enqueue(one.queue, 1)
    claim = await claim_one(one.queue)
    assert await one.queue.finish(task_id, 0)
    anew = await one.queue.settle(claim, claim.task, Anew(1))
    await one.queue.settle(anew, anew.task, Replying())
    assert (await open_task(one.queue, task_id)).progress.status is Status.REPLYING

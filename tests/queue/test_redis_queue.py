"""The queue on Redis keeps every promise of the port, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rise.connections.redis import CLOCK_KEY, RedisDatabase
from rise.envelope import Reason, Status, TaskId
from rise.errors import RedisUnavailable
from rise.queue.port import Finished, QueueLimits, Replying, RetryIn, Selection, Suspend
from rise.queue.redis import FINISHED, GROUP, HINT_SECONDS, HINTS, TOMBSTONE_SECONDS, RedisQueue
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import (
    CLAIM,
    DEATHS_MAX,
    DEATHS_SUSPECT,
    TASKS_PER_CLAIM,
    QueueConformance,
    claim_all,
    claim_one,
    delivery,
    enqueue,
    lane_of,
    number_of,
    open_task,
    run_everything,
    run_lane,
)
from rise.testing.conformance.refilling import RefillingConformance, begin
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.servers import RedisServer
from rise.testing.waiting import eventually

LIMITS = QueueLimits(claim=CLAIM, tasks_per_claim=TASKS_PER_CLAIM, deaths_suspect=DEATHS_SUSPECT, deaths_max=DEATHS_MAX)
PATIENCE_SECONDS = 20.0
"""A busy machine's fsync may take long. How long is waited at most has a test of its own."""
QUEUE = "{rise}:queue:"
KEPT = ("receipts", "lane:", "idle", "counts", "fence", "finished:")
"""The memory of keys, idle lanes and finished tasks, and what was counted."""


class RedisStage:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.clock = ManualClock()
        self.databases: list[RedisDatabase] = []

    async def open(self) -> RedisQueue:
        database = RedisDatabase(self.server.url, clock=self.clock, answer_seconds=PATIENCE_SECONDS)
        await database.open()
        self.databases.append(database)
        return RedisQueue(database, LIMITS)

    another = open

    async def close(self) -> None:
        for database in self.databases:
            await database.close()
        self.databases.clear()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.ask("HINCRBY", CLOCK_KEY, "ahead", int(seconds * 1000))

    def step_wall_clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)

    async def empty(self) -> None:
        self.server.ask("FLUSHALL")

    async def lose(self, task_id: TaskId) -> None:
        assert self.server.ask("DEL", f"{{rise}}:queue:task:{task_id}") == 1

    async def let_debts_lapse(self) -> None:
        # Redis ends them by its own clock, which nobody moves.
        await eventually(lambda: not any("owed:" in key for key in self.every_key()))
        self.pass_time(1)

    async def lose_hints(self) -> None:
        # Some lanes gone altogether, some there and silent.
        for key in self.every_key():
            name = key.removeprefix(QUEUE)
            is_silent_lane = name.startswith("lane:") and not self.server.ask("HEXISTS", key, "holder")
            if name.startswith(("ready:", "claims", "tasks")) or (is_silent_lane and ord(name[-1]) % 2):
                self.server.ask("DEL", key)

    async def overwrite_head(self, task_id: TaskId, stored: bytes) -> None:
        self.server.ask("HSET", f"{QUEUE}content:{task_id}", "head", stored)

    async def overwrite_words(self, task_id: TaskId, *, status: str, reason: str) -> None:
        self.server.ask("HSET", f"{QUEUE}task:{task_id}", "status", status, "reason", reason)

    async def leftovers(self) -> dict[str, int]:
        names = [key.removeprefix(QUEUE) for key in self.every_key() if key.startswith(QUEUE)]
        left = {name: 1 for name in names if not name.startswith((*KEPT, "tasks"))}
        return left | {"hints": self.server.ask("XLEN", f"{QUEUE}tasks")}

    # --- what only tests of Redis do ---

    async def restart_server(self) -> None:
        self.server.kill()
        self.server.start()
        await asyncio.sleep(0)  # the end of the old connection is heard, as it is wherever a loop runs

    def contents(self) -> dict[str, bytes]:
        return {key: self.server.ask("DUMP", key) for key in self.every_key() if key != CLOCK_KEY}

    async def message(self) -> None:
        """The way of one message."""
        await enqueue(self.queue, 1)
        claim = await claim_one(self.queue)
        await self.queue.renew([claim])
        await self.queue.settle(claim, claim.task, Replying())
        await self.queue.finish(claim.task.task_id, 0)
        self.server.ask("DEL", f"{QUEUE}receipts", f"{QUEUE}lane:{claim.lane}")

    async def commands_for(self, doing: Callable[[], Awaitable[object]]) -> int:
        """How many, in scripts too."""
        self.server.ask("CONFIG", "RESETSTAT")
        await doing()
        return sum(int(stat.split(",")[0].removeprefix("calls=")) for stat in self.server.info("commandstats").values())

    def commands_newer_than(self, version: tuple[int, int]) -> set[str]:
        """Of those that were used, but for the tests' own."""
        used = {name.removeprefix("cmdstat_") for name in self.server.info("commandstats")}
        newer = set()
        for name in used - {"client|setinfo", "info"}:
            [_, described] = self.server.ask("COMMAND", "DOCS", name)
            since = dict(zip(described[::2], described[1::2], strict=True))[b"since"]
            if tuple(map(int, since.split(b".")[:2])) > version:
                newer.add(name)
        assert used > {"evalsha", "xautoclaim", "zrangebylex"}
        return newer

    def every_key(self) -> list[str]:
        return [key.decode() for key in self.server.ask("KEYS", "*")]


@pytest.fixture
async def not_begun(redis_server: RedisServer) -> AsyncIterator[RedisStage]:
    stage = RedisStage(redis_server)
    stage.queue = await stage.open()
    yield stage
    await stage.close()


@pytest.fixture
async def stage(not_begun: RedisStage) -> RedisStage:
    await begin(not_begun.queue)
    return not_begun


@pytest.mark.req("TST-3", "QUE-1", "QUE-2", "QUE-3", "QUE-4")
class TestRedisQueue(QueueConformance):
    @pytest.fixture
    def stage(self, stage: RedisStage) -> RedisStage:
        return stage


@pytest.mark.req("TST-3", "CPY-5", "QUE-5")
class TestRefillingRedis(RefillingConformance):
    @pytest.fixture
    def stage(self, not_begun: RedisStage) -> RedisStage:
        return not_begun


# --- what only Redis can do wrong ---


@pytest.fixture
async def own(redis_of_its_own: RedisServer) -> AsyncIterator[RedisStage]:
    """A stage whose server may be killed and changed."""
    stage = RedisStage(redis_of_its_own)
    stage.queue = await stage.open()
    await begin(stage.queue)
    yield stage
    await stage.close()


@pytest.mark.req("QUE-5")
@pytest.mark.failure("C17")
async def test_everything_survives_the_kill_of_a_redis_that_syncs(own: RedisStage):
    await enqueue(own.queue, 1, 2)
    claim = await claim_one(own.queue)
    await own.restart_server()
    assert await claim_all(own.queue, "w2") == []
    assert await own.queue.renew([claim]) == set()
    assert not (await own.queue.enqueue(delivery(2))).new
    assert await run_lane(own.queue, claim) == [1, 2]


@pytest.mark.req("QUE-2", "QUE-3")
async def test_what_a_former_version_has_claimed_is_left_to_it(stage: RedisStage):
    """That keeps what is ready, and does not know of the lanes in which somebody waits."""
    queue, ready, awaited = stage.queue, f"{QUEUE}ready:telegram", f"{QUEUE}awaited:telegram"
    for number in range(1, 10):
        await enqueue(queue, number, chat=str(number))
    claims = await claim_all(queue, "former", room=4)
    for claim in claims:
        stage.server.ask("ZADD", awaited, "0", claim.lane)
    others = [claim for _ in range(5) for claim in await claim_all(queue, "w2", room=1)]
    assert {number_of(claim.task) for claim in [*claims, *others]} == set(range(1, 10))
    assert [claim.task.progress.deaths for claim in others] == [0] * 5
    for claim in claims:
        assert await queue.settle(claim, claim.task, Finished()) is None
        stage.server.ask("ZREM", ready, claim.lane)
        stage.server.ask("ZADD", awaited, "0", claim.lane)
    assert await claim_all(queue, "w3", room=1) == []


@pytest.mark.req("QUE-2")
async def test_what_a_former_version_says_is_ready_is_found(stage: RedisStage):
    for number in range(1, 5):
        await enqueue(stage.queue, number, chat=str(number))
    stage.server.ask("DEL", f"{QUEUE}awaited:telegram")
    found = [number_of(claim.task) for _ in range(4) for claim in await claim_all(stage.queue, room=1)]
    assert found == [1, 2, 3, 4]


@pytest.mark.req("QUE-5")
@pytest.mark.failure("C16")
async def test_forgotten_scripts_are_noticed_by_nobody(stage: RedisStage):
    stage.server.ask("SCRIPT", "FLUSH")
    await enqueue(stage.queue, 1, 2)
    claim = await claim_one(stage.queue)
    stage.server.ask("SCRIPT", "FLUSH")
    assert await run_lane(stage.queue, claim) == [1, 2]


@pytest.mark.req("QUE-5")
@pytest.mark.failure("C16")
async def test_a_replica_is_looked_at_and_not_written_to(own: RedisStage):
    [task_id] = await enqueue(own.queue, 1)
    claim = await claim_one(own.queue)
    own.server.ask("REPLICAOF", "127.0.0.1", "1")
    for writing in (own.queue.enqueue(delivery(2)), own.queue.settle(claim, claim.task, Finished())):
        with pytest.raises(RedisUnavailable, match="replica"):
            await writing
    assert (await open_task(own.queue, task_id)).progress.status is Status.PROCESSING
    own.server.ask("REPLICAOF", "NO", "ONE")
    assert (await own.queue.enqueue(delivery(2))).new
    assert await run_lane(own.queue, claim) == [1, 2]


@pytest.mark.req("QUE-5")
@pytest.mark.failure("C14")
async def test_a_full_redis_takes_nothing_in_and_lets_everything_out(own: RedisStage):
    queue = own.queue
    await enqueue(queue, 1, 2)
    await queue.enqueue(delivery(3, chat="2", suspend=Reason.WORKFLOW_PENDING))
    before = own.contents()
    own.server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="full"):
        await queue.enqueue(delivery(4))
    assert own.contents() == before, "nothing half written"
    assert not (await queue.enqueue(delivery(1))).new, "what is kept already is confirmed"
    claim = await claim_one(queue)
    assert await queue.renew([claim]) == set()
    await queue.resume(Selection(), limit=10)
    assert await run_lane(queue, claim) == [1, 2]
    assert await run_everything(queue) == [3]
    own.server.ask("CONFIG", "SET", "maxmemory", "0")
    assert (await queue.enqueue(delivery(4))).new


@pytest.mark.req("QUE-5")
@pytest.mark.failure("C14")
async def test_a_full_redis_runs_again_what_it_has_and_nothing_that_it_would_have_to_take_in(own: RedisStage):
    queue = own.queue
    await enqueue(queue, 1)
    ended = (claim := await claim_one(queue)).task
    await run_lane(queue, claim)
    await queue.enqueue(delivery(2, suspend=Reason.RETRIES_EXHAUSTED))
    suspended = await open_task(queue, delivery(2).head.task_id)
    before = own.contents()
    own.server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisUnavailable, match="full"):
        await queue.restart(ended, generation=1)
    assert own.contents() == before, "nothing half written"
    assert await queue.restart(suspended, generation=1)
    own.server.ask("CONFIG", "SET", "maxmemory", "0")
    assert await queue.restart(ended, generation=1)


@pytest.mark.failure("C12")
async def test_a_redis_that_hangs_is_not_waited_for(redis_of_its_own: RedisServer):
    database = RedisDatabase(redis_of_its_own.url, clock=ManualClock(), answer_seconds=0.2)
    await database.open()
    redis_of_its_own.freeze()
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RedisUnavailable, match="in time"):
            await RedisQueue(database, LIMITS).enqueue(delivery(1))
    redis_of_its_own.thaw()
    await database.close()


@pytest.mark.req("CPY-5", "QUE-5")
@pytest.mark.failure("C19")
async def test_a_filling_that_spans_a_restart_begins_anew(redis_of_its_own: RedisServer):
    database = RedisDatabase(redis_of_its_own.url, clock=ManualClock(), answer_seconds=PATIENCE_SECONDS)
    database.belongs_to("this installation")
    queue = RedisQueue(database, LIMITS)
    refill = await queue.begin_refill()
    await queue.restore([delivery(1)])
    await RedisStage(redis_of_its_own).restart_server()
    assert await queue.begin_life(refill) is None, "what was brought before may be lost"
    assert await claim_all(queue) == []
    await begin(queue)
    assert await run_everything(queue) == [1]
    await database.close()


@pytest.mark.req("CPY-5", "QUE-5")
@pytest.mark.failure("C19", "I8")
async def test_what_redis_loses_of_a_filling_with_its_last_writes_is_brought_again(tmp_path: Path):
    with RedisServer(tmp_path, appendonly="no") as server:
        database = RedisDatabase(server.url, clock=ManualClock(), answer_seconds=PATIENCE_SECONDS)
        database.belongs_to("this installation")
        queue = RedisQueue(database, LIMITS)
        refill = await queue.begin_refill()
        await queue.restore([delivery(2)])
        server.ask("SAVE")
        assert await queue.restore([delivery(1)]) != [], "it has said so"
        await RedisStage(server).restart_server()
        assert await queue.begin_life(refill) is None, "its name was saved, and the first of the chat was not"
        assert await claim_all(queue) == []
        await queue.restore([delivery(1), delivery(2)])
        await begin(queue)
        assert await run_everything(queue) == [1, 2]
        await database.close()


@pytest.mark.req("EMB-3")
async def test_a_redis_of_which_nobody_knows_whose_it_is_is_not_used(redis_server: RedisServer):
    database = RedisDatabase(redis_server.url, clock=ManualClock(), answer_seconds=PATIENCE_SECONDS)
    database.await_owner()
    with pytest.raises(RedisUnavailable, match="whether this Redis is ours"):
        await RedisQueue(database, LIMITS).enqueue(delivery(1))
    assert redis_server.ask("DBSIZE") == 0
    database.belongs_to("this installation")
    await RedisQueue(database, LIMITS).enqueue(delivery(1))
    await database.close()


@pytest.mark.failure("B15", "D12")
async def test_a_task_that_was_deleted_by_hand_does_not_stop_its_lane(stage: RedisStage):
    [gone, _] = await enqueue(stage.queue, 1, 2)
    stage.server.ask("DEL", f"{QUEUE}task:{gone}", f"{QUEUE}content:{gone}")
    assert await run_everything(stage.queue) == [2]


# --- hints ---


@pytest.mark.req("QUE-1")
@pytest.mark.failure("D10", "D11")
async def test_each_waiting_lane_wakes_one_worker_and_its_claim_takes_the_hint_away(stage: RedisStage):
    queue = stage.queue
    await enqueue(queue, 1, 2, 3, chat="a")
    await enqueue(queue, 4, chat="b")
    assert await queue.wait_for_hint("w1", seconds=1)
    assert await queue.wait_for_hint("w2", seconds=1)
    assert not await queue.wait_for_hint("w1", seconds=0.01)
    assert await run_everything(queue) == [1, 2, 3, 4]
    assert stage.server.ask("XLEN", HINTS) == 0
    assert stage.server.ask("XPENDING", HINTS, GROUP)[0] == 0


@pytest.mark.req("QUE-1")
async def test_a_hint_nobody_read_goes_with_the_claim(stage: RedisStage):
    await enqueue(stage.queue, 1)
    claim = await claim_one(stage.queue)
    assert stage.server.ask("XLEN", HINTS) == 0
    await stage.queue.settle(claim, claim.task, RetryIn(15.0, "boom", counts=True))
    assert stage.server.ask("XLEN", HINTS) == 0, "nobody is woken for what is not due"


@pytest.mark.req("QUE-1")
async def test_who_waits_is_woken(stage: RedisStage):
    waiting = asyncio.ensure_future(stage.queue.wait_for_hint("w1", seconds=PATIENCE_SECONDS))
    while not stage.server.ask("EXISTS", HINTS):
        await asyncio.sleep(0)
    await (await stage.another()).enqueue(delivery(1))
    assert await waiting


@pytest.mark.req("QUE-1", "QUE-5")
@pytest.mark.failure("D6", "D7", "D8", "M5")
@pytest.mark.parametrize(
    "command", [("DEL", HINTS), ("XGROUP", "DESTROY", HINTS, GROUP), ("XTRIM", HINTS, "MAXLEN", 0)], ids=lambda c: c[0]
)
async def test_without_the_stream_work_goes_on_and_the_stream_comes_back(stage: RedisStage, command: tuple[Any, ...]):
    queue = stage.queue
    await enqueue(queue, 1)
    assert await queue.wait_for_hint("w1", seconds=1)
    await enqueue(queue, 2, chat="2")
    stage.server.ask(*command)
    assert await run_everything(queue) == [1, 2]
    await enqueue(queue, 3)
    assert await queue.wait_for_hint("w1", seconds=1)
    assert await run_everything(queue) == [3]
    assert stage.server.ask("XLEN", HINTS) == 0


@pytest.mark.req("QUE-1", "QUE-5")
@pytest.mark.failure("D6")
async def test_who_waits_while_the_group_is_destroyed_hears_of_it(stage: RedisStage):
    waiting = asyncio.ensure_future(stage.queue.wait_for_hint("w1", seconds=PATIENCE_SECONDS))
    while b"cmd=xreadgroup" not in stage.server.ask("CLIENT", "LIST"):
        await asyncio.sleep(0)
    stage.server.ask("XGROUP", "DESTROY", HINTS, GROUP)
    with pytest.raises(RedisUnavailable):
        await waiting


@pytest.mark.req("QUE-1")
@pytest.mark.failure("D7")
async def test_a_hint_that_was_read_and_not_followed_is_forgotten_and_its_lane_is_not(stage: RedisStage):
    queue = stage.queue
    await enqueue(queue, 1)
    assert await queue.wait_for_hint("dies", seconds=1)
    [(hint, _)] = stage.server.ask("XRANGE", HINTS, "-", "+")
    stage.server.ask("XCLAIM", HINTS, GROUP, "dies", 0, hint, "IDLE", HINT_SECONDS * 1000 + 1)
    await queue.sweep()
    assert stage.server.ask("XPENDING", HINTS, GROUP)[0] == 0
    assert await run_everything(queue) == [1]


# --- what is left, and what it costs ---


@pytest.mark.failure("M7")
async def test_of_a_finished_task_a_tombstone_is_left_for_a_while(stage: RedisStage):
    queue = stage.queue
    settled, answered, cancelled, is_open = [
        (await enqueue(queue, number, chat=str(number)))[0] for number in range(1, 5)
    ]
    claims = {claim.task.task_id: claim for claim in await claim_all(queue)}
    await queue.settle(claims[settled], claims[settled].task, Finished())
    await queue.settle(claims[answered], claims[answered].task, Replying())
    assert answered not in await queue.finished([answered])
    await queue.finish(answered, 0)
    await queue.cancel(cancelled)
    assert await queue.finished([settled, answered, cancelled, is_open]) == {settled: 0, answered: 0, cancelled: 0}
    assert await queue.finished([]) == {}
    assert 0 < stage.server.ask("TTL", f"{FINISHED}{settled}") <= TOMBSTONE_SECONDS

    await queue.restart(claims[settled].task, generation=1)
    await run_everything(queue)
    assert await queue.finished([settled]) == {settled: 1}


async def test_an_idle_lane_is_forgotten_after_a_while(stage: RedisStage):
    await enqueue(stage.queue, 1)
    await run_everything(stage.queue)
    assert f"{QUEUE}lane:{lane_of('1')}" in stage.every_key()
    stage.pass_time(7200)
    await stage.queue.sweep()
    assert f"{QUEUE}lane:{lane_of('1')}" not in stage.every_key()
    assert f"{QUEUE}idle" not in stage.every_key()


async def test_nothing_but_the_clock_is_left_when_all_is_over(stage: RedisStage):
    await enqueue(stage.queue, 1, 2, 2)
    await stage.queue.wait_for_hint("w1", seconds=1)
    await run_everything(stage.queue)
    stage.pass_time(30 * 86_400)
    await stage.queue.sweep()
    names = {key.removeprefix(QUEUE).split(":")[0] for key in stage.every_key()}
    assert names == {"{rise}", "counts", "fence", "finished", "tasks"}, "of these only tombstones grow"


async def test_every_key_is_in_one_slot(stage: RedisStage):
    await enqueue(stage.queue, 1, 2)
    await begin(stage.queue)
    await claim_one(stage.queue)
    assert all(key.startswith("{rise}:") for key in stage.every_key())


@pytest.mark.req("QUE-1")
async def test_redis_6_2_has_every_command_that_is_used(own: RedisStage):
    queue = own.queue
    await begin(queue)
    for number in range(1, 5):
        await queue.enqueue(delivery(number, chat=str(number), deadline_at_ms=queue.now_ms() + 60_000))
    await queue.wait_for_hint("w1", seconds=1)
    claims = await claim_all(queue)
    settlements = (Finished(), Replying(), RetryIn(1.0, "boom", counts=True), Suspend(Reason.WORKFLOW_PENDING))
    for claim, settlement in zip(claims, settlements, strict=True):
        await queue.settle(claim, claim.task, settlement)
    for row in await queue.list_open(Selection(), limit=10):
        await queue.resumable(Selection(), limit=10)
        await queue.finish(row.head.task_id, 0)
    own.pass_time(30 * 86_400)
    await queue.sweep()
    await queue.resume(Selection(), limit=10)
    await queue.renew(await claim_all(queue))
    await queue.reclaim("w1")
    await queue.hand_back("w1")
    await queue.longest_lanes(limit=3)
    await queue.receipts(limit=3)
    await queue.depth()
    assert own.commands_newer_than((6, 2)) == set()


async def test_no_step_of_a_messages_way_looks_at_every_lane(own: RedisStage):
    """It would go unnoticed until there is a backlog, and then hold up acceptance."""
    few = await own.commands_for(own.message)
    for number in range(100, 250):
        await own.queue.enqueue(delivery(number, chat=str(number), channel="webchat"))
    assert await own.commands_for(own.message) <= few
    assert await own.commands_for(own.queue.depth) <= 20


@pytest.mark.parametrize(
    "narrowing",
    [
        {"is_runnable": True},
        {"status": Status.PENDING},
        {"status": Status.SUSPENDED},
        {"status": Status.SUSPENDED, "reason": Reason.WORKFLOW_PENDING},
    ],
    ids=["runnable", "pending", "suspended", "suspended for a reason"],
)
async def test_a_look_at_one_lane_goes_through_no_others(own: RedisStage, narrowing: dict[str, Any]):
    await enqueue(own.queue, 1)
    await own.queue.enqueue(delivery(2, suspend=Reason.WORKFLOW_PENDING))

    async def look() -> None:
        assert len(await own.queue.list_open(Selection(lane=lane_of("1"), **narrowing), limit=100)) == 1

    few = await own.commands_for(look)
    for number in range(100, 250):
        await own.queue.enqueue(delivery(number, chat=str(number)))
    assert await own.commands_for(look) <= few


@pytest.mark.req("QUE-2")
async def test_the_next_of_a_lane_cost_the_same_however_many_wait(own: RedisStage):
    lane = lane_of("1")
    await enqueue(own.queue, *range(1, 5))
    claim = await claim_one(own.queue)

    async def look() -> None:
        assert [number_of(one) for one in await own.queue.next_in_lane(lane, limit=1)] == [2]
        behind = await own.queue.next_in_lane(lane, limit=2, after=claim.task.head.place)
        assert [number_of(one) for one in behind] == [2, 3]

    few = await own.commands_for(look)
    await enqueue(own.queue, *range(5, 300))
    assert await own.commands_for(look) <= few


@pytest.mark.failure("D16")
async def test_what_was_deleted_by_hand_and_brought_back_is_next_once(own: RedisStage):
    lane, [first, gone, last] = lane_of("1"), await enqueue(own.queue, 1, 2, 3)
    own.server.ask("DEL", f"{QUEUE}task:{gone}", f"{QUEUE}content:{gone}")
    assert [one.head.task_id for one in await own.queue.next_in_lane(lane, limit=2)] == [first, last]
    own.pass_time(1)
    assert await own.queue.restore([delivery(2)]) == [gone]
    assert [one.head.task_id for one in await own.queue.next_in_lane(lane, limit=9)] == [first, gone, last]


@pytest.mark.req("OPS-3")
@pytest.mark.parametrize(
    ("narrowing", "meant"),
    [
        ({"status": Status.SUSPENDED, "reason": Reason.POISON}, []),
        ({"status": Status.SUSPENDED, "reason": Reason.WORKFLOW_PENDING}, [1]),
        ({"status": Status.SUSPENDED}, [1, 2]),
        ({"status": Status.REPLYING}, [3]),
        ({"task_ids": (delivery(3).head.task_id, delivery(5).head.task_id)}, [3]),
    ],
    ids=["for a reason that none has", "for a reason", "suspended", "replying", "by their ids"],
)
async def test_a_list_of_few_costs_the_same_however_many_are_open(
    own: RedisStage, narrowing: dict[str, Any], meant: list[int]
):
    await own.queue.enqueue(delivery(1, chat="1", suspend=Reason.WORKFLOW_PENDING))
    await own.queue.enqueue(delivery(2, chat="2", suspend=Reason.STALE_REPLAY))
    await enqueue(own.queue, 3, chat="3")
    claim = await claim_one(own.queue)
    await own.queue.settle(claim, claim.task, Replying())

    async def look() -> None:
        found = await own.queue.list_open(Selection(**narrowing), limit=100)
        assert sorted(map(number_of, found)) == meant

    few = await own.commands_for(look)
    for number in range(100, 350):
        await own.queue.enqueue(delivery(number, chat=str(number)))
    assert await own.commands_for(look) <= few


async def test_of_many_that_are_suspended_each_is_listed_once(own: RedisStage):
    numbers = range(2100)
    await asyncio.gather(
        *(own.queue.enqueue(delivery(number, chat=str(number), suspend=Reason.STALE_REPLAY)) for number in numbers)
    )
    await enqueue(own.queue, 3000)
    expected = sorted(delivery(number).head.task_id for number in numbers)
    for reason in (None, Reason.STALE_REPLAY):
        listed = await own.queue.list_open(Selection(status=Status.SUSPENDED, reason=reason), limit=5000)
        assert [one.head.task_id for one in listed] == expected
    assert await own.queue.list_open(Selection(status=Status.SUSPENDED, reason=Reason.POISON), limit=5000) == []


async def replying(stage: RedisStage, *numbers: int) -> list[TaskId]:
    task_ids = [task_id for number in numbers for task_id in await enqueue(stage.queue, number, chat=str(number))]
    for claim in await claim_all(stage.queue):
        await stage.queue.settle(claim, claim.task, Replying())
    return sorted(task_ids)


@pytest.mark.failure("B14")
async def test_what_a_former_version_has_made_replying_is_found_and_from_then_on_at_once(own: RedisStage):
    task_ids = await replying(own, 1, 2, 3)
    await enqueue(own.queue, *range(100, 350), chat="another")
    own.server.ask("DEL", f"{QUEUE}replying")  # which a former version does not keep

    async def listed() -> list[TaskId]:
        return [one.head.task_id for one in await own.queue.list_open(Selection(status=Status.REPLYING), limit=100)]

    async def look() -> None:
        assert await listed() == task_ids

    many = await own.commands_for(look)
    assert await own.commands_for(look) < 30 < many
    # One that a former version has ended is left in it, and another is left out: by their number nothing is amiss.
    own.server.ask("ZREM", f"{QUEUE}replying", task_ids[0])
    own.server.ask("ZADD", f"{QUEUE}replying", 0, delivery(100).head.task_id)
    await listed()
    assert await listed() == task_ids


@pytest.mark.failure("B14")
async def test_what_a_newer_version_keeps_elsewhere_is_listed_with_what_is_suspended(own: RedisStage):
    task_ids = await enqueue(own.queue, 1, 2)
    await own.overwrite_words(task_ids[0], status="delegated", reason="of_tomorrow")
    own.server.ask("HINCRBY", f"{QUEUE}counts", "status:delegated", 1)
    own.server.ask("HINCRBY", f"{QUEUE}counts", "status:pending", -1)
    [listed] = await own.queue.list_open(Selection(status=Status.SUSPENDED), limit=10)
    assert listed.head.task_id == task_ids[0]


# --- what the network can do wrong ---


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.port) as link:
        yield link


@pytest.fixture
async def far(link: FaultProxy) -> AsyncIterator[RedisQueue]:
    """The queue at the other end of a link."""
    database = RedisDatabase(link.url.replace("http", "redis"), clock=ManualClock(), answer_seconds=PATIENCE_SECONDS)
    await database.open()
    queue = RedisQueue(database, LIMITS)
    await begin(queue)
    yield queue
    await database.close()


@pytest.mark.failure("C13", "D16")
async def test_whoever_asks_again_because_the_answer_was_lost_hears_what_became_of_it(
    far: RedisQueue, link: FaultProxy
):
    async def with_a_lost_answer(call: Awaitable[object]) -> None:
        link.apply(LinkFault.lost_answer())
        with pytest.raises(RedisUnavailable):
            await call
        link.heal()

    await with_a_lost_answer(far.enqueue(delivery(1)))
    assert not (await far.enqueue(delivery(1))).new
    await enqueue(far, 2)
    claim = await claim_one(far)
    await with_a_lost_answer(far.settle(claim, claim.task, Finished()))
    following = await far.settle(claim, claim.task, Finished())
    assert await run_lane(far, following) == [2]


@pytest.mark.failure("C20")
@pytest.mark.parametrize("fault", [LinkFault.reset(), LinkFault.cut(100), LinkFault.refusal()], ids=lambda f: f.name)
async def test_a_link_that_breaks_is_made_anew(far: RedisQueue, link: FaultProxy, fault: LinkFault):
    for number in range(5):
        link.apply(fault)
        with suppress(RedisUnavailable):
            await far.enqueue(delivery(number, chat=str(number)))
        link.heal()
        await far.enqueue(delivery(number, chat=str(number)))
    assert sorted(await run_everything(far)) == list(range(5))

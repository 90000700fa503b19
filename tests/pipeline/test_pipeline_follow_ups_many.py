"""Ten thousand follow-ups at the same second: each is said once, and who writes meanwhile is answered in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import apsw
import pytest
import structlog
from pipeline_stage import Process, Stage
from test_pipeline_follow_ups_asked import echoes, plan

from rise.channels.telegram import TelegramRates
from rise.clock import SystemClock
from rise.connections.temporal import Place, Temporal
from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits
from rise.envelope import new_key
from rise.follow_ups.arming import Arming
from rise.follow_ups.temporal import TemporalTimers, duties_of
from rise.queue.port import Selection
from rise.service import cancel_all, spawn
from rise.testing.clock import ManualClock
from rise.testing.fakes.timers import FakeTimers
from rise.testing.servers import TemporalServer
from rise.testing.telegram import TelegramStandIn
from rise.testing.waiting import eventually

MANY = 10_000
AT_TELEGRAMS_PACE = 300
ON_TEMPORAL = 100
AT_ONCE = 500
LIVE_CHAT = 1_000_000
TICK_SECONDS = 0.02
PATIENCE_SECONDS = 240.0


@asynccontextmanager
async def time_goes_on(stage: Stage, pace: float = 1.0) -> AsyncIterator[None]:
    """As it does outside; or slower, as on a machine that is so much faster."""
    clock = SystemClock()

    async def go_on() -> None:
        seen = clock.monotonic()
        while True:
            await clock.sleep(TICK_SECONDS)
            now = clock.monotonic()
            stage.clock.advance((now - seen) * pace)
            seen = now

    tasks: set[asyncio.Task[None]] = set()
    spawn(go_on(), name="time", into=tasks)
    try:
        yield
    finally:
        await cancel_all(tasks)


async def plan_many(stage: Stage, count: int, due_in_seconds: float, *, by: Process) -> list[str]:
    """Of a chat each."""
    texts = [f"reminder {number}" for number in range(count)]
    due_at = stage.clock.monotonic() + due_in_seconds
    for first in range(0, count, AT_ONCE):
        left = due_at - stage.clock.monotonic()
        some = range(first, min(first + AT_ONCE, count))
        await asyncio.gather(*(plan(stage, texts[number], left, chat=1 + number, by=by) for number in some))
    return texts


async def meant(stage: Stage) -> Counter[str]:
    """What is frozen to be said, and how often."""

    def query(connection: apsw.Connection) -> Counter[str]:
        return Counter(text for (text,) in connection.execute("SELECT call ->> 'text' FROM replies"))

    return await stage.database.read(query)


async def meant_count(stage: Stage) -> int:
    def query(connection: apsw.Connection) -> int:
        return int(connection.execute("SELECT count(*) FROM replies").fetchone()[0])

    return await stage.database.read(query)


async def hints_are_right(stage: Stage) -> None:
    """Each chat's was looked at once since it was planned, as it is long before its moment."""

    async def nothing_waits() -> bool:
        stage.nudge()
        return "telegram" not in (await stage.queue.depth()).waiting_ms_by_channel

    await eventually(nothing_waits, seconds=PATIENCE_SECONDS)


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU8")
async def test_ten_thousand_of_the_same_second_are_said_once_each_and_who_writes_meanwhile_does_not_wait_for_them(
    stage: Stage, capsys: pytest.CaptureFixture[str]
):
    """As far as the outbox, which is the same for all; from there on it is the platform's pace, see below."""
    gateway = await stage.start_gateway(sends=False)
    worker = await stage.start_worker(echoes)
    texts = await plan_many(stage, MANY, 3600.0, by=gateway)
    await hints_are_right(stage)
    await stage.pass_time(3600.0)
    clock, waited, passed_by, at_once = SystemClock(), list[float](), list[int](), 0
    began = clock.monotonic()
    async with time_goes_on(stage, pace=0.1):
        while (said_before := await meant_count(stage)) < MANY:
            wrote_at = clock.monotonic()
            [task_id] = await stage.write("hello", chat=LIVE_CHAT + len(waited))
            await eventually(partial(stage.ledger.latest_run, task_id), seconds=PATIENCE_SECONDS)
            waited.append(clock.monotonic() - wrote_at)
            passed_by.append(await meant_count(stage) - said_before - 1)
            at_once = max(at_once, len(worker.tasks))
        seconds = clock.monotonic() - began
        await eventually(lambda: meant_all(stage, MANY + len(waited)), seconds=PATIENCE_SECONDS)
    with capsys.disabled():
        print(
            f"\n  {MANY} reminders in {seconds:.1f} s, {MANY / seconds:.0f} a second; {len(waited)} who wrote meanwhile"
            f" waited for {max(waited):.2f} s and {max(passed_by)} reminders at most; {at_once} tasks at once"
        )
    assert await meant(stage) == Counter(texts) + Counter({"echo hello": len(waited)})
    assert max(passed_by) < MANY / 4, "without a place before them it is all that were left, whenever it looked"
    assert at_once < 3 * stage.worker_limits.concurrency


async def meant_all(stage: Stage, count: int) -> bool:
    return await meant_count(stage) >= count


class Live:
    """People who write while all that is said: how long each waits, and how many reminders are said before it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds: list[float] = []
        self.passed_by: list[int] = []

    async def write(self) -> None:
        stage, clock, number = self._stage, SystemClock(), len(self.seconds)
        chat, said_before, began = LIVE_CHAT + number, len(stage.telegram.sent), clock.monotonic()
        await stage.write(f"live {number}", chat=chat)
        await stage.telegram.wait_until(
            lambda telegram: any(message.chat_id == chat for message in telegram.sent[said_before:]),
            timeout_seconds=PATIENCE_SECONDS,
        )
        self.seconds.append(clock.monotonic() - began)
        self.passed_by.append(len(stage.telegram.sent) - said_before - 1)


def reminders_said(stage: Stage) -> list[str]:
    return [message.text for message in stage.telegram.sent if message.text.startswith("reminder")]


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TMP-5", "TGM-3")
@pytest.mark.failure("FU8")
async def test_at_the_pace_that_telegram_takes_them_answers_go_before_reminders(
    stage: Stage, capsys: pytest.CaptureFixture[str]
):
    stage.rates = TelegramRates()
    gateway, _ = await stage.start(echoes)
    texts = await plan_many(stage, AT_TELEGRAMS_PACE, 3600.0, by=gateway)
    await stage.pass_time(3600.0)
    live = Live(stage)
    async with time_goes_on(stage):
        while len(stage.telegram.sent) < AT_TELEGRAMS_PACE:
            await live.write()
        await eventually(lambda: len(reminders_said(stage)) >= AT_TELEGRAMS_PACE, seconds=PATIENCE_SECONDS)
    with capsys.disabled():
        waited, passed_by = max(live.seconds), max(live.passed_by)
        print(f"\n  {len(live.seconds)} who wrote waited for {waited:.2f} s and {passed_by} reminders at most")
    assert Counter(reminders_said(stage)) == Counter(texts)
    assert max(live.passed_by) < AT_TELEGRAMS_PACE / 3


@pytest.mark.slow
@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
async def test_with_temporal_what_its_server_has_no_time_to_ring_is_said_once_by_the_queue_and_rings_in_vain_later(
    tmp_path: Path, telegram: TelegramStandIn, running_temporal: TemporalServer, capsys: pytest.CaptureFixture[str]
):
    """Temporal's server for development rings six to eight timers a second on this kind of machine: each is four
    transactions of its SQLite, one after the other. What it has not rung after three seconds the queue fires."""
    with structlog.testing.capture_logs() as log:
        stage = Stage(tmp_path / "data", telegram, ManualClock(SystemClock().now()), log=log)
        stage.timers = FakeTimers(stage.clock)  # nobody arms these: they say that the queue leaves the time to timers
        await stage.open()
        async with time_goes_on(stage):
            await _said_with_temporal(stage, running_temporal.address, capsys)
        await stage.close()


async def _said_with_temporal(stage: Stage, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    gateway, queue = await stage.start_gateway(), new_key()
    ring = stage.ringing_in(gateway)
    temporal = Temporal(Place(address), clock=SystemClock())
    worker = TemporalWorker(
        temporal,
        [duties_of(ring)],
        SystemClock(),
        task_queue=queue,
        identity="test",
        limits=TemporalWorkerLimits(stop_seconds=1.0),
    )
    await worker.start()
    await gateway.start(Arming(TemporalTimers(temporal, queue), gateway.queue, gateway.bus, stage.clock))
    await stage.start_worker(echoes)
    texts = await plan_many(stage, ON_TEMPORAL, 10.0, by=gateway)
    planned = [one.head.task_id for one in await stage.queue.list_open(Selection(), limit=ON_TEMPORAL)]
    await eventually(lambda: len(reminders_said(stage)) >= ON_TEMPORAL, seconds=PATIENCE_SECONDS)
    fired = sum(one["event"] == "follow_up.rung" for one in stage.log)
    await worker.stop()
    gateway.steps.clear()
    await asyncio.gather(*map(ring, planned))
    with capsys.disabled():
        print(f"\n  of {ON_TEMPORAL} Temporal's timers have fired {fired}, and the queue the others")
    assert Counter(reminders_said(stage)) == Counter(texts)
    assert gateway.steps.count("queue.get") == ON_TEMPORAL
    assert not {"ledger.save_result", "queue.enqueue", "queue.list_open"} & set(gateway.steps)

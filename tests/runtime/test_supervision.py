"""What the supervisor does beyond its own process: it tells, and it replaces."""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from rise.bus.port import Topic
from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.channels.port import Incoming
from rise.conversations.running import ConversationRuns
from rise.envelope import DeliveryKey, LaneKey, Reason, TaskId
from rise.errors import Busy
from rise.queue.port import Selection
from rise.runtime.assembly.house import House, build
from rise.runtime.assembly.services import build_alert_posts
from rise.runtime.assembly.supervision import build_supervisor
from rise.runtime.in_process import InProcessWorker
from rise.runtime.processes import Parent, WorkerProcess
from rise.service import Signal
from rise.settings import load_settings
from rise.telemetry import worker_restarts_total
from rise.testing.clock import ManualClock
from rise.testing.waiting import eventually
from rise.workflows.definition import WorkflowDefinition

SECRET = "a-secret-of-the-tests"


class Receiver:
    """Where alerts go."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        self._heard = Signal()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        signed = request.headers["X-Rise-Timestamp"].encode() + b"." + body
        assert (
            request.headers["X-Rise-Signature"] == f"sha256={hmac.new(SECRET.encode(), signed, 'sha256').hexdigest()}"
        )
        self.alerts.append(await request.json())
        self._heard.set()
        return web.Response()

    async def hears(self, alert: str, state: str) -> dict[str, Any]:
        while True:
            for message in self.alerts:
                if (message["alert"], message["state"]) == (alert, state):
                    return message
            assert await self._heard.wait(10)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield receiver, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def opened(directory: Path, **settings: Any) -> House:
    house = build(load_settings(_env_file=None, data_dir=directory, **settings))
    await house.stores.open()
    await house.bus.start()
    return house


async def closed(house: House) -> None:
    await house.bus.stop()
    await house.stores.close()


def incoming(number: int) -> Incoming:
    return Incoming(
        channel="http",
        account="default",
        source="test",
        delivery_key=DeliveryKey(f"http:test:{number}"),
        lane=LaneKey(f"http:{number}"),
        raw=b"{}",
        raw_version="http.v1",
        kind="apply",
        user_text="Hello",
    )


@pytest.mark.req("SUP-2", "SUP-3", "CAP-6")
async def test_too_much_to_do_is_refused_and_told_to_whoever_is_configured(
    tmp_path: Path, receiver: tuple[Receiver, str]
) -> None:
    heard, url = receiver
    settings = {"backlog_max": 2, "alert_webhook_url": url, "alert_webhook_secret": SECRET}
    house = await opened(tmp_path / "data", **settings)
    posts = build_alert_posts(house)
    supervisor = build_supervisor(house, tell=posts.tell)
    await posts.start()
    await house.capabilities.probe("disk")
    for number in range(3):
        await house.intake.accept(incoming(number))
    await supervisor.measure()
    message = await heard.hears("overload", "raised")
    assert message["summary"] == "3 messages are open, and RISE_BACKLOG_MAX is 2"
    with pytest.raises(Busy):
        await house.intake.accept(incoming(4))
    assert house.capabilities.overall() == "unavailable"
    work = WorkflowDefinition(name="bot", function=_do_nothing, channels=("http",))
    worker = InProcessWorker(house, {work.workflow_id: work})
    await worker.start()
    async with asyncio.timeout(20):
        while house.capabilities.overall() == "unavailable":
            await supervisor.measure()
    await house.intake.accept(incoming(4))
    await heard.hears("overload", "resolved")
    await worker.stop()
    await posts.stop()
    await closed(house)


@pytest.mark.req("SUP-2", "WRK-1")
@pytest.mark.failure("I15")
async def test_too_much_to_do_is_not_too_much_for_what_the_worker_itself_plans(tmp_path: Path) -> None:
    house = await opened(tmp_path / "data", backlog_max=2)
    supervisor = build_supervisor(house)
    await house.capabilities.probe("disk")
    writing = [msgspec.structs.replace(incoming(number), chat_id="1") for number in range(3)]
    accepted = {(await house.intake.accept(one)).task_id for one in writing}
    await supervisor.measure()
    with pytest.raises(Busy):
        await house.intake.accept(incoming(4))
    settled: asyncio.Queue[str] = asyncio.Queue()
    house.bus.subscribe(Topic.TASK_SETTLED, lambda event: settled.put_nowait(event["task_id"]))
    work = WorkflowDefinition(name="bot", function=_remind, channels=("http",))
    worker = InProcessWorker(house, {work.workflow_id: work})
    await worker.start()
    async with asyncio.timeout(20):
        assert {await settled.get() for _ in accepted} == accepted, "or what is too much would never become less"
    left = await house.queue.list_open(Selection(), limit=10)
    assert [(task.head.kind, task.head.user_text) for task in left] == [("follow_up", "later")] * 3
    await worker.stop()
    await closed(house)


@pytest.mark.req("SUP-2", "SEC-1")
async def test_a_stranger_cannot_fill_the_disk_with_what_nobody_will_run(tmp_path: Path) -> None:
    house = await opened(tmp_path / "data", backlog_max=2)
    supervisor = build_supervisor(house)
    await house.capabilities.probe("disk")
    session = "w_" + "s" * 22

    def written(number: int) -> Incoming:
        body = f'{{"clientMessageId": "m{number}", "text": "hello"}}'.encode()
        return msgspec.structs.replace(house.channels.webchat.read_message(body, session), suspend=Reason.KILL_SWITCH)

    for number in range(3):
        await house.intake.accept(written(number))
    await supervisor.measure()
    with pytest.raises(Busy):
        await house.intake.accept(written(4))
    await house.intake.accept(incoming(1))
    assert house.capabilities.not_accepting() is None
    await closed(house)


@pytest.mark.req("SUP-2", "TMP-5")
async def test_what_is_planned_for_later_is_not_too_much_to_do(tmp_path: Path) -> None:
    house = await opened(tmp_path / "data", backlog_max=2, backlog_warn=1)
    supervisor = build_supervisor(house)
    await house.capabilities.probe("disk")
    due_at_ms = house.queue.now_ms() + 3_600_000
    for number in range(3):
        await house.intake.accept(msgspec.structs.replace(incoming(number), due_at_ms=due_at_ms))
    await supervisor.measure()
    assert house.capabilities.overall() == "ok"
    await house.intake.accept(incoming(4))
    state = house.capabilities.get("admission")
    assert state is not None
    assert state.detail == "0 messages are open"
    await closed(house)


@pytest.mark.req("WRK-1", "CAP-5")
@pytest.mark.failure("I15")
async def test_a_worker_within_this_process_can_be_replaced(tmp_path: Path) -> None:
    house = await opened(tmp_path / "data")
    work = WorkflowDefinition(name="bot", function=_do_nothing, channels=("http",))
    worker = InProcessWorker(house, {work.workflow_id: work})
    await worker.start()
    for task in list(worker._worker._claims._looking._tasks):
        task.cancel()  # it has died in silence
    await worker.restart()
    accepted = await house.intake.accept(incoming(1))
    await eventually(lambda: is_gone(house, accepted.task_id))
    await worker.stop()
    await closed(house)


class _Carrier:
    """What carries conversations on, where nothing is to be carried."""

    name = "carrier"

    def __init__(self, runs: ConversationRuns, logged: list[Any]) -> None:
        self._runs, self._logged = runs, logged
        self.stopped_after: list[str] = []
        self.could_run = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped_after = [line["event"] for line in self._logged]
        self.could_run = not self._runs.runner._is_closed


async def test_a_worker_lets_go_of_what_it_has_claimed_while_conversations_can_still_answer_it(tmp_path: Path) -> None:
    house = await opened(tmp_path / "data")
    carriers: list[_Carrier] = []

    class Carried(InProcessWorker):
        def _build_carriers(self, runs: ConversationRuns) -> list[_Carrier]:
            carriers.append(_Carrier(runs, logged))
            return carriers

    with capture_logs() as logged:
        worker = Carried(house, {})
        await worker.start()
        await worker.stop()
    [carrier] = carriers
    assert "task_worker.stop" in carrier.stopped_after
    assert carrier.could_run
    assert carrier._runs.runner._is_closed
    await closed(house)


@pytest.mark.req("WRK-7")
@pytest.mark.failure("I15")
async def test_a_worker_process_that_beats_and_does_nothing_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    started = start_idle(monkeypatch)
    capabilities = CapabilityRegistry(clock)
    process = worker_process(capabilities, clock, stop=asyncio.Event())
    before = worker_restarts_total.labels("stuck")._value.get()
    await process.start()
    assert await started.wait(10)
    first = await pid_of(process)
    await process.restart()
    await clock.until_sleeping()
    state = capabilities.get("worker")
    assert state is not None
    assert (state.status, state.detail) == (CapabilityStatus.UNAVAILABLE, "it ended (stuck); restarted in 0.5 s")
    clock.advance(1)
    assert await started.wait(10)
    second = await pid_of(process, other_than=first)
    assert worker_restarts_total.labels("stuck")._value.get() == before + 1
    os.kill(second, signal.SIGKILL)
    await process.stop()


@pytest.mark.req("WRK-7", "TGM-4")
async def test_a_worker_process_that_ends_by_the_signal_which_ends_all_has_not_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stop = ManualClock(), asyncio.Event()
    started = start_idle(monkeypatch)
    capabilities = CapabilityRegistry(clock)
    process = worker_process(capabilities, clock, stop=stop)
    with capture_logs() as logged:
        await process.start()
        assert await started.wait(10)
        stop.set()
        os.kill(await pid_of(process), signal.SIGINT)  # Ctrl-C reaches both, and the worker still loads
        await eventually(lambda: not process._tasks)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == []
    state = capabilities.get("worker")
    assert state is not None and state.detail == "starting"
    await process.stop()


@pytest.mark.req("WRK-7")
async def test_a_parent_that_was_killed_with_beats_unread_is_gone_like_any_other() -> None:
    theirs, ours = socket.socketpair()
    gone = asyncio.Event()
    parent = Parent(ours.detach(), ManualClock())
    parent.watch(gone.set, grace_seconds=86400)
    parent.beat()
    await asyncio.to_thread(theirs.recv, 1, socket.MSG_PEEK)  # it has come, and is left unread
    theirs.close()
    async with asyncio.timeout(10):
        await gone.wait()
    await parent.stop()


async def is_gone(house: House, task_id: TaskId) -> bool:
    return await house.queue.get(task_id) is None


def start_idle(monkeypatch: pytest.MonkeyPatch) -> Signal:
    """Worker processes that do nothing at all; told of each."""
    real, started = asyncio.create_subprocess_exec, Signal()

    async def start(*words: Any, **options: Any) -> Any:
        process = await real(sys.executable, "-c", "import time; time.sleep(60)", **options)
        started.set()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    return started


def worker_process(capabilities: CapabilityRegistry, clock: ManualClock, *, stop: asyncio.Event) -> WorkerProcess:
    return WorkerProcess(capabilities=capabilities, clock=clock, stall_seconds=60, stop_seconds=0, stop=stop)


async def pid_of(process: WorkerProcess, *, other_than: int | None = None) -> int:
    await eventually(lambda: process.pid not in (None, other_than))
    assert process.pid is not None
    return process.pid


async def _do_nothing(turn: Any) -> None:
    pass


async def _remind(turn: Any) -> None:
    await turn.follow_up("later", in_seconds=60)

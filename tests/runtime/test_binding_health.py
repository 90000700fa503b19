"""How well each binding serves is found out by itself, said once, and known to all processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from rise.bindings import BindingRegistry
from rise.bus.port import Topic
from rise.channels.telegram import TelegramChannel
from rise.definitions.port import Definition, Kind
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.envelope import Status, TaskId
from rise.errors import CapabilityClosed, StoreUnavailable
from rise.ledger.port import Office
from rise.offices import OfficeClaim
from rise.runtime.binding_health import BindingHealth, Finding, HealthBook, HealthStatus
from rise.runtime.bots import delivery_url
from rise.runtime.editor import Editor
from rise.runtime.examiner import Examiner, LookTimes
from rise.runtime.path_test import PathTested
from rise.runtime.platform_looks import answering_look, webhook_look
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.telegram import TelegramStandIn
from rise.testing.telegram.rules import CallParams
from rise.testing.waiting import eventually

LOOK_SECONDS = 60.0
WELL = Finding(HealthStatus.OK, "getWebhookInfo", "it delivers")
MOVED = Finding(HealthStatus.DEGRADED, "getWebhookInfo", "it delivers elsewhere")


class Platform:
    """What is said of a bot."""

    def __init__(self) -> None:
        self.says: Finding | Exception = WELL
        self.asked = 0

    async def look(self, account: str) -> Finding:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Way:
    def __init__(self) -> None:
        self.ends: PathTested | Exception = PathTested(TaskId("t_1"), Status.COMPLETED, 0.1)

    async def send(self, channel: str, account: str, **_: Any) -> PathTested:
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends


class Stage:
    """An installation of several processes, and what they hear."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.definitions = MemoryDefinitionsState()
        self.ledger = MemoryLedgerState()
        self.members = MemoryBusState()
        self.platform, self.path = Platform(), Way()
        self.heard: list[Any] = []
        self.started: list[Any] = []

    async def process(self, *, times: LookTimes | None = None) -> tuple[Examiner, HealthBook, MemoryBus]:
        bus, book = MemoryBus(self.members), HealthBook()
        registry = BindingRegistry(MemoryDefinitions(self.definitions), bus, self.clock)
        ledger = MemoryLedger(self.ledger, now_ms=lambda: int(self.clock.monotonic() * 1000))
        examiner = Examiner(
            registry=registry,
            book=book,
            looks={"telegram": self.platform.look},
            path=self.path,  # type: ignore[arg-type]
            bus=bus,
            clock=self.clock,
            times=times or LookTimes(LOOK_SECONDS, 0),
            office=lambda on_taken: OfficeClaim(ledger, Office.EXAMINER, bus.member, self.clock, on_taken=on_taken),
        )
        await bus.start()
        if not self.started:
            bus.subscribe(Topic.BINDING_HEALTH, self.heard.append)
        editor = Editor(MemoryDefinitions(self.definitions), ledger, bus, self.clock)
        if not self.definitions.kept:
            await editor.publish(WorkflowRecord(workflow_id="wf_a", name="a"), by="ann")
            await editor.bind(BindingRecord(channel="telegram", account="7", workflow_id="wf_a"), by="ann")
        await registry.refresh()
        await examiner.start()
        self.started += [examiner, bus]
        return examiner, book, bus

    async def end(self) -> None:
        for part in self.started:
            await part.stop()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.end()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def of(book: HealthBook) -> tuple[str, str]:
    health = book.health_of("telegram", "7", "wf_a")
    return health.status.value, health.source


def fail(bus: MemoryBus, times: int) -> None:
    for _ in range(times):
        failed = {"channel": "telegram", "account": "7", "workflow_id": "wf_a", "error": "KeyError: 'x'"}
        bus.publish(Topic.RUN_FAILED, failed)


def succeed(bus: MemoryBus) -> None:
    event = {"channel": "telegram", "account": "7", "workflow_id": "wf_a", "status": "completed"}
    bus.publish(Topic.TASK_SETTLED, event)


@pytest.mark.req("BND-8")
async def test_it_is_found_out_without_anybody_asking_and_all_processes_know(stage: Stage):
    _, one, _ = await stage.process()
    _, other, _ = await stage.process()
    await eventually(lambda: of(one) == of(other) == ("ok", "getWebhookInfo"))
    assert stage.platform.asked == 1, "one of them asks"
    assert other.health_of("telegram", "7", "wf_a").last_checked_at == stage.clock.now()
    assert other.health_of("telegram", "7", "wf_b") == BindingHealth("telegram", "7", "wf_b")


@pytest.mark.req("BND-8", "BND-4")
@pytest.mark.failure("D12")
async def test_a_binding_that_a_newer_version_wrote_is_down_and_says_why(stage: Stage):
    examiner, book, _ = await stage.process()
    await eventually(lambda: of(book) == ("ok", "getWebhookInfo"))
    definitions = MemoryDefinitions(stage.definitions)
    body = b'[{"workflow_id":"wf_a","kill_switch":{"of":"tomorrow"}}]'
    name = "telegram:7"
    await definitions.put(Definition(kind=Kind.BINDINGS, name=name, version=2, body=body, at_ms=0, by="ann"))
    await examiner._registry.refresh()
    await eventually(lambda: of(book) == ("down", "binding"))
    assert "a newer version of Rise" in book.health_of("telegram", "7", "wf_a").detail
    assert stage.heard[-1]["source"] == "binding"


@pytest.mark.req("BND-8")
async def test_a_change_is_said_once_and_looking_again_changes_nothing(stage: Stage):
    examiner, book, _ = await stage.process()
    await eventually(lambda: stage.heard)
    with capture_logs() as logged:
        for says in (MOVED, MOVED, Finding(MOVED.status, MOVED.source, "in other words"), WELL, WELL):
            stage.platform.says = says
            stage.clock.advance(LOOK_SECONDS)
            await examiner.check()
            await examiner.check()
            assert of(book)[0] == says.status
        await settled()
    assert [event["status"] for event in stage.heard] == ["ok", "degraded", "ok"]
    assert set(stage.heard[1]) == {"channel", "account", "workflowId", "status", "source", "detail", "lastCheckedAt"}
    lines = [line for line in logged if line["event"] == "channel_binding.health"]
    assert [(line["log_level"], line["status"], line["before"]) for line in lines] == [
        ("warning", "degraded", "ok"),
        ("info", "ok", "degraded"),
    ]
    assert lines[0]["consequence"] and lines[0]["remedy"]
    assert stage.platform.asked <= 6, "in its own time, however often it is looked"


@pytest.mark.req("BND-8")
async def test_failures_in_a_row_show_and_one_success_ends_them(stage: Stage):
    examiner, book, bus = await stage.process()
    for failures, status in ((2, "ok"), (1, "degraded"), (6, "degraded"), (1, "down"), (5, "down")):
        fail(bus, failures)
        await settled()
        await examiner.check()
        assert of(book)[0] == status
    assert "KeyError" in book.health_of("telegram", "7", "wf_a").detail
    succeed(bus)
    await eventually(lambda: of(book)[0] == "ok")
    await eventually(lambda: [event["status"] for event in stage.heard] == ["ok", "degraded", "down", "ok"])


@pytest.mark.req("BND-8")
async def test_a_test_message_that_does_not_get_through_is_down(stage: Stage):
    examiner, book, _ = await stage.process(times=LookTimes(LOOK_SECONDS, 300.0))
    for ends in (
        PathTested(TaskId("t_1"), Status.PENDING, None),
        StoreUnavailable("the disk is full"),
        CapabilityClosed("disk", "unavailable", "gone", retry_after_seconds=1),
    ):
        stage.path.ends = ends
        await examiner.test()
        await examiner.check()
        assert of(book) == ("down", "test")
    stage.path.ends = PathTested(TaskId("t_2"), Status.COMPLETED, 0.1)
    await eventually(lambda: stage.clock.advance(300.0) or of(book) == ("ok", "getWebhookInfo"))


@pytest.mark.req("BND-8")
async def test_a_platform_that_cannot_be_asked_is_degraded(stage: Stage):
    examiner, book, _ = await stage.process()
    stage.platform.says = StoreUnavailable("no way there")
    stage.clock.advance(LOOK_SECONDS)
    await examiner.check()
    health = book.health_of("telegram", "7", "wf_a")
    assert (health.status, health.detail) == ("degraded", "no way there")


@pytest.mark.req("BND-8")
async def test_whoever_takes_over_says_nothing_new(stage: Stage):
    first, book, _ = await stage.process(times=LookTimes(5.0, 0))
    await eventually(lambda: of(book) == ("ok", "getWebhookInfo"))
    _, other, _ = await stage.process(times=LookTimes(5.0, 0))
    stage.platform.says = MOVED
    stage.clock.advance(5.0)  # less than the lease
    await first.check()
    await eventually(lambda: of(other) == ("degraded", "getWebhookInfo"))
    asked = stage.platform.asked
    await first.stop()
    await eventually(lambda: stage.clock.advance(1.0) or stage.platform.asked > asked)
    await settled()
    assert [event["status"] for event in stage.heard] == ["ok", "degraded"]


@pytest.mark.req("BND-8")
async def test_a_binding_whose_workflow_is_gone_is_down(stage: Stage):
    _, book, bus = await stage.process()
    await eventually(lambda: of(book)[0] == "ok")
    ledger = MemoryLedger(stage.ledger, now_ms=lambda: 0)
    editor = Editor(MemoryDefinitions(stage.definitions), ledger, bus, stage.clock)
    await editor.publish(WorkflowRecord(workflow_id="wf_a", name="a", enabled=False), by="ann")
    examiner, again, _ = await stage.process()
    stage.started.remove(examiner)
    await examiner.check()
    assert of(again) == ("down", "workflow")
    await examiner.stop()


# --- what Telegram says ---


@pytest.fixture
async def telegram() -> AsyncIterator[tuple[TelegramStandIn, TelegramChannel, str]]:
    async with TelegramStandIn() as standin:
        channel = TelegramChannel([standin.token], clock=ManualClock(), api_base=standin.url, timeout_seconds=5)
        yield standin, channel, str(standin.bot_id)
        await channel.close()


@pytest.mark.req("BND-8")
@pytest.mark.failure("M8")
async def test_where_telegram_delivers_and_why_it_cannot_is_told(
    telegram: tuple[TelegramStandIn, TelegramChannel, str],
):
    standin, channel, account = telegram
    look = webhook_look(channel, lambda account: delivery_url("http://127.0.0.1:1/", account))
    nowhere = await look(account)
    assert (nowhere.status, "nobody" in nowhere.detail) == ("degraded", True)
    await channel.set_webhook(account, f"http://127.0.0.1:1/telegram/webhook/{account}", "secret-of-the-tests")
    well = await look(account)
    assert (well.status, well.source) == ("ok", "getWebhookInfo")
    standin.message("Hello")
    await standin.wait_until(lambda _: bool((webhook := standin.bot().webhook) and webhook.last_error))
    stuck = await look(account)
    assert stuck.status == "degraded"
    assert stuck.detail.startswith("1 updates wait at Telegram, whose last try failed at 20")
    standin.pass_time(2)
    standin.bot().call("setWebhook", CallParams({"url": "https://other.example/hook?secret=1"}), standin.now())
    moved = await look(account)
    assert moved.status == "degraded"
    assert "https://other.example/hook, not to" in moved.detail
    standin.revoke_token()
    assert (await look(account)).status == "degraded"


@pytest.mark.req("BND-8")
async def test_a_bot_that_polls_is_asked_for_itself(telegram: tuple[TelegramStandIn, TelegramChannel, str]):
    standin, channel, account = telegram
    look = answering_look(channel)
    assert (await look(account)).status == "ok"
    standin.script.is_unreachable = True
    assert ((await look(account)).status, (await look(account)).source) == ("degraded", "getMe")


# --- the whole, as a program ---


@pytest.mark.slow
@pytest.mark.req("BND-8")
async def test_a_webhook_that_was_moved_shows_by_itself(tmp_path: Path):
    async with TelegramStandIn() as telegram:
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "public_url": "http://127.0.0.1:1",
            "binding_look_seconds": 0.3,
            "binding_test_seconds": 0.5,
        }
        async with Installation(tmp_path / "data", app="rise.testing.faults.bot", **settings) as rise:
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            async with aiohttp.ClientSession(headers=headers) as session:

                async def shows(status: str) -> Any:
                    async with session.get(f"{rise.url}/api/channels/telegram/health") as response:
                        data = (await response.json())["data"]
                    return data["bindings"] if data["status"] == status else None

                [well] = await eventually(lambda: shows("ok"))
                assert (well["account"], well["source"]) == (str(telegram.bot_id), "getWebhookInfo")
                telegram.pass_time(2)
                elsewhere = CallParams({"url": "https://other.example/hook"})
                telegram.bot().call("setWebhook", elsewhere, telegram.now())
                [moved] = await eventually(lambda: shows("degraded"))
                assert (moved["source"], "other.example" in moved["detail"]) == ("getWebhookInfo", True)
                async with session.post(f"{rise.url}/api/channels/telegram/test") as response:
                    tested = (await response.json())["data"]
                assert (tested["status"], tested["wentThrough"]) == ("completed", True)
                assert 0 < tested["seconds"] < 10
        assert [call.method for call in telegram.calls if call.method.startswith("send")] == [], "nobody is bothered"
        assert "channel_binding.health" in rise.log()

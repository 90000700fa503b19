"""How well a channel serves, for who looks; a message sent through it, for who operates."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import BOT, OPERATOR, VIEWER, Work, as_, client_of, echo, opened

import rise
from rise.api import channels
from rise.api.app import App, build_app
from rise.bus.port import Topic
from rise.definitions.records import BindingRecord, BindingRoute
from rise.envelope import TaskId
from rise.errors import StoreUnavailable
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_path_test
from rise.runtime.assembly.services import build_examiner
from rise.runtime.binding_health import BindingHealth, HealthStatus
from rise.testing.waiting import eventually

HEALTH = "/api/channels/telegram/health"
TEST = "/api/channels/telegram/test"


@pytest.mark.req("BND-8")
async def test_what_was_found_is_shown_to_a_viewer_and_nobody_is_asked(app: App, house: House):
    for workflow_id, is_default in (("wf_bot", True), ("wf_b", False), ("wf_off", False)):
        binding = BindingRecord(
            channel="telegram",
            account=BOT,
            workflow_id=workflow_id,
            is_default=is_default,
            enabled=workflow_id != "wf_off",
            routes=() if is_default else (BindingRoute("command", f"/{workflow_id}"),),
        )
        await house.editor.bind(binding, by="ann")
    await house.bindings.refresh()
    found = BindingHealth(
        "telegram", BOT, "wf_bot", HealthStatus.DEGRADED, "getWebhookInfo", "moved", house.clock.now()
    )
    house.health.put(found)
    async with client_of(app, **as_(VIEWER)) as viewer:
        body = (await viewer.get(HEALTH)).json()["data"]
        assert (body["channel"], body["status"]) == ("telegram", "degraded")
        assert {one["workflowId"]: one["status"] for one in body["bindings"]} == {
            "wf_bot": "degraded",
            "wf_b": "unknown",
        }
        assert body["bindings"][-1] == found.shown()
        assert (await viewer.get("/api/channels/http/health")).json()["data"]["status"] == "unknown"
        assert (await viewer.get("/api/channels/pigeon/health")).status_code == 404
        assert (await viewer.post(TEST)).status_code == 403


@pytest.mark.req("BND-8")
async def test_a_message_goes_the_whole_way_and_nobody_hears_of_it(client: httpx.AsyncClient, house: House, work: Work):
    runs: list[str] = []

    async def bot(turn: rise.Turn) -> None:
        runs.append(turn.text)

    await work(bot)
    tested = (await client.post(TEST)).json()["data"]
    assert (tested["account"], tested["status"], tested["wentThrough"]) == (BOT, "completed", True)
    assert 0 < tested["seconds"] < channels.TEST_SECONDS_MAX
    whole = (await client.get(f"/api/workflows/tasks/{tested['taskId']}")).json()["data"]
    assert (whole["taskType"], whole["outcome"], whole["replies"]) == ("channel.test", "silent", [])
    assert runs == []
    run = await house.ledger.latest_run(TaskId(tested["taskId"]))
    assert run is not None and run.status.is_finished


@pytest.mark.req("BND-8")
async def test_one_that_does_not_get_through_says_so_and_is_in_no_chats_way(
    client: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "TEST_SECONDS_MAX", 0.2)
    tested = (await client.post(TEST)).json()["data"]  # there is no worker
    assert (tested["status"], tested["wentThrough"], tested["seconds"]) == ("pending", False, None)
    [waiting] = await house.queue.list_open(Selection(task_ids=(TaskId(tested["taskId"]),)), limit=1)
    assert waiting.head.lane.startswith("test:"), "in no chat's way"


@pytest.mark.req("BND-8")
async def test_without_a_default_bot_the_only_one_is_tested_and_of_several_one_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "TEST_SECONDS_MAX", 0.1)
    async with opened(tmp_path / "bare", telegram_token=None) as house:
        assert house.channels.telegram is not None
        app = build_app(house)
        async with client_of(app, **as_(OPERATOR)) as operator:
            for bot in ("8", "9"):
                house.channels.telegram.use_token(f"{bot}:token-of-the-tests")
                await house.editor.bind(BindingRecord(channel="telegram", account=bot, workflow_id="wf_bot"), by="ann")
                await house.bindings.refresh()
                if bot == "8":
                    assert (await operator.post(TEST)).json()["data"]["account"] == "8"
            answered = await operator.post(TEST)
            assert (answered.status_code, answered.json()["error"]["field"]) == (422, "account")
            assert (await operator.post(TEST, params={"account": "9"})).json()["data"]["account"] == "9"
        app.close()


async def test_a_stop_does_not_wait_for_one_that_is_under_way(client: httpx.AsyncClient, app: App, house: House):
    asked = asyncio.ensure_future(client.post(TEST))  # there is no worker

    async def is_under_way() -> bool:
        return bool(await house.queue.list_open(Selection(), limit=1))

    await eventually(is_under_way)
    app.close()
    answered = await asyncio.wait_for(asked, 5)
    assert (answered.status_code, answered.json()["data"]["status"]) == (200, "pending")


async def test_what_is_not_there_cannot_be_tested_and_what_cannot_be_kept_is_503(
    client: httpx.AsyncClient, house: House
):
    for path in ("/api/channels/pigeon/test", f"{TEST}?account=8"):
        refused = await client.post(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "channel_unknown")

    async def refuse(apply: Any) -> None:
        raise StoreUnavailable("the disk is full")

    house.stores.database.write = refuse  # type: ignore[method-assign]
    assert (await client.post(TEST)).status_code == 503


@pytest.mark.req("BND-8")
async def test_failures_of_the_workflow_show_whatever_they_are_and_its_dependencies_do_not(
    client: httpx.AsyncClient, house: House, work: Work
):
    """Also of one whose answer cannot be kept."""
    failed: list[Any] = []
    house.bus.subscribe(Topic.RUN_FAILED, failed.append)

    async def bot(turn: rise.Turn) -> Any:
        match turn.text:
            case "error":
                raise KeyError("x")
            case "dependency":
                raise rise.WaitsForDependency("away", retry_after_seconds=60)
            case "unkeepable":
                return object()
        return None

    await work(bot)
    await house.bindings.refresh()
    examiner = build_examiner(house)
    await examiner.start()
    for number, text in enumerate(["dependency", "error", "unkeepable", "error", "fine"]):
        message = {"userText": text, "retryMax": 0, "metadata": {"chat_id": str(number)}}
        if text == "fine":
            await eventually(lambda: len(failed) == 3)
            await eventually(lambda: _health(house) == "degraded")
        await client.post("/api/workflows/apply", json=message)
    await eventually(lambda: _health(house) == "ok")
    assert {(one["channel"], one["account"], one["workflow_id"]) for one in failed} == {("http", "default", "wf_bot")}
    await examiner.stop()


def _health(house: House) -> str:
    return house.health.health_of("http", "default", "wf_bot").status


async def test_many_at_once_each_find_their_own_end(house: House, work: Work):
    await work(echo)
    path = build_path_test(house)
    tested = await asyncio.gather(*(path.send("telegram", BOT, seconds=10) for _ in range(20)))
    assert len({one.task_id for one in tested}) == 20
    assert all(one.went_through for one in tested)

"""What starts, in which order, and how it stops: one process, one stop, with or without a bot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

import rise
from rise.definitions.records import CODE, BindingRecord, WorkflowRecord
from rise.envelope import new_key
from rise.errors import SettingsInvalid
from rise.runtime.assembly.house import build
from rise.runtime.assembly.temporal import reach_temporal
from rise.runtime.serving import _until_defined
from rise.settings import load_settings
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.servers import TemporalServer
from rise.testing.telegram import TelegramStandIn
from rise.testing.waiting import eventually

BOT = "rise.testing.faults.bot"


def events(rise: Installation) -> list[str]:
    lines = [json.loads(line) for line in rise.log().splitlines() if line.startswith("{")]
    return [line["event"] for line in sorted(lines, key=lambda line: line["timestamp"])]


async def health(rise: Installation) -> dict[str, object]:
    async with aiohttp.ClientSession() as session, session.get(f"{rise.url}/healthz") as response:
        assert response.status == 200
        return dict(await response.json())


async def worker_up(rise: Installation) -> None:
    """Its first message has been answered."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as session:
        asked = {"userText": "hello", "waitForResult": True}
        async with session.post(f"{rise.url}/api/workflows/apply", json=asked) as response:
            assert response.status == 200


@pytest.mark.req("TGM-4", "CAP-6", "EMB-1")
async def test_it_starts_and_stops_in_order_without_any_bot(tmp_path: Path) -> None:
    async with Installation(tmp_path / "data", app=BOT) as rise:
        shown = await health(rise)
        assert shown["router"] == "behavior"
        assert set(shown["capabilities"]) <= {"admission", "bindings", "disk", "pipeline", "worker"}, (
            "what is not configured is absent"
        )  # type: ignore[call-overload]
        await worker_up(rise)
        assert await rise.stop() == 0
    seen = events(rise)
    assert seen.index("serve.stopping") < seen.index("task_worker.stop") < seen.index("serve.stopped")


@pytest.mark.req("TGM-4")
async def test_the_bot_and_its_worker_share_one_stop(tmp_path: Path) -> None:
    async with TelegramStandIn() as telegram:
        settings = {"telegram_token": telegram.token, "telegram_api_base": telegram.url}
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            telegram.message("hello")
            await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=20)
            assert await rise.stop() == 0
            telegram.message("said to a bot that is away")
            assert len(telegram.sent) == 1
            await rise.start()
            await telegram.wait_until(lambda t: len(t.sent) == 2, timeout_seconds=20)
            assert await rise.stop() == 0
    assert events(rise).count("serve.stopped") == 2


@pytest.mark.req("EMB-1", "OPS-1")
@pytest.mark.failure("C8")
async def test_a_second_serve_on_the_same_directory_is_refused_with_its_remedy(tmp_path: Path) -> None:
    async with Installation(tmp_path / "data", app=BOT) as rise:
        code, said = await rise.command("serve")
        assert code == 2
        assert "another `rise serve` uses" in said
        assert "RISE_DATA_DIR" in said
        await health(rise)


@pytest.mark.req("SEC-2")
async def test_no_secret_is_in_logs_answers_or_metrics(tmp_path: Path) -> None:
    async with TelegramStandIn() as telegram:
        secret = "a-webhook-secret-for-this-test"
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "telegram_secret": secret,
            "log_level": "debug",
        }
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            telegram.message(f"my token is {telegram.token}")
            await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=20)
            telegram.revoke_token()
            telegram.message("and now it is gone")
            code, doctor = await rise.command("doctor")
            assert code in (0, 1)
            told = [doctor]
            async with aiohttp.ClientSession(headers=rise.headers) as session:
                for path in ("/healthz", "/internal/tasks/stats", "/metrics"):
                    async with session.get(rise.url + path) as response:
                        told.append(await response.text())
            await rise.stop()
    for text in [*told, rise.log()]:
        assert telegram.token not in text
        assert telegram.token.partition(":")[2] not in text
        assert secret not in text


@pytest.mark.req("WRK-7")
async def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    async with Installation(tmp_path / "data", app=BOT, stop_seconds=1) as rise:
        [worker] = await eventually(rise.worker_pids)
        await rise.kill(worker=False)
        await eventually(lambda: not Path(f"/proc/{worker}").exists())


@pytest.mark.req("WRK-1", "OPS-1")
async def test_a_worker_without_an_app_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with Installation(tmp_path / "data", app=BOT) as rise:
        other = Installation(tmp_path / "data")
        code, said = await other.command("worker")
        assert code == 2
        assert "RISE_APP" in said
        async with aiohttp.ClientSession(headers=rise.headers) as session:
            body = {"userText": "still there?", "waitForResult": True, "waitTimeoutSeconds": 20}
            async with session.post(f"{rise.url}/api/workflows/apply", json=body) as response:
                assert (await response.json())["data"]["status"] == "completed"


@rise.workflow("shop", channels=["http", "webchat"])
async def shop(turn: rise.Turn) -> None: ...


@pytest.mark.req("WRK-2", "SUS-1")
async def test_an_added_worker_waits_until_all_that_its_code_asks_for_is_bound(tmp_path: Path):
    """Else it would tell people that there is no bot, while the first worker of a new directory binds one account
    after the other."""
    house = build(load_settings(_env_file=None, data_dir=tmp_path))
    await house.stores.open()
    await house.bus.start()
    definition = shop.__rise_workflow__  # type: ignore[attr-defined]
    waiting = asyncio.ensure_future(_until_defined(house, {definition.workflow_id: definition}, asyncio.Event()))
    record = WorkflowRecord(workflow_id=definition.workflow_id, name="shop", channels=definition.channels)
    await house.editor.publish(record, by=CODE)
    await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id=record.workflow_id), by=CODE)
    await asyncio.wait([waiting], timeout=1.2)  # it looks each half second
    assert not waiting.done()
    await house.editor.follow_code([record], house.channels.accounts())
    async with asyncio.timeout(10):
        await waiting
    await house.bus.stop()
    await house.stores.close()


@pytest.mark.slow
@pytest.mark.req("TMP-4", "CAP-2", "CAP-5")
async def test_it_starts_without_its_temporal_and_finds_it_when_it_is_there(
    tmp_path: Path, temporal_of_its_own: TemporalServer
) -> None:
    temporal_of_its_own.kill()
    async with Installation(tmp_path / "data", app=BOT, temporal_address=temporal_of_its_own.address) as rise:
        assert await rise.until_capability("temporal", "unavailable") == "Temporal cannot be reached"
        await worker_up(rise)
        shown = await health(rise)
        assert shown["status"] == "degraded"
        temporal_of_its_own.start()
        await rise.until_capability("temporal")
        temporal_of_its_own.kill()
        await rise.until_capability("temporal", "unavailable")
        await worker_up(rise)
        assert await rise.stop() == 0


@pytest.mark.slow
@pytest.mark.req("TGM-4", "TMP-4")
async def test_doors_bot_workers_and_temporal_share_one_stop_in_order(
    tmp_path: Path, running_temporal: TemporalServer
) -> None:
    """Gateway, polling, the native worker and Temporal's: the doors first, then what works, stores last."""
    async with TelegramStandIn() as telegram:
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "temporal_address": running_temporal.address,
            "temporal_task_queue": f"tests.{new_key()}",
        }
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            await eventually(lambda: _has_logged(rise, "temporal_worker.start"), seconds=60)
            telegram.message("hello")
            await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=20)
            assert await rise.stop() == 0
    seen = events(rise)
    order = ["serve.stopping", "temporal_worker.stop", "task_worker.stop", "serve.stopped"]
    assert sorted(order, key=seen.index) == order


async def _has_logged(rise: Installation, event: str) -> bool:
    return event in events(rise)


@pytest.mark.req("TMP-4", "EMB-1")
def test_what_is_not_configured_is_not_loaded() -> None:
    """An installation without Temporal need not have its client, nor wait for it at each command."""
    loaded = "import sys, rise.cli, rise.api.server, rise.runtime.serving; sys.exit('temporalio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded]).returncode == 0


@pytest.mark.req("TMP-4")
def test_without_its_client_temporal_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build(load_settings(_env_file=None, data_dir=tmp_path / "data", temporal_address="127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "rise.connections.temporal", None)
    with pytest.raises(SettingsInvalid, match="rise-gateway\\[temporal\\]"):
        reach_temporal(house)

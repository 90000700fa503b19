"""Follow-ups on a real Temporal, with real processes, of which one after the other is killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.clock import SystemClock
from rise.envelope import new_key
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.servers import MongoServer, RedisServer, TemporalServer
from rise.testing.telegram import TelegramStandIn
from rise.testing.waiting import eventually

BOT = "rise.testing.faults.bot"
LATE_SECONDS_MAX = 10.0
PATIENCE_SECONDS = 60.0
CHAT = 42


@dataclass
class Run:
    """An installation that has a Temporal, and what is said in its chats."""

    rise: Installation
    temporal: TemporalServer
    telegram: TelegramStandIn
    due: dict[str, float] = field(default_factory=dict)
    said: dict[str, list[float]] = field(default_factory=dict)
    _read: int = 0

    async def call(self, method: str, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, f"{self.rise.url}{path}", json=fields or None) as answer,
        ):
            return answer.status, await answer.json()

    async def plan(self, text: str, seconds: float, *, chat: int = CHAT, **fields: Any) -> str:
        asked_at = SystemClock().monotonic()
        body = {"channel": "telegram", "chatId": chat, "inSeconds": seconds, "text": text} | fields
        status, answer = await self.call("POST", "/api/follow-ups", **body)
        assert status == 200, answer
        self.due[text] = asked_at + seconds
        return str(answer["data"]["followUpId"])

    async def watch(self) -> None:
        """When people read what."""
        while True:
            await self.telegram.wait_until(self._has_unread, timeout_seconds=600)
            for message in self.telegram.sent[self._read :]:
                self.said.setdefault(message.text, []).append(SystemClock().monotonic())
            self._read = len(self.telegram.sent)

    def _has_unread(self, telegram: TelegramStandIn) -> bool:
        return len(telegram.sent) > self._read

    async def all_said(self) -> None:
        await eventually(self._is_all_said, seconds=PATIENCE_SECONDS + self._longest())

    def _longest(self) -> float:
        return max(self.due.values()) - SystemClock().monotonic()

    async def _is_all_said(self) -> bool:
        return set(self.due) <= set(self.said)

    async def nothing_is_open(self) -> None:
        """Nor planned: the queue, too, which keeps the time beside Temporal, has come to each."""

        async def holds() -> bool:
            status, answer = await self.call("GET", "/internal/tasks/stats")
            return status == 200 and not any(answer["data"]["byStatus"].values())

        await eventually(holds, seconds=PATIENCE_SECONDS)

    def deltas(self) -> dict[str, float]:
        return {text: round(self.said[text][0] - due, 2) for text, due in self.due.items()}

    def rung(self) -> int:
        """How many a timer of Temporal's has fired; the others the queue has."""
        lines = [json.loads(line) for line in self.rise.log().splitlines() if line.startswith("{")]
        return sum(line["event"] == "follow_up.rung" for line in lines)

    async def armed(self, count: int) -> None:
        """Wait until Temporal has so many timers."""

        async def has() -> bool:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"{self.rise.url}/metrics", headers=self.rise.headers) as got,
            ):
                lines = (await got.text()).splitlines()
            return f"rise_follow_ups_armed {float(count)}" in lines

        await eventually(has, seconds=PATIENCE_SECONDS)


@pytest.fixture
async def run(tmp_path: Path, temporal_of_its_own: TemporalServer) -> AsyncIterator[Run]:
    async with TelegramStandIn() as telegram:
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "temporal_address": temporal_of_its_own.address,
            "claim_seconds": 2.0,
        }
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            running = Run(rise, temporal_of_its_own, telegram)
            watching = asyncio.create_task(running.watch())
            yield running
            watching.cancel()


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TMP-4", "TGM-4")
@pytest.mark.failure("FU2", "FU3")
@pytest.mark.parametrize("killed", ["temporal", "worker", "gateway", "temporal and worker", "temporal and all of rise"])
async def test_three_reminders_are_said_once_each_in_time_whatever_is_killed_in_between(
    run: Run, killed: str, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
):
    """With `--reminders 30,60,90` as long as people would wait."""
    seconds = [float(part) for part in pytestconfig.getoption("reminders").split(",")]
    await run.rise.until_capability("temporal")
    for text, due_in in zip(("one", "two", "three"), seconds, strict=True):
        await run.plan(text, due_in)
    await run.armed(3)
    if "temporal" in killed:
        run.temporal.kill()
    if "worker" in killed:
        await run.rise.kill(gateway=False)
    if "gateway" in killed or "rise" in killed:
        await run.rise.kill(worker="rise" in killed)
    await asyncio.sleep(seconds[0] / 4)  # it is away for so long
    if "temporal" in killed:
        run.temporal.start()
    if run.rise.pid is None:
        await run.rise.start()
    await run.all_said()
    deltas = run.deltas()
    with capsys.disabled():
        print(f"\n  killed: {killed}; said after their moments: {deltas} s; rung by Temporal: {run.rung()} of 3")
    assert {text: len(times) for text, times in run.said.items()} == {"one": 1, "two": 1, "three": 1}
    assert all(0 <= late < LATE_SECONDS_MAX for late in deltas.values())
    await run.nothing_is_open()
    assert sum(map(len, run.said.values())) == 3


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TMP-4", "TMP-5")
@pytest.mark.failure("FU2")
async def test_without_temporal_for_the_whole_run_follow_ups_are_taken_moved_cancelled_and_said(
    run: Run, capsys: pytest.CaptureFixture[str]
):
    run.temporal.kill()
    await run.plan("said", 3.0)
    moved, cancelled = await run.plan("moved", 3600.0), await run.plan("cancelled", 5.0)
    assert (await run.call("DELETE", f"/api/follow-ups/{cancelled}"))[0] == 200
    del run.due["cancelled"]
    assert (await run.call("PATCH", f"/api/follow-ups/{moved}", inSeconds=4.0))[0] == 200
    run.due["moved"] = SystemClock().monotonic() + 4.0
    run.telegram.message("hello")
    await run.all_said()
    with capsys.disabled():
        print(f"\n  without Temporal: said after their moments: {run.deltas()} s")
    assert all(late < LATE_SECONDS_MAX for late in run.deltas().values())
    await run.plan("after", 5.0)
    run.temporal.start()
    await run.rise.until_capability("temporal")
    await run.all_said()
    await run.nothing_is_open()
    assert {text: len(times) for text, times in run.said.items() if text in run.due} == dict.fromkeys(run.due, 1)
    assert "cancelled" not in run.said


@pytest.mark.slow
@pytest.mark.req("TMP-3", "TMP-4")
@pytest.mark.failure("FU2")
async def test_what_temporal_has_lost_with_its_disk_it_is_given_again_and_said_in_time(run: Run):
    await run.rise.until_capability("temporal")
    await run.plan("soon", 4.0)
    await run.plan("later", 30.0)
    far = await run.plan("much later", 3600.0)
    await run.armed(3)
    run.temporal.kill()
    run.temporal.forget()
    await eventually(lambda: _said(run, "soon"), seconds=PATIENCE_SECONDS)
    run.temporal.start()
    await run.armed(2)
    await eventually(lambda: _said(run, "later"), seconds=PATIENCE_SECONDS)
    del run.due["much later"]
    assert all(0 <= late < LATE_SECONDS_MAX for late in run.deltas().values())
    assert (await run.call("GET", f"/api/follow-ups/{far}"))[1]["data"]["status"] == "planned"


@pytest.mark.slow
@pytest.mark.req("TMP-3", "CPY-4")
@pytest.mark.parametrize("ledger", ["sqlite", "mongodb"])
async def test_on_servers_what_rings_is_said_once_and_leaves_nothing_behind_in_any_copy(
    tmp_path: Path,
    running_temporal: TemporalServer,
    redis_of_its_own: RedisServer,
    running_mongodb: MongoServer,
    ledger: str,
):
    async with TelegramStandIn() as telegram:
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "temporal_address": running_temporal.address,
            "temporal_task_queue": f"tests.{new_key()}",
            "redis_url": redis_of_its_own.url,
            "mongodb_url": running_mongodb.url.replace("/rise", "/rung") if ledger == "mongodb" else None,
            "secret_key": "of-a-test-installation-" * 2,
        }
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            run = Run(rise, running_temporal, telegram)
            watching = asyncio.create_task(run.watch())
            await rise.until_capability("temporal")
            for number in range(10):
                await run.plan(f"{number}", 3.0 + number % 2, chat=CHAT + number % 3)
            cancelled = await run.plan("cancelled", 5.0)
            assert (await run.call("DELETE", f"/api/follow-ups/{cancelled}"))[0] == 200
            del run.due["cancelled"]
            await run.all_said()
            await eventually(lambda: _nothing_is_open(run), seconds=PATIENCE_SECONDS)
            watching.cancel()
            assert {text: len(times) for text, times in run.said.items()} == dict.fromkeys(run.due, 1)
            code, said = await rise.command("audit")
            assert code == 0, said


async def _nothing_is_open(run: Run) -> bool:
    _, stats = await run.call("GET", "/internal/tasks/stats")
    return not any(stats["data"]["byStatus"].values())


async def _said(run: Run, text: str) -> bool:
    return text in run.said

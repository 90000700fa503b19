"""Reminders on real processes, killed with -9 between the promise and its moment: each is said once, in time.

Prints how far from its moment each was said (`pytest -s`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.clock import SystemClock
from rise.testing.installation import Installation
from rise.testing.servers import RedisServer, has_redis
from rise.testing.telegram import TelegramStandIn

DUE_SECONDS = (2, 4, 6)
LATE_SECONDS_MAX = 10.0
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture(params=["embedded", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, object]]:
    if request.param == "embedded":
        yield {}
        return
    if not has_redis():
        pytest.skip("redis-server is not installed")
    directory = tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory) as redis:
        yield {"redis_url": redis.url}


async def remind(http: aiohttp.ClientSession, rise: Installation, **asked: Any) -> str:
    body = {"channel": "telegram", "chatId": 42} | asked
    async with http.post(f"{rise.url}/api/follow-ups", json=body) as answer:
        told = await answer.json()
        assert answer.status == 200, told
        return str(told["data"]["followUpId"])


@pytest.mark.req("TMP-3", "TMP-5")
@pytest.mark.failure("FU3", "FU4")
@pytest.mark.parametrize("victim", ["gateway", "worker", "both"])
async def test_reminders_outlive_whoever_is_killed_and_are_said_once_each_in_time(
    tmp_path: Path, stores: dict[str, object], victim: str
):
    clock = SystemClock()
    async with (
        TelegramStandIn() as telegram,
        aiohttp.ClientSession() as http,
        Installation(
            tmp_path / "data",
            app="rise.testing.faults.bot",
            telegram_token=telegram.token,
            telegram_api_base=telegram.url,
            telegram_mode="polling",
            claim_seconds=2.0,
            **stores,
        ) as rise,
    ):
        http.headers.update(rise.headers)
        due = {}
        for seconds in DUE_SECONDS:
            await remind(http, rise, inSeconds=seconds, text=f"after {seconds} s")
            due[f"after {seconds} s"] = clock.now().timestamp() + seconds
        moved = await remind(http, rise, inSeconds=1, text="moved away")
        cancelled = await remind(http, rise, inSeconds=5, text="cancelled")
        async with http.patch(f"{rise.url}/api/follow-ups/{moved}", json={"inSeconds": 3600}) as answer:
            assert answer.status == 200
        async with http.delete(f"{rise.url}/api/follow-ups/{cancelled}") as answer:
            assert answer.status == 200

        await clock.sleep(1.0)
        await rise.kill(gateway=victim != "worker", worker=victim != "gateway")
        if victim != "worker":
            await rise.start()
        await telegram.wait_until(lambda known: len(known.sent) >= len(due), timeout_seconds=PATIENCE_SECONDS)
        await clock.sleep(1.0)  # for what should not come

        said = {message.text: message.at for message in telegram.sent}
        assert [message.text for message in telegram.sent] == [*due], "once each, in their order"
        late = {text: said[text] - due[text] for text in due}
        print(f"{victim} killed: " + ", ".join(f"{text}: {seconds:+.2f} s" for text, seconds in late.items()))
        assert all(-0.5 < seconds < LATE_SECONDS_MAX for seconds in late.values()), late
        code, told = await rise.command("audit")
        assert code == 0, told

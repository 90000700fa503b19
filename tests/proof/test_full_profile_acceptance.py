"""What the full profile was asked for, in the words it was asked in, on real processes and real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.testing.faults.schedule import Mishap
from rise.testing.faults.stores import AppendFsync, Stores
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.servers import has_rabbitmq, has_redis
from rise.testing.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not has_redis() or not has_rabbitmq(), reason="redis-server or rabbitmq-server is not installed"
    ),
]

PATIENCE_SECONDS = 60.0
ECHO = "rise.testing.faults.bot"
WAITS_FOR_A_FILE = """
import asyncio
from pathlib import Path

import rise

@rise.workflow("patient", channels=["http"])
async def patient(turn):
    while not Path(__file__).with_name("go").exists():
        await asyncio.sleep(0.05)
    await turn.reply(turn.text)
"""


class Caller:
    """A program that sends messages and looks at what the installation says of itself."""

    def __init__(self, http: aiohttp.ClientSession, rise: Installation) -> None:
        self._http = http
        self._rise = rise

    async def ask(self, text: str, *, waits: bool = True) -> int:
        asked = {"userText": text, "waitForResult": waits, "waitTimeoutSeconds": PATIENCE_SECONDS}
        async with self._http.post(f"{self._rise.url}/api/workflows/apply", json=asked) as answer:
            return answer.status

    async def startup(self) -> tuple[int, str | None, dict[str, str]]:
        """Status, when to come again, and each capability's."""
        async with self._http.get(f"{self._rise.url}/healthz/startup") as answer:
            capabilities = (await answer.json())["capabilities"]
            shown = {name: state["status"] for name, state in capabilities.items()}
            return answer.status, answer.headers.get("Retry-After"), shown

    async def until_startup(self, status: int, **capabilities: str) -> str | None:
        """Wait until `/healthz/startup` says so. Returns when to come again."""

        async def says_so() -> bool:
            said, _, shown = await self.startup()
            return said == status and capabilities.items() <= shown.items()

        await eventually(says_so, seconds=PATIENCE_SECONDS)
        return (await self.startup())[1]


def events(rise: Installation, name: str) -> list[dict[str, Any]]:
    lines = [line for line in rise.log().splitlines() if f'"{name}"' in line and line.endswith("}")]
    return [line for line in map(json.loads, lines) if line["event"] == name]


def changes(rise: Installation, capability: str) -> list[str]:
    return [change["status"] for change in events(rise, "capability.state_changed") if change["name"] == capability]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as session:
        yield session


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with Stores(tmp_path, AppendFsync.EVERYSEC) as stores:
        yield stores


@asynccontextmanager
async def serving(tmp_path: Path, stores: Stores, **settings: object) -> AsyncIterator[Installation]:
    settings = {"app": ECHO, "claim_seconds": 2.0, **stores.settings, **settings}
    async with Installation(tmp_path / "data", **settings) as rise:
        yield rise


@pytest.mark.req("CAP-2", "CAP-5", "SUP-1", "CPY-4")
@pytest.mark.failure("I14", "C11")
async def test_redis_down_at_the_start_and_up_later_is_noticed_and_everything_runs_without_a_restart(
    tmp_path: Path, stores: Stores, http: aiohttp.ClientSession
):
    async with stores.befall(Mishap.REDIS_KILLED):
        async with serving(tmp_path, stores) as rise:
            caller = Caller(http, rise)
            started_as = rise.pid
            await caller.until_startup(200, redis="unavailable", rabbitmq="available")
            assert await caller.ask("while it is down", waits=False) in (200, 202)
            await asyncio.to_thread(stores.redis.start)
            await caller.until_startup(200, redis="available")
            assert await caller.ask("while it is up") == 200
            assert changes(rise, "redis")[-1] == "available"
            assert rise.pid == started_as
        stores.redis.kill()


@pytest.mark.req("SUP-1", "CPY-7", "WRK-6")
@pytest.mark.failure("I14", "D14")
async def test_a_restart_with_a_backlog_says_how_much_is_replayed(
    tmp_path: Path, stores: Stores, http: aiohttp.ClientSession
):
    app = tmp_path / "bot.py"
    app.write_text(WAITS_FOR_A_FILE)
    async with serving(tmp_path, stores, app=app) as rise:
        caller = Caller(http, rise)
        for number in range(7):
            assert await caller.ask(f"number {number}", waits=False) in (200, 202)
        await rise.kill()
        assert not events(rise, "replaying backlog"), "nothing had waited when it first started"
        (tmp_path / "go").touch()
        await rise.start()
        await caller.until_startup(200, worker="available", redis="available")

        async def is_said() -> bool:
            return bool(events(rise, "replaying backlog"))

        await eventually(is_said, seconds=PATIENCE_SECONDS)
        assert [said["count"] for said in events(rise, "replaying backlog")] == [7]
        assert await caller.ask("and the next") == 200


@pytest.mark.req("CPY-3", "OPS-1")
@pytest.mark.failure("C21", "C22")
async def test_a_frozen_rabbitmq_is_tried_three_times_and_said_and_work_goes_on_with_redis(
    tmp_path: Path, stores: Stores, http: aiohttp.ClientSession
):
    async with serving(tmp_path, stores, publish_seconds=1.0) as rise:
        caller = Caller(http, rise)
        await caller.until_startup(200, worker="available", rabbitmq="available")
        assert await caller.ask("before") == 200
        async with stores.befall(Mishap.RABBIT_FROZEN):
            assert await caller.ask("while it is frozen") == 200

            async def has_given_up() -> bool:
                return any("stands in" in said["consequence"] for said in events(rise, "rabbit.publisher.timeout"))

            await eventually(has_given_up, seconds=PATIENCE_SECONDS)
            of_one = {said["task_id"]: [] for said in events(rise, "rabbit.publisher.timeout")}
            for said in events(rise, "rabbit.publisher.timeout"):
                of_one[said["task_id"]].append(said["consequence"])
            assert max(map(len, of_one.values())) == 3
            await caller.until_startup(200, rabbitmq="unavailable", redis="available")
            assert changes(rise, "rabbitmq")[-1] == "unavailable"
            assert await caller.ask("work with Redis is unharmed") == 200
        await caller.until_startup(200, rabbitmq="available")
        assert await caller.ask("after") == 200


@pytest.mark.req("CAP-3", "CAP-6", "CPY-2")
@pytest.mark.failure("C11", "C27")
async def test_startup_health_follows_every_change_without_a_restart(
    tmp_path: Path, stores: Stores, http: aiohttp.ClientSession
):
    async with serving(tmp_path, stores) as rise:
        caller = Caller(http, rise)
        started_as = rise.pid
        await caller.until_startup(200, redis="available", rabbitmq="available", disk="available", worker="available")
        async with stores.befall(Mishap.REDIS_FROZEN):
            await caller.until_startup(200, redis="unavailable", rabbitmq="available")
        await caller.until_startup(200, redis="available")
        async with stores.befall(Mishap.BOTH_UNREACHABLE):
            again = await caller.until_startup(503, redis="unavailable", rabbitmq="unavailable")
            assert again is not None
            assert int(again) > 0
            assert await caller.ask("two are gone") == 503
        await caller.until_startup(200, redis="available", rabbitmq="available")
        assert await caller.ask("both are back, and Redis has what it lacked") == 200
        async with stores.befall(Mishap.RABBIT_MEMORY_ALARM):
            assert await caller.ask("RabbitMQ says so to those who publish") == 200
            await caller.until_startup(200, redis="available", rabbitmq="unavailable")
        await caller.until_startup(200, redis="available", rabbitmq="available")
        assert await caller.ask("all are back") == 200
        assert rise.pid == started_as


@pytest.mark.req("CAP-2", "CAP-5", "QUE-5")
@pytest.mark.failure("C14", "C16")
async def test_a_full_redis_is_said_while_the_others_accept_and_goes_on_by_itself(
    tmp_path: Path, stores: Stores, http: aiohttp.ClientSession
):
    async with serving(tmp_path, stores) as rise:
        caller = Caller(http, rise)
        await caller.until_startup(200, redis="available", rabbitmq="available", worker="available")
        async with stores.befall(Mishap.REDIS_FULL):
            await caller.until_startup(200, redis="unavailable", rabbitmq="available")
            assert await caller.ask("while it is full", waits=False) in (200, 202)
        await caller.until_startup(200, redis="available")
        assert await caller.ask("when there is room") == 200

"""The ledger is on MongoDB, Redis hands out the work: real servers and processes, and MongoDB away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.settings import environment_of_another
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.servers import MongoServer, RedisServer
from rise.testing.waiting import eventually

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0
BOT = """
import rise

@rise.workflow("echo", channels=["http"])
async def echo(turn):
    await turn.reply("echo " + turn.text)
"""


class Served:
    """An installation with its ledger on MongoDB, and a program that sends it messages."""

    def __init__(self, directory: Path, redis: RedisServer, mongodb: MongoServer, http: aiohttp.ClientSession) -> None:
        app = directory / "bot.py"
        app.write_text(BOT)
        self.settings = {"redis_url": redis.url, "mongodb_url": mongodb.url, "app": app, "claim_seconds": 2.0}
        self.installation = Installation(directory / "data", log="json", **self.settings)
        self._http = http

    async def send(self, text: str) -> tuple[int, str]:
        """Status and task id."""
        body = {"userText": text, "metadata": {"chat_id": "1"}}
        url = f"{self.installation.url}/api/workflows/apply"
        async with self._http.post(url, json=body, headers={"Idempotency-Key": text}) as answer:
            return answer.status, (await answer.json())["data"]["taskId"]

    async def get(self, path: str) -> dict[str, Any]:
        async with self._http.get(f"{self.installation.url}{path}") as answer:
            return await answer.json()

    async def answered(self, task_id: str) -> str:
        async def text() -> Any:
            task = await self.get(f"/api/workflows/tasks/{task_id}")
            data = task.get("data") or {}
            return data["result"]["text"] if data.get("status") == "completed" else None

        return await eventually(text, seconds=PATIENCE_SECONDS)

    async def until(self, name: str, status: str) -> None:
        async def has_it() -> bool:
            states = (await self.get("/healthz"))["capabilities"]
            return name in states and states[name]["status"] == status

        await eventually(has_it, seconds=PATIENCE_SECONDS)

    async def finished(self) -> dict[str, int]:
        return (await self.get("/internal/tasks/stats"))["data"]["finished"]

    async def command(self, *words: str) -> str:
        settings = {"data_dir": self.installation.data_dir, "port": self.installation.port} | self.settings
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rise", *words,
            env=environment_of_another(settings | {"admin_token": ADMIN_TOKEN}),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        return (await process.communicate())[0].decode()


@pytest.fixture
async def served(
    tmp_path: Path, redis_of_its_own: RedisServer, mongodb_of_its_own: MongoServer
) -> AsyncIterator[Served]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as http:
        yield Served(tmp_path, redis_of_its_own, mongodb_of_its_own, http)


@pytest.mark.req("CPY-7", "CAP-2", "CAP-5")
@pytest.mark.failure("D8")
async def test_mongodb_may_go_and_come_back_and_everything_is_answered_once(
    served: Served, mongodb_of_its_own: MongoServer
):
    async with served.installation:
        _, before = await served.send("before")
        assert await served.answered(before) == "echo before"
        assert "answers; its indexes are in place" in await served.command("doctor", "--probe", "mongo")
        mongodb_of_its_own.kill()
        accepted = [await served.send(f"away {number}") for number in range(4)]
        assert [status for status, _ in accepted] == [200] * 4
        await served.until("mongo", "unavailable")
        assert "MongoDB cannot be reached" in await served.command("doctor", "--probe", "mongo")
        mongodb_of_its_own.start()
        for number, (_, task_id) in enumerate(accepted):
            assert await served.answered(task_id) == f"echo away {number}"
        await served.until("mongo", "available")
        assert await served.finished() == {"completed.answered": 5}


@pytest.mark.req("CPY-7", "CAP-2", "CAP-5")
async def test_it_starts_without_mongodb_accepts_and_goes_on_by_itself(served: Served, mongodb_of_its_own: MongoServer):
    mongodb_of_its_own.kill()
    async with served.installation:
        status, first = await served.send("first")
        assert status == 200, "the journal holds it"
        await served.until("mongo", "unavailable")
        mongodb_of_its_own.start()
        assert await served.answered(first) == "echo first"
        await served.until("mongo", "available")
        assert await served.finished() == {"completed.answered": 1}


@pytest.mark.req("CPY-7", "EMB-3")
async def test_started_again_without_mongodb_it_knows_its_redis(served: Served, mongodb_of_its_own: MongoServer):
    async with served.installation:
        _, task_id = await served.send("before")
        assert await served.answered(task_id) == "echo before"
    mongodb_of_its_own.kill()
    async with served.installation:
        await served.until("redis", "available")
        assert (await served.send("away"))[0] == 200
        mongodb_of_its_own.start()
        _, task_id = await served.send("away")
        assert await served.answered(task_id) == "echo away"
        assert await served.finished() == {"completed.answered": 2}

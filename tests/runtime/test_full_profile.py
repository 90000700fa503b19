"""Redis hands out the work, RabbitMQ and journals hold copies: real servers and processes, one thing gone at a time."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.settings import environment_of_another
from rise.testing.installation import ADMIN_TOKEN, Installation, InstallationEnded
from rise.testing.servers import RabbitServer, RedisServer
from rise.testing.waiting import eventually

PATIENCE_SECONDS = 60.0
BOT = """
import rise

@rise.workflow("echo", channels=["http"])
async def echo(turn):
    await turn.reply("echo " + turn.text)
"""


class Full:
    """An installation of several servers, as a person at the keyboard has it."""

    def __init__(self, directory: Path, redis: RedisServer, rabbit: RabbitServer | None) -> None:
        self.redis = redis
        self.rabbit = rabbit
        self.directory = directory
        self.app = directory / "bot.py"
        self.app.write_text(BOT)
        self.servers = {"redis_url": redis.url, "rabbitmq_url": rabbit.url if rabbit else None}

    def installation(self, name: str = "data", log: str = "one") -> Installation:
        made = Installation(self.directory / name, app=self.app, claim_seconds=2.0, log="json", **self.servers)
        made.log_path = self.directory / f"{log}.log"
        return made

    def events(self, log: str = "one") -> list[dict[str, Any]]:
        lines = (self.directory / f"{log}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def command(self, rise: Installation, *words: str) -> tuple[int | None, str]:
        settings = {"data_dir": rise.data_dir, "app": self.app, "port": rise.port, "admin_token": ADMIN_TOKEN}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rise", *words,
            env=environment_of_another(settings | self.servers),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode, said.decode()


class Caller:
    """A program that sends messages and asks what became of them."""

    def __init__(self, http: aiohttp.ClientSession, rise: Installation) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{rise.port}"

    async def send(self, text: str, key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = {"userText": text, "metadata": {"chat_id": "1"}, **fields}
        async with self._http.post(
            f"{self._url}/api/workflows/apply", json=body, headers={"Idempotency-Key": key}
        ) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self._http.get(f"{self._url}{path}") as answer:
            return answer.status, await answer.json()

    async def metrics(self) -> str:
        async with self._http.get(f"{self._url}/metrics") as answer:
            return await answer.text()

    async def capabilities(self) -> dict[str, str]:
        _, body = await self.get("/healthz")
        return {name: state["status"] for name, state in body["capabilities"].items()}

    async def is_completed(self, task_id: str) -> bool:
        status, body = await self.get(f"/api/workflows/tasks/{task_id}")
        return status == 200 and body["data"]["status"] == "completed"


async def until(holds: Callable[[], Awaitable[Any]]) -> Any:
    """Other processes do it: there is no signal to wait for but asking."""
    return await eventually(holds, seconds=PATIENCE_SECONDS)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as session:
        yield session


@pytest.fixture
def full(tmp_path: Path, redis_of_its_own: RedisServer, empty_rabbit: RabbitServer) -> Full:
    return Full(tmp_path, redis_of_its_own, empty_rabbit)


@pytest.fixture
def without_mirror(tmp_path: Path, redis_of_its_own: RedisServer) -> Full:
    return Full(tmp_path, redis_of_its_own, None)


@pytest.mark.slow
@pytest.mark.req("CPY-2", "CPY-4", "CPY-5", "QUE-5", "CAP-5")
@pytest.mark.failure("C11", "C19")
async def test_redis_may_be_emptied_and_go_and_come_back_and_everything_is_answered_once(
    full: Full, http: aiohttp.ClientSession
):
    async with full.installation() as rise:
        caller = Caller(http, rise)
        status, body = await caller.send("before", "k0", waitForResult=True, waitTimeoutSeconds=30)
        assert (status, body["data"]["result"]["text"]) == (200, "echo before")
        full.redis.ask("FLUSHALL")
        status, body = await caller.send("emptied", "k1", waitForResult=True, waitTimeoutSeconds=30)
        assert (status, body["data"]["result"]["text"]) == (200, "echo emptied")
        full.redis.kill()
        accepted = [await caller.send(f"away {number}", f"k{number}") for number in range(2, 6)]
        assert [status for status, _ in accepted] == [200] * 4, "the journal and RabbitMQ hold them"
        again = await caller.send("away 2", "k2")
        assert (again[0], again[1]["data"]["duplicate"]) == (200, True)
        refused, _ = await caller.send("another body", "k2")
        assert refused in (422, 503), "never taken; whether only what is no part of the message differs, Redis knows"
        assert (await caller.capabilities())["redis"] == "unavailable"
        await until(lambda: _waits_for_redis(caller))
        full.redis.start()
        for _, body in accepted:
            await until(lambda task_id=body["data"]["taskId"]: caller.is_completed(task_id))
        await until(lambda: _is(caller.capabilities(), redis="available", pipeline="available"))
        _, stats = await caller.get("/internal/tasks/stats")
        assert stats["data"]["finished"] == {"completed.answered": 6}
        assert (await full.command(rise, "audit"))[0] == 0
    changes = [event for event in full.events() if event["event"] == "capability.state_changed"]
    assert {"redis"} <= {change["name"] for change in changes}


@pytest.mark.slow
@pytest.mark.req("CPY-4", "CAP-5", "CAP-7")
@pytest.mark.failure("C14")
async def test_what_a_full_redis_does_not_take_is_counted_and_answered_when_it_has_room(
    full: Full, http: aiohttp.ClientSession
):
    async with full.installation() as rise:
        caller = Caller(http, rise)
        await until(lambda: _is(caller.capabilities(), redis="available", rabbitmq="available"))
        full.redis.ask("CONFIG", "SET", "maxmemory", "1")
        accepted = [await caller.send(f"full {number}", f"k{number}") for number in range(3)]
        assert [status for status, _ in accepted] == [200] * 3, "the journal and RabbitMQ hold them"
        await until(lambda: _waits_for_redis(caller))
        full.redis.ask("CONFIG", "SET", "maxmemory", "0")
        for _, body in accepted:
            await until(lambda task_id=body["data"]["taskId"]: caller.is_completed(task_id))
        await until(lambda: _is(caller.capabilities(), redis="available", pipeline="available"))


async def _waits_for_redis(caller: Caller) -> bool:
    """People are told of what was accepted since, although Redis has not got it."""
    _, body = await caller.get("/healthz")
    detail = body["capabilities"]["pipeline"]["detail"]
    waiting = re.fullmatch("([1-9]) unprocessed messages?, waiting for redis", detail)
    lacking = re.search('rise_copies_lacking{copy="redis"} ([0-9])', await caller.metrics())
    return waiting is not None and lacking is not None and min(int(waiting[1]), int(lacking[1])) >= 2


async def _is(asked: Awaitable[dict[str, str]], **wanted: str) -> bool:
    return wanted.items() <= (await asked).items()


@pytest.mark.slow
@pytest.mark.req("CAP-2", "CAP-5", "SUP-1")
async def test_started_without_redis_it_waits_and_goes_on_by_itself(full: Full, http: aiohttp.ClientSession):
    full.redis.kill()
    async with full.installation() as rise:
        caller = Caller(http, rise)
        await until(lambda: _is(caller.capabilities(), redis="unavailable", rabbitmq="available"))
        assert (await caller.get("/healthz/startup"))[0] == 200, "two of three can hold a message"
        status, body = await caller.send("early", "k0")
        assert status == 200
        full.redis.start()
        await until(lambda: caller.is_completed(body["data"]["taskId"]))


@pytest.mark.slow
@pytest.mark.req("CPY-2", "CAP-3", "CAP-6")
@pytest.mark.failure("C28")
async def test_with_two_stores_gone_it_refuses_says_why_and_takes_it_when_one_is_back(
    tmp_path: Path, redis_of_its_own: RedisServer, rabbit_of_its_own: RabbitServer, http: aiohttp.ClientSession
):
    full = Full(tmp_path, redis_of_its_own, rabbit_of_its_own)
    async with full.installation() as rise:
        caller = Caller(http, rise)
        await until(lambda: _is(caller.capabilities(), redis="available", rabbitmq="available"))
        full.redis.kill()
        full.rabbit.kill()
        _, body = await until(lambda: _refused(caller))
        assert body["error"]["code"] in ("copies_insufficient", "capability_unavailable")
        await until(lambda: _is(caller.capabilities(), redis="unavailable", rabbitmq="unavailable"))
        for path in ("/healthz/startup", "/healthz/readiness"):
            assert (await caller.get(path))[0] == 503
        assert (await caller.get("/healthz"))[0] == 200
        full.redis.start()
        _, body = await until(lambda: _taken(caller))
        await until(lambda: caller.is_completed(body["data"]["taskId"]))


async def _refused(caller: Caller) -> tuple[int, dict[str, Any]] | None:
    status, body = await caller.send("refused", "k-refused")
    return (status, body) if status == 503 else None


async def _taken(caller: Caller) -> tuple[int, dict[str, Any]] | None:
    status, body = await caller.send("refused", "k-refused")
    return (status, body) if status == 200 else None


@pytest.mark.slow
@pytest.mark.req("EMB-3", "QUE-2", "WRK-1")
async def test_several_serve_on_one_directory_answer_one_chat_in_order_and_one_may_die(
    full: Full, http: aiohttp.ClientSession
):
    async with full.installation() as one, full.installation(log="two") as two:
        callers = [Caller(http, one), Caller(http, two)]
        sent = [await callers[number % 2].send(f"{number:02}", f"k{number}") for number in range(20)]
        assert {status for status, _ in sent} == {200}
        await one.kill()
        for _, body in sent:
            await until(lambda task_id=body["data"]["taskId"]: callers[1].is_completed(task_id))
        status, _ = await callers[1].send("after", "k-after", waitForResult=True, waitTimeoutSeconds=30)
        assert status == 200
        await until(lambda: _journals_are_empty(callers[1]))
    adopted = [event for event in full.events("two") if event["event"] == "journal.adopted"]
    assert len(adopted) <= 2, "what the dead one had accepted is brought to its end, if anything was open"


async def _journals_are_empty(caller: Caller) -> bool:
    _, body = await caller.get("/internal/tasks/stats")
    return body["data"]["journalDepth"] == 0


@pytest.mark.slow
@pytest.mark.req("EMB-3")
@pytest.mark.failure("M1", "M6")
async def test_a_redis_that_another_installation_uses_is_refused(without_mirror: Full, http: aiohttp.ClientSession):
    async with without_mirror.installation() as rise:
        assert (await Caller(http, rise).send("mine", "k0", waitForResult=True, waitTimeoutSeconds=30))[0] == 200
        with pytest.raises(InstallationEnded, match="another installation"):
            async with without_mirror.installation("other", log="other"):
                pass


@pytest.mark.slow
@pytest.mark.req("OPS-1", "CPY-5")
async def test_a_person_sees_what_is_missing_and_has_it_brought_back(without_mirror: Full, http: aiohttp.ClientSession):
    full = without_mirror
    async with full.installation() as rise:
        caller = Caller(http, rise)
        await full.command(rise, "doctor")
        _, body = await caller.send("lost", "k0", workflowId=None)
        task_id = body["data"]["taskId"]
        await until(lambda: caller.is_completed(task_id))
        code, said = await full.command(rise, "rehydrate", "--dry-run")
        assert (code, "missing  0" in said) == (0, True)
        code, said = await full.command(rise, "rehydrate")
        assert (code, "holds everything" in said) == (0, True)
        _, stats = await caller.get("/internal/tasks/stats")
        assert stats["data"]["finished"] == {"completed.answered": 1}
        full.redis.kill()
        await until(lambda: _is(caller.capabilities(), redis="unavailable"))
        code, said = await full.command(rise, "doctor")
        assert code == 1
        assert "Redis cannot be reached" in said
        assert "messages are accepted and wait" in said
        full.redis.start()

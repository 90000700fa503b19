"""The ledger is on MongoDB, Redis hands out the work: real servers and processes, MongoDB away, and a host gone."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pymongo import MongoClient

from rise.settings import environment_of_another
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.servers import MongoServer, RabbitServer, RedisServer
from rise.testing.telegram import SendRates, TelegramStandIn
from rise.testing.waiting import eventually

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0
BOT = """
import rise

@rise.workflow("echo", channels=["http"])
async def echo(turn):
    await turn.reply("echo " + turn.text)
"""

SECRET = "a-webhook-secret-of-the-tests"
NOTES_WHAT_IT_RUNS = """
import asyncio
from pathlib import Path

import rise

HERE = Path(__file__).parent

@rise.workflow("patient", channels=["telegram"])
async def patient(turn):
    with (HERE / "ran").open("a") as ran:
        ran.write(turn.text + "\\n")
    while turn.text.startswith("slow") and not (HERE / "go").exists():
        await asyncio.sleep(0.05)
    await turn.reply("echo " + turn.text)
"""


class Served:
    """An installation with its ledger on MongoDB, and a program that sends it messages."""

    def __init__(self, directory: Path, redis: RedisServer, mongodb: MongoServer, http: Any) -> None:
        app = directory / "bot.py"
        app.write_text(BOT)
        self.settings = {"redis_url": redis.url, "mongodb_url": mongodb.url, "app": app, "claim_seconds": 2.0}
        self.installation = Installation(directory / "data", log="json", **self.settings)
        self.http = http

    async def send(self, text: str) -> tuple[int, str]:
        """Status and task id."""
        body = {"userText": text, "metadata": {"chat_id": "1"}}
        url = f"{self.installation.url}/api/workflows/apply"
        async with self.http.post(url, json=body, headers={"Idempotency-Key": text}) as answer:
            return answer.status, (await answer.json())["data"]["taskId"]

    async def get(self, path: str) -> dict[str, Any]:
        async with self.http.get(f"{self.installation.url}{path}") as answer:
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


@pytest.mark.req("CPY-7", "CAP-2", "CAP-3", "CAP-5", "CAP-6")
@pytest.mark.failure("F1")
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
        said = await served.command("doctor")
        assert "MongoDB cannot be reached" in said
        assert "messages are accepted and run where their workflow is known" in said
        assert "see that MongoDB runs and RISE_MONGODB_URL names it" in said
        async with served.http.get(f"{served.installation.url}/api/workflows/tasks/{before}") as refused:
            body = await refused.json()
            assert (refused.status, body["capability"], body["status"]) == (503, "mongo", "unavailable")
            assert int(refused.headers["Retry-After"]) > 0
            assert body["error"] == {"code": "capability_unavailable"}
            assert body.keys() == {"data", "capability", "status", "detail", "error", "meta"}
        async with served.http.get(f"{served.installation.url}/healthz/startup") as startup:
            assert startup.status == 200, "messages are accepted"
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


# --- the whole of it: a platform, all servers, and what is written counted in the ledger itself ---


class Bot:
    """A bot on Telegram with all three servers, and the people who write to it."""

    def __init__(self, directory: Path, telegram: TelegramStandIn, mongodb: MongoServer, **settings: object) -> None:
        self.directory = directory
        app = directory / "bot.py"
        app.write_text(NOTES_WHAT_IT_RUNS)
        self.installation = Installation(
            directory / "data",
            app=app,
            mongodb_url=mongodb.url,
            telegram_token=telegram.token,
            telegram_api_base=telegram.url,
            telegram_secret=SECRET,
            telegram_rate_chat=1000,
            telegram_rate_bot=1000,
            public_url="http://127.0.0.1:1",
            late_after_seconds=0,
            **settings,
        )
        self.said: dict[int, list[str]] = {}
        self._mongodb = mongodb
        self._number = 0

    @property
    def ran(self) -> list[str]:
        file = self.directory / "ran"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def expected(self) -> dict[int, list[str]]:
        return {chat: [f"echo {text}" for text in texts] for chat, texts in self.said.items()}

    async def post(self, text: str, chat: int) -> int:
        """As Telegram does. Returns the status."""
        self._number += 1
        self.said.setdefault(chat, []).append(text)
        person = {"id": chat, "is_bot": False, "first_name": "Anna"}
        message = {"message_id": self._number, "date": 2_000_000_000 + self._number, "text": text}
        message |= {"chat": {"id": chat, "type": "private"}, "from": person}
        headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(
                f"{self.installation.url}/telegram/webhook", json={"update_id": self._number, "message": message}
            ) as answer,
        ):
            return answer.status

    async def begin_slow(self, chat: int) -> None:
        """A message whose run goes on until it is let go on."""
        assert await self.post("slow", chat) == 200
        await self.until_ran("slow")

    async def until_ran(self, *texts: str) -> None:
        async def have_run() -> bool:
            return set(texts) <= set(self.ran)

        await eventually(have_run, seconds=PATIENCE_SECONDS)

    async def capability(self, name: str) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.installation.url}/healthz") as answer:
            return dict((await answer.json())["capabilities"].get(name, {}))

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.installation.log().splitlines() if f'"{name}"' in line and line.endswith("}")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def kept(self) -> list[dict[str, Any]]:
        """The results in the ledger, as somebody else reads them."""
        with MongoClient(self._mongodb.url) as client:
            return list(client.get_default_database()["runs"].find({"is_notice": False}))


async def until_waiting(redis: RedisServer, count: int) -> None:
    """For the ledger."""

    async def wait() -> bool:
        return redis.ask("ZCARD", "{rise}:late:order") == count

    await eventually(wait, seconds=PATIENCE_SECONDS)


def said_by_chat(telegram: TelegramStandIn, chats: tuple[int, ...]) -> dict[int, list[str]]:
    return {chat: telegram.texts(chat) for chat in chats}


@pytest.mark.req("CPY-6", "CPY-7", "CAP-2", "CAP-5", "WRK-4", "OUT-1")
@pytest.mark.failure("F1")
async def test_what_came_while_mongodb_was_away_is_run_kept_and_answered_once_and_in_order(
    tmp_path: Path, redis_of_its_own: RedisServer, empty_rabbit: RabbitServer, mongodb_of_its_own: MongoServer
):
    chats = (41, 42, 43)
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        servers = {"redis_url": redis_of_its_own.url, "rabbitmq_url": empty_rabbit.url}
        bot = Bot(tmp_path, telegram, mongodb_of_its_own, claim_seconds=2.0, **servers)
        async with bot.installation as rise:
            await rise.until_capability("telegram_webhook")
            assert {await bot.post(f"before {number}", chats[number % 3]) for number in range(6)} == {200}
            await telegram.wait_until(lambda t: len(t.sent) == 6, timeout_seconds=PATIENCE_SECONDS)

            await bot.begin_slow(chats[0])
            mongodb_of_its_own.kill()
            (tmp_path / "go").touch()
            away = [f"away {number}" for number in range(12)]
            assert {await bot.post(text, chats[number % 3]) for number, text in enumerate(away)} == {200}
            await bot.until_ran(*away)
            await until_waiting(redis_of_its_own, 13)
            await rise.until_capability("mongo", "unavailable")
            shown = await bot.capability("mongo")
            assert "results wait in Redis" in shown["consequence"]
            assert "RISE_MONGODB_URL" in shown["remedy"]
            assert (await bot.capability("rabbitmq"))["status"] == "available"
            assert len(telegram.sent) == 6, "nothing goes out whose intent is not in the ledger"

            mongodb_of_its_own.start()
            await telegram.wait_until(lambda t: len(t.sent) == 19, timeout_seconds=PATIENCE_SECONDS)
            await rise.until_capability("mongo")
            assert await bot.post("after", chats[0]) == 200
            await telegram.wait_until(lambda t: len(t.sent) == 20, timeout_seconds=PATIENCE_SECONDS)
            code, report = await rise.command("audit")
            assert code == 0, report
            assert bot.events("ledger.written_back")
            await until_waiting(redis_of_its_own, 0)
        assert said_by_chat(telegram, chats) == bot.expected
        assert telegram.repeated() == []
    assert sorted(bot.ran) == sorted(text for texts in bot.said.values() for text in texts), "each ran once"
    kept = bot.kept()
    assert Counter((run["status"], run["outcome"]) for run in kept) == {("completed", "answered"): 20}
    replies = [reply for run in kept for reply in run["replies"]]
    assert [(reply["state"], reply["tries"], reply["resends"]) for reply in replies] == [("sent", 0, 0)] * 20
    assert len({run["task_id"] for run in kept}) == 20
    assert len({(reply["chat"], reply["platform_ref"]) for reply in replies}) == 20


@pytest.mark.req("CPY-6", "CPY-7", "WRK-4", "OUT-1")
@pytest.mark.failure("F1", "F4")
async def test_a_result_that_mongodb_never_had_outlives_its_worker_and_its_message_is_answered_once(
    tmp_path: Path, redis_of_its_own: RedisServer, mongodb_of_its_own: MongoServer
):
    async with TelegramStandIn() as telegram:
        bot = Bot(tmp_path, telegram, mongodb_of_its_own, claim_seconds=2.0, redis_url=redis_of_its_own.url)
        async with bot.installation as rise:
            await rise.until_capability("telegram_webhook")
            await bot.begin_slow(41)
            mongodb_of_its_own.kill()
            (tmp_path / "go").touch()
            await until_waiting(redis_of_its_own, 1)
            await rise.kill(gateway=False)
            assert await bot.post("away", 41) == 200
            mongodb_of_its_own.start()
            await telegram.wait_until(lambda t: len(t.sent) == 2, timeout_seconds=PATIENCE_SECONDS)
        assert telegram.texts(41) == ["echo slow", "echo away"]
    assert bot.ran == ["slow", "away"]
    assert [len(run["replies"]) for run in bot.kept()] == [1, 1]


@pytest.mark.req("EMB-3", "CPY-7", "QUE-2", "WRK-1")
async def test_hosts_that_share_the_servers_answer_one_chat_in_order_and_one_may_be_lost(
    tmp_path: Path, redis_of_its_own: RedisServer, empty_rabbit: RabbitServer, mongodb_of_its_own: MongoServer
):
    """A host is a directory of its own: nothing but the servers is shared."""
    hosts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        served = Served(tmp_path / name, redis_of_its_own, mongodb_of_its_own, None)
        served.installation.configure(rabbitmq_url=empty_rabbit.url)
        hosts.append(served)
    one, two = hosts
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as http:
        for host in hosts:
            host.http = http
        async with one.installation, two.installation:
            sent = [await hosts[number % 2].send(f"{number:02}") for number in range(20)]
            assert {status for status, _ in sent} == {200}
            repeated = [await hosts[(number + 1) % 2].send(f"{number:02}") for number in range(20)]
            assert repeated == sent, "the other host knows what one has taken"
            await one.installation.kill()
            for number, (_, task_id) in enumerate(sent):
                assert await two.answered(task_id) == f"echo {number:02}"
            _, after = await two.send("after")
            assert await two.answered(after) == "echo after"
            assert await two.finished() == {"completed.answered": 21}
        with MongoClient(mongodb_of_its_own.url) as client:
            runs = client.get_default_database()["runs"]
            replies = [reply for run in runs.find({"is_notice": False}) for reply in run["replies"]]
        replies.sort(key=lambda reply: reply["sequence"])
        said = [json.loads(reply["call"])["text"] for reply in replies]
        assert said == [f"echo {number:02}" for number in range(20)] + ["echo after"]

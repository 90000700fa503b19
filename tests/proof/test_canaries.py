"""Every secret there is, in real processes that fail in every way that repeats one; then all they show is searched.

Which settings are secrets, the settings say: a new one is among them from its first day.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, get_args

import aiohttp
import pytest
from aiohttp import web
from listener import Listener
from otlp_collector import AT_ONCE, Collector
from pydantic import SecretStr

from rise.settings import Settings
from rise.telemetry import spellings
from rise.testing.installation import Installation
from rise.testing.model_server import Fail, ModelStandIn
from rise.testing.telegram import Fault, SendRates, TelegramStandIn
from rise.testing.waiting import eventually

pytestmark = [pytest.mark.req("SEC-2", "OPS-4"), pytest.mark.slow]

CANARY: Final = "C4n4ry"
"""In every secret. A short part of one that is shown is a leak too."""
WORDS: Final = "anna-wrote-this"
"""In every message: people who run Rise may look at it, but it stands in no log, metric, trace or alert."""
NOWHERE: Final = "127.0.0.1:1"
OF_SERVERS: Final = {
    "redis_url": "redis://rise:{}@127.0.0.1:1/0",
    "rabbitmq_url": "amqp://rise:{}@127.0.0.1:1/",
    "mongodb_url": "mongodb://rise:{}@127.0.0.1:1/rise?serverSelectionTimeoutMS=200",
    "temporal_api_key": "{}",
}
"""Of the full profile: there, none of them answers."""

BOT = """
import os

import rise


def all_that_is_secret_here():
    return {name: value for name, value in os.environ.items() if "C4n4ry" in value}


@rise.workflow("bot", channels=["telegram", "http", "webchat"])
async def bot(turn):
    if turn.text.startswith("echo"):
        await turn.reply("said")
        return
    secrets = all_that_is_secret_here()
    assert len(secrets) >= 8, sorted(secrets)
    if turn.text.startswith("library"):
        import logging

        logging.getLogger("of.a.library").error("it failed with %s", secrets, exc_info=True)
    try:
        raise ConnectionError(*secrets.values())
    except ConnectionError as error:
        raise RuntimeError(f"not connected with {secrets!r}") from error
"""


def canary(name: str) -> str:
    return f"{CANARY}-{name.replace('_', '-')}-0123456789abcdefghij"


def secret_settings() -> Iterator[str]:
    for name, of in Settings.model_fields.items():
        if SecretStr in (of.annotation, *get_args(of.annotation)):
            yield name


def canaries(receiver: str, *, with_servers: bool) -> dict[str, str]:
    """A value for every secret there is, in the form that it asks for."""
    forms = {
        "telegram_token": "123456789:AA{}",
        "alert_webhook_url": receiver + "/alerts/{}",
        **OF_SERVERS,
    }
    asked = [name for name in secret_settings() if with_servers or name not in OF_SERVERS]
    return {name: forms.get(name, "{}").format(canary(name)) for name in asked}


@dataclass
class Receiver(Listener):
    """Where alerts and callbacks are posted, and what an `http` stage asks. It repeats to everybody what it is told."""

    route = ("*", "/{rest:.*}")

    posts: list[str] = field(default_factory=list)
    fails: bool = True

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.text()
        asked = dict(request.headers) | {"url": str(request.url)}
        if request.path.startswith("/shop"):
            return web.json_response(asked, status=500 if "fail" in request.path else 200)
        self.posts.append(body)
        self.fails, failed = False, self.fails
        return web.json_response(asked, status=500 if failed else 200)


class Shown:
    """All that was seen, by where."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def see(self, where: str, text: str | bytes) -> None:
        self.texts[where] = text if isinstance(text, str) else text.decode("utf-8", "replace")

    def holding(self, secrets: Iterable[str]) -> list[tuple[str, str]]:
        spelled = {CANARY, *(one for secret in secrets for one in spellings(secret))}
        return [
            (where, text[max(0, at - 200) : at + 100])
            for where, text in self.texts.items()
            for one in spelled
            if (at := text.find(one)) >= 0
        ]


class Looking:
    """A person with the admin's token, who looks at everything."""

    def __init__(self, rise: Installation, token: str, shown: Shown) -> None:
        self._rise = rise
        self._token = token
        self._shown = shown

    async def __aenter__(self) -> Self:
        jar = aiohttp.CookieJar(unsafe=True)
        self._session = aiohttp.ClientSession(cookie_jar=jar)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Seen whatever is answered."""
        said = {"Authorization": f"Bearer {self._token}"} | headers
        async with self._session.request(method, self._rise.url + path, json=body, headers=said) as response:
            text = await response.text()
            self._shown.see(f"{method} {path} {response.status}", text)
            self._shown.see(f"{method} {path} headers", str(dict(response.headers)))
        return json.loads(text) if text.startswith("{") else text

    async def set(self, path: str, body: dict[str, Any]) -> None:
        answer = await self.ask("PUT", path, body)
        assert "error" not in answer, answer

    async def look_at_the_api(self) -> list[str]:
        """Every route that takes no more than is there; the tasks that are known."""
        described = await self.ask("GET", "/api/openapi.json")
        paths = [path for path, of in described["paths"].items() if "get" in of and "{" not in path]
        assert len(paths) > 10
        for path in {*paths, "/healthz", "/healthz/startup", "/healthz/readiness", "/metrics"} - {"/webchat/events"}:
            await self.ask("GET", path)
        suspended = await self.ask("GET", "/internal/tasks/suspended?limit=100")
        for path in ("/api/channels/telegram/health", "/api/channel-bindings/wf_bot"):
            await self.ask("GET", path)
        return [task["taskId"] for task in suspended.get("data") or []]

    async def look_at_the_console(self, task_ids: Iterable[str]) -> None:
        async with self._session.post(
            f"{self._rise.url}/console/sign-in", data={"token": self._token}, headers={"Sec-Fetch-Site": "same-origin"}
        ) as response:
            assert "Sign in" not in await response.text()
        pages = ["", "/messages", "/suspended", "/bindings", "/trail"]
        for page in pages + [f"/messages/{task_id}" for task_id in task_ids]:
            await self.ask("GET", f"/console{page}")

    async def run(self, *words: str) -> None:
        _, printed = await self._rise.command(*words)
        assert "Usage:" not in printed, printed
        self._shown.see(f"rise {' '.join(words)}", printed)


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn(f"123456789:AA{canary('telegram_token')}") as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


def installation(tmp_path: Path, telegram: TelegramStandIn, secrets: dict[str, str], **settings: Any) -> Installation:
    (tmp_path / "bot.py").write_text(BOT)
    tokens = f"ann:viewer:{canary('of-ann')} olga:operator:{canary('of-olga')}"
    common = {"app": tmp_path / "bot.py", "telegram_api_base": telegram.url, "public_url": "http://127.0.0.1:1"}
    rise = Installation(tmp_path / "data", log_level="debug", tokens=tokens, **common, **secrets, **settings)
    rise.surroundings |= AT_ONCE | {"OTEL_EXPORTER_OTLP_HEADERS": f"api-key={canary('collector')}"}
    return rise


def update(number: int, text: str) -> dict[str, Any]:
    return {
        "update_id": 1000 + number,
        "message": {
            "message_id": number,
            "date": 2_000_000_000 + number,
            "chat": {"id": 42 + number, "type": "private"},
            "from": {"id": 42 + number, "is_bot": False, "first_name": "Anna"},
            "text": text,
        },
    }


async def test_no_secret_is_seen_anywhere_whatever_fails(tmp_path: Path, telegram: TelegramStandIn) -> None:
    shown = Shown()
    async with Receiver() as receiver, Collector() as collector, ModelStandIn() as model:
        secrets = canaries(receiver.url, with_servers=False)
        rise = installation(
            tmp_path,
            telegram,
            secrets,
            llm_base_url=model.url,
            llm_model="stand-in",
            otlp_endpoint=collector.url,
            http_stage_allow="127.0.0.1",
            retry_max=0,
            suspended_alert_count=1,
        )
        async with rise, Looking(rise, secrets["admin_token"], shown) as looking:
            await rise.until_capability("telegram_webhook")
            await rise.until_capability("worker")
            await looking.set("/api/secrets/shop", {"value": canary("of-the-shop")})
            token = f"987654321:BB{canary('second-bot')}"
            telegram.add_bot(token)
            bound = {"channel": "telegram", "account": "987654321", "enabled": True, "config": {"botToken": token}}
            await looking.set("/api/channel-bindings/wf_bot", bound)
            await looking.ask("GET", "/api/channel-bindings/wf_bot?channel=telegram&account=987654321")
            await _fail_in_every_way(rise, looking, telegram, model, receiver, secrets)
            await eventually(lambda: receiver.posts, seconds=60)
            suspended = await looking.look_at_the_api()
            assert len(suspended) >= 5
            await looking.look_at_the_console(suspended)
            for task_id in suspended:
                await looking.ask("GET", f"/api/workflows/tasks/{task_id}")
                await looking.ask("GET", f"/console/messages/{task_id}/raw")
            await looking.run("doctor")
            await looking.run("doctor", "--json")
            await looking.run("tasks", "show", suspended[0], "--json")
            await looking.run("tasks", "show", suspended[-1])
            for listing in ("tasks", "suspended", "bindings", "audit"):
                await looking.run(listing, "--json")
            for listing in ("secrets", "workflows", "follow-ups"):
                await looking.run(listing, "list", "--json")
            assert await rise.stop() == 0
        shown.see("log", rise.log())
        shown.see("traces", b"\n".join(collector.bodies))
        shown.see("posted", "\n".join(receiver.posts))
        assert any(headers.get("api-key") == canary("collector") for headers in collector.headers), "it is used"
    for seen in ("log", "traces", "posted", "rise doctor --json", "GET /metrics 200", "GET /console/trail 200"):
        assert shown.texts[seen]
    for provoked in ("not connected with", "of.a.library", "no bot has"):
        assert provoked in shown.texts["log"], "what was to repeat secrets has"
    assert '"alert"' in shown.texts["posted"]
    assert "callbackId" in shown.texts["posted"]
    others = [canary(name) for name in ("of-ann", "of-olga", "of-the-shop", "second-bot", "collector", "in-a-url")]
    found = shown.holding([*secrets.values(), *others])
    assert not found, "\n\n".join(f"{where}: …{text}…" for where, text in found)
    not_for_people = ("log", "traces", "GET /metrics 200", "GET /healthz 200")
    assert not [where for where in not_for_people if WORDS in shown.texts[where]]
    assert not [post for post in receiver.posts if "alert" in post[:40] and WORDS in post]


async def _fail_in_every_way(
    rise: Installation,
    looking: Looking,
    telegram: TelegramStandIn,
    model: ModelStandIn,
    receiver: Receiver,
    secrets: dict[str, str],
) -> None:
    token, key = secrets["telegram_token"], secrets["llm_api_key"]
    webhook = {"X-Telegram-Bot-Api-Secret-Token": secrets["telegram_secret"]}
    # The workflow itself, and a library, say all that they know.
    await looking.ask("POST", "/telegram/webhook", update(1, f"fail {WORDS}"), **webhook)
    await looking.ask("POST", "/telegram/webhook", update(2, f"library {WORDS}"), **webhook)
    # What is nearly right: refused without being repeated.
    await looking.ask("POST", "/telegram/webhook", update(3, "no"), **{"X-Telegram-Bot-Api-Secret-Token": token})
    await looking.ask("POST", "/api/workflows/apply", {"userText": "no"}, Authorization=f"Bearer {key}")
    await looking.ask("GET", f"/api/workflows/tasks/{token}?token={key}")
    # Telegram repeats the token it was called with, and the second time answers what is no answer.
    telegram.fault(Fault.bad_request(f"no bot has {token}"), method="sendMessage")
    telegram.fault(Fault.wrong_body(json.dumps({"called": token}).encode()), method="sendMessage", call=2)
    for number in (4, 5):
        await looking.ask("POST", "/telegram/webhook", update(number, f"echo {WORDS}"), **webhook)
    # The model repeats its key, in every way that servers do.
    model.then(
        Fail(400, f"Incorrect API key provided: {key}"), Fail(401, f"key {key}"), Fail(422, json.dumps({"key": key}))
    )
    prompted = await _published(looking, [{"name": "ask", "kind": "prompt", "template": "{{ text }}"}])
    for number in range(3):
        await looking.ask(
            "POST", "/api/workflows/apply", {"userText": WORDS, "workflowId": prompted, "idempotencyKey": f"p{number}"}
        )
    # A site repeats what it was asked with.
    for path in ("/shop/fail", "/shop"):
        stage = {
            "name": "look",
            "kind": "http",
            "url": f"{receiver.url}{path}?key={{{{ secrets.shop }}}}",
            "headers": {"Authorization": "Bearer {{ secrets.shop }}"},
        }
        fetching = await _published(looking, [stage])
        await looking.ask(
            "POST",
            "/api/workflows/apply",
            {
                "userText": WORDS,
                "workflowId": fetching,
                "waitForResult": path == "/shop",
                "callbackUrl": f"{receiver.url}/callbacks?key={canary('in-a-url')}",
            },
        )
    await eventually(lambda: rise.log().count("task.failed") >= 5, seconds=60)


async def _published(looking: Looking, stages: list[dict[str, Any]]) -> str:
    name = f"made {len(looking._shown.texts)}"
    made = (await looking.ask("POST", "/api/workflows", {"name": name, "stages": stages}))["data"]
    await looking.ask("POST", f"/api/workflows/{made['workflowId']}/publish", {"comment": "now"})
    return str(made["workflowId"])


async def test_no_password_is_seen_where_none_of_the_servers_answers(tmp_path: Path, telegram: TelegramStandIn) -> None:
    shown = Shown()
    async with Receiver() as receiver:
        secrets = canaries(receiver.url, with_servers=True)
        rise = installation(tmp_path, telegram, secrets, llm_base_url=f"http://{NOWHERE}/v1", llm_model="stand-in")
        rise.configure(temporal_address=NOWHERE, otlp_endpoint=f"http://{NOWHERE}")
        async with rise, Looking(rise, secrets["admin_token"], shown) as looking:
            webhook = {"X-Telegram-Bot-Api-Secret-Token": secrets["telegram_secret"]}
            await looking.ask("POST", "/telegram/webhook", update(1, f"fail {WORDS}"), **webhook)
            await looking.ask("POST", "/api/workflows/apply", {"userText": WORDS})
            for path in ("/healthz", "/healthz/startup", "/healthz/readiness", "/metrics", "/internal/tasks/stats"):
                await looking.ask("GET", path)
            await looking.run("doctor", "--json")
            await looking.run("tasks", "--json")
            await rise.stop()
        shown.see("log", rise.log())
        shown.see("posted", "\n".join(receiver.posts))
    assert "MongoDB cannot be reached" in shown.texts["log"]
    assert "unavailable" in shown.texts["GET /healthz 200"]
    assert not shown.holding(secrets.values())


def test_every_secret_setting_has_a_canary_and_is_kept_out_of_logs() -> None:
    named = canaries("http://127.0.0.1:9", with_servers=True)
    assert set(named) == set(secret_settings())
    assert len(named) >= 13
    assert all(CANARY in value for value in named.values())
    known = set(Settings(**named).secrets())  # type: ignore[arg-type]
    assert {canary(name) for name in OF_SERVERS} <= known
    assert set(named.values()) <= known

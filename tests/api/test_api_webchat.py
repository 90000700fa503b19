"""Web chat over HTTP: sessions, messages that are kept, and a stream that misses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import SECRET, Work, as_, client_of, echo, opened

import rise
from rise.api import webchat
from rise.api.app import build_app
from rise.api.server import ApiServer
from rise.capabilities import CapabilityStatus
from rise.definitions.records import BindingRecord
from rise.errors import RateExceeded
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.in_process import InProcessWorker
from rise.testing.waiting import eventually
from rise.workflows.definition import WorkflowDefinition

MESSAGES = "/webchat/messages"


async def new_session(client: httpx.AsyncClient) -> tuple[str, str]:
    data = (await client.post("/webchat/session")).json()["data"]
    return data["token"], data["session"]


async def say(client: httpx.AsyncClient, token: str, text: str, message_id: str = "m1") -> httpx.Response:
    return await client.post(MESSAGES, json={"clientMessageId": message_id, "text": text}, headers=as_(token))


@asynccontextmanager
async def browser(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=15) as client:
        yield client


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, token: str, *, after: int = 0, headers: dict[str, str] | None = None
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The events of a chat that is being watched: whatever is said from here on comes."""
    path = f"/webchat/events?after={after}"
    async with asyncio.timeout(10), client.stream("GET", path, headers=as_(token) | (headers or {})) as response:
        assert response.status_code == 200, response.status_code
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("retry: ")
        yield _events_in(lines)


async def _events_in(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def until_reply(coming: AsyncIterator[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What comes, up to and including the first reply."""
    seen: list[tuple[str, Any]] = []
    while not seen or seen[-1][0] != "reply":
        seen.append(await anext(coming))
    return seen


async def events(client: httpx.AsyncClient, token: str, **asked: Any) -> list[tuple[str, Any]]:
    """What a stream brings, up to and including the first reply."""
    async with stream(client, token, **asked) as coming:
        return await until_reply(coming)


@pytest.mark.req("CHN-1")
async def test_a_message_is_durable_when_answered_and_belongs_to_its_session(
    nobody: httpx.AsyncClient, house: House
) -> None:
    token, session = await new_session(nobody)
    response = await say(nobody, token, "hello")
    assert response.status_code == 200
    [task] = await house.queue.list_open(Selection(), limit=10)
    assert task.head.task_id == response.json()["data"]["taskId"]
    assert (task.head.channel, task.head.chat_id, task.head.lane) == ("webchat", session, f"web:default:{session}")
    assert task.head.delivery_key == f"web:{session}:m1"


@pytest.mark.req("CHN-1", "ENV-3")
@pytest.mark.failure("A1")
async def test_a_repeated_message_is_one_task(nobody: httpx.AsyncClient, house: House) -> None:
    token, _ = await new_session(nobody)
    first, again = await say(nobody, token, "hello"), await say(nobody, token, "hello")
    assert first.json()["data"]["taskId"] == again.json()["data"]["taskId"]
    assert again.json()["data"]["duplicate"] is True
    assert len(await house.queue.list_open(Selection(), limit=10)) == 1


@pytest.mark.failure("A19")
async def test_another_text_under_the_same_id_is_refused_rather_than_lost(nobody: httpx.AsyncClient) -> None:
    token, _ = await new_session(nobody)
    await say(nobody, token, "hello")
    assert (await say(nobody, token, "something else")).status_code == 422


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("path", [MESSAGES, "/webchat/events"])
async def test_only_a_session_issued_here_opens_a_chat(nobody: httpx.AsyncClient, path: str) -> None:
    token, session = await new_session(nobody)
    other, _ = await new_session(nobody)
    method = "POST" if path == MESSAGES else "GET"
    forged = ["", session, f"{session}.", f"{session}.{'A' * 43}", f"{session}.{other.partition('.')[2]}", SECRET]
    for wrong in forged:
        headers = as_(wrong) if wrong else {}
        response = await nobody.request(method, path, headers=headers)
        assert response.status_code == 401, wrong
    assert token.startswith(session)


@pytest.mark.req("ENV-4", "SEC-4")
@pytest.mark.failure("B2", "B6", "B10")
@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"nonsense", 400, "body"),
        (b"{}", 422, "clientMessageId"),
        (b'{"clientMessageId": "m"}', 422, "text"),
        (b'{"clientMessageId": "m", "text": " "}', 422, "text"),
        (b'{"clientMessageId": "m", "text": 1}', 422, "text"),
        (b'{"clientMessageId": 1, "text": "x"}', 422, "clientMessageId"),
        (b'{"clientMessageId": "", "text": "x"}', 422, "clientMessageId"),
        (b'{"clientMessageId": "' + b"m" * 65 + b'", "text": "x"}', 422, "clientMessageId"),
        (b'{"clientMessageId": "m", "text": "' + b"x" * 8001 + b'"}', 422, "text"),
        (b'{"clientMessageId": "m", "text": "x", "user": "root"}', 422, "user"),
        (b'{"clientMessageId": "m", "text": "\\ud83d"}', 422, "text"),
        (b'{"clientMessageId": "m", "text": "' + b"x" * 70_000 + b'"}', 413, "body"),
    ],
)
async def test_a_bad_message_is_told_its_field(
    nobody: httpx.AsyncClient, house: House, body: bytes, status: int, field: str
) -> None:
    token, _ = await new_session(nobody)
    headers = as_(token) | {"Content-Type": "application/json"}
    response = await nobody.post(MESSAGES, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["field"]) == (status, field)
    assert await house.queue.list_open(Selection(), limit=10) == []


@pytest.mark.req("CHN-1", "WRK-4")
async def test_the_answer_comes_on_the_stream_with_typing_before_it(server: ApiServer, work: Work) -> None:
    go_on = asyncio.Event()

    async def thoughtful(turn: rise.Turn) -> None:
        await go_on.wait()
        await turn.reply(f"you said: {turn.text}", buttons=[[{"text": "More", "data": "more"}]])

    await work(thoughtful)
    async with browser(server) as client:
        token, _ = await new_session(client)
        async with stream(client, token) as coming:
            await say(client, token, "hello")
            assert await anext(coming) == ("typing", {"on": True})
            go_on.set()
            _, reply = (await until_reply(coming))[-1]
    assert (reply["text"], reply["kind"]) == ("you said: hello", "answer")
    assert reply["buttons"] == [[{"text": "More", "data": "more"}]]


@pytest.mark.req("CHN-1")
async def test_a_page_that_was_away_gets_what_it_missed_and_nothing_twice(server: ApiServer, work: Work) -> None:
    await work(echo)
    async with browser(server) as client:
        token, _ = await new_session(client)
        await say(client, token, "one", "m1")
        [(_, first)] = [event for event in await events(client, token) if event[0] == "reply"]
        await say(client, token, "two", "m2")
        missed = await events(client, token, after=first["sequence"])
        assert [reply["text"] for name, reply in missed if name == "reply"] == ["you said: two"]
        by_header = await events(client, token, headers={"Last-Event-ID": str(first["sequence"])})
        assert [reply["text"] for name, reply in by_header if name == "reply"] == ["you said: two"]


@pytest.mark.req("SEC-1")
@pytest.mark.failure("S1")
async def test_one_chat_never_sees_anothers_answers(server: ApiServer, work: Work, house: House) -> None:
    await work(echo)
    async with browser(server) as client:
        alice, alices = await new_session(client)
        bob, bobs = await new_session(client)
        await say(client, alice, "for alice")
        await say(client, bob, "for bob")
        for token, expected in ((alice, "you said: for alice"), (bob, "you said: for bob")):
            seen = [reply["text"] for name, reply in await events(client, token) if name == "reply"]
            assert seen == [expected]
        assert alices != bobs


@pytest.mark.req("SUS-1")
async def test_a_notice_is_visible_in_the_chat(server: ApiServer, house: House) -> None:
    worker = InProcessWorker(house, {})
    await worker.start()
    async with browser(server) as client:
        token, _ = await new_session(client)
        await say(client, token, "is anybody there?")
        [(_, notice)] = [event for event in await events(client, token) if event[0] == "reply"]
    await worker.stop()
    assert (notice["kind"], notice["text"]) == ("notice", house.settings.workflow_missing_message)


@pytest.mark.req("ENV-7", "CHN-1")
async def test_a_message_sent_by_a_program_appears_in_the_chat(server: ApiServer, work: Work) -> None:
    from api_house import OPERATOR

    await work(echo)
    async with browser(server) as client:
        token, session = await new_session(client)
        sent = await client.post(
            "/api/messages",
            json={"channel": "webchat", "chatId": session, "text": "news for you"},
            headers=as_(OPERATOR),
        )
        assert sent.status_code == 200
        assert (await events(client, token))[-1][1]["text"] == "news for you"


@pytest.mark.req("CHN-1")
async def test_a_tapped_button_says_what_it_stands_for(nobody: httpx.AsyncClient, house: House) -> None:
    token, _ = await new_session(nobody)
    body = {"clientMessageId": "m", "text": "More, please", "data": "more"}
    assert (await nobody.post(MESSAGES, json=body, headers=as_(token))).status_code == 200
    [task] = await house.queue.list_open(Selection(), limit=10)
    assert (task.head.kind, task.head.user_text) == ("button", "more")
    assert task.head.metadata["button_label"] == "More, please"


@pytest.mark.req("EMB-1", "CHN-1")
@pytest.mark.failure("A4")
async def test_the_answer_arrives_although_the_server_was_replaced_in_between(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as house:
        server = ApiServer(house)
        await server.start()
        async with browser(server) as client:
            token, _ = await new_session(client)
            assert (await say(client, token, "before")).status_code == 200
        await server.stop()
    async with opened(tmp_path / "data") as house:
        definition = WorkflowDefinition(name="bot", function=echo, channels=("webchat",))
        worker = InProcessWorker(house, {definition.workflow_id: definition})
        await worker.start()
        server = ApiServer(house)
        await server.start()
        async with browser(server) as client:
            assert (await say(client, token, "before")).json()["data"]["duplicate"] is True
            assert (await events(client, token))[-1][1]["text"] == "you said: before"
        await server.stop()
        await worker.stop()


async def test_a_quiet_stream_is_heard_from(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webchat, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(webchat, "LOOK_SECONDS", 0.02)
    async with browser(server) as client:
        token, _ = await new_session(client)
        async with asyncio.timeout(5), client.stream("GET", "/webchat/events", headers=as_(token)) as response:
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    break


async def test_streams_are_bounded_and_end_with_the_server(server: ApiServer) -> None:
    async with browser(server) as client:
        token, _ = await new_session(client)
        async with asyncio.timeout(10):
            streams = [
                client.stream("GET", "/webchat/events", headers=as_(token))
                for _ in range(webchat.STREAMS_PER_SESSION_MAX)
            ]
            responses = [await stream.__aenter__() for stream in streams]
            assert {response.status_code for response in responses} == {200}
            watchers = server._app._watchers
            await eventually(lambda: _all_watching(watchers))
            refused = await client.get("/webchat/events", headers=as_(token))
            assert refused.status_code == 429
            await server.stop()
            for stream, response in zip(streams, responses, strict=True):
                await response.aread()
                await stream.__aexit__(None, None, None)
    assert watchers._count == 0


@pytest.mark.req("SEC-4")
@pytest.mark.parametrize(("rate_per_source", "files", "most"), [(9.0, 20_000, 9), (1.0, 20_000, 8), (50.0, 40, 10)])
async def test_streams_are_bounded_by_address_and_by_what_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_per_source: float, files: int, most: int
) -> None:
    monkeypatch.setattr(webchat, "open_files_max", lambda: files)
    async with opened(tmp_path / "many", rate_per_source=rate_per_source) as house:
        bounds = webchat.bounds_of(rate_per_source)
        watchers = webchat.Watchers(house.bus, bounds)
        with ExitStack() as open_now:
            for number in range(most):
                watchers.refuse_too_many(f"page {number}", "192.0.2.1")
                open_now.enter_context(watchers.watching(f"page {number}", "192.0.2.1"))
            with pytest.raises(RateExceeded):
                watchers.refuse_too_many("another", "192.0.2.1")
            if most < bounds.of_all:
                watchers.refuse_too_many("another", "192.0.2.2")
            else:
                with pytest.raises(RateExceeded):
                    watchers.refuse_too_many("another", "192.0.2.2")
        watchers.refuse_too_many("another", "192.0.2.1")
        assert not watchers._of_source
        watchers.close()


@pytest.mark.req("SEC-4")
async def test_a_stream_counts_for_the_address_that_has_it_open(tmp_path: Path) -> None:
    async with opened(tmp_path / "one", rate_per_source=8.0) as house:
        server = ApiServer(house)
        await server.start()
        async with browser(server) as client, AsyncExitStack() as open_now:
            for _ in range(8):
                token, _ = await new_session(client)
                stream = client.stream("GET", "/webchat/events", headers=as_(token))
                assert (await open_now.enter_async_context(stream)).status_code == 200
            await eventually(lambda: _all_watching(server._app._watchers))
            token, _ = await new_session(client)
            assert (await client.get("/webchat/events", headers=as_(token))).status_code == 429
            await server.stop()


async def _all_watching(watchers: webchat.Watchers) -> bool:
    return watchers._count == webchat.STREAMS_PER_SESSION_MAX


@pytest.mark.parametrize("after", ["-1", "x", "9" * 30])
async def test_a_bad_place_in_the_stream_is_refused(nobody: httpx.AsyncClient, after: str) -> None:
    token, _ = await new_session(nobody)
    response = await nobody.get("/webchat/events", params={"after": after}, headers=as_(token))
    assert (response.status_code, response.json()["error"]["field"]) == (422, "after")


@pytest.mark.req("SEC-4", "CHN-1")
async def test_the_page_brings_all_it_needs_and_runs_nothing_inline(nobody: httpx.AsyncClient) -> None:
    page = await nobody.get("/webchat")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "frame-ancestors *" in policy
    for forbidden in ("http://", "https://", "<style", " style=", "onclick", "onload", "javascript:"):
        assert forbidden not in page.text
    assert page.text.count("<script") == 1
    for name, kind in (("chat.css", "text/css"), ("chat.js", "text/javascript"), ("embed.js", "text/javascript")):
        file = await nobody.get(f"/webchat/{name}")
        assert (file.status_code, file.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    assert (await nobody.get("/webchat/chat.html")).status_code == 404
    assert (await nobody.get("/webchat/../app.py")).status_code == 404


@pytest.mark.req("SEC-3")
async def test_a_slash_too_many_leads_to_the_page_and_to_no_other_host(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.get("/webchat/?title=Ask%20us", headers={"host": "evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (308, "../webchat?title=Ask%20us")
    for path in ("/webchat/chat.js/", "/healthz/", "/api/secrets/", "/internal/operations/"):
        answer = await nobody.get(path, headers={"host": "evil.example"})
        assert (answer.status_code, answer.headers.get("location")) == (404, None), path


@pytest.mark.req("SEC-3")
async def test_the_script_never_makes_markup_of_what_somebody_wrote(nobody: httpx.AsyncClient) -> None:
    for name in ("chat.js", "embed.js"):
        script = (await nobody.get(f"/webchat/{name}")).text
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in script


@pytest.mark.req("SEC-1")
async def test_where_nobody_asked_for_a_web_chat_there_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", has_webchat=False) as house:
        app = build_app(house)
        async with client_of(app) as stranger:
            token = house.channels.webchat.new_session()
            answers = [
                await stranger.get("/webchat"),
                await stranger.post("/webchat/session"),
                await say(stranger, token, "hello"),
            ]
            for answered in answers:
                assert (answered.status_code, answered.json()["error"]["code"]) == (404, "channel_unknown")
                assert 'channels=["webchat"]' in answered.json()["error"]["message"]
            assert await house.queue.list_open(Selection(), limit=10) == []
        app.close()


@pytest.mark.req("SEC-1", "BND-7")
async def test_a_web_chat_that_a_person_has_switched_off_keeps_what_is_written(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", has_webchat=False) as house:
        switched_off = BindingRecord(channel="webchat", account="default", workflow_id="wf_bot", enabled=False)
        await house.editor.bind(switched_off, by="olga")
        app = build_app(house)
        async with client_of(app) as visitor:
            token, _ = await new_session(visitor)
            assert (await say(visitor, token, "hello")).status_code == 200
        app.close()


@pytest.mark.req("SEC-1", "EMB-1")
async def test_until_the_workflows_are_loaded_a_page_comes_and_asks_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", has_webchat=False) as house:
        house.capabilities.set("worker", CapabilityStatus.DEGRADED, "starting")
        app = build_app(house)
        async with client_of(app) as visitor:
            assert (await visitor.get("/webchat")).status_code == 200
            early = await visitor.post("/webchat/session")
            assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
            definition = WorkflowDefinition(name="bot", function=echo, channels=("webchat",))
            worker = InProcessWorker(house, {definition.workflow_id: definition})
            await worker.start()
            token, _ = await new_session(visitor)
            assert (await say(visitor, token, "hello")).status_code == 200
            await worker.stop()
        app.close()


@pytest.mark.req("SEC-4")
async def test_anonymous_visitors_are_limited_by_source(tmp_path: Path) -> None:
    async with opened(tmp_path / "slow", rate_per_source=1.0) as house:
        server = ApiServer(house)
        await server.start()
        async with browser(server) as client:
            statuses = [(await client.post("/webchat/session")).status_code for _ in range(12)]
            assert statuses == [200] * 10 + [429] * 2
            forwarded = await client.post("/webchat/session", headers={"X-Forwarded-For": "198.51.100.7"})
            assert forwarded.status_code == 429
        await server.stop()


@pytest.mark.failure("C28")
async def test_a_store_that_is_down_is_503_and_the_page_tries_again(nobody: httpx.AsyncClient, house: House) -> None:
    token, _ = await new_session(nobody)
    await house.stores.close()
    response = await say(nobody, token, "hello")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0

"""Asking for a callback: who may, where to, and what is said of it. That it comes: `tests/pipeline`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import OPERATOR, as_, client_of, opened

from rise.api.app import build_app
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.assembly.services import build_sender

URL = "https://shop.example/rise?key=only-we-know"
SHOWN = "https://shop.example/…"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path / "data", callback_secret="callback-secret-of-the-tests") as house:
        yield house


async def asked(client: httpx.AsyncClient, url: Any, *, key: str = "k", **fields: Any) -> httpx.Response:
    body = {"userText": "hello", "callbackUrl": url} | fields
    return await client.post("/api/workflows/apply", json=body, headers={"Idempotency-Key": key})


@pytest.mark.req("ENV-7")
async def test_who_asks_for_a_callback_is_promised_it_with_the_message(client: httpx.AsyncClient, house: House):
    answer = await asked(client, URL)
    assert answer.status_code == 200
    task = await house.queue.get(answer.json()["data"]["taskId"])
    assert task is not None
    assert task.head.callback_url == URL
    assert "callback" in build_sender(house)._channels


@pytest.mark.req("ENV-7")
async def test_a_repetition_is_known_and_another_url_is_another_request(client: httpx.AsyncClient):
    first, again = await asked(client, URL), await asked(client, URL)
    assert again.json()["data"]["duplicate"] is True
    assert again.json()["data"]["taskId"] == first.json()["data"]["taskId"]
    other = await asked(client, "https://elsewhere.example/")
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


@pytest.mark.req("ENV-7", "SEC-3")
@pytest.mark.parametrize(
    "url", ["", "nonsense", "http://shop.example/", "https://127.0.0.1/", "https://me:secret@shop.example/", 7, ["x"]]
)
async def test_where_nothing_can_be_posted_is_refused_and_nothing_is_written(
    client: httpx.AsyncClient, house: House, url: Any
):
    answer = await asked(client, url)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "callbackUrl"
    assert "secret" not in answer.text
    assert await house.queue.list_open(Selection(), limit=10) == []


@pytest.mark.req("ENV-7")
async def test_where_nothing_can_be_signed_nobody_may_ask_for_a_callback(tmp_path: Path):
    async with opened(tmp_path / "data") as house:
        app = build_app(house)
        async with client_of(app, **as_(OPERATOR)) as client:
            answer = await asked(client, URL)
        app.close()
        assert answer.status_code == 422
        assert "RISE_CALLBACK_SECRET" in answer.json()["error"]["message"]
        assert "callback" not in build_sender(house)._channels


@pytest.mark.req("ENV-7", "SEC-2")
async def test_of_the_url_nothing_but_the_host_is_shown(client: httpx.AsyncClient, work: Any):
    async def fails(turn: Any) -> None:
        raise RuntimeError("no idea")

    await work(fails)
    parked = (await asked(client, URL, retryMax=0, waitForResult=True)).json()["data"]
    assert parked["status"] == "suspended"
    task_id = parked["taskId"]
    one = await client.get(f"/api/workflows/tasks/{task_id}")
    assert one.json()["data"]["payload"]["channelPayload"]["raw"]["callbackUrl"] == SHOWN
    assert one.json()["data"]["payload"]["channelPayload"]["raw"]["userText"] == "hello"
    assert one.json()["data"]["replies"][0]["params"] == {"url": SHOWN}
    listed = await client.get("/internal/tasks/suspended?raw=true")
    assert [row["taskId"] for row in listed.json()["data"]] == [task_id]
    for answer in (one, listed):
        assert "only-we-know" not in answer.text

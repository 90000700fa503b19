"""Two gateways on two hosts, with a real Redis between them that goes and comes back, agree on what is bound."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rise.api.app import build_app
from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.runtime.assembly import stores
from rise.runtime.assembly.house import House, build
from rise.settings import load_settings
from rise.testing.servers import RedisServer
from rise.testing.waiting import eventually

AGREE_SECONDS = 5.0
"""As promised."""
GRACE_SECONDS = 2.0
"""For a machine that has other things to do."""


@pytest.fixture
async def hosts(
    tmp_path: Path, redis_of_its_own: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[House, House]]:
    """They share the definitions and Redis, and cannot hear each other otherwise."""
    numbers = itertools.count()
    monkeypatch.setattr(
        stores, "LocalBus", lambda directory, clock: LocalBus(directory.parent / f"bus-{next(numbers)}", clock)
    )
    settings = load_settings(_env_file=None, data_dir=tmp_path / "data", redis_url=redis_of_its_own.url)
    houses = build(settings), build(settings)
    for house in houses:
        await house.stores.open()
        await house.bus.start()
        await house.bindings.start()
    for house in houses:
        await eventually(lambda house=house: getattr(house.bus, "is_listening", False))
        await eventually(lambda house=house: house.bindings.version >= 0)
    yield houses
    for house in houses:
        await house.bindings.stop()
        await house.bus.stop()
        await house.stores.close()


async def bind(house: House, workflow_id: str) -> None:
    await house.editor.publish(WorkflowRecord(workflow_id=workflow_id, name=workflow_id), by="ann")
    await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id=workflow_id), by="ann")


def serves(house: House, workflow_id: str) -> bool:
    return [one.workflow_id for one in house.bindings.snapshot.active if one.is_default] == [workflow_id]


@pytest.mark.req("BND-5")
async def test_a_change_is_known_elsewhere_at_a_word_long_before_anybody_looks(
    hosts: tuple[House, House], monkeypatch: pytest.MonkeyPatch
):
    here, there = hosts
    monkeypatch.setattr("rise.bindings.CHECK_SECONDS", 3600.0)
    await bind(here, "wf_a")  # ends the waits that began before
    await eventually(lambda: serves(here, "wf_a") and serves(there, "wf_a"), seconds=AGREE_SECONDS + GRACE_SECONDS)
    for workflow_id, by, other in (("wf_b", here, there), ("wf_c", there, here)):
        await bind(by, workflow_id)
        assert not await by.editor.event_is_queued()
        await eventually(lambda name=workflow_id, house=other: serves(house, name), seconds=AGREE_SECONDS)


@pytest.mark.slow
@pytest.mark.req("BND-5", "BND-6")
@pytest.mark.failure("H4")
async def test_without_redis_they_agree_by_looking_and_the_word_comes_when_it_is_back(
    hosts: tuple[House, House], redis_of_its_own: RedisServer
):
    here, there = hosts
    heard: list[Any] = []
    there.bus.subscribe(Topic.DEFINITIONS_CHANGED, heard.append)
    redis_of_its_own.kill()
    await bind(here, "wf_a")
    assert await here.editor.event_is_queued(), "and whoever changes it is told so"
    await eventually(lambda: serves(there, "wf_a"), seconds=AGREE_SECONDS + GRACE_SECONDS)
    assert heard == []
    redis_of_its_own.start()
    await eventually(lambda: any(said["workflowId"] == "wf_a" and said["operation"] == "bind" for said in heard))
    await eventually(lambda: is_through(here))
    await bind(there, "wf_b")
    assert not await there.editor.event_is_queued()
    await eventually(lambda: serves(here, "wf_b"), seconds=AGREE_SECONDS)


@pytest.mark.req("BND-6")
async def test_a_frozen_redis_holds_up_no_change(hosts: tuple[House, House], redis_of_its_own: RedisServer):
    here, _ = hosts
    redis_of_its_own.freeze()
    try:
        async with asyncio.timeout(AGREE_SECONDS):
            await bind(here, "wf_a")
            assert await here.editor.event_is_queued()
    finally:
        redis_of_its_own.thaw()


async def is_through(house: House) -> bool:
    return not await house.editor.event_is_queued()


@pytest.mark.slow
@pytest.mark.req("BND-6", "WFL-1")
@pytest.mark.failure("H4")
async def test_who_changes_something_while_redis_is_away_is_told_that_others_hear_of_it_later(
    hosts: tuple[House, House], redis_of_its_own: RedisServer
):
    house, _ = hosts
    token = {"Authorization": f"Bearer {house.secrets.admin_token}"}
    draft = {"name": "greeter", "stages": [{"name": "say", "kind": "reply", "template": "hi"}]}
    app = build_app(house)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rise", headers=token) as client:
        created = (await client.post("/api/workflows", json=draft)).json()
        assert created["meta"]["warnings"] == []
        redis_of_its_own.kill()
        path = f"/api/workflows/{created['data']['workflowId']}"
        binding = {"channel": "http", "enabled": True, "config": {}}
        for change in (
            client.post(f"{path}/publish", json={"comment": "at last"}),
            client.put("/api/channel-bindings/wf_greeter?channel=http", json=binding),
            client.post("/api/prompts", json={"name": "tone", "template": "Be kind."}),
        ):
            answered = await change
            assert answered.status_code == 200, answered.text
            assert "event_queued" in answered.json()["meta"]["warnings"]
    app.close()

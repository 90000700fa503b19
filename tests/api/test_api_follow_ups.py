"""Follow-ups over HTTP: planned durably, listed, moved, cancelled; what cannot be is refused with its field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from api_house import BOT, VIEWER, Work, as_, client_of

from rise.api.app import App
from rise.errors import StoreUnavailable
from rise.runtime.assembly.house import House

PATH = "/api/follow-ups"
SAY = {"channel": "telegram", "chatId": 42, "inSeconds": 3600, "text": "Was it all right?"}

pytestmark = pytest.mark.req("TMP-3", "TMP-5")


async def planned(client: httpx.AsyncClient, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    body = {name: value for name, value in (SAY | fields).items() if value is not None}
    answer = await client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


async def look(client: httpx.AsyncClient, follow_up_id: str) -> Any:
    return (await client.get(f"{PATH}/{follow_up_id}")).json()["data"]


async def test_one_is_planned_looked_at_moved_and_cancelled(client: httpx.AsyncClient, house: House):
    follow_up_id = (await planned(client))["followUpId"]
    found = await look(client, follow_up_id)
    assert (found["status"], found["chatId"], found["text"], found["moves"]) == ("planned", "42", SAY["text"], 0)
    assert (found["missed"], found["firedTaskId"], found["account"]) == ("fire", None, BOT)
    moved = await client.patch(
        f"{PATH}/{follow_up_id}", json={"at": "2030-07-01T09:00:00", "timeZone": "Europe/Berlin"}
    )
    assert moved.status_code == 200, moved.text
    rule = {name: moved.json()["data"][name] for name in ("at", "timeZone", "dueAt", "moves", "followUpId")}
    assert rule == {
        "at": "2030-07-01T09:00:00",
        "timeZone": "Europe/Berlin",
        "dueAt": "2030-07-01T07:00:00.000Z",
        "moves": 1,
        "followUpId": follow_up_id,
    }
    for _ in range(2):
        cancelled = await client.delete(f"{PATH}/{follow_up_id}", params={"why": "not needed"})
        assert cancelled.status_code == 200, cancelled.text
    found = await look(client, follow_up_id)
    assert (found["status"], found["endedBy"], found["why"]) == ("cancelled", "olga", "not needed")
    assert (await client.patch(f"{PATH}/{follow_up_id}", json={"inSeconds": 5})).status_code == 409
    recorded = [one.action for one in await house.ledger.operations(limit=10)]
    assert recorded.count("drop") == 2, "who moved it, and who cancelled it"


async def test_the_same_key_is_the_same_follow_up_and_with_another_body_refused(client: httpx.AsyncClient):
    first, again = await planned(client, key="k-1"), await planned(client, key="k-1")
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert first["followUpId"] == again["followUpId"]
    answer = await client.post(PATH, json=SAY | {"text": "another"}, headers={"Idempotency-Key": "k-1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert (await client.get(PATH)).json()["data"][0]["followUpId"] == first["followUpId"]


async def test_one_that_is_due_is_said_in_its_chat_and_can_be_changed_no_more(client: httpx.AsyncClient, work: Work):
    async def bot(turn: Any) -> None:
        await turn.reply(f"{turn.kind}: {turn.text}")

    await work(bot)
    fired = (await planned(client, at="2020-01-01T00:00:00Z", inSeconds=None))["followUpId"]
    with_workflow = (await planned(client, inSeconds=0, workflowId="wf_bot", text="ask"))["followUpId"]
    for follow_up_id, text in ((fired, SAY["text"]), (with_workflow, "follow_up: ask")):
        while (found := await look(client, follow_up_id))["status"] != "fired":
            pass
        task = {"replies": []}
        while not task["replies"]:
            answer = await client.get(f"/api/workflows/tasks/{found['firedTaskId']}")
            task = answer.json()["data"] if answer.status_code == 200 else task
        assert [reply["text"] for reply in task["replies"]] == [text]
        for refused in (
            await client.delete(f"{PATH}/{follow_up_id}"),
            await client.patch(f"{PATH}/{follow_up_id}", json={"inSeconds": 60}),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "state_conflict")


async def test_lists_narrow_and_come_in_pages(client: httpx.AsyncClient):
    ids = [(await planned(client, chatId=chat))["followUpId"] for chat in (1, 1, 2, 3)]
    await client.post("/api/messages", json={"channel": "telegram", "chatId": 1, "text": "not one"})

    async def listed(**params: Any) -> set[str]:
        answer = await client.get(PATH, params=params)
        assert answer.status_code == 200, answer.text
        return {row["followUpId"] for row in answer.json()["data"]}

    assert await listed() == set(ids)
    assert await listed(channel="telegram", account=BOT, chatId="1") == set(ids[:2])
    assert await listed(chatId="2") == {ids[2]}
    assert await listed(channel="webchat") == set()
    assert await listed(status="suspended") == set()
    assert await listed(status="planned") == set(ids)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = (await client.get(PATH, params={"limit": 2, "after": after})).json()
        assert len(page["data"]) <= 2
        seen += [row["followUpId"] for row in page["data"]]
        after = page["meta"]["next"]
    assert sorted(seen) == sorted(ids)
    assert (await client.get(PATH, params={"status": "fired"})).status_code == 422


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"inSeconds": None}, "at"),
        ({"at": "2027-01-01T00:00:00Z"}, "at"),
        ({"inSeconds": None, "at": "2027-01-01T00:00:00"}, "timeZone"),
        ({"timeZone": "Europe/Berlin"}, "timeZone"),
        ({"inSeconds": -1}, "inSeconds"),
        ({"inSeconds": 6 * 366 * 86400}, "inSeconds"),
        ({"inSeconds": True}, "inSeconds"),
        ({"text": None}, "text"),
        ({"text": " "}, "text"),
        ({"missed": "later"}, "missed"),
        ({"chatId": None}, "chatId"),
        ({"chatId": "nobody"}, "chatId"),
        ({"channel": "http"}, "channel"),
        ({"inSecond": 5}, "inSecond"),
        ({"buttons": [[{"text": "yes"}]]}, "buttons[0][0]"),
    ],
)
async def test_what_cannot_be_planned_is_refused_with_its_field(
    client: httpx.AsyncClient, change: dict[str, Any], field: str
):
    body = {name: value for name, value in (SAY | change).items() if value is not None}
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    assert (await client.get(PATH)).json()["data"] == []


async def test_what_there_is_not_is_404(client: httpx.AsyncClient):
    said = (await client.post("/api/messages", json={"channel": "telegram", "chatId": 1, "text": "x"})).json()["data"]
    for named in ("t_nothing", said["taskId"]):
        for answer in (
            await client.get(f"{PATH}/{named}"),
            await client.delete(f"{PATH}/{named}"),
            await client.patch(f"{PATH}/{named}", json={"inSeconds": 1}),
        ):
            assert (answer.status_code, answer.json()["error"]["field"]) == (404, "followUpId")
    assert (await client.post(PATH, json=SAY | {"workflowId": "wf_none"})).status_code == 404
    assert (await client.post(PATH, json=SAY | {"channel": "pigeon"})).status_code == 404


async def test_who_may_only_look_plans_nothing(app: App):
    async with client_of(app, **as_(VIEWER)) as viewer:
        assert (await viewer.get(PATH)).status_code == 200
        assert (await viewer.post(PATH, json=SAY)).status_code == 403
        assert (await viewer.patch(f"{PATH}/t_x", json={"inSeconds": 1})).status_code == 403
        assert (await viewer.delete(f"{PATH}/t_x")).status_code == 403


async def test_what_could_not_be_kept_is_not_promised_and_names_its_key(
    client: httpx.AsyncClient, house: House, monkeypatch: pytest.MonkeyPatch
):
    async def full(*_: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(type(house.queue), "enqueue", full)
    answer = await client.post(PATH, json=SAY)
    assert answer.status_code == 503
    assert answer.headers["Idempotency-Key"] == answer.json()["data"]["idempotencyKey"]

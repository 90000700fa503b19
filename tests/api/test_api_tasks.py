"""What programs ask for: strictly read, durable when answered, readable later."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from api_house import OPERATOR, VIEWER, Work, as_, client_of, echo, opened

import rise
from rise.api.app import App, build_app
from rise.capabilities import CapabilityStatus
from rise.definitions.records import WorkflowRecord
from rise.envelope import TaskType
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.operations import Operations
from rise.telemetry import refused_total
from rise.testing.waiting import eventually

APPLY = "/api/workflows/apply"


async def open_tasks(house: House) -> list[Any]:
    return await house.queue.list_open(Selection(), limit=100)


@pytest.mark.req("ENV-5", "ENV-4", "ENV-1")
async def test_apply_answers_task_status_and_retry_and_a_key_where_none_came(
    client: httpx.AsyncClient, house: House
) -> None:
    response = await client.post(APPLY, json={"userText": "hello", "metadata": {"chat_id": 42}})
    assert response.status_code == 200
    data = response.json()["data"]
    assert data["status"] == "pending"
    assert data["retry"] == {"count": 0, "max": 3, "nextAttemptAt": 0}
    assert data["idempotencyKey"] == response.headers["Idempotency-Key"]
    assert response.json()["meta"]["requestId"] == response.headers["X-Request-Id"]
    [task] = await open_tasks(house)
    assert task.head.task_id == data["taskId"]
    assert task.head.delivery_key == f"http:olga:{data['idempotencyKey']}"
    assert task.head.lane == "http:default:42"
    assert task.head.request_id == response.json()["meta"]["requestId"]


@pytest.mark.req("QUE-4", "ENV-1")
async def test_the_retries_that_are_shown_are_those_of_its_channel_and_type(tmp_path: Path) -> None:
    async with opened(tmp_path / "tuned", retry_max_for={"http": 1, "message.send": 5}) as house:
        app = build_app(house)
        async with client_of(app, **as_(OPERATOR)) as client:
            applied = (await client.post(APPLY, json={"userText": "hello"})).json()["data"]
            assert applied["retry"]["max"] == 1
            asked = (await client.post(APPLY, json={"userText": "hello", "retryMax": 2})).json()["data"]
            assert asked["retry"]["max"] == 2
            sent = {"channel": "telegram", "chatId": 42, "text": "hello"}
            assert (await client.post("/api/messages", json=sent)).json()["data"]["retry"]["max"] == 5
        app.close()


@pytest.mark.req("ENV-1")
async def test_the_user_is_who_authenticated_whatever_the_client_writes(
    client: httpx.AsyncClient, house: House
) -> None:
    await client.post(
        APPLY,
        json={"metadata": {"chat_id": "42", "message_id": 7, "user_id": "root"}},
        headers={"X-User": "root", "X-Forwarded-User": "root"},
    )
    [task] = await open_tasks(house)
    assert task.head.user == {"chat_id": "42", "message_id": "7", "user_id": "olga"}


@pytest.mark.req("ENV-5")
async def test_without_a_chat_every_request_has_a_lane_of_its_own(client: httpx.AsyncClient, house: House) -> None:
    for _ in range(2):
        await client.post(APPLY, json={"userText": "hello"})
    lanes = {task.head.lane for task in await open_tasks(house)}
    assert len(lanes) == 2
    assert all(lane.startswith("http:default:task:") for lane in lanes)


@pytest.mark.req("ENV-3", "ENV-4")
@pytest.mark.failure("A1")
async def test_the_same_key_is_the_same_task_in_header_or_body(client: httpx.AsyncClient, house: House) -> None:
    first = await client.post(APPLY, json={"userText": "a"}, headers={"Idempotency-Key": "k1"})
    again = await client.post(APPLY, json={"userText": "a"}, headers={"Idempotency-Key": "k1"})
    assert first.json()["data"]["taskId"] == again.json()["data"]["taskId"]
    assert (first.json()["data"]["duplicate"], again.json()["data"]["duplicate"]) == (False, True)
    in_body = await client.post(APPLY, json={"userText": "a", "idempotencyKey": "k2"})
    assert in_body.json()["data"]["idempotencyKey"] == "k2"
    assert len(await open_tasks(house)) == 2


@pytest.mark.req("ENV-4")
@pytest.mark.failure("A19")
async def test_the_same_key_with_another_body_is_422_and_nothing_is_written(
    client: httpx.AsyncClient, house: House
) -> None:
    await client.post(APPLY, json={"userText": "a"}, headers={"Idempotency-Key": "k"})
    other = await client.post(APPLY, json={"userText": "b"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert other.json()["error"]["field"] == "idempotencyKey"
    assert len(await open_tasks(house)) == 1


@pytest.mark.req("ENV-3", "ENV-4", "ENV-5")
@pytest.mark.failure("A19")
async def test_how_the_caller_wants_to_be_answered_is_no_part_of_what_is_asked_for(
    client: httpx.AsyncClient, house: House
) -> None:
    key = {"Idempotency-Key": "k"}
    first = await client.post(APPLY, json={"userText": "a"}, headers=key)
    wait = {"waitForResult": True, "waitTimeoutSeconds": 0.01}
    for repeat in ({"userText": "a"} | wait, wait | {"userText": "a", "idempotencyKey": "k"}):
        again = await client.post(APPLY, json=repeat, headers=key)
        assert (again.status_code, again.json()["data"]["duplicate"]) == (202, True)
        assert again.json()["data"]["taskId"] == first.json()["data"]["taskId"]
    for other in ({"userText": "b"} | wait, {"userText": "a", "retryMax": 1}, {"userText": "a", "metadata": {}}):
        assert (await client.post(APPLY, json=other, headers=key)).status_code == 422
    [task] = await open_tasks(house)
    kept = await house.queue.get(task.head.task_id)
    assert kept is not None
    assert kept.raw == first.request.content


@pytest.mark.req("ENV-3", "ENV-5")
async def test_a_repeat_after_the_end_may_ask_to_be_answered_otherwise(client: httpx.AsyncClient, work: Work) -> None:
    await work(echo)
    key = {"Idempotency-Key": "k"}
    first = await client.post(APPLY, json={"userText": "once", "waitForResult": True}, headers=key)
    again = await client.post(APPLY, json={"userText": "once"}, headers=key)
    assert again.json()["data"]["duplicate"] is True
    assert again.json()["data"]["result"] == first.json()["data"]["result"]


async def test_the_same_key_of_somebody_else_is_another_key(app: App, client: httpx.AsyncClient, house: House) -> None:
    from api_house import ADMIN

    await client.post(APPLY, json={"userText": "a"}, headers={"Idempotency-Key": "k"})
    async with client_of(app, **as_(ADMIN)) as other:
        assert (await other.post(APPLY, json={"userText": "b"}, headers={"Idempotency-Key": "k"})).status_code == 200
    assert len(await open_tasks(house)) == 2


DEEP = b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "body"),
    "no json": (b"hello", 400, "body"),
    "truncated": (b'{"userText": "a', 400, "body"),
    "no utf-8": (b'{"userText": "\xff"}', 400, "body"),
    "utf-16": ('{"userText": "a"}'.encode("utf-16"), 400, "body"),
    "an array": (b"[]", 422, "body"),
    "null": (b"null", 422, "body"),
    "100 000 deep": (DEEP, 422, "body"),
    "65 deep": (b'{"metadata": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}", 422, ("metadata.a" + "[0]" * 64)[:80]),
    "nan": (b'{"metadata": {"a": NaN}}', 422, "body"),
    "infinity": (b'{"waitTimeoutSeconds": -Infinity}', 422, "body"),
    "1e999": (b'{"metadata": {"a": 1e999}}', 422, "body"),
    "5 000 digits": (b'{"retryMax": ' + b"9" * 5000 + b"}", 422, "body"),
    "30 digits": (b'{"metadata": {"a": [' + b"9" * 30 + b"]}}", 422, "metadata.a[0]"),
    "duplicate keys": (b'{"userText": "a", "userText": "b"}', 422, "userText"),
    "duplicate keys inside": (b'{"metadata": {"x": 1, "x": 2}}', 422, "x"),
    "lone surrogate": (b'{"userText": "half \\ud800"}', 422, "userText"),
    "lone surrogate in a name": (b'{"metadata": {"\\udfff": 1}}', 422, "a name in metadata"),
    "unknown field": (b'{"idempotencykey": "k"}', 422, "idempotencykey"),
    "callback url": (b'{"callbackUrl": "https://x"}', 422, "callbackUrl"),
    "text a number": (b'{"userText": 7}', 422, "userText"),
    "history an object": (b'{"historyChunks": {}}', 422, "historyChunks"),
    "policy an array": (b'{"policy": []}', 422, "policy"),
    "metadata a string": (b'{"metadata": "x"}', 422, "metadata"),
    "workflow a number": (b'{"workflowId": 1}', 422, "workflowId"),
    "chat a boolean": (b'{"metadata": {"chat_id": true}}', 422, "metadata.chat_id"),
    "chat a float": (b'{"metadata": {"chat_id": 1.5}}', 422, "metadata.chat_id"),
    "chat an object": (b'{"metadata": {"chat_id": {}}}', 422, "metadata.chat_id"),
    "chat empty": (b'{"metadata": {"chat_id": ""}}', 422, "metadata.chat_id"),
    "chat with control characters": (b'{"metadata": {"chat_id": "a\\u0000b"}}', 422, "metadata.chat_id"),
    "chat beyond 64 bits": (b'{"metadata": {"chat_id": 9223372036854775808}}', 422, "metadata.chat_id"),
    "retry a boolean": (b'{"retryMax": true}', 422, "retryMax"),
    "retry negative": (b'{"retryMax": -1}', 422, "retryMax"),
    "wait a string": (b'{"waitForResult": "yes"}', 422, "waitForResult"),
    "wait for nothing": (b'{"waitTimeoutSeconds": 0}', 422, "waitTimeoutSeconds"),
    "key empty": (b'{"idempotencyKey": ""}', 422, "idempotencyKey"),
    "key too long": (b'{"idempotencyKey": "' + b"k" * 201 + b'"}', 422, "idempotencyKey"),
    "key not ascii": ('{"idempotencyKey": "ключ"}'.encode(), 422, "idempotencyKey"),
    "too many values": (b'{"historyChunks": [' + b"0," * 60_000 + b"0]}", 422, "body"),
}


@pytest.mark.req("ENV-4")
@pytest.mark.failure("B1", "B2", "B3", "B4", "B5", "B6", "B9", "B10", "B16")
@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_is_told_its_field_and_nothing_is_written(
    client: httpx.AsyncClient, house: House, name: str
) -> None:
    body, status, field = BAD[name]
    response = await client.post(APPLY, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["field"]) == (status, field)
    assert response.json()["data"] is None
    assert response.json()["meta"]["requestId"]
    assert await open_tasks(house) == []


@pytest.mark.failure("A18")
async def test_encodings_and_other_content_types_are_415(client: httpx.AsyncClient, house: House) -> None:
    body = json.dumps({"userText": "a"}).encode()
    packed = await client.post(
        APPLY,
        content=gzip.compress(body),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert (packed.status_code, packed.json()["error"]["field"]) == (415, "Content-Encoding")
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = await client.post(APPLY, content=body, headers={"Content-Type": content_type})
        assert (response.status_code, response.json()["error"]["field"]) == (415, "Content-Type")
    assert (await client.post(APPLY, content=body)).status_code == 415
    ok = await client.post(APPLY, content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert ok.status_code == 200
    assert len(await open_tasks(house)) == 1


@pytest.mark.failure("A17")
@pytest.mark.req("SEC-4")
async def test_five_megabytes_are_413(client: httpx.AsyncClient, house: House) -> None:
    response = await client.post(APPLY, json={"userText": "x" * (5 << 20)})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")
    assert await open_tasks(house) == []


@pytest.mark.req("ENV-5")
async def test_an_unknown_workflow_is_404_and_nothing_is_written(client: httpx.AsyncClient, house: House) -> None:
    response = await client.post(APPLY, json={"workflowId": "wf_nobody"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "workflow_unknown")
    assert response.json()["error"]["field"] == "workflowId"
    assert await open_tasks(house) == []


@pytest.mark.req("ENV-5", "ENV-3", "CAP-6")
async def test_while_the_worker_starts_an_unknown_workflow_is_503_and_a_repeat_is_still_one(
    client: httpx.AsyncClient, house: House
) -> None:
    workflow = WorkflowRecord(workflow_id="wf_bot", name="bot", channels=("http",))
    await house.editor.publish(workflow, by="olga")
    ask = {"json": {"userText": "a", "workflowId": "wf_bot"}, "headers": {"Idempotency-Key": "k"}}
    assert (await client.post(APPLY, **ask)).status_code == 200
    await house.editor.publish(msgspec.structs.replace(workflow, enabled=False), by="olga")
    await house.bindings.refresh()
    house.capabilities.set("worker", CapabilityStatus.DEGRADED, "starting")
    for workflow_id in ("wf_bot", "wf_nobody"):
        early = await client.post(APPLY, json={"workflowId": workflow_id})
        assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
        assert early.json()["error"]["code"] == "capability_unavailable"
    assert (await client.post(APPLY, **ask)).json()["data"]["duplicate"] is True
    house.capabilities.set("worker", CapabilityStatus.AVAILABLE, "alive")
    late = await client.post(APPLY, json={"workflowId": "wf_nobody"})
    assert (late.status_code, late.json()["error"]["code"]) == (404, "workflow_unknown")
    assert len(await open_tasks(house)) == 1


@pytest.mark.req("ENV-3", "ENV-5")
@pytest.mark.failure("A1")
async def test_a_repeat_is_a_duplicate_also_when_its_workflow_was_disabled_meanwhile(
    client: httpx.AsyncClient, house: House
) -> None:
    workflow = WorkflowRecord(workflow_id="wf_bot", name="bot", channels=("http",))
    await house.editor.publish(workflow, by="olga")
    ask = {"json": {"userText": "a", "workflowId": "wf_bot"}, "headers": {"Idempotency-Key": "k"}}
    first = await client.post(APPLY, **ask)
    await house.editor.publish(msgspec.structs.replace(workflow, enabled=False), by="olga")
    await house.bindings.refresh()
    again = await client.post(APPLY, **ask)
    assert (again.status_code, again.json()["data"]["duplicate"]) == (200, True)
    assert again.json()["data"]["taskId"] == first.json()["data"]["taskId"]
    new = await client.post(APPLY, json=ask["json"], headers={"Idempotency-Key": "another"})
    assert (new.status_code, new.json()["error"]["code"]) == (404, "workflow_unknown")
    other = await client.post(APPLY, json=ask["json"] | {"userText": "b"}, headers=ask["headers"])
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(await open_tasks(house)) == 1


@pytest.mark.req("ENV-5", "WRK-4")
async def test_waiting_answers_the_result(client: httpx.AsyncClient, work: Work) -> None:
    await work(echo)
    response = await client.post(APPLY, json={"userText": "hello", "workflowId": "wf_bot", "waitForResult": True})
    assert response.status_code == 200
    data = response.json()["data"]
    assert (data["status"], data["outcome"]) == ("completed", "answered")
    assert data["result"]["text"] == "you said: hello"
    assert data["result"]["replies"] == [{"text": "you said: hello"}]


@pytest.mark.req("ENV-5")
async def test_a_wait_that_runs_out_is_202_and_the_result_is_read_later(client: httpx.AsyncClient, work: Work) -> None:
    let_go = asyncio.Event()

    async def slow(turn: rise.Turn) -> None:
        await let_go.wait()
        await turn.reply("at last")

    await work(slow)
    response = await client.post(APPLY, json={"userText": "x", "waitForResult": True, "waitTimeoutSeconds": 0.2})
    assert response.status_code == 202
    task_id = response.json()["data"]["taskId"]
    assert response.json()["data"]["result"] is None
    let_go.set()

    async def completed() -> Any:
        task = (await client.get(f"/api/workflows/tasks/{task_id}")).json()["data"]
        return task if task["status"] == "completed" else None

    task = await eventually(completed)
    assert task["result"]["text"] == "at last"
    assert [reply["text"] for reply in task["replies"]] == ["at last"]
    assert task["payload"]["channelPayload"]["raw"] == {
        "userText": "x",
        "waitForResult": True,
        "waitTimeoutSeconds": 0.2,
    }


@pytest.mark.req("ENV-5", "SUS-1")
async def test_waiting_for_what_is_suspended_ends_at_once(client: httpx.AsyncClient, work: Work) -> None:
    async def never(turn: rise.Turn) -> None:
        raise AssertionError

    await work(never)
    response = await client.post(
        APPLY, json={"userText": "x", "retryMax": 0, "waitForResult": True, "waitTimeoutSeconds": 60}
    )
    assert response.status_code == 202
    data = response.json()["data"]
    assert (data["status"], data["reason"]) == ("suspended", "retries_exhausted")


@pytest.mark.req("ENV-5", "SUS-3")
async def test_who_waits_for_what_was_parked_and_runs_again_is_told_how_that_ends(
    client: httpx.AsyncClient, house: House, work: Work
) -> None:
    let_go, runs = asyncio.Event(), 0

    async def fails_once(turn: rise.Turn) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("no luck")
        await let_go.wait()
        await turn.reply("at last")

    await work(fails_once)
    ask = {"userText": "x", "retryMax": 0, "waitForResult": True, "waitTimeoutSeconds": 0.2}
    key = {"Idempotency-Key": "report"}
    task_id = (await client.post(APPLY, json=ask, headers=key)).json()["data"]["taskId"]

    async def parked() -> bool:
        task = (await client.get(f"/api/workflows/tasks/{task_id}")).json()["data"]
        return bool(task["status"] == "suspended")

    await eventually(parked)
    await Operations(house.queue, house.ledger, house.bus, house.clock).run_again(task_id, who="admin")
    waited = await client.post(APPLY, json=ask, headers=key)
    assert (waited.status_code, waited.json()["data"]["result"]) == (202, None)
    let_go.set()

    async def completed() -> Any:
        data = (await client.post(APPLY, json=ask, headers=key)).json()["data"]
        return data if data["status"] == "completed" else None

    assert (await eventually(completed))["result"]["text"] == "at last"


@pytest.mark.req("ENV-5")
@pytest.mark.failure("A20")
async def test_a_caller_that_hangs_up_loses_nothing(client: httpx.AsyncClient, work: Work) -> None:
    running, let_go = asyncio.Event(), asyncio.Event()

    async def slow(turn: rise.Turn) -> None:
        running.set()
        await let_go.wait()
        await turn.reply("done all the same")

    await work(slow)
    ask = {"json": {"userText": "x", "waitForResult": True}, "headers": {"Idempotency-Key": "k"}}
    calling = asyncio.ensure_future(client.post(APPLY, **ask))
    await running.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    let_go.set()
    again = await client.post(APPLY, **ask)
    assert again.json()["data"]["result"]["text"] == "done all the same"


@pytest.mark.req("ENV-5")
async def test_a_repeat_after_the_end_answers_what_the_first_came_to(client: httpx.AsyncClient, work: Work) -> None:
    await work(echo)
    ask = {"json": {"userText": "once", "waitForResult": True}, "headers": {"Idempotency-Key": "k"}}
    first, again = await client.post(APPLY, **ask), await client.post(APPLY, **ask)
    assert first.json()["data"]["result"] == again.json()["data"]["result"]
    assert again.json()["data"]["duplicate"] is True


@pytest.mark.req("SEC-5")
async def test_a_task_whose_chat_was_forgotten_is_shown_without_content_and_its_key_is_still_known(
    client: httpx.AsyncClient, house: House, work: Work
) -> None:
    await work(echo)
    asked = {"userText": "canary", "metadata": {"chat_id": 42}, "waitForResult": True}
    key = {"Idempotency-Key": "once"}
    first = (await client.post(APPLY, json=asked, headers=key)).json()["data"]
    await eventually(lambda: _is_empty(house))
    assert (await house.ledger.forget_chat("http", "default", "42")).runs == 1
    response = await client.get(f"/api/workflows/tasks/{first['taskId']}")
    assert response.status_code == 200
    assert "canary" not in response.text
    shown = response.json()["data"]
    assert (shown["status"], shown["outcome"], shown["result"], shown["replies"]) == ("completed", "answered", None, [])
    assert shown["payload"]["channelPayload"]["raw"] is None
    again = (await client.post(APPLY, json=asked, headers=key)).json()["data"]
    assert (again["taskId"], again["duplicate"], again["result"]) == (first["taskId"], True, None)
    other = await client.post(APPLY, json=asked | {"userText": "another"}, headers=key)
    assert other.status_code == 422
    in_other_words = await client.post(APPLY, json=asked | {"waitForResult": False}, headers=key)
    assert in_other_words.status_code == 422, "what it asked for, nobody knows any more"


async def _is_empty(house: House) -> bool:
    return not await open_tasks(house)


@pytest.mark.req("CPY-2", "ENV-4")
@pytest.mark.failure("C28")
async def test_503_carries_the_key_with_which_repeating_is_safe(client: httpx.AsyncClient, house: House) -> None:
    refused = refused_total.labels("http", "store_unavailable")
    before = refused._value.get()
    await house.stores.close()
    response = await client.post(APPLY, json={"userText": "x"})
    assert response.status_code == 503
    assert refused._value.get() == before + 1
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["data"]["idempotencyKey"] == response.headers["Idempotency-Key"]
    assert (response.json()["capability"], response.json()["error"]) == ("disk", {"code": "capability_unavailable"})


@pytest.mark.req("ENV-5")
async def test_a_task_nobody_knows_is_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/workflows/tasks/t_nobody")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "task_unknown")


@pytest.mark.req("ENV-1")
async def test_a_task_is_shown_as_its_envelope(client: httpx.AsyncClient) -> None:
    sent = await client.post(
        APPLY,
        content=b'{"userText": "a",  "metadata": {"chat_id": "42", "message_id": "9"}}',
        headers={"Content-Type": "application/json", "Idempotency-Key": "k"},
    )
    task = (await client.get(f"/api/workflows/tasks/{sent.json()['data']['taskId']}")).json()["data"]
    assert task["taskType"] == "workflow.execute"
    assert task["payload"]["channel"] == "http"
    assert task["payload"]["metadata"]["chat_id"] == "42"
    assert task["context"]["idempotencyKey"] == "http:pending:42:9"
    assert task["payload"]["telemetry"]["raw_size_bytes"] == 68
    assert task["attempts"] == []


MESSAGE = {"channel": "telegram", "chatId": 42, "text": "hello"}


@pytest.mark.req("ENV-7")
async def test_a_message_enters_by_the_same_door_into_the_chats_own_lane(
    client: httpx.AsyncClient, house: House
) -> None:
    response = await client.post(
        "/api/messages",
        json=MESSAGE | {"buttons": [[{"text": "yes", "data": "y"}]], "replyTo": 5, "parseMode": "HTML"},
        headers={"Idempotency-Key": "k"},
    )
    assert response.status_code == 200
    [task] = await open_tasks(house)
    assert task.head.task_id == response.json()["data"]["taskId"]
    assert task.head.task_type is TaskType.MESSAGE_SEND
    assert (task.head.channel, task.head.account, task.head.lane) == ("telegram", "7", "tg:7:42:0")
    assert task.head.delivery_key == "msg:olga:k"
    assert task.head.policy["reply"] == {
        "text": "hello",
        "buttons": [[{"text": "yes", "data": "y"}]],
        "reply_to": "5",
        "parse_mode": "HTML",
    }


@pytest.mark.failure("A13", "B4")
async def test_a_message_that_came_while_the_process_was_stopped_is_in_the_lane_of_the_chats_first_id(
    client: httpx.AsyncClient, house: House
) -> None:
    await house.ledger.move_chat("telegram", "7", "-500", "-1005")
    house.chats._trusted_until = 0.0
    await client.post("/api/messages", json=MESSAGE | {"chatId": -1005})
    [task] = await open_tasks(house)
    assert task.head.lane == "tg:7:-500:0"


@pytest.mark.req("ENV-7")
async def test_a_message_becomes_a_reply_in_the_outbox(client: httpx.AsyncClient, house: House, work: Work) -> None:
    await work(echo)
    sent = await client.post("/api/messages", json=MESSAGE)
    task_id = sent.json()["data"]["taskId"]
    [reply] = await eventually(lambda: house.ledger.replies(task_id=task_id))
    assert (reply.chat_id, reply.call.text) == ("42", "hello")


@pytest.mark.req("ENV-7", "ENV-4")
@pytest.mark.failure("A19")
async def test_a_message_with_a_used_key_and_another_text_is_422(client: httpx.AsyncClient, house: House) -> None:
    key = {"Idempotency-Key": "k"}
    first = await client.post("/api/messages", json=MESSAGE, headers=key)
    assert (await client.post("/api/messages", json=MESSAGE, headers=key)).json()["data"]["duplicate"] is True
    other = await client.post("/api/messages", json=MESSAGE | {"text": "other"}, headers=key)
    assert other.status_code == 422
    [task] = await open_tasks(house)
    assert task.head.task_id == first.json()["data"]["taskId"]


@pytest.mark.req("ENV-7", "ENV-4")
@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"channel": "fax"}, 404, "channel"),
        ({"channel": None}, 422, "channel"),
        ({"channel": "http"}, 422, "channel"),
        ({"account": "8"}, 404, "account"),
        ({"chatId": None}, 422, "chatId"),
        ({"chatId": True}, 422, "chatId"),
        ({"chatId": "not a chat"}, 422, "chatId"),
        # As another name of chat 42 it would have a lane and a line of its own, and go out beside what that is sent.
        ({"chatId": "042"}, 422, "chatId"),
        ({"chatId": "-0"}, 422, "chatId"),
        ({"text": None}, 422, "text"),
        ({"text": "  \n"}, 422, "text"),
        ({"text": "x" * 40_000}, 422, "text"),
        ({"buttons": "x"}, 422, "buttons"),
        ({"buttons": ["x"]}, 422, "buttons[0]"),
        ({"buttons": [[{"text": "x"}]]}, 422, "buttons[0][0]"),
        ({"buttons": [[{"text": "x", "data": 1}]]}, 422, "buttons[0][0]"),
        ({"replyTo": 1.5}, 422, "replyTo"),
        ({"parseMode": 1}, 422, "parseMode"),
        ({"chat_id": 42}, 422, "chat_id"),
        # what the channel would refuse when the task is run
        ({"buttons": [[{"text": "x", "data": "d" * 65}]]}, 422, "buttons"),
        ({"replyTo": "the first"}, 422, "replyTo"),
        ({"parseMode": "Markdwon"}, 422, "parseMode"),
    ],
)
async def test_a_bad_message_is_told_its_field(
    client: httpx.AsyncClient, house: House, change: dict[str, Any], status: int, field: str
) -> None:
    body = {name: value for name, value in (MESSAGE | change).items() if value is not None}
    response = await client.post("/api/messages", json=body)
    assert (response.status_code, response.json()["error"]["field"]) == (status, field)
    assert await open_tasks(house) == []


@pytest.mark.req("SEC-1")
async def test_a_viewer_may_look_and_not_send(app: App, client: httpx.AsyncClient) -> None:
    task_id = (await client.post(APPLY, json={"userText": "x"})).json()["data"]["taskId"]
    async with client_of(app, **as_(VIEWER)) as viewer:
        seen = await viewer.get(f"/api/workflows/tasks/{task_id}")
        assert seen.status_code == 200
        assert "raw" not in seen.json()["data"]["payload"]["channelPayload"], "the bytes are for operators"
        assert (await viewer.post(APPLY, json={"userText": "x"})).status_code == 403
        assert (await viewer.post("/api/messages", json=MESSAGE)).status_code == 403


async def test_a_stop_lets_nobody_wait_any_longer(app: App, client: httpx.AsyncClient, work: Work) -> None:
    running, let_go = asyncio.Event(), asyncio.Event()

    async def slow(turn: rise.Turn) -> None:
        running.set()
        await let_go.wait()

    await work(slow)
    calling = asyncio.ensure_future(client.post(APPLY, json={"userText": "x", "waitForResult": True}))
    await running.wait()
    app.close()
    assert (await calling).status_code == 202
    let_go.set()


@pytest.mark.req("ENV-3", "ENV-5")
async def test_a_key_that_was_forgotten_and_comes_again_is_not_answered_with_the_former_answer(
    client: httpx.AsyncClient, house: House, work: Work
) -> None:
    await work(echo)
    wait, key = {"waitForResult": True, "waitTimeoutSeconds": 5}, {"Idempotency-Key": "daily-report"}
    first = await client.post(APPLY, json={"userText": "monday"} | wait, headers=key)
    assert first.json()["data"]["result"]["text"] == "you said: monday"

    def age(connection: Any) -> None:
        connection.execute("DELETE FROM receipts")
        for moment in ("saved_at", "finished_at", "accepted_at"):
            connection.execute(f"UPDATE runs SET {moment} = {moment} - ?", (8 * 86_400_000,))

    await house.stores.database.write(age)
    second = await client.post(APPLY, json={"userText": "tuesday"} | wait, headers=key)
    data = second.json()["data"]
    assert data["duplicate"] is False
    assert data["result"]["text"] == "you said: tuesday"

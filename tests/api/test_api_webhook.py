"""Telegram's way in: what is forged is refused unread, what is authentic is never refused."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import BOT, SECRET, client_of, opened

from rise.api.app import App, build_app
from rise.api.webhooks import trace_id_of, wait_seconds
from rise.capabilities import CapabilityStatus
from rise.envelope import Reason, Status
from rise.errors import StoreUnavailable
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.telemetry import refused_total
from rise.testing.clock import ManualClock
from rise.testing.waiting import eventually

PATH = "/telegram/webhook"
AUTHENTIC = {"X-Telegram-Bot-Api-Secret-Token": SECRET}


def update(update_id: int = 1, text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {
        "update_id": update_id,
        "message": {
            "message_id": update_id,
            "date": 2_000_000_000,
            "chat": {"id": 42, "type": "private"},
            "from": {"id": 42, "is_bot": False, "first_name": "Anna"},
            "text": text,
            **fields,
        },
    }


async def post(client: httpx.AsyncClient, body: Any, path: str = PATH, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(path, content=content, headers=AUTHENTIC | headers)


async def parked(house: House) -> list[Any]:
    return await house.queue.list_open(Selection(status=Status.SUSPENDED), limit=100)


@pytest.mark.req("TGM-1", "TGM-3", "ENV-1")
async def test_an_update_is_durable_when_it_is_answered_200_with_an_empty_body(
    nobody: httpx.AsyncClient, house: House
) -> None:
    response = await post(nobody, update())
    assert (response.status_code, response.content) == (200, b"")
    [task] = await house.queue.list_open(Selection(channel="telegram"), limit=10)
    assert task.head.user_text == "hello"
    assert task.head.delivery_key == f"tg:{BOT}:u:1"


@pytest.mark.req("TGM-1")
async def test_the_path_may_name_the_bot(nobody: httpx.AsyncClient) -> None:
    assert (await post(nobody, update(), f"{PATH}/{BOT}")).status_code == 200


@pytest.mark.failure("A13", "B4")
async def test_what_came_while_the_process_was_stopped_is_in_the_lane_of_the_chats_first_id(
    nobody: httpx.AsyncClient, house: House
) -> None:
    await house.ledger.move_chat("telegram", BOT, "-500", "-1005")
    house.chats._trusted_until = 0.0
    await post(nobody, update(chat={"id": -1005, "type": "supergroup"}))
    [task] = await house.queue.list_open(Selection(), limit=10)
    assert task.head.lane == f"tg:{BOT}:-500:0"


@pytest.mark.failure("A1", "A4")
async def test_a_repeated_update_is_answered_200_and_creates_nothing(nobody: httpx.AsyncClient, house: House) -> None:
    for _ in range(3):
        assert (await post(nobody, update())).status_code == 200
    assert len(await house.queue.list_open(Selection(), limit=10)) == 1


@pytest.mark.failure("A2")
async def test_two_copies_at_the_same_moment_make_one_task(nobody: httpx.AsyncClient, house: House) -> None:
    responses = await asyncio.gather(*(post(nobody, update()) for _ in range(8)))
    assert {response.status_code for response in responses} == {200}
    assert len(await house.queue.list_open(Selection(), limit=10)) == 1


@pytest.mark.failure("A16")
@pytest.mark.req("TGM-1")
@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Telegram-Bot-Api-Secret-Token": ""}, {"X-Telegram-Bot-Api-Secret-Token": SECRET[:-1] + "x"}],
    ids=["missing", "empty", "wrong"],
)
async def test_a_forged_request_is_refused_empty_and_nothing_is_read_or_written(
    app: App, house: House, headers: dict[str, str]
) -> None:
    before = refused_total.labels("telegram", "signature_mismatch")._value.get()
    sent: list[Any] = []

    async def never() -> Any:
        raise AssertionError("the body of a forged request is not read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "client": ("203.0.113.9", 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, never, send)
    assert sent[0]["status"] == 401
    assert "body" not in sent[1]
    assert refused_total.labels("telegram", "signature_mismatch")._value.get() == before + 1
    assert await house.queue.list_open(Selection(), limit=10) == []


@pytest.mark.failure("A16")
async def test_another_bots_path_needs_another_bots_secret(nobody: httpx.AsyncClient) -> None:
    assert (await post(nobody, update(), f"{PATH}/8")).status_code == 401


@pytest.mark.failure("A16")
@pytest.mark.req("SEC-4")
async def test_a_source_that_forges_often_is_slowed_down_and_telegram_is_not(tmp_path: Any) -> None:
    async with opened(tmp_path / "slow", rate_per_source=1.0) as house:
        app = build_app(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rise") as client:
            statuses = [(await client.post(PATH, content=b"{}")).status_code for _ in range(12)]
            assert statuses == [401] * 10 + [429] * 2
            refused = await client.post(PATH, content=b"{}")
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await post(client, update())).status_code == 200
        app.close()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_only_post_is_answered(nobody: httpx.AsyncClient, method: str) -> None:
    response = await nobody.request(method, PATH, headers=AUTHENTIC)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


DEEP = b'{"update_id": 1, "message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.req("ENV-4", "WRK-3")
@pytest.mark.failure("B1", "B3", "B4", "B5", "B9", "B10", "B11", "A18")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"update_id": 1, "message": {"chat"',
        b'{"update_id": 1, "message": {"text": "\xff\xfe"}}',
        DEEP,
        b'{"update_id": 1, "message": NaN}',
        b'{"update_id": ' + b"9" * 5000 + b"}",
        b"[]",
        b'"a string"',
        b"null",
        b'{"update_id": 1}',
        json.dumps(update(chat={"id": "42"})).encode(),
        json.dumps(update(chat=None)).encode(),
        json.dumps(update(text=7)).encode(),
        b'{"update_id": 1, "kind_of_the_future": {}}',
        gzip.compress(json.dumps(update()).encode()),
    ],
    ids=[
        "empty",
        "no json",
        "truncated",
        "no utf-8",
        "100 000 deep",
        "nan",
        "5 000 digits",
        "array",
        "string",
        "null",
        "nothing in it",
        "chat id a string",
        "chat null",
        "text a number",
        "unknown kind",
        "gzip",
    ],
)
async def test_an_authentic_update_that_cannot_be_read_is_kept_with_its_bytes(
    nobody: httpx.AsyncClient, house: House, body: bytes
) -> None:
    response = await post(nobody, body)
    assert (response.status_code, response.content) == (200, b"")
    [task] = await parked(house)
    assert task.reason is Reason.RAW_PAYLOAD_INVALID
    kept = await house.queue.get(task.head.task_id)
    assert kept is not None
    assert kept.raw == body


@pytest.mark.failure("B2", "B6", "B7")
@pytest.mark.parametrize(
    "body",
    [
        json.dumps(update()).replace("hello", "half \\ud800").encode(),
        b'{"update_id": 1, "update_id": 1, "message": {"message_id": 1, "date": 2000000000, "chat": {"id": 42}}}',
        json.dumps(update(text="\x00\u2028\u202e")).encode(),
    ],
    ids=["lone surrogate", "duplicate keys", "control characters"],
)
async def test_what_is_odd_but_readable_is_worked_on(nobody: httpx.AsyncClient, house: House, body: bytes) -> None:
    assert (await post(nobody, body)).status_code == 200
    assert await parked(house) == []
    [task] = await house.queue.list_open(Selection(), limit=10)
    kept = await house.queue.get(task.head.task_id)
    assert kept is not None
    assert kept.raw == body


@pytest.mark.failure("A18")
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "nonsense"])
async def test_any_content_type_will_do_for_telegram(
    nobody: httpx.AsyncClient, house: House, content_type: str
) -> None:
    assert (await post(nobody, update(), **{"Content-Type": content_type})).status_code == 200
    assert await parked(house) == []


@pytest.mark.failure("A17", "B16")
async def test_over_the_cap_is_413_and_nothing_is_written(nobody: httpx.AsyncClient, house: House) -> None:
    response = await post(nobody, b"x" * (5 << 20))
    assert (response.status_code, response.content) == (413, b"")
    assert response.headers["Connection"] == "close"
    assert await house.queue.list_open(Selection(), limit=10) == []


@pytest.mark.failure("B12")
@pytest.mark.req("ENV-2")
async def test_just_under_the_cap_is_kept_whole(nobody: httpx.AsyncClient, house: House) -> None:
    body = json.dumps(update(text="x" * (1_000_000))).encode()
    assert (await post(nobody, body)).status_code == 200
    [task] = await house.queue.list_open(Selection(), limit=10)
    kept = await house.queue.get(task.head.task_id)
    assert kept is not None
    assert kept.raw == body


@pytest.mark.failure("A8")
async def test_an_old_recording_is_parked_as_a_stale_replay(nobody: httpx.AsyncClient, house: House) -> None:
    assert (await post(nobody, update(date=1_500_000_000))).status_code == 200
    [task] = await parked(house)
    assert task.reason is Reason.STALE_REPLAY


@pytest.mark.failure("A8", "L1")
async def test_one_boot_with_a_wrong_clock_makes_no_later_message_a_replay(tmp_path: Path) -> None:
    clock, days = ManualClock(), 2 * 86_400
    clock.step_wall(days)
    async with opened(tmp_path / "data", clock=clock):
        pass
    clock.step_wall(-days)
    clock.reboot()
    async with opened(tmp_path / "data", clock=clock) as house:
        app, now = build_app(house), int(clock.now().timestamp())
        assert house.intake.now() > clock.now() + timedelta(days=1), "the store's clock never goes back"
        async with client_of(app) as telegram:
            assert (await post(telegram, update(date=now - 5))).status_code == 200
            assert await parked(house) == []
            assert (await post(telegram, update(2, date=now - days))).status_code == 200
            assert [task.reason for task in await parked(house)] == [Reason.STALE_REPLAY]
        app.close()


@pytest.mark.req("ENV-1", "OPS-4")
async def test_the_callers_trace_goes_into_the_envelope(nobody: httpx.AsyncClient, house: House) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await post(nobody, update(), traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    [task] = await house.queue.list_open(Selection(), limit=10)
    assert task.head.trace_id == trace
    await post(nobody, update(2), traceparent="nonsense")
    [other] = [t for t in await house.queue.list_open(Selection(), limit=10) if t.head.task_id != task.head.task_id]
    assert other.head.trace_id == other.head.request_id


def test_a_trace_of_zeros_is_no_trace() -> None:
    assert trace_id_of(b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01") is None


@pytest.mark.req("TGM-3")
@pytest.mark.failure("C28")
async def test_503_comes_with_a_retry_after_within_the_updates_life(nobody: httpx.AsyncClient, house: House) -> None:
    await house.stores.close()
    response = await post(nobody, update())
    assert (response.status_code, response.content) == (503, b"")
    assert response.headers["Retry-After"] == "5"
    callback = {"update_id": 2, "callback_query": {"id": "1", "from": {"id": 42}, "data": "x", "chat_instance": "1"}}
    assert (await post(nobody, callback)).headers["Retry-After"] == "2"
    inline = {"update_id": 3, "inline_query": {"id": "1", "from": {"id": 42}, "query": "x", "offset": ""}}
    assert (await post(nobody, inline)).headers["Retry-After"] == "1"


def test_the_wait_never_outlives_the_update() -> None:
    down = StoreUnavailable("down", retry_after_seconds=3600)
    assert wait_seconds(down, None) == 60
    assert wait_seconds(down, 150) == 2
    assert wait_seconds(down, 30) == 1


@pytest.mark.failure("A6")
@pytest.mark.req("TGM-3")
async def test_a_store_that_does_not_answer_in_time_is_503_and_the_repeat_is_one_task(tmp_path: Any) -> None:
    async with opened(tmp_path / "stalled", accept_seconds=0.2) as house:
        app = build_app(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rise") as client:
            release = asyncio.Event()
            database, real = house.stores.database, house.stores.database.write

            async def stalled(apply: Any) -> Any:
                await release.wait()
                return await real(apply)

            database.write = stalled  # type: ignore[method-assign]
            assert (await post(client, update())).status_code == 503
            release.set()
            assert (await post(client, update())).status_code == 200
        app.close()
        assert len(await house.queue.list_open(Selection(), limit=10)) == 1


async def test_an_error_nobody_expected_is_a_500_that_telegram_repeats(nobody: httpx.AsyncClient, app: App) -> None:
    class Broken:
        async def accept(self, incoming: object) -> None:
            raise ZeroDivisionError

    app._webhook._intake = Broken()
    response = await post(nobody, update())
    assert (response.status_code, response.content) == (500, b"")
    assert response.headers["X-Request-Id"]


async def test_without_a_bot_there_is_nothing_here(tmp_path: Any) -> None:
    async with opened(tmp_path / "none", telegram_token=None, telegram_mode=None, public_url=None) as house:
        app = build_app(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rise") as client:
            assert (await post(client, update())).status_code == 404
        app.close()


@pytest.mark.req("ENV-6")
async def test_35_updates_of_which_30_are_unique_make_30_tasks(nobody: httpx.AsyncClient, house: House) -> None:
    unique = [update(n, chat={"id": n % 4, "type": "private"}, date=2_000_000_000 + n) for n in range(1, 31)]
    arriving = [unique[8], *unique[:8], *unique[9:], *unique[:5]]
    for one in arriving:
        assert (await post(nobody, one)).status_code == 200
    depth = await eventually(house.queue.depth)
    assert sum(depth.by_status.values()) == 30
    assert depth.duplicates == 5
    assert depth.out_of_order >= 1


# --- a bot that nobody has verified -----------------------------------------------------------------------------


@pytest.mark.req("CAP-3", "TGM-3")
async def test_on_a_fresh_installation_updates_stay_at_telegram_until_the_bot_was_verified(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", is_verified=False) as house, client_of(build_app(house)) as telegram:
        house.capabilities.set("telegram_webhook", CapabilityStatus.DEGRADED, "Telegram cannot be reached")
        refused = await post(telegram, update(1))
        assert (refused.status_code, refused.content) == (503, b"")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert await house.queue.list_open(Selection(), limit=10) == [], "nothing was written"
        assert (await post(telegram, update(1), **{"X-Telegram-Bot-Api-Secret-Token": "forged"})).status_code == 401
        house.stores.directory.remember_verified(BOT)
        assert (await post(telegram, update(1))).status_code == 200


@pytest.mark.req("CAP-3")
@pytest.mark.failure("G14", "I14")
async def test_once_it_was_verified_an_outage_of_telegram_refuses_nothing_after_a_restart_too(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as house:
        assert house.stores.directory.has_verified(BOT)
    async with opened(tmp_path / "data", is_verified=False) as house, client_of(build_app(house)) as telegram:
        house.capabilities.set("telegram_webhook", CapabilityStatus.DEGRADED, "Telegram cannot be reached")
        assert (await post(telegram, update(1))).status_code == 200


@pytest.mark.req("CAP-3", "TGM-1")
async def test_while_it_is_polled_for_a_late_push_is_taken_all_the_same(tmp_path: Path) -> None:
    polled = {"telegram_mode": "polling", "public_url": None}
    async with (
        opened(tmp_path / "data", is_verified=False, **polled) as house,
        client_of(build_app(house)) as telegram,
    ):
        assert (await post(telegram, update(1))).status_code == 200

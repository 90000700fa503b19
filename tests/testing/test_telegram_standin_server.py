"""The stand-in over real HTTP: with a real client, a real webhook, scripted faults, and from outside."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import pytest
from aiogram import Bot as AiogramBot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.types import BufferedInputFile, InputMediaPhoto
from aiohttp import web

from rise.testing.telegram import DeliveryFault, DropReason, Fault, SendRates, TelegramStandIn, updates
from rise.testing.telegram.command import run_standin
from rise.testing.telegram.fixtures import telegram_standin, telegram_standin_options  # noqa: F401

pytestmark = pytest.mark.req("TST-1")


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    """A minute of the stand-in is one second here."""
    async with TelegramStandIn(time_scale=60) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def bot(telegram: TelegramStandIn) -> AsyncIterator[AiogramBot]:
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
    async with AiogramBot(telegram.token, session=session) as bot:
        yield bot


class Webhook:
    """A bot that takes updates over HTTP and answers as told."""

    def __init__(self) -> None:
        self.updates: list[dict] = []
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.in_flight: Counter[int] = Counter()
        self.in_flight_max: Counter[int] = Counter()
        self.answer: Callable[[web.Request, dict], Awaitable[web.Response]] = self.accept

    async def accept(self, request: web.Request, update: dict) -> web.Response:
        return web.Response()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        update = json.loads(body)
        self.requests.append(request)
        self.bodies.append(body)
        self.updates.append(update)
        chat_id = update.get("message", {}).get("chat", {}).get("id", 0)
        self.in_flight[chat_id] += 1
        self.in_flight_max |= self.in_flight
        try:
            return await self.answer(request, update)
        finally:
            self.in_flight[chat_id] -= 1

    def texts(self) -> list[str]:
        return [update["message"]["text"] for update in self.updates if "message" in update]


@asynccontextmanager
async def served(webhook: Webhook) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/hook", webhook.handle)
    app.router.add_post("/moved", webhook.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    await runner.cleanup()


@pytest.fixture
async def webhook(telegram: TelegramStandIn, bot: AiogramBot) -> AsyncIterator[Webhook]:
    webhook = Webhook()
    async with served(webhook) as url:
        await bot.set_webhook(url, secret_token="s3cret")
        yield webhook


def everything_taken(telegram: TelegramStandIn) -> bool:
    return not telegram.pending()


# --- with a real client -----------------------------------------------------------------------------------


async def test_aiogram_talks_to_it_as_to_the_real_one(telegram, bot):
    assert (await bot.get_me()).id == telegram.bot_id
    sent = await bot.send_message(42, "<b>Hello</b>", parse_mode="HTML")
    assert (sent.text, sent.entities[0].type) == ("Hello", "bold")
    edited = await bot.edit_message_text("Bye", chat_id=42, message_id=sent.message_id)
    assert edited.text == "Bye"
    assert await bot.send_chat_action(42, "typing")
    assert (await bot.get_chat(42)).type == "private"
    assert await bot.set_my_commands([])
    assert telegram.texts(42) == ["Bye"]


async def test_aiogram_polls_it(telegram, bot):
    telegram.message("Hello", chat_id=42)
    [update] = await bot.get_updates(timeout=5)
    assert update.message.text == "Hello"
    assert await bot.get_updates(offset=update.update_id + 1) == []


async def test_aiogram_understands_every_kind_of_update(telegram, bot):
    everything = [
        updates.message("/start now"),
        updates.edited_message("x", message_id=1),
        updates.channel_post("x"),
        updates.edited_channel_post("x", message_id=1),
        *updates.album(),
        updates.message("in a topic", chat_id=-1_000_000_000_005, message_thread_id=7),
        updates.callback_query(),
        updates.inline_query("x"),
        updates.shipping_query(),
        updates.pre_checkout_query(),
        updates.my_chat_member(),
        updates.message_reaction(message_id=1),
        *updates.group_migration(new_chat_id=-1_000_000_000_006),
        updates.unknown(),
    ]
    await bot.get_updates(allowed_updates=[kind for update in everything for kind in update])
    for update in everything:
        assert telegram.add_update(update) is not None
    assert len(await bot.get_updates()) == len(everything)


async def test_aiogram_sends_and_gets_files(telegram, bot):
    document = await bot.send_document(42, BufferedInputFile(b"content", "a.txt"), caption="See")
    got = await bot.download(document.document.file_id)
    assert got.read() == b"content"
    media = [InputMediaPhoto(media="a", caption="Look"), InputMediaPhoto(media=BufferedInputFile(b"p", "p.png"))]
    assert len(await bot.send_media_group(42, media)) == 2
    for send in (bot.send_photo, bot.send_audio, bot.send_voice, bot.send_video, bot.send_animation):
        await send(42, "some-file-id")
    for send in (bot.send_video_note, bot.send_sticker):
        await send(42, "some-file-id")
    await bot.send_location(42, 64.1, -21.9)
    await bot.send_contact(42, "+354", "Ada")
    await bot.send_dice(42)


async def test_a_file_of_a_user_can_be_downloaded(telegram, bot):
    file_id = telegram.add_file(b"voice")
    assert (await bot.download(file_id)).read() == b"voice"


async def test_the_errors_are_those_that_aiogram_knows(telegram, bot):
    conditions = telegram.conditions()
    conditions.blocked.add(1)
    conditions.missing.add(2)
    with pytest.raises(TelegramForbiddenError, match="blocked"):
        await bot.send_message(1, "x")
    with pytest.raises(TelegramBadRequest, match="chat not found"):
        await bot.send_message(2, "x")
    await bot.set_webhook("http://127.0.0.1:9/")
    with pytest.raises(TelegramConflictError):
        await bot.get_updates()
    telegram.revoke_token()
    with pytest.raises(TelegramUnauthorizedError):
        await bot.get_me()


async def test_a_second_poller_ends_the_first(telegram, bot):
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_refusal_of(bot.get_updates(timeout=50)))
        await telegram.wait_until(lambda t: len(t.calls) == 1)
        second = group.create_task(bot.get_updates(timeout=50))
        assert isinstance(await first, TelegramConflictError)
        telegram.message("Hello")
        assert len(await second) == 1


async def _refusal_of(call: Awaitable[object]) -> Exception | None:
    try:
        await call
    except Exception as error:
        return error
    return None


# --- the webhook ------------------------------------------------------------------------------------------


async def test_an_update_arrives_as_compact_json_with_the_secret(telegram, webhook):
    telegram.message("Grüße 😀", chat_id=42)
    await telegram.wait_until(everything_taken)
    [request] = webhook.requests
    assert request.headers["X-Telegram-Bot-Api-Secret-Token"] == "s3cret"
    assert request.headers["Content-Type"] == "application/json"
    assert webhook.bodies[0].isascii()
    assert b'"message":{"from":{' in webhook.bodies[0]
    assert webhook.texts() == ["Grüße 😀"]


async def test_the_messages_of_a_chat_arrive_in_order_and_one_at_a_time(telegram, webhook):
    for number in range(20):
        telegram.message(str(number), chat_id=1 + number % 2)
    await telegram.wait_until(everything_taken)
    by_chat = [[int(text) for text in webhook.texts() if int(text) % 2 == chat] for chat in (0, 1)]
    assert by_chat == [list(range(0, 20, 2)), list(range(1, 20, 2))]
    assert set(webhook.in_flight_max.values()) == {1}


async def test_a_failed_update_is_sent_again_until_it_succeeds(telegram, webhook):
    async def fail_four_times(request: web.Request, update: dict) -> web.Response:
        return web.Response(status=503 if len(webhook.updates) < 5 else 200)

    webhook.answer = fail_four_times
    telegram.message("Hello")
    await telegram.wait_until(everything_taken)
    starts = [delivery.started_at for delivery in telegram.deliveries]
    waits = [round(after - before) for before, after in pairwise(starts)]
    assert [delivery.status for delivery in telegram.deliveries] == [503, 503, 503, 503, 200]
    assert waits[0] < 2
    assert all(wait >= expected for wait, expected in zip(waits[1:], (2, 4, 8), strict=True))


async def test_a_webhook_that_does_not_answer_in_a_minute_has_failed(telegram, webhook):
    await _hang_once(telegram, webhook)
    telegram.pass_time(61)
    await telegram.wait_until(everything_taken)
    assert [delivery.status for delivery in telegram.deliveries] == [None, 200]


async def _hang_once(telegram: TelegramStandIn, webhook: Webhook) -> None:
    """Send a message, and return when the bot has begun to do nothing about it."""
    hangs = asyncio.Event()

    async def hang_once(request: web.Request, update: dict) -> web.Response:
        if len(webhook.updates) == 1:
            hangs.set()
            await asyncio.Event().wait()
        return web.Response()

    webhook.answer = hang_once
    telegram.message("Hello")
    await hangs.wait()


async def test_what_was_on_its_way_when_the_stand_in_stopped_is_sent_again_after_its_start(telegram, webhook):
    await _hang_once(telegram, webhook)
    await telegram.stop()
    await telegram.start()
    await telegram.wait_until(everything_taken)
    assert [delivery.status for delivery in telegram.deliveries] == [None, 200]


async def test_an_expiry_is_a_change_that_can_be_waited_for(telegram):
    telegram.add_update(updates.inline_query("x"))
    await telegram.wait_until(lambda t: len(t.dropped()) == 1)


async def test_redirects_are_failures(telegram, webhook):
    async def redirect_once(request: web.Request, update: dict) -> web.Response:
        if len(webhook.updates) == 1:
            raise web.HTTPTemporaryRedirect("/moved")
        return web.Response()

    webhook.answer = redirect_once
    telegram.message("Hello")
    await telegram.wait_until(everything_taken)
    assert [request.path for request in webhook.requests] == ["/hook", "/hook"]


async def test_a_method_in_the_answer_is_called(telegram, webhook):
    async def answer_with_a_method(request: web.Request, update: dict) -> web.Response:
        return web.json_response({"method": "sendMessage", "chat_id": 42, "text": "Directly"})

    webhook.answer = answer_with_a_method
    telegram.message("Hello", chat_id=42)
    await telegram.wait_until(lambda t: len(t.sent) == 1)
    assert telegram.texts(42) == ["Directly"]
    assert telegram.calls[-1].came_from_webhook


@pytest.mark.failure("A7")
async def test_after_a_day_without_a_bot_the_update_is_gone(telegram, bot):
    await bot.set_webhook("http://127.0.0.1:9/")
    telegram.message("Hello")
    await telegram.wait_until(lambda t: len(t.deliveries) >= 2)
    telegram.pass_time(24 * 3600)
    await telegram.wait_until(everything_taken)
    assert [lost.reason for lost in telegram.dropped()] == [DropReason.EXPIRED]


async def test_raw_bytes_arrive_as_they_are(telegram, bot):
    received: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await bot.set_webhook(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    telegram.add_raw(b'{"update_id":1,"message":"\xff\xfe')
    await telegram.wait_until(everything_taken)
    await runner.cleanup()
    assert received == [b'{"update_id":1,"message":"\xff\xfe']


@pytest.mark.failure("A1", "A3")
async def test_a_lost_answer_makes_the_same_update_come_again(telegram, webhook):
    telegram.delivery_fault(DeliveryFault.lose_answer(), times=2)
    telegram.message("Hello")
    await telegram.wait_until(everything_taken)
    assert len({update["update_id"] for update in webhook.updates}) == 1
    assert len(webhook.updates) == 3


@pytest.mark.failure("A2")
async def test_an_update_can_be_sent_twice_at_the_same_time(telegram, webhook):
    both = asyncio.Barrier(2)

    async def meet(request: web.Request, update: dict) -> web.Response:
        await both.wait()
        return web.Response()

    webhook.answer = meet
    telegram.delivery_fault(DeliveryFault.send_copies(1))
    telegram.message("Hello")
    await telegram.wait_until(everything_taken)
    assert len(webhook.updates) == 2


async def test_a_lost_request_is_never_seen_by_the_bot(telegram, webhook):
    telegram.delivery_fault(DeliveryFault.lose_request(), kind="message")
    telegram.message("Hello")
    await telegram.wait_until(everything_taken)
    assert len(webhook.updates) == 1
    assert len(telegram.deliveries) == 2


# --- faults on calls --------------------------------------------------------------------------------------


async def post(http: aiohttp.ClientSession, telegram: TelegramStandIn, text: str = "Hi", chat_id: int = 42):
    url = f"{telegram.url}/bot{telegram.token}/sendMessage"
    async with http.post(url, json={"chat_id": chat_id, "text": text}) as response:
        return response.status, await response.read()


@pytest.mark.failure("G3", "G4")
async def test_commit_then_close_has_sent_and_says_nothing(telegram, http):
    telegram.fault(Fault.commit_then_close(), method="sendMessage")
    with pytest.raises(aiohttp.ClientError):
        await post(http, telegram)
    assert len(telegram.sent) == 1
    await post(http, telegram)
    assert [message.text for message in telegram.repeated()] == ["Hi"]
    assert [(call.fault, call.status, call.is_committed) for call in telegram.calls] == [
        ("commit_then_close", None, True),
        (None, 200, True),
    ]


@pytest.mark.failure("G4")
async def test_commit_then_stall_has_sent_before_the_answer_comes(telegram, http):
    telegram.fault(Fault.commit_then_stall(3600))
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(post(http, telegram))
        await telegram.wait_until(lambda t: len(t.sent) == 1)
        assert not answering.done()
        telegram.pass_time(3600)
    assert answering.result()[0] == 200


async def test_a_delayed_call_is_committed_although_its_caller_left(telegram, http):
    telegram.fault(Fault.delay(600))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await post(http, telegram)
    assert telegram.sent == []
    telegram.pass_time(600)
    await telegram.wait_until(lambda t: len(t.sent) == 1)


@pytest.mark.parametrize("fault", [Fault.close_before_commit(), Fault.stall_before_commit(1)])
async def test_closed_before_commit_has_sent_nothing(telegram, http, fault):
    telegram.fault(fault)
    with pytest.raises(aiohttp.ClientError):
        await post(http, telegram)
    assert telegram.sent == []


@pytest.mark.failure("G5")
async def test_a_scripted_429_says_how_long_to_wait(telegram, bot):
    telegram.fault(Fault.too_many_requests(3600), chat_id=42)
    with pytest.raises(TelegramRetryAfter) as refused:
        await bot.send_message(42, "x")
    assert refused.value.retry_after == 3600
    await bot.send_message(42, "x")


@pytest.mark.failure("G6", "G15")
@pytest.mark.parametrize(
    ("fault", "status", "is_json", "sent_count"),
    [
        (Fault.server_error(503), 503, True, 0),
        (Fault.html_body(), 502, False, 0),
        (Fault.html_body(502, commits=True), 502, False, 1),
        (Fault.truncated_json(), 200, False, 1),
        (Fault.truncated_json(commits=False), 200, False, 0),
        (Fault.wrong_body(), 200, True, 0),
        (Fault.wrong_body(b"<html>Log in to this WiFi</html>", content_type="text/html"), 200, False, 0),
    ],
)
async def test_answers_that_cannot_be_trusted(telegram, http, fault, status, is_json, sent_count):
    telegram.fault(fault)
    got_status, body = await post(http, telegram)
    assert got_status == status
    assert len(telegram.sent) == sent_count
    assert _is_json(body) == is_json
    assert not (is_json and json.loads(body).get("ok"))


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


async def test_a_fault_strikes_the_call_that_it_was_scripted_for(telegram, http):
    telegram.fault(Fault.server_error(), method="sendMessage", chat_id=42, call=2, times=2)
    telegram.fault(Fault.blocked(), when=lambda call: call.params["text"] == "rude")
    statuses = [(await post(http, telegram, text))[0] for text in ("1", "2", "3", "rude", "5")]
    assert statuses == [200, 500, 500, 403, 200]
    assert (await post(http, telegram, chat_id=43))[0] == 200


async def test_faults_on_the_same_calls_strike_one_after_the_other(telegram, http):
    telegram.fault(Fault.server_error(500))
    telegram.fault(Fault.server_error(503))
    assert [(await post(http, telegram))[0] for _ in range(3)] == [500, 503, 200]


@pytest.mark.failure("G14")
async def test_unreachable_means_that_every_connection_is_closed(telegram, http):
    telegram.script.is_unreachable = True
    with pytest.raises(aiohttp.ClientError):
        await post(http, telegram)
    telegram.script.is_unreachable = False
    assert (await post(http, telegram))[0] == 200


@pytest.mark.failure("G14")
async def test_a_stopped_stand_in_refuses_connections_and_goes_on_where_it_was(http):
    telegram = TelegramStandIn()
    await telegram.start()
    url = telegram.url
    telegram.message("Hello")
    await telegram.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(http, telegram)
    await telegram.start()
    assert telegram.url == url
    assert (await post(http, telegram))[0] == 200
    assert len(telegram.pending()) == 1
    await telegram.stop()


async def test_an_unknown_token_is_401_and_a_malformed_one_404(telegram, http):
    statuses = []
    for token in ("8:other", "nonsense"):
        async with http.get(f"{telegram.url}/bot{token}/getMe") as response:
            statuses.append(response.status)
    assert statuses == [401, 404]


async def test_two_bots_do_not_see_each_other(telegram, http):
    other = telegram.add_bot("8:other")
    telegram.message("for the first")
    telegram.message("for the second", bot_id=8)
    assert len(telegram.pending()) == len(telegram.pending(8)) == 1
    async with http.get(f"{telegram.url}/bot{other.token}/getUpdates") as response:
        [update] = (await response.json())["result"]
    assert update["message"]["text"] == "for the second"


@pytest.mark.parametrize("how", ["json", "data", "params"])
async def test_json_forms_and_query_strings_mean_the_same(telegram, http, how):
    reply = json.dumps({"message_id": 9, "allow_sending_without_reply": True})
    values = {"chat_id": "42", "text": "Hi", "reply_parameters": reply}
    async with http.post(f"{telegram.url}/bot{telegram.token}/sendMessage", **{how: values}) as response:
        assert response.status == 200
    assert telegram.sent[0].chat_id == 42


# --- from outside -----------------------------------------------------------------------------------------


async def test_everything_can_be_done_from_outside(telegram, http):
    async def tell(path: str, **body: object) -> object:
        async with http.post(f"{telegram.url}/_standin/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def ask(path: str) -> object:
        async with http.get(f"{telegram.url}/_standin{path}") as response:
            return await response.json()

    [taken] = await tell("updates", text="Hello", chat_id=42)
    assert taken["is_kept"]
    await tell("updates", kind="callback_query", data="yes")
    await tell("updates", update={"update_id": 7, "hologram": {}})
    assert len(await tell("updates", kind="album")) == 3
    assert len(await ask("/pending")) == 6
    await tell("faults", fault="commit_then_close", method="sendMessage")
    await tell("faults", fault="lose_answer", on="deliveries", times=3)
    with pytest.raises(aiohttp.ClientError):
        await post(http, telegram)
    await post(http, telegram)
    assert [message["text"] for message in await ask("/sent")] == ["Hi", "Hi"]
    assert [call["is_committed"] for call in await ask("/calls?from=1")] == [True]
    assert (await ask(""))["repeated_count"] == 1
    await tell("conditions", blocked=[42], latency_seconds=0.1)
    assert (await post(http, telegram))[0] == 403
    await tell("time", pass_seconds=24 * 3600 + 1)
    assert await ask("/pending") == []
    assert len(await ask("/dropped")) == 6
    await tell("bots", token="8:other")
    await tell("reset")
    assert (await ask(""))["sent_count"] == 0


async def test_raw_bytes_can_be_given_from_outside(telegram, http):
    headers = {"Content-Type": "application/octet-stream"}
    async with http.post(f"{telegram.url}/_standin/updates", data=b"\xff", headers=headers) as response:
        assert response.status == 200
    assert [update.body for update in telegram.pending()] == [b"\xff"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("updates", b"{"),
        ("updates", b'{"kind": "gossip"}'),
        ("updates", b'{"bot_id": 99}'),
        ("faults", b'{"fault": "gremlins"}'),
        ("bots", b'{"token": "nonsense"}'),
    ],
)
async def test_a_request_that_makes_no_sense_is_answered_with_a_sentence(telegram, http, path, body):
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{telegram.url}/_standin/{path}", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]


async def test_the_fixture_gives_a_running_stand_in(telegram_standin, http):  # noqa: F811
    assert (await post(http, telegram_standin))[0] == 200


async def test_the_command_says_what_it_does(http):
    said: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run_standin(port=0, say=said.put_nowait))
        welcome = await said.get()
        url = welcome.partition("RISE_TELEGRAM_API_BASE=")[2].split()[0]
        async with http.post(f"{url}/bot9:any/sendMessage", json={"chat_id": 42, "text": "Hi"}) as response:
            assert response.status == 200
        assert await said.get() == "sendMessage to 42: 200, committed"
        running.cancel()


async def test_waiting_for_what_never_comes_ends(telegram):
    with pytest.raises(TimeoutError):
        await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=0.05)

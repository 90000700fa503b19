"""A person is told once that something began and once that it is over; nothing waits for the telling."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from rise.channels.telegram import TelegramChannel
from rise.errors import ChannelUnavailable, Rejected
from rise.runtime.alert_posts import PAUSES_SECONDS, WAITING_MAX, AlertPosts, SignedWebhook, TelegramChat, words
from rise.runtime.alerts import AlertMessage, Alerts
from rise.service import Signal
from rise.telemetry import alert_raised
from rise.testing.clock import ManualClock
from rise.testing.telegram import Fault, TelegramStandIn

SECRET = "a-secret-of-the-tests"
MESSAGE = AlertMessage(alert="disk", state="raised", summary="the disk is full", at="2025-11-08T07:30:00.000Z")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def told() -> list[AlertMessage]:
    return []


@pytest.fixture
def alerts(clock: ManualClock, told: list[AlertMessage]) -> Alerts:
    return Alerts(clock, told.append, 300.0)


def states(told: list[AlertMessage]) -> list[str]:
    return [message.state for message in told]


@pytest.mark.req("SUP-3", "OPS-3")
def test_who_looks_sees_what_is_raised_since_when_and_what_it_says_by_now(alerts: Alerts, clock: ManualClock) -> None:
    alerts.follow("disk", True, summary="1 MB is free", remedy="make room")
    began = clock.now()
    clock.advance(30)
    alerts.follow("disk", True, summary="0 MB is free", remedy="make room")
    alerts.follow("worker", True, summary="it is gone", after_seconds=60)
    [shown] = alerts.book.all()
    assert (shown.alert, shown.since, shown.summary, shown.remedy) == ("disk", began, "0 MB is free", "make room")
    alerts.follow("disk", False)
    assert alerts.book.all() == []


# --- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("SUP-3")
@pytest.mark.failure("M10")
def test_what_lasts_is_told_once_and_once_more_when_it_is_over(alerts: Alerts, told: list[AlertMessage]) -> None:
    with capture_logs() as logged:
        for is_raised in (False, True, True, True, False, False):
            alerts.follow("disk", is_raised, summary="the disk is full", free_bytes=0)
    assert states(told) == ["raised", "resolved"]
    assert (told[0].alert, told[0].summary, told[0].details) == ("disk", "the disk is full", {"free_bytes": 0})
    assert [entry["event"] for entry in logged] == ["alert.raised", "alert.resolved"]


@pytest.mark.req("SUP-3")
def test_it_is_a_metric_while_it_lasts(alerts: Alerts) -> None:
    seen = []
    for is_raised in (True, True, False):
        alerts.follow("measured", is_raised)
        seen.append(alert_raised.labels("measured")._value.get())
    assert seen == [1, 1, 0]


@pytest.mark.req("SUP-3")
@pytest.mark.failure("M10", "I11")
def test_what_comes_and_goes_is_told_of_once_in_the_quiet_time(
    alerts: Alerts, told: list[AlertMessage], clock: ManualClock
) -> None:
    for _ in range(10):
        alerts.follow("link", True)
        clock.advance(5)
        alerts.follow("link", False)
        clock.advance(5)
    assert states(told) == ["raised", "resolved"]
    clock.advance(300)
    alerts.follow("link", True)
    assert states(told) == ["raised", "resolved", "raised"]
    assert told[-1].untold == 9


@pytest.mark.req("SUP-3")
def test_what_begins_in_the_quiet_time_and_stays_is_told_when_that_is_over(
    alerts: Alerts, told: list[AlertMessage], clock: ManualClock
) -> None:
    for is_raised in (True, False, True):
        alerts.follow("link", is_raised)
    assert states(told) == ["raised", "resolved"]
    clock.advance(300)
    alerts.follow("link", True)
    alerts.follow("link", False)
    assert states(told) == ["raised", "resolved", "raised", "resolved"]


@pytest.mark.req("SUP-3")
def test_what_passes_soon_alerts_nobody(alerts: Alerts, told: list[AlertMessage], clock: ManualClock) -> None:
    for seconds, is_raised in ((9, True), (9, False), (9, True), (1, True)):
        alerts.follow("worker", is_raised, after_seconds=10)
        clock.advance(seconds)
    assert told == []
    alerts.follow("worker", True, after_seconds=10)
    assert states(told) == ["raised"]


# --- where --------------------------------------------------------------------------------------------------------


class Receiver:
    """Somebody else's server."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.heard = Signal()

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        self.heard.set()
        return web.Response(status=self.answers.pop(0) if self.answers else 200, headers={"Location": "/elsewhere"})

    async def hears(self, count: int) -> None:
        while len(self.requests) < count:
            assert await self.heard.wait(10)


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{anything:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}/alerts?key=hidden"
    finally:
        await runner.cleanup()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def webhook(receiver: Receiver, clock: ManualClock) -> AsyncIterator[SignedWebhook]:
    async with listening(receiver) as url:
        webhook = SignedWebhook(url, SECRET, clock)
        yield webhook
        await webhook.close()


@pytest.mark.req("SUP-3")
async def test_the_receiver_can_tell_that_it_is_from_here_and_when(
    webhook: SignedWebhook, receiver: Receiver, clock: ManualClock
) -> None:
    await webhook.send(MESSAGE)
    [(headers, body)] = receiver.requests
    assert json.loads(body)["summary"] == "the disk is full"
    assert int(headers["X-Rise-Timestamp"]) == int(clock.now().timestamp())
    signed = headers["X-Rise-Timestamp"].encode() + b"." + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Rise-Signature"] == f"sha256={expected}"


@pytest.mark.req("SUP-3", "SEC-2")
@pytest.mark.parametrize("status", [500, 302, 404])
async def test_anything_but_success_is_tried_again_and_no_redirect_is_followed(
    webhook: SignedWebhook, receiver: Receiver, status: int
) -> None:
    receiver.answers = [status]
    with pytest.raises(ChannelUnavailable) as refusal:
        await webhook.send(MESSAGE)
    assert len(receiver.requests) == 1
    assert "hidden" not in refusal.value.public_message


@pytest.mark.req("SUP-3", "SEC-2")
async def test_an_address_where_nobody_listens_is_said_without_its_key(clock: ManualClock) -> None:
    webhook = SignedWebhook("http://127.0.0.1:1/?key=hidden", SECRET, clock)
    with pytest.raises(ChannelUnavailable) as refusal:
        await webhook.send(MESSAGE)
    assert refusal.value.public_message == "the webhook does not answer: the connection is refused"
    await webhook.close()


@pytest.mark.req("SUP-3")
async def test_it_is_told_again_until_it_is_heard_and_in_order(
    webhook: SignedWebhook, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.answers = [503, 503]
    posts = AlertPosts([webhook], clock)
    await posts.start()
    posts.tell(MESSAGE)
    posts.tell(AlertMessage(alert="disk", state="resolved", summary="", at=MESSAGE.at))
    for pause in PAUSES_SECONDS[:2]:
        await clock.until_sleeping()
        clock.advance(pause)
    await receiver.hears(4)
    await posts.stop()
    assert [json.loads(body)["state"] for _, body in receiver.requests] == ["raised"] * 3 + ["resolved"]


class Deaf:
    """Never takes anything."""

    name = "deaf"

    def __init__(self) -> None:
        self.asked = 0

    async def send(self, message: AlertMessage) -> None:
        self.asked += 1
        raise ChannelUnavailable("deaf")

    async def close(self) -> None:
        pass


@pytest.mark.req("SUP-3")
async def test_what_nobody_hears_is_given_up_and_what_waits_is_bounded(clock: ManualClock) -> None:
    deaf = Deaf()
    posts = AlertPosts([deaf], clock)
    with capture_logs() as logged:
        await posts.start()
        for _ in range(WAITING_MAX + 3):  # returns at once, whatever becomes of it
            posts.tell(MESSAGE)
        for pause in PAUSES_SECONDS:
            await clock.until_sleeping()
            clock.advance(pause)
        await clock.until_sleeping()
        await posts.stop()
    given_up = [entry["why"] for entry in logged if entry["event"] == "alert.untold"]
    assert given_up == ["too many wait"] * 3 + ["ChannelUnavailable: deaf"]
    assert deaf.asked == len(PAUSES_SECONDS) + 2


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as telegram:
        yield telegram


@pytest.fixture
async def chat(telegram: TelegramStandIn, clock: ManualClock) -> AsyncIterator[TelegramChat]:
    channel = TelegramChannel([telegram.token], clock=clock, api_base=telegram.url, timeout_seconds=5)
    yield TelegramChat(channel, str(telegram.bot_id), "42")
    await channel.close()


@pytest.mark.req("SUP-3")
async def test_a_chat_is_told_in_words(telegram: TelegramStandIn, chat: TelegramChat) -> None:
    await chat.send(MESSAGE)
    assert telegram.texts(42) == ["Alert: the disk is full"]


@pytest.mark.req("SUP-3")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.too_many_requests(7), ChannelUnavailable),
        (Fault.unauthorized(), ChannelUnavailable),
        (Fault.blocked(), Rejected),
        (Fault.server_error(commits=True), None),
    ],
)
async def test_a_chat_is_told_again_only_where_it_has_certainly_not_heard(
    telegram: TelegramStandIn, chat: TelegramChat, fault: Any, error: type[Exception] | None
) -> None:
    telegram.fault(fault, method="sendMessage")
    if error is None:
        await chat.send(MESSAGE)
    else:
        with pytest.raises(error):
            await chat.send(MESSAGE)


def test_words_say_what_was_left_out_and_what_is_over() -> None:
    raised = AlertMessage(
        alert="link", state="raised", summary="the link is down", at="", details={"peer": "a"}, untold=9
    )
    assert words(raised) == "Alert: the link is down\npeer: a\n(raised 9 times more since the last message)"
    assert words(AlertMessage(alert="link", state="resolved", summary="", at="")) == "Resolved: link"

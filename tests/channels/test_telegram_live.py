"""What Rise relies on of the Bot API, asked of the stand-in, and of the real one if there is a bot to ask with.

`RISE_TEST_TELEGRAM_TOKEN` names a bot that nobody else uses meanwhile; nothing about it is changed. With
`RISE_TEST_TELEGRAM_CHAT`, the number of a chat that it may write to, two messages are sent there. Without a token
only the stand-in is asked: that it answers like the real one is then an older run's word.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from rise.channels.port import AccountDown, Refused, Succeeded, Unreadable
from rise.channels.telegram import TelegramChannel
from rise.clock import SystemClock
from rise.envelope import Call
from rise.testing.telegram import SendRates, TelegramStandIn

pytestmark = pytest.mark.req("TST-5")

TOKEN = os.environ.get("RISE_TEST_TELEGRAM_TOKEN")
CHAT = os.environ.get("RISE_TEST_TELEGRAM_CHAT")
REAL = "https://api.telegram.org"
NOBODY = "1"
"""No chat has this number."""
STAND_INS_TOKEN = "7000000001:a-token-of-the-stand-in"


class Api(NamedTuple):
    base: str
    token: str
    chat: str | None

    @property
    def account(self) -> str:
        return self.token.partition(":")[0]

    def channel(self, token: str | None = None) -> TelegramChannel:
        return TelegramChannel([token or self.token], clock=SystemClock(), api_base=self.base)


@pytest.fixture(params=["stand-in", *(["telegram"] if TOKEN else [])])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    if request.param == "telegram":
        yield Api(REAL, str(TOKEN), CHAT)
        return
    async with TelegramStandIn(STAND_INS_TOKEN) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        telegram.conditions().missing.add(int(NOBODY))
        yield Api(telegram.url, STAND_INS_TOKEN, "42")


@pytest.fixture
async def channel(api: Api) -> AsyncIterator[TelegramChannel]:
    channel = api.channel()
    yield channel
    await channel.close()


async def test_the_bot_is_the_one_that_its_token_names(api: Api, channel: TelegramChannel):
    me = await channel.get_me(api.account)
    assert (str(me["id"]), me["is_bot"]) == (api.account, True)


async def test_a_token_that_is_none_takes_the_account_down_and_refuses_no_message(api: Api):
    channel = api.channel(f"{api.account}:{'A' * 35}")
    try:
        outcome = await channel.send(api.account, NOBODY, Call("sendMessage", {"text": "Hello"}, "Hello"))
    finally:
        await channel.close()
    assert isinstance(outcome, AccountDown)


async def test_a_chat_that_is_not_there_is_gone(api: Api, channel: TelegramChannel):
    outcome = await channel.send(api.account, NOBODY, Call("sendMessage", {"text": "Hello"}, "Hello"))
    assert isinstance(outcome, Refused)
    assert outcome.chat_gone


async def test_what_telegram_says_of_the_webhook_can_be_read(api: Api, channel: TelegramChannel):
    assert (await channel.webhook_info(api.account)).pending_update_count >= 0


async def test_a_message_is_sent_and_markup_that_cannot_be_read_is_said_to_be(api: Api, channel: TelegramChannel):
    if api.chat is None:
        return  # nobody has said where to
    sent = await channel.send(api.account, api.chat, Call("sendMessage", {"text": "Rise, a test"}, "Rise, a test"))
    assert isinstance(sent, Succeeded)
    assert str(sent.platform_ref).isdigit()
    text = "*Rise, a test"
    marked = Call("sendMessage", {"text": text, "parse_mode": "MarkdownV2"}, text)
    outcome = await channel.send(api.account, api.chat, marked)
    assert isinstance(outcome, Unreadable)
    assert "parse_mode" not in outcome.plain.params
    assert isinstance(await channel.send(api.account, api.chat, outcome.plain), Succeeded)

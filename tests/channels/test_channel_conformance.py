"""Every channel keeps every promise of the port; Telegram, against a server that follows the Bot API's rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from rise.channels.http import HttpChannel
from rise.channels.port import Incoming
from rise.channels.telegram import TelegramChannel
from rise.channels.webchat import WebChatChannel
from rise.clock import SystemClock
from rise.envelope import Call, Effect
from rise.testing.conformance.channel import ChannelConformance, PushChannelConformance
from rise.testing.telegram import Fault, QueuedUpdate, SendRates, TelegramStandIn

ONLY_ON_A_PLATFORM = [
    Effect(kind="edit", text="Hello", message_id="9"),
    Effect(kind="call", method="sendDice"),
    Effect(kind="answer_callback", text="Hello"),
]


class HttpStage:
    def __init__(self) -> None:
        self.channel = HttpChannel()
        body = json.dumps({"userText": "Hi", "metadata": {"chat_id": 42}}).encode()
        asked = self.channel.read_apply(body, principal="olga", key="k", request_id="r", trace_id=None)
        self.incoming = asked.incoming
        self.unsayable = ONLY_ON_A_PLATFORM


class WebChatStage:
    def __init__(self) -> None:
        self.channel = WebChatChannel("a secret of the tests")
        self.incoming = self.channel.read_message(b'{"clientMessageId": "m", "text": "Hi"}', "w_1")
        self.unsayable = ONLY_ON_A_PLATFORM


class TelegramStage:
    def __init__(self, telegram: TelegramStandIn) -> None:
        self.telegram = telegram
        self.clock = SystemClock()
        self.channel = TelegramChannel([telegram.token], clock=self.clock, api_base=telegram.url)
        self.incoming = self.read(telegram.message("Hi", chat_id=42))
        self.taps = [self.read(telegram.callback_query("yes", chat_id=42))]
        self.unsayable = [Effect(kind="answer_callback", text="Hello"), Effect(kind="call", method="../getMe")]
        self.calls = [
            Call("sendPhoto", {"photo": "f", "caption": "Hello"}, "Hello"),
            Call("sendSticker", {"sticker": "f"}),
            Call("sendMessage", {"text": ">Hello", "parse_mode": "MarkdownV2"}, ">Hello"),
            Call("sendMessage", {"text": "x" * 4096}, "x" * 4096),
            Call("editMessageText", {"message_id": 9, "text": "Hello"}, "Hello"),
            Call("answerCallbackQuery", {"callback_query_id": "c1", "text": "Hello"}, "Hello", is_urgent=True),
        ]

    def read(self, update: QueuedUpdate) -> Incoming:
        account = str(self.telegram.bot_id)
        return self.channel.read_update(update.body, account=account, webhook=True, now=self.clock.now())

    def seen(self) -> list[str]:
        return self.telegram.texts(42)

    async def hang_up_on_the_next_call(self) -> None:
        self.telegram.fault(Fault.commit_then_close())

    async def go_away(self) -> None:
        await self.telegram.stop()


@pytest.mark.req("TST-3")
class TestHttpChannel(ChannelConformance):
    @pytest.fixture
    def stage(self) -> HttpStage:
        return HttpStage()


@pytest.mark.req("TST-3")
class TestWebChatChannel(ChannelConformance):
    @pytest.fixture
    def stage(self) -> WebChatStage:
        return WebChatStage()


@pytest.mark.req("TST-3")
class TestTelegramChannel(PushChannelConformance):
    @pytest.fixture
    async def stage(self) -> AsyncIterator[TelegramStage]:
        async with TelegramStandIn() as telegram:
            telegram.change_send_rates(SendRates.unlimited())
            stage = TelegramStage(telegram)
            yield stage
            await stage.channel.close()

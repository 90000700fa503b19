"""Several bots: a token that is bound makes its bot served, while everything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.channels.telegram import TelegramChannel
from rise.definitions.records import BindingRecord, ChannelOwn
from rise.runtime.bots import Bot, BotSettings, bots_of, delivery_url, sealed_tokens
from rise.testing.clock import ManualClock
from rise.testing.installation import ADMIN_TOKEN, Installation
from rise.testing.telegram import TelegramStandIn

BOT = "rise.testing.faults.bot"
SECOND = "7000000009:AAE-the-second-bot-of-the-tests-01234"
SECOND_ID = 7000000009

pytestmark = pytest.mark.req("TGM-1")


def bound(account: str, *, version: int = 1, channel: str = "telegram", **own: Any) -> BindingRecord:
    return BindingRecord(
        channel=channel, account=account, workflow_id=f"wf_{version}", version=version, own=ChannelOwn(**own)
    )


def known(bindings: list[BindingRecord], settings: BotSettings) -> list[Bot]:
    return list(bots_of(bindings, settings, has_token=lambda account: account != "nobody").values())


# --- who there is -----------------------------------------------------------------------------------------


def test_without_bindings_there_is_the_bot_of_the_settings():
    assert known([], BotSettings()) == []
    assert known([], BotSettings("7")) == [Bot("7", None)]
    pushed = BotSettings("7", "https://bot.example/", is_polling=False)
    assert known([], pushed) == [Bot("7", "https://bot.example/telegram/webhook/7")]


def test_a_binding_says_how_its_bot_is_reached():
    bindings = [
        bound("8", webhook_url="https://new.example"),
        bound("8", version=2, webhook_url="https://new.example"),
        bound("9", use_polling=True),
        bound("nobody"),
        bound("default", channel="http", use_polling=True),
    ]
    pushed = BotSettings("7", "https://bot.example", is_polling=False)
    assert known(bindings, pushed) == [
        Bot("7", "https://bot.example/telegram/webhook/7"),
        Bot("8", "https://new.example/telegram/webhook/8"),
        Bot("9", None),
    ]
    assert [(bot.account, bot.webhook_url) for bot in known(bindings, BotSettings())] == [
        ("8", "https://new.example/telegram/webhook/8"),
        ("9", None),
    ]


def test_an_address_that_names_the_path_is_taken_as_it_is():
    assert (
        delivery_url("https://bot.example/telegram/webhook/8?x=1", "8") == "https://bot.example/telegram/webhook/8?x=1"
    )
    assert delivery_url("https://bot.example/behind", "8") == "https://bot.example/behind/telegram/webhook/8"
    assert delivery_url("https://bot.example/telegram/webhook", "8") == "https://bot.example/telegram/webhook/8"
    assert delivery_url("https://bot.example/?x=1", "8") == "https://bot.example/telegram/webhook/8?x=1"
    assert delivery_url(None, "8") is None


def test_the_tokens_are_those_of_telegrams_accounts():
    bindings = [bound("8", bot_token="c"), bound("9"), bound("default", channel="http", bot_token="x")]
    assert sealed_tokens(bindings) == {"8": "c"}


async def test_a_channel_serves_the_bots_whose_tokens_it_knows():
    channel = TelegramChannel([], clock=ManualClock())
    assert (channel.accounts, channel.serves("8")) == ([], False)
    channel.use_token("8:token")
    assert channel.serves("8")


# --- while it runs ----------------------------------------------------------------------------------------


@pytest.fixture
def telegram() -> Iterator[TelegramStandIn]:
    telegram = TelegramStandIn()
    telegram.add_bot(SECOND)
    yield telegram


async def bind(rise: Installation, **config: Any) -> list[str]:
    """As soon as the worker has said that there is such a workflow."""
    body = {"channel": "telegram", "enabled": True, "config": {"botToken": SECOND} | config}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}) as session:
        while True:
            async with session.put(f"{rise.url}/api/channel-bindings/wf_echo", json=body) as response:
                answered = await response.json()
            if response.status != 503:
                assert response.status == 200, answered
                return list(answered["meta"]["warnings"])
            await asyncio.sleep(float(response.headers["Retry-After"]))


def said_by(telegram: TelegramStandIn, bot_id: int) -> list[str]:
    return [message.text for message in telegram.sent if message.bot_id == bot_id]


@pytest.mark.req("BND-2", "BND-4")
async def test_a_bot_that_is_bound_is_polled_and_answers_without_a_restart(tmp_path: Path, telegram: TelegramStandIn):
    async with telegram:
        settings = {"telegram_token": telegram.token, "telegram_api_base": telegram.url}
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            telegram.message("first", chat_id=5)
            await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=20)
            assert await bind(rise) == []
            telegram.message("second", chat_id=5, bot_id=SECOND_ID)
            telegram.message("third", chat_id=5)
            await telegram.wait_until(lambda t: len(t.sent) == 3, timeout_seconds=20)
            assert said_by(telegram, telegram.bot_id) == ["FIRST", "THIRD"]
            assert said_by(telegram, SECOND_ID) == ["SECOND"]
            await rise.stop()
            telegram.message("fourth", chat_id=5, bot_id=SECOND_ID)
            await rise.start()
            await telegram.wait_until(lambda t: len(t.sent) == 4, timeout_seconds=20)
            assert SECOND.partition(":")[2] not in rise.log()
    assert said_by(telegram, SECOND_ID) == ["SECOND", "FOURTH"]


@pytest.mark.req("BND-2")
async def test_a_bot_that_is_bound_has_its_webhook_set_with_a_secret_of_its_own(
    tmp_path: Path, telegram: TelegramStandIn
):
    async with telegram:
        settings = {"telegram_token": telegram.token, "telegram_api_base": telegram.url}
        async with Installation(tmp_path / "data", app=BOT, **settings) as rise:
            assert await bind(rise, webhookUrl=rise.url) == []
            telegram.message("pushed", chat_id=5, bot_id=SECOND_ID)
            telegram.message("polled", chat_id=5)
            await telegram.wait_until(lambda t: len(t.sent) == 2, timeout_seconds=20)
            assert said_by(telegram, SECOND_ID) == ["PUSHED"]
            [called] = [call for call in telegram.calls if call.method.lower() == "setwebhook"]
            assert called.params["url"] == f"{rise.url}/telegram/webhook/{SECOND_ID}"
            async with (
                aiohttp.ClientSession(headers={"X-Telegram-Bot-Api-Secret-Token": "guessed"}) as session,
                session.post(f"{rise.url}/telegram/webhook/{SECOND_ID}", json={"update_id": 1}) as response,
            ):
                assert response.status == 401


@pytest.mark.req("BND-2")
async def test_the_first_bot_of_an_installation_is_served_from_its_next_start_on_and_its_owner_told_so(
    tmp_path: Path, telegram: TelegramStandIn
):
    async with telegram, Installation(tmp_path / "data", app=BOT, telegram_api_base=telegram.url) as rise:
        [warning] = await bind(rise)
        assert "from the next start" in warning
        telegram.message("hello", chat_id=5, bot_id=SECOND_ID)
        await rise.stop()
        await rise.start()
        await telegram.wait_until(lambda t: len(t.sent) == 1, timeout_seconds=20)
    assert said_by(telegram, SECOND_ID) == ["HELLO"]

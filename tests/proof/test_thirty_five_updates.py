"""35 deliveries, 30 messages: what a platform that repeats and reorders itself must not be able to break."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rise.runtime.assembly.house import build
from rise.settings import load_settings
from rise.testing.installation import Installation
from rise.testing.telegram import SendRates, TelegramStandIn

BOT = "rise.testing.faults.bot"
SECRET = "a-webhook-secret-of-the-tests"
CHATS = 4


def thirty_five_updates() -> list[dict[str, Any]]:
    """30 unique in 4 chats, 3 of them after a later one of their chat, and 5 repeated."""
    unique = [
        {
            "update_id": 1000 + n,
            "message": {
                "message_id": n,
                "date": 2_000_000_000 + n,
                "chat": {"id": 42 + n % CHATS, "type": "private"},
                "from": {"id": 42 + n % CHATS, "is_bot": False, "first_name": "Anna"},
                "text": f"message {n:02}",
            },
        }
        for n in range(30)
    ]
    sent = list(unique)
    for n in (5, 13, 21):  # each changes places with the one its chat sends next
        sent[n], sent[n + CHATS] = sent[n + CHATS], sent[n]
    return sent + [unique[n] for n in (0, 7, 14, 22, 29)]


def installation(tmp_path: Path, telegram: TelegramStandIn, **settings: object) -> Installation:
    return Installation(
        tmp_path / "data",
        app=BOT,
        telegram_token=telegram.token,
        telegram_secret=SECRET,
        telegram_api_base=telegram.url,
        telegram_rate_chat=1000,
        telegram_rate_bot=1000,
        **settings,
    )


async def post_all(rise: Installation, updates: list[dict[str, Any]]) -> list[int]:
    async with aiohttp.ClientSession(headers={"X-Telegram-Bot-Api-Secret-Token": SECRET}) as session:
        statuses = []
        for update in updates:
            async with session.post(f"{rise.url}/telegram/webhook", json=update) as response:
                assert await response.read() == b""
                statuses.append(response.status)
        return statuses


async def stats(rise: Installation) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(headers=rise.headers) as session,
        session.get(f"{rise.url}/internal/tasks/stats") as response,
    ):
        return dict((await response.json())["data"])


def replies_by_chat(telegram: TelegramStandIn) -> dict[str, list[str]]:
    said: dict[str, list[str]] = defaultdict(list)
    for message in telegram.sent:
        said[str(message.chat_id)].append(message.text or "")
    return said


@pytest.mark.req("ENV-3", "ENV-6", "QUE-2", "TGM-1", "TGM-5")
@pytest.mark.failure("A1")
async def test_thirty_five_webhook_posts_are_thirty_tasks_and_thirty_replies(tmp_path: Path) -> None:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        async with installation(tmp_path, telegram, public_url="http://127.0.0.1:1") as rise:
            await rise.until_capability("telegram_webhook")
            assert set(await post_all(rise, thirty_five_updates())) == {200}
            await telegram.wait_until(lambda t: len(t.sent) == 30, timeout_seconds=30)
            first = await stats(rise)
            assert set(await post_all(rise, thirty_five_updates())) == {200}
            code, report = await rise.command("audit", "--json")
            second = await stats(rise)
        assert code == 0, report
        assert len(telegram.sent) == 30
        assert first["accepted"] == second["accepted"] == 30
        assert first["duplicates"] == 5
        assert second["duplicates"] == 40
        assert first["outOfOrder"] >= 1
        for said in replies_by_chat(telegram).values():
            assert sorted(said) == sorted(set(said))


@pytest.mark.req("TGM-1", "ENV-6", "QUE-2")
async def test_the_same_updates_by_polling_are_thirty_tasks_in_each_chats_order(tmp_path: Path) -> None:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        for update in sorted(thirty_five_updates(), key=lambda update: update["update_id"]):
            telegram.add_update(update)
        async with installation(tmp_path, telegram) as rise:
            await telegram.wait_until(lambda t: len(t.sent) == 30, timeout_seconds=30)
            await telegram.wait_until(lambda t: not t.pending(), timeout_seconds=30)
            code, report = await rise.command("audit", "--json")
        assert code == 0, report
        for said in replies_by_chat(telegram).values():
            assert said == sorted(said), "each chat is answered in its own order"


@pytest.mark.req("QUE-2", "ENV-6")
async def test_what_waits_is_answered_in_the_platforms_order_however_it_came(tmp_path: Path) -> None:
    """Accepted while nothing works; the order of answers is then the platform's, not that of arrival."""
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        rise = installation(tmp_path, telegram, telegram_mode="webhook", public_url="http://127.0.0.1:1")
        settings = load_settings(
            data_dir=rise.data_dir, telegram_token=telegram.token, telegram_api_base=telegram.url, _env_file=None
        )
        house = build(settings)
        await house.stores.open()
        channel, account = house.channels.telegram, house.channels.telegram_account
        assert channel is not None and account is not None
        for update in thirty_five_updates():
            body = json.dumps(update).encode()
            await house.intake.accept(channel.read_update(body, account=account, webhook=False, now=house.clock.now()))
        await channel.close()
        await house.stores.close()
        async with rise:
            await telegram.wait_until(lambda t: len(t.sent) == 30, timeout_seconds=30)
        for said in replies_by_chat(telegram).values():
            assert said == sorted(said)

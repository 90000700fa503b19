"""Telegram is told where to deliver, is asked whether it does, and nobody fights over a bot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from rise.capabilities import CapabilityRegistry, CapabilityState, CapabilityStatus
from rise.channels.telegram import TelegramChannel
from rise.runtime.directory import DataDirectory
from rise.runtime.registration import WEBHOOK, TelegramRegistration
from rise.testing.clock import ManualClock
from rise.testing.installation import Installation
from rise.testing.telegram import TelegramStandIn
from rise.testing.telegram.rules import CallParams

URL = "http://127.0.0.1:1/telegram/webhook"
SECRET = "a-secret-of-the-tests"
ELSEWHERE = "https://other.example/hook"


@dataclass
class Registered:
    telegram: TelegramStandIn
    registration: TelegramRegistration
    capabilities: CapabilityRegistry
    directory: DataDirectory

    def hijack(self, url: str = ELSEWHERE) -> None:
        """Somebody else says where to deliver; without a URL, that nobody is to."""
        method = "setWebhook" if url else "deleteWebhook"
        self.telegram.pass_time(2)  # one webhook a second is all that Telegram takes
        answer = self.telegram.bot().call(method, CallParams({"url": url}), self.telegram.now())
        assert answer.status == 200
        self.telegram.pass_time(2)

    async def look(self, times: int = 1) -> CapabilityState:
        for _ in range(times):
            await self.capabilities.probe(WEBHOOK)
        return self.state

    @property
    def state(self) -> CapabilityState:
        state = self.capabilities.get(WEBHOOK)
        assert state is not None
        return state

    def calls(self, method: str) -> int:
        return sum(call.method.lower() == method.lower() for call in self.telegram.calls)

    async def until_called(self, method: str, times: int = 1) -> None:
        await self.telegram.wait_until(lambda _: self.calls(method) >= times)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def fresh(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Registered]:
    """Not started."""
    async with TelegramStandIn() as telegram:
        channel = TelegramChannel([telegram.token], clock=clock, api_base=telegram.url, timeout_seconds=5)
        capabilities, directory = CapabilityRegistry(clock), DataDirectory(tmp_path)
        registration = TelegramRegistration(
            channel,
            account=str(telegram.bot_id),
            url=URL,
            secret=SECRET,
            directory=directory,
            capabilities=capabilities,
            clock=clock,
        )
        yield Registered(telegram, registration, capabilities, directory)
        await registration.stop()
        await channel.close()


@pytest.fixture
async def registered(fresh: Registered) -> Registered:
    await fresh.registration.start()
    await fresh.until_called("setWebhook")
    assert (await fresh.look()).status is CapabilityStatus.AVAILABLE
    return fresh


@pytest.mark.req("CAP-3")
async def test_a_bot_is_verified_once_telegram_knows_it_and_has_taken_the_webhook(registered: Registered) -> None:
    account = str(registered.telegram.bot_id)
    assert registered.calls("getMe") == 1
    assert registered.directory.has_verified(account)
    assert DataDirectory(registered.directory.path).has_verified(account), "and so it is after a restart"
    assert not registered.directory.has_verified("1"), "of other bots it says nothing"


@pytest.mark.req("CAP-3")
async def test_a_token_that_nobody_knows_verifies_nothing_and_the_start_goes_on(
    fresh: Registered, clock: ManualClock
) -> None:
    fresh.telegram.revoke_token()
    await fresh.registration.start()
    await clock.until_sleeping()
    assert fresh.state.status is CapabilityStatus.DEGRADED
    assert "getMe" in fresh.state.detail
    assert not fresh.directory.has_verified(str(fresh.telegram.bot_id))


@pytest.mark.req("CAP-2", "BND-8")
@pytest.mark.failure("A15", "M8")
@pytest.mark.parametrize("where", [ELSEWHERE, ""])
async def test_a_webhook_that_was_moved_or_removed_is_noticed(registered: Registered, where: str) -> None:
    registered.hijack(where)
    state = await registered.look()
    assert state.status is CapabilityStatus.DEGRADED
    assert (where or "nobody") in state.detail
    assert URL in state.detail
    assert state.ttl_seconds == 60


@pytest.mark.failure("A15", "M8")
async def test_it_is_set_anew_once_and_what_is_moved_again_is_left_to_a_person(registered: Registered) -> None:
    registered.hijack()
    assert (await registered.look()).status is CapabilityStatus.DEGRADED
    assert (await registered.look(3)).status is CapabilityStatus.AVAILABLE
    assert registered.calls("setWebhook") == 2
    registered.hijack()
    state = await registered.look(10)
    assert state.status is CapabilityStatus.DEGRADED
    assert "another installation uses this bot" in state.detail
    assert registered.calls("setWebhook") == 2, "no fighting"


@pytest.mark.req("BND-8")
async def test_updates_that_telegram_cannot_deliver_are_told_with_its_reason(registered: Registered) -> None:
    registered.telegram.message("Hello")
    await registered.telegram.wait_until(
        lambda telegram: bool((webhook := telegram.bot().webhook) and webhook.last_error)
    )
    state = await registered.look()
    assert state.status is CapabilityStatus.DEGRADED
    assert state.detail.startswith("1 updates wait at Telegram, whose last try failed: ")


@pytest.mark.failure("G14")
async def test_a_telegram_that_cannot_be_asked_is_degraded_with_what_happened(registered: Registered) -> None:
    registered.telegram.revoke_token()
    with capture_logs() as logged:
        state = await registered.look(2)
    assert state.status is CapabilityStatus.DEGRADED
    assert "getWebhookInfo" in state.detail
    assert [entry["event"] for entry in logged] == ["capability.state_changed"]


async def post_update(rise: Installation, number: int) -> tuple[int, int]:
    """Status, and `Retry-After`."""
    message = {"message_id": number, "date": 2_000_000_000, "chat": {"id": 42, "type": "private"}, "text": "Hello"}
    headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{rise.url}/telegram/webhook", json={"update_id": number, "message": message}) as response,
    ):
        return response.status, int(response.headers.get("Retry-After", 0))


@pytest.mark.req("CAP-2", "CAP-3", "CAP-5", "CAP-6")
@pytest.mark.failure("I14", "G14")
async def test_a_start_without_telegram_completes_and_goes_on_by_itself_when_it_is_there(tmp_path: Path) -> None:
    async with TelegramStandIn() as telegram:
        telegram.script.is_unreachable = True
        settings = {
            "telegram_token": telegram.token,
            "telegram_api_base": telegram.url,
            "telegram_secret": SECRET,
            "public_url": "http://127.0.0.1:1",
        }
        async with Installation(tmp_path / "data", app="rise.testing.faults.bot", **settings) as rise:
            await rise.until_capability("telegram_webhook", "degraded")
            status, retry_after = await post_update(rise, 1)
            assert (status, 1 <= retry_after <= 60) == (503, True), "nobody knows yet whether there is such a bot"
            telegram.script.is_unreachable = False
            assert "delivering to" in await rise.until_capability("telegram_webhook")
            assert await post_update(rise, 1) == (200, 0)
            await rise.kill()
            telegram.script.is_unreachable = True
            await rise.start()
            await rise.until_capability("telegram_webhook", "degraded")
            assert await post_update(rise, 2) == (200, 0), "its replies wait; it is not refused"
            telegram.script.is_unreachable = False
            await telegram.wait_until(lambda t: len(t.sent) == 2, timeout_seconds=60)

"""What platforms say of a bot: whether they answer to it, and whether they deliver where they are to.

Refuses: to change anything. A webhook that was moved is the registration's affair.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from rise.channels.port import PushChannel
from rise.channels.telegram import TelegramChannel, WebhookInfo
from rise.clock import from_epoch_ms, iso
from rise.errors import RiseError
from rise.runtime.binding_health import BOT, WEBHOOK, Finding, HealthStatus
from rise.runtime.registration import shown_url

Look = Callable[[str], Awaitable[Finding]]
"""What its platform says of an account. Raises `RiseError` where it says nothing."""


def webhook_look(telegram: TelegramChannel, url_of: Callable[[str], str | None]) -> Look:
    """Whether Telegram delivers where it is to, and how well. `url_of`: None for a bot that is polled."""
    answers = answering_look(telegram)

    async def look(account: str) -> Finding:
        url = url_of(account)
        if url is None:
            return await answers(account)
        try:
            return _judged_webhook(await telegram.webhook_info(account), url)
        except RiseError as error:
            return Finding(HealthStatus.DEGRADED, WEBHOOK, error.public_message)

    return look


def answering_look(channel: PushChannel) -> Look:
    """Whether the platform answers to the bot at all, which asks for its updates itself."""

    async def look(account: str) -> Finding:
        trouble = await channel.trouble(account)
        return Finding(HealthStatus.DEGRADED if trouble else HealthStatus.OK, BOT, trouble or "the platform answers")

    return look


def _judged_webhook(state: WebhookInfo, url: str) -> Finding:
    if state.url != url:
        detail = f"Telegram delivers to {shown_url(state.url)}, not to {url}"
        return Finding(HealthStatus.DEGRADED, WEBHOOK, detail)
    waiting = state.pending_update_count
    if state.last_error_message and waiting:
        when = f" at {iso(from_epoch_ms(state.last_error_date * 1000))}" if state.last_error_date else ""
        detail = f"{waiting} updates wait at Telegram, whose last try failed{when}: {state.last_error_message}"
        return Finding(HealthStatus.DEGRADED, WEBHOOK, detail)
    return Finding(HealthStatus.OK, WEBHOOK, f"Telegram delivers to {url}; {waiting} updates wait there")

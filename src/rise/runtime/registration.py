"""Telegram is told where to deliver, and asked each minute whether it still does.

What it says is the capability `telegram_webhook`; of other bots than the default one, with their number. A webhook
that was taken away or moved is set anew once, a minute after it was noticed; one that is moved again belongs to
somebody else who would do the same, and a person has to say who is right.

Refuses: to fight over a bot.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.channels.telegram import TelegramChannel, WebhookInfo
from rise.clock import Clock
from rise.errors import RiseError, StoreUnavailable
from rise.runtime.directory import DataDirectory
from rise.service import Loop
from rise.telemetry import log

WEBHOOK: Final = "telegram_webhook"
LOOK_SECONDS: Final = 60.0
LOOK_SECONDS_MAX: Final = 15.0
PAUSE_SECONDS_MAX: Final = 60.0


class TelegramRegistration:
    """Of one bot's webhook."""

    name = "telegram registration"

    def __init__(
        self,
        telegram: TelegramChannel,
        *,
        account: str,
        url: str,
        secret: str,
        directory: DataDirectory,
        capabilities: CapabilityRegistry,
        clock: Clock,
        capability: str = WEBHOOK,
    ) -> None:
        """`capability`: what it is called where there are several bots."""
        self._capability = capability
        self._telegram = telegram
        self._account = account
        self._url = url
        self._secret = secret
        self._directory = directory
        self._capabilities = capabilities
        self._is_registered = False
        self._misses = 0
        """Looks in a row that found the webhook elsewhere."""
        self._has_set_anew = False
        self._trouble = "not registered yet"
        self._loop = Loop(
            self.name,
            self._register_and_rest,
            sleep=clock.sleep,
            on_error=self._report,
            pause_seconds=1.0,
            pause_seconds_max=PAUSE_SECONDS_MAX,
        )

    async def start(self) -> None:
        """Returns at once, whether or not Telegram can be reached."""
        self._capabilities.begin(self._capability, self._trouble)
        self._capabilities.register_capability_probe(
            self._capability, self.look, ttl_seconds=LOOK_SECONDS, timeout_seconds=LOOK_SECONDS_MAX
        )
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def look(self) -> tuple[CapabilityStatus, str]:
        """Whether Telegram delivers here, and if not, what keeps it from that."""
        if not self._is_registered:
            return CapabilityStatus.DEGRADED, self._trouble
        state = await self._telegram.webhook_info(self._account)
        if state.url == self._url:
            self._misses = 0
            return _judged(state)
        self._misses += 1
        where = f"Telegram delivers to {shown_url(state.url)}, not to {self._url}"
        if self._has_set_anew:
            return CapabilityStatus.DEGRADED, f"{where}: another installation uses this bot"
        if self._misses > 1:
            await self._register()
            self._has_set_anew = True
            log.warning("telegram.webhook_set_anew", was=shown_url(state.url), consequence="not a second time")
            return CapabilityStatus.AVAILABLE, f"delivering to {self._url} again"
        return CapabilityStatus.DEGRADED, where

    async def _register_and_rest(self) -> None:
        await self._register()
        self._capabilities.set(self._capability, CapabilityStatus.AVAILABLE, f"delivering to {self._url}")
        await asyncio.Event().wait()

    async def _register(self) -> None:
        # A token that nobody knows is refused here, in words that say so; setWebhook would only fail.
        await self._telegram.get_me(self._account)
        await self._telegram.set_webhook(self._account, self._url, self._secret)
        self._is_registered = True
        try:
            self._directory.remember_verified(self._account, self._url)
        except StoreUnavailable as error:
            # This process knows; the next start verifies again if it can.
            log.warning("telegram.verification_not_kept", error=error, consequence="the next start asks again")

    def _report(self, name: str, error: BaseException) -> None:
        self._trouble = error.public_message if isinstance(error, RiseError) else type(error).__name__
        self._capabilities.set(self._capability, CapabilityStatus.DEGRADED, self._trouble)
        log.warning("telegram.registration_failed", error=error, consequence=CONSEQUENCES[WEBHOOK])


def _judged(state: WebhookInfo) -> tuple[CapabilityStatus, str]:
    waiting = state.pending_update_count
    if state.last_error_message and waiting:
        detail = f"{waiting} updates wait at Telegram, whose last try failed: {state.last_error_message}"
        return CapabilityStatus.DEGRADED, detail
    return CapabilityStatus.AVAILABLE, f"delivering to {state.url}"


def shown_url(url: str) -> str:
    """Where it is, without what could be a secret in it."""
    if not url:
        return "nobody (the webhook was removed: somebody polls, or removed it)"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"

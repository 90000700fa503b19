"""Telegram's bots: how what is written to each comes in."""

from __future__ import annotations

from collections.abc import Callable

from rise.capabilities import CapabilityStatus
from rise.channels.telegram import TelegramChannel, TelegramPolling
from rise.ledger.port import Office
from rise.offices import OfficeClaim
from rise.runtime.assembly.house import House, capability_of
from rise.runtime.bots import Bot, Bots, BotSettings, bots_of
from rise.runtime.registration import WEBHOOK, TelegramRegistration
from rise.service import Service


def polling_of(house: House, telegram: TelegramChannel, account: str) -> TelegramPolling:
    """Whatever the settings say."""
    capability = capability_of(house, "telegram_polling", account)

    def report(works: bool, detail: str) -> None:
        status = CapabilityStatus.AVAILABLE if works else CapabilityStatus.DEGRADED
        house.capabilities.set(capability, status, detail)

    office = OfficeClaim(house.ledger, Office.POLLER, house.bus.member, house.clock)
    return TelegramPolling(
        telegram, account, accept=house.intake.accept, clock=house.clock, on_state=report, office=office
    )


def registration_of(house: House, telegram: TelegramChannel, account: str, url: str) -> TelegramRegistration:
    return TelegramRegistration(
        telegram,
        account=account,
        url=url,
        secret=house.webhook_secret(account),
        directory=house.stores.directory,
        capabilities=house.capabilities,
        clock=house.clock,
        capability=capability_of(house, WEBHOOK, account),
    )


def build_bots(house: House, *, enter: Callable[[Bot], Service] | None = None) -> Bots | None:
    """None: Telegram is off."""
    if house.channels.telegram is None:
        return None
    return Bots(
        house.channels.telegram,
        house.bindings,
        house.seal,
        house.bus,
        house.clock,
        _bot_settings(house),
        enter=enter,
    )


async def learn_bots(house: House) -> None:
    """Before anything is built that needs to know whether there is one."""
    bots = build_bots(house)
    if bots is not None:
        await bots.learn()


def webhook_url_of(house: House, telegram: TelegramChannel, account: str) -> str | None:
    bot = bots_of(house.bindings.bindings(), _bot_settings(house), has_token=telegram.serves).get(account)
    return None if bot is None else bot.webhook_url


def _bot_settings(house: House) -> BotSettings:
    settings = house.settings
    is_polling = settings.effective_telegram_mode == "polling"
    return BotSettings(house.channels.telegram_account, settings.public_url, is_polling)

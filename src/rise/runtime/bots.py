"""The bots: the default one of the settings, and those that bindings have brought tokens of.

Each is received by webhook or by polling, and is written with, as soon as this process has read of it; what is changed
about one is taken over without a restart. The token of the settings goes before one that is bound for the same bot.

Refuses: to forget a bot that was switched off. What people write to it is kept and waits, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from rise.bindings import BindingRegistry
from rise.bus.port import Bus, Topic
from rise.channels.telegram import CHANNEL, TelegramChannel
from rise.clock import Clock
from rise.definitions.records import BindingRecord
from rise.errors import Unavailable
from rise.runtime.sealing import Seal
from rise.service import Loop, Service, Signal, sparingly
from rise.telemetry import log

LOOK_SECONDS: Final = 5.0
WEBHOOK_PATH: Final = "/telegram/webhook"


class Bot(msgspec.Struct, frozen=True):
    """How one bot is reached."""

    account: str
    webhook_url: str | None
    """Where Telegram delivers. None: it is polled."""


class BotSettings(msgspec.Struct, frozen=True):
    """What holds for every bot whose bindings do not say otherwise."""

    account: str | None = None
    """The default bot's, whose token the settings have."""
    public_url: str | None = None
    is_polling: bool = True


class Bots:
    """The bots of this process. It learns their tokens; with `enter`, it also receives what is written to them."""

    name = "bots"

    def __init__(
        self,
        telegram: TelegramChannel,
        bindings: BindingRegistry,
        seal: Seal,
        bus: Bus,
        clock: Clock,
        settings: BotSettings,
        *,
        enter: Callable[[Bot], Service] | None = None,
    ) -> None:
        """`enter`: what receives for one bot, not started."""
        self._telegram = telegram
        self._bindings = bindings
        self._seal = seal
        self._bus = bus
        self._settings = settings
        self._enter = enter
        self._sealed: dict[str, str] = {}
        self._ways: dict[Bot, Service] = {}
        self._changed = Signal()
        self._loop = Loop(self.name, self._follow, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        await self._take_over()
        self._unsubscribe = self._bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._changed.set())
        await self._loop.start()

    async def stop(self) -> None:
        """No door is open when it returns."""
        await self._loop.stop()
        self._unsubscribe()
        ways, self._ways = self._ways, {}
        for way in ways.values():
            await way.stop()

    async def learn(self) -> None:
        """The tokens that are bound now, before anything is built that needs to know whether there is a bot."""
        with suppress(Unavailable):  # the loop goes on asking
            await self._bindings.refresh()
        self._learn_tokens()

    async def _follow(self) -> None:
        await self._changed.wait(LOOK_SECONDS)
        await self._bindings.refresh()
        await self._take_over()

    async def _take_over(self) -> None:
        self._learn_tokens()
        if self._enter is None:
            return
        wanted = bots_of(self._bindings.bindings(), self._settings, has_token=self._telegram.serves)
        for bot in self._ways.keys() - wanted.values():
            await self._ways.pop(bot).stop()
        for bot in [one for one in wanted.values() if one not in self._ways]:
            way = self._enter(bot)
            await way.start()
            self._ways[bot] = way
            log.info("bot.entered", account=bot.account, by="polling" if bot.webhook_url is None else "webhook")

    def _learn_tokens(self) -> None:
        for account, sealed in sealed_tokens(self._bindings.bindings()).items():
            if account == self._settings.account or self._sealed.get(account) == sealed:
                continue
            token = self._seal.open(sealed)
            if token is None:
                log.error(
                    "bot.token_unreadable",
                    account=account,
                    consequence="the bot is not served",
                    remedy="set RISE_SECRET_KEY_FORMER to the key it was sealed with, or bind it again with its token",
                )
            else:
                self._telegram.use_token(token)
            self._sealed[account] = sealed


def sealed_tokens(bindings: Iterable[BindingRecord]) -> dict[str, str]:
    """By bot."""
    tokens: dict[str, str] = {}
    for binding in bindings:
        if binding.channel == CHANNEL and binding.own.bot_token is not None:
            tokens[binding.account] = binding.own.bot_token
    return tokens


def bots_of(
    bindings: Iterable[BindingRecord], settings: BotSettings, *, has_token: Callable[[str], bool]
) -> Mapping[str, Bot]:
    """By account, each bot of which a token is known."""
    urls: dict[str, str] = {}
    polls: dict[str, bool] = {}
    accounts = [settings.account] if settings.account is not None else []
    for binding in (one for one in bindings if one.channel == CHANNEL):
        accounts.append(binding.account)
        if binding.own.webhook_url is not None:
            urls[binding.account] = binding.own.webhook_url
        if binding.own.use_polling is not None:
            polls[binding.account] = binding.own.use_polling
    bots = {}
    for account in dict.fromkeys(one for one in accounts if has_token(one)):
        url = delivery_url(urls.get(account, settings.public_url), account)
        # One that says where Telegram delivers does not mean to be polled, whatever the others are.
        is_polled = polls.get(account, settings.is_polling and account not in urls)
        bots[account] = Bot(account, None if is_polled else url)
    return bots


def delivery_url(base: str | None, account: str) -> str | None:
    """Where Telegram delivers for this bot: below an address, or exactly where a whole one says."""
    if base is None:
        return None
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if path.endswith(WEBHOOK_PATH):  # by itself that is the default bot's: updates of another would be refused there
        return urlunsplit(parts._replace(path=f"{path}/{account}"))
    return base if WEBHOOK_PATH in path else urlunsplit(parts._replace(path=f"{path}{WEBHOOK_PATH}/{account}"))


def _report(name: str, error: BaseException) -> None:
    log.warning("bots.refresh_failed", error=error, consequence="the bots that are known go on")

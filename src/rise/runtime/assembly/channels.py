"""The channels of a process: what can be written from, and who is called.

Refuses: to call anybody. Telegram's bots may come and go; see `bots.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rise.callbacks import CallbackReceiver
from rise.channels.http import HttpChannel
from rise.channels.port import Channel, PushChannel, Receiver
from rise.channels.telegram import TelegramChannel, TelegramRates
from rise.channels.webchat import WebChatChannel
from rise.chats import ChatRegistry
from rise.clock import Clock
from rise.reachable import read_allowed
from rise.runtime.assembly.secrets import Secrets
from rise.runtime.directory import derived_secret
from rise.settings import Settings
from rise.workflows.fetching import GuardedFetch

DEFAULT_ACCOUNT = "default"


@dataclass(frozen=True, slots=True)
class Channels:
    http: HttpChannel
    webchat: WebChatChannel
    telegram: TelegramChannel | None
    telegram_account: str | None
    """The default bot's number."""
    callback_receiver: CallbackReceiver | None = None
    """Whoever asked for results to be posted. None: there is nothing to sign them with."""

    def by_name(self) -> dict[str, Channel]:
        """Those that are configured now; Telegram from the first bot on."""
        return {"http": self.http, "webchat": self.webchat, **self.pushed()}

    @property
    def anonymous(self) -> tuple[str, ...]:
        """Those that anybody may write to, without credentials or a platform's word for them."""
        return (self.webchat.name,)

    def pushed(self) -> dict[str, PushChannel]:
        return {"telegram": self.telegram} if self.telegram is not None and self.telegram.accounts else {}

    def receivers(self) -> dict[str, Receiver]:
        """Who is called with what is in the outbox."""
        called: dict[str, Receiver] = {**self.pushed()}
        receiver = self.callback_receiver
        return called if receiver is None else called | {receiver.name: receiver}

    async def close(self) -> None:
        if self.telegram is not None:
            await self.telegram.close()
        if self.callback_receiver is not None:
            await self.callback_receiver.close()

    def all_accounts(self) -> dict[str, list[str]]:
        """Every account that can be written from, by channel, the default first."""
        known = {channel: [account] for channel, account in self.accounts().items()}
        if self.telegram is not None and self.telegram.accounts:
            known["telegram"] = list(dict.fromkeys([*known.get("telegram", ()), *self.telegram.accounts]))
        return known

    def accounts(self) -> dict[str, str]:
        """The account each channel uses unless told otherwise."""
        accounts = {"http": DEFAULT_ACCOUNT, "webchat": DEFAULT_ACCOUNT}
        if self.telegram_account is not None:
            accounts["telegram"] = self.telegram_account
        return accounts


def build_channels(settings: Settings, secrets: Secrets, clock: Clock, chats: ChatRegistry) -> Channels:
    telegram, account = None, None
    if settings.effective_telegram_mode != "off":
        tokens = [] if settings.telegram_token is None else [settings.telegram_token.get_secret_value()]
        rates = TelegramRates(
            chat_per_second=settings.telegram_rate_chat,
            group_per_minute=settings.telegram_rate_group_minute,
            bot_per_second=settings.telegram_rate_bot,
        )
        telegram = TelegramChannel(tokens, clock=clock, api_base=settings.telegram_api_base, rates=rates, chats=chats)
        account = next(iter(telegram.accounts), None)
    webchat = WebChatChannel(derived_secret(secrets.secret_key, "webchat-sessions"))
    return Channels(HttpChannel(), webchat, telegram, account, _callback_receiver(settings, clock))


def _callback_receiver(settings: Settings, clock: Clock) -> CallbackReceiver | None:
    if settings.callback_secret is None:
        return None
    allowed = read_allowed(settings.http_stage_allow)
    return CallbackReceiver(settings.callback_secret.get_secret_value(), GuardedFetch(allowed), allowed, clock)

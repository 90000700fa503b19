"""The channel: one or more bots, and the wire to them.

Promises: `send` returns how a call ended, whatever happened. A call is `NotSent` only if the last byte of its
body never went to the socket. The token is in no error and no log.

Refuses: to decide by the text of an exception, to follow redirects, to throw pending updates away, to move one
chat's replies to another because a third has moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rise.channels.port import (
    AccountDown,
    Incoming,
    Moved,
    NotSent,
    Paused,
    Refused,
    SendOutcome,
    SendRates,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.channels.telegram.addresses import is_private
from rise.channels.telegram.calls import (
    acknowledgement,
    addressed,
    compose,
    is_composed,
    is_repeatable,
    marked,
    notice,
)
from rise.channels.telegram.outcomes import Answer, Unanswered, judged, result_of
from rise.channels.telegram.updates import CHANNEL, KINDS, read_update
from rise.chats import ChatRegistry
from rise.clock import Clock
from rise.envelope import Call, Effect, Head, encode_json
from rise.errors import ChannelUnavailable, PayloadInvalid, Rejected, SettingsInvalid
from rise.settings import is_bot_token
from rise.unreached import why_unreached

if TYPE_CHECKING:
    import aiohttp

API_BASE: Final = "https://api.telegram.org"
DOWNLOAD_BYTES_MAX: Final = 20 * 1024 * 1024

CONNECTIONS_MAX: Final = 400
"""More than are sent to at once, so that no call waits for another's end: an answer to a payment has ten seconds."""

CALL_SECONDS: Final = 30.0
"""How long a call may take; what has no answer by then is not known to be sent."""

_CONNECT_SECONDS: Final = 10.0
_TROUBLE_SECONDS: Final = 5.0
_ACCOUNT_PAUSE_CHATS: Final = 3
_ACCOUNT_PAUSE_WINDOW_SECONDS: Final = 10.0


class TelegramRates(msgspec.Struct, frozen=True, kw_only=True):
    """What Telegram lets a bot send before it answers 429."""

    chat_per_second: float = 1.0
    group_per_minute: float = 20.0
    bot_per_second: float = 30.0


class WebhookInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How Telegram delivers to this bot, and how well."""

    url: str = ""
    pending_update_count: int = 0
    last_error_date: int | None = None
    last_error_message: str | None = None
    last_synchronization_error_date: int | None = None
    allowed_updates: list[str] = []


class TelegramChannel:
    """One or more bots. An account is a bot's number, as text."""

    name = CHANNEL

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        clock: Clock,
        api_base: str = API_BASE,
        rates: TelegramRates | None = None,
        timeout_seconds: float = CALL_SECONDS,
        chats: ChatRegistry | None = None,
    ) -> None:
        self._tokens = {bot_id_of(token): token for token in tokens}
        self._clock = clock
        self._api_base = api_base.rstrip("/")
        self._rates = rates or TelegramRates()
        self._timeout_seconds = timeout_seconds
        self._chats = chats
        self._session: aiohttp.ClientSession | None = None
        self._paused_chats: dict[str, dict[str, float]] = {}

    @property
    def accounts(self) -> list[str]:
        return list(self._tokens)

    def serves(self, account: str) -> bool:
        """Whether the bot's token is known."""
        return account in self._tokens

    def use_token(self, token: str) -> str:
        """Serve this bot too, or with a new token from now on. Returns its account."""
        account = bot_id_of(token)
        self._tokens[account] = token
        return account

    async def catch_up(self) -> None:
        """Wait for this before reading what has come: which chats have moved, if this process may not have heard."""
        if self._chats is not None:
            await self._chats.catch_up()

    def read_update(
        self,
        body: bytes,
        *,
        account: str,
        now: datetime,
        webhook: bool,
        source: str = "telegram-bot",
        trace_id: str | None = None,
    ) -> Incoming:
        """`rise.channels.telegram.read_update`, with what is known of chats that have moved."""
        return read_update(
            body, account=account, now=now, webhook=webhook, source=source, trace_id=trace_id, chats=self._chats
        )

    def compose(self, head: Head, effects: Sequence[Effect]) -> list[Call]:
        return compose(head, effects)

    def notice(self, head: Head, text: str) -> Call | None:
        return notice(head, text)

    def marked(self, call: Call) -> Call:
        return marked(call)

    def is_repeatable(self, call: Call) -> bool:
        return is_repeatable(call)

    def acknowledgement(self, head: Head) -> Call | None:
        return acknowledgement(head)

    def read_again(self, head: Head, raw: bytes) -> Incoming:
        return self.read_update(raw, account=head.account, webhook=False, now=self._clock.now(), source=head.source)

    def rates(self, chat_id: str) -> SendRates:
        return SendRates(
            chat_per_second=self._rates.chat_per_second,
            chat_per_minute=None if is_private(chat_id) else self._rates.group_per_minute,
            account_per_second=self._rates.bot_per_second,
        )

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        if account not in self._tokens:
            return AccountDown(f"no token for bot {account} is configured")
        answer = await self.exchange(account, call.method, addressed(call, chat_id))
        outcome = judged(call, answer)
        match outcome:
            case AccountDown(error) if await self._lacks_only_the_method(account, call, answer):
                return Refused(error)
            case Succeeded():
                self._paused_chats.pop(account, None)
                return outcome
            case Paused():
                return self._with_evidence(account, chat_id, outcome)
            case Moved(new_chat_id) if "chat_id" in call.params:
                # Another chat than the task's: moving that one's replies there would mix up two chats.
                return Refused(f"chat {call.params['chat_id']} has become {new_chat_id}: write to that")
            case Refused(error, chat_gone=True) if "chat_id" in call.params:
                return Refused(error)
            case _:
                return outcome

    async def _lacks_only_the_method(self, account: str, call: Call, answer: Answer | Unanswered) -> bool:
        """A wrong token is not found, and neither is a method misspelt by a workflow, which must not hold up
        the whole bot."""
        if is_composed(call.method) or not isinstance(answer, Answer) or answer.status != 404:
            return False
        me = await self.exchange(account, "getMe", {}, timeout_seconds=_TROUBLE_SECONDS)
        return isinstance(judged(Call("getMe", {}), me), Succeeded)

    def _with_evidence(self, account: str, chat_id: str, pause: Paused) -> Paused:
        """A 429 names no culprit. Several chats refused and none served in between is taken as the bot's own limit."""
        now = self._clock.monotonic()
        recent = self._paused_chats.setdefault(account, {})
        recent[chat_id] = now
        for other, at in list(recent.items()):
            if now - at > _ACCOUNT_PAUSE_WINDOW_SECONDS:
                del recent[other]
        if len(recent) < _ACCOUNT_PAUSE_CHATS:
            return pause
        recent.clear()
        return Paused(pause.seconds, pause.error, whole_account=True)

    async def trouble(self, account: str) -> str | None:
        answer = await self.exchange(account, "getMe", {}, timeout_seconds=_TROUBLE_SECONDS)
        outcome = judged(Call("getMe", {}), answer)
        return outcome.error if isinstance(outcome, NotSent | Uncertain) else None

    async def show_typing(self, account: str, chat_id: str) -> None:
        if account in self._tokens:
            typing = Call("sendChatAction", {"action": "typing"})
            await self.exchange(account, typing.method, addressed(typing, chat_id))

    async def download(self, account: str, file_id: str) -> bytes:
        try:
            described = await self.ask(account, "getFile", {"file_id": file_id})
        except Rejected as error:
            raise PayloadInvalid(error.public_message, field="file_id") from error
        path = described.get("file_path") if isinstance(described, dict) else None
        if not isinstance(path, str):
            raise ChannelUnavailable("Telegram named no path for the file")
        answer = await self._get_file(account, path)
        if isinstance(answer, Unanswered):
            raise ChannelUnavailable(f"the file did not come: {answer.error}")
        if len(answer.body) > DOWNLOAD_BYTES_MAX:
            raise PayloadInvalid("the file is larger than bots may download (20 MB)", field="file_id")
        if answer.status in (400, 404):
            raise PayloadInvalid("Telegram keeps no such file any more", field="file_id")
        if answer.status != 200:
            raise ChannelUnavailable(f"Telegram answered {answer.status} for the file")
        return answer.body

    # the bot and its webhook

    async def get_me(self, account: str) -> dict[str, Any]:
        """What Telegram says about the bot. Raises `ChannelUnavailable` if it does not know the token."""
        described = await self.ask(account, "getMe", {})
        return described if isinstance(described, dict) else {}

    async def set_webhook(self, account: str, url: str, secret: str) -> None:
        """Have updates of every kind pushed to the URL. Nothing pending is lost by it.

        Raises `Rejected` with Telegram's words if it does not take the URL, `ChannelUnavailable` otherwise.
        """
        params: dict[str, Any] = {"url": url, "secret_token": secret, "allowed_updates": list(KINDS)}
        await self.ask(account, "setWebhook", params)

    async def delete_webhook(self, account: str) -> None:
        """What is pending stays, for whoever asks for it next."""
        await self.ask(account, "deleteWebhook", {})

    async def webhook_info(self, account: str) -> WebhookInfo:
        described = await self.ask(account, "getWebhookInfo", {})
        try:
            return msgspec.convert(described, WebhookInfo)
        except msgspec.ValidationError as error:
            raise ChannelUnavailable(f"Telegram's webhook info cannot be read: {error}") from error

    async def ask(self, account: str, method: str, params: Mapping[str, Any]) -> Any:
        """A call for its result. Raises `Rejected` where Telegram says no, else `ChannelUnavailable`."""
        answer = await self.exchange(account, method, params)
        outcome = judged(Call(method, dict(params)), answer)
        match outcome:
            case Succeeded() if isinstance(answer, Answer):
                return result_of(answer)
            case Refused(error) | Unreadable(error):
                raise Rejected(f"Telegram refused {method}: {error}")
            case Moved(chat_id):
                raise Rejected(f"Telegram refused {method}: the chat is now {chat_id}")
            case Paused(seconds, error):
                raise ChannelUnavailable(f"{method}: {error}", retry_after_seconds=int(seconds) + 1)
            case NotSent(error) | AccountDown(error):
                raise ChannelUnavailable(f"{method}: {error}")
            case Uncertain(error):
                raise ChannelUnavailable(f"{method}: {error}", sent_perhaps=True)
        raise AssertionError(outcome)

    # the wire

    async def exchange(
        self,
        account: str,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout_seconds: float | None = None,
    ) -> Answer | Unanswered:
        """Put one call on the wire. The only place that meets aiohttp's errors."""
        import aiohttp

        token = self._tokens.get(account)
        if token is None:
            return Unanswered(f"no token for bot {account} is configured", body_went_out=False)
        body = encode_json(params)
        progress = _Progress(len(body))
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            async with self._open_session().post(
                f"{self._api_base}/bot{token}/{method}",
                data=body,
                headers={"Content-Type": "application/json"},
                # A redirect would send the message to somebody else.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS),
                trace_request_ctx=progress,
            ) as response:
                return Answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            return Unanswered(why_unreached(error), body_went_out=progress.body_bytes_left <= 0)

    async def _get_file(self, account: str, path: str) -> Answer | Unanswered:
        """Reads no further than it takes to see that the file is too large."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=self._timeout_seconds)
        url = f"{self._api_base}/file/bot{self._tokens[account]}/{path}"
        content = bytearray()
        try:
            async with self._open_session().get(url, allow_redirects=False, timeout=timeout) as response:
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > DOWNLOAD_BYTES_MAX:
                        break
                return Answer(response.status, bytes(content))
        except (aiohttp.ClientError, OSError) as error:
            return Unanswered(why_unreached(error), body_went_out=True)

    def _open_session(self) -> aiohttp.ClientSession:
        """aiohttp itself, not aiogram's client on top of it: that turns every failure of the network into one
        exception (whose text holds the URL, and the URL the token), leaves out parameters that are empty,
        and takes seconds to import. Whether a call went out is the one thing that must be known."""
        import aiohttp

        if self._session is None or self._session.closed:
            trace = aiohttp.TraceConfig()
            trace.on_request_chunk_sent.append(_count_sent)
            self._session = aiohttp.ClientSession(
                # Connections that idle are dropped sooner than Telegram drops them: on one that is being
                # closed, a call would be lost in a way that cannot be told from having been done.
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=15, ttl_dns_cache=300),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        return self._session

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def bot_id_of(token: str) -> str:
    """The bot's number, which is its account: the part of the token before the colon."""
    if not is_bot_token(token):
        raise SettingsInvalid(["A Telegram token looks like 123456789:AbC-dEf_…; this one does not."])
    return token.partition(":")[0]


@dataclass(slots=True)
class _Progress:
    body_bytes_left: int


async def _count_sent(session: aiohttp.ClientSession, context: Any, sent: aiohttp.TraceRequestChunkSentParams) -> None:
    # aiohttp says so right before it hands the bytes to the socket. Everything that fails earlier (DNS,
    # connecting, TLS, waiting for a free connection) fails before this; whatever fails later may have
    # been done. Erring by that one step is erring to the safe side.
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.body_bytes_left -= len(sent.chunk)

"""Telegram's way in: raw ASGI, because every message passes here and a framework costs more than the disk.

Order: the secret is compared in constant time before the body is read; the body is read within bounds; the
update is made durable; only then 200. An authentic update is never answered 4xx, whatever it holds, and
nothing is ever answered 410: Telegram would hold the chat back for a day, or take the webhook away.

On a fresh installation it answers 503 until the bot was verified once: a mistyped token must not take what nobody
could ever answer. From then on, an outage of Telegram's side queues replies and refuses nothing.

Refuses: what does not bring the secret (401, or 429 to a source that keeps trying), unread; a body that is larger
(413) or comes slower (408) than any update.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

import msgspec

from rise import tracing
from rise.api.answers import RETRY_AFTER_SECONDS, request_id_of, retry_after_seconds
from rise.api.reading import LENGTH_DIGITS_MAX, Message, Receive, Scope, Send, discard, read_body
from rise.api.security import Door, Gate
from rise.channels.port import Incoming
from rise.channels.telegram import TelegramChannel
from rise.envelope import RAW_BYTES_MAX
from rise.errors import PayloadMalformed, PayloadTooLarge, RateExceeded, Rejected, Unavailable
from rise.intake import Intake
from rise.telemetry import log, refused_total

PATH: Final = "/telegram/webhook"
SOURCE: Final = "telegram-bot"

_LARGE_DIGITS: Final = len(str(RAW_BYTES_MAX))
"""A Content-Length of fewer is within bounds: nearly every update's is, and need not be read as a number."""
_NOBODYS: Final = b"no secret is as this one"
"""Compared with, so that a path of nobody takes no less time to refuse."""
_OK: Final[Message] = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
_EMPTY: Final[Message] = {"type": "http.response.body"}


class TelegramWebhook:
    """Answers `POST /telegram/webhook` for the default bot, and `/telegram/webhook/{bot_id}` for every bot."""

    __slots__ = ("_bots", "_gate", "_intake", "_refused", "_require_verified", "_secret_of", "_telegram")

    def __init__(
        self,
        telegram: TelegramChannel,
        *,
        account: str | None,
        secret: str | None,
        intake: Intake,
        gate: Gate,
        require_verified: Callable[[str], None],
        secret_of: Callable[[str], str],
    ) -> None:
        """`account`, `secret`: the default bot's, if there is one; `secret_of`: those of all others that are bound.

        `require_verified` raises `CapabilityClosed` as long as nobody knows whether there is such a bot.
        """
        self._telegram = telegram
        self._bots: dict[str, tuple[str, bytes]] = {}
        if account is not None and secret is not None:
            self._bots |= dict.fromkeys((PATH, f"{PATH}/{account}"), (account, secret.encode()))
        self._secret_of = secret_of
        self._intake = intake
        self._gate = gate
        self._require_verified = require_verified
        self._refused = refused_total.labels("telegram", "signature_mismatch")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _refuse(send, 405, (b"allow", b"POST"))
            return
        secret, length, trace_parent = _headers_of(scope)
        account = self._account_of(scope["path"], secret)
        if not account:
            await self._refuse_stranger(scope, receive, send)
            return
        try:
            incoming = await self._read(account, scope, receive, length, trace_parent)
        except Rejected as error:
            await self._refuse_body(send, error)
        except Exception as error:  # noqa: BLE001 - border: Telegram keeps the update and repeats it
            await _fail(scope, send, error)
        else:
            await self._accept(incoming, scope, send)

    def _account_of(self, path: str, secret: bytes) -> str:
        """Of the bot whose path and secret these are; empty if they are nobody's."""
        account, expected = self._bots.get(path) or self._find_bot(path)
        return account if hmac.compare_digest(secret, expected) else ""

    def _find_bot(self, path: str) -> tuple[str, bytes]:
        """One that was bound since; without an account if there is none there."""
        account = path.removeprefix(f"{PATH}/")
        if not self._telegram.serves(account):
            return "", _NOBODYS
        found = self._bots[path] = (account, self._secret_of(account).encode())
        return found

    async def _read(
        self, account: str, scope: Scope, receive: Receive, length: bytes, trace_parent: bytes | None
    ) -> Incoming:
        if len(length) >= _LARGE_DIGITS and _is_too_large(length):
            await discard(receive)
            raise PayloadTooLarge("larger than any update", field="body")
        body = await read_body(scope, receive)
        await self._telegram.catch_up()
        incoming = self._telegram.read_update(
            body,
            account=account,
            webhook=True,
            now=self._intake.earliest_now(),
            source=SOURCE,
            trace_id=None if trace_parent is None else trace_id_of(trace_parent),
        )
        # A proxy in front of us may have begun one.
        return incoming if trace_parent is None else continuing(incoming, trace_parent)

    async def _accept(self, incoming: Incoming, scope: Scope, send: Send) -> None:
        try:
            self._require_verified(incoming.account)
            await self._intake.accept(incoming)
        except Unavailable as error:
            await _refuse(send, 503, (b"retry-after", b"%d" % wait_seconds(error, incoming.lifetime_seconds)))
        except Exception as error:  # noqa: BLE001 - border: Telegram keeps the update and repeats it
            await _fail(scope, send, error)
        else:
            await send(_OK)
            await send(_EMPTY)

    async def _refuse_stranger(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._telegram.accounts:
            await answer_unconfigured(scope, receive, send)
            return
        self._refused.inc()
        try:
            self._gate.slow_down(scope, Door.WEBHOOK)
        except RateExceeded as error:
            await _refuse(send, 429, (b"retry-after", b"%d" % error.retry_after_seconds), close=True)
            return
        # The body was not read and will not be; whatever of it still comes dies with the connection.
        await _refuse(send, 401, close=True)

    async def _refuse_body(self, send: Send, error: Rejected) -> None:
        refused_total.labels("telegram", error.code).inc()
        # Malformed is here only what broke off, and nobody is there to hear it: what is no JSON is kept, suspended.
        if not isinstance(error, PayloadMalformed):
            await _refuse(send, error.http_status, close=True)


def _headers_of(scope: Scope) -> tuple[bytes, bytes, bytes | None]:
    """The secret, how long the body is, and the trace that it is part of: in one pass, as every message has it."""
    secret, length, trace_parent = b"", b"", None
    for name, value in scope["headers"]:
        if name == b"x-telegram-bot-api-secret-token":
            secret = value
        elif name == b"content-length":
            length = value
        elif name == b"traceparent":
            trace_parent = value
    return secret, length, trace_parent


def _is_too_large(length: bytes) -> bool:
    return length.isdigit() and int(length[:LENGTH_DIGITS_MAX]) > RAW_BYTES_MAX


async def answer_unconfigured(scope: Scope, receive: Receive, send: Send) -> None:
    """There is no bot here."""
    await _refuse(send, 404, close=True)


def wait_seconds(error: Unavailable, lifetime_seconds: float | None) -> int:
    """When Telegram shall try again: as what is down needs, but well within the update's life."""
    wait = retry_after_seconds(error)
    if lifetime_seconds is None:
        return max(1, min(wait, 60))
    return 1 if lifetime_seconds <= 30 else min(wait, 2)


def trace_id_of(trace_parent: bytes) -> str | None:
    """The trace that a `traceparent` header continues; None if it is not one."""
    parts = tracing.parts_of(trace_parent.decode("latin-1"))
    return None if parts is None else parts[0]


def continuing(incoming: Incoming, trace_parent: str | bytes | None) -> Incoming:
    """As part of the trace that its sender has begun, if the header is one."""
    read = tracing.read_trace_parent(trace_parent)
    return incoming if read is None else msgspec.structs.replace(incoming, trace_parent=read)


async def _fail(scope: Scope, send: Send, error: Exception) -> None:
    request_id = request_id_of(scope)
    log.error(
        "request.failed",
        request_id=request_id,
        path=scope["path"],
        error=error,
        exc_info=error,
        consequence="answered 500; Telegram sends the update again",
    )
    await _refuse(send, 500, (b"retry-after", b"%d" % RETRY_AFTER_SECONDS), (b"x-request-id", request_id.encode()))


async def _refuse(send: Send, status: int, *headers: tuple[bytes, bytes], close: bool = False) -> None:
    """Always with an empty body: Telegram would run a JSON body as a command."""
    said: list[Any] = [(b"content-length", b"0"), *headers]
    if close:
        said.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send(_EMPTY)

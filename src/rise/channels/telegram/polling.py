"""Long polling: updates are fetched, made durable, and only then confirmed to Telegram.

Promises: an offset is sent only past updates that were accepted, without a gap; each update is passed on as
exactly the bytes it came as; what fails is tried again, slower each time, and said through `on_state`.
Several updates of one answer are accepted at once, so that they share one write to disk.

Refuses: to keep updates in memory in place of a durable write, to throw pending updates away, to fight with
another poller or webhook for the bot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from rise.channels.port import Incoming
from rise.channels.telegram.channel import TelegramChannel
from rise.channels.telegram.outcomes import Answer, Unanswered, pause_seconds
from rise.channels.telegram.reading import parts_of, read_json
from rise.channels.telegram.updates import KINDS
from rise.clock import Clock
from rise.errors import RiseError, Unavailable
from rise.offices import OfficeClaim
from rise.service import Loop

Accept = Callable[[Incoming], Awaitable[object]]
"""Make one update durable. Raises `Unavailable` if it could not be."""
OnState = Callable[[bool, str], None]
"""Whether updates come in, and if not, why."""

UPDATES_PER_POLL_MAX: Final = 100
POLL_SECONDS: Final = 50
"""Telegram's own limit is 50."""

_ANSWER_MARGIN_SECONDS: Final = 15.0
_TURN_SECONDS: Final = 1.0
_PAUSE_SECONDS_MIN: Final = 1.0
_PAUSE_SECONDS_MAX: Final = 30.0
_TOKEN_PAUSE_SECONDS: Final = 60.0
"""A refused token is mended by a person, not by asking again."""


class _Parameters(msgspec.Struct, frozen=True):
    retry_after: float | None = None


class _Updates(msgspec.Struct, frozen=True):
    ok: bool
    result: list[msgspec.Raw] = []
    error_code: int = 0
    description: str = ""
    parameters: _Parameters | None = None


class _Numbered(msgspec.Struct, frozen=True):
    update_id: int


class TelegramPolling:
    """Polls for one bot. Run one per bot: a second one ends the first's request."""

    def __init__(
        self,
        channel: TelegramChannel,
        account: str,
        *,
        accept: Accept,
        clock: Clock,
        on_state: OnState,
        office: OfficeClaim | None = None,
        poll_seconds: int = POLL_SECONDS,
    ) -> None:
        """`office`: where there are several processes, one of them polls."""
        self.name = f"telegram.polling.{account}"
        self._channel = channel
        self._account = account
        self._accept = accept
        self._clock = clock
        self._on_state = on_state
        self._office = office
        self._poll_seconds = poll_seconds
        # Said with the next request only, and then forgotten: Telegram has dropped what is below it. After a
        # quiet week its numbers start anew, perhaps lower, and an old offset would confirm updates unseen.
        self._offset: int | None = None
        self._pause_seconds = _PAUSE_SECONDS_MIN
        self._reported: tuple[bool, str] | None = None
        self._has_deleted_webhook = False
        self._loop = Loop(self.name, self._poll, sleep=clock.sleep, on_error=self._report_error)

    async def start(self) -> None:
        if self._office is not None:
            await self._office.start()
        await self._loop.start()

    async def stop(self) -> None:
        """At once. What was accepted and not confirmed comes again and is recognized as known."""
        await self._loop.stop()
        if self._office is not None:
            await self._office.stop()
        self._offset = None

    async def _poll(self) -> None:
        """Fetch once, accept what came, and wait if something is wrong."""
        if self._office is not None and not self._office.is_ours:
            self._offset = None  # what the other confirms meanwhile is not ours to say again
            if trouble := self._office.trouble:
                self._report(False, f"it is not known who polls: {trouble}")
            elif self._office.is_anothers:
                self._report(True, "another process of this installation polls")
            await self._clock.sleep(_TURN_SECONDS)
            return
        answer = await self._fetch()
        if isinstance(answer, Unanswered):
            await self._wait(f"Telegram cannot be reached: {answer.error}")
            return
        try:
            updates = read_json(answer.body, _Updates)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            await self._wait(f"an answer {answer.status} that is not of the Bot API")
            return
        if not updates.ok or answer.status != 200:
            await self._refused(updates, updates.error_code or answer.status)
            return
        self._offset = None
        await self._take(list(parts_of(answer.body, updates.result)))

    async def _fetch(self) -> Answer | Unanswered:
        # Until it is known that updates come in, a poll does not wait for any: the answer itself is the news.
        is_receiving = self._reported is not None and self._reported[0]
        params: dict[str, Any] = {
            "timeout": self._poll_seconds if is_receiving else 0,
            "limit": UPDATES_PER_POLL_MAX,
            "allowed_updates": list(KINDS),
        }
        if self._offset is not None:
            params["offset"] = self._offset
        return await self._channel.exchange(
            self._account,
            "getUpdates",
            params,
            timeout_seconds=self._poll_seconds + _ANSWER_MARGIN_SECONDS,
        )

    async def _take(self, bodies: Sequence[bytes]) -> None:
        """Accept all of them at once; confirm, with the next request, those before the first that failed."""
        await self._channel.catch_up()
        now = self._clock.now()
        accepting = (
            self._accept(self._channel.read_update(body, account=self._account, webhook=False, now=now))
            for body in bodies
        )
        outcomes = await asyncio.gather(*accepting, return_exceptions=True)
        failure: BaseException | None = None
        for body, outcome in zip(bodies, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                failure = outcome
                break
            self._offset = _number_of(body) + 1
        if failure is None:
            self._report(True, "")
            self._pause_seconds = _PAUSE_SECONDS_MIN
        elif isinstance(failure, Unavailable):
            detail = f"updates wait at Telegram: {failure.public_message}"
            await self._wait(detail, at_least=failure.retry_after_seconds or 0)
        else:
            raise failure

    async def _refused(self, refusal: _Updates, code: int) -> None:
        detail = f"{code} {refusal.description}".strip()
        match code:
            case 401 | 404:
                await self._wait(f"the token is not accepted: {detail}", at_least=_TOKEN_PAUSE_SECONDS)
            case 409:
                await self._contended(detail)
            case 429:
                retry_after = refusal.parameters.retry_after if refusal.parameters else None
                await self._wait(detail, at_least=pause_seconds(retry_after))
            case _:
                await self._wait(detail)

    async def _contended(self, detail: str) -> None:
        """A webhook left over from before is removed, once: one that comes back is somebody else's."""
        try:
            if not self._has_deleted_webhook and (await self._channel.webhook_info(self._account)).url:
                await self._channel.delete_webhook(self._account)
                self._has_deleted_webhook = True
                return
        except RiseError as error:
            detail = f"{detail}; {error.public_message}"
        await self._wait(f"somebody else receives this bot's updates: {detail}")

    async def _wait(self, detail: str, *, at_least: float = 0.0) -> None:
        self._report(False, detail)
        jitter = self._clock.random.uniform(0.75, 1.0)
        pause = max(self._pause_seconds * jitter, at_least)
        self._pause_seconds = min(self._pause_seconds * 2, _PAUSE_SECONDS_MAX)
        await self._clock.sleep(pause)

    def _report(self, is_receiving: bool, detail: str) -> None:
        if self._reported != (is_receiving, detail):
            self._reported = (is_receiving, detail)
            self._on_state(is_receiving, detail)

    def _report_error(self, name: str, error: BaseException) -> None:
        """A bug of ours met this answer: nothing of it was confirmed, and the loop goes on."""
        self._report(False, f"{name}: {type(error).__name__}")


def _number_of(body: bytes) -> int:
    """Telegram numbers every update; without its number it cannot be confirmed, and the poll fails."""
    return read_json(body, _Numbered).update_id

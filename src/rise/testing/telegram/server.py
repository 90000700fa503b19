"""The stand-in as a library: a Bot API server of your own, for as long as an `async with` lasts.

Promises: it listens on a free port of 127.0.0.1 unless told otherwise; everything it can be told and asked
over HTTP can be done here as methods; when the block ends nothing of it is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from rise.clock import Clock, SystemClock
from rise.service import cancel_all, spawn
from rise.testing.telegram import updates
from rise.testing.telegram.bot_api import BotApi
from rise.testing.telegram.control import ControlSurface
from rise.testing.telegram.deliverer import Deliverer
from rise.testing.telegram.faults import (
    DeliveryFault,
    Fault,
    FaultScript,
    ScriptedDeliveryFault,
    ScriptedFault,
)
from rise.testing.telegram.records import Call, Delivery
from rise.testing.telegram.rules import (
    Bot,
    BotSettings,
    ChatConditions,
    ChatId,
    QueuedUpdate,
    SendRates,
    SentMessage,
    UploadedFile,
)
from rise.testing.telegram.rules.files import UPLOAD_BYTES_MAX
from rise.testing.telegram.rules.send_limits import SendLimits
from rise.testing.telegram.rules.update_queue import DroppedUpdate
from rise.testing.telegram.stand_in_time import StandInTime
from rise.testing.telegram.state import StandInState

DEFAULT_TOKEN: Final = "7000000001:stand-in"  # noqa: S105 - it opens nothing

_BODY_BYTES_MAX: Final = UPLOAD_BYTES_MAX + 1024 * 1024
_STOP_SECONDS: Final = 0.1


class TelegramStandIn:
    """A Bot API server that follows the real one's rules and does as it is told.

    Methods that concern one bot take its `bot_id`; left out, it is the bot of `token`.
    """

    def __init__(
        self,
        token: str = DEFAULT_TOKEN,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        time_scale: float = 1.0,
        settings: BotSettings | None = None,
        accepts_any_token: bool = False,
    ) -> None:
        clock = clock or SystemClock()
        self._host = host
        self._port = port
        self._state = StandInState(
            time=StandInTime(clock, scale=time_scale),
            dice=clock.random,
            settings=settings or BotSettings(),
            accepts_any_token=accepts_any_token,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._delivering: asyncio.Task[Any] | None = None
        self.token = token
        self._state.add_bot(token)

    # --- its life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        BotApi(self._state).add_routes(app)
        ControlSurface(self).add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        # The port stays the same if this stand-in is stopped and started again.
        self._port = self._runner.addresses[0][1]
        self._delivering = spawn(Deliverer(self._state).run(), name="telegram stand-in", into=self._tasks)
        self._delivering.add_done_callback(lambda _: self._state.changes.notify())

    async def stop(self) -> None:
        """Close every connection. What is pending stays, so that `start` goes on from there."""
        await cancel_all(self._tasks)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._raise_if_broken()

    @property
    def url(self) -> str:
        """Where to point a Bot API client."""
        return f"http://{self._host}:{self._port}"

    # --- bots ---------------------------------------------------------------------------------------------

    @property
    def bot_id(self) -> int:
        return self.bot().bot_id

    @property
    def bots(self) -> list[Bot]:
        return list(self._state.bots.values())

    def add_bot(self, token: str) -> Bot:
        return self._state.add_bot(token)

    def bot(self, bot_id: int | None = None) -> Bot:
        """The rules and the state of one bot, to look at or to change."""
        if bot_id is None:
            return self._state.bots[self.token]
        for bot in self.bots:
            if bot.bot_id == bot_id:
                return bot
        raise LookupError(f"no bot {bot_id}")

    # --- telling it what happens --------------------------------------------------------------------------

    def add_update(self, update: updates.Update, *, bot_id: int | None = None) -> QueuedUpdate | None:
        """Something happened. None: the bot will not hear of it, and `dropped` says why."""
        queued = self.bot(bot_id).add_update(update, self.now())
        self._state.changes.notify()
        return queued

    def add_raw(self, body: bytes, *, sub_queue: str = "raw", bot_id: int | None = None) -> QueuedUpdate | None:
        """Deliver exactly these bytes, whatever they are."""
        queued = self.bot(bot_id).add_raw(body, self.now(), sub_queue=sub_queue)
        self._state.changes.notify()
        return queued

    def message(self, text: str = "Hello", *, bot_id: int | None = None, **fields: Any) -> QueuedUpdate | None:
        """Somebody writes to the bot."""
        return self.add_update(updates.message(text, **fields), bot_id=bot_id)

    def edited_message(
        self, text: str, *, message_id: int, bot_id: int | None = None, **fields: Any
    ) -> QueuedUpdate | None:
        return self.add_update(updates.edited_message(text, message_id=message_id, **fields), bot_id=bot_id)

    def callback_query(self, data: str = "yes", *, bot_id: int | None = None, **fields: Any) -> QueuedUpdate | None:
        """Somebody presses a button."""
        return self.add_update(updates.callback_query(data, **fields), bot_id=bot_id)

    def album(
        self,
        captions: Iterable[str | None] = ("Look", None, None),
        *,
        bot_id: int | None = None,
        **fields: Any,
    ) -> list[QueuedUpdate | None]:
        """Somebody sends several photos at once."""
        return [self.add_update(update, bot_id=bot_id) for update in updates.album(tuple(captions), **fields)]

    def add_file(self, content: bytes, *, file_name: str = "file.bin", bot_id: int | None = None) -> str:
        """A file that somebody uploaded; its `file_id` goes into an update."""
        upload = UploadedFile(file_name, content, "application/octet-stream")
        return self.bot(bot_id).files.put(upload).file_id

    # --- telling it what goes wrong -----------------------------------------------------------------------

    def fault(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        chat_id: ChatId | None = None,
        bot_id: int | None = None,
        when: Callable[[Call], bool] | None = None,
        call: int = 1,
        times: int | None = 1,
    ) -> ScriptedFault:
        """Strike the `call`-th matching call from now on, and the following ones up to `times` in all.

        `times=None` means every one. Several faults on the same calls strike one after the other.
        """
        scripted = ScriptedFault(fault, method, chat_id, bot_id, when, call, times)
        self.script.on_calls.append(scripted)
        return scripted

    def delivery_fault(
        self,
        fault: DeliveryFault,
        *,
        update_id: int | None = None,
        kind: str | None = None,
        bot_id: int | None = None,
        when: Callable[[Delivery], bool] | None = None,
        delivery: int = 1,
        times: int | None = 1,
    ) -> ScriptedDeliveryFault:
        """Strike the `delivery`-th matching webhook request from now on, up to `times` in all."""
        scripted = ScriptedDeliveryFault(fault, update_id, kind, bot_id, when, delivery, times)
        self.script.on_deliveries.append(scripted)
        return scripted

    @property
    def script(self) -> FaultScript:
        """The scripted faults, and the standing conditions `is_unreachable` and `latency_seconds`."""
        return self._state.script

    def conditions(self, bot_id: int | None = None) -> ChatConditions:
        """Which chats are blocked, deactivated, missing or migrated for a bot. Change it at will."""
        return self.bot(bot_id).chats.conditions

    def revoke_token(self, bot_id: int | None = None) -> None:
        """Every call with it gets 401 from now on."""
        self.bot(bot_id).is_token_revoked = True

    def change_send_rates(self, rates: SendRates) -> None:
        """Of every bot, those to come included. What was sent so far is forgotten."""
        old = self._state.settings
        self._state.settings = BotSettings(rates, old.queue_limits, old.callback_answer_seconds_max)
        for bot in self.bots:
            bot.limits = SendLimits(rates)

    def now(self) -> float:
        """The stand-in's time, in seconds since 1970."""
        return self._state.time.now()

    def pass_time(self, seconds: float) -> None:
        """Let time jump: retries become due, updates expire."""
        self._state.time.jump(seconds)
        self._state.changes.notify()

    # --- asking what happened -----------------------------------------------------------------------------

    @property
    def sent(self) -> list[SentMessage]:
        """The messages that were committed, in order. What a person saw, however the caller was answered."""
        return self._state.records.sent

    @property
    def calls(self) -> list[Call]:
        """Every call of every bot, in order of arrival."""
        return self._state.records.calls

    @property
    def deliveries(self) -> list[Delivery]:
        """Every webhook request, in order of start."""
        return self._state.records.deliveries

    def repeated(self) -> list[SentMessage]:
        """The committed messages of which the same chat already had the same text from the same bot."""
        seen: set[tuple[int, ChatId, str]] = set()
        repeated = []
        for message in self.sent:
            key = (message.bot_id, message.chat_id, message.text)
            if key in seen:
                repeated.append(message)
            seen.add(key)
        return repeated

    def texts(self, chat_id: ChatId, *, bot_id: int | None = None) -> list[str]:
        """What the bot's messages in a chat say now, edits done and deletions gone."""
        visible = self.bot(bot_id).chats.visible(chat_id)
        return [message.text for message in visible if message.is_from_bot]

    def pending(self, bot_id: int | None = None) -> list[QueuedUpdate]:
        """The updates that the bot has not taken yet."""
        bot = self.bot(bot_id)
        bot.queue.expire(self.now())
        return bot.queue.pending()

    def dropped(self, bot_id: int | None = None) -> list[DroppedUpdate]:
        """The updates that the bot will never get, with the reason."""
        bot = self.bot(bot_id)
        bot.queue.expire(self.now())
        return bot.queue.dropped

    async def wait_until(self, predicate: Callable[[TelegramStandIn], bool], *, timeout_seconds: float = 10.0) -> None:
        """Return as soon as it holds; `TimeoutError` after so many real seconds.

        Asked whenever something changes in the stand-in, so it has to be about the stand-in.
        """
        async with asyncio.timeout(timeout_seconds):
            while not predicate(self):
                self._raise_if_broken()
                expiries = [bot.queue.next_expiry_at(self.now()) for bot in self.bots]
                until = min((at for at in expiries if at is not None), default=None)
                await self._state.time.wait(self._state.changes, until=until)

    async def wait_for_change(self) -> None:
        await self._state.changes.waiter()

    def reset(self) -> None:
        """Begin anew with the same bots: no updates, webhooks, faults, records or chats."""
        for token, bot in self._state.bots.items():
            bot.close_webhook()
            bot.polling.end("a reset of the stand-in")
            self._state.add_bot(token)
        self.script.clear()
        self._state.records.clear()
        self._state.changes.notify()

    def _raise_if_broken(self) -> None:
        """A fault of the stand-in itself must fail the test that runs into it, not make it wait."""
        delivering = self._delivering
        if delivering is not None and delivering.done() and not delivering.cancelled():
            error = delivering.exception()
            if error is not None:
                raise error

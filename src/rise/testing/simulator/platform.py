"""Telegram in a simulated world: the stand-in's own rules, and a network that keeps nobody's promises.

What it has committed stays committed, whoever dies or stops listening. Everything a checker wants to know is
told at the moment when it becomes true: an update counted as delivered, a message that a person sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rise.api.reading import Message
from rise.channels.port import Incoming
from rise.channels.telegram import TelegramChannel
from rise.channels.telegram.outcomes import Answer, Unanswered
from rise.testing.clock import START
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import Step, World
from rise.testing.telegram.faults import Fault as CallFault
from rise.testing.telegram.rules import Answer as Said
from rise.testing.telegram.rules import Bot, BotSettings, CallParams, SendRates
from rise.testing.telegram.rules.polling import Poll
from rise.testing.telegram.rules.refusals import CallRefused, too_many_requests, unauthorized
from rise.testing.telegram.rules.update_queue import QueuedUpdate
from rise.testing.telegram.rules.webhook import Attempt, WebhookAnswer, WebhookSettings

BOT: Final = "7000000001:simulated"
WEBHOOK_WORD: Final = "known-to-the-platform-alone"
"""The webhook's secret."""
NETWORK_SECONDS: Final = (0.001, 0.05)
SLOW_SECONDS: Final = (0.5, 6.0)
"""Longer than a chat waits between two calls: only the outbox keeps the second from going out beside the first."""
ANSWER_SECONDS_MAX: Final = 60.0
RESET_SECONDS: Final = 0.01

_NETWORK_ERRORS: Final = (
    lambda dice: CallFault.server_error(dice.choice((500, 502, 504)), commits=dice.random() < 0.5),
    lambda dice: CallFault.html_body(commits=dice.random() < 0.5),
    lambda dice: CallFault.truncated_json(commits=dice.random() < 0.7),
    lambda dice: CallFault.wrong_body(commits=dice.random() < 0.5),
)


class Door(Protocol):
    """A gateway's webhook, as the platform finds it."""

    process: Process

    @property
    def is_open(self) -> bool: ...

    async def post(self, headers: list[tuple[bytes, bytes]], body: bytes) -> list[Message]:
        """One request; what was answered. Runs in the gateway's process."""
        ...


class Listener(Protocol):
    """Hears of what can no longer be undone."""

    def delivered(self, update: QueuedUpdate) -> None:
        """The platform forgets it."""

    def sent(self, method: str, params: Mapping[str, Any]) -> None:
        """A person sees it."""

    def read(self, incoming: Incoming) -> None:
        """A process has read it, and goes by what it knew in this moment."""


class Platform:
    """One bot's side of Telegram."""

    def __init__(self, world: World, listener: Listener) -> None:
        self.bot = Bot(BOT, dice=world.dice_for("telegram"), settings=BotSettings(send_rates=SendRates.unlimited()))
        self.doors: list[Door] = []
        self._world = world
        self._listener = listener
        self._pumping_at: float | None = None
        self._polls: list[tuple[Poll, Callable[[Answer], None]]] = []
        self._knocking: dict[Process, list[Callable[[], None]]] = {}
        self._out: set[tuple[Process, str]] = set()
        """To which chats a process sends now."""
        world.on_death.append(self._hang_up)

    @property
    def account(self) -> str:
        return str(self.bot.bot_id)

    def now(self) -> float:
        """Seconds since 1970. The platform's clock is right."""
        return START.timestamp() + self._world.now

    def is_quiet(self) -> bool:
        return not len(self.bot.queue)

    # --- what people do ---

    def add(self, update: Mapping[str, Any]) -> QueuedUpdate | None:
        queued = self.bot.add_update(update, self.now())
        self.pump()
        return queued

    def knock(self, body: bytes, secret: str, on_answer: Callable[[int | None], None] = lambda status: None) -> None:
        """Somebody posts to the webhook. Whoever knows the secret is taken for the platform."""
        self._post(body, secret, lambda answer: on_answer(answer.status))

    # --- updates to gateways ---

    def use_webhook(self) -> None:
        self.bot.call(
            "setWebhook",
            CallParams({"url": "https://rise.example/telegram/webhook", "secret_token": WEBHOOK_WORD}),
            self.now(),
        )

    def pump(self) -> None:
        """Start the deliveries and answer the polls that are due."""
        for attempt in self.bot.start_deliveries(self.now()):
            self._deliver(attempt)
        due_at = self.bot.next_delivery_at(self.now())
        if due_at is not None:
            self._world.timeline.after(max(0.0, due_at - self.now()) + 0.0005, self.pump)
        self._answer_polls()

    def _deliver(self, attempt: Attempt) -> None:
        assert isinstance(attempt.webhook.settings, WebhookSettings)
        is_over = False

        def finish(answer: WebhookAnswer) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._world.note("telegram", "delivered" if answer.is_success else "not delivered", str(attempt.number))
                if answer.is_success:
                    self._listener.delivered(attempt.update)
                self.bot.finish_delivery(attempt, answer, self.now())
                self.pump()

        copies = 2 if self._world.is_struck(FaultKind.UPDATES_DOUBLED) else 1
        for _ in range(copies):
            self._post(attempt.update.body, WEBHOOK_WORD, finish)

    def _post(self, body: bytes, secret: str, on_answer: Callable[[WebhookAnswer], None]) -> None:
        world = self._world
        world.timeline.after(ANSWER_SECONDS_MAX, lambda: on_answer(WebhookAnswer(None, "Read timeout expired")))
        if world.is_struck(FaultKind.UPDATES_LOST):
            return

        def arrive() -> None:
            doors = [door for door in self.doors if door.is_open]
            if not doors:
                world.timeline.after(RESET_SECONDS, lambda: on_answer(WebhookAnswer(None, "Connection refused")))
                return
            self._enter(world.dice.choice(doors), body, secret, on_answer)

        world.timeline.after(self._latency(), arrive)

    def _enter(self, door: Door, body: bytes, secret: str, on_answer: Callable[[WebhookAnswer], None]) -> None:
        world, process = self._world, door.process
        headers = [
            (b"x-telegram-bot-api-secret-token", secret.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        hang_up = lambda: on_answer(WebhookAnswer(None, "Connection reset"))  # noqa: E731
        self._knocking.setdefault(process, []).append(hang_up)

        def answered(task: asyncio.Task[list[Message]]) -> None:
            self._knocking[process].remove(hang_up)
            answer = _webhook_answer([] if task.cancelled() or task.exception() else task.result())
            if answer.is_success and world.is_struck(FaultKind.ANSWERS_LOST):
                return
            world.timeline.after(self._latency(), lambda: on_answer(answer))

        process.spawn(door.post(headers, body), name="webhook").add_done_callback(answered)

    def _hang_up(self, process: Process) -> None:
        """The kernel closes the connections of a process that has died."""
        for hang_up in self._knocking.pop(process, []):
            self._world.timeline.after(RESET_SECONDS, hang_up)

    def read(self, incoming: Incoming) -> None:
        self._listener.read(incoming)

    # --- calls by gateways ---

    async def exchange(
        self, process: Process, method: str, params: Mapping[str, Any], timeout_seconds: float
    ) -> Answer | Unanswered:
        """One call of the Bot API, made in `process`."""
        step = self._world.begin_step(process, f"telegram.{method}")
        if step.is_over:
            await asyncio.get_running_loop().create_future()
        with self._being_out(process, method, params):
            return await self._exchange(process, step, method, params, timeout_seconds)

    @contextmanager
    def _being_out(self, process: Process, method: str, params: Mapping[str, Any]) -> Iterator[None]:
        """I8. What a process has sent that died or is frozen is still on its way when another sends."""
        if method != "sendMessage":
            yield
            return
        out = (process, str(params.get("chat_id")))
        if out in self._out:
            self._world.violate("I8", f"two calls to chat {out[1]} are out at once")
        self._out.add(out)
        try:
            yield
        finally:
            self._out.discard(out)

    async def _exchange(
        self, process: Process, step: Step, method: str, params: Mapping[str, Any], timeout_seconds: float
    ) -> Answer | Unanswered:
        world, loop = self._world, asyncio.get_running_loop()
        if world.is_struck(FaultKind.PLATFORM_GONE):
            await asyncio.sleep(world.dice.uniform(0.01, 1.0))  # noqa: TID251 - virtual
            return Unanswered("ClientConnectorError", body_went_out=world.dice.random() < 0.2)
        done: asyncio.Future[Answer | Unanswered] = loop.create_future()

        def answer(outcome: Answer | Unanswered) -> None:
            if world.is_struck(FaultKind.CALLS_UNANSWERED):
                outcome = Unanswered("ServerDisconnectedError", body_went_out=True)
            process.call_from_outside(_settle, done, outcome)

        def commit() -> None:
            self._commit(method, params, answer)
            world.end_step(process, step)

        world.timeline.after(self._latency() + self._slowness(), commit)
        loop.call_later(timeout_seconds, _settle, done, Unanswered("TimeoutError", body_went_out=True))
        return await done

    def _commit(self, method: str, params: Mapping[str, Any], answer: Callable[[Answer | Unanswered], None]) -> None:
        world = self._world
        if method == "getUpdates":
            self._poll(params, answer)
            return
        fault = self._fault()
        said = fault.answer if fault is not None else None
        if fault is None or fault.commits:
            before = len(self.bot.sent)
            honest = self.bot.call(method, CallParams(dict(params)), self.now())
            said = said or honest
            if len(self.bot.sent) > before:
                world.note("telegram", method, str(params.get("text", ""))[:40])
                self._listener.sent(method, params)
        assert said is not None
        body = said.body[: len(said.body) // 2] if fault is not None and fault.truncates else said.body
        world.timeline.after(self._latency(), lambda: answer(Answer(said.status, body)))
        self.pump()

    def _fault(self) -> CallFault | None:
        world = self._world
        if world.is_struck(FaultKind.BOT_UNKNOWN):
            return CallFault.refusing(unauthorized())
        if world.is_struck(FaultKind.CALLS_FLOODED) and world.dice.random() < 0.7:
            return CallFault.refusing(too_many_requests(world.dice.randint(1, 3)))
        if world.is_struck(FaultKind.CALLS_FAIL) and world.dice.random() < 0.7:
            fault: CallFault = world.dice.choice(_NETWORK_ERRORS)(world.dice)
            return fault
        return None

    def _poll(self, params: Mapping[str, Any], answer: Callable[[Answer | Unanswered], None]) -> None:
        before = self.bot.queue.pending()
        try:
            poll = self.bot.begin_poll(CallParams(dict(params)), self.now())
        except CallRefused as refusal:
            said = Said.refusing(refusal)
            self._world.timeline.after(self._latency(), lambda: answer(Answer(said.status, said.body)))
            return
        for update in before:
            if update not in self.bot.queue:
                self._listener.delivered(update)
        self._polls.append((poll, answer))
        self._world.timeline.after(max(0.0, poll.ends_at - self.now()) + 0.001, self._answer_polls)
        self._answer_polls()

    def _answer_polls(self) -> None:
        waiting = []
        for poll, answer in self._polls:
            said = self.bot.answer_poll(poll, self.now())
            if said is None:
                waiting.append((poll, answer))
            else:
                self._world.timeline.after(self._latency(), _later(answer, Answer(said.status, said.body)))
        self._polls = waiting

    def _latency(self) -> float:
        return self._world.dice.uniform(*NETWORK_SECONDS)

    def _slowness(self) -> float:
        world = self._world
        return world.dice.uniform(*SLOW_SECONDS) if world.is_struck(FaultKind.CALLS_SLOW) else 0.0


class SimTelegramChannel(TelegramChannel):
    """The real channel on a simulated wire."""

    def __init__(self, platform: Platform, process: Process, **options: Any) -> None:
        super().__init__([BOT], **options)
        self._platform = platform
        self._process = process

    def read_update(self, body: bytes, **options: Any) -> Incoming:
        incoming = super().read_update(body, **options)
        self._platform.read(incoming)
        return incoming

    async def exchange(
        self, account: str, method: str, params: Mapping[str, Any], *, timeout_seconds: float | None = None
    ) -> Answer | Unanswered:
        return await self._platform.exchange(
            self._process, method, params, self._timeout_seconds if timeout_seconds is None else timeout_seconds
        )


def _webhook_answer(messages: list[Message]) -> WebhookAnswer:
    if not messages:
        return WebhookAnswer(None, "Connection reset")
    headers = dict(messages[0]["headers"])
    retry_after = headers.get(b"retry-after")
    return WebhookAnswer(messages[0]["status"], retry_after_header=retry_after.decode() if retry_after else None)


def _later(answer: Callable[[Answer], None], outcome: Answer) -> Callable[[], None]:
    return lambda: answer(outcome)


def _settle(done: asyncio.Future[Any], outcome: Any) -> None:
    if not done.done():
        done.set_result(outcome)

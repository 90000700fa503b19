"""One bot as the Bot API server sees it: its updates, its webhook, its chats and what it sent.

Promises: every rule about one bot is reachable from here, and nothing here does I/O or reads a clock. The
HTTP shell and a simulator drive the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rise.testing.telegram.rules.chats import Chats, SentMessage
from rise.testing.telegram.rules.files import Files
from rise.testing.telegram.rules.methods import METHODS, Described
from rise.testing.telegram.rules.params import CallParams
from rise.testing.telegram.rules.polling import Poll, Polling
from rise.testing.telegram.rules.refusals import CallRefused, conflict, not_found, unauthorized
from rise.testing.telegram.rules.send_limits import SendLimits, SendRates
from rise.testing.telegram.rules.update_queue import (
    Dice,
    DropReason,
    QueuedUpdate,
    UpdateQueue,
    UpdateQueueLimits,
    compact_json,
    kind_of,
)
from rise.testing.telegram.rules.webhook import Attempt, AttemptOutcome, WebhookAnswer, WebhookDelivery

KINDS_SENT_ONLY_IF_ASKED_FOR: Final = frozenset({"chat_member", "message_reaction", "message_reaction_count"})

_MESSAGE_KINDS: Final = frozenset(
    {
        "message",
        "edited_message",
        "channel_post",
        "edited_channel_post",
        "business_message",
        "edited_business_message",
    }
)
_QUERY_KINDS: Final = frozenset({"callback_query", "inline_query", "shipping_query", "pre_checkout_query"})
_DATED_KINDS: Final = frozenset(
    {"my_chat_member", "chat_member", "chat_join_request", "message_reaction", "message_reaction_count"}
)


@dataclass(frozen=True, slots=True)
class BotSettings:
    """What may be changed about a bot's server side."""

    send_rates: SendRates = field(default_factory=SendRates)
    queue_limits: UpdateQueueLimits = field(default_factory=UpdateQueueLimits)
    callback_answer_seconds_max: float = 15.0
    """How long a callback can be answered. The real limit is not published; this is about what is seen."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says to one call."""

    status: int
    body: bytes
    is_ok: bool
    retry_after_seconds: int | None = None
    content_type: str = "application/json"

    @classmethod
    def of(cls, result: Any) -> Answer:
        body: dict[str, Any] = {"ok": True, "result": result}
        if isinstance(result, Described):
            body = {"ok": True, "result": result.result, "description": result.description}
        return cls(200, compact_json(body), is_ok=True)

    @classmethod
    def refusing(cls, refusal: CallRefused) -> Answer:
        return cls(
            status=refusal.error_code,
            body=compact_json(refusal.body()),
            is_ok=False,
            retry_after_seconds=refusal.parameters.get("retry_after"),
        )


class Bot:
    """The server's side of one bot.

    `call` never waits: a `getUpdates` without updates is answered at once. `begin_poll` and `answer_poll` are
    for callers who can wait.
    """

    def __init__(
        self,
        token: str,
        *,
        dice: Dice,
        settings: BotSettings | None = None,
        sent: list[SentMessage] | None = None,
    ) -> None:
        self.token = token
        self.bot_id = int(token.partition(":")[0])
        self.dice = dice
        self.settings = settings or BotSettings()
        self.sent = sent if sent is not None else []
        self.queue = UpdateQueue(dice, self.settings.queue_limits)
        self.polling = Polling(self.queue)
        self.limits = SendLimits(self.settings.send_rates)
        self.chats = Chats()
        self.files = Files(self.bot_id)
        self.webhook: WebhookDelivery | None = None
        self.webhook_set_at = float("-inf")
        self.allowed_updates: tuple[str, ...] = ()
        self.callbacks_issued_at: dict[str, float] = {}
        self.commands: list[Any] = []
        self.is_token_revoked = False
        self.last_synchronization_error_at: float | None = None

    @property
    def user(self) -> dict[str, Any]:
        return {
            "id": self.bot_id,
            "is_bot": True,
            "first_name": "Stand-in",
            "username": f"stand_in_{self.bot_id}_bot",
        }

    # --- what people do -----------------------------------------------------------------------------------

    def add_update(self, update: Mapping[str, Any], now: float) -> QueuedUpdate | None:
        """Something happened. Ids and dates left out are filled in; None if the bot will not hear of it."""
        kind = kind_of(update)
        content = update.get(kind)
        if isinstance(content, Mapping):
            content = self._completed(kind, content, now)
            self._remember(kind, content, now)
        if not self._is_allowed(kind):
            self.queue.refuse(kind, DropReason.NOT_ALLOWED, now)
            return None
        return self._offer(self.queue.add({**update, kind: content}, now), now)

    def add_raw(self, body: bytes, now: float, *, sub_queue: str = "raw") -> QueuedUpdate | None:
        """Deliver exactly these bytes."""
        return self._offer(self.queue.add_raw(body, now, sub_queue=sub_queue), now)

    # --- what the bot calls -------------------------------------------------------------------------------

    def call(self, method: str, params: CallParams, now: float) -> Answer:
        """Commit one call, or refuse it."""
        try:
            if method.lower() == "getupdates":
                return self.answer_poll(self.begin_poll(params, now), now) or Answer.of([])
            self._check_token()
            if method.lower() not in METHODS:
                raise not_found()
            return Answer.of(METHODS[method.lower()](self, params, now))
        except CallRefused as refusal:
            return Answer.refusing(refusal)

    def begin_poll(self, params: CallParams, now: float) -> Poll:
        """Start a `getUpdates`. Raises `CallRefused` if it cannot be."""
        self._check_token()
        if self.webhook is not None:
            raise conflict(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
            )
        self.change_allowed_updates(params)
        return self.polling.begin(
            offset=params.integer("offset"),
            limit=params.integer("limit", 100),
            timeout_seconds=params.integer("timeout"),
            now=now,
        )

    def answer_poll(self, poll: Poll, now: float) -> Answer | None:
        """The answer to a poll, or None while it has to wait."""
        try:
            updates = self.polling.answer(poll, now)
        except CallRefused as refusal:
            return Answer.refusing(refusal)
        if updates is None:
            return None
        # Joined, not encoded anew: what was put in as raw bytes has to come out as it went in.
        bodies = b",".join(update.body for update in updates)
        return Answer(200, b'{"ok":true,"result":[' + bodies + b"]}", is_ok=True)

    def change_allowed_updates(self, params: CallParams) -> None:
        """An empty list means the default; leaving it out changes nothing."""
        kinds = params.structure("allowed_updates")
        if isinstance(kinds, list):
            self.allowed_updates = tuple(str(kind).lower() for kind in kinds)

    # --- what the server calls ----------------------------------------------------------------------------

    def start_deliveries(self, now: float) -> list[Attempt]:
        """The webhook requests to make now. Each must come back through `finish_delivery`."""
        return self.webhook.start_due(now) if self.webhook else []

    def next_delivery_at(self, now: float) -> float | None:
        return self.webhook.next_due_at(now) if self.webhook else None

    def finish_delivery(self, attempt: Attempt, answer: WebhookAnswer, now: float) -> AttemptOutcome:
        outcome = attempt.webhook.finish(attempt, answer, now)
        if outcome is AttemptOutcome.WEBHOOK_DELETED:
            self.close_webhook()
        return outcome

    def close_webhook(self) -> None:
        if self.webhook is not None:
            self.webhook.close()
            self.webhook = None

    # --- within -------------------------------------------------------------------------------------------

    def _check_token(self) -> None:
        if self.is_token_revoked:
            raise unauthorized()

    def _is_allowed(self, kind: str) -> bool:
        if self.allowed_updates:
            return kind in self.allowed_updates
        return kind not in KINDS_SENT_ONLY_IF_ASKED_FOR

    def _offer(self, update: QueuedUpdate | None, now: float) -> QueuedUpdate | None:
        if update is not None and self.webhook is not None:
            self.webhook.add(update, now)
        return update

    def _completed(self, kind: str, content: Mapping[str, Any], now: float) -> dict[str, Any]:
        completed = dict(content)
        chat = completed.get("chat")
        if kind in _MESSAGE_KINDS and isinstance(chat, Mapping):
            completed.setdefault("message_id", self.chats.next_message_id(chat["id"]))
            completed.setdefault("date", int(now))
            if kind.startswith("edited"):
                completed.setdefault("edit_date", int(now))
        elif kind in _QUERY_KINDS:
            completed.setdefault("id", str(self.dice.randint(10**17, 10**18)))
            if isinstance(completed.get("message"), Mapping):
                completed["message"] = {"date": int(now), **completed["message"]}
        elif kind in _DATED_KINDS:
            completed.setdefault("date", int(now))
        return completed

    def _remember(self, kind: str, content: Mapping[str, Any], now: float) -> None:
        if kind in _MESSAGE_KINDS:
            self.chats.put_received(content)
        elif kind == "callback_query":
            self.callbacks_issued_at[str(content["id"])] = now

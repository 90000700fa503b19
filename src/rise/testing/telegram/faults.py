"""What can go wrong, on which call.

Promises: a fault says whether the call is committed, when it is answered and with what, so that a test knows
on which side of the commit it struck. A script decides on which call a fault strikes; each scripted fault
counts the calls that match it, from the moment it was added. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from rise.testing.telegram.records import Call, Delivery
from rise.testing.telegram.rules import Answer, CallRefused, ChatId, refusals

_ERROR_PAGE: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call. Use the constructors below; their names say it."""

    name: str
    commits: bool
    stall_before_seconds: float = 0.0
    stall_after_seconds: float = 0.0
    answer: Answer | None = None
    """What is said instead of the truth."""
    closes: bool = False
    truncates: bool = False

    # --- the answer is late or lost -----------------------------------------------------------------------

    @classmethod
    def delay(cls, seconds: float) -> Fault:
        """Wait, then commit and answer as ever. The commit comes even if the caller has left."""
        return cls("delay", commits=True, stall_before_seconds=seconds)

    @classmethod
    def stall_before_commit(cls, seconds: float) -> Fault:
        """Say nothing for so long, then close. Nothing was committed."""
        return cls("stall_before_commit", commits=False, stall_before_seconds=seconds, closes=True)

    @classmethod
    def commit_then_stall(cls, seconds: float) -> Fault:
        """Commit at once, answer so much later."""
        return cls("commit_then_stall", commits=True, stall_after_seconds=seconds)

    @classmethod
    def commit_then_close(cls) -> Fault:
        """Commit, and close the connection without a word."""
        return cls("commit_then_close", commits=True, closes=True)

    @classmethod
    def close_before_commit(cls) -> Fault:
        return cls("close_before_commit", commits=False, closes=True)

    # --- the answer cannot be trusted ---------------------------------------------------------------------

    @classmethod
    def server_error(cls, status: int = 500, *, commits: bool = False) -> Fault:
        """A 5xx in JSON, as the Bot API itself answers it."""
        refusal = CallRefused(status, "Internal Server Error")
        return cls("server_error", commits=commits, answer=Answer.refusing(refusal))

    @classmethod
    def html_body(cls, status: int = 502, *, commits: bool = False) -> Fault:
        """A page instead of JSON, as a proxy in front answers it."""
        return cls("html_body", commits=commits, answer=_said(status, _ERROR_PAGE, "text/html"))

    @classmethod
    def truncated_json(cls, *, commits: bool = True) -> Fault:
        """The first half of the real answer; if nothing is committed, of one that looks real."""
        lookalike = _said(200, b'{"ok":true,"result":{"message_id":1,"da')
        if not commits:
            return cls("truncated_json", commits=False, answer=lookalike)
        return cls("truncated_json", commits=True, truncates=True)

    @classmethod
    def wrong_body(
        cls,
        body: bytes = b'{"status":"success"}',
        *,
        content_type: str = "application/json",
        commits: bool = False,
    ) -> Fault:
        """A 200 from somebody who is not Telegram."""
        return cls("wrong_body", commits=commits, answer=_said(200, body, content_type))

    # --- the server refuses -------------------------------------------------------------------------------

    @classmethod
    def too_many_requests(cls, retry_after_seconds: int = 1) -> Fault:
        return cls.refusing(refusals.too_many_requests(retry_after_seconds), name="too_many_requests")

    @classmethod
    def blocked(cls) -> Fault:
        return cls.refusing(refusals.blocked_by_user(), name="blocked")

    @classmethod
    def unauthorized(cls) -> Fault:
        return cls.refusing(refusals.unauthorized(), name="unauthorized")

    @classmethod
    def bad_request(cls, why: str = "chat not found") -> Fault:
        return cls.refusing(refusals.bad_request(why), name="bad_request")

    @classmethod
    def migrated(cls, new_chat_id: int) -> Fault:
        return cls.refusing(refusals.migrated(new_chat_id), name="migrated")

    @classmethod
    def refusing(cls, refusal: CallRefused, *, name: str = "refused") -> Fault:
        """Any refusal in the words of the Bot API."""
        return cls(name, commits=False, answer=Answer.refusing(refusal))


def _said(status: int, body: bytes, content_type: str = "application/json") -> Answer:
    return Answer(status, body, is_ok=status == 200, content_type=content_type)


FAULTS: Final[dict[str, Callable[..., Fault]]] = {
    "delay": Fault.delay,
    "stall_before_commit": Fault.stall_before_commit,
    "commit_then_stall": Fault.commit_then_stall,
    "commit_then_close": Fault.commit_then_close,
    "close_before_commit": Fault.close_before_commit,
    "server_error": Fault.server_error,
    "html_body": Fault.html_body,
    "truncated_json": Fault.truncated_json,
    "wrong_body": Fault.wrong_body,
    "too_many_requests": Fault.too_many_requests,
    "blocked": Fault.blocked,
    "unauthorized": Fault.unauthorized,
    "bad_request": Fault.bad_request,
    "migrated": Fault.migrated,
}
"""By the name that the control surface uses."""


@dataclass(frozen=True, slots=True)
class DeliveryFault:
    """What happens to one webhook request on its way."""

    name: str
    is_sent: bool = True
    loses_answer: bool = False
    delay_seconds: float = 0.0
    extra_copies: int = 0

    @classmethod
    def lose_request(cls) -> DeliveryFault:
        """The bot never sees it; the server counts a failure."""
        return cls("lose_request", is_sent=False)

    @classmethod
    def lose_answer(cls) -> DeliveryFault:
        """The bot answers, the server never hears it, and so sends the update again."""
        return cls("lose_answer", loses_answer=True)

    @classmethod
    def delay(cls, seconds: float) -> DeliveryFault:
        return cls("delay", delay_seconds=seconds)

    @classmethod
    def send_copies(cls, count: int = 1) -> DeliveryFault:
        """The same request several times at once; only the last answer counts."""
        return cls("send_copies", extra_copies=count)


DELIVERY_FAULTS: Final[dict[str, Callable[..., DeliveryFault]]] = {
    "lose_request": DeliveryFault.lose_request,
    "lose_answer": DeliveryFault.lose_answer,
    "delay": DeliveryFault.delay,
    "send_copies": DeliveryFault.send_copies,
}


@dataclass(slots=True)
class ScriptedFault:
    """A fault and when it strikes: from the `call`-th matching call on, `times` times (None: for ever)."""

    fault: Fault
    method: str | None = None
    chat_id: ChatId | None = None
    bot_id: int | None = None
    when: Callable[[Call], bool] | None = None
    call: int = 1
    times: int | None = 1
    matched_count: int = 0
    struck_count: int = 0

    def is_due(self, call: Call) -> bool:
        """Count the call if it matches, and say whether the fault's turn has come."""
        if not self._matches(call):
            return False
        self.matched_count += 1
        return self.matched_count >= self.call and self.struck_count != self.times

    def _matches(self, call: Call) -> bool:
        return (
            (self.method is None or self.method.lower() == call.method.lower())
            and (self.chat_id is None or self.chat_id == call.chat_id)
            and (self.bot_id is None or self.bot_id == call.bot_id)
            and (self.when is None or self.when(call))
        )


@dataclass(slots=True)
class ScriptedDeliveryFault:
    """A delivery fault and when it strikes, counted as for calls."""

    fault: DeliveryFault
    update_id: int | None = None
    kind: str | None = None
    bot_id: int | None = None
    when: Callable[[Delivery], bool] | None = None
    delivery: int = 1
    times: int | None = 1
    matched_count: int = 0
    struck_count: int = 0

    def is_due(self, delivery: Delivery) -> bool:
        if not self._matches(delivery):
            return False
        self.matched_count += 1
        return self.matched_count >= self.delivery and self.struck_count != self.times

    def _matches(self, delivery: Delivery) -> bool:
        return (
            (self.update_id is None or self.update_id == delivery.update_id)
            and (self.kind is None or self.kind == delivery.kind)
            and (self.bot_id is None or self.bot_id == delivery.bot_id)
            and (self.when is None or self.when(delivery))
        )


@dataclass(slots=True)
class FaultScript:
    """Everything that was scripted, and the standing conditions beside it."""

    on_calls: list[ScriptedFault] = field(default_factory=list)
    on_deliveries: list[ScriptedDeliveryFault] = field(default_factory=list)
    is_unreachable: bool = False
    """Every connection of a bot is closed without an answer. The control surface stays open."""
    latency_seconds: float = 0.0
    """How long every call waits before it is looked at."""

    def for_call(self, call: Call) -> Fault | None:
        """The fault that strikes this call: of those due the first added; the others wait for the next."""
        # All of them look at the call before one is chosen, because each counts for itself.
        due = [scripted for scripted in self.on_calls if scripted.is_due(call)]
        if not due:
            return None
        due[0].struck_count += 1
        return due[0].fault

    def for_delivery(self, delivery: Delivery) -> DeliveryFault | None:
        due = [scripted for scripted in self.on_deliveries if scripted.is_due(delivery)]
        if not due:
            return None
        due[0].struck_count += 1
        return due[0].fault

    def clear(self) -> None:
        self.on_calls.clear()
        self.on_deliveries.clear()
        self.is_unreachable = False
        self.latency_seconds = 0.0

"""How fast a bot may send before it is told to wait.

Promises: about one message a second for a chat with a small burst, so many a minute for a group, so many a
second for the bot. Whoever is told to wait and does not is refused until the time told has passed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from rise.testing.telegram.rules.params import ChatId
from rise.testing.telegram.rules.refusals import too_many_requests


@dataclass(frozen=True, slots=True)
class SendRates:
    """What is allowed. The real server publishes no exact numbers; these are its own rough ones."""

    chat_per_second: float = 1.0
    chat_burst: int = 3
    group_per_minute: int = 20
    bot_per_second: int = 30
    are_enforced: bool = True

    @classmethod
    def unlimited(cls) -> SendRates:
        return cls(are_enforced=False)


@dataclass(slots=True)
class _ChatBudget:
    tokens: float
    filled_at: float
    sent_at: deque[float] = field(default_factory=deque)
    waits_until: float = float("-inf")


@dataclass(slots=True)
class SendLimits:
    """What one bot has sent lately."""

    rates: SendRates = field(default_factory=SendRates)
    _chats: dict[ChatId, _ChatBudget] = field(default_factory=dict)
    _sent_at: deque[float] = field(default_factory=deque)
    _bot_waits_until: float = float("-inf")

    def take(self, chat_id: ChatId, now: float, *, message_count: int = 1) -> None:
        """Count messages to a chat, or refuse them all."""
        if not self.rates.are_enforced:
            return
        chat = self._chats.setdefault(chat_id, _ChatBudget(float(self.rates.chat_burst), now))
        self._refill(chat, now)
        _forget_before(self._sent_at, now - 1)
        _forget_before(chat.sent_at, now - 60)
        self._take_bot(now, message_count)
        self._take_chat(chat, chat_id, now, message_count)
        chat.tokens -= message_count
        chat.sent_at.extend([now] * message_count)
        self._sent_at.extend([now] * message_count)

    def _take_bot(self, now: float, message_count: int) -> None:
        if now < self._bot_waits_until:
            raise too_many_requests(_whole_seconds(self._bot_waits_until - now))
        if len(self._sent_at) + message_count > self.rates.bot_per_second:
            self._bot_waits_until = now + 1
            raise too_many_requests(1)

    def _take_chat(self, chat: _ChatBudget, chat_id: ChatId, now: float, message_count: int) -> None:
        if now < chat.waits_until:
            raise too_many_requests(_whole_seconds(chat.waits_until - now))
        # An album larger than the burst could otherwise never be sent: it may overdraw a full budget.
        missing = min(message_count, self.rates.chat_burst) - chat.tokens
        wait_seconds = missing / self.rates.chat_per_second if missing > 1e-9 else 0.0
        if _is_group(chat_id) and len(chat.sent_at) + message_count > self.rates.group_per_minute:
            wait_seconds = max(wait_seconds, chat.sent_at[0] + 60 - now if chat.sent_at else 60)
        if wait_seconds > 0:
            retry_after_seconds = _whole_seconds(wait_seconds)
            chat.waits_until = now + retry_after_seconds
            raise too_many_requests(retry_after_seconds)

    def _refill(self, chat: _ChatBudget, now: float) -> None:
        grown = chat.tokens + (now - chat.filled_at) * self.rates.chat_per_second
        chat.tokens = min(float(self.rates.chat_burst), grown)
        chat.filled_at = now


def _is_group(chat_id: ChatId) -> bool:
    return isinstance(chat_id, int) and chat_id < 0


def _forget_before(times: deque[float], earliest: float) -> None:
    while times and times[0] <= earliest:
        times.popleft()


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))

"""What happened, kept so that tests can count it.

Promises: every call and every webhook request has one record from the moment it was seen, in order; a record
says on which side of the commit things went wrong. Times are the stand-in's own seconds since 1970.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rise.testing.telegram.rules import ChatId, SentMessage


@dataclass(slots=True)
class Call:
    """One Bot API call."""

    number: int
    bot_id: int
    method: str
    params: dict[str, Any]
    chat_id: ChatId | None
    at: float
    status: int | None = None
    """What the client was answered; None as long as, or because, it got no answer."""
    is_committed: bool = False
    ended_at: float | None = None
    fault: str | None = None
    came_from_webhook: bool = False
    """Made by the body of a webhook answer, not by a request."""


@dataclass(slots=True)
class Delivery:
    """One webhook request."""

    number: int
    bot_id: int
    update_id: int
    kind: str
    sub_queue: str
    attempt: int
    body: bytes
    started_at: float
    ended_at: float | None = None
    status: int | None = None
    """What the bot answered; None if the server heard nothing."""
    error: str = ""
    retry_after_header: str | None = None
    """When the bot said to come again, in its words."""
    outcome: str | None = None
    fault: str | None = None


@dataclass(slots=True)
class Records:
    sent: list[SentMessage] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def clear(self) -> None:
        for records in (self.sent, self.calls, self.deliveries):
            records.clear()


def shown(value: Any) -> Any:
    """Anything above as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: shown(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(name): shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [shown(each) for each in value]
    return value

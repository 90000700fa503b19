"""Conditions a person should know of: said once when they begin and once when they end.

Always in the log and as a metric. A message as well, to whoever is configured (`rise.runtime.alert_posts`): at
most one per alert within the quiet time, however often it comes and goes, and a second when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from rise.clock import Clock, iso
from rise.telemetry import alert_raised, clean, log


class AlertMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of an alert."""

    alert: str
    state: str
    """`raised` or `resolved`."""
    summary: str
    at: str
    details: dict[str, Any] = {}
    untold: int = 0
    """How often it was raised since the last message, without one."""


class AlertRaised(msgspec.Struct, frozen=True, kw_only=True):
    """One that lasts, in the words in which it was told and logged."""

    alert: str
    since: datetime
    summary: str
    consequence: str = ""
    remedy: str = ""


class AlertBook:
    """What is raised in this process now, for whoever shows it."""

    def __init__(self) -> None:
        self._raised: dict[str, AlertRaised] = {}

    def all(self) -> list[AlertRaised]:
        """The latest last."""
        return list(self._raised.values())

    def note(self, alert: AlertRaised) -> None:
        """It is raised, or still is and says something else by now."""
        before = self._raised.get(alert.alert)
        since = alert.since if before is None else before.since
        self._raised[alert.alert] = msgspec.structs.replace(alert, since=since)

    def forget(self, name: str) -> None:
        self._raised.pop(name, None)


def in_number(count: int, what: str = "message") -> str:
    """`1 message`, `3 messages`: as alerts and details word it."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@dataclass(slots=True)
class _Condition:
    began_at: float | None = None
    is_raised: bool = False
    is_told: bool = False
    told_at: float | None = None
    untold: int = 0


@dataclass(slots=True)
class Alerts:
    """Which alerts are raised now. Kept in memory, and found again after a restart."""

    _clock: Clock
    _tell: Callable[[AlertMessage], None] = lambda message: None
    """Never waits and never fails."""
    _quiet_seconds: float = 300.0
    book: AlertBook = field(default_factory=AlertBook)
    _conditions: dict[str, _Condition] = field(default_factory=dict)

    def follow(
        self, name: str, is_raised: bool, *, summary: str = "", after_seconds: float = 0.0, **details: Any
    ) -> None:
        """Raise or resolve as the condition says; nothing happens while it stays as it is.

        To be called again and again. `after_seconds`: what passes sooner is none.
        """
        condition = self._conditions.setdefault(name, _Condition())
        now = self._clock.monotonic()
        if not is_raised:
            self._resolve(name, condition)
            return
        if condition.began_at is None:
            condition.began_at = now
        if not condition.is_raised and now - condition.began_at >= after_seconds:
            condition.is_raised = True
            condition.untold += 1
            log.error("alert.raised", alert=name, summary=summary, **details)
        if condition.is_raised:
            self.book.note(self._shown(name, summary, details))
        alert_raised.labels(name).set(int(condition.is_raised))
        is_quiet = condition.told_at is not None and now - condition.told_at < self._quiet_seconds
        if condition.is_raised and not condition.is_told and not is_quiet:
            condition.is_told, condition.told_at = True, now
            self._tell(self._message(name, "raised", summary, details, condition))
            condition.untold = 0

    def _resolve(self, name: str, condition: _Condition) -> None:
        alert_raised.labels(name).set(0)
        condition.began_at = None
        if not condition.is_raised:
            return
        condition.is_raised = False
        self.book.forget(name)
        log.info("alert.resolved", alert=name)
        if condition.is_told:
            condition.is_told = False
            self._tell(self._message(name, "resolved", "", {}, condition))

    def _shown(self, name: str, summary: str, details: dict[str, Any]) -> AlertRaised:
        return AlertRaised(
            alert=name,
            since=self._clock.now(),
            summary=clean(summary or name),
            consequence=clean(details.get("consequence", "")),
            remedy=clean(details.get("remedy", "")),
        )

    def _message(
        self, name: str, state: str, summary: str, details: dict[str, Any], condition: _Condition
    ) -> AlertMessage:
        shown = {key: value if isinstance(value, int | float) else clean(value) for key, value in details.items()}
        return AlertMessage(
            alert=name,
            state=state,
            summary=clean(summary or name),
            at=iso(self._clock.now()),
            details=shown,
            untold=max(0, condition.untold - 1),
        )

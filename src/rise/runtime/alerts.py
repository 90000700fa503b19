"""Conditions a person should know of: said once when they begin and once when they end.

Refuses: to send anything anywhere. An alert is an error in the log and a metric; what rings is the operator's.
"""

from __future__ import annotations

from typing import Any

from rise.telemetry import alert_raised, log


class Alerts:
    """Which alerts are raised now. De-duplicated by name; kept in memory, found again after a restart."""

    def __init__(self) -> None:
        self._raised: set[str] = set()

    def follow(self, name: str, is_raised: bool, **details: Any) -> None:
        """Raise or resolve as the condition says; nothing happens while it stays as it is."""
        alert_raised.labels(name).set(int(is_raised))
        if is_raised and name not in self._raised:
            self._raised.add(name)
            log.error("alert.raised", alert=name, **details)
        elif not is_raised and name in self._raised:
            self._raised.discard(name)
            log.info("alert.resolved", alert=name)

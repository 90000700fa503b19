"""How many runs of each binding have failed in a row, whoever wrote.

Promises: a run that does not fail ends the row on all hosts, though each hears only of its own runs how they ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from rise.bus.port import Bus, Topic
from rise.envelope import Status
from rise.runtime.binding_health import RUNS, Finding, HealthStatus, Identity

FAILURES_DEGRADED: Final = 3
FAILURES_DOWN: Final = 10
"""So many in a row."""

_IDENTITY: Final = ("channel", "account", "workflow_id")
_NONE: Final = (0, "")


class RunFailures:
    """As far as this process has heard."""

    def __init__(self, bus: Bus, on_news: Callable[[], None]) -> None:
        """`on_news`: called when a finding may be another than it was."""
        self._bus = bus
        self._on_news = on_news
        self._in_a_row: dict[Identity, tuple[int, str]] = {}
        """With the last one's words; 0 after a run that did not fail."""
        self._ending: list[Callable[[], None]] = []

    def start(self) -> None:
        self._ending += [
            self._bus.subscribe(Topic.RUN_FAILED, self._count_failure),
            self._bus.subscribe(Topic.TASK_SETTLED, self._see_success),
            self._bus.subscribe(Topic.RUN_RECOVERED, self._end_row),
        ]

    def stop(self) -> None:
        while self._ending:
            self._ending.pop()()

    def finding(self, identity: Identity) -> Finding | None:
        """None: no run of it has ended yet."""
        known = self._in_a_row.get(identity)
        if known is None:
            return None
        count, error = known
        if count < FAILURES_DEGRADED:
            return Finding(HealthStatus.OK, RUNS, "its runs succeed")
        status = HealthStatus.DOWN if count >= FAILURES_DOWN else HealthStatus.DEGRADED
        return Finding(status, RUNS, f"its last {count} runs have failed: {error}")

    def _count_failure(self, event: Mapping[str, Any]) -> None:
        identity = _identity(event)
        count = self._in_a_row.get(identity, _NONE)[0] + 1
        self._in_a_row[identity] = (count, str(event.get("error")))
        if count in (FAILURES_DEGRADED, FAILURES_DOWN):
            self._on_news()

    def _see_success(self, event: Mapping[str, Any]) -> None:
        """How tasks end is heard on their own host only: whoever hears it there tells the others, if it is news."""
        identity = _identity(event)
        if event.get("status") != Status.COMPLETED or not event.get("workflow_id"):
            return
        if self._in_a_row.get(identity, _NONE)[0]:
            self._bus.publish(Topic.RUN_RECOVERED, dict(zip(_IDENTITY, identity, strict=True)))
        else:
            self._in_a_row[identity] = _NONE

    def _end_row(self, event: Mapping[str, Any]) -> None:
        identity = _identity(event)
        count, _ = self._in_a_row.get(identity, _NONE)
        self._in_a_row[identity] = _NONE
        if count >= FAILURES_DEGRADED:
            self._on_news()


def _identity(event: Mapping[str, Any]) -> Identity:
    channel, account, workflow_id = (str(event.get(field)) for field in _IDENTITY)
    return channel, account, workflow_id

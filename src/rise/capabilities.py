"""What Rise can do right now, and since when that is known.

Promises: a change is logged once, a loss as a warning with what it means for people. Reading never waits; a probe is
bounded, and one that breaks or hangs is an answer: unavailable.

Refuses: to remember. After a start only what has been asked is known, and what is not known closes no door.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from rise.clock import Clock, iso
from rise.errors import CapabilityClosed
from rise.telemetry import capability_available, log, redact

Probe = Callable[[], Awaitable[tuple["CapabilityStatus", str]]]
"""Returns the status and one line of detail; what it raises counts as unavailable."""

TTL_SECONDS: Final = 10.0
PROBE_SECONDS_MAX: Final = 5.0


class CapabilityStatus(StrEnum):
    AVAILABLE = "available"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


_WORTH: Final = {
    CapabilityStatus.AVAILABLE: 1.0,
    CapabilityStatus.DEGRADED: 0.5,
    CapabilityStatus.UNAVAILABLE: 0.0,
}


CONSEQUENCES: Final = {
    "disk": "nothing is accepted, nothing runs; senders are told to come again",
    "worker": "messages are accepted and wait",
    "telegram_webhook": "Telegram keeps the updates, for a day at most",
    "telegram_polling": "Telegram keeps the updates, for a day at most",
    "telegram_sending": "replies wait, each chat's in order",
}
"""What it means for people while one of them is not available: log and doctor say it in the same words."""


@dataclass(frozen=True, slots=True)
class CapabilityState:
    status: CapabilityStatus
    detail: str
    checked_at: datetime
    ttl_seconds: float = TTL_SECONDS


class CapabilityRegistry:
    """One state per capability; reading never waits for a probe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[str, CapabilityState] = {}
        self._probes: dict[str, Probe] = {}

    def register_capability_probe(self, name: str, checker: Probe) -> None:
        """How to ask for it from now on."""
        self._probes[name] = checker

    async def probe(self, name: str) -> CapabilityState:
        """Ask now. A probe that hangs or raises counts as failed, and says so.

        What has no probe reports by itself as it changes; its last word is returned. Raises `KeyError` for a
        name that nobody has spoken of.
        """
        if name not in self._probes:
            return self._states[name]
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                status, detail = await self._probes[name]()
        except TimeoutError:
            status, detail = CapabilityStatus.UNAVAILABLE, f"no answer within {PROBE_SECONDS_MAX:g} s"
        except Exception as error:  # noqa: BLE001 - border: whatever a probe raises is its answer
            status, detail = CapabilityStatus.UNAVAILABLE, redact(str(error)) or type(error).__name__
        self.set(name, status, detail)
        return self._states[name]

    async def probe_all(self) -> None:
        await asyncio.gather(*(self.probe(name) for name in self._probes))

    def set(self, name: str, status: CapabilityStatus, detail: str = "") -> None:
        """It is so from now on. A change is logged, a repetition is not."""
        before = self._states.get(name)
        self._states[name] = CapabilityState(status, detail, self._clock.now())
        capability_available.labels(name).set(_WORTH[status])
        if before is None:
            log.info("startup.capability", name=name, status=status, detail=detail)
        elif before.status is status:
            return
        elif status is CapabilityStatus.AVAILABLE:
            log.info("capability.state_changed", name=name, before=before.status, status=status, detail=detail)
        else:
            consequence = CONSEQUENCES.get(name)
            log.warning(
                "capability.state_changed",
                name=name,
                before=before.status,
                status=status,
                detail=detail,
                consequence=consequence,
            )

    def get(self, name: str) -> CapabilityState | None:
        """The last known; None if nobody has spoken of it."""
        return self._states.get(name)

    def all(self) -> dict[str, CapabilityState]:
        return dict(self._states)

    def require(self, name: str, *, hard: bool = True) -> None:
        """Raises `CapabilityClosed` unless available; `hard=False` lets degraded pass."""
        state = self._states.get(name)
        if state is None:
            return
        if state.status is CapabilityStatus.UNAVAILABLE or (hard and state.status is CapabilityStatus.DEGRADED):
            raise CapabilityClosed(name, state.status, state.detail)

    def overall(self) -> str:
        """`ok`, `degraded` or `unavailable`: what the front of the house says."""
        statuses = {state.status for state in self._states.values()}
        disk = self._states.get("disk")
        if disk is not None and disk.status is CapabilityStatus.UNAVAILABLE:
            return "unavailable"
        return "ok" if statuses <= {CapabilityStatus.AVAILABLE} else "degraded"

    def shown(self) -> dict[str, dict[str, str]]:
        return {
            name: {"status": state.status, "checked_at": iso(state.checked_at), "detail": state.detail}
            for name, state in sorted(self._states.items())
        }

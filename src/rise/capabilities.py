"""What Rise can do right now, and since when that is known.

One registry per process. Reading never waits; a probe that hangs holds up nobody and counts as failed. What has
got worse is believed at once, what has got better after three good probes in a row, so that nothing flaps; what
reports by itself, as the disk does when it is written, is believed both ways.

Refuses: to let what a listener does wrong change what is known.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from rise.clock import Clock, iso
from rise.errors import CapabilityClosed, RiseError
from rise.service import spawn
from rise.telemetry import capability_available, log, printable, redact

Checker = Callable[[], Awaitable[tuple["CapabilityStatus", str]]]
"""Returns the status and one line of detail; what it raises counts as failed."""
Listener = Callable[[str, "CapabilityState"], None]

TTL_SECONDS: Final = 10.0
RECOVERY_TTL_SECONDS: Final = 1.0
"""Between the good probes of something that comes back."""
PROBE_SECONDS_MAX: Final = 5.0
GOOD_IN_A_ROW: Final = 3
RETRY_AFTER_SECONDS: Final = 30
_GRACE_SECONDS: Final = 0.5
"""For a probe that was told to end, before it is left alone."""


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
    "disk": "when it cannot be written, nothing is accepted and nothing runs, and senders are told to come again; "
    "where there are Redis and RabbitMQ, these accept messages, which run",
    "ledger": "messages are accepted and wait; nothing runs, replies wait",
    "mongo": "messages are accepted and run where their workflow is known; results wait in Redis, replies with them",
    "redis": "messages are accepted and wait: the journal keeps them, and RabbitMQ where there is one",
    "rabbitmq": "messages are accepted and run: journal and Redis keep them; the missing copy is made when it is back",
    "temporal": "follow-ups are kept, moved and cancelled as ever; the queue fires them, a few seconds late; what is "
    "bound to it waits, in the order of its chats",
    "llm": "messages whose workflow asks the language model wait, each chat's in order; all others are answered",
    "worker": "messages are accepted and wait",
    "pipeline": "what was accepted is kept, and what cannot move waits",
    "bindings": "those known last stay in force; as long as none are known, what comes in is kept and waits",
    "admission": "senders are told to come again; what was accepted is kept",
    "channels": "what was accepted there is kept and waits; none of it is worked on or answered",
    "telegram_webhook": "Telegram keeps the updates, for a day at most",
    "telegram_polling": "Telegram keeps the updates, for a day at most",
    "telegram_sending": "replies wait, each chat's in order",
}
"""What it means for people while one of them is not available: log, `/healthz` and doctor say it in the same words."""

REMEDIES: Final = {
    "disk": "make room on the disk of RISE_DATA_DIR (or RISE_JOURNAL_DIR), or have it mended",
    "mongo": "see that MongoDB runs and RISE_MONGODB_URL names it; it goes on by itself",
    "ledger": "see that the database in RISE_DATA_DIR can be read and written",
    "redis": "start Redis, or see that RISE_REDIS_URL reaches it",
    "rabbitmq": "start RabbitMQ or end its alarm, and see that RISE_RABBITMQ_URL reaches it",
    "temporal": "start Temporal, or see that RISE_TEMPORAL_ADDRESS reaches it and has RISE_TEMPORAL_NAMESPACE",
    "llm": "see that RISE_LLM_BASE_URL reaches the language model, which takes RISE_LLM_API_KEY and has RISE_LLM_MODEL",
    "worker": "see in the log why the worker ends or does nothing",
    "pipeline": "`rise tasks` shows what waits, and since when",
    "bindings": "see that the database in RISE_DATA_DIR can be read",
    "admission": "let it be worked off, add workers with `rise worker`, or raise RISE_BACKLOG_MAX",
    "channels": "configure that account here again, or drop what is open for it",
    "telegram_webhook": "see that the bot's token is right (RISE_TELEGRAM_TOKEN, or its binding's), and that Telegram "
    "reaches RISE_PUBLIC_URL",
    "telegram_polling": "see that this host reaches Telegram, and that nothing else polls this bot",
    "telegram_sending": "see that this host reaches Telegram, and that the bot's token is still valid "
    "(RISE_TELEGRAM_TOKEN, or its binding's)",
}
"""What a person can do about it; afterwards it goes on by itself."""


@dataclass(frozen=True, slots=True)
class CapabilityState:
    status: CapabilityStatus
    detail: str
    checked_at: datetime
    ttl_seconds: float = TTL_SECONDS
    remedy: str = ""
    """What helps this time, if it is not what helps otherwise."""
    since: datetime | None = None
    """When it became what it is, as far as this process knows."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What must work for a message to be accepted: the one place that says so.

    Embedded it is the disk. With further copies: so many of them, and at least one that is synced.
    """

    copies: tuple[str, ...] = ("disk",)
    copies_min: int = 1
    synced: tuple[str, ...] = ("disk",)
    doors: tuple[str, ...] = ("admission",)
    """Each may close acceptance by itself; as long as nobody speaks of it, it is open."""

    def lacks(self, states: Mapping[str, CapabilityState]) -> str | None:
        """The capability for whose sake nothing can be accepted; None if a message can be."""
        for door in self.doors:
            if door in states and states[door].status is CapabilityStatus.UNAVAILABLE:
                return door
        there = {name for name in self.copies if _is_there(states.get(name))}
        if len(there) >= self.copies_min and there.intersection(self.synced):
            return None
        wanted = self.synced if len(there) >= self.copies_min else self.copies
        return next(name for name in wanted if name not in there)


@dataclass(slots=True)
class _Probe:
    checker: Checker
    fails_as: CapabilityStatus
    timeout_seconds: float
    ttl_seconds: float
    good_in_a_row: int
    due_at: float = 0.0
    good: int = 0
    """Good ones in a row since it was bad."""
    trouble: str = ""
    """What was said when it was bad."""
    asking: asyncio.Task[None] | None = None
    asked_at: float = 0.0


@dataclass(slots=True)
class CapabilityRegistry:
    """One state per capability. For the event loop's thread."""

    _clock: Clock
    acceptance: Acceptance = field(default_factory=Acceptance)
    is_quiet: bool = False
    """Nothing is logged: a command says itself what it has met."""
    _states: dict[str, CapabilityState] = field(default_factory=dict)
    _probes: dict[str, _Probe] = field(default_factory=dict)
    _listeners: list[Listener] = field(default_factory=list)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    # --- what is known ---

    def get(self, name: str) -> CapabilityState | None:
        """The last known; None if nobody has spoken of it."""
        return self._states.get(name)

    def all(self) -> dict[str, CapabilityState]:
        return dict(self._states)

    def require(self, name: str, hard: bool = True) -> None:
        """Raises `CapabilityClosed` unless available; `hard=False` lets degraded pass.

        What nobody has spoken of is not configured, and closes nothing.
        """
        state = self._states.get(name)
        if state is None or state.status is CapabilityStatus.AVAILABLE:
            return
        if hard or state.status is CapabilityStatus.UNAVAILABLE:
            raise self.closed(name)

    def closed(self, name: str, otherwise: str = "not known yet") -> CapabilityClosed:
        """That something is refused for its sake, to be raised or shown; `otherwise` if nobody has spoken of it."""
        state = self._states.get(name)
        status, detail = (state.status, state.detail) if state else (CapabilityStatus.UNAVAILABLE, otherwise)
        return CapabilityClosed(name, status, detail, retry_after_seconds=self.retry_after_seconds(name))

    def retry_after_seconds(self, name: str) -> int:
        """When it is worth asking again: as soon as it can be known to be back."""
        probe = self._probes.get(name)
        if probe is None:
            return RETRY_AFTER_SECONDS
        until_back = max(0.0, probe.due_at - self._clock.monotonic())
        until_back += (probe.good_in_a_row - 1 - probe.good) * RECOVERY_TTL_SECONDS
        return max(1, min(RETRY_AFTER_SECONDS, math.ceil(until_back)))

    def not_accepting(self) -> CapabilityClosed | None:
        """Why no message can be accepted, as far as is known; None if one can be. Asks nobody."""
        name = self.acceptance.lacks(self._states)
        return None if name is None else self.closed(name)

    def overall(self) -> str:
        """`ok`, `degraded` or `unavailable`: what the front of the house says."""
        if self.not_accepting() is not None:
            return "unavailable"
        statuses = {state.status for state in self._states.values()}
        return "ok" if statuses <= {CapabilityStatus.AVAILABLE} else "degraded"

    def shown(self) -> dict[str, dict[str, str]]:
        """Each as `/healthz` has it; of what is not available also what that means and what helps."""
        return {name: _shown(name, state) for name, state in sorted(self._states.items())}

    # --- what is learnt ---

    def set(self, name: str, status: CapabilityStatus, detail: str = "", remedy: str = "") -> None:
        """It is so from now on. A change is logged and told, a repetition is not. `remedy`: other than the usual."""
        probe = self._probes.get(name)
        if probe is not None:
            probe.good = 0
            probe.trouble = "" if status is CapabilityStatus.AVAILABLE else detail
            probe.due_at = self._clock.monotonic() + probe.ttl_seconds
        self._put(name, status, detail, remedy)

    def begin(self, name: str, detail: str) -> None:
        """It is being started, and degraded until then, which is no loss."""
        self._put(name, CapabilityStatus.DEGRADED, detail, "", is_starting=True)

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Called with name and state when a status is new; returns how to stop that."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def register_capability_probe(
        self,
        name: str,
        checker: Checker,
        hard: bool = False,
        *,
        timeout_seconds: float = PROBE_SECONDS_MAX,
        ttl_seconds: float = TTL_SECONDS,
        good_in_a_row: int = GOOD_IN_A_ROW,
    ) -> None:
        """How to ask for it from now on, and how often.

        `hard`: when it fails, what needs it closes (`unavailable`); otherwise one goes on without (`degraded`).
        `good_in_a_row`: so many good answers mean that it is back; 1 where an answer proves it by itself.
        """
        fails_as = CapabilityStatus.UNAVAILABLE if hard else CapabilityStatus.DEGRADED
        self._probes[name] = _Probe(checker, fails_as, timeout_seconds, ttl_seconds, good_in_a_row)

    async def probe(self, name: str) -> CapabilityState:
        """Ask now; whoever asks at the same time gets the same answer.

        What has no probe reports by itself as it changes; its last word is returned. Raises `KeyError` for a
        name that nobody has spoken of.
        """
        probe = self._probes.get(name)
        if probe is None:
            return self._states[name]
        if probe.asking is None:
            probe.asked_at = self._clock.monotonic()
            probe.asking = spawn(self._ask(name, probe), name=f"probe {name}", into=self._tasks, for_all=True)
            probe.asking.add_done_callback(lambda _: _forget(probe))
        done, _ = await asyncio.wait({probe.asking}, timeout=probe.timeout_seconds + _GRACE_SECONDS)
        if not done:
            # It does not even end when it is told to. It is left alone, and asked again only when it is gone.
            waited = self._clock.monotonic() - probe.asked_at
            self._judge(name, probe, probe.fails_as, f"the probe hangs, for {waited:.0f} s now")
        elif name not in self._states:
            self._judge(name, probe, probe.fails_as, "not known: the process stops")
        return self._states[name]

    async def probe_due(self) -> None:
        """Those whose last answer has come of age, all at once; each has its own time."""
        now = self._clock.monotonic()
        await asyncio.gather(*(self.probe(name) for name, probe in self._probes.items() if probe.due_at <= now))

    async def probe_for_acceptance(self) -> None:
        """Those on which it depends whether a message can be accepted."""
        await asyncio.gather(*(self.probe(name) for name in self.acceptance.copies if name in self._probes))

    def close(self) -> None:
        """Ask nothing more."""
        for task in self._tasks:
            task.cancel()

    # --- details ---

    async def _ask(self, name: str, probe: _Probe) -> None:
        remedy = ""
        try:
            async with asyncio.timeout(probe.timeout_seconds):
                status, detail = await probe.checker()
        except TimeoutError:
            status, detail = probe.fails_as, f"no answer within {probe.timeout_seconds:g} s"
        except Exception as error:  # noqa: BLE001 - border: whatever a probe raises is its answer
            status, detail = probe.fails_as, str(error) or type(error).__name__
            remedy = error.remedy if isinstance(error, RiseError) else ""
        self._judge(name, probe, status, detail, remedy)

    def _judge(self, name: str, probe: _Probe, status: CapabilityStatus, detail: str, remedy: str = "") -> None:
        """Worse at once; better when it has been so often enough."""
        before = self._states.get(name)
        if before is None or _WORTH[status] <= _WORTH[before.status]:
            self.set(name, status, detail, remedy)
            return
        probe.good += 1
        if probe.good >= probe.good_in_a_row:
            self.set(name, status, detail)
            return
        probe.due_at = self._clock.monotonic() + RECOVERY_TTL_SECONDS
        detail = f"{probe.trouble}; well again, {probe.good} of {probe.good_in_a_row} times"
        self._put(name, before.status, detail, before.remedy)

    def _put(self, name: str, status: CapabilityStatus, detail: str, remedy: str, *, is_starting: bool = False) -> None:
        before = self._states.get(name)
        probe = self._probes.get(name)
        detail = printable(redact(detail))
        ttl_seconds = probe.ttl_seconds if probe else TTL_SECONDS
        now = self._clock.now()
        since = before.since if before is not None and before.status is status else now
        state = CapabilityState(status, detail, now, ttl_seconds, printable(redact(remedy)), since)
        self._states[name] = state
        capability_available.labels(name).set(_WORTH[status])
        if before is None or before.status is not status:
            self._log(name, before, state, is_loss=status is not CapabilityStatus.AVAILABLE and not is_starting)
            self._tell(name, state)

    def _log(self, name: str, before: CapabilityState | None, state: CapabilityState, *, is_loss: bool) -> None:
        """Each change, and the first that is heard of it like any other."""
        if self.is_quiet:
            return
        former = {} if before is None else {"before": before.status}
        if is_loss:
            log.warning(
                f"startup.capability.{name}" if before is None else "capability.state_changed",
                name=name,
                status=state.status,
                detail=state.detail,
                **former,
                **meaning_of(name, state.remedy),
            )
        else:
            log.info(
                f"startup.capability.{name}" if before is None else "capability.state_changed",
                name=name,
                status=state.status,
                detail=state.detail,
                **former,
            )

    def _tell(self, name: str, state: CapabilityState) -> None:
        for listener in list(self._listeners):
            try:
                listener(name, state)
            except Exception as error:  # noqa: BLE001 - border: the state stands, the others hear of it too
                log.error("capability.listener_failed", name=name, error=error, exc_info=error)


def _shown(name: str, state: CapabilityState) -> dict[str, str]:
    shown = {"status": state.status.value, "checked_at": iso(state.checked_at), "detail": state.detail}
    return shown if state.status is CapabilityStatus.AVAILABLE else shown | meaning_of(name, state.remedy)


def meaning_of(name: str, remedy: str = "") -> dict[str, str]:
    """What its loss means and what helps, this time or else as a rule, as far as that is known: a probe may be
    anybody's."""
    kind, _, account = name.rpartition("_")
    if not account.isdigit():  # of another bot than the default: NAME_ACCOUNT
        kind = name
    return {"consequence": CONSEQUENCES[kind], "remedy": remedy or REMEDIES[kind]} if kind in CONSEQUENCES else {}


def _is_there(state: CapabilityState | None) -> bool:
    return state is not None and state.status is not CapabilityStatus.UNAVAILABLE


def _forget(probe: _Probe) -> None:
    probe.asking = None

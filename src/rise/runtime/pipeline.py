"""Whether what is stored moves; and if not, who is to know, and what can be done about it.

The capability `pipeline` says it. It never makes readiness fail: what is stored is safe, and can wait. It is looked
at every few seconds, and at once when something else is lost or comes back.

Refuses: to believe that all is well because every part says so. When the backlog ages and nothing claims it, the
worker is started anew, whatever it says of itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NamedTuple

from rise.capabilities import CONSEQUENCES, REMEDIES, CapabilityRegistry, CapabilityState, CapabilityStatus, meaning_of
from rise.clock import Clock, epoch_ms
from rise.envelope import Status
from rise.errors import Unavailable
from rise.ledger.port import Ledger
from rise.queue.port import Queue, QueueDepth
from rise.runtime.alerts import Alerts, in_number
from rise.runtime.overload import ADMISSION, Load, Overload
from rise.service import Signal
from rise.telemetry import log, oldest_waiting_seconds, tasks_open

PIPELINE: Final = "pipeline"
CHANNELS: Final = "channels"
_JUDGED_HERE: Final = frozenset({PIPELINE, ADMISSION, CHANNELS})
"""They have alerts of their own, which say more."""
LOST_SECONDS: Final = 10.0
"""What is back sooner alerts nobody: a worker that is replaced, a link that blinks."""
POLLS_STUCK: Final = 3
RESTART_SECONDS_MIN: Final = 60.0
"""Between two restarts of a worker that was stuck."""
CLOCKS_SECONDS_MAX: Final = 60.0
"""So far apart the store's clock and the wall clock may be without a word."""
CLOCKS_APART: Final = "the store's clock and this host's are"
CLOCKS_CONSEQUENCE: Final = (
    "nothing is lost and all is answered; the times that are shown and kept are wrong by that, and what was planned "
    "for a moment may come early or late by as much"
)
CLOCKS_REMEDY: Final = (
    "see that this host's clock is right, and that of Redis's host (NTP). The store's takes its word after a reboot, "
    "but never goes back: one that is ahead is met again when Rise was down over a reboot for as long"
)


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """When it does not move."""

    stalled_seconds: float = 120.0
    """Nothing that should be moving waits longer."""
    run_needs: tuple[str, ...] = ("disk", "worker")
    """The capabilities without which nothing is executed; what nobody has spoken of is not configured."""


async def _always() -> bool:
    return True


class Lacking(NamedTuple):
    """Open messages that the queue has not got: it is away, or full, or about to be given them."""

    messages: int
    is_certain: bool
    """Whether it is known what the queue has: not before it has been asked, nor while an emptied one gets back what it
    had, which is counted there."""


async def _nothing() -> Lacking:
    return Lacking(0, is_certain=True)


@dataclass(slots=True)
class Pipeline:
    """Of one installation."""

    queue: Queue
    ledger: Ledger
    capabilities: CapabilityRegistry
    overload: Overload
    alerts: Alerts
    clock: Clock
    channels: Collection[str]
    """Those of this house. What was accepted on another, which was configured once, nobody here can work on."""
    anonymous: Collection[str] = ()
    """Those that anybody may write to."""
    limits: PipelineLimits = PipelineLimits()
    disk_space: Callable[[], tuple[int, int] | None] = lambda: None
    """Free and total bytes; None where that cannot be told."""
    restart_worker: Callable[[], Awaitable[None]] | None = None
    """Of this process's own worker, if it has one."""
    is_filled: Callable[[], Awaitable[bool]] = _always
    """Whether the queue hands anything out: while an emptied one is filled again, it does not."""
    lacking_in_queue: Callable[[], Awaitable[Lacking | None]] = _nothing
    """Of this process; None while that cannot be told."""
    on_counted: Callable[[QueueDepth], None] = lambda depth: None
    """Hears of every count."""
    changed: Signal = field(default_factory=Signal)
    """Set when a capability has changed."""
    _backlog: int = 0
    _is_counted: bool = False
    """Whether the queue has ever said how much is in it: until then there may be more."""
    _load: Load = field(default_factory=lambda: Load(0, 0))
    """As it was last counted."""
    _lacked: Lacking = field(default_factory=lambda: Lacking(0, is_certain=False))
    """As it was last told."""
    _is_ready: bool | None = None
    _polls_stuck: int = 0
    _oldest_ms: int = 0
    _restarted_at: float | None = None

    def hear(self, name: str, state: CapabilityState) -> None:
        """A capability has changed."""
        if name not in _JUDGED_HERE:
            self.changed.set()

    async def measure(self) -> QueueDepth | None:
        """Count, and say what that means. None if nothing could be counted; what was known then still holds."""
        try:
            depth = await self.queue.depth()
        except Unavailable:
            self._weigh(await self.lacking_in_queue() or self._lacked, is_asked=False)
            self._judge(0.0, 0.0)
            return None
        self.on_counted(depth)
        for status in (Status.PENDING, Status.PROCESSING, Status.REPLYING, Status.SUSPENDED):
            tasks_open.labels(status).set(depth.by_status.get(status, 0))
        task_seconds = self._oldest_waiting_ms(depth) / 1000
        reply_seconds = await self._oldest_reply_seconds()
        oldest_waiting_seconds.labels("task").set(task_seconds)
        oldest_waiting_seconds.labels("reply").set(reply_seconds)
        strangers = sum(depth.suspended_by_channel.get(channel, 0) for channel in self.anonymous)
        self._load = Load(_moving(depth), depth.by_status.get(Status.REPLYING, 0), suspended_anonymous_count=strangers)
        self._is_counted = True
        # What it was last said to lack it may have been given since, by another copy or process.
        self._weigh(await self.lacking_in_queue() or Lacking(0, is_certain=False), is_asked=True)
        self._judge(task_seconds, reply_seconds)
        self._alert_on_channels_gone(depth)
        return depth

    def _weigh(self, lacked: Lacking, *, is_asked: bool) -> None:
        """What is in the queue, or was when it was last asked, and what it lacks. Refused is only for what is certain;
        while the queue cannot be asked, people hear of all that the journals hold."""
        self._lacked = lacked
        certain = self._load.open_count + (lacked.messages if lacked.is_certain else 0)
        self._backlog = certain if is_asked else max(certain, lacked.messages)
        free, size = self.disk_space() or (None, 0)
        load = replace(self._load, open_count=certain, is_counted=self._is_counted)
        self.overload.judge(replace(load, disk_free_bytes=free, disk_size_bytes=size))

    async def _oldest_reply_seconds(self) -> float:
        """As far as is known: a ledger that is away must not keep anybody from seeing that there is too much."""
        try:
            return ((await self.ledger.outbox_depth()).oldest_waiting_ms or 0) / 1000
        except Unavailable:
            return 0.0

    async def assess(self) -> None:
        """At the start and on every change: what has been waiting goes on, or why it does not."""
        await self.measure()
        is_ready = not self._missing(CapabilityStatus.DEGRADED)
        if is_ready and not self._is_ready and self._backlog:
            log.info("replaying backlog", count=self._backlog)
        self._is_ready = is_ready

    async def watch_progress(self, depth: QueueDepth) -> None:
        """After each regular count: a backlog that ages while nothing is claimed has nobody who works on it."""
        oldest_ms = self._oldest_waiting_ms(depth)
        if oldest_ms == self._oldest_ms:
            return  # no time has passed, or there is nothing
        is_stuck = (
            oldest_ms > self._oldest_ms > 0
            and depth.lanes_claimed == 0
            and not self.overload.pauses_workers
            and not self._missing(CapabilityStatus.DEGRADED)
            and await self.is_filled()
        )
        self._oldest_ms = oldest_ms
        self._polls_stuck = self._polls_stuck + 1 if is_stuck else 0
        if self._polls_stuck >= POLLS_STUCK and self.restart_worker and not self._restarted_lately():
            self._polls_stuck, self._restarted_at = 0, self.clock.monotonic()
            log.error("worker.stuck", oldest_seconds=oldest_ms / 1000, consequence="it is started anew")
            await self.restart_worker()

    def _judge(self, task_seconds: float, reply_seconds: float) -> None:
        missing = [] if self._is_counted and not self._backlog else self._missing(CapabilityStatus.UNAVAILABLE)
        apart = self._clocks_apart()
        waiting = f"{self._waiting()}, waiting for {', '.join(missing)}"
        self.alerts.follow(
            "backlog_waiting",
            bool(missing and self._backlog),
            summary=waiting,
            after_seconds=LOST_SECONDS,
            **meaning_of(PIPELINE, self._remedy_for(missing)),
        )
        stalled = max(task_seconds, reply_seconds) > self.limits.stalled_seconds
        what = "message" if task_seconds >= reply_seconds else "reply"
        slow = f"the oldest {what} has waited {max(task_seconds, reply_seconds):.0f} s"
        self.alerts.follow(
            "pipeline",
            stalled,
            summary=slow,
            consequence=CONSEQUENCES[PIPELINE],
            remedy=REMEDIES[PIPELINE],
        )
        if missing or stalled:
            detail = waiting if missing else slow
            self.capabilities.set(PIPELINE, CapabilityStatus.DEGRADED, detail, self._remedy_for(missing))
        elif apart is not None:
            detail = f"{apart}: {CLOCKS_CONSEQUENCE}; {CLOCKS_REMEDY}"
            self.capabilities.set(PIPELINE, CapabilityStatus.DEGRADED, detail)
        else:
            on_the_way = f"{in_number(self._backlog)} on the way" if self._is_counted else "not counted yet"
            self.capabilities.set(PIPELINE, CapabilityStatus.AVAILABLE, on_the_way)
        self._alert_on_what_is_lost()

    def _waiting(self) -> str:
        if self._is_counted or self._backlog:
            return in_number(self._backlog, "unprocessed message")
        return "an unknown number of unprocessed messages"

    def _remedy_for(self, missing: Collection[str]) -> str:
        """What brings back what is waited for: as long as a store is away, nobody is shown what waits in it."""
        states = self.capabilities.all()
        return "; ".join(states[name].remedy or REMEDIES[name] for name in missing)

    def _clocks_apart(self) -> str | None:
        try:
            return clocks_apart(self.queue.now_ms(), self.clock.now())
        except Unavailable:
            return None

    def _oldest_waiting_ms(self, depth: QueueDepth) -> int:
        """Of what this house can work on."""
        return max((depth.waiting_ms_by_channel.get(channel, 0) for channel in self.channels), default=0)

    def _alert_on_channels_gone(self, depth: QueueDepth) -> None:
        # Whatever it waits for there: an answer has nobody to send it either.
        gone = sorted({channel for channel, count in depth.by_channel.items() if count} - set(self.channels))
        count = sum(depth.by_channel.get(channel, 0) for channel in gone)
        waits = f"{in_number(count)} {'waits' if count == 1 else 'wait'}"
        waiting = f"{waits} for a channel that is not configured any more: {', '.join(gone)}"
        self.alerts.follow(
            "channel_gone",
            bool(gone),
            summary=waiting,
            consequence=CONSEQUENCES[CHANNELS],
            remedy="configure it again until they are answered, or end them: "
            "`rise tasks --channel NAME` lists, `rise tasks drop` ends",
        )
        if gone:
            self.capabilities.set(CHANNELS, CapabilityStatus.DEGRADED, waiting)
        elif self.capabilities.get(CHANNELS) is not None:
            self.capabilities.set(CHANNELS, CapabilityStatus.AVAILABLE)

    def _alert_on_what_is_lost(self) -> None:
        for name, state in self.capabilities.all().items():
            if name in _JUDGED_HERE:
                continue
            self.alerts.follow(
                f"capability.{name}",
                state.status is not CapabilityStatus.AVAILABLE,
                summary=f"{name} is {state.status}: {state.detail}",
                after_seconds=LOST_SECONDS,
                **meaning_of(name, state.remedy),
            )

    def _missing(self, worst: CapabilityStatus) -> list[str]:
        """Of what running needs: what is as bad as that, or worse."""
        bad = {CapabilityStatus.UNAVAILABLE, worst}
        states = {name: self.capabilities.get(name) for name in self.limits.run_needs}
        return [name for name, state in states.items() if state is not None and state.status in bad]

    def _restarted_lately(self) -> bool:
        at = self._restarted_at
        return at is not None and self.clock.monotonic() - at < RESTART_SECONDS_MIN


def clocks_apart(store_ms: int, wall: datetime) -> str | None:
    """That the store's clock says something else than the wall clock, and by how much; None while they agree."""
    seconds = (store_ms - epoch_ms(wall)) / 1000
    if abs(seconds) <= CLOCKS_SECONDS_MAX:
        return None
    return f"{CLOCKS_APART} {in_time(abs(seconds))} apart, the store's {'ahead' if seconds > 0 else 'behind'}"


def in_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _moving(depth: QueueDepth) -> int:
    """What somebody or something should be moving. What waits for its next try is among it: it may be that nothing
    succeeds, and that is too much, too. What was planned for later is not before its time has come."""
    statuses = (Status.PENDING, Status.PROCESSING, Status.REPLYING)
    return sum(depth.by_status.get(status, 0) for status in statuses) - depth.planned

"""How much is too much: above a warning an alert, above a limit no more work, and back by itself.

Over the limit, `refuse` answers 503 "busy"; the sender keeps the message. `queue-only` goes on accepting, and has
the workers pause while so many finished answers wait for their platform that running more would only make that
line longer; what is pending goes on being run, because nothing else would ever make it less. A disk that is almost
full always refuses: accepting would fill it. So do channels that anybody may write to, when as much of theirs is
suspended: nobody moves that, and strangers could go on until the disk is full. The other channels do not notice.

Refuses: to switch to and fro; every threshold is left only when a fifth less is open, or a quarter more is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from rise.admission import Admission
from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.runtime.alerts import Alerts, in_number

ADMISSION: Final = "admission"
RETRY_AFTER_SECONDS: Final = 30
MEGABYTE: Final = 1_000_000
_LEAVES_BELOW: Final = 0.8
_LEAVES_ABOVE: Final = 1.25
_DISK_SHARE_WARN: Final = 0.1
_DISK_SHARE_MIN: Final = 0.05
"""On a small disk, thresholds made for large ones are never met: no more than this part of it."""


@dataclass(frozen=True, slots=True)
class OverloadLimits:
    """Nothing counts as too much where there is a 0."""

    backlog_warn: int = 10_000
    backlog_max: int = 100_000
    mode: Literal["refuse", "queue-only"] = "refuse"
    disk_free_warn_bytes: int = 512 * MEGABYTE
    disk_free_min_bytes: int = 64 * MEGABYTE


@dataclass(frozen=True, slots=True)
class Load:
    """What there is now."""

    open_count: int
    """Messages that somebody or something should be moving; not those that wait for a person or for a later time."""
    replying_count: int
    """... of which so many only wait for their platform to take the answer."""
    disk_free_bytes: int | None = None
    disk_size_bytes: int = 0
    suspended_anonymous_count: int = 0
    """Messages of channels that anybody may write to, which wait for a person or an event."""
    is_counted: bool = True
    """False: the queue has not been asked yet, and there may be more."""


class Overload:
    """Of one installation, as one process sees it."""

    def __init__(
        self,
        limits: OverloadLimits,
        *,
        admission: Admission,
        capabilities: CapabilityRegistry,
        alerts: Alerts,
        pause_workers: Callable[[], None] = lambda: None,
        anonymous: Collection[str] = (),
    ) -> None:
        """`pause_workers` is called again and again, for as long as they are to run nothing. `anonymous`: the channels
        that anybody may write to."""
        self._limits = limits
        self._admission = admission
        self._capabilities = capabilities
        self._alerts = alerts
        self._pause_workers = pause_workers
        self._anonymous = anonymous
        self._over: set[str] = set()
        self.pauses_workers = False

    def judge(self, load: Load) -> None:
        """Refuse, warn or let be, as this load asks for."""
        limits = self._limits
        much = self._is_much("warn", load.open_count, limits.backlog_warn)
        self._alerts.follow(
            "backlog",
            much,
            summary=_open(load),
            count=load.open_count,
            consequence="all of them are kept; whoever writes now waits longer for an answer",
            remedy="`rise tasks` shows what waits; add workers, or look at what they wait for",
        )
        little = self._is_little("disk warn", load, limits.disk_free_warn_bytes, _DISK_SHARE_WARN)
        self._alerts.follow(
            "disk_space",
            little,
            summary=f"{_megabytes(load)} are free for RISE_DATA_DIR",
            free_bytes=load.disk_free_bytes or 0,
            consequence=CONSEQUENCES["disk"],
            remedy="make room before messages have to be refused",
        )
        too_little = self._is_little("disk", load, limits.disk_free_min_bytes, _DISK_SHARE_MIN)
        too_much = self._is_much("max", load.open_count, limits.backlog_max)
        self._act(load, too_little=too_little, too_much=too_much)

    def _act(self, load: Load, *, too_little: bool, too_much: bool) -> None:
        is_queue_only = self._limits.mode == "queue-only"
        why_refused = None
        if too_little:
            why_refused = f"only {_megabytes(load)} are free for what is to be kept"
        elif too_much and not is_queue_only:
            why_refused = f"{_open(load)}, and RISE_BACKLOG_MAX is {self._limits.backlog_max}"
        why_closed = self._why_closed_to_strangers(load)
        self._alerts.follow(
            "overload",
            why_refused is not None or too_much or why_closed is not None,
            summary=why_refused or (f"{_open(load)}; new ones wait (queue-only)" if too_much else why_closed or ""),
            consequence=self._consequence(is_refused=why_refused is not None, is_queued=too_much),
            remedy="it ends by itself when less is open and more is free; what is suspended waits for a person: "
            "`rise suspended` shows it",
        )
        waits_for_platform = self._is_much("replying", load.replying_count, self._limits.backlog_max)
        self.pauses_workers = is_queue_only and waits_for_platform
        if self.pauses_workers:
            self._pause_workers()
        if why_refused is not None:
            self._admission.refuse(why_refused, retry_after_seconds=RETRY_AFTER_SECONDS)
            self._capabilities.set(ADMISSION, CapabilityStatus.UNAVAILABLE, why_refused)
            return
        self._admission.admit()
        if why_closed is not None:
            self._admission.refuse_from(self._anonymous, why_closed, retry_after_seconds=RETRY_AFTER_SECONDS)
            self._capabilities.set(ADMISSION, CapabilityStatus.DEGRADED, why_closed)
        elif too_much:
            detail = f"{_open(load)}: new ones are kept and wait"
            self._capabilities.set(ADMISSION, CapabilityStatus.DEGRADED, detail)
        else:
            detail = _open(load) if load.is_counted else "what is open has not been counted yet"
            self._capabilities.set(ADMISSION, CapabilityStatus.AVAILABLE, detail)

    def _consequence(self, *, is_refused: bool, is_queued: bool) -> str:
        if is_refused:
            return CONSEQUENCES[ADMISSION]
        if is_queued:
            return "all of them are kept, and answered later"
        return f"senders of {', '.join(sorted(self._anonymous))} are told to come again; all others are served as ever"

    def _why_closed_to_strangers(self, load: Load) -> str | None:
        count, limit = load.suspended_anonymous_count, self._limits.backlog_max
        if not self._is_much("anonymous", count, limit):
            return None
        channels = ", ".join(sorted(self._anonymous))
        return f"{count} messages of {channels} are suspended, and RISE_BACKLOG_MAX is {limit}: no more come in there"

    def _is_much(self, name: str, count: int, limit: int) -> bool:
        return self._stays(name, limit > 0 and count > limit * (_LEAVES_BELOW if name in self._over else 1))

    def _is_little(self, name: str, load: Load, limit: int, share: float) -> bool:
        if load.disk_free_bytes is None:
            return self._stays(name, False)
        limit = _at_most(limit, share, load.disk_size_bytes)
        return self._stays(name, load.disk_free_bytes < limit * (_LEAVES_ABOVE if name in self._over else 1))

    def _stays(self, name: str, is_over: bool) -> bool:
        (self._over.add if is_over else self._over.discard)(name)
        return is_over


def warns_below(limit_bytes: int, *, size_bytes: int, has_warned: bool) -> float:
    """With fewer bytes free on a disk of that size, something is said, and until some more are."""
    return _at_most(limit_bytes, _DISK_SHARE_WARN, size_bytes) * (_LEAVES_ABOVE if has_warned else 1)


def refuses_below(limit_bytes: int, *, size_bytes: int) -> int:
    """With fewer bytes free on a disk of that size, new messages are refused."""
    return _at_most(limit_bytes, _DISK_SHARE_MIN, size_bytes)


def _at_most(limit_bytes: int, share: float, size_bytes: int) -> int:
    return min(limit_bytes, int(size_bytes * share))


def _open(load: Load) -> str:
    return f"{in_number(load.open_count)} {'is' if load.open_count == 1 else 'are'} open"


def _megabytes(load: Load) -> str:
    return f"{(load.disk_free_bytes or 0) / MEGABYTE:.0f} MB"

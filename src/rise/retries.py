"""When to try again, and when to stop trying.

Refuses: to try again what was refused for what it says; to wait for no time at all or for ever because somebody
said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeVar

from rise.clock import Clock
from rise.envelope import Head, Progress, Reason
from rise.errors import Rejected, Unavailable, WaitsForDependency
from rise.settings import RETRY_JITTER

T = TypeVar("T")

DEFAULT_CURVE_SECONDS: Final = (15.0, 60.0, 180.0)
JITTER: Final = RETRY_JITTER
WAIT_SECONDS_MIN: Final = 1.0
WAIT_SECONDS_MAX: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A task's own errors use up its tries; a dependency's never do.

    What is `_for` a type of task or a channel goes before what is for all; the type before the channel.
    """

    curve_seconds: Sequence[float] = DEFAULT_CURVE_SECONDS
    retry_max: int = 3
    lane_block_max: timedelta = timedelta(seconds=600)
    curve_seconds_for: Mapping[str, Sequence[float]] = field(default_factory=dict)
    retry_max_for: Mapping[str, int] = field(default_factory=dict)

    def tries_left(self, head: Head, progress: Progress) -> int:
        """How many more tries its own errors may cost it; none if not above 0."""
        return self.retries_allowed(head) - progress.attempts

    def retries_allowed(self, head: Head) -> int:
        """After the first try. Its own caller's word goes before all others."""
        if head.retry_max is not None:
            return head.retry_max
        return _meant_for(head, self.retry_max_for, self.retry_max)

    def delay_seconds(self, head: Head, progress: Progress, clock: Clock) -> float:
        """Seconds before the next try, ± 20 %, so that what failed together does not come back together."""
        curve = _meant_for(head, self.curve_seconds_for, self.curve_seconds) or DEFAULT_CURVE_SECONDS
        return curve[min(progress.attempts, len(curve) - 1)] * clock.random.uniform(1 - JITTER, 1 + JITTER)

    def verdict(
        self, head: Head, progress: Progress, error: BaseException, *, now_ms: int, clock: Clock
    ) -> float | Reason:
        """Seconds to wait, or the reason to stop trying. The caller asks `uses_a_try` whether it counts.

        What is refused for what it says is refused again however often it is tried.
        """
        if isinstance(error, WaitsForDependency):
            return _sane_seconds(error.retry_after_seconds) * clock.random.uniform(1, 1 + JITTER)
        if isinstance(error, Unavailable):
            seconds = _sane_seconds(error.retry_after_seconds or DEFAULT_CURVE_SECONDS[0])
            return seconds * clock.random.uniform(1, 1 + JITTER)
        if isinstance(error, Rejected) or self.tries_left(head, progress) <= 0:
            return Reason.RETRIES_EXHAUSTED
        delay = self.delay_seconds(head, progress, clock)
        since = progress.failing_since_ms if progress.failing_since_ms is not None else now_ms
        if now_ms + delay * 1000 - since > self.lane_block_max.total_seconds() * 1000:
            return Reason.LANE_BLOCKED
        return delay


def _meant_for(head: Head, by_name: Mapping[str, T], otherwise: T) -> T:
    return by_name.get(head.task_type, by_name.get(head.channel, otherwise))


def _sane_seconds(asked_for: float) -> float:
    """Workflows and platforms say how long: nought would be a busy loop, infinity could not be stored."""
    if asked_for != asked_for:  # NaN
        return DEFAULT_CURVE_SECONDS[0]
    return float(min(max(asked_for, WAIT_SECONDS_MIN), WAIT_SECONDS_MAX))


def uses_a_try(error: BaseException) -> bool:
    """Whether it counts against the task: a dependency's fault never does."""
    return not isinstance(error, WaitsForDependency | Unavailable)

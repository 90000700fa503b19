"""How fast: token buckets, for sending and the doors; windows, for what is run; a slow start, for what comes back.

A token is one call or one request. Rates are in tokens per second, what is saved up in tokens; `now` is in seconds of
a clock that never steps back, and is passed in.

Refuses: to wait for anybody, it only says how long; to be written down. Losing it costs a moment's slowness.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

ROUNDING_TOKENS: Final = 1e-4
"""The part of a token that counts for nothing."""
ROUNDING_SECONDS: Final = 0.001
"""What is lost in rounding must not make somebody ask again at once, over and over."""


@dataclass(slots=True)
class Bucket:
    """`tokens_per_second` on average, `tokens_max` at once."""

    tokens_per_second: float
    tokens_max: float
    tokens: float = field(init=False)
    """What is saved up; below 0 it is owed."""
    refilled_at_seconds: float | None = None
    """The `now` up to which tokens have come in."""

    def __post_init__(self) -> None:
        self.tokens = self.tokens_max

    def wait_seconds(self, now: float, *, leaving: float = 0.0) -> float:
        """Seconds until one may go, and leaves so many tokens; 0.0 if it may now. Below 0 it may be owed so much."""
        self._refill(now)
        missing = 1 + leaving - self.tokens
        # What is lost in rounding is not waited for: the clock could not even show it.
        return 0.0 if missing <= ROUNDING_TOKENS else missing / self.tokens_per_second

    def take(self, now: float, tokens: float = 1.0) -> None:
        """One goes, whether or not its time had come: the debt is paid by the next."""
        self._refill(now)
        self.tokens -= tokens

    def take_spare(self, now: float) -> bool:
        """One goes if half of what can be saved up is left then: whoever must go still finds its token."""
        self._refill(now)
        if self.tokens - 1 < self.tokens_max / 2:
            return False
        self.tokens -= 1
        return True

    def _refill(self, now: float) -> None:
        if self.refilled_at_seconds is not None:
            self.tokens = min(
                self.tokens_max, self.tokens + max(0.0, now - self.refilled_at_seconds) * self.tokens_per_second
            )
        self.refilled_at_seconds = now


class Windows:
    """So many within any `seconds`, per key. What goes is named, so that one that is tried again counts once.

    Beyond `keys_max` keys the one that was unused for longest is forgotten.
    """

    def __init__(self, seconds: float, *, keys_max: int = 50_000) -> None:
        self._seconds = seconds
        self._keys_max = keys_max
        self._entries: OrderedDict[Hashable, deque[tuple[float, Hashable]]] = OrderedDict()

    def enter(self, key: Hashable, name: Hashable, *, most: int, now: float) -> float:
        """0.0 if it goes now; else the seconds after which it is worth asking again, and nothing was counted."""
        entries = self._entries.setdefault(key, deque())
        self._entries.move_to_end(key)
        if len(self._entries) > self._keys_max:
            self._entries.popitem(last=False)
        while entries and now - entries[0][0] >= self._seconds:
            entries.popleft()
        if any(entered == name for _, entered in entries):
            return 0.0
        if len(entries) >= most:
            return max(entries[len(entries) - most][0] + self._seconds - now, ROUNDING_SECONDS)
        entries.append((now, name))
        return 0.0


class SlowStart:
    """Room that grows from little to full after something has come back: what waited must not knock it down again.

    Each second as much again as the seconds before, so that most of the time is spent with little. A hold leaves no
    room at all until it lapses, and is followed by a slow start.
    """

    def __init__(self, *, seconds: float = 10.0, least: int = 2) -> None:
        self._seconds = seconds
        self._least = least
        self._begun: float | None = None
        self._held_until: float | None = None

    def begin(self, now: float) -> None:
        """It has come back just now."""
        self._begun = now

    def hold(self, seconds: float, now: float) -> None:
        """No room for so long; a hold that is meant to last is said again before it lapses."""
        self._held_until = now + seconds

    def room(self, full: int, now: float) -> int:
        """How much of `full` may be used now. Once full it stays full."""
        if self._held_until is not None:
            if now < self._held_until:
                return 0
            self._held_until, self._begun = None, now
        if self._begun is None or full <= self._least:
            return full
        share = (now - self._begun) / self._seconds
        if share >= 1:
            self._begun = None
            return full
        # Exponentially, as congestion control does: from `least` to `full` over the time.
        return min(full, int(self._least * (full / self._least) ** max(0.0, share)))


class Buckets:
    """One bucket per key, each of `tokens_per_second` and `tokens_max` at once.

    Beyond `keys_max` keys the one that was unused for longest is forgotten: an attacker chooses keys.
    """

    def __init__(self, tokens_per_second: float, tokens_max: float, *, keys_max: int = 50_000) -> None:
        self._tokens_per_second = tokens_per_second
        self._tokens_max = tokens_max
        self._keys_max = keys_max
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def wait_seconds(self, key: Hashable, now: float) -> float:
        """Seconds until one of this key may go; 0.0 if it may now."""
        return self._bucket(key).wait_seconds(now)

    def take(self, key: Hashable, now: float) -> None:
        """One of this key goes, whether or not its time had come."""
        self._bucket(key).take(now)

    def _bucket(self, key: Hashable) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._tokens_per_second, self._tokens_max)
            if len(self._buckets) > self._keys_max:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

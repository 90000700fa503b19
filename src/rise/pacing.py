"""How fast: token buckets, for sending and for the doors. In memory; losing them costs a moment's slowness."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

ROUNDING: Final = 1e-4
"""Of a token."""


@dataclass(slots=True)
class Bucket:
    """`rate` per second on average, `burst` at once. `now` is passed in (seconds, never stepping back)."""

    rate: float
    burst: float
    tokens: float = field(init=False)
    refilled_seconds: float | None = None

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def wait_seconds(self, now: float) -> float:
        """How long until one may go; 0.0 if now."""
        self._refill(now)
        missing = 1 - self.tokens
        # What is lost in rounding is not waited for: the clock could not even show it.
        return 0.0 if missing <= ROUNDING else missing / self.rate

    def take(self, now: float) -> None:
        """One goes, whether or not its time had come: the debt is paid by the next."""
        self._refill(now)
        self.tokens -= 1

    def _refill(self, now: float) -> None:
        if self.refilled_seconds is not None:
            self.tokens = min(self.burst, self.tokens + max(0.0, now - self.refilled_seconds) * self.rate)
        self.refilled_seconds = now


class Buckets:
    """One bucket per key, the least used forgotten beyond `keys_max` (an attacker chooses keys)."""

    def __init__(self, rate: float, burst: float, *, keys_max: int = 50_000) -> None:
        self._rate = rate
        self._burst = burst
        self._keys_max = keys_max
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def wait_seconds(self, key: Hashable, now: float) -> float:
        return self._bucket(key).wait_seconds(now)

    def take(self, key: Hashable, now: float) -> None:
        self._bucket(key).take(now)

    def _bucket(self, key: Hashable) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._burst)
            if len(self._buckets) > self._keys_max:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

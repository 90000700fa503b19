"""How much is measured: enough for a figure to publish, or to see within a minute or two where things stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int = 3
    connections: tuple[int, ...] = (1, 64)
    load_seconds: float = 4.0
    warm_up_seconds: float = 1.0
    queued: int = 20_000
    """Tasks to drain."""
    open_few: int = 10_000
    open_many: int = 100_000
    """Open tasks at a restart."""
    held_few: int = 1_000
    held_many: int = 100_000
    """Open tasks while memory is looked at."""
    hold_seconds: float = 15.0
    """How long before it is: every duty of the supervisor has run by then."""
    backlog: int = 50_000
    """Tasks queued at once, of which the last are worked as fast as the first."""
    paced: int = 2_000
    """Messages at light load."""
    per_second: float = 200.0

    @classmethod
    def quick(cls) -> Sizes:
        return cls(load_seconds=1.0, warm_up_seconds=0.5, queued=4_000, open_many=30_000, held_many=30_000,
                   hold_seconds=6.0, backlog=20_000, paced=600)  # fmt: skip

    @classmethod
    def least(cls) -> Sizes:
        """Only to see that it runs."""
        return cls(1, (4,), 0.1, 0.05, 50, 50, 100, 50, 100, 0.2, 200, 20)

"""Copies: the durable places besides the queue that hold a message until it is finished.

A message leaves a copy only when the ledger calls its task finished, and until then it is there at every instant.
Copies merge: the same task may be kept any number of times, in any order; what it is does not depend on that.
The promises of a mirror are executable: `rise.testing.conformance.mirror` runs on every backend.

Refuses: to decide what is finished, or what runs: the ledger and the queue do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from rise.envelope import TaskId
from rise.queue.port import NewTask

JOURNAL: Final = "journal"
REDIS: Final = "redis"
RABBITMQ: Final = "rabbitmq"


class Look(msgspec.Struct, frozen=True):
    """One copy handed out by the mirror, to be resolved: forgotten, put back to wait, or given back."""

    task: NewTask | None
    """None: this version cannot read it (`body` has the bytes)."""
    body: bytes
    tag: Any
    """The mirror's own mark."""
    is_parked: bool
    """It has been put back to wait at least once."""
    kept_at_ms: int
    """When it was kept, or last put back, by the wall clock of who did."""


class MirrorDepth(msgspec.Struct, frozen=True):
    """Copies, those included that this process has taken; not those that another has taken."""

    fresh: int
    parked: int
    dead: int
    """Turned away for good by the broker itself: for a person to look at."""


class Mirror(Protocol):
    """The second copy of open work, on another machine if its owner likes.

    Every method raises `Unavailable` when the broker does not answer, refuses, or is blocked by an alarm of its own;
    what was asked for may then have happened or not, and repeating it is safe.
    """

    name: str

    async def start(self) -> None:
        """Never fails for want of the broker: it is reached as soon as it can be, again and again."""
        ...

    async def stop(self) -> None: ...

    async def keep(self, task_id: TaskId, record: bytes) -> None:
        """Returns when the broker has confirmed that it is on the disks of a majority.

        `record`: the task as `rise.copies.record` writes it, once for all copies.
        """
        ...

    async def take(self, limit: int, *, seconds: float, parked: bool) -> list[Look]:
        """Up to so many copies, out of the fresh or the parked; [] after so long without any. Oldest first, except that
        what was given back comes before the rest.

        What was taken is nobody else's until it is resolved, or this process or its connection ends: then it is
        given back by itself. One process looks at a time; for the others there is nothing.
        """
        ...

    async def forget(self, looks: Sequence[Look]) -> None:
        """Their tasks are finished. Raises if some of them had gone back by themselves: they are handed out again."""
        ...

    async def park(self, looks: Sequence[Look]) -> None:
        """Put them back to wait, behind all that is parked. At every instant one copy is there: the new one is
        confirmed before the old one goes."""
        ...

    async def give_back(self, looks: Sequence[Look]) -> None:
        """As if they had not been taken. Another process may look now."""
        ...

    async def let_go(self) -> None:
        """Everything that this process took and has not resolved is as if it had not been taken, and it looks no more:
        another process may."""
        ...

    async def depth(self) -> MirrorDepth: ...

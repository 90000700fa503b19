"""Follow-ups: what will be said in a chat at a moment, and the few things that can be done about it until then.

Adding one is accepting it, by the same door as every message (`reading.py`).

The promises: what was accepted fires once, within 10 s of its moment while the
installation runs, and in the order of its chat from then on. Of a cancellation, or a move, and the firing exactly one
wins, and the caller is told which. Whatever dies in the middle of a move, it fires once: at the former moment or at
the new one.

Refuses: to keep time itself. Without Temporal the queue does (`queued.py`); with it Temporal's timers do, and the queue
fires what has not rung.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NewType, Protocol

import msgspec

from rise.envelope import LaneKey, TaskId

FollowUpId = NewType("FollowUpId", str)
"""The task id of its first planning."""

MISSED_AFTER: Final = timedelta(seconds=60)
"""What is met so much later than it was due was missed: the installation was down."""
MOVES_MAX: Final = 100
"""How often one follow-up can be moved."""


class Missed(StrEnum):
    """What becomes of one that was missed."""

    FIRE = "fire"
    """It is said late."""
    SKIP = "skip"
    """It ends unsaid."""
    COALESCE = "coalesce"
    """Of one chat's it ends unsaid if a later one that coalesces is due, too: only the latest is said."""


class FollowUpStatus(StrEnum):
    PLANNED = "planned"
    FIRED = "fired"
    """What it says is a task of its own now, in its chat's order."""
    MISSED = "missed"
    CANCELLED = "cancelled"
    SUSPENDED = "suspended"
    """It could not be fired, and waits for a person."""


class ListedStatus(StrEnum):
    """The states that are listed. What has ended is looked at by its id."""

    PLANNED = FollowUpStatus.PLANNED
    SUSPENDED = FollowUpStatus.SUSPENDED


class Plan(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """When, as it was asked for and as an instant, and how: kept in the head of the task that waits for it."""

    due_at: datetime
    """The instant. It decides, whatever becomes of the rule."""
    at: str | None = None
    """As it was asked for."""
    time_zone: str | None = None
    """The IANA name of whose clocks `at` is read by."""
    missed: Missed = Missed.FIRE
    lane: LaneKey
    """The chat's, where what it says takes its turn."""
    id: FollowUpId | None = None
    """None: this is the first planning, which the follow-up is named after."""
    number: int = 0
    """How often it had been moved."""


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """One, as it stands."""

    follow_up_id: FollowUpId
    status: FollowUpStatus
    channel: str
    account: str
    chat_id: str | None
    text: str
    workflow_id: str | None
    plan: Plan
    created_at_ms: int
    fired_task_id: TaskId | None = None
    """What it became."""
    by: str = ""
    """Who ended it."""
    why: str = ""
    """Why it ended unsaid, or what it waits for."""


class Page(msgspec.Struct, frozen=True):
    rows: list[FollowUp]
    next: str | None
    """Where the next page begins. A page may be short, even empty, and not be the last."""


LEFT_TO_TIMERS: Final = timedelta(seconds=3)
"""How long after its moment the queue fires a follow-up whose timer has not rung: by then it is not late yet, and a
timer that is there has rung."""


class Timers(Protocol):
    """Something that keeps the time of plannings, and rings at least once (`ringing.py`). Raises `Unavailable`."""

    async def arm(self, planning_id: TaskId, due_at: datetime) -> None:
        """It rings then, or at once if that is past. Said again, it changes nothing."""
        ...

    async def disarm(self, planning_id: TaskId) -> None:
        """It need not ring any more; whether it does all the same, as one that is ringing may, changes nothing. It has
        ended: nobody arms it again."""
        ...


class FollowUps(Protocol):
    """Raises `Unavailable` where a store does not answer: nothing is promised then, and repeating is safe.

    Of what this version cannot read, all but `page`, which leaves it out, raise `StateConflict`.
    """

    async def get(self, follow_up_id: FollowUpId) -> FollowUp:
        """Wherever it is now. Raises `TaskUnknown`."""
        ...

    async def page(self, chat: Mapping[str, Any], *, status: ListedStatus | None, limit: int, after: str = "") -> Page:
        """What is planned or suspended, in no particular order. `chat`: channel, account, chat_id, as far as wanted."""
        ...

    async def cancel(self, follow_up_id: FollowUpId, *, who: str, why: str = "") -> FollowUp:
        """It will not fire, however often this is said. Raises `StateConflict` if it has fired, or ended otherwise."""
        ...

    async def move(self, follow_up_id: FollowUpId, to: Plan, *, who: str) -> FollowUp:
        """It fires at another moment instead. Raises `StateConflict` as `cancel` does, or if somebody else moves it."""
        ...

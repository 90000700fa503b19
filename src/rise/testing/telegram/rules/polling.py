"""How `getUpdates` gives updates out.

Promises: an update is given again and again until an offset above it confirms it; only one poll waits, and a
second one ends it. Waiting is the caller's work: ask `answer` until it has one or the poll's time is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from rise.testing.telegram.rules.refusals import conflict
from rise.testing.telegram.rules.update_queue import QueuedUpdate, UpdateQueue

UPDATES_PER_POLL_MAX: Final = 100
POLL_SECONDS_MAX: Final = 50


@dataclass(slots=True, eq=False)
class Poll:
    """One `getUpdates` that has not been answered yet."""

    offset: int
    count_max: int
    ends_at: float
    ended_by: str = ""


@dataclass(slots=True)
class Polling:
    """The polls of one bot."""

    queue: UpdateQueue
    _waiting: Poll | None = None

    def begin(self, *, offset: int, limit: int, timeout_seconds: int, now: float) -> Poll:
        """Confirm what the offset confirms, and end the poll that waits already."""
        self.queue.expire(now)
        self.end("other getUpdates request; make sure that only one bot instance is running")
        if offset < 0:
            offset = self._offset_counted_from_the_end(offset)
        if offset > 0:
            self._confirm_below(offset)
        count_max = limit if 1 <= limit <= UPDATES_PER_POLL_MAX else UPDATES_PER_POLL_MAX
        timeout_seconds = max(0, min(timeout_seconds, POLL_SECONDS_MAX))
        self._waiting = Poll(offset, count_max, now + timeout_seconds)
        return self._waiting

    def answer(self, poll: Poll, now: float) -> list[QueuedUpdate] | None:
        """The updates; nothing of them while the poll still has time to wait: None."""
        if poll.ended_by:
            raise conflict(f"terminated by {poll.ended_by}")
        self.queue.expire(now)
        above = (update for update in self.queue.pending() if update.update_id >= poll.offset)
        updates = list(islice(above, poll.count_max))
        if not updates and now < poll.ends_at:
            return None
        if self._waiting is poll:
            self._waiting = None
        return updates

    def end(self, by: str) -> None:
        """The waiting poll, if any, will be refused."""
        if self._waiting is not None:
            self._waiting.ended_by = by
            self._waiting = None

    def _offset_counted_from_the_end(self, offset: int) -> int:
        last = self.queue.pending()[offset:]
        return last[0].update_id if last else 0

    def _confirm_below(self, offset: int) -> None:
        for update in self.queue.pending():
            if update.update_id < offset:
                self.queue.forget(update)

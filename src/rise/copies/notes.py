"""What this process knows of its copies and has not written down: which store holds what, and what the queue is owed.

Notes are written together and after the promise: one that is lost with its process costs a copy that is made twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Final

from rise.copies.journal import Copy, RunName
from rise.copies.journals import Journals
from rise.envelope import LaneKey
from rise.errors import Unavailable

MIRRORS_LIFE: Final = "1"
"""A mirror that lost what it held is found out by counting, and the journals are told then."""
NOTES_MAX: Final = 100_000
"""Beyond this, while the journal takes no writes, they are let go: the relay finds out again."""
NOTES_AT_ONCE: Final = 5_000
"""So that nobody who accepts waits long for the journal meanwhile."""


class Notes:
    """Gathered by who accepts, written by the relay."""

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self._gathered: defaultdict[tuple[Copy, str], list[RunName]] = defaultdict(list)
        self._writing = asyncio.Lock()
        self.debt = Debt()
        self.queues_life: str | None = None
        """The life of the queue as last heard; None: it has none, and what goes into it now is not counted on."""

    def add(self, copy: Copy, run: RunName, life: str | None) -> None:
        """`life`: the one the store had when it was asked."""
        if life is not None:
            runs = self._gathered[copy, life]
            if len(runs) < NOTES_MAX:
                runs.append(run)

    async def write(self) -> None:
        """One after the other: the relay does so, and whoever counts.

        Raises `Unavailable`; what could not be written is tried again with the next.
        """
        async with self._writing:
            for (copy, life), runs in list(self._gathered.items()):
                del self._gathered[copy, life]
                await self._write(copy, life, runs)

    async def _write(self, copy: Copy, life: str, runs: list[RunName]) -> None:
        while runs:
            now, later = runs[:NOTES_AT_ONCE], runs[NOTES_AT_ONCE:]
            try:
                await self._journals.own.note(now, copy, life)
            except (Unavailable, asyncio.CancelledError):
                self._gathered[copy, life] = [*runs, *self._gathered[copy, life]][:NOTES_MAX]
                raise
            runs = later


class Debt:
    """What the journal of this process holds and the queue has not got.

    Later ones of the same chats go to the queue behind it, through the journal and the relay: straight to it they
    would overtake. After an outage that is all chats at first; then those whose messages were sent behind, each until
    its last one has been brought.
    """

    def __init__(self) -> None:
        self.of_all_lanes = False
        self._behind: Counter[LaneKey] = Counter()
        """Messages that the queue was not given: on their way into the journal, or in it."""
        self._kept: Counter[LaneKey] = Counter()
        """Of those, what the journal has; and what of that is being brought."""
        self._bringing: Counter[LaneKey] = Counter()

    def __bool__(self) -> bool:
        return self.of_all_lanes or bool(self._behind)

    def includes(self, lane: LaneKey) -> bool:
        return self.of_all_lanes or lane in self._behind

    def send_behind(self, lane: LaneKey) -> None:
        """A message of this chat is not given to the queue. It will be `kept` by the journal, or `refused`."""
        self._behind[lane] += 1

    def kept(self, lane: LaneKey) -> None:
        self._kept[lane] += 1

    def refused(self, lane: LaneKey) -> None:
        self._pay(lane, 1)

    def bringing(self) -> None:
        """What is in the journal by now is brought from it after this; if that breaks off, with the next."""
        self._bringing.update(self._kept)
        self._kept.clear()

    def brought(self) -> None:
        for lane, count in self._bringing.items():
            self._pay(lane, count)
        self._bringing.clear()

    def forgive(self) -> None:
        """The chats go on without it."""
        self.of_all_lanes = False
        self.bringing()
        self.brought()

    def _pay(self, lane: LaneKey, count: int) -> None:
        self._behind[lane] -= count
        if not self._behind[lane]:
            del self._behind[lane]

"""Which store holds what, on its way into the journal.

Noted together and after the promise: a note that is lost with its process costs a copy that is made twice.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from rise.copies.journal import Copy, Run
from rise.copies.journals import Journals
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
        self._gathered: defaultdict[tuple[Copy, str], list[Run]] = defaultdict(list)
        self.queue_is_owed = False
        """The journal holds what the queue has not got, so later ones go to the queue behind it, through the relay:
        straight to it they would overtake their chat's earlier ones."""
        self.queues_life: str | None = None
        """The life of the queue as last heard; None: it has none, and what goes into it now is not counted on."""

    def add(self, copy: Copy, run: Run, life: str | None) -> None:
        """`life`: the one the store had when it was asked."""
        if life is not None:
            runs = self._gathered[copy, life]
            if len(runs) < NOTES_MAX:
                runs.append(run)

    async def write(self) -> None:
        """Raises `Unavailable`; what could not be written is tried again with the next."""
        for (copy, life), runs in list(self._gathered.items()):
            del self._gathered[copy, life]
            while runs:
                now, later = runs[:NOTES_AT_ONCE], runs[NOTES_AT_ONCE:]
                try:
                    await self._journals.own.note(now, copy, life)
                except Unavailable:
                    self._gathered[copy, life] = [*runs, *self._gathered[copy, life]][:NOTES_MAX]
                    raise
                runs = later

"""When a worker makes room for a suspect: a task that was running in several crashes, and should run alone.

Whoever else needs this worker waits for that, so it has bounds: the worker stops taking work for a few seconds
at a time, and when runs beside it do not end, the suspect runs beside them after some tries.

Refuses: two suspects at once, because the one would be blamed for the other; to judge. How many deaths make a task
poison is the queue's.
"""

from __future__ import annotations

from typing import Final

ROOM_SECONDS: Final = 5.0
"""How long nothing is claimed so that the running work may end; and how long a suspect runs alone."""
PAUSE_SECONDS: Final = 10.0
"""Between two tries, in which others are served."""
TRIES: Final = 3
"""Then the suspect runs beside what does not end."""


class Quarantine:
    """The state of one worker. `now` is passed in: seconds, never stepping back."""

    def __init__(self) -> None:
        self._making_room_until: float | None = None
        self._alone_until = 0.0
        self._pause_until = 0.0
        self._tries = 0
        self._suspects = 0

    def takes_suspects(self, *, is_empty: bool) -> bool:
        """Whether the next claim may bring a suspect. Never beside another: the one would be blamed for the other."""
        return is_empty or (self._tries >= TRIES and not self._suspects)

    def refuses_others(self, now: float) -> bool:
        """Whether nothing is to be claimed now, while something runs."""
        if self._making_room_until is not None and now >= self._making_room_until:
            self._making_room_until, self._pause_until = None, now + PAUSE_SECONDS
            self._tries += 1
        return self._making_room_until is not None or now < self._alone_until

    def suspects_wait(self, now: float) -> None:
        """The last claim was refused one."""
        if self._making_room_until is None and now >= self._pause_until:
            self._making_room_until = now + ROOM_SECONDS

    def suspect_starts(self, now: float) -> None:
        self._making_room_until, self._tries = None, 0
        self._alone_until = now + ROOM_SECONDS
        self._suspects += 1

    def suspect_ends(self) -> None:
        self._alone_until = 0.0
        self._suspects -= 1

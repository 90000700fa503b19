"""Goes through the mirror: what is finished leaves it, what is not is put back to wait.

Copies are not held until their tasks end, because a broker gives back what is held for too long and keeps everything
behind it. At every instant one copy is there: it is put back, confirmed, before the former one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rise.clock import Clock, epoch_ms
from rise.copies.journal import run_of
from rise.copies.open_work import OpenWork
from rise.copies.port import RABBITMQ, Look, Mirror
from rise.errors import Unavailable
from rise.telemetry import log

WINDOW: Final = 500
"""So many copies are held at once."""
HOLD_MS: Final = 20_000
"""How long one is held unresolved, hoping that its task is finished meanwhile; parking costs two writes."""
PARKED_LOOK_MS: Final = 600_000
"""A parked copy is looked at so seldom."""
WAIT_SECONDS: Final = 1.0


class Reaper:
    """The one that looks, for the whole installation."""

    def __init__(self, mirror: Mirror, work: OpenWork, clock: Clock) -> None:
        self._mirror = mirror
        self._work = work
        self._clock = clock
        self._held: list[Look] = []
        self._parked_due_at_ms = 0

    async def look(self) -> None:
        """One round. Raises `Unavailable`, having given back what it held."""
        room = WINDOW - len(self._held)
        if room:
            self._held += await self._mirror.take(room, seconds=WAIT_SECONDS, parked=False)
        try:
            await self._resolve_fresh()
            await self._resolve_parked()
        except Unavailable:
            await self.let_go()
            raise

    async def look_through(self) -> int:
        """Once all of it, at once. Returns how many the queue had lost."""
        await self.let_go()
        depth = await self._mirror.depth()
        brought = 0
        for is_parked, left in ((False, depth.fresh), (True, depth.parked)):
            while left > 0:
                looks = await self._mirror.take(min(left, WINDOW), seconds=WAIT_SECONDS, parked=is_parked)
                if not looks:
                    break  # they were finished meanwhile, or somebody else looks now
                left -= len(looks)
                brought += await self._bring_and_park(await self._open_ones(looks))
        return brought

    async def let_go(self) -> None:
        """Everything held goes back where it was."""
        held, self._held = self._held, []
        if held:
            await self._mirror.give_back(held)

    async def _resolve_fresh(self) -> None:
        self._held = await self._open_ones(self._held)
        old = epoch_ms(self._clock.now()) - HOLD_MS
        parking, held = _split(self._held, lambda look: look.kept_at_ms <= old)
        if not parking and len(held) == WINDOW:
            parking, held = held[: WINDOW // 2], held[WINDOW // 2 :]  # others have to be seen, too
        self._held = held
        await self._bring_and_park(parking)

    async def _resolve_parked(self) -> None:
        while epoch_ms(self._clock.now()) >= self._parked_due_at_ms:
            looks = await self._mirror.take(WINDOW, seconds=0.0, parked=True)
            now = epoch_ms(self._clock.now())
            due, early = _split(looks, partial(_is_due, now))
            await self._mirror.give_back(early)
            await self._bring_and_park(await self._open_ones(due))
            if early or not due:
                self._parked_due_at_ms = min([look.kept_at_ms for look in early], default=now) + PARKED_LOOK_MS

    async def _open_ones(self, looks: Sequence[Look]) -> list[Look]:
        """Those whose task is not over; the others are let go. What cannot be read is nobody's to end."""
        over = await self._work.finished([run_of(look.task) for look in looks if look.task is not None])
        ended, still_open = _split(looks, lambda look: look.task is not None and run_of(look.task).run in over)
        await self._mirror.forget(ended)
        return still_open

    async def _bring_and_park(self, looks: Sequence[Look]) -> int:
        if not looks:
            return 0
        brought = await self._bring(looks)
        await self._mirror.park(looks)
        return brought

    async def _bring(self, looks: Sequence[Look]) -> int:
        """Whatever the queue has lost of these. One that does not answer is filled when it does."""
        tasks = [look.task for look in looks if look.task is not None]
        if len(tasks) < len(looks):
            log.error(
                "mirror.unreadable",
                copy=RABBITMQ,
                count=len(looks) - len(tasks),
                consequence="this version cannot read them; they wait in the parked queue for one that can",
            )
        try:
            return await self._work.restore(tasks)
        except Unavailable:
            return 0


def _is_due(now_ms: int, look: Look) -> bool:
    return look.kept_at_ms + PARKED_LOOK_MS <= now_ms


def _split(looks: Sequence[Look], is_meant: Callable[[Look], bool]) -> tuple[list[Look], list[Look]]:
    meant: list[Look] = []
    others: list[Look] = []
    for look in looks:
        (meant if is_meant(look) else others).append(look)
    return meant, others

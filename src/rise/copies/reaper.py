"""Goes through the mirror: what is finished leaves it, what is not is put back to wait.

Copies are not held until their tasks end, because a broker gives back what is held for too long and keeps everything
behind it. At every instant one copy is there: it is put back, confirmed, before the former one goes.

Refuses: to let go of the last copy of what the ledger does not say is over, or of what this version cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rise.clock import Clock, epoch_ms
from rise.copies.journal import KeptRun, RunName, run_of
from rise.copies.open_work import OpenWork
from rise.copies.port import RABBITMQ, REDIS, Look, Mirror
from rise.errors import RabbitUnavailable, Unavailable
from rise.telemetry import copies_made_up_total, log

WINDOW: Final = 500
"""So many copies are held at once."""
HOLD_SECONDS: Final = 20.0
"""How long one is held unresolved, hoping that its task is finished meanwhile; parking costs two writes."""
PARKED_LOOK_SECONDS: Final = 600.0
"""A parked copy is looked at so seldom."""
WAIT_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 5.0
"""So long a round goes on while there is more than the window takes."""


class Reaper:
    """The one that looks, for the whole installation."""

    def __init__(self, mirror: Mirror, work: OpenWork, clock: Clock) -> None:
        self._mirror = mirror
        self._work = work
        self._clock = clock
        self._held: list[Look] = []
        """Fresh, and not finished when last looked at."""
        self._parked_due_at = 0.0
        self.waiting: dict[RunName, KeptRun] = {}
        """What it has put back to wait and not let go since. Who counts takes out of it what a journal knows of."""

    async def look(self) -> None:
        """One round. Raises `Unavailable`, having given back what it held."""
        try:
            await self._look_at_fresh()
            await self._look_at_parked()
        except Unavailable:
            await self.let_go()
            raise

    async def look_through(self) -> int:
        """Once all of it, at once, and everything that is not finished is in the queue. Returns how many it had lost.

        Raises `Unavailable` if that cannot be said; beginning again is safe.
        """
        await self.let_go()
        depth = await self._mirror.depth()
        try:
            return await self._bring_all(depth.fresh, parked=False) + await self._bring_all(depth.parked, parked=True)
        except Unavailable:
            await self.let_go()
            raise

    async def let_go(self) -> None:
        """Everything taken goes back where it was, and another process may look."""
        self._held = []
        await self._mirror.let_go()

    # --- a round ---

    async def _look_at_fresh(self) -> None:
        until = self._clock.monotonic() + LOOK_SECONDS
        is_more = True
        while is_more:
            room = WINDOW - len(self._held)
            taken = await self._mirror.take(room, seconds=WAIT_SECONDS, parked=False)
            self._held = await self._open_ones(await self._merged([*self._held, *taken]))
            await self._park_old()
            await self._park_some_if_full()
            is_more = len(taken) == room and self._clock.monotonic() < until

    async def _park_old(self) -> None:
        old, young = _split(self._held, lambda look: not self._is_recent(look, HOLD_SECONDS))
        await self._bring_if_possible(old)
        await self._park(old)
        self._held = young

    async def _park_some_if_full(self) -> None:
        if len(self._held) == WINDOW:
            # Others have to be seen, too. Not brought: whoever accepted them may still be handing them to the queue.
            await self._park(self._held[: WINDOW // 2])
            self._held = self._held[WINDOW // 2 :]

    async def _look_at_parked(self) -> None:
        until = self._clock.monotonic() + LOOK_SECONDS
        while self._parked_due_at <= self._clock.monotonic() < until:
            looks = await self._merged(await self._mirror.take(WINDOW, seconds=WAIT_SECONDS, parked=True))
            early, due = _split(looks, partial(self._is_recent, seconds=PARKED_LOOK_SECONDS))
            await self._mirror.give_back(early)
            still_open = await self._open_ones(due)
            await self._bring_if_possible(still_open)
            await self._park(still_open)
            if early or not due:
                oldest = max((abs(self._age_seconds(look)) for look in early), default=0.0)
                self._parked_due_at = self._clock.monotonic() + PARKED_LOOK_SECONDS - oldest

    def _is_recent(self, look: Look, seconds: float) -> bool:
        # Kept a little later than now is by another host's clock; much later, by one that was set back since.
        return abs(self._age_seconds(look)) < seconds

    def _age_seconds(self, look: Look) -> float:
        return (epoch_ms(self._clock.now()) - look.kept_at_ms) / 1000

    # --- all of it ---

    async def _bring_all(self, count: int, *, parked: bool) -> int:
        brought = 0
        while count > 0:
            looks = await self._mirror.take(min(count, WINDOW), seconds=WAIT_SECONDS, parked=parked)
            if not looks:
                await self._check_that_none_is_left(parked=parked)
                break
            still_open = await self._open_ones(looks)
            brought += await self._bring(still_open)
            await self._park(still_open)
            count -= len(looks)
        return brought

    async def _check_that_none_is_left(self, *, parked: bool) -> None:
        depth = await self._mirror.depth()
        if depth.parked if parked else depth.fresh:
            raise RabbitUnavailable("another process still looks at what the mirror holds")

    # --- resolving ---

    async def _merged(self, looks: Sequence[Look]) -> list[Look]:
        """One copy of each run; others, of what came twice or was kept again, are let go. They would hide the loss of a
        copy when what the mirror holds is counted."""
        seen: set[RunName] = set()
        # The last one handed out stays: if one before it was lost with its queue, letting go of that says so.
        lasts, others = _split(looks[::-1], lambda look: look.task is None or _is_new(run_of(look.task).name, seen))
        if others:
            await self._mirror.forget(others)
        return lasts[::-1]

    async def _open_ones(self, looks: Sequence[Look]) -> list[Look]:
        """Those whose task is not over; the others are let go. What cannot be read is nobody's to end."""
        over = await self._work.finished([run_of(look.task) for look in looks if look.task is not None])
        ended, still_open = _split(looks, lambda look: look.task is not None and run_of(look.task).name in over)
        if ended:
            await self._mirror.forget(ended)
            for run in over:
                self.waiting.pop(run, None)
        return still_open

    async def _bring_if_possible(self, looks: Sequence[Look]) -> None:
        """A queue that does not answer is filled when it does."""
        try:
            brought = await self._bring(looks)
        except Unavailable as error:
            log.info("mirror.not_brought", error=error)
            return
        if brought:
            copies_made_up_total.labels(REDIS).inc(brought)
            log.info("copies.made_up", copy=REDIS, count=brought)

    async def _bring(self, looks: Sequence[Look]) -> int:
        """To the queue, whatever it has lost of these."""
        tasks = [look.task for look in looks if look.task is not None]
        if len(tasks) < len(looks):
            log.error(
                "mirror.unreadable",
                copy=RABBITMQ,
                count=len(looks) - len(tasks),
                consequence="this version cannot read them; they wait in the parked queue for one that can",
            )
        return await self._work.restore(tasks)

    async def _park(self, looks: Sequence[Look]) -> None:
        if looks:
            await self._mirror.park(looks)
            kept = [run_of(look.task) for look in looks if look.task is not None]
            self.waiting.update((one.name, one) for one in kept)


def _is_new(run: RunName, seen: set[RunName]) -> bool:
    is_new = run not in seen
    seen.add(run)
    return is_new


def _split(looks: Sequence[Look], is_meant: Callable[[Look], bool]) -> tuple[list[Look], list[Look]]:
    meant: list[Look] = []
    others: list[Look] = []
    for look in looks:
        (meant if is_meant(look) else others).append(look)
    return meant, others

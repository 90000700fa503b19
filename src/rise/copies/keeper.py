"""What one process of an installation does for all: fills an emptied queue again, goes through the mirror, counts.

A queue that has lost what it held hands out nothing until all of it is back, in each chat's order; accepting goes on
meanwhile, and so does everything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.copies.open_work import OpenWork
from rise.copies.port import RABBITMQ, Mirror
from rise.copies.reaper import Reaper
from rise.copies.slots import Slots
from rise.errors import Unavailable
from rise.ledger.port import Role
from rise.roles import RoleClaim
from rise.service import Loop
from rise.telemetry import log

ROUND_SECONDS: Final = 1.0
COUNT_SECONDS: Final = 30.0
MIRROR_PATIENCE_SECONDS: Final = 30.0
"""So long an emptied queue waits for a mirror that is away, too, before work goes on with what the journals hold."""
PAGE: Final = 500


class Keeper:
    """One per `rise serve`; works while its process has the role, and does nothing in the others."""

    name = "keeper"

    def __init__(self, *, slots: Slots, work: OpenWork, mirror: Mirror | None, bus: Bus, clock: Clock) -> None:
        self._slots = slots
        self._work = work
        self._mirror = mirror
        self._reaper = None if mirror is None else Reaper(mirror, work, clock)
        self._bus = bus
        self._role = RoleClaim(work.ledger, Role.KEEPER, bus.member, clock)
        self._clock = clock
        self._refilling_since: float | None = None
        self._counted_at = 0.0
        self._counted_short = False
        self._loop = Loop(self.name, self._round, sleep=clock.sleep, on_error=_report)

    async def start(self) -> None:
        await self._role.start()
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        await self._role.stop()
        if self._reaper is not None:
            try:
                await self._reaper.let_go()
            except Unavailable:
                return  # it goes back by itself when the connection ends

    async def _round(self) -> None:
        if self._role.is_ours:
            await self._attempt("refill", self._refill_if_emptied)
            if self._reaper is not None:
                await self._attempt("mirror", self._reaper.look)
                await self._attempt("count", self._count_now_and_then)
        await self._clock.sleep(ROUND_SECONDS)

    async def _attempt(self, duty: str, work: Callable[[], Awaitable[object]]) -> None:
        """A store that is away keeps nobody from caring for the others."""
        try:
            await work()
        except Unavailable as error:
            log.info("keeper.delayed", duty=duty, error=error)

    # --- an emptied queue ---

    async def _refill_if_emptied(self) -> None:
        if await self._work.queue.life() is None:
            await self.refill()

    async def refill(self) -> int:
        """Bring everything open to the queue, then let it be handed out. Safe to begin again wherever it ended."""
        if self._refilling_since is None:
            self._refilling_since = self._clock.monotonic()
        brought = await self._bring_from_journals() + await self._bring_from_mirror()
        await self._work.queue.begin_life()
        self._refilling_since = None
        log.info("queue.rehydrated", count=brought)
        self._bus.publish(Topic.LANES_READY)
        return brought

    async def _bring_from_journals(self) -> int:
        brought = 0
        async with self._slots.every() as journals:
            for journal in journals:
                after = 0
                while entries := await journal.open_tasks(limit=PAGE, after=after):
                    brought += await self._work.restore([entry.task for entry in entries])
                    after = entries[-1].number
        return brought

    async def _bring_from_mirror(self) -> int:
        if self._reaper is None:
            return 0
        try:
            return await self._reaper.look_through()
        except Unavailable as error:
            assert self._refilling_since is not None
            if self._clock.monotonic() - self._refilling_since < MIRROR_PATIENCE_SECONDS:
                raise
            log.error(
                "queue.rehydrated_without_mirror",
                error=error,
                consequence="work goes on with what the journals hold; what only the mirror has comes when it is back",
            )
            return 0

    # --- a mirror that lost what it held ---

    async def _count_now_and_then(self) -> None:
        if self._clock.monotonic() - self._counted_at >= COUNT_SECONDS:
            await self._count()
            self._counted_at = self._clock.monotonic()

    async def _count(self) -> None:
        """A queue deleted or purged in the broker is short of what the journals know to be there."""
        assert self._mirror is not None
        depth = await self._mirror.depth()
        async with self._slots.every() as journals:
            missing = sum([await journal.noted("rabbitmq") for journal in journals]) - depth.fresh - depth.parked
            if missing > 0 and self._counted_short:  # once may be a moment between two counts
                log.error(
                    "copies.lost",
                    copy=RABBITMQ,
                    count=missing,
                    consequence="the mirror has lost copies of open work; all are made again from the journals",
                )
                for journal in journals:
                    await journal.note_lost("rabbitmq")
            self._counted_short = missing > 0 and not self._counted_short


def _report(name: str, error: BaseException) -> None:
    log.error("keeper.failed", error=error, consequence="goes on after a pause; work is kept and waits")

"""What one process of an installation does for all: fills an emptied queue again, goes through the mirror, counts.

A queue that has lost what it held hands out nothing until all of it is back, in each chat's order; accepting goes on
meanwhile, and so does everything else.

Refuses: to do any of it while another process has the office; to wait for a copy that is away longer than
`PATIENCE_SECONDS`, while every chat waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.copies.journal import Journal, KeptRun, RunName
from rise.copies.open_work import OpenWork
from rise.copies.port import RABBITMQ, Mirror
from rise.copies.reaper import Reaper
from rise.copies.slots import Slots
from rise.errors import RabbitUnavailable, RedisFull, StoreUnavailable, Unavailable
from rise.ledger.port import Office
from rise.offices import OfficeClaim
from rise.service import Loop, sparingly
from rise.telemetry import log

T = TypeVar("T")

ROUND_SECONDS: Final = 1.0
FIRST_SECONDS: Final = 0.05
"""Until it is known whose the office is: a new queue has no life before the first round, and all wait for that."""
COUNT_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 30.0
"""So long an emptied queue waits for a copy that is away, too, before work goes on with what the others hold."""
PAGE: Final = 500


class Keeper:
    """One per `rise serve`; works while its process has the office, and does nothing in the others."""

    name = "keeper"

    def __init__(self, *, slots: Slots, work: OpenWork, mirror: Mirror | None, bus: Bus, clock: Clock) -> None:
        self._slots = slots
        self._work = work
        self._mirror = mirror
        self._reaper = None if mirror is None else Reaper(mirror, work, clock)
        self._bus = bus
        self._office = OfficeClaim(work.ledger, Office.KEEPER, bus.member, clock)
        self._clock = clock
        self._refilling_since: float | None = None
        self._is_mirror_owed = False
        """Work went on without what only the mirror holds."""
        self._counted_at: float | None = None
        self._counted_short = False
        self._is_resting = True
        self._say_delayed = sparingly(_report_delay, clock)
        self._loop = Loop(self.name, self._round, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        await self._office.start()
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        await self._office.stop()
        await self._attempt("rest", self._rest)  # what is held goes back by itself when the connection ends

    async def _round(self) -> None:
        if self._office.is_ours:
            self._is_resting = False
            await self._attempt("refill", self._refill_if_emptied)
            if self._reaper is not None:
                await self._attempt("mirror", self._look_at_mirror)
                await self._attempt("count", self._count_now_and_then)
        elif not self._is_resting:
            await self._attempt("rest", self._rest)
        is_known = self._office.is_ours or self._office.is_anothers
        await self._clock.sleep(ROUND_SECONDS if is_known else FIRST_SECONDS)

    async def _attempt(self, duty: str, work: Callable[[], Awaitable[object]]) -> None:
        """A store that is away keeps nobody from caring for the others."""
        try:
            await work()
        except Unavailable as error:
            self._say_delayed(duty, error)

    async def _rest(self) -> None:
        """Somebody else has the office: nothing is held back from him, and what was known is soon old."""
        self._refilling_since, self._is_mirror_owed = None, False
        self._counted_at, self._counted_short = None, False
        if self._reaper is not None:
            self._reaper.waiting.clear()
            await self._reaper.let_go()
        self._is_resting = True

    # --- an emptied queue ---

    async def _refill_if_emptied(self) -> None:
        if await self._work.queue.life() is None:
            await self.refill()
        else:
            self._refilling_since = None

    async def refill(self) -> int:
        """Bring everything open to the queue, then let it be handed out. Safe to begin again wherever it ended."""
        if self._refilling_since is None:
            self._refilling_since = self._clock.monotonic()
            log.warning("queue.emptied", consequence="nothing is handed out until all that is open is back in it")
        refill = await self._work.queue.begin_refill()
        brought = await self._bring_all()
        if await self._work.queue.begin_life(refill) is None:
            log.warning("queue.emptied_again", consequence="what was brought is lost, and brought again")
            return 0
        self._refilling_since = None
        log.info("queue.refilled", count=brought)
        self._bus.publish(Topic.LANES_READY)
        return brought

    async def _bring_all(self) -> int:
        try:
            return await self._bring_from_journals() + await self._bring_from_mirror()
        except RedisFull as error:
            # Waiting for room would be for ever: only what is handed out makes room.
            log.error(
                "queue.refilled_in_part",
                without="what Redis has no room for",
                error=error,
                consequence="work goes on with what is in it; the rest comes as room is made, and may be out of order",
            )
            return 0

    async def _bring_from_journals(self) -> int:
        async with AsyncExitStack() as stack:
            try:
                journals = await stack.enter_async_context(self._slots.every())
            except StoreUnavailable as error:
                self._go_on_without("the journals", error)
                return 0
            return sum([await self._bring_from(journal) for journal in journals])

    async def _bring_from(self, journal: Journal) -> int:
        """What was in it when this began; who has accepted since is handing it to the queue himself."""
        brought = after = 0
        last = await self._read(journal, journal.last_number()) or 0
        while after < last:
            entries = await self._read(journal, journal.open_tasks(limit=PAGE, after=after))
            if not entries:
                break
            brought += await self._work.restore([entry.task for entry in entries])
            after = entries[-1].number
        return brought

    async def _read(self, journal: Journal, reading: Awaitable[T]) -> T | None:
        """None: one that stays unreadable does not keep all others waiting for ever."""
        try:
            return await reading
        except StoreUnavailable as error:
            self._go_on_without(f"journal {journal.number}", error)
            return None

    async def _bring_from_mirror(self) -> int:
        if self._reaper is None:
            return 0
        try:
            brought = await self._reaper.look_through()
        except RabbitUnavailable as error:
            self._go_on_without("the mirror", error)
            self._is_mirror_owed = True
            return 0
        self._is_mirror_owed = False
        return brought

    def _go_on_without(self, copy: str, error: Unavailable) -> None:
        """Raises the error as long as there is patience."""
        assert self._refilling_since is not None
        if self._clock.monotonic() - self._refilling_since < PATIENCE_SECONDS:
            raise error
        log.error(
            "queue.refilled_in_part",
            without=copy,
            error=error,
            consequence="work goes on with what the other copies hold; what only this one has comes when it is back",
        )

    # --- the mirror ---

    async def _look_at_mirror(self) -> None:
        assert self._reaper is not None
        if self._is_mirror_owed and await self._work.queue.life() is not None:
            brought = await self._reaper.look_through()
            self._is_mirror_owed = False
            log.info("queue.refilled", count=brought)
            self._bus.publish(Topic.LANES_READY)
        await self._reaper.look()

    # --- a mirror that lost what it held ---

    async def _count_now_and_then(self) -> None:
        now = self._clock.monotonic()
        if self._counted_at is None or now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            await self._count()

    async def _count(self) -> None:
        """A queue deleted or purged in the broker is short of what the journals know to be there."""
        assert self._mirror is not None
        assert self._reaper is not None
        async with self._slots.every() as every:
            # One that cannot be read knows of nothing; at most that hides a loss.
            journals = [journal for journal in every if await _can_be_read(journal)]
            missing = await self._count_missing(self._mirror, self._reaper.waiting, journals)
            if missing > 0 and self._counted_short:  # once may be a moment between two counts
                log.error(
                    "copies.lost",
                    copy=RABBITMQ,
                    count=missing,
                    consequence="the mirror has lost copies of open work; all are made again from the journals",
                )
                for journal in journals:
                    await journal.note_lost("rabbitmq")
                self._reaper.waiting.clear()  # what of it was lost, too, nobody knows
            self._counted_short = missing > 0 and not self._counted_short

    async def _count_missing(self, mirror: Mirror, waiting: dict[RunName, KeptRun], journals: Sequence[Journal]) -> int:
        # The journals first: what is kept in between is in the mirror and not in the sum, and hides at most a loss.
        noted = sum([await journal.noted("rabbitmq") for journal in journals])
        depth = await mirror.depth()
        for journal in journals:
            await _leave_unknown(waiting, journal)
        if noted <= depth.fresh + depth.parked - len(waiting):
            return 0
        noted = sum([await self._count_noted(journals[:n], journal) for n, journal in enumerate(journals)])
        depth = await mirror.depth()
        # What no journal knows of, having taken nothing when it was accepted, or being another host's, would hide the
        # loss of as many others. What of it has ended may have left.
        unknown = len(waiting) - await self._count_finished(list(waiting.values()))
        return noted - max(0, depth.fresh + depth.parked - unknown)

    async def _count_noted(self, others: Sequence[Journal], journal: Journal) -> int:
        """Without what those others count, since of what came twice the mirror keeps one copy, and without what is
        finished: the mirror lets go of that up to ten minutes before a journal looks at it."""
        count, after = 0, None
        while runs := await journal.noted_runs("rabbitmq", limit=PAGE, after=after):
            after = runs[-1].task_id
            for other in others:
                known = await other.noted_among("rabbitmq", [one.name for one in runs])
                runs = [one for one in runs if one.name not in known]
            count += len(runs) - await self._count_finished(runs)
        return count

    async def _count_finished(self, runs: Sequence[KeptRun]) -> int:
        return sum([len(await self._work.finished(page)) for page in _pages(runs)])


async def _leave_unknown(waiting: dict[RunName, KeptRun], journal: Journal) -> None:
    for page in _pages(list(waiting)):
        for run in await journal.noted_among("rabbitmq", page):
            del waiting[run]


def _pages(runs: Sequence[T]) -> Iterator[Sequence[T]]:
    return (runs[start : start + PAGE] for start in range(0, len(runs), PAGE))


async def _can_be_read(journal: Journal) -> bool:
    try:
        await journal.last_number()
    except StoreUnavailable:
        return False
    return True


def _report_delay(duty: str, error: BaseException) -> None:
    log.info("keeper.delayed", duty=duty, error=error, consequence="accepting goes on; done once it answers")


def _report(name: str, error: BaseException) -> None:
    log.error("keeper.failed", error=error, consequence="goes on after a pause; work is kept and waits")

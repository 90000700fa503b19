"""Completes what other stores still lack of the journals of this process, and lets go of what is finished.

Never on a message's way: everything here makes up for a store that was away, a process that died, or a step that was
lost, and may be done any number of times. What is finished is asked of the ledger, which decides.

Refuses: to bring anything to a queue without a life. That one the keeper fills.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.copies.journal import Copy, Journal, JournalEntry, KeptRun, RunName, run_of
from rise.copies.journals import Journals
from rise.copies.notes import MIRRORS_LIFE, Notes
from rise.copies.open_work import OpenWork
from rise.copies.port import RABBITMQ, REDIS, Mirror
from rise.envelope import LaneKey, TaskId
from rise.errors import RedisFull, RedisUnavailable, StoreUnavailable, Unavailable
from rise.service import Loop, sparingly
from rise.telemetry import copies_made_up_total, log

NOTE_SECONDS: Final = 0.5
ROUND_SECONDS: Final = 1.0
CATCH_UP_SECONDS: Final = 0.2
"""Messages wait behind it: those that come while it is caught up with, and those that came before."""
YOUNG_MS: Final = 4_000
"""So long whoever accepted a message is still handing it to all stores; longer than an acceptance may take."""
CATCH_UP_ROUNDS_MAX: Final = 20
FEW: Final = 200
OWED_SECONDS: Final = 45
"""So long lanes wait for earlier messages of a process that died while it brought them."""
PAGE: Final = 500
COUNT_SECONDS: Final = 1.0
"""Whoever counts does not wait longer for a disk that hangs."""


class Relay:
    """One per process that accepts."""

    name = "relay"

    def __init__(
        self,
        *,
        journals: Journals,
        notes: Notes,
        work: OpenWork,
        mirror: Mirror | None,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._journals = journals
        self._notes = notes
        self._work = work
        self._mirror = mirror
        self._bus = bus
        self._clock = clock
        self._lanes_owing: set[LaneKey] = set()
        """Also those of a pass that broke off: what was brought and noted in it no journal names any more."""
        self._owed_at = 0.0
        self._owes_since: float | None = None
        self._looked_through: str | None = None
        """The life of the queue for which all journals have been compared with it, and say so."""
        self._is_all_noted = True
        self._looked_after: set[int] | None = None
        """The journals of this process, when last looked at."""
        self._loops = [
            self._every("relay.note", NOTE_SECONDS, self.note),
            self._every("relay.catch_up", CATCH_UP_SECONDS, self.catch_up),
            self._every("relay.queue", ROUND_SECONDS, self.complete_queue),
            self._every("relay.look", ROUND_SECONDS, self.look),
        ]
        if mirror is not None:
            self._loops.append(self._every("relay.mirror", ROUND_SECONDS, self.complete_mirror))

    async def start(self) -> None:
        self._notes.debt.of_all_lanes = await self._has_inherited()
        self._looked_after = self._journals.numbers()
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        for loop in self._loops:
            await loop.stop()
        try:
            await self._notes.write()
        except Unavailable:
            return  # whoever adopts the journal finds out again

    async def _has_inherited(self) -> bool:
        """Whether a former process has left something open in the slot that is now this one's."""
        try:
            return await self._journals.own.last_number() > 0
        except StoreUnavailable:
            return True

    @property
    def knows_queue(self) -> bool:
        """Whether the journals say of each message if the queue has it: not at first, nor since it was emptied."""
        return self._looked_through is not None and self._looked_through == self._notes.queues_life

    async def lacking(self) -> dict[Copy, int]:
        """How many open messages of the journals of this process each of the other stores has no copy of; of the queue
        see `knows_queue`. What cannot be read, or not in `COUNT_SECONDS`, is left out; empty if that is all."""
        with suppress(Unavailable, TimeoutError):  # what takes no writes, or slowly, can be read
            async with asyncio.timeout(COUNT_SECONDS):
                await self._notes.write()
        counted: Counter[Copy] = Counter()
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                await self._count_lacking(counted)
        except TimeoutError as error:
            log.debug("relay.not_counted", error=error)
        return counted

    async def _count_lacking(self, counted: Counter[Copy]) -> None:
        lives: dict[Copy, str | None] = {REDIS: self._notes.queues_life}
        if self._mirror is not None:
            lives[RABBITMQ] = MIRRORS_LIFE
        for journal in self._journals.all():
            try:
                counted.update((await journal.depth(lives)).lacking)
            except StoreUnavailable as error:
                log.debug("relay.not_counted", slot=journal.number, error=error)

    async def note(self) -> None:
        """Learn the life of the queue, and write down who holds what."""
        try:
            self._notes.queues_life = await self._work.queue.life()
        finally:
            await self._notes.write()

    async def complete_queue(self) -> None:
        """What was accepted while the queue was away. One without a life is being filled by the keeper."""
        if (life := self._notes.queues_life) is not None:
            self._is_all_noted = True
            await self._in_each_journal(partial(self._complete_queue, life))
            self._looked_through = life if self._is_all_noted else None

    async def catch_up(self) -> None:
        """After the queue was away: what this process accepted meanwhile, in order, before anything newer; and what a
        process held that has died, from when this one looks after its journal."""
        self._owe_what_was_adopted()
        if not self._notes.debt or (life := await self._queues_life()) is None:
            return
        try:
            if self._notes.debt.of_all_lanes:
                await self._bring_what_others_hold(life)
            await self._bring_what_is_owed(life, self._journals.own)
        except RedisFull:
            await self._give_way()
        except RedisUnavailable:
            return  # away again: the lanes wait, and this is tried again in a moment
        except StoreUnavailable:
            await self._go_on_without_journal()
            raise

    async def _bring_what_is_owed(self, life: str, journal: Journal) -> None:
        for _ in range(CATCH_UP_ROUNDS_MAX):
            if await self._bring_what_is_there(life, journal) < FEW:
                break
        # What came meanwhile was sent behind, and only its own chats wait for it.
        self._notes.debt.of_all_lanes, self._owes_since = False, None

    def _owe_what_was_adopted(self) -> None:
        before, self._looked_after = self._looked_after, self._journals.numbers()
        if before is not None and self._looked_after - before:
            self._notes.debt.of_all_lanes = True

    async def _bring_what_others_hold(self, life: str) -> None:
        """The processes of this host were without the queue together, and one of them may be frozen or dead: what it
        alone holds comes before what the others have accepted since. It finds that brought when it goes on."""
        async with self._journals.slots.every() as every:
            others = [journal for journal in every if journal.number != self._journals.own.number]
            lasts = {journal: await self._owed_by(journal, life) for journal in others}
            await self._owe()
            for journal, last in lasts.items():
                if last:
                    await self._bring_from_another(life, journal, last)

    async def _bring_from_another(self, life: str, journal: Journal, last: int) -> None:
        try:
            await self._complete_queue(life, journal, older_than_ms=0, last=last, is_owed=True, is_others=True)
        except StoreUnavailable as error:
            # If the ledger is what is away, what is our own is not brought either, and all is tried again.
            log.info("relay.journal_left_out", slot=journal.number, error=error)

    async def _owed_by(self, journal: Journal, life: str) -> int:
        """Owes for its lanes, too. Returns the last number of what it has; 0 also if it cannot be read."""
        try:
            last = await journal.last_number()
            self._lanes_owing |= await self._lanes_owed(life, journal, last)
        except StoreUnavailable as error:
            log.info("relay.journal_left_out", slot=journal.number, error=error)
            return 0
        return last

    async def _give_way(self) -> None:
        """The lanes wait a while for room to be made. But only what is handed out makes room: lanes that wait for it
        longer may be the ones that fill it, and go on without what came before."""
        now = self._clock.monotonic()
        self._owes_since = now if self._owes_since is None else self._owes_since
        if now - self._owes_since >= OWED_SECONDS:
            self._notes.debt.forgive()
            await self._pay()

    async def _go_on_without_journal(self) -> None:
        """Queue and mirror have to do, if it is the journal that cannot be read and not the ledger."""
        try:
            await self._journals.own.last_number()
        except StoreUnavailable:
            self._notes.debt.forgive()

    async def _bring_what_is_there(self, life: str, journal: Journal) -> int:
        """Returns how many have come meanwhile, which wait for the next pass."""
        self._notes.debt.bringing()
        last = await journal.last_number()
        self._lanes_owing |= await self._lanes_owed(life, journal, last)
        # Before anything newer of these lanes is handed out, whichever process accepted it.
        await self._owe()
        await self._complete_queue(life, journal, older_than_ms=0, last=last, is_owed=True)
        await self._pay()
        self._notes.debt.brought()
        return await journal.last_number() - last

    async def _owe(self) -> None:
        self._owed_at = self._clock.monotonic()
        await self._work.queue.owe(self._bus.member, self._lanes_owing, seconds=OWED_SECONDS)

    async def _owe_on(self) -> None:
        """A hundred thousand take longer to bring than lanes wait for a process that may have died."""
        if self._clock.monotonic() - self._owed_at > OWED_SECONDS / 3:
            await self._owe()

    async def _pay(self) -> None:
        await self._work.queue.paid(self._bus.member, self._lanes_owing)
        self._lanes_owing = set()

    async def _lanes_owed(self, life: str, journal: Journal, last: int) -> set[LaneKey]:
        lanes: set[LaneKey] = set()
        after = 0
        while after < last and (entries := await journal.lacking("redis", life, limit=PAGE, after=after)):
            lanes |= {entry.task.head.lane for entry in entries}
            after = entries[-1].number
        return lanes

    async def _queues_life(self) -> str | None:
        """None also while it is away: who asks so often need not say so each time."""
        try:
            return await self._work.queue.life()
        except Unavailable:
            return None

    async def _complete_queue(
        self,
        life: str,
        journal: Journal,
        *,
        older_than_ms: int = YOUNG_MS,
        last: int | None = None,
        is_owed: bool = False,
        is_others: bool = False,
    ) -> None:
        """`is_owed`: its lanes wait for it. `is_others`: what is written into it is for another process to say."""
        after = 0
        while (last is None or after < last) and (
            entries := await journal.lacking("redis", life, limit=PAGE, older_than_ms=older_than_ms, after=after)
        ):
            after = entries[-1].number
            brought = await self._bring(entries)
            if not is_others:
                await self._note_brought(journal, brought, life)
            if is_owed:
                await self._owe_on()

    async def _note_brought(self, journal: Journal, brought: Sequence[JournalEntry], life: str) -> None:
        try:
            await journal.note([run_of(entry.task).name for entry in brought], "redis", life)
        except StoreUnavailable as error:
            # On a disk that takes no writes the next are brought all the same.
            self._is_all_noted, self._looked_through = False, None
            log.debug("relay.not_noted", error=error)

    async def _bring(self, entries: Sequence[JournalEntry]) -> list[JournalEntry]:
        """To the queue. Returns what needs no bringing any more."""
        try:
            self._report(REDIS, await self._work.restore([entry.task for entry in entries]))
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - border: one that a bug of ours keeps back keeps no other
            if len(entries) > 1:
                half = len(entries) // 2
                return await self._bring(entries[:half]) + await self._bring(entries[half:])
            task_id, waits = entries[0].task.head.task_id, "it waits in the journal, and is tried again"
            log.error("copy.failed", copy=REDIS, task_id=task_id, error=error, exc_info=error, consequence=waits)
            return []
        return list(entries)

    async def complete_mirror(self) -> None:
        await self._in_each_journal(self._complete_mirror)

    async def _complete_mirror(self, journal: Journal) -> None:
        """One that the mirror does not take keeps none of the others from it."""
        after, trouble = 0, None
        while entries := await journal.lacking(
            "rabbitmq", MIRRORS_LIFE, limit=PAGE, older_than_ms=YOUNG_MS, after=after
        ):
            after = entries[-1].number
            over = await self._work.finished([run_of(entry.task) for entry in entries])
            made, refusal = await self._copy([entry for entry in entries if run_of(entry.task).name not in over])
            # What is over is not noted, having no copy; it is forgotten at its next look.
            await journal.note(made, "rabbitmq", MIRRORS_LIFE)
            self._report(RABBITMQ, len(made))
            trouble = trouble or refusal
            if refusal is not None and not made:
                break
        if trouble is not None:
            raise trouble

    async def _copy(self, entries: Sequence[JournalEntry]) -> tuple[list[RunName], BaseException | None]:
        """Those that the mirror took, and why it did not take one of the others."""
        mirror = self._mirror
        assert mirror is not None
        runs = [run_of(entry.task).name for entry in entries]
        answers = await asyncio.gather(
            *(mirror.keep(entry.task.head.task_id, entry.record) for entry in entries), return_exceptions=True
        )
        refusals = [answer for answer in answers if answer is not None]
        made = [run for run, answer in zip(runs, answers, strict=True) if answer is None]
        return made, refusals[0] if refusals else None

    async def look(self) -> None:
        """Let go of what is finished; of the rest, make sure that the queue has not lost it."""
        await self._in_each_journal(self._look)

    async def _look(self, journal: Journal) -> None:
        while kept := await journal.due(PAGE):
            over = await self._work.finished(kept)
            still_open = [one for one in kept if one.name not in over]
            await journal.forget(over)
            await self._make_sure(journal, still_open)
            await journal.looked([one.name for one in still_open])
        await journal.sweep()

    async def _make_sure(self, journal: Journal, kept: Sequence[KeptRun]) -> None:
        """That the queue has not lost one of those that it had. While it has no life, it is being filled."""
        if (life := self._notes.queues_life) is None or not kept:
            return
        try:
            missing = await self._work.queue.missing([one.task_id for one in kept])
            had = [task_id for task_id in missing if await _is_noted(journal, task_id, life)]
            lost = await self._work.restore([entry.task for entry in await journal.entries(had)])
        except Unavailable:
            return  # looked at again before long
        if lost:
            log.error(
                "copies.lost",
                copy=REDIS,
                count=lost,
                consequence="the queue had lost them; they were brought back and run",
            )
            self._report(REDIS, lost)

    async def _in_each_journal(self, duty: Callable[[Journal], Awaitable[None]]) -> None:
        """One that cannot be used keeps nobody from the others."""
        trouble: Unavailable | None = None
        for journal in self._journals.all():
            try:
                await duty(journal)
            except Unavailable as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _report(self, copy: str, count: int) -> None:
        if count:
            copies_made_up_total.labels(copy).inc(count)
            log.info("copies.made_up", copy=copy, count=count)
            if copy == REDIS:
                self._bus.publish(Topic.LANES_READY)

    def _every(self, name: str, seconds: float, duty: Callable[[], Awaitable[None]]) -> Loop:
        async def body() -> None:
            await duty()
            await self._clock.sleep(seconds)

        return Loop(name, body, sleep=self._clock.sleep, on_error=sparingly(_report_failure, self._clock))


async def _is_noted(journal: Journal, task_id: TaskId, life: str) -> bool:
    """Whether the queue had it in this life. If not, whoever accepted it may still be handing it over."""
    copies = await journal.copies_of(task_id)
    return copies is not None and copies.get("redis") == life


def _report_failure(name: str, error: BaseException) -> None:
    log.warning("relay.delayed", duty=name, error=error, consequence="the missing copies are made when it is back")

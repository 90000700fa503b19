"""Processes that keep messages in the same stores, and hands that reach into the stores and the ways to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from rise.clock import epoch_ms
from rise.copies.journal import Journal
from rise.copies.journals import Journals
from rise.copies.keeper import Keeper
from rise.copies.keeping import Copies, CopiesPolicy
from rise.copies.notes import Notes
from rise.copies.open_work import OpenWork
from rise.copies.port import Look
from rise.copies.relay import Relay
from rise.copies.slots import Slots
from rise.envelope import Outcome, Status, Task, TaskId, run_id_of
from rise.errors import RabbitUnavailable, RedisUnavailable, StoreUnavailable, Unavailable
from rise.ledger.port import Run, RunResult
from rise.queue.port import Finished, NewTask
from rise.testing.clock import START, ManualClock
from rise.testing.conformance.queue import delivery
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.fakes.mirror import MemoryMirror, MemoryMirrorState
from rise.testing.fakes.queue import MemoryQueue, MemoryQueueState

PATIENCE_SECONDS = 10
HOUR_SECONDS = 3600


class Killed(BaseException):
    """The process ends here: nothing of it runs on."""


@dataclass
class Link:
    """One process's way to one store."""

    error: Unavailable
    is_down: bool = False
    loses_answers: bool = False
    refuses: set[str] = field(default_factory=set)
    """These methods alone."""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What happens when a method is about to reach the store."""
    calls: Counter[str] = field(default_factory=Counter)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    dies_before_call: int | None = None
    """The process ends when it is about to make so many calls more."""

    def __post_init__(self) -> None:
        self.open.set()

    async def through(self, name: str, operation: Callable[[], Any]) -> Any:
        self.calls[name] += 1
        await asyncio.sleep(0)  # others have their turn
        await self.open.wait()
        self.count_down()
        self.before.get(name, lambda: None)()
        if self.is_down or name in self.refuses:
            raise self.error
        result = operation()
        if self.loses_answers:
            raise self.error
        return result

    def count_down(self) -> None:
        if self.dies_before_call is not None:
            if self.dies_before_call == 0:
                raise Killed
            self.dies_before_call -= 1

    def stall(self) -> None:
        self.open.clear()


class LinkedQueue(MemoryQueue):
    link: Link
    on_restored: Callable[[NewTask], object]

    def _restore(self, new: NewTask) -> bool:
        was_missing = super()._restore(new)
        if was_missing:
            self.on_restored(new)
        return was_missing

    async def _through(self, name: str, operation: Callable[[], Any]) -> Any:
        return await self.link.through(name, operation)


class LinkedLedger(MemoryLedger):
    link: Link

    async def _through(self, name: str, operation: Callable[[], Any]) -> Any:
        return await self.link.through(name, operation)


class LinkedMirror(MemoryMirror):
    link: Link
    on_forgotten: Callable[[TaskId], object]

    def _let_go(self, looks: Sequence[Look]) -> None:
        super()._let_go(looks)
        for look in looks:
            self.on_forgotten(look.tag.copy.task_id)

    async def _through(self, name: str, operation: Callable[[], Any]) -> Any:
        return await self.link.through(name, operation)

    async def _somebody_keeps(self, seconds: float) -> bool:
        return False  # a broker that has nothing is not waited for here


@dataclass
class Process:
    clock: ManualClock
    queue: LinkedQueue
    ledger: LinkedLedger
    mirror: LinkedMirror | None
    bus: MemoryBus
    slots: Slots
    journals: Journals
    copies: Copies
    relay: Relay
    work: OpenWork
    notes: Notes
    keeper: Keeper

    @property
    def links(self) -> list[Link]:
        return [store.link for store in (self.queue, self.ledger, self.mirror) if store is not None]

    async def keep(self, *tasks: NewTask) -> None:
        for task in tasks:
            await self.copies.keep(task)

    async def asked(self) -> None:
        """Every store has answered whatever it was asked."""
        while waiting := [task for asked in self.copies._asked.values() for task in asked]:
            await asyncio.wait(waiting)

    async def round(self) -> None:
        """Everything that the relay does, once. What cannot be done now is done later."""
        relay = self.relay
        for duty in (relay.note, relay.catch_up, relay.complete_queue, relay.complete_mirror, relay.look):
            if duty != relay.complete_mirror or self.mirror is not None:
                await attempt(duty)

    async def stop(self) -> None:
        await self.copies.stop()
        await self.journals.stop()
        if self.mirror is not None:
            self.mirror.die()

    async def die(self) -> None:
        """Killed: what it held in memory is gone, its lock and its connections too."""
        self.bus.die()
        self.notes._gathered.clear()
        await self.stop()


async def attempt(duty: Callable[[], Awaitable[object]]) -> bool:
    try:
        await duty()
    except Unavailable:
        return False
    return True


class Installation:
    def __init__(self, directory: Path, *, has_mirror: bool = True) -> None:
        self.directory = directory
        self.has_mirror = has_mirror
        self.clock = ManualClock()
        self.queue, self.ledger = MemoryQueueState(), MemoryLedgerState()
        self.mirror, self.bus = MemoryMirrorState(), MemoryBusState()
        self.processes: list[Process] = []
        self.runs: Counter[str] = Counter()
        """How often each was executed."""
        self.finished_ones_restored: list[Run] = []
        self.open_ones_forgotten: list[TaskId] = []
        """By the mirror, of which it had no other copy."""

    def now_ms(self) -> int:
        return epoch_ms(START) + round((self.clock.monotonic() - 1000) * 1000)

    def slots(self) -> Slots:
        return Slots(self.directory, clock=self.clock)

    async def process(self, *, copies_min: int | None = None, begins: bool = True, adopts: bool = False) -> Process:
        """One more, which has taken its slot. Its duties are done when they are called."""
        queue, ledger = LinkedQueue(self.queue, now_ms=self.now_ms), LinkedLedger(self.ledger, now_ms=self.now_ms)
        queue.link, ledger.link = Link(RedisUnavailable("Redis is away")), Link(StoreUnavailable("the ledger is away"))
        queue.on_restored = self._note_restored
        mirror = LinkedMirror(self.mirror, self.clock) if self.has_mirror else None
        if mirror is not None:
            mirror.link, mirror.on_forgotten = Link(RabbitUnavailable("RabbitMQ is away")), self._note_forgotten
        bus, slots, work = MemoryBus(self.bus), self.slots(), OpenWork(ledger, queue)
        await bus.start()
        journals = Journals(slots, self.clock, adopts=adopts)
        notes = Notes(journals)
        policy = CopiesPolicy(copies_min=copies_min or 1 + self.has_mirror, journal_required=not self.has_mirror)
        process = Process(
            clock=self.clock,
            queue=queue,
            ledger=ledger,
            mirror=mirror,
            bus=bus,
            slots=slots,
            journals=journals,
            copies=Copies(queue=queue, journals=journals, mirror=mirror, notes=notes, policy=policy, clock=self.clock),
            relay=Relay(journals=journals, notes=notes, work=work, mirror=mirror, bus=bus, clock=self.clock),
            work=work,
            notes=notes,
            keeper=Keeper(slots=slots, work=work, mirror=mirror, bus=bus, clock=self.clock),
        )
        journals._own = await slots.take()  # its loop would do more in the background
        self.processes.append(process)
        if begins and self.queue.life is None:
            await queue.begin_life(await queue.begin_refill())
        await attempt(process.relay.note)
        return process

    async def close(self) -> None:
        for process in self.processes:
            for link in process.links:
                link.open.set()
            await process.stop()

    def _note_restored(self, task: NewTask) -> None:
        run = self.ledger.runs.get(run_id_of(task.head.task_id, task.generation))
        if run is not None and run.run.status.is_finished and run.run.accepted_at_ms == task.head.accepted_at_ms:
            self.finished_ones_restored.append(run.run)

    def _note_forgotten(self, task_id: TaskId) -> None:
        runs = [stored.run for stored in self.ledger.runs.values() if stored.run.task_id == task_id]
        if not any(run.status.is_finished for run in runs) and task_id not in self.in_mirror():
            self.open_ones_forgotten.append(task_id)

    # --- what workers and people do ---

    def message(self, number: int, *, chat: str = "1", channel: str = "telegram", raw: bytes | None = None) -> NewTask:
        """Accepted now."""
        task = delivery(number, chat=chat, channel=channel, raw=raw, receipt_seconds=72 * HOUR_SECONDS)
        return msgspec.structs.replace(task, head=msgspec.structs.replace(task.head, accepted_at_ms=self.now_ms()))

    def worker(self) -> MemoryQueue:
        return MemoryQueue(self.queue, now_ms=self.now_ms)

    async def finish(self, task: Task, *, settles: Callable[[], Awaitable[object]] | None = None) -> None:
        """What a worker does with a claimed task: the ledger first."""
        ledger = MemoryLedger(self.ledger, now_ms=self.now_ms)
        if await ledger.run(task.run_id) is None:
            self.runs[task.run_id] += 1
        await ledger.save_result(task, RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
        await ledger.finish(task, Status.COMPLETED, Outcome.SILENT)
        if settles is not None:
            await settles()

    async def work(self, *, count: int = 1_000_000) -> list[int]:
        """The numbers of the messages that were run, in that order, until nothing is handed out."""
        worker, done = self.worker(), []
        while len(done) < count:
            claims = (await worker.claim("worker", {"telegram": 1, "http": 1}, takes_suspects=True)).claims
            if not claims:
                break
            for claim in claims:
                one = claim
                while one is not None:
                    task, following = one.task, None
                    if await MemoryLedger(self.ledger, now_ms=self.now_ms).run(task.run_id) is None:
                        done.append(task.head.order.seq)
                    await self.finish(task)
                    following = await worker.settle(one, task, Finished())
                    if len(done) >= count:
                        await worker.hand_back("worker")
                        return done
                    one = following
        return done

    # --- what is where ---

    def in_mirror(self) -> Counter[TaskId]:
        return Counter(copy.task_id for copy in self.mirror.copies)

    def in_queue(self) -> set[TaskId]:
        return set(self.queue.tasks)


async def in_journal(journal: Journal) -> set[TaskId]:
    return {entry.task.head.task_id for entry in await journal.open_tasks(limit=100_000)}


def ids(tasks: Iterable[NewTask]) -> set[TaskId]:
    return {task.head.task_id for task in tasks}


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await asyncio.sleep(0)


def tasks_running() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()}

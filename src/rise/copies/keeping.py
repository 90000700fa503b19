"""Keeping a message in several stores: it is promised when enough of them hold it, one of them synced.

The stores are asked at the same time, and each shares its fsync, pipeline or round of confirms among all who wait. What
is still missing when the promise is made comes by itself, from here or from the relay.

Refuses: another body under a key that its caller chose, before it has reached any store but the one that knows the
first; and, when a store does not answer, to gather for it without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from rise.clock import Clock, epoch_ms
from rise.copies.journal import USED_AGAIN, JournalKept, KeptRun, RunName, run_of
from rise.copies.journals import Journals
from rise.copies.notes import MIRRORS_LIFE, Debt, Notes
from rise.copies.port import JOURNAL, RABBITMQ, REDIS, Mirror
from rise.copies.record import encode_task
from rise.envelope import Head, Task, TaskId, TaskType
from rise.errors import CopiesInsufficient, QueueOwed, StateConflict, Unavailable
from rise.queue.port import Enqueued, NewTask, RefillableQueue
from rise.service import cancel_all, spawn
from rise.telemetry import copies_failed_total, log, rabbit_mirror_failed

QUEUES_WORD_SECONDS: Final = 0.1
"""How long is waited, also when enough others have it, for the queue to say whether the message is new."""
PUBLISH_TRIES: Final = 3
ASKED_MAX: Final = 2_000
"""So many messages wait for one store; what comes then is for the others alone, until it answers again."""

Way: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]
"""To one store."""


_KEYS_CHOSEN: Final = frozenset({TaskType.MESSAGE_SEND, TaskType.FOLLOW_UP})


@dataclass(frozen=True, slots=True)
class CopiesPolicy:
    copies_min: int
    """So many stores must hold a message before it is promised (W)."""
    journal_required: bool
    """Without a mirror the journal is what survives the loss of Redis."""
    publish_seconds: float = 3.0
    same_body_required: frozenset[str] = frozenset({"http"})
    """Channels whose callers choose their keys."""

    def requires_same_body(self, head: Head) -> bool:
        """Whether its key was chosen by who sent it: another body under it is a mistake of theirs."""
        return head.channel in self.same_body_required or head.task_type in _KEYS_CHOSEN

    def is_enough(self, held: Mapping[str, Any]) -> bool:
        is_synced = JOURNAL in held or (RABBITMQ in held and not self.journal_required)
        return is_synced and len(held) >= self.copies_min


class Copies:
    """Hands each message to all stores."""

    name = "copies"

    def __init__(
        self,
        *,
        queue: RefillableQueue,
        journals: Journals,
        mirror: Mirror | None,
        notes: Notes,
        policy: CopiesPolicy,
        clock: Clock,
    ) -> None:
        self._queue = queue
        self._journals = journals
        self._mirror = mirror
        self._notes = notes
        self._policy = policy
        self._clock = clock
        self._mirror_is_down = False
        self._asked: dict[str, set[asyncio.Task[Any]]] = {JOURNAL: set(), REDIS: set(), RABBITMQ: set()}

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        """What is still on its way to a store is made up for by the relay."""
        for asked in self._asked.values():
            await cancel_all(asked)

    async def keep(self, task: NewTask) -> Enqueued:
        """Returns when enough stores hold it. Raises `CopiesInsufficient` when enough cannot be had.

        Whoever hangs up meanwhile has been promised nothing; the stores that were asked may hold it all the same.
        """
        ways = self._ways(task)
        keeping = _Keeping(self._policy, tuple(ways), task, self._notes.debt)
        try:
            if self._policy.requires_same_body(task.head) and await self._is_other_body(keeping, task, ways):
                return Enqueued(task.head.task_id, new=False, same_body=False)
        except asyncio.CancelledError:
            if JOURNAL in ways:
                keeping.leave_out_journal()
            raise
        for store in list(ways):
            self._ask(keeping, store, ways)
        await keeping.decided
        return keeping.enqueued

    def _ways(self, task: NewTask) -> dict[str, Way]:
        record, run, mirror = encode_task(task), run_of(task).name, self._mirror
        ways: dict[str, Way] = {
            JOURNAL: lambda: self._keep_in_journal(task, record),
            REDIS: lambda: self._keep_in_queue(task, run),
        }
        if mirror is not None:
            ways[RABBITMQ] = lambda: self._keep_in_mirror(mirror, run, record)
        return ways

    async def _is_other_body(self, keeping: _Keeping, task: NewTask, ways: dict[str, Way]) -> bool:
        """Asked one after the other, so that the second body is written nowhere.

        Not found out is what only another host's journal knows, while the queue is away.
        """
        if await self._journal_knows_other_body(task.head):
            return True
        self._ask(keeping, REDIS, ways)
        await keeping.queues_word
        if not keeping.has_word:
            self._ask(keeping, JOURNAL, ways)
            await keeping.any_word
        return keeping.is_other_body

    async def _journal_knows_other_body(self, head: Head) -> bool:
        # Also when the queue is there: it may have been emptied, and be about to get the first one back.
        if len(self._asked[JOURNAL]) >= ASKED_MAX:
            return False
        try:
            async with asyncio.timeout(QUEUES_WORD_SECONDS):
                first = await self._journals.own.body_sha256(head.delivery_key)
        except (Unavailable, TimeoutError):
            return False
        return first is not None and first != head.raw_sha256

    async def restart(self, task: Task, *, generation: int) -> bool:
        """`Queue.restart`, with its copies. Raises `CopiesInsufficient`: it runs all the same if nothing happens; and
        `StateConflict`, having done nothing, where its place is another message's that the queue has not got yet."""
        await self._refuse_in_place_of_another(run_of(NewTask(task.head, task.raw)))
        if not await self._queue.restart(task, generation=generation):
            return False
        await self.keep(NewTask(task.head, task.raw, generation=generation))
        return True

    async def _refuse_in_place_of_another(self, kept: KeptRun) -> None:
        """As far as this host knows. Before its key was forgotten no other came under it: that costs no look."""
        if epoch_ms(self._clock.now()) < kept.receipt_ends_at_ms:
            return
        known = await self._journals.slots.ask_each(lambda journal: journal.kept(kept.task_id))
        if any(one.is_another_than(kept) for one in known if one is not None):
            raise StateConflict(USED_AGAIN)

    def _ask(self, keeping: _Keeping, store: str, ways: dict[str, Way]) -> None:
        """Once: those that are left are asked together."""
        way, asked = ways.pop(store), self._asked[store]
        if len(asked) >= ASKED_MAX:
            keeping.fail(store, Unavailable(f"{len(asked)} messages wait for it already"))
        else:
            spawn(way(), name=f"keep in {store}", into=asked).add_done_callback(partial(keeping.hear, store))

    async def _keep_in_journal(self, task: NewTask, record: bytes) -> JournalKept:
        return await self._journals.own.keep(task, record)

    async def _keep_in_queue(self, task: NewTask, run: RunName) -> Enqueued:
        if self._notes.debt.includes(task.head.lane):
            self._notes.debt.send_behind(task.head.lane)
            raise QueueOwed("what came before is brought to the queue first")
        life = self._notes.queues_life  # before it is asked: it may be emptied while it answers
        if task.generation:
            await self._queue.restore([task])
            enqueued = Enqueued(run.task_id, new=True)
        else:
            enqueued = await self._queue.enqueue(task)
        self._notes.add("redis", run, life)
        return enqueued

    async def _keep_in_mirror(self, mirror: Mirror, run: RunName, record: bytes) -> None:
        """Up to three tries; while it is known to be down one, and the journal stands in."""
        for tries_left in reversed(range(1 if self._mirror_is_down else PUBLISH_TRIES)):
            try:
                async with asyncio.timeout(self._policy.publish_seconds):
                    await mirror.keep(run.task_id, record)
            except (Unavailable, TimeoutError) as error:
                self._note_failure(run.task_id, error, tries_left)
                if not tries_left:
                    raise
            else:
                self._mirror_is_down = False
                self._notes.add("rabbitmq", run, MIRRORS_LIFE)
                return

    def _note_failure(self, task_id: TaskId, error: Exception, tries_left: int) -> None:
        if not self._mirror_is_down:
            consequence = "tried again" if tries_left else "the journal stands in; the copy is made when it is back"
            log.warning("rabbit.publisher.timeout", task_id=task_id, error=error, consequence=consequence)
        if not tries_left:
            self._mirror_is_down = True
            rabbit_mirror_failed.inc()


class _Keeping:
    """What has been heard of one message so far, and who may go on by that: whoever hands it to further stores
    (`queues_word`, then `any_word`), and whoever promised to wait (`decided`)."""

    def __init__(self, policy: CopiesPolicy, stores: tuple[str, ...], task: NewTask, debt: Debt) -> None:
        self._policy = policy
        self._debt = debt
        self._stores = stores
        self._task = task
        self._held: dict[str, Any] = {}
        self._failed: dict[str, BaseException] = {}
        loop = asyncio.get_running_loop()
        self.decided: asyncio.Future[None] = loop.create_future()
        """Enough hold it, and the queue has had its word: else who repeats it would hear that it is new. Or it is
        `CopiesInsufficient`."""
        self.queues_word: asyncio.Future[None] = loop.create_future()
        """The queue has said something, or has had its time to."""
        self.any_word: asyncio.Future[None] = loop.create_future()
        """Queue or journal knows the message, or neither can be asked."""
        self._patience = loop.call_later(QUEUES_WORD_SECONDS, self._go_on_without_queue)

    def hear(self, store: str, asked: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if asked.cancelled() else asked.exception()
        if error is not None:
            self.fail(store, error)
        else:
            self._held[store] = asked.result()
            self._decide(store)

    def fail(self, store: str, error: BaseException) -> None:
        self._failed[store] = error
        copies_failed_total.labels(store).inc()
        if not isinstance(error, Unavailable | TimeoutError | asyncio.CancelledError):
            # A bug of ours. The message needs this store no more than one that is down.
            log.error("copy.failed", copy=store, error=error, exc_info=error, consequence="the other copies count")
        elif store == REDIS:
            self._say_that_queue_lacks_it(error)
        self._decide(store)

    def _say_that_queue_lacks_it(self, error: BaseException) -> None:
        head = self._task.head
        log.warning(
            "telegram.queue.enqueue_failed" if head.channel == "telegram" else "queue.enqueue_failed",
            task_id=head.task_id,
            error=error,
            consequence="if the other copies suffice it is accepted, and handed to the queue when that is back",
        )

    def _go_on_without_queue(self) -> None:
        _resolve(self.queues_word)
        self._decide()

    def _decide(self, heard: str | None = None) -> None:
        if REDIS in self._held or REDIS in self._failed:
            self._patience.cancel()
            _resolve(self.queues_word)
        if self.has_word or self._failed.keys() >= {REDIS, JOURNAL}:
            _resolve(self.any_word)
        if heard in (REDIS, JOURNAL):
            self._note_debt()
        if self._policy.is_enough(self._held):
            if self.queues_word.done():
                _resolve(self.decided)
        elif len(self._held) + len(self._failed) == len(self._stores) and not self.decided.done():
            self.decided.set_exception(self._insufficient())
            self.decided.exception()  # whoever hung up does not read it

    def leave_out_journal(self) -> None:
        """It is not asked any more: else a lane to which the queue sends it behind would wait for it for ever."""
        self._failed[JOURNAL] = asyncio.CancelledError()
        self._note_debt()

    def _note_debt(self) -> None:
        """Once, when the second of the two has been heard."""
        lane, refusal = self._task.head.lane, self._failed.get(REDIS)
        if isinstance(refusal, QueueOwed):
            if JOURNAL in self._held:
                self._debt.kept(lane)
            elif JOURNAL in self._failed:
                self._debt.refused(lane)
        elif refusal is not None and JOURNAL in self._held:
            self._debt.of_all_lanes = True

    @property
    def has_word(self) -> bool:
        return REDIS in self._held or JOURNAL in self._held

    @property
    def is_other_body(self) -> bool:
        return not all(word.same_body for word in self._words())

    def _words(self) -> list[Enqueued | JournalKept]:
        return [word for word in self._held.values() if isinstance(word, Enqueued | JournalKept)]

    @property
    def enqueued(self) -> Enqueued:
        """The queue's word; the journal's where the queue has none."""
        word = self._held.get(REDIS) or self._held.get(JOURNAL)
        if isinstance(word, Enqueued):
            return msgspec.structs.replace(word, same_body=not self.is_other_body)
        return Enqueued(self._task.head.task_id, new=word is None or word.new, same_body=not self.is_other_body)

    def _insufficient(self) -> CopiesInsufficient:
        reasons = "; ".join(
            f"{store}: {error.public_message if isinstance(error, Unavailable) else 'no answer in time'}"
            for store, error in sorted(self._failed.items())
        )
        waits = [error.retry_after_seconds or 0 for error in self._failed.values() if isinstance(error, Unavailable)]
        return CopiesInsufficient(
            f"{len(self._held)} of {self._policy.copies_min} copies hold it ({reasons})",
            retry_after_seconds=max(waits, default=0) or None,
        )


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

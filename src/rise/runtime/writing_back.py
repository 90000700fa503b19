"""When the ledger answers again: what waits for it is written back, in order, each once.

Promises: a write leaves what waits when it is in the ledger, or when nobody wants it any more: because the message was
dropped, or is run again as another. Whoever dies in between leaves it to the next, and writing it twice is writing it
once. The results of a chat are written in the order in which they waited; chats do not wait for each other, nor for one
of which something cannot be written. One whose task the queue has lost waits until that is brought back from another
store, and the others of its chat go before it: here as in the queue nothing waits for a gap.

Refuses: to end a message whose result cannot be written. It is suspended, and says why.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.envelope import Reason, RunId, Task
from rise.errors import EnvelopeMalformed, Unavailable
from rise.ledger.late import (
    LateArming,
    LateAttempt,
    LateEnd,
    LateNotice,
    LateResult,
    LateRun,
    LateStep,
    LateWrite,
    LateWrites,
    Waiting,
    decode_late,
)
from rise.ledger.port import Ledger, Run
from rise.merging import Merging
from rise.queue.port import Queue, Suspend
from rise.service import Loop
from rise.telemetry import in_words, ledger_writes_waiting, log, redact

LOOK_SECONDS: Final = 1.0
GIVEN_UP: Final = "what it belongs to goes on without it; a message whose result it is, is suspended"
LOST_SECONDS_MAX: Final = 1800.0
"""For so long a result waits for its task, from when a process has missed that: a journal looks every ten minutes at
the latest for what the queue lacks."""
PAGE: Final = 100
"""Written at once: no more than the ledger has connections."""


class WriteBack:
    """One per `rise serve`; any number may do it at once."""

    name = "write back"

    def __init__(self, *, late: LateWrites, ledger: Ledger, queue: Queue, bus: Bus, clock: Clock) -> None:
        """`ledger`: itself, that writes now or says that it cannot."""
        self._late = late
        self._ledger = ledger
        self._queue = queue
        self._merging = Merging(queue, ledger)
        self._bus = bus
        self._clock = clock
        self._is_said = False
        self._missed_at: dict[RunId, float] = {}
        """Since when there is no task for a result, by a clock that nobody sets."""
        self._unreadable: set[str] = set()
        """What a newer version wrote, as far as that is said."""
        self._loop = Loop(self.name, self._look, sleep=clock.sleep, on_error=_report)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def _look(self) -> None:
        waiting = await self._late.depth()
        ledger_writes_waiting.set(waiting)
        if waiting and not self._is_said:
            kept = "messages are run meanwhile, and answered when the ledger is back"
            log.warning("ledger.writes_wait", writes=waiting, consequence=kept)
        self._is_said = bool(waiting)
        if waiting:
            await self.write_back()
        else:
            self._missed_at.clear()
            self._unreadable.clear()
        await self._clock.sleep(LOOK_SECONDS)

    async def write_back(self) -> int:
        """Everything that waits now. Returns how much that was.

        Raises `Unavailable` where a store is away again, or did not take one of them: that when all others are written
        that need not come behind it.
        """
        left = _Left()
        written, after = 0, 0
        try:
            while page := await self._late.page(limit=PAGE, after=after):
                written += await self._write_page(page, left)
                after = page[-1].number
                if left.errors:
                    await self._ledger.identity()  # one that is away is not asked page by page
        finally:
            if written:
                log.info("ledger.written_back", writes=written)
                self._bus.publish(Topic.OUTBOX_READY)
        if left.errors:
            raise left.errors[0]
        return written

    async def _write_page(self, page: Sequence[Waiting], left: _Left) -> int:
        """In the order of coming; but behind the results what may not be true any more, and what is only of a run."""
        written, results, others = 0, list[_Late](), list[_Late]()
        for late in filter(None, map(self._read, page)):
            if isinstance(late.write, LateRun):
                results.append(late)
            elif isinstance(late.write, LateNotice) and late.write.unless_run is None:
                written += await self._write_results(results, left)
                results = []
                written += await self._write_notice(late, late.write, left)
            else:
                others.append(late)
        written += await self._write_results(results, left)
        return written + await self._write_others(others, left)

    def _read(self, waiting: Waiting) -> _Late | None:
        try:
            return _Late(waiting.key, decode_late(waiting.write))
        except EnvelopeMalformed as error:
            if waiting.key not in self._unreadable:
                log.warning(
                    "ledger.write_unreadable",
                    key=waiting.key,
                    error=error,
                    consequence="it waits for a newer version",
                )
            self._unreadable.add(waiting.key)
            return None

    async def _write_results(self, results: Sequence[_Late], left: _Left) -> int:
        """Each lane's one after the other."""
        lanes: dict[str, list[_Late]] = defaultdict(list)
        for late in results:
            assert isinstance(late.write, LateRun)
            lanes[late.write.lane].append(late)
        return sum(await _all(self._write_lane(lane, waiting, left) for lane, waiting in lanes.items()))

    async def _write_notice(self, late: _Late, notice: LateNotice, left: _Left) -> int:
        """In the lane of its message, as if it were a result."""
        task = await self._queue.get(notice.reply.task_id)
        return await self._write_lane(task.head.lane if task is not None else late.key, [late], left)

    async def _write_lane(self, lane: str, waiting: Sequence[_Late], left: _Left) -> int:
        for number, late in enumerate(waiting):
            if lane in left.lanes or not await self._is_written(late, left):
                left.lanes.add(lane)
                left.runs |= {one.write.run_id for one in waiting[number:] if isinstance(one.write, LateRun)}
                return number
        return len(waiting)

    async def _write_others(self, others: Sequence[_Late], left: _Left) -> int:
        ready = [late for late in others if _comes_behind(late.write) not in left.runs]
        return sum(await _all(self._is_written(late, left) for late in ready))

    async def _is_written(self, late: _Late, left: _Left) -> bool:
        try:
            await self._write(late)
        except Unavailable as error:
            left.errors.append(error)
            return False
        return True

    async def _write(self, late: _Late) -> None:
        """One that the ledger refuses holds nothing else up."""
        try:
            if isinstance(late.write, LateRun):
                task = await self._queue.get(late.write.task_id)
                is_lost = task is None or not await self._are_ended(late.write)
                if is_lost and await self._may_come_back(late.write):
                    return
                self._missed_at.pop(late.write.run_id, None)
                await self._write_end(task, late.write)
            else:
                await self._write_other(late.write)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - border: it is said, and its message is suspended
            await self._give_up(late.write, error)
        await self._late.remove([late.key])

    async def _are_ended(self, write: LateRun) -> bool:
        """Whom it names: else its message would be over, and theirs run once more."""
        if not isinstance(write, LateResult):
            return True
        return await self._merging.end_named(write.result.merged_runs, write.task_id)

    async def _may_come_back(self, write: LateRun) -> bool:
        """Whether the queue has lost its task, or one that it names, and will get it again from another store, to be
        written with its bytes then. What was dropped is known to the ledger."""
        now = self._clock.monotonic()
        is_young = now - self._missed_at.setdefault(write.run_id, now) <= LOST_SECONDS_MAX
        return is_young and await self._ledger.run(write.run_id) is None

    async def _write_end(self, task: Task | None, write: LateResult | LateEnd) -> None:
        if task is None or task.progress.generation != write.generation:
            return  # dropped, or run again as another: nobody waits for this one
        run = await self._write_run(task, write)
        # That of a former message, whose key was used again, is nobody's: the supervisor finds that it has none.
        if run.status.is_finished and not run.is_of_former(task.head):
            await self._queue.finish(task.task_id, write.generation)

    async def _write_run(self, task: Task, write: LateResult | LateEnd) -> Run:
        if isinstance(write, LateEnd):
            return await self._ledger.finish(
                task, write.status, write.outcome, by=write.by, why=write.why, callback=write.callback
            )
        return await self._ledger.save_result(task, write.result, write.replies, write.history, deliver=write.deliver)

    async def _write_other(self, write: LateWrite) -> None:
        match write:
            case LateStep(run_id=run_id, step=step, value=value):
                if not await self._is_over(run_id):
                    await self._ledger.save_step(run_id, step, value)
            case LateAttempt(run_id=run_id, attempt=attempt):
                await self._ledger.add_attempt(run_id, attempt)
            case LateNotice(reply=reply, deliver=deliver, unless_run=unless_run):
                await self._ledger.add_notice(reply, deliver=deliver, unless_run=unless_run)
            case LateArming(run_id=run_id):
                await self._ledger.note_armed(run_id)

    async def _is_over(self, run_id: RunId) -> bool:
        """What has ended has no steps, and a person may have had it forgotten."""
        run = await self._ledger.run(run_id)
        return run is not None and run.status.is_finished

    async def _give_up(self, write: LateWrite, error: Exception) -> None:
        what = f"it could not be written: {redact(in_words(error))[:2000]}"
        log.error("ledger.write_refused", kind=type(write).__name__, error=error, exc_info=error, consequence=GIVEN_UP)
        if isinstance(write, LateRun):
            # Or, if its worker has not settled it yet, the supervisor finds that it has no result, and it is run again.
            await self._queue.hold(write.task_id, write.generation, Suspend(Reason.RETRIES_EXHAUSTED, what))


@dataclass(slots=True)
class _Left:
    """What could not be written in one go through all that waits."""

    errors: list[Unavailable] = field(default_factory=list)
    lanes: set[str] = field(default_factory=set)
    """Whatever comes behind it in its lane waits with it."""
    runs: set[RunId] = field(default_factory=set)
    """Whose results are not written."""


class _Late(NamedTuple):
    key: str
    write: LateWrite


def _comes_behind(write: LateWrite) -> RunId | None:
    """The run without whose result it would be noted for nothing, or said when it is not true any more."""
    match write:
        case LateArming(run_id=run_id) | LateNotice(unless_run=run_id):
            return run_id
    return None


async def _all(writes: Iterable[Coroutine[Any, Any, int]]) -> list[int]:
    """Each to its end, before the first error is raised. How many of each were written."""
    endings = await asyncio.gather(*writes, return_exceptions=True)
    for error in (ending for ending in endings if isinstance(ending, BaseException)):
        raise error
    return [ending for ending in endings if not isinstance(ending, BaseException)]


def _report(name: str, error: BaseException) -> None:
    if isinstance(error, Unavailable):
        log.debug("ledger.not_written_back", error=error)  # that it is away is said by its capability
    else:
        log.error("ledger.not_written_back", error=error, exc_info=error, consequence="tried again after a pause")

"""When the ledger answers again: what waits for it is written back, in order, each once.

Promises: a write leaves what waits when it is in the ledger, or when nobody wants it any more: because the message was
dropped, or is run again as another. Whoever dies in between leaves it to the next, and writing it twice is writing it
once. The results of a chat are written in the order in which they waited; chats do not wait for each other.

Refuses: to end a message whose result cannot be written. It is suspended, and says why.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.envelope import Reason, Task
from rise.errors import EnvelopeMalformed, RiseError, Unavailable
from rise.ledger.late import (
    LateArming,
    LateAttempt,
    LateEnd,
    LateNotice,
    LateResult,
    LateStep,
    LateWrite,
    LateWrites,
    Waiting,
    decode_late,
)
from rise.ledger.port import Ledger, Run
from rise.queue.port import Queue, Suspend
from rise.service import Loop
from rise.telemetry import in_words, ledger_writes_waiting, log, redact

LOOK_SECONDS: Final = 1.0
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
        self._bus = bus
        self._clock = clock
        self._is_said = False
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
        await self._clock.sleep(LOOK_SECONDS)

    async def write_back(self) -> int:
        """Everything that waits now. Returns how much that was. Raises `Unavailable` where the ledger is away again."""
        written, after = 0, 0
        while page := await self._late.page(limit=PAGE, after=after):
            written += await self._write_page(page)
            after = page[-1].number
        if written:
            log.info("ledger.written_back", writes=written)
            self._bus.publish(Topic.OUTBOX_READY)
        return written

    async def _write_page(self, page: Sequence[Waiting]) -> int:
        """Results first: what else was said of a run belongs behind."""
        results: dict[str, list[tuple[str, LateResult | LateEnd]]] = defaultdict(list)
        others: list[tuple[str, LateWrite]] = []
        for one in page:
            write = _read(one)
            if isinstance(write, LateResult | LateEnd):
                results[write.lane].append((one.key, write))
            elif write is not None:
                others.append((one.key, write))
        await _all(self._write_lane(writes) for writes in results.values())
        await _all(self._write_other(key, write) for key, write in others)
        return len(others) + sum(map(len, results.values()))

    async def _write_lane(self, writes: Sequence[tuple[str, LateResult | LateEnd]]) -> None:
        for key, write in writes:
            await self._write_end(write)
            await self._late.remove([key])

    async def _write_end(self, write: LateResult | LateEnd) -> None:
        task = await self._queue.get(write.task_id)
        if task is None or task.progress.generation != write.generation:
            return  # dropped, or run again as another: nobody waits for this one
        try:
            run = await self._write_run(task, write)
        except Unavailable:
            raise
        except RiseError as error:
            why = f"its result could not be written: {redact(in_words(error))[:2000]}"
            log.error("task.settle_failed", task_id=task.task_id, error=error, consequence="the task is suspended")
            await self._queue.hold(task.task_id, write.generation, Suspend(Reason.RETRIES_EXHAUSTED, why))
            return
        if run.is_of_former(task.head):
            await self._run_anew(task, run)
        elif run.status.is_finished:
            await self._queue.finish(task.task_id, write.generation)

    async def _write_run(self, task: Task, write: LateResult | LateEnd) -> Run:
        if isinstance(write, LateEnd):
            return await self._ledger.finish(task, write.status, write.outcome, callback=write.callback)
        return await self._ledger.save_result(task, write.result, write.replies, write.history, deliver=write.deliver)

    async def _run_anew(self, task: Task, former: Run) -> None:
        """Its key was forgotten and used again: the ledger has a former message's result under it."""
        again = Suspend(Reason.RETRIES_EXHAUSTED, "its key is that of a former message: it is run as another")
        await self._queue.hold(task.task_id, task.progress.generation, again)
        await self._queue.restart(task, generation=former.generation + 1)
        self._bus.publish(Topic.LANES_READY)

    async def _write_other(self, key: str, write: LateWrite) -> None:
        match write:
            case LateStep(run_id=run_id, step=step, value=value):
                await self._ledger.save_step(run_id, step, value)
            case LateAttempt(run_id=run_id, attempt=attempt):
                await self._ledger.add_attempt(run_id, attempt)
            case LateNotice(reply=reply, deliver=deliver, unless_run=unless_run):
                await self._ledger.add_notice(reply, deliver=deliver, unless_run=unless_run)
            case LateArming(run_id=run_id):
                await self._ledger.note_armed(run_id)
        await self._late.remove([key])


def _read(waiting: Waiting) -> LateWrite | None:
    try:
        return decode_late(waiting.write)
    except EnvelopeMalformed as error:
        log.error("ledger.write_unreadable", key=waiting.key, error=error, consequence="it waits for a newer version")
        return None


async def _all(writes: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Each to its end, before the first error is raised."""
    endings = await asyncio.gather(*writes, return_exceptions=True)
    for error in (ending for ending in endings if isinstance(ending, BaseException)):
        raise error


def _report(name: str, error: BaseException) -> None:
    log.debug("ledger.not_written_back", error=error)  # that it is away is said by its capability

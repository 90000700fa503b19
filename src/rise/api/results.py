"""Waiting for a task's result without asking for it all the time.

The bus says when a task was settled, and the ledger is looked at every second besides: a lost event costs a
second, never an answer. Who stops waiting, or hangs up, loses nothing: the result stays where it is.

Refuses: to wait for what waits for a person, and to let more wait than a process can bear; they are told "not yet".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.envelope import Status, TaskId
from rise.ledger.port import Ledger, Run
from rise.queue.port import OpenTask, Queue, Selection
from rise.service import Signal

LOOK_SECONDS: Final = 1.0
WAITING_MAX: Final = 5_000
"""Beyond this nobody is let wait; they read their results later."""


class TaskResultBroker:
    """Tells those who wait for a task that it has ended."""

    def __init__(self, queue: Queue, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._queue = queue
        self._ledger = ledger
        self._clock = clock
        self._waiting: dict[str, set[Signal]] = defaultdict(set)
        self._closing = False
        self._unsubscribe = bus.subscribe(Topic.TASK_SETTLED, self._settled)

    def close(self) -> None:
        """Nobody waits any longer: those who do are told that there is no result yet."""
        self._closing = True
        self._unsubscribe()
        for signals in self._waiting.values():
            for signal in signals:
                signal.set()

    async def wait(self, task_id: TaskId, seconds: float) -> Run | None:
        """How the task ended; None if it has not within the time, or has been suspended."""
        until = self._clock.monotonic() + seconds
        with self._listening(task_id) as settled:
            while True:
                # The queue first: what it forgets between the two looks is in the ledger, never the other way round.
                task = await self._open(task_id)
                run = await self._ledger.latest_run(task_id)
                if run is not None and run.status.is_finished and not (task and _is_superseded(run, task)):
                    return run
                left = until - self._clock.monotonic()
                if left <= 0 or self._closing or len(self._waiting) > WAITING_MAX:
                    return None
                if task is not None and task.status is Status.SUSPENDED:
                    return None
                await settled.wait(min(left, LOOK_SECONDS))

    @contextmanager
    def _listening(self, task_id: TaskId) -> Iterator[Signal]:
        signal = Signal()
        self._waiting[task_id].add(signal)
        try:
            yield signal
        finally:
            self._waiting[task_id].discard(signal)
            if not self._waiting[task_id]:
                del self._waiting[task_id]

    async def _open(self, task_id: TaskId) -> OpenTask | None:
        found = await self._queue.list_open(Selection(task_ids=(task_id,)), limit=1)
        return found[0] if found else None

    def _settled(self, event: Mapping[str, Any]) -> None:
        for signal in self._waiting.get(str(event.get("task_id")), ()):
            signal.set()


def _is_superseded(run: Run, task: OpenTask) -> bool:
    """By a message that used its key again, or because a person has it run again: the task has yet to end."""
    return run.is_of_former(task.head) or run.generation < task.generation

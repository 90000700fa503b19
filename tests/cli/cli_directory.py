"""A data directory for tests of the command line, and how a command ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rise.channels.telegram import read_update
from rise.envelope import Outcome, Status, TaskId
from rise.ledger.port import RunResult
from rise.queue.port import Finished, Selection, Suspend
from rise.runtime.assembly.house import House, build
from rise.settings import load_settings

T = TypeVar("T")

BOT = "7"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Rise = Callable[..., Ended]


class Directory:
    """A data directory that messages have come to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def do(self, work: Callable[[House], Coroutine[Any, Any, T]]) -> T:
        async def main() -> T:
            house = build(load_settings(data_dir=self.path, _env_file=None))
            await house.stores.open()
            try:
                return await work(house)
            finally:
                await house.stores.close()

        return asyncio.run(main())

    def accept(self, *numbers: int, text: str = "Hello") -> list[TaskId]:
        """One update each, from a chat of its own."""

        async def work(house: House) -> list[TaskId]:
            accepted = []
            for number in numbers:
                body = json.dumps(update(number, chat=number, text=text)).encode()
                read = read_update(body, account=BOT, now=house.clock.now(), webhook=False)
                accepted.append((await house.intake.accept(read)).task_id)
            return accepted

        return self.do(work)

    def finish(self, *task_ids: TaskId) -> None:
        self._work_on(task_ids, lambda house, claim: self._complete(house, claim))

    def merge(self, task_id: TaskId, leader: TaskId) -> None:
        """The first was answered with the second."""

        async def end(house: House, claim: Any) -> None:
            merged = RunResult(outcome=Outcome.MERGED, value={"mergedInto": leader})
            answered = RunResult(outcome=Outcome.SILENT, value={"merged": [task_id]})
            result = merged if claim.task.task_id == task_id else answered
            await house.ledger.save_result(claim.task, result, [], [], deliver=False)
            await house.queue.settle(claim, claim.task, Finished())

        self._work_on((task_id, leader), end)

    def suspend(self, suspend: Suspend, *task_ids: TaskId) -> None:
        self._work_on(task_ids, lambda house, claim: house.queue.settle(claim, claim.task, suspend))

    async def _complete(self, house: House, claim: Any) -> None:
        result = RunResult(outcome=Outcome.SILENT, workflow_id="wf_test")
        await house.ledger.save_result(claim.task, result, [], [], deliver=False)
        await house.queue.settle(claim, claim.task, Finished())

    def _work_on(self, task_ids: tuple[TaskId, ...], settle: Callable[[House, Any], Coroutine[Any, Any, Any]]) -> None:
        """Claim everything, settle these, hand the rest back for the next."""

        async def work(house: House) -> None:
            for claim in (await house.queue.claim("test", {"telegram": 10_000}, takes_suspects=True)).claims:
                if claim.task.task_id in task_ids:
                    await settle(house, claim)
            await self._write(house, "UPDATE tasks SET status = 'pending' WHERE status = 'processing'")
            await self._write(house, "UPDATE lanes SET holder = NULL, ready_at = 0")

        self.do(work)

    def write(self, sql: str, *values: object) -> None:
        self.do(lambda house: self._write(house, sql, *values))

    async def _write(self, house: House, sql: str, *values: object) -> None:
        await house.stores.database.write(lambda connection: connection.execute(sql, values).fetchall())

    def forget_keys(self) -> None:
        """Four days pass."""
        days = 4 * 86_400_000
        self.write("UPDATE store_clock SET base_ms = base_ms + ?1, seen_ms = seen_ms + ?1", days)
        self.do(lambda house: house.queue.sweep())

    def statuses(self) -> dict[TaskId, tuple[Status, int]]:
        """Of every open task, its state and generation."""

        async def work(house: House) -> dict[TaskId, tuple[Status, int]]:
            listed = await house.queue.list_open(Selection(), limit=10_000)
            return {task.head.task_id: (task.status, task.generation) for task in listed}

        return self.do(work)

    def operations(self) -> list[tuple[str, str, str]]:
        """The audit log, newest first: action, target, why."""

        async def work(house: House) -> list[tuple[str, str, str]]:
            entries = await house.ledger.operations(limit=1000)
            return [(entry.action, entry.target, entry.why) for entry in entries]

        return self.do(work)


def update(number: int, *, chat: int, text: str = "Hello") -> dict[str, Any]:
    return {
        "update_id": 1000 + number,
        "message": {
            "message_id": number,
            "date": 1_762_587_000 + number,
            "chat": {"id": chat, "type": "private"},
            "from": {"id": chat, "is_bot": False, "first_name": "Anna"},
            "text": text,
        },
    }

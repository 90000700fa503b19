"""What the tests of the journal and its slots share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from rise.clock import Clock, epoch_ms
from rise.connections.sqlite import Database
from rise.copies.journal import SCHEMA, Journal, JournalEntry, JournalKept, RunName
from rise.copies.record import encode_task
from rise.queue.port import NewTask
from rise.testing.clock import START
from rise.testing.conformance.queue import delivery

HOUR_SECONDS = 3600
LIVES = {"redis": "one", "rabbitmq": "one"}


def message(number: int, *, generation: int = 0, raw: bytes | None = None, receipt_hours: int = 72) -> NewTask:
    """Accepted when the tests' clock starts."""
    task = delivery(number, raw=raw, receipt_seconds=receipt_hours * HOUR_SECONDS)
    head = msgspec.structs.replace(task.head, accepted_at_ms=epoch_ms(START))
    return msgspec.structs.replace(task, head=head, generation=generation)


def run(number: int, generation: int = 0) -> RunName:
    return RunName(message(number).head.task_id, generation)


def database_at(path: Path, clock: Clock) -> Database:
    return Database(path, clock=clock, schema=SCHEMA)


async def keep(journal: Journal, number: int, **said) -> JournalKept:
    task = message(number, **said)
    return await journal.keep(task, encode_task(task))


async def keep_all(journal: Journal, numbers) -> None:
    await asyncio.gather(*(keep(journal, number) for number in numbers))


def runs_in(entries: list[JournalEntry]) -> list[RunName]:
    return [RunName(entry.task.head.task_id, entry.task.generation) for entry in entries]


async def open_in(journal: Journal) -> list[RunName]:
    found, after = [], 0
    while page := await journal.open_tasks(limit=7, after=after):
        found += runs_in(page)
        after = page[-1].number
    return found


async def due_in(journal: Journal, limit: int) -> list[RunName]:
    return [kept.name for kept in await journal.due(limit)]


async def lacking_in(journal: Journal, copy: str, life: str | None, **narrowed) -> list[RunName]:
    return runs_in(await journal.lacking(copy, life, limit=1000, **narrowed))

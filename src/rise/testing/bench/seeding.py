"""A data directory with open tasks, made once and copied for every round."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from rise.channels.http import CHANNEL as HTTP
from rise.channels.port import Incoming
from rise.clock import SystemClock
from rise.envelope import DeliveryKey, LaneKey
from rise.runtime.assembly.house import build
from rise.runtime.assembly.stores import Stores
from rise.runtime.assembly.workers import workflow_records
from rise.service import start_all, stop_all
from rise.settings import load_settings
from rise.testing.bench.processes import rise_settings
from rise.testing.bench.update import CHATS, TOKEN, Updates
from rise.workflows.definition import load_workflows

TOGETHER: Final = 1000


async def seed(directory: Path, count: int, channel: str, **servers: object) -> None:
    """`count` messages, accepted as every message is, spread over many chats. `servers`: of the full profile."""
    settings = load_settings(**rise_settings(directory, **servers))
    house = build(settings)
    await house.stores.open()
    services = house.stores.services()
    try:
        await begin_life(house.stores)
        await start_all(services, on_error=_report)
        # As `rise serve` would have: a `rise worker` that runs alone works what is defined, and defines nothing.
        records = workflow_records(load_workflows(settings.app))
        await house.editor.follow_code(records, house.channels.accounts())
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            incoming = _from_telegram(numbers) if channel == "telegram" else _from_http(numbers)
            await asyncio.gather(*(house.intake.accept(one) for one in incoming))
        await stop_all(services, on_error=_report)
    finally:
        await house.stores.close()


async def begin_life(stores: Stores) -> None:
    """An empty queue needs no filling, and nobody is there who would find that out."""
    if stores.full is not None:
        await stores.full.queue.begin_life(await stores.full.queue.begin_refill())


def _report(name: str, error: BaseException) -> None:
    raise RuntimeError(f"{name} failed to stop") from error


def copied(seeded: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(seeded, target)
    return target


def seed_rows(directory: Path, count: int) -> Path:
    """The same number of bodies in a plain table."""
    directory.mkdir(parents=True)
    updates = Updates()
    connection = sqlite3.connect(directory / "waiting.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE waiting (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    connection.execute("CREATE TABLE results (id INTEGER PRIMARY KEY, result BLOB NOT NULL)")
    connection.executemany(
        "INSERT INTO waiting VALUES (?,?)", ((number, updates.body(number)) for number in range(count))
    )
    connection.commit()
    connection.close()
    return directory


def is_drained(data: Path) -> bool:
    """Whether no task is open any more. Costs the database next to nothing."""
    return not _asked(data, "SELECT 1 FROM tasks LIMIT 1")


def what_is_open(data: Path) -> list[tuple[object, ...]]:
    """Status, reason, error, and how many."""
    return _asked(data, "SELECT status, reason, error, count(*) FROM tasks GROUP BY 1, 2, 3 LIMIT 10")


def _asked(data: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{data / 'rise.db'}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _from_telegram(numbers: range) -> list[Incoming]:
    from rise.channels.telegram import read_update

    updates, now, account = Updates(), SystemClock().now(), TOKEN.partition(":")[0]
    return [read_update(updates.body(number), account=account, now=now, webhook=True) for number in numbers]


def _from_http(numbers: range) -> list[Incoming]:
    return [_request(number) for number in numbers]


def _request(number: int) -> Incoming:
    chat = str(number % CHATS)
    text = "The quick brown fox jumps over the lazy dog. " * 25
    return Incoming(
        channel=HTTP,
        account="default",
        source="http-api",
        delivery_key=DeliveryKey(f"http:bench:{number}"),
        lane=LaneKey(f"http:default:{chat}"),
        raw=json.dumps({"userText": text, "metadata": {"chat_id": chat}, "idempotencyKey": str(number)}).encode(),
        raw_version="http.v1",
        chat_id=chat,
        user_text=text,
        metadata={"chat_id": chat},
    )

"""What the shell offers when somebody presses Tab: ids and names of what is there.

Promises: what is offered is letters, digits and a few signs, because shells evaluate what they are offered; nothing
that people wrote is among it. Nothing is printed beside it, whatever goes wrong.

Refuses: to ask a server, and to make or migrate anything: who types has not decided yet. Then nothing is offered.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rise.definitions.port import Kind
    from rise.envelope import Status
    from rise.runtime.assembly.stores import Stores

OFFERED_MAX: Final = 50
_HARMLESS: Final = re.compile(r"[A-Za-z0-9_.:-]+")

Offer = tuple[str, str]
"""A word, and what the shell may say beside it."""
Look = Callable[["Stores"], Awaitable[Iterable[Offer]]]


def task_ids(context: typer.Context, incomplete: str) -> list[Offer]:
    """What is open."""
    return _offered(context, lambda stores: _tasks(stores, incomplete, None))


def suspended_ids(context: typer.Context, incomplete: str) -> list[Offer]:
    from rise.envelope import Status

    return _offered(context, lambda stores: _tasks(stores, incomplete, Status.SUSPENDED))


def workflow_ids(context: typer.Context) -> list[Offer]:
    from rise.definitions.port import Kind

    return _offered(context, lambda stores: _names(stores, [Kind.WORKFLOW, Kind.PUBLISHED]))


def prompt_ids(context: typer.Context) -> list[Offer]:
    from rise.definitions.port import Kind

    return _offered(context, lambda stores: _names(stores, [Kind.PROMPT]))


def secret_names(context: typer.Context) -> list[Offer]:
    from rise.definitions.port import Kind

    return _offered(context, lambda stores: _names(stores, [Kind.SECRET]))


def channels() -> list[str]:
    from rise.settings import CHANNELS

    return list(CHANNELS)


# --- looking ------------------------------------------------------------------------------------------------


async def _tasks(stores: Stores, incomplete: str, status: Status | None) -> list[Offer]:
    from rise.queue.port import Selection

    if stores.full is not None:
        return []  # they are in Redis
    # Ids are listed in order: those that begin so come right after it.
    listed = await stores.queue.list_open(Selection(status=status), limit=OFFERED_MAX, after=incomplete)
    return [(task.head.task_id, f"{task.head.channel} {task.reason or task.status}") for task in listed]


async def _names(stores: Stores, kinds: Collection[Kind]) -> list[Offer]:
    if stores.mongo is not None:
        return []
    latest = await stores.definitions.latest(kinds)
    return [(name, "") for name in sorted({one.name for one in latest.definitions})]


def _offered(context: typer.Context, look: Look) -> list[Offer]:
    from rise.runtime.processes import run

    async def work() -> list[Offer]:
        async with _stores(context.params.get("data_dir")) as stores:
            return [] if stores is None else list(await look(stores))

    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            found = run(work())
    except Exception:  # noqa: BLE001 - border: what cannot be offered is typed; the command itself says what is wrong
        return []
    return [(word, said) for word, said in found if _HARMLESS.fullmatch(word)][:OFFERED_MAX]


@asynccontextmanager
async def _stores(data_dir: Path | None) -> AsyncIterator[Stores | None]:
    from rise.cli.opening import read_settings
    from rise.clock import SystemClock
    from rise.runtime.doctor import Doctor

    async with Doctor(read_settings(data_dir), SystemClock()).stores() as stores:
        yield stores

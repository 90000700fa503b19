"""Starting what is measured and stopping it again, whatever happens in between."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rise.runtime.directory import DataDirectory
from rise.settings import environment_of_another
from rise.testing.bench.load import Order, Seen
from rise.testing.bench.update import SECRET, TOKEN
from rise.testing.installation import Installation

READY_SECONDS = 60.0
MADE_SECONDS_MAX = 0.01
"""For each message that is made."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that said it was ready."""

    pid: int
    port: int
    process: asyncio.subprocess.Process


def rise_settings(directory: Path, **more: object) -> dict[str, object]:
    """As in the environment, in lower case: a bot on Telegram's webhook, with nothing that slows it on purpose."""
    return {
        "telegram_token": TOKEN,
        "telegram_secret": SECRET,
        "telegram_mode": "webhook",
        "public_url": "http://127.0.0.1:1",
        "telegram_api_base": "http://127.0.0.1:1",
        "telegram_rate_chat": 1_000_000,
        "telegram_rate_bot": 1_000_000,
        "log_level": "error",
        "app": "rise.testing.bench.bot",
        "data_dir": directory,
        **more,
    }


def installation(data: Path, **more: object) -> Installation:
    """A whole `rise serve` on that directory, to be started."""
    settings = rise_settings(data, **more)
    directory = DataDirectory(data)
    directory.create()
    directory.remember_verified(TOKEN.partition(":")[0])  # nobody is there to ask
    del settings["data_dir"]
    return Installation(data, app=str(settings.pop("app")), **settings)


@asynccontextmanager
async def running(
    name: str,
    directory: Path,
    *,
    settings: Mapping[str, object] | None = None,
    profile: Path | None = None,
    count: int | None = None,
) -> AsyncIterator[Running]:
    """A contender, from its first sign of life to the end of the block. `count`: for one that makes so many."""
    words = [name, *([] if count is None else [str(count)])]
    words += [] if profile is None else ["--profile", str(profile)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise.testing.bench.contenders", *words),
        cwd=directory,
        env=environment_of_another(settings or {}),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_SECONDS + (count or 0) * MADE_SECONDS_MAX):
            line = await process.stdout.readline()
        if not line.startswith(b"ready"):
            raise RuntimeError(f"the contender {name} ended before it was ready")
        yield Running(process.pid, int(line.split()[1]), process)
    finally:
        await end(process, gently=profile is not None)


@asynccontextmanager
async def profiled_worker(data: Path, **more: object) -> AsyncIterator[Path]:
    """`rise worker` under cProfile until the end of the block, and the file that then says what it did."""
    profile = data / "profile"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise.testing.bench.contenders", "rise-worker", "--profile", str(profile)),
        env=environment_of_another(rise_settings(data, **more)),
    )
    try:
        yield profile
    finally:
        await end(process, gently=True)


async def ask(order: Order) -> Seen:
    """Load in a process of its own. Raises `RuntimeError` if it was refused anything."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise.testing.bench.load", msgspec.json.encode(order).decode()),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        await end(process)
    if process.returncode != 0:
        raise RuntimeError("the load generator failed; see above")
    seen = msgspec.json.decode(printed, type=Seen)
    if seen.failures:
        raise RuntimeError(f"{seen.failures} requests were refused: nothing was measured")
    return seen


async def end(process: asyncio.subprocess.Process, *, gently: bool = False) -> None:
    """Wait for its end after SIGTERM, or see to it at once."""
    with suppress(ProcessLookupError):
        if process.returncode is None:
            process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
    try:
        async with asyncio.timeout(30.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

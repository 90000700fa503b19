"""How commands get at the data directory: with or without a running `rise serve`, which shares it.

Refuses: to make a directory where one is only looked into; to log, below warnings, among a command's own words.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House
    from rise.settings import Settings

T = TypeVar("T")

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The data directory, if not RISE_DATA_DIR.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def read_settings(data_dir: Path | None) -> Settings:
    """As the environment says. From here on the log has warnings only: the command's words are its output."""
    from rise.settings import load_settings
    from rise.telemetry import configure_logs

    settings = load_settings() if data_dir is None else load_settings(data_dir=data_dir)
    configure_logs(settings.log, level="error" if settings.log_level == "error" else "warning")
    return settings


def in_house(
    data_dir: Path | None,
    work: Callable[[House], Coroutine[Any, Any, T]],
    *,
    creates: bool = False,
    keeps: bool = False,
) -> T:
    """Run `work` with the directory open. Without a database there is nothing to look at, unless it `creates`.

    `keeps`: messages, as a server does. Only then is something started that copies them from store to store, and
    complains while one is away.
    """
    from rise.runtime.directory import DataDirectory
    from rise.runtime.processes import run

    settings = read_settings(data_dir)
    if not creates:
        DataDirectory(settings.data_dir).refuse_without_database()

    async def main() -> T:
        async with _opened(settings, keeps) as house:
            return await work(house)

    return run(main())


def has_database(settings: Settings) -> bool:
    from rise.runtime.directory import DataDirectory

    return DataDirectory(settings.data_dir).database.exists()


@asynccontextmanager
async def _opened(settings: Settings, keeps: bool) -> AsyncIterator[House]:
    from rise.runtime.assembly.bots import learn_bots
    from rise.runtime.assembly.house import build
    from rise.service import start_all, stop_all

    house = build(settings)
    house.capabilities.is_quiet = True
    await house.stores.open()
    keeping = house.stores.services() if keeps else []
    await start_all([house.bus, *keeping], on_error=_report_stop)
    try:
        await house.bindings.refresh()
        await learn_bots(house)
        await house.chats.refresh()
        yield house
        await house.clock.sleep(0)  # hints go out in the loop's next turn
    finally:
        await stop_all([house.bus, *keeping], on_error=_report_stop)
        await house.channels.close()
        await house.model.close()
        await house.stores.close()


def _report_stop(name: str, error: BaseException) -> None:
    from rise.telemetry import log

    log.warning("service.stop_failed", service=name, error=error, consequence="the command has done what it says")


def refuse_without_servers(command: str, *, mongo: bool = False) -> None:
    """Raises `SettingsInvalid` with what is not installed and the command starts."""
    from rise.errors import SettingsInvalid
    from rise.testing.servers import missing

    if lacking := missing(mongo=mongo):
        raise SettingsInvalid([f"`{command}` needs {what}" for what in lacking])


def operator() -> str:
    """Who is at the keyboard, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:uid{os.getuid()}"

"""`rise demo`, `rise serve`, `rise worker`: what runs.

Refuses: a worker without an app, before anything is made for it. What starts and stops is in `rise.runtime.serving`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli.opening import has_database
from rise.runtime.directory import DEMO

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House
    from rise.settings import Settings

DEMO_BOT = Path(__file__).with_name("demo_bot.py")


def register(app: typer.Typer) -> None:
    app.command()(demo)
    app.command()(serve)
    app.command()(worker)


def serve(
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run workflows in this process, for debugging.")
    ] = False,
) -> None:
    """Accept messages, answer them, and keep doing both.

    It is set up by the environment, or a file `.env` where it is started: RISE_APP, RISE_PORT and so on
    (docs/settings.md).
    """
    from rise.settings import load_settings

    _serve(load_settings(), in_process=in_process)


def demo(
    port: Annotated[int, typer.Option(envvar="RISE_PORT", help="Port of the page.")] = 8080,
    data_dir: Annotated[Path, typer.Option(help="Where the conversation is kept.")] = DEMO,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Chat with a bot in the browser: no token, no server, one directory.

    Kill it in the middle of a conversation and start it again: the answer arrives.
    """
    from rise.settings import load_settings, preset

    preset({"data_dir": data_dir, "port": port}, where_unset={"app": DEMO_BOT, "log_level": "warning"})
    _serve(load_settings(), page=True, browser=browser)


def worker(
    parent_fd: Annotated[int | None, typer.Option("--parent-fd", hidden=True)] = None,
) -> None:
    """Add a worker to the `rise serve` of the same data directory."""
    from rise.errors import SettingsInvalid
    from rise.runtime.assembly.house import build
    from rise.runtime.processes import run
    from rise.runtime.serving import WITHOUT_CODE, work
    from rise.settings import load_settings
    from rise.telemetry import configure_logs

    settings = load_settings()
    if settings.app is None and parent_fd is None and not has_database(settings):
        # Before anything is built: that makes the directory and its secrets.
        raise SettingsInvalid([WITHOUT_CODE])
    configure_logs(settings.log, level=settings.log_level)
    if parent_fd is None:  # else its parent has said so
        _warn_of_settings(settings)
    code = run(work(build(settings), parent_fd=parent_fd))
    # Threads of functions that never returned must not keep the process from ending.
    atexit._run_exitfuncs()
    os._exit(code)


def _serve(settings: Settings, *, in_process: bool = False, page: bool = False, browser: bool = False) -> None:
    from rise.api.server import ApiServer
    from rise.console.app import build_front
    from rise.runtime.assembly.house import build
    from rise.runtime.open_files import allow_open_files
    from rise.runtime.processes import run
    from rise.runtime.serving import serve as serve_house
    from rise.telemetry import configure_logs

    allow_open_files()
    configure_logs(settings.log, level=settings.log_level)
    _warn_of_settings(settings)

    def ready(port: int) -> None:
        address = f"http://{settings.host}:{port}"
        typer.echo(f"Rise listens on {address}  (data in {settings.data_dir})")
        if settings.app is None:
            typer.echo(
                "RISE_APP is not set: no workflow in code runs, only those made of stages. `rise doctor` says more."
            )
        if page:
            typer.echo(f"Chat with the bot:  {address}/webchat")
            typer.echo(f"Watch it work:      {address}/console  (sign in with {_first_token(settings)})")
            typer.echo(f"Kill it:            kill -9 {os.getpid()}, and start it again: the answer arrives")
            if browser:
                asyncio.get_running_loop().run_in_executor(None, webbrowser.open, f"{address}/webchat")

    def build_door(house: House) -> ApiServer:
        return ApiServer(house, build_front)

    run(serve_house(build(settings), build_door, in_process=in_process, on_ready=ready))


def _first_token(settings: Settings) -> str:
    """Where the first admin's token is; not the token: what a terminal shows, others read."""
    return f"the token in {settings.data_dir}/admin-token" if settings.admin_token is None else "RISE_ADMIN_TOKEN"


def _warn_of_settings(settings: Settings) -> None:
    from rise.settings import UNSHARED_KEY_REMEDY, unknown_names, unshared_key
    from rise.telemetry import log

    for unknown in unknown_names():
        log.warning("settings.unknown", detail=unknown, consequence="what it was meant to change is as by default")
    if (unshared := unshared_key(settings)) is not None:
        others = "on other hosts, bots that are bound are not served, and stages that name secrets are suspended"
        log.warning("settings.key_unshared", detail=unshared, consequence=others, remedy=UNSHARED_KEY_REMEDY)

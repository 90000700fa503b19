"""The command `rise`. Each file holds the commands of one purpose; nothing heavy is imported before it runs."""

from __future__ import annotations

import sys

import typer

from rise.errors import RiseError, SettingsInvalid, StoreLocked

EXIT_PROBLEM = 1
EXIT_USAGE = 2


def main() -> None:
    """Run the command line. Every error of ours is one clear line, never a traceback."""
    try:
        build_app()()
    except SettingsInvalid as error:
        for problem in error.problems:
            print(f"rise: {problem}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except RiseError as error:
        print(f"rise: {error.public_message}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, StoreLocked) else EXIT_PROBLEM)


def build_app() -> typer.Typer:
    from rise.cli import bench, checking, keeping, replay, running, standin, tasks

    app = typer.Typer(
        name="rise",
        help="The durable front door of a chat bot.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for commands in (running, tasks, replay, checking, keeping, standin, bench):
        commands.register(app)
    return app

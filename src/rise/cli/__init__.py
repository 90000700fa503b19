"""The command `rise`. Each file holds the commands of one purpose; nothing heavy is imported before it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from rise import __version__
from rise.errors import (
    PromptUnknown,
    RiseError,
    SecretUnknown,
    SettingsInvalid,
    StateConflict,
    StoreLocked,
    StoreUnavailable,
    TaskUnknown,
    Unavailable,
    VersionUnknown,
    WorkflowUnknown,
)

EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
EXIT_WORN_OUT: Final = 3
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    0: "done, and nothing is wrong",
    EXIT_PROBLEM: "a problem was found, or it was refused: which, and what to do, is said",
    EXIT_USAGE: "wrong words or settings, or the directory is in use: nothing was begun",
    EXIT_WORN_OUT: "rise worker alone: worn out by functions that never return",
    EXIT_INTERRUPTED: "interrupted with Ctrl-C; what runs until it is stopped ends with 0",
}
"""How commands end, for people (`rise --help`) and for programs."""

REMEDIES: dict[type[RiseError], str] = {
    TaskUnknown: "`rise tasks` lists what is open; what has ended is kept for RISE_KEEP_FINISHED_DAYS",
    StateConflict: "`rise tasks show TASK_ID`, or `rise workflows show WORKFLOW_ID`, tells where it stands",
    WorkflowUnknown: "`rise workflows` lists what there is",
    PromptUnknown: "`rise prompts` lists what there is",
    SecretUnknown: "`rise secrets list` tells what there is",
    VersionUnknown: "`rise workflows history WORKFLOW_ID` lists those that are kept",
    StoreUnavailable: "`rise doctor` looks at the directory and says more",
}
"""Of errors that do not name their own, for who is at the keyboard."""


def main() -> None:
    """Run the command line. Every error of ours is one clear line and a remedy, never a traceback; Ctrl-C, and a reader
    who has seen enough, end it without a word."""
    try:
        _refuse_what_is_no_text(sys.argv[1:])
        build_app()(prog_name="rise")
    except SettingsInvalid as error:
        for problem in error.problems:
            print(f"rise: {problem}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except RiseError as error:
        print(f"rise: {error.public_message}", file=sys.stderr)
        if remedy := error.remedy or REMEDIES.get(type(error)) or _remedy_of_what_is_away(error):
            print(f"      → {remedy}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, StoreLocked) else EXIT_PROBLEM)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    finally:
        _flush()


def _remedy_of_what_is_away(error: RiseError) -> str | None:
    """As `/healthz` and doctor have it: a command that looks at what is away helps nobody."""
    from rise.capabilities import REMEDIES as OF_CAPABILITIES

    return OF_CAPABILITIES.get(error.capability) if isinstance(error, Unavailable) else None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PROBLEM)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"rise {__version__}")
        raise typer.Exit


def _with_version(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """What may be said before a command."""


def _refuse_what_is_no_text(words: list[str]) -> None:
    """Bytes that are not UTF-8 come as halves of surrogate pairs, which can be neither looked up nor printed."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise SettingsInvalid([f"{word!a} is not UTF-8: spell it otherwise."]) from error


def build_app() -> typer.Typer:
    from rise.cli import (
        backup,
        bench,
        bindings,
        checking,
        drill,
        follow_ups,
        forgetting,
        refilling,
        replay,
        running,
        secrets,
        simulate,
        standin,
        tasks,
        tokens,
        workflows,
    )

    app = typer.Typer(
        name="rise",
        help="The durable front door of a chat bot.",
        epilog="\n".join(["It ends with", *(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())]),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_with_version)
    for commands in (
        running,
        tasks,
        follow_ups,
        bindings,
        tokens,
        workflows,
        secrets,
        replay,
        checking,
        backup,
        forgetting,
        refilling,
        standin,
        simulate,
        drill,
        bench,
    ):
        commands.register(app)
    return app

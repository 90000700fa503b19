"""The command `rise`. Each file holds the commands of one purpose; nothing heavy is imported before it runs."""

from __future__ import annotations

import sys

import typer

from rise.errors import (
    PromptUnknown,
    RiseError,
    SecretUnknown,
    SettingsInvalid,
    StateConflict,
    StoreLocked,
    StoreUnavailable,
    TaskUnknown,
    VersionUnknown,
    WorkflowUnknown,
)

EXIT_PROBLEM = 1
EXIT_USAGE = 2

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
    """Run the command line. Every error of ours is one clear line and a remedy, never a traceback."""
    try:
        _refuse_what_is_no_text(sys.argv[1:])
        build_app()()
    except SettingsInvalid as error:
        for problem in error.problems:
            print(f"rise: {problem}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except RiseError as error:
        print(f"rise: {error.public_message}", file=sys.stderr)
        if remedy := error.remedy or REMEDIES.get(type(error)):
            print(f"      → {remedy}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, StoreLocked) else EXIT_PROBLEM)


def _refuse_what_is_no_text(words: list[str]) -> None:
    """Bytes that are not UTF-8 come as halves of surrogate pairs, which can be neither looked up nor printed."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise SettingsInvalid([f"{word!a} is not UTF-8: spell it otherwise."]) from error


def build_app() -> typer.Typer:
    from rise.cli import (
        bench,
        bindings,
        checking,
        drill,
        forgetting,
        keeping,
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
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for commands in (
        running,
        tasks,
        bindings,
        tokens,
        workflows,
        secrets,
        replay,
        checking,
        keeping,
        forgetting,
        refilling,
        standin,
        simulate,
        drill,
        bench,
    ):
        commands.register(app)
    return app

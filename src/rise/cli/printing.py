"""What commands print: tables for people, JSON for programs, progress where it takes long.

Promises: text that came in a message is printed as text, whatever it holds; JSON goes to standard output and
nothing else does then; progress goes to standard error, and only if somebody looks.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer

from rise.cli import EXIT_INTERRUPTED, EXIT_PROBLEM

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

WIDTH_ELSEWHERE: Final = 100_000
"""Columns where there is no terminal: a row is a line then, for the programs that read it."""
TEXT_SHOWN_MAX: Final = 60

STYLES: Final = {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "unaccounted": "bold red",
    "suspended": "yellow",
    "completed": "green",
    "new": "green",
    "sent": "green",
    "failed": "red",
    "unknown": "red",
}


def show_json(value: Any) -> None:
    """One document, in one line."""
    from rise.envelope import encode_json

    typer.echo(encode_json(value))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "") -> None:
    from rich.table import Table

    if not rows:
        say(empty or f"{title}: none")
        return
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "task")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    show(table)


def show_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one below the other; what is empty is left out."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, ""):
            table.add_row(name, plain(value))
    show(table)


def say(text: str, *, style: str = "") -> None:
    """A line for people."""
    from rich.text import Text

    show(Text(text, style=style))


def show(shown: RenderableType) -> None:
    console = _console(sys.stdout)
    if sys.stdout.isatty():
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    # A table fills each of its lines up to the longest: a program would read blanks that nobody has said.
    sys.stdout.writelines(f"{line.rstrip(' ')}\n" for line in captured.get().removesuffix("\n").split("\n"))
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line about what could not be done, where errors go."""
    print(f"rise: {text}", file=sys.stderr)


def problem_found() -> typer.Exit:
    return typer.Exit(EXIT_PROBLEM)


def interrupted() -> typer.Exit:
    return typer.Exit(EXIT_INTERRUPTED)


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: what is in hand is finished then, and what has come of it is said. Pressed again, it
    ends at once."""
    is_told = False

    def note(number: int, frame: object) -> None:
        nonlocal is_told
        is_told = True
        signal.signal(signal.SIGINT, former)

    former = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: is_told
    finally:
        signal.signal(signal.SIGINT, former)


def plain(value: object) -> Text:
    """The value as text that is only text: no markup, no control characters."""
    from rich.text import Text

    from rise.telemetry import printable, redact

    shown = printable(redact("" if value is None else str(value)))
    return Text(shown, style=STYLES.get(shown.split(" ")[0], ""))


def shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN_MAX else text[: TEXT_SHOWN_MAX - 1] + "…"


def age(milliseconds: int) -> str:
    """`41 s`, `3 min`, `5 h`, `12 d`."""
    seconds = max(0, milliseconds) // 1000
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while it lasts; told how much is done, of how much. Untold, it only shows that something goes on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(sys.stderr), transient=True, disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, width=None if stream.isatty() else WIDTH_ELSEWHERE)

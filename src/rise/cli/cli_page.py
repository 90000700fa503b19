"""The page about the command line, made from the commands themselves.

Refuses: to say anything of a command that its `--help` does not; and to show what depends on the version of Typer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import typer

from rise.cli import EXIT_CODES, build_app

_INTRODUCTION: Final = """\
`rise COMMAND --help` says the same. Commands that look at the data directory (`RISE_DATA_DIR`, or `--data-dir`) work
beside a running `rise serve`, and without one. With `--json` they print one line of JSON on standard output, and
nothing else there.

## Exit codes

| Code | Means |
|---|---|
{codes}

`rise serve`, `rise worker` and `rise demo` end with 0 when they are told to stop (SIGTERM, Ctrl-C) and have stopped in
order."""


def page(made: str) -> str:
    root = typer.main.get_command(build_app())
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = ["# Command line", made, _INTRODUCTION.format(codes=codes)]
    parts += _table(root, "rise")
    parts += [_command("rise", name, command) for name, command in _commands(root)]
    return "\n\n".join(parts) + "\n"


def _commands(group: Any) -> list[tuple[str, Any]]:
    return [(name, command) for name, command in getattr(group, "commands", {}).items() if not command.hidden]


def _command(before: str, name: str, command: Any, level: int = 2) -> str:
    path = f"{before} {name}"
    parts = [f"{'#' * level} `{path}`", *_paragraphs(command.help or ""), *_table(command, path)]
    parts += [_command(path, one, inner, level + 1) for one, inner in _commands(command)]
    return "\n\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _table(command: Any, path: str) -> list[str]:
    rows = list(_rows(command, path))
    return ["| | |\n|---|---|\n" + "\n".join(rows)] if rows else []


def _rows(command: Any, path: str) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    for parameter in command.params:
        record = None if parameter.name == "help" else parameter.get_help_record(context)
        if record is not None:
            yield f"| {_named(parameter, record[0])} | {_meaning(parameter, *record)} |"


def _named(parameter: Any, shown: str) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return f"`{name}{' …' if parameter.nargs == -1 else ''}`"
    return " / ".join(f"`{name}`" for name in re.findall(r"(?<![\w-])--[\w-]+", shown))


def _meaning(parameter: Any, named: str, shown: str) -> str:
    choices = re.search(r"((?:[\w-]+\|)+[\w-]+)", named)
    default = re.search(r"\[.*?default: ([^;\]]+)", shown)
    variable = re.search(r"env var: ([^;\]]+)", shown)
    parts = [parameter.help or ""]
    parts += [f"One of {', '.join(f'`{one}`' for one in choices[1].split('|'))}."] if choices else []
    parts += [f"Left out: `{default[1]}`."] if default and not parameter.secondary_opts else []
    parts += [f"Or `{variable[1]}`."] if variable else []
    parts += ["Must be said."] if parameter.required else []
    return " ".join(part for part in parts if part).replace("|", "\\|")

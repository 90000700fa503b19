"""`rise secrets`: what stages put into their requests, by name; sealing all secrets anew.

Only asks and shows: what may be done, and what is refused, is in `rise.runtime.stage_secrets`, for the HTTP API too.

Refuses: a secret among its words, where the shell and every process on the host would see it; to show one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import complain, problem_found, say, show_json, show_table

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House
    from rise.runtime.stage_secrets import StageSecrets

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="As stages write it: {{ secrets.NAME }}.", autocompletion=completing.secret_names
    ),
]


def register(app: typer.Typer) -> None:
    secrets = typer.Typer(help="What stages put into their requests; sealing tokens and secrets anew.")
    secrets.command("list")(list_secrets)
    secrets.command("set")(set_secret)
    secrets.command("remove")(remove_secret)
    secrets.command("rotate")(rotate)
    app.add_typer(secrets, name="secrets", no_args_is_help=True)


def list_secrets(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Their names, and which workflows run with them."""

    async def work(house: House) -> None:
        from rise.api.secrets import shown

        secrets = _secrets(house)
        used_by = await secrets.used_by()
        known = [shown(one, used_by.get(one.name, [])) for one in await secrets.list()]
        if as_json:
            show_json({"secrets": known})
            return
        show_table(
            "secrets",
            ("secret", "used by", "version", "changed", "by"),
            [
                (one["name"], ", ".join(one["usedBy"]), one["version"], one["updatedAt"], one["updatedBy"])
                for one in known
            ],
            empty="there is no secret: `rise secrets set NAME` keeps one",
        )

    in_house(data_dir, work)


def set_secret(
    name: Name,
    file: Annotated[
        Path | None, typer.Option("--file", help="Holds the secret; left out, it is read from standard input.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Keep a secret, sealed, or give it another value. It holds at once, in all workflows that name it."""
    value = read_secret(file) if file is not None or not sys.stdin.isatty() else typer.prompt(name, hide_input=True)

    async def work(house: House) -> None:
        from rise.api.secrets import shown

        secrets = _secrets(house)
        kept = await secrets.set(name, value, by=operator())
        if as_json:
            show_json(shown(kept, (await secrets.used_by()).get(name, [])))
        else:
            say(f"{kept.name} is kept as version {kept.version}: {{{{ secrets.{kept.name} }}}}")

    in_house(data_dir, work)


def remove_secret(name: Name, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Remove a secret, unless a published workflow asks for it."""

    async def work(house: House) -> list[str]:
        return [*await _secrets(house).remove(name, by=operator())]

    users = in_house(data_dir, work)
    if as_json:
        show_json({"name": name, "isRemoved": True, "usedBy": users})
        return
    for workflow_id in users:
        complain(f"{workflow_id} was published with it meanwhile: publish that without it")
    say(f"{name} is removed")


def rotate(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Seal every token and secret with RISE_SECRET_KEY that is sealed with RISE_SECRET_KEY_FORMER. Unset that one
    then."""

    async def work(house: House) -> tuple[int, list[str], list[str]]:
        from rise.runtime.assembly.operations import build_channel_bindings

        tokens, without_token = await build_channel_bindings(house).seal_anew(by=operator())
        secrets, unreadable = await _secrets(house).seal_anew(by=operator())
        return tokens + secrets, without_token, [*unreadable]

    sealed, without_token, unreadable = in_house(data_dir, work)
    if as_json:
        show_json({"sealedAnew": sealed, "unreadable": without_token + unreadable})
    else:
        say(f"{sealed} tokens and secrets are sealed anew")
    for name in without_token:
        complain(f"the token of {name} was sealed with neither key: bind it again with its token")
    for name in unreadable:
        complain(f"the secret {name} was sealed with neither key: set it again with `rise secrets set {name}`")
    if without_token or unreadable:
        raise problem_found()


def read_secret(path: Path | None) -> str:
    """The first line of standard input, or what is in the file, without the line's end."""
    if path is None or str(path) == "-":
        return sys.stdin.readline().strip()
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error


def _secrets(house: House) -> StageSecrets:
    from rise.runtime.assembly.operations import build_stage_secrets

    return build_stage_secrets(house)

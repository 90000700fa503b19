"""`rise tokens new`: a token for somebody who uses the API, and the line by which Rise knows it again.

Refuses: to keep the token anywhere. It is printed once; what the settings hold is its digest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from rise.cli.opening import AsJson
from rise.cli.printing import say, show_json


class TokenRole(StrEnum):
    """Each may what the one before may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


def register(app: typer.Typer) -> None:
    tokens = typer.Typer(help="Tokens for people and programs that use the API.", no_args_is_help=True)
    tokens.callback()(lambda: None)
    tokens.command("new")(new)
    app.add_typer(tokens, name="tokens")


def new(
    name: Annotated[str, typer.Argument(help="Whose it is, as the audit log is to say.")],
    role: Annotated[TokenRole, typer.Option("--role", help="What it is good for.")] = TokenRole.VIEWER,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is shown this once; add the line beside it to RISE_TOKENS, which does not hold the token."""
    from rise.envelope import new_secret
    from rise.settings import token_entry

    token = new_secret()
    entry = token_entry(name, role, token)
    if as_json:
        show_json({"name": name, "role": role, "token": token, "entry": entry})
        return
    say(f"the token of {name} ({role}), which is not shown again:")
    print(token)
    say("add this to RISE_TOKENS, after a space if there is something, and start Rise anew:")
    print(entry)

"""`rise bench`: how fast it is here, beside what one might use instead.

Refuses: to compare with another run. Both sides take turns in one, on the disk that is named.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rise.cli.opening import AsJson, refuse_without_servers


class Part(StrEnum):
    ACCEPT = "accept"
    EXECUTE = "execute"
    RESTART = "restart"
    MEMORY = "memory"
    LATENCY = "latency"
    BACKLOG = "backlog"


class Profile(StrEnum):
    EMBEDDED = "embedded"
    FULL = "full"


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and shorter: minutes less, more spread.")] = False,
    as_json: AsJson = False,
    part: Annotated[list[Part] | None, typer.Option(help="Only this; may be repeated.")] = None,
    profile: Annotated[
        Profile, typer.Option(help="full: with a Redis and a RabbitMQ of its own, beside peers that use them.")
    ] = Profile.EMBEDDED,
    why: Annotated[bool, typer.Option("--why", help="Show instead what takes the time.")] = False,
    queued: Annotated[int | None, typer.Option(help="Tasks to work off.")] = None,
    backlog: Annotated[int | None, typer.Option(help="Tasks of the backlog of the full profile.")] = None,
    directory: Annotated[Path, typer.Option(help="On the disk that is to be measured.")] = Path(),
) -> None:
    """Measure ratios: Rise and what it is compared with take turns in one run."""
    if profile is Profile.FULL:
        refuse_without_servers("rise bench --profile full")
    words = [f"--part={one}" for one in part or []] + [f"--directory={directory.resolve()}"]
    words += [f"--profile={profile}"]
    words += [f"--{name}={count}" for name, count in (("queued", queued), ("backlog", backlog)) if count is not None]
    words += [option for option, wanted in (("--quick", quick), ("--json", as_json), ("--why", why)) if wanted]
    # A program of its own: what this one has imported would be in its figures.
    os.execv(sys.executable, [sys.executable, "-m", "rise.testing.bench", *words])  # noqa: S606 - ourselves

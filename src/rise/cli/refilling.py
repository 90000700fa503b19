"""`rise rehydrate`: the queue is filled again from the other copies. What that means is in `rise.runtime.refilling`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house
from rise.cli.printing import progress, say, show_json, show_pairs

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House


def register(app: typer.Typer) -> None:
    app.command("rehydrate")(rehydrate)


def rehydrate(
    channel: Annotated[
        str | None, typer.Option("--channel", help="Only messages of this channel.", autocompletion=completing.channels)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is missing.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Bring every open message that Redis lacks back from the journals and RabbitMQ.

    Says first what the journals hold and Redis does not. Without --channel nothing is handed out until all is there,
    so that each chat's order holds; messages are accepted meanwhile. Nothing finished runs again.
    """

    async def work(house: House) -> tuple[dict[str, int], bool]:
        from rise.runtime.refilling import Refilling

        refilling = Refilling(house)
        with progress("comparing the journals with Redis"):
            missing = await refilling.missing(channel)
        if not as_json:
            show_pairs([*missing.items(), ("missing", sum(missing.values()))])
        if not dry_run:
            with progress("bringing back what is missing"):
                await (refilling.refill() if channel is None else refilling.bring(channel))
        return missing, not dry_run

    missing, is_done = in_house(data_dir, work, keeps=not dry_run)
    if as_json:
        show_json({"missing": missing, "total": sum(missing.values()), "rehydrated": is_done})
    elif is_done:
        say("Redis holds everything that is open.", style="green")
    else:
        say("Nothing was changed; without --dry-run they are brought back.")

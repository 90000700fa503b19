"""`rise forget`: what somebody wrote in a chat and was answered, gone on his word.

Says first what it would remove, and does it only with `--yes`; says, too, what is left of it elsewhere, and until when.
What is promised and refused is in `rise.runtime.forgetting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import complain, problem_found, progress, say, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from rise.ledger.port import ChatForgotten
    from rise.runtime.assembly.house import House
    from rise.runtime.forgetting import ChatNamed, Forgotten, Trace

_COMPACTED_BYTES_MAX: Final = 64 << 20
"""A database of up to that size is written anew in less time than an acceptance waits."""


def register(app: typer.Typer) -> None:
    app.command("forget")(forget)


def forget(
    chat: Annotated[str, typer.Option("--chat", help="The chat, by any id that it ever had.")],
    channel: Annotated[
        str,
        typer.Option("--channel", help="Where it is: telegram, http or webchat.", autocompletion=completing.channels),
    ] = "telegram",
    account: Annotated[str | None, typer.Option("--account", help="Of this bot; left out, of the default one.")] = None,
    drop_open: Annotated[
        bool, typer.Option("--drop-open", help="Drop first what of it is still open, unanswered; each is recorded.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")] = "",
    compact: Annotated[
        bool | None,
        typer.Option(
            "--compact/--no-compact",
            help="Write the database anew, so that no piece is left in unused space of it. Messages wait meanwhile, or "
            "are refused with 503 and repeated. Left out: if it has no more than 64 MB.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what would be removed.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove what was written in a chat and answered there. Cannot be undone. A dry run unless --yes."""
    if yes and dry_run:
        raise typer.BadParameter("--dry-run changes nothing and --yes does it: say one of them")

    async def work(house: House) -> tuple[Forgotten, bool, list[Trace]]:
        from rise.runtime.forgetting import traces_of, was_conversing

        named = _named(house, channel, account, chat)
        compacts = house.stores.database.size_bytes <= _COMPACTED_BYTES_MAX if compact is None else compact
        found, is_done = await _forget(house, named, drop_open=drop_open, why=why, compacts=compacts, yes=yes)
        traces = traces_of(
            house.settings,
            leaves_pieces=not (found.is_compact if is_done else compacts),
            was_conversing=await was_conversing(house.stores.definitions, named),
        )
        return found, is_done, traces

    found, is_done, traces = in_house(data_dir, work)
    if as_json:
        show_json(_for_programs(found, is_done, traces))
    else:
        _tell(found, is_done, traces)
    is_refused = found.open > 0 and not drop_open
    if is_refused:
        complain(f"{found.open} of the chat's messages are still open, and nothing is forgotten while they are")
        complain("wait until they have ended, or add --drop-open to drop them first, unanswered")
    elif not is_done and not as_json:
        say("Nothing was changed. Add --yes to do it.", style="yellow")
    if is_refused or (is_done and found.seen.unfinished) or found.seen.unreadable:
        raise problem_found()


def _named(house: House, channel: str, account: str | None, chat: str) -> ChatNamed:
    from rise.runtime.forgetting import ChatNamed

    accounts = house.channels.all_accounts()
    if channel != "telegram" and channel not in accounts:
        raise typer.BadParameter(f"there is no channel {channel}: say one of telegram, {', '.join(sorted(accounts))}")
    if account is None and channel not in accounts:
        raise typer.BadParameter("no bot is configured: say whose chat it is with --account BOT_ID")
    return ChatNamed(channel, account or accounts[channel][0], chat)


async def _forget(
    house: House, chat: ChatNamed, *, drop_open: bool, why: str, compacts: bool, yes: bool
) -> tuple[Forgotten, bool]:
    """What was forgotten, or would be; and whether it was."""
    from rise.runtime.assembly.operations import build_forgetting
    from rise.runtime.assembly.temporal import reach_temporal

    house = reach_temporal(house)
    forgetting = build_forgetting(house)
    runs = sum(dict(await house.ledger.finished_counts()).values())
    with progress("looking") as told:

        def step(seen: ChatForgotten) -> None:
            told(seen.looked_at, max(runs, seen.looked_at))

        found = await forgetting.foresee(chat, on_step=step)
        if not yes or (found.open and not drop_open):
            return found, False
        doing = forgetting.forget(chat, who=operator(), why=why, drops_open=drop_open, compacts=compacts, on_step=step)
        return await doing, True


# --- what is said -------------------------------------------------------------------------------------------


def _tell(found: Forgotten, is_done: bool, traces: list[Trace]) -> None:
    seen = found.seen
    say("forgotten:" if is_done else "would be forgotten:")
    show_pairs(
        [
            ("messages", f"{seen.runs} that have ended: text, bytes, results, steps, failed tries"),
            ("replies", seen.replies),
            ("history", f"{seen.turns} turns"),
            ("dropped" if is_done else "still open", found.dropped if is_done else found.open),
        ]
    )
    if seen.unreadable:
        complain(
            f"{seen.unreadable} messages were left alone: a newer version wrote them, whose they are is unreadable"
        )
    if is_done and seen.unfinished:
        complain(f"{seen.unfinished} messages of the chat end at this moment: once more, and they are forgotten, too")
    show_table("what stays, or is elsewhere", ("what", "until"), [(trace.what, trace.until) for trace in traces])
    say("After a backup is restored, and for a chat that writes again, forget it again.", style="dim")


def _for_programs(found: Forgotten, is_done: bool, traces: list[Trace]) -> dict[str, object]:
    return {"dryRun": not is_done, **found.shown(), "traces": traces}

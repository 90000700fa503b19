"""`rise follow-ups`: what is to be said later: plan it, list it, look at one, move it, cancel it.

Only asks and shows: what is promised is in `rise.follow_ups`, for the HTTP API too.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import say, shortened, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from rise.follow_ups.port import FollowUp, FollowUpId, FollowUps
    from rise.runtime.assembly.house import House


class MissedChoice(StrEnum):
    """What becomes of one that was missed."""

    FIRE = "fire"
    SKIP = "skip"
    COALESCE = "coalesce"


class StatusChoice(StrEnum):
    """The states that are listed."""

    PLANNED = "planned"
    SUSPENDED = "suspended"


Id = Annotated[
    str,
    typer.Argument(
        metavar="FOLLOW_UP_ID", help="As `rise follow-ups list` shows it.", autocompletion=completing.task_ids
    ),
]
InSeconds = Annotated[float | None, typer.Option("--in", help="So many seconds from now.")]
At = Annotated[str | None, typer.Option("--at", help="A moment, as 2026-12-01T09:00:00+02:00.")]
TimeZone = Annotated[
    str | None, typer.Option("--time-zone", help="How a moment without an offset is read, as Europe/Berlin.")
]
Account = Annotated[str | None, typer.Option("--account", help="Of this bot; left out, of the default one.")]


def register(app: typer.Typer) -> None:
    follow_ups = typer.Typer(help="What is to be said later: plan, list, move, cancel.", invoke_without_command=True)
    follow_ups.callback()(list_first)
    follow_ups.command("add")(add)
    follow_ups.command("list")(list_follow_ups)
    follow_ups.command("show")(show)
    follow_ups.command("cancel")(cancel)
    follow_ups.command("move")(move)
    app.add_typer(follow_ups, name="follow-ups")


def add(
    chat: Annotated[str, typer.Option("--chat", help="The chat.")],
    text: Annotated[str | None, typer.Option("--text", help="What is said, or given to the workflow.")] = None,
    workflow: Annotated[
        str | None,
        typer.Option("--workflow", help="Run this workflow then, by id.", autocompletion=completing.workflow_ids),
    ] = None,
    in_seconds: InSeconds = None,
    at: At = None,
    time_zone: TimeZone = None,
    missed: Annotated[
        MissedChoice,
        typer.Option("--missed", help="If it is met over a minute late: say it, skip it, or only the chat's latest."),
    ] = MissedChoice.FIRE,
    channel: Annotated[
        str, typer.Option("--channel", help="Where: telegram or webchat.", autocompletion=completing.channels)
    ] = "telegram",
    account: Account = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The same key is the same follow-up, however often it is said.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say something, or run a workflow, in a chat later. It is durable when this ends well."""
    asked = _given(channel=channel, account=account, chatId=chat, text=text, workflowId=workflow, missed=missed.value)

    async def work(house: House) -> None:
        from rise.envelope import encode_json
        from rise.follow_ups.reading import read_follow_up
        from rise.runtime.assembly.operations import build_operations
        from rise.runtime.entrance import Entrance

        await house.chats.catch_up()
        request = read_follow_up(
            encode_json(asked | _moment_given(in_seconds, at, time_zone)),
            accounts=house.channels.all_accounts(),
            chats=house.chats,
            principal=operator(),
            key=key,
            request_id=None,
            trace_id=None,
            clock=house.clock,
            queue_now_ms=house.queue.now_ms(),
        )
        accepted = await Entrance(house, build_operations(house)).accept(request.incoming)
        if as_json:
            shown = {"followUpId": accepted.task_id, "idempotencyKey": request.idempotency_key}
            show_json(shown | {"duplicate": not accepted.new})
        else:
            say(f"{accepted.task_id} is planned" if accepted.new else f"{accepted.task_id} was planned before")

    in_house(data_dir, work, keeps=True)


def list_first(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """What is to be said later: plan, list, move, cancel."""
    if context.invoked_subcommand is None:
        list_follow_ups(data_dir=data_dir, as_json=as_json)


def list_follow_ups(
    channel: Annotated[
        str | None, typer.Option("--channel", help="Of this channel only.", autocompletion=completing.channels)
    ] = None,
    account: Account = None,
    chat: Annotated[str | None, typer.Option("--chat", help="Of this chat only.")] = None,
    status: Annotated[StatusChoice | None, typer.Option("--status", help="In this state only.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What is planned, or waits for a person. What has ended is looked at by its id."""

    async def work(house: House) -> list[FollowUp]:
        from rise.follow_ups.port import ListedStatus

        wanted = ListedStatus(status.value) if status else None
        goes_by = house.chats.first_id(channel, account, chat) if channel and account and chat else None
        asked = {"channel": channel, "account": account, "chat_id": goes_by or chat}
        found: list[FollowUp] = []
        after = ""
        while len(found) < limit:
            page = await _follow_ups(house).page(asked, status=wanted, limit=limit - len(found), after=after)
            found += page.rows
            if page.next is None:
                break
            after = page.next
        return found

    found = sorted(in_house(data_dir, work), key=lambda one: (one.plan.due_at, one.follow_up_id))
    if as_json:
        show_json({"followUps": [_fields_of(one) for one in found]})
        return
    show_table(
        f"{len(found)} follow-ups",
        ("follow-up", "due", "channel", "chat", "status", "text or workflow"),
        [
            (
                one.follow_up_id,
                _fields_of(one)["dueAt"],
                one.channel,
                one.chat_id,
                one.status,
                shortened(one.text or one.workflow_id or ""),
            )
            for one in found
        ],
        empty="nothing is planned",
    )


def show(follow_up_id: Id, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """One, planned or ended."""
    found = _on_one(follow_up_id, lambda follow_ups, named: follow_ups.get(named), data_dir)
    _show_follow_up(found, as_json)


def cancel(
    follow_up_id: Id,
    why: Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """It will not fire; refused if it has."""
    found = _on_one(follow_up_id, lambda follow_ups, named: follow_ups.cancel(named, who=operator(), why=why), data_dir)
    _show_follow_up(found, as_json)


def move(
    follow_up_id: Id,
    in_seconds: InSeconds = None,
    at: At = None,
    time_zone: TimeZone = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Another moment for one; refused if it has fired."""

    async def moved(house: House) -> FollowUp:
        from rise.envelope import encode_json
        from rise.follow_ups.port import FollowUpId
        from rise.follow_ups.reading import read_move

        to = read_move(encode_json(_moment_given(in_seconds, at, time_zone)), clock=house.clock)
        return await _follow_ups(house).move(FollowUpId(follow_up_id), to, who=operator())

    _show_follow_up(in_house(data_dir, moved, keeps=True), as_json)


def _on_one(
    follow_up_id: str,
    ask: Callable[[FollowUps, FollowUpId], Coroutine[Any, Any, FollowUp]],
    data_dir: Any,
) -> FollowUp:
    async def work(house: House) -> FollowUp:
        from rise.follow_ups.port import FollowUpId

        return await ask(_follow_ups(house), FollowUpId(follow_up_id))

    return in_house(data_dir, work)


def _show_follow_up(one: FollowUp, as_json: bool) -> None:
    shown = _fields_of(one)
    if as_json:
        show_json(shown)
    else:
        show_pairs(list(shown.items()))


def _moment_given(in_seconds: float | None, at: str | None, time_zone: str | None) -> dict[str, Any]:
    return _given(inSeconds=in_seconds, at=at, timeZone=time_zone)


def _given(**fields: Any) -> dict[str, Any]:
    """As it would be asked for over HTTP: what was left out is not in it."""
    return {name: value for name, value in fields.items() if value is not None}


def _fields_of(one: FollowUp) -> dict[str, Any]:
    from rise.follow_ups.showing import shown

    return shown(one)


def _follow_ups(house: House) -> FollowUps:
    from rise.runtime.assembly.operations import build_follow_ups

    return build_follow_ups(house)

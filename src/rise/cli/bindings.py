"""`rise bindings`: which workflow serves what, changing that, killing one.

Only asks and shows: what may be done, and what is refused, is in `rise.runtime.channel_bindings`, for the HTTP API too.

Refuses: a token among its words, where the shell and every process on the host would see it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import complain, say, show_json, show_table
from rise.cli.secrets import read_secret

if TYPE_CHECKING:
    from rise.runtime.assembly.house import House
    from rise.runtime.channel_bindings import BindingShown, ChannelBindings


class ChannelName(StrEnum):
    """Where workflows may be bound."""

    TELEGRAM = "telegram"
    HTTP = "http"
    WEBCHAT = "webchat"


WorkflowId = Annotated[
    str,
    typer.Argument(
        metavar="WORKFLOW",
        help="By its id: wf_ and the name it has in the code.",
        autocompletion=completing.workflow_ids,
    ),
]
Channel = Annotated[ChannelName, typer.Option("--channel", help="Where.")]
Account = Annotated[str | None, typer.Option("--account", help="The bot's number, if not the default bot's.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")]


def register(app: typer.Typer) -> None:
    bindings = typer.Typer(help="Which workflow serves which channel and account.", invoke_without_command=True)
    bindings.callback()(list_bindings)
    bindings.command("bind")(bind)
    bindings.command("unbind")(unbind)
    bindings.command("kill")(kill)
    bindings.command("unkill")(unkill)
    app.add_typer(bindings, name="bindings")


# --- looking ----------------------------------------------------------------------------------------------


def list_bindings(
    context: typer.Context,
    unbound: Annotated[bool, typer.Option("--unbound", help="Also what could be bound and is not.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What is bound, to what, and whether it works."""
    if context.invoked_subcommand is not None:
        return

    async def look(house: House) -> list[BindingShown]:
        bindings = _bindings(house)
        found = await bindings.all()
        return found + [one for one in await bindings.options() if unbound and not one.binding.version]

    shown = in_house(data_dir, look)
    if as_json:
        show_json({"bindings": [_for_programs(one) for one in shown]})
        return
    show_table(
        f"{len(shown)} bindings",
        ("channel", "account", "workflow", "status", "meets", "version", "changed by"),
        [_row(one) for one in shown],
        empty="nothing is bound",
    )


def _row(shown: BindingShown) -> tuple[object, ...]:
    binding = shown.binding
    routes = [f"{route.by} {route.value}" for route in binding.routes]
    meets = ", ".join([*routes, *(["what no route names"] if binding.is_default else [])])
    return (
        binding.channel,
        binding.account,
        binding.workflow_id,
        shown.status,
        meets or "nothing",
        binding.version,
        binding.updated_by,
    )


def _for_programs(shown: BindingShown) -> dict[str, Any]:
    """As the HTTP API shows it."""
    from rise.api.bindings import shown_binding

    return shown_binding(shown)


# --- changing ---------------------------------------------------------------------------------------------


def bind(
    workflow_id: WorkflowId,
    channel: Channel = ChannelName.TELEGRAM,
    account: Account = None,
    chats: Annotated[list[str] | None, typer.Option("--chat", help="Meets this chat; may be repeated.")] = None,
    commands: Annotated[
        list[str] | None, typer.Option("--command", help="Meets this command, as /start; may be repeated.")
    ] = None,
    default: Annotated[
        bool | None,
        typer.Option("--default/--no-default", help="Meets what no route names. Unless said: if it has no routes."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Holds the bot's token; - reads it from standard input.")
    ] = None,
    webhook_url: Annotated[str | None, typer.Option("--webhook-url", help="Where Telegram delivers.")] = None,
    polling: Annotated[
        bool | None, typer.Option("--polling/--webhook", help="How its updates come, if not as the settings say.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="native, or temporal: in its chat's conversation on Temporal.")
    ] = None,
    why: Why = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Bind a workflow to an account. A new default takes the former one's place."""
    from rise.api.bindings import read_change

    routes = [{"by": "chat", "value": value} for value in chats or ()]
    routes += [{"by": "command", "value": value} for value in commands or ()]
    token = None if token_file is None else read_secret(token_file)
    said = {"botToken": token, "webhookUrl": webhook_url, "usePolling": polling, "engine": engine}
    fields = {
        "enabled": True,
        "isDefault": default,
        "routes": routes or None,
        "config": {name: value for name, value in said.items() if value is not None},
    }
    change = read_change(fields)

    async def work(house: House) -> BindingShown:
        return await _bindings(house).change(workflow_id, channel.value, account, change, by=operator(), why=why)

    _do(data_dir, as_json, work)


def unbind(
    workflow_id: WorkflowId,
    channel: Channel = ChannelName.TELEGRAM,
    account: Account = None,
    why: Why = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Switch a binding off. What it knows stays, and the code does not bind it again."""
    from rise.runtime.channel_bindings import BindingChange

    async def work(house: House) -> BindingShown:
        off = BindingChange(enabled=False)
        return await _bindings(house).change(workflow_id, channel.value, account, off, by=operator(), why=why)

    _do(data_dir, as_json, work)


def kill(
    workflow_id: WorkflowId,
    why: Why,
    channel: Channel = ChannelName.TELEGRAM,
    account: Account = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn a kill switch on: what comes in is kept, its senders are told, and nothing runs."""
    _switch(workflow_id, channel, account, on=True, why=why, data_dir=data_dir, as_json=as_json)


def unkill(
    workflow_id: WorkflowId,
    why: Why = "",
    channel: Channel = ChannelName.TELEGRAM,
    account: Account = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn a kill switch off. What was kept goes on when somebody resumes it."""
    _switch(workflow_id, channel, account, on=False, why=why, data_dir=data_dir, as_json=as_json)
    if not as_json:
        say("what was kept goes on with `rise suspended resume --reason kill_switch`")


def _switch(
    workflow_id: str,
    channel: ChannelName,
    account: str | None,
    *,
    on: bool,
    why: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    async def work(house: House) -> BindingShown:
        return await _bindings(house).switch(workflow_id, channel.value, account, on=on, reason=why, by=operator())

    _do(data_dir, as_json, work)


def _do(data_dir: Path | None, as_json: bool, work: Callable[[House], Coroutine[Any, Any, BindingShown]]) -> None:
    from rise.runtime.editor import EVENT_QUEUED

    shown = in_house(data_dir, work)
    if as_json:
        show_json(_for_programs(shown) | {"warnings": shown.warnings})
        return
    binding = shown.binding
    say(f"{binding.workflow_id} at {binding.channel}:{binding.account} is {shown.status}, version {binding.version}")
    for warning in shown.warnings:
        complain("other hosts hear of it when Redis is back" if warning == EVENT_QUEUED else warning)


def _bindings(house: House) -> ChannelBindings:
    from rise.runtime.assembly.operations import build_channel_bindings

    return build_channel_bindings(house)

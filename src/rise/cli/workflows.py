"""`rise workflows`, `rise prompts`: what runs, since when and by whose word; publish, go back, switch off.

Only asks and shows: what may be done, and what is refused, is in `rise.runtime.publishing` and `rise.runtime.prompts`,
for the HTTP API too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import complain, say, shortened, show_json, show_pairs, show_table

if TYPE_CHECKING:
    from rise.definitions.records import PromptRecord
    from rise.runtime.assembly.house import House
    from rise.runtime.prompts import Prompts
    from rise.runtime.publishing import Workflow, Workflows

WorkflowId = Annotated[
    str,
    typer.Argument(metavar="WORKFLOW_ID", help="As `rise workflows` lists it.", autocompletion=completing.workflow_ids),
]
PromptId = Annotated[
    str, typer.Argument(metavar="PROMPT_ID", help="As `rise prompts` lists it.", autocompletion=completing.prompt_ids)
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")]
Comment = Annotated[str, typer.Option("--comment", help="What is new, kept with the version.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")]


def register(app: typer.Typer) -> None:
    workflows = typer.Typer(help="What runs: publish it, go back, switch it off.", invoke_without_command=True)
    workflows.callback()(list_workflows)
    workflows.command("list")(list_workflows_by_name)
    workflows.command("show")(show_workflow)
    workflows.command("publish")(publish_workflow)
    workflows.command("history")(show_history)
    workflows.command("rollback")(roll_back_workflow)
    workflows.command("disable")(disable_workflow)
    workflows.command("enable")(enable_workflow)
    app.add_typer(workflows, name="workflows")
    prompts = typer.Typer(help="Texts for a language model, which stages refer to.", invoke_without_command=True)
    prompts.callback()(list_prompts)
    prompts.command("list")(list_prompts_by_name)
    prompts.command("show")(show_prompt)
    prompts.command("set")(set_prompt)
    app.add_typer(prompts, name="prompts")


# --- workflows ----------------------------------------------------------------------------------------------


def list_workflows(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """What there is, in code and of stages, and what it serves."""
    if context.invoked_subcommand is None:
        list_workflows_by_name(data_dir, as_json)


def list_workflows_by_name(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """What there is, in code and of stages, and what it serves."""

    async def work(house: House) -> None:
        from rise.api.workflows import shown

        known = await _workflows(house).list()
        if as_json:
            show_json({"workflows": [shown(one) for one in known]})
            return
        show_table(
            "workflows",
            ("workflow", "name", "made of", "status", "runs", "serves", "changed", "by"),
            [_row(one) for one in known],
            empty="there is no workflow: mark a function with @rise.workflow, or POST /api/workflows",
        )

    in_house(data_dir, work)


def show_workflow(workflow_id: WorkflowId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """One workflow: what somebody is at, what runs, and where."""

    async def work(house: House) -> None:
        _tell(await _workflows(house).get(workflow_id), as_json)

    in_house(data_dir, work)


def publish_workflow(
    workflow_id: WorkflowId, comment: Comment = "", data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """The draft runs from the next message on, and so does what has waited for it."""

    async def work(house: House) -> None:
        published = await _workflows(house).publish(workflow_id, by=operator(), comment=comment)
        _tell_version(published, as_json)

    in_house(data_dir, work)


def show_history(workflow_id: WorkflowId, limit: Limit = 20, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """The versions that ran, newest first."""

    async def work(house: House) -> None:
        from rise.api.workflows import shown_version

        versions = await _workflows(house).history(workflow_id, limit=limit)
        rows = [shown_version(one, is_current=one is versions[0]) for one in versions]
        if as_json:
            show_json({"versions": rows})
            return
        columns = ("version", "when", "by", "serves", "comment")
        shown = [
            (row["version"], row["updatedAt"], row["updatedBy"], _yes(row["isChannelEnabled"]), row["comment"])
            for row in rows
        ]
        show_table(f"{workflow_id}, newest first", columns, shown, empty=f"{workflow_id} was never published")

    in_house(data_dir, work)


def roll_back_workflow(
    workflow_id: WorkflowId,
    version: Annotated[int, typer.Argument(min=1, help="One of `rise workflows history`.")],
    comment: Comment = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """A former version runs again, as the next one."""

    async def work(house: House) -> None:
        back = await _workflows(house).roll_back(workflow_id, version, by=operator(), comment=comment)
        _tell_version(back, as_json)

    in_house(data_dir, work)


def disable_workflow(workflow_id: WorkflowId, why: Why = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """It serves nothing any more; messages wait. Holds at once, through restarts and later versions."""
    _switch(workflow_id, False, why, data_dir, as_json)


def enable_workflow(workflow_id: WorkflowId, why: Why = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """It serves again, first what has waited."""
    _switch(workflow_id, True, why, data_dir, as_json)


def _switch(workflow_id: str, enabled: bool, why: str, data_dir: Path | None, as_json: bool) -> None:
    async def work(house: House) -> None:
        from rise.api.workflows import shown

        switched = await _workflows(house).switch(workflow_id, enabled=enabled, by=operator(), why=why)
        if as_json:
            show_json(shown(switched))
        else:
            say(f"{workflow_id} is switched {'on' if enabled else 'off: its messages wait'}")

    in_house(data_dir, work)


def _workflows(house: House) -> Workflows:
    from rise.runtime.assembly.operations import build_workflows

    return build_workflows(house)


def _row(workflow: Workflow) -> tuple[object, ...]:
    shown, published, updated = workflow.shown, workflow.published, workflow.updated
    status = f"{workflow.status}, edited since" if published and workflow.has_unpublished_changes else workflow.status
    return (
        workflow.workflow_id,
        shown.name,
        "code" if workflow.draft is None else f"stages: {len(shown.stages or ())}",
        status,
        f"version {published.version}" if published else "",
        _serves(workflow),
        updated.updated_at,
        updated.updated_by,
    )


def _serves(workflow: Workflow) -> str:
    if workflow.published is not None and not workflow.published.enabled:
        return "nothing: it is switched off"
    return ", ".join(workflow.bound_to)


def _tell(workflow: Workflow, as_json: bool) -> None:
    from rise.api.workflows import shown

    if as_json:
        show_json(shown(workflow))
        return
    named = ("workflow", "name", "made of", "status", "runs", "serves", "changed", "by")
    show_pairs([*zip(named, _row(workflow), strict=True)])
    show_table(
        "stages",
        ("stage", "kind", "text"),
        [(one["name"], one["kind"], shortened(str(_text_of(one)))) for one in workflow.shown.stages or ()],
        empty="its function is in the code",
    )


def _text_of(stage: dict[str, Any]) -> object:
    named = ("template", "promptId", "url", "function", "text", "workflow")
    return next((stage[name] for name in named if stage.get(name)), "")


def _tell_version(workflow: Workflow, as_json: bool) -> None:
    from rise.api.workflows import shown, warnings_of

    if as_json:
        show_json(shown(workflow))
        return
    for warning in warnings_of(workflow):
        complain(warning)
    published = workflow.published
    off = "" if published is None or published.enabled else "; it is switched off, though (`rise workflows enable`)"
    say(f"{workflow.workflow_id} runs as version {published.version if published else '-'}{off}")


def _yes(value: object) -> str:
    return "yes" if value else "no"


# --- prompts ------------------------------------------------------------------------------------------------


def list_prompts(context: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """All of them, and which workflows run with them."""
    if context.invoked_subcommand is None:
        list_prompts_by_name(data_dir, as_json)


def list_prompts_by_name(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """All of them, and which workflows run with them."""

    async def work(house: House) -> None:
        from rise.api.prompts import shown

        prompts = _prompts(house)
        known, used_by = await prompts.list(), await prompts.used_by()
        if as_json:
            show_json({"prompts": [shown(one, used_by.get(one.prompt_id, [])) for one in known]})
            return
        show_table(
            "prompts",
            ("prompt", "name", "version", "used by", "text", "changed", "by"),
            [
                (
                    one.prompt_id,
                    one.name,
                    one.version,
                    ", ".join(used_by.get(one.prompt_id, [])),
                    shortened(one.template),
                    one.updated_at,
                    one.updated_by,
                )
                for one in known
            ],
            empty="there is no prompt: `rise prompts set NAME --template TEXT` makes one",
        )

    in_house(data_dir, work)


def show_prompt(prompt_id: PromptId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """One prompt, and its versions."""

    async def work(house: House) -> None:
        prompts = _prompts(house)
        prompt = await prompts.get(prompt_id)
        used_by = (await prompts.used_by()).get(prompt_id, [])
        versions = await prompts.history(prompt_id, limit=20)
        if as_json:
            from rise.api.prompts import shown

            show_json(shown(prompt, used_by))
            return
        show_pairs(
            [
                ("prompt", prompt.prompt_id),
                ("name", prompt.name),
                ("version", prompt.version),
                ("used by", ", ".join(used_by)),
                ("placeholders", ", ".join(prompt.placeholders)),
                ("model", prompt.model),
                ("temperature", prompt.temperature),
                ("most tokens", prompt.max_tokens),
                ("system", prompt.system),
                ("template", prompt.template),
            ]
        )
        show_table("versions", ("version", "by", "comment"), [(one.version, one.by, one.comment) for one in versions])

    in_house(data_dir, work)


def set_prompt(
    name: Annotated[
        str,
        typer.Argument(
            help="The id of one that is there, or the name of a new one.", autocompletion=completing.prompt_ids
        ),
    ],
    template: Annotated[str | None, typer.Option("--template", help="The text.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Where the text is; - is what comes in.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told before it.")] = None,
    placeholder: Annotated[
        list[str] | None, typer.Option("--placeholder", help="A name of its own, which its stage fills.")
    ] = None,
    comment: Comment = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a prompt, or change one. What is not named stays as it is."""
    if template is not None and file is not None:
        raise typer.BadParameter("the text is either --template or --file")
    text = template if file is None else _read(file)
    changes: dict[str, Any] = {"template": text, "system": system}
    changes["placeholders"] = tuple(placeholder) if placeholder else None
    given = {field: value for field, value in changes.items() if value is not None}

    async def work(house: House) -> None:
        from rise.api.prompts import shown, warnings_of

        kept = await _set(_prompts(house), name, given, comment)
        if as_json:
            show_json(shown(kept, (await _prompts(house).used_by()).get(kept.prompt_id, [])))
        else:
            for warning in await warnings_of(_prompts(house), kept):
                complain(warning)
            say(f"{kept.prompt_id} is kept as version {kept.version}")

    in_house(data_dir, work)


async def _set(prompts: Prompts, name: str, given: dict[str, Any], comment: str) -> PromptRecord:
    import msgspec

    from rise.definitions.records import PromptRecord
    from rise.errors import PromptUnknown

    try:
        return await prompts.edit(
            name, lambda known: msgspec.structs.replace(known, **given), by=operator(), comment=comment
        )
    except PromptUnknown:
        if "template" not in given:
            raise
    return await prompts.create(PromptRecord(prompt_id="", name=name, **given), by=operator())


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error


def _prompts(house: House) -> Prompts:
    from rise.runtime.assembly.operations import build_prompts

    return build_prompts(house)

"""Workflows made of stages: edited as drafts, run as they were published, each version kept to look at and go back to.

Nothing of a draft runs. Publishing makes it the next version of what runs; going back publishes a former version again.
The switch of a workflow's channels is apart from both: it holds at once, and every later version keeps it. Workflows in
code are listed beside them, with that switch; everything else of theirs is changed in the code.

Each change is one version of one definition, said to all processes and in the audit log. What it was checked against
may be changed at the same moment; so that is looked at once more, after it is written, and said in its `warnings`.

Refuses: to publish what could not run; to remove what a binding serves with; to write over what a newer version of Rise
has written, or somebody else since (`VersionStale`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from rise.definitions.port import Definition, Definitions, Kind
from rise.definitions.records import (
    NEWER,
    STAGES,
    BindingRecord,
    DraftRecord,
    PromptRecord,
    WorkflowRecord,
    account_name,
    bindings_of,
    body_of,
    draft_of,
    is_switched_on,
    prompt_of,
    workflow_of,
)
from rise.envelope import definition_id_of
from rise.errors import PayloadInvalid, StateConflict, VersionStale, VersionUnknown, WorkflowUnknown
from rise.runtime.differences import Difference, differences
from rise.runtime.editor import Editor
from rise.runtime.versions import TRIES, Since, Versions, since

NAME_CHARS_MAX: Final = 100
COMMENT_CHARS_MAX: Final = 500
VERSION_MAX: Final = (1 << 31) - 1

Check = Callable[[Any], object]
"""Raises `PayloadInvalid`, with the field, for stages that could not run."""

StagesNamed = Callable[[str], Collection[str]]
"""The stages whose results a template names."""

SecretsNamed = Callable[[Any], Sequence[tuple[str, str]]]
"""The secrets that stages name, each after its field."""

_EVERYTHING = (Kind.WORKFLOW, Kind.PUBLISHED, Kind.BINDINGS)


class WorkflowStatus(StrEnum):
    DRAFT = "draft"
    """It was never published."""
    PUBLISHED = "published"
    ABSENT = "absent"
    """The code that was loaded last does not have it."""


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as people see it: what somebody is at, what runs, and where."""

    workflow_id: str
    draft: DraftRecord | None
    """None: its function is in the code."""
    published: WorkflowRecord | None
    bound_to: tuple[str, ...] = ()
    """Channels' accounts, such as `telegram:7`, where messages meet it; not where its binding is off."""
    warnings: tuple[str, ...] = ()
    """Of what was published this moment: what was changed at the same, without which it cannot run."""

    @property
    def status(self) -> WorkflowStatus:
        if self.published is None:
            return WorkflowStatus.DRAFT
        return WorkflowStatus.PUBLISHED if self.published.published else WorkflowStatus.ABSENT

    @property
    def shown(self) -> DraftRecord | WorkflowRecord:
        """What its name, stages and version are read from."""
        shown = self.draft or self.published
        assert shown is not None
        return shown

    @property
    def updated(self) -> DraftRecord | WorkflowRecord:
        """Of the draft and of what runs, what was written last."""
        shown, published = self.shown, self.published
        return published if published is not None and published.updated_at > shown.updated_at else shown

    @property
    def has_unpublished_changes(self) -> bool:
        return self.draft is not None and not _runs_as(self.draft, self.published)


class Workflows:
    """Look, edit, publish, go back, switch off and on, remove."""

    def __init__(
        self,
        definitions: Definitions,
        versions: Versions,
        editor: Editor,
        check: Check,
        stages_named: StagesNamed = lambda text: (),
        secrets_named: SecretsNamed = lambda stages: (),
    ) -> None:
        self._stages_named = stages_named
        self._secrets_named = secrets_named
        self._definitions = definitions
        self._versions = versions
        self._editor = editor
        self._check = check

    # --- looking ---

    async def list(self) -> list[Workflow]:
        """All there are, in code and of stages, in the order of their ids."""
        return _put_together((await self._definitions.latest(_EVERYTHING)).definitions)

    async def get(self, workflow_id: str) -> Workflow:
        """Raises `WorkflowUnknown`."""
        draft = await self._versions.last(Kind.WORKFLOW, workflow_id)
        published = await self._versions.last(Kind.PUBLISHED, workflow_id)
        bindings = (await self._definitions.latest([Kind.BINDINGS])).definitions
        for found in _put_together([*filter(None, (draft, published)), *bindings]):
            return found
        raise _unknown(workflow_id)

    async def history(self, workflow_id: str, *, limit: int) -> Sequence[Definition]:
        """What ran, newest first. Raises `WorkflowUnknown`."""
        await self.get(workflow_id)
        return await self._definitions.versions(Kind.PUBLISHED, workflow_id, limit=limit)

    async def difference(
        self, workflow_id: str, *, old: int | None = None, new: int | None = None
    ) -> Sequence[Difference]:
        """Between two versions that ran; without `old` from what runs now, without `new` to the draft.

        Raises `WorkflowUnknown`, and `VersionUnknown` for a version that is not there to be compared.
        """
        known = await self.get(workflow_id)
        former = known.published if old is None else await self._version(workflow_id, old, "from")
        if former is None:
            raise VersionUnknown(f"{workflow_id} was never published", field="from")
        latter = known.shown if new is None else await self._version(workflow_id, new, "to")
        return differences(_compared(former, latter), _compared(latter, former))

    async def since(self, workflow_id: str, version: int) -> Since | None:
        """What others have made of the draft since that version of it; None: nothing."""
        former, later = await self._versions.after(Kind.WORKFLOW, workflow_id, version)
        if not later:
            return None
        found = None
        if former is not None and later[0].body is not None:
            old, new = draft_of(former), draft_of(later[0])
            found = differences(_compared(old, new), _compared(new, old))
        return since(later, found)

    async def change_to(self, workflow_id: str, version: int) -> Sequence[Difference]:
        """What would be other if that version ran again. Raises `WorkflowUnknown` or `VersionUnknown`."""
        former = await self._version(workflow_id, version, "version")
        running = (await self.get(workflow_id)).published
        if running is None:
            raise VersionUnknown(f"{workflow_id} was never published", field="version")
        # Not its switch, which stays as it is.
        return differences(_as_written(running.name, running.stages), _as_written(former.name, former.stages))

    def change_by(self, workflow: Workflow, name: str, stages: Sequence[Any]) -> Sequence[Difference]:
        """What would be other than it runs now, or if nothing does, than the draft is, if this was published."""
        known = workflow.published or workflow.shown
        return differences(_as_written(known.name, known.stages), _as_written(name, list(stages)))

    async def examine(self, workflow_id: str, name: str, stages: Sequence[Any]) -> None:
        """Whether it could be published as it stands. Raises `PayloadInvalid`."""
        await self._check_whole(DraftRecord(workflow_id=workflow_id, name=name, stages=list(stages)))

    # --- editing ---

    async def create(self, name: str, stages: Sequence[Any], *, by: str) -> Workflow:
        """A draft. Raises `PayloadInvalid`, or `StateConflict` where the name's id is another's."""
        self._check(stages)
        workflow_id = definition_id_of("wf", name)
        taken = StateConflict(f"there is a workflow {workflow_id} already: take another name", field="name")
        if await self._versions.last(Kind.PUBLISHED, workflow_id) is not None:
            raise taken

        def change(last: Definition | None) -> bytes:
            if last is not None and last.body is not None:
                raise taken
            return body_of(DraftRecord(workflow_id=workflow_id, name=name, stages=list(stages)))

        await self._versions.change(Kind.WORKFLOW, workflow_id, change, by=by, action="create")
        return await self.get(workflow_id)

    async def edit(
        self,
        workflow_id: str,
        *,
        by: str,
        name: str | None = None,
        stages: Sequence[Any] | None = None,
        enabled: bool | None = None,
        version: int | None = None,
        why: str = "",
    ) -> Workflow:
        """Change the draft, and the switch; what is None stays. `version`: the one that was changed.

        Raises `WorkflowUnknown`, `PayloadInvalid`, `VersionStale`, or `StateConflict` if it is not to be edited here.
        """
        known = await self.get(workflow_id)
        _refuse_stale(known, version)
        if enabled is not None:
            _refuse_unpublished(known)  # before anything is written
        if name is not None or stages is not None:
            await self._edit_draft(workflow_id, by=by, name=name, stages=stages, version=version, why=why)
        if enabled is not None:
            return await self.switch(workflow_id, enabled=enabled, by=by, why=why)
        return await self.get(workflow_id)

    async def _edit_draft(
        self,
        workflow_id: str,
        *,
        by: str,
        name: str | None,
        stages: Sequence[Any] | None,
        version: int | None,
        why: str,
    ) -> None:
        await self._draft(workflow_id)
        if stages is not None:
            self._check(stages)

        def change(last: Definition | None) -> bytes:
            known = _editable(workflow_id, last)
            kept = known.stages if stages is None else list(stages)
            return body_of(msgspec.structs.replace(known, name=name or known.name, stages=kept))

        await self._versions.change(Kind.WORKFLOW, workflow_id, change, by=by, action="edit", why=why, expected=version)

    async def remove(self, workflow_id: str, *, by: str, version: int | None = None) -> Sequence[str]:
        """For good, though its versions stay readable to whoever makes one of the same name. Its bindings that are off,
        or meet nothing, go with it. Returns what to know of that.

        Raises `WorkflowUnknown`, `VersionStale`, or `StateConflict` where it is bound, or in the code.
        """
        known = await self.get(workflow_id)
        _refuse_stale(known, version)
        if known.bound_to:
            raise StateConflict(
                f"{workflow_id} is bound to {', '.join(known.bound_to)}: switch that off, or bind another there, first"
            )
        if known.draft is None and known.status is WorkflowStatus.PUBLISHED:
            raise StateConflict(f"{workflow_id} is in the code, and would come back with it: remove it there")
        # First, for nobody could ask for them by what is gone.
        warnings = await self._unbind(workflow_id, by=by)
        # What runs goes before its draft: cut off between the two, it is a draft again, and can be removed once more.
        for kind, there in ((Kind.PUBLISHED, known.published), (Kind.WORKFLOW, known.draft)):
            if there is not None:
                # With `version`, nothing that was written since it was looked at.
                expected = None if version is None else there.version
                await self._versions.change(
                    kind, workflow_id, lambda _: None, by=by, action="remove", expected=expected
                )
        places = ", ".join(one.name for one, _ in await self._bindings_of(workflow_id))
        return (
            [*warnings, f"{workflow_id} was bound to {places} meanwhile: what comes in waits"] if places else warnings
        )

    # --- what runs ---

    async def publish(self, workflow_id: str, *, by: str, comment: str = "", version: int | None = None) -> Workflow:
        """The draft runs from now on. `version`: of the draft that is meant. What changes nothing is no new version.

        Raises `WorkflowUnknown`, `VersionStale`, `PayloadInvalid` for what could not run, or `StateConflict`.
        """
        for _ in range(TRIES):
            # What runs, before the draft: if somebody publishes in between, theirs may be the newer draft.
            runs = await self._definitions.version(Kind.PUBLISHED, workflow_id)
            draft = await self._draft(workflow_id)
            if version is not None and version != draft.version:
                raise VersionStale.of(workflow_id, draft.version)
            with suppress(VersionStale):
                warnings = await self._run(draft, by=by, action="publish", why=comment, after=_version_of(runs))
                return msgspec.structs.replace(await self.get(workflow_id), warnings=warnings)
        raise VersionStale(f"{workflow_id} is being published by somebody else over and over; try again")

    async def roll_back(self, workflow_id: str, version: int, *, by: str, comment: str = "") -> Workflow:
        """That version runs again, as the next one. A draft without changes of its own becomes the same; one that
        somebody is at is left alone.

        Raises `WorkflowUnknown`, `VersionUnknown`, `PayloadInvalid` for what could run no more, or `StateConflict`.
        """
        draft, known = await self._draft(workflow_id), await self.get(workflow_id)
        former = await self._version(workflow_id, version, "version")
        if former.updated_by == NEWER or former.stages is None:
            raise StateConflict(f"version {version} of {workflow_id} is not one of stages that can be read here")
        as_former = msgspec.structs.replace(draft, name=former.name, stages=former.stages)
        why = comment or f"back to version {version}"
        warnings = await self._run(as_former, by=by, action="rollback", why=why)
        if not known.has_unpublished_changes:
            body = body_of(as_former)
            with suppress(VersionStale):  # somebody is at it since this moment
                await self._versions.change(
                    Kind.WORKFLOW, workflow_id, lambda _: body, by=by, action="edit", why=why, expected=draft.version
                )
        return msgspec.structs.replace(await self.get(workflow_id), warnings=warnings)

    async def switch(self, workflow_id: str, *, enabled: bool, by: str, why: str = "") -> Workflow:
        """Whether it may serve channels, from now on and in every later version.

        Raises `WorkflowUnknown`, or `StateConflict` if it was never published or cannot be read here.
        """
        _refuse_unpublished(await self.get(workflow_id))

        def change(last: Definition | None) -> bytes:
            if last is None or last.body is None:
                raise _unknown(workflow_id)
            record = workflow_of(last)
            if record.updated_by == NEWER:
                raise StateConflict(f"{workflow_id} was written by {NEWER}: change it with that")
            return body_of(msgspec.structs.replace(record, enabled=enabled))

        action = "enable" if enabled else "disable"
        await self._versions.change(Kind.PUBLISHED, workflow_id, change, by=by, action=action, why=why)
        return await self.get(workflow_id)

    # --- details ---

    async def _unbind(self, workflow_id: str, *, by: str) -> Sequence[str]:
        warnings = []
        for definition, one in await self._bindings_of(workflow_id):
            why = f"{workflow_id} is removed"
            await self._editor.unbind(one.channel, one.account, workflow_id, by=by, why=why, unless_met=True)
            if len(bindings_of(definition)) == 1 and one.own.bot_token is not None:
                warnings.append(f"nothing is bound to {definition.name} any more, and the token it had is gone, too")
        return warnings

    async def _bindings_of(self, workflow_id: str) -> Sequence[tuple[Definition, BindingRecord]]:
        """Each among those of its account."""
        latest = (await self._definitions.latest([Kind.BINDINGS])).definitions
        return [(kept, one) for kept in latest for one in bindings_of(kept) if one.workflow_id == workflow_id]

    async def _run(
        self, draft: DraftRecord, *, by: str, action: str, why: str, after: int | None = None
    ) -> tuple[str, ...]:
        """Returns what it has lost meanwhile. `after`: the version that runs so far; raises `VersionStale` if another
        does by then."""
        await self._check_whole(draft)
        record = WorkflowRecord(
            workflow_id=draft.workflow_id, name=draft.name, kind=STAGES, stages=draft.stages, enabled=True
        )

        def change(last: Definition | None) -> bytes:
            if last is None or last.body is None:
                return body_of(record)
            former = workflow_of(last)
            if former.kind != STAGES and former.updated_by != NEWER:
                raise StateConflict(f"{draft.workflow_id} is in the code by now: give this one another name")
            return body_of(msgspec.structs.replace(record, enabled=is_switched_on(last)))

        await self._versions.change(
            Kind.PUBLISHED, draft.workflow_id, change, by=by, action=action, why=why, expected=after
        )
        try:
            await self._check_whole(draft)
        except PayloadInvalid as error:
            return (f"somebody has changed what it needs meanwhile: {error.public_message}",)
        return ()

    async def _check_whole(self, draft: DraftRecord) -> None:
        """As they stand, and with the prompts and secrets that they ask for as these stand now."""
        self._check(draft.stages)
        latest = (await self._definitions.latest([Kind.PROMPT, Kind.SECRET])).definitions
        self._refuse_unknown_secrets(draft, {one.name for one in latest if one.kind is Kind.SECRET})
        prompts = {one.name: prompt_of(one) for one in latest if one.kind is Kind.PROMPT}
        for at, stage in enumerate(draft.stages):
            if prompt_id := prompt_used(stage):
                prompt = _refuse_unfilled(f"stages[{at}]", stage, prompt_id, prompts.get(prompt_id))
                if missing := not_before(stage, draft.stages[:at], prompt, self._stages_named):
                    raise PayloadInvalid(
                        f"stages[{at}].promptId: {prompt_id} names stages.{missing[0]}, which is not before it",
                        field=f"stages[{at}].promptId",
                    )

    def _refuse_unknown_secrets(self, draft: DraftRecord, known: Collection[str]) -> None:
        for field, name in self._secrets_named(draft.stages):
            if name not in known:
                unknown = f"{field} names secrets.{name}, which is not there: `rise secrets set {name}` keeps it"
                raise PayloadInvalid(unknown, field=field)

    async def _draft(self, workflow_id: str) -> DraftRecord:
        """To be changed. Raises `WorkflowUnknown` or `StateConflict`."""
        last = await self._versions.last(Kind.WORKFLOW, workflow_id)
        if last is None and await self._versions.last(Kind.PUBLISHED, workflow_id) is not None:
            raise StateConflict(f"{workflow_id} is in the code: change it there")
        return _editable(workflow_id, last)

    async def _version(self, workflow_id: str, version: int, field: str) -> WorkflowRecord:
        found = await self._definitions.version(Kind.PUBLISHED, workflow_id, version)
        if found is None or found.body is None:
            raise VersionUnknown(f"{workflow_id} has no published version {version} that is kept", field=field)
        return workflow_of(found)


def prompt_used(stage: Any) -> str | None:
    """The id of the stored prompt that a stage asks for."""
    prompt_id = stage.get("promptId") if isinstance(stage, dict) and stage.get("kind") == "prompt" else None
    return prompt_id if isinstance(prompt_id, str) else None


def unfilled(stage: Any, prompt: PromptRecord) -> list[str]:
    """The placeholders of the prompt that the stage gives no value for."""
    return [name for name in prompt.placeholders if name not in (stage.get("values") or {})]


def not_before(stage: Any, earlier: Iterable[Any], prompt: PromptRecord, stages_named: StagesNamed) -> list[str]:
    """The stages that the prompt names and that are not before the one that asks with it."""
    texts = [prompt.template, "" if stage.get("system") else prompt.system or ""]
    named = {name for text in texts for name in stages_named(text)}
    return sorted(named - {one.get("name") for one in earlier if isinstance(one, dict)})


def _refuse_unfilled(place: str, stage: Any, prompt_id: str, prompt: PromptRecord | None) -> PromptRecord:
    if prompt is None:
        raise PayloadInvalid(f"{place}.promptId names {prompt_id}, which is no prompt here", field=f"{place}.promptId")
    if missing := unfilled(stage, prompt):
        raise PayloadInvalid(
            f"{place}.values lacks {', '.join(missing)}, which {prompt_id} needs", field=f"{place}.values"
        )
    return prompt


def _version_of(last: Definition | None) -> int:
    return 0 if last is None else last.version


def _refuse_stale(known: Workflow, version: int | None) -> None:
    if version is not None and version != known.shown.version:
        raise VersionStale.of(known.workflow_id, known.shown.version)


def _refuse_unpublished(known: Workflow) -> None:
    if known.published is None:
        raise StateConflict(f"{known.workflow_id} was never published: it serves nothing", field="isChannelEnabled")


def _editable(workflow_id: str, last: Definition | None) -> DraftRecord:
    if last is None or last.body is None:
        raise _unknown(workflow_id)
    draft = draft_of(last)
    if draft.updated_by == NEWER:
        raise StateConflict(f"{workflow_id} was written by {NEWER}: change it with that")
    return draft


def _unknown(workflow_id: str) -> WorkflowUnknown:
    return WorkflowUnknown(f"there is no workflow {ascii(workflow_id)[1:-1][:80]}", field="workflowId")


def _put_together(found: Iterable[Definition]) -> list[Workflow]:
    drafts: dict[str, DraftRecord] = {}
    published: dict[str, WorkflowRecord] = {}
    bound: dict[str, list[str]] = {}
    for definition in found:
        if definition.kind is Kind.WORKFLOW:
            drafts[definition.name] = draft_of(definition)
        elif definition.kind is Kind.PUBLISHED:
            published[definition.name] = workflow_of(definition)
        else:
            for binding in (one for one in bindings_of(definition) if one.is_met):
                bound.setdefault(binding.workflow_id, []).append(account_name(binding.channel, binding.account))
    return [
        Workflow(
            workflow_id=name,
            draft=drafts.get(name),
            published=published.get(name),
            bound_to=tuple(bound.get(name, ())),
        )
        for name in sorted(drafts.keys() | published.keys())
    ]


def _runs_as(draft: DraftRecord, published: WorkflowRecord | None) -> bool:
    return published is not None and (draft.name, draft.stages) == (published.name, published.stages)


def _as_written(name: str, stages: list[Any] | None) -> dict[str, Any]:
    return {"name": name, "stages": stages}


def _compared(record: DraftRecord | WorkflowRecord, other: DraftRecord | WorkflowRecord) -> dict[str, Any]:
    """What both have."""
    shown = _as_written(record.name, record.stages)
    if isinstance(record, WorkflowRecord) and isinstance(other, WorkflowRecord):
        shown |= {"channels": list(record.channels), "isChannelEnabled": record.enabled}
    return shown

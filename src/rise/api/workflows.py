"""What people do with workflows: look, edit, publish, compare, go back, switch off and on, remove.

Only translates: what may be done, and what is refused, is in `rise.runtime.publishing`, for the command line too. A
viewer looks, without what stands in headers, an operator changes, an admin removes.

Refuses: a change that says nothing, and a field that it does not know (422).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from rise.api import description
from rise.api.answers import answer, answer_change
from rise.api.reading import read_json_body
from rise.api.security import Principal, Role, requires
from rise.channels.http import identifier, optional, read_object, refuse_unknown, required
from rise.clock import from_epoch_ms, iso
from rise.definitions.port import VERSIONS_KEPT, Definition
from rise.definitions.records import CODE, STAGES, workflow_of
from rise.errors import PayloadInvalid
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_workflows
from rise.runtime.differences import Difference
from rise.runtime.publishing import COMMENT_CHARS_MAX, NAME_CHARS_MAX, VERSION_MAX, Workflow
from rise.workflows.stages import keys_in_plain_text

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]

Version = Annotated[int | None, Query(ge=1, le=VERSION_MAX, description="The one that is meant; another is 409.")]
Limit = Annotated[int, Query(ge=1, le=VERSIONS_KEPT)]
From = Annotated[
    int | None, Query(alias="from", ge=1, le=VERSION_MAX, description="Published; left out: the one that runs.")
]
To = Annotated[int | None, Query(ge=1, le=VERSION_MAX, description="Published; left out: the draft.")]

HIDDEN: Final = "***"
_CREATE: Final = ("name", "stages")
_EDIT: Final = ("name", "stages", "isChannelEnabled", "version", "comment")
_PUBLISH: Final = ("comment", "version")
_ROLLBACK: Final = ("version", "comment")


def workflow_routes(house: House) -> APIRouter:
    """The routes under /api/workflows that do not run one."""
    router = APIRouter(prefix="/api/workflows")
    _add_looking(router, house)
    _add_editing(router, house)
    _add_publishing(router, house)
    return router


def _add_looking(router: APIRouter, house: House) -> None:
    workflows = build_workflows(house)

    @router.get("", **description.route(description.WORKFLOWS, *description.FROM_STORE))
    async def list_workflows(request: Request, principal: Viewer) -> Response:
        """All of them, in code and of stages."""
        return answer(request, [_shown_to(principal, one) for one in await workflows.list()])

    @router.get("/{workflow_id}", **description.route(description.WORKFLOW, *description.FROM_STORE, 404, 422))
    async def read(request: Request, workflow_id: str, principal: Viewer) -> Response:
        """What somebody is at, what runs, and where."""
        return answer(request, _shown_to(principal, await workflows.get(workflow_id)))

    @router.get("/{workflow_id}/history", **description.route(description.HISTORY, *description.FROM_STORE, 404, 422))
    async def history(request: Request, workflow_id: str, principal: Viewer, limit: Limit = 50) -> Response:
        """The versions that ran, newest first."""
        versions = await workflows.history(workflow_id, limit=limit)
        return answer(request, [shown_version(one, is_current=one is versions[0]) for one in versions])

    @router.get("/{workflow_id}/diff", **description.route(description.DIFFERENCES, *description.FROM_STORE, 404, 422))
    async def diff(
        request: Request, workflow_id: str, principal: Viewer, from_version: From = None, to: To = None
    ) -> Response:
        """What is other in one version than in another."""
        found = await workflows.difference(workflow_id, old=from_version, new=to)
        return answer(request, found if principal.role >= Role.OPERATOR else [without_headers_in(one) for one in found])


def _add_editing(router: APIRouter, house: House) -> None:
    workflows = build_workflows(house)

    @router.post(
        "",
        **description.route(
            description.WORKFLOW,
            *description.FROM_STORE,
            *description.WITH_BODY,
            409,
            takes=description.NEW_WORKFLOW,
        ),
    )
    async def create(request: Request, principal: Operator) -> Response:
        """Make a draft. Its id comes from its name."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _CREATE)
        name, stages = name_in(fields), required(fields, "stages", list)
        return await answer_change(
            request,
            house.editor,
            shown(await workflows.create(name, stages, by=principal.name)),
            warnings=plain_keys(stages),
        )

    @router.put(
        "/{workflow_id}",
        **description.route(
            description.WORKFLOW,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            409,
            takes=description.EDITED_WORKFLOW,
        ),
    )
    async def edit(request: Request, workflow_id: str, principal: Operator) -> Response:
        """Change the draft, or whether channels may be served, which holds at once. What is left out stays."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _EDIT)
        name = None if fields.get("name") is None else name_in(fields)
        stages, enabled = optional(fields, "stages", list), optional(fields, "isChannelEnabled", bool)
        if name is None and stages is None and enabled is None:
            raise PayloadInvalid("name what is to be changed: name, stages or isChannelEnabled", field="stages")
        edited = await workflows.edit(
            workflow_id,
            by=principal.name,
            name=name,
            stages=stages,
            enabled=enabled,
            version=optional(fields, "version", int),
            why=comment_in(fields),
        )
        return await answer_change(request, house.editor, shown(edited), warnings=plain_keys(stages))

    @router.delete(
        "/{workflow_id}", **description.route(description.REMOVED_WORKFLOW, *description.FROM_STORE, 404, 409, 422)
    )
    async def remove(request: Request, workflow_id: str, principal: Admin, version: Version = None) -> Response:
        """Remove it, and its bindings that are off or meet nothing, unless one serves with it."""
        warnings = await workflows.remove(workflow_id, by=principal.name, version=version)
        removed = {"workflowId": workflow_id, "isRemoved": True}
        return await answer_change(request, house.editor, removed, warnings=warnings)


def _add_publishing(router: APIRouter, house: House) -> None:
    workflows = build_workflows(house)

    @router.post(
        "/{workflow_id}/publish",
        **description.route(
            description.WORKFLOW,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            409,
            takes=description.PUBLICATION,
        ),
    )
    async def publish(request: Request, workflow_id: str, principal: Operator) -> Response:
        """The draft runs from the next message on, and so does what has waited for it."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _PUBLISH)
        version, comment = optional(fields, "version", int), comment_in(fields)
        published = await workflows.publish(workflow_id, by=principal.name, comment=comment, version=version)
        return await answer_change(request, house.editor, shown(published), warnings=warnings_of(published))

    @router.post(
        "/{workflow_id}/rollback",
        **description.route(
            description.WORKFLOW,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            409,
            takes=description.ROLLBACK,
        ),
    )
    async def rollback(request: Request, workflow_id: str, principal: Operator) -> Response:
        """A former version runs again, as the next one."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _ROLLBACK)
        version, comment = required(fields, "version", int), comment_in(fields)
        restored = await workflows.roll_back(workflow_id, version, by=principal.name, comment=comment)
        return await answer_change(request, house.editor, shown(restored), warnings=warnings_of(restored))


def warnings_of(workflow: Workflow) -> list[str]:
    """Of what was published this moment: what it lacks, and what is better done otherwise."""
    published = workflow.published
    return [*workflow.warnings, *([] if published is None else plain_keys(published.stages))]


def published_meanwhile(workflow_ids: Sequence[str]) -> list[str]:
    """Of what was removed: who has published a workflow with it at the same moment."""
    return [
        f"{one} was published with it meanwhile: its messages fail until it is published without"
        for one in workflow_ids
    ]


def plain_keys(stages: list[Any] | None) -> list[str]:
    """Of stages that were just read: a warning for each key that stands in them as it is."""
    return [
        f"{field} stands in plain text in the workflow and all its versions: if it is a key, keep it with "
        "`rise secrets set NAME` and write {{ secrets.NAME }}"
        for field in (keys_in_plain_text(stages) if stages else ())
    ]


def name_in(fields: dict[str, Any]) -> str:
    """What a person calls it. Raises `PayloadInvalid`."""
    return identifier(required(fields, "name", str), "name", chars_max=NAME_CHARS_MAX)


def comment_in(fields: dict[str, Any]) -> str:
    """Why it is changed. Raises `PayloadInvalid`."""
    comment = optional(fields, "comment", str) or ""
    if len(comment) > COMMENT_CHARS_MAX:
        raise PayloadInvalid(f"comment has more than {COMMENT_CHARS_MAX} characters", field="comment")
    return str(comment)


def shown(workflow: Workflow) -> dict[str, Any]:
    """As the API shows it."""
    edited, published, updated = workflow.shown, workflow.published, workflow.updated
    return {
        "workflowId": workflow.workflow_id,
        "name": edited.name,
        "kind": CODE if workflow.draft is None else STAGES,
        "stages": edited.stages,
        "version": edited.version,
        "publishedVersion": published.version if published else None,
        "status": workflow.status,
        "hasUnpublishedChanges": workflow.has_unpublished_changes,
        "isChannelEnabled": published.enabled if published else None,
        "boundTo": workflow.bound_to,
        "updatedAt": updated.updated_at,
        "updatedBy": updated.updated_by,
    }


def _shown_to(principal: Principal, workflow: Workflow) -> dict[str, Any]:
    """A viewer, who changes nothing, needs no key that stands in a header."""
    whole = shown(workflow)
    if principal.role < Role.OPERATOR:
        whole["stages"] = without_headers(whole["stages"])
    return whole


def without_headers(value: Any) -> Any:
    """Stages as whoever changes nothing sees them."""
    if isinstance(value, list):
        return [without_headers(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: _hidden(one) if name == "headers" else without_headers(one) for name, one in value.items()}


def _hidden(headers: Any) -> Any:
    return dict.fromkeys(headers, HIDDEN) if isinstance(headers, dict) else None if headers is None else HIDDEN


def without_headers_in(found: Difference) -> Difference:
    """The same of what is other in them."""
    hide = _hidden if ".headers" in found.path else without_headers
    return msgspec.structs.replace(found, old=hide(found.old), new=hide(found.new))


def shown_version(version: Definition, *, is_current: bool) -> dict[str, Any]:
    """One of those that ran."""
    record = workflow_of(version)
    is_removal = version.body is None
    return {
        "version": version.version,
        "name": record.name,
        "isChannelEnabled": record.enabled and not is_removal,
        "isCurrent": is_current,
        "isRemoval": is_removal,
        "comment": version.comment,
        "updatedAt": iso(from_epoch_ms(version.at_ms)),
        "updatedBy": version.by,
    }

"""Workflows: what runs and what somebody is at; edited, compared, tried, published, and taken back.

What may be done, and what is refused, is in `rise.runtime.publishing`. What somebody has typed comes back with every
refusal, beside the reason: also when somebody else was first, with who that was and what is other by now.

Refuses: to edit what is in the code; what would not fit a page; to take a former version back without having shown what
that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
from markupsafe import escape
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rise.api.security import Role
from rise.api.workflows import comment_in, name_in, shown_version, warnings_of, without_headers, without_headers_in
from rise.console.comparing import comparison
from rise.console.editing import (
    VERSIONS_LISTED,
    Conflict,
    Problem,
    conflict,
    listed,
    said_on,
    version_asked,
)
from rise.console.forms import Form
from rise.console.notes import leading_to, noted
from rise.console.rendering import Page
from rise.console.sessions import Session
from rise.console.trying import TryPane
from rise.envelope import encode_json
from rise.errors import PayloadInvalid, Rejected, StateConflict, VersionStale
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_workflows
from rise.runtime.differences import Difference
from rise.runtime.publishing import Workflow
from rise.runtime.trying import Trial, functions_named
from rise.runtime.written import line_of, stages_laid_out, stages_written

TEXT_BYTES_MAX: Final = 64_000
"""Of stages, as a page spells them: so that all of it stays below 150 KB."""
HISTORY_SHOWN: Final = 10

_FIRST: Final = [
    {"name": "say", "kind": "reply", "template": "You said: {{ text }}"},
]
"""What a new workflow begins with: it can be published, and be tried, as it is."""


class WrittenWorkflow(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the form."""

    name: str
    stages: str
    comment: str = ""
    version: int
    """Of the draft that it was made of."""


class WorkflowPages:
    def __init__(self, house: House, page: Page, pane: TryPane) -> None:
        self._page = page
        self._workflows = build_workflows(house)
        self._pane = pane

    # --- looking ---

    async def list(self, request: Request, session: Session) -> Response:
        return await self._list(request, session)

    async def _list(
        self, request: Request, session: Session, *, name: str = "", problem: Problem | None = None
    ) -> Response:
        workflows, following = listed(request, await self._workflows.list())
        values = {
            "workflows": workflows,
            "following": following,
            "removed": noted(request, session).get("removed", ""),
            "name": name,
            "problem": problem,
        }
        return self._page(request, "workflows.html", session, values, problem.status if problem else 200)

    async def show(self, request: Request, session: Session) -> Response:
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        said = noted(request, session)
        return await self._show(request, session, workflow, done=said.get("done", ""), warnings=said.get("warning", ""))

    async def compare(self, request: Request, session: Session) -> Response:
        """Between two versions that ran; nothing stands for what runs now, and for the draft."""
        workflow_id = request.path_params["workflow_id"]
        workflow = await self._workflows.get(workflow_id)
        old, new = version_asked(request, "from"), version_asked(request, "to")
        found = await self._workflows.difference(workflow_id, old=old, new=new)
        values = {
            "here": "workflows",
            "id": workflow_id,
            "name": workflow.shown.name,
            "old": old,
            "new": new,
            "olds": "what runs now",
            "news": "the draft" if workflow.draft is not None else "what runs now",
            "versions": await self._versions(workflow_id),
            "found": comparison(_seen_by(session, found)),
        }
        return self._page(request, "compare.html", session, values)

    # --- editing ---

    async def create(self, request: Request, session: Session, form: Form) -> Response:
        name = form.one("name")
        try:
            made = await self._workflows.create(name_in({"name": name}), _FIRST, by=session.principal.name)
        except (PayloadInvalid, StateConflict) as error:
            return await self._list(request, session, name=name, problem=Problem.of(error))
        return RedirectResponse(quote(made.workflow_id), 303)

    async def edit(self, request: Request, session: Session, form: Form) -> Response:
        """Save, publish, or only look whether it could be: as the button says that was pressed."""
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        draft = workflow.draft
        if draft is None:
            raise StateConflict(f"{workflow.workflow_id} is in the code: change it there")
        written = WrittenWorkflow(
            name=form.one("name"),
            stages=form.text("stages"),
            comment=form.one("comment"),
            version=form.number("version") or draft.version,
        )
        verb, is_saved = form.one("verb"), False
        try:
            stages = stages_written(written.stages)
            name, comment = name_in({"name": written.name}), comment_in({"comment": written.comment})
            if verb == "check":
                await self._workflows.examine(workflow.workflow_id, name, stages)
                changes = self._workflows.change_by(workflow, name, stages)
                return await self._show(request, session, workflow, written=written, checked=changes)
            saved = await self._saved(workflow, name, stages, written.version, comment, session)
            is_saved, written = True, msgspec.structs.replace(written, version=saved.shown.version)
            if verb != "publish":
                return self._done(session, saved, "saved")
            published = await self._workflows.publish(
                workflow.workflow_id, by=session.principal.name, comment=comment, version=saved.shown.version
            )
        except VersionStale as error:
            return await self._show_conflict(request, session, written, error)
        except Rejected as error:
            known = await self._workflows.get(workflow.workflow_id)
            problem = Problem.of(error, line=line_of(written.stages, error.field), is_saved=is_saved)
            return await self._show(request, session, known, written=written, problem=problem)
        return self._done(session, published, "published", warnings_of(published))

    async def _saved(
        self, workflow: Workflow, name: str, stages: Sequence[Any], version: int, comment: str, session: Session
    ) -> Workflow:
        """Unless nothing is other: then somebody else may have changed it since, and publishing finds that out."""
        draft = workflow.draft
        assert draft is not None
        is_same = encode_json([draft.name, draft.stages]) == encode_json([name, stages])  # and 1 is not true
        if is_same and draft.version == version:
            return workflow
        return await self._workflows.edit(
            workflow.workflow_id,
            by=session.principal.name,
            name=name,
            stages=stages,
            version=version,
            why=comment,
        )

    async def _show_conflict(
        self, request: Request, session: Session, written: WrittenWorkflow, error: VersionStale
    ) -> Response:
        """With what was typed, to be saved over theirs by whoever has seen what that is."""
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        since = await self._workflows.since(workflow.workflow_id, written.version)
        found = conflict(since, error)
        kept = msgspec.structs.replace(written, version=workflow.shown.version)
        return await self._show(request, session, workflow, written=kept, found=found)

    # --- what runs ---

    async def review_rollback(self, request: Request, session: Session) -> Response:
        """What going back would do, before it is done."""
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        return await self._review(request, session, workflow, version_asked(request, "version"), "")

    async def roll_back(self, request: Request, session: Session, form: Form) -> Response:
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        version, runs = form.number("version"), workflow.published.version if workflow.published else 0
        if version is None:
            raise PayloadInvalid("say which version", field="version")
        if form.number("runs") != runs:
            by = workflow.published.updated_by if workflow.published else ""
            return await self._review(request, session, workflow, version, f"{by} has published version {runs} since")
        restored = await self._workflows.roll_back(
            workflow.workflow_id, version, by=session.principal.name, comment=comment_in({"comment": form.one("why")})
        )
        return self._done(session, restored, "restored", warnings_of(restored))

    async def _review(
        self, request: Request, session: Session, workflow: Workflow, version: int | None, notice: str
    ) -> Response:
        if version is None:
            raise PayloadInvalid("say which version", field="version")
        found = await self._workflows.change_to(workflow.workflow_id, version)
        values = {
            "workflow": workflow,
            "version": version,
            "notice": notice,
            "found": comparison(_seen_by(session, found)),
        }
        return self._page(request, "rollback_workflow.html", session, values, 409 if notice else 200)

    async def switch(self, request: Request, session: Session, form: Form) -> Response:
        """Whether it may serve channels."""
        switched = await self._workflows.switch(
            request.path_params["workflow_id"],
            enabled=form.one("on") == "yes",
            by=session.principal.name,
            why=comment_in({"comment": form.one("why")}),
        )
        return self._done(session, switched, "switched")

    async def remove(self, request: Request, session: Session, form: Form) -> Response:
        workflow_id = request.path_params["workflow_id"]
        warnings = await self._workflows.remove(workflow_id, by=session.principal.name, version=form.number("version"))
        query = {"removed": workflow_id, "warning": "; ".join(warnings)}
        return leading_to("../../workflows", session, query)

    # --- trying ---

    async def attempt(self, request: Request, session: Session, form: Form) -> Response:
        """Run what is written beside, or what was saved, for one message."""
        workflow = await self._workflows.get(request.path_params["workflow_id"])
        draft = workflow.draft
        if draft is None:
            raise StateConflict(f"{workflow.workflow_id} is in the code, which is not run here")

        def trial() -> Trial:
            stages = stages_written(form.text("draft_stages")) if form.has("draft_stages") else draft.stages
            return Trial(name=workflow.workflow_id, stages=stages, text="")

        what = "what is written beside" if form.has("draft_stages") else f"draft {draft.version}, as it was saved"
        talk = await self._pane.answer(form, session, trial, what=what)
        if form.one("part"):
            return self._pane.part(talk)
        return await self._show(request, session, workflow, talk=talk)

    # --- the page ---

    async def _show(
        self,
        request: Request,
        session: Session,
        workflow: Workflow,
        *,
        written: WrittenWorkflow | None = None,
        problem: Problem | None = None,
        found: Conflict | None = None,
        checked: Sequence[Difference] | None = None,
        talk: Any = None,
        done: str = "",
        warnings: str = "",
    ) -> Response:
        draft = workflow.draft
        stages = without_headers(workflow.shown.stages) if not session.may("operator") else workflow.shown.stages
        text = written.stages if written else stages_laid_out(stages or [])
        changes = checked
        if changes is None and draft is not None and workflow.published is not None:
            changes = self._workflows.change_by(workflow, draft.name, draft.stages)
        values = {
            "workflow": workflow,
            "is_code": draft is None,
            "name": written.name if written else workflow.shown.name,
            "text": text,
            "is_too_large": written is None and len(escape(text)) > TEXT_BYTES_MAX,
            "comment": written.comment if written else "",
            "version": written.version if written else workflow.shown.version,
            "problem": problem,
            "conflict": found,
            "is_checked": checked is not None,
            "is_unsaved": written is not None and not (problem and problem.is_saved),
            "found": comparison(_seen_by(session, changes or ())),
            "history": (await self._versions(workflow.workflow_id))[:HISTORY_SHOWN],
            "functions": functions_named(workflow.shown.stages or ()),
            "talk": talk or self._pane.beginning(),
            "done": done,
            "warning": warnings,
        }
        status = problem.status if problem else 409 if found else 200
        return self._page(request, "workflow.html", session, values, status)

    async def _versions(self, workflow_id: str) -> Sequence[dict[str, Any]]:
        versions = await self._workflows.history(workflow_id, limit=VERSIONS_LISTED)
        return [shown_version(one, is_current=one is versions[0]) for one in versions]

    def _done(self, session: Session, workflow: Workflow, done: str, warnings: Sequence[str] = ()) -> Response:
        return said_on(f"../{quote(workflow.workflow_id)}", session, done, warnings)


def _seen_by(session: Session, found: Sequence[Difference]) -> Sequence[Difference]:
    """Without the keys that may stand in headers, for whoever changes nothing."""
    return found if session.principal.role >= Role.OPERATOR else [without_headers_in(one) for one in found]

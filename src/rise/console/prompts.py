"""Prompts: what models are asked with; changed, compared, tried, and taken back.

A prompt has no draft: what is published holds from the next message on, in every workflow that asks with it. So it can
be looked at first what would be other, and for whom. What is checked is in `rise.runtime.prompts`.

Refuses: what the API refuses, in its words, beside the field; with everything that was typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
from markupsafe import escape
from starlette.requests import Request
from starlette.responses import Response

from rise.api.prompts import edited, prompt_in, shown_version, warnings_of
from rise.api.workflows import comment_in, published_meanwhile
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
from rise.console.trying import Talk, TryPane
from rise.errors import PayloadInvalid, Rejected, VersionStale
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_prompts
from rise.runtime.differences import Difference
from rise.runtime.trying import Trial
from rise.runtime.written import unseen_in
from rise.workflows.stages import Prompt

TEXT_BYTES_MAX: Final = 64_000
"""Of its texts together, as a page spells them."""
HISTORY_SHOWN: Final = 10
PLACEHOLDERS_SHOWN: Final = 30

_FIELDS: Final = ("name", "template", "system", "placeholders", "model", "temperature", "maxTokens")


class WrittenPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the form, by its fields."""

    fields: dict[str, str]
    comment: str = ""
    version: int = 0

    def read(self) -> dict[str, Any]:
        """As it would be asked for over HTTP. Raises `PayloadInvalid`."""
        fields = self.fields
        return {
            "name": fields["name"],
            "template": fields["template"],
            "system": fields["system"] or None,
            "placeholders": fields["placeholders"].replace(",", " ").split(),
            "model": fields["model"] or None,
            "temperature": _number("temperature", fields["temperature"]),
            "maxTokens": _number("maxTokens", fields["maxTokens"]),
        }


class PromptPages:
    def __init__(self, house: House, page: Page, pane: TryPane) -> None:
        self._page = page
        self._prompts = build_prompts(house)
        self._pane = pane

    # --- looking ---

    async def list(self, request: Request, session: Session) -> Response:
        return await self._list(request, session)

    async def show(self, request: Request, session: Session) -> Response:
        prompt = await self._prompts.get(request.path_params["prompt_id"])
        said = noted(request, session)
        return await self._show(request, session, prompt, done=said.get("done", ""), warnings=said.get("warning", ""))

    async def compare(self, request: Request, session: Session) -> Response:
        """Between two versions; nothing stands for what holds now."""
        prompt_id = request.path_params["prompt_id"]
        current = await self._prompts.get(prompt_id)
        old, new = version_asked(request, "from"), version_asked(request, "to")
        former = current if old is None else await self._prompts.version(prompt_id, old)
        latter = current if new is None else await self._prompts.version(prompt_id, new)
        values = {
            "here": "prompts",
            "id": prompt_id,
            "name": current.name,
            "old": old,
            "new": new,
            "olds": "what holds now",
            "news": "what holds now",
            "versions": await self._versions(prompt_id),
            "found": comparison(self._prompts.difference(former, latter)),
        }
        return self._page(request, "compare.html", session, values)

    # --- changing ---

    async def create(self, request: Request, session: Session, form: Form) -> Response:
        written = _written(form)
        try:
            made = await self._prompts.create(prompt_in(written.read()), by=session.principal.name)
        except Rejected as error:
            return await self._list(request, session, written=written, problem=Problem.of(error))
        return said_on(quote(made.prompt_id), session, "published", await warnings_of(self._prompts, made))

    async def edit(self, request: Request, session: Session, form: Form) -> Response:
        """Publish it, or only look what would be other."""
        prompt = await self._prompts.get(request.path_params["prompt_id"])
        written = _written(form, version=prompt.version)
        try:
            fields, comment = written.read(), comment_in({"comment": written.comment})
            if form.one("verb") == "check":
                changed = edited(prompt, fields)
                await self._prompts.examine(changed)
                found = self._prompts.difference(prompt, changed)
                return await self._show(request, session, prompt, written=written, checked=found)
            kept = await self._prompts.edit(
                prompt.prompt_id,
                lambda known: edited(known, fields),
                by=session.principal.name,
                comment=comment,
                version=written.version,
            )
        except VersionStale as error:
            known = await self._prompts.get(prompt.prompt_id)
            found_since = conflict(await self._prompts.since(known.prompt_id, written.version), error)
            written = msgspec.structs.replace(written, version=known.version)
            return await self._show(request, session, known, written=written, clash=found_since)
        except Rejected as error:
            known = await self._prompts.get(prompt.prompt_id)
            return await self._show(request, session, known, written=written, problem=Problem.of(error))
        return said_on(f"../{quote(kept.prompt_id)}", session, "published", await warnings_of(self._prompts, kept))

    async def review_rollback(self, request: Request, session: Session) -> Response:
        version = version_asked(request, "version")
        return await self._review(request, session, request.path_params["prompt_id"], version, "")

    async def roll_back(self, request: Request, session: Session, form: Form) -> Response:
        prompt = await self._prompts.get(request.path_params["prompt_id"])
        version = form.number("version")
        if version is not None and form.number("runs") != prompt.version:
            notice = f"{prompt.updated_by} has published version {prompt.version} since"
            return await self._review(request, session, prompt.prompt_id, version, notice)
        if version is None:
            raise PayloadInvalid("say which version", field="version")
        why = comment_in({"comment": form.one("why")})
        kept = await self._prompts.roll_back(prompt.prompt_id, version, by=session.principal.name, comment=why)
        return said_on(f"../{quote(kept.prompt_id)}", session, "restored", await warnings_of(self._prompts, kept))

    async def remove(self, request: Request, session: Session, form: Form) -> Response:
        prompt_id = request.path_params["prompt_id"]
        users = await self._prompts.remove(prompt_id, by=session.principal.name, version=form.number("version"))
        query = {"removed": prompt_id, "warning": "; ".join(published_meanwhile(users))}
        return leading_to("../../prompts", session, query)

    # --- trying ---

    async def attempt(self, request: Request, session: Session, form: Form) -> Response:
        """Ask with what is written beside, or with what holds, and say what the model answers."""
        prompt = await self._prompts.get(request.path_params["prompt_id"])
        is_written = form.has("draft_template")

        def trial() -> Trial:
            tried = edited(prompt, _written(form, prefix="draft_").read()) if is_written else prompt
            values = {name: form.text(f"value_{name}") for name in tried.placeholders}
            return Trial(
                name=prompt.prompt_id,
                stages=[
                    {"name": "ask", "kind": "prompt", "promptId": prompt.prompt_id, "values": values},
                    {"name": "say", "kind": "reply", "template": "{{ stages.ask }}"},
                ],
                text="",
                prompts={prompt.prompt_id: _as_asked(tried)},
            )

        what = "what is written beside" if is_written else f"version {prompt.version}, which holds now"
        talk = await self._pane.answer(form, session, trial, what=what)
        if form.one("part"):
            return self._pane.part(talk)
        return await self._show(request, session, prompt, talk=talk)

    # --- the pages ---

    async def _list(
        self,
        request: Request,
        session: Session,
        *,
        written: WrittenPrompt | None = None,
        problem: Problem | None = None,
    ) -> Response:
        prompts, following = listed(request, await self._prompts.list())
        values = {
            "prompts": prompts,
            "following": following,
            "used_by": await self._prompts.used_by(),
            "removed": noted(request, session).get("removed", ""),
            "fields": written.fields if written else dict.fromkeys(_FIELDS, ""),
            "problem": problem,
        }
        return self._page(request, "prompts.html", session, values, problem.status if problem else 200)

    async def _show(
        self,
        request: Request,
        session: Session,
        prompt: Any,
        *,
        written: WrittenPrompt | None = None,
        problem: Problem | None = None,
        clash: Conflict | None = None,
        checked: Sequence[Difference] | None = None,
        talk: Talk | None = None,
        done: str = "",
        warnings: str = "",
    ) -> Response:
        fields = written.fields if written else _fields_of(prompt)
        texts = fields["template"] + fields["system"]
        values = {
            "prompt": prompt,
            "fields": fields,
            "is_too_large": written is None and len(escape(texts)) > TEXT_BYTES_MAX,
            "unseen": unseen_in(fields["template"]) + unseen_in(fields["system"]),
            "unused": self._prompts.unused(prompt),
            "used_by": (await self._prompts.used_by()).get(prompt.prompt_id, []),
            "comment": written.comment if written else "",
            "version": written.version if written else prompt.version,
            "problem": problem,
            "conflict": clash,
            "is_checked": checked is not None,
            "is_unsaved": written is not None and not (problem and problem.is_saved),
            "found": comparison(checked or ()),
            "history": (await self._versions(prompt.prompt_id))[:HISTORY_SHOWN],
            "placeholders": prompt.placeholders[:PLACEHOLDERS_SHOWN],
            "talk": talk or self._pane.beginning(),
            "done": done,
            "warning": warnings,
        }
        status = problem.status if problem else 409 if clash else 200
        return self._page(request, "prompt.html", session, values, status)

    async def _review(
        self, request: Request, session: Session, prompt_id: str, version: int | None, notice: str
    ) -> Response:
        """What going back would do, before it is done."""
        if version is None:
            raise PayloadInvalid("say which version", field="version")
        current, former = await self._prompts.get(prompt_id), await self._prompts.version(prompt_id, version)
        values = {
            "prompt": current,
            "version": version,
            "notice": notice,
            "used_by": (await self._prompts.used_by()).get(prompt_id, []),
            "found": comparison(self._prompts.difference(current, former)),
        }
        return self._page(request, "rollback_prompt.html", session, values, 409 if notice else 200)

    async def _versions(self, prompt_id: str) -> Sequence[dict[str, Any]]:
        versions = await self._prompts.history(prompt_id, limit=VERSIONS_LISTED)
        return [shown_version(one) | {"isCurrent": one is versions[0]} for one in versions]


def _written(form: Form, *, prefix: str = "", version: int = 0) -> WrittenPrompt:
    texts = ("template", "system")
    fields = {name: form.text(prefix + name) if name in texts else form.one(prefix + name) for name in _FIELDS}
    return WrittenPrompt(fields=fields, comment=form.one("comment"), version=form.number("version") or version)


def _fields_of(prompt: Any) -> dict[str, str]:
    return {
        "name": prompt.name,
        "template": prompt.template,
        "system": prompt.system or "",
        "placeholders": ", ".join(prompt.placeholders),
        "model": prompt.model or "",
        "temperature": "" if prompt.temperature is None else f"{prompt.temperature:g}",
        "maxTokens": "" if prompt.max_tokens is None else str(prompt.max_tokens),
    }


def _as_asked(prompt: Any) -> Prompt:
    return Prompt(
        template=prompt.template,
        system=prompt.system,
        model=prompt.model,
        temperature=prompt.temperature,
        max_tokens=prompt.max_tokens,
    )


def _number(name: str, written: str) -> float | int | None:
    if not written:
        return None
    try:
        return int(written) if name == "maxTokens" else float(written)
    except ValueError as error:
        raise PayloadInvalid(f"{name} is no number", field=name) from error

"""What people do with prompts: look, write, remove.

Only translates: what is checked is in `rise.runtime.prompts`, for the command line too. A viewer looks, an operator
changes, an admin removes.

Refuses: a field that it does not know, and a value out of its range (422).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from rise.api import description
from rise.api.answers import answer, answer_change
from rise.api.reading import read_json_body
from rise.api.security import Principal, Role, requires
from rise.api.workflows import Limit, Version, comment_in, name_in, published_meanwhile
from rise.channels.http import identifier, optional, read_object, refuse_unknown, required
from rise.definitions.port import Definition
from rise.definitions.records import PromptRecord, prompt_of
from rise.errors import PayloadInvalid
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_prompts
from rise.runtime.editor import Editor
from rise.runtime.prompts import MODEL_CHARS_MAX, PLACEHOLDERS_MAX, TEMPERATURE_MAX, TOKENS_MAX, Prompts

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]

_PLACEHOLDER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TEXT: Final = ("name", "template", "system", "placeholders", "model", "temperature", "maxTokens")
_CREATE: Final = _TEXT
_EDIT: Final = (*_TEXT, "version", "comment")


def prompt_routes(house: House) -> APIRouter:
    """The routes under /api/prompts."""
    router = APIRouter(prefix="/api/prompts")
    _add_looking(router, house)
    _add_changing(router, house)
    return router


def _add_looking(router: APIRouter, house: House) -> None:
    prompts = build_prompts(house)

    @router.get("", **description.route(description.PROMPTS, *description.FROM_STORE))
    async def list_prompts(request: Request, principal: Viewer) -> Response:
        """All of them."""
        used_by = await prompts.used_by()
        return answer(request, [shown(one, used_by.get(one.prompt_id, [])) for one in await prompts.list()])

    @router.get("/{prompt_id}", **description.route(description.PROMPT, *description.FROM_STORE, 404, 422))
    async def read(request: Request, prompt_id: str, principal: Viewer) -> Response:
        """As it is, and which workflows run with it."""
        prompt = await prompts.get(prompt_id)
        return answer(request, shown(prompt, (await prompts.used_by()).get(prompt_id, [])))

    @router.get(
        "/{prompt_id}/history", **description.route(description.PROMPT_HISTORY, *description.FROM_STORE, 404, 422)
    )
    async def history(request: Request, prompt_id: str, principal: Viewer, limit: Limit = 50) -> Response:
        """Its versions, newest first."""
        return answer(request, [shown_version(one) for one in await prompts.history(prompt_id, limit=limit)])


def _add_changing(router: APIRouter, house: House) -> None:
    prompts = build_prompts(house)

    @router.post(
        "",
        **description.route(
            description.PROMPT, *description.FROM_STORE, *description.WITH_BODY, 409, takes=description.NEW_PROMPT
        ),
    )
    async def create(request: Request, principal: Operator) -> Response:
        """Keep a prompt. Its id comes from its name."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _CREATE)
        created = await prompts.create(prompt_in(fields), by=principal.name)
        return await _answer_changed(request, house.editor, prompts, created)

    @router.put(
        "/{prompt_id}",
        **description.route(
            description.PROMPT,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            409,
            takes=description.EDITED_PROMPT,
        ),
    )
    async def edit(request: Request, prompt_id: str, principal: Operator) -> Response:
        """Change it, in all workflows that use it. What is left out stays; null empties what may be empty."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, _EDIT)
        changed = await prompts.edit(
            prompt_id,
            lambda known: edited(known, fields),
            by=principal.name,
            comment=comment_in(fields),
            version=optional(fields, "version", int),
        )
        return await _answer_changed(request, house.editor, prompts, changed)

    @router.delete(
        "/{prompt_id}", **description.route(description.REMOVED_PROMPT, *description.FROM_STORE, 404, 409, 422)
    )
    async def remove(request: Request, prompt_id: str, principal: Admin, version: Version = None) -> Response:
        """Remove it, unless a published workflow uses it."""
        users = await prompts.remove(prompt_id, by=principal.name, version=version)
        removed = {"promptId": prompt_id, "isRemoved": True}
        return await answer_change(request, house.editor, removed, warnings=published_meanwhile(users))


def prompt_in(fields: dict[str, Any]) -> PromptRecord:
    """A new one, which has no id yet. Raises `PayloadInvalid` with the field."""
    name, template = name_in(fields), required(fields, "template", str)
    return edited(PromptRecord(prompt_id="", name=name, template=template), fields)


def edited(prompt: PromptRecord, fields: dict[str, Any]) -> PromptRecord:
    """With what the fields say. Raises `PayloadInvalid` with the field."""
    changes: dict[str, Any] = {}
    if "name" in fields:
        changes["name"] = name_in(fields)
    if "template" in fields:
        changes["template"] = required(fields, "template", str)
    if "system" in fields:
        changes["system"] = optional(fields, "system", str)
    if "placeholders" in fields:
        changes["placeholders"] = _placeholders(fields)
    if "model" in fields:
        model = fields["model"]
        changes["model"] = None if model is None else identifier(model, "model", chars_max=MODEL_CHARS_MAX)
    if "temperature" in fields:
        changes["temperature"] = _number(fields, "temperature", 0, TEMPERATURE_MAX, int, float)
    if "maxTokens" in fields:
        changes["max_tokens"] = _number(fields, "maxTokens", 1, TOKENS_MAX, int)
    return msgspec.structs.replace(prompt, **changes)


def _placeholders(fields: dict[str, Any]) -> tuple[str, ...]:
    names = optional(fields, "placeholders", list) or []
    if len(names) > PLACEHOLDERS_MAX:
        raise PayloadInvalid(f"placeholders has more than {PLACEHOLDERS_MAX} names", field="placeholders")
    for at, name in enumerate(names):
        if type(name) is not str or not _PLACEHOLDER.fullmatch(name):
            wrong = f"placeholders[{at}] is no name: letters, digits and _, not a digit first, at most 64"
            raise PayloadInvalid(wrong, field=f"placeholders[{at}]")
    return tuple(dict.fromkeys(names))


def _number(fields: dict[str, Any], name: str, least: float, most: float, *types: type) -> Any:
    number = optional(fields, name, *types)
    if number is not None and not least <= number <= most:
        raise PayloadInvalid(f"{name} is {least:g} to {most:g}", field=name)
    return number


async def _answer_changed(request: Request, editor: Editor, prompts: Prompts, prompt: PromptRecord) -> Response:
    used_by = (await prompts.used_by()).get(prompt.prompt_id, [])
    return await answer_change(request, editor, shown(prompt, used_by), warnings=await warnings_of(prompts, prompt))


async def warnings_of(prompts: Prompts, prompt: PromptRecord) -> list[str]:
    """Of what was written this moment: what nobody asks for, and who has published without what it asks for."""
    lacking = [f"{lacking}: publish that with one" for _, lacking in await prompts.lacking(prompt)]
    return lacking + [f"placeholder_unused: {name}" for name in prompts.unused(prompt)]


def shown(prompt: PromptRecord, used_by: Sequence[str]) -> dict[str, Any]:
    """As the API shows it."""
    return {**_shown_text(prompt), "usedBy": used_by}


def shown_version(version: Definition) -> dict[str, Any]:
    return {**_shown_text(prompt_of(version)), "comment": version.comment, "isRemoval": version.body is None}


def _shown_text(prompt: PromptRecord) -> dict[str, Any]:
    return {
        "promptId": prompt.prompt_id,
        "name": prompt.name,
        "template": prompt.template,
        "system": prompt.system,
        "placeholders": prompt.placeholders,
        "model": prompt.model,
        "temperature": prompt.temperature,
        "maxTokens": prompt.max_tokens,
        "version": prompt.version,
        "updatedAt": prompt.updated_at,
        "updatedBy": prompt.updated_by,
    }

"""What an admin does with the secrets of `http` stages: set one, list their names, remove one.

Only translates: what is checked is in `rise.runtime.stage_secrets`, for the command line too.

Refuses: everybody but an admin, because whoever sets a secret decides what others' requests are made with; to answer
with a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from rise.api import description
from rise.api.answers import answer, answer_change
from rise.api.reading import read_json_body
from rise.api.security import Principal, Role, requires
from rise.api.workflows import published_meanwhile
from rise.channels.http import read_object, refuse_unknown, required
from rise.definitions.records import SecretRecord
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_stage_secrets

Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]


def secret_routes(house: House) -> APIRouter:
    """The routes under /api/secrets."""
    secrets = build_stage_secrets(house)
    router = APIRouter(prefix="/api/secrets")

    @router.get("", **description.route(description.SECRETS, *description.FROM_STORE))
    async def list_secrets(request: Request, principal: Admin) -> Response:
        """Their names, and which workflows run with them."""
        used_by = await secrets.used_by()
        return answer(request, [shown(one, used_by.get(one.name, [])) for one in await secrets.list()])

    @router.put(
        "/{secret}",
        **description.route(
            description.SECRET, *description.FROM_STORE, *description.WITH_BODY, 409, takes=description.SET_SECRET
        ),
    )
    async def set_secret(request: Request, secret: str, principal: Admin) -> Response:
        """Set a secret. It is sealed where it is kept, and shown nowhere."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, ("value",))
        value = required(fields, "value", str)
        kept = await secrets.set(secret, value, by=principal.name)
        return await answer_change(request, house.editor, shown(kept, (await secrets.used_by()).get(secret, [])))

    @router.delete("/{secret}", **description.route(description.REMOVED_SECRET, *description.FROM_STORE, 404, 409, 422))
    async def remove(request: Request, secret: str, principal: Admin) -> Response:
        """Remove one, unless a published workflow asks for it."""
        users = await secrets.remove(secret, by=principal.name)
        removed = {"name": secret, "isRemoved": True}
        return await answer_change(request, house.editor, removed, warnings=published_meanwhile(users))

    return router


def shown(secret: SecretRecord, used_by: Sequence[str]) -> dict[str, Any]:
    """All of it but itself."""
    return {
        "name": secret.name,
        "usedBy": used_by,
        "version": secret.version,
        "updatedAt": secret.updated_at,
        "updatedBy": secret.updated_by,
    }

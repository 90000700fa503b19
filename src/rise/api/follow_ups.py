"""What is to be said later: plan it, look at it, move it, cancel it.

Only translates: what is promised is in `rise.follow_ups`, for the command line too.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from rise.api import description
from rise.api.answers import answer, request_id_of
from rise.api.operations import LIMIT_MAX, WHY_CHARS_MAX
from rise.api.reading import read_json_body
from rise.api.security import Principal, Role, requires
from rise.api.tasks import answer_unpromised, trace_id_from
from rise.api.webhooks import continuing
from rise.errors import Unavailable
from rise.follow_ups.port import FollowUpId, ListedStatus
from rise.follow_ups.reading import read_follow_up, read_move
from rise.follow_ups.showing import shown
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_follow_ups
from rise.runtime.entrance import Entrance
from rise.runtime.operations import Operations

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]
Why = Annotated[str, Query(max_length=WHY_CHARS_MAX)]

_ONE: Final = description.route(description.FOLLOW_UP, *description.FROM_STORE, 404, 422)
_ENDED: Final = description.route(description.FOLLOW_UP, *description.FROM_STORE, 404, 409, 422)


def follow_up_routes(house: House, operations: Operations) -> APIRouter:
    """The routes under /api/follow-ups."""
    router = APIRouter(prefix="/api/follow-ups")
    _add_planning(router, house, Entrance(house, operations))
    _add_changing(router, house)
    _add_looking(router, house)
    return router


def _add_planning(router: APIRouter, house: House, entrance: Entrance) -> None:
    @router.post(
        "",
        **description.route(
            description.PLANNED,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            takes=description.ADD_FOLLOW_UP,
            headers=(description.IDEMPOTENCY_KEY,),
        ),
    )
    async def add(request: Request, principal: Operator) -> Response:
        """Say something, or run a workflow, in a chat later. It is durable when this answers 2xx."""
        body = await read_json_body(request.scope, request.receive)
        await house.chats.catch_up()
        asked = read_follow_up(
            body,
            accounts=house.channels.all_accounts(),
            chats=house.chats,
            principal=principal.name,
            key=request.headers.get("idempotency-key"),
            request_id=request_id_of(request.scope),
            trace_id=trace_id_from(request),
            clock=house.clock,
            queue_now_ms=house.queue.now_ms(),
        )
        key = asked.idempotency_key
        try:
            accepted = await entrance.accept(continuing(asked.incoming, request.headers.get("traceparent")))
        except Unavailable as error:
            return answer_unpromised(request, error, key)
        data = {"followUpId": accepted.task_id, "idempotencyKey": key, "duplicate": not accepted.new}
        return answer(request, data, headers={"Idempotency-Key": key})


def _add_changing(router: APIRouter, house: House) -> None:
    follow_ups = build_follow_ups(house)

    @router.patch(
        "/{follow_up_id}",
        **description.route(
            description.FOLLOW_UP,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            409,
            takes=description.MOVE_FOLLOW_UP,
        ),
    )
    async def move(request: Request, follow_up_id: str, principal: Operator) -> Response:
        """Another moment for one. 409 says that it had fired, or ended: nothing was moved then."""
        to = read_move(await read_json_body(request.scope, request.receive), clock=house.clock)
        return answer(request, shown(await follow_ups.move(FollowUpId(follow_up_id), to, who=principal.name)))

    @router.delete("/{follow_up_id}", **_ENDED)
    async def cancel(request: Request, follow_up_id: str, principal: Operator, why: Why = "") -> Response:
        """It will not fire. 409 says that it had fired, or ended; to be told twice changes nothing."""
        return answer(request, shown(await follow_ups.cancel(FollowUpId(follow_up_id), who=principal.name, why=why)))


def _add_looking(router: APIRouter, house: House) -> None:
    follow_ups = build_follow_ups(house)

    @router.get("", **description.route(description.FOLLOW_UPS, *description.FROM_STORE, 422))
    async def list_follow_ups(
        request: Request,
        principal: Viewer,
        channel: str | None = None,
        account: str | None = None,
        chat_id: Annotated[str | None, Query(alias="chatId")] = None,
        status: ListedStatus | None = None,
        limit: Limit = 100,
        after: str = "",
    ) -> Response:
        """What is planned, or waits for a person. `after`: `meta.next` of the page before, which may be short."""
        chat = chosen_chat(house, channel=channel, account=account, chat_id=chat_id)
        page = await follow_ups.page(chat, status=status, limit=limit, after=after)
        return answer(request, [shown(one) for one in page.rows], meta={"next": page.next})

    @router.get("/{follow_up_id}", **_ONE)
    async def look(request: Request, follow_up_id: str, principal: Viewer) -> Response:
        """One, planned or ended."""
        return answer(request, shown(await follow_ups.get(FollowUpId(follow_up_id))))


def chosen_chat(house: House, *, channel: str | None, account: str | None, chat_id: str | None) -> dict[str, Any]:
    """Whose follow-ups are meant, the chat by the id that it goes by."""
    if channel and account and chat_id:
        chat_id = house.chats.first_id(channel, account, chat_id) or chat_id
    return {"channel": channel, "account": account, "chat_id": chat_id}

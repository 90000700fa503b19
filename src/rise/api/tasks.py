"""What programs ask for: run a workflow, say something in a chat, read what became of it.

Refuses: what cannot be read (`channels/http.py`), and what would be refused later (`runtime/entrance.py`).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from rise.api import description
from rise.api.answers import answer, answer_error, request_id_of
from rise.api.reading import read_json_body
from rise.api.results import TaskResultBroker
from rise.api.security import Principal, Role, requires
from rise.api.webhooks import continuing, trace_id_of
from rise.channels import http
from rise.channels.port import Incoming
from rise.envelope import TaskId
from rise.errors import TaskUnknown, Unavailable
from rise.intake import Accepted
from rise.runtime.assembly.house import House
from rise.runtime.entrance import Entrance
from rise.runtime.operations import Operations
from rise.stories import shown

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]


def task_routes(house: House, operations: Operations, broker: TaskResultBroker) -> APIRouter:
    """The routes under /api that enter and read tasks."""
    router = APIRouter(prefix="/api")
    door = _Door(house, operations, broker)

    @router.post(
        "/workflows/apply",
        **description.route(
            description.ACCEPTED,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            also={202: description.ACCEPTED},
            takes=description.APPLY,
            headers=(description.IDEMPOTENCY_KEY,),
        ),
    )
    async def apply(request: Request, principal: Operator) -> Response:
        """Run a workflow. The message is durable when this answers 2xx."""
        return await door.apply(request, principal)

    @router.post(
        "/messages",
        **description.route(
            description.ACCEPTED,
            *description.FROM_STORE,
            *description.WITH_BODY,
            404,
            takes=description.MESSAGE,
            headers=(description.IDEMPOTENCY_KEY,),
        ),
    )
    async def send_message(request: Request, principal: Operator) -> Response:
        """Say something in a chat without an incoming message. It is durable when this answers 2xx."""
        return await door.send_message(request, principal)

    @router.get(
        "/workflows/tasks/{task_id}",
        **description.route(description.TASK, *description.FROM_STORE, 404, 422),
    )
    async def read_task(request: Request, task_id: str, principal: Viewer) -> Response:
        """A task with its attempts, result and replies, open or ended. A viewer sees not what it came as: `raw`."""
        whole = shown(await operations.story(TaskId(task_id)), house.retry_policy)
        if principal.role < Role.OPERATOR:
            del whole["payload"]["channelPayload"]["raw"]
        return answer(request, whole)

    return router


class _Door:
    """Reads what was asked for, has it made durable, and says what is known."""

    def __init__(self, house: House, operations: Operations, broker: TaskResultBroker) -> None:
        self._house = house
        self._operations = operations
        self._broker = broker
        self._entrance = Entrance(house, operations)

    async def apply(self, request: Request, principal: Principal) -> Response:
        body = await read_json_body(request.scope, request.receive)
        asked = self._house.channels.http.read_apply(
            body,
            principal=principal.name,
            key=request.headers.get("idempotency-key"),
            request_id=request_id_of(request.scope),
            trace_id=trace_id_from(request),
        )
        accepted = await self._accept(asked.incoming, request, asked.idempotency_key)
        if isinstance(accepted, Response):
            return accepted
        if asked.wait_seconds is None:
            return await self._answer_accepted(request, accepted, asked.idempotency_key, 200)
        run = await self._broker.wait(accepted.task_id, asked.wait_seconds)
        return await self._answer_accepted(request, accepted, asked.idempotency_key, 202 if run is None else 200)

    async def send_message(self, request: Request, principal: Principal) -> Response:
        body = await read_json_body(request.scope, request.receive)
        house = self._house
        await house.chats.catch_up()
        asked = http.read_message(
            body,
            accounts=house.channels.all_accounts(),
            principal=principal.name,
            key=request.headers.get("idempotency-key"),
            request_id=request_id_of(request.scope),
            trace_id=trace_id_from(request),
            chats=house.chats,
        )
        accepted = await self._accept(asked.incoming, request, asked.idempotency_key)
        if isinstance(accepted, Response):
            return accepted
        return await self._answer_accepted(request, accepted, asked.idempotency_key, 200)

    async def _accept(self, incoming: Incoming, request: Request, key: str) -> Accepted | Response:
        try:
            return await self._entrance.accept(continuing(incoming, request.headers.get("traceparent")))
        except Unavailable as error:
            return answer_unpromised(request, error, key)

    async def _answer_accepted(self, request: Request, accepted: Accepted, key: str, status: int) -> Response:
        """Where the task stands now. It was accepted: not being able to look must not say otherwise."""
        data: dict[str, Any] = {"taskId": accepted.task_id, "idempotencyKey": key, "duplicate": not accepted.new}
        try:
            story = await self._operations.story(accepted.task_id, looks_further=False)
        except (Unavailable, TaskUnknown):  # also while only the other copies hold it
            data |= {"status": "pending", "retry": None, "result": None}
        else:
            whole = shown(story, self._house.retry_policy)
            data |= {name: whole[name] for name in ("status", "reason", "retry", "outcome", "result", "error")}
        return answer(request, data, status=status, headers={"Idempotency-Key": key})


def answer_unpromised(request: Request, error: Unavailable, key: str) -> Response:
    """Not promised, but perhaps kept: with this key the caller can repeat it safely."""
    return answer_error(
        error, request_id_of(request.scope), data={"idempotencyKey": key}, headers={"Idempotency-Key": key}
    )


def trace_id_from(request: Request) -> str | None:
    """The trace that the request continues, if it says so."""
    trace_parent = request.headers.get("traceparent")
    return None if trace_parent is None else trace_id_of(trace_parent.encode("latin-1"))

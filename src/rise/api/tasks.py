"""What programs ask for: run a workflow, say something in a chat, read what became of it.

Refuses at the door what would be refused later: a workflow that is not published (404; 503 as long as the worker
has not said which are), what the channel cannot say and where no result can be posted (422); and a key that came
before with another body (422). What was accepted once is never refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from rise.api import description
from rise.api.answers import answer, answer_error, request_id_of
from rise.api.reading import read_json_body
from rise.api.results import TaskResultBroker
from rise.api.security import Principal, Role, requires
from rise.api.starting import refuse_while_starting
from rise.api.webhooks import trace_id_of
from rise.channels import http
from rise.channels.port import Incoming
from rise.envelope import TaskId, TaskType, task_id_of
from rise.errors import CapabilityClosed, KeyReused, PayloadInvalid, Rejected, TaskUnknown, Unavailable, WorkflowUnknown
from rise.intake import Accepted, Intake
from rise.runtime.assembly import House
from rise.runtime.audit import receipt_of
from rise.runtime.operations import Operations
from rise.stories import shown

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]


def build_tasks(house: House, operations: Operations, broker: TaskResultBroker) -> APIRouter:
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
        """A task with its attempts, result and replies, open or ended."""
        story = await operations.story(TaskId(task_id))
        return answer(request, shown(story, house.retry_policy))

    return router


class _Door:
    """Reads what was asked for, has it made durable, and says what is known."""

    def __init__(self, house: House, operations: Operations, broker: TaskResultBroker) -> None:
        self._house = house
        self._operations = operations
        self._broker = broker
        # Here callers choose their keys, whatever channel they send to.
        self._intake = requiring_same_body(house)

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
            return await self._accept_once(incoming)
        except Unavailable as error:
            # Not promised, but perhaps kept: with this key the caller can repeat it safely.
            return answer_error(
                error,
                request_id_of(request.scope),
                data={"idempotencyKey": key},
                headers={"Idempotency-Key": key},
            )

    async def _accept_once(self, incoming: Incoming) -> Accepted:
        try:
            await self._check(incoming)
        except (Rejected, CapabilityClosed):
            # What was accepted stays accepted, whatever has changed since: a repeat is answered as one.
            if await receipt_of(self._house.queue, incoming.delivery_key) is None:
                raise
        try:
            return await self._intake.accept(incoming)
        except KeyReused:
            if not await self._is_asked_again(incoming):
                raise
            return Accepted(task_id_of(incoming.delivery_key), new=False)

    async def _check(self, incoming: Incoming) -> None:
        """Refuse at the door what a run would refuse. Raises `WorkflowUnknown`, or `PayloadInvalid` with the field;
        `CapabilityClosed` while it is not known which workflows there are."""
        if incoming.workflow_id is not None:
            await self._check_workflow(incoming.workflow_id)
        if incoming.callback_url is not None:
            self._check_callback(incoming.callback_url)
        if incoming.task_type is TaskType.MESSAGE_SEND:
            channel = self._house.channels.by_name()[incoming.channel]
            http.refuse_unsayable(channel, self._intake.head_of(incoming))

    def _check_callback(self, url: str) -> None:
        receiver = self._house.channels.callback_receiver
        if receiver is None:
            raise PayloadInvalid(
                "callbackUrl needs RISE_CALLBACK_SECRET, with which results are signed: have it set, wait for the "
                "result, or read it later",
                field="callbackUrl",
            )
        receiver.refuse_unusable(url)

    async def _check_workflow(self, workflow_id: str) -> None:
        bindings = self._house.bindings
        if bindings.workflow(workflow_id) is None:
            await bindings.refresh()  # perhaps it was published this moment
        workflow = bindings.workflow(workflow_id)
        if workflow is None or not workflow.published or not workflow.enabled:
            refuse_while_starting(self._house.capabilities, f"whether {workflow_id} is among them")
            raise WorkflowUnknown(f"there is no published workflow {workflow_id}", field="workflowId")

    async def _is_asked_again(self, incoming: Incoming) -> bool:
        """Whether it asks for the same as the first of its key, if in other words."""
        try:
            first = await self._operations.story(task_id_of(incoming.delivery_key))
        except TaskUnknown:
            return False
        if not first.task.has_bytes:
            return False  # in the same words it would not have come here; what others asked for, nobody knows any more
        return http.asked_for(first.task.raw) == http.asked_for(incoming.raw)

    async def _answer_accepted(self, request: Request, accepted: Accepted, key: str, status: int) -> Response:
        """Where the task stands now. It was accepted: not being able to look must not say otherwise."""
        data: dict[str, Any] = {"taskId": accepted.task_id, "idempotencyKey": key, "duplicate": not accepted.new}
        try:
            story = await self._operations.story(accepted.task_id)
        except (Unavailable, TaskUnknown):  # also while only the other copies hold it
            data |= {"status": "pending", "retry": None, "result": None}
        else:
            whole = shown(story, self._house.retry_policy)
            data |= {name: whole[name] for name in ("status", "reason", "retry", "outcome", "result", "error")}
        return answer(request, data, status=status, headers={"Idempotency-Key": key})


def requiring_same_body(house: House) -> Intake:
    """The intake, for callers who choose their own keys: a key that comes with another body is refused."""
    return replace(house.intake, same_body_required=frozenset(house.channels.by_name()))


def trace_id_from(request: Request) -> str | None:
    """The trace that the request continues, if it says so."""
    trace_parent = request.headers.get("traceparent")
    return None if trace_parent is None else trace_id_of(trace_parent.encode("latin-1"))

"""What operators ask: is it well, what waits, why, and resume it or end it.

Only translates: what is done is in `rise.runtime.operations`, for the command line too.

Refuses: to resume everything for a body that selects nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rise.api import description
from rise.api.answers import answer
from rise.api.reading import read_json_body
from rise.api.security import Gate, Principal, Role, requires
from rise.channels.http import (
    CHAT_ID_CHARS_MAX,
    identifier,
    optional,
    read_object,
    refuse_unknown,
    required,
)
from rise.clock import from_epoch_ms, iso
from rise.envelope import Progress, Reason, Status, Task, TaskId, encode_json, envelope
from rise.errors import PayloadInvalid, Rejected, RoleInsufficient
from rise.ledger.port import Operation
from rise.queue.port import OpenTask, Selection
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_forgetting
from rise.runtime.forgetting import ChatNamed, traces_of, was_conversing
from rise.runtime.operations import RESUME_MAX, Operations
from rise.settings import CHANNELS
from rise.telemetry import copies_lacking, registry

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]

LIMIT_MAX: Final = 500
RAW_LIMIT_MAX: Final = 20
"""Rows of a list that is asked for with all its bytes."""
WHY_CHARS_MAX: Final = 500

_FORGET_FIELDS: Final = ("channel", "account", "chatId", "dropOpen", "why", "dryRun")
_RESUME_FIELDS: Final = ("taskIds", "reason", "channel", "account", "limit", "why", "dryRun")

_READY: Final = description.route(description.HEALTH, also={503: description.HEALTH}, enveloped=False)

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]
Why = Annotated[str, Query(max_length=WHY_CHARS_MAX)]


class CapabilityUnknown(Rejected):
    """Nothing of that name is watched here."""

    code = "capability_unknown"
    http_status = 404


def health_routes(house: House) -> APIRouter:
    """Whether it is well, for anybody who asks, however often: what is known is said from memory, for less than a
    refusal costs."""
    router = APIRouter()
    capabilities = house.capabilities

    @router.get("/healthz", **description.route(description.HEALTH, enveloped=False))
    async def health() -> Response:
        """200 as long as the process serves."""
        body = {"status": capabilities.overall(), "router": "behavior", "capabilities": capabilities.shown()}
        return _json(body)

    @router.get("/healthz/startup", **_READY)
    async def startup() -> Response:
        """200 when a message can be accepted, as far as is known; asks nobody."""
        return _ready(house)

    @router.get("/healthz/readiness", **_READY)
    async def readiness(request: Request) -> Response:
        """200 when a message can be accepted; asks the stores now, for one who asks too often not again."""
        gate: Gate = request.app.state.gate
        if gate.may_look(request.scope):
            await capabilities.probe_for_acceptance()
        return _ready(house)

    return router


def operation_routes(house: House, operations: Operations) -> APIRouter:
    """The routes under /internal, and the metrics."""
    router = APIRouter()
    _add_looking(router, house, operations)
    _add_changing(router, house, operations)
    return router


def _add_looking(router: APIRouter, house: House, operations: Operations) -> None:
    @router.get("/internal/tasks/suspended", **description.route(description.SUSPENDED, *description.FROM_STORE, 422))
    async def suspended(
        request: Request,
        principal: Viewer,
        channel: str | None = None,
        reason: Reason | None = None,
        limit: Limit = 100,
        after: str = "",
        raw: bool = False,
    ) -> Response:
        """What waits for a person or an event. `after`: the last task id of the page before. `raw`: with what it came
        as, for operators."""
        if raw and principal.role < Role.OPERATOR:
            raise RoleInsufficient(f"raw needs the role operator; {principal.name} has a lesser one")
        limit = min(limit, RAW_LIMIT_MAX) if raw else limit
        page = await operations.suspended(channel=channel, reason=reason, limit=limit, after=after)
        rows = [await _whole_row(house, task) if raw else _row(house, task) for task in page]
        following = page[-1].head.task_id if len(page) == limit else None
        return answer(request, [row for row in rows if row is not None], meta={"next": following})

    @router.get("/internal/tasks/stats", **description.route(description.STATS, *description.FROM_STORE))
    async def stats(request: Request, principal: Viewer) -> Response:
        """What is open, what waits and for how long, and how things ended."""
        return answer(request, await operations.stats())

    @router.get("/internal/operations", **description.route(description.OPERATIONS, *description.FROM_STORE, 422))
    async def audit_log(request: Request, principal: Viewer, limit: Limit = 100) -> Response:
        """What people changed, newest first."""
        return answer(request, [_shown_operation(entry) for entry in await house.ledger.operations(limit=limit)])

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        **description.route_in_text("text/plain", description.TEXT, *description.WITH_TOKEN),
    )
    async def metrics(principal: Viewer) -> Response:
        """For Prometheus."""
        await _count_copies(house)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _count_copies(house: House) -> None:
    """When somebody asks: it is a look into every journal of this process."""
    if house.stores.full is not None:
        lacking = await house.stores.full.relay.lacking()
        copies_lacking.clear()  # no figure rather than an old one
        for copy, count in lacking.items():
            copies_lacking.labels(copy).set(count)


def _add_changing(router: APIRouter, house: House, operations: Operations) -> None:
    forgetting = build_forgetting(house)

    @router.post(
        "/internal/tasks/resume",
        **description.route(
            description.RESUMED, *description.FROM_STORE, *description.WITH_BODY, takes=description.SELECTION
        ),
    )
    async def resume_selected(request: Request, principal: Operator) -> Response:
        """Let go on what is suspended: by task ids, reason, channel or account."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        selection, why, dry_run, limit = _selection(fields)
        resumed = await operations.resume_selected(selection, who=principal.name, why=why, limit=limit, dry_run=dry_run)
        return answer(request, {"count": len(resumed), "taskIds": resumed[:LIMIT_MAX], "dryRun": dry_run})

    @router.post(
        "/internal/tasks/{task_id}/resume",
        **description.route(description.RESUMED_ONE, *description.FROM_STORE, 404, 409, 422),
    )
    async def resume(request: Request, task_id: str, principal: Operator, why: Why = "") -> Response:
        """Let a suspended task go on."""
        await operations.resume(TaskId(task_id), who=principal.name, why=why)
        return answer(request, {"taskId": task_id, "status": Status.PENDING})

    @router.delete(
        "/internal/tasks/{task_id}", **description.route(description.DROPPED, *description.FROM_STORE, 404, 409, 422)
    )
    async def drop(request: Request, task_id: str, principal: Operator, why: Why = "") -> Response:
        """End a task for good, unanswered."""
        run = await operations.drop(TaskId(task_id), who=principal.name, why=why)
        return answer(request, {"taskId": task_id, "status": run.status, "by": run.by, "why": run.why})

    @router.post(
        "/internal/forget",
        **description.route(
            description.FORGOTTEN, *description.FROM_STORE, *description.WITH_BODY, 409, takes=description.FORGET
        ),
    )
    async def forget(request: Request, principal: Admin) -> Response:
        """Remove what was written in a chat and answered there, for good. `traces`: what stays, or is elsewhere, and
        until when."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        chat, why, drops_open, dry_run = _chat_to_forget(fields, house.channels.accounts())
        # Before anything is forgotten: what a store's refusal would hide then cannot be asked for again.
        conversed = await was_conversing(house.stores.definitions, chat)
        if dry_run:
            forgotten = await forgetting.foresee(chat)
        else:
            # The database is not written anew: nobody would be answered meanwhile. The command does that.
            forgotten = await forgetting.forget(
                chat, who=principal.name, why=why, drops_open=drops_open, compacts=False
            )
        traces = traces_of(house.settings, leaves_pieces=not forgotten.is_compact, was_conversing=conversed)
        return answer(request, {"dryRun": dry_run, **forgotten.shown(), "traces": traces})

    @router.post(
        "/internal/capabilities/{name}/probe",
        **description.route(description.PROBED, *description.WITH_TOKEN, 404, 422),
    )
    async def probe(request: Request, name: str, principal: Operator) -> Response:
        """Look now whether it works."""
        if house.capabilities.get(name) is None:
            raise CapabilityUnknown(f"there is no capability {ascii(name)[1:-1][:80]} here", field="name")
        await house.capabilities.probe(name)
        return answer(request, {"name": name} | house.capabilities.shown()[name])


def _selection(fields: dict[str, Any]) -> tuple[Selection, str, bool, int]:
    """What is to be resumed. At least one thing must narrow it: everything is never meant by an empty body."""
    refuse_unknown(fields, _RESUME_FIELDS)
    task_ids = optional(fields, "taskIds", list) or []
    if len(task_ids) > LIMIT_MAX or any(type(task_id) is not str for task_id in task_ids):
        raise PayloadInvalid(f"taskIds is a list of at most {LIMIT_MAX} strings", field="taskIds")
    selection = Selection(
        task_ids=tuple(TaskId(task_id) for task_id in task_ids),
        reason=_reason(optional(fields, "reason", str)),
        channel=optional(fields, "channel", str),
        account=optional(fields, "account", str),
    )
    if selection == Selection():
        raise PayloadInvalid("name what to resume: taskIds, reason, channel or account", field="reason")
    limit = optional(fields, "limit", int)
    if limit is not None and not 1 <= limit <= RESUME_MAX:
        raise PayloadInvalid(f"limit is 1 to {RESUME_MAX}", field="limit")
    return selection, why_in(fields), bool(optional(fields, "dryRun", bool)), limit or RESUME_MAX


def _chat_to_forget(fields: dict[str, Any], accounts: Mapping[str, str]) -> tuple[ChatNamed, str, bool, bool]:
    refuse_unknown(fields, _FORGET_FIELDS)
    channel = optional(fields, "channel", str) or "telegram"
    if channel not in CHANNELS:
        raise PayloadInvalid(f"channel is one of {', '.join(CHANNELS)}", field="channel")
    account = optional(fields, "account", str) or accounts.get(channel)
    if account is None:
        raise PayloadInvalid("no bot is configured: say whose chat it is", field="account")
    chat_id = identifier(required(fields, "chatId"), "chatId", chars_max=CHAT_ID_CHARS_MAX)
    why = why_in(fields)
    drops_open, dry_run = (bool(optional(fields, name, bool)) for name in ("dropOpen", "dryRun"))
    return ChatNamed(channel, account, chat_id), why, drops_open, dry_run


def why_in(fields: dict[str, Any], name: str = "why") -> str:
    """The reason of a change, as the audit log will have it. Raises `PayloadInvalid`."""
    why = optional(fields, name, str) or ""
    if len(why) > WHY_CHARS_MAX:
        raise PayloadInvalid(f"{name} has more than {WHY_CHARS_MAX} characters", field=name)
    return str(why)


def _reason(name: str | None) -> Reason | None:
    if name is None:
        return None
    try:
        return Reason(name)
    except ValueError as error:
        raise PayloadInvalid(f"reason is one of {', '.join(Reason)}", field="reason") from error


def _row(house: House, task: OpenTask) -> dict[str, Any]:
    """The envelope of a task in a list: everything but the bytes, which were not read."""
    progress = Progress(
        status=task.status,
        reason=task.reason,
        generation=task.generation,
        attempts=task.attempts,
        deaths=task.deaths,
        due_at_ms=task.due_at_ms,
        updated_at_ms=task.updated_at_ms,
        error=task.error,
    )
    shown = envelope(Task(task.head, b"", progress), retry_max=house.retry_policy.retries_allowed(task.head))
    del shown["payload"]["channelPayload"]["raw"]
    for unknown in ("raw_size_bytes", "raw_truncated"):
        del shown["payload"]["telemetry"][unknown]
    return shown | {"suspendedAt": iso(from_epoch_ms(task.updated_at_ms)), "deaths": task.deaths}


async def _whole_row(house: House, task: OpenTask) -> dict[str, Any] | None:
    """With its bytes; None if it has gone on meanwhile."""
    whole = await house.queue.get(task.head.task_id)
    if whole is None or whole.progress.status is not Status.SUSPENDED:
        return None
    shown = envelope(whole, retry_max=house.retry_policy.retries_allowed(whole.head))
    return shown | {"suspendedAt": iso(from_epoch_ms(task.updated_at_ms)), "deaths": task.deaths}


def _shown_operation(entry: Operation) -> dict[str, Any]:
    return {"at": iso(from_epoch_ms(entry.at_ms))} | {
        name: value for name, value in msgspec.structs.asdict(entry).items() if name != "at_ms"
    }


def _ready(house: House) -> Response:
    capabilities = house.capabilities
    closed = capabilities.not_accepting()
    body = {"status": capabilities.overall(), "router": "behavior", "capabilities": capabilities.shown()}
    if closed is None:
        return _json(body)
    return _json(body, 503, {"Retry-After": str(closed.retry_after_seconds)})


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(body), status, headers, "application/json")

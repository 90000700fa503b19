"""What is said over HTTP: one form for answers, one place where errors become status codes.

A refusal names what was wrong with the request; what is down answers 503 with the time after which to try
again; anything unexpected is a 500 with a request id and nothing of its cause, which is in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from rise.api.reading import Message, Receive, Scope, Send
from rise.api.security import HEADERS
from rise.envelope import encode_json, new_request_id
from rise.errors import CapabilityClosed, RateExceeded, Rejected, RiseError, StoreCorrupt, StoreUnavailable, Unavailable
from rise.runtime.editor import EVENT_QUEUED, Editor
from rise.telemetry import log, refused_total

RETRY_AFTER_SECONDS: Final = 5
"""Of the embedded store as well: every write finds out whether it works again."""
RETRY_AFTER_SECONDS_OF_SERVERS: Final = 30
RETRY_AFTER_SECONDS_CORRUPT: Final = 60
"""Waiting does not mend it; a person must come."""

_STATUS_NAMES: Final = {
    200: "ok",
    202: "accepted",
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "unprocessable",
    429: "too_many_requests",
    500: "internal_server_error",
    503: "service_unavailable",
}
CLOSING: Final = frozenset({400, 408, 413, 415})
"""After these the connection may still carry what was not read."""

_ENTRIES: Final = {
    "/api/workflows/apply": "http",
    "/api/messages": "http",
    "/webchat/messages": "webchat",
}
"""Where messages come in: what is refused there is counted."""


def answer(
    request: Request,
    data: Any,
    *,
    status: int = 200,
    meta: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`{"data": …, "meta": {"requestId", "status", "warnings"}}`"""
    body = {"data": data, "meta": _meta(request_id_of(request.scope), status) | dict(meta or {})}
    return Response(encode_json(body), status, dict(headers or {}), "application/json")


async def answer_change(request: Request, editor: Editor, data: Any, *, warnings: Sequence[str] = ()) -> Response:
    """The same for what was changed, which other hosts may not have heard of yet."""
    queued = [EVENT_QUEUED] if await editor.event_is_queued() else []
    return answer(request, data, meta={"warnings": [*warnings, *queued]})


def answer_error(
    error: RiseError, request_id: str, *, data: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The one place that decides how an error of ours is said over HTTP."""
    said = dict(headers or {})
    match error:
        case CapabilityClosed():
            return _answer_closed(error, request_id, data, said)
        case Unavailable(is_closed=True):
            return _answer_closed(_closed(error), request_id, data, said)
        case Unavailable():
            status, wait = 503, retry_after_seconds(error)
            said["Retry-After"] = str(wait)
        case RateExceeded():
            status = error.http_status
            said["Retry-After"] = str(error.retry_after_seconds)
        case Rejected():
            status = error.http_status
            if status == 401:
                said["WWW-Authenticate"] = "Bearer"
        case _:
            status = 500
    named: dict[str, Any] = {"code": error.code, "message": error.public_message}
    if isinstance(error, Rejected) and error.field is not None:
        named["field"] = error.field
    return _answer_named(named, status, request_id, data, said, _closed_by(error))


def retry_after_seconds(error: Unavailable) -> int:
    """Sized to what is down, where that is known."""
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    if isinstance(error, StoreUnavailable):
        return RETRY_AFTER_SECONDS_CORRUPT if isinstance(error, StoreCorrupt) else RETRY_AFTER_SECONDS
    return RETRY_AFTER_SECONDS_OF_SERVERS if error.is_closed else RETRY_AFTER_SECONDS


def request_id_of(scope: Scope) -> str:
    """The id this request has in answers, logs and envelopes. Ours; what clients claim is not one."""
    found: str | None = scope.get("rise.request_id")
    if found is None:
        found = scope["rise.request_id"] = new_request_id()
    return found


def _closed(error: Unavailable) -> CapabilityClosed:
    """A store that did not answer this time is said as one that is known to be away."""
    wait = retry_after_seconds(error)
    return CapabilityClosed(error.capability, "unavailable", error.public_message, retry_after_seconds=wait)


def _answer_closed(error: CapabilityClosed, request_id: str, data: Any, headers: dict[str, str]) -> Response:
    body = {
        "data": data,
        "capability": error.name,
        "status": error.status,
        "detail": error.detail,
        "error": {"code": error.code},
        "meta": _meta(request_id, 503),
    }
    headers["Retry-After"] = str(error.retry_after_seconds or RETRY_AFTER_SECONDS)
    return Response(encode_json(body), 503, headers, "application/json")


def _closed_by(error: RiseError) -> dict[str, str]:
    """What is named by everything that is refused for a capability's sake."""
    if not isinstance(error, Unavailable) or error.capability == Unavailable.capability:
        return {}
    return {"capability": error.capability, "status": "unavailable", "detail": error.public_message}


def _answer_named(
    named: Mapping[str, Any],
    status: int,
    request_id: str,
    data: Any,
    headers: dict[str, str],
    more: Mapping[str, str] | None = None,
) -> Response:
    if status in CLOSING:
        headers["Connection"] = "close"
    body = {"data": data, **(more or {}), "error": named, "meta": _meta(request_id, status)}
    return Response(encode_json(body), status, headers, "application/json")


def _meta(request_id: str, status: int) -> dict[str, Any]:
    return {"requestId": request_id, "status": _STATUS_NAMES.get(status, str(status)), "warnings": []}


class Border:
    """The edge of HTTP: every error gets its answer here, every answer its headers and request id."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        started = False

        async def send_headed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                complete_headers(message, request_id)
            await send(message)

        try:
            await self._app(scope, receive, send_headed)
        except RiseError as error:
            _count_refusal(scope["path"], error)
            response = answer_error(error, request_id)
        except Exception as error:  # noqa: BLE001 - border: logged whole, answered 500 without its cause
            log.error(
                "request.failed",
                request_id=request_id,
                path=scope["path"],
                error=error,
                exc_info=error,
                consequence="cut short, the beginning is sent" if started else "answered 500",
            )
            response = _answer_unexpected(request_id)
        else:
            return
        if not started:
            await response(scope, receive, send_headed)


def add_error_answers(app: FastAPI) -> None:
    """What the framework itself finds wrong is said in the same form."""

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        named = {"code": _STATUS_NAMES.get(error.status_code, "rejected"), "message": str(error.detail)}
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_at(request))
        return _answer_named(named, error.status_code, request_id_of(request.scope), None, headers)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        named = {"code": "payload_invalid", "message": f"{field}: {first['msg']}", "field": field}
        return _answer_named(named, 422, request_id_of(request.scope), None, {})


def _methods_at(request: Request) -> list[str]:
    """Of all routes with this path: the framework names only those of the first that it finds."""
    scopes = {method: dict(request.scope) | {"method": method} for method in ("DELETE", "GET", "PATCH", "POST", "PUT")}
    routes = request.app.routes
    return [method for method in scopes if any(one.matches(scopes[method])[0] is Match.FULL for one in routes)]


def _answer_unexpected(request_id: str) -> Response:
    named = {"code": RiseError.code, "message": "this should not have happened; the log has it under the request id"}
    return _answer_named(named, 500, request_id, None, {})


def _count_refusal(path: str, error: RiseError) -> None:
    if isinstance(error, Rejected) and path in _ENTRIES:
        refused_total.labels(_ENTRIES[path], error.code).inc()


def complete_headers(message: Message, request_id: str, common: Mapping[str, str] = HEADERS) -> None:
    """With the request's id, and with what all answers have in common where this one says nothing else."""
    headers = list(message["headers"])
    given = {name.lower() for name, _ in headers}
    for name, value in common.items():
        encoded = name.lower().encode()
        if encoded not in given:
            headers.append((encoded, value.encode()))
    headers.append((b"x-request-id", request_id.encode()))
    message["headers"] = headers

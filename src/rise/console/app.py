"""The console at `/console`: its routes, who may take them, and what every answer of it has in common.

Pages are made on the server and work without a script; a script makes them live. What is shown and done is in
`rise.runtime`: this room knows no store.

Refuses: whoever is not signed in, everywhere but where one signs in; whoever has too small a role; a form that no page
of the session has sent. A page says so in the words of the API.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router

from rise.api.answers import CLOSING, complete_headers, request_id_of, retry_after_seconds
from rise.api.app import App, build_app
from rise.api.reading import Message, Receive, Scope, Send
from rise.api.security import HEADERS, Door, Gate, Role
from rise.capabilities import REMEDIES
from rise.console.bindings import BindingPages
from rise.console.follow_ups import FollowUpPages
from rise.console.forms import FORM_BYTES_MAX, TEXTS_BYTES_MAX, Form, read_form
from rise.console.messages import MessagePages
from rise.console.now import NowPages
from rise.console.prompts import PromptPages
from rise.console.rendering import render
from rise.console.sessions import COOKIE, SESSION_SECONDS, Session, Sessions, SignInNeeded, require_same_site
from rise.console.suspended import SuspendedPages
from rise.console.trail import TrailPages
from rise.console.trying import TryPane
from rise.console.workflows import WorkflowPages
from rise.errors import RateExceeded, Rejected, RiseError, RoleInsufficient, Unavailable
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_tries
from rise.runtime.directory import derived_secret
from rise.telemetry import log

ROOT: Final = "/console"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere, in nobody's frame."""

_HEADERS: Final = HEADERS | {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PAGES: Final = Path(__file__).with_name("pages")
_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_PLACE: Final = re.compile(
    r"(messages|suspended|bindings|workflows|prompts|follow-ups|trail)"
    r"(/[A-Za-z0-9_][A-Za-z0-9_.%-]*){0,2}(\?[A-Za-z0-9_.~%&=+-]*)?"
)
"""A page that somebody who signs in may have come for."""
_SECTIONS: Final = {
    "now.html": "now",
    "messages.html": "messages",
    "message.html": "messages",
    "suspended.html": "suspended",
    "review.html": "suspended",
    "bindings.html": "bindings",
    "workflows.html": "workflows",
    "workflow.html": "workflows",
    "rollback_workflow.html": "workflows",
    "prompts.html": "prompts",
    "prompt.html": "prompts",
    "rollback_prompt.html": "prompts",
    "follow_ups.html": "follow-ups",
    "follow_up.html": "follow-ups",
    "trail.html": "trail",
}
"""Of the navigation, by page."""

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Handler = Callable[[Request, Session], Awaitable[Response]]
FormHandler = Callable[[Request, Session, Form], Awaitable[Response]]


class Front:
    """The API, and the console in front of it. An ASGI application."""

    def __init__(self, house: House) -> None:
        self.api: App = build_app(house)
        self.console = Console(house, self.api.state.gate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Messages come this way, too: they are to be told apart at once.
        if scope["type"] == "http" and scope["path"].startswith(ROOT) and scope["path"][len(ROOT) :][:1] in ("", "/"):
            await self.console(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            # Whoever opens the address that `rise serve` says. Relative, for a proxy may have put something before it.
            await RedirectResponse("console", 307, HEADERS)(scope, receive, send)
        else:
            await self.api(scope, receive, send)

    def close(self) -> None:
        self.console.close()
        self.api.close()


def build_front(house: House) -> Front:
    """Everything this process answers over HTTP, to programs and to people. Nothing is started."""
    return Front(house)


class Console:
    def __init__(self, house: House, gate: Gate) -> None:
        self._house = house
        self._gate = gate
        key = derived_secret(house.secrets.secret_key, "console sessions")
        self._sessions = Sessions(gate.credentials, key, house.clock)
        self._now = NowPages(house, self.page)
        self._bindings = BindingPages(house, self.page)
        self._tries = build_tries(house)
        self._router = Router(self._routes())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_headed(message: Message) -> None:
            # Here, and not by each page: what the framework itself refuses is an answer, too.
            if message["type"] == "http.response.start":
                complete_headers(message, request_id_of(scope), _HEADERS)
            await send(message)

        await self._router(scope, receive, send_headed)

    def close(self) -> None:
        self._now.close()
        self._bindings.close()
        self._tries.close()

    def _routes(self) -> list[Route]:
        trail, follow_ups = TrailPages(self._house, self.page), FollowUpPages(self._house, self.page)
        messages, suspended = MessagePages(self._house, self.page), SuspendedPages(self._house, self.page)
        return [
            Route(ROOT, self._looking(self._now.show)),
            Route(f"{ROOT}/events", self._looking(self._now.events)),
            Route(f"{ROOT}/messages", self._looking(messages.search)),
            Route(f"{ROOT}/messages/{{task_id}}", self._looking(messages.show)),
            Route(f"{ROOT}/messages/{{task_id}}/raw", self._looking(messages.raw, Role.OPERATOR)),
            Route(f"{ROOT}/suspended", self._looking(suspended.show)),
            Route(f"{ROOT}/suspended/review", self._changing(suspended.review), methods=["POST"]),
            Route(f"{ROOT}/suspended/resume", self._changing(suspended.resume), methods=["POST"]),
            Route(f"{ROOT}/suspended/drop", self._changing(suspended.drop), methods=["POST"]),
            Route(f"{ROOT}/bindings", self._looking(self._bindings.show)),
            Route(f"{ROOT}/bindings/change", self._changing(self._bindings.change), methods=["POST"]),
            Route(f"{ROOT}/bindings/switch", self._changing(self._bindings.switch), methods=["POST"]),
            Route(f"{ROOT}/bindings/test", self._changing(self._bindings.test), methods=["POST"]),
            *self._routes_of_texts(),
            Route(f"{ROOT}/follow-ups", self._looking(follow_ups.list)),
            Route(f"{ROOT}/follow-ups/{{follow_up_id}}", self._looking(follow_ups.show)),
            Route(f"{ROOT}/follow-ups/{{follow_up_id}}/cancel", self._changing(follow_ups.cancel), methods=["POST"]),
            Route(f"{ROOT}/follow-ups/{{follow_up_id}}/move", self._changing(follow_ups.move), methods=["POST"]),
            Route(f"{ROOT}/trail", self._looking(trail.show)),
            Route(f"{ROOT}/sign-in", self._border(self._show_sign_in)),
            Route(f"{ROOT}/sign-in", self._border(self._sign_in), methods=["POST"]),
            Route(f"{ROOT}/sign-out", self._changing(self._sign_out, Role.VIEWER), methods=["POST"]),
            *(Route(f"{ROOT}/{file.name}", _file(file)) for file in _PAGES.iterdir() if file.suffix in _MEDIA_TYPES),
            Route(f"{ROOT}/{{rest:path}}", self._looking(self._show_unknown), methods=_METHODS),
        ]

    def _routes_of_texts(self) -> list[Route]:
        """What is edited, of both kinds alike."""
        pane = TryPane(self._tries)
        workflows = WorkflowPages(self._house, self.page, pane)
        switch = self._changing(workflows.switch)
        return [
            *self._routes_of_one("workflows", "workflow_id", workflows),
            Route(f"{ROOT}/workflows/{{workflow_id}}/switch", switch, methods=["POST"]),
            *self._routes_of_one("prompts", "prompt_id", PromptPages(self._house, self.page, pane)),
        ]

    def _routes_of_one(self, place: str, name: str, pages: WorkflowPages | PromptPages) -> list[Route]:
        one = f"{ROOT}/{place}/{{{name}}}"
        return [
            Route(f"{ROOT}/{place}", self._looking(pages.list)),
            Route(f"{ROOT}/{place}/new", self._editing(pages.create), methods=["POST"]),
            Route(one, self._looking(pages.show)),
            Route(f"{one}/compare", self._looking(pages.compare)),
            Route(f"{one}/edit", self._editing(pages.edit), methods=["POST"]),
            Route(f"{one}/try", self._editing(pages.attempt), methods=["POST"]),
            Route(f"{one}/rollback", self._looking(pages.review_rollback, Role.OPERATOR)),
            Route(f"{one}/rollback", self._changing(pages.roll_back), methods=["POST"]),
            Route(f"{one}/remove", self._changing(pages.remove, Role.ADMIN), methods=["POST"]),
        ]

    # --- who may ---

    def _looking(self, handler: Handler, role: Role = Role.VIEWER) -> Callable[[Request], Awaitable[Response]]:
        async def admitted(request: Request) -> Response:
            return await handler(request, self._admit(request, role))

        return self._border(admitted)

    def _editing(self, handler: FormHandler) -> Callable[[Request], Awaitable[Response]]:
        """With texts."""
        return self._changing(handler, bytes_max=TEXTS_BYTES_MAX)

    def _changing(
        self, handler: FormHandler, role: Role = Role.OPERATOR, bytes_max: int = FORM_BYTES_MAX
    ) -> Callable[[Request], Awaitable[Response]]:
        async def admitted(request: Request) -> Response:
            session = self._admit(request, role)
            form = await read_form(request, bytes_max)
            self._sessions.require_own_form(session, form.one("form_key"), request.headers)
            return await handler(request, session, form)

        return self._border(admitted)

    def _admit(self, request: Request, role: Role) -> Session:
        try:
            session = self._sessions.read(request.cookies.get(COOKIE, ""))
        except SignInNeeded:
            if COOKIE in request.cookies:
                self._gate.note_refused(request.scope, Door.CONSOLE)
            self._gate.slow_down(request.scope, Door.CONSOLE)
            raise
        if session.principal.role < role:
            name = session.principal.name
            raise RoleInsufficient(f"this needs the role {role.name.lower()}; {name} has a lesser one")
        return session

    # --- signing in ---

    async def _show_sign_in(self, request: Request) -> Response:
        self._gate.slow_down(request.scope, Door.CONSOLE)
        return self._sign_in_page(request, "")

    async def _sign_in(self, request: Request) -> Response:
        require_same_site(request.headers)
        form = await read_form(request)
        cookie = self._sessions.open(form.one("token"))
        if cookie is None:
            self._gate.note_refused(request.scope, Door.CONSOLE)
            self._gate.slow_down(request.scope, Door.CONSOLE)
            return self._sign_in_page(request, "That token is not known here.", 401, wanted=form.one("next"))
        log.info("console.signed_in", who=self._sessions.read(cookie).principal.name)
        response = RedirectResponse(_next(form.one("next")), 303)
        # Without a path: the browser takes that of this page, also behind a proxy that has put one before it.
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=SESSION_SECONDS,
            path=None,
            secure=self._is_secure(request),
            httponly=True,
            samesite="strict",
        )
        return response

    async def _sign_out(self, request: Request, session: Session, form: Form) -> Response:
        response = RedirectResponse("sign-in", 303)
        response.set_cookie(COOKIE, "", max_age=0, path=None, httponly=True, samesite="strict")
        return response

    def _is_secure(self, request: Request) -> bool:
        """Where the public address is HTTPS, except on this machine: a proxy may have put any name for its own."""
        public = urlsplit(self._house.settings.public_url or "")
        is_remote = not _is_of_this_machine(request.headers.get("host", ""))
        return (public.scheme == "https" and is_remote) or request.url.scheme == "https"

    def _sign_in_page(self, request: Request, problem: str, status: int = 200, *, wanted: str = "") -> Response:
        """`wanted`: where a form says that somebody was going; else it is this page, if it can be."""
        path = request.url.path.removeprefix(ROOT).lstrip("/")
        here = f"{path}?{request.url.query}" if request.url.query else path
        if path not in ("sign-in", "sign-out") and request.method == "GET":
            wanted = here
        return self.page(request, "sign_in.html", None, {"problem": problem, "next": wanted}, status)

    async def _show_unknown(self, request: Request, session: Session) -> Response:
        if request.url.path == f"{ROOT}/":
            return RedirectResponse("../console", 308)
        return self._error_page(request, session, 404, "There is no such page", "The way in is “Now”.")

    # --- answers ---

    def page(
        self, request: Request, template: str, session: Session | None, values: Mapping[str, Any], status: int = 200
    ) -> Response:
        """A page, with what all of them show."""
        counted = self._house.pulse.counted
        base = _way_to_root(request.url.path)
        common = {
            "base": base,
            "home": "console" if base == "console" else f"{base}/../console",
            "here": _SECTIONS.get(template, ""),
            "session": session,
            "now": self._house.clock.now(),
            "suspended_count": None if counted is None else counted.suspended,
        }
        return HTMLResponse(render(template, common | dict(values)), status)

    def _border(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The edge of the console: every error is a page."""

        async def guarded(request: Request) -> Response:
            try:
                response = await answer(request)
            except SignInNeeded as error:
                response = self._sign_in_page(request, "" if not request.cookies else error.public_message, 401)
            except RiseError as error:
                response = self._refusal(request, error)
            except Exception as error:  # noqa: BLE001 - border: logged whole, answered 500 without its cause
                request_id = request_id_of(request.scope)
                log.error("request.failed", request_id=request_id, path=request.url.path, error=error, exc_info=error)
                words = f"The log has it under the request id {request_id}."
                response = self._error_page(request, None, 500, "This should not have happened", words)
            return response

        return guarded

    def _refusal(self, request: Request, error: RiseError) -> Response:
        session = self._session_or_none(request)
        match error:
            case Unavailable():
                title = "What this page is made from cannot be read now"
                remedy = error.remedy or REMEDIES.get(error.capability or "", "")
                words = f"{error.public_message}. To mend it: {remedy}" if remedy else error.public_message
                response = self._error_page(request, session, 503, title, words)
                response.headers["Retry-After"] = str(retry_after_seconds(error))
            case RateExceeded():
                response = self._error_page(request, session, 429, "Too many requests", error.public_message)
                response.headers["Retry-After"] = str(error.retry_after_seconds)
            case Rejected():
                response = self._error_page(request, session, error.http_status, "This cannot be done", str(error))
                if error.http_status in CLOSING:
                    response.headers["Connection"] = "close"
            case _:
                response = self._error_page(request, session, 500, "This should not have happened", str(error))
        return response

    def _session_or_none(self, request: Request) -> Session | None:
        try:
            return self._sessions.read(request.cookies.get(COOKIE, ""))
        except SignInNeeded:
            return None

    def _error_page(self, request: Request, session: Session | None, status: int, title: str, words: str) -> Response:
        section = request.url.path.removeprefix(f"{ROOT}/").partition("/")[0]
        back = section if section in _SECTIONS.values() else ""
        return self.page(
            request,
            "error.html",
            session,
            {"title": title, "words": words, "back": back, "was_form": request.method == "POST"},
            status,
        )


def _way_to_root(path: str) -> str:
    """How a page at this path names the console: relative, for a proxy may have put something before all of it."""
    depth = path.removeprefix(ROOT).count("/")
    return "console" if depth == 0 else "/".join([".", *[".."] * (depth - 1)])


def _next(wanted: str) -> str:
    """Where to go from the sign-in page: a page of the console, and nothing else a form may say."""
    return f"./{wanted}" if _PLACE.fullmatch(wanted) else "../console"


def _is_of_this_machine(host: str) -> bool:
    """Whether a `Host` header names the loopback, by which a browser reaches nobody else."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    except ValueError:
        return False


def _file(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """For anybody: a sign-in page must look like one, too. Asked for with every page, sent when it is another."""
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = HEADERS | {"Cache-Control": "no-cache", "ETag": tag}
    media_type = f"{_MEDIA_TYPES[file.suffix]}; charset=utf-8"

    async def served(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=dict(headers))
        return Response(content, headers=dict(headers), media_type=media_type)

    return served

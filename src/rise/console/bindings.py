"""Bindings: which workflow serves what, how well, and the ways to change that or to stop it at once.

Refuses: to change a binding that somebody else has changed since the page was made; to turn a kill switch on without
saying why, for whoever finds it on has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from rise.api.answers import request_id_of
from rise.console.forms import Form
from rise.console.notes import leading_to, noted
from rise.console.rendering import Page
from rise.console.sessions import Session
from rise.envelope import is_in_digits
from rise.errors import PayloadInvalid
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_channel_bindings, build_path_test
from rise.runtime.channel_bindings import BindingChange, BindingShown, routes_from

TEST_SECONDS_MAX: Final = 10.0
PAGE: Final = 20
ROUTES_SHOWN: Final = 20
"""So that a page stays below 150 KB. Where there are more they are changed with `rise bindings` or over HTTP."""
WHY_CHARS_MAX: Final = 500


class BindingPages:
    def __init__(self, house: House, page: Page) -> None:
        self._page = page
        self._bindings = build_channel_bindings(house)
        self._path = build_path_test(house)

    def close(self) -> None:
        """Nobody waits any longer for a test message."""
        self._path.close()

    async def show(self, request: Request, session: Session) -> Response:
        found, after = await self._all(), request.query_params.get("after", "")
        first = int(after) if is_in_digits(after) and len(after) < 8 else 0
        values = {
            "bindings": found[first : first + PAGE],
            "following": first + PAGE if len(found) > first + PAGE else 0,
            "routes_shown": ROUTES_SHOWN,
            "said": _said(noted(request, session)),
        }
        return self._page(request, "bindings.html", session, values)

    async def change(self, request: Request, session: Session, form: Form) -> Response:
        routes = form.one("routes") if form.one("routes_are_all") else None
        version = form.one("version")
        change = BindingChange(
            enabled=bool(form.one("enabled")),
            is_default=bool(form.one("is_default")),
            version=int(version) if is_in_digits(version) and len(version) < 16 else None,
        )
        if routes is not None:
            change = change.with_routes(routes_from(routes))
        shown = await self._bindings.change(*_named(form), change, by=session.principal.name, why=_why(form))
        return _done(session, "changed", shown)

    async def switch(self, request: Request, session: Session, form: Form) -> Response:
        is_on, reason = form.one("on") == "yes", _why(form)
        if is_on and not reason:
            raise PayloadInvalid("say why: whoever finds it on has to know", field="why")
        shown = await self._bindings.switch(*_named(form), on=is_on, reason=reason, by=session.principal.name)
        return _done(session, "killed" if is_on else "freed", shown)

    async def test(self, request: Request, session: Session, form: Form) -> Response:
        """Send a message the whole way; nobody hears of it."""
        workflow_id, channel, named = _named(form)
        account = await self._bindings.account(workflow_id, channel, named)
        request_id = request_id_of(request.scope)
        tested = await self._path.send(channel, account, seconds=TEST_SECONDS_MAX, request_id=request_id)
        took = "" if tested.seconds is None else f"{tested.seconds * 1000:.0f}"
        query = {"done": "tested", "name": f"{channel}:{account}", "status": tested.status, "ms": took}
        return leading_to("../bindings", session, query)

    async def _all(self) -> list[BindingShown]:
        """What is bound, and then what could be."""
        bound = await self._bindings.all()
        known = {(one.binding.channel, one.binding.account, one.binding.workflow_id) for one in bound}
        options = await self._bindings.options()
        unbound = [
            one
            for one in options
            if (one.binding.channel, one.binding.account, one.binding.workflow_id) not in known
            and not one.binding.version
        ]
        return [*sorted(bound, key=_place), *unbound]


def _place(shown: BindingShown) -> tuple[str, str, bool, str]:
    binding = shown.binding
    return binding.channel, binding.account, not binding.is_default, binding.workflow_id


def _named(form: Form) -> tuple[str, str, str | None]:
    return form.one("workflow"), form.one("channel"), form.one("account") or None


def _why(form: Form) -> str:
    return form.one("why")[:WHY_CHARS_MAX]


def _done(session: Session, done: str, shown: BindingShown) -> Response:
    name = f"{shown.binding.workflow_id} at {shown.binding.channel}:{shown.binding.account}"
    return leading_to("../bindings", session, {"done": done, "name": name, "warning": "; ".join(shown.warnings)})


def _said(query: Mapping[str, str]) -> dict[str, str]:
    """What was done before this page."""
    return {name: query.get(name, "") for name in ("done", "name", "warning", "status", "ms")}

"""Follow-ups: what is to be said later, when and to whom; another moment for one, or none at all.

What is promised is in `rise.follow_ups`; what is changed here is in the audit trail. Who keeps the time is said, for it
is another when Temporal is away.

Refuses: to list what has ended; one is looked at by its id, as long as it is known.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rise.api.follow_ups import chosen_chat
from rise.capabilities import CapabilityStatus
from rise.clock import from_epoch_ms
from rise.console.editing import Problem
from rise.console.forms import Form, searched
from rise.console.rendering import Page
from rise.console.sessions import Session
from rise.envelope import encode_json
from rise.errors import PayloadInvalid, StateConflict, TaskUnknown
from rise.follow_ups.moments import zone_named
from rise.follow_ups.port import FollowUp, FollowUpId, FollowUps, FollowUpStatus, ListedStatus, Missed
from rise.follow_ups.reading import read_move
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_follow_ups
from rise.settings import CHANNELS

ROWS: Final = 50
WHY_CHARS_MAX: Final = 500
OVERDUE_AFTER: Final = timedelta(seconds=10)
"""As is promised: what is due fires within it."""

MISSED_MEANINGS: Final = {
    Missed.FIRE: "said late",
    Missed.SKIP: "not said",
    Missed.COALESCE: "only the latest is said",
}
"""What becomes of one that is met more than a minute late; of those that coalesce, of a chat's."""


class FollowUpPages:
    def __init__(self, house: House, page: Page) -> None:
        self._house = house
        self._page = page
        self._follow_ups: FollowUps = build_follow_ups(house)

    async def list(self, request: Request, session: Session) -> Response:
        if found := await self._named(request):
            return RedirectResponse(f"follow-ups/{found}", 303)
        asked = {name: searched(request, name) for name in ("channel", "account", "chat", "status")}
        chat = chosen_chat(
            self._house,
            channel=asked["channel"] or None,
            account=asked["account"] or None,
            chat_id=asked["chat"] or None,
        )
        status = _status(asked["status"])
        page = await self._follow_ups.page(chat, status=status, limit=ROWS, after=searched(request, "after"))
        query = {name: value for name, value in asked.items() if value} | {"after": page.next}
        now = self._house.clock.now()
        values = {
            "asked": asked,
            "word": searched(request, "q"),
            "rows": sorted(page.rows, key=lambda one: (one.plan.due_at, one.follow_up_id)),
            "following": "?" + urlencode(query) if page.next else "",
            "is_first": not searched(request, "after"),
            "overdue": {one.follow_up_id for one in page.rows if is_overdue(one, now)},
            "channels": CHANNELS,
            "statuses": list(ListedStatus),
            "keeper": self._keeper(),
            "missed": MISSED_MEANINGS,
        }
        return self._page(request, "follow_ups.html", session, values)

    async def show(self, request: Request, session: Session) -> Response:
        one = await self._follow_ups.get(_id(request))
        return self._show(request, session, one, done=request.query_params.get("done", ""))

    async def cancel(self, request: Request, session: Session, form: Form) -> Response:
        why = form.one("why")[:WHY_CHARS_MAX]
        try:
            await self._follow_ups.cancel(_id(request), who=session.principal.name, why=why)
        except StateConflict as error:
            return await self._refused(request, session, error)
        return RedirectResponse(f"../{quote(_id(request))}?done=cancelled", 303)

    async def move(self, request: Request, session: Session, form: Form) -> Response:
        written = {name: form.one(name) for name in ("at", "timeZone")}
        try:
            to = read_move(encode_json(written), clock=self._house.clock)
            await self._follow_ups.move(_id(request), to, who=session.principal.name)
        except (PayloadInvalid, StateConflict) as error:
            return await self._refused(request, session, error, written)
        return RedirectResponse(f"../{quote(_id(request))}?done=moved", 303)

    async def _refused(
        self,
        request: Request,
        session: Session,
        error: PayloadInvalid | StateConflict,
        written: dict[str, str] | None = None,
    ) -> Response:
        """As it stands, with what was typed."""
        one = await self._follow_ups.get(_id(request))
        return self._show(request, session, one, problem=Problem.of(error), written=written)

    def _show(
        self,
        request: Request,
        session: Session,
        one: FollowUp,
        *,
        problem: Problem | None = None,
        written: dict[str, str] | None = None,
        done: str = "",
    ) -> Response:
        values = {
            "one": one,
            "created_at": from_epoch_ms(one.created_at_ms),
            "is_planned": one.status is FollowUpStatus.PLANNED,
            "is_overdue": is_overdue(one, self._house.clock.now()),
            "keeper": self._keeper(),
            "missed": MISSED_MEANINGS,
            "problem": problem,
            "written": written or {"at": _local(one), "timeZone": one.plan.time_zone or "UTC"},
            "done": done,
        }
        return self._page(request, "follow_up.html", session, values, problem.status if problem else 200)

    def _keeper(self) -> dict[str, str]:
        """Who keeps the time, and how that is at the moment."""
        if self._house.settings.temporal_address is None:
            return {"name": "the queue", "state": "", "words": "The queue of this installation keeps the time."}
        temporal = self._house.capabilities.get("temporal")
        if temporal is not None and temporal.status is CapabilityStatus.AVAILABLE:
            words = "Temporal keeps the time. What has not rung three seconds after its moment, the queue fires."
            return {"name": "Temporal", "state": temporal.status, "words": words}
        state = "not asked yet" if temporal is None else f"{temporal.status}: {temporal.detail}"
        words = f"Temporal is to keep the time, and is {state}. Meanwhile the queue does, a few seconds late."
        return {"name": "the queue", "state": "degraded", "words": words}

    async def _named(self, request: Request) -> FollowUpId | None:
        """One that is asked for by its id."""
        word = searched(request, "q")
        if not word.startswith("t_"):
            return None
        try:
            return (await self._follow_ups.get(FollowUpId(word))).follow_up_id
        except TaskUnknown:
            return None


def is_overdue(one: FollowUp, now: datetime) -> bool:
    """Whether it should have fired by now."""
    return one.status is FollowUpStatus.PLANNED and one.plan.due_at + OVERDUE_AFTER < now


def _local(one: FollowUp) -> str:
    """Its moment, as a field for dates and times has it."""
    zone = zone_named(one.plan.time_zone or "UTC")
    return one.plan.due_at.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S")


def _id(request: Request) -> FollowUpId:
    return FollowUpId(request.path_params["follow_up_id"])


def _status(name: str) -> ListedStatus | None:
    if not name:
        return None
    try:
        return ListedStatus(name)
    except ValueError as error:
        raise PayloadInvalid(f"status is one of {', '.join(ListedStatus)}", field="status") from error

"""What waits for a person: why, since when; and letting it go on or ending it, after a look at what that would do.

Refuses: to drop without a reason, and to take an empty choice for everything. What is done, and by whom, is in the
audit trail before it is done.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rise.console.forms import Form
from rise.console.messages import asked_for
from rise.console.rendering import Page
from rise.console.sessions import Session
from rise.envelope import Reason, TaskId, is_in_digits
from rise.errors import PayloadInvalid
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_messages, build_operations
from rise.runtime.messages import ENDINGS, MEANINGS, State
from rise.runtime.operations import DROP_MAX, RESUME_MAX, suspended_as
from rise.settings import CHANNELS

SHOWN_MAX: Final = 10
WHY_CHARS_MAX: Final = 500


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which suspended messages are meant: these, or all that match."""

    task_ids: tuple[TaskId, ...] = ()
    reason: Reason | None = None
    channel: str = ""

    @property
    def selection(self) -> Any:
        return suspended_as(task_ids=self.task_ids, reason=self.reason, channel=self.channel)


class SuspendedPages:
    def __init__(self, house: House, page: Page) -> None:
        self._house = house
        self._page = page
        self._messages = build_messages(house)
        self._operations = build_operations(house)

    async def show(self, request: Request, session: Session) -> Response:
        asked = msgspec.structs.replace(asked_for(request), state=State.SUSPENDED)
        page = await self._messages.page(asked, after=request.query_params.get("after", ""))
        counted = self._house.pulse.counted
        query = {"reason": asked.reason or "", "channel": asked.channel, "after": page.following}
        done = {name: _count(request, name) for name in ("resumed", "dropped", "refused")}
        values = {
            "asked": asked,
            "page": page,
            "following": "?" + urlencode(query) if page.following else "",
            "by_reason": _suspensions(counted.depth.by_reason) if counted else {},
            "counted": counted,
            "channels": CHANNELS,
            "reasons": list(Reason),
            "meanings": MEANINGS,
            "endings": ENDINGS,
            "done": done,
        }
        return self._page(request, "suspended.html", session, values)

    async def review(self, request: Request, session: Session, form: Form) -> Response:
        """What would be done, before it is."""
        choice = _choice(form)
        verb = "drop" if form.one("verb") == "drop" else "resume"
        look = self._operations.droppable if verb == "drop" else self._operations.resumable
        meant = await look(choice.selection)
        values = {
            "choice": choice,
            "verb": verb,
            "meant": meant,
            "shown": meant[:SHOWN_MAX],
            "chats": len({(one.head.channel, one.head.account, one.head.lane) for one in meant}),
            "limit": DROP_MAX if verb == "drop" else RESUME_MAX,
            "meanings": MEANINGS,
        }
        return self._page(request, "review.html", session, values)

    async def resume(self, request: Request, session: Session, form: Form) -> Response:
        choice, who = _choice(form), session.principal.name
        resumed = await self._operations.resume_selected(choice.selection, who=who, why=_why(form))
        return _done(choice, resumed=len(resumed))

    async def drop(self, request: Request, session: Session, form: Form) -> Response:
        choice, why = _choice(form), _why(form)
        if not why:
            raise PayloadInvalid("say why: who asks later what became of a message is told that", field="why")
        dropped = await self._operations.drop_selected(choice.selection, who=session.principal.name, why=why)
        return _done(choice, dropped=len(dropped.task_ids), refused=len(dropped.refused))


def _count(request: Request, name: str) -> int:
    """What an answer before this page said of itself; anybody may write an address, so it only speaks."""
    count = request.query_params.get(name, "")
    return int(count) if is_in_digits(count) and len(count) < 8 else 0


def _choice(form: Form) -> Choice:
    """Raises `PayloadInvalid` where nothing is chosen: everything is never meant by an empty form."""
    reason = form.one("reason")
    if reason and reason not in Reason.__members__.values():
        raise PayloadInvalid("there is no such reason", field="reason")
    by_filter = form.one("scope") == "filter"
    choice = Choice(
        task_ids=() if by_filter else tuple(TaskId(one) for one in form.all("task")),
        reason=Reason(reason) if reason and by_filter else None,
        channel=form.one("channel") if by_filter else "",
    )
    if not by_filter and not choice.task_ids:
        raise PayloadInvalid("choose at least one message", field="task")
    return choice


def _why(form: Form) -> str:
    return form.one("why")[:WHY_CHARS_MAX]


def _done(choice: Choice, **counts: int) -> Response:
    query: dict[str, Any] = {"reason": choice.reason or "", "channel": choice.channel} | counts
    return RedirectResponse("../suspended?" + urlencode({name: value for name, value in query.items() if value}), 303)


def _suspensions(by_reason: dict[str, int]) -> dict[Reason, int]:
    """Those that there are, most first; of words that a newer version has, none."""
    known = {Reason(reason): count for reason, count in by_reason.items() if reason in MEANINGS and count}
    return dict(sorted(known.items(), key=lambda one: -one[1]))

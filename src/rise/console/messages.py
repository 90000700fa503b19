"""Messages: a search, and one message's whole life on one page.

Refuses: to show the bytes of a message to whoever may only look at how things go.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rise.api.security import Role
from rise.console.forms import searched
from rise.console.rendering import Page, shown_bytes
from rise.console.sessions import Session
from rise.envelope import Reason, TaskId
from rise.errors import PayloadInvalid, TaskUnknown
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_messages
from rise.runtime.messages import ENDINGS, LOOK_MAX, MEANINGS, Asked, Messages, MessageStory, Moment, Row, State
from rise.settings import CHANNELS

FIRST_MOMENTS: Final = 5
LAST_MOMENTS: Final = 25
BEGINNING: Final = 20
"""Rows of each list, where several are shown."""
REPLIES_SHOWN: Final = 10
STAGES_SHOWN: Final = 30
"""So that a page stays below 150 KB, whatever somebody wrote: escaped, a character may become five."""


class MessagePages:
    def __init__(self, house: House, page: Page) -> None:
        self._house = house
        self._page = page
        self._messages: Messages = build_messages(house)

    async def search(self, request: Request, session: Session) -> Response:
        word = searched(request, "q")
        if (task_id := await self._messages.named(word)) is not None:
            return RedirectResponse(f"messages/{task_id}", 303)
        asked = asked_for(request, word)
        after = searched(request, "after")
        values = {
            "asked": asked,
            "word": word,
            "channels": CHANNELS,
            "states": list(State),
            "reasons": list(Reason),
            "account": searched(request, "account"),
            "look_max": LOOK_MAX,
        }
        return self._page(request, "messages.html", session, values | await self._lists(request, asked, after))

    async def _lists(self, request: Request, asked: Asked, after: str) -> dict[str, Any]:
        """One list if a state is asked for or a page is turned; else what is open, and what has ended lately."""
        if searched(request, "state"):
            return {"lists": [await self._list(request, asked, after)], "said": await self._said(request, asked)}
        both = [State.OPEN] if asked.reason else [State.OPEN, State.ENDED]
        lists = [await self._list(request, _with(asked, state), "", rows_max=BEGINNING) for state in both]
        return {"lists": lists, "said": await self._said(request, asked)}

    async def _list(self, request: Request, asked: Asked, after: str, *, rows_max: int = 0) -> dict[str, Any]:
        """`rows_max`: only the beginning, and the way to the rest."""
        page = await self._messages.page(asked, after=after)
        if rows_max and len(page.rows) > rows_max:
            whole = urlencode({**request.query_params, "state": asked.state.value})
            return {"asked": asked, "page": page, "rows": page.rows[:rows_max], "following": f"?{whole}"}
        query = {name: value for name, value in request.query_params.items() if value and name != "after"}
        following = urlencode(query | {"state": asked.state.value, "after": page.following})
        following = f"?{following}" if page.following else ""
        return {"asked": asked, "page": page, "rows": page.rows, "following": following}

    async def _said(self, request: Request, asked: Asked) -> list[Row] | None:
        """The chat's conversation, where one is named whole."""
        if not asked.chat_id or not asked.channel:
            return None
        known = self._house.channels.all_accounts().get(asked.channel, ())
        account = searched(request, "account") or next(iter(known), "")
        return await self._messages.chat(asked.channel, account, asked.chat_id) if account else None

    async def show(self, request: Request, session: Session) -> Response:
        life = await self._messages.story(TaskId(request.path_params["task_id"]))
        values = {
            "life": life,
            "moments": _moments(life),
            "replies": life.story.replies[:REPLIES_SHOWN],
            "stages": _stages(life),
            "meanings": MEANINGS,
            "endings": ENDINGS,
            "raw": shown_bytes(life.story.task.raw) if session.may(Role.OPERATOR.name) else None,
        }
        return self._page(request, "message.html", session, values)

    async def raw(self, request: Request, session: Session) -> Response:
        """The bytes as they came, to be kept as a file: no browser is to guess what they are."""
        task = (await self._messages.story(TaskId(request.path_params["task_id"]))).story.task
        if not task.has_bytes:
            raise TaskUnknown("the bytes that it came as have been forgotten", field="taskId")
        headers = {"Content-Disposition": f'attachment; filename="{task.task_id}.bin"'}
        return Response(task.raw, headers=headers, media_type="application/octet-stream")


def asked_for(request: Request, word: str = "") -> Asked:
    """What a query of a list asks for. Raises `PayloadInvalid`."""
    state, reason = searched(request, "state") or State.OPEN, searched(request, "reason")
    try:
        return Asked(
            state=State(state),
            channel=searched(request, "channel"),
            chat_id=searched(request, "chat"),
            reason=Reason(reason) if reason else None,
            text=word,
        )
    except ValueError as error:
        raise PayloadInvalid("there is no such state or reason", field="state") from error


def _with(asked: Asked, state: State) -> Asked:
    return Asked(state=state, channel=asked.channel, chat_id=asked.chat_id, reason=asked.reason, text=asked.text)


def _moments(life: MessageStory) -> list[Moment]:
    """How it began and how it ended, if not all of what happened."""
    left_out = len(life.moments) - FIRST_MOMENTS - LAST_MOMENTS
    if left_out <= 0:
        return life.moments
    between = Moment(None, f"{left_out} more", "`rise tasks show` has them all")
    return [*life.moments[:FIRST_MOMENTS], between, *life.moments[-LAST_MOMENTS:]]


def _stages(life: MessageStory) -> list[dict[str, Any]]:
    """What can be read of them, each with its share of the longest: a bar is as long as the stage took."""
    records = [one for one in life.story.stages if isinstance(one, dict)][:STAGES_SHOWN]
    times = [_milliseconds(one) for one in records]
    longest = max(times, default=0.0)
    return [
        {name: str(one.get(name) or "") for name in ("name", "kind", "attempt", "outcome", "error")}
        | {"seconds": ms / 1000, "share": ms / longest if longest else 0.0, "notes": noted(one.get("notes"))}
        for one, ms in zip(records, times, strict=True)
    ]


def noted(notes: Any) -> str:
    """What a stage says of itself beside how it ended: a model and its tokens, a status, where a router went."""
    if not isinstance(notes, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in notes.items() if value is not None)


def _milliseconds(record: dict[str, Any]) -> float:
    taken = record.get("durationMs")
    return float(taken) if isinstance(taken, int | float) else 0.0

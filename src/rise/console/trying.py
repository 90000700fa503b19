"""A chat beside the editor, in which what is written there is tried. What a run may do is in `rise.runtime.trying`.

The conversation so far comes back with every message, from the page itself: nothing of it is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from markupsafe import escape
from starlette.responses import HTMLResponse, Response

from rise.api.answers import retry_after_seconds
from rise.clock import from_epoch_ms, iso
from rise.console.forms import Form
from rise.console.messages import noted
from rise.console.rendering import lasting, render
from rise.console.sessions import Session
from rise.envelope import encode_json
from rise.errors import PayloadInvalid, RateExceeded, Rejected, Unavailable
from rise.runtime.trying import SAID_MAX, TEXT_CHARS_MAX, Said, Trial, Tried, Tries
from rise.runtime.written import json_written

PART: Final = "X-Part"
"""Of an answer that is a part of the page: what else comes says that somebody must sign in, perhaps."""
TURN_CHARS_MAX: Final = 1500
SHOWN_BYTES_MAX: Final = 8_000
"""Of the conversation, as a page spells it. What is before it is forgotten."""
STAGES_SHOWN: Final = 30


class Talk(msgspec.Struct, frozen=True, kw_only=True):
    """The chat as it stands."""

    said: Sequence[Said] = ()
    tried: Tried | None = None
    """What came of the last message."""
    what: str = ""
    """What was run."""
    problem: str = ""
    status: int = 200
    retry_after: int | None = None
    text: str = ""
    """What was typed and could not be said."""
    returned: str = ""

    @property
    def transcript(self) -> str:
        return encode_json([[one.role, one.text] for one in self.said]).decode()

    @property
    def planned(self) -> Sequence[dict[str, str]]:
        """What would be said later, and when."""
        return [
            {"when": _when(one.params), "workflow": str(one.params.get("workflow") or ""), "text": one.text}
            for one in (self.tried.planned if self.tried else ())
        ]

    @property
    def stages(self) -> Sequence[dict[str, Any]]:
        """What the stages did, each with its share of the longest."""
        records = list(self.tried.stages)[:STAGES_SHOWN] if self.tried else []
        longest = max((one.duration_ms for one in records), default=0.0)
        return [
            {
                "name": one.name,
                "kind": one.kind,
                "attempt": "",
                "outcome": one.outcome,
                "error": one.error or "",
                "seconds": one.duration_ms / 1000,
                "share": one.duration_ms / longest if longest else 0.0,
                "notes": noted(one.notes),
            }
            for one in records
        ]


class TryPane:
    def __init__(self, tries: Tries) -> None:
        self._tries = tries

    def beginning(self) -> Talk:
        return Talk()

    async def answer(self, form: Form, session: Session, make: Callable[[], Trial], *, what: str) -> Talk:
        """Say the message. `make`: what is tried. What is refused is said in the chat."""
        if form.one("again"):
            return self.beginning()
        said, text, returned = _so_far(form.one("transcript")), form.one("say"), form.text("returned")
        try:
            tried = await self._tries.run(_asked(make(), text, said, returned), who=session.principal.name)
        except (Rejected, Unavailable) as error:
            return _refused(error, said, text, returned)
        answers = [Said("assistant", effect.text) for effect in tried.replies]
        whole = _bounded([*said, Said("user", text), *answers])
        return Talk(said=whole, tried=tried, what=what, returned=returned)

    def part(self, talk: Talk) -> Response:
        """Only the chat, for the page that it is in."""
        headers = {PART: "talk"}
        if talk.retry_after is not None:
            headers["Retry-After"] = str(talk.retry_after)
        return HTMLResponse(render("part_talk.html", {"talk": talk}), talk.status, headers)


def _when(plan: Mapping[str, Any]) -> str:
    if plan.get("atMs") is not None:
        return f"at {iso(from_epoch_ms(plan['atMs']))}"
    return f"in {lasting(plan['inSeconds'])}"


def _asked(trial: Trial, text: str, said: Sequence[Said], returned: str) -> Trial:
    if not text:
        raise PayloadInvalid("write something first", field="say")
    if len(text) > TEXT_CHARS_MAX:
        raise PayloadInvalid(f"that is more than {TEXT_CHARS_MAX} characters", field="say")
    values = json_written(returned, "returned") if returned.strip() else {}
    if type(values) is not dict:
        raise PayloadInvalid('what functions return is an object, such as {"look_up": 42}', field="returned")
    return msgspec.structs.replace(trial, text=text, said=said, returned=values)


def _refused(error: Rejected | Unavailable, said: Sequence[Said], text: str, returned: str) -> Talk:
    status, retry_after = 503, None
    if isinstance(error, Rejected):
        status, retry_after = error.http_status, error.retry_after_seconds if isinstance(error, RateExceeded) else None
    else:
        retry_after = retry_after_seconds(error)
    problem = error.public_message
    return Talk(said=said, problem=problem, status=status, retry_after=retry_after, text=text, returned=returned)


def _so_far(transcript: str) -> Sequence[Said]:
    """As the page had it. What is no conversation is none."""
    try:
        turns = msgspec.json.decode(transcript or "[]", type=list[tuple[str, str]])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ()
    return _bounded([Said(role, text) for role, text in turns if role in ("user", "assistant")])


def _bounded(said: Sequence[Said]) -> Sequence[Said]:
    """The last of it, as much as a page can hold."""
    kept: list[Said] = []
    left = SHOWN_BYTES_MAX
    for one in reversed(said[-SAID_MAX:]):
        text = one.text if len(one.text) <= TURN_CHARS_MAX else f"{one.text[: TURN_CHARS_MAX - 1]}…"
        left -= len(escape(text))
        if left < 0 and kept:
            break
        kept.append(Said(one.role, text))
    return kept[::-1]

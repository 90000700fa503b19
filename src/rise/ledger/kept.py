"""What every ledger does alike with what it keeps: how much of it, what it comes to, and how it is read.

Promises: whoever wrote it, a damaged disk or a newer version: one thing that cannot be read hides no other, says why it
cannot be read, and is shown as what does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Any, Final, TypeVar

import msgspec

from rise.envelope import (
    Call,
    Head,
    LaneKey,
    Order,
    Outcome,
    Progress,
    Status,
    Task,
    TaskId,
    clean_text,
    decode_head,
    unreadable_head,
)
from rise.errors import EnvelopeMalformed
from rise.ledger.port import CALL_UNREADABLE, ReplyState

T = TypeVar("T")

HISTORY_KEPT: Final = 50
"""Turns kept per chat."""
ATTEMPTS_KEPT: Final = 200
"""Of a run. A message may wait for days, and each time that it is tried in vain is one."""
TURN_CHARS_MAX: Final = 16_000
"""Kept of a turn's text. As many turns as are kept are 3.2 MB of it at most, and one record of MongoDB's has 16."""

_LANE: Final = re.compile(
    r"tg:\w+:(?P<chat>(?:b.+:)?-?\d+):\d+|tg:\w+:u(?P<person>\d+)(?P<tap>:callback)?(?::\w+)?"
    r"|(?:http|web|fu:\w+):[^:]+:(?!task:)(?P<name>.+)"
)
"""As channels and follow-ups name lanes: after a chat, or after the person who asked outside of chats, or tapped."""

_decode_call = msgspec.json.Decoder(Call).decode
_decode_json = msgspec.json.Decoder().decode


def end_of(endings: Set[tuple[str, bool]]) -> tuple[Status, Outcome | None] | None:
    """What a run comes to whose replies are like that: their states, and whether they came too late. None: it goes on,
    or there are none."""
    if not endings or not {state for state, _ in endings} <= {ReplyState.SENT, ReplyState.FAILED}:
        return None
    if endings == {(ReplyState.SENT, False)}:
        return Status.COMPLETED, Outcome.ANSWERED
    if endings == {(ReplyState.FAILED, True)}:
        return Status.EXPIRED, None
    return Status.COMPLETED, Outcome.UNDELIVERABLE


def kept_text(text: str) -> str:
    """What is kept of a turn's text: if it is too long, its beginning and an ellipsis."""
    text = clean_text(text)
    return text if len(text) <= TURN_CHARS_MAX else f"{text[: TURN_CHARS_MAX - 1]}…"


def read_result(stored: bytes) -> tuple[Any, str | None]:
    """What a run came to; if this version cannot read it, None, and why."""
    return _read(stored, _decode_json, None)


def read_call(stored: bytes) -> tuple[Call, str | None]:
    return _read(stored, _decode_call, CALL_UNREADABLE)


def read_head(stored: bytes) -> Head | None:
    """None if this version cannot read it."""
    try:
        return decode_head(stored)
    except EnvelopeMalformed:
        return None


def read_task(
    stored: bytes,
    raw: bytes,
    progress: Progress,
    *,
    task_id: TaskId,
    channel: str,
    accepted_at_ms: int,
    fingerprint: str,
) -> Task:
    """The task of a run; if this version cannot read its head, with a stand-in for that, and it says why."""
    try:
        return Task(decode_head(stored), raw, progress)
    except EnvelopeMalformed as error:
        stand_in = unreadable_head(
            task_id,
            channel=channel,
            account="",  # only the head says it, and its lane
            lane=LaneKey(""),
            order=Order(accepted_at_ms, 0),
            accepted_at_ms=accepted_at_ms,
        )
        head = msgspec.structs.replace(stand_in, raw_sha256=fingerprint, raw_is_unique=bool(fingerprint))
        why = "; ".join(filter(None, (progress.error, error.public_message)))
        return Task(head, raw, msgspec.structs.replace(progress, error=why))


def is_of_chat(head: Head | None, channel: str, account: str, names: Set[str]) -> bool | None:
    """Whether it was written to or in a chat that has these ids. What has no chat is its sender's own: a person's
    private chat goes by the same id as the person. None: this version cannot read whose it is."""
    if head is None:
        return None
    if (head.channel, head.account) != (channel, account) or head.is_forgotten:
        return False
    if head.is_stand_in:
        return _is_in_lane_of(head, names)
    if head.chat_id is None:
        return str(head.user.get("user_id", "")) in names
    return head.chat_id in names or head.first_chat_id in names


def _is_in_lane_of(head: Head, names: Set[str]) -> bool | None:
    """The same by its lane alone. A tap's says who tapped, and not where: it is his, and may be another chat's."""
    found = _LANE.fullmatch(head.lane)
    if found is None:
        return None
    if not names.isdisjoint(found.group("chat", "person", "name")):
        return True
    return None if found["tap"] else False


def known_word(words: Callable[[str], T], stored: str, stand_in: T) -> tuple[T, str | None]:
    """The same with one word, which a newer version may have added."""
    try:
        return words(stored), None
    except ValueError:
        return stand_in, f"a newer version of Rise says of it: {stored}"


def known_status(stored: str, *, has_ended: bool) -> tuple[Status, str | None]:
    """The same with the word for how far a run is."""
    return known_word(Status, stored, Status.COMPLETED if has_ended else Status.REPLYING)


def _read(stored: Any, decode: Callable[[Any], T], stand_in: T) -> tuple[T, str | None]:
    """What is kept; if this version cannot read it, the stand-in, and why. One such row must not hide the others."""
    try:
        return decode(stored), None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        return stand_in, f"what is kept of it is unreadable: {error}"

"""Outcomes: what Telegram's answer to a call means, and what it means that there is none.

Promises: `NotSent` and its like are said only where Telegram certainly did nothing; `Succeeded` only with what a
success must bring. Everything else is `Uncertain`.

Refuses: to take a proxy's words for the Bot API's; to decide by Telegram's words where its numbers say enough.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

import msgspec

from rise.channels.port import (
    AccountDown,
    Moved,
    NotSent,
    Paused,
    Refused,
    SendOutcome,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.channels.telegram.calls import marked
from rise.channels.telegram.reading import read_json
from rise.envelope import Call
from rise.telemetry import redact


class Answer(msgspec.Struct, frozen=True):
    """What came back for a call, unread."""

    status: int
    body: bytes


class Unanswered(msgspec.Struct, frozen=True):
    """Nothing came back. `body_went_out`: all of the call was given to the socket, so it may have been done."""

    error: str
    body_went_out: bool


def judged(call: Call, answer: Answer | Unanswered) -> SendOutcome:
    """How a call ended. The one place where Telegram's answers, and their absence, get their meaning."""
    if isinstance(answer, Unanswered):
        return Uncertain(answer.error) if answer.body_went_out else NotSent(answer.error)
    try:
        result = read_json(answer.body, _Result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _judged_unreadable(answer.status)
    if answer.status >= 500:
        return Uncertain(redact(f"{answer.status} {result.description}".strip()))
    if not result.ok:
        return _judged_refusal(call, result, answer.status)
    return _judged_result(call, result) if answer.status == 200 else _judged_unreadable(answer.status)


def result_of(answer: Answer) -> Any:
    """What an answer brings that has been judged a success."""
    return read_json(bytes(read_json(answer.body, _Result).result), Any)


def pause_seconds(asked_for: float | None) -> float:
    """As long as Telegram asks for, if that is a time to wait for."""
    return min(asked_for, _PAUSE_SECONDS_MAX) if asked_for and asked_for > 0 else _PAUSE_SECONDS_DEFAULT


class _Parameters(msgspec.Struct, frozen=True):
    retry_after: float | None = None
    migrate_to_chat_id: int | None = None


class _Result(msgspec.Struct, frozen=True):
    """The Bot API's way of answering, as far as the answer really is from it."""

    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    error_code: int = 0
    description: str = ""
    parameters: _Parameters | None = None


class _MessageId(msgspec.Struct, frozen=True):
    message_id: int


class _Meaning(Enum):
    MARKUP_UNREADABLE = auto()
    CHAT_GONE = auto()
    DONE_ALREADY = auto()
    EDIT_IMPOSSIBLE = auto()


# Telegram's documented words, and the only words that decide anything: the code is 400 for all of them.
_MEANINGS: Final = (
    ("can't parse entities", _Meaning.MARKUP_UNREADABLE),
    ("unsupported parse_mode", _Meaning.MARKUP_UNREADABLE),
    ("chat not found", _Meaning.CHAT_GONE),
    ("user not found", _Meaning.CHAT_GONE),
    ("user is deactivated", _Meaning.CHAT_GONE),
    ("bot was kicked", _Meaning.CHAT_GONE),
    ("group chat was deactivated", _Meaning.CHAT_GONE),
    ("the group chat was deleted", _Meaning.CHAT_GONE),
    ("peer_id_invalid", _Meaning.CHAT_GONE),
    ("message is not modified", _Meaning.DONE_ALREADY),
    ("message to edit not found", _Meaning.EDIT_IMPOSSIBLE),
    ("message can't be edited", _Meaning.EDIT_IMPOSSIBLE),
)

_MARKUP_FIELDS: Final = frozenset({"parse_mode", "entities", "caption_entities"})
_PAUSE_SECONDS_DEFAULT: Final = 5.0
_PAUSE_SECONDS_MAX: Final = 86_400.0

_ANSWERED_WITHOUT_MESSAGE: Final = (
    "sendchataction",
    "sendchatjoinrequest",
    "sendgift",
    "sendmessagedraft",
    "sendrichmessagedraft",
)


def _judged_unreadable(status: int) -> SendOutcome:
    """It is not the Bot API that speaks. A redirect or a 4xx from before it says that nothing was passed on."""
    error = f"an answer {status} that is not of the Bot API"
    return NotSent(error) if 300 <= status < 500 else Uncertain(error)


def _judged_result(call: Call, result: _Result) -> SendOutcome:
    """A 200 counts only with what it must bring: a proxy may say `ok` too."""
    method = call.method.lower()
    try:
        shown: Any = read_json(bytes(result.result), Any)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Uncertain("a result that cannot be read")
    ref = _message_ids(shown)
    brings_message = method.startswith(("send", "forward", "copy")) and not method.startswith(_ANSWERED_WITHOUT_MESSAGE)
    if ref is None and (brings_message or shown is None or shown is False):
        return Uncertain("an answer 200 without a result")
    return Succeeded(ref)


def _message_ids(shown: Any) -> str | None:
    """Albums bring several."""
    messages = shown if isinstance(shown, list) else [shown]
    try:
        return ",".join(str(message.message_id) for message in msgspec.convert(messages, list[_MessageId])) or None
    except msgspec.ValidationError:
        return None


def _judged_refusal(call: Call, result: _Result, status: int) -> SendOutcome:
    """A refusal counts only with its number, which the Bot API always says: a proxy may be not `ok` too."""
    code = result.error_code
    if not 400 <= code < 600:
        return _judged_unreadable(status)
    # It is kept, and shown to people: whoever stands in between may repeat the address, and with it the token.
    error = redact(f"{code} {result.description}".strip())
    parameters = result.parameters or _Parameters()
    if parameters.migrate_to_chat_id is not None:
        return Moved(str(parameters.migrate_to_chat_id))
    match code:
        case 400:
            return _judged_bad_request(call, result.description.lower(), error)
        case 401 | 404:
            return AccountDown(error)
        case 403:
            return Refused(error, chat_gone=True)
        case 409:
            return NotSent(error)
        case 429:
            return Paused(pause_seconds(parameters.retry_after), error)
        case _ if code >= 500:
            return Uncertain(error)
        case _:
            return Refused(error)


def _judged_bad_request(call: Call, description: str, error: str) -> SendOutcome:
    meaning = next((meaning for words, meaning in _MEANINGS if words in description), None)
    match meaning:
        case _Meaning.CHAT_GONE:
            return Refused(error, chat_gone=True)
        case _Meaning.DONE_ALREADY:
            return Succeeded(_edited_ref(call))
        case _Meaning.MARKUP_UNREADABLE if not _MARKUP_FIELDS.isdisjoint(call.params):
            return Unreadable(error, _plain(call))
        case _Meaning.EDIT_IMPOSSIBLE if "text" in call.params and "message_id" in call.params:
            return Unreadable(error, _instead_of_edit(call))
        case _:
            return Refused(error)


def _edited_ref(call: Call) -> str | None:
    message_id = call.params.get("message_id")
    return None if message_id is None else str(message_id)


def _plain(call: Call) -> Call:
    params = {name: value for name, value in call.params.items() if name not in _MARKUP_FIELDS}
    return msgspec.structs.replace(call, params=params)


def _instead_of_edit(call: Call) -> Call:
    """The message is gone or too old to change: what it was to say is said below it, and marked."""
    params = {name: value for name, value in call.params.items() if name != "message_id"}
    reply_to = {"message_id": call.params["message_id"], "allow_sending_without_reply": True}
    return marked(msgspec.structs.replace(call, method="sendMessage", params=params | {"reply_parameters": reply_to}))

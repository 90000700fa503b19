"""HTTP: what programs ask for, read strictly, and answers kept where they fetch them.

A client's mistake is told to the client, with the field, and nothing is written: a request that was half
understood is worse than one that was refused. Refuses therefore: fields it does not know (a misspelt key
would silently lose the protection against repeats), the same key twice in one object, numbers that some
store could not hold, and text that has no encoding.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rise.channels.port import Channel, Incoming
from rise.chats import ChatRegistry
from rise.envelope import (
    JSON_NAMES,
    Call,
    DeliveryKey,
    Effect,
    Head,
    LaneKey,
    TaskType,
    fits_int64,
    json_name,
    new_key,
    task_id_of,
)
from rise.errors import ChannelUnknown, PayloadInvalid, PayloadMalformed

CHANNEL: Final = "http"
RAW_VERSION: Final = "http.v1"
DEPTH_MAX: Final = 64
VALUES_MAX: Final = 50_000
KEY_CHARS_MAX: Final = 200
CHAT_ID_CHARS_MAX: Final = 200
MESSAGE_CHARS_MAX: Final = 32_768
RETRY_MAX_MAX: Final = 100
WAIT_SECONDS: Final = 30.0
WAIT_SECONDS_MAX: Final = 300.0

_APPLY_FIELDS: Final = (
    "workflowId",
    "userText",
    "historyChunks",
    "policy",
    "metadata",
    "idempotencyKey",
    "retryMax",
    "waitForResult",
    "waitTimeoutSeconds",
    "callbackUrl",
)
_MESSAGE_FIELDS: Final = (
    "channel",
    "account",
    "chatId",
    "text",
    "parseMode",
    "buttons",
    "replyTo",
    "idempotencyKey",
)
_OF_THE_ANSWER: Final = ("waitForResult", "waitTimeoutSeconds", "idempotencyKey")
"""Fields that say how the caller wants to be answered, or under which key, which may as well be a header."""
_EFFECT_FIELDS: Final = {"reply_to": "replyTo", "parse_mode": "parseMode", "chat_id": "chatId"}
_TELEGRAM_CHAT: Final = re.compile(r"-?[1-9][0-9]{0,18}|@[A-Za-z][A-Za-z0-9_]{3,63}", re.ASCII)


class ApplyRequest(msgspec.Struct, frozen=True):
    """A request to run a workflow, read."""

    incoming: Incoming
    idempotency_key: str
    """The caller's, or one made for a caller that brought none."""
    wait_seconds: float | None
    """How long the caller wants to wait for the result; None: not at all."""


class MessageRequest(msgspec.Struct, frozen=True):
    """A request to say something, read."""

    incoming: Incoming
    idempotency_key: str


class HttpChannel:
    """Programs. Nobody is pushed to: the caller reads the result."""

    name = CHANNEL

    def read_apply(
        self,
        body: bytes,
        *,
        principal: str,
        key: str | None,
        request_id: str,
        trace_id: str | None,
        account: str = "default",
    ) -> ApplyRequest:
        """A body of `POST /api/workflows/apply`. Raises `PayloadMalformed` or `PayloadInvalid` with the field."""
        fields = read_object(body)
        refuse_unknown(fields, _APPLY_FIELDS)
        metadata = _metadata(fields)
        chat_id = metadata.get("chat_id")
        idempotency_key = idempotency_key_of(fields, key)
        delivery_key = DeliveryKey(f"http:{principal}:{idempotency_key}")
        lane = f"http:{account}:{chat_id}" if chat_id else f"http:{account}:task:{task_id_of(delivery_key)}"
        incoming = Incoming(
            channel=CHANNEL,
            account=account,
            source="http-api",
            delivery_key=delivery_key,
            lane=LaneKey(lane),
            raw=body,
            raw_version=RAW_VERSION,
            chat_id=chat_id,
            message_label=f"{chat_id or '-'}:{metadata.get('message_id') or idempotency_key}",
            user_text=optional(fields, "userText", str) or "",
            user=_user(metadata, principal),
            metadata=metadata,
            workflow_id=workflow_asked_for(fields),
            policy=optional(fields, "policy", dict) or {},
            history_chunks=optional(fields, "historyChunks", list) or [],
            retry_max=_retry_max(fields),
            callback_url=optional(fields, "callbackUrl", str),
            request_id=request_id,
            trace_id=trace_id,
        )
        return ApplyRequest(incoming, idempotency_key, _wait_seconds(fields))

    def compose(self, head: Head, effects: Sequence[Effect]) -> list[Call]:
        return [said(effect, channel="HTTP") for effect in effects]

    def notice(self, head: Head, text: str) -> Call | None:
        """Nobody is told: the caller sees the state of its task."""
        return None


def read_message(
    body: bytes,
    *,
    accounts: Mapping[str, Sequence[str]],
    principal: str,
    key: str | None,
    request_id: str,
    trace_id: str | None,
    chats: ChatRegistry | None = None,
) -> MessageRequest:
    """A body of `POST /api/messages`: a task whose whole work is to say this in a chat.

    `accounts`: what may be sent from, by channel, the default first. `chats`: which have moved. Raises
    `ChannelUnknown` (404), `PayloadMalformed` or `PayloadInvalid` with the field.
    """
    fields = read_object(body)
    refuse_unknown(fields, _MESSAGE_FIELDS)
    channel, account = sender(fields, accounts)
    chat_id = chat_named(fields, channel)
    first_chat_id = None if chats is None else chats.first_id(channel, account, chat_id)
    reply = reply_asked_for(fields)
    idempotency_key = idempotency_key_of(fields, key)
    incoming = Incoming(
        channel=channel,
        account=account,
        source="http-api",
        delivery_key=DeliveryKey(f"msg:{principal}:{idempotency_key}"),
        lane=lane_of_chat(channel, account, first_chat_id or chat_id),
        raw=body,
        raw_version=RAW_VERSION,
        kind="outgoing",
        chat_id=chat_id,
        first_chat_id=first_chat_id,
        message_label=f"{chat_id}:{idempotency_key}",
        user={"chat_id": chat_id, "user_id": principal},
        metadata={"chat_id": chat_id},
        task_type=TaskType.MESSAGE_SEND,
        policy={"reply": reply},
        request_id=request_id,
        trace_id=trace_id,
    )
    return MessageRequest(incoming, idempotency_key)


def refuse_unsayable(channel: Channel, head: Head) -> None:
    """What the channel would refuse when the task is run, it refuses now. Raises `PayloadInvalid` with the field."""
    try:
        channel.compose(head, [Effect(kind="reply", **head.policy["reply"])])
    except PayloadInvalid as error:
        named = error.field or "text"
        field = _EFFECT_FIELDS.get(named, named)
        raise PayloadInvalid(error.public_message.replace(named, field), field=field) from error


def asked_for(body: bytes) -> str:
    """What a body that was accepted asks for, the same for all bodies that ask for the same."""
    fields = {name: value for name, value in json.loads(body).items() if name not in _OF_THE_ANSWER}
    return json.dumps(fields, sort_keys=True)


def said(effect: Effect, *, channel: str) -> Call:
    """A reply as its reader fetches it. Raises `PayloadInvalid` for what needs a platform to act on."""
    if effect.kind != "reply":
        named = f"call({effect.method})" if effect.kind == "call" else effect.kind
        raise PayloadInvalid(f"{channel} has no {named}: a reply is all it can say", field="kind")
    if not effect.text.strip() and not effect.media:
        raise PayloadInvalid("the reply has no text", field="text")
    shown = {
        "text": effect.text,
        "buttons": effect.buttons,
        "media": effect.media,
        "reply_to": effect.reply_to,
        "parse_mode": effect.parse_mode,
    }
    return Call("reply", {name: value for name, value in shown.items() if value is not None}, effect.text)


# --- the fields of the two requests -----------------------------------------------------------------------


def _metadata(fields: dict[str, Any]) -> dict[str, Any]:
    """As given, the ids in the one form in which they are compared."""
    metadata: dict[str, Any] = dict(optional(fields, "metadata", dict) or {})
    for name in ("chat_id", "message_id"):
        if metadata.get(name) is not None:
            metadata[name] = identifier(metadata[name], f"metadata.{name}", chars_max=CHAT_ID_CHARS_MAX)
        else:
            metadata.pop(name, None)
    if "chat_id" in metadata:
        metadata.setdefault("convo_id", f"{metadata['chat_id']}:{metadata['chat_id']}")
    return metadata


def _user(metadata: dict[str, Any], principal: str) -> dict[str, Any]:
    """Who asks is who authenticated; nothing a client writes changes that."""
    user = {name: metadata[name] for name in ("chat_id", "message_id") if name in metadata}
    return user | {"user_id": principal}


def idempotency_key_of(fields: dict[str, Any], header: str | None) -> str:
    """The caller's, or one made for it. Raises `PayloadInvalid`."""
    in_body = optional(fields, "idempotencyKey", str)
    if header is not None and in_body is not None and header != in_body:
        raise PayloadInvalid("the header Idempotency-Key and idempotencyKey differ", field="idempotencyKey")
    key = header if header is not None else in_body
    if key is None:
        return new_key()
    if not key.isascii():
        raise PayloadInvalid("an idempotency key is ASCII: it travels in a header", field="idempotencyKey")
    return identifier(key, "idempotencyKey", chars_max=KEY_CHARS_MAX)


def workflow_asked_for(fields: dict[str, Any]) -> str | None:
    """The one to run, if one is named. Raises `PayloadInvalid`."""
    workflow_id = optional(fields, "workflowId", str)
    return None if workflow_id is None else identifier(workflow_id, "workflowId", chars_max=CHAT_ID_CHARS_MAX)


def _retry_max(fields: dict[str, Any]) -> int | None:
    retry_max: int | None = optional(fields, "retryMax", int)
    if retry_max is not None and not 0 <= retry_max <= RETRY_MAX_MAX:
        raise PayloadInvalid(f"retryMax is 0 to {RETRY_MAX_MAX}", field="retryMax")
    return retry_max


def _wait_seconds(fields: dict[str, Any]) -> float | None:
    wanted = optional(fields, "waitForResult", bool)
    seconds = optional(fields, "waitTimeoutSeconds", int, float)
    if seconds is not None and not 0 < seconds <= WAIT_SECONDS_MAX:
        raise PayloadInvalid(f"waitTimeoutSeconds is over 0 and at most {WAIT_SECONDS_MAX:g}",
                             field="waitTimeoutSeconds")  # fmt: skip
    return (WAIT_SECONDS if seconds is None else float(seconds)) if wanted else None


def sender(fields: dict[str, Any], accounts: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Channel and account that are to say it. Raises `ChannelUnknown`, or `PayloadInvalid`."""
    channel = required(fields, "channel", str)
    if channel == CHANNEL:
        raise PayloadInvalid("the channel http has nobody to push to: its callers read their results", field="channel")
    known = accounts.get(channel)
    if not known:
        raise ChannelUnknown(f"there is no channel {_shortened(channel)} here", field="channel")
    account = optional(fields, "account", str)
    if account is not None and account not in known:
        raise ChannelUnknown(f"the channel {channel} has no account {_shortened(account)}", field="account")
    return channel, account or known[0]


def lane_of_chat(channel: str, account: str, chat_id: str) -> LaneKey:
    """The lane of what the chat itself sends, so that both keep one order."""
    if channel == "telegram":
        return LaneKey(f"tg:{account}:{chat_id}:0")
    return LaneKey(f"{'http' if channel == CHANNEL else 'web'}:{account}:{chat_id}")


def chat_named(fields: dict[str, Any], channel: str) -> str:
    """The `chatId` that is to be written to. Raises `PayloadInvalid`."""
    chat_id = identifier(required(fields, "chatId"), "chatId", chars_max=CHAT_ID_CHARS_MAX)
    if channel == "telegram" and _TELEGRAM_CHAT.fullmatch(chat_id) is None:
        raise PayloadInvalid("chatId is a number or an @name on Telegram", field="chatId")
    return chat_id


def reply_asked_for(fields: dict[str, Any]) -> dict[str, Any]:
    """What is to be said, as a reply. Raises `PayloadInvalid`."""
    text = required(fields, "text", str)
    if not text.strip():
        raise PayloadInvalid("text is empty", field="text")
    if len(text) > MESSAGE_CHARS_MAX:
        raise PayloadInvalid(f"text has more than {MESSAGE_CHARS_MAX} characters", field="text")
    reply_to = fields.get("replyTo")
    reply = {
        "text": text,
        "buttons": _buttons(fields),
        "reply_to": None if reply_to is None else identifier(reply_to, "replyTo", chars_max=CHAT_ID_CHARS_MAX),
        "parse_mode": optional(fields, "parseMode", str),
    }
    return {name: value for name, value in reply.items() if value is not None}


def _buttons(fields: dict[str, Any]) -> list[list[dict[str, str]]] | None:
    rows: list[list[dict[str, str]]] | None = optional(fields, "buttons", list)
    if rows is None:
        return None
    for at, row in enumerate(rows):
        if type(row) is not list:
            raise PayloadInvalid(f"buttons[{at}] is a row, a list of buttons", field=f"buttons[{at}]")
        for place, button in enumerate(row):
            if not _is_button(button):
                raise PayloadInvalid(
                    "a button has a text, and either data or a url, all of them texts", field=f"buttons[{at}][{place}]"
                )
    return rows


def _is_button(button: Any) -> bool:
    return (
        type(button) is dict
        and all(type(value) is str and value for value in button.values())
        and set(button) in ({"text", "data"}, {"text", "url"})
    )


# --- reading JSON, strictly -------------------------------------------------------------------------------


def read_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object of which every value can be kept and shown. Raises as `read_json`, and `PayloadInvalid`
    if it is something else."""
    value = read_json(body)
    if type(value) is not dict:
        raise PayloadInvalid(f"the body is {json_name(value)}, not an object", field="body")
    return value


def read_json(body: bytes) -> Any:
    """What the JSON says, every value of which can be kept and shown.

    Raises `PayloadMalformed` if it is no JSON, `PayloadInvalid` with the place of what cannot be used.
    """
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise PayloadMalformed(f"the body is not UTF-8 at byte {error.start}", field="body") from error
    except json.JSONDecodeError as error:
        raise PayloadMalformed(f"the body is not JSON: {error}", field="body") from error
    except RecursionError as error:
        raise PayloadInvalid(f"the body is nested deeper than {DEPTH_MAX}", field="body") from error
    except ValueError as error:  # an integer of thousands of digits
        raise PayloadInvalid("the body holds a number that is too long", field="body") from error
    _refuse_unusable(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = _shortened(counts.most_common(1)[0][0])
        raise PayloadInvalid(f"{twice} is there twice in one object", field=twice)
    return read


def _refuse_constant(name: str) -> float:
    raise PayloadInvalid(f"{name} is not a JSON number", field="body")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise PayloadInvalid("the body holds a number that is out of range", field="body")
    return number


# A place is the name of a value and the place of what holds it; it is put into words only to say what is wrong
# there. Names may be as long as the body: said for every value below one, they would be that long so many times.
_Place = tuple[Any, str | int] | None


def _refuse_unusable(value: Any) -> None:
    """Walk it without recursion: depth, count, integers beyond 64 bits, halves of surrogate pairs."""
    waiting: list[tuple[_Place, int, Any]] = [(None, 1, value)]
    count = 1
    while waiting:
        place, depth, current = waiting.pop()
        if type(current) is str:
            _refuse_surrogates(current, place)
        elif type(current) is int:
            if not fits_int64(current):
                raise PayloadInvalid(f"{_said(place)} is {json_name(current)}", field=_said(place))
        elif type(current) in (dict, list):
            if depth > DEPTH_MAX:
                raise PayloadInvalid(f"{_said(place)} is nested deeper than {DEPTH_MAX}", field=_said(place))
            count += len(current)
            if count > VALUES_MAX:
                raise PayloadInvalid(f"the body holds more than {VALUES_MAX} values", field="body")
            waiting += _members(place, depth, current)


def _members(place: _Place, depth: int, current: Any) -> list[tuple[_Place, int, Any]]:
    if type(current) is list:
        return [((place, at), depth + 1, member) for at, member in enumerate(current)]
    for name in current:
        _refuse_surrogates(name, place, what="a name in ")
    return [((place, name), depth + 1, member) for name, member in current.items()]


def _refuse_surrogates(text: str, place: _Place, *, what: str = "") -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        field = f"{what}{_said(place)}"
        raise PayloadInvalid(f"{field} holds half of a surrogate pair at {error.start}", field=field) from error


def _said(place: _Place) -> str:
    """`a.b[0]`, no longer than a line."""
    if place is None:
        return "the body"
    words = ""
    while place is not None:
        place, name = place
        words = f"[{name}]{words}" if type(name) is int else f".{str(name)[:80]}{words}"
    return _shortened(words.removeprefix("."))


def refuse_unknown(fields: dict[str, Any], known: Sequence[str]) -> None:
    """Raises `PayloadInvalid` for the first field that is not `known`."""
    for name in fields:
        if name not in known:
            shown = _shortened(name)
            raise PayloadInvalid(f"{shown} is not a field of this request; it has {', '.join(known)}", field=shown)


def required(fields: dict[str, Any], name: str, *types: type) -> Any:
    """The field. Raises `PayloadInvalid` if it is left out, null, or of none of these types."""
    if fields.get(name) is None:
        raise PayloadInvalid(f"{name} is missing", field=name)
    return optional(fields, name, *types)


def optional(fields: dict[str, Any], name: str, *types: type) -> Any:
    """The field, None if it is left out or null. `bool` is no number. Raises `PayloadInvalid` for other types."""
    value = fields.get(name)
    if value is not None and types and type(value) not in types:
        expected = " or ".join(_EXPECTED[kind] for kind in types)
        raise PayloadInvalid(f"{name} is {json_name(value)}; expected {expected}", field=name)
    return value


def identifier(value: Any, field: str, *, chars_max: int) -> str:
    """A short printable name, or an integer that stands for one. Raises `PayloadInvalid` for anything else."""
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise PayloadInvalid(f"{field} is {json_name(value)}; expected a string or an integer", field=field)
    if not 0 < len(value) <= chars_max or not value.isprintable() or value != value.strip():
        raise PayloadInvalid(f"{field} is 1 to {chars_max} printable characters, not blank around", field=field)
    return value


def _shortened(text: str) -> str:
    """For messages: no longer than a line, whatever it holds."""
    return ascii(text)[1:-1][:80] or '""'


_EXPECTED: Final = {**JSON_NAMES, float: "a number"}

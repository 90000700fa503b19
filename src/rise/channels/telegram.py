"""Telegram: updates become `Incoming`, effects become Bot API calls, and a call that ended says how.

Promises: reading never raises and never changes the bytes; what cannot be read is marked for suspension with
the place and the reason. A call is `NotSent` only if the last byte of its body never went to the socket, and
`Uncertain` if Telegram may have acted and did not say so. The token is in no error and no log.

Refuses: to decide by the text of an exception, to split text inside markup (text too long for one message is
sent plain), to upload files (a file is a URL or a `file_id`), to throw pending updates away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import msgspec

from rise.channels.port import (
    AccountDown,
    Incoming,
    Moved,
    NotSent,
    Paused,
    Refused,
    SendOutcome,
    SendRates,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.clock import Clock
from rise.envelope import Call, DeliveryKey, Effect, Head, LaneKey, Order, Reason, clean_text, encode_json
from rise.errors import ChannelUnavailable, PayloadInvalid, Rejected, SettingsInvalid

if TYPE_CHECKING:
    import aiohttp

CHANNEL: Final = "telegram"
API_BASE: Final = "https://api.telegram.org"
RAW_VERSION: Final = "tg.v1"
RECEIPT_SECONDS: Final = 72 * 3600
STALE_AFTER: Final = timedelta(hours=24, minutes=10)
"""Telegram keeps an update for 24 h; a webhook that brings an older one was recorded and played back."""

TEXT_UNITS_MAX: Final = 4096
CAPTION_UNITS_MAX: Final = 1024
MARK: Final = "↻ "
DOWNLOAD_BYTES_MAX: Final = 20 * 1024 * 1024

# Chunks leave room for the mark, so that saying them again never means splitting them again.
_TEXT_CHUNK_UNITS: Final = TEXT_UNITS_MAX - len(MARK)
_CAPTION_CHUNK_UNITS: Final = CAPTION_UNITS_MAX - len(MARK)


def bot_id_of(token: str) -> str:
    """The bot's number, which is its account: the part of the token before the colon."""
    if _TOKEN.fullmatch(token) is None:
        raise SettingsInvalid(["A Telegram token looks like 123456789:AbC-dEf_…; this one does not."])
    return token.partition(":")[0]


_TOKEN: Final = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]+")


# --- what comes in ----------------------------------------------------------------------------------------


class LaneOf(Enum):
    """Whose order an update is part of."""

    CHAT = auto()
    USER = auto()
    CALLBACK = auto()
    INLINE = auto()
    PAYMENT = auto()
    ACCOUNT = auto()


@dataclass(frozen=True, slots=True)
class UpdateKind:
    """Where one kind of update keeps what is derived from it."""

    lane: LaneOf = LaneOf.CHAT
    message_in: str | None = None
    """The field that holds the message (and so the chat), if the update is not the message itself."""
    user: str | None = "from"
    dates: tuple[str, ...] = ("date",)
    """The first that is there counts."""
    texts: tuple[str, ...] = ()
    lifetime_seconds: float | None = None
    """How long an answer is of use. Such an update has no date and does not wait behind its chat."""
    notifiable: bool = False


_MESSAGE: Final = UpdateKind(texts=("text", "caption"), notifiable=True)
_EDITED: Final = UpdateKind(dates=("edit_date", "date"), texts=("text", "caption"), notifiable=True)
_POST: Final = UpdateKind(texts=("text", "caption"))
_EDITED_POST: Final = UpdateKind(dates=("edit_date", "date"), texts=("text", "caption"))
_QUERY: Final = UpdateKind(LaneOf.INLINE, dates=(), texts=("query",), lifetime_seconds=30)
_PAYMENT: Final = UpdateKind(LaneOf.PAYMENT, dates=(), lifetime_seconds=150)

KINDS: Final[Mapping[str, UpdateKind]] = {
    "message": _MESSAGE,
    "edited_message": _EDITED,
    "channel_post": _POST,
    "edited_channel_post": _EDITED_POST,
    "business_connection": UpdateKind(LaneOf.USER, user="user"),
    "business_message": _MESSAGE,
    "edited_business_message": _EDITED,
    "deleted_business_messages": UpdateKind(user=None, dates=()),
    # By user: the chat it names is not one the bot can write to, and its number may be that of one which is.
    "guest_message": UpdateKind(LaneOf.USER, texts=("text", "caption")),
    "message_reaction": UpdateKind(user="user"),
    "message_reaction_count": UpdateKind(user=None),
    "inline_query": _QUERY,
    "chosen_inline_result": _QUERY,
    "callback_query": UpdateKind(
        LaneOf.CALLBACK, message_in="message", dates=(), texts=("data",), lifetime_seconds=150
    ),
    "shipping_query": _PAYMENT,
    "pre_checkout_query": _PAYMENT,
    "purchased_paid_media": UpdateKind(LaneOf.USER, dates=()),
    "poll": UpdateKind(LaneOf.ACCOUNT, user=None, dates=()),
    "poll_answer": UpdateKind(LaneOf.USER, user="user", dates=()),
    "my_chat_member": UpdateKind(),
    "chat_member": UpdateKind(),
    "chat_join_request": UpdateKind(),
    "chat_boost": UpdateKind(user=None, dates=()),
    "removed_chat_boost": UpdateKind(user=None, dates=("remove_date",)),
    "managed_bot": UpdateKind(LaneOf.USER, user="user", dates=()),
    "subscription": UpdateKind(LaneOf.USER, user="user", dates=()),
    "stopped_message_generation": UpdateKind(user=None, dates=()),
}
"""Every kind of update of the Bot API. All of them are asked for: left out, Telegram holds some back."""

_ANSWERED_BY_ID: Final = {
    "callback_query": "callback_query_id",
    "inline_query": "inline_query_id",
    "shipping_query": "shipping_query_id",
    "pre_checkout_query": "pre_checkout_query_id",
}
"""Kinds that are answered by their own id, and the parameter that takes it."""

_DEPTH_MAX: Final = 64
_KEYS_MAX: Final = 10_000
_INT64_MAX: Final = (1 << 63) - 1
_DATE_MAX: Final = 253_402_300_799
"""The last second of the year 9999: beyond it there is no date to show."""

_decode: Final = msgspec.json.Decoder().decode


def read_update(
    body: bytes,
    *,
    account: str,
    now: datetime,
    webhook: bool,
    source: str = "telegram-bot",
    request_id: str | None = None,
    trace_id: str | None = None,
) -> Incoming:
    """One update, exactly as it came. Never raises.

    Unparsable bytes, an unknown kind or a field that routing needs and cannot use: marked to be suspended,
    with the place in `error`. `webhook`: it was pushed, so one that is too old is a replay.
    """
    update: dict[str, Any] = {}
    payload: dict[str, Any] = {}
    is_json, kind_name, error = True, "unreadable", None
    try:
        update = _parse(body)
        kind_name, payload = _kind_and_payload(update)
    except _UpdateUnreadable as problem:
        is_json, error = problem.is_json, problem.why
    update_id = _int64(update.get("update_id"))
    read = _Reading(kind_name, payload, error)
    suspend = read.suspension(now if webhook else None)
    return Incoming(
        channel=CHANNEL,
        account=account,
        source=source,
        delivery_key=_delivery_key(account, update_id, body),
        lane=read.lane(account),
        raw=body,
        raw_version=RAW_VERSION,
        raw_is_json=is_json,
        kind=kind_name,
        order=None if read.date is None or update_id is None else Order(read.date * 1000, update_id),
        chat_id=read.chat_id,
        message_label=f"{read.chat_id or read.user_id or account}:{read.message_id or update_id or '-'}",
        user_text=read.text,
        user=read.user(),
        metadata=read.metadata(update_id),
        notifiable=read.notifiable,
        receipt_seconds=RECEIPT_SECONDS,
        lifetime_seconds=read.lifetime_seconds,
        request_id=request_id,
        trace_id=trace_id,
        suspend=suspend,
        error=read.error,
    )


def _delivery_key(account: str, update_id: int | None, body: bytes) -> DeliveryKey:
    if update_id is None:
        return DeliveryKey(f"tg:{account}:h:{hashlib.sha256(body).hexdigest()}")
    return DeliveryKey(f"tg:{account}:u:{update_id}")


_STALE_SECONDS: Final = STALE_AFTER.total_seconds()
_UNKNOWN: Final = UpdateKind(LaneOf.ACCOUNT)


class _UpdateUnreadable(Exception):
    """Why no update could be made of the bytes."""

    def __init__(self, why: str, *, is_json: bool) -> None:
        super().__init__(why)
        self.why = why
        self.is_json = is_json
        """Whether others may read it as JSON. What was refused unread is not offered to them."""


def _parse(body: bytes) -> dict[str, Any]:
    """The update as an object; `_UpdateUnreadable` for everything else."""
    # Counting brackets bounds the depth from above and costs next to nothing; few bodies need the exact look.
    if body.count(b"{") + body.count(b"[") > _DEPTH_MAX or body.count(b":") > _KEYS_MAX:
        _refuse_excess(body)
    try:
        update = _decode(body)
    except UnicodeDecodeError as error:
        raise _UpdateUnreadable(f"the body is not UTF-8: {error.reason}", is_json=False) from error
    except msgspec.ValidationError as error:
        # The only limit without a type to match is that of numbers: thousands of digits, or 1e999.
        raise _UpdateUnreadable(f"the body has an unusable value: {error}", is_json=False) from error
    except msgspec.DecodeError:
        update = _parse_with_surrogates(body)
    if type(update) is not dict:
        raise _UpdateUnreadable(f"the body is {_named(update)}, not an object", is_json=True)
    return update


def _parse_with_surrogates(body: bytes) -> Any:
    """JSON allows half a surrogate pair as an escape, though no encoding can hold it: it is replaced."""
    try:
        parsed = json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _UpdateUnreadable(f"the body is not UTF-8 at byte {error.start}", is_json=False) from error
    except ValueError as error:
        raise _UpdateUnreadable(f"the body is not JSON: {error}", is_json=False) from error
    return _decode(clean_text(json.dumps(parsed, ensure_ascii=False)))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is out of range")
    return number


# Possessive, and content with a string that never ends: no input makes it go back over what it has read.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_STRUCTURE: Final = re.compile(rb"[^\[\]{}]++")


def _refuse_excess(body: bytes) -> None:
    """Look exactly: deeper than any update, or more keys than any has, is not given to a parser."""
    structure = _STRING.sub(b"", body)
    if structure.count(b":") > _KEYS_MAX:
        raise _UpdateUnreadable(f"the body has more than {_KEYS_MAX} keys", is_json=False)
    depth = 0
    for at, character in enumerate(_NOT_STRUCTURE.sub(b"", structure)):
        depth += 1 if character in b"[{" else -1
        if depth > _DEPTH_MAX:
            raise _UpdateUnreadable(
                f"the body is nested deeper than {_DEPTH_MAX}, at its bracket {at + 1}", is_json=False
            )


def _kind_and_payload(update: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind is the name of the field beside `update_id`; a known one if there are several."""
    kind_name = ""
    for name in update:
        if name in KINDS:
            kind_name = name
            break
        if name != "update_id" and not kind_name:
            kind_name = name
    if not kind_name:
        raise _UpdateUnreadable("the update holds nothing but its number", is_json=True)
    payload = update[kind_name]
    if type(payload) is not dict and kind_name in KINDS:
        raise _UpdateUnreadable(f"{kind_name}: expected an object, found {_named(payload)}", is_json=True)
    return kind_name[:_KIND_NAME_MAX], payload if type(payload) is dict else {}


_KIND_NAME_MAX: Final = 64


class _Reading:
    """What one update says about where it belongs. `error` names the first field that could not be used."""

    __slots__ = (
        "_kind",
        "_kind_name",
        "_message",
        "_payload",
        "_sender",
        "chat_id",
        "date",
        "error",
        "lifetime_seconds",
        "message_id",
        "notifiable",
        "text",
        "thread_id",
        "user_id",
    )

    def __init__(self, kind_name: str, payload: dict[str, Any], error: str | None) -> None:
        kind = KINDS.get(kind_name)
        if kind is None:
            kind = _UNKNOWN
            error = error or f"{kind_name}: this kind of update is unknown"
        self._kind_name = kind_name
        self._kind = kind
        self._payload = payload
        self.error = error
        self.lifetime_seconds = kind.lifetime_seconds
        message = payload if kind.message_in is None else payload.get(kind.message_in)
        self._message: dict[str, Any] = message if type(message) is dict else {}
        self.chat_id = self._read_chat()
        self.message_id = _int64(self._message.get("message_id"))
        self.thread_id = self._read_thread()
        sender = payload.get(kind.user) if kind.user is not None else None
        self._sender: dict[str, Any] = sender if type(sender) is dict else {}
        self.user_id = _int64(self._sender.get("id"))
        self.date = self._read_date()
        self.text = self._read_text()
        # Automatic copies of channel posts carry a service account that calls itself no bot.
        self.notifiable = (
            kind.notifiable
            and self.user_id is not None
            and self.chat_id is not None
            and self._sender.get("is_bot") is not True
            and "is_automatic_forward" not in payload
        )

    def _read_chat(self) -> str | None:
        if self._kind.lane not in _LANES_WITH_CHAT:
            return None
        chat = self._message.get("chat")
        if chat is None and self._kind.lane is not LaneOf.CHAT:
            return None
        if type(chat) is not dict:
            self._cannot_use("chat", "an object", chat)
            return None
        chat_id = _int64(chat.get("id"))
        if chat_id is None:
            self._cannot_use("chat.id", "a 64-bit integer", chat.get("id"))
            return None
        return str(chat_id)

    def _read_thread(self) -> int | None:
        message = self._message
        if message.get("is_topic_message") is True:
            return _int64(message.get("message_thread_id"))
        topic = message.get("direct_messages_topic")
        return _int64(topic.get("topic_id")) if type(topic) is dict else None

    def _read_date(self) -> int | None:
        for name in self._kind.dates:
            date = self._payload.get(name)
            if date is None:
                continue
            if type(date) is int and 0 < date <= _DATE_MAX:
                return date
            self._cannot_use(name, "a date in seconds", date)
        return None

    def _read_text(self) -> str:
        for name in self._kind.texts:
            text = self._payload.get(name)
            if type(text) is str:
                return text
            if text is not None:
                self._cannot_use(name, "a string", text)
        return ""

    def _cannot_use(self, field: str, expected: str, found: object) -> None:
        if self.error is None:
            within = f"{self._kind.message_in}." if self._kind.message_in and field.startswith("chat") else ""
            self.error = f"{self._kind_name}.{within}{field}: expected {expected}, found {_named(found)}"

    def suspension(self, pushed_at: datetime | None) -> Reason | None:
        """Why it is not to be run, if so. Only what was pushed can be a replay: a poll asks Telegram itself."""
        if self.error is not None:
            return Reason.RAW_PAYLOAD_INVALID
        if pushed_at is None or self.date is None or pushed_at.timestamp() - self.date <= _STALE_SECONDS:
            return None
        self.error = f"{self._kind_name}: its date is more than 24 h 10 min ago"
        return Reason.STALE_REPLAY

    def lane(self, account: str) -> LaneKey:
        if self.chat_id is not None and self._kind.lane is LaneOf.CHAT:
            return LaneKey(f"tg:{account}:{self.chat_id}:{self.thread_id or 0}")
        if self.error is not None:
            return LaneKey(f"tg:{account}:unreadable")
        if self._kind.lane is LaneOf.ACCOUNT:
            return LaneKey(f"tg:{account}")
        return LaneKey(f"tg:{account}:u{self.user_id or 0}{_LANE_SUFFIXES[self._kind.lane]}")

    def user(self) -> dict[str, Any]:
        """Who it is from; only what the update says."""
        sender = self._sender
        user: dict[str, Any] = {}
        if self.chat_id is not None:
            user["chat_id"] = self.chat_id
        if self.message_id is not None:
            user["message_id"] = str(self.message_id)
        if self.user_id is not None:
            user["user_id"] = str(self.user_id)
        for name in ("username", "first_name", "language_code"):
            if type(value := sender.get(name)) is str:
                user[name] = value
        return user

    def metadata(self, update_id: int | None) -> dict[str, Any]:
        """Routing for every channel's readers, and what a reply needs to find its way back."""
        metadata: dict[str, Any] = {"kind": self._kind_name}
        if update_id is not None:
            metadata["update_id"] = str(update_id)
        if self.chat_id is not None:
            metadata["chat_id"] = self.chat_id
            metadata["convo_id"] = f"{self.chat_id}:{self.user_id or self.chat_id}"
        if self.message_id is not None:
            metadata["message_id"] = str(self.message_id)
        if self.date is not None:
            metadata["timestamp_iso"] = datetime.fromtimestamp(self.date, UTC).isoformat()[:19] + "Z"
            metadata["message_ts"] = self.date
        if self.thread_id is not None:
            is_topic = self._message.get("is_topic_message") is True
            metadata["thread_id" if is_topic else "direct_messages_topic_id"] = str(self.thread_id)
        for name in ("media_group_id", "business_connection_id"):
            if type(value := self._message.get(name)) is str:
                metadata[name] = value
        if self._kind is not _MESSAGE:
            self._add_ids_to_answer_by(metadata)
        return metadata

    def _add_ids_to_answer_by(self, metadata: dict[str, Any]) -> None:
        for name in ("inline_message_id", "guest_query_id"):
            if type(value := self._payload.get(name)) is str:
                metadata[name] = value
        parameter = _ANSWERED_BY_ID.get(self._kind_name)
        if parameter is not None and type(value := self._payload.get("id")) is str:
            metadata[parameter] = value


_LANES_WITH_CHAT: Final = frozenset({LaneOf.CHAT, LaneOf.CALLBACK})
_LANE_SUFFIXES: Final = {
    LaneOf.CHAT: "",
    LaneOf.USER: "",
    LaneOf.CALLBACK: ":callback",
    LaneOf.INLINE: ":inline",
    LaneOf.PAYMENT: ":payment",
}


def _int64(value: object) -> int | None:
    """The number if every store can hold it. `True` is not one."""
    return value if type(value) is int and -_INT64_MAX - 1 <= value <= _INT64_MAX else None


def _named(value: object) -> str:
    """What a JSON value is, without saying it: it may be long, and it is somebody's."""
    if type(value) is int and _int64(value) is None:
        return "a number beyond 64 bits"
    return _JSON_NAMES.get(type(value), "something else")


_JSON_NAMES: Final[dict[type, str]] = {
    type(None): "nothing",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


# --- what goes out: text ----------------------------------------------------------------------------------


def utf16_units(text: str) -> int:
    """How long Telegram takes a text to be."""
    return len(text) + sum(character > "\uffff" for character in text) if not text.isascii() else len(text)


def split_text(text: str, *, units_max: int = _TEXT_CHUNK_UNITS, first_units_max: int | None = None) -> list[str]:
    """The text as chunks that each fit: cut at a paragraph, line, sentence or word where the chunk's second
    half has one, else between two characters as people see them.

    Only whitespace at the cuts is lost. No chunk is blank; of a blank text nothing is left.
    """
    chunks = []
    rest = clean_text(text)
    limit = units_max if first_units_max is None else first_units_max
    while rest.strip():
        end = _fitting(rest, limit)
        if end == len(rest):
            chunks.append(rest)
            break
        cut = _best_cut(rest, end)
        if chunk := rest[:cut].rstrip():
            chunks.append(chunk)
            limit = units_max
        # A line that starts the next chunk keeps its indentation.
        rest = rest[cut:].lstrip("\n") if rest[cut - 1] == "\n" else rest[cut:].lstrip()
    return chunks


def _fitting(text: str, units_max: int) -> int:
    """How many characters from the start fit."""
    if len(text) <= units_max and utf16_units(text) <= units_max:
        return len(text)
    units = 0
    for at, character in enumerate(text):
        units += 2 if character > "\uffff" else 1
        if units > units_max:
            return at
    return len(text)


_SENTENCE_END: Final = re.compile(r"[.!?…]['\"»”’)\]]*\s|[。！？]")
_SPACE: Final = re.compile(r"\s")


def _best_cut(text: str, end: int) -> int:
    half = end // 2
    for boundary in ("\n\n", "\n"):
        at = text.rfind(boundary, half, end)
        if at >= 0:
            return at + len(boundary)
    for pattern in (_SENTENCE_END, _SPACE):
        # One character more: a word may end exactly where the chunk does.
        ends = [found.end() for found in pattern.finditer(text, half, end + 1)]
        if ends:
            return min(ends[-1], end)
    return _between_characters(text, end)


_JOINED_SEARCH_MAX: Final = 64


def _between_characters(text: str, end: int) -> int:
    """The last place up to `end` where nothing that is seen as one is cut in two.

    Good for accents, flags, skin tones and families of emoji. Something longer than any of them is cut.
    """
    for at in range(end, max(end - _JOINED_SEARCH_MAX, 0), -1):
        if not _is_joined(text, at):
            return at
    return max(end, 1)


def _is_joined(text: str, at: int) -> bool:
    before, after = text[at - 1], text[at]
    if (
        before == _JOINER
        or after == _JOINER
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or "\U000e0020" <= after <= "\U000e007f"
    ):
        return True
    if _is_regional(before) and _is_regional(after):
        start = at
        while start > 0 and _is_regional(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 1
    return unicodedata.category(after) in _COMBINING


_JOINER: Final = "\u200d"
_COMBINING: Final = frozenset({"Mn", "Mc", "Me"})


def _is_regional(character: str) -> bool:
    """Half a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


# --- what goes out: calls ---------------------------------------------------------------------------------

MEDIA_METHODS: Final = {
    "photo": "sendPhoto",
    "document": "sendDocument",
    "video": "sendVideo",
    "audio": "sendAudio",
    "voice": "sendVoice",
    "animation": "sendAnimation",
}
_CAPTIONED: Final = frozenset(MEDIA_METHODS.values())

CALLBACK_DATA_BYTES_MAX: Final = 64
CALLBACK_ANSWER_UNITS_MAX: Final = 200

_METHOD_NAME: Final = re.compile(r"[A-Za-z]{1,64}")

_TO_A_CHAT: Final = ("send", "edit", "forward", "copy")
_NOT_TO_THE_TASKS_CHAT: Final = frozenset({"chat_id", "inline_message_id", "user_id"})

_REPEATABLE: Final = (
    "edit",
    "answer",
    "set",
    "delete",
    "get",
    "pin",
    "unpin",
    "ban",
    "unban",
    "restrict",
    "promote",
    "approve",
    "decline",
    "sendchataction",
)


def compose(head: Head, effects: Sequence[Effect]) -> list[Call]:
    """The effects as Bot API calls. A call to the task's own chat leaves `chat_id` out: it is filled in when
    it is sent, because a group may have moved by then."""
    calls: list[Call] = []
    for effect in effects:
        match effect.kind:
            case "reply":
                calls += _reply(head, effect)
            case "edit":
                calls += _edit(head, effect)
            case "answer_callback":
                calls.append(_callback_answer(head, effect))
            case "call":
                calls.append(_call(head, effect))
            case _:
                raise PayloadInvalid(f"Telegram has no effect {effect.kind!r}", field="kind")
    return calls


def _reply(head: Head, effect: Effect) -> list[Call]:
    _require_chat(head)
    calls = list(_media(effect.media, effect) if effect.media is not None else _texts(effect.text, effect))
    if not calls:
        raise PayloadInvalid("the reply has no text", field="text")
    where = _where(head)
    calls = [Call(call.method, call.params | where, call.text) for call in calls]
    if effect.reply_to is not None:
        # Without it, a message that was deleted meanwhile would take its answer with it.
        reply_to = {"message_id": _number(effect.reply_to, "reply_to"), "allow_sending_without_reply": True}
        calls[0] = _with(calls[0], reply_parameters=reply_to)
    return _with_buttons(calls, effect.buttons)


def _texts(text: str, effect: Effect) -> Iterator[Call]:
    """Markup is kept only in a text that is one message: a cut through an entity would refuse the whole."""
    chunks = split_text(text)
    for chunk in chunks:
        yield Call("sendMessage", {"text": chunk} | _parse_mode(effect, chunks), chunk)


def _media(media: Mapping[str, Any], effect: Effect) -> Iterator[Call]:
    """A file; what its caption cannot hold, and text beside a caption, follow as messages."""
    kind, file, given = media.get("kind"), media.get("file"), media.get("caption")
    if kind not in MEDIA_METHODS:
        raise PayloadInvalid(f"media.kind is one of {', '.join(MEDIA_METHODS)}", field="media.kind")
    if not isinstance(file, str) or not file:
        raise PayloadInvalid("media.file is a URL or a file_id", field="media.file")
    if given is not None and not isinstance(given, str):
        raise PayloadInvalid("media.caption is a text", field="media.caption")
    chunks = split_text(given or effect.text, first_units_max=_CAPTION_CHUNK_UNITS)
    caption, following = chunks[:1], chunks[1:]
    params: dict[str, Any] = {kind: file}
    if caption:
        params |= {"caption": caption[0]} | _parse_mode(effect, chunks)
    yield Call(MEDIA_METHODS[kind], params, caption[0] if caption else f"[{kind}]")
    for chunk in following:
        yield Call("sendMessage", {"text": chunk}, chunk)
    if given:
        yield from _texts(effect.text, effect)


def _parse_mode(effect: Effect, chunks: Sequence[str]) -> dict[str, Any]:
    return {"parse_mode": effect.parse_mode} if effect.parse_mode and len(chunks) == 1 else {}


def _edit(head: Head, effect: Effect) -> list[Call]:
    """Change a message: the one named, or the one whose button was pressed."""
    target = _edit_target(head, effect)
    if business := head.metadata.get("business_connection_id"):
        target["business_connection_id"] = business
    if not effect.text.strip():
        if effect.buttons is None:
            raise PayloadInvalid("the edit has no text", field="text")
        return _with_buttons([Call("editMessageReplyMarkup", target)], effect.buttons)
    first, *following = _texts(effect.text, effect)
    if following:
        _require_chat(head)
    where = _where(head)
    calls = [Call("editMessageText", target | first.params, first.text)]
    calls += [Call(call.method, call.params | where, call.text) for call in following]
    return _with_buttons(calls, effect.buttons)


def _edit_target(head: Head, effect: Effect) -> dict[str, Any]:
    if effect.message_id is not None:
        _require_chat(head)
        return {"message_id": _number(effect.message_id, "message_id")}
    if head.kind == "callback_query":
        if inline := head.metadata.get("inline_message_id"):
            return {"inline_message_id": inline}
        if (message_id := head.metadata.get("message_id")) and head.chat_id is not None:
            return {"message_id": _number(message_id, "message_id")}
    raise PayloadInvalid("the edit does not say which message", field="message_id")


def _callback_answer(head: Head, effect: Effect) -> Call:
    callback_query_id = head.metadata.get("callback_query_id")
    if not callback_query_id:
        raise PayloadInvalid(f"a task of kind {head.kind} has no callback to answer", field="kind")
    if utf16_units(effect.text) > CALLBACK_ANSWER_UNITS_MAX:
        raise PayloadInvalid(f"a callback is answered in at most {CALLBACK_ANSWER_UNITS_MAX} characters", field="text")
    params = effect.params | {"callback_query_id": callback_query_id}
    if effect.text:
        params["text"] = clean_text(effect.text)
    return Call("answerCallbackQuery", params, effect.text)


def _call(head: Head, effect: Effect) -> Call:
    if _METHOD_NAME.fullmatch(effect.method) is None:
        raise PayloadInvalid("the method is a name of the Bot API such as sendDice", field="method")
    params = dict(effect.params)
    if _is_to_a_chat(effect.method) and head.chat_id is not None and str(params.get("chat_id")) == head.chat_id:
        del params["chat_id"]
    text = params.get("text", params.get("caption", ""))
    return Call(effect.method, params, text if isinstance(text, str) else "")


def _require_chat(head: Head) -> None:
    if head.chat_id is None:
        raise PayloadInvalid(f"a task of kind {head.kind} has no chat to write to", field="chat_id")


def _where(head: Head) -> dict[str, Any]:
    """The part of the chat that the task came from."""
    where: dict[str, Any] = {}
    if (thread_id := head.metadata.get("thread_id")) is not None:
        where["message_thread_id"] = _number(thread_id, "metadata.thread_id")
    if (topic_id := head.metadata.get("direct_messages_topic_id")) is not None:
        where["direct_messages_topic_id"] = _number(topic_id, "metadata.direct_messages_topic_id")
    if business := head.metadata.get("business_connection_id"):
        where["business_connection_id"] = business
    return where


def _number(value: object, field: str) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise PayloadInvalid(f"{field} is a number on Telegram", field=field) from error


def _with(call: Call, **params: Any) -> Call:
    return Call(call.method, call.params | params, call.text)


def _with_buttons(calls: list[Call], rows: Sequence[Sequence[Mapping[str, str]]] | None) -> list[Call]:
    """Below the last: that is where people look when they have read."""
    if rows is None:
        return calls
    keyboard = [[_button(button) for button in row] for row in rows]
    return [*calls[:-1], _with(calls[-1], reply_markup={"inline_keyboard": keyboard})]


def _button(button: Mapping[str, str]) -> dict[str, str]:
    text, data, url = button.get("text"), button.get("data"), button.get("url")
    if not text or (data is None) == (url is None):
        raise PayloadInvalid("a button has a text, and either data or a url", field="buttons")
    if url is not None:
        return {"text": clean_text(text), "url": url}
    if data is None or not 1 <= len(data.encode("utf-8", "replace")) <= CALLBACK_DATA_BYTES_MAX:
        raise PayloadInvalid(f"a button's data is 1 to {CALLBACK_DATA_BYTES_MAX} bytes", field="buttons")
    return {"text": clean_text(text), "callback_data": data}


def _is_to_a_chat(method: str) -> bool:
    return method.lower().startswith(_TO_A_CHAT)


def _addressed(call: Call, chat_id: str) -> Mapping[str, Any]:
    if not _is_to_a_chat(call.method) or not _NOT_TO_THE_TASKS_CHAT.isdisjoint(call.params):
        return call.params
    return {"chat_id": chat_id, **call.params}


def marked(call: Call) -> Call:
    """With `↻ ` before its text or caption; a text that leaves no room for it stays as it is."""
    if "text" in call.params and call.method.lower() != "answercallbackquery":
        return _marked_in(call, "text", "entities", TEXT_UNITS_MAX)
    if "caption" in call.params or call.method in _CAPTIONED:
        return _marked_in(call, "caption", "caption_entities", CAPTION_UNITS_MAX)
    return call


def _marked_in(call: Call, field: str, entities_field: str, units_max: int) -> Call:
    text = call.params.get(field, "")
    if not isinstance(text, str) or text.startswith(MARK) or utf16_units(text) + len(MARK) > units_max:
        return call
    # A quote is one only at the start of a line; elsewhere its sign would have to be escaped.
    is_quote = str(call.params.get("parse_mode", "")).lower() == "markdownv2" and text.startswith((">", "**>"))
    mark = MARK[0] + "\n" if is_quote else MARK
    params = call.params | {field: mark + text}
    if isinstance(entities := params.get(entities_field), list):
        params[entities_field] = [_shifted(entity, len(mark)) for entity in entities]
    return Call(call.method, params, mark + call.text)


def _shifted(entity: Any, units: int) -> Any:
    if isinstance(entity, Mapping) and isinstance(offset := entity.get("offset"), int):
        return {**entity, "offset": offset + units}
    return entity


# --- the channel ------------------------------------------------------------------------------------------


class TelegramRates(msgspec.Struct, frozen=True, kw_only=True):
    """What Telegram lets a bot send before it answers 429."""

    chat_per_second: float = 1.0
    group_per_minute: float = 20.0
    bot_per_second: float = 30.0


class WebhookInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How Telegram delivers to this bot, and how well."""

    url: str = ""
    pending_update_count: int = 0
    last_error_date: int | None = None
    last_error_message: str | None = None
    last_synchronization_error_date: int | None = None
    max_connections: int | None = None
    allowed_updates: list[str] = []


class Answer(msgspec.Struct, frozen=True):
    """What came back for a call, unread."""

    status: int
    body: bytes


class Unanswered(msgspec.Struct, frozen=True):
    """Nothing came back. `body_went_out`: all of the call was given to the socket, so it may have been done."""

    error: str
    body_went_out: bool


@dataclass(slots=True)
class _Progress:
    body_bytes_left: int


_CONNECT_SECONDS: Final = 10.0
_ACCOUNT_PAUSE_CHATS: Final = 3
_ACCOUNT_PAUSE_WINDOW_SECONDS: Final = 10.0


class TelegramChannel:
    """One or more bots. An account is a bot's number, as text."""

    name = CHANNEL

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        clock: Clock,
        api_base: str = API_BASE,
        rates: TelegramRates | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._tokens = {bot_id_of(token): token for token in tokens}
        self._clock = clock
        self._api_base = api_base.rstrip("/")
        self._rates = rates or TelegramRates()
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._paused_chats: dict[str, dict[str, float]] = {}

    @property
    def accounts(self) -> list[str]:
        return list(self._tokens)

    def use_token(self, token: str) -> str:
        """Serve this bot too, or with a new token from now on. Returns its account."""
        account = bot_id_of(token)
        self._tokens[account] = token
        return account

    def read_update(
        self,
        body: bytes,
        *,
        account: str,
        webhook: bool,
        now: datetime,
        source: str = "telegram-bot",
        request_id: str | None = None,
        trace_id: str | None = None,
    ) -> Incoming:
        return read_update(
            body,
            account=account,
            webhook=webhook,
            now=now,
            source=source,
            request_id=request_id,
            trace_id=trace_id,
        )

    def compose(self, head: Head, effects: Sequence[Effect]) -> list[Call]:
        return compose(head, effects)

    def notice(self, head: Head, text: str) -> Call | None:
        chunks = split_text(text)
        if head.chat_id is None or not chunks:
            return None
        return Call("sendMessage", {"text": chunks[0], "disable_notification": True} | _where(head), chunks[0])

    def marked(self, call: Call) -> Call:
        return marked(call)

    def is_repeatable(self, call: Call) -> bool:
        return call.method.lower().startswith(_REPEATABLE)

    def acknowledgement(self, head: Head) -> Call | None:
        callback_query_id = head.metadata.get("callback_query_id")
        if head.kind != "callback_query" or not callback_query_id:
            return None
        return Call("answerCallbackQuery", {"callback_query_id": callback_query_id})

    def rates(self, chat_id: str) -> SendRates:
        is_private = chat_id.isdigit()
        return SendRates(
            chat_per_second=self._rates.chat_per_second,
            chat_per_minute=None if is_private else self._rates.group_per_minute,
            account_per_second=self._rates.bot_per_second,
        )

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        if account not in self._tokens:
            return AccountDown(f"no token for bot {account} is configured")
        outcome = judged(call, await self.exchange(account, call.method, _addressed(call, chat_id)))
        match outcome:
            case Paused():
                return self._with_evidence(account, chat_id, outcome)
            case Moved(new_chat_id) if "chat_id" in call.params:
                # Another chat than the task's: moving that one's replies there would mix up two chats.
                return Refused(f"chat {call.params['chat_id']} has become {new_chat_id}: write to that")
            case Refused(error, chat_gone=True) if "chat_id" in call.params:
                return Refused(error)
            case _:
                return outcome

    def _with_evidence(self, account: str, chat_id: str, pause: Paused) -> Paused:
        """A 429 names no culprit. Several chats refused in a row are taken as the bot's own limit."""
        now = self._clock.monotonic()
        recent = self._paused_chats.setdefault(account, {})
        recent[chat_id] = now
        for other, at in list(recent.items()):
            if now - at > _ACCOUNT_PAUSE_WINDOW_SECONDS:
                del recent[other]
        if len(recent) < _ACCOUNT_PAUSE_CHATS:
            return pause
        recent.clear()
        return Paused(pause.seconds, pause.error, whole_account=True)

    async def show_typing(self, account: str, chat_id: str) -> None:
        if account in self._tokens:
            await self.exchange(account, "sendChatAction", {"chat_id": chat_id, "action": "typing"})

    async def download(self, account: str, file_id: str) -> bytes:
        try:
            described = await self.ask(account, "getFile", {"file_id": file_id})
        except Rejected as error:
            raise PayloadInvalid(error.public_message, field="file_id") from error
        path = described.get("file_path") if isinstance(described, dict) else None
        if not isinstance(path, str):
            raise ChannelUnavailable("Telegram named no path for the file")
        answer = await self._get_file(account, path)
        if isinstance(answer, Unanswered):
            raise ChannelUnavailable(f"the file did not come: {answer.error}")
        if len(answer.body) > DOWNLOAD_BYTES_MAX:
            raise PayloadInvalid("the file is larger than bots may download (20 MB)", field="file_id")
        if answer.status in (400, 404):
            raise PayloadInvalid("Telegram keeps no such file any more", field="file_id")
        if answer.status != 200:
            raise ChannelUnavailable(f"Telegram answered {answer.status} for the file")
        return answer.body

    # the bot and its webhook

    async def get_me(self, account: str) -> dict[str, Any]:
        """What Telegram says about the bot. Raises `ChannelUnavailable` if it does not know the token."""
        described = await self.ask(account, "getMe", {})
        return described if isinstance(described, dict) else {}

    async def set_webhook(self, account: str, url: str, secret: str, *, max_connections: int | None = None) -> None:
        """Have updates of every kind pushed to the URL. Nothing pending is lost by it.

        Raises `Rejected` with Telegram's words if it does not take the URL, `ChannelUnavailable` otherwise.
        """
        params: dict[str, Any] = {"url": url, "secret_token": secret, "allowed_updates": list(KINDS)}
        if max_connections is not None:
            params["max_connections"] = max_connections
        await self.ask(account, "setWebhook", params)

    async def delete_webhook(self, account: str) -> None:
        """What is pending stays, for whoever asks for it next."""
        await self.ask(account, "deleteWebhook", {})

    async def webhook_info(self, account: str) -> WebhookInfo:
        described = await self.ask(account, "getWebhookInfo", {})
        try:
            return msgspec.convert(described, WebhookInfo)
        except msgspec.ValidationError as error:
            raise ChannelUnavailable(f"Telegram's webhook info cannot be read: {error}") from error

    async def ask(self, account: str, method: str, params: Mapping[str, Any]) -> Any:
        """A call for its result. Raises `Rejected` where Telegram says no, else `ChannelUnavailable`."""
        answer = await self.exchange(account, method, params)
        outcome = judged(Call(method, dict(params)), answer)
        match outcome:
            case Succeeded() if isinstance(answer, Answer):
                return msgspec.json.decode(msgspec.json.decode(answer.body, type=_Result).result)
            case Refused(error) | Unreadable(error):
                raise Rejected(f"Telegram refused {method}: {error}")
            case Moved(chat_id):
                raise Rejected(f"Telegram refused {method}: the chat is now {chat_id}")
            case Paused(seconds, error):
                raise ChannelUnavailable(f"{method}: {error}", retry_after_seconds=int(seconds) + 1)
            case NotSent(error) | AccountDown(error):
                raise ChannelUnavailable(f"{method}: {error}")
            case Uncertain(error):
                raise ChannelUnavailable(f"{method}: {error}", sent_perhaps=True)
        raise AssertionError(outcome)

    # the wire

    async def exchange(
        self,
        account: str,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout_seconds: float | None = None,
    ) -> Answer | Unanswered:
        """Put one call on the wire. The only place that meets aiohttp's errors."""
        import aiohttp

        token = self._tokens.get(account)
        if token is None:
            return Unanswered(f"no token for bot {account} is configured", body_went_out=False)
        body = encode_json(params)
        progress = _Progress(len(body))
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            async with self._open_session().post(
                f"{self._api_base}/bot{token}/{method}",
                data=body,
                headers={"Content-Type": "application/json"},
                # A redirect would send the message to somebody else.
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS),
                trace_request_ctx=progress,
            ) as response:
                return Answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            return Unanswered(_without_url(error), body_went_out=progress.body_bytes_left <= 0)

    async def _get_file(self, account: str, path: str) -> Answer | Unanswered:
        """Reads one byte too many at most: enough to see that it is too large."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=self._timeout_seconds)
        url = f"{self._api_base}/file/bot{self._tokens[account]}/{path}"
        content = bytearray()
        try:
            async with self._open_session().get(url, allow_redirects=False, timeout=timeout) as response:
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > DOWNLOAD_BYTES_MAX:
                        break
                return Answer(response.status, bytes(content))
        except (aiohttp.ClientError, OSError) as error:
            return Unanswered(_without_url(error), body_went_out=True)

    def _open_session(self) -> aiohttp.ClientSession:
        """aiohttp itself, not aiogram's client on top of it: that turns every failure of the network into one
        exception (whose text holds the URL, and the URL the token), leaves out parameters that are empty,
        and takes seconds to import. Whether a call went out is the one thing that must be known."""
        import aiohttp

        if self._session is None or self._session.closed:
            trace = aiohttp.TraceConfig()
            trace.on_request_chunk_sent.append(_count_sent)
            self._session = aiohttp.ClientSession(
                # Connections that idle are dropped sooner than Telegram drops them: on one that is being
                # closed, a call would be lost in a way that cannot be told from having been done.
                connector=aiohttp.TCPConnector(limit=200, keepalive_timeout=15, ttl_dns_cache=300),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        return self._session

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _count_sent(session: aiohttp.ClientSession, context: Any, sent: aiohttp.TraceRequestChunkSentParams) -> None:
    # aiohttp says so right before it hands the bytes to the socket. Everything that fails earlier (DNS,
    # connecting, TLS, waiting for a free connection) fails before this; whatever fails later may have
    # been done. Erring by that one step is erring to the safe side.
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.body_bytes_left -= len(sent.chunk)


def _without_url(error: Exception) -> str:
    """What happened, by class and number: the words of these errors hold the URL, which holds the token."""
    name = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{type(error).__name__} ({name})" if name else type(error).__name__


# --- how a call ended -------------------------------------------------------------------------------------


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
_METHOD_NOT_FOUND: Final = "method not found"

_MARKUP_FIELDS: Final = frozenset({"parse_mode", "entities", "caption_entities"})
_PAUSE_SECONDS_DEFAULT: Final = 5.0

_ANSWERED_WITHOUT_MESSAGE: Final = (
    "sendchataction",
    "sendchatjoinrequest",
    "sendgift",
    "sendmessagedraft",
    "sendrichmessagedraft",
)


def judged(call: Call, answer: Answer | Unanswered) -> SendOutcome:
    """How a call ended. The one place where Telegram's answers, and their absence, get their meaning."""
    if isinstance(answer, Unanswered):
        return Uncertain(answer.error) if answer.body_went_out else NotSent(answer.error)
    try:
        result = msgspec.json.decode(answer.body, type=_Result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _judged_unreadable(answer.status)
    if answer.status >= 500:
        return Uncertain(f"{answer.status} {result.description}".strip())
    if not result.ok:
        return _judged_refusal(call, result, result.error_code or answer.status)
    return _judged_result(call, result) if answer.status == 200 else _judged_unreadable(answer.status)


def _judged_unreadable(status: int) -> SendOutcome:
    """It is not the Bot API that speaks. A redirect or a 4xx from before it says that nothing was passed on."""
    error = f"an answer {status} that is not of the Bot API"
    return NotSent(error) if 300 <= status < 500 else Uncertain(error)


def _judged_result(call: Call, result: _Result) -> SendOutcome:
    """A 200 counts only with what it must bring: a proxy may say `ok` too."""
    method = call.method.lower()
    try:
        shown = msgspec.json.decode(result.result)
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


def _judged_refusal(call: Call, result: _Result, code: int) -> SendOutcome:
    error = f"{code} {result.description}".strip()
    parameters = result.parameters or _Parameters()
    if parameters.migrate_to_chat_id is not None:
        return Moved(str(parameters.migrate_to_chat_id))
    match code:
        case 400:
            return _judged_bad_request(call, result.description.lower(), error)
        case 401:
            return AccountDown(error)
        case 403:
            return Refused(error, chat_gone=True)
        case 404:
            # A token that is none is not found, and neither is a method that is none.
            return Refused(error) if _METHOD_NOT_FOUND in result.description.lower() else AccountDown(error)
        case 409:
            return NotSent(error)
        case 429:
            return Paused(parameters.retry_after or _PAUSE_SECONDS_DEFAULT, error)
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
    return Call(call.method, params, call.text)


def _instead_of_edit(call: Call) -> Call:
    """The message is gone or too old to change: what it was to say is said below it, and marked."""
    params = {name: value for name, value in call.params.items() if name != "message_id"}
    reply_to = {"message_id": call.params["message_id"], "allow_sending_without_reply": True}
    return marked(Call("sendMessage", params | {"reply_parameters": reply_to}, call.text))

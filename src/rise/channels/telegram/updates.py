"""Updates: the bytes Telegram sent become an `Incoming`.

Promises: reading never raises and never changes the bytes. What cannot be read is marked for suspension with the
place and the reason. What a business's customers write has lanes and chats of its own, apart from what the same
people write to the bot itself. A group that became a supergroup keeps its lane, which is named after its first id.

Refuses: to parse what is deeper or has more keys than any update, to guess a field that routing needs, to run
what was pushed a day too late.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Final

import msgspec

from rise.channels.port import Incoming
from rise.channels.telegram.addresses import chat_id_of
from rise.channels.telegram.reading import read_json
from rise.chats import ChatRegistry
from rise.envelope import DeliveryKey, LaneKey, Order, Reason, fits_int64, json_name
from rise.ledger.port import ChatMove

CHANNEL: Final = "telegram"
RAW_VERSION: Final = "tg.v1"
RECEIPT_SECONDS: Final = 72 * 3600
STALE_AFTER: Final = timedelta(hours=24, minutes=10)
"""Telegram keeps an update for 24 h; a webhook that brings an older one was recorded and played back."""


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
    in_a_business: bool = False
    """Its chat is always one that the bot answers in a business's name."""


_MESSAGE: Final = UpdateKind(texts=("text", "caption"), notifiable=True)
# An edit that Telegram shows nobody has no date: that of its message says nothing of it.
_EDITED: Final = UpdateKind(dates=("edit_date",), texts=("text", "caption"), notifiable=True)
_POST: Final = UpdateKind(texts=("text", "caption"))
_EDITED_POST: Final = UpdateKind(dates=("edit_date",), texts=("text", "caption"))
_BUSINESS: Final = replace(_MESSAGE, in_a_business=True)
_EDITED_BUSINESS: Final = replace(_EDITED, in_a_business=True)
_QUERY: Final = UpdateKind(LaneOf.INLINE, dates=(), texts=("query",), lifetime_seconds=30)
_PAYMENT: Final = UpdateKind(LaneOf.PAYMENT, dates=(), lifetime_seconds=150)

KINDS: Final[Mapping[str, UpdateKind]] = {
    "message": _MESSAGE,
    "edited_message": _EDITED,
    "channel_post": _POST,
    "edited_channel_post": _EDITED_POST,
    # Its date says when the connection was made; one that is changed or ended a month later carries the same.
    "business_connection": UpdateKind(LaneOf.USER, user="user", dates=()),
    "business_message": _BUSINESS,
    "edited_business_message": _EDITED_BUSINESS,
    "deleted_business_messages": UpdateKind(user=None, dates=(), in_a_business=True),
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
_DATE_MAX: Final = 253_402_300_799
"""The last second of the year 9999: beyond it there is no date to show."""


def read_update(
    body: bytes,
    *,
    account: str,
    now: datetime,
    webhook: bool,
    source: str = "telegram-bot",
    trace_id: str | None = None,
    chats: ChatRegistry | None = None,
) -> Incoming:
    """One update, exactly as it came. Never raises.

    Unparsable bytes, an unknown kind or a field that routing needs and cannot use: marked to be suspended,
    with the place in `error`. `webhook`: it was pushed, so one that is too old is a replay.
    `chats`: which have moved; that another has is known there before the next update is read.
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
    moved = None
    if chats is not None:
        # From one that is too old as well: a chat that has moved has moved, whoever says so when.
        is_unread = suspend is Reason.RAW_PAYLOAD_INVALID
        moved = None if is_unread else read.hear_of_a_move(account, chats)
        read.find_first_chat_id(account, chats)
    return Incoming(
        channel=CHANNEL,
        account=account,
        source=source,
        delivery_key=_delivery_key(account, update_id, body),
        lane=read.lane(account),
        raw=body,
        raw_version=RAW_VERSION,
        raw_is_json=is_json,
        raw_is_unique=update_id is not None,
        kind=kind_name,
        order=None if read.date is None or update_id is None else Order(read.date * 1000, update_id),
        chat_id=read.chat_id,
        first_chat_id=read.first_chat_id,
        moved=moved,
        message_label=f"{read.chat_id or read.user_id or account}:{read.message_id or update_id or '-'}",
        user_text=read.text,
        user=read.user(),
        metadata=read.metadata(update_id),
        notifiable=read.notifiable,
        receipt_seconds=RECEIPT_SECONDS,
        lifetime_seconds=read.lifetime_seconds,
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
        update: Any = read_json(body, Any)
    except UnicodeDecodeError as error:
        raise _UpdateUnreadable(f"the body is not UTF-8: {error.reason}", is_json=False) from error
    except msgspec.ValidationError as error:
        # The only limit without a type to match is that of numbers: thousands of digits, or 1e999.
        raise _UpdateUnreadable(f"the body has an unusable value: {error}", is_json=False) from error
    except msgspec.DecodeError as error:
        raise _UpdateUnreadable(f"the body is not JSON: {error}", is_json=False) from error
    if type(update) is not dict:
        raise _UpdateUnreadable(f"the body is {json_name(update)}, not an object", is_json=True)
    return update


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
        raise _UpdateUnreadable(f"{kind_name}: expected an object, found {json_name(payload)}", is_json=True)
    return kind_name[:_KIND_NAME_MAX], payload if type(payload) is dict else {}


_KIND_NAME_MAX: Final = 64


class _Reading:
    """What one update says about where it belongs. `error` names the first field that could not be used."""

    __slots__ = (
        "_business_connection_id",
        "_chat",
        "_kind",
        "_kind_name",
        "_message",
        "_payload",
        "_sender",
        "chat_id",
        "date",
        "error",
        "first_chat_id",
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
        self._business_connection_id = self._read_business_connection()
        self._chat = self._read_chat()
        self.chat_id = None if self._chat is None else chat_id_of(self._chat, self._business_connection_id)
        self.first_chat_id: str | None = None
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

    def _read_business_connection(self) -> str | None:
        connection_id = self._message.get("business_connection_id")
        if type(connection_id) is str and connection_id:
            return connection_id
        if connection_id is not None or self._kind.in_a_business:
            self._cannot_use(self._in_message("business_connection_id"), "an id", connection_id)
        return None

    def _read_chat(self) -> str | None:
        # A business's chat without its connection would be taken for the bot's own chat with that person.
        if self.error is not None or self._kind.lane not in _LANES_WITH_CHAT:
            return None
        chat = self._message.get("chat")
        if chat is None and self._kind.lane is not LaneOf.CHAT:
            return None
        if type(chat) is not dict:
            self._cannot_use(self._in_message("chat"), "an object", chat)
            return None
        chat_id = _int64(chat.get("id"))
        if chat_id is None:
            self._cannot_use(self._in_message("chat.id"), "a 64-bit integer", chat.get("id"))
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
            self.error = f"{self._kind_name}.{field}: expected {expected}, found {json_name(found)}"

    def _in_message(self, field: str) -> str:
        return field if self._kind.message_in is None else f"{self._kind.message_in}.{field}"

    def suspension(self, pushed_at: datetime | None) -> Reason | None:
        """Why it is not to be run, if so. Only what was pushed can be a replay: a poll asks Telegram itself."""
        if self.error is not None:
            return Reason.RAW_PAYLOAD_INVALID
        if pushed_at is None or self.date is None or pushed_at.timestamp() - self.date <= _STALE_SECONDS:
            return None
        self.error = f"{self._kind_name}: its date is more than 24 h 10 min ago"
        return Reason.STALE_REPLAY

    def find_first_chat_id(self, account: str, chats: ChatRegistry) -> None:
        if self.chat_id is not None:
            self.first_chat_id = chats.first_id(CHANNEL, account, self.chat_id)

    def hear_of_a_move(self, account: str, chats: ChatRegistry) -> tuple[str, str] | None:
        """Said twice: the last message under the old id names the new one, the first under the new one the old."""
        if self._kind is not _MESSAGE or self._chat is None:
            return None
        old, new = _int64(self._payload.get("migrate_from_chat_id")), _int64(self._payload.get("migrate_to_chat_id"))
        if (old is None) == (new is None):
            return None
        was, now = (str(old), self._chat) if new is None else (self._chat, str(new))
        first_id = chats.first_id(CHANNEL, account, was) or was
        if first_id == now:
            return None
        chats.hear(ChatMove(channel=CHANNEL, account=account, chat_id=now, first_id=first_id))
        return first_id, now

    def lane(self, account: str) -> LaneKey:
        if self.chat_id is not None and self._kind.lane is LaneOf.CHAT:
            return LaneKey(f"tg:{account}:{self.first_chat_id or self.chat_id}:{self.thread_id or 0}")
        if self.error is not None:
            return LaneKey(f"tg:{account}:unreadable")
        if self._kind.lane is LaneOf.ACCOUNT:
            return LaneKey(f"tg:{account}")
        where = "" if self._business_connection_id is None else f"b{self._business_connection_id}:"
        return LaneKey(f"tg:{account}:{where}u{self.user_id or 0}{_LANE_SUFFIXES[self._kind.lane]}")

    def user(self) -> dict[str, Any]:
        """Who it is from; only what the update says."""
        sender = self._sender
        user: dict[str, Any] = {}
        if self._chat is not None:
            user["chat_id"] = self._chat
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
            metadata["chat_id"] = self._chat
            conversation = self.first_chat_id or self.chat_id
            metadata["convo_id"] = f"{conversation}:{self.user_id or conversation}"
        if self.message_id is not None:
            metadata["message_id"] = str(self.message_id)
        if self.date is not None:
            metadata["timestamp_iso"] = datetime.fromtimestamp(self.date, UTC).isoformat()[:19] + "Z"
            metadata["message_ts"] = self.date
        if self.thread_id is not None:
            is_topic = self._message.get("is_topic_message") is True
            metadata["thread_id" if is_topic else "direct_messages_topic_id"] = str(self.thread_id)
        if type(album := self._message.get("media_group_id")) is str:
            metadata["media_group_id"] = album
        if self._business_connection_id is not None:
            metadata["business_connection_id"] = self._business_connection_id
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
    return value if type(value) is int and fits_int64(value) else None

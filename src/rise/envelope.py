"""What a task is, on disk and on the wire, and how everything gets its name.

A task is kept as a small `Head` (derived once, at acceptance), the exact bytes received, and its `Progress`.
The `TaskEnvelope` of the HTTP API is made from the three when somebody looks. All ids come from here: those
of messages are derived from the platform's own, so that every host, store and replay arrives at the same.

Refuses: a head of a newer schema, or one that is torn (`EnvelopeMalformed`), because half of one would be guessed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, NewType
from urllib.parse import urlsplit

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.errors import EnvelopeMalformed

TaskId = NewType("TaskId", str)
RunId = NewType("RunId", str)
ReplyId = NewType("ReplyId", str)
DeliveryKey = NewType("DeliveryKey", str)
LaneKey = NewType("LaneKey", str)

SCHEMA: Final = 1
MOMENT_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: beyond it there is no date to show."""
FOLLOW_UP_AHEAD_MAX: Final = timedelta(days=5 * 366)
"""Of whatever plans it: what waits for longer than a version of Rise is remembered, nobody would dare to change."""
RAW_BYTES_MAX: Final = 1 << 20
"""The largest body any entry reads. Telegram sends at most 512 KiB."""
RAW_SHOWN_BYTES_MAX: Final = 256 * 1024
_FORGOTTEN: Final = LaneKey("forgotten")
_UNREADABLE: Final = "unreadable"
_NO_BYTES_SHA256: Final = hashlib.sha256(b"").hexdigest()


_INT64_MAX: Final = (1 << 63) - 1

JSON_NAMES: Final[dict[type, str]] = {
    type(None): "nothing",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
"""What a value read from JSON is, in the words of an error."""

FOLLOW_UP: Final = "follow_up"
"""The kind of what was planned: as it waits for its moment, and as what it then becomes."""


class TaskType(StrEnum):
    WORKFLOW_EXECUTE = "workflow.execute"
    MESSAGE_SEND = "message.send"
    CHANNEL_TEST = "channel.test"
    """Goes the way of every message and says nothing to anybody: that it ends is what it is for."""
    FOLLOW_UP = "follow_up.schedule"
    """Waits for its moment. Its run says nothing: it has what was planned accepted, in its chat's own lane."""


class Status(StrEnum):
    """The states of a task. Drawn in docs/states.md."""

    PENDING = "pending"
    PROCESSING = "processing"
    REPLYING = "replying"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    EXPIRED = "expired"
    DROPPED = "dropped"

    @property
    def is_finished(self) -> bool:
        return self in _FINISHED


_FINISHED = frozenset({Status.COMPLETED, Status.EXPIRED, Status.DROPPED})


class Reason(StrEnum):
    """Why a task is suspended."""

    WORKFLOW_PENDING = "workflow_pending"
    RAW_PAYLOAD_INVALID = "raw_payload_invalid"
    RETRIES_EXHAUSTED = "retries_exhausted"
    POISON = "poison"
    LANE_BLOCKED = "lane_blocked"
    STALE_REPLAY = "stale_replay"
    SCHEMA_NEWER = "schema_newer"
    KILL_SWITCH = "kill_switch"
    REPLY_HELD = "reply_held"


def words_of(status: str, reason: str | None, error: str | None) -> tuple[Status, Reason | None, str | None]:
    """How far a task is, as a store has it. What a newer version says in words of its own waits for that version:
    one such task must not hide the others."""
    try:
        return Status(status), Reason(reason) if reason else None, error
    except ValueError:
        theirs = f"a newer version of Rise says of it: {' '.join(filter(None, (status, reason)))}"
        return Status.SUSPENDED, Reason.SCHEMA_NEWER, "; ".join(filter(None, (theirs, error)))


class Outcome(StrEnum):
    """How a completed task ended."""

    ANSWERED = "answered"
    SILENT = "silent"
    UNDELIVERABLE = "undeliverable"
    NOT_ALLOWED = "not_allowed"
    RATE_LIMITED = "rate_limited"
    MERGED = "merged"
    """An earlier message of the same burst was answered for it, too."""


# --- names ------------------------------------------------------------------------------------------------


def task_id_of(delivery_key: DeliveryKey) -> TaskId:
    """The task of a delivery: the same on every host, in every store, at every replay."""
    return TaskId("t_" + _base32(b"rise1|" + delivery_key.encode()))


def run_id_of(task_id: TaskId, generation: int) -> RunId:
    return RunId(f"{task_id}.{generation}")


def parts_of(run_id: RunId) -> tuple[TaskId, int]:
    """Whose run it is, and in which generation."""
    task_id, _, generation = run_id.rpartition(".")
    return TaskId(task_id), int(generation)


def reply_id_of(run_id: RunId, chunk: int) -> ReplyId:
    return ReplyId(f"{run_id}.{chunk}")


def callback_id_of(run_id: RunId, occasion: str) -> ReplyId:
    """One callback per run and occasion, however often somebody means to post it."""
    return ReplyId(f"{run_id}.callback.{occasion}")


def notice_id_of(*parts: str) -> ReplyId:
    """One notice per cause: the parts name the cause, and the ledger keeps the id unique."""
    return ReplyId("n_" + _base32("|".join(parts).encode()))


def chat_mark_of(channel: str, account: str, chat_id: str) -> str:
    """What the audit log calls a chat that was forgotten: who knows its id finds it, and it does not say the id."""
    return "c_" + _base32("|".join(("chat", channel, account, chat_id)).encode())[:13]


def definition_id_of(kind: str, name: str) -> str:
    """What a person has named, as it stands in addresses: the name itself where it can be an id, else what is left of
    it, with a hash where letters of other scripts are not."""
    if _ID.fullmatch(name):
        return f"{kind}_{name}"
    left = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48]
    if not left or any(not one.isascii() and one.isalnum() for one in name):
        left = "-".join(filter(None, (left, _base32(name.encode())[:8])))
    return f"{kind}_{left}"


_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _base32(named: bytes) -> str:
    """26 characters, 130 bits, of the SHA-256."""
    bits = int.from_bytes(hashlib.sha256(named).digest()[:17], "big") >> 6
    return "".join([_TWO_OF_BASE32[bits >> shift & 1023] for shift in range(120, -1, -10)])


_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_TWO_OF_BASE32: Final = [first + second for first in _BASE32 for second in _BASE32]
"""Two characters, ten bits, at a time: in half the time of the standard library, for every message has an id."""


def new_key() -> str:
    """A random id for callers that brought none. 128 bits, URL-safe."""
    return secrets.token_urlsafe(16)


_process_name = secrets.token_hex(5)
_requests = itertools.count(1)


def new_request_id() -> str:
    """Unique among all requests of all processes, and cheap: one is made for every message."""
    return f"req-{_process_name}-{next(_requests)}"


def new_secret() -> str:
    """A random credential. 256 bits, URL-safe."""
    return secrets.token_urlsafe(32)


# --- the record -------------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What decides a task's place in its lane: the platform's date (ms), then its sequence."""

    at_ms: int
    seq: int


Place = tuple[Order, TaskId]
"""Where a task stands in its lane: of two that have the same order, the ids decide."""


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was derived from a delivery at acceptance. Never changed afterwards."""

    schema: int = SCHEMA
    task_id: TaskId
    delivery_key: DeliveryKey
    task_type: TaskType = TaskType.WORKFLOW_EXECUTE
    channel: str
    account: str
    source: str
    lane: LaneKey
    order: Order
    accepted_at_ms: Annotated[int, msgspec.Meta(ge=0, le=MOMENT_MS_MAX)]
    request_id: str
    trace_id: str
    idempotency_key: str
    """A label for people. Nothing is matched on it."""
    kind: str = "message"
    """The platform's kind of update: message, edited_message, callback_query …"""
    chat_id: str | None = None
    first_chat_id: str | None = None
    """What the chat goes by, if it has another id by now."""
    moved: tuple[str, str] | None = None
    """It says that the chat which goes by the first of these ids has the second from now on."""
    workflow_id: str | None = None
    """Asked for by the caller; otherwise the binding decides at claim."""
    user_text: str = ""
    metadata: dict[str, Any] = {}
    user: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    history_chunks: list[Any] = []
    telemetry: dict[str, Any] = {}
    raw_version: str = "json.v1"
    raw_is_json: bool = True
    raw_sha256: str = ""
    raw_is_unique: bool = False
    """No other message has these bytes: they carry the platform's own id of it."""
    retry_max: int | None = None
    notifiable: bool = False
    """Whether a notice about this task may be said in its chat: a person wrote a message there."""
    is_unread: bool = False
    """Accepted without being understood; to be read again before it is run."""
    receipt_seconds: int = 7 * 24 * 3600
    """How long its delivery key is remembered after the first receipt."""
    callback_url: str | None = None
    """Where its result is to be posted."""

    @property
    def place(self) -> Place:
        return self.order, self.task_id

    @property
    def fingerprint(self) -> str:
        """Of two deliveries that have the same, both are one message. Empty if its bytes do not tell."""
        return self.raw_sha256 if self.raw_is_unique else ""

    @property
    def is_stand_in(self) -> bool:
        """It is for looking, not for running: what it stands for, this version cannot read."""
        return self.source == _UNREADABLE

    @property
    def is_awaited(self) -> bool:
        """Whether somebody has just written and waits for its answer: nobody does for what was planned, or for what a
        program says. Both come in thousands at one moment, and let those go first who wait."""
        return self.kind != FOLLOW_UP and self.task_type not in (TaskType.MESSAGE_SEND, TaskType.FOLLOW_UP)

    @property
    def conversation(self) -> str | None:
        """The chat, whichever of its ids it was written in."""
        return self.first_chat_id or self.chat_id

    @property
    def is_forgotten(self) -> bool:
        """Whether only this is left of it: its chat was forgotten."""
        return self.lane == _FORGOTTEN

    @property
    def trace_parent(self) -> str | None:
        """What its trace goes on from, in whichever process; None if none was begun, or by a former version."""
        found = self.telemetry.get("traceparent")
        return found if type(found) is str else None

    @property
    def bound_workflow_id(self) -> str | None:
        """What would have run it when it was accepted; None if nothing would. What does run it, its claim decides."""
        bound = self.telemetry.get("binding")
        return bound.get("workflowId") if type(bound) is dict else None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a task has come. Times are milliseconds of the store's clock."""

    status: Status
    reason: Reason | None = None
    generation: int = 0
    attempts: int = 0
    deaths: int = 0
    due_at_ms: int = 0
    deadline_at_ms: int | None = None
    failing_since_ms: int | None = None
    updated_at_ms: int = 0
    accepted_at_ms: int = 0
    error: str | None = None
    is_begun: bool = False
    """Somebody may have begun to run it, in this generation: what of it is done only the ledger knows."""

    @property
    def is_put_off(self) -> bool:
        """It has failed, and is tried again; perhaps by what it waits for alone, which uses up no attempt."""
        return self.status is Status.PENDING and self.error is not None

    @property
    def is_untouched(self) -> bool:
        return not self.is_begun and not self.generation


class Task(msgspec.Struct, frozen=True):
    """One message's work: what it is, the bytes it came as, how far it is."""

    head: Head
    raw: bytes
    progress: Progress

    @property
    def task_id(self) -> TaskId:
        return self.head.task_id

    @property
    def run_id(self) -> RunId:
        return run_id_of(self.head.task_id, self.progress.generation)

    def in_generation(self, generation: int) -> Task:
        return msgspec.structs.replace(self, progress=msgspec.structs.replace(self.progress, generation=generation))

    @property
    def has_bytes(self) -> bool:
        """Whether the bytes that it came as are still there, be it that they were none."""
        return bool(self.raw) or self.head.raw_sha256 in ("", _NO_BYTES_SHA256)


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode


def is_another(
    fingerprint: str, accepted_at_ms: int, receipt_ms: int, *, than_fingerprint: str, than_accepted_at_ms: int
) -> bool:
    """Whether a message accepted then is another than a former one of its key: its bytes do not tell that it is the
    same, and it came after the key had been forgotten.

    By the time that keys are kept, not by which came first: the same message may have been accepted by several hosts,
    and at the same time by a queue that had lost the memory of its key. By their bytes first: of when they were
    accepted, a host whose clock was wrong by days may say anything.
    """
    is_same = fingerprint and fingerprint == than_fingerprint
    return not is_same and accepted_at_ms - than_accepted_at_ms >= receipt_ms


def encode_head(head: Head) -> bytes:
    return encode_json(head)


def decode_head(stored: bytes) -> Head:
    """Raises `EnvelopeMalformed` if this version of Rise cannot read the record."""
    try:
        head = _decode_head(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeMalformed(f"the stored head is unreadable: {error}") from error
    if head.schema > SCHEMA:
        raise EnvelopeMalformed(f"the stored head has schema {head.schema}, this version reads {SCHEMA}")
    return head


def unreadable_head(
    task_id: TaskId, *, channel: str, account: str, lane: LaneKey, order: Order, accepted_at_ms: int
) -> Head:
    """For looking, not for running: a record that cannot be read must still be listed, resumed and dropped."""
    return Head(
        task_id=task_id,
        delivery_key=DeliveryKey(""),
        channel=channel,
        account=account,
        source=_UNREADABLE,
        lane=lane,
        order=order,
        accepted_at_ms=accepted_at_ms,
        request_id="",
        trace_id="",
        idempotency_key="",
        raw_is_json=False,  # so far as is known: it is shown as text
    )


def forgotten_head(head: Head) -> Head:
    """What stays of a message whose chat was forgotten: that there was one and when, neither whose nor what it said.

    The checksum of its bytes stays: by it the same message is known again, should it be brought once more.
    """
    return Head(
        schema=head.schema,
        task_id=head.task_id,
        delivery_key=DeliveryKey(""),
        task_type=head.task_type,
        channel=head.channel,
        account=head.account,
        source=head.source,
        lane=_FORGOTTEN,
        order=head.order,
        accepted_at_ms=head.accepted_at_ms,
        request_id="",
        trace_id="",
        idempotency_key="",
        kind=head.kind,
        workflow_id=head.workflow_id,
        raw_version=head.raw_version,
        raw_sha256=head.raw_sha256,
        raw_is_unique=head.raw_is_unique,
        retry_max=head.retry_max,
        receipt_seconds=head.receipt_seconds,
    )


def encode_json(value: Any) -> bytes:
    """JSON as Rise writes it. Lone surrogates from old inputs become `?` instead of an error."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_without_surrogates(value))


def is_in_digits(text: str) -> bool:
    """As platforms write ids. Python takes the digits of every script for some."""
    return text.isascii() and text.isdecimal()


def fits_int64(number: int) -> bool:
    """Whether every store can hold it."""
    return -_INT64_MAX - 1 <= number <= _INT64_MAX


def json_name(value: object) -> str:
    """What a JSON value is, without saying it: it may be long, and it is somebody's."""
    if type(value) is int and not fits_int64(value):
        return "a number beyond 64 bits"
    return JSON_NAMES.get(type(value), "something else")


def clean_text(text: str) -> str:
    """The text with lone surrogates replaced: they exist in JSON but in no encoding."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return _without_surrogates(msgspec.to_builtins(value))
    return value


# --- the wire ---------------------------------------------------------------------------------------------


def envelope(
    task: Task,
    *,
    result: Any = None,
    raw_shown_bytes_max: int = RAW_SHOWN_BYTES_MAX,
    retry_max: int = 3,
) -> dict[str, Any]:
    """The `TaskEnvelope` as the HTTP API shows it, `raw` spliced in untouched but for where its result is posted to.

    A raw over the limit, or one that is not JSON, is shown as a string of its first part; the whole is
    kept and is what the workflow gets. One that has been forgotten is null, and so is its size.
    """
    head, progress = task.head, task.progress
    truncated = len(task.raw) > raw_shown_bytes_max
    telemetry = head.telemetry | {
        "channel": head.channel,
        "requestId": head.request_id,
        "source": head.source,
        "raw_size_bytes": len(task.raw) if task.has_bytes else None,
        "raw_truncated": truncated,
        "raw_sha256": head.raw_sha256,
    }
    shown: Any
    raw = raw_for_people(task)
    if not task.has_bytes:
        shown = None
    elif head.raw_is_json and not truncated:
        shown = msgspec.Raw(raw)
    else:
        shown = raw[:raw_shown_bytes_max].decode("utf-8", "backslashreplace")
    return {
        "taskId": head.task_id,
        "taskType": head.task_type,
        "status": progress.status,
        "reason": progress.reason,
        "payload": {
            "workflowId": head.workflow_id or head.bound_workflow_id,
            "channel": head.channel,
            "source": head.source,
            "metadata": head.metadata,
            "userText": head.user_text,
            "historyChunks": head.history_chunks,
            "policy": head.policy,
            "telemetry": telemetry,
            "channelPayload": {"version": head.raw_version, "raw": shown},
        },
        "context": {
            "idempotencyKey": head.idempotency_key,
            "traceId": head.trace_id,
            "user": head.user,
        },
        "retry": {
            "count": progress.attempts,
            "max": retry_max if head.retry_max is None else head.retry_max,
            "nextAttemptAt": progress.due_at_ms // 1000 if progress.attempts or progress.is_put_off else 0,
        },
        "createdAt": iso(from_epoch_ms(head.accepted_at_ms)),
        "updatedAt": iso(from_epoch_ms(progress.updated_at_ms or head.accepted_at_ms)),
        "result": result,
        "error": progress.error,
    }


def masked_url(url: str) -> str:
    """Whom a URL leads to: the rest of it may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def raw_for_people(task: Task) -> bytes:
    """The bytes that it came as. Whoever may look at a request must not therefore learn a key that its caller put into
    the URL of a callback."""
    raw, url = task.raw, task.head.callback_url
    if url is None or not raw:
        return raw
    return encode_json(msgspec.json.decode(raw) | {"callbackUrl": masked_url(url)})


# --- what a workflow may do -------------------------------------------------------------------------------


class Effect(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing a workflow wants done on its channel; the channel turns it into calls.

    `kind`: reply, edit, answer_callback, or call (a platform method by name).
    """

    kind: str
    text: str = ""
    buttons: list[list[dict[str, str]]] | None = None
    media: dict[str, Any] | None = None
    reply_to: str | None = None
    parse_mode: str | None = None
    message_id: str | None = None
    method: str = ""
    params: dict[str, Any] = {}


class Call(msgspec.Struct, frozen=True):
    """A platform call as it is frozen in the outbox: one chunk of a reply."""

    method: str
    params: dict[str, Any]
    text: str = ""
    """What a person reads of it, for history and display."""
    is_urgent: bool = False
    """It answers a question of the platform's client (a tap, an inline query, a payment), which waits only for
    seconds: it does not queue behind its chat, and is not sent after the task's deadline."""
    is_awaited: bool = True
    """Somebody has just written and waits for it. What was planned, or what a program says, lets that go first."""
    continues: bool = False
    """It goes on where the call before it breaks off, both being one text: it is not sent if that one was refused."""
    trace_parent: str | None = None
    """What its trace goes on from. Not for the platform."""

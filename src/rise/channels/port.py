"""What a channel does: read what its platform sends, and put replies in the platform's words.

A channel never decides what happens to a message. It says what came in as `Incoming` and how a try to send
ended as a `SendOutcome`; intake and delivery decide. The promises here are executable:
`rise.testing.conformance.channel` runs on every channel.

Refuses: an effect that its platform cannot say (`PayloadInvalid`), before it is frozen as a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import msgspec

from rise.envelope import Call, DeliveryKey, Effect, Head, LaneKey, Order, Reason, Task, TaskType


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery, verified and read, on its way to intake."""

    channel: str
    account: str
    source: str
    delivery_key: DeliveryKey
    lane: LaneKey
    raw: bytes
    """Exactly as received."""
    raw_version: str
    raw_is_json: bool = True
    raw_is_unique: bool = False
    """The platform's own id of the message is in its bytes, so that no other one has the same."""
    kind: str = "message"
    order: Order | None = None
    """The platform's own order; None: the order of arrival."""
    chat_id: str | None = None
    first_chat_id: str | None = None
    """What the chat goes by, if it has another id by now."""
    moved: tuple[str, str] | None = None
    """It says that the chat which goes by the first of these ids has the second from now on."""
    message_label: str = ""
    """`<chat>:<message>` for the label people see."""
    user_text: str = ""
    user: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    notifiable: bool = False
    """A person wrote it in a chat, so a notice about it may be said there."""
    receipt_seconds: int = 7 * 24 * 3600
    lifetime_seconds: float | None = None
    due_at_ms: int | None = None
    """Not to be run before this moment of the store's clock."""
    task_type: TaskType = TaskType.WORKFLOW_EXECUTE
    workflow_id: str | None = None
    policy: dict[str, Any] = {}
    history_chunks: list[Any] = []
    retry_max: int | None = None
    callback_url: str | None = None
    """Where the result is to be posted."""
    request_id: str | None = None
    trace_id: str | None = None
    trace_parent: str | None = None
    """The span of its sender that its trace goes on from."""
    suspend: Reason | None = None
    """Authentic, but not to be run: unreadable or stale."""
    error: str | None = None


def understood(head: Head, incoming: Incoming) -> Head:
    """The head of what was accepted unread, now that its bytes say more. It keeps its key and its place."""
    return msgspec.structs.replace(
        head,
        is_unread=False,
        kind=incoming.kind,
        chat_id=incoming.chat_id,
        first_chat_id=incoming.first_chat_id,
        moved=incoming.moved,
        user_text=incoming.user_text,
        user=incoming.user,
        metadata=incoming.metadata,
        notifiable=incoming.notifiable,
        raw_is_json=incoming.raw_is_json,
    )


def read_anew(task: Task, channels: Mapping[str, Channel]) -> Task:
    """A task that was accepted without being understood is read again: this version may know better."""
    channel = channels.get(task.head.channel)
    if not task.head.is_unread or channel is None or not is_pushed(channel):
        return task
    incoming = channel.read_again(task.head, task.raw)
    return task if incoming.suspend else msgspec.structs.replace(task, head=understood(task.head, incoming))


# --- how a call to a platform ended ------------------------------------------------------------------------


class Succeeded(msgspec.Struct, frozen=True):
    platform_ref: str | None = None


class NotSent(msgspec.Struct, frozen=True):
    """Certainly without effect: no connection, or the request was not fully written; or whoever is called knows a
    repetition for what it is. Try again."""

    error: str


class Paused(msgspec.Struct, frozen=True):
    """The platform asks for a pause (429). Certainly without effect."""

    seconds: float
    error: str
    whole_account: bool = False
    """Only on evidence that more than this chat is meant; `seconds` are this chat's all the same."""


class Unreadable(msgspec.Struct, frozen=True):
    """The platform cannot read our markup; `plain` says the same without. Certainly without effect."""

    error: str
    plain: Call


class Moved(msgspec.Struct, frozen=True):
    """The chat has a new id. Certainly without effect."""

    chat_id: str


class Refused(msgspec.Struct, frozen=True):
    """Never will this be taken. `chat_gone`: nor anything else for this chat (blocked, deleted)."""

    error: str
    chat_gone: bool = False


class AccountDown(msgspec.Struct, frozen=True):
    """The account's credentials are not valid now. Certainly without effect; hold all its replies."""

    error: str


class Uncertain(msgspec.Struct, frozen=True):
    """It may or may not have had its effect, and the platform cannot be asked."""

    error: str


SendOutcome = Succeeded | NotSent | Paused | Unreadable | Moved | Refused | AccountDown | Uncertain


class SendRates(msgspec.Struct, frozen=True):
    """How fast a chat and its account may be sent to. Never 0: that would be never."""

    chat_per_second: float
    chat_per_minute: float | None
    account_per_second: float


class Channel(Protocol):
    """A place people talk."""

    name: str

    def compose(self, head: Head, effects: Sequence[Effect]) -> list[Call]:
        """The effects of a run as calls, split and ordered, nothing left out: these are frozen in the outbox.

        Raises `PayloadInvalid` with the field of what cannot be said on this channel. Pure.
        """
        ...

    def notice(self, head: Head, text: str) -> Call | None:
        """A short text for the task's chat, beside its answer; None where there is nobody to tell, or nothing."""
        ...


class Receiver(Protocol):
    """Who takes calls out of the outbox: what delivery needs to know of a platform."""

    name: str

    def marked(self, call: Call) -> Call:
        """The call as it is sent when an earlier one may have had its effect already (`↻ `).

        What is marked stays as it is.
        """
        ...

    def is_repeatable(self, call: Call) -> bool:
        """Whether having it take effect twice is the same as once. A mark changes nothing about it."""
        ...

    def rates(self, chat_id: str) -> SendRates: ...

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        """One call. Returns how it ended, whatever happened; raises only for our own bugs."""
        ...

    async def trouble(self, account: str) -> str | None:
        """Ask the platform something harmless, within seconds: None if it answers, whatever it says, else what is
        wrong. Never raises for the platform's faults."""
        ...

    async def show_typing(self, account: str, chat_id: str) -> None:
        """Tell the person that an answer is on its way. Best effort; never raises for the platform's faults."""
        ...


@runtime_checkable
class PushChannel(Channel, Receiver, Protocol):
    """A channel whose platform must be called. The others keep replies where their reader fetches them."""

    def acknowledgement(self, head: Head) -> Call | None:
        """What tells the platform's client that its tap was received (an empty callback answer), if anything.

        It says nothing to the person and is repeatable.
        """
        ...

    def read_again(self, head: Head, raw: bytes) -> Incoming:
        """What was accepted unread, as this version reads it. Never raises; marked to be suspended if it cannot."""
        ...

    async def download(self, account: str, file_id: str) -> bytes:
        """A file the platform keeps. Raises `ChannelUnavailable`, or `PayloadInvalid` if it has none such."""
        ...


def is_pushed(channel: Channel) -> TypeGuard[PushChannel]:
    """Whether its platform must be called. Asking the protocol class would cost more than all else in a settle."""
    return hasattr(channel, "send")

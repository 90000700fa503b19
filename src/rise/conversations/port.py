"""What a conversation is told and asked, whoever keeps it.

A message is one signal with one payload; a question by `request_id` says what has come of it. Both are plain data,
because they are written into histories that outlive this version: a field may be added with a default, none may change
its meaning.

Refuses: to carry what Rise keeps anyway. The bytes of a message, and what it meets, are looked up by its task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from rise.bindings import Bound
from rise.bursts import Burst
from rise.envelope import Head, is_in_digits
from rise.errors import WaitsForDependency

TEXT_CHARS_MAX: Final = 4096
"""Of what was written, for whoever looks at a conversation. Its run gets the whole from Rise."""
ERROR_CHARS_MAX: Final = 500
"""Of what a run failed by: a conversation may remember hundreds."""
CONVERSATION_LOOK_SECONDS: Final = 2.0
"""How often the worker that holds a message's lane looks what has come of it."""
TELEGRAM: Final = "telegram"
"""The one channel whose platform numbers its updates."""


@dataclass(frozen=True)
class ConversationMessage:
    """The payload of the one signal."""

    update_id: str
    """The platform's own id, where it has one; what a person has run again has another."""
    chat_id: str
    sequence: int
    """Its place where the platform numbers its updates, only compared, never waited for; 0: it does not."""
    request_id: str
    """The run's: the same in all its tries."""
    message: dict[str, Any] = field(default_factory=dict)
    """`task_id`; the `followers`, of its burst; which `workflow_id` and `workflow_version` it meets; how many `tries`
    came before; the `text`."""

    @property
    def task_id(self) -> str:
        return str(self.message.get("task_id", ""))

    @property
    def tries(self) -> int:
        """How many tries of its run have been written down: what says whether a failure is news."""
        tries = self.message.get("tries", 0)
        return tries if isinstance(tries, int) else 0

    @property
    def workflow_id(self) -> str:
        return str(self.message.get("workflow_id", ""))

    @property
    def workflow_version(self) -> int:
        version = self.message.get("workflow_version", 0)
        return version if isinstance(version, int) else 0

    @property
    def followers(self) -> list[str]:
        """The tasks of the messages that are to be answered with it."""
        followers = self.message.get("followers", [])
        return [str(task_id) for task_id in followers] if isinstance(followers, list) else []


class ResponseStatus(StrEnum):
    UNKNOWN = "unknown"
    """The conversation was not told, has forgotten it, or is over."""
    WAITING = "waiting"
    ANSWERED = "answered"
    FAILED = "failed"
    """This try. Told again with another number of tries, it is run again."""


class FailureKind(StrEnum):
    OWN = "own"
    """The workflow's own fault: it uses up a try."""
    REFUSED = "refused"
    """It would be refused for what it says again."""
    DEPENDENCY = "dependency"
    """Something that it needs is away: it waits."""


@dataclass(frozen=True)
class Failure:
    kind: FailureKind
    error: str
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class Response:
    """What has come of one message."""

    status: ResponseStatus
    tries: int = 0
    """How many came before the one that this is about."""
    ran: Any = None
    """What its run came to, as JSON; None with `is_kept`."""
    is_kept: bool = False
    """It is too large for a conversation: Rise's ledger has it, as a step of the run."""
    failure: Failure | None = None
    followers: list[str] = field(default_factory=list)
    """The messages answered with it. If one has ended by itself since, this response is of no use."""
    workflow_id: str = ""
    """What was run for it; nothing: an earlier version of Rise did not say. Another may be bound by now, because this
    one must not answer any more: then it is run anew."""
    workflow_version: int = 0
    is_untried: bool = False
    """The process that was to run it has not loaded its workflow: another may have."""

    def has_other_followers(self, message: ConversationMessage) -> bool:
        return self.followers != message.followers

    def is_of_another_workflow(self, message: ConversationMessage) -> bool:
        named = self.workflow_id, self.workflow_version
        return bool(self.workflow_id) and named != (message.workflow_id, message.workflow_version)


UNKNOWN: Final = Response(ResponseStatus.UNKNOWN)


@dataclass(frozen=True)
class ConversationLimits:
    """As they were when the conversation was begun: it keeps them."""

    beat_seconds: float = 30.0
    """A run of which nothing is heard for so long has died with its process."""
    run_hours_max: float = 24.0
    deaths_max: int = 3
    """So many processes may die of one try."""
    messages_per_history: int = 200
    """After so many the history is begun anew when nothing runs, and nobody has written for `quiet_seconds`."""
    quiet_seconds: float = 5.0
    messages_per_history_max: int = 1000
    """... after so many, in any case; or earlier, when Temporal says so."""


class ConversationServer(Protocol):
    """Whoever keeps conversations. Every method raises `TemporalUnavailable` where it does not answer."""

    async def tell(self, conversation_id: str, message: ConversationMessage) -> None:
        """Begin the conversation if there is none, and tell it this, in one step. It is told, even if nobody is there
        to carry it on at the moment."""
        ...

    async def ask(self, conversation_id: str, request_id: str) -> Response:
        """What has come of it: all that the conversation was told before is considered."""
        ...

    async def forget(self, conversation_id: str) -> None:
        """End it if it goes on, and remove all of it. Repeated, it goes on with what is left."""
        ...


def looks_again(why: str) -> WaitsForDependency:
    """Nobody's fault: its worker asks again soon."""
    return WaitsForDependency(why, retry_after_seconds=CONVERSATION_LOOK_SECONDS)


def conversation_id_of(head: Head) -> str | None:
    """One per chat, whichever of its ids it was written in; None where there is no chat."""
    chat = head.conversation
    return None if chat is None else conversation_id(head.channel, head.account, chat)


def conversation_id(channel: str, account: str, chat: str) -> str:
    """`chat`: the first id that it had. A bot's number names a Telegram bot; accounts of other channels are named with
    their channel, for two may have the same, and the same chat."""
    bot = account if is_in_digits(account) else f"{channel}:{account}"
    return f"chat:{bot}:{chat}"


def followers_of(burst: Burst) -> list[str]:
    return [follower.task_id for follower in burst.followers]


def message_of(burst: Burst, bound: Bound, *, tries: int) -> ConversationMessage:
    """What its conversation is told of it."""
    task = burst.leader
    head, generation = task.head, task.progress.generation
    # Of other channels the metadata are the caller's own words: two messages may have the same.
    number = str(head.metadata.get("update_id", "")) if head.channel == TELEGRAM else ""
    update_id = number or task.task_id
    return ConversationMessage(
        # Run again by a person, or of a key that was used again: another message, as far as duplicates go.
        update_id=f"{update_id}.{generation}" if generation else update_id,
        chat_id=head.chat_id or "",
        sequence=int(number) if is_in_digits(number) else 0,
        request_id=task.run_id,
        message={
            "task_id": task.task_id,
            "followers": followers_of(burst),
            "workflow_id": bound.workflow.workflow_id,
            "workflow_version": bound.workflow.version,
            "tries": tries,
            "text": head.user_text[:TEXT_CHARS_MAX],
        },
    )

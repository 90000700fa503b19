"""What became of everything: results, replies, history, and who changed what.

The ledger is one store and it decides: `run_id` is unique among results and `reply_id` among intents to
send, so a result is written once and a reply is meant once, however often somebody tries.
The promises here are executable: `rise.testing.conformance.ledger` runs on every backend.

Refuses: another result for a run that has one; what a sender writes whose fence is stale (`ClaimLost`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from rise import tracing
from rise.envelope import (
    MOMENT_MS_MAX,
    Call,
    Head,
    Outcome,
    ReplyId,
    RunId,
    Status,
    Task,
    TaskId,
    is_another,
    run_id_of,
)


class ReplyState(StrEnum):
    READY = "ready"
    SENDING = "sending"
    SENT = "sent"
    UNKNOWN = "unknown"
    """It may or may not have been sent; the platform cannot be asked."""
    FAILED = "failed"


class ReplyKind(StrEnum):
    ANSWER = "answer"
    """Part of a run's result; the task ends when all of them are final."""
    NOTICE = "notice"
    """Said beside it ("queued", "running late"); never holds anything up."""
    CALLBACK = "callback"
    """The result itself, posted to whoever asked for it; never holds anything up, and outlives the end of its run."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk in the outbox: one call to a platform, frozen."""

    reply_id: ReplyId
    run_id: RunId
    task_id: TaskId
    channel: str
    account: str
    chat_id: str
    call: Call
    kind: ReplyKind = ReplyKind.ANSWER
    workflow_id: str | None = None
    accepted_at_ms: int = 0
    deadline_at_ms: int | None = None
    """After this it is pointless to send it."""
    state: ReplyState = ReplyState.READY
    tries: int = 0
    """Calls that certainly had no effect."""
    resends: int = 0
    """Calls made although an earlier one may have had its effect."""
    sequence: int = 0
    platform_ref: str | None = None
    """The platform's own id of what was sent."""
    error: str | None = None
    claim: int = 0
    """The number of the taking that handed it out, and with it the right to say how that ended."""
    unreadable: str | None = None
    """Why this version cannot read the call that is kept; `call` stands in for it and is not to be sent."""


CALL_UNREADABLE: Final = Call("unreadable", {})
"""For looking, not for sending: a reply that cannot be read must still be listed, held and dropped."""


URGENT_CHATS: Final = "urgent:"
"""How the names of the outbox's chats begin in which urgent calls wait, those of each task in one of their own."""

Account = tuple[str, str]
"""Channel, account."""


class AccountsHeld(NamedTuple):
    """Whose chats are not taken from the outbox."""

    excluded: Set[Account] = frozenset()
    urgent_only: Set[Account] = frozenset()
    """But for those of urgent calls."""


def reply_of(
    head: Head,
    run_id: RunId,
    reply_id: ReplyId,
    call: Call,
    *,
    kind: ReplyKind = ReplyKind.ANSWER,
    workflow_id: str | None = None,
    deadline_at_ms: int | None = None,
) -> Reply:
    """A call that is meant for the task's chat; what is urgent gets a line of its own, and a deadline."""
    return Reply(
        reply_id=reply_id,
        run_id=run_id,
        task_id=head.task_id,
        channel=head.channel,
        account=head.account,
        chat_id=URGENT_CHATS + head.task_id if call.is_urgent else head.chat_id or head.lane,
        call=traced(call, head),
        kind=kind,
        workflow_id=workflow_id,
        accepted_at_ms=head.accepted_at_ms,
        deadline_at_ms=deadline_at_ms if call.is_urgent else None,
    )


def traced(call: Call, head: Head) -> Call:
    """With what its trace goes on from: whatever means it now, or the acceptance of its message."""
    trace_parent = tracing.trace_parent() or head.trace_parent
    return call if trace_parent is None else msgspec.structs.replace(call, trace_parent=trace_parent)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. The first one saved for a `run_id` stays.

    With `merged` it is not over: whether it was answered with another's is for that one's result to say.
    """

    outcome: Outcome
    value: Any = None
    """JSON, for callers who read the result."""
    workflow_id: str | None = None
    workflow_version: int | None = None

    @property
    def merged_runs(self) -> list[RunId]:
        """As `Run.merged_runs`."""
        return _merged_runs(self.value)


class HistoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one side said in a chat, as its history has it."""

    role: str
    text: str
    at_ms: int
    run_id: RunId | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A try that did not succeed."""

    at_ms: int
    error: str
    counted: bool
    number: int = 0
    """Among all of its run, from 1 on; the ledger gives it."""


def count_tries(attempts: Sequence[Attempt]) -> int:
    """How many there were of a run, those included that the ledger keeps no more."""
    return attempts[-1].number if attempts else 0


def _merged(result: Any) -> list[TaskId]:
    return (result.get("merged") or []) if isinstance(result, dict) else []


def _merged_runs(result: Any) -> list[RunId]:
    named = _merged(result)
    return result.get("mergedRuns") or [run_id_of(task_id, 0) for task_id in named] if named else []


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the ledger knows it: its result, and how the task ended if it has."""

    task_id: TaskId
    generation: int
    status: Status
    outcome: Outcome | None
    result: Any
    workflow_id: str | None
    workflow_version: int | None = None
    saved_at_ms: int
    finished_at_ms: int | None
    accepted_at_ms: int = 0
    """When its message was accepted, by the clock of the queue."""
    fingerprint: str = ""
    """`Head.fingerprint` of its message."""
    by: str | None = None
    why: str | None = None
    is_armed: bool = False
    """Whether what it promised for later is in the queue, or was."""
    unreadable: str | None = None
    """Why this version cannot read the result that is kept; `result` is None then."""
    waits_for_ledger: bool = False
    """In Redis, and may still be lost with that: its message is run again then."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and nothing that it promised is still to be armed."""
        return self.status.is_finished and (self.is_armed or not self.follow_ups or self.status is Status.DROPPED)

    @property
    def follow_ups(self) -> list[Any]:
        """What it promised for later, as far as that can be read."""
        return (self.result.get("followUps") or []) if isinstance(self.result, dict) else []

    @property
    def merged(self) -> list[TaskId]:
        """The later messages of a burst that it answers with its own, in their order."""
        return _merged(self.result)

    @property
    def merged_runs(self) -> list[RunId]:
        """Which run of each: another one is answered by itself, or with another."""
        return _merged_runs(self.result)

    def answers(self, run: Run) -> bool:
        """Whether with its own message it answers that one's, in that run."""
        if self.merged and isinstance(self.result, dict) and "mergedRuns" not in self.result:
            # A former version named the message alone: the run that had ended by then. One that waits is dated by its
            # host, and behind the ends that it names.
            return run.task_id in self.merged and (self.waits_for_ledger or run.saved_at_ms <= self.saved_at_ms)
        return run_id_of(run.task_id, run.generation) in self.merged_runs

    @property
    def merged_into(self) -> TaskId | None:
        """The message with which it was taken along: that one's run says whether it was answered with it."""
        is_merged = self.outcome is Outcome.MERGED and isinstance(self.result, dict)
        return self.result.get("mergedInto") if is_merged else None

    @property
    def stages(self) -> list[Any]:
        """What the stages of its workflow did, in all tries, as far as that can be read."""
        return (self.result.get("stages") or []) if isinstance(self.result, dict) else []

    def is_of_former(self, head: Head) -> bool:
        """Whether it is of another message than the head's, whose key had been forgotten when that one brought it."""
        return self.is_of_another(head.fingerprint, head.accepted_at_ms, head.receipt_seconds * 1000)

    def is_of_another(self, fingerprint: str, accepted_at_ms: int, receipt_ms: int) -> bool:
        """Whether another message of that key is meant, accepted then: see `envelope.is_another`."""
        return is_another(
            fingerprint,
            accepted_at_ms,
            receipt_ms,
            than_fingerprint=self.fingerprint,
            than_accepted_at_ms=self.accepted_at_ms,
        )


class Ended(msgspec.Struct, frozen=True):
    """A run that has ended, as a list shows it."""

    run: Run
    head: Head | None
    """Of its message; None if this version cannot read it."""


class RunEnded(msgspec.Struct, frozen=True):
    """The last reply of a run became final, and the run with it.

    Completed and `answered` if all of them were sent: half an answer is none. Expired, without an outcome, if all of
    them came too late. Otherwise completed and `undeliverable`.
    """

    task_id: TaskId
    generation: int
    outcome: Outcome | None
    status: Status = Status.COMPLETED


# --- how a try to send ends -------------------------------------------------------------------------------


class Sent(msgspec.Struct, frozen=True):
    platform_ref: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """Final: the platform will not take this, ever.

    What continues it is not tried either: the rest of a text without its beginning may say the opposite of the whole.
    What else the run has to say is, because its author said it apart.
    """

    error: str
    chat_gone: bool = False
    """Nor anything else for this chat: the rest of the run's replies are not tried."""
    too_late: bool = False
    """It was not tried: its deadline had passed."""


class Again(msgspec.Struct, frozen=True):
    """Not sent for certain: send the same (or `call` instead) after a pause."""

    seconds: float
    error: str
    call: Call | None = None
    chat_id: str | None = None
    """The chat has moved: this and all that waits for the old one go there."""


class Resend(msgspec.Struct, frozen=True):
    """Perhaps sent; the policy says to send it (or `call` instead) once more."""

    error: str
    call: Call | None = None
    seconds: float = 0.0


class HeldUnknown(msgspec.Struct, frozen=True):
    """Perhaps sent; the policy says to ask a person. The run's later replies wait with it."""

    error: str


SendEnding = Sent | Failed | Again | Resend | HeldUnknown


class Delivered(msgspec.Struct, frozen=True):
    """What recording a delivery brought about."""

    ended: RunEnded | None
    next: Reply | None
    """The chat's next reply, taken by the same step."""


# --- people ---------------------------------------------------------------------------------------------


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person (or code at start) changed."""

    at_ms: int
    who: str
    action: str
    target: str
    why: str = ""


class ChatMove(msgspec.Struct, frozen=True, kw_only=True):
    """A chat has another id from now on. Both are one chat, which goes by the first it ever had."""

    channel: str
    account: str
    chat_id: str
    """The new one."""
    first_id: str
    sequence: int = 0
    """Grows with every move that is recorded."""


class ChatForgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What one step of forgetting a chat came to."""

    looked_at: int = 0
    """Runs, of all chats."""
    runs: int = 0
    """Runs that had something of it, and have nothing any more."""
    replies: int = 0
    turns: int = 0
    unfinished: int = 0
    """Runs of it that are not over: nothing of theirs was forgotten."""
    unreadable: int = 0
    """Finished runs of the channel of which this version cannot read whose they are, not by their lanes either: left
    alone."""
    after: str | None = None
    """Where the next step goes on. None: this was the last."""

    def __add__(self, later: ChatForgotten) -> ChatForgotten:
        return ChatForgotten(
            looked_at=self.looked_at + later.looked_at,
            runs=self.runs + later.runs,
            replies=self.replies + later.replies,
            turns=self.turns + later.turns,
            unfinished=self.unfinished + later.unfinished,
            unreadable=self.unreadable + later.unreadable,
            after=later.after,
        )


class OutboxDepth(msgspec.Struct, frozen=True, kw_only=True):
    by_state: dict[str, int] = {}
    oldest_waiting_ms: int | None = None
    unknown: int = 0
    resent: int = 0
    """Replies that were sent although an earlier call may have had its effect."""


class Office(StrEnum):
    """What one process of an installation does for all."""

    SENDER = "sender"
    POLLER = "poller"
    """Asks Telegram for updates."""
    KEEPER = "keeper"
    """Fills an emptied queue again and goes through the mirror."""
    EXAMINER = "examiner"
    """Finds out how well the bindings serve."""


class Ledger(Protocol):
    """Every method raises `StoreUnavailable` (or its backend's sibling) when the store does not answer."""

    # results

    async def save_result(
        self,
        task: Task,
        result: RunResult,
        replies: Sequence[Reply],
        history: Sequence[HistoryLine],
        *,
        deliver: bool,
    ) -> Run:
        """Freeze the result and the intents to send, in one step. The first for a run wins and is returned.

        A former generation of the message that has not ended is dropped by the same step, `finish` likewise: what it
        still had in the outbox never goes out beside the new one's. What its message said of a chat that has moved is
        written by it, too, if it is not known: the ledger may have been away when the message was accepted.

        `deliver=False`: the replies are where their reader fetches them; the run is completed at once, as it
        is when there is nothing to send, unless it is `merged`. A callback among them goes out in either case, and the
        run does not wait for it.
        """
        ...

    async def finish(
        self,
        task: Task,
        status: Status,
        outcome: Outcome | None = None,
        *,
        by: str = "",
        why: str = "",
        callback: Reply | None = None,
    ) -> Run:
        """Completed without a reply, expired, or dropped. Final: a finished run is returned unchanged.

        What it still had in the outbox is not sent any more, but for callbacks. `callback`: what is to be posted
        because it ended, meant by the same step. One of the same id that nobody has tried to post goes: what is posted
        says how the run ended, and whoever has that one in hand is refused it (`ClaimLost`). One that was tried stands
        instead, because its receiver may have it. There is never a second with its id.
        """
        ...

    async def note_armed(self, run_id: RunId) -> None:
        """The follow-ups of this run are in the queue: they are not armed again, however late it is settled."""
        ...

    async def run(self, run_id: RunId) -> Run | None: ...

    async def latest_run(self, task_id: TaskId) -> Run | None:
        """The run of the highest generation."""
        ...

    async def archived(self, task_id: TaskId) -> Task | None:
        """The task of the latest run as it was, bytes included; None if unknown or past its retention.

        What this version cannot read of it hides nothing else: its head is a stand-in then (`Head.is_stand_in`), a
        newer version's word for how far it is a known one, and the error of its progress says so.
        """
        ...

    async def finished_among(self, task_ids: Sequence[TaskId]) -> dict[TaskId, Run]:
        """Of these, the ones whose latest run is finished."""
        ...

    async def ended(self, *, limit: int, before_ms: int = MOMENT_MS_MAX) -> list[Ended]:
        """The runs that ended before then, the latest first.

        About `limit`: what ended in one millisecond is on one page, so that the next one can begin before it.
        """
        ...

    async def save_step(self, run_id: RunId, step: str, value: bytes) -> bytes:
        """Keep a step's result; the first wins and is returned."""
        ...

    async def steps(self, run_id: RunId) -> dict[str, bytes]: ...

    async def add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        """Keep it behind the run's others, the last `kept.ATTEMPTS_KEPT` of which stay."""
        ...

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        """Those that are kept, in the order of coming. The last one's number is how many there were (`count_tries`)."""
        ...

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[HistoryLine]:
        """The chat's last turns, oldest first, whichever of its ids is asked for. Of a long one the beginning is kept
        (`kept.TURN_CHARS_MAX`)."""
        ...

    # chats

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        """The chat has this other id now; said again, it changes nothing. One history, one line in the outbox. What has
        later ids already stays a chat of its own: only what is sent goes where it is said to.

        What waits for the old id goes to the new one at once, unless a call to the old one is out: then the line stays
        where it is, and new replies join it there, until a call to the old id is answered with the new one.
        """
        ...

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        """Those with a sequence beyond `after`, in the order of recording; also what a call was answered."""
        ...

    # outbox

    async def add_notice(self, reply: Reply, *, deliver: bool = True, unless_run: RunId | None = None) -> bool:
        """Mean to send something beside a run: a notice, or a callback that says what it waits for. False if it was
        meant before: once per `reply_id`, ever.

        `deliver=False`: it is where its reader fetches it. `unless_run`: nor once this run has a result or an end,
        after which it would be wrong.
        """
        ...

    async def outbox_open(self) -> int:
        """Become the sender: a new fence, which voids all older ones. What an older one was sending when it
        ended is perhaps sent; `outbox_take` hands it out with `state == SENDING` for the policy to decide."""
        ...

    async def outbox_take(
        self,
        fence: int,
        *,
        limit: int,
        urgent_limit: int = 0,
        accounts_excluded: Sequence[tuple[str, str]] = (),
        accounts_urgent_only: Sequence[tuple[str, str]] = (),
    ) -> list[Reply]:
        """The first due reply of up to `limit` chats that nobody sends to. Order within a chat is of saving, but one
        that a former sender left in doubt comes first: a person may have resumed an older one since.

        Chats of urgent calls come before all others, and are handed out until there are `urgent_limit` in all even
        where `limit` has no room: they have seconds, however much waits. Of accounts that are `urgent_only` no
        others are handed out; of those that are excluded, none.

        One that cannot be read is handed out as such, for the sender to record that it is held.
        """
        ...

    async def outbox_sending(self, fence: int, reply: Reply) -> None:
        """Written before the call goes out. Raises `ClaimLost` if the fence is stale, the run was ended, or another
        call has taken the place of this one."""
        ...

    async def outbox_record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        """Write down how the call ended, end the run if it was its last reply, take the chat's next.

        Once per claim: recorded again, because the answer was lost, it writes nothing and answers the same.
        """
        ...

    async def outbox_release(self, fence: int, reply: Reply, *, seconds: float) -> None:
        """Let go of a chat without having tried: it is due again after the pause. Once per claim."""
        ...

    async def outbox_rearm(self, run_id: RunId) -> int:
        """A person said to send what was held. Returns how many replies wait for sending again."""
        ...

    async def outbox_depth(self) -> OutboxDepth: ...

    async def replies(self, *, run_id: RunId | None = None, task_id: TaskId | None = None) -> list[Reply]:
        """Every reply meant for a run or task, in the order of sending."""
        ...

    async def transcript(self, channel: str, account: str, chat_id: str, *, after: int, limit: int) -> list[Reply]:
        """A chat's replies with a sequence beyond `after`: what a page that was away has missed."""
        ...

    # who it is

    async def identity(self) -> str:
        """A random name, made with the ledger: two installations never have the same."""
        ...

    # offices

    async def take_office(self, office: Office, member: str, *, seconds: float) -> bool:
        """Whether the office is the member's for so long from now: it is, unless another has it now."""
        ...

    async def leave_offices(self, member: str) -> None:
        """It has ended: whoever asks next has its offices."""
        ...

    # people

    async def record_operation(self, operation: Operation) -> None: ...

    async def operations(self, *, limit: int) -> list[Operation]:
        """Newest first."""
        ...

    async def purge(self, *, finished_before_ms: int, limit: int = 5000) -> int:
        """Forget finished runs, with their bytes and replies, that ended before then."""
        ...

    async def forget_raw(self, *, finished_before_ms: int, after_ms: int = 0, limit: int = 500) -> int | None:
        """Forget the bytes, and what is left of the steps, of about `limit` runs that ended after `after_ms` and before
        then, in the order of their ends. Returns how far it came, for the next step; None: there are no more now."""
        ...

    async def forget_history(self, *, said_before_ms: int, after: str = "", limit: int = 500) -> str | None:
        """Forget what was said before then in up to `limit` chats. Returns where the next step goes on; None: that was
        the last."""
        ...

    async def forget_chat(
        self, channel: str, account: str, chat_id: str, *, after: str = "", limit: int = 500, dry_run: bool = False
    ) -> ChatForgotten:
        """One step of forgetting a chat, whichever of its ids is named: looks at up to `limit` runs, of all chats.

        Of its runs that are over stays how they ended, and the checksum of their bytes (`forgotten_head`); their
        replies, results, steps, attempts and bytes go, and with the last step its history. Repeated, or begun anew
        after a crash, it goes on with what is left; and of all runs of the channel that were forgotten before, what a
        worker that was in the middle of one noted later goes, too. What ends meanwhile may be forgotten or not.
        `dry_run`: only count. What was forgotten does not come back, whoever was still writing it down.

        That its ids are one chat stays known.
        """
        ...

    async def finished_counts(self) -> Mapping[str, int]:
        """Finished tasks by status and outcome (`completed.answered`, `expired` …), as far as kept."""
        ...

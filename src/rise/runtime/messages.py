"""Messages as people look at them: lists that can be searched, and one message's whole life.

Only what an index or a bounded look can answer is asked: a page costs the same with a million messages stored as with a
hundred. A look through texts goes through so many messages and says how many those were.

Refuses: to search everything for a word. No index would find it, and a walk over all of it would hold up the chats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from rise.clock import from_epoch_ms
from rise.envelope import (
    MOMENT_MS_MAX,
    DeliveryKey,
    Head,
    Reason,
    Status,
    TaskId,
    is_in_digits,
    raw_for_people,
    run_id_of,
)
from rise.errors import TaskUnknown, Unavailable
from rise.ledger.port import Ended, Ledger, Operation, Reply, Run
from rise.queue.port import OpenTask, Queue, Selection
from rise.runtime.audit import receipt_of
from rise.runtime.operations import Operations
from rise.stories import TaskStory

PAGE: Final = 50
LOOK_MAX: Final = 2_000
"""Messages that are gone through for one page of a search that no index answers."""
LOOK_AT_ONCE: Final = 250
"""Of those: few questions, for each waits its turn, and none that holds the loop up for long."""
TURNS: Final = 100
OPERATIONS_LOOKED_AT: Final = 500


class State(StrEnum):
    """Which messages a list is of."""

    OPEN = "open"
    ENDED = "ended"
    PENDING = Status.PENDING
    PROCESSING = Status.PROCESSING
    REPLYING = Status.REPLYING
    SUSPENDED = Status.SUSPENDED
    COMPLETED = Status.COMPLETED
    EXPIRED = Status.EXPIRED
    DROPPED = Status.DROPPED

    @property
    def is_ended(self) -> bool:
        return self in _ENDED


_ENDED: Final = frozenset({State.ENDED, State.COMPLETED, State.EXPIRED, State.DROPPED})

MEANINGS: Final = {
    Reason.WORKFLOW_PENDING: "nothing is bound to its channel, or what is bound is not loaded",
    Reason.RAW_PAYLOAD_INVALID: "the platform sent what cannot be read; its bytes are kept",
    Reason.RETRIES_EXHAUSTED: "the workflow failed on every try",
    Reason.LANE_BLOCKED: "failing for longer than its chat should wait",
    Reason.POISON: "its worker process died three times while running it",
    Reason.STALE_REPLAY: "an unknown update over 24 hours old: probably a captured one sent again",
    Reason.SCHEMA_NEWER: "written by a newer version, or damaged",
    Reason.KILL_SWITCH: "the kill switch of its binding was on when its turn came",
    Reason.REPLY_HELD: "not known whether its reply was sent",
}
ENDINGS: Final = {
    Reason.WORKFLOW_PENDING: "by itself when a workflow appears; the sender was told",
    Reason.RAW_PAYLOAD_INVALID: "resume after an upgrade, or drop",
    Reason.RETRIES_EXHAUSTED: "resume, its tries start over; or drop",
    Reason.LANE_BLOCKED: "resume, or drop",
    Reason.POISON: "resume, or drop",
    Reason.STALE_REPLAY: "resume if it is genuine, or drop",
    Reason.SCHEMA_NEWER: "by itself when a worker of that version starts",
    Reason.KILL_SWITCH: "resume, or drop; while the switch is on, it is parked again",
    Reason.REPLY_HELD: "resume sends it (again); or drop",
}
"""As `docs/states.md` has them: what a suspension means, and how it ends."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is to be of. Empty fields do not narrow."""

    state: State = State.OPEN
    channel: str = ""
    chat_id: str = ""
    reason: Reason | None = None
    text: str = ""

    @property
    def looks_through(self) -> bool:
        """Whether messages have to be gone through: no index has what is asked for."""
        return bool(self.text or self.chat_id) or (self.state.is_ended and bool(self.channel))


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A message in a list."""

    task_id: TaskId
    channel: str
    account: str
    chat_id: str
    kind: str
    text: str
    status: Status
    reason: Reason | None = None
    outcome: str = ""
    accepted_at: datetime
    changed_at: datetime
    tries: int = 0
    error: str = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    rows: list[Row]
    following: str = ""
    """Where the next page begins. Empty: this was the last."""
    looked_at: int = 0
    """How many messages were gone through for it."""


_Placed = tuple[str, Row]
"""A row, and the place in its list after which the next page begins if it is the last one."""


class Moment(msgspec.Struct, frozen=True):
    """Something that happened to a message."""

    at: datetime | None
    what: str
    more: str = ""
    is_bad: bool = False


class MessageStory(msgspec.Struct, frozen=True, kw_only=True):
    """One message, from the door to its last reply."""

    story: TaskStory
    moments: list[Moment]
    earlier: list[Run]
    duplicates: int | None
    """How often it was delivered again. None: its key is no longer remembered."""

    @property
    def head(self) -> Head:
        return self.story.task.head

    @property
    def accepted_at(self) -> datetime:
        return from_epoch_ms(self.head.accepted_at_ms)


class Messages:
    """Looks; changes nothing."""

    def __init__(self, queue: Queue, ledger: Ledger, operations: Operations) -> None:
        self._queue = queue
        self._ledger = ledger
        self._operations = operations

    # --- lists ---

    async def page(self, asked: Asked, *, after: str = "") -> Page:
        """Open ones in the order of their ids, ended ones the latest first; `after`: where the page before ended."""
        look = self._ended_after if asked.state.is_ended else self._open_after
        found: list[_Placed] = []
        looked_at = 0
        while True:
            at_once = min(LOOK_AT_ONCE, LOOK_MAX - looked_at) if asked.looks_through else PAGE
            seen, following = await look(asked, after, at_once)
            looked_at += len(seen)
            found += [one for one in seen if _matches(one[1], asked)]
            is_enough = len(found) >= PAGE or looked_at >= LOOK_MAX or not asked.looks_through
            if not following or is_enough:
                return _first_page(found, following, looked_at)
            after = following

    async def chat(self, channel: str, account: str, chat_id: str) -> list[Row]:
        """What is kept of a chat's conversation, the latest first."""
        turns = await self._ledger.history(channel, account, chat_id, limit=TURNS)
        texts = {turn.run_id: turn for turn in reversed(turns) if turn.run_id and turn.role == "user"}
        task_ids = [TaskId(run_id.rpartition(".")[0]) for run_id in texts]
        runs = await self._ledger.finished_among(task_ids)
        heads = ((runs.get(task_id), turn) for task_id, turn in zip(task_ids, texts.values(), strict=True))
        return [
            Row(
                task_id=run.task_id,
                channel=channel,
                account=account,
                chat_id=chat_id,
                kind="message",
                text=turn.text,
                status=run.status,
                outcome=run.outcome or "",
                accepted_at=from_epoch_ms(run.accepted_at_ms),
                changed_at=from_epoch_ms(run.finished_at_ms or run.saved_at_ms),
            )
            for run, turn in heads
            if run is not None
        ]

    async def _open_after(self, asked: Asked, after: str, limit: int) -> tuple[list[_Placed], str]:
        status = None if asked.state is State.OPEN else Status(asked.state)
        selection = Selection(status=status, reason=asked.reason, channel=asked.channel or None)
        found = await self._queue.list_open(selection, limit=limit, after=after)
        following = found[-1].head.task_id if len(found) == limit else ""
        return [(task.head.task_id, _row_of_open(task)) for task in found], following

    async def _ended_after(self, asked: Asked, after: str, limit: int) -> tuple[list[_Placed], str]:
        before_ms = int(after) if is_in_digits(after) and len(after) < 16 else MOMENT_MS_MAX
        found = await self._ledger.ended(limit=limit, before_ms=before_ms)
        following = str(found[-1].run.finished_at_ms) if len(found) >= limit else ""
        return [(str(one.run.finished_at_ms), _row_of_ended(one)) for one in found], following

    # --- one ---

    async def story(self, task_id: TaskId) -> MessageStory:
        """As people may see it. Raises `TaskUnknown`."""
        known = await self._operations.story(task_id)
        task = msgspec.structs.replace(known.task, raw=raw_for_people(known.task))
        story = msgspec.structs.replace(known, task=task)
        earlier = [await self._ledger.run(run_id_of(task_id, number)) for number in range(task.progress.generation)]
        former = [run for run in earlier if run is not None]
        people = await self._operations_on(task_id)
        moments = _moments(story, former, people)
        return MessageStory(story=story, moments=moments, earlier=former, duplicates=await self._duplicates(task.head))

    async def named(self, word: str) -> TaskId | None:
        """The message that a task's, run's or reply's id belongs to, if there is one."""
        task_id = TaskId(word.strip().partition(".")[0])
        if not task_id.startswith("t_"):
            return None
        try:
            return (await self._operations.story(task_id)).task.task_id
        except TaskUnknown:
            return None

    async def _operations_on(self, task_id: TaskId) -> list[Operation]:
        """What people did to it, as far as the newest entries of the audit trail say so."""
        newest = await self._ledger.operations(limit=OPERATIONS_LOOKED_AT)
        return [one for one in newest if task_id in one.target]

    async def _duplicates(self, head: Head) -> int | None:
        if not head.delivery_key:
            return None
        try:
            receipt = await receipt_of(self._queue, DeliveryKey(head.delivery_key))
        except Unavailable:
            return None
        return None if receipt is None else receipt.duplicates


def _first_page(found: Sequence[_Placed], following: str, looked_at: int) -> Page:
    """No more rows than a page has, but for those that ended in one moment: the next begins with what was before."""
    end = min(PAGE, len(found))
    while 0 < end < len(found) and found[end][0] == found[end - 1][0]:
        end += 1
    following = found[end - 1][0] if end < len(found) else following
    return Page(rows=[row for _, row in found[:end]], following=following, looked_at=looked_at)


def _matches(row: Row, asked: Asked) -> bool:
    text = asked.text.casefold()
    return (
        (not asked.channel or row.channel == asked.channel)
        and (not asked.chat_id or row.chat_id == asked.chat_id)
        and (asked.state is State.ENDED or not asked.state.is_ended or row.status == asked.state.value)
        and (not text or text in row.text.casefold() or text in row.error.casefold())
    )


def _row_of_open(task: OpenTask) -> Row:
    head = task.head
    return Row(
        task_id=head.task_id,
        channel=head.channel,
        account=head.account,
        chat_id=head.conversation or "",
        kind=head.kind,
        text=head.user_text,
        status=task.status,
        reason=task.reason,
        accepted_at=from_epoch_ms(head.accepted_at_ms),
        changed_at=from_epoch_ms(task.updated_at_ms),
        tries=task.attempts,
        error=task.error or "",
    )


def _row_of_ended(ended: Ended) -> Row:
    run, head = ended.run, ended.head
    return Row(
        task_id=run.task_id,
        channel=head.channel if head else "",
        account=head.account if head else "",
        chat_id=(head.conversation or "") if head else "",
        kind=head.kind if head else "unreadable",
        text=head.user_text if head else "",
        status=run.status,
        outcome=run.outcome or "",
        accepted_at=from_epoch_ms(run.accepted_at_ms),
        changed_at=from_epoch_ms(run.finished_at_ms or run.saved_at_ms),
    )


# --- a life ---------------------------------------------------------------------------------------------------


def _moments(story: TaskStory, earlier: Sequence[Run], people: Sequence[Operation]) -> list[Moment]:
    """In the order of time; what has none comes last."""
    moments = [Moment(from_epoch_ms(story.task.head.accepted_at_ms), "accepted", f"by {story.task.head.source}")]
    moments += [Moment(from_epoch_ms(run.saved_at_ms), f"run {run.generation}", ending_of(run)) for run in earlier]
    if story.attempts_not_kept:
        before = from_epoch_ms(story.attempts[0].at_ms)
        moments.append(Moment(before, f"{story.attempts_not_kept} tries more until here", "of which nothing is kept"))
    for attempt in story.attempts:
        what = "try failed" if attempt.counted else "waited for what was away"
        moments.append(Moment(from_epoch_ms(attempt.at_ms), what, attempt.error, is_bad=attempt.counted))
    moments += _stage_moments(story.stages)
    moments += [
        Moment(from_epoch_ms(one.at_ms), f"{one.action} by {one.who}", f"because: {one.why}" if one.why else "")
        for one in people
    ]
    moments += _last_moments(story)
    return sorted(moments, key=lambda moment: (moment.at is None, moment.at or 0))  # a stable sort


def _stage_moments(records: Iterable[Any]) -> Iterable[Moment]:
    """As they were written, perhaps by another version."""
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("startedAtMs"), int):
            continue
        at = from_epoch_ms(record["startedAtMs"])
        yield Moment(at, f"stage {record.get('name')}", str(record.get("error") or ""), bool(record.get("error")))


def _last_moments(story: TaskStory) -> Iterable[Moment]:
    run, progress = story.run, story.task.progress
    if run is not None and run.saved_at_ms != run.finished_at_ms:
        more = f"of {run.workflow_id}; {_counted(story.replies)}" if run.workflow_id else _counted(story.replies)
        yield Moment(from_epoch_ms(run.saved_at_ms), "result saved", more)
    if run is not None and run.finished_at_ms is not None:
        is_bad = run.status is not Status.COMPLETED
        yield Moment(from_epoch_ms(run.finished_at_ms), ending_of(run), is_bad=is_bad)
    elif run is None:
        is_suspended = progress.status is Status.SUSPENDED
        more = f"{progress.reason}: {progress.error}" if progress.error else (progress.reason or "")
        yield Moment(from_epoch_ms(progress.updated_at_ms), str(progress.status), more, is_suspended)


def _counted(replies: Sequence[Reply]) -> str:
    return f"{len(replies)} {'reply' if len(replies) == 1 else 'replies'} meant"


def ending_of(run: Run) -> str:
    """How a run ended, and by whose word."""
    parts = [str(run.status), f"({run.outcome})" if run.outcome else ""]
    parts += [f"by {run.by}" if run.by else "", f"because: {run.why}" if run.why else ""]
    return " ".join(part for part in parts if part)

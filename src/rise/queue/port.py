"""Open work, in lanes: who may work on what, in which order.

The promises here are executable: `rise.testing.conformance.queue` runs on every backend.

Refuses: to know results. A task leaves when it is settled, and what became of it is the ledger's; what is settled
under a claim that has passed to another (`ClaimLost`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import msgspec

from rise.envelope import Head, LaneKey, Place, Reason, RunId, Status, Task, TaskId, run_id_of

KEY_GRACE_SECONDS: Final = 600
"""How much longer than its time a delivery key is remembered. The next message of the key may have read the clock just
before that was over, and still wait to be written; as a new one it could not be told from the former by its time, and
would never be run. No acceptance waits so long: it has been refused (RISE_ACCEPT_SECONDS)."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How long claims live and when a message is taken for poison."""

    claim: timedelta = timedelta(seconds=30)
    tasks_per_claim: int = 20
    deaths_suspect: int = 2
    deaths_max: int = 3
    lane_memory: timedelta = timedelta(hours=1)
    """How long an idle lane is remembered, to notice messages that arrive out of order."""


def key_kept_ms(head: Head) -> int:
    """How long its delivery key is remembered."""
    return (head.receipt_seconds + KEY_GRACE_SECONDS) * 1000


class NewTask(msgspec.Struct, frozen=True):
    """A delivery on its way in, or one that another copy brings back: the same, whenever it is said."""

    head: Head
    raw: bytes
    suspend: Reason | None = None
    """Keep it, but do not run it: its bytes are unreadable, or it is a stale replay."""
    error: str | None = None
    deadline_at_ms: int | None = None
    """After this moment of the store's clock it is too late to answer (callbacks, payments, inline queries)."""
    due_at_ms: int | None = None
    """Not to be run before this moment of the store's clock."""
    generation: int = 0


class Enqueued(msgspec.Struct, frozen=True):
    """What became of a delivery."""

    task_id: TaskId
    new: bool
    """False: the key was known, nothing was created, and this names the first task."""
    same_body: bool = True
    out_of_order: bool = False
    """It came after a delivery of its lane that the platform dates later."""
    late: bool = False
    """... and that later one had already been started."""


class Claim(msgspec.Struct, frozen=True):
    """The right to work one lane for a while. `fence` grows with every claim ever given out."""

    lane: LaneKey
    channel: str
    fence: int
    holder: str
    task: Task
    """The first task to run; `settle` hands over the next."""
    tasks_left: int
    """How many more tasks this claim may take before the lane must be let go (fairness)."""
    has_suspended: bool = False
    """Whether tasks of the lane were suspended when this one was started: perhaps they should go first by now."""


class Claimed(msgspec.Struct, frozen=True):
    claims: list[Claim]
    suspects_waiting: bool = False
    """A task that was running in several crashes waits for a worker that runs nothing else."""


# --- how a claim on a task ends ---------------------------------------------------------------------------


class Replying(msgspec.Struct, frozen=True):
    """Result and replies are saved in the ledger; the task stays open until the last is delivered."""


class Finished(msgspec.Struct, frozen=True):
    """The ledger says finished; the task leaves the queue and nothing of it stays behind."""


class RetryIn(msgspec.Struct, frozen=True):
    """Run it again later. It keeps its place and holds its lane until then."""

    seconds: float
    error: str
    counts: bool
    """Whether this used up one of the task's own tries; a dependency's fault never does. What follows it has not been
    failing since before: the time that the dependency was away is not held against the task either."""
    is_begun: bool = True
    """False: nothing of it has been begun, now or before."""


class Suspend(msgspec.Struct, frozen=True):
    """Wait for a person or an event; the lane goes on. Elsewhere this is a dead letter."""

    reason: Reason
    error: str | None = None


class Anew(msgspec.Struct, frozen=True):
    """Run it as `generation`: the result under its name is a former message's, or that of a burst which came to another
    end."""

    generation: int


Settlement = Replying | Finished | RetryIn | Suspend | Anew


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """Counted, not estimated. Times are milliseconds of the store's clock."""

    by_status: dict[str, int] = {}
    by_channel: dict[str, int] = {}
    by_reason: dict[str, int] = {}
    suspended_by_channel: dict[str, int] = {}
    retrying: int = 0
    """Pending, and not due again before its next try."""
    planned: int = 0
    """Pending, and never tried: it came to be run at a later moment. Until then there is nothing to do for it."""
    waiting_ms_by_channel: dict[str, int] = {}
    """Age of the oldest task that should be moving (pending, due, not claimed), where there is one."""
    oldest_suspended_ms: int | None = None
    lanes_claimed: int = 0
    accepted: int = 0
    """Delivery keys remembered now."""
    duplicates: int = 0
    out_of_order: int = 0

    @property
    def oldest_waiting_ms(self) -> int | None:
        return max(self.waiting_ms_by_channel.values(), default=None)


class LaneDepth(msgspec.Struct, frozen=True):
    """How much waits in a lane, and for how long its first has."""

    lane: LaneKey
    open: int
    oldest_waiting_ms: int


class Receipt(msgspec.Struct, frozen=True):
    """The memory of a delivery key."""

    delivery_key: str
    task_id: TaskId
    received_at_ms: int
    duplicates: int


class OpenTask(msgspec.Struct, frozen=True):
    """A row for lists: everything but the bytes."""

    head: Head
    status: Status
    reason: Reason | None
    generation: int
    attempts: int
    deaths: int
    due_at_ms: int
    updated_at_ms: int
    error: str | None

    @property
    def run_id(self) -> RunId:
        return run_id_of(self.head.task_id, self.generation)


class Route(msgspec.Struct, frozen=True, order=True):
    """What decides which workflow a task needs."""

    channel: str
    account: str
    workflow_id: str = ""
    """The one that the task asks for by name; empty: whatever is bound."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which open tasks are meant. Empty fields do not narrow.

    Of one lane, what is runnable is found by itself, and so is what is suspended. A lane without saying either is
    looked for among all that is open: not for a message's way, nor for a timer's.
    """

    task_ids: tuple[TaskId, ...] = ()
    status: Status | None = None
    is_runnable: bool = False
    """Only what is pending or processing, as it stands at one moment."""
    reason: Reason | None = None
    channel: str | None = None
    account: str | None = None
    lane: LaneKey | None = None
    routes: tuple[Route, ...] = ()
    older_than_ms: int | None = None
    """Only tasks accepted before this moment of the store's clock."""


class Queue(Protocol):
    """Open work, one lane per chat.

    Every method raises `StoreUnavailable` (or its backend's sibling) when the store does not answer, and
    has then changed nothing or will be found to have changed everything: repeating is always safe.
    """

    def now_ms(self) -> int:
        """The store's clock: the same for all processes, never stepping back, not the host's wall clock."""
        ...

    async def enqueue(self, task: NewTask) -> Enqueued:
        """Claim the delivery key and write the task, in one atomic and durable step."""
        ...

    async def claim(
        self, holder: str, room: Mapping[str, int], *, takes_suspects: bool, counts_deaths: bool = True
    ) -> Claimed:
        """Take up to `room[channel]` lanes per channel whose head is due, longest-waiting first. Where there is not
        room for all, most of it is for lanes in which somebody waits (`Head.is_awaited`): see `rise.queue.turns`. A
        lane is one of those from when such a message comes until nothing is to be done in it.

        A lane has at most one live claim. A task found running from a claim that was never settled has one
        more death counted; with `deaths_max` it is suspended as poison and the next is taken. A task with
        `deaths_suspect` is given only to a holder that `takes_suspects`, and alone. From then on a task counts as
        begun; what is claimed says whether it was so before. Not `counts_deaths`: the store
        could not be written to for a while, so that a claim which was not renewed proves nobody's death.
        """
        ...

    async def renew(self, claims: Sequence[Claim]) -> set[int]:
        """Each lasts anew; returns the fences of those that are lost. What is lost must not be worked on."""
        ...

    async def settle(self, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        """End the work on `task`; the same step starts the lane's next task and returns it.

        None: the lane was let go. Raises `ClaimLost`, having changed nothing, if the fence is stale.
        """
        ...

    async def hand_back(self, holder: str, *, keep: Collection[int] = ()) -> int:
        """Everything this holder claimed is as if it had never been claimed. Returns lanes freed.

        `keep`: but for the claims with these fences. What a store wrote and never said so is freed this way.
        """
        ...

    async def reclaim(self, holder: str) -> int:
        """Its process is known to be dead: make its claims claimable now instead of when they expire."""
        ...

    async def sweep(self, *, forgets: bool = True) -> int:
        """Make claimable every lane that has work and was forgotten. Returns lanes found.

        `forgets`: also forget the receipts whose time is over by the store's clock. That cannot be undone: whoever has
        reason to doubt the clock leaves it.
        """
        ...

    async def finish(self, task_id: TaskId, generation: int) -> bool:
        """The ledger says finished: forget the task.

        One whose worker has yet to settle it stays until then, because its result may ask for more than the
        reply that was delivered so quickly. False if it is gone or has been started anew.
        """
        ...

    async def resume(self, selection: Selection, *, limit: int) -> list[TaskId]:
        """Suspended → pending, whole lanes at a time, oldest first; about `limit` tasks. Retries start over."""
        ...

    async def resumable(self, selection: Selection, *, limit: int) -> list[OpenTask]:
        """What `resume` would resume."""
        ...

    async def hold(self, task_id: TaskId, generation: int, suspend: Suspend) -> bool:
        """Replying → suspended: its reply's fate is unknown and the binding says to ask a person."""
        ...

    async def restart(self, task: Task, *, generation: int) -> bool:
        """Run a finished or suspended task again as `generation`. False if it is already there or further.

        Where the store has lost what it had, the delivery key is known again from here on.
        """
        ...

    async def cancel(self, task_id: TaskId, *, generation: int | None = None) -> Task | None:
        """Take the task out of its lane for good, claimed or not; its claim, if any, is void at once.

        `generation`: only that one. A person may have it run again as the next at the same moment.
        """
        ...

    async def get(self, task_id: TaskId) -> Task | None: ...

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> list[OpenTask]:
        """Ordered by task id; pass the last one to go on."""
        ...

    async def next_in_lane(self, lane: LaneKey, *, limit: int, after: Place | None = None) -> list[OpenTask]:
        """The first pending tasks of a lane, in its order; `after`: behind this place, whether or not a task is there.

        It costs what it returns, however many wait: it may be asked for every message.
        """
        ...

    async def suspended_routes(self, reason: Reason, *, lane: LaneKey | None = None) -> list[Route]:
        """The routes of which tasks are suspended for this reason, in one lane or in all, sorted."""
        ...

    async def receipts(self, *, limit: int, after: str = "") -> list[Receipt]:
        """Ordered by delivery key; pass the last one to go on."""
        ...

    async def depth(self) -> QueueDepth: ...

    async def longest_lanes(self, *, limit: int) -> list[LaneDepth]:
        """The lanes with most runnable tasks: the chats that are worst off."""
        ...


class RefillableQueue(Queue, Protocol):
    """A queue that may lose what it holds, all or in part, and is filled again from the other copies.

    It hands out nothing before somebody has said that everything open is in it, so that no chat is answered out of
    order because half of it is missing. Accepting goes on meanwhile.
    """

    async def life(self) -> str | None:
        """Names what it holds, until it is emptied. None: it is new, was emptied, or is another; nothing is claimed."""
        ...

    async def begin_refill(self) -> str:
        """Everything open is about to be brought. Names this filling, for all who take part, until it is emptied."""
        ...

    async def begin_life(self, refill: str) -> str | None:
        """Everything open was brought in this filling. The first to say so names what it holds.

        None: it was emptied meanwhile, and what was brought before is lost.
        """
        ...

    async def end_life(self) -> None:
        """A person says that something is missing: nothing is claimed until it was filled again."""
        ...

    async def restore(self, tasks: Sequence[NewTask]) -> list[TaskId]:
        """Bring back what another copy holds: returns what was not open here, and is now.

        Left alone is what is open as the same generation or a later one, and what is known to be finished. Nothing
        is counted as a duplicate.
        """
        ...

    async def owe(self, member: str, lanes: Collection[LaneKey], *, seconds: int) -> None:
        """This process has earlier messages of these lanes, accepted while the queue took none, and brings them now.

        Until it has `paid`, or for so long, nothing of them is handed out: what is newer would be answered first.
        """
        ...

    async def paid(self, member: str, lanes: Collection[LaneKey]) -> None:
        """All of them are here."""
        ...

    async def missing(self, task_ids: Sequence[TaskId]) -> list[TaskId]:
        """Of these, the ones that are not open here. What has finished, `restore` and the ledger know."""
        ...

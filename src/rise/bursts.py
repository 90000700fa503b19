"""Short messages that a person writes in a burst, as one turn: the first of them leads, the others follow it.

Promises: which messages are a burst is said by when they were accepted, not by how busy the workers are. Before a
workflow begins, its burst is frozen as a step of the leader's run: every try has the same messages, never more, and
fewer only if one was ended otherwise meanwhile; what was computed for all of them counts for nothing then. How what
follows ends with its leader is `rise.merging`.

Refuses: to put together what is not a short text of one person for one binding, or what was tried by itself before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from rise.bindings import BindingRegistry, commands_of
from rise.definitions.records import BindingRecord, BurstPolicy
from rise.envelope import Head, Progress, Status, Task, TaskId, TaskType, encode_json
from rise.errors import EnvelopeMalformed
from rise.ledger.port import Ledger
from rise.merging import Merging
from rise.queue.port import OpenTask, Queue

MESSAGES_MAX: Final = 20
CHARS_MAX: Final = 4096
"""What is longer is not short: it is a turn of its own. Telegram cuts a longer one in several, which are a burst."""

_FROZEN: Final = "burst:messages"
"""The step of the leader's run that says which messages are answered with it."""
_KINDS: Final = frozenset({"message", "business_message"})


class Burst(msgspec.Struct, frozen=True):
    """The messages of one turn. The first is what is run, tried again, or suspended."""

    leader: Task
    followers: tuple[Task, ...] = ()

    @property
    def messages(self) -> tuple[Task, ...]:
        return (self.leader, *self.followers)

    def step_name(self, name: str) -> str:
        """What a step is called in the ledger: what was computed for other messages is not taken for these."""
        return self._mark + name

    def own_steps(self, kept: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Of the run's steps those that were computed for just these messages."""
        mark = self._mark
        return {name.removeprefix(mark): value for name, value in kept.items() if name.startswith(mark)}

    @property
    def _mark(self) -> str:
        if not self.followers:
            return ""
        named = "|".join(message.task_id for message in self.messages)
        return f"burst:{hashlib.sha256(named.encode()).hexdigest()[:12]}:"


@dataclass(frozen=True, slots=True)
class Bursts:
    """Waits for the rest of a burst, and gathers it."""

    queue: Queue
    ledger: Ledger
    bindings: BindingRegistry

    async def open_seconds(self, task: Task, binding: BindingRecord | None, steps: Mapping[str, bytes]) -> float:
        """For how long more of its burst may still come. 0: it is whole, or the task leads none."""
        policy = _policy_of(binding, task.head)
        if policy is None or _was_begun(task, steps):
            return 0.0
        heads, is_whole = await self._gathered(task.head, policy)
        if is_whole:
            return 0.0
        accepted, now_ms = [head.accepted_at_ms for head in heads], self.queue.now_ms()
        if not all(_is_recent(head, policy, now_ms) for head in heads):
            return 0.0
        quiet_at_ms = max(accepted) + policy.quiet_seconds * 1000
        answered_at_ms = min(accepted) + policy.longest_wait_seconds * 1000
        return max(0.0, min(quiet_at_ms, answered_at_ms) - now_ms) / 1000

    async def freeze(self, task: Task, binding: BindingRecord | None, steps: Mapping[str, bytes]) -> Burst:
        """What is answered with the task from now on, in every try of its run."""
        names = await self._frozen(task, binding, steps)
        followers = [await self._follower(name, task) for name in names if name != task.task_id]
        return Burst(task, tuple(follower for follower in followers if follower is not None))

    def may_follow(self, head: Head) -> bool:
        """Whether it may have ended with another, although nobody has begun to run it."""
        met = self.bindings.met_by(head)
        return _is_short_text(head) if met.status == "unknown" else _policy_of(met.binding, head) is not None

    # --- which messages ---

    async def _frozen(self, task: Task, binding: BindingRecord | None, steps: Mapping[str, bytes]) -> Sequence[TaskId]:
        kept = steps.get(_FROZEN)
        if kept is None:
            # A message that is run again answers what it answered before: nothing else would.
            names = await Merging(self.queue, self.ledger).merged_before(task.head, task.progress.generation)
            policy = _policy_of(binding, task.head)
            if not names and policy is not None and not _was_begun(task, steps):
                heads, _ = await self._gathered(task.head, policy)
                names = [head.task_id for head in heads]
            if not names:
                return ()
            # Of one alone as well: what comes while it waits for its next try is another turn.
            kept = await self.ledger.save_step(task.run_id, _FROZEN, encode_json(names))
        return msgspec.json.decode(kept, type=list[TaskId])

    async def _gathered(self, leader: Head, policy: BurstPolicy) -> tuple[list[Head], bool]:
        """Those of its burst that are there by now, in their order, and whether no more can come."""
        heads = [leader]
        earliest_ms = latest_ms = leader.accepted_at_ms
        # As many as can follow: whether one more goes with them makes no difference.
        for one in await self.queue.next_in_lane(leader.lane, after=leader.place, limit=MESSAGES_MAX - 1):
            head = one.head
            is_in_time = (
                head.accepted_at_ms - latest_ms <= policy.quiet_seconds * 1000
                and head.accepted_at_ms - earliest_ms <= policy.longest_wait_seconds * 1000
            )
            if not (is_in_time and self._follows(one, leader)):
                return heads, True
            heads.append(head)
            earliest_ms, latest_ms = min(earliest_ms, head.accepted_at_ms), max(latest_ms, head.accepted_at_ms)
        return heads, len(heads) == MESSAGES_MAX

    def _follows(self, one: OpenTask, leader: Head) -> bool:
        """Whether it goes on with what the leader says."""
        head, binding = one.head, self.bindings.met_by(one.head).binding
        leader_binding = self.bindings.met_by(leader).binding
        return (
            _is_short_text(head)
            and head.user["user_id"] == leader.user["user_id"]
            and not _was_tried(one)
            and (binding and binding.workflow_id) == (leader_binding and leader_binding.workflow_id)
        )

    async def _follower(self, task_id: TaskId, leader: Task) -> Task | None:
        """As it is now; None if it has ended otherwise, or somebody has to decide about it."""
        task = await self.queue.get(task_id)
        if task is None:
            latest = await self.ledger.latest_run(task_id)
            # As the ledger itself has it: an end that waits for it may not be the first, and then is not how it ended.
            ended = (await self.ledger.finished_among([task_id])).get(task_id)
            if latest is None or ended is None or latest.generation != ended.generation:
                return None
            return await self._archived(task_id) if ended.merged_into == leader.task_id else None
        run = await self.ledger.run(task.run_id)
        if run is not None:
            return task if run.merged_into == leader.task_id and not run.is_of_former(task.head) else None
        # Of what was tried and resumed only its steps tell.
        was_tried = _was_tried(task.progress) or await self.ledger.steps(task.run_id)
        return None if was_tried or task.progress.status is not Status.PENDING else task

    async def _archived(self, task_id: TaskId) -> Task | None:
        """Raises `EnvelopeMalformed` if this version cannot read it: left out, its words would never be answered."""
        task = await self.ledger.archived(task_id)
        if task is not None and task.head.is_stand_in:
            raise EnvelopeMalformed(f"{task_id}, which goes with it, cannot be read: {task.progress.error}")
        return task


def may_be_open(binding: BindingRecord, head: Head, now_ms: int) -> bool:
    """Whether it may wait for the rest of its burst: then it is not late."""
    policy = _policy_of(binding, head)
    return policy is not None and _is_recent(head, policy, now_ms)


def _is_recent(head: Head, policy: BurstPolicy, now_ms: int) -> bool:
    """Neither longer ago than anything waits, nor in the future: what a clock that was wrong accepted is not waited
    for until then."""
    return abs(now_ms - head.accepted_at_ms) < policy.longest_wait_seconds * 1000


def _policy_of(binding: BindingRecord | None, head: Head) -> BurstPolicy | None:
    return binding.burst if binding is not None and _is_short_text(head) else None


def _is_short_text(head: Head) -> bool:
    """What a person has written in a chat, and asks for nothing but an answer."""
    return (
        head.kind in _KINDS
        and head.task_type is TaskType.WORKFLOW_EXECUTE
        and head.workflow_id is None
        and head.chat_id is not None
        and head.user.get("user_id") is not None
        and bool(head.user_text.strip())
        and len(head.user_text) <= CHARS_MAX
        and not (head.is_unread or head.moved or head.policy or head.history_chunks or head.callback_url)
        and not commands_of(head)
    )


def _was_begun(task: Task, steps: Mapping[str, bytes]) -> bool:
    """Also under no policy. Not by its deaths: its worker may have died before that was frozen."""
    return bool(steps or task.progress.attempts)


def _was_tried(one: OpenTask | Progress) -> bool:
    """What was tried by itself goes on by itself: it has its own steps, and perhaps its own faults."""
    return bool(one.attempts or one.deaths)

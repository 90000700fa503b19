"""The queue as a few dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from rise.envelope import (
    Head,
    LaneKey,
    Order,
    Place,
    Progress,
    Reason,
    Status,
    Task,
    TaskId,
    clean_text,
    decode_head,
    encode_head,
)
from rise.errors import ClaimLost, EnvelopeMalformed
from rise.queue.port import (
    Anew,
    Claim,
    Claimed,
    Enqueued,
    Finished,
    LaneDepth,
    NewTask,
    OpenTask,
    QueueDepth,
    QueueLimits,
    Receipt,
    Replying,
    RetryIn,
    Route,
    Selection,
    Settlement,
    Suspend,
    key_kept_ms,
)
from rise.queue.turns import Turns
from rise.testing.fakes.store import MemoryStore

_RUNNABLE: Final = (Status.PENDING, Status.PROCESSING)
_FIRST: Final = Order(0, 0)
OWED_LOOK_MS: Final = 200


@dataclass(slots=True)
class RememberedKey:
    task_id: TaskId
    body_sha256: str
    received_at_ms: int
    expires_at_ms: int
    duplicates: int = 0


@dataclass(slots=True)
class StoredTask:
    head: Head
    stored_head: bytes
    """What is read when the task is to run; another version of Rise may have written it."""
    raw: bytes
    progress: Progress
    generation_answered: int | None = None
    """The ledger said that this run is finished before its worker settled it."""

    def change(self, **changes: Any) -> None:
        self.progress = msgspec.structs.replace(self.progress, **changes)

    @property
    def place(self) -> Place:
        return self.head.place

    @property
    def as_task(self) -> Task:
        return Task(self.head, self.raw, self.progress)


@dataclass(slots=True, eq=False)
class Lane:
    """What is known of a lane apart from its tasks."""

    key: LaneKey
    channel: str
    ready_at_ms: int | None = None
    """Since when it waits to be claimed, or when it may be. None: as far as is known, nothing is to be done."""
    is_awaited: bool = False
    """Whether somebody has been waiting in it since it last had nothing to do."""
    holder: str | None = None
    fence: int = 0
    newest: Order = _FIRST
    started: Order = _FIRST
    touched_at_ms: int = 0


class LateKept(NamedTuple):
    number: int
    about: str
    write: bytes


@dataclass(slots=True)
class MemoryQueueState:
    """The store. What a process keeps of it is nothing, so all may die and others go on with it."""

    keys: dict[str, RememberedKey] = field(default_factory=dict)
    tasks: dict[TaskId, StoredTask] = field(default_factory=dict)
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    fences: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    """Per channel, whose turn it is."""
    duplicates: int = 0
    out_of_order: int = 0
    owed: dict[LaneKey, dict[str, int]] = field(default_factory=dict)
    """Per lane, who has earlier messages of it, and until when that is waited for."""
    life: str | None = None
    lives: int = 0
    refill: str | None = None
    """The filling that is under way."""
    refills: int = 0
    finished: dict[TaskId, int] = field(default_factory=dict)
    """Tombstones: the generation of a task that is known to be finished."""
    late: dict[str, LateKept] = field(default_factory=dict)
    """What waits for the ledger, which is kept and lost with the queue."""
    late_ever: int = 0

    def empty(self) -> None:
        """Everything in it is lost."""
        # What names come from goes on, as time does.
        new = MemoryQueueState(lives=self.lives, refills=self.refills, fences=self.fences)
        for each in fields(self):
            setattr(self, each.name, getattr(new, each.name))


class MemoryQueue(MemoryStore):
    """`rise.queue.port.RefillableQueue`, as one process sees the state."""

    def __init__(
        self, state: MemoryQueueState, *, now_ms: Callable[[], int], limits: QueueLimits | None = None
    ) -> None:
        self._state = state
        self._now_ms = now_ms
        self._limits = limits or QueueLimits()

    def now_ms(self) -> int:
        return self._now_ms()

    # --- in ---

    async def enqueue(self, task: NewTask) -> Enqueued:
        return await self._through("enqueue", lambda: self._enqueue(task))

    def _enqueue(self, new: NewTask) -> Enqueued:
        key, task_id, now = new.head.delivery_key, new.head.task_id, self.now_ms()
        is_known = key in self._state.keys or task_id in self._state.tasks
        if not is_known:
            self._make_room()
        if key not in self._state.keys:
            # The body that counts is that of the task, which may have outlived the memory of its key.
            first = self._state.tasks[task_id].head if task_id in self._state.tasks else new.head
            expires = now + key_kept_ms(new.head)
            self._state.keys[key] = RememberedKey(task_id, first.raw_sha256, now, expires)
        if is_known:
            return self._count_duplicate(new)
        stored = self._create(_as_stored(new, now))
        if new.suspend:
            return Enqueued(task_id, new=True)
        return self._join_lane(stored, now)

    def _count_duplicate(self, new: NewTask) -> Enqueued:
        remembered = self._state.keys[new.head.delivery_key]
        remembered.duplicates += 1
        self._state.duplicates += 1
        same_body = remembered.body_sha256 == new.head.raw_sha256
        return Enqueued(remembered.task_id, new=False, same_body=same_body)

    def _join_lane(self, stored: StoredTask, now: int) -> Enqueued:
        head, lane = stored.head, self._announce(stored.head, now, due=stored.progress.due_at_ms)
        if stored.progress.due_at_ms > now:
            return Enqueued(head.task_id, new=True)  # it stands by its moment, in whatever order it came
        out_of_order, late = head.order < lane.newest, head.order < lane.started
        lane.newest = max(lane.newest, head.order)
        self._state.out_of_order += out_of_order
        return Enqueued(head.task_id, new=True, out_of_order=out_of_order, late=late)

    # --- claims ---

    async def claim(
        self, holder: str, room: Mapping[str, int], *, takes_suspects: bool, counts_deaths: bool = True
    ) -> Claimed:
        return await self._through("claim", lambda: self._claim(holder, room, takes_suspects, counts_deaths))

    def _claim(self, holder: str, room: Mapping[str, int], takes_suspects: bool, counts_deaths: bool) -> Claimed:
        if self._state.life is None:
            return Claimed([])  # half of a chat may be missing still
        now = self.now_ms()
        if takes_suspects and (alone := self._suspect_alone(holder, room, now, counts_deaths)):
            return Claimed([alone])
        claims: list[Claim] = []
        suspects_waiting = False
        for channel, places in room.items():
            turns, took = self._turns(channel, places, now), 0
            for lane in turns:
                if took >= places:
                    break
                first = self._first_due(lane, now, counts_deaths)
                if first is None:
                    continue
                if not self._is_suspect(first):
                    turns.took()
                    took += 1
                    claims.append(self._start(lane, holder, first, self._limits.tasks_per_claim, now))
                else:
                    suspects_waiting = True
            self._state.turns[channel] = turns.turn
        return Claimed(claims, suspects_waiting)

    def _suspect_alone(self, holder: str, room: Mapping[str, int], now: int, counts_deaths: bool) -> Claim | None:
        for lane in self._ready_lanes(now):
            deaths = max((task.progress.deaths for task in self._runnable(lane)), default=0)
            if not deaths or room.get(lane.channel, 0) <= 0:
                continue
            first = self._first_due(lane, now, counts_deaths)
            if first is not None and self._is_suspect(first):
                return self._start(lane, holder, first, 1, now)
        return None

    def _turns(self, channel: str, places: int, now: int) -> Turns[Lane]:
        """Each in its turn; where there is room for all, longest-waiting first."""
        ready = [lane for lane in self._ready_lanes(now) if lane.channel == channel]
        awaited = [lane for lane in ready if lane.is_awaited] if len(ready) > places else []
        return Turns(awaited, ready, turn=self._state.turns.get(channel, 0))

    def _ready_lanes(self, now: int) -> list[Lane]:
        """Those that may be claimed, longest-waiting first."""
        waiting = [
            (lane.ready_at_ms, lane.key, lane)
            for lane in self._state.lanes.values()
            if lane.ready_at_ms is not None and lane.ready_at_ms <= now
        ]
        return [lane for _, _, lane in sorted(waiting, key=lambda one: one[:2])]

    def _first_due(self, lane: Lane, now: int, counts_deaths: bool) -> StoredTask | None:
        """The first task of a lane that nobody has any more; None if nothing is to be done in it now."""
        self._take_from_the_lost(lane, now, counts_deaths)
        first = self._first_task(lane)
        if first is None or first.progress.due_at_ms > now or self._is_owed(lane, now):
            self._let_go(lane, now)
            return None
        return first

    def _take_from_the_lost(self, lane: Lane, now: int, counts_deaths: bool) -> None:
        for task in self._runnable(lane):
            if task.progress.status is not Status.PROCESSING:
                continue
            lane.holder = None
            deaths = task.progress.deaths + counts_deaths
            task.change(status=Status.PENDING, deaths=deaths, updated_at_ms=now)
            if counts_deaths and deaths >= self._limits.deaths_max:
                error = f"the worker process died {deaths} times while running it"
                task.change(status=Status.SUSPENDED, reason=Reason.POISON, error=error)

    def _start(self, lane: Lane, holder: str, task: StoredTask, tasks: int, now: int) -> Claim:
        self._state.fences += 1
        lane.holder, lane.fence = holder, self._state.fences
        started = self._run(lane, task, now)
        has_suspended = self._has_suspended(lane)
        return Claim(lane.key, lane.channel, lane.fence, holder, started, tasks - 1, has_suspended)

    def _run(self, lane: Lane, task: StoredTask, now: int) -> Task:
        """As it is now, but for whether it was begun before."""
        lane.ready_at_ms = now + self._claim_ms
        lane.touched_at_ms = now
        lane.started = max(lane.started, task.head.order)
        lane.newest = max(lane.newest, task.head.order)
        task.change(status=Status.PROCESSING, updated_at_ms=now)
        started = task.as_task
        task.change(is_begun=True)
        return started

    async def renew(self, claims: Sequence[Claim]) -> set[int]:
        return await self._through("renew", lambda: self._renew(claims))

    def _renew(self, claims: Sequence[Claim]) -> set[int]:
        lost = set()
        for claim in claims:
            lane = self._held_lane(claim)
            if lane is None:
                lost.add(claim.fence)
            else:
                lane.ready_at_ms = self.now_ms() + self._claim_ms
        return lost

    async def settle(self, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        return await self._through("settle", lambda: self._settle(claim, task, settlement))

    def _settle(self, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        lane, now = self._held_lane(claim), self.now_ms()
        if lane is None:
            raise ClaimLost(f"the claim on {claim.lane} has passed to another worker")
        running = self._state.tasks.get(task.task_id)
        if running is not None and running.progress.status is Status.PROCESSING:
            self._end(running, settlement, now)
        for task_running in self._runnable(lane):
            if task_running.progress.status is Status.PROCESSING:
                task_running.change(status=Status.PENDING)
        first = self._first_task(lane)
        may_go_on = self._state.life is not None and not self._is_owed(lane, now) and claim.tasks_left > 0
        if not may_go_on or first is None or first.progress.due_at_ms > now or self._is_suspect(first):
            self._let_go(lane, now)
            return None
        started = self._run(lane, first, now)
        left, has_suspended = claim.tasks_left - 1, self._has_suspended(lane)
        return msgspec.structs.replace(claim, task=started, tasks_left=left, has_suspended=has_suspended)

    def _end(self, task: StoredTask, settlement: Settlement, now: int) -> None:
        progress = task.progress
        match settlement:
            case Finished():
                self._bury(task)
            case Replying():
                task.change(status=Status.REPLYING, reason=None, error=None, updated_at_ms=now)
                if task.generation_answered == progress.generation:
                    self._bury(task)
            case RetryIn(seconds, error, counts, is_begun):
                due = now + int(seconds * 1000)
                since = now if progress.failing_since_ms is None else progress.failing_since_ms
                task.change(status=Status.PENDING, due_at_ms=due, error=clean_text(error), updated_at_ms=now)
                task.change(attempts=progress.attempts + counts, failing_since_ms=since if counts else None)
                task.change(is_begun=is_begun)
            case Anew(generation):
                task.change(status=Status.PENDING, generation=generation, updated_at_ms=now)
            case Suspend():
                _suspend(task, settlement, now)

    async def hand_back(self, holder: str, *, keep: Collection[int] = ()) -> int:
        return await self._through("hand_back", lambda: self._hand_back(holder, keep))

    def _hand_back(self, holder: str, keep: Collection[int]) -> int:
        lanes = [lane for lane in self._lanes_of(holder) if lane.fence not in keep]
        for lane in lanes:
            lane.holder, lane.ready_at_ms = None, self.now_ms()
            for task in self._runnable(lane):
                task.change(status=Status.PENDING)
        return len(lanes)

    async def reclaim(self, holder: str) -> int:
        return await self._through("reclaim", lambda: self._reclaim(holder))

    def _reclaim(self, holder: str) -> int:
        lanes = self._lanes_of(holder)
        for lane in lanes:
            if lane.ready_at_ms is not None:
                lane.ready_at_ms = min(lane.ready_at_ms, self.now_ms())
        return len(lanes)

    async def sweep(self, *, forgets: bool = True) -> int:
        return await self._through("sweep", lambda: self._sweep(forgets))

    def _sweep(self, forgets: bool) -> int:
        now = self.now_ms()
        forgotten = self._forgotten()
        for head in forgotten:
            self._announce(head, now)
        expired = [task for task in self._state.tasks.values() if _is_too_late(task, now)]
        for task in expired:
            # Of no use to anybody any more: the lane's next claim ends it.
            task.change(status=Status.PENDING, reason=None, due_at_ms=now)
            self._announce(task.head, now)
        if forgets:
            self._forget_old(now)
        return len(forgotten) + len(expired)

    def _forgotten(self) -> list[Head]:
        """One task of each lane that has work and is not said to."""
        first = {task.head.lane: task.head for task in self._state.tasks.values() if _is_runnable(task)}
        return [head for key, head in first.items() if not self._is_announced(key)]

    def _is_announced(self, key: LaneKey) -> bool:
        return key in self._state.lanes and self._state.lanes[key].ready_at_ms is not None

    def _forget_old(self, now: int) -> None:
        state, memory_ms = self._state, int(self._limits.lane_memory.total_seconds() * 1000)
        state.keys = {key: known for key, known in state.keys.items() if known.expires_at_ms >= now}
        state.lanes = {
            key: lane
            for key, lane in state.lanes.items()
            if lane.ready_at_ms is not None or lane.touched_at_ms >= now - memory_ms
        }

    # --- out, and people's hands ---

    async def finish(self, task_id: TaskId, generation: int) -> bool:
        return await self._through("finish", lambda: self._finish(task_id, generation))

    def _finish(self, task_id: TaskId, generation: int) -> bool:
        task = self._state.tasks.get(task_id)
        if task is None or task.progress.generation != generation:
            return False
        task.generation_answered = generation
        if task.progress.status is Status.REPLYING:
            self._bury(task)
        return True

    async def resume(self, selection: Selection, *, limit: int) -> list[TaskId]:
        return await self._through("resume", lambda: self._resume(selection, limit))

    def _resume(self, selection: Selection, limit: int) -> list[TaskId]:
        resumed, now = self._next_resumed(selection, limit), self.now_ms()
        for task in resumed:
            task.change(status=Status.PENDING, reason=None, due_at_ms=now, updated_at_ms=now)
            task.change(attempts=0, deaths=0, failing_since_ms=None)
            self._announce(task.head, now)
        return [task.head.task_id for task in resumed]

    def _next_resumed(self, selection: Selection, limit: int) -> list[StoredTask]:
        suspended = self._meant(msgspec.structs.replace(selection, status=Status.SUSPENDED))
        tasks: list[StoredTask] = []
        for lane in _by_lane_oldest_first(suspended):
            if len(tasks) < limit:
                tasks += lane
        return tasks

    async def resumable(self, selection: Selection, *, limit: int) -> list[OpenTask]:
        return await self._through("resumable", lambda: self._resumable(selection, limit))

    def _resumable(self, selection: Selection, limit: int) -> list[OpenTask]:
        return [_as_row(task) for task in self._next_resumed(selection, limit)]

    async def hold(self, task_id: TaskId, generation: int, suspend: Suspend) -> bool:
        return await self._through("hold", lambda: self._hold(task_id, generation, suspend))

    def _hold(self, task_id: TaskId, generation: int, suspend: Suspend) -> bool:
        task = self._state.tasks.get(task_id)
        if task is None or (task.progress.generation, task.progress.status) != (generation, Status.REPLYING):
            return False
        _suspend(task, suspend, self.now_ms())
        return True

    async def restart(self, task: Task, *, generation: int) -> bool:
        return await self._through("restart", lambda: self._restart(task, generation))

    def _restart(self, task: Task, generation: int) -> bool:
        now, known = self.now_ms(), self._state.tasks.get(task.task_id)
        if known is not None:
            progress = known.progress
            if progress.status is not Status.SUSPENDED or progress.generation >= generation:
                return False
        else:
            self._make_room()
        self._remember_again(task.head)
        progress = Progress(
            status=Status.PENDING, generation=generation, due_at_ms=now, accepted_at_ms=now, updated_at_ms=now
        )
        stored = encode_head(task.head)
        self._create(StoredTask(decode_head(stored), stored, task.raw, progress))
        self._announce(task.head, now)
        return True

    async def cancel(self, task_id: TaskId, *, generation: int | None = None) -> Task | None:
        return await self._through("cancel", lambda: self._cancel(task_id, generation))

    def _cancel(self, task_id: TaskId, generation: int | None) -> Task | None:
        task = self._state.tasks.get(task_id)
        if task is None or generation not in (None, task.progress.generation):
            return None
        self._bury(task)
        if task.progress.status is Status.PROCESSING:
            lane = self._state.lanes[task.head.lane]
            lane.holder, lane.ready_at_ms = None, self.now_ms()
        elif task.progress.status is Status.PENDING:
            # It may have been the one that its lane waited for.
            self._announce(task.head, self.now_ms())
        return task.as_task

    # --- looking ---

    async def get(self, task_id: TaskId) -> Task | None:
        return await self._through("get", lambda: self._get(task_id))

    def _get(self, task_id: TaskId) -> Task | None:
        task = self._state.tasks.get(task_id)
        return task.as_task if task else None

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> list[OpenTask]:
        return await self._through("list_open", lambda: self._list_open(selection, limit, after))

    def _list_open(self, selection: Selection, limit: int, after: str) -> list[OpenTask]:
        rows = [_as_row(task) for task in self._meant(selection) if task.head.task_id > after]
        return sorted(rows, key=lambda row: row.head.task_id)[:limit]

    async def next_in_lane(self, lane: LaneKey, *, limit: int, after: Place | None = None) -> list[OpenTask]:
        return await self._through("next_in_lane", lambda: self._next_in_lane(lane, limit, after))

    def _next_in_lane(self, lane: LaneKey, limit: int, after: Place | None) -> list[OpenTask]:
        pending = self._meant(Selection(status=Status.PENDING, lane=lane))
        behind = [task for task in pending if after is None or task.place > after]
        return [_as_row(task) for task in sorted(behind, key=lambda task: task.place)[:limit]]

    async def suspended_routes(self, reason: Reason, *, lane: LaneKey | None = None) -> list[Route]:
        return await self._through("suspended_routes", lambda: self._suspended_routes(reason, lane))

    def _suspended_routes(self, reason: Reason, lane: LaneKey | None) -> list[Route]:
        suspended = self._meant(Selection(status=Status.SUSPENDED, reason=reason, lane=lane))
        return sorted({_route_of(task.head) for task in suspended})

    async def receipts(self, *, limit: int, after: str = "") -> list[Receipt]:
        return await self._through("receipts", lambda: self._receipts(limit, after))

    def _receipts(self, limit: int, after: str) -> list[Receipt]:
        keys = [key for key in sorted(self._state.keys) if key > after][:limit]
        remembered = [(key, self._state.keys[key]) for key in keys]
        return [Receipt(key, known.task_id, known.received_at_ms, known.duplicates) for key, known in remembered]

    async def depth(self) -> QueueDepth:
        return await self._through("depth", self._depth)

    def _depth(self) -> QueueDepth:
        state, now = self._state, self.now_ms()
        open_now = [task.progress for task in state.tasks.values()]
        waiting: dict[str, int] = {}
        for lane in reversed(self._ready_lanes(now)):
            if lane.ready_at_ms is not None and self._should_be_moving(lane, now):
                waiting[lane.channel] = now - lane.ready_at_ms
        suspended = [task for task in state.tasks.values() if task.progress.status is Status.SUSPENDED]
        later = [task for task in open_now if task.status is Status.PENDING and task.due_at_ms > now]
        return QueueDepth(
            by_status=Counter(task.status.value for task in open_now),
            by_channel=Counter(task.head.channel for task in state.tasks.values()),
            by_reason=Counter(task.reason.value for task in open_now if task.reason),
            suspended_by_channel=Counter(task.head.channel for task in suspended),
            retrying=sum(task.error is not None for task in later),
            planned=sum(task.error is None for task in later),
            waiting_ms_by_channel=waiting,
            oldest_suspended_ms=now - min(task.progress.updated_at_ms for task in suspended) if suspended else None,
            lanes_claimed=sum(_is_claimed(lane, now) for lane in state.lanes.values()),
            accepted=len(state.keys),
            duplicates=state.duplicates,
            out_of_order=state.out_of_order,
        )

    async def longest_lanes(self, *, limit: int) -> list[LaneDepth]:
        return await self._through("longest_lanes", lambda: self._longest_lanes(limit))

    def _longest_lanes(self, limit: int) -> list[LaneDepth]:
        lanes: dict[LaneKey, list[int]] = {}
        for task in self._state.tasks.values():
            if _is_runnable(task):
                lanes.setdefault(task.head.lane, []).append(self.now_ms() - task.progress.accepted_at_ms)
        depths = [LaneDepth(key, len(ages), max(ages)) for key, ages in lanes.items()]
        return sorted(depths, key=lambda lane: (-lane.open, -lane.oldest_waiting_ms, lane.lane))[:limit]

    # --- being filled again ---

    async def life(self) -> str | None:
        return await self._through("life", lambda: self._state.life)

    async def begin_refill(self) -> str:
        return await self._through("begin_refill", self._begin_refill)

    def _begin_refill(self) -> str:
        if self._state.refill is None:
            self._state.refills += 1
            self._state.refill = f"refill {self._state.refills}"
        return self._state.refill

    async def begin_life(self, refill: str) -> str | None:
        return await self._through("begin_life", lambda: self._begin_life(refill))

    def _begin_life(self, refill: str) -> str | None:
        if self._state.life is None and self._state.refill == refill:
            self._state.lives += 1
            self._state.life, self._state.refill = f"life {self._state.lives}", None
        return self._state.life

    async def end_life(self) -> None:
        await self._through("end_life", self._end_life)

    def _end_life(self) -> None:
        self._state.life = None

    async def restore(self, tasks: Sequence[NewTask]) -> list[TaskId]:
        return [task.head.task_id for task in tasks if await self._through("restore", partial(self._restore, task))]

    async def owe(self, member: str, lanes: Collection[LaneKey], *, seconds: int) -> None:
        await self._through("owe", lambda: self._owe(member, lanes, seconds))

    def _owe(self, member: str, lanes: Collection[LaneKey], seconds: int) -> None:
        until = self.now_ms() + seconds * 1000
        for lane in lanes:
            self._state.owed.setdefault(lane, {})[member] = until

    async def paid(self, member: str, lanes: Collection[LaneKey]) -> None:
        await self._through("paid", lambda: self._paid(member, lanes))

    def _paid(self, member: str, lanes: Collection[LaneKey]) -> None:
        for lane in lanes:
            self._state.owed.get(lane, {}).pop(member, None)

    def _is_owed(self, lane: Lane, now: int) -> bool:
        return any(until > now for until in self._state.owed.get(lane.key, {}).values())

    async def missing(self, task_ids: Sequence[TaskId]) -> list[TaskId]:
        return await self._through("missing", lambda: self._missing(task_ids))

    def _missing(self, task_ids: Sequence[TaskId]) -> list[TaskId]:
        return [task_id for task_id in task_ids if task_id not in self._state.tasks]

    def _restore(self, new: NewTask) -> bool:
        task_id, now = new.head.task_id, self.now_ms()
        known, finished = self._state.tasks.get(task_id), self._state.finished.get(task_id, -1)
        if known is not None and known.progress.generation >= new.generation:
            return False
        if finished >= new.generation and not self._is_to_be_remembered(new.head):
            return False
        if known is None:
            self._make_room()
        self._remember_again(new.head)
        stored = self._create(_as_stored(new, now))
        stored.change(is_begun=True)
        if not new.suspend:
            lane = self._announce(stored.head, now, due=stored.progress.due_at_ms)
            if stored.progress.due_at_ms <= now:
                self._state.out_of_order += stored.head.order < lane.started
                lane.newest = max(lane.newest, stored.head.order)
        return True

    def _create(self, task: StoredTask) -> StoredTask:
        self._state.tasks[task.head.task_id] = task
        self._state.finished.pop(task.head.task_id, None)
        return task

    def _remember_again(self, head: Head) -> None:
        if self._is_to_be_remembered(head):
            ends = head.accepted_at_ms + key_kept_ms(head)
            remembered = RememberedKey(head.task_id, head.raw_sha256, head.accepted_at_ms, ends)
            self._state.keys[head.delivery_key] = remembered

    def _is_to_be_remembered(self, head: Head) -> bool:
        """Its key is not known, although its time is not over: what has finished under it was another message."""
        return head.accepted_at_ms + key_kept_ms(head) > self.now_ms() and head.delivery_key not in self._state.keys

    def _make_room(self) -> None:
        """For a task that comes in: a full store raises here and at nothing else, before anything is written. One that
        takes the place of its former generation has room."""

    # --- lanes ---

    def _announce(self, head: Head, now: int, *, due: int = 0) -> Lane:
        """Its lane has something to do, from when it is due; a lane that waits already keeps its place."""
        at = max(due, now)
        lane = self._state.lanes.setdefault(head.lane, Lane(head.lane, head.channel))
        lane.touched_at_ms = now
        lane.is_awaited = head.is_awaited or (lane.is_awaited and lane.ready_at_ms is not None)
        if lane.ready_at_ms is None:
            lane.ready_at_ms = at
        elif lane.holder is None:
            lane.ready_at_ms = min(lane.ready_at_ms, at)
        return lane

    def _let_go(self, lane: Lane, now: int) -> None:
        first = self._first_task(lane)
        lane.holder, lane.touched_at_ms = None, now
        lane.ready_at_ms = None if first is None else max(first.progress.due_at_ms, now)
        if lane.ready_at_ms is not None and self._is_owed(lane, now):
            lane.ready_at_ms = max(lane.ready_at_ms, now + OWED_LOOK_MS)

    def _held_lane(self, claim: Claim) -> Lane | None:
        """The claim's lane as long as nobody else has had it, even if the claim has lapsed."""
        lane = self._state.lanes.get(claim.lane)
        is_held = lane is not None and lane.holder is not None and lane.fence == claim.fence
        return lane if is_held else None

    def _lanes_of(self, holder: str) -> list[Lane]:
        return [lane for lane in self._state.lanes.values() if lane.holder == holder]

    def _first_task(self, lane: Lane) -> StoredTask | None:
        """The lane's first task. What this version cannot read is set aside and the next one taken."""
        for task in self._runnable(lane):
            try:
                decode_head(task.stored_head)
            except EnvelopeMalformed as error:
                task.change(status=Status.SUSPENDED, reason=Reason.SCHEMA_NEWER, error=str(error))
            else:
                return task
        return None

    def _runnable(self, lane: Lane) -> list[StoredTask]:
        """Its tasks in the order in which they run."""
        tasks = [task for task in self._state.tasks.values() if task.head.lane == lane.key and _is_runnable(task)]
        return sorted(tasks, key=lambda task: task.place)

    def _should_be_moving(self, lane: Lane, now: int) -> bool:
        return any(task.progress.due_at_ms <= now for task in self._runnable(lane)[:1])

    # --- tasks ---

    def _meant(self, selection: Selection) -> list[StoredTask]:
        return [task for task in self._state.tasks.values() if _is_meant(task, selection)]

    def _has_suspended(self, lane: Lane) -> bool:
        return bool(self._meant(Selection(status=Status.SUSPENDED, lane=lane.key)))

    def _is_suspect(self, task: StoredTask) -> bool:
        return task.progress.deaths >= self._limits.deaths_suspect

    def _forget(self, task: StoredTask) -> None:
        del self._state.tasks[task.head.task_id]

    def _bury(self, task: StoredTask) -> None:
        """It is over: whoever brings it again from another copy is told so."""
        self._forget(task)
        self._state.finished[task.head.task_id] = task.progress.generation

    @property
    def _claim_ms(self) -> int:
        return int(self._limits.claim.total_seconds() * 1000)


def _as_stored(new: NewTask, now: int) -> StoredTask:
    progress = Progress(
        status=Status.SUSPENDED if new.suspend else Status.PENDING,
        reason=new.suspend,
        generation=new.generation,
        due_at_ms=max(now, new.due_at_ms or 0),
        deadline_at_ms=new.deadline_at_ms,
        accepted_at_ms=now,
        updated_at_ms=now,
        error=None if new.error is None else clean_text(new.error),
    )
    stored = encode_head(new.head)
    return StoredTask(decode_head(stored), stored, new.raw, progress)


def _as_row(task: StoredTask) -> OpenTask:
    progress = task.progress
    return OpenTask(
        head=task.head,
        status=progress.status,
        reason=progress.reason,
        generation=progress.generation,
        attempts=progress.attempts,
        deaths=progress.deaths,
        due_at_ms=progress.due_at_ms,
        updated_at_ms=progress.updated_at_ms,
        error=progress.error,
    )


def _suspend(task: StoredTask, suspend: Suspend, now: int) -> None:
    error = None if suspend.error is None else clean_text(suspend.error)
    task.change(status=Status.SUSPENDED, reason=suspend.reason, error=error, updated_at_ms=now)


def _is_runnable(task: StoredTask) -> bool:
    return task.progress.status in _RUNNABLE


def _is_claimed(lane: Lane, now: int) -> bool:
    return lane.holder is not None and lane.ready_at_ms is not None and lane.ready_at_ms > now


def _is_too_late(task: StoredTask, now: int) -> bool:
    progress = task.progress
    if progress.status is not Status.SUSPENDED or progress.deadline_at_ms is None:
        return False
    # A held reply was perhaps an answer in time: a person has to say what becomes of it.
    return progress.reason is not Reason.REPLY_HELD and progress.deadline_at_ms < now


def _is_meant(task: StoredTask, selection: Selection) -> bool:
    head, progress = task.head, task.progress
    wanted = (
        (selection.status, progress.status),
        (selection.reason, progress.reason),
        (selection.channel, head.channel),
        (selection.account, head.account),
        (selection.lane, head.lane),
    )
    if any(wish is not None and wish != known for wish, known in wanted):
        return False
    if selection.is_runnable and progress.status not in (Status.PENDING, Status.PROCESSING):
        return False
    if selection.task_ids and head.task_id not in selection.task_ids:
        return False
    if selection.routes and _route_of(head) not in selection.routes:
        return False
    return selection.older_than_ms is None or progress.accepted_at_ms < selection.older_than_ms


def _route_of(head: Head) -> Route:
    return Route(head.channel, head.account, head.workflow_id or "")


def _by_lane_oldest_first(tasks: Iterable[StoredTask]) -> list[list[StoredTask]]:
    lanes: dict[LaneKey, list[StoredTask]] = {}
    for task in sorted(tasks, key=lambda task: task.place):
        lanes.setdefault(task.head.lane, []).append(task)
    return sorted(lanes.values(), key=lambda lane: (lane[0].head.order.at_ms, lane[0].head.lane))

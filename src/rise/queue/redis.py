"""The queue on Redis, for any number of processes on any number of hosts.

Every operation is one Lua script (`lua/`, one file each), so it happens wholly or not at all, and repeating it is
safe. A sorted set per channel says since when each lane waits to be claimed, or from when it may be: new work, due
retries and lapsed claims are the same look, as in the embedded queue, in logarithmic time however many lanes there
are. That set is the truth about lanes; what is lost of it the sweep makes again from the tasks.

The stream with its consumer group is only there to wake: a lane that begins to wait puts one entry into it, and the
claim takes it out again, read or not, whoever had read it. Handing lanes out by the stream instead was weighed and
left: entries cannot be ordered by how long a lane waits, chosen by channel, held back until a retry is due or kept
from a busy worker, so the sorted set would be needed all the same, and both would have to agree.

Time is the server's, inside the scripts (`rise.connections.redis.CLOCK`); receipts end by it, in the sweep, and not
by Redis's own expiry, because they are counted and listed. Commands of Redis 6.2 only, all keys in the slot of {rise}.
Redis must neither evict (`noeviction`) nor be shared with a second installation in the same database.

Refuses: to hand anything out while nobody has said that all that is open is in it (`life`), as after it was emptied or
started anew. What is accepted meanwhile is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import msgspec

from rise.connections.redis import LIFE, REFILL, Argument, RedisDatabase, Script
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
    new_key,
    unreadable_head,
    words_of,
)
from rise.errors import ClaimLost, EnvelopeMalformed, RedisUnavailable
from rise.queue.port import (
    Anew,
    Claim,
    Claimed,
    Enqueued,
    LaneDepth,
    NewTask,
    OpenTask,
    QueueDepth,
    QueueLimits,
    Receipt,
    RetryIn,
    Route,
    Selection,
    Settlement,
    Suspend,
    key_kept_ms,
)
from rise.queue.turns import AWAITED_TURNS

TOMBSTONE_SECONDS: Final = 72 * 3600
"""How long it is remembered of a task that it is finished: as long as the key of an update."""
LOOK_AT_ONCE: Final = 200
"""How much one script looks through: a millisecond or two, in which nothing else is done for anybody."""
RESTORE_BYTES_MAX: Final = 8 << 20
TIES_MAX: Final = 100
HINT_SECONDS: Final = 600
"""After this, nobody follows a hint that somebody has read."""
SWEEPER: Final = "sweeper"
HINTS: Final = "{rise}:queue:tasks"
GROUP: Final = "workers"
TASK: Final = "{rise}:queue:task:"
FINISHED: Final = "{rise}:queue:finished:"
ROUTES: Final = "{rise}:queue:routes"

_ROW: Final = (
    "id", "lane", "channel", "account", "order", "status", "reason", "generation", "attempts", "deaths", "due",
    "deadline", "failing", "updated", "accepted", "error", "begun",
)  # fmt: skip
_SHOWN: Final = (*_ROW, "head")
_WHOLE: Final = (*_SHOWN, "raw")
_STARTED: Final = (*_WHOLE, "suspended")
_ORDER_ZERO: Final = 1 << 63


def _script(name: str, *shared: str) -> Script:
    lua = files("rise.queue") / "lua"
    row = f"local ROW = {{ {', '.join(map(repr, _ROW))} }}\n"
    return Script(name, row + "\n".join((lua / f"{part}.lua").read_text() for part in ("lanes", *shared, name)))


_ENQUEUE: Final = _script("enqueue")
_RESTORE: Final = _script("restore")
_OWE: Final = _script("owe")
_PAID: Final = _script("paid")
_BEGIN_LIFE: Final = _script("begin_life")
_CLAIM: Final = _script("claim")
_RENEW: Final = _script("renew")
_SETTLE: Final = _script("settle")
_HAND_BACK: Final = _script("hand_back")
_RECLAIM: Final = _script("reclaim")
_SWEEP_LANES: Final = _script("sweep_lanes")
_SWEEP_TASKS: Final = _script("sweep_tasks")
_FORGET: Final = _script("forget")
_FINISH: Final = _script("finish")
_RESUME: Final = _script("resume", "selection")
_RESUMABLE: Final = _script("resumable", "selection")
_HOLD: Final = _script("hold")
_RESTART: Final = _script("restart")
_CANCEL: Final = _script("cancel")
_GET: Final = _script("get")
_LIST_OPEN: Final = _script("list_open", "selection")
_NEXT_IN_LANE: Final = _script("next_in_lane")
_LANE_ROUTES: Final = _script("lane_routes")
_RECEIPTS: Final = _script("receipts")
_DEPTH: Final = _script("depth")
_LONGEST_LANES: Final = _script("longest_lanes")
_BEGIN_HINTS: Final = _script("begin_hints")


class RedisQueue:
    """`rise.queue.port.RefillableQueue` on one Redis."""

    def __init__(self, database: RedisDatabase, limits: QueueLimits | None = None) -> None:
        self._database = database
        self._limits = limits or QueueLimits()
        self._claim_ms = _ms(self._limits.claim.total_seconds())

    def now_ms(self) -> int:
        return self._database.now_ms()

    # --- in ---

    async def enqueue(self, task: NewTask) -> Enqueued:
        task_id, new, same_body, out_of_order, late = await self._database.run(
            _ENQUEUE,
            task.head.delivery_key,
            task.head.raw_sha256,
            encode_head(task.head),
            task.raw,
            key_kept_ms(task.head),
            "" if task.deadline_at_ms is None else task.deadline_at_ms,
            "" if task.due_at_ms is None else task.due_at_ms,
            task.suspend or "",
            *_identity(task.head),
            *_given(task.error),
        )
        return Enqueued(TaskId(task_id.decode()), bool(new), bool(same_body), bool(out_of_order), bool(late))

    # --- claims ---

    async def claim(
        self, holder: str, room: Mapping[str, int], *, takes_suspects: bool, counts_deaths: bool = True
    ) -> Claimed:
        limits = self._limits
        suspects_waiting, offers = await self._database.run(
            _CLAIM,
            holder,
            int(takes_suspects),
            int(counts_deaths),
            self._claim_ms,
            limits.tasks_per_claim,
            limits.deaths_suspect,
            limits.deaths_max,
            AWAITED_TURNS,
            *(part for channel, places in room.items() if places > 0 for part in (channel, places)),
        )
        claims = [await self._readable(_Offer.read(holder, offer)) for offer in offers]
        return Claimed([claim for claim in claims if claim is not None], bool(suspects_waiting))

    async def renew(self, claims: Sequence[Claim]) -> set[int]:
        fenced = (part for claim in claims for part in (claim.lane, claim.fence))
        return {int(fence) for fence in await self._database.run(_RENEW, self._claim_ms, *fenced)}

    async def settle(self, claim: Claim, task: Task, settlement: Settlement) -> Claim | None:
        offer = _Offer(claim.lane, claim.channel, claim.fence, claim.holder, claim.tasks_left, None)
        following = await self._settle(offer, task.task_id, settlement)
        return None if following is None else await self._readable(following)

    async def _settle(self, held: _Offer, task_id: TaskId, settlement: Settlement) -> _Offer | None:
        row = await self._database.run(
            _SETTLE,
            held.lane,
            held.fence,
            held.tasks_left,
            self._claim_ms,
            self._limits.deaths_suspect,
            TOMBSTONE_SECONDS * 1000,
            task_id,
            *_named(settlement),
        )
        if row == b"lost":
            raise ClaimLost(f"the claim on {held.lane} has passed to another worker")
        return None if row is None else held.following(row)

    async def _readable(self, offered: _Offer) -> Claim | None:
        """The claim on the first task that this version can read: what it cannot is suspended and the next taken."""
        following: _Offer | None = offered
        while following is not None:
            try:
                return following.claim()
            except EnvelopeMalformed as error:
                unread = msgspec.structs.replace(following, tasks_left=following.tasks_left + 1)
                unreadable = Suspend(Reason.SCHEMA_NEWER, str(error))
                following = await self._settle(unread, following.task_id, unreadable)
        return None

    async def hand_back(self, holder: str, *, keep: Collection[int] = ()) -> int:
        return int(await self._database.run(_HAND_BACK, holder, *keep))

    async def reclaim(self, holder: str) -> int:
        return int(await self._database.run(_RECLAIM, holder))

    async def sweep(self, *, forgets: bool = True) -> int:
        found = await self._sweep_lanes() + await self._sweep_tasks()
        memory_ms = _ms(self._limits.lane_memory.total_seconds())
        while forgets and await self._database.run(_FORGET, LOOK_AT_ONCE, memory_ms, HINT_SECONDS * 1000, SWEEPER):
            pass
        return found

    async def _sweep_lanes(self) -> int:
        cursor, found = await self._database.run(_SWEEP_LANES, 0, LOOK_AT_ONCE)
        while cursor != b"0":
            cursor, more = await self._database.run(_SWEEP_LANES, cursor, LOOK_AT_ONCE)
            found += more
        return int(found)

    async def _sweep_tasks(self) -> int:
        found, more = 0, LOOK_AT_ONCE
        while more == LOOK_AT_ONCE:
            more = int(await self._database.run(_SWEEP_TASKS, LOOK_AT_ONCE))
            found += more
        return found

    # --- out, and people's hands ---

    async def finish(self, task_id: TaskId, generation: int) -> bool:
        return bool(await self._database.run(_FINISH, task_id, generation, TOMBSTONE_SECONDS * 1000))

    async def resume(self, selection: Selection, *, limit: int) -> list[TaskId]:
        resumed = await self._database.run(_RESUME, _suspended(selection), limit)
        return [TaskId(task_id.decode()) for task_id in resumed]

    async def resumable(self, selection: Selection, *, limit: int) -> list[OpenTask]:
        return [_open_task(row) for row in await self._database.run(_RESUMABLE, _suspended(selection), limit)]

    async def hold(self, task_id: TaskId, generation: int, suspend: Suspend) -> bool:
        return bool(await self._database.run(_HOLD, task_id, generation, suspend.reason, *_given(suspend.error)))

    async def restart(self, task: Task, *, generation: int) -> bool:
        head = task.head
        known = _receipt_and_content(head, task.raw)
        return bool(await self._database.run(_RESTART, *known, generation, *_identity(head)))

    async def cancel(self, task_id: TaskId, *, generation: int | None = None) -> Task | None:
        meant = "" if generation is None else generation
        return _task_or_none(await self._database.run(_CANCEL, task_id, TOMBSTONE_SECONDS * 1000, meant))

    # --- looking ---

    async def get(self, task_id: TaskId) -> Task | None:
        return _task_or_none(await self._database.run(_GET, task_id))

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> list[OpenTask]:
        rows: list[OpenTask] = []
        meant, following = _shown(selection), after.encode()
        while following is not None and len(rows) < limit:
            following, found = await self._database.run(_LIST_OPEN, meant, following, LOOK_AT_ONCE, limit - len(rows))
            rows += [_open_task(row) for row in found]
        return rows

    async def next_in_lane(self, lane: LaneKey, *, limit: int, after: Place | None = None) -> list[OpenTask]:
        place = "" if after is None else _order_text(after[0]) + after[1]
        return [_open_task(row) for row in await self._database.run(_NEXT_IN_LANE, lane, place, limit)]

    async def suspended_routes(self, reason: Reason, *, lane: LaneKey | None = None) -> list[Route]:
        if lane is None:
            routes = await self._database.execute("HKEYS", ROUTES)
        else:
            routes = await self._database.run(_LANE_ROUTES, lane)
        return sorted(Route(*route) for why, *route in map(msgspec.json.decode, routes) if why == reason)

    async def receipts(self, *, limit: int, after: str = "") -> list[Receipt]:
        receipts: list[Receipt] = []
        while len(receipts) < limit:
            page = min(limit - len(receipts), LOOK_AT_ONCE)
            found = await self._database.run(_RECEIPTS, receipts[-1].delivery_key if receipts else after, page)
            receipts += [_receipt(*one) for one in zip(*found, strict=True)]
            if not found or len(found[0]) < page:
                break
        return receipts

    async def depth(self) -> QueueDepth:
        return _depth(*await self._database.run(_DEPTH))

    async def longest_lanes(self, *, limit: int) -> list[LaneDepth]:
        longest = await self._database.run(_LONGEST_LANES, limit + TIES_MAX) if limit else []
        lanes = [LaneDepth(LaneKey(lane.decode()), *counted) for lane, *counted in longest]
        return sorted(lanes, key=lambda lane: (-lane.open, -lane.oldest_waiting_ms, lane.lane))[:limit]

    # --- being filled again ---

    async def life(self) -> str | None:
        known = await self._database.execute("GET", LIFE)
        return None if known is None else known.decode()

    async def begin_refill(self) -> str:
        await self._database.execute("SET", REFILL, new_key(), "NX")
        named = await self._database.execute("GET", REFILL)
        if named is None:
            raise RedisUnavailable("Redis was emptied at this moment, or another process has filled it")
        return str(named.decode())

    async def begin_life(self, refill: str) -> str | None:
        named = await self._database.run(_BEGIN_LIFE, refill, new_key())
        return None if named is None else named.decode()

    async def end_life(self) -> None:
        await self._database.execute("DEL", LIFE)

    async def restore(self, tasks: Sequence[NewTask]) -> list[TaskId]:
        brought: list[TaskId] = []
        for some in _in_bites(tasks):
            were_missing = await asyncio.gather(*(self._restore(task) for task in some))
            brought += [task.head.task_id for task, missing in zip(some, were_missing, strict=True) if missing]
        return brought

    async def _restore(self, task: NewTask) -> bool:
        head = task.head
        return bool(
            await self._database.run(
                _RESTORE,
                *_receipt_and_content(head, task.raw),
                "" if task.deadline_at_ms is None else task.deadline_at_ms,
                "" if task.due_at_ms is None else task.due_at_ms,
                task.suspend or "",
                task.generation,
                *_identity(head),
                *_given(task.error),
            )
        )

    async def owe(self, member: str, lanes: Collection[LaneKey], *, seconds: int) -> None:
        for some in _in_parts(list(lanes)):
            await self._database.run(_OWE, member, seconds, *some)

    async def paid(self, member: str, lanes: Collection[LaneKey]) -> None:
        for some in _in_parts(list(lanes)):
            await self._database.run(_PAID, member, *some)

    async def missing(self, task_ids: Sequence[TaskId]) -> list[TaskId]:
        known = await asyncio.gather(*(self._database.execute("EXISTS", TASK + task_id) for task_id in task_ids))
        return [task_id for task_id, count in zip(task_ids, known, strict=True) if not count]

    # --- beyond the port ---

    async def finished(self, task_ids: Sequence[TaskId]) -> dict[TaskId, int]:
        """Of these, the tasks known to be finished, with the generation that was. Remembered for a while only."""
        if not task_ids:
            return {}
        stones = await self._database.execute("MGET", *(FINISHED + task_id for task_id in task_ids))
        return {task_id: int(stone) for task_id, stone in zip(task_ids, stones, strict=True) if stone is not None}

    async def wait_for_hint(self, member: str, *, seconds: float) -> bool:
        """Until a lane begins to wait that no other member was woken for; then `claim`. False: nothing happened.

        `member` is the worker's own name and stays, so that consumers do not pile up.
        """
        await self._database.run(_BEGIN_HINTS)
        group, how = ("GROUP", GROUP, member), ("COUNT", 1, "BLOCK", max(1, _ms(seconds)))
        return bool(await self._database.wait_for("XREADGROUP", *group, *how, "STREAMS", HINTS, ">", seconds=seconds))


# --- what goes over the wire -------------------------------------------------------------------------------


class _Offer(msgspec.Struct, frozen=True):
    """A claim whose task has not been read yet."""

    lane: LaneKey
    channel: str
    fence: int
    holder: str
    tasks_left: int
    row: Sequence[Any] | None

    @classmethod
    def read(cls, holder: str, answer: Sequence[Any]) -> _Offer:
        lane, channel, fence, tasks_left, row = answer
        return cls(LaneKey(lane.decode()), channel.decode(), int(fence), holder, tasks_left, row)

    def following(self, row: Sequence[Any]) -> _Offer:
        return msgspec.structs.replace(self, tasks_left=self.tasks_left - 1, row=row)

    @property
    def task_id(self) -> TaskId:
        assert self.row is not None
        return TaskId(self.row[0].decode())

    def claim(self) -> Claim:
        """Raises `EnvelopeMalformed` if this version cannot read the task."""
        assert self.row is not None
        columns = dict(zip(_STARTED, self.row, strict=True))
        task = Task(decode_head(columns["head"]), columns["raw"], _progress(columns))
        has_suspended = bool(columns["suspended"])
        return Claim(self.lane, self.channel, self.fence, self.holder, task, self.tasks_left, has_suspended)


def _in_bites(tasks: Sequence[NewTask]) -> Iterator[list[NewTask]]:
    """As many at once as one pipeline carries well within its deadline, however large they are."""
    bite: list[NewTask] = []
    size = 0
    for task in tasks:
        if bite and size + len(task.raw) > RESTORE_BYTES_MAX:
            yield bite
            bite, size = [], 0
        bite.append(task)
        size += len(task.raw)
    if bite:
        yield bite


def _in_parts(lanes: Sequence[LaneKey]) -> Iterator[Sequence[LaneKey]]:
    return (lanes[at : at + LOOK_AT_ONCE] for at in range(0, len(lanes), LOOK_AT_ONCE))


def _depth(
    counts: Sequence[bytes],
    routes: Sequence[bytes],
    retrying: int,
    planned: int,
    waiting_ms: Sequence[Any],
    oldest_suspended_ms: int | None,
    lanes_claimed: int,
    receipts: int,
) -> QueueDepth:
    by_name = {name.decode().partition(":")[::2]: int(n) for name, n in _pairs(counts) if n != b"0"}
    by_reason: Counter[str] = Counter()
    suspended_by_channel: Counter[str] = Counter()
    for route, n in _pairs(routes):
        reason, channel, *_ = msgspec.json.decode(route)
        by_reason[reason] += int(n)
        suspended_by_channel[channel] += int(n)
    return QueueDepth(
        by_status={name: n for (kind, name), n in by_name.items() if kind == "status"},
        by_channel={name: n for (kind, name), n in by_name.items() if kind == "channel"},
        by_reason=dict(by_reason),
        suspended_by_channel=dict(suspended_by_channel),
        retrying=retrying,
        planned=planned,
        waiting_ms_by_channel={channel.decode(): ms for channel, ms in _pairs(waiting_ms)},
        oldest_suspended_ms=oldest_suspended_ms,
        lanes_claimed=lanes_claimed,
        accepted=receipts,
        duplicates=by_name.get(("duplicates", ""), 0),
        out_of_order=by_name.get(("out_of_order", ""), 0),
    )


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _given(text: str | None) -> tuple[str, ...]:
    """As a last argument, which is not there if there is none. What no encoding has is replaced."""
    return () if text is None else (clean_text(text),)


def _receipt_and_content(head: Head, raw: bytes) -> tuple[Argument, ...]:
    """Of a task that this Redis may have lost: its key, its content, from when and until when it is remembered."""
    ends_ms = head.accepted_at_ms + key_kept_ms(head)
    return head.delivery_key, head.raw_sha256, encode_head(head), raw, head.accepted_at_ms, ends_ms


def _identity(head: Head) -> tuple[Argument, ...]:
    """What the indexes are made of."""
    order, at_ms = _order_text(head.order), head.order.at_ms
    unawaited = "" if head.is_awaited else 1
    return head.task_id, head.lane, head.channel, head.account, head.workflow_id or "", order, at_ms, unawaited


def _order_text(order: Order) -> str:
    """It sorts as the order does, negative numbers included."""
    return f"{order.at_ms + _ORDER_ZERO:016x}{order.seq + _ORDER_ZERO:016x}"


def _order(stored: bytes) -> Order:
    return Order(int(stored[:16], 16) - _ORDER_ZERO, int(stored[16:], 16) - _ORDER_ZERO)


def _named(settlement: Settlement) -> tuple[Argument, ...]:
    name = type(settlement).__name__
    match settlement:
        case RetryIn(seconds, error, counts, is_begun):
            return name, _ms(seconds), int(counts), clean_text(error), int(is_begun)
        case Anew(generation):
            return name, generation
        case Suspend(reason, error):
            return name, reason, *_given(error)
    return (name,)


def _narrowing(selection: Selection) -> bytes:
    wishes = msgspec.structs.asdict(selection)
    wishes["routes"] = [msgspec.structs.astuple(route) for route in selection.routes]
    return msgspec.json.encode({name: wish for name, wish in wishes.items() if wish not in (None, (), [])})


def _shown(selection: Selection) -> bytes:
    """For looking: what a newer version says in words of its own is shown as suspended, `words_of`."""
    if selection.status is not Status.SUSPENDED or selection.reason not in (None, Reason.SCHEMA_NEWER):
        return _narrowing(selection)
    wishes = msgspec.json.decode(_narrowing(selection))
    return msgspec.json.encode(wishes | {"words": {"status": list(Status), "reason": list(Reason)}})


def _suspended(selection: Selection) -> bytes:
    return _narrowing(msgspec.structs.replace(selection, status=Status.SUSPENDED))


def _progress(columns: Mapping[str, Any]) -> Progress:
    because, noted = (columns[name] and columns[name].decode() for name in ("reason", "error"))
    status, reason, error = words_of(columns["status"].decode(), because, noted)
    return Progress(
        status=status,
        reason=reason,
        generation=int(columns["generation"]),
        attempts=int(columns["attempts"]),
        deaths=int(columns["deaths"]),
        due_at_ms=int(columns["due"]),
        deadline_at_ms=_number(columns["deadline"]),
        failing_since_ms=_number(columns["failing"]),
        updated_at_ms=int(columns["updated"]),
        accepted_at_ms=int(columns["accepted"]),
        error=error,
        is_begun=columns["begun"] is not None,
    )


def _number(stored: bytes | None) -> int | None:
    return None if stored is None else int(stored)


def _head(columns: Mapping[str, Any]) -> Head:
    try:
        return decode_head(columns["head"])
    except EnvelopeMalformed:
        return unreadable_head(
            TaskId(columns["id"].decode()),
            channel=columns["channel"].decode(),
            account=columns["account"].decode(),
            lane=LaneKey(columns["lane"].decode()),
            order=_order(columns["order"]),
            accepted_at_ms=int(columns["accepted"]),
        )


def _task_or_none(row: Sequence[Any] | None) -> Task | None:
    if row is None:
        return None
    columns = dict(zip(_WHOLE, row, strict=True))
    return Task(_head(columns), columns["raw"], _progress(columns))


def _open_task(row: Sequence[Any]) -> OpenTask:
    columns = dict(zip(_SHOWN, row, strict=True))
    known = _progress(columns)
    return OpenTask(
        _head(columns),
        known.status,
        known.reason,
        known.generation,
        known.attempts,
        known.deaths,
        known.due_at_ms,
        known.updated_at_ms,
        known.error,
    )


def _receipt(key: bytes, known: bytes, duplicates: bytes | None) -> Receipt:
    task_id, _, received_at_ms = known.decode().split(" ")
    return Receipt(key.decode(), TaskId(task_id), int(received_at_ms), int(duplicates or 0))

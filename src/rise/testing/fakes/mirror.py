"""The mirror as two lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rise.clock import Clock, epoch_ms
from rise.copies.port import RABBITMQ, Look, MirrorDepth
from rise.copies.record import decode_task
from rise.envelope import TaskId
from rise.errors import EnvelopeMalformed, RabbitUnavailable
from rise.service import Signal
from rise.testing.fakes.store import MemoryStore


@dataclass(eq=False, slots=True)
class StoredCopy:
    task_id: TaskId
    body: bytes
    is_parked: bool
    kept_at_ms: int
    taken: Taken | None = None
    """By whom, if somebody has it."""


@dataclass(eq=False, slots=True, frozen=True)
class Taken:
    """One handing out of a copy, which is void when it goes back: the same copy is handed out as another."""

    copy: StoredCopy
    mirror: MemoryMirror

    @property
    def is_valid(self) -> bool:
        return self.copy.taken is self


@dataclass(slots=True)
class MemoryMirrorState:
    """The broker. What a process keeps of it is nothing, so all may die and others go on with it."""

    fresh_max: int = 1_000_000
    copies: list[StoredCopy] = field(default_factory=list)
    """Each of the two kinds in the order in which it came."""
    looking: dict[bool, MemoryMirror] = field(default_factory=dict)
    """Who looks at the parked (True) and at the fresh."""
    waiting: dict[Signal, None] = field(default_factory=dict)
    """Of whoever waits for a copy, in the order in which they came."""

    def add(self, copy: StoredCopy) -> None:
        self.copies.append(copy)
        self.wake()

    def empty(self) -> None:
        """Its queues were deleted: everything in them is lost, and what was handed out is void."""
        for copy in self.copies:
            copy.taken = None
        self.copies.clear()

    def wake(self) -> None:
        for signal in self.waiting:
            signal.set()

    def count(self, *, parked: bool) -> int:
        return sum(copy.is_parked == parked for copy in self.copies)


class MemoryMirror(MemoryStore):
    """`rise.copies.port.Mirror`, as one process sees the state."""

    name = RABBITMQ

    def __init__(self, state: MemoryMirrorState, clock: Clock) -> None:
        self._state = state
        self._clock = clock

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.die()

    async def let_go(self) -> None:
        await self._through("let_go", self.die)

    def die(self) -> None:
        """Its process is killed, or its connection is over: what it has taken goes back."""
        for copy in self._state.copies:
            if copy.taken is not None and copy.taken.mirror is self:
                copy.taken = None
        for parked in (True, False):
            self._end_looking(parked=parked)
        self._state.wake()

    async def keep(self, task_id: TaskId, record: bytes) -> None:
        def keep() -> None:
            if self._state.count(parked=False) >= self._state.fresh_max:
                raise RabbitUnavailable("the fresh copies are full")
            self._state.add(StoredCopy(task_id, record, False, self._now_ms()))

        await self._through("keep", keep)

    # --- looking ---

    async def take(self, limit: int, *, seconds: float, parked: bool) -> list[Look]:
        looking: Callable[[], list[Look]] = lambda: self._take(limit, parked=parked)  # noqa: E731 - run twice
        taken = await self._through("take", looking)
        if not taken and await self._somebody_keeps(seconds):
            taken = await self._through("take", looking)
        if not taken and parked:
            self._end_looking(parked=True)
        return taken

    async def _somebody_keeps(self, seconds: float) -> bool:
        more = Signal()
        self._state.waiting[more] = None
        try:
            return await more.wait(seconds)
        finally:
            self._state.waiting.pop(more, None)

    def _take(self, limit: int, *, parked: bool) -> list[Look]:
        if self._state.looking.setdefault(parked, self) is not self:
            return []
        free = [copy for copy in self._state.copies if copy.is_parked == parked and copy.taken is None][:limit]
        return [_look(copy, self._hand_out(copy)) for copy in free]

    def _hand_out(self, copy: StoredCopy) -> Taken:
        copy.taken = Taken(copy, self)
        return copy.taken

    def _end_looking(self, *, parked: bool) -> None:
        if self._state.looking.get(parked) is self:
            del self._state.looking[parked]
            self._state.wake()

    # --- resolving ---

    async def forget(self, looks: Sequence[Look]) -> None:
        await self._through("forget", lambda: self._forget(looks))

    def _forget(self, looks: Sequence[Look]) -> None:
        self._let_go([look for look in looks if look.tag.is_valid])
        if any(look.tag.copy in self._state.copies for look in looks):
            raise RabbitUnavailable("some of them had gone back: they are handed out again")

    async def park(self, looks: Sequence[Look]) -> None:
        await self._through("park", lambda: self._park(looks))

    def _park(self, looks: Sequence[Look]) -> None:
        for look in looks:
            if look.tag.is_valid:
                self._state.add(StoredCopy(look.tag.copy.task_id, look.body, True, self._now_ms()))
        self._forget(looks)

    def _let_go(self, looks: Sequence[Look]) -> None:
        for look in looks:
            self._state.copies.remove(look.tag.copy)
            look.tag.copy.taken = None
        if any(look.is_parked for look in looks):
            self._end_looking(parked=True)

    async def give_back(self, looks: Sequence[Look]) -> None:
        await self._through("give_back", lambda: self._give_back(looks))

    def _give_back(self, looks: Sequence[Look]) -> None:
        for look in looks:
            if look.tag.is_valid:
                look.tag.copy.taken = None
                self._end_looking(parked=look.is_parked)

    async def depth(self) -> MirrorDepth:
        count = self._state.count
        return await self._through(
            "depth", lambda: MirrorDepth(fresh=count(parked=False), parked=count(parked=True), dead=0)
        )

    def _now_ms(self) -> int:
        return epoch_ms(self._clock.now())


def _look(copy: StoredCopy, taken: Taken) -> Look:
    try:
        task = decode_task(copy.body)
    except EnvelopeMalformed:
        task = None
    return Look(task=task, body=copy.body, tag=taken, is_parked=copy.is_parked, kept_at_ms=copy.kept_at_ms)

"""Redis and RabbitMQ as one simulated process reaches them: honest in what they hold, with a way that is not.

A request takes time, and so does its answer. Either may be lost, or take too long for whoever waits; a process may die
or be stopped in between, and what it had sent by then may still have its effect. Nothing is done twice unseen: both are
reached over connections that repeat nothing by themselves.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

from rise.clock import epoch_ms
from rise.copies.journal import RunName, run_of
from rise.copies.port import Look
from rise.copies.record import decode_task
from rise.envelope import Task, TaskId
from rise.errors import RabbitUnavailable, RedisFull, RedisUnavailable, TemporalUnavailable, Unavailable
from rise.queue.port import Enqueued, NewTask, QueueLimits, RetryIn, Settlement
from rise.testing.clock import START
from rise.testing.fakes.late import MemoryLateWrites
from rise.testing.fakes.mirror import MemoryMirror, StoredCopy
from rise.testing.fakes.queue import Lane, MemoryQueue, MemoryQueueState, StoredTask
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.host import SimClock
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import World

T = TypeVar("T")
OnTrouble = Callable[[Unavailable | None], None]

WAY_SECONDS: Final = (0.0001, 0.003)
SLOW_SECONDS: Final = (0.3, 4.0)
RECONNECT_SECONDS: Final = 1.0


class Witness(Protocol):
    """Hears of what the servers do, in the moment in which they do it."""

    def kept(self, task: NewTask) -> None:
        """Whoever hands it in is told that it is kept."""

    def held(self, copy: str, task_id: str, generation: int) -> None:
        """A store holds it now."""

    def left_queue(self, task_id: str, generation: int) -> None: ...

    def left_mirror(self, record: bytes) -> None: ...

    def left_journal(self, task_id: str, generation: int) -> None: ...

    def started(self, lane: Lane, task: StoredTask) -> None: ...

    def stands(self, task: NewTask) -> None:
        """It is in its lane now, in its place."""

    def death_counted(self, task_id: str, holder: str | None) -> None: ...

    def try_used(self, task_id: str) -> None: ...

    def life_begun(self) -> None:
        """Work is handed out from here on."""

    def life_ended(self) -> None:
        """Nothing is handed out from here on."""

    def waits(self, key: str) -> None:
        """It is kept for a ledger that is away."""

    def missed(self, task_id: str) -> None:
        """Somebody has looked for it in the queue, and it is not there."""


@dataclass(frozen=True)
class Server:
    """How a server fails, and how long is waited for it."""

    room: str
    gone: FaultKind
    unanswered: FaultKind
    slow: FaultKind
    error: type[Unavailable]
    answer_seconds: float
    gives_claims: bool = True
    """Whoever does not hear its answer may hold something without knowing of it."""


REDIS: Final = Server(
    "queue", FaultKind.REDIS_GONE, FaultKind.REDIS_UNANSWERED, FaultKind.REDIS_SLOW, RedisUnavailable, 1.25
)
RABBIT: Final = Server(
    "mirror", FaultKind.RABBIT_GONE, FaultKind.RABBIT_UNANSWERED, FaultKind.RABBIT_SLOW, RabbitUnavailable, 1.0
)

TEMPORAL: Final = Server(
    "temporal",
    FaultKind.TEMPORAL_GONE,
    FaultKind.TEMPORAL_UNANSWERED,
    FaultKind.TEMPORAL_SLOW,
    TemporalUnavailable,
    answer_seconds=2.0,
    gives_claims=False,
)


class Link:
    """One process's way to one server."""

    def __init__(
        self,
        world: World,
        process: Process,
        server: Server,
        on_trouble: OnTrouble,
        on_cut: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_cut`: what the server does when a connection of this process ends."""
        self._world = world
        self._process = process
        self._server = server
        self._on_trouble = on_trouble
        self._on_cut = on_cut
        self._trouble: Unavailable | None = None

    async def ask(self, name: str, operation: Callable[[], T], *, unless: FaultKind | None = None) -> T:
        """`unless`: while this strikes, the server refuses."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._world.timeline.after(self._seconds(), lambda: self._perform(name, operation, done, unless))
        if self._world.is_struck(self._server.slow, self._process):
            loop.call_later(self._server.answer_seconds, self._give_up, done, context=Context())
        return await done

    @property
    def is_cut(self) -> bool:
        return self._world.is_struck(self._server.gone, self._process)

    def report(self, trouble: Unavailable | None) -> None:
        if str(trouble) != str(self._trouble):
            self._trouble = trouble
            self._on_trouble(trouble)

    def _perform(
        self, name: str, operation: Callable[[], T], done: asyncio.Future[T], unless: FaultKind | None
    ) -> None:
        world, process, server = self._world, self._process, self._server
        if name == "take" and (done.done() or not process.is_alive):
            return  # what is handed out over a connection that has ended goes back
        if not process.is_alive:
            if world.dice.random() < 0.5:  # it had left when its process died
                _outcome_of(operation)
            return
        if done.done() and server.gives_claims:
            world.doubt_claims([process])  # it had given up waiting, and does not hear of what it gets now
        step = world.begin_step(process, f"{server.room}.{name}")
        if step.is_over:
            return
        if self.is_cut:
            self._on_cut()
            self._answer(done, server.error("it cannot be reached"))
            return
        if unless is not None and world.is_struck(unless, process):
            self._answer(done, server.error("it takes nothing in"))
            return
        outcome = _outcome_of(operation)
        world.note(process.name, f"{server.room}.{name}", "raises" if isinstance(outcome, Exception) else "")
        if world.end_step(process, step):
            return
        if world.is_struck(server.unanswered, process):
            self._on_cut()
            outcome = server.error("the connection ended before it answered")
        self._answer(done, outcome)

    def _give_up(self, done: asyncio.Future[Any]) -> None:
        if not done.done():
            self._on_cut()
            self._tell(done, self._server.error("it does not answer in time"))

    def _answer(self, done: asyncio.Future[Any], outcome: Any) -> None:
        self._process.loop.call_later(self._seconds(), self._tell, done, outcome, context=Context())

    def _tell(self, done: asyncio.Future[Any], outcome: Any) -> None:
        if done.done():
            return
        self.report(outcome if isinstance(outcome, self._server.error) else None)
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)

    def _seconds(self) -> float:
        world = self._world
        bounds = SLOW_SECONDS if world.is_struck(self._server.slow, self._process) else WAY_SECONDS
        return world.dice.uniform(*bounds)


def _outcome_of(operation: Callable[[], Any]) -> Any:
    try:
        return operation()
    except Exception as error:  # noqa: BLE001 - border: handed to the one who asked
        return error


class SimQueue(MemoryQueue):
    """`rise.queue.port.RefillableQueue` for one process of a world."""

    def __init__(
        self, world: World, process: Process, witness: Witness, *, limits: QueueLimits, on_trouble: OnTrouble
    ) -> None:
        # The server's own clock, which is right.
        super().__init__(world.redis, now_ms=lambda: epoch_ms(START) + int(world.now * 1000), limits=limits)
        self._world = world
        self._link = Link(world, process, REDIS, on_trouble)
        self._witness = witness
        self._was_reached = False

    def now_ms(self) -> int:
        if not self._was_reached:
            raise RedisUnavailable("Redis cannot be reached")
        return super().now_ms()

    async def ask(self, name: str, operation: Callable[[], T]) -> T:
        def reached() -> T:
            self._was_reached = True
            return operation()

        return await self._link.ask(name, reached)

    async def _through(self, name: str, operation: Callable[[], T]) -> T:
        return await self.ask(name, operation)

    def _make_room(self) -> None:
        if self._world.is_struck(FaultKind.REDIS_FULL):
            raise RedisFull("Redis is full")

    # --- what is witnessed ---

    def _get(self, task_id: TaskId) -> Task | None:
        task = super()._get(task_id)
        if task is None:
            self._witness.missed(task_id)
        return task

    def _enqueue(self, new: NewTask) -> Enqueued:
        enqueued = super()._enqueue(new)
        if enqueued.new:
            self._witness.stands(new)
        self._witness.held("redis", new.head.task_id, new.generation)
        return enqueued

    def _restore(self, new: NewTask) -> bool:
        if is_brought := super()._restore(new):
            self._witness.held("redis", new.head.task_id, new.generation)
            self._witness.stands(new)
        return is_brought

    def _run(self, lane: Lane, task: StoredTask, now: int) -> Task:
        self._witness.started(lane, task)
        return super()._run(lane, task, now)

    def _take_from_the_lost(self, lane: Lane, now: int, counts_deaths: bool) -> None:
        holder, deaths = lane.holder, {task.head.task_id: task.progress.deaths for task in self._runnable(lane)}
        super()._take_from_the_lost(lane, now, counts_deaths)
        for task_id, count in deaths.items():
            if self._state.tasks[task_id].progress.deaths > count:
                self._witness.death_counted(task_id, holder)

    def _end(self, task: StoredTask, settlement: Settlement, now: int) -> None:
        super()._end(task, settlement, now)
        if isinstance(settlement, RetryIn) and settlement.counts:
            self._witness.try_used(task.head.task_id)

    def _forget(self, task: StoredTask) -> None:
        super()._forget(task)
        self._witness.left_queue(task.head.task_id, task.progress.generation)

    def _end_life(self) -> None:
        if self._state.life is not None:
            self._witness.life_ended()
        super()._end_life()

    def _begin_life(self, refill: str) -> str | None:
        was_filled = self._state.life is not None
        life = super()._begin_life(refill)
        if not was_filled and life is not None:
            self._witness.life_begun()
        return life


class SimLateWrites(MemoryLateWrites):
    """`rise.ledger.late.LateWrites`, over the queue's way to Redis."""

    def __init__(self, world: World, queue: SimQueue) -> None:
        super().__init__(world.redis)
        self._world = world
        self._queue = queue

    async def _through(self, name: str, operation: Callable[[], T]) -> T:
        return await self._queue.ask(f"late_{name}", operation)

    def _put(self, key: str, about: str, write: bytes) -> bytes:
        standing = super()._put(key, about, write)
        self._world.witness.waits(key)
        return standing


class SimRedis:
    """`rise.connections.redis.RedisDatabase`, as far as anybody asks it and not the queue on it."""

    def __init__(self, queue: SimQueue) -> None:
        self._queue = queue

    async def open(self) -> None:
        await self._queue.ask("open", lambda: None)

    async def close(self) -> None:
        return

    async def facts(self) -> dict[str, str]:
        return await self._queue.ask("facts", lambda: {"role": "master", "aof_enabled": "1"})


def snapshot_of(state: MemoryQueueState) -> MemoryQueueState:
    """What Redis has synced by now."""
    synced = MemoryQueueState()
    for each in fields(state):
        value = getattr(state, each.name)
        if isinstance(value, dict):
            value = {key: copy.copy(one) for key, one in value.items()}
        setattr(synced, each.name, value)
    return synced


def rewind(state: MemoryQueueState, synced: MemoryQueueState) -> None:
    """Back to what was synced; but for what follows the time, which goes on.

    A filling that is under way begins anew: a server that has lost its last writes was started anew, or has taken
    another's place, and whoever reaches it first ends the filling (`RedisDatabase`). He ends what is handed out, too;
    here that goes on, so that there is something for those who look for what a queue has lost.
    """
    for each in fields(state):
        if each.name not in ("lives", "refills", "fences"):
            setattr(state, each.name, getattr(synced, each.name))
    state.refill = None


class SimMirror(MemoryMirror):
    """`rise.copies.port.Mirror` for one process of a world."""

    def __init__(
        self, world: World, process: Process, witness: Witness, *, clock: SimClock, on_trouble: OnTrouble
    ) -> None:
        super().__init__(world.broker, clock)
        self._world = world
        self._process = process
        self._witness = witness
        self._looks_again = False
        self._said_trouble = on_trouble
        self._link = Link(world, process, RABBIT, self._hear, on_cut=self.die)
        world.on_death.append(lambda dead: self.die() if dead is process else None)
        world.mirrors.append(self)

    @property
    def process(self) -> Process:
        return self._process

    def die(self) -> None:
        for taken in [one for one in self._world.in_hand if one.mirror is self]:
            del self._world.in_hand[taken]
        super().die()

    async def _through(self, name: str, operation: Callable[[], T]) -> T:
        blocked = FaultKind.RABBIT_BLOCKED if name in ("keep", "park") else None
        return await self._link.ask(name, operation, unless=blocked)

    async def keep(self, task_id: TaskId, record: bytes) -> None:
        def keep() -> None:
            self._state.add(StoredCopy(task_id, record, False, self._now_ms()))
            self._witness.held("rabbitmq", task_id, run_in(record).generation)

        await self._through("keep", keep)

    async def park(self, looks: Sequence[Look]) -> None:
        """In two steps, between which anything may happen."""
        await self._through("park", lambda: self._put_back(looks))
        await self._through("forget", lambda: self._forget(looks))

    def _put_back(self, looks: Sequence[Look]) -> None:
        for look in looks:
            if look.tag.is_valid:
                self._state.add(StoredCopy(look.tag.copy.task_id, look.body, True, self._now_ms()))

    def _take(self, limit: int, *, parked: bool) -> list[Look]:
        looks = super()._take(limit, parked=parked)
        self._world.in_hand.update((look.tag, self._world.now) for look in looks)
        return looks

    def _let_go(self, looks: Sequence[Look]) -> None:
        super()._let_go(looks)
        for look in looks:
            self._world.in_hand.pop(look.tag, None)
            self._witness.left_mirror(look.body)

    def _give_back(self, looks: Sequence[Look]) -> None:
        for look in looks:
            self._world.in_hand.pop(look.tag, None)
        super()._give_back(looks)

    # --- a connection that is made again and again ---

    def _hear(self, trouble: Unavailable | None) -> None:
        self._said_trouble(trouble)
        if trouble is not None and not self._looks_again:
            self._looks_again = True
            self._process.loop.call_later(RECONNECT_SECONDS, self._look_again, context=Context())

    def _look_again(self) -> None:
        if self._link.is_cut or self._world.is_struck(FaultKind.RABBIT_BLOCKED, self._process):
            self._process.loop.call_later(RECONNECT_SECONDS, self._look_again, context=Context())
        else:
            self._looks_again = False
            self._link.report(None)


@lru_cache(maxsize=10_000)
def run_in(record: bytes) -> RunName:
    """The run whose copy it is."""
    return run_of(decode_task(record)).name

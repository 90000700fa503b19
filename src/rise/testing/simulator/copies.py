"""The invariants where a message is in several stores: seen from the stores themselves, by the run that a copy is of.

Everything here is asked at the moment at which it could become untrue: when somebody is told that a message is kept,
when a copy leaves a store or is lost with it, when a task begins, when an emptied queue hands out work again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from math import isnan
from typing import Final

import rise
from rise.envelope import DeliveryKey, RunId, Status, TaskId, decode_head, run_id_of, task_id_of
from rise.ledger.late import LateResult, LateStep, decode_late, key_of_run
from rise.queue.port import NewTask
from rise.runtime.assembly.house import House
from rise.runtime.audit import AuditReport
from rise.testing.fakes.queue import Lane, StoredTask
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.invariants import KNOWN_SECONDS_MAX, Checker, Seen
from rise.testing.simulator.loop import Process
from rise.testing.simulator.servers import SimMirror, run_in
from rise.testing.simulator.world import World

IN_HAND_SECONDS_MAX: Final = 60.0
SILENT_SECONDS: Final = 2.0
"""So soon after it did not answer a ledger counts as away, with whoever asks it."""
_RUNNABLE: Final = (Status.PENDING, Status.PROCESSING)


class CopiesChecker(Checker):
    """For worlds whose queue is Redis, with journals beside it, and RabbitMQ."""

    def __init__(self, world: World, *, stores: tuple[str, ...], copies_min: int) -> None:
        super().__init__(world)
        self._stores = stores
        self._copies_min = copies_min
        self._refused_when_emptied = 0
        """How often Redis had had no room by then."""
        self._ever_held: defaultdict[str, set[str]] = defaultdict(set)
        """By task: the stores that have ever taken it in."""
        self._promised: dict[str, int] = {}
        """By task: the latest generation of which somebody was told that it is kept."""
        self._was_queued: set[str] = set()
        """What Redis had when it was emptied."""
        self._life_ended_at = 0.0
        self._waited: set[str] = set()
        """What was kept for a ledger that was away, and has not been lost."""
        self._redis_forgot = False
        self._last_ran: dict[RunId, float] = {}
        """When each run was last begun; no number if another may have begun it as well."""
        self._passed_over: set[RunId] = set()
        """Runs whose results waited for the ledger, and for tasks that the queue had lost."""

    # --- promises ---

    def kept(self, task: NewTask) -> None:
        """I1: whoever hands it in is told so now."""
        task_id, generation = task.head.task_id, task.generation
        self._promised[task_id] = max(generation, self._promised.get(task_id, 0))
        held = self._ever_held[task_id]
        is_enough = len(held) >= self._copies_min and ("journal" in held or len(held) > 1)
        if not is_enough and not self._is_over(task_id, generation):
            self._world.violate("I1", f"{task_id} is said to be kept, and {sorted(held) or 'no store'} has had it")

    def runs_again(self, task_id: str, generation: int) -> None:
        self._promised[task_id] = max(generation, self._promised.get(task_id, 0))

    def is_promised(self, task_id: str) -> bool:
        return task_id in self._promised

    def acknowledged(self, key: str) -> None:
        super().acknowledged(key)
        if task_id_of(DeliveryKey(key)) not in self._promised:
            self._world.violate("I1", f"{key} was acknowledged before anybody said that it is kept")

    def ran(self, process: Process, turn: rise.Turn) -> None:
        """I4: nor when a later run of it has ended, and an emptied queue has got a former one again."""
        super().ran(process, turn)
        generation = self._generation(turn.task_id)
        run_id = run_id_of(TaskId(turn.task_id), generation or 0)
        self._last_ran[run_id] = float("nan") if self._may_repeat(process) else self._world.now
        if key_of_run(run_id) in self._waited and not self._may_repeat(process):
            self._world.violate("I4", f"the result of {turn.text!r} was kept for the ledger, and it is run again")
        if generation is not None and self._is_over(turn.task_id, generation + 1):
            self._world.violate("I4", f"{turn.text!r} is run as {generation}, and a later run has ended")

    # --- what the stores do ---

    def held(self, copy: str, task_id: str, generation: int) -> None:
        self._ever_held[task_id].add(copy)

    def left_queue(self, task_id: str, generation: int) -> None:
        self._leaves("the queue", task_id, generation, "I2")

    def left_journal(self, task_id: str, generation: int) -> None:
        self._leaves("a journal", task_id, generation, "I2")

    def left_mirror(self, record: bytes) -> None:
        """I10: only what is finished, but for one of several copies."""
        run = run_in(record)
        if not any(run_in(one.body) == run for one in self._world.broker.copies):
            self._leaves("the mirror", run.task_id, run.generation, "I10")

    def _leaves(self, store: str, task_id: str, generation: int, invariant: str) -> None:
        if not self._is_over(task_id, generation):
            self._world.violate(
                invariant, f"{run_id_of(TaskId(task_id), generation)} left {store} before it was finished"
            )

    def lost(self, store: str) -> None:
        """I2: whatever a store has just lost, what was promised is in another."""
        self._world.note(store, "has lost something")
        if store == "redis":
            self._redis_forgot = True
            self._waited &= self._world.redis.late.keys()
            self._forget_lost_steps()
        if store == "redis":
            self._world.doubt_claims(self._world.host.processes)
        for task_id, generation in self._promised.items():
            if not self._is_over(task_id, generation) and not self._copies_of(task_id, generation):
                self._world.violate("I2", f"{task_id} was promised, and no store has it any more")

    def only_in(self, store: str) -> list[str]:
        """What was promised, is open, and is in this one alone."""
        promised = self._promised.items()
        alone = [task_id for task_id, generation in promised if self._copies_of(task_id, generation) == [store]]
        return [task_id for task_id in alone if not self._is_over(task_id, self._promised[task_id])]

    def emptied(self) -> None:
        """Redis will be empty."""
        self._refused_when_emptied = self._world.struck[FaultKind.REDIS_FULL]
        self._was_queued |= self._promised.keys() & self._world.redis.tasks.keys()

    def deleted(self, task_id: str) -> None:
        """By hand. Whoever fills the queue is not told, and may have brought it; it is missed when work goes on."""
        self._was_queued.discard(task_id)

    def life_begun(self) -> None:
        """I7: before what was in it is back, nothing is handed out; but for what only a mirror has that is away.

        Nor for what Redis has no room for: only what is handed out makes room.
        """
        if self._world.struck[FaultKind.REDIS_FULL] != self._refused_when_emptied:
            self._was_queued.clear()
        for task_id in sorted(self._was_queued):
            is_in_journal = "journal" in self._copies_of(task_id)
            if task_id not in self._world.redis.tasks and is_in_journal and not self._is_over(task_id, 0):
                self._world.violate("I7", f"the emptied queue hands out work, and {task_id} is not in it")
        self._was_queued.clear()
        self._world.doubt_still(self._life_ended_at)

    def life_ended(self) -> None:
        self._life_ended_at = self._world.now

    def started(self, lane: Lane, task: StoredTask) -> None:
        """I7: a lane's first, and only one at a time."""
        for other in self._world.redis.tasks.values():
            if other.head.lane != lane.key or other is task or other.progress.status not in _RUNNABLE:
                continue
            if other.progress.status is Status.PROCESSING or other.place < task.place:
                self._world.violate("I7", f"started out of order: {task.head.task_id}")

    def stands(self, task: NewTask) -> None:
        order = task.head.order
        self._stood_in_line(task.head.task_id, order.at_ms, order.seq, task.head.lane)

    # --- every few seconds, and at rest ---

    def at_rest(self, audit: AuditReport, houses: Sequence[House]) -> None:
        super().at_rest(audit, houses)
        if self._world.redis.life is None:
            self._world.violate("I18", "the emptied queue hands out nothing, for ever")
        if self._world.struck[FaultKind.LEDGER_GONE]:
            self._answers_are_in_order()
        for key in self._world.redis.late:
            self._world.violate("I21", f"{key!r} waits for the ledger, for ever")

    def _forget_lost_steps(self) -> None:
        """What waited in Redis for the ledger is not saved any more."""
        late = map(decode_late, (kept.write for kept in self._world.redis.late.values()))
        saved = {(one.run_id, one.step) for one in late if isinstance(one, LateStep)}
        saved |= set(self._world.disk.execute("SELECT run_id, step FROM steps").fetchall())
        self._steps_saved = {
            (messages, run_id, step) for messages, run_id, step in self._steps_saved if (run_id, step) in saved
        }

    def waits(self, key: str) -> None:
        self._waited.add(key)

    def missed(self, task_id: str) -> None:
        late = map(decode_late, (kept.write for kept in self._world.redis.late.values()))
        self._passed_over |= {one.run_id for one in late if isinstance(one, LateResult) and one.task_id == task_id}

    def _may_repeat(self, process: Process) -> bool:
        """Nor can anybody say what has been done when both are lost who knew it: Redis its keys, and the ledger."""
        is_silent = self._world.now - self._world.ledger_missed_at < SILENT_SECONDS
        return super()._may_repeat(process) or (self._redis_forgot and is_silent)

    def _is_known_by_all(self) -> bool:
        """That a chat has moved is heard from the ledger."""
        return super()._is_known_by_all() and self._world.now - self._world.ledger_missed_at > KNOWN_SECONDS_MAX

    def _answers_are_in_order(self) -> None:
        """I7: results that waited are written in the order in which their messages were run. What comes late, before
        one that its conversation works on for long, is run beside it: these are answered in the order of their lane.

        A result whose task the queue has lost is passed over until that is brought back, because no chat waits for a
        gap: a break of order, which the queue has counted then. So others may overtake it; it overtakes nobody."""
        meant = "SELECT run_id, min(sequence) FROM replies WHERE kind = 'answer' GROUP BY run_id"
        lanes: defaultdict[str, list[tuple[float, int, RunId]]] = defaultdict(list)
        heads = dict(self._world.disk.execute("SELECT run_id, head FROM runs").fetchall())
        for run_id, sequence in self._world.disk.execute(meant).fetchall():
            at = self._last_ran.get(run_id, float("nan"))
            if not isnan(at) and run_id in heads and run_id not in self._carried:
                lanes[decode_head(heads[run_id]).lane].append((at, sequence, run_id))
        for answers in lanes.values():
            as_run = [(run_id, sequence) for _, sequence, run_id in sorted(answers)]
            for run_id in overtaking(as_run, self._passed_over):
                self._world.violate("I7", f"{run_id} is answered before what was run before it in its lane")

    def look(self) -> None:
        """I10: nobody has a copy in hand for long without saying what becomes of it."""
        for taken, since in list(self._world.in_hand.items()):
            is_stopped = isinstance(taken.mirror, SimMirror) and taken.mirror.process.is_stopped
            if self._world.now - since > IN_HAND_SECONDS_MAX and not is_stopped:
                what = f"a copy of {taken.copy.task_id} is unresolved for {self._world.now - since:.0f} s"
                self._world.violate("I10", what)
                del self._world.in_hand[taken]

    def incomplete_copies(self) -> list[str]:
        """I19: what is open is in the queue and in enough stores, what is finished in none."""
        return [*self._finished_copies(), *filter(None, map(self._missing_copy, self._promised.items()))]

    def _finished_copies(self) -> list[str]:
        mirror, journals = self._world.broker.copies, self._world.journals.values()
        runs = {("the mirror", *run_in(one.body)) for one in mirror}
        runs |= {("a journal", *row) for disk in journals for row in disk.execute(_JOURNALED).fetchall()}
        # The copies of a generation that has ended may stay as long as a later one is open.
        latest = self._promised | {
            task_id: task.progress.generation for task_id, task in self._world.redis.tasks.items()
        }
        over = [one for one in sorted(runs) if self._is_over(one[1], max(one[2], latest.get(one[1], 0)))]
        return [
            f"{task_id}.{generation} is finished, and is in {store} for ever" for store, task_id, generation in over
        ]

    def _missing_copy(self, promised: tuple[str, int]) -> str | None:
        task_id, generation = promised
        if self._is_over(task_id, generation):
            return None
        copies = set(self._copies_of(task_id, generation))
        # What no journal could take or has kept is not relayed: if the mirror loses it, too, only the queue has it.
        if "redis" in copies and ("journal" not in copies or len(copies) == len(self._stores)):
            return None
        return f"{task_id}.{generation} is open, and for ever only in {sorted(copies)}"

    # --- where open tasks are ---

    def is_anything_moving(self) -> bool:
        return super().is_anything_moving() or any(
            task_id not in self._world.redis.tasks and not self._is_over(task_id, generation)
            for task_id, generation in self._promised.items()
        )

    def _open(self) -> list[Seen]:
        return [
            Seen(task_id, task.stored_head, task.progress.status, task.progress.reason, task.progress.error)
            for task_id, task in self._world.redis.tasks.items()
        ]

    def _is_known(self, key: str) -> bool:
        return key in self._world.redis.keys or bool(self._copies_of(task_id_of(DeliveryKey(key))))

    def _is_kept(self, task_id: str) -> bool:
        return bool(self._copies_of(task_id)) or self._is_over(task_id, 0)

    def _generation(self, task_id: str) -> int | None:
        task = self._world.redis.tasks.get(TaskId(task_id))
        return None if task is None else task.progress.generation

    def _lanes_claimed(self) -> int:
        return sum(lane.holder is not None for lane in self._world.redis.lanes.values())

    def _copies_of(self, task_id: str, generation: int = 0) -> list[str]:
        """The stores that hold it, in this generation or a later one."""
        world, task = self._world, self._world.redis.tasks.get(TaskId(task_id))
        journaled = "SELECT 1 FROM tasks WHERE task_id = ? AND generation >= ?"
        in_journals = [disk.execute(journaled, (task_id, generation)).fetchone() for disk in world.journals.values()]
        in_mirror = [
            one.task_id == task_id and run_in(one.body).generation >= generation for one in world.broker.copies
        ]
        in_queue = task is not None and task.progress.generation >= generation
        holds = {"journal": any(in_journals), "rabbitmq": any(in_mirror), "redis": in_queue}
        return [store for store, is_there in holds.items() if is_there]


def overtaking(answers: Iterable[tuple[RunId, int]], passed_over: Container[RunId]) -> list[RunId]:
    """Those of a lane that are answered before what was run before them, unless that was passed over.

    `answers`: as they were run, each with its first number in the outbox.
    """
    latest, found = 0, list[RunId]()
    for run_id, sequence in answers:
        if sequence < latest:
            found.append(run_id)
        elif run_id not in passed_over:
            latest = sequence
    return found


_JOURNALED: Final = "SELECT task_id, generation FROM tasks"

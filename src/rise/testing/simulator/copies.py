"""The invariants where a message is in several stores: seen from the stores themselves, by the run that a copy is of.

Everything here is asked at the moment at which it could become untrue: when somebody is told that a message is kept,
when a copy leaves a store or is lost with it, when a task begins, when an emptied queue hands out work again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from rise.envelope import DeliveryKey, Status, TaskId, run_id_of, task_id_of
from rise.queue.port import NewTask
from rise.testing.fakes.queue import Lane, StoredTask
from rise.testing.simulator.invariants import Checker, Seen
from rise.testing.simulator.servers import SimMirror, run_in
from rise.testing.simulator.world import World

IN_HAND_SECONDS_MAX: Final = 60.0
_RUNNABLE: Final = (Status.PENDING, Status.PROCESSING)


class CopiesChecker(Checker):
    """For worlds whose queue is Redis, with journals beside it, and RabbitMQ."""

    def __init__(self, world: World, *, copies_min: int) -> None:
        super().__init__(world)
        self._copies_min = copies_min
        self._ever_held: defaultdict[str, set[str]] = defaultdict(set)
        """By task: the stores that have ever taken it in."""
        self._promised: dict[str, int] = {}
        """By task: the latest generation of which somebody was told that it is kept."""
        self._was_queued: set[str] = set()
        """What Redis had when it was emptied."""

    # --- promises ---

    def kept(self, task: NewTask) -> None:
        """I1: whoever hands it in is told so now."""
        task_id, generation = task.head.task_id, task.generation
        self._promised[task_id] = max(generation, self._promised.get(task_id, 0))
        held = self._ever_held[task_id]
        is_enough = len(held) >= self._copies_min and ("journal" in held or len(held) > 1)
        if not is_enough and not self._is_over(task_id, generation):
            self._world.violate("I1", f"{task_id} is said to be kept, and {sorted(held) or 'no store'} has had it")

    def is_promised(self, task_id: str) -> bool:
        return task_id in self._promised

    def acknowledged(self, key: str) -> None:
        super().acknowledged(key)
        if task_id_of(DeliveryKey(key)) not in self._promised:
            self._world.violate("I1", f"{key} was acknowledged before anybody said that it is kept")

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
            self._world.violate(invariant, f"{run_id_of(TaskId(task_id), generation)} left {store} before it was finished")

    def lost(self, store: str) -> None:
        """I2: whatever a store has just lost, what was promised is in another."""
        self._world.note(store, "has lost something")
        if store == "redis":
            self._world.lose_claims()
        for task_id, generation in self._promised.items():
            if not self._is_over(task_id, generation) and self._copies_of(task_id) == []:
                self._world.violate("I2", f"{task_id} was promised, and no store has it any more")

    def emptied(self) -> None:
        """Redis will be empty."""
        self._was_queued |= self._promised.keys() & self._world.redis.tasks.keys()

    def life_begun(self) -> None:
        """I7: before what was in it is back, nothing is handed out; but for what only a mirror has that is away."""
        for task_id in sorted(self._was_queued):
            is_in_journal = any(copy == "journal" for copy in self._copies_of(task_id))
            if task_id not in self._world.redis.tasks and is_in_journal and not self._is_over(task_id, 0):
                self._world.violate("I7", f"the emptied queue hands out work, and {task_id} is not in it")
        self._was_queued.clear()

    def started(self, lane: Lane, task: StoredTask) -> None:
        """I7: a lane's first, and only one at a time."""
        for other in self._world.redis.tasks.values():
            if other.head.lane != lane.key or other is task or other.progress.status not in _RUNNABLE:
                continue
            if other.progress.status is Status.PROCESSING or other.place < task.place:
                self._world.violate("I7", f"started out of order: {task.head.task_id}")

    def stands(self, task: NewTask) -> None:
        order = task.head.order
        self._stood_in_line(task.head.task_id, order.at_ms, order.seq)

    # --- every few seconds, and at rest ---

    def look(self) -> None:
        """I10: nobody has a copy in hand for long without saying what becomes of it."""
        for copy, since in list(self._world.in_hand.items()):
            holder = copy.holder
            is_stopped = not isinstance(holder, SimMirror) or holder.process.is_stopped
            if self._world.now - since > IN_HAND_SECONDS_MAX and not is_stopped:
                self._world.violate("I10", f"a copy of {copy.task_id} is unresolved for {self._world.now - since:.0f} s")
                del self._world.in_hand[copy]

    def copies_are_complete(self) -> None:
        """I19: what is open is in every store that it was in or is noted to be in; what is finished is in none."""
        in_queue = self._world.redis.tasks
        in_mirror = {run_in(one.body) for one in self._world.broker.copies}
        in_journals = {row for disk in self._world.journals.values() for row in disk.execute(_JOURNALED).fetchall()}
        for store, runs in (("the mirror", in_mirror), ("a journal", in_journals)):
            for task_id, generation in sorted(runs):
                if self._is_over(task_id, generation):
                    self._world.violate("I19", f"{task_id}.{generation} is finished, and is in {store} for ever")
        for task_id, generation in self._promised.items():
            if self._is_over(task_id, generation):
                continue
            copies = sorted(set(self._copies_of(task_id)))
            if task_id not in in_queue or len(copies) < self._copies_min:
                self._world.violate("I19", f"{task_id}.{generation} is open, and only in {copies} for ever")
            if "journal" in copies and self._copies_min > 1 and "rabbitmq" not in copies:
                self._world.violate("I19", f"{task_id}.{generation} is open, and only in {copies} for ever")

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

    def _copies_of(self, task_id: str) -> list[str]:
        world = self._world
        journals = [
            "journal"
            for disk in world.journals.values()
            if disk.execute("SELECT 1 FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        ]
        mirror = ["rabbitmq" for one in world.broker.copies if one.task_id == task_id]
        return journals + mirror + (["redis"] if TaskId(task_id) in world.redis.tasks else [])


_JOURNALED: Final = "SELECT task_id, generation FROM tasks"

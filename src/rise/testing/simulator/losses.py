"""What stores lose in a run: all that they hold, their last writes, or one record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from rise.settings import Settings
from rise.testing.fakes.queue import MemoryQueueState
from rise.testing.simulator.copies import CopiesChecker
from rise.testing.simulator.faults import EVERYBODY, Fault, FaultKind
from rise.testing.simulator.loop import Process
from rise.testing.simulator.servers import rewind, snapshot_of
from rise.testing.simulator.world import World

LOOK_SECONDS = 5.0
_REWINDS = frozenset({FaultKind.REDIS_REWOUND, FaultKind.POWER_CUT})


class Losses:
    """For worlds with several stores; the checker hears of each loss when it has happened."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.checker = CopiesChecker(world, stores=settings.stores, copies_min=settings.copies_min)
        self._world = world
        self._synced: dict[Fault, MemoryQueueState] = {}
        world.witness = self.checker

    def expect(self, faults: Iterable[Fault]) -> None:
        """What will be lost has to be known a moment before."""
        for fault in faults:
            if fault.kind in _REWINDS and fault.seconds:
                self._world.timeline.at(max(0.0, fault.at - fault.seconds), partial(self._sync, fault))
        self._look()

    def strike_if_another_has_it(self, fault: Fault) -> None:
        """A store is spared that alone has something: what no journal could take or has kept is not copied again."""
        store = fault.kind.name.partition("_")[0].lower().replace("rabbit", "rabbitmq")
        if self.checker.only_in(store):
            self._world.note(store, "is spared")
        else:
            self.strike(fault, [])
            self._world.struck[fault.kind] += 1

    def strike(self, fault: Fault, struck: Sequence[Process]) -> bool:
        """False: it is nothing that a store loses."""
        world = self._world
        match fault.kind:
            case FaultKind.REDIS_EMPTIED:
                self.checker.emptied()
                world.redis.empty()
                self.checker.lost("redis")
            case FaultKind.REDIS_REWOUND | FaultKind.POWER_CUT:
                # In the very first moment nothing has been synced, and nothing is there.
                rewind(world.redis, self._synced.pop(fault) if fault in self._synced else snapshot_of(world.redis))
                self.checker.lost("redis")
            case FaultKind.REDIS_RECORD_LOST:
                self._lose_a_record()
            case FaultKind.RABBIT_EMPTIED:
                self._end_connections(world.host.processes)
                world.broker.empty()
                self.checker.lost("rabbitmq")
            case FaultKind.RABBIT_GONE:
                self._end_connections(struck)
            case FaultKind.JOURNAL_LOST:
                self._lose_journals(fault)
            case _:
                return False
        return True

    def _sync(self, fault: Fault) -> None:
        self._synced[fault] = snapshot_of(self._world.redis)

    def _look(self) -> None:
        self.checker.look()
        self._world.timeline.after(LOOK_SECONDS, self._look)

    def _lose_a_record(self) -> None:
        """As somebody deletes a key by hand. It counts only if the message was promised."""
        tasks, late = self._world.redis.tasks, self._world.redis.late
        if late and self._world.dice.random() < 0.5:
            del late[self._world.dice.choice(list(late))]
            self.checker.lost("redis")
            return
        promised = [task_id for task_id in tasks if self.checker.is_promised(task_id)]
        if promised:
            task_id = self._world.dice.choice(promised)
            del tasks[task_id]
            self.checker.deleted(task_id)
            self.checker.lost("redis")

    def _lose_journals(self, fault: Fault) -> None:
        world = self._world
        for number in sorted(world.journals):
            holder = world.journal_locks.get(number)
            if fault.target == EVERYBODY or (holder is not None and fault.strikes(holder.name)):
                del world.journals[number]
        self.checker.lost("journal")

    def _end_connections(self, processes: Sequence[Process]) -> None:
        for mirror in self._world.mirrors:
            if mirror.process in processes:
                mirror.die()

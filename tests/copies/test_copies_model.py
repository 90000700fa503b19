"""Whatever fails, in whatever order: what was accepted is somewhere until it is finished, and is run once.

Several processes keep messages in the stores and make up for what is missing; one of them at a time is the keeper.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from copies_stage import Installation, Killed, Process, attempt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from rise.copies.journal import SCHEMA, Journal
from rise.copies.keeper import COUNT_SECONDS
from rise.copies.slots import Slots
from rise.envelope import TaskId
from rise.errors import CopiesInsufficient
from rise.ledger.port import Run
from rise.queue.port import NewTask
from rise.testing.clock import ManualClock
from rise.testing.simulator.database import InlineDatabase, memory_disk

PROCESSES = 3
STORES = st.sampled_from(("queue", "mirror", "journal"))


class MemorySlots(Slots):
    """The same files for all processes, in memory; a lock is held until its process lets go or dies."""

    def __init__(self, disks: dict[int, apsw.Connection], held: set[int], clock: ManualClock) -> None:
        super().__init__(Path(), clock=clock)
        self.disks, self.held, self.mine = disks, held, set[int]()

    def _numbers(self) -> list[int]:
        return sorted(self.disks)

    def _lock(self, number: int) -> Any:
        if number in self.held:
            return None
        self.held.add(number)
        return number + 1

    def _journal(self, number: int, lock: Any, **_: Any) -> Journal:
        if number not in self.disks:
            self.disks[number] = memory_disk()
        disk = self.disks[number]
        return Journal(
            lambda: InlineDatabase(disk, clock=self._clock, schema=SCHEMA),
            clock=self._clock,
            number=number,
            on_close=(lambda: self.held.discard(number)) if lock else (lambda: None),
        )


class InMemory(Installation):
    def __init__(self) -> None:
        super().__init__(Path())
        self.disks: dict[int, apsw.Connection] = {}
        self.held: set[int] = set()

    def slots(self) -> Slots:
        return MemorySlots(self.disks, self.held, self.clock)


class Storm(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = InMemory()
        self.accepted: dict[TaskId, NewTask] = {}
        self.number = 0
        self.processes: list[Process] = [self.ask(self.world.process()) for _ in range(PROCESSES)]
        self.journals = {id(process): process.journals._own for process in self.processes}

    def ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    # --- what people, workers and the world do ---

    @rule(at=st.integers(0, PROCESSES - 1), chat=st.sampled_from("ab"), count=st.integers(1, 4))
    def messages_come(self, at: int, chat: str, count: int) -> None:
        async def come() -> None:
            process = self.processes[at]
            messages = [self.next_message(chat) for _ in range(count)]
            kept = await asyncio.gather(*map(process.copies.keep, messages), return_exceptions=True)
            await process.asked()
            for message, said in zip(messages, kept, strict=True):
                if not isinstance(said, BaseException):
                    self.accepted[message.head.task_id] = message
                else:
                    assert isinstance(said, CopiesInsufficient)

        self.ask(come())

    def next_message(self, chat: str) -> NewTask:
        self.number += 1
        return self.world.message(self.number, chat=chat)

    @precondition(lambda self: self.accepted)
    @rule(at=st.integers(0, PROCESSES - 1), data=st.data())
    def one_comes_again(self, at: int, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.accepted)))
        again = self.accepted[task_id]
        later = msgspec.structs.replace(again.head, accepted_at_ms=self.world.now_ms())

        async def come() -> None:
            await attempt(lambda: self.processes[at].copies.keep(msgspec.structs.replace(again, head=later)))
            await self.processes[at].asked()

        self.ask(come())

    @rule(count=st.integers(1, 5))
    def workers_work(self, count: int) -> None:
        self.ask(self.world.work(count=count))

    @rule()
    def a_worker_has_saved_the_result_and_dies(self) -> None:
        async def half() -> None:
            worker = self.world.worker()
            for claim in (await worker.claim("dying", {"telegram": 1}, takes_suspects=True)).claims:
                await self.world.finish(claim.task)
            await worker.hand_back("dying")

        self.ask(half())

    @rule(at=st.integers(0, PROCESSES - 1), store=STORES, how=st.sampled_from(("is_down", "loses_answers", "heal")))
    def a_way_fails(self, at: int, store: str, how: str) -> None:
        process = self.processes[at]
        if store == "journal":
            process.journals._own = self.journals[id(process)] if how == "heal" else None
            return
        link = process.queue.link if store == "queue" else process.mirror.link  # type: ignore[union-attr]
        link.is_down, link.loses_answers = how == "is_down", how == "loses_answers"

    @rule(at=st.integers(0, PROCESSES - 1), is_down=st.booleans())
    def the_ledger_fails_one(self, at: int, is_down: bool) -> None:
        self.processes[at].ledger.link.is_down = is_down

    @precondition(lambda self: self.others_hold("queue"))
    @rule()
    def the_queue_is_emptied(self) -> None:
        self.world.queue.empty()

    @precondition(lambda self: self.others_hold("mirror"))
    @rule()
    def the_mirror_is_purged(self) -> None:
        self.world.mirror.empty()

    @precondition(lambda self: self.world.queue.tasks)
    @rule(data=st.data())
    def the_queue_loses_one_in_silence(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.world.queue.tasks)))
        lane = self.world.queue.lanes.get(self.world.queue.tasks[task_id].head.lane)
        if (lane is None or lane.holder is None) and task_id in self.held_without("queue"):
            del self.world.queue.tasks[task_id]

    @rule(at=st.integers(0, PROCESSES - 1))
    def a_process_is_killed(self, at: int) -> None:
        self.ask(self.replace(at))

    async def replace(self, at: int) -> None:
        killed = self.processes[at]
        killed.journals._own = self.journals.pop(id(killed))
        await killed.die()
        self.processes[at] = heir = await self.world.process(begins=False)
        self.journals[id(heir)] = heir.journals._own

    @rule(at=st.integers(0, PROCESSES - 1), step=st.integers(0, 12), store=STORES)
    def the_keeper_is_killed_at_some_step(self, at: int, step: int, store: str) -> None:
        keeper = self.processes[at]
        stores = {"queue": keeper.queue, "mirror": keeper.mirror, "journal": keeper.ledger}
        stores[store].link.dies_before_call = step  # type: ignore[union-attr]
        try:
            self.ask(self.keep_house(keeper))
            stores[store].link.dies_before_call = None  # type: ignore[union-attr]
        except Killed:
            self.loop.run_until_complete(self.replace(at))

    # --- what processes do ---

    @rule(at=st.integers(0, PROCESSES - 1))
    def a_relay_goes_round(self, at: int) -> None:
        self.ask(self.relay(self.processes[at]))

    async def relay(self, process: Process) -> None:
        await process.journals._let_go_of_drained()
        await process.journals._adopt_abandoned()
        await process.round()

    @rule(at=st.integers(0, PROCESSES - 1))
    def the_keeper_goes_round(self, at: int) -> None:
        self.ask(self.keep_house(self.processes[at]))

    async def keep_house(self, process: Process) -> None:
        for other in self.processes:
            if other is not process:
                await attempt(other.keeper._rest)
                if other.mirror is not None:
                    other.mirror.die()  # at the latest its connection ends
        keeper = process.keeper
        for duty in (keeper._refill_if_emptied, keeper._look_at_mirror, keeper._count_now_and_then):
            await attempt(duty)

    @rule(keeper=st.integers(0, PROCESSES - 1), at=st.integers(0, PROCESSES - 1), count=st.integers(0, 3))
    def everything_at_once(self, keeper: int, at: int, count: int) -> None:
        async def together() -> None:
            process, messages = self.processes[at], [self.next_message("a") for _ in range(count)]
            kept = asyncio.gather(*map(process.copies.keep, messages), return_exceptions=True)
            await asyncio.gather(
                kept,
                self.world.work(count=2),
                self.keep_house(self.processes[keeper]),
                *map(self.relay, self.processes),
            )
            await process.asked()
            self.accepted |= {
                message.head.task_id: message
                for message, said in zip(messages, kept.result(), strict=True)
                if not isinstance(said, BaseException)
            }

        self.ask(together())

    @rule(seconds=st.sampled_from((1, 5, 35, 700)))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    # --- what always holds ---

    def finished(self) -> dict[TaskId, Run]:
        return {
            stored.run.task_id: stored.run for stored in self.world.ledger.runs.values() if stored.run.finished_at_ms
        }

    def in_journals(self) -> Counter[TaskId]:
        found: Counter[TaskId] = Counter()
        for disk in self.world.disks.values():
            if list(disk.execute("SELECT 1 FROM sqlite_schema WHERE name = 'tasks'")):
                found.update(task_id for (task_id,) in disk.execute("SELECT task_id FROM tasks"))
        return found

    def held_without(self, store: str) -> set[TaskId]:
        held = set(self.in_journals())
        if store != "queue":
            held |= self.world.in_queue()
        if store != "mirror":
            held |= set(self.world.in_mirror())
        return held

    def others_hold(self, store: str) -> bool:
        """One failure at a time is what is promised: not while only this one has a message."""
        return set(self.accepted) - set(self.finished()) <= self.held_without(store)

    @invariant()
    def what_is_accepted_is_somewhere_until_it_is_finished(self) -> None:
        lost = set(self.accepted) - set(self.finished()) - self.held_without("none")
        assert not lost

    @invariant()
    def a_copy_leaves_the_mirror_when_its_task_is_finished(self) -> None:
        assert not self.world.open_ones_forgotten

    @invariant()
    def nothing_finished_is_brought_back_or_run_as_something_new(self) -> None:
        assert not self.world.finished_ones_restored
        assert all(count == 1 and run_id.endswith(".0") for run_id, count in self.world.runs.items())

    # --- at rest ---

    def teardown(self) -> None:
        try:
            self.ask(self.come_to_rest())
        finally:
            self.ask(self.world.close())
            for disk in self.world.disks.values():
                disk.close()
            self.loop.close()

    async def come_to_rest(self) -> None:
        for process in self.processes:
            process.journals._own = self.journals[id(process)]
            for link in process.links:
                link.is_down = link.loses_answers = False
        await self.go_round(4)
        unfinished = set(self.accepted) - set(self.finished())
        assert unfinished <= self.world.in_queue()
        await self.world.work()
        assert set(self.accepted) <= set(self.finished())
        await self.go_round(4)
        assert not self.world.in_queue()
        assert not self.in_journals()
        assert not self.world.in_mirror()

    async def go_round(self, count: int) -> None:
        for _ in range(count):
            self.world.clock.advance(700 + COUNT_SECONDS)
            await self.keep_house(self.processes[0])
            for process in self.processes:
                await self.relay(process)


@pytest.mark.slow
@pytest.mark.req("CPY-1", "CPY-2", "CPY-4", "CPY-5", "CPY-7", "QUE-5")
@pytest.mark.failure("C2", "C3", "C13", "C19", "C29", "C30", "I3", "I6", "I7", "I8", "I10")
def test_whatever_fails_nothing_accepted_is_lost_or_run_twice(pytestconfig: pytest.Config):
    examples = pytestconfig.getoption("examples")
    run_state_machine_as_test(
        Storm,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=examples == 100
        ),
    )

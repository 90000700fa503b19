"""Whatever is said to it, and in whatever order, the journal holds what a dictionary would."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from journals import HOUR_SECONDS, due_in, keep, open_in, run, runs_in

from rise.clock import epoch_ms
from rise.copies.journal import SCHEMA, Journal, JournalKept, RunName
from rise.testing.clock import START, ManualClock
from rise.testing.simulator.database import InlineDatabase, memory_disk

NUMBERS = st.integers(1, 6)
GENERATIONS = st.sampled_from((0, 0, 0, 1, 2))
RUNS = st.lists(st.tuples(NUMBERS, GENERATIONS), max_size=4)
COPIES = st.sampled_from(("redis", "rabbitmq"))
LIVES = ("one", "two")


@dataclass
class Open:
    place: int
    generation: int
    kept_at: float
    look_at: float
    looks: int = 0
    lives: dict[str, str] = field(default_factory=dict)


@dataclass
class Known:
    body: bytes
    generation: int
    ends_at: float


class JournalAsADictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.disk = memory_disk()
        self.journal = self.opened()
        self.open: dict[int, Open] = {}
        self.known: dict[int, Known] = {}
        self.places = 0

    def opened(self) -> Journal:
        journal = Journal(lambda: InlineDatabase(self.disk, clock=self.clock, schema=SCHEMA), clock=self.clock)
        self.loop.run_until_complete(journal.open())
        return journal

    def ask(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def is_at(self, number: int, generation: int) -> bool:
        return number in self.open and self.open[number].generation == generation

    # --- what is said to both ---

    @rule(number=NUMBERS, generation=GENERATIONS, raw=st.sampled_from((b"a", b"b")), hours=st.integers(1, 3))
    def keep(self, number: int, generation: int, raw: bytes, hours: int) -> None:
        said = self.ask(keep(self.journal, number, generation=generation, raw=raw, receipt_hours=hours))
        known = self.known.get(number)
        ends_at = START.timestamp() + hours * HOUR_SECONDS
        if known is None:
            self.known[number] = Known(raw, generation, ends_at)
        elif generation <= known.generation:
            assert said == JournalKept(new=False, same_body=raw == known.body)
            return
        else:
            known.generation = generation
        assert said == JournalKept(new=known is None, same_body=known is None or raw == known.body)
        self.places += 1
        place = self.open[number].place if number in self.open else self.places
        now = self.clock.monotonic()
        self.open[number] = Open(place, generation, now, now + 2)

    @rule(runs=RUNS, copy=COPIES, life=st.sampled_from(LIVES))
    def note(self, runs: list[tuple[int, int]], copy: str, life: str) -> None:
        self.ask(self.journal.note([run(*each) for each in runs], copy, life))
        for number, generation in runs:
            if self.is_at(number, generation):
                self.open[number].lives[copy] = life

    @rule(runs=RUNS)
    def looked(self, runs: list[tuple[int, int]]) -> None:
        self.ask(self.journal.looked([run(*each) for each in runs]))
        for number, generation in set(runs):
            if self.is_at(number, generation):
                task = self.open[number]
                task.looks += 1
                task.look_at = self.clock.monotonic() + min(2 * 2**task.looks, 600)

    @rule(runs=RUNS)
    def forget(self, runs: list[tuple[int, int]]) -> None:
        gone = {number for number, generation in runs if number in self.open}
        gone = {number for number in gone if max(g for n, g in runs if n == number) >= self.open[number].generation}
        assert self.ask(self.journal.forget([run(*each) for each in runs])) == len(gone)
        for number in gone:
            del self.open[number]

    @rule()
    def sweep(self) -> None:
        now = self.clock.now().timestamp()
        past = {number for number, known in self.known.items() if known.ends_at <= now and number not in self.open}
        assert self.ask(self.journal.sweep()) == len(past)
        for number in past:
            del self.known[number]

    @rule(seconds=st.sampled_from((1, 2, 60, 1800)))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def restart(self) -> None:
        self.ask(self.journal.close())
        self.journal = self.opened()

    # --- what is seen of both ---

    def in_order(self, *, at_least: float = 0, copy: str = "", life: str | None = None) -> list[RunName]:
        """Those that lack the copy and have been here for so long."""
        now = self.clock.monotonic()
        return [
            run(number, task.generation)
            for number, task in sorted(self.open.items(), key=lambda each: each[1].place)
            if now - task.kept_at >= at_least and (not copy or life is None or task.lives.get(copy) != life)
        ]

    @invariant()
    def the_same_is_open(self) -> None:
        assert self.ask(open_in(self.journal)) == self.in_order()
        due = self.ask(due_in(self.journal, 100))
        now = self.clock.monotonic()
        assert set(due) == {run(n, task.generation) for n, task in self.open.items() if task.look_at <= now}
        for number in range(1, 7):
            lives = self.open[number].lives if number in self.open else None
            assert self.ask(self.journal.copies_of(run(number).task_id)) == lives

    @invariant()
    def the_same_is_lacking(self) -> None:
        for copy in ("redis", "rabbitmq"):
            for life in (*LIVES, None):
                expected = self.in_order(copy=copy, life=life)
                assert runs_in(self.ask(self.journal.lacking(copy, life, limit=100))) == expected
                assert self.ask(self.journal.depth({copy: life})).lacking == {copy: len(expected)}
            older = self.ask(self.journal.lacking(copy, "one", limit=100, older_than_ms=60_000))
            assert runs_in(older) == self.in_order(copy=copy, life="one", at_least=60)

    @invariant()
    def the_same_is_known(self) -> None:
        now = self.clock.now().timestamp()
        receipts = self.ask(self.journal.receipts(limit=100))
        assert [(each.task_id, each.generation, each.ends_at_ms) for each in receipts] == [
            (run(number).task_id, known.generation, round(known.ends_at * 1000))
            for number, known in sorted(self.known.items())
            if known.ends_at > now
        ]
        assert all(each.accepted_at_ms == epoch_ms(START) for each in receipts)
        assert self.ask(self.journal.depth({})).receipts == len(self.known)
        is_past = any(known.ends_at <= now for known in self.known.values())
        assert self.ask(self.journal.has_work()) == (bool(self.open) or is_past)

    def teardown(self) -> None:
        self.ask(self.journal.close())
        self.disk.close()
        self.loop.close()


@pytest.mark.slow
@pytest.mark.req("CPY-2", "CPY-5")
@pytest.mark.failure("C29", "C30")
def test_the_journal_holds_what_a_dictionary_would(pytestconfig: pytest.Config):
    examples = pytestconfig.getoption("examples")
    run_state_machine_as_test(
        JournalAsADictionary,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, database=None, derandomize=examples == 100
        ),
    )

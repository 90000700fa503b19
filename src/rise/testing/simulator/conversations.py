"""Temporal beside the simulated machine, as far as conversations need it: it is away at times, loses requests and
answers, is killed and comes back with what is on its disk, or loses that, too.

Each conversation is the real workflow (`carried.py`), run by whichever worker's process is there. What Temporal
promises it keeps: what it was told it has; a run of which nothing is heard is given to another; a question is answered
with all that was told before. Its client repeats what it does not hear the end of, so a message may be told twice.

Refuses: the client's breaker, and more than one Temporal. Those are shown on real servers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from rise.clock import Clock, epoch_ms
from rise.conversations.port import UNKNOWN, ConversationLimits, ConversationMessage, Response
from rise.conversations.running import ConversationRuns
from rise.conversations.workflow import Begin
from rise.errors import TemporalUnavailable, Unavailable
from rise.service import cancel_all, insist, spawn
from rise.testing.clock import START
from rise.testing.simulator.carried import Carried, Ended, Leg, Rang, Timer, Told
from rise.testing.simulator.faults import FaultKind
from rise.testing.simulator.invariants import Checker
from rise.testing.simulator.loop import Process
from rise.testing.simulator.servers import TEMPORAL, Link
from rise.testing.simulator.world import CLAIM_SECONDS, World

T = TypeVar("T")

LIMITS: Final = ConversationLimits(
    beat_seconds=CLAIM_SECONDS, messages_per_history=4, quiet_seconds=1.0, messages_per_history_max=10
)
"""Everything that waits, waits for less, and a history is soon long enough."""
EVENTS_PER_HISTORY_MAX: Final = 60
LEG_SECONDS: Final = (0.001, 0.05)
NOBODY_SECONDS: Final = 0.5
"""How soon Temporal looks again for somebody who carries a conversation on."""
QUESTION_SECONDS: Final = 3.0
PAUSES_SECONDS: Final = (0.1, 0.3)
"""Between the tries of the client's."""
BEATS: Final = 3
LOSES_ITS_PLACE: Final = 0.05
"""How likely a conversation that somebody has in memory is taken up by another."""


_Meant = tuple[str, str, int, tuple[str, ...]]
"""By what a run is known: its conversation, the update, how many tries came before, and who follows it."""


def _meant(name: str, message: ConversationMessage) -> _Meant:
    return name, message.update_id, message.tries, tuple(message.followers)


class _Activity(msgspec.Struct):
    message: ConversationMessage
    attempts: int = 0
    token: int = 0
    """Of the attempt that goes on; 0: none does."""
    heard_at: float = 0.0


class _Record(msgspec.Struct):
    """What Temporal has on its disk of one conversation."""

    run: int
    """A history that is begun anew is another run."""
    begin: bytes
    legs: list[Leg] = []
    news: list[Told | Ended | Rang] = []
    """Since the last leg."""
    asked_for: list[bytes] = []
    activities: dict[int, _Activity] = {}
    timer: Timer | None = None

    @property
    def is_to_go_on(self) -> bool:
        return bool(self.news) or not self.legs


@dataclass(frozen=True, slots=True)
class _Held:
    """A conversation as a process has it in memory."""

    process: Process
    run: int
    carried: Carried


class SimConversations:
    """One for the world."""

    def __init__(self, world: World, checker: Checker) -> None:
        self._world = world
        self._checker = checker
        self._dice = world.dice_for("temporal")
        self._records: dict[str, _Record] = {}
        self._held: dict[str, _Held] = {}
        self._scheduled: set[str] = set()
        self._workers: dict[Process, SimTemporalWorker] = {}
        self._life = 0
        """What was on its way when Temporal was killed belongs to a former one."""
        self._ran_in: dict[str, Process] = {}
        """By request: where it was last given to, as long as nothing has come of it."""
        self._told: Counter[_Meant] = Counter()
        self._ran: Counter[_Meant] = Counter()
        """An update, by how many tries came before and who follows it: how often each conversation had it run."""
        self._ran_last: dict[tuple[str, str], _Meant] = {}
        """Of each update of a conversation."""
        self.begun_anew = 0
        self.told_again = 0
        self.given_up = 0

    # --- processes come and go ---

    def reached_by(self, process: Process, clock: Clock) -> ReachedConversations:
        return ReachedConversations(self, process, clock, self.way_of(process), self._checker)

    def worker_in(self, process: Process, clock: Clock, runs: ConversationRuns) -> SimTemporalWorker:
        return SimTemporalWorker(self, process, clock, runs)

    def way_of(self, process: Process) -> Link:
        return Link(self._world, process, TEMPORAL, lambda trouble: None)

    def join(self, process: Process, worker: SimTemporalWorker) -> None:
        self._workers[process] = worker

    def leave(self, process: Process) -> None:
        self._workers.pop(process, None)

    # --- what is asked of it: each in one step, answered or not ---

    def tell(self, name: str, message: ConversationMessage) -> None:
        self._must_be_there()
        if name not in self._records:
            self._begin(name, msgspec.json.encode(Begin(LIMITS)))
        record, told = self._records[name], Told(_sent(message, ConversationMessage))
        self._told[_meant(name, message)] += 1
        self.told_again += told in record.news or any(told in leg.events for leg in record.legs)
        record.news.append(told)
        self._carry_soon(name)

    def ask(self, name: str, request_id: str) -> Response | None:
        """None: nobody who carries it on answers."""
        self._must_be_there()
        if name not in self._records:
            return UNKNOWN
        process = self._worker_for(name)
        if process is None:
            return None
        if self._records[name].is_to_go_on and not self._carry_in(name, process):
            return None
        return _sent(self._in_memory_of(name, process).response(request_id), Response)

    def forget(self, name: str) -> None:
        self._must_be_there()
        self._records.pop(name, None)

    def beat(self, token: int) -> bool:
        """Whether it still waits for this."""
        self._must_be_there()
        found = self._find(token)
        if found is not None:
            found[2].heard_at = self._world.now
        return found is not None

    def end(self, token: int, response: Response) -> None:
        self._must_be_there()
        if (found := self._find(token)) is not None:
            name, number, activity = found
            self._ran_in.pop(activity.message.request_id, None)
            if response.has_other_followers(activity.message):
                # One that follows it was resumed by a person after it was told: this answer counts for nothing.
                self._ran_last.pop((name, activity.message.update_id), None)
            self._has_ended(name, number, Ended(number, _sent(response, Response)))

    def give_back(self, token: int) -> None:
        """Its worker is stopped."""
        self._must_be_there()
        if (found := self._find(token)) is not None:
            self._lost(*found, is_silent=False)

    # --- what becomes of it ---

    def die(self, seconds: float) -> None:
        """What it has in memory is gone; what is on its disk is all there is when it is back."""
        self._world.note("temporal", "dies", f"{len(self._records)}")
        self._forget_memory()
        self._records = msgspec.json.decode(msgspec.json.encode(self._records), type=dict[str, _Record])
        self._world.timeline.after(seconds, self._come_back)

    def lose_everything(self) -> None:
        self._world.note("temporal", "loses everything", f"{len(self._records)}")
        self._forget_memory()
        self._records.clear()
        for counts in (self._told, self._ran, self._ran_last):
            counts.clear()

    def _forget_memory(self) -> None:
        self._life += 1
        self._scheduled.clear()
        self.close()

    def close(self) -> None:
        """Nobody has any of it in memory."""
        for name in list(self._held):
            self._drop(name)

    def _drop(self, name: str) -> None:
        if (held := self._held.pop(name, None)) is not None:
            held.carried.close()

    def _come_back(self) -> None:
        if self._is_down():
            return  # killed again meanwhile
        for name, record in self._records.items():
            self._carry_soon(name)
            self._wind(name, record)
            for number, activity in record.activities.items():
                if activity.token:
                    self._look_at_soon(activity)
                else:
                    self._hand_out_after(0.0, name, record.run, number)

    def _is_down(self) -> bool:
        return self._world.is_struck(FaultKind.TEMPORAL_KILLED)

    def _must_be_there(self) -> None:
        if self._is_down():
            raise TemporalUnavailable("Temporal cannot be reached")

    # --- conversations go on ---

    def _begin(self, name: str, begin: bytes) -> _Record:
        record = self._records[name] = _Record(self._world.timeline.number(), begin)
        self._drop(name)
        return record

    def _carry_soon(self, name: str, seconds: float | None = None) -> None:
        if name in self._scheduled or not self._records[name].is_to_go_on:
            return
        self._scheduled.add(name)
        self._after(self._dice.uniform(*LEG_SECONDS) if seconds is None else seconds, partial(self._carry, name))

    def _carry(self, name: str) -> None:
        self._scheduled.discard(name)
        if name not in self._records or not self._records[name].is_to_go_on:
            return
        process = self._worker_for(name)
        if process is None or not self._carry_in(name, process):
            self._carry_soon(name, NOBODY_SECONDS)

    def _carry_in(self, name: str, process: Process) -> bool:
        """False: it has died before."""
        step = self._world.begin_step(process, "temporal.carry")
        if not step.is_over:
            self._go_on(name, process)
            self._world.end_step(process, step)
        return not step.is_over

    def _go_on(self, name: str, process: Process) -> None:
        """One leg, and what the conversation asks for by it."""
        record, carried = self._records[name], self._in_memory_of(name, process)
        now_ms = epoch_ms(START) + int(self._world.now * 1000)
        is_long = sum(len(leg.events) for leg in record.legs) >= EVENTS_PER_HISTORY_MAX
        leg = Leg(now_ms, record.news, is_long)
        carried.advance(leg)
        record.legs.append(leg)
        record.news = []
        self._world.note(process.name, "carries on", f"{name} {record.run} {len(record.legs)}")
        if carried.anew is not None:
            self._begin_anew(name, record, carried.anew)
            return
        for number in range(len(record.asked_for), len(carried.asked_for)):
            self._have_run(name, record, number, carried.asked_for[number])
        if carried.timer != record.timer:
            record.timer = carried.timer
            self._wind(name, record)

    def _begin_anew(self, name: str, former: _Record, begin: bytes) -> None:
        self.begun_anew += 1
        if former.activities:
            self._world.violate("I2", f"{name} was begun anew, and {len(former.activities)} of its runs still go on")
        self._begin(name, begin)
        self._carry_soon(name)

    def _in_memory_of(self, name: str, process: Process) -> Carried:
        """As it has it in memory, or from its history."""
        record, held = self._records[name], self._held.get(name)
        if held is not None and held.process is process and held.run == record.run:
            return held.carried
        self._drop(name)
        carried = Carried(record.begin)
        for leg in record.legs:
            carried.advance(leg)
        if carried.asked_for != record.asked_for or carried.timer != record.timer:
            self._world.violate("I4", f"from its history {name} asks for other things than it did")
        self._held[name] = _Held(process, record.run, carried)
        return carried

    def _worker_for(self, name: str) -> Process | None:
        """Who has it in memory, mostly; None: nobody answers."""
        held, there = self._held.get(name), [one for one in self._workers if not one.is_stopped]
        if not there:
            return None
        is_kept = held is not None and held.process in there and self._dice.random() >= LOSES_ITS_PLACE
        return held.process if held is not None and is_kept else self._dice.choice(there)

    def _wind(self, name: str, record: _Record) -> None:
        if record.timer is not None:
            seconds = (record.timer.due_at_ms - epoch_ms(START)) / 1000 - self._world.now
            self._after(max(0.0, seconds), partial(self._ring, name, record.run, record.timer.number))

    def _ring(self, name: str, run: int, timer: int) -> None:
        record = self._records.get(name)
        if record is not None and record.run == run and record.timer is not None and record.timer.number == timer:
            record.news.append(Rang(timer))
            self._carry_soon(name)

    # --- what it has run ---

    def _have_run(self, name: str, record: _Record, number: int, asked: bytes) -> None:
        message = msgspec.json.decode(asked, type=ConversationMessage)
        meant, which = _meant(name, message), (name, message.update_id)
        # Once more after another try, if it was told of once more: a signal that is repeated may come that late.
        if self._ran_last.get(which) == meant or self._ran[meant] >= self._told[meant]:
            self._world.violate("I4", f"{name} has {message.update_id} run twice by the same try ({message.tries})")
        self._ran[meant] += 1
        self._ran_last[which] = meant
        record.asked_for.append(asked)
        record.activities[number] = _Activity(message)
        self._hand_out_after(0.0, name, record.run, number)

    def _hand_out_after(self, seconds: float, name: str, run: int, number: int) -> None:
        way = self._dice.uniform(*LEG_SECONDS)
        self._after(seconds + way, partial(self._hand_out, name, run, number))

    def _hand_out(self, name: str, run: int, number: int) -> None:
        record = self._records.get(name)
        activity = None if record is None or record.run != run else record.activities.get(number)
        if activity is None or activity.token:
            return
        there = [one for one in self._workers if one.is_alive]  # one that is stopped has asked for work before
        if not there:
            self._hand_out_after(NOBODY_SECONDS, name, run, number)
            return
        process = self._dice.choice(there)
        self._may_run_twice(activity.message.request_id, process)
        activity.attempts += 1
        activity.token = self._world.timeline.number() + 1
        activity.heard_at = self._world.now
        self._look_at_soon(activity)
        self._workers[process].take(activity.token, _sent(activity.message, ConversationMessage))

    def _may_run_twice(self, request_id: str, process: Process) -> None:
        """Where it was given to before, it may still be run until that process hears that it is lost."""
        former = self._ran_in.get(request_id)
        self._ran_in[request_id] = process
        if former is not None and former.is_alive:
            self._world.doubt_claims([former, process])

    def _look_at_soon(self, activity: _Activity) -> None:
        due_in = activity.heard_at + LIMITS.beat_seconds - self._world.now
        self._after(max(0.0, due_in), partial(self._look_at, activity.token))

    def _look_at(self, token: int) -> None:
        if self._is_down() or (found := self._find(token)) is None:
            return
        if self._world.now - found[2].heard_at < LIMITS.beat_seconds - 1e-6:
            self._look_at_soon(found[2])
        else:
            self._lost(*found, is_silent=True)

    def _lost(self, name: str, number: int, activity: _Activity, *, is_silent: bool) -> None:
        activity.token = 0
        if activity.attempts >= LIMITS.deaths_max:
            if is_silent:
                self._checker.has_ended_its_processes(activity.message.task_id)
            self._has_ended(name, number, Ended(number, is_silent=is_silent))
        else:
            self._hand_out_after(2.0 ** (activity.attempts - 1), name, self._records[name].run, number)

    def _has_ended(self, name: str, number: int, ended: Ended) -> None:
        record = self._records[name]
        del record.activities[number]
        record.news.append(ended)
        self._carry_soon(name)

    def _find(self, token: int) -> tuple[str, int, _Activity] | None:
        for name, record in self._records.items():
            for number, activity in record.activities.items():
                if activity.token == token:
                    return name, number, activity
        return None

    def _after(self, seconds: float, callback: Callable[[], object]) -> None:
        life = self._life

        def if_it_lives() -> None:
            if life == self._life:
                callback()

        self._world.timeline.after(seconds, if_it_lives)


class ReachedConversations:
    """`rise.conversations.port.ConversationServer`, as one process reaches it."""

    def __init__(self, temporal: SimConversations, process: Process, clock: Clock, way: Link, checker: Checker) -> None:
        self._temporal = temporal
        self._process = process
        self._clock = clock
        self._way = way
        self._checker = checker

    async def tell(self, conversation_id: str, message: ConversationMessage) -> None:
        self._checker.told(self._process, message)
        await self._repeated("tell", partial(self._temporal.tell, conversation_id, message))

    async def ask(self, conversation_id: str, request_id: str) -> Response:
        answer = await self._repeated("ask", partial(self._temporal.ask, conversation_id, request_id))
        if answer is None:
            await self._clock.sleep(QUESTION_SECONDS)
            raise TemporalUnavailable(f"no worker of Temporal's carries {conversation_id} on", retry_after_seconds=3)
        return answer

    async def forget(self, conversation_id: str) -> None:
        await self._repeated("forget", partial(self._temporal.forget, conversation_id))

    async def _repeated(self, name: str, operation: Callable[[], T]) -> T:
        """As the client does it: what it does not hear the end of it asks again."""
        for pause in PAUSES_SECONDS:
            with suppress(TemporalUnavailable):
                return await self._way.ask(name, operation)
            await self._clock.sleep(pause)
        return await self._way.ask(name, operation)


class SimTemporalWorker:
    """A service: as long as it runs, conversations are carried on, and have their messages run, in its process."""

    name = "conversations carried on here"

    def __init__(self, temporal: SimConversations, process: Process, clock: Clock, runs: ConversationRuns) -> None:
        self._temporal = temporal
        self._process = process
        self._clock = clock
        self._runs = runs
        self._way = temporal.way_of(process)
        self._running: dict[int, asyncio.Task[Any]] = {}

    async def start(self) -> None:
        self._temporal.join(self._process, self)

    async def stop(self) -> None:
        self._temporal.leave(self._process)
        tokens, running = list(self._running), set(self._running.values())
        await cancel_all(running)
        for token in tokens:
            with suppress(TemporalUnavailable):  # then nothing is heard of it, and it is lost by that
                await self._way.ask("give_back", partial(self._temporal.give_back, token))

    def take(self, token: int, message: ConversationMessage) -> None:
        """From outside: this process has asked for work, and here it is."""
        task = self._process.spawn(self._run(token, message), name="conversation.run")
        self._running[token] = task
        task.add_done_callback(lambda _: self._running.pop(token, None))

    async def _run(self, token: int, message: ConversationMessage) -> None:
        running, beside = asyncio.current_task(), set[asyncio.Task[Any]]()
        assert running is not None
        try:
            async with asyncio.timeout(None) as time:
                spawn(self._beat(token, running), name="conversation.beat", into=beside)
                spawn(self._watch(message, time), name="conversation.watch", into=beside)
                try:
                    response = await self._runs.run(message)
                finally:
                    await cancel_all(beside)
        except TimeoutError:
            response = self._runs.given_up(message)
        end = partial(self._temporal.end, token, response)
        await insist(lambda: self._way.ask("end", end), sleep=self._clock.sleep, on_refusal=lambda error: None)

    async def _beat(self, token: int, running: asyncio.Task[Any]) -> None:
        while True:
            await self._clock.sleep(LIMITS.beat_seconds / BEATS)
            with suppress(TemporalUnavailable):
                if not await self._way.ask("beat", partial(self._temporal.beat, token)):
                    running.cancel()
                    return

    async def _watch(self, message: ConversationMessage, time: asyncio.Timeout) -> None:
        """Its time is over when its task is. Beside the beat, which does not wait for a store."""
        while True:
            await self._clock.sleep(LIMITS.beat_seconds / BEATS)
            with suppress(Unavailable):
                if await self._runs.is_over(message):
                    self._temporal.given_up += 1
                    time.reschedule(0.0)  # long ago
                    return


def _sent(what: Any, kind: type[T]) -> T:
    """As it comes out of the bytes it went as."""
    return msgspec.json.decode(msgspec.json.encode(what), type=kind)

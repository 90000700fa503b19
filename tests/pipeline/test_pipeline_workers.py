"""Several workers, and workers that stop, freeze, or die: each chat in order, by one at a time, and never stuck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from pipeline_stage import Gateway, Killed, Stage, WorkerProcess

import rise
from rise.channels.http import HttpChannel
from rise.envelope import Outcome, Reason, Status, TaskId
from rise.errors import Rejected, StoreUnavailable
from rise.queue.port import KEY_GRACE_SECONDS, Claim, QueueLimits, Selection
from rise.runtime.supervisor import Duties
from rise.testing.telegram import Fault
from rise.worker import Texts, WorkerLimits


class Bot:
    """A workflow that says what it was told, and keeps whatever a test tells it to hold."""

    def __init__(self, **options: Any) -> None:
        self.started: list[str] = []
        self.running: Counter[str] = Counter()
        self.running_max: Counter[str] = Counter()
        self.in_parallel_max = 0
        self._held: dict[str, asyncio.Event] = {}
        self._deadly: dict[str, Callable[[], None]] = {}

        @rise.workflow("bot", **{"channels": ["telegram"], **options})
        async def bot(turn: rise.Turn) -> None:
            await self._run(turn)

        self.workflow = bot

    def hold(self, text: str) -> asyncio.Event:
        self._held[text] = asyncio.Event()
        return self._held[text]

    def kills(self, text: str, kill: Callable[[], None]) -> None:
        self._deadly[text] = kill

    async def _run(self, turn: rise.Turn) -> None:
        chat = str(turn.chat_id)
        self.started.append(turn.text)
        self.running[chat] += 1
        self.running_max[chat] = max(self.running_max[chat], self.running[chat])
        self.in_parallel_max = max(self.in_parallel_max, self.running.total())
        try:
            if turn.text in self._deadly:
                self._deadly[turn.text]()
            if turn.text in self._held:
                await self._held[turn.text].wait()
            await asyncio.sleep(0)
            await turn.reply(turn.text)
        finally:
            self.running[chat] -= 1


async def replaced(gateway: Gateway, dead: WorkerProcess, *workflows: Callable[..., Any]) -> WorkerProcess:
    """Wait for its death; the supervisor frees what it held, and another takes its place."""
    await dead.dead()
    await gateway.supervisor.reap()
    return await gateway.stage.start_worker(*workflows)


def refuse() -> None:
    raise Rejected("refused for what it says")


async def started(stage: Stage, bot: Bot, *texts: str) -> None:
    async def holds() -> bool:
        return set(texts) <= set(bot.started)

    await stage.until(holds)


async def renewed(stage: Stage, worker: WorkerProcess, times: int) -> None:
    async def holds() -> bool:
        return worker.steps.count("queue.renew") >= times

    await stage.until(holds)


# --- how many at once -------------------------------------------------------------------------------------


async def serves_at_once(stage: Stage, count: int) -> None:
    """Of ten chats that write, so many and no more."""
    bot = Bot()
    held = [bot.hold(f"hold {chat}") for chat in range(1, 11)]
    await stage.start(bot.workflow)
    tasks = [task_id for chat in range(1, 11) for task_id in await stage.write(f"hold {chat}", chat=chat)]

    async def so_many() -> bool:
        return len(bot.started) == count

    await stage.until(so_many)
    await stage.pass_time(1)
    assert len(bot.started) == count
    for event in held:
        event.set()
    await stage.ended(*tasks)
    assert bot.in_parallel_max == count


@pytest.mark.req("WRK-2")
async def test_a_channel_serves_no_more_chats_at_once_than_allowed(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=3)
    await serves_at_once(stage, 3)


@pytest.mark.req("WRK-2")
@pytest.mark.parametrize("name", ["telegram", "telegram:{account}"])
async def test_a_channel_and_what_is_bound_to_an_account_may_have_fewer_places(stage: Stage, name: str):
    of_telegram = {name.format(account=stage.account): 2}
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=10, concurrency_for=of_telegram)
    await serves_at_once(stage, 2)


@pytest.mark.req("WRK-2")
async def test_the_places_of_one_account_are_no_others(stage: Stage):
    limits = {"http": 1, "telegram:of-another-bot": 1}
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=10, concurrency_for=limits)
    bot = Bot()
    await stage.start(bot.workflow)
    tasks = [task_id for chat in range(1, 21) for task_id in await stage.write("Hello", chat=chat)]
    await stage.ended(*tasks)
    assert bot.in_parallel_max > 1


@pytest.mark.req("WRK-2")
async def test_a_channel_without_a_place_left_keeps_no_other_waiting(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=1)
    bot = Bot(channels=["telegram", "http"])
    held = bot.hold("hold")
    gateway, _ = await stage.start(bot.workflow)
    [task_id] = await stage.write("hold")
    await started(stage, bot, "hold")
    asked = HttpChannel().read_apply(
        b'{"userText": "Hello"}', principal="test", key=None, request_id="r", trace_id=None
    )
    await stage.ended((await gateway.intake.accept(asked.incoming)).task_id)
    assert bot.running.total() == 1
    held.set()
    await stage.ended(task_id)


@pytest.mark.req("WRK-2")
async def test_a_workflow_serves_no_more_chats_at_once_than_it_asks_for(stage: Stage):
    bot = Bot(concurrency=2)
    await stage.start(bot.workflow)
    tasks = [task_id for chat in range(1, 21) for task_id in await stage.write("Hello", chat=chat)]
    await stage.ended(*tasks)
    assert bot.in_parallel_max == 2


@pytest.mark.req("QUE-2")
@pytest.mark.failure("D13")
async def test_a_chat_with_much_to_do_does_not_starve_the_others(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=1)
    bot = Bot()
    await stage.start_gateway()
    many = await stage.write(*(f"many {n:03}" for n in range(50)), chat=1)
    await stage.pass_time(1)
    others = [task_id for chat in (2, 3, 4) for task_id in await stage.write(f"other {chat}", chat=chat)]
    await stage.pass_time(1)
    await stage.start_worker(bot.workflow)
    await stage.ended(*many, *others)
    assert max(bot.started.index(f"other {chat}") for chat in (2, 3, 4)) <= stage.queue_limits.tasks_per_claim + 2
    assert stage.texts(1) == [f"many {n:03}" for n in range(50)]


@pytest.mark.req("QUE-2", "WRK-1")
@pytest.mark.failure("D3", "D10")
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_several_workers_never_run_one_chat_in_parallel_and_keep_its_order(stage: Stage, seed: int):
    dice = random.Random(seed)
    bot = Bot()
    gateway = await stage.start_gateway()
    for _ in range(4):
        await stage.start_worker(bot.workflow)
    written: dict[int, list[str]] = defaultdict(list)
    tasks: list[TaskId] = []
    for number in range(90):
        chat = dice.randint(1, 12)
        written[chat].append(f"{number:03}")
        tasks += await stage.write(f"{number:03}", chat=chat, by=gateway)
    await stage.ended(*tasks)
    assert set(bot.running_max.values()) == {1}
    assert bot.in_parallel_max > 1
    assert len(bot.started) == 90
    for chat, texts in written.items():
        assert stage.texts(chat) == texts


@pytest.mark.req("QUE-2")
async def test_what_arrives_out_of_order_is_run_in_the_platforms_order(stage: Stage):
    bot = Bot()
    gateway = await stage.start_gateway()
    one, two, three = (stage.incoming(text) for text in ("one", "two", "three"))
    tasks = [(await gateway.intake.accept(incoming)).task_id for incoming in (three, one, two)]
    await stage.start_worker(bot.workflow)
    await stage.ended(*tasks)
    assert stage.texts() == ["one", "two", "three"]
    assert (await stage.queue.depth()).out_of_order == 2


# --- stopping ---------------------------------------------------------------------------------------------


@pytest.mark.req("WRK-6")
@pytest.mark.failure("D18")
async def test_a_stop_hands_back_what_does_not_finish_with_its_tries_untouched(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60, stop_seconds=0.05)
    bot = Bot()
    held = bot.hold("long")
    _, worker = await stage.start(bot.workflow)
    [task_id] = await stage.write("long")
    await started(stage, bot, "long")
    stopping = asyncio.create_task(worker.stop())
    await stage.let_go_on()
    stage.clock.advance(1)
    await stopping
    task = await stage.look(task_id)
    assert task is not None
    assert (task.status, task.attempts, task.deaths) == (Status.PENDING, 0, 0)
    held.set()
    await stage.start_worker(bot.workflow)
    await stage.ended(task_id)
    assert stage.texts() == ["long"]


@pytest.mark.req("WRK-6")
@pytest.mark.failure("D18")
async def test_a_stop_lets_a_run_finish_and_begins_nothing_more(stage: Stage):
    bot = Bot()
    held = bot.hold("one")
    _, worker = await stage.start(bot.workflow)
    tasks = await stage.write("one", "two", "three")
    await started(stage, bot, "one")
    stopping = asyncio.create_task(worker.stop())
    await stage.let_go_on()
    held.set()
    await stopping
    assert bot.started == ["one"]
    await stage.ended(tasks[0])
    for task_id in tasks[1:]:
        task = await stage.look(task_id)
        assert task is not None
        assert (task.status, task.attempts, task.deaths) == (Status.PENDING, 0, 0)
    await stage.start_worker(bot.workflow)
    await stage.ended(*tasks)
    assert stage.texts() == ["one", "two", "three"]


@pytest.mark.req("WRK-6", "QUE-3")
@pytest.mark.failure("D18")
async def test_what_a_stop_leaves_unbegun_is_held_until_it_is_handed_back(stage: Stage):
    """Let go of without a word it would lapse while the stop waits for others, and count as a death."""
    stage.worker_limits = WorkerLimits(run_seconds=60, stop_seconds=60)
    bot = Bot()
    let_one_go, let_long_go = bot.hold("one"), bot.hold("long")
    _, worker = await stage.start(bot.workflow)
    tasks = [*await stage.write("one", "two", chat=1), *await stage.write("long", chat=2)]
    await started(stage, bot, "one", "long")
    stopping = asyncio.create_task(worker.stop())
    await stage.let_go_on()
    let_one_go.set()
    await stage.ended(tasks[0])
    beats = worker.steps.count("queue.renew")
    for _ in range(4):
        await stage.pass_time(10)
        beats += 1
        await renewed(stage, worker, beats)
    await stage.start_worker(bot.workflow)
    await stage.ended(*await stage.write("other", chat=3))
    begun_meanwhile = list(bot.started)
    let_long_go.set()
    await stopping
    await stage.ended(*tasks)
    assert "two" not in begun_meanwhile


# --- dying ------------------------------------------------------------------------------------------------


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D1")
async def test_what_a_dead_worker_held_is_run_by_another_at_once(stage: Stage):
    bot = Bot()
    held = bot.hold("one")
    gateway, worker = await stage.start(bot.workflow)
    tasks = await stage.write("one", "two")
    await started(stage, bot, "one")
    await worker.kill()
    held.set()
    await replaced(gateway, worker, bot.workflow)
    await stage.ended(*tasks)
    assert stage.texts() == ["one", "two"]
    assert bot.started == ["one", "one", "two"]


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D1", "D14")
async def test_without_a_supervisor_the_claim_of_a_dead_worker_lapses(stage: Stage):
    bot = Bot()
    held = bot.hold("one")
    _, worker = await stage.start(bot.workflow)
    [task_id] = await stage.write("one")
    await started(stage, bot, "one")
    await worker.kill()
    held.set()
    await stage.start_worker(bot.workflow)
    await stage.pass_time(31)
    await stage.ended(task_id)
    assert stage.texts() == ["one"]


@pytest.mark.req("QUE-3", "CHN-4")
@pytest.mark.failure("E4")
async def test_a_message_that_kills_its_worker_three_times_is_parked_alone_and_its_chat_goes_on(stage: Stage):
    bot = Bot()
    gateway = await stage.start_gateway()
    [deadly, behind] = await stage.write("deadly", "behind it", chat=1)
    innocents = [task_id for chat in range(2, 8) for task_id in await stage.write(f"innocent {chat}", chat=chat)]
    held = [bot.hold(f"innocent {chat}") for chat in range(2, 8)]
    bot.hold("deadly")
    worker = await stage.start_worker(bot.workflow)
    for _ in range(3):
        await started(stage, bot, "deadly")
        await stage.let_go_on()
        bot.started.clear()
        await worker.kill()
        worker = await replaced(gateway, worker, bot.workflow)
        for event in held:
            event.set()
    task = await stage.suspended(deadly, Reason.POISON)
    assert task.deaths == 3
    await stage.ended(behind, *innocents)
    await gateway.supervisor.tell()
    assert sorted(await stage.said(2, chat=1)) == sorted([Duties().failed_text, "behind it"])
    assert {Reason.POISON} == {one.reason for one in await stage.operations.suspended()}


@pytest.mark.req("QUE-3")
@pytest.mark.failure("E4")
async def test_a_suspect_runs_alone_so_that_another_killer_is_not_counted_against_it(stage: Stage):
    """It was running in two crashes that were not its fault; the third must not be either."""
    bot = Bot()
    gateway = await stage.start_gateway()
    [suspect] = await stage.write("suspect", chat=1)
    await stage.database.write(lambda connection: connection.execute("UPDATE tasks SET deaths = 2") and None)
    held = bot.hold("suspect")
    worker = await stage.start_worker(bot.workflow)
    await started(stage, bot, "suspect")
    dying = worker
    bot.kills("killer", lambda: dying._die())
    [killer] = await stage.write("killer", chat=2)
    await stage.let_go_on()
    assert "killer" not in bot.started
    held.set()
    await stage.ended(suspect)
    bot.hold("killer")
    await replaced(gateway, worker)
    task = await stage.look(killer)
    assert task is not None and task.reason is not Reason.POISON
    assert stage.texts(1) == ["suspect"]


@pytest.mark.req("QUE-3")
async def test_nobody_is_taken_for_a_suspect_for_having_been_claimed_alone(stage: Stage):
    stage.queue_limits = QueueLimits(tasks_per_claim=1)
    bot = Bot()
    held = bot.hold("hold")
    await stage.start(bot.workflow)
    [first] = await stage.write("hold", chat=1)
    await started(stage, bot, "hold")
    await stage.ended(*await stage.write("beside it", chat=2))
    held.set()
    await stage.ended(first)


@pytest.mark.req("QUE-3")
@pytest.mark.failure("E4")
async def test_a_suspect_gets_its_turn_however_much_else_there_is_to_do(stage: Stage):
    bot = Bot()
    held = {text: bot.hold(text) for text in ("first", "2", "3", "4", "5")}
    gateway, _ = await stage.start(bot.workflow)
    [first] = await stage.write("first", chat=1)
    await started(stage, bot, "first")
    in_a_second = stage.queue.now_ms() + 1000
    later = msgspec.structs.replace(stage.incoming("suspect", chat=99), due_at_ms=in_a_second)
    suspect = (await gateway.intake.accept(later)).task_id
    await stage.database.write(
        lambda connection: connection.execute("UPDATE tasks SET deaths = 2 WHERE task_id = ?", (suspect,)) and None
    )
    await stage.pass_time(2)
    others = []
    for chat in (2, 3, 4, 5):
        others += await stage.write(str(chat), chat=chat)
        await stage.let_go_on()
    assert bot.started == ["first"], "nothing new is begun while a suspect waits for this worker to be alone"
    held["first"].set()
    await stage.ended(first, suspect)
    for event in held.values():
        event.set()
    await stage.ended(*others)
    assert bot.started[:2] == ["first", "suspect"]


@pytest.mark.req("CHN-4", "QUE-3")
async def test_who_was_told_that_it_will_be_late_is_still_told_that_it_failed(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="late", failed_text="failed")
    bot = Bot()
    bot.hold("deadly")
    gateway, worker = await stage.start(bot.workflow)
    [task_id] = await stage.write("deadly")
    for _ in range(3):
        await started(stage, bot, "deadly")
        bot.started.clear()
        await stage.pass_time(11)
        await gateway.supervisor.tell()
        await worker.kill()
        worker = await replaced(gateway, worker, bot.workflow)
    await stage.suspended(task_id, Reason.POISON)
    await gateway.supervisor.tell()
    await gateway.supervisor.tell()
    assert await stage.said(2) == ["late", "failed"]


@pytest.mark.req("CHN-4")
@pytest.mark.failure("G16")
async def test_who_is_answered_at_this_moment_is_not_told_that_it_will_be_late(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="late")
    stage.worker_limits = WorkerLimits(run_seconds=60)
    bot = Bot()
    held = {text: bot.hold(text) for text in ("one", "two", "other")}
    gateway, _ = await stage.start(bot.workflow)
    await stage.write("one", chat=1)
    await stage.write("other", chat=2)
    await started(stage, bot, "one", "other")

    async def answered() -> None:
        held["one"].set()
        await stage.said(1, chat=1)

    gateway.at("ledger.add_notice", "before", answered)  # when both were seen to be open
    await stage.pass_time(11)
    assert await stage.said(1, chat=2) == ["late"]
    await stage.let_go_on()
    assert stage.texts(1) == ["one"]
    await stage.write("two", chat=1)
    await started(stage, bot, "two")
    await stage.pass_time(11)
    assert await stage.said(2, chat=1) == ["one", "late"], "of what its chat says next it is true"
    for event in held.values():
        event.set()
    await stage.said(5)


# --- frozen or cut off ------------------------------------------------------------------------------------


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D2", "L2")
@pytest.mark.parametrize(
    ("wakes_at", "its_run_fails"),
    [("ledger.save_result", False), ("queue.settle", False), ("ledger.steps", True)],
    ids=["with an answer", "with a settlement", "with a failure"],
)
async def test_a_worker_that_was_frozen_beyond_its_claim_changes_nothing_when_it_wakes(
    stage: Stage, wakes_at: str, its_run_fails: bool
):
    bot = Bot()
    _, frozen = await stage.start(bot.workflow)
    heart = frozen.hold_at("queue.renew", "before")
    held = frozen.hold_at(wakes_at, "before")
    [task_id] = await stage.write("one")
    await held.reached()
    frozen.hold_at("queue.claim", "before")
    await stage.start_worker(bot.workflow)
    await stage.pass_time(31)
    [run] = await stage.ended(task_id)
    if its_run_fails:
        bot.kills("one", refuse)
    held.open()
    await stage.let_go_on()
    heart.open()
    await stage.let_go_on()
    await stage.pass_time(5)
    assert await stage.result(task_id) == run
    assert (run.outcome, stage.texts()) == (Outcome.ANSWERED, ["one"])
    assert frozen.worker._claims._held == {}
    await stage.ended(*await stage.write("two"))
    assert stage.texts() == ["one", "two"]


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D2", "E2")
async def test_a_worker_that_wakes_after_its_message_was_parked_as_poison_says_nothing_of_it(stage: Stage):
    stage.queue_limits = QueueLimits(deaths_suspect=1, deaths_max=1)
    stage.duties = Duties(late_after_seconds=0, failed_text="failed")
    bot = Bot()
    bot.kills("one", refuse)
    gateway, frozen = await stage.start(bot.workflow)
    heart = frozen.hold_at("queue.renew", "before")
    held = frozen.hold_at("ledger.steps", "before")
    [task_id] = await stage.write("one")
    await held.reached()
    frozen.hold_at("queue.claim", "before")
    await stage.start_worker(bot.workflow)
    await stage.pass_time(31)
    await stage.suspended(task_id, Reason.POISON)
    await gateway.supervisor.tell()
    await stage.said(1)
    held.open()
    await stage.let_go_on()
    heart.open()
    await stage.let_go_on()
    await stage.pass_time(5)
    await stage.suspended(task_id, Reason.POISON)
    assert stage.texts() == ["failed"]
    assert frozen.worker._claims._held == {}


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D4")
async def test_a_worker_that_cannot_renew_its_claims_stops_working_on_them(stage: Stage):
    bot = Bot()
    bot.hold("one")
    _, cut_off = await stage.start(bot.workflow)
    [task_id] = await stage.write("one")
    await started(stage, bot, "one")
    for step in ("queue.renew", "queue.claim"):
        cut_off.fail_at(step, "before", StoreUnavailable("cut off"), times=1000)
    for _ in range(6):
        await stage.pass_time(10)

    async def given_up() -> bool:
        return bot.running.total() == 0

    await stage.until(given_up)
    bot._held.clear()
    await stage.start_worker(bot.workflow)
    await stage.ended(task_id)
    assert stage.texts() == ["one"]


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D4")
@pytest.mark.parametrize("renewals_before", [0, 3])
async def test_a_short_outage_of_the_store_costs_no_claim(stage: Stage, renewals_before: int):
    bot = Bot()
    held = bot.hold("one")
    _, worker = await stage.start(bot.workflow)
    worker.fail_at("queue.renew", "before", StoreUnavailable("for a moment"), nth=renewals_before + 1)
    [task_id] = await stage.write("one")
    await started(stage, bot, "one")
    for _ in range(9):
        await stage.pass_time(5)
    held.set()
    await stage.ended(task_id)
    assert bot.started == ["one"]


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D4")
async def test_a_claim_whose_answer_was_lost_is_handed_back_and_not_left_to_lapse(stage: Stage):
    bot = Bot()
    await stage.start_gateway()
    [task_id] = await stage.write("one")
    worker = stage.new_worker(bot.workflow)
    worker.fail_at("queue.claim", "after", StoreUnavailable("for a moment"))
    await stage.start_new_worker(worker, bot.workflow)
    await stage.until(lambda: _true("queue.claim" in worker.steps))
    for _ in range(5):
        await stage.pass_time(2)
    await stage.ended(task_id)
    assert bot.started == ["one"]


async def _true(value: bool) -> bool:
    return value


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D9")
async def test_a_lane_whose_hint_was_lost_is_found_by_the_sweep(stage: Stage):
    bot = Bot()
    gateway = await stage.start_gateway()
    tasks = [task_id for chat in range(1, 6) for task_id in await stage.write("Hello", chat=chat)]
    await stage.database.write(lambda connection: connection.execute("UPDATE lanes SET ready_at = NULL") and None)
    await stage.start_worker(bot.workflow)
    await stage.let_go_on()
    assert bot.started == []
    await gateway.supervisor.sweep()
    assert [one["lanes"] for one in stage.log if one["event"] == "queue.hints_remade"] == [5]
    await stage.ended(*tasks)


# --- everything at once -----------------------------------------------------------------------------------


@pytest.mark.req("QUE-2", "QUE-3", "WRK-4", "OUT-1", "CPY-7")
@pytest.mark.failure("D1", "D3", "D14", "E2", "F11", "G3")
@pytest.mark.parametrize("seed", range(6))
async def test_processes_killed_at_random_calls_lose_nothing_and_repeat_nothing_unmarked(stage: Stage, seed: int):
    dice = random.Random(seed)
    bot = Bot()
    steps_of_gateway = ("ledger.outbox_take", "ledger.outbox_sending", "channel.send", "ledger.outbox_record")
    steps_of_worker = ("queue.claim", "ledger.run", "ledger.steps", "ledger.save_result", "queue.settle")
    stage.telegram.fault(Fault.commit_then_close(), method="sendMessage", call=20)
    gateway, first = await stage.start(bot.workflow)
    workers = [first, await stage.start_worker(bot.workflow)]
    written: dict[int, list[str]] = defaultdict(list)
    tasks: list[TaskId] = []
    for number in range(60):
        if number % 10 == 5:
            victim = dice.choice(workers)
            victim.die_at(dice.choice(steps_of_worker), dice.choice(("before", "after")), nth=dice.randint(1, 3))
        if number % 15 == 10:
            gateway.die_at(dice.choice(steps_of_gateway), dice.choice(("before", "after")), nth=dice.randint(1, 3))
        chat = dice.randint(1, 5)
        text = f"{number:03}"
        incoming = stage.incoming(text, chat=chat)
        accepted = None
        while accepted is None:
            gateway = await replace_dead(gateway, workers, bot)
            with suppress(Killed):  # it died in between: the platform tries again
                accepted = await gateway.intake.accept(incoming)
        tasks.append(accepted.task_id)
        written[chat].append(text)
    left_to_a_person = await heal(stage, gateway, workers, bot, tasks)
    for chat, texts in written.items():
        seen = [text for text in stage.texts(chat) if text.removeprefix("↻ ") != Texts().failed]
        unmarked = [text for text in seen if not text.startswith("↻ ")]
        assert len(unmarked) == len(set(unmarked)), "a repetition is marked as one"
        answered = list(dict.fromkeys(text.removeprefix("↻ ") for text in seen))
        assert sorted(answered) == texts, "none is missing"
        in_time = [text for text in answered if text not in left_to_a_person]
        assert in_time == [text for text in texts if text not in left_to_a_person], "in order"
    for task_id in tasks:
        assert (await stage.result(task_id)).outcome is Outcome.ANSWERED
        assert await stage.ledger.run(f"{task_id}.1") is None  # type: ignore[arg-type]


async def replace_dead(gateway: Gateway, workers: list[WorkerProcess], bot: Bot) -> Gateway:
    """What watches over processes does this."""
    while gateway.is_dead or any(worker.is_dead for worker in workers):
        if gateway.is_dead:
            await gateway.dead()
            gateway = await gateway.stage.start_gateway()
        for at, worker in enumerate(workers):
            with suppress(Killed):
                if worker.is_dead:
                    workers[at] = await replaced(gateway, worker, bot.workflow)
    return gateway


async def heal(stage: Stage, gateway: Gateway, workers: list[WorkerProcess], bot: Bot, tasks: list[TaskId]) -> set[str]:
    """Nothing is killed any more; what is dead is replaced, time passes, and it all comes to its end by itself.

    Returns what was left to a person, and let go on: which kills meet which message, the machine decides.
    """
    left_to_a_person: set[str] = set()
    for process in (gateway, *workers):
        process._stops.clear()
    for _ in range(200):
        gateway = await replace_dead(gateway, workers, bot)
        if not await stage.queue.list_open(Selection(), limit=1):
            break
        # In doubt twice, or running in three deaths.
        for reason in (Reason.REPLY_HELD, Reason.POISON):
            left = await stage.queue.list_open(Selection(reason=reason), limit=100)
            left_to_a_person |= {task.head.user_text for task in left}
            await stage.operations.resume_selected(Selection(reason=reason), who="operator")
        await stage.pass_time(7)
    await stage.ended(*tasks)
    return left_to_a_person


@pytest.mark.req("QUE-3")
@pytest.mark.failure("D1")
async def test_a_heartbeat_that_comes_late_takes_nothing_from_a_chat_that_was_claimed_anew(stage: Stage):
    """It finds the former claim gone; the new one, of the same chat and the same worker, goes on."""
    stage.queue_limits = QueueLimits(tasks_per_claim=1)
    bot = Bot()
    let_one_go, let_two_go = bot.hold("one"), bot.hold("two")
    _, worker = await stage.start(bot.workflow)
    heartbeat = worker.hold_at("queue.renew", "before")
    tasks = await stage.write("one", "two")
    await started(stage, bot, "one")
    await stage.pass_time(11)
    await heartbeat.reached()
    let_one_go.set()
    await started(stage, bot, "two")
    heartbeat.open()
    await stage.let_go_on()
    assert bot.running.total() == 1, "the work on the new claim was not taken away"
    let_two_go.set()
    await stage.ended(*tasks)
    assert stage.texts() == ["one", "two"]

    async def let_go() -> bool:
        return worker.worker._claims._held == {}

    await stage.until(let_go)


@pytest.mark.req("QUE-3")
async def test_a_claim_whose_work_is_cancelled_before_its_first_step_is_not_held_for_ever(stage: Stage):
    bot = Bot()
    _, worker = await stage.start(bot.workflow)
    claims, hold = worker.worker._claims, worker.worker._claims._hold

    def hold_and_cancel(claim: Claim) -> None:
        hold(claim)
        claims._held[claim.fence].work.cancel()
        claims._hold = hold  # type: ignore[method-assign]

    claims._hold = hold_and_cancel  # type: ignore[method-assign]
    [task_id] = await stage.write("one")

    async def let_go() -> bool:
        return bool(await stage.look(task_id)) and claims._hold == hold and claims._held == {}

    await stage.until(let_go)
    await stage.pass_time(31)
    await stage.ended(task_id)


@pytest.mark.req("ENV-3", "QUE-3")
async def test_a_key_that_is_used_again_after_it_was_forgotten_is_a_new_message(stage: Stage):
    """The result of the former one is still kept; the new one must not be taken for it."""
    bot = Bot()
    gateway, _ = await stage.start(bot.workflow)
    incoming = stage.incoming("one")
    [first] = [(await gateway.intake.accept(incoming)).task_id]
    await stage.ended(first)
    await stage.pass_time(incoming.receipt_seconds + KEY_GRACE_SECONDS + 1)
    await gateway.supervisor.sweep()
    another = msgspec.structs.replace(stage.incoming("two"), delivery_key=incoming.delivery_key)
    again = await gateway.intake.accept(another)
    assert (again.new, again.task_id) == (True, first)
    assert await stage.said(2) == ["one", "two"]

    async def ended_anew() -> bool:
        run = await stage.ledger.latest_run(first)
        is_over = run is not None and run.generation == 1 and run.status is Status.COMPLETED
        return is_over and await stage.open_count() == 0

    await stage.until(ended_anew)

"""Short messages that are written in a burst: one turn and one answer, whatever is killed when, none of them twice."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import pipeline_stage
import pytest
from pipeline_stage import Gateway, Process, Stage, WorkerProcess, definition_of

import rise
import rise.worker as worker_module
from rise.bursts import CHARS_MAX, MESSAGES_MAX
from rise.channels.http import HttpChannel
from rise.channels.port import Call, Incoming
from rise.definitions.records import BindingRecord, BindingRoute, BurstPolicy, ChannelOwn, KillSwitch
from rise.envelope import Outcome, Reason, RunId, Status, Task, TaskId, reply_id_of, run_id_of
from rise.errors import LedgerSilent, MongoUnavailable, RedisUnavailable, StateConflict, Unavailable
from rise.ledger.late import key_of_run
from rise.ledger.late_ledger import LateLedger
from rise.ledger.port import Run, RunResult, reply_of
from rise.ledger.sqlite import SqliteLedger
from rise.queue.port import NewTask, Selection
from rise.runtime.operations import Operations
from rise.runtime.supervisor import LOST_SECONDS, Duties
from rise.runtime.writing_back import WriteBack
from rise.testing.fakes.late import MemoryLateWrites
from rise.testing.fakes.queue import MemoryQueueState
from rise.testing.telegram import updates

QUIET, LONGEST = 3.0, 10.0
POLICY = BurstPolicy(QUIET, LONGEST)
EDGES = ["before", "after"]
CALLS = {
    "queue.next_in_lane": 2, "queue.get": 4, "queue.renew": 1, "queue.settle": 3,
    "ledger.steps": 5, "ledger.latest_run": 2, "ledger.history": 1, "ledger.save_step": 2, "ledger.save_result": 3,
    "ledger.finish": 2,
}  # fmt: skip
"""How often a worker makes each for a burst of three, at least."""


class Talk:
    """A bot that merges, and what its workflow has seen; its answer is a paid step and names every message."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.seen: list[list[str]] = []
        self.paid: list[str] = []
        self.failures: list[Exception] = []
        """What the next runs fail with."""
        self.held: asyncio.Event | None = None
        self.reached = asyncio.Event()

        @rise.workflow("talks")
        async def talks(turn: rise.Turn) -> None:
            self.seen.append([message.text for message in turn.messages])
            await turn.step("think", self._think, turn.text)
            if self.held is not None:
                self.reached.set()
                await self.held.wait()
            if self.failures:
                raise self.failures.pop(0)
            await turn.reply(" + ".join(turn.text.split("\n")) or "what?")

        self.workflow: Any = talks

    def _think(self, text: str) -> str:
        self.paid.append(text)
        return text

    async def start(self, policy: BurstPolicy | None = POLICY, **fields: Any) -> tuple[Gateway, WorkerProcess]:
        await self.stage.bind(self.workflow, burst=policy, **fields)
        return await self.stage.start(self.workflow)

    async def change(self, policy: BurstPolicy | None, *processes: Process) -> None:
        await self.rebind(*processes, burst=policy)

    async def rebind(self, *processes: Process, **fields: Any) -> None:
        def changed(former: BindingRecord | None) -> BindingRecord:
            assert former is not None
            return msgspec.structs.replace(former, **fields)

        await self.stage.editor.rebind("telegram", self.stage.account, "wf_talks", changed, by="Ann")
        for process in processes:
            await process.bindings.refresh()

    async def answered(self, *task_ids: TaskId, seconds: float = QUIET) -> list[Run]:
        """Once it has been quiet."""
        await self.waits(task_ids[0])
        await self.stage.pass_time(seconds)
        return await self.stage.ended(*task_ids)

    async def runs_two(self) -> tuple[TaskId, TaskId]:
        """Both in one burst, whose workflow goes no further before `held` is set."""
        self.held = asyncio.Event()
        leader, follower = await self.stage.write("one", "two")
        await self.waits(leader)
        await self.stage.pass_time(QUIET)
        await self.reached.wait()
        return leader, follower

    async def waits(self, task_id: TaskId) -> None:
        """Before the clock is moved: a worker that has looked but not settled yet would count from the later time."""
        await self.stage.waiting_for_retry(task_id)

    async def waits_or_ended(self, *task_ids: TaskId) -> None:
        """One of them waits, or none is open any more."""

        async def holds() -> bool:
            looks = [await self.stage.look(task_id) for task_id in task_ids]
            due = [task.due_at_ms for task in looks if task is not None]
            return not due or max(due) > self.stage.queue.now_ms()

        await self.stage.until(holds)

    async def works_off(self, *task_ids: TaskId) -> None:
        """When it has been quiet there comes a worker."""
        await self.stage.pass_time(QUIET)
        await self.stage.start_worker(self.workflow)
        await self.stage.ended(*task_ids)

    async def merged(self, leader: TaskId, *followers: TaskId) -> None:
        """The leader's answer is for all of them, and each says so."""
        runs = [await self.stage.ledger.latest_run(task_id) for task_id in (leader, *followers)]
        assert all(run is not None and run.status is Status.COMPLETED for run in runs)
        assert [run.outcome for run in runs if run] == [Outcome.ANSWERED, *[Outcome.MERGED] * len(followers)]
        assert [run.merged_into for run in runs if run] == [None, *[leader] * len(followers)]
        assert runs[0] is not None
        assert runs[0].merged == list(followers)

    async def said(self) -> list[tuple[str, str]]:
        kept = await self.stage.ledger.history("telegram", self.stage.account, "42", limit=99)
        return [(turn.role, turn.text) for turn in kept]


@pytest.fixture
def talk(stage: Stage) -> Talk:
    return Talk(stage)


@pytest.fixture
def operations(stage: Stage) -> Operations:
    return Operations(stage.queue, stage.ledger, stage.bus, stage.clock)


class Late:
    """What waits for the ledger of the processes that are started from now on, and how well that answers them."""

    def __init__(self, stage: Stage) -> None:
        self.writes = MemoryLateWrites(MemoryQueueState())
        self.is_silent = False
        self.takes_writes = True
        self._stage = stage

    async def hold_up(self) -> None:
        """By something behind which everything waits."""
        await self.writes.put("another", "another chat", b'{"type":"of a newer version"}')

    async def write_back(self) -> None:
        """All of it."""
        stage = self._stage
        await self.writes.remove(["another"])
        back = WriteBack(late=self.writes, ledger=stage.ledger, queue=stage.queue, bus=stage.bus, clock=stage.clock)
        await back.write_back()

    def ledger_on(self, database: Any) -> LateLedger:
        away: Any = _Away(SqliteLedger(database), self)
        return LateLedger(away, self.writes, self._stage.clock)


class _Away:
    def __init__(self, ledger: SqliteLedger, late: Late) -> None:
        self._ledger = ledger
        self._late = late

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            is_write = name in ("save_result", "save_step", "add_attempt")
            if self._late.is_silent or (is_write and not self._late.takes_writes):
                raise MongoUnavailable("it does not answer")
            return await method(*args, **kwargs)

        return call


@pytest.fixture
def late(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Late:
    late = Late(stage)
    monkeypatch.setattr(pipeline_stage, "SqliteLedger", late.ledger_on)
    return late


async def go_on(talk: Talk, *dead: Process) -> None:
    """Whoever died is replaced."""
    for process in dead:
        await process.dead()
    gateway = next(one for one in talk.stage._processes if isinstance(one, Gateway))
    await gateway.supervisor.reap()
    await talk.stage.start_worker(talk.workflow)


# --- what is a burst --------------------------------------------------------------------------------------


@pytest.mark.req("CHN-3")
async def test_a_burst_is_one_turn_with_every_message_and_its_bytes_in_order_and_one_answer(stage: Stage):
    turns = []

    @rise.workflow("looks")
    async def looks(turn: rise.Turn) -> None:
        turns.append(turn)
        await turn.reply("What is it?", reply_to=turn.messages[-1].message_id)

    await stage.bind(looks, burst=POLICY)
    await stage.start(looks)
    first, *others = tasks = await stage.write("hi", "I have", "a question")
    await stage.waiting_for_retry(first)
    assert turns == []
    await stage.pass_time(QUIET)
    await stage.ended(*tasks)
    [turn] = turns
    kept = [await stage.ledger.archived(task_id) for task_id in tasks]
    assert turn.text == "hi\nI have\na question"
    assert [message.text for message in turn.messages] == ["hi", "I have", "a question"]
    assert [message.task_id for message in turn.messages] == tasks
    assert [message.raw for message in turn.messages] == [task.raw for task in kept if task]
    assert [message.update["message"]["text"] for message in turn.messages] == ["hi", "I have", "a question"]
    assert (turn.raw, turn.task_id) == (turn.messages[0].raw, first)
    assert stage.texts() == ["What is it?"]
    [call] = stage.calls("sendMessage")
    last = turn.messages[-1].update["message"]["message_id"]
    assert call.params["reply_parameters"]["message_id"] == last
    run = await stage.result(first)
    assert run.merged == others
    assert [one["outcome"] for one in stage.settled if one["task_id"] in others] == [Outcome.MERGED] * 2


@pytest.mark.req("CHN-3")
async def test_without_a_policy_each_message_is_a_turn_and_its_own_only_message(stage: Stage, talk: Talk):
    await talk.start(None)
    tasks = await stage.write("one", "two")
    await stage.ended(*tasks)
    assert talk.seen == [["one"], ["two"]]
    assert stage.texts() == ["one", "two"]


@pytest.mark.req("CHN-3", "WFL-4")
async def test_history_has_each_message_of_a_burst_once_and_then_the_answer(stage: Stage, talk: Talk):
    await talk.start()
    tasks = await stage.write("one", "two", "three")
    await talk.answered(*tasks)
    await talk.merged(*tasks)
    assert await talk.said() == [
        *(("user", text) for text in ("one", "two", "three")),
        ("assistant", "one + two + three"),
    ]


@pytest.mark.req("CHN-3")
async def test_each_message_prolongs_the_quiet_time_until_the_longest_wait_is_over(stage: Stage, talk: Talk):
    await talk.start()
    tasks = await stage.write("0")
    for text in ("2", "4", "6", "8"):
        await talk.waits(tasks[0])
        await stage.pass_time(2.0)
        tasks += await stage.write(text)
    await talk.waits(tasks[0])
    assert talk.seen == [], "it was never quiet for so long"
    await stage.pass_time(2.0)
    await stage.ended(*tasks)
    assert talk.seen == [["0", "2", "4", "6", "8"]]
    assert stage.texts() == ["0 + 2 + 4 + 6 + 8"]


@pytest.mark.req("CHN-3")
async def test_what_is_a_burst_does_not_depend_on_when_a_worker_comes_to_it(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two")
    await stage.pass_time(QUIET + 1)
    tasks += await stage.write("three")
    for text in ("four", "five", "six", "seven"):
        await stage.pass_time(QUIET)
        tasks += await stage.write(text)
    await stage.pass_time(60)
    await stage.start_worker(talk.workflow)
    await stage.ended(*tasks)
    assert talk.seen == [["one", "two"], ["three", "four", "five", "six"], ["seven"]]


@pytest.mark.req("CHN-3", "QUE-2")
async def test_other_chats_go_on_while_one_waits(stage: Stage, talk: Talk):
    await talk.start()
    [waiting] = await stage.write("hm", chat=42)
    await talk.waits(waiting)
    others = await stage.write("/now", chat=43)
    await stage.ended(*others)
    await stage.ended(await stage.tap("yes", chat=42))
    assert talk.seen == [["/now"], ["yes"]]


@pytest.mark.req("CHN-3")
@pytest.mark.parametrize("what", ["command", "edit", "media without text", "long text", "another person"])
async def test_what_is_no_short_text_of_the_same_person_ends_a_burst_and_is_a_turn_of_its_own(
    stage: Stage, talk: Talk, what: str
):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    chat = -7
    tasks = await stage.write("one", "two", chat=chat, user_id=1)
    message = updates.message("x", chat_id=chat, user_id=2 if what == "another person" else 1)["message"]
    match what:
        case "command":
            message |= {"text": "/help"}
        case "media without text":
            del message["text"]
            message["photo"] = [{"file_id": "p"}]
        case "long text":
            message["text"] = "x" * (CHARS_MAX + 1)
    edited = updates.edited_message("x", message_id=1, chat_id=chat, user_id=1)
    ending = await stage.take(stage.telegram.add_update(edited if what == "edit" else {"message": message}))
    tasks += [ending, *await stage.write("three", chat=chat, user_id=1)]
    await talk.works_off(*tasks)
    assert talk.seen[0] == ["one", "two"]
    assert talk.seen[-1] == ["three"]
    assert len(talk.seen) == 3


@pytest.mark.req("CHN-3")
async def test_nobody_waits_for_more_of_what_is_at_an_end(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two", "/three")
    await stage.start_worker(talk.workflow)
    await stage.ended(*tasks)
    assert talk.seen == [["one", "two"], ["/three"]]


@pytest.mark.req("CHN-3", "BND-4")
async def test_a_message_for_another_binding_ends_a_burst(stage: Stage, talk: Talk):
    @rise.workflow("other")
    async def other(turn: rise.Turn) -> None:
        await turn.reply(f"other: {turn.text}")

    await stage.bind(talk.workflow, burst=POLICY)
    await stage.bind(other, is_default=False, burst=POLICY, routes=(BindingRoute("command", "/other"),))
    await stage.start_gateway()
    tasks = await stage.write("one", "two", "/other", "three")
    await stage.pass_time(QUIET)
    await stage.start_worker(talk.workflow, other)
    await stage.ended(*tasks)
    assert stage.texts() == ["one + two", "other: /other", "three"]


@pytest.mark.req("CHN-3")
async def test_in_a_group_two_people_who_write_at_once_are_not_put_together(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    ann, ben = 1, 2
    tasks = []
    for text, user_id in (("a1", ann), ("a2", ann), ("b1", ben), ("b2", ben), ("a3", ann)):
        tasks += await stage.write(text, chat=-7, user_id=user_id)
    await talk.works_off(*tasks)
    assert talk.seen == [["a1", "a2"], ["b1", "b2"], ["a3"]]
    assert stage.texts(-7) == ["a1 + a2", "b1 + b2", "a3"]


@pytest.mark.req("CHN-3")
async def test_a_burst_has_a_limit_and_what_is_beyond_it_is_the_next(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write(*(str(number) for number in range(MESSAGES_MAX + 2)))
    await talk.works_off(*tasks)
    assert [len(messages) for messages in talk.seen] == [MESSAGES_MAX, 2]


@pytest.mark.req("CHN-3", "QUE-2")
async def test_what_comes_late_stands_where_the_platform_dates_it(stage: Stage, talk: Talk):
    await talk.start()
    late = stage.incoming("one")
    tasks = await stage.write("two", "three")
    await talk.waits(tasks[0])
    gateway = stage._processes[0]
    tasks.insert(0, (await gateway.intake.accept(late)).task_id)
    await talk.answered(*tasks)
    assert talk.seen == [["one", "two", "three"]]
    await talk.merged(*tasks)


@pytest.mark.req("CHN-3", "BND-9")
async def test_a_burst_counts_once_for_the_rate_of_its_chat(stage: Stage, talk: Talk):
    await talk.start(own=ChannelOwn(rate_limit_per_min=1))
    tasks = await stage.write("one", "two")
    await talk.answered(*tasks)
    [late] = await stage.write("three")
    await talk.waits(late)
    await stage.pass_time(QUIET)
    await talk.waits(late)
    assert len(talk.seen) == 1
    await stage.pass_time(60)
    await stage.ended(late)
    assert talk.seen == [["one", "two"], ["three"]]


@pytest.mark.req("CHN-3", "ENV-5")
async def test_a_program_that_calls_for_a_chat_is_told_which_message_answered(stage: Stage, talk: Talk):
    """Of calls without a chat each has a lane of its own: nothing can follow, and nobody waits."""
    await stage.bind(talk.workflow, channel="http", burst=POLICY)
    gateway, _ = await stage.start(talk.workflow)

    async def call(key: str, **fields: Any) -> TaskId:
        body = json.dumps({"userText": key} | fields).encode()
        asked = HttpChannel().read_apply(body, principal="p", key=key, request_id="r", trace_id=None)
        return (await gateway.intake.accept(asked.incoming)).task_id

    [alone] = await stage.ended(await call("alone"))
    assert alone.result["text"] == "alone"
    tasks = [await call(key, metadata={"chat_id": "c"}) for key in ("one", "two")]
    one, two = await talk.answered(*tasks)
    assert (one.result["text"], one.result["merged"]) == ("one + two", [tasks[1]])
    assert (two.outcome, two.result) == (Outcome.MERGED, {"mergedInto": tasks[0]})


@pytest.mark.req("CHN-3", "CHN-4")
async def test_a_message_that_waits_for_the_rest_of_its_burst_is_not_called_late(stage: Stage, talk: Talk):
    stage.duties = Duties(late_after_seconds=5.0, late_text="Late.")
    gateway, worker = await talk.start()
    talk.held = asyncio.Event()
    tasks = await stage.write("one")
    await talk.waits(tasks[0])
    await worker.stop()
    await stage.pass_time(6)
    await gateway.supervisor.tell()
    assert await stage.notices(*tasks) == []
    await stage.pass_time(LONGEST)
    await gateway.supervisor.tell()
    assert await stage.said(1) == ["Late."]


# --- tries, and what changes in between -------------------------------------------------------------------


@pytest.mark.req("CHN-3", "WRK-5")
async def test_every_try_has_the_messages_of_the_first_and_pays_once(stage: Stage, talk: Talk):
    await talk.start()
    talk.failures = [RuntimeError("not today")]
    tasks = await stage.write("one", "two")
    await talk.waits(tasks[0])
    await stage.pass_time(QUIET)
    await stage.waiting_for_retry(tasks[0], attempts=1)
    later = await stage.write("three")
    await stage.pass_time(20)
    await stage.ended(*tasks)
    await stage.ended(*later)
    assert talk.seen == [["one", "two"], ["one", "two"], ["three"]]
    assert talk.paid == ["one\ntwo", "three"]
    await talk.merged(*tasks)


@pytest.mark.req("CHN-3")
async def test_a_policy_that_changes_while_a_burst_waits_holds_for_what_has_not_begun(stage: Stage, talk: Talk):
    processes = await talk.start()
    tasks = await stage.write("one", "two")
    await talk.waits(tasks[0])
    await talk.change(None, *processes)
    await stage.pass_time(QUIET)
    await stage.ended(*tasks)
    assert talk.seen == [["one"], ["two"]]
    await talk.change(BurstPolicy(1.0, 2.0), *processes)
    tasks = await stage.write("three", "four")
    await talk.answered(*tasks, seconds=1.0)
    assert talk.seen[2:] == [["three", "four"]]


@pytest.mark.req("CHN-3")
@pytest.mark.parametrize("begins_merging", [True, False])
async def test_a_run_that_has_begun_keeps_its_messages_whatever_the_policy_says_by_then(
    stage: Stage, talk: Talk, begins_merging: bool
):
    processes = await talk.start(POLICY if begins_merging else None)
    talk.failures = [RuntimeError("not today")]
    tasks = await stage.write("one", "two")
    if begins_merging:
        await talk.waits(tasks[0])
        await stage.pass_time(QUIET)
    await stage.waiting_for_retry(tasks[0], attempts=1)
    await talk.change(None if begins_merging else POLICY, *processes)
    await stage.pass_time(20)
    await stage.ended(*tasks)
    assert talk.seen == ([["one", "two"]] * 2 if begins_merging else [["one"], ["one"], ["two"]])


# --- whatever is killed -----------------------------------------------------------------------------------


@pytest.mark.req("CHN-3", "QUE-3", "WRK-4", "WRK-5")
@pytest.mark.failure("D1", "G1")
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    "step",
    [
        *("queue.claim", "queue.next_in_lane", "queue.get", "queue.renew", "queue.settle"),
        *("ledger.steps", "ledger.run", "ledger.latest_run", "ledger.history"),
        *("ledger.save_step", "ledger.save_result", "ledger.finish"),
    ],
)
async def test_a_worker_killed_anywhere_leaves_one_answer_for_the_whole_burst(
    stage: Stage, talk: Talk, step: str, edge: Any, nth: int
):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two", "three")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at(step, edge, nth=nth)
    await stage.start_new_worker(worker, talk.workflow)
    if nth <= CALLS.get(step, nth):
        await go_on(talk, worker)
    await stage.ended(*tasks)
    assert stage.texts() == ["one + two + three"]
    assert {tuple(messages) for messages in talk.seen} == {("one", "two", "three")}
    assert talk.paid == ["one\ntwo\nthree"] or (step, edge, nth) == ("ledger.save_step", "before", 2)
    await talk.merged(*tasks)
    assert await talk.said() == [
        *(("user", text) for text in ("one", "two", "three")),
        ("assistant", "one + two + three"),
    ]
    assert await stage.open_count() == 0


@pytest.mark.req("CHN-3", "CPY-6")
async def test_a_follower_of_which_the_ledger_cannot_say_whether_it_was_answered_is_not_run(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    one, two = await stage.write("one", "two")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    # Of the run it is asked for the leader, for who follows it, and when that one's turn has come.
    for question, nth in (("ledger.steps", 3), ("ledger.run", 3)):
        worker.fail_at(question, "before", LedgerSilent("MongoDB does not answer"), nth=nth)
    await stage.start_new_worker(worker, talk.workflow)
    await stage.waiting_for_retry(two)
    await stage.pass_time(60)
    await stage.ended(one, two)
    assert talk.seen == [["one", "two"]]
    await talk.merged(one, two)


@pytest.mark.req("CHN-3", "QUE-3")
async def test_what_comes_while_the_worker_of_a_burst_is_replaced_is_another_turn(stage: Stage, talk: Talk):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_step", "after")
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    later = await stage.write("three")
    await go_on(talk, worker)
    await stage.ended(*tasks)
    await talk.answered(*later)
    assert talk.seen == [["one", "two"], ["three"]]


@pytest.mark.req("CHN-3", "QUE-3")
@pytest.mark.failure("B4")
@pytest.mark.parametrize("step", ["ledger.save_step", "ledger.save_result", "queue.renew"])
@pytest.mark.parametrize("edge", EDGES)
async def test_a_worker_that_was_frozen_in_the_middle_of_a_burst_changes_nothing_when_it_wakes(
    stage: Stage, talk: Talk, step: str, edge: Any
):
    """The other one has other messages, where the first had not said yet which they are."""
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two")
    await stage.pass_time(QUIET)
    frozen = stage.new_worker(talk.workflow)
    held = frozen.hold_at(step, edge)
    await stage.start_new_worker(frozen, talk.workflow)
    await held.reached()
    frozen.fail_at("queue.claim", "before", ConnectionError("it is frozen"), times=10_000)
    tasks += await stage.write("three")
    await stage.queue.reclaim(frozen.bus.member)
    await stage.start_worker(talk.workflow)
    await talk.waits_or_ended(*tasks)
    await stage.pass_time(QUIET)
    await stage.ended(*tasks)
    held.open()
    await stage.let_go_on()
    await stage.let_go_on()
    answers = stage.texts()
    assert " + ".join(answers).split(" + ") == ["one", "two", "three"]
    runs = [await stage.result(task_id) for task_id in tasks]
    assert [run.outcome for run in runs].count(Outcome.ANSWERED) == len(answers)
    assert await stage.open_count() == 0


@pytest.mark.req("CHN-3", "QUE-2")
async def test_two_workers_answer_many_bursts_of_many_chats_once_each_and_in_order(stage: Stage, talk: Talk):
    await talk.start()
    await stage.start_worker(talk.workflow)
    tasks: list[TaskId] = []
    chats = range(1, 7)
    for part in ("a", "b", "c"):
        for number in range(3):
            for chat in chats:
                tasks += await stage.write(f"{part}{number}", chat=chat)
        for leader in tasks[-3 * len(chats) :][: len(chats)]:
            await talk.waits(leader)
        await stage.pass_time(QUIET)
        await stage.ended(*tasks)
        await stage.pass_time(1)
    for chat in chats:
        assert stage.texts(chat) == [f"{part}0 + {part}1 + {part}2" for part in ("a", "b", "c")]


# --- what people do ---------------------------------------------------------------------------------------


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_follower_that_is_dropped_while_it_waits_is_not_answered(
    stage: Stage, talk: Talk, operations: Operations
):
    await talk.start()
    tasks = await stage.write("one", "two", "three")
    await talk.waits(tasks[0])
    await operations.drop(tasks[1], who="Ann")
    await stage.pass_time(QUIET)
    await stage.ended(tasks[0], tasks[2])
    assert talk.seen == [["one", "three"]]
    await talk.merged(tasks[0], tasks[2])
    assert (await stage.result(tasks[1])).status is Status.DROPPED


@pytest.mark.req("CHN-3", "SUS-3")
async def test_an_answer_that_speaks_of_a_follower_which_was_dropped_meanwhile_is_not_given(
    stage: Stage, talk: Talk, operations: Operations
):
    await talk.start()
    talk.held = asyncio.Event()
    tasks = await stage.write("one", "two", "three")
    await talk.waits(tasks[0])
    await stage.pass_time(QUIET)
    await talk.reached.wait()
    await operations.drop(tasks[2], who="Ann")
    talk.held.set()
    await stage.ended(*tasks[:2])
    assert talk.seen == [["one", "two", "three"], ["one", "two"]]
    assert talk.paid == ["one\ntwo\nthree", "one\ntwo"], "what was computed for others is not taken for these"
    assert stage.texts() == ["one + two"]
    await talk.merged(*tasks[:2])


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_leader_that_is_dropped_while_it_runs_leaves_its_followers_a_turn_of_their_own(
    stage: Stage, talk: Talk, operations: Operations
):
    await talk.start()
    talk.held = asyncio.Event()
    tasks = await stage.write("one", "two", "three")
    await talk.waits(tasks[0])
    await stage.pass_time(QUIET)
    await talk.reached.wait()
    await operations.drop(tasks[0], who="Ann")
    talk.held.set()
    await stage.ended(*tasks)
    assert stage.texts() == ["two + three"]
    await talk.merged(*tasks[1:])


async def suspended_leader(talk: Talk, *, followers: Sequence[str], failures: int = 4) -> list[TaskId]:
    """A leader that has failed on every try."""
    stage = talk.stage
    await talk.start()
    talk.failures = [RuntimeError("not today") for _ in range(failures)]
    tasks = await stage.write("one", *followers)
    await talk.waits(tasks[0])
    await stage.pass_time(QUIET)
    await fails_for_good(stage, tasks[0])
    return tasks


async def fails_for_good(stage: Stage, task_id: TaskId) -> None:
    for attempts, seconds in ((1, 20), (2, 80), (3, 220)):
        await stage.waiting_for_retry(task_id, attempts=attempts)
        await stage.pass_time(seconds)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_leader_that_is_suspended_lets_its_followers_go_on_and_is_answered_alone_when_it_is_resumed(
    stage: Stage, talk: Talk, operations: Operations
):
    tasks = await suspended_leader(talk, followers=("two", "three"))
    await stage.ended(*tasks[1:])
    await talk.merged(*tasks[1:])
    await operations.resume(tasks[0], who="Ann")
    await stage.ended(tasks[0])
    assert talk.seen == [["one", "two", "three"]] * 4 + [["two", "three"], ["one"]]
    assert [text for text in stage.texts() if not text.startswith("Sorry")] == ["two + three", "one"]
    assert talk.paid == ["one\ntwo\nthree", "two\nthree", "one"]
    assert (await stage.result(tasks[0])).merged == []


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_follower_that_has_been_tried_by_itself_goes_on_by_itself_when_its_leader_is_resumed(
    stage: Stage, talk: Talk, operations: Operations
):
    tasks = await suspended_leader(talk, followers=("two",), failures=5)
    await stage.waiting_for_retry(tasks[1], attempts=1)
    await operations.resume(tasks[0], who="Ann")
    await stage.ended(tasks[0])
    await stage.pass_time(20)
    await stage.ended(tasks[1])
    assert talk.seen == [["one", "two"]] * 4 + [["two"], ["one"], ["two"]]
    assert talk.paid == ["one\ntwo", "two", "one"]


@pytest.mark.req("CHN-3", "BND-7")
async def test_a_follower_that_waits_for_a_person_is_not_taken_along(stage: Stage, talk: Talk, operations: Operations):
    processes = await talk.start()
    talk.failures = [RuntimeError("not today")]
    one, two = await stage.write("one", "two")
    await talk.waits(one)
    await stage.pass_time(QUIET)
    await stage.waiting_for_retry(one, attempts=1)
    await talk.rebind(*processes, kill_switch=KillSwitch("it raves", "now", "Ann"))
    await stage.pass_time(20)
    for task_id in (one, two):
        await stage.suspended(task_id, Reason.KILL_SWITCH)
    await talk.rebind(*processes, kill_switch=None)
    await operations.resume(one, who="Ann")
    await stage.ended(one)
    assert talk.seen == [["one", "two"], ["one"]]
    await stage.suspended(two, Reason.KILL_SWITCH)
    await operations.resume(two, who="Ann")
    await stage.ended(two)
    assert talk.seen[2:] == [["two"]]


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_leader_that_is_resumed_before_its_followers_began_takes_them_along_again(
    stage: Stage, talk: Talk, operations: Operations
):
    tasks = await suspended_leader(talk, followers=())
    assert talk.seen == [["one"]] * 4
    later = await stage.write("two", "three")
    await talk.waits(later[0])
    await operations.resume(tasks[0], who="Ann")
    await stage.ended(tasks[0])
    assert talk.seen[4:] == [["one"]], "it had begun without them"
    await stage.pass_time(QUIET)
    await stage.ended(*later)
    await talk.merged(*later)


@pytest.mark.req("CHN-3", "SUS-3")
@pytest.mark.failure("D1", "D4")
@pytest.mark.parametrize("ending", ["dropped", "resumed", "frozen"])
async def test_what_a_leader_took_along_waits_until_that_one_has_come_to_a_result(
    stage: Stage, talk: Talk, operations: Operations, ending: str
):
    """Its worker is gone before it has saved that; the next one fails for good, and the leader waits for a person."""
    await stage.bind(talk.workflow, burst=POLICY)
    gateway = await stage.start_gateway()
    leader, *followers = await stage.write("one", "two", "three")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", "before", nth=3)
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    talk.failures = [RuntimeError("not today")] * 4
    await go_on(talk, worker)
    await fails_for_good(stage, leader)
    for follower in followers:
        await stage.until(partial(has_status, stage, follower, Status.REPLYING))
        assert (await stage.result(follower)).merged_into == leader
        with pytest.raises(StateConflict, match=f"it is answered with {leader}"):
            await operations.drop(follower, who="Ann")
    match ending:
        case "dropped":
            await operations.drop(leader, who="Ann")
        case "resumed":
            await operations.resume(leader, who="Ann")
            await stage.said(2)
        case "frozen":
            await save_late(stage, leader, followers)
    await stage.pass_time(61)
    await gateway.supervisor.sweep()
    await stage.ended(leader, *followers)
    texts = [text for text in stage.texts() if not text.startswith("Sorry")]
    assert texts == (["two", "three"] if ending == "dropped" else ["one + two + three"])
    if ending != "dropped":
        await talk.merged(leader, *followers)


class LostWhenRead(MemoryLateWrites):
    """What waits for the ledger; all of it is lost as soon as these have been read, one after the other."""

    def __init__(self) -> None:
        super().__init__(MemoryQueueState())
        self.until_read: list[str] = []
        self.was_lost = asyncio.Event()

    async def get(self, key: str) -> bytes | None:
        found = await super().get(key)
        if self.until_read[:1] == [key] and found is not None:
            del self.until_read[0]
            if not self.until_read:
                self._state.late.clear()
                self.was_lost.set()
        return found


@pytest.mark.req("CHN-3", "CPY-6")
@pytest.mark.failure("F3")
async def test_what_was_taken_along_does_not_end_by_an_answer_that_may_still_be_lost(
    stage: Stage, talk: Talk, monkeypatch: pytest.MonkeyPatch
):
    """The answer for both waits for the ledger in Redis, which is emptied as the one that follows is about to end."""
    late = LostWhenRead()

    def ledger_with_late(database: Any) -> LateLedger:
        return LateLedger(SqliteLedger(database), late, stage.clock)

    monkeypatch.setattr(pipeline_stage, "SqliteLedger", ledger_with_late)
    await late.put("another", "another chat", b'{"type":"of a newer version"}')  # behind which everything waits
    gateway, _ = await talk.start()
    leader, follower = await stage.write("one", "two")
    late.until_read = [key_of_run(run_id_of(follower, 0)), key_of_run(run_id_of(leader, 0))]
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await late.was_lost.wait()
    await stage.until(partial(is_worked_on_no_more, stage, follower))
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.until(partial(has_result, stage, leader))
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader, follower)
    assert stage.texts() == ["one + two"]


@pytest.mark.req("CHN-3", "CPY-6", "WRK-4")
@pytest.mark.failure("F1")
async def test_what_was_taken_along_is_not_run_when_merging_is_switched_off_while_the_ledger_is_away(
    stage: Stage, talk: Talk, late: Late
):
    """That it has ended with another waits in Redis; nothing else tells it from what nobody has begun."""
    await late.hold_up()
    gateway, worker = await talk.start()
    leader, follower = await talk.runs_two()
    await talk.change(None, gateway, worker)
    later = await stage.write("three")
    worker.fail_at("ledger.steps", "before", LedgerSilent("MongoDB does not answer"), times=2)
    talk.held.set()
    for task_id in (leader, follower, *later):
        await stage.until(partial(is_worked_on_no_more, stage, task_id))
    assert talk.seen == [["one", "two"], ["three"]]
    await late.write_back()
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader, follower, *later)
    assert stage.texts() == ["one + two", "three"]
    await talk.merged(leader, follower)


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_what_is_dropped_is_not_answered_with_another_whose_end_has_to_wait_for_the_ledger(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    """Put into Redis, its end by that answer would come second, and nobody would hear of it."""
    await late.hold_up()
    await talk.start()
    leader, follower = await talk.runs_two()
    assert (await operations.drop(follower, who="Ann")).status is Status.DROPPED
    talk.held.set()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    assert talk.seen == [["one", "two"], ["one"]]
    await late.write_back()
    await stage.ended(leader)
    assert stage.texts() == ["one"]
    dropped = await stage.ledger.latest_run(follower)
    assert dropped is not None and dropped.status is Status.DROPPED
    assert await late.writes.depth() == 0


class _SlowToSay:
    """A ledger that takes its time for what it knows of a run."""

    def __init__(self, ledger: Any) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def run(self, run_id: RunId) -> Run | None:
        self.asked.set()
        await self.answers.wait()
        return await self._ledger.run(run_id)


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_who_drops_what_is_answered_with_another_is_told_so_also_where_the_ledger_was_slow_to_say_anything(
    stage: Stage, talk: Talk, late: Late
):
    await late.hold_up()
    gateway, _ = await talk.start()
    leader, follower = await talk.runs_two()
    slow: Any = _SlowToSay(stage.ledger)
    operations = Operations(stage.queue, LateLedger(slow, late.writes, stage.clock), stage.bus, stage.clock)
    dropping = asyncio.create_task(operations.drop(follower, who="Ann"))
    await slow.asked.wait()
    talk.held.set()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    slow.answers.set()
    with pytest.raises(StateConflict, match=f"it is answered with {leader}"):
        await dropping
    await late.write_back()
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader, follower)
    assert stage.texts() == ["one + two"]
    await talk.merged(leader, follower)


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_a_burst_that_is_run_again_while_something_waits_for_the_ledger_is_answered_once_more(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    """Those it takes along have left the queue long ago, and the ledger knows that they ended with it."""
    await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    await late.hold_up()
    await operations.run_again(leader, who="Ann")
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    assert talk.seen == [["one", "two"], ["one", "two"]]


@pytest.mark.req("CHN-3", "CPY-6", "QUE-3")
@pytest.mark.failure("D1", "F1")
@pytest.mark.parametrize(("edge", "nth"), [("after", 1), ("before", 2), ("after", 2)])
async def test_a_worker_killed_while_ends_of_a_burst_wait_for_the_ledger_leaves_one_answer(
    stage: Stage, talk: Talk, late: Late, edge: Any, nth: int
):
    await late.hold_up()
    await stage.bind(talk.workflow, burst=POLICY)
    gateway = await stage.start_gateway()
    tasks = await stage.write("one", "two")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", edge, nth=nth)
    await stage.start_new_worker(worker, talk.workflow)
    await go_on(talk, worker)
    await stage.until(partial(is_worked_on_no_more, stage, tasks[0]))
    await late.write_back()
    await stage.ended(tasks[0])
    # The second may have found its leader's answer still waiting: then a later look ends it.
    await stage.until(partial(is_worked_on_no_more, stage, tasks[1]))
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(*tasks)
    assert stage.texts() == ["one + two"]


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("how", ["silent", "takes no writes"])
async def test_a_burst_that_is_run_again_is_answered_also_when_the_ledger_does_not_take_it(
    stage: Stage, talk: Talk, operations: Operations, late: Late, how: str
):
    await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    talk.held, talk.reached = asyncio.Event(), asyncio.Event()
    await operations.run_again(leader, who="Ann")
    await talk.reached.wait()
    late.is_silent, late.takes_writes = how == "silent", False
    talk.held.set()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    assert talk.seen == [["one", "two"], ["one", "two"]]
    late.is_silent, late.takes_writes = False, True
    await late.write_back()
    await stage.pass_time(20)  # the sender asked it in vain, and pauses
    await stage.ended(leader)
    assert stage.texts() == ["one + two", "one + two"]


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_what_was_dropped_and_run_again_is_not_answered_with_its_former_burst_by_a_silent_ledger(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    talk.held = asyncio.Event()
    gateway, _ = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await talk.reached.wait()
    await operations.drop(follower, who="Ann")
    await operations.run_again(follower, who="Ann")
    late.is_silent = True
    talk.held.set()
    await stage.waiting_for_retry(leader)
    late.is_silent = False
    await late.write_back()
    await stage.pass_time(20)
    await gateway.supervisor.sweep()
    await talk.waits_or_ended(leader, follower)
    await stage.pass_time(20)
    await stage.ended(leader, follower)
    assert sorted(" + ".join(stage.texts()).split(" + ")) == ["one", "two"]


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("F1")
async def test_a_burst_that_is_run_again_waits_for_a_ledger_that_goes_away_before_it_says_who_is_in_it(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    """That the one that follows ends with it once more waits in Redis; that it had ended before is in the ledger."""

    async def go_away() -> None:
        late.is_silent = True

    gateway, worker = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    await worker.stop()
    await operations.run_again(leader, who="Ann")
    worker = stage.new_worker(talk.workflow)
    worker.at("ledger.save_result", "before", go_away, nth=1)
    worker.die_at("ledger.save_result", "after", nth=1)
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    late.is_silent = False
    await stage.pass_time(2)
    await gateway.supervisor.reap()
    worker = stage.new_worker(talk.workflow)
    for asked in ("ledger.latest_run", "ledger.finished_among"):  # whichever tells
        worker.at(asked, "before", go_away, nth=1)
    await stage.start_new_worker(worker, talk.workflow)
    await stage.waiting_for_retry(leader)
    late.is_silent = False
    await late.write_back()
    assert [attempt.error for attempt in await stage.ledger.attempts(run_id_of(leader, 1))] == [], "nothing was tried"
    await stage.pass_time(20)
    await stage.until(partial(is_over, stage, run_id_of(leader, 1)))
    assert stage.texts() == ["one + two", "one + two"]


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("D1")
async def test_what_was_run_again_is_not_run_by_itself_when_redis_loses_that_it_ended_with_another(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    """Of its former run the ledger has an end, and that is not the one that is lost."""
    await stage.bind(talk.workflow, burst=POLICY)
    gateway = await stage.start_gateway()
    leader, follower = await stage.write("one", "two")
    await operations.drop(follower, who="Ann")
    await operations.run_again(follower, who="Ann")
    await late.hold_up()
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    gate = worker.hold_at("ledger.save_result", "after", nth=1)
    await stage.start_new_worker(worker, talk.workflow)
    await gate.reached()
    await late.writes.remove([waiting.key for waiting in await late.writes.page(limit=9)])
    gate.open()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    await late.write_back()
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader)
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader, follower)
    assert stage.texts() == ["one + two"]


@pytest.mark.req("CHN-3", "SUS-3")
@pytest.mark.failure("D1")
async def test_what_was_run_again_does_not_end_by_the_answer_of_its_former_run(
    stage: Stage, talk: Talk, operations: Operations
):
    """Both are run again, the worker dies between their ends, and the one that leads is dropped."""
    _, worker = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    await worker.stop()
    await operations.run_again(leader, who="Ann")
    await operations.run_again(follower, who="Ann")
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", "after", nth=1)
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    await operations.drop(leader, who="Ann")
    await go_on(talk, worker)
    await stage.ended(follower)
    assert stage.texts() == ["one + two", "two"]


@pytest.mark.req("CHN-3", "SUS-3")
@pytest.mark.failure("D1")
async def test_a_result_of_a_former_version_answers_those_that_it_named_in_whatever_run_they_ended(
    stage: Stage, talk: Talk, operations: Operations
):
    """It did not say which, and both versions may work beside each other."""
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    leader, follower = await stage.write("one", "two")
    await operations.drop(follower, who="Ann")
    await operations.run_again(follower, who="Ann")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", "before", nth=2)  # the follower has ended
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    task = await stage.queue.get(leader)
    assert task is not None
    call = Call("sendMessage", {"chat_id": 42, "text": "one + two"}, "one + two")
    reply = reply_of(task.head, task.run_id, reply_id_of(task.run_id, 0), call)
    result = RunResult(outcome=Outcome.ANSWERED, value={"text": call.text, "merged": [follower]})
    await stage.ledger.save_result(task, result, [reply], [], deliver=True)
    await go_on(talk, worker)
    await stage.ended(leader, follower)
    assert stage.texts() == ["one + two"]
    again = await stage.ledger.run(run_id_of(follower, 1))
    assert again is not None and again.merged_into == leader


@pytest.mark.req("CHN-3", "ENV-6")
@pytest.mark.failure("D1")
async def test_what_a_former_message_answered_ends_nothing_of_the_one_that_has_its_key_now(
    stage: Stage, talk: Talk, operations: Operations
):
    """Its answer went out days later, so that it is known for longer than what it had taken along."""
    _, worker = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    task = await stage.queue.get(leader)
    assert task is not None
    former = Task(msgspec.structs.replace(task.head, accepted_at_ms=0, raw_sha256="f" * 64), b"", task.progress)
    value = {"text": "long ago", "merged": [follower], "mergedRuns": [run_id_of(follower, 0)]}
    await stage.ledger.save_result(former, RunResult(outcome=Outcome.ANSWERED, value=value), [], [], deliver=False)
    worker.die_at("ledger.save_result", "after", nth=1)
    await stage.pass_time(QUIET)
    await worker.dead()
    assert (await stage.result(follower)).merged_into == leader
    await operations.drop(leader, who="Ann")
    await go_on(talk, worker)
    await stage.until(partial(is_over, stage, run_id_of(follower, 1)))
    assert stage.texts() == ["two"]


@pytest.mark.req("CHN-3", "CPY-6")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("is_former", [True, False])
async def test_what_was_taken_along_is_not_run_while_its_leaders_answer_is_still_to_be_written_back(
    stage: Stage, talk: Talk, late: Late, monkeypatch: pytest.MonkeyPatch, is_former: bool
):
    """Its own end has been. `is_former`: the answer is of a former version, which named messages alone."""
    if is_former:
        answered = worker_module._answered

        def as_former(*args: Any, **kwargs: Any) -> Any:
            ending = answered(*args, **kwargs)
            ending.result.value.pop("mergedRuns", None)
            return ending

        monkeypatch.setattr(worker_module, "_answered", as_former)
    await late.hold_up()
    gateway, _ = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    for task_id in (leader, follower):
        await stage.until(partial(is_worked_on_no_more, stage, task_id))
    await stage.pass_time(5)
    saves = itertools.count()

    async def save_one(*args: Any, **kwargs: Any) -> Run:
        if next(saves):
            raise MongoUnavailable("away again")
        return await SqliteLedger.save_result(stage.ledger, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(MongoUnavailable):
        patched.setattr(stage.ledger, "save_result", save_one)
        await late.write_back()
    assert await stage.ledger.run(run_id_of(follower, 0)) is not None
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    for _ in range(5):
        await stage.let_go_on()
        await stage.pass_time(QUIET)
    assert talk.seen == [["one", "two"]]
    await late.write_back()
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.ended(leader, follower)
    assert stage.texts() == ["one + two"]


@pytest.mark.req("CHN-3", "CPY-6", "SUS-3")
@pytest.mark.failure("C19", "F1")
async def test_what_a_dropped_leader_had_taken_along_is_run_when_its_own_end_is_in_the_ledger(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    """Run before, its former end would be lost, by which it is known after a loss of Redis."""
    await late.hold_up()
    await stage.bind(talk.workflow, burst=POLICY)
    gateway = await stage.start_gateway()
    leader, follower = await stage.write("one", "two")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", "before", nth=2)
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    await operations.drop(leader, who="Ann")
    await go_on(talk, worker)
    await stage.until(partial(is_worked_on_no_more, stage, follower))
    assert talk.seen == [["one", "two"]]
    await late.write_back()
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.supervisor.sweep()
    await stage.until(partial(is_over, stage, run_id_of(follower, 1)))
    assert await stage.ledger.run(run_id_of(follower, 0)) is not None
    assert stage.texts() == ["two"]


@pytest.mark.req("CHN-3", "CPY-6", "ENV-6")
@pytest.mark.failure("F1")
async def test_a_burst_of_whose_key_the_ledger_has_a_former_run_of_a_later_generation_is_run_once(
    stage: Stage, talk: Talk, late: Late
):
    """The former message had been run again, and of its runs the first has been forgotten by now."""
    talk.held = asyncio.Event()
    await talk.start()
    leader, follower = await stage.write("one", "two")
    task = await stage.queue.get(follower)
    assert task is not None
    former = msgspec.structs.replace(task.head, accepted_at_ms=0, raw_sha256="f" * 64)
    again = msgspec.structs.replace(task.progress, generation=1)
    await stage.ledger.finish(Task(former, b"", again), Status.DROPPED, by="Ann")
    await late.hold_up()
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await talk.reached.wait()
    talk.held.set()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    assert talk.seen == [["one", "two"]]


@pytest.mark.req("CHN-3", "CPY-6")
@pytest.mark.failure("C19")
async def test_a_burst_goes_on_without_the_one_that_redis_has_lost_while_both_were_run_again(
    stage: Stage, talk: Talk, operations: Operations, late: Late
):
    _, worker = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    await worker.stop()
    await operations.run_again(leader, who="Ann")
    await operations.run_again(follower, who="Ann")
    await late.hold_up()
    talk.held, talk.reached = asyncio.Event(), asyncio.Event()
    await stage.start_worker(talk.workflow)
    await talk.reached.wait()
    assert await stage.queue.cancel(follower) is not None
    talk.held.set()
    await stage.until(partial(is_worked_on_no_more, stage, leader))
    assert talk.seen[1:] == [["one", "two"], ["one"]]


@pytest.mark.req("CHN-3", "CPY-6")
@pytest.mark.failure("F1")
@pytest.mark.parametrize("first", [LedgerSilent("MongoDB does not answer"), RedisUnavailable("cut off")])
async def test_what_may_have_been_taken_along_waits_for_the_ledger_also_when_merging_is_switched_off(
    stage: Stage, talk: Talk, first: Unavailable
):
    gateway, worker = await talk.start()
    worker.fail_at("ledger.steps", "before", first)
    worker.fail_at("ledger.steps", "before", LedgerSilent("MongoDB does not answer"), times=2)
    [task_id] = await stage.write("one")
    await stage.waiting_for_retry(task_id)
    await talk.change(None, gateway, worker)
    for _ in range(2):
        await stage.pass_time(20)
        await stage.waiting_for_retry(task_id)
    assert talk.seen == []
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert talk.seen == [["one"]]


@pytest.mark.req("CHN-3", "CPY-6")
@pytest.mark.failure("F1")
async def test_what_may_have_been_taken_along_waits_for_the_ledger_also_where_no_binding_has_been_read(
    stage: Stage, talk: Talk
):
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    worker = stage.new_worker(talk.workflow)
    for silent in ("ledger.steps", "ledger.run"):
        worker.fail_at(silent, "before", LedgerSilent("MongoDB does not answer"))
    await worker.start(worker.bus, worker.chats, worker.worker)
    [task_id] = await stage.write("one")
    assert "LedgerSilent" in ((await stage.waiting_for_retry(task_id)).error or "")
    await stage.pass_time(20)
    await stage.ended(task_id)
    assert talk.seen == [["one"]]


@pytest.mark.req("CHN-3", "SUS-3", "SEC-5")
async def test_what_is_dropped_after_its_leader_is_not_run(stage: Stage, talk: Talk, operations: Operations):
    """No worker has to be there for that."""
    _, worker = await talk.start()
    worker.die_at("ledger.save_result", "before", nth=2)
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await worker.dead()
    for task_id in (leader, follower):
        assert (await operations.drop(task_id, who="Ann")).status is Status.DROPPED
    await go_on(talk, worker)
    await stage.let_go_on()
    assert stage.texts() == []
    assert await stage.open_count() == 0


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_leader_that_is_run_again_has_answered_those_that_it_named_before(
    stage: Stage, talk: Talk, operations: Operations
):
    """They are still to be settled when it is dropped."""
    _, worker = await talk.start()
    worker.die_at("queue.settle", "after", nth=2)
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await worker.dead()
    await stage.said(1)
    await stage.ended(leader)
    await operations.run_again(leader, who="Ann")
    await operations.drop(leader, who="Ann")
    await go_on(talk, worker)
    await stage.ended(follower)
    assert stage.texts() == ["one + two"]


@pytest.mark.req("CHN-3", "SEC-5", "WFL-3")
async def test_a_burst_of_which_bytes_have_been_forgotten_is_not_run_again(
    stage: Stage, talk: Talk, operations: Operations
):
    """Its answer went out days later, so that those of its first message are still there."""
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway(sends=False)
    await stage.start_worker(talk.workflow)
    leader, follower = await stage.write("one", "two")
    await talk.waits(leader)
    await stage.pass_time(QUIET)
    await stage.ended(follower)
    stage.clock.advance(2 * 86_400)
    await stage.ledger.forget_raw(finished_before_ms=stage.queue.now_ms() - 86_400_000)
    await stage.start_gateway()
    await stage.ended(leader)
    with pytest.raises(StateConflict, match="has been forgotten"):
        await operations.run_again(leader, who="Ann")


@pytest.mark.req("CHN-3", "WFL-3")
async def test_what_was_begun_by_itself_and_resumed_is_not_taken_along(
    stage: Stage, talk: Talk, operations: Operations
):
    talk.failures = [RuntimeError("not today")] * 8
    gateway, worker = await talk.start(policy=None)
    first, second = await stage.write("one", "two")
    await fails_for_good(stage, first)
    await fails_for_good(stage, second)
    await stage.ledger.save_step(run_id_of(second, 0), "paid", b"true")
    await talk.change(POLICY, gateway, worker)
    await operations.resume_selected(Selection(reason=Reason.RETRIES_EXHAUSTED), who="Ann")
    await stage.pass_time(QUIET)
    await stage.ended(first, second)
    assert [text for text in stage.texts() if not text.startswith("Sorry")] == ["one", "two"]


@pytest.mark.req("CHN-3")
@pytest.mark.failure("H2")
async def test_what_a_clock_far_ahead_accepted_is_not_waited_for_until_then(stage: Stage, talk: Talk):
    await talk.start()
    behind = stage.incoming("one")
    await stage.queue.enqueue(accepted_at(stage, behind, seconds=86_400))
    [task_id] = [one.head.task_id for one in await stage.queue.list_open(Selection(), limit=9)]
    await stage.ended(task_id)
    assert stage.texts() == ["one"]


async def has_status(stage: Stage, task_id: TaskId, status: Status) -> bool:
    task = await stage.look(task_id)
    return task is not None and task.status is status


async def is_worked_on_no_more(stage: Stage, task_id: TaskId) -> bool:
    task = await stage.look(task_id)
    return task is None or task.status is Status.REPLYING


async def has_result(stage: Stage, task_id: TaskId) -> bool:
    return await stage.ledger.latest_run(task_id) is not None


async def is_over(stage: Stage, run_id: RunId) -> bool:
    run = await stage.ledger.run(run_id)
    return run is not None and run.status.is_finished


async def save_late(stage: Stage, leader: TaskId, followers: list[TaskId]) -> None:
    """As a worker that was frozen for longer than its claim, when it wakes."""
    task, text = await stage.queue.get(leader), "one + two + three"
    assert task is not None
    call = Call("sendMessage", {"chat_id": 42, "text": text}, text)
    reply = reply_of(task.head, task.run_id, reply_id_of(task.run_id, 0), call)
    result = RunResult(outcome=Outcome.ANSWERED, value={"text": text, "merged": followers})
    await stage.ledger.save_result(task, result, [reply], [], deliver=True)
    await stage.said(2)


def accepted_at(stage: Stage, incoming: Incoming, *, seconds: float) -> NewTask:
    head = next(one for one in stage._processes if isinstance(one, Gateway)).intake.head_of(incoming)
    head = msgspec.structs.replace(head, accepted_at_ms=head.accepted_at_ms + int(seconds * 1000))
    return NewTask(head, incoming.raw)


@pytest.mark.req("CHN-3", "SUS-3")
async def test_followers_whose_leader_was_dropped_are_run_after_all(stage: Stage, talk: Talk, operations: Operations):
    """Its worker dies before it saves its result, and then it is dropped."""
    await stage.bind(talk.workflow, burst=POLICY)
    await stage.start_gateway()
    tasks = await stage.write("one", "two", "three")
    await stage.pass_time(QUIET)
    worker = stage.new_worker(talk.workflow)
    worker.die_at("ledger.save_result", "after", nth=2)
    await stage.start_new_worker(worker, talk.workflow)
    await worker.dead()
    assert [(await operations.story(task_id)).status for task_id in tasks[1:]] == [Status.PENDING] * 2
    await operations.drop(tasks[0], who="Ann")
    await go_on(talk, worker)
    await stage.said(2)
    await stage.ended(*tasks[1:])
    assert stage.texts() == ["two", "three"]
    runs = [await stage.ledger.latest_run(task_id) for task_id in tasks[1:]]
    assert [(run.outcome, run.generation) for run in runs if run] == [(Outcome.ANSWERED, 1)] * 2


@pytest.mark.req("CHN-3", "SUS-3")
async def test_a_follower_that_is_suspended_is_answered_by_itself_when_it_is_resumed(
    stage: Stage, talk: Talk, operations: Operations
):
    tasks = await suspended_leader(talk, followers=())
    later = await stage.write("two")
    await talk.waits(later[0])
    await stage.pass_time(QUIET)
    await stage.ended(*later)
    await operations.resume(tasks[0], who="Ann")
    more = await stage.write("three")
    await stage.ended(tasks[0])
    await talk.answered(*more)
    assert [text for text in stage.texts() if not text.startswith("Sorry")] == ["two", "one", "three"]


@pytest.mark.req("CHN-3", "OPS-1")
async def test_a_leader_that_is_run_again_answers_the_whole_burst_again(
    stage: Stage, talk: Talk, operations: Operations
):
    await talk.start()
    tasks = await stage.write("one", "two")
    await talk.answered(*tasks)
    again = await operations.run_again(tasks[0], who="Ann")
    assert again.generation == 1
    await stage.said(2)
    await stage.ended(tasks[0])
    assert stage.texts() == ["one + two"] * 2
    run = await stage.ledger.run(run_id_of(tasks[0], 1))
    assert run is not None
    assert run.merged == [tasks[1]]
    assert [text for role, text in await talk.said() if role == "user"] == ["one", "two"]


@pytest.mark.req("CHN-3", "OPS-1")
async def test_a_follower_that_is_run_again_is_answered_by_itself(stage: Stage, talk: Talk, operations: Operations):
    await talk.start()
    tasks = await stage.write("one", "two")
    await talk.answered(*tasks)
    await operations.run_again(tasks[1], who="Ann")
    await stage.said(2)
    await stage.ended(tasks[1])
    assert stage.texts() == ["one + two", "two"]
    await operations.run_again(tasks[0], who="Ann")
    await stage.said(3)
    assert stage.texts()[2:] == ["one"], "what has an answer of its own by now is not answered with it"
    assert [text for role, text in await talk.said() if role == "user"] == ["one", "two"]


@pytest.mark.req("CHN-3", "OPS-3")
async def test_people_see_of_a_merged_message_which_one_answered_it(stage: Stage, talk: Talk, operations: Operations):
    from rise.api.tasks import shown
    from rise.retries import RetryPolicy

    await talk.start()
    tasks = await stage.write("one", "two")
    await talk.answered(*tasks)
    first, second = [shown(await operations.story(task_id), RetryPolicy()) for task_id in tasks]
    assert (first["outcome"], first["result"]["merged"]) == ("answered", [tasks[1]])
    assert (second["status"], second["outcome"]) == ("completed", "merged")
    assert second["result"] == {"mergedInto": tasks[0]}
    assert definition_of(talk.workflow).workflow_id == first["workflowRun"]


@pytest.mark.req("CHN-3", "SUS-3")
@pytest.mark.failure("B14")
async def test_a_burst_is_not_answered_once_more_without_what_this_version_cannot_read_of_it(
    stage: Stage, talk: Talk, operations: Operations
):
    _, worker = await talk.start()
    leader, follower = await stage.write("one", "two")
    await talk.answered(leader, follower)
    kept = await stage.rewrite("runs", follower, head=b'{"schema":"of tomorrow"}')
    with pytest.raises(StateConflict, match="cannot read a message that was answered with it"):
        await operations.run_again(leader, who="Ann")
    await stage.rewrite("runs", follower, head=kept)
    beginning = worker.hold_at("ledger.steps", "before")
    await operations.run_again(leader, who="Ann")
    await beginning.reached()
    await stage.rewrite("runs", follower, head=b'{"schema":"of tomorrow"}')
    beginning.open()
    await stage.waiting_for_retry(leader)
    assert "cannot be read" in ((await stage.look(leader)).error or "")
    assert talk.seen == [["one", "two"]]
    await stage.rewrite("runs", follower, head=kept)  # as a newer version reads it
    await stage.pass_time(60)
    await stage.ended(leader)
    assert talk.seen == [["one", "two"], ["one", "two"]]

"""Workflows made of stages, in real workers: what was paid for before a kill is not paid for after it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from pipeline_stage import Stage

import rise
from rise.envelope import Outcome, Reason, Status
from rise.reachable import read_allowed
from rise.testing.clock import ManualClock
from rise.testing.model_server import Fail, Hold, ModelStandIn, Nonsense, Say
from rise.testing.waiting import eventually
from rise.worker import WorkerLimits
from rise.workflows.fetching import GuardedFetch
from rise.workflows.model import NoModel, OpenAIModel
from rise.workflows.staged import StageRecord, Tools, staged_workflow
from rise.workflows.stages import read_stages

TWO_PROMPTS = [
    {"name": "first", "kind": "prompt", "template": "1 {{ text }}"},
    {"name": "second", "kind": "prompt", "template": "2 {{ stages.first }}"},
    {"name": "say", "kind": "reply", "template": "{{ stages.second }}"},
    {"name": "later", "kind": "follow_up", "inSeconds": 60, "text": "And {{ stages.first }}?"},
]


@pytest.fixture
async def server() -> AsyncIterator[ModelStandIn]:
    async with ModelStandIn() as server:
        yield server


@pytest.fixture
def records() -> list[StageRecord]:
    return []


@pytest.fixture
async def tools(server: ModelStandIn, clock: ManualClock, records: list[StageRecord]) -> AsyncIterator[Tools]:
    model, fetch = OpenAIModel(server.url, "small"), GuardedFetch(read_allowed(["127.0.0.1"]))
    yield Tools(model=model, fetch=fetch, clock=clock, record=records.append)
    await fetch.close()
    await model.close()


def workflow(tools: Tools, stages: list[dict[str, Any]]) -> Callable[..., Any]:
    definition = staged_workflow("staged", read_stages(stages), tools, channels=["telegram"])
    definition.function.__rise_workflow__ = definition  # type: ignore[attr-defined] - as the stage finds those in code
    return definition.function


def went(records: list[StageRecord]) -> list[tuple[str, str]]:
    return [(record.name, record.outcome) for record in records]


@pytest.mark.req("WFL-2", "WRK-5", "TMP-3")
async def test_a_message_goes_through_its_stages(stage: Stage, server: ModelStandIn, tools: Tools):
    server.then(Say("Hello!"), Say("Hello, Ann!"))
    gateway, _ = await stage.start(workflow(tools, TWO_PROMPTS))
    [task_id] = await stage.write("Hi")
    [run] = await stage.ended(task_id)
    assert (run.outcome, run.result["value"]) == (Outcome.ANSWERED, "Hello, Ann!")
    assert stage.texts() == ["Hello, Ann!"]
    assert server.asked == ["1 Hi", "2 Hello!"]
    await stage.pass_time(61)
    assert await stage.said(2) == ["Hello, Ann!", "And Hello!?"]
    assert not gateway.is_dead


@pytest.mark.req("WFL-2", "WRK-5")
@pytest.mark.failure("D1")
async def test_a_worker_killed_between_two_prompts_does_not_pay_for_the_first_again(
    stage: Stage, server: ModelStandIn, tools: Tools, records: list[StageRecord]
):
    hold = Hold(Say("never heard"))
    server.then(Say("Hello!"), hold, Say("Hello, Ann!"))
    staged = workflow(tools, TWO_PROMPTS)
    gateway, worker = await stage.start(staged)
    [task_id] = await stage.write("Hi")
    await hold.reached.wait()
    await worker.kill()
    hold.released.set()
    await gateway.supervisor.reap()
    await stage.start_worker(staged)
    [run] = await stage.ended(task_id)
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED)
    assert server.asked == ["1 Hi", "2 Hello!", "2 Hello!"], "the first is paid for once"
    assert stage.texts() == ["Hello, Ann!"]
    assert went(records) == [
        ("first", "done"), ("second", "cut off"),
        ("first", "kept"), ("second", "done"), ("say", "done"), ("later", "done"),
    ]  # fmt: skip
    assert {record.run_id for record in records} == {records[0].run_id}


@pytest.mark.req("WFL-2", "WRK-5")
@pytest.mark.failure("D1")
@pytest.mark.parametrize("edge", ["before", "after"])
async def test_a_worker_killed_while_a_prompt_is_kept_pays_again_only_if_it_was_not(
    stage: Stage, server: ModelStandIn, tools: Tools, edge: Any
):
    staged = workflow(tools, TWO_PROMPTS)
    gateway = await stage.start_gateway()
    [task_id] = await stage.write("Hi")
    worker = stage.new_worker(staged)
    worker.die_at("ledger.save_step", edge)
    await stage.start_new_worker(worker, staged)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(staged)
    await stage.ended(task_id)
    assert server.asked == ["1 Hi"] * (2 if edge == "before" else 1) + ["2 1 Hi"]
    assert stage.texts() == ["2 1 Hi"]


@pytest.mark.req("WFL-5", "SUS-3")
async def test_without_a_model_the_message_waits_for_a_person_and_says_what_to_set(
    stage: Stage, tools: Tools, server: ModelStandIn
):
    without = Tools(model=NoModel(), fetch=tools.fetch, clock=tools.clock)
    _, worker = await stage.start(workflow(without, TWO_PROMPTS))
    [task_id] = await stage.write("Hi")
    task = await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    assert "no language model is configured: set RISE_LLM_BASE_URL and RISE_LLM_MODEL" in str(task.error)
    await worker.kill()
    await stage.start_worker(workflow(tools, TWO_PROMPTS))
    await stage.operations.resume(task_id, who="a person", why="it is configured now")
    await stage.ended(task_id)
    assert server.asked == ["1 Hi", "2 1 Hi"]


@pytest.mark.req("WFL-2", "QUE-4")
async def test_a_model_that_is_away_costs_no_try_and_its_pause_is_kept(
    stage: Stage, server: ModelStandIn, tools: Tools
):
    server.then(Fail(429, retry_after="300"))
    await stage.start(workflow(tools, TWO_PROMPTS))
    [task_id] = await stage.write("Hi")
    task = await stage.waiting_for_retry(task_id, attempts=0)
    assert 300_000 <= task.due_at_ms - stage.queue.now_ms() <= 361_000
    await stage.pass_time(361)
    await stage.ended(task_id)
    assert server.asked == ["1 Hi", "1 Hi", "2 1 Hi"]


@pytest.mark.req("WFL-2", "QUE-4")
async def test_an_answer_that_is_none_uses_up_a_try_and_what_came_before_is_kept(
    stage: Stage, server: ModelStandIn, tools: Tools
):
    server.then(Say("Hello!"), Nonsense())
    await stage.start(workflow(tools, TWO_PROMPTS))
    [task_id] = await stage.write("Hi")
    await stage.waiting_for_retry(task_id, attempts=1)
    await stage.pass_time(60)
    await stage.ended(task_id)
    assert server.asked == ["1 Hi", "2 Hello!", "2 Hello!"]


@pytest.mark.req("WRK-7", "WFL-2")
@pytest.mark.failure("E5")
async def test_functions_of_stages_and_steps_that_do_not_return_wear_a_process_out_for_as_long_as_they_do_not(
    stage: Stage, tools: Tools
):
    stage.worker_limits, release = WorkerLimits(abandoned_max=1, run_seconds=0.05), threading.Event()
    give = replace(tools, functions={"stuck": lambda values: release.wait()})
    staged = workflow(give, [{"name": "wait", "kind": "python", "function": "stuck", "timeoutSeconds": 0.05}])

    @rise.workflow("stepping")
    async def stepping(turn: rise.Turn) -> None:
        await turn.step("wait", release.wait)

    try:
        gateway, worker = await stage.start(staged, stepping)
        [first] = await stage.write("one", chat=1)
        await stage.waiting_for_retry(first, attempts=1)
        assert not worker.worker.is_worn_out
        asked = msgspec.structs.replace(stage.incoming("two", chat=2), workflow_id="wf_stepping")
        second = (await gateway.intake.accept(asked)).task_id
        await stage.waiting_for_retry(second, attempts=1)
        assert worker.worker.is_worn_out
    finally:
        release.set()
    await eventually(lambda: not worker.worker.is_worn_out)

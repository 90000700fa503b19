"""What is published runs, by every worker, and nothing else does; what waited for it goes on by itself, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from pipeline_stage import Process, Stage

import rise
from rise.definitions.records import STAGES, BindingRecord, WorkflowRecord
from rise.envelope import Outcome, Reason
from rise.workflows.staged import Tools


def said(template: str) -> list[dict[str, Any]]:
    return [{"name": "say", "kind": "reply", "template": template}]


async def make(stage: Stage, template: str = "hi {{ text }}", *, is_bound: bool = True) -> str:
    """A person makes a workflow of stages, publishes it, and binds it."""
    workflow_id = (await stage.workflows.create("greeter", said(template), by="ann")).workflow_id
    await stage.workflows.publish(workflow_id, by="ann", comment="first")
    if is_bound:
        await bind(stage, workflow_id)
    return workflow_id


async def bind(stage: Stage, workflow_id: str) -> None:
    await stage.editor.bind(BindingRecord(channel="telegram", account=stage.account, workflow_id=workflow_id), by="ann")


async def change(stage: Stage, workflow_id: str, template: str) -> None:
    await stage.workflows.edit(workflow_id, stages=said(template), by="ann")
    await stage.workflows.publish(workflow_id, by="ann")


@pytest.mark.req("WFL-1", "SUS-1", "SUS-2")
async def test_what_waits_for_a_workflow_is_answered_in_order_when_one_is_published_and_bound(stage: Stage):
    await stage.start()
    task_ids = await stage.write("1", "2", "3") + await stage.write("4", chat=43)
    for task_id in task_ids:
        listed = await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
        assert listed.head.channel == "telegram"
    assert {task.head.task_id for task in await stage.operations.suspended(channel="telegram")} == set(task_ids)
    made = await stage.workflows.create("greeter", said("hi {{ text }}"), by="ann")
    await bind(stage, made.workflow_id)
    await stage.pass_time(30)
    assert len(await stage.operations.suspended()) == 4, "a draft runs nothing, bound or not"
    await stage.workflows.publish(made.workflow_id, by="ann", comment="go")
    runs = await stage.ended(*task_ids)
    assert [text for text in stage.texts() if text.startswith("hi")] == ["hi 1", "hi 2", "hi 3"]
    assert stage.texts(43)[-1] == "hi 4"
    assert {(run.workflow_id, run.workflow_version) for run in runs} == {("wf_greeter", 1)}


@pytest.mark.req("WFL-1", "WRK-2")
async def test_every_worker_runs_every_published_workflow_whatever_code_it_has(stage: Stage):
    @rise.workflow("other")
    async def other(turn: rise.Turn) -> None:
        raise AssertionError

    await stage.start(other)
    await make(stage)
    first = await stage.write("1")
    await stage.ended(*first)
    second = await stage.start_worker()
    ids = [task_id for chat in range(50, 60) for task_id in await stage.write("x", chat=chat)]
    assert {run.outcome for run in await stage.ended(*ids)} == {Outcome.ANSWERED}
    assert not [one for one in stage.log if "has not loaded" in str(one)]
    assert second.steps


@pytest.mark.req("WFL-1")
async def test_a_new_version_and_a_former_one_hold_from_the_next_message_on(stage: Stage):
    await stage.start()
    workflow_id = await make(stage, "one {{ text }}")
    await stage.ended(*await stage.write("a"))
    await change(stage, workflow_id, "two {{ text }}")
    [second] = await stage.ended(*await stage.write("b"))
    await stage.workflows.roll_back(workflow_id, 1, by="ann")
    [third] = await stage.ended(*await stage.write("c"))
    assert stage.texts() == ["one a", "two b", "one c"]
    assert (second.workflow_version, third.workflow_version) == (2, 3)


@pytest.mark.req("WFL-1")
async def test_a_message_that_is_running_keeps_the_version_that_it_began_with(stage: Stage):
    await stage.start_gateway()
    worker = stage.new_worker()
    workflow_id = await make(stage, "one {{ text }}")
    running = worker.hold_at("ledger.save_result", "before")
    await stage.start_new_worker(worker)
    first = await stage.write("a")
    await running.reached()
    await change(stage, workflow_id, "two {{ text }}")
    await worker.bindings.refresh()
    running.open()
    second = await stage.write("b")
    runs = await stage.ended(*first, *second)
    assert [run.workflow_version for run in runs] == [1, 2]
    assert stage.texts() == ["one a", "two b"]


@pytest.mark.req("WFL-1", "SUS-1")
async def test_what_is_switched_off_never_runs_and_what_waits_goes_on_when_it_is_switched_on(stage: Stage):
    await stage.start()
    workflow_id = await make(stage)
    await stage.ended(*await stage.write("a"))
    await stage.workflows.switch(workflow_id, enabled=False, by="ann")
    [waits] = await stage.write("b")
    await stage.suspended(waits, Reason.WORKFLOW_PENDING)
    await change(stage, workflow_id, "hello {{ text }}")
    await stage.pass_time(30)
    assert (await stage.suspended(waits, Reason.WORKFLOW_PENDING)).head.task_id == waits
    await stage.workflows.switch(workflow_id, enabled=True, by="ann")
    await stage.ended(waits)
    assert [text for text in stage.texts() if text[0] == "h"] == ["hi a", "hello b"]


@pytest.mark.req("WFL-1", "SUS-1")
async def test_a_workflow_in_code_that_a_person_has_switched_off_stays_off_through_a_restart(stage: Stage):
    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        await turn.reply(f"echo {turn.text}")

    _, worker = await stage.start(echo)
    await stage.ended(*await stage.write("a"))
    await stage.workflows.switch("wf_echo", enabled=False, by="ann")
    await worker.stop()
    await stage.start_worker(echo)
    [waits] = await stage.write("b")
    await stage.suspended(waits, Reason.WORKFLOW_PENDING)
    await stage.workflows.switch("wf_echo", enabled=True, by="ann")
    await stage.ended(waits)
    assert [text for text in stage.texts() if text.startswith("echo")] == ["echo a", "echo b"]


@pytest.mark.req("WFL-2")
async def test_what_each_stage_did_is_kept_with_the_run_failed_tries_included(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    moods = ["bad", "good"]

    def mood(values: dict[str, Any]) -> str:
        if (now := moods.pop(0)) == "bad":
            raise ValueError("a bad mood")
        return now

    def with_mood(self: Stage, process: Process) -> Tools:
        return replace(tools(self, process), functions={"mood": mood})

    tools = Stage.tools
    monkeypatch.setattr(Stage, "tools", with_mood)
    await stage.start()
    stages = [{"name": "feel", "kind": "python", "function": "mood"}, *said("{{ stages.feel }}")]
    workflow_id = (await stage.workflows.create("moody", stages, by="ann")).workflow_id
    await stage.workflows.publish(workflow_id, by="ann")
    await bind(stage, workflow_id)
    [task_id] = await stage.write("a")
    await stage.waiting_for_retry(task_id, attempts=1)
    story = await stage.operations.story(task_id)
    assert [(one["name"], one["outcome"], one["attempt"]) for one in story.stages] == [("feel", "failed", 1)]
    await stage.pass_time(20)
    [run] = await stage.ended(task_id)
    story = await stage.operations.story(task_id)
    assert [(one["name"], one["outcome"], one["attempt"]) for one in story.stages] == [
        ("feel", "failed", 1), ("feel", "done", 2), ("say", "done", 2)
    ]  # fmt: skip
    assert "a bad mood" in story.stages[0]["error"]
    assert run.result["text"] == "good"


@pytest.mark.failure("D12")
async def test_stages_of_a_newer_version_are_left_to_workers_that_can_read_them(stage: Stage):
    _, worker = await stage.start()
    newer = WorkflowRecord(workflow_id="wf_a", name="a", kind=STAGES, stages=[{"name": "x", "kind": "of tomorrow"}])
    await stage.editor.publish(newer, by="ann")
    await bind(stage, "wf_a")
    [task_id] = await stage.write("a")
    await stage.waiting_for_retry(task_id, attempts=0)
    assert [one["workflow_id"] for one in stage.log if one["event"] == "workflow.unreadable"] == ["wf_a"]
    await stage.editor.publish(msgspec.structs.replace(newer, stages=said("ok")), by="ann")
    await worker.bindings.refresh()
    await stage.pass_time(3)
    await stage.ended(task_id)
    assert stage.texts() == ["ok"]

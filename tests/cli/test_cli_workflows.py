"""`rise workflows`, `rise prompts`: what runs is looked at, published, taken back, switched off from the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_directory import Directory, Rise

from rise.definitions.records import CODE, BindingRecord, WorkflowRecord
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_workflows
from rise.runtime.serving import _refuse_without_code

SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}


@pytest.fixture
def workflow_id(directory: Directory) -> str:
    """A draft, and a workflow in code beside it."""

    async def make(house: House) -> str:
        await house.editor.publish(WorkflowRecord(workflow_id="wf_bot", name="bot"), by=CODE)
        return (await build_workflows(house).create("greeter", [SAY], by="ann")).workflow_id

    return directory.do(make)


def edit(directory: Directory, workflow_id: str, **stage: Any) -> None:
    async def work(house: House) -> None:
        await build_workflows(house).edit(workflow_id, stages=[SAY | stage], by="ann")

    directory.do(work)


@pytest.mark.req("WFL-1")
def test_workflows_are_listed_and_shown(rise: Rise, workflow_id: str):
    listed = rise("workflows", "--json").json["workflows"]
    assert [(one["workflowId"], one["kind"], one["status"]) for one in listed] == [
        ("wf_bot", "code", "published"), ("wf_greeter", "stages", "draft")
    ]  # fmt: skip
    assert rise("workflows", "list").out == rise("workflows").out
    assert "stages: 1" in rise("workflows").out
    assert "hi {{ text }}" in rise("workflows", "show", workflow_id).out
    assert rise("workflows", "show", workflow_id, "--json").json["stages"] == [SAY]
    assert "its function is in the code" in rise("workflows", "show", "wf_bot").out


@pytest.mark.req("WFL-1")
def test_a_workflow_is_published_and_taken_back(rise: Rise, directory: Directory, workflow_id: str):
    assert rise("workflows", "publish", workflow_id, "--comment", "first").out == "wf_greeter runs as version 1\n"
    edit(directory, workflow_id, template="hello")
    assert "edited since" in rise("workflows").out
    assert rise("workflows", "publish", workflow_id, "--json").json["publishedVersion"] == 2
    assert rise("workflows", "rollback", workflow_id, "1").out == "wf_greeter runs as version 3\n"
    history = rise("workflows", "history", workflow_id, "--json").json["versions"]
    assert [(one["version"], one["comment"]) for one in history] == [(3, "back to version 1"), (2, ""), (1, "first")]
    assert "back to version 1" in rise("workflows", "history", workflow_id, "--limit", "1").out
    gone = rise("workflows", "rollback", workflow_id, "9")
    assert (gone.code, "rise workflows history" in gone.err) == (1, True)


@pytest.mark.req("WFL-1", "SEC-4")
def test_a_workflow_is_switched_off_and_on_by_somebody_for_a_reason(rise: Rise, directory: Directory, workflow_id: str):
    assert rise("workflows", "disable", "wf_bot", "--why", "spam").out == "wf_bot is switched off: its messages wait\n"
    assert "nothing: it is switched off" in rise("workflows").out
    assert rise("workflows", "enable", "wf_bot", "--json").json["isChannelEnabled"] is True
    assert directory.operations()[:2] == [("enable", "wf_bot", ""), ("disable", "wf_bot", "spam")]
    never = rise("workflows", "disable", workflow_id)
    assert (never.code, "never published" in never.err) == (1, True)


def test_what_is_not_there_is_said_with_where_to_look(rise: Rise, workflow_id: str):
    for words in (("show", "wf_x"), ("history", "wf_x"), ("publish", "wf_x"), ("enable", "wf_x")):
        ended = rise("workflows", *words)
        assert (ended.code, "there is no workflow wf_x" in ended.err, "`rise workflows` lists" in ended.err) == (
            1, True, True
        )  # fmt: skip


@pytest.mark.req("WFL-1")
def test_prompts_are_written_changed_and_shown(rise: Rise, directory: Directory, tmp_path: Path):
    directory.operations()  # so that there is a directory
    assert "rise prompts set" in rise("prompts").out
    made = rise("prompts", "set", "greet", "--template", "Greet {{ user.name }}, {{ tone }}", "--placeholder", "tone")
    assert made.out == "pr_greet is kept as version 1\n"
    (tmp_path / "text").write_text("{{ tone }}")
    changed = rise(
        "prompts", "set", "pr_greet", "--file", str(tmp_path / "text"), "--comment", "shorter", "--json"
    ).json
    assert (changed["version"], changed["template"], changed["placeholders"]) == (2, "{{ tone }}", ["tone"])
    assert "shorter" in rise("prompts", "show", "pr_greet").out
    assert [one["promptId"] for one in rise("prompts", "list", "--json").json["prompts"]] == ["pr_greet"]
    wrong = rise("prompts", "set", "pr_greet", "--template", "{{ twon }}")
    assert (wrong.code, "twon" in wrong.err) == (1, True)
    assert rise("prompts", "set", "pr_none", "--comment", "x").code == 1
    assert rise("prompts", "set", "a", "--template", "b", "--file", "c").code == 2
    assert rise("prompts", "set", "a", "--file", "nowhere").code == 2


@pytest.mark.req("WFL-1", "WRK-1")
def test_a_worker_without_code_runs_what_is_made_of_stages_unless_there_is_code_to_be_run(
    rise: Rise, directory: Directory, workflow_id: str
):
    refused = rise("worker")
    assert (refused.code, "RISE_APP is not set" in refused.err) == (2, True)

    async def leave_only_stages(house: House) -> None:
        await house.editor.follow_code([], {})
        await build_workflows(house).publish(workflow_id, by="ann")
        await _refuse_without_code(house)

    directory.do(leave_only_stages)


@pytest.mark.req("OPS-1")
def test_the_doctor_knows_what_is_made_of_stages_and_what_is_switched_off(
    rise: Rise, directory: Directory, workflow_id: str
):
    async def bind(house: House) -> None:
        await build_workflows(house).publish(workflow_id, by="ann")
        await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id=workflow_id), by="ann")

    directory.do(bind)
    assert "made of stages: wf_greeter" in rise("doctor", "--probe", "app").out
    assert "served by wf_greeter" in rise("doctor", "--probe", "bindings").out
    rise("workflows", "disable", workflow_id)
    assert "rise workflows enable wf_greeter" in rise("doctor", "--probe", "bindings").out

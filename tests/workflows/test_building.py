"""What is published, as functions that run: built once for each version, and heard while it runs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import structlog

from rise.definitions.records import STAGES, WorkflowRecord
from rise.testing.clock import ManualClock
from rise.workflows.building import TRIES_KEPT, StagedWorkflows, records_among, step_of_try
from rise.workflows.fetching import GuardedFetch
from rise.workflows.model import NoModel
from rise.workflows.staged import StageRecord, Tools

SAY = WorkflowRecord(
    workflow_id="wf_a", name="a", kind=STAGES, stages=[{"name": "say", "kind": "reply", "template": "hi"}]
)


@pytest.fixture
async def staged() -> Any:
    staged = StagedWorkflows(Tools(model=NoModel(), fetch=GuardedFetch(), clock=ManualClock()))
    yield staged
    await staged.close()


def record(run_id: str, name: str = "say") -> StageRecord:
    return StageRecord(
        run_id=run_id, attempt=1, number=0, name=name, kind="reply", started_at_ms=0, duration_ms=0.0, tries=1,
        outcome="done",
    )  # fmt: skip


@pytest.mark.req("WFL-1")
async def test_a_version_is_built_once_and_the_next_one_anew(staged: StagedWorkflows):
    first = staged.definition(SAY)
    assert first is not None and (first.workflow_id, staged.definition(SAY)) == ("wf_a", first)
    following = staged.definition(msgspec.structs.replace(SAY, version=2))
    assert following is not first


@pytest.mark.req("BND-5")
async def test_after_a_restore_another_version_may_have_the_same_number(staged: StagedWorkflows):
    first = staged.definition(SAY)
    same, other = msgspec.structs.replace(SAY), msgspec.structs.replace(SAY, stages=[{**SAY.stages[0], "name": "tell"}])  # type: ignore[index]
    assert staged.definition(same) is first
    assert staged.definition(other) is not first


@pytest.mark.failure("D12")
async def test_what_cannot_be_read_is_said_once_and_not_guessed_at(staged: StagedWorkflows):
    newer = msgspec.structs.replace(SAY, stages=[{"name": "say", "kind": "of tomorrow"}])
    with structlog.testing.capture_logs() as logged:
        assert [staged.definition(newer) for _ in range(3)] == [None, None, None]
    assert [one["event"] for one in logged] == ["workflow.unreadable"]


@pytest.mark.req("WFL-2")
async def test_a_run_is_heard_while_it_lasts_and_no_other(staged: StagedWorkflows):
    with staged.recording("run") as heard:
        for run_id in ("run", "another"):
            staged._tools.record(record(run_id))
    staged._tools.record(record("run", "late"))
    assert [one.name for one in heard] == ["say"]
    assert not staged._records


@pytest.mark.req("WFL-2")
def test_tries_are_told_in_their_order_up_to_a_number():
    steps = {"prompt:ask": b'"hello"'}
    for number in range(TRIES_KEPT + 5):
        if (step := step_of_try(number)) is not None:
            steps[step] = msgspec.json.encode([record("run", f"try {number}")])
    tries, records = records_among(steps)
    assert tries == TRIES_KEPT
    assert [one["name"] for one in records] == [f"try {number}" for number in range(TRIES_KEPT)]
    assert records_among({"stages:00": b"not of ours"}) == (1, [])

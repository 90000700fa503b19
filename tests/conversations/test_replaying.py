"""Conversations that began under an earlier version go on under this one: their recorded histories are replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from changed_conversations import Changed, ChangedBehindAPatch
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from rise.connections.temporal_worker import sandboxed
from rise.conversations.workflow import Conversation

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
pytestmark = pytest.mark.req("TMP-1")


async def replay(workflow: type, recorded: Path) -> None:
    history = WorkflowHistory.from_json(recorded.stem, recorded.read_text())
    await Replayer(workflows=[workflow], workflow_runner=sandboxed()).replay_workflow(history)


def named(part: str) -> list[Path]:
    return [one for one in HISTORIES if part in one.name]


def test_there_is_a_history_of_every_way_that_a_conversation_goes() -> None:
    for part in ("answered", "anew-while-people-write", "anew-when-nobody-writes", "process-lost"):
        assert named(part), part
    for part in ("anew-while-people-write", "anew-when-nobody-writes"):
        assert len(named(part)) > 1, "what was begun anew, too"


@pytest.mark.parametrize("recorded", HISTORIES, ids=lambda one: one.stem)
async def test_a_recorded_history_is_gone_on_with(recorded: Path) -> None:
    await replay(Conversation, recorded)


@pytest.mark.parametrize("recorded", named("answered"), ids=lambda one: one.stem)
async def test_a_change_without_a_patch_does_not_get_past_the_recorded_histories(recorded: Path) -> None:
    with pytest.raises(NondeterminismError):
        await replay(Changed, recorded)


@pytest.mark.parametrize("recorded", HISTORIES, ids=lambda one: one.stem)
async def test_the_same_change_behind_a_patch_does(recorded: Path) -> None:
    await replay(ChangedBehindAPatch, recorded)


def test_no_history_names_the_machine_it_was_recorded_on() -> None:
    for recorded in HISTORIES:
        assert "@" not in recorded.read_text(), "a worker's identity is its process and host, unless it is given"

"""Workflows made of stages, as functions that run: built from what is published, once for each version.

Promises: a run keeps the version that it began with, whatever is published meanwhile; every worker has all of them.

Refuses: to guess at stages that it cannot read, because a newer version of Rise has written them: there is no function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import msgspec

from rise.definitions.records import WorkflowRecord
from rise.errors import PayloadInvalid
from rise.telemetry import log
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.staged import StageRecord, Tools, staged_workflow
from rise.workflows.stages import read_stages

BUILT_MAX: Final = 1000
TRIES_KEPT: Final = 20
"""Of whose stages is kept what they did; while something is down, a task may be tried any number of times."""

_OF_TRY: Final = "stages:"


class StagedWorkflows:
    """Builds them, and hears what their stages do."""

    def __init__(self, tools: Tools) -> None:
        """They are its to close."""
        self._tools = replace(tools, record=self._hear)
        self._built: dict[str, tuple[WorkflowRecord, WorkflowDefinition | None]] = {}
        self._records: dict[str, list[StageRecord]] = {}

    def definition(self, workflow: WorkflowRecord) -> WorkflowDefinition | None:
        """As it is published; None if this version of Rise cannot read it."""
        former, built = self._built.get(workflow.workflow_id, (None, None))
        if former is None or not _is_same(former, workflow):
            if len(self._built) >= BUILT_MAX:
                self._built.clear()  # those that were removed would stay for ever
            built = self._build(workflow)
            self._built[workflow.workflow_id] = (workflow, built)
        return built

    @contextmanager
    def recording(self, run_id: str) -> Iterator[list[StageRecord]]:
        """What the stages of this run say of themselves meanwhile; what goes on after it is not heard."""
        records = self._records[run_id] = []
        try:
            yield records
        finally:
            if self._records.get(run_id) is records:
                del self._records[run_id]

    async def close(self) -> None:
        await self._tools.close()

    def _build(self, workflow: WorkflowRecord) -> WorkflowDefinition | None:
        try:
            return staged_workflow(workflow.name, read_stages(workflow.stages), self._tools)
        except PayloadInvalid as error:
            log.error(
                "workflow.unreadable",
                workflow_id=workflow.workflow_id,
                version=workflow.version,
                error=error,
                consequence="its messages wait for a worker that can read it, or for its next version",
            )
            return None

    def _hear(self, record: StageRecord) -> None:
        heard = self._records.get(record.run_id)
        if heard is not None:
            heard.append(record)


def _is_same(former: WorkflowRecord, workflow: WorkflowRecord) -> bool:
    """By what it says, too: after a restore another version may have the same number."""
    if former is workflow:
        return True
    said = (former.version, former.name, former.stages)
    return said == (workflow.version, workflow.name, workflow.stages)


def step_of_try(number: int) -> str | None:
    """As which step of its run it is kept what the stages of this try did, from 0; None: that is no more kept."""
    return f"{_OF_TRY}{number:02}" if number < TRIES_KEPT else None


def records_among(steps: Mapping[str, bytes]) -> tuple[int, list[Any]]:
    """Of how many tries that did not end well it is kept what their stages did, and what, in the order of running."""
    kept = sorted(step for step in steps if step.startswith(_OF_TRY))
    records: list[Any] = []
    for step in kept:
        with suppress(msgspec.MsgspecError):
            records += msgspec.json.decode(steps[step], type=list[Any])
    return len(kept), records

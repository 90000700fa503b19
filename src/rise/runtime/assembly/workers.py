"""A worker and what its runs work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from rise.bursts import Bursts
from rise.conversations.running import ConversationRuns
from rise.copies.relay import CATCH_UP_SECONDS
from rise.definitions.records import WorkflowRecord
from rise.reachable import read_allowed
from rise.runtime.assembly.house import House
from rise.runtime.assembly.temporal import build_conversations
from rise.worker import Texts, Worker, WorkerLimits
from rise.workflows.building import StagedWorkflows
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.fetching import GuardedFetch
from rise.workflows.runner import Runner
from rise.workflows.staged import Tools
from rise.workflows.stages import Prompt

RECOVERY_SECONDS: Final = 5 * CATCH_UP_SECONDS
"""Whoever accepted while Redis was away has said by then which chats it owes earlier messages."""


def build_runner(
    house: House, workflows: Mapping[str, WorkflowDefinition], functions: Mapping[str, Callable[..., Any]]
) -> Runner:
    """`workflows`: those in the code; `functions`: what `python` stages may call."""
    channels, limits = house.channels.by_name(), _worker_limits(house).of_a_run()
    staged = StagedWorkflows(build_tools(house, functions))
    return Runner(house.ledger, workflows, channels, house.bus, house.clock, limits, staged)


def build_conversation_runs(house: House, runner: Runner) -> ConversationRuns:
    """What the worker runs, where conversations ask for it."""
    bursts = Bursts(house.queue, house.ledger, house.bindings)
    return ConversationRuns(house.queue, house.ledger, house.bindings, bursts, house.channels.by_name(), runner)


def build_worker(house: House, runner: Runner) -> Worker:
    settings = house.settings
    return Worker(
        queue=house.queue,
        ledger=house.ledger,
        bindings=house.bindings,
        runner=runner,
        channels=house.channels.by_name(),
        retry_policy=house.retry_policy,
        accept=house.intake_of_runs.accept,
        bus=house.bus,
        clock=house.clock,
        limits=_worker_limits(house),
        texts=Texts(
            workflow_missing=settings.workflow_missing_message,
            failed=settings.failed_message,
            maintenance=settings.maintenance_message,
        ),
        conversations=build_conversations(house),
    )


def _worker_limits(house: House) -> WorkerLimits:
    settings = house.settings
    return WorkerLimits(
        concurrency=settings.worker_concurrency,
        concurrency_for=settings.worker_concurrency_for,
        claim=timedelta(seconds=settings.claim_seconds),
        run_seconds=settings.run_seconds,
        stop_seconds=settings.stop_seconds,
        history_turns=settings.history_turns,
        recovery_seconds=0.0 if house.stores.full is None else RECOVERY_SECONDS,
    )


def build_tools(house: House, functions: Mapping[str, Callable[..., Any]]) -> Tools:
    """What stages work with in this process. They are to be closed."""
    settings = house.settings

    def prompt(prompt_id: str) -> Prompt | None:
        kept = house.bindings.prompt(prompt_id)
        if kept is None:
            return None
        return Prompt(
            template=kept.template,
            system=kept.system,
            model=kept.model,
            temperature=kept.temperature,
            max_tokens=kept.max_tokens,
        )

    seal = house.seal

    def secret(name: str) -> str | None:
        kept = house.bindings.secret(name)
        return None if kept is None else seal.open(kept.sealed)

    return Tools(
        model=house.model,
        fetch=GuardedFetch(read_allowed(settings.http_stage_allow)),
        clock=house.clock,
        functions=functions,
        prompts=prompt,
        secrets=secret,
    )


def workflow_records(workflows: Mapping[str, WorkflowDefinition]) -> list[WorkflowRecord]:
    return [
        WorkflowRecord(workflow_id=workflow_id, name=definition.name, channels=definition.channels)
        for workflow_id, definition in workflows.items()
    ]

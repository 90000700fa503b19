"""Which workflow serves which channel and account. The only place that knows.

Refuses: to hand out what is switched off, not published, or cannot be read: what needs it waits.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.definitions.port import Definitions, Kind
from rise.definitions.records import (
    BindingRecord,
    PromptRecord,
    WorkflowRecord,
    bindings_of,
    prompt_of,
    workflow_of,
)
from rise.envelope import Head
from rise.queue.port import Route
from rise.service import Loop, Signal
from rise.telemetry import log

CHECK_SECONDS = 5.0
"""How often the version is looked at; makes up for lost events."""


class Bound(msgspec.Struct, frozen=True):
    """What serves a task: the workflow, and how."""

    workflow: WorkflowRecord
    binding: BindingRecord | None
    """None when the caller named the workflow itself."""


class BindingRegistry:
    """The bindings as of the latest version this process has seen; reading is a look in memory."""

    name = "bindings"

    def __init__(self, definitions: Definitions, bus: Bus, clock: Clock) -> None:
        self._definitions = definitions
        self._version = -1
        self._workflows: dict[str, WorkflowRecord] = {}
        self._prompts: dict[str, PromptRecord] = {}
        self._defaults: dict[tuple[str, str], BindingRecord] = {}
        self._asked_for: set[tuple[str, str]] = set()
        self._changed = Signal()
        self._unsubscribe = bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._changed.set())
        self._loop = Loop("bindings", self._follow, sleep=clock.sleep, on_error=_report)

    @property
    def version(self) -> int:
        return self._version

    async def start(self) -> None:
        # A failure is retried by the loop: until then nothing is bound, and what comes in waits.
        await self._loop.start()
        self._changed.set()

    async def stop(self) -> None:
        await self._loop.stop()
        self._unsubscribe()

    async def refresh(self) -> None:
        """Take over what is in force now."""
        if await self._definitions.changes() == self._version:
            return
        latest = await self._definitions.latest([Kind.PUBLISHED, Kind.BINDINGS, Kind.PROMPT])
        workflows, bindings, prompts = [], [], []
        for definition in latest.definitions:
            if definition.kind is Kind.PUBLISHED:
                workflows.append(workflow_of(definition))
            elif definition.kind is Kind.PROMPT:
                prompts.append(prompt_of(definition))
            else:
                bindings += bindings_of(definition)
        self._workflows = {workflow.workflow_id: workflow for workflow in workflows}
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._defaults = {
            (binding.channel, binding.account): binding
            for binding in bindings
            if binding.is_default and binding.enabled
        }
        self._asked_for = {(binding.channel, binding.account) for binding in bindings}
        self._version = latest.changes

    def is_asked_for(self, channel: str, account: str) -> bool:
        """Whether somebody has bound a workflow there, usable or not, switched off or on."""
        return (channel, account) in self._asked_for

    def lookup(self, channel: str, account: str, workflow_id: str | None = None) -> Bound | None:
        """What serves the account now, or the workflow asked for by name; None if nothing usable does."""
        binding = None
        if workflow_id is None:
            binding = self._defaults.get((channel, account))
            if binding is None:
                return None
            workflow_id = binding.workflow_id
        workflow = self._workflows.get(workflow_id)
        if workflow is None or not workflow.published or not workflow.enabled:
            return None
        return Bound(workflow, binding)

    def served(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        """Of these, the ones for which there is a usable workflow now."""
        return tuple(
            route
            for route in routes
            if self.lookup(route.channel, route.account, route.workflow_id or None) is not None
        )

    def text(self, head: Head, name: str) -> str:
        """A text that the binding of the task's account words its own way, usable or not; empty if it does not."""
        binding = self._defaults.get((head.channel, head.account))
        return str(binding.config.get(name) or "") if binding else ""

    def workflow(self, workflow_id: str) -> WorkflowRecord | None:
        return self._workflows.get(workflow_id)

    def prompt(self, prompt_id: str) -> PromptRecord | None:
        return self._prompts.get(prompt_id)

    async def _follow(self) -> None:
        await self._changed.wait(CHECK_SECONDS)
        await self.refresh()


def _report(name: str, error: BaseException) -> None:
    log.warning("bindings.refresh_failed", error=error, consequence="the last known bindings stay in force")

"""Which workflow serves which channel and account. The only place that knows.

Refuses: to hand out what is switched off, not published, or cannot be read: what needs it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import msgspec

from rise.bus.port import Bus, Topic
from rise.capabilities import meaning_of
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
from rise.errors import RiseError
from rise.queue.port import Route
from rise.service import Loop, Signal
from rise.telemetry import log

CHECK_SECONDS = 4.5
"""How often the version is looked at; makes up for lost events. Below the five seconds within which all agree, because
what is new has to be read, too."""
WHOLE_CHECK_SECONDS = 600.0
"""How often everything is read again, whatever the version says: a store that was restored may have the same."""


class Bound(msgspec.Struct, frozen=True):
    """What serves a task: the workflow, and how."""

    workflow: WorkflowRecord
    binding: BindingRecord | None
    """None when the caller named the workflow itself."""


class BindingsSnapshot(msgspec.Struct, frozen=True):
    """What is bound at one moment, never half of one and half of another. Read by attribute, or by name."""

    version: int = -1
    """-1: nothing was read yet."""
    active: tuple[BindingRecord, ...] = ()
    """Those that are switched on, and whose workflow can be used."""
    options: tuple[WorkflowRecord, ...] = ()
    """The workflows that can be bound."""
    last_refresh: datetime | None = None
    """When this was last seen to be in force."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class BindingRegistry:
    """The bindings as of the latest version this process has seen; reading is a look in memory."""

    name = "bindings"

    def __init__(
        self,
        definitions: Definitions,
        bus: Bus,
        clock: Clock,
        *,
        on_trouble: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble`: told why they cannot be read, and None when they are, as soon as either is known."""
        self._definitions = definitions
        self._clock = clock
        self._on_trouble = on_trouble
        self._trouble: str | None = "not read yet"
        self._whole_check_at = 0.0
        self._snapshot = BindingsSnapshot()
        self._listeners: list[Callable[[BindingsSnapshot], None]] = []
        self._version = -1
        self._workflows: dict[str, WorkflowRecord] = {}
        self._prompts: dict[str, PromptRecord] = {}
        self._defaults: dict[tuple[str, str], BindingRecord] = {}
        self._asked_for: set[tuple[str, str]] = set()
        self._bindings: list[BindingRecord] = []
        self._changed = Signal()
        self._unsubscribe = bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._changed.set())
        self._loop = Loop(
            "bindings", self._follow, sleep=clock.sleep, on_error=self._report, pause_seconds_max=CHECK_SECONDS
        )

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

    @property
    def snapshot(self) -> BindingsSnapshot:
        return self._snapshot

    def on_refresh(self, listener: Callable[[BindingsSnapshot], None]) -> Callable[[], None]:
        """Called now, and whenever they were looked at, changed or not; returns what ends it. It raises nothing."""
        self._listeners.append(listener)
        listener(self._snapshot)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def refresh(self, *, whole: bool = False) -> None:
        """Take over what is in force now. `whole`: read it even if it seems to be what is known."""
        if whole or await self._definitions.changes() != self._version:
            await self._read()
        self._show(msgspec.structs.replace(self._snapshot, last_refresh=self._clock.now()))

    async def _read(self) -> None:
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
        self._bindings = bindings
        self._version = latest.changes
        usable = {one.workflow_id: one for one in workflows if one.published and one.enabled}
        active = tuple(one for one in bindings if one.enabled and one.workflow_id in usable)
        shown = BindingsSnapshot(self._version, active, tuple(usable.values()), self._clock.now())
        if shown.version == self._snapshot.version and _content(shown) != _content(self._snapshot):
            log.warning(
                "bindings.drifted",
                version=shown.version,
                consequence="what is in the store is in force from now on; until now it was not, here",
            )
        self._snapshot = shown

    def _show(self, snapshot: BindingsSnapshot) -> None:
        self._snapshot = snapshot
        for listener in list(self._listeners):
            listener(snapshot)

    def bindings(self) -> list[BindingRecord]:
        """All of them, of all accounts."""
        return list(self._bindings)

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
        now = self._clock.monotonic()
        whole = now >= self._whole_check_at
        await self.refresh(whole=whole)
        if whole:
            self._whole_check_at = now + WHOLE_CHECK_SECONDS
        self._say(None)

    def _report(self, name: str, error: BaseException) -> None:
        trouble = error.public_message if isinstance(error, RiseError) else type(error).__name__
        if trouble != self._trouble:
            log.warning("bindings.refresh_failed", error=error, **meaning_of("bindings"))
        self._say(trouble)
        # What it was woken for is not done yet.
        self._changed.set()

    def _say(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


def _content(snapshot: BindingsSnapshot) -> object:
    return snapshot.active, snapshot.options

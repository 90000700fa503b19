"""Which workflow serves which channel and account. The only place that knows.

Refuses: to overrule a person. Where one has bound a channel, or switched it off, code changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock, iso
from rise.envelope import Head
from rise.ledger.port import BindingRecord, Definitions, Ledger, Operation, WorkflowRecord
from rise.queue.port import Route
from rise.service import Loop, Signal
from rise.telemetry import log

CHECK_SECONDS = 5.0
"""How often the version is looked at; makes up for lost events."""
CODE = "code"


class Bound(msgspec.Struct, frozen=True):
    """What serves a task: the workflow, and how."""

    workflow: WorkflowRecord
    binding: BindingRecord | None
    """None when the caller named the workflow itself."""


class BindingRegistry:
    """The bindings as of the latest version this process has seen; reading is a look in memory."""

    name = "bindings"

    def __init__(self, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._ledger = ledger
        self._bus = bus
        self._clock = clock
        self._current = Definitions(-1, {}, [])
        self._defaults: dict[tuple[str, str], BindingRecord] = {}
        self._asked_for: set[tuple[str, str]] = set()
        self._changed = Signal()
        self._unsubscribe = bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._changed.set())
        self._loop = Loop("bindings", self._follow, sleep=clock.sleep, on_error=_report)

    @property
    def version(self) -> int:
        return self._current.version

    async def start(self) -> None:
        # A failure is retried by the loop: until then nothing is bound, and what comes in waits.
        await self._loop.start()
        self._changed.set()

    async def stop(self) -> None:
        await self._loop.stop()
        self._unsubscribe()

    async def refresh(self) -> None:
        """Take over the latest version now."""
        if await self._ledger.definitions_version() == self._current.version:
            return
        current = await self._ledger.definitions()
        self._defaults = {
            (binding.channel, binding.account): binding
            for binding in current.bindings
            if binding.is_default and binding.enabled
        }
        self._asked_for = {(binding.channel, binding.account) for binding in current.bindings}
        self._current = current

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
        workflow = self._current.workflows.get(workflow_id)
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
        return self._current.workflows.get(workflow_id)

    async def follow_code(self, workflows: list[WorkflowRecord], accounts: dict[str, str]) -> None:
        """Make the definitions agree with the code that was loaded.

        Each workflow is listed; each channel it asks for is bound to it where nobody else has decided.
        Bindings made by code follow the code; those made by a person are left alone.
        """
        await self.refresh()
        loaded = {workflow.workflow_id for workflow in workflows}
        now = iso(self._clock.now())
        for workflow in workflows:
            await self._ledger.put_workflow(msgspec.structs.replace(workflow, updated_at=now, updated_by=CODE))
        for known in self._current.workflows.values():
            if known.kind == CODE and known.workflow_id not in loaded and known.enabled:
                await self._ledger.put_workflow(msgspec.structs.replace(known, enabled=False, updated_at=now))
        for workflow in workflows:
            for channel, account in accounts.items():
                if channel in workflow.channels:
                    await self._bind_by_code(channel, account, workflow.workflow_id, now)
                else:
                    await self._unbind_by_code(channel, account, workflow.workflow_id)
        await self.refresh()
        self._bus.publish(Topic.DEFINITIONS_CHANGED)

    async def _bind_by_code(self, channel: str, account: str, workflow_id: str, now: str) -> None:
        known = [one for one in self._current.bindings if (one.channel, one.account) == (channel, account)]
        if any(one.updated_by != CODE for one in known):
            return  # a person has decided here, if only to switch it off
        if any(one.workflow_id == workflow_id and one.is_default and one.enabled for one in known):
            return
        for served in known:
            await self._ledger.remove_binding(channel, account, served.workflow_id)
        binding = BindingRecord(
            channel=channel, account=account, workflow_id=workflow_id, updated_at=now, updated_by=CODE
        )
        version = await self._ledger.put_binding(binding)
        await self._ledger.record_operation(
            Operation(
                at_ms=int(self._clock.now().timestamp() * 1000),
                who=CODE,
                action="bind",
                target=f"{channel}:{account}",
                why=f"{workflow_id} asks for it",
            )
        )
        log.info(
            "channel_binding.updated",
            channel=channel,
            account=account,
            workflow_id=workflow_id,
            version=version,
        )

    async def _unbind_by_code(self, channel: str, account: str, workflow_id: str) -> None:
        """The code asked for this channel before, and does not any more."""
        for one in self._current.bindings:
            if (one.channel, one.account, one.workflow_id, one.updated_by) == (channel, account, workflow_id, CODE):
                await self._ledger.remove_binding(channel, account, workflow_id)

    async def _follow(self) -> None:
        await self._changed.wait(CHECK_SECONDS)
        await self.refresh()


def _report(name: str, error: BaseException) -> None:
    log.warning("bindings.refresh_failed", error=error, consequence="the last known bindings stay in force")

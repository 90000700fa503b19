"""Changing what is configured: for people, through whatever they use, and for the code that was loaded.

Each change is the next version of one definition, recorded with who made it, and said to all processes.

Refuses: to change what a newer version of Rise has written (`StateConflict`); code, to overrule a person.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock, epoch_ms, from_epoch_ms, iso
from rise.definitions.port import Definition, Definitions, Kind
from rise.definitions.records import (
    CODE,
    NEWER,
    OF_THE_ACCOUNT,
    STAGES,
    BindingRecord,
    BindingRoute,
    ChannelOwn,
    WorkflowRecord,
    account_name,
    bindings_of,
    body_of,
    is_switched_on,
    workflow_of,
)
from rise.envelope import encode_json
from rise.errors import RouteTaken, StateConflict, Unavailable, VersionStale
from rise.ledger.port import Ledger
from rise.runtime.versions import Versions
from rise.telemetry import log

EVENT_QUEUED: Final = "event_queued"
"""A warning: other hosts hear of it when they can be reached, or find out by themselves within seconds."""

BindingsChange = Callable[[list[BindingRecord]], list[BindingRecord]]
BindingChange = Callable[[BindingRecord | None], BindingRecord]
BindingCheck = Callable[[BindingRecord], None]
"""Raises what speaks against a binding as it would be, with what is its account's."""


class Rebound(msgspec.Struct, frozen=True):
    """A binding as it is from now on."""

    binding: BindingRecord
    demoted: str | None = None
    """The workflow that was the account's default until then."""
    leaves_no_default: bool = False
    """The account had one until then."""


class Editor:
    """Writes definitions, each in one step."""

    def __init__(self, definitions: Definitions, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._definitions = definitions
        self._bus = bus
        self._clock = clock
        self._versions = Versions(definitions, ledger, bus, clock)

    async def event_is_queued(self) -> bool:
        """Whether other hosts have yet to be told of what was changed here: what changed it answers `event_queued`.

        They are told as soon as they can be reached, and look by themselves within seconds. Asked right after a change;
        it waits for an event that is on its way, half a second at most.
        """
        return await self._bus.has_queued()

    async def bind(self, binding: BindingRecord, *, by: str, why: str = "") -> BindingRecord:
        """The account is served as this says. A new default demotes the former one in the same step."""
        identity = (binding.channel, binding.account, binding.workflow_id)
        return (await self.rebind(*identity, lambda _: binding, by=by, why=why)).binding

    async def rebind(
        self,
        channel: str,
        account: str,
        workflow_id: str,
        change: BindingChange,
        *,
        by: str,
        action: str = "bind",
        why: str = "",
        version: int | None = None,
        check: BindingCheck = lambda binding: None,
    ) -> Rebound:
        """Change one binding, or make it. A new default demotes the former one in the same step.

        `version`: the one that the change was made for, 0 before there is any. Raises `VersionStale` if that is not in
        force, `RouteTaken` if another binding of the account has one of its routes, and what `check` raises.
        """
        demoted: str | None = None
        leaves_none = False

        def changed(known: list[BindingRecord]) -> list[BindingRecord]:
            nonlocal demoted, leaves_none
            former = next((one for one in known if one.workflow_id == workflow_id), None)
            if version is not None and version != (former.version if former else 0):
                raise VersionStale.of(f"the binding of {workflow_id}", former.version if former else 0)
            binding = change(former)
            others = [one for one in known if one.workflow_id != workflow_id]
            binding, others = _shared(binding, former, others)
            check(binding)
            _refuse_taken_routes(binding, others)
            demoted = None
            if binding.is_default and binding.enabled:
                demoted = next((one.workflow_id for one in others if one.is_default and one.enabled), None)
                others = [msgspec.structs.replace(one, is_default=False) for one in others]
            leaves_none = _has_default(known) and not _has_default([*others, binding])
            return [*others, binding]

        bindings = await self._change_bindings(channel, account, changed, by=by, action=action, why=why)
        return Rebound(next(one for one in bindings if one.workflow_id == workflow_id), demoted, leaves_none)

    async def unbind(
        self, channel: str, account: str, workflow_id: str, *, by: str, why: str = "", unless_met: bool = False
    ) -> None:
        """Nothing is bound there by this name any more. `unless_met`: what messages may meet stays."""

        def change(known: list[BindingRecord]) -> list[BindingRecord]:
            return [one for one in known if one.workflow_id != workflow_id or (unless_met and one.is_met)]

        await self._change_bindings(channel, account, change, by=by, action="unbind", why=why)

    async def publish(self, workflow: WorkflowRecord, *, by: str, comment: str = "") -> None:
        """It runs like this from now on. What changes nothing is no new version."""
        body = body_of(workflow)
        await self._versions.change(
            Kind.PUBLISHED, workflow.workflow_id, lambda _: body, by=by, action="publish", why=comment
        )

    async def follow_code(self, workflows: Iterable[WorkflowRecord], accounts: Mapping[str, str]) -> None:
        """Make the definitions agree with the code that was loaded.

        Each workflow is listed; each channel it asks for is bound to it where nobody else has decided.
        Bindings made by code follow the code; those made by a person are left alone, and so is what a person
        has switched off, or made of stages under the same id.
        """
        loaded = {one.workflow_id: one for one in workflows}
        for workflow_id in sorted(loaded.keys() & await self._made_of_stages()):
            theirs = "the one made of stages stays; give the one in the code another name"
            log.warning("workflow.name_taken", workflow_id=workflow_id, consequence=theirs)
            del loaded[workflow_id]
        for workflow in loaded.values():
            await self._follow_workflow(workflow)
        for definition in (await self._definitions.latest([Kind.PUBLISHED])).definitions:
            known = workflow_of(definition)
            if known.kind == CODE and known.workflow_id not in loaded and known.updated_by != NEWER:
                await self._follow_workflow(msgspec.structs.replace(known, published=False))
        for channel, account in accounts.items():
            asking = next((one.workflow_id for one in loaded.values() if channel in one.channels), None)
            await self._follow_channel(channel, account, asking, loaded)

    async def _follow_workflow(self, workflow: WorkflowRecord) -> None:
        """Listed as the code has it; whether it may serve channels is left as it is."""

        def change(last: Definition | None) -> bytes | None:
            if last is None or last.body is None:
                return body_of(workflow)
            known = workflow_of(last)
            if known.kind == STAGES:
                return last.body  # a person was faster
            return body_of(msgspec.structs.replace(workflow, enabled=is_switched_on(last)))

        action = "publish" if workflow.published else "unpublish"
        await self._versions.change(Kind.PUBLISHED, workflow.workflow_id, change, by=CODE, action=action)

    async def _made_of_stages(self) -> set[str]:
        """What people have made, which code cannot have as well."""
        latest = await self._definitions.latest([Kind.PUBLISHED, Kind.WORKFLOW])
        return {one.name for one in latest.definitions if one.kind is Kind.WORKFLOW or workflow_of(one).kind == STAGES}

    async def _follow_channel(self, channel: str, account: str, asking: str | None, loaded: Container[str]) -> None:
        def change(known: list[BindingRecord]) -> list[BindingRecord]:
            if any((one.bound_by or one.updated_by) != CODE or one.kill_switch is not None for one in known):
                return known  # a person has decided here, if only to switch it off
            if asking is None:
                # What is bound to a workflow that is not here waits for it.
                return [one for one in known if one.workflow_id not in loaded]
            if any(one.workflow_id == asking and one.is_default and one.enabled for one in known):
                return [one for one in known if one.workflow_id == asking]
            return [BindingRecord(channel=channel, account=account, workflow_id=asking)]

        why = "" if asking is None else f"{asking} asks for it"
        action = "unbind" if asking is None else "bind"
        await self._change_bindings(channel, account, change, by=CODE, action=action, why=why)

    async def _change_bindings(
        self, channel: str, account: str, change: BindingsChange, *, by: str, action: str, why: str
    ) -> list[BindingRecord]:
        """All of the account, as they are after it."""
        name = account_name(channel, account)
        known: list[BindingRecord] = []
        stamped: list[BindingRecord] = []

        def rewritten(last: Definition | None) -> bytes | None:
            nonlocal known, stamped
            known = stamped = [] if last is None else bindings_of(last)
            changed = change(known)
            if _by_name(changed) == _by_name(known):
                return None if last is None else last.body
            if not all(one.is_readable for one in known):
                raise StateConflict(f"the bindings of {name} were written by {NEWER}: change them with that")
            now_ms = epoch_ms(self._clock.now())
            stamped = _stamped(changed, known, version=1 if last is None else last.version + 1, at_ms=now_ms, by=by)
            return encode_json(stamped)

        written = await self._versions.write(Kind.BINDINGS, name, rewritten, by=by, action=action, why=why)
        if written.is_new and written.definition is not None:
            changed = [one for one in stamped if one not in known]
            await self._tell(changed, _left_out(known, stamped), action, version=written.definition.version)
        return stamped

    async def _tell(
        self, changed: list[BindingRecord], left_out: list[BindingRecord], action: str, *, version: int
    ) -> None:
        """Of every binding that is not as it was, also of one that another took the place of."""
        for binding in changed + left_out:
            is_left_out = binding in left_out
            event = {
                "channel": binding.channel,
                "account": binding.account,
                "workflowId": binding.workflow_id,
                "bindingVersion": version,
                "operation": "unbind" if is_left_out else action,
                "publishedVersion": await self._published_version(binding.workflow_id),
                "enabled": binding.enabled and not is_left_out,
            }
            self._bus.publish(Topic.DEFINITIONS_CHANGED, event)
            log.info("channel_binding.updated", **event)

    async def _published_version(self, workflow_id: str) -> int | None:
        try:
            found = await self._definitions.version(Kind.PUBLISHED, workflow_id)
        except Unavailable:
            return None  # the change stands all the same, and is told
        return None if found is None or found.body is None else workflow_of(found).version


def _shared(
    binding: BindingRecord, former: BindingRecord | None, others: list[BindingRecord]
) -> tuple[BindingRecord, list[BindingRecord]]:
    """With what is the account's alike in all of its bindings: as it was changed in this one, else as it was."""
    own, was = binding.own, ChannelOwn() if former is None else former.own
    for name in OF_THE_ACCOUNT:
        value = getattr(own, name)
        if value != getattr(was, name):
            others = [_with_own(one, name, value) for one in others]
        elif former is None and others:
            own = msgspec.structs.replace(own, **{name: getattr(others[0].own, name)})
    return msgspec.structs.replace(binding, own=own), others


def _with_own(binding: BindingRecord, name: str, value: object) -> BindingRecord:
    return msgspec.structs.replace(binding, own=msgspec.structs.replace(binding.own, **{name: value}))


def _has_default(bindings: list[BindingRecord]) -> bool:
    return any(one.is_default and one.enabled for one in bindings)


def _refuse_taken_routes(binding: BindingRecord, others: list[BindingRecord]) -> None:
    """A message meets one workflow: no two bindings of an account that are on have a route in common."""
    if not binding.enabled:
        return
    taken = {_folded(route): one.workflow_id for one in others if one.enabled for route in one.routes}
    for route in binding.routes:
        if (holder := taken.get(_folded(route))) is not None:
            raise RouteTaken(f"{route.by} {route.value} is {holder}'s already", field="routes")


def _folded(route: BindingRoute) -> tuple[str, str]:
    return route.by, route.value.casefold()


def _left_out(known: list[BindingRecord], stamped: list[BindingRecord]) -> list[BindingRecord]:
    kept = {one.workflow_id for one in stamped}
    return [one for one in known if one.workflow_id not in kept]


def _stamped(
    changed: list[BindingRecord], known: list[BindingRecord], *, version: int, at_ms: int, by: str
) -> list[BindingRecord]:
    """What is other than it was carries this version: whoever changes it on the strength of what it was is told."""
    moment, former = iso(from_epoch_ms(at_ms)), {one.workflow_id: one for one in known}

    def stamped(one: BindingRecord) -> BindingRecord:
        was = former.get(one.workflow_id)
        if one == was:
            return one
        is_only_switched = was is not None and one == msgspec.structs.replace(was, kill_switch=one.kill_switch)
        bound_by = was.bound_by if was is not None and is_only_switched else by
        return msgspec.structs.replace(one, version=version, updated_at=moment, updated_by=by, bound_by=bound_by)

    return [stamped(one) for one in _by_name(changed)]


def _by_name(bindings: list[BindingRecord]) -> list[BindingRecord]:
    return sorted(bindings, key=lambda one: one.workflow_id)

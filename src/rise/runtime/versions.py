"""The next version of one definition, whoever else writes at the same time.

Promises: a change is one version, which says who made it and why; all processes are told. The audit log has it before
it is made: a crash between the two leaves a record of something that was not done, never a change without a record.
What changes nothing is no new version.

Refuses: a change that was made for another version than the last (`VersionStale`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from rise.bus.port import Bus, Topic
from rise.clock import Clock, epoch_ms, from_epoch_ms
from rise.definitions.port import VERSIONS_KEPT, Definition, Definitions, Kind
from rise.definitions.records import workflow_of
from rise.errors import VersionStale
from rise.ledger.port import Ledger, Operation
from rise.runtime.differences import Difference
from rise.telemetry import log

TRIES: Final = 5
"""To change what somebody else is changing at the same time."""

Change = Callable[[Definition | None], bytes | None]
"""From the last version, None if there never was one, to the body of the next; None removes it. May be asked again."""


class InForce(NamedTuple):
    definition: Definition | None
    """None if there is nothing, and never was."""
    is_new: bool
    """Written by this change; otherwise it was so before."""


class Since(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a definition since a version of it that somebody has read."""

    version: int
    """The last one."""
    by: Sequence[str]
    """Who has changed it since, the latest first."""
    at: datetime
    """When it was changed last."""
    differences: Sequence[Difference]
    is_known: bool
    """Whether that version is still kept: else nobody can say what is other."""


class Versions:
    """Writes definitions, each change in one step."""

    def __init__(self, definitions: Definitions, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._definitions = definitions
        self._ledger = ledger
        self._bus = bus
        self._clock = clock

    async def last(self, kind: Kind, name: str) -> Definition | None:
        """What is in force; None if there is nothing, or nothing any more."""
        last = await self._definitions.version(kind, name)
        return None if last is None or last.body is None else last

    async def after(self, kind: Kind, name: str, version: int) -> tuple[Definition | None, Sequence[Definition]]:
        """That version, if it is kept, and those after it, the newest first."""
        last = await self._definitions.version(kind, name)
        count = 0 if last is None else last.version - version
        if count <= 0:
            return None, ()
        found = await self._definitions.versions(kind, name, limit=min(count + 1, VERSIONS_KEPT))
        former = next((one for one in found if one.version == version and one.body is not None), None)
        return former, [one for one in found if one.version > version]

    async def change(
        self,
        kind: Kind,
        name: str,
        change: Change,
        *,
        by: str,
        action: str,
        why: str = "",
        expected: int | None = None,
    ) -> Definition:
        """Write what `change` makes of the last version, tell everybody, and return what is in force then.

        `expected`: the version that the change was made for. Raises `VersionStale`, and what `change` raises.
        """
        written = await self.write(kind, name, change, by=by, action=action, why=why, expected=expected)
        definition = written.definition
        assert definition is not None
        if written.is_new:
            self._bus.publish(Topic.DEFINITIONS_CHANGED, _told_of(definition, action))
            log.info("definition.changed", kind=kind, name=name, version=definition.version, operation=action, by=by)
        return definition

    async def write(
        self,
        kind: Kind,
        name: str,
        change: Change,
        *,
        by: str,
        action: str,
        why: str = "",
        expected: int | None = None,
    ) -> InForce:
        """The same for who tells of it in words of their own."""
        is_recorded = False
        for _ in range(TRIES):
            last = await self._definitions.version(kind, name)
            version = 0 if last is None else last.version
            if expected is not None and expected != version:
                raise VersionStale.of(name, version)
            body = change(last)
            if body == (None if last is None else last.body):
                return InForce(last, is_new=False)
            now_ms = epoch_ms(self._clock.now())
            if not is_recorded:
                operation = Operation(at_ms=now_ms, who=by, action=action, target=name, why=why)
                await self._ledger.record_operation(operation)
                is_recorded = True
            following = Definition(
                kind=kind, name=name, version=version + 1, body=body, at_ms=now_ms, by=by, comment=why
            )
            try:
                await self._definitions.put(following)
            except VersionStale:
                continue
            return InForce(following, is_new=True)
        raise VersionStale(f"{name} is being changed by somebody else over and over; try again")


def since(later: Sequence[Definition], found: Sequence[Difference] | None) -> Since:
    """Of those after a version, the newest first; `found`: None where that one is not kept."""
    last = later[0]
    return Since(
        version=last.version,
        by=list(dict.fromkeys(one.by for one in later)),
        at=from_epoch_ms(last.at_ms),
        differences=found or (),
        is_known=found is not None,
    )


def _told_of(definition: Definition, action: str) -> dict[str, Any] | None:
    """Of what runs, in the words of a binding's event: whoever is bound to it is served otherwise from now on."""
    if definition.kind is not Kind.PUBLISHED:
        return None
    workflow = workflow_of(definition)
    return {
        "channel": None,
        "workflowId": definition.name,
        "bindingVersion": None,
        "operation": action,
        "publishedVersion": definition.version,
        "enabled": definition.body is not None and workflow.enabled and workflow.published,
    }

"""Definitions as a dict of lists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from rise.definitions.port import VERSIONS_KEPT, Definition, Kind, Latest
from rise.errors import VersionStale
from rise.testing.fakes.store import MemoryStore


@dataclass
class MemoryDefinitionsState:
    """What all processes share."""

    kept: dict[tuple[Kind, str], list[Definition]] = field(default_factory=dict)
    """Oldest first."""


class MemoryDefinitions(MemoryStore):
    """`rise.definitions.port.Definitions`, as one process sees the state."""

    def __init__(self, state: MemoryDefinitionsState) -> None:
        self._state = state

    async def changes(self) -> int:
        return await self._through("changes", self._changes)

    def _changes(self) -> int:
        return sum(versions[-1].version for versions in self._state.kept.values())

    async def latest(self, kinds: Collection[Kind]) -> Latest:
        return await self._through("latest", lambda: self._latest(kinds))

    def _latest(self, kinds: Collection[Kind]) -> Latest:
        last = [versions[-1] for _, versions in sorted(self._state.kept.items())]
        return Latest(self._changes(), [one for one in last if one.kind in kinds and one.body is not None])

    async def version(self, kind: Kind, name: str, version: int | None = None) -> Definition | None:
        return await self._through("version", lambda: self._version(kind, name, version))

    def _version(self, kind: Kind, name: str, version: int | None) -> Definition | None:
        versions = self._state.kept.get((kind, name), [])
        if version is None:
            return versions[-1] if versions else None
        return next((one for one in versions if one.version == version), None)

    async def versions(self, kind: Kind, name: str, *, limit: int) -> list[Definition]:
        return await self._through("versions", lambda: self._state.kept.get((kind, name), [])[::-1][:limit])

    async def put(self, definition: Definition) -> None:
        await self._through("put", lambda: self._put(definition))

    def _put(self, definition: Definition) -> None:
        last = self._version(definition.kind, definition.name, None)
        if last == definition:
            return
        if definition.version != (last.version if last else 0) + 1:
            raise VersionStale.of(definition.name, last.version if last else 0)
        versions = self._state.kept.setdefault((definition.kind, definition.name), [])
        versions.append(definition)
        del versions[:-VERSIONS_KEPT]

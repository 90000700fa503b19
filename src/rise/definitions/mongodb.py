"""Definitions on MongoDB, for any number of processes on any number of hosts.

Each definition is one document with its last version: what is in force changes with that document, and only for who
knows what was in force before. A version that is followed by another is written down apart first, so a crash in between
leaves it twice, which nobody sees.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rise.connections.mongodb import Document, Index, MongoDatabase
from rise.definitions.port import VERSIONS_KEPT, Definition, Kind, Latest
from rise.envelope import encode_json
from rise.errors import MongoUnavailable, VersionStale

LOOKS: Final = 20
"""Until one falls between two changes. People change things seldom; the code that was loaded, once at a start."""

INDEXES: Final[Mapping[str, Sequence[Index]]] = {
    "definitions": (Index("kind", ("kind", "name")),),
    "definitions_former": (Index("version", ("definition", "version"), is_unique=True),),
}


class MongoDefinitions:
    """`rise.definitions.port.Definitions` on one database of MongoDB."""

    def __init__(self, database: MongoDatabase) -> None:
        self._last = database["definitions"]
        self._former = database["definitions_former"]

    async def changes(self) -> int:
        """Each change makes a version one higher, so the versions in force add up to how many there have been."""
        summed = await self._last.drawn([{"$group": {"_id": None, "changes": {"$sum": "$version"}}}])
        return int(summed[0]["changes"]) if summed else 0

    async def latest(self, kinds: Collection[Kind]) -> Latest:
        # Versions only grow. If they add up to the same before and after the look, nothing has changed in between, so
        # all that was found was in force at one moment. One query alone would not say that: it reads in portions.
        changes = await self.changes()
        for _ in range(LOOKS):
            found = await self._found(kinds)
            before, changes = changes, await self.changes()
            if changes == before:
                return Latest(changes, found)
        raise MongoUnavailable("what is configured is being changed all the time")

    async def _found(self, kinds: Collection[Kind]) -> list[Definition]:
        asked = {"kind": {"$in": [kind.value for kind in kinds]}, "body": {"$ne": None}}
        found = [_as_definition(one) for one in await self._last.find(asked)]
        return sorted(found, key=lambda one: (one.kind, one.name))

    async def version(self, kind: Kind, name: str, version: int | None = None) -> Definition | None:
        last = await self._last.one({"_id": _key(kind, name)})
        if last is None or version is None or last["version"] == version:
            return _as_definition(last) if last is not None else None
        if not _forgotten(last["version"]) < version < last["version"]:
            return None
        former = await self._former.one({"definition": last["_id"], "version": version})
        return _as_definition(former) if former is not None else None

    async def versions(self, kind: Kind, name: str, *, limit: int) -> list[Definition]:
        last = await self._last.one({"_id": _key(kind, name)})
        if last is None or limit <= 0:
            return []
        former = {"definition": last["_id"], "version": {"$lt": last["version"], "$gt": _forgotten(last["version"])}}
        found = await self._former.find(former, order=[("version", -1)], limit=limit)
        return [_as_definition(one) for one in (last, *found)][:limit]

    async def put(self, definition: Definition) -> None:
        key = _key(definition.kind, definition.name)
        document = _as_kept(definition)
        last = await self._last.one({"_id": key})
        if last is not None and _as_definition(last) == definition:
            return
        if definition.version != (last["version"] if last is not None else 0) + 1:
            raise VersionStale.of(definition.name, last["version"] if last is not None else 0)
        if last is None:
            written = await self._last.insert({"_id": key, **document})
        else:
            await self._former.insert({**last, "_id": _key(*_named(last), last["version"]), "definition": key})
            changed = {"_id": key, "version": last["version"]}
            written = await self._last.change(changed, {"$set": document}, fields={"_id": 1}) is not None
        if not written:
            await self._refuse_another(definition)
        await self._former.remove({"definition": key, "version": {"$lte": _forgotten(definition.version)}})

    async def _refuse_another(self, definition: Definition) -> None:
        """Somebody was faster. Raises `VersionStale`, unless it was with the same."""
        last = await self.version(definition.kind, definition.name)
        if last != definition:
            raise VersionStale.of(definition.name, last.version if last is not None else 0)


def _forgotten(version: int) -> int:
    """Up to which version they are forgotten when this one is the last."""
    return version - VERSIONS_KEPT


def _key(kind: str, name: str, *version: int) -> str:
    return encode_json([kind, name, *version]).decode()


def _named(document: Document) -> tuple[str, str]:
    return document["kind"], document["name"]


def _as_kept(definition: Definition) -> dict[str, Any]:
    return {
        "kind": definition.kind.value,
        "name": definition.name,
        "version": definition.version,
        "body": definition.body,
        "at": definition.at_ms,
        "by": definition.by,
        "comment": definition.comment,
    }


def _as_definition(document: Document) -> Definition:
    body = document["body"]
    return Definition(
        kind=Kind(document["kind"]),
        name=document["name"],
        version=document["version"],
        body=None if body is None else bytes(body),
        at_ms=document["at"],
        by=document["by"],
        comment=document["comment"],
    )

"""What people and code have configured, with every version of it.

A definition has a kind and a name and grows by whole versions: 1, 2, 3. Writing the next version is the whole change,
so of two who change the same thing at once only one succeeds, and what was in force at any time can be read afterwards.
The promises here are executable: `rise.testing.conformance.definitions` runs on every backend.

Refuses: a version that is not the next one (`VersionStale`).
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final, Protocol

import msgspec

VERSIONS_KEPT: Final = 200
"""Of each definition; older ones are forgotten."""


class Kind(StrEnum):
    WORKFLOW = "workflow"
    """As somebody edits it."""
    PUBLISHED = "published"
    """A workflow as it runs."""
    BINDINGS = "bindings"
    """All of one account, so that which of them is the default changes in one step."""
    PROMPT = "prompt"
    SECRET = "secret"  # noqa: S105 - a kind of definition, not one of them
    """What stages put into their requests; its body has it sealed."""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """One version of something that is configured."""

    kind: Kind
    name: str
    version: int
    body: bytes | None
    """JSON; None if it was removed with this version."""
    at_ms: int
    """When, by the wall clock."""
    by: str
    comment: str = ""


class Latest(msgspec.Struct, frozen=True):
    """What is in force."""

    changes: int
    definitions: list[Definition]


class Definitions(Protocol):
    """Every method raises `StoreUnavailable` (or its backend's sibling) when the store does not answer."""

    async def changes(self) -> int:
        """How many there have been: more with every change, never fewer, the same for everybody who asks."""
        ...

    async def latest(self, kinds: Collection[Kind]) -> Latest:
        """The last version of each, in the order of their names, without what was removed: all that was in force at one
        moment, and how many changes there had been then."""
        ...

    async def version(self, kind: Kind, name: str, version: int | None = None) -> Definition | None:
        """That version, or the last one; of what was removed, the version that removed it."""
        ...

    async def versions(self, kind: Kind, name: str, *, limit: int) -> list[Definition]:
        """The last ones, newest first."""
        ...

    async def put(self, definition: Definition) -> None:
        """Write the next version. Written again, because the answer was lost, it changes nothing.

        Raises `VersionStale` unless its number follows the last one's, which is 0 before there is any.
        """
        ...

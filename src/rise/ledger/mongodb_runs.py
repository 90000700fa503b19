"""The documents of runs and notices in MongoDB, each changed by a function of it.

Promises: a change is written if nobody has changed the document since it was read, and otherwise made anew of what it
is now; so one document changes as a whole, without a transaction, which a server without replicas does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Final, TypeVar

from rise.connections.mongodb import Documents, Order, Query
from rise.errors import MongoUnavailable
from rise.ledger.documents import Document, derive, difference

T = TypeVar("T")

TRIES_MAX: Final = 200
"""Each but the last was lost to somebody else's change, so that somebody got on."""
WITHOUT_BYTES: Final = {"head": 0, "raw": 0, "result": 0}
"""What never changes, and may be a megabyte."""
WITHOUT_TASK: Final = {"head": 0, "raw": 0}


class RunDocuments:
    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def add(self, document: Document) -> bool:
        """False: there is one, and that one stays."""
        return await self._documents.insert(document)

    async def get(self, key: str) -> Document | None:
        return await self._documents.one({"_id": key}, fields=WITHOUT_BYTES)

    async def get_with(self, reply_id: str) -> Document | None:
        """The one that has this reply."""
        return await self._documents.one({"replies.reply_id": reply_id}, fields=WITHOUT_BYTES)

    async def shown(self, key: str) -> Document | None:
        """A run with what it came to."""
        return await self._documents.one({"_id": key, "is_notice": False}, fields=WITHOUT_TASK)

    async def latest(self, task_id: str, fields: Query) -> Document | None:
        """The run of the highest generation."""
        return await self._documents.one(
            {"task_id": task_id, "generation": {"$gte": 0}}, fields=fields, order=[("generation", -1)]
        )

    async def find(
        self, query: Query, *, fields: Query = WITHOUT_BYTES, order: Order | None = None, limit: int = 0
    ) -> list[Document]:
        return await self._documents.find(query, fields=fields, order=order, limit=limit)

    async def drawn(self, pipeline: Sequence[Query]) -> list[Document]:
        return await self._documents.drawn(pipeline)

    async def remove(self, query: Query) -> int:
        return await self._documents.remove(query)

    async def change_all(self, query: Query, update: Query) -> int:
        """What no change is made of: nobody is told, and nobody has to look again."""
        return await self._documents.change_all(query, update)

    async def has(self, key: str) -> bool:
        return await self._documents.one({"_id": key}, fields={"_id": 1}) is not None

    async def change(self, key: str, change: Callable[[Document], T]) -> tuple[Document | None, T | None]:
        """The document after it, and what the change came to. Nothing of either if there is no such document."""
        return await self._change({"_id": key}, change)

    async def change_with(self, reply_id: str, change: Callable[[Document], T]) -> tuple[Document | None, T | None]:
        """The same with the one that has this reply."""
        return await self._change({"replies.reply_id": reply_id}, change)

    async def _change(self, which: Query, change: Callable[[Document], T]) -> tuple[Document | None, T | None]:
        for _ in range(TRIES_MAX):
            before = await self._documents.one(which, fields=WITHOUT_BYTES)
            if before is None:
                return None, None
            after = deepcopy(before)
            made = change(after)
            derive(after)
            update = difference(before, after)
            if not update:
                return before, made
            written = await self._documents.change(
                {"_id": before["_id"], "revision": before["revision"]},
                update | {"$inc": {"revision": 1}},
                fields=WITHOUT_BYTES,
            )
            if written is not None:
                return written, made
        raise MongoUnavailable("too many change the same run at once")

"""What waits for the ledger as a dict, beside the queue."""

from __future__ import annotations

from collections.abc import Sequence

from rise.ledger.late import Waiting
from rise.testing.fakes.queue import LateKept, MemoryQueueState
from rise.testing.fakes.store import MemoryStore


class MemoryLateWrites(MemoryStore):
    """`rise.ledger.late.LateWrites`, as one process sees the state."""

    def __init__(self, state: MemoryQueueState) -> None:
        self._state = state

    async def put(self, key: str, about: str, write: bytes) -> bytes:
        return await self._through("put", lambda: self._put(key, about, write))

    def _put(self, key: str, about: str, write: bytes) -> bytes:
        if key not in self._state.late:
            self._state.late_ever += 1
            self._state.late[key] = LateKept(self._state.late_ever, about, write)
        return self._state.late[key].write

    async def get(self, key: str) -> bytes | None:
        return await self._through("get", lambda: self._get(key))

    def _get(self, key: str) -> bytes | None:
        kept = self._state.late.get(key)
        return None if kept is None else kept.write

    async def first_of(self, keys: Sequence[str]) -> bytes | None:
        return await self._through("first_of", lambda: self._first_of(keys))

    def _first_of(self, keys: Sequence[str]) -> bytes | None:
        return next((self._state.late[key].write for key in keys if key in self._state.late), None)

    async def about(self, about: str) -> list[bytes]:
        return await self._through("about", lambda: self._about(about))

    def _about(self, about: str) -> list[bytes]:
        return [kept.write for kept in self._state.late.values() if kept.about == about]

    async def page(self, *, limit: int, after: int = 0) -> list[Waiting]:
        return await self._through("page", lambda: self._page(limit, after))

    def _page(self, limit: int, after: int) -> list[Waiting]:
        waiting = [Waiting(kept.number, key, kept.write) for key, kept in self._state.late.items()]
        return [one for one in waiting if one.number > after][:limit]

    async def remove(self, keys: Sequence[str]) -> None:
        await self._through("remove", lambda: self._remove(keys))

    def _remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._state.late.pop(key, None)

    async def depth(self) -> int:
        return await self._through("depth", lambda: len(self._state.late))

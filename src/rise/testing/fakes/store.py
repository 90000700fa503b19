"""The way to a store and back, which is where things go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class MemoryStore:
    """One process's way to a state that it shares with others."""

    async def _through(self, name: str, operation: Callable[[], T]) -> T:
        """Every method `name` of the port passes here; `operation` happens all at once or raises before it does.

        For a simulation to override: a request that is lost is not run, one that is repeated is run again, an
        answer that is lost is an error raised after it.
        """
        return operation()

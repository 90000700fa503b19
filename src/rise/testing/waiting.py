"""Waiting for what gives no signal: other processes, servers, pages. The only place where tests ask again and again.

Refuses: to take the place of a signal where there is one; a test that polls what it could await is slow and vague.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Final

from rise.clock import SystemClock

PATIENCE_SECONDS: Final = 20.0
ASK_SECONDS: Final = 0.02


async def eventually(look: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """The first answer of `look`, awaited if need be, that is something. Raises `TimeoutError` if none comes."""
    clock = SystemClock()
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await clock.sleep(ASK_SECONDS)

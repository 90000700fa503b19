"""A bot that never answers: what is open stays open, so that the memory it takes can be looked at."""

from __future__ import annotations

import asyncio

import rise
from rise.testing.bench.bot import note_first_run


@rise.workflow("holding", channels=["telegram", "http"], run_seconds=86_400)
async def holding(turn: rise.Turn) -> None:
    note_first_run()
    await asyncio.Event().wait()

"""The bot of the benchmarks: does nothing, and notes when its first run in this process began.

Answers on Telegram, where the answer has to be delivered too; elsewhere it says nothing.
"""

from __future__ import annotations

import rise
from rise.clock import SystemClock
from rise.settings import load_settings

FIRST_RUN = "first-run"
"""The file in the data directory that holds the moment."""

_noted: list[float] = []


def note_first_run() -> None:
    if not _noted:
        _noted.append(SystemClock().monotonic())
        (load_settings().data_dir / FIRST_RUN).write_text(str(_noted[0]))


@rise.workflow("noop", channels=["telegram", "http"])
async def noop(turn: rise.Turn) -> None:
    note_first_run()
    if turn.channel == "telegram":
        await turn.reply("ok")

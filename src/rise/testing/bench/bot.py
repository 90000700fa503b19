"""The bot of the benchmarks: does nothing, and notes when its first run in this process began.

Answers on Telegram, where the answer has to be delivered too; elsewhere it says nothing.
"""

from __future__ import annotations

import rise
from rise.clock import SystemClock
from rise.settings import load_settings

FIRST_RUN = "first-run"
"""The file in the data directory that holds the moment."""
EVERY_RUN = "every-run"
"""If it is there when the first run begins, every run adds its chat and its moment to it."""

_noted: list[float] = []


class _EveryRun:
    def __init__(self) -> None:
        path = load_settings().data_dir / EVERY_RUN
        self._clock = SystemClock()
        self._file = path.open("ab", buffering=0) if path.exists() else None

    def note(self, chat_id: str) -> None:
        if self._file is not None:
            self._file.write(f"{chat_id} {self._clock.monotonic()}\n".encode())


_every: list[_EveryRun] = []


def note_first_run() -> None:
    if not _noted:
        _noted.append(SystemClock().monotonic())
        (load_settings().data_dir / FIRST_RUN).write_text(str(_noted[0]))


def note_run(chat_id: str) -> None:
    if not _every:
        note_first_run()
        _every.append(_EveryRun())
    _every[0].note(chat_id)


@rise.workflow("noop", channels=["telegram", "http"])
async def noop(turn: rise.Turn) -> None:
    note_run(turn.chat_id or "")
    if turn.channel == "telegram":
        await turn.reply("ok")

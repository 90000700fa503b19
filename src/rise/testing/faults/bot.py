"""The bot of the drill: says what it was told, in capitals, after a saved step and a short time.

What ends in "twice" it answers with two messages.
"""

from __future__ import annotations

from typing import Final

import rise
from rise.clock import SystemClock

WORK_SECONDS: Final = 0.01

_clock = SystemClock()


def answers_to(text: str) -> list[str]:
    """What is said to a message, in order."""
    shouted = text.upper()
    return [shouted, f"{shouted}, AGAIN"] if text.endswith("twice") else [shouted]


async def _look_up(text: str) -> list[str]:
    await _clock.sleep(WORK_SECONDS)
    return answers_to(text)


@rise.workflow("echo", channels=["telegram", "webchat", "http"])
async def echo(turn: rise.Turn) -> None:
    for said in await turn.step("look up", _look_up, turn.text):
        await turn.reply(said)

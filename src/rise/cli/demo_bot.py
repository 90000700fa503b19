"""The bot of `rise demo`. Copy it, change it, and run it with `RISE_APP=my_bot.py rise serve`."""

from __future__ import annotations

import asyncio

import rise


@rise.workflow("demo", channels=["telegram", "webchat", "http"])
async def demo(turn: rise.Turn) -> None:
    """Counts words slowly, so that there is time to kill the process in between."""
    words = await turn.step("count", count_words, turn.text)
    plural = "word" if words == 1 else "words"
    turns = len(turn.history) // 2 + 1
    await turn.reply(f"You said {words} {plural}: “{turn.text}”. That was turn {turns} of our conversation.")


async def count_words(text: str) -> int:
    await asyncio.sleep(2)  # noqa: TID251 - a bot's own code may sleep as it likes
    return len(text.split())

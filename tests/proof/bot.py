"""The bot of the proofs: says what it was told, after a saved step and a short time."""

import asyncio
import os

import rise

SECONDS = float(os.environ.get("PROOF_BOT_SECONDS", "0.01"))


async def look_up(text: str) -> str:
    await asyncio.sleep(SECONDS)
    return text.upper()


@rise.workflow("echo", channels=["telegram", "webchat", "http"])
async def echo(turn: rise.Turn) -> None:
    shouted = await turn.step("look up", look_up, turn.text)
    await turn.reply(f"{shouted}")

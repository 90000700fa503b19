"""Who writes to the bot while things go wrong, and who only pretends to."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import aiohttp

from rise.clock import Clock
from rise.envelope import DeliveryKey, task_id_of
from rise.testing.faults.seen import Question
from rise.testing.telegram import TelegramStandIn, updates

TWICE_EVERY: Final = 7
WAITING_MAX: Final = 2000
"""People stop writing to a bot that does not take their messages; a slow machine is not buried."""
FORGED_TEXT: Final = "Forged"


class People:
    """Write in several chats, one after the other, without waiting for answers."""

    def __init__(self, telegram: TelegramStandIn, clock: Clock, *, chats: int, per_second: float) -> None:
        self._telegram = telegram
        self._clock = clock
        self._chats = chats
        self._pause_seconds = 1 / per_second
        self.questions: list[Question] = []

    async def write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if len(self._telegram.pending()) < WAITING_MAX:
                self._ask()
            await self._clock.sleep(self._pause_seconds)

    def _ask(self) -> None:
        number = len(self.questions)
        text = f"Message {number:06}" + (", twice" if number % TWICE_EVERY == 0 else "")
        chat_id = 100 + number % self._chats
        queued = self._telegram.message(text, chat_id=chat_id)
        assert queued is not None, "the platform keeps what people write"
        key = DeliveryKey(f"tg:{self._telegram.bot_id}:u:{queued.update_id}")
        self.questions.append(Question(task_id_of(key), chat_id, text))


class Forger:
    """Sends updates that are not the platform's: without its secret, or with a wrong one."""

    def __init__(self, url: str, clock: Clock, *, per_second: float) -> None:
        self._url = url
        self._clock = clock
        self._pause_seconds = 1 / per_second
        self.answers: Counter[int] = Counter()
        """By status."""

    async def forge(self, stop: asyncio.Event) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            while not stop.is_set():
                await self._send(session)
                await self._clock.sleep(self._pause_seconds)

    async def _send(self, session: aiohttp.ClientSession) -> None:
        number = self.answers.total()
        headers = {"X-Telegram-Bot-Api-Secret-Token": "not-the-secret-of-this-bot"} if number % 2 else {}
        update = {"update_id": number, **updates.message(FORGED_TEXT, message_id=number, date=0)}
        try:
            async with session.post(self._url, json=update, headers=headers) as response:
                self.answers[response.status] += 1
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # nobody there just now

"""Which ids are one chat. A group that becomes a supergroup gets a new one, and stays the chat that it was.

A chat goes by the first id it ever had: its lane, its history and its notices are named after that for ever, so what
is still pending in them stays ahead of what comes under the new id. Replies go to the id that it has now; the outbox
sees to that.

Promises: reading is a look in memory. What this process hears is known to it at once, so before it reads the next
update; it is in the ledger before whoever said it is told that it was heard, if that answers within a second. Other
processes know within seconds; one that was stopped for longer looks before it reads what has come meanwhile.

Refuses: to keep anybody waiting for the ledger. While that is away this process alone knows, and goes on trying to
write it down; if it dies first, the run of the message that said so writes it. Until then, what others accept under the
new id, and what that plans for later, has a lane of its own: it may be answered out of order with the old id's; its
history is joined all the same.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.errors import Unavailable
from rise.ledger.port import ChatMove, Ledger
from rise.service import Loop, Signal, sparingly
from rise.telemetry import log

CHECK_SECONDS: Final = 5.0
"""How often the ledger is asked; makes up for lost events."""
TRUSTED_SECONDS: Final = CHECK_SECONDS + 1.0
"""So long after a look what is known may be gone by: longer than until the next one, unless the process was stopped."""
RECORD_SECONDS_MAX: Final = 1.0
"""How long a start waits for the ledger and, once per chat that moves and per stop of the process, a message."""


class ChatRegistry:
    """The chats that have moved, as far as this process has heard."""

    name = "chats"

    def __init__(self, ledger: Ledger, bus: Bus, clock: Clock) -> None:
        self._ledger = ledger
        self._bus = bus
        self._first_ids: dict[tuple[str, str, str], str] = {}
        self._unrecorded: dict[tuple[str, str, str], ChatMove] = {}
        self._sequence = 0
        self._clock = clock
        self._trusted_until = math.inf
        self._looking = asyncio.Lock()
        self._changed = Signal()
        self._unsubscribe = bus.subscribe(Topic.CHATS_MOVED, lambda _: self._changed.set())
        self._loop = Loop("chats", self._follow, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        # Before the doors open: the first message after a restart belongs where the last one before it went.
        await self._look()
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()
        self._unsubscribe()

    async def catch_up(self) -> None:
        """Wait for this before reading what has come. A process that goes on after a while has not heard what was said
        meanwhile, and what came meanwhile is often the first that it reads."""
        if self._clock.monotonic() <= self._trusted_until:
            return
        async with self._looking:  # one looks, for all who wait
            if self._clock.monotonic() > self._trusted_until:
                await self._look()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(RECORD_SECONDS_MAX):
                await self.refresh()
        except (Unavailable, TimeoutError):
            self._trusted_until = math.inf  # nobody else waits for it, until it has answered again

    def first_id(self, channel: str, account: str, chat_id: str) -> str | None:
        """The id that the chat goes by, if this is a later one."""
        return self._first_ids.get((channel, account, chat_id))

    def hear(self, move: ChatMove) -> None:
        """Know it from now on. `record` makes it durable."""
        chat = (move.channel, move.account, move.chat_id)
        if chat not in self._first_ids:
            self._first_ids[chat] = move.first_id
            self._unrecorded[chat] = move

    async def record(self) -> None:
        """Write down what was heard. Raises nothing for a ledger that is away: it is written when that is back."""
        try:
            async with asyncio.timeout(RECORD_SECONDS_MAX):
                await self._record()
        except (Unavailable, TimeoutError) as error:
            alone = "this process alone knows that they are one chat, until the ledger is back"
            log.warning("chats.record_delayed", error=error, consequence=alone)

    async def _record(self) -> None:
        for chat, move in list(self._unrecorded.items()):
            await self._ledger.move_chat(move.channel, move.account, move.first_id, move.chat_id)
            self._unrecorded.pop(chat, None)
            log.info("chat.moved", channel=move.channel, account=move.account)
            self._bus.publish(Topic.CHATS_MOVED)

    async def refresh(self) -> None:
        """Take over what others have recorded since."""
        asked_at = self._clock.monotonic()  # the answer is as old as that, if the process was stopped in between
        for move in await self._ledger.chat_moves(after=self._sequence):
            self._first_ids[move.channel, move.account, move.chat_id] = move.first_id
            self._sequence = move.sequence
        self._trusted_until = asked_at + TRUSTED_SECONDS

    async def _follow(self) -> None:
        await self._changed.wait(CHECK_SECONDS)
        await self._record()
        await self.refresh()


def _report(name: str, error: BaseException) -> None:
    log.warning("chats.refresh_failed", error=error, consequence="chats that have moved since are not known here")

"""Whose Redis it is, also while the ledger that says so is away.

A Redis belongs to one ledger. One on MongoDB may be away when a process starts: then its name is taken from the data
directory, where it was written down when it was last heard. Where it never was, Redis is not used before it is known,
and the other copies take what comes.

Promises: an emptied MongoDB has its former name again, so that Redis and ledger still know each other. Refuses: to take
a name for granted; once a minute it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rise.clock import Clock
from rise.errors import Unavailable
from rise.ledger.port import Ledger
from rise.runtime.directory import DataDirectory
from rise.service import Loop
from rise.telemetry import log

if TYPE_CHECKING:
    from rise.connections.redis import RedisDatabase

ASK_SECONDS: Final = 2.0
KNOWN_SECONDS: Final = 60.0


class LedgerName:
    """Learns it, keeps it, and tells Redis."""

    name = "ledger name"

    def __init__(self, ledger: Ledger, directory: DataDirectory, redis: RedisDatabase, clock: Clock) -> None:
        self._ledger = ledger
        self._directory = directory
        self._redis = redis
        self._clock = clock
        self._loop = Loop(self.name, self._ask, sleep=clock.sleep, on_error=_report, pause_seconds_max=ASK_SECONDS)

    async def open(self) -> None:
        """Now if the ledger answers, else as it is remembered."""
        try:
            await self._learn()
        except Unavailable as error:
            remembered = self._directory.known_ledger()
            if remembered is not None:
                self._redis.belongs_to(remembered)
            else:
                self._redis.await_owner()
                log.warning("redis.unused", error=error, consequence="it is used as soon as MongoDB says whose it is")

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def _ask(self) -> None:
        await self._learn()
        await self._clock.sleep(KNOWN_SECONDS)

    async def _learn(self) -> None:
        learned = await self._ledger.identity()
        self._directory.remember_ledger(learned)
        self._redis.belongs_to(learned)


def _report(name: str, error: BaseException) -> None:
    log.debug("ledger.unnamed", error=error)  # that it is away is said by its capability

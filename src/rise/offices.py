"""What one process of an installation does for all, and who that is now.

An office is a lease in the ledger: a process that dies, hangs or is cut off from it loses its offices within
`LEASE_SECONDS`, one that is known to be dead at once. Two may think for a moment that they have the same office, one of
them about to find out; what must not be done twice carries a fence besides.

Refuses: to let two have one office by the ledger's word; to say that it is ours when the ledger has not, lately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rise.clock import Clock
from rise.errors import Unavailable
from rise.ledger.port import Ledger, Office
from rise.service import Loop
from rise.telemetry import log

LEASE_SECONDS: Final = 10.0
ASK_SECONDS: Final = 1.0
"""How often who has not got it asks for it."""


class OfficeClaim:
    """One process's claim to one office, kept up until it is stopped."""

    def __init__(
        self, ledger: Ledger, office: Office, member: str, clock: Clock, *, on_taken: Callable[[], None] = lambda: None
    ) -> None:
        self.name = f"office.{office}"
        self._ledger = ledger
        self._office = office
        self._member = member
        self._clock = clock
        self._on_taken = on_taken
        self._ours_until: float | None = None
        self._asked_at: float | None = None
        self._is_anothers = False
        self._trouble = ""
        self._is_said_unknown = False
        self._loop = Loop(self.name, self._ask, sleep=clock.sleep, on_error=self._report, pause_seconds_max=ASK_SECONDS)

    @property
    def is_ours(self) -> bool:
        """Whether this process is the one now, as far as it knows."""
        return self._ours_until is not None and self._clock.monotonic() < self._ours_until

    @property
    def is_anothers(self) -> bool:
        """Whether the ledger has said so, the last time that it answered."""
        return self._is_anothers

    @property
    def trouble(self) -> str:
        """Why it cannot be said whose it is; empty while the ledger answers."""
        asked_at = self._asked_at
        if asked_at is not None and self._clock.monotonic() - asked_at >= LEASE_SECONDS:
            return "the ledger does not answer"
        return self._trouble

    def doubt(self) -> None:
        """Somebody else was seen to act in it: it is not ours until the ledger says so."""
        self._ours_until = None

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        """Whoever asks has it when the process says that it leaves its offices, or the lease is over."""
        await self._loop.stop()
        self._ours_until = None

    async def _ask(self) -> None:
        asked_at, was_ours = self._clock.monotonic(), self.is_ours
        if await self._take():
            self._ours_until = asked_at + LEASE_SECONDS
            if not was_ours:
                log.info("office.taken", office=self._office)
                self._on_taken()
        else:
            self._ours_until = None
        await self._clock.sleep(LEASE_SECONDS / 3 if self.is_ours else ASK_SECONDS)

    async def _take(self) -> bool:
        self._asked_at = self._clock.monotonic()
        try:
            is_ours = await self._ledger.take_office(self._office, self._member, seconds=LEASE_SECONDS)
        except Unavailable as error:
            self._trouble = error.public_message
            raise
        finally:
            self._asked_at = None
        self._is_anothers, self._trouble, self._is_said_unknown = not is_ours, "", False
        return is_ours

    def _report(self, name: str, error: BaseException) -> None:
        """Once for as long as the ledger is away: it is asked every second. What else goes wrong is said each time."""
        is_away = isinstance(error, Unavailable)
        if not (is_away and self._is_said_unknown):
            log.warning(
                "office.unknown", office=name, error=error, consequence="asked again; after a while another may have it"
            )
        self._is_said_unknown = self._is_said_unknown or is_away

"""Outages: whether a platform answers at the moment. A reply that may be repeated once is not repeated into silence.

A call that ends in doubt, while nobody else of its account has been answered since it went out, opens an outage:

    the account    what is sent                                                    until
    is silent      nothing; something harmless is asked, again and again           that is answered
    is tried       what is urgent, and one other call at a time, further and       a call is answered (the outage is
                   further apart                                                   over), or fails (it is silent again)

Refuses: to decide what becomes of a reply; to be written down. Who begins to send asks before it repeats anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rise.channels.port import NotSent, Receiver, SendOutcome, Uncertain
from rise.clock import Clock
from rise.service import cancel_all, spawn
from rise.telemetry import log

Account = tuple[str, str]
"""Channel, account."""

ASKED_AGAIN_SECONDS: Final = (1.0, 2.0, 4.0, 5.0)
"""Never longer: everything of the account is late by that much, a payment too, which has ten seconds."""
TRIED_AGAIN_SECONDS: Final = (3.0, 8.0, 15.0, 30.0, 60.0)
"""Longer: where calls fail though the platform answers, each that is tried may cost a person an answer."""
TRIAL_SECONDS: Final = 5.0
"""A call that is tried may hang by itself; after so long another is tried beside it."""
IDLE_SECONDS: Final = 30.0
"""If there was nothing to try for so long, nothing is known any more."""


@dataclass(slots=True)
class _Outage:
    trial_from: float
    """When the next call may be tried."""
    is_silent: bool = True
    tried_at: float | None = None
    failed: int = 0
    """Calls that were tried."""
    is_told: bool = False


class Outages:
    """Of the accounts of one sender."""

    def __init__(
        self,
        channels: Mapping[str, Receiver],
        clock: Clock,
        *,
        on_trouble: Callable[[Account, str | None], None],
        on_answer: Callable[[], None],
    ) -> None:
        """`on_trouble(account, trouble)` hears when calls of an account begin to fail for longer than a moment, and
        when they are believed to work again; `on_answer()`, when more may be sent."""
        self._channels = channels
        self._clock = clock
        self._on_trouble = on_trouble
        self._on_answer = on_answer
        self._outages: dict[Account, _Outage] = {}
        self._answered_at: dict[Account, float] = {}
        self._asking: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        await cancel_all(self._asking)

    def forget(self) -> None:
        """Somebody else sends, and finds out for itself."""
        self._answered_at.clear()
        for account in list(self._outages):
            self._end(account)
        for asking in self._asking:
            asking.cancel()

    # --- what may be sent ---

    def silent(self) -> list[Account]:
        """Those of which nothing is sent."""
        self._forget_idle()
        return [account for account, outage in self._outages.items() if outage.is_silent]

    def waiting(self) -> list[Account]:
        """Those of which only what is urgent is sent: a call is being tried, or it is too early for the next."""
        now = self._clock.monotonic()
        return [account for account, outage in self._outages.items() if outage.trial_from > now]

    def may_go(self, account: Account, *, is_urgent: bool, is_repetition: bool) -> bool:
        """Whether this call may go now; if it is the one that is tried, no other may until that is known."""
        if is_repetition and account not in self._answered_at and account not in self._outages:
            # Whoever was sending before may have stopped in the middle of an outage.
            self._open(account)
        outage, now = self._outages.get(account), self._clock.monotonic()
        if outage is None:
            return True
        if outage.is_silent or (outage.trial_from > now and not is_urgent):
            return False
        if not is_urgent:
            outage.tried_at, outage.trial_from = now, now + TRIAL_SECONDS
        return True

    # --- what is learnt ---

    def note(self, account: Account, outcome: SendOutcome, began: float) -> None:
        """How a call ended that went out at `began`."""
        match outcome:
            case Uncertain(error):
                if account not in self._outages and self._answered_at.get(account, 0.0) <= began:
                    self._open(account)
                else:
                    self._note_failed(account, error, began)
            case NotSent(error):
                self._note_failed(account, error, began)
            case _:
                # A refusal is an answer, too.
                self._answered_at[account] = self._clock.monotonic()
                self._end(account)

    def _open(self, account: Account) -> None:
        self._outages[account] = _Outage(trial_from=self._clock.monotonic())
        self._ask(account)

    def _note_failed(self, account: Account, error: str, began: float) -> None:
        """What was out already when it began says nothing new."""
        outage = self._outages.get(account)
        if outage is None or outage.is_silent or outage.tried_at is None or began < outage.tried_at:
            return
        outage.trial_from = self._clock.monotonic() + self._pause_seconds(TRIED_AGAIN_SECONDS, outage.failed)
        outage.failed += 1
        outage.is_silent = True
        self._tell(account, f"calls fail: {error}")
        self._ask(account)

    def _end(self, account: Account) -> None:
        outage = self._outages.pop(account, None)
        if outage is None:
            return
        if outage.is_told:
            self._on_trouble(account, None)
        self._on_answer()

    def _forget_idle(self) -> None:
        now = self._clock.monotonic()
        for account, outage in list(self._outages.items()):
            if not outage.is_silent and now - outage.trial_from > IDLE_SECONDS:
                self._end(account)

    def _tell(self, account: Account, trouble: str) -> None:
        if not self._outages[account].is_told:
            self._outages[account].is_told = True
            self._on_trouble(account, trouble)

    # --- asking ---

    def _ask(self, account: Account) -> None:
        asking = self._ask_until_answered(account, self._outages[account])
        spawn(asking, name="asks the platform", into=self._asking, for_all=True)

    async def _ask_until_answered(self, account: Account, outage: _Outage) -> None:
        asked = 0
        while (trouble := await self._trouble(account)) is not None:
            if self._outages.get(account) is not outage:
                return
            self._tell(account, f"the platform does not answer: {trouble}")
            await self._clock.sleep(self._pause_seconds(ASKED_AGAIN_SECONDS, asked))
            asked += 1
        outage.is_silent = False
        outage.trial_from = max(outage.trial_from, self._clock.monotonic())
        self._on_answer()

    async def _trouble(self, account: Account) -> str | None:
        channel, account_id = self._channels[account[0]], account[1]
        try:
            return await channel.trouble(account_id)
        except Exception as error:  # noqa: BLE001 - border: it counts as no answer, and is asked again
            log.error("channel.ask_failed", error=error, exc_info=error, consequence="its replies wait")
            return str(error) or type(error).__name__

    def _pause_seconds(self, pauses: tuple[float, ...], count: int) -> float:
        return pauses[min(count, len(pauses) - 1)] * self._clock.random.uniform(0.8, 1.2)

"""One process at a time does what is done once for all."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from rise.clock import epoch_ms
from rise.errors import StoreUnavailable
from rise.ledger.port import Office
from rise.offices import ASK_SECONDS, LEASE_SECONDS, OfficeClaim
from rise.testing.clock import ManualClock
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState


class Ledger(MemoryLedger):
    is_away = False
    hangs = False

    async def take_office(self, office: Office, member: str, *, seconds: float) -> bool:
        if self.is_away:
            raise StoreUnavailable("away")
        if self.hangs:
            await asyncio.Event().wait()
        return await super().take_office(office, member, seconds=seconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledgers(clock: ManualClock) -> tuple[Ledger, Ledger]:
    state = MemoryLedgerState()
    epoch = epoch_ms(clock.now())

    def now_ms() -> int:
        return epoch + int(clock.monotonic() * 1000)

    return Ledger(state, now_ms=now_ms), Ledger(state, now_ms=now_ms)


async def pass_time(clock: ManualClock, seconds: float) -> None:
    """In steps, so that whoever sleeps wakes in time; everybody runs until all sleep again."""
    for _ in range(max(1, round(seconds * 10))):
        clock.advance(0.1 if seconds else 0.0)
        for _ in range(20):
            await asyncio.sleep(0)


async def started(ledger: Ledger, member: str, clock: ManualClock) -> OfficeClaim:
    claim = OfficeClaim(ledger, Office.SENDER, member, clock)
    await claim.start()
    await pass_time(clock, 0.0)
    return claim


@pytest.mark.req("EMB-3", "OUT-2")
async def test_the_first_has_it_until_it_stops_saying_so(clock: ManualClock, ledgers: tuple[Ledger, Ledger]):
    one, two = await started(ledgers[0], "a", clock), await started(ledgers[1], "b", clock)
    for _ in range(20):
        await pass_time(clock, ASK_SECONDS)
        assert (one.is_ours, two.is_ours) == (True, False)
    await one.stop()
    assert not one.is_ours
    await pass_time(clock, LEASE_SECONDS + ASK_SECONDS)
    assert two.is_ours
    await two.stop()


@pytest.mark.req("EMB-3")
@pytest.mark.failure("D4")
async def test_who_cannot_reach_the_ledger_gives_it_up_before_another_gets_it(
    clock: ManualClock, ledgers: tuple[Ledger, Ledger]
):
    one, two = await started(ledgers[0], "a", clock), await started(ledgers[1], "b", clock)
    ledgers[0].is_away = True
    while not two.is_ours:
        assert not (one.is_ours and two.is_ours)
        await pass_time(clock, 0.1)
    assert not one.is_ours
    ledgers[0].is_away = False
    await pass_time(clock, ASK_SECONDS * 2)
    assert (one.is_ours, two.is_ours) == (False, True)
    await one.stop()
    await two.stop()


@pytest.mark.req("EMB-3", "CAP-6")
@pytest.mark.failure("D4")
async def test_nobody_says_whose_it_is_while_the_ledger_does_not(clock: ManualClock, ledgers: tuple[Ledger, Ledger]):
    def said(claim: OfficeClaim) -> tuple[bool, bool, str]:
        return claim.is_ours, claim.is_anothers, claim.trouble

    one, two = await started(ledgers[0], "a", clock), await started(ledgers[1], "b", clock)
    assert (said(one), said(two)) == ((True, False, ""), (False, True, ""))
    ledgers[0].is_away = ledgers[1].is_away = True
    await pass_time(clock, LEASE_SECONDS + ASK_SECONDS)
    assert [(claim.is_ours, claim.trouble) for claim in (one, two)] == [(False, "away")] * 2
    ledgers[0].is_away = False
    await pass_time(clock, ASK_SECONDS * 2)
    ledgers[1].is_away = False
    await pass_time(clock, ASK_SECONDS * 2)
    assert (said(one), said(two)) == ((True, False, ""), (False, True, ""))
    ledgers[1].hangs = True
    await pass_time(clock, LEASE_SECONDS + ASK_SECONDS * 2)
    assert two.trouble == "the ledger does not answer"
    await one.stop()
    await two.stop()


@pytest.mark.req("EMB-3")
async def test_who_saw_another_act_in_it_asks_again_first(clock: ManualClock, ledgers: tuple[Ledger, Ledger]):
    one = await started(ledgers[0], "a", clock)
    one.doubt()
    assert not one.is_ours
    await pass_time(clock, LEASE_SECONDS / 3 + ASK_SECONDS)
    assert one.is_ours
    await one.stop()


@pytest.mark.req("CAP-5")
async def test_that_it_is_not_known_is_logged_once_for_each_time_the_ledger_is_away(
    clock: ManualClock, ledgers: tuple[Ledger, Ledger]
):
    ledger = ledgers[0]
    claim = await started(ledger, "a", clock)
    for said in (1, 2):
        ledger.is_away = True
        with capture_logs() as logged:
            await pass_time(clock, LEASE_SECONDS * 2)
        assert [entry["event"] for entry in logged].count("office.unknown") == 1, f"the outage {said}"
        ledger.is_away = False
        await pass_time(clock, LEASE_SECONDS)
        assert claim.is_ours
    await claim.stop()

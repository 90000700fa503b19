"""kill -9 at random moments under load: nothing lost, and every duplicate is one that could not be known.

Prints the table that is the public claim (`pytest -s`). `make kill` kills 200 times; `test_drill.py` adds
everything else that can go wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.testing.faults.drill import run_drill
from rise.testing.faults.ground import STALL_SECONDS
from rise.testing.faults.order import Order
from rise.testing.faults.schedule import Cycle, Freeze, Restart, Victim

pytestmark = pytest.mark.slow


@pytest.mark.req("CPY-7", "QUE-3", "WRK-4", "WRK-5", "WRK-7", "OUT-1", "OPS-2", "TST-4")
@pytest.mark.failure("A3", "A4", "A5", "C1", "C4", "D1", "D14", "G1", "G2", "G3", "F11", "E2")
async def test_kill_9_at_random_moments_loses_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--seed")
    order = Order(seed=seed, cycles=kills, troubles=False)
    report = await run_drill(order, tmp_path)
    print(f"\n{report.text()}")
    assert not report.broken(), report
    assert report.kill_cycles == kills
    assert report.repeated_marked <= order.chats * kills, "at most one per chat and crash"


@pytest.mark.req("WRK-6")
@pytest.mark.failure("D18")
async def test_sigterm_under_load_is_never_worse_than_a_kill(tmp_path: Path) -> None:
    stops = [Cycle(None, Restart(pause_seconds=0.7))] * 5
    report = await run_drill(Order(seed=0, schedule=stops), tmp_path)
    assert not report.broken(), report
    assert sum(report.faults.values()) == len(stops)
    assert report.repeated_marked == 0, "a stop in order leaves nothing in doubt"


@pytest.mark.req("WRK-7", "QUE-3")
@pytest.mark.failure("D2", "D5", "L2")
@pytest.mark.parametrize("victim", [Victim.WORKER, Victim.ADDED, Victim.GATEWAY])
async def test_what_stands_still_for_longer_than_its_claim_loses_and_repeats_nothing(tmp_path: Path, victim: Victim):
    report = await run_drill(Order(seed=0, schedule=[Cycle(None, Freeze(victim, STALL_SECONDS + 2.0))]), tmp_path)
    assert not report.broken(), report
    assert sum(report.faults.values()) == 1
    assert report.repeated_marked == 0
    if victim is Victim.WORKER:
        assert "worker.stalled" in (tmp_path / "rise.log").read_text(), "it was replaced, not waited for"

"""The stage for the tests of a message's way: see `pipeline_stage.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from conversation_stage import Talks
from pipeline_stage import Stage

from rise.testing.clock import ManualClock
from rise.testing.servers import TemporalServer
from rise.testing.telegram import SendRates, TelegramStandIn


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


@pytest.fixture
async def stage(tmp_path: Path, telegram: TelegramStandIn, clock: ManualClock) -> AsyncIterator[Stage]:
    """Nothing runs on it yet: a test sets its limits, then starts processes."""
    with structlog.testing.capture_logs() as log:
        stage = Stage(tmp_path / "data", telegram, clock, log=log)
        await stage.open()
        yield stage
        await stage.close()


@pytest.fixture
async def talks(stage: Stage, running_temporal: TemporalServer) -> AsyncIterator[Talks]:
    """Conversations on a Temporal that is left running."""
    talks = Talks(stage, running_temporal)
    yield talks
    await talks.close()

"""RabbitMQ for the tests of the copies."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from rabbit_stage import RabbitStage, RecordingClock

from rise.testing.servers import RabbitServer


@pytest.fixture
async def rabbit(empty_rabbit: RabbitServer) -> AsyncIterator[RabbitStage]:
    stage = RabbitStage(empty_rabbit)
    yield stage
    await stage.end()


@pytest.fixture
async def rabbit_alone(rabbit_of_its_own: RabbitServer) -> AsyncIterator[RabbitStage]:
    """For tests that kill or freeze it."""
    stage = RabbitStage(rabbit_of_its_own)
    yield stage
    await stage.end()


@pytest.fixture
def rabbit_clock() -> RecordingClock:
    return RecordingClock()

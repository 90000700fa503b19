"""What the tests of the copies run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from copies_stage import Installation
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


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    """With Redis, RabbitMQ and journals, one process of which is named by most tests."""
    stage = Installation(tmp_path)
    yield stage
    await stage.close()


@pytest.fixture
async def without_mirror(tmp_path: Path) -> AsyncIterator[Installation]:
    stage = Installation(tmp_path, has_mirror=False)
    yield stage
    await stage.close()

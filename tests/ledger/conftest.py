"""What several files about the ledger on MongoDB need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from mongodb_stage import MongoStage, staged

from rise.testing.servers import MongoServer


@pytest.fixture
async def stages(running_mongodb: MongoServer) -> AsyncIterator[Callable[[], Awaitable[MongoStage]]]:
    """As many as are asked for, each empty."""
    opened = []

    async def another() -> MongoStage:
        generator = staged(running_mongodb.url)
        opened.append(generator)
        return await anext(generator)

    yield another
    for generator in opened:
        await anext(generator, None)

"""Pytest fixtures: `telegram_standin` is a running stand-in, gone when the test ends.

Override `telegram_standin_options` to start it differently, e.g. `return {"time_scale": 60}`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from rise.testing.telegram.server import TelegramStandIn


@pytest.fixture
def telegram_standin_options() -> dict[str, Any]:
    """The arguments of `TelegramStandIn`."""
    return {}


@pytest_asyncio.fixture
async def telegram_standin(telegram_standin_options: dict[str, Any]) -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn(**telegram_standin_options) as telegram:
        yield telegram

"""A house, its HTTP API in process or on a real socket, and a worker when one is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import OPERATOR, Work, as_, client_of, opened

from rise.api.app import App, build_app
from rise.api.server import ApiServer
from rise.runtime.assembly.house import House
from rise.runtime.in_process import InProcessWorker
from rise.workflows.definition import WorkflowDefinition


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path / "data") as house:
        yield house


@pytest.fixture
async def app(house: House) -> AsyncIterator[App]:
    app = build_app(house)
    yield app
    app.close()


@pytest.fixture
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody with an operator's token."""
    async with client_of(app, **as_(OPERATOR)) as client:
        yield client


@pytest.fixture
async def nobody(app: App) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def server(house: House) -> AsyncIterator[ApiServer]:
    server = ApiServer(house)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def work(house: House) -> AsyncIterator[Work]:
    """Start a worker that runs this function for every channel."""
    workers: list[InProcessWorker] = []

    async def start(function: Callable[..., Any]) -> None:
        definition = WorkflowDefinition(name="bot", function=function, channels=("http", "webchat", "telegram"))
        worker = InProcessWorker(house, {definition.workflow_id: definition})
        await worker.start()
        workers.append(worker)

    yield start
    for worker in workers:
        await worker.stop()

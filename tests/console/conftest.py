"""A house with its console in front, in process, and people who have signed in to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from api_browser import Page
from api_house import Work, opened
from console_browser import Browse
from console_people import Keep, SignIn

from rise.console.app import Front, build_front
from rise.envelope import Reason
from rise.runtime.assembly.house import House
from rise.runtime.in_process import InProcessWorker
from rise.workflows.definition import WorkflowDefinition


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path / "data", rate_per_source=1000) as house:
        yield house


@pytest.fixture
async def front(house: House) -> AsyncIterator[Front]:
    front = build_front(house)
    yield front
    front.close()


@pytest.fixture
async def nobody(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
        yield client


@pytest.fixture
async def sign_in(front: Front) -> AsyncIterator[SignIn]:
    """A browser of somebody who has shown this token."""
    async with AsyncExitStack() as stack:

        async def signed_in(token: str) -> httpx.AsyncClient:
            client = httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost")
            await stack.enter_async_context(client)
            answer = await client.post("/console/sign-in", data={"token": token})
            assert answer.status_code == 303
            return client

        yield signed_in


@pytest.fixture
async def work(house: House) -> AsyncIterator[Work]:
    """Start a worker that runs this function for the web chat."""
    workers: list[InProcessWorker] = []

    async def start(function: Callable[..., Any]) -> None:
        definition = WorkflowDefinition(name="bot", function=function, channels=("webchat",))
        worker = InProcessWorker(house, {definition.workflow_id: definition})
        await worker.start()
        workers.append(worker)

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture
def keep(house: House) -> Keep:
    """Accept a message of the web chat; returns its task's id."""
    channel = house.channels.webchat
    session = channel.session_of(channel.new_session())
    numbers = itertools.count(1)

    async def kept(text: str, suspend: Reason | None = None) -> str:
        body = json.dumps({"clientMessageId": f"m{next(numbers)}", "text": text}).encode()
        incoming = msgspec.structs.replace(channel.read_message(body, session), suspend=suspend)
        return (await house.intake.accept(incoming)).task_id

    return kept


@pytest.fixture
async def browse(tmp_path: Path) -> AsyncIterator[Browse]:
    """Opens a window; there may be several."""
    async with AsyncExitStack() as stack:
        pages: list[Page] = []

        async def opened_one() -> Page:
            page = Page(tmp_path / f"profile-{len(pages)}")
            pages.append(await stack.enter_async_context(page))
            return page

        yield opened_one
        for page in pages:
            assert page.problems == [], "neither an error nor anything against the policy"

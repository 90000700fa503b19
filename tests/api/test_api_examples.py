"""Each example of the HTTP page runs, in its order, and there is one for each route."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import OPERATOR, as_, opened

import rise
from rise.api.examples import STANDS_FOR, TOUR, Example
from rise.api.server import ApiServer
from rise.runtime.in_process import InProcessWorker
from rise.workflows.definition import WorkflowDefinition


class Tourist:
    """Remembers what it was answered, as a person with a terminal does."""

    def __init__(self, client: httpx.AsyncClient, admin_token: str) -> None:
        self._client = client
        self._kept = dict(STANDS_FOR) | {"token": admin_token}

    async def ask(self, example: Example) -> None:
        names = self._kept | {name: self._kept[kept] for name, kept in example.uses.items()}
        path = re.sub(r"{(\w+)}", lambda found: names[found[1]], example.path) + example.query
        headers = dict(example.headers)
        if example.whose:
            headers["Authorization"] = f"Bearer {self._kept[example.whose]}"
        if example.is_stream:
            async with self._client.stream(example.method, path, headers=headers) as answer:
                assert answer.status_code == 200
                assert await anext(answer.aiter_lines())
            return
        answer = await self._client.request(example.method, path, headers=headers, json=example.body)
        assert answer.status_code == 200, f"{example.route}: {answer.status_code} {answer.text}"
        for name, where in example.keeps.items():
            self._kept[name] = _found(answer.json(), where)


def _found(answered: Any, where: str) -> Any:
    for name in where.split("."):
        answered = answered[name]
    return answered


@rise.workflow("page", channels=["webchat"])
async def page(turn: rise.Turn) -> None:
    await turn.reply(turn.text)


@pytest.mark.slow
@pytest.mark.req("WFL-1", "BND-2", "BND-7", "BND-8", "ENV-5", "ENV-7", "OPS-2")
async def test_each_example_of_the_page_is_answered_as_a_new_user_would_have_it(tmp_path: Path):
    secret = "callback-secret-of-the-tests"
    async with opened(tmp_path / "data", has_webchat=False, callback_secret=secret) as house:
        definition: WorkflowDefinition = page.__rise_workflow__  # type: ignore[attr-defined]
        worker = InProcessWorker(house, {definition.workflow_id: definition})
        server = ApiServer(house)
        await house.bindings.start()
        await worker.start()
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
                tourist = Tourist(client, house.secrets.admin_token)
                for chapter in TOUR:
                    for example in chapter.examples:
                        await tourist.ask(example)
                described = (await client.get("/api/openapi.json", headers=as_(OPERATOR))).json()
        finally:
            await server.stop()
            await worker.stop()
            await house.bindings.stop()
    routes = {f"{method.upper()} {path}" for path, ways in described["paths"].items() for method in ways}
    assert routes == {example.route for chapter in TOUR for example in chapter.examples}

"""Whatever is sent to the API, it answers as it says of itself, whoever asks and whatever is down.

Requests are made from the API's own description: such as follow it, and such as break it somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
import structlog
from api_house import ADMIN, as_
from api_served import Befall, Served, all_well, store_gone, store_read_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.checks import load_all_checks
from schemathesis.python.asgi import get_client, shutdown_lifespans

from rise.runtime.assembly.house import House

pytestmark = [pytest.mark.slow, pytest.mark.req("SEC-1", "ENV-5", "ENV-7")]

PUBLIC = {"GET /healthz", "GET /healthz/startup", "GET /healthz/readiness", "POST /webchat/session"}
PROMISES = {
    "POST /api/workflows/apply",
    "POST /api/messages",
    "POST /api/follow-ups",
    "POST /api/channels/{channel}/test",
    "POST /webchat/messages",
}
WITHOUT_STORE = {
    "GET /metrics",
    "GET /webchat/events",
    "GET /api/channels/{channel}/health",
    "POST /internal/capabilities/{name}/probe",
}
"""What is known without it; the stream ends, and its page comes back."""

load_all_checks()
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""Not whether all that is described is taken: the readers of requests are stricter than a description can say."""

EXAMPLES = 20
"""Of each kind, for each operation; a hundred times as many with `--examples 10000`."""


def closed(schema: Any) -> Any:
    """With every object complete, so that what is answered beyond its description is seen."""
    if isinstance(schema, dict):
        schema = {name: closed(part) for name, part in schema.items()}
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [closed(part) for part in schema]
    return schema


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("api"), request.param)
    with structlog.testing.capture_logs(), get_client(served):
        yield served
        shutdown_lifespans()


@pytest.fixture(scope="module")
def described(served: Served) -> Any:
    with get_client(served) as client:
        document = client.get("/api/openapi.json", headers=served.headers("admin", "")).json()
    document["components"]["schemas"] = closed(document["components"]["schemas"])
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"] = closed(operation["responses"])
    schema = schemathesis.openapi.from_dict(document)
    schema.app = served
    schema.config.generation.allow_extra_parameters = False
    schema.config.generation.with_security_parameters = False
    return schema


def ask(operation: Any, served: Served, caller: str, tried: settings) -> set[int]:
    """The statuses that were answered, each of them as described."""
    seen: set[int] = set()

    def asked(case: Any, known: st.DataObject) -> None:
        for given_here in (case.path_parameters, case.body):
            for name in sorted(served.known.keys() & given_here.keys()) if isinstance(given_here, dict) else ():
                given_here[name] = known.draw(st.sampled_from([*served.known[name], given_here[name]]))
        # A stream does not end by itself.
        response = case.call(headers=served.headers(caller, case.path), timeout=0.05 if "events" in case.path else 60)
        assert response.status_code != 500, response.text
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    for mode in GenerationMode:
        with suppress(Unsatisfiable):  # some take nothing that could be broken
            tried(given(case=operation.as_strategy(generation_mode=mode), known=st.data())(asked))()
    return seen


def conforming(schema: Any, served: Served, caller: str, config: pytest.Config) -> dict[str, set[int]]:
    """The statuses that each operation answered to the caller."""
    scale = config.getoption("examples") / 100
    tried = settings(
        max_examples=round(EXAMPLES * scale),
        derandomize=scale == 1.0,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    operations = [result.ok() for result in schema.get_all_operations()]
    operations.sort(key=_is_last)
    answered = {}
    for operation in operations:
        for name in ("task_id", "workflow_id", "prompt_id", "secret", "follow_up_id"):
            served.known[name].rotate()  # the same draws name others than those which the one before has changed
        answered[operation.label] = ask(operation, served, caller, tried)
    return answered


def _is_last(operation: Any) -> bool:
    """What leaves nothing of its kind for others."""
    return operation.label == "POST /internal/tasks/resume" or operation.label.startswith("DELETE /api/")


def of(*befalls: Befall) -> pytest.MarkDecorator:
    """In a house to which one of these has happened."""
    return pytest.mark.parametrize("served", befalls, indirect=True, ids=[befall.__name__ for befall in befalls])


@pytest.mark.failure("A19", "B10")
@of(all_well)
def test_to_an_admin_everything_answers_as_described_and_does_what_it_is_for(
    described: Any, served: Served, pytestconfig: pytest.Config
):
    answered = conforming(described, served, "admin", pytestconfig)
    assert [label for label, statuses in answered.items() if 200 not in statuses] == []
    assert [label for label, statuses in answered.items() if 503 in statuses] == []


@of(all_well)
def test_a_viewer_looks_and_changes_nothing(described: Any, served: Served, pytestconfig: pytest.Config):
    for label, statuses in conforming(described, served, "viewer", pytestconfig).items():
        method, path = label.split()
        if path.startswith("/api/secrets") or (method != "GET" and not path.startswith("/webchat")):
            assert statuses == {403}, label
        else:
            assert 200 in statuses, label


@of(all_well, store_gone)
def test_without_credentials_nothing_is_said_but_what_is_public(
    described: Any, served: Served, pytestconfig: pytest.Config
):
    for label, statuses in conforming(described, served, "nobody", pytestconfig).items():
        assert statuses <= {200, 503} if label in PUBLIC else statuses == {401}, label


@pytest.mark.failure("C5", "C27", "C28")
@of(store_read_only)
def test_while_nothing_can_be_written_nothing_is_promised_and_everything_can_be_looked_at(
    described: Any, served: Served, pytestconfig: pytest.Config
):
    answered = conforming(described, served, "admin", pytestconfig)
    for label, statuses in answered.items():
        if label in PROMISES:
            assert 503 in statuses, label
            assert not statuses & {200, 202}, label
        elif label.startswith("GET") and label != "GET /healthz/readiness":
            assert 200 in statuses, label


@pytest.mark.failure("C5", "C27", "C28")
@of(store_gone)
def test_while_the_store_is_gone_it_says_so_and_when_to_come_back(
    described: Any, served: Served, pytestconfig: pytest.Config
):
    """That 503 comes with `Retry-After` is in the description."""
    for label, statuses in conforming(described, served, "admin", pytestconfig).items():
        if label not in PUBLIC | WITHOUT_STORE:
            assert not statuses & {200, 202}, label


async def test_every_field_that_is_read_is_described_and_no_other(client: httpx.AsyncClient, house: House):
    """A reader that meets a field it does not know says which it does."""
    document = (await client.get("/api/openapi.json")).json()
    session = house.channels.webchat.new_session()
    bodies = [
        (path, method, operation["requestBody"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
    for path, method, body in bodies:
        headers = as_(session if path.startswith("/webchat") else ADMIN)
        refused = await client.request(method, path, json={"nonsense": 1}, headers=headers)
        read = refused.json()["error"]["message"].partition("it has ")[2].split(", ")
        assert sorted(body["content"]["application/json"]["schema"]["properties"]) == sorted(read), path

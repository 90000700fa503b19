"""Conversations as Temporal's client tells and asks them, of a real Temporal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from record_histories import message
from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from rise.clock import SystemClock
from rise.connections.temporal import FAILURES_MAX, Place, Temporal
from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits, WorkerDuties
from rise.conversations.port import ConversationMessage, Response, ResponseStatus
from rise.conversations.temporal import TemporalConversations
from rise.conversations.workflow import RUN, Conversation
from rise.envelope import new_key
from rise.errors import TemporalUnavailable, Unavailable
from rise.testing.servers import TemporalServer
from rise.testing.waiting import eventually

CHAT = "chat:7:42"


@pytest.mark.slow
@pytest.mark.req("TMP-4", "CAP-2")
async def test_a_question_that_nobody_answers_is_temporals_answer_only_if_temporal_gives_one(
    temporal_of_its_own: TemporalServer,
) -> None:
    said: list[Unavailable | None] = []
    temporal = Temporal(Place(temporal_of_its_own.address), clock=SystemClock(), on_trouble=said.append)
    talks = TemporalConversations(temporal, new_key())
    await talks.tell(CHAT, message(1))
    with pytest.raises(TemporalUnavailable, match="no worker of Temporal's"):
        await talks.ask(CHAT, "t_1.0")
    assert said == [], "a worker is away, and not Temporal"
    temporal_of_its_own.freeze()
    for _ in range(FAILURES_MAX):
        with pytest.raises(TemporalUnavailable, match="Temporal does not answer"):
            await talks.ask(CHAT, "t_1.0")
    assert said and None not in said, "it counts as gone, and never as back"
    temporal_of_its_own.thaw()


class Runs:
    """One run after the other, each until a test lets it go."""

    def __init__(self) -> None:
        self.began = self.cancelled = 0
        self.go = asyncio.Event()

        @activity.defn(name=RUN)
        async def run(message: ConversationMessage) -> Response:
            self.began += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return Response(ResponseStatus.ANSWERED, message.tries, ran={"effects": [], "value": 1})

        self.activity = run


def working(temporal: Temporal, queue: str, runs: Runs, **limits: Any) -> TemporalWorker:
    return TemporalWorker(
        temporal,
        [WorkerDuties([Conversation], [runs.activity])],
        SystemClock(),
        task_queue=queue,
        identity="test",
        limits=TemporalWorkerLimits(**limits),
    )


@pytest.mark.req("TMP-4")
async def test_what_runs_when_temporal_is_back_goes_on_beside_the_worker_that_is_built_anew(
    running_temporal: TemporalServer,
) -> None:
    temporal, queue, chat = Temporal(Place(running_temporal.address), clock=SystemClock()), new_key(), new_key()
    runs, talks = Runs(), TemporalConversations(temporal, queue)
    worker = working(temporal, queue, runs, stop_seconds=0.1, drain_seconds=60.0)
    await worker.start()
    await talks.tell(chat, message(1))
    await eventually(lambda: is_so(runs.began == 1))
    first = worker._life

    async def lost(client: Client) -> None:
        raise RPCError("gone", RPCStatusCode.UNAVAILABLE, b"")

    with pytest.raises(TemporalUnavailable):
        await temporal.ask("test", lost)
    await temporal.check()
    await eventually(lambda: is_so(worker.is_running and worker._life is not first))
    await talks.tell(chat, message(2))
    await eventually(lambda: is_so(runs.began == 2))
    runs.go.set()
    for request_id in ("t_1.0", "t_2.0"):
        await eventually(lambda asked=request_id: is_answered(talks, chat, asked), seconds=30)
    assert (runs.began, runs.cancelled) == (2, 0)
    await worker.stop()


@pytest.mark.req("TMP-4")
async def test_a_stop_waits_no_longer_than_it_may_and_what_ran_is_run_by_another(
    running_temporal: TemporalServer,
) -> None:
    temporal, queue, chat = Temporal(Place(running_temporal.address), clock=SystemClock()), new_key(), new_key()
    runs, talks = Runs(), TemporalConversations(temporal, queue)
    worker = working(temporal, queue, runs, stop_seconds=0.1, drain_seconds=600.0)
    await worker.start()
    await talks.tell(chat, message(1))
    await eventually(lambda: is_so(runs.began == 1))
    async with asyncio.timeout(20):
        await worker.stop()
    assert runs.cancelled == 1
    runs.go.set()
    another = working(temporal, queue, runs)
    await another.start()
    await eventually(lambda: is_answered(talks, chat, "t_1.0"), seconds=30)
    assert runs.began == 2, "at once, not when nothing was heard of the first for so long"
    await another.stop()


async def is_answered(talks: TemporalConversations, chat: str, request_id: str) -> bool:
    try:
        return (await talks.ask(chat, request_id)).status is ResponseStatus.ANSWERED
    except TemporalUnavailable:
        return False  # its history is handed to the new worker just now


async def is_so(holds: bool) -> bool:
    return holds

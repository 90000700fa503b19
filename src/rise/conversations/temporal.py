"""Conversations on Temporal: signal and question as its client sends them, the activity as its worker has it.

Promises: an answer is that of the conversation that goes on now, never of one that a person has ended; a question that
nobody is there to answer says so, and is not taken for Temporal being away.

Refuses: to count on any of it. What Temporal has lost is told again and run again, from its kept steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowQueryRejectedError
from temporalio.common import QueryRejectCondition
from temporalio.service import RPCError, RPCStatusCode

from rise.clock import Clock
from rise.connections.temporal import Temporal
from rise.connections.temporal_worker import WorkerDuties
from rise.conversations.port import UNKNOWN, ConversationLimits, ConversationMessage, Response
from rise.conversations.running import ConversationRuns
from rise.conversations.workflow import RESPONSE, RUN, SIGNAL, WORKFLOW, Begin, Conversation
from rise.errors import ExecutionFailed, ExecutionUnknown, TemporalUnavailable, Unavailable
from rise.service import cancel_all, spawn

QUESTION_SECONDS: Final = 3.0
"""For whoever carries the conversation on to answer."""
NOBODY_THERE_SECONDS: Final = 3
"""Mostly a process was started again just now, and Temporal still asks the former one."""
BEATS: Final = 3
"""Within the time after which a run that is not heard of counts as lost."""


@dataclass(frozen=True, slots=True)
class TemporalConversations:
    """`ConversationServer`, on Temporal."""

    temporal: Temporal
    task_queue: str
    limits: ConversationLimits = field(default_factory=ConversationLimits)

    async def tell(self, conversation_id: str, message: ConversationMessage) -> None:
        async def told(client: Client) -> None:
            await client.start_workflow(
                WORKFLOW,
                Begin(self.limits),
                id=conversation_id,
                task_queue=self.task_queue,
                start_signal=SIGNAL,
                start_signal_args=[message],
            )

        try:
            await self.temporal.ask("conversation.tell", told)
        except (ExecutionUnknown, ExecutionFailed) as error:
            # Whatever keeps a conversation from being begun is no fault of the message.
            raise TemporalUnavailable(f"Temporal does not let {conversation_id} be told: {error}") from error

    async def ask(self, conversation_id: str, request_id: str) -> Response:
        async def asked(client: Client) -> Response | None:
            handle = client.get_workflow_handle(conversation_id)
            try:
                # Not the call's own timeout, after which it would be tried again.
                async with asyncio.timeout(QUESTION_SECONDS):
                    answer: Response = await handle.query(
                        RESPONSE,
                        request_id,
                        result_type=Response,
                        # One that a person has ended would go on saying what it waited for then.
                        reject_condition=QueryRejectCondition.NOT_OPEN,
                    )
            except WorkflowQueryRejectedError:
                return UNKNOWN
            except TimeoutError:
                raise _Silence from None
            except RPCError as error:
                if error.status is RPCStatusCode.FAILED_PRECONDITION:
                    return None
                raise
            return answer

        try:
            answer = await self.temporal.ask("conversation.ask", asked)
        except ExecutionUnknown:
            return UNKNOWN
        except ExecutionFailed as error:
            raise TemporalUnavailable(f"{conversation_id} cannot be carried on by this version of Rise") from error
        except _Silence:
            await self.temporal.check()
            answer = None
        if answer is None:
            nobody = f"no worker of Temporal's carries {conversation_id} on at the moment"
            raise TemporalUnavailable(nobody, retry_after_seconds=NOBODY_THERE_SECONDS)
        return answer

    async def forget(self, conversation_id: str) -> None:
        async def listed(client: Client) -> list[str]:
            query = f"WorkflowId = {_quoted(conversation_id)}"
            return [one.run_id async for one in client.list_workflows(query)]

        # The one that goes on, too, which may be too young to be listed.
        for run_id in [*await self.temporal.ask("conversation.list", listed), ""]:
            await self.temporal.ask("conversation.forget", partial(_delete, conversation_id, run_id))


class _Silence(Exception):
    """Temporal's own, or that of whoever carries the conversation on: of Temporal it says nothing."""


async def _delete(conversation_id: str, run_id: str, client: Client) -> None:
    execution = WorkflowExecution(workflow_id=conversation_id, run_id=run_id)
    request = DeleteWorkflowExecutionRequest(namespace=client.namespace, workflow_execution=execution)
    try:
        await client.workflow_service.delete_workflow_execution(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


def _quoted(text: str) -> str:
    """Chats of some channels are named by whoever calls."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def conversation_duties(runs: ConversationRuns, clock: Clock) -> WorkerDuties:
    """What a worker of Temporal's has to have for them."""
    return WorkerDuties(workflows=[Conversation], activities=[_activity(runs, clock)])


def _activity(runs: ConversationRuns, clock: Clock) -> Callable[..., Any]:
    @activity.defn(name=RUN)
    async def run_message(message: ConversationMessage) -> Response:
        try:
            async with asyncio.timeout(None) as time, _beating(clock), _watching(runs, message, time, clock):
                return await runs.run(message)
        except TimeoutError:
            return runs.given_up(message)

    return run_message


def _beating(clock: Clock) -> AbstractAsyncContextManager[None]:
    """Temporal hears that this process lives. Its loop beats, not the run: one that waits is none that died."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await clock.sleep(_beat_seconds())

    return _beside(beat())


def _watching(
    runs: ConversationRuns, message: ConversationMessage, time: asyncio.Timeout, clock: Clock
) -> AbstractAsyncContextManager[None]:
    """Its time is over when its task is. Beside the beat, which does not wait for a store."""

    async def watch() -> None:
        while True:
            await clock.sleep(_beat_seconds())
            with suppress(Unavailable):
                if await runs.is_over(message):
                    time.reschedule(0.0)  # long ago
                    return

    return _beside(watch())


def _beat_seconds() -> float:
    lapse = activity.info().heartbeat_timeout
    return 10.0 if lapse is None else lapse.total_seconds() / BEATS


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks: set[Any] = set()
    spawn(work, name="conversation.beside", into=tasks)
    try:
        yield
    finally:
        await cancel_all(tasks)

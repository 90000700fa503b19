"""The run of one message of a conversation: its bound workflow is run as the worker would have.

The promises are the runner's: steps are kept, effects only noted. What comes of it goes back to the conversation, and
from there to the worker that holds the message's lane, which freezes and settles it like any other.

Refuses: to send, to settle, to judge an error; to run a task that has ended or was put aside, or a workflow that is
bound no longer. That waits, and its worker looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from rise.bindings import BindingRegistry, Bound
from rise.bursts import Burst, Bursts
from rise.channels.port import Channel, read_anew
from rise.conversations.port import (
    ERROR_CHARS_MAX,
    ConversationMessage,
    Failure,
    FailureKind,
    Response,
    ResponseStatus,
    followers_of,
    looks_again,
)
from rise.envelope import RunId, Status, Task, TaskId, encode_json
from rise.errors import Rejected, Unavailable, WaitsForDependency
from rise.ledger.port import Ledger
from rise.queue.port import Queue
from rise.telemetry import in_words, log, redact
from rise.workflows.runner import Ran, Runner

RAN_BYTES_MAX: Final = 64 * 1024
_RUNS: Final = (Status.PENDING, Status.PROCESSING)
"""Pending: its worker has let go of it until it looks again."""
_OVER: Final = "its task has ended, or waits for a person"


def kept_as(message: ConversationMessage) -> str:
    """The step as which the ledger has what is too large for a conversation: one for each workflow that was run."""
    return f"conversation:ran:{message.workflow_id}:{message.workflow_version}"


@dataclass(frozen=True, slots=True)
class ConversationRuns:
    queue: Queue
    ledger: Ledger
    bindings: BindingRegistry
    bursts: Bursts
    channels: Mapping[str, Channel]
    runner: Runner

    async def run(self, message: ConversationMessage) -> Response:
        """What has come of it, be it a failure. Raises nothing but that it was cancelled."""
        try:
            burst, ran = await self._ran(message)
            return await self._kept(message, burst, ran)
        except _NotLoaded as untried:
            return replace(_failed(message, looks_again(str(untried))), is_untried=True)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # the process ends, or Temporal has given it to another
            error: BaseException = RuntimeError("the workflow awaited something that was cancelled")
            return _failed(message, error)
        except (Exception, GeneratorExit, BaseExceptionGroup) as error:  # noqa: BLE001 - border: whatever a workflow raises, the retry policy of who asked judges
            return _failed(message, error)

    async def is_over(self, message: ConversationMessage) -> bool:
        """Whether nobody wants its answer any more: it was dropped, say."""
        return not _is_to_run(await self.queue.get(TaskId(message.task_id)), message)

    def given_up(self, message: ConversationMessage) -> Response:
        return _failed(message, looks_again(_OVER))

    async def _ran(self, message: ConversationMessage) -> tuple[Burst, Ran]:
        task = await self._task(message)
        bound = await self._bound(task, message)
        steps = await self.ledger.steps(task.run_id)
        # As the worker has frozen it, without what has ended by itself since.
        burst = await self.bursts.freeze(task, bound.binding, steps)
        return burst, await self.runner.run(burst, bound, self.channels[task.head.channel], steps)

    async def _task(self, message: ConversationMessage) -> Task:
        task = await self.queue.get(TaskId(message.task_id))
        if task is None or not _is_to_run(task, message):
            raise looks_again(_OVER)
        if await self.ledger.run(task.run_id) is not None:
            raise looks_again("it has a result already")
        return read_anew(task, self.channels)

    async def _bound(self, task: Task, message: ConversationMessage) -> Bound:
        await self.bindings.known()
        bound = self.bindings.met_by(task.head).bound
        if bound is None or _named(bound) != _asked_for(message):
            raise looks_again("another workflow, or none, is bound by now, or is not known here yet")
        if self.runner.definition(bound.workflow) is None:
            raise _NotLoaded(f"this worker has not loaded the workflow {bound.workflow.name}")
        return bound

    async def _kept(self, message: ConversationMessage, burst: Burst, ran: Ran) -> Response:
        body = encode_json(ran)
        answered = Response(
            ResponseStatus.ANSWERED,
            message.tries,
            followers=followers_of(burst),
            workflow_id=message.workflow_id,
            workflow_version=message.workflow_version,
        )
        if len(body) <= RAN_BYTES_MAX:
            return replace(answered, ran=msgspec.json.decode(body))
        await self.ledger.save_step(RunId(message.request_id), burst.step_name(kept_as(message)), body)
        return replace(answered, is_kept=True)


def _is_to_run(task: Task | None, message: ConversationMessage) -> bool:
    return task is not None and task.run_id == message.request_id and task.progress.status in _RUNS


def _named(bound: Bound) -> tuple[object, object]:
    return bound.workflow.workflow_id, bound.workflow.version


def _asked_for(message: ConversationMessage) -> tuple[object, object]:
    return message.workflow_id, message.workflow_version


class _NotLoaded(Exception):
    """This process has not loaded its workflow: nothing of it was tried."""


def _failed(message: ConversationMessage, error: BaseException) -> Response:
    failure = Failure(_kind_of(error), redact(in_words(error))[:ERROR_CHARS_MAX], _wait_of(error))
    log.warning(
        "conversation.run_failed",
        task_id=message.task_id,
        error=error,
        exc_info=error if failure.kind is FailureKind.OWN else None,
        consequence="its worker decides whether it is tried again",
    )
    return Response(ResponseStatus.FAILED, message.tries, failure=failure)


def _kind_of(error: BaseException) -> FailureKind:
    """By what the retry policy makes a difference."""
    if isinstance(error, WaitsForDependency | Unavailable):
        return FailureKind.DEPENDENCY
    return FailureKind.REFUSED if isinstance(error, Rejected) else FailureKind.OWN


def _wait_of(error: BaseException) -> float | None:
    return error.retry_after_seconds if isinstance(error, WaitsForDependency | Unavailable) else None

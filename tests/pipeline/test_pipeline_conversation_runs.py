"""What a conversation has run, by itself: only what its worker meant, and whatever comes of it is an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipeline_stage import Stage, WorkerProcess, definition_of, record_of

import rise
from rise.bursts import Burst
from rise.conversations.port import (
    ERROR_CHARS_MAX,
    ConversationMessage,
    FailureKind,
    Response,
    ResponseStatus,
    message_of,
)
from rise.envelope import Outcome, Reason, TaskId
from rise.errors import StageRefused
from rise.ledger.port import RunResult
from rise.queue.port import Suspend
from rise.service import spawn, stop_all

pytestmark = pytest.mark.req("TMP-1")


@rise.workflow("talks", channels=["telegram"])
async def talks(turn: rise.Turn) -> str:
    match turn.text:
        case "own":
            raise ValueError("x" * 5000)
        case "refused":
            raise StageRefused("not like that")
        case "dependency":
            raise rise.WaitsForDependency("the shop is closed", retry_after_seconds=7.0)
        case "cancels":
            raise asyncio.CancelledError
        case "exits":
            raise SystemExit
    await turn.reply("yes")
    return "done"


@rise.workflow("talks", channels=["telegram"])
def blocks(turn: rise.Turn) -> None:
    """One on a thread."""
    turn.reply("yes")


async def carrier(stage: Stage, *loaded: Any) -> WorkerProcess:
    """A process whose worker claims nothing: what it runs, it is told by a test."""
    await stage.start_gateway(sends=False)
    process = stage.new_worker(*loaded)
    await process.start(process.bus, process.bindings, process.chats)
    await process.editor.follow_code([record_of(definition_of(talks))], stage.accounts)
    await process.bindings.refresh()
    return process


async def told(stage: Stage, process: WorkerProcess, text: str = "hello") -> tuple[TaskId, ConversationMessage]:
    [task_id] = await stage.write(text)
    task = await stage.queue.get(task_id)
    assert task is not None
    bound = process.bindings.met_by(task.head).bound
    assert bound is not None
    return task_id, message_of(Burst(task), bound, tries=3)


async def run(process: WorkerProcess, message: ConversationMessage) -> Response:
    return await process.conversation_runs.run(message)


def waits_because(response: Response, why: str) -> None:
    assert response.status is ResponseStatus.FAILED and response.failure is not None
    assert response.failure.kind is FailureKind.DEPENDENCY
    assert why in response.failure.error


async def test_a_run_is_answered_with_what_it_noted_and_nothing_is_sent(stage: Stage) -> None:
    process = await carrier(stage, talks)
    task_id, message = await told(stage, process)
    response = await run(process, message)
    assert (response.status, response.tries) == (ResponseStatus.ANSWERED, 3)
    assert (response.ran["value"], response.ran["effects"][0]["text"]) == ("done", "yes")
    assert await stage.ledger.replies(task_id=task_id) == []
    assert await stage.ledger.latest_run(task_id) is None


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("own", FailureKind.OWN, "ValueError: xxx"),
        ("refused", FailureKind.REFUSED, "StageRefused: not like that"),
        ("dependency", FailureKind.DEPENDENCY, "the shop is closed"),
        ("cancels", FailureKind.OWN, "awaited something that was cancelled"),
        ("exits", FailureKind.OWN, "wanted to end the process"),
    ],
)
async def test_whatever_it_raises_is_an_answer_too(stage: Stage, text: str, kind: FailureKind, words: str) -> None:
    process = await carrier(stage, talks)
    _, message = await told(stage, process, text)
    response = await run(process, message)
    assert response.status is ResponseStatus.FAILED and response.failure is not None
    assert response.failure.kind is kind
    assert words in response.failure.error
    assert len(response.failure.error) <= ERROR_CHARS_MAX
    assert response.failure.retry_after_seconds == (7.0 if text == "dependency" else None)


async def test_a_process_that_stops_does_not_take_that_for_the_runs_own_fault(stage: Stage) -> None:
    process = await carrier(stage, talks)
    _, message = await told(stage, process)
    gate = process.hold_at("ledger.steps", "before")
    running = spawn(run(process, message), name="run", into=set())
    await gate.reached()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Carrier:
    """What carries a conversation on, and has a last run done while it is stopped."""

    name = "carrier"

    def __init__(self, process: WorkerProcess, message: ConversationMessage) -> None:
        self.process, self.message = process, message
        self.last: Response | None = None

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        self.last = await run(self.process, self.message)


async def test_a_worker_that_stops_can_run_until_its_conversations_have_stopped(stage: Stage) -> None:
    process = await carrier(stage, blocks)
    _, message = await told(stage, process)
    last = Carrier(process, message)
    await process.worker.start()
    await stop_all([process.runner, last, process.worker], on_error=lambda name, error: pytest.fail(f"{name}: {error}"))
    assert last.last is not None and last.last.status is ResponseStatus.ANSWERED
    waits_because(await run(process, message), "this worker has stopped")


async def test_what_no_task_is_there_for_waits(stage: Stage) -> None:
    process = await carrier(stage, talks)
    task_id, message = await told(stage, process)
    waits_because(await run(process, ConversationMessage("1", "42", 1, "t_x.0", {"task_id": "t_x"})), "has ended")
    waits_because(await run(process, ConversationMessage("1", "42", 1, "t_x.0", {})), "has ended")
    other = ConversationMessage(message.update_id, "42", 1, f"{task_id}.1", message.message)
    waits_because(await run(process, other), "has ended")


async def test_what_has_a_result_is_not_run_again(stage: Stage) -> None:
    process = await carrier(stage, talks)
    task_id, message = await told(stage, process)
    task = await stage.queue.get(task_id)
    assert task is not None
    await stage.ledger.save_result(task, RunResult(outcome=Outcome.SILENT), [], [], deliver=False)
    waits_because(await run(process, message), "a result already")


async def test_what_waits_for_a_person_is_not_run(stage: Stage) -> None:
    process = await carrier(stage, talks)
    _, message = await told(stage, process)
    [claim] = (await stage.queue.claim("test", {"telegram": 1}, takes_suspects=True)).claims
    await stage.queue.settle(claim, claim.task, Suspend(Reason.RETRIES_EXHAUSTED))
    waits_because(await run(process, message), "waits for a person")


async def test_another_version_than_its_worker_meant_is_not_run(stage: Stage) -> None:
    process = await carrier(stage, talks)
    _, message = await told(stage, process)
    older = {**message.message, "workflow_version": 0}
    waits_because(
        await run(process, ConversationMessage("1", "42", 1, message.request_id, older)), "another workflow, or none"
    )


async def test_what_this_process_has_not_loaded_is_left_to_another(stage: Stage) -> None:
    process = await carrier(stage)
    _, message = await told(stage, process)
    response = await run(process, message)
    waits_because(response, "has not loaded the workflow talks")
    assert response.is_untried

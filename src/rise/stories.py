"""A task's story: all that is known of it, and how that is shown to whoever asked for it.

Promises: it is the same wherever it is read: over HTTP, on the command line, in a callback.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.envelope import Status, Task, envelope
from rise.ledger.port import Attempt, Reply, ReplyKind, Run, count_tries
from rise.retries import RetryPolicy


class TaskStory(msgspec.Struct, frozen=True):
    """All that is known of one task."""

    task: Task
    run: Run | None
    """The current run, once it has a result or an end."""
    attempts: list[Attempt]
    """The last ones."""
    replies: list[Reply]
    copies: list[str] | None = None
    """The stores that hold it now. None: there is only the one."""
    stages: list[Any] = []
    """What the stages of its workflow did, in all tries so far, if it has any."""

    @property
    def attempts_not_kept(self) -> int:
        """How many there were before those."""
        return count_tries(self.attempts) - len(self.attempts)

    @property
    def status(self) -> Status:
        if self.run is not None and self.run.status.is_finished:
            return self.run.status  # the queue hears of it a moment later
        return self.task.progress.status


def shown(story: TaskStory, policy: RetryPolicy) -> dict[str, Any]:
    """A task as the API shows it: the envelope, and what became of it."""
    run = story.run
    progress = msgspec.structs.replace(story.task.progress, status=story.status)
    task = msgspec.structs.replace(story.task, progress=progress)
    ended = run is not None and run.status.is_finished
    allowed = policy.retries_allowed(task.head)
    result = run.result if run else None
    if isinstance(result, dict):
        result = {name: part for name, part in result.items() if name != "stages"}  # said beside it
    whole = envelope(task, result=result, retry_max=allowed)
    if story.copies is not None:
        whole["payload"]["telemetry"]["copies"] = story.copies
    return whole | {
        "outcome": run.outcome if run else None,
        "generation": task.progress.generation,
        "deaths": task.progress.deaths,
        "finishedAt": _iso(run.finished_at_ms) if run and ended else None,
        "droppedBy": run.by if run else None,
        "droppedWhy": run.why if run else None,
        "workflowRun": run.workflow_id if run else None,
        "workflowVersion": run.workflow_version if run else None,
        "stages": story.stages,
        "attemptsNotKept": story.attempts_not_kept,
        "attempts": [_shown_attempt(attempt) for attempt in story.attempts],
        "replies": [_shown_reply(reply) for reply in story.replies],
    }


def _shown_attempt(attempt: Attempt) -> dict[str, Any]:
    return {"at": _iso(attempt.at_ms), "error": attempt.error, "counted": attempt.counted}


def _shown_reply(reply: Reply) -> dict[str, Any]:
    return {
        "replyId": reply.reply_id,
        "kind": reply.kind,
        "state": reply.state,
        "chatId": reply.chat_id,
        "method": reply.call.method,
        # What is posted is the story itself, and where to may be a secret.
        "params": {"url": reply.call.text} if reply.kind is ReplyKind.CALLBACK else reply.call.params,
        "text": reply.call.text,
        "tries": reply.tries,
        "resends": reply.resends,
        "platformRef": reply.platform_ref,
        "error": reply.error,
    }


def _iso(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else iso(from_epoch_ms(milliseconds))

"""Hints between processes: "there is work", "this task has ended", and whether a process is still there.

Nothing is kept on the bus and nothing may depend on it: a lost event costs time, never a message. Whoever
waits for one also looks by itself now and then.

Refuses: to keep an event, to order them, and to say who has heard one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from rise.envelope import Outcome, Reason, Status, TaskId

Listener = Callable[[Mapping[str, Any]], None]
"""Called in the event loop; quick, and raises nothing: an event of another version may lack any field."""


class Topic(StrEnum):
    LANES_READY = "lanes.ready"
    FOLLOW_UP_PLANNED = "follow_up.planned"
    """Where others than the queue keep the time: `task_id`."""
    OUTBOX_READY = "outbox.ready"
    TASK_SETTLED = "task.settled"
    """A task was finished or suspended: see `publish_settled`."""
    RUN_STARTED = "run.started"
    """A workflow works on it: `channel`, `account`, `chat_id`, for the typing indicator."""
    RUN_ENDED = "run.ended"
    RUN_FAILED = "run.failed"
    """By the workflow's own fault: `channel`, `account`, `workflow_id`, `error`."""
    RUN_RECOVERED = "run.recovered"
    """The first that has not failed since: `channel`, `account`, `workflow_id`."""
    CONVERSATION_ANSWERED = "conversation.answered"
    """A worker has its answer: `channel`, `account`, `workflow_id`, `seconds` since it was told."""
    RUNNING_PAUSED = "running.paused"
    """Workers claim nothing for `seconds`; said again for as long as it is meant."""
    DEFINITIONS_CHANGED = "channel_binding.updated"
    BINDING_HEALTH = "channel_binding.health"
    """It serves better or worse than it did: `channel, account, workflowId, status, source, detail, lastCheckedAt`."""
    BINDING_EXAMINED = "channel_binding.examined"
    """The same of every binding after every look, for who shows it."""
    CHATS_MOVED = "chats.moved"
    """The ledger knows of another."""


class _Settled(Protocol):
    """A task's head, or one of its replies."""

    @property
    def task_id(self) -> TaskId: ...
    @property
    def channel(self) -> str: ...
    @property
    def account(self) -> str: ...


class Bus(Protocol):
    """Between all processes of one installation, this one included."""

    name: str
    member: str
    """This process, as long as it lives; the holder named in its claims."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def publish(self, topic: Topic, payload: Mapping[str, Any] | None = None) -> None:
        """Never waits and never fails. Events without payload may be merged."""
        ...

    def subscribe(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        """Returns what ends the subscription. A listener that raises all the same keeps no other from hearing."""
        ...

    async def has_queued(self) -> bool:
        """Whether anything that was published here has yet to be told to other hosts; it is, when they can be reached.

        Waits for what is on its way, half a second at most. On a bus of one host there is no such thing.
        """
        ...

    def dead_members(self) -> list[str]:
        """Processes that ended without saying so and were not buried yet. Certain, not suspected."""
        ...

    def bury(self, member: str) -> None:
        """What it held has been taken care of; forget it."""
        ...


def publish_settled(
    bus: Bus,
    about: _Settled,
    status: Status,
    *,
    outcome: Outcome | None = None,
    reason: Reason | None = None,
    workflow_id: str | None = None,
    seconds: float | None = None,
) -> None:
    """Say that a task was finished or suspended. `seconds`: since it was accepted."""
    bus.publish(
        Topic.TASK_SETTLED,
        {
            "task_id": about.task_id,
            "status": status,
            "outcome": outcome,
            "reason": reason,
            "channel": about.channel,
            "account": about.account,
            "workflow_id": workflow_id,
            "seconds": seconds,
        },
    )

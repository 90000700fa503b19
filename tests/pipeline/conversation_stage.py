"""Conversations on a real Temporal, beside the stage of a message's way.

A worker of the stage only talks to them; what runs their messages is a *carrier*, a process of its own, so that either
can be killed without the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline_stage import Stage, WorkerProcess, definition_of, record_of
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from rise.clock import SystemClock
from rise.connections.temporal import Place, Temporal
from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits
from rise.conversations.asking import Conversations
from rise.conversations.port import ConversationLimits
from rise.conversations.temporal import TemporalConversations, conversation_duties
from rise.conversations.workflow import COUNTS, Counts
from rise.envelope import new_key
from rise.testing.servers import TemporalServer

CHATS = (42, 43)


@dataclass
class Talks:
    """The conversations of one stage."""

    stage: Stage
    server: TemporalServer
    limits: ConversationLimits = field(default_factory=lambda: ConversationLimits(beat_seconds=5.0))
    hold_seconds: float = 10.0
    task_queue: str = field(default_factory=new_key)
    namespace: str = "default"

    def __post_init__(self) -> None:
        self._reached: list[Temporal] = []
        self.stage.conversations = self.conversations

    async def close(self) -> None:
        """Its bot has the number of all bots of the tests: what goes on would be the next test's conversation."""

        async def end(client: Any) -> None:
            for chat in CHATS:
                with suppress(RPCError):
                    await self.handle(client, chat).terminate("the test is over")

        await self.reach().ask("end", end)
        for temporal in self._reached:
            temporal.close()

    def reach(self) -> Temporal:
        temporal = Temporal(Place(self.server.address, self.namespace), clock=SystemClock())
        self._reached.append(temporal)
        return temporal

    def conversations(self, process: WorkerProcess) -> Conversations:
        server: Any = process.watched("conversation", self.server_of(self.reach()))
        # Temporal's time is real: looks at it are, too.
        return Conversations(server, process.ledger, process.bus, SystemClock(), self.hold_seconds)

    def server_of(self, temporal: Temporal) -> TemporalConversations:
        return TemporalConversations(temporal, self.task_queue, self.limits)

    async def start_carrier(self, *workflows: Callable[..., Any]) -> WorkerProcess:
        process = self.stage.new_worker(*workflows)
        await process.start(process.bus, process.bindings, process.chats)
        await process.editor.follow_code([record_of(definition_of(one)) for one in workflows], self.stage.accounts)
        await process.bindings.refresh()
        duties = conversation_duties(process.conversation_runs, SystemClock())
        limits = TemporalWorkerLimits(stop_seconds=0.5)
        worker = TemporalWorker(
            self.reach(), [duties], SystemClock(), task_queue=self.task_queue, identity="carrier", limits=limits
        )
        await process.start(process.runner, worker)
        return process

    async def bind(self, workflow: Callable[..., Any], **fields: Any) -> None:
        await self.stage.bind(workflow, engine="temporal", **fields)

    def conversation_id(self, chat: int = 42) -> str:
        return f"chat:{self.stage.account}:{chat}"

    async def counts(self, chat: int = 42) -> Counts:
        async def asked(client: Any) -> Counts:
            counts: Counts = await self.handle(client, chat).query(COUNTS, result_type=Counts)
            return counts

        return await self.reach().ask("counts", asked)

    async def is_another_history(self, chat: int = 42) -> bool:
        """Whether it has begun anew since it was begun."""

        async def described(client: Any) -> bool:
            found = await self.handle(client, chat).describe()
            return bool(found.raw_description.workflow_execution_info.first_run_id != found.run_id)

        return await self.reach().ask("describe", described)

    async def histories(self, chat: int = 42) -> list[str]:
        """As Temporal lists them."""

        async def listed(client: Any) -> list[str]:
            return [one.run_id async for one in client.list_workflows(f'WorkflowId = "{self.conversation_id(chat)}"')]

        return await self.reach().ask("list", listed)

    async def are_gone(self, run_ids: list[str], chat: int = 42) -> bool:
        async def gone(client: Any) -> bool:
            for run_id in run_ids:
                try:
                    await client.get_workflow_handle(self.conversation_id(chat), run_id=run_id).describe()
                except RPCError as error:
                    assert error.status is RPCStatusCode.NOT_FOUND
                else:
                    return False
            return True

        return await self.reach().ask("describe", gone)

    def handle(self, client: Any, chat: int = 42) -> WorkflowHandle[Any, Any]:
        handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(self.conversation_id(chat))
        return handle

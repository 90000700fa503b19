"""The door for callers who choose their keys, over HTTP and on the command line.

Refuses at once what would be refused later: a workflow that is not published (404; 503 as long as the worker has not
said which are), what the channel cannot say and where no result can be posted (422); and a key that came before with
another body (422). What was accepted once is never refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from rise.channels import http
from rise.channels.port import Incoming
from rise.envelope import TaskType, task_id_of
from rise.errors import CapabilityClosed, KeyReused, PayloadInvalid, Rejected, TaskUnknown, WorkflowUnknown
from rise.intake import Accepted, Intake
from rise.runtime.assembly.house import House
from rise.runtime.audit import receipt_of
from rise.runtime.operations import Operations
from rise.runtime.starting import refuse_while_starting

_SAID_AS_IT_IS: Final = frozenset({TaskType.MESSAGE_SEND, TaskType.FOLLOW_UP})


class Entrance:
    """Looks at what was asked for, and has it made durable."""

    def __init__(self, house: House, operations: Operations) -> None:
        self._house = house
        self._operations = operations
        self._intake = requiring_same_body(house)

    async def accept(self, incoming: Incoming) -> Accepted:
        """As `Intake.accept`. Raises `Rejected` with the field, or `CapabilityClosed`, as said above."""
        try:
            await self._check(incoming)
        except (Rejected, CapabilityClosed):
            # What was accepted stays accepted, whatever has changed since: a repeat is answered as one.
            if await receipt_of(self._house.queue, incoming.delivery_key) is None:
                raise
        try:
            return await self._intake.accept(incoming)
        except KeyReused:
            if not await self._is_asked_again(incoming):
                raise
            return Accepted(task_id_of(incoming.delivery_key), new=False)

    async def _check(self, incoming: Incoming) -> None:
        if incoming.workflow_id is not None:
            await self._check_workflow(incoming.workflow_id)
        if incoming.callback_url is not None:
            self._check_callback(incoming.callback_url)
        if incoming.task_type in _SAID_AS_IT_IS and "reply" in incoming.policy:
            channel = self._house.channels.by_name()[incoming.channel]
            http.refuse_unsayable(channel, self._intake.head_of(incoming))

    def _check_callback(self, url: str) -> None:
        receiver = self._house.channels.callback_receiver
        if receiver is None:
            raise PayloadInvalid(
                "callbackUrl needs RISE_CALLBACK_SECRET, with which results are signed: have it set, wait for the "
                "result, or read it later",
                field="callbackUrl",
            )
        receiver.refuse_unusable(url)

    async def _check_workflow(self, workflow_id: str) -> None:
        bindings = self._house.bindings
        if bindings.workflow(workflow_id) is None:
            await bindings.refresh()  # perhaps it was published this moment
        workflow = bindings.workflow(workflow_id)
        if workflow is None or not workflow.published or not workflow.enabled:
            refuse_while_starting(self._house.capabilities, f"whether {workflow_id} is among them")
            raise WorkflowUnknown(f"there is no published workflow {workflow_id}", field="workflowId")

    async def _is_asked_again(self, incoming: Incoming) -> bool:
        """Whether it asks for the same as the first of its key, if in other words."""
        try:
            first = await self._operations.story(task_id_of(incoming.delivery_key))
        except TaskUnknown:
            return False
        if not first.task.has_bytes:
            return False  # in the same words it would not have come here; what others asked for, nobody knows any more
        return http.asked_for(first.task.raw) == http.asked_for(incoming.raw)


def requiring_same_body(house: House) -> Intake:
    """The intake, for callers who choose their own keys: a key that comes with another body is refused."""
    return replace(house.intake, same_body_required=frozenset(house.channels.by_name()))

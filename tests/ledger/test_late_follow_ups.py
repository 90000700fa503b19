"""What fires while the ledger is away, or while other writes wait for it, has fired: nobody is told otherwise."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
from late_stage import LateStage

from rise.bindings import BindingRegistry
from rise.chats import ChatRegistry
from rise.envelope import RunId, TaskId, TaskType
from rise.errors import StateConflict
from rise.follow_ups.port import FollowUpId, FollowUpStatus
from rise.follow_ups.queued import QueuedFollowUps
from rise.follow_ups.reading import read_follow_up, read_move
from rise.follow_ups.ringing import Ringing
from rise.intake import Intake
from rise.queue.port import Selection
from rise.runtime.operations import Operations
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState

pytestmark = [pytest.mark.req("TMP-4", "CPY-6")]

ASKED = {"channel": "telegram", "account": "7", "chatId": 42, "inSeconds": 60, "text": "take your pill"}
Change = Callable[[QueuedFollowUps, FollowUpId, LateStage], Awaitable[object]]


async def cancel(follow_ups: QueuedFollowUps, follow_up_id: FollowUpId, stage: LateStage) -> None:
    await follow_ups.cancel(follow_up_id, who="olga")


async def move(follow_ups: QueuedFollowUps, follow_up_id: FollowUpId, stage: LateStage) -> None:
    await follow_ups.move(follow_up_id, read_move(b'{"inSeconds": 3600}', clock=stage.clock), who="olga")


class Installation:
    def __init__(self, **more: object) -> None:
        self.stage = stage = LateStage()
        self.ledger = stage.process()
        self.chats = ChatRegistry(self.ledger, stage.bus, stage.clock)
        bindings = BindingRegistry(MemoryDefinitions(MemoryDefinitionsState()), stage.bus, stage.clock)
        self.intake = Intake(stage.queue, bindings, stage.bus, stage.clock, chats=self.chats)
        operations = Operations(stage.queue, self.ledger, stage.bus, stage.clock)
        self.follow_ups = QueuedFollowUps(
            stage.queue, self.ledger, stage.clock, accept=self.intake.accept, drop=operations.drop
        )
        self.asked = json.dumps(ASKED | more).encode()

    async def plan(self) -> FollowUpId:
        asked = read_follow_up(
            self.asked,
            accounts={"telegram": ["7"]},
            chats=self.chats,
            principal="olga",
            key=None,
            request_id=None,
            trace_id=None,
            clock=self.stage.clock,
            queue_now_ms=self.stage.queue.now_ms(),
        )
        return FollowUpId((await self.intake.accept(asked.incoming)).task_id)

    async def ring(self, follow_up_id: FollowUpId) -> None:
        stage = self.stage
        ringing = Ringing(stage.queue, self.ledger, stage.bus, stage.clock, accept=self.intake.accept)
        await ringing.ring(TaskId(follow_up_id))

    async def said(self) -> list[str]:
        waiting = await self.stage.queue.list_open(Selection(), limit=10)
        return [one.head.user_text for one in waiting if one.head.task_type is TaskType.MESSAGE_SEND]

    async def have_something_wait(self) -> None:
        self.stage.leave()
        await self.ledger.save_step(RunId("t_other.0"), "step", b"1")
        self.stage.come_back()


@pytest.mark.parametrize("change", [cancel, move])
async def test_what_has_fired_while_its_result_waits_is_neither_cancelled_nor_moved(change: Change):
    installation = Installation()
    follow_up_id = await installation.plan()
    installation.stage.clock.advance(61)
    await installation.have_something_wait()
    await installation.ring(follow_up_id)
    assert (await installation.follow_ups.get(follow_up_id)).status is FollowUpStatus.FIRED
    with pytest.raises(StateConflict, match="has fired"):
        await change(installation.follow_ups, follow_up_id, installation.stage)
    await installation.stage.write_back().write_back()
    installation.stage.clock.advance(3700)
    await installation.ring(follow_up_id)
    assert await installation.said() == ["take your pill"]
    assert (await installation.follow_ups.get(follow_up_id)).status is FollowUpStatus.FIRED


async def test_what_is_missed_while_other_writes_wait_says_why_and_by_whom_it_ended():
    installation = Installation(missed="skip")
    follow_up_id = await installation.plan()
    installation.stage.clock.advance(200)
    await installation.have_something_wait()
    await installation.ring(follow_up_id)
    await installation.stage.write_back().write_back()
    seen = await installation.follow_ups.get(follow_up_id)
    assert seen.status is FollowUpStatus.MISSED
    assert "it is not to be said late" in seen.why
    run = await installation.stage.own.latest_run(TaskId(follow_up_id))
    assert run is not None
    assert run.by == "rise"
    assert await installation.said() == []

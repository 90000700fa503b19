"""A group becomes a supergroup in the middle of it: two ids, one lane, one history, one of each notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pipeline_stage import PATIENCE_SECONDS, Killed, Process, Stage

import rise
from rise import chats
from rise.bus.port import Topic
from rise.errors import StoreUnavailable
from rise.queue.port import Selection
from rise.runtime.supervisor import Duties

OLD, NEW = -500, -1_001_000_000_500


@pytest.fixture(autouse=True)
def disks_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start and no message goes on without what the ledger knows, because it was slow to say it."""
    monkeypatch.setattr(chats, "RECORD_SECONDS_MAX", PATIENCE_SECONDS)


def remembering() -> Callable[..., Any]:
    """A workflow that says what it was told, after what it remembers."""

    @rise.workflow("remembers", channels=["telegram"])
    async def remembers(turn: rise.Turn) -> None:
        if turn.text:  # that it has moved says nothing
            told = [said["text"] for said in turn.history if said["role"] == "user"]
            await turn.reply(" ".join([*told, turn.text]))

    return remembers


async def lanes(stage: Stage) -> set[str]:
    return {str(task.head.lane) for task in await stage.queue.list_open(Selection(), limit=100)}


async def knows(stage: Stage, process: Process) -> None:
    """Wait until it does, also without anything that was said to it."""

    async def does() -> bool:
        return process.chats.first_id("telegram", stage.account, str(NEW)) == str(OLD)

    await stage.until(does)


@pytest.mark.req("QUE-3", "OUT-1")
@pytest.mark.failure("A13")
@pytest.mark.parametrize("heard_first", ["in the old chat", "in the new one"])
async def test_a_group_that_moves_keeps_its_order_and_its_history(stage: Stage, heard_first: str):
    await stage.start_gateway()
    tasks = await stage.write("one", chat=OLD)
    late = stage.telegram.message("two", chat_id=OLD)
    last, first = await stage.migrate(OLD, NEW)
    tasks.append(await stage.take(last if heard_first == "in the old chat" else first))
    tasks += await stage.write("three", chat=NEW)
    tasks.append(await stage.take(first if heard_first == "in the old chat" else last))
    tasks.append(await stage.take(late))
    assert await lanes(stage) == {f"tg:{stage.account}:{OLD}:0"}
    await stage.start_worker(remembering())
    await stage.ended(*tasks)
    assert stage.texts(NEW) == ["one", "one two", "one two three"]
    assert stage.texts(OLD) == []
    assert len(stage.calls("sendMessage")) == 3, "nobody had to be told where it is now"


@pytest.mark.req("OUT-1")
@pytest.mark.failure("A13")
async def test_a_group_that_moves_is_not_told_twice_that_its_message_waits(stage: Stage):
    await stage.start_gateway()
    await stage.start_worker()
    await stage.write("one", chat=OLD)
    await stage.until(lambda: said(stage, 1))
    _, first = await stage.migrate(OLD, NEW)
    await stage.take(first)
    [waits] = await stage.write("two", chat=NEW)

    async def is_parked() -> bool:
        return (await stage.queue.get(waits)).progress.reason is not None

    await stage.until(is_parked)
    await stage.let_go_on()
    assert len(stage.telegram.sent) == 1


@pytest.mark.req("CHN-4")
@pytest.mark.failure("A13")
async def test_a_group_that_moves_is_not_told_twice_that_it_will_be_late(stage: Stage):
    stage.duties = Duties(late_after_seconds=10, late_text="late")
    gateway = await stage.start_gateway()
    await stage.write("one", chat=OLD)
    _, first = await stage.migrate(OLD, NEW)
    await stage.take(first)
    await stage.write("two", chat=NEW)
    await stage.pass_time(11)
    await gateway.supervisor.tell()
    await stage.until(lambda: said(stage, 1))
    await gateway.supervisor.tell()
    await stage.let_go_on()
    assert [(message.chat_id, message.text) for message in stage.telegram.sent] == [(NEW, "late")]


async def said(stage: Stage, count: int) -> bool:
    return len(stage.telegram.sent) >= count


@pytest.mark.failure("A13")
async def test_that_a_group_has_moved_is_known_after_a_crash(stage: Stage):
    gateway = await stage.start_gateway()
    _, first = await stage.migrate(OLD, NEW)
    await stage.take(first)
    await gateway.kill()
    again = await stage.start_gateway()
    await stage.write("two", chat=NEW, by=again)
    assert await lanes(stage) == {f"tg:{stage.account}:{OLD}:0"}


@pytest.mark.failure("A13")
async def test_that_a_group_has_moved_is_durable_before_it_is_promised(stage: Stage):
    gateway = await stage.start_gateway()
    _, first = await stage.migrate(OLD, NEW)
    gateway.die_at("queue.enqueue", "before")
    with pytest.raises(Killed):
        await stage.take(first, gateway)
    again = await stage.start_gateway()
    assert again.chats.first_id("telegram", stage.account, str(NEW)) == str(OLD)
    await stage.take(first, again)
    assert await lanes(stage) == {f"tg:{stage.account}:{OLD}:0"}


@pytest.mark.failure("A13")
async def test_other_gateways_hear_that_a_group_has_moved(stage: Stage):
    one, other = await stage.start_gateway(), await stage.start_gateway(sends=False)
    _, first = await stage.migrate(OLD, NEW)
    await stage.take(first, one)
    await knows(stage, other)
    await stage.write("two", chat=NEW, by=other)
    assert await lanes(stage) == {f"tg:{stage.account}:{OLD}:0"}


@pytest.mark.failure("A13")
async def test_that_a_group_has_moved_is_also_learned_from_a_call(stage: Stage):
    gateway, _ = await stage.start(remembering())
    await stage.migrate(OLD, NEW)  # and nobody brings what was said of it
    await stage.ended(*await stage.write("one", chat=OLD))
    stage.bus.publish(Topic.CHATS_MOVED)
    await knows(stage, gateway)
    await stage.ended(*await stage.write("two", chat=NEW))
    assert stage.texts(NEW) == ["one", "one two"]


@pytest.mark.failure("A13")
async def test_with_the_ledger_away_nothing_is_refused_and_the_move_is_written_down_later(stage: Stage):
    gateway = await stage.start_gateway()
    _, first = await stage.migrate(OLD, NEW)
    gateway.fail_at("ledger.move_chat", "before", StoreUnavailable("the ledger is away"), times=1)
    await stage.take(first)
    await stage.write("two", chat=NEW)
    assert await lanes(stage) == {f"tg:{stage.account}:{OLD}:0"}
    assert await stage.ledger.chat_moves() == []
    stage.bus.publish(Topic.CHATS_MOVED)

    async def is_written() -> bool:
        return bool(await stage.ledger.chat_moves())

    await stage.until(is_written)

"""A chat is forgotten whole, wherever it is broken off, and beside all that goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rise.channels.telegram import read_update
from rise.envelope import Outcome, Status, TaskId, encode_head
from rise.errors import StateConflict, StoreUnavailable, TemporalUnavailable
from rise.ledger.port import ChatForgotten, HistoryLine, RunResult
from rise.queue.port import Finished, Selection
from rise.runtime import forgetting as forgetting_module
from rise.runtime.assembly.house import House, build
from rise.runtime.assembly.operations import build_forgetting, build_operations
from rise.runtime.audit import Audit
from rise.runtime.forgetting import ChatNamed, Forgetting, Forgotten
from rise.runtime.refilling import Refilling
from rise.settings import load_settings
from rise.testing.clock import ManualClock
from rise.testing.servers import RedisServer

pytestmark = pytest.mark.req("SEC-5")

BOT = "7"
HERS = ChatNamed("telegram", BOT, "42")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = build(load_settings(data_dir=tmp_path / "data", _env_file=None), ManualClock())
    await house.stores.open()
    yield house
    await house.stores.close()


async def accept(house: House, *numbers: int, chat: int = 42) -> list[TaskId]:
    accepted = []
    for number in numbers:
        message = {"message_id": number, "date": 1_762_587_000, "chat": {"id": chat, "type": "private"}, "text": "Hi"}
        body = json.dumps({"update_id": number, "message": message}).encode()
        read = read_update(body, account=BOT, now=house.clock.now(), webhook=False)
        accepted.append((await house.intake.accept(read)).task_id)
    return accepted


async def answer_all(house: House) -> None:
    while claims := (await house.queue.claim("test", {"telegram": 100}, takes_suspects=True)).claims:
        for first in claims:
            claim: Any = first
            while claim is not None:
                turns = [HistoryLine(role="user", text="Hi", at_ms=1)]
                silent = RunResult(outcome=Outcome.SILENT, value={"said": "Hi"})
                await house.ledger.save_result(claim.task, silent, [], turns, deliver=False)
                claim = await house.queue.settle(claim, claim.task, Finished())


async def forget(forgetting: Forgetting, **more: Any) -> Forgotten:
    return await forgetting.forget(HERS, who="ann", why="", **{"drops_open": False, "compacts": True} | more)


async def is_clean(house: House) -> bool:
    report = await Audit(queue=house.queue, ledger=house.ledger, keep_finished_seconds=30 * 86400.0).run()
    return report.is_clean and not report.notices


@pytest.mark.parametrize("broken_off_after", range(6))
async def test_broken_off_after_any_step_and_begun_anew_it_comes_to_the_same(
    house: House, broken_off_after: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forgetting_module, "PAGE", 2)
    task_ids = [*await accept(house, 1, 2, 3, 4, 5, 6), *await accept(house, 7, 8, chat=43)]
    await answer_all(house)
    forgetting, steps = build_forgetting(house), 0

    def die(seen: ChatForgotten) -> None:
        nonlocal steps
        steps += 1
        if steps > broken_off_after:
            raise StoreUnavailable("killed")

    if broken_off_after < 5:
        with pytest.raises(StoreUnavailable):
            await forget(forgetting, on_step=die)
        assert await is_clean(house)
    await forget(forgetting)
    kept = [await house.ledger.archived(task_id) for task_id in task_ids]
    assert [task is not None and task.has_bytes for task in kept] == [False] * 6 + [True] * 2
    runs = await house.ledger.finished_among(task_ids)
    assert [runs[task_id].status for task_id in task_ids] == [Status.COMPLETED] * 8
    assert await house.ledger.history(*HERS, limit=9) == []
    assert await is_clean(house)


async def test_messages_are_accepted_between_its_steps_and_stay(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forgetting_module, "PAGE", 2)
    await accept(house, 1, 2, 3, 4, 5)
    await answer_all(house)
    seen: list[ChatForgotten] = []
    original = house.ledger.forget_chat

    async def forget_chat(*words: Any, **more: Any) -> ChatForgotten:
        seen.append(await original(*words, **more))
        await accept(house, 10 + len(seen))
        return seen[-1]

    monkeypatch.setattr(house.ledger, "forget_chat", forget_chat)
    assert (await forget(build_forgetting(house))).seen.runs == 5
    assert len(await house.queue.list_open(Selection(), limit=10)) == len(seen) == 3


async def test_what_comes_while_it_is_dropped_is_dropped_too_or_nothing_is_forgotten(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    [first] = await accept(house, 1)
    await answer_all(house)
    await accept(house, 2)
    forgetting, original, numbers = build_forgetting(house), house.queue.cancel, iter(range(3, 99))

    async def cancel(task_id: TaskId, **more: Any) -> Any:
        cancelled = await original(task_id, **more)
        if len(await house.ledger.operations(limit=99)) < 5:
            await accept(house, next(numbers))
        return cancelled

    monkeypatch.setattr(house.queue, "cancel", cancel)
    with pytest.raises(StateConflict, match="still open"):
        await forget(forgetting, drops_open=True)
    task = await house.ledger.archived(first)
    assert task is not None
    assert task.has_bytes
    assert (await forget(forgetting, drops_open=True)).dropped == 1
    assert await is_clean(house)


# --- what a newer version wrote ---


async def accept_newer(house: House, number: int, **update: Any) -> TaskId:
    """Of which this version reads no more than where it stands."""
    body = json.dumps({"update_id": number, **update}).encode()
    task_id = (await house.intake.accept(read_update(body, account=BOT, now=house.clock.now(), webhook=False))).task_id
    task = await house.queue.get(task_id)
    assert task is not None
    newer = json.dumps(json.loads(encode_head(task.head)) | {"schema": 99}).encode()
    change = "UPDATE tasks SET head = ? WHERE task_id = ?"
    await house.stores.database.write(lambda connection: connection.execute(change, (newer, task_id)))
    return task_id


HER_USER = {"id": 42, "is_bot": False, "first_name": "Ann"}
HER_MESSAGE = {"message_id": 1, "date": 1_762_587_000, "chat": {"id": 42, "type": "private"}, "text": "Hi"}
IN_A_TOPIC = {"is_topic_message": True, "message_thread_id": 5}
HER_TAP = {"id": "c", "from": HER_USER, "message": HER_MESSAGE, "chat_instance": "x", "data": "yes"}
ASKED = {"id": "q", "from": HER_USER, "query": "cats", "offset": ""}


@pytest.mark.req("SUS-3")
@pytest.mark.failure("B14")
@pytest.mark.parametrize(
    "update",
    [
        {"message": HER_MESSAGE},
        {"message": HER_MESSAGE | IN_A_TOPIC},
        {"callback_query": HER_TAP},
        {"inline_query": ASKED},
    ],
    ids=["a message", "in a topic", "a tap", "outside of chats"],
)
async def test_while_a_message_of_the_chat_waits_for_a_newer_version_nothing_is_forgotten_or_it_goes_too(
    house: House, update: dict[str, Any]
):
    task_id = await accept_newer(house, 1, **update)
    forgetting = build_forgetting(house)
    assert (await forgetting.foresee(HERS)).open == 1
    with pytest.raises(StateConflict, match="1 message is of this chat still open"):
        await forget(forgetting)
    done = await forget(forgetting, drops_open=True)
    assert (done.dropped, done.seen.runs, done.seen.unreadable) == (1, 1, 0)
    assert await house.queue.list_open(Selection(), limit=9) == []
    task = await house.ledger.archived(task_id)
    assert task is not None
    assert task.raw == b""
    assert await is_clean(house)


@pytest.mark.req("SUS-3")
@pytest.mark.failure("B14")
async def test_what_may_be_of_the_chat_and_waits_for_a_newer_version_is_said_to_be_left(house: House):
    his = {"id": 43, "is_bot": False, "first_name": "Bob"}
    await accept_newer(house, 1, callback_query=HER_TAP | {"from": his})
    await accept_newer(house, 2, message=HER_MESSAGE | {"chat": {"id": 43, "type": "private"}})
    forgetting = build_forgetting(house)
    for found in (await forgetting.foresee(HERS), await forget(forgetting, drops_open=True)):
        assert (found.open, found.dropped, found.shown()["unreadable"]) == (0, 0, 1)
    assert len(await house.queue.list_open(Selection(), limit=9)) == 2


async def test_a_database_that_cannot_be_written_anew_does_not_undo_it(house: House):
    await accept(house, 1)
    await answer_all(house)

    async def fail() -> bool:
        raise StoreUnavailable("the disk is full")

    forgetting = build_forgetting(house)
    forgetting._compact = fail
    done = await forget(forgetting)
    assert (done.seen.runs, done.is_compact) == (1, False)


# --- what the queue has not got ---


@pytest.fixture
async def full(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[House]:
    """With Redis and journals; nobody brings anything from these to it, unless told to."""
    house = build(load_settings(data_dir=tmp_path / "data", redis_url=redis_server.url, _env_file=None))
    await house.stores.open()
    assert house.stores.full is not None
    await house.stores.full.journals.start()
    await is_filled(house)
    yield house
    await house.stores.full.journals.stop()
    await house.stores.close()


async def is_filled(house: House) -> None:
    """As far as anybody knows."""
    assert house.stores.full is not None
    queue = house.stores.full.queue
    await queue.begin_life(await queue.begin_refill())


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C19")
async def test_while_an_emptied_queue_is_filled_again_nothing_is_forgotten(full: House, redis_server: RedisServer):
    await accept(full, 1)
    redis_server.ask("FLUSHALL")
    forgetting = build_forgetting(full)
    for asked in (forgetting.foresee(HERS), forget(forgetting), forget(forgetting, drops_open=True)):
        with pytest.raises(StateConflict, match="the queue was emptied"):
            await asked
    assert await full.ledger.operations(limit=9) == []
    await Refilling(full).bring()
    await is_filled(full)
    assert (await forgetting.foresee(HERS)).open == 1
    assert (await forget(forgetting, drops_open=True)).seen.runs == 1


@pytest.mark.req("CPY-5")
@pytest.mark.failure("C19")
async def test_a_queue_that_is_emptied_while_it_is_looked_through_is_not_believed(
    full: House, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    await accept(full, 1)

    async def list_open(*words: Any, **more: Any) -> Any:
        redis_server.ask("FLUSHALL")
        return []

    monkeypatch.setattr(full.queue, "list_open", list_open)
    with pytest.raises(StateConflict, match="the queue was emptied"):
        await forget(build_forgetting(full))


@pytest.mark.req("CPY-4", "CPY-5")
@pytest.mark.failure("C11")
async def test_while_a_journal_holds_an_open_message_of_the_chat_for_the_queue_nothing_is_forgotten(
    full: House, redis_server: RedisServer
):
    await accept(full, 1)
    await answer_all(full)
    await accept(full, 2)
    redis_server.ask("FLUSHALL")
    await is_filled(full)
    forgetting = build_forgetting(full)
    for asked in (forgetting.foresee(HERS), forget(forgetting), forget(forgetting, drops_open=True)):
        with pytest.raises(StateConflict, match="1 message is of this chat on the way to the queue"):
            await asked
    await Refilling(full).bring()
    with pytest.raises(StateConflict, match="1 message is of this chat still open"):
        await forget(forgetting)
    await answer_all(full)
    assert (await forget(forgetting)).seen.runs == 2


@pytest.mark.req("CPY-4")
async def test_what_a_journal_holds_of_others_and_what_has_ended_hinders_nobody(full: House, redis_server: RedisServer):
    await accept(full, 1)
    await answer_all(full)
    await accept(full, 2, chat=43)
    redis_server.ask("FLUSHALL")
    await is_filled(full)
    assert (await forget(build_forgetting(full))).seen.runs == 1


# --- what is carried on elsewhere ---


class Conversations:
    """What is asked to forget them."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.forgotten: list[str] = []

    async def forget(self, conversation_id: str) -> None:
        if self.is_away:
            raise TemporalUnavailable("Temporal cannot be reached")
        self.forgotten.append(conversation_id)


def forgetting_with(house: House, conversations: Any) -> Forgetting:
    operations = build_operations(house)
    compact = house.stores.database.compact
    return Forgetting(house.queue, house.ledger, operations, house.clock, compact=compact, conversations=conversations)


@pytest.mark.req("TMP-1")
async def test_its_conversation_is_forgotten_under_each_id_that_it_had(house: House):
    await accept(house, 1)
    await answer_all(house)
    await house.ledger.move_chat("telegram", BOT, "42", "-100")
    conversations = Conversations()
    await forget(forgetting_with(house, conversations))
    assert conversations.forgotten == [f"chat:{BOT}:-100", f"chat:{BOT}:42"]


@pytest.mark.req("TMP-1", "TMP-4")
async def test_while_temporal_is_away_all_else_is_forgotten_and_it_is_said_to_be_repeated(house: House):
    await accept(house, 1)
    await answer_all(house)
    with pytest.raises(TemporalUnavailable, match="all is forgotten but what Temporal has of it"):
        await forget(forgetting_with(house, Conversations(is_away=True)))
    assert await house.ledger.history("telegram", BOT, "42", limit=10) == []
    conversations = Conversations()
    await forget(forgetting_with(house, conversations))
    assert conversations.forgotten == [f"chat:{BOT}:42"]

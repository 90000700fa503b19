"""A chat with two ids is one chat, in the memory of every process and in what updates are read as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from rise import chats
from rise.channels.http import read_message
from rise.channels.port import Incoming
from rise.channels.telegram import read_update
from rise.chats import ChatRegistry
from rise.envelope import Reason, encode_json
from rise.errors import StoreUnavailable
from rise.ledger.port import ChatMove
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.telegram import updates

OLD, NEW = -500, -1_001_000_000_500
DATE = 1_762_587_012
MOVE = ChatMove(channel="telegram", account="7", chat_id=str(NEW), first_id=str(OLD))


class Ledger(MemoryLedger):
    is_away = False
    hangs = False
    asked = 0
    looked = 0
    on_looked: Callable[[], object] = staticmethod(lambda: None)
    """When it has answered, and before that is heard."""

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable("away")
        if self.hangs:
            await asyncio.Event().wait()
        await super().move_chat(channel, account, chat_id, moved_to)

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        self.looked += 1
        if self.is_away:
            raise StoreUnavailable("away")
        moves = await super().chat_moves(after=after)
        self.on_looked()
        return moves


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(MemoryLedgerState(), now_ms=lambda: 0)


@pytest.fixture
def registry(ledger: Ledger) -> ChatRegistry:
    return new_registry(ledger)


def new_registry(ledger: Ledger, clock: ManualClock | None = None) -> ChatRegistry:
    return ChatRegistry(ledger, MemoryBus(MemoryBusState()), clock or ManualClock())


def read(update: dict[str, Any], registry: ChatRegistry, *, sent_at: int = DATE) -> Incoming:
    [(kind, content)] = update.items()
    body = encode_json({"update_id": 1, kind: {"message_id": 1, "date": DATE} | content})
    return read_update(body, account="7", now=datetime.fromtimestamp(sent_at, UTC), webhook=True, chats=registry)


def migration() -> tuple[dict[str, Any], dict[str, Any]]:
    last, first = updates.group_migration(chat_id=OLD, new_chat_id=NEW)
    return dict(last), dict(first)


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.failure("A13")
@pytest.mark.parametrize("which", [0, 1], ids=["the last under the old id", "the first under the new one"])
def test_what_comes_after_it_was_said_is_in_the_lane_of_the_first_id(registry: ChatRegistry, which: int):
    told = read(migration()[which], registry)
    assert told.moved == (str(OLD), str(NEW))
    after = read(dict(updates.message("Hello", chat_id=NEW)), registry)
    assert {told.lane, after.lane} == {f"tg:7:{OLD}:0"}
    assert (after.chat_id, after.first_chat_id) == (str(NEW), str(OLD))
    assert after.metadata["chat_id"] == str(NEW), "where calls go"
    assert after.metadata["convo_id"].startswith(f"{OLD}:")


@pytest.mark.failure("A13")
def test_the_old_id_and_other_chats_are_as_they_were(registry: ChatRegistry):
    for update in migration():
        read(update, registry)
    for chat in (OLD, 42):
        incoming = read(dict(updates.message("Hello", chat_id=chat)), registry)
        assert (incoming.lane, incoming.first_chat_id) == (f"tg:7:{chat}:0", None)


@pytest.mark.failure("A13")
def test_what_a_topic_or_a_tap_of_it_belongs_to(registry: ChatRegistry):
    read(migration()[1], registry)
    topic = updates.message("Hello", chat_id=NEW, message_thread_id=3, is_topic_message=True)
    assert read(dict(topic), registry).lane == f"tg:7:{OLD}:3"
    tap = read(dict(updates.callback_query("yes", chat_id=NEW)), registry)
    assert tap.first_chat_id == str(OLD)
    assert tap.lane.endswith(":callback")


@pytest.mark.failure("A13")
@pytest.mark.parametrize(
    "fields",
    [
        {"migrate_from_chat_id": None},
        {"migrate_from_chat_id": "-500"},
        {"migrate_from_chat_id": True},
        {"migrate_from_chat_id": NEW},
        {"migrate_from_chat_id": OLD, "migrate_to_chat_id": -7},
        {"migrate_from_chat_id": 1 << 70},
    ],
)
def test_what_names_no_other_chat_moves_none(registry: ChatRegistry, fields: dict[str, Any]):
    update = {"message": {"chat": {"id": NEW, "type": "supergroup"}, **fields}}
    assert read(update, registry).moved is None
    assert registry.first_id("telegram", "7", str(NEW)) is None


@pytest.mark.failure("A13", "A8")
def test_that_a_chat_has_moved_is_true_whoever_says_so_when(registry: ChatRegistry):
    """A host whose clock is days ahead takes what comes for replays, and a person may drop it."""
    replayed = read(migration()[1], registry, sent_at=DATE + 30 * 3600)
    assert (replayed.suspend, replayed.moved) == (Reason.STALE_REPLAY, (str(OLD), str(NEW)))
    assert registry.first_id("telegram", "7", str(NEW)) == str(OLD)


@pytest.mark.failure("A13", "B1")
def test_nothing_is_learned_from_what_cannot_be_read(registry: ChatRegistry):
    update = migration()[1]
    update["message"]["text"] = 7
    unread = read(update, registry)
    assert (unread.suspend, unread.moved) == (Reason.RAW_PAYLOAD_INVALID, None)
    assert registry.first_id("telegram", "7", str(NEW)) is None


@pytest.mark.failure("A13")
def test_what_a_program_says_in_it_is_in_the_chats_own_lane(registry: ChatRegistry):
    registry.hear(MOVE)
    body = encode_json({"channel": "telegram", "chatId": NEW, "text": "Hello"})
    asked = read_message(
        body, accounts={"telegram": ["7"]}, principal="p", key="k", request_id="r", trace_id=None, chats=registry
    )
    assert (asked.incoming.lane, asked.incoming.first_chat_id) == (f"tg:7:{OLD}:0", str(OLD))


# --- remembering --------------------------------------------------------------------------------------------


@pytest.mark.failure("A13")
async def test_what_was_heard_is_known_at_once_and_recorded_once(registry: ChatRegistry, ledger: Ledger):
    registry.hear(MOVE)
    assert registry.first_id("telegram", "7", str(NEW)) == str(OLD)
    assert registry.first_id("telegram", "8", str(NEW)) is None
    for _ in range(2):
        await registry.record()
        registry.hear(MOVE)
    assert ledger.asked == 1
    other = new_registry(ledger)
    await other.start()
    assert other.first_id("telegram", "7", str(NEW)) == str(OLD)
    await other.stop()


@pytest.mark.failure("A13")
async def test_a_ledger_that_is_away_or_hangs_keeps_nobody(
    registry: ChatRegistry, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chats, "RECORD_SECONDS_MAX", 0.01)
    registry.hear(MOVE)
    ledger.is_away = True
    await registry.record()
    await registry.start()
    ledger.is_away, ledger.hangs = False, True
    await registry.record()
    ledger.hangs = False
    await registry.record()
    assert [move.first_id for move in await ledger.chat_moves()] == [str(OLD)]
    await registry.stop()


@pytest.mark.failure("A13", "B4")
async def test_a_process_that_was_stopped_looks_once_before_it_reads_what_has_come(ledger: Ledger):
    clock = ManualClock()
    registry = new_registry(ledger, clock)
    await registry.start()
    await ledger.move_chat("telegram", "7", str(OLD), str(NEW))
    clock.advance(chats.TRUSTED_SECONDS)
    await registry.catch_up()
    assert (registry.first_id("telegram", "7", str(NEW)), ledger.looked) == (None, 1), "it may not have heard yet"
    clock.advance(0.1)
    await asyncio.gather(*(registry.catch_up() for _ in range(3)))
    assert (registry.first_id("telegram", "7", str(NEW)), ledger.looked) == (str(OLD), 2)
    await registry.stop()


@pytest.mark.failure("A13", "B4")
async def test_an_answer_that_was_on_its_way_when_the_process_was_stopped_is_not_trusted(ledger: Ledger):
    clock = ManualClock()
    registry = new_registry(ledger, clock)
    ledger.on_looked = lambda: clock.advance(2 * chats.TRUSTED_SECONDS)
    await registry.refresh()
    ledger.on_looked = lambda: None
    await ledger.move_chat("telegram", "7", str(OLD), str(NEW))
    await registry.catch_up()
    assert registry.first_id("telegram", "7", str(NEW)) == str(OLD)


@pytest.mark.failure("A13", "B4")
async def test_a_ledger_that_is_away_is_asked_once_after_a_stop_and_then_waited_for_by_nobody(ledger: Ledger):
    clock = ManualClock()
    registry = new_registry(ledger, clock)
    await registry.start()
    await ledger.move_chat("telegram", "7", str(OLD), str(NEW))
    ledger.is_away = True
    clock.advance(2 * chats.TRUSTED_SECONDS)
    await asyncio.gather(*(registry.catch_up() for _ in range(3)))
    assert ledger.looked == 2
    ledger.is_away = False
    await registry.refresh()
    clock.advance(2 * chats.TRUSTED_SECONDS)
    await registry.catch_up()
    assert ledger.looked == 4, "from then on it is trusted for a while only, as ever"
    await registry.stop()

"""An aiogram dispatcher of the real library knows what is bound, as of each update."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, Router
from aiogram.types import Chat, Message, Update

from rise.bindings import BindingRegistry, BindingsSnapshot
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.integrations.aiogram import KEY, bind_registry
from rise.runtime.editor import Editor
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState


def update(number: int) -> Update:
    chat = Chat(id=1, type="private")
    message = Message(message_id=number, date=datetime.datetime.now(datetime.UTC), chat=chat, text="hi")
    return Update(update_id=number, message=message)


@pytest.mark.req("BND-5", "CHN-2")
async def test_a_handler_reads_what_is_bound_when_its_update_comes():
    clock, bus = ManualClock(), MemoryBus(MemoryBusState())
    definitions = MemoryDefinitions(MemoryDefinitionsState())
    registry = BindingRegistry(definitions, bus, clock)
    editor = Editor(definitions, MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0), bus, clock)
    dispatcher, router, seen = Dispatcher(), Router(), []

    @router.message()
    async def handler(message: Message, channel_bindings: BindingsSnapshot) -> None:
        seen.append(channel_bindings)

    dispatcher.include_router(router)
    stop = bind_registry(dispatcher, registry)
    bot = Bot("7:token-of-the-tests")
    await dispatcher.feed_update(bot, update(1))
    await editor.publish(WorkflowRecord(workflow_id="wf_a", name="a"), by="ann")
    await editor.bind(BindingRecord(channel="telegram", account="7", workflow_id="wf_a"), by="ann")
    await registry.refresh()
    await dispatcher.feed_update(bot, update(2))
    stop()
    await editor.unbind("telegram", "7", "wf_a", by="ann")
    await registry.refresh()
    await dispatcher.feed_update(bot, update(3))

    before, bound, after = seen
    assert (before.version, before.active, before.options, before.last_refresh) == (-1, (), (), None)
    assert [one.workflow_id for one in bound.active] == ["wf_a"]
    assert [one.workflow_id for one in bound.options] == ["wf_a"]
    assert (bound.version, bound.last_refresh) == (2, clock.now())
    assert after is bound, "what has ended says nothing more, and takes nothing away"
    shown: Any = dispatcher.workflow_data[KEY]
    assert {name: shown[name] for name in ("version", "active", "options", "last_refresh")} == {
        "version": 2, "active": bound.active, "options": bound.options, "last_refresh": clock.now()
    }  # fmt: skip
    with pytest.raises(AttributeError):
        shown.version = 3
    with pytest.raises(KeyError):
        shown["nonsense"]
    await bot.session.close()

"""What is bound is read again and again: at a word, by its version, and as a whole; what cannot be read is visible."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from rise.bindings import CHECK_SECONDS, WHOLE_CHECK_SECONDS, BindingRegistry
from rise.bus.port import Topic
from rise.capabilities import CONSEQUENCES, REMEDIES, CapabilityRegistry, CapabilityStatus
from rise.definitions.port import Definition, Kind
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.envelope import encode_json
from rise.errors import StoreUnavailable
from rise.runtime.assembly.house import report_bindings
from rise.runtime.editor import Editor
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState

PATIENCE_SECONDS = 10


class DefinitionsThatMayFail(MemoryDefinitions):
    """And whose whole reads are counted."""

    def __init__(self) -> None:
        self.state = MemoryDefinitionsState()
        super().__init__(self.state)
        self.trouble: Exception | None = None
        self.read = 0

    async def changes(self) -> int:
        if self.trouble is not None:
            raise self.trouble
        return await super().changes()

    async def latest(self, kinds: Any) -> Any:
        if self.trouble is not None:
            raise self.trouble
        await asyncio.sleep(0)
        self.read += 1
        return await super().latest(kinds)


class Stage:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.definitions = DefinitionsThatMayFail()
        self.bus = MemoryBus(MemoryBusState())
        self.capabilities = CapabilityRegistry(self.clock)
        self.registry = BindingRegistry(
            self.definitions, self.bus, self.clock, on_trouble=lambda why: report_bindings(self.capabilities, why)
        )
        ledger = MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0)
        self.editor = Editor(self.definitions, ledger, self.bus, self.clock)
        self.looked = asyncio.Event()
        self.registry.on_refresh(lambda _: self.looked.set())

    async def bind(self, workflow_id: str) -> None:
        await self.editor.publish(WorkflowRecord(workflow_id=workflow_id, name=workflow_id), by="ann")
        await self.editor.bind(BindingRecord(channel="telegram", account="7", workflow_id=workflow_id), by="ann")

    async def until_looked(self) -> None:
        self.looked.clear()
        await asyncio.wait_for(self.looked.wait(), PATIENCE_SECONDS)

    def bound(self) -> list[str]:
        return [one.workflow_id for one in self.registry.snapshot.active if one.is_default]

    @property
    def state(self) -> Any:
        return self.capabilities.get("bindings")


@pytest.fixture
async def stage() -> Any:
    stage = Stage()
    await stage.bus.start()
    yield stage
    await stage.registry.stop()
    await stage.bus.stop()


@pytest.mark.req("BND-5")
async def test_a_word_is_enough_to_be_up_to_date(stage: Stage):
    await stage.registry.start()
    await stage.until_looked()
    await stage.bind("wf_a")
    await stage.until_looked()
    assert stage.bound() == ["wf_a"]


@pytest.mark.req("BND-5", "CAP-5")
async def test_what_cannot_be_read_at_the_start_is_said_and_tried_until_it_can(stage: Stage):
    await stage.bind("wf_a")
    stage.definitions.trouble = StoreUnavailable("the database is away")
    with capture_logs() as logged:
        await stage.registry.start()
        for _ in range(4):
            await stage.clock.until_sleeping()
            stage.clock.advance(CHECK_SECONDS)
        await stage.clock.until_sleeping()
        assert (stage.state.status, stage.state.detail) == (CapabilityStatus.DEGRADED, "the database is away")
        assert stage.bound() == []
        stage.definitions.trouble = None
        stage.looked.clear()
        stage.clock.advance(CHECK_SECONDS)
        await asyncio.wait_for(stage.looked.wait(), PATIENCE_SECONDS)
        await asyncio.sleep(0)
    assert stage.state.status is CapabilityStatus.AVAILABLE
    assert stage.bound() == ["wf_a"]
    failed = [entry for entry in logged if entry["event"] == "bindings.refresh_failed"]
    assert [(one["consequence"], one["remedy"]) for one in failed] == [
        (CONSEQUENCES["bindings"], REMEDIES["bindings"])
    ], "said once"


@pytest.mark.req("BND-5")
async def test_all_is_read_again_now_and_then_even_if_the_version_is_the_same(stage: Stage, monkeypatch: Any):
    monkeypatch.setattr("rise.bindings.CHECK_SECONDS", 0.01)
    await stage.bind("wf_a")
    await stage.bind("wf_b")
    await stage.registry.start()
    await stage.until_looked()
    # Put back from a backup of another state, with as many changes.
    body = encode_json([BindingRecord(channel="telegram", account="7", workflow_id="wf_a", version=2)])
    other = Definition(kind=Kind.BINDINGS, name="telegram:7", version=2, body=body, at_ms=0, by="ann")
    stage.definitions.state.kept[Kind.BINDINGS, "telegram:7"][-1] = other
    await stage.until_looked()
    assert (stage.bound(), stage.definitions.read) == (["wf_b"], 1)
    with capture_logs() as logged:
        stage.clock.advance(WHOLE_CHECK_SECONDS)
        await stage.until_looked()
        await stage.until_looked()
    assert (stage.bound(), stage.definitions.read) == (["wf_a"], 2)
    assert [entry["event"] for entry in logged] == ["bindings.drifted"]


@pytest.mark.req("BND-5", "BND-7")
async def test_a_slow_look_does_not_put_back_what_was_in_force_before_a_change(stage: Stage, monkeypatch: Any):
    """Otherwise what was just killed would run again until the next look."""
    await stage.bind("wf_a")
    read, may_return, looks = stage.definitions.latest, asyncio.Event(), []

    async def first_is_slow(kinds: Any) -> Any:
        found = await read(kinds)
        looks.append(kinds)
        if len(looks) == 1:
            await may_return.wait()
        return found

    monkeypatch.setattr(stage.definitions, "latest", first_is_slow)
    slow = asyncio.create_task(stage.registry.refresh())
    while not looks:
        await asyncio.sleep(0)
    await stage.bind("wf_b")
    quick = asyncio.create_task(stage.registry.refresh())
    for _ in range(20):
        await asyncio.sleep(0)
    may_return.set()
    await asyncio.gather(slow, quick)
    assert stage.bound() == ["wf_b"]


@pytest.mark.req("BND-5")
async def test_who_reads_while_it_is_refreshed_sees_one_state_or_the_other(stage: Stage):
    await stage.bind("wf_a")
    await stage.registry.refresh()
    is_over, seen = asyncio.Event(), set()

    def read() -> None:
        snapshot = stage.registry.snapshot
        known = {one.workflow_id for one in snapshot.options}
        assert {one.workflow_id for one in snapshot.active} <= known
        assert len([one for one in snapshot.active if one.is_default]) == 1
        seen.add(snapshot.version)

    async def read_on() -> None:
        while not is_over.is_set():
            read()
            await asyncio.sleep(0)

    def read_in_a_thread() -> None:
        while not is_over.is_set():
            read()

    loop = asyncio.get_running_loop()
    threads = [loop.run_in_executor(None, read_in_a_thread) for _ in range(2)]

    async def change() -> None:
        for number in range(40):
            await stage.bind("wf_a" if number % 2 else "wf_b")
            await asyncio.gather(*(stage.registry.refresh(whole=bool(number % 3)) for _ in range(3)))
        is_over.set()

    await asyncio.gather(change(), read_on(), read_on(), *threads)
    assert len(seen) > 10


@pytest.mark.req("BND-5")
async def test_a_change_is_told_and_logged_in_the_words_of_the_event(stage: Stage):
    heard: list[Any] = []
    stage.bus.subscribe(Topic.DEFINITIONS_CHANGED, heard.append)
    with capture_logs() as logged:
        await stage.bind("wf_a")
        await stage.editor.bind(BindingRecord(channel="telegram", account="7", workflow_id="wf_b"), by="ann")
        await stage.editor.unbind("telegram", "7", "wf_b", by="ann")
        await asyncio.sleep(0)
    telegram = {"channel": "telegram", "account": "7"}
    changes = [
        telegram | said("wf_a", 1, "bind", 1, True),
        telegram | said("wf_a", 2, "bind", 1, True),  # it is not the default any more
        telegram | said("wf_b", 2, "bind", None, True),
        telegram | said("wf_b", 3, "unbind", None, False),
    ]
    assert heard == [{"channel": None} | said("wf_a", None, "publish", 1, True), *changes]
    lines = [entry for entry in logged if entry["event"] == "channel_binding.updated"]
    assert [{name: line[name] for name in changes[0]} for line in lines] == changes


def said(workflow_id: str, version: int | None, operation: str, published: int | None, enabled: bool) -> dict[str, Any]:
    return {
        "workflowId": workflow_id,
        "bindingVersion": version,
        "operation": operation,
        "publishedVersion": published,
        "enabled": enabled,
    }

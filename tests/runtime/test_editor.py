"""Changing definitions: one default per account, every change a version, code never overrules a person."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import structlog

from rise.bus.port import Topic
from rise.definitions.port import Definition, Kind
from rise.definitions.records import (
    CODE,
    NEWER,
    STAGES,
    BindingRecord,
    ChannelOwn,
    KillSwitch,
    WorkflowRecord,
    bindings_of,
    workflow_of,
)
from rise.errors import StateConflict, StoreUnavailable
from rise.runtime.editor import Editor
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState

ACCOUNTS = {"telegram": "7", "http": "default"}


class Stage:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.definitions = MemoryDefinitions(MemoryDefinitionsState())
        self.ledger = MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0)
        self.bus = MemoryBus(MemoryBusState())
        self.heard: list[Any] = []
        self.bus.subscribe(Topic.DEFINITIONS_CHANGED, self.heard.append)
        self.editor = Editor(self.definitions, self.ledger, self.bus, self.clock)

    async def bindings(self) -> list[BindingRecord]:
        latest = await self.definitions.latest([Kind.BINDINGS])
        return [binding for definition in latest.definitions for binding in bindings_of(definition)]

    async def workflow(self, workflow_id: str) -> WorkflowRecord:
        definition = await self.definitions.version(Kind.PUBLISHED, workflow_id)
        assert definition is not None
        return workflow_of(definition)

    async def write_as_newer(self, kind: Kind, name: str, body: bytes) -> None:
        last = await self.definitions.version(kind, name)
        version = 1 if last is None else last.version + 1
        await self.definitions.put(Definition(kind=kind, name=name, version=version, body=body, at_ms=0, by="tomorrow"))


@pytest.fixture
async def stage() -> Any:
    stage = Stage()
    await stage.bus.start()
    yield stage
    await stage.bus.stop()


def binding(workflow_id: str = "a", account: str = "7", **fields: Any) -> BindingRecord:
    return BindingRecord(channel="telegram", account=account, workflow_id=workflow_id, **fields)


def workflow(name: str, *channels: str) -> WorkflowRecord:
    return WorkflowRecord(workflow_id=name, name=name, channels=channels)


@pytest.mark.req("BND-2")
async def test_an_account_has_one_default_and_a_new_one_demotes_the_former_in_one_step(stage: Stage):
    for workflow_id in ("a", "b", "c"):
        await stage.editor.bind(binding(workflow_id), by="ann")
    await stage.editor.bind(binding("a", "8"), by="ann")
    await stage.editor.bind(binding("d", is_default=False, timeout_message="soon"), by="ann")
    known = {(one.account, one.workflow_id): one for one in await stage.bindings()}
    assert [key for key, one in known.items() if one.is_default] == [("7", "c"), ("8", "a")]
    assert {key: one.version for key, one in known.items()} == {
        ("7", "a"): 2, ("7", "b"): 3, ("7", "c"): 3, ("7", "d"): 4, ("8", "a"): 1
    }  # fmt: skip
    assert known["7", "d"].timeout_message == "soon"


@pytest.mark.req("BND-2", "BND-3")
async def test_what_is_the_accounts_is_the_same_in_all_its_bindings(stage: Stage):
    def own(workflow_id: str, **fields: Any) -> BindingRecord:
        return binding(workflow_id, is_default=False, own=ChannelOwn(**fields))

    async def known() -> list[tuple[str | None, str | None, str | None]]:
        return [(one.own.bot_token, one.own.webhook_url, one.own.locale) for one in await stage.bindings()]

    await stage.editor.bind(own("a", bot_token="old", webhook_url="here", locale="de"), by="ann")
    await stage.editor.bind(own("b"), by="ann")
    assert await known() == [("old", "here", "de"), ("old", "here", None)]
    await stage.editor.bind(own("b", bot_token="new", webhook_url="here"), by="ann")
    assert await known() == [("new", "here", "de"), ("new", "here", None)]
    await stage.editor.bind(own("a", bot_token="new"), by="ann")
    assert await known() == [("new", None, None), ("new", None, None)]
    assert [one.version for one in await stage.bindings()] == [4, 4]


@pytest.mark.req("BND-2", "SEC-4")
async def test_a_change_is_dated_signed_told_and_recorded(stage: Stage):
    changed = await stage.editor.bind(binding(), by="ann", why="a new bot")
    assert (changed.updated_by, changed.updated_at, changed.version) == ("ann", "2025-11-08T07:30:00.000Z", 1)
    [operation] = await stage.ledger.operations(limit=9)
    assert (operation.who, operation.action, operation.target, operation.why) == (
        "ann",
        "bind",
        "telegram:7",
        "a new bot",
    )
    await asyncio.sleep(0)
    assert len(stage.heard) == 1


async def test_what_changes_nothing_is_no_new_version(stage: Stage):
    for _ in range(2):
        await stage.editor.publish(msgspec.structs.replace(workflow("a"), kind="stages"), by="ann")
        await stage.editor.follow_code([workflow("b", "telegram")], ACCOUNTS)
        await stage.editor.unbind("telegram", "9", "a", by="ann")
    assert await stage.definitions.changes() == 3


@pytest.mark.req("BND-9")
async def test_the_code_binds_what_nobody_has_bound_and_takes_back_only_its_own(stage: Stage):
    await stage.editor.bind(binding("a", enabled=False), by="ann")
    await stage.editor.follow_code([workflow("b", "telegram", "http")], ACCOUNTS)
    assert [(one.channel, one.workflow_id, one.enabled, one.updated_by) for one in await stage.bindings()] == [
        ("http", "b", True, CODE),
        ("telegram", "a", False, "ann"),
    ]
    await stage.editor.follow_code([workflow("b"), workflow("c", "http")], ACCOUNTS)
    assert [(one.channel, one.workflow_id) for one in await stage.bindings()] == [("http", "c"), ("telegram", "a")]


@pytest.mark.req("BND-7")
async def test_the_code_leaves_alone_what_is_killed_and_follows_again_when_it_is_no_longer(stage: Stage):
    async def switch(on: bool) -> None:
        def change(known: BindingRecord | None) -> BindingRecord:
            assert known is not None
            return msgspec.structs.replace(known, kill_switch=KillSwitch("it raves", "now", "ann") if on else None)

        await stage.editor.rebind("telegram", "7", "a", change, by="ann")

    await stage.editor.follow_code([workflow("a", "telegram")], ACCOUNTS)
    await switch(True)
    await stage.editor.follow_code([workflow("b", "telegram")], ACCOUNTS)
    [killed] = await stage.bindings()
    assert (killed.workflow_id, killed.updated_by, killed.bound_by) == ("a", "ann", CODE)
    await switch(False)
    await stage.editor.follow_code([workflow("b", "telegram")], ACCOUNTS)
    assert [(one.workflow_id, one.bound_by) for one in await stage.bindings()] == [("b", CODE)]


async def test_what_is_bound_to_a_workflow_that_the_code_has_not_loaded_waits_for_it(stage: Stage):
    await stage.editor.follow_code([workflow("a", "telegram")], ACCOUNTS)
    await stage.editor.follow_code([], ACCOUNTS)
    assert [(one.workflow_id, one.enabled) for one in await stage.bindings()] == [("a", True)]


async def test_a_workflow_that_the_code_no_longer_has_runs_no_more_and_comes_back_with_it(stage: Stage):
    await stage.editor.follow_code([workflow("a"), workflow("b")], ACCOUNTS)
    await stage.editor.follow_code([workflow("b")], ACCOUNTS)
    assert ((await stage.workflow("a")).published, (await stage.workflow("b")).published) == (False, True)
    await stage.editor.follow_code([workflow("a"), workflow("b")], ACCOUNTS)
    assert (await stage.workflow("a")).published


@pytest.mark.req("WFL-1", "WFL-3")
async def test_what_a_person_has_switched_off_stays_off_whatever_the_code_does(stage: Stage):
    await stage.editor.follow_code([workflow("a", "http")], ACCOUNTS)
    off = msgspec.structs.replace(await stage.workflow("a"), enabled=False)
    await stage.editor.publish(off, by="ann")
    for loaded in ([workflow("a", "http")], [workflow("a", "http", "telegram")], [], [workflow("a")]):
        await stage.editor.follow_code(loaded, ACCOUNTS)
        assert not (await stage.workflow("a")).enabled
        assert (await stage.workflow("a")).published is bool(loaded)
    await stage.editor.publish(msgspec.structs.replace(await stage.workflow("a"), enabled=True), by="ann")
    await stage.editor.follow_code([workflow("a", "http")], ACCOUNTS)
    assert (await stage.workflow("a")).enabled


@pytest.mark.req("WFL-1")
async def test_the_code_takes_no_id_that_a_person_has_given_to_stages(stage: Stage):
    made = msgspec.structs.replace(workflow("a"), kind=STAGES, stages=[{"name": "say"}])
    await stage.editor.publish(made, by="ann")
    with structlog.testing.capture_logs() as logged:
        await stage.editor.follow_code([workflow("a", "http"), workflow("b")], ACCOUNTS)
    assert [(one["event"], one["workflow_id"]) for one in logged if one["log_level"] == "warning"] == [
        ("workflow.name_taken", "a")
    ]
    kept = await stage.workflow("a")
    assert (kept.kind, kept.stages, kept.updated_by) == (STAGES, [{"name": "say"}], "ann")
    assert await stage.bindings() == []


@pytest.mark.req("WFL-1")
async def test_a_workflow_knows_which_version_it_is_and_who_wrote_it(stage: Stage):
    await stage.editor.follow_code([workflow("a")], ACCOUNTS)
    await stage.editor.follow_code([workflow("a", "http")], {})
    assert ((await stage.workflow("a")).version, (await stage.workflow("a")).updated_by) == (2, CODE)


@pytest.mark.req("SUS-1")
@pytest.mark.failure("D12")
async def test_what_a_newer_version_wrote_hides_nothing_and_is_changed_by_nobody_here(stage: Stage):
    await stage.editor.bind(binding("a", "8"), by="ann")
    known = msgspec.json.encode(binding("sound"))
    await stage.write_as_newer(Kind.BINDINGS, "telegram:7", b'[{"version":[]},' + known + b"]")
    await stage.write_as_newer(Kind.BINDINGS, "telegram:9", b"of tomorrow")
    shown = {(one.account, one.workflow_id): (one.enabled, one.updated_by) for one in await stage.bindings()}
    assert shown == {
        ("7", ""): (False, NEWER),
        ("7", "sound"): (True, ""),
        ("8", "a"): (True, "ann"),
        ("9", ""): (False, NEWER),
    }
    assert not any(one.is_default for one in await stage.bindings() if one.updated_by == NEWER)
    await stage.editor.follow_code([workflow("b", "telegram")], ACCOUNTS)
    with pytest.raises(StateConflict, match="newer"):
        await stage.editor.bind(binding("b"), by="ann")
    kept = await stage.definitions.version(Kind.BINDINGS, "telegram:7")
    assert kept is not None and kept.version == 1


@pytest.mark.failure("D12")
async def test_a_workflow_that_cannot_be_read_is_switched_off_until_it_is_published_again(stage: Stage):
    await stage.write_as_newer(Kind.PUBLISHED, "a", b'{"version":[]}')
    assert not (await stage.workflow("a")).enabled
    await stage.editor.follow_code([], ACCOUNTS)
    assert (await stage.definitions.changes()) == 1, "code changes only its own"
    await stage.editor.publish(workflow("a"), by="ann")
    assert (await stage.workflow("a")).enabled


@pytest.mark.failure("D12")
async def test_what_a_person_has_switched_off_stays_off_where_all_else_of_it_is_a_newer_versions(stage: Stage):
    await stage.write_as_newer(Kind.PUBLISHED, "a", b'{"enabled":false,"name":{"of":"tomorrow"}}')
    await stage.editor.follow_code([workflow("a")], ACCOUNTS)
    known = await stage.workflow("a")
    assert (known.updated_by, known.enabled) == (CODE, False)


@pytest.mark.req("BND-2")
async def test_two_who_change_an_account_at_once_both_count(stage: Stage):
    await asyncio.gather(*(stage.editor.bind(binding(name, is_default=False), by=name) for name in "abcd"))
    assert [one.workflow_id for one in await stage.bindings()] == list("abcd")


@pytest.mark.req("SEC-4", "BND-7")
async def test_a_binding_is_not_changed_without_a_record(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await stage.editor.bind(binding("a"), by="ann")

    async def refuse(operation: object) -> None:
        raise StoreUnavailable("full")

    def kill(former: BindingRecord | None) -> BindingRecord:
        assert former is not None
        return msgspec.structs.replace(former, kill_switch=KillSwitch("it raves", "now", "bob"))

    with monkeypatch.context() as patched:
        patched.setattr(stage.ledger, "record_operation", refuse)
        with pytest.raises(StoreUnavailable):
            await stage.editor.rebind("telegram", "7", "a", kill, by="bob", action="kill switch on")
    assert [one.kill_switch for one in await stage.bindings()] == [None]
    await stage.editor.rebind("telegram", "7", "a", kill, by="bob", action="kill switch on")
    assert [(one.who, one.action) for one in await stage.ledger.operations(limit=1)] == [("bob", "kill switch on")]

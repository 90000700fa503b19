"""Workflows made of stages, and prompts: drafts, versions that run, going back, and who may not be overruled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from rise.bus.port import Topic
from rise.definitions.port import Definition, Kind
from rise.definitions.records import (
    CODE,
    STAGES,
    BindingRecord,
    ChannelOwn,
    PromptRecord,
    WorkflowRecord,
    bindings_of,
    workflow_of,
)
from rise.envelope import definition_id_of
from rise.errors import (
    PayloadInvalid,
    PromptUnknown,
    StateConflict,
    StoreUnavailable,
    VersionStale,
    VersionUnknown,
    WorkflowUnknown,
)
from rise.ledger.port import Operation
from rise.runtime.editor import Editor
from rise.runtime.prompts import Prompts
from rise.runtime.publishing import Workflows, WorkflowStatus
from rise.runtime.versions import Versions
from rise.testing.clock import ManualClock
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.definitions import MemoryDefinitions, MemoryDefinitionsState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.workflows.templates import placeholders, stages_named

SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}
SAY_IT_OTHERWISE = SAY | {"template": "hello {{ text }}"}
ASK = {"name": "ask", "kind": "prompt", "promptId": "pr_greet", "values": {"tone": "warm"}}
GREET = PromptRecord(prompt_id="", name="greet", template="Greet {{ text }}, {{ tone }}", placeholders=("tone",))


class Stage:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.definitions = MemoryDefinitions(MemoryDefinitionsState())
        self.ledger = MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0)
        self.bus = MemoryBus(MemoryBusState())
        self.heard: list[Any] = []
        self.bus.subscribe(Topic.DEFINITIONS_CHANGED, self.heard.append)
        self.editor = Editor(self.definitions, self.ledger, self.bus, self.clock)
        versions = Versions(self.definitions, self.ledger, self.bus, self.clock)
        self.workflows = Workflows(self.definitions, versions, self.editor, refuse_nameless, stages_named)
        self.prompts = Prompts(
            self.definitions, versions, placeholders, given=("text", "user", "stages"), stages_named=stages_named
        )

    async def published(self, *stages: Any, name: str = "hi") -> str:
        made = await self.workflows.create(name, stages, by="ann")
        self.clock.advance(1)
        return (await self.workflows.publish(made.workflow_id, by="ann", comment="first")).workflow_id

    async def running(self, workflow_id: str) -> WorkflowRecord:
        definition = await self.definitions.version(Kind.PUBLISHED, workflow_id)
        assert definition is not None
        return workflow_of(definition)

    async def bound(self, workflow_id: str) -> list[BindingRecord]:
        latest = (await self.definitions.latest([Kind.BINDINGS])).definitions
        return [one for kept in latest for one in bindings_of(kept) if one.workflow_id == workflow_id]

    async def operations(self) -> list[tuple[str, str, str, str]]:
        """Newest first."""
        return [(one.who, one.action, one.target, one.why) for one in await self.ledger.operations(limit=99)]

    async def write_as_newer(self, kind: Kind, name: str) -> None:
        last = await self.definitions.version(kind, name)
        version = 1 if last is None else last.version + 1
        await self.definitions.put(
            Definition(kind=kind, name=name, version=version, body=b'{"name":[]}', at_ms=0, by="tomorrow")
        )


def refuse_nameless(stages: Any) -> None:
    for at, stage in enumerate(stages):
        if "name" not in stage:
            raise PayloadInvalid("no name", field=f"stages[{at}].name")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.bus.start()
    yield stage
    await stage.bus.stop()


# --- workflows ----------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-1")
async def test_nothing_of_a_draft_runs_until_it_is_published(stage: Stage):
    made = await stage.workflows.create("hi", [SAY], by="ann")
    assert (made.workflow_id, made.status, made.shown.version, made.published) == ("wf_hi", "draft", 1, None)
    assert await stage.definitions.version(Kind.PUBLISHED, "wf_hi") is None
    published = await stage.workflows.publish("wf_hi", by="bob", comment="go")
    assert (published.status, published.has_unpublished_changes) == (WorkflowStatus.PUBLISHED, False)
    running = await stage.running("wf_hi")
    assert (running.kind, running.stages, running.version, running.updated_by) == (STAGES, [SAY], 1, "bob")
    edited = await stage.workflows.edit("wf_hi", stages=[SAY_IT_OTHERWISE], by="ann")
    assert (edited.shown.version, edited.has_unpublished_changes) == (2, True)
    assert (await stage.running("wf_hi")).stages == [SAY]


@pytest.mark.req("WFL-1", "SEC-4")
async def test_every_change_is_recorded_with_who_and_why_and_told(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, name="hello", by="bob")
    await stage.workflows.publish(workflow_id, by="bob")
    await stage.workflows.roll_back(workflow_id, 1, by="cid")
    await stage.workflows.switch(workflow_id, enabled=False, by="dan", why="spam")
    await stage.workflows.remove(workflow_id, by="eve")
    assert (await stage.operations())[::-1] == [
        ("ann", "create", "wf_hi", ""),
        ("ann", "publish", "wf_hi", "first"),
        ("bob", "edit", "wf_hi", ""),
        ("bob", "publish", "wf_hi", ""),
        ("cid", "rollback", "wf_hi", "back to version 1"),
        ("cid", "edit", "wf_hi", "back to version 1"),
        ("dan", "disable", "wf_hi", "spam"),
        ("eve", "remove", "wf_hi", ""),
        ("eve", "remove", "wf_hi", ""),
    ]
    await asyncio.sleep(0)
    told = [event for event in stage.heard if event]
    assert [(one["operation"], one["publishedVersion"], one["enabled"]) for one in told] == [
        ("publish", 1, True), ("publish", 2, True), ("rollback", 3, True), ("disable", 4, False), ("remove", 5, False)
    ]  # fmt: skip
    assert {one["workflowId"] for one in told} == {"wf_hi"}


@pytest.mark.req("SEC-4")
async def test_a_change_that_could_not_be_recorded_is_not_made(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    workflow_id = await stage.published(SAY)

    async def refuse(operation: object) -> None:
        raise StoreUnavailable("full")

    monkeypatch.setattr(stage.ledger, "record_operation", refuse)
    with pytest.raises(StoreUnavailable):
        await stage.workflows.switch(workflow_id, enabled=False, by="ann")
    assert (await stage.running(workflow_id)).enabled


@pytest.mark.req("WFL-1")
async def test_two_who_change_what_runs_at_once_both_count_and_are_recorded_once(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, name="hello", by="ann")
    changes = [
        stage.workflows.switch(workflow_id, enabled=False, by="bob"),
        stage.workflows.publish(workflow_id, by="cid"),
    ]
    await asyncio.gather(*changes)
    running = await stage.running(workflow_id)
    assert (running.name, running.enabled, running.version) == ("hello", False, 3)
    assert sorted(who for who, *_ in (await stage.operations())[:2]) == ["bob", "cid"]


@pytest.mark.req("WFL-1")
@pytest.mark.parametrize("version", [None, 1])
async def test_a_slow_publication_does_not_put_an_older_draft_over_what_was_published_since(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, version: int | None
):
    newer = {"name": "say", "kind": "reply", "template": "newer"}

    async def published_meanwhile() -> None:
        await stage.workflows.edit("wf_hi", stages=[newer], by="bob")
        await stage.workflows.publish("wf_hi", by="bob")

    await stage.workflows.create("hi", [SAY], by="ann")
    before_write(stage, monkeypatch, Kind.PUBLISHED, published_meanwhile)
    if version is None:
        await stage.workflows.publish("wf_hi", by="ann")
    else:
        with pytest.raises(VersionStale, match="at version 2"):
            await stage.workflows.publish("wf_hi", by="ann", version=version)
    assert (await stage.running("wf_hi")).stages == [newer]


@pytest.mark.req("WFL-1")
async def test_a_change_made_for_another_version_is_refused_and_changes_nothing(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, name="hello", version=1, by="ann")
    for stale in (
        stage.workflows.edit(workflow_id, name="servus", version=1, by="bob"),
        stage.workflows.publish(workflow_id, version=1, by="bob"),
        stage.workflows.remove(workflow_id, version=1, by="bob"),
    ):
        with pytest.raises(VersionStale, match="at version 2"):
            await stale
    assert (await stage.workflows.get(workflow_id)).shown.name == "hello"
    assert (await stage.running(workflow_id)).name == "hi"


@pytest.mark.req("WFL-1")
async def test_of_two_who_edit_the_same_version_at_once_one_is_told(stage: Stage):
    workflow_id = await stage.published(SAY)
    edits = [stage.workflows.edit(workflow_id, name=name, version=1, by=name) for name in ("bob", "cid")]
    ended = await asyncio.gather(*edits, return_exceptions=True)
    assert sorted(isinstance(one, VersionStale) for one in ended) == [False, True]


@pytest.mark.req("WFL-1")
async def test_what_is_edited_while_its_former_version_is_removed_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await stage.workflows.create("hi", [SAY], by="ann")
    await stage.prompts.create(GREET, by="ann")
    record, moods = stage.ledger.record_operation, iter(("kind", "kinder"))

    async def edited_meanwhile(operation: Operation) -> None:
        await record(operation)
        if operation.action == "remove":
            await stage.workflows.edit("wf_hi", name="hello", by="cid")
            system = f"Be {next(moods)}"
            await stage.prompts.edit("pr_greet", lambda one: msgspec.structs.replace(one, system=system), by="cid")

    monkeypatch.setattr(stage.ledger, "record_operation", edited_meanwhile)
    with pytest.raises(VersionStale):
        await stage.workflows.remove("wf_hi", by="bob", version=1)
    monkeypatch.setattr(stage.ledger, "record_operation", record)
    assert (await stage.workflows.get("wf_hi")).shown.name == "hello"
    monkeypatch.setattr(stage.ledger, "record_operation", edited_meanwhile)
    with pytest.raises(VersionStale):
        await stage.prompts.remove("pr_greet", by="bob", version=2)
    assert (await stage.prompts.get("pr_greet")).system == "Be kinder"


@pytest.mark.req("WFL-1")
async def test_history_has_every_version_that_ran_newest_first(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, stages=[SAY_IT_OTHERWISE], by="ann")
    await stage.workflows.publish(workflow_id, by="bob", comment="nicer")
    await stage.workflows.publish(workflow_id, by="bob", comment="nothing new")
    history = await stage.workflows.history(workflow_id, limit=9)
    assert [(one.version, one.by, one.comment) for one in history] == [(2, "bob", "nicer"), (1, "ann", "first")]
    assert [one.version for one in await stage.workflows.history(workflow_id, limit=1)] == [2]


@pytest.mark.req("WFL-1")
async def test_going_back_runs_a_former_version_as_the_next_one(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, stages=[SAY_IT_OTHERWISE], by="ann")
    await stage.workflows.publish(workflow_id, by="ann")
    back = await stage.workflows.roll_back(workflow_id, 1, by="bob")
    running = await stage.running(workflow_id)
    assert (running.version, running.stages) == (3, [SAY])
    assert (back.has_unpublished_changes, back.draft and back.draft.stages) == (False, [SAY])
    with pytest.raises(VersionUnknown):
        await stage.workflows.roll_back(workflow_id, 9, by="bob")


@pytest.mark.req("WFL-1")
async def test_going_back_leaves_alone_what_somebody_is_at(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, name="other", by="ann")
    await stage.workflows.publish(workflow_id, by="ann")
    await stage.workflows.edit(workflow_id, stages=[SAY_IT_OTHERWISE], by="ann")
    back = await stage.workflows.roll_back(workflow_id, 1, by="bob")
    assert (back.shown.version, back.shown.stages, back.has_unpublished_changes) == (3, [SAY_IT_OTHERWISE], True)


@pytest.mark.req("WFL-1")
async def test_two_versions_or_what_runs_and_the_draft_are_compared(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.edit(workflow_id, stages=[SAY_IT_OTHERWISE], by="ann")
    expected = ("stages.say.template", "hi {{ text }}", "hello {{ text }}")
    [draft] = await stage.workflows.difference(workflow_id)
    assert (draft.path, draft.old, draft.new) == expected
    await stage.workflows.publish(workflow_id, by="ann")
    [versions] = await stage.workflows.difference(workflow_id, old=1, new=2)
    assert (versions.path, versions.old, versions.new) == expected
    assert await stage.workflows.difference(workflow_id) == []
    with pytest.raises(VersionUnknown) as refused:
        await stage.workflows.difference(workflow_id, old=1, new=7)
    assert refused.value.field == "to"


@pytest.mark.req("WFL-1")
async def test_the_switch_holds_at_once_and_every_later_version_keeps_it(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.workflows.switch(workflow_id, enabled=False, by="ann")
    await stage.workflows.edit(workflow_id, name="hello", by="ann")
    await stage.workflows.publish(workflow_id, by="ann")
    await stage.workflows.roll_back(workflow_id, 1, by="ann")
    assert not (await stage.running(workflow_id)).enabled
    await stage.workflows.switch(workflow_id, enabled=True, by="ann")
    assert (await stage.running(workflow_id)).enabled


@pytest.mark.req("WFL-1")
async def test_what_was_never_published_has_no_switch(stage: Stage):
    made = await stage.workflows.create("hi", [SAY], by="ann")
    with pytest.raises(StateConflict, match="never published"):
        await stage.workflows.switch(made.workflow_id, enabled=False, by="ann")


@pytest.mark.req("WFL-1")
async def test_what_is_bound_is_not_removed_and_it_is_said_where(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.editor.bind(BindingRecord(channel="telegram", account="7", workflow_id=workflow_id), by="ann")
    with pytest.raises(StateConflict, match="telegram:7"):
        await stage.workflows.remove(workflow_id, by="ann")
    await stage.editor.unbind("telegram", "7", workflow_id, by="ann")
    await stage.workflows.remove(workflow_id, by="ann")
    assert await stage.workflows.list() == []
    for gone in (stage.workflows.get(workflow_id), stage.workflows.remove(workflow_id, by="ann")):
        with pytest.raises(WorkflowUnknown):
            await gone
    again = await stage.workflows.create("hi", [SAY], by="ann")
    assert again.shown.version == 3, "versions only grow"


@pytest.mark.req("WFL-1", "BND-2")
async def test_bindings_that_are_off_or_meet_nothing_go_with_their_workflow(stage: Stage):
    workflow_id, other = await stage.published(SAY), await stage.published(SAY, name="other")
    for account, binding in (
        ("6", {"enabled": False, "own": ChannelOwn(bot_token="sealed")}),
        ("7", {"enabled": False}),
        ("8", {}),
    ):
        bound = BindingRecord(channel="telegram", account=account, workflow_id=workflow_id, **binding)
        await stage.editor.bind(bound, by="ann")
    assert (await stage.workflows.get(workflow_id)).bound_to == ("telegram:8",)
    with pytest.raises(StateConflict, match=r"bound to telegram:8: "):
        await stage.workflows.remove(workflow_id, by="ann")
    assert len(await stage.bound(workflow_id)) == 3, "what is refused changes nothing"
    for account in "78":
        await stage.editor.bind(BindingRecord(channel="telegram", account=account, workflow_id=other), by="ann")
    assert (await stage.workflows.get(workflow_id)).bound_to == ()
    [warned] = await stage.workflows.remove(workflow_id, by="eve")
    assert "telegram:6" in warned and "token" in warned
    assert await stage.bound(workflow_id) == []
    assert [one.account for one in await stage.bound(other)] == ["7", "8"]
    assert ("eve", "unbind", "telegram:7", "wf_hi is removed") in await stage.operations()


@pytest.mark.req("WFL-1")
async def test_one_name_is_one_workflow(stage: Stage):
    await stage.workflows.create("hi", [SAY], by="ann")
    await stage.editor.publish(WorkflowRecord(workflow_id="wf_bot", name="bot"), by=CODE)
    for name in ("hi", "bot"):
        with pytest.raises(StateConflict, match=f"wf_{name} already"):
            await stage.workflows.create(name, [SAY], by="bob")


@pytest.mark.req("WFL-1", "WFL-3")
async def test_a_workflow_in_code_is_listed_and_switched_but_not_edited(stage: Stage):
    await stage.editor.follow_code([WorkflowRecord(workflow_id="wf_bot", name="bot")], {})
    [listed] = await stage.workflows.list()
    assert (listed.status, listed.draft, listed.shown.stages) == ("published", None, None)
    await stage.workflows.switch("wf_bot", enabled=False, by="ann")
    assert len(await stage.workflows.history("wf_bot", limit=9)) == 2
    [switched] = await stage.workflows.difference("wf_bot", old=1, new=2)
    assert (switched.path, switched.old, switched.new) == ("isChannelEnabled", True, False)
    for refused in (
        stage.workflows.edit("wf_bot", name="x", by="ann"),
        stage.workflows.publish("wf_bot", by="ann"),
        stage.workflows.roll_back("wf_bot", 1, by="ann"),
        stage.workflows.remove("wf_bot", by="ann"),
    ):
        with pytest.raises(StateConflict, match="in the code"):
            await refused
    await stage.editor.follow_code([], {})
    assert (await stage.workflows.get("wf_bot")).status == "absent"
    await stage.workflows.remove("wf_bot", by="ann")


@pytest.mark.req("WFL-1")
async def test_what_could_not_run_is_not_kept_or_not_published(stage: Stage):
    for refused in (stage.workflows.create("a", [SAY, {}], by="ann"), stage.workflows.create("a", [{}], by="ann")):
        with pytest.raises(PayloadInvalid):
            await refused
    assert await stage.workflows.list() == []
    await stage.workflows.create("hi", [SAY, ASK], by="ann")
    with pytest.raises(PayloadInvalid) as missing:
        await stage.workflows.publish("wf_hi", by="ann")
    assert missing.value.field == "stages[1].promptId"
    await stage.prompts.create(msgspec.structs.replace(GREET, placeholders=("tone", "mood")), by="ann")
    with pytest.raises(PayloadInvalid, match="mood") as unfilled:
        await stage.workflows.publish("wf_hi", by="ann")
    assert unfilled.value.field == "stages[1].values"


async def test_what_a_newer_version_wrote_is_shown_and_not_changed(stage: Stage):
    workflow_id = await stage.published(SAY)
    await stage.write_as_newer(Kind.WORKFLOW, workflow_id)
    await stage.write_as_newer(Kind.PROMPT, "pr_a")
    assert [one.workflow_id for one in await stage.workflows.list()] == [workflow_id]
    for refused in (
        stage.workflows.edit(workflow_id, name="x", by="ann"),
        stage.prompts.edit("pr_a", lambda known: known, by="ann"),
    ):
        with pytest.raises(StateConflict, match="newer"):
            await refused


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("greeter", "wf_greeter"),
        ("Say.hi_2", "wf_Say.hi_2"),
        ("Say hi!", "wf_say-hi"),
        ("Привет", "wf_3vtzyc47"),
        ("Заказ 1", "wf_1-2h56pylc"),
        ("/../", "wf_ombnl6ic"),
    ],
)
def test_an_id_is_the_name_as_far_as_an_address_can_hold_it(name: str, expected: str):
    assert definition_id_of("wf", name) == expected


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-1")
async def test_a_prompt_is_kept_with_all_its_versions(stage: Stage):
    made = await stage.prompts.create(GREET, by="ann")
    assert (made.prompt_id, made.version, made.updated_by) == ("pr_greet", 1, "ann")
    edited = await stage.prompts.edit(
        "pr_greet", lambda known: msgspec.structs.replace(known, template="{{ tone }}"), by="bob", comment="short"
    )
    assert (edited.version, edited.template, edited.placeholders) == (2, "{{ tone }}", ("tone",))
    history = await stage.prompts.history("pr_greet", limit=9)
    assert [(one.version, one.by, one.comment) for one in history] == [(2, "bob", "short"), (1, "ann", "")]
    with pytest.raises(VersionStale):
        await stage.prompts.edit("pr_greet", lambda known: known, by="cid", version=1)
    with pytest.raises(StateConflict, match="already"):
        await stage.prompts.create(GREET, by="cid")
    await stage.prompts.remove("pr_greet", by="cid", version=2)
    assert await stage.prompts.list() == []
    with pytest.raises(PromptUnknown):
        await stage.prompts.get("pr_greet")


@pytest.mark.req("WFL-1")
@pytest.mark.parametrize("field", ["template", "system"])
async def test_a_placeholder_that_is_not_declared_is_refused_by_name(stage: Stage, field: str):
    prompt = msgspec.structs.replace(GREET, **{field: "{{ text }} {{ tone }} {{ twon }}"})
    with pytest.raises(PayloadInvalid, match="twon") as refused:
        await stage.prompts.create(prompt, by="ann")
    assert refused.value.field == field
    with pytest.raises(PayloadInvalid) as broken:
        await stage.prompts.create(msgspec.structs.replace(GREET, **{field: "{{ text"}), by="ann")
    assert broken.value.field == field
    with pytest.raises(PayloadInvalid) as taken:
        await stage.prompts.create(msgspec.structs.replace(GREET, placeholders=("text", "tone")), by="ann")
    assert taken.value.field == "placeholders"
    assert stage.prompts.unused(msgspec.structs.replace(GREET, placeholders=("tone", "a"))) == ["a"]


@pytest.mark.req("WFL-1")
async def test_of_two_changes_that_do_not_go_together_the_second_is_refused(stage: Stage):
    await stage.prompts.create(GREET, by="ann")

    def use_it(known: PromptRecord) -> PromptRecord:
        return msgspec.structs.replace(known, template="{{ tone }}")

    def drop_it(known: PromptRecord) -> PromptRecord:
        template = "Hello" if known.template == GREET.template else known.template
        return msgspec.structs.replace(known, template=template, placeholders=())

    edits = [stage.prompts.edit("pr_greet", use_it, by="bob"), stage.prompts.edit("pr_greet", drop_it, by="cid")]
    ended = await asyncio.gather(*edits, return_exceptions=True)
    assert [type(one) for one in ended if isinstance(one, Exception)] == [PayloadInvalid]


@pytest.mark.req("WFL-1")
async def test_a_prompt_that_runs_is_neither_removed_nor_changed_under_its_workflow(stage: Stage):
    await stage.prompts.create(GREET, by="ann")
    await stage.workflows.create("hi", [SAY, ASK], by="ann")
    more = msgspec.structs.replace(GREET, prompt_id="pr_greet", placeholders=("tone", "mood"))
    await stage.prompts.edit("pr_greet", lambda _: more, by="ann")
    await stage.prompts.edit("pr_greet", lambda known: msgspec.structs.replace(known, placeholders=("tone",)), by="ann")
    await stage.workflows.publish("wf_hi", by="ann")
    with pytest.raises(StateConflict, match="wf_hi"):
        await stage.prompts.remove("pr_greet", by="ann")
    with pytest.raises(StateConflict, match=r"wf_hi .* mood"):
        await stage.prompts.edit("pr_greet", lambda _: more, by="ann")
    await stage.workflows.edit("wf_hi", stages=[SAY], by="ann")
    await stage.workflows.publish("wf_hi", by="ann")
    await stage.prompts.remove("pr_greet", by="ann")


@pytest.mark.req("WFL-1")
async def test_who_changes_a_prompt_is_told_what_was_published_meanwhile_without_what_it_asks_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    await stage.prompts.create(GREET, by="ann")
    await stage.workflows.create("hi", [SAY, ASK], by="ann")
    more = msgspec.structs.replace(GREET, prompt_id="pr_greet", placeholders=("tone", "mood"))
    before_write(stage, monkeypatch, Kind.PROMPT, lambda: stage.workflows.publish("wf_hi", by="bob"))
    edited = await stage.prompts.edit("pr_greet", lambda _: more, by="ann")
    [(field, lacking)] = await stage.prompts.lacking(edited)
    assert (field, lacking) == ("placeholders", "wf_hi uses it and gives no value for mood")


@pytest.mark.req("WFL-1")
async def test_what_is_published_while_its_prompt_is_changed_says_what_it_lacks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    await stage.prompts.create(GREET, by="ann")
    await stage.workflows.create("hi", [SAY, ASK], by="ann")
    more = msgspec.structs.replace(GREET, prompt_id="pr_greet", placeholders=("tone", "mood"))
    before_write(stage, monkeypatch, Kind.PUBLISHED, lambda: stage.prompts.edit("pr_greet", lambda _: more, by="ann"))
    [warned] = (await stage.workflows.publish("wf_hi", by="bob")).warnings
    assert "lacks mood" in warned
    assert (await stage.workflows.get("wf_hi")).warnings == ()


@pytest.mark.req("WFL-1", "BND-2")
async def test_what_begins_to_be_used_while_it_is_removed_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await stage.prompts.create(GREET, by="ann")
    workflow_id = (await stage.workflows.create("hi", [SAY, ASK], by="ann")).workflow_id
    before_write(stage, monkeypatch, Kind.PROMPT, lambda: stage.workflows.publish(workflow_id, by="bob"))
    assert await stage.prompts.remove("pr_greet", by="ann") == [workflow_id]
    bound = BindingRecord(channel="telegram", account="7", workflow_id=workflow_id)
    before_write(stage, monkeypatch, Kind.PUBLISHED, lambda: stage.editor.bind(bound, by="bob"))
    [warned] = await stage.workflows.remove(workflow_id, by="ann")
    assert "wf_hi was bound to telegram:7 meanwhile" in warned


def before_write(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: Kind, act: Callable[[], Awaitable[object]]
) -> None:
    """Somebody does this between the check of the next change and its being written."""
    put, acted = stage.definitions.put, False

    async def put_late(definition: Definition) -> None:
        nonlocal acted
        if definition.kind is kind and not acted:
            acted = True
            await act()
        await put(definition)

    monkeypatch.setattr(stage.definitions, "put", put_late)


@pytest.mark.req("WFL-1")
async def test_a_prompt_names_only_stages_that_its_workflows_have_before_it(stage: Stage):
    """Otherwise a change of it, which holds at once, would have every message of theirs fail."""
    await stage.prompts.create(GREET, by="ann")
    await stage.published(SAY, ASK)
    for named, is_there in (("say", True), ("look", False), ("ask", False)):
        edit = stage.prompts.edit(
            "pr_greet",
            lambda one, named=named: msgspec.structs.replace(one, system=f"{{{{ stages.{named} }}}}"),
            by="bob",
        )
        if is_there:
            await edit
        else:
            with pytest.raises(StateConflict, match=rf"wf_hi .* {named} before"):
                await edit
    await stage.workflows.create("other", [ASK, SAY], by="ann")
    with pytest.raises(PayloadInvalid) as refused:
        await stage.workflows.publish("wf_other", by="ann")
    assert refused.value.field == "stages[0].promptId"

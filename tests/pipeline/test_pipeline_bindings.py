"""Which workflow a message meets: by its chat, its command, or the default; none while the kill switch is on; and what
its binding allows."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from pipeline_stage import Gateway, Stage, WorkerProcess

import rise
from rise.bindings import CHECK_SECONDS, KNOWN_SECONDS
from rise.definitions.port import Kind
from rise.definitions.records import (
    BindingRecord,
    BindingRoute,
    ChannelOwn,
    KillSwitch,
    WorkflowRecord,
    account_name,
    bindings_of,
)
from rise.envelope import DeliveryKey, Outcome, Reason, Status, TaskId, run_id_of, task_id_of
from rise.errors import RouteTaken, StoreUnavailable
from rise.runtime.supervisor import Duties
from rise.worker import Texts

MAINTENANCE = Texts().maintenance
MISSING = Texts().workflow_missing


def named(name: str) -> Any:
    @rise.workflow(name)
    async def say(turn: rise.Turn) -> None:
        await turn.reply(f"{name} {turn.text}")

    return say


general, orders, vip = named("general"), named("orders"), named("vip")


async def start(stage: Stage, *workflows: Any) -> tuple[Gateway, WorkerProcess]:
    gateway, worker = await stage.start(*(workflows or (general, orders, vip)))
    return gateway, worker


async def agree(*processes: Any) -> None:
    """All have read what is in force."""
    for process in processes:
        await process.bindings.refresh()


def chat(value: int) -> tuple[BindingRoute, ...]:
    return (BindingRoute("chat", str(value)),)


def command(*values: str) -> tuple[BindingRoute, ...]:
    return tuple(BindingRoute("command", value) for value in values)


async def switch(stage: Stage, workflow: Any, *, on: bool, since: str = "now") -> None:
    identity = ("telegram", stage.account, workflow.__rise_workflow__.workflow_id)

    def change(former: BindingRecord | None) -> BindingRecord:
        assert former is not None
        return msgspec.structs.replace(former, kill_switch=KillSwitch("it raves", since, "Ann") if on else None)

    await stage.editor.rebind(*identity, change, by="Ann")


# --- routes -----------------------------------------------------------------------------------------------


@pytest.mark.req("BND-4")
async def test_a_chat_goes_before_a_command_and_a_command_before_the_default(stage: Stage):
    processes = await start(stage)
    await stage.bind(general)
    await stage.bind(orders, is_default=False, routes=command("/order", "/Buy@our_bot"))
    await stage.bind(vip, is_default=False, routes=chat(7))
    await agree(*processes)
    for text in ("hello", "/order 1", "/ORDER@any_bot", "/orders", " /order", "/buy", "/buy@OUR_bot", "/order-2"):
        await stage.ended(*await stage.write(text, chat=1))
    await stage.ended(*await stage.write("/order 3", "hello", chat=7))
    assert stage.texts(1) == [
        "general hello",
        "orders /order 1",
        "orders /ORDER@any_bot",
        "general /orders",
        "general  /order",
        "general /buy",
        "orders /buy@OUR_bot",
        "orders /order-2",
    ]
    assert stage.texts(7) == ["vip /order 3", "vip hello"]


@pytest.mark.req("BND-4")
async def test_a_tap_that_carries_what_looks_like_a_command_is_none(stage: Stage):
    processes = await start(stage)
    await stage.bind(general)
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await agree(*processes)
    await stage.ended(await stage.tap("/order"))
    assert stage.texts() == ["general /order"]


@pytest.mark.req("BND-4")
async def test_a_group_that_became_a_supergroup_keeps_its_route_under_either_id(stage: Stage):
    gateway, worker = await start(stage)
    await stage.bind(general)
    await stage.bind(vip, is_default=False, routes=chat(-7))
    await agree(gateway, worker)
    for update in await stage.migrate(-7, -1007):
        await stage.take(update)
    [task_id] = await stage.write("hello", chat=-1007)
    await stage.ended(task_id)
    assert (await stage.result(task_id)).workflow_id == "wf_vip"


@pytest.mark.req("BND-4", "BND-9")
async def test_a_route_whose_workflow_cannot_be_used_leaves_its_messages_waiting(stage: Stage):
    """Never a silent fallback."""
    gateway, worker = await start(stage)
    await stage.bind(general)
    await stage.bind(vip, is_default=False, routes=chat(7))
    await stage.editor.publish(
        msgspec.structs.replace(worker.bindings.workflow("wf_vip") or _none(), enabled=False), by="Ann"
    )
    await agree(gateway, worker)
    [waits] = await stage.write("hello", chat=7)
    await stage.suspended(waits, Reason.WORKFLOW_PENDING)
    await stage.ended(*await stage.write("hello", chat=8))
    assert (await stage.queue.get(waits)).head.telemetry["binding"]["status"] == "missing"
    assert stage.texts(7) == [MISSING]


def _none() -> Any:
    raise AssertionError("it is published")


@pytest.mark.req("BND-4", "SUS-2")
async def test_what_waited_goes_on_by_itself_when_its_chat_or_command_is_bound_and_nothing_else_does(stage: Stage):
    gateway, worker = await start(stage)
    ordered, *others = await stage.write("/order 1", "hello", "/order 2", chat=1)
    [of_vip] = await stage.write("hello", chat=7)
    for task_id in (ordered, *others, of_vip):
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await stage.ended(ordered, others[1])
    await stage.bind(vip, is_default=False, routes=chat(7))
    await stage.ended(of_vip)
    await agree(gateway, worker)
    assert await gateway.supervisor.resume() == 0, "it would only be parked again"
    await stage.suspended(others[0], Reason.WORKFLOW_PENDING)
    assert stage.texts(1) == [MISSING, "orders /order 1", "orders /order 2"]
    assert stage.texts(7) == [MISSING, "vip hello"]


@pytest.mark.req("BND-4", "SUS-2", "QUE-3")
async def test_what_waited_for_a_route_goes_before_what_comes_then_without_the_supervisor(stage: Stage):
    gateway, worker = await start(stage)
    first = await stage.write("/order 1", "hello", "/order 2", chat=1)
    for task_id in first:
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    supervising = gateway.hold_at("queue.suspended_routes", "before")
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await agree(worker)
    last = await stage.write("/order 3", chat=1)
    await stage.ended(first[0], first[2], *last)
    supervising.open()
    assert stage.texts(1) == [MISSING, "orders /order 1", "orders /order 2", "orders /order 3"]


@pytest.mark.req("BND-4", "SUS-2")
@pytest.mark.failure("D12", "D15")
async def test_what_a_newer_version_has_put_aside_in_a_routed_chat_holds_nobody_up(stage: Stage):
    gateway, worker = await start(stage)
    aside, waits, *others = await stage.write("/order 1", "hello", "/order 2", chat=1)
    for task_id in (aside, waits, *others):
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await stage.rewrite("tasks", aside, status="resting")
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await agree(gateway, worker)
    assert await gateway.supervisor.resume() <= len(others)
    await stage.ended(*others, *await stage.write("/order 3", chat=1))
    assert stage.texts(1) == [MISSING, "orders /order 2", "orders /order 3"]


async def write_as_newer(stage: Stage, worker: WorkerProcess, *newer: str, **changes: Any) -> None:
    """These workflows' bindings, as another version of Rise might write them."""
    name = account_name("telegram", stage.account)
    last = await worker.definitions.version(Kind.BINDINGS, name)
    assert last is not None and last.body is not None
    kept = [one | changes if one["workflow_id"] in newer else one for one in msgspec.json.decode(last.body)]
    body = msgspec.json.encode(kept)
    await worker.definitions.put(msgspec.structs.replace(last, version=last.version + 1, body=body))


@pytest.mark.req("BND-4", "BND-9", "SUS-2")
@pytest.mark.failure("D12")
async def test_what_is_meant_for_a_binding_that_a_newer_version_wrote_waits_and_goes_on_by_itself(stage: Stage):
    """Its host may be updated later than the one that wrote it. Never a silent fallback."""
    gateway, worker = await start(stage)
    await stage.bind(general)
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await stage.bind(vip, is_default=False, routes=chat(7))
    await write_as_newer(stage, worker, "wf_orders", "wf_vip", kill_switch={"of": "tomorrow"})
    await agree(gateway, worker)
    ordered, told = await stage.write("/order 1", "hello", chat=1)
    [of_vip] = await stage.write("hello", chat=7)
    await stage.suspended(ordered, Reason.WORKFLOW_PENDING)
    await stage.suspended(of_vip, Reason.WORKFLOW_PENDING)
    await stage.ended(told)
    assert await gateway.supervisor.resume() == 0, "it would only be parked again"
    assert [one.workflow_id for one in worker.bindings.snapshot.active] == ["wf_general"]
    await write_as_newer(stage, worker, "wf_orders", "wf_vip", kill_switch=None)
    await agree(gateway, worker)
    await gateway.supervisor.resume()
    await stage.ended(ordered, of_vip)
    assert (stage.texts(1), stage.texts(7)) == (
        [MISSING, "general hello", "orders /order 1"], [MISSING, "vip hello"]
    )  # fmt: skip


@pytest.mark.req("BND-4", "BND-9")
@pytest.mark.failure("D12")
async def test_where_the_routes_of_a_binding_cannot_be_read_either_all_of_its_account_waits(stage: Stage):
    gateway, worker = await start(stage)
    await stage.bind(general)
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await write_as_newer(stage, worker, "wf_orders", routes=[{"by": "mood", "value": "good"}])
    await agree(gateway, worker)
    waiting = await stage.write("/order 1", "hello", chat=1)
    for task_id in waiting:
        await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    assert await gateway.supervisor.resume() == 0
    assert await stage.said(1, chat=1) == [MISSING]


@pytest.mark.req("BND-4")
async def test_no_two_bindings_of_an_account_have_a_route_in_common(stage: Stage):
    await stage.start_gateway()
    await stage.bind(orders, is_default=False, routes=command("/order"))
    with pytest.raises(RouteTaken, match="wf_orders's already"):
        await stage.bind(vip, is_default=False, routes=command("/Order"))
    await stage.bind(orders, is_default=False, enabled=False, routes=command("/order"))
    await stage.bind(vip, is_default=False, routes=command("/Order"))


@pytest.mark.slow
@pytest.mark.req("BND-2", "BND-4")
@pytest.mark.failure("H5", "E6")
async def test_while_the_default_changes_under_load_each_message_meets_exactly_one(stage: Stage):
    gateway, worker = await start(stage)
    await stage.start_worker(general, orders, vip)
    await stage.bind(general)
    await agree(gateway)
    accepted: list[TaskId] = []

    async def write(of: int) -> None:
        for number in range(12):
            accepted.extend(await stage.write(f"{of}.{number}", chat=of))

    async def change() -> None:
        for _ in range(4):
            for workflow in (orders, vip, general):
                await stage.bind(workflow)

    await asyncio.gather(change(), *(write(of) for of in range(1, 7)))
    runs = await stage.ended(*accepted)
    assert len(runs) == 72
    assert {run.outcome for run in runs} == {Outcome.ANSWERED}
    for of in range(1, 7):
        assert [text.split(" ")[1] for text in stage.texts(of)] == [f"{of}.{number}" for number in range(12)]
    met = {f"wf_{message.text.split(' ')[0]} {message.text}" for message in stage.telegram.sent}
    assert met == {f"{run.workflow_id} {run.result['text']}" for run in runs}, "as the ledger has it"
    name = account_name("telegram", stage.account)
    for version in await worker.definitions.versions(Kind.BINDINGS, name, limit=100):
        assert sum(one.is_default and one.enabled for one in bindings_of(version)) == 1


# --- kill switch ------------------------------------------------------------------------------------------


@pytest.mark.req("BND-7")
async def test_a_killed_binding_keeps_messages_tells_each_chat_once_and_only_a_person_lets_them_go_on(stage: Stage):
    gateway, worker = await start(stage)
    await stage.bind(general)
    await agree(gateway, worker)
    await stage.ended(*await stage.write("before", chat=1))
    await switch(stage, general, on=True)
    await agree(gateway, worker)
    kept = await stage.write("one", "two", chat=1)
    kept += await stage.write("three", chat=2)
    for task_id in kept:
        task = await stage.suspended(task_id, Reason.KILL_SWITCH)
        assert task.attempts == 0
        assert task.head.telemetry["binding"] == {"status": "killed", "workflowId": None}
    await switch(stage, general, on=False)
    await agree(gateway, worker)
    await gateway.supervisor.resume()
    await stage.pass_time(CHECK_SECONDS * 3)
    await stage.ended(*await stage.write("after", chat=3))
    for task_id in kept:
        await stage.suspended(task_id, Reason.KILL_SWITCH)
    for task_id in kept:
        await stage.operations.resume(task_id, who="Ann")
    await stage.ended(*kept)
    assert stage.texts(1)[:2] == ["general before", MAINTENANCE]
    assert stage.texts(1)[2:] == ["general one", "general two"]
    assert stage.texts(2) == [MAINTENANCE, "general three"]


@pytest.mark.req("BND-7")
async def test_what_was_accepted_before_and_has_not_begun_meets_the_kill_switch_too(stage: Stage):
    gateway = await stage.start_gateway()
    await stage.bind(general)
    [waiting] = await stage.write("Hello")
    await switch(stage, general, on=True)
    worker = await stage.start_worker(general, follows_code=False)
    await agree(gateway, worker)
    await stage.suspended(waiting, Reason.KILL_SWITCH)
    assert await stage.said(1) == [MAINTENANCE]


@pytest.mark.req("BND-7", "WFL-3")
async def test_what_a_killed_binding_planned_to_say_later_is_not_said_until_a_person_lets_it_go_on(stage: Stage):
    @rise.workflow("reminds")
    async def reminds(turn: rise.Turn) -> None:
        await turn.follow_up("buy now", in_seconds=60)

    processes = await start(stage, general, reminds)
    await stage.bind(general)
    await stage.bind(reminds, is_default=False, routes=command("/remind"))
    await agree(*processes)
    [planned] = await stage.write("/remind")
    await stage.ended(planned)
    await switch(stage, reminds, on=True)
    await agree(*processes)
    waiting = task_id_of(DeliveryKey(f"fu:{run_id_of(planned, 0)}:0"))
    later = task_id_of(DeliveryKey(f"fu:{run_id_of(waiting, 0)}:0"))
    await stage.pass_time(61)
    await stage.suspended(later, Reason.KILL_SWITCH)
    # What a person has said, and what serves the others, is none of its.
    await stage.ended(await stage.say("sorry", chat=42, account=stage.account), *await stage.write("Hello"))
    assert stage.texts() == ["sorry", "general Hello"]
    await switch(stage, reminds, on=False)
    await agree(*processes)
    await stage.operations.resume(later, who="Ann")
    await stage.ended(later)
    assert stage.texts() == ["sorry", "general Hello", "buy now"]


@pytest.mark.req("BND-7")
async def test_what_is_resumed_while_the_switch_is_still_on_is_parked_again_and_told_nothing_more(stage: Stage):
    gateway, worker = await start(stage)
    await stage.bind(general)
    await switch(stage, general, on=True)
    await agree(gateway, worker)
    [task_id] = await stage.write("Hello")
    first = await stage.suspended(task_id, Reason.KILL_SWITCH)
    await stage.said(1)
    await stage.pass_time(60)
    await stage.operations.resume(task_id, who="Ann")

    async def parked_again() -> bool:
        task = await stage.look(task_id)
        return task is not None and task.reason is Reason.KILL_SWITCH and task.updated_at_ms > first.updated_at_ms

    await stage.until(parked_again)
    assert "the kill switch of wf_general is on" in ((await stage.look(task_id)).error or "")
    assert stage.texts() == [MAINTENANCE]


@pytest.mark.req("BND-7")
async def test_a_killed_route_serves_nobody_and_the_others_go_on(stage: Stage):
    processes = await start(stage)
    await stage.bind(general)
    await stage.bind(orders, is_default=False, routes=command("/order"))
    await switch(stage, orders, on=True)
    await agree(*processes)
    [task_id] = await stage.write("/order 1", chat=1)
    await stage.suspended(task_id, Reason.KILL_SWITCH)
    await stage.ended(*await stage.write("hello", chat=1))
    assert stage.texts(1) == [MAINTENANCE, "general hello"]


@pytest.mark.req("BND-7")
async def test_what_waited_for_a_workflow_does_not_go_on_while_its_binding_is_killed(stage: Stage):
    gateway, worker = await start(stage)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    binding = await stage.editor.rebind(
        "telegram",
        stage.account,
        "wf_general",
        lambda _: BindingRecord(
            channel="telegram",
            account=stage.account,
            workflow_id="wf_general",
            kill_switch=KillSwitch("", "now", "Ann"),
        ),
        by="Ann",
    )
    assert binding.demoted is None
    await agree(gateway, worker)
    assert await gateway.supervisor.resume() == 0
    await switch(stage, general, on=False)
    await stage.ended(task_id)


@pytest.mark.req("BND-7")
async def test_a_tap_that_meets_the_kill_switch_is_answered_and_nobody_is_told_who_did_not_write(stage: Stage):
    processes = await start(stage)
    await stage.bind(general)
    await switch(stage, general, on=True)
    await agree(*processes)
    task_id = await stage.tap("yes")
    await stage.suspended(task_id, Reason.KILL_SWITCH)
    await stage.until(lambda: _called(stage, "answerCallbackQuery"))
    assert stage.texts() == []


async def _called(stage: Stage, method: str) -> bool:
    return bool(stage.calls(method))


# --- policy -----------------------------------------------------------------------------------------------


@pytest.mark.req("BND-9")
async def test_a_chat_that_is_not_allowed_ends_as_that_and_is_told_nothing(stage: Stage):
    processes = await start(stage)
    await stage.bind(general, own=ChannelOwn(allowed_chat_ids=("1", "-7")))
    await agree(*processes)
    [stranger] = await stage.write("let me in", chat=2)
    [run] = await stage.ended(stranger)
    assert (run.status, run.outcome, run.workflow_id) == (Status.COMPLETED, Outcome.NOT_ALLOWED, None)
    await stage.ended(*await stage.write("hello", chat=1), *await stage.write("hello", chat=-7))
    assert {message.chat_id for message in stage.telegram.sent} == {1, -7}
    assert await stage.ledger.history("telegram", stage.account, "2", limit=9) == []


@pytest.mark.req("BND-9", "BND-7")
async def test_strangers_are_not_told_of_the_kill_switch(stage: Stage):
    processes = await start(stage)
    await stage.bind(general, own=ChannelOwn(allowed_chat_ids=("1",)))
    await switch(stage, general, on=True)
    await agree(*processes)
    [run] = await stage.ended(*await stage.write("let me in", chat=2))
    assert run.outcome is Outcome.NOT_ALLOWED
    assert stage.texts(2) == []


@pytest.mark.req("BND-9")
async def test_over_its_rate_a_chat_waits_in_order_and_nothing_of_it_is_lost(stage: Stage):
    processes = await start(stage)
    await stage.bind(general, own=ChannelOwn(rate_limit_per_min=2))
    await agree(*processes)
    tasks = await stage.write("1", "2", "3", "4", "5", chat=1)
    await stage.ended(*tasks[:2])
    task = await stage.waiting_for_retry(tasks[2])
    assert task.attempts == 0
    await stage.ended(*await stage.write("hello", chat=2))
    assert stage.texts(1) == ["general 1", "general 2"]
    await stage.pass_time(61)
    await stage.ended(*tasks[2:4])
    await stage.waiting_for_retry(tasks[4])
    assert stage.texts(1) == [f"general {number}" for number in range(1, 5)]
    await stage.pass_time(61)
    await stage.ended(tasks[4])
    assert stage.texts(1) == [f"general {number}" for number in range(1, 6)]


@pytest.mark.req("BND-9")
async def test_a_message_that_is_tried_again_counts_once(stage: Stage):
    tries = []

    @rise.workflow("moody")
    async def moody(turn: rise.Turn) -> None:
        tries.append(turn.text)
        if len(tries) < 3:
            raise RuntimeError("not today")
        await turn.reply("well then")

    processes = await start(stage, moody)
    await stage.bind(moody, own=ChannelOwn(rate_limit_per_min=1))
    await agree(*processes)
    [task_id] = await stage.write("go")
    await stage.waiting_for_retry(task_id, attempts=1)
    await stage.pass_time(20)
    await stage.waiting_for_retry(task_id, attempts=2)
    await stage.pass_time(80)
    await stage.ended(task_id)
    assert stage.texts() == ["well then"]


@pytest.mark.req("BND-9", "BND-5")
async def test_bindings_that_were_never_read_are_waited_for_like_a_dependency(stage: Stage):
    await stage.start_gateway()
    await stage.bind(general)
    worker = stage.new_worker(general)
    for reading in ("definitions.changes", "definitions.latest"):
        worker.fail_at(reading, "before", StoreUnavailable("gone"), times=10_000)
    await worker.start(worker.bus, worker.bindings, worker.worker)
    [task_id] = await stage.write("Hello")
    task = await stage.waiting_for_retry(task_id)
    assert task.attempts == 0
    assert "have not been read yet" in (task.error or "")
    assert stage.texts() == []
    worker._stops.clear()
    await stage.pass_time(60)
    await stage.ended(task_id)
    assert stage.texts() == ["general Hello"]


@pytest.mark.req("BND-9")
async def test_a_store_that_hangs_holds_a_lookup_up_for_a_second(stage: Stage):
    await stage.start_gateway()
    worker = stage.new_worker(general)
    held = worker.hold_at("definitions.changes", "before")
    await worker.start(worker.bus)
    async with asyncio.timeout(KNOWN_SECONDS * 10):
        with pytest.raises(rise.errors.BindingsUnknown):
            await worker.bindings.known()
    held.open()


# --- texts ------------------------------------------------------------------------------------------------


@pytest.mark.req("BND-3")
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, ["Late, as the settings say."]),
        ({"timeout_message": "Soon."}, ["Soon."]),
        ({"timeout_message": "Soon.", "waits_for_result": False}, []),
        ({"own": ChannelOwn(allowed_chat_ids=("99",))}, []),
        ({"kill_switch": KillSwitch("it raves", "now", "Ann")}, []),
    ],
)
async def test_a_binding_words_that_it_takes_long_or_says_that_nobody_waits_or_will_be_answered(
    stage: Stage, fields: dict[str, Any], told: list[str]
):
    stage.duties = Duties(late_after_seconds=30.0, late_text="Late, as the settings say.")
    gateway = await stage.start_gateway()
    await stage.bind(general, **fields)
    await agree(gateway)
    await stage.write("Hello")
    await stage.pass_time(40)
    await gateway.supervisor.tell()
    if told:
        await stage.said(1)
    assert len(gateway.supervisor._told) == len(told)
    assert stage.texts() == told


@pytest.mark.req("BND-9")
async def test_that_nothing_is_bound_is_said_again_when_its_bindings_have_changed_and_for_nothing_else(stage: Stage):
    gateway, worker = await start(stage)
    await stage.suspended(*await stage.write("one"), Reason.WORKFLOW_PENDING)
    await stage.editor.publish(WorkflowRecord(workflow_id="wf_other", name="other"), by="Ann")
    await agree(gateway, worker)
    await stage.suspended(*await stage.write("two"), Reason.WORKFLOW_PENDING)
    assert await stage.said(1) == [MISSING]
    await stage.bind(general, enabled=False, workflow_missing_message="Back on Monday.")
    await agree(gateway, worker)
    await stage.suspended(*await stage.write("three"), Reason.WORKFLOW_PENDING)
    assert await stage.said(2) == [MISSING, MISSING]

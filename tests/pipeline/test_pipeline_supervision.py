"""What is stored and does not move is noticed, told, and set going again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipeline_stage import Gateway, Stage, WorkerProcess

import rise
from rise.capabilities import CONSEQUENCES, REMEDIES, CapabilityStatus
from rise.channels.telegram.polling import TelegramPolling
from rise.envelope import Reason, Status
from rise.errors import Busy, StoreUnavailable
from rise.ledger.port import Office
from rise.offices import OfficeClaim
from rise.queue.port import Selection, Suspend
from rise.runtime import supervisor
from rise.runtime.overload import OverloadLimits
from rise.runtime.pipeline import CLOCKS_REMEDY, Lacking, PipelineLimits
from rise.runtime.supervisor import LOST_SECONDS, Duties
from rise.telemetry import oldest_waiting_seconds

AVAILABLE, DEGRADED, UNAVAILABLE = CapabilityStatus


@rise.workflow("echo", channels=["telegram"])
async def echo(turn: rise.Turn) -> None:
    await turn.reply(turn.text)


def status(gateway: Gateway, name: str = "pipeline") -> tuple[str, str]:
    state = gateway.capabilities.get(name)
    assert state is not None
    return state.status, state.detail


def logged(stage: Stage, event: str) -> list[dict[str, object]]:
    return [entry for entry in stage.log if entry["event"] == event]


async def raised(stage: Stage) -> set[str]:
    open_alerts: set[str] = set()
    for message in stage.alerts_told:
        (open_alerts.add if message.state == "raised" else open_alerts.discard)(message.alert)
    return open_alerts


# --- while the queue cannot be asked ----------------------------------------------------------------------------


class Lacked:
    """What the queue has not got."""

    def __init__(self, gateway: Gateway, count: int | None) -> None:
        self.count = count
        self.is_certain = True
        gateway.supervisor._pipeline.lacking_in_queue = self.told

    async def told(self) -> Lacking | None:
        return None if self.count is None else Lacking(self.count, self.is_certain)


def cut_off(gateway: Gateway) -> None:
    gateway.capabilities.set("disk", UNAVAILABLE, "it is away")
    gateway.fail_at("queue.depth", "before", StoreUnavailable("it is away"), times=99)


def bring_back(gateway: Gateway) -> None:
    gateway.capabilities.set("disk", AVAILABLE, "it is back")
    gateway._stops.clear()


@pytest.mark.req("SUP-1", "CAP-7")
@pytest.mark.failure("I14")
async def test_what_is_accepted_while_the_queue_cannot_be_asked_is_counted_as_far_as_it_is_known(stage: Stage):
    gateway = await stage.start_gateway()
    lacking = Lacked(gateway, 2)
    await stage.write("Hello")
    await gateway.supervisor.measure()
    cut_off(gateway)
    for count in (2, 2, 3):
        lacking.count = count
        await gateway.supervisor.measure()
        assert status(gateway) == (DEGRADED, f"{count + 1} unprocessed messages, waiting for disk")
        admission = gateway.capabilities.get("admission")
        assert admission is not None and admission.detail == f"{count + 1} messages are open"


@pytest.mark.req("SUP-1", "CAP-7")
@pytest.mark.failure("C14")
async def test_what_a_queue_does_not_take_that_can_be_asked_is_counted_as_well(stage: Stage):
    """It is full, say; or it is back, and has not been given what it lacks."""
    stage.overload_limits = OverloadLimits(backlog_warn=10, backlog_max=20)
    gateway = await stage.start_gateway()
    lacking = Lacked(gateway, 25)
    gateway.capabilities.set("disk", UNAVAILABLE, "it is full")
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "25 unprocessed messages, waiting for disk")
    assert status(gateway, "admission")[0] is UNAVAILABLE
    gateway.capabilities.set("disk", AVAILABLE, "it takes them")
    await gateway.supervisor._pipeline.assess()
    assert status(gateway, "admission")[0] is UNAVAILABLE, "nothing has become less"
    assert [entry["count"] for entry in logged(stage, "replaying backlog")] == [25]
    lacking.count = 0
    await gateway.supervisor.measure()
    assert status(gateway, "admission")[0] is AVAILABLE


@pytest.mark.req("SUP-1", "CAP-7")
@pytest.mark.failure("I14")
async def test_after_a_start_without_the_queue_people_hear_what_the_journals_hold(stage: Stage):
    """Among it is what waits for a person, or for a later time: nobody is refused for it."""
    stage.overload_limits = OverloadLimits(backlog_warn=10, backlog_max=20)
    gateway = await stage.start_gateway()
    lacking = Lacked(gateway, None)
    cut_off(gateway)
    gateway.supervisor._pipeline._is_counted = False  # as at such a start
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "an unknown number of unprocessed messages, waiting for disk")
    lacking.count, lacking.is_certain = 25, False
    await gateway.supervisor.measure()
    stage.clock.advance(LOST_SECONDS + 1)
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "25 unprocessed messages, waiting for disk")
    assert status(gateway, "admission") == (AVAILABLE, "what is open has not been counted yet")
    assert "backlog_waiting" in await raised(stage)
    bring_back(gateway)
    lacking.count, lacking.is_certain = 0, True
    await gateway.supervisor.measure()
    assert status(gateway) == (AVAILABLE, "0 messages on the way")
    assert "backlog_waiting" not in await raised(stage)


@pytest.mark.req("SUP-2", "CAP-7")
@pytest.mark.failure("I14")
async def test_without_the_queue_a_full_disk_is_seen_also_after_a_start(stage: Stage):
    gateway = await stage.start_gateway()
    cut_off(gateway)
    pipeline = gateway.supervisor._pipeline
    pipeline._is_counted, pipeline.disk_space = False, lambda: (1_000_000, 100_000_000_000)
    await gateway.supervisor.measure()
    assert status(gateway, "admission")[0] is UNAVAILABLE


@pytest.mark.req("SUP-1", "CAP-7")
@pytest.mark.failure("C19")
async def test_what_an_emptied_queue_is_given_back_is_counted_once(stage: Stage):
    gateway = await stage.start_gateway()
    lacking = Lacked(gateway, 25)
    lacking.is_certain = False
    await stage.write("Hello")
    await gateway.supervisor.measure()
    assert status(gateway) == (AVAILABLE, "1 message on the way")


@pytest.mark.req("SUP-2", "CAP-7")
@pytest.mark.failure("C5")
async def test_while_no_journal_can_be_read_what_was_last_told_holds_until_the_queue_says_what_it_has(stage: Stage):
    stage.overload_limits = OverloadLimits(backlog_warn=10, backlog_max=20)
    gateway = await stage.start_gateway()
    lacking = Lacked(gateway, 25)
    cut_off(gateway)
    for lacking.count in (25, None):
        await gateway.supervisor.measure()
        assert status(gateway, "admission")[0] is UNAVAILABLE
    bring_back(gateway)
    await gateway.supervisor.measure()
    assert status(gateway, "admission")[0] is AVAILABLE, "another copy may have filled it"


# --- after a start, and when something comes back ---------------------------------------------------------------


@pytest.mark.req("SUP-1")
@pytest.mark.failure("I14", "D14")
async def test_a_backlog_whose_worker_is_missing_is_told_with_its_number_and_replayed_when_that_is_back(stage: Stage):
    gateway = await stage.start_gateway()
    gateway.capabilities.set("worker", UNAVAILABLE, "it ended")
    tasks = [task for chat in (1, 2, 3) for task in await stage.write("Hello", chat=chat)]
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "3 unprocessed messages, waiting for worker")
    assert await raised(stage) == set(), "a worker that is replaced at once alerts nobody"
    stage.clock.advance(10)
    await gateway.supervisor.measure()
    assert await raised(stage) == {"backlog_waiting", "capability.worker"}
    assert stage.alerts_told[0].summary == "3 unprocessed messages, waiting for worker"
    said = {one["alert"]: (one["consequence"], one["remedy"]) for one in logged(stage, "alert.raised")}
    assert said["capability.worker"] == (CONSEQUENCES["worker"], REMEDIES["worker"]), "the log says it, too"
    assert said["backlog_waiting"] == (CONSEQUENCES["pipeline"], REMEDIES["worker"])

    await stage.start_worker(echo)
    gateway.capabilities.set("worker", AVAILABLE, "process 1")
    await stage.until(lambda: _true(logged(stage, "replaying backlog")))
    await stage.ended(*tasks)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == AVAILABLE
    assert await raised(stage) == set()


@pytest.mark.req("SUP-1")
async def test_what_a_former_process_left_behind_is_replayed_at_the_start(stage: Stage):
    gateway = await stage.start_gateway()
    await stage.write("Hello")
    await gateway.kill()
    await stage.start_gateway()
    await stage.until(lambda: _true(logged(stage, "replaying backlog")))
    assert [entry["count"] for entry in logged(stage, "replaying backlog")] == [1]


@pytest.mark.req("SUP-1", "CAP-6")
async def test_without_its_store_it_says_what_was_waiting_when_that_was_last_known(stage: Stage):
    gateway = await stage.start_gateway()
    await stage.write("Hello")
    await gateway.supervisor.measure()
    gateway.fail_at("queue.depth", "before", StoreUnavailable("gone"), times=1000)
    gateway.capabilities.set("disk", UNAVAILABLE, "gone")
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "1 unprocessed message, waiting for disk")


@pytest.mark.req("SUP-1", "CAP-6")
@pytest.mark.failure("I14")
async def test_what_waits_for_something_that_is_away_names_what_brings_that_back(stage: Stage):
    gateway = await stage.start_gateway()
    gateway.capabilities.set("disk", UNAVAILABLE, "it vanished", "put it back")
    gateway.capabilities.set("worker", UNAVAILABLE, "it ended")
    await stage.write("Hello")
    await gateway.supervisor.measure()
    assert gateway.capabilities.shown()["pipeline"]["remedy"] == f"put it back; {REMEDIES['worker']}"
    gateway.capabilities.set("disk", AVAILABLE)
    gateway.capabilities.set("worker", AVAILABLE)
    stage.clock.advance(PipelineLimits().stalled_seconds + 1)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == DEGRADED, "it is slow, and all is there"
    assert gateway.capabilities.shown()["pipeline"]["remedy"] == REMEDIES["pipeline"]


# --- what does not move -------------------------------------------------------------------------------------------


@pytest.mark.req("CAP-6", "SUP-3")
async def test_stored_work_that_does_not_move_is_degraded_and_alerted_and_never_closes_acceptance(stage: Stage):
    stage.pipeline_limits = PipelineLimits(stalled_seconds=60)
    gateway = await supervised_by_hand(stage)
    gateway.capabilities.set("disk", AVAILABLE)
    [task] = await stage.write("Hello")
    stage.clock.advance(61)
    await gateway.supervisor.measure()
    assert status(gateway) == (DEGRADED, "the oldest message has waited 61 s")
    assert "pipeline" in await raised(stage)
    assert gateway.capabilities.overall() == "degraded"
    assert gateway.capabilities.not_accepting() is None
    await stage.start_worker(echo)
    await stage.ended(task)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == AVAILABLE
    assert "pipeline" not in await raised(stage)


@pytest.mark.req("CAP-6")
@pytest.mark.parametrize(("seconds", "told"), [(2 * 86_400, "48.0 h apart, the store's behind"), (-90, "2 min apart")])
async def test_clocks_that_disagree_are_told_and_close_nothing(stage: Stage, seconds: float, told: str):
    gateway = await supervised_by_hand(stage)
    gateway.capabilities.set("disk", AVAILABLE)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == AVAILABLE
    stage.clock.step_wall(seconds)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == DEGRADED
    assert told in status(gateway)[1]
    assert CLOCKS_REMEDY in status(gateway)[1]
    assert gateway.capabilities.not_accepting() is None
    stage.clock.step_wall(-seconds)
    await gateway.supervisor.measure()
    assert status(gateway)[0] == AVAILABLE


@pytest.mark.req("CAP-6")
async def test_answers_that_do_not_go_out_count_too(stage: Stage):
    stage.pipeline_limits = PipelineLimits(stalled_seconds=60)
    gateway = await supervised_by_hand(stage, sends=False)
    await stage.start_worker(echo)
    await stage.write("Hello")
    await stage.until(lambda: _outbox(stage))
    stage.clock.advance(61)
    await gateway.supervisor.measure()
    assert status(gateway)[1] == "the oldest reply has waited 61 s"
    assert oldest_waiting_seconds.labels("reply")._value.get() == 61


@pytest.mark.req("CAP-6", "QUE-3")
@pytest.mark.failure("I15")
async def test_a_worker_whose_loop_has_died_in_silence_is_started_anew(stage: Stage):
    workers: list[WorkerProcess] = []

    async def restart() -> None:
        await workers[0].kill()
        workers.append(await stage.start_worker(echo))

    stage.restart_worker = restart
    gateway = await supervised_by_hand(stage)
    workers.append(await stage.start_worker(echo))
    gateway.capabilities.set("worker", AVAILABLE, "it beats")  # as far as anybody can see
    for task in list(workers[0].worker._claims._looking._tasks):
        task.cancel()
    [task_id] = await stage.write("Hello")
    polls = 0
    while len(workers) == 1:
        assert polls <= 5, "it was never noticed"
        stage.clock.advance(10)
        await gateway.supervisor.measure()
        polls += 1
    assert polls == 4, "seen once, and three times older"
    assert len(logged(stage, "worker.stuck")) == 1
    # Its answer goes out when the sender has its office again: to that, time has jumped.
    await stage.until(lambda: stage.ledger.latest_run(task_id))


@pytest.mark.req("CAP-6", "SUP-3")
@pytest.mark.failure("I15")
async def test_what_waits_for_a_channel_that_was_taken_away_is_told_as_such_and_no_workers_fault(stage: Stage):
    async def restart() -> None:
        raise AssertionError("nothing is wrong with it")

    stage.channels, stage.restart_worker = ("http",), restart
    stage.pipeline_limits = PipelineLimits(stalled_seconds=60)
    gateway = await supervised_by_hand(stage)
    await stage.write("from before", "RISE_TELEGRAM_TOKEN was unset")
    await stage.start_worker(echo)
    for _ in range(20):
        stage.clock.advance(10)
        await gateway.supervisor.measure()
    assert status(gateway)[0] == AVAILABLE, "all that it can do, it does"
    assert await raised(stage) == {"channel_gone"}
    [told] = stage.alerts_told
    assert told.summary == "2 messages wait for a channel that is not configured any more: telegram"
    assert "`rise tasks drop` ends" in told.details["remedy"]
    assert told.details["consequence"] == CONSEQUENCES["channels"]
    assert status(gateway, "channels") == (DEGRADED, told.summary), "as /healthz and doctor show it"
    for task in await stage.queue.list_open(Selection(), limit=10):
        await stage.operations.drop(task.head.task_id, who="a person", why="that bot is gone")
    await gateway.supervisor.sweep()
    await stage.queue.claim("a look", {"telegram": 1}, takes_suspects=True)
    await gateway.supervisor.measure()
    assert await raised(stage) == set()
    assert status(gateway, "channels")[0] == AVAILABLE


@pytest.mark.req("CAP-6", "SUP-3")
@pytest.mark.failure("I15")
async def test_an_answer_that_waits_for_a_channel_that_was_taken_away_is_told_too(stage: Stage):
    gateway = await supervised_by_hand(stage, sends=False)
    worker = await stage.start_worker(echo)
    [task_id] = await stage.write("answered, and not yet sent")

    async def is_replying() -> bool:
        task = await stage.look(task_id)
        return task is not None and task.status is Status.REPLYING

    await stage.until(is_replying)
    await worker.stop()
    await gateway.supervisor.measure()
    assert await raised(stage) == set()
    stage.channels = ("http",)
    gateway = await supervised_by_hand(stage, sends=False)
    await gateway.supervisor.measure()
    assert await raised(stage) == {"channel_gone"}
    [told] = stage.alerts_told
    assert told.summary == "1 message waits for a channel that is not configured any more: telegram"
    await stage.operations.drop(task_id, who="a person")
    await gateway.supervisor.measure()
    assert await raised(stage) == set()


@pytest.mark.req("SUP-3", "CPY-6")
@pytest.mark.failure("D1")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize("step", ["queue.hold", "queue.resume"])
async def test_a_result_that_was_lost_is_computed_again_whoever_dies_while_that_is_arranged(
    stage: Stage, step: str, edge: Any
):
    gateway = await stage.start_gateway(sends=False)
    await stage.start_worker(echo)
    [task_id] = await stage.write("Hello")

    async def is_replying() -> bool:
        task = await stage.look(task_id)
        return task is not None and task.status is Status.REPLYING

    await stage.until(is_replying)
    await stage.database.write(lambda connection: connection.execute("DELETE FROM runs; DELETE FROM replies") and None)
    gateway.die_at(step, edge)
    await stage.pass_time(LOST_SECONDS + 1)
    await gateway.dead()  # its sweep was due
    gateway = await stage.start_gateway()
    await gateway.supervisor.sweep()
    await gateway.supervisor.resume()
    await stage.ended(task_id)
    assert stage.texts() == ["Hello"]


@pytest.mark.req("CAP-6")
@pytest.mark.failure("I15")
async def test_nobody_takes_a_worker_for_stuck_while_the_queue_is_filled_again(stage: Stage):
    restarts = 0

    async def restart() -> None:
        nonlocal restarts
        restarts += 1

    stage.restart_worker, stage.is_being_filled = restart, True
    gateway = await supervised_by_hand(stage)
    await stage.write("Hello")
    for _ in range(10):
        stage.clock.advance(10)
        await gateway.supervisor.measure()
    assert restarts == 0
    stage.is_being_filled = False
    for _ in range(4):
        stage.clock.advance(10)
        await gateway.supervisor.measure()
    assert restarts == 1, "from then on it has to move"


@pytest.mark.failure("I15", "H7")
async def test_a_worker_that_stays_stuck_is_not_restarted_again_and_again(stage: Stage):
    restarts = 0

    async def restart() -> None:
        nonlocal restarts
        restarts += 1

    stage.restart_worker = restart
    gateway = await supervised_by_hand(stage)
    await stage.write("Hello")
    for _ in range(11):
        stage.clock.advance(10)
        await gateway.supervisor.measure()
    assert restarts == 2, "once a minute at most"


@pytest.mark.failure("I15")
async def test_nobody_takes_a_worker_for_stuck_that_works_or_that_lacks_something(stage: Stage):
    async def restart() -> None:
        raise AssertionError("it was not stuck")

    stage.restart_worker = restart
    gateway = await supervised_by_hand(stage)
    gateway.capabilities.set("worker", DEGRADED, "starting")
    await stage.write("Hello")
    for _ in range(6):
        stage.clock.advance(10)
        await gateway.supervisor.measure()
    gateway.capabilities.set("worker", AVAILABLE)
    started, finish = asyncio.Event(), asyncio.Event()

    @rise.workflow("slow", channels=["telegram"])
    async def slow(turn: rise.Turn) -> None:
        started.set()
        await finish.wait()

    stage.worker_limits = rise.worker.WorkerLimits(run_seconds=600, stop_seconds=1)
    await stage.start_worker(slow)
    await started.wait()
    await stage.write("and another, behind it")
    for _ in range(2):
        stage.clock.advance(5)  # within the claim, which is renewed
        await gateway.supervisor.measure()
    finish.set()


@pytest.mark.req("CAP-6", "TGM-1")
@pytest.mark.failure("D4")
async def test_on_a_full_disk_polling_does_not_say_that_another_process_polls(stage: Stage):
    gateway = await supervised_by_hand(stage)
    told: list[tuple[bool, str]] = []

    def hear(is_receiving: bool, detail: str) -> None:
        told.append((is_receiving, detail))
        stage.touch()

    polling = TelegramPolling(
        gateway.telegram,
        stage.account,
        accept=gateway.intake.accept,
        clock=stage.clock,
        on_state=hear,
        office=OfficeClaim(gateway.ledger, Office.POLLER, gateway.bus.member, stage.clock),
    )
    gateway.fail_at("ledger.take_office", "before", StoreUnavailable("the disk is full"), times=1000)
    await gateway.start(polling)
    while not told:
        await stage.pass_time(1)
    assert told == [(False, "it is not known who polls: the disk is full")]


# --- too much -----------------------------------------------------------------------------------------------------


@pytest.mark.req("SUP-2")
async def test_too_much_is_refused_and_taken_again_when_some_of_it_is_done(stage: Stage):
    stage.overload_limits = OverloadLimits(backlog_warn=2, backlog_max=4)
    gateway = await supervised_by_hand(stage)
    tasks = [task for chat in range(1, 6) for task in await stage.write("Hello", chat=chat)]
    await gateway.supervisor.measure()
    assert await raised(stage) >= {"backlog", "overload"}
    with pytest.raises(Busy):
        await stage.write("one too many", chat=9)
    assert status(gateway, "admission")[0] == UNAVAILABLE
    await stage.start_worker(echo)
    await stage.ended(*tasks)
    await gateway.supervisor.measure()
    await stage.write("now it may come in", chat=9)
    assert not await raised(stage) & {"backlog", "overload"}


@pytest.mark.req("CHN-4")
@pytest.mark.failure("G16")
async def test_whose_message_was_taken_for_poison_is_told_however_many_are(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "PAGE", 2)
    gateway = await supervised_by_hand(stage)
    for chat in range(1, 6):
        await stage.write("deadly", chat=chat)
    for claim in (await stage.queue.claim("a worker", {"telegram": 5}, takes_suspects=False)).claims:
        await stage.queue.settle(claim, claim.task, Suspend(Reason.POISON))
    for _ in range(3):
        await gateway.supervisor.tell()
    assert await stage.said(5) == [Duties().failed_text] * 5
    await stage.write("deadly", chat=6)
    [claim] = (await stage.queue.claim("a worker", {"telegram": 5}, takes_suspects=False)).claims
    await stage.queue.settle(claim, claim.task, Suspend(Reason.POISON))
    for _ in range(4):
        await gateway.supervisor.tell()
    assert await stage.said(6) == [Duties().failed_text] * 6, "each once, and who comes later as well"


async def supervised_by_hand(stage: Stage, *, sends: bool = True) -> Gateway:
    """The test says when it is looked, and so how often."""
    gateway = await stage.start_gateway(sends=sends)
    for loop in gateway.supervisor._loops:
        await loop.stop()
    return gateway


async def _true(value: object) -> object:
    return value


async def _outbox(stage: Stage) -> bool:
    return bool((await stage.ledger.outbox_depth()).by_state)

"""Callbacks: what became of a task is posted to whoever asked for it, whatever dies, fails or is slow on the way."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from pipeline_stage import CALLBACK_SECRET, Gateway, Process, Stage, WorkerProcess

import rise
from rise import callbacks
from rise.callbacks import GIVE_UP_SECONDS
from rise.envelope import Outcome, Reason, Status, TaskId
from rise.ledger.port import Reply, ReplyKind, ReplyState
from rise.queue.port import QueueLimits
from rise.retries import RetryPolicy
from rise.runtime.operations import Operations
from rise.stories import shown

EDGES = ["before", "after"]
WORKING = [
    "queue.claim",
    *("ledger.run", "ledger.attempts", "ledger.steps", "ledger.save_result"),
    "queue.settle",
]
SENDING = ["ledger.outbox_take", "ledger.outbox_sending", "callbacks.send", "ledger.outbox_record"]
SECRET_PART = "?key=only-we-know"


class Receiver:
    """Somebody's server: takes what is posted, and answers as it is told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.paths: set[str] = set()
        self.answers: list[Callable[[web.Request], Any]] = []
        """Of the next requests; those after them are taken."""
        self.port = 0
        self._came = asyncio.Event()

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        self.paths.add(request.path)
        self._came.set()
        answer = self.answers.pop(0) if self.answers else lambda request: web.Response(status=204)
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/results{SECRET_PART}"

    @property
    def told(self) -> list[dict[str, Any]]:
        """What was posted, each id once."""
        posted = {body["meta"]["callbackId"]: body["data"] for body in map(json.loads, self.bodies)}
        return list(posted.values())

    async def hears(self, count: int, stage: Stage) -> None:
        """So many posts."""
        async with asyncio.timeout(20):
            while len(self.bodies) < count:
                self._came.clear()
                stage.nudge()
                await self._came.wait()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    yield receiver
    await runner.cleanup()


@rise.workflow("shouts", channels=["http"])
async def shouts(turn: rise.Turn) -> None:
    await turn.reply(turn.text.upper())


@rise.workflow("shouts", channels=["http"])
async def fails(turn: rise.Turn) -> None:
    raise RuntimeError("no idea")


def status(code: int, **headers: str) -> Callable[[web.Request], web.Response]:
    return lambda request: web.Response(
        status=code, headers={name.replace("_", "-"): headers[name] for name in headers}
    )


def hung_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def callbacks_of(stage: Stage, task_id: TaskId) -> list[Reply]:
    replies = await stage.ledger.replies(task_id=task_id)
    return [reply for reply in replies if reply.kind is ReplyKind.CALLBACK]


async def all_posted(stage: Stage, task_id: TaskId, *, seconds: float = 0.0) -> list[Reply]:
    """Wait until every callback of the task is final; so much time passes at each look."""
    for _ in range(200):
        found = await callbacks_of(stage, task_id)
        if found and all(reply.state in (ReplyState.SENT, ReplyState.FAILED) for reply in found):
            return found
        if seconds:
            await stage.pass_time(seconds)
        else:
            stage.nudge()
            await stage.let_go_on()
        await asyncio.sleep(0.005)  # real: the receiver is on a real socket
    raise AssertionError(f"not posted: {await callbacks_of(stage, task_id)}; {await stage.report()}")


async def tried(stage: Stage, task_id: TaskId, count: int) -> Reply:
    """Wait until its callback was tried so often in vain, and waits."""

    async def holds() -> Reply | None:
        found = await callbacks_of(stage, task_id)
        return next((one for one in found if one.tries == count and one.state is ReplyState.READY), None)

    found: Reply = await stage.until(holds)
    return found


# --- what is posted ---


@pytest.mark.req("ENV-7")
async def test_a_result_is_posted_as_the_results_route_shows_it_and_signed(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    task_id = await stage.ask("hello", callback_url=receiver.url)
    [callback] = await all_posted(stage, task_id)
    assert callback.state is ReplyState.SENT

    [body], [headers] = receiver.bodies, receiver.headers
    signed = headers["X-Rise-Timestamp"].encode() + b"." + body
    expected = hmac.new(CALLBACK_SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Rise-Signature"] == f"sha256={expected}"
    assert headers["Content-Type"] == "application/json"

    posted = json.loads(body)
    assert posted["meta"] == {"callbackId": callback.reply_id}
    story = shown(await stage.operations.story(task_id), RetryPolicy())
    as_read = json.loads(json.dumps(story, default=lambda raw: json.loads(bytes(raw))))
    as_posted = posted["data"]
    assert as_posted.keys() == as_read.keys()
    assert (as_posted["status"], as_posted["outcome"]) == ("completed", "answered")
    for name in set(as_read) - {"payload", "replies", "updatedAt"}:
        assert as_posted[name] == as_read[name], name
    assert as_posted["replies"][0]["text"] == "HELLO"
    assert as_posted["replies"][0]["state"] == as_read["replies"][0]["state"]
    assert as_posted["payload"]["userText"] == "hello"
    assert as_posted["payload"]["channelPayload"]["raw"] is None, "its caller has those bytes"


@pytest.mark.req("ENV-7", "SEC-2")
async def test_of_where_it_is_posted_nothing_but_the_host_is_shown_or_logged(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    receiver.answers = [status(500)]
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await tried(stage, task_id, 1)
    await all_posted(stage, task_id, seconds=5)
    story = shown(await stage.operations.story(task_id), RetryPolicy())
    assert story["replies"][-1]["params"] == {"url": f"http://127.0.0.1:{receiver.port}/…"}
    assert SECRET_PART not in str(story["replies"])
    assert SECRET_PART not in str(stage.log)
    assert "results" not in str(stage.log)


@pytest.mark.req("ENV-7")
async def test_who_asked_for_no_callback_is_posted_nothing(stage: Stage, receiver: Receiver):
    gateway, _ = await stage.start(shouts)
    task_id = await stage.ask("hello")
    await stage.ended(task_id)
    assert await callbacks_of(stage, task_id) == []
    assert "callbacks.send" not in gateway.steps


@pytest.mark.req("ENV-7", "SUS-3")
async def test_that_a_task_is_parked_is_posted_and_then_how_it_ended(stage: Stage, receiver: Receiver):
    stage.retry_policy = RetryPolicy(retry_max=0)
    _, worker = await stage.start(fails)
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    await receiver.hears(1, stage)
    [parked] = receiver.told
    assert (parked["status"], parked["reason"]) == ("suspended", "retries_exhausted")
    assert "no idea" in parked["error"]
    assert parked["finishedAt"] is None

    # Resumed, it fails for the same reason: that is not said twice.
    await stage.operations.resume(task_id, who="ann")
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    await worker.kill()
    await stage.start_worker(shouts)
    await stage.operations.resume(task_id, who="ann")
    await stage.ended(task_id)
    await all_posted(stage, task_id)
    assert [one["status"] for one in receiver.told] == ["suspended", "completed"]


@pytest.mark.req("ENV-7", "SUS-1")
async def test_that_no_workflow_is_there_is_posted(stage: Stage, receiver: Receiver):
    await stage.start()
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await receiver.hears(1, stage)
    assert [(one["status"], one["reason"]) for one in receiver.told] == [("suspended", "workflow_pending")]
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)


@pytest.mark.req("ENV-7", "QUE-3")
async def test_that_a_task_killed_its_workers_is_posted(stage: Stage, receiver: Receiver):
    stage.queue_limits = QueueLimits(deaths_max=1)
    gateway = await stage.start_gateway()
    task_id = await stage.ask("hello", callback_url=receiver.url)
    worker = stage.new_worker(shouts)
    worker.die_at("ledger.steps", "before")
    await stage.start_new_worker(worker, shouts)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(shouts)
    await stage.suspended(task_id, Reason.POISON)
    for _ in range(2):
        await gateway.supervisor.tell()
    await receiver.hears(1, stage)
    await all_posted(stage, task_id)
    [parked] = receiver.told
    assert (parked["status"], parked["reason"], parked["deaths"]) == ("suspended", "poison", 1)


@pytest.mark.req("ENV-7")
async def test_that_a_task_came_too_late_is_posted(stage: Stage, receiver: Receiver):
    await stage.start_gateway()
    task_id = await stage.ask("hello", callback_url=receiver.url, lifetime_seconds=2.0)
    await stage.pass_time(3)
    await stage.start_worker(shouts)
    await stage.ended(task_id)
    await all_posted(stage, task_id)
    [late] = receiver.told
    assert (late["status"], late["result"]) == ("expired", None)


@pytest.mark.req("ENV-7", "SUS-3")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["ledger.attempts", "ledger.finish", "queue.cancel"])
async def test_a_drop_killed_anywhere_is_posted_once_if_it_was_done(
    stage: Stage, receiver: Receiver, step: str, edge: Any
):
    gateway = await stage.start_gateway()
    await stage.start_worker()
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await stage.suspended(task_id, Reason.WORKFLOW_PENDING)
    await all_posted(stage, task_id)
    operator = await stage.start_gateway(sends=False)
    operator.die_at(step, edge)
    asked = Operations(operator.queue, operator.ledger, operator.bus, stage.clock)
    with pytest.raises(BaseException):  # noqa: B017 - it is killed in it
        await asked.drop(task_id, who="ann", why="spam")
    await operator.dead()
    is_done = (step, edge) not in {
        ("ledger.attempts", "before"),
        ("ledger.attempts", "after"),
        ("ledger.finish", "before"),
    }
    assert bool(len(await callbacks_of(stage, task_id)) == 2) is is_done
    # Said again, whatever the first came to.
    await Operations(gateway.queue, gateway.ledger, gateway.bus, stage.clock).drop(task_id, who="ann", why="spam")
    await all_posted(stage, task_id)
    assert [one["status"] for one in receiver.told] == ["suspended", "dropped"]
    assert (receiver.told[-1]["droppedBy"], receiver.told[-1]["droppedWhy"]) == ("ann", "spam")


@pytest.mark.req("ENV-7")
async def test_what_a_person_has_run_again_is_posted_again_under_another_id(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await stage.ended(task_id)
    await all_posted(stage, task_id)
    await stage.operations.run_again(task_id, who="ann")
    await receiver.hears(2, stage)
    assert [(one["generation"], one["status"]) for one in receiver.told] == [(0, "completed"), (1, "completed")]


# --- whoever dies on the way ---


async def replaced(stage: Stage, dead: Process) -> None:
    """Whatever died is replaced, and the supervisor does its rounds."""
    await dead.dead()
    gateway = next((one for one in stage._processes if isinstance(one, Gateway) and not one.is_dead), None)
    if gateway is None:
        gateway = await stage.start_gateway()
    if isinstance(dead, WorkerProcess):
        await gateway.supervisor.reap()
        await stage.start_worker(shouts)
    await gateway.supervisor.sweep()


@pytest.mark.req("ENV-7", "CPY-7")
@pytest.mark.failure("D1", "E2")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", WORKING)
async def test_a_worker_killed_anywhere_is_followed_by_one_callback(
    stage: Stage, receiver: Receiver, step: str, edge: Any
):
    await stage.start_gateway()
    task_id = await stage.ask("hello", callback_url=receiver.url)
    worker = stage.new_worker(shouts)
    worker.die_at(step, edge)
    await stage.start_new_worker(worker, shouts)
    await replaced(stage, worker)
    [run] = await stage.ended(task_id)
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED)
    [callback] = await all_posted(stage, task_id)
    assert (callback.state, len(receiver.bodies)) == (ReplyState.SENT, 1)
    assert receiver.told[0]["result"]["text"] == "HELLO"


@pytest.mark.req("ENV-7", "CPY-7")
@pytest.mark.failure("D1", "E2")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", ["ledger.attempts", "ledger.add_notice", "ledger.add_attempt", "queue.settle"])
async def test_a_worker_killed_while_it_parks_a_task_is_followed_by_one_callback(
    stage: Stage, receiver: Receiver, step: str, edge: Any
):
    stage.retry_policy = RetryPolicy(retry_max=0)
    gateway = await stage.start_gateway()
    task_id = await stage.ask("hello", callback_url=receiver.url)
    worker = stage.new_worker(fails)
    worker.die_at(step, edge)
    await stage.start_new_worker(worker, fails)
    await worker.dead()
    await gateway.supervisor.reap()
    await stage.start_worker(fails)
    await stage.suspended(task_id, Reason.RETRIES_EXHAUSTED)
    [callback] = await all_posted(stage, task_id)
    assert (callback.state, len(receiver.bodies)) == (ReplyState.SENT, 1)


@pytest.mark.req("ENV-7", "OUT-1", "CPY-7")
@pytest.mark.failure("G1", "G2", "G3")
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("step", SENDING)
async def test_a_sender_killed_anywhere_posts_again_under_the_same_id(
    stage: Stage, receiver: Receiver, step: str, edge: Any
):
    gateway, worker = await stage.start(shouts)
    # The first look at an empty outbox is not the one that is meant; but a later one may be.
    await stage.until(lambda: _has_passed(gateway, "ledger.outbox_open"))
    gateway.die_at(step, edge)
    task_id = await stage.ask("hello", callback_url=receiver.url, by=worker)
    while not gateway.is_dead:
        stage.nudge()
        await stage.let_go_on()
    await replaced(stage, gateway)
    [callback] = await all_posted(stage, task_id, seconds=3)
    assert callback.state is ReplyState.SENT
    may_be_twice = (step, edge) in {("callbacks.send", "after"), ("ledger.outbox_record", "before")}
    assert len(receiver.bodies) == (2 if may_be_twice else 1)
    assert len(set(receiver.bodies)) == 1, "the same bytes, and in them the id by which it is known again"
    assert (await stage.ledger.outbox_depth()).resent == 0, "it is no doubt"


@pytest.mark.req("ENV-7", "CPY-7")
async def test_the_calls_that_are_killed_here_are_all_that_a_callback_passes(stage: Stage, receiver: Receiver):
    gateway, worker = await stage.start(shouts)
    without = await stage.ask("hello", key="1")
    await stage.ended(without)
    worker.steps.clear()
    gateway.steps.clear()
    task_id = await stage.ask("hello", key="2", callback_url=receiver.url)
    await all_posted(stage, task_id)
    await stage.ended(task_id)
    assert set(WORKING) <= set(worker.steps)
    assert set(worker.steps) - set(WORKING) <= {"queue.renew", "definitions.changes", "definitions.latest"}
    assert list(dict.fromkeys(step for step in gateway.steps if step in SENDING)) == SENDING


async def _has_passed(process: Process, step: str) -> bool:
    return step in process.steps


@pytest.mark.req("ENV-7")
async def test_however_often_its_sender_dies_in_the_middle_it_is_posted_in_the_end(stage: Stage, receiver: Receiver):
    await stage.start_worker(shouts)
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await stage.ended(task_id)
    for _ in range(8):
        gateway = await stage.start_gateway(sends=False)
        gateway.die_at("callbacks.send", "before")
        await gateway.start(gateway.sender)
        while not gateway.is_dead:
            await stage.pass_time(60)
        await gateway.dead()
    await stage.start_gateway()
    [callback] = await all_posted(stage, task_id, seconds=60)
    assert (callback.state, callback.resends) == (ReplyState.SENT, 0)


# --- whoever does not take it ---


@pytest.mark.req("ENV-7")
@pytest.mark.parametrize(
    "answer", [status(500), status(404), status(302, Location="/elsewhere"), hung_up], ids=["500", "404", "302", "cut"]
)
async def test_what_is_not_taken_is_posted_again_with_longer_and_longer_pauses(
    stage: Stage, receiver: Receiver, answer: Any
):
    await stage.start(shouts)
    receiver.answers = [answer] * 3
    task_id = await stage.ask("hello", callback_url=receiver.url)
    posted_at = []
    for count in (1, 2, 3):
        await tried(stage, task_id, count)
        posted_at.append(stage.clock.monotonic())
        while len(receiver.bodies) == count:
            await stage.pass_time(1)
            await asyncio.sleep(0.01)  # real, as the receiver's socket is
    await all_posted(stage, task_id)
    assert len(receiver.bodies) == 4
    assert len(set(receiver.bodies)) == 1
    assert [one["status"] for one in receiver.told] == ["completed"]
    assert len(receiver.paths) == 1, "where a redirect leads is nobody's who was asked"
    assert posted_at[1] - posted_at[0] >= 0.8 * callbacks.PAUSE_SECONDS_MIN


@pytest.mark.req("ENV-7")
async def test_a_receiver_that_is_slow_is_given_up_for_now(
    stage: Stage, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callbacks, "POST_SECONDS_MAX", 0.2)
    held = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await held.wait()
        return web.Response()

    await stage.start(shouts)
    receiver.answers = [hold]
    task_id = await stage.ask("hello", callback_url=receiver.url)
    waiting = await tried(stage, task_id, 1)
    assert waiting.error == "127.0.0.1 did not answer within 0.2 s"
    held.set()
    [callback] = await all_posted(stage, task_id, seconds=3)
    assert callback.state is ReplyState.SENT
    assert len(set(receiver.bodies)) == 1, "on a slow machine the first has not even reached it"


@pytest.mark.req("ENV-7")
async def test_a_pause_that_is_asked_for_is_kept(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    receiver.answers = [status(429, Retry_After="600")]
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await tried(stage, task_id, 1)
    for _ in range(9):
        await stage.pass_time(60)
    assert len(receiver.bodies) == 1
    await all_posted(stage, task_id, seconds=60)
    assert len(receiver.bodies) == 2


@pytest.mark.req("ENV-7")
async def test_what_nobody_takes_is_given_up_after_a_day_and_a_person_sees_it(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    receiver.answers = [status(500)] * 1000
    task_id = await stage.ask("hello", callback_url=receiver.url)
    await tried(stage, task_id, 1)
    began = stage.clock.monotonic()
    [callback] = await all_posted(stage, task_id, seconds=900)
    passed = stage.clock.monotonic() - began
    assert GIVE_UP_SECONDS <= passed <= GIVE_UP_SECONDS + 2 * 3600
    assert callback.state is ReplyState.FAILED
    assert callback.error == "given up after 24 h: it answered 500"
    assert 20 < callback.tries < 60, "about once an hour in the end"
    [said] = [one for one in stage.log if one["event"] == "callback.given_up"]
    assert said["task_id"] == task_id
    run = await stage.result(task_id)
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED), "it can be read all the same"


@pytest.mark.req("ENV-7")
async def test_who_says_that_nobody_is_there_any_more_is_not_asked_again(stage: Stage, receiver: Receiver):
    await stage.start(shouts)
    receiver.answers = [status(410)]
    task_id = await stage.ask("hello", callback_url=receiver.url)
    [callback] = await all_posted(stage, task_id)
    assert (callback.state, len(receiver.bodies)) == (ReplyState.FAILED, 1)


@pytest.mark.req("ENV-7")
async def test_what_one_receiver_does_not_take_holds_up_no_other_and_nobodys_answer(stage: Stage, receiver: Receiver):
    @rise.workflow("echo", channels=["telegram"])
    async def echo(turn: rise.Turn) -> None:
        await turn.reply(turn.text)

    await stage.start(shouts, echo)
    receiver.answers = [status(500)] * 3
    refused = [await stage.ask("no", key=f"no {number}", callback_url=receiver.url) for number in range(3)]
    for task_id in refused:
        await tried(stage, task_id, 1)
    taken = await stage.ask("yes", key="yes", callback_url=receiver.url)
    await stage.write("hello")
    await all_posted(stage, taken)
    assert await stage.said(1) == ["hello"]
    assert len(receiver.bodies) == 4

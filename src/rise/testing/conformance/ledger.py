"""What every ledger promises, executable.

class TestMyLedger(LedgerConformance):
    @pytest.fixture
    async def stage(self, tmp_path): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import pytest

from rise.envelope import (
    Call,
    LaneKey,
    Outcome,
    Progress,
    ReplyId,
    RunId,
    Status,
    Task,
    TaskId,
    callback_id_of,
    forgotten_head,
    notice_id_of,
    reply_id_of,
    run_id_of,
    unreadable_head,
)
from rise.errors import ClaimLost
from rise.ledger.kept import ATTEMPTS_KEPT, TURN_CHARS_MAX
from rise.ledger.port import (
    URGENT_CHATS,
    Again,
    Attempt,
    Delivered,
    Failed,
    HeldUnknown,
    HistoryLine,
    Ledger,
    Office,
    Operation,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    RunEnded,
    RunResult,
    SendEnding,
    Sent,
    count_tries,
)
from rise.testing.conformance.queue import delivery

ANSWERED: Final = RunResult(
    outcome=Outcome.ANSWERED, value={"text": "hello"}, workflow_id="greeter", workflow_version=3
)


class LedgerStage(Protocol):
    """A ledger, and what surrounds it."""

    ledger: Ledger
    history_kept: int
    """Turns kept per chat."""

    async def another(self) -> Ledger:
        """The same store, as another process sees it."""
        ...

    def pass_time(self, seconds: float) -> None: ...

    async def spoil_call(self, reply_id: ReplyId) -> None:
        """Let a reply's call be as a damaged disk or a newer version leaves it: nobody here can read it."""
        ...

    async def spoil_result(self, run_id: RunId) -> None:
        """The same with what a run came to."""
        ...

    async def spoil_head(self, run_id: RunId) -> None:
        """The same with the head of its task."""
        ...

    async def overwrite_words(self, task_id: TaskId, *, kind: str, state: str, status: str, outcome: str) -> None:
        """Of a task's replies and run, as a newer version may have said it."""
        ...


def task(number: int = 1, *, chat: str = "1", generation: int = 0, raw: bytes = b'{"n":1}') -> Task:
    head = delivery(number, chat=chat, raw=raw).head
    return Task(head, raw, Progress(status=Status.PROCESSING, generation=generation))


def _with_head(of: Task, **fields: Any) -> Task:
    return msgspec.structs.replace(of, head=msgspec.structs.replace(of.head, **fields))


def task_elsewhere(number: int, *, account: str = "7", channel: str = "telegram") -> Task:
    """Of a chat with the same name as that of `task`."""
    of = delivery(number, account=account, channel=channel)
    return Task(of.head, of.raw, Progress(status=Status.PROCESSING))


def _stand_in(number: int, lane: str, *, channel: str = "telegram", account: str = "7") -> Task:
    """What a newer version wrote, as a queue of this one gives it to whoever drops it."""
    of = task(number)
    head = unreadable_head(
        of.task_id, channel=channel, account=account, lane=LaneKey(lane), order=of.head.order, accepted_at_ms=1
    )
    return Task(head, of.raw, of.progress)


def chunks(of: Task, count: int = 1, *, chat: str | None = None) -> list[Reply]:
    """The reply to a task, in so many calls."""
    return [
        Reply(
            reply_id=reply_id_of(of.run_id, chunk),
            run_id=of.run_id,
            task_id=of.task_id,
            channel=of.head.channel,
            account=of.head.account,
            chat_id=chat or of.head.chat_id or "",
            call=Call("sendMessage", {"text": f"{of.head.order.seq}.{chunk}"}, f"{of.head.order.seq}.{chunk}"),
            workflow_id="greeter",
            accepted_at_ms=of.head.accepted_at_ms,
        )
        for chunk in range(count)
    ]


def notice(of: Task, cause: str) -> Reply:
    [reply] = chunks(of)
    return msgspec.structs.replace(
        reply,
        reply_id=notice_id_of(of.task_id, cause),
        kind=ReplyKind.NOTICE,
        call=Call("sendMessage", {"text": cause}, cause),
    )


def callback(of: Task, occasion: str = "ended") -> Reply:
    """What becomes of the task, for whoever asked to be called."""
    return Reply(
        reply_id=callback_id_of(of.run_id, occasion),
        run_id=of.run_id,
        task_id=of.task_id,
        channel="callback",
        account="default",
        chat_id=of.task_id,
        call=Call("callback", {"url": "https://shop.example/"}, occasion),
        kind=ReplyKind.CALLBACK,
        accepted_at_ms=of.head.accepted_at_ms,
        deadline_at_ms=of.head.accepted_at_ms + 86_400_000,
    )


def callback_saying(of: Task, text: str) -> Reply:
    """The same, of the same id, in other words."""
    return msgspec.structs.replace(callback(of), call=Call("callback", {"url": "https://shop.example/"}, text))


def numbered(attempt: Attempt, number: int) -> Attempt:
    """As the ledger has it."""
    return msgspec.structs.replace(attempt, number=number)


async def answer(ledger: Ledger, of: Task, count: int = 1) -> list[Reply]:
    """Save a result with a reply of so many chunks."""
    replies = chunks(of, count)
    await ledger.save_result(of, ANSWERED, replies, [], deliver=True)
    return replies


async def say(ledger: Ledger, number: int, chat: str) -> None:
    """Save a result that says nothing, to a message that is remembered."""
    turns = [HistoryLine(role="user", text=f"q{number}", at_ms=number)]
    silent = RunResult(outcome=Outcome.SILENT)
    await ledger.save_result(task(number, chat=chat), silent, [], turns, deliver=True)


async def take_one(ledger: Ledger, fence: int) -> Reply:
    [reply] = await ledger.outbox_take(fence, limit=10)
    return reply


async def send(ledger: Ledger, fence: int, reply: Reply, ending: SendEnding) -> Reply | None:
    """Send one reply, let the call end like that, and return the chat's next."""
    await ledger.outbox_sending(fence, reply)
    return (await ledger.outbox_record(fence, reply, ending)).next


async def send_everything(ledger: Ledger, fence: int) -> list[str]:
    """Texts in the order of sending."""
    sent = []
    while replies := await ledger.outbox_take(fence, limit=1):
        reply: Reply | None = replies[0]
        while reply is not None:
            sent.append(reply.call.text)
            reply = await send(ledger, fence, reply, Sent("m"))
    return sent


async def states(ledger: Ledger, run_id: RunId) -> list[str]:
    return [str(reply.state) for reply in await ledger.replies(run_id=run_id)]


class LedgerConformance:
    """Every promise of `rise.ledger.port.Ledger`."""

    @pytest.fixture
    async def stage(self) -> LedgerStage:
        raise NotImplementedError("a backend's suite says how to make one")

    @pytest.fixture
    def ledger(self, stage: LedgerStage) -> Ledger:
        return stage.ledger

    # --- results ---

    @pytest.mark.req("WRK-4", "OUT-1")
    async def test_result_and_replies_are_saved_in_one_step(self, ledger: Ledger) -> None:
        run = await ledger.save_result(task(), ANSWERED, chunks(task(), 2), [], deliver=True)
        assert (run.task_id, run.generation, run.status) == (task().task_id, 0, Status.REPLYING)
        assert (run.outcome, run.result) == (Outcome.ANSWERED, {"text": "hello"})
        assert (run.workflow_id, run.workflow_version) == ("greeter", 3)
        assert run.finished_at_ms is None
        assert await ledger.run(task().run_id) == run
        assert await states(ledger, task().run_id) == ["ready", "ready"]

    @pytest.mark.failure("E2", "F1", "F4", "F11", "G8")
    async def test_the_first_result_of_a_run_stays(self, stage: LedgerStage) -> None:
        first = await stage.ledger.save_result(task(), ANSWERED, chunks(task()), [], deliver=True)
        other = RunResult(outcome=Outcome.SILENT, value="another")
        again = await (await stage.another()).save_result(task(), other, chunks(task(), 3), [], deliver=True)
        assert again == first
        assert len(await stage.ledger.replies(run_id=task().run_id)) == 1

    @pytest.mark.failure("F4")
    async def test_results_saved_at_the_same_moment_are_one(self, stage: LedgerStage) -> None:
        ledgers = [stage.ledger, await stage.another()]
        runs = await asyncio.gather(
            *(
                ledger.save_result(
                    task(), RunResult(outcome=Outcome.ANSWERED, value=n), chunks(task(), 2), [], deliver=True
                )
                for n, ledger in enumerate(ledgers * 10)
            )
        )
        assert len({run.result for run in runs}) == 1
        assert len(await stage.ledger.replies(run_id=task().run_id)) == 2

    async def test_a_result_without_replies_completes_the_run(self, ledger: Ledger) -> None:
        silent = RunResult(outcome=Outcome.SILENT)
        run = await ledger.save_result(task(), silent, [], [], deliver=True)
        assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.SILENT)
        assert run.finished_at_ms is not None

    async def test_replies_that_are_fetched_by_their_reader_complete_the_run(self, ledger: Ledger) -> None:
        run = await ledger.save_result(task(), ANSWERED, chunks(task(), 2), [], deliver=False)
        assert run.status is Status.COMPLETED
        fence = await ledger.outbox_open()
        assert await ledger.outbox_take(fence, limit=10) == []
        assert [reply.call.text for reply in await ledger.transcript("telegram", "7", "1", after=0, limit=10)] == [
            "1.0",
            "1.1",
        ]

    @pytest.mark.failure("F5", "B2")
    @pytest.mark.parametrize(
        "value", [None, 0, "", "\u2028 \x00 \ud800", {"$set": {"a.b": 2**63}, "": [1e300]}, ["x" * 100_000]]
    )
    async def test_any_result_that_json_has_can_be_kept(self, ledger: Ledger, value: Any) -> None:
        saved = await ledger.save_result(task(), RunResult(outcome=Outcome.SILENT, value=value), [], [], deliver=True)
        kept = await ledger.run(task().run_id)
        assert kept is not None
        assert kept.result == saved.result
        expected = value.replace("\ud800", "?") if isinstance(value, str) else value
        assert kept.result == expected

    @pytest.mark.failure("B2")
    async def test_text_that_no_encoding_has_does_not_stop_an_answer(self, ledger: Ledger) -> None:
        odd = "half a \ud83d"
        [reply] = chunks(task())
        reply = msgspec.structs.replace(reply, call=Call("sendMessage", {"text": odd}, odd))
        turns = [HistoryLine(role="user", text=odd, at_ms=1)]
        await ledger.save_result(task(), ANSWERED, [reply], turns, deliver=True)
        await ledger.add_attempt(task().run_id, Attempt(at_ms=1, error=odd, counted=True))
        await ledger.record_operation(Operation(at_ms=1, who="me", action="drop", target="t", why=odd))
        fence = await ledger.outbox_open()
        taken = await take_one(ledger, fence)
        assert taken.call.text.startswith("half a ")
        await send(ledger, fence, taken, Failed(odd))
        assert (await ledger.history("telegram", "7", "1", limit=1))[0].text.startswith("half a ")
        assert (await ledger.attempts(task().run_id))[0].error.startswith("half a ")
        dropped = await ledger.finish(task(2), Status.DROPPED, by="me", why=odd)
        assert (dropped.why or "").startswith("half a ")

    @pytest.mark.req("OPS-4")
    async def test_what_the_trace_of_a_reply_goes_on_from_is_kept_with_it(self, ledger: Ledger) -> None:
        trace_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        first, second = chunks(task(), count=2)
        first = msgspec.structs.replace(first, call=msgspec.structs.replace(first.call, trace_parent=trace_parent))
        await ledger.save_result(task(), ANSWERED, [first, second], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = await take_one(ledger, fence)
        assert taken.call.trace_parent == trace_parent
        following = await send(ledger, fence, taken, Sent())
        assert following is not None
        assert following.call.trace_parent is None

    @pytest.mark.failure("E11", "H8")
    async def test_a_dropped_task_never_answers(self, ledger: Ledger) -> None:
        dropped = await ledger.finish(task(), Status.DROPPED, by="ann", why="spam")
        late = await ledger.save_result(task(), ANSWERED, chunks(task()), [], deliver=True)
        assert late == dropped
        assert (late.status, late.outcome, late.by, late.why) == (Status.DROPPED, None, "ann", "spam")
        fence = await ledger.outbox_open()
        assert await ledger.outbox_take(fence, limit=10) == []

    async def test_dropping_takes_back_what_was_not_sent(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 3)
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), Sent("m1"))
        assert following is not None
        assert (await ledger.finish(task(), Status.DROPPED)).status is Status.DROPPED
        with pytest.raises(ClaimLost):
            await ledger.outbox_sending(fence, following)
        await ledger.outbox_release(fence, following, seconds=0)
        assert await ledger.outbox_take(fence, limit=10) == []
        assert await states(ledger, task().run_id) == ["sent", "failed", "failed"]

    @pytest.mark.failure("E11", "H8")
    @pytest.mark.parametrize(
        "ending", [Again(0.0, "429"), Resend("timeout"), HeldUnknown("timeout")], ids=lambda one: type(one).__name__
    )
    async def test_dropping_while_a_call_is_out_lets_it_not_be_repeated(
        self, ledger: Ledger, ending: SendEnding
    ) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, reply)
        await ledger.finish(task(), Status.DROPPED)
        delivered = await ledger.outbox_record(fence, reply, ending)
        assert (delivered.ended, delivered.next) == (None, None)
        assert await ledger.outbox_rearm(task().run_id) == 0
        assert await ledger.outbox_take(fence, limit=10) == []
        assert await states(ledger, task().run_id) == ["failed", "failed"]

    @pytest.mark.req("SUS-3", "OUT-1")
    @pytest.mark.failure("E11", "G4")
    @pytest.mark.parametrize(
        "ending", [HeldUnknown("timeout"), Resend("timeout", seconds=5.0)], ids=lambda one: type(one).__name__
    )
    async def test_of_what_was_perhaps_sent_it_is_never_said_that_it_was_not(
        self, ledger: Ledger, ending: SendEnding
    ) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        await send(ledger, fence, await take_one(ledger, fence), ending)
        await ledger.finish(task(), Status.DROPPED)
        perhaps, never = await ledger.replies(run_id=task().run_id)
        assert perhaps.error == "not sent again: the task was dropped"
        assert never.error == "not sent: the task was dropped"

    @pytest.mark.failure("E11")
    async def test_dropping_what_is_held_is_final(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 3)
        fence = await ledger.outbox_open()
        await send(ledger, fence, await take_one(ledger, fence), HeldUnknown("timeout"))
        await ledger.finish(task(), Status.DROPPED)
        assert await ledger.outbox_rearm(task().run_id) == 0
        assert await send_everything(ledger, fence) == []

    @pytest.mark.parametrize("status", [Status.COMPLETED, Status.EXPIRED, Status.DROPPED])
    async def test_finished_is_final(self, ledger: Ledger, status: Status) -> None:
        first = await ledger.finish(task(), status, Outcome.RATE_LIMITED if status is Status.COMPLETED else None)
        assert first.status is status
        for other in (Status.DROPPED, Status.EXPIRED, Status.COMPLETED):
            assert await ledger.finish(task(), other, by="bob", why="again") == first
        assert await ledger.run(task().run_id) == first

    @pytest.mark.req("ENV-3")
    async def test_each_generation_has_a_result_of_its_own(self, ledger: Ledger) -> None:
        first, second = task(), task(generation=1)
        await ledger.finish(first, Status.DROPPED)
        await answer(ledger, second)
        latest = await ledger.latest_run(first.task_id)
        assert latest is not None
        assert (latest.generation, latest.status) == (1, Status.REPLYING)
        assert await ledger.finished_among([first.task_id]) == {}
        archived = await ledger.archived(first.task_id)
        assert archived is not None
        assert archived.progress.generation == 1

    async def test_a_finished_task_is_kept_as_it_was(self, ledger: Ledger) -> None:
        raw = bytes(range(256)) * 4
        await ledger.finish(task(raw=raw), Status.DROPPED)
        kept = await ledger.archived(task().task_id)
        assert kept is not None
        assert (kept.head, kept.raw, kept.progress.status) == (task(raw=raw).head, raw, Status.DROPPED)

    @pytest.mark.req("SUS-3")
    @pytest.mark.failure("B14", "M4")
    async def test_a_finished_task_whose_head_cannot_be_read_is_kept_with_a_stand_in_for_it(
        self, stage: LedgerStage
    ) -> None:
        ledger, raw = stage.ledger, b"of tomorrow"
        named = _with_head(task(1, raw=raw), raw_is_unique=True)
        unnamed, sound = task(2, generation=3), task(3)
        for one in (named, unnamed, sound):
            await ledger.finish(one, Status.DROPPED)
        for spoilt in (named, unnamed):
            await stage.spoil_head(spoilt.run_id)
        for spoilt in (named, unnamed):
            kept, run = await ledger.archived(spoilt.task_id), await ledger.latest_run(spoilt.task_id)
            assert kept is not None
            assert run is not None
            assert kept.head.is_stand_in
            assert (kept.run_id, kept.raw, kept.progress.status) == (spoilt.run_id, spoilt.raw, Status.DROPPED)
            assert (kept.head.channel, kept.head.accepted_at_ms) == ("telegram", spoilt.head.accepted_at_ms)
            assert kept.head.fingerprint == run.fingerprint == spoilt.head.fingerprint, "so it is known again"
            assert "unreadable" in (kept.progress.error or ""), "and it says why"
            assert not run.is_of_former(kept.head)
        kept = await ledger.archived(sound.task_id)
        assert kept is not None
        assert (kept.head, kept.progress.error) == (sound.head, None)
        assert {ended.run.task_id for ended in await ledger.ended(limit=9) if ended.head is None} == {
            named.task_id,
            unnamed.task_id,
        }

    @pytest.mark.req("WRK-5", "SUS-3")
    @pytest.mark.failure("B14", "M4")
    async def test_a_task_of_whose_run_a_newer_version_says_more_is_kept_in_known_words(
        self, stage: LedgerStage
    ) -> None:
        ledger = stage.ledger
        await ledger.finish(task(1), Status.EXPIRED)
        await answer(ledger, task(2))
        for number, known in ((1, Status.COMPLETED), (2, Status.REPLYING)):
            of = task(number)
            await stage.overwrite_words(of.task_id, kind="edit", state="ready", status="delegated", outcome="applauded")
            kept, run = await ledger.archived(of.task_id), await ledger.latest_run(of.task_id)
            assert kept is not None
            assert run is not None
            assert (kept.head, kept.raw, kept.progress.status, run.status) == (of.head, of.raw, known, known)
            assert "newer version of Rise says of it" in (kept.progress.error or "")

    async def test_what_is_not_there_is_none(self, ledger: Ledger) -> None:
        assert await ledger.run(RunId("t_x.0")) is None
        assert await ledger.latest_run(TaskId("t_x")) is None
        assert await ledger.archived(TaskId("t_x")) is None
        assert await ledger.finished_among([]) == {}
        assert await ledger.replies(task_id=TaskId("t_x")) == []
        assert await ledger.history("telegram", "7", "1", limit=5) == []

    async def test_finished_among_names_only_the_finished(self, ledger: Ledger) -> None:
        tasks = [task(number) for number in range(1, 1200)]
        for one in tasks[:3]:
            await ledger.finish(one, Status.EXPIRED)
        await answer(ledger, tasks[3])
        finished = await ledger.finished_among([one.task_id for one in tasks])
        assert set(finished) == {one.task_id for one in tasks[:3]}

    async def test_any_number_of_tasks_can_be_asked_after(self, ledger: Ledger) -> None:
        ended = await ledger.finish(task(1), Status.EXPIRED)
        asked = [TaskId(f"t_{number}") for number in range(40_000)]
        assert await ledger.finished_among([*asked, task(1).task_id]) == {task(1).task_id: ended}

    @pytest.mark.failure("D12", "M4")
    async def test_a_result_that_cannot_be_read_hides_nothing_else(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        for number in (1, 2):
            await ledger.save_result(task(number), ANSWERED, chunks(task(number)), [], deliver=False)
        await stage.spoil_result(task(1).run_id)
        spoilt = await ledger.run(task(1).run_id)
        assert spoilt is not None
        assert (spoilt.status, spoilt.outcome, spoilt.result) == (Status.COMPLETED, Outcome.ANSWERED, None)
        assert spoilt.unreadable, "and it says why"
        finished = await ledger.finished_among([task(1).task_id, task(2).task_id])
        assert finished == {task(1).task_id: spoilt, task(2).task_id: await ledger.run(task(2).run_id)}
        assert finished[task(2).task_id].unreadable is None
        again = await ledger.save_result(task(1), RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
        assert again == spoilt, "it stays the first"

    @pytest.mark.req("WFL-3")
    @pytest.mark.failure("FU3")
    async def test_that_follow_ups_are_armed_stays_with_their_run(self, ledger: Ledger) -> None:
        await answer(ledger, task())
        await answer(ledger, task(generation=1))
        await ledger.note_armed(task().run_id)
        await ledger.note_armed(task(2).run_id)
        runs = [await ledger.run(run_id_of(task().task_id, generation)) for generation in (0, 1)]
        assert [run is not None and run.is_armed for run in runs] == [True, False]
        assert await ledger.run(task(2).run_id) is None

    @pytest.mark.req("SUS-3", "OUT-1")
    @pytest.mark.failure("G7")
    @pytest.mark.parametrize("is_dropped", [False, True])
    async def test_what_a_former_generation_still_had_to_send_never_goes_out_beside_the_new_ones(
        self, ledger: Ledger, is_dropped: bool
    ) -> None:
        former, new, other = task(1), task(1, generation=1), task(2, chat="2")
        await answer(ledger, former, count=2)
        await answer(ledger, other)
        fence = await ledger.outbox_open()
        [first, *_] = await ledger.outbox_take(fence, limit=1)
        await ledger.outbox_record(fence, first, HeldUnknown("no answer"))
        if is_dropped:
            await ledger.finish(new, Status.DROPPED)
        else:
            await answer(ledger, new)
        ended = await ledger.run(former.run_id)
        assert ended is not None
        assert (ended.status, ended.outcome, ended.why) == (Status.DROPPED, None, "run again as generation 1")
        assert await ledger.outbox_rearm(former.run_id) == 0
        assert sorted(await send_everything(ledger, fence)) == (["2.0"] if is_dropped else ["1.0", "2.0"])
        assert await states(ledger, former.run_id) == ["failed", "failed"]

    @pytest.mark.req("ENV-3")
    @pytest.mark.parametrize("is_unique", [False, True])
    @pytest.mark.parametrize("former_bytes", ["same", "other"])
    @pytest.mark.parametrize("earlier_ms", [0, 1])
    async def test_a_later_generation_ends_the_former_of_its_own_message_only(
        self, ledger: Ledger, earlier_ms: int, former_bytes: str, is_unique: bool
    ) -> None:
        """As long as a key is remembered, what comes under it is the same message; and the same bytes are for ever,
        if nothing else can have them."""
        former = _with_head(task(1), raw_is_unique=is_unique, raw_sha256=former_bytes)
        at_ms = former.head.accepted_at_ms + former.head.receipt_seconds * 1000 - earlier_ms
        new = _with_head(task(1, generation=1), raw_is_unique=is_unique, raw_sha256="same", accepted_at_ms=at_ms)
        is_same = bool(earlier_ms) or (is_unique and former_bytes == "same")
        status = Status.DROPPED if is_same else Status.REPLYING
        await answer(ledger, former)
        before = await ledger.run(former.run_id)
        assert before is not None
        assert before.is_of_former(new.head) is not is_same
        await answer(ledger, new)
        known = await ledger.run(former.run_id)
        assert known is not None
        assert known.status is status

    @pytest.mark.req("CHN-3", "WRK-4")
    @pytest.mark.failure("F1")
    @pytest.mark.parametrize("deliver", [False, True])
    async def test_what_goes_with_another_message_is_not_over_before_it_is_ended(
        self, ledger: Ledger, deliver: bool
    ) -> None:
        follower, merged = task(1), RunResult(outcome=Outcome.MERGED, value={"mergedInto": "t_leader"})
        await ledger.save_result(follower, merged, [], [], deliver=deliver)
        fence = await ledger.outbox_open()
        assert await ledger.outbox_take(fence, limit=10) == []
        saved = await ledger.run(follower.run_id)
        assert saved is not None
        assert (saved.status, saved.merged_into, saved.finished_at_ms) == (Status.REPLYING, "t_leader", None)
        assert await ledger.finished_among([follower.task_id]) == {}
        ended = await ledger.finish(follower, Status.COMPLETED, Outcome.MERGED)
        assert (ended.status, ended.merged_into) == (Status.COMPLETED, "t_leader")
        assert set(await ledger.finished_among([follower.task_id])) == {follower.task_id}

    @pytest.mark.req("CHN-3", "WRK-4")
    async def test_what_goes_with_another_message_may_be_dropped_or_run_anew_instead(self, ledger: Ledger) -> None:
        merged = RunResult(outcome=Outcome.MERGED, value={"mergedInto": "t_leader"})
        for number in (1, 2):
            await ledger.save_result(task(number), merged, [], [], deliver=True)
        dropped = await ledger.finish(task(1), Status.DROPPED, by="ada")
        assert (dropped.status, dropped.merged_into) == (Status.DROPPED, None)
        await answer(ledger, task(2, generation=1))
        former = await ledger.run(task(2).run_id)
        assert former is not None
        assert (former.status, former.why) == (Status.DROPPED, "run again as generation 1")

    @pytest.mark.req("WRK-5")
    @pytest.mark.failure("E2", "E9")
    async def test_words_of_a_newer_version_hide_nothing_else(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        for number in (1, 2):
            await answer(ledger, task(number, chat=str(number)))
        spoilt, sound = task(1).task_id, task(2).task_id
        await stage.overwrite_words(spoilt, kind="edit", state="ready", status="delegated", outcome="applauded")
        run = await ledger.latest_run(spoilt)
        assert run is not None
        assert (run.status, run.outcome, bool(run.unreadable)) == (Status.REPLYING, None, True)
        fence = await ledger.outbox_open()
        taken = {reply.task_id: reply for reply in await ledger.outbox_take(fence, limit=10)}
        assert (bool(taken[spoilt].unreadable), taken[sound].unreadable) == (True, None)
        await send(ledger, fence, taken[sound], Sent("1"))
        assert (await ledger.outbox_record(fence, taken[spoilt], HeldUnknown("not for us"))).next is None
        await stage.overwrite_words(spoilt, kind="edit", state="paused", status="delegated", outcome="applauded")
        [held] = await ledger.replies(task_id=spoilt)
        assert (held.state, bool(held.unreadable)) == (ReplyState.UNKNOWN, True)
        assert set(await ledger.finished_among([spoilt, sound])) == {sound}

    @pytest.mark.failure("D12")
    async def test_the_first_value_of_a_step_stays(self, stage: LedgerStage) -> None:
        run_id = task().run_id
        assert await stage.ledger.save_step(run_id, "llm", b"paid for") == b"paid for"
        assert await (await stage.another()).save_step(run_id, "llm", b"again") == b"paid for"
        assert await stage.ledger.save_step(run_id, "tool", b"") == b""
        assert await stage.ledger.steps(run_id) == {"llm": b"paid for", "tool": b""}
        assert await stage.ledger.steps(run_id_of(task().task_id, 1)) == {}

    async def test_steps_are_forgotten_when_the_run_has_ended(self, ledger: Ledger) -> None:
        for number, ending in enumerate(("silent", "finish", "delivered"), start=1):
            one = task(number)
            await ledger.save_step(one.run_id, "llm", b"1")
            if ending == "silent":
                await ledger.save_result(one, RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
            elif ending == "finish":
                await ledger.finish(one, Status.EXPIRED)
            else:
                await answer(ledger, one)
                assert await ledger.steps(one.run_id) == {"llm": b"1"}
                fence = await ledger.outbox_open()
                await send_everything(ledger, fence)
            assert await ledger.steps(one.run_id) == {}, ending

    @pytest.mark.req("SUS-3")
    async def test_tries_that_failed_are_remembered_in_order(self, ledger: Ledger) -> None:
        tries = [Attempt(at_ms=5, error="boom", counted=True), Attempt(at_ms=5, error="down", counted=False)]
        for one in tries:
            await ledger.add_attempt(task().run_id, one)
        await ledger.add_attempt(task(2).run_id, tries[0])
        assert await ledger.attempts(task().run_id) == [numbered(tries[0], 1), numbered(tries[1], 2)]
        assert await ledger.attempts(task(2).run_id) == [numbered(tries[0], 1)]

    @pytest.mark.req("SUS-3")
    async def test_of_many_tries_the_last_are_kept_and_all_are_counted(self, ledger: Ledger) -> None:
        """A message may wait for days for what is away."""
        count = ATTEMPTS_KEPT + 3
        tries = [Attempt(at_ms=at, error="down", counted=False) for at in range(count)]
        for one in tries:
            await ledger.add_attempt(task().run_id, one)
        kept = await ledger.attempts(task().run_id)
        assert kept == [numbered(one, at + 1) for at, one in enumerate(tries)][3:]
        assert count_tries(kept) == count
        assert count_tries(await ledger.attempts(task(2).run_id)) == 0

    # --- history ---

    async def test_history_is_oldest_first_and_of_one_chat(self, ledger: Ledger) -> None:
        for number, chat in ((1, "a"), (2, "b"), (3, "a")):
            turns = [
                HistoryLine(role="user", text=f"q{number}", at_ms=number),
                HistoryLine(role="assistant", text=f"a{number}", at_ms=number, run_id=task(number).run_id),
            ]
            await ledger.save_result(
                task(number, chat=chat), RunResult(outcome=Outcome.SILENT), [], turns, deliver=True
            )
        assert [turn.text for turn in await ledger.history("telegram", "7", "a", limit=10)] == ["q1", "a1", "q3", "a3"]
        assert [turn.text for turn in await ledger.history("telegram", "7", "a", limit=2)] == ["q3", "a3"]
        assert [turn.text for turn in await ledger.history("telegram", "8", "a", limit=10)] == []

    async def test_a_result_saved_twice_is_in_history_once(self, ledger: Ledger) -> None:
        for _ in range(2):
            turns = [HistoryLine(role="user", text="q", at_ms=1)]
            await ledger.save_result(task(), RunResult(outcome=Outcome.SILENT), [], turns, deliver=True)
        assert len(await ledger.history("telegram", "7", "1", limit=10)) == 1

    async def test_history_is_bounded(self, stage: LedgerStage) -> None:
        for number in range(1, stage.history_kept + 11):
            turns = [HistoryLine(role="user", text=str(number), at_ms=number)]
            await stage.ledger.save_result(task(number), RunResult(outcome=Outcome.SILENT), [], turns, deliver=True)
        kept = await stage.ledger.history("telegram", "7", "1", limit=10_000)
        assert [turn.text for turn in kept] == [str(n) for n in range(11, stage.history_kept + 11)]

    async def test_of_a_long_turn_the_beginning_is_kept(self, ledger: Ledger) -> None:
        """As many turns as are kept fit into one record of any store, whatever their characters."""
        fits, long = "\N{GRINNING FACE}" * TURN_CHARS_MAX, "\N{GRINNING FACE}" * (TURN_CHARS_MAX + 1)
        turns = [HistoryLine(role=role, text=text, at_ms=1) for role, text in (("user", fits), ("assistant", long))]
        await ledger.save_result(task(), RunResult(outcome=Outcome.SILENT), [], turns, deliver=True)
        kept = await ledger.history("telegram", "7", "1", limit=10)
        assert [turn.text for turn in kept] == [fits, long[: TURN_CHARS_MAX - 1] + "…"]

    @pytest.mark.parametrize("elsewhere", [{"account": "8"}, {"channel": "another"}])
    async def test_history_is_of_one_account_and_channel(self, stage: LedgerStage, elsewhere: dict[str, str]) -> None:
        here, there, again = task(1), task_elsewhere(2, **elsewhere), task_elsewhere(3, **elsewhere)
        for of, count in ((there, stage.history_kept), (here, stage.history_kept), (again, 1)):
            turns = [HistoryLine(role="user", text=str(of.task_id), at_ms=n) for n in range(count)]
            await stage.ledger.save_result(of, RunResult(outcome=Outcome.SILENT), [], turns, deliver=True)
        ours, theirs = [here.task_id] * stage.history_kept, [there.task_id] * (stage.history_kept - 1) + [again.task_id]
        for of, texts in ((here, ours), (there, theirs)):
            kept = await stage.ledger.history(of.head.channel, of.head.account, "1", limit=10_000)
            assert [turn.text for turn in kept] == texts

    # --- outbox: order ---

    @pytest.mark.req("OUT-1")
    @pytest.mark.parametrize("elsewhere", [{"account": "8"}, {"channel": "another"}])
    async def test_a_chat_of_the_same_name_elsewhere_is_another(
        self, ledger: Ledger, elsewhere: dict[str, str]
    ) -> None:
        here, there = task(1), task_elsewhere(2, **elsewhere)
        for of in (here, there):
            await answer(ledger, of, 2)
        fence = await ledger.outbox_open()
        ours, theirs = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.call.text)
        assert (ours.call.text, theirs.call.text) == ("1.0", "2.0")
        for of in (here, there):
            shown = await ledger.transcript(of.head.channel, of.head.account, "1", after=0, limit=10)
            assert {reply.task_id for reply in shown} == {of.task_id}
        await send(ledger, fence, ours, Again(60.0, "moved", chat_id="9"))
        following = await send(ledger, fence, theirs, Sent())
        assert following is not None
        assert (following.chat_id, following.call.text) == ("1", "2.1")
        assert await send(ledger, fence, following, Sent()) is None
        await answer(ledger, task_elsewhere(3, **elsewhere))
        [reply] = await ledger.outbox_take(fence, limit=10)
        assert (reply.chat_id, reply.call.text) == ("1", "3.0")

    @pytest.mark.req("OUT-1")
    @pytest.mark.failure("G1", "G7")
    async def test_a_chats_replies_go_out_in_the_order_of_saving(self, ledger: Ledger) -> None:
        await answer(ledger, task(2), 3)
        await answer(ledger, task(1), 2)
        await ledger.add_notice(notice(task(3), "queued"))
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["2.0", "2.1", "2.2", "1.0", "1.1", "queued"]

    async def test_one_reply_per_chat_is_out_at_a_time(self, ledger: Ledger) -> None:
        await answer(ledger, task(1, chat="a"), 2)
        await answer(ledger, task(2, chat="b"), 2)
        fence = await ledger.outbox_open()
        taken = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.chat_id)
        assert [reply.call.text for reply in taken] == ["1.0", "2.0"]
        await answer(ledger, task(3, chat="a"))
        await ledger.add_notice(notice(task(3, chat="a"), "queued"))
        assert await ledger.outbox_take(fence, limit=10) == []
        following = await send(ledger, fence, taken[0], Sent("m"))
        assert following is not None
        assert following.call.text == "1.1"
        assert await ledger.outbox_take(fence, limit=10) == []

    async def test_no_more_chats_are_taken_than_asked_for(self, ledger: Ledger) -> None:
        for number in range(1, 6):
            await answer(ledger, task(number, chat=str(number)))
        fence = await ledger.outbox_open()
        assert await ledger.outbox_take(fence, limit=0) == []
        assert len(await ledger.outbox_take(fence, limit=2)) == 2
        assert len(await ledger.outbox_take(fence, limit=10)) == 3

    @pytest.mark.req("TGM-3")
    async def test_what_is_urgent_comes_before_all_that_waits_and_has_places_of_its_own(
        self, stage: LedgerStage
    ) -> None:
        ledger = stage.ledger
        for number in range(1, 4):
            await answer(ledger, task(number, chat=str(number)))
        stage.pass_time(5)
        for number in range(4, 8):
            await ledger.save_result(
                task(number), ANSWERED, chunks(task(number), chat=f"{URGENT_CHATS}{number}"), [], deliver=True
            )
        fence = await ledger.outbox_open()

        async def taken(*, limit: int, urgent_limit: int = 0) -> list[str]:
            replies = await ledger.outbox_take(fence, limit=limit, urgent_limit=urgent_limit)
            return [reply.chat_id for reply in replies]

        assert await taken(limit=1) == ["urgent:4"]
        assert await taken(limit=-1, urgent_limit=1) == ["urgent:5"]
        assert await taken(limit=2, urgent_limit=1) == ["urgent:6", "urgent:7"]
        assert await taken(limit=0, urgent_limit=5) == []
        assert len(await taken(limit=2, urgent_limit=5)) == 2

    @pytest.mark.failure("G10")
    async def test_an_account_that_pauses_does_not_hold_up_the_others(self, ledger: Ledger) -> None:
        for number in range(1, 5):
            await answer(ledger, task(number, chat=str(number)))
        other = task(9, chat="9")
        [reply] = chunks(other)
        await ledger.save_result(other, ANSWERED, [msgspec.structs.replace(reply, account="8")], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = await ledger.outbox_take(fence, limit=1, accounts_excluded=[("telegram", "7")])
        assert [reply.account for reply in taken] == ["8"]
        assert len(await ledger.outbox_take(fence, limit=10)) == 4

    @pytest.mark.req("TGM-3", "OUT-2")
    @pytest.mark.failure("G5", "G17")
    async def test_of_an_account_that_pauses_for_its_limit_only_what_is_urgent_is_handed_out(
        self, ledger: Ledger
    ) -> None:
        await answer(ledger, task(1, chat="1"))
        urgent = chunks(task(2), chat=f"{URGENT_CHATS}2")
        await ledger.save_result(task(2), ANSWERED, urgent, [], deliver=True)
        fence, account = await ledger.outbox_open(), [("telegram", "7")]
        assert await ledger.outbox_take(fence, limit=10, accounts_excluded=account, accounts_urgent_only=account) == []
        [taken] = await ledger.outbox_take(fence, limit=10, accounts_urgent_only=account)
        assert taken.chat_id == "urgent:2"
        assert await ledger.outbox_take(fence, limit=10, accounts_urgent_only=account) == []
        assert [reply.chat_id for reply in await ledger.outbox_take(fence, limit=10)] == ["1"]

    async def test_a_reply_carries_everything_the_sender_needs(self, ledger: Ledger) -> None:
        [meant] = chunks(task())
        meant = msgspec.structs.replace(meant, deadline_at_ms=123_456)
        await ledger.save_result(task(), ANSWERED, [meant], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = await take_one(ledger, fence)
        assert msgspec.structs.replace(taken, sequence=0, claim=0) == meant

    @pytest.mark.failure("D12", "M4")
    async def test_a_call_that_cannot_be_read_is_handed_out_as_such_and_stops_nobody(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        replies = await answer(ledger, task(1, chat="a"), 2)
        await answer(ledger, task(2, chat="b"), 2)
        await stage.spoil_call(replies[0].reply_id)
        fence = await ledger.outbox_open()
        spoilt, sound = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.chat_id)
        assert (spoilt.reply_id, sound.call.text) == (replies[0].reply_id, "2.0")
        assert (bool(spoilt.unreadable), spoilt.call.text, sound.unreadable) == (True, "", None)
        assert [bool(one.unreadable) for one in await ledger.replies(task_id=task(1).task_id)] == [True, False]
        shown = await ledger.transcript("telegram", "7", "a", after=0, limit=10)
        assert [bool(one.unreadable) for one in shown] == [True, False]

    @pytest.mark.failure("D12", "M4")
    async def test_a_call_that_cannot_be_read_waits_as_it_is_for_who_can(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        replies = await answer(ledger, task(), 2)
        await answer(ledger, task(2))
        await stage.spoil_call(replies[0].reply_id)
        fence = await ledger.outbox_open()
        spoilt = await take_one(ledger, fence)
        following = (await ledger.outbox_record(fence, spoilt, HeldUnknown(spoilt.unreadable or ""))).next
        assert following is not None
        assert following.call.text == "2.0"
        assert await states(ledger, task().run_id) == ["unknown", "ready"]
        assert await send(ledger, fence, following, Sent()) is None
        assert await ledger.outbox_rearm(task().run_id) == 2
        assert (await take_one(ledger, fence)).unreadable

    # --- outbox: endings ---

    @pytest.mark.req("OUT-1")
    async def test_the_run_ends_with_its_last_reply_and_not_before(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, first)
        delivered = await ledger.outbox_record(fence, first, Sent("m1"))
        assert delivered.ended is None
        assert delivered.next is not None
        run = await ledger.run(task().run_id)
        assert run is not None
        assert run.status is Status.REPLYING
        await ledger.outbox_sending(fence, delivered.next)
        last = await ledger.outbox_record(fence, delivered.next, Sent("m2"))
        assert last.ended == RunEnded(task().task_id, 0, Outcome.ANSWERED)
        assert last.next is None
        run = await ledger.run(task().run_id)
        assert run is not None
        assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED)
        assert run.finished_at_ms is not None
        assert [reply.platform_ref for reply in await ledger.replies(task_id=task().task_id)] == ["m1", "m2"]

    @pytest.mark.failure("C13")
    @pytest.mark.parametrize(
        "ending",
        [
            Sent("m1"),
            Failed("refused"),
            Failed("blocked", chat_gone=True),
            Again(0.0, "entities", call=Call("sendMessage", {"text": "plain"}, "plain")),
            Again(5.0, "429"),
            Again(0.0, "moved", chat_id="new"),
            Resend("timeout"),
            Resend("timeout", seconds=5.0),
            HeldUnknown("timeout"),
        ],
        ids=lambda one: type(one).__name__,
    )
    @pytest.mark.parametrize("count", [1, 2])
    async def test_recording_an_ending_twice_changes_nothing_more(
        self, ledger: Ledger, ending: SendEnding, count: int
    ) -> None:
        await answer(ledger, task(), count)
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, first)
        once = await ledger.outbox_record(fence, first, ending)
        replies, depth = await ledger.replies(run_id=task().run_id), await ledger.outbox_depth()
        for _ in range(2):
            assert await ledger.outbox_record(fence, first, ending) == once
            assert await ledger.replies(run_id=task().run_id) == replies
        assert await ledger.outbox_depth() == depth

    @pytest.mark.failure("C13", "G8")
    async def test_what_is_recorded_again_late_takes_nothing_from_who_sends_to_the_chat_now(
        self, stage: LedgerStage
    ) -> None:
        ledger = stage.ledger
        await answer(ledger, task(1))
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, first)
        once = await ledger.outbox_record(fence, first, Sent())
        assert once.next is None
        await answer(ledger, task(2))
        now_out = await take_one(ledger, fence)
        assert await ledger.outbox_record(fence, first, Sent()) == once
        await ledger.outbox_release(fence, first, seconds=0)
        assert await ledger.outbox_take(fence, limit=10) == []
        await send(ledger, fence, now_out, Again(5.0, "429"))
        stage.pass_time(6)
        again = await take_one(ledger, fence)
        assert await ledger.outbox_record(fence, now_out, Again(5.0, "429")) == Delivered(None, None)
        assert await send(ledger, fence, again, Again(0.0, "429")) is not None
        assert [reply.tries for reply in await ledger.replies(run_id=task(2).run_id)] == [2]

    @pytest.mark.failure("C13", "G8")
    async def test_letting_go_again_late_lets_go_of_nothing(self, ledger: Ledger) -> None:
        await answer(ledger, task(1))
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        await ledger.outbox_release(fence, first, seconds=0)
        await take_one(ledger, fence)
        await ledger.outbox_release(fence, first, seconds=0)
        assert await ledger.outbox_take(fence, limit=10) == []

    @pytest.mark.failure("G5")
    async def test_what_was_certainly_not_sent_is_sent_again_after_a_pause(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        assert await send(ledger, fence, await take_one(ledger, fence), Again(30.0, "429")) is None
        await answer(ledger, task(2))
        stage.pass_time(29)
        assert await ledger.outbox_take(fence, limit=10) == [], "what comes later does not overtake"
        stage.pass_time(2)
        again = await take_one(ledger, fence)
        assert (again.call.text, again.tries, again.resends, again.error) == ("1.0", 1, 0, "429")
        assert again.state is ReplyState.READY

    async def test_sending_again_may_be_in_other_words(self, ledger: Ledger) -> None:
        await answer(ledger, task())
        fence = await ledger.outbox_open()
        plain = Call("sendMessage", {"text": "plain"}, "plain")
        following = await send(ledger, fence, await take_one(ledger, fence), Again(0.0, "entities", call=plain))
        assert following is not None
        assert following.call == plain

    @pytest.mark.failure("G9")
    async def test_when_the_chat_is_gone_the_rest_is_not_tried_and_the_run_ends(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 3)
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, reply)
        delivered = await ledger.outbox_record(fence, reply, Failed("blocked", chat_gone=True))
        assert delivered.ended == RunEnded(task().task_id, 0, Outcome.UNDELIVERABLE)
        assert await states(ledger, task().run_id) == ["failed"] * 3
        assert delivered.next is not None
        assert delivered.next.run_id == task(2).run_id, "other runs are tried for themselves"

    async def test_a_chunk_that_is_refused_does_not_stop_the_others(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), Failed("too long"))
        assert following is not None
        await ledger.outbox_sending(fence, following)
        ended = (await ledger.outbox_record(fence, following, Sent())).ended
        assert ended is not None
        assert ended.outcome is Outcome.UNDELIVERABLE, "half an answer is none"

    @pytest.mark.req("OUT-2", "OUT-3")
    @pytest.mark.failure("G7")
    async def test_of_a_text_of_which_a_part_is_refused_the_rest_is_not_tried(self, ledger: Ledger) -> None:
        replies = [
            msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, continues=number in (1, 2, 4)))
            for number, one in enumerate(chunks(task(), 6))
        ]
        await ledger.save_result(task(), ANSWERED, replies, [], deliver=True)
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        second = await send(ledger, fence, await take_one(ledger, fence), Sent())
        assert second is not None
        following = await send(ledger, fence, second, Failed("too rude"))
        assert await states(ledger, task().run_id) == ["sent", "failed", "failed", "ready", "ready", "ready"]
        went = []
        while following is not None:
            went.append(following.call.text)
            following = await send(ledger, fence, following, Sent())
        assert went == ["1.3", "1.4", "1.5", "2.0"]
        run = await ledger.run(task().run_id)
        assert run is not None
        assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.UNDELIVERABLE)

    @pytest.mark.req("TGM-3")
    async def test_a_run_all_of_whose_replies_came_too_late_has_expired(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        late = Failed("too late", too_late=True)
        last = (await ledger.outbox_record(fence, await take_one(ledger, fence), late)).next
        assert last is not None
        ended = RunEnded(task().task_id, 0, None, Status.EXPIRED)
        assert (await ledger.outbox_record(fence, last, late)).ended == ended
        assert (await ledger.outbox_record(fence, last, late)).ended == ended, "who asks again hears it again"
        run = await ledger.run(task().run_id)
        assert run is not None
        assert (run.status, run.outcome, run.finished_at_ms is None) == (Status.EXPIRED, None, False)
        assert await ledger.finished_counts() == {"expired": 1}

    @pytest.mark.req("TGM-3")
    @pytest.mark.parametrize("other", [Sent(), Failed("refused")])
    async def test_a_run_of_whose_replies_only_some_came_too_late_was_not_delivered(
        self, ledger: Ledger, other: SendEnding
    ) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        last = (await ledger.outbox_record(fence, first, Failed("too late", too_late=True))).next
        assert last is not None
        ended = (await ledger.outbox_record(fence, last, other)).ended
        assert ended == RunEnded(task().task_id, 0, Outcome.UNDELIVERABLE)

    async def test_an_answer_that_broke_off_was_not_delivered(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), Sent())
        assert following is not None
        await ledger.outbox_sending(fence, following)
        ended = (await ledger.outbox_record(fence, following, Failed("refused"))).ended
        assert ended is not None
        assert ended.outcome is Outcome.UNDELIVERABLE

    @pytest.mark.failure("G3", "G4", "G6")
    async def test_sending_what_was_perhaps_sent_is_counted(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        await answer(ledger, task())
        fence = await ledger.outbox_open()
        marked = Call("sendMessage", {"text": "↻ 1.0"}, "↻ 1.0")
        following = await send(ledger, fence, await take_one(ledger, fence), Resend("timeout", call=marked))
        assert following is not None
        assert (following.call, following.resends, following.tries) == (marked, 1, 0)
        assert await send(ledger, fence, following, Resend("timeout", seconds=5.0)) is None
        stage.pass_time(6)
        assert (await take_one(ledger, fence)).resends == 2
        assert (await ledger.outbox_depth()).resent == 2

    @pytest.mark.failure("G4", "G7")
    async def test_what_is_held_holds_the_rest_of_its_run_and_nothing_else(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 3)
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), HeldUnknown("timeout"))
        assert following is not None
        assert following.call.text == "2.0"
        assert await send(ledger, fence, following, Sent()) is None
        assert await states(ledger, task().run_id) == ["unknown", "ready", "ready"]
        depth = await ledger.outbox_depth()
        assert depth.unknown == 1
        run = await ledger.run(task().run_id)
        assert run is not None
        assert run.status is Status.REPLYING

        assert await ledger.outbox_rearm(task().run_id) == 3
        assert await ledger.outbox_rearm(task().run_id) == 0
        assert (await ledger.outbox_depth()).resent == 1
        assert await send_everything(ledger, fence) == ["1.0", "1.1", "1.2"]
        assert [reply.resends for reply in await ledger.replies(run_id=task().run_id)] == [1, 0, 0]

    @pytest.mark.failure("G4", "G7")
    async def test_what_comes_before_a_reply_that_is_held_does_not_wait_with_it(self, ledger: Ledger) -> None:
        before, urgent, after = chunks(task(), 3)
        urgent = msgspec.structs.replace(urgent, chat_id="urgent")
        await answer(ledger, task(2))
        await ledger.save_result(task(), ANSWERED, [before, urgent, after], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = {reply.chat_id: reply for reply in await ledger.outbox_take(fence, limit=10)}
        await send(ledger, fence, taken["urgent"], HeldUnknown("timeout"))
        following = await send(ledger, fence, taken["1"], Sent())
        assert following is not None
        assert following.call.text == "1.0"
        assert await send(ledger, fence, following, Sent()) is None
        assert await states(ledger, task().run_id) == ["sent", "unknown", "ready"]
        assert await ledger.outbox_rearm(task().run_id) == 2
        assert sorted(await send_everything(ledger, fence)) == ["1.1", "1.2"]

    @pytest.mark.failure("G8")
    async def test_what_is_released_from_hold_waits_while_its_chat_is_sent_to(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        out = await send(ledger, fence, await take_one(ledger, fence), HeldUnknown("timeout"))
        assert out is not None
        await ledger.outbox_sending(fence, out)
        await ledger.outbox_rearm(task().run_id)
        assert await ledger.outbox_take(fence, limit=10) == []
        following = (await ledger.outbox_record(fence, out, Sent())).next
        assert following is not None
        assert following.call.text == "1.0"

    @pytest.mark.failure("G5")
    async def test_what_is_released_from_hold_waits_while_its_chat_pauses(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        await answer(ledger, task())
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        out = await send(ledger, fence, await take_one(ledger, fence), HeldUnknown("timeout"))
        assert out is not None
        await send(ledger, fence, out, Again(30.0, "429"))
        await ledger.outbox_rearm(task().run_id)
        assert await ledger.outbox_take(fence, limit=10) == []
        stage.pass_time(31)
        assert await send_everything(ledger, fence) == ["1.0", "2.0"]

    @pytest.mark.failure("A13")
    async def test_when_a_chat_moves_everything_that_waits_goes_to_the_new_one(self, ledger: Ledger) -> None:
        await answer(ledger, task(1, chat="old"), 2)
        await answer(ledger, task(2, chat="old"))
        fence = await ledger.outbox_open()
        await send(ledger, fence, await take_one(ledger, fence), Again(0.0, "moved", chat_id="new"))
        await answer(ledger, task(3, chat="old"))
        await answer(ledger, task(4, chat="new"))
        moved = await take_one(ledger, fence)
        assert (moved.chat_id, moved.call.text) == ("new", "1.0")
        following = await send(ledger, fence, moved, Sent())
        assert following is not None
        assert following.chat_id == "new"
        await send(ledger, fence, following, Sent())
        assert await ledger.outbox_take(fence, limit=10) == []
        assert {reply.chat_id for reply in await ledger.replies(run_id=task(3).run_id)} == {"new"}

    @pytest.mark.failure("A13", "G8")
    async def test_a_chat_that_moves_to_one_that_is_sent_to_waits_for_it(self, ledger: Ledger) -> None:
        await answer(ledger, task(1, chat="old"))
        await answer(ledger, task(2, chat="new"), 2)
        fence = await ledger.outbox_open()
        new, old = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.chat_id)
        await ledger.outbox_sending(fence, new)
        await ledger.outbox_sending(fence, old)
        delivered = await ledger.outbox_record(fence, old, Again(0.0, "moved", chat_id="new"))
        assert delivered.next is None
        assert await ledger.outbox_take(fence, limit=10) == []
        following = (await ledger.outbox_record(fence, new, Sent())).next
        assert following is not None
        assert following.call.text == "1.0", "in the order of saving"

    async def test_a_chat_that_moves_twice_is_followed(self, ledger: Ledger) -> None:
        fence = await ledger.outbox_open()
        for old, new in (("a", "b"), ("b", "c")):
            await answer(ledger, task(1 if old == "a" else 2, chat=old))
            reply = await take_one(ledger, fence)
            await send(ledger, fence, reply, Again(0.0, "moved", chat_id=new))
            await send(ledger, fence, await take_one(ledger, fence), Sent())
        await answer(ledger, task(3, chat="a"))
        assert (await take_one(ledger, fence)).chat_id == "c"

    @pytest.mark.failure("A13")
    async def test_whatever_its_ids_a_chat_has_one_history(self, ledger: Ledger) -> None:
        for number, chat in ((1, "old"), (2, "new"), (3, "old"), (4, "other")):
            await say(ledger, number, chat)
        for _ in range(2):
            await ledger.move_chat("telegram", "7", "old", "new")
        await say(ledger, 5, "new")
        await say(ledger, 6, "old")
        for chat in ("old", "new"):
            turns = await ledger.history("telegram", "7", chat, limit=10)
            assert [turn.text for turn in turns] == ["q1", "q2", "q3", "q5", "q6"]
        assert len(await ledger.history("telegram", "7", "other", limit=10)) == 1
        assert await ledger.history("telegram", "8", "new", limit=10) == []

    @pytest.mark.failure("A13")
    async def test_every_process_learns_which_chats_have_moved_each_once(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        for _ in range(2):
            await ledger.move_chat("telegram", "7", "old", "new")
        [first] = await (await stage.another()).chat_moves()
        assert (first.channel, first.account, first.chat_id, first.first_id) == ("telegram", "7", "new", "old")
        await answer(ledger, task(1, chat="a"))
        fence = await ledger.outbox_open()
        await send(ledger, fence, await take_one(ledger, fence), Again(0.0, "moved", chat_id="b"))
        [second] = await (await stage.another()).chat_moves(after=first.sequence)
        assert (second.chat_id, second.first_id) == ("b", "a"), "also what a call was answered"
        assert await ledger.chat_moves(after=second.sequence) == []

    @pytest.mark.failure("A13")
    @pytest.mark.parametrize("is_finished_early", [False, True])
    async def test_that_a_chat_has_moved_is_known_at_the_latest_when_what_said_so_has_ended(
        self, ledger: Ledger, is_finished_early: bool
    ) -> None:
        said = task(1, chat="new")
        said = Task(msgspec.structs.replace(said.head, moved=("old", "new")), said.raw, said.progress)
        if is_finished_early:
            await ledger.finish(said, Status.DROPPED)
        else:
            await answer(ledger, said)
        assert [(move.chat_id, move.first_id) for move in await ledger.chat_moves()] == [("new", "old")]
        await say(ledger, 2, "new")
        assert [turn.text for turn in await ledger.history("telegram", "7", "old", limit=10)] == ["q2"]

    @pytest.mark.failure("A13")
    async def test_when_a_chat_is_said_to_have_moved_what_waits_goes_along_at_its_time(
        self, stage: LedgerStage
    ) -> None:
        ledger = stage.ledger
        await answer(ledger, task(1, chat="old"), 2)
        fence = await ledger.outbox_open()
        await send(ledger, fence, await take_one(ledger, fence), Again(30.0, "429"))
        await ledger.move_chat("telegram", "7", "old", "new")
        await answer(ledger, task(2, chat="old"))
        await answer(ledger, task(3, chat="new"))
        assert await ledger.outbox_take(fence, limit=10) == []
        stage.pass_time(31)
        first = await take_one(ledger, fence)
        assert first.chat_id == "new"
        assert await send(ledger, fence, first, Sent()) is not None
        assert await ledger.outbox_take(fence, limit=10) == [], "one line, one call at a time"

    @pytest.mark.failure("A13", "G8")
    async def test_a_chat_that_moves_under_a_call_keeps_one_line_in_its_order(self, ledger: Ledger) -> None:
        await answer(ledger, task(1, chat="old"), 2)
        fence = await ledger.outbox_open()
        out = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, out)
        await ledger.move_chat("telegram", "7", "old", "new")
        await answer(ledger, task(2, chat="new"))
        assert await ledger.outbox_take(fence, limit=10) == [], "behind what is out"
        following = (await ledger.outbox_record(fence, out, Sent())).next
        assert following is not None
        await send(ledger, fence, following, Again(0.0, "moved", chat_id="new"))
        assert await send_everything(ledger, fence) == ["1.1", "2.0"]

    @pytest.mark.failure("A13")
    async def test_what_nobody_is_sent_to_moves_without_being_asked_for(self, ledger: Ledger) -> None:
        await ledger.move_chat("telegram", "7", "old", "new")
        fence = await ledger.outbox_open()
        assert await ledger.outbox_take(fence, limit=10) == []
        await answer(ledger, task(1, chat="old"))
        assert (await take_one(ledger, fence)).chat_id == "new"

    async def test_a_chat_that_was_let_go_comes_up_again_after_the_pause(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        await answer(ledger, task())
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_release(fence, reply, seconds=5)
        assert await ledger.outbox_take(fence, limit=10) == []
        stage.pass_time(6)
        again = await take_one(ledger, fence)
        assert (again.reply_id, again.tries) == (reply.reply_id, 0)

    # --- outbox: who sends ---

    @pytest.mark.failure("G8")
    async def test_a_new_sender_voids_the_old_one(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        await answer(ledger, task(), 2)
        old = await ledger.outbox_open()
        reply = await take_one(ledger, old)
        new = await (await stage.another()).outbox_open()
        assert new > old
        with pytest.raises(ClaimLost):
            await ledger.outbox_sending(old, reply)
        with pytest.raises(ClaimLost):
            await ledger.outbox_record(old, reply, Sent())
        with pytest.raises(ClaimLost):
            await ledger.outbox_release(old, reply, seconds=0)
        with pytest.raises(ClaimLost):
            await ledger.outbox_take(old, limit=10)
        assert await states(ledger, task().run_id) == ["ready", "ready"]
        assert await send_everything(ledger, new) == ["1.0", "1.1"]

    @pytest.mark.req("OUT-1")
    @pytest.mark.failure("G2", "G3")
    async def test_what_was_out_when_the_sender_died_comes_up_as_a_doubt(self, ledger: Ledger) -> None:
        await answer(ledger, task(1, chat="a"), 2)
        await answer(ledger, task(2, chat="b"))
        fence = await ledger.outbox_open()
        first, _ = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.chat_id)
        await ledger.outbox_sending(fence, first)  # and then the process is killed; chat b was only taken
        fence = await ledger.outbox_open()
        in_doubt, not_sent = sorted(await ledger.outbox_take(fence, limit=10), key=lambda reply: reply.chat_id)
        assert (in_doubt.call.text, in_doubt.state) == ("1.0", ReplyState.SENDING)
        assert (not_sent.call.text, not_sent.state) == ("2.0", ReplyState.READY)
        delivered = await ledger.outbox_record(fence, in_doubt, Resend("the sender stopped"))
        assert delivered.next is not None
        assert (delivered.next.call.text, delivered.next.state) == ("1.0", ReplyState.READY)

    @pytest.mark.req("OUT-1")
    @pytest.mark.failure("G2")
    async def test_a_doubt_comes_before_an_older_reply_that_a_person_let_go_on(self, ledger: Ledger) -> None:
        await answer(ledger, task(1))
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, first)
        following = (await ledger.outbox_record(fence, first, HeldUnknown("it timed out"))).next
        assert following is not None
        await ledger.outbox_sending(fence, following)  # and then the process is killed
        await ledger.outbox_rearm(task(1).run_id)
        fence = await ledger.outbox_open()
        in_doubt = await take_one(ledger, fence)
        assert (in_doubt.call.text, in_doubt.state) == ("2.0", ReplyState.SENDING)
        older = (await ledger.outbox_record(fence, in_doubt, Sent())).next
        assert older is not None
        assert (older.call.text, older.state, older.resends) == ("1.0", ReplyState.READY, 1)

    @pytest.mark.failure("G2")
    async def test_what_was_out_when_its_chat_was_let_go_comes_up_as_a_doubt(self, ledger: Ledger) -> None:
        await answer(ledger, task())
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, reply)
        await ledger.outbox_release(fence, reply, seconds=0)
        assert (await take_one(ledger, fence)).state is ReplyState.SENDING

    @pytest.mark.req("OUT-1")
    async def test_a_restart_sends_what_was_ready_and_never_what_was_sent(self, stage: LedgerStage) -> None:
        await answer(stage.ledger, task(), 3)
        fence = await stage.ledger.outbox_open()
        await send(stage.ledger, fence, await take_one(stage.ledger, fence), Sent())
        restarted = await stage.another()
        fence = await restarted.outbox_open()
        assert await send_everything(restarted, fence) == ["1.1", "1.2"]

    async def test_a_reply_goes_out_once_per_intent(self, ledger: Ledger) -> None:
        await answer(ledger, task())
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, reply)
        with pytest.raises(ClaimLost):
            await ledger.outbox_sending(fence, reply)

    # --- notices ---

    @pytest.mark.req("SUS-1")
    @pytest.mark.failure("G16")
    async def test_a_notice_is_said_once_ever(self, stage: LedgerStage) -> None:
        ledgers = [stage.ledger, await stage.another()]
        added = await asyncio.gather(*(one.add_notice(notice(task(), "queued")) for one in ledgers * 5))
        assert sum(added) == 1
        fence = await stage.ledger.outbox_open()
        assert await send_everything(stage.ledger, fence) == ["queued"]
        assert not await stage.ledger.add_notice(notice(task(), "queued"))
        assert await stage.ledger.add_notice(notice(task(), "late"))

    @pytest.mark.req("CHN-4")
    @pytest.mark.failure("G16")
    @pytest.mark.parametrize("has_result", [True, False], ids=["answered", "ended"])
    async def test_what_is_only_right_before_a_run_has_ended_is_not_said_afterwards(
        self, ledger: Ledger, has_result: bool
    ) -> None:
        one, other = task(1), task(2)
        assert await ledger.add_notice(notice(one, "late"), unless_run=one.run_id)
        assert not await ledger.add_notice(notice(one, "late"), unless_run=one.run_id)
        if has_result:
            await answer(ledger, one)
        else:
            await ledger.finish(one, Status.DROPPED)
        assert not await ledger.add_notice(notice(one, "failed"), unless_run=one.run_id)
        again = run_id_of(one.task_id, 1)
        assert await ledger.add_notice(notice(one, "late again"), unless_run=again), "of another generation"
        assert await ledger.add_notice(notice(other, "late"), unless_run=other.run_id)
        assert await ledger.add_notice(notice(one, "failed")), "what is right at any time"
        replies = await ledger.replies(task_id=one.task_id)
        said = [reply.call.text for reply in replies if reply.kind is ReplyKind.NOTICE]
        assert said == ["late", "late again", "failed"]

    @pytest.mark.failure("G16")
    async def test_a_notice_never_holds_a_run(self, ledger: Ledger) -> None:
        await answer(ledger, task())
        await ledger.add_notice(notice(task(), "queued"))
        fence = await ledger.outbox_open()
        reply = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, reply)
        delivered = await ledger.outbox_record(fence, reply, Sent())
        assert delivered.ended == RunEnded(task().task_id, 0, Outcome.ANSWERED)
        assert delivered.next is not None
        assert delivered.next.kind is ReplyKind.NOTICE

    @pytest.mark.failure("G16")
    @pytest.mark.parametrize(
        "ending",
        [Failed("blocked", chat_gone=True), HeldUnknown("timeout"), Sent()],
        ids=lambda one: type(one).__name__,
    )
    async def test_whatever_becomes_of_a_notice_the_answer_goes_out(self, ledger: Ledger, ending: SendEnding) -> None:
        await ledger.add_notice(notice(task(), "queued"))
        await answer(ledger, task(), 2)
        fence = await ledger.outbox_open()
        first = await take_one(ledger, fence)
        assert first.kind is ReplyKind.NOTICE
        await ledger.outbox_sending(fence, first)
        delivered = await ledger.outbox_record(fence, first, ending)
        assert delivered.ended is None
        following, texts = delivered.next, []
        while following is not None:
            texts.append(following.call.text)
            following = await send(ledger, fence, following, Sent())
        assert texts == ["1.0", "1.1"]

    @pytest.mark.req("ENV-7")
    async def test_a_callback_goes_out_though_its_run_is_over(self, ledger: Ledger) -> None:
        for _ in range(2):
            meant = [*chunks(task(), 2), callback(task())]
            run = await ledger.save_result(task(), ANSWERED, meant, [], deliver=False)
            assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.ANSWERED)
        assert await states(ledger, task().run_id) == ["sent", "sent", "ready"]
        fence = await ledger.outbox_open()
        taken = await take_one(ledger, fence)
        assert (taken.kind, taken.deadline_at_ms) == (ReplyKind.CALLBACK, callback(task()).deadline_at_ms)
        await ledger.outbox_sending(fence, taken)
        assert await ledger.outbox_record(fence, taken, Sent()) == Delivered(None, None)
        assert await states(ledger, task().run_id) == ["sent"] * 3
        assert await ledger.outbox_take(fence, limit=10) == []

    @pytest.mark.req("ENV-7")
    @pytest.mark.parametrize(
        "ending", [Again(0.0, "it answered 500"), Resend("timeout")], ids=lambda one: type(one).__name__
    )
    async def test_a_callback_is_tried_again_though_its_run_is_over(self, ledger: Ledger, ending: SendEnding) -> None:
        await ledger.save_result(task(), ANSWERED, [callback(task())], [], deliver=False)
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), ending)
        assert following is not None
        assert (following.state, following.tries + following.resends) == (ReplyState.READY, 1)
        assert await send(ledger, fence, following, Sent()) is None
        assert await states(ledger, task().run_id) == ["sent"]

    @pytest.mark.req("ENV-7")
    @pytest.mark.parametrize(
        "ending",
        [Failed("given up", too_late=True), HeldUnknown("timeout"), Failed("410", chat_gone=True)],
        ids=["given up", "held", "gone"],
    )
    async def test_whatever_becomes_of_a_callback_its_run_has_ended_as_it_did(
        self, ledger: Ledger, ending: SendEnding
    ) -> None:
        run = await ledger.save_result(task(), ANSWERED, [*chunks(task()), callback(task())], [], deliver=False)
        fence = await ledger.outbox_open()
        taken = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, taken)
        assert await ledger.outbox_record(fence, taken, ending) == Delivered(None, None)
        assert await ledger.run(task().run_id) == run
        assert await ledger.outbox_rearm(task().run_id) == 0

    @pytest.mark.req("ENV-7")
    async def test_a_callback_does_not_hold_a_run_that_is_sent_out(self, ledger: Ledger) -> None:
        await ledger.save_result(task(), ANSWERED, [*chunks(task()), callback(task())], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = {reply.kind: reply for reply in await ledger.outbox_take(fence, limit=10)}
        assert await send(ledger, fence, taken[ReplyKind.CALLBACK], Again(60.0, "it answered 500")) is None
        answered = taken[ReplyKind.ANSWER]
        await ledger.outbox_sending(fence, answered)
        delivered = await ledger.outbox_record(fence, answered, Sent())
        assert delivered.ended == RunEnded(task().task_id, 0, Outcome.ANSWERED)

    @pytest.mark.req("ENV-7")
    @pytest.mark.parametrize("status", [Status.EXPIRED, Status.DROPPED])
    async def test_an_end_without_a_result_is_called_back_once(self, ledger: Ledger, status: Status) -> None:
        for _ in range(2):
            run = await ledger.finish(task(), status, by="ann", callback=callback(task()))
            assert (run.status, run.by) == (status, "ann")
        other = callback(task(), "another end")
        assert await ledger.finish(task(), Status.COMPLETED, callback=other) == run
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["ended"]
        assert await ledger.run(task().run_id) == run

    @pytest.mark.req("ENV-7")
    async def test_dropping_what_still_answers_takes_that_back_and_calls_back(self, ledger: Ledger) -> None:
        await answer(ledger, task(), 2)
        await ledger.finish(task(), Status.DROPPED, callback=callback(task()))
        assert await states(ledger, task().run_id) == ["failed", "failed", "ready"]
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["ended"]

    @pytest.mark.req("ENV-7")
    @pytest.mark.failure("E11")
    async def test_a_callback_that_was_not_tried_says_how_the_run_ended_after_all(self, ledger: Ledger) -> None:
        meant = [*chunks(task()), callback_saying(task(), "completed")]
        await ledger.save_result(task(), ANSWERED, meant, [], deliver=True)
        assert await ledger.add_notice(callback(task(), "kill_switch"))
        dropped = await ledger.finish(task(), Status.DROPPED, callback=callback_saying(task(), "dropped"))
        assert await ledger.finish(task(), Status.EXPIRED, callback=callback_saying(task(), "expired")) == dropped
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["kill_switch", "dropped"], "it lines up anew"
        said = [reply.call.text for reply in await ledger.replies(task_id=task().task_id)]
        assert sorted(said) == ["1.0", "dropped", "kill_switch"], "no id is there twice"

    @pytest.mark.req("ENV-7")
    @pytest.mark.failure("E11")
    @pytest.mark.parametrize(
        "ending",
        [Sent(), Again(5.0, "it answered 500"), Resend("timeout", seconds=5.0), HeldUnknown("?"), Failed("410"), None],
        ids=lambda one: type(one).__name__,
    )
    async def test_a_callback_that_was_tried_stands_however_the_run_ends(
        self, stage: LedgerStage, ending: SendEnding | None
    ) -> None:
        """None: it is out at this moment."""
        ledger = stage.ledger
        meant = [*chunks(task()), callback_saying(task(), "completed")]
        await ledger.save_result(task(), ANSWERED, meant, [], deliver=True)
        fence = await ledger.outbox_open()
        taken = {reply.kind: reply for reply in await ledger.outbox_take(fence, limit=10)}[ReplyKind.CALLBACK]
        await ledger.outbox_sending(fence, taken)
        if ending is not None:
            await ledger.outbox_record(fence, taken, ending)
        await ledger.finish(task(), Status.DROPPED, callback=callback_saying(task(), "dropped"))
        if ending is None:
            assert await ledger.outbox_record(fence, taken, Sent()) == Delivered(None, None)
        replies = await ledger.replies(run_id=task().run_id)
        assert [reply.call.text for reply in replies] == ["1.0", "completed"]
        stage.pass_time(6)
        is_tried_again = isinstance(ending, Again | Resend)
        assert await send_everything(ledger, fence) == (["completed"] if is_tried_again else [])

    @pytest.mark.req("ENV-7", "OUT-1")
    @pytest.mark.failure("E11", "G8")
    @pytest.mark.parametrize("ending", [None, Failed("too late", too_late=True)], ids=["sent", "given up"])
    async def test_who_has_a_callback_in_hand_in_whose_place_is_another_is_refused_it(
        self, ledger: Ledger, ending: SendEnding | None
    ) -> None:
        await ledger.save_result(task(), ANSWERED, [*chunks(task()), callback(task())], [], deliver=True)
        fence = await ledger.outbox_open()
        taken = {reply.kind: reply for reply in await ledger.outbox_take(fence, limit=10)}[ReplyKind.CALLBACK]
        await ledger.finish(task(), Status.DROPPED, callback=callback_saying(task(), "dropped"))
        if ending is None:
            with pytest.raises(ClaimLost):
                await ledger.outbox_sending(fence, taken)
            await ledger.outbox_release(fence, taken, seconds=0)
            following: Reply | None = await take_one(ledger, fence)
        else:
            following = (await ledger.outbox_record(fence, taken, ending)).next
        assert following is not None
        assert (following.call.text, following.state) == ("dropped", ReplyState.READY)
        assert await send(ledger, fence, following, Sent()) is None
        assert await states(ledger, task().run_id) == ["failed", "sent"]

    @pytest.mark.req("ENV-7")
    async def test_that_a_task_waited_is_said_before_that_it_has_ended(self, ledger: Ledger) -> None:
        assert await ledger.add_notice(callback(task(), "kill_switch"))
        assert not await ledger.add_notice(callback(task(), "kill_switch"))
        await ledger.finish(task(), Status.DROPPED, callback=callback(task()))
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["kill_switch", "ended"]

    async def test_a_dropped_tasks_notice_still_goes_out(self, ledger: Ledger) -> None:
        await ledger.add_notice(notice(task(), "queued"))
        await ledger.finish(task(), Status.DROPPED)
        fence = await ledger.outbox_open()
        assert await send_everything(ledger, fence) == ["queued"]

    # --- looking ---

    async def test_a_page_that_was_away_reads_what_it_missed(self, ledger: Ledger) -> None:
        for number in range(1, 4):
            await ledger.save_result(task(number), ANSWERED, chunks(task(number), 2), [], deliver=False)
        await ledger.save_result(task(9, chat="2"), ANSWERED, chunks(task(9, chat="2")), [], deliver=False)
        everything = await ledger.transcript("telegram", "7", "1", after=0, limit=100)
        assert [reply.call.text for reply in everything] == ["1.0", "1.1", "2.0", "2.1", "3.0", "3.1"]
        assert [reply.sequence for reply in everything] == sorted({reply.sequence for reply in everything})
        rest = await ledger.transcript("telegram", "7", "1", after=everything[2].sequence, limit=2)
        assert [reply.call.text for reply in rest] == ["2.1", "3.0"]

    async def test_the_outbox_is_counted_and_its_age_known(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        empty = await ledger.outbox_depth()
        assert (empty.by_state, empty.oldest_waiting_ms) == ({}, None)
        await answer(ledger, task(1, chat="a"), 2)
        await answer(ledger, task(2, chat="b"), 3)
        stage.pass_time(20)
        depth = await ledger.outbox_depth()
        assert depth.by_state == {"ready": 5}
        assert depth.oldest_waiting_ms is not None
        assert 20_000 <= depth.oldest_waiting_ms < 21_000
        fence = await ledger.outbox_open()
        first, second = await ledger.outbox_take(fence, limit=10)
        await send(ledger, fence, first, Sent())
        await send(ledger, fence, second, HeldUnknown("timeout"))
        depth = await ledger.outbox_depth()
        assert sum(depth.by_state.values()) == 4
        assert depth.unknown == 1

    @pytest.mark.req("SEC-5")
    async def test_old_finished_runs_are_forgotten_with_everything_of_theirs(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        old, young, running = task(1), task(2), task(3)
        await answer(ledger, old, 2)
        await ledger.add_attempt(old.run_id, Attempt(at_ms=1, error="boom", counted=True))
        await answer(ledger, running)
        fence = await ledger.outbox_open()
        reply: Reply | None = await take_one(ledger, fence)
        while reply is not None and reply.run_id == old.run_id:
            reply = await send(ledger, fence, reply, Sent())
        stage.pass_time(100)
        ended = await ledger.finish(young, Status.DROPPED)
        assert ended.finished_at_ms is not None
        assert await ledger.purge(finished_before_ms=ended.finished_at_ms) == 1
        assert await ledger.run(old.run_id) is None
        assert await ledger.archived(old.task_id) is None
        assert await ledger.replies(task_id=old.task_id) == []
        assert await ledger.attempts(old.run_id) == []
        assert await ledger.run(young.run_id) == ended
        assert await ledger.run(running.run_id) is not None

    async def test_purging_takes_no_more_than_its_limit_oldest_first(self, stage: LedgerStage) -> None:
        for number in range(1, 6):
            await stage.ledger.finish(task(number), Status.EXPIRED)
            stage.pass_time(1)
        far = 10**15
        assert await stage.ledger.purge(finished_before_ms=far, limit=3) == 3
        assert await stage.ledger.run(task(3).run_id) is None
        assert await stage.ledger.run(task(4).run_id) is not None
        assert await stage.ledger.purge(finished_before_ms=far, limit=3) == 2

    async def test_what_comes_under_the_key_of_a_message_that_was_purged_is_said_in_its_chat_as_well(
        self, stage: LedgerStage
    ) -> None:
        await say(stage.ledger, 1, "a")
        stage.pass_time(1)
        assert await stage.ledger.purge(finished_before_ms=10**15) == 1
        await say(stage.ledger, 1, "a")
        assert [turn.text for turn in await stage.ledger.history("telegram", "7", "a", limit=9)] == ["q1", "q1"]

    # --- forgetting ---

    @pytest.mark.req("SEC-5")
    async def test_of_a_chat_that_is_forgotten_stays_how_its_runs_ended_and_nothing_else(self, ledger: Ledger) -> None:
        of, other = task(1, chat="a"), task(2, chat="b")
        await ledger.add_attempt(of.run_id, Attempt(at_ms=1, error="boom", counted=True))
        await ledger.add_notice(notice(of, "late"), deliver=False)
        for one in (of, other):
            said = [
                HistoryLine(role="user", text="secret", at_ms=1),
                HistoryLine(role="assistant", text="well", at_ms=2),
            ]
            await ledger.save_result(one, ANSWERED, chunks(one, 2), said, deliver=False)
        before = {one.task_id: await ledger.run(one.run_id) for one in (of, other)}
        forgotten = await ledger.forget_chat("telegram", "7", "a")
        assert (forgotten.runs, forgotten.replies, forgotten.turns) == (1, 3, 2)
        assert (forgotten.looked_at, forgotten.unfinished, forgotten.unreadable, forgotten.after) == (2, 0, 0, None)
        run, known = await ledger.run(of.run_id), before[of.task_id]
        assert run is not None
        assert known is not None
        assert run == msgspec.structs.replace(known, result=None)
        assert await ledger.finished_among([of.task_id]) == {of.task_id: run}
        archived = await ledger.archived(of.task_id)
        assert archived is not None
        assert (archived.head, archived.raw, archived.has_bytes) == (forgotten_head(of.head), b"", False)
        assert await ledger.replies(task_id=of.task_id) == []
        assert await ledger.transcript("telegram", "7", "a", after=0, limit=9) == []
        assert await ledger.attempts(of.run_id) == []
        assert await ledger.history("telegram", "7", "a", limit=9) == []
        assert await ledger.finished_counts() == {"completed.answered": 2}
        assert await ledger.run(other.run_id) == before[other.task_id]
        assert await ledger.archived(other.task_id) == msgspec.structs.replace(
            other, progress=Progress(status=Status.COMPLETED)
        )
        assert len(await ledger.replies(task_id=other.task_id)) == 2
        assert len(await ledger.history("telegram", "7", "b", limit=9)) == 2

    @pytest.mark.req("SEC-5")
    async def test_a_chat_is_forgotten_by_any_of_its_ids_whichever_it_was_written_in(self, ledger: Ledger) -> None:
        await say(ledger, 1, "old")
        await ledger.move_chat("telegram", "7", "old", "new")
        await say(ledger, 2, "new")
        await say(ledger, 3, "other")
        assert (await ledger.forget_chat("telegram", "7", "new", dry_run=True)).runs == 2
        forgotten = await ledger.forget_chat("telegram", "7", "old")
        assert (forgotten.runs, forgotten.turns) == (2, 2)
        for chat in ("old", "new"):
            assert await ledger.history("telegram", "7", chat, limit=9) == []
        assert len(await ledger.history("telegram", "7", "other", limit=9)) == 1

    @pytest.mark.req("SEC-5")
    async def test_what_is_one_chat_already_does_not_become_a_later_id_of_another(self, ledger: Ledger) -> None:
        """No platform says so. Whatever a program says, what is forgotten of a chat is all that it shows."""
        await say(ledger, 1, "second")
        await ledger.move_chat("telegram", "7", "second", "third")
        await ledger.move_chat("telegram", "7", "first", "second")
        assert [(move.first_id, move.chat_id) for move in await ledger.chat_moves()] == [("second", "third")]
        await say(ledger, 2, "second")
        assert (await ledger.forget_chat("telegram", "7", "third")).turns == 2
        for chat in ("first", "second", "third"):
            assert await ledger.history("telegram", "7", chat, limit=9) == []

    @pytest.mark.req("SEC-5")
    @pytest.mark.parametrize("elsewhere", [{"account": "8"}, {"channel": "http"}], ids=str)
    async def test_another_chat_of_the_same_name_is_not_forgotten(
        self, ledger: Ledger, elsewhere: dict[str, str]
    ) -> None:
        of = task_elsewhere(2, **elsewhere)
        turns = [HistoryLine(role="user", text="hers", at_ms=1)]
        await ledger.save_result(of, ANSWERED, chunks(of), turns, deliver=False)
        forgotten = await ledger.forget_chat("telegram", "7", "1")
        assert (forgotten.runs, forgotten.replies, forgotten.turns) == (0, 0, 0)
        assert len(await ledger.replies(task_id=of.task_id)) == 1
        assert len(await ledger.history(of.head.channel, of.head.account, "1", limit=9)) == 1

    @pytest.mark.req("SEC-5")
    async def test_what_somebody_asked_outside_of_any_chat_is_forgotten_with_his_own(self, ledger: Ledger) -> None:
        asked = [task(number) for number in (1, 2)]
        for of, user_id in zip(asked, (42, 43), strict=True):
            head = msgspec.structs.replace(of.head, chat_id=None, user={"user_id": user_id})
            await ledger.finish(msgspec.structs.replace(of, head=head), Status.EXPIRED)
        assert (await ledger.forget_chat("telegram", "7", "42")).runs == 1
        archived = [await ledger.archived(of.task_id) for of in asked]
        assert [of is not None and of.has_bytes for of in archived] == [False, True]

    @pytest.mark.req("SEC-5", "SUS-3")
    @pytest.mark.failure("B14")
    @pytest.mark.parametrize(
        ("lane", "forgotten", "unreadable"),
        [
            ("tg:7:42:0", True, 0),
            ("tg:7:42:5", True, 0),
            ("tg:7:u42:callback", True, 0),
            ("tg:7:u42:inline", True, 0),
            ("fu:telegram:7:42", True, 0),
            ("tg:7:43:42", False, 0),
            ("tg:7:bc:42:0", False, 0),
            ("tg:7:u43:inline", False, 0),
            ("fu:telegram:7:43", False, 0),
            ("tg:7:u43:callback", False, 1),
            ("tg:7:unreadable", False, 1),
            ("of tomorrow", False, 1),
        ],
    )
    async def test_what_a_newer_version_wrote_and_a_person_dropped_is_forgotten_by_its_lane_or_said_to_be_left(
        self, ledger: Ledger, lane: str, forgotten: bool, unreadable: int
    ) -> None:
        of = _stand_in(1, lane)
        await ledger.finish(of, Status.DROPPED, by="ann")
        for _ in ("first", "again"):
            seen = await ledger.forget_chat("telegram", "7", "42", dry_run=True)
            assert (seen.looked_at, seen.runs, seen.unreadable) == (1, forgotten, unreadable)
        for runs in (forgotten, 0):
            seen = await ledger.forget_chat("telegram", "7", "42")
            assert (seen.runs, seen.unfinished, seen.unreadable) == (runs, 0, unreadable)
        archived = await ledger.archived(of.task_id)
        assert archived is not None
        assert archived.raw == (b"" if forgotten else of.raw)
        assert archived.head.is_forgotten is forgotten
        for elsewhere in (("telegram", "8", "42"), ("http", "7", "42")):
            assert (await ledger.forget_chat(*elsewhere)).unreadable == 0

    @pytest.mark.req("SEC-5", "SUS-3")
    @pytest.mark.failure("B14")
    @pytest.mark.parametrize(
        ("channel", "lane", "forgotten", "unreadable"),
        [
            ("http", "http:default:42", True, 0),
            ("webchat", "web:default:42", True, 0),
            ("http", "fu:http:default:42", True, 0),
            ("http", "http:default:43", False, 0),
            ("http", "http:default:task:42", False, 1),
        ],
    )
    async def test_so_is_what_a_newer_version_wrote_on_other_channels(
        self, ledger: Ledger, channel: str, lane: str, forgotten: bool, unreadable: int
    ) -> None:
        await ledger.finish(_stand_in(1, lane, channel=channel, account="default"), Status.DROPPED, by="ann")
        seen = await ledger.forget_chat(channel, "default", "42")
        assert (seen.runs, seen.unreadable) == (forgotten, unreadable)

    @pytest.mark.req("SEC-5")
    async def test_what_is_not_over_is_not_forgotten(self, ledger: Ledger) -> None:
        promising = RunResult(outcome=Outcome.SILENT, value={"followUps": [{"text": "later"}]})
        await answer(ledger, task(1))
        await ledger.save_result(task(2), promising, [], [], deliver=False)
        forgotten = await ledger.forget_chat("telegram", "7", "1")
        assert (forgotten.runs, forgotten.unfinished) == (0, 2)
        assert len(await ledger.replies(task_id=task(1).task_id)) == 1
        run = await ledger.run(task(2).run_id)
        assert run is not None
        assert run.follow_ups
        await ledger.note_armed(task(2).run_id)
        await ledger.finish(task(1), Status.DROPPED, by="ann", why="she asked for it")
        forgotten = await ledger.forget_chat("telegram", "7", "1")
        assert (forgotten.runs, forgotten.unfinished) == (2, 0)
        run = await ledger.run(task(1).run_id)
        assert run is not None
        assert (run.status, run.by, run.why) == (Status.DROPPED, "ann", None)

    @pytest.mark.req("SEC-5")
    async def test_a_chat_is_forgotten_in_steps_and_again_is_nothing(self, ledger: Ledger) -> None:
        for number in range(1, 8):
            await say(ledger, number, "ab"[number % 2])
        steps, counted = [], await ledger.forget_chat("telegram", "7", "a", dry_run=True)
        after: str | None = ""
        while after is not None:
            steps.append(await ledger.forget_chat("telegram", "7", "a", after=after, limit=2))
            after = steps[-1].after
        assert [step.looked_at for step in steps] == [2, 2, 2, 1]
        assert sum(step.runs for step in steps) == counted.runs == 3
        assert [step.turns for step in steps] == [0, 0, 0, 3]
        assert counted.turns == 3
        again = await ledger.forget_chat("telegram", "7", "a")
        assert (again.runs, again.turns, again.looked_at) == (0, 0, 7)
        assert len(await ledger.history("telegram", "7", "b", limit=9)) == 4

    @pytest.mark.req("SEC-5")
    async def test_what_a_worker_noted_of_a_run_after_it_was_forgotten_goes_with_the_next(self, ledger: Ledger) -> None:
        await ledger.finish(task(1, chat="a"), Status.DROPPED)
        await ledger.forget_chat("telegram", "7", "a")
        await ledger.save_step(task(1).run_id, "ask", b"1")
        await ledger.add_attempt(task(1).run_id, Attempt(at_ms=1, error="boom", counted=True))
        await ledger.forget_chat("telegram", "7", "b", dry_run=True)
        assert await ledger.steps(task(1).run_id) == {"ask": b"1"}
        assert (await ledger.forget_chat("telegram", "7", "b")).runs == 0
        assert await ledger.steps(task(1).run_id) == {}
        assert await ledger.attempts(task(1).run_id) == []

    @pytest.mark.req("SEC-5")
    async def test_what_was_forgotten_while_it_was_out_lets_its_chat_go_on(self, ledger: Ledger) -> None:
        await answer(ledger, task(1))
        await answer(ledger, task(2))
        fence = await ledger.outbox_open()
        out = await take_one(ledger, fence)
        await ledger.outbox_sending(fence, out)
        await ledger.finish(task(1), Status.DROPPED)
        assert (await ledger.forget_chat("telegram", "7", "1")).runs == 1
        delivered = await ledger.outbox_record(fence, out, Again(5.0, "429"))
        assert delivered.next is not None
        assert delivered.next.run_id == task(2).run_id

    @pytest.mark.req("SEC-5")
    async def test_what_was_sent_once_more_stays_counted(self, ledger: Ledger) -> None:
        await answer(ledger, task(1))
        fence = await ledger.outbox_open()
        following = await send(ledger, fence, await take_one(ledger, fence), Resend("timeout"))
        assert following is not None
        await send(ledger, fence, following, Sent())
        await ledger.forget_chat("telegram", "7", "1")
        assert (await ledger.outbox_depth()).resent == 1

    @pytest.mark.req("SEC-5")
    async def test_bytes_and_steps_are_forgotten_before_the_run_is(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        ends = []
        for number in range(1, 6):
            run = await ledger.finish(task(number), Status.EXPIRED)
            ends.append(run.finished_at_ms or 0)
            await ledger.save_step(task(number).run_id, "late", b"1")
            stage.pass_time(1)
        await answer(ledger, task(6))
        assert await ledger.forget_raw(finished_before_ms=ends[4], limit=3) == ends[2]
        assert await ledger.forget_raw(finished_before_ms=ends[4], after_ms=ends[2], limit=3) == ends[3]
        assert await ledger.forget_raw(finished_before_ms=ends[4], after_ms=ends[3], limit=3) is None
        for number in range(1, 7):
            archived = await ledger.archived(task(number).task_id)
            assert archived is not None
            assert archived.head == task(number).head
            assert archived.has_bytes == (number > 4)
            assert await ledger.steps(task(number).run_id) == ({"late": b"1"} if number == 5 else {})
        assert await ledger.forget_raw(finished_before_ms=ends[4], limit=9) == ends[3], "said again, it does no harm"

    @pytest.mark.req("SEC-5")
    async def test_of_those_that_ended_at_one_moment_the_bytes_are_forgotten_though_fewer_are_looked_at(
        self, stage: LedgerStage
    ) -> None:
        ledger = stage.ledger
        # One without bytes among them, first or last.
        for number in range(1, 6):
            await ledger.finish(task(number, raw=b"" if number in (1, 5) else b'{"n":1}'), Status.EXPIRED)
        stage.pass_time(1)
        last = await ledger.finish(task(6), Status.EXPIRED)
        after: int | None = 0
        while after is not None:
            after = await ledger.forget_raw(finished_before_ms=last.finished_at_ms or 0, after_ms=after, limit=1)
        archived = [await ledger.archived(task(number).task_id) for number in range(1, 7)]
        assert [one is not None and one.raw for one in archived] == [b""] * 5 + [b'{"n":1}']

    @pytest.mark.req("SEC-5")
    async def test_what_was_said_long_ago_is_forgotten_in_some_chats_at_a_time(self, ledger: Ledger) -> None:
        for number, chat in enumerate("abcab", start=1):
            await say(ledger, number, chat)  # at that millisecond
        after: str | None = ""
        for _ in range(2):
            assert after is not None
            after = await ledger.forget_history(said_before_ms=4, after=after, limit=2)
        assert after is None
        kept = {chat: await ledger.history("telegram", "7", chat, limit=9) for chat in "abc"}
        assert {chat: [turn.at_ms for turn in turns] for chat, turns in kept.items()} == {"a": [4], "b": [5], "c": []}

    async def test_endings_are_counted(self, ledger: Ledger) -> None:
        await ledger.save_result(task(1), RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
        await ledger.save_result(task(2), ANSWERED, chunks(task(2)), [], deliver=False)
        await ledger.finish(task(3), Status.DROPPED)
        await ledger.finish(task(4), Status.EXPIRED)
        await answer(ledger, task(5))
        assert await ledger.finished_counts() == {
            "completed.silent": 1,
            "completed.answered": 1,
            "dropped": 1,
            "expired": 1,
        }

    @pytest.mark.req("OPS-3")
    async def test_what_has_ended_is_listed_the_latest_first_in_pages(self, stage: LedgerStage) -> None:
        ledger = stage.ledger
        for number in (1, 2, 3):
            await ledger.finish(task(number), Status.DROPPED, by="ann")
            stage.pass_time(1)
        await ledger.save_result(task(4), ANSWERED, chunks(task(4)), [], deliver=True)
        [latest, second] = await ledger.ended(limit=2)
        assert [one.run.task_id for one in (latest, second)] == [task(3).task_id, task(2).task_id]
        assert (latest.run.status, latest.run.by, latest.head) == (Status.DROPPED, "ann", task(3).head)
        assert second.run.finished_at_ms is not None
        rest = await ledger.ended(limit=2, before_ms=second.run.finished_at_ms)
        assert [one.run.task_id for one in rest] == [task(1).task_id], "one that is not over is not among them"
        assert await ledger.ended(limit=0) == []

    @pytest.mark.req("OPS-3")
    async def test_what_ended_together_is_on_one_page(self, stage: LedgerStage) -> None:
        for number in range(5):
            await stage.ledger.finish(task(number), Status.DROPPED)
        listed: list[TaskId] = []
        page = await stage.ledger.ended(limit=1)
        while page:
            listed += [one.run.task_id for one in page]
            page = await stage.ledger.ended(limit=1, before_ms=page[-1].run.finished_at_ms or 0)
        assert sorted(listed) == sorted(task(number).task_id for number in range(5))

    # --- who it is ---

    @pytest.mark.req("EMB-3")
    async def test_it_has_a_name_of_its_own_that_stays(self, stage: LedgerStage) -> None:
        name = await stage.ledger.identity()
        assert len(name) >= 16
        assert await (await stage.another()).identity() == name

    # --- offices ---

    @pytest.mark.req("EMB-3", "OUT-2")
    async def test_an_office_is_one_members_for_as_long_as_it_says_so(self, stage: LedgerStage) -> None:
        one, two = stage.ledger, await stage.another()
        assert await one.take_office(Office.SENDER, "a", seconds=10)
        assert not await two.take_office(Office.SENDER, "b", seconds=10)
        assert await two.take_office(Office.KEEPER, "b", seconds=10), "each by itself"
        stage.pass_time(8)
        assert await one.take_office(Office.SENDER, "a", seconds=10), "again, before its time is over"
        stage.pass_time(8)
        assert not await two.take_office(Office.SENDER, "b", seconds=10)
        stage.pass_time(3)
        assert await two.take_office(Office.SENDER, "b", seconds=10), "it has not said so any more"
        assert not await one.take_office(Office.SENDER, "a", seconds=10)

    @pytest.mark.req("EMB-3")
    async def test_the_offices_of_who_has_ended_are_free_at_once(self, ledger: Ledger) -> None:
        for office in Office:
            assert await ledger.take_office(office, "a", seconds=1000)
        await ledger.leave_offices("b")
        assert not await ledger.take_office(Office.SENDER, "b", seconds=10)
        await ledger.leave_offices("a")
        for office in Office:
            assert await ledger.take_office(office, "b", seconds=10)

    # --- people ---

    async def test_what_people_did_is_listed_newest_first(self, ledger: Ledger) -> None:
        done: Sequence[Operation] = [
            Operation(at_ms=n, who="ann", action="drop", target=f"t_{n}", why="spam") for n in range(5)
        ]
        for operation in done:
            await ledger.record_operation(operation)
        assert await ledger.operations(limit=3) == [done[4], done[3], done[2]]

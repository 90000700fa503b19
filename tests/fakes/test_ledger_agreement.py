"""Whatever is done to them, the ledger in memory and the one in SQLite say the same."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from agreement import answer, command, commands, compare, opened, picked, seldom
from hypothesis import strategies as st

from rise.envelope import Call, Outcome, Status, Task, run_id_of
from rise.ledger.kept import HISTORY_KEPT
from rise.ledger.port import (
    Again,
    Attempt,
    ChatMove,
    Delivered,
    Ended,
    Failed,
    HeldUnknown,
    HistoryLine,
    Ledger,
    Operation,
    OutboxDepth,
    Reply,
    ReplyState,
    Resend,
    Run,
    RunResult,
    SendEnding,
    Sent,
)
from rise.ledger.sqlite import SCHEMA, SqliteLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import answer as save_answer
from rise.testing.conformance.ledger import callback, callback_saying, chunks, notice, send, take_one, task
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.simulator.database import InlineDatabase

TASKS = (1, 2, 3, 4, 5)
GENERATIONS_KNOWN = (0, 1)

NUMBERS = st.sampled_from(TASKS)
GENERATIONS = st.sampled_from((0, 0, 0, 1))
CHATS = st.sampled_from("aab")
CALLED_BACK = st.sampled_from((False, False, True))
PICKS = st.integers(0, 5)
LIMIT = st.integers(0, 3)
ACCOUNTS = st.sampled_from(("7", "8"))
SECONDS = st.sampled_from((0.0, 0.0, 5.0))
CALLS = seldom(st.just(Call("sendMessage", {"text": "plain"}, "plain")))
ENDINGS = st.one_of(
    st.just(Sent("m")),
    st.just(Sent()),
    st.builds(Failed, st.just("refused"), chat_gone=st.booleans()),
    st.just(Failed("too late", too_late=True)),
    st.builds(Again, SECONDS, st.just("429"), CALLS),
    st.builds(Again, SECONDS, st.just("moved"), chat_id=st.sampled_from("abc")),
    st.builds(Resend, st.just("timeout"), CALLS, SECONDS),
    st.just(HeldUnknown("timeout")),
)

COMMANDS = commands(
    command(
        6,
        "save_result",
        number=NUMBERS,
        generation=GENERATIONS,
        chat=CHATS,
        count=st.integers(0, 3),
        deliver=st.sampled_from((True, True, True, False)),
        is_first_urgent=st.sampled_from((False, False, False, True)),
        is_one_text=st.booleans(),
        is_called_back=CALLED_BACK,
    ),
    command(
        2,
        "finish",
        pick=PICKS,
        status=st.sampled_from((Status.DROPPED, Status.EXPIRED, Status.COMPLETED)),
        outcome=seldom(st.just(Outcome.RATE_LIMITED)),
        is_called_back=CALLED_BACK,
    ),
    command(1, "save_step", number=NUMBERS, step=st.sampled_from("xy"), value=st.sampled_from((b"1", b"2"))),
    command(1, "note_armed", pick=PICKS),
    command(1, "add_attempt", number=NUMBERS, counted=st.booleans()),
    command(
        2,
        "add_notice",
        number=NUMBERS,
        chat=CHATS,
        cause=st.sampled_from(("late", "queued")),
        unless_generation=st.none() | GENERATIONS,
    ),
    command(1, "outbox_open"),
    command(
        4,
        "outbox_take",
        limit=LIMIT,
        urgent=LIMIT,
        excluded=st.lists(ACCOUNTS, max_size=1),
        urgent_only=st.lists(ACCOUNTS, max_size=1),
    ),
    command(1, "outbox_take_with", pick=PICKS, limit=LIMIT),
    command(10, "deliver", pick=PICKS, ending=ENDINGS, is_answer_lost=st.booleans()),
    command(1, "outbox_sending", pick=PICKS),
    command(1, "outbox_record", pick=PICKS, ending=ENDINGS),
    command(1, "outbox_release", pick=PICKS, seconds=SECONDS),
    command(4, "outbox_rearm", pick=PICKS),
    command(1, "record_operation", limit=LIMIT),
    command(1, "purge", seconds=st.sampled_from((0.0, 6.0))),
    command(2, "forget_chat", chat=st.sampled_from("abc"), limit=st.integers(1, 3), dry_run=st.booleans()),
    command(1, "forget_raw", seconds=st.sampled_from((0.0, 6.0)), limit=st.integers(1, 3)),
    command(1, "forget_history", before_ms=st.sampled_from((1, 2)), limit=st.integers(1, 3)),
    command(1, "spoil_call", pick=PICKS),
    command(1, "spoil_result", pick=PICKS),
    command(2, "move_chat", chat=CHATS, moved_to=st.sampled_from("bc")),
    command(4, "pass_time", seconds=st.sampled_from((1.0, 6.0))),
    command(2, "look_at_run", number=NUMBERS, generation=GENERATIONS),
    command(2, "look_at_chat", chat=st.sampled_from(("a", "b", "c", "urgent:1")), after=st.integers(0, 3), limit=LIMIT),
)

Replies = dict[Ledger, Reply]
"""The same reply, as each of them handed it out."""
Asked = Callable[[Ledger], Coroutine[Any, Any, Any]]


class TwoLedgers:
    """Each command goes to both; `agree` compares what they say."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.database: InlineDatabase = opened(self.clock, ledger=SCHEMA)
        self.real = SqliteLedger(self.database)
        self.state = MemoryLedgerState()
        self.fake = MemoryLedger(self.state, now_ms=self.database.now_ms, history_kept=HISTORY_KEPT)
        self.fences: list[dict[Ledger, int]] = []
        self.taken: list[Replies] = []
        """All that were ever handed out, the latest last."""
        self.unsent: list[Replies] = []
        self.outbox_open()

    def look(self) -> None:
        for chat in "abc":
            self.agree(lambda ledger, chat=chat: ledger.history("telegram", "7", chat, limit=100))
        for number in TASKS:
            task_id = task(number).task_id
            self.agree(lambda ledger, task_id=task_id: ledger.archived(task_id))
            self.agree(lambda ledger, task_id=task_id: ledger.replies(task_id=task_id))
            for generation in GENERATIONS_KNOWN:
                run_id = run_id_of(task_id, generation)
                self.agree(lambda ledger, run_id=run_id: ledger.run(run_id))
                self.agree(lambda ledger, run_id=run_id: ledger.steps(run_id))
        self.agree(lambda ledger: ledger.finished_counts())
        self.agree(lambda ledger: ledger.ended(limit=2))
        fake, real = self.agree(lambda ledger: ledger.outbox_depth())
        # A chat is said to wait before somebody has looked whether it has anything to send any more.
        said = [real.oldest_waiting_ms] if real.oldest_waiting_ms is not None else []
        assert said == self._ages_said()[:1]
        assert fake.oldest_waiting_ms is None or fake.oldest_waiting_ms <= said[0]

    def _ages_said(self) -> list[int]:
        waiting = [due for due in self.state.chats.values() if due is not None]
        return sorted((max(0, self.database.now_ms() - due) for due in waiting), reverse=True)

    # --- commands ---

    def save_result(
        self,
        number: int,
        generation: int,
        chat: str,
        count: int,
        deliver: bool,
        is_first_urgent: bool,
        is_one_text: bool,
        is_called_back: bool,
    ) -> None:
        of = task(number, chat=chat, generation=generation)
        replies = [
            msgspec.structs.replace(one, call=msgspec.structs.replace(one.call, continues=is_one_text and chunk > 0))
            for chunk, one in enumerate(chunks(of, count))
        ]
        if is_first_urgent and replies:
            replies[0] = msgspec.structs.replace(replies[0], chat_id="urgent:1")
        if is_called_back:
            replies.append(callback(of))
        result = RunResult(outcome=Outcome.ANSWERED if count else Outcome.SILENT, value={"n": number}, workflow_id="w")
        turns = [HistoryLine(role="user", text=f"{number}", at_ms=1 + number % 2, run_id=of.run_id)]
        self.agree(lambda ledger: ledger.save_result(of, result, replies, turns, deliver=deliver))

    def finish(self, pick: int, status: Status, outcome: Outcome | None, is_called_back: bool) -> None:
        of = self._some_task(pick)
        meant = callback_saying(of, status) if is_called_back else None
        self.agree(lambda ledger: ledger.finish(of, status, outcome, by="ann", why="", callback=meant))

    def save_step(self, number: int, step: str, value: bytes) -> None:
        self.agree(lambda ledger: ledger.save_step(task(number).run_id, step, value))

    def note_armed(self, pick: int) -> None:
        run_id = self._some_task(pick).run_id
        self.agree(lambda ledger: ledger.note_armed(run_id))

    def add_attempt(self, number: int, counted: bool) -> None:
        attempt = Attempt(at_ms=self.database.now_ms(), error="boom", counted=counted)
        self.agree(lambda ledger: ledger.add_attempt(task(number).run_id, attempt))

    def add_notice(self, number: int, chat: str, cause: str, unless_generation: int | None) -> None:
        of = task(number, chat=chat)
        said, unless_run = notice(of, cause), None
        if unless_generation is not None:
            unless_run = run_id_of(of.task_id, unless_generation)
        self.agree(lambda ledger: ledger.add_notice(said, unless_run=unless_run))

    def move_chat(self, chat: str, moved_to: str) -> None:
        self.agree(lambda ledger: ledger.move_chat("telegram", "7", chat, moved_to))
        self.agree(lambda ledger: ledger.chat_moves())

    def outbox_open(self) -> None:
        self.fences.append({ledger: answer(ledger.outbox_open()) for ledger in (self.fake, self.real)})
        self.unsent.clear()

    def outbox_take(self, limit: int, urgent: int, excluded: list[str], urgent_only: list[str]) -> None:
        held = ([("telegram", account) for account in accounts] for accounts in (excluded, urgent_only))
        self._take(self.fences[-1], limit, urgent, *held)

    def outbox_take_with(self, pick: int, limit: int) -> None:
        """Also as a sender that has been voided."""
        self._take(picked(self.fences, pick), limit, 0, [], [])

    def _take(
        self,
        fence: dict[Ledger, int],
        limit: int,
        urgent: int,
        excluded: list[tuple[str, str]],
        urgent_only: list[tuple[str, str]],
    ) -> None:
        fake, real = self.agree(
            lambda ledger: ledger.outbox_take(
                fence[ledger],
                limit=limit,
                urgent_limit=urgent,
                accounts_excluded=excluded,
                accounts_urgent_only=urgent_only,
            )
        )
        if isinstance(fake, list):
            for replies in zip(fake, real, strict=True):
                self._remember(*replies)

    def deliver(self, pick: int, ending: SendEnding, is_answer_lost: bool) -> None:
        """As a sender does: one that it was handed, with one call."""
        if not self.unsent:
            self.outbox_take(1, 0, [], [])
        if self.unsent:
            replies = self.unsent.pop(-1 - pick % len(self.unsent))
            if replies[self.fake].state is ReplyState.SENDING or self._sending(replies) is None:
                self._record(replies, ending, is_answer_lost=is_answer_lost)
            else:
                self._release(replies, 0.0)

    def outbox_sending(self, pick: int) -> None:
        for replies in self._picked(pick):
            self._sending(replies)

    def _sending(self, replies: Replies) -> Any:
        fence = self.fences[-1]
        return self.agree(lambda ledger: ledger.outbox_sending(fence[ledger], replies[ledger]))[0]

    def outbox_record(self, pick: int, ending: SendEnding) -> None:
        for replies in self._picked(pick):
            self._record(replies, ending)

    def _record(self, replies: Replies, ending: SendEnding, *, is_answer_lost: bool = False) -> None:
        fence = self.fences[-1]
        fake, real = self.agree(lambda ledger: ledger.outbox_record(fence[ledger], replies[ledger], ending))
        if is_answer_lost and isinstance(real, Delivered):
            self.look()
            _, again = self.agree(lambda ledger: ledger.outbox_record(fence[ledger], replies[ledger], ending))
            assert again == real
        if fake.next is not None:
            self._remember(fake.next, real.next)

    def outbox_release(self, pick: int, seconds: float) -> None:
        for replies in self._picked(pick):
            self._release(replies, seconds)

    def _release(self, replies: Replies, seconds: float) -> None:
        fence = self.fences[-1]
        self.agree(lambda ledger: ledger.outbox_release(fence[ledger], replies[ledger], seconds=seconds))

    def outbox_rearm(self, pick: int) -> None:
        run_id = self._some_task(pick).run_id
        self.agree(lambda ledger: ledger.outbox_rearm(run_id))

    def record_operation(self, limit: int) -> None:
        operation = Operation(at_ms=self.database.now_ms(), who="ann", action="drop", target="t")
        self.agree(lambda ledger: ledger.record_operation(operation))
        self.agree(lambda ledger: ledger.operations(limit=limit))

    def spoil_call(self, pick: int) -> None:
        """One that is still to be sent, as a damaged disk or a newer version leaves it."""
        waiting = [key for key, stored in self.state.replies.items() if stored.waits]
        if waiting:
            reply_id = picked(waiting, pick)
            self.state.spoil_call(reply_id)
            self._spoil("UPDATE replies SET call = 'spoilt' WHERE reply_id = ?", reply_id)

    def spoil_result(self, pick: int) -> None:
        run_id = self._some_task(pick).run_id
        if run_id in self.state.runs:
            self.state.spoil_result(run_id)
            self._spoil("UPDATE runs SET result = 'spoilt' WHERE run_id = ?", run_id)

    def _spoil(self, sql: str, key: str) -> None:
        answer(self.database.write(lambda connection: list(connection.execute(sql, (key,)))))

    def purge(self, seconds: float) -> None:
        before = self.database.now_ms() - int(seconds * 1000)
        self.agree(lambda ledger: ledger.purge(finished_before_ms=before))

    def forget_chat(self, chat: str, limit: int, dry_run: bool) -> None:
        after: str | None = ""
        while after is not None:
            step = {"after": after, "limit": limit, "dry_run": dry_run}
            fake, _ = self.agree(lambda ledger, step=step: ledger.forget_chat("telegram", "7", chat, **step))
            after = fake.after

    def forget_raw(self, seconds: float, limit: int) -> None:
        before, until = self.database.now_ms() - int(seconds * 1000), 0
        while until is not None:
            step = {"finished_before_ms": before, "after_ms": until, "limit": limit}
            until, _ = self.agree(lambda ledger, step=step: ledger.forget_raw(**step))

    def forget_history(self, before_ms: int, limit: int) -> None:
        """Each names in its own way where it goes on."""

        async def whole(ledger: Ledger) -> None:
            after: str | None = ""
            while after is not None:
                after = await ledger.forget_history(said_before_ms=before_ms, after=after, limit=limit)

        self.agree(whole)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def look_at_run(self, number: int, generation: int) -> None:
        of = task(number, generation=generation)
        self.agree(lambda ledger: ledger.latest_run(of.task_id))
        self.agree(lambda ledger: ledger.finished_among([task(number).task_id for number in TASKS]))
        self.agree(lambda ledger: ledger.replies(run_id=of.run_id))
        self.agree(lambda ledger: ledger.attempts(of.run_id))

    def look_at_chat(self, chat: str, after: int, limit: int) -> None:
        async def page(ledger: Ledger, after: int, limit: int) -> list[Reply]:
            return await ledger.transcript("telegram", "7", chat, after=after, limit=limit)

        async def rest(ledger: Ledger) -> list[Reply]:
            whole = await page(ledger, 0, 100)
            return await page(ledger, whole[min(after, len(whole)) - 1].sequence, limit) if whole and after else whole

        self.agree(rest)
        self.agree(lambda ledger: ledger.history("telegram", "7", chat, limit=limit))

    # --- comparing ---

    def agree(self, call: Asked) -> tuple[Any, Any]:
        fake, real = answer(call(self.fake)), answer(call(self.real))
        assert _comparable(fake) == _comparable(real)
        return fake, real

    def _some_task(self, pick: int) -> Task:
        """One that is being answered; where there is none, one that nobody knows."""
        runs = [stored for stored in self.state.runs.values() if stored.run.status is Status.REPLYING]
        return picked([stored.task for stored in runs] or [task(9)], pick)

    def _remember(self, fake: Reply, real: Reply) -> None:
        self.taken.append({self.fake: fake, self.real: real})
        self.unsent.append(self.taken[-1])

    def _picked(self, pick: int) -> list[Replies]:
        return [picked(self.taken, pick)] if self.taken else []


def _comparable(said: Any) -> Any:
    """Without what a backend may choose: the numbers of a sequence, and how it words why it gave up."""
    match said:
        case Reply():
            worded = said.state is ReplyState.FAILED
            error = str(bool(said.error)) if worded else said.error
            return msgspec.structs.replace(
                said, sequence=0, claim=0, error=error, unreadable=said.unreadable and "for some reason"
            )
        case ChatMove():
            return msgspec.structs.replace(said, sequence=0)
        case Run():
            return msgspec.structs.replace(said, unreadable=said.unreadable and "for some reason")
        case Ended(run, head):
            return _comparable(run), head
        case dict():
            return {key: _comparable(one) for key, one in said.items()}
        case Delivered(ended, following):
            return ended, _comparable(following)
        case OutboxDepth():
            return msgspec.structs.replace(said, oldest_waiting_ms=None)
        case list():
            return [_comparable(one) for one in said]
    return said


@pytest.mark.req("TST-3")
def test_both_say_the_same_whatever_is_done(request: pytest.FixtureRequest):
    compare(TwoLedgers, COMMANDS, request.config)


# --- where they once differed ---


@pytest.fixture(params=["fake", "real"])
def one(request: pytest.FixtureRequest) -> OneLedger:
    return OneLedger(request.param)


class OneLedger:
    """The fake as the port promises, or the real one, on a clock."""

    def __init__(self, kind: str) -> None:
        self.clock = ManualClock()
        self.database = opened(self.clock, ledger=SCHEMA)
        fake = MemoryLedger(MemoryLedgerState(), now_ms=self.database.now_ms)
        self.ledger: Ledger = fake if kind == "fake" else SqliteLedger(self.database)


async def test_a_chat_with_nothing_left_to_send_takes_nobodys_turn(one: OneLedger):
    ledger = one.ledger
    await save_answer(ledger, task(1, chat="a"))
    await ledger.finish(task(1, chat="a"), Status.DROPPED)
    one.clock.advance(1)
    await save_answer(ledger, task(2, chat="b"))
    fence = await ledger.outbox_open()
    assert [reply.chat_id for reply in await ledger.outbox_take(fence, limit=1)] == ["b"]


@pytest.mark.failure("A13")
async def test_when_a_chat_moves_what_is_held_moves_too(one: OneLedger):
    ledger = one.ledger
    await save_answer(ledger, task(1, chat="old"), 2)
    await save_answer(ledger, task(2, chat="old"))
    fence = await ledger.outbox_open()
    following = await send(ledger, fence, await take_one(ledger, fence), HeldUnknown("timeout"))
    await send(ledger, fence, following, Again(0.0, "moved", chat_id="new"))
    await ledger.outbox_rearm(task(1).run_id)
    assert {reply.chat_id for reply in await ledger.replies(run_id=task(1).run_id)} == {"new"}


async def test_what_was_purged_while_it_was_out_lets_its_chat_go_on(one: OneLedger):
    ledger = one.ledger
    await save_answer(ledger, task(1))
    await save_answer(ledger, task(2))
    fence = await ledger.outbox_open()
    out = await take_one(ledger, fence)
    await ledger.outbox_sending(fence, out)
    await ledger.finish(task(1), Status.DROPPED)
    one.clock.advance(1)
    assert await ledger.purge(finished_before_ms=one.database.now_ms()) == 1
    delivered = await ledger.outbox_record(fence, out, Sent())
    assert delivered.next is not None
    assert delivered.next.run_id == task(2).run_id

"""The ledger as a few dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from rise.envelope import (
    MOMENT_MS_MAX,
    Call,
    Outcome,
    Progress,
    ReplyId,
    RunId,
    Status,
    Task,
    TaskId,
    clean_text,
    decode_head,
    encode_head,
    encode_json,
    forgotten_head,
    new_key,
)
from rise.errors import ClaimLost
from rise.ledger.kept import ATTEMPTS_KEPT, is_of_chat, kept_text, known_status, read_task
from rise.ledger.port import (
    CALL_UNREADABLE,
    URGENT_CHATS,
    Again,
    Attempt,
    ChatForgotten,
    ChatMove,
    Delivered,
    Ended,
    Failed,
    HeldUnknown,
    HistoryLine,
    Office,
    Operation,
    OutboxDepth,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    Run,
    RunEnded,
    RunResult,
    SendEnding,
    Sent,
    count_tries,
)
from rise.testing.fakes.store import MemoryStore

T = TypeVar("T")
Chat = tuple[str, str, str]
"""Channel, account, chat id."""

HISTORY_KEPT: Final = 50
"""Turns kept per chat."""

_FINAL: Final = (ReplyState.SENT, ReplyState.FAILED)


@dataclass(slots=True)
class StoredRun:
    task: Task
    run: Run


@dataclass(slots=True)
class StoredReply:
    reply: Reply
    is_held: bool = False
    """It waits with one of its run of which a person has to say whether it is sent again."""
    is_too_late: bool = False

    def change(self, **changes: Any) -> None:
        self.reply = msgspec.structs.replace(self.reply, **changes)

    @property
    def chat(self) -> Chat:
        return _chat_of(self.reply)

    @property
    def waits(self) -> bool:
        return self.reply.state not in _FINAL

    @property
    def is_open(self) -> bool:
        """Whether it is a sender's turn."""
        return self.reply.state in (ReplyState.READY, ReplyState.SENDING) and not self.is_held

    @property
    def is_untried(self) -> bool:
        return self.reply.state is ReplyState.READY and not self.reply.tries and not self.reply.resends


@dataclass(slots=True)
class MemoryLedgerState:
    """The store. What a process keeps of it is nothing, so all may die and others go on with it."""

    runs: dict[RunId, StoredRun] = field(default_factory=dict)
    steps: dict[RunId, dict[str, bytes]] = field(default_factory=dict)
    attempts: dict[RunId, list[Attempt]] = field(default_factory=dict)
    history: dict[Chat, list[tuple[int, HistoryLine]]] = field(default_factory=dict)
    """With the number of each turn among all."""
    turns_ever: int = 0
    replies: dict[ReplyId, StoredReply] = field(default_factory=dict)
    """In the order of saving."""
    chats: dict[Chat, int | None] = field(default_factory=dict)
    """Those with replies to send, and from when they may be sent. None: somebody sends to it now."""
    claims: dict[Chat, tuple[int, int | None]] = field(default_factory=dict)
    """Of those that somebody sends to: the number of the taking, and of the one that it goes on from."""
    moved: dict[Chat, str] = field(default_factory=dict)
    """Where replies to a former id go."""
    moves: list[ChatMove] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    identity: str = field(default_factory=new_key)
    offices: dict[Office, tuple[str, int]] = field(default_factory=dict)
    """Whose they are, and until when."""
    replies_ever: int = 0
    claims_ever: int = 0
    sender_fence: int = 0
    resent: int = 0

    def spoil_call(self, reply_id: ReplyId) -> None:
        """From now on nobody here can read it."""
        self.replies[reply_id].change(call=CALL_UNREADABLE, unreadable="it was spoilt")

    def spoil_result(self, run_id: RunId) -> None:
        stored = self.runs[run_id]
        stored.run = msgspec.structs.replace(stored.run, result=None, unreadable="it was spoilt")

    def spoil_head(self, run_id: RunId) -> None:
        stored = self.runs[run_id]
        stored.task = read_task(
            b"of tomorrow",
            stored.task.raw,
            stored.task.progress,
            task_id=stored.run.task_id,
            channel=stored.task.head.channel,
            accepted_at_ms=stored.run.accepted_at_ms,
            fingerprint=stored.run.fingerprint,
        )

    def overwrite_words(self, task_id: TaskId, *, state: str) -> None:
        """All that is said of its run and its replies is said in words that nobody here knows."""
        for stored in self.runs.values():
            if stored.run.task_id == task_id:
                known, newer = known_status("a word", has_ended=stored.run.finished_at_ms is not None)
                stored.run = msgspec.structs.replace(stored.run, status=known, outcome=None, unreadable=newer)
                progress = msgspec.structs.replace(stored.task.progress, status=known, error=newer)
                stored.task = msgspec.structs.replace(stored.task, progress=progress)
        for reply in self.replies.values():
            if reply.reply.task_id == task_id:
                known_state = ReplyState(state) if state in set(ReplyState) else ReplyState.UNKNOWN
                reply.change(state=known_state, unreadable="a newer version of Rise says of it: a word")


class MemoryLedger(MemoryStore):
    """`rise.ledger.port.Ledger`, as one process sees the state."""

    def __init__(
        self, state: MemoryLedgerState, *, now_ms: Callable[[], int], history_kept: int = HISTORY_KEPT
    ) -> None:
        self._state = state
        self._now_ms = now_ms
        self._history_kept = history_kept

    # --- results ---

    async def save_result(
        self,
        task: Task,
        result: RunResult,
        replies: Sequence[Reply],
        history: Sequence[HistoryLine],
        *,
        deliver: bool,
    ) -> Run:
        return await self._through("save_result", lambda: self._save_result(task, result, replies, history, deliver))

    def _save_result(
        self, task: Task, result: RunResult, replies: Sequence[Reply], history: Sequence[HistoryLine], deliver: bool
    ) -> Run:
        if task.run_id in self._state.runs:
            return self._state.runs[task.run_id].run
        is_answered = any(reply.kind is ReplyKind.ANSWER for reply in replies)
        is_open = (deliver and is_answered) or result.outcome is Outcome.MERGED
        status = Status.REPLYING if is_open else Status.COMPLETED
        run = self._add_run(task, result, status, result.outcome)
        for reply in replies:
            is_sent_out = deliver or reply.kind is ReplyKind.CALLBACK
            self._add_reply(reply, ReplyState.READY if is_sent_out else ReplyState.SENT)
        self._add_history(task, history)
        return run

    def _add_run(self, task: Task, result: RunResult, status: Status, outcome: Outcome | None) -> Run:
        now = self._now_ms()
        self._drop_former(task)
        if task.head.moved is not None:
            old, moved_to = task.head.moved
            self._move_chat((task.head.channel, task.head.account, old), moved_to)
        run = Run(
            task_id=task.task_id,
            generation=task.progress.generation,
            status=status,
            outcome=outcome,
            result=_as_stored(result.value, Any),
            workflow_id=result.workflow_id,
            workflow_version=result.workflow_version,
            saved_at_ms=now,
            finished_at_ms=now if status.is_finished else None,
            accepted_at_ms=task.head.accepted_at_ms,
            fingerprint=task.head.fingerprint,
        )
        kept = Task(decode_head(encode_head(task.head)), task.raw, Progress(status=status, generation=run.generation))
        self._state.runs[task.run_id] = StoredRun(kept, run)
        if status.is_finished:
            self._state.steps.pop(task.run_id, None)
        return run

    def _drop_former(self, task: Task) -> None:
        why = f"run again as generation {task.progress.generation}"
        for run_id, stored in self._state.runs.items():
            run = stored.run
            is_former = run.task_id == task.task_id and run.generation < task.progress.generation
            if is_former and not run.status.is_finished and not run.is_of_former(task.head):
                self._take_back(run_id, why)
                self._end(run_id, Status.DROPPED, None, why=why)

    def _add_history(self, task: Task, lines: Sequence[HistoryLine]) -> None:
        if task.head.chat_id is not None:
            chat = self._first((task.head.channel, task.head.account, task.head.chat_id))
            said = [msgspec.structs.replace(line, text=kept_text(line.text)) for line in lines]
            numbered = enumerate(said, start=self._state.turns_ever)
            self._state.history[chat] = [*self._state.history.get(chat, []), *numbered][-self._history_kept :]
            self._state.turns_ever += len(said)

    async def finish(
        self,
        task: Task,
        status: Status,
        outcome: Outcome | None = None,
        *,
        by: str = "",
        why: str = "",
        callback: Reply | None = None,
    ) -> Run:
        assert status.is_finished
        return await self._through("finish", lambda: self._finish(task, status, outcome, by, why, callback))

    def _finish(
        self, task: Task, status: Status, outcome: Outcome | None, by: str, why: str, callback: Reply | None
    ) -> Run:
        known = self._state.runs.get(task.run_id)
        if known is None:
            self._add_run(task, RunResult(outcome=Outcome.SILENT), status, outcome)
        elif known.run.status.is_finished:
            return known.run
        else:
            self._take_back(task.run_id, f"the task was {status}")
        if callback is not None:
            self._add_callback(callback)
        return self._end(task.run_id, status, outcome, by=clean_text(by) or None, why=clean_text(why) or None)

    def _end(self, run_id: RunId, status: Status, outcome: Outcome | None, **more: Any) -> Run:
        stored = self._state.runs[run_id]
        stored.task = msgspec.structs.replace(
            stored.task, progress=msgspec.structs.replace(stored.task.progress, status=status)
        )
        stored.run = msgspec.structs.replace(
            stored.run, status=status, outcome=outcome, finished_at_ms=self._now_ms(), **more
        )
        self._state.steps.pop(run_id, None)
        return stored.run

    async def note_armed(self, run_id: RunId) -> None:
        await self._through("note_armed", lambda: self._note_armed(run_id))

    def _note_armed(self, run_id: RunId) -> None:
        if run_id in self._state.runs:
            stored = self._state.runs[run_id]
            stored.run = msgspec.structs.replace(stored.run, is_armed=True)

    async def run(self, run_id: RunId) -> Run | None:
        return await self._through("run", lambda: self._run(run_id))

    def _run(self, run_id: RunId) -> Run | None:
        return self._state.runs[run_id].run if run_id in self._state.runs else None

    async def latest_run(self, task_id: TaskId) -> Run | None:
        return await self._through("latest_run", lambda: self._latest_run(task_id))

    def _latest_run(self, task_id: TaskId) -> Run | None:
        latest = self._latest(task_id)
        return latest.run if latest else None

    def _latest(self, task_id: TaskId) -> StoredRun | None:
        runs = [stored for stored in self._state.runs.values() if stored.run.task_id == task_id]
        return max(runs, key=lambda stored: stored.run.generation, default=None)

    async def archived(self, task_id: TaskId) -> Task | None:
        return await self._through("archived", lambda: self._archived(task_id))

    def _archived(self, task_id: TaskId) -> Task | None:
        latest = self._latest(task_id)
        return latest.task if latest else None

    async def finished_among(self, task_ids: Sequence[TaskId]) -> dict[TaskId, Run]:
        return await self._through("finished_among", lambda: self._finished_among(task_ids))

    def _finished_among(self, task_ids: Sequence[TaskId]) -> dict[TaskId, Run]:
        latest = [(task_id, self._latest_run(task_id)) for task_id in task_ids]
        return {task_id: run for task_id, run in latest if run is not None and run.status.is_finished}

    async def save_step(self, run_id: RunId, step: str, value: bytes) -> bytes:
        return await self._through(
            "save_step", lambda: self._state.steps.setdefault(run_id, {}).setdefault(step, value)
        )

    async def steps(self, run_id: RunId) -> dict[str, bytes]:
        return await self._through("steps", lambda: dict(self._state.steps.get(run_id, {})))

    async def add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        await self._through("add_attempt", lambda: self._add_attempt(run_id, attempt))

    def _add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        known = self._state.attempts.get(run_id, [])
        error, number = clean_text(attempt.error), count_tries(known) + 1
        kept = msgspec.structs.replace(attempt, error=error, number=number)
        self._state.attempts[run_id] = [*known, kept][-ATTEMPTS_KEPT:]

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        return await self._through("attempts", lambda: list(self._state.attempts.get(run_id, [])))

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[HistoryLine]:
        return await self._through("history", lambda: self._history((channel, account, chat_id), limit))

    def _history(self, chat: Chat, limit: int) -> list[HistoryLine]:
        lines = self._state.history.get(self._first(chat), [])
        return [line for _, line in lines[max(0, len(lines) - limit) :]]

    # --- chats ---

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        await self._through("move_chat", lambda: self._move_chat((channel, account, chat_id), moved_to))

    def _move_chat(self, old: Chat, moved_to: str) -> None:
        self._join_chats(old, moved_to)
        if old not in self._state.chats:
            self._redirect(old, moved_to)
        elif (due := self._state.chats[old]) is not None:
            self._move_line(old, moved_to, due)

    def _join_chats(self, old: Chat, moved_to: str) -> None:
        channel, account, _ = old
        first, new = self._first(old), (channel, account, moved_to)
        if first == new or any(new in (_chat_of(move), self._first(_chat_of(move))) for move in self._state.moves):
            return
        sequence = len(self._state.moves) + 1
        self._state.moves.append(
            ChatMove(channel=channel, account=account, chat_id=moved_to, first_id=first[2], sequence=sequence)
        )
        if known := self._state.history.pop(new, []):
            self._state.history[first] = sorted([*self._state.history.get(first, []), *known], key=lambda turn: turn[0])

    def _first(self, chat: Chat) -> Chat:
        """The chat by the first id that it had."""
        return next(((*chat[:2], move.first_id) for move in self._state.moves if _chat_of(move) == chat), chat)

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        return await self._through("chat_moves", lambda: self._state.moves[after:])

    # --- outbox ---

    async def add_notice(self, reply: Reply, *, deliver: bool = True, unless_run: RunId | None = None) -> bool:
        state = ReplyState.READY if deliver else ReplyState.SENT
        return await self._through(
            "add_notice", lambda: unless_run not in self._state.runs and self._add_reply(reply, state)
        )

    def _add_reply(self, meant: Reply, state: ReplyState) -> bool:
        if meant.reply_id in self._state.replies:
            return False
        self._state.replies_ever += 1
        first = self._first(_chat_of(meant))
        reply = Reply(
            reply_id=meant.reply_id,
            run_id=meant.run_id,
            task_id=meant.task_id,
            channel=meant.channel,
            account=meant.account,
            chat_id=self._state.moved.get(first, first[2]),
            call=_as_stored(meant.call, Call),
            kind=meant.kind,
            workflow_id=meant.workflow_id,
            accepted_at_ms=meant.accepted_at_ms,
            deadline_at_ms=meant.deadline_at_ms,
            state=state,
            sequence=self._state.replies_ever,
        )
        self._state.replies[reply.reply_id] = StoredReply(reply)
        if state is ReplyState.READY:
            self._line_up(_chat_of(reply), self._now_ms())
        return True

    def _add_callback(self, callback: Reply) -> None:
        standing = self._state.replies.get(callback.reply_id)
        if standing is not None and standing.is_untried:
            del self._state.replies[callback.reply_id]
        self._add_reply(callback, ReplyState.READY)

    async def outbox_open(self) -> int:
        return await self._through("outbox_open", self._outbox_open)

    def _outbox_open(self) -> int:
        self._state.sender_fence += 1
        for chat, due in self._state.chats.items():
            if due is None:
                self._state.chats[chat] = self._now_ms()
        self._state.claims.clear()
        return self._state.sender_fence

    async def outbox_take(
        self,
        fence: int,
        *,
        limit: int,
        urgent_limit: int = 0,
        accounts_excluded: Sequence[tuple[str, str]] = (),
        accounts_urgent_only: Sequence[tuple[str, str]] = (),
    ) -> list[Reply]:
        held = (accounts_excluded, [*accounts_excluded, *accounts_urgent_only])
        return await self._through(
            "outbox_take", lambda: self._outbox_take(fence, limit, max(limit, urgent_limit), *held)
        )

    def _outbox_take(
        self,
        fence: int,
        limit: int,
        urgent_limit: int,
        held_for_urgent: Sequence[tuple[str, str]],
        held_for_others: Sequence[tuple[str, str]],
    ) -> list[Reply]:
        places = [
            (chat, urgent_limit if _is_urgent(chat) else limit)
            for chat in self._due_chats()
            if chat[:2] not in (held_for_urgent if _is_urgent(chat) else held_for_others)
        ]
        if not any(limit > 0 for _, limit in places):
            return []  # there is nothing that a stale fence could do harm to
        self._check_fence(fence)
        taken: list[Reply] = []
        for chat, most in places:
            if len(taken) < most and (reply := self._take(chat)) is not None:
                taken.append(reply)
        return taken

    def _due_chats(self) -> list[Chat]:
        """Those of urgent calls first, and then longest-waiting first."""
        now = self._now_ms()
        due = [(not _is_urgent(chat), due, chat) for chat, due in self._waiting_chats() if due <= now]
        return [chat for _, _, chat in sorted(due)]

    def _waiting_chats(self) -> list[tuple[Chat, int]]:
        return [(chat, due) for chat, due in self._state.chats.items() if due is not None]

    def _take(self, chat: Chat, *, after: int | None = None, claim: int | None = None) -> Reply | None:
        """The chat's first open reply, one in doubt before all others; a chat without one is forgotten."""
        replies = [stored.reply for stored in self._replies_to(chat) if stored.is_open]
        in_doubt = (reply for reply in replies if reply.state is ReplyState.SENDING)
        reply = next(in_doubt, replies[0] if replies else None)
        if reply is None:
            self._forget_chat(chat)
            return None
        if claim is None:
            self._state.claims_ever += 1
            claim = self._state.claims_ever
        self._state.chats[chat] = None
        self._state.claims[chat] = (claim, after)
        return msgspec.structs.replace(reply, claim=claim)

    def _forget_chat(self, chat: Chat) -> None:
        self._state.chats.pop(chat, None)
        self._state.claims.pop(chat, None)

    def _let_go(self, reply: Reply, due: int) -> None:
        if self._claims(reply)[0] == reply.claim:
            self._state.chats[_chat_of(reply)] = due
            del self._state.claims[_chat_of(reply)]

    def _claims(self, reply: Reply) -> tuple[int | None, int | None]:
        return self._state.claims.get(_chat_of(reply), (None, None))

    async def outbox_sending(self, fence: int, reply: Reply) -> None:
        await self._through("outbox_sending", lambda: self._outbox_sending(fence, reply))

    def _outbox_sending(self, fence: int, reply: Reply) -> None:
        self._check_fence(fence)
        stored = self._as_taken(reply)
        if stored is None or not stored.is_open or stored.reply.state is not ReplyState.READY:
            raise ClaimLost(f"the reply {reply.reply_id} is not to be sent any more")
        stored.change(state=ReplyState.SENDING)

    async def outbox_record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        return await self._through("outbox_record", lambda: self._outbox_record(fence, reply, ending))

    def _outbox_record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        self._check_fence(fence)
        chat, now = _chat_of(reply), self._now_ms()
        stored = self._as_taken(reply)
        claim, before = self._claims(reply)
        if claim != reply.claim:
            following = self._take(chat, after=before, claim=claim) if before == reply.claim else None
            return Delivered(self._end_if_all_final(stored.reply) if stored else None, following)
        pause_ms = int(self._record(stored, ending) * 1000) if stored else 0
        if isinstance(ending, Again) and ending.chat_id is not None:
            self._join_chats(chat, ending.chat_id)
            self._move_line(chat, ending.chat_id, now + pause_ms)
            return Delivered(None, None)
        ended = self._end_if_all_final(stored.reply) if stored else None
        if pause_ms:
            self._let_go(reply, now + pause_ms)
            return Delivered(ended, None)
        return Delivered(ended, self._take(chat, after=claim))

    def _as_taken(self, reply: Reply) -> StoredReply | None:
        """None: it is not there any more, or another has taken its place."""
        stored = self._state.replies.get(reply.reply_id)
        return stored if stored is not None and stored.reply.sequence == reply.sequence else None

    def _record(self, stored: StoredReply, ending: SendEnding) -> float:
        """Returns for how many seconds its chat pauses."""
        reply = stored.reply
        if isinstance(ending, Again | Resend | HeldUnknown) and self._has_ended(reply):
            # What was dropped while its call was out is not answered, so it is not tried once more.
            ending = Failed(f"not tried again, the task had ended: {ending.error}")
        match ending:
            case Sent(platform_ref):
                stored.change(state=ReplyState.SENT, platform_ref=platform_ref, error=None)
                return 0.0
            case Failed(error, chat_gone, too_late):
                stored.is_too_late = too_late
                stored.change(state=ReplyState.FAILED, platform_ref=None, error=clean_text(error))
                if chat_gone and reply.kind is ReplyKind.ANSWER:
                    self._take_back(reply.run_id, error)
                self._fail_what_continues(reply)
                return 0.0
            case HeldUnknown(error):
                stored.change(state=ReplyState.UNKNOWN, platform_ref=None, error=clean_text(error))
                self._hold_with(reply)
                return 0.0
            case Again(seconds, error, call):
                stored.change(tries=reply.tries + 1)
            case Resend(error, call, seconds):
                stored.change(resends=reply.resends + 1)
                self._state.resent += 1
        if call is not None:
            stored.change(call=_as_stored(call, Call), unreadable=None)
        stored.change(state=ReplyState.READY, platform_ref=None, error=clean_text(error))
        return seconds

    def _fail_what_continues(self, refused: Reply) -> None:
        same_text = True
        for stored in self._state.replies.values():
            reply = stored.reply
            if (reply.run_id, reply.kind) == (refused.run_id, refused.kind) and reply.sequence > refused.sequence:
                same_text = same_text and reply.call.continues
                if same_text and reply.state is ReplyState.READY:
                    stored.change(state=ReplyState.FAILED, error="not tried: what it continues was not taken")

    def _hold_with(self, unknown: Reply) -> None:
        if unknown.kind is ReplyKind.ANSWER:
            for stored in self._answers(unknown.run_id):
                if stored.reply.state is ReplyState.READY and stored.reply.sequence > unknown.sequence:
                    stored.is_held = True

    def _end_if_all_final(self, reply: Reply) -> RunEnded | None:
        """The end of the run if this reply was the last one."""
        run, answers = self._run(reply.run_id), self._answers(reply.run_id)
        if reply.kind is not ReplyKind.ANSWER or run is None or any(stored.waits for stored in answers):
            return None
        status, outcome = _end_of(answers)
        if run.status is Status.REPLYING:
            run = self._end(reply.run_id, status, outcome)
        has_ended_so = run.status is status and run.outcome is outcome
        return RunEnded(run.task_id, run.generation, outcome, status) if has_ended_so else None

    def _move_line(self, old: Chat, moved_to: str, due: int) -> None:
        self._redirect(old, moved_to)
        self._forget_chat(old)
        self._line_up((*old[:2], moved_to), due)

    def _redirect(self, old: Chat, moved_to: str) -> None:
        for chat, target in self._state.moved.items():
            if (*chat[:2], target) == old:
                self._state.moved[chat] = moved_to
        self._state.moved[old] = moved_to
        for stored in self._replies_to(old):
            if stored.waits:
                stored.change(chat_id=moved_to)

    async def outbox_release(self, fence: int, reply: Reply, *, seconds: float) -> None:
        await self._through("outbox_release", lambda: self._outbox_release(fence, reply, seconds))

    def _outbox_release(self, fence: int, reply: Reply, seconds: float) -> None:
        self._check_fence(fence)
        self._let_go(reply, self._now_ms() + int(seconds * 1000))

    async def outbox_rearm(self, run_id: RunId) -> int:
        return await self._through("outbox_rearm", lambda: self._outbox_rearm(run_id))

    def _outbox_rearm(self, run_id: RunId) -> int:
        held = [stored for stored in self._answers(run_id) if _waits_for_a_person(stored)]
        for stored in held:
            if stored.reply.state is ReplyState.UNKNOWN:
                stored.change(resends=stored.reply.resends + 1)
                self._state.resent += 1
            stored.change(state=ReplyState.READY)
            stored.is_held = False
            self._line_up(stored.chat, self._now_ms())
        return len(held)

    async def outbox_depth(self) -> OutboxDepth:
        return await self._through("outbox_depth", self._outbox_depth)

    def _outbox_depth(self) -> OutboxDepth:
        waiting = [stored for stored in self._state.replies.values() if stored.waits]
        states = Counter("held" if stored.is_held else stored.reply.state.value for stored in waiting)
        ages = [self._now_ms() - due for chat, due in self._waiting_chats() if self._has_something_for(chat)]
        return OutboxDepth(
            by_state=states,
            oldest_waiting_ms=max(0, *ages) if ages else None,
            unknown=states["unknown"],
            resent=self._state.resent,
        )

    async def replies(self, *, run_id: RunId | None = None, task_id: TaskId | None = None) -> list[Reply]:
        return await self._through("replies", lambda: self._replies(run_id, task_id))

    def _replies(self, run_id: RunId | None, task_id: TaskId | None) -> list[Reply]:
        replies = [stored.reply for stored in self._state.replies.values()]
        if run_id is not None:
            return [reply for reply in replies if reply.run_id == run_id]
        return [reply for reply in replies if reply.task_id == task_id]

    async def transcript(self, channel: str, account: str, chat_id: str, *, after: int, limit: int) -> list[Reply]:
        return await self._through("transcript", lambda: self._transcript((channel, account, chat_id), after, limit))

    def _transcript(self, chat: Chat, after: int, limit: int) -> list[Reply]:
        return [stored.reply for stored in self._replies_to(chat) if stored.reply.sequence > after][:limit]

    # --- who it is ---

    async def identity(self) -> str:
        return await self._through("identity", lambda: self._state.identity)

    # --- offices ---

    async def take_office(self, office: Office, member: str, *, seconds: float) -> bool:
        return await self._through("take_office", lambda: self._take_office(office, member, seconds))

    def _take_office(self, office: Office, member: str, seconds: float) -> bool:
        now = self._now_ms()
        holder, until = self._state.offices.get(office, (member, now))
        if holder != member and until > now:
            return False
        self._state.offices[office] = (member, now + int(seconds * 1000))
        return True

    async def leave_offices(self, member: str) -> None:
        await self._through("leave_offices", lambda: self._leave_offices(member))

    def _leave_offices(self, member: str) -> None:
        self._state.offices = {office: held for office, held in self._state.offices.items() if held[0] != member}

    # --- people ---

    async def record_operation(self, operation: Operation) -> None:
        kept = _as_stored(operation, Operation)
        await self._through("record_operation", lambda: self._state.operations.append(kept))

    async def operations(self, *, limit: int) -> list[Operation]:
        return await self._through("operations", lambda: self._state.operations[::-1][:limit])

    async def purge(self, *, finished_before_ms: int, limit: int = 5000) -> int:
        return await self._through("purge", lambda: self._purge(finished_before_ms, limit))

    def _purge(self, finished_before_ms: int, limit: int) -> int:
        finished = [(stored.run.finished_at_ms, run_id) for run_id, stored in self._state.runs.items()]
        old = sorted((at, run_id) for at, run_id in finished if at is not None and at < finished_before_ms)[:limit]
        for _, run_id in old:
            self._forget(run_id)
        return len(old)

    def _forget(self, run_id: RunId) -> None:
        state = self._state
        del state.runs[run_id]
        state.steps.pop(run_id, None)
        state.attempts.pop(run_id, None)
        state.replies = {key: stored for key, stored in state.replies.items() if stored.reply.run_id != run_id}

    async def forget_raw(self, *, finished_before_ms: int, after_ms: int = 0, limit: int = 500) -> int | None:
        return await self._through("forget_raw", lambda: self._forget_raw(finished_before_ms, after_ms, limit))

    def _forget_raw(self, before_ms: int, after_ms: int, limit: int) -> int | None:
        ends = {run_id: stored.run.finished_at_ms or 0 for run_id, stored in self._state.runs.items()}
        old = sorted(at for at in ends.values() if after_ms < at < before_ms)[:limit]
        if not old:
            return None
        for run_id, at in ends.items():
            if after_ms < at <= old[-1]:
                stored = self._state.runs[run_id]
                stored.task = msgspec.structs.replace(stored.task, raw=b"")
                self._state.steps.pop(run_id, None)
        return old[-1]

    async def forget_history(self, *, said_before_ms: int, after: str = "", limit: int = 500) -> str | None:
        return await self._through("forget_history", lambda: self._forget_history(said_before_ms, after, limit))

    def _forget_history(self, before_ms: int, after: str, limit: int) -> str | None:
        history = self._state.history
        keys = sorted(key for chat in history if (key := encode_json(chat).decode()) > after)[:limit]
        for chat in [chat for chat in history if encode_json(chat).decode() in keys]:
            history[chat] = [(number, turn) for number, turn in history[chat] if turn.at_ms >= before_ms]
            if not history[chat]:
                del history[chat]
        return keys[-1] if 0 < limit == len(keys) else None

    async def forget_chat(
        self, channel: str, account: str, chat_id: str, *, after: str = "", limit: int = 500, dry_run: bool = False
    ) -> ChatForgotten:
        chat, limit = (channel, account, chat_id), max(1, limit)
        return await self._through("forget_chat", lambda: self._forget_chat_step(chat, after, limit, dry_run))

    def _forget_chat_step(self, chat: Chat, after: str, limit: int, dry_run: bool) -> ChatForgotten:
        state, names = self._state, self._names(chat)
        page = sorted(run_id for run_id in state.runs if run_id > after)[:limit]
        whose = {one: is_of_chat(state.runs[one].task.head, *chat[:2], names) for one in page}
        of_chat = [one for one in page if whose[one]]
        found = {run_id for run_id in of_chat if state.runs[run_id].run.is_over}
        is_last = len(page) < limit
        chats = [(*chat[:2], name) for name in names] if is_last else []
        seen = ChatForgotten(
            looked_at=len(page),
            runs=len(found),
            replies=sum(stored.reply.run_id in found for stored in state.replies.values()),
            turns=sum(len(state.history.get(one, [])) for one in chats),
            unfinished=len(of_chat) - len(found),
            unreadable=sum(whose[one] is None and state.runs[one].run.status.is_finished for one in page),
            after=None if is_last else page[-1],
        )
        if not dry_run:
            for run_id in page:
                head = state.runs[run_id].task.head
                if head.channel == chat[0] and head.is_forgotten:
                    state.steps.pop(run_id, None)
                    state.attempts.pop(run_id, None)
            for run_id in found:
                self._forget_content(run_id)
            for one in chats:
                state.history.pop(one, None)
        return seen

    def _forget_content(self, run_id: RunId) -> None:
        stored = self._state.runs[run_id]
        self._forget(run_id)
        stored.task = Task(forgotten_head(stored.task.head), b"", stored.task.progress)
        stored.run = msgspec.structs.replace(stored.run, result=None, why=None, unreadable=None)
        self._state.runs[run_id] = stored

    def _names(self, chat: Chat) -> frozenset[str]:
        """All ids that it ever had."""
        first = self._first(chat)
        moved = (move.chat_id for move in self._state.moves if (*_chat_of(move)[:2], move.first_id) == first)
        return frozenset([first[2], *moved])

    async def ended(self, *, limit: int, before_ms: int = MOMENT_MS_MAX) -> list[Ended]:
        return await self._through("ended", lambda: self._ended(limit, before_ms))

    def _ended(self, limit: int, before_ms: int) -> list[Ended]:
        ended = [one for one in self._state.runs.values() if (one.run.finished_at_ms or before_ms) < before_ms]
        ended.sort(key=lambda one: (one.run.finished_at_ms, one.task.run_id), reverse=True)
        page = [one.run.finished_at_ms for one in ended[:limit]]
        shown = [(one.run, one.task.head) for one in ended if one.run.finished_at_ms in page]
        return [Ended(run, None if head.is_stand_in else head) for run, head in shown]

    async def finished_counts(self) -> Mapping[str, int]:
        return await self._through("finished_counts", self._finished_counts)

    def _finished_counts(self) -> Mapping[str, int]:
        runs = [stored.run for stored in self._state.runs.values() if stored.run.status.is_finished]
        return Counter(f"{run.status}.{run.outcome}" if run.outcome else run.status.value for run in runs)

    # --- replies ---

    def _check_fence(self, fence: int) -> None:
        if fence != self._state.sender_fence:
            raise ClaimLost("another process sends now")

    def _line_up(self, chat: Chat, due: int) -> None:
        """A chat that is there already is being sent to, or waits for its time: what is new queues behind."""
        self._state.chats.setdefault(chat, due)

    def _has_something_for(self, chat: Chat) -> bool:
        return any(stored.is_open for stored in self._replies_to(chat))

    def _has_ended(self, reply: Reply) -> bool:
        run = self._run(reply.run_id)
        return reply.kind is ReplyKind.ANSWER and run is not None and run.status.is_finished

    def _take_back(self, run_id: RunId, why: str) -> None:
        """What is not out is not sent any more, and not again if it was perhaps sent."""
        for stored in self._answers(run_id):
            if stored.reply.state in (ReplyState.READY, ReplyState.UNKNOWN):
                was_perhaps_sent = stored.reply.state is ReplyState.UNKNOWN or stored.reply.resends > 0
                prefix = "not sent again" if was_perhaps_sent else "not sent"
                stored.change(state=ReplyState.FAILED, error=f"{prefix}: {clean_text(why)}")

    def _answers(self, run_id: RunId) -> list[StoredReply]:
        of_run = [stored for stored in self._state.replies.values() if stored.reply.run_id == run_id]
        return [stored for stored in of_run if stored.reply.kind is ReplyKind.ANSWER]

    def _replies_to(self, chat: Chat) -> list[StoredReply]:
        return [stored for stored in self._state.replies.values() if stored.chat == chat]


def _chat_of(one: Reply | ChatMove) -> Chat:
    return one.channel, one.account, one.chat_id


def _end_of(answers: Sequence[StoredReply]) -> tuple[Status, Outcome | None]:
    if all(stored.is_too_late for stored in answers):
        return Status.EXPIRED, None
    is_whole = all(stored.reply.state is ReplyState.SENT for stored in answers)
    return Status.COMPLETED, Outcome.ANSWERED if is_whole else Outcome.UNDELIVERABLE


def _is_urgent(chat: Chat) -> bool:
    return chat[2].startswith(URGENT_CHATS)


def _waits_for_a_person(stored: StoredReply) -> bool:
    return stored.reply.state is ReplyState.UNKNOWN or (stored.reply.state is ReplyState.READY and stored.is_held)


def _as_stored(value: Any, type_: type[T]) -> T:
    """As it comes back from a store that writes JSON."""
    return msgspec.json.decode(encode_json(value), type=type_)

"""The ledger as those reach it who write results: while it does not answer, what they write waits in Redis.

Promises: what is taken is kept, in order, and once: the ledger keeps the first of a run, and so does what waits. As
long as anything waits, results and notices queue up behind it, so that no chat is answered out of its order; and what
waits of a chat is part of its history.

Refuses: to say of a message what only the ledger can know (`LedgerSilent`). Everything else is the ledger's own affair,
its errors included: what is sent, what people look at, and what they drop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from rise.clock import Clock, epoch_ms
from rise.envelope import Outcome, RunId, Status, Task, TaskId, TaskType, run_id_of
from rise.errors import EnvelopeMalformed, LedgerSilent, Unavailable, WrittenByNewer
from rise.ledger.kept import ATTEMPTS_KEPT, kept_text
from rise.ledger.late import (
    LateArming,
    LateAttempt,
    LateEnd,
    LateNotice,
    LateResult,
    LateRun,
    LateStep,
    LateWrite,
    LateWrites,
    decode_late,
    encode_late,
    key_of,
    key_of_arming,
    key_of_run,
)
from rise.ledger.port import Attempt, HistoryLine, Ledger, Reply, Run, RunResult, count_tries

T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
"""So often somebody waits for a ledger that does not answer; all others are told so at once."""
CHATS_REMEMBERED: Final = 1000
"""Whose history is known while the ledger is away."""
REMEMBERED_SECONDS: Final = 3600.0
"""For so long: a person may have had a chat forgotten."""
GENERATIONS_LOOKED_FOR: Final = 32
"""Of a message, among what waits. Nobody runs one again more often, and a further one is known when it is written."""
LATE_BYTES_MAX: Final = 1 << 20
NOTICES: Final = "notices"

ONLY_THE_LEDGERS: Final = frozenset(
    {
        *("archived", "finished_among", "finished_counts", "ended", "replies", "transcript", "identity", "operations"),
        *("outbox_open", "outbox_take", "outbox_sending", "outbox_record", "outbox_release", "outbox_rearm"),
        *("outbox_depth", "take_office", "leave_offices", "move_chat", "chat_moves", "record_operation"),
        *("purge", "forget_raw", "forget_history", "forget_chat"),
    }
)
"""What is asked and written there, and does not wait: whoever adds to the port decides for it."""


class LateLedger:
    """`rise.ledger.port.Ledger`, but for what cannot wait."""

    def __init__(self, ledger: Ledger, late: LateWrites, clock: Clock) -> None:
        self._ledger = ledger
        self._late = late
        self._clock = clock
        self._look_at: float | None = None
        self._histories: OrderedDict[tuple[str, str, str], tuple[float, list[HistoryLine]]] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        if name not in ONLY_THE_LEDGERS:
            raise AttributeError(name)
        return getattr(self._ledger, name)

    # --- what was done of a message ---

    async def run(self, run_id: RunId) -> Run | None:
        """Raises `LedgerSilent` unless its result waits here, and `RedisUnavailable` where that cannot be told."""
        waiting = await self._read(key_of_run(run_id))
        try:
            known = await self._ask(lambda: self._ledger.run(run_id))
        except Unavailable as error:
            if waiting is None:
                raise LedgerSilent(error.public_message) from error
            known = None
        return known if known is not None or waiting is None else await self._as_run(waiting)

    async def latest_run(self, task_id: TaskId) -> Run | None:
        """The later of what waits here and what the ledger has. Raises `LedgerSilent` if nothing waits and the ledger
        does not answer, and `RedisUnavailable` where what waits cannot be told."""
        # First what waits: a result that is written back between the two looks is in the ledger by the second.
        waiting = await self._latest_waiting(task_id)
        try:
            known = await self._ask(lambda: self._ledger.latest_run(task_id))
        except Unavailable as error:
            if waiting is None:
                raise LedgerSilent(error.public_message) from error
            known = None
        if waiting is None or (known is not None and known.generation >= waiting.generation):
            return known
        return await self._as_run(waiting)

    async def steps(self, run_id: RunId) -> dict[str, bytes]:
        """Raises `LedgerSilent`, even if some wait here: there may be others."""
        waiting = {one.step: one.value for one in await self._about(run_id) if isinstance(one, LateStep)}
        try:
            return await self._ask(lambda: self._ledger.steps(run_id)) | waiting
        except Unavailable as error:
            raise LedgerSilent(error.public_message) from error

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        """While the ledger is away: as far as they wait."""
        waiting = [one.attempt for one in await self._about(run_id) if isinstance(one, LateAttempt)]
        kept: list[Attempt] = []
        with suppress(Unavailable):
            kept = await self._ask(lambda: self._ledger.attempts(run_id))
        written = [msgspec.structs.replace(attempt, number=0) for attempt in kept]
        others = enumerate((one for one in waiting if one not in written), start=count_tries(kept) + 1)
        numbered = [msgspec.structs.replace(attempt, number=number) for number, attempt in others]
        return (kept + numbered)[-ATTEMPTS_KEPT:]

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[HistoryLine]:
        """While the ledger is away: as this process has last read it, and what waits."""
        chat = (channel, account, chat_id)
        waiting = [one for one in await self._about(_name_of(chat)) if isinstance(one, LateResult)]
        try:
            kept = await self._ask(lambda: self._ledger.history(channel, account, chat_id, limit=limit))
        except Unavailable:
            kept = self._remembered(chat)
        else:
            self._remember(chat, kept)
        written = {turn.run_id for turn in kept}
        return (kept + [turn for one in waiting if one.run_id not in written for turn in one.history])[-limit:]

    # --- what is done ---

    async def save_result(
        self, task: Task, result: RunResult, replies: Sequence[Reply], history: Sequence[HistoryLine], *, deliver: bool
    ) -> Run:
        """The run as it will be, if the result has to wait: replying, whatever it comes to."""
        if await self._are_ended(result.merged_runs):
            saved = await self._unless_late(
                lambda: self._ledger.save_result(task, result, replies, history, deliver=deliver)
            )
            if saved is not None:
                return saved
        late = LateResult(
            **self._run_of(task),
            result=result,
            replies=list(replies),
            history=[msgspec.structs.replace(turn, text=kept_text(turn.text)) for turn in history],
            deliver=deliver,
        )
        return await self._as_run(await self._put(late, _chat_of(task)))

    async def _are_ended(self, named: Sequence[RunId]) -> bool:
        """Those that a result names have ended with it, in the ledger. It does not go ahead of ends that wait here, and
        may be lost."""
        try:
            for run_id in named:
                if await self._ask(partial(self._ledger.run, run_id)) is None:
                    return False
        except Unavailable:
            return False
        return True

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
        """What a person ends does not wait: they are told whether it has ended. It has not where it is being answered
        with another: then the run is that one, as it waits."""

        def write() -> Awaitable[Run]:
            return self._ledger.finish(task, status, outcome, by=by, why=why, callback=callback)

        if status is Status.DROPPED:
            return await self._drop(task, write)
        ended = await self._unless_late(write)
        if ended is not None:
            return ended
        late = LateEnd(
            **self._run_of(task),
            status=status,
            outcome=outcome,
            callback=callback,
            by=by,
            why=why,
        )
        return await self._as_run(await self._put(late, _chat_of(task)))

    async def _drop(self, task: Task, write: Callable[[], Awaitable[Run]]) -> Run:
        # What waits is looked at last: it may be put here for as long as the ledger takes to say what it knows.
        known = await self._ledger.run(task.run_id)
        waiting = await self._read(key_of_run(task.run_id))
        if isinstance(waiting, LateResult):
            if waiting.result.outcome is Outcome.MERGED and known is None:
                return await self._as_run(waiting)
            if task.head.task_type is TaskType.FOLLOW_UP:
                # It is said as soon as its result waits. Nobody may be told then that it was cancelled, or moved.
                result, replies, history = waiting.result, waiting.replies, waiting.history
                await self._ledger.save_result(task, result, replies, history, deliver=waiting.deliver)
        dropped = await write()
        await self._late.remove([key_of_run(task.run_id)])
        return dropped

    async def save_step(self, run_id: RunId, step: str, value: bytes) -> bytes:
        try:
            return await self._ask(lambda: self._ledger.save_step(run_id, step, value))
        except Unavailable:
            standing = await self._put(LateStep(run_id=run_id, step=step, value=value), run_id)
            return standing.value if isinstance(standing, LateStep) else value

    async def add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        try:
            await self._ask(lambda: self._ledger.add_attempt(run_id, attempt))
        except Unavailable:
            await self._put(LateAttempt(run_id=run_id, attempt=attempt), run_id)

    async def note_armed(self, run_id: RunId) -> None:
        async def note() -> bool:
            await self._ledger.note_armed(run_id)
            return True

        if not await self._unless_late(note):
            await self._put(LateArming(run_id=run_id), run_id)

    async def add_notice(self, reply: Reply, *, deliver: bool = True, unless_run: RunId | None = None) -> bool:
        added = await self._unless_late(lambda: self._ledger.add_notice(reply, deliver=deliver, unless_run=unless_run))
        if added is not None:
            return added
        await self._put(LateNotice(reply=reply, deliver=deliver, unless_run=unless_run), NOTICES)
        return True

    # --- details ---

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """The ledger itself. Raises what it raises; `LedgerSilent` without asking, if it did not answer just now."""
        if self._look_at is not None:
            now = self._clock.monotonic()
            if now < self._look_at:
                raise LedgerSilent("the ledger does not answer")
            self._look_at = now + LOOK_SECONDS  # while this one looks, nobody else does
        try:
            answer = await question()
        except Unavailable:
            self._look_at = self._clock.monotonic() + LOOK_SECONDS
            raise
        self._look_at = None
        return answer

    async def _unless_late(self, write: Callable[[], Awaitable[T]]) -> T | None:
        """Now, if nothing waits and the ledger answers. None: it has to queue up."""
        if await self._late.depth():
            return None
        with suppress(Unavailable):
            return await self._ask(write)
        return None

    async def _put(self, write: LateWrite, about: str) -> LateWrite:
        """Returns the one that stands. What is too large to wait in Redis waits with its worker."""
        encoded = encode_late(write)
        if len(encoded) > LATE_BYTES_MAX:
            raise LedgerSilent("the ledger does not answer, and this is too large to wait for it in Redis")
        return self._decoded(await self._late.put(key_of(write), about, encoded))

    async def _read(self, key: str) -> LateWrite | None:
        stored = await self._late.get(key)
        return None if stored is None else self._decoded(stored)

    async def _latest_waiting(self, task_id: TaskId) -> LateResult | LateEnd | None:
        """Former generations are in the ledger most often, and how many there were only the ledger knows."""
        latest_first = reversed(range(GENERATIONS_LOOKED_FOR))
        stored = await self._late.first_of([key_of_run(run_id_of(task_id, number)) for number in latest_first])
        late = None if stored is None else self._decoded(stored)
        assert late is None or isinstance(late, LateResult | LateEnd)
        return late

    async def _about(self, about: str) -> list[LateWrite]:
        return [self._decoded(stored) for stored in await self._late.about(about)]

    @staticmethod
    def _decoded(stored: bytes) -> LateWrite:
        """What a newer version wrote is not known here, and must not be taken for nothing."""
        try:
            return decode_late(stored)
        except EnvelopeMalformed as error:
            raise WrittenByNewer(f"a newer version of Rise has to write it back: {error}") from error

    def _run_of(self, task: Task) -> dict[str, Any]:
        """What is kept of every run that ended, however it did."""
        return {
            "task_id": task.task_id,
            "generation": task.progress.generation,
            "lane": task.head.lane,
            "accepted_at_ms": task.head.accepted_at_ms,
            "fingerprint": task.head.fingerprint,
            "saved_at_ms": epoch_ms(self._clock.now()),
        }

    async def _as_run(self, late: LateWrite) -> Run:
        assert isinstance(late, LateRun)
        result = late.result if isinstance(late, LateResult) else None
        return Run(
            task_id=late.task_id,
            generation=late.generation,
            status=Status.REPLYING,
            outcome=late.outcome if isinstance(late, LateEnd) else late.result.outcome,
            result=None if result is None else result.value,
            workflow_id=None if result is None else result.workflow_id,
            workflow_version=None if result is None else result.workflow_version,
            saved_at_ms=late.saved_at_ms,
            finished_at_ms=None,
            accepted_at_ms=late.accepted_at_ms,
            fingerprint=late.fingerprint,
            is_armed=await self._late.get(key_of_arming(late.run_id)) is not None,
            waits_for_ledger=True,
        )

    def _remembered(self, chat: tuple[str, str, str]) -> list[HistoryLine]:
        read_at, lines = self._histories.get(chat, (0.0, []))
        return lines if self._clock.monotonic() - read_at < REMEMBERED_SECONDS else []

    def _remember(self, chat: tuple[str, str, str], lines: list[HistoryLine]) -> None:
        self._histories[chat] = (self._clock.monotonic(), lines)
        self._histories.move_to_end(chat)
        while len(self._histories) > CHATS_REMEMBERED:
            self._histories.popitem(last=False)


def _chat_of(task: Task) -> str:
    head = task.head
    return _name_of((head.channel, head.account, head.chat_id or head.lane))


def _name_of(chat: tuple[str, str, str]) -> str:
    return "chat:" + "\n".join(chat)

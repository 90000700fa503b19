"""The account: for every delivery that was promised, what became of it.

Promises: joins the receipts of delivery keys with the open tasks and the finished runs; changes nothing; reads
in pages, so that a million receipts need no more memory than a thousand; and accuses nobody who is merely on
the move: the queue is read before the ledger, which a task enters before it leaves the queue, and whatever is
missing is looked for once more.

Refuses: to call a delivery lost whose run was forgotten on purpose, because its retention has passed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.copies.looking import CopiesShown
from rise.envelope import DeliveryKey, ReplyId, Status, TaskId, is_in_digits, run_id_of
from rise.errors import RiseError
from rise.ledger.port import Ledger, ReplyKind, ReplyState, Run
from rise.queue.port import OpenTask, Queue, Receipt, Selection

PAGE: Final = 1000
LISTED_MAX: Final = 1000
"""How many of a kind are named one by one. All are counted."""
RECEIPT_SECONDS_LEAST: Final = 72 * 3600
"""The shortest time any channel's receipts are kept: a task younger than this has one."""
NUMBERING_ANEW: Final = 100_000
"""Telegram keeps no more pending updates per bot: ids further apart are no gap, the numbering began anew."""
GAPS_LISTED_MAX: Final = 20
TELEGRAM_SECONDS_MAX: Final = 5.0

_OPEN_REPLY: Final = frozenset({ReplyState.READY, ReplyState.SENDING, ReplyState.UNKNOWN})

Progress = Callable[[int, int], None]
"""Told after each page: how many receipts were joined, of about how many."""


class Fate(StrEnum):
    """What became of an accepted delivery."""

    DONE = "done"
    EXPIRED = "expired"
    DROPPED = "dropped"
    PENDING = "pending"
    """Open and moving: pending, processing or replying."""
    SUSPENDED = "suspended"
    FORGOTTEN = "forgotten"
    """Finished runs of its age are not kept any more."""
    UNACCOUNTED = "unaccounted"


_FATES: Final = {Status.COMPLETED: Fate.DONE, Status.EXPIRED: Fate.EXPIRED, Status.DROPPED: Fate.DROPPED}


class NoticeKind(StrEnum):
    """What is worth a look and is no loss by itself."""

    OPEN_WITHOUT_RECEIPT = "open_without_receipt"
    OPEN_AFTER_END = "open_after_end"
    REPLY_AFTER_END = "reply_after_end"
    UPDATE_ID_GAP = "update_id_gap"
    UPDATES_WAITING = "updates_waiting"
    TELEGRAM_SILENT = "telegram_silent"
    FORGOTTEN = "forgotten"


class Unaccounted(msgspec.Struct, frozen=True):
    """A delivery that was promised and is nowhere."""

    delivery_key: str
    task_id: TaskId
    received_at_ms: int
    detail: str


class Notice(msgspec.Struct, frozen=True):
    kind: NoticeKind
    subject: str
    detail: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every accepted delivery has exactly one fate; the fates add up to the receipts."""

    receipts: int
    repeats: int
    """Deliveries beyond the first of their key."""
    fates: dict[Fate, int]
    unaccounted: list[Unaccounted]
    notices: list[Notice]
    notices_omitted: int

    @property
    def is_clean(self) -> bool:
        return not self.fates[Fate.UNACCOUNTED]

    def shown(self) -> dict[str, Any]:
        """For programs."""
        return {
            "clean": self.is_clean,
            "accepted": self.receipts,
            **{fate.value: count for fate, count in self.fates.items()},
            "duplicate": self.repeats,
            "unaccountedTasks": [
                {
                    "taskId": lost.task_id,
                    "deliveryKey": lost.delivery_key,
                    "receivedAt": iso(from_epoch_ms(lost.received_at_ms)),
                    "detail": lost.detail,
                }
                for lost in self.unaccounted
            ],
            "notices": self.notices,
            "noticesOmitted": self.notices_omitted,
        }


class _WebhookState(Protocol):
    @property
    def pending_update_count(self) -> int: ...


class UpdateSource(Protocol):
    """A platform that can be asked how much it still holds for us."""

    @property
    def accounts(self) -> list[str]: ...

    async def webhook_info(self, account: str) -> _WebhookState: ...


@dataclass(frozen=True, slots=True)
class Audit:
    queue: Queue
    ledger: Ledger
    keep_finished_seconds: float
    telegram: UpdateSource | None = None
    copies: CopiesShown | None = None
    """With further stores: what they remember counts, too."""

    async def run(self, on_progress: Progress = lambda joined, total: None) -> AuditReport:
        now_ms = self.queue.now_ms()
        books = _Books(started_ms=now_ms, forgotten_before_ms=self._forgotten_before_ms(now_ms))
        await self._join_receipts(books, on_progress)
        await self._look_again(books)
        await self._look_for_receipts(books)
        await self._report_gaps(books)
        await self._ask_telegram(books)
        return books.report()

    def _forgotten_before_ms(self, now_ms: int) -> int:
        # By the clock that dated the receipts: a wall clock that is ahead would excuse every loss.
        # An hour more, for what is forgotten while this runs.
        return now_ms - int((self.keep_finished_seconds - 3600) * 1000)

    # --- receipts → tasks ---

    async def _join_receipts(self, books: _Books, on_progress: Progress) -> None:
        total = (await self.queue.depth()).accepted
        # The replies of finished runs are looked at only if any reply is open at all.
        outbox_open = any((await self.ledger.outbox_depth()).by_state.values())
        after = ""
        receipts = self.copies or self.queue
        while page := await receipts.receipts(limit=PAGE, after=after):
            after = page[-1].delivery_key
            await self._join(page, books, looks_at_replies=outbox_open)
            on_progress(books.receipts, max(total, books.receipts))

    async def _join(self, page: Sequence[Receipt], books: _Books, *, looks_at_replies: bool) -> None:
        found = await self._find([receipt.task_id for receipt in page])
        missing = [receipt.task_id for receipt in page if receipt.task_id not in found]
        found |= await self._find(missing)
        for receipt in page:
            whereabouts = found.get(receipt.task_id)
            fate = books.enter(receipt, whereabouts)
            if fate is Fate.UNACCOUNTED and books.lists_unaccounted:
                books.unaccounted.append(await self._unaccounted(receipt))
            if looks_at_replies and whereabouts is not None and whereabouts.run is not None:
                books.doubt_replies(await self._open_replies(whereabouts.run))

    async def _find(self, task_ids: Sequence[TaskId]) -> dict[TaskId, _Whereabouts]:
        """Where each is: open, finished, or both for the moment between. Queue first: see above."""
        if not task_ids:
            return {}
        listed = await self.queue.list_open(Selection(task_ids=tuple(task_ids)), limit=len(task_ids))
        finished = await self.ledger.finished_among(task_ids)
        found = {task.head.task_id: _Whereabouts(task, finished.get(task.head.task_id)) for task in listed}
        for task_id, run in finished.items():
            found.setdefault(task_id, _Whereabouts(None, run))
        if self.copies is not None:
            listed_ids = {task.head.task_id for task in listed}
            unlisted = [task_id for task_id in task_ids if task_id not in listed_ids]
            for task in await self.copies.open_in_journals(unlisted):
                ended = finished.get(task.head.task_id)
                # A journal keeps what has finished for a moment; and what came since under the key of what has.
                if ended is None or ended.is_of_former(task.head):
                    found[task.head.task_id] = _Whereabouts(task, ended)
        return found

    async def _unaccounted(self, receipt: Receipt) -> Unaccounted:
        run = await self.ledger.latest_run(receipt.task_id)
        if run is None:
            detail = "neither an open task nor a finished run"
        else:
            detail = f"its result is saved (run {run.generation} is {run.status}), but its open task is gone"
        return Unaccounted(receipt.delivery_key, receipt.task_id, receipt.received_at_ms, detail)

    async def _open_replies(self, run: Run) -> list[_ReplyInDoubt]:
        """Answers of a finished run that are still meant to be sent."""
        run_id = run_id_of(run.task_id, run.generation)
        return [
            _ReplyInDoubt(run, reply.reply_id, reply.state)
            for reply in await self.ledger.replies(run_id=run_id)
            if reply.kind is ReplyKind.ANSWER and reply.state in _OPEN_REPLY
        ]

    async def _look_again(self, books: _Books) -> None:
        """What looked half-done may have been on the move; only what still is gets noticed."""
        for task_id in books.tasks_in_doubt:
            now = (await self._find([task_id])).get(task_id)
            if now is not None and now.has_ended and now.task is not None:
                books.notice(
                    NoticeKind.OPEN_AFTER_END,
                    task_id,
                    f"its run has ended, the queue still says {now.task.status}; a running `rise serve` sets it right",
                )
        for reply in books.replies_in_doubt:
            if reply in await self._open_replies(reply.run):
                books.notice(
                    NoticeKind.REPLY_AFTER_END,
                    reply.reply_id,
                    f"the reply is {reply.state} although its run has ended",
                )

    # --- tasks → receipts ---

    async def _look_for_receipts(self, books: _Books) -> None:
        """Young open tasks have a receipt; without one, a repeated delivery would be run a second time."""
        since_ms = books.started_ms - (RECEIPT_SECONDS_LEAST - 3600) * 1000
        after = ""
        while True:
            page = await self.queue.list_open(Selection(), limit=PAGE, after=after)
            for task in page:
                head = task.head
                is_young = head.accepted_at_ms > since_ms and head.delivery_key
                if is_young and await receipt_of(self.queue, head.delivery_key) is None:
                    books.notice(
                        NoticeKind.OPEN_WITHOUT_RECEIPT,
                        head.task_id,
                        f"nothing remembers its delivery key {head.delivery_key}: a repeat would be a second task",
                    )
            if len(page) < PAGE:
                return
            after = page[-1].head.task_id

    # --- the platform's side ---

    async def _report_gaps(self, books: _Books) -> None:
        for bot, gaps in books.update_ids.gaps().items():
            missing = [gap for gap in gaps.listed if await self._is_missing(bot, gap)]
            if not missing:
                continue
            count = sum(gap.count for gap in missing) + gaps.count_unlisted
            names = ", ".join(str(gap) for gap in missing) + (" …" if gaps.count_unlisted else "")
            books.notice(
                NoticeKind.UPDATE_ID_GAP,
                f"bot {bot}",
                f"{count} update ids between others never came: {names}. Telegram gave up on them, another receiver "
                "took them, or they are of a kind that was not asked for",
            )

    async def _is_missing(self, bot: str, gap: _Gap) -> bool:
        """Not if it was only late: updates pushed in parallel overtake each other."""
        return await receipt_of(self.queue, DeliveryKey(f"tg:{bot}:u:{gap.first}")) is None

    async def _ask_telegram(self, books: _Books) -> None:
        for account in self.telegram.accounts if self.telegram else []:
            assert self.telegram is not None
            try:
                async with asyncio.timeout(TELEGRAM_SECONDS_MAX):
                    waiting = (await self.telegram.webhook_info(account)).pending_update_count
            except (RiseError, TimeoutError) as error:
                why = error.public_message if isinstance(error, RiseError) else "no answer in time"
                books.notice(NoticeKind.TELEGRAM_SILENT, f"bot {account}", f"could not be asked what it holds: {why}")
            else:
                if waiting:
                    books.notice(
                        NoticeKind.UPDATES_WAITING, f"bot {account}", f"updates waiting at Telegram: {waiting}"
                    )


async def receipt_of(queue: Queue, delivery_key: DeliveryKey) -> Receipt | None:
    """What is remembered of one delivery key."""
    found = await queue.receipts(limit=1, after=_just_before(delivery_key))
    return found[0] if found and found[0].delivery_key == delivery_key else None


def _just_before(key: str) -> str:
    """A string after all that sort before `key`, and before `key`."""
    return f"{key[:-1]}{chr(ord(key[-1]) - 1)}\U0010ffff"


# --- the books --------------------------------------------------------------------------------------------


class _Whereabouts(msgspec.Struct, frozen=True):
    task: OpenTask | None
    run: Run | None
    """The latest, if it is finished."""

    @property
    def has_ended(self) -> bool:
        """The ledger decides, unless the task was started anew since, or is another that had the same key."""
        if self.run is None or self.task is None:
            return self.run is not None
        return self.task.generation <= self.run.generation and not self.run.is_of_former(self.task.head)

    @property
    def fate(self) -> Fate:
        if self.has_ended and self.run is not None:
            return _FATES[self.run.status]
        assert self.task is not None
        return Fate.SUSPENDED if self.task.status is Status.SUSPENDED else Fate.PENDING


class _ReplyInDoubt(msgspec.Struct, frozen=True):
    run: Run
    reply_id: ReplyId
    state: ReplyState


@dataclass(slots=True)
class _Books:
    """What was found so far. Counts grow, lists are bounded."""

    started_ms: int
    forgotten_before_ms: int
    receipts: int = 0
    repeats: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    unaccounted: list[Unaccounted] = field(default_factory=list)
    notices: Counter[NoticeKind] = field(default_factory=Counter)
    notices_listed: list[Notice] = field(default_factory=list)
    tasks_in_doubt: list[TaskId] = field(default_factory=list)
    replies_in_doubt: list[_ReplyInDoubt] = field(default_factory=list)
    update_ids: _UpdateIds = field(default_factory=lambda: _UpdateIds())

    def enter(self, receipt: Receipt, whereabouts: _Whereabouts | None) -> Fate:
        self.receipts += 1
        self.repeats += receipt.duplicates
        self.update_ids.see(receipt.delivery_key)
        if whereabouts is not None:
            fate = whereabouts.fate
            if whereabouts.has_ended and whereabouts.task is not None and len(self.tasks_in_doubt) < LISTED_MAX:
                self.tasks_in_doubt.append(receipt.task_id)
        else:
            is_old = receipt.received_at_ms < self.forgotten_before_ms
            fate = Fate.FORGOTTEN if is_old else Fate.UNACCOUNTED
        self.fates[fate] += 1
        return fate

    @property
    def lists_unaccounted(self) -> bool:
        return len(self.unaccounted) < LISTED_MAX

    def doubt_replies(self, replies: Sequence[_ReplyInDoubt]) -> None:
        self.replies_in_doubt += replies[: LISTED_MAX - len(self.replies_in_doubt)]

    def notice(self, kind: NoticeKind, subject: str, detail: str) -> None:
        self.notices[kind] += 1
        if self.notices[kind] <= LISTED_MAX:
            self.notices_listed.append(Notice(kind, subject, detail))

    def report(self) -> AuditReport:
        if forgotten := self.fates[Fate.FORGOTTEN]:
            self.notice(
                NoticeKind.FORGOTTEN,
                "retention",
                f"{forgotten} deliveries came before the oldest finished run that is kept; set "
                "RISE_KEEP_FINISHED_DAYS to 8 or more to have receipts and runs overlap",
            )
        return AuditReport(
            receipts=self.receipts,
            repeats=self.repeats,
            fates={fate: self.fates[fate] for fate in Fate},
            unaccounted=self.unaccounted,
            notices=self.notices_listed,
            notices_omitted=self.notices.total() - len(self.notices_listed),
        )


# --- gaps in a bot's numbering ----------------------------------------------------------------------------


class _Gap(msgspec.Struct, frozen=True):
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.count == 1 else f"{self.first}-{self.last}"


@dataclass(slots=True)
class _Gaps:
    listed: list[_Gap] = field(default_factory=list)
    count_unlisted: int = 0

    def add(self, before: int, after: int) -> None:
        gap = _Gap(before + 1, after - 1)
        if gap.count < 1 or gap.count > NUMBERING_ANEW:
            return
        if len(self.listed) < GAPS_LISTED_MAX:
            self.listed.append(gap)
        else:
            self.count_unlisted += gap.count

    def extend(self, other: _Gaps) -> None:
        for gap in other.listed:
            self.add(gap.first - 1, gap.last + 1)
        self.count_unlisted += other.count_unlisted


@dataclass(slots=True)
class _Ascending:
    first: int
    last: int
    gaps: _Gaps = field(default_factory=_Gaps)


class _UpdateIds:
    """Finds what is missing between ids that come sorted as text: those of one length come sorted as numbers."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[str, int], _Ascending] = {}

    def see(self, delivery_key: str) -> None:
        bot, is_update, digits = delivery_key.removeprefix("tg:").partition(":u:")
        if not is_update or not delivery_key.startswith("tg:") or not is_in_digits(digits):
            return
        update_id = int(digits)
        seen = self._by_length.setdefault((bot, len(digits)), _Ascending(update_id, update_id))
        seen.gaps.add(seen.last, update_id)
        seen.last = update_id

    def gaps(self) -> dict[str, _Gaps]:
        found: dict[str, _Gaps] = {}
        before: dict[str, int] = {}
        for (bot, _), seen in sorted(self._by_length.items(), key=_by_bot_and_length):
            gaps = found.setdefault(bot, _Gaps())
            if bot in before:
                gaps.add(before[bot], seen.first)
            gaps.extend(seen.gaps)
            before[bot] = seen.last
        return found


def _by_bot_and_length(item: tuple[tuple[str, int], Any]) -> tuple[str, int]:
    return item[0]

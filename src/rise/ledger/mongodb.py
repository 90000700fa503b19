"""The ledger on MongoDB, for any number of processes on any number of hosts.

No step of it needs a transaction, which a server without replicas does not have. What belongs together is one
document: a run with its frozen replies, a chat's turn. What is in several is written in an order in
which a crash leaves nothing wrong, only something to do, which the first document says and whoever comes next does
(`mongodb_outbox.py`). So every write may be repeated, by whoever made it and by anybody else.

Refuses: to change a result that is there; to work without its indexes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Final, TypeVar

from rise.clock import Clock
from rise.connections.mongodb import Index, MongoDatabase, Query
from rise.envelope import (
    MOMENT_MS_MAX,
    Outcome,
    RunId,
    Status,
    Task,
    TaskId,
    clean_text,
    encode_json,
    new_key,
)
from rise.errors import ClaimLost
from rise.ledger import documents
from rise.ledger.documents import Document, chat_key
from rise.ledger.kept import ATTEMPTS_KEPT
from rise.ledger.mongodb_forgetting import Forgetting
from rise.ledger.mongodb_histories import Histories
from rise.ledger.mongodb_outbox import Outbox
from rise.ledger.mongodb_runs import WITHOUT_TASK, RunDocuments
from rise.ledger.port import (
    AccountsHeld,
    Attempt,
    ChatForgotten,
    ChatMove,
    Delivered,
    Ended,
    HistoryLine,
    Office,
    Operation,
    OutboxDepth,
    Reply,
    ReplyState,
    Run,
    RunResult,
    SendEnding,
)

T = TypeVar("T")

INDEXES: Final[Mapping[str, Sequence[Index]]] = {
    "runs": (
        # `_id` is a run's or a notice's: unique without our doing.
        Index("reply", ("replies.reply_id",), is_unique=True, is_sparse=True),
        Index("task", ("task_id", "generation")),
        Index("run", ("run_id",)),
        Index("finished", ("finished_at", "status", "outcome")),
        Index("chat_open", ("replies.chat", "replies.is_open")),
        Index("chat_order", ("replies.chat", "replies.sequence")),
        Index("waiting", ("is_waiting",), is_sparse=True),
        Index("resent", ("resent",), is_sparse=True),
        Index("owing", ("owes",), is_sparse=True),
    ),
    "chats": (
        Index("due", ("is_urgent", "due", "_id")),
        Index("oldest", ("due",), is_sparse=True),
        Index("taken", ("fence",), is_sparse=True),
        Index("moving", ("moving",), is_sparse=True),
        Index("turn", ("turn",)),
    ),
    "histories": (Index("forgotten", ("forgotten_at",), is_sparse=True),),
    "steps": (Index("step", ("run_id", "step"), is_unique=True),),
    "operations": (Index("at", ("at",)),),
}

ASKED_MAX: Final = 2_000
"""Tasks asked after in one question."""


class MongoLedger:
    """`rise.ledger.port.Ledger` on one database of MongoDB."""

    def __init__(
        self, database: MongoDatabase, clock: Clock, *, remembered: Callable[[], str | None] = lambda: None
    ) -> None:
        """`remembered`: the name that it had, should it have been emptied."""
        self._database = database
        self._remembered = remembered
        self._runs = RunDocuments(database["runs"])
        self._histories = Histories(database)
        self._outbox = Outbox(database, self._runs, self._histories, clock)
        self._forgetting = Forgetting(database, self._runs, self._histories, self._outbox.moves, self._keep_resent)
        self._steps = database["steps"]
        self._attempts = database["attempts"]
        self._chats = database["chats"]
        self._ledger = database["ledger"]
        self._offices = database["offices"]
        self._operations = database["operations"]

    async def _now(self) -> int:
        return await self._database.now_ms()

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
        known = await self.run(task.run_id)
        if known is not None:
            return known
        await self._note_move(task)
        # Before the new one is there, or it could be answered beside it. If it ends here, the task of the new
        # generation is still open, is run again, and finds the former dropped.
        await self._drop_former(task)
        state = ReplyState.READY if deliver else ReplyState.SENT
        times = await self._histories.times_forgotten(task.head) if history else 0
        now = await self._now()
        run = documents.new_run(task, result, replies, history, now, state=state, times_forgotten=times)
        # From here on everything is in the store: what follows, whoever asks after the run does in our place.
        await self._runs.add(run)
        if "finished_at" in run:
            await self._outbox.forget_workings(task.run_id)
        return await self.run(task.run_id) or _missing(task.run_id)

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
        now = await self._now()
        if await self._runs.get(task.run_id) is None:
            await self._note_move(task)
            await self._drop_former(task)
            # Should another have been faster, it is ended below.
            ended = documents.new_ended_run(task, status, outcome, now, by=by, why=why, callback=callback)
            await self._runs.add(ended)

        def end(run: Document) -> None:
            documents.close_replies(run, f"the task was {status}")
            documents.end(run, status, outcome, now, by=by, why=why)
            if callback is not None:
                documents.add_callback(run, callback, now)

        await self._end(task.run_id, end)
        return await self.run(task.run_id) or _missing(task.run_id)

    async def _end(self, run_id: str, end: Callable[[Document], None]) -> None:
        """Of a run that has not ended. Judged when it owes nothing: one whose replies are fetched has ended then.

        It owes anew only if a person resumes what it was held for, or its chat moves: so this comes to its end.
        """

        def judge(run: Document) -> bool:
            """Whether that is still to be seen."""
            is_open, owes = "finished_at" not in run, "owes" in run
            if is_open and not owes:
                end(run)
            return is_open and owes

        while True:
            run, is_open = await self._runs.change(run_id, judge)
            if run is None or not is_open:
                break
            await self._outbox.pay(run)
        await self._outbox.forget_workings(run_id)

    async def _note_move(self, task: Task) -> None:
        """What its message said of its chat, before the run is there: who dies in between is run again, and says it."""
        if task.head.moved is not None:
            await self.move_chat(task.head.channel, task.head.account, *task.head.moved)

    async def _drop_former(self, task: Task) -> None:
        generation = task.progress.generation
        if not generation:
            return
        now, why = await self._now(), f"run again as generation {generation}"

        def drop(run: Document) -> None:
            documents.close_replies(run, why)
            documents.end(run, Status.DROPPED, None, now, why=why)

        # One whose key had been forgotten when this message came is another message's.
        since = task.head.accepted_at_ms - task.head.receipt_seconds * 1000
        former = {
            "task_id": task.task_id,
            "generation": {"$gte": 0, "$lt": generation},
            "finished_at": {"$exists": False},
            "$or": [
                {"accepted_at": {"$gt": since}},
                {"fingerprint": {"$eq": task.head.fingerprint, "$ne": ""}},
            ],
        }
        for run in await self._runs.find(former, fields={"_id": 1}):
            await self._end(run["_id"], drop)

    async def note_armed(self, run_id: RunId) -> None:
        def note(run: Document) -> None:
            run["is_armed"] = True

        await self._runs.change(run_id, note)

    async def run(self, run_id: RunId) -> Run | None:
        return await self._paid(lambda: self._runs.shown(run_id))

    async def latest_run(self, task_id: TaskId) -> Run | None:
        return await self._paid(lambda: self._runs.latest(task_id, WITHOUT_TASK))

    async def _paid(self, look: Callable[[], Awaitable[Document | None]]) -> Run | None:
        """As it is when it owes nothing: who hears of a result goes on with the chat's next message."""
        run = await look()
        if run is not None and "owes" in run:
            await self._outbox.pay(run)
            run = await look()
        return documents.as_run(run) if run is not None else None

    async def archived(self, task_id: TaskId) -> Task | None:
        run = await self._runs.latest(task_id, {"replies": 0, "result": 0})
        return documents.as_task(run) if run is not None else None

    async def finished_among(self, task_ids: Sequence[TaskId]) -> dict[TaskId, Run]:
        runs: dict[TaskId, Run] = {}
        for start in range(0, len(task_ids), ASKED_MAX):
            asked = {"task_id": {"$in": list(task_ids[start : start + ASKED_MAX])}, "generation": {"$gte": 0}}
            # Sorted here: results in hand may be more than MongoDB sorts in memory.
            found = sorted(await self._runs.find(asked, fields=WITHOUT_TASK), key=itemgetter("generation"))
            runs |= {TaskId(run["task_id"]): documents.as_run(run) for run in found}
        return {task_id: run for task_id, run in runs.items() if run.status.is_finished}

    async def ended(self, *, limit: int, before_ms: int = MOMENT_MS_MAX) -> list[Ended]:
        if limit < 1:
            return []
        before, fields = {"finished_at": {"$gte": 0, "$lt": before_ms}}, {"raw": 0, "replies": 0}
        page = await self._runs.find(before, fields=fields, order=[("finished_at", -1)], limit=limit)
        if page:
            earliest = {"finished_at": page[-1]["finished_at"]}
            page += await self._runs.find(earliest, fields=fields)
        found = {run["_id"]: run for run in page}.values()
        latest_first = sorted(found, key=itemgetter("finished_at", "_id"), reverse=True)
        return [Ended(documents.as_run(run), documents.head_of(run)) for run in latest_first]

    async def save_step(self, run_id: RunId, step: str, value: bytes) -> bytes:
        if await self._steps.insert({"run_id": run_id, "step": step, "value": value}):
            return value
        kept = await self._steps.one({"run_id": run_id, "step": step})
        return bytes(kept["value"]) if kept is not None else value

    async def steps(self, run_id: RunId) -> dict[str, bytes]:
        return {step["step"]: bytes(step["value"]) for step in await self._steps.find({"run_id": run_id})}

    async def add_attempt(self, run_id: RunId, attempt: Attempt) -> None:
        kept = {"at": attempt.at_ms, "error": clean_text(attempt.error), "counted": attempt.counted}
        # Once: one that is noted again because the answer was lost is the same.
        without = {"_id": run_id, "tries": {"$ne": kept}, "count": {"$exists": True}}
        add = {"$push": {"tries": {"$each": [kept], "$slice": -ATTEMPTS_KEPT}}, "$inc": {"count": 1}}
        while not await self._attempts.change(without, add, fields={"_id": 1}, upsert=True):
            known = await self._attempts.one({"_id": run_id})
            if known is not None and kept in known["tries"]:
                return
            if known is not None and "count" not in known:
                await self._count_former(known)

    async def _count_former(self, known: Document) -> None:
        """Former versions kept all, and counted none."""
        # One step: where no room was left for more, there is none for the count either.
        last = {"$push": {"tries": {"$each": [], "$slice": -ATTEMPTS_KEPT}}}
        count = {"$set": {"count": len(known["tries"])}}
        await self._attempts.change({"_id": known["_id"], "count": {"$exists": False}}, last | count, fields={"_id": 1})

    async def attempts(self, run_id: RunId) -> list[Attempt]:
        kept = await self._attempts.one({"_id": run_id}) or {"tries": []}
        # A former version that still runs beside this one does not count.
        count = max(kept.get("count", 0), len(kept["tries"]))
        last = kept["tries"][-ATTEMPTS_KEPT:]
        return [
            Attempt(at_ms=one["at"], error=one["error"], counted=one["counted"], number=number)
            for number, one in enumerate(last, start=count - len(last) + 1)
        ]

    async def history(self, channel: str, account: str, chat_id: str, *, limit: int) -> list[HistoryLine]:
        chats = await self._outbox.moves.names_of(chat_key(channel, account, chat_id))
        return await self._histories.of(chats, limit)

    # --- chats ---

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        await self._outbox.move_chat(channel, account, chat_id, moved_to)

    async def chat_moves(self, *, after: int = 0) -> list[ChatMove]:
        return await self._outbox.moves.after(after)

    # --- outbox ---

    async def add_notice(self, reply: Reply, *, deliver: bool = True, unless_run: RunId | None = None) -> bool:
        state = ReplyState.READY if deliver else ReplyState.SENT
        notice = documents.new_notice(reply, await self._now(), state=state, unless_run=unless_run)
        added = await self._runs.add(notice)
        kept = await self._runs.get(reply.reply_id)
        return kept is not None and await self._outbox.pay(kept) and added

    async def outbox_open(self) -> int:
        return await self._outbox.open()

    async def outbox_take(
        self,
        fence: int,
        *,
        limit: int,
        urgent_limit: int = 0,
        accounts_excluded: Sequence[tuple[str, str]] = (),
        accounts_urgent_only: Sequence[tuple[str, str]] = (),
    ) -> list[Reply]:
        held = AccountsHeld(frozenset(accounts_excluded), frozenset(accounts_urgent_only))
        return await self._outbox.take(fence, limit, max(limit, urgent_limit), held)

    async def outbox_sending(self, fence: int, reply: Reply) -> None:
        await self._outbox.check_fence(fence)
        begin = partial(documents.begin_sending, reply=reply)
        if (await self._runs.change_with(reply.reply_id, begin))[0] is None:
            raise ClaimLost(f"the reply {reply.reply_id} is not known any more")

    async def outbox_record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        return await self._outbox.record(fence, reply, ending)

    async def outbox_release(self, fence: int, reply: Reply, *, seconds: float) -> None:
        await self._outbox.check_fence(fence)
        await self._outbox.let_go(reply, await self._now() + int(seconds * 1000))

    async def outbox_rearm(self, run_id: RunId) -> int:
        run, count = await self._runs.change(run_id, documents.rearm)
        if run is not None:
            await self._outbox.pay(run)
        return count or 0

    async def outbox_depth(self) -> OutboxDepth:
        states = await self._runs.drawn(
            [
                {"$match": {"is_waiting": True}},
                {"$project": {"replies.state": 1, "replies.is_held": 1}},
                {"$unwind": "$replies"},
                {"$match": {"replies.state": {"$in": [str(state) for state in documents.WAITING]}}},
                {"$group": {"_id": {"state": "$replies.state", "is_held": "$replies.is_held"}, "count": {"$sum": 1}}},
            ]
        )
        by_state: Counter[str] = Counter()
        for group in states:
            by_state["held" if group["_id"]["is_held"] else group["_id"]["state"]] += group["count"]
        oldest = await self._chats.one({"due": {"$gte": 0}}, fields={"due": 1}, order=[("due", 1)])
        forgotten = await self._ledger.one({"_id": "forgotten"}) or {"resent": 0}
        return OutboxDepth(
            by_state=dict(by_state),
            oldest_waiting_ms=None if oldest is None else max(0, await self._now() - oldest["due"]),
            unknown=by_state.get("unknown", 0),
            resent=forgotten["resent"] + await self._resent_among({}),
        )

    async def _keep_resent(self, run_ids: Sequence[str]) -> None:
        resent = await self._resent_among({"run_id": {"$in": list(run_ids)}})
        if resent:
            await self._ledger.change({"_id": "forgotten"}, {"$inc": {"resent": resent}}, upsert=True)

    async def _resent_among(self, which: Query) -> int:
        found = await self._runs.drawn(
            [{"$match": {"resent": {"$gte": 1}, **which}}, {"$group": {"_id": None, "count": {"$sum": "$resent"}}}]
        )
        return int(found[0]["count"]) if found else 0

    async def replies(self, *, run_id: RunId | None = None, task_id: TaskId | None = None) -> list[Reply]:
        of = {"run_id": run_id} if run_id is not None else {"task_id": task_id}
        return documents.as_replies(await self._runs.find(of))

    async def transcript(self, channel: str, account: str, chat_id: str, *, after: int, limit: int) -> list[Reply]:
        if limit <= 0:
            return []
        chat = chat_key(channel, account, chat_id)
        await self._outbox.see_numbered(chat)
        shown = await self._runs.drawn(
            [
                {"$match": {"replies": {"$elemMatch": {"chat": chat, "sequence": {"$gt": after}}}}},
                {"$project": {"run_id": 1, "task_id": 1, "replies": 1}},
                {"$unwind": "$replies"},
                {"$match": {"replies.chat": chat, "replies.sequence": {"$gt": after}}},
                {"$sort": {"replies.sequence": 1}},
                {"$limit": limit},
            ]
        )
        return [documents.as_reply(one, one["replies"]) for one in shown]

    # --- who it is ---

    async def identity(self) -> str:
        while True:
            kept = await self._ledger.one({"_id": "identity"})
            if kept is not None:
                return str(kept["name"])
            await self._ledger.insert({"_id": "identity", "name": self._remembered() or new_key()})

    # --- offices ---

    async def take_office(self, office: Office, member: str, *, seconds: float) -> bool:
        now = await self._now()
        # If another has it, the upsert would make a second document of the office, and cannot.
        free = {"_id": office.value, "$or": [{"member": member}, {"until": {"$lte": now}}]}
        held = {"member": member, "until": now + int(seconds * 1000)}
        return await self._offices.change(free, {"$set": held}, upsert=True) is not None

    async def leave_offices(self, member: str) -> None:
        await self._offices.remove({"member": member})

    # --- people ---

    async def record_operation(self, operation: Operation) -> None:
        who, action, target, why = map(clean_text, (operation.who, operation.action, operation.target, operation.why))
        document = {"at": operation.at_ms, "who": who, "action": action, "target": target, "why": why}
        # Recorded again because the answer was lost, it is the same.
        key = hashlib.sha256(encode_json(document)).hexdigest()
        await self._operations.insert({"_id": key, **document})

    async def operations(self, *, limit: int) -> list[Operation]:
        kept = await self._operations.find({}, order=[("at", -1)], limit=limit) if limit > 0 else []
        return [
            Operation(at_ms=one["at"], who=one["who"], action=one["action"], target=one["target"], why=one["why"])
            for one in kept
        ]

    async def purge(self, *, finished_before_ms: int, limit: int = 5000) -> int:
        if limit <= 0:
            return 0  # where none are asked for, MongoDB gives all
        old = await self._runs.find(
            {"finished_at": {"$lt": finished_before_ms}}, fields={"_id": 1}, order=[("finished_at", 1)], limit=limit
        )
        run_ids = [run["_id"] for run in old]
        # Before they go: whoever dies in between leaves too many counted, never too few.
        await self._keep_resent(run_ids)
        # The runs last: as long as they are there, what is left of theirs is found again.
        await self._steps.remove({"run_id": {"$in": run_ids}})
        await self._attempts.remove({"_id": {"$in": run_ids}})
        await self._runs.remove({"run_id": {"$in": run_ids}, "is_notice": True})
        await self._runs.remove({"_id": {"$in": run_ids}})
        await self._outbox.forget_chats(finished_before_ms)
        await self._histories.purge(finished_before_ms)
        return len(old)

    async def forget_raw(self, *, finished_before_ms: int, after_ms: int = 0, limit: int = 500) -> int | None:
        return await self._forgetting.raw(finished_before_ms, after_ms, limit) if limit > 0 else None

    async def forget_history(self, *, said_before_ms: int, after: str = "", limit: int = 500) -> str | None:
        return await self._histories.forget_before(said_before_ms, after, limit) if limit > 0 else None

    async def forget_chat(
        self, channel: str, account: str, chat_id: str, *, after: str = "", limit: int = 500, dry_run: bool = False
    ) -> ChatForgotten:
        return await self._forgetting.chat(channel, account, chat_id, after, max(1, limit), dry_run)

    async def finished_counts(self) -> Mapping[str, int]:
        counts = await self._runs.drawn(
            [
                {"$match": {"finished_at": {"$gte": 0}}},
                {"$group": {"_id": {"status": "$status", "outcome": "$outcome"}, "count": {"$sum": 1}}},
            ]
        )
        endings = ((one["_id"]["status"], one["_id"].get("outcome"), one["count"]) for one in counts)
        return {f"{status}.{outcome}" if outcome else status: count for status, outcome, count in endings}


def _missing(run_id: RunId) -> Run:
    raise AssertionError(f"the run {run_id} was there a moment ago")

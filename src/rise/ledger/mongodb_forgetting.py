"""Forgetting in the ledger on MongoDB: what a chat said and was answered, and what has become old.

A run is one document, so it is forgotten in one step; what belongs to it beside that goes first, because as long as the
run is the chat's, it is found again. So broken off anywhere and begun anew, it comes to the same.

Refuses: to touch a run that is not over, or one of which it cannot be read whose it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from rise.connections.mongodb import MongoDatabase
from rise.envelope import Head
from rise.ledger import documents
from rise.ledger.documents import chat_key
from rise.ledger.kept import is_of_chat
from rise.ledger.mongodb_chats import ChatMoves, parts_of
from rise.ledger.mongodb_histories import Histories
from rise.ledger.mongodb_runs import RunDocuments
from rise.ledger.port import ChatForgotten

_LOOKED_AT: Final = {"raw": 0, "replies": 0, "history": 0}


class Forgetting:
    """`keep_resent`: counts what was sent once more by runs that are about to go."""

    def __init__(
        self,
        database: MongoDatabase,
        runs: RunDocuments,
        histories: Histories,
        moves: ChatMoves,
        keep_resent: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._runs = runs
        self._histories = histories
        self._moves = moves
        self._keep_resent = keep_resent
        self._steps = database["steps"]
        self._attempts = database["attempts"]

    async def chat(
        self, channel: str, account: str, chat_id: str, after: str, limit: int, dry_run: bool
    ) -> ChatForgotten:
        chats = await self._moves.names_of(chat_key(channel, account, chat_id))
        names = frozenset(parts_of(chat)[2] for chat in chats)
        page = await self._runs.find(
            {"_id": {"$gt": after}, "is_notice": False}, fields=_LOOKED_AT, order=[("_id", 1)], limit=limit
        )
        heads = {run["_id"]: documents.head_of(run) for run in page if run["channel"] == channel}
        runs = {run["_id"]: documents.as_run(run) for run in page}
        whose = {key: is_of_chat(head, channel, account, names) for key, head in heads.items()}
        of_chat = {key: head for key, head in heads.items() if head and whose[key]}
        found = {key: head for key, head in of_chat.items() if runs[key].is_over}
        is_last = len(page) < limit
        seen = ChatForgotten(
            looked_at=len(page),
            runs=len(found),
            replies=await self._count_replies(list(found)),
            turns=await self._histories.count(chats) if is_last else 0,
            unfinished=len(of_chat) - len(found),
            unreadable=sum(is_of is None and runs[key].status.is_finished for key, is_of in whose.items()),
            after=None if is_last else page[-1]["_id"],
        )
        if not dry_run:
            await self._forget_workings([key for key, head in heads.items() if head and head.is_forgotten])
            await self._forget_runs(found)
            if is_last:
                # Last: what somebody was about to write of these runs until now goes, too, and nothing more comes.
                await self._histories.forget(chats)
        return seen

    async def _forget_runs(self, found: dict[str, Head]) -> None:
        of_them = {"run_id": {"$in": list(found)}}
        # Before they go: whoever dies in between leaves too many counted, never too few.
        await self._keep_resent(list(found))
        await self._forget_workings(list(found))
        await self._runs.remove(of_them | {"is_notice": True})
        for key, head in found.items():
            await self._runs.change(key, partial(documents.forget, head=head))

    async def _forget_workings(self, run_ids: Sequence[str]) -> None:
        await self._steps.remove({"run_id": {"$in": list(run_ids)}})
        await self._attempts.remove({"_id": {"$in": list(run_ids)}})

    async def _count_replies(self, run_ids: Sequence[str]) -> int:
        if not run_ids:
            return 0
        found = await self._runs.find({"run_id": {"$in": list(run_ids)}}, fields={"replies.reply_id": 1})
        return sum(len(one.get("replies", ())) for one in found)

    # --- by age ---

    async def raw(self, before_ms: int, after_ms: int, limit: int) -> int | None:
        ended = {"finished_at": {"$gt": after_ms, "$lt": before_ms}}
        page = await self._runs.find(ended, fields={"finished_at": 1}, order=[("finished_at", 1)], limit=limit)
        if not page:
            return None
        until_ms = int(page[-1]["finished_at"])
        # All that ended in the same millisecond: the next step begins behind it.
        at_the_end = await self._runs.find({"finished_at": until_ms}, fields={"_id": 1})
        run_ids = list({run["_id"] for run in (*page, *at_the_end)})
        await self._steps.remove({"run_id": {"$in": run_ids}})
        await self._runs.change_all({"_id": {"$in": run_ids}}, {"$set": {"raw": b""}})
        return until_ms

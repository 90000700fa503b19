"""What was said in chats, in the ledger on MongoDB: one document per id of a chat.

A run's turns are written here after the run itself, by whoever pays what it owes, and that may be a process that stood
still meanwhile, with a copy in its memory of what has been forgotten since. So a document says how often it was
forgotten, and a run how often that was when it was saved: what was said before is not taken any more. That is decided
by the one write that would put it there; nobody has to look again, and nobody can die in between.

Refuses: the turns of a run a second time; those that were forgotten.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from operator import itemgetter

from rise.connections.mongodb import Documents, MongoDatabase, Query
from rise.envelope import Head
from rise.errors import RecordTooLarge
from rise.ledger.documents import Document, chat_key
from rise.ledger.kept import HISTORY_KEPT, kept_text
from rise.ledger.port import HistoryLine


class Histories:
    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._documents: Documents = database["histories"]

    async def times_forgotten(self, head: Head) -> int:
        """Asked before a run of the chat is saved."""
        if head.chat_id is None:
            return 0
        chat = chat_key(head.channel, head.account, head.chat_id)
        kept = await self._documents.one({"_id": chat}, fields={"times_forgotten": 1})
        return int((kept or {}).get("times_forgotten", 0))

    async def add(self, run: Document) -> None:
        """Once per run, and not what was forgotten. Former versions kept turns of any length: where those leave no room
        for more, the oldest go."""
        kept = HISTORY_KEPT
        while True:
            try:
                return await self._add(run, kept)
            except RecordTooLarge:
                if kept == 1:
                    raise
                kept //= 2

    async def _add(self, run: Document, kept: int) -> None:
        """An upsert that may not add to what is there would make a second document, and cannot."""
        # Cut once more: a former version may have saved the run.
        turns = [turn | {"text": kept_text(turn["text"])} for turn in run["history"]]
        times = run.get("times_forgotten")
        await self._documents.change(
            {
                "_id": run["history_of"],
                # By both: long after a run is forgotten its message's key may be another's, and name a run again.
                "turns": {"$not": {"$elemMatch": {"of": run["_id"], "saved_at": run["saved_at"]}}},
                "times_forgotten": {"$exists": False} if times is None else times,
            },
            {"$push": {"turns": {"$each": turns, "$slice": -kept}}},
            fields={"_id": 1},
            upsert=True,
        )

    async def of(self, chats: Sequence[str], limit: int) -> list[HistoryLine]:
        kept = await self._documents.find({"_id": {"$in": list(chats)}})
        # Each stays under the id by which it was said; whoever reads makes one of them. What is in one is in the order
        # in which it came, which the clocks of several hosts do not say to the millisecond.
        turns = list(heapq.merge(*(one["turns"] for one in kept), key=itemgetter("saved_at", "at")))[-HISTORY_KEPT:]
        return [
            HistoryLine(role=turn["role"], text=turn["text"], at_ms=turn["at"], run_id=turn["run_id"])
            for turn in turns[-limit:]
            if limit > 0
        ]

    async def count(self, chats: Sequence[str]) -> int:
        found = await self._documents.find({"_id": {"$in": list(chats)}}, fields={"turns.at": 1})
        return sum(len(one["turns"]) for one in found)

    async def forget(self, chats: Sequence[str]) -> None:
        """All that was said until now, also what is still to be written. The chat's id stays until `purge`."""
        now = await self._database.now_ms()
        gone = {"$set": {"turns": [], "forgotten_at": now}, "$inc": {"times_forgotten": 1}}
        for chat in chats:
            # Two that make it at once: one of them finds it there.
            while not await self._documents.change({"_id": chat}, gone, fields={"_id": 1}, upsert=True):
                pass

    async def forget_before(self, before_ms: int, after: str, limit: int) -> str | None:
        some: Query = {"_id": {"$gt": after}, "turns": {"$ne": []}}
        chats = await self._documents.find(some, fields={"_id": 1}, order=[("_id", 1)], limit=limit)
        keys = [chat["_id"] for chat in chats]
        if keys:
            of_them = {"_id": {"$in": keys}}
            old = {"turns.at": {"$lt": before_ms}}
            await self._documents.change_all(of_them | old, {"$pull": {"turns": {"at": {"$lt": before_ms}}}})
            await self._documents.remove(of_them | {"turns": [], "times_forgotten": {"$exists": False}})
        return keys[-1] if len(keys) == limit else None

    async def purge(self, before_ms: int) -> None:
        """Of chats that were forgotten before then, that they were: whoever still had a turn of theirs has died."""
        await self._documents.remove({"forgotten_at": {"$lt": before_ms}, "turns": []})

"""Chats of the ledger on MongoDB: by which ids each is known, and where what is said to it goes.

One document, which is written back if nobody has changed it since: whoever has read it has missed nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from rise.connections.mongodb import Document, Documents
from rise.ledger.documents import chat_key
from rise.ledger.port import ChatMove


class ChatMoves:
    """Which ids are one chat, and where its replies go."""

    def __init__(self, ledger: Documents) -> None:
        self._ledger = ledger

    async def join(self, old: str, moved_to: str) -> None:
        """From now on the new id is another name of the chat that had the old one; not if it has another name
        itself."""
        channel, account, _ = parts_of(old)
        new = chat_key(channel, account, moved_to)

        def add(kept: Document) -> bool:
            first = _first_of(kept, old)
            if first == new or any(new in (move["chat"], move["first"]) for move in kept["moves"]):
                return False
            kept["moves"].append({"chat": new, "first": first})
            return True

        await self._change(add)

    async def redirect(self, old: str, new: str, turn: int) -> None:
        """From now on what is meant for the old id goes to the new one, and what went to the old one does, too.

        `turn`: the old chat's at that moment. Said again later, it changes nothing.
        """

        def turn_to(kept: Document) -> bool:
            if any(way["chat"] == old and way["turn"] >= turn for way in kept["ways"]):
                return False
            others = [way for way in kept["ways"] if way["chat"] != old]
            others = [way | {"to": new} if way["to"] == old else way for way in others]
            kept["ways"] = [*others, {"chat": old, "to": new, "turn": turn}]
            return True

        await self._change(turn_to)

    async def place_of(self, chat: str) -> str:
        """Where what is meant for it goes: all its ids are one line, also while that still stands at the old one."""
        kept = await self._kept()
        first = _first_of(kept, chat)
        return next((str(way["to"]) for way in kept["ways"] if way["chat"] == first), first)

    async def names_of(self, chat: str) -> list[str]:
        """All ids that it ever had."""
        kept = await self._kept()
        first = _first_of(kept, chat)
        return [first, *(move["chat"] for move in kept["moves"] if move["first"] == first)]

    async def after(self, sequence: int) -> list[ChatMove]:
        numbered = enumerate((await self._kept())["moves"], start=1)
        return [_as_move(move, number) for number, move in numbered if number > sequence]

    async def _kept(self) -> Document:
        return await self._ledger.one({"_id": "moves"}) or {"_id": "moves", "revision": 0, "moves": [], "ways": []}

    async def _change(self, change: Callable[[Document], bool]) -> None:
        while True:
            kept = await self._kept()
            revision = kept["revision"]
            if not change(kept):
                return
            kept["revision"] = revision + 1
            if revision == 0 and await self._ledger.insert(kept):
                return
            fields = {name: kept[name] for name in ("revision", "moves", "ways")}
            if await self._ledger.change({"_id": "moves", "revision": revision}, {"$set": fields}, fields={"_id": 1}):
                return


def parts_of(chat: str) -> tuple[str, str, str]:
    """Channel, account and id, of its key."""
    channel, account, chat_id = msgspec.json.decode(chat)
    return channel, account, chat_id


def _first_of(kept: Document, chat: str) -> str:
    return next((str(move["first"]) for move in kept["moves"] if move["chat"] == chat), chat)


def _as_move(move: Document, number: int) -> ChatMove:
    channel, account, chat_id = parts_of(move["chat"])
    first_id = parts_of(move["first"])[2]
    return ChatMove(channel=channel, account=account, chat_id=chat_id, first_id=first_id, sequence=number)

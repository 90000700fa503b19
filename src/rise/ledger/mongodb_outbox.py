"""The outbox on MongoDB: whose turn it is in a chat, and who sends to it.

A reply's state is in its run's document and nowhere else. A chat's document says when it may next be sent to, or who
has taken it: that is a hint, which is wrong for nobody's harm. Its `turn` grows with every change of it. From there its
replies have their numbers, which are their order, and each taking has its own, the claim.

Three things are written one after the other, each of which may be the last before a crash:

- *A run, then its numbers.* A run that is there `owes` until its replies are numbered and its chats have heard of them.
  Whoever asks after it pays first, so that a chat's next message never overtakes it; what nobody asks after, the
  sender pays.
- *A number's promise, then the number.* The chat's document names whom it gave numbers to last. Whoever comes next, to
  give or to read, first sees to it that those are written: so nobody sees a number and later a smaller one.
- *A chat's move, then what waits in it.* The old chat says that it is moving until everything has been carried over.
  Whoever is about to put something in does that first, so that nothing is left behind.

Refuses: to hand out what another fence has taken since (`ClaimLost`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from functools import partial
from typing import Any, Final

from rise.clock import Clock
from rise.connections.mongodb import MongoDatabase
from rise.envelope import ReplyId
from rise.errors import ClaimLost, Unavailable
from rise.ledger import documents
from rise.ledger.documents import Document, chat_key
from rise.ledger.mongodb_chats import ChatMoves, parts_of
from rise.ledger.mongodb_histories import Histories
from rise.ledger.mongodb_runs import WITHOUT_BYTES, RunDocuments
from rise.ledger.port import (
    URGENT_CHATS,
    Account,
    AccountsHeld,
    Again,
    Delivered,
    Reply,
    ReplyKind,
    Resend,
    RunEnded,
    SendEnding,
)
from rise.telemetry import log

OWED_MS: Final = 2000
"""Whoever saved something is done with it by then, or has died."""
OWED_LOOK_SECONDS: Final = 2.0
OWED_MAX: Final = 500
CLOSED: Final = "it was meant more than once: one of them is sent, or was; the others never are"

UNPAID: Final = "the others go out; its own replies, or its turns in the history, wait, and it is tried again"

_FREE: Final = {"due": None, "claim": None, "claim_before": None, "fence": None}
"""Nobody sends to the chat, or is to."""


class Outbox:
    def __init__(self, database: MongoDatabase, runs: RunDocuments, histories: Histories, clock: Clock) -> None:
        self._database = database
        self._runs = runs
        self._chats = database["chats"]
        self._histories = histories
        self.moves = ChatMoves(database["ledger"])
        self._steps = database["steps"]
        self._senders = database["ledger"]
        self._clock = clock
        self._looked_at: float | None = None

    # --- what a saved run owes ---

    async def pay(self, document: Document) -> bool:
        """Number its replies, tell their chats, add to the history. Done twice, or by two at once, it is done once.

        False: it is not there any more; a notice is taken back that came after what it was not to come after.
        """
        key, owed = document["_id"], document.get("owes")
        while owed is not None:
            for chat in documents.chats_to_tell(document):
                if not await self._tell(key, chat):
                    return False
            if "history" in document:
                await self._histories.add(document)
            settle = partial(documents.settle, owed=owed, now=await self._database.now_ms())
            settled, has_ended = await self._runs.change(key, settle)
            if settled is None:
                return False
            if has_ended:
                await self.forget_workings(key)
            if settled.get("owes") != owed:
                break
            document = settled  # its chat has moved meanwhile
        return True

    async def forget_workings(self, run_id: str) -> None:
        """After the run has ended: what a crash leaves of them goes with the run itself."""
        await self._steps.remove({"run_id": run_id})

    async def _tell(self, key: str, chat: str) -> bool:
        """Let the chat give numbers to a run's replies, and be sent to if there is something to send. False: there is
        no such run or notice any more.

        Looks until the chat knows all of it. It looks again only after somebody got on: the replies went where the chat
        has moved, promised numbers were written, what came too late was taken back, or the chat has changed meanwhile.
        """
        place = chat
        while True:
            # In this order: what the chat does not show yet was not numbered when the run was read, and was there
            # when it was asked for.
            seen = await self._chats.one({"_id": place})
            is_moving = seen is not None and "moving" in seen
            if is_moving:
                await self._carry_over(place)
            run = await self._runs.get(key)
            if run is None:
                return False
            count = documents.count_unnumbered(run, place)
            moved_to = await self.moves.place_of(chat) if count else place
            if moved_to != place:
                await self._runs.change(key, partial(documents.move, old=place, chat_id=parts_of(moved_to)[2]))
                place = moved_to
            elif not is_moving and await self._tell_seen(place, seen, run, count):
                return True

    async def _tell_seen(self, chat: str, seen: Document | None, run: Document, count: int) -> bool:
        """Whether the chat, as it was seen, knows all of the run from now on. `count`: of replies without a number."""
        wakes = documents.has_to_send(run, chat) and _is_idle(seen)
        if not count and not wakes:
            return True
        if seen is not None:
            await self._number(seen)
            if count and _is_promised(seen, run):
                return False
        if count and await self._comes_too_late(run):
            await self._take_back(run["_id"], chat, seen)
            return False
        return await self._promise(chat, seen, run, count, wakes=wakes)

    async def _take_back(self, notice: str, chat: str, seen: Document | None) -> None:
        # In the chat's document first: whoever was about to give it a number there has to look again.
        if await self._write(chat, seen, {"turn": await self._next_turn(seen)}) is not None:
            await self._runs.remove({"_id": notice})

    async def _promise(self, chat: str, seen: Document | None, run: Document, count: int, *, wakes: bool) -> bool:
        """Numbers for so many replies of the run, and that the chat is due. False: it has changed since it was seen."""
        first = await self._next_turn(seen)
        # Whatever is saved from here on has its numbers behind.
        changes: dict[str, Any] = {"turn": first + max(0, count - 1)}
        if count:
            changes |= {"numbered": run["_id"], "numbered_from": first}
        if wakes:
            changes["due"] = await self._database.now_ms()
        written = await self._write(chat, seen, changes)
        if written is not None and count:
            await self._number(written)
        return written is not None

    async def _comes_too_late(self, notice: Document) -> bool:
        return "unless_run" in notice and await self._runs.has(notice["unless_run"])

    async def _number(self, chat: Document) -> None:
        """See to it that whom the chat gave numbers to last has them."""
        if "numbered" in chat:
            change = partial(documents.number, chat=chat["_id"], first=chat["numbered_from"])
            await self._runs.change(chat["numbered"], change)

    async def see_numbered(self, chat: str) -> None:
        """Before its replies are read by number."""
        seen = await self._chats.one({"_id": chat})
        if seen is not None:
            await self._number(seen)

    # --- who sends ---

    async def open(self) -> int:
        while True:
            # Two that make it at once: one of them finds it there.
            sender = await self._senders.change({"_id": "sender"}, {"$inc": {"fence": 1}}, upsert=True)
            if sender is not None:
                await self._free_all(sender["fence"])
                return int(sender["fence"])

    async def _free_all(self, fence: int) -> None:
        """What former senders had. One that takes another at this moment is found by its fence later on."""
        gone = dict.fromkeys(("claim", "claim_before", "fence"), "")
        update = {"$set": {"due": await self._database.now_ms()}, "$inc": {"turn": 1}, "$unset": gone}
        await self._chats.change_all({"fence": {"$lt": fence}}, update)

    async def check_fence(self, fence: int) -> None:
        """A fence that becomes stale in between is caught by the claim, which whoever takes the chat then replaces."""
        sender = await self._senders.one({"_id": "sender"})
        if sender is None or sender["fence"] != fence:
            raise ClaimLost("another process sends now")

    # --- taking ---

    async def take(self, fence: int, limit: int, urgent_limit: int, held: AccountsHeld) -> list[Reply]:
        await self.check_fence(fence)
        await self._make_up_for()
        taken: list[Reply] = []

        async def due() -> list[Document]:
            return await self._due(fence, limit - len(taken), urgent_limit - len(taken), held)

        # Chats with nothing left to send make room for others.
        while chats := await due():
            answers = await asyncio.gather(*(self._take(chat, fence) for chat in chats), return_exceptions=True)
            # What was taken and cannot be said is free again with the next fence.
            for error in (answer for answer in answers if isinstance(answer, BaseException)):
                raise error
            taken += [answer for answer in answers if isinstance(answer, Reply)]
        return taken

    async def _due(self, fence: int, limit: int, urgent_limit: int, held: AccountsHeld) -> list[Document]:
        """Those whose time has come, the urgent before the others, longest-waiting first; then a former sender's."""
        now = await self._database.now_ms()
        of_urgent, of_others = _of_none(held.excluded), _of_none(held.excluded | held.urgent_only)

        async def first(which: dict[str, Any], room: int) -> list[Document]:
            return await self._chats.find(which, order=[("due", 1), ("_id", 1)], limit=room) if room > 0 else []

        due = {"$lt": now + 1}  # not `$lte`, which SecantusDB takes for `$lt` within an index of several fields
        found = await first({"is_urgent": True, "due": due} | of_urgent, urgent_limit)
        found += await first({"is_urgent": False, "due": due} | of_others, limit - len(found))
        either = {"$or": [{"is_urgent": True, **of_urgent}, {"is_urgent": False, **of_others}]}
        return found + await first({"fence": {"$lt": fence}} | either, limit - len(found))

    async def _take(
        self, chat: Document, fence: int, *, claim: int | None = None, after: int | None = None
    ) -> Reply | None:
        """The chat's first open reply, and the chat with it; lets go of the chat if there is none.

        `after`: the claim that this one goes on from. `claim`: the same taking once more.

        Looks again only as long as the chat is ours, and only after its first reply was not to be sent any more, which
        is not open from then on, or somebody has changed it. So it ends with a reply, or with none left.
        """
        ours = claim or after
        while True:
            await self._number(chat)
            first = await self._first_open(chat["_id"])
            if first is None:
                if await self._write(chat["_id"], chat, await self._freed(chat)):
                    return None
            else:
                claim = claim or await self._claim(chat, fence, after)
                ours = claim or ours
                reply = await self._hand_out(first, claim) if claim else None
                if reply is not None:
                    return reply
            # Something was put in, or ended, in between. A chat that is not ours comes up again by itself.
            seen = await self._chats.one({"_id": chat["_id"], "claim": ours}) if ours else None
            if seen is None:
                return None
            chat = seen

    async def _claim(self, chat: Document, fence: int, after: int | None) -> int | None:
        """None: somebody has changed the chat since it was seen."""
        claim = await self._next_turn(chat)
        changes = {"turn": claim, "claim": claim, "claim_before": after, "fence": fence, "due": None}
        return None if await self._write(chat["_id"], chat, changes) is None else claim

    async def _hand_out(self, reply_id: ReplyId, claim: int) -> Reply | None:
        """None: nothing with this id is open any more, so that it does not come up again."""
        change = partial(documents.hand_out, reply_id=reply_id, claim=claim)
        _, handed = await self._runs.change_with(reply_id, change)
        if handed is not None and handed.doubles_closed:
            log.error("reply.closed", reply_id=reply_id, count=handed.doubles_closed, consequence=CLOSED)
        return None if handed is None else handed.reply

    async def _first_open(self, chat: str) -> ReplyId | None:
        is_open = {"chat": chat, "is_open": True}
        found = await self._runs.drawn(
            [
                {"$match": {"replies": {"$elemMatch": is_open}}},
                {"$project": {f"replies.{name}": 1 for name in ("chat", "is_open", "state", "sequence", "reply_id")}},
                {"$unwind": "$replies"},
                {"$match": {f"replies.{name}": value for name, value in is_open.items()}},
                # One in doubt comes before all others, and 'sending' after 'ready' in the alphabet.
                {"$sort": {"replies.state": -1, "replies.sequence": 1}},
                {"$limit": 1},
            ]
        )
        return ReplyId(found[0]["replies"]["reply_id"]) if found else None

    # --- how a call ended ---

    async def record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered:
        await self.check_fence(fence)
        chat = await self._chats.one({"_id": _chat_of(reply)})
        if chat is not None and chat.get("fence", fence) > fence:
            raise ClaimLost("another process sends now")
        if chat is None or chat.get("claim") != reply.claim:
            return await self._record_again(fence, reply, chat)
        now = await self._database.now_ms()
        # The ending first: without it the chat's next must not go out. If the chat does not hear of it, whoever says
        # it again, or has the next fence, goes on from what the run's document says.
        change = partial(documents.record, reply=reply, ending=ending, now=now)
        run, _ = await self._runs.change_with(reply.reply_id, change)
        ended = await self._ended(run, reply)
        is_again = run is not None and documents.is_ready(run, reply)
        pause = ending.seconds if is_again and isinstance(ending, Again | Resend) else 0.0
        if isinstance(ending, Again) and ending.chat_id is not None:
            await self.moves.join(_chat_of(reply), ending.chat_id)
            await self._move(reply, ending.chat_id, now + int(pause * 1000))
            return Delivered(None, None)
        if pause:
            await self.let_go(reply, now + int(pause * 1000))
            return Delivered(ended, None)
        return Delivered(ended, await self._take(chat, fence, after=reply.claim))

    async def _record_again(self, fence: int, reply: Reply, chat: Document | None) -> Delivered:
        """Recorded already. What was handed out then is handed out again, unless the chat is somebody else's."""
        following = None
        if chat is not None and chat.get("claim_before") == reply.claim:
            following = await self._take(chat, fence, claim=chat["claim"], after=reply.claim)
        if chat is not None and "moving" in chat:
            await self._carry_over(chat["_id"])
        return Delivered(await self._ended(await self._runs.get_with(reply.reply_id), reply), following)

    async def _ended(self, run: Document | None, reply: Reply) -> RunEnded | None:
        """The end of the run if this is one of its answers."""
        ended = documents.as_ended(run) if run is not None and reply.kind is ReplyKind.ANSWER else None
        if run is not None and ended is not None:
            await self.forget_workings(run["_id"])
        return ended

    async def let_go(self, reply: Reply, due: int) -> None:
        """Whoever has let go already, and says so again, lets go of nothing: the chat may be somebody else's by now."""
        while (chat := await self._claimed(reply)) is not None:
            if await self._write(chat["_id"], chat, await self._freed(chat) | {"due": due}):
                return

    async def _claimed(self, reply: Reply) -> Document | None:
        return await self._chats.one({"_id": _chat_of(reply), "claim": reply.claim})

    # --- chats that move ---

    async def move_chat(self, channel: str, account: str, chat_id: str, moved_to: str) -> None:
        """Said by somebody else than who sends to it."""
        old, new = chat_key(channel, account, chat_id), chat_key(channel, account, moved_to)
        await self.moves.join(old, moved_to)
        while True:
            chat = await self._chats.one({"_id": old})
            if chat is not None and "claim" in chat:
                # A call is out, perhaps the one that is told so. Moved under it, what it sends could be taken again.
                return
            if chat is not None and "moving" in chat:
                await self._carry_over(old)
                continue
            turn = await self._next_turn(chat)
            if old == new:
                await self.moves.redirect(old, old, turn)
                return
            if chat is not None:
                await self._number(chat)
            leaving = await self._leaving_for(new, due=(chat or {}).get("due"))
            if await self._write(old, chat, {"turn": turn, "due": None} | leaving):
                await self._carry_over(old)
                return

    async def _move(self, reply: Reply, chat_id: str, due: int) -> None:
        """What waits for the reply's chat goes to the new one, from now on too."""
        old, new = _chat_of(reply), chat_key(reply.channel, reply.account, chat_id)
        if new == old:
            await self.moves.redirect(old, old, reply.claim)
            await self.let_go(reply, due)
            return
        while (chat := await self._claimed(reply)) is not None:
            await self._number(chat)
            if await self._write(old, chat, await self._freed(chat) | await self._leaving_for(new, due=due)):
                await self._carry_over(old)

    async def _leaving_for(self, new: str, *, due: int | None) -> dict[str, Any]:
        """`due`: when it may be sent to there; None if nothing is to be sent."""
        return {"moving": await self._database.now_ms(), "moving_to": new, "moving_due": due}

    async def _carry_over(self, old: str) -> None:
        chat = await self._chats.one({"_id": old, "moving": {"$exists": True}})
        if chat is None:
            return
        turn, new = chat["turn"], chat["moving_to"]
        # First, so that what is numbered there from now on comes behind; to be sent to last, when all has arrived.
        await self._bring_forward(new, turn)
        waiting = {"chat": old, "state": {"$in": [str(state) for state in documents.WAITING]}}
        for run in await self._runs.find({"replies": {"$elemMatch": waiting}}, fields={"_id": 1}):
            await self._runs.change(run["_id"], partial(documents.move, old=old, chat_id=parts_of(new)[2]))
        # Until here everybody comes to the old one, finds that it is moving, and does this first.
        await self.moves.redirect(old, new, turn)
        if "moving_due" in chat:
            await self._bring_forward(new, turn, due=chat["moving_due"])
        gone = dict.fromkeys(("moving", "moving_to", "moving_due"), "")
        await self._chats.change({"_id": old, "turn": turn}, {"$unset": gone})

    async def _bring_forward(self, key: str, turn: int, *, due: int | None = None) -> None:
        """Somebody may be sending to it at this moment: then what was carried over comes next."""
        while True:
            seen = await self._chats.one({"_id": key})
            changes = {"turn": max(turn + 1, await self._next_turn(seen))}
            if due is not None and _is_idle(seen):
                changes["due"] = due
            if await self._write(key, seen, changes):
                return

    # --- what nobody came back to ---

    async def _make_up_for(self) -> None:
        """Pay what was left owing, and carry over what was left in a chat, by whoever died over it."""
        now = self._clock.monotonic()
        if self._looked_at is not None and now - self._looked_at < OWED_LOOK_SECONDS:
            return
        before = await self._database.now_ms() - OWED_MS
        owing = {"owes": {"$gte": 0}, "saved_at": {"$lte": before}}
        for run in await self._runs.find(owing, fields=WITHOUT_BYTES, order=[("saved_at", 1)], limit=OWED_MAX):
            await self._pay_if_it_can_be(run)
        for chat in await self._chats.find({"moving": {"$lte": before}}, fields={"_id": 1}, limit=OWED_MAX):
            await self._carry_over(chat["_id"])
        self._looked_at = now

    async def _pay_if_it_can_be(self, run: Document) -> None:
        try:
            await self.pay(run)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - border: it is said, and the others are paid and handed out
            log.error("run.not_paid", run_id=run["_id"], error=error, exc_info=error, consequence=UNPAID)

    # --- a chat's document ---

    async def _next_turn(self, chat: Document | None) -> int:
        """Later than all before, and by the store's clock: so those of two chats that become one compare, and a chat
        that was forgotten begins beyond all that it ever gave."""
        return max((chat["turn"] if chat else 0) + 1, await self._database.now_ms() * 1000)

    async def _freed(self, chat: Document) -> dict[str, Any]:
        return {"turn": await self._next_turn(chat), **_FREE}

    async def forget_chats(self, before_ms: int) -> None:
        """Those in which nothing has happened since, and nothing waits. Not at once: their turns tell claims apart."""
        idle = {name: {"$exists": False} for name in ("due", "claim", "moving")}
        await self._chats.remove({"turn": {"$lt": before_ms * 1000}} | idle)

    async def _write(self, key: str, seen: Document | None, changes: dict[str, Any]) -> Document | None:
        """The chat after it; None if somebody has changed it since it was seen. None as a value takes a field away."""
        fields = {name: value for name, value in changes.items() if value is not None}
        if seen is None:
            channel, account, chat_id = parts_of(key)
            names = {"channel": channel, "account": account, "chat_id": chat_id}
            document = {"_id": key, "is_urgent": chat_id.startswith(URGENT_CHATS), **names, **fields}
            return document if await self._chats.insert(document) else None
        gone = {name: "" for name, value in changes.items() if value is None}
        return await self._chats.change(
            {"_id": key, "turn": seen["turn"]}, {"$set": fields} | ({"$unset": gone} if gone else {})
        )


def _of_none(accounts: Set[Account]) -> dict[str, Any]:
    """Those of a chat of none of these."""
    found = [{"channel": channel, "account": account} for channel, account in sorted(accounts)]
    return {"$nor": found} if found else {}


def _chat_of(reply: Reply) -> str:
    return chat_key(reply.channel, reply.account, reply.chat_id)


def _is_idle(chat: Document | None) -> bool:
    """Neither sent to nor waiting for its time: what is new queues behind a chat that is."""
    return chat is None or ("due" not in chat and "claim" not in chat)


def _is_promised(chat: Document, run: Document) -> bool:
    """Whether the run's numbers are those that the chat gave last, and are not written yet."""
    return chat.get("numbered") == run["_id"] and not documents.is_numbered(run, chat["_id"], chat["numbered_from"])

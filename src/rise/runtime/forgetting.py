"""Forgetting a chat: everything that somebody wrote in it, and was answered, on a person's word.

Promises: what was accepted stays accounted for, without content: that a key was there, so that a repeat is still a
duplicate, and how its run ended, so that the audit is clean. It goes in small steps beside all other work; broken off
anywhere, it is begun anew and goes on with what is left. That it was done is in the audit log before it is done, under
a mark that does not say the chat's id.

Refuses: while something of the chat is open, unless that may be dropped; drops are recorded like any other. What a
newer version wrote is the chat's if its lane says so; where that does not say whose it is, it is counted and left. And
while not all that is open is in the queue: what is brought to it later would be run, and be there again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from rise.clock import Clock, epoch_ms
from rise.conversations.port import ConversationServer, conversation_id
from rise.definitions.port import VERSIONS_KEPT, Definitions, Kind
from rise.definitions.records import TEMPORAL, account_name, bindings_of
from rise.envelope import Head, TaskId, chat_mark_of
from rise.errors import StateConflict, StoreUnavailable, TaskUnknown, TemporalUnavailable
from rise.ledger.kept import is_of_chat
from rise.ledger.port import ChatForgotten, Ledger, Operation
from rise.queue.port import Queue, Selection
from rise.runtime.operations import Operations
from rise.settings import Settings
from rise.telemetry import log

PAGE: Final = 500
DROP_ROUNDS: Final = 3
"""Somebody may write on while his chat is dropped."""

_JOURNAL_MINUTES: Final = 10
"""A finished message is looked for so often at least, in the journals and in RabbitMQ."""

Looked = Callable[[ChatForgotten], None]
"""Told after each step what all of them came to so far."""
IsMeant = Callable[[Head], bool]


class ChatNamed(NamedTuple):
    """A chat by any of its ids."""

    channel: str
    account: str
    chat_id: str


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was forgotten, or would be."""

    open: int
    """Open tasks of the chat, before."""
    dropped: int
    seen: ChatForgotten
    is_compact: bool = False
    """Nothing of it is left in unused space of the database, nor in its log."""

    def shown(self) -> dict[str, int]:
        """For programs."""
        return {
            "open": self.open,
            "dropped": self.dropped,
            "messages": self.seen.runs,
            "replies": self.seen.replies,
            "turns": self.seen.turns,
            "unfinished": self.seen.unfinished,
            "unreadable": self.seen.unreadable,
        }


class _OpenTasks(NamedTuple):
    of_chat: list[TaskId]
    unreadable: int
    """Of which this version cannot read whose they are."""


class Trace(msgspec.Struct, frozen=True):
    """What is left, where, and until when."""

    what: str
    until: str


async def _always() -> bool:
    return True


async def _none(is_meant: IsMeant) -> int:
    return 0


class Forgetting:
    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        operations: Operations,
        clock: Clock,
        *,
        compact: Callable[[], Awaitable[bool]],
        is_filled: Callable[[], Awaitable[bool]] = _always,
        lacked_by_queue: Callable[[IsMeant], Awaitable[int]] = _none,
        conversations: ConversationServer | None = None,
    ) -> None:
        """`compact`: writes the database anew, and says whether all of it is. `is_filled`: whether the queue holds all
        that is open; while an emptied one is filled again, it does not. `lacked_by_queue`: how many open messages are
        on their way to it, as far as this host knows. `conversations`: where chats are carried on outside of our
        stores, if anywhere."""
        self._queue = queue
        self._ledger = ledger
        self._operations = operations
        self._clock = clock
        self._compact = compact
        self._is_filled = is_filled
        self._lacked_by_queue = lacked_by_queue
        self._conversations = conversations

    async def foresee(self, chat: ChatNamed, *, on_step: Looked = lambda seen: None) -> Forgotten:
        """What is there to be forgotten. Changes nothing. Raises `StateConflict` while it cannot be told what of it is
        open."""
        still_open = await self._open_tasks(chat)
        seen = await self._walk(chat, still_open, on_step, dry_run=True)
        return Forgotten(open=len(still_open.of_chat), dropped=0, seen=seen)

    async def forget(
        self,
        chat: ChatNamed,
        *,
        who: str,
        why: str,
        drops_open: bool,
        compacts: bool,
        on_step: Looked = lambda seen: None,
    ) -> Forgotten:
        """Raises `StateConflict`, having forgotten nothing, while something of the chat is open that may not be
        dropped, or cannot; `TemporalUnavailable`, with all but its conversation forgotten."""
        # The queue before the ledger, which a task enters before it leaves the queue: what is open nowhere has ended
        # there, and is found.
        still_open = await self._open_tasks(chat)
        if still_open.of_chat and not drops_open:
            raise StateConflict(f"{_counted(len(still_open.of_chat))} of this chat still open")
        mark = f"{chat.channel} {chat_mark_of(*chat)}"
        operation = Operation(at_ms=epoch_ms(self._clock.now()), who=who, action="forget", target=mark, why=why)
        await self._ledger.record_operation(operation)
        log.info("operation.recorded", who=who, action="forget", target=mark, why=why)
        dropped = await self._drop(chat, still_open.of_chat, who=who, why=why or "rise forget")
        seen = await self._walk(chat, still_open, on_step, dry_run=False)
        await self._forget_conversation(chat)
        log.info("chat.forgotten", chat=mark, runs=seen.runs, replies=seen.replies, turns=seen.turns)
        is_compact = compacts and await self._compacted()
        return Forgotten(open=len(still_open.of_chat), dropped=dropped, seen=seen, is_compact=is_compact)

    # --- details ---

    async def _compacted(self) -> bool:
        try:
            return await self._compact()
        except StoreUnavailable as error:
            left = "nobody can ask for it any more; pieces of it are in unused space of the database"
            log.warning("database.not_compacted", error=error, consequence=left)
            return False

    async def _forget_conversation(self, chat: ChatNamed) -> None:
        """By each of its ids: it may have been begun before it was known which is the first."""
        if self._conversations is None:
            return
        try:
            for name in sorted(await self._names(chat)):
                await self._conversations.forget(conversation_id(chat.channel, chat.account, name))
        except TemporalUnavailable as error:
            left = f"all is forgotten but what Temporal has of it: {error.public_message}"
            raise TemporalUnavailable(left, remedy="forget it again when Temporal is back") from error

    async def _walk(self, chat: ChatNamed, still_open: _OpenTasks, on_step: Looked, *, dry_run: bool) -> ChatForgotten:
        seen = ChatForgotten(after="", unreadable=still_open.unreadable)
        while seen.after is not None:
            seen += await self._ledger.forget_chat(*chat, after=seen.after, limit=PAGE, dry_run=dry_run)
            on_step(seen)
        return seen

    async def _drop(self, chat: ChatNamed, still_open: Sequence[TaskId], *, who: str, why: str) -> int:
        dropped = 0
        for _ in range(DROP_ROUNDS):
            if not still_open:
                return dropped
            for task_id in still_open:
                dropped += await self._drop_one(task_id, who=who, why=why)
            still_open = (await self._open_tasks(chat)).of_chat
        if still_open:
            raise StateConflict(f"{_counted(len(still_open))} of this chat still open: try again in a moment")
        return dropped

    async def _drop_one(self, task_id: TaskId, *, who: str, why: str) -> bool:
        try:
            await self._operations.drop(task_id, who=who, why=why)
        except (StateConflict, TaskUnknown):
            return False  # it has ended meanwhile, and leaves the queue by itself
        return True

    async def _open_tasks(self, chat: ChatNamed) -> _OpenTasks:
        """Raises `StateConflict` while something of it may be open that the queue has not got."""
        names = await self._names(chat)

        def is_meant(head: Head) -> bool:
            return bool(is_of_chat(head, chat.channel, chat.account, names))

        # The journals before the queue, to which what they hold is brought; before both and after them, whether it is
        # filled: it may be emptied at any time.
        await self._refuse_unfilled()
        if lacked := await self._lacked_by_queue(is_meant):
            raise StateConflict(f"{_counted(lacked)} of this chat on the way to the queue: try again when that is done")
        open_tasks = await self._in_queue(chat, names)
        await self._refuse_unfilled()
        return open_tasks

    async def _refuse_unfilled(self) -> None:
        if not await self._is_filled():
            raise StateConflict(
                "the queue was emptied, and a running server fills it again: try again when that is done"
            )

    async def _in_queue(self, chat: ChatNamed, names: frozenset[str]) -> _OpenTasks:
        selection = Selection(channel=chat.channel, account=chat.account)
        found: list[TaskId] = []
        unreadable, after = 0, ""
        while page := await self._queue.list_open(selection, limit=PAGE, after=after):
            for task in page:
                is_of = is_of_chat(task.head, chat.channel, chat.account, names)
                found += [task.head.task_id] if is_of else []
                unreadable += is_of is None
            after = page[-1].head.task_id
        return _OpenTasks(found, unreadable)

    async def _names(self, chat: ChatNamed) -> frozenset[str]:
        """All ids that it ever had."""
        moves = [move for move in await self._ledger.chat_moves() if (move.channel, move.account) == chat[:2]]
        first = next((move.first_id for move in moves if move.chat_id == chat.chat_id), chat.chat_id)
        return frozenset([first, *(move.chat_id for move in moves if move.first_id == first)])


async def was_conversing(definitions: Definitions, chat: ChatNamed) -> bool:
    """Whether Temporal may have a conversation of the chat: its account was ever bound so, as far back as is known."""
    name = account_name(chat.channel, chat.account)
    versions = await definitions.versions(Kind.BINDINGS, name, limit=VERSIONS_KEPT)
    is_all = not versions or versions[-1].version == 1
    return not is_all or any(binding.engine == TEMPORAL for one in versions for binding in bindings_of(one))


def traces_of(settings: Settings, *, leaves_pieces: bool, was_conversing: bool) -> list[Trace]:
    """What of a chat that is forgotten is elsewhere, or stays without content; also as docs/forgetting.md says it.

    `leaves_pieces`: its database is not written anew. `was_conversing`: as the function of that name says.
    """
    days = f"{settings.keep_finished_days:g} days after its end (RISE_KEEP_FINISHED_DAYS)"
    traces = [
        Trace("that there were such messages, and how each ended, without content", days),
        Trace("their delivery keys, by which a repeat is known", "3 days from Telegram, else 7"),
        Trace("the chat's id, in the names of its lanes", "an hour after its last message; if it ever moved, for good"),
    ]
    if leaves_pieces:
        traces.append(Trace("pieces in unused space of rise.db and its log", "they are written over, or --compact"))
    if settings.redis_url is not None:
        traces.append(Trace("copies in the journals of all hosts", f"{_JOURNAL_MINUTES} min after each end"))
        traces.append(Trace("pieces in unused space of the journals' files", "they are written over"))
        traces.append(Trace("Redis's own files (AOF, RDB)", "Redis writes them anew"))
    if settings.rabbitmq_url is not None:
        traces.append(Trace("copies in RabbitMQ", f"{_JOURNAL_MINUTES} min after each end"))
    if settings.temporal_address is not None:
        removed = "Temporal removes it, in the background; an archive of histories is yours to clear"
        traces.append(Trace("the chat's conversation, in Temporal's store", removed))
    elif was_conversing:
        unset = "it is forgotten again with RISE_TEMPORAL_ADDRESS set: without, nothing of it is removed there"
        traces.append(Trace("the chat's conversation, if it had one, in Temporal's store", unset))
    if settings.mongodb_url is not None:
        kept = f"{settings.keep_finished_days:g} days (RISE_KEEP_FINISHED_DAYS)"
        traces.append(Trace("the chat's id in MongoDB, by which what is noted late is refused", kept))
        traces.append(Trace("MongoDB's oplog, and unused space of its files", "MongoDB writes them over"))
    aside = "before-restore-*, *.lost-*"
    traces.append(Trace(f"backups, and what was put aside in the data directory ({aside})", "you delete them"))
    traces.append(Trace("what the platform keeps of the chat", "its people delete it there"))
    return traces


def _counted(count: int) -> str:
    return "1 message is" if count == 1 else f"{count} messages are"

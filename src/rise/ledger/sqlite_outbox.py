"""The outbox of the ledger in SQLite: functions over a connection, each within a transaction of its caller.

`replies` says how far each reply is; `outbox_chats` which chats have something to send, and whose turn it is. That
works like the lanes of the queue: a chat's row says when its first open reply may be sent, and taking a chat sets that
to NULL, so that one call is in flight per chat. Who takes is fenced by a number that grows with every start of a
sender; each taking has a number, too, the claim, so that what is recorded again because its answer was lost is known
from what is recorded now.

    a reply is         what happens                                 function            and is then
    -                  it is meant                                  `add_reply`         ready; sent, if it is fetched
    ready              its call goes out                            `begin_sending`     sending
    ready, sending     it was sent                                  `_note_sent`        sent
    ready, sending     it never will be                             `_note_failed`      failed, and what goes with it
    ready, sending     it was certainly not sent                    `_note_not_sent`    ready
    ready, sending     it was perhaps sent, and is once more        `_note_perhaps`     ready
    ready, sending     it was perhaps sent, and a person is asked   `_hold`             unknown; what follows is held
    unknown, held      a person says to send it                     `rearm`             ready
    ready, unknown     its run has ended                            `close_replies`     failed
    ready, untried     its run ends otherwise than it says          `add_callback`      -, and another is ready

    a chat is          what happens                                 function            and is then
    -                  something is meant for it                    `_queue_chat`       due
    due                a sender takes it                            `_take`             taken, under a new claim
    taken              there is more to send                        `_take`             taken, under the next claim
    taken, due         there is nothing more                        `_take`             -
    taken              it pauses                                    `_let_go`           due, later
    taken              another sender begins                        `begin`             due, now
    taken, due         it has moved                                 `_move_line`        -, and the new one is due

Refuses: what a sender writes whose fence is stale (`ClaimLost`); to record twice what was recorded under one claim.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice, takewhile
from typing import Any, Final

import apsw

from rise.envelope import Call, ReplyId, RunId, TaskId, clean_text, encode_json
from rise.errors import ClaimLost
from rise.ledger.kept import end_of, known_word, read_call
from rise.ledger.port import (
    Account,
    AccountsHeld,
    Again,
    Delivered,
    Failed,
    HeldUnknown,
    OutboxDepth,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    RunEnded,
    SendEnding,
    Sent,
)
from rise.ledger.sqlite_chats import Chat, first_id, join_chats
from rise.ledger.sqlite_rows import count, forget_workings, value_of

REPLY_COLUMNS: Final = (
    "sequence, reply_id, run_id, task_id, channel, account, chat_id, kind, call, workflow_id, accepted_at,"
    " deadline_at, state, tries, resends, platform_ref, error"
)
_OPEN: Final = "state IN ('ready', 'sending') AND held = 0"


# --- what a sender does -----------------------------------------------------------------------------------


def begin(connection: apsw.Connection, now: int) -> int:
    """Another sender: its fence, and all chats free."""
    connection.execute(
        "UPDATE outbox_chats SET ready_at = ?, claim = NULL, claim_before = NULL WHERE ready_at IS NULL", (now,)
    )
    return count(connection, "sender_fence")


def has_due(connection: apsw.Connection, now: int, held: AccountsHeld, *, limit: int, urgent_limit: int) -> bool:
    """Whether there is something to take; most looks find nothing."""
    return bool(_due_chats(connection, now, held, min(limit, 1), min(urgent_limit, 1)))


def take_due(
    connection: apsw.Connection, fence: int, now: int, held: AccountsHeld, *, limit: int, urgent_limit: int
) -> list[Reply]:
    """The first reply of each due chat, and with it the chat."""
    _check_fence(connection, fence)
    replies: list[Reply] = []

    def due() -> list[Chat]:
        return _due_chats(connection, now, held, limit - len(replies), urgent_limit - len(replies))

    # Chats with nothing left to send are forgotten on the way, and make room for others.
    while chats := due():
        taken = (_take(connection, chat) for chat in chats)
        replies += [reply for reply in taken if reply is not None]
    return replies


def begin_sending(connection: apsw.Connection, fence: int, reply: Reply) -> None:
    """Before its call goes out."""
    _check_fence(connection, fence)
    connection.execute(
        "UPDATE replies SET state = 'sending', fence = ?"
        " WHERE reply_id = ? AND sequence = ? AND state = 'ready' AND held = 0",
        (fence, reply.reply_id, reply.sequence),
    )
    if not connection.changes():
        raise ClaimLost(f"the reply {reply.reply_id} is not to be sent any more")


def record(connection: apsw.Connection, fence: int, now: int, reply: Reply, ending: SendEnding) -> Delivered:
    """What became of its call, of its run, and of its chat."""
    _check_fence(connection, fence)
    chat = (reply.channel, reply.account, reply.chat_id)
    claim, before = _claims(connection, chat)
    if claim != reply.claim:
        # Recorded already. What was handed out then is handed out again, unless the chat is somebody else's.
        goes_on = before is not None and before == reply.claim
        following = _take(connection, chat, after=before, claim=claim) if goes_on else None
        return Delivered(_end_run(connection, reply, now), following)
    pause_seconds = _note(connection, reply, ending)
    due_at = now + int(pause_seconds * 1000)
    if isinstance(ending, Again) and ending.chat_id is not None:
        join_chats(connection, chat, ending.chat_id)
        _move_line(connection, chat, ending.chat_id, due_at)
        return Delivered(None, None)
    ended = _end_run(connection, reply, now)
    if pause_seconds:
        _let_go(connection, reply, due_at)
        return Delivered(ended, None)
    return Delivered(ended, _take(connection, chat, after=claim))


def release(connection: apsw.Connection, fence: int, reply: Reply, due_at: int) -> None:
    """Its chat is let go without having been tried."""
    _check_fence(connection, fence)
    _let_go(connection, reply, due_at)


# --- what others do ---------------------------------------------------------------------------------------


def add_reply(connection: apsw.Connection, reply: Reply, call: bytes, state: ReplyState, now: int) -> bool:
    """False if it was meant before."""
    # By its first id to where it is now: all its ids are one line, also while that still stands at the old one.
    known_as = first_id(connection, (reply.channel, reply.account, reply.chat_id))
    chat_id = _moved_to(connection, reply.channel, reply.account, known_as)
    connection.execute(
        "INSERT OR IGNORE INTO replies (reply_id, run_id, task_id, channel, account, chat_id, kind, call, workflow_id,"
        " accepted_at, deadline_at, saved_at, state) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            reply.reply_id, reply.run_id, reply.task_id, reply.channel, reply.account, chat_id, reply.kind, call,
            reply.workflow_id, reply.accepted_at_ms, reply.deadline_at_ms, now, state,
        ),
    )  # fmt: skip
    if not connection.changes():
        return False
    if state is ReplyState.READY:
        _queue_chat(connection, (reply.channel, reply.account, chat_id), now)
    return True


def add_callback(connection: apsw.Connection, callback: Reply, call: bytes, now: int) -> None:
    """Because its run has ended. One of the same id that nobody has tried to post makes room for it: whoever has taken
    that one knows it by its sequence, and is refused it."""
    connection.execute(
        "DELETE FROM replies WHERE reply_id = ? AND state = 'ready' AND tries = 0 AND resends = 0",
        (callback.reply_id,),
    )
    add_reply(connection, callback, call, ReplyState.READY, now)


def move_chat(connection: apsw.Connection, old: Chat, moved_to: str) -> None:
    """The chat is reached by another id from now on."""
    join_chats(connection, old, moved_to)
    line = connection.execute(
        "SELECT ready_at FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", old
    ).fetchone()
    if line is None:
        _redirect(connection, old, moved_to)
    elif line[0] is not None:
        _move_line(connection, old, moved_to, line[0])
    # Else a call is out, perhaps the one that is told so. Moved under it, what it sends could be taken again.


def rearm(connection: apsw.Connection, run_id: RunId, now: int) -> int:
    """A person resumes what was held; how many replies."""
    held = "run_id = ? AND kind = 'answer' AND (state = 'unknown' OR (state = 'ready' AND held = 1))"
    connection.execute(
        "UPDATE ledger_counters SET value = value +"
        f" (SELECT count(*) FROM replies WHERE {held} AND state = 'unknown') WHERE name = 'resent'",
        (run_id,),
    )
    rows = connection.execute(
        "UPDATE replies SET state = 'ready', held = 0, resends = resends + (state = 'unknown')"
        f" WHERE {held} RETURNING channel, account, chat_id",
        (run_id,),
    ).fetchall()
    for chat in set(rows):
        _queue_chat(connection, chat, now)
    return len(rows)


def depth(connection: apsw.Connection, now: int) -> OutboxDepth:
    states = dict(
        connection.execute(
            "SELECT CASE WHEN held THEN 'held' ELSE state END, count(*) FROM replies"
            " INDEXED BY replies_waiting WHERE state IN ('ready', 'sending', 'unknown') GROUP BY 1"
        )
    )
    oldest = connection.execute("SELECT min(ready_at) FROM outbox_chats").fetchone()[0]
    return OutboxDepth(
        by_state=states,
        oldest_waiting_ms=None if oldest is None else max(0, now - oldest),
        unknown=states.get("unknown", 0),
        resent=value_of(connection, "resent"),
    )


def close_replies(connection: apsw.Connection, run_id: RunId, why: str) -> None:
    """What is not out is not sent any more, and not again if it was perhaps sent."""
    connection.execute(
        "UPDATE replies SET state = 'failed', error ="
        " CASE WHEN state = 'unknown' OR resends > 0 THEN 'not sent again: ' ELSE 'not sent: ' END || ?"
        " WHERE run_id = ? AND kind = 'answer' AND state IN ('ready', 'unknown')",
        (clean_text(why), run_id),
    )


# --- what becomes of a reply ------------------------------------------------------------------------------


def _note(connection: apsw.Connection, reply: Reply, ending: SendEnding) -> float:
    """Write down what became of a call; returns for how many seconds its chat pauses."""
    if not _is_known(connection, reply):
        return 0.0  # forgotten while the call was out, or another has taken its place before
    if isinstance(ending, Again | Resend | HeldUnknown) and _is_ended(connection, reply):
        # Dropped while the call was out: what was dropped is not answered, so it is not tried once more.
        ending = Failed(f"not tried again, the task had ended: {ending.error}")
    match ending:
        case Sent():
            _note_sent(connection, reply, ending)
        case Failed():
            _note_failed(connection, reply, ending)
        case Again():
            _note_not_sent(connection, reply, ending)
            return ending.seconds
        case Resend():
            _note_perhaps(connection, reply, ending)
            return ending.seconds
        case HeldUnknown():
            _hold(connection, reply, ending)
    return 0.0


def _note_sent(connection: apsw.Connection, reply: Reply, sent: Sent) -> None:
    _set_state(connection, reply, ReplyState.SENT, platform_ref=sent.platform_ref)


def _note_failed(connection: apsw.Connection, reply: Reply, failed: Failed) -> None:
    _set_state(connection, reply, ReplyState.FAILED, error=failed.error, too_late=failed.too_late)
    if failed.chat_gone and reply.kind is ReplyKind.ANSWER:
        close_replies(connection, reply.run_id, failed.error)
    else:
        _close_continuations(connection, reply, f"not tried, what it continues was not taken: {failed.error}")


def _note_not_sent(connection: apsw.Connection, reply: Reply, again: Again) -> None:
    _set_state(connection, reply, ReplyState.READY, error=again.error, call=again.call, tries=1)


def _note_perhaps(connection: apsw.Connection, reply: Reply, resend: Resend) -> None:
    _set_state(connection, reply, ReplyState.READY, error=resend.error, call=resend.call, resends=1)
    count(connection, "resent")


def _hold(connection: apsw.Connection, reply: Reply, unknown: HeldUnknown) -> None:
    _set_state(connection, reply, ReplyState.UNKNOWN, error=unknown.error)
    if reply.kind is ReplyKind.ANSWER:
        connection.execute(
            "UPDATE replies SET held = 1 WHERE run_id = ? AND kind = 'answer' AND state = 'ready' AND sequence > ?",
            (reply.run_id, reply.sequence),
        )


def _set_state(
    connection: apsw.Connection,
    reply: Reply,
    state: ReplyState,
    *,
    platform_ref: str | None = None,
    error: str | None = None,
    call: Call | None = None,
    tries: int = 0,
    resends: int = 0,
    too_late: bool = False,
) -> None:
    connection.execute(
        "UPDATE replies SET state = ?, platform_ref = ?, error = ?, call = coalesce(?, call), tries = tries + ?,"
        " resends = resends + ?, too_late = ? WHERE reply_id = ?",
        (
            state,
            platform_ref,
            None if error is None else clean_text(error),
            None if call is None else encode_json(call),
            tries,
            resends,
            int(too_late),
            reply.reply_id,
        ),
    )


def _is_known(connection: apsw.Connection, reply: Reply) -> bool:
    same = "SELECT 1 FROM replies WHERE reply_id = ? AND sequence = ?"
    return connection.execute(same, (reply.reply_id, reply.sequence)).fetchone() is not None


def _is_ended(connection: apsw.Connection, reply: Reply) -> bool:
    if reply.kind is not ReplyKind.ANSWER:
        return False
    ended = "SELECT 1 FROM runs WHERE run_id = ? AND finished_at IS NOT NULL"
    return connection.execute(ended, (reply.run_id,)).fetchone() is not None


def _close_continuations(connection: apsw.Connection, reply: Reply, why: str) -> None:
    following = connection.execute(
        "SELECT reply_id, call FROM replies WHERE run_id = ? AND kind = ? AND sequence > ? ORDER BY sequence",
        (reply.run_id, reply.kind, reply.sequence),
    )
    continuing = takewhile(lambda row: read_call(row[1])[0].continues, following)
    for reply_id, _ in list(continuing):
        connection.execute(
            "UPDATE replies SET state = 'failed', error = ? WHERE reply_id = ? AND state = 'ready'",
            (clean_text(why), reply_id),
        )


# --- what becomes of its run --------------------------------------------------------------------------------


def _end_run(connection: apsw.Connection, reply: Reply, now: int) -> RunEnded | None:
    if reply.kind is not ReplyKind.ANSWER:
        return None
    endings = set(
        connection.execute("SELECT state, too_late FROM replies WHERE run_id = ? AND kind = 'answer'", (reply.run_id,))
    )
    ending = end_of(endings)
    if ending is None:
        return None  # perhaps it ended while this was out, and has been forgotten since
    status, outcome = ending
    connection.execute(
        "UPDATE runs SET status = ?, outcome = ?, finished_at = ? WHERE run_id = ? AND status = 'replying'",
        (status, outcome, now, reply.run_id),
    )
    if connection.changes():
        forget_workings(connection, reply.run_id)
    # Also if it has ended so before: who asks again has not heard of it.
    row = connection.execute(
        "SELECT task_id, generation FROM runs WHERE run_id = ? AND status = ? AND outcome IS ?",
        (reply.run_id, status, outcome),
    ).fetchone()
    return RunEnded(TaskId(row[0]), row[1], outcome, status) if row else None


# --- whose turn it is ---------------------------------------------------------------------------------------


def _due_chats(connection: apsw.Connection, now: int, held: AccountsHeld, limit: int, urgent_limit: int) -> list[Chat]:
    """Longest-waiting first, those of urgent calls before the others; beyond `limit` only urgent ones."""

    def first(source: str, excluded: Set[Account], count: int) -> list[Chat]:
        if count <= 0:
            return []
        rows = connection.execute(
            f"SELECT channel, account, chat_id FROM outbox_chats INDEXED BY {source} AND ready_at <= ?"
            " ORDER BY ready_at",
            (now,),
        )
        return list(islice((chat for chat in rows if chat[:2] not in excluded), count))

    urgent = first("outbox_urgent WHERE chat_id GLOB 'urgent:*'", held.excluded, max(limit, urgent_limit))
    others = held.excluded | held.urgent_only
    return urgent + first("outbox_ready WHERE chat_id NOT GLOB 'urgent:*'", others, limit - len(urgent))


def _take(
    connection: apsw.Connection, chat: Chat, *, after: int | None = None, claim: int | None = None
) -> Reply | None:
    """The chat's first open reply, and the chat with it; forgets the chat if there is none.

    One in doubt comes before all others: what a person has resumed since may be older, and two would be out at once.

    `after`: the claim that this one goes on from. `claim`: the same taking once more.
    """
    row = connection.execute(
        f"SELECT {REPLY_COLUMNS} FROM replies INDEXED BY replies_open"
        f" WHERE channel = ? AND account = ? AND chat_id = ? AND {_OPEN}"
        " ORDER BY state DESC, sequence LIMIT 1",
        chat,
    ).fetchone()
    if row is None:
        connection.execute("DELETE FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", chat)
        return None
    claim = claim or count(connection, "outbox_claims")
    connection.execute(
        "UPDATE outbox_chats SET ready_at = NULL, claim = ?, claim_before = ?"
        " WHERE channel = ? AND account = ? AND chat_id = ?",
        (claim, after, *chat),
    )
    return as_reply(row, claim=claim)


def _claims(connection: apsw.Connection, chat: Chat) -> tuple[int | None, int | None]:
    """Who sends to the chat now, and whose place that took."""
    row = connection.execute(
        "SELECT claim, claim_before FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", chat
    ).fetchone()
    return row or (None, None)


def _queue_chat(connection: apsw.Connection, chat: Chat, ready_at: int) -> None:
    """A chat that is there already is being sent to, or waits for its time: what is new queues behind."""
    connection.execute(
        "INSERT OR IGNORE INTO outbox_chats (channel, account, chat_id, ready_at) VALUES (?,?,?,?)", (*chat, ready_at)
    )


def _let_go(connection: apsw.Connection, reply: Reply, ready_at: int) -> None:
    """Whoever has let go already, and says so again, lets go of nothing: the chat may be somebody else's by now."""
    connection.execute(
        "UPDATE outbox_chats SET ready_at = ?, claim = NULL, claim_before = NULL"
        " WHERE channel = ? AND account = ? AND chat_id = ? AND claim = ?",
        (ready_at, reply.channel, reply.account, reply.chat_id, reply.claim),
    )


def _move_line(connection: apsw.Connection, old: Chat, moved_to: str, ready_at: int) -> None:
    """What waits for the old chat goes to the new one, from now on too."""
    _redirect(connection, old, moved_to)
    connection.execute("DELETE FROM outbox_chats WHERE channel = ? AND account = ? AND chat_id = ?", old)
    # Somebody may be sending to the new one at this moment; these come next.
    _queue_chat(connection, (*old[:2], moved_to), ready_at)


def _redirect(connection: apsw.Connection, old: Chat, moved_to: str) -> None:
    connection.execute(
        "UPDATE chat_aliases SET moved_to = ? WHERE channel = ? AND account = ? AND moved_to = ?", (moved_to, *old)
    )
    connection.execute("INSERT OR REPLACE INTO chat_aliases VALUES (?,?,?,?)", (*old, moved_to))
    connection.execute(
        "UPDATE replies SET chat_id = ? WHERE channel = ? AND account = ? AND chat_id = ?"
        " AND state IN ('ready', 'sending', 'unknown')",
        (moved_to, *old),
    )


def _moved_to(connection: apsw.Connection, channel: str, account: str, chat_id: str) -> str:
    row = connection.execute(
        "SELECT moved_to FROM chat_aliases WHERE channel = ? AND account = ? AND chat_id = ?",
        (channel, account, chat_id),
    ).fetchone()
    return str(row[0]) if row else chat_id


def _check_fence(connection: apsw.Connection, fence: int) -> None:
    if value_of(connection, "sender_fence") != fence:
        raise ClaimLost("another process sends now")


# --- reading ------------------------------------------------------------------------------------------------


def as_reply(row: Sequence[Any], *, claim: int = 0) -> Reply:
    sequence, reply_id, run_id, task_id, channel, account, chat_id, kind, stored, workflow_id = row[:10]
    accepted_at, deadline_at, state, tries, resends, platform_ref, error = row[10:]
    call, unreadable = read_call(stored)
    known_kind, kind_newer = known_word(ReplyKind, kind, ReplyKind.ANSWER)  # that it waits is seen; a notice's is not
    known_state, state_newer = known_word(ReplyState, state, ReplyState.UNKNOWN)
    return Reply(
        reply_id=ReplyId(reply_id),
        run_id=RunId(run_id),
        task_id=TaskId(task_id),
        channel=channel,
        account=account,
        chat_id=chat_id,
        call=call,
        kind=known_kind,
        workflow_id=workflow_id,
        accepted_at_ms=accepted_at,
        deadline_at_ms=deadline_at,
        state=known_state,
        tries=tries,
        resends=resends,
        sequence=sequence,
        platform_ref=platform_ref,
        error=error,
        claim=claim,
        unreadable=unreadable or kind_newer or state_newer,
    )

"""A run as one document, for a ledger that changes one document at a time.

A run holds its frozen result and its replies, with what became of each: that a reply is final and that its run has
ended is one change. A notice is a document of the same kind, without a result. Changes are functions of a document,
free of any store: whoever writes the document back sees to it that nobody else has changed it since.

Promises: a change made twice is made once. Refuses: to send what was ended, or what another has taken since
(`ClaimLost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple, TypeAlias

from rise.envelope import (
    Call,
    Head,
    Outcome,
    Progress,
    ReplyId,
    RunId,
    Status,
    Task,
    TaskId,
    clean_text,
    encode_head,
    encode_json,
    forgotten_head,
)
from rise.errors import ClaimLost
from rise.ledger.kept import end_of, kept_text, known_status, known_word, read_call, read_head, read_result, read_task
from rise.ledger.port import (
    Again,
    Failed,
    HeldUnknown,
    HistoryLine,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    Run,
    RunEnded,
    RunResult,
    SendEnding,
    Sent,
)

Document: TypeAlias = dict[str, Any]

WAITING: Final = (ReplyState.READY, ReplyState.SENDING, ReplyState.UNKNOWN)
"""The states of a reply that is not final."""
_SENDABLE: Final = (ReplyState.READY, ReplyState.SENDING)
_FINAL: Final = (ReplyState.SENT, ReplyState.FAILED)
_OF_HISTORY: Final = ("history", "history_of", "times_forgotten")
"""What a run keeps of its turns until they are in its chat's history."""


# --- making one -------------------------------------------------------------------------------------------


def new_run(
    task: Task,
    result: RunResult,
    replies: Sequence[Reply],
    history: Sequence[HistoryLine],
    now: int,
    *,
    state: ReplyState,
    times_forgotten: int = 0,
) -> Document:
    """With everything that the run brought about. It `owes` what is still to be done outside of the document.

    `times_forgotten`: how often its chat had been, before it was saved.
    """
    document = _new_document(task.run_id, task.run_id, task.task_id) | {
        "is_notice": False,
        "generation": task.progress.generation,
        "channel": task.head.channel,
        "workflow_id": result.workflow_id,
        "workflow_version": result.workflow_version,
        "status": Status.REPLYING.value,
        "outcome": result.outcome.value,
        "result": encode_json(result.value),
        "head": encode_head(task.head),
        "raw": task.raw,
        "saved_at": now,
        "accepted_at": task.head.accepted_at_ms,
        "fingerprint": task.head.fingerprint,
        "is_armed": False,
    }
    if replies:
        document["replies"] = [
            _new_reply(reply, now, ReplyState.READY if reply.kind is ReplyKind.CALLBACK else state) for reply in replies
        ]
    if history and task.head.chat_id is not None:
        document["history"] = [_as_kept(turn, task.run_id, now) for turn in history]
        document["history_of"] = chat_key(task.head.channel, task.head.account, task.head.chat_id)
        _flag(document, "times_forgotten", times_forgotten or None)
    if not _answers(document) and "history" not in document and result.outcome is not Outcome.MERGED:
        end(document, Status.COMPLETED, result.outcome, now)
    if replies or "history" in document:
        document["owes"] = 1
    derive(document)
    return document


def new_ended_run(
    task: Task, status: Status, outcome: Outcome | None, now: int, *, by: str, why: str, callback: Reply | None
) -> Document:
    """Of a task that ended without a result."""
    meant = [] if callback is None else [callback]
    document = new_run(task, RunResult(outcome=Outcome.SILENT), meant, [], now, state=ReplyState.READY)
    end(document, status, outcome, now, by=by, why=why)
    return document


def new_notice(reply: Reply, now: int, *, state: ReplyState, unless_run: RunId | None) -> Document:
    document = _new_document(reply.reply_id, reply.run_id, reply.task_id) | {
        "is_notice": True,
        "saved_at": now,
        "replies": [_new_reply(reply, now, state)],
        "owes": 1,
    }
    _flag(document, "unless_run", unless_run)
    derive(document)
    return document


def _new_document(key: str, run_id: RunId, task_id: TaskId) -> Document:
    return {"_id": key, "revision": 1, "run_id": run_id, "task_id": task_id}


def _new_reply(reply: Reply, now: int, state: ReplyState) -> Document:
    return {
        "reply_id": reply.reply_id,
        "channel": reply.channel,
        "account": reply.account,
        "chat_id": reply.chat_id,
        "chat": chat_key(reply.channel, reply.account, reply.chat_id),
        "kind": reply.kind.value,
        "call": encode_json(reply.call),
        "workflow_id": reply.workflow_id,
        "accepted_at": reply.accepted_at_ms,
        "deadline_at": reply.deadline_at_ms,
        "saved_at": now,
        "state": state.value,
        "is_held": False,
        "is_too_late": False,
        "tries": 0,
        "resends": 0,
        "sequence": 0,
        "claim": None,
        "platform_ref": None,
        "error": None,
    }


def _as_kept(turn: HistoryLine, run_id: RunId, now: int) -> Document:
    return {
        "of": run_id,
        "saved_at": now,
        "role": turn.role,
        "text": kept_text(turn.text),
        "at": turn.at_ms,
        "run_id": turn.run_id,
    }


def chat_key(channel: str, account: str, chat_id: str) -> str:
    return encode_json([channel, account, chat_id]).decode()


# --- changing one -----------------------------------------------------------------------------------------


def derive(document: Document) -> None:
    """What indexes look at, made anew after every change."""
    replies = document.get("replies", ())
    for reply in replies:
        reply["is_open"] = bool(reply["sequence"]) and _is_sendable(reply)
    _flag(document, "is_waiting", any(reply["state"] in WAITING for reply in replies) or None)
    _flag(document, "resent", sum(reply["resends"] for reply in replies) or None)


def end(document: Document, status: Status, outcome: Outcome | None, now: int, *, by: str = "", why: str = "") -> None:
    """The run is over; what it still had to send is not sent any more."""
    document["status"], document["outcome"] = status.value, outcome.value if outcome else None
    document["finished_at"] = now
    _flag(document, "by", clean_text(by) or None)
    _flag(document, "why", clean_text(why) or None)


def close_replies(document: Document, why: str) -> None:
    """What is not out is not sent any more, and not again if it was perhaps sent."""
    for reply in _answers(document):
        if reply["state"] in (ReplyState.READY, ReplyState.UNKNOWN):
            was_perhaps_sent = reply["state"] == ReplyState.UNKNOWN or reply["resends"] > 0
            prefix = "not sent again" if was_perhaps_sent else "not sent"
            reply.update(state=ReplyState.FAILED.value, error=f"{prefix}: {clean_text(why)}", is_held=False)


def add_callback(document: Document, callback: Reply, now: int) -> None:
    """To be posted because the run has ended, in the place of one of the same id that nobody has tried to post."""
    replies = document.get("replies", ())
    if all(_is_untried(reply) for reply in replies if reply["reply_id"] == callback.reply_id):
        others = [reply for reply in replies if reply["reply_id"] != callback.reply_id]
        document["replies"] = [*others, _new_reply(callback, now, ReplyState.READY)]
        document["owes"] = document["revision"] + 1


def forget(document: Document, head: Head) -> None:
    """Nothing of what was said is left of a run that is over; how it ended is. The bytes, too, though nobody has
    read them."""
    for name in ("replies", "owes", "why", *_OF_HISTORY):
        document.pop(name, None)
    document.update(head=encode_head(forgotten_head(head)), raw=b"", result=b"null")


def number(document: Document, chat: str, first: int) -> None:
    """Its replies to a chat have these numbers, from `first` on."""
    to_chat = [reply for reply in document.get("replies", ()) if reply["chat"] == chat]
    if any(reply["sequence"] == first for reply in to_chat):
        return
    for sequence, reply in enumerate((reply for reply in to_chat if not reply["sequence"]), start=first):
        reply["sequence"] = sequence


def move(document: Document, old: str, chat_id: str) -> None:
    """What waits for the old chat goes to the new one; and what is numbered nowhere yet."""
    for reply in document.get("replies", ()):
        if reply["chat"] == old and old_is_left(reply):
            new = chat_key(reply["channel"], reply["account"], chat_id)
            reply.update(chat_id=chat_id, chat=new, claim=None)


def old_is_left(reply: Document) -> bool:
    """Whether a reply goes along when its chat moves: what was sent there stays."""
    return reply["state"] in WAITING or not reply["sequence"]


class HandedOut(NamedTuple):
    reply: Reply | None
    """None: it is not to be sent any more. Nothing with its id is open from then on."""
    doubles_closed: int


def hand_out(document: Document, reply_id: ReplyId, claim: int) -> HandedOut:
    """Into the hands of who has the claim. Voids what others had."""
    doubles_closed = _close_doubles(document, reply_id)
    reply = _find(document, reply_id)
    if reply is None or not _is_sendable(reply):
        return HandedOut(None, doubles_closed)
    reply["claim"] = claim
    return HandedOut(as_reply(document, reply, claim=claim), doubles_closed)


def _close_doubles(document: Document, reply_id: ReplyId) -> int:
    """A former version could mean a callback twice. One stands, as in `add_callback`: the one that was tried, whose
    receiver may have it, else the last, which says how the run ended. Returns how many go."""
    replies = document.get("replies", ())
    same = [reply for reply in replies if reply["reply_id"] == reply_id]
    if len(same) < 2:
        return 0
    stands = next((reply for reply in same if not _is_untried(reply)), same[-1])
    document["replies"] = [reply for reply in replies if reply is stands or reply["reply_id"] != reply_id]
    return len(same) - 1


def begin_sending(document: Document, reply: Reply) -> None:
    found = _find(document, reply.reply_id)
    is_ready = found is not None and found["state"] == ReplyState.READY and not found["is_held"]
    if found is None or not is_ready or found["claim"] != reply.claim:
        raise ClaimLost(f"the reply {reply.reply_id} is not to be sent any more")
    found["state"] = ReplyState.SENDING.value


def record(document: Document, reply: Reply, ending: SendEnding, now: int) -> None:
    """Write down what became of a call, once per claim, and end the run if it was the last."""
    found = _find(document, reply.reply_id)
    if found is None or found["claim"] != reply.claim:
        return
    found["claim"] = None
    is_over = found["kind"] == ReplyKind.ANSWER and "finished_at" in document
    if is_over and isinstance(ending, Again | Resend | HeldUnknown):
        # Dropped while the call was out: what was dropped is not answered, so it is not tried once more.
        ending = Failed(f"not tried again, the task had ended: {ending.error}")
    _record(document, found, ending)
    _end_answered(document, now)


def _record(document: Document, reply: Document, ending: SendEnding) -> None:
    match ending:
        case Sent(platform_ref):
            reply.update(state=ReplyState.SENT.value, platform_ref=platform_ref, error=None)
        case Failed(error, chat_gone, too_late):
            reply.update(state=ReplyState.FAILED.value, platform_ref=None, error=clean_text(error))
            reply["is_too_late"] = too_late
            if chat_gone and reply["kind"] == ReplyKind.ANSWER:
                close_replies(document, error)
            _close_continuations(document, reply, f"not tried, what it continues was not taken: {error}")
        case Again(_, error, call, _):
            _make_ready(reply, error, call)
            reply["tries"] += 1
        case Resend(error, call, _):
            _make_ready(reply, error, call)
            reply["resends"] += 1
        case HeldUnknown(error):
            reply.update(state=ReplyState.UNKNOWN.value, platform_ref=None, error=clean_text(error))
            _hold_after(document, reply)


def _close_continuations(document: Document, refused: Document, why: str) -> None:
    replies = document["replies"]
    following = replies[replies.index(refused) + 1 :]
    for reply in takewhile(lambda one: read_call(one["call"])[0].continues, following):
        if reply["state"] == ReplyState.READY:
            reply.update(state=ReplyState.FAILED.value, error=clean_text(why), is_held=False)


def _make_ready(reply: Document, error: str, call: Call | None) -> None:
    reply.update(state=ReplyState.READY.value, platform_ref=None, error=clean_text(error))
    if call is not None:
        reply["call"] = encode_json(call)


def _hold_after(document: Document, held: Document) -> None:
    """What comes later in its run waits with it."""
    answers = _answers(document)
    for reply in answers[answers.index(held) + 1 :] if held in answers else ():
        if reply["state"] == ReplyState.READY:
            reply["is_held"] = True


def _end_answered(document: Document, now: int) -> None:
    ending = _ending_of_replies(document)
    if ending is not None and document["status"] == Status.REPLYING and "finished_at" not in document:
        status, outcome = ending
        document.update(status=status.value, outcome=outcome.value if outcome else None, finished_at=now)


def _ending_of_replies(document: Document) -> tuple[Status, Outcome | None] | None:
    """None: not all of them are final, or there are none. Notices and callbacks end nothing."""
    return end_of({(reply["state"], reply["is_too_late"]) for reply in _answers(document)})


def settle(document: Document, owed: int, now: int) -> bool:
    """It owes nothing any more, if its replies have their numbers. Returns whether it has ended."""
    if document.get("owes") != owed or any(not reply["sequence"] for reply in document.get("replies", ())):
        return False  # more has come up since, or its chat has moved
    for name in ("owes", *_OF_HISTORY):
        document.pop(name, None)
    _end_if_fetched(document, now)
    return "finished_at" in document


def _end_if_fetched(document: Document, now: int) -> None:
    """Of a run whose replies, if any, are where their reader fetches them."""
    is_run = not document["is_notice"] and document["outcome"] != Outcome.MERGED
    is_open = is_run and "finished_at" not in document and document["status"] == Status.REPLYING
    if is_open and all(reply["state"] in _FINAL for reply in _answers(document)):
        document.update(status=Status.COMPLETED.value, finished_at=now)


def rearm(document: Document) -> int:
    """Send what was held after all. Returns how many replies wait for sending again."""
    held = [reply for reply in _answers(document) if _waits_for_a_person(reply)]
    for reply in held:
        reply["resends"] += reply["state"] == ReplyState.UNKNOWN
        reply.update(state=ReplyState.READY.value, is_held=False, claim=None)
    if held:
        # Their chats have to hear of it.
        document["owes"] = document["revision"] + 1
    return len(held)


def _waits_for_a_person(reply: Document) -> bool:
    return bool(reply["state"] == ReplyState.UNKNOWN or (reply["state"] == ReplyState.READY and reply["is_held"]))


def _is_sendable(reply: Document) -> bool:
    return reply["state"] in _SENDABLE and not reply["is_held"]


def _is_untried(reply: Document) -> bool:
    return reply["state"] == ReplyState.READY and not reply["tries"] and not reply["resends"]


def _answers(document: Document) -> list[Document]:
    """The replies on which the end of the run depends."""
    return [reply for reply in document.get("replies", ()) if reply["kind"] == ReplyKind.ANSWER]


def _find(document: Document, reply_id: ReplyId) -> Document | None:
    return next((reply for reply in document.get("replies", ()) if reply["reply_id"] == reply_id), None)


def _flag(document: Document, name: str, value: Any) -> None:
    """A field that only documents have for which it says something: so its index holds those alone."""
    if value is None:
        document.pop(name, None)
    else:
        document[name] = value


# --- looking at one ---------------------------------------------------------------------------------------


def chats_to_tell(document: Document) -> list[str]:
    """Those in which its replies have no number yet, or are to be sent."""
    replies = document.get("replies", ())
    told = (reply["chat"] for reply in replies if not reply["sequence"] or _is_sendable(reply))
    return list(dict.fromkeys(told))


def count_unnumbered(document: Document, chat: str) -> int:
    return sum(reply["chat"] == chat and not reply["sequence"] for reply in document.get("replies", ()))


def has_to_send(document: Document, chat: str) -> bool:
    return any(reply["chat"] == chat and _is_sendable(reply) for reply in document.get("replies", ()))


def is_numbered(document: Document, chat: str, first: int) -> bool:
    return any(reply["chat"] == chat and reply["sequence"] == first for reply in document.get("replies", ()))


def is_ready(document: Document, reply: Reply) -> bool:
    """Whether it is to be sent, once more if it was recorded."""
    found = _find(document, reply.reply_id)
    return found is not None and found["state"] == ReplyState.READY


def as_ended(document: Document) -> RunEnded | None:
    """Also if it has ended so before: who asks again has not heard of it."""
    ending = _ending_of_replies(document)
    if ending is None or (document["status"], document["outcome"]) != ending:
        return None
    status, outcome = ending
    return RunEnded(TaskId(document["task_id"]), document["generation"], outcome, status)


def as_task(document: Document) -> Task:
    status, newer = _status_of(document)
    return read_task(
        document["head"],
        document["raw"],
        Progress(status=status, generation=document["generation"], error=newer),
        task_id=TaskId(document["task_id"]),
        channel=document["channel"],
        accepted_at_ms=document["accepted_at"],
        fingerprint=document.get("fingerprint", ""),  # former versions kept none
    )


def head_of(document: Document) -> Head | None:
    """None if this version cannot read it."""
    return read_head(document["head"])


def as_run(document: Document) -> Run:
    result, unreadable = read_result(document["result"])
    status, newer = _status_of(document)
    return Run(
        task_id=TaskId(document["task_id"]),
        generation=document["generation"],
        status=status,
        outcome=known_word(Outcome, document["outcome"], None)[0] if document["outcome"] else None,
        result=result,
        workflow_id=document["workflow_id"],
        workflow_version=document["workflow_version"],
        saved_at_ms=document["saved_at"],
        finished_at_ms=document.get("finished_at"),
        accepted_at_ms=document["accepted_at"],
        fingerprint=document.get("fingerprint", ""),  # former versions kept none
        by=document.get("by"),
        why=document.get("why"),
        is_armed=document["is_armed"],
        unreadable=unreadable or newer,
    )


def _status_of(document: Document) -> tuple[Status, str | None]:
    return known_status(document["status"], has_ended="finished_at" in document)


def as_replies(documents: Sequence[Document]) -> list[Reply]:
    """All of theirs in the order of sending; what has no number yet comes last."""
    ordered = sorted(documents, key=_first_sequence)
    return [as_reply(document, reply) for document in ordered for reply in document.get("replies", ())]


def _first_sequence(document: Document) -> float:
    """A document's replies to one chat are numbered in one go, so that none of another's is between them."""
    return min((reply["sequence"] or math.inf for reply in document.get("replies", ())), default=math.inf)


def as_reply(document: Document, reply: Document, *, claim: int = 0) -> Reply:
    call, unreadable = read_call(reply["call"])
    kind, kind_newer = known_word(
        ReplyKind, reply["kind"], ReplyKind.ANSWER
    )  # that it waits is seen; a notice's is not
    state, state_newer = known_word(ReplyState, reply["state"], ReplyState.UNKNOWN)
    return Reply(
        reply_id=ReplyId(reply["reply_id"]),
        run_id=RunId(document["run_id"]),
        task_id=TaskId(document["task_id"]),
        channel=reply["channel"],
        account=reply["account"],
        chat_id=reply["chat_id"],
        call=call,
        kind=kind,
        workflow_id=reply["workflow_id"],
        accepted_at_ms=reply["accepted_at"],
        deadline_at_ms=reply["deadline_at"],
        state=state,
        tries=reply["tries"],
        resends=reply["resends"],
        sequence=reply["sequence"],
        platform_ref=reply["platform_ref"],
        error=reply["error"],
        claim=claim,
        unreadable=unreadable or kind_newer or state_newer,
    )


def difference(before: Document, after: Document) -> Document:
    """What makes the one of the other, as an update of single fields. Empty if nothing does."""
    fields = dict(_changed_fields(before, after))
    gone = {name: "" for name in before if name not in after}
    return ({"$set": fields} if fields else {}) | ({"$unset": gone} if gone else {})


def _changed_fields(before: Document, after: Document) -> Iterator[tuple[str, Any]]:
    for name, value in after.items():
        if name == "replies" and len(before.get(name, ())) == len(value):
            for place, (old, new) in enumerate(zip(before["replies"], value, strict=True)):
                yield from ((f"replies.{place}.{key}", new[key]) for key in new if old.get(key) != new[key])
        elif before.get(name) != value:
            yield name, value

"""Writes that the ledger could not take: they wait in Redis, in the order in which they came, and are written back when
it answers again.

The message that a write is about stays open in all its stores until then. So if Redis is lost with what waits in it,
the message is run again, and nothing that was promised is lost with it.

The promises here are executable: `rise.testing.conformance.late` runs on every backend.

Refuses: another write under a key that one waits under; the first one stands, as in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from rise.envelope import LaneKey, Outcome, ReplyId, RunId, Status, TaskId, encode_json, run_id_of
from rise.errors import EnvelopeMalformed
from rise.ledger.port import Attempt, HistoryLine, Reply, RunResult


class LateRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. Its task's bytes are where they always are, in the queue."""

    task_id: TaskId
    generation: int
    lane: LaneKey
    accepted_at_ms: int
    fingerprint: str = ""
    """Former versions wrote none."""
    saved_at_ms: int

    @property
    def run_id(self) -> RunId:
        return run_id_of(self.task_id, self.generation)


class LateResult(LateRun, frozen=True, kw_only=True, tag="result"):
    """`Ledger.save_result`."""

    result: RunResult
    replies: list[Reply]
    history: list[HistoryLine]
    deliver: bool


class LateEnd(LateRun, frozen=True, kw_only=True, tag="end"):
    """`Ledger.finish`."""

    status: Status
    outcome: Outcome | None
    callback: Reply | None = None
    by: str = ""
    why: str = ""


class LateStep(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    run_id: RunId
    step: str
    value: bytes


class LateAttempt(msgspec.Struct, frozen=True, kw_only=True, tag="attempt"):
    run_id: RunId
    attempt: Attempt


class LateNotice(msgspec.Struct, frozen=True, kw_only=True, tag="notice"):
    reply: Reply
    deliver: bool
    unless_run: RunId | None


class LateArming(msgspec.Struct, frozen=True, kw_only=True, tag="armed"):
    run_id: RunId


LateWrite = LateResult | LateEnd | LateStep | LateAttempt | LateNotice | LateArming

_decoder: msgspec.json.Decoder[LateWrite] = msgspec.json.Decoder(LateWrite)


def encode_late(write: LateWrite) -> bytes:
    return encode_json(write)


def decode_late(stored: bytes) -> LateWrite:
    """Raises `EnvelopeMalformed`: a newer version wrote it."""
    try:
        return _decoder.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeMalformed(f"what waits for the ledger is unreadable: {error}") from error


def key_of(write: LateWrite) -> str:
    """The same for what the ledger would take for the same."""
    match write:
        case LateResult() | LateEnd():
            return key_of_run(write.run_id)
        case LateStep(run_id=run_id, step=step):
            return f"step:{run_id}\n{step}"
        case LateAttempt(run_id=run_id, attempt=attempt):
            return f"attempt:{run_id}:{attempt.at_ms}"
        case LateNotice(reply=reply):
            return key_of_notice(reply.reply_id)
        case LateArming(run_id=run_id):
            return key_of_arming(run_id)


def key_of_run(run_id: RunId) -> str:
    return f"run:{run_id}"


def key_of_notice(reply_id: ReplyId) -> str:
    return f"notice:{reply_id}"


def key_of_arming(run_id: RunId) -> str:
    return f"armed:{run_id}"


class Waiting(msgspec.Struct, frozen=True):
    """One write that waits."""

    number: int
    """Grows in the order of coming."""
    key: str
    write: bytes


class LateWrites(Protocol):
    """Every method raises `RedisUnavailable` when the store does not answer, and may be repeated then."""

    async def put(self, key: str, about: str, write: bytes) -> bytes:
        """Keep a write behind all that wait. The first of its key stands, and is returned.

        `about`: what else it is found by.
        """
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def first_of(self, keys: Sequence[str]) -> bytes | None:
        """The write of the first of these keys under which one waits, all looked at in one moment."""
        ...

    async def about(self, about: str) -> list[bytes]:
        """In the order of coming."""
        ...

    async def page(self, *, limit: int, after: int = 0) -> list[Waiting]:
        """The first that wait with a number beyond `after`; fewer where they are large."""
        ...

    async def remove(self, keys: Sequence[str]) -> None:
        """They are in the ledger."""
        ...

    async def depth(self) -> int:
        """How many wait."""
        ...

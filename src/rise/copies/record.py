"""A task as the copies hold it: everything that any store needs to take it in, and the bytes as they were received.

Refuses: what is damaged, and what a newer version wrote. Whoever reads keeps such bytes for one that can.
"""

from __future__ import annotations

import msgspec

from rise.envelope import Reason, clean_text, decode_head, encode_head
from rise.errors import EnvelopeMalformed
from rise.queue.port import NewTask


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """In MessagePack, where bytes are bytes. Fields are only ever added at the end."""

    head: bytes
    raw: bytes
    generation: int
    suspend: Reason | None = None
    error: str | None = None
    deadline_at_ms: int | None = None
    due_at_ms: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


def encode_task(task: NewTask) -> bytes:
    head = encode_head(task.head)
    error = None if task.error is None else clean_text(task.error)
    return _encode(_Record(head, task.raw, task.generation, task.suspend, error, task.deadline_at_ms, task.due_at_ms))


def decode_task(stored: bytes) -> NewTask:
    """Raises `EnvelopeMalformed` if this version of Rise cannot read the record."""
    try:
        record = _decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EnvelopeMalformed(f"the stored record is unreadable: {error}") from error
    return NewTask(
        decode_head(record.head),
        record.raw,
        generation=record.generation,
        suspend=record.suspend,
        error=record.error,
        deadline_at_ms=record.deadline_at_ms,
        due_at_ms=record.due_at_ms,
    )

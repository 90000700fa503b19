"""The record of a task is the task, whichever copy it comes back from."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.copies.record import decode_task, encode_task
from rise.envelope import Reason
from rise.errors import EnvelopeMalformed
from rise.testing.conformance.queue import delivery

MOMENTS = st.none() | st.integers(0, 2**40)


@pytest.mark.req("CPY-5", "ENV-2")
@given(
    raw=st.binary(max_size=300),
    suspend=st.none() | st.sampled_from(Reason),
    error=st.none() | st.text(),
    generation=st.integers(0, 5),
    deadline=MOMENTS,
    due=MOMENTS,
)
def test_what_is_read_is_what_was_written(raw, suspend, error, generation, deadline, due):
    task = msgspec.structs.replace(
        delivery(1, raw=raw, suspend=suspend, deadline_at_ms=deadline),
        error=error,
        generation=generation,
        due_at_ms=due,
    )
    assert decode_task(encode_task(task)) == task


@pytest.mark.failure("B2")
def test_an_error_that_quotes_half_a_character_is_kept_without_it():
    task = msgspec.structs.replace(delivery(1), error="quotes \ud800")
    assert decode_task(encode_task(task)).error == "quotes ?"


@pytest.mark.failure("B14", "B15")
@pytest.mark.parametrize("stored", [b"", b"garbage", encode_task(delivery(1))[:-20], b"\x97" + b"\xc4\x02{}" * 2])
def test_a_damaged_record_is_said_to_be_unreadable(stored):
    with pytest.raises(EnvelopeMalformed):
        decode_task(stored)


@pytest.mark.failure("B14")
def test_what_a_later_version_added_at_the_end_does_not_keep_this_one_from_reading():
    parts = msgspec.msgpack.decode(encode_task(delivery(1)))
    assert decode_task(msgspec.msgpack.encode([*parts, "new"])) == delivery(1)

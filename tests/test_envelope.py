"""Names, records, and the envelope as people see it."""

from __future__ import annotations

import hashlib
import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.envelope import (
    RAW_SHOWN_BYTES_MAX,
    SCHEMA,
    Call,
    DeliveryKey,
    Head,
    LaneKey,
    Order,
    Progress,
    Reason,
    Status,
    Task,
    decode_head,
    encode_head,
    encode_json,
    envelope,
    new_key,
    new_secret,
    notice_id_of,
    reply_id_of,
    run_id_of,
    task_id_of,
)
from rise.errors import EnvelopeMalformed

KEYS = st.text(min_size=1).filter(lambda text: text.isprintable())


def task(raw: bytes = b'{"update_id":1}', *, raw_is_json: bool = True, progress: Progress | None = None) -> Task:
    key = DeliveryKey("tg:7:u:1")
    head = Head(
        task_id=task_id_of(key),
        delivery_key=key,
        channel="telegram",
        account="7",
        source="webhook",
        lane=LaneKey("telegram:7:42"),
        order=Order(1_762_587_000_000, 1),
        accepted_at_ms=1_762_587_000_123,
        request_id="r1",
        trace_id="r1",
        idempotency_key="telegram:greeter:42:5",
        chat_id="42",
        user_text="hello",
        metadata={"locale": "de"},
        user={"id": "9"},
        telemetry={"copies": ["journal"]},
        raw_version="telegram.v1",
        raw_is_json=raw_is_json,
        raw_sha256=hashlib.sha256(raw).hexdigest(),
    )
    return Task(head, raw, progress or Progress(status=Status.PENDING))


def shown(of: Task, **options: int) -> dict:
    return json.loads(encode_json(envelope(of, **options)))


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.req("ENV-3")
def test_ids_are_derived_and_do_not_change_between_versions():
    """Stored tasks are found again by them: a change here is a change of protocol."""
    task_id = task_id_of(DeliveryKey("tg:7:u:1"))
    assert task_id == "t_ocxvfdecr7pj4mjzokduaam7hr"
    assert run_id_of(task_id, 2) == f"{task_id}.2"
    assert reply_id_of(run_id_of(task_id, 2), 3) == f"{task_id}.2.3"


@given(KEYS, KEYS)
def test_two_keys_have_two_tasks(one: str, other: str):
    ids = {task_id_of(DeliveryKey(one)), task_id_of(DeliveryKey(other))}
    assert len(ids) == len({one, other})
    assert all(re.fullmatch(r"t_[a-z2-7]{26}", task_id) for task_id in ids)


def test_a_notice_is_named_by_its_cause():
    assert notice_id_of("t_1", "queued") == notice_id_of("t_1", "queued")
    assert notice_id_of("t_1", "queued") != notice_id_of("t_1", "late")
    assert notice_id_of("t_1", "queued").startswith("n_")


def test_random_names_do_not_repeat_and_fit_in_urls():
    names = [make() for make in (new_key, new_secret) for _ in range(100)]
    assert len(set(names)) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,43}", name) for name in names)


# --- the record -------------------------------------------------------------------------------------------


def test_a_head_survives_storing():
    assert decode_head(encode_head(task().head)) == task().head


def test_what_is_not_there_yet_has_its_default():
    small = {name: value for name, value in msgspec.to_builtins(task().head).items() if name != "metadata"}
    assert decode_head(msgspec.json.encode(small)).metadata == {}


@pytest.mark.failure("B14", "M4")
def test_a_newer_record_is_refused_and_unknown_fields_are_not():
    stored = msgspec.to_builtins(task().head)
    assert decode_head(msgspec.json.encode(stored | {"later": 1})) == task().head
    with pytest.raises(EnvelopeMalformed, match="schema"):
        decode_head(msgspec.json.encode(stored | {"schema": SCHEMA + 1}))


@pytest.mark.failure("B15")
@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_worse(stored: bytes):
    with pytest.raises(EnvelopeMalformed):
        decode_head(stored)


def test_order_is_by_date_then_sequence():
    orders = [Order(2, 1), Order(1, 9), Order(1, 2), Order(2, 0)]
    assert sorted(orders) == [Order(1, 2), Order(1, 9), Order(2, 0), Order(2, 1)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
ODD_TEXT = st.text(st.characters(codec=None, categories=("L", "N", "Cs", "Cc", "So")), max_size=20)


@pytest.mark.failure("B2", "B4", "B7")
@given(ODD_TEXT, JSON)
def test_anything_becomes_json(odd: str, value: object):
    """Also within records, where lone surrogates of old inputs may have got to."""
    for carrier in (odd, {odd: [odd, value]}, Call(odd, {"text": odd}, odd), [Call("m", {odd: value})]):
        json.loads(encode_json(carrier))
    head = msgspec.structs.replace(task().head, user_text=odd, metadata={"x": odd})
    assert decode_head(encode_head(head)).task_id == head.task_id


# --- the wire ---------------------------------------------------------------------------------------------


@pytest.mark.req("ENV-1")
def test_when_it_is_tried_next_is_said_also_of_what_waits_for_a_dependency_and_has_used_up_no_attempt():
    waits = Progress(status=Status.PENDING, due_at_ms=1_762_587_060_500, error="WaitsForDependency: no model")
    assert shown(task(progress=waits))["retry"] == {"count": 0, "max": 3, "nextAttemptAt": 1_762_587_060}
    fresh = Progress(status=Status.PENDING, due_at_ms=1_762_587_060_500)
    assert shown(task(progress=fresh))["retry"] == {"count": 0, "max": 3, "nextAttemptAt": 0}


@pytest.mark.req("ENV-1")
def test_the_envelope_has_its_shape():
    progress = Progress(
        status=Status.SUSPENDED,
        reason=Reason.RETRIES_EXHAUSTED,
        attempts=3,
        due_at_ms=1_762_587_060_500,
        updated_at_ms=1_762_587_001_000,
        error="boom",
    )
    seen = shown(task(progress=progress))
    sha256 = seen["payload"]["telemetry"].pop("raw_sha256")
    assert sha256 == hashlib.sha256(b'{"update_id":1}').hexdigest()
    assert seen == {
        "taskId": "t_ocxvfdecr7pj4mjzokduaam7hr",
        "taskType": "workflow.execute",
        "status": "suspended",
        "reason": "retries_exhausted",
        "payload": {
            "workflowId": None,
            "channel": "telegram",
            "source": "webhook",
            "metadata": {"locale": "de"},
            "userText": "hello",
            "historyChunks": [],
            "policy": {},
            "telemetry": {
                "channel": "telegram",
                "copies": ["journal"],
                "raw_size_bytes": 15,
                "raw_truncated": False,
                "requestId": "r1",
                "source": "webhook",
            },
            "channelPayload": {"version": "telegram.v1", "raw": {"update_id": 1}},
        },
        "context": {"idempotencyKey": "telegram:greeter:42:5", "traceId": "r1", "user": {"id": "9"}},
        "retry": {"count": 3, "max": 3, "nextAttemptAt": 1_762_587_060},
        "createdAt": "2025-11-08T07:30:00.123Z",
        "updatedAt": "2025-11-08T07:30:01.000Z",
        "result": None,
        "error": "boom",
    }


@pytest.mark.req("ENV-1", "ENV-2")
@pytest.mark.parametrize(
    "raw", [b'{ "a" : 1.0, "a":2 , "b":"\\u00e9\\ud800"}', b"[1e999, 123456789012345678901234567890]", b" null "]
)
def test_raw_is_shown_byte_for_byte(raw: bytes):
    assert b'"raw":' + raw in encode_json(envelope(task(raw)))


@pytest.mark.req("ENV-2")
@pytest.mark.failure("B12")
def test_a_raw_over_the_limit_is_shown_as_its_first_part():
    raw = b'{"text":"' + b"x" * RAW_SHOWN_BYTES_MAX + b'"}'
    seen = shown(task(raw))["payload"]
    assert seen["channelPayload"]["raw"] == raw[:RAW_SHOWN_BYTES_MAX].decode()
    assert seen["telemetry"]["raw_truncated"] is True
    assert seen["telemetry"]["raw_size_bytes"] == len(raw)
    assert seen["telemetry"]["raw_sha256"] == hashlib.sha256(raw).hexdigest()
    exactly = b'"' + b"x" * (RAW_SHOWN_BYTES_MAX - 2) + b'"'
    assert shown(task(exactly))["payload"]["telemetry"]["raw_truncated"] is False


@pytest.mark.req("ENV-2")
@pytest.mark.failure("B1")
@given(st.binary(max_size=300), st.integers(0, 50))
def test_a_raw_that_is_not_json_is_shown_as_a_string(raw: bytes, limit: int):
    seen = shown(task(raw, raw_is_json=False), raw_shown_bytes_max=limit)["payload"]
    assert isinstance(seen["channelPayload"]["raw"], str)
    assert seen["telemetry"]["raw_truncated"] == (len(raw) > limit)

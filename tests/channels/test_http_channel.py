"""HTTP as a channel: what its callers fetch, and what cannot be said there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.channels.http import HttpChannel, read_object
from rise.channels.port import PushChannel
from rise.envelope import Effect
from rise.errors import PayloadInvalid, PayloadMalformed
from rise.testing.conformance.channel import head_of


def read(body: dict[str, Any], **given: Any) -> Any:
    fields = {"principal": "olga", "key": None, "request_id": "r", "trace_id": None} | given
    return HttpChannel().read_apply(json.dumps(body).encode(), **fields)


HEAD = head_of(read({"metadata": {"chat_id": 42}}).incoming)


def test_nobody_is_pushed_to() -> None:
    channel = HttpChannel()
    assert not isinstance(channel, PushChannel)
    assert channel.notice(HEAD, "running late") is None


def test_a_reply_is_kept_as_it_was_said() -> None:
    media = {"kind": "photo", "file": "https://example.org/a.png"}
    effects = [
        Effect(kind="reply", text="a", buttons=[[{"text": "b", "data": "c"}]], reply_to="7"),
        Effect(kind="reply", media=media),
    ]
    first, second = HttpChannel().compose(HEAD, effects)
    assert (first.method, first.text) == ("reply", "a")
    assert first.params == {"text": "a", "buttons": [[{"text": "b", "data": "c"}]], "reply_to": "7"}
    assert second.params == {"text": "", "media": media}


@pytest.mark.parametrize(
    ("effect", "named"),
    [
        (Effect(kind="edit", text="x"), "edit"),
        (Effect(kind="call", method="sendDice"), "sendDice"),
        (Effect(kind="answer_callback"), "answer_callback"),
    ],
)
def test_what_it_cannot_say_is_named(effect: Effect, named: str) -> None:
    with pytest.raises(PayloadInvalid, match=named):
        HttpChannel().compose(HEAD, [effect])


@pytest.mark.req("ENV-3", "ENV-4")
def test_every_request_without_a_key_gets_one_of_its_own() -> None:
    first, second = read({}), read({})
    assert first.idempotency_key != second.idempotency_key
    assert first.incoming.delivery_key == f"http:olga:{first.idempotency_key}"


@pytest.mark.req("ENV-3")
def test_the_key_never_contains_the_workflow() -> None:
    keys = {read({"workflowId": workflow}, key="k").incoming.delivery_key for workflow in ("wf_a", "wf_b", None)}
    assert keys == {"http:olga:k"}


def test_two_different_keys_in_header_and_body_are_a_mistake() -> None:
    assert read({"idempotencyKey": "k"}, key="k").idempotency_key == "k"
    with pytest.raises(PayloadInvalid, match="differ"):
        read({"idempotencyKey": "a"}, key="b")


@pytest.mark.parametrize(("given", "kept"), [(42, "42"), ("42", "42"), (-(1 << 63), str(-(1 << 63))), ("чат", "чат")])
def test_a_chat_is_a_string_or_an_integer_and_compared_as_a_string(given: Any, kept: str) -> None:
    incoming = read({"metadata": {"chat_id": given}}).incoming
    assert (incoming.chat_id, incoming.metadata["chat_id"], incoming.lane) == (kept, kept, f"http:default:{kept}")


def test_waiting_is_asked_for_and_bounded() -> None:
    assert read({}).wait_seconds is None
    assert read({"waitForResult": False, "waitTimeoutSeconds": 5}).wait_seconds is None
    assert read({"waitForResult": True}).wait_seconds == 30
    assert read({"waitForResult": True, "waitTimeoutSeconds": 0.5}).wait_seconds == 0.5
    with pytest.raises(PayloadInvalid):
        read({"waitTimeoutSeconds": 301})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.failure("B10", "B4", "B7")
@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_every_object_is_read_as_it_is(value: dict[str, Any]) -> None:
    assert read_object(json.dumps(value).encode()) == value


@pytest.mark.failure("B1", "B10")
@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise_than_by_refusing(body: bytes) -> None:
    try:
        assert isinstance(read_object(body), dict)
    except (PayloadMalformed, PayloadInvalid) as refused:
        assert refused.field is not None
        assert refused.public_message.isprintable() or "\n" in refused.public_message


@pytest.mark.failure("B6", "B16")
def test_many_keys_of_which_one_is_twice_take_no_time() -> None:
    names = ", ".join(f'"k{n}": 0' for n in range(40_000))
    with pytest.raises(PayloadInvalid, match="twice"):
        read_object(f'{{{names}, "k39999": 1}}'.encode())

"""What programs and pages send: read as it is or refused with the place of what is wrong, at a bounded cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, JSON, ODD_TOKENS, bytes_held, changed, damaged, lines_run, tried

from rise.api.operations import _selection
from rise.api.reading import read_json_body
from rise.api.security import bearer_of, source_of
from rise.api.webhooks import trace_id_of
from rise.channels.http import HttpChannel, asked_for, read_message, read_object, refuse_unsayable
from rise.channels.port import Channel, Incoming
from rise.channels.telegram import TelegramChannel
from rise.channels.webchat import DATA_CHARS_MAX, WebChatChannel
from rise.envelope import RAW_BYTES_MAX, Effect, decode_head, encode_head, encode_json
from rise.errors import (
    ChannelUnknown,
    ContentTypeUnsupported,
    PayloadInvalid,
    PayloadMalformed,
    PayloadTooLarge,
    Rejected,
    SignatureMismatch,
)
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import delivery

pytestmark = [pytest.mark.req("ENV-4")]

WEBCHAT = WebChatChannel("a secret of the tests")
TELEGRAM = TelegramChannel(["7:token"], clock=ManualClock())
SESSION = "w_0000000000000000000000"

APPLY = {
    "workflowId": "wf_greeter",
    "userText": "Hello \U0001f600",
    "historyChunks": [{"role": "user", "text": "before"}],
    "policy": {"tone": "kind"},
    "metadata": {"chat_id": 42, "message_id": "9", "locale": "de", "deep": {"a": [1, 2.5, None]}},
    "idempotencyKey": "k",
    "retryMax": 3,
    "waitForResult": True,
    "waitTimeoutSeconds": 1.5,
}
MESSAGE = {
    "channel": "telegram",
    "account": "7",
    "chatId": 42,
    "text": "Hello",
    "parseMode": "HTML",
    "buttons": [[{"text": "Yes", "data": "y"}, {"text": "Site", "url": "https://example.org"}]],
    "replyTo": 9,
    "idempotencyKey": "k",
}
TAP = {"clientMessageId": "m1", "text": "Yes", "data": "y"}
RESUME = {
    "taskIds": ["t_1"],
    "reason": "poison",
    "channel": "http",
    "account": "7",
    "limit": 5,
    "why": "x",
    "dryRun": True,
}


def bodies(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A real body: with some of its fields, some of them changed, its bytes damaged, or something else altogether."""
    some = st.lists(st.sampled_from(sorted(whole)), unique=True).map(
        lambda names: {name: whole[name] for name in names}
    )
    return st.one_of(
        (st.just(whole) | some).map(json.dumps).map(str.encode),
        changed(st.just(whole)).map(json.dumps).map(str.encode),
        changed(st.just(whole), by=ANY_TEXT | st.integers()).map(json.dumps).map(str.encode),
        damaged(st.just(json.dumps(whole).encode())),
        st.dictionaries(st.sampled_from(sorted(whole)) | ANY_TEXT, JSON).map(json.dumps).map(str.encode),
        st.binary(max_size=60) | ODD_TOKENS,
    )


def refusal(work: Callable[[], Any], *expected: type[Rejected]) -> Rejected | None:
    """How it was refused, if it was: in words for people, as short as a line, with the place."""
    try:
        work()
    except expected as refused:
        assert refused.field
        assert len(refused.public_message) < 1000
        encode_json([refused.public_message, refused.field]).decode()
        return refused
    return None


def apply(body: bytes, key: str | None = "k") -> Incoming:
    asked = HttpChannel().read_apply(body, principal="olga", key=key, request_id="r", trace_id=None)
    assert asked.wait_seconds is None or 0 < asked.wait_seconds <= 300
    return asked.incoming


def message(body: bytes, key: str | None = "k") -> Incoming:
    accounts = {"telegram": ["7"], "webchat": ["default"]}
    return read_message(body, accounts=accounts, principal="olga", key=key, request_id="r", trace_id=None).incoming


def assert_kept_whole(incoming: Incoming, body: bytes) -> None:
    assert incoming.raw is body
    assert incoming.delivery_key.isprintable()
    assert incoming.lane.isprintable()
    fields = (incoming.metadata, incoming.policy, incoming.user, incoming.history_chunks, incoming.user_text)
    assert json.loads(encode_json(fields)) == list(fields), "no number, no text has become another"
    head = delivery(1).head
    assert decode_head(encode_head(head)) == head


# --- objects ----------------------------------------------------------------------------------------------------


@pytest.mark.failure("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10")
@given(bodies(APPLY))
@tried(3000)
def test_what_is_taken_is_read_as_python_reads_it_and_the_rest_is_refused(body: bytes):
    if refusal(lambda: read_object(body), PayloadMalformed, PayloadInvalid) is None:
        value = read_object(body)
        assert value == json.loads(body)
        assert json.loads(encode_json(value)) == value


def names(count: int) -> bytes:
    return b",".join(b'"%d":0' % at for at in range(count))


COSTLY = {
    "a long name above many": lambda n: b'{"%b":{%b}}' % (b"x" * (n // 2), names(n // 20)),
    "long names within long names": lambda n: b'{"%b":' % (b"x" * (n // 60)) * 60 + b"[0,0,0]" + b"}" * 60,
    "many in a list": lambda n: b'{"a":[%b]}' % b",".join([b"0"] * min(n // 2, 40_000)),
    "too many": lambda n: b'{"a":[%b]}' % b",".join([b"0"] * (n // 2)),
    "one name many times": lambda n: b"{%b}" % b",".join([b'"a":0'] * (n // 6)),
    "deep": lambda n: b'{"a":' + b"[" * n + b"]" * n + b"}",
    "halves": lambda n: b'{"a":"%b"}' % (b"\\ud800" * (n // 6)),
    "half a pair below a long name": lambda n: b'{"%b":{"a":"\\ud800"}}' % (b"x" * n),
    "digits": lambda n: b'{"a":%b}' % (b"9" * n),
    "a float": lambda n: b'{"a":0.%b}' % (b"9" * n),
}  # fmt: skip


def read_or_refuse(body: bytes) -> None:
    refusal(lambda: read_object(body), PayloadMalformed, PayloadInvalid)


@pytest.mark.failure("B3", "B16")
@pytest.mark.parametrize("shape", COSTLY)
def test_no_body_costs_more_than_in_proportion_to_its_size(shape: str):
    large, small = COSTLY[shape](RAW_BYTES_MAX), COSTLY[shape](RAW_BYTES_MAX // 4)
    read_or_refuse(small)
    assert lines_run(lambda: read_or_refuse(large)) <= 6 * lines_run(lambda: read_or_refuse(small)) + 500
    assert bytes_held(lambda: read_or_refuse(large)) <= 100 * len(large)


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.failure("A19", "B10")
@given(bodies(APPLY), st.none() | ANY_TEXT)
@tried(2000)
def test_any_application_is_kept_whole_or_refused(body: bytes, key: str | None):
    if refusal(lambda: apply(body, key), PayloadMalformed, PayloadInvalid) is None:
        assert_kept_whole(apply(body, key), body)
        spaced = json.dumps(json.loads(body), indent=1, sort_keys=True).encode()
        assert asked_for(spaced) == asked_for(body), "the same in other words"


@pytest.mark.failure("B10", "E8")
@given(bodies(MESSAGE), st.none() | ANY_TEXT)
@tried(2000)
def test_any_message_is_kept_whole_and_can_be_said_or_is_refused(body: bytes, key: str | None):
    if refusal(lambda: message(body, key), PayloadMalformed, PayloadInvalid, ChannelUnknown) is not None:
        return
    incoming = message(body, key)
    assert_kept_whole(incoming, body)
    channel: Channel = TELEGRAM if incoming.channel == "telegram" else WEBCHAT
    known = {name: getattr(incoming, name) for name in ("chat_id", "policy", "metadata", "kind")}
    head = msgspec.structs.replace(delivery(1).head, **known)
    if refusal(lambda: refuse_unsayable(channel, head), PayloadInvalid) is None:
        calls = channel.compose(head, [Effect(kind="reply", **incoming.policy["reply"])])
        assert json.loads(encode_json(calls))


@pytest.mark.failure("B10")
@given(bodies(TAP))
@tried(2000)
def test_any_word_of_a_page_is_kept_whole_or_refused(body: bytes):
    if refusal(lambda: WEBCHAT.read_message(body, SESSION), PayloadMalformed, PayloadInvalid) is None:
        assert_kept_whole(WEBCHAT.read_message(body, SESSION), body)


@pytest.mark.req("CHN-4")
@given(st.text(max_size=300), st.text(max_size=300) | st.integers(250, 260).map("x".__mul__))
@tried(500)
def test_a_button_that_the_page_may_show_is_taken_when_it_is_tapped(label: str, data: str):
    effect = Effect(kind="reply", text="?", buttons=[[{"text": label, "data": data}]])
    if refusal(lambda: WEBCHAT.compose(delivery(1).head, [effect]), PayloadInvalid) is None:
        tap = json.dumps({"clientMessageId": "m", "text": label, "data": data}).encode()
        assert WEBCHAT.read_message(tap, SESSION).user_text == data
    else:
        assert not label.strip() or not 0 < len(data) <= DATA_CHARS_MAX


@pytest.mark.req("SUS-2")
@pytest.mark.failure("M9")
@given(bodies(RESUME))
@tried(1500)
def test_resuming_is_narrowed_by_something_or_refused(body: bytes):
    if refusal(lambda: _selection(read_object(body)), PayloadMalformed, PayloadInvalid) is None:
        selection, why, _, limit = _selection(read_object(body))
        assert selection.task_ids or selection.reason or selection.channel is not None or selection.account is not None
        assert len(why) <= 500
        assert 1 <= limit <= 10_000


# --- headers ----------------------------------------------------------------------------------------------------

VALUES = st.binary(max_size=80)


@given(VALUES | st.from_regex(rb"\A[0-9a-fF]{2}-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}(-.*)?\Z"))
@tried(1000)
def test_a_trace_is_taken_over_only_whole(value: bytes):
    trace_id = trace_id_of(value)
    assert trace_id is None or (len(trace_id) == 32 and trace_id.encode() in value and set(trace_id) != {"0"})


@pytest.mark.req("SEC-1")
@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie"]), VALUES | VALUES.map(b"Bearer ".__add__))))
@tried(1000)
def test_a_token_is_shown_in_one_header_or_not_at_all(headers: list[tuple[bytes, bytes]]):
    token = bearer_of({"headers": headers})
    if token is not None:
        [shown] = [value for name, value in headers if name == b"authorization"]
        assert shown.decode("latin-1").lower().startswith("bearer ")
        assert token
        assert token == token.strip()


@pytest.mark.req("SEC-1")
@given(ANY_TEXT | VALUES.map(lambda value: value.decode("latin-1")))
@tried(500)
def test_no_text_opens_a_chat(token: str):
    with pytest.raises(SignatureMismatch):
        WEBCHAT.session_of(token)


@pytest.mark.req("SEC-4")
@given(st.none() | st.tuples(ANY_TEXT | st.ip_addresses().map(str), st.integers(0, 65535)))
@tried(500)
def test_every_peer_is_somebody_to_count_for(client: tuple[str, int] | None):
    assert isinstance(source_of({"client": client}), str)


@pytest.mark.failure("A17", "A18")
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"content-type", b"content-length", b"content-encoding", b"expect"]),
            VALUES
            | st.sampled_from([b"application/json", b"gzip", b"identity", b"9" * 40, b"-1", "²".encode("latin-1")]),
        )
    ),
    st.binary(max_size=40),
)
@tried(1000)
async def test_whatever_the_headers_claim_the_body_is_read_within_bounds_or_refused(
    headers: list[tuple[bytes, bytes]], body: bytes
):
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    try:
        read = await read_json_body({"headers": headers}, receive, bytes_max=20)  # type: ignore[arg-type]
    except (ContentTypeUnsupported, PayloadTooLarge) as refused:
        assert refused.field
        assert len(refused.public_message) < 300
    else:
        assert read == body
        assert len(body) <= 20

"""What is made of an update: everything Telegram sends, and everything it never should."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiogram.types import Update
from hypothesis import given
from hypothesis import strategies as st

from rise.channels.port import Incoming
from rise.channels.telegram import KINDS, bot_id_of, read_update
from rise.clock import epoch_ms
from rise.envelope import Order, Reason, encode_json
from rise.errors import SettingsInvalid

DATE = 1_762_587_012
NOW = datetime.fromtimestamp(DATE + 3, UTC)

ADA: dict[str, Any] = {
    "id": 55,
    "is_bot": False,
    "first_name": "Ada",
    "username": "ada",
    "language_code": "en",
}
GROUP: dict[str, Any] = {"id": -100, "type": "group", "title": "Engines"}


def message(**changes: Any) -> dict[str, Any]:
    return {"message_id": 9, "from": ADA, "chat": GROUP, "date": DATE, "text": "Hello"} | changes


PAYLOADS: dict[str, dict[str, Any]] = {
    "message": message(),
    "edited_message": message(edit_date=DATE + 1),
    "channel_post": message(),
    "edited_channel_post": message(edit_date=DATE + 1),
    "business_connection": {"id": "b1", "user": ADA, "user_chat_id": 55, "date": DATE, "is_enabled": True},
    "business_message": message(business_connection_id="b1"),
    "edited_business_message": message(business_connection_id="b1", edit_date=DATE + 1),
    "deleted_business_messages": {"business_connection_id": "b1", "chat": GROUP, "message_ids": [9]},
    "guest_message": message(guest_query_id="g1"),
    "message_reaction": {"chat": GROUP, "message_id": 9, "user": ADA, "date": DATE, "new_reaction": []},
    "message_reaction_count": {"chat": GROUP, "message_id": 9, "date": DATE, "reactions": []},
    "inline_query": {"id": "q1", "from": ADA, "query": "cats", "offset": ""},
    "chosen_inline_result": {"result_id": "r1", "from": ADA, "query": "cats"},
    "callback_query": {"id": "c1", "from": ADA, "message": message(), "chat_instance": "x", "data": "yes"},
    "shipping_query": {"id": "s1", "from": ADA, "invoice_payload": "p"},
    "pre_checkout_query": {"id": "p1", "from": ADA, "currency": "ISK", "total_amount": 1},
    "purchased_paid_media": {"from": ADA, "paid_media_payload": "p"},
    "poll": {"id": "1", "question": "?", "options": []},
    "poll_answer": {"poll_id": "1", "user": ADA, "option_ids": [0]},
    "my_chat_member": {"chat": GROUP, "from": ADA, "date": DATE},
    "chat_member": {"chat": GROUP, "from": ADA, "date": DATE},
    "chat_join_request": {"chat": GROUP, "from": ADA, "user_chat_id": 55, "date": DATE},
    "chat_boost": {"chat": GROUP, "boost": {"boost_id": "b"}},
    "removed_chat_boost": {"chat": GROUP, "boost_id": "b", "remove_date": DATE},
    "managed_bot": {"user": ADA, "bot_user": ADA},
    "subscription": {"user": ADA, "invoice_payload": "p", "state": "active"},
    "stopped_message_generation": {"chat": GROUP, "draft_id": 1},
}

LANES = {
    "business_connection": "tg:7:u55",
    "business_message": "tg:7:bb1:-100:0",
    "edited_business_message": "tg:7:bb1:-100:0",
    "deleted_business_messages": "tg:7:bb1:-100:0",
    "guest_message": "tg:7:u55",
    "inline_query": "tg:7:u55:inline",
    "chosen_inline_result": "tg:7:u55:inline",
    "callback_query": "tg:7:u55:callback",
    "shipping_query": "tg:7:u55:payment",
    "pre_checkout_query": "tg:7:u55:payment",
    "purchased_paid_media": "tg:7:u55",
    "poll": "tg:7",
    "poll_answer": "tg:7:u55",
    "managed_bot": "tg:7:u55",
    "subscription": "tg:7:u55",
}
LIFETIMES = {
    "callback_query": 150,
    "shipping_query": 150,
    "pre_checkout_query": 150,
    "inline_query": 30,
    "chosen_inline_result": 30,
}


def update(kind: str = "message", payload: Any = None, **others: Any) -> bytes:
    return json.dumps({"update_id": 1234, kind: message() if payload is None else payload} | others).encode()


def read(body: bytes, *, webhook: bool = True, now: datetime = NOW) -> Incoming:
    return read_update(body, account="7", now=now, webhook=webhook)


def read_payload(kind: str, payload: Any) -> Incoming:
    return read(update(kind, payload))


# --- the usual --------------------------------------------------------------------------------------------


@pytest.mark.req("ENV-1")
def test_a_message_fills_the_standard_fields():
    body = update()
    incoming = read(body)
    assert incoming.raw is body
    assert incoming.delivery_key == "tg:7:u:1234"
    assert incoming.lane == "tg:7:-100:0"
    assert incoming.order == Order(DATE * 1000, 1234)
    assert incoming.chat_id == "-100"
    assert incoming.message_label == "-100:9"
    assert incoming.user_text == "Hello"
    assert incoming.notifiable
    assert incoming.suspend is None
    assert incoming.error is None
    assert incoming.metadata == {
        "kind": "message",
        "update_id": "1234",
        "chat_id": "-100",
        "convo_id": "-100:55",
        "message_id": "9",
        "timestamp_iso": "2025-11-08T07:30:12Z",
        "message_ts": DATE,
    }
    assert incoming.user == {
        "chat_id": "-100",
        "message_id": "9",
        "user_id": "55",
        "username": "ada",
        "first_name": "Ada",
        "language_code": "en",
    }


@pytest.mark.req("TGM-2")
@pytest.mark.failure("A10", "A11")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_lane_its_order_and_its_lifetime(kind):
    incoming = read_payload(kind, PAYLOADS[kind])
    assert (incoming.kind, incoming.suspend, incoming.error) == (kind, None, None)
    assert incoming.lane == LANES.get(kind, "tg:7:-100:0")
    assert incoming.lifetime_seconds == LIFETIMES.get(kind)
    assert incoming.receipt_seconds == 72 * 3600
    if kind in LIFETIMES:
        assert incoming.order is None


@pytest.mark.req("TGM-2")
def test_the_table_names_every_kind_the_client_library_knows():
    assert set(Update.model_fields) - {"update_id"} <= set(KINDS)


@pytest.mark.failure("A11")
def test_an_edit_is_ordered_by_when_it_was_edited():
    assert read_payload("edited_message", PAYLOADS["edited_message"]).order == Order((DATE + 1) * 1000, 1234)


def test_a_topic_is_a_lane_of_its_own():
    in_topic = read_payload("message", message(message_thread_id=3, is_topic_message=True))
    assert (in_topic.lane, in_topic.metadata["thread_id"]) == ("tg:7:-100:3", "3")


def test_a_reply_thread_outside_a_forum_is_not_a_topic():
    in_thread = read_payload("message", message(message_thread_id=3))
    assert in_thread.lane == "tg:7:-100:0"
    assert "thread_id" not in in_thread.metadata


@pytest.mark.failure("A12")
def test_an_album_keeps_its_group_and_its_caption_is_the_text():
    payload = message(media_group_id="13579", caption="Look")
    del payload["text"]
    incoming = read_payload("message", payload)
    assert (incoming.metadata["media_group_id"], incoming.user_text) == ("13579", "Look")


def test_a_callback_says_what_it_is_answered_by_and_where_its_message_is():
    incoming = read_payload("callback_query", PAYLOADS["callback_query"])
    assert incoming.metadata["callback_query_id"] == "c1"
    assert (incoming.chat_id, incoming.metadata["message_id"], incoming.user_text) == ("-100", "9", "yes")


def test_a_callback_of_an_inline_message_has_no_chat():
    incoming = read_payload("callback_query", {"id": "c1", "from": ADA, "inline_message_id": "im", "data": "x"})
    assert (incoming.chat_id, incoming.suspend) == (None, None)
    assert incoming.metadata["inline_message_id"] == "im"


@pytest.mark.parametrize("kind", ["callback_query", "inline_query", "shipping_query", "pre_checkout_query"])
def test_what_is_answered_by_its_own_id_carries_the_parameter_by_its_name(kind):
    assert read_payload(kind, PAYLOADS[kind]).metadata[f"{kind}_id"] == PAYLOADS[kind]["id"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("channel_post", {}),
        ("message", {"from": ADA | {"is_bot": True}}),
        ("message", {"is_automatic_forward": True}),
        ("message", {"from": None}),
    ],
)
def test_nobody_is_notified_where_no_person_wrote(kind, changes):
    assert not read_payload(kind, message(**changes)).notifiable


@pytest.mark.failure("A14")
def test_two_bots_have_two_keys_and_two_lanes_for_one_update():
    one, two = (read_update(update(), account=account, now=NOW, webhook=True) for account in ("7", "8"))
    assert one.delivery_key != two.delivery_key
    assert one.lane != two.lane


def test_the_bot_is_known_from_its_token_alone():
    assert bot_id_of("7000000001:AbC-dEf_9") == "7000000001"


@pytest.mark.parametrize("token", ["7000000001", "x:secret", "7:a/../b", "7:a b"])
def test_what_is_no_token_is_refused_without_being_repeated(token):
    with pytest.raises(SettingsInvalid) as refused:
        bot_id_of(token)
    assert token not in refused.value.public_message


# --- stale ------------------------------------------------------------------------------------------------


@pytest.mark.failure("A8")
def test_an_old_update_that_is_pushed_is_a_replay():
    late = NOW + timedelta(hours=24, minutes=10)
    incoming = read(update(), now=late)
    assert incoming.suspend is Reason.STALE_REPLAY
    assert incoming.error is not None
    assert read(update(), now=late - timedelta(seconds=3)).suspend is None


def test_an_old_update_that_was_asked_for_is_none():
    assert read(update(), webhook=False, now=NOW + timedelta(days=3)).suspend is None


def test_an_edit_of_an_old_message_is_new():
    payload = message(date=DATE - 90 * 86400, edit_date=DATE)
    assert read_payload("edited_message", payload).suspend is None


@pytest.mark.req("TGM-2")
@pytest.mark.failure("A8")
@pytest.mark.parametrize("kind", ["edited_message", "edited_channel_post", "edited_business_message"])
def test_an_edit_without_a_date_of_its_own_is_new(kind: str):
    payload = PAYLOADS[kind] | {"date": DATE - 90 * 86400}
    del payload["edit_date"]
    incoming = read_payload(kind, payload)
    assert (incoming.suspend, incoming.error, incoming.order) == (None, None, None)


@pytest.mark.req("TGM-2")
@pytest.mark.failure("A8")
def test_a_business_connection_that_ends_long_after_it_was_made_is_new():
    ended = PAYLOADS["business_connection"] | {"is_enabled": False, "date": DATE - 30 * 86400}
    incoming = read_payload("business_connection", ended)
    assert (incoming.suspend, incoming.error) == (None, None)
    assert incoming.order is None, "by its date it would go before everything of this person"


@pytest.mark.parametrize("kind", LIFETIMES)
def test_what_has_a_deadline_is_never_a_replay(kind):
    incoming = read(update(kind, PAYLOADS[kind]), now=NOW + timedelta(days=2))
    assert incoming.suspend is None


# --- unreadable -------------------------------------------------------------------------------------------

UNPARSABLE = {
    "nothing": b"",
    "half": b'{"update_id": 1, "message": {"te',
    "invalid UTF-8": b'{"update_id": 1, "message": {"text": "\xff"}}',
    "encoded surrogate": b'{"update_id": 1, "message": {"text": "\xed\xa0\x80"}}',
    "UTF-16": '{"update_id": 1}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"update_id": 1}',
    "100 000 deep": b"[" * 100_000 + b"]" * 100_000,
    "never closed": b"[" * 100_000,
    "65 deep": b'{"message":' * 65 + b"1" + b"}" * 65,
    "a string without end": b'{"a": "' + b"\\" * 200_001 + b"[" * 70,
    "5000 digits": b'{"update_id": ' + b"9" * 5000 + b"}",
    "NaN": b'{"update_id": NaN}',
    "Infinity": b'{"update_id": -Infinity}',
    "1e999": b'{"update_id": 1e999}',
    "1e999 beside a surrogate": b'{"update_id": 1e999, "a": "\\ud800"}',
    "too many keys": json.dumps({str(at): at for at in range(10_001)}).encode(),
}
NOT_AN_UPDATE = {
    "array": b"[]",
    "string": b'"update"',
    "null": b"null",
    "number": b"1",
    "empty object": b"{}",
    "only a number": b'{"update_id": 1}',
    "message is a list": b'{"update_id": 1, "message": []}',
}


@pytest.mark.req("TGM-2", "ENV-4")
@pytest.mark.failure("B1", "B3", "B4", "B5", "B9", "B16")
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in UNPARSABLE.items()])
def test_what_cannot_be_parsed_is_parked_with_its_bytes_and_why(body):
    incoming = read(body)
    assert incoming.raw is body
    assert incoming.suspend is Reason.RAW_PAYLOAD_INVALID
    assert incoming.error
    assert not incoming.raw_is_json
    assert incoming.delivery_key == f"tg:7:h:{hashlib.sha256(body).hexdigest()}"


@pytest.mark.failure("B9")
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in NOT_AN_UPDATE.items()])
def test_json_that_is_no_update_is_parked_as_json(body):
    incoming = read(body)
    assert (incoming.suspend, incoming.raw_is_json) == (Reason.RAW_PAYLOAD_INVALID, True)
    assert incoming.error


@pytest.mark.failure("B11")
def test_an_unknown_kind_is_parked_under_its_name():
    incoming = read_payload("hologram", {"shape": "cube"})
    assert (incoming.kind, incoming.suspend) == ("hologram", Reason.RAW_PAYLOAD_INVALID)
    assert incoming.delivery_key == "tg:7:u:1234"
    assert incoming.error == "hologram: this kind of update is unknown"


@pytest.mark.failure("B11")
def test_new_fields_beside_and_inside_change_nothing():
    body = update(payload=message(hologram={"shape": "cube"}), hologram_hint=True)
    assert read(body).suspend is None


@pytest.mark.failure("B2")
def test_half_a_surrogate_pair_is_replaced_in_the_text_and_kept_in_the_bytes():
    sender = b'{"id": 5, "first_name": "\\udc00"}'
    body = b'{"update_id": 1, "message": {"chat": {"id": 5}, "from": %b, "text": "a\\ud800b"}}' % sender
    incoming = read(body)
    assert (incoming.suspend, incoming.raw_is_json) == (None, True)
    assert incoming.user_text == "a?b"
    assert incoming.raw is body
    encode_json(incoming.metadata | incoming.user)


@pytest.mark.failure("B6")
def test_of_a_field_said_twice_the_last_counts():
    incoming = read(b'{"update_id": 1, "update_id": 2, "message": {"chat": {"id": 5}, "text": "a", "text": "b"}}')
    assert (incoming.delivery_key, incoming.user_text, incoming.suspend) == ("tg:7:u:2", "b", None)


@pytest.mark.failure("B7")
def test_control_characters_stay_as_they_are():
    text = "a\x00b\u2028c\u202ed"
    assert read_payload("message", message(text=text)).user_text == text


@pytest.mark.failure("B10")
@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"chat": {"id": "5"}}, "message.chat.id: expected a 64-bit integer, found a string"),
        ({"chat": {"id": 5.0}}, "message.chat.id: expected a 64-bit integer, found a decimal number"),
        ({"chat": {"id": True}}, "message.chat.id: expected a 64-bit integer, found a boolean"),
        ({"chat": {"id": 1 << 63}}, "message.chat.id: expected a 64-bit integer, found a number beyond 64 bits"),
        ({"chat": {}}, "message.chat.id: expected a 64-bit integer, found nothing"),
        ({"chat": []}, "message.chat: expected an object, found an array"),
        ({"date": "today"}, "message.date: expected a date in seconds, found a string"),
        ({"date": 1 << 62}, "message.date: expected a date in seconds, found an integer"),
        ({"text": 5}, "message.text: expected a string, found an integer"),
    ],
)
def test_a_field_that_routing_needs_and_cannot_use_parks_the_update_with_its_path(changes, path):
    incoming = read_payload("message", message(**changes))
    assert (incoming.suspend, incoming.error) == (Reason.RAW_PAYLOAD_INVALID, path)


@pytest.mark.failure("B10")
def test_the_path_of_a_callbacks_chat_goes_through_its_message():
    payload = {"id": "c1", "from": ADA, "message": message(chat={"id": "5"})}
    error = read_payload("callback_query", payload).error
    assert error == "callback_query.message.chat.id: expected a 64-bit integer, found a string"


@pytest.mark.failure("B10")
@pytest.mark.parametrize("update_id", [None, "1", 1.5, True, 1 << 63, [], {}])
def test_without_a_readable_number_the_bytes_are_the_key(update_id):
    body = update(update_id=update_id)
    incoming = read(body)
    assert incoming.delivery_key == f"tg:7:h:{hashlib.sha256(body).hexdigest()}"
    assert (incoming.suspend, incoming.order, incoming.user_text) == (None, None, "Hello")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, outermost first."""
    found = [path]
    if isinstance(value, dict):
        for name, item in value.items():
            found += places(item, (*path, name))
    return found


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    return value | {path[0]: replaced(value[path[0]], path[1:], by)}


@st.composite
def mutated_updates(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(KINDS)))
    whole: Any = {"update_id": draw(st.integers()), kind: PAYLOADS[kind]}
    for _ in range(draw(st.integers(1, 3))):
        whole = replaced(whole, draw(st.sampled_from(places(whole))), draw(JSON))
    return json.dumps(whole, ensure_ascii=draw(st.booleans())).encode("utf-8", "replace")


def assert_sound(incoming: Incoming, body: bytes) -> None:
    assert incoming.raw is body
    assert incoming.delivery_key.startswith(("tg:7:u:", "tg:7:h:"))
    assert incoming.lane.startswith("tg:7")
    assert (incoming.suspend is None) == (incoming.error is None)
    if incoming.order is not None:
        assert 0 < incoming.order.at_ms <= epoch_ms(datetime.max.replace(tzinfo=UTC))
        assert -(1 << 63) <= incoming.order.seq < 1 << 63
    encode_json([incoming.metadata, incoming.user, incoming.user_text, incoming.kind])


@pytest.mark.failure("B10")
@given(mutated_updates())
def test_no_mutation_of_an_update_makes_reading_raise_or_lose_its_bytes(body):
    assert_sound(read(body), body)


@pytest.mark.failure("B1", "B16")
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u1eE+-.dtrufalsn ', max_size=200).map(str.encode))
def test_no_bytes_make_reading_raise(body):
    assert_sound(read(body), body)


@given(mutated_updates(), st.data())
def test_no_cut_or_flipped_byte_makes_reading_raise(body, data):
    at = data.draw(st.integers(0, len(body) - 1))
    flipped = body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
    for changed in (body[:at], flipped):
        assert_sound(read(changed), changed)


def test_a_long_file_in_a_message_is_read_whole():
    body = update(payload=message(text=base64.b64encode(bytes(300_000)).decode()))
    assert len(read(body).user_text) == 400_000

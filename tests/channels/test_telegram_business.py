"""A business's chats: the same people as in the bot's own chats, the same numbers, and nothing in common."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiogram.methods
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.channels.port import Incoming, Succeeded, Unreadable
from rise.channels.telegram import TelegramChannel, read_update
from rise.channels.telegram.addresses import address_of, chat_id_of, is_private
from rise.clock import SystemClock
from rise.envelope import Call, Effect, Head, Reason
from rise.errors import PayloadInvalid
from rise.testing.conformance.channel import head_of
from rise.testing.telegram import SendRates, TelegramStandIn

TOKEN = "7000000001:stand-in"
ACCOUNT = "7000000001"
DATE = 1_762_587_012
ADA = {"id": 42, "is_bot": False, "first_name": "Ada"}
BUSINESS_CHAT = "bBC-1:42"


def message(**changes: Any) -> dict[str, Any]:
    chat = {"id": 42, "type": "private", "first_name": "Ada"}
    return {"message_id": 9, "from": ADA, "chat": chat, "date": DATE, "text": "Hello"} | changes


def tap(on: dict[str, Any]) -> dict[str, Any]:
    return {"id": "c1", "from": ADA, "message": on, "chat_instance": "x", "data": "yes"}


def read(kind: str, payload: dict[str, Any]) -> Incoming:
    body = json.dumps({"update_id": 1234, kind: payload}).encode()
    return read_update(body, account=ACCOUNT, now=datetime.fromtimestamp(DATE, UTC), webhook=True)


@pytest.fixture
def in_business() -> Head:
    return head_of(read("business_message", message(business_connection_id="BC-1")))


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn(TOKEN) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


@pytest.fixture
async def channel(telegram) -> AsyncIterator[TelegramChannel]:
    channel = TelegramChannel([TOKEN], clock=SystemClock(), api_base=telegram.url)
    yield channel
    await channel.close()


# --- coming in --------------------------------------------------------------------------------------------

OF_ONE_PERSON = {
    "the bot's own": ("message", message()),
    "one business's": ("business_message", message(business_connection_id="BC-1")),
    "another business's": ("business_message", message(business_connection_id="BC-2")),
}


@pytest.mark.req("TGM-2")
def test_the_chats_of_one_person_with_the_bot_and_with_businesses_share_nothing():
    read_each = [read(kind, payload) for kind, payload in OF_ONE_PERSON.values()]
    for shared in ("lane", "chat_id", "message_label"):
        assert len({getattr(incoming, shared) for incoming in read_each}) == 3
    assert len({incoming.metadata["convo_id"] for incoming in read_each}) == 3
    # What the platform calls it stays to be seen.
    assert {incoming.metadata["chat_id"] for incoming in read_each} == {"42"}
    assert {incoming.user["chat_id"] for incoming in read_each} == {"42"}


@pytest.mark.req("TGM-2")
def test_all_that_happens_in_a_businesss_chat_happens_in_one_lane():
    fields = {"business_connection_id": "BC-1"}
    read_each = [
        read("business_message", message(**fields)),
        read("edited_business_message", message(**fields, edit_date=DATE)),
        read("deleted_business_messages", fields | {"chat": {"id": 42}, "message_ids": [9]}),
    ]
    assert {incoming.chat_id for incoming in read_each} == {BUSINESS_CHAT}
    assert {incoming.lane for incoming in read_each} == {f"tg:{ACCOUNT}:{BUSINESS_CHAT}:0"}


@pytest.mark.req("TGM-2")
def test_a_tap_belongs_to_the_chat_its_message_is_in():
    own, of_business = (read("callback_query", tap(message(**on))) for on in ({}, {"business_connection_id": "BC-1"}))
    assert (own.chat_id, of_business.chat_id) == ("42", BUSINESS_CHAT)
    assert own.lane != of_business.lane
    assert of_business.metadata["business_connection_id"] == "BC-1"


@pytest.mark.req("TGM-2")
@pytest.mark.failure("B10")
@pytest.mark.parametrize("connection_id", [None, "", 5, ["BC-1"]])
@pytest.mark.parametrize("kind", ["business_message", "edited_business_message", "deleted_business_messages"])
def test_without_its_connection_a_businesss_chat_is_not_taken_for_the_bots_own(kind, connection_id):
    incoming = read(kind, message(business_connection_id=connection_id))
    assert (incoming.suspend, incoming.chat_id) == (Reason.RAW_PAYLOAD_INVALID, None)
    assert incoming.lane == f"tg:{ACCOUNT}:unreadable"
    assert incoming.error is not None
    assert incoming.error.startswith(f"{kind}.business_connection_id: expected an id, found")


# --- going out --------------------------------------------------------------------------------------------


@pytest.mark.req("TGM-2")
@pytest.mark.parametrize(
    "effect",
    [
        Effect(kind="reply", text="Hello"),
        Effect(kind="reply", media={"kind": "photo", "file": "https://example.org/1.jpg"}),
        Effect(kind="call", method="sendDice"),
        Effect(kind="call", method="sendDice", params={"chat_id": BUSINESS_CHAT}),
        Effect(kind="call", method="pinChatMessage", params={"chat_id": BUSINESS_CHAT, "message_id": 9}),
        Effect(kind="edit", text="Hello", message_id="9"),
        Effect(kind="edit", message_id="9", buttons=[]),
    ],
    ids=lambda effect: f"{effect.kind} {effect.method}".strip(),
)
async def test_whatever_is_said_there_is_said_there_and_not_in_the_bots_own_chat(
    telegram, channel, in_business, effect
):
    [call] = channel.compose(in_business, [effect])
    await channel.send(ACCOUNT, BUSINESS_CHAT, call)
    assert (telegram.calls[0].method, telegram.calls[0].params["chat_id"]) == (call.method, "42")
    assert telegram.calls[0].params["business_connection_id"] == "BC-1"


@pytest.mark.req("TGM-2")
async def test_notices_and_the_typing_indicator_go_there_too(telegram, channel, in_business):
    assert isinstance(await channel.send(ACCOUNT, BUSINESS_CHAT, channel.notice(in_business, "Queued")), Succeeded)
    await channel.show_typing(ACCOUNT, BUSINESS_CHAT)
    for call in telegram.calls:
        assert (call.params["chat_id"], call.params["business_connection_id"]) == ("42", "BC-1")


@pytest.mark.req("TGM-2")
@pytest.mark.failure("G13")
async def test_an_edit_that_is_said_below_instead_is_said_below_in_the_same_chat(telegram, channel, in_business):
    [edit] = channel.compose(in_business, [Effect(kind="edit", text="Done", message_id="9")])
    outcome = await channel.send(ACCOUNT, BUSINESS_CHAT, edit)
    assert isinstance(outcome, Unreadable)
    await channel.send(ACCOUNT, BUSINESS_CHAT, outcome.plain)
    assert telegram.calls[-1].method == "sendMessage"
    assert telegram.calls[-1].params["business_connection_id"] == "BC-1"


@pytest.mark.req("TGM-2")
async def test_the_bots_own_chat_is_written_to_without_a_connection(telegram, channel):
    await channel.send(ACCOUNT, "42", Call("sendMessage", {"text": "Hello"}))
    await channel.show_typing(ACCOUNT, "42")
    assert not [call for call in telegram.calls if "business_connection_id" in call.params]


def methods_that_name_a_chat() -> dict[str, bool]:
    """Of the client library, and whether each takes a business connection."""
    found = {}
    for name in aiogram.methods.__all__:
        fields = getattr(getattr(aiogram.methods, name), "model_fields", {})
        if "chat_id" in fields:
            found[name[0].lower() + name[1:]] = "business_connection_id" in fields
    return found


@pytest.mark.req("TGM-2")
@pytest.mark.parametrize(("method", "works"), methods_that_name_a_chat().items())
def test_what_takes_no_connection_is_refused_there_by_name(channel, in_business, method, works):
    effect = Effect(kind="call", method=method, params={"chat_id": BUSINESS_CHAT})
    if works:
        channel.compose(in_business, [effect])
    else:
        with pytest.raises(PayloadInvalid, match=method) as refused:
            channel.compose(in_business, [effect])
        assert refused.value.field == "method"


@pytest.mark.req("TGM-2")
def test_what_is_forwarded_elsewhere_is_not_refused(channel, in_business):
    params = {"chat_id": 43, "from_chat_id": 44, "message_id": 9}
    [call] = channel.compose(in_business, [Effect(kind="call", method="forwardMessage", params=params)])
    assert call.params == params


@pytest.mark.req("OUT-2")
def test_a_businesss_chat_with_a_person_is_as_fast_as_the_bots_own(channel):
    assert channel.rates(BUSINESS_CHAT) == channel.rates("42")


# --- names ------------------------------------------------------------------------------------------------

chats = st.tuples(st.none() | st.text(min_size=1, max_size=12), st.integers(-(1 << 63), (1 << 63) - 1))


@pytest.mark.req("TGM-2")
@given(st.lists(chats, min_size=2, max_size=2, unique=True))
def test_two_chats_never_have_one_name_and_each_name_leads_back(pair):
    names = [chat_id_of(str(chat), connection) for connection, chat in pair]
    assert names[0] != names[1]
    for name, (connection, chat) in zip(names, pair, strict=True):
        address = {"chat_id": str(chat)} | ({} if connection is None else {"business_connection_id": connection})
        assert address_of(name) == address


@pytest.mark.parametrize(
    ("chat_id", "is_one"),
    [("42", True), ("-42", False), ("@news", False), ("b1:42", True), ("٤٢", False), ("4²", False)],
)
def test_a_chat_with_one_person_has_a_number_in_telegrams_digits(chat_id: str, is_one: bool):
    assert is_private(chat_id) is is_one

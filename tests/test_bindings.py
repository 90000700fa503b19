"""What decides whose a message is, without a store: commands as Telegram tells them, and who is allowed."""

from __future__ import annotations

import pytest

from rise.bindings import allows, commands_of, is_command
from rise.channels.port import Incoming
from rise.definitions.records import BindingRecord, ChannelOwn
from rise.envelope import DeliveryKey, LaneKey


def message(text: str = "", *, kind: str = "message", chat_id: str | None = "42", first: str | None = None) -> Incoming:
    return Incoming(
        channel="telegram",
        account="7",
        source="test",
        delivery_key=DeliveryKey("k"),
        lane=LaneKey("l"),
        raw=b"",
        raw_version="tg.v1",
        kind=kind,
        chat_id=chat_id,
        first_chat_id=first,
        user_text=text,
    )


@pytest.mark.req("BND-4")
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/start", ["/start"]),
        ("/Start now", ["/start"]),
        ("/start\nnow", ["/start"]),
        ("/start@A_bot", ["/start@a_bot", "/start"]),
        ("/start@ab", ["/start"]),
        ("/start-up", ["/start"]),
        ("/start.", ["/start"]),
        ("/starts", ["/starts"]),
        ("/" + "x" * 64, ["/" + "x" * 64]),
        ("/" + "x" * 65, []),
        ("/start/up", []),
        ("/start<", []),
        ("/startö", []),
        ("/", []),
        ("/ start", []),
        (" /start", []),
        ("say /start", []),
        ("", []),
    ],
)
def test_a_command_is_what_telegram_takes_for_one_at_the_beginning(text: str, found: list[str]):
    assert commands_of(message(text)) == found


@pytest.mark.req("BND-4")
def test_only_messages_have_commands():
    for kind in ("edited_message", "channel_post", "business_message"):
        assert commands_of(message("/start", kind=kind)) == ["/start"]
    for kind in ("callback_query", "inline_query", "button", "follow_up", "outgoing"):
        assert commands_of(message("/start", kind=kind)) == []


@pytest.mark.req("BND-4")
@pytest.mark.parametrize(
    ("value", "can_be"),
    [("/start", True), ("/start@a_bot", True), ("start", False), ("/start now", False), ("/", False)],
)
def test_a_route_is_a_command_and_nothing_beside_it(value: str, can_be: bool):
    assert is_command(value) is can_be


@pytest.mark.req("BND-9")
@pytest.mark.parametrize(
    ("allowed", "chat_id", "first", "user_id", "is_allowed"),
    [
        ((), "42", None, None, True),
        (("42",), "42", None, None, True),
        (("42",), "43", None, "42", False),
        (("-1",), "-1001", "-1", None, True),
        (("-1001",), "-1001", "-1", None, True),
        (("42",), "bconnection:42", None, "42", False),
        (("42",), None, None, "42", True),
        (("42",), None, None, "43", False),
        (("42",), None, None, None, False),
    ],
)
def test_a_chat_is_allowed_by_either_of_its_ids_and_where_there_is_none_its_person(
    allowed: tuple[str, ...], chat_id: str | None, first: str | None, user_id: str | None, is_allowed: bool
):
    binding = BindingRecord(
        channel="telegram", account="7", workflow_id="wf_a", own=ChannelOwn(allowed_chat_ids=allowed)
    )
    assert allows(binding, message(chat_id=chat_id, first=first), user_id) is is_allowed

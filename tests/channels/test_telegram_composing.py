"""What a workflow says, in the words of the Bot API."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rise.channels.telegram import TelegramChannel, compose, marked, split_text, utf16_units
from rise.clock import SystemClock
from rise.envelope import Call, DeliveryKey, Effect, Head, LaneKey, Order, TaskId
from rise.errors import PayloadInvalid

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
FLAG = "\U0001f1ee\U0001f1f8"
THUMB = "\U0001f44d\U0001f3fd"


def head(kind: str = "message", *, chat_id: str | None = "42", **metadata: Any) -> Head:
    return Head(
        task_id=TaskId("t_1"),
        delivery_key=DeliveryKey("tg:7:u:1"),
        channel="telegram",
        account="7",
        source="telegram-bot",
        lane=LaneKey("tg:7:42:0"),
        order=Order(1, 1),
        accepted_at_ms=1,
        request_id="r",
        trace_id="r",
        idempotency_key="k",
        kind=kind,
        chat_id=chat_id,
        metadata=metadata,
    )


def reply(text: str = "", **fields: Any) -> Effect:
    return Effect(kind="reply", text=text, **fields)


def calls(effect: Effect, **fields: Any) -> list[Call]:
    return compose(head(**fields), [effect])


def refused_field(effect: Effect, **fields: Any) -> str | None:
    with pytest.raises(PayloadInvalid) as refused:
        calls(effect, **fields)
    return refused.value.field


@pytest.fixture
def channel() -> TelegramChannel:
    return TelegramChannel(["7:secret"], clock=SystemClock())


# --- splitting --------------------------------------------------------------------------------------------

words = st.text(alphabet="ab .!?\n\t。", max_size=40)
rich = st.lists(words | st.sampled_from([FAMILY, FLAG, THUMB, "e\u0301", "\U0001f600"]), max_size=60).map("".join)


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.req("OUT-3")
@given(rich, st.integers(12, 60))
@example("a" * 100, 12)
@example(" " * 100 + "a", 12)
@example(FAMILY * 30, 12)
def test_chunks_fit_are_not_blank_and_together_are_the_text(text, units_max):
    chunks = split_text(text, units_max=units_max)
    assert all(utf16_units(chunk) <= units_max for chunk in chunks)
    assert all(chunk.strip() for chunk in chunks)
    assert without_space("".join(chunks)) == without_space(text)


@given(st.text(max_size=50), st.integers(20, 60))
def test_no_chunk_holds_half_a_surrogate_pair(text, units_max):
    for chunk in split_text(text + "\ud800", units_max=units_max):
        assert len(chunk.encode("utf-16-le")) == 2 * utf16_units(chunk)


@given(st.lists(st.sampled_from([FAMILY, FLAG, THUMB, "e\u0301", "x"]), min_size=1, max_size=40))
def test_what_is_seen_as_one_character_is_not_cut_in_two(characters):
    for chunk in split_text("".join(characters), units_max=20):
        rest = chunk
        while rest:
            whole = next((c for c in (FAMILY, FLAG, THUMB, "e\u0301", "x") if rest.startswith(c)), None)
            assert whole is not None
            rest = rest[len(whole) :]


def test_the_lengths_are_those_telegram_counts():
    assert [utf16_units(chunk) for chunk in split_text("\U0001f600" * 3000)] == [4094, 1906]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaa bbb\n\nccc\nddd e", ["aaaa bbb", "ccc\nddd e"]),
        ("aaaa bbbb\nccc. ddd", ["aaaa bbbb", "ccc. ddd"]),
        ("aaaa bbb. cc ddd eee", ["aaaa bbb.", "cc ddd eee"]),
        ("aaaa bbbb cccc dddd", ["aaaa bbbb cccc", "dddd"]),
        ("aaaaaaaaaaaaaaaaaa", ["aaaaaaaaaaaaaa", "aaaa"]),
        ("short", ["short"]),
        ("aaaaaaaaaaa\n    indented", ["aaaaaaaaaaa", "    indented"]),
        ("aaaa bbbb ccccc。dddd", ["aaaa bbbb", "ccccc。dddd"]),
    ],
)
def test_it_is_cut_where_a_reader_would_pause(text, expected):
    assert split_text(text, units_max=14) == expected


def test_of_a_blank_text_nothing_is_left():
    assert split_text(" \n\t ") == []


# --- replies ----------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-3")
def test_a_short_reply_is_one_call_that_leaves_the_chat_to_the_moment_of_sending():
    assert calls(reply("Hello")) == [Call("sendMessage", {"text": "Hello"}, "Hello")]


@pytest.mark.req("OUT-3")
def test_what_goes_on_with_a_text_says_so_and_what_was_said_apart_does_not():
    long = "x" * 5000

    def continues(effect: Effect) -> list[bool]:
        return [call.continues for call in calls(effect)]

    assert continues(reply("short")) == [False]
    assert continues(reply(long + long, reply_to="7", buttons=[[{"text": "a", "data": "b"}]])) == [False, True, True]
    assert continues(reply(long, media={"kind": "photo", "file": "f"})) == [False, True]
    assert continues(reply(long, media={"kind": "photo", "file": "f", "caption": "c"})) == [False, False, True]
    assert continues(Effect(kind="edit", text=long, message_id="9")) == [False, True]
    [_, following] = calls(reply(long))
    assert marked(following).continues


def test_a_long_reply_quotes_at_its_beginning_and_has_its_buttons_at_its_end():
    buttons = [[{"text": "Yes", "data": "y"}, {"text": "Site", "url": "https://example.org"}]]
    first, second = calls(reply("word " * 1000, buttons=buttons, reply_to="9"))
    assert first.params["reply_parameters"] == {"message_id": 9, "allow_sending_without_reply": True}
    assert "reply_markup" not in first.params
    assert "reply_parameters" not in second.params
    assert second.params["reply_markup"] == {
        "inline_keyboard": [[{"text": "Yes", "callback_data": "y"}, {"text": "Site", "url": "https://example.org"}]]
    }


@pytest.mark.failure("G11")
def test_a_reply_to_a_deleted_message_is_sent_all_the_same():
    [call] = calls(reply("Hello", reply_to="9"))
    assert call.params["reply_parameters"]["allow_sending_without_reply"] is True


@pytest.mark.req("OUT-3")
def test_markup_is_kept_in_one_message_and_dropped_when_the_text_has_to_be_cut():
    [whole] = calls(reply("<b>Hello</b>", parse_mode="HTML"))
    assert whole.params["parse_mode"] == "HTML"
    cut = calls(reply("<b>" + "word " * 1000 + "</b>", parse_mode="HTML"))
    assert len(cut) == 2
    assert all("parse_mode" not in call.params for call in cut)


@pytest.mark.parametrize("text", ["short", "word " * 1000], ids=["one message", "several"])
def test_a_parse_mode_that_telegram_does_not_have_is_refused_by_name(text: str) -> None:
    assert refused_field(reply(text, parse_mode="Markdwon")) == "parse_mode"


def test_a_caption_goes_on_in_messages_below():
    caption = "word " * 1200
    photo, *rest = calls(reply(media={"kind": "photo", "file": "f1", "caption": caption}, parse_mode="HTML"))
    assert (photo.method, photo.params["photo"]) == ("sendPhoto", "f1")
    assert utf16_units(photo.params["caption"]) <= 1022
    assert "parse_mode" not in photo.params
    assert [call.method for call in rest] == ["sendMessage", "sendMessage"]
    assert without_space("".join(call.text for call in [photo, *rest])) == without_space(caption)


def test_a_text_beside_a_file_is_its_caption_unless_it_has_one():
    [captioned] = calls(reply("Look", media={"kind": "video", "file": "f1"}))
    assert captioned == Call("sendVideo", {"video": "f1", "caption": "Look"}, "Look")
    with_both = calls(reply("And more", media={"kind": "voice", "file": "f1", "caption": "Listen"}))
    assert [call.text for call in with_both] == ["Listen", "And more"]


def test_a_file_needs_no_text():
    assert calls(reply(media={"kind": "audio", "file": "f1"})) == [Call("sendAudio", {"audio": "f1"}, "[audio]")]


def test_every_part_of_a_reply_goes_to_the_topic_it_came_from():
    media = {"kind": "photo", "file": "f1", "caption": "word " * 300}
    composed = calls(reply(media=media), thread_id="3", business_connection_id="b1")
    assert len(composed) == 2
    assert all(call.params["message_thread_id"] == 3 for call in composed)
    assert all(call.params["business_connection_id"] == "b1" for call in composed)


@pytest.mark.failure("E8")
@pytest.mark.parametrize(
    ("effect", "field"),
    [
        (reply("x", reply_to="abc"), "reply_to"),
        (reply("x", buttons=[[{"text": "a"}]]), "buttons"),
        (reply("x", buttons=[[{"text": "", "data": "a"}]]), "buttons"),
        (reply("x", buttons=[[{"text": "a", "data": "b", "url": "c"}]]), "buttons"),
        (reply("x", buttons=[[{"text": "a", "data": "é" * 33}]]), "buttons"),
        (reply(media={"kind": "hologram", "file": "f"}), "media.kind"),
        (reply(media={"kind": "photo"}), "media.file"),
        (reply(media={"kind": "photo", "file": "f", "caption": 5}), "media.caption"),
        (Effect(kind="edit", text=" "), "message_id"),
        (Effect(kind="edit", text=" ", message_id="5"), "text"),
        (Effect(kind="edit", text="x", message_id="five"), "message_id"),
        (Effect(kind="answer_callback"), "kind"),
        (Effect(kind="call", method="../deleteWebhook"), "method"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(effect, field):
    assert refused_field(effect) == field


def test_without_a_chat_there_is_no_reply():
    assert refused_field(reply("x"), kind="inline_query", chat_id=None) == "chat_id"


# --- other effects ----------------------------------------------------------------------------------------


def test_an_edit_changes_the_message_whose_button_was_pressed():
    [call] = calls(Effect(kind="edit", text="Done"), kind="callback_query", message_id="9")
    assert call == Call("editMessageText", {"message_id": 9, "text": "Done"}, "Done")
    [inline] = calls(Effect(kind="edit", text="Done"), kind="callback_query", chat_id=None, inline_message_id="i")
    assert inline.params == {"inline_message_id": "i", "text": "Done"}


def test_an_edit_of_buttons_alone_leaves_the_text():
    [call] = calls(Effect(kind="edit", message_id="9", buttons=[]))
    assert call == Call("editMessageReplyMarkup", {"message_id": 9, "reply_markup": {"inline_keyboard": []}})


def test_an_edit_too_long_for_its_message_goes_on_below_it():
    first, second = calls(Effect(kind="edit", text="word " * 1000, message_id="9"))
    assert (first.method, second.method) == ("editMessageText", "sendMessage")


def test_a_callback_is_answered_by_its_id():
    effect = Effect(kind="answer_callback", text="Noted", params={"show_alert": True})
    [call] = calls(effect, kind="callback_query", callback_query_id="c1")
    assert call.method == "answerCallbackQuery"
    assert call.params == {"callback_query_id": "c1", "text": "Noted", "show_alert": True}
    too_long = Effect(kind="answer_callback", text="x" * 201)
    assert refused_field(too_long, kind="callback_query", callback_query_id="c1") == "text"


def test_a_call_by_name_is_as_it_was_given_but_for_the_tasks_own_chat():
    effect = Effect(kind="call", method="sendDice", params={"chat_id": 42, "emoji": "🎲"})
    assert calls(effect) == [Call("sendDice", {"emoji": "🎲"})]
    elsewhere = Effect(kind="call", method="setMyName", params={"name": "Ada"})
    assert calls(elsewhere) == [Call("setMyName", {"name": "Ada"})]


def test_a_tap_is_acknowledged_and_nothing_else_is(channel):
    tapped = channel.acknowledgement(head("callback_query", callback_query_id="c1"))
    assert tapped == Call("answerCallbackQuery", {"callback_query_id": "c1"}, is_urgent=True)
    assert channel.acknowledgement(head()) is None


def test_a_notice_is_silent(channel):
    call = channel.notice(head(thread_id="3"), "Queued")
    assert call.params == {"text": "Queued", "disable_notification": True, "message_thread_id": 3}


def test_a_bot_goes_by_its_number_and_keeps_its_token_to_itself(channel):
    assert channel.accounts == ["7"]
    assert "secret" not in repr(channel)


# --- saying it again --------------------------------------------------------------------------------------


def test_a_call_made_again_is_marked_in_its_text_or_caption():
    assert marked(Call("sendMessage", {"text": "Hi"}, "Hi")) == Call("sendMessage", {"text": "↻ Hi"}, "↻ Hi")
    assert marked(Call("sendPhoto", {"photo": "f", "caption": "Hi"})).params["caption"] == "↻ Hi"
    assert marked(Call("sendPhoto", {"photo": "f"})).params["caption"] == "↻ "
    assert marked(Call("sendSticker", {"sticker": "f"})).params == {"sticker": "f"}


def test_the_mark_moves_the_formatting_with_the_text():
    call = Call("sendMessage", {"text": "Hi", "entities": [{"type": "bold", "offset": 0, "length": 2}]})
    assert marked(call).params["entities"] == [{"type": "bold", "offset": 2, "length": 2}]


def test_the_mark_leaves_a_quote_at_the_start_of_its_line():
    call = Call("sendMessage", {"text": ">quoted", "parse_mode": "MarkdownV2"})
    assert marked(call).params["text"] == "↻\n>quoted"


@given(rich)
def test_every_composed_text_has_room_for_the_mark(text):
    if not text.strip():
        return
    for call in calls(reply(text * 50)):
        again = marked(call)
        assert again.params["text"] == "↻ " + call.params["text"]
        assert utf16_units(again.params["text"]) <= 4096


def test_a_text_without_room_for_the_mark_stays_as_it_is():
    full = Call("sendMessage", {"text": "x" * 4095})
    assert marked(full) == full


@pytest.mark.parametrize(
    ("method", "repeatable"),
    [
        ("editMessageText", True),
        ("answerCallbackQuery", True),
        ("setMessageReaction", True),
        ("deleteMessage", True),
        ("sendChatAction", True),
        ("pinChatMessage", True),
        ("sendMessage", False),
        ("sendChatJoinRequestWebApp", False),
        ("forwardMessage", False),
        ("copyMessage", False),
        ("createChatInviteLink", False),
    ],
)
def test_only_what_sets_a_state_may_be_repeated_unmarked(channel, method, repeatable):
    assert channel.is_repeatable(Call(method, {})) is repeatable


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G17")
def test_groups_are_slower_than_people(channel):
    assert channel.rates("42").chat_per_minute is None
    assert channel.rates("-100").chat_per_minute == 20
    assert channel.rates("@news").chat_per_minute == 20
    assert (channel.rates("42").chat_per_second, channel.rates("42").account_per_second) == (1, 30)

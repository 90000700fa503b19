"""What the stand-in accepts from a bot, what it refuses, and how fast it may come."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.testing.telegram import Bot, BotSettings, SendRates, updates
from rise.testing.telegram.rules import CallParams, UploadedFile
from rise.testing.telegram.rules.markup import parse, utf16_units
from rise.testing.telegram.rules.refusals import CallRefused

pytestmark = pytest.mark.req("TST-1")

NOW = 1_700_000_000.0


@pytest.fixture
def bot() -> Bot:
    return Bot("7:test", dice=random.Random(1), settings=BotSettings(send_rates=SendRates.unlimited()))


def call(bot: Bot, method: str, now: float = NOW, **params: object) -> dict:
    return json.loads(bot.call(method, CallParams(params), now).body)


def send(bot: Bot, text: str = "Hello", now: float = NOW, chat_id: object = 42, **params: object) -> dict:
    return call(bot, "sendMessage", now, chat_id=chat_id, text=text, **params)


def error(answer: dict) -> tuple[int, str]:
    return answer["error_code"], answer["description"]


# --- committing -------------------------------------------------------------------------------------------


def test_a_sent_message_is_recorded_and_comes_back(bot):
    answer = send(bot, "Hello", message_thread_id=3)
    assert answer["result"]["text"] == "Hello"
    assert answer["result"]["message_thread_id"] == 3
    [sent] = bot.sent
    assert (sent.chat_id, sent.message_id, sent.text, sent.at) == (42, 1, "Hello", NOW)


def test_the_same_message_twice_is_two_messages(bot):
    assert send(bot)["result"]["message_id"] != send(bot)["result"]["message_id"]
    assert len(bot.sent) == 2


def test_people_and_bot_share_the_message_ids_of_a_chat(bot):
    bot.add_update(updates.message(chat_id=42), NOW)
    assert send(bot)["result"]["message_id"] == 2


@pytest.mark.failure("A14")
def test_two_bots_number_the_messages_of_one_person_each_for_itself():
    received = [
        Bot(token, dice=random.Random(1)).add_update(updates.message(chat_id=42), NOW).body for token in ("7:a", "8:b")
    ]
    assert {json.loads(body)["message"]["message_id"] for body in received} == {1}


def test_a_refused_message_leaves_no_trace(bot):
    send(bot, "")
    assert bot.sent == []
    assert bot.chats.visible(42) == []


# --- lengths and markup -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a" * 4096, "😀" * 2048, f"<b>{'a' * 4096}</b>"])
def test_4096_utf16_units_are_not_too_long(bot, text):
    assert send(bot, text, parse_mode="HTML")["ok"]


@pytest.mark.parametrize("text", ["a" * 4097, "😀" * 2048 + "a"])
def test_more_than_4096_utf16_units_are_too_long(bot, text):
    assert error(send(bot, text)) == (400, "Bad Request: message is too long")


def test_a_caption_of_more_than_1024_units_is_too_long(bot):
    assert call(bot, "sendPhoto", chat_id=42, photo="id", caption="a" * 1024)["ok"]
    refused = call(bot, "sendPhoto", chat_id=42, photo="id", caption="a" * 1025)
    assert error(refused) == (400, "Bad Request: message caption is too long")


@pytest.mark.parametrize("text", ["", "   \n", "<b></b>"])
def test_an_empty_text_is_refused(bot, text):
    assert error(send(bot, text, parse_mode="HTML")) == (400, "Bad Request: message text is empty")


@pytest.mark.parametrize(
    ("parse_mode", "text", "why"),
    [
        ("HTML", "<b>x", 'Can\'t find end tag corresponding to start tag "b"'),
        ("HTML", "<b>x</i>", 'Unmatched end tag at byte offset 4, expected "</b>", found "</i>"'),
        ("HTML", "é</b>", "Unexpected end tag at byte offset 2"),
        ("HTML", "<table>x</table>", 'Unsupported start tag "table" at byte offset 0'),
        ("HTML", "1 < 2", "Unclosed start tag at byte offset 2"),
        ("Markdown", "a *b", "Can't find end of the entity starting at byte offset 2"),
        ("Markdown", "snake_case", "Can't find end of the entity starting at byte offset 5"),
        ("MarkdownV2", "a *b", "Can't find end of Bold entity at byte offset 2"),
        ("MarkdownV2", "```x", "Can't find end of PreCode entity at byte offset 0"),
        ("MarkdownV2", "Yes.", "Character '.' is reserved and must be escaped with the preceding '\\'"),
        ("MarkdownV2", "*_a*_", "Can't find end of Italic entity at byte offset 4"),
    ],
)
def test_markup_that_cannot_be_read_is_refused(bot, parse_mode, text, why):
    assert error(send(bot, text, parse_mode=parse_mode)) == (400, f"Bad Request: can't parse entities: {why}")


@pytest.mark.parametrize(
    ("parse_mode", "source", "text", "entities"),
    [
        ("HTML", "a <b>b &lt;</b>", "a b <", [("bold", 2, 3)]),
        ("HTML", "😀<i><b>x</b></i>", "😀x", [("bold", 2, 1), ("italic", 2, 1)]),
        ("HTML", '<a href="http://x.test/">x</a>', "x", [("text_link", 0, 1)]),
        ("Markdown", "*a* \\_ `b*`", "a _ b*", [("bold", 0, 1), ("code", 4, 2)]),
        ("Markdown", "[x](http://x.test/) [y]", "x y", [("text_link", 0, 1)]),
        ("MarkdownV2", "*a _b_* __c__ \\.", "a b c .", [("bold", 0, 3), ("italic", 2, 1), ("underline", 4, 1)]),
        ("MarkdownV2", "`a.b` ||c|| ~d~", "a.b c d", [("code", 0, 3), ("spoiler", 4, 1), ("strikethrough", 6, 1)]),
        ("MarkdownV2", "[x](http://x.test/a\\)b)", "x", [("text_link", 0, 1)]),
        ("MarkdownV2", ">a\n>b\nc", "a\nb\nc", [("blockquote", 0, 3)]),
    ],
)
def test_markup_becomes_text_and_entities_in_utf16_units(parse_mode, source, text, entities):
    formatted = parse(source, parse_mode)
    assert formatted.text == text
    assert sorted((e["type"], e["offset"], e["length"]) for e in formatted.entities) == sorted(entities)


@given(st.text(max_size=60), st.sampled_from(["HTML", "Markdown", "MarkdownV2"]))
def test_any_text_is_either_read_or_refused_as_unreadable(source, parse_mode):
    try:
        formatted = parse(source, parse_mode)
    except CallRefused as refusal:
        assert "can't parse entities" in refusal.description
    else:
        assert all(e["offset"] + e["length"] <= utf16_units(formatted.text) for e in formatted.entities)


@given(st.text())
def test_escaped_text_survives_its_markup(text):
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert parse(escaped, "HTML").text == text
    special = "\\_*[]()~`>#+-=|{}.!"
    assert parse("".join(f"\\{c}" if c in special else c for c in text), "MarkdownV2").text == text


def test_an_unknown_parse_mode_is_refused(bot):
    assert error(send(bot, parse_mode="BBCode")) == (400, "Bad Request: unsupported parse_mode")


# --- chats that cannot be written to ----------------------------------------------------------------------


@pytest.mark.failure("G9")
def test_a_user_who_blocked_the_bot_is_403(bot):
    bot.chats.conditions.blocked.add(42)
    assert error(send(bot)) == (403, "Forbidden: bot was blocked by the user")
    assert send(bot, chat_id=43)["ok"]


def test_a_deactivated_user_is_403(bot):
    bot.chats.conditions.deactivated.add(42)
    assert error(send(bot)) == (403, "Forbidden: user is deactivated")


@pytest.mark.parametrize("chat_id", [404, "nobody"])
def test_a_chat_that_does_not_exist_is_400(bot, chat_id):
    bot.chats.conditions.missing.add(404)
    assert error(send(bot, chat_id=chat_id)) == (400, "Bad Request: chat not found")


@pytest.mark.parametrize("chat_id", ["", None, True])
def test_no_chat_is_400(bot, chat_id):
    assert error(send(bot, chat_id=chat_id)) == (400, "Bad Request: chat_id is empty")


@pytest.mark.failure("A13")
def test_a_group_that_became_a_supergroup_says_its_new_id(bot):
    bot.chats.conditions.migrated[-5] = -1_000_000_000_005
    refused = send(bot, chat_id=-5)
    assert refused["error_code"] == 400
    assert refused["parameters"] == {"migrate_to_chat_id": -1_000_000_000_005}


@pytest.mark.failure("G10")
def test_a_revoked_token_is_401(bot):
    bot.is_token_revoked = True
    assert error(send(bot)) == (401, "Unauthorized")
    assert error(call(bot, "getUpdates")) == (401, "Unauthorized")


def test_an_unknown_method_is_404(bot):
    assert error(call(bot, "sendThought")) == (404, "Not Found")


def test_the_case_of_a_method_does_not_matter(bot):
    assert call(bot, "SENDMESSAGE", chat_id=42, text="x")["ok"]


# --- replying, editing, deleting --------------------------------------------------------------------------


@pytest.mark.failure("G11")
def test_replying_to_a_message_that_is_gone_is_refused_unless_allowed(bot):
    gone = {"message_id": 99}
    assert error(send(bot, reply_parameters=gone)) == (400, "Bad Request: message to be replied not found")
    assert error(send(bot, reply_to_message_id="99"))[0] == 400
    assert send(bot, reply_parameters=json.dumps({**gone, "allow_sending_without_reply": True}))["ok"]
    assert send(bot, reply_to_message_id=99, allow_sending_without_reply="true")["ok"]


def test_a_reply_shows_what_it_replies_to(bot):
    bot.add_update(updates.message("Question", chat_id=42), NOW)
    answer = send(bot, "Answer", reply_parameters={"message_id": 1})
    assert answer["result"]["reply_to_message"]["text"] == "Question"


def test_an_edit_changes_what_stands_in_the_chat_and_sends_nothing(bot):
    message_id = send(bot, "…")["result"]["message_id"]
    edited = call(bot, "editMessageText", NOW + 5, chat_id=42, message_id=message_id, text="Done")
    assert (edited["result"]["text"], edited["result"]["edit_date"]) == ("Done", int(NOW) + 5)
    assert [message.text for message in bot.chats.visible(42)] == ["Done"]
    assert len(bot.sent) == 1


@pytest.mark.failure("G13")
def test_an_edit_of_what_is_gone_or_of_somebody_elses_message_is_refused(bot):
    bot.add_update(updates.message(chat_id=42), NOW)
    assert error(call(bot, "editMessageText", chat_id=42, message_id=9, text="x")) == (
        400,
        "Bad Request: message to edit not found",
    )
    assert error(call(bot, "editMessageText", chat_id=42, message_id=1, text="x")) == (
        400,
        "Bad Request: message can't be edited",
    )


def test_an_edit_that_changes_nothing_is_refused(bot):
    message_id = send(bot, "*x*", parse_mode="Markdown")["result"]["message_id"]
    same = {"chat_id": 42, "message_id": message_id, "text": "<b>x</b>", "parse_mode": "HTML"}
    assert "message is not modified" in call(bot, "editMessageText", **same)["description"]
    keyboard = {"inline_keyboard": [[{"text": "Yes", "callback_data": "y"}]]}
    assert call(bot, "editMessageText", **same, reply_markup=keyboard)["ok"]
    assert "message is not modified" in call(bot, "editMessageText", **same, reply_markup=keyboard)["description"]


def test_a_deleted_message_is_gone_and_cannot_be_deleted_again(bot):
    message_id = send(bot)["result"]["message_id"]
    assert call(bot, "deleteMessage", chat_id=42, message_id=message_id)["result"] is True
    assert bot.chats.visible(42) == []
    assert error(call(bot, "deleteMessage", chat_id=42, message_id=message_id)) == (
        400,
        "Bad Request: message to delete not found",
    )


def test_a_callback_can_be_answered_for_a_few_seconds_only(bot):
    update = bot.add_update(updates.callback_query(), NOW)
    callback_id = json.loads(update.body)["callback_query"]["id"]
    assert call(bot, "answerCallbackQuery", NOW + 14, callback_query_id=callback_id)["result"] is True
    assert (
        "query is too old" in call(bot, "answerCallbackQuery", NOW + 16, callback_query_id=callback_id)["description"]
    )
    assert "query is too old" in call(bot, "answerCallbackQuery", callback_query_id="1")["description"]


# --- files ------------------------------------------------------------------------------------------------


def test_an_uploaded_file_can_be_got_again(bot):
    upload = UploadedFile("a.txt", b"content", "text/plain")
    document = call(bot, "sendDocument", chat_id=42, document=upload, caption="See")["result"]["document"]
    assert (document["file_name"], document["file_size"]) == ("a.txt", 7)
    found = call(bot, "getFile", file_id=document["file_id"])["result"]
    assert bot.files.at_path(found["file_path"]).content == b"content"


def test_a_file_larger_than_20_mb_can_be_sent_but_not_got(bot):
    upload = UploadedFile("a", b"x" * (20 * 1024 * 1024 + 1), "x/y")
    document = call(bot, "sendDocument", chat_id=42, document=upload)["result"]["document"]
    assert error(call(bot, "getFile", file_id=document["file_id"])) == (400, "Bad Request: file is too big")


def test_a_file_larger_than_50_mb_cannot_be_sent(bot):
    upload = UploadedFile("a", bytes(50 * 1024 * 1024 + 1), "x/y")
    assert error(call(bot, "sendDocument", chat_id=42, document=upload)) == (413, "Request Entity Too Large")
    assert bot.sent == []


@pytest.mark.failure("A12")
def test_an_album_is_several_messages_with_one_group_id(bot):
    media = [{"type": "photo", "media": "a", "caption": "Look"}, {"type": "photo", "media": "attach://b"}]
    upload = UploadedFile("b.png", b"png", "image/png")
    messages = call(bot, "sendMediaGroup", chat_id=42, media=json.dumps(media), b=upload)["result"]
    assert len({message["media_group_id"] for message in messages}) == 1
    assert [sent.text for sent in bot.sent] == ["Look", ""]


# --- how fast ---------------------------------------------------------------------------------------------


def limited(**rates: object) -> Bot:
    return Bot("7:test", dice=random.Random(1), settings=BotSettings(send_rates=SendRates(**rates)))


def test_a_chat_takes_a_small_burst_and_then_about_one_message_a_second():
    bot = limited(chat_burst=3)
    assert all(send(bot)["ok"] for _ in range(3))
    refused = send(bot)
    assert error(refused) == (429, "Too Many Requests: retry after 1")
    assert refused["parameters"] == {"retry_after": 1}
    assert send(bot, now=NOW + 1)["ok"]
    assert send(bot, now=NOW + 1)["error_code"] == 429


@pytest.mark.failure("G17")
def test_one_message_a_second_is_never_refused_in_a_private_chat():
    bot = limited()
    assert all(send(bot, now=NOW + second)["ok"] for second in range(200))


def test_whoever_does_not_wait_as_told_is_refused_until_the_time_has_passed():
    bot = limited(chat_burst=1, chat_per_second=0.25)
    send(bot)
    assert send(bot)["parameters"] == {"retry_after": 4}
    assert send(bot, now=NOW + 3.5)["parameters"] == {"retry_after": 1}
    assert send(bot, now=NOW + 4)["ok"]


@pytest.mark.failure("G17")
def test_a_group_takes_twenty_messages_a_minute():
    bot = limited()
    assert all(send(bot, now=NOW + second, chat_id=-5)["ok"] for second in range(20))
    refused = send(bot, now=NOW + 20, chat_id=-5)
    assert refused["parameters"] == {"retry_after": 40}
    assert send(bot, now=NOW + 60, chat_id=-5)["ok"]


@pytest.mark.failure("G17")
def test_a_bot_sends_thirty_messages_a_second_and_a_chats_limit_is_its_own():
    bot = limited(chat_burst=1)
    assert all(send(bot, chat_id=chat_id)["ok"] for chat_id in range(1, 31))
    assert send(bot, chat_id=31)["error_code"] == 429
    assert send(bot, now=NOW + 1, chat_id=31)["ok"]


def test_refused_messages_do_not_count():
    bot = limited(chat_burst=1)
    for _ in range(5):
        send(bot, "")
    assert send(bot)["ok"]


def test_limits_can_be_switched_off(bot):
    assert all(send(bot)["ok"] for _ in range(200))

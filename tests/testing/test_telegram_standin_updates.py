"""How the stand-in keeps updates and gives them to pollers."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.testing.telegram import Bot, BotSettings, DropReason, UpdateQueueLimits, updates
from rise.testing.telegram.rules import CallParams, CallRefused
from rise.testing.telegram.rules.update_queue import DAY_SECONDS, WEEK_SECONDS, sub_queue_of

pytestmark = pytest.mark.req("TST-1")

NOW = 1_700_000_000.0


def make_bot(**limits: int) -> Bot:
    settings = BotSettings(queue_limits=UpdateQueueLimits(**limits))
    return Bot("7:test", dice=random.Random(1), settings=settings)


def call(bot: Bot, method: str, now: float = NOW, **params: object) -> dict:
    return json.loads(bot.call(method, CallParams(params), now).body)


def taken_ids(bot: Bot, now: float = NOW, **params: object) -> list[int]:
    return [update["update_id"] for update in call(bot, "getUpdates", now, **params)["result"]]


# --- numbering --------------------------------------------------------------------------------------------


def test_update_ids_follow_each_other_from_a_random_start():
    bot = make_bot()
    first, second, third = (bot.add_update(updates.message(), NOW).update_id for _ in range(3))
    assert (second, third) == (first + 1, first + 2)
    other = Bot("8:test", dice=random.Random(2))
    assert other.add_update(updates.message(), NOW).update_id != first


@pytest.mark.failure("A9")
def test_after_a_quiet_week_numbering_starts_anew_at_random():
    bot = make_bot()
    first = bot.add_update(updates.message(), NOW).update_id
    taken_ids(bot, offset=first + 1)
    later = bot.add_update(updates.message(), NOW + WEEK_SECONDS + 1).update_id
    assert later != first + 1


def test_after_a_log_out_numbering_starts_anew_at_random():
    bot = make_bot()
    first = bot.add_update(updates.message(), NOW).update_id
    taken_ids(bot, offset=first + 1)
    call(bot, "logOut")
    assert bot.add_update(updates.message(), NOW).update_id != first + 1


def test_a_given_update_id_is_kept_and_numbering_goes_on_from_it():
    bot = make_bot()
    assert bot.add_update({"update_id": 5, **updates.message()}, NOW).update_id == 5
    assert bot.add_update(updates.message(), NOW).update_id == 6


# --- how long ---------------------------------------------------------------------------------------------


@pytest.mark.failure("A7")
@pytest.mark.parametrize(
    ("update", "life_seconds"),
    [
        (updates.message(), DAY_SECONDS),
        (updates.edited_message("x", message_id=1, date=int(NOW) - 5000), DAY_SECONDS),
        (updates.channel_post("x"), DAY_SECONDS),
        (updates.my_chat_member(), DAY_SECONDS),
        (updates.callback_query(), 150),
        (updates.shipping_query(), 150),
        (updates.pre_checkout_query(), 150),
        (updates.inline_query("x"), 30),
        (updates.unknown("custom_event"), 600),
    ],
)
def test_each_kind_lives_as_long_as_the_real_server_keeps_it(update, life_seconds):
    bot = make_bot()
    update_id = bot.add_update(update, NOW).update_id
    assert taken_ids(bot, NOW + life_seconds - 1) == [update_id]
    assert taken_ids(bot, NOW + life_seconds + 1) == []
    assert [(lost.update_id, lost.reason) for lost in bot.queue.dropped] == [(update_id, DropReason.EXPIRED)]


def test_a_message_lives_from_its_date_not_from_its_arrival():
    bot = make_bot()
    assert bot.add_update(updates.message(date=int(NOW - DAY_SECONDS - 1)), NOW) is None
    bot.add_update(updates.message(date=int(NOW - DAY_SECONDS + 10)), NOW)
    assert len(taken_ids(bot, NOW + 9)) == 1
    assert taken_ids(bot, NOW + 11) == []


def test_the_end_of_a_business_connection_lives_a_day_however_long_ago_it_was_made():
    bot = make_bot()
    ended = {"id": "b1", "user": updates.user(7), "user_chat_id": 7, "date": int(NOW - 30 * DAY_SECONDS)}
    bot.add_update({"business_connection": ended | {"is_enabled": False}}, NOW)
    assert len(taken_ids(bot, NOW + DAY_SECONDS - 1)) == 1
    assert taken_ids(bot, NOW + DAY_SECONDS + 1) == []


def test_reactions_live_a_day_from_their_date():
    bot = make_bot()
    call(bot, "setWebhook", url="http://x.test/", allowed_updates=["message_reaction"])
    call(bot, "deleteWebhook")
    bot.add_update(updates.message_reaction(message_id=1, date=int(NOW) - 100), NOW)
    assert len(taken_ids(bot, NOW + DAY_SECONDS - 101)) == 1
    assert taken_ids(bot, NOW + DAY_SECONDS - 99) == []


# --- how much ---------------------------------------------------------------------------------------------


def test_the_default_limits_are_those_of_the_real_server():
    limits = UpdateQueueLimits()
    assert (limits.updates_max, limits.bytes_max, limits.update_bytes_max) == (100_000, 128 << 20, 512 << 10)


def test_beyond_the_number_limit_new_updates_are_gone():
    bot = make_bot(updates_max=2)
    kept = [bot.add_update(updates.message(), NOW) for _ in range(3)]
    assert kept[2] is None
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.QUEUE_FULL]


def test_beyond_the_size_limit_new_updates_are_gone_until_there_is_room():
    bot = make_bot(bytes_max=1000)
    first = bot.add_raw(b"x" * 600, NOW)
    assert bot.add_raw(b"x" * 600, NOW) is None
    taken_ids_of_raw = bot.call("getUpdates", CallParams({"offset": first.update_id + 1}), NOW)
    assert taken_ids_of_raw.is_ok
    assert bot.add_raw(b"x" * 600, NOW) is not None


def test_an_update_larger_than_512_kib_is_gone():
    bot = make_bot()
    assert bot.add_update(updates.message("x" * (512 * 1024)), NOW) is None
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.TOO_LARGE]


# --- which ------------------------------------------------------------------------------------------------


def test_by_default_members_and_reactions_of_others_are_not_sent():
    bot = make_bot()
    assert bot.add_update(updates.message_reaction(message_id=1), NOW) is None
    assert bot.add_update(updates.my_chat_member(), NOW) is not None
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.NOT_ALLOWED]


def test_leaving_allowed_updates_out_keeps_them_and_an_empty_list_restores_the_default():
    bot = make_bot()
    call(bot, "getUpdates", allowed_updates=["callback_query"])
    assert bot.add_update(updates.message(), NOW) is None
    call(bot, "getUpdates")
    assert bot.add_update(updates.message(), NOW) is None
    call(bot, "getUpdates", allowed_updates=[])
    assert bot.add_update(updates.message(), NOW) is not None
    assert bot.add_update(updates.message_reaction(message_id=1), NOW) is None


def test_kinds_that_nobody_knows_yet_are_sent():
    bot = make_bot()
    update_id = bot.add_update(updates.unknown("hologram", shape="cube"), NOW).update_id
    assert call(bot, "getUpdates")["result"] == [{"update_id": update_id, "hologram": {"shape": "cube"}}]


# --- sub-queues -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "sub_queue"),
    [
        (updates.message(chat_id=-5, user_id=9), "messages:-5"),
        (updates.edited_message("x", message_id=1, chat_id=-5), "messages:-5"),
        (updates.channel_post("x", chat_id=-6), "messages:-6"),
        (updates.callback_query(chat_id=-5, user_id=9), "callbacks:9"),
        (updates.inline_query("x", user_id=9), "inline:9"),
        (updates.shipping_query(user_id=9), "payments:9"),
        (updates.pre_checkout_query(user_id=9), "payments:9"),
        (updates.my_chat_member(chat_id=-5), "own_membership:-5"),
        (updates.message_reaction(message_id=1, chat_id=-5), "reactions:-5"),
        (updates.unknown(), None),
    ],
)
def test_each_kind_waits_in_its_own_sub_queue(update, sub_queue):
    [(kind, content)] = update.items()
    assert sub_queue_of(kind, content) == sub_queue


# --- polling ----------------------------------------------------------------------------------------------


def test_updates_are_given_again_until_an_offset_confirms_them():
    bot = make_bot()
    first, second = (bot.add_update(updates.message(), NOW).update_id for _ in range(2))
    assert taken_ids(bot) == taken_ids(bot) == [first, second]
    assert taken_ids(bot, offset=second) == [second]
    assert taken_ids(bot) == [second]
    assert taken_ids(bot, offset=second + 1) == []
    assert len(bot.queue) == 0


def test_a_negative_offset_keeps_only_the_last_ones():
    bot = make_bot()
    ids = [bot.add_update(updates.message(), NOW).update_id for _ in range(5)]
    assert taken_ids(bot, offset=-2) == ids[-2:]
    assert taken_ids(bot) == ids[-2:]


@pytest.mark.parametrize(("limit", "given"), [(1, 1), (100, 100), (0, 100), (1000, 100)])
def test_a_poll_gives_at_most_a_hundred(limit, given):
    bot = make_bot()
    for _ in range(120):
        bot.add_update(updates.message(), NOW)
    assert len(taken_ids(bot, limit=limit)) == given


def test_a_poll_waits_up_to_fifty_seconds():
    bot = make_bot()
    poll = bot.begin_poll(CallParams({"timeout": 1000}), NOW)
    assert poll.ends_at == NOW + 50
    assert bot.answer_poll(poll, NOW + 49) is None
    assert json.loads(bot.answer_poll(poll, NOW + 50).body) == {"ok": True, "result": []}


def test_a_waiting_poll_is_answered_as_soon_as_something_happens():
    bot = make_bot()
    poll = bot.begin_poll(CallParams({"timeout": 30}), NOW)
    assert bot.answer_poll(poll, NOW) is None
    bot.add_update(updates.message(), NOW + 1)
    assert len(json.loads(bot.answer_poll(poll, NOW + 1).body)["result"]) == 1


@pytest.mark.failure("A15")
def test_a_second_poll_ends_the_first_with_409():
    bot = make_bot()
    first = bot.begin_poll(CallParams({"timeout": 30}), NOW)
    second = bot.begin_poll(CallParams({"timeout": 30}), NOW)
    refused = json.loads(bot.answer_poll(first, NOW).body)
    assert refused["error_code"] == 409
    assert "terminated by other getUpdates request" in refused["description"]
    assert bot.answer_poll(second, NOW) is None


def test_polling_while_a_webhook_is_set_is_409():
    bot = make_bot()
    call(bot, "setWebhook", url="http://x.test/")
    assert call(bot, "getUpdates")["error_code"] == 409
    with pytest.raises(CallRefused):
        bot.begin_poll(CallParams({}), NOW)


def test_setting_a_webhook_ends_a_waiting_poll():
    bot = make_bot()
    poll = bot.begin_poll(CallParams({"timeout": 30}), NOW)
    call(bot, "setWebhook", url="http://x.test/")
    assert bot.answer_poll(poll, NOW).status == 409


@pytest.mark.failure("A21")
@given(st.lists(st.sampled_from(["arrive", "poll", "crash"]), max_size=40))
def test_a_poller_that_crashes_before_confirming_is_given_everything_again(steps):
    bot = make_bot()
    arrived, worked, held, offset = [], [], [], 0
    for step in [*steps, "poll", "poll", "poll"]:
        match step:
            case "arrive":
                arrived.append(bot.add_update(updates.message(), NOW).update_id)
            case "poll":
                worked += [update_id for update_id in held if update_id not in worked]
                offset = max(worked, default=-1) + 1
                held = taken_ids(bot, offset=offset)
            case "crash":
                held = []
    assert worked == arrived

"""When and how the stand-in calls a webhook."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rise.testing.telegram import Bot, DropReason, updates
from rise.testing.telegram.rules import Attempt, AttemptOutcome, CallParams, WebhookAnswer
from rise.testing.telegram.rules.update_queue import DAY_SECONDS
from rise.testing.telegram.rules.webhook import called_method, retry_after_seconds

pytestmark = pytest.mark.req("TST-1")

NOW = 1_700_000_000.0
OK = WebhookAnswer(200)
BROKEN = WebhookAnswer(500, "Internal Server Error")
CUT = WebhookAnswer(None, "Connection closed")


def make_bot(**webhook: object) -> Bot:
    bot = Bot("7:test", dice=random.Random(1))
    assert call(bot, "setWebhook", url="http://bot.test/hook", **webhook)["ok"]
    return bot


def call(bot: Bot, method: str, now: float = NOW, **params: object) -> dict:
    return json.loads(bot.call(method, CallParams(params), now).body)


def write(bot: Bot, text: str = "Hello", now: float = NOW, **fields: object) -> int:
    return bot.add_update(updates.message(text, **fields), now).update_id


def warmed_up(**webhook: object) -> Bot:
    """A bot whose webhook has just succeeded, so that connections are not held back."""
    bot = make_bot(**webhook)
    write(bot, chat_id=1)
    [attempt] = bot.start_deliveries(NOW)
    bot.finish_delivery(attempt, OK, NOW)
    return bot


def delays_until_success(bot: Bot, answers: list[WebhookAnswer]) -> list[float]:
    """The waits between the tries of the only pending update."""
    now, delays = NOW, []
    for answer in answers:
        due_at = bot.next_delivery_at(now)
        delays.append(due_at - now)
        now = due_at
        [attempt] = bot.start_deliveries(now)
        bot.finish_delivery(attempt, answer, now)
    return delays


# --- success and failure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_success(status):
    bot = make_bot()
    write(bot)
    [attempt] = bot.start_deliveries(NOW)
    assert bot.finish_delivery(attempt, WebhookAnswer(status), NOW) is AttemptOutcome.DELIVERED
    assert len(bot.queue) == 0


@pytest.mark.parametrize("answer", [WebhookAnswer(s) for s in (199, 301, 302, 400, 404, 500, 503)] + [CUT])
def test_anything_else_and_silence_are_failures(answer):
    bot = make_bot()
    write(bot)
    [attempt] = bot.start_deliveries(NOW)
    assert bot.finish_delivery(attempt, answer, NOW) is AttemptOutcome.RETRIED
    assert len(bot.queue) == 1


def test_the_first_failure_is_sent_again_at_once_then_the_wait_doubles_up_to_a_random_minute_or_two():
    bot = make_bot()
    write(bot)
    delays = delays_until_success(bot, [BROKEN] * 12)
    assert delays[:7] == [0, 0, 2, 4, 8, 16, 32]
    assert all(60 <= delay <= 120 for delay in delays[7:])


def test_retry_after_replaces_the_delay():
    bot = make_bot()
    write(bot)
    busy = WebhookAnswer(503, retry_after_header="7")
    assert delays_until_success(bot, [busy, busy, BROKEN, BROKEN]) == [0, 7, 7, 2]


def test_retry_after_counts_even_on_the_first_failure_and_is_at_most_an_hour():
    bot = make_bot()
    write(bot)
    assert delays_until_success(bot, [WebhookAnswer(429, retry_after_header="99999"), OK]) == [0, 3600]


@pytest.mark.parametrize("header", [None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "1.5", "-3", "soon", "²"])
def test_a_retry_after_that_is_no_whole_number_is_ignored(header):
    assert retry_after_seconds(header) == 0


def test_a_retry_after_on_a_2xx_means_nothing():
    bot = make_bot()
    write(bot)
    [attempt] = bot.start_deliveries(NOW)
    outcome = bot.finish_delivery(attempt, WebhookAnswer(200, retry_after_header="60"), NOW)
    assert outcome is AttemptOutcome.DELIVERED


@pytest.mark.failure("A7")
def test_an_update_whose_next_try_would_come_after_its_end_is_dropped():
    bot = make_bot()
    bot.add_update(updates.callback_query(), NOW)
    [attempt] = bot.start_deliveries(NOW)
    busy = WebhookAnswer(503, retry_after_header="151")
    assert bot.finish_delivery(attempt, busy, NOW) is AttemptOutcome.DROPPED
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.EXPIRED]


def test_there_is_no_limit_to_the_number_of_tries_but_the_life_of_the_update():
    bot = make_bot()
    write(bot)
    now = NOW
    while (due_at := bot.next_delivery_at(now)) is not None:
        now = due_at
        for attempt in bot.start_deliveries(now):
            bot.finish_delivery(attempt, BROKEN, now)
    assert DAY_SECONDS - 120 <= now - NOW <= DAY_SECONDS
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.EXPIRED]


def test_an_update_on_its_way_does_not_expire_before_its_answer():
    bot = make_bot()
    bot.add_update(updates.callback_query(), NOW)
    [attempt] = bot.start_deliveries(NOW + 149)
    assert call(bot, "getWebhookInfo", NOW + 160)["result"]["pending_update_count"] == 1
    assert bot.finish_delivery(attempt, OK, NOW + 160) is AttemptOutcome.DELIVERED
    assert bot.queue.dropped == []


# --- order ------------------------------------------------------------------------------------------------


def test_messages_of_one_chat_arrive_one_after_the_other():
    bot = warmed_up()
    first, second = write(bot, chat_id=5), write(bot, chat_id=5)
    [attempt] = bot.start_deliveries(NOW)
    assert attempt.update.update_id == first
    assert bot.start_deliveries(NOW) == []
    bot.finish_delivery(attempt, OK, NOW)
    assert [attempt.update.update_id for attempt in bot.start_deliveries(NOW)] == [second]


@pytest.mark.failure("A10")
def test_a_callback_does_not_wait_for_the_messages_of_its_chat():
    bot = warmed_up()
    write(bot, chat_id=5)
    bot.add_update(updates.callback_query(chat_id=5), NOW)
    assert {attempt.update.kind for attempt in bot.start_deliveries(NOW)} == {"message", "callback_query"}


def test_a_failing_chat_does_not_hold_up_another():
    bot = warmed_up()
    write(bot, chat_id=5)
    [failing] = bot.start_deliveries(NOW)
    bot.finish_delivery(failing, BROKEN, NOW)
    [failing] = bot.start_deliveries(NOW)
    bot.finish_delivery(failing, BROKEN, NOW)
    write(bot, "behind it", chat_id=5)
    other = write(bot, chat_id=6)
    assert [attempt.update.update_id for attempt in bot.start_deliveries(NOW)] == [other]


def test_when_the_head_of_a_chat_expires_the_next_message_takes_its_place():
    bot = warmed_up()
    write(bot, chat_id=5, date=int(NOW - DAY_SECONDS + 10))
    following = write(bot, chat_id=5)
    [attempt] = bot.start_deliveries(NOW)
    bot.finish_delivery(attempt, BROKEN, NOW)
    assert [each.update.update_id for each in bot.start_deliveries(NOW + 11)] == [following]


# --- connections ------------------------------------------------------------------------------------------


def test_at_most_max_connections_requests_are_in_flight():
    bot = warmed_up(max_connections=3)
    for chat_id in range(10, 20):
        write(bot, chat_id=chat_id)
    assert len(bot.start_deliveries(NOW)) == 3
    assert bot.next_delivery_at(NOW) is None


def test_forty_connections_are_the_default():
    bot = warmed_up()
    for chat_id in range(10, 70):
        write(bot, chat_id=chat_id)
    assert len(bot.start_deliveries(NOW)) == 40


def test_after_ten_seconds_without_success_there_is_one_connection_and_another_at_most_every_two_seconds():
    bot = warmed_up()
    for chat_id in range(10, 15):
        write(bot, chat_id=chat_id, now=NOW + 100)
    [attempt] = bot.start_deliveries(NOW + 100)
    assert bot.start_deliveries(NOW + 100) == []
    bot.finish_delivery(attempt, CUT, NOW + 100)
    assert bot.start_deliveries(NOW + 101) == []
    assert bot.next_delivery_at(NOW + 101) == NOW + 102
    assert len(bot.start_deliveries(NOW + 102)) == 1


def test_one_success_brings_all_connections_back():
    bot = warmed_up()
    for chat_id in range(10, 15):
        write(bot, chat_id=chat_id, now=NOW + 100)
    [attempt] = bot.start_deliveries(NOW + 100)
    bot.finish_delivery(attempt, OK, NOW + 100)
    assert len(bot.start_deliveries(NOW + 100)) == 4


# --- 410, answers with a method ---------------------------------------------------------------------------


def gone_for(bot: Bot, seconds: float) -> AttemptOutcome:
    [attempt] = bot.start_deliveries(NOW)
    bot.finish_delivery(attempt, WebhookAnswer(410, "Gone"), NOW)
    [attempt] = bot.start_deliveries(NOW + seconds)
    return bot.finish_delivery(attempt, WebhookAnswer(410, "Gone"), NOW + seconds)


@pytest.mark.failure("A15")
def test_410_for_23_hours_deletes_the_webhook_and_keeps_the_updates():
    bot = make_bot()
    write(bot)
    assert gone_for(bot, 23 * 3600 + 1) is AttemptOutcome.WEBHOOK_DELETED
    assert call(bot, "getWebhookInfo")["result"] == {
        "url": "",
        "has_custom_certificate": False,
        "pending_update_count": 1,
    }


def test_410_for_less_than_23_hours_is_one_failure_like_another():
    bot = make_bot()
    write(bot)
    assert gone_for(bot, 23 * 3600 - 1) is AttemptOutcome.RETRIED


def test_another_answer_between_starts_the_23_hours_anew():
    bot = make_bot()
    write(bot)
    gone_for(bot, 10 * 3600)
    [attempt] = bot.start_deliveries(NOW + 11 * 3600)
    bot.finish_delivery(attempt, BROKEN, NOW + 11 * 3600)
    [attempt] = bot.start_deliveries(NOW + 23.5 * 3600)
    outcome = bot.finish_delivery(attempt, WebhookAnswer(410), NOW + 23.5 * 3600)
    assert outcome is AttemptOutcome.RETRIED


def test_a_2xx_body_with_a_method_is_a_call():
    body = b'{"method":"sendMessage","chat_id":5,"text":"Hi"}'
    assert called_method(WebhookAnswer(200, body=body)) == ("sendMessage", {"chat_id": 5, "text": "Hi"})
    assert called_method(WebhookAnswer(500, body=body)) is None


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b'{"a":1}', b'{"method":"deleteWebhook"}', b'{"method":"getMe"}'])
def test_other_bodies_are_not(body):
    assert called_method(WebhookAnswer(200, body=body)) is None


# --- setting it -------------------------------------------------------------------------------------------


def test_the_same_parameters_again_change_nothing():
    bot = warmed_up(secret_token="abc")
    write(bot, chat_id=5)
    [attempt] = bot.start_deliveries(NOW)
    again = call(bot, "setWebhook", NOW + 2, url="http://bot.test/hook", secret_token="abc")
    assert again == {"ok": True, "result": True, "description": "Webhook is already set"}
    assert bot.finish_delivery(attempt, OK, NOW + 2) is AttemptOutcome.DELIVERED


def test_more_than_one_set_webhook_a_second_gets_429():
    bot = make_bot()
    refused = call(bot, "setWebhook", NOW + 0.5, url="http://bot.test/hook")
    assert (refused["error_code"], refused["parameters"]) == (429, {"retry_after": 1})
    assert call(bot, "setWebhook", NOW + 1.0, url="http://bot.test/hook")["ok"]


@pytest.mark.parametrize("secret", ["a", "A-Za-z0-9_-", "x" * 256])
def test_a_secret_of_letters_digits_and_dashes_is_taken(secret):
    make_bot(secret_token=secret)


@pytest.mark.parametrize("secret", ["with space", "ünicode", "a.b", "x" * 257, "a\n"])
def test_any_other_secret_is_refused(secret):
    bot = Bot("7:test", dice=random.Random(1))
    assert call(bot, "setWebhook", url="http://bot.test/", secret_token=secret)["error_code"] == 400


def test_pending_updates_are_thrown_away_only_on_request():
    bot = make_bot()
    write(bot)
    call(bot, "deleteWebhook")
    assert len(bot.queue) == 1
    call(bot, "setWebhook", NOW + 2, url="http://bot.test/hook", drop_pending_updates=True)
    assert len(bot.queue) == 0
    assert [lost.reason for lost in bot.queue.dropped] == [DropReason.DROPPED_BY_BOT]
    assert bot.start_deliveries(NOW + 2) == []


def test_a_new_webhook_gets_what_the_old_one_left():
    bot = make_bot()
    update_id = write(bot)
    [old] = bot.start_deliveries(NOW)
    call(bot, "setWebhook", NOW + 2, url="http://other.test/hook")
    assert bot.finish_delivery(old, OK, NOW + 3) is AttemptOutcome.IGNORED
    [new] = bot.start_deliveries(NOW + 3)
    assert new.update.update_id == update_id
    assert new.webhook.settings.url == "http://other.test/hook"


def test_get_webhook_info_tells_what_went_wrong():
    bot = make_bot(max_connections=7, allowed_updates=["message"])
    bot.last_synchronization_error_at = NOW - 5
    write(bot)
    [attempt] = bot.start_deliveries(NOW)
    bot.finish_delivery(attempt, WebhookAnswer(503, "Service Unavailable"), NOW)
    assert call(bot, "getWebhookInfo")["result"] == {
        "url": "http://bot.test/hook",
        "has_custom_certificate": False,
        "pending_update_count": 1,
        "allowed_updates": ["message"],
        "last_synchronization_error_date": int(NOW) - 5,
        "max_connections": 7,
        "last_error_date": int(NOW),
        "last_error_message": "Wrong response from the webhook: 503 Service Unavailable",
    }


# --- whatever happens -------------------------------------------------------------------------------------

ANSWERS = st.sampled_from(
    [OK, OK, OK, BROKEN, CUT, WebhookAnswer(503, retry_after_header="5"), WebhookAnswer(200, is_connection_kept=False)]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("post"), st.integers(1, 4)),
        st.tuples(st.just("answer"), st.integers(0, 10), ANSWERS),
        st.tuples(st.just("wait"), st.floats(0.1, 30)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_one_in_flight_in_order_and_nothing_lost_whatever_the_bot_answers(steps, seed):
    bot = Bot("7:test", dice=random.Random(seed))
    call(bot, "setWebhook", url="http://bot.test/hook", max_connections=3)
    now, in_flight, added, delivered = NOW, [], defaultdict(list), defaultdict(list)

    def start() -> None:
        in_flight.extend(bot.start_deliveries(now))
        assert max(Counter(attempt.update.sub_queue for attempt in in_flight).values(), default=0) <= 1
        assert len(in_flight) <= 3

    def finish(attempt: Attempt, answer: WebhookAnswer) -> None:
        in_flight.remove(attempt)
        if bot.finish_delivery(attempt, answer, now) is AttemptOutcome.DELIVERED:
            delivered[attempt.update.sub_queue].append(attempt.update.update_id)

    for step in steps:
        match step:
            case "write", chat_id:
                update = bot.add_update(updates.message(chat_id=chat_id), now)
                added[update.sub_queue].append(update.update_id)
            case "post", chat_id:
                update = bot.add_update(updates.channel_post("x", chat_id=-chat_id), now)
                added[update.sub_queue].append(update.update_id)
            case "answer", which, answer if in_flight:
                finish(in_flight[which % len(in_flight)], answer)
            case "wait", seconds:
                now += seconds
        start()

    while in_flight or bot.next_delivery_at(now) is not None:
        while in_flight:
            finish(in_flight[0], OK)
        now = max(now, bot.next_delivery_at(now) or now)
        start()

    assert delivered == added
    assert bot.queue.dropped == []

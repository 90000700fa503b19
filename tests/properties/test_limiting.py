"""Never faster than was said, over any stretch of time; and who waited as long as told may go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise.channels.port import SendRates
from rise.delivery import Pace
from rise.ledger.port import Reply
from rise.pacing import Buckets
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import chunks, task

pytestmark = [pytest.mark.req("OUT-2"), pytest.mark.failure("G17")]

CHAT_PER_SECOND, GROUP_PER_MINUTE, ACCOUNT_PER_SECOND = 1.0, 20.0, 30.0
LONGEST_WAIT_OF_A_CHAT = max(1 / CHAT_PER_SECOND, 60 / GROUP_PER_MINUTE)


class Channel:
    """Groups have negative numbers."""

    def rates(self, chat_id: str) -> SendRates:
        per_minute = GROUP_PER_MINUTE if chat_id.startswith("-") else None
        return SendRates(CHAT_PER_SECOND, per_minute, ACCOUNT_PER_SECOND)


def reply_to(chat_id: str) -> Reply:
    [reply] = chunks(task(), chat=chat_id)
    return reply


def urgent_reply(name: str) -> Reply:
    reply = reply_to(f"urgent:{name}")
    return msgspec.structs.replace(reply, call=msgspec.structs.replace(reply.call, is_urgent=True))


def times_of_going(clock: ManualClock, wanted: Sequence[tuple[float, str]]) -> dict[str, list[float]]:
    """When each reply to a chat went, if all wait as long as they are told. `wanted`: pauses, and who asks then."""
    pace, went, free_at = Pace({"telegram": Channel()}, clock), defaultdict(list), defaultdict(float)  # type: ignore[dict-item]
    for pause, chat_id in wanted:
        # One at a time goes to a chat: the next is asked about when the one before has gone.
        clock.advance(max(pause, free_at[chat_id] - clock.monotonic()))
        reply = reply_to(chat_id)
        seconds = pace.wait_seconds(reply)
        free_at[chat_id] = clock.monotonic() + seconds
        pace.go(reply)
        went[chat_id].append(free_at[chat_id])
    return went


def most_beyond(times: list[float], rate: float, burst: float) -> float:
    """By how many more than `burst + rate · t` went in the worst stretch of time."""
    times = sorted(times)
    return max(
        (last - first + 1 - burst - rate * (times[last] - times[first]))
        for first in range(len(times))
        for last in range(first, len(times))
    )


ASKED = st.lists(
    st.tuples(st.floats(0, 2) | st.just(0.0), st.sampled_from(["1", "2", "-3", "-4"])), min_size=1, max_size=60
)


@given(ASKED)
@tried(300)
def test_no_chat_and_no_group_is_sent_to_faster_than_telegram_takes_it(wanted: list[tuple[float, str]]):
    for chat_id, times in times_of_going(ManualClock(), wanted).items():
        assert most_beyond(times, CHAT_PER_SECOND, 1.0) < 0.001
        if chat_id.startswith("-"):
            assert most_beyond(times, GROUP_PER_MINUTE / 60, GROUP_PER_MINUTE) < 0.001


@given(st.lists(st.tuples(st.just(0.0) | st.floats(0, 0.2), st.integers(-40, 40).map(str)), min_size=1, max_size=150))
@tried(100)
def test_no_bot_sends_faster_than_telegram_takes_it(wanted: list[tuple[float, str]]):
    """But for those whose chat made them wait: their places were given out when they asked."""
    went = [at for times in times_of_going(ManualClock(), wanted).values() for at in times]
    assert most_beyond(went, ACCOUNT_PER_SECOND, ACCOUNT_PER_SECOND * (1 + LONGEST_WAIT_OF_A_CHAT)) < 0.001


def test_a_bot_sends_as_fast_as_telegram_takes_it():
    clock = ManualClock()
    began, count = clock.monotonic(), int(3 * ACCOUNT_PER_SECOND)
    went = times_of_going(clock, [(0.0, str(chat)) for chat in range(count)])
    last = max(at for times in went.values() for at in times)
    assert last - began == pytest.approx((count - ACCOUNT_PER_SECOND) / ACCOUNT_PER_SECOND, abs=0.001)


@pytest.mark.req("TGM-3")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=100))
@tried(100)
def test_what_is_urgent_goes_at_once_and_everybody_else_by_so_much_later(asked: list[tuple[int, int]]):
    """`asked`: how many chats ask in each hundredth of a second, and how many urgent calls go."""
    clock, names = ManualClock(), map(str, range(10_000))
    pace, waiting, went_count = Pace({"telegram": Channel()}, clock), list[Reply](), 0  # type: ignore[dict-item]
    began = clock.monotonic()
    for others, urgent in asked + [(0, 0)] * 1200:
        for _ in range(urgent):
            call = urgent_reply(next(names))
            assert pace.wait_seconds(call) == 0.0
            pace.go(call)
        went_count += urgent
        waiting += [reply_to(next(names)) for _ in range(others)]
        due = [reply for reply in waiting if pace.wait_seconds(reply) == 0.0]
        for reply in due:
            pace.go(reply)
            waiting.remove(reply)
        went_count += len(due)
        if due:
            allowed = ACCOUNT_PER_SECOND * (1 + clock.monotonic() - began)
            assert went_count <= allowed + 1, "who had a time before an urgent call went has not gone later for it"
        clock.advance(0.01)
    assert waiting == []


@given(
    st.floats(0.01, 100),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 10)), min_size=1, max_size=60),
)
@tried(300)
def test_each_key_has_its_own_measure_whatever_the_others_do_and_the_clock(
    rate: float, burst: int, asked: list[tuple[str, float]]
):
    together, alone, now = Buckets(rate, burst), {key: Buckets(rate, burst) for key in "abc"}, 100.0
    for key, step in asked:
        now += step  # a clock that steps back gives nothing away, which is checked where a bucket is tested
        assert together.wait_seconds(key, now) == alone[key].wait_seconds(key, now)
        together.take(key, now)
        alone[key].take(key, now)

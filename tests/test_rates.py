"""Never more than was said, and never longer than needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.rates import Bucket, Buckets, SlowStart, Windows

pytestmark = [pytest.mark.req("OUT-2"), pytest.mark.failure("G17")]

RATES = st.floats(0.01, 100)
BURSTS = st.integers(1, 30)
GAPS = st.lists(st.floats(0, 10), min_size=1, max_size=60)
STARTS = st.floats(0, 1e7)


@given(RATES, BURSTS, GAPS, STARTS)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, gaps: list[float], start: float):
    bucket = Bucket(rate, burst)
    now, went = start, []
    for gap in gaps:
        now += gap
        now += bucket.wait_seconds(now)
        bucket.take(now)
        went.append(now)
    for first in range(len(went)):
        for last in range(first, len(went)):
            allowed = burst + rate * (went[last] - went[first])
            assert last - first + 1 <= allowed + 0.001


@given(RATES, BURSTS, STARTS, st.integers(0, 40))
def test_who_waited_as_long_as_told_may_go(rate: float, burst: int, start: float, before: int):
    """A remainder too small for the clock to show would be waited for again and again."""
    bucket = Bucket(rate, burst)
    for _ in range(before):
        bucket.take(start)
    assert bucket.wait_seconds(start + bucket.wait_seconds(start)) == 0.0


def test_a_burst_goes_at_once_and_then_one_by_one():
    bucket = Bucket(tokens_per_second=2.0, tokens_max=3)
    for _ in range(3):
        assert bucket.wait_seconds(0.0) == 0.0
        bucket.take(0.0)
    assert bucket.wait_seconds(0.0) == 0.5
    assert bucket.wait_seconds(0.25) == 0.25
    assert bucket.wait_seconds(100.0) == 0.0
    bucket.take(100.0)
    assert bucket.tokens == 2.0, "no more than a burst is ever saved up"


def test_what_is_spared_is_what_leaves_half_of_a_burst():
    bucket = Bucket(tokens_per_second=2.0, tokens_max=5)
    assert [bucket.take_spare(0.0) for _ in range(4)] == [True, True, False, False]
    assert bucket.tokens == 3.0, "what is not taken is not lost"
    assert (bucket.take_spare(0.2), bucket.take_spare(0.3)) == (False, True)
    assert not Bucket(tokens_per_second=0.5, tokens_max=1).take_spare(0.0), "the only one is not to spare"


def test_who_goes_before_its_time_makes_the_next_wait():
    bucket = Bucket(tokens_per_second=1.0, tokens_max=1)
    bucket.take(0.0)
    bucket.take(0.0)
    assert bucket.wait_seconds(0.0) == 2.0


def test_a_clock_that_steps_back_gives_nothing_away():
    bucket = Bucket(tokens_per_second=1.0, tokens_max=1)
    bucket.take(100.0)
    assert bucket.wait_seconds(50.0) == 1.0


def test_keys_do_not_wait_for_each_other():
    buckets = Buckets(tokens_per_second=1.0, tokens_max=1)
    buckets.take("a", 0.0)
    assert buckets.wait_seconds("a", 0.0) == 1.0
    assert buckets.wait_seconds("b", 0.0) == 0.0


@pytest.mark.failure("A16", "L4")
def test_an_attacker_who_chooses_keys_does_not_fill_the_memory():
    buckets = Buckets(tokens_per_second=1.0, tokens_max=1, keys_max=100)
    for key in range(10_000):
        buckets.take("mine", 0.0)
        buckets.take(key, 0.0)
    assert len(buckets._buckets) == 100
    assert buckets.wait_seconds("mine", 0.0) > 1000, "who is in use is not forgotten"


# --- a slow start -------------------------------------------------------------------------------------------------


def rooms(slow: SlowStart, full: int, *moments: float) -> list[int]:
    return [slow.room(full, moment) for moment in moments]


@pytest.mark.req("CAP-5")
@pytest.mark.failure("H7")
def test_after_a_recovery_the_room_grows_from_little_to_full_within_its_time():
    slow = SlowStart(seconds=10, least=2)
    assert rooms(slow, 32, 0.0) == [32], "nothing was ever lost"
    slow.begin(100.0)
    assert rooms(slow, 32, 100.0, 102.5, 105.0, 107.5, 109.9, 110.0, 111.0) == [2, 4, 8, 16, 31, 32, 32]


@given(full=st.integers(0, 10_000), moments=st.lists(st.floats(0, 30), min_size=1), least=st.integers(1, 10))
@pytest.mark.req("CAP-5")
def test_it_never_shrinks_never_exceeds_the_whole_and_always_leaves_some(full, moments, least):
    slow = SlowStart(seconds=10, least=least)
    slow.begin(0.0)
    seen = rooms(slow, full, *sorted(moments))
    assert seen == sorted(seen)
    assert all(min(full, least) <= room <= full for room in seen)


@pytest.mark.req("SUP-2")
def test_a_hold_leaves_no_room_until_it_lapses_and_is_followed_by_a_slow_start():
    slow = SlowStart(seconds=10, least=2)
    slow.hold(30, 0.0)
    slow.hold(30, 20.0)  # said again
    assert rooms(slow, 32, 29.0, 31.0, 49.9) == [0, 0, 0]
    assert rooms(slow, 32, 50.0, 55.0, 60.0) == [2, 8, 32]


@pytest.mark.req("BND-9")
def test_of_a_window_so_many_go_within_any_of_its_seconds_and_one_that_is_named_again_counts_once():
    windows = Windows(60.0)
    assert [windows.enter("chat", name, most=2, now=now) for name, now in (("a", 0.0), ("b", 10.0), ("a", 11.0))] == [
        0
    ] * 3
    assert windows.enter("chat", "c", most=2, now=20.0) == 40.0
    assert windows.enter("other", "c", most=2, now=20.0) == 0.0
    assert windows.enter("chat", "c", most=2, now=60.0) == 0.0
    assert windows.enter("chat", "d", most=2, now=60.0) == 10.0
    assert windows.enter("chat", "d", most=1, now=60.0) == 60.0, "it was lowered meanwhile"


def test_windows_forget_the_key_that_was_unused_for_longest():
    windows = Windows(60.0, keys_max=2)
    for key in ("a", "b", "a", "c"):
        windows.enter(key, f"first of {key}", most=1, now=0.0)
    assert windows.enter("a", "next", most=1, now=1.0) == 59.0
    assert windows.enter("b", "next", most=1, now=1.0) == 0.0

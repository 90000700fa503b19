"""When to try again, and when to stop."""

from __future__ import annotations

import math
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.envelope import Progress, Reason, Status, TaskType
from rise.errors import StoreUnavailable, WaitsForDependency
from rise.retries import DEFAULT_CURVE_SECONDS, JITTER, RetryPolicy, uses_a_try
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import delivery

HEAD = delivery(1).head
NOW_MS = 1_762_587_000_000


def progress(attempts: int = 0, failing_since_ms: int | None = None) -> Progress:
    return Progress(status=Status.PROCESSING, attempts=attempts, failing_since_ms=failing_since_ms)


def verdict(policy: RetryPolicy, error: Exception, so_far: Progress, *, seed: int = 0) -> float | Reason:
    return policy.verdict(HEAD, so_far, error, now_ms=NOW_MS, clock=ManualClock(seed=seed))


@pytest.mark.req("QUE-4")
@given(st.integers(0, 2), st.integers())
def test_own_errors_follow_the_curve_within_a_fifth(attempts: int, seed: int):
    seconds = verdict(RetryPolicy(), ValueError("boom"), progress(attempts), seed=seed)
    assert isinstance(seconds, float)
    assert DEFAULT_CURVE_SECONDS[attempts] * (1 - JITTER) <= seconds <= DEFAULT_CURVE_SECONDS[attempts] * (1 + JITTER)


@pytest.mark.req("QUE-4")
def test_the_curve_is_what_is_promised_unless_said_otherwise():
    policy = RetryPolicy()
    assert (policy.curve_seconds, policy.retry_max, JITTER) == ((15.0, 60.0, 180.0), 3, 0.2)


@pytest.mark.req("QUE-4")
@pytest.mark.failure("H7")
def test_what_failed_together_does_not_come_back_together():
    clock = ManualClock(seed=1)
    policy = RetryPolicy()
    delays = {policy.verdict(HEAD, progress(), ValueError("boom"), now_ms=NOW_MS, clock=clock) for _ in range(100)}
    assert len(delays) == 100


@pytest.mark.req("QUE-4")
@pytest.mark.failure("E3")
@given(st.integers(0, 10), st.integers(0, 10))
def test_after_the_first_try_there_are_so_many_more(retry_max: int, attempts: int):
    policy = RetryPolicy(retry_max=retry_max, lane_block_max=timedelta(days=1))
    result = verdict(policy, ValueError("boom"), progress(attempts))
    assert (result is Reason.RETRIES_EXHAUSTED) == (attempts >= retry_max)


@pytest.mark.req("QUE-4")
def test_a_channel_and_a_caller_may_have_it_otherwise():
    policy = RetryPolicy(curve_seconds_for={"telegram": (1.0,)}, retry_max_for={"telegram": 7})
    assert policy.tries_left(HEAD, progress(3)) == 4
    assert policy.tries_left(msgspec.structs.replace(HEAD, retry_max=0), progress()) == 0
    assert policy.tries_left(msgspec.structs.replace(HEAD, channel="http"), progress(3)) == 0
    seconds = verdict(policy, ValueError("boom"), progress(5))
    assert isinstance(seconds, float)
    assert 0.8 <= seconds <= 1.2


@pytest.mark.req("QUE-4")
def test_a_type_of_task_may_have_it_otherwise_whatever_its_channel():
    policy = RetryPolicy(
        curve_seconds_for={"telegram": (1.0,), "message.send": (5.0,)},
        retry_max_for={"telegram": 7, "message.send": 1},
    )
    sending = msgspec.structs.replace(HEAD, task_type=TaskType.MESSAGE_SEND)
    assert (policy.retries_allowed(HEAD), policy.retries_allowed(sending)) == (7, 1)
    assert 4.0 <= policy.delay_seconds(sending, progress(), ManualClock()) <= 6.0


@pytest.mark.req("QUE-2")
def test_a_lane_is_not_blocked_longer_than_its_limit():
    policy = RetryPolicy(lane_block_max=timedelta(seconds=600), retry_max=100)
    assert isinstance(verdict(policy, ValueError("x"), progress(1, NOW_MS - 500_000)), float)
    assert verdict(policy, ValueError("x"), progress(1, NOW_MS - 560_000)) is Reason.LANE_BLOCKED


@pytest.mark.req("QUE-4")
@given(st.integers(0, 1000), st.floats(0, 1e6))
def test_a_dependency_never_uses_a_try_nor_gives_up(attempts: int, retry_after_seconds: float):
    for error in (
        WaitsForDependency("429", retry_after_seconds=retry_after_seconds),
        StoreUnavailable("down", retry_after_seconds=int(retry_after_seconds)),
        StoreUnavailable("down"),
    ):
        assert not uses_a_try(error)
        assert isinstance(verdict(RetryPolicy(), error, progress(attempts, 0)), float)
    assert uses_a_try(ValueError("boom"))


@pytest.mark.failure("E1")
@given(st.floats() | st.integers(-(10**400), 10**400))
def test_whatever_a_workflow_asks_for_the_wait_is_sane(retry_after_seconds: float):
    """Nought would be a busy loop; infinity could not even be written down."""
    error = WaitsForDependency("later", retry_after_seconds=retry_after_seconds)
    seconds = verdict(RetryPolicy(), error, progress())
    assert isinstance(seconds, float)
    assert 1.0 <= seconds <= 86_400 * (1 + JITTER)


@pytest.mark.req("QUE-4")
@given(st.integers(1, 86_400), st.integers())
def test_what_is_asked_for_is_waited_for_and_at_most_a_fifth_more(retry_after_seconds: int, seed: int):
    for error in (
        WaitsForDependency("429", retry_after_seconds=retry_after_seconds),
        StoreUnavailable("down", retry_after_seconds=retry_after_seconds),
    ):
        seconds = verdict(RetryPolicy(), error, progress(), seed=seed)
        assert isinstance(seconds, float)
        assert retry_after_seconds <= seconds <= retry_after_seconds * (1 + JITTER)


@pytest.mark.req("QUE-4")
@pytest.mark.parametrize(
    "error", [WaitsForDependency("later", retry_after_seconds=math.nan), StoreUnavailable("down")], ids=repr
)
def test_who_does_not_say_how_long_is_waited_for_as_long_as_before_a_second_try(error: Exception):
    seconds = verdict(RetryPolicy(), error, progress())
    assert isinstance(seconds, float)
    assert DEFAULT_CURVE_SECONDS[0] <= seconds <= DEFAULT_CURVE_SECONDS[0] * (1 + JITTER)


def test_an_empty_curve_is_the_default_one():
    seconds = verdict(RetryPolicy(curve_seconds=()), ValueError("boom"), progress())
    assert isinstance(seconds, float)
    assert 12 <= seconds <= 18

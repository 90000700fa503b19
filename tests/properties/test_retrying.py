"""When a task is tried again: never sooner, later or more often than was said."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise import errors
from rise.envelope import Progress, Reason, Status, TaskType
from rise.errors import Rejected, RiseError, Unavailable, WaitsForDependency
from rise.retries import JITTER, WAIT_SECONDS_MAX, WAIT_SECONDS_MIN, RetryPolicy, uses_a_try
from rise.settings import SECONDS_MAX
from rise.testing.clock import ManualClock
from rise.testing.conformance.queue import delivery

pytestmark = [pytest.mark.req("QUE-4")]

NOW_MS = 1_762_587_000_000
HEAD = delivery(1).head

CURVES = st.lists(st.floats(0.001, SECONDS_MAX), max_size=5)
NAMES = st.sampled_from(["telegram", "http", TaskType.MESSAGE_SEND])
POLICIES = st.builds(
    RetryPolicy,
    curve_seconds=CURVES,
    retry_max=st.integers(0, 100),
    lane_block_max=st.floats(0.001, SECONDS_MAX).map(lambda seconds: timedelta(seconds=seconds)),
    curve_seconds_for=st.dictionaries(NAMES, CURVES),
    retry_max_for=st.dictionaries(NAMES, st.integers(0, 100)),
)
HEADS = st.builds(
    lambda channel, task_type, retry_max: msgspec.structs.replace(
        HEAD, channel=channel, task_type=task_type, retry_max=retry_max
    ),
    st.sampled_from(["telegram", "http", "webchat"]),
    st.sampled_from(TaskType),
    st.none() | st.integers(0, 100),
)
PROGRESSES = st.builds(
    Progress,
    status=st.just(Status.PROCESSING),
    attempts=st.integers(0, 120),
    failing_since_ms=st.none() | st.integers(0, SECONDS_MAX * 1000).map(lambda ago: NOW_MS - ago),
)


def made(error: type[RiseError]) -> RiseError:
    """An error of the class, as it is raised somewhere."""
    if issubclass(error, errors.CapabilityClosed):
        return error("disk", "unavailable", "gone")
    if issubclass(error, errors.RateExceeded):
        return error("too many", retry_after_seconds=1)
    if issubclass(error, errors.RungEarly):
        return error(1.0)
    if issubclass(error, errors.ModelUnconfigured):
        return error("no", remedy="say where one is")
    return error(["no"]) if issubclass(error, errors.SettingsInvalid) else error("no")


def all_below(error: type[RiseError]) -> list[type[RiseError]]:
    return [error, *(below for child in error.__subclasses__() for below in all_below(child))]


OURS = st.sampled_from(all_below(RiseError)).map(made)
THEIRS = st.sampled_from([ValueError("x"), KeyError("x"), ZeroDivisionError(), TimeoutError(), RecursionError()])


@given(POLICIES, HEADS, PROGRESSES, THEIRS, st.integers(0, 1000))
@tried(1500)
def test_an_own_error_waits_within_a_fifth_of_the_curve_or_gives_up(policy, head, progress, error, seed):
    verdict = policy.verdict(head, progress, error, now_ms=NOW_MS, clock=ManualClock(seed=seed))
    curve, allowed = policy.curve_seconds, policy.retry_max
    for name in (head.channel, head.task_type):  # what comes later goes before
        curve, allowed = policy.curve_seconds_for.get(name, curve), policy.retry_max_for.get(name, allowed)
    curve = curve or RetryPolicy().curve_seconds
    allowed = allowed if head.retry_max is None else head.retry_max
    assert (verdict is Reason.RETRIES_EXHAUSTED) == (progress.attempts >= allowed)
    if isinstance(verdict, float):
        wanted = curve[min(progress.attempts, len(curve) - 1)]
        assert wanted * (1 - JITTER) <= verdict <= wanted * (1 + JITTER)


@pytest.mark.req("QUE-2")
@given(POLICIES, HEADS, PROGRESSES, THEIRS, st.integers(0, 1000))
@tried(1500)
def test_a_chat_is_held_up_no_longer_than_was_said(policy, head, progress, error, seed):
    verdict = policy.verdict(head, progress, error, now_ms=NOW_MS, clock=ManualClock(seed=seed))
    failing_seconds = 0.0 if progress.failing_since_ms is None else (NOW_MS - progress.failing_since_ms) / 1000
    if isinstance(verdict, float):
        assert failing_seconds + verdict <= policy.lane_block_max.total_seconds() + 0.001


@given(POLICIES, HEADS, PROGRESSES, OURS)
@tried(800)
def test_what_is_refused_for_what_it_says_is_parked_at_once_and_what_is_down_is_waited_for(
    policy, head, progress, error
):
    verdict = policy.verdict(head, progress, error, now_ms=NOW_MS, clock=ManualClock())
    if isinstance(error, Rejected):
        assert verdict is Reason.RETRIES_EXHAUSTED
    elif isinstance(error, Unavailable | WaitsForDependency):
        assert isinstance(verdict, float)
        assert WAIT_SECONDS_MIN <= verdict <= WAIT_SECONDS_MAX * (1 + JITTER)
    assert uses_a_try(error) == (not isinstance(error, Unavailable | WaitsForDependency))

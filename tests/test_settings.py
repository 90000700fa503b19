"""What could not work is refused at start, with everything that is wrong and what to do about it."""

from __future__ import annotations

import pytest

from rise.errors import SettingsInvalid
from rise.retries import DEFAULT_CURVE
from rise.runtime.processes import BEAT_SECONDS
from rise.settings import WORKER_STALL_SECONDS_MIN, Settings, load_settings


def settings(**named: object) -> Settings:
    return load_settings(_env_file=None, **named)


def refusal(**named: object) -> str:
    with pytest.raises(SettingsInvalid) as refused:
        settings(**named)
    [problem] = refused.value.problems
    return problem


@pytest.mark.failure("D5")
def test_a_stall_that_a_healthy_worker_would_be_killed_for_is_refused():
    assert WORKER_STALL_SECONDS_MIN >= 3 * BEAT_SECONDS
    for seconds in (0.2, 1.0, 2.9):
        problem = refusal(worker_stall_seconds=seconds)
        assert problem.startswith(f"RISE_WORKER_STALL_SECONDS is {seconds:g}")
        assert f"Set it to {WORKER_STALL_SECONDS_MIN:g} or more" in problem
    assert settings(worker_stall_seconds=WORKER_STALL_SECONDS_MIN).worker_stall_seconds == WORKER_STALL_SECONDS_MIN


@pytest.mark.parametrize(
    ("pauses", "lane_block"), [((700.0,), 600.0), ((15.0, 501.0), 600.0), (DEFAULT_CURVE, 200.0)], ids=str
)
def test_a_pause_that_outlasts_the_patience_of_its_chat_is_refused(pauses: tuple[float, ...], lane_block: float):
    problem = refusal(retry_seconds=pauses, lane_block_seconds_max=lane_block)
    assert f"up to {max(pauses) * 1.2:g} s" in problem
    assert f"Set RISE_LANE_BLOCK_SECONDS_MAX to more than {max(pauses) * 1.2:g}" in problem


def test_pauses_that_fit_into_the_patience_of_their_chat_are_taken():
    assert settings(retry_seconds=(500.0,)).retry_seconds == (500.0,)
    assert settings(retry_seconds=(700.0,), lane_block_seconds_max=841.0).retry_seconds == (700.0,)
    assert settings().retry_seconds == DEFAULT_CURVE

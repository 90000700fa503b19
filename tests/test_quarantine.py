"""A suspect gets a process to itself, as far as that keeps nobody waiting for long."""

from __future__ import annotations

import pytest

from rise.quarantine import PAUSE_SECONDS, ROOM_SECONDS, TRIES, Quarantine


@pytest.mark.req("QUE-3")
@pytest.mark.failure("E4")
def test_room_is_made_for_a_few_seconds_and_then_others_are_served():
    quarantine = Quarantine()
    assert not quarantine.refuses_others(0.0)
    quarantine.suspects_wait(0.0)
    assert quarantine.refuses_others(0.0)
    assert quarantine.refuses_others(ROOM_SECONDS - 0.01)
    assert not quarantine.refuses_others(ROOM_SECONDS)
    quarantine.suspects_wait(ROOM_SECONDS + 0.01)
    assert not quarantine.refuses_others(ROOM_SECONDS + PAUSE_SECONDS - 0.01)
    quarantine.suspects_wait(ROOM_SECONDS + PAUSE_SECONDS)
    assert quarantine.refuses_others(ROOM_SECONDS + PAUSE_SECONDS)


@pytest.mark.req("QUE-3")
def test_an_empty_worker_takes_a_suspect_at_once_and_another_after_some_tries():
    quarantine, now = Quarantine(), 0.0
    assert quarantine.takes_suspects(is_empty=True)
    for _ in range(TRIES):
        assert not quarantine.takes_suspects(is_empty=False)
        quarantine.suspects_wait(now)
        now += ROOM_SECONDS
        assert not quarantine.refuses_others(now)
        now += PAUSE_SECONDS
    assert quarantine.takes_suspects(is_empty=False)


@pytest.mark.req("QUE-3")
@pytest.mark.failure("E4")
def test_a_suspect_never_runs_beside_another():
    quarantine, now = Quarantine(), 0.0
    quarantine.suspect_starts(now)
    for _ in range(TRIES + 1):
        quarantine.suspects_wait(now)
        now += ROOM_SECONDS
        quarantine.refuses_others(now)
        now += PAUSE_SECONDS
    assert not quarantine.takes_suspects(is_empty=False)
    quarantine.suspect_ends()
    assert quarantine.takes_suspects(is_empty=True)


@pytest.mark.req("QUE-3")
def test_a_suspect_is_alone_until_it_ends_or_has_shown_that_it_does_not_kill_at_once():
    quarantine = Quarantine()
    quarantine.suspect_starts(10.0)
    assert quarantine.refuses_others(10.0)
    assert not quarantine.refuses_others(10.0 + ROOM_SECONDS)
    quarantine.suspect_starts(20.0)
    quarantine.suspect_ends()
    assert not quarantine.refuses_others(20.0)

"""Moments as people say them: whatever zone and date, one instant, and what is odd about it is decided."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.envelope import FOLLOW_UP_AHEAD_MAX
from rise.errors import PayloadInvalid
from rise.follow_ups.moments import instant_in, instant_of

NOW = datetime(2026, 11, 29, 8, tzinfo=UTC)
ZONES = st.sampled_from(
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns", "Africa/Cairo",
     "Pacific/Apia", "Antarctica/Troll", "Asia/Tokyo", "UTC"]
)  # fmt: skip
LOCAL = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2031, 1, 1))  # noqa: DTZ001 - that is the case


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU7")
@given(local=LOCAL, name=ZONES)
def test_a_local_time_is_the_instant_at_which_the_zones_clocks_first_show_it_or_as_much_later_as_they_skip(
    local: datetime, name: str
):
    zone = ZoneInfo(name)
    instant = instant_of(local.isoformat(), name, now=NOW)
    shown = instant.astimezone(zone).replace(tzinfo=None)
    if shown == local:
        # The first: an hour, or half of one, before there is no other instant that shows it.
        earlier = [instant - timedelta(minutes=minutes) for minutes in (30, 60, 120)]
        assert all(other.astimezone(zone).replace(tzinfo=None) != local for other in earlier)
    else:
        before, after = zone.utcoffset(local.replace(fold=0)), zone.utcoffset(local.replace(fold=1))
        assert before is not None
        assert after is not None
        assert shown - local == abs(after - before), "the clocks skip it"


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU7")
@given(local=LOCAL, minutes=st.integers(-14 * 60, 14 * 60), name=st.none() | ZONES)
def test_an_offset_that_is_written_decides(local: datetime, minutes: int, name: str | None):
    offset = timedelta(minutes=minutes)
    sign, size = ("-", -minutes) if minutes < 0 else ("+", minutes)
    at = f"{local.isoformat(timespec='milliseconds')}{sign}{size // 60:02}:{size % 60:02}"
    expected = local.replace(microsecond=local.microsecond // 1000 * 1000, tzinfo=UTC) - offset
    assert instant_of(at, name, now=NOW) == expected


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU7")
@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2027-03-28T02:30:00", "2027-03-28T01:30:00+00:00"),  # skipped: 03:30 by the new offset
        ("2027-10-31T02:30:00", "2027-10-31T00:30:00+00:00"),  # twice: the first
        ("2026-12-01T09:00", "2026-12-01T08:00:00+00:00"),
        ("2026-12-01T09:00:00Z", "2026-12-01T09:00:00+00:00"),
        ("2020-01-01T00:00:00", "2019-12-31T23:00:00+00:00"),
    ],
)
def test_in_berlin(at: str, expected: str):
    assert instant_of(at, "Europe/Berlin", now=NOW) == datetime.fromisoformat(expected)


@pytest.mark.req("TMP-3")
@pytest.mark.parametrize(
    ("at", "zone", "field"),
    [
        ("2026-12-01T09:00:00", None, "timeZone"),
        ("2026-12-01T09:00:00", "Europe/Atlantis", "timeZone"),
        ("2026-12-01T09:00:00", "../../etc/passwd", "timeZone"),
        ("2026-12-01T09:00:00", "/etc/localtime", "timeZone"),
        ("2026-12-01T09:00:00", "", "timeZone"),
        ("2026-12-01T09:00:00", "x" * 500, "timeZone"),
        ("2026-12-01T09:00:00", "Europe", "timeZone"),
        ("2026-12-01T09:00:00", "localtime", "timeZone"),
        ("2026-12-01T09:00:00", "posixrules", "timeZone"),
        ("2026-12-01T09:00:00", "posix/Europe/Berlin", "timeZone"),
        ("2026-12-01T09:00:00", "right/Europe/Berlin", "timeZone"),
        ("2026-12-01T09:00:00+01:00", "right/Europe/Berlin", "timeZone"),
        ("2026-12-01", "UTC", "at"),
        ("tomorrow", "UTC", "at"),
        ("", "UTC", "at"),
        ("9999-12-31T23:59:59-14:00", None, "at"),
        ("0001-01-01T00:00:00+14:00", None, "at"),
        ("1969-12-31T23:59:59Z", None, "at"),
        ("2033-01-01T00:00:00Z", None, "at"),
    ],
)
def test_what_is_no_moment_is_refused_with_its_field(at: str, zone: str | None, field: str):
    with pytest.raises(PayloadInvalid) as refused:
        instant_of(at, zone, now=NOW)
    assert refused.value.field == field


@pytest.mark.req("TMP-3")
@given(text=st.text(max_size=60), zone=st.none() | st.text(max_size=70))
def test_whatever_is_said_it_is_an_instant_or_refused(text: str, zone: str | None):
    try:
        assert instant_of(text, zone, now=NOW) <= NOW + FOLLOW_UP_AHEAD_MAX
    except PayloadInvalid as error:
        assert error.field in ("at", "timeZone")


@pytest.mark.req("TMP-3")
@given(seconds=st.floats(allow_nan=False, allow_infinity=False))
def test_seconds_are_from_none_to_five_years(seconds: float):
    try:
        assert NOW <= instant_in(seconds, now=NOW) <= NOW + FOLLOW_UP_AHEAD_MAX
    except PayloadInvalid as error:
        assert error.field == "inSeconds"
        assert not 0 <= seconds <= FOLLOW_UP_AHEAD_MAX.total_seconds()

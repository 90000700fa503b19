"""When: a moment as people say it, as an instant.

A local time without an offset is read by its time zone. One that the clocks skip is read with the offset before the
change, so that it comes as much later as they skip; of one that they show twice the first is meant.

Refuses: a local time without a zone, zones that nobody knows or each host in its own way, and moments further
away than five years.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rise.clock import is_hosts_own
from rise.envelope import FOLLOW_UP_AHEAD_MAX
from rise.errors import PayloadInvalid

AT_CHARS_MAX: Final = 40
ZONE_CHARS_MAX: Final = 64


def instant_of(at: str, time_zone: str | None, *, now: datetime) -> datetime:
    """The instant, in UTC. One that is past is now's business. Raises `PayloadInvalid` with the field."""
    zone = None if time_zone is None else zone_named(time_zone)
    try:
        moment = datetime.fromisoformat(at) if len(at) <= AT_CHARS_MAX else None
    except ValueError:
        moment = None
    if moment is None or "T" not in at.upper().replace(" ", "T"):
        raise PayloadInvalid("at is a date and a time, as 2026-12-01T09:00:00+02:00", field="at")
    if moment.tzinfo is None and zone is None:
        raise PayloadInvalid("at has no offset: add one, or say timeZone, as Europe/Berlin", field="timeZone")
    try:
        # An offset that is written decides. `fold=0`: as the page says above of gaps and of what is shown twice.
        instant = (moment if moment.tzinfo else moment.replace(tzinfo=zone, fold=0)).astimezone(UTC)
    except OverflowError as error:
        raise PayloadInvalid("at is out of range", field="at") from error
    if instant.year < 1970 or instant > now + FOLLOW_UP_AHEAD_MAX:
        raise PayloadInvalid("at is from the year 1970 to five years ahead", field="at")
    return instant


def instant_in(seconds: float, *, now: datetime) -> datetime:
    """Raises `PayloadInvalid`."""
    if not 0 <= seconds <= FOLLOW_UP_AHEAD_MAX.total_seconds():
        raise PayloadInvalid("inSeconds is from 0 to five years", field="inSeconds")
    return now.astimezone(UTC) + timedelta(seconds=seconds)


def zone_named(name: str) -> ZoneInfo:
    """Raises `PayloadInvalid`."""
    try:
        if len(name) <= ZONE_CHARS_MAX and not is_hosts_own(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise PayloadInvalid("timeZone is the IANA name of a time zone, as Europe/Berlin", field="timeZone")

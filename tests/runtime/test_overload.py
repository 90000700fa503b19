"""Too much is refused or queued, as configured, and both end by themselves without switching to and fro."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from rise.admission import Admission
from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.errors import Busy
from rise.runtime.alerts import AlertMessage, Alerts
from rise.runtime.overload import ADMISSION, MEGABYTE, Load, Overload, OverloadLimits
from rise.testing.clock import ManualClock

GIGABYTE = 1000 * MEGABYTE


class Stage:
    def __init__(self, **limits: Any) -> None:
        clock = ManualClock()
        self.admission = Admission()
        self.capabilities = CapabilityRegistry(clock)
        self.capabilities.set("disk", CapabilityStatus.AVAILABLE)
        self.told: list[AlertMessage] = []
        self.paused = 0
        self.overload = Overload(
            OverloadLimits(**limits),
            admission=self.admission,
            capabilities=self.capabilities,
            alerts=Alerts(clock, self.told.append, 0.0),
            pause_workers=self._pause,
            anonymous=("webchat",),
        )

    def _pause(self) -> None:
        self.paused += 1

    def takes(self, open_count: int = 0, *, replying: int = 0, free: int | None = None, size: int = 0) -> bool:
        """Whether a message is taken, with that much to do."""
        self.overload.judge(Load(open_count, replying, free, size))
        taken = False
        with suppress(Busy), self.admission.entry():
            taken = True
        # The door and what is said of it are the same.
        assert taken == (self.capabilities.not_accepting() is None)
        return taken

    @property
    def raised(self) -> list[tuple[str, str]]:
        return [(message.alert, message.state) for message in self.told]


@pytest.mark.req("SUP-2", "SEC-1")
@pytest.mark.parametrize("mode", ["refuse", "queue-only"])
def test_what_strangers_left_behind_closes_their_channel_and_no_other(mode: str) -> None:
    stage = Stage(backlog_warn=50, backlog_max=100, mode=mode)
    for suspended, is_taken in ((100, True), (101, False), (81, False), (80, True)):
        stage.overload.judge(Load(10, 0, suspended_anonymous_count=suspended))
        taken = False
        with suppress(Busy), stage.admission.entry("webchat"):
            taken = True
        assert taken is is_taken, suspended
        with stage.admission.entry("telegram"):
            pass
        assert stage.capabilities.not_accepting() is None
    assert stage.raised == [("overload", "raised"), ("overload", "resolved")]


@pytest.mark.req("SUP-2")
@pytest.mark.failure("C25")
def test_over_the_limit_it_refuses_until_a_fifth_less_is_open() -> None:
    stage = Stage(backlog_warn=50, backlog_max=100)
    assert [stage.takes(count) for count in (100, 101, 100, 90, 81, 80, 100)] == [
        True, False, False, False, False, True, True,
    ]  # fmt: skip


@pytest.mark.req("SUP-2", "SUP-3")
def test_over_the_warning_it_takes_them_and_says_so() -> None:
    stage = Stage(backlog_warn=50, backlog_max=100)
    assert [stage.takes(count) for count in (50, 51, 45, 40)] == [True] * 4
    assert stage.raised == [("backlog", "raised"), ("backlog", "resolved")]


@pytest.mark.req("SUP-2", "SUP-3")
@pytest.mark.parametrize(
    ("mode", "load", "means"),
    [
        ("refuse", Load(101, 0), CONSEQUENCES[ADMISSION]),
        ("queue-only", Load(101, 0), "all of them are kept, and answered later"),
        ("queue-only", Load(0, 0, suspended_anonymous_count=101), "senders of webchat are told to come again; all"),
    ],
    ids=["refused", "queued", "closed to strangers"],
)
def test_what_too_much_means_is_told_with_it(mode: str, load: Load, means: str) -> None:
    stage = Stage(backlog_max=100, mode=mode)
    stage.overload.judge(load)
    [told] = stage.told
    assert told.alert == "overload"
    assert told.details["consequence"].startswith(means)


@pytest.mark.req("SUP-2")
def test_a_refusal_says_why_and_when_to_come_back() -> None:
    stage = Stage(backlog_warn=50, backlog_max=100)
    assert not stage.takes(101)
    with pytest.raises(Busy) as refusal, stage.admission.entry():
        pass
    assert refusal.value.public_message == "101 messages are open, and RISE_BACKLOG_MAX is 100"
    assert refusal.value.retry_after_seconds == 30
    closed = stage.capabilities.not_accepting()
    assert closed is not None
    assert closed.name == ADMISSION


@pytest.mark.req("SUP-2")
def test_without_a_limit_nothing_is_too_much() -> None:
    assert Stage(backlog_warn=0, backlog_max=0).takes(10_000_000)


@pytest.mark.req("SUP-2")
def test_queue_only_takes_all_and_pauses_the_workers_while_answers_pile_up() -> None:
    stage = Stage(backlog_warn=50, backlog_max=100, mode="queue-only")
    assert stage.takes(500, replying=10), "pending work is run: nothing else would make it less"
    assert stage.paused == 0
    state = stage.capabilities.get(ADMISSION)
    assert state is not None
    assert state.status is CapabilityStatus.DEGRADED
    for replying in (101, 99, 81):
        assert stage.takes(500, replying=replying)
    assert stage.paused == 3, "said again and again, so that it lapses when nobody says it"
    assert stage.takes(500, replying=80)
    assert stage.paused == 3


@pytest.mark.req("SUP-2")
@pytest.mark.failure("C5")
@pytest.mark.parametrize("mode", ["refuse", "queue-only"])
def test_a_disk_that_is_almost_full_refuses_in_either_mode(mode: str) -> None:
    stage = Stage(mode=mode, disk_free_warn_bytes=512 * MEGABYTE, disk_free_min_bytes=64 * MEGABYTE)
    frees = (600, 500, 63, 70, 79, 81, 700)
    taken = [stage.takes(free=free * MEGABYTE, size=100 * GIGABYTE) for free in frees]
    assert taken == [True, True, False, False, False, True, True]
    assert stage.raised == [
        ("disk_space", "raised"),
        ("overload", "raised"),
        ("overload", "resolved"),
        ("disk_space", "resolved"),
    ]


@pytest.mark.req("SUP-2")
def test_on_a_small_disk_the_thresholds_are_small() -> None:
    stage = Stage()
    assert stage.takes(free=MEGABYTE, size=8 * MEGABYTE)
    assert not stage.takes(free=MEGABYTE // 4, size=8 * MEGABYTE)


@pytest.mark.req("SUP-2")
def test_a_disk_that_cannot_be_asked_refuses_nothing() -> None:
    assert Stage().takes(free=None)

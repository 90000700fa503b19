"""What Rise can do now is said when it changes, and only a loss is a warning."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from rise.capabilities import (
    CONSEQUENCES,
    REMEDIES,
    Acceptance,
    CapabilityRegistry,
    CapabilityState,
    CapabilityStatus,
    meaning_of,
)
from rise.errors import CapabilityClosed, StoreUnavailable
from rise.telemetry import capability_available
from rise.testing.clock import ManualClock

AVAILABLE, DEGRADED, UNAVAILABLE = CapabilityStatus


class Dependency:
    """Answers probes as it is told."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.asked = 0

    async def check(self) -> tuple[CapabilityStatus, str]:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return AVAILABLE, "answers"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def capabilities(clock: ManualClock) -> CapabilityRegistry:
    return CapabilityRegistry(clock)


def known(capabilities: CapabilityRegistry, name: str) -> CapabilityState:
    state = capabilities.get(name)
    assert state is not None
    return state


# --- what is known ----------------------------------------------------------------------------------------------


@pytest.mark.req("CAP-5", "CAP-7")
def test_a_change_is_logged_once_and_a_recovery_is_no_warning(capabilities: CapabilityRegistry) -> None:
    with capture_logs() as logged:
        for status in ("available", "degraded", "available", "available", "unavailable"):
            capabilities.set("disk", CapabilityStatus(status), "said")
    assert [(entry["event"], entry.get("before"), entry["status"], entry["log_level"]) for entry in logged] == [
        ("startup.capability.disk", None, "available", "info"),
        ("capability.state_changed", "available", "degraded", "warning"),
        ("capability.state_changed", "degraded", "available", "info"),
        ("capability.state_changed", "available", "unavailable", "warning"),
    ]
    assert (logged[-1]["consequence"], logged[-1]["remedy"]) == (CONSEQUENCES["disk"], REMEDIES["disk"])


@pytest.mark.req("CAP-5", "CAP-7")
@pytest.mark.failure("I14")
@pytest.mark.parametrize("status", [DEGRADED, UNAVAILABLE])
def test_what_is_away_from_the_start_is_a_warning_that_says_what_it_means_and_what_helps(
    capabilities: CapabilityRegistry, status: CapabilityStatus
) -> None:
    with capture_logs() as logged:
        capabilities.set("redis", status, "it cannot be reached")
    [line] = logged
    assert (line["event"], line["status"], line["log_level"]) == ("startup.capability.redis", status, "warning")
    assert (line["consequence"], line["remedy"]) == (CONSEQUENCES["redis"], REMEDIES["redis"])


@pytest.mark.req("CAP-5")
@pytest.mark.parametrize("name", ["worker", "telegram_webhook", "telegram_webhook_7"])
def test_what_is_only_being_started_is_no_warning_and_is_one_when_it_does_not(
    capabilities: CapabilityRegistry, name: str
) -> None:
    with capture_logs() as logged:
        capabilities.begin(name, "starting")
        for status in (AVAILABLE, DEGRADED):
            capabilities.set(name, status, "said")
    assert [entry["log_level"] for entry in logged] == ["info", "info", "warning"]


@pytest.mark.req("CAP-5")
def test_what_a_command_meets_is_told_by_the_command_and_not_logged(capabilities: CapabilityRegistry) -> None:
    capabilities.is_quiet = True
    with capture_logs() as logged:
        capabilities.set("redis", UNAVAILABLE, "it cannot be reached")
    assert logged == []


@pytest.mark.req("CAP-6")
def test_what_is_not_there_is_shown_with_what_that_means_and_what_helps(capabilities: CapabilityRegistry) -> None:
    assert CONSEQUENCES.keys() == REMEDIES.keys()
    capabilities.set("disk", AVAILABLE)
    capabilities.set("redis", DEGRADED, "it evicts")
    capabilities.set("somebody's", UNAVAILABLE)
    capabilities.set("telegram_webhook_123456", UNAVAILABLE, "of another bot than the default")
    shown = capabilities.shown()
    assert shown["telegram_webhook_123456"]["remedy"] == REMEDIES["telegram_webhook"]
    assert meaning_of("redis_of_billing") == {}, "somebody's own"
    assert shown["disk"].keys() == {"status", "checked_at", "detail"}
    assert (shown["redis"]["consequence"], shown["redis"]["remedy"]) == (CONSEQUENCES["redis"], REMEDIES["redis"])
    assert "remedy" not in shown["somebody's"]


@pytest.mark.req("CAP-6")
async def test_an_error_that_brings_its_own_remedy_is_shown_and_logged_with_that(
    capabilities: CapabilityRegistry,
) -> None:
    async def vanished() -> tuple[CapabilityStatus, str]:
        raise StoreUnavailable("the file is gone", remedy="put it back")

    capabilities.set("disk", AVAILABLE)
    with capture_logs() as logged:
        capabilities.set("disk", UNAVAILABLE, "the file is gone", "put it back")
    assert (logged[0]["consequence"], logged[0]["remedy"]) == (CONSEQUENCES["disk"], "put it back")
    assert capabilities.shown()["disk"]["remedy"] == "put it back"
    capabilities.set("disk", UNAVAILABLE, "the disk is full")
    assert capabilities.shown()["disk"]["remedy"] == REMEDIES["disk"]
    capabilities.register_capability_probe("disk", vanished, hard=True)
    assert (await capabilities.probe("disk")).remedy == "put it back"


@pytest.mark.req("CAP-7")
def test_each_capability_is_a_metric(capabilities: CapabilityRegistry) -> None:
    for status, worth in ((AVAILABLE, 1.0), (DEGRADED, 0.5), (UNAVAILABLE, 0.0)):
        capabilities.set("measured", status)
        assert capability_available.labels("measured")._value.get() == worth


@pytest.mark.req("CAP-1", "CAP-3")
def test_what_needs_a_capability_is_refused_unless_it_is_there(capabilities: CapabilityRegistry) -> None:
    capabilities.require("mongo")  # not configured: closes nothing
    capabilities.set("mongo", AVAILABLE)
    capabilities.require("mongo")
    capabilities.set("mongo", DEGRADED, "slow")
    capabilities.require("mongo", hard=False)
    with pytest.raises(CapabilityClosed) as refused:
        capabilities.require("mongo")
    assert (refused.value.name, refused.value.status, refused.value.detail) == ("mongo", "degraded", "slow")
    assert refused.value.retry_after_seconds == 30
    capabilities.set("mongo", UNAVAILABLE, "gone")
    with pytest.raises(CapabilityClosed):
        capabilities.require("mongo", hard=False)


@pytest.mark.req("CAP-1")
@pytest.mark.failure("I13")
def test_a_listener_that_raises_changes_nothing_and_keeps_nobody_from_hearing(
    capabilities: CapabilityRegistry,
) -> None:
    heard: list[tuple[str, str]] = []

    def broken(name: str, state: CapabilityState) -> None:
        raise ZeroDivisionError

    capabilities.on_change(broken)
    stop = capabilities.on_change(lambda name, state: heard.append((name, state.status)))
    for status in (AVAILABLE, AVAILABLE, DEGRADED):
        capabilities.set("redis", status)
    stop()
    capabilities.set("redis", AVAILABLE)
    assert heard == [("redis", "available"), ("redis", "degraded")], "a repetition is no news"
    assert known(capabilities, "redis").status is AVAILABLE


# --- whether a message can be accepted --------------------------------------------------------------------------


@pytest.mark.req("CAP-6", "CPY-2")
@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (["disk", "redis", "rabbitmq"], None),
        (["disk", "rabbitmq"], None),
        (["redis", "rabbitmq"], None),
        (["disk"], "redis"),
        (["redis"], "disk"),
        ([], "disk"),
    ],
)
def test_with_two_copies_wanted_any_two_will_do(
    capabilities: CapabilityRegistry, there: list[str], lacking: str | None
) -> None:
    copies = ("disk", "redis", "rabbitmq")
    capabilities.acceptance = Acceptance(copies, copies_min=2, synced=("disk", "rabbitmq"))
    for name in copies:
        capabilities.set(name, AVAILABLE if name in there else UNAVAILABLE, "said")
    closed = capabilities.not_accepting()
    assert (closed.name if closed else None) == lacking
    assert (capabilities.overall() == "unavailable") == (lacking is not None)


@pytest.mark.req("CAP-6", "CPY-2")
def test_copies_of_which_none_is_synced_are_not_enough(capabilities: CapabilityRegistry) -> None:
    capabilities.acceptance = Acceptance(("disk", "redis"), copies_min=1, synced=("disk",))
    capabilities.set("redis", AVAILABLE)
    closed = capabilities.not_accepting()
    assert closed is not None
    assert (closed.name, closed.detail) == ("disk", "not known yet")


@pytest.mark.req("CAP-6", "SUP-2")
def test_a_door_that_is_shut_closes_acceptance_whatever_else_there_is(capabilities: CapabilityRegistry) -> None:
    capabilities.set("disk", AVAILABLE)
    assert capabilities.not_accepting() is None
    capabilities.set("admission", UNAVAILABLE, "too much is open")
    closed = capabilities.not_accepting()
    assert closed is not None
    assert closed.name == "admission"


# --- probes -----------------------------------------------------------------------------------------------------


@pytest.mark.req("CAP-2")
async def test_probes_are_made_at_once_and_each_has_its_own_time(capabilities: CapabilityRegistry) -> None:
    both_asked = asyncio.Barrier(2)

    async def together() -> tuple[CapabilityStatus, str]:
        await both_asked.wait()
        return AVAILABLE, "answers"

    async def hang() -> tuple[CapabilityStatus, str]:
        await asyncio.Event().wait()
        raise AssertionError

    capabilities.register_capability_probe("redis", together, hard=True)
    capabilities.register_capability_probe("mongo", together, hard=True)
    capabilities.register_capability_probe("llm", hang, timeout_seconds=0.01)
    await capabilities.probe_due()
    assert {name: state.status for name, state in capabilities.all().items()} == {
        "redis": AVAILABLE,
        "mongo": AVAILABLE,
        "llm": DEGRADED,
    }
    assert known(capabilities, "llm").detail == "no answer within 0.01 s"


@pytest.mark.req("CAP-2")
@pytest.mark.failure("I12")
async def test_a_probe_that_ignores_its_end_holds_up_nobody_and_its_age_is_shown(
    capabilities: CapabilityRegistry, clock: ManualClock
) -> None:
    let_go, asked = asyncio.Event(), 0

    async def stubborn() -> tuple[CapabilityStatus, str]:
        nonlocal asked
        asked += 1
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return AVAILABLE, "at last"

    capabilities.register_capability_probe("redis", stubborn, hard=True, timeout_seconds=0.01)
    await capabilities.probe("redis")
    clock.advance(40)
    assert (await capabilities.probe("redis")).status is UNAVAILABLE
    assert known(capabilities, "redis").detail == "the probe hangs, for 40 s now"
    assert asked == 1, "it is not asked again as long as it hangs"
    let_go.set()


@pytest.mark.req("CAP-2")
async def test_a_failed_probe_closes_what_needs_it_only_if_that_cannot_do_without(
    capabilities: CapabilityRegistry,
) -> None:
    dependency = Dependency()
    dependency.trouble = OSError("refused\nby the other side")
    capabilities.register_capability_probe("mongo", dependency.check, hard=True)
    capabilities.register_capability_probe("telegram_webhook", dependency.check)
    await capabilities.probe_due()
    assert known(capabilities, "mongo").status is UNAVAILABLE
    assert known(capabilities, "telegram_webhook").status is DEGRADED
    assert "\n" not in known(capabilities, "mongo").detail, "one line"


@pytest.mark.req("CAP-5")
@pytest.mark.failure("I11")
async def test_one_bad_probe_takes_it_down_and_three_good_ones_in_a_row_bring_it_back(
    capabilities: CapabilityRegistry, clock: ManualClock
) -> None:
    redis, changes = Dependency(), []
    capabilities.register_capability_probe("redis", redis.check, hard=True)
    await capabilities.probe("redis")
    capabilities.on_change(lambda name, state: changes.append(state.status))
    for bad in (True, False, False, True, False, True, False, False):  # it flaps
        redis.trouble = OSError("gone") if bad else None
        await capabilities.probe("redis")
    assert changes == [UNAVAILABLE]
    assert known(capabilities, "redis").detail == "gone; well again, 2 of 3 times"
    await capabilities.probe("redis")
    assert changes == [UNAVAILABLE, AVAILABLE]


@pytest.mark.req("CAP-5")
async def test_what_is_not_well_is_asked_again_when_its_answer_has_come_of_age(
    capabilities: CapabilityRegistry, clock: ManualClock
) -> None:
    redis = Dependency()
    redis.trouble = OSError("gone")
    capabilities.register_capability_probe("redis", redis.check, hard=True, ttl_seconds=10)
    await capabilities.probe_due()
    clock.advance(9)
    await capabilities.probe_due()
    assert redis.asked == 1
    assert capabilities.retry_after_seconds("redis") == 1 + 2, "when it is asked, and twice more"
    redis.trouble = None
    for _ in range(3):  # a second apart, once it answers
        clock.advance(1)
        await capabilities.probe_due()
    assert known(capabilities, "redis").status is AVAILABLE
    assert redis.asked == 4


@pytest.mark.req("CAP-1")
async def test_who_reports_by_itself_is_believed_at_once(capabilities: CapabilityRegistry) -> None:
    disk = Dependency()
    capabilities.register_capability_probe("disk", disk.check, hard=True)
    capabilities.set("disk", UNAVAILABLE, "full")
    capabilities.set("disk", AVAILABLE, "written")
    assert known(capabilities, "disk").status is AVAILABLE
    assert disk.asked == 0


async def test_two_who_ask_at_once_get_one_answer(capabilities: CapabilityRegistry) -> None:
    redis = Dependency()
    capabilities.register_capability_probe("redis", redis.check)
    await asyncio.gather(*(capabilities.probe("redis") for _ in range(5)))
    assert redis.asked == 1


@pytest.mark.req("CAP-7", "OPS-3")
def test_since_when_it_is_so_is_known_however_often_it_is_said(
    capabilities: CapabilityRegistry, clock: ManualClock
) -> None:
    capabilities.set("disk", AVAILABLE)
    began = clock.now()
    clock.advance(60)
    capabilities.set("disk", AVAILABLE, "written and synced")
    assert capabilities.all()["disk"].since == began
    capabilities.set("disk", UNAVAILABLE, "full")
    assert capabilities.all()["disk"].since == clock.now()

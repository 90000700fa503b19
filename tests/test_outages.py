"""Whether a platform answers, and what is risked to find out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rise.channels.port import NotSent, Refused, Succeeded, Uncertain
from rise.outages import ASKED_AGAIN_SECONDS, IDLE_SECONDS, TRIAL_SECONDS, TRIED_AGAIN_SECONDS, Outages
from rise.testing.clock import ManualClock

BOT = ("telegram", "7")
DOUBT = Uncertain("502")


class Platform:
    """Answers as long as there is no trouble."""

    now: str | None = None
    asked = 0

    async def trouble(self, account: str) -> str | None:
        self.asked += 1
        if self.now == "a bug":
            raise ValueError("of ours")
        return self.now


class Sender:
    """What a sender asks and hears."""

    def __init__(self) -> None:
        self.clock, self.platform = ManualClock(), Platform()
        self.heard: list[str | None] = []
        self.outages = Outages(
            {"telegram": self.platform},  # type: ignore[dict-item]
            self.clock,
            on_trouble=lambda account, trouble: self.heard.append(trouble),
            on_answer=lambda: None,
        )

    async def call(self, outcome: Any, *, seconds: float = 0.0) -> None:
        began = self.clock.monotonic()
        await self.pass_time(seconds)
        self.outages.note(BOT, outcome, began)
        await self.pass_time(0)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    def may_go(self, *, is_urgent: bool = False, is_repetition: bool = False) -> bool:
        return self.outages.may_go(BOT, is_urgent=is_urgent, is_repetition=is_repetition)


@pytest.fixture
async def sender():
    sender = Sender()
    yield sender
    await sender.outages.stop()


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4", "G6")
async def test_nothing_goes_until_the_platform_answers_and_then_one_until_that_is_answered(sender):
    sender.platform.now = "503"
    await sender.call(DOUBT)
    assert not sender.may_go() and not sender.may_go(is_urgent=True)
    assert sender.outages.silent() == [BOT]
    for _ in range(20):
        await sender.pass_time(ASKED_AGAIN_SECONDS[-1] * 1.2)
    assert sender.platform.asked == 21
    sender.platform.now = None
    await sender.pass_time(ASKED_AGAIN_SECONDS[-1] * 1.2)
    assert sender.may_go() and not sender.may_go() and sender.may_go(is_urgent=True)
    assert (sender.outages.silent(), sender.outages.waiting()) == ([], [BOT])
    await sender.call(Succeeded("1"))
    assert sender.may_go() and sender.may_go()
    assert [trouble is None for trouble in sender.heard] == [False, True], "told once, and once that it is over"


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_a_doubt_while_others_are_answered_is_no_outage(sender):
    began = sender.clock.monotonic()
    await sender.pass_time(1)
    await sender.call(Refused("400"))
    sender.outages.note(BOT, DOUBT, began)
    assert sender.may_go() and sender.may_go()
    await sender.call(NotSent("refused"))
    assert sender.may_go() and sender.platform.asked == 0, "what was not sent is tried again as it is"


@pytest.mark.req("OUT-1", "CAP-5")
@pytest.mark.failure("G6")
async def test_a_single_doubt_is_not_told_and_a_trial_that_fails_is(sender):
    await sender.call(DOUBT)
    assert sender.heard == [] and sender.may_go()
    await sender.call(DOUBT)
    assert sender.heard == ["calls fail: 502"]
    assert not sender.may_go()
    failed = 1
    while failed < 10:
        assert sender.may_go(is_urgent=True)
        await sender.pass_time(TRIED_AGAIN_SECONDS[min(failed, len(TRIED_AGAIN_SECONDS)) - 1] * 1.2)
        assert sender.may_go()
        await sender.call(DOUBT if failed % 2 else NotSent("reset"))
        assert not sender.may_go(), "further and further apart"
        failed += 1
    assert len(sender.heard) == 1


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_a_trial_that_hangs_is_not_the_last_and_what_was_out_before_it_says_nothing(sender):
    began = sender.clock.monotonic()
    await sender.pass_time(1)
    await sender.call(DOUBT)
    assert sender.may_go()
    sender.outages.note(BOT, DOUBT, began)
    assert sender.heard == []
    await sender.pass_time(TRIAL_SECONDS - 0.1)
    assert not sender.may_go()
    await sender.pass_time(0.2)
    assert sender.may_go()


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G3")
async def test_who_has_heard_nothing_yet_asks_before_anything_is_repeated(sender):
    assert sender.may_go() and sender.platform.asked == 0
    assert not sender.may_go(is_repetition=True)
    await sender.pass_time(0)
    assert sender.platform.asked == 1 and sender.may_go(is_repetition=True)
    await sender.call(Succeeded("1"))
    assert sender.may_go(is_repetition=True) and sender.platform.asked == 1


@pytest.mark.req("CAP-5")
async def test_where_there_is_nothing_to_try_it_is_not_said_for_ever(sender):
    await sender.call(DOUBT)
    assert sender.may_go()
    await sender.call(DOUBT)
    await sender.pass_time(IDLE_SECONDS)
    assert sender.outages.silent() == [] and len(sender.heard) == 1
    await sender.pass_time(5)
    assert sender.outages.silent() == [] and sender.heard[1:] == [None]


@pytest.mark.req("OUT-1")
async def test_our_own_mistake_in_asking_is_asked_again(sender):
    sender.platform.now = "a bug"
    await sender.call(DOUBT)
    assert not sender.may_go() and len(sender.heard) == 1
    sender.platform.now = None
    await sender.pass_time(ASKED_AGAIN_SECONDS[0] * 1.2)
    assert sender.may_go()


@pytest.mark.req("CAP-5", "OUT-2")
@pytest.mark.failure("G8")
async def test_who_does_not_send_any_more_asks_no_more_and_takes_back_what_it_said(sender):
    sender.platform.now = "503"
    await sender.call(DOUBT)
    sender.outages.forget()
    await sender.pass_time(100)
    assert sender.heard[1:] == [None] and sender.platform.asked == 1

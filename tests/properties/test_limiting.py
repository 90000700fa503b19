"""Never faster than was said, over any stretch of time; and who waited as long as told may go."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise.channels.port import SendRates
from rise.delivery import PLACE_SECONDS
from rise.ledger.port import Reply
from rise.pace import TICKETS_KEPT, Pace
from rise.rates import Buckets
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import chunks, task

pytestmark = [pytest.mark.req("OUT-2"), pytest.mark.failure("G17")]

CHAT_PER_SECOND, GROUP_PER_MINUTE, ACCOUNT_PER_SECOND = 1.0, 20.0, 30.0
ROUNDING = 0.05
"""Of a call: less than a millisecond is not waited for."""


class Channel:
    """Groups have negative numbers."""

    def __init__(self, account_per_second: float = ACCOUNT_PER_SECOND) -> None:
        self._account_per_second = account_per_second

    def rates(self, chat_id: str) -> SendRates:
        per_minute = GROUP_PER_MINUTE if chat_id.startswith("-") else None
        return SendRates(CHAT_PER_SECOND, per_minute, self._account_per_second)


class Kind(Enum):
    ANSWER = "answer"
    UNAWAITED = "unawaited"
    URGENT = "urgent"


def reply_to(chat_id: str, kind: Kind = Kind.ANSWER, *, names: str | None = None) -> Reply:
    [reply] = chunks(task(), chat=chat_id)
    call = msgspec.structs.replace(reply.call, is_urgent=kind is Kind.URGENT, is_awaited=kind is not Kind.UNAWAITED)
    if names is not None:
        call = msgspec.structs.replace(call, params={**call.params, "chat_id": names})
    return msgspec.structs.replace(reply, call=call)


@dataclass(frozen=True)
class Went:
    chat_id: str
    kind: Kind
    at: float
    waited: float


@dataclass
class Sending:
    """Does as the sender does: a chat's replies go one after the other. Who is to wait for longer than a moment comes
    up again up to `late` seconds later than it was told."""

    clock: ManualClock = field(default_factory=ManualClock)
    account_per_second: float = ACCOUNT_PER_SECOND
    late: float = 0.0

    def __post_init__(self) -> None:
        self.pace = Pace({"telegram": Channel(self.account_per_second)}, self.clock)  # type: ignore[dict-item]
        self.went: list[Went] = []
        self.asked_count = 0
        self.gave_place_count = 0
        self._chats: dict[str, deque[tuple[Reply, Kind, float]]] = defaultdict(deque)
        self._served = set[str]()
        self._asks: list[tuple[float, int, str]] = []
        self.numbers = itertools.count()

    def say(self, chat_id: str, kind: Kind = Kind.ANSWER, *, names: str | None = None) -> None:
        """`names`: the chat that its call names, instead of its own."""
        if kind is Kind.URGENT:
            reply, now = reply_to(f"urgent:{chat_id}", kind), self.clock.monotonic()
            assert self.pace.wait_seconds(reply) == 0.0
            self.pace.count(reply)
            self.went.append(Went(chat_id, kind, now, 0.0))
            return
        self._chats[chat_id].append((reply_to(chat_id, kind, names=names), kind, self.clock.monotonic()))
        if chat_id not in self._served:
            self._served.add(chat_id)
            self._ask_in(0.0, chat_id)

    def drop(self, chat_id: str) -> bool:
        """The first of the chat's, if one waits. Nobody is told, the next comes up when it would have."""
        return bool(self._chats[chat_id]) and bool(self._chats[chat_id].popleft())

    def pass_time(self, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while self._asks and self._asks[0][0] <= until:
            at, _, chat_id = heapq.heappop(self._asks)
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            self._ask(chat_id)
        self.clock.advance(until - self.clock.monotonic())

    def pass_time_until_all_went(self) -> None:
        while self._asks:
            self.pass_time(max(0.0, self._asks[0][0] - self.clock.monotonic()))

    def _ask(self, chat_id: str) -> None:
        self.asked_count += 1
        replies, now = self._chats[chat_id], self.clock.monotonic()
        if not replies:
            self._served.discard(chat_id)
            return
        reply, kind, said_at = replies[0]
        seconds = self.pace.wait_seconds(reply)
        if seconds:
            self.gave_place_count += seconds > PLACE_SECONDS
            self._ask_in(seconds if seconds <= PLACE_SECONDS else seconds + self._lateness(), chat_id)
            return
        self.pace.count(reply)
        self.went.append(Went(chat_id, kind, now, now - said_at))
        replies.popleft()
        self._ask_in(0.0, chat_id)

    def _ask_in(self, seconds: float, chat_id: str) -> None:
        heapq.heappush(self._asks, (self.clock.monotonic() + seconds, next(self.numbers), chat_id))

    def _lateness(self) -> float:
        return self.clock.random.uniform(0.0, self.late)


def most_beyond(went: Sequence[Went], rate: float, burst: float) -> float:
    """By how many more than `burst + rate · t` went in the worst stretch of time. It ends with what is not urgent:
    that goes at once, and has to be made up for by all others."""
    worst, beyond, last_at = -burst, 0.0, 0.0
    for one in sorted(went, key=lambda one: one.at):
        # What the stretch has that is the worst of those which end here.
        beyond = max(0.0, beyond - rate * (one.at - last_at)) + 1
        worst, last_at = worst if one.kind is Kind.URGENT else max(worst, beyond - burst), one.at
    return worst


PAUSES = st.just(0.0) | st.floats(0, 2)


@given(st.lists(st.tuples(PAUSES, st.sampled_from(["1", "2", "-3", "-4"])), min_size=1, max_size=60))
@tried(300)
def test_no_chat_and_no_group_is_sent_to_faster_than_telegram_takes_it(wanted: list[tuple[float, str]]):
    sending = Sending()
    for pause, chat_id in wanted:
        sending.pass_time(pause)
        sending.say(chat_id)
    sending.pass_time_until_all_went()
    assert len(sending.went) == len(wanted)
    for chat_id in {chat_id for _, chat_id in wanted}:
        went = [one for one in sending.went if one.chat_id == chat_id]
        assert most_beyond(went, CHAT_PER_SECOND, 1.0) < ROUNDING
        if chat_id.startswith("-"):
            assert most_beyond(went, GROUP_PER_MINUTE / 60, GROUP_PER_MINUTE) < ROUNDING


RATES = st.just(ACCOUNT_PER_SECOND) | st.floats(0.5, 60)
MIXES = st.lists(
    st.tuples(st.just(0.0) | st.floats(0, 0.5), st.sampled_from(Kind), st.integers(-20, 40), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)
"""Pauses; what is said then, to which chat, and to how many more at the same moment."""


@pytest.mark.req("TMP-3", "TGM-3")
@pytest.mark.failure("FU8")
@given(RATES, MIXES, st.sampled_from([0.0, 1.0, 4.0]), st.sets(st.integers(0, 59)))
@tried(150)
def test_whatever_is_sent_or_dropped_no_bot_sends_faster_than_telegram_takes_it_and_all_of_it_goes(
    rate: float, mix: list[tuple[float, Kind, int, int]], late: float, dropped: set[int]
):
    sending, said, names = Sending(account_per_second=rate, late=late), 0, map(str, itertools.count(1000))
    for number, (pause, kind, chat, more) in enumerate(mix):
        sending.pass_time(pause)
        for chat_id in [str(chat), *itertools.islice(names, more)]:
            sending.say(chat_id, kind)
            said += 1
        if number in dropped:
            said -= sending.drop(str(chat))
    sending.pass_time_until_all_went()
    assert len(sending.went) == said
    # One more, which goes in its quarter where an answer would have gone.
    assert most_beyond(sending.went, rate, max(1.0, rate) + 1) < ROUNDING


def test_calls_that_name_another_chat_go_there_no_faster_than_that_takes_them():
    sending = Sending()
    for number in range(25):
        sending.say(f"1{number}", names="-999")
    sending.say("200")
    sending.pass_time_until_all_went()
    there = [one for one in sending.went if one.chat_id != "200"]
    assert len(there) == 25
    assert most_beyond(there, CHAT_PER_SECOND, 1.0) < ROUNDING
    assert most_beyond(there, GROUP_PER_MINUTE / 60, GROUP_PER_MINUTE) < ROUNDING
    assert [one.waited for one in sending.went if one.chat_id == "200"] == [0.0], "nobody else waits for that"


def test_a_bot_sends_as_fast_as_telegram_takes_it():
    """What nobody waits for leaves half of what is saved up."""
    for kind, at_once in ((Kind.ANSWER, ACCOUNT_PER_SECOND), (Kind.UNAWAITED, ACCOUNT_PER_SECOND / 2 + 1)):
        sending, count = Sending(), int(3 * ACCOUNT_PER_SECOND)
        began = sending.clock.monotonic()
        for chat in range(count):
            sending.say(str(chat), kind)
        sending.pass_time_until_all_went()
        last = max(one.at for one in sending.went)
        assert last - began == pytest.approx((count - at_once) / ACCOUNT_PER_SECOND, abs=0.01)


@pytest.mark.req("TGM-3")
def test_what_is_urgent_goes_at_once_and_everybody_else_by_so_much_later():
    sending, count = Sending(), int(3 * ACCOUNT_PER_SECOND)
    began = sending.clock.monotonic()
    for chat in range(count):
        sending.say(str(chat))
    sending.pass_time(1.0)
    for tap in range(15):
        sending.say(str(tap), Kind.URGENT)
    sending.pass_time_until_all_went()
    last = max(one.at for one in sending.went)
    assert last - began == pytest.approx((count + 15 - ACCOUNT_PER_SECOND) / ACCOUNT_PER_SECOND, abs=0.05)


def test_while_nobody_may_go_all_keep_their_order_and_whoever_comes_is_behind_them():
    pace, clock = (sending := Sending()).pace, sending.clock
    answers = [reply_to(str(chat)) for chat in range(90)]
    for reply in answers:
        if pace.wait_seconds(reply) == 0.0:
            pace.count(reply)
    for tap in range(15):
        sending.say(str(tap), Kind.URGENT)
    clock.advance(0.5)
    in_turn = pytest.approx([(place + 1) / 30 for place in range(60)], abs=0.001)
    assert [pace.wait_seconds(reply) for reply in answers[30:]] == in_turn
    assert [pace.wait_seconds(reply) for reply in answers[30:]] == in_turn, "who asks again is one and the same"
    assert pace.wait_seconds(reply_to("next")) == pytest.approx(61 / 30, abs=0.001)


@given(
    st.sampled_from([Kind.ANSWER, Kind.UNAWAITED]),
    st.integers(60, 300),
    st.floats(0, 8),
    st.floats(0, 60),
    st.sampled_from([0.0, 1.0]),
)
@tried(20)
def test_a_pause_puts_all_off_by_so_much_and_changes_no_order(
    kind: Kind, count: int, paused_after: float, pause: float, late: float
):
    """The store was away, or the process frozen: those who were due meanwhile go before those who are due later."""
    sending = Sending(late=late)
    began = sending.clock.monotonic()
    for chat in range(count):
        sending.say(str(chat), kind)
    sending.pass_time(paused_after)
    sending.clock.advance(pause)
    sending.pass_time_until_all_went()
    assert len(sending.went) == count
    for one in sending.went:
        would_go_after = int(one.chat_id) / ACCOUNT_PER_SECOND
        assert one.at - began < would_go_after + pause + 2 * late + 0.1
    assert most_beyond(sending.went, ACCOUNT_PER_SECOND, ACCOUNT_PER_SECOND + 1) < ROUNDING


# --- answers, and what nobody waits for ---------------------------------------------------------------------------


def answer_for(sending: Sending, seconds: float, per_second: float, *, at_once: int = 1) -> None:
    """So many people are answered, each in a chat of their own."""
    for _ in range(round(seconds * per_second / at_once)):
        for _ in range(at_once):
            sending.say(f"answer {next(sending.numbers)}")
        sending.pass_time(at_once / per_second)


def per_second(sending: Sending, kind: Kind, since: float) -> float:
    return sum(one.kind is kind and one.at >= since for one in sending.went) / (sending.clock.monotonic() - since)


@pytest.mark.req("TMP-3", "TGM-3")
@pytest.mark.failure("FU8")
@given(st.tuples(RATES, st.just(0.0)) | st.just((ACCOUNT_PER_SECOND, 1.0)), st.integers(0, 300))
@tried(15)
def test_with_more_answers_than_may_go_three_of_four_are_answers_and_the_fourth_is_what_nobody_waits_for(
    rate_and_late: tuple[float, float], answers_before: int
):
    """Also where answers had their times before."""
    rate, late = rate_and_late
    sending = Sending(account_per_second=rate, late=late)
    for chat in range(answers_before):
        sending.say(f"before {chat}")
    for chat in range(1000):
        sending.say(str(chat), Kind.UNAWAITED)
    answer_for(sending, 90 / rate, 1.5 * rate)
    since = sending.clock.monotonic()
    answer_for(sending, 400 / rate, 1.5 * rate)
    rel = 0.1 if rate >= 1 else 0.15  # who saves up less than a call loses a moment here and there
    assert per_second(sending, Kind.ANSWER, since) == pytest.approx(0.75 * rate, rel=rel)
    assert per_second(sending, Kind.UNAWAITED, since) == pytest.approx(0.25 * rate, rel=rel)


@pytest.mark.req("TMP-3", "TGM-3")
@pytest.mark.failure("FU8")
@given(st.floats(10, 60), st.integers(1, 30), st.sampled_from([0.0, 1.0]))
@tried(20)
def test_whatever_waits_that_nobody_waits_for_an_answer_goes_within_a_second(rate: float, at_once: int, late: float):
    """As long as fewer are written than may go."""
    sending = Sending(account_per_second=rate, late=late)
    for chat in range(2000):
        sending.say(str(chat), Kind.UNAWAITED)
    began = sending.clock.monotonic()
    answer_for(sending, 1200 / rate, rate / 3, at_once=min(at_once, int(rate)))
    assert max(one.waited for one in sending.went if one.kind is Kind.ANSWER) < 1.0 + late
    assert per_second(sending, Kind.UNAWAITED, began) == pytest.approx(rate * 2 / 3, rel=0.1)


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
def test_what_is_dropped_changes_nothing_for_others():
    def waits(dropped: int) -> list[float]:
        sending = Sending()
        for chat in range(600):
            sending.say(str(chat), Kind.UNAWAITED)
        for chat in range(600 - dropped, 600):
            sending.drop(str(chat))
        answer_for(sending, 20, 20)
        return [one.waited for one in sending.went if one.kind is Kind.ANSWER]

    assert waits(0) == waits(200) == pytest.approx([0.0] * 400)


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.UNAWAITED])
def test_nobody_waits_for_what_was_dropped_once_the_account_has_been_idle(kind: Kind):
    sending = Sending()
    for chat in range(3000):
        sending.say(str(chat), kind)
    sending.pass_time(0.0)
    for chat in range(3000):
        sending.drop(str(chat))
    sending.pass_time(5.0)
    began = sending.clock.monotonic()
    for chat in range(60):
        sending.say(f"new {chat}", kind)
    sending.pass_time(1.6)
    assert sum(one.at >= began for one in sending.went) == 60


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
def test_a_place_in_one_line_is_none_in_the_other():
    """Neither for an answer, which would wait in it, nor for what nobody waits for, which would go before its turn."""
    sending = Sending()
    for chat in range(100):
        sending.say(f"planned {chat}", Kind.UNAWAITED)
        sending.say(f"answer {chat}")
    sending.pass_time(0.0)
    went = {kind: sum(one.kind is kind for one in sending.went) for kind in Kind}
    to_be_left = ACCOUNT_PER_SECOND / 2 - 1
    behind_all = pytest.approx((200 - len(sending.went) + to_be_left) / 30, abs=0.1)
    behind_answers = pytest.approx((100 - went[Kind.ANSWER]) / (0.75 * 30), abs=0.1)
    planned, answer = reply_to("planned 99"), reply_to("answer 99", Kind.UNAWAITED)
    assert sending.pace.wait_seconds(reply_to("planned 99", Kind.UNAWAITED)) == behind_all
    assert sending.pace.wait_seconds(planned) == behind_answers
    assert sending.pace.wait_seconds(answer) == behind_all


@pytest.mark.failure("G17")
@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.UNAWAITED])
def test_times_that_are_all_past_are_not_used_at_once(kind: Kind):
    """Their account was paused, or others were sent to."""
    clock = ManualClock()
    sending = Sending(clock)
    waiting = [reply_to(str(chat), kind) for chat in range(300)]
    for reply in waiting:
        sending.pace.wait_seconds(reply)
    clock.advance(60.0)
    for reply in waiting:
        sending.say(reply.chat_id, kind)
    sending.pass_time(0.0)
    assert sending.gave_place_count, "who waits for long is told so, and gives its place away"
    sending.pass_time_until_all_went()
    assert len(sending.went) == 300
    assert most_beyond(sending.went, ACCOUNT_PER_SECOND, ACCOUNT_PER_SECOND + 1) < ROUNDING


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
def test_who_waits_asks_seldom():
    """Each time that a chat comes up in vain is two writes."""
    sending = Sending()
    for chat in range(1000):
        sending.say(str(chat), Kind.UNAWAITED)
    answer_for(sending, 150, 1.5 * ACCOUNT_PER_SECOND)
    assert sum(one.kind is Kind.UNAWAITED for one in sending.went) == 1000
    assert sending.asked_count < 4 * (1000 + 150 * 1.5 * ACCOUNT_PER_SECOND)


@pytest.mark.req("TMP-3")
@pytest.mark.failure("FU8")
@pytest.mark.parametrize("late", [0.0, 1.0])
def test_who_waits_beside_the_other_line_gives_its_place_away_twice_at_most(late: float):
    sending = Sending(late=late)
    for chat in range(1000):
        sending.say(f"answer {chat}")
        sending.say(f"planned {chat}", Kind.UNAWAITED)
    sending.pass_time_until_all_went()
    assert sending.gave_place_count < 2 * 2000


@pytest.mark.parametrize("pause", [3.0, 20.0])
def test_who_comes_after_a_pause_asks_seldom(pause: float):
    """Those who were told their time before it are expected still."""
    sending = Sending(late=1.0)
    for chat in range(1500):
        sending.say(str(chat))
    sending.pass_time(5.0)
    sending.clock.advance(pause)
    sending.pass_time(1.0)
    before = sending.gave_place_count
    for chat in range(100):
        sending.say(f"new {chat}")
        sending.pass_time(0.1)
    sending.pass_time_until_all_went()
    assert sending.gave_place_count - before < 1500 + 3 * 100


def test_tickets_that_nobody_uses_are_forgotten():
    sending = Sending()
    for chat in range(25_000):
        sending.pace.wait_seconds(reply_to(str(chat)))
        sending.clock.advance(0.1)
    assert len(sending.pace._tickets) <= TICKETS_KEPT


def test_tickets_are_not_forgotten_before_they_could_be_used():
    sending = Sending()
    for chat in range(60):
        sending.say(str(chat))
    sending.pass_time(0.0)
    for chat in range(60, TICKETS_KEPT):
        sending.pace.wait_seconds(reply_to(str(chat)))
    sending.clock.advance(1.5)
    for more in range(100):
        sending.pace.wait_seconds(reply_to(f"one of {more} more"))
    assert [sending.pace.wait_seconds(reply_to(str(chat))) for chat in range(30, 60)] == [0.0] * 30


@given(
    st.floats(0.01, 100),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 10)), min_size=1, max_size=60),
)
@tried(300)
def test_each_key_has_its_own_measure_whatever_the_others_do_and_the_clock(
    rate: float, burst: int, asked: list[tuple[str, float]]
):
    together, alone, now = Buckets(rate, burst), {key: Buckets(rate, burst) for key in "abc"}, 100.0
    for key, step in asked:
        now += step  # a clock that steps back gives nothing away, which is checked where a bucket is tested
        assert together.wait_seconds(key, now) == alone[key].wait_seconds(key, now)
        together.take(key, now)
        alone[key].take(key, now)

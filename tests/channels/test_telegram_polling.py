"""Polling: nothing is confirmed that is not durable, and nothing stops it for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from rise.channels.port import Incoming
from rise.channels.telegram import KINDS, TelegramChannel, TelegramPolling
from rise.chats import ChatRegistry
from rise.clock import SystemClock
from rise.errors import CopiesInsufficient
from rise.testing.fakes.bus import MemoryBus, MemoryBusState
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.telegram import Fault, TelegramStandIn
from rise.testing.waiting import eventually

TOKEN = "7000000001:stand-in"
ACCOUNT = "7000000001"


class HastyClock(SystemClock):
    """Remembers how long it was to sleep, and hardly does."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.01)


class Intake:
    """Takes updates, or does not."""

    def __init__(self) -> None:
        self.accepted: list[Incoming] = []
        self.refuses: Callable[[Incoming], BaseException | None] = lambda incoming: None
        self.delay: Callable[[], Awaitable[None]] | None = None

    async def accept(self, incoming: Incoming) -> None:
        if self.delay is not None:
            await self.delay()
        if (error := self.refuses(incoming)) is not None:
            raise error
        self.accepted.append(incoming)

    @property
    def texts(self) -> list[str]:
        return [incoming.user_text for incoming in self.accepted]


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn(TOKEN) as telegram:
        yield telegram


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
def clock() -> HastyClock:
    return HastyClock()


@pytest.fixture
def states() -> list[tuple[bool, str]]:
    return []


@pytest.fixture
async def polling(telegram, intake, clock, states) -> AsyncIterator[TelegramPolling]:
    channel = TelegramChannel([TOKEN], clock=clock, api_base=telegram.url, timeout_seconds=2)
    polling = TelegramPolling(
        channel,
        ACCOUNT,
        accept=intake.accept,
        clock=clock,
        on_state=lambda is_receiving, detail: states.append((is_receiving, detail)),
        poll_seconds=1,
    )
    yield polling
    await polling.stop()
    await channel.close()


async def until(condition: Callable[[], bool]) -> None:
    """What it is about changes in the stand-in, the intake or the clock: no one signal, so asked again and again."""
    await eventually(condition, seconds=5)


def polls(telegram: TelegramStandIn) -> list[dict]:
    return [call.params for call in telegram.calls if call.method == "getUpdates"]


@pytest.mark.req("TGM-1")
async def test_updates_are_accepted_in_their_own_bytes_and_then_confirmed(telegram, polling, intake):
    queued = [telegram.message(text, chat_id=42) for text in ("one", "zwei", "þrír")]
    await polling.start()
    await until(lambda: not telegram.pending())
    assert [incoming.raw for incoming in intake.accepted] == [update.body for update in queued]
    assert [incoming.delivery_key for incoming in intake.accepted] == [
        f"tg:{ACCOUNT}:u:{update.update_id}" for update in queued
    ]


@pytest.mark.failure("A13", "B4")
async def test_what_came_while_the_process_was_stopped_is_in_the_lane_of_the_chats_first_id(
    telegram, polling, intake, clock
):
    ledger = MemoryLedger(MemoryLedgerState(), now_ms=lambda: 0)
    await ledger.move_chat("telegram", ACCOUNT, "-500", "-1005")
    polling._channel._chats = ChatRegistry(ledger, MemoryBus(MemoryBusState()), clock)
    polling._channel._chats._trusted_until = 0.0
    telegram.message("hello", chat_id=-1005)
    await polling.start()
    await until(lambda: not telegram.pending())
    assert [incoming.lane for incoming in intake.accepted] == [f"tg:{ACCOUNT}:-500:0"]


@pytest.mark.req("TGM-2")
async def test_every_kind_is_asked_for(telegram, polling):
    await polling.start()
    await until(lambda: bool(polls(telegram)))
    assert set(polls(telegram)[0]["allowed_updates"]) == set(KINDS)


@pytest.mark.failure("B2")
async def test_half_a_surrogate_pair_in_one_update_does_not_keep_the_others_away(telegram, polling, intake):
    """JSON allows it, and what reads the answer as a whole must not stop at it: Telegram would repeat it for a day."""
    updates = [
        rb'{"update_id":%d,"message":{"message_id":1,"date":1762587012,"chat":{"id":42},"text":"%b"}}' % (number, text)
        for number, text in ((7, rb"a\ud800b"), (8, rb"\ud83d\ude00 \\ud800"), (9, rb"a\ud800b"))
    ]
    telegram.fault(Fault.wrong_body(b'{"ok":true, "result":[%b]}' % b", ".join(updates)), method="getUpdates")
    await polling.start()
    await until(lambda: any(poll.get("offset") == 10 for poll in polls(telegram)))
    assert [incoming.raw for incoming in intake.accepted] == updates
    assert intake.texts == ["a?b", "\U0001f600 \\ud800", "a?b"]


@pytest.mark.failure("G5")
async def test_no_answer_makes_it_wait_for_longer_than_a_day(telegram, polling, clock):
    never = b'{"ok":false,"error_code":429,"description":"x","parameters":{"retry_after":1e300}}'
    telegram.fault(Fault.wrong_body(never), method="getUpdates")
    await polling.start()
    await until(lambda: bool(clock.slept))
    assert clock.slept[0] == 86_400


@pytest.mark.failure("A7")
async def test_an_update_that_waited_long_at_telegram_is_not_a_replay(telegram, polling, intake):
    telegram.message("old", chat_id=42, date=int(telegram.now()) - 23 * 3600)
    await polling.start()
    await until(lambda: intake.texts == ["old"])
    assert intake.accepted[0].suspend is None


@pytest.mark.req("TGM-1")
@pytest.mark.failure("A21")
async def test_only_what_is_before_the_first_refused_update_is_confirmed(telegram, polling, intake, states):
    queued = [telegram.message(str(number), chat_id=42) for number in range(4)]
    intake.refuses = lambda incoming: CopiesInsufficient("no disk") if incoming.user_text == "2" else None
    await polling.start()
    await until(lambda: len(telegram.pending()) == 2)
    assert {update.update_id for update in telegram.pending()} == {queued[2].update_id, queued[3].update_id}
    assert any("no disk" in detail for is_receiving, detail in states if not is_receiving)
    intake.refuses = lambda incoming: None
    await until(lambda: not telegram.pending())
    assert set(intake.texts) == {"0", "1", "2", "3"}
    assert states[-1] == (True, "")


@pytest.mark.failure("A21")
async def test_nothing_is_confirmed_while_it_is_not_durable(telegram, polling, intake):
    telegram.message("Hello", chat_id=42)
    at_the_disk, disk_answers = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        at_the_disk.set()
        await disk_answers.wait()

    intake.delay = write
    await polling.start()
    await at_the_disk.wait()
    await polling.stop()
    assert len(telegram.pending()) == 1
    disk_answers.set()
    await polling.start()
    await until(lambda: not telegram.pending())
    assert intake.texts == ["Hello"]


async def test_the_updates_of_one_answer_are_accepted_at_once(telegram, polling, intake):
    for number in range(10):
        telegram.message(str(number), chat_id=number + 1)
    together = asyncio.Barrier(10)
    intake.delay = together.wait
    await polling.start()
    await until(lambda: len(intake.accepted) == 10)


@pytest.mark.failure("A9")
async def test_an_offset_is_said_once_so_that_numbers_may_start_anew(telegram, polling, intake):
    first = telegram.message("before", chat_id=42)
    await polling.start()
    await until(lambda: any("offset" not in poll for poll in polls(telegram)[2:]))
    assert [poll["offset"] for poll in polls(telegram) if "offset" in poll] == [first.update_id + 1]


@pytest.mark.failure("A15", "A22")
async def test_a_webhook_left_over_is_removed_once_and_nothing_pending_is_lost(telegram, polling, intake, states):
    channel = TelegramChannel([TOKEN], clock=SystemClock(), api_base=telegram.url)
    await channel.set_webhook(ACCOUNT, "http://127.0.0.1:1/hook", "secret")
    telegram.message("Hello", chat_id=42)
    await polling.start()
    await until(lambda: intake.texts == ["Hello"])
    telegram.pass_time(2)
    await channel.set_webhook(ACCOUNT, "http://127.0.0.1:1/hook", "secret")
    await channel.close()
    await until(lambda: "somebody else" in states[-1][1])
    assert len([call for call in telegram.calls if call.method == "deleteWebhook"]) == 1
    assert telegram.bot().webhook is not None


@pytest.mark.failure("A15")
async def test_another_poller_is_reported_and_not_fought(telegram, polling, clock, states):
    telegram.fault(Fault.refusing(conflict()), method="getUpdates", times=5)
    await polling.start()
    await until(lambda: bool(states) and states[-1] == (True, ""))
    assert "somebody else" in states[0][1]
    assert len(clock.slept) == 5
    assert not [call for call in telegram.calls if call.method == "deleteWebhook"]


@pytest.mark.failure("G10")
async def test_a_refused_token_is_asked_about_slowly(telegram, polling, clock, states):
    telegram.fault(Fault.unauthorized(), method="getUpdates", times=2)
    await polling.start()
    await until(lambda: bool(states) and states[-1] == (True, ""))
    assert "token" in states[0][1]
    assert all(seconds >= 60 for seconds in clock.slept)


@pytest.mark.failure("G14")
async def test_an_unreachable_telegram_is_asked_again_ever_more_slowly(telegram, polling, clock, states):
    telegram.script.is_unreachable = True
    await polling.start()
    await until(lambda: len(clock.slept) >= 8)
    assert 0.75 <= clock.slept[0] <= 1
    assert clock.slept[1] > clock.slept[0]
    assert 22 <= clock.slept[7] <= 30
    telegram.script.is_unreachable = False
    await until(lambda: states[-1] == (True, ""))
    assert TOKEN not in repr(states)


@pytest.mark.failure("G6")
@pytest.mark.parametrize(
    "fault",
    [Fault.server_error(), Fault.html_body(), Fault.truncated_json(), Fault.wrong_body(), Fault.too_many_requests(7)],
    ids=lambda fault: fault.name,
)
async def test_an_unusable_answer_is_survived(telegram, polling, intake, clock, fault):
    telegram.fault(fault, method="getUpdates")
    telegram.message("Hello", chat_id=42)
    await polling.start()
    await until(lambda: intake.texts == ["Hello"])
    assert len(clock.slept) == 1


@pytest.mark.failure("L7")
async def test_a_bug_on_the_way_in_is_reported_and_does_not_confirm(telegram, polling, intake, states):
    telegram.message("Hello", chat_id=42)
    intake.refuses = lambda incoming: ZeroDivisionError()
    await polling.start()
    await until(lambda: any("ZeroDivisionError" in detail for _, detail in states))
    assert len(telegram.pending()) == 1
    intake.refuses = lambda incoming: None
    await until(lambda: not telegram.pending())


async def test_stopping_twice_is_stopping(polling):
    await polling.start()
    await polling.stop()
    await polling.stop()


def conflict():
    from rise.testing.telegram.rules.refusals import conflict

    return conflict("terminated by other getUpdates request")

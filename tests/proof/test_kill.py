"""kill -9 at random moments under load: nothing lost, and every duplicate is one that could not be known.

Prints the table that is the public claim (`pytest -s`). `make kill` kills 200 times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rise.testing.installation import Installation
from rise.testing.telegram import SendRates, TelegramStandIn

BOT = Path(__file__).with_name("bot.py")
CHATS = 8
MARK = "↻ "
SECONDS_PER_MESSAGE = 0.02
HEAL_SECONDS = 120.0


@dataclass
class Traffic:
    """What people wrote, and what the stand-in saw of the answers."""

    telegram: TelegramStandIn
    written: list[tuple[int, str]] = field(default_factory=list)
    _waiting: set[tuple[int, str]] = field(default_factory=set)
    _looked_at: int = 0

    async def write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = len(self.written)
            chat, text = 100 + number % CHATS, f"MESSAGE {number:06}"
            self.telegram.message(text, chat_id=chat)
            self.written.append((chat, text))
            self._waiting.add((chat, text))
            await asyncio.sleep(SECONDS_PER_MESSAGE)

    def answers(self) -> dict[tuple[int, str], list[str]]:
        """What was said to each message, marked repetitions included."""
        found: dict[tuple[int, str], list[str]] = defaultdict(list)
        for message in self.telegram.sent:
            text = message.text or ""
            if text.removeprefix(MARK).startswith("MESSAGE"):
                found[(int(message.chat_id), text.removeprefix(MARK))].append(text)
        return found

    def is_answered(self) -> bool:
        """Asked again at every answer, so it looks at no answer twice."""
        sent = self.telegram.sent
        for message in sent[self._looked_at :]:
            self._waiting.discard((int(message.chat_id), (message.text or "").removeprefix(MARK)))
        self._looked_at = len(sent)
        return not self._waiting

    def order_breaks(self) -> int:
        """First answers of a chat that came before an earlier message's."""
        breaks = 0
        last: dict[int, str] = {}
        seen: set[tuple[int, str]] = set()
        for message in self.telegram.sent:
            text = (message.text or "").removeprefix(MARK)
            key = (int(message.chat_id), text)
            if text.startswith("MESSAGE") and key not in seen:
                seen.add(key)
                breaks += text < last.get(key[0], "")
                last[key[0]] = max(text, last.get(key[0], ""))
        return breaks


def installation(tmp_path: Path, telegram: TelegramStandIn, **settings: object) -> Installation:
    rise = Installation(
        tmp_path / "data",
        app=BOT,
        telegram_token=telegram.token,
        telegram_api_base=telegram.url,
        telegram_rate_chat=10_000,
        telegram_rate_bot=10_000,
        telegram_mode="webhook",
        late_after_seconds=0,
        **settings,
    )
    rise._settings["public_url"] = rise.url
    return rise


def print_table(title: str, rows: dict[str, object]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<42} {value}")


async def heal(traffic: Traffic, rise: Installation) -> None:
    """After the last fault nothing is touched; everything must end by itself."""
    with suppress(TimeoutError):
        await traffic.telegram.wait_until(
            lambda t: traffic.is_answered() and not t.pending(), timeout_seconds=HEAL_SECONDS
        )
    missing = [question for question in traffic.written if question not in traffic.answers()]
    assert not missing, f"{len(missing)} of {len(traffic.written)} unanswered: {missing[:5]}\n{rise.log()[-3000:]}"


@pytest.mark.slow
@pytest.mark.req("CPY-7", "QUE-3", "WRK-4", "WRK-5", "WRK-7", "OUT-1", "OPS-2")
@pytest.mark.failure("A3", "A4", "A5", "C1", "C4", "D1", "D14", "G1", "G2", "G3", "F11", "E2")
async def test_kill_9_at_random_moments_loses_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills: int = request.config.getoption("--kills")
    seed: int = request.config.getoption("--seed")
    dice = random.Random(seed)
    print(
        f"\nthe same faults again: pytest tests/proof/test_kill.py -k random_moments -s --kills {kills} --seed {seed}"
    )
    applied: Counter[str] = Counter()
    async with TelegramStandIn(time_scale=20) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        rise = installation(tmp_path, telegram)
        traffic = Traffic(telegram)
        stop = asyncio.Event()
        async with rise, asyncio.TaskGroup() as group:
            group.create_task(traffic.write(stop))
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(0.0, 1.2))
                victim = dice.choice(["gateway", "worker", "both"])
                applied[victim] += 1
                await rise.kill(gateway=victim != "worker", worker=victim != "gateway")
                if victim != "worker":
                    # Sometimes the next one comes before it has even started.
                    await rise.start(wait=dice.random() > 0.2)
            stop.set()
            await heal(traffic, rise)
            code, report = await rise.command("audit", "--json")
        answers = traffic.answers()
        repeated = {question: said for question, said in answers.items() if len(said) > 1}
        unmarked = [said for said in repeated.values() if sum(not text.startswith(MARK) for text in said) > 1]
        print_table(
            f"kill -9 at {kills} random moments",
            {
                "faults applied": dict(applied),
                "messages sent by people": len(traffic.written),
                "webhook deliveries, by answer": dict(Counter(str(d.status) for d in telegram.deliveries)),
                "answered": len(answers),
                "lost": len(traffic.written) - len(answers),
                "answered twice (marked, could not be known)": len(repeated),
                "answered twice (unmarked)": len(unmarked),
                "order breaks": traffic.order_breaks(),
                "audit": "everything accounted for" if code == 0 else report,
            },
        )
        assert code == 0, report
        assert not unmarked
        assert len(repeated) <= CHATS * kills, "at most one per chat and crash"
        assert traffic.order_breaks() == 0
        assert not telegram.dropped()


@pytest.mark.slow
@pytest.mark.req("WRK-6")
@pytest.mark.failure("D18")
async def test_sigterm_under_load_is_never_worse_than_a_kill(tmp_path: Path) -> None:
    stops = 5
    async with TelegramStandIn(time_scale=20) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        rise = installation(tmp_path, telegram, stop_seconds=5)
        traffic = Traffic(telegram)
        stop = asyncio.Event()
        codes = []
        async with rise, asyncio.TaskGroup() as group:
            group.create_task(traffic.write(stop))
            for _ in range(stops):
                await asyncio.sleep(0.7)
                codes.append(await rise.stop())
                await rise.start()
            stop.set()
            await heal(traffic, rise)
            audit, report = await rise.command("audit", "--json")
        repeated = [said for said in traffic.answers().values() if len(said) > 1]
        print_table(
            f"SIGTERM {stops} times under load",
            {
                "messages sent by people": len(traffic.written),
                "exit codes": codes,
                "answered twice": len(repeated),
                "order breaks": traffic.order_breaks(),
            },
        )
        assert codes == [0] * stops
        assert not repeated, "a stop in order leaves nothing in doubt"
        assert traffic.order_breaks() == 0
        assert audit == 0, report


@pytest.mark.slow
@pytest.mark.req("WRK-7", "QUE-3")
@pytest.mark.failure("D2", "D5")
async def test_a_frozen_worker_process_is_replaced_and_its_chats_go_on(tmp_path: Path) -> None:
    async with TelegramStandIn(time_scale=20) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        rise = installation(tmp_path, telegram, worker_stall_seconds=2, claim_seconds=2)
        traffic = Traffic(telegram)
        stop = asyncio.Event()
        async with rise, asyncio.TaskGroup() as group:
            group.create_task(traffic.write(stop))
            await telegram.wait_until(lambda t: len(t.sent) > 20, timeout_seconds=30)
            [frozen] = rise.worker_pids()
            os.kill(frozen, signal.SIGSTOP)
            stop.set()
            await heal(traffic, rise)
            assert frozen not in rise.worker_pids()
        assert not [said for said in traffic.answers().values() if len(said) > 1]

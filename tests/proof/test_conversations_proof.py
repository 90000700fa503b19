"""`engine: temporal` on real processes and a real Temporal: through the webhook, to the platform."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from temporalio.client import Client
from test_thirty_five_updates import installation, post_all, replies_by_chat, thirty_five_updates

from rise.conversations.workflow import COUNTS, Counts
from rise.testing.installation import Installation
from rise.testing.servers import TemporalServer
from rise.testing.telegram import SendRates, TelegramStandIn
from rise.testing.waiting import eventually

BOT = """
from pathlib import Path

import rise
from rise.clock import SystemClock

HERE = Path(__file__).parent


def paid(text):
    with (HERE / "paid").open("a") as file:
        file.write(text + "\\n")


@rise.workflow("talks", channels=["telegram"])
async def talks(turn):
    await turn.step("pay", paid, turn.text)
    if turn.text == "slow":
        (HERE / "began").touch()
        while not (HERE / "go").exists():
            await SystemClock().sleep(0.02)
    await turn.reply(turn.text.upper())


@rise.workflow("plain")
async def plain(turn):
    await turn.reply("plain " + turn.text)
"""
PATIENCE_SECONDS = 60
pytestmark = pytest.mark.slow


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


def update(number: int, text: str, *, chat: int = 42) -> dict[str, Any]:
    return {
        "update_id": 1000 + number,
        "message": {
            "message_id": number,
            "date": 2_000_000_000 + number,
            "chat": {"id": chat, "type": "private"},
            "from": {"id": chat, "is_bot": False, "first_name": "Anna"},
            "text": text,
        },
    }


def on_temporal(tmp_path: Path, telegram: TelegramStandIn, temporal: TemporalServer, **settings: Any) -> Installation:
    (tmp_path / "bot.py").write_text(BOT)
    public = {"public_url": "http://127.0.0.1:1", "telegram_mode": "webhook"}
    found = installation(tmp_path, telegram, temporal_address=temporal.address, **public, **settings)
    found.configure(app=tmp_path / "bot.py", temporal_task_queue=tmp_path.name)
    return found


async def bind(rise: Installation, workflow: str, **fields: Any) -> dict[str, Any]:
    body = {"channel": "telegram", "enabled": True, **fields}
    async with (
        aiohttp.ClientSession(headers=rise.headers) as session,
        session.put(f"{rise.url}/api/channel-bindings/wf_{workflow}", json=body) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return dict(answer["data"])


async def bind_to_temporal(rise: Installation) -> None:
    if "--in-process" not in rise.serving:
        await rise.until_capability("worker")
    bound = await bind(rise, "talks", isDefault=True, config={"engine": "temporal"})
    assert bound["config"]["engine"] == "temporal"


async def counts(temporal: TemporalServer, telegram: TelegramStandIn, chats: Iterable[int]) -> list[Counts]:
    client = await Client.connect(temporal.address)
    handles = [client.get_workflow_handle(f"chat:{telegram.bot_id}:{chat}") for chat in chats]
    return [await handle.query(COUNTS, result_type=Counts) for handle in handles]


async def metric(rise: Installation, name: str) -> float:
    async with (
        aiohttp.ClientSession(headers=rise.headers) as session,
        session.get(f"{rise.url}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.req("TMP-1", "TMP-2", "TGM-4", "TGM-5")
async def test_ten_updates_and_three_of_them_again_by_webhook_are_ten_answers_of_one_conversation(
    tmp_path: Path, telegram: TelegramStandIn, temporal_of_its_own: TemporalServer
) -> None:
    async with on_temporal(tmp_path, telegram, temporal_of_its_own) as rise:
        await bind_to_temporal(rise)
        unique = [update(number, f"m{number}") for number in range(10)]
        assert set(await post_all(rise, [*unique, unique[3], unique[0], unique[9]])) == {200}
        await telegram.wait_until(lambda t: len(t.sent) == 10, timeout_seconds=PATIENCE_SECONDS)
        [of_chat] = await counts(temporal_of_its_own, telegram, [42])
        seen = await metric(rise, "rise_signal_to_query_hit_seconds_count")
        code, report = await rise.command("audit", "--json")
    assert code == 0, report
    assert [message.text for message in telegram.sent] == [f"M{number}" for number in range(10)]
    assert (of_chat.told, of_chat.duplicates, of_chat.regressions) == (10, 0, 0)
    assert 0 < seen <= 10, "not what was found at a later look"


@pytest.mark.req("TMP-1", "TMP-2", "ENV-3")
async def test_thirty_five_updates_are_thirty_answers_of_four_conversations_which_count_what_came_late(
    tmp_path: Path, telegram: TelegramStandIn, temporal_of_its_own: TemporalServer
) -> None:
    async with on_temporal(tmp_path, telegram, temporal_of_its_own) as rise:
        await bind_to_temporal(rise)
        assert set(await post_all(rise, thirty_five_updates())) == {200}
        await telegram.wait_until(lambda t: len(t.sent) == 30, timeout_seconds=PATIENCE_SECONDS)
        assert set(await post_all(rise, thirty_five_updates())) == {200}
        code, report = await rise.command("audit", "--json")
        of_chats = await counts(temporal_of_its_own, telegram, range(42, 46))
    assert code == 0, report
    assert len(telegram.sent) == 30
    assert sum(one.told for one in of_chats) == 30
    answered_late = 0
    for said in replies_by_chat(telegram).values():
        assert len(said) == len(set(said))
        answered_late += sum(one < max(said[:at]) for at, one in enumerate(said) if at)
    assert sum(one.regressions for one in of_chats) == answered_late


@pytest.mark.req("TMP-1", "WRK-1")
@pytest.mark.parametrize("victim", ["worker", "both"])
async def test_killed_between_signal_and_result_a_message_is_answered_once_and_paid_for_once(
    tmp_path: Path, telegram: TelegramStandIn, temporal_of_its_own: TemporalServer, victim: str
) -> None:
    async with on_temporal(tmp_path, telegram, temporal_of_its_own, claim_seconds=3) as rise:
        await bind_to_temporal(rise)
        await post_all(rise, [update(1, "slow"), update(2, "after")])
        await eventually((tmp_path / "began").exists, seconds=PATIENCE_SECONDS)
        await rise.kill(gateway=victim == "both", worker=True)
        (tmp_path / "go").touch()
        if victim == "both":
            await rise.start()
        await telegram.wait_until(lambda t: len(t.sent) == 2, timeout_seconds=PATIENCE_SECONDS)
        code, report = await rise.command("audit", "--json")
    assert code == 0, report
    assert [message.text for message in telegram.sent] == ["SLOW", "AFTER"]
    assert (tmp_path / "paid").read_text().split() == ["slow", "after"]


@pytest.mark.req("TGM-4", "TMP-1")
@pytest.mark.parametrize("words", [("serve",), ("serve", "--in-process")], ids=" ".join)
async def test_stopped_in_the_middle_of_a_run_and_started_again_a_message_is_answered_once(
    tmp_path: Path, telegram: TelegramStandIn, temporal_of_its_own: TemporalServer, words: tuple[str, ...]
) -> None:
    """Door, bot, worker, and what works for Temporal, with one stop; in one process, too."""
    async with on_temporal(tmp_path, telegram, temporal_of_its_own, stop_seconds=1) as rise:
        await rise.stop()
        rise.serving = words
        await rise.start()
        await bind_to_temporal(rise)
        await post_all(rise, [update(1, "before"), update(2, "slow"), update(3, "after")])
        await eventually((tmp_path / "began").exists, seconds=PATIENCE_SECONDS)
        assert await rise.stop() == 0
        (tmp_path / "go").touch()
        await rise.start()
        await telegram.wait_until(lambda t: len(t.sent) == 3, timeout_seconds=PATIENCE_SECONDS)
        assert await rise.stop() == 0
        code, report = await rise.command("audit", "--json")
    assert code == 0, report
    assert [message.text for message in telegram.sent] == ["BEFORE", "SLOW", "AFTER"]
    assert (tmp_path / "paid").read_text().split() == ["before", "slow", "after"]


@pytest.mark.req("TMP-4", "CAP-2", "TMP-1")
async def test_with_temporal_down_from_the_start_others_are_answered_and_its_own_are_when_it_is_back(
    tmp_path: Path, telegram: TelegramStandIn, temporal_of_its_own: TemporalServer
) -> None:
    temporal_of_its_own.kill()
    async with on_temporal(tmp_path, telegram, temporal_of_its_own) as rise:
        await bind_to_temporal(rise)
        await bind(rise, "plain", isDefault=False, routes=[{"by": "chat", "value": "43"}])
        own = [update(number, f"m{number}") for number in range(1, 4)]
        others = [update(number, f"m{number}", chat=43) for number in range(11, 14)]
        assert set(await post_all(rise, [*own, *others])) == {200}
        await telegram.wait_until(lambda t: len(t.sent) == 3, timeout_seconds=PATIENCE_SECONDS)
        assert replies_by_chat(telegram) == {"43": [f"plain m{number}" for number in range(11, 14)]}
        await rise.until_capability("temporal", "unavailable")
        pid = rise.pid
        temporal_of_its_own.start()
        await rise.until_capability("temporal")
        await telegram.wait_until(lambda t: len(t.sent) == 6, timeout_seconds=PATIENCE_SECONDS)
        assert rise.pid == pid, "nobody has started it again"
        code, report = await rise.command("audit", "--json")
    assert code == 0, report
    assert replies_by_chat(telegram)["42"] == ["M1", "M2", "M3"]

"""The stand-in as a command: runs until it is stopped, and says what it does.

Promises: one line per call, per webhook request and per lost update, in the order in which they happened.
"""

from __future__ import annotations

from collections.abc import Callable

from rise.testing.telegram.records import Call, Delivery
from rise.testing.telegram.rules import BotSettings, SendRates
from rise.testing.telegram.server import DEFAULT_TOKEN, TelegramStandIn


async def run_standin(
    host: str = "127.0.0.1",
    port: int = 8081,
    token: str = DEFAULT_TOKEN,
    *,
    time_scale: float = 1.0,
    enforces_rates: bool = True,
    accepts_any_token: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until cancelled."""
    rates = SendRates() if enforces_rates else SendRates.unlimited()
    standin = TelegramStandIn(
        token,
        host=host,
        port=port,
        time_scale=time_scale,
        settings=BotSettings(send_rates=rates),
        accepts_any_token=accepts_any_token,
    )
    async with standin as telegram:
        say(_welcome(telegram))
        await _report_for_ever(telegram, say)


def _welcome(telegram: TelegramStandIn) -> str:
    url = telegram.url
    return f"""\
A stand-in for the Telegram Bot API is listening.

  RISE_TELEGRAM_API_BASE={url}
  RISE_TELEGRAM_TOKEN={telegram.token}

Write to the bot:         curl {url}/_standin/updates -d '{{"text": "Hello", "chat_id": 42}}'
See what it sent:         curl {url}/_standin/sent
Lose its next answer:     curl {url}/_standin/faults -d '{{"fault": "commit_then_close"}}'
Stop it with Ctrl+C."""


async def _report_for_ever(telegram: TelegramStandIn, say: Callable[[str], None]) -> None:
    """Say each thing once, when it has ended; one that is still under way does not hold others back."""
    unsaid_calls: list[Call] = []
    unsaid_deliveries: list[Delivery] = []
    seen_calls = seen_deliveries = 0
    while True:
        unsaid_calls += telegram.calls[seen_calls:]
        unsaid_deliveries += telegram.deliveries[seen_deliveries:]
        seen_calls, seen_deliveries = len(telegram.calls), len(telegram.deliveries)
        for call in [call for call in unsaid_calls if call.ended_at is not None]:
            unsaid_calls.remove(call)
            say(_call_line(call))
        for delivery in [delivery for delivery in unsaid_deliveries if delivery.ended_at is not None]:
            unsaid_deliveries.remove(delivery)
            say(_delivery_line(delivery))
        await telegram.wait_for_change()


def _call_line(call: Call) -> str:
    committed = "committed" if call.is_committed else "not committed"
    fault = f", fault {call.fault}" if call.fault else ""
    chat = f" to {call.chat_id}" if call.chat_id is not None else ""
    return f"{call.method}{chat}: {call.status or 'no answer'}, {committed}{fault}"


def _delivery_line(delivery: Delivery) -> str:
    answer = delivery.status or delivery.error or "no answer"
    fault = f", fault {delivery.fault}" if delivery.fault else ""
    return (
        f"update {delivery.update_id} ({delivery.kind}), attempt {delivery.attempt}: "
        f"{answer}, {delivery.outcome}{fault}"
    )

"""A stand-in for the Telegram Bot API server, to test bots against.

It keeps the real server's rules: when a webhook is called again, what waits for what, when an update is gone
for ever, how fast a bot may send, what a text may contain. It can be told what people do, made to fail on a
given call on either side of the commit, and asked what people really saw.

    async with TelegramStandIn() as telegram:
        bot = start_my_bot(api_base=telegram.url, token=telegram.token)
        telegram.fault(Fault.commit_then_close(), method="sendMessage")
        telegram.message("Hello", chat_id=42)
        await telegram.wait_until(lambda t: len(t.sent) == 1)
        assert telegram.repeated() == []

It is not a model of Telegram's servers behind the API: no accounts, no permissions, no media processing.
"""

from rise.testing.telegram import updates
from rise.testing.telegram.faults import DeliveryFault, Fault, FaultScript
from rise.testing.telegram.records import Call, Delivery
from rise.testing.telegram.rules import (
    Bot,
    BotSettings,
    ChatConditions,
    DropReason,
    QueuedUpdate,
    SendRates,
    SentMessage,
    UpdateQueueLimits,
)
from rise.testing.telegram.server import DEFAULT_TOKEN, TelegramStandIn

__all__ = [
    "DEFAULT_TOKEN",
    "Bot",
    "BotSettings",
    "Call",
    "ChatConditions",
    "Delivery",
    "DeliveryFault",
    "DropReason",
    "Fault",
    "FaultScript",
    "QueuedUpdate",
    "SendRates",
    "SentMessage",
    "TelegramStandIn",
    "UpdateQueueLimits",
    "updates",
]

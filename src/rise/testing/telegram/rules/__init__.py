"""The rules of the Bot API server, without any I/O.

Promises: nothing in here opens a socket, sleeps, or reads a clock; `now` is passed in, in seconds since 1970,
and randomness is injected. `Bot` is where to start; each rule has one module named for it.
"""

from rise.testing.telegram.rules.bot import Answer, Bot, BotSettings
from rise.testing.telegram.rules.chats import ChatConditions, ChatMessage, SentMessage
from rise.testing.telegram.rules.params import CallParams, ChatId, UploadedFile
from rise.testing.telegram.rules.refusals import CallRefused
from rise.testing.telegram.rules.send_limits import SendRates
from rise.testing.telegram.rules.update_queue import DropReason, QueuedUpdate, UpdateQueueLimits
from rise.testing.telegram.rules.webhook import Attempt, AttemptOutcome, WebhookAnswer

__all__ = [
    "Answer",
    "Attempt",
    "AttemptOutcome",
    "Bot",
    "BotSettings",
    "CallParams",
    "CallRefused",
    "ChatConditions",
    "ChatId",
    "ChatMessage",
    "DropReason",
    "QueuedUpdate",
    "SendRates",
    "SentMessage",
    "UpdateQueueLimits",
    "UploadedFile",
    "WebhookAnswer",
]

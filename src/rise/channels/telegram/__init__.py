"""Telegram: updates become `Incoming`, effects become Bot API calls, and a call that ended says how.

- `reading.py`    JSON as Telegram writes it
- `updates.py`    the bytes of an update → `Incoming`: key, lane, order, text
- `addresses.py`  what a chat is called here, and how Telegram is told of it
- `texts.py`      how long Telegram takes a text to be, and where to cut one
- `calls.py`      effects → calls
- `outcomes.py`   what came back for a call, or did not → `SendOutcome`
- `channel.py`    `TelegramChannel`: all of the above, and the wire
- `polling.py`    `TelegramPolling`: updates that are fetched instead of pushed

Promises: reading never raises and never changes the bytes; what cannot be read is marked for suspension with
the place and the reason. A call is `NotSent` only if the last byte of its body never went to the socket, and
`Uncertain` if Telegram may have acted and did not say so. The token is in no error and no log.

Refuses: to decide by the text of an exception, to split text inside markup (text too long for one message is
sent plain), to upload files (a file is a URL or a `file_id`), to throw pending updates away.
"""

from rise.channels.telegram.calls import compose, marked
from rise.channels.telegram.channel import CALL_SECONDS, TelegramChannel, TelegramRates, WebhookInfo, bot_id_of
from rise.channels.telegram.outcomes import Answer, Unanswered
from rise.channels.telegram.polling import TelegramPolling
from rise.channels.telegram.texts import split_text, utf16_units
from rise.channels.telegram.updates import CHANNEL, KINDS, read_update

__all__ = [
    "CALL_SECONDS",
    "CHANNEL",
    "KINDS",
    "Answer",
    "TelegramChannel",
    "TelegramPolling",
    "TelegramRates",
    "Unanswered",
    "WebhookInfo",
    "bot_id_of",
    "compose",
    "marked",
    "read_update",
    "split_text",
    "utf16_units",
]

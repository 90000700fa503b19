"""What the parts of the stand-in share: the bots, the records, the script of faults, and its time.

Promises: a call gets its record when it is seen and is committed in one place; whoever waits for something
hears of every change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rise.testing.telegram.faults import FaultScript
from rise.testing.telegram.records import Call, Records
from rise.testing.telegram.rules import Answer, Bot, BotSettings, CallParams
from rise.testing.telegram.rules.update_queue import Dice
from rise.testing.telegram.stand_in_time import Changes, StandInTime


@dataclass(slots=True)
class StandInState:
    time: StandInTime
    dice: Dice
    settings: BotSettings
    accepts_any_token: bool = False
    bots: dict[str, Bot] = field(default_factory=dict)
    records: Records = field(default_factory=Records)
    script: FaultScript = field(default_factory=FaultScript)
    changes: Changes = field(default_factory=Changes)

    def add_bot(self, token: str) -> Bot:
        if not is_token(token):
            raise ValueError("a token is digits, a colon, and at least one character more")
        bot = Bot(token, dice=self.dice, settings=self.settings, sent=self.records.sent)
        self.bots[token] = bot
        self.changes.notify()
        return bot

    def find_bot(self, token: str) -> Bot | None:
        if token not in self.bots and self.accepts_any_token and is_token(token):
            return self.add_bot(token)
        return self.bots.get(token)

    def open_call(self, bot: Bot, method: str, params: CallParams, *, came_from_webhook: bool = False) -> Call:
        """Note a call before anything is done about it."""
        call = Call(
            number=len(self.records.calls) + 1,
            bot_id=bot.bot_id,
            method=method,
            params=params.shown(),
            chat_id=params.chat_id(),
            at=self.time.now(),
            came_from_webhook=came_from_webhook,
        )
        self.records.calls.append(call)
        self.changes.notify()
        return call

    def commit(self, bot: Bot, call: Call, params: CallParams) -> Answer:
        """Do what the call asks for, or refuse it."""
        answer = bot.call(call.method, params, self.time.now())
        call.is_committed = answer.is_ok
        self.changes.notify()
        return answer

    def close_call(self, call: Call) -> None:
        """Nothing more will happen to it."""
        call.ended_at = self.time.now()
        self.changes.notify()


def is_token(token: str) -> bool:
    digits, _, rest = token.partition(":")
    return digits.isascii() and digits.isdigit() and bool(rest)

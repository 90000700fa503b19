"""Pace: when a chat and its account may be sent to.

Promises: in no stretch of time more than the platform takes, and what is saved up while nothing is sent; whatever is
sent, comes late, or is dropped. Answers that people wait for go before what nobody waits for, which is left a quarter.

Refuses: to wait for anybody, it only says how long; to know what the outbox holds, it knows who has asked.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rise.channels.port import Receiver, SendRates
from rise.clock import Clock
from rise.ledger.port import Reply
from rise.rates import ROUNDING_SECONDS, Bucket, Buckets

Account = tuple[str, str]
"""Channel, account."""
Chat = tuple[str, str, str]
"""Channel, account, chat."""

QUARTER: Final = 1 / 4
"""The share of an account's calls that is left to what nobody waits for, however much is answered."""
IDLE_SECONDS: Final = 2.0
"""An account that could have sent for so long, and did not, waits for nobody: whoever comes does so within a second of
its time."""
UNUSED_SECONDS: Final = 600.0
"""Where there are very many tickets, those that are so long overdue are forgotten: their replies were dropped."""
TICKETS_KEPT: Final = 10_000


class Pace:
    """When a chat and its account may be sent to.

    A chat that asks is given a ticket, numbered, and keeps it until it has used it: neither waiting elsewhere nor
    coming late sends it to the end. It is told to come when all will have gone who are expected with lower numbers.
    When it comes, what has really been sent decides, and it may be told anew. Who was due and has not come is expected
    no more until it does: a reply that was dropped is in the way until then at most, or until its account is idle.

    Answers have one line. What nobody waits for, and may be planned or said by a program for thousands at one moment,
    has another. It goes while half of what the account can save up is there, so that answers always find something;
    and every fourth call may be of it in any case. What is urgent goes at once: its platform waits for seconds, and a
    line may be minutes long. It counts all the same.
    """

    def __init__(self, channels: Mapping[str, Receiver], clock: Clock) -> None:
        self._channels = channels
        self._clock = clock
        self._accounts: dict[Account, _Account] = {}
        self._per_second: dict[float, Buckets] = {}
        self._per_minute: dict[float, Buckets] = {}
        self._tickets: dict[Chat, _Ticket] = {}
        self._tickets_kept = TICKETS_KEPT
        self._numbers = itertools.count()

    def wait_seconds(self, reply: Reply) -> float:
        """0.0 if it may go now, until anything else goes; else the seconds after which to ask again."""
        if reply.call.is_urgent or reply.channel not in self._channels:
            return 0.0
        chat, now = _chat_of(reply), self._clock.monotonic()
        account = self._account_of(chat)
        ticket = self._ticket_of(chat, account.line_of(reply), now)
        account_seconds = account.wait_seconds(ticket, now)
        goes_to = _goes_to(reply)
        chat_seconds = max(buckets.wait_seconds(goes_to, now) for buckets in self._buckets_of(goes_to))
        seconds = max(account_seconds, chat_seconds)
        if seconds < ROUNDING_SECONDS:
            return 0.0
        ticket.come_at = now + seconds
        # Others go meanwhile if it is the chat that may not be sent to so soon.
        if account_seconds >= chat_seconds:
            ticket.line.expect(ticket)
        return seconds

    def count(self, reply: Reply) -> None:
        """It goes now."""
        chat, now = _chat_of(reply), self._clock.monotonic()
        self._account_of(chat).count(reply, now)
        if not reply.call.is_urgent:
            self._tickets.pop(chat, None)
            goes_to = _goes_to(reply)
            for buckets in self._buckets_of(goes_to):
                buckets.take(goes_to, now)

    def spare(self, account: Account, chat_id: str) -> bool:
        """Whether a call may go that nobody misses, without making a reply wait. It counts like any other."""
        return self._account_of((*account, chat_id)).sent.take_spare(self._clock.monotonic())

    def forget_tickets(self) -> None:
        """Another may have sent meanwhile, and served the chats that have them. What was sent here counts still."""
        self._tickets.clear()
        for account in self._accounts.values():
            account.forget_tickets()

    def _ticket_of(self, chat: Chat, line: _Line, now: float) -> _Ticket:
        ticket = self._tickets.get(chat)
        # One of the other line was another reply's, which has been dropped meanwhile.
        if ticket is None or ticket.line is not line:
            self._forget_unused(now)
            ticket = self._tickets[chat] = _Ticket(next(self._numbers), line, come_at=now)
        return ticket

    def _forget_unused(self, now: float) -> None:
        if len(self._tickets) >= self._tickets_kept:
            since = now - UNUSED_SECONDS
            self._tickets = {chat: ticket for chat, ticket in self._tickets.items() if ticket.come_at > since}
            # Else each of very many would go through all.
            self._tickets_kept = max(TICKETS_KEPT, 2 * len(self._tickets))

    def _account_of(self, chat: Chat) -> _Account:
        name = chat[:2]
        if name not in self._accounts:
            self._accounts[name] = _Account(self._rates_of(chat).account_per_second)
        return self._accounts[name]

    def _buckets_of(self, chat: Chat) -> list[Buckets]:
        rates = self._rates_of(chat)
        per_second, per_minute = rates.chat_per_second, rates.chat_per_minute
        found = [self._per_second.setdefault(per_second, Buckets(per_second, max(1.0, per_second)))]
        if per_minute is not None:
            found.append(self._per_minute.setdefault(per_minute, Buckets(per_minute / 60, per_minute)))
        return found

    def _rates_of(self, chat: Chat) -> SendRates:
        return self._channels[chat[0]].rates(chat[2])


class _Account:
    """What one account has really been sent, and the lines of those who wait for it."""

    def __init__(self, per_second: float) -> None:
        at_once = max(1.0, per_second)
        self.sent = Bucket(per_second, at_once)
        self._full_at = 0.0
        """When as much is saved up as can be, if nothing else goes."""
        self._quarter = Bucket(per_second * QUARTER, max(1.0, per_second * QUARTER))
        # What goes may be of the half that has to be there: where only one can be saved up, there is no other.
        self._left_to_answers = max(0.0, at_once / 2 - 1)
        self._answers, self._rest = _Line(), _Line()

    def line_of(self, reply: Reply) -> _Line:
        return self._answers if reply.call.is_awaited else self._rest

    def wait_seconds(self, ticket: _Ticket, now: float) -> float:
        """Until it may go, if all come who are expected and nobody else does."""
        for line in (self._answers, self._rest):
            line.pass_over_due(now)
            if now - self._full_at > IDLE_SECONDS:
                line.doubt()
        ahead = ticket.line.come(ticket)
        return self._answer_seconds(ahead, now) if ticket.line is self._answers else self._rest_seconds(ahead, now)

    def _answer_seconds(self, ahead: int, now: float) -> float:
        of_the_rest = min(self._rest.expected_count, ahead * QUARTER / (1 - QUARTER))  # which go among those ahead
        return self.sent.wait_seconds(now, leaving=ahead + of_the_rest)

    def _rest_seconds(self, ahead: int, now: float) -> float:
        # In its quarter it goes even if it is an answer's turn, which then goes next.
        in_its_quarter = max(
            self._quarter.wait_seconds(now, leaving=ahead),
            self.sent.wait_seconds(now, leaving=-1.0),
        )
        after_answers = self.sent.wait_seconds(
            now, leaving=self._left_to_answers + self._answers.expected_count + ahead
        )
        return min(in_its_quarter, after_answers)

    def count(self, reply: Reply, now: float) -> None:
        self.sent.take(now)
        self._full_at = max(self._full_at, now) + 1 / self.sent.tokens_per_second
        if not reply.call.is_awaited and not reply.call.is_urgent and not self._quarter.wait_seconds(now):
            self._quarter.take(now)

    def forget_tickets(self) -> None:
        self._answers, self._rest = _Line(), _Line()


class _Line:
    """Who is expected: has been told to come later, and is not due yet. By number."""

    def __init__(self) -> None:
        self._expected: list[_Ticket] = []
        self._doubted_below = 0
        """Lower numbers count for nothing, until one of them comes."""

    @property
    def expected_count(self) -> int:
        return len(self._expected) - self._count_below(self._doubted_below)

    def come(self, ticket: _Ticket) -> int:
        """How many are expected with a lower number. It is none of them any more itself."""
        if ticket.number < self._doubted_below:
            self._doubted_below = 0
        below = self._count_below(ticket.number)
        if self._expected[below : below + 1] == [ticket]:
            del self._expected[below]
        return below - self._count_below(self._doubted_below)

    def expect(self, ticket: _Ticket) -> None:
        insort(self._expected, ticket, key=_number)

    def pass_over_due(self, now: float) -> None:
        """Only at the front: who is there is told the shortest time, so hardly anybody behind is due before."""
        due = itertools.takewhile(lambda ticket: ticket.come_at <= now, self._expected)
        del self._expected[: sum(1 for _ in due)]

    def doubt(self) -> None:
        """Nobody came who was due: all were dropped, or nothing was asked for a while. Who comes next shows which."""
        if self._expected:
            self._doubted_below = self._expected[-1].number + 1

    def _count_below(self, number: int) -> int:
        return bisect_left(self._expected, number, key=_number)


@dataclass(slots=True, eq=False)
class _Ticket:
    number: int
    line: _Line
    come_at: float


def _number(ticket: _Ticket) -> int:
    return ticket.number


def _chat_of(reply: Reply) -> Chat:
    """In whose line it stands."""
    return reply.channel, reply.account, reply.chat_id


def _goes_to(reply: Reply) -> Chat:
    """A call may name another chat, such as one of admins to which what people write is passed on."""
    return reply.channel, reply.account, str(reply.call.params.get("chat_id", reply.chat_id))

"""Sending: what the ledger means to say becomes calls to platforms, each chat's in order, one at a time.

For each reply: *sending* is written, the call goes out, its end is written, then the chat's next. A crash
before the call sends nothing twice; a crash between the call and its end leaves the one doubt that no
platform without idempotency keys can resolve, and the binding's policy decides what to do with it.

Refuses: to send beside another sender of the installation. A newer one's fence ends the older one's writes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from rise import callbacks, tracing
from rise.bus.port import Bus, Topic, publish_settled
from rise.channels.port import (
    AccountDown,
    Moved,
    NotSent,
    Paused,
    Receiver,
    Refused,
    SendOutcome,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.clock import TICK_SECONDS, Clock
from rise.envelope import Outcome, Reason, Status
from rise.errors import ClaimLost, Unavailable
from rise.ledger.port import (
    Again,
    Delivered,
    Failed,
    HeldUnknown,
    Ledger,
    Office,
    Reply,
    ReplyKind,
    ReplyState,
    Resend,
    SendEnding,
    Sent,
)
from rise.offices import ASK_SECONDS, OfficeClaim
from rise.outages import Outages
from rise.pace import Account, Pace
from rise.queue.port import Queue, Suspend
from rise.service import Loop, Signal, cancel_all, insist, sparingly, spawn
from rise.telemetry import callbacks_given_up_total, log, platform_call_seconds, replies_total

T = TypeVar("T")

LOOK_SECONDS: Final = 1.0
"""How often the outbox is looked at without a hint; also how late a paused chat may go on."""
PLACE_SECONDS: Final = 0.25
"""A chat that has to wait for longer gives its place to others meanwhile; for less that is not worth two writes."""
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
ACCOUNT_RETRY_SECONDS: Final = 60.0
LIMITED_SECONDS: Final = 5.0
"""How long an account pauses that was asked to: then what is tried shows. Its chats pause as long as each was told."""
URGENT_AT_ONCE: Final = 50
"""Places kept for urgent calls: all others may be taken by chats whose platform does not answer."""
TYPING_SECONDS: Final = 4.5
"""Platforms show the indicator for about five."""
TYPING_SECONDS_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    chats_at_once: int = 200
    unknown_policy: str = "resend_marked"
    resends_max: int = 1
    resend_seconds: float = 3.0
    """Not at once: what made it uncertain may last, and would use up the repetition. If it lasts longer, see
    `rise.outages`."""
    repeats_max: int = 5
    """For calls that may take effect twice without harm."""
    stop_seconds: float = 10.0
    """How long a stop waits for calls that are out. Less than a call may take leaves doubts behind."""


class Sender:
    """Sends while its process has the office; what another began and did not end is a doubt, and voids the other."""

    name = "delivery"

    def __init__(
        self,
        *,
        ledger: Ledger,
        queue: Queue,
        channels: Mapping[str, Receiver],
        bus: Bus,
        clock: Clock,
        limits: DeliveryLimits | None = None,
        on_account: Callable[[str, str, str | None], None] = lambda channel, account, trouble: None,
    ) -> None:
        """`on_account(channel, account, trouble)` hears when an account stops or begins to work."""
        self._ledger = ledger
        self._queue = queue
        self._channels = channels
        self._bus = bus
        self._clock = clock
        self._limits = limits or DeliveryLimits()
        self._on_account = on_account
        self._pace = Pace(channels, clock)
        self._outages = Outages(channels, clock, on_trouble=self._hear_of_outage, on_answer=lambda: self._hint.set())
        self._fence: int | None = None
        self._stopping = False
        self._hint = Signal()
        self._office = OfficeClaim(ledger, Office.SENDER, bus.member, clock, on_taken=self._hint.set)
        self._chats: set[asyncio.Task[Any]] = set()
        self._come_back_at: list[float] = []
        self._paused_until: dict[Account, float] = {}
        """Its token is not valid: nothing goes out."""
        self._limited_until: dict[Account, float] = {}
        """It sends too much in all: only what is urgent goes out, which the platform waits for, and counts apart."""
        self._accounts_down: set[Account] = set()
        self._loop = Loop("delivery", self._take, sleep=clock.sleep, on_error=sparingly(_report, clock))
        self._typing = Typing(channels, bus, clock, may_be_shown=self._has_a_call_to_spare)

    async def start(self) -> None:
        self._unsubscribe = self._bus.subscribe(Topic.OUTBOX_READY, lambda _: self._hint.set())
        await self._typing.start()
        await self._office.start()
        await self._loop.start()

    async def stop(self) -> None:
        """Begin no call, let those that are out come to their end within the grace, leave the rest for the next
        start."""
        self._stopping = True
        await self._loop.stop()
        await self._typing.stop()
        self._unsubscribe()
        if self._chats:
            await asyncio.wait(set(self._chats), timeout=self._limits.stop_seconds)
        await cancel_all(self._chats)
        await self._outages.stop()
        await self._office.stop()

    # --- one look at the outbox ---

    async def _take(self) -> None:
        if not self._office.is_ours:
            await self._stand_by()
            return
        if self._fence is None:
            self._fence = await self._ledger.outbox_open()
            self._pace.forget_tickets()
        room = self._limits.chats_at_once - len(self._chats)
        replies = await self._due(self._fence, room)
        if replies is None:
            return
        self._begin(self._fence, replies)
        if not replies or room <= len(replies):
            await self._hint.wait(self._look_again_seconds())

    async def _stand_by(self) -> None:
        """Another sends: what is known of the accounts is that one's to say."""
        if self._office.is_anothers:
            self._forget_accounts()
        await self._hint.wait(ASK_SECONDS)

    async def _due(self, fence: int, room: int) -> list[Reply] | None:
        """The first reply of chats that are free; None if another has opened the outbox."""
        try:
            return await self._ledger.outbox_take(
                fence,
                limit=room,
                urgent_limit=room + URGENT_AT_ONCE,
                accounts_excluded=self._accounts_in(self._paused_until) + self._outages.silent(),
                accounts_urgent_only=self._accounts_in(self._limited_until) + self._outages.waiting(),
            )
        except ClaimLost:
            self._fence = None
            self._office.doubt()
            return None
        except Unavailable:
            # It may have taken chats and failed to say which. Opening the outbox anew frees them; it would also
            # void what is out now, so that comes to its end first.
            if self._chats:
                await asyncio.wait(set(self._chats))
            self._fence = None
            raise

    def _begin(self, fence: int, replies: list[Reply]) -> None:
        # In an outage the first is the one that is tried: rather one that may still be repeated if it fails.
        for reply in sorted(replies, key=lambda reply: reply.resends):
            serving = spawn(self._serve_chat(fence, reply), name=f"chat {reply.chat_id}", into=self._chats)
            serving.add_done_callback(lambda _: self._hint.set())

    def _look_again_seconds(self) -> float:
        """Until the next chat comes back that gave its place away."""
        now = self._clock.monotonic()
        while self._come_back_at and self._come_back_at[0] <= now:
            heapq.heappop(self._come_back_at)
        return min([LOOK_SECONDS, *(max(TICK_SECONDS, at - now) for at in self._come_back_at[:1])])

    async def _serve_chat(self, fence: int, reply: Reply | None) -> None:
        """Send a chat's replies one after the other until there is none, or it has to wait."""
        while reply is not None:
            if reply.state is ReplyState.SENDING and reply.channel not in self._channels:
                # Neither what its policy says nor its mark is known without the channel; until that is back it is a
                # doubt, and no person is asked.
                await self._give_place(fence, reply, ACCOUNT_RETRY_SECONDS)
                return
            try:
                if not await self._comes_up(fence, reply):
                    return
                ending = await self._deliver(fence, reply)
                delivered = await self._record(fence, reply, ending)
                if delivered is None:
                    return
                ended, reply = reply, delivered.next  # which is the one that is held from here on
                await self._conclude(ended, ending, delivered)
            except Exception as error:  # noqa: BLE001 - border: the chat is let go and comes up again, nothing is lost
                if reply is not None:
                    await self._let_go(fence, reply, error)
                return

    async def _comes_up(self, fence: int, reply: Reply) -> bool:
        """Wait for its time, if that is soon: whatever goes meanwhile may put it off again. Else give its place."""
        while not self._stopping and (seconds := self._pace.wait_seconds(reply)):
            if seconds > PLACE_SECONDS:
                await self._give_place(fence, reply, seconds)
                return False
            await self._clock.sleep(seconds)
        if self._stopping or not self._may_go(reply):
            await self._give_place(fence, reply, 0.0)
            return False
        return True

    def _may_go(self, reply: Reply) -> bool:
        """Not into an outage. Its chat is taken again as soon as it may."""
        if reply.state is ReplyState.SENDING or reply.channel not in self._channels:
            return True
        account = (reply.channel, reply.account)
        return self._outages.may_go(account, is_urgent=reply.call.is_urgent, is_repetition=reply.resends > 0)

    async def _deliver(self, fence: int, reply: Reply) -> SendEnding:
        if reply.unreadable is not None:
            # Kept as it is, for a person to decide or a newer version to send; the chat goes on without it.
            return HeldUnknown(reply.unreadable)
        if reply.state is ReplyState.SENDING:
            return self._when_uncertain(reply, "the sender stopped while this was being sent, or a backup was restored")
        if reply.deadline_at_ms is not None and reply.deadline_at_ms < self._queue.now_ms():
            return Failed(_why_too_late(reply), too_late=True)
        channel = self._channels.get(reply.channel)
        if channel is None:
            return Again(ACCOUNT_RETRY_SECONDS, f"the channel {reply.channel} is not configured")
        # Before anybody else can ask: there is no await between its coming up and this.
        self._pace.count(reply)
        await self._ledger.outbox_sending(fence, reply)
        began = self._clock.monotonic()
        outcome = await _sent(channel, reply)
        self._outages.note((reply.channel, reply.account), outcome, began)
        platform_call_seconds.labels(reply.channel).observe(self._clock.monotonic() - began)
        replies_total.labels(reply.channel, reply.account, type(outcome).__name__).inc()
        return self._decide(reply, outcome)

    def _decide(self, reply: Reply, outcome: SendOutcome) -> SendEnding:
        """The reply table of the protocol, row by row."""
        account = (reply.channel, reply.account)
        match outcome:
            case Succeeded(platform_ref):
                self._account_works(account)
                return Sent(platform_ref)
            case NotSent(error):
                return Again(self._pause_seconds(reply, reply.tries), error)
            case Paused(seconds, error, whole_account):
                if whole_account:
                    self._limited_until[account] = self._clock.monotonic() + min(seconds, LIMITED_SECONDS)
                return Again(seconds, error)
            case Unreadable(error, plain):
                return Again(0.0, error, call=plain)
            case Moved(chat_id):
                return Again(0.0, f"the chat has moved to {chat_id}", chat_id=chat_id)
            case Refused(error, chat_gone):
                return Failed(error, chat_gone=chat_gone)
            case AccountDown(error):
                self._pause(account, ACCOUNT_RETRY_SECONDS)
                self._accounts_down.add(account)
                self._on_account(*account, error)
                return Again(ACCOUNT_RETRY_SECONDS, error)
            case Uncertain(error):
                return self._when_uncertain(reply, error, pause_seconds=self._limits.resend_seconds)

    def _when_uncertain(self, reply: Reply, error: str, *, pause_seconds: float = 0.0) -> SendEnding:
        channel = self._channels.get(reply.channel)
        if reply.kind is ReplyKind.CALLBACK:
            # Whoever takes it knows a repetition by its id: it is one more try, and no doubt.
            return Again(self._pause_seconds(reply, reply.tries), error)
        if channel is not None and channel.is_repeatable(reply.call):
            if reply.resends < self._limits.repeats_max:
                return Resend(error, seconds=self._pause_seconds(reply, reply.resends))
            return Failed(error)
        if reply.kind is ReplyKind.NOTICE:
            return HeldUnknown(error)  # nobody is asked about a notice; it stays as it is
        if self._limits.unknown_policy == "hold" or reply.resends >= self._limits.resends_max or channel is None:
            return HeldUnknown(error)
        marked = channel.marked(reply.call) if self._limits.unknown_policy == "resend_marked" else None
        return Resend(error, call=marked, seconds=pause_seconds)

    async def _record(self, fence: int, reply: Reply, ending: SendEnding) -> Delivered | None:
        """Write the end of the call down, however long that takes: forgetting it would make it a doubt."""
        return await self._insist(lambda: self._ledger.outbox_record(fence, reply, ending), reply)

    async def _give_place(self, fence: int, reply: Reply, seconds: float) -> None:
        """Others are sent to while this chat's time has not come."""
        await self._insist(lambda: self._ledger.outbox_release(fence, reply, seconds=seconds), reply)
        if seconds:
            heapq.heappush(self._come_back_at, self._clock.monotonic() + seconds)

    async def _let_go(self, fence: int, reply: Reply, error: Exception) -> None:
        """The chat comes up again after a pause; a reply that was being sent comes up as a doubt."""
        pause = 0.0 if isinstance(error, ClaimLost) else RETRY_SECONDS[0]
        if not isinstance(error, ClaimLost | Unavailable):
            pause = ACCOUNT_RETRY_SECONDS
            waits = f"its chat waits for {pause:g} s"
            log.error("delivery.failed", reply_id=reply.reply_id, error=error, exc_info=error, consequence=waits)
        await self._insist(lambda: self._ledger.outbox_release(fence, reply, seconds=pause), reply)

    async def _insist(self, write: Callable[[], Awaitable[T]], reply: Reply) -> T | None:
        """Repeat a write until the store takes it. None: another sender has taken over."""
        try:
            return await insist(
                write,
                sleep=self._clock.sleep,
                on_refusal=lambda error: log.warning(
                    "reply.record_delayed",
                    reply_id=reply.reply_id,
                    error=error,
                    consequence="if this process stops now, the reply may be sent a second time",
                ),
            )
        except ClaimLost:
            log.warning("delivery.superseded", consequence="another process of this installation sends now")
            return None

    async def _conclude(self, reply: Reply, ending: SendEnding, delivered: Delivered) -> None:
        _log_delivery(reply, ending)
        try:
            if isinstance(ending, HeldUnknown) and reply.kind is ReplyKind.ANSWER:
                generation = int(reply.run_id.rpartition(".")[2])
                await self._queue.hold(reply.task_id, generation, Suspend(Reason.REPLY_HELD, ending.error))
                self._announce(reply, Status.SUSPENDED, None)
            if delivered.ended is not None:
                await self._queue.finish(delivered.ended.task_id, delivered.ended.generation)
                self._announce(reply, delivered.ended.status, delivered.ended.outcome)
        except Unavailable as error:
            # The ledger has it; the supervisor brings the queue in line when the store answers again.
            shown = "it is shown as replying until then"
            log.warning("task.finish_delayed", task_id=reply.task_id, error=error, consequence=shown)

    def _announce(self, reply: Reply, status: Status, outcome: Outcome | None) -> None:
        publish_settled(
            self._bus,
            reply,
            status,
            outcome=outcome,
            reason=Reason.REPLY_HELD if status is Status.SUSPENDED else None,
            workflow_id=reply.workflow_id,
            seconds=max(0.0, (self._queue.now_ms() - reply.accepted_at_ms) / 1000),
        )

    # --- pauses ---

    def _pause(self, account: Account, seconds: float) -> None:
        self._paused_until[account] = max(self._paused_until.get(account, 0.0), self._clock.monotonic() + seconds)

    def _accounts_in(self, pauses: Mapping[Account, float]) -> list[Account]:
        now = self._clock.monotonic()
        return [account for account, until in pauses.items() if until > now]

    def _is_paused(self, account: Account) -> bool:
        pauses = self._accounts_in(self._paused_until) + self._accounts_in(self._limited_until)
        return account in pauses + self._outages.silent() + self._outages.waiting()

    def _has_a_call_to_spare(self, account: Account, chat_id: str) -> bool:
        # Who does not send knows nothing of how much is sent; and each serving process hears of each run.
        return self._office.is_ours and not self._is_paused(account) and self._pace.spare(account, chat_id)

    def _hear_of_outage(self, account: Account, trouble: str | None) -> None:
        if account not in self._accounts_down:
            self._on_account(*account, trouble)

    def _account_works(self, account: Account) -> None:
        if account in self._accounts_down:
            self._accounts_down.discard(account)
            self._paused_until.pop(account, None)
            self._on_account(*account, None)

    def _forget_accounts(self) -> None:
        """Whoever sends now finds out for itself; here nobody would find out that they work again."""
        self._outages.forget()
        for account in list(self._accounts_down):
            self._account_works(account)

    def _pause_seconds(self, reply: Reply, tries: int) -> float:
        if reply.kind is ReplyKind.CALLBACK:
            seconds = callbacks.pause_seconds(reply, self._queue.now_ms())
        else:
            seconds = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
        return seconds * self._clock.random.uniform(0.8, 1.2)


class Typing:
    """Shows people that an answer is on its way while a workflow runs. Best effort, kept nowhere.

    Shown only where the account has a call to spare, and left out otherwise: it never takes a reply's place.
    """

    def __init__(
        self,
        channels: Mapping[str, Receiver],
        bus: Bus,
        clock: Clock,
        *,
        may_be_shown: Callable[[Account, str], bool],
    ) -> None:
        self._channels = channels
        self._may_be_shown = may_be_shown
        self._bus = bus
        self._clock = clock
        self._shown: dict[str, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._unsubscribe = (
            self._bus.subscribe(Topic.RUN_STARTED, self._begin),
            self._bus.subscribe(Topic.RUN_ENDED, self._end),
        )

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        await cancel_all(self._tasks)

    def _begin(self, run: Mapping[str, Any]) -> None:
        channel, account, chat_id = self._channels.get(str(run.get("channel"))), run.get("account"), run.get("chat_id")
        if channel is None or not account or not chat_id or len(self._shown) >= 1000:
            return
        run_id = str(run.get("run_id"))
        if run_id not in self._shown:
            self._shown[run_id] = spawn(
                self._show(channel, str(account), str(chat_id)), name="typing", into=self._tasks
            )
            self._shown[run_id].add_done_callback(lambda _: self._shown.pop(run_id, None))

    def _end(self, run: Mapping[str, Any]) -> None:
        shown = self._shown.get(str(run.get("run_id")))
        if shown is not None:
            shown.cancel()

    async def _show(self, channel: Receiver, account: str, chat_id: str) -> None:
        # Quick answers need no indicator, and each one is a call that counts against the account's rate.
        await self._clock.sleep(0.3)
        until = self._clock.monotonic() + TYPING_SECONDS_MAX
        while self._clock.monotonic() < until:
            if self._may_be_shown((channel.name, account), chat_id):
                await channel.show_typing(account, chat_id)
            await self._clock.sleep(TYPING_SECONDS)


async def _sent(channel: Receiver, reply: Reply) -> SendOutcome:
    shown: tracing.Attributes = {
        "rise.task_id": reply.task_id,
        "rise.reply_id": reply.reply_id,
        "rise.channel": reply.channel,
        "rise.account": reply.account,
        "rise.method": reply.call.method,
        "rise.tries": reply.tries + reply.resends,
    }
    with tracing.span("send", kind="client", parent=reply.call.trace_parent, attributes=shown) as span:
        outcome = await channel.send(reply.account, reply.chat_id, reply.call)
        if not isinstance(outcome, Succeeded):
            span.fail(type(outcome).__name__)
        return outcome


def _why_too_late(reply: Reply) -> str:
    if reply.kind is ReplyKind.CALLBACK:
        return f"given up after {callbacks.GIVE_UP_SECONDS / 3600:g} h: {reply.error or 'it was never tried'}"
    return "too late: the platform no longer takes it"


def _log_delivery(reply: Reply, ending: SendEnding) -> None:
    names = {"reply_id": reply.reply_id, "task_id": reply.task_id, "channel": reply.channel}
    match ending:
        case Sent(platform_ref):
            log.info("reply.delivered", platform_ref=platform_ref, **names)
        case Failed(error) if reply.kind is ReplyKind.CALLBACK:
            callbacks_given_up_total.inc()
            log.error("callback.given_up", error=error, consequence="the result can still be read", **names)
        case Failed(error):
            log.warning("reply.failed", error=error, consequence="it is not sent", **names)
        case Again(seconds, error):
            log.info("reply.postponed", seconds=round(seconds, 1), error=error, **names)
        case Resend(error):
            log.warning("reply.resent", error=error, consequence="the person may see it twice", **names)
        case HeldUnknown(error):
            log.warning("reply.unknown", error=error, consequence="not sent again unless a person says so", **names)


def _report(name: str, error: BaseException) -> None:
    if isinstance(error, Unavailable):
        log.warning(
            "delivery.look_failed", error=error, consequence="replies wait until it answers, each chat's in order"
        )
    else:
        log.error("delivery.look_failed", error=error, consequence="looks again after a pause")

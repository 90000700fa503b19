"""How well each binding serves, found out before anybody asks.

One process of an installation looks (`offices.py`): at what the platform says of the bot, at whether a test message
gets through, at how many runs of the workflow have failed in a row. What it finds, all processes know.

Promises: what is worse than it was, or better, is said once (`channel_binding.health`); looking again, by whichever
process, says nothing new. The worst that was found is what is shown, with its source.

Refuses: to change anything. A webhook that was moved is the registration's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from rise.bindings import BindingRegistry, BindingsSnapshot
from rise.bus.port import Bus, Topic
from rise.capabilities import REMEDIES
from rise.channels.port import PushChannel
from rise.channels.telegram import TelegramChannel, WebhookInfo
from rise.clock import Clock, from_epoch_ms, iso
from rise.definitions.records import NEWER, BindingRecord
from rise.envelope import Status
from rise.errors import RiseError, Unavailable
from rise.offices import OfficeClaim
from rise.runtime.path_test import PathTest
from rise.runtime.registration import shown_url
from rise.service import Loop, Signal
from rise.telemetry import log, printable, redact

FAILURES_DEGRADED: Final = 3
FAILURES_DOWN: Final = 10
"""So many runs in a row, whoever wrote."""
LOOK_SECONDS_MAX: Final = 15.0
TEST_SECONDS_MAX: Final = 30.0
DETAIL_CHARS_MAX: Final = 500

BINDING: Final = "binding"
WORKFLOW: Final = "workflow"
WEBHOOK: Final = "getWebhookInfo"
BOT: Final = "getMe"
TEST: Final = "test"
RUNS: Final = "runs"


class HealthStatus(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


_WORSE: Final = {status: place for place, status in enumerate(["ok", "unknown", "degraded", "down"])}
_CONSEQUENCES: Final = {
    HealthStatus.DEGRADED: "some messages come late or are answered late; none is lost",
    HealthStatus.DOWN: "what comes in is kept and waits; it is not answered",
    HealthStatus.UNKNOWN: "nothing is known to be wrong, nor to be well",
}
_REMEDIES: Final = {
    BINDING: "install that version here, too",
    WORKFLOW: "publish the workflow, switch it on, or bind another",
    WEBHOOK: REMEDIES["telegram_webhook"],
    BOT: REMEDIES["telegram_sending"],
    TEST: "`rise doctor` says what does not work, `rise tasks` what waits",
    RUNS: "see in the log why it fails; `rise suspended` shows what has to be run again",
}

Account = tuple[str, str]
Identity = tuple[str, str, str]
"""Channel, account, workflow."""
_IDENTITY: Final = ("channel", "account", "workflow_id")
_NONE: Final = (0, "")


class Finding(msgspec.Struct, frozen=True):
    status: HealthStatus
    source: str
    detail: str


Look = Callable[[str], Awaitable[Finding]]
"""What its platform says of an account. Raises `RiseError` where it says nothing."""


class BindingHealth(msgspec.Struct, frozen=True, rename="camel"):
    """How well one binding serves."""

    channel: str
    account: str
    workflow_id: str
    status: HealthStatus = HealthStatus.UNKNOWN
    source: str = ""
    detail: str = "not looked at yet"
    last_checked_at: datetime | None = None

    @property
    def identity(self) -> Identity:
        return self.channel, self.account, self.workflow_id

    def shown(self) -> dict[str, Any]:
        """As events and answers have it."""
        checked = None if self.last_checked_at is None else iso(self.last_checked_at)
        shown: dict[str, Any] = msgspec.to_builtins(self)
        return shown | {"lastCheckedAt": checked}


def worst(healths: Iterable[BindingHealth]) -> HealthStatus:
    """Of several; of none nothing is known."""
    return max((one.status for one in healths), key=_WORSE.__getitem__, default=HealthStatus.UNKNOWN)


class HealthBook:
    """What is known of each binding, in every process."""

    def __init__(self) -> None:
        self._known: dict[Identity, BindingHealth] = {}

    def health_of(self, channel: str, account: str, workflow_id: str) -> BindingHealth:
        """The last known, however long ago; `unknown` of what nobody has looked at."""
        return self._known.get((channel, account, workflow_id)) or BindingHealth(channel, account, workflow_id)

    def put(self, health: BindingHealth) -> None:
        self._known[health.identity] = health

    def hear(self, event: Mapping[str, Any]) -> None:
        """That of the process that looks."""
        try:
            self.put(msgspec.convert(event, BindingHealth))
        except msgspec.ValidationError:
            return  # another version's

    def keep_only(self, identities: Iterable[Identity]) -> None:
        """What is not bound any more is not known any more."""
        kept = set(identities)
        self._known = {identity: health for identity, health in self._known.items() if identity in kept}


@dataclass(frozen=True, slots=True)
class Pace:
    look_seconds: float
    test_seconds: float
    """0: no test messages."""


class BindingMonitor:
    """Looks, if it is this process that does."""

    name = "binding monitor"

    def __init__(
        self,
        *,
        registry: BindingRegistry,
        book: HealthBook,
        looks: Mapping[str, Look],
        path: PathTest,
        bus: Bus,
        clock: Clock,
        pace: Pace,
        office: Callable[[Callable[[], None]], OfficeClaim],
    ) -> None:
        """`looks`: by channel. `office`: the claim to it, told what to call when it is taken."""
        self._registry = registry
        self._book = book
        self._looks = looks
        self._path = path
        self._bus = bus
        self._clock = clock
        self._pace = pace
        self._wake = Signal()
        self._office = office(self._wake.set)
        self._look_at = 0.0
        self._version = -1
        self._said: dict[Account, Finding] = {}
        """By the platform."""
        self._tested: dict[Account, Finding] = {}
        self._failures: dict[Identity, tuple[int, str]] = {}
        """In a row, and the last one's words; 0 after a run that did not fail."""
        self._ending: list[Callable[[], None]] = []
        self._loops = [Loop(self.name, self._watch, sleep=clock.sleep, on_error=_report)]
        if pace.test_seconds:
            self._loops.append(Loop("path test", self._test_now_and_then, sleep=clock.sleep, on_error=_report))

    async def start(self) -> None:
        self._ending += [
            self._bus.subscribe(Topic.BINDING_EXAMINED, self._book.hear),
            self._bus.subscribe(Topic.RUN_FAILED, self._count_failure),
            self._bus.subscribe(Topic.TASK_SETTLED, self._see_success),
            self._bus.subscribe(Topic.RUN_RECOVERED, self._end_failures),
            self._registry.on_refresh(self._see_refresh),
        ]
        await self._office.start()
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        for loop in self._loops:
            await loop.stop()
        await self._office.stop()
        while self._ending:
            self._ending.pop()()

    async def check(self) -> None:
        """Look again where it is time, and say what is not as it was."""
        bindings = [one for one in self._registry.bindings() if one.enabled and one.workflow_id]
        accounts = {(one.channel, one.account) for one in bindings}
        await self._ask_platforms({account for account in accounts if account[0] in self._looks})
        checked = [self._judged(binding) for binding in bindings]
        self._book.keep_only(health.identity for health in checked)
        for health in checked:
            self._tell(health)

    async def test(self) -> None:
        """Send a message through each account that is bound."""
        accounts = sorted({(one.channel, one.account) for one in self._registry.bindings() if one.enabled})
        for account in accounts:
            self._tested[account] = await self._test(account)
        self._wake.set()

    # --- finding out ---

    async def _watch(self) -> None:
        await self._wake.wait(self._pace.look_seconds)
        if self._office.is_ours:
            await self.check()

    async def _test_now_and_then(self) -> None:
        await self._clock.sleep(self._pace.test_seconds)
        if self._office.is_ours:
            await self.test()

    async def _ask_platforms(self, accounts: set[Account]) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            accounts = accounts - self._said.keys()
        else:
            self._look_at = now + self._pace.look_seconds
        asked = sorted(accounts)
        for account, finding in zip(asked, await asyncio.gather(*map(self._ask, asked)), strict=True):
            self._said[account] = finding

    async def _ask(self, account: Account) -> Finding:
        channel, number = account
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                return await self._looks[channel](number)
        except TimeoutError:
            return Finding(HealthStatus.DEGRADED, channel, f"no answer within {LOOK_SECONDS_MAX:g} s")
        except RiseError as error:
            return Finding(HealthStatus.DEGRADED, channel, error.public_message)

    async def _test(self, account: Account) -> Finding:
        try:
            tested = await self._path.send(*account, seconds=TEST_SECONDS_MAX)
        except Unavailable as error:
            return Finding(HealthStatus.DOWN, TEST, f"no test message is accepted: {error.public_message}")
        if tested.went_through:
            return Finding(HealthStatus.OK, TEST, "a test message goes through")
        detail = f"test message {tested.task_id} has not come through after {TEST_SECONDS_MAX:g} s"
        return Finding(HealthStatus.DOWN, TEST, detail)

    def _count_failure(self, event: Mapping[str, Any]) -> None:
        identity = _identity(event)
        count = self._failures.get(identity, _NONE)[0] + 1
        self._failures[identity] = (count, str(event.get("error")))
        if count in (FAILURES_DEGRADED, FAILURES_DOWN):
            self._wake.set()

    def _see_success(self, event: Mapping[str, Any]) -> None:
        """How tasks end is heard on their own host only: whoever hears it there tells the others, if it is news."""
        identity = _identity(event)
        if event.get("status") != Status.COMPLETED or not event.get("workflow_id"):
            return
        if self._failures.get(identity, _NONE)[0]:
            self._bus.publish(Topic.RUN_RECOVERED, dict(zip(_IDENTITY, identity, strict=True)))
        else:
            self._failures[identity] = _NONE

    def _end_failures(self, event: Mapping[str, Any]) -> None:
        identity = _identity(event)
        count, _ = self._failures.get(identity, _NONE)
        self._failures[identity] = _NONE
        if count >= FAILURES_DEGRADED:
            self._wake.set()

    def _see_refresh(self, snapshot: BindingsSnapshot) -> None:
        if snapshot.version != self._version:
            self._version = snapshot.version
            self._wake.set()

    # --- judging ---

    def _judged(self, binding: BindingRecord) -> BindingHealth:
        account = binding.channel, binding.account
        findings = [
            self._of_workflow(binding),
            self._said.get(account),
            self._tested.get(account),
            self._of_runs((*account, binding.workflow_id)),
        ]
        found = max((one for one in findings if one), key=lambda one: _WORSE[one.status], default=None)
        health = BindingHealth(*account, binding.workflow_id, last_checked_at=self._clock.now())
        if found is None:
            return msgspec.structs.replace(health, detail="nothing has come of it yet")
        detail = printable(redact(found.detail))[:DETAIL_CHARS_MAX]
        return msgspec.structs.replace(health, status=found.status, source=found.source, detail=detail)

    def _of_workflow(self, binding: BindingRecord) -> Finding | None:
        if not binding.is_readable:
            return Finding(HealthStatus.DOWN, BINDING, f"it was written by {NEWER}: what it meets waits")
        workflow = self._registry.workflow(binding.workflow_id)
        if workflow is not None and workflow.published and workflow.enabled:
            return None
        return Finding(HealthStatus.DOWN, WORKFLOW, "its workflow is not published, or switched off")

    def _of_runs(self, identity: Identity) -> Finding | None:
        known = self._failures.get(identity)
        if known is None:
            return None
        count, error = known
        if count < FAILURES_DEGRADED:
            return Finding(HealthStatus.OK, RUNS, "its runs succeed")
        status = HealthStatus.DOWN if count >= FAILURES_DOWN else HealthStatus.DEGRADED
        return Finding(status, RUNS, f"its last {count} runs have failed: {error}")

    # --- telling ---

    def _tell(self, health: BindingHealth) -> None:
        before, event = self._book.health_of(*health.identity), health.shown()
        self._book.put(health)
        self._bus.publish(Topic.BINDING_EXAMINED, event)
        if not _is_news(before, health):
            return
        self._bus.publish(Topic.BINDING_HEALTH, event)
        if health.status is HealthStatus.OK:
            log.info("channel_binding.health", **event, before=before.status)
            return
        meaning = {"consequence": _CONSEQUENCES[health.status], "remedy": _REMEDIES.get(health.source, "")}
        log.warning("channel_binding.health", **event, before=before.status, **meaning)


def _is_news(before: BindingHealth, health: BindingHealth) -> bool:
    """Not how many updates wait, nor which of two good signs is shown."""
    if before.status is not health.status:
        return True
    return health.status is not HealthStatus.OK and before.source != health.source


def _identity(event: Mapping[str, Any]) -> Identity:
    channel, account, workflow_id = (str(event.get(field)) for field in _IDENTITY)
    return channel, account, workflow_id


# --- what platforms say ---


def webhook_look(telegram: TelegramChannel, url_of: Callable[[str], str | None]) -> Look:
    """Whether Telegram delivers where it is to, and how well. `url_of`: None for a bot that is polled."""
    answers = answering_look(telegram)

    async def look(account: str) -> Finding:
        url = url_of(account)
        if url is None:
            return await answers(account)
        try:
            return _judged_webhook(await telegram.webhook_info(account), url)
        except RiseError as error:
            return Finding(HealthStatus.DEGRADED, WEBHOOK, error.public_message)

    return look


def answering_look(channel: PushChannel) -> Look:
    """Whether the platform answers to the bot at all, which asks for its updates itself."""

    async def look(account: str) -> Finding:
        trouble = await channel.trouble(account)
        return Finding(HealthStatus.DEGRADED if trouble else HealthStatus.OK, BOT, trouble or "the platform answers")

    return look


def _judged_webhook(state: WebhookInfo, url: str) -> Finding:
    if state.url != url:
        detail = f"Telegram delivers to {shown_url(state.url)}, not to {url}"
        return Finding(HealthStatus.DEGRADED, WEBHOOK, detail)
    waiting = state.pending_update_count
    if state.last_error_message and waiting:
        when = f" at {iso(from_epoch_ms(state.last_error_date * 1000))}" if state.last_error_date else ""
        detail = f"{waiting} updates wait at Telegram, whose last try failed{when}: {state.last_error_message}"
        return Finding(HealthStatus.DEGRADED, WEBHOOK, detail)
    return Finding(HealthStatus.OK, WEBHOOK, f"Telegram delivers to {url}; {waiting} updates wait there")


def _report(name: str, error: BaseException) -> None:
    log.warning(
        "binding_health.failed", duty=name, error=error, consequence="what is shown is as old as it says; tried again"
    )

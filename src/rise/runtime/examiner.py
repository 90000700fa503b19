"""Finds out how well each binding serves, before anybody asks.

One process of an installation looks (`offices.py`): at what the platform says of the bot, at whether a test message
gets through, at how many runs of the workflow have failed in a row. What it finds, all processes know.

Promises: what is worse than it was, or better, is said once (`channel_binding.health`); looking again, by whichever
process, says nothing new.

Refuses: to change anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from rise.bindings import BindingRegistry, BindingsSnapshot
from rise.bus.port import Bus, Topic
from rise.clock import Clock
from rise.definitions.records import NEWER, BindingRecord
from rise.errors import RiseError, Unavailable
from rise.offices import OfficeClaim
from rise.runtime.binding_health import (
    BINDING,
    TEST,
    WORKFLOW,
    BindingHealth,
    Finding,
    HealthBook,
    HealthStatus,
    worst_of,
)
from rise.runtime.path_test import PathTest
from rise.runtime.platform_looks import Look
from rise.runtime.run_failures import RunFailures
from rise.service import Loop, Signal, sparingly
from rise.telemetry import log, printable, redact

LOOK_SECONDS_MAX: Final = 15.0
TEST_SECONDS_MAX: Final = 30.0
DETAIL_CHARS_MAX: Final = 500

Account = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LookTimes:
    look_seconds: float
    test_seconds: float
    """0: no test messages."""


class Examiner:
    """Looks, if it is this process that does."""

    name = "examiner"

    def __init__(
        self,
        *,
        registry: BindingRegistry,
        book: HealthBook,
        looks: Mapping[str, Look],
        path: PathTest,
        bus: Bus,
        clock: Clock,
        times: LookTimes,
        office: Callable[[Callable[[], None]], OfficeClaim],
    ) -> None:
        """`looks`: by channel. `office`: the claim to it, told what to call when it is taken."""
        self._registry = registry
        self._book = book
        self._looks = looks
        self._path = path
        self._bus = bus
        self._clock = clock
        self._times = times
        self._wake = Signal()
        self._office = office(self._wake.set)
        self._look_at = 0.0
        self._version = -1
        self._said: dict[Account, Finding] = {}
        """By the platform."""
        self._tested: dict[Account, Finding] = {}
        self._failures = RunFailures(bus, self._wake.set)
        self._ending: list[Callable[[], None]] = []
        self._loops = [Loop(self.name, self._watch, sleep=clock.sleep, on_error=sparingly(_report, clock))]
        if times.test_seconds:
            self._loops.append(
                Loop("path test", self._test_now_and_then, sleep=clock.sleep, on_error=sparingly(_report, clock))
            )

    async def start(self) -> None:
        self._ending += [
            self._bus.subscribe(Topic.BINDING_EXAMINED, self._book.hear),
            self._registry.on_refresh(self._see_refresh),
        ]
        self._failures.start()
        await self._office.start()
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        for loop in self._loops:
            await loop.stop()
        await self._office.stop()
        self._failures.stop()
        while self._ending:
            self._ending.pop()()

    async def check(self) -> None:
        """Look again where it is time, and say what is not as it was."""
        bindings = [one for one in self._registry.bindings() if one.is_met and one.workflow_id]
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
        await self._wake.wait(self._times.look_seconds)
        if self._office.is_ours:
            await self.check()

    async def _test_now_and_then(self) -> None:
        await self._clock.sleep(self._times.test_seconds)
        if self._office.is_ours:
            await self.test()

    async def _ask_platforms(self, accounts: set[Account]) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            accounts = accounts - self._said.keys()
        else:
            self._look_at = now + self._times.look_seconds
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
            self._failures.finding((*account, binding.workflow_id)),
        ]
        found = worst_of(findings)
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
        log.warning("channel_binding.health", **event, before=before.status, **health.meaning())


def _is_news(before: BindingHealth, health: BindingHealth) -> bool:
    """Not how many updates wait, nor which of two good signs is shown."""
    if before.status is not health.status:
        return True
    return health.status is not HealthStatus.OK and before.source != health.source


def _report(name: str, error: BaseException) -> None:
    log.warning(
        "binding_health.failed", duty=name, error=error, consequence="what is shown is as old as it says; tried again"
    )

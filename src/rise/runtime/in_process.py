"""A worker in this process, its definitions in line with the code it has loaded.

Promises: it works as soon as the store takes writes, which whoever starts it need not wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from rise.bus.port import Topic
from rise.conversations.running import ConversationRuns
from rise.envelope import Reason
from rise.errors import Unavailable
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.assembly.temporal import build_conversation_worker
from rise.runtime.assembly.workers import build_conversation_runs, build_runner, build_worker, workflow_records
from rise.service import Loop, Service, cancel_all, spawn, stop_all
from rise.telemetry import log
from rise.workflows.definition import App, WorkflowDefinition, load_app

STORE_RETRY_SECONDS: Final = 2.0
HINT_SECONDS: Final = 10.0


class InProcessWorker:
    """A worker, with the definitions brought in line with the code it has loaded."""

    name = "worker"

    def __init__(
        self,
        house: House,
        workflows: dict[str, WorkflowDefinition] | None = None,
        *,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        defines: bool = True,
    ) -> None:
        """`workflows`, `functions`: of the module that is configured, unless they are given.

        `defines`: what it has loaded is what there is. Only serve's own worker says so; others add hands."""
        self._house = house
        self._defines = defines
        app = load_app(house.settings.app) if workflows is None else App(workflows, dict(functions or {}))
        self._app = app
        self._build()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_begun = False
        self._hints = Loop("worker.hints", self._follow_hints, sleep=house.clock.sleep, on_error=_ignore_hint)

    @property
    def is_worn_out(self) -> bool:
        return self._worker.is_worn_out

    async def start(self) -> None:
        """Now, or as soon as the store takes writes: nobody else has to wait for that."""
        try:
            await self._begin()
        except Unavailable as error:
            log.warning("worker.start_delayed", error=error, consequence="messages wait until the store is back")
            spawn(self._begin_later(), name="worker.start", into=self._tasks)

    async def stop(self) -> None:
        await self._hints.stop()
        await cancel_all(self._tasks)
        await self._stop_worker()

    async def restart(self) -> None:
        """It has been seen to do nothing: a new one takes its place."""
        await self._hints.stop()
        await self._stop_worker()
        self._build()
        await self.start()

    def _build(self) -> None:
        runner = build_runner(self._house, self._app.workflows, self._app.functions)
        carriers = self._build_carriers(build_conversation_runs(self._house, runner))
        self._worker = build_worker(self._house, runner)
        # The worker ends first: what it has claimed waits for what its conversations come to.
        self._services: list[Service] = [runner, *carriers, self._worker]

    def _build_carriers(self, runs: ConversationRuns) -> Sequence[Service]:
        """What carries conversations on."""
        carrier = build_conversation_worker(self._house, runs)
        return [] if carrier is None else [carrier]

    async def _stop_worker(self) -> None:
        if not self._has_begun:
            return
        self._has_begun = False
        await stop_all(self._services, on_error=report_stop)

    async def _follow_hints(self) -> None:
        """Woken by the queue itself: whoever accepted may be on another host, where our bus does not reach."""
        full = self._house.stores.full
        assert full is not None and full.wait_for_hint is not None
        if await full.wait_for_hint(full.journals.place, HINT_SECONDS):
            self._worker.wake()

    async def _begin_later(self) -> None:
        while not self._has_begun:
            await self._house.clock.sleep(STORE_RETRY_SECONDS)
            with suppress(Unavailable):
                await self._begin()

    async def _begin(self) -> None:
        house = self._house
        if self._defines:
            records = workflow_records(self._app.workflows)
            await house.editor.follow_code(records, house.channels.accounts())
            await house.bindings.refresh()
        else:
            await house.bindings.refresh()
        # Written by a newer version and left alone by an older one: perhaps this one can read them.
        await house.queue.resume(Selection(reason=Reason.SCHEMA_NEWER), limit=1_000_000)
        for service in self._services:
            await service.start()
        if house.stores.full is not None and house.stores.full.wait_for_hint is not None:
            await self._hints.start()
        self._has_begun = True
        house.bus.publish(Topic.LANES_READY)


def _ignore_hint(name: str, error: BaseException) -> None:
    """Whoever is not woken looks by himself."""
    log.debug("worker.hints_failed", error=error)


def report_stop(name: str, error: BaseException) -> None:
    log.warning("service.stop_failed", service=name, error=error, consequence="left as a crash would leave it")

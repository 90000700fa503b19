"""`rise serve` and `rise worker`: what starts, in which order, and how it stops.

Doors close first, so that nothing new enters; then the worker, whose claims need the queue to be settled;
then the sender, because workers fill the outbox; stores last.

Refuses: a directory that another `rise serve` has (`StoreLocked`); to end because its store is away. The doors answer
503 meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from rise.bus.port import Topic
from rise.capabilities import REMEDIES, CapabilityStatus
from rise.channels.telegram import TelegramChannel
from rise.conversations.running import ConversationRuns
from rise.definitions.port import Kind
from rise.definitions.records import CODE, workflow_of
from rise.envelope import Reason
from rise.errors import SettingsInvalid, Unavailable
from rise.queue.port import Selection
from rise.runtime import assembly
from rise.runtime.alert_posts import AlertPosts, Post, SignedWebhook, TelegramChat
from rise.runtime.alerts import AlertMessage, Alerts
from rise.runtime.assembly import House
from rise.runtime.bots import Bot
from rise.runtime.overload import MEGABYTE, Overload, OverloadLimits
from rise.runtime.pipeline import Pipeline, PipelineLimits
from rise.runtime.probes import register_probes, run_needs
from rise.runtime.processes import EXIT_WORN_OUT, Parent, WorkerProcess, spare_the_collector, stop_on_signals
from rise.runtime.registration import WEBHOOK, TelegramRegistration
from rise.runtime.supervisor import FORGET_AFTER_SECONDS, MEASURE_SECONDS, Duties, Supervisor
from rise.service import Loop, Service, cancel_all, spawn, start_all, stop_all
from rise.telemetry import keep_out_of_logs, log
from rise.workflows.definition import App, WorkflowDefinition, load_app

STORE_RETRY_SECONDS: Final = 2.0
HINT_SECONDS: Final = 10.0
DEFINED_SECONDS_MAX: Final = 30.0
"""How long an added worker waits for serve's own to say what there is."""

WITHOUT_CODE: Final = "RISE_APP is not set: this worker would have nothing to run. Set it as `rise serve` has it."


class Door(Service, Protocol):
    """Where requests come in."""

    port: int


async def serve(
    house: House,
    build_door: Callable[[House], Door],
    *,
    in_process: bool = False,
    on_ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT. Raises `StoreLocked` if the directory has another."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    house = assembly.reach_temporal(house)
    tracing = assembly.build_tracing(house, "serve")
    house.stores.directory.own(alone=house.stores.full is None)
    try:
        await open_stores(house)
        await assembly.learn_bots(house)
        door = build_door(house)
        worker = InProcessWorker(house) if in_process else _worker_process(house, stop)
        posts = build_alert_posts(house)
        supervisor = build_supervisor(house, restart_worker=worker.restart, tell=posts.tell)
        services: list[Service] = [*tracing, house.bus, *house.stores.services(), *_keepers(house)]
        services += [house.bindings, house.chats]
        services += assembly.build_write_back(house)
        services += [posts, supervisor, assembly.build_sender(house), worker, *_temporal_services(house)]
        services += [door, *_telegram_services(house)]
        services += [assembly.build_examiner(house), assembly.build_pulse_taker(house)]
        await start_all(services, on_error=_report_stop)
        spare_the_collector()
        log.info("serve.started", port=door.port, data_dir=str(house.settings.data_dir))
        on_ready(door.port)
        await stop.wait()
        log.info("serve.stopping")
        await stop_all(services, on_error=_report_stop)
    finally:
        # After the sender: a connection closed under a call that is out leaves its end in doubt.
        await house.channels.close()
        await house.model.close()
        if house.temporal is not None:
            house.temporal.close()
        await house.stores.close()
        house.stores.directory.disown()
    log.info("serve.stopped")


async def work(house: House, *, parent_fd: int | None = None) -> int:
    """Run a worker until told to stop, or its parent is gone. Returns the exit code.

    Raises `SettingsInvalid` for a worker of its own that has no code where workflows are in code.
    """
    stop = asyncio.Event()
    stop_on_signals(stop)
    parent = None
    if parent_fd is not None:
        # Ctrl-C and service managers reach the whole group; the parent says when this one stops.
        for asked in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(asked, lambda: None)
        # Before anything that waits: an orphan ends, even while its store is away.
        parent = Parent(parent_fd, house.clock)
        parent.watch(stop.set, grace_seconds=house.settings.stop_seconds)
    house = assembly.reach_temporal(house)
    tracing = assembly.build_tracing(house, "worker")
    app = load_app(house.settings.app)
    await open_stores(house, until=stop)
    try:
        if parent is None:
            await _until_defined(house, app.workflows, stop)
        if not stop.is_set():
            if parent is None and house.settings.app is None:
                await _refuse_without_code(house)
            await assembly.learn_bots(house)
            worker = InProcessWorker(house, app.workflows, functions=app.functions, defines=parent is not None)
            await _work_until(stop, worker, house, parent, tracing)
    finally:
        await house.channels.close()
        await house.model.close()
        if house.temporal is not None:
            house.temporal.close()
        await house.stores.close()
    return 0 if stop.is_set() else EXIT_WORN_OUT


async def _work_until(
    stop: asyncio.Event, worker: InProcessWorker, house: House, parent: Parent | None, tracing: Sequence[Service]
) -> None:
    """Or until the worker is worn out."""
    services: list[Service] = [*tracing, house.bus, *house.stores.services(), house.bindings, house.chats]
    services += [*_telegram_services(house, receives=False), worker]
    await start_all(services, on_error=_report_stop)
    spare_the_collector()
    if parent is not None:
        parent.beat()
    while not stop.is_set() and not worker.is_worn_out:
        await _wait(stop, 1.0)
    await stop_all(services, on_error=_report_stop)
    if parent is not None:
        await parent.stop()


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
        runner = assembly.build_runner(self._house, self._app.workflows, self._app.functions)
        carriers = self._build_carriers(assembly.build_conversation_runs(self._house, runner))
        self._worker = assembly.build_worker(self._house, runner)
        # The worker ends first: what it has claimed waits for what its conversations come to.
        self._services: list[Service] = [runner, *carriers, self._worker]

    def _build_carriers(self, runs: ConversationRuns) -> Sequence[Service]:
        """What carries conversations on."""
        carrier = assembly.build_conversation_worker(self._house, runs)
        return [] if carrier is None else [carrier]

    async def _stop_worker(self) -> None:
        if not self._has_begun:
            return
        self._has_begun = False
        await stop_all(self._services, on_error=_report_stop)

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
            records = assembly.workflow_records(self._app.workflows)
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


def _keepers(house: House) -> list[Service]:
    keeper = assembly.build_keeper(house)
    return [] if keeper is None else [keeper]


def _temporal_services(house: House) -> list[Service]:
    """After the worker, which runs what their timers fire; stopped after the doors, behind which they are planned."""
    if house.temporal is None:
        return []
    arming = assembly.build_arming(house, house.temporal)
    return [arming, assembly.build_temporal_worker(house, house.temporal, on_built=arming.arm_all)]


def _telegram_services(house: House, *, receives: bool = True) -> list[Service]:
    """`receives`: not only writes with the bots, as a worker does."""
    telegram = house.channels.telegram

    def enter(bot: Bot) -> Service:
        assert telegram is not None
        if bot.webhook_url is None:
            return assembly.polling_of(house, telegram, bot.account)
        return _registration(house, telegram, bot.account, bot.webhook_url)

    bots = assembly.build_bots(house, enter=enter if receives else None)
    return [] if bots is None else [bots]


def _registration(house: House, telegram: TelegramChannel, account: str, url: str) -> TelegramRegistration:
    return TelegramRegistration(
        telegram,
        account=account,
        url=url,
        secret=house.webhook_secret(account),
        directory=house.stores.directory,
        capabilities=house.capabilities,
        clock=house.clock,
        capability=assembly.capability_of(house, WEBHOOK, account),
    )


def build_supervisor(
    house: House,
    *,
    restart_worker: Callable[[], Awaitable[None]] | None = None,
    tell: Callable[[AlertMessage], None] = lambda message: None,
    forget_after_seconds: float = FORGET_AFTER_SECONDS,
) -> Supervisor:
    """`restart_worker`: of the worker that belongs to this process; `tell`: where alerts go beside the log;
    `forget_after_seconds`: as in `Duties`."""
    settings = house.settings
    alerts = Alerts(house.clock, tell, settings.alert_quiet_seconds, house.alerts)
    register_probes(house)
    return Supervisor(
        queue=house.queue,
        ledger=house.ledger,
        bus=house.bus,
        bindings=house.bindings,
        channels=house.channels.by_name(),
        capabilities=house.capabilities,
        pipeline=_pipeline(house, restart_worker, alerts),
        clock=house.clock,
        duties=Duties(
            resume_per_second=settings.resume_per_second,
            late_after_seconds=settings.late_after_seconds,
            late_text=settings.late_message,
            failed_text=settings.failed_message,
            keep_finished_seconds=settings.keep_finished_days * 86400,
            keep_raw_seconds=_in_seconds(settings.keep_raw_days),
            keep_history_seconds=_in_seconds(settings.keep_history_days),
            forget_after_seconds=forget_after_seconds,
            suspended_alert_count=settings.suspended_alert_count,
            suspended_alert_seconds=settings.suspended_alert_hours * 3600,
        ),
        callbacks=house.callbacks,
    )


def _in_seconds(days: float | None) -> float | None:
    return None if days is None else days * 86400


def _pipeline(house: House, restart_worker: Callable[[], Awaitable[None]] | None, alerts: Alerts) -> Pipeline:
    settings = house.settings
    pause = {"seconds": MEASURE_SECONDS * 3}
    overload = Overload(
        OverloadLimits(
            backlog_warn=settings.backlog_warn,
            backlog_max=settings.backlog_max,
            mode=settings.overload,
            disk_free_warn_bytes=settings.disk_free_warn_mb * MEGABYTE,
            disk_free_min_bytes=settings.disk_free_min_mb * MEGABYTE,
        ),
        admission=house.intake.admission,
        capabilities=house.capabilities,
        alerts=alerts,
        pause_workers=lambda: house.bus.publish(Topic.RUNNING_PAUSED, pause),
        anonymous=house.channels.anonymous,
    )
    return Pipeline(
        queue=house.queue,
        ledger=house.ledger,
        capabilities=house.capabilities,
        overload=overload,
        alerts=alerts,
        clock=house.clock,
        channels=house.channels.by_name(),
        anonymous=house.channels.anonymous,
        limits=PipelineLimits(settings.pipeline_stalled_seconds, run_needs(house)),
        disk_space=house.stores.directory.space,
        restart_worker=restart_worker,
        is_filled=house.stores.is_filled,
        lacking=house.stores.lacking_in_queue,
        on_counted=lambda depth: house.pulse.note(depth, house.clock.now()),
    )


def build_alert_posts(house: House) -> AlertPosts:
    """Who is told of alerts, as configured: perhaps nobody."""
    settings, channels = house.settings, house.channels
    posts: list[Post] = []
    if settings.alert_webhook_url is not None and settings.alert_webhook_secret is not None:
        url, secret = settings.alert_webhook_url.get_secret_value(), settings.alert_webhook_secret.get_secret_value()
        keep_out_of_logs([url, secret])
        posts.append(SignedWebhook(url, secret, house.clock))
    if settings.alert_telegram_chat is not None and channels.telegram is not None and channels.telegram_account:
        posts.append(TelegramChat(channels.telegram, channels.telegram_account, settings.alert_telegram_chat))
    return AlertPosts(posts, house.clock)


def _worker_process(house: House, stop: asyncio.Event) -> WorkerProcess:
    # Before the supervisor looks: as long as nothing is said of it, nothing would wait for it.
    house.capabilities.set("worker", CapabilityStatus.DEGRADED, "starting")
    return WorkerProcess(
        capabilities=house.capabilities,
        clock=house.clock,
        stall_seconds=house.settings.worker_stall_seconds,
        stop_seconds=house.settings.stop_seconds,
        stop=stop,
    )


async def open_stores(house: House, *, until: asyncio.Event | None = None) -> None:
    """The gateway starts without its store, answering 503, and goes on when it is back; a worker waits."""
    while True:
        try:
            await house.stores.open()
            return
        except Unavailable as error:
            store = "ledger" if house.stores.ledger_capability == "ledger" else "disk"
            house.capabilities.set(store, CapabilityStatus.UNAVAILABLE, error.public_message, error.remedy)
            log.error(
                "store.unavailable",
                error=error,
                consequence="nothing is accepted until it is back",
                remedy=error.remedy or REMEDIES[store],
            )
            if until is None or until.is_set():
                return
            await house.clock.sleep(STORE_RETRY_SECONDS)


async def _until_defined(house: House, workflows: Mapping[str, WorkflowDefinition], stop: asyncio.Event) -> None:
    """On a new directory, until serve's own worker has bound what its code asks for, there is no workflow for anybody;
    people would be told so."""
    asked = {channel for workflow in workflows.values() for channel in workflow.channels}
    places = [place for place in house.channels.accounts().items() if place[0] in asked]
    give_up_at = house.clock.monotonic() + DEFINED_SECONDS_MAX
    while not stop.is_set() and house.clock.monotonic() < give_up_at:
        try:
            await house.bindings.refresh()
            if house.bindings.version and all(house.bindings.is_asked_for(*place) for place in places):
                return
        except Unavailable:
            pass  # asked again in a moment
        await _wait(stop, 0.5)


async def _refuse_without_code(house: House) -> None:
    """A worker that has no code takes up messages of workflows in code only to hand them back, and holds them up."""
    latest = await house.stores.definitions.latest([Kind.PUBLISHED])
    published = [workflow for workflow in map(workflow_of, latest.definitions) if workflow.published]
    if not published or any(workflow.kind == CODE for workflow in published):
        raise SettingsInvalid([WITHOUT_CODE])


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _ignore_hint(name: str, error: BaseException) -> None:
    """Whoever is not woken looks by himself."""
    log.debug("worker.hints_failed", error=error)


def _report_stop(name: str, error: BaseException) -> None:
    log.warning("service.stop_failed", service=name, error=error, consequence="left as a crash would leave it")

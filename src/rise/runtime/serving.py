"""`rise serve` and `rise worker`: what starts, in which order, and how it stops.

Doors close first, so that nothing new enters; then the worker, whose claims need the queue to be settled;
then the sender, because workers fill the outbox; stores last.

Refuses: a directory that another `rise serve` has (`StoreLocked`); to end because its store is away. The doors answer
503 meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from rise.capabilities import REMEDIES, CapabilityStatus
from rise.definitions.port import Kind
from rise.definitions.records import CODE, workflow_of
from rise.errors import SettingsInvalid, Unavailable
from rise.runtime.assembly.bots import build_bots, learn_bots, polling_of, registration_of
from rise.runtime.assembly.house import House
from rise.runtime.assembly.services import (
    build_alert_posts,
    build_examiner,
    build_keeper,
    build_pulse_taker,
    build_sender,
    build_tracing,
    build_write_back,
)
from rise.runtime.assembly.supervision import build_supervisor, build_worker_process
from rise.runtime.assembly.temporal import build_arming, build_temporal_worker, reach_temporal
from rise.runtime.bots import Bot
from rise.runtime.in_process import STORE_RETRY_SECONDS, InProcessWorker, report_stop
from rise.runtime.processes import EXIT_WORN_OUT, Parent, spare_the_collector, stop_on_signals
from rise.service import Service, start_all, stop_all
from rise.telemetry import log
from rise.workflows.definition import WorkflowDefinition, load_app

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
    house = reach_temporal(house)
    tracing = build_tracing(house, "serve")
    house.stores.directory.own(alone=house.stores.full is None)
    try:
        await open_stores(house)
        await learn_bots(house)
        door = build_door(house)
        worker = InProcessWorker(house) if in_process else build_worker_process(house, stop)
        posts = build_alert_posts(house)
        supervisor = build_supervisor(house, restart_worker=worker.restart, tell=posts.tell)
        services: list[Service] = [*tracing, house.bus, *house.stores.services(), *_keepers(house)]
        services += [house.bindings, house.chats]
        services += build_write_back(house)
        services += [posts, supervisor, build_sender(house), worker, *_temporal_services(house)]
        services += [door, *_telegram_services(house)]
        services += [build_examiner(house), build_pulse_taker(house)]
        await start_all(services, on_error=report_stop)
        spare_the_collector()
        log.info("serve.started", port=door.port, data_dir=str(house.settings.data_dir))
        on_ready(door.port)
        await stop.wait()
        log.info("serve.stopping")
        await stop_all(services, on_error=report_stop)
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
    house = reach_temporal(house)
    tracing = build_tracing(house, "worker")
    app = load_app(house.settings.app)
    await open_stores(house, until=stop)
    try:
        if parent is None:
            await _until_defined(house, app.workflows, stop)
        if not stop.is_set():
            if parent is None and house.settings.app is None:
                await _refuse_without_code(house)
            await learn_bots(house)
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
    await start_all(services, on_error=report_stop)
    spare_the_collector()
    if parent is not None:
        parent.beat()
    while not stop.is_set() and not worker.is_worn_out:
        await _wait(stop, 1.0)
    await stop_all(services, on_error=report_stop)
    if parent is not None:
        await parent.stop()


def _keepers(house: House) -> list[Service]:
    keeper = build_keeper(house)
    return [] if keeper is None else [keeper]


def _temporal_services(house: House) -> list[Service]:
    """After the worker, which runs what their timers fire; stopped after the doors, behind which they are planned."""
    if house.temporal is None:
        return []
    arming = build_arming(house, house.temporal)
    return [arming, build_temporal_worker(house, house.temporal, on_built=arming.arm_all)]


def _telegram_services(house: House, *, receives: bool = True) -> list[Service]:
    """`receives`: not only writes with the bots, as a worker does."""
    telegram = house.channels.telegram

    def enter(bot: Bot) -> Service:
        assert telegram is not None
        if bot.webhook_url is None:
            return polling_of(house, telegram, bot.account)
        return registration_of(house, telegram, bot.account, bot.webhook_url)

    bots = build_bots(house, enter=enter if receives else None)
    return [] if bots is None else [bots]


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

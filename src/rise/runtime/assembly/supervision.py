"""Who looks after what waits, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rise.bus.port import Topic
from rise.runtime.alerts import AlertMessage, Alerts
from rise.runtime.assembly.house import House
from rise.runtime.overload import MEGABYTE, Overload, OverloadLimits
from rise.runtime.pipeline import Pipeline, PipelineLimits
from rise.runtime.probes import register_probes, run_needs
from rise.runtime.processes import WorkerProcess
from rise.runtime.supervisor import FORGET_AFTER_SECONDS, MEASURE_SECONDS, Duties, Supervisor


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
        pipeline=build_pipeline(house, restart_worker, alerts),
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


def build_pipeline(house: House, restart_worker: Callable[[], Awaitable[None]] | None, alerts: Alerts) -> Pipeline:
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
        lacking_in_queue=house.stores.lacking_in_queue,
        on_counted=lambda depth: house.pulse.note(depth, house.clock.now()),
    )


def build_worker_process(house: House, stop: asyncio.Event) -> WorkerProcess:
    # Before the supervisor looks: as long as nothing is said of it, nothing would wait for it.
    house.capabilities.begin("worker", "starting")
    return WorkerProcess(
        capabilities=house.capabilities,
        clock=house.clock,
        stall_seconds=house.settings.worker_stall_seconds,
        stop_seconds=house.settings.stop_seconds,
        stop=stop,
    )

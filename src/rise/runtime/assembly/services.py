"""What a process runs beside its doors and its worker.

Refuses: to say in which order they start; that is `serving.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from rise import __version__
from rise.capabilities import CapabilityStatus
from rise.channels.telegram import CALL_SECONDS
from rise.copies.keeper import Keeper
from rise.delivery import DeliveryLimits, Sender
from rise.errors import SettingsInvalid
from rise.ledger.port import Office
from rise.offices import OfficeClaim
from rise.runtime.alert_posts import AlertPosts, Post, SignedWebhook, TelegramChat
from rise.runtime.assembly.bots import webhook_url_of
from rise.runtime.assembly.extras import needing
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_path_test
from rise.runtime.examiner import Examiner, LookTimes
from rise.runtime.platform_looks import Look, answering_look, webhook_look
from rise.runtime.pulse import PulseTaker
from rise.runtime.writing_back import WriteBack
from rise.service import Service
from rise.settings import Settings
from rise.telemetry import keep_out_of_logs

ENDING_SECONDS: Final = 5.0
"""What a call needs beside its answer: to be asked about once more, and to be written down."""


def build_tracing(house: House, process: str) -> list[Service]:
    """What exports the spans of this process, if it is to. Raises `SettingsInvalid` if what it needs is missing."""
    settings = house.settings
    if settings.otlp_endpoint is None:
        return []
    with needing("RISE_OTLP_ENDPOINT", "tracing"):
        from rise.connections.otlp import OtlpTracing
    try:
        return [OtlpTracing(settings.otlp_endpoint, ratio=settings.trace_ratio, process=process, version=__version__)]
    except ValueError as error:
        raise SettingsInvalid(
            [f"OpenTelemetry cannot read one of its OTEL_… variables: {error}. Correct it."]
        ) from error


def build_keeper(house: House) -> Keeper | None:
    """What one process does for all copies. None: there is only the one."""
    full = house.stores.full
    if full is None:
        return None
    return Keeper(slots=full.slots, work=full.work, mirror=full.mirror, bus=house.bus, clock=house.clock)


def build_write_back(house: House) -> list[WriteBack]:
    """Whoever brings the ledger what waits for it, where anything can."""
    late = house.stores.late
    if late is None:
        return []
    return [WriteBack(late=late.writes, ledger=late.ledger, queue=house.queue, bus=house.bus, clock=house.clock)]


def build_pulse_taker(house: House) -> PulseTaker:
    return PulseTaker(house.pulse, house.queue, house.bus, house.clock)


def build_sender(house: House) -> Sender:
    settings = house.settings

    def report(channel: str, account: str, trouble: str | None) -> None:
        status = CapabilityStatus.DEGRADED if trouble else CapabilityStatus.AVAILABLE
        house.capabilities.set(f"{channel}_sending", status, trouble or f"account {account} is served again")

    return Sender(
        ledger=house.ledger,
        queue=house.queue,
        channels=house.channels.receivers(),
        bus=house.bus,
        clock=house.clock,
        limits=delivery_limits(settings),
        on_account=report,
    )


def delivery_limits(settings: Settings) -> DeliveryLimits:
    # A call that is cut off by a stop is a doubt, and may be sent a second time.
    stop_seconds = max(settings.stop_seconds, CALL_SECONDS + ENDING_SECONDS)
    return DeliveryLimits(unknown_policy=settings.telegram_unknown, stop_seconds=stop_seconds)


def build_examiner(house: House) -> Examiner:
    settings, telegram = house.settings, house.channels.telegram
    looks: dict[str, Look] = {name: answering_look(channel) for name, channel in house.channels.pushed().items()}
    if telegram is not None:
        looks[telegram.name] = webhook_look(telegram, partial(webhook_url_of, house, telegram))
    return Examiner(
        registry=house.bindings,
        book=house.health,
        looks=looks,
        path=build_path_test(house),
        bus=house.bus,
        clock=house.clock,
        times=LookTimes(settings.binding_look_seconds, settings.binding_test_seconds),
        office=partial(_claim_examiner, house),
    )


def _claim_examiner(house: House, on_taken: Callable[[], None]) -> OfficeClaim:
    return OfficeClaim(house.ledger, Office.EXAMINER, house.bus.member, house.clock, on_taken=on_taken)


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

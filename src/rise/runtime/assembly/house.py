"""One process's parts, wired, and nothing started: what everything else here is built from.

Refuses: to start anything; that is `serving.py`. A directory that cannot be used raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from rise.admission import Admission
from rise.bindings import BindingRegistry
from rise.bus.port import Bus
from rise.callbacks import Callbacks
from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.chats import ChatRegistry
from rise.clock import Clock, SystemClock
from rise.conversations.port import ConversationServer
from rise.errors import Unavailable
from rise.follow_ups.port import LEFT_TO_TIMERS
from rise.intake import Intake
from rise.ledger.port import Ledger
from rise.queue.port import Queue
from rise.retries import RetryPolicy
from rise.runtime.alerts import AlertBook
from rise.runtime.assembly.channels import Channels, build_channels
from rise.runtime.assembly.secrets import Secrets, build_secrets, webhook_secret
from rise.runtime.assembly.stores import Stores, build_bus, build_redis, build_stores
from rise.runtime.binding_health import HealthBook
from rise.runtime.editor import Editor
from rise.runtime.pulse import Pulse
from rise.runtime.sealing import Seal
from rise.settings import Settings
from rise.workflows.model import Model, NoModel, model_of

if TYPE_CHECKING:
    from rise.connections.temporal import Temporal


@dataclass(frozen=True, slots=True)
class House:
    """One process's parts, wired. Nothing has been started."""

    settings: Settings
    clock: Clock
    secrets: Secrets
    stores: Stores
    bus: Bus
    bindings: BindingRegistry
    chats: ChatRegistry
    channels: Channels
    capabilities: CapabilityRegistry
    intake: Intake
    health: HealthBook = field(default_factory=HealthBook)
    """How well each binding serves, as far as this process has heard."""
    temporal: Temporal | None = None
    """In a process that works for it (`reach_temporal`), if it is configured."""
    conversations: ConversationServer | None = None
    """Who keeps conversations where that is not this Temporal: the simulator's."""
    model: Model = field(default_factory=NoModel)
    """The language model, one client for all who ask it in this process."""
    alerts: AlertBook = field(default_factory=AlertBook)
    """What a person should know of, as far as this process has found out."""
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def retry_policy(self) -> RetryPolicy:
        settings = self.settings
        return RetryPolicy(
            curve_seconds=settings.retry_seconds,
            retry_max=settings.retry_max,
            lane_block_max=timedelta(seconds=settings.lane_block_seconds_max),
            curve_seconds_for=settings.retry_seconds_for,
            retry_max_for=settings.retry_max_for,
        )

    @property
    def callbacks(self) -> Callbacks:
        return Callbacks(self.queue, self.ledger, self.retry_policy)

    @property
    def intake_of_runs(self) -> Intake:
        """Without the door's admission: what runs plan for later is part of the work that is too much. Refused, none of
        it would ever end."""
        return replace(self.intake, admission=Admission())

    @property
    def queue(self) -> Queue:
        return self.stores.queue

    @property
    def ledger(self) -> Ledger:
        return self.stores.ledger

    @property
    def seal(self) -> Seal:
        former = self.settings.secret_key_former
        return Seal(self.secrets.secret_key, () if former is None else (former.get_secret_value(),))

    def webhook_secret(self, account: str) -> str:
        """What Telegram shows with the updates of this bot."""
        if account == self.channels.telegram_account and self.secrets.telegram_webhook is not None:
            return self.secrets.telegram_webhook
        return webhook_secret(self.secrets.secret_key, account)

    @property
    def editor(self) -> Editor:
        return Editor(self.stores.definitions, self.stores.ledger, self.bus, self.clock)


def build(settings: Settings, clock: Clock | None = None) -> House:
    """Wire everything a process may need. Raises `StoreUnavailable` if the data directory cannot be used, and
    `RestoreUnfinished` if it is half restored."""
    clock = clock or SystemClock()
    capabilities, admission = CapabilityRegistry(clock), Admission()

    def on_trouble(name: str) -> Callable[[Unavailable | None], None]:
        return partial(report_store, capabilities, admission, name)

    redis = build_redis(settings, clock, on_trouble)
    bus = build_bus(settings, clock, redis)
    stores = build_stores(settings, clock, bus, on_trouble, redis)
    stores.directory.create()
    stores.directory.refuse_half_restored()  # before secrets are made where the restored ones are to be
    secrets = build_secrets(settings, stores.directory)
    bindings = BindingRegistry(stores.definitions, bus, clock, on_trouble=partial(report_bindings, capabilities))
    chats = ChatRegistry(stores.ledger, bus, clock)
    intake = Intake(
        stores.queue,
        bindings,
        bus,
        clock,
        accept_seconds_max=settings.accept_seconds,
        admission=admission,
        keep=None if stores.full is None else stores.full.copies.keep,
        stores=settings.stores,
        chats=chats,
        left_to_timers=None if settings.temporal_address is None else LEFT_TO_TIMERS,
    )
    return House(
        settings=settings,
        clock=clock,
        secrets=secrets,
        stores=stores,
        bus=bus,
        bindings=bindings,
        chats=chats,
        channels=build_channels(settings, secrets, clock, chats),
        capabilities=capabilities,
        intake=intake,
        model=model_of(settings),
    )


def report_store(
    capabilities: CapabilityRegistry, admission: Admission, name: str, trouble: Unavailable | None
) -> None:
    """A store stopped or began to take what it is asked to."""
    if trouble is None:
        capabilities.set(name, CapabilityStatus.AVAILABLE, "works again")
        admission.open()
    else:
        capabilities.set(name, CapabilityStatus.UNAVAILABLE, trouble.public_message, trouble.remedy)


def report_bindings(capabilities: CapabilityRegistry, trouble: str | None) -> None:
    status = CapabilityStatus.DEGRADED if trouble else CapabilityStatus.AVAILABLE
    capabilities.set("bindings", status, trouble or "they are known")


def capability_of(house: House, name: str, account: str) -> str:
    """The default bot's has the name alone."""
    return name if account == house.channels.telegram_account else f"{name}_{account}"

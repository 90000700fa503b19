"""Which backend plays which part. The only file that names them.

Promises: from one `Settings`, every process gets the same parts on the same directory, and their secrets are kept
out of the log from here on.

Refuses: to start anything; that is `serving.py`. Opening a directory that cannot be used raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from rise import __version__
from rise.admission import Admission
from rise.bindings import BindingRegistry
from rise.bursts import Bursts
from rise.bus.local import LocalBus
from rise.bus.port import Bus
from rise.callbacks import CallbackReceiver, Callbacks
from rise.capabilities import CapabilityRegistry, CapabilityStatus
from rise.channels.http import HttpChannel
from rise.channels.port import Channel, PushChannel, Receiver
from rise.channels.telegram import CALL_SECONDS, TelegramChannel, TelegramPolling, TelegramRates, bot_id_of
from rise.channels.webchat import WebChatChannel
from rise.chats import ChatRegistry
from rise.clock import Clock, SystemClock, epoch_ms
from rise.connections.sqlite import Database
from rise.conversations.asking import Conversations
from rise.conversations.port import ConversationLimits, ConversationServer
from rise.conversations.running import ConversationRuns
from rise.copies.journals import Journals
from rise.copies.keeper import Keeper
from rise.copies.keeping import Copies, CopiesPolicy
from rise.copies.looking import CopiesShown
from rise.copies.notes import Notes
from rise.copies.open_work import OpenWork
from rise.copies.port import REDIS, Mirror
from rise.copies.relay import CATCH_UP_SECONDS, Relay
from rise.copies.slots import Slots
from rise.definitions.port import Definitions
from rise.definitions.records import WorkflowRecord
from rise.definitions.sqlite import SCHEMA as DEFINITIONS_SCHEMA
from rise.definitions.sqlite import SqliteDefinitions
from rise.delivery import DeliveryLimits, Sender
from rise.errors import RedisForeign, SettingsInvalid, StoreLocked, Unavailable
from rise.follow_ups.arming import Arming
from rise.follow_ups.port import LEFT_TO_TIMERS, FollowUps
from rise.follow_ups.queued import QueuedFollowUps
from rise.follow_ups.ringing import Ringing
from rise.intake import Intake
from rise.ledger.late import LateWrites
from rise.ledger.late_ledger import LateLedger
from rise.ledger.port import Ledger, Office, Operation
from rise.ledger.sqlite import SCHEMA as LEDGER_SCHEMA
from rise.ledger.sqlite import SqliteLedger
from rise.offices import OfficeClaim
from rise.queue.port import Queue, QueueLimits, RefillableQueue
from rise.queue.sqlite import SCHEMA as QUEUE_SCHEMA
from rise.queue.sqlite import SqliteQueue
from rise.reachable import read_allowed
from rise.retries import RetryPolicy
from rise.runtime.alerts import AlertBook
from rise.runtime.binding_health import HealthBook
from rise.runtime.bots import Bot, Bots, BotSettings, bots_of
from rise.runtime.channel_bindings import ChannelBindings
from rise.runtime.directory import DataDirectory, derived_secret
from rise.runtime.editor import Editor
from rise.runtime.examiner import Examiner, LookTimes
from rise.runtime.forgetting import Forgetting
from rise.runtime.ledger_name import LedgerName
from rise.runtime.messages import Messages
from rise.runtime.operations import Operations
from rise.runtime.path_test import PathTest
from rise.runtime.platform_looks import Look, answering_look, webhook_look
from rise.runtime.prompts import Prompts
from rise.runtime.publishing import Workflows
from rise.runtime.pulse import Pulse, PulseTaker
from rise.runtime.sealing import Seal
from rise.runtime.stage_secrets import StageSecrets
from rise.runtime.trying import Tries
from rise.runtime.versions import Versions
from rise.runtime.writing_back import WriteBack
from rise.service import Service
from rise.settings import CHANNELS, TELEGRAM_API_HOST, Settings
from rise.telemetry import keep_out_of_logs
from rise.worker import Texts, Worker, WorkerLimits
from rise.workflows.building import StagedWorkflows
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.fetching import GuardedFetch
from rise.workflows.model import Model, NoModel, model_of
from rise.workflows.runner import Runner
from rise.workflows.staged import Tools
from rise.workflows.stages import VALUES, Prompt, read_stages, secrets_asked_for
from rise.workflows.templates import placeholders, stages_named

if TYPE_CHECKING:
    from rise.connections.mongodb import MongoDatabase
    from rise.connections.redis import RedisDatabase
    from rise.connections.temporal import Temporal
    from rise.connections.temporal_worker import TemporalWorker, WorkerDuties

DEFAULT_ACCOUNT = "default"
RECOVERY_SECONDS: Final = 5 * CATCH_UP_SECONDS
"""Whoever accepted while Redis was away has said by then which chats it owes earlier messages."""
CONVERSATION_STOP_SECONDS: Final = 1.0
ENDING_SECONDS: Final = 5.0
"""What a call needs beside its answer: to be asked about once more, and to be written down."""

OnTrouble = Callable[[str], Callable[[Unavailable | None], None]]
"""For the name of a store: what hears why it cannot be used, and None when it can again."""


def _ignoring(name: str) -> Callable[[Unavailable | None], None]:
    return lambda trouble: None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What was configured, or made and kept in the data directory."""

    admin_token: str = field(repr=False)
    secret_key: str = field(repr=False)
    telegram_webhook: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class FullProfile:
    """What a process has besides the ledger when Redis hands out the work."""

    redis: RedisDatabase
    queue: RefillableQueue
    slots: Slots
    journals: Journals
    mirror: Mirror | None
    copies: Copies
    relay: Relay
    work: OpenWork
    wait_for_hint: Callable[[str, float], Awaitable[bool]] | None = None
    """Of a worker with this name, for so many seconds: the queue itself wakes it."""

    @property
    def shown(self) -> CopiesShown:
        return CopiesShown(self.queue, self.slots, self.mirror)

    def services(self) -> list[Service]:
        """What keeps messages in all stores, in the order of starting."""
        mirrors: list[Service] = [] if self.mirror is None else [self.mirror]
        return [*mirrors, self.journals, self.copies, self.relay]


@dataclass(frozen=True, slots=True)
class Late:
    """What a ledger that is away is owed."""

    writes: LateWrites
    ledger: Ledger
    """Itself, without what waits."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where everything is kept: shared by the gateway, workers and the command line."""

    directory: DataDirectory
    database: Database
    queue: Queue
    ledger: Ledger
    definitions: Definitions
    full: FullProfile | None = None
    mongo: MongoDatabase | None = None
    """Where the ledger is then; else it is in the database."""
    ledger_name: LedgerName | None = None
    """Whose Redis it is, if that has to be asked of a server."""
    late: Late | None = None
    """Where results wait for a ledger that is away; else they wait in the hands of their workers."""

    @property
    def ledger_capability(self) -> str:
        """Without which nothing is run, beside the queue."""
        if self.full is None:
            return "disk"
        return "ledger" if self.mongo is None else "mongo"

    async def open(self) -> None:
        """Raises `StoreUnavailable` if the directory or the database cannot be used, `StoreCorrupt` if what was kept in
        it is lost, `RestoreUnfinished` if it is half restored. Servers may be away."""
        self.directory.create()
        self.directory.refuse_half_restored()
        await self.database.open()
        if self.full is not None:
            await self._open_redis(self.full.redis)

    async def _open_redis(self, redis: RedisDatabase) -> None:
        """One that is away is waited for elsewhere. Raises `StoreLocked` if it is another installation's."""
        if self.ledger_name is not None:
            await self.ledger_name.open()
        else:
            redis.belongs_to(await self.ledger.identity())
        try:
            await redis.open()
        except RedisForeign as error:
            raise StoreLocked(error.public_message) from error
        except Unavailable:
            return

    async def is_filled(self) -> bool:
        """Whether the queue holds all that is open, as far as anybody knows: else it hands nothing out."""
        return self.full is None or await self.full.queue.life() is not None

    async def lacking_in_queue(self) -> int:
        """How many open messages the queue has not got, as far as this process knows."""
        return 0 if self.full is None else (await self.full.relay.lacking()).get(REDIS, 0)

    def services(self) -> list[Service]:
        """What has to run for messages to be kept and found in all stores."""
        naming: list[Service] = [] if self.ledger_name is None else [self.ledger_name]
        return naming if self.full is None else [*naming, *self.full.services()]

    async def close(self) -> None:
        await self.database.close()
        if self.full is not None:
            await self.full.redis.close()
        if self.mongo is not None:
            await self.mongo.close()


@dataclass(frozen=True, slots=True)
class Channels:
    http: HttpChannel
    webchat: WebChatChannel
    telegram: TelegramChannel | None
    telegram_account: str | None
    """The default bot's number."""
    callback_receiver: CallbackReceiver | None = None
    """Whoever asked for results to be posted. None: there is nothing to sign them with."""

    def by_name(self) -> dict[str, Channel]:
        """Those that are configured now; Telegram from the first bot on."""
        return {"http": self.http, "webchat": self.webchat, **self.pushed()}

    @property
    def anonymous(self) -> tuple[str, ...]:
        """Those that anybody may write to, without credentials or a platform's word for them."""
        return (self.webchat.name,)

    def pushed(self) -> dict[str, PushChannel]:
        return {"telegram": self.telegram} if self.telegram is not None and self.telegram.accounts else {}

    def receivers(self) -> dict[str, Receiver]:
        """Who is called with what is in the outbox."""
        called: dict[str, Receiver] = {**self.pushed()}
        receiver = self.callback_receiver
        return called if receiver is None else called | {receiver.name: receiver}

    async def close(self) -> None:
        if self.telegram is not None:
            await self.telegram.close()
        if self.callback_receiver is not None:
            await self.callback_receiver.close()

    def all_accounts(self) -> dict[str, list[str]]:
        """Every account that can be written from, by channel, the default first."""
        known = {channel: [account] for channel, account in self.accounts().items()}
        if self.telegram is not None and self.telegram.accounts:
            known["telegram"] = list(dict.fromkeys([*known.get("telegram", ()), *self.telegram.accounts]))
        return known

    def accounts(self) -> dict[str, str]:
        """The account each channel uses unless told otherwise."""
        accounts = {"http": DEFAULT_ACCOUNT, "webchat": DEFAULT_ACCOUNT}
        if self.telegram_account is not None:
            accounts["telegram"] = self.telegram_account
        return accounts


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


@contextmanager
def _needing(setting: str, extra: str) -> Iterator[None]:
    """Imports of what an installation without that server need not have."""
    try:
        yield
    except ImportError as error:
        missing = f"{setting} is set, but its client is not installed: pip install 'rise-gateway[{extra}]'"
        raise SettingsInvalid([f"{missing}, or unset it."]) from error


def _build_redis(settings: Settings, clock: Clock, on_trouble: OnTrouble) -> RedisDatabase | None:
    if settings.redis_url is None:
        return None
    with _needing("RISE_REDIS_URL", "redis"):
        from rise.connections.redis import RedisDatabase
    return RedisDatabase(settings.redis_url.get_secret_value(), clock=clock, on_trouble=on_trouble("redis"))


def _build_bus(settings: Settings, clock: Clock, redis: RedisDatabase | None) -> Bus:
    local = LocalBus(DataDirectory(settings.data_dir).bus, clock)
    if redis is None:
        return local
    from rise.bus.redis import RedisBus

    return RedisBus(local, redis, clock)


def build_stores(
    settings: Settings,
    clock: Clock,
    bus: Bus | None = None,
    on_trouble: OnTrouble = _ignoring,
    redis: RedisDatabase | None = None,
) -> Stores:
    """`redis`: the connection that the bus has, too."""
    directory = DataDirectory(settings.data_dir)
    schema = {"queue": QUEUE_SCHEMA, "ledger": LEDGER_SCHEMA, "definitions": DEFINITIONS_SCHEMA}
    # With MongoDB it holds nothing and is there for the command line to find: to lose it is no loss.
    has_mongo = settings.mongodb_url is not None
    name = "disk" if settings.redis_url is None or has_mongo else "ledger"
    marker, heard = (None, _ignoring(name)) if has_mongo else (directory.marker, on_trouble(name))
    database = Database(
        directory.database, clock=clock, schema=schema, marker=marker, capability=name, on_trouble=heard
    )
    redis = redis or _build_redis(settings, clock, on_trouble)
    if redis is None:
        ledger, definitions = SqliteLedger(database), SqliteDefinitions(database)
        return Stores(directory, database, SqliteQueue(database, _limits(settings)), ledger, definitions)
    bus = bus or LocalBus(directory.bus, clock)
    if settings.mongodb_url is None:
        kept = _Kept(SqliteLedger(database), SqliteDefinitions(database))
    else:
        kept = _on_mongodb(settings.mongodb_url.get_secret_value(), directory, clock, on_trouble)
    full = _build_full_profile(settings, redis, kept.ledger, bus, clock, on_trouble)
    stores = Stores(directory, database, full.queue, kept.ledger, kept.definitions, full)
    if kept.mongo is None:
        return stores
    from rise.ledger.late_redis import RedisLateWrites

    ledger_name = LedgerName(kept.ledger, directory, redis, clock)
    return replace(with_late_writes(stores, RedisLateWrites(redis), clock), mongo=kept.mongo, ledger_name=ledger_name)


def with_late_writes(stores: Stores, writes: LateWrites, clock: Clock) -> Stores:
    """Results wait there while the ledger is away, and messages are run meanwhile."""
    ledger = cast(Ledger, LateLedger(stores.ledger, writes, clock))
    return replace(stores, ledger=ledger, late=Late(writes, stores.ledger))


class _Kept(NamedTuple):
    """What became of everything, and what is configured: in the same place."""

    ledger: Ledger
    definitions: Definitions
    mongo: MongoDatabase | None = None


def _on_mongodb(url: str, directory: DataDirectory, clock: Clock, on_trouble: OnTrouble) -> _Kept:
    try:
        # Here, because an installation without MongoDB need not have its driver.
        from rise.connections.mongodb import MongoDatabase
        from rise.definitions.mongodb import INDEXES as DEFINITIONS_INDEXES
        from rise.definitions.mongodb import MongoDefinitions
        from rise.ledger.mongodb import INDEXES as LEDGER_INDEXES
        from rise.ledger.mongodb import MongoLedger
    except ImportError as error:
        missing = "RISE_MONGODB_URL is set, but its driver is not installed: pip install 'rise-gateway[mongodb]'"
        raise SettingsInvalid([f"{missing}, or unset it."]) from error
    indexes = {**LEDGER_INDEXES, **DEFINITIONS_INDEXES}
    mongo = MongoDatabase(url, clock=clock, indexes=indexes, on_trouble=on_trouble("mongo"))
    return _Kept(MongoLedger(mongo, clock, remembered=directory.known_ledger), MongoDefinitions(mongo), mongo)


def _limits(settings: Settings) -> QueueLimits:
    return QueueLimits(claim=timedelta(seconds=settings.claim_seconds))


def _build_full_profile(
    settings: Settings, redis: RedisDatabase, ledger: Ledger, bus: Bus, clock: Clock, on_trouble: OnTrouble
) -> FullProfile:
    from rise.queue.redis import RedisQueue

    queue = RedisQueue(redis, _limits(settings))
    mirror = None
    if settings.rabbitmq_url is not None:
        with _needing("RISE_RABBITMQ_URL", "rabbitmq"):
            from rise.copies.rabbitmq import RabbitMirror
        mirror = RabbitMirror(
            settings.rabbitmq_url.get_secret_value(),
            clock=clock,
            publish_seconds=settings.publish_seconds,
            on_trouble=on_trouble("rabbitmq"),
        )
    slots = Slots(settings.journal_dir or settings.data_dir, clock=clock, on_trouble=on_trouble("disk"))
    full = wire_copies(settings, redis, queue, mirror, slots, ledger, bus, clock)
    return replace(full, wait_for_hint=lambda member, seconds: queue.wait_for_hint(member, seconds=seconds))


def wire_copies(
    settings: Settings,
    redis: RedisDatabase,
    queue: RefillableQueue,
    mirror: Mirror | None,
    slots: Slots,
    ledger: Ledger,
    bus: Bus,
    clock: Clock,
) -> FullProfile:
    """What keeps messages in all of these."""
    journals = Journals(slots, clock, adopts=True)
    notes = Notes(journals)
    policy = CopiesPolicy(
        copies_min=settings.copies_min, journal_required=mirror is None, publish_seconds=settings.publish_seconds
    )
    work = OpenWork(ledger, queue)
    return FullProfile(
        redis=redis,
        queue=queue,
        slots=slots,
        journals=journals,
        mirror=mirror,
        copies=Copies(queue=queue, journals=journals, mirror=mirror, notes=notes, policy=policy),
        relay=Relay(journals=journals, notes=notes, work=work, mirror=mirror, bus=bus, clock=clock),
        work=work,
    )


def build(settings: Settings, clock: Clock | None = None) -> House:
    """Wire everything a process may need. Raises `StoreUnavailable` if the data directory cannot be used, and
    `RestoreUnfinished` if it is half restored."""
    clock = clock or SystemClock()
    capabilities, admission = CapabilityRegistry(clock), Admission()

    def on_trouble(name: str) -> Callable[[Unavailable | None], None]:
        return partial(report_store, capabilities, admission, name)

    redis = _build_redis(settings, clock, on_trouble)
    bus = _build_bus(settings, clock, redis)
    stores = build_stores(settings, clock, bus, on_trouble, redis)
    stores.directory.create()
    stores.directory.refuse_half_restored()  # before secrets are made where the restored ones are to be
    secrets = _secrets(settings, stores.directory)
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
        channels=_channels(settings, secrets, clock, chats),
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


async def mirror_lacks(settings: Settings, clock: Clock) -> list[str] | None:
    """What is not in RabbitMQ yet and a start makes; None where it is not configured. Makes nothing.

    Raises `RabbitMisconfigured` for what is there and is another, `RabbitUnavailable` if nobody answers.
    """
    if settings.rabbitmq_url is None:
        return None
    with _needing("RISE_RABBITMQ_URL", "rabbitmq"):
        from rise.copies.rabbitmq import lacking_at
    return await lacking_at(settings.rabbitmq_url.get_secret_value(), clock=clock)


def reach_temporal(house: House) -> House:
    """The house of a process that asks Temporal, or works for it. Raises `SettingsInvalid` if its client is missing."""
    temporal = build_temporal(house.settings, house.clock, partial(_report_temporal, house))
    return house if temporal is None else replace(house, temporal=temporal)


def build_temporal(
    settings: Settings, clock: Clock, on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None
) -> Temporal | None:
    """None where it is not configured."""
    if settings.temporal_address is None:
        return None
    try:
        # Here, because an installation without Temporal need not have its client, nor commands wait for it.
        from rise.connections.temporal import Place, Temporal
    except ImportError as error:
        missing = "RISE_TEMPORAL_ADDRESS is set, but its client is not installed: pip install 'rise-gateway[temporal]'"
        raise SettingsInvalid([f"{missing}, or unset it."]) from error
    key = settings.temporal_api_key.get_secret_value() if settings.temporal_api_key else None
    keep_out_of_logs([key])
    place = Place(settings.temporal_address, settings.temporal_namespace, key, settings.temporal_tls)
    return Temporal(place, clock=clock, on_trouble=on_trouble)


def _report_temporal(house: House, trouble: Unavailable | None) -> None:
    if trouble is None:
        house.capabilities.set("temporal", CapabilityStatus.AVAILABLE, "answers again")
    else:
        house.capabilities.set("temporal", CapabilityStatus.UNAVAILABLE, trouble.public_message, trouble.remedy)


def build_tracing(house: House, process: str) -> list[Service]:
    """What exports the spans of this process, if it is to. Raises `SettingsInvalid` if what it needs is missing."""
    settings = house.settings
    if settings.otlp_endpoint is None:
        return []
    try:
        # Here, because an installation that is not traced need not have it, nor commands wait for it.
        from rise.connections.otlp import OtlpTracing
    except ImportError as error:
        missing = "RISE_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'rise-gateway[tracing]'"
        raise SettingsInvalid([f"{missing}, or unset it."]) from error
    try:
        return [OtlpTracing(settings.otlp_endpoint, ratio=settings.trace_ratio, process=process, version=__version__)]
    except ValueError as error:
        raise SettingsInvalid(
            [f"OpenTelemetry cannot read one of its OTEL_… variables: {error}. Correct it."]
        ) from error


def build_temporal_worker(house: House, temporal: Temporal, *, on_built: Callable[[], None]) -> TemporalWorker:
    """What works for Temporal in this process. `on_built`: as in `TemporalWorker`."""
    from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits

    return TemporalWorker(
        temporal,
        _temporal_duties(house),
        house.clock,
        task_queue=house.settings.temporal_task_queue,
        identity=house.bus.member,
        limits=TemporalWorkerLimits(stop_seconds=house.settings.stop_seconds),
        on_built=on_built,
    )


def _temporal_duties(house: House) -> list[WorkerDuties]:
    """By the rooms that have any."""
    from rise.follow_ups.temporal import duties_of

    return [duties_of(build_ringing(house).ring)]


def build_ringing(house: House) -> Ringing:
    """What happens when a follow-up's timer rings."""
    # Not the door's admission, as in `build_worker`.
    intake = replace(house.intake, admission=Admission())
    return Ringing(house.queue, house.ledger, house.bus, house.clock, accept=intake.accept)


def build_arming(house: House, temporal: Temporal) -> Arming:
    """What gives follow-ups to Temporal."""
    from rise.follow_ups.temporal import TemporalTimers

    timers = TemporalTimers(temporal, house.settings.temporal_task_queue)
    return Arming(timers, house.queue, house.bus, house.clock)


def build_conversations(house: House) -> Conversations | None:
    """What a worker of this process talks to. None: there is no Temporal here."""
    server = _conversation_server(house)
    return None if server is None else Conversations(server, house.ledger, house.bus, house.clock)


def _conversation_server(house: House) -> ConversationServer | None:
    if house.temporal is None:
        return house.conversations
    from rise.conversations.temporal import TemporalConversations

    limits = ConversationLimits(beat_seconds=house.settings.claim_seconds)
    return TemporalConversations(house.temporal, _conversation_queue(house), limits)


def build_conversation_worker(house: House, runs: ConversationRuns) -> TemporalWorker | None:
    """What carries conversations on, beside the worker whose runs these are: a process of user code."""
    if house.temporal is None:
        return None
    from rise.connections.temporal_worker import TemporalWorker, TemporalWorkerLimits
    from rise.conversations.temporal import conversation_duties

    settings = house.settings
    return TemporalWorker(
        house.temporal,
        [conversation_duties(runs, house.clock)],
        house.clock,
        task_queue=_conversation_queue(house),
        identity=house.bus.member,
        # Their messages are held by workers, in as many places at most: one that waits here would only hold up others.
        # What its worker has not waited for at a stop is run again from its kept steps: no second grace.
        limits=TemporalWorkerLimits(
            activities=_places(settings),
            stop_seconds=CONVERSATION_STOP_SECONDS,
            drain_seconds=settings.stop_seconds,
        ),
    )


def _conversation_queue(house: House) -> str:
    """Their own: whoever asks for work of a queue must be able to do all of it, and timers are no work of workers'."""
    return f"{house.settings.temporal_task_queue}.conversations"


def _places(settings: Settings) -> int:
    return max([settings.worker_concurrency, *settings.worker_concurrency_for.values()]) * len(CHANNELS)


def report_bindings(capabilities: CapabilityRegistry, trouble: str | None) -> None:
    status = CapabilityStatus.DEGRADED if trouble else CapabilityStatus.AVAILABLE
    capabilities.set("bindings", status, trouble or "they are known")


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


def build_operations(house: House) -> Operations:
    full = house.stores.full
    return Operations(
        house.queue,
        house.ledger,
        house.bus,
        house.clock,
        restart=None if full is None else full.copies.restart,
        copies=None if full is None else full.shown,
        callbacks=house.callbacks,
    )


def build_follow_ups(house: House) -> FollowUps:
    """The same with Temporal and without: what is decided, the ledger decides, and what waits is in the queue."""
    drop = build_operations(house).drop
    return QueuedFollowUps(house.queue, house.ledger, house.clock, accept=house.intake.accept, drop=drop)


def build_messages(house: House) -> Messages:
    return Messages(house.queue, house.ledger, build_operations(house))


def build_forgetting(house: House) -> Forgetting:
    compact = house.stores.database.compact
    return Forgetting(
        house.queue,
        house.ledger,
        build_operations(house),
        house.clock,
        compact=compact,
        conversations=_conversation_server(house),
    )


def build_path_test(house: House) -> PathTest:
    return PathTest(house.intake, house.ledger, house.bus, house.clock)


def build_examiner(house: House) -> Examiner:
    settings, telegram = house.settings, house.channels.telegram
    looks: dict[str, Look] = {name: answering_look(channel) for name, channel in house.channels.pushed().items()}
    if telegram is not None:
        looks[telegram.name] = webhook_look(telegram, partial(_webhook_url, house, telegram))
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


def _webhook_url(house: House, telegram: TelegramChannel, account: str) -> str | None:
    bot = bots_of(house.bindings.bindings(), _bot_settings(house), has_token=telegram.serves).get(account)
    return None if bot is None else bot.webhook_url


def _bot_settings(house: House) -> BotSettings:
    settings = house.settings
    is_polling = settings.effective_telegram_mode == "polling"
    return BotSettings(house.channels.telegram_account, settings.public_url, is_polling)


def _claim_examiner(house: House, on_taken: Callable[[], None]) -> OfficeClaim:
    return OfficeClaim(house.ledger, Office.EXAMINER, house.bus.member, house.clock, on_taken=on_taken)


def build_channel_bindings(house: House) -> ChannelBindings:
    return ChannelBindings(
        definitions=house.stores.definitions,
        editor=house.editor,
        health=house.health,
        registry=house.bindings,
        bus=house.bus,
        clock=house.clock,
        seal=house.seal,
        accounts=house.channels.accounts(),
        public_url=house.settings.public_url,
        is_polling=house.settings.effective_telegram_mode == "polling",
        delivers_to_https_only=urlsplit(house.settings.telegram_api_base).hostname == TELEGRAM_API_HOST,
        served=frozenset(house.channels.by_name()),
        has_temporal=house.settings.temporal_address is not None,
    )


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


def polling_of(house: House, telegram: TelegramChannel, account: str) -> TelegramPolling:
    """Whatever the settings say."""
    capability = capability_of(house, "telegram_polling", account)

    def report(works: bool, detail: str) -> None:
        status = CapabilityStatus.AVAILABLE if works else CapabilityStatus.DEGRADED
        house.capabilities.set(capability, status, detail)

    office = OfficeClaim(house.ledger, Office.POLLER, house.bus.member, house.clock)
    return TelegramPolling(
        telegram, account, accept=house.intake.accept, clock=house.clock, on_state=report, office=office
    )


def capability_of(house: House, name: str, account: str) -> str:
    """The default bot's has the name alone."""
    return name if account == house.channels.telegram_account else f"{name}_{account}"


def build_bots(house: House, *, enter: Callable[[Bot], Service] | None = None) -> Bots | None:
    """None: Telegram is off."""
    if house.channels.telegram is None:
        return None
    return Bots(
        house.channels.telegram,
        house.bindings,
        house.seal,
        house.bus,
        house.clock,
        _bot_settings(house),
        enter=enter,
    )


async def learn_bots(house: House) -> None:
    """Before anything is built that needs to know whether there is one."""
    bots = build_bots(house)
    if bots is not None:
        await bots.learn()


def build_runner(
    house: House, workflows: Mapping[str, WorkflowDefinition], functions: Mapping[str, Callable[..., Any]]
) -> Runner:
    """`workflows`: those in the code; `functions`: what `python` stages may call."""
    channels, limits = house.channels.by_name(), _worker_limits(house).of_a_run()
    staged = StagedWorkflows(_tools(house, functions))
    return Runner(house.ledger, workflows, channels, house.bus, house.clock, limits, staged)


def build_conversation_runs(house: House, runner: Runner) -> ConversationRuns:
    """What the worker runs, where conversations ask for it."""
    bursts = Bursts(house.queue, house.ledger, house.bindings)
    return ConversationRuns(house.queue, house.ledger, house.bindings, bursts, house.channels.by_name(), runner)


def build_worker(house: House, runner: Runner) -> Worker:
    settings = house.settings
    # Not the door's admission: what its runs plan for later is part of the work that is too much. Refused, none of
    # it would ever end.
    intake = replace(house.intake, admission=Admission())
    return Worker(
        queue=house.queue,
        ledger=house.ledger,
        bindings=house.bindings,
        runner=runner,
        channels=house.channels.by_name(),
        retry_policy=house.retry_policy,
        accept=intake.accept,
        bus=house.bus,
        clock=house.clock,
        limits=_worker_limits(house),
        texts=Texts(
            workflow_missing=settings.workflow_missing_message,
            failed=settings.failed_message,
            maintenance=settings.maintenance_message,
        ),
        conversations=build_conversations(house),
    )


def _worker_limits(house: House) -> WorkerLimits:
    settings = house.settings
    return WorkerLimits(
        concurrency=settings.worker_concurrency,
        concurrency_for=settings.worker_concurrency_for,
        claim=timedelta(seconds=settings.claim_seconds),
        run_seconds=settings.run_seconds,
        stop_seconds=settings.stop_seconds,
        history_turns=settings.history_turns,
        recovery_seconds=0.0 if house.stores.full is None else RECOVERY_SECONDS,
    )


def _tools(house: House, functions: Mapping[str, Callable[..., Any]]) -> Tools:
    """What stages work with in this process. They are to be closed."""
    settings = house.settings

    def prompt(prompt_id: str) -> Prompt | None:
        kept = house.bindings.prompt(prompt_id)
        if kept is None:
            return None
        return Prompt(
            template=kept.template,
            system=kept.system,
            model=kept.model,
            temperature=kept.temperature,
            max_tokens=kept.max_tokens,
        )

    seal = house.seal

    def secret(name: str) -> str | None:
        kept = house.bindings.secret(name)
        return None if kept is None else seal.open(kept.sealed)

    return Tools(
        model=house.model,
        fetch=GuardedFetch(read_allowed(settings.http_stage_allow)),
        clock=house.clock,
        functions=functions,
        prompts=prompt,
        secrets=secret,
    )


def build_tries(house: House) -> Tries:
    async def record(*, who: str, what: str) -> None:
        at_ms = epoch_ms(house.clock.now())
        await house.ledger.record_operation(Operation(at_ms=at_ms, who=who, action="try", target=what))

    return Tries(partial(_tools, house, {}), record, house.clock)


def build_workflows(house: House) -> Workflows:
    return Workflows(
        house.stores.definitions, _versions(house), house.editor, read_stages, stages_named, secrets_asked_for
    )


def build_prompts(house: House) -> Prompts:
    return Prompts(house.stores.definitions, _versions(house), placeholders, VALUES, stages_named)


def build_stage_secrets(house: House) -> StageSecrets:
    return StageSecrets(house.stores.definitions, _versions(house), house.seal, secrets_asked_for)


def _versions(house: House) -> Versions:
    return Versions(house.stores.definitions, house.ledger, house.bus, house.clock)


def workflow_records(workflows: Mapping[str, WorkflowDefinition]) -> list[WorkflowRecord]:
    return [
        WorkflowRecord(workflow_id=workflow_id, name=definition.name, channels=definition.channels)
        for workflow_id, definition in workflows.items()
    ]


def _secrets(settings: Settings, directory: DataDirectory) -> Secrets:
    admin = settings.admin_token.get_secret_value() if settings.admin_token else directory.kept_secret("admin-token")
    key = settings.secret_key.get_secret_value() if settings.secret_key else directory.kept_secret("secret-key")
    token = settings.telegram_token.get_secret_value() if settings.telegram_token else None
    webhook = settings.telegram_secret.get_secret_value() if settings.telegram_secret else None
    if webhook is None and token is not None:
        webhook = webhook_secret(key, bot_id_of(token))
    # All of them in every process: what a workflow reads in its environment it may say in an error.
    keep_out_of_logs([admin, key, webhook, *settings.secrets()])
    return Secrets(admin_token=admin, secret_key=key, telegram_webhook=webhook)


def webhook_secret(key: str, account: str) -> str:
    secret = derived_secret(key, f"telegram-webhook:{account}")
    keep_out_of_logs([secret])
    return secret


def _channels(settings: Settings, secrets: Secrets, clock: Clock, chats: ChatRegistry) -> Channels:
    telegram, account = None, None
    if settings.effective_telegram_mode != "off":
        tokens = [] if settings.telegram_token is None else [settings.telegram_token.get_secret_value()]
        rates = TelegramRates(
            chat_per_second=settings.telegram_rate_chat,
            group_per_minute=settings.telegram_rate_group_minute,
            bot_per_second=settings.telegram_rate_bot,
        )
        telegram = TelegramChannel(tokens, clock=clock, api_base=settings.telegram_api_base, rates=rates, chats=chats)
        account = next(iter(telegram.accounts), None)
    webchat = WebChatChannel(derived_secret(secrets.secret_key, "webchat-sessions"))
    return Channels(HttpChannel(), webchat, telegram, account, _callback_receiver(settings, clock))


def _callback_receiver(settings: Settings, clock: Clock) -> CallbackReceiver | None:
    if settings.callback_secret is None:
        return None
    allowed = read_allowed(settings.http_stage_allow)
    return CallbackReceiver(settings.callback_secret.get_secret_value(), GuardedFetch(allowed), allowed, clock)

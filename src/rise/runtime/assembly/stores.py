"""Where everything is kept: which backend plays which part. The only file that names them, but for Temporal's.

Promises: from one `Settings`, every process gets the same parts on the same directory.

Refuses: to open anything by building it. What is configured and not installed is `SettingsInvalid`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from rise.bus.local import LocalBus
from rise.bus.port import Bus
from rise.clock import Clock
from rise.connections.sqlite import Database
from rise.copies.journals import Journals
from rise.copies.keeping import Copies, CopiesPolicy
from rise.copies.looking import CopiesShown
from rise.copies.notes import Notes
from rise.copies.open_work import OpenWork
from rise.copies.port import REDIS, Mirror
from rise.copies.relay import Relay
from rise.copies.slots import Slots
from rise.definitions.port import Definitions
from rise.definitions.sqlite import SCHEMA as DEFINITIONS_SCHEMA
from rise.definitions.sqlite import SqliteDefinitions
from rise.envelope import Head
from rise.errors import RedisForeign, StoreLocked, Unavailable
from rise.ledger.late import LateWrites
from rise.ledger.late_ledger import LateLedger
from rise.ledger.port import Ledger
from rise.ledger.sqlite import SCHEMA as LEDGER_SCHEMA
from rise.ledger.sqlite import SqliteLedger
from rise.queue.port import Queue, QueueLimits, RefillableQueue
from rise.queue.sqlite import SCHEMA as QUEUE_SCHEMA
from rise.queue.sqlite import SqliteQueue
from rise.runtime.assembly.extras import needing
from rise.runtime.directory import DataDirectory
from rise.runtime.ledger_name import LedgerName
from rise.runtime.pipeline import Lacking
from rise.service import Service
from rise.settings import Settings

if TYPE_CHECKING:
    from rise.connections.mongodb import MongoDatabase
    from rise.connections.redis import RedisDatabase

PAGE: Final = 500

OnTrouble = Callable[[str], Callable[[Unavailable | None], None]]
"""For the name of a store: what hears why it cannot be used, and None when it can again."""


def _ignoring(name: str) -> Callable[[Unavailable | None], None]:
    return lambda trouble: None


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

    async def lacking_in_queue(self) -> Lacking | None:
        """How many open messages of this process the queue has not got; None while no journal can be read."""
        if self.full is None:
            return Lacking(0, is_certain=True)
        count = (await self.full.relay.lacking()).get(REDIS)
        return None if count is None else Lacking(count, self.full.relay.knows_queue)

    async def lacked_by_queue(self, is_meant: Callable[[Head], bool]) -> int:
        """How many open messages of these are in the journals of this host and not in the queue. Raises `Unavailable`
        if one of them cannot be asked."""
        if self.full is None:
            return 0
        count = 0
        async for tasks in self.full.slots.open_tasks(limit=PAGE):
            count += len(await self.full.work.lacking([task for task in tasks if is_meant(task.head)]))
        return count

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
    redis = redis or build_redis(settings, clock, on_trouble)
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
    with needing("RISE_MONGODB_URL", "mongodb"):
        from rise.connections.mongodb import MongoDatabase
        from rise.definitions.mongodb import INDEXES as DEFINITIONS_INDEXES
        from rise.definitions.mongodb import MongoDefinitions
        from rise.ledger.mongodb import INDEXES as LEDGER_INDEXES
        from rise.ledger.mongodb import MongoLedger
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
        with needing("RISE_RABBITMQ_URL", "rabbitmq"):
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
        copies=Copies(queue=queue, journals=journals, mirror=mirror, notes=notes, policy=policy, clock=clock),
        relay=Relay(journals=journals, notes=notes, work=work, mirror=mirror, bus=bus, clock=clock),
        work=work,
    )


def build_redis(settings: Settings, clock: Clock, on_trouble: OnTrouble) -> RedisDatabase | None:
    if settings.redis_url is None:
        return None
    with needing("RISE_REDIS_URL", "redis"):
        from rise.connections.redis import RedisDatabase
    return RedisDatabase(settings.redis_url.get_secret_value(), clock=clock, on_trouble=on_trouble("redis"))


def build_bus(settings: Settings, clock: Clock, redis: RedisDatabase | None) -> Bus:
    local = LocalBus(DataDirectory(settings.data_dir).bus, clock)
    if redis is None:
        return local
    from rise.bus.redis import RedisBus

    return RedisBus(local, redis, clock)


async def mirror_lacks(settings: Settings, clock: Clock) -> list[str] | None:
    """What is not in RabbitMQ yet and a start makes; None where it is not configured. Makes nothing.

    Raises `RabbitMisconfigured` for what is there and is another, `RabbitUnavailable` if nobody answers.
    """
    if settings.rabbitmq_url is None:
        return None
    with needing("RISE_RABBITMQ_URL", "rabbitmq"):
        from rise.copies.rabbitmq import lacking_at
    return await lacking_at(settings.rabbitmq_url.get_secret_value(), clock=clock)

"""The processes of a simulated installation, built from the real parts by the real assembly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from rise.admission import Admission
from rise.api.reading import Message
from rise.api.security import Credentials, Gate
from rise.api.webhooks import PATH, TelegramWebhook
from rise.bindings import BindingRegistry
from rise.capabilities import CapabilityRegistry
from rise.channels.http import HttpChannel
from rise.channels.telegram import TelegramRates
from rise.channels.webchat import WebChatChannel
from rise.chats import ChatRegistry
from rise.conversations.running import ConversationRuns
from rise.copies.keeping import Copies
from rise.definitions.sqlite import SCHEMA as DEFINITIONS_SCHEMA
from rise.definitions.sqlite import SqliteDefinitions
from rise.errors import RiseError, Unavailable
from rise.follow_ups.arming import Arming
from rise.follow_ups.port import LEFT_TO_TIMERS
from rise.intake import Intake, Keep
from rise.ledger.sqlite import SCHEMA as LEDGER_SCHEMA
from rise.ledger.sqlite import SqliteLedger
from rise.queue.port import Enqueued, NewTask, QueueLimits
from rise.queue.sqlite import SCHEMA as QUEUE_SCHEMA
from rise.queue.sqlite import SqliteQueue
from rise.runtime.assembly.bots import polling_of
from rise.runtime.assembly.channels import Channels
from rise.runtime.assembly.house import House, report_store
from rise.runtime.assembly.operations import build_operations
from rise.runtime.assembly.secrets import Secrets
from rise.runtime.assembly.services import build_keeper, build_sender, build_write_back
from rise.runtime.assembly.stores import OnTrouble, Stores, wire_copies, with_late_writes
from rise.runtime.assembly.supervision import build_supervisor
from rise.runtime.assembly.temporal import build_ringing
from rise.runtime.directory import DataDirectory
from rise.runtime.in_process import InProcessWorker
from rise.runtime.operations import Operations
from rise.runtime.serving import open_stores
from rise.service import Service, start_all, stop_all
from rise.settings import Settings
from rise.testing.simulator.bus import SimBus
from rise.testing.simulator.host import SimClock
from rise.testing.simulator.journals import SimSlots
from rise.testing.simulator.loop import Process
from rise.testing.simulator.platform import BOT, WEBHOOK_WORD, Platform, SimTelegramChannel
from rise.testing.simulator.profile import Profile
from rise.testing.simulator.servers import SimLateWrites, SimMirror, SimQueue, SimRedis
from rise.testing.simulator.store import SimDatabase
from rise.testing.simulator.timers import ReachedTimers, RungHere
from rise.testing.simulator.world import CLAIM_SECONDS, World
from rise.workflows.definition import WorkflowDefinition

RESTART_SECONDS: Final = (0.05, 3.0)
STOP_SECONDS: Final = 5.0
_RATES: Final = TelegramRates(chat_per_second=2.0, group_per_minute=90.0, bot_per_second=60.0)
FORGET_AFTER_SECONDS: Final = 20.0
"""A world lasts some minutes."""
_SCHEMA: Final = {"queue": QUEUE_SCHEMA, "ledger": LEDGER_SCHEMA, "definitions": DEFINITIONS_SCHEMA}

Workflows = Callable[[Process], dict[str, WorkflowDefinition]]


def settings_of_a_run(profile: Profile = Profile.EMBEDDED, **overrides: Any) -> Settings:
    """Everything that waits, waits for less: a run is a minute of a world's time. Nothing comes from outside."""
    urls: dict[str, Any] = {f"{server}_url": SecretStr(f"{server}://nowhere") for server in profile.servers}
    return Settings.model_construct(
        **urls,
        publish_seconds=0.6,
        telegram_token=SecretStr(BOT),
        claim_seconds=CLAIM_SECONDS,
        retry_seconds=(0.5, 1.0, 2.0),
        lane_block_seconds_max=20.0,
        stop_seconds=STOP_SECONDS,
        late_after_seconds=10.0,
        run_seconds=8.0,
        accept_seconds=2.0,
        worker_concurrency=8,
        **overrides,
    )


class SimDirectory(DataDirectory):
    """There is none; who would have locked it is known all the same."""

    def __init__(self, world: World) -> None:
        super().__init__(Path("simulated"))
        self._world = world

    def is_owned(self) -> bool:
        return any(process.name.startswith("gateway") for process in self._world.host.processes)


class SimStores(Stores):
    """On the world's disk instead of in a directory."""

    async def open(self) -> None:
        await self.database.open()
        if self.full is not None:
            with suppress(Unavailable):
                await self.full.redis.open()


class Member:
    """One place in the installation; the processes that fill it come and go."""

    def __init__(self, world: World, platform: Platform, settings: Settings, name: str) -> None:
        self.name = name
        self.process: Process = self._new_process(world, name)
        self.house: House
        self.lives = 0
        self._world = world
        self._platform = platform
        self._settings = settings
        self._services: list[Service] = []
        self._is_up = False
        self._stays_down = False
        world.on_death.append(self._restart)

    @property
    def is_open(self) -> bool:
        return self._is_up and self.process.is_alive

    def start(self) -> None:
        world = self._world
        if self.lives:
            self.process = self._new_process(world, self.name)
        self.lives += 1
        self._is_up = False
        world.note(self.name, "starts")
        self.house = self._build(self.process)
        self.process.spawn(self._run(), name="main")

    def stop(self) -> None:
        """SIGTERM, and what a service manager does about one that does not end."""
        process = self.process
        if not self.is_open:
            return
        self._is_up = False
        self._world.note(self.name, "is told to stop")
        ending = process.spawn(stop_all(self._services, on_error=_ignore), name="stop")
        ending.add_done_callback(lambda _: self._world.timeline.after(0, lambda: self._ended(process)))
        self._world.timeline.after(STOP_SECONDS * 3, lambda: self._world.kill(process, "it did not stop"))

    def services(self, house: House) -> list[Service]:
        raise NotImplementedError

    def keepers(self, house: House) -> list[Service]:
        return []

    def _ended(self, process: Process) -> None:
        self._world.kill(process, "it has stopped")

    async def _run(self) -> None:
        try:
            await self._start_services()
        except RiseError as error:
            # The program says why and ends; whoever keeps it running starts it again.
            self._world.kill(self.process, f"cannot start: {type(error).__name__}")

    async def _start_services(self) -> None:
        await open_stores(self.house)
        house = self.house
        self._services = [house.bus, *house.stores.services(), *self.keepers(house), house.bindings, house.chats]
        self._services += self.services(house)
        await start_all(self._services, on_error=_ignore)
        self._is_up = True

    def _restart(self, process: Process) -> None:
        if process is self.process:
            self._is_up = False
            self._world.timeline.after(self._world.dice.uniform(*RESTART_SECONDS), self.start)

    def _new_process(self, world: World, name: str) -> Process:
        return Process(world.timeline, world.host, name)

    def _build(self, process: Process) -> House:
        return build_house(self._world, self._platform, self._settings, process)


class Gateway(Member):
    """`rise serve` without its worker. One of them sends, and polls where that is the way in."""

    def __init__(self, world: World, platform: Platform, settings: Settings, name: str) -> None:
        super().__init__(world, platform, settings, name)
        platform.doors.append(self)

    def services(self, house: House) -> list[Service]:
        telegram, account = house.channels.telegram, house.channels.telegram_account
        assert telegram is not None
        assert account is not None
        gate = Gate(Credentials("", {}), house.clock, rate_per_source=1e6)
        self._webhook = TelegramWebhook(
            telegram,
            account=account,
            secret=WEBHOOK_WORD,
            intake=house.intake,
            gate=gate,
            require_verified=_take_as_verified,
            secret_of=house.webhook_secret,
        )
        services: list[Service] = [
            build_supervisor(house, forget_after_seconds=FORGET_AFTER_SECONDS),
            build_sender(house),
            *build_write_back(house),
        ]
        if house.settings.telegram_is_polling:
            services.append(polling_of(house, telegram, account))
        return services + self._timers(house)

    def _timers(self, house: House) -> list[Service]:
        timers = self._world.timers
        if timers is None:
            return []
        arming = Arming(ReachedTimers(timers, house.clock), house.queue, house.bus, house.clock)
        ring = build_ringing(house).ring
        return [arming, RungHere(timers, self.process, ring, on_back=arming.arm_all)]

    def keepers(self, house: House) -> list[Service]:
        keeper = build_keeper(house)
        return [] if keeper is None else [keeper]

    async def post(self, headers: list[tuple[bytes, bytes]], body: bytes) -> list[Message]:
        answers: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            answers.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "client": ("192.0.2.1", 1)}
        await self._webhook(scope, receive, send)
        return answers


class WorkerMember(Member):
    """`rise worker`. The first one belongs to `rise serve`, and says which workflows there are."""

    def __init__(
        self, world: World, platform: Platform, settings: Settings, name: str, workflows: Workflows, *, defines: bool
    ) -> None:
        super().__init__(world, platform, settings, name)
        self._workflows = workflows
        self._defines = defines

    def services(self, house: House) -> list[Service]:
        workflows, temporal = self._workflows(self.process), self._world.conversations
        if temporal is None:
            return [InProcessWorker(house, workflows, defines=self._defines)]
        worker_in = partial(temporal.worker_in, self.process, house.clock)
        return [CarryingWorker(house, workflows, defines=self._defines, temporal_worker=worker_in)]


class CarryingWorker(InProcessWorker):
    """What Temporal runs beside it is the world's."""

    def __init__(
        self,
        house: House,
        workflows: dict[str, WorkflowDefinition],
        *,
        defines: bool,
        temporal_worker: Callable[[ConversationRuns], Service],
    ) -> None:
        self._temporal_worker = temporal_worker
        super().__init__(house, workflows, defines=defines)

    def _build_carriers(self, runs: ConversationRuns) -> list[Service]:
        return [self._temporal_worker(runs)]


class Console:
    """A person's command line: a process for each command, which may fail like any other."""

    def __init__(self, world: World, platform: Platform, settings: Settings) -> None:
        self._world = world
        self._platform = platform
        self._settings = settings

    def run(self, name: str, command: Callable[[House, Operations], Any]) -> Process:
        world = self._world
        process = Process(world.timeline, world.host, f"console-{world.timeline.number()}")
        house = build_house(world, self._platform, self._settings, process)

        async def main() -> None:
            await house.stores.open()
            services: list[Service] = [house.bus, *house.stores.services()]
            await start_all(services, on_error=_ignore)
            try:
                await house.bindings.refresh()
                await command(house, build_operations(house))
            finally:
                await stop_all(services, on_error=_ignore)

        world.note(process.name, name)
        process.spawn(main(), name=name)
        return process


def build_house(world: World, platform: Platform, settings: Settings, process: Process) -> House:
    clock = SimClock(process, world.dice_for(f"{process.name} {world.timeline.number()}"))
    capabilities, admission = CapabilityRegistry(clock), Admission()
    bus = SimBus(world, process)
    stores = _build_stores(world, settings, process, clock, bus, partial(_reporter, capabilities, admission))
    bindings = BindingRegistry(stores.definitions, bus, clock)
    chats = ChatRegistry(stores.ledger, bus, clock)
    telegram = SimTelegramChannel(platform, process, clock=clock, rates=_RATES, chats=chats)
    return House(
        settings=settings,
        clock=clock,
        secrets=Secrets(admin_token="", secret_key="", telegram_webhook=WEBHOOK_WORD),
        stores=stores,
        bus=bus,
        bindings=bindings,
        chats=chats,
        channels=Channels(HttpChannel(), WebChatChannel(""), telegram, platform.account),
        capabilities=capabilities,
        intake=Intake(
            stores.queue,
            bindings,
            bus,
            clock,
            accept_seconds_max=settings.accept_seconds,
            admission=admission,
            keep=None if stores.full is None else _witnessed(world, stores.full.copies),
            stores=settings.stores,
            chats=chats,
            left_to_timers=None if world.timers is None else LEFT_TO_TIMERS,
        ),
        conversations=None if world.conversations is None else world.conversations.reached_by(process, clock),
    )


def _build_stores(
    world: World, settings: Settings, process: Process, clock: SimClock, bus: SimBus, on_trouble: OnTrouble
) -> Stores:
    database = SimDatabase(world, process, clock=clock, schema=_SCHEMA)
    ledger, definitions, directory = SqliteLedger(database), SqliteDefinitions(database), SimDirectory(world)
    limits = QueueLimits(claim=timedelta(seconds=settings.claim_seconds))
    if settings.redis_url is None:
        return SimStores(directory, database, SqliteQueue(database, limits), ledger, definitions)
    witness = world.witness
    queue = SimQueue(world, process, witness, limits=limits, on_trouble=on_trouble("redis"))
    mirror = None
    if settings.rabbitmq_url is not None:
        mirror = SimMirror(world, process, witness, clock=clock, on_trouble=on_trouble("rabbitmq"))
    slots = SimSlots(world, process, witness, clock=clock, on_trouble=on_trouble("disk"))
    redis: Any = SimRedis(queue)
    full = wire_copies(settings, redis, queue, mirror, slots, ledger, bus, clock)
    stores = SimStores(directory, database, queue, ledger, definitions, full)
    if settings.mongodb_url is None:
        return stores
    return with_late_writes(stores, SimLateWrites(world, queue), clock)


def _reporter(
    capabilities: CapabilityRegistry, admission: Admission, name: str
) -> Callable[[Unavailable | None], None]:
    return partial(report_store, capabilities, admission, name)


def _witnessed(world: World, copies: Copies) -> Keep:
    """What keeps a message, and says at once that it is kept, as whoever hands it in is told."""

    async def keep(task: NewTask) -> Enqueued:
        enqueued = await copies.keep(task)
        world.witness.kept(task)
        return enqueued

    return keep


def _take_as_verified(account: str) -> None:
    """There is one bot, and the platform knows it from the beginning."""


def _ignore(name: str, error: BaseException) -> None:
    """A service that fails to stop is the real program's to report."""

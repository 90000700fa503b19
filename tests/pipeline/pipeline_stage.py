"""A whole installation in one test: real parts on one SQLite file, in "processes" that can be killed.

A `Process` holds what one operating-system process would: its own connection, bus member, and parts. Its calls
to queue, ledger and platform go past a gate, where a test may kill the process, make the call fail, or hold it.
After `die` nothing of it has an effect any more, as after kill -9: no clean-up, no release, no goodbye.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import apsw
import msgspec

from rise.bindings import BindingRegistry
from rise.bursts import Bursts
from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.callbacks import CallbackReceiver
from rise.capabilities import CapabilityRegistry
from rise.channels.http import HttpChannel, read_message
from rise.channels.port import Incoming, SendOutcome
from rise.channels.telegram import TelegramChannel, TelegramRates
from rise.chats import ChatRegistry
from rise.clock import SystemClock
from rise.connections.sqlite import Database
from rise.conversations.asking import Conversations
from rise.conversations.running import ConversationRuns
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.definitions.sqlite import SCHEMA as DEFINITIONS_SCHEMA
from rise.definitions.sqlite import SqliteDefinitions
from rise.delivery import DeliveryLimits, Sender
from rise.envelope import Call, Reason, Status, TaskId, run_id_of
from rise.errors import StoreUnavailable, TemporalUnavailable
from rise.follow_ups.arming import Arming
from rise.follow_ups.port import LEFT_TO_TIMERS
from rise.follow_ups.ringing import Ringing
from rise.intake import Intake
from rise.ledger.port import Reply, ReplyKind, ReplyState, Run
from rise.ledger.sqlite import SCHEMA as LEDGER_SCHEMA
from rise.ledger.sqlite import SqliteLedger
from rise.queue.port import OpenTask, QueueLimits, Selection
from rise.queue.sqlite import SCHEMA as QUEUE_SCHEMA
from rise.queue.sqlite import SqliteQueue
from rise.reachable import read_allowed
from rise.retries import RetryPolicy
from rise.runtime.alerts import AlertMessage, Alerts
from rise.runtime.editor import Editor
from rise.runtime.operations import Operations
from rise.runtime.overload import Overload, OverloadLimits
from rise.runtime.pipeline import Pipeline, PipelineLimits
from rise.runtime.publishing import Workflows
from rise.runtime.supervisor import Duties, Supervisor
from rise.runtime.versions import Versions
from rise.testing.clock import ManualClock
from rise.testing.fakes.timers import FakeTimers
from rise.testing.telegram import SentMessage, TelegramStandIn, updates
from rise.testing.telegram.rules.update_queue import QueuedUpdate
from rise.worker import Texts, Worker, WorkerLimits
from rise.workflows.building import StagedWorkflows
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.fetching import GuardedFetch
from rise.workflows.model import NoModel
from rise.workflows.runner import Runner
from rise.workflows.staged import Tools
from rise.workflows.stages import read_stages

Edge = Literal["before", "after"]
UNLIMITED = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=1e6)
PATIENCE_SECONDS = 40.0
MARK = "↻ "
CALLBACK_SECRET = "a-secret-of-the-tests"
OTHER_TOKEN = "7000000002:the-other-bot"

_process: ContextVar[Process | None] = ContextVar("process", default=None)


class Killed(BaseException):
    """The process that was asked is dead. Only a test's own task sees this; those of the process just end."""


class Gate:
    """Holds calls until it is opened."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def __call__(self) -> None:
        self._reached.set()
        await self._opened.wait()

    async def reached(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()


@dataclass
class _Stop:
    """What happens at the n-th passing of one edge of one call, and the `times` that follow."""

    step: str
    edge: Edge
    nth: int
    times: int
    act: Callable[[], Awaitable[None]]
    passed: int = 0

    def is_due(self, step: str, edge: Edge) -> bool:
        if (step, edge) != (self.step, self.edge):
            return False
        self.passed += 1
        return self.nth <= self.passed < self.nth + self.times


class _Watched:
    """A port whose every call goes past its process."""

    def __init__(self, process: Process, name: str, inner: Any) -> None:
        self._process = process
        self._name = name
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._process.passing(f"{self._name}.{name}", lambda: method(*args, **kwargs))

        return call


class _WatchedTelegram(TelegramChannel):
    """Counts how many calls are out per chat, and goes past its process."""

    def __init__(self, process: Process, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process = process

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        return await self._process.passing("channel.send", lambda: self._send(account, chat_id, call))

    async def _send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        out = self._process.stage.out
        out[chat_id] += 1
        self._process.stage.out_max[chat_id] = max(self._process.stage.out_max[chat_id], out[chat_id])
        try:
            return await super().send(account, chat_id, call)
        finally:
            out[chat_id] -= 1


class _WatchedCallbacks(CallbackReceiver):
    """Goes past its process."""

    def __init__(self, process: Process) -> None:
        here = read_allowed(["127.0.0.1"])
        super().__init__(CALLBACK_SECRET, GuardedFetch(here), here, process.stage.clock)
        self._process = process

    async def send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        return await self._process.passing("callbacks.send", lambda: self._send(account, chat_id, call))

    async def _send(self, account: str, chat_id: str, call: Call) -> SendOutcome:
        return await super().send(account, chat_id, call)


class Process:
    """One process's worth of parts. Start it through `Stage`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.is_dead = False
        self.steps: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self._stops: list[_Stop] = []
        self._gates: list[Gate] = []
        self._died = asyncio.Event()
        self.database = stage.new_database()
        self.bus = LocalBus(stage.directory / "bus", SystemClock())
        self.queue: Any = _Watched(self, "queue", SqliteQueue(self.database, stage.queue_limits))
        self.ledger: Any = _Watched(self, "ledger", SqliteLedger(self.database))
        self.definitions: Any = _Watched(self, "definitions", SqliteDefinitions(self.database))
        self.chats = ChatRegistry(self.ledger, self.bus, stage.clock)
        self.telegram = _WatchedTelegram(
            self,
            [stage.telegram.token, OTHER_TOKEN],
            clock=stage.clock,
            api_base=stage.telegram.url,
            rates=stage.rates,
            timeout_seconds=stage.call_seconds,
            chats=self.chats,
        )
        self.callbacks = _WatchedCallbacks(self)
        self.bindings = BindingRegistry(self.definitions, self.bus, stage.clock)
        self.editor = Editor(self.definitions, self.ledger, self.bus, stage.clock)
        self.intake = Intake(
            self.queue, self.bindings, self.bus, stage.clock, chats=self.chats, left_to_timers=stage.left_to_timers
        )
        self.on_death: list[Callable[[], None]] = []
        self.parts: list[Any] = []

    # --- what tests do with it ---

    def at(self, step: str, edge: Edge, act: Callable[[], Awaitable[None]], *, nth: int = 1, times: int = 1) -> None:
        """Do something at the n-th call from now on, before it or after it."""
        self._stops.append(_Stop(step, edge, nth, times, act))

    def die_at(self, step: str, edge: Edge, *, nth: int = 1) -> None:
        self.at(step, edge, self._die_here, nth=nth)

    def fail_at(self, step: str, edge: Edge, error: Exception, *, nth: int = 1, times: int = 1) -> None:
        async def fail() -> None:
            raise error

        self.at(step, edge, fail, nth=nth, times=times)

    def hold_at(self, step: str, edge: Edge, *, nth: int = 1) -> Gate:
        gate = Gate()
        self._gates.append(gate)
        self.at(step, edge, gate, nth=nth)
        return gate

    async def kill(self) -> None:
        """kill -9, now; returns when nothing of it runs any more."""
        self._die()
        await self.dead()

    async def dead(self) -> None:
        """Wait until it has been killed where it was told to be, and nothing of it runs any more."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._died.wait()
            while self.tasks:
                await asyncio.wait(set(self.tasks))
            with suppress(StoreUnavailable):  # it was never opened
                # What its thread was already writing is written before it died, never after.
                await self.database.write(lambda connection: None)

    async def stop(self) -> None:
        """SIGTERM."""
        for hears in self.on_death:
            hears()
        with self._inside():
            for part in reversed(self.parts):
                await part.stop()
        self.parts.clear()

    async def passing(self, step: str, call: Callable[[], Awaitable[Any]]) -> Any:
        await self._alive()
        self.steps.append(step)
        try:
            await self._stop_at(step, "before")
            result = await call()
            await self._alive()  # what comes back to a dead process reaches nobody
            await self._stop_at(step, "after")
        finally:
            self.stage.touch()
        return result

    def watched(self, name: str, port: Any) -> Any:
        """One more of its ports."""
        return _Watched(self, name, port)

    # --- inside ---

    async def start(self, *parts: Any) -> None:
        with self._inside():
            await self.database.open()
            for part in parts:
                await part.start()
                self.parts.append(part)
        if self.is_dead:  # it died of the one part while the next was started
            for task in list(self.tasks):
                task.cancel()

    def _inside(self) -> Any:
        return _Inside(self)

    async def _stop_at(self, step: str, edge: Edge) -> None:
        for stop in self._stops:
            if stop.is_due(step, edge):
                await stop.act()
                await self._alive()

    async def _alive(self) -> None:
        if not self.is_dead:
            return
        if asyncio.current_task() not in self.tasks:
            raise Killed
        await asyncio.Event().wait()  # until it is cancelled with the rest

    async def _die_here(self) -> None:
        self._die()

    def _die(self) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        # What the kernel does: the socket and the lock are gone, their names stay.
        bus: Any = self.bus
        if bus._socket is not None:
            asyncio.get_running_loop().remove_reader(bus._socket)
            bus._socket.close()
            bus._socket = None
            os.close(bus._lock_fd)
            os.close(bus._directory_fd)
        for task in list(self.tasks):
            task.cancel()
        for hears in self.on_death:
            hears()
        self._died.set()
        self.stage.touch()

    async def clear_away(self) -> None:
        """At the end of a test, dead or alive."""
        self._stops.clear()
        for gate in self._gates:
            gate.open()
        if not self.is_dead:
            await self.stop()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.telegram.close()
        await self.callbacks.close()
        await self.database.close()


class _Inside:
    """Tasks that are started within belong to the process."""

    def __init__(self, process: Process) -> None:
        self._process_of_tasks = process

    def __enter__(self) -> None:
        self._token = _process.set(self._process_of_tasks)

    def __exit__(self, *_: object) -> None:
        _process.reset(self._token)


def count_tasks(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory: each task belongs to the process whose code started it, also in a context of its own."""
    process = _process.get()
    if process is not None and options.get("context") is not None:
        options["context"].run(_process.set, process)
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
    return task


class Gateway(Process):
    """Accepts, supervises and sends."""

    sender: Sender
    supervisor: Supervisor
    capabilities: CapabilityRegistry
    alerts: Alerts


class WorkerProcess(Process):
    worker: Worker
    runner: Runner

    @property
    def conversation_runs(self) -> ConversationRuns:
        bursts = Bursts(self.queue, self.ledger, self.bindings)
        channels = {"telegram": self.telegram, "http": HttpChannel()}
        return ConversationRuns(self.queue, self.ledger, self.bindings, bursts, channels, self.runner)


@dataclass
class Stage:
    """One data directory, the platform beside it, and the processes that were started on it."""

    directory: Path
    telegram: TelegramStandIn
    clock: ManualClock
    queue_limits: QueueLimits = field(default_factory=QueueLimits)
    worker_limits: WorkerLimits = field(default_factory=lambda: WorkerLimits(run_seconds=60.0, stop_seconds=5.0))
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    delivery_limits: DeliveryLimits = field(default_factory=lambda: DeliveryLimits(resend_seconds=0.0))
    duties: Duties = field(default_factory=lambda: Duties(late_after_seconds=0.0))
    overload_limits: OverloadLimits = OverloadLimits()  # noqa: RUF009 - it is frozen
    pipeline_limits: PipelineLimits = PipelineLimits()  # noqa: RUF009 - it is frozen
    restart_worker: Callable[[], Awaitable[None]] | None = None
    """What the gateway does about a worker that is stuck."""
    channels: tuple[str, ...] = ("telegram", "http")
    """What is configured, of which a process is told at its start."""
    is_being_filled: bool = False
    """Whether the queue was emptied and is filled again."""
    rates: TelegramRates = UNLIMITED
    wording: Texts = Texts()  # noqa: RUF009 - it is frozen
    call_seconds: float = 5.0
    conversations: Callable[[WorkerProcess], Conversations] | None = None
    """How a worker talks to Temporal, if there is one."""
    timers: FakeTimers | None = None
    """What keeps the time of follow-ups, rather than the queue: it rings in the processes of workers."""
    log: list[Any] = field(default_factory=list)
    """The log's events as they were written."""

    def __post_init__(self) -> None:
        self.out: Counter[str] = Counter()
        self.out_max: Counter[str] = Counter()
        self.alerts_told: list[AlertMessage] = []
        """Of alerts."""
        self.settled: list[Mapping[str, Any]] = []
        self._processes: list[Process] = []
        self._waiting: set[asyncio.Future[None]] = set()

    # --- its life ---

    async def open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        asyncio.get_running_loop().set_task_factory(count_tasks)
        self.database = self.new_database()
        await self.database.open()
        self.queue = SqliteQueue(self.database, self.queue_limits)
        self.ledger = SqliteLedger(self.database)
        self.bus = LocalBus(self.directory / "bus", SystemClock())
        await self.bus.start()
        self.bus.subscribe(Topic.TASK_SETTLED, self._hear)
        definitions = SqliteDefinitions(self.database)
        self.editor = Editor(definitions, self.ledger, self.bus, self.clock)
        versions = Versions(definitions, self.ledger, self.bus, self.clock)
        self.workflows = Workflows(definitions, versions, self.editor, read_stages)
        self.operations = Operations(self.queue, self.ledger, self.bus, self.clock)

    async def close(self) -> None:
        for process in reversed(self._processes):
            try:
                async with asyncio.timeout(4 * PATIENCE_SECONDS):
                    await process.clear_away()
            except TimeoutError:
                raise AssertionError(f"these never end: {process.tasks}") from None
        if self.timers is not None:
            await self.timers.close()
        await self.bus.stop()
        await self.database.close()

    def new_database(self) -> Database:
        schema = {"queue": QUEUE_SCHEMA, "ledger": LEDGER_SCHEMA, "definitions": DEFINITIONS_SCHEMA}
        return Database(self.directory / "rise.db", clock=self.clock, schema=schema)

    async def start(self, *workflows: Callable[..., Any]) -> tuple[Gateway, WorkerProcess]:
        """A gateway, and a worker with these workflows."""
        gateway = await self.start_gateway()
        return gateway, await self.start_worker(*workflows)

    async def start_gateway(self, *, sends: bool = True) -> Gateway:
        gateway = Gateway(self)
        self._processes.append(gateway)
        gateway.sender = self.new_sender(gateway)
        gateway.capabilities = CapabilityRegistry(self.clock)
        gateway.supervisor = Supervisor(
            queue=gateway.queue,
            ledger=gateway.ledger,
            bus=gateway.bus,
            bindings=gateway.bindings,
            channels={"telegram": gateway.telegram, "http": HttpChannel()},
            capabilities=gateway.capabilities,
            pipeline=self.new_pipeline(gateway),
            clock=self.clock,
            duties=self.duties,
        )
        services = [gateway.bus, gateway.bindings, gateway.chats, gateway.supervisor]
        await gateway.start(*services, *([gateway.sender] if sends else []))
        return gateway

    def new_pipeline(self, gateway: Gateway) -> Pipeline:
        gateway.alerts = Alerts(self.clock, self.alerts_told.append, 300.0)
        return Pipeline(
            queue=gateway.queue,
            ledger=gateway.ledger,
            capabilities=gateway.capabilities,
            overload=Overload(
                self.overload_limits,
                admission=gateway.intake.admission,
                capabilities=gateway.capabilities,
                alerts=gateway.alerts,
                pause_workers=lambda: gateway.bus.publish(Topic.RUNNING_PAUSED, {"seconds": 30.0}),
            ),
            alerts=gateway.alerts,
            clock=self.clock,
            channels=self.channels,
            limits=self.pipeline_limits,
            restart_worker=self.restart_worker,
            is_filled=self.is_filled,
        )

    async def is_filled(self) -> bool:
        return not self.is_being_filled

    def new_sender(self, process: Process, **options: Any) -> Sender:
        return Sender(
            ledger=process.ledger,
            queue=process.queue,
            channels={"telegram": process.telegram, "callback": process.callbacks},
            bus=process.bus,
            clock=self.clock,
            limits=self.delivery_limits,
            **options,
        )

    async def start_worker(self, *workflows: Callable[..., Any], follows_code: bool = True) -> WorkerProcess:
        return await self.start_new_worker(self.new_worker(*workflows), *workflows, follows_code=follows_code)

    def new_worker(self, *workflows: Callable[..., Any]) -> WorkerProcess:
        """Not started, so that a test can say first where it dies."""
        process = WorkerProcess(self)
        self._processes.append(process)
        defined = {one.workflow_id: one for one in map(definition_of, workflows)}
        channels = {
            name: channel
            for name, channel in {"telegram": process.telegram, "http": HttpChannel()}.items()
            if name in self.channels
        }
        limits, staged = self.worker_limits.of_a_run(), StagedWorkflows(self.tools(process))
        process.runner = Runner(process.ledger, defined, channels, process.bus, self.clock, limits, staged)
        process.worker = Worker(
            queue=process.queue,
            ledger=process.ledger,
            bindings=process.bindings,
            runner=process.runner,
            channels=channels,
            retry_policy=self.retry_policy,
            accept=self.intake_of(process).accept,
            bus=process.bus,
            clock=self.clock,
            limits=self.worker_limits,
            texts=self.wording,
            conversations=None if self.conversations is None else self.conversations(process),
        )
        return process

    @property
    def left_to_timers(self) -> timedelta | None:
        return None if self.timers is None else LEFT_TO_TIMERS

    def intake_of(self, process: Process) -> Intake:
        """For what its runs plan."""
        return Intake(process.queue, process.bindings, process.bus, self.clock, left_to_timers=self.left_to_timers)

    def ringing_in(self, process: Process) -> Callable[[TaskId], Awaitable[None]]:
        """What its timers ring."""
        accept = self.intake_of(process).accept
        ringing = Ringing(process.queue, process.ledger, process.bus, self.clock, accept=accept)

        async def ring(planning_id: TaskId) -> None:
            with process._inside():
                ringing_now = asyncio.get_running_loop().create_task(ringing.ring(planning_id))
            await asyncio.wait({ringing_now})
            if ringing_now.cancelled():
                raise TemporalUnavailable("the process in which it rang has died")
            ringing_now.result()

        return ring

    async def start_ringer(self) -> Process:
        """A process that does nothing but what timers ring in it."""
        process = Process(self)
        self._processes.append(process)
        await process.start(process.bus, process.bindings, process.chats)
        return process

    async def start_timers(self, process: Process) -> None:
        """It arms what it hears of, and is where they ring."""
        if self.timers is not None:
            await process.start(Arming(self.timers, process.queue, process.bus, self.clock))
            if not process.is_dead:
                process.on_death.append(self.timers.work(self.ringing_in(process)))

    def tools(self, process: Process) -> Tools:
        """What the stages of published workflows work with: no model, and nothing that could be called."""
        return Tools(model=NoModel(), fetch=GuardedFetch(), clock=self.clock)

    async def start_new_worker(
        self, process: WorkerProcess, *workflows: Callable[..., Any], follows_code: bool = True
    ) -> WorkerProcess:
        await process.start(process.bus, process.bindings, process.chats)
        if follows_code:
            records = [record_of(definition_of(workflow)) for workflow in workflows]
            await process.editor.follow_code(records, self.accounts)
        await process.bindings.refresh()
        await process.start(process.runner, process.worker)
        await self.start_timers(process)
        return process

    @property
    def account(self) -> str:
        return str(self.telegram.bot_id)

    @property
    def accounts(self) -> dict[str, str]:
        return {"telegram": self.account, "http": "default"}

    async def bind(
        self, workflow: Callable[..., Any], *, channel: str = "telegram", account: str | None = None, **fields: Any
    ) -> BindingRecord:
        """A person binds it."""
        definition = definition_of(workflow)
        await self.editor.publish(record_of(definition), by="a person")
        binding = BindingRecord(
            channel=channel, account=account or self.accounts[channel], workflow_id=definition.workflow_id, **fields
        )
        return await self.editor.bind(binding, by="a person")

    # --- people write ---

    def incoming(self, text: str = "Hello", *, chat: int = 42, **fields: Any) -> Incoming:
        """Somebody wrote in Telegram; nobody has accepted it yet."""
        queued = self.telegram.message(text, chat_id=chat, **fields)
        assert queued is not None
        return self.reading(queued.body)

    def tapped(self, data: str = "yes", *, chat: int = 42, **fields: Any) -> Incoming:
        queued = self.telegram.callback_query(data, chat_id=chat, **fields)
        assert queued is not None
        return self.reading(queued.body)

    def reading(self, body: bytes, by: Process | None = None) -> Incoming:
        reader = (by or self._processes[0]).telegram
        return reader.read_update(body, account=self.account, webhook=False, now=self.clock.now())

    async def write(self, *texts: str, chat: int = 42, by: Process | None = None, **fields: Any) -> list[TaskId]:
        """Somebody writes, and it is accepted."""
        return [await self.take(self.telegram.message(text, chat_id=chat, **fields), by) for text in texts]

    async def take(self, update: QueuedUpdate | None, by: Process | None = None) -> TaskId:
        """What the platform has for the bot is read and accepted."""
        assert update is not None
        process = by or self._a_living_process()
        return (await process.intake.accept(self.reading(update.body, process))).task_id

    async def migrate(self, old: int, new: int) -> list[QueuedUpdate]:
        """The group becomes a supergroup; what both chats see of it, which nobody has read yet."""
        self.telegram.conditions().migrated[old] = new
        seen = [self.telegram.add_update(update) for update in updates.group_migration(chat_id=old, new_chat_id=new)]
        return [update for update in seen if update is not None]

    async def tap(self, data: str = "yes", *, chat: int = 42, **fields: Any) -> TaskId:
        return (await self._a_living_process().intake.accept(self.tapped(data, chat=chat, **fields))).task_id

    async def say(self, text: str, *, chat: int, account: str, key: str | None = None) -> TaskId:
        """A program says something in a chat, through the same door."""
        body = json.dumps({"channel": "telegram", "account": account, "chatId": str(chat), "text": text}).encode()
        request = read_message(
            body,
            accounts={"telegram": [self.account, OTHER_TOKEN.partition(":")[0]]},
            principal="test",
            key=key,
            request_id="r",
            trace_id=None,
        )
        return (await self._a_living_process().intake.accept(request.incoming)).task_id

    async def ask(
        self, text: str, *, callback_url: str | None = None, key: str = "k", by: Process | None = None, **fields: Any
    ) -> TaskId:
        """A program asks over HTTP, through the same door."""
        asked = {"userText": text} | ({} if callback_url is None else {"callbackUrl": callback_url})
        request = HttpChannel().read_apply(
            json.dumps(asked).encode(), principal="test", key=key, request_id="r", trace_id=None
        )
        incoming = msgspec.structs.replace(request.incoming, **fields)
        return (await (by or self._a_living_process()).intake.accept(incoming)).task_id

    def _a_living_process(self) -> Process:
        return next(process for process in self._processes if not process.is_dead)

    async def rewrite(self, table: str, task_id: TaskId, **column: bytes | str) -> Any:
        """Put something else where a store keeps this, and return what was there."""
        [(name, value)] = column.items()

        def change(connection: apsw.Connection) -> Any:
            kept = connection.execute(f"SELECT {name} FROM {table} WHERE task_id = ?", (task_id,)).fetchone()
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE task_id = ?", (value, task_id))
            return kept[0]

        return await self.database.write(change)

    # --- time, and what happened ---

    async def pass_time(self, seconds: float) -> None:
        """On every clock of the installation; whoever looks by itself from time to time looks now."""
        self.clock.advance(seconds)
        self.nudge()
        await self.let_go_on()

    async def let_go_on(self) -> None:
        """Whoever was woken reads and writes a few times before a test looks, or moves the clock again."""
        for _ in range(3):
            for process in self._processes:
                if not process.is_dead and process.parts:
                    await process.database.read(lambda connection: None)
                    await process.database.write(lambda connection: None)

    def nudge(self) -> None:
        self.bus.publish(Topic.LANES_READY)
        self.bus.publish(Topic.OUTBOX_READY)

    def touch(self) -> None:
        """Something may have changed: let all who wait look again."""
        for waiting in list(self._waiting):
            if not waiting.done():
                waiting.set_result(None)

    async def until(self, holds: Callable[[], Awaitable[Any]]) -> Any:
        """Return what it returned as soon as that is true; asked again whenever a process has done something."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.add(change)
                    try:
                        if found := await holds():
                            return found
                        await change
                    finally:
                        self._waiting.discard(change)
        except TimeoutError:
            raise AssertionError(f"it never came to that; {await self.report()}") from None

    async def report(self) -> str:
        open_tasks = [
            (one.head.user_text, one.status, one.reason, one.error)
            for one in await self.queue.list_open(Selection(), limit=20)
        ]
        said = [(message.chat_id, message.text[:60]) for message in self.telegram.sent[-20:]]
        return f"open: {open_tasks}; outbox: {await self.ledger.outbox_depth()}; said: {said}"

    async def logged(self, event: str, *, count: int) -> None:
        """Wait until it has been logged so often. Looked at whenever a process has done something."""

        async def holds() -> bool:
            return sum(one["event"] == event for one in self.log) >= count

        await self.until(holds)

    async def ended(self, *task_ids: TaskId) -> list[Run]:
        """Wait until these are finished, in the ledger and then in the queue."""

        async def finished() -> list[Run] | None:
            runs = [await self.ledger.latest_run(task_id) for task_id in task_ids]
            return (
                [run for run in runs if run is not None]
                if all(run and run.status.is_finished for run in runs)
                else None
            )

        runs: list[Run] = list(await self.until(finished)) if task_ids else []
        # The queue hears of it a moment later: at once, or when the sender or the supervisor looks again.
        for _ in range(60):
            await self.let_go_on()
            if not any([await self.queue.get(task_id) for task_id in task_ids]):
                return runs
            await self.pass_time(1)
        raise AssertionError(f"the queue never heard of it; {await self.report()}")

    async def suspended(self, task_id: TaskId, reason: Reason) -> OpenTask:
        """Wait until it is suspended for this reason."""

        async def holds() -> OpenTask | None:
            task = await self.look(task_id)
            return task if task is not None and task.reason is reason else None

        if reason is Reason.REPLY_HELD:
            await self._held(task_id, holds)
        found: OpenTask = await self.until(holds)
        assert found.status is Status.SUSPENDED
        return found

    async def _held(self, task_id: TaskId, is_held: Callable[[], Awaitable[Any]]) -> None:
        """The sender holds it, or the supervisor where the sender was quicker than the worker that settles it."""

        async def is_in_doubt() -> bool:
            return any(reply.state is ReplyState.UNKNOWN for reply in await self.ledger.replies(task_id=task_id))

        await self.until(is_in_doubt)
        for _ in range(60):
            await self.let_go_on()
            if await is_held():
                return
            for process in self._processes:
                if isinstance(process, Gateway) and not process.is_dead:
                    await process.supervisor.sweep()
        raise AssertionError(f"it was never held; {await self.report()}")

    async def waiting_for_retry(self, task_id: TaskId, *, attempts: int | None = None) -> OpenTask:
        """Wait until it is due later."""

        async def holds() -> OpenTask | None:
            task = await self.look(task_id)
            if task is None or task.status is not Status.PENDING or task.due_at_ms <= self.queue.now_ms():
                return None
            return task if attempts is None or task.attempts == attempts else None

        found: OpenTask = await self.until(holds)
        return found

    async def look(self, task_id: TaskId) -> OpenTask | None:
        found = await self.queue.list_open(Selection(task_ids=(task_id,)), limit=1)
        return found[0] if found else None

    async def open_count(self) -> int:
        return len(await self.queue.list_open(Selection(), limit=10_000))

    async def notices(self, *task_ids: TaskId) -> list[Reply]:
        replies = [reply for task_id in task_ids for reply in await self.ledger.replies(task_id=task_id)]
        return [reply for reply in replies if reply.kind is ReplyKind.NOTICE]

    async def said(self, count: int, *, chat: int | None = None) -> list[str]:
        """Wait until people have seen so many messages, and return all they have seen."""

        def seen(telegram: TelegramStandIn) -> list[SentMessage]:
            return [message for message in telegram.sent if chat is None or message.chat_id == chat]

        try:
            await self.telegram.wait_until(lambda t: len(seen(t)) >= count, timeout_seconds=PATIENCE_SECONDS)
        except TimeoutError:
            raise AssertionError(f"said only {len(seen(self.telegram))} of {count}; {await self.report()}") from None
        return [message.text for message in seen(self.telegram)]

    def texts(self, chat: int = 42) -> list[str]:
        """What people have seen in a chat so far."""
        return [message.text for message in self.telegram.sent if message.chat_id == chat]

    def calls(self, method: str) -> list[Any]:
        return [call for call in self.telegram.calls if call.method.lower() == method.lower()]

    async def result(self, task_id: TaskId, generation: int = 0) -> Run:
        run = await self.ledger.run(run_id_of(task_id, generation))
        assert run is not None
        return run

    def _hear(self, event: Mapping[str, Any]) -> None:
        self.settled.append(event)
        self.touch()


def definition_of(workflow: Callable[..., Any]) -> WorkflowDefinition:
    definition: WorkflowDefinition = workflow.__rise_workflow__  # type: ignore[attr-defined]
    return definition


def record_of(definition: WorkflowDefinition) -> WorkflowRecord:
    return WorkflowRecord(workflow_id=definition.workflow_id, name=definition.name, channels=definition.channels)

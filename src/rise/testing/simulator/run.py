"""One seed, one run: a plan is drawn, things happen, everybody recovers, and nothing may be missing."""

from __future__ import annotations

import logging
import random  # noqa: TID251 - the dice are the seed's
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import msgspec
import structlog

from rise.copies import journal, journals, keeper, reaper
from rise.definitions.records import NATIVE, TEMPORAL, BindingRecord, BurstPolicy
from rise.envelope import TaskId
from rise.errors import RiseError, StateConflict, TaskUnknown
from rise.queue.port import Selection
from rise.runtime.assembly.house import House
from rise.runtime.audit import Audit, AuditReport
from rise.runtime.operations import Operations
from rise.runtime.refilling import Refilling
from rise.testing.simulator.bot import Behaviour, SimBot
from rise.testing.simulator.copies import CopiesChecker
from rise.testing.simulator.faults import (
    LAST_BLOWS,
    Fault,
    FaultKind,
    draw_faults,
    draw_faults_of_stores,
    draw_faults_of_temporal,
    draw_full_redis,
    draw_ledger_gone,
    draw_slow_calls,
    with_redis_rewound,
)
from rise.testing.simulator.invariants import Checker
from rise.testing.simulator.loop import TimeStandsStill
from rise.testing.simulator.losses import Losses
from rise.testing.simulator.members import Console, Gateway, Member, WorkerMember, settings_of_a_run
from rise.testing.simulator.people import (
    SUPERGROUP,
    Act,
    Doing,
    Written,
    apply_body,
    burst_policy_of,
    channels_carried_by,
    draw_doings,
    draw_refills,
    is_at_large,
    pick,
    texts_of,
    update_of,
    with_bursts,
    with_conversations,
    with_migration,
)
from rise.testing.simulator.platform import WEBHOOK_WORD, Platform
from rise.testing.simulator.profile import Profile
from rise.testing.simulator.timers import SimTimers
from rise.testing.simulator.world import Violation, World
from rise.testing.telegram.rules.update_queue import compact_json

BUSY_SECONDS: Final = 30.0
HEALED_AFTER_SECONDS: Final = 25.0
"""The longest fault that began at the last moment is over."""
REST_SECONDS_MAX: Final = 600.0
CALLER_RETRY_SECONDS: Final = 1.0
STALE_SECONDS: Final = 20 * 86_400
"""However wrong the wall clock of the machine is set."""
EDITED_SECONDS_MAX: Final = 3 * 86_400
"""How old a message may be that somebody edits."""
WORKFLOW: Final = "wf_bot"
BURSTS_FROM: Final = 10_000_000
"""The first seed in whose run bursts may be merged. Those below were tried, and some are kept, from before that was
possible: with it they would be other runs."""
TIMERS_FROM: Final = 20_000_000
"""The first seed in half of whose runs timers keep the time of follow-ups beside the queue, as Temporal's do."""
CONVERSATIONS_FROM: Final = 30_000_000
"""The first seed in many of whose runs chats are carried on by Temporal. Such a run needs the extra `temporal`."""
SLOW_CALLS_FROM: Final = 40_000_000
"""The first seed in half of whose runs the platform takes seconds for a call, now and then."""
COMPLETE_SECONDS_MAX: Final = 120.0
"""Within which all copies are there again, and those of what is finished are gone."""

_SOONER: Final[dict[tuple[ModuleType, str], Any]] = {
    (journal, "LOOK_MS_MAX"): 16_000,
    (journals, "ADOPT_SECONDS"): 5.0,
    (keeper, "COUNT_SECONDS"): 8.0,
    (keeper, "PATIENCE_SECONDS"): 10.0,
    (reaper, "HOLD_SECONDS"): 5.0,
    (reaper, "PARKED_LOOK_SECONDS"): 20.0,
}


class Plan(msgspec.Struct, frozen=True):
    """Everything about a run that was decided before it began."""

    seed: int
    gateways: int
    workers: int
    is_polled: bool
    unknown_policy: str
    doings: list[Doing]
    faults: list[Fault]
    profile: Profile = Profile.EMBEDDED
    has_timers: bool = False
    last_blow: FaultKind | None = None
    """What one store loses when everything is at rest, and is followed by another rest."""

    @property
    def has_conversations(self) -> bool:
        return any(doing.act is Act.CARRY for doing in self.doings)


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run."""

    plan: Plan
    violations: list[Violation]
    trace: str
    lines: list[str]
    counts: dict[str, int]
    struck: dict[str, int]
    steps: dict[str, int]
    """How often each write and call was made."""
    seconds: float
    """Of the world's time."""


def draw_plan(seed: int, profile: Profile = Profile.EMBEDDED) -> Plan:
    is_embedded = profile is Profile.EMBEDDED
    dice = random.Random(f"{seed}: plan" if is_embedded else f"{seed}: {profile} plan")
    gateways, workers = dice.randint(1, 3), dice.randint(1, 4)
    names = [f"gateway-{n}" for n in range(1, gateways + 1)] + [f"worker-{n}" for n in range(1, workers + 1)]
    plan = Plan(
        seed,
        gateways,
        workers,
        dice.random() < 0.25,
        dice.choice(("resend_marked", "resend_marked", "resend", "hold")),
        draw_doings(dice, seconds=BUSY_SECONDS),
        draw_faults(dice, members=names, seconds=BUSY_SECONDS),
        profile,
    )
    plan = plan if is_embedded else _with_losses(plan, dice, names)
    own_dice = random.Random(f"{seed}: {profile} migration")  # what was drawn before stays as it was
    doings = with_migration(own_dice, plan.doings, seconds=BUSY_SECONDS)
    if seed >= BURSTS_FROM:
        doings = with_bursts(random.Random(f"{seed}: {profile} bursts"), doings, seconds=BUSY_SECONDS)
    has_timers = seed >= TIMERS_FROM and random.Random(f"{seed}: {profile} timers").random() < 0.5
    plan = msgspec.structs.replace(plan, doings=doings, has_timers=has_timers)
    if seed >= CONVERSATIONS_FROM:
        plan = _with_conversations(plan, random.Random(f"{seed}: {profile} conversations"), names)
    if seed >= SLOW_CALLS_FROM:
        slow = draw_slow_calls(random.Random(f"{seed}: {profile} slow calls"), seconds=BUSY_SECONDS)
        plan = msgspec.structs.replace(plan, faults=sorted([*plan.faults, *slow], key=lambda fault: fault.at))
    return plan


def _with_conversations(plan: Plan, dice: random.Random, names: Sequence[str]) -> Plan:
    plan = msgspec.structs.replace(plan, doings=with_conversations(dice, plan.doings, seconds=BUSY_SECONDS))
    if not plan.has_conversations:
        return plan
    faults = [*plan.faults, *draw_faults_of_temporal(dice, members=names, seconds=BUSY_SECONDS)]
    return msgspec.structs.replace(plan, faults=sorted(faults, key=lambda fault: fault.at))


def _with_losses(plan: Plan, dice: random.Random, names: Sequence[str]) -> Plan:
    has_mirror = "rabbitmq" in plan.profile.servers
    faults = draw_faults_of_stores(dice, members=names, seconds=BUSY_SECONDS, has_mirror=has_mirror)
    faults = with_redis_rewound(dice, sorted([*plan.faults, *faults], key=lambda fault: fault.at))
    last_blow = dice.choice(LAST_BLOWS if has_mirror else LAST_BLOWS[:2])
    doings = sorted([*plan.doings, *draw_refills(dice, seconds=BUSY_SECONDS)], key=lambda doing: doing.at)
    faults = sorted([*faults, *draw_full_redis(dice, seconds=BUSY_SECONDS)], key=lambda fault: fault.at)
    if plan.profile is Profile.MONGO:
        faults += draw_ledger_gone(dice, members=names, seconds=BUSY_SECONDS)
        faults.sort(key=lambda fault: fault.at)
    return msgspec.structs.replace(plan, doings=doings, faults=faults, last_blow=last_blow)


def simulate(plan: Plan) -> Outcome:
    """Run it. The same plan gives the same outcome, in this interpreter or another."""
    with _quietly(), _impatiently():
        run = _Run(plan)
        try:
            run.play()
        except TimeStandsStill as error:
            run.world.violate("I18", str(error))
        finally:
            if run.world.conversations is not None:
                run.world.conversations.close()
            run.world.timeline.close()
            # It holds the checker's functions where no collector looks, and they hold the world.
            run.world.disk.close(True)
            for disk in run.world.journals.values():
                disk.close(True)
        run.note_errors()
        return run.outcome()


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = world = World(plan.seed, plan.faults)
        if plan.has_timers:
            world.timers = SimTimers(world)
        self.settings = settings = settings_of_a_run(
            plan.profile,
            telegram_unknown=plan.unknown_policy,
            public_url=None if plan.is_polled else "https://rise.example",
            telegram_mode="polling" if plan.is_polled else "webhook",
        )
        self.losses = None if plan.profile is Profile.EMBEDDED else Losses(world, settings)
        self.checker = checker = Checker(world) if self.losses is None else self.losses.checker
        if plan.has_conversations:
            from rise.testing.simulator.conversations import SimConversations  # its client may not be installed

            world.conversations = SimConversations(world, checker)
        self.platform = Platform(world, checker)
        self.bot = SimBot(world, checker)
        self.console = Console(world, self.platform, settings)
        self.members: list[Member] = [
            Gateway(world, self.platform, settings, f"gateway-{n}") for n in range(1, plan.gateways + 1)
        ]
        self.members += [
            WorkerMember(world, self.platform, settings, f"worker-{n}", self.bot.workflows, defines=n == 1)
            for n in range(1, plan.workers + 1)
        ]
        self.callers_waiting = 0
        self.is_bound = True
        self.burst: BurstPolicy | None = None
        self.carried: tuple[str, ...] = ()
        """The channels whose chats Temporal carries on."""
        self.counts: Counter[str] = Counter()

    # --- the run ---

    def play(self) -> None:
        world = self.world
        self._prepare()
        for doing in self.plan.doings:
            world.timeline.at(doing.at, _bound(self._do, doing))
        for fault in self.plan.faults:
            if fault.nth is None:
                world.timeline.at(fault.at, _bound(self._strike, fault))
        if self.losses is not None:
            self.losses.expect(self.plan.faults)
        world.timeline.run(BUSY_SECONDS + HEALED_AFTER_SECONDS)
        self._bind(is_enabled=True)
        self._come_to_rest()
        if self.losses is not None:
            self._complete_copies(self.losses.checker)
        if self.plan.last_blow is not None and self.losses is not None:
            self.losses.strike_if_another_has_it(Fault(kind=self.plan.last_blow, at=world.now))
            self._come_to_rest()
        # What is at rest stays so, and the supervisor has had its time to clean up.
        world.timeline.run(world.now + 35.0)
        if self.losses is not None:
            self._complete_copies(self.losses.checker)
        gateways = [member.house for member in self.members if isinstance(member, Gateway)]
        self.checker.at_rest(self._look(), gateways)

    def _prepare(self) -> None:
        """The tables are there before anybody starts; whether they can be made is another test's question."""
        if not self.plan.is_polled:
            self.platform.use_webhook()
        self._command("prepare", lambda house, _: house.queue.depth())
        self.world.timeline.run(0.0)
        self.checker.watch_disk()
        for member in self.members:
            member.start()

    def _come_to_rest(self) -> None:
        timeline = self.world.timeline
        deadline = timeline.now + REST_SECONDS_MAX
        while not self._is_at_rest() and timeline.now < deadline:
            timeline.run(timeline.now + 5.0)

    def _complete_copies(self, checker: CopiesChecker) -> None:
        """I19: within a while."""
        timeline = self.world.timeline
        deadline = timeline.now + COMPLETE_SECONDS_MAX
        while (missing := checker.incomplete_copies()) and timeline.now < deadline:
            timeline.run(timeline.now + 5.0)
        for what in missing:
            self.world.violate("I19", what)

    def _is_at_rest(self) -> bool:
        return not self.checker.is_anything_moving() and self.platform.is_quiet() and not self.callers_waiting

    def _look(self) -> AuditReport:
        """What a person is told by the commands that there are for it."""
        found: list[AuditReport] = []

        async def audit(house: House, operations: Operations) -> None:
            shown = None if house.stores.full is None else house.stores.full.shown
            found.append(await Audit(house.queue, house.ledger, 30 * 86_400.0, copies=shown).run())
            self.checker.shown(await operations.stats())

        process = self._command("audit", audit)
        timeline = self.world.timeline
        timeline.run(timeline.now + 5.0)
        assert found, f"the audit did not end: {process.errors}"
        return found[0]

    # --- what goes wrong ---

    def _strike(self, fault: Fault) -> None:
        world = self.world
        struck = [member for member in self.members if fault.strikes(member.name)]
        match fault.kind:
            case FaultKind.KILL:
                for member in struck:
                    world.kill(member.process, "kill -9")
            case FaultKind.PAUSE:
                for member in struck:
                    world.pause(member.process, fault.seconds)
            case FaultKind.STOP:
                for member in struck:
                    member.stop()
            case FaultKind.POWER_CUT:
                self._cut_power()
                if self.losses is not None and fault.seconds:
                    self.losses.strike(fault, [])
            case FaultKind.TEMPORAL_KILLED | FaultKind.TEMPORAL_EMPTIED if world.conversations is not None:
                if fault.kind is FaultKind.TEMPORAL_KILLED:
                    world.conversations.die(fault.seconds)
                else:
                    world.conversations.lose_everything()
            case FaultKind.CLOCK_STEP:
                world.note("clock", "is set", f"{fault.seconds:+.0f}")
                world.host.wall_offset += fault.seconds
            case _:
                if self.losses is None or not self.losses.strike(fault, [member.process for member in struck]):
                    return
        world.struck[fault.kind] += 1

    def _cut_power(self) -> None:
        for process in list(self.world.host.processes):
            self.world.kill(process, "the power goes")
        self.world.host.reboot()

    # --- what people do ---

    def _do(self, doing: Doing) -> None:
        self.counts[doing.act] += 1
        match doing.act:
            case Act.CALL:
                self._call(doing)
            case Act.REPLAY:
                self._replay(doing)
            case Act.FORGE | Act.STALE:
                self._intrude(doing)
            case Act.UNBIND | Act.BIND:
                self._bind(is_enabled=doing.act is Act.BIND)
            case Act.MERGE | Act.PART:
                self.burst = burst_policy_of(doing)
                self._bind(is_enabled=self.is_bound)
            case Act.CARRY:
                self.carried = channels_carried_by(doing)
                self._bind(is_enabled=self.is_bound)
            case Act.REFILL:
                self._command(doing.act, lambda house, _: Refilling(house).refill())
            case Act.RESUME | Act.DROP | Act.AGAIN:
                self._command(doing.act, lambda house, operations: self._operate(doing, house, operations))
            case _:
                self._write(doing)

    def _write(self, doing: Doing) -> None:
        if doing.act is Act.MIGRATE:
            self.platform.bot.chats.conditions.migrated[doing.chat_id] = SUPERGROUP
        for update in update_of(doing):
            if doing.act is Act.EDIT:
                written_at = int(self.platform.now() - doing.pick * EDITED_SECONDS_MAX)
                message = {**update["message"], "message_id": 1 + int(doing.pick * 20), "date": written_at}
                update = {"edited_message": message}
            queued = self.platform.bot.add_update(update, self.platform.now())
            if queued is not None:
                self._expect(doing, texts_of(update), f"tg:{self.platform.account}:u:{queued.update_id}", queued.body)
            self.platform.pump()

    def _expect(self, doing: Doing, text: str, key: str, body: bytes, *, is_genuine: bool = True) -> None:
        name, _, asked = text.partition(" ")
        behaviour = Behaviour(asked) if asked else doing.behaviour
        has_moved = doing.act is Act.MIGRATE
        written = Written(name or doing.name, behaviour, doing.chat_id, key, body, is_genuine, has_moved)
        self.checker.expect(written)

    def _call(self, doing: Doing) -> None:
        """A program asks, and asks again with the same key until it is told that it was heard."""
        body = apply_body(doing)
        self._expect(doing, doing.text, f"http:program:{doing.name}", body)
        self.callers_waiting += 1
        self._try_call(doing.name, body)

    def _try_call(self, key: str, body: bytes) -> None:
        world = self.world

        def again() -> None:
            world.timeline.after(CALLER_RETRY_SECONDS, lambda: self._try_call(key, body))

        doors = [member for member in self.members if isinstance(member, Gateway) and member.is_open]
        if not doors:
            again()
            return
        member = world.dice.choice(doors)
        asked = member.house.channels.http.read_apply(
            body, principal="program", key=key, request_id=f"r-{key}", trace_id=None
        )
        is_over = False

        def ended(task: Any) -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if task is None or task.cancelled() or task.exception() is not None:
                again()
                return
            self.callers_waiting -= 1
            self.checker.acknowledged(f"http:program:{key}")

        member.process.spawn(member.house.intake.accept(asked.incoming), name="call").add_done_callback(ended)
        world.timeline.after(5.0, lambda: ended(None))

    def _replay(self, doing: Doing) -> None:
        """Word for word, by somebody who has the secret: nothing new may come of it."""
        old = pick(
            [one for one in self.checker.written.values() if one.is_genuine and one.key.startswith("tg:")], doing
        )
        if old is not None:
            self.platform.knock(old.body, WEBHOOK_WORD)

    def _intrude(self, doing: Doing) -> None:
        update = update_of(doing)[0]
        now = int(self.platform.now())
        is_stale = doing.act is Act.STALE
        date = now - STALE_SECONDS if is_stale else now
        update_id = 5_000_000_000 + len(self.checker.written)
        content = {**update["message"], "message_id": 7, "date": date}
        body = compact_json({"update_id": update_id, "message": content})
        key = f"tg:{self.platform.account}:u:{update_id}"
        self._expect(doing, doing.text, key, body, is_genuine=False)
        if is_stale:
            self.platform.knock(body, WEBHOOK_WORD)
        else:
            self.platform.knock(body, "not-the-secret", lambda status: self.checker.refused_forgery(key, status))

    # --- what operators do ---

    async def _operate(self, doing: Doing, house: House, operations: Operations) -> None:
        task_id = await self._meant(doing, house, operations)
        if task_id is None:
            return
        self.checker.resumed.add(task_id)
        try:
            match doing.act:
                case Act.RESUME:
                    await operations.resume(task_id, who="operator")
                case Act.DROP:
                    await operations.drop(task_id, who="operator")
                case Act.AGAIN:
                    self.checker.asked_again.add(task_id)
                    again = await operations.run_again(task_id, who="operator")
                    self.checker.runs_again(again.task_id, again.generation)
        except (StateConflict, TaskUnknown):
            return  # somebody was quicker

    async def _meant(self, doing: Doing, house: House, operations: Operations) -> TaskId | None:
        """What waits for somebody; also what is on its way, to be dropped, and what has ended, to be run again."""
        if doing.act is Act.AGAIN and is_at_large(doing):
            written = pick([one for one in self.checker.written.values() if one.is_acknowledged], doing)
            return None if written is None else written.task_id
        if doing.act is Act.DROP and is_at_large(doing):
            task = pick(await house.queue.list_open(Selection(), limit=1000), doing)
        else:
            task = pick(await operations.suspended(limit=1000), doing)
        return None if task is None else TaskId(task.head.task_id)

    def _bind(self, *, is_enabled: bool) -> None:
        self.is_bound, burst, carried = is_enabled, self.burst, self.carried

        async def bind(house: House, _: Operations) -> None:
            for channel, account in house.channels.accounts().items():
                binding = BindingRecord(
                    channel=channel,
                    account=account,
                    workflow_id=WORKFLOW,
                    enabled=is_enabled,
                    burst=burst,
                    engine=TEMPORAL if channel in carried else NATIVE,
                )
                await house.editor.bind(binding, by="operator")

        self._command("bind" if is_enabled else "unbind", bind)

    def _command(self, name: str, command: Callable[[House, Operations], Any]) -> Any:
        async def forgiving(house: House, operations: Operations) -> None:
            try:
                await command(house, operations)
            except RiseError as error:
                self.world.note("console", "is told", type(error).__name__)

        return self.console.run(name, forgiving)

    # --- what came of it ---

    def note_errors(self) -> None:
        """What nobody caught is a bug, whether or not it did harm."""
        for process in self.world.timeline.processes:
            # What was raised when a process died was on its way to somebody.
            for error in process.errors[: self.world.errors_at_death.get(process)]:
                if not isinstance(error, RiseError):
                    self.world.violate("I17", f"{process.name} met {type(error).__name__}: {error}")

    def outcome(self) -> Outcome:
        world = self.world
        self.counts["steps"] = world.timeline.steps
        self.counts["kills"] = len(world.errors_at_death)
        return Outcome(
            self.plan,
            world.violations,
            world.trace,
            list(world.lines),
            dict(self.counts),
            {kind.name: count for kind, count in world.struck.items()},
            dict(world.steps),
            world.now,
        )


@contextmanager
def _impatiently() -> Iterator[None]:
    """With what looks after copies looking more often than it does: a run would be an hour of a world's time."""
    before = {(module, name): getattr(module, name) for module, name in _SOONER}
    for (module, name), value in _SOONER.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the log: nobody reads it, and its lines have the machine's time."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _bound(action: Callable[[Any], None], argument: Any) -> Callable[[], None]:
    return lambda: action(argument)


def shorten(plan: Plan, is_broken: Callable[[Plan], bool], *, runs_max: int = 200) -> Plan:
    """The plan with as few faults as still break it: first halves are left out, then quarters, then single ones."""
    runs = 0
    size = max(1, len(plan.faults) // 2)
    while size and runs < runs_max:
        start, shortened = 0, False
        while start < len(plan.faults) and runs < runs_max:
            fewer = msgspec.structs.replace(plan, faults=[*plan.faults[:start], *plan.faults[start + size :]])
            runs += 1
            if is_broken(fewer):
                plan, shortened = fewer, True
            else:
                start += size
        if not shortened:
            size //= 2
    return plan

"""What one worker holds: chats are claimed as there is room, renewed while they are worked on, and handed back.

A claim that is not renewed lapses, and counts as the death of its process for the task that was running; so nothing
is held that is not worked on, and nothing worked on that may have lapsed.

Refuses: to run or to settle a task. What is to be done with a claim is its worker's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from rise.bus.port import Bus, Topic
from rise.clock import TICK_SECONDS, Clock
from rise.errors import ClaimLost, Unavailable
from rise.quarantine import Quarantine
from rise.queue.port import Claim, Claimed, Queue
from rise.rates import SlowStart
from rise.service import Loop, Signal, cancel_all, sparingly, spawn
from rise.telemetry import log

LOOK_SECONDS: Final = 1.0
"""How often the queue is looked at without a hint."""
LOOK_AFTER_FAILURE_SECONDS: Final = 3.0
OUTAGE_SECONDS: Final = 5.0
"""After so long without its store a worker begins again with little."""
_TAKEN_OVER: Final = "another worker runs it from its saved steps"
_RUN_ELSEWHERE: Final = "its claim lapses, and its message is run again as if this process had died"


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    concurrency: int
    """Chats at once, per channel."""
    claim: timedelta
    """How long a claim lasts that is not renewed."""
    stop_seconds: float
    """How long a stop waits for what is being worked on."""
    recovery_seconds: float
    """After its store was away: so long others have to say which chats are owed earlier messages."""
    concurrency_for: Mapping[str, int] = field(default_factory=dict)
    """Of channels that have it otherwise."""

    def places(self, channel: str) -> int:
        return self.concurrency_for.get(channel, self.concurrency)


@dataclass(slots=True)
class _Held:
    """A claim of this process, and the work on it."""

    claim: Claim
    renewed_at: float
    work: asyncio.Task[Any]
    is_settled: bool = False


class Claims:
    """The claims of one worker."""

    def __init__(
        self,
        *,
        queue: Queue,
        channels: Sequence[str],
        finish: Callable[[Claim], Awaitable[Claim | None]],
        bus: Bus,
        clock: Clock,
        limits: ClaimLimits,
    ) -> None:
        """`finish`: works on the claim's task until it is settled; returns the claim on the chat's next, if any."""
        self._queue = queue
        self._channels = channels
        self._finish = finish
        self._bus = bus
        self._clock = clock
        self._limits = limits
        # By fence, not by lane: the same lane may be let go and claimed anew before its former work has noticed.
        self._held: dict[int, _Held] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hint = Signal()
        self._quarantine = Quarantine()
        self._slow_start = SlowStart()
        self._store = _Store()
        self._stopping = False
        # Soon after its store is back work goes on: nobody tells a worker that it is.
        self._looking = Loop(
            "worker",
            self._look,
            sleep=clock.sleep,
            on_error=sparingly(_report, clock),
            pause_seconds_max=LOOK_AFTER_FAILURE_SECONDS,
        )
        self._heartbeat = Loop("worker.heartbeat", self._renew, sleep=clock.sleep, on_error=sparingly(_report, clock))

    async def start(self) -> None:
        self._unsubscribe = (
            self._bus.subscribe(Topic.LANES_READY, lambda _: self.wake()),
            self._bus.subscribe(Topic.RUNNING_PAUSED, self._pause),
        )
        await self._heartbeat.start()
        await self._looking.start()

    async def stop(self) -> None:
        """Claim nothing more, let what is worked on end within the grace, hand back the rest as if never claimed."""
        self._stopping = True
        await self._looking.stop()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        give_up_at = self._clock.monotonic() + self._limits.stop_seconds
        while self._tasks and (left := give_up_at - self._clock.monotonic()) > TICK_SECONDS:
            await asyncio.wait(set(self._tasks), timeout=left)
        await cancel_all(self._tasks)
        await self._heartbeat.stop()
        await self._queue.hand_back(self._bus.member)

    def wake(self) -> None:
        """There may be work."""
        self._hint.set()

    def _pause(self, payload: Mapping[str, Any]) -> None:
        """What is accepted meanwhile waits; said again before it lapses, if it is to last."""
        seconds = payload.get("seconds")
        if isinstance(seconds, int | float):
            self._slow_start.hold(float(seconds), self._clock.monotonic())

    # --- claiming ---

    async def _look(self) -> None:
        # In a task of its own: a stop that comes between the claim and its return must not lose what was claimed.
        looking = spawn(self._claim(), name="worker.claim", into=self._tasks)
        if not await asyncio.shield(looking):
            await self._hint.wait(LOOK_SECONDS)

    async def _claim(self) -> int:
        """Begin as much work as there is room for. Returns how much was found."""
        room = self._room()
        if not room:
            return 0
        claimed = await self._ask_for(room)
        if claimed.suspects_waiting:
            self._quarantine.suspects_wait(self._clock.monotonic())
        for claim in claimed.claims:
            self._hold(claim)
        return len(claimed.claims)

    def _room(self) -> dict[str, int]:
        """Free places per channel. None for a while when a suspect needs this process for itself."""
        if self._held and self._quarantine.refuses_others(self._clock.monotonic()):
            return {}
        now = self._clock.monotonic()
        room = {channel: self._slow_start.room(self._limits.places(channel), now) for channel in self._channels}
        for held in self._held.values():
            room[held.claim.channel] = room.get(held.claim.channel, 0) - 1
        return room if any(free > 0 for free in room.values()) else {}

    async def _ask_for(self, room: Mapping[str, int]) -> Claimed:
        takes_suspects = self._quarantine.takes_suspects(is_empty=not self._held)
        try:
            if self._store.is_failing:
                await self._let_go_of_ghosts()
            # Others may have lost their claims only because they could not renew them: then nobody has died.
            counts_deaths = not self._store.failed_within(self._limits.claim.total_seconds(), self._clock.monotonic())
            return await self._queue.claim(
                self._bus.member, room, takes_suspects=takes_suspects, counts_deaths=counts_deaths
            )
        except Unavailable:
            self._store.fails(self._clock.monotonic())
            raise

    async def _let_go_of_ghosts(self) -> None:
        """After a failure the store may know of claims that this process does not: one whose writing was never
        confirmed, or one that was given up because it could not be renewed. Nobody works on them."""
        await self._queue.hand_back(self._bus.member, keep=list(self._held))
        now = self._clock.monotonic()
        if self._store.is_back(now) >= OUTAGE_SECONDS:
            # Much has gathered, and what had failed must not be knocked down again.
            self._slow_start.begin(now)
        if self._limits.recovery_seconds:
            await self._clock.sleep(self._limits.recovery_seconds)

    # --- holding ---

    def _hold(self, claim: Claim) -> None:
        if _is_of_suspect(claim):
            self._quarantine.suspect_starts(self._clock.monotonic())
        work = spawn(self._work(claim), name=f"lane {claim.lane}", into=self._tasks)
        self._held[claim.fence] = _Held(claim, self._clock.monotonic(), work)
        # As a callback, because a task that is cancelled before its first step runs none of its code.
        work.add_done_callback(lambda _: self._let_go(claim.fence))

    async def _work(self, claim: Claim) -> None:
        """The whole life of a claim: the chat's tasks, one after the other."""
        following: Claim | None = claim
        try:
            while following is not None and not self._stopping:
                following = await self._finish(following)
        except ClaimLost as error:
            log.warning("task.claim_lost", lane=claim.lane, error=error, consequence=_TAKEN_OVER)
            following = None
        except Exception as error:  # noqa: BLE001 - border: a bug of ours, and its claim lapses
            log.error("task.claim_failed", lane=claim.lane, error=error, exc_info=error, consequence=_RUN_ELSEWHERE)
            return
        self._held[claim.fence].is_settled = following is None

    async def _renew(self) -> None:
        """Renew all claims; stop working on what is lost, or could be lost without our knowing."""
        await self._clock.sleep(self._limits.claim.total_seconds() / 3)
        holding = dict(self._held)
        if not holding:
            return
        began = self._clock.monotonic()
        try:
            lost = await self._queue.renew([held.claim for held in holding.values()])
        except Unavailable:
            now = self._clock.monotonic()
            self._store.fails(now)
            alive_until = now - self._limits.claim.total_seconds()
            lost = {fence for fence, held in holding.items() if held.renewed_at < alive_until}
        else:
            now = self._clock.monotonic()
            if now - began >= self._limits.claim.total_seconds():
                # An answer that takes longer than a claim lasts is none: what was claimed meanwhile has lapsed.
                self._store.fails(now)
            for held in holding.values():
                held.renewed_at = began
        for fence in lost & self._held.keys():
            held = self._held[fence]
            log.warning("task.claim_lost", lane=held.claim.lane, consequence=_TAKEN_OVER)
            held.work.cancel()

    def _let_go(self, fence: int) -> None:
        # What a stop leaves unbegun stays held, and so renewed, until it is handed back with the rest.
        if not self._stopping or self._held[fence].is_settled:
            claim = self._held.pop(fence).claim
            if _is_of_suspect(claim):
                self._quarantine.suspect_ends()
        self._hint.set()


@dataclass(slots=True)
class _Store:
    """Whether the queue's store answers, as one worker sees it. `now`: seconds, never stepping back."""

    _failing_since: float | None = None
    _failed_at: float | None = None

    @property
    def is_failing(self) -> bool:
        """Until it is said to be back."""
        return self._failing_since is not None

    def fails(self, now: float) -> None:
        self._failed_at = now
        if self._failing_since is None:
            self._failing_since = now

    def is_back(self, now: float) -> float:
        """Seconds that it was away."""
        since, self._failing_since = self._failing_since, None
        self._failed_at = now  # until now, as far as is known here: it was asked ever more seldom
        return 0.0 if since is None else now - since

    def failed_within(self, seconds: float, now: float) -> bool:
        return self._failed_at is not None and now - self._failed_at < seconds


def _is_of_suspect(claim: Claim) -> bool:
    """A task that was running in several crashes comes alone: no other may be claimed beside it."""
    return claim.tasks_left == 0 and claim.task.progress.deaths > 0


def _report(name: str, error: BaseException) -> None:
    if isinstance(error, Unavailable):
        log.warning(
            "worker.loop_failed",
            loop=name,
            error=error,
            consequence="nothing is claimed until it answers; what is accepted waits",
        )
    else:
        log.error("worker.loop_failed", loop=name, error=error, consequence="starts anew after a pause")

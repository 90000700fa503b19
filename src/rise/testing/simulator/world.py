"""One simulated world: a machine, its disk, time, dice, and what is remembered of what happened."""

from __future__ import annotations

import hashlib
import random  # noqa: TID251 - the dice are the seed's
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rise.testing.fakes.mirror import MemoryMirrorState, Taken
from rise.testing.fakes.queue import MemoryQueueState
from rise.testing.simulator.database import memory_disk
from rise.testing.simulator.faults import Fault, FaultKind, Tripwires, Weather
from rise.testing.simulator.host import Host
from rise.testing.simulator.loop import Process, Timeline

if TYPE_CHECKING:
    import apsw

    from rise.testing.simulator.bus import SimBus
    from rise.testing.simulator.conversations import SimConversations
    from rise.testing.simulator.servers import SimMirror, Witness
    from rise.testing.simulator.timers import SimTimers

LINES_KEPT: Final = 400
CLAIM_SECONDS: Final = 3.0
"""How long a claim lives that nobody renews."""

_CUT_OFF: Final = frozenset(
    {
        FaultKind.WRITES_REFUSED,
        FaultKind.WRITES_UNANSWERED,
        FaultKind.WRITES_SLOW,
        FaultKind.REDIS_GONE,
        FaultKind.REDIS_UNANSWERED,
        FaultKind.REDIS_SLOW,
    }
)


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    invariant: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.3f} s: {self.what}"


@dataclass(slots=True)
class Step:
    """One write or call of a process, while it is being done."""

    fault: Fault | None
    is_over: bool = False
    """The process did not live to do it."""


class World:
    """Everything a run shares. `dice` decide what nobody planned; the plan's own dice are used up before."""

    def __init__(self, seed: int, faults: Sequence[Fault]) -> None:
        self.seed = seed
        self.timeline = Timeline()
        self.host = Host(self.timeline)
        self.disk = memory_disk()
        self.redis = MemoryQueueState()
        self.broker = MemoryMirrorState()
        self.mirrors: list[SimMirror] = []
        """One for each process that ever was."""
        self.in_hand: dict[Taken, float] = {}
        """What the broker has given out, and since when."""
        self.witness: Witness
        """Where there are several stores."""
        self.timers: SimTimers | None = None
        """What keeps the time of follow-ups, if it is not the queue."""
        self.conversations: SimConversations | None = None
        """Who carries chats on, if anybody may have them carried on."""
        self.journals: dict[int, apsw.Connection] = {}
        self.journal_locks: dict[int, Process] = {}
        self.dice = random.Random(f"{seed}: world")
        self.members: dict[str, SimBus] = {}
        self.violations: list[Violation] = []
        self.struck: Counter[FaultKind] = Counter()
        self.steps: Counter[str] = Counter()
        self.errors_at_death: dict[Process, int] = {}
        self.on_death: list[Callable[[Process], None]] = []
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.ledger_missed_at = float("-inf")
        """When somebody last asked a ledger that was away."""
        self._cut_off_until: dict[Process, float] = {}
        self._weather = Weather(faults)
        self._tripwires = Tripwires(faults)
        self._trace = hashlib.sha256()

    @property
    def now(self) -> float:
        return self.timeline.now

    def dice_for(self, name: str) -> random.Random:
        """Dice of one's own: what others do does not change how they fall."""
        return random.Random(f"{self.seed}: {name}")

    # --- what happened ---

    def note(self, who: str, what: str, more: str = "") -> None:
        """A line of the trace. Nothing in it may depend on anything but the seed."""
        line = f"{self.timeline.now:.6f} {who} {what} {more}"
        self.lines.append(line)
        self._trace.update(line.encode())

    @property
    def trace(self) -> str:
        """Two runs with the same are the same run."""
        return self._trace.hexdigest()

    def violate(self, invariant: str, what: str) -> None:
        self.violations.append(Violation(invariant, self.now, what))
        self.note("VIOLATED", invariant, what)

    # --- what goes wrong ---

    def is_struck(self, kind: FaultKind, process: Process | None = None) -> bool:
        if not self._weather.is_(kind, "" if process is None else process.name, self.now):
            return False
        self.struck[kind] += 1
        if process is not None and kind in _CUT_OFF:
            self._cut_off_until[process] = self.now
        return True

    def may_have_lost_claims(self, process: Process) -> bool:
        """Whether its claims may have lapsed through no fault of ours: it is dead, was stopped, or was cut off."""
        until = self._cut_off_until.get(process, -2 * CLAIM_SECONDS)
        return not process.is_alive or process.is_stopped or self.now - until < 2 * CLAIM_SECONDS

    def doubt_claims(self, processes: Sequence[Process]) -> None:
        """Their store has forgotten some of them, or has some that they do not know of."""
        for process in processes:
            self._cut_off_until[process] = max(self.now, self._cut_off_until.get(process, 0.0))

    def doubt_still(self, since: float) -> None:
        """What was doubtful then has stayed as it was until now: nobody could claim anything."""
        for process, until in self._cut_off_until.items():
            if until > since - 2 * CLAIM_SECONDS:
                self._cut_off_until[process] = max(self.now, until)

    def begin_step(self, process: Process, name: str) -> Step:
        """Before a write or call has its effect."""
        self.steps[name] += 1
        fault = self._tripwires.step(process.name, name, self.now)
        step = Step(fault)
        if fault is not None and fault.before:
            self._trip(process, fault, f"before {name}")
            step.is_over = not process.is_alive
        return step

    def end_step(self, process: Process, step: Step) -> bool:
        """After it, and before that is known. True if its process did not live to hear of it."""
        if step.fault is not None and not step.fault.before:
            self._trip(process, step.fault, "after it")
        return not process.is_alive

    def kill(self, process: Process, why: str) -> None:
        if process.is_alive:
            self.note(process.name, "dies", why)
            self.errors_at_death[process] = len(process.errors)
            process.kill()
            for hears in self.on_death:
                hears(process)

    def pause(self, process: Process, seconds: float) -> None:
        self.note(process.name, "is stopped", f"{seconds:.2f}")
        process.pause()
        self._cut_off_until[process] = self.now + seconds
        self.timeline.after(seconds, process.go_on)

    def _trip(self, process: Process, fault: Fault, where: str) -> None:
        self.struck[fault.kind] += 1
        if fault.kind is FaultKind.PAUSE:
            self.pause(process, fault.seconds)
        else:
            self.kill(process, where)

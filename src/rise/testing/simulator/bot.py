"""What the simulated bot does with a message: whatever the message asks for, so that a plan decides it."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - the dice are the seed's
from collections import Counter
from enum import StrEnum
from typing import Any, Final, Protocol

import rise
from rise.errors import WaitsForDependency
from rise.testing.simulator.loop import Process
from rise.testing.simulator.world import World
from rise.workflows.definition import WorkflowDefinition

LATER_MARK: Final = ".later"
"""Behind the name of the message whose run promised it."""


class Behaviour(StrEnum):
    """The second word of a message; the first is its name."""

    ECHO = "echo"
    THREE = "three"
    SILENT = "silent"
    STEPS = "steps"
    SLOW = "slow"
    HANGS = "hangs"
    FAILS_ONCE = "fails-once"
    FAILS = "fails"
    WAITS = "waits"
    LATER = "later"
    ANSWERS = "answers"
    KILLS_ONCE = "kills-once"
    KILLS = "kills"


OWN_ERRORS: Final = frozenset({Behaviour.FAILS_ONCE, Behaviour.FAILS, Behaviour.HANGS})
"""Only these use up tries."""
_IN_STEPS: Final = frozenset({Behaviour.STEPS, Behaviour.FAILS_ONCE, Behaviour.WAITS, Behaviour.KILLS_ONCE})
"""They do something first that must not be done again when the run is repeated."""
_USUAL: Final = (Behaviour.ECHO,) * 8 + (
    Behaviour.THREE,
    Behaviour.THREE,
    Behaviour.STEPS,
    Behaviour.STEPS,
    Behaviour.SLOW,
    Behaviour.SILENT,
    Behaviour.FAILS_ONCE,
    Behaviour.WAITS,
    Behaviour.LATER,
)
_RARE: Final = (Behaviour.HANGS, Behaviour.FAILS, Behaviour.KILLS_ONCE, Behaviour.KILLS)


def draw_behaviour(dice: random.Random) -> Behaviour:
    return dice.choice(_RARE if dice.random() < 0.04 else _USUAL)


class Witness(Protocol):
    def ran(self, process: Process, turn: rise.Turn) -> None:
        """A workflow sees a message."""

    def step_begins(self, process: Process, turn: rise.Turn, step: str) -> None:
        """What should be done once is being done."""

    def step_is_saved(self, turn: rise.Turn, step: str) -> None:
        """It has been, and need not be done again."""


class SimBot:
    """The same workflows in every process; `runs` are counted over all of them."""

    def __init__(self, world: World, witness: Witness) -> None:
        self.runs: Counter[str] = Counter()
        self._world = world
        self._witness = witness

    def workflows(self, process: Process) -> dict[str, WorkflowDefinition]:
        @rise.workflow("bot", channels=["telegram", "http"])
        async def bot(turn: rise.Turn) -> Any:
            return await self._serve(process, turn)

        definition: WorkflowDefinition = vars(bot)["__rise_workflow__"]
        return {definition.workflow_id: definition}

    async def _serve(self, process: Process, turn: rise.Turn) -> Any:
        self._witness.ran(process, turn)
        name, _, asked = turn.messages[0].text.partition(" ")  # of a burst the first says what is done
        self.runs[name] += 1
        run = self.runs[name]
        if asked in _IN_STEPS:
            await self._step(process, turn, "a")
        match asked:
            case Behaviour.KILLS:
                await self._die(process, name)
            case Behaviour.KILLS_ONCE if run == 1:
                await self._die(process, name)
            case Behaviour.FAILS:
                raise ValueError("always")
            case Behaviour.FAILS_ONCE if turn.attempt == 1:
                raise ValueError("once")
            case Behaviour.WAITS if run <= 2:
                raise WaitsForDependency("not yet", retry_after_seconds=1.0)
            case Behaviour.HANGS:
                await asyncio.Event().wait()
            case Behaviour.SLOW:
                await asyncio.sleep(self._world.dice.uniform(0.1, 4.0))  # noqa: TID251 - virtual
            case Behaviour.STEPS:
                await self._step(process, turn, "b")
            case Behaviour.SILENT:
                return None
            case Behaviour.LATER:
                turn.follow_up(f"{name}{LATER_MARK}", in_seconds=3.0)
        for message in turn.messages:
            for number in range(3 if asked == Behaviour.THREE else 1):
                turn.reply(f"{message.text.partition(' ')[0]}.{number}")
        return name if turn.channel == "http" else None

    async def _die(self, process: Process, name: str) -> None:
        self._world.kill(process, f"{name} kills it")
        await asyncio.get_running_loop().create_future()

    async def _step(self, process: Process, turn: rise.Turn, step: str) -> None:
        async def do() -> str:
            self._witness.step_begins(process, turn, step)
            await asyncio.sleep(0.01)  # noqa: TID251 - virtual
            return step

        await turn.step(step, do)
        self._witness.step_is_saved(turn, step)

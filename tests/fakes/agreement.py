"""Running a fake and a real backend side by side: the same commands, the same clock, the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rise.errors import ClaimLost
from rise.testing.clock import ManualClock
from rise.testing.simulator.database import InlineDatabase, memory_disk

COMMANDS_MAX = 60


class Pair(Protocol):
    """The two. A command is one of its methods: it asks both, and raises `AssertionError` where they differ."""

    def look(self) -> None:
        """Everything that can be seen of them."""
        ...


# --- commands ---


class Command(NamedTuple):
    name: str
    arguments: dict[str, Any]


def command(weight: int, name: str, /, **arguments: st.SearchStrategy[Any]) -> list[st.SearchStrategy[Command]]:
    """A call of a method of the pair, to be drawn `weight` times as often as one of weight 1."""
    return [st.builds(Command, st.just(name), st.fixed_dictionaries(arguments))] * weight


def commands(*weighted: Sequence[st.SearchStrategy[Command]]) -> st.SearchStrategy[Command]:
    all_of_them = [one for same in weighted for one in same]
    return st.integers(0, len(all_of_them) - 1).flatmap(lambda which: all_of_them[which])


@st.composite
def _sequences(draw: st.DrawFn, of: st.SearchStrategy[Command]) -> list[Command]:
    """Long ones, as a list strategy does not draw them."""
    sequence: list[Command] = []
    while len(sequence) < COMMANDS_MAX and draw(st.integers(0, COMMANDS_MAX)) > 0:
        sequence.append(draw(of))
    return sequence


def seldom(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """None most of the time."""
    return st.integers(0, 7).flatmap(lambda die: value if die == 7 else st.none())


def picked(candidates: Sequence[Any], pick: int) -> Any:
    """The last ones first."""
    return candidates[-1 - pick % len(candidates)]


# --- running them ---


def compare(
    pair: Callable[[], Pair], of: st.SearchStrategy[Command], config: pytest.Config, *, examples_per_cent: int = 100
) -> None:
    """As many random sequences as `--examples` says, the same ones for the same `--seed`.

    `examples_per_cent`: fewer where each is expensive.
    """

    @seed(config.getoption("seed"))
    @settings(
        max_examples=max(1, config.getoption("examples") * examples_per_cent // 100),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(_sequences(of))
    def agree(sequence: list[Command]) -> None:
        both = pair()
        both.look()
        for one in sequence:
            getattr(both, one.name)(**one.arguments)
            both.look()

    agree()


@dataclass(frozen=True)
class Refused:
    """What a call that raised is compared as."""

    error: type[Exception]


Answering = Callable[[Coroutine[Any, Any, Any]], Any]


def answer(call: Coroutine[Any, Any, Any]) -> Any:
    """What a call comes to, without an event loop: nothing here waits for anything."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    except ClaimLost as error:
        return Refused(type(error))
    raise AssertionError(f"{call} waits for something")


def answers_in(runner: asyncio.Runner) -> Answering:
    """The same for what does wait."""

    def answer(call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return runner.run(call)
        except ClaimLost as error:
            return Refused(type(error))

    return answer


def opened(clock: ManualClock, **schema: Sequence[str]) -> InlineDatabase:
    database = InlineDatabase(memory_disk(), clock=clock, schema=schema)
    answer(database.open())
    return database

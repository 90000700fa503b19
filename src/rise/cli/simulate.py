"""`rise simulate`: whole installations in virtual time, with everything going wrong that a seed can think of.

Promises: a seed that breaks a promise is said with few of its faults that do, and the command that plays it again; exit
code 1 then.

Refuses: to say what few seeds, or any that broke, mean for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli.opening import AsJson
from rise.cli.printing import (
    complain,
    interrupted,
    problem_found,
    progress,
    say,
    show_json,
    show_pairs,
    until_interrupted,
)
from rise.testing.simulator.profile import Profile

if TYPE_CHECKING:
    from rise.testing.simulator.run import Outcome, Plan

LINES_SHOWN = 40
SEEDS_BOUND_MIN = 30
"""With none broken in n, fewer than 3 in n break (95 %): an approximation that is no good for fewer."""


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    seeds: Annotated[int, typer.Option(min=1, help="How many runs.")] = 100,
    first: Annotated[int, typer.Option(help="The first seed of them.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Only this one, with what happened in it.")] = None,
    profile: Annotated[Profile, typer.Option(help="The stores that its worlds have.")] = Profile.EMBEDDED,
    minutes: Annotated[float | None, typer.Option(help="For so long instead of a number of runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the promise in worlds of one seed each: processes die, stores and platforms fail, clocks are set.

    Ctrl-C ends it after the world that is being played, and says what there was until then.
    """
    if seed is not None:
        _replay(seed, profile, as_json=as_json)
        return
    _search(profile, first, seeds, minutes, as_json=as_json)


def _search(profile: Profile, first: int, seeds: int, minutes: float | None, *, as_json: bool) -> None:
    """Play seeds from the first on, say at once which breaks a promise, and in the end what there was."""
    from rise.clock import SystemClock
    from rise.testing.simulator.run import draw_plan
    from rise.testing.simulator.run import simulate as run

    clock, tally = SystemClock(), _Tally()
    began = clock.monotonic()
    tell: Callable[[str], None] = complain if as_json else say
    with progress("simulating") as advance, until_interrupted() as is_interrupted:
        while tally.seeds < seeds if minutes is None else clock.monotonic() - began < minutes * 60:
            if is_interrupted():
                break
            plan = draw_plan(first + tally.seeds, profile)
            try:
                outcome = run(plan)
            except Exception as error:  # noqa: BLE001 - border: one world that cannot be played ends no search
                tell(f"seed {plan.seed} cannot be played: {error!r}; again: {command_of(plan)}")
                tally.add_unplayed()
                continue
            tally.add(outcome)
            if outcome.violations:
                _show_violation(outcome, tell)
            advance(tally.seeds, seeds)
        was_interrupted = is_interrupted()
    _show_tally(tally, first, clock.monotonic() - began, as_json=as_json)
    if tally.broken:
        raise problem_found()
    if was_interrupted:
        raise interrupted()


@dataclass(slots=True)
class _Tally:
    """What so many seeds came to."""

    seeds: int = 0
    broken: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """What was done, by act; and the steps and kills it took."""
    struck: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.broken += bool(outcome.violations)
        self.counts.update(outcome.counts)
        self.struck.update(outcome.struck)

    def add_unplayed(self) -> None:
        self.seeds += 1
        self.broken += 1


def _show_tally(tally: _Tally, first: int, seconds: float, *, as_json: bool) -> None:
    from rise.testing.commit import commit_of_this

    steps, kills = tally.counts["steps"], tally.counts["kills"]
    found = {
        "seeds": f"{first} to {first + tally.seeds - 1}" if tally.seeds else "none",
        "broken": tally.broken,
        "seedsPerSecond": round(tally.seeds / seconds, 1),
        "bound": _bound(tally.seeds, tally.broken),
        "steps": steps,
        "acts": tally.counts.total() - steps - kills,
        "deaths": kills,
        "commit": commit_of_this(),
    }
    if as_json:
        show_json(found | {"struck": dict(sorted(tally.struck.items()))})
    else:
        struck = ", ".join(f"{name.lower()} {times}" for name, times in sorted(tally.struck.items()))
        show_pairs([*found.items(), ("struck", struck)])


def _bound(seeds: int, broken: int) -> str | None:
    """What so many seeds without a violation say of all the others; nothing when they are few."""
    if broken or seeds < SEEDS_BOUND_MIN:
        return None
    return f"fewer than 1 in {seeds // 3} seeds breaks a promise (95 %)"


def _show_violation(outcome: Outcome, tell: Callable[[str], None] = say) -> None:
    from rise.testing.simulator.run import shorten
    from rise.testing.simulator.run import simulate as run

    tell(f"seed {outcome.plan.seed} breaks {len(outcome.violations)}")
    for violation in outcome.violations[:5]:
        tell(f"  {violation}")
    shortened = shorten(outcome.plan, lambda plan: bool(run(plan).violations), runs_max=60)
    tell(f"  with these {len(shortened.faults)} of its {len(outcome.plan.faults)} faults:")
    for fault in shortened.faults:
        tell(f"    {fault}")
    tell(f"  again: {command_of(outcome.plan)}")


def command_of(plan: Plan) -> str:
    """What plays it again."""
    profile = "" if plan.profile is Profile.EMBEDDED else f" --profile {plan.profile}"
    return f"rise simulate{profile} --seed {plan.seed}"


def _replay(seed: int, profile: Profile, *, as_json: bool) -> None:
    from rise.testing.simulator.run import draw_plan
    from rise.testing.simulator.run import simulate as run

    plan = draw_plan(seed, profile)
    outcome = run(plan)
    if as_json:
        show_json(
            {
                "seed": seed,
                "faults": [str(fault) for fault in plan.faults],
                "happened": outcome.lines[-LINES_SHOWN:],
                "steps": outcome.counts["steps"],
                "trace": outcome.trace,
                "violations": [str(violation) for violation in outcome.violations],
            }
        )
        if outcome.violations:
            raise problem_found()
        return
    way = "polls" if plan.is_polled else "has a webhook"
    say(f"seed {seed}: {plan.gateways} gateways, {plan.workers} workers, {way}, {plan.unknown_policy}")
    for fault in plan.faults:
        say(f"  {fault}")
    if plan.last_blow is not None:
        say(f"  at rest  *: {plan.last_blow.value}")
    say("what happened last:")
    for line in outcome.lines[-LINES_SHOWN:]:
        say(f"  {line}")
    show_pairs([("steps", outcome.counts["steps"]), ("trace", outcome.trace), ("violations", len(outcome.violations))])
    if outcome.violations:
        _show_violation(outcome)
        raise problem_found()

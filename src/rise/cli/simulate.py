"""`rise simulate`: whole installations in virtual time, with everything going wrong that a seed can think of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rise.cli.printing import problem_found, progress, say, show_json, show_pairs

if TYPE_CHECKING:
    from rise.testing.simulator.run import Outcome

LINES_SHOWN = 40
SEEDS_BOUND_MIN = 30
"""With none broken in n, fewer than 3 in n break (95 %): an approximation that is no good for fewer."""


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    seeds: Annotated[int, typer.Option(min=1, help="How many runs.")] = 100,
    first: Annotated[int, typer.Option(help="The first seed of them.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Only this one, with what happened in it.")] = None,
    minutes: Annotated[float | None, typer.Option(help="For so long instead of a number of runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check the promise in worlds of one seed each: processes die, stores and platforms fail, clocks are set."""
    if seed is not None:
        _replay(seed)
        return
    _search(first, seeds, minutes, as_json=as_json)


def _search(first: int, seeds: int, minutes: float | None, *, as_json: bool) -> None:
    from rise.clock import SystemClock
    from rise.testing.commit import commit_of_this
    from rise.testing.simulator.run import draw_plan
    from rise.testing.simulator.run import simulate as run

    clock = SystemClock()
    began, broken, sums = clock.monotonic(), 0, Counter[str]()
    seed, count = first, 0
    with progress("simulating") as advance:
        while count < seeds if minutes is None else clock.monotonic() - began < minutes * 60:
            outcome = run(draw_plan(seed))
            sums.update({"messages": sum(outcome.counts.values()) - outcome.counts["steps"] - outcome.counts["kills"]})
            sums.update({"steps": outcome.counts["steps"], "kills": outcome.counts["kills"], **outcome.struck})
            if outcome.violations:
                broken += 1
                _show_violation(outcome)
            seed, count = seed + 1, count + 1
            advance(count, seeds)
    seconds = clock.monotonic() - began
    found: dict[str, Any] = {
        "seeds": f"{first} to {seed - 1}",
        "broken": broken,
        "seedsPerSecond": round(count / seconds, 1),
        "bound": _bound(count, broken),
        "steps": sums.pop("steps"),
        "acts": sums.pop("messages"),
        "deaths": sums.pop("kills"),
        "struck": dict(sorted(sums.items())),
        "commit": commit_of_this(),
    }
    if as_json:
        show_json(found)
    else:
        struck = ", ".join(f"{name.lower()} {times}" for name, times in found.pop("struck").items())
        show_pairs([*found.items(), ("struck", struck)])
    if broken:
        raise problem_found()


def _bound(count: int, broken: int) -> str | None:
    """What so many seeds without a violation say of all the others; nothing when they are few."""
    if broken or count < SEEDS_BOUND_MIN:
        return None
    return f"fewer than 1 in {count // 3} seeds breaks a promise (95 %)"


def _show_violation(outcome: Outcome) -> None:
    from rise.testing.simulator.run import shorten
    from rise.testing.simulator.run import simulate as run

    say(f"seed {outcome.plan.seed} breaks {len(outcome.violations)}", style="fail")
    for violation in outcome.violations[:5]:
        say(f"  {violation}")
    shortened = shorten(outcome.plan, lambda plan: bool(run(plan).violations), runs_max=60)
    say(f"  with these {len(shortened.faults)} of its {len(outcome.plan.faults)} faults:")
    for fault in shortened.faults:
        say(f"    {fault}")
    say(f"  again: rise simulate --seed {outcome.plan.seed}")


def _replay(seed: int) -> None:
    from rise.testing.simulator.run import draw_plan
    from rise.testing.simulator.run import simulate as run

    plan = draw_plan(seed)
    outcome = run(plan)
    way = "polls" if plan.is_polled else "has a webhook"
    say(f"seed {seed}: {plan.gateways} gateways, {plan.workers} workers, {way}, {plan.unknown_policy}")
    for fault in plan.faults:
        say(f"  {fault}")
    say("what happened last:")
    for line in outcome.lines[-LINES_SHOWN:]:
        say(f"  {line}")
    show_pairs([("steps", outcome.counts["steps"]), ("trace", outcome.trace), ("violations", len(outcome.violations))])
    if outcome.violations:
        _show_violation(outcome)
        raise problem_found()

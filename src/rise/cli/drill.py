"""`rise drill`: does it keep its promises when everything around it fails?

Refuses: to touch an installation that is there. It breaks one of its own, in a directory of its own, which is left
behind only as evidence.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rise.cli.opening import AsJson
from rise.cli.printing import complain, problem_found, progress, say, show_json

if TYPE_CHECKING:
    from rise.testing.faults.drill import Order
    from rise.testing.faults.report import DrillReport


class Mode(StrEnum):
    WEBHOOK = "webhook"
    POLLING = "polling"


def register(app: typer.Typer) -> None:
    app.command()(drill)


def drill(
    seed: Annotated[int | None, typer.Option("--seed", help="The same faults again; unset, new ones.")] = None,
    cycles: Annotated[int, typer.Option("--cycles", min=1, help="How many times to kill.")] = 30,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="For so long instead.")] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="How updates come in.")] = Mode.WEBHOOK,
    kills_only: Annotated[bool, typer.Option("--kills-only", help="No trouble beside the kills.")] = False,
    directory: Annotated[Path, typer.Option("--directory", help="On the disk to work on.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Kill, freeze, cut and fill up an installation of its own under load; exit code 1 if a promise was broken."""
    from rise.clock import SystemClock
    from rise.testing.faults.drill import Order

    seed = SystemClock().random.randrange(1_000_000) if seed is None else seed
    order = Order(seed=seed, cycles=cycles, minutes=minutes, mode=mode, troubles=not kills_only)
    report, evidence = _drill(order, directory.resolve())
    broken = report.broken()
    if as_json:
        show_json({**_shown(report), "broken": broken})
    else:
        typer.echo(report.text())
    if broken:
        for one in broken:
            complain(f"broken: {one}")
        for what in report.gave_up:
            complain(what)
        complain(f"the evidence is in {evidence}")
        raise problem_found()
    if not as_json:
        say("Every promise was kept.", style="green")


def _drill(order: Order, directory: Path) -> tuple[DrillReport, Path]:
    """The directory of the drill is removed, unless it holds evidence."""
    from rise.runtime.processes import run, until_told
    from rise.telemetry import configure_logs
    from rise.testing.faults.drill import run_drill

    configure_logs("console", level="error")
    # The platform's stand-in is cut off in the middle of requests all the time, on purpose.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    place = Path(tempfile.mkdtemp(prefix="rise-drill-", dir=directory))
    is_evidence = False
    try:
        with progress("drill") as told:
            report = run(until_told(run_drill(order, place, told)))
        is_evidence = bool(report.broken())
    except asyncio.CancelledError:
        raise typer.Exit(130) from None
    finally:
        if not is_evidence:
            shutil.rmtree(place, ignore_errors=True)
    return report, place


def _shown(report: DrillReport) -> dict[str, object]:
    import msgspec

    return dict(msgspec.to_builtins(report))

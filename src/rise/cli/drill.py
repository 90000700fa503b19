"""`rise drill`: does it keep its promises when everything around it fails?

Refuses: to touch an installation that is there. It breaks one of its own, in a directory of its own, which is left
behind only as evidence.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rise.cli.opening import AsJson, refuse_without_servers
from rise.cli.printing import complain, interrupted, problem_found, progress, say, show_json

if TYPE_CHECKING:
    from rise.testing.faults.order import Order
    from rise.testing.faults.report import DrillReport
    from rise.testing.faults.table import Table

T = TypeVar("T")
PER_SECOND_OF_TABLE = 200.0


class Mode(StrEnum):
    WEBHOOK = "webhook"
    POLLING = "polling"


class Profile(StrEnum):
    EMBEDDED = "embedded"
    FULL = "full"
    MONGO = "mongo"


class Sync(StrEnum):
    ALWAYS = "always"
    EVERYSEC = "everysec"
    NO = "no"
    OFF = "off"


def register(app: typer.Typer) -> None:
    app.command()(drill)


def drill(
    seed: Annotated[int | None, typer.Option("--seed", help="The same faults again; unset, new ones.")] = None,
    cycles: Annotated[int, typer.Option("--cycles", min=1, help="How many times to kill.")] = 30,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="For so long instead.")] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="How updates come in.")] = Mode.WEBHOOK,
    profile: Annotated[
        Profile,
        typer.Option(
            "--profile",
            help="full: with a Redis and a RabbitMQ of its own, and two gateways. mongo: the ledger on a server, too.",
        ),
    ] = Profile.EMBEDDED,
    appendfsync: Annotated[
        Sync, typer.Option("--appendfsync", help="Of that Redis; off: it keeps nothing on disk.")
    ] = Sync.EVERYSEC,
    kills_only: Annotated[bool, typer.Option("--kills-only", help="No trouble beside the kills.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="One failure after the other, each alone: what goes on meanwhile.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=1, help="Messages per second. Left out: 25, for --table 200; with MongoDB 4."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long each fails, for --table.")] = 6,
    write: Annotated[
        Path | None, typer.Option("--write", help="A document to put the table into, between its marks.")
    ] = None,
    directory: Annotated[Path, typer.Option("--directory", help="On the disk to work on.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Kill, freeze, cut and fill up an installation of its own under load; exit code 1 if a promise was broken."""
    from rise.clock import SystemClock
    from rise.testing.faults.order import PER_SECOND, PER_SECOND_WITH_MONGO, AppendFsync, Order

    if table and profile is Profile.EMBEDDED:
        profile = Profile.FULL  # what it measures is what servers fail
    if profile is not Profile.EMBEDDED:
        refuse_without_servers(f"rise drill --profile {profile}", mongo=profile is Profile.MONGO)
    seed = SystemClock().random.randrange(1_000_000) if seed is None else seed
    usual = PER_SECOND_WITH_MONGO if profile is Profile.MONGO else PER_SECOND_OF_TABLE if table else PER_SECOND
    order = Order(
        seed=seed,
        cycles=cycles,
        minutes=minutes,
        mode=mode,
        troubles=not kills_only,
        full=profile is not Profile.EMBEDDED,
        mongo=profile is Profile.MONGO,
        messages_per_second=rate or usual,
        appendfsync=AppendFsync(appendfsync),
    )
    if table:
        _show_table(_measure(order, directory.resolve(), seconds), write, as_json=as_json)
        return
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
    from rise.testing.faults.drill import run_drill

    return _in_place(directory, lambda place, told: run_drill(order, place, told), lambda report: bool(report.broken()))


def _measure(order: Order, directory: Path, seconds: float) -> Table:
    from rise.testing.faults.singles import measure_singles

    def work(place: Path, told: Callable[[int, int], None]) -> Coroutine[Any, Any, Table]:
        return measure_singles(order, place, seconds=seconds, on_row=told)

    table, place = _in_place(directory, work, lambda table: bool(table.broken()))
    if table.broken():
        complain(f"the evidence is in {place}")
    return table


def _show_table(table: Table, write: Path | None, *, as_json: bool) -> None:
    if write is not None:
        table.write_into(write)
    if as_json:
        show_json({**_shown(table), "broken": table.broken()})
    else:
        typer.echo(table.text())
    for one in table.broken():
        complain(f"broken: {one}")
    if table.broken():
        raise problem_found()


def _in_place(
    directory: Path,
    work: Callable[[Path, Callable[[int, int], None]], Coroutine[Any, Any, T]],
    is_evidence: Callable[[T], bool],
) -> tuple[T, Path]:
    """Work in a directory of its own, and remove it afterwards, unless it is evidence."""
    from rise.runtime.processes import run, until_told
    from rise.telemetry import configure_logs

    configure_logs("console", level="error")
    # The platform's stand-in is cut off in the middle of requests all the time, on purpose.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    place = Path(tempfile.mkdtemp(prefix="rise-drill-", dir=directory))
    is_kept = False
    try:
        with progress("drill") as told:
            result = run(until_told(work(place, told)))
        is_kept = is_evidence(result)
    except asyncio.CancelledError:
        raise interrupted() from None
    finally:
        if not is_kept:
            shutil.rmtree(place, ignore_errors=True)
    return result, place


def _shown(report: DrillReport | Table) -> dict[str, object]:
    import msgspec

    return dict(msgspec.to_builtins(report))

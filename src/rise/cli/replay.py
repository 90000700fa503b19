"""`rise replay`: updates from a file through the one door, or tasks once more as a new generation.

Both say what they would do, and do it only with `--yes`. Broken off, they say what was done, and how to go on.

Refuses: to run again what is still on its way, and what a person has dropped, unless that is asked for. To take a
message from a file for a new one because its key is forgotten: as long as the ledger has it, it is a duplicate.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, has_database, in_house, operator, read_settings
from rise.cli.printing import (
    complain,
    interrupted,
    problem_found,
    progress,
    say,
    shortened,
    show_json,
    show_table,
    until_interrupted,
)
from rise.envelope import LaneKey, Order, Status, Task, TaskId

if TYPE_CHECKING:
    from rise.channels.port import Incoming
    from rise.clock import Clock
    from rise.errors import RiseError
    from rise.intake import Accepted
    from rise.runtime.assembly.house import House
    from rise.runtime.operations import Operations

SOURCE: Final = "replay"
AT_ONCE: Final = 200
"""Accepted together, in the file's order: they share an fsync."""
LISTED_MAX: Final = 50
PAGE: Final = 1000

_TASK_ID: Final = re.compile(r"t_[a-z2-7]{26}")
_AGE: Final = re.compile(r"([0-9]{1,7})([smhd])")
_AGE_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGAIN_BY_DEFAULT: Final = frozenset({Status.COMPLETED, Status.EXPIRED, Status.SUSPENDED})
"""Not what a person has dropped, unless asked for by id or state."""


def register(app: typer.Typer) -> None:
    app.command("replay")(replay)


def replay(
    what: Annotated[
        list[str] | None, typer.Argument(help="One FILE.jsonl with an update per line, or TASK_ID…")
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option("--channel", help="The file's channel; or tasks of it.", autocompletion=completing.channels),
    ] = None,
    account: Annotated[str | None, typer.Option("--account", help="The bot whose updates these are.")] = None,
    status: Annotated[Status | None, typer.Option("--status", help="Tasks in this state only.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Tasks received since: 90m, 2h, 3d, or a date.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this, only say what would be done.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Accept updates from a file, or run finished or suspended tasks again. A dry run unless --yes."""
    names = what or []
    by_filter = channel is not None or status is not None or since is not None
    if len(names) == 1 and not _TASK_ID.fullmatch(names[0]):
        if status is not None or since is not None:
            raise typer.BadParameter("--status and --since select tasks, not lines of a file")
        _replay_file(Path(names[0]), channel, account, yes=yes, data_dir=data_dir, as_json=as_json)
    elif names and by_filter:
        raise typer.BadParameter("name the tasks, or select them with --channel, --status, --since; not both")
    elif names:
        wrong = [name for name in names if not _TASK_ID.fullmatch(name)]
        if wrong:
            raise typer.BadParameter(f"{wrong[0]} is no task id; one file at a time, or only task ids")
        _run_again(_named([TaskId(name) for name in names]), yes=yes, data_dir=data_dir, as_json=as_json)
    elif by_filter:
        if status is not None and status not in {*_AGAIN_BY_DEFAULT, Status.DROPPED}:
            raise typer.BadParameter(f"a {status} task is still on its way; finished or suspended ones run again")
        selected = _selected(channel, account, status, since)
        _run_again(selected, yes=yes, data_dir=data_dir, as_json=as_json)
    else:
        raise typer.BadParameter("say what: FILE.jsonl, TASK_ID…, or --channel, --status, --since")


# --- updates from a file ------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, rename="camel"):
    """What became, or would become, of one line."""

    line: int
    task_id: TaskId
    delivery_key: str
    kind: str
    new: bool
    problem: str | None = None
    out_of_order: bool = False


class FileReplay(msgspec.Struct, kw_only=True, rename="camel"):
    lines: int = 0
    new: int = 0
    duplicate: int = 0
    unreadable: int = 0
    out_of_order: int = 0
    updates: list[Line] = []

    def add(self, line: Line) -> None:
        self.lines += 1
        self.new += line.new
        self.duplicate += not line.new
        self.unreadable += line.problem is not None
        self.out_of_order += line.out_of_order and line.new
        self.updates.append(line)


def _replay_file(
    path: Path, channel: str | None, account: str | None, *, yes: bool, data_dir: Path | None, as_json: bool
) -> None:
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}, and it is no task id (t_ and 26 letters and digits)")
    if channel != "telegram":
        raise typer.BadParameter(
            "updates come from Telegram: add --channel telegram; other tasks run again by their ids"
        )
    settings = read_settings(data_dir)
    if not yes and not has_database(settings):
        raise typer.BadParameter(f"{settings.data_dir} holds no Rise database yet; with --yes it is made")

    async def work(house: House) -> FileReplay:
        bot = account or house.channels.telegram_account
        if bot is None:
            raise typer.BadParameter("no bot is configured: say whose updates these are with --account BOT_ID")
        with progress(path.name) as told:
            return await (_accept_file if yes else _foresee_file)(house, path, bot, told)

    result = in_house(data_dir, work, creates=yes, keeps=yes)
    if as_json:
        shown = msgspec.to_builtins(result)
        show_json({"file": str(path), "dryRun": not yes, **shown})
        return
    show_table(
        f"{path}: what {'was' if yes else 'would be'} done",
        ("line", "task", "key", "kind", "result", "problem"),
        [
            (line.line, line.task_id, line.delivery_key, line.kind, _result_of(line), line.problem)
            for line in result.updates[:LISTED_MAX]
        ],
        empty="the file is empty",
    )
    if len(result.updates) > LISTED_MAX:
        say(f"… and {len(result.updates) - LISTED_MAX} more")
    say(
        f"{result.lines} updates: {result.new} new, {result.duplicate} duplicates, "
        f"{result.out_of_order} out of order, {result.unreadable} to be parked"
    )
    if not yes:
        say("Nothing was changed. Add --yes to do it.", style="yellow")


def _result_of(line: Line) -> str:
    return ("new, out of order" if line.out_of_order else "new") if line.new else "duplicate"


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The bytes of each line that holds something, and its number, never more than one update's worth."""
    from rise.envelope import RAW_BYTES_MAX

    with path.open("rb") as file:
        number = 0
        while line := file.readline(RAW_BYTES_MAX + 2):
            number += 1
            body = line.removesuffix(b"\n")
            if len(body) > RAW_BYTES_MAX:
                raise typer.BadParameter(
                    f"line {number} is longer than any update ({RAW_BYTES_MAX} bytes): not JSON lines?"
                )
            if body.strip():
                yield number, body


def _incoming(body: bytes, bot: str, house: House) -> Incoming:
    from rise.channels.telegram import read_update

    # Not as if it had been pushed: that would park old ones, and here a person wants them run.
    return read_update(body, account=bot, now=house.clock.now(), webhook=False, source=SOURCE, chats=house.chats)


async def _accept_file(house: House, path: Path, bot: str, told: Callable[[int, int], None]) -> FileReplay:
    replayed, total = FileReplay(), sum(1 for _ in read_lines(path))
    before = (await house.queue.depth()).out_of_order
    for batch in _batches(read_lines(path)):
        incoming = [_incoming(body, bot, house) for _, body in batch]
        # Before any of them is accepted: what one has to wait for would change the file's order.
        answered = await asyncio.gather(*(_was_answered(house, read) for read in incoming))
        accepting = map(_accept, itertools.repeat(house), incoming, answered)
        results = await asyncio.gather(*accepting, return_exceptions=True)
        for (number, _), read, accepted in zip(batch, incoming, results, strict=True):
            if isinstance(accepted, BaseException):
                complain(f"stopped at line {number}; all before it are kept, and running it again is safe")
                raise accepted
            replayed.add(_line(number, read, accepted))
        told(replayed.lines, total)
    replayed.out_of_order = (await house.queue.depth()).out_of_order - before
    return replayed


async def _accept(house: House, read: Incoming, was_answered: bool) -> Accepted:
    from rise.envelope import task_id_of
    from rise.intake import Accepted

    if was_answered:
        return Accepted(task_id_of(read.delivery_key), new=False)
    return await house.intake.accept(read)


def _line(number: int, read: Incoming, accepted: Accepted) -> Line:
    return Line(number, accepted.task_id, read.delivery_key, read.kind, accepted.new, read.error)


async def _foresee_file(house: House, path: Path, bot: str, told: Callable[[int, int], None]) -> FileReplay:
    """The same answers without the doing."""
    from rise.envelope import task_id_of

    foreseen, total = FileReplay(), sum(1 for _ in read_lines(path))
    known: set[str] = set()
    newest: dict[LaneKey, Order] = {}
    for number, body in read_lines(path):
        read = _incoming(body, bot, house)
        key, task_id = read.delivery_key, task_id_of(read.delivery_key)
        new = key not in known and not await _is_known(house, read) and not await _was_answered(house, read)
        known.add(key)
        late = new and read.order is not None and read.order < newest.get(read.lane, read.order)
        if new and read.order is not None:
            newest[read.lane] = max(read.order, newest.get(read.lane, read.order))
        foreseen.add(Line(number, task_id, key, read.kind, new, read.error, late))
        told(foreseen.lines, total)
    return foreseen


async def _is_known(house: House, read: Incoming) -> bool:
    """Whether the queue takes it for a duplicate."""
    from rise.envelope import task_id_of
    from rise.queue.port import Selection
    from rise.runtime.audit import receipt_of

    if await receipt_of(house.queue, read.delivery_key) is not None:
        return True
    return bool(await house.queue.list_open(Selection(task_ids=(task_id_of(read.delivery_key),)), limit=1))


async def _was_answered(house: House, read: Incoming) -> bool:
    """Whether the ledger has this very message although the queue has forgotten its key: taken for new, it would be
    answered a second time. Another message of the same key is a new one: Telegram numbers anew after a quiet week."""
    from rise.envelope import task_id_of

    kept = await house.ledger.archived(task_id_of(read.delivery_key))
    return kept is not None and _says_the_same(kept, read) and not await _is_known(house, read)


def _says_the_same(kept: Task, read: Incoming) -> bool:
    """The same bytes, or the same JSON written otherwise, as it is in many a file."""
    if hashlib.sha256(read.raw).hexdigest() == kept.head.raw_sha256 or read.raw == kept.raw:
        return True
    if read.suspend is not None or kept.head.is_unread or not kept.raw:
        return False  # only what has been read is known to be safe to read
    try:
        return bool(msgspec.json.decode(read.raw) == msgspec.json.decode(kept.raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False  # whether what a newer version kept has been read, only that knows


def _batches(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    for line in lines:
        batch.append(line)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


# --- tasks once more ----------------------------------------------------------------------------------------

Source = Callable[["House"], AsyncIterator[TaskId]]


class TaskReplay(msgspec.Struct, frozen=True, rename="camel"):
    """One task that ran, or would run, again; or why not."""

    task_id: TaskId
    was: Status | None = None
    generation: int | None = None
    problem: str | None = None


class TasksReplay(msgspec.Struct, kw_only=True, rename="camel"):
    """All that were meant, as far as it came."""

    tasks: list[TaskReplay] = []
    stopped_at: TaskId | None = None
    """At this one something was away: it may run again all the same."""
    left: list[TaskId] = []
    """What was not tried."""

    @property
    def refused(self) -> int:
        return sum(one.problem is not None for one in self.tasks)

    @property
    def again(self) -> int:
        return len(self.tasks) - self.refused


def _run_again(source: Source, *, yes: bool, data_dir: Path | None, as_json: bool) -> None:
    async def work(house: House) -> tuple[TasksReplay, RiseError | None]:
        from rise.runtime.assembly.operations import build_operations

        # All ids first: what runs again would otherwise be found again.
        task_ids = [task_id async for task_id in source(house)]
        return await _run_each_again(build_operations(house), task_ids, yes=yes)

    replayed, away = in_house(data_dir, work, keeps=yes)
    if as_json:
        counts = {"again": replayed.again, "refused": replayed.refused}
        show_json({"dryRun": not yes, **msgspec.to_builtins(replayed), **counts})
    else:
        _tell_of_tasks(replayed, yes=yes)
    if away is not None or replayed.left:
        _say_how_to_go_on(replayed, data_dir, as_json=as_json)
        raise away or interrupted()
    if replayed.refused:
        raise problem_found()


async def _run_each_again(
    operations: Operations, task_ids: list[TaskId], *, yes: bool
) -> tuple[TasksReplay, RiseError | None]:
    """One after the other. Where something is away, or Ctrl-C is pressed, which have run again and which have not is
    returned all the same: whoever began anew would have the former answered once more."""
    from rise.errors import RiseError

    replayed, asked = TasksReplay(), until_interrupted() if yes else nullcontext(lambda: False)
    with progress("run again" if yes else "looking") as told, asked as is_interrupted:
        for done, task_id in enumerate(task_ids):
            if is_interrupted():
                replayed.left = task_ids[done:]
                return replayed, None
            try:
                replayed.tasks.append(await _run_one_again(operations, task_id, yes=yes))
            except RiseError as error:
                if not yes:
                    raise
                replayed.stopped_at, replayed.left = task_id, task_ids[done + 1 :]
                return replayed, error
            told(done + 1, len(task_ids))
    return replayed, None


def _tell_of_tasks(replayed: TasksReplay, *, yes: bool) -> None:
    show_table(
        "what was done" if yes else "what would be done",
        ("task", "was", "runs as generation", "problem"),
        [(one.task_id, one.was, one.generation, shortened(one.problem or "")) for one in replayed.tasks[:LISTED_MAX]],
        empty="nothing was done" if replayed.stopped_at or replayed.left else "no task is meant by that",
    )
    say(f"{replayed.again} {'run' if yes else 'would run'} again, {replayed.refused} refused")
    if replayed.tasks and not yes:
        say("Nothing was changed. Each may answer its chat once more. Add --yes to do it.", style="yellow")


def _say_how_to_go_on(replayed: TasksReplay, data_dir: Path | None, *, as_json: bool) -> None:
    at, left = replayed.stopped_at, replayed.left
    if at is not None:
        complain(f"stopped at {at}, which may run again all the same: `rise tasks show {at}` says in which generation")
    if left:
        named = "`left` names them" if as_json else "the last line names them"
        complain(f"{len(left)} were not tried; {named}. The same words once more would mean those before them, too")
    if left and not as_json:
        elsewhere = [] if data_dir is None else ["--data-dir", str(data_dir)]
        typer.echo(shlex.join(["rise", "replay", "--yes", *elsewhere, *left]))


async def _run_one_again(operations: Operations, task_id: TaskId, *, yes: bool) -> TaskReplay:
    from rise.errors import QueueOwed, Rejected

    try:
        restarted = await operations.run_again(task_id, who=operator(), why="rise replay", dry_run=not yes)
    except (Rejected, QueueOwed) as error:  # what may yet be brought to the queue is left to that
        return TaskReplay(task_id, problem=error.public_message)
    return TaskReplay(task_id, restarted.was, restarted.generation)


def _named(task_ids: list[TaskId]) -> Source:
    async def source(house: House) -> AsyncIterator[TaskId]:
        for task_id in dict.fromkeys(task_ids):
            yield task_id

    return source


def _selected(channel: str | None, account: str | None, status: Status | None, since: str | None) -> Source:
    """Suspended ones from the queue, finished ones through the receipts: as far back as keys are remembered."""
    wanted = _AGAIN_BY_DEFAULT if status is None else frozenset({status})
    moment = None if since is None else _moment(since)

    async def source(house: House) -> AsyncIterator[TaskId]:
        since_ms = 0 if moment is None else _in_epoch_ms(moment, house.clock)
        if Status.SUSPENDED in wanted:
            async for task_id in _suspended_since(house, channel, account, since_ms):
                yield task_id
        if wanted - {Status.SUSPENDED}:
            async for task_id in _finished_since(house, channel, account, since_ms, wanted):
                yield task_id

    return source


async def _suspended_since(
    house: House, channel: str | None, account: str | None, since_ms: int
) -> AsyncIterator[TaskId]:
    from rise.cli.tasks import walk
    from rise.queue.port import Selection

    async for task in walk(house.queue, Selection(status=Status.SUSPENDED, channel=channel, account=account)):
        if task.head.accepted_at_ms >= since_ms:
            yield task.head.task_id


async def _finished_since(
    house: House, channel: str | None, account: str | None, since_ms: int, wanted: frozenset[Status]
) -> AsyncIterator[TaskId]:
    from rise.queue.port import Selection

    after = ""
    while page := await house.queue.receipts(limit=PAGE, after=after):
        after = page[-1].delivery_key
        task_ids = [receipt.task_id for receipt in page if receipt.received_at_ms >= since_ms]
        # The queue first, as everywhere: what it lets go of meanwhile is finished in the ledger.
        listed = await house.queue.list_open(Selection(task_ids=tuple(task_ids)), limit=PAGE) if task_ids else []
        still_open = {task.head.task_id for task in listed}
        for task_id, run in (await house.ledger.finished_among(task_ids)).items():
            if task_id not in still_open and run.status in wanted and await _is_of(house, task_id, channel, account):
                yield task_id


async def _is_of(house: House, task_id: TaskId, channel: str | None, account: str | None) -> bool:
    if channel is None and account is None:
        return True
    task = await house.ledger.archived(task_id)
    return task is not None and channel in (None, task.head.channel) and account in (None, task.head.account)


def _moment(since: str) -> timedelta | datetime:
    """An age (`2h`) or a date (`2025-11-08`, `2025-11-08T07:30Z`)."""
    found = _AGE.fullmatch(since)
    if found is not None:
        return timedelta(**{_AGE_UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"--since {since}: say an age such as 90m, 2h or 3d, or a date") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _in_epoch_ms(moment: timedelta | datetime, clock: Clock) -> int:
    from rise.clock import epoch_ms

    if isinstance(moment, datetime):
        return epoch_ms(moment)
    # In numbers: an age may reach back beyond the first date there is.
    return epoch_ms(clock.now()) - moment // timedelta(milliseconds=1)

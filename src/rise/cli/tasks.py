"""`rise tasks`, `rise suspended`: what is open, one message's whole life, and letting go on or dropping.

Only asks and shows: what may be done, and what is refused, is in `rise.runtime.operations`, for the HTTP API too.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rise.cli import completing
from rise.cli.opening import AsJson, DataDir, in_house, operator
from rise.cli.printing import (
    age,
    complain,
    problem_found,
    say,
    shortened,
    show_json,
    show_pairs,
    show_table,
)
from rise.envelope import DeliveryKey, Reason, Status, Task, TaskId, task_id_of

if TYPE_CHECKING:
    from rise.ledger.port import Run
    from rise.queue.port import OpenTask, Queue, Receipt, Selection
    from rise.runtime.assembly.house import House
    from rise.runtime.operations import Operations
    from rise.stories import TaskStory

PAGE: Final = 1000


class OpenStatus(StrEnum):
    """The states that are listed. What has ended is counted."""

    PENDING = Status.PENDING
    PROCESSING = Status.PROCESSING
    REPLYING = Status.REPLYING
    SUSPENDED = Status.SUSPENDED


class SuspendedFor(StrEnum):
    """The reasons that occur."""

    WORKFLOW_PENDING = Reason.WORKFLOW_PENDING
    RAW_PAYLOAD_INVALID = Reason.RAW_PAYLOAD_INVALID
    RETRIES_EXHAUSTED = Reason.RETRIES_EXHAUSTED
    LANE_BLOCKED = Reason.LANE_BLOCKED
    POISON = Reason.POISON
    STALE_REPLAY = Reason.STALE_REPLAY
    SCHEMA_NEWER = Reason.SCHEMA_NEWER
    KILL_SWITCH = Reason.KILL_SWITCH
    REPLY_HELD = Reason.REPLY_HELD


Id = Annotated[
    str, typer.Argument(metavar="TASK_ID", help="As `rise tasks` lists it.", autocompletion=completing.task_ids)
]
IdOrKey = Annotated[
    str,
    typer.Argument(
        metavar="TASK_ID",
        help="As `rise tasks` lists it, or its delivery key: http:WHO:IDEMPOTENCY_KEY of what came over HTTP.",
        autocompletion=completing.task_ids,
    ),
]
Channel = Annotated[
    str | None, typer.Option("--channel", help="Of this channel only.", autocompletion=completing.channels)
]
Chat = Annotated[str | None, typer.Option("--chat", help="Of this chat only, by its id on the channel.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, the oldest.")]
ReasonOption = Annotated[SuspendedFor | None, typer.Option("--reason", help="Suspended for this reason only.")]


def register(app: typer.Typer) -> None:
    tasks = typer.Typer(help="What is open; one message's whole life; dropping one.", invoke_without_command=True)
    tasks.callback()(list_tasks)
    tasks.command("show")(show_task)
    tasks.command("drop")(drop_task)
    app.add_typer(tasks, name="tasks")
    suspended = typer.Typer(help="What waits for a person or an event.", invoke_without_command=True)
    suspended.callback()(list_suspended)
    suspended.command("resume")(resume_tasks)
    app.add_typer(suspended, name="suspended")


# --- lists ------------------------------------------------------------------------------------------------


def list_tasks(
    context: typer.Context,
    status: Annotated[OpenStatus | None, typer.Option("--status", help="In this state only.")] = None,
    channel: Channel = None,
    chat: Chat = None,
    limit: Limit = 50,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What is open, oldest first. What has ended is counted; look at one with `rise tasks show`."""
    if context.invoked_subcommand is not None:
        return
    from rise.queue.port import Selection

    selection = Selection(status=Status(status) if status else None, channel=channel)
    in_house(data_dir, lambda house: _list(house, selection, chat, limit, as_json))


def list_suspended(
    context: typer.Context,
    reason: ReasonOption = None,
    channel: Channel = None,
    chat: Chat = None,
    limit: Limit = 50,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What waits for a person or an event, oldest first, with the reason."""
    if context.invoked_subcommand is not None:
        return
    from rise.queue.port import Selection

    selection = Selection(status=Status.SUSPENDED, reason=_reason(reason), channel=channel)
    in_house(data_dir, lambda house: _list(house, selection, chat, limit, as_json))


def _reason(asked: SuspendedFor | None) -> Reason | None:
    return None if asked is None else Reason(asked)


async def _list(house: House, selection: Selection, chat: str | None, limit: int, as_json: bool) -> None:
    found = 0
    oldest: list[tuple[int, str, OpenTask]] = []
    async for task in walk(house.queue, selection):
        if chat is not None and not _is_of_chat(house, task, chat):
            continue
        found += 1
        # A heap of the youngest on top: a million tasks are walked, `limit` are held.
        heapq.heappush(oldest, (-task.head.accepted_at_ms, task.head.task_id, task))
        if len(oldest) > limit:
            heapq.heappop(oldest)
    listed = [task for _, _, task in sorted(oldest, key=lambda entry: (-entry[0], entry[1]))]
    finished = dict(await house.ledger.finished_counts())
    now_ms = house.queue.now_ms()
    if as_json:
        rows = [_row_for_programs(task, now_ms) for task in listed]
        # How things ended is counted for all chats together.
        show_json({"tasks": rows, "found": found} | ({} if chat else {"finished": finished}))
        return
    state = selection.status or "open"
    show_table(
        f"{found} {state}" if found == len(listed) else f"{found} {state}, the oldest {len(listed)}",
        ("task", "channel", "chat", "status", "age", "tries", "text or error"),
        [_row(task, now_ms) for task in listed],
        empty=f"nothing is {state}",
    )
    if selection.status is None and chat is None and finished:
        say("ended: " + ", ".join(f"{count} {ending}" for ending, count in sorted(finished.items())), style="dim")


async def walk(queue: Queue, selection: Selection) -> AsyncIterator[OpenTask]:
    """Every open task selected, in pages."""
    after = ""
    while page := await queue.list_open(selection, limit=PAGE, after=after):
        for task in page:
            yield task
        after = page[-1].head.task_id


def _is_of_chat(house: House, task: OpenTask, chat: str) -> bool:
    """Whether it is of the chat that has this id, or once had it."""
    head = task.head
    goes_by = house.chats.first_id(head.channel, head.account, chat) or chat
    return chat == head.chat_id or goes_by == head.conversation


def _row(task: OpenTask, now_ms: int) -> tuple[object, ...]:
    head = task.head
    return (
        head.task_id,
        head.channel,
        head.chat_id,
        _state(task.status, task.reason, task.due_at_ms, now_ms),
        age(now_ms - head.accepted_at_ms),
        task.attempts,
        shortened(task.error or head.user_text),
    )


def _state(status: Status, reason: Reason | None, due_at_ms: int, now_ms: int) -> str:
    """The status, and what it waits for: a reason, or a moment."""
    due_at = _due_at(status, due_at_ms, now_ms)
    waits_for = reason or (f"due {due_at}" if due_at else None)
    return f"{status} ({waits_for})" if waits_for else str(status)


def _due_at(status: Status, due_at_ms: int, now_ms: int) -> str | None:
    """When a follow-up or a retry is due, while that is still to come."""
    from rise.clock import from_epoch_ms, iso

    return iso(from_epoch_ms(due_at_ms)) if status is Status.PENDING and due_at_ms > now_ms else None


def _row_for_programs(task: OpenTask, now_ms: int) -> dict[str, Any]:
    from rise.clock import from_epoch_ms, iso

    head = task.head
    return {
        "taskId": head.task_id,
        "channel": head.channel,
        "account": head.account,
        "chatId": head.chat_id,
        "kind": head.kind,
        "status": task.status,
        "reason": task.reason,
        "dueAt": _due_at(task.status, task.due_at_ms, now_ms),
        "generation": task.generation,
        "attempts": task.attempts,
        "deaths": task.deaths,
        "createdAt": iso(from_epoch_ms(head.accepted_at_ms)),
        "updatedAt": iso(from_epoch_ms(task.updated_at_ms)),
        "userText": head.user_text,
        "error": task.error,
    }


# --- one ----------------------------------------------------------------------------------------------------


def show_task(
    task_id: IdOrKey,
    raw: Annotated[bool, typer.Option("--raw", help="Only the bytes received, exactly.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """One message's whole life: as accepted, its tries, its replies, how it ended."""
    in_house(data_dir, lambda house: _show(house, _task_named(task_id), raw, as_json))


def _task_named(named: str) -> TaskId:
    """By its id, or by the key of its delivery, which has a colon."""
    return task_id_of(DeliveryKey(named)) if ":" in named else TaskId(named)


async def _show(house: House, task_id: TaskId, raw: bool, as_json: bool) -> None:
    from rise.runtime.audit import receipt_of

    story = await _operations(house).story(task_id)
    if raw and not story.task.has_bytes:
        complain("the bytes that it came as have been forgotten (RISE_KEEP_RAW_DAYS, or `rise forget`)")
        raise problem_found()
    if raw:
        sys.stdout.buffer.write(story.task.raw)
        sys.stdout.buffer.flush()
        return
    key = story.task.head.delivery_key
    receipt = await receipt_of(house.queue, key) if key else None
    earlier = await _earlier_runs(house, story)
    if as_json:
        show_json(_story_for_programs(house, story, earlier, receipt))
    else:
        _tell(house, story, earlier, receipt)


async def _earlier_runs(house: House, story: TaskStory) -> list[Run]:
    from rise.envelope import run_id_of

    task = story.task
    runs = [await house.ledger.run(run_id_of(task.task_id, number)) for number in range(task.progress.generation)]
    return [run for run in runs if run is not None]


def _story_for_programs(house: House, story: TaskStory, earlier: list[Run], receipt: Receipt | None) -> dict[str, Any]:
    """As the HTTP API shows it, and what only somebody on the spot needs to know."""
    from rise.stories import shown

    return shown(story, house.retry_policy) | {
        "earlierRuns": [
            {"generation": run.generation, "status": run.status, "outcome": run.outcome, "by": run.by, "why": run.why}
            for run in earlier
        ],
        "dueAt": _due_at(story.status, story.task.progress.due_at_ms, house.queue.now_ms()),
        "waitsFor": _lacking(house, story),
        "deliveryKey": story.task.head.delivery_key,
        "duplicates": receipt.duplicates if receipt else None,
    }


def _tell(house: House, story: TaskStory, earlier: list[Run], receipt: Receipt | None) -> None:
    from rise.clock import from_epoch_ms, iso

    def at(milliseconds: int | None) -> str:
        return iso(from_epoch_ms(milliseconds)) if milliseconds else ""

    task, run = story.task, story.run
    head, progress = task.head, task.progress
    show_pairs(
        [
            ("task", head.task_id),
            ("status", _state(story.status, progress.reason, progress.due_at_ms, house.queue.now_ms())),
            ("waits for", _lacking(house, story)),
            ("outcome", run.outcome if run else None),
            ("answered with", run.merged_into if run else None),
            ("answers also", ", ".join(run.merged) if run else None),
            ("channel", f"{head.channel}, account {head.account}, chat {head.chat_id or '-'}"),
            ("kind", head.kind),
            ("text", head.user_text),
            ("received as", f"{_size(task)}, {head.raw_version}, sha256 {head.raw_sha256}"),
            ("delivery key", head.delivery_key),
            ("repeated", f"{receipt.duplicates} more deliveries" if receipt and receipt.duplicates else None),
            ("workflow", _workflow(head.workflow_id, run)),
            ("run", f"{task.run_id}; failed tries: {progress.attempts}, processes that died: {progress.deaths}"),
            ("error", progress.error),
            ("label", head.idempotency_key),
            ("trace", head.trace_id),
        ]
    )
    life = [(at(head.accepted_at_ms), "accepted", f"by {head.source}")]
    life += [(at(former.saved_at_ms), f"run {former.generation}", _ending(former)) for former in earlier]
    if story.attempts_not_kept:
        before = at(story.attempts[0].at_ms)
        life.append((before, f"{story.attempts_not_kept} tries more until here", "of which nothing is kept"))
    life += [
        (at(attempt.at_ms), "failed" if attempt.counted else "waited", attempt.error) for attempt in story.attempts
    ]
    if run is not None and run.saved_at_ms != run.finished_at_ms:
        life.append((at(run.saved_at_ms), "result saved", f"of {run.workflow_id}" if run.workflow_id else ""))
    if run is not None and run.finished_at_ms is not None:
        life.append((at(run.finished_at_ms), str(run.status), _ending(run)))
    elif run is None:
        life.append((at(progress.updated_at_ms), str(progress.status), progress.reason or ""))
    show_table("life", ("when", "what", "more"), life)
    show_table(
        "replies",
        ("reply", "kind", "state", "tries", "text", "error"),
        [
            (reply.reply_id, reply.kind, reply.state, reply.tries, shortened(reply.call.text), reply.error)
            for reply in story.replies
        ],
    )
    if story.stages:
        _tell_stages(story.stages)


def _size(task: Task) -> str:
    return f"{len(task.raw)} bytes" if task.has_bytes else "bytes that have been forgotten"


def _tell_stages(records: list[Any]) -> None:
    """As they were written, perhaps by another version."""
    names = ("attempt", "name", "kind", "outcome", "durationMs", "tries", "error")
    rows = [tuple(record.get(name) for name in names) for record in records if isinstance(record, dict)]
    show_table("stages", ("try", "stage", "kind", "outcome", "ms", "tries", "error"), rows)


def _workflow(asked_for: str | None, run: Run | None) -> str | None:
    if run is None or run.workflow_id is None:
        return asked_for
    return f"{run.workflow_id}, version {run.workflow_version}" if run.workflow_version else run.workflow_id


def _lacking(house: House, story: TaskStory) -> str | None:
    """The account that it cannot go on without, if that is not configured where this command runs."""
    head = story.task.head
    if story.status.is_finished or head.account in house.channels.all_accounts().get(head.channel, ()):
        return None
    return f"account {head.account} of {head.channel}, which is not configured here (`rise doctor` has the remedy)"


def _ending(run: Run) -> str:
    parts = [str(run.status), f"({run.outcome})" if run.outcome else ""]
    parts += [f"by {run.by}" if run.by else "", f"because: {run.why}" if run.why else ""]
    return " ".join(part for part in parts if part)


# --- changing -----------------------------------------------------------------------------------------------


def drop_task(
    task_id: IdOrKey,
    why: Why,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """End a message for good, unanswered. Recorded, with who and why."""

    async def drop(house: House) -> None:
        run = await _operations(house).drop(_task_named(task_id), who=operator(), why=why)
        if as_json:
            show_json({"taskId": run.task_id, "status": run.status, "by": run.by, "why": run.why})
        else:
            say(f"{run.task_id} is dropped; it will not be answered")

    in_house(data_dir, drop)


def resume_tasks(
    task_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="TASK_ID", help="Which, by id.", autocompletion=completing.suspended_ids),
    ] = None,
    reason: ReasonOption = None,
    channel: Channel = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is suspended.")] = False,
    why: Why = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let suspended messages go on: by id, by reason, by channel, or all. Their tries start over."""
    by_filter = reason is not None or channel is not None
    if bool(task_ids) + by_filter + everything != 1:
        raise typer.BadParameter("say which: TASK_ID…, --reason and --channel, or --all")
    from rise.queue.port import Selection

    async def resume(house: House) -> tuple[list[str], dict[str, str]]:
        operations = _operations(house)
        if task_ids:
            return await _resume_each(operations, task_ids, why)
        selection = Selection(reason=_reason(reason), channel=channel)
        return list(await operations.resume_selected(selection, who=operator(), why=why)), {}

    resumed, refused = in_house(data_dir, resume)
    if as_json:
        show_json({"resumed": resumed, "refused": refused})
    else:
        say(f"{len(resumed)} resumed")
        for task_id, problem in refused.items():
            complain(f"{task_id}: {problem}")
    if refused:
        raise problem_found()


async def _resume_each(operations: Operations, task_ids: list[str], why: str) -> tuple[list[str], dict[str, str]]:
    from rise.errors import QueueOwed, Rejected

    resumed: list[str] = []
    refused: dict[str, str] = {}
    for task_id in task_ids:
        try:
            await operations.resume(_task_named(task_id), who=operator(), why=why)
            resumed.append(task_id)
        except (Rejected, QueueOwed) as error:
            refused[task_id] = error.public_message
    return resumed, refused


def _operations(house: House) -> Operations:
    from rise.runtime.assembly.operations import build_operations

    return build_operations(house)

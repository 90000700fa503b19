"""What a person may do to messages, for the HTTP API and the command line alike.

Everything changed here is in the audit log, written before the change: a crash between the two leaves a
record of something that was not done, never a change without a record.

Refuses: to resume what is not suspended, to drop what has ended otherwise, to run again what is still on its way or
of which nothing is left that could run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import msgspec

from rise.bus.port import Bus, Topic, publish_settled
from rise.callbacks import Callbacks
from rise.clock import Clock, epoch_ms
from rise.copies.looking import CopiesShown
from rise.envelope import Reason, Status, Task, TaskId, run_id_of
from rise.errors import QueueOwed, Rejected, StateConflict, TaskUnknown
from rise.ledger.port import Attempt, Ledger, Operation, Reply, ReplyState, Run
from rise.merging import MergedFate, Merging
from rise.queue.port import OpenTask, Queue, QueueDepth, Selection
from rise.stories import TaskStory
from rise.telemetry import log, raw_truncated_total, workflow_pending_total
from rise.workflows.building import records_among

RESUME_MAX = 10_000
"""Tasks that one command resumes; what is beyond waits for the next."""
DROP_MAX = 1_000
"""The same of dropping, which takes several writes for each."""


class Restarted(msgspec.Struct, frozen=True):
    """A task that runs again, or would."""

    task_id: TaskId
    generation: int
    was: Status


class Dropped(msgspec.Struct, frozen=True):
    """What came of dropping several."""

    task_ids: list[TaskId]
    refused: dict[TaskId, str]
    """Why not, for those that had ended or gone meanwhile."""


class Restart(Protocol):
    async def __call__(self, task: Task, *, generation: int) -> bool: ...


class Operations:
    """Look, resume, drop, run again."""

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        bus: Bus,
        clock: Clock,
        *,
        restart: Restart | None = None,
        copies: CopiesShown | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        """With further stores, `restart` runs a task again in all of them, and `copies` tells what they hold."""
        self._queue = queue
        self._copies = copies
        self._restart = restart or queue.restart
        self._callbacks = callbacks or Callbacks(queue, ledger)
        self._merging = Merging(queue, ledger)
        self._ledger = ledger
        self._bus = bus
        self._clock = clock

    # --- looking ---

    async def story(self, task_id: TaskId, *, looks_further: bool = True) -> TaskStory:
        """The task wherever it is now, open or ended. Raises `TaskUnknown`; or, having looked further than into queue
        and ledger, `QueueOwed` for what may yet be brought to the queue."""
        # The queue first: what it forgets between the two looks is in the ledger, never the other way round.
        task = await self._queue.get(task_id)
        run = None
        if task is None:
            task, run = await self._archived(task_id, looks_further=looks_further)
        else:
            run = await self._ledger.run(task.run_id)
        is_new = run is not None and run.is_of_former(task.head)
        if is_new:
            run = None
        attempts = [] if is_new else await self._ledger.attempts(task.run_id)
        replies = await self._replies(task)
        copies = None if self._copies is None else await self._copies.of(task_id)
        return TaskStory(task, run, attempts, replies, copies, await self._stages(task, run, attempts))

    async def suspended(
        self, *, channel: str | None = None, reason: Reason | None = None, limit: int = 100, after: str = ""
    ) -> list[OpenTask]:
        """What waits for a person or an event, ordered by id; pass the last one to go on."""
        selection = Selection(status=Status.SUSPENDED, channel=channel, reason=reason)
        return await self._queue.list_open(selection, limit=limit, after=after)

    async def resumable(self, selection: Selection, *, limit: int = RESUME_MAX) -> list[OpenTask]:
        """What `resume_selected` would resume."""
        return await self._queue.resumable(selection, limit=limit)

    async def droppable(self, selection: Selection) -> list[OpenTask]:
        """What `drop_selected` would end."""
        suspended = msgspec.structs.replace(selection, status=Status.SUSPENDED)
        return await self._queue.list_open(suspended, limit=DROP_MAX)

    async def trail(self, *, limit: int) -> list[Operation]:
        """What people changed, newest first."""
        return await self._ledger.operations(limit=limit)

    async def stats(self) -> dict[str, Any]:
        """What is open, what waits and for how long, and how things ended, counted now."""
        depth = await self._queue.depth()
        outbox = await self._ledger.outbox_depth()
        received = depth.accepted + depth.duplicates
        waiting = depth.oldest_waiting_ms
        return {
            **await self._depths(depth),
            "byStatus": depth.by_status,
            "byChannel": depth.by_channel,
            "byReason": depth.by_reason,
            "oldestWaitingSeconds": None if waiting is None else waiting / 1000,
            "retryDepth": depth.retrying,
            "plannedDepth": depth.planned,
            "lanesClaimed": depth.lanes_claimed,
            "accepted": depth.accepted,
            "duplicates": depth.duplicates,
            "duplicateRate": depth.duplicates / received if received else 0.0,
            "outOfOrder": depth.out_of_order,
            "outOfOrderRate": depth.out_of_order / depth.accepted if depth.accepted else 0.0,
            "outbox": {
                "depth": sum(outbox.by_state.values()),
                "byState": outbox.by_state,
                "oldestWaitingSeconds": None if outbox.oldest_waiting_ms is None else outbox.oldest_waiting_ms / 1000,
                "unknown": outbox.unknown,
                "resent": outbox.resent,
            },
            "channelPayload": {"raw_truncated_total": _total(raw_truncated_total)},
            # Counted where the worker runs; what waits now is known everywhere.
            "workflow_pending_total": max(
                _total(workflow_pending_total), depth.by_reason.get(Reason.WORKFLOW_PENDING, 0)
            ),
            "worstLanes": [
                {"lane": lane.lane, "open": lane.open, "oldestWaitingSeconds": lane.oldest_waiting_ms / 1000}
                for lane in await self._queue.longest_lanes(limit=10)
            ],
            "finished": dict(await self._ledger.finished_counts()),
        }

    async def _depths(self, depth: QueueDepth) -> dict[str, int | None]:
        """How much each store holds that there is."""
        is_open = sum(depth.by_status.values())
        if self._copies is None:
            return {"journalDepth": is_open}
        return {"streamDepth": is_open} | await self._copies.depths()

    # --- changing ---

    async def resume(self, task_id: TaskId, *, who: str, why: str = "") -> None:
        """Let a suspended task go on. Raises `TaskUnknown`, or `StateConflict` if it is not suspended."""
        found = await self._queue.list_open(Selection(task_ids=(task_id,)), limit=1)
        if not found:
            await self._refuse_ended(task_id, "resumed")
        if found[0].status is not Status.SUSPENDED:
            raise StateConflict(f"the task is {found[0].status}, not suspended")
        await self._record(who, "resume", task_id, why)
        if not await self._let_go_on(found):
            await self._refuse_newer(task_id)
            raise StateConflict("somebody else resumed or dropped the task just now")

    async def resume_selected(
        self, selection: Selection, *, who: str, why: str = "", limit: int = RESUME_MAX, dry_run: bool = False
    ) -> list[TaskId]:
        """Let go on what is suspended and selected, whole chats at a time, about `limit` tasks of it.

        `dry_run`: only say which.
        """
        waiting = await self.resumable(selection, limit=limit)
        task_ids = [task.head.task_id for task in waiting]
        if dry_run or not waiting:
            return task_ids
        await self._record(who, "resume", _named(selection), why)
        resumed = await self._let_go_on(waiting)
        log.info("suspended.resumed", count=len(resumed), who=who)
        return resumed

    async def drop(self, task_id: TaskId, *, who: str, why: str = "") -> Run:
        """End a task for good, unanswered. Raises `TaskUnknown`, or `StateConflict` if it has ended otherwise.

        What is just being sent to its chat cannot be called back; nothing after it is sent.
        """
        task = await self._queue.get(task_id)
        if task is None:
            run = await self._ledger.latest_run(task_id)
            if run is not None and run.status is Status.DROPPED:
                return run
            await self._refuse_ended(task_id, "dropped")
        await self._refuse_taken_along(task)
        await self._record(who, "drop", task_id, why)
        # The ledger first: whatever still works on the task finds it ended there.
        named = await self._named_anew(task)
        callback = await self._callbacks.of_end(named, Status.DROPPED, by=who, why=why)
        run = await self._ledger.finish(named, Status.DROPPED, by=who, why=why, callback=callback)
        if run.status is not Status.DROPPED:
            # It leaves the queue by itself, when what it promised for later is armed.
            raise _why_not_dropped(run)
        # Only what was dropped: somebody else may have it run again by now, as the next generation.
        await self._queue.cancel(task_id, generation=task.progress.generation)
        self._announce_dropped(task)
        return run

    async def drop_selected(self, selection: Selection, *, who: str, why: str) -> Dropped:
        """End for good what is suspended and selected, one after the other, at most `DROP_MAX`; each is recorded."""
        dropped: list[TaskId] = []
        refused: dict[TaskId, str] = {}
        for task in await self.droppable(selection):
            task_id = task.head.task_id
            try:
                await self.drop(task_id, who=who, why=why)
                dropped.append(task_id)
            except (Rejected, QueueOwed) as error:
                refused[task_id] = error.public_message
        return Dropped(dropped, refused)

    async def run_again(self, task_id: TaskId, *, who: str, why: str = "", dry_run: bool = False) -> Restarted:
        """Run a finished or suspended task once more, as a new generation that may answer again.

        Raises `TaskUnknown`, or `StateConflict` while it is still on its way, if its bytes have been forgotten, or if
        this version cannot read it. `dry_run`: only say what would be.
        """
        task = await self._may_run_again(task_id)
        latest = await self._ledger.latest_run(task_id)
        generation = max(task.progress.generation, latest.generation if latest else 0) + 1
        await self._refuse_without_bytes(task, generation)
        restarted = Restarted(task_id, generation, task.progress.status)
        if dry_run:
            return restarted
        await self._record(who, "run again", run_id_of(task_id, generation), why)
        # The queue decides: as long as it has not, nothing has changed, and somebody else may decide otherwise.
        if not await self._restart(task, generation=generation):
            await self._refuse_newer(task_id)
            raise StateConflict("somebody else runs the task again already")
        self._bus.publish(Topic.LANES_READY)
        if latest is None or latest.generation < generation - 1 or not latest.is_of_former(task.head):
            # What is left of its answer must not go out beside the new one, whyever it was parked, nor what a worker
            # that was frozen has still to say; the ledger says so now, or when the new generation's takes its place.
            former = task.in_generation(generation - 1)
            await self._ledger.finish(former, Status.DROPPED, by=who, why=f"run again as generation {generation}")
        return restarted

    # --- details ---

    async def _may_run_again(self, task_id: TaskId) -> Task:
        """Raises `StateConflict` unless it has ended, or is suspended, and can be read."""
        task = await self._queue.get(task_id)
        if task is not None and task.progress.status is not Status.SUSPENDED:
            raise StateConflict(f"the task is {task.progress.status}: it is still on its way")
        if task is None:
            task, run = await self._archived(task_id)
            if await self._is_being_answered(run):
                raise StateConflict(f"the task is {run.status}: its answer is on the way")
        if task.head.is_stand_in:
            # Written as its next generation, the stand-in would take the place of what it stands for.
            why = task.progress.error or "a newer one has written it"
            raise StateConflict(f"this version of Rise cannot read it, and may not run it: {why}")
        return task

    async def _is_being_answered(self, run: Run) -> bool:
        """Although the queue has lost it."""
        if run.status.is_finished:
            return False
        replies = await self._ledger.replies(run_id=run_id_of(run.task_id, run.generation))
        return any(reply.state in (ReplyState.READY, ReplyState.SENDING) for reply in replies)

    async def _replies(self, task: Task) -> list[Reply]:
        """Not what the former message of its key was answered: that may have been another chat's."""
        replies = await self._ledger.replies(task_id=task.task_id)
        runs = [await self._ledger.run(run_id) for run_id in dict.fromkeys(reply.run_id for reply in replies)]
        of_former = {run_id_of(run.task_id, run.generation) for run in runs if run and run.is_of_former(task.head)}
        return [reply for reply in replies if reply.run_id not in of_former]

    async def _stages(self, task: Task, run: Run | None, attempts: Sequence[Attempt]) -> list[Any]:
        """Until there is a result, which has them, they stand among the steps of the run."""
        if run is not None and run.stages:
            return run.stages
        return records_among(await self._ledger.steps(task.run_id))[1] if attempts else []

    async def _named_anew(self, task: Task) -> Task:
        """The task; where a former message of its key has its name in the ledger, as the worker would name it anew."""
        known = await self._ledger.run(task.run_id)
        if known is None or not known.is_of_former(task.head):
            return task
        latest = await self._ledger.latest_run(task.task_id) or known
        return task.in_generation(latest.generation + latest.is_of_former(task.head))

    async def _refuse_without_bytes(self, task: Task, generation: int) -> None:
        """Raises `StateConflict` unless all have them that would be run as this generation: itself, and what it
        answered before."""
        merged = await self._merging.merged_before(task.head, generation)
        with_it = [await self._ledger.archived(task_id) for task_id in merged if task_id != task.task_id]
        all_of_it = [task, *(one for one in with_it if one is not None)]
        if not all(one.has_bytes for one in all_of_it):
            raise StateConflict("what it came as has been forgotten: there is nothing left that could run again")
        if any(one.head.is_stand_in for one in all_of_it):
            raise StateConflict("this version of Rise cannot read a message that was answered with it")

    async def _refuse_taken_along(self, task: Task) -> None:
        """What is being answered with another, or has been. Raises `StateConflict`."""
        run = await self._ledger.run(task.run_id)
        if run is None or run.merged_into is None or run.status.is_finished or run.is_of_former(task.head):
            return
        match await self._merging.fate_of(run):
            case MergedFate.WAITS:
                raise _why_not_dropped(run)
            case MergedFate.ANSWERED:
                raise StateConflict(f"the task has been answered with {run.merged_into} already")

    async def _archived(self, task_id: TaskId, *, looks_further: bool = True) -> tuple[Task, Run]:
        task, run = await self._ledger.archived(task_id), await self._ledger.latest_run(task_id)
        if task is None or run is None:
            await self._refuse_unknown(task_id, looks_further=looks_further)
        attempts = await self._ledger.attempts(task.run_id)
        progress = msgspec.structs.replace(
            task.progress,
            attempts=sum(attempt.counted for attempt in attempts),
            updated_at_ms=run.finished_at_ms or run.saved_at_ms,
        )
        return msgspec.structs.replace(task, progress=progress), run

    async def _refuse_ended(self, task_id: TaskId, verb: str) -> NoReturn:
        run = await self._ledger.latest_run(task_id)
        if run is None:
            await self._refuse_unknown(task_id)
        raise StateConflict(f"the task is {run.status} and cannot be {verb}")

    async def _refuse_unknown(self, task_id: TaskId, *, looks_further: bool = True) -> NoReturn:
        if looks_further and self._copies is not None and await self._copies.may_be_brought(task_id):
            raise QueueOwed(
                "nothing is known of it yet: the queue is being given what it lacks",
                remedy="ask again in a moment; `rise rehydrate --dry-run` counts what is lacking",
            )
        raise TaskUnknown("there is no such task, or it has been forgotten", field="taskId")

    async def _refuse_newer(self, task_id: TaskId) -> None:
        """Refuse what is still there as a newer version has put it aside: the queue changes nothing of that."""
        for task in await self._queue.list_open(Selection(task_ids=(task_id,)), limit=1):
            if task.reason is Reason.SCHEMA_NEWER:
                raise StateConflict(f"the task is suspended, {task.reason}: {task.error}")

    async def _let_go_on(self, waiting: Sequence[OpenTask]) -> list[TaskId]:
        """What is still suspended of these; the replies of what was held go out again, no workflow runs again for it.

        The queue decides, against whoever runs one of them again or drops it. What a crash leaves without its replies
        is held again.
        """
        task_ids = tuple(task.head.task_id for task in waiting)
        resumed = await self._queue.resume(Selection(task_ids=task_ids), limit=len(task_ids))
        self._bus.publish(Topic.LANES_READY)
        held = {task.run_id for task in waiting if task.reason is Reason.REPLY_HELD}
        if held and resumed:
            # Only of the generation that was resumed: another's answer must not go out beside it.
            still_open = await self._queue.list_open(Selection(task_ids=tuple(resumed)), limit=len(resumed))
            # As their chats have them: the sender may take up the first while the second is still to come.
            for task in sorted(still_open, key=lambda one: one.head.place):
                if task.run_id in held:
                    await self._ledger.outbox_rearm(task.run_id)
            self._bus.publish(Topic.OUTBOX_READY)
        return resumed

    async def _record(self, who: str, action: str, target: str, why: str) -> None:
        now_ms = epoch_ms(self._clock.now())
        await self._ledger.record_operation(Operation(at_ms=now_ms, who=who, action=action, target=target, why=why))
        log.info("operation.recorded", who=who, action=action, target=target, why=why)

    def _announce_dropped(self, task: Task) -> None:
        head = task.head
        publish_settled(self._bus, head, Status.DROPPED, workflow_id=head.workflow_id)
        self._bus.publish(Topic.LANES_READY)  # its chat goes on without it
        if head.callback_url is not None:
            self._bus.publish(Topic.OUTBOX_READY)


def suspended_as(*, task_ids: tuple[TaskId, ...] = (), reason: Reason | None = None, channel: str = "") -> Selection:
    """Suspended messages: these, or all that are so."""
    return Selection(status=Status.SUSPENDED, task_ids=task_ids, reason=reason, channel=channel or None)


def _why_not_dropped(run: Run) -> StateConflict:
    if run.merged_into is not None and not run.status.is_finished:
        return StateConflict(f"it is answered with {run.merged_into}: drop that one, and then this")
    return StateConflict(f"the task is {run.status} already")


def _named(selection: Selection) -> str:
    """The selection as people read it in the audit log."""
    ids: Sequence[str] = selection.task_ids
    parts = [f"reason={selection.reason}"] if selection.reason else []
    parts += [f"{name}={value}" for name in ("channel", "account", "lane") if (value := getattr(selection, name))]
    if ids:
        parts.append(f"{len(ids)} tasks: {', '.join(ids[:10])}{' …' if len(ids) > 10 else ''}")
    return "suspended " + (" ".join(parts) or "all")


def _total(counter: Any) -> int:
    """What this process has counted, over all labels."""
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

"""Follow-ups without Temporal: each is a task that the queue holds until its moment.

A moment that is moved is another planning, accepted before the former ends: in between both are there, and
`firing.py` lets one of them be said. So nothing is changed in place, in any store, and no list of timers is kept beside
the queue.

Refuses: to list what has ended; look at one by its id, as long as the ledger keeps it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from rise.channels.port import Incoming
from rise.clock import Clock, epoch_ms
from rise.envelope import Head, Status, Task, TaskId, TaskType, run_id_of, task_id_of
from rise.errors import StateConflict, TaskUnknown
from rise.follow_ups.planning import fired_key, id_of, is_earlier_ones, moved, plan_of, planning_id, waiting_lane
from rise.follow_ups.port import MOVES_MAX, FollowUp, FollowUpId, FollowUpStatus, ListedStatus, Page, Plan
from rise.ledger.port import Ledger, Run
from rise.queue.port import OpenTask, Queue, Selection

LOOKED_AT_MAX: Final = 5000
"""Open tasks that one page goes through; where few of them are follow-ups, the page is short."""
LOOK_AT_ONCE: Final = 500

_LISTED: Final = {ListedStatus.PLANNED: Status.PENDING, ListedStatus.SUSPENDED: Status.SUSPENDED}


class Receipt(Protocol):
    """What acceptance answers."""

    @property
    def task_id(self) -> TaskId: ...
    @property
    def new(self) -> bool: ...


class Drop(Protocol):
    """Ends a task for good, recorded. Raises `StateConflict` if it has ended otherwise, `TaskUnknown` if it is gone."""

    async def __call__(self, task_id: TaskId, *, who: str, why: str = "") -> Run: ...


class _Planning(msgspec.Struct, frozen=True):
    """One of a follow-up's, and what became of it."""

    task_id: TaskId
    number: int
    is_open: bool
    run: Run | None
    """Once it has ended."""


class QueuedFollowUps:
    """`rise.follow_ups.port.FollowUps`, on whichever queue and ledger there are."""

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        clock: Clock,
        *,
        accept: Callable[[Incoming], Awaitable[Receipt]],
        drop: Drop,
    ) -> None:
        """`accept`: the intake's, for what is moved."""
        self._queue = queue
        self._ledger = ledger
        self._clock = clock
        self._accept = accept
        self._drop = drop

    # --- looking ---

    async def get(self, follow_up_id: FollowUpId) -> FollowUp:
        plannings = await self._plannings(follow_up_id)
        # Where one had fired before it could be moved, the newest has been taken back.
        newest = next(filter(_has_fired, plannings), plannings[-1])
        found = await self._queue.list_open(Selection(task_ids=(newest.task_id,)), limit=1)
        if found:
            return self._shown(found[0], await self._ledger.run(found[0].run_id))
        task = await self._ledger.archived(newest.task_id)
        run = newest.run or await self._ledger.latest_run(newest.task_id)
        if task is None or run is None or task.head.is_forgotten:
            raise _unknown()
        _refuse_unreadable(task.head)
        return _ended(task.head, run)

    async def page(self, chat: Mapping[str, Any], *, status: ListedStatus | None, limit: int, after: str = "") -> Page:
        selection = _selected(chat, status)
        rows: dict[FollowUpId, FollowUp] = {}
        looked_at = 0
        while len(rows) < limit and looked_at < LOOKED_AT_MAX:
            found = await self._look(selection, after)
            looked_at += len(found)
            for one in found:
                after = one.head.task_id
                if _is_wanted(one, chat):
                    _keep_newest(rows, self._shown(one, None))
                if len(rows) == limit:
                    return Page(list(rows.values()), after)
            if len(found) < LOOK_AT_ONCE:
                return Page(list(rows.values()), None)
        return Page(list(rows.values()), after)

    async def _look(self, selection: Selection, after: str) -> list[OpenTask]:
        """The next of them. Of one chat in two looks, each of which goes through no other chat's."""
        if selection.lane is None or selection.status is not None:
            return await self._queue.list_open(selection, limit=LOOK_AT_ONCE, after=after)
        found: dict[TaskId, OpenTask] = {}
        for narrowing in ({"is_runnable": True}, {"status": Status.SUSPENDED}):
            narrowed = msgspec.structs.replace(selection, **narrowing)
            page = await self._queue.list_open(narrowed, limit=LOOK_AT_ONCE, after=after)
            found |= {one.head.task_id: one for one in page}
        return [found[task_id] for task_id in sorted(found)[:LOOK_AT_ONCE]]

    # --- changing ---

    async def cancel(self, follow_up_id: FollowUpId, *, who: str, why: str = "") -> FollowUp:
        plannings = await self._plannings(follow_up_id)
        _refuse_fired(plannings)
        # The newest first: the former ones yield to it, whatever has become of it.
        for planning in reversed(plannings):
            if planning.is_open:
                await self._end(planning.task_id, who=who, why=why)
        found = await self.get(follow_up_id)
        if found.status is not FollowUpStatus.CANCELLED:
            raise StateConflict(f"the follow-up is {found.status} already")
        return found

    async def move(self, follow_up_id: FollowUpId, to: Plan, *, who: str) -> FollowUp:
        plannings = await self._plannings(follow_up_id)
        _refuse_fired(plannings)
        newest = await self._queue.get(plannings[-1].task_id)
        if newest is None:
            raise StateConflict(f"the follow-up is {(await self.get(follow_up_id)).status} already")
        if plan_of(newest.head).due_at != to.due_at:
            # First the new one: what dies here has two, of which one is said. The other order could lose both.
            newest = await self._plan_again(newest, to)
        await self._end_former(follow_up_id, newest, who=who)
        return await self.get(follow_up_id)

    async def _plan_again(self, newest: Task, to: Plan) -> Task:
        if plan_of(newest.head).number >= MOVES_MAX:
            raise StateConflict(f"it was moved {MOVES_MAX} times: cancel it, and add another")
        now_ms = self._queue.now_ms()
        incoming = moved(newest, to, now_ms=now_ms, ahead_ms=now_ms - epoch_ms(self._clock.now()))
        accepted = await self._accept(incoming)
        task = await self._queue.get(accepted.task_id)
        if task is None or plan_of(task.head).due_at != to.due_at:
            raise StateConflict("somebody else has moved the follow-up just now, or it has fired")
        return task

    async def _end_former(self, follow_up_id: FollowUpId, newest: Task, *, who: str) -> None:
        """Every planning before the newest. If one of them has fired, the newest is taken back."""
        why = f"moved to {plan_of(newest.head).due_at.isoformat()}"
        for planning in await self._plannings(follow_up_id):
            if planning.is_open and planning.task_id != newest.task_id:
                try:
                    await self._end(planning.task_id, who=who, why=why)
                except StateConflict:
                    await self._end(newest.task_id, who=who, why="it had fired before it could be moved")
                    raise

    async def _end(self, task_id: TaskId, *, who: str, why: str) -> None:
        """The ledger decides between this and its firing, in one step."""
        try:
            await self._drop(task_id, who=who, why=why)
        except StateConflict as error:
            raise StateConflict("the follow-up has fired, or has ended otherwise just now") from error

    # --- details ---

    async def _plannings(self, follow_up_id: FollowUpId) -> list[_Planning]:
        """All that are known, in the order in which they were made. Raises `TaskUnknown` if there are none, and
        `StateConflict` if this version cannot read them."""
        ids = [planning_id(follow_up_id, number) for number in range(MOVES_MAX + 1)]
        # The queue first: what it forgets between the two looks is in the ledger.
        waiting = {one.head.task_id: one for one in await self._queue.list_open(_those(ids), limit=len(ids))}
        ended = await self._ledger.finished_among(ids)
        for one in waiting.values():
            _refuse_unreadable(one.head)
        if any(one.head.task_type is not TaskType.FOLLOW_UP for one in waiting.values()):
            raise _unknown()
        accepted_at = {task_id: run.accepted_at_ms for task_id, run in ended.items()}
        accepted_at |= {task_id: one.head.accepted_at_ms for task_id, one in waiting.items()}
        first_at_ms = accepted_at.get(ids[0], 0)
        known = [
            _Planning(task_id, number, task_id in waiting and task_id not in ended, ended.get(task_id))
            for number, task_id in enumerate(ids)
            if task_id in accepted_at and not is_earlier_ones(accepted_at[task_id], first_at_ms)
        ]
        if not known or not (waiting or await self._is_one(known[-1].task_id)):
            raise _unknown()
        return known

    async def _is_one(self, task_id: TaskId) -> bool:
        task = await self._ledger.archived(task_id)
        if task is None:
            return False
        _refuse_unreadable(task.head)
        return task.head.task_type is TaskType.FOLLOW_UP

    def _shown(self, one: OpenTask, run: Run | None) -> FollowUp:
        if run is not None and run.status.is_finished:
            return _ended(one.head, run)
        if run is not None and run.outcome is not None:
            return _fired(one.head, run)  # its result waits for the ledger
        is_waiting = one.status is Status.SUSPENDED
        status = FollowUpStatus.SUSPENDED if is_waiting else FollowUpStatus.PLANNED
        why = f"{one.reason}: {one.error or ''}".rstrip(": ") if is_waiting else ""
        return _follow_up(one.head, status, why=why)


def _those(task_ids: list[TaskId]) -> Selection:
    return Selection(task_ids=tuple(task_ids))


def _selected(chat: Mapping[str, Any], status: ListedStatus | None) -> Selection:
    """As much of the question as the queue can answer: of one chat, the lane in which its follow-ups wait."""
    channel, account, chat_id = chat.get("channel"), chat.get("account"), chat.get("chat_id")
    lane = waiting_lane(channel, account, chat_id) if channel and account and chat_id else None
    return Selection(channel=channel, account=account, lane=lane, status=_LISTED[status] if status else None)


def _is_wanted(one: OpenTask, chat: Mapping[str, Any]) -> bool:
    if one.head.task_type is not TaskType.FOLLOW_UP:
        return False
    chat_id = chat.get("chat_id")
    return not chat_id or chat_id in (one.head.chat_id, one.head.conversation)


def _keep_newest(rows: dict[FollowUpId, FollowUp], found: FollowUp) -> None:
    """A process that died while it moved one leaves two plannings of it."""
    known = rows.get(found.follow_up_id)
    if known is None or known.plan.number < found.plan.number:
        rows[found.follow_up_id] = found


def _refuse_unreadable(head: Head) -> None:
    """What stands in for it has neither a plan nor a text; it may be any message, and may be a follow-up."""
    if head.is_stand_in:
        raise StateConflict("this version of Rise cannot read it: a newer one has written it, or it is damaged")


def _refuse_fired(plannings: list[_Planning]) -> None:
    if any(map(_has_fired, plannings)):
        raise StateConflict("the follow-up has fired")


def _has_fired(planning: _Planning) -> bool:
    return planning.run is not None and planning.run.status is Status.COMPLETED


def _ended(head: Head, run: Run) -> FollowUp:
    match run.status:
        case Status.COMPLETED:
            return _fired(head, run)
        case Status.EXPIRED:
            return _follow_up(head, FollowUpStatus.MISSED, why=run.why or "")
    return _follow_up(head, FollowUpStatus.CANCELLED, by=run.by or "", why=run.why or "")


def _fired(head: Head, run: Run) -> FollowUp:
    said = task_id_of(fired_key(run_id_of(run.task_id, run.generation)))
    return _follow_up(head, FollowUpStatus.FIRED, fired_task_id=said)


def _follow_up(head: Head, status: FollowUpStatus, **more: Any) -> FollowUp:
    return FollowUp(
        follow_up_id=id_of(head),
        status=status,
        channel=head.channel,
        account=head.account,
        chat_id=head.chat_id,
        text=head.user_text,
        workflow_id=head.workflow_id,
        plan=plan_of(head),
        created_at_ms=head.accepted_at_ms,
        **more,
    )


def _unknown() -> TaskUnknown:
    return TaskUnknown("there is no such follow-up, or it has been forgotten", field="followUpId")

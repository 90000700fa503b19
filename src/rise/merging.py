"""How a message ends that another has taken along, as one turn: with the other, or by itself, never both.

Promises: so it is, whoever is killed or frozen. Before its leader's result is saved, its own run has one that says whom
it goes with, and is not over by that: it ends when a result of its leader names it and is in the ledger, and is run
alone when its leader has come to one that does not. Until then it waits.

Refuses: to say which messages are taken along. That is `rise.bursts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rise.envelope import Head, Outcome, RunId, Task, TaskId, parts_of, run_id_of
from rise.ledger.port import Ledger, Run, RunResult
from rise.queue.port import Queue
from rise.telemetry import log


class MergedFate(StrEnum):
    """Of a message that another has taken along."""

    WAITS = "waits"
    """Nobody knows yet: somebody may still save a result of its leader that names it, even if they have lost their
    claim long ago; or there is one, and it may still be lost, because it waits for the ledger."""
    ANSWERED = "answered"
    """A result of its leader names it, and both are in the ledger."""
    ALONE = "alone"
    """Its leader has come to a result that does not name it."""


@dataclass(frozen=True, slots=True)
class Merging:
    """Ends what is taken along."""

    queue: Queue
    ledger: Ledger

    async def end_with(self, leader: TaskId, followers: Sequence[Task]) -> bool:
        """Before their leader's result is saved. False: one was ended otherwise meanwhile, and an answer that speaks of
        it must not be given."""
        for follower in followers:
            if not await self._has_ended_with(follower, leader):
                return False
            log.info("task.merged", task_id=follower.task_id, into=leader)
        return True

    async def _has_ended_with(self, follower: Task, leader: TaskId) -> bool:
        run = await self._end(follower, leader)
        if run.waits_for_ledger:
            # It may not be the first. That one the ledger knows; and what a person drops leaves the queue soon after.
            run = await self.ledger.run(follower.run_id) or run
            if run.waits_for_ledger and not follower.progress.status.is_finished:
                there = await self.queue.get(follower.task_id)
                if there is None or there.run_id != follower.run_id:
                    return False
        return run.merged_into == leader

    async def end_named(self, named: Sequence[RunId], leader: TaskId) -> bool:
        """Whom a result names has ended with it, even if what said so is lost: it may have waited in Redis, which was
        emptied. False: one of them is nowhere, and would be run alone if it is brought back."""
        are_ended = True
        for run_id in named:
            if await self.ledger.run(run_id) is None:
                task_id, generation = parts_of(run_id)
                follower = await self.queue.get(task_id)
                if follower is None:
                    are_ended = False
                else:
                    # It may have been run again since, or brought back as what it was before.
                    await self._end(follower.in_generation(generation), leader)
        return are_ended

    async def fate_of(self, run: Run) -> MergedFate:
        """Of a run that has been merged into another."""
        assert run.merged_into is not None
        # The queue first: what it forgets between the two looks is in the ledger.
        leader = await self.queue.get(run.merged_into)
        latest = await self.ledger.latest_run(run.merged_into)
        naming = await self._naming(run, leader, latest)
        if naming:
            # What may still be lost ends nothing: its message would be run again, without this one.
            is_firm = not run.waits_for_ledger and any(not result.waits_for_ledger for result in naming)
            return MergedFate.ANSWERED if is_firm else MergedFate.WAITS
        if leader is None or (latest is not None and _is_of(latest, leader)):
            # Run anew while its own end waits, it would lose that; and be run once more if Redis then lost it.
            return MergedFate.WAITS if run.waits_for_ledger else MergedFate.ALONE
        return MergedFate.WAITS

    async def _naming(self, run: Run, leader: Task | None, latest: Run | None) -> Sequence[Run]:
        """Results of its leader that name it: that one may have been run again since, whatever has become of that."""
        assert run.merged_into is not None
        generations = range(latest.generation + 1) if latest else ()
        results = [await self.ledger.run(run_id_of(run.merged_into, generation)) for generation in generations]
        naming = [result for result in results if result is not None and result.answers(run)]
        task = leader or (await self.ledger.archived(run.merged_into) if naming else None)
        # Not what a former message answered, whose key was used again: both its followers' keys and its own.
        return [result for result in naming if task is None or not result.is_of_former(task.head)]

    async def merged_before(self, leader: Head, generation: int) -> Sequence[TaskId]:
        """What it answered with itself when it was last answered, before this generation."""
        for former in reversed(range(generation)):
            run = await self.ledger.run(run_id_of(leader.task_id, former))
            if run is not None and run.merged and not run.is_of_former(leader):
                return run.merged
        return ()

    async def _end(self, follower: Task, leader: TaskId) -> Run:
        merged = RunResult(outcome=Outcome.MERGED, value={"mergedInto": leader})
        return await self.ledger.save_result(follower, merged, [], [], deliver=False)


def _is_of(run: Run, task: Task) -> bool:
    """Whether it says what the task, as it is now, has come to."""
    return run.generation >= task.progress.generation and not run.is_of_former(task.head)

"""The account is complete, accuses whom it must, and nobody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rise.channels.telegram import read_update
from rise.envelope import Call, Outcome, Reason, Status, TaskId, reply_id_of
from rise.errors import ChannelUnavailable
from rise.ledger.port import Reply, RunResult
from rise.queue.port import Finished, OpenTask, Replying, Selection, Suspend
from rise.runtime import audit as audit_module
from rise.runtime.assembly.house import House, build
from rise.runtime.audit import Audit, AuditReport, Fate, NoticeKind, receipt_of
from rise.runtime.operations import Operations
from rise.settings import load_settings
from rise.testing.clock import ManualClock

pytestmark = pytest.mark.req("OPS-2")

BOT = "7"
KEEP_SECONDS = 30 * 86400.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def house(tmp_path: Path, clock: ManualClock) -> AsyncIterator[House]:
    house = build(load_settings(data_dir=tmp_path / "data", _env_file=None), clock)
    await house.stores.open()
    yield house
    await house.stores.close()


def update(number: int, chat: int = 42) -> bytes:
    message = {"message_id": number, "date": 1_762_587_000, "chat": {"id": chat, "type": "private"}, "text": "Hi"}
    return json.dumps({"update_id": number, "message": message}).encode()


async def accept(house: House, *numbers: int) -> list[TaskId]:
    """Each in a chat of its own, so that all can be claimed at once."""
    accepted = []
    for number in numbers:
        read = read_update(update(number, chat=number), account=BOT, now=house.clock.now(), webhook=False)
        accepted.append((await house.intake.accept(read)).task_id)
    return accepted


async def finish(house: House, *task_ids: TaskId, outcome: Outcome = Outcome.SILENT) -> None:
    """As a worker does, whatever else it finds it hands back."""
    for claim in (await house.queue.claim("test", {"telegram": 1000}, takes_suspects=True)).claims:
        if claim.task.task_id in task_ids:
            await house.ledger.save_result(claim.task, RunResult(outcome=outcome), [], [], deliver=False)
            await house.queue.settle(claim, claim.task, Finished())
        else:
            await house.queue.settle(claim, claim.task, Suspend(Reason.LANE_BLOCKED))
    await house.queue.resume(Selection(reason=Reason.LANE_BLOCKED), limit=1000)


async def answer(house: House, task_id: TaskId) -> Reply:
    """The result is saved, its one reply still waits for the sender."""
    claims = (await house.queue.claim("test", {"telegram": 1000}, takes_suspects=True)).claims
    [claim] = [claim for claim in claims if claim.task.task_id == task_id]
    task = claim.task
    reply = Reply(
        reply_id=reply_id_of(task.run_id, 0),
        run_id=task.run_id,
        task_id=task_id,
        channel="telegram",
        account=BOT,
        chat_id=task.head.chat_id or "",
        call=Call("sendMessage", {"text": "Hello"}, "Hello"),
    )
    await house.ledger.save_result(task, RunResult(outcome=Outcome.ANSWERED), [reply], [], deliver=True)
    await house.queue.settle(claim, task, Replying())
    return reply


async def execute(house: House, sql: str, *values: object) -> None:
    await house.stores.database.write(lambda connection: connection.execute(sql, values).fetchall())


def audit_of(house: House, **changes: Any) -> Audit:
    audit = Audit(queue=house.queue, ledger=house.ledger, keep_finished_seconds=KEEP_SECONDS)
    return replace(audit, **changes)


async def audited(house: House, **changes: Any) -> AuditReport:
    return await audit_of(house, **changes).run()


def kinds(report: AuditReport) -> list[NoticeKind]:
    return [notice.kind for notice in report.notices]


# --- fates ------------------------------------------------------------------------------------------------


async def test_every_accepted_delivery_has_exactly_one_fate(house: House):
    done, expired, dropped, suspended, _ = await accept(house, 1, 2, 3, 4, 5)
    await accept(house, 1, 1, 4)
    await finish(house, done)
    too_late = await house.queue.get(expired)
    assert too_late is not None
    await house.ledger.finish(too_late, Status.EXPIRED)
    await house.queue.cancel(expired)
    await Operations(house.queue, house.ledger, house.bus, house.clock).drop(dropped, who="test", why="test")
    await execute(house, "UPDATE tasks SET status = 'suspended', reason = 'poison' WHERE task_id = ?", suspended)

    report = await audited(house)

    assert report.is_clean
    assert {fate: count for fate, count in report.fates.items() if count} == {
        Fate.DONE: 1,
        Fate.EXPIRED: 1,
        Fate.DROPPED: 1,
        Fate.SUSPENDED: 1,
        Fate.PENDING: 1,
    }
    assert report.receipts == sum(report.fates.values()) == 5
    assert report.repeats == 3
    assert not report.notices


async def test_an_empty_directory_is_accounted_for(house: House):
    report = await audited(house)
    assert report.is_clean
    assert report.receipts == 0


async def test_a_task_run_again_is_open_and_not_done(house: House):
    [task_id] = await accept(house, 1)
    await finish(house, task_id)
    await Operations(house.queue, house.ledger, house.bus, house.clock).run_again(task_id, who="test")
    report = await audited(house)
    assert report.fates[Fate.PENDING] == 1
    assert report.fates[Fate.DONE] == 0


# --- accusing ---------------------------------------------------------------------------------------------


@pytest.mark.failure("M5")
async def test_a_deleted_task_row_is_named(house: House):
    lost, kept = await accept(house, 1, 2)
    await execute(house, "DELETE FROM tasks WHERE task_id = ?", lost)

    report = await audited(house)

    assert not report.is_clean
    assert report.fates[Fate.UNACCOUNTED] == 1
    [missing] = report.unaccounted
    assert (missing.task_id, missing.delivery_key) == (lost, "tg:7:u:1")
    assert missing.detail == "neither an open task nor a finished run"
    assert kept not in {entry.task_id for entry in report.unaccounted}
    assert report.shown()["unaccountedTasks"][0]["taskId"] == lost


async def test_an_open_task_that_vanished_after_its_result_was_saved_is_named_too(house: House):
    [task_id] = await accept(house, 1)
    await answer(house, task_id)
    await execute(house, "DELETE FROM tasks WHERE task_id = ?", task_id)
    [missing] = (await audited(house)).unaccounted
    assert missing.detail == "its result is saved (run 0 is replying), but its open task is gone"


async def test_all_that_is_lost_is_counted_and_the_first_are_named(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_module, "LISTED_MAX", 2)
    await accept(house, *range(1, 6))
    await execute(house, "DELETE FROM tasks")
    report = await audited(house)
    assert report.fates[Fate.UNACCOUNTED] == 5
    assert len(report.unaccounted) == 2


class StaleOnce:
    """A queue whose first look at open tasks comes back empty: they were on the move."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._house.queue, name)

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> Sequence[OpenTask]:
        first, self._looked = not self._looked, True
        return [] if first else await self._house.queue.list_open(selection, limit=limit, after=after)


async def test_a_task_on_the_move_is_looked_for_again_before_anybody_is_accused(house: House):
    await accept(house, 1, 2)
    report = await audited(house, queue=StaleOnce(house))
    assert report.is_clean
    assert report.fates[Fate.PENDING] == 2


class FinishesBetweenLooks:
    """A queue whose tasks are finished by somebody right after it was looked at."""

    def __init__(self, house: House, task_id: TaskId) -> None:
        self._house = house
        self._task_id = task_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._house.queue, name)

    async def list_open(self, selection: Selection, *, limit: int, after: str = "") -> Sequence[OpenTask]:
        found = await self._house.queue.list_open(selection, limit=limit, after=after)
        await finish(self._house, self._task_id)
        return found


async def test_a_task_that_finishes_between_two_looks_is_accounted_for_and_not_noticed(house: House):
    [task_id] = await accept(house, 1)
    report = await audited(house, queue=FinishesBetweenLooks(house, task_id))
    assert report.is_clean
    assert report.fates[Fate.DONE] == 1
    assert not report.notices


async def test_what_was_forgotten_on_purpose_is_not_called_lost(house: House, clock: ManualClock):
    [task_id] = await accept(house, 1)
    await finish(house, task_id)
    clock.advance(5 * 86400)
    await house.ledger.purge(finished_before_ms=house.queue.now_ms())
    report = await audited(house, keep_finished_seconds=4 * 86400.0)
    assert report.is_clean
    assert report.fates[Fate.FORGOTTEN] == 1
    assert kinds(report) == [NoticeKind.FORGOTTEN]


@pytest.mark.failure("L1")
async def test_a_wall_clock_that_is_ahead_excuses_no_loss(house: House, clock: ManualClock):
    [lost] = await accept(house, 1)
    await execute(house, "DELETE FROM tasks WHERE task_id = ?", lost)
    clock.step_wall(31 * 86400)
    report = await audited(house)
    assert [loss.task_id for loss in report.unaccounted] == [lost]
    assert report.fates[Fate.FORGOTTEN] == 0


async def test_pages_of_any_size_give_the_same_account(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_module, "PAGE", 3)
    await accept(house, *range(95, 106))
    told: list[tuple[int, int]] = []
    report = await audit_of(house).run(lambda joined, total: told.append((joined, total)))
    assert report.receipts == 11
    assert report.is_clean
    assert not report.notices
    assert told == [(3, 11), (6, 11), (9, 11), (11, 11)]


# --- notices ----------------------------------------------------------------------------------------------


async def test_an_open_task_without_a_receipt_is_noticed(house: House):
    [task_id] = await accept(house, 1)
    await execute(house, "DELETE FROM receipts")
    report = await audited(house)
    assert report.is_clean
    assert [(notice.kind, notice.subject) for notice in report.notices] == [(NoticeKind.OPEN_WITHOUT_RECEIPT, task_id)]


async def test_a_task_older_than_its_receipt_is_in_order(house: House, clock: ManualClock):
    await accept(house, 1)
    clock.advance(80 * 3600)
    await house.queue.sweep()
    assert await receipt_of(house.queue, "tg:7:u:1") is None
    assert not (await audited(house)).notices


async def test_a_task_that_stays_open_after_its_run_has_ended_is_noticed(house: House):
    [task_id] = await accept(house, 1)
    await answer(house, task_id)
    task = await house.queue.get(task_id)
    assert task is not None
    await house.ledger.finish(task, Status.DROPPED)
    report = await audited(house)
    assert report.is_clean
    assert report.fates[Fate.DROPPED] == 1
    assert kinds(report) == [NoticeKind.OPEN_AFTER_END]


async def test_a_reply_that_stays_open_after_its_run_has_ended_is_noticed(house: House):
    [task_id] = await accept(house, 1)
    reply = await answer(house, task_id)
    await execute(house, "UPDATE runs SET status = 'completed', outcome = 'answered', finished_at = 1")
    await house.queue.finish(task_id, 0)
    report = await audited(house)
    assert report.is_clean
    assert [(notice.kind, notice.subject) for notice in report.notices] == [
        (NoticeKind.REPLY_AFTER_END, reply.reply_id)
    ]


async def test_a_reply_on_its_way_is_nothing_to_notice(house: House):
    [task_id] = await accept(house, 1)
    await answer(house, task_id)
    report = await audited(house)
    assert report.fates[Fate.PENDING] == 1
    assert not report.notices


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ((98, 99, 100, 103, 105), "3 update ids between others never came: 101-102, 104."),
        ((9, 11), "1 update ids between others never came: 10."),
        ((8, 9, 10, 11), None),
        ((5, 700_000_000), None),
    ],
    ids=["two gaps", "a gap where numbers grow longer", "no gap", "numbering began anew"],
)
async def test_gaps_in_a_bots_numbering_are_noticed(house: House, numbers: tuple[int, ...], missing: str | None):
    await accept(house, *numbers)
    report = await audited(house)
    assert report.is_clean
    details = [notice.detail for notice in report.notices if notice.kind is NoticeKind.UPDATE_ID_GAP]
    assert bool(details) == (missing is not None)
    if missing is not None:
        assert details[0].startswith(missing)


class Telegram:
    accounts = (BOT,)

    def __init__(self, waiting: int | None) -> None:
        self._waiting = waiting

    async def webhook_info(self, account: str) -> SimpleNamespace:
        if self._waiting is None:
            raise ChannelUnavailable("getWebhookInfo: ClientConnectorError")
        return SimpleNamespace(pending_update_count=self._waiting)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [(0, []), (3, [NoticeKind.UPDATES_WAITING]), (None, [NoticeKind.TELEGRAM_SILENT])],
    ids=["none", "some", "not to be reached"],
)
async def test_what_telegram_still_holds_is_a_notice_and_its_silence_is_not_fatal(
    house: House, waiting: int | None, expected: list[NoticeKind]
):
    report = await audited(house, telegram=Telegram(waiting))
    assert report.is_clean
    assert kinds(report) == expected


@pytest.mark.parametrize("key", ["tg:7:u:12", "tg:7:u:1", "tg:7:u:120", "http:a:b"])
async def test_a_receipt_is_found_by_its_key_among_neighbours(house: House, key: str):
    await accept(house, 1, 10, 11, 12, 120, 121, 13)
    found = await receipt_of(house.queue, key)
    assert (found.delivery_key if found else None) == (None if key.startswith("http") else key)

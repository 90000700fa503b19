"""A copy leaves the mirror when its task is finished, and is there at every instant until then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from copies_stage import Installation, Killed, Process, ids
from structlog.testing import capture_logs

from rise.copies import reaper as reaper_module
from rise.copies.reaper import HOLD_SECONDS, PARKED_LOOK_SECONDS, Reaper
from rise.errors import RabbitUnavailable, Unavailable
from rise.queue.port import NewTask
from rise.testing.fakes.mirror import StoredCopy


def reaper_of(process: Process) -> Reaper:
    assert process.keeper._reaper is not None
    return process.keeper._reaper


async def kept(process: Process, installation: Installation, *numbers: int) -> list[NewTask]:
    messages = [installation.message(number) for number in numbers]
    await process.keep(*messages)
    await process.asked()
    return messages


def copied(copy: StoredCopy) -> StoredCopy:
    """As who accepts the same message a second time keeps it."""
    return StoredCopy(copy.task_id, copy.body, is_parked=False, kept_at_ms=copy.kept_at_ms)


def held(installation: Installation) -> int:
    return sum(copy.taken is not None for copy in installation.mirror.copies)


def where(installation: Installation) -> tuple[int, int]:
    return installation.mirror.count(parked=False), installation.mirror.count(parked=True)


@pytest.mark.req("CPY-1")
@pytest.mark.failure("I1")
async def test_what_is_finished_leaves_and_what_is_not_waits(installation: Installation):
    process = await installation.process()
    await kept(process, installation, 1, 2, 3)
    reaper = reaper_of(process)
    await reaper.look()
    assert where(installation) == (3, 0)
    await installation.work(count=2)
    await reaper.look()
    assert where(installation) == (1, 0)
    installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    assert where(installation) == (0, 1)
    await installation.work()
    installation.clock.advance(PARKED_LOOK_SECONDS)
    await reaper.look()
    assert where(installation) == (0, 0)


@pytest.mark.req("CPY-1", "CPY-5")
@pytest.mark.failure("I3")
async def test_of_two_copies_one_leaves_wherever_they_wait_so_that_a_loss_shows(
    installation: Installation,
):
    process = await installation.process()
    await kept(process, installation, 1, 2)
    reaper, mirror = reaper_of(process), installation.mirror
    mirror.copies.append(copied(mirror.copies[0]))
    await reaper.look()
    assert where(installation) == (2, 0)
    installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    [first, _] = mirror.copies
    installation.clock.advance(PARKED_LOOK_SECONDS / 2)
    mirror.copies.append(copied(first))  # kept again, and not parked yet
    await reaper.look()
    installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    assert where(installation) == (0, 3)
    for _ in range(20):
        installation.clock.advance(PARKED_LOOK_SECONDS / 10)
        await reaper.look()
    assert where(installation) == (0, 2)
    assert len({copy.task_id for copy in mirror.copies}) == 2


@pytest.mark.req("CPY-1")
async def test_a_parked_copy_is_looked_at_each_ten_minutes(installation: Installation):
    process = await installation.process()
    await kept(process, installation, 1)
    reaper, link = reaper_of(process), process.ledger.link
    installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    looks = []
    for _ in range(40):
        installation.clock.advance(60)
        before = link.calls["finished_among"]
        await reaper.look()
        looks.append(link.calls["finished_among"] - before)
    assert 3 <= sum(map(bool, looks)) <= 4
    assert where(installation) == (0, 1)


@pytest.mark.failure("I2", "L1")
@pytest.mark.parametrize("step_seconds", [-86_400, 86_400])
async def test_a_wall_clock_that_is_set_holds_no_copy_back(installation: Installation, step_seconds: int):
    process = await installation.process()
    reaper = reaper_of(process)
    await reaper.look()
    await kept(process, installation, 1, 2)
    installation.clock.step_wall(step_seconds)
    await reaper.look()
    installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    assert where(installation) == (0, 2)
    installation.clock.step_wall(-step_seconds)
    await installation.work()
    installation.clock.advance(2 * PARKED_LOOK_SECONDS)
    await reaper.look()
    assert where(installation) == (0, 0)


@pytest.mark.req("CPY-1")
@pytest.mark.failure("I9")
async def test_a_full_window_is_made_room_in_and_all_are_seen_in_one_round(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reaper_module, "WINDOW", 4)
    process = await installation.process()
    await kept(process, installation, *range(30))
    await reaper_of(process).look()
    fresh, parked = where(installation)
    assert (fresh + parked, fresh <= 4) == (30, True)
    await installation.work(count=20)
    installation.clock.advance(PARKED_LOOK_SECONDS)
    await reaper_of(process).look()
    assert sum(where(installation)) == 10


@pytest.mark.req("CPY-4")
async def test_a_young_copy_is_parked_and_not_brought_to_a_queue_that_is_just_taking_it(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reaper_module, "WINDOW", 2)
    process = await installation.process()
    process.queue.link.stall()
    await process.keep(installation.message(1), installation.message(2), installation.message(3))
    other = await installation.process()
    await reaper_of(other).look()
    assert where(installation)[1] == 2
    assert installation.in_queue() == set()
    process.queue.link.open.set()
    await process.asked()
    assert installation.queue.duplicates == 0


@pytest.mark.failure("I4", "I5")
@pytest.mark.parametrize("is_parked", [False, True])
async def test_without_the_ledger_nothing_leaves_and_nothing_is_held(installation: Installation, is_parked: bool):
    process = await installation.process()
    await kept(process, installation, 1, 2)
    reaper = reaper_of(process)
    if is_parked:
        installation.clock.advance(HOLD_SECONDS)
    await reaper.look()
    await installation.work()
    installation.clock.advance(PARKED_LOOK_SECONDS)
    process.ledger.link.is_down = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await reaper.look()
        assert sum(where(installation)) == 2
        assert held(installation) == 0
    process.ledger.link.is_down = False
    await reaper.look()
    assert sum(where(installation)) == 0


@pytest.mark.failure("B14")
async def test_what_cannot_be_read_is_parked_said_and_never_lost(installation: Installation):
    process = await installation.process()
    assert process.mirror is not None
    await process.mirror.keep(installation.message(1).head.task_id, b"of another version")
    with capture_logs() as logs:
        for _ in range(3):
            installation.clock.advance(PARKED_LOOK_SECONDS)
            await reaper_of(process).look()
    assert any(each["event"] == "mirror.unreadable" for each in logs)
    assert [copy.body for copy in installation.mirror.copies] == [b"of another version"]
    await reaper_of(process).look_through()
    assert [copy.body for copy in installation.mirror.copies] == [b"of another version"]


@pytest.mark.req("CPY-7")
@pytest.mark.failure("I1", "I3")
async def test_a_death_between_putting_back_and_letting_go_makes_two_copies_and_one_execution(
    installation: Installation,
):
    process = await installation.process()
    [message] = await kept(process, installation, 1)
    installation.clock.advance(HOLD_SECONDS)

    def half_parked() -> None:
        # The new copy is confirmed, and that is where the process ends.
        installation.mirror.add(
            StoredCopy(message.head.task_id, installation.mirror.copies[0].body, True, installation.now_ms())
        )
        raise Killed

    assert process.mirror is not None
    process.mirror.link.before["park"] = half_parked
    with pytest.raises(Killed):
        await reaper_of(process).look()
    await process.die()
    assert where(installation) == (1, 1)
    heir = await installation.process()
    installation.queue.empty()
    await heir.keeper.refill()
    assert await installation.work() == [1]
    assert installation.runs == {f"{message.head.task_id}.0": 1}
    installation.clock.advance(PARKED_LOOK_SECONDS)
    await reaper_of(heir).look()
    assert where(installation) == (0, 0)


@pytest.mark.failure("I1", "I2", "I4")
@pytest.mark.parametrize("store", ["ledger", "mirror", "queue"])
async def test_killed_at_any_step_a_copy_of_what_is_open_is_there(installation: Installation, store: str):
    link_of: dict[str, Callable[[Process], object]] = {
        "ledger": lambda process: process.ledger,
        "mirror": lambda process: process.mirror,
        "queue": lambda process: process.queue,
    }
    process = await installation.process()
    messages = await kept(process, installation, *range(6))
    await installation.work(count=2)
    for step in range(12):
        installation.clock.advance(PARKED_LOOK_SECONDS)
        looking = await installation.process()
        link_of[store](looking).link.dies_before_call = step  # type: ignore[attr-defined]
        try:
            await reaper_of(looking).look()
        except Killed:
            pass
        await looking.die()
        assert set(installation.in_mirror()) >= ids(messages[2:])
        assert held(installation) == 0
    await installation.work()
    installation.clock.advance(PARKED_LOOK_SECONDS)
    await reaper_of(process).look()
    assert where(installation) == (0, 0)


@pytest.mark.req("CPY-7")
async def test_what_only_the_mirror_has_comes_to_the_queue(installation: Installation):
    process = await installation.process()
    process.journals._own = None
    [message] = await kept(process, installation, 1)
    del installation.queue.tasks[message.head.task_id]
    installation.clock.advance(HOLD_SECONDS)
    process.queue.link.refuses.add("restore")
    await reaper_of(process).look()
    assert where(installation) == (0, 1), "a queue that is away keeps no copy from being resolved"
    process.queue.link.refuses.clear()
    installation.clock.advance(PARKED_LOOK_SECONDS)
    await reaper_of(process).look()
    assert await installation.work() == [1]


@pytest.mark.failure("I6", "I10")
@pytest.mark.parametrize("away", ["queue", "ledger"])
async def test_to_look_through_is_not_over_while_one_could_not_be_brought(installation: Installation, away: str):
    process = await installation.process()
    messages = await kept(process, installation, 1, 2)
    installation.queue.empty()
    link = process.queue.link if away == "queue" else process.ledger.link
    link.is_down = True
    with pytest.raises(Unavailable):
        await reaper_of(process).look_through()
    assert held(installation) == 0
    link.is_down = False
    assert await reaper_of(process).look_through() == 2
    assert installation.in_queue() == ids(messages)


@pytest.mark.failure("I6", "I7")
async def test_to_look_through_is_not_over_while_somebody_else_looks(installation: Installation):
    process, other = await installation.process(), await installation.process()
    await kept(process, installation, 1)
    await reaper_of(other).look()
    installation.mirror.copies[0].taken = None  # counted, and handed out to nobody here
    with pytest.raises(RabbitUnavailable):
        await reaper_of(process).look_through()
    await reaper_of(other).let_go()
    await reaper_of(process).look_through()
    assert where(installation) == (0, 1)

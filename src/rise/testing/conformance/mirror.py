"""What every mirror promises, executable.

class TestMyMirror(MirrorConformance):
    @pytest.fixture
    async def stage(self, tmp_path): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import pytest

from rise.clock import SystemClock, epoch_ms
from rise.copies.port import Look, Mirror, MirrorDepth
from rise.copies.record import encode_task
from rise.envelope import TaskId
from rise.testing.conformance.queue import delivery

PATIENCE_SECONDS = 20
"""Until a test gives up; nothing here waits that long when it works."""
NOTHING_SECONDS = 0.1
"""After so long without any copy there is none. Where one is due, a test waits with patience."""


class MirrorStage(Protocol):
    async def mirror(self) -> Mirror:
        """One more process of the same installation, started."""
        ...

    async def kill(self, mirror: Mirror) -> None:
        """Its process is killed."""
        ...


def record(number: int, raw: bytes = b"{}") -> bytes:
    return encode_task(delivery(number, raw=raw))


def task_id(number: int) -> TaskId:
    return delivery(number).head.task_id


async def keep(mirror: Mirror, *numbers: int) -> None:
    for number in numbers:
        await mirror.keep(task_id(number), record(number))


async def take(mirror: Mirror, count: int, *, parked: bool = False) -> list[Look]:
    """So many, however often one must ask."""
    looks: list[Look] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(looks) < count:
            looks += await mirror.take(count - len(looks), seconds=PATIENCE_SECONDS, parked=parked)
    return looks


def kept(looks: Sequence[Look]) -> list[TaskId]:
    assert all(look.task is not None for look in looks)
    return [look.task.head.task_id for look in looks if look.task is not None]


async def nothing(mirror: Mirror, *, parked: bool = False) -> bool:
    return await mirror.take(10, seconds=NOTHING_SECONDS, parked=parked) == []


async def until_depth(mirror: Mirror, *, fresh: int, parked: int) -> None:
    """A broker may count a moment later."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await mirror.depth() != MirrorDepth(fresh=fresh, parked=parked, dead=0):
            await SystemClock().sleep(0)


class MirrorConformance:
    """Every promise of `rise.copies.port.Mirror`."""

    @pytest.fixture
    async def stage(self) -> MirrorStage:
        raise NotImplementedError("a backend's suite says how to make one")

    @pytest.fixture
    async def mirror(self, stage: MirrorStage) -> Mirror:
        return await stage.mirror()

    # --- keeping ---

    async def test_what_is_kept_is_handed_out_as_it_was(self, mirror: Mirror) -> None:
        before_ms = epoch_ms(SystemClock().now())
        await mirror.keep(task_id(1), record(1, raw=b'{"text": "\\ud800"}'))
        [look] = await take(mirror, 1)
        assert look.task == delivery(1, raw=b'{"text": "\\ud800"}')
        assert look.body == record(1, raw=b'{"text": "\\ud800"}')
        assert not look.is_parked
        assert before_ms <= look.kept_at_ms <= epoch_ms(SystemClock().now())

    async def test_another_process_finds_what_one_has_kept(self, stage: MirrorStage, mirror: Mirror) -> None:
        await keep(mirror, 1, 2)
        await stage.kill(mirror)
        assert kept(await take(await stage.mirror(), 2)) == [task_id(1), task_id(2)]

    @pytest.mark.failure("C26", "B12")
    async def test_the_largest_record_comes_back_whole(self, mirror: Mirror) -> None:
        body = record(1, raw=bytes(range(256)) * 4096)
        await mirror.keep(task_id(1), body)
        [look] = await take(mirror, 1)
        assert look.body == body

    async def test_a_thousand_at_once_are_all_kept(self, mirror: Mirror) -> None:
        await asyncio.gather(*(mirror.keep(task_id(n), record(n)) for n in range(1000)))
        await until_depth(mirror, fresh=1000, parked=0)
        found: set[TaskId] = set()
        while len(found) < 1000:
            looks = await mirror.take(300, seconds=PATIENCE_SECONDS, parked=False)
            found |= set(kept(looks))
            await mirror.forget(looks)
        assert found == {task_id(n) for n in range(1000)}
        await until_depth(mirror, fresh=0, parked=0)

    @pytest.mark.failure("C29", "C30")
    async def test_the_same_task_may_be_kept_again(self, mirror: Mirror) -> None:
        await keep(mirror, 1, 1)
        looks = await take(mirror, 2)
        assert kept(looks) == [task_id(1), task_id(1)]
        await mirror.forget(looks)
        await until_depth(mirror, fresh=0, parked=0)

    # --- taking ---

    async def test_the_oldest_come_first_and_no_more_than_asked_for(self, mirror: Mirror) -> None:
        await keep(mirror, 1, 2, 3)
        assert kept(await take(mirror, 2)) == [task_id(1), task_id(2)]
        assert kept(await mirror.take(2, seconds=PATIENCE_SECONDS, parked=False)) == [task_id(3)]
        assert await nothing(mirror)

    @pytest.mark.parametrize("parked", [False, True])
    async def test_where_there_is_none_one_waits_and_gets_none(self, mirror: Mirror, parked: bool) -> None:
        assert await nothing(mirror, parked=parked)

    async def test_whoever_waits_gets_what_is_kept_meanwhile(self, mirror: Mirror) -> None:
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(mirror.take(5, seconds=PATIENCE_SECONDS, parked=False))
            await keep(mirror, 1)
        assert kept(looking.result()) == [task_id(1)]

    @pytest.mark.failure("B14")
    async def test_what_cannot_be_read_is_handed_out_and_parked_as_bytes(self, mirror: Mirror) -> None:
        await mirror.keep(task_id(1), b"of another version")
        looks = await take(mirror, 1)
        assert (looks[0].task, looks[0].body) == (None, b"of another version")
        await mirror.park(looks)
        [look] = await take(mirror, 1, parked=True)
        assert (look.task, look.body) == (None, b"of another version")

    # --- resolving ---

    async def test_what_is_forgotten_is_gone(self, stage: MirrorStage, mirror: Mirror) -> None:
        await keep(mirror, 1, 2)
        first, second = await take(mirror, 2)
        await mirror.forget([first])
        await mirror.forget([first])
        await mirror.give_back([second])
        await stage.kill(mirror)
        other = await stage.mirror()
        assert kept(await take(other, 1)) == [task_id(2)]
        await until_depth(other, fresh=1, parked=0)

    async def test_what_is_put_back_to_wait_is_parked_behind_the_parked(self, mirror: Mirror) -> None:
        await keep(mirror, 1, 2, 3)
        await mirror.park(await take(mirror, 2))
        await mirror.park(await take(mirror, 1))
        await until_depth(mirror, fresh=0, parked=3)
        looks = await take(mirror, 3, parked=True)
        assert all(look.is_parked for look in looks)
        assert kept(looks) == [task_id(1), task_id(2), task_id(3)]
        await mirror.park(looks[:1])
        await mirror.give_back(looks[1:])
        await until_depth(mirror, fresh=0, parked=3)
        again = await take(mirror, 3, parked=True)
        assert kept(again) == [task_id(2), task_id(3), task_id(1)]
        assert again[2].kept_at_ms >= looks[2].kept_at_ms
        await mirror.forget(again)
        await until_depth(mirror, fresh=0, parked=0)

    async def test_parked_and_fresh_do_not_mix(self, mirror: Mirror) -> None:
        await keep(mirror, 1)
        assert await nothing(mirror, parked=True)
        await mirror.park(await take(mirror, 1))
        assert await nothing(mirror)
        assert kept(await take(mirror, 1, parked=True)) == [task_id(1)]

    @pytest.mark.parametrize("parked", [False, True])
    async def test_what_is_given_back_was_never_taken(self, mirror: Mirror, parked: bool) -> None:
        await keep(mirror, 1, 2, 3)
        if parked:
            await mirror.park(await take(mirror, 3))
        looks = await take(mirror, 3, parked=parked)
        await mirror.give_back(looks[:2])
        await mirror.give_back(looks[2:])
        again = await take(mirror, 3, parked=parked)
        assert kept(again) == kept(looks)
        assert [look.kept_at_ms for look in again] == [look.kept_at_ms for look in looks]

    async def test_nothing_may_be_resolved(self, mirror: Mirror) -> None:
        await mirror.forget([])
        await mirror.park([])
        await mirror.give_back([])
        await until_depth(mirror, fresh=0, parked=0)

    # --- several processes ---

    @pytest.mark.parametrize("parked", [False, True])
    async def test_one_process_looks_at_a_time(self, stage: MirrorStage, mirror: Mirror, parked: bool) -> None:
        await keep(mirror, 1, 2)
        if parked:
            await mirror.park(await take(mirror, 2))
        other = await stage.mirror()
        looks = await take(mirror, 1, parked=parked)
        assert await nothing(other, parked=parked)
        rest = await take(mirror, 1, parked=parked)
        await mirror.give_back(looks + rest)
        await stage.kill(mirror)
        assert kept(await take(other, 2, parked=parked)) == [task_id(1), task_id(2)]

    @pytest.mark.failure("I1")
    @pytest.mark.parametrize("parked", [False, True])
    async def test_whoever_lets_go_gives_back_everything_and_another_may_look(
        self, stage: MirrorStage, mirror: Mirror, parked: bool
    ) -> None:
        await keep(mirror, 1, 2)
        if parked:
            await mirror.park(await take(mirror, 2))
        other = await stage.mirror()
        await mirror.let_go()
        await take(mirror, 1, parked=parked)
        await mirror.let_go()
        await mirror.let_go()
        looks = await take(other, 2, parked=parked)
        assert kept(looks) == [task_id(1), task_id(2)]
        await other.forget(looks)
        assert await nothing(other, parked=parked)
        await other.let_go()
        await keep(other, 3)
        assert kept(await take(mirror, 1)) == [task_id(3)], "who had nothing in hand has let go, too"

    @pytest.mark.parametrize("parked", [False, True])
    async def test_a_process_that_dies_gives_back_what_it_has_taken(
        self, stage: MirrorStage, mirror: Mirror, parked: bool
    ) -> None:
        await keep(mirror, 1, 2)
        if parked:
            await mirror.park(await take(mirror, 2))
        await take(mirror, 2, parked=parked)
        other = await stage.mirror()
        assert await nothing(other, parked=parked)
        await stage.kill(mirror)
        assert kept(await take(other, 2, parked=parked)) == [task_id(1), task_id(2)]
        await until_depth(other, fresh=0 if parked else 2, parked=2 if parked else 0)

"""What the nemesis does, one by one: it takes hold, it is undone, and it touches nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rise.testing.faults.disk import Disk, DiskRefused, give_back_quota, use_up_quota
from rise.testing.faults.nemesis import frozen
from rise.testing.faults.wall_clock import WallClock
from rise.testing.installation import Installation
from rise.testing.waiting import eventually

pytestmark = pytest.mark.req("TST-4")

PATIENCE_SECONDS = 30
BOT = "rise.testing.faults.bot"

WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(line.strip(), "ab", buffering=0) as file:
            file.write(b"x")
        print("written", flush=True)
    except OSError as error:
        print(type(error).__name__, error.errno, flush=True)
"""
CLOCK = """
import sys
from rise.clock import SystemClock
for line in sys.stdin:
    print(SystemClock().now().isoformat(), flush=True)
"""


class Child:
    """A process that answers each line with one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    async def ask(self, line: object = "") -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self._process.stdout.readline()).decode().strip()


@asynccontextmanager
async def child(program: str, **surroundings: str) -> AsyncIterator[Child]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdin=pipe, stdout=pipe, env=os.environ | surroundings
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        await process.wait()


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def until_it_stands_still(pid: int) -> None:
    """The kernel stops it when it next gets to it, and tells nobody but its parent."""
    await eventually(lambda: stands_still(pid), seconds=PATIENCE_SECONDS)


# --- processes --------------------------------------------------------------------------------------------


async def test_what_is_frozen_stands_still_for_the_length_of_the_block():
    async with child(CLOCK) as process:
        assert await process.ask()
        assert not stands_still(process.pid)
        with frozen([process.pid]) as count:
            assert count == 1
            await until_it_stands_still(process.pid)
        assert await process.ask()


async def test_a_process_that_has_ended_is_frozen_no_more():
    async with child(CLOCK) as process:
        assert await process.ask()
    with frozen([process.pid]) as count:
        assert count == 0


@pytest.mark.slow
async def test_a_killed_gateway_is_gone_before_its_worker_is_and_can_be_started_at_once(tmp_path: Path):
    """What happens when a service manager is quick: the old worker still works while the new gateway starts."""
    async with Installation(tmp_path / "data", app=BOT, stop_seconds=PATIENCE_SECONDS) as rise:
        [orphan] = rise.worker_pids()
        with frozen([orphan]):
            await until_it_stands_still(orphan)
            await rise.kill(worker=False)
            assert rise.pid is None
            assert stands_still(orphan)
            await rise.start()
            assert rise.pid is not None
            assert orphan not in rise.worker_pids()


@pytest.mark.slow
async def test_an_added_worker_is_of_the_installation_and_ends_with_it(tmp_path: Path):
    async with Installation(tmp_path / "data", app=BOT) as rise:
        assert rise.added_pids() == []
        await rise.add_worker()
        [added] = rise.added_pids()
        assert rise.pids()[0] == rise.pid
        assert added in rise.pids()
        await rise.kill(gateway=False, worker=False, added=True)
        assert rise.added_pids() == []
        assert rise.pid is not None
        await rise.add_worker()
        [added] = rise.added_pids()
    assert not Path(f"/proc/{added}").exists()


# --- the disk ---------------------------------------------------------------------------------------------


async def test_without_quota_nothing_can_be_written_until_it_is_given_back(tmp_path: Path):
    async with child(WRITER) as writer, child(WRITER) as neighbour:
        assert await writer.ask(tmp_path / "file") == "written"
        use_up_quota([writer.pid])
        assert await writer.ask(tmp_path / "file") == "OSError 27"
        assert await neighbour.ask(tmp_path / "another") == "written"
        give_back_quota([writer.pid])
        assert await writer.ask(tmp_path / "file") == "written"


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    try:
        async with Disk(tmp_path) as disk:
            yield disk
    except DiskRefused as error:
        pytest.skip(f"no disk can be made here: {error}")


async def test_a_full_disk_takes_no_block_more_until_it_is_freed(disk: Disk):
    async with child(WRITER) as writer:
        assert await writer.ask(disk.where / "before") == "written"
        disk.fill()
        assert await writer.ask(disk.where / "while") == "OSError 28"
        disk.free()
        assert await writer.ask(disk.where / "after") == "written"


async def test_a_disk_that_failed_is_read_only_until_it_is_mended(disk: Disk):
    async with child(WRITER) as writer:
        assert await writer.ask(disk.where / "before") == "written"
        await disk.fail()
        assert await writer.ask(disk.where / "while") == "OSError 30"
        await disk.mend()
        assert await writer.ask(disk.where / "after") == "written"


# --- the wall clock ---------------------------------------------------------------------------------------


@pytest.mark.failure("L1")
async def test_a_stepped_wall_clock_is_what_running_processes_read_until_it_is_set_right(tmp_path: Path):
    wall_clock = WallClock(tmp_path / "wall-clock")
    async with child(CLOCK, **wall_clock.surroundings) as process:
        assert await error_of(process) < timedelta(minutes=1)
        wall_clock.step(-86400)
        assert timedelta(days=-1, minutes=-1) < await error_of(process) < timedelta(days=-1, minutes=1)
        wall_clock.step(0)
        assert await error_of(process) > timedelta(minutes=-1)


async def error_of(process: Child) -> timedelta:
    return datetime.fromisoformat(await process.ask()) - datetime.now(UTC)

"""The bus of one host keeps every promise of the port, between real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.clock import SystemClock
from rise.testing.conformance.bus import BusConformance, Heard

CHILD = """
import asyncio, os, sys, time
from pathlib import Path
from rise.bus.local import LocalBus
from rise.clock import SystemClock
from rise.bus.port import Topic

async def main():
    bus = LocalBus(Path(sys.argv[1]), SystemClock())
    bus.subscribe(Topic.TASK_SETTLED, lambda payload: bus.publish(Topic.RUN_ENDED, {"echo": dict(payload)}))
    await bus.start()
    print(bus.member, flush=True)
    word = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if word == "fork\\n":
        child = os.fork()
        if child == 0:
            os.close(0), os.close(1)
            time.sleep(20)
        print(child, flush=True)
        time.sleep(60)
    await bus.stop()

asyncio.run(main())
"""


class LocalStage:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members: list[LocalBus] = []
        self.processes: list[asyncio.subprocess.Process] = []

    async def member(self) -> LocalBus:
        bus = LocalBus(self.directory, SystemClock())
        await bus.start()
        self.members.append(bus)
        return bus

    async def process(self) -> tuple[asyncio.subprocess.Process, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(self.directory), stdin=-1, stdout=-1
        )
        self.processes.append(process)
        return process, (await process.stdout.readline()).decode().strip()

    async def killed_member(self) -> str:
        process, member = await self.process()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        return member

    async def flood(self, sender: LocalBus) -> None:
        for number in range(5000):
            sender.publish(Topic.TASK_SETTLED, {"n": number})

    async def end(self) -> None:
        for bus in self.members:
            await bus.stop()
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process.stdin.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStage]:
    stage = LocalStage(tmp_path / "bus")
    yield stage
    await stage.end()


@pytest.mark.req("TST-3", "EMB-2")
class TestLocalBus(BusConformance):
    @pytest.fixture
    def stage(self, local: LocalStage) -> LocalStage:
        return local


async def test_two_processes_hear_each_other(local: LocalStage):
    bus, heard = await local.member(), Heard()
    bus.subscribe(Topic.RUN_ENDED, heard)
    await local.process()
    bus.publish(Topic.TASK_SETTLED, {"task_id": "t_1"})
    await heard.until({"echo": {"task_id": "t_1"}})


async def test_a_process_that_ends_leaves_nothing_behind(local: LocalStage):
    process, member = await local.process()
    assert {path.name for path in local.directory.iterdir()} == {f"{member}.lock", f"{member}.sock"}
    process.stdin.write(b"end\n")
    await process.wait()
    assert list(local.directory.iterdir()) == []


@pytest.mark.failure("D2")
async def test_a_stopped_process_is_not_taken_for_dead(local: LocalStage):
    """Not even one that has not run for any length of time: its claims are left to lapse."""
    bus = await local.member()
    process, _ = await local.process()
    process.send_signal(signal.SIGSTOP)
    assert bus.dead_members() == []
    bus.publish(Topic.TASK_SETTLED, {"n": 1})
    process.send_signal(signal.SIGKILL)


@pytest.mark.failure("L10")
async def test_what_a_process_has_forked_does_not_hide_its_death(local: LocalStage):
    bus = await local.member()
    process, _ = await local.process()
    process.stdin.write(b"fork\n")
    forked = int(await process.stdout.readline())
    try:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert len(bus.dead_members()) == 1
    finally:
        os.kill(forked, signal.SIGKILL)


@pytest.mark.failure("L9")
async def test_a_bus_that_cannot_remove_its_files_stops_all_the_same(
    local: LocalStage, monkeypatch: pytest.MonkeyPatch
):
    def refuses(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    leaves, stays = await local.member(), await local.member()
    monkeypatch.setattr(Path, "unlink", refuses)
    await leaves.stop()
    assert stays.dead_members() == [leaves.member]
    monkeypatch.undo()


async def test_what_does_not_come_from_a_member_is_ignored(local: LocalStage, monkeypatch: pytest.MonkeyPatch):
    bus, heard = await local.member(), Heard()
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    bus.subscribe(Topic.TASK_SETTLED, heard)
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.chdir(local.directory)  # a socket address has no room for a long path
    for datagram in (
        b"",
        b"\xff\xfe",
        b"[]",
        b'["a topic of tomorrow",{}]',
        b'["task.settled",7]',
        b'["task.settled",{"a":"\xff"}]',
        b'["task.settled",{"a":' + b"[" * 4000,
    ):
        stranger.sendto(datagram, f"{bus.member}.sock")
    stranger.sendto(b'["task.settled",{"n":1}]', f"{bus.member}.sock")
    stranger.close()
    await heard.until({"n": 1})
    assert heard.payloads == [{"n": 1}]
    assert broken == []


async def test_a_directory_may_have_a_long_name(tmp_path: Path):
    stage = LocalStage(tmp_path / ("x" * 120) / ("y" * 120))
    one, other = await stage.member(), await stage.member()
    heard = Heard()
    other.subscribe(Topic.TASK_SETTLED, heard)
    one.publish(Topic.TASK_SETTLED, {"n": 1})
    await heard.until({"n": 1})
    await stage.end()

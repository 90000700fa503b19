"""The bus of several hosts keeps every promise of the port, over a real Redis that goes and comes back."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from structlog.testing import capture_logs
from test_local_bus import CHILD

from rise.bus import redis as redis_bus
from rise.bus.local import LocalBus
from rise.bus.port import Topic
from rise.bus.redis import RedisBus
from rise.clock import SystemClock
from rise.connections.redis import RedisDatabase
from rise.testing.conformance.bus import PATIENCE_SECONDS, BusConformance, Heard
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.servers import RedisServer
from rise.testing.waiting import eventually

UPDATED = Topic.DEFINITIONS_CHANGED
CHANNEL = "{rise}:events:0:channel_binding.updated"


def change(version: int, workflow: str = "wf_a") -> dict[str, Any]:
    return {"channel": "telegram", "workflowId": workflow, "bindingVersion": version}


class RedisStage:
    """Hosts are directories; a Redis is all that they share."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.members: list[RedisBus] = []
        self.databases: list[RedisDatabase] = []

    async def on_host(self, host: str, url: str = "", *, listens: bool = True, **how: Any) -> RedisBus:
        clock = SystemClock()
        database = RedisDatabase(url or self.url, clock=clock)
        self.databases.append(database)
        bus = RedisBus(LocalBus(self.directory / host, clock), database, clock, **how)
        await bus.start()
        self.members.append(bus)
        if listens:
            await eventually(lambda: bus.is_listening)
        return bus

    async def end(self) -> None:
        for bus in self.members:
            await bus.stop()
        for database in self.databases:
            await database.close()


class OneHost(RedisStage):
    """Everything is on one host, so that all hear at once, and who is dead is known."""

    async def member(self) -> RedisBus:
        return await self.on_host("host", carried=Topic)

    async def killed_member(self) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(self.directory / "host"), stdin=-1, stdout=-1
        )
        assert process.stdout is not None and process.stdin is not None
        member = (await process.stdout.readline()).decode().strip()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        process.stdin.close()
        return member

    async def flood(self, sender: RedisBus) -> None:
        for number in range(5000):
            sender.publish(Topic.TASK_SETTLED, {"n": number})


class ManyHosts(OneHost):
    """Each on its own: whatever is heard has come over Redis."""

    async def member(self) -> RedisBus:
        return await self.on_host(f"host-{len(self.members)}", carried=Topic)


async def is_through(bus: RedisBus) -> bool:
    return not await bus.has_queued()


@pytest.fixture
async def hosts(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[RedisStage]:
    stage = RedisStage(tmp_path, redis_server.url)
    yield stage
    await stage.end()


@pytest.mark.req("TST-3", "EMB-2")
class TestRedisBusOnOneHost(BusConformance):
    @pytest.fixture
    async def stage(self, tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[OneHost]:
        stage = OneHost(tmp_path, redis_server.url)
        yield stage
        await stage.end()


@pytest.mark.req("TST-3", "EMB-3")
class TestRedisBusBetweenHosts(BusConformance):
    @pytest.fixture
    async def stage(self, tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[ManyHosts]:
        stage = ManyHosts(tmp_path, redis_server.url)
        yield stage
        await stage.end()

    async def test_a_killed_process_is_known_to_be_dead_until_it_is_buried(self, stage: ManyHosts) -> None:
        """On its own host only: elsewhere its claims are left to lapse."""
        one = await stage.member()
        await stage.killed_member()
        assert one.dead_members() == []


@pytest.mark.req("BND-5")
async def test_what_matters_on_all_hosts_is_heard_there_once_and_the_rest_stays(hosts: RedisStage):
    one, beside, far = await hosts.on_host("a"), await hosts.on_host("a"), await hosts.on_host("b")
    heard = {bus.member: Heard() for bus in (one, beside, far)}
    for bus in (one, beside, far):
        bus.subscribe(UPDATED, heard[bus.member])
        bus.subscribe(Topic.TASK_SETTLED, heard[bus.member])
    one.publish(Topic.TASK_SETTLED, {"task_id": "t_1"})
    for version in (1, 2):
        one.publish(UPDATED, change(version, f"wf_{version}"))
        for listener in heard.values():
            await listener.until(change(version, f"wf_{version}"))
    changes = [change(1, "wf_1"), change(2, "wf_2")]
    assert heard[far.member].payloads == changes
    assert heard[one.member].payloads == heard[beside.member].payloads == [{"task_id": "t_1"}, *changes]


@pytest.mark.req("BND-5")
async def test_others_read_it_under_its_name_in_its_words(hosts: RedisStage, redis_server: RedisServer):
    bus = await hosts.on_host("a")
    async with redis.asyncio.from_url(redis_server.url) as client, client.pubsub() as others:
        await others.subscribe(CHANNEL)
        await others.get_message(timeout=PATIENCE_SECONDS)
        bus.publish(UPDATED, change(7))
        said = await others.get_message(ignore_subscribe_messages=True, timeout=PATIENCE_SECONDS)
    assert json.loads(said["data"]) == {**change(7), "_member": bus.member}


async def test_an_installation_in_another_database_of_the_server_hears_nothing(
    hosts: RedisStage, redis_server: RedisServer
):
    one, same = await hosts.on_host("a"), await hosts.on_host("b")
    other = await hosts.on_host("c", redis_server.url.removesuffix("/0") + "/1")
    here, elsewhere = Heard(), Heard()
    same.subscribe(UPDATED, here)
    other.subscribe(UPDATED, elsewhere)
    one.publish(UPDATED, change(1))
    await here.until(change(1))
    other.publish(UPDATED, change(2))
    await elsewhere.until(change(2))
    assert elsewhere.payloads == [change(2)]


async def test_what_does_not_come_from_a_member_is_ignored(hosts: RedisStage, redis_server: RedisServer):
    one, other = await hosts.on_host("a"), await hosts.on_host("b")
    heard = Heard()
    other.subscribe(UPDATED, heard)
    for message in (b"", b"\xff", b"[]", b"7", b'{"a":' * 4000, b'{"a":"\xff"}'):
        redis_server.ask("PUBLISH", CHANNEL, message)
    one.publish(UPDATED, change(1))
    await heard.until(change(1))
    assert heard.payloads == [change(1)]


@pytest.mark.req("BND-6")
async def test_what_could_not_be_published_is_queued_newest_of_each_and_said_when_redis_is_back(
    tmp_path: Path, redis_of_its_own: RedisServer
):
    hosts = RedisStage(tmp_path, redis_of_its_own.url)
    one, beside, far = await hosts.on_host("a"), await hosts.on_host("a"), await hosts.on_host("b")
    here, there = Heard(), Heard()
    beside.subscribe(UPDATED, here)
    far.subscribe(UPDATED, there)
    assert not await one.has_queued()
    redis_of_its_own.kill()
    with capture_logs() as logged:
        for version in range(1, 4):
            one.publish(UPDATED, change(version))
            one.publish(UPDATED, change(version, "wf_b"))
            assert await one.has_queued()
        await here.until(change(3, "wf_b"))  # on this host nobody waits for Redis
        redis_of_its_own.start()
        await eventually(lambda: far.is_listening)
        await there.until(change(3, "wf_b"))
        await eventually(lambda: is_through(one))
    assert there.payloads == [change(3), change(3, "wf_b")]
    said = [entry for entry in logged if entry["event"].startswith("bus.event")]
    assert [(entry["event"], bool(entry["consequence"]), bool(entry["remedy"])) for entry in said] == [
        ("bus.event_queued", True, True)
    ]
    await hosts.end()


@pytest.mark.req("BND-8")
async def test_of_what_has_happened_each_is_heard_and_of_what_is_so_the_newest(hosts: RedisStage):
    one, far = await hosts.on_host("a"), await hosts.on_host("b")
    happened, states = Heard(), Heard()
    far.subscribe(Topic.RUN_FAILED, happened)
    far.subscribe(Topic.BINDING_HEALTH, states)
    for number in range(5):
        one.publish(Topic.RUN_FAILED, {"channel": "telegram", "workflow_id": "wf_a", "n": number})
        one.publish(Topic.BINDING_HEALTH, change(number))
    await states.until(change(4))
    assert [payload["n"] for payload in happened.payloads] == [0, 1, 2, 3, 4]
    assert states.payloads == [change(4)]


@pytest.mark.req("BND-6")
async def test_what_is_queued_is_bounded_and_the_oldest_leaves(
    tmp_path: Path, redis_of_its_own: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_bus, "QUEUED_MAX", 3)
    hosts = RedisStage(tmp_path, redis_of_its_own.url)
    one, far = await hosts.on_host("a"), await hosts.on_host("b")
    heard = Heard()
    far.subscribe(UPDATED, heard)
    redis_of_its_own.kill()
    for number in range(10):
        one.publish(UPDATED, change(1, f"wf_{number}"))
        assert await one.has_queued()
    redis_of_its_own.start()
    await heard.until(change(1, "wf_9"))
    assert heard.payloads == [change(1, f"wf_{number}") for number in (7, 8, 9)]
    await hosts.end()


@pytest.mark.failure("C15")
@pytest.mark.parametrize("fault", [LinkFault.blackhole(), LinkFault.reset()], ids=lambda fault: fault.name)
async def test_a_line_that_is_cut_or_stalls_is_left_and_taken_up_again(
    hosts: RedisStage, redis_server: RedisServer, fault: LinkFault, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rise.connections.redis.PING_SECONDS", 0.2)
    async with FaultProxy(redis_server.port) as link:
        one, far = await hosts.on_host("a"), await hosts.on_host("b", f"redis://127.0.0.1:{link.port}/0")
        heard = Heard()
        far.subscribe(UPDATED, heard)
        link.apply(fault)
        await eventually(lambda: not far.is_listening)
        link.heal()
        await eventually(lambda: far.is_listening)
        one.publish(UPDATED, change(1))
        await heard.until(change(1))
        await far.stop()


async def test_a_quiet_line_is_kept(hosts: RedisStage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rise.connections.redis.PING_SECONDS", 0.05)
    one, far = await hosts.on_host("a"), await hosts.on_host("b")
    went: list[bool] = []
    heard = Heard()
    far.subscribe(UPDATED, heard)
    clock = SystemClock()
    for _ in range(20):
        await clock.sleep(0.02)
        went.append(far.is_listening)
    one.publish(UPDATED, change(1))
    await heard.until(change(1))
    assert all(went)


async def test_what_is_published_just_before_a_stop_goes_out(hosts: RedisStage):
    """As a command does that changes something and ends."""
    command, far = await hosts.on_host("a"), await hosts.on_host("b")
    heard = Heard()
    far.subscribe(UPDATED, heard)
    command.publish(UPDATED, change(1))
    await command.stop()
    await heard.until(change(1))


async def test_it_starts_and_stops_without_redis(tmp_path: Path, redis_of_its_own: RedisServer):
    redis_of_its_own.kill()
    hosts = RedisStage(tmp_path, redis_of_its_own.url)
    bus = await hosts.on_host("a", listens=False)
    heard = Heard()
    bus.subscribe(UPDATED, heard)
    bus.publish(UPDATED, change(1))
    await heard.until(change(1))
    await hosts.end()

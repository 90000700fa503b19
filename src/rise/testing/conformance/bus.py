"""What every bus promises, executable.

class TestMyBus(BusConformance):
    @pytest.fixture
    async def stage(self, tmp_path): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import pytest

from rise.bus.port import Bus, Topic
from rise.testing.waiting import eventually

PATIENCE_SECONDS = 10
"""Until a test gives up; nothing here waits that long when it works."""


class BusStage(Protocol):
    async def member(self) -> Bus:
        """One more member of the same installation, started."""
        ...

    async def killed_member(self) -> str:
        """One more, whose process was killed."""
        ...

    async def flood(self, sender: Bus) -> None:
        """Publish more at once than any receiver takes."""
        ...


class Heard:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.payloads: list[Mapping[str, Any]] = []
        self._more = asyncio.Event()

    def __call__(self, payload: Mapping[str, Any]) -> None:
        self.payloads.append(payload)
        self._more.set()

    async def until(self, payload: Mapping[str, Any]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while payload not in self.payloads:
                self._more.clear()
                await self._more.wait()


class BusConformance:
    """Every promise of `rise.bus.port.Bus`."""

    @pytest.fixture
    async def stage(self) -> BusStage:
        raise NotImplementedError("a backend's suite says how to make one")

    async def test_everybody_hears_the_publisher_too(self, stage: BusStage) -> None:
        members = [await stage.member() for _ in range(3)]
        heard = [Heard() for _ in members]
        for member, listener in zip(members, heard, strict=True):
            member.subscribe(Topic.TASK_SETTLED, listener)
        members[0].publish(Topic.TASK_SETTLED, {"task_id": "t_1", "n": 1})
        for listener in heard:
            await listener.until({"task_id": "t_1", "n": 1})

    async def test_a_topic_is_heard_by_its_subscribers_only(self, stage: BusStage) -> None:
        one, other = await stage.member(), await stage.member()
        settled, started = Heard(), Heard()
        other.subscribe(Topic.TASK_SETTLED, settled)
        other.subscribe(Topic.RUN_STARTED, started)
        one.publish(Topic.TASK_SETTLED, {"n": 1})
        one.publish(Topic.RUN_STARTED, {"n": 2})
        await started.until({"n": 2})
        assert settled.payloads == [{"n": 1}]

    async def test_a_hundred_hints_are_at_least_one(self, stage: BusStage) -> None:
        one, other = await stage.member(), await stage.member()
        here, there = Heard(), Heard()
        one.subscribe(Topic.LANES_READY, here)
        other.subscribe(Topic.LANES_READY, there)
        for _ in range(100):
            one.publish(Topic.LANES_READY)
        await here.until({})
        await there.until({})

    async def test_who_has_unsubscribed_hears_nothing_more(self, stage: BusStage) -> None:
        bus = await stage.member()
        gone, stays = Heard(), Heard()
        unsubscribe = bus.subscribe(Topic.TASK_SETTLED, gone)
        bus.subscribe(Topic.TASK_SETTLED, stays)
        unsubscribe()
        unsubscribe()
        bus.publish(Topic.TASK_SETTLED, {"n": 1})
        await stays.until({"n": 1})
        assert gone.payloads == []

    async def test_a_listener_that_raises_keeps_nobody_from_hearing(self, stage: BusStage) -> None:
        def breaks(payload: Mapping[str, Any]) -> None:
            raise KeyError("a field of tomorrow")

        one, other = await stage.member(), await stage.member()
        broken: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
        heard = [Heard(), Heard()]
        for member, listener in zip((one, other), heard, strict=True):
            member.subscribe(Topic.TASK_SETTLED, breaks)
            member.subscribe(Topic.TASK_SETTLED, listener)
        for number in (1, 2):
            one.publish(Topic.TASK_SETTLED, {"n": number})
        for listener in heard:
            await listener.until({"n": 2})
            assert listener.payloads == [{"n": 1}, {"n": 2}]
        assert broken == []

    @pytest.mark.parametrize(
        "payload",
        [{"text": "\ud800 \x00 \u2028"}, {"text": "x" * 1_000_000}, {"deep": [[[{}]]], "none": None, "": 1.5}],
        ids=["odd characters", "huge", "nested"],
    )
    async def test_publishing_never_fails(self, stage: BusStage, payload: dict[str, Any]) -> None:
        one, other = await stage.member(), await stage.member()
        heard = Heard()
        other.subscribe(Topic.RUN_ENDED, heard)
        one.publish(Topic.TASK_SETTLED, payload)
        one.publish(Topic.RUN_ENDED, {"after": 1})
        await heard.until({"after": 1})

    async def test_a_receiver_that_does_not_listen_holds_nobody_up(self, stage: BusStage) -> None:
        one, other = await stage.member(), await stage.member()
        heard = Heard()
        other.subscribe(Topic.RUN_ENDED, heard)
        await stage.flood(one)
        # Lost events cost time, never more: the next ones arrive.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not any("after" in payload for payload in heard.payloads):
                one.publish(Topic.RUN_ENDED, {"after": 1})
                await asyncio.sleep(0)  # noqa: TID251 - a turn of the loop

    async def test_what_was_told_is_not_queued(self, stage: BusStage) -> None:
        one = await stage.member()
        await stage.member()
        one.publish(Topic.TASK_SETTLED, {"n": 1})

        async def is_told() -> bool:
            return not await one.has_queued()

        await eventually(is_told)

    async def test_publishing_before_the_start_and_after_the_end_does_no_harm(self, stage: BusStage) -> None:
        bus = await stage.member()
        bus.publish(Topic.LANES_READY)
        await bus.stop()
        await bus.stop()
        bus.publish(Topic.LANES_READY)
        bus.publish(Topic.TASK_SETTLED, {"n": 1})

    @pytest.mark.req("QUE-3")
    @pytest.mark.failure("D1")
    async def test_a_killed_process_is_known_to_be_dead_until_it_is_buried(self, stage: BusStage) -> None:
        one, other = await stage.member(), await stage.member()
        assert one.dead_members() == []
        dead = await stage.killed_member()
        assert one.dead_members() == [dead]
        assert other.dead_members() == [dead]
        one.publish(Topic.TASK_SETTLED, {"n": 1})
        other.bury(dead)
        other.bury(dead)
        assert one.dead_members() == []

    async def test_who_lives_or_has_said_goodbye_is_not_dead(self, stage: BusStage) -> None:
        one, other = await stage.member(), await stage.member()
        await other.stop()
        assert one.dead_members() == []
        assert one.member != other.member

"""The mirror in RabbitMQ: every promise, and what only RabbitMQ can do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pamqp import commands
from rabbit_stage import RabbitStage, told

from rise.clock import SystemClock
from rise.connections.amqp import AmqpChannel
from rise.copies.port import MirrorDepth
from rise.copies.rabbitmq import FRESH, PARKED, RabbitMirror
from rise.errors import RabbitMisconfigured, RabbitUnavailable
from rise.testing.conformance.mirror import (
    PATIENCE_SECONDS,
    MirrorConformance,
    keep,
    kept,
    record,
    take,
    task_id,
    until_depth,
)
from rise.testing.faults.proxy import LinkFault
from rise.testing.servers import RabbitServer


@pytest.mark.req("TST-3", "CPY-1")
class TestRabbitMirror(MirrorConformance):
    @pytest.fixture
    def stage(self, rabbit: RabbitStage) -> RabbitStage:
        return rabbit


# --- it goes and comes back ---


@pytest.mark.slow
@pytest.mark.req("CPY-1", "CPY-7")
@pytest.mark.failure("C21")
async def test_nothing_that_was_confirmed_is_lost_when_rabbitmq_is_killed(rabbit_alone: RabbitStage):
    mirror = await rabbit_alone.mirror()
    confirmed: set[int] = set()

    async def keep_on(first: int) -> None:
        number = first
        while True:
            await mirror.keep(task_id(number), record(number))
            confirmed.add(number)
            number += 10

    keeping = [asyncio.ensure_future(keep_on(first)) for first in range(10)]
    while len(confirmed) < 200:
        await asyncio.sleep(0)
    rabbit_alone.server.kill()
    ended = await asyncio.gather(*keeping, return_exceptions=True)
    assert {type(error) for error in ended} == {RabbitUnavailable}
    rabbit_alone.server.start()
    await rabbit_alone.well(mirror)
    found = kept(await take(mirror, len(confirmed)))
    assert {task_id(number) for number in confirmed} <= set(found)


@pytest.mark.slow
@pytest.mark.failure("C21", "I1")
async def test_what_was_in_hand_when_rabbitmq_was_killed_is_handed_out_again(rabbit_alone: RabbitStage):
    mirror = await rabbit_alone.mirror()
    await keep(mirror, 1, 2)
    looks = await take(mirror, 2)
    rabbit_alone.server.kill()
    await rabbit_alone.ill(mirror)
    for resolve in (mirror.forget, mirror.park):
        with pytest.raises(RabbitUnavailable):
            await resolve(looks)
    await mirror.give_back(looks)
    rabbit_alone.server.start()
    await rabbit_alone.well(mirror)
    assert kept(await take(mirror, 2)) == [task_id(1), task_id(2)]


@pytest.mark.slow
@pytest.mark.failure("C11", "I14")
async def test_a_process_starts_without_rabbitmq_and_finds_it_later(tmp_path, rabbit_clock):
    server = RabbitServer(tmp_path)
    stage = RabbitStage(server)
    mirror = await stage.mirror(clock=rabbit_clock)
    with pytest.raises(RabbitUnavailable, match="cannot be reached"):
        await keep(mirror, 1)
    with pytest.raises(RabbitUnavailable, match="cannot be reached"):
        await mirror.take(1, seconds=0, parked=False)
    with pytest.raises(RabbitUnavailable, match="cannot be reached"):
        await mirror.depth()
    with server:
        await stage.well(mirror)
        await keep(mirror, 1)
        assert kept(await take(mirror, 1)) == [task_id(1)]
        assert len(stage.troubles[mirror]) == 2, "told once each"
        await stage.end()


@pytest.mark.slow
@pytest.mark.req("CPY-3")
@pytest.mark.failure("C21")
async def test_a_frozen_rabbitmq_is_not_waited_for_and_goes_on(rabbit_alone: RabbitStage):
    patient = await rabbit_alone.mirror()
    await keep(patient, 1)
    hasty = await rabbit_alone.mirror(publish_seconds=0.5, answer_seconds=0.5)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (looks := await told(take(hasty, 1))):
            pass
        rabbit_alone.server.freeze()
        with pytest.raises(RabbitUnavailable, match="in time"):
            await keep(hasty, 2)
        with pytest.raises(RabbitUnavailable):
            await hasty.forget(looks)
    rabbit_alone.server.thaw()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await told(keep(hasty, 3)):
            pass
    await rabbit_alone.kill(hasty)
    found: set[str] = set()
    while task_id(3) not in found:
        found |= set(kept(await take(patient, 1)))


@pytest.mark.failure("C21")
async def test_a_link_on_which_nothing_comes_through_is_given_up(rabbit: RabbitStage):
    mirror = await rabbit.mirror(publish_seconds=0.3)
    await keep(mirror, 1)
    link = rabbit.links[mirror]
    link.apply(LinkFault.blackhole())
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RabbitUnavailable, match="in time"):
            await keep(mirror, 2)
    link.apply(LinkFault.reset())
    link.heal()
    await rabbit.well(mirror)
    await keep(mirror, 3)


@pytest.mark.failure("I1", "I2")
async def test_however_often_a_process_dies_nothing_is_turned_away(rabbit: RabbitStage):
    first = await rabbit.mirror()
    await keep(first, *range(5))
    await rabbit.kill(first)
    for _ in range(30):
        mirror = await rabbit.mirror()
        assert len(await take(mirror, 5)) == 5
        await rabbit.kill(mirror)
    await until_depth(await rabbit.mirror(), fresh=5, parked=0)


@pytest.mark.failure("I3")
async def test_a_process_that_dies_between_the_new_copy_and_the_old_leaves_both(rabbit: RabbitStage):
    mirror = await rabbit.mirror()
    await keep(mirror, 1)
    looks = await take(mirror, 1)

    async def dies(*_: object) -> None:
        await rabbit.kill(mirror)

    mirror._acknowledge = dies
    with pytest.raises(RabbitUnavailable):
        await mirror.park(looks)
    other = await rabbit.mirror()
    await until_depth(other, fresh=1, parked=1)


@pytest.mark.req("CPY-1")
async def test_what_is_parked_together_is_confirmed_in_one_round(rabbit: RabbitStage, monkeypatch: pytest.MonkeyPatch):
    mirror = await rabbit.mirror()
    await asyncio.gather(*(mirror.keep(task_id(n), record(n)) for n in range(300)))
    looks = await take(mirror, 300)
    rounds: list[int] = []
    publish = AmqpChannel.publish

    async def counting(self: AmqpChannel, messages: Any) -> Any:
        rounds.append(len(messages))
        return await publish(self, messages)

    monkeypatch.setattr(AmqpChannel, "publish", counting)
    await mirror.park(looks)
    assert rounds == [300]
    await until_depth(mirror, fresh=0, parked=300)


# --- it takes nothing ---


@contextmanager
def low_on_memory(server: RabbitServer) -> Iterator[None]:
    server.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        server.ctl("set_vm_memory_high_watermark", "0.4")


@contextmanager
def low_on_disk(server: RabbitServer) -> Iterator[None]:
    server.ctl("set_disk_free_limit", "99999GB")
    try:
        yield
    finally:
        server.ctl("set_disk_free_limit", "1MB")


@pytest.mark.req("CPY-3")
@pytest.mark.failure("C23")
@pytest.mark.parametrize(("alarm", "words"), [(low_on_memory, "memory"), (low_on_disk, "disk")])
async def test_an_alarm_stops_who_keeps_and_nobody_who_looks(
    rabbit: RabbitStage, alarm: Callable[[RabbitServer], Iterator[None]], words: str
):
    mirror = await rabbit.mirror()
    await keep(mirror, 1, 2)
    with alarm(rabbit.server):
        for _ in range(2):
            # Long before its deadline: RabbitMQ says so itself.
            with pytest.raises(RabbitUnavailable, match=f"takes no messages: .*{words}"):
                await mirror.keep(task_id(3), record(3))
        first, second = await take(mirror, 2)
        await mirror.forget([first])
        with pytest.raises(RabbitUnavailable, match="takes no messages"):
            await mirror.park([second])
        await mirror.give_back([second])
        assert (await mirror.depth()).parked == 0
    await rabbit.well(mirror)
    await keep(mirror, 4)
    assert {task_id(2), task_id(4)} <= set(kept(await take(mirror, 2)) + kept(await take(mirror, 1)))
    assert [trouble and "takes no messages" in trouble for trouble in rabbit.troubles[mirror]] == [True, None]


@pytest.mark.req("CPY-1")
@pytest.mark.failure("C25")
async def test_a_full_queue_refuses_what_is_too_much_and_loses_nothing(rabbit: RabbitStage):
    mirror = await rabbit.mirror(fresh_max=3)
    confirmed: set[str] = set()
    with pytest.raises(RabbitUnavailable, match="full"):
        for number in range(1000):  # RabbitMQ notices a little late
            await keep(mirror, number)
            confirmed.add(task_id(number))
    answers = await asyncio.gather(keep(mirror, 2000), mirror.depth(), return_exceptions=True)
    assert isinstance(answers[0], RabbitUnavailable)
    assert answers[1] == MirrorDepth(fresh=len(confirmed), parked=0, dead=0)
    looks = await take(mirror, len(confirmed))
    assert set(kept(looks)) == confirmed
    await mirror.park(looks)  # which is never full
    await until_depth(mirror, fresh=0, parked=len(confirmed))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await told(keep(mirror, 30)):
            pass
    assert rabbit.troubles[mirror] == [], "there is an answer"


# --- somebody's hands ---


@pytest.mark.failure("C22", "M5")
async def test_a_queue_that_was_deleted_is_declared_again(rabbit: RabbitStage):
    mirror = await rabbit.mirror()
    await keep(mirror, 1)
    await take(mirror, 1)
    rabbit.server.ctl("delete_queue", FRESH)
    rabbit.server.ctl("delete_queue", PARKED)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await told(keep(mirror, 2)):
            pass
        while not (looks := await told(take(mirror, 1))):
            pass
        assert kept(looks) == [task_id(2)]
        while not await told(mirror.park(looks)):
            pass
    await until_depth(mirror, fresh=0, parked=1)


@pytest.mark.failure("C22")
async def test_a_binding_that_was_removed_is_made_again(rabbit: RabbitStage):
    mirror = await rabbit.mirror()
    await keep(mirror, 1)
    await rabbit.well(mirror)  # both of its connections have declared what they miss
    async with rabbit.operator() as channel:
        await channel.ask(commands.Queue.Unbind(queue=FRESH, exchange="rise.tasks.durable", routing_key=FRESH))
    with pytest.raises(RabbitUnavailable, match="no queue"):
        await keep(mirror, 2)
    await rabbit.well(mirror)
    await keep(mirror, 2)


@pytest.mark.req("CFG-1")
@pytest.mark.failure("C24", "M1")
async def test_a_queue_that_is_otherwise_is_said_to_be_and_awaited(rabbit: RabbitStage, rabbit_clock):
    async with rabbit.operator() as channel:
        await channel.ask(commands.Queue.Declare(queue=FRESH, durable=True))
    mirror = await rabbit.mirror(clock=rabbit_clock)
    with pytest.raises(RabbitMisconfigured, match=r"rise\.tasks\.quorum .*inequivalent arg 'x-") as raised:
        await keep(mirror, 1)
    assert "delete it there" in raised.value.remedy
    with pytest.raises(RabbitMisconfigured):
        await mirror.depth()
    await rabbit_clock.until_slept(20)
    rabbit.server.ctl("delete_queue", FRESH)
    await rabbit.well(mirror)
    await keep(mirror, 1)
    assert len(rabbit.troubles[mirror]) == 2, "told once each"
    # It is not tried in a hot loop: the pauses grow to some seconds, for both connections.
    assert sorted(rabbit_clock.slept)[-1] > 4


@pytest.mark.req("CPY-1")
async def test_what_is_turned_away_for_good_is_counted_among_the_dead(rabbit: RabbitStage):
    mirror = await rabbit.mirror()
    await keep(mirror, 1)
    async with rabbit.operator() as channel:
        delivered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await channel.consume(
            FRESH,
            "operator",
            prefetch=1,
            on_delivery=lambda delivery: delivered.set_result(delivery.tag),
            on_cancel=lambda: None,
        )
        channel.tell(commands.Basic.Reject(delivery_tag=await delivered, requeue=False))
        await channel.catch_up()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await mirror.depth()).dead != 1:
            pass
    assert (await mirror.depth()).fresh == 0


async def test_what_somebody_else_has_put_there_is_handed_out_as_unreadable(rabbit: RabbitStage):
    mirror = await rabbit.mirror()
    await mirror.depth()
    async with rabbit.operator() as channel:
        await channel.confirm()
        await channel.publish([rabbit.message(FRESH, b"what is this?")])
    [look] = await take(mirror, 1)
    assert (look.task, look.body, look.kept_at_ms) == (None, b"what is this?", 0)
    await mirror.park([look])
    await until_depth(mirror, fresh=0, parked=1)


def test_a_mirror_does_not_show_its_password():
    mirror = RabbitMirror("amqp://rise:hush@127.0.0.1:1/", clock=SystemClock())
    assert "hush" not in repr(vars(mirror._rabbit._publishing))

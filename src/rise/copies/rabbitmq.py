"""The mirror in RabbitMQ: quorum queues for what is fresh and what waits, and one for what RabbitMQ itself turns away.

The promise: a message is confirmed when a majority of the queue's members has it on disk, and leaves when its task is
finished. Which of the two queues it is in says whether it has been looked at; a message goes from one to the other, or
to the end of its own, by being published there and confirmed before the old one is acknowledged.

A consumer exists while somebody looks, with up to `PREFETCH` in hand. The fresh queue's goes on until something is
given back; the parked queue's only until the first is resolved, so that nothing is held for long that is not yet due.
Both have a single active consumer: a second process that looks gets nothing meanwhile, and goes on when it ends.

Refuses: to say that a copy is resolved when the connection on which it was handed out is over (`RabbitUnavailable`): it
is handed out again.
"""

from __future__ import annotations

from asyncio import Lock, gather
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rise.clock import Clock, epoch_ms
from rise.connections.amqp import AmqpChannel, Delivery, Message, Table
from rise.connections.rabbitmq import ANSWER_SECONDS, PUBLISH_SECONDS, Rabbit, Topology, lacking, rabbit_errors
from rise.copies.port import RABBITMQ, Look, MirrorDepth
from rise.copies.record import decode_task
from rise.envelope import TaskId, new_key
from rise.errors import EnvelopeMalformed, RabbitUnavailable, Unavailable
from rise.service import Signal

DURABLE: Final = "rise.tasks.durable"
DEAD_LETTERS: Final = "rise.tasks.dlx"
FRESH: Final = "rise.tasks.quorum"
PARKED: Final = "rise.tasks.parked"
DEAD: Final = "rise.tasks.dead"

FRESH_MAX: Final = 1_000_000
"""So many messages in the fresh queue, and RabbitMQ takes no more: backpressure instead of a full disk."""
PREFETCH: Final = 500

_TASK_ID: Final = "task_id"
_KEPT_AT: Final = "kept_at_ms"

_LOOKED_AT: Final[Table] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    # RabbitMQ dead-letters at least once only where what is too much is refused; so also where nothing is too much.
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": DEAD_LETTERS,
    "x-dead-letter-strategy": "at-least-once",
    # Far above any crash loop, and said because newer versions have one of 20 where nothing is said.
    "x-delivery-limit": 1_000_000_000,
}


def topology(fresh_max: int) -> Topology:
    return Topology(
        exchanges={DURABLE: "direct", DEAD_LETTERS: "fanout"},
        queues={
            FRESH: _LOOKED_AT | {"x-max-length": fresh_max},
            PARKED: _LOOKED_AT,  # admission bounds it: a message that was accepted must find room to wait
            DEAD: {"x-queue-type": "quorum"},
        },
        bindings=((FRESH, DURABLE, FRESH), (PARKED, DURABLE, PARKED), (DEAD, DEAD_LETTERS, "")),
    )


async def lacking_at(url: str, *, clock: Clock) -> list[str]:
    """What of it is not there yet. Makes nothing. Raises as `rise.connections.rabbitmq.lacking` says."""
    return await lacking(url, topology(FRESH_MAX), clock=clock)


@dataclass(eq=False, slots=True)
class _InHand:
    """One delivery, until it is resolved or its channel is over."""

    looking: _Looking
    tag: int
    task_id: str


@dataclass(eq=False, slots=True)
class _Looking:
    """A queue's consumer, from the first `take` until somebody gives back what it handed out."""

    channel: AmqpChannel
    queue: str
    name: str
    is_consuming: bool = True
    arrived: deque[Delivery] = field(default_factory=deque)
    """Not asked for yet."""
    more: Signal = field(default_factory=Signal)

    def arrive(self, delivery: Delivery) -> None:
        self.arrived.append(delivery)
        self.more.set()

    async def end(self, giving_back: Sequence[int] = ()) -> None:
        """What has arrived and was not handed out goes back; of what was handed out, only these tags."""
        if self.is_consuming:
            self.is_consuming = False
            await self.channel.cancel(self.name)
        # In one go, because RabbitMQ hands out first what has come back, in the order in which it came.
        self.channel.give_back(sorted([*giving_back, *(delivery.tag for delivery in self.arrived)]))
        self.arrived.clear()


class RabbitMirror:
    """`rise.copies.port.Mirror` on RabbitMQ 3.10 or newer."""

    name = RABBITMQ

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        fresh_max: int = FRESH_MAX,
        publish_seconds: float = PUBLISH_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble` is told as `rise.connections.rabbitmq.Rabbit` says."""
        self._clock = clock
        self._rabbit = Rabbit(
            url,
            clock=clock,
            topology=topology(fresh_max),
            publish_seconds=publish_seconds,
            answer_seconds=answer_seconds,
            on_trouble=on_trouble,
        )
        self._looking: dict[str, _Looking] = {}
        self._opening = Lock()
        self._in_hand: set[_InHand] = set()

    async def start(self) -> None:
        await self._rabbit.start()

    async def stop(self) -> None:
        await self._rabbit.stop()

    async def keep(self, task_id: TaskId, record: bytes) -> None:
        await self._publish(FRESH, task_id, record)

    async def _publish(self, queue: str, task_id: str, record: bytes) -> None:
        headers: Table = {_TASK_ID: task_id, _KEPT_AT: epoch_ms(self._clock.now())}
        await self._rabbit.publish(Message(DURABLE, queue, record, new_key(), headers))

    # --- looking ---

    async def take(self, limit: int, *, seconds: float, parked: bool) -> list[Look]:
        with rabbit_errors():
            looking = await self._looking_at(PARKED if parked else FRESH)
            if not looking.arrived:
                await self._wait_for_some(looking, seconds)
            taken = [looking.arrived.popleft() for _ in range(min(limit, len(looking.arrived)))]
            if not taken and parked:
                await looking.end()
        return [self._look(looking, delivery) for delivery in taken]

    async def _wait_for_some(self, looking: _Looking, seconds: float) -> None:
        await looking.more.wait(seconds)
        # Whether silence means that there is nothing; and what RabbitMQ has sent together has arrived together then.
        await looking.channel.catch_up()

    async def _looking_at(self, queue: str) -> _Looking:
        channel = await self._rabbit.consuming()
        async with self._opening:
            looking = self._looking.get(queue)
            if looking is None or not looking.is_consuming or looking.channel.error is not None:
                looking = self._looking[queue] = _Looking(channel, queue, new_key())
                await channel.consume(
                    queue,
                    looking.name,
                    prefetch=PREFETCH,
                    on_delivery=looking.arrive,
                    # All that was in hand is gone with it. The next connection declares it again.
                    on_cancel=lambda: channel.connection.end(ConnectionResetError(f"{queue} was deleted")),
                )
            return looking

    def _look(self, looking: _Looking, delivery: Delivery) -> Look:
        in_hand = _InHand(looking, delivery.tag, str(delivery.headers.get(_TASK_ID, "")))
        self._in_hand.add(in_hand)
        try:
            task = decode_task(delivery.body)
        except EnvelopeMalformed:
            task = None
        kept_at_ms = delivery.headers.get(_KEPT_AT)
        return Look(
            task=task,
            body=delivery.body,
            tag=in_hand,
            is_parked=looking.queue == PARKED,
            kept_at_ms=kept_at_ms if isinstance(kept_at_ms, int) else 0,
        )

    # --- resolving ---

    async def forget(self, looks: Sequence[Look]) -> None:
        await self._acknowledge([look.tag for look in looks])

    async def park(self, looks: Sequence[Look]) -> None:
        waiting = [look for look in looks if self._is_held(look.tag)]
        await self._end_looking_at_parked([look.tag for look in waiting])  # or the new copies would be handed out here
        copied = await gather(
            *(self._publish(PARKED, look.tag.task_id, look.body) for look in waiting), return_exceptions=True
        )
        safe = [look.tag for look, failure in zip(waiting, copied, strict=True) if failure is None]
        await self._acknowledge(safe)
        for failure in copied:
            if failure is not None:
                raise failure
        self._raise_if_lost([look.tag for look in looks])

    async def give_back(self, looks: Sequence[Look]) -> None:
        held = self._let_go([look.tag for look in looks])
        with rabbit_errors():
            for looking in {in_hand.looking for in_hand in held}:
                await looking.end([in_hand.tag for in_hand in held if in_hand.looking is looking])
                await looking.channel.catch_up()

    async def let_go(self) -> None:
        held = self._let_go(list(self._in_hand))
        with rabbit_errors():
            for looking in {*self._looking.values(), *(in_hand.looking for in_hand in held)}:
                if looking.channel.error is None:
                    await looking.end([in_hand.tag for in_hand in held if in_hand.looking is looking])
                    await looking.channel.catch_up()

    async def _acknowledge(self, resolved: Sequence[_InHand]) -> None:
        held = self._let_go(resolved)
        await self._end_looking_at_parked(held)
        with rabbit_errors():
            for looking in {in_hand.looking for in_hand in held}:
                looking.channel.acknowledge([in_hand.tag for in_hand in held if in_hand.looking is looking])
                await looking.channel.catch_up()
        self._raise_if_lost(resolved)

    async def _end_looking_at_parked(self, resolved: Sequence[_InHand]) -> None:
        with rabbit_errors():
            for looking in {in_hand.looking for in_hand in resolved if in_hand.looking.queue == PARKED}:
                await looking.end()

    def _is_held(self, in_hand: _InHand) -> bool:
        return in_hand in self._in_hand and in_hand.looking.channel.error is None

    def _let_go(self, resolved: Sequence[_InHand]) -> list[_InHand]:
        """Those of them that are still in hand. What was resolved before is not resolved twice."""
        held = [in_hand for in_hand in resolved if self._is_held(in_hand)]
        self._in_hand.difference_update(resolved)
        return held

    def _raise_if_lost(self, resolved: Sequence[_InHand]) -> None:
        if any(in_hand.looking.channel.error is not None for in_hand in resolved):
            raise RabbitUnavailable("the connection on which they were handed out is over: they are handed out again")

    # --- counting ---

    async def depth(self) -> MirrorDepth:
        fresh, parked, dead = await self._rabbit.count((FRESH, PARKED, DEAD))
        self._in_hand = {in_hand for in_hand in self._in_hand if in_hand.looking.channel.error is None}
        return MirrorDepth(fresh=fresh + self._in_hand_of(FRESH), parked=parked + self._in_hand_of(PARKED), dead=dead)

    def _in_hand_of(self, queue: str) -> int:
        """RabbitMQ counts them as handed out, which is not told to whoever asks about a queue."""
        arrived = [looking for looking in self._looking.values() if looking.channel.error is None]
        waiting = sum(len(looking.arrived) for looking in arrived if looking.queue == queue)
        return waiting + sum(in_hand.looking.queue == queue for in_hand in self._in_hand)

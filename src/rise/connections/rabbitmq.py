"""RabbitMQ: one connection to publish and one to consume, both made again for ever, and its errors mapped once.

The promise: when `publish` returns, a majority of the queue's members has the message on disk. When it raises
`RabbitUnavailable`, it may be there or not, and nobody will repeat it unseen. Everything that is published in one turn
of the event loop, and all that gathers while a round is under way, shares one write and one round of confirms. Every
wait is bounded: a message is waited for `publish_seconds`, a question `answer_seconds`, and while it is known that
RabbitMQ is away or takes nothing, not at all.

Two connections, because an alarm of RabbitMQ's own stops whoever publishes; what is consumed goes on.

Refuses: to go on with a connection after an error, a missed deadline or a message that no queue would take. The next
one is made at once, then at growing distances, and declares what is missing before anything is said to be well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pamqp import commands, exceptions
from pamqp.base import Frame

from rise.clock import Clock
from rise.connections.amqp import Address, AmqpChannel, AmqpConnection, Message, MessageRefused, Table
from rise.errors import RabbitMisconfigured, RabbitUnavailable, Unavailable
from rise.service import Loop, spawn
from rise.telemetry import log

PUBLISH_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 3.0
BATCH_MAX: Final = 500
PAUSE_SECONDS_MAX: Final = 5.0
STEADY_SECONDS: Final = 10.0
"""A connection that has lasted so long is made again at once; one that has not, after a pause."""

_BY_CLASS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.AMQPAccessRefused, "RabbitMQ refuses the credentials in its URL, or a right that Rise needs"),
    (exceptions.AMQPNotAllowed, "RabbitMQ does not let this user into the vhost of its URL, or has no such vhost"),
    (exceptions.AMQPNotFound, "a queue or exchange of Rise's is missing in RabbitMQ; it is declared again"),
    (exceptions.AMQPConnectionForced, "RabbitMQ is being stopped, or an operator has closed the connection"),
    (exceptions.AMQPResourceError, "RabbitMQ has not enough resources"),
    (exceptions.AMQPInternalError, "RabbitMQ has an error of its own: see its log"),
    (exceptions.UnmarshalingException, "what answers at the address of RabbitMQ does not speak AMQP 0-9-1"),
    (TimeoutError, "RabbitMQ does not answer in time"),
    (OSError, "RabbitMQ cannot be reached"),
)
_VENDORS: Final = (exceptions.PAMQPException, OSError, TimeoutError, MessageRefused)


def translated(error: Exception) -> Unavailable:
    """What a vendor's error means here. Waiting mends all but `RabbitMisconfigured`."""
    ours = RabbitUnavailable(_meaning(error))
    ours.__cause__ = error
    return ours


def _meaning(error: Exception) -> str:
    if isinstance(error, MessageRefused):
        if error.is_returned:
            return "no queue of RabbitMQ takes the message: it was deleted, or is no longer bound"
        return "RabbitMQ does not take the message: its queue is full, or has lost its majority"
    return next((meaning for kind, meaning in _BY_CLASS if isinstance(error, kind)), f"RabbitMQ refuses: {error}")


@contextmanager
def rabbit_errors() -> Iterator[None]:
    """The one place where RabbitMQ's errors become ours. What is left through is our own bug."""
    try:
        yield
    except _VENDORS as error:
        raise translated(error) from error


@dataclass(frozen=True)
class Topology:
    """What must be there."""

    exchanges: Mapping[str, str]
    """Name and type."""
    queues: Mapping[str, Table]
    """Name and arguments."""
    bindings: Sequence[tuple[str, str, str]]
    """Queue, exchange and routing key."""


NOTHING: Final = Topology({}, {}, ())


async def declare(connection: AmqpConnection, topology: Topology) -> None:
    """Everything is there, as it must be. Raises `RabbitMisconfigured` with the difference if it cannot be."""
    for name, looking, whole in _wanted(topology):
        # Looked for first, so that it is told when something had gone: with a queue, what it held.
        if not await _is_there(connection, looking):
            log.warning(
                "rabbitmq.declared", name=name, consequence="it was missing; copies that were in it are made again"
            )
        await _declare(connection, name, whole)
    async with _asking(connection) as channel:
        for queue, exchange, key in topology.bindings:
            await channel.ask(commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=key))


async def lacking(url: str, topology: Topology, *, clock: Clock, answer_seconds: float = ANSWER_SECONDS) -> list[str]:
    """What of it is not there yet. Makes nothing. Raises `RabbitMisconfigured` for what is there and is another, and
    `RabbitUnavailable` if nobody answers."""
    with rabbit_errors():
        connection = await AmqpConnection.open(Address.read(url), clock=clock, answer_seconds=answer_seconds)
        try:
            missing = []
            for name, looking, whole in _wanted(topology):
                if await _is_there(connection, looking):
                    await _declare(connection, name, whole)  # which only compares what is there
                else:
                    missing.append(name)
            return missing
        finally:
            await connection.close()


def _wanted(topology: Topology) -> Iterator[tuple[str, Frame, Frame]]:
    """Each by its name: how it is looked for, and how it is to be."""
    for name, kind in topology.exchanges.items():
        whole = commands.Exchange.Declare(exchange=name, exchange_type=kind, durable=True)
        yield name, commands.Exchange.Declare(exchange=name, passive=True), whole
    for name, arguments in topology.queues.items():
        queue = commands.Queue.Declare(queue=name, durable=True, arguments=dict(arguments))
        yield name, commands.Queue.Declare(queue=name, passive=True), queue


async def _is_there(connection: AmqpConnection, looking: Frame) -> bool:
    try:
        async with _asking(connection) as channel:
            await channel.ask(looking)
    except exceptions.AMQPNotFound:
        return False
    return True


async def _declare(connection: AmqpConnection, name: str, whole: Frame) -> None:
    try:
        async with _asking(connection) as channel:
            await channel.ask(whole)
    except exceptions.AMQPPreconditionFailed as error:
        raise RabbitMisconfigured(
            f"{name} in RabbitMQ is not as Rise declares it: {error}",
            remedy="once `rise audit` finds nothing that RabbitMQ alone holds, delete it there: it is declared again, "
            "and every copy made again",
        ) from error


@asynccontextmanager
async def _asking(connection: AmqpConnection) -> AsyncIterator[AmqpChannel]:
    """A channel for a question whose answer may be an error, which would end it."""
    channel = await connection.channel()
    yield channel
    await channel.close()


@dataclass(slots=True)
class _Call:
    message: Message
    confirmed_until: float
    """By `clock.monotonic()`, in seconds."""
    done: asyncio.Future[None]


class Rabbit:
    """One RabbitMQ, as one process reaches it."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        topology: Topology = NOTHING,
        publish_seconds: float = PUBLISH_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble` is told why RabbitMQ is away or takes nothing, and None when all is well; before callers are.

        What is refused although there is an answer, as by a full queue, is the affair of a probe.
        """
        self._clock = clock
        self._publish_seconds = publish_seconds
        self._on_trouble = on_trouble
        self._trouble: Unavailable | None = None
        address = Address.read(url)
        self._publishing, self._consuming = (
            _Link(name, address, topology, clock, answer_seconds, self._report, confirms=name == "publishing")
            for name in ("publishing", "consuming")
        )
        self._waiting: list[_Call] = []
        self._flushes: set[asyncio.Task[Any]] = set()
        self._is_flushing = False
        self._is_stopping = False

    async def start(self) -> None:
        """Does not wait for RabbitMQ."""
        await self._consuming.start()
        await self._publishing.start()

    async def stop(self) -> None:
        """What was published is waited for. What was handed out and not resolved goes back."""
        self._is_stopping = True
        await asyncio.gather(*self._flushes)
        await self._publishing.stop()
        await self._consuming.stop()

    async def publish(self, message: Message) -> None:
        """Returns when it is confirmed. What befalls one message is told to its caller alone."""
        self._raise_if_stopping()
        confirmed_until = self._clock.monotonic() + self._publish_seconds
        asked = _Call(message, confirmed_until, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if not self._is_flushing:
            self._is_flushing = True
            spawn(self._flush(), name="rabbitmq.flush", into=self._flushes, for_all=True)
        await asked.done

    async def consuming(self) -> AmqpChannel:
        """The channel on which to consume. Whatever was asked on it before it was replaced is over."""
        self._raise_if_stopping()
        return await self._consuming.ready()

    async def count(self, queues: Sequence[str]) -> list[int]:
        """How many messages wait in each. What has been handed out to somebody is not among them."""
        with rabbit_errors():
            ready = await self.consuming()
            async with _asking(ready.connection) as channel:
                answers = [await channel.ask(commands.Queue.Declare(queue=queue, passive=True)) for queue in queues]
        return [answer.message_count or 0 for answer in answers if isinstance(answer, commands.Queue.DeclareOk)]

    def _raise_if_stopping(self) -> None:
        if self._is_stopping:
            raise RabbitUnavailable("the connection to RabbitMQ is closed")

    # --- sharing rounds ---

    async def _flush(self) -> None:
        """One round after the other until nobody waits: no timer, the next gathers while one is under way."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            try:
                verdicts: Sequence[BaseException | None] = await self._confirmed(batch)
            except BaseException as error:  # noqa: BLE001 - border: the flush must outlive any call; callers are told
                verdicts = [error] * len(batch)
            _tell(batch, verdicts)
        self._is_flushing = False

    async def _confirmed(self, batch: Sequence[_Call]) -> list[Unavailable | None]:
        with rabbit_errors():
            async with asyncio.timeout(batch[0].confirmed_until - self._clock.monotonic()):
                channel = await self._publishing.ready()
                try:
                    verdicts = await channel.publish([call.message for call in batch])
                except asyncio.CancelledError:
                    channel.connection.end(TimeoutError("not confirmed in time"))
                    raise
        returned = next((verdict for verdict in verdicts if verdict is not None and verdict.is_returned), None)
        if returned is not None:
            channel.connection.end(returned)  # the next one declares what is missing
        return [None if verdict is None else translated(verdict) for verdict in verdicts]

    def _report(self) -> None:
        trouble = self._publishing.trouble or self._consuming.trouble
        if str(trouble) != str(self._trouble):
            self._trouble = trouble
            self._on_trouble(trouble)


def _tell(batch: Sequence[_Call], verdicts: Sequence[BaseException | None]) -> None:
    for call, verdict in zip(batch, verdicts, strict=True):
        if call.done.done():
            continue  # the caller hung up; its message may be there all the same
        if verdict is None:
            call.done.set_result(None)
        else:
            call.done.set_exception(verdict)


class _Link:
    """A connection with one channel, made again whenever it is over."""

    def __init__(
        self,
        name: str,
        address: Address,
        topology: Topology,
        clock: Clock,
        answer_seconds: float,
        on_change: Callable[[], None],
        *,
        confirms: bool,
    ) -> None:
        self.trouble: Unavailable | None = None
        self._is_stopping = False
        self._address = address
        self._topology = topology
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._on_change = on_change
        self._confirms = confirms
        self._channel: AmqpChannel | None = None
        self._is_told = asyncio.Event()
        """It is known how things stand."""
        self._loop = Loop(
            f"rabbitmq.{name}",
            self._keep,
            sleep=self._sleep,
            on_error=self._failed,
            pause_seconds=0.1,
            pause_seconds_max=PAUSE_SECONDS_MAX,
        )

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        self._is_stopping = True
        if self._channel is not None:
            await self._channel.connection.close()
        await self._loop.stop()
        self._is_told.set()

    async def ready(self) -> AmqpChannel:
        """At once, except before it is known whether RabbitMQ is there. Raises why it is not."""
        await self._is_told.wait()
        if self._channel is None or self.trouble is not None:
            trouble = self.trouble or RabbitUnavailable("the connection to RabbitMQ is closed")
            raise type(trouble)(trouble.public_message, remedy=trouble.remedy) from trouble.__cause__
        return self._channel

    async def _keep(self) -> None:
        """From one connection to its end. Raises `Unavailable`, unless it has lasted."""
        with rabbit_errors():
            connection = await AmqpConnection.open(
                self._address, clock=self._clock, answer_seconds=self._answer_seconds
            )
            try:
                channel = await self._prepared(connection)
                steady_at = self._clock.monotonic() + STEADY_SECONDS
                error = await self._until_over(channel)
            finally:
                self._channel = None
                await connection.close()
            if self._clock.monotonic() < steady_at:
                raise error

    async def _prepared(self, connection: AmqpConnection) -> AmqpChannel:
        await declare(connection, self._topology)
        channel = await connection.channel()
        if self._confirms:
            await channel.confirm()
        return channel

    async def _until_over(self, channel: AmqpChannel) -> Exception:
        over: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        if channel.error is not None:
            return channel.error

        def ended(error: Exception) -> None:
            self._channel = None
            self._tell(translated(error))
            if not over.done():
                over.set_result(error)

        def blocked(reason: str | None) -> None:
            stopped = RabbitUnavailable(f"RabbitMQ takes no messages: {reason}") if reason else None
            self._tell(stopped)
            if stopped is not None:
                channel.give_up(stopped)

        channel.connection.on_blocked = blocked
        channel.connection.on_end = ended
        channel.on_end = channel.connection.end  # what ends the one channel leaves nothing of use
        self._channel = channel
        self._tell(None)
        return await over

    def _failed(self, name: str, error: BaseException) -> None:
        self._tell(error if isinstance(error, Unavailable) else RabbitUnavailable(f"{name} has failed: {error!r}"))

    def _tell(self, trouble: Unavailable | None) -> None:
        self.trouble = trouble
        self._is_told.set()
        if not self._is_stopping:
            self._on_change()

    async def _sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds * self._clock.random.uniform(0.8, 1.2))

"""AMQP 0-9-1 as far as Rise speaks it with RabbitMQ: one connection, its channels, and many messages in one write.

The promises: no question is waited for longer than `answer_seconds`, and a connection that let one pass is over,
because what it would still answer belongs to a question that nobody asks any more. One that has said nothing for two
heartbeats is over too. `end` is at once, whatever the other side does.

On the bytes of the protocol only, because what matters here a whole client keeps to itself: that RabbitMQ is blocked,
leaving a connection whose other side is frozen, and sending what many wait for in one write.

Refuses: to hide a loss. What is over stays over; whoever wants to go on makes a new connection. Errors are those of
pamqp, which knows the bytes of the protocol, and of the operating system; `rise.connections.rabbitmq` says what they
mean.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pamqp import commands, exceptions
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.common import FieldTable
from pamqp.encode import encode_table_value as table_value
from pamqp.encode import short_string
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from rise.clock import Clock
from rise.service import cancel_all, spawn

HEARTBEAT_SECONDS: Final = 10
_FRAME_OVERHEAD_BYTES: Final = 8
_FRAME_START: Final = struct.Struct(">BHI")
_FRAME_END: Final = b"\xce"
_HEADER_FRAME: Final = 2
_HEADER_START: Final = struct.Struct(">HHQH")
_BASIC: Final = 60
_HEADERS_MODE_AND_ID: Final = 1 << 13 | 1 << 12 | 1 << 7
"""The properties that are there, each a bit."""
_PERSISTENT: Final = b"\x02"
_PORTS: Final = {"amqp": 5672, "amqps": 5671}

Table: TypeAlias = FieldTable
"""Headers of a message, arguments of a queue: names and plain values."""
Heard: TypeAlias = Frame | ContentHeader | ContentBody


class MessageRefused(Exception):
    """RabbitMQ would not take a message: it was returned because no queue takes it, or not confirmed."""

    def __init__(self, text: str, *, is_returned: bool) -> None:
        super().__init__(text)
        self.is_returned = is_returned


@dataclass(frozen=True, slots=True)
class Message:
    """One to be published: persistent, and returned if no queue takes it."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    headers: Table = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One handed out, until it is acknowledged, given back, or its channel is over."""

    tag: int
    headers: Table
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: ssl.SSLContext | None

    @classmethod
    def read(cls, url: str) -> Address:
        """`amqp://user:password@host:port/vhost`; `amqps://…` for TLS, with `?cacertfile=` if need be."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or _PORTS[parts.scheme],
            user=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            vhost=unquote(parts.path[1:]) or "/",
            tls=_tls(parts) if parts.scheme == "amqps" else None,
        )


def _tls(parts: SplitResult) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=parse_qs(parts.query).get("cacertfile", [None])[0])


class AmqpConnection(asyncio.Protocol):
    """One connection, from `open` until it is over."""

    def __init__(self, *, clock: Clock, answer_seconds: float) -> None:
        self.answer_seconds = answer_seconds
        self.error: Exception | None = None
        """Why it is over."""
        self.frame_bytes_max = 131_072
        self.on_end: Callable[[Exception], None] = lambda error: None
        """Told before anybody who waits for an answer."""
        self.on_blocked: Callable[[str | None], None] = lambda reason: None
        """RabbitMQ takes no messages for this reason; None: it does again."""
        self._clock = clock
        self._heard_at = clock.monotonic()
        self._unread = bytearray()
        self._root = AmqpChannel(self, 0)
        self._channels = {0: self._root}
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, address: Address, *, clock: Clock, answer_seconds: float) -> AmqpConnection:
        connection = cls(clock=clock, answer_seconds=answer_seconds)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(answer_seconds):
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=address.tls)
                await connection._introduce(address)
        except BaseException as error:  # border: nobody else would end it; it is passed on
            connection.end(error if isinstance(error, Exception) else ConnectionAbortedError("not waited for"))
            raise
        spawn(connection._beat(), name="amqp.heartbeat", into=connection._tasks, for_all=True)
        return connection

    async def _introduce(self, address: Address) -> None:
        root = self._root
        await root.ask(ProtocolHeader())
        tune = await root.ask(
            commands.Connection.StartOk(
                client_properties={
                    "product": "Rise",
                    "capabilities": {
                        "authentication_failure_close": True,
                        "connection.blocked": True,
                        "consumer_cancel_notify": True,
                    },
                },
                mechanism="PLAIN",
                response=f"\0{address.user}\0{address.password}",
            )
        )
        assert isinstance(tune, commands.Connection.Tune)
        self.frame_bytes_max = min(tune.frame_max, self.frame_bytes_max) or self.frame_bytes_max
        self.write(
            marshal(
                commands.Connection.TuneOk(
                    channel_max=tune.channel_max, frame_max=self.frame_bytes_max, heartbeat=HEARTBEAT_SECONDS
                ),
                0,
            )
        )
        await root.ask(commands.Connection.Open(virtual_host=address.vhost))

    async def channel(self) -> AmqpChannel:
        """A new one, open."""
        number = next(free for free in range(1, len(self._channels) + 1) if free not in self._channels)
        channel = self._channels[number] = AmqpChannel(self, number)
        await channel.ask(commands.Channel.Open())
        return channel

    def release(self, number: int) -> None:
        self._channels.pop(number, None)

    async def close(self) -> None:
        """RabbitMQ has read all that was written, or is not waited for any longer."""
        try:
            if self.error is None:
                await self._root.ask(commands.Connection.Close(reply_code=200, class_id=0, method_id=0))
        except (OSError, exceptions.PAMQPException):
            pass  # it is over, which is what was wanted
        self.end(ConnectionAbortedError("the connection is closed"))
        await cancel_all(self._tasks)

    def end(self, error: Exception) -> None:
        """It is over, at once. What RabbitMQ has not read yet is lost, what it has handed out goes back to it."""
        if self.error is not None:
            return
        self.error = error
        if self._transport is not None:
            self._transport.abort()
        for task in self._tasks:
            task.cancel()
        self.on_end(error)
        for channel in list(self._channels.values()):
            channel.fail(error)

    def write(self, frames: bytes) -> None:
        if self._transport is not None and self.error is None:
            self._transport.write(frames)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS / 2)
            if self._clock.monotonic() - self._heard_at > 2 * HEARTBEAT_SECONDS:
                self.end(TimeoutError("no heartbeat"))
            self.write(marshal(Heartbeat(), 0))

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        if self.error is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.end(error or ConnectionResetError("RabbitMQ has closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._clock.monotonic()
        self._unread += data
        try:
            self._read()
        except exceptions.PAMQPException as error:
            self.end(error)

    def _read(self) -> None:
        """Every frame that has arrived whole."""
        unread, at = self._unread, 0
        while len(unread) - at >= _FRAME_OVERHEAD_BYTES and self.error is None:
            following = at + int.from_bytes(unread[at + 3 : at + 7], "big") + _FRAME_OVERHEAD_BYTES
            if unread.startswith(b"AMQP", at) or following - at > self.frame_bytes_max:
                raise exceptions.UnmarshalingException("Unknown", "no frame of AMQP 0-9-1")
            if following > len(unread):
                break
            _, number, frame = unmarshal(bytes(unread[at:following]))
            at = following
            self._hear(number, frame)
        del unread[:at]

    def _hear(self, number: int, frame: Any) -> None:
        match frame:
            case Heartbeat():
                pass
            case commands.Connection.Blocked():
                self.on_blocked(frame.reason or "an alarm")
            case commands.Connection.Unblocked():
                self.on_blocked(None)
            case commands.Connection.Close():
                self.write(marshal(commands.Connection.CloseOk(), 0))
                self.end(error_of(frame))
            case _ if number in self._channels:
                self._channels[number].hear(frame)


def error_of(close: commands.Connection.Close | commands.Channel.Close) -> Exception:
    kind = exceptions.CLASS_MAPPING.get(close.reply_code or 0, exceptions.AMQPError)
    return kind(close.reply_text)


class AmqpChannel:
    """One channel. Questions are asked one at a time; an error on it ends it, and its neighbours go on."""

    def __init__(self, connection: AmqpConnection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.error: Exception | None = None
        """Why it is over."""
        self.on_end: Callable[[Exception], None] = lambda error: None
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Frame] | None = None
        self._consumers: dict[str, tuple[Callable[[Delivery], None], Callable[[], None]]] = {}
        self._arriving: _Arriving | None = None
        self._published = 0
        self._round: _Round | None = None

    # --- asking ---

    async def ask(self, frame: Frame | ProtocolHeader) -> Frame:
        """RabbitMQ's answer. Raises what it closed the channel with."""
        async with self._turn:
            self._raise_if_over()
            self._answer = asyncio.get_running_loop().create_future()
            self.connection.write(marshal(frame, self.number))
            try:
                async with asyncio.timeout(self.connection.answer_seconds):
                    return await self._answer
            except TimeoutError as late:
                self.connection.end(late)
                raise
            except asyncio.CancelledError:
                self.connection.end(ConnectionAbortedError("an answer was not waited for"))
                raise
            finally:
                self._answer = None

    async def catch_up(self) -> None:
        """RabbitMQ has read everything that was written on this channel, and had nothing against it."""
        await self.ask(commands.Basic.Qos(prefetch_count=0))

    async def close(self) -> None:
        if self.error is None:
            await self.ask(commands.Channel.Close(reply_code=200, class_id=0, method_id=0))
        self.connection.release(self.number)

    def fail(self, error: Exception) -> None:
        if self.error is not None:
            return
        self.error = error
        self.connection.release(self.number)
        self.on_end(error)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.give_up(error)

    def _raise_if_over(self) -> None:
        if self.error is not None:
            raise self.error

    # --- publishing ---

    async def confirm(self) -> None:
        """From now on every message is confirmed."""
        await self.ask(commands.Confirm.Select())

    async def publish(self, messages: Sequence[Message]) -> list[MessageRefused | None]:
        """What became of each, once RabbitMQ has said so of all: one write, one round. One round at a time."""
        self._raise_if_over()
        current = self._round = _Round(self._published + 1, messages)
        self._published += len(messages)
        self.connection.write(b"".join(self._frames(messages)))
        return await current.done

    def give_up(self, error: Exception) -> None:
        """Whoever waits for a round waits no longer. Nobody knows what became of its messages."""
        if self._round is not None and not self._round.done.done():
            self._round.done.set_exception(error)

    def _frames(self, messages: Iterable[Message]) -> Iterable[bytes]:
        chunk = self.connection.frame_bytes_max - _FRAME_OVERHEAD_BYTES
        for message in messages:
            yield _publish_frame(self.number, message.exchange, message.routing_key)
            yield header_frame(self.number, message)
            for at in range(0, len(message.body), chunk):
                yield marshal(ContentBody(message.body[at : at + chunk]), self.number)

    # --- consuming ---

    async def consume(
        self,
        queue: str,
        consumer: str,
        *,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_cancel: Callable[[], None],
    ) -> None:
        """Until `cancel`; `on_cancel`: RabbitMQ has ended it, for example because the queue was deleted."""
        await self.ask(commands.Basic.Qos(prefetch_count=prefetch))
        self._consumers[consumer] = (on_delivery, on_cancel)
        await self.ask(commands.Basic.Consume(queue=queue, consumer_tag=consumer))

    async def cancel(self, consumer: str) -> None:
        """Nothing more is delivered. What has been stays with the channel."""
        await self.ask(commands.Basic.Cancel(consumer_tag=consumer))
        self._consumers.pop(consumer, None)

    def tell(self, frame: Frame) -> None:
        """What has no answer."""
        self.connection.write(marshal(frame, self.number))

    def acknowledge(self, tags: Iterable[int]) -> None:
        self.connection.write(b"".join(marshal(commands.Basic.Ack(delivery_tag=tag), self.number) for tag in tags))

    def give_back(self, tags: Iterable[int]) -> None:
        self.connection.write(
            b"".join(marshal(commands.Basic.Nack(delivery_tag=tag, requeue=True), self.number) for tag in tags)
        )

    # --- hearing ---

    def hear(self, frame: Heard) -> None:
        match frame:
            case commands.Basic.Ack() | commands.Basic.Nack():
                if self._round is not None:
                    is_kept = isinstance(frame, commands.Basic.Ack)
                    self._round.settle(frame.delivery_tag or 0, multiple=bool(frame.multiple), is_kept=is_kept)
            case commands.Basic.Deliver() | commands.Basic.Return():
                self._arriving = _Arriving(frame)
            case ContentHeader() | ContentBody():
                assert self._arriving is not None
                if self._arriving.add(frame):
                    self._arrived(self._arriving)
            case commands.Basic.Cancel():
                _, on_cancel = self._consumers.pop(frame.consumer_tag or "", (None, lambda: None))
                on_cancel()
            case commands.Channel.Close():
                self.connection.write(marshal(commands.Channel.CloseOk(), self.number))
                self.fail(error_of(frame))
            case _:
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(frame)

    def _arrived(self, arrived: _Arriving) -> None:
        frame, self._arriving = arrived.frame, None
        if isinstance(frame, commands.Basic.Return):
            if self._round is not None:
                self._round.turn_away(arrived.message_id, f"{frame.reply_code} {frame.reply_text}")
        elif frame.consumer_tag in self._consumers:
            on_delivery, _ = self._consumers[frame.consumer_tag]
            on_delivery(Delivery(frame.delivery_tag or 0, arrived.headers, b"".join(arrived.parts)))


@lru_cache(maxsize=64)
def _publish_frame(number: int, exchange: str, routing_key: str) -> bytes:
    return marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), number)


def header_frame(number: int, message: Message) -> bytes:
    """What pamqp makes of its properties, for a fifth of the CPU: it is done for every message."""
    table = b"".join(_table_entry(name, value) for name, value in message.headers.items())
    message_id = message.message_id.encode()
    payload = b"".join(
        (
            _HEADER_START.pack(_BASIC, 0, len(message.body), _HEADERS_MODE_AND_ID),
            len(table).to_bytes(4, "big"),
            table,
            _PERSISTENT,
            len(message_id).to_bytes(1, "big"),
            message_id,
        )
    )
    return b"".join((_FRAME_START.pack(_HEADER_FRAME, number, len(payload)), payload, _FRAME_END))


def _table_entry(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return b"".join((_short(name), b"S", len(text).to_bytes(4, "big"), text))
    return _short(name) + table_value(value)


@lru_cache(maxsize=64)
def _short(name: str) -> bytes:
    return short_string(name)


@dataclass(slots=True)
class _Arriving:
    """A message that comes in several frames."""

    frame: commands.Basic.Deliver | commands.Basic.Return
    parts: list[bytes] = field(default_factory=list)
    headers: Table = field(default_factory=dict)
    message_id: str = ""
    bytes_left: int = 0

    def add(self, frame: ContentHeader | ContentBody) -> bool:
        """Whether it is whole now."""
        if isinstance(frame, ContentHeader):
            self.headers = frame.properties.headers or {}
            self.message_id = frame.properties.message_id or ""
            self.bytes_left = frame.body_size
        else:
            self.parts.append(frame.value or b"")
            self.bytes_left -= len(self.parts[-1])
        return self.bytes_left <= 0


class _Round:
    """Messages that were published in one write, until the last is confirmed, refused or returned."""

    def __init__(self, first_tag: int, messages: Sequence[Message]) -> None:
        self.done: asyncio.Future[list[MessageRefused | None]] = asyncio.get_running_loop().create_future()
        self._first_tag = first_tag
        self._places = {message.message_id: place for place, message in enumerate(messages)}
        self._verdicts: list[MessageRefused | None] = [None] * len(messages)
        self._open = set(range(len(messages)))
        self._settled_below = 0

    def turn_away(self, message_id: str, why: str) -> None:
        """RabbitMQ says so first, and confirms it then all the same."""
        if message_id in self._places:
            self._verdicts[self._places[message_id]] = MessageRefused(why, is_returned=True)

    def settle(self, tag: int, *, multiple: bool, is_kept: bool) -> None:
        """Tags of a former round, which was not waited for any longer, are none of this one's."""
        last = tag - self._first_tag
        for place in range(self._settled_below if multiple else last, last + 1):
            if place in self._open:
                self._open.remove(place)
                if not is_kept:
                    self._verdicts[place] = MessageRefused("not confirmed", is_returned=False)
        if multiple:
            self._settled_below = max(self._settled_below, last + 1)
        if not self._open and not self.done.done():
            self.done.set_result(self._verdicts)

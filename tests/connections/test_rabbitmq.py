"""One RabbitMQ as one process reaches it: what may go wrong on the way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pamqp import commands, exceptions
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from rise.clock import SystemClock
from rise.connections.amqp import Address, AmqpChannel, AmqpConnection, Message, MessageRefused, header_frame
from rise.connections.rabbitmq import Rabbit, Topology, rabbit_errors
from rise.envelope import new_key
from rise.errors import RabbitUnavailable, Unavailable
from rise.testing.clock import ManualClock
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.installation import hold_port
from rise.testing.servers import RabbitServer

PATIENCE_SECONDS = 20.0
QUEUE = "rise.tests"
TOPOLOGY = Topology({"rise.tests": "direct"}, {QUEUE: {"x-queue-type": "quorum"}}, ((QUEUE, "rise.tests", "a"),))


def message(body: bytes = b"", key: str = "a") -> Message:
    return Message("rise.tests", key, body, new_key())


@asynccontextmanager
async def opened(url: str, **how: Any) -> AsyncIterator[Rabbit]:
    patience = {"publish_seconds": PATIENCE_SECONDS, "answer_seconds": PATIENCE_SECONDS}
    rabbit = Rabbit(url, topology=TOPOLOGY, **{"clock": SystemClock(), **patience, **how})
    await rabbit.start()
    try:
        yield rabbit
    finally:
        await rabbit.stop()


@pytest.fixture
async def rabbit(empty_rabbit: RabbitServer) -> AsyncIterator[Rabbit]:
    async with opened(empty_rabbit.url) as rabbit:
        yield rabbit


def through(link: FaultProxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{link.port}/"


# --- errors ---


def every_error_class() -> list[type[Exception]]:
    """Which RabbitMQ or the way to it may cause."""
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    ours = [ConnectionRefusedError, ConnectionResetError, TimeoutError, ssl.SSLError, MessageRefused]
    return [kind for kind in kinds if issubclass(kind, exceptions.PAMQPException)] + ours


@pytest.mark.failure("C21", "C22")
@pytest.mark.parametrize("kind", every_error_class(), ids=lambda kind: kind.__name__)
def test_every_error_on_the_way_becomes_ours(kind: type[Exception]):
    error = kind.__new__(kind)
    Exception.__init__(error, "why", "and how")
    if isinstance(error, MessageRefused):
        error.is_returned = False
    with pytest.raises(Unavailable), rabbit_errors():
        raise error


def test_every_word_with_which_rabbitmq_ends_something_has_a_class():
    assert all(issubclass(kind, exceptions.PAMQPException) for kind in exceptions.CLASS_MAPPING.values())


@pytest.mark.req("CPY-1")
@pytest.mark.parametrize("headers", [{}, {"task_id": "t_ä", "kept_at_ms": 1_700_000_000_000, "small": 1, "is": True}])
def test_what_goes_before_a_body_reads_as_the_protocol_says(headers: dict[str, Any]):
    sent = Message("exchange", "key", b"x" * 70_000, new_key(), headers)
    frame = header_frame(7, sent)
    length, number, header = unmarshal(frame)
    assert (length, number) == (len(frame), 7)
    assert isinstance(header, ContentHeader) and header.body_size == len(sent.body)
    read = (header.properties.delivery_mode, header.properties.message_id, header.properties.headers)
    assert read == (2, sent.message_id, headers)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://guest:wrong@127.0.0.1:{port}/", "credentials"),
        ("amqp://guest:guest@127.0.0.1:{port}/nowhere", "vhost"),
    ],
)
async def test_a_url_that_does_not_fit_is_unavailable_and_says_why(empty_rabbit: RabbitServer, url: str, words: str):
    async with opened(url.format(port=empty_rabbit.port)) as rabbit:
        with pytest.raises(RabbitUnavailable, match=words):
            await rabbit.publish(message())


class SeenIn(SystemClock):
    """Notes in which context of the log each task asks for the time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}

    def monotonic(self) -> float:
        task = asyncio.current_task()
        if task is not None:
            self.seen[task.get_name()] = dict(structlog.contextvars.get_contextvars())
        return super().monotonic()


@pytest.mark.req("OPS-4")
async def test_what_all_wait_for_is_in_the_log_of_no_message():
    clock = SeenIn()
    with hold_port() as held, structlog.contextvars.bound_contextvars(trace_id="of the first"):
        async with opened(f"amqp://guest:guest@127.0.0.1:{held.getsockname()[1]}/", clock=clock) as rabbit:
            with pytest.raises(RabbitUnavailable):
                await rabbit.publish(message())
    assert clock.seen["rabbitmq.flush"] == {}


async def test_an_address_is_read_and_keeps_its_password_to_itself():
    address = Address.read("amqp://rise:hu%2Fsh@broker.example:5673/my%2Fvhost")
    assert (address.host, address.port, address.user) == ("broker.example", 5673, "rise")
    assert (address.password, address.vhost, address.tls) == ("hu/sh", "my/vhost", None)
    assert "hu/sh" not in repr(address)
    plain = Address.read("amqps://broker.example")
    assert (plain.port, plain.user, plain.vhost) == (5671, "guest", "/")
    assert plain.tls is not None
    assert plain.tls.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x01" * 100])
async def test_what_does_not_speak_amqp_is_unavailable(said: bytes):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with opened(f"amqp://127.0.0.1:{port}/") as rabbit:
        with pytest.raises(RabbitUnavailable, match="does not speak AMQP"):
            await rabbit.publish(message())
    server.close()


# --- publishing ---


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each round had."""
    counted: list[int] = []
    publish = AmqpChannel.publish

    async def counting(self: AmqpChannel, messages: Any) -> Any:
        counted.append(len(messages))
        return await publish(self, messages)

    monkeypatch.setattr(AmqpChannel, "publish", counting)
    return counted


@pytest.mark.req("CPY-1")
async def test_what_gathers_shares_a_round(rabbit: Rabbit, rounds: list[int]):
    await rabbit.publish(message())
    await asyncio.gather(*(rabbit.publish(message()) for _ in range(100)))
    assert rounds == [1, 100]
    assert await counted(rabbit) == 101


async def counted(rabbit: Rabbit) -> int:
    [count] = await rabbit.count([QUEUE])
    return count


@pytest.mark.failure("C22")
async def test_one_that_is_returned_leaves_the_others_of_its_round_alone(rabbit: Rabbit, rounds: list[int]):
    keys = ["a", "nowhere", "a"]
    answers = await asyncio.gather(*(rabbit.publish(message(key=key)) for key in keys), return_exceptions=True)
    assert rounds == [3]
    assert (answers[0], answers[2]) == (None, None)
    assert isinstance(answers[1], RabbitUnavailable)
    assert "no queue" in str(answers[1])


@pytest.mark.failure("C20")
async def test_whoever_hangs_up_takes_no_confirm_from_another(rabbit: Rabbit):
    await rabbit.publish(message())
    for _ in range(2):
        asked = [asyncio.ensure_future(rabbit.publish(message(key="a" if n % 4 else "b"))) for n in range(1, 13)]
        await asyncio.sleep(0)
        for hung_up in asked[::2]:
            hung_up.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers[1::2]] == [type(None), RabbitUnavailable] * 3
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await is_well(rabbit):
                await asyncio.sleep(0)


async def is_well(rabbit: Rabbit) -> bool:
    try:
        await rabbit.publish(message())
    except RabbitUnavailable:
        return False
    return True


async def test_what_was_published_before_the_end_is_confirmed(empty_rabbit: RabbitServer):
    async with opened(empty_rabbit.url) as rabbit:
        asked = [asyncio.ensure_future(rabbit.publish(message())) for _ in range(3)]
        await asyncio.sleep(0)
        await rabbit.publish(message())
        asked += [asyncio.ensure_future(rabbit.publish(message())) for _ in range(3)]
        await asyncio.sleep(0)
        await rabbit.stop()
        assert await asyncio.gather(*asked) == [None] * 6
        with pytest.raises(RabbitUnavailable, match="closed"):
            await rabbit.publish(message())


# --- the way there and back ---


@pytest.mark.failure("C21")
@pytest.mark.parametrize("fault", [LinkFault.reset, LinkFault.lost_answer, lambda: LinkFault.cut(100)])
async def test_a_connection_that_breaks_is_made_again(empty_rabbit: RabbitServer, fault: Callable[[], LinkFault]):
    async with FaultProxy(empty_rabbit.port) as link, opened(through(link)) as rabbit:
        await rabbit.publish(message())
        link.apply(fault())
        with pytest.raises(RabbitUnavailable):
            await rabbit.publish(message(b"x" * 1000))
        link.heal()
        await until_well(rabbit)


@pytest.mark.failure("C21")
def test_a_connection_that_was_reset_is_unavailable_on_the_loop_that_processes_run(empty_rabbit: RabbitServer):
    async def at_every_moment_of_it() -> None:
        async with FaultProxy(empty_rabbit.port) as link, opened(through(link)) as rabbit:
            for turns in range(8):
                await until_well(rabbit)
                link.apply(LinkFault.reset())
                for _ in range(turns):
                    await asyncio.sleep(0)
                with pytest.raises(RabbitUnavailable):
                    await rabbit.publish(message())
                link.heal()
            await until_well(rabbit)

    uvloop.run(at_every_moment_of_it())


async def until_well(rabbit: Rabbit) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await is_well(rabbit):
            await asyncio.sleep(0)


@pytest.mark.failure("C21")
async def test_a_silent_connection_is_over_after_two_heartbeats(empty_rabbit: RabbitServer):
    clock, over = ManualClock(), asyncio.Event()
    async with FaultProxy(empty_rabbit.port) as link:
        address = Address.read(through(link))
        connection = await AmqpConnection.open(address, clock=clock, answer_seconds=PATIENCE_SECONDS)
        connection.on_end = lambda error: over.set()
        link.apply(LinkFault.blackhole())
        for _ in range(5):
            await clock.until_sleeping()
            assert not over.is_set()
            clock.advance(5)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await over.wait()
        assert isinstance(connection.error, TimeoutError)
        await connection.close()


@pytest.mark.failure("C21", "L13")
async def test_a_stop_does_not_wait_for_one_that_never_answers():
    held = hold_port()
    held.listen()  # it takes connections and says nothing
    async with asyncio.timeout(PATIENCE_SECONDS / 2):
        async with opened(f"amqp://127.0.0.1:{held.getsockname()[1]}/"):
            await asyncio.sleep(0)
    held.close()


@pytest.mark.failure("C20")
async def test_a_question_whose_asker_has_left_is_answered_to_nobody_else(empty_rabbit: RabbitServer):
    async with opened(empty_rabbit.url) as rabbit:
        channel = await rabbit.consuming()
        asked = asyncio.ensure_future(channel.catch_up())
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    assert await counted(rabbit) == 0
                    break
                except RabbitUnavailable:
                    await asyncio.sleep(0)
        assert await rabbit.consuming() is not channel


async def test_an_error_on_one_channel_leaves_its_neighbours_alone(empty_rabbit: RabbitServer):
    address = Address.read(empty_rabbit.url)
    connection = await AmqpConnection.open(address, clock=SystemClock(), answer_seconds=PATIENCE_SECONDS)
    one, other = await connection.channel(), await connection.channel()
    with pytest.raises(exceptions.AMQPNotFound):
        await one.ask(commands.Queue.Declare(queue="no-such-queue", passive=True))
    await other.catch_up()
    again = await connection.channel()
    assert again.number == one.number
    await connection.close()


# --- TLS ---


def certificate(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = SystemClock().now()
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@asynccontextmanager
async def encrypted(port: int, path: Path) -> AsyncIterator[int]:
    """What is said to this port in TLS is passed on in the clear."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
        except OSError:
            pass
        target.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    server = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_over_tls_only_a_server_with_a_known_certificate_is_spoken_to(empty_rabbit: RabbitServer, tmp_path: Path):
    path = certificate(tmp_path)
    async with encrypted(empty_rabbit.port, path) as port:
        async with opened(f"amqps://guest:guest@localhost:{port}/?cacertfile={path}") as rabbit:
            await rabbit.publish(message())
            assert await counted(rabbit) == 1
        async with opened(f"amqps://guest:guest@localhost:{port}/") as rabbit:
            with pytest.raises(RabbitUnavailable, match="cannot be reached"):
                await rabbit.publish(message())

"""What one might use instead of the full profile, in the way its users write it. Each needs packages of its own.

A *sender* hands a message to its broker and returns when that has taken it; behind FastAPI it accepts, and without
it fills a queue. A *worker* runs a task that does nothing. Packages are named here and imported when they are used:
Rise does not need them, and what is not installed is not measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

import msgspec

from rise.settings import load_settings
from rise.testing.bench.answering import say_ready, serve
from rise.testing.bench.bot import note_run
from rise.testing.bench.update import PATH, Updates

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[Any]]

STREAM: Final = "bench"
QUEUE: Final = "bench"
TOGETHER: Final = 100
"""So many tasks at once run or are sent, of whoever lets its users say so."""


@dataclass(frozen=True, slots=True)
class Peer:
    title: str
    packages: tuple[str, ...]

    def missing(self) -> list[str]:
        return [package for package in self.packages if find_spec(package) is None]


PEERS: Final = {
    "naive": Peer("FastAPI, XADD and then a confirm (two copies)", ("aio_pika",)),
    "taskiq": Peer("taskiq, Redis stream", ("taskiq", "taskiq_redis")),
    "arq": Peer("arq", ("arq",)),
    "faststream": Peer("faststream, Redis stream", ("faststream",)),
    "faststream-quorum": Peer("faststream, quorum queue", ("faststream", "aio_pika")),
}


def installed(names: tuple[str, ...]) -> list[str]:
    """Those of these peers that can be measured here."""
    return [name for name in names if not PEERS[name].missing()]


# --- senders ---


@asynccontextmanager
async def _sending_naive() -> AsyncIterator[Send]:
    """Careful, and one after the other: into the stream, then to a majority of the queue's members."""
    aio_pika: Any = import_module("aio_pika")
    stream = import_module("redis.asyncio").Redis.from_url(_redis_url())
    connection = await aio_pika.connect_robust(_rabbitmq_url())
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})

    async def send(update: dict[str, Any]) -> None:
        body = msgspec.json.encode(update)
        await stream.xadd(STREAM, {"body": body})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=QUEUE, mandatory=True)

    yield send
    await connection.close()
    await stream.aclose()


def _taskiq() -> tuple[Any, Any]:
    """Its broker, and the task."""
    taskiq_redis: Any = import_module("taskiq_redis")
    results = taskiq_redis.RedisAsyncResultBackend(_redis_url(), result_ex_time=3600)
    broker = taskiq_redis.RedisStreamBroker(_redis_url(), queue_name=STREAM, consumer_id="0")
    broker = broker.with_result_backend(results)

    async def run(update: dict[str, Any]) -> str:
        return _do_nothing(update)

    return broker, broker.register_task(run, task_name="noop")


@asynccontextmanager
async def _sending_taskiq() -> AsyncIterator[Send]:
    broker, task = _taskiq()
    await broker.startup()
    yield task.kiq
    await broker.shutdown()


@asynccontextmanager
async def _sending_arq() -> AsyncIterator[Send]:
    connections: Any = import_module("arq.connections")
    pool = await connections.create_pool(connections.RedisSettings.from_dsn(_redis_url()))

    async def send(update: dict[str, Any]) -> None:
        await pool.enqueue_job("noop", update)

    yield send
    await pool.aclose()


@asynccontextmanager
async def _sending_faststream() -> AsyncIterator[Send]:
    broker: Any = import_module("faststream.redis").RedisBroker(_redis_url(), logger=None)
    await broker.start()
    async with import_module("redis.asyncio").Redis.from_url(_redis_url()) as client:
        # Its worker would make the group itself, for what comes after that.
        await client.xgroup_create(STREAM, STREAM, id="0", mkstream=True)

    async def send(update: dict[str, Any]) -> None:
        await broker.publish(update, stream=STREAM)

    yield send
    await broker.stop()


@asynccontextmanager
async def _sending_faststream_quorum() -> AsyncIterator[Send]:
    rabbit: Any = import_module("faststream.rabbit")
    broker = rabbit.RabbitBroker(_rabbitmq_url(), logger=None)
    await broker.start()
    queue = rabbit.RabbitQueue(QUEUE, queue_type=import_module("faststream.rabbit.schemas.queue").QueueType.QUORUM)
    await broker.declare_queue(queue)

    async def send(update: dict[str, Any]) -> None:
        await broker.publish(update, queue=queue, persist=True)

    yield send
    await broker.stop()


_SENDERS: Final[dict[str, Callable[[], AbstractAsyncContextManager[Send]]]] = {
    "naive": _sending_naive,
    "taskiq": _sending_taskiq,
    "arq": _sending_arq,
    "faststream": _sending_faststream,
    "faststream-quorum": _sending_faststream_quorum,
}


async def _accept(name: str) -> None:
    """Behind FastAPI: the answer is sent when the broker has the message."""
    from fastapi import FastAPI, Response

    async with _SENDERS[name]() as send:
        app = FastAPI()

        @app.post(PATH)
        async def webhook(update: dict[str, Any]) -> Response:
            await send(update)
            return Response()

        await serve(app)


async def _fill(name: str) -> None:
    """`NAME-fill COUNT`: so many messages for the workers; ready when they are there."""
    updates, count = Updates(), int(sys.argv[2])
    async with _SENDERS[name]() as send:
        for first in range(0, count, TOGETHER):
            numbers = range(first, min(first + TOGETHER, count))
            await asyncio.gather(*(send(msgspec.json.decode(updates.body(number))) for number in numbers))
    say_ready(0)


# --- workers ---


def _do_nothing(update: dict[str, Any]) -> str:
    note_run(str(update["message"]["chat"]["id"]))
    return "ok"


async def _work_taskiq() -> None:
    broker, _ = _taskiq()
    say_ready(0)
    await import_module("taskiq.api").run_receiver_task(broker, run_startup=True, max_async_tasks=TOGETHER)


async def _work_arq() -> None:
    async def noop(context: dict[str, Any], update: dict[str, Any]) -> str:
        return _do_nothing(update)

    arq: Any = import_module("arq.worker")
    worker = arq.Worker(
        functions=[arq.func(noop, name="noop")],
        redis_settings=import_module("arq.connections").RedisSettings.from_dsn(_redis_url()),
        poll_delay=0.01,  # its default of half a second would be half a second of latency
        max_jobs=TOGETHER,
        handle_signals=False,
        log_results=False,
    )
    say_ready(0)
    await worker.main()


async def _work_faststream() -> None:
    faststream: Any = import_module("faststream.redis")
    broker = faststream.RedisBroker(_redis_url(), logger=None)

    async def noop(update: dict[str, Any]) -> None:
        _do_nothing(update)

    broker.subscriber(stream=faststream.StreamSub(STREAM, group=STREAM, consumer="one", max_records=TOGETHER))(noop)
    await broker.start()
    say_ready(0)
    await asyncio.Event().wait()


def _redis_url() -> str:
    url = load_settings().redis_url
    assert url is not None
    return url.get_secret_value()


def _rabbitmq_url() -> str:
    url = load_settings().rabbitmq_url
    assert url is not None
    return url.get_secret_value()


def _of_sender(run: Callable[[str], Coroutine[Any, Any, None]], name: str) -> Callable[[], Coroutine[Any, Any, None]]:
    return lambda: run(name)


PEER_CONTENDERS: Final[dict[str, Callable[[], Coroutine[Any, Any, None]]]] = {
    **{f"{name}-accept": _of_sender(_accept, name) for name in _SENDERS},
    **{f"{name}-fill": _of_sender(_fill, name) for name in _SENDERS},
    "taskiq-worker": _work_taskiq,
    "arq-worker": _work_arq,
    "faststream-worker": _work_faststream,
}

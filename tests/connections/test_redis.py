"""One Redis as one process reaches it: what may go wrong on the way, and what time it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import structlog
import uvloop

from rise.clock import SystemClock
from rise.connections.redis import CLOCK_KEY, RedisDatabase, Script, redis_errors
from rise.errors import RedisUnavailable, StoreCorrupt, Unavailable
from rise.testing.clock import ManualClock
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.installation import hold_port
from rise.testing.servers import RedisServer

ECHO = Script("echo", "return ARGV[1]")
WRITE = Script("write", "return redis.call('INCR', '{rise}:count')")
PATIENCE_SECONDS = 20.0
DAY_MS = 86_400_000


@asynccontextmanager
async def opened(url: str, **how: object) -> AsyncIterator[RedisDatabase]:
    database = RedisDatabase(url, clock=SystemClock(), **{"answer_seconds": PATIENCE_SECONDS, **how})
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(redis_server: RedisServer) -> AsyncIterator[RedisDatabase]:
    async with opened(redis_server.url) as database:
        yield database


# --- errors ---


def every_error_class() -> list[type[Exception]]:
    """Which a server or the way to it may cause; the others come of wrong use."""
    kinds = (kind for kind in vars(redis.exceptions).values() if isinstance(kind, type))
    return [
        kind for kind in kinds if issubclass(kind, redis.exceptions.RedisError | redis.exceptions.RedisClusterException)
    ]


@pytest.mark.failure("C16")
@pytest.mark.parametrize("kind", every_error_class(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_client_becomes_ours(kind: type[Exception]):
    error = kind.__new__(kind)
    Exception.__init__(error, "1 node:1")
    with pytest.raises(Unavailable), redis_errors():
        raise error


def full(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "maxmemory", "1")


def read_only(server: RedisServer) -> None:
    server.ask("REPLICAOF", "127.0.0.1", "1")


def without_rights(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "default", "-evalsha")


def with_a_broken_disk(server: RedisServer) -> None:
    [_, directory] = server.ask("CONFIG", "GET", "dir")
    (Path(directory.decode()) / "dump.rdb").mkdir()
    server.ask("CONFIG", "SET", "save", "3600 1")
    server.ask("BGSAVE")
    while server.info("persistence")["rdb_last_bgsave_status"] != "err":
        pass


def on_one_replica_too_few(server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "min-replicas-to-write", "1")


def written_by_somebody_else(server: RedisServer) -> None:
    server.ask("RPUSH", "{rise}:count", "one")


@pytest.mark.failure("C14", "C16", "C18")
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (full, "full"),
        (read_only, "replica"),
        (without_rights, "ACL"),
        (with_a_broken_disk, "disk"),
        (on_one_replica_too_few, "replicas"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
async def test_a_redis_that_takes_no_writes_is_unavailable_and_says_why(
    redis_of_its_own: RedisServer, trouble: Callable[[RedisServer], None], words: str
):
    async with opened(redis_of_its_own.url) as database:
        assert await database.run(WRITE) == 1
        trouble(redis_of_its_own)
        with pytest.raises(RedisUnavailable, match=words):
            await database.run(WRITE)
    assert redis_of_its_own.ask("GET", "{rise}:count") == b"1"


async def test_what_somebody_else_has_written_is_not_waited_for(database: RedisDatabase, redis_server: RedisServer):
    written_by_somebody_else(redis_server)
    with pytest.raises(StoreCorrupt):
        await database.run(WRITE)


async def test_wrong_credentials_are_unavailable(redis_server: RedisServer):
    async with opened(redis_server.url.replace("://", "://:wrong@")) as database:
        with pytest.raises(RedisUnavailable, match="credentials"):
            await database.open()
        with pytest.raises(RedisUnavailable, match="credentials"):
            database.now_ms()


@pytest.mark.failure("C11")
async def test_nobody_there_is_unavailable_and_told_once_until_it_is_over(tmp_path: Path):
    server, told = RedisServer(tmp_path), []
    async with opened(server.url, on_trouble=told.append) as database:
        for _ in range(3):
            with pytest.raises(RedisUnavailable, match="cannot be reached"):
                await database.open()
        with pytest.raises(RedisUnavailable):
            database.now_ms()
        with server:
            await database.open()
    assert [trouble and trouble.capability for trouble in told] == ["redis", None]


@pytest.mark.req("OPS-4")
async def test_what_is_told_of_redis_is_in_the_log_of_no_message():
    told: list[dict[str, object]] = []

    def note(trouble: Unavailable | None) -> None:
        told.append(structlog.contextvars.get_contextvars())

    with hold_port() as held, structlog.contextvars.bound_contextvars(trace_id="of the first"):
        async with opened(f"redis://127.0.0.1:{held.getsockname()[1]}/0", on_trouble=note) as database:
            with pytest.raises(RedisUnavailable):
                await database.open()
    assert told == [{}]


@pytest.mark.failure("C11")
def test_a_connection_that_was_reset_is_unavailable_on_the_loop_that_processes_run(redis_server: RedisServer):
    async def at_every_moment_of_it() -> None:
        async with FaultProxy(redis_server.port) as link, opened(f"redis://127.0.0.1:{link.port}") as database:
            for turns in range(8):
                await database.open()
                link.apply(LinkFault.reset())
                for _ in range(turns):
                    await asyncio.sleep(0)
                with pytest.raises(RedisUnavailable, match="cannot be reached"):
                    await database.open()
                link.heal()
            await database.open()

    uvloop.run(at_every_moment_of_it())


# --- the way there and back ---


@pytest.mark.failure("C13")
async def test_what_gathers_shares_a_pipeline(database: RedisDatabase, redis_server: RedisServer):
    await database.run(ECHO, "0")
    before = int(redis_server.info("stats")["total_reads_processed"])
    answers = await asyncio.gather(*(database.run(ECHO, number) for number in range(100)))
    reads = int(redis_server.info("stats")["total_reads_processed"]) - before
    assert answers == [b"%d" % number for number in range(100)]
    assert reads <= 20


async def test_one_that_is_refused_leaves_the_others_of_its_pipeline_alone(database: RedisDatabase):
    answers = await asyncio.gather(
        database.run(ECHO, "a"), database.execute("NO-SUCH-COMMAND"), database.run(ECHO, "b"), return_exceptions=True
    )
    assert (answers[0], answers[2]) == (b"a", b"b")
    assert isinstance(answers[1], RedisUnavailable)


@pytest.mark.failure("C16")
async def test_scripts_that_redis_has_forgotten_are_loaded_again(database: RedisDatabase, redis_server: RedisServer):
    assert await asyncio.gather(database.run(WRITE), database.run(ECHO, "a")) == [1, b"a"]
    redis_server.ask("SCRIPT", "FLUSH")
    assert await asyncio.gather(database.run(ECHO, "b"), database.run(WRITE), database.run(WRITE)) == [b"b", 2, 3]


@pytest.mark.failure("C11")
async def test_a_server_that_was_killed_in_between_is_found_again_with_its_data(redis_of_its_own: RedisServer):
    async with opened(redis_of_its_own.url) as database:
        for count in range(1, 4):
            assert await database.run(WRITE) == count
            redis_of_its_own.kill()
            redis_of_its_own.start()
            await asyncio.sleep(0)  # the end of the old connection is heard, as it is wherever a loop runs


@pytest.mark.failure("C12", "C13", "C20")
async def test_a_frozen_server_is_not_waited_for_and_nothing_is_repeated_unseen(redis_of_its_own: RedisServer):
    async with opened(redis_of_its_own.url, answer_seconds=0.2) as hasty:
        await hasty.run(WRITE)
        redis_of_its_own.freeze()
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(*(hasty.run(WRITE) for _ in range(10)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {RedisUnavailable}
    redis_of_its_own.thaw()
    async with opened(redis_of_its_own.url) as database:
        # What had left was done, once each; what is said now answers what is asked now.
        assert [await database.run(ECHO, word) for word in ("a", "b")] == [b"a", b"b"]
        assert await database.run(WRITE) in (2, 12)


@pytest.mark.failure("C20")
async def test_whoever_hangs_up_takes_no_answer_from_another(database: RedisDatabase):
    for round_ in range(20):
        asked = [asyncio.ensure_future(database.run(ECHO, f"{round_}.{n}")) for n in range(20)]
        await asyncio.sleep(0)
        for hung_up in asked[::2]:
            hung_up.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[1::2] == [f"{round_}.{n}".encode() for n in range(1, 20, 2)]


async def test_a_read_that_blocks_holds_up_nobody(database: RedisDatabase):
    reading = asyncio.ensure_future(database.wait_for("BLPOP", "{rise}:list", 10, seconds=10))
    while b"cmd=blpop" not in await database.execute("CLIENT", "LIST"):
        await asyncio.sleep(0)
    await database.execute("RPUSH", "{rise}:list", "one")
    assert await reading == [b"{rise}:list", b"one"]


async def test_a_read_that_blocks_ends(redis_of_its_own: RedisServer):
    async with opened(redis_of_its_own.url, answer_seconds=0.2) as database:
        assert await database.wait_for("BLPOP", "{rise}:list", 0.01, seconds=0.01) is None
        redis_of_its_own.freeze()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(RedisUnavailable, match="in time"):
                await database.wait_for("BLPOP", "{rise}:list", 0.01, seconds=0.01)


async def test_what_was_asked_before_the_end_is_answered(database: RedisDatabase):
    asked = [asyncio.ensure_future(database.run(WRITE)) for _ in range(3)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*asked) == [1, 2, 3]
    with pytest.raises(RedisUnavailable):
        await database.run(WRITE)


# --- what time it is ---


@pytest.mark.failure("L1", "C19")
async def test_a_server_whose_clock_is_behind_goes_on_from_what_was_kept(
    database: RedisDatabase, redis_server: RedisServer
):
    """Set back, or promoted with another clock: both are one that has seen later times than its own."""
    await database.open()
    kept = int(redis_server.ask("HGET", CLOCK_KEY, "seen")) + DAY_MS
    redis_server.ask("HSET", CLOCK_KEY, "seen", kept)
    await database.open()
    first = database.now_ms()
    assert kept <= first < kept + 60_000
    async with asyncio.timeout(10):
        while database.now_ms() <= first:  # it does not stand still
            await database.open()


@pytest.mark.failure("L1")
async def test_the_clock_of_a_process_does_not_step_back_when_redis_is_emptied(
    database: RedisDatabase, redis_server: RedisServer
):
    redis_server.ask("HSET", CLOCK_KEY, "ahead", DAY_MS)
    await database.open()
    before = database.now_ms()
    redis_server.ask("FLUSHALL")
    await database.open()
    assert database.now_ms() >= before


@pytest.mark.failure("L1", "D17")
async def test_the_clock_is_the_servers_wherever_the_hosts_is(redis_server: RedisServer):
    clock = ManualClock()
    database = RedisDatabase(redis_server.url, clock=clock, answer_seconds=PATIENCE_SECONDS)
    await database.open()
    before = database.now_ms()
    clock.step_wall(-DAY_MS)
    clock.advance(5)
    assert database.now_ms() == before + 5000
    await database.close()


async def test_a_full_redis_still_tells_the_time(redis_of_its_own: RedisServer):
    full(redis_of_its_own)
    async with opened(redis_of_its_own.url) as database:
        await database.open()
        assert database.now_ms() > 0

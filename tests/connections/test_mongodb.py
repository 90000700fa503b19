"""One MongoDB as one process reaches it: its indexes, its errors, what is waited for, and what time it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pymongo.errors
import pytest
from pymongo import MongoClient

from rise.clock import SystemClock
from rise.connections.mongodb import ANSWER_SECONDS, Index, MongoDatabase, mongo_errors
from rise.errors import MongoMisconfigured, MongoUnavailable, RecordTooLarge, Unavailable
from rise.testing.clock import ManualClock
from rise.testing.installation import hold_port
from rise.testing.servers import MongoServer

# PyMongo, cancelled while it connects, leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

INDEXES = {"things": (Index("name", ("name",), is_unique=True), Index("color", ("color", "size"), is_sparse=True))}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """What the driver has left is collected here, and not in somebody else's test."""
    yield
    gc.collect()


@pytest.fixture
def things(running_mongodb: MongoServer) -> Iterator[Any]:
    """The collection, as somebody else sees it."""
    with MongoClient(running_mongodb.url) as client:
        client.drop_database("rise")
        yield client["rise"]["things"]


@pytest.fixture
async def database(running_mongodb: MongoServer, things: Any) -> AsyncIterator[MongoDatabase]:
    database = MongoDatabase(running_mongodb.url, clock=SystemClock(), indexes=INDEXES)
    yield database
    await database.close()


# --- indexes ---


async def test_missing_indexes_are_made(database: MongoDatabase, things: Any):
    await database.open()
    made = things.index_information()
    assert made["name"]["unique"]
    assert made["color"]["key"] == [("color", 1), ("size", 1)]
    assert await database["things"].insert({"_id": 1, "name": "a"})
    assert not await database["things"].insert({"_id": 2, "name": "a"})


@pytest.mark.parametrize(
    "spoilt",
    [
        {"keys": [("name", 1)]},
        {"keys": [("name", 1), ("size", 1)], "unique": True},
        {"keys": [("name", -1)], "unique": True},
        {"keys": [("name", 1)], "unique": True, "sparse": True},
    ],
    ids=["not unique", "of more", "the other way", "not of all"],
)
async def test_another_index_in_its_place_is_refused_with_the_remedy_until_it_is_gone(
    database: MongoDatabase, things: Any, spoilt: dict[str, Any]
):
    things.create_index(spoilt.pop("keys"), name="name", **spoilt)
    for _ in range(2):
        with pytest.raises(MongoMisconfigured, match=r'db\.things\.dropIndex\("name"\)'):
            await database["things"].insert({"_id": 1})
    assert things.count_documents({}) == 0, "nothing is written before it is right"
    things.drop_index("name")
    assert await database["things"].insert({"_id": 1})


def test_an_index_of_a_kind_that_is_not_ours_is_another():
    """By word, because the server of these tests has no such indexes."""
    assert not INDEXES["things"][0].is_like({"name": "name", "key": {"name": "hashed"}, "unique": True})


async def test_what_breaks_a_unique_index_is_named(database: MongoDatabase, things: Any):
    things.insert_many([{"name": "a"}, {"name": "a"}])
    with pytest.raises(MongoMisconfigured, match="the same name"):
        await database.open()


async def test_large_numbers_come_back_as_numbers(database: MongoDatabase):
    await database["things"].insert({"_id": 1, "at": 2**40, "all": [{"at": 2**50}]})
    document = await database["things"].one({"_id": 1})
    assert document is not None
    assert {type(document["at"]), type(document["all"][0]["at"])} == {int}
    changed = await database["things"].change({"_id": 1}, {"$inc": {"at": 1}})
    assert changed is not None
    assert type(changed["at"]) is int
    [drawn] = await database["things"].drawn([{"$group": {"_id": None, "at": {"$max": "$at"}}}])
    assert type(drawn["at"]) is int


# --- errors ---


def every_error_class() -> list[type[Exception]]:
    kinds = (kind for kind in vars(pymongo.errors).values() if isinstance(kind, type))
    return [kind for kind in kinds if issubclass(kind, pymongo.errors.PyMongoError)]


@pytest.mark.failure("C16")
@pytest.mark.parametrize("kind", every_error_class(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_driver_becomes_ours(kind: type[Exception]):
    error = kind.__new__(kind)
    Exception.__init__(error, "hunter2")
    vars(error).update(_OperationFailure__code=1, _OperationFailure__details={})
    with pytest.raises(Unavailable) as raised, mongo_errors():
        raise error
    assert "hunter2" not in str(raised.value), "it may quote what was written"


def test_what_is_too_large_is_not_waited_for():
    with pytest.raises(RecordTooLarge), mongo_errors():
        raise pymongo.errors.DocumentTooLarge("16 MB")


@pytest.mark.parametrize("code", [10334, 17419, 17420])
@pytest.mark.parametrize("kind", [pymongo.errors.OperationFailure, pymongo.errors.WriteError])
def test_what_the_server_calls_too_large_is_not_waited_for(kind: type[pymongo.errors.OperationFailure], code: int):
    """By word: of some writes the server of these tests says that, of others only that it failed."""
    with pytest.raises(RecordTooLarge), mongo_errors():
        raise kind("Resulting document after update is larger than 16777216", code)


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("url", ["mongodb://rise:hunter2@127.0.0.1:1/rise", "mongodb://rise:hunter2@/", "mongodb://%"])
async def test_a_password_is_in_no_error_and_no_log(url: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    database = MongoDatabase(url, clock=SystemClock(), indexes=INDEXES)
    with pytest.raises(MongoUnavailable) as raised:
        await database.ping()
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in caplog.text
    await database.close()


# --- what is waited for ---


@pytest.mark.req("CAP-2")
async def test_where_nobody_listens_everybody_is_told_in_time():
    with hold_port() as held:
        told: list[Unavailable | None] = []
        url = f"mongodb://127.0.0.1:{held.getsockname()[1]}/rise"
        database = MongoDatabase(url, clock=SystemClock(), indexes=INDEXES, on_trouble=told.append)
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            answers = await asyncio.gather(*(database.ping() for _ in range(50)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {MongoUnavailable}
        assert len(told) == 1
        await database.close()


@pytest.mark.failure("F7")
async def test_a_question_that_does_not_end_even_when_it_is_given_up_keeps_nobody_waiting(running_mongodb: MongoServer):
    never = asyncio.Event()

    async def deaf(_: object) -> None:
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await never.wait()

    database = MongoDatabase(running_mongodb.url, clock=SystemClock(), indexes=INDEXES, answer_seconds=1.0)
    await database.ping()
    async with asyncio.timeout(5):
        with pytest.raises(MongoUnavailable):
            await database.ask("things", deaf)
        await database.ping()
    never.set()
    await database.close()


@pytest.mark.req("CAP-5")
async def test_it_is_used_again_when_it_is_back(mongodb_of_its_own: MongoServer):
    told: list[Unavailable | None] = []
    database = MongoDatabase(mongodb_of_its_own.url, clock=SystemClock(), indexes=INDEXES, on_trouble=told.append)
    await database.ping()
    mongodb_of_its_own.kill()
    with pytest.raises(MongoUnavailable):
        await database.ping()
    await asyncio.to_thread(mongodb_of_its_own.start)
    async with asyncio.timeout(4 * ANSWER_SECONDS):
        while told[-1] is not None:
            await asyncio.gather(database.ping(), return_exceptions=True)
    assert [type(trouble) for trouble in told] == [MongoUnavailable, type(None)]
    await database.close()


@pytest.mark.req("CPY-6")
async def test_one_that_comes_back_empty_has_its_indexes_made_anew(database: MongoDatabase, things: Any):
    clock = ManualClock()
    other = MongoDatabase(database._url, clock=clock, indexes=INDEXES, checked_seconds=60)
    await other.open()
    things.drop()
    clock.advance(61)
    await other["things"].insert({"_id": 1, "name": "a"})
    assert {"name", "color"} <= set(things.index_information())
    await other.close()


# --- what time it is ---


async def test_time_is_the_servers_and_never_steps_back(running_mongodb: MongoServer, things: Any):
    clock = ManualClock()
    database = MongoDatabase(running_mongodb.url, clock=clock, indexes=INDEXES, checked_seconds=60)
    real_ms = SystemClock().now().timestamp() * 1000
    first = await database.now_ms()
    assert abs(first - real_ms) < 60_000
    clock.advance(30)
    later = await database.now_ms()
    assert later == first + 30_000
    clock.advance(61)  # the server, asked again, is far behind
    assert await database.now_ms() >= later
    await database.close()

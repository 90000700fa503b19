"""What the doctor says of servers, in the words of log and `/healthz`: there, away, or not as they must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.capabilities import CONSEQUENCES, REMEDIES
from rise.clock import SystemClock
from rise.connections.amqp import Address, AmqpConnection
from rise.connections.rabbitmq import Topology, declare
from rise.copies.rabbitmq import FRESH, FRESH_MAX, PARKED, topology
from rise.runtime.doctor import Doctor, Finding, Level
from rise.settings import load_settings
from rise.testing.model_server import ModelStandIn
from rise.testing.servers import MongoServer, RabbitServer, RedisServer, TemporalServer

pytestmark = pytest.mark.req("OPS-1", "CAP-6")

NOBODY = "127.0.0.1:1"
AWAY = {
    "redis": {"redis_url": f"redis://{NOBODY}"},
    "rabbitmq": {"redis_url": f"redis://{NOBODY}", "rabbitmq_url": f"amqp://{NOBODY}"},
    "mongo": {"redis_url": f"redis://{NOBODY}", "mongodb_url": f"mongodb://{NOBODY}/rise"},
    "temporal": {"temporal_address": NOBODY},
    "llm": {"llm_base_url": f"http://{NOBODY}/v1", "llm_model": "a-model"},
}
"""Settings with which there is nobody."""


def doctor(data_dir: Path, **settings: object) -> Doctor:
    return Doctor(load_settings(data_dir=data_dir, _env_file=None, **settings), SystemClock())


async def found(data_dir: Path, name: str, **settings: object) -> list[Finding]:
    return await doctor(data_dir, **settings).probe(name)


@pytest.mark.parametrize("name", AWAY)
async def test_of_a_server_that_is_away_it_is_said_what_that_means_and_what_to_do(tmp_path: Path, name: str):
    [finding] = await found(tmp_path, name, **AWAY[name])
    assert (finding.name, finding.level) == (name, Level.FAIL)
    assert finding.detail.endswith(f": {CONSEQUENCES[name]}")
    assert finding.remedy == REMEDIES[name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", AWAY)
async def test_of_what_is_not_configured_nothing_is_said(tmp_path: Path, name: str):
    assert await found(tmp_path, name) == []


async def test_a_redis_that_answers_is_well_and_one_that_may_throw_away_is_not(
    tmp_path: Path, redis_of_its_own: RedisServer
):
    [well] = await found(tmp_path, "redis", redis_url=redis_of_its_own.url)
    assert well.level is Level.OK
    redis_of_its_own.ask("CONFIG", "SET", "maxmemory", "100mb")
    redis_of_its_own.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    [ill] = await found(tmp_path, "redis", redis_url=redis_of_its_own.url)
    assert ill.level is Level.WARN
    assert "set maxmemory-policy to noeviction" in ill.detail
    assert redis_of_its_own.ask("DBSIZE") == 0, "it is not made anybody's"


async def make(rabbit: RabbitServer, wanted: Topology) -> None:
    connection = await AmqpConnection.open(Address.read(rabbit.url), clock=SystemClock(), answer_seconds=10.0)
    await declare(connection, wanted)
    await connection.close()


@pytest.mark.req("CPY-1")
async def test_the_parameters_of_rabbitmqs_queues_are_looked_at_and_nothing_is_made(
    tmp_path: Path, empty_rabbit: RabbitServer
):
    settings = {"redis_url": f"redis://{NOBODY}", "rabbitmq_url": empty_rabbit.url}
    [missing] = await found(tmp_path, "rabbitmq", **settings)
    assert missing.level is Level.WARN
    assert FRESH in missing.detail
    assert missing.remedy == "`rise serve` makes them"
    [still_missing] = await found(tmp_path, "rabbitmq", **settings)
    assert still_missing == missing
    await make(empty_rabbit, topology(FRESH_MAX))
    [well] = await found(tmp_path, "rabbitmq", **settings)
    assert (well.level, "quorum queues" in well.detail) == (Level.OK, True)


@pytest.mark.req("CPY-1")
async def test_a_queue_that_is_no_quorum_queue_is_a_failure_that_names_it(tmp_path: Path, empty_rabbit: RabbitServer):
    await make(empty_rabbit, Topology({}, {PARKED: {"x-queue-type": "classic"}}, ()))
    settings = {"redis_url": f"redis://{NOBODY}", "rabbitmq_url": empty_rabbit.url}
    [ill] = await found(tmp_path, "rabbitmq", **settings)
    assert ill.level is Level.FAIL
    assert f"{PARKED} in RabbitMQ is not as Rise declares it" in ill.detail
    assert "inequivalent arg" in ill.detail
    assert "delete it there" in ill.remedy


@pytest.mark.req("CPY-6")
async def test_a_mongodb_that_answers_is_well(tmp_path: Path, running_mongodb: MongoServer):
    url = running_mongodb.url.replace("/rise?", "/doctor?")
    [well] = await found(tmp_path, "mongo", redis_url=f"redis://{NOBODY}", mongodb_url=url)
    assert (well.level, well.detail) == (Level.OK, "answers; its indexes are in place")


@pytest.mark.req("TMP-4")
async def test_a_temporal_that_answers_is_well_and_one_without_the_namespace_is_not(
    tmp_path: Path, running_temporal: TemporalServer
):
    [well] = await found(tmp_path, "temporal", temporal_address=running_temporal.address)
    assert (well.level, well.detail) == (Level.OK, "answers; its namespace is there")
    named = {"temporal_address": running_temporal.address, "temporal_namespace": "nobodys"}
    [ill] = await found(tmp_path, "temporal", **named)
    assert ill.level is Level.FAIL
    assert "Temporal has no namespace nobodys" in ill.detail


@pytest.mark.req("WFL-5")
async def test_a_language_model_that_answers_is_well_and_asked_for_nothing(tmp_path: Path):
    async with ModelStandIn() as server:
        settings = {"llm_base_url": server.url, "llm_model": "stand-in", "llm_api_key": "a-key-of-the-tests"}
        [well] = await found(tmp_path, "llm", **settings)
        server.models = None
        [silent] = await found(tmp_path, "llm", **settings)
    assert (well.level, well.detail) == (Level.OK, "answers; it has stand-in")
    assert (silent.level, silent.detail) == (Level.OK, "answers; which models it has, it does not say")
    assert server.calls == [], "an answer would cost something"


# --- the journal ------------------------------------------------------------------------------------------


async def test_the_journals_own_place_is_looked_at(tmp_path: Path):
    place = tmp_path / "journal"
    settings = {"redis_url": f"redis://{NOBODY}", "journal_dir": place}
    [gone] = await found(tmp_path / "data", "journal", **settings)
    assert (gone.level, gone.remedy) == (Level.FAIL, f"mkdir -m 700 {place}, or mount it")
    place.mkdir(mode=0o700)
    assert {one.level for one in await found(tmp_path / "data", "journal", **settings)} <= {Level.OK, Level.WARN}
    place.chmod(0o755)
    assert f"chmod 700 {place}" in [one.remedy for one in await found(tmp_path / "data", "journal", **settings)]
    assert list(place.iterdir()) == []


async def test_a_journals_place_that_cannot_be_written_is_a_failure(tmp_path: Path):
    nowhere = {"redis_url": f"redis://{NOBODY}", "journal_dir": "/proc"}  # not even root can
    written, *_ = await found(tmp_path / "data", "journal", **nowhere)
    assert written.level is Level.FAIL
    assert "cannot be written" in written.detail

"""Definitions on MongoDB keep every promise of the port, whoever dies over a write of theirs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from mongodb_databases import REAL_URL, Died, MongoPlace, MortalDatabase, StagedDatabase

from rise.definitions.mongodb import INDEXES, MongoDefinitions
from rise.definitions.port import VERSIONS_KEPT, Definition, Kind
from rise.errors import MongoUnavailable, VersionStale
from rise.testing.conformance.definitions import DefinitionsConformance, definition
from rise.testing.servers import MongoServer


class MongoStage(MongoPlace):
    indexes = INDEXES
    definitions: MongoDefinitions

    async def another(self) -> MongoDefinitions:
        return MongoDefinitions(await self.connect(StagedDatabase))


async def staged(url: str) -> AsyncIterator[MongoStage]:
    stage = MongoStage(url)
    stage.definitions = await stage.another()
    yield stage
    await stage.close()


@pytest.mark.req("TST-3", "CPY-6")
class TestMongoDefinitions(DefinitionsConformance):
    @pytest.fixture
    async def stage(self, running_mongodb: MongoServer) -> AsyncIterator[MongoStage]:
        async for stage in staged(running_mongodb.url):
            yield stage


if REAL_URL:

    @pytest.mark.req("TST-3", "CPY-6")
    class TestRealMongoDefinitions(DefinitionsConformance):
        @pytest.fixture
        async def stage(self) -> AsyncIterator[MongoStage]:
            async for stage in staged(REAL_URL):
                yield stage


@pytest.fixture
async def stage(running_mongodb: MongoServer) -> AsyncIterator[MongoStage]:
    async for stage in staged(running_mongodb.url):
        yield stage


@pytest.mark.req("BND-2", "WFL-1", "CPY-6")
@pytest.mark.failure("H5")
@pytest.mark.parametrize("last", [0, 1, VERSIONS_KEPT])
async def test_a_version_that_was_being_written_is_the_next_one_or_was_never_there(stage: MongoStage, last: int):
    for writes in itertools.count(1):
        name = f"greeting {writes}"
        before = [definition(number, name=name) for number in range(1, last + 1)]
        for one in before:
            await stage.definitions.put(one)
        following = definition(last + 1, name=name, body=b'{"text":"Hello"}')
        after = [following, *before[::-1]][:VERSIONS_KEPT]
        changes = await stage.definitions.changes()
        has_died = await interrupted(stage, following, writes)
        found = await stage.definitions.versions(Kind.PROMPT, name, limit=1000)
        assert found in (before[::-1], after), writes
        assert await stage.definitions.changes() == changes + (following in found)
        await stage.definitions.put(following)
        assert await stage.definitions.versions(Kind.PROMPT, name, limit=1000) == after
        assert await stage.definitions.changes() == changes + 1
        if not has_died:
            break


async def interrupted(stage: MongoStage, following: Definition, writes: int) -> bool:
    """Whether the process died over it, after so many writes."""
    database = await stage.connect(MortalDatabase)
    database.writes_left = writes
    try:
        await MongoDefinitions(database).put(following)
    except Died:
        return True
    return False


@pytest.mark.req("BND-2", "EMB-3")
async def test_of_many_hosts_that_follow_one_version_one_succeeds_and_its_former_is_kept(stage: MongoStage):
    await stage.definitions.put(definition(1))
    hosts = [await stage.another() for _ in range(6)]
    tries = [host.put(definition(2, by=f"person {number}")) for number, host in enumerate(hosts)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(VersionStale) == 5
    last, former = await stage.definitions.versions(Kind.PROMPT, "greeting", limit=9)
    assert (last.version, former) == (2, definition(1))


async def test_while_everything_changes_all_the_time_it_is_asked_for_again_later(
    stage: MongoStage, monkeypatch: pytest.MonkeyPatch
):
    counts = itertools.count()

    async def changes() -> int:
        return next(counts)

    monkeypatch.setattr(stage.definitions, "changes", changes)
    with pytest.raises(MongoUnavailable, match="all the time"):
        await stage.definitions.latest([Kind.PROMPT])

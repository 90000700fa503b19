"""The ledger on MongoDB keeps every promise of the port, on a server that speaks its protocol and on a real one.

That server is one without replicas: what an election or a rollback does is not shown here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from mongodb_databases import REAL_URL
from mongodb_stage import MongoStage, staged

from rise.testing.conformance.ledger import LedgerConformance
from rise.testing.servers import MongoServer


@pytest.mark.req("TST-3", "CPY-6")
class TestMongoLedger(LedgerConformance):
    @pytest.fixture
    async def stage(self, running_mongodb: MongoServer) -> AsyncIterator[MongoStage]:
        async for stage in staged(running_mongodb.url):
            yield stage


if REAL_URL:

    @pytest.mark.req("TST-3", "CPY-6")
    class TestRealMongoLedger(LedgerConformance):
        @pytest.fixture
        async def stage(self) -> AsyncIterator[MongoStage]:
            async for stage in staged(REAL_URL):
                yield stage

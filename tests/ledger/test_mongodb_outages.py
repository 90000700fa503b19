"""MongoDB killed or cut off under the ledger: what was acknowledged is there, and the rest can be said again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from rise.clock import SystemClock
from rise.connections.mongodb import ANSWER_SECONDS, MongoDatabase
from rise.envelope import Outcome, Status
from rise.errors import MongoUnavailable
from rise.ledger.mongodb import INDEXES, MongoLedger
from rise.ledger.port import RunResult
from rise.testing.conformance.ledger import ANSWERED, chunks, send_everything, task
from rise.testing.faults.proxy import FaultProxy, LinkFault
from rise.testing.servers import MongoServer

# PyMongo, cancelled while it connects, leaves its socket to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

TASKS = 120
AT_ONCE = 8


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """What the driver has left is collected here, and not in somebody else's test."""
    yield
    gc.collect()


@pytest.fixture
async def proxy(mongodb_of_its_own: MongoServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(mongodb_of_its_own.port) as proxy:
        yield proxy


@pytest.fixture
async def database(mongodb_of_its_own: MongoServer) -> AsyncIterator[MongoDatabase]:
    database = MongoDatabase(mongodb_of_its_own.url, clock=SystemClock(), indexes=INDEXES)
    yield database
    await database.close()


@pytest.fixture
async def behind_proxy(proxy: FaultProxy) -> AsyncIterator[MongoDatabase]:
    url = f"mongodb://{proxy.url.partition('://')[2]}/rise?directConnection=true"
    database = MongoDatabase(url, clock=SystemClock(), indexes=INDEXES)
    yield database
    await database.close()


async def save(ledger: MongoLedger, number: int) -> None:
    of = task(number, chat=str(number % 5))
    await ledger.save_result(of, ANSWERED, chunks(of, 2), [], deliver=True)


async def insist(ledger: MongoLedger, number: int) -> int:
    """As a worker does. Returns how often it was refused."""
    for refused in range(1000):
        try:
            await save(ledger, number)
        except MongoUnavailable:
            await asyncio.sleep(0.1)
        else:
            return refused
    raise AssertionError("MongoDB does not come back")


@pytest.mark.req("CPY-6", "CPY-7")
@pytest.mark.failure("F1")
async def test_what_was_acknowledged_when_it_was_killed_is_there_and_the_rest_is_saved_once(
    mongodb_of_its_own: MongoServer, database: MongoDatabase
):
    ledger = MongoLedger(database, SystemClock())
    acknowledged: set[int] = set()
    is_under_way = asyncio.Event()
    numbers = iter(range(1, TASKS + 1))

    async def save_some() -> int:
        refused = 0
        for number in numbers:
            refused += await insist(ledger, number)
            acknowledged.add(number)
            if len(acknowledged) >= TASKS // 3:
                is_under_way.set()
        return refused

    async def kill_and_start() -> set[int]:
        await is_under_way.wait()
        kept = set(acknowledged)
        mongodb_of_its_own.kill()
        await asyncio.to_thread(mongodb_of_its_own.start)
        looking = MongoDatabase(mongodb_of_its_own.url, clock=SystemClock(), indexes=INDEXES)
        runs = [await MongoLedger(looking, SystemClock()).run(task(number).run_id) for number in kept]
        await looking.close()
        assert None not in runs
        return kept

    kept, *refused = await asyncio.gather(kill_and_start(), *(save_some() for _ in range(AT_ONCE)))
    assert sum(refused) > 0, "it was killed while it was written to"
    assert len(kept) < TASKS
    fence = await ledger.outbox_open()
    sent = await send_everything(ledger, fence)
    assert sorted(sent) == sorted(f"{number}.{chunk}" for number in range(1, TASKS + 1) for chunk in (0, 1))
    assert await ledger.finished_counts() == {"completed.answered": TASKS}


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F6")
async def test_an_answer_that_was_lost_on_the_way_is_asked_for_again(proxy: FaultProxy, behind_proxy: MongoDatabase):
    ledger = MongoLedger(behind_proxy, SystemClock())
    await save(ledger, 1)
    proxy.apply(LinkFault.lost_answer())
    with pytest.raises(MongoUnavailable):
        await save(ledger, 2)
    proxy.heal()
    assert await insist(ledger, 2) < 100
    assert sorted(await send_everything(ledger, await ledger.outbox_open())) == ["1.0", "1.1", "2.0", "2.1"]


@pytest.mark.req("CPY-6", "CAP-5")
async def test_a_link_that_holds_everything_back_is_given_up_in_time_and_used_again_when_it_is_healed(
    proxy: FaultProxy, behind_proxy: MongoDatabase
):
    ledger = MongoLedger(behind_proxy, SystemClock())
    await ledger.save_result(task(), RunResult(outcome=Outcome.SILENT), [], [], deliver=True)
    proxy.apply(LinkFault.blackhole())
    async with asyncio.timeout(2 * ANSWER_SECONDS + 2):
        answers = await asyncio.gather(*(ledger.run(task().run_id) for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {MongoUnavailable}
    proxy.heal()
    await insist(ledger, 2)
    run = await ledger.run(task().run_id)
    assert run is not None
    assert run.status is Status.COMPLETED

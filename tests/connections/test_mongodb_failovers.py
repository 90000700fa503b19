"""MongoDB fails over under the ledger and the definitions: nothing is lost, nothing is there twice, and it goes on.

The replica set of these tests is a script (`mongodb_replica_set.py`): two members that answer as a primary that steps
down does, or one without a majority, in front of one real server that has no replicas. Election, replication and
rollback themselves are not shown here: they need a real replica set.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from mongodb_databases import in_a_database_of_its_own
from mongodb_replica_set import (
    MAJORITY_UNKNOWN,
    READS,
    STEP_DOWNS,
    UNCONFIRMED,
    WRITES,
    Document,
    Forward,
    ReplicaSet,
    Script,
    kind_of,
)

from rise.clock import SystemClock
from rise.connections.mongodb import ANSWER_SECONDS, MongoDatabase
from rise.definitions.mongodb import INDEXES as DEFINITIONS_INDEXES
from rise.definitions.mongodb import MongoDefinitions
from rise.definitions.port import Kind
from rise.envelope import Status
from rise.errors import MongoUnavailable, Unavailable
from rise.ledger.mongodb import INDEXES as LEDGER_INDEXES
from rise.ledger.mongodb import MongoLedger
from rise.ledger.port import Attempt, HistoryLine, Reply, ReplyState, Sent
from rise.testing.conformance.definitions import definition
from rise.testing.conformance.ledger import ANSWERED, chunks, notice, numbered, send_everything, states, take_one, task
from rise.testing.servers import MongoServer

# PyMongo, cancelled while it connects, leaves its socket to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

INDEXES = {**LEDGER_INDEXES, **DEFINITIONS_INDEXES}
TURNS = [HistoryLine(role="user", text="q", at_ms=1), HistoryLine(role="assistant", text="a", at_ms=1)]
REFUSALS_MAX = 5
TASKS = 30
AT_ONCE = 6
WRITES_OF_A_PRIMARY = 13


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """What the driver has left is collected here, and not in somebody else's test."""
    yield
    gc.collect()


class House:
    """A process, and the replica set that it is served by."""

    def __init__(self, replicas: ReplicaSet, options: str = "") -> None:
        self.replicas = replicas
        self.told: list[Unavailable | None] = [None]
        """Why there is no MongoDB, or None when there is again."""
        url = replicas.url + options
        self.database = MongoDatabase(url, clock=SystemClock(), indexes=INDEXES, on_trouble=self.told.append)
        self.definitions = MongoDefinitions(self.database)
        self.ledger = MongoLedger(self.database, SystemClock())

    async def begin_anew(self) -> None:
        """With nothing, and knowing of nothing."""
        await self.replicas.empty()
        self.ledger = MongoLedger(self.database, SystemClock())


@asynccontextmanager
async def served(server: MongoServer, options: str = "") -> AsyncIterator[House]:
    async with ReplicaSet(in_a_database_of_its_own(server.url)) as replicas:
        house = House(replicas, options)
        try:
            await house.database.open()
            yield house
        finally:
            await house.database.close()


@pytest.fixture
async def house(running_mongodb: MongoServer) -> AsyncIterator[House]:
    async with served(running_mongodb) as house:
        yield house


async def insist(work: Callable[[], Awaitable[Any]], refusals_max: int = REFUSALS_MAX) -> Any:
    """As whoever asks for it does. The driver waits for a primary, so that nobody has to sleep here."""
    for _ in range(refusals_max):
        try:
            return await work()
        except MongoUnavailable as refused:
            last = refused
    raise last


async def is_told_that_it_is_done(house: House, step: Step) -> bool:
    try:
        await step.do(house)
    except MongoUnavailable:
        return False
    return True


# --- what must be done once ---


class Step:
    """Something that is written, in so many writes."""

    async def prepare(self, house: House) -> None:
        """What comes before."""

    async def do(self, house: House) -> None:
        raise NotImplementedError

    async def check(self, house: House) -> None:
        """It has been done, and once."""
        raise NotImplementedError


class ResultSaved(Step):
    async def do(self, house: House) -> None:
        run = await house.ledger.save_result(task(), ANSWERED, chunks(task(), 2), TURNS, deliver=True)
        assert run.status is Status.REPLYING

    async def check(self, house: House) -> None:
        assert await send_everything(house.ledger, await house.ledger.outbox_open()) == ["1.0", "1.1"]
        assert await house.ledger.finished_counts() == {"completed.answered": 1}
        assert [turn.text for turn in await house.ledger.history("telegram", "7", "1", limit=9)] == ["q", "a"]


class ReplyRecorded(Step):
    async def prepare(self, house: House) -> None:
        await ResultSaved().do(house)
        self.fence = await house.ledger.outbox_open()
        self.reply = await take_one(house.ledger, self.fence)
        self.next: Reply | None = None
        await house.ledger.outbox_sending(self.fence, self.reply)

    async def do(self, house: House) -> None:
        self.next = (await house.ledger.outbox_record(self.fence, self.reply, Sent("m"))).next

    async def check(self, house: House) -> None:
        assert self.next is not None
        assert self.next.call.text == "1.1"
        assert await states(house.ledger, task().run_id) == ["sent", "ready"]
        assert await send_everything(house.ledger, await house.ledger.outbox_open()) == ["1.1"]


class SendingBegun(Step):
    """As a sender does it: whoever does not know how far it got begins again with another fence."""

    async def prepare(self, house: House) -> None:
        await ResultSaved().do(house)

    async def do(self, house: House) -> None:
        fence = await house.ledger.outbox_open()
        reply = await take_one(house.ledger, fence)
        assert reply.call.text == "1.0"
        if reply.state is ReplyState.READY:
            await house.ledger.outbox_sending(fence, reply)

    async def check(self, house: House) -> None:
        assert await states(house.ledger, task().run_id) == ["sending", "ready"]


class StepSaved(Step):
    async def do(self, house: House) -> None:
        assert await house.ledger.save_step(task().run_id, "look up", b"found") == b"found"

    async def check(self, house: House) -> None:
        assert await house.ledger.save_step(task().run_id, "look up", b"another") == b"found"
        assert await house.ledger.steps(task().run_id) == {"look up": b"found"}


class AttemptNoted(Step):
    attempt = Attempt(at_ms=1, error="it failed", counted=True)

    async def do(self, house: House) -> None:
        await house.ledger.add_attempt(task().run_id, self.attempt)

    async def check(self, house: House) -> None:
        assert await house.ledger.attempts(task().run_id) == [numbered(self.attempt, 1)]


class RunEnded(Step):
    async def do(self, house: House) -> None:
        await house.ledger.finish(task(), Status.DROPPED, by="ann", why="spam")

    async def check(self, house: House) -> None:
        run = await house.ledger.run(task().run_id)
        assert run is not None
        assert run.status is Status.DROPPED
        assert await house.ledger.finished_counts() == {"dropped": 1}


class NoticeAdded(Step):
    async def do(self, house: House) -> None:
        await house.ledger.add_notice(notice(task(), "queued"))

    async def check(self, house: House) -> None:
        assert await send_everything(house.ledger, await house.ledger.outbox_open()) == ["queued"]


class BindingChanged(Step):
    first, second = definition(1, kind=Kind.BINDINGS), definition(2, kind=Kind.BINDINGS, body=b'{"default":"greeter"}')

    async def prepare(self, house: House) -> None:
        await house.definitions.put(self.first)

    async def do(self, house: House) -> None:
        await house.definitions.put(self.second)

    async def check(self, house: House) -> None:
        assert await house.definitions.versions(Kind.BINDINGS, self.first.name, limit=9) == [self.second, self.first]
        assert await house.definitions.changes() == 2


class BindingMade(Step):
    async def do(self, house: House) -> None:
        await house.definitions.put(BindingChanged.first)

    async def check(self, house: House) -> None:
        assert await house.definitions.versions(Kind.BINDINGS, "greeting", limit=9) == [BindingChanged.first]


STEPS = [
    ResultSaved,
    ReplyRecorded,
    SendingBegun,
    StepSaved,
    AttemptNoted,
    RunEnded,
    NoticeAdded,
    BindingChanged,
    BindingMade,
]

of_every_step = pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)


Play = Callable[[House, Step], Awaitable[None]]


async def at_each_write(house: House, make: type[Step], script: Callable[[ReplicaSet], Script], play: Play) -> None:
    """Let this become of the step's first write, and play on; then of its second, beginning anew; and so on."""
    for number in itertools.count(1):
        await house.begin_anew()
        step = make()
        await step.prepare(house)
        house.replicas.script(number, script(house.replicas))
        try:
            await step.do(house)
        except MongoUnavailable:
            await play(house, step)
            is_over = False
        else:
            is_over = house.replicas.drop_scripts()
            assert is_over, f"write {number} was not confirmed, and nobody was told"
        await insist(house.database.ping)
        await step.check(house)
        if is_over:
            break
    assert number > 1, "it writes something"


# --- the primary steps down ---

STEP_DOWN_SCRIPTS: dict[str, Callable[[ReplicaSet], Script]] = {
    "before the effect": lambda replicas: replicas.steps_down_before(10107),
    "after the effect": lambda replicas: replicas.steps_down_after(11602),
    "before it is confirmed, and kept": lambda replicas: replicas.steps_down_before_it_is_confirmed(189, is_kept=True),
    "before it is confirmed, and rolled back": lambda replicas: replicas.steps_down_before_it_is_confirmed(
        11602, is_kept=False
    ),
}


@pytest.mark.req("CPY-6", "CAP-5", "OUT-1", "WRK-4", "WFL-4", "BND-2")
@pytest.mark.failure("F1", "F2", "F4")
@of_every_step
@pytest.mark.parametrize("ending", STEP_DOWN_SCRIPTS)
async def test_what_was_written_when_the_primary_stepped_down_is_there_once(
    house: House, make: type[Step], ending: str
):
    async def play(house: House, step: Step) -> None:
        await house.replicas.elect()
        await insist(lambda: step.do(house))

    await at_each_write(house, make, STEP_DOWN_SCRIPTS[ending], play)


@pytest.mark.req("CPY-6", "CAP-5", "OUT-1", "WRK-4")
@pytest.mark.failure("F2", "F3", "F4")
async def test_while_one_primary_follows_another_every_result_is_saved_once(house: House):
    endings = itertools.cycle(STEP_DOWN_SCRIPTS.values())
    failovers = 0

    def fail_over_soon() -> None:
        ending = next(endings)(house.replicas)

        async def script(forward: Forward) -> Document:
            nonlocal failovers
            failovers += 1
            answer = await ending(forward)
            await house.replicas.elect()
            fail_over_soon()
            return answer

        house.replicas.script(WRITES_OF_A_PRIMARY, script)

    async def save(numbers: Iterator[int]) -> None:
        for number in numbers:
            of = task(number, chat=str(number % 5))
            save = partial(house.ledger.save_result, of, ANSWERED, chunks(of, 2), [], deliver=True)
            assert (await insist(save, REFUSALS_MAX * AT_ONCE)).status is Status.REPLYING

    fail_over_soon()
    numbers = iter(range(1, TASKS + 1))
    await asyncio.gather(*(save(numbers) for _ in range(AT_ONCE)))
    assert failovers > 2 * len(STEP_DOWN_SCRIPTS)
    house.replicas.drop_scripts()
    await insist(house.database.ping)
    sent = await send_everything(house.ledger, await house.ledger.outbox_open())
    assert sorted(sent) == sorted(f"{number}.{chunk}" for number in range(1, TASKS + 1) for chunk in (0, 1))
    assert await house.ledger.finished_counts() == {"completed.answered": TASKS}


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F10")
async def test_after_an_election_the_indexes_are_seen_to_before_anything_is_written(house: House):
    house.replicas.script(1, house.replicas.steps_down_before(189))
    with pytest.raises(MongoUnavailable):
        await StepSaved().do(house)
    await house.replicas.lose_index("steps", "step")
    await house.replicas.elect()
    house.replicas.commands.clear()
    await insist(lambda: StepSaved().do(house))
    kinds = [kind_of(command) for command in house.replicas.commands]
    assert kinds.index("createIndexes") < kinds.index("insert")
    await StepSaved().check(house)


# --- a majority is missing ---


def loses_majority(replicas: ReplicaSet) -> Script:
    return replicas.loses_majority(64)


@pytest.mark.req("CPY-6", "OUT-1", "WRK-4", "WFL-4", "BND-2")
@pytest.mark.failure("F3", "F4", "F6")
@of_every_step
@pytest.mark.parametrize("is_rolled_back", [False, True], ids=["confirmed later", "rolled back"])
async def test_what_no_majority_has_is_not_taken_for_written_however_often_it_is_repeated(
    house: House, make: type[Step], is_rolled_back: bool
):
    async def play(house: House, step: Step) -> None:
        was_told = [await is_told_that_it_is_done(house, step) for _ in range(3)]
        if is_rolled_back:
            await house.replicas.elect()
        else:
            house.replicas.regain_majority()
        if not any(was_told):
            await insist(lambda: step.do(house))

    await at_each_write(house, make, loses_majority, play)


@pytest.mark.req("CPY-6", "OUT-1", "WRK-4", "WFL-4", "BND-2")
@pytest.mark.failure("F3", "F4")
@of_every_step
async def test_what_is_found_there_is_not_taken_for_written_if_it_is_rolled_back_right_after(
    house: House, make: type[Step]
):
    """The repetition finds what only the former primary had: that it is there already is no confirmation."""

    async def play(house: House, step: Step) -> None:
        house.replicas.script(1, house.replicas.is_followed_by_another_primary())
        was_told = await is_told_that_it_is_done(house, step)
        if house.replicas.drop_scripts():
            await house.replicas.elect()  # it wrote nothing
        if not was_told:
            await insist(lambda: step.do(house))

    await at_each_write(house, make, loses_majority, play)


# --- what is said of it ---


@pytest.mark.req("CPY-6", "CAP-2")
@pytest.mark.failure("F2", "C16")
@pytest.mark.parametrize("code", STEP_DOWNS, ids=STEP_DOWNS.get)
@pytest.mark.parametrize("ending", ["before", "after", "confirming"])
async def test_a_step_down_is_called_one_whenever_it_comes(house: House, code: int, ending: str):
    scripts = {
        "before": house.replicas.steps_down_before(code),
        "after": house.replicas.steps_down_after(code),
        "confirming": house.replicas.steps_down_before_it_is_confirmed(code, is_kept=True),
    }
    for make in (StepSaved, AttemptNoted):
        house.replicas.script(1, scripts[ending])
        with pytest.raises(MongoUnavailable, match="no primary any more; it goes on by itself after the election"):
            await make().do(house)
        await house.replicas.elect()
        await insist(house.database.ping)


@pytest.mark.req("CPY-6", "CAP-2", "CAP-5")
@pytest.mark.failure("F2")
async def test_until_another_is_elected_there_is_said_to_be_no_primary(house: House):
    house.replicas.step_down()
    async with asyncio.timeout(4 * ANSWER_SECONDS):
        while "has no primary now" not in str(house.told[-1]):
            with pytest.raises(MongoUnavailable):
                await house.database.ping()
    await house.replicas.elect()
    await insist(house.database.ping)
    assert house.told[-1] is None


@pytest.mark.req("CPY-6", "CAP-2")
async def test_a_member_asked_alone_that_is_no_primary_any_more_says_what_helps(house: House):
    alone = MongoDatabase(house.replicas.url_of_one_member, clock=SystemClock(), indexes=INDEXES)
    await alone.ping()
    await house.replicas.elect()
    with pytest.raises(MongoUnavailable, match="after the election if RISE_MONGODB_URL names the whole replica set"):
        await alone.ping()
    await alone.close()


@pytest.mark.req("CPY-6", "CAP-2")
@pytest.mark.failure("F6")
@pytest.mark.parametrize("code", UNCONFIRMED, ids=UNCONFIRMED.get)
async def test_a_majority_that_is_missing_is_named(house: House, code: int):
    await house.replicas.lose_majority(code)
    with pytest.raises(MongoUnavailable, match="a majority has what was written"):
        await StepSaved().do(house)
    assert await house.ledger.steps(task().run_id) == {}, "what no majority has, nobody goes on from"
    house.replicas.regain_majority()
    await StepSaved().do(house)
    assert house.told[-1] is None


@pytest.mark.req("CPY-6", "CAP-2")
@pytest.mark.parametrize("code", MAJORITY_UNKNOWN, ids=MAJORITY_UNKNOWN.get)
async def test_one_that_does_not_know_yet_what_a_majority_has_is_waited_for(house: House, code: int):
    house.replicas.script(1, house.replicas.refuses(code), kinds=READS)
    with pytest.raises(MongoUnavailable, match="does not know yet what a majority has; it goes on by itself"):
        await house.ledger.run(task().run_id)
    await insist(partial(house.ledger.run, task().run_id))


# --- what goes over the wire ---

EASY_GOING = (
    "&w=1&journal=false&readConcernLevel=local&readPreference=secondaryPreferred&retryWrites=true&retryReads=true"
)


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F3")
async def test_whatever_the_url_says_only_a_majority_is_asked_for_and_believed(running_mongodb: MongoServer):
    async with served(running_mongodb, EASY_GOING) as house:
        await ReplyRecorded().prepare(house)
        await BindingChanged().prepare(house)
        commands = house.replicas.commands
        asked = [command.get("readConcern") for command in commands if kind_of(command) in {"find", "aggregate"}]
        written = [command.get("writeConcern") for command in commands if kind_of(command) in WRITES]
    assert asked == [{"level": "majority"}] * len(asked)
    assert written == [{"w": "majority", "j": True, "wtimeout": 3000}] * len(written)
    assert min(len(asked), len(written)) > 6
    assert not [command for command in commands if "txnNumber" in command or "$readPreference" in command]


@pytest.mark.req("CPY-6")
@pytest.mark.failure("F2")
@pytest.mark.parametrize("kinds", [WRITES, READS], ids=["writing", "reading"])
async def test_nobody_repeats_unseen_what_a_primary_refused_that_stepped_down(
    running_mongodb: MongoServer, kinds: frozenset[str]
):
    async with served(running_mongodb, EASY_GOING) as house:

        def steps_down_and_is_followed() -> Script:
            async def script(forward: Forward) -> Document:
                answer = await house.replicas.steps_down_before(189)(forward)
                await house.replicas.elect()
                return answer

            return script

        house.replicas.commands.clear()
        house.replicas.script(1, steps_down_and_is_followed(), kinds=kinds)
        with pytest.raises(MongoUnavailable):
            await ResultSaved().do(house)
        assert [kind_of(command) in kinds for command in house.replicas.commands].count(True) == 1

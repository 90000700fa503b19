"""Whatever is done to them, the ledger in memory and the one on MongoDB say the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from agreement import Refused, answers_in, compare
from pymongo import MongoClient
from test_ledger_agreement import COMMANDS, GENERATIONS_KNOWN, TASKS, Asked, Replies, TwoLedgers, _comparable, picked

from rise.connections.mongodb import MongoDatabase
from rise.envelope import run_id_of
from rise.errors import ClaimLost
from rise.ledger.kept import HISTORY_KEPT
from rise.ledger.mongodb import INDEXES, MongoLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import task
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.servers import MongoServer

_numbers = itertools.count()


class StoreClock:
    """What both go by."""

    def __init__(self, clock: ManualClock, store_ms: int) -> None:
        self._clock = clock
        self._ahead_ms = store_ms - int(clock.monotonic() * 1000)

    def now_ms(self) -> int:
        return self._ahead_ms + int(self._clock.monotonic() * 1000)


class MemoryAndMongo(TwoLedgers):
    """Each command goes to both."""

    def __init__(self, server: MongoServer, runner: asyncio.Runner) -> None:
        self.answer = answers_in(runner)
        self.clock = ManualClock()
        self.url = server.url.replace("/rise?", f"/agreement_{next(_numbers)}?")
        mongodb = MongoDatabase(self.url, clock=self.clock, indexes=INDEXES, answer_seconds=30, checked_seconds=1e9)
        self.mongodb = mongodb
        self.database = StoreClock(self.clock, self.answer(mongodb.now_ms()))
        self.real = MongoLedger(mongodb, self.clock)
        self.state = MemoryLedgerState()
        self.fake = MemoryLedger(self.state, now_ms=self.database.now_ms, history_kept=HISTORY_KEPT)
        self.fences = []
        self.taken = []
        self.unsent = []
        self.outbox_open()

    def look(self) -> None:
        for number in TASKS:
            task_id = task(number).task_id
            self.agree(lambda ledger, task_id=task_id: ledger.archived(task_id))
            self.agree(lambda ledger, task_id=task_id: ledger.replies(task_id=task_id))
            for generation in GENERATIONS_KNOWN:
                run_id = run_id_of(task_id, generation)
                self.agree(lambda ledger, run_id=run_id: ledger.run(run_id))
                self.agree(lambda ledger, run_id=run_id: ledger.steps(run_id))
        self.agree(lambda ledger: ledger.finished_counts())
        self.agree(lambda ledger: ledger.ended(limit=2))
        self.agree(lambda ledger: ledger.outbox_depth())
        # Where two chats become one, MongoDB's ledger tells by the time what came first.
        self.clock.advance(0.125)

    def outbox_open(self) -> None:
        self.fences.append({ledger: self.answer(ledger.outbox_open()) for ledger in (self.fake, self.real)})
        self.unsent.clear()

    def save_step(self, number: int, step: str, value: bytes) -> None:
        """Not of a run that has ended: whoever says its end again forgets its steps again."""
        stored = self.state.runs.get(task(number).run_id)
        if stored is None or not stored.run.status.is_finished:
            super().save_step(number, step, value)

    def outbox_take_with(self, pick: int, limit: int) -> None:
        """Not as a sender that has been voided: MongoDB's ledger says so also where there is nothing to take."""
        self._take(self.fences[-1], limit, 0, [], [])

    def _sending(self, replies: Replies) -> Any:
        """Only what is out: with a claim that was given back, MongoDB's ledger refuses what the others let pass."""
        handed_out = replies[self.fake]
        claim, _ = self.state.claims.get((handed_out.channel, handed_out.account, handed_out.chat_id), (None, None))
        return super()._sending(replies) if claim == handed_out.claim else Refused(ClaimLost)

    def spoil_call(self, pick: int) -> None:
        waiting = [key for key, stored in self.state.replies.items() if stored.waits]
        if waiting:
            reply_id = picked(waiting, pick)
            self.state.spoil_call(reply_id)
            with MongoClient(self.url) as client:
                runs = client.get_default_database()["runs"]
                run = runs.find_one({"replies.reply_id": reply_id}) or {}
                place = [reply["reply_id"] for reply in run["replies"]].index(reply_id)
                runs.update_one({"_id": run["_id"]}, {"$set": {f"replies.{place}.call": b"spoilt"}})

    def spoil_result(self, pick: int) -> None:
        run_id = self._some_task(pick).run_id
        if run_id in self.state.runs:
            self.state.spoil_result(run_id)
            with MongoClient(self.url) as client:
                client.get_default_database()["runs"].update_one({"_id": run_id}, {"$set": {"result": b"spoilt"}})

    def agree(self, call: Asked) -> tuple[Any, Any]:
        fake, real = self.answer(call(self.fake)), self.answer(call(self.real))
        assert _comparable(fake) == _comparable(real)
        return fake, real

    def close(self) -> None:
        self.answer(self.mongodb.close())
        with MongoClient(self.url) as client:
            client.drop_database(client.get_default_database().name)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.req("TST-3")
@pytest.mark.slow
def test_both_say_the_same_whatever_is_done(
    running_mongodb: MongoServer, runner: asyncio.Runner, request: pytest.FixtureRequest
):
    opened: list[MemoryAndMongo] = []

    def pair() -> MemoryAndMongo:
        while opened:
            opened.pop().close()
        opened.append(MemoryAndMongo(running_mongodb, runner))
        return opened[0]

    compare(pair, COMMANDS, request.config, examples_per_cent=5)
    opened.pop().close()

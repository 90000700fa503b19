"""Whatever is done to them, the ledger in memory and the one on MongoDB say the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agreement import answers_in, command, commands, compare, picked
from hypothesis import strategies as st
from test_ledger_agreement import CHATS, COMMANDS, NUMBERS, PICKS, TASKS, Asked, TwoLedgers, _comparable
from test_ledger_agreement import GENERATIONS_KNOWN as GENERATIONS

from rise.connections.mongodb import MongoDatabase
from rise.envelope import run_id_of
from rise.ledger.mongodb import HISTORY_KEPT, INDEXES, MongoLedger
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import task
from rise.testing.fakes.ledger import MemoryLedger, MemoryLedgerState
from rise.testing.servers import MongoServer

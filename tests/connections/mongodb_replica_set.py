"""A replica set of two members in front of one server that has no replicas, which fails over by a script.

Both members pass on what they are asked to the same server, so whichever is elected has the same documents. What is
scripted, and is not what a real replica set works out by itself: who is primary, when it steps down and with which
code, and whether a majority has what was written. While none has, writes take effect on the primary alone and are
answered with a writeConcernError, also those that change nothing or find a document there already; who reads what a
majority has reads what there was before; and whoever is elected then has only that: the rest is rolled back.

Commands are answered one at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import bson
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.uri_parser import parse_uri

from rise.clock import SystemClock
from rise.service import cancel_all, spawn
from rise.testing.telegram.stand_in_time import Changes

Document = dict[str, Any]
Forward = Callable[[], Awaitable[Document]]
"""Let the command take effect. Its answer, as the primary gives it."""
Script = Callable[[Forward], Awaitable[Document]]
"""What becomes of a command, and what is answered."""

WRITES: Final = frozenset({"insert", "update", "delete", "findAndModify"})
READS: Final = frozenset({"find", "aggregate", "getMore"})
NAME: Final = "scripted"
STEP_DOWNS: Final = {
    10107: "NotWritablePrimary",
    189: "PrimarySteppedDown",
    11602: "InterruptedDueToReplStateChange",
    91: "ShutdownInProgress",
}
"""The codes with which a primary that is none any more answers."""
UNCONFIRMED: Final = {64: "WriteConcernFailed", 100: "UnsatisfiableWriteConcern"}
"""The codes with which a primary says that no majority has what was written."""
MAJORITY_UNKNOWN: Final = {134: "ReadConcernMajorityNotAvailableYet"}
"""The code with which it says, right after its start, that it cannot tell what a majority has."""

_HELLOS: Final = frozenset({"hello", "ismaster", "isMaster"})
_ANYBODYS: Final = frozenset({"ping", "endSessions"})
"""What a member answers that is no primary."""
_HEADER: Final = struct.Struct("<iiii")
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_MORE_TO_COME: Final = 1 << 1
_EXHAUST_ALLOWED: Final = 1 << 16
_of_election: Final = itertools.count(1)


class ReplicaSet:
    """`async with ReplicaSet(url_of_the_server) as replicas:` is reached under `replicas.url`."""

    def __init__(self, url: str) -> None:
        """`url`: names the database that is failed over."""
        place = parse_uri(url)
        self._server = place["nodelist"][0]
        self._database = str(place["database"])
        self._majority_database = f"{self._database}_majority"
        self._direct: AsyncMongoClient[Document] = AsyncMongoClient(url)
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes = Changes()
        self._one_at_a_time = asyncio.Lock()
        self._elected = 0
        self._has_primary = True
        self._election_id = _election_id()
        self._version = 1
        self._process_ids = (ObjectId(), ObjectId())
        self._unconfirmed_by: int | None = None
        self._scripts: list[tuple[int, frozenset[str], Script]] = []
        self.commands: list[Document] = []
        """Those that were put to a member about documents, without the documents that follow them."""

    @property
    def url(self) -> str:
        return f"mongodb://{','.join(self._hosts())}/{self._database}?replicaSet={NAME}"

    @property
    def url_of_one_member(self) -> str:
        return f"mongodb://{self._hosts()[0]}/{self._database}?directConnection=true"

    async def __aenter__(self) -> Self:
        for member in range(2):
            listener = await asyncio.start_server(self._met_by(member), "127.0.0.1", 0)
            self._listeners.append(listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.close()
        await cancel_all(self._tasks)
        for name in (self._database, self._majority_database):
            await self._direct.drop_database(name)
        await self._direct.close()

    # --- steering ---

    def script(self, number: int, script: Script, *, kinds: frozenset[str] = WRITES) -> None:
        """From now on, let this become of the command of these kinds that comes as the so-manieth."""
        self._scripts.append((number, kinds, script))

    async def empty(self) -> None:
        """All documents, and none of the indexes."""
        for name in await self._direct[self._database].list_collection_names():
            await self._direct[self._database][name].delete_many({})

    def drop_scripts(self) -> bool:
        """Whether there were any, whose command had not come."""
        dropped, self._scripts = self._scripts, []
        return bool(dropped)

    async def lose_index(self, collection: str, name: str) -> None:
        """As one that no majority had when another was elected."""
        await self._direct[self._database][collection].drop_index(name)

    def step_down(self) -> None:
        """There is no primary until one is elected."""
        self._has_primary = False
        self._change()

    async def elect(self) -> None:
        """The other member. It has what a majority has, and nothing else."""
        if self._unconfirmed_by is not None:
            await self._copy(self._majority_database, self._database)
            self._unconfirmed_by = None
        self._elected, self._has_primary = 1 - self._elected, True
        self._election_id = _election_id()
        self._change()

    async def lose_majority(self, code: int = 64) -> None:
        """What is written from now on the primary alone has."""
        await self._copy(self._database, self._majority_database)
        self._unconfirmed_by = code

    def regain_majority(self) -> None:
        """All that the primary has the majority has, too."""
        self._unconfirmed_by = None

    # --- scripts ---

    def refuses(self, code: int) -> Script:
        async def script(forward: Forward) -> Document:
            return self._refusal(code)

        return script

    def steps_down_before(self, code: int) -> Script:
        async def script(forward: Forward) -> Document:
            self.step_down()
            return self._refusal(code)

        return script

    def steps_down_after(self, code: int) -> Script:
        """The command has taken effect, and a majority has it; the answer does not say so."""

        async def script(forward: Forward) -> Document:
            await forward()
            self.step_down()
            return self._refusal(code)

        return script

    def steps_down_before_it_is_confirmed(self, code: int, *, is_kept: bool) -> Script:
        """The primary has what was written, and steps down while it waits for the others. `is_kept`: they have it."""

        async def script(forward: Forward) -> Document:
            if not is_kept:
                await self.lose_majority()
            answer = await forward()
            self.step_down()
            return answer | {"writeConcernError": self._error(code)}

        return script

    def loses_majority(self, code: int) -> Script:
        """Before this command, and for all that follow."""

        async def script(forward: Forward) -> Document:
            await self.lose_majority(code)
            return await forward()

        return script

    def is_followed_by_another_primary(self) -> Script:
        """Right after the command was answered, and before anything else is asked."""

        async def script(forward: Forward) -> Document:
            answer = await forward()
            await self.elect()
            return answer

        return script

    # --- who is who ---

    def _is_primary(self, member: int) -> bool:
        return self._has_primary and member == self._elected

    def _hosts(self) -> list[str]:
        ports = (listener.sockets[0].getsockname()[1] for listener in self._listeners)
        return [f"127.0.0.1:{port}" for port in ports]

    def _change(self) -> None:
        self._version += 1
        self._changes.notify()

    def _topology_version(self, member: int) -> Document:
        return {"processId": self._process_ids[member], "counter": Int64(self._version)}

    def _hello(self, member: int) -> Document:
        is_primary, hosts = self._is_primary(member), self._hosts()
        of_primary = {"primary": hosts[self._elected]} if self._has_primary else {}
        of_election = {"electionId": self._election_id} if is_primary else {}
        return {
            "helloOk": True,
            "ismaster": is_primary,
            "isWritablePrimary": is_primary,
            "secondary": not is_primary,
            "setName": NAME,
            "setVersion": 1,
            "hosts": hosts,
            "me": hosts[member],
            "topologyVersion": self._topology_version(member),
            "localTime": SystemClock().now(),
            "logicalSessionTimeoutMinutes": 30,
            "maxBsonObjectSize": 16 * 1024 * 1024,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "readOnly": False,
            "ok": 1.0,
            **of_primary,
            **of_election,
        }

    def _error(self, code: int) -> Document:
        name = (STEP_DOWNS | UNCONFIRMED | MAJORITY_UNKNOWN)[code]
        by_code = {"errInfo": {"wtimeout": True}} if code == 64 else {}
        return {"code": code, "codeName": name, "errmsg": name, **by_code}

    def _refusal(self, code: int) -> Document:
        return {"ok": 0.0, **self._error(code)}

    # --- carrying ---

    def _met_by(self, member: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            spawn(self._serve(member, reader, writer), name="member", into=self._tasks)

        return meet

    async def _serve(self, member: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._server)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    request = await _Message.read(reader)
                    if kind_of(request.body) in _HELLOS:
                        await self._say_hello(member, request, writer)
                        continue
                    async with self._one_at_a_time:
                        answer = await self._answer(member, request, _through(from_server, to_server))
                    if not answer["ok"]:
                        answer |= {"topologyVersion": self._topology_version(member)}
                    writer.write(request.answered(answer))
        finally:
            to_server.close()
            writer.close()

    async def _say_hello(self, member: int, request: _Message, writer: asyncio.StreamWriter) -> None:
        """Once; or whenever anything has changed, to who wants to hear of that."""
        if "topologyVersion" not in request.body:
            writer.write(request.answered(self._hello(member)))
            return
        seen = request.body["topologyVersion"]["counter"]
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(request.body["maxAwaitTimeMS"] / 1000):
                    while seen == self._version:
                        await self._changes.waiter()
            seen = self._version
            goes_on = bool(request.flags & _EXHAUST_ALLOWED)
            writer.write(request.answered(self._hello(member), flags=_MORE_TO_COME if goes_on else 0))
            await writer.drain()
            if not goes_on:
                return

    async def _answer(self, member: int, request: _Message, ask: Callable[[bytes], Awaitable[Document]]) -> Document:
        command = request.body
        kind = kind_of(command)
        if kind in _ANYBODYS:
            return await ask(request.raw)
        self.commands.append(command)
        if not self._is_primary(member):
            return self._refusal(10107)

        async def forward() -> Document:
            if self._unconfirmed_by is None:
                return await ask(request.raw)
            if command.get("readConcern", {}).get("level") == "majority":
                return await ask(request.asked_of(self._majority_database))
            answer = await ask(request.raw)
            is_confirmed = command.get("writeConcern", {}).get("w") != "majority"
            return answer if is_confirmed else answer | {"writeConcernError": self._error(self._unconfirmed_by)}

        script = self._script_of(kind)
        return await (script(forward) if script is not None else forward())

    def _script_of(self, kind: str) -> Script | None:
        counted = [(number - (kind in kinds), kinds, script) for number, kinds, script in self._scripts]
        due = [script for number, _, script in counted if number == 0]
        self._scripts = [one for one in counted if one[0] > 0]
        return due[0] if due else None

    async def _copy(self, source: str, target: str) -> None:
        """The documents. Indexes stay as they are."""
        here, there = self._direct[source], self._direct[target]
        for name in {*await here.list_collection_names(), *await there.list_collection_names()}:
            documents = await here[name].find().to_list()
            await there[name].delete_many({})
            if documents:
                await there[name].insert_many(documents)


def kind_of(command: Document) -> str:
    return next(iter(command))


def _election_id() -> ObjectId:
    """Each later than all before, by which a driver knows who was elected last."""
    return ObjectId(struct.pack(">IQ", 0x7FFFFFFF, next(_of_election)))


def _through(
    from_server: asyncio.StreamReader, to_server: asyncio.StreamWriter
) -> Callable[[bytes], Awaitable[Document]]:
    async def ask(raw: bytes) -> Document:
        to_server.write(raw)
        return (await _Message.read(from_server)).body

    return ask


@dataclass(frozen=True, slots=True)
class _Message:
    raw: bytes
    request_id: int
    operation: int
    flags: int
    body: Document
    """The command, or its answer. Documents to be written may follow it, and stay in `raw`."""
    rest: bytes
    """What follows it."""

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> _Message:
        header = await reader.readexactly(_HEADER.size)
        length, request_id, _, operation = _HEADER.unpack(header)
        payload = await reader.readexactly(length - _HEADER.size)
        (flags,) = struct.unpack_from("<i", payload)
        # The legacy question, which comes first on each connection, has a name and two numbers before its document.
        start = payload.index(b"\0", 4) + 9 if operation == _OP_QUERY else 5
        (size,) = struct.unpack_from("<i", payload, start)
        body = bson.decode(payload[start : start + size])
        return cls(header + payload, request_id, operation, flags, body, payload[start + size :])

    def asked_of(self, database: str) -> bytes:
        """The same command to another database."""
        payload = struct.pack("<iB", self.flags, 0) + bson.encode(self.body | {"$db": database}) + self.rest
        return _HEADER.pack(_HEADER.size + len(payload), self.request_id, 0, _OP_MSG) + payload

    def answered(self, answer: Document, *, flags: int = 0) -> bytes:
        if self.operation == _OP_QUERY:
            operation, before = _OP_REPLY, struct.pack("<iqii", 0, 0, 0, 1)
        else:
            operation, before = _OP_MSG, struct.pack("<iB", flags, 0)
        payload = before + bson.encode(answer)
        return _HEADER.pack(_HEADER.size + len(payload), 0, self.request_id, operation) + payload

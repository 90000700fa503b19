"""MongoDB: how it is reached, what is asked of it, its errors mapped once, and the store's clock.

The promise: what was answered is written on a majority of the servers, in their journals, and is what is read from
then on. What raises `MongoUnavailable` has happened wholly or not at all, and nobody repeats it unseen: the driver's
own retries are off, because every caller repeats what it needs and knows how. No wait is over `ANSWER_SECONDS`.

Refuses: a database whose indexes are not the ones that Rise relies on. Missing ones are made; before anything else is
asked, after every trouble and once in `CHECKED_SECONDS`, they are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, TypeAlias, TypeVar

from bson.codec_options import CodecOptions, TypeDecoder, TypeRegistry
from bson.int64 import Int64
from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from rise.clock import Clock
from rise.errors import MongoMisconfigured, MongoUnavailable, RecordTooLarge, RiseError, Unavailable
from rise.service import spawn

T = TypeVar("T")
Document: TypeAlias = dict[str, Any]
Query: TypeAlias = Mapping[str, Any]
Order: TypeAlias = Sequence[tuple[str, int]]

ANSWER_SECONDS: Final = 5.0
"""For one question, finding a primary and its journal included."""
SELECT_SECONDS: Final = 2.0
"""To find a primary. An election takes longer; until it is over, callers are told that there is none."""
CONNECT_SECONDS: Final = 2.0
GIVE_UP_SECONDS: Final = 0.5
"""For a question that was given up to end; one that does not is left behind."""
CONFIRM_SECONDS: Final = 3.0
"""For a majority to have a write."""
CHECKED_SECONDS: Final = 60.0
"""How long the store's time and its indexes are believed to be as they were found."""
DATABASE: Final = "rise"
"""Used when the URL names none."""

_UNAUTHENTICATED: Final = 18
_UNAUTHORIZED: Final = 13
_DUPLICATE: Final = 11000
_TOO_LARGE: Final = (10334, 17419, 17420)  # an object, a document after its update, one to be inserted
_MAJORITY_UNKNOWN: Final = 134  # after a start, until it has heard from the others
_STEPPED_DOWN: Final = (91, 189, 10107, 11600, 11602)  # as a primary says it while it waits for the others
_INDEX_CONFLICTS: Final = (67, 85, 86)  # what it says cannot be made, has other options, or has another key
_IN_ELECTION: Final = "this MongoDB is no primary any more; it goes on by itself after the election"
_BY_CLASS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (ConfigurationError, "the URL of MongoDB cannot be used: correct RISE_MONGODB_URL"),
    (NotPrimaryError, _IN_ELECTION),
    (ServerSelectionTimeoutError, "MongoDB cannot be reached, or has no primary now"),
    (WTimeoutError, "MongoDB does not confirm in time that a majority has what was written"),
    (WriteConcernError, "MongoDB does not confirm that a majority has what was written"),
    (ExecutionTimeout, "MongoDB does not answer in time"),
    (TimeoutError, "MongoDB does not answer in time"),
    (ConnectionFailure, "MongoDB cannot be reached"),
    (OSError, "MongoDB cannot be reached"),
)
_BY_CODE: Final = {
    **dict.fromkeys(_STEPPED_DOWN, _IN_ELECTION),
    _MAJORITY_UNKNOWN: "MongoDB does not know yet what a majority has; it goes on by itself",
    _UNAUTHENTICATED: "MongoDB refuses the credentials in its URL",
    _UNAUTHORIZED: "the user of MongoDB may not do what Rise needs: give it the role readWrite on Rise's database",
}
_VENDORS: Final = (PyMongoError, DocumentTooLarge, OSError, TimeoutError)


class _PlainIntegers(TypeDecoder):
    """Large ones come as a type of the driver's, which JSON as we write it does not have."""

    bson_type = Int64

    def transform_bson(self, value: Any) -> int:
        return int(value)


_CODEC: Final[CodecOptions[Document]] = CodecOptions(type_registry=TypeRegistry([_PlainIntegers()]))


def translated(error: Exception) -> RiseError:
    """What a vendor's error means here. Its own text stays in the log: it may quote what was written."""
    ours = _meaning(error)
    ours.__cause__ = error
    return ours


def _meaning(error: Exception) -> RiseError:
    code = error.code if isinstance(error, OperationFailure) else None
    if isinstance(error, DocumentTooLarge) or code in _TOO_LARGE:
        return RecordTooLarge("MongoDB keeps no record of more than 16 MB: let the run come to less")
    if code in _INDEX_CONFLICTS:
        return MongoMisconfigured("an index of Rise's cannot be made in MongoDB: another is in its place")
    if code in _BY_CODE:
        return MongoUnavailable(_BY_CODE[code])
    for kind, meaning in _BY_CLASS:
        if isinstance(error, kind):
            return MongoUnavailable(meaning)
    return MongoUnavailable(f"MongoDB refuses (code {code})")


@contextmanager
def mongo_errors() -> Iterator[None]:
    """The one place where MongoDB's errors become ours. What is left through is our own bug."""
    try:
        yield
    except _VENDORS as error:
        raise translated(error) from error


async def _awaited(work: Awaitable[T]) -> T:
    return await work


@dataclass(frozen=True, slots=True)
class Index:
    """One that Rise relies on. `is_sparse`: only documents that have the field are in it."""

    name: str
    keys: tuple[str, ...]
    is_unique: bool = False
    is_sparse: bool = False

    def is_like(self, found: Mapping[str, Any]) -> bool:
        """Whether the index that was found does the same."""
        return (
            list(found["key"].items()) == [(key, 1) for key in self.keys]
            and bool(found.get("unique")) == self.is_unique
            and bool(found.get("sparse")) == self.is_sparse
            and not {"partialFilterExpression", "collation", "expireAfterSeconds"} & set(found)
        )


class MongoDatabase:
    """One database, as one process reaches it. Servers may be away when it is made, and at any time after."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        indexes: Mapping[str, Sequence[Index]],
        answer_seconds: float = ANSWER_SECONDS,
        checked_seconds: float = CHECKED_SECONDS,
        on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble` is told why there is no answer, and None when there is again, before the callers are."""
        self._url = url
        self._clock = clock
        self._indexes = indexes
        self._answer_seconds = answer_seconds
        self._checked_seconds = checked_seconds
        self._on_trouble = on_trouble
        self._trouble: Unavailable | None = None
        self._client: AsyncMongoClient[Document] | None = None
        self._checking = asyncio.Lock()
        self._checks_failed = 0
        self._checked_at: float | None = None
        self._offset_ms = 0.0
        self._said_ms = 0
        self._is_closed = False
        self._asking: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Learn the time, and see that the indexes are there. Raises `MongoUnavailable`; whatever is asked later tries
        again by itself."""
        await self._be_checked()

    async def close(self) -> None:
        self._is_closed = True
        client, self._client = self._client, None
        for asking in self._asking:
            asking.cancel()
        if client is not None:
            await client.close()

    async def ping(self) -> None:
        """Answered by a primary with the indexes in place, or raises."""
        await self._be_checked()
        await self._bounded(_hello_of_primary)

    async def now_ms(self) -> int:
        """The store's clock, as last heard and gone on with since; in one process it never steps back."""
        await self._be_checked()
        self._said_ms = max(self._said_ms, int(self._offset_ms + self._clock.monotonic() * 1000))
        return self._said_ms

    def __getitem__(self, name: str) -> Documents:
        return Documents(self, name)

    async def ask(self, name: str, work: Callable[[AsyncCollection[Document]], Awaitable[T]]) -> T:
        """One question to one collection."""
        await self._be_checked()
        return await self._bounded(lambda database: work(database[name]))

    # --- what is seen to before anything else is asked ---

    async def _be_checked(self) -> None:
        if self._is_checked():
            return
        failed = self._checks_failed
        async with self._checking:
            if self._is_checked():
                return
            if self._checks_failed != failed and self._trouble is not None:
                # Whoever was before us has just waited for it in vain: nobody waits for the same twice.
                raise type(self._trouble)(self._trouble.public_message)
            try:
                await self._bounded(self._check)
            except BaseException:  # border: counted for those who wait behind this one, and passed on
                self._checks_failed += 1
                raise
            self._checked_at = self._clock.monotonic()

    def _is_checked(self) -> bool:
        return self._checked_at is not None and self._clock.monotonic() - self._checked_at < self._checked_seconds

    async def _check(self, database: AsyncDatabase[Document]) -> None:
        hello = await _hello_of_primary(database)
        heard_ms = hello["localTime"].replace(tzinfo=UTC).timestamp() * 1000
        self._offset_ms = heard_ms - self._clock.monotonic() * 1000
        for name, indexes in self._indexes.items():
            await _check_indexes(database[name], indexes)

    # --- the one place where it is spoken to ---

    async def _bounded(self, work: Callable[[AsyncDatabase[Document]], Awaitable[T]]) -> T:
        try:
            with mongo_errors():
                answer = await self._in_time(work(self._database()))
        except Unavailable as error:
            self._checked_at = None  # it may come back as another: emptied, or restored from a backup
            self._report(error)
            raise
        self._report(None)
        return answer

    async def _in_time(self, work: Awaitable[T]) -> T:
        """In a task of its own, which is left behind if it does not even end when it is told to: whatever the driver
        waits for, nobody waits for the driver. Raises `TimeoutError`."""
        asking = spawn(_awaited(work), name="mongodb", into=self._asking)
        try:
            await asyncio.wait({asking}, timeout=self._answer_seconds)
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking}, timeout=GIVE_UP_SECONDS)
                raise TimeoutError
        finally:
            asking.cancel()
        answer: T = asking.result()
        return answer

    def _database(self) -> AsyncDatabase[Document]:
        if self._is_closed:
            raise MongoUnavailable("the connection to MongoDB is closed")
        if self._client is None:
            self._client = _client(self._url)
        return self._client.get_default_database(
            DATABASE,
            codec_options=_CODEC,
            read_preference=ReadPreference.PRIMARY,
            # Together: what was acknowledged is what is read, and neither can be rolled back.
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern(w="majority", j=True, wtimeout=int(CONFIRM_SECONDS * 1000)),
        )

    def _report(self, trouble: Unavailable | None) -> None:
        if str(trouble) != str(self._trouble):
            self._on_trouble(trouble)
        self._trouble = trouble


class Documents:
    """One collection's documents, each changed as a whole or not at all."""

    def __init__(self, database: MongoDatabase, name: str) -> None:
        self._database = database
        self._name = name

    async def one(self, query: Query, *, fields: Query | None = None, order: Order | None = None) -> Document | None:
        return await self._ask(lambda documents: documents.find_one(query, projection=fields, sort=order))

    async def find(
        self, query: Query, *, fields: Query | None = None, order: Order | None = None, limit: int = 0
    ) -> list[Document]:
        return await self._ask(
            lambda documents: documents.find(query, projection=fields, sort=order, limit=limit).to_list()
        )

    async def drawn(self, pipeline: Sequence[Query]) -> list[Document]:
        """What an aggregation comes to."""

        async def draw(documents: AsyncCollection[Document]) -> list[Document]:
            return await (await documents.aggregate(pipeline)).to_list()

        return await self._ask(draw)

    async def insert(self, document: Document) -> bool:
        """False: a majority has one with its id, or with what else is unique, and that one stays."""

        async def insert(documents: AsyncCollection[Document]) -> bool:
            # Not `insert_one`: of one that is there already it does not say that no majority has that one. Whoever
            # repeats an insert finds what this primary may have alone, and the next one not at all.
            answer = await documents.database.command(
                "insert", documents.name, documents=[document], writeConcern=documents.write_concern.document
            )
            return _was_inserted(answer)

        return await self._ask(insert)

    async def change(
        self, query: Query, update: Query, *, fields: Query | None = None, upsert: bool = False
    ) -> Document | None:
        """The document after the change; None if there was none like that, so that nothing was changed.

        `upsert`: then one is made, unless there is one with the id that the query names.
        """

        async def change(documents: AsyncCollection[Document]) -> Document | None:
            try:
                return await documents.find_one_and_update(
                    query, update, projection=fields, upsert=upsert, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                return None

        return await self._ask(change)

    async def change_all(self, query: Query, update: Query) -> int:
        """Each by itself: should it be cut short, some are changed and some are not."""

        async def change(documents: AsyncCollection[Document]) -> int:
            return (await documents.update_many(query, update)).modified_count

        return await self._ask(change)

    async def remove(self, query: Query) -> int:
        async def remove(documents: AsyncCollection[Document]) -> int:
            return (await documents.delete_many(query)).deleted_count

        return await self._ask(remove)

    async def _ask(self, work: Callable[[AsyncCollection[Document]], Awaitable[T]]) -> T:
        return await self._database.ask(self._name, work)


def _was_inserted(answer: Document) -> bool:
    """False: there was one already. Raises what the driver does with other answers."""
    unconfirmed = answer.get("writeConcernError")
    if unconfirmed is not None:
        raise WriteConcernError(unconfirmed.get("errmsg"), unconfirmed["code"], unconfirmed)
    for error in answer.get("writeErrors", ()):
        if error["code"] != _DUPLICATE:
            raise WriteError(error.get("errmsg"), error["code"], error)
    return bool(answer["n"])


def _client(url: str) -> AsyncMongoClient[Document]:
    return AsyncMongoClient(
        url,
        appname="rise",
        retryWrites=False,
        retryReads=False,
        serverSelectionTimeoutMS=int(SELECT_SECONDS * 1000),
        connectTimeoutMS=int(CONNECT_SECONDS * 1000),
        socketTimeoutMS=int(ANSWER_SECONDS * 1000),
        waitQueueTimeoutMS=int(ANSWER_SECONDS * 1000),
    )


async def _hello_of_primary(database: AsyncDatabase[Document]) -> Document:
    hello = await database.client.admin.command("hello")
    if not hello.get("isWritablePrimary"):
        # Which the driver may not know yet; or it was told to ask this one, whatever it is.
        raise MongoUnavailable(
            "this MongoDB is a secondary: it goes on by itself after the election if RISE_MONGODB_URL names the whole "
            "replica set"
        )
    return hello


async def _check_indexes(documents: AsyncCollection[Document], indexes: Sequence[Index]) -> None:
    """Make what is missing; raise `MongoMisconfigured` if one is not what it should be."""
    found = await _indexes_of(documents)
    missing = [index for index in indexes if index.name not in found]
    for index in missing:
        try:
            await documents.create_index(
                [(key, 1) for key in index.keys], name=index.name, unique=index.is_unique, sparse=index.is_sparse
            )
        except DuplicateKeyError as error:
            raise MongoMisconfigured(
                f"two documents of {documents.name} in MongoDB have the same {', '.join(index.keys)}: it was restored "
                "into a database in use, or written by hand. Restore into an empty one"
            ) from error
    if missing:
        # Not taken on trust: what counts is what the server says that it has.
        found = await _indexes_of(documents)
    for index in indexes:
        if index.name not in found or not index.is_like(found[index.name]):
            raise MongoMisconfigured(
                f"the index {index.name} of {documents.name} in MongoDB is not the one that Rise relies on: drop it, "
                f'db.{documents.name}.dropIndex("{index.name}"), and it is made anew'
            )


async def _indexes_of(documents: AsyncCollection[Document]) -> dict[str, Mapping[str, Any]]:
    return {index["name"]: index for index in await (await documents.list_indexes()).to_list()}

"""Redis: one connection per process, shared pipelines, its errors mapped once, and the store's clock.

The promise: when `run` returns, the script has run. When it raises `RedisUnavailable`, it has run wholly or not at
all, and nobody will repeat it unseen: redis-py's own retries (ten, unless told otherwise) are off. Everything asked
for in one turn of the event loop, and all that gathers while a pipeline is under way, shares one. Every wait is
bounded: a call waits for the pipeline before it and then for its own, `ANSWER_SECONDS` each.

Refuses: to go on with a connection after an error or a missed deadline, because what it would still answer belongs
to a question that nobody asks any more. The next call makes a new one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NoReturn, TypeAlias

import redis.asyncio
from hiredis import pack_command
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from rise.clock import Clock
from rise.errors import RedisForeign, RedisFull, RedisUnavailable, StoreCorrupt, Unavailable
from rise.service import cancel_all, spawn

Argument: TypeAlias = str | bytes | int

ANSWER_SECONDS: Final = 1.25
"""For one pipeline. Twice this is below the acceptance deadline, so that the answer is ours."""
BATCH_MAX: Final = 500
PING_SECONDS: Final = 5.0
"""How often somebody who only listens asks whether there still is anything to hear."""

OWNER: Final = "{rise}:owner"
LIFE: Final = "{rise}:life"
"""Names what the queue holds; as long as it is missing nothing is handed out."""
REFILL: Final = "{rise}:refill"
"""Names who fills it, for as long as nothing is handed out."""
RUN: Final = "{rise}:run"
_NOTE_RUN: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
CLOCK_KEY: Final = "{rise}:clock"
SEEN_EVERY_MS: Final = 1000
"""How exactly it is kept what time the store's clock has reached."""

CLOCK: Final = f"""
-- The store's clock: the server's, but never behind the time that was kept. A server whose clock was set back, or a
-- replica promoted with one that is behind, goes on from there at its own pace instead of standing still. Set
-- forward, it is believed: claims lapse early, and their fences keep whoever lost them from doing harm.
local now
do
  local time = redis.call('TIME')
  local server = time[1] * 1000 + math.floor(time[2] / 1000)
  local kept = redis.call('HMGET', KEYS[1], 'ahead', 'seen')
  local ahead, seen = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
  now = server + ahead
  if now < seen then
    now = seen + {SEEN_EVERY_MS}
    ahead = now - server
  end
  -- A store that takes no writes still tells the time.
  if now - seen >= {SEEN_EVERY_MS} then redis.pcall('HSET', KEYS[1], 'ahead', ahead, 'seen', now) end
end
"""

_UNREACHED: Final = "Redis cannot be reached"
_BY_CLASS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (redis.exceptions.BusyLoadingError, "Redis is reading its data from disk; it goes on by itself"),
    (redis.exceptions.AuthenticationError, "Redis refuses the credentials in its URL"),
    (redis.exceptions.AuthorizationError, "Redis refuses the credentials in its URL"),
    (redis.exceptions.NoPermissionError, "the user of Redis may not run what Rise needs: check its ACL"),
    (redis.exceptions.ReadOnlyError, "this Redis is a replica: name its primary, or wait for the failover"),
    (redis.exceptions.NoScriptError, "Redis forgets its scripts as soon as they are loaded"),
    (redis.exceptions.ClusterDownError, "the Redis cluster is down or in failover"),
    (redis.exceptions.MovedError, "this Redis is part of a cluster and does not hold {rise}: name the node that does"),
    (redis.exceptions.TimeoutError, "Redis does not answer in time"),
    (TimeoutError, "Redis does not answer in time"),
    (redis.exceptions.ConnectionError, _UNREACHED),
    (OSError, _UNREACHED),
)
_BY_CODE: Final = {
    "MISCONF": "Redis cannot write to its disk",
    "BUSY": "Redis is held up by a script",
    "NOREPLICAS": "too few replicas of Redis are connected",
    "MASTERDOWN": "this Redis is a replica that has lost its primary",
}
_VENDORS: Final = (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError, TimeoutError)


def translated(error: Exception) -> Unavailable:
    """What a vendor's error means here. Waiting mends all but `StoreCorrupt`."""
    ours = _meaning(error)
    ours.__cause__ = error
    return ours


def _meaning(error: Exception) -> Unavailable:
    code = str(error).split(" ", 1)[0]  # the first word of a refusal is its code, not prose
    if code == "WRONGTYPE":
        return StoreCorrupt(f"somebody else has written to Rise's keys in Redis: {error}")
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return RedisFull("Redis is full: raise maxmemory")
    for kind, meaning in _BY_CLASS:
        if isinstance(error, kind):
            return RedisUnavailable(meaning)
    return RedisUnavailable(_BY_CODE.get(code, f"Redis refuses: {error}"))


@contextmanager
def redis_errors() -> Iterator[None]:
    """The one place where Redis's errors become ours. What is left through is our own bug."""
    try:
        yield
    except _VENDORS as error:
        raise translated(error) from error


@dataclass(frozen=True)
class Script:
    """A Lua script that finds the store's time in `now` and answers with what its body returns."""

    name: str
    body: str
    clock: str = CLOCK

    @cached_property
    def source(self) -> bytes:
        answering = f"local function answer()\n{self.body}\nend\nreturn {{ now, answer() }}"
        return f"-- {self.name}\n{self.clock}\n{answering}".encode()

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class _Call:
    command: Sequence[Argument]
    script: Script | None
    done: asyncio.Future[Any]


class RedisDatabase:
    """One Redis, as one process reaches it."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        answer_seconds: float = ANSWER_SECONDS,
        on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble` is told why there is no answer, and None when there is again, before the callers are.

        What is refused although there is an answer is the affair of a probe, because some is refused and some is not.
        """
        self._clock = clock
        self._url = url
        self._answer_seconds = answer_seconds
        self._on_trouble = on_trouble
        self._trouble: Unavailable | None = None
        self._owner: str | None = None
        self._is_owner_awaited = False
        self._shared = _Link(url, self._greet)
        self._blocking = _Link(url, self._greet)
        self._waiting: list[_Call] = []
        self._flushes: set[asyncio.Task[Any]] = set()
        self._is_flushing = False
        self._offset_ms: float | None = None
        self._said_ms = 0
        self._is_closed = False

    def belongs_to(self, owner: str) -> None:
        """From the next connection on: a Redis that another installation uses is not used. The first to come owns it,
        until it is emptied."""
        self._owner = owner
        self._is_owner_awaited = False

    def await_owner(self) -> None:
        """Until `belongs_to` says whose it is, it is not used: it may be another installation's."""
        self._is_owner_awaited = True

    async def _greet(self, link: _Link) -> None:
        if self._is_owner_awaited:
            raise RedisUnavailable("it is not known yet whether this Redis is ours: the ledger has not been reached")
        if self._owner is None:
            return
        _, owner, server = await link.exchange([("SET", OWNER, self._owner, "NX"), ("GET", OWNER), ("INFO", "server")])
        if isinstance(owner, bytes) and owner.decode("utf-8", "replace") != self._owner:
            raise RedisForeign(
                "this Redis holds the work of another installation, whose results are in another ledger: name another "
                "database of it (redis://…/1), or run all processes on that one's RISE_DATA_DIR"
            )

        await self._note_run(link, _run_id(server))

    async def _note_run(self, link: _Link, run_id: str) -> None:
        """A server that was started anew, or has taken another's place, may lack what was written last: nothing is
        handed out before it was filled again, and what was brought until then does not count. Whoever reaches it first
        says so, before anything else."""
        [answer] = await link.exchange([("EVAL", _NOTE_RUN, 3, RUN, LIFE, REFILL, run_id)])
        if isinstance(answer, Exception):
            raise answer

    async def open(self) -> None:
        """Learn the time. Raises `RedisUnavailable`; the next call tries again by itself."""
        await self.run(Script("clock", "return nil"))

    async def close(self) -> None:
        """What was asked for is answered first."""
        self._is_closed = True
        await asyncio.gather(*self._flushes)
        await self._shared.close()
        await self._blocking.close()

    def now_ms(self) -> int:
        """The store's clock, as last heard and gone on with since; never stepping back.

        Behind the server by at most the way of an answer.
        """
        if self._offset_ms is None:
            raise RedisUnavailable(_UNREACHED if self._trouble is None else self._trouble.public_message)
        self._said_ms = max(self._said_ms, int(self._offset_ms + self._clock.monotonic() * 1000))
        return self._said_ms

    async def run(self, script: Script, *arguments: Argument) -> Any:
        """The script's answer, after its effects."""
        now_ms, *answer = await self._ask(("EVALSHA", script.sha, 1, CLOCK_KEY, *arguments), script)
        self._offset_ms = now_ms - self._clock.monotonic() * 1000
        return answer[0] if answer else None

    async def execute(self, *command: Argument) -> Any:
        return await self._ask(command, None)

    async def facts(self) -> dict[str, str]:
        """What the server says of itself: its memory, its log, its role."""
        text = (await self.execute("INFO")).decode("utf-8", "replace")
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def wait_for(self, *command: Argument, seconds: float) -> Any:
        """A command that blocks for so long, on a connection of its own. One at a time."""
        if self._is_closed:
            raise RedisUnavailable("the connection to Redis is closed")
        with redis_errors():
            async with asyncio.timeout(seconds + self._answer_seconds):
                [answer] = await self._blocking.exchange([command])
        if isinstance(answer, Exception):
            raise translated(answer) from answer
        return answer

    @property
    def number(self) -> int:
        """Of the server's databases. What is published is heard in all of them."""
        return self._shared.number

    async def listen(
        self, channels: Sequence[str], hear: Callable[[str, bytes], None], *, on_listening: Callable[[], None]
    ) -> NoReturn:
        """Hand over what is published there, as it comes, on a connection of its own. It ends by raising
        `RedisUnavailable`, at the latest `PING_SECONDS` and an answer's time after nothing could be heard any more.

        `on_listening`: called as soon as nothing is missed.
        """
        link, pings = _Link(self._url, self._greet), set[asyncio.Task[Any]]()
        try:
            with redis_errors():
                async with asyncio.timeout(self._answer_seconds):
                    refusals = await link.exchange([("SUBSCRIBE", channel) for channel in channels])
                for refusal in refusals:
                    if isinstance(refusal, Exception):
                        raise refusal
                on_listening()
                spawn(self._keep_asking(link), name="redis.ping", into=pings, for_all=True)
                while True:
                    async with asyncio.timeout(PING_SECONDS + self._answer_seconds):
                        said = await link.following()
                    if said[0] == b"message":
                        hear(said[1].decode("utf-8", "replace"), said[2])
        finally:
            await cancel_all(pings)
            await link.close()

    async def _keep_asking(self, link: _Link) -> None:
        """A silence is not told from a line that was cut. What cannot be asked is not answered, and noticed there."""
        while True:
            await self._clock.sleep(PING_SECONDS)
            await link.say("PING")

    # --- sharing pipelines ---

    async def _ask(self, command: Sequence[Argument], script: Script | None) -> Any:
        if self._is_closed:
            raise RedisUnavailable("the connection to Redis is closed")
        asked = _Call(command, script, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if not self._is_flushing:
            self._is_flushing = True
            spawn(self._flush(), name="redis.flush", into=self._flushes, for_all=True)
        return await asked.done

    async def _flush(self) -> None:
        """One pipeline after the other until nobody waits: no timer, the next gathers while one is under way."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            trouble: Unavailable | None = None
            try:
                answers = await self._exchange(batch)
            except Unavailable as error:
                trouble, answers = error, [error] * len(batch)
            except BaseException as error:  # noqa: BLE001 - border: the flush must outlive any call; callers are told
                answers = [error] * len(batch)
            self._report(trouble)
            _tell(batch, answers)
        self._is_flushing = False

    async def _exchange(self, batch: Sequence[_Call]) -> list[Any]:
        with redis_errors():
            async with asyncio.timeout(self._answer_seconds):
                answers = await self._shared.exchange([call.command for call in batch])
                unknown = [n for n, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
                if unknown:
                    again = await self._load_and_repeat([batch[n] for n in unknown])
                    for n, answer in zip(unknown, again, strict=True):
                        answers[n] = answer
                return [translated(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _load_and_repeat(self, calls: Sequence[_Call]) -> list[Any]:
        """Redis was restarted, or somebody flushed its scripts. What it does not know it has not run."""
        scripts = {call.script for call in calls if call.script}
        loading = [("SCRIPT", "LOAD", script.source) for script in scripts]
        answers = await self._shared.exchange([*loading, *(call.command for call in calls)])
        return answers[len(loading) :]

    def _report(self, trouble: Unavailable | None) -> None:
        if str(trouble) != str(self._trouble):
            self._trouble = trouble
            self._on_trouble(trouble)


def _tell(batch: Sequence[_Call], answers: Sequence[Any]) -> None:
    for call, answer in zip(batch, answers, strict=True):
        if call.done.done():
            continue  # the caller hung up; what it asked for was done all the same
        if isinstance(answer, BaseException):
            call.done.set_exception(answer)
        else:
            call.done.set_result(answer)


class _Link:
    """One connection, made when it is needed and given up after any failure."""

    def __init__(self, url: str, greet: Callable[[_Link], Awaitable[None]]) -> None:
        """`greet`: the first words on a new connection; what it raises is the end of it."""
        self._greet = greet
        # Bounded by its users' deadlines, which span connecting, sending and all answers; a deadline per read
        # would cost a timer for each. RESP2, because newer protocols answer the same script in other shapes.
        # `Any`: redis-py leaves its connections untyped.
        self._pool: Any = redis.asyncio.ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, retry=Retry(NoBackoff(), 0), retry_on_error=[], retry_on_timeout=False
        )
        self._connection: Any = None

    async def exchange(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The answers; a command that was refused has its error for an answer."""
        try:
            connection = await self._connected()
            # Packed in C: redis-py's own way costs three times as much, and is of use for more than we send.
            packed = [pack_command(tuple(command)) for command in commands]  # type: ignore[arg-type]
            await _send(connection, packed)
            return [await _answer(connection) for _ in commands]
        except BaseException:  # border: half an answer may still come, so nobody uses it again; it is passed on
            await self.close()
            raise

    async def say(self, *command: Argument) -> None:
        await _send(self._connection, [pack_command(tuple(command))])  # type: ignore[arg-type]

    async def following(self) -> Any:
        """What comes next, asked for or not."""
        answer = await _answer(self._connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def number(self) -> int:
        return int(self._pool.connection_kwargs.get("db") or 0)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _connected(self) -> Any:
        if self._connection is not None and await _is_over(self._connection):
            # The server went away in between. Noticed before anything is sent, so that nothing is in doubt.
            await self.close()
        if self._connection is None:
            self._connection = self._pool.make_connection()
            await self._connection.connect()
            await self._greet(self)
        return self._connection


def _run_id(info: Any) -> str:
    lines = info.decode("utf-8", "replace").splitlines() if isinstance(info, bytes) else []
    return next((line.partition(":")[2] for line in lines if line.startswith("run_id:")), "unknown")


async def _is_over(connection: Any) -> bool:
    """Whether there is anything to read where nothing is due: the end, or words that nobody asked for."""
    can_read = getattr(connection, "can_read", None) or connection.can_read_destructive  # before redis-py 8
    try:
        return bool(await can_read())
    except redis.exceptions.RedisError:
        return True


async def _send(connection: Any, packed: list[Any]) -> None:
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:  # what uvloop says once the connection was reset
        raise redis.exceptions.ConnectionError(str(error)) from error


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except redis.exceptions.ResponseError as error:
        return error

"""What waits for the ledger, in Redis: beside the queue, in the same slot, so that it is kept and lost with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rise.connections.redis import RedisDatabase, Script
from rise.ledger.late import Waiting

PAGE_BYTES_MAX: Final = 2 << 20
"""One pipeline carries it well within its deadline, with what others ask for."""

_KEYS: Final = """
local Q = '{rise}:late:'
local ORDER = Q .. 'order'      -- keys by their number
local COUNT = Q .. 'count'      -- the last number given out
local WRITES = Q .. 'writes'    -- key → write
local ABOUTS = Q .. 'abouts'    -- key → what else it is found by
local ABOUT = Q .. 'about:'     -- per such, its keys by their number
local call = redis.call

local function forget(key)
  local about = call('HGET', ABOUTS, key)
  if about then call('ZREM', ABOUT .. about, key) end
  call('ZREM', ORDER, key)
  call('HDEL', ABOUTS, key)
  call('HDEL', WRITES, key)
end
"""


def _script(name: str, body: str) -> Script:
    return Script(f"late_{name}", _KEYS + body)


_PUT: Final = _script(
    "put",
    """
local key, about, write = ARGV[1], ARGV[2], ARGV[3]
local standing = call('HGET', WRITES, key)
if standing then return standing end
-- A full Redis refuses what may need memory unless the script has written before. What ends work must not be refused.
call('DEL', Q .. 'nothing')
local number = call('INCR', COUNT)
call('HSET', WRITES, key, write)
call('HSET', ABOUTS, key, about)
call('ZADD', ORDER, number, key)
call('ZADD', ABOUT .. about, number, key)
return write
""",
)
_GET: Final = _script("get", "return call('HGET', WRITES, ARGV[1])")
_FIRST_OF: Final = _script(
    "first_of",
    """
for _, key in ipairs(ARGV) do
  local write = call('HGET', WRITES, key)
  if write then return write end
end
""",
)
_ABOUT: Final = _script(
    "about",
    """
local keys = call('ZRANGE', ABOUT .. ARGV[1], 0, -1)
local writes = {}
for i, key in ipairs(keys) do writes[i] = call('HGET', WRITES, key) end
return writes
""",
)
_PAGE: Final = _script(
    "page",
    """
local found = call('ZRANGEBYSCORE', ORDER, '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local waiting, size = {}, 0
for i = 1, #found, 2 do
  local key, number = found[i], found[i + 1]
  local write = call('HGET', WRITES, key)
  if write then
    size = size + #write
    if size > tonumber(ARGV[3]) and #waiting > 0 then break end
    waiting[#waiting + 1] = { number, key, write }
  else
    forget(key) -- somebody deleted what was kept by hand: its message is run again
  end
end
return waiting
""",
)
_REMOVE: Final = _script(
    "remove",
    """
for _, key in ipairs(ARGV) do forget(key) end
""",
)
_DEPTH: Final = _script("depth", "return call('ZCARD', ORDER)")


class RedisLateWrites:
    """`rise.ledger.late.LateWrites` on the queue's Redis."""

    def __init__(self, database: RedisDatabase) -> None:
        self._database = database

    async def put(self, key: str, about: str, write: bytes) -> bytes:
        return bytes(await self._database.run(_PUT, key, about, write))

    async def get(self, key: str) -> bytes | None:
        found = await self._database.run(_GET, key)
        return None if found is None else bytes(found)

    async def first_of(self, keys: Sequence[str]) -> bytes | None:
        found = await self._database.run(_FIRST_OF, *keys)
        return None if found is None else bytes(found)

    async def about(self, about: str) -> list[bytes]:
        return [bytes(one) for one in await self._database.run(_ABOUT, about) if one is not None]

    async def page(self, *, limit: int, after: int = 0) -> list[Waiting]:
        found = await self._database.run(_PAGE, limit, after, PAGE_BYTES_MAX)
        return [Waiting(int(number), key.decode(), bytes(write)) for number, key, write in found]

    async def remove(self, keys: Sequence[str]) -> None:
        if keys:
            await self._database.run(_REMOVE, *keys)

    async def depth(self) -> int:
        return int(await self._database.run(_DEPTH))

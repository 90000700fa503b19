"""The bus of several hosts: what is said on one of them, and matters on all, goes to the others over Redis.

Promises: processes of one host hear each other as they do without Redis, and nobody waits for it. What could not be
published is kept, the newest of each subject, and published when Redis is back. The connections come back by
themselves.

Refuses: to carry what only one host needs: with every message there are hints, and whoever works on another host is
woken by the queue. To know who on another host is dead: that is why claims lapse.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from rise.bus.local import LocalBus
from rise.bus.port import Listener, Topic
from rise.clock import Clock
from rise.connections.redis import RedisDatabase
from rise.envelope import encode_json
from rise.errors import Unavailable
from rise.service import Loop, Signal
from rise.telemetry import log

CARRIED: Final = frozenset(
    {
        Topic.DEFINITIONS_CHANGED,
        Topic.CHATS_MOVED,
        Topic.RUN_FAILED,
        Topic.RUN_RECOVERED,
        Topic.BINDING_HEALTH,
        Topic.BINDING_EXAMINED,
    }
)
"""Seldom said, and meant for all. That workers are to pause is not: every host has somebody who measures."""
QUEUED_MAX: Final = 1000
QUEUED_SECONDS_MAX: Final = 0.5
"""How long an event may be on its way before it is called queued."""
MESSAGE_BYTES_MAX: Final = 65_536
PAUSE_SECONDS_MAX: Final = 2.0
RETURN_SECONDS: Final = 3.0
"""When Redis is back, those who listen are back within this time."""
BATCH_MAX: Final = 100

_BY: Final = "_member"
"""Beside the fields of a payload: who has said it."""
_STATES: Final = frozenset({Topic.DEFINITIONS_CHANGED, Topic.BINDING_HEALTH, Topic.BINDING_EXAMINED})
"""They say how it is now; of the others, each says that something has happened, and counts."""
_SUBJECT: Final = ("channel", "account", "workflowId")
_REMEDY: Final = "start Redis, or see that RISE_REDIS_URL reaches it and that its user may use the channels {rise}:*"


class _Event(NamedTuple):
    channel: str
    message: bytes


class RedisBus:
    """`rise.bus.port.Bus` for all hosts of an installation."""

    name = "bus"

    def __init__(
        self, local: LocalBus, redis: RedisDatabase, clock: Clock, *, carried: Collection[Topic] = CARRIED
    ) -> None:
        self.member = local.member
        self._local = local
        self._redis = redis
        self._clock = clock
        # Redis's databases are separate in everything but this.
        self._channels = {topic: f"{{rise}}:events:{redis.number}:{topic}" for topic in carried}
        self._topics = {channel: topic for topic, channel in self._channels.items()}
        self._queued: dict[object, _Event] = {}
        self._numbers = itertools.count()
        self._more = Signal()
        self._settled = asyncio.Event()
        """Nothing is on its way: all was published, or cannot be now."""
        self._is_open = False
        self._is_cut_off = False
        self.is_listening = False
        """Whether this process hears what other hosts say."""
        self._loops = [
            Loop("bus.carry", self._carry, sleep=clock.sleep, on_error=self._keep, pause_seconds_max=PAUSE_SECONDS_MAX),
            Loop("bus.hear", self._hear, sleep=clock.sleep, on_error=_report, pause_seconds_max=PAUSE_SECONDS_MAX),
        ]

    async def start(self) -> None:
        """Returns at once, whether or not Redis can be reached."""
        await self._local.start()
        self._is_open = True
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        """What is on its way goes out; what is queued is lost, and the others find out by themselves."""
        if self._is_open:
            await self.has_queued()
        self._is_open = False
        for loop in self._loops:
            await loop.stop()
        await self._local.stop()

    def publish(self, topic: Topic, payload: Mapping[str, Any] | None = None) -> None:
        self._local.publish(topic, payload)
        if self._is_open and topic in self._channels:
            self._enqueue(topic, payload or {})

    def subscribe(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        return self._local.subscribe(topic, listener)

    async def has_queued(self) -> bool:
        try:
            async with asyncio.timeout(QUEUED_SECONDS_MAX):
                while self._queued and not self._is_cut_off:
                    await self._settled.wait()
        except TimeoutError:
            return True
        return bool(self._queued)

    def dead_members(self) -> list[str]:
        return self._local.dead_members()

    def bury(self, member: str) -> None:
        self._local.bury(member)

    # --- saying ---

    def _enqueue(self, topic: Topic, payload: Mapping[str, Any]) -> None:
        message = encode_json({**payload, _BY: self.member})
        if len(message) > MESSAGE_BYTES_MAX:
            return  # nor is it heard on this host: whoever needs it looks by himself
        subject = self._subject_of(topic, payload)
        self._queued.pop(subject, None)  # the newest goes last
        self._queued[subject] = _Event(self._channels[topic], message)
        if len(self._queued) > QUEUED_MAX:
            del self._queued[next(iter(self._queued))]
        self._settled.clear()
        self._more.set()

    def _subject_of(self, topic: Topic, payload: Mapping[str, Any]) -> object:
        """What the event is about: a later one about the same says all that the earlier one did."""
        if topic in _STATES:
            return topic, str([payload.get(field) for field in _SUBJECT])
        return topic, next(self._numbers) if payload else None

    async def _carry(self) -> None:
        await self._more.wait()
        if self._is_cut_off:
            await self._until_others_listen()
        while self._queued:
            batch = dict(itertools.islice(self._queued.items(), BATCH_MAX))
            await asyncio.gather(*(self._redis.execute("PUBLISH", *event) for event in batch.values()))
            for subject, event in batch.items():
                if self._queued.get(subject) is event:
                    del self._queued[subject]
            if self._is_cut_off:
                self._is_cut_off = False
                self._settled.clear()
                log.info("bus.replayed", count=len(batch))
        self._settled.set()

    async def _until_others_listen(self) -> None:
        """What is published while nobody listens is published to nobody."""
        await self._redis.execute("PING")
        await self._clock.sleep(RETURN_SECONDS)

    def _keep(self, name: str, error: BaseException) -> None:
        """Said once for as long as it lasts."""
        if not (self._is_cut_off and isinstance(error, Unavailable)):
            log.warning(
                "bus.event_queued",
                error=error,
                count=len(self._queued),
                consequence="other hosts hear of it when Redis is back, and look by themselves within seconds",
                remedy=_REMEDY,
            )
        self._is_cut_off = True
        self._settled.set()
        self._more.set()

    # --- hearing ---

    async def _hear(self) -> None:
        try:
            await self._redis.listen(list(self._topics), self._take, on_listening=self._begin_listening)
        finally:
            self.is_listening = False

    def _begin_listening(self) -> None:
        self.is_listening = True

    def _take(self, channel: str, message: bytes) -> None:
        try:
            payload = msgspec.json.decode(message, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # not one of us
        member, topic = payload.pop(_BY, None), self._topics.get(channel)
        if topic is not None and not self._local.is_here(str(member)):
            self._local.tell(topic, payload)


def _report(name: str, error: BaseException) -> None:
    """At every try, two seconds apart at most, so not where people look: what it means is said by the capability."""
    log.debug("bus.listening_failed", error=error)

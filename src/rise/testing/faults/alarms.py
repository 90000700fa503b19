"""What an installation says in its log when a copy is gone, and how soon.

The log is read as it grows, so that an alarm's time is ours: the installation's own clock may be wrong on purpose.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from rise.capabilities import CapabilityStatus
from rise.clock import Clock
from rise.service import cancel_all, spawn
from rise.testing.faults.schedule import Mishap

ALARM_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.2
_LOUD: Final = ("warning", "error", "critical")
_NOTED: Final = ("copies.made_up", "queue.refilled", "copies.lost")
_STATES: Final = ("capability.state_changed", "startup.capability.")
_SUBJECTS: Final = {
    "rabbit": "rabbitmq",
    "rabbitmq": "rabbitmq",
    "redis": "redis",
    "queue": "redis",
    "journal": "disk",
}
"""By the first word of an event."""

ALARM_OF: Final = {
    Mishap.REDIS_KILLED: "redis",
    Mishap.REDIS_FROZEN: "redis",
    Mishap.REDIS_EMPTIED: "redis",
    Mishap.REDIS_FULL: "redis",
    Mishap.REDIS_READ_ONLY: "redis",
    Mishap.RABBIT_KILLED: "rabbitmq",
    Mishap.RABBIT_FROZEN: "rabbitmq",
    Mishap.RABBIT_MEMORY_ALARM: "rabbitmq",
    Mishap.RABBIT_DISK_ALARM: "rabbitmq",
    Mishap.RABBIT_QUEUE_DELETED: "rabbitmq",
    Mishap.BOTH_UNREACHABLE: "redis",
    Mishap.MONGO_KILLED: "mongo",
    Mishap.MONGO_FROZEN: "mongo",
    Mishap.MONGO_STOPPED: "mongo",
}
"""The store of which something is to be said. Stream and group in Redis only wake workers: no copy goes with them."""


@dataclass(frozen=True, slots=True)
class Alarm:
    subject: str
    """The store it is about."""
    event: str
    at: float
    """By our monotonic clock."""


class Alarms:
    """`async with Alarms(log, clock) as alarms:` listens for as long as it lasts."""

    def __init__(self, log: Path, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._read_bytes = 0
        self._heard: list[Alarm] = []
        self._states: list[tuple[str, bool, float]] = []
        """Of which store it was said whether it is away, and when."""
        self.made_up: Counter[str] = Counter()
        """Copies made again, by store."""
        self.lost: Counter[str] = Counter()
        """Copies found missing, by store."""
        self.refilled = 0
        """How often an emptied queue was filled again."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        spawn(self._listen(), name="alarms", into=self._tasks)
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel_all(self._tasks)

    def now(self) -> float:
        return self._clock.monotonic()

    def since(self, began: float, subject: str, *, before: float | None = None) -> Alarm | None:
        """The first one about it."""
        until = began + ALARM_SECONDS_MAX if before is None else min(before, began + ALARM_SECONDS_MAX)
        return next((alarm for alarm in self._heard if alarm.subject == subject and began <= alarm.at < until), None)

    def is_said_away(self, subject: str, at: float) -> bool:
        """The last that was said of it before is that it is away: whatever befalls it then is no news."""
        said = [is_away for store, is_away, when in self._states if store == subject and when < at]
        return bool(said) and said[-1]

    def catch_up(self) -> None:
        """Read what has been said since the last look."""
        for line in self._lines():
            is_loud = any(f'"{level}"' in line for level in _LOUD)
            if is_loud or any(f'"{event}' in line for event in (*_NOTED, *_STATES)):
                try:
                    self._hear(json.loads(line))
                except ValueError:
                    continue  # cut off where its process was killed

    async def _listen(self) -> None:
        while True:
            self.catch_up()
            await self._clock.sleep(LOOK_SECONDS)

    def _lines(self) -> Iterator[str]:
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            log.seek(self._read_bytes)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # its rest comes later
                self._read_bytes += len(line)
                yield line.decode(errors="replace")

    def _hear(self, line: dict[str, Any]) -> None:
        event = str(line.get("event"))
        match event:
            case "copies.made_up":
                self.made_up[str(line["copy"])] += int(line["count"])
            case "queue.refilled":
                self.refilled += 1
            case "copies.lost":
                self.lost[str(line["copy"])] += int(line["count"])
        subject = _subject(event, line)
        if subject and event.startswith(_STATES):
            is_away = line.get("status") == CapabilityStatus.UNAVAILABLE
            self._states.append((subject, is_away, self._clock.monotonic()))
        if subject and line.get("level") in _LOUD:
            self._heard.append(Alarm(subject, event, self._clock.monotonic()))


def _subject(event: str, line: dict[str, Any]) -> str | None:
    """The store that a line is about."""
    if event.startswith(_STATES):
        return str(line["name"])
    if event.endswith("queue.enqueue_failed"):
        return "redis"
    if "copy" in line:
        return str(line["copy"])
    return _SUBJECTS.get(event.partition(".")[0])

"""What Rise says of itself when all is at rest, and how long it could not know that a message was taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import rise
from rise.clock import Clock
from rise.envelope import TaskId
from rise.testing.faults.seen import Question
from rise.testing.installation import Installation
from rise.testing.telegram import TelegramStandIn


@dataclass(frozen=True, slots=True)
class Books:
    is_clean: bool
    audit: Mapping[str, Any]
    parked: Mapping[TaskId, str]
    """And why."""

    @property
    def finished(self) -> int:
        return int(self.audit["done"] + self.audit["expired"] + self.audit["dropped"])

    @property
    def verdict(self) -> str:
        return "clean" if self.is_clean else json.dumps(self.audit)


async def read_books(installation: Installation) -> Books:
    code, audit = await installation.command("audit", "--json")
    _, suspended = await installation.command("suspended", "--json", "--limit", "1000000")
    parked = {TaskId(row["taskId"]): str(row["reason"]) for row in _document(suspended)["tasks"]}
    return Books(code == 0, _document(audit), parked)


def _document(printed: str) -> dict[str, Any]:
    """The one line of JSON; what is said beside it comes before."""
    return dict(json.loads(printed.strip().splitlines()[-1]))


class PlatformTime:
    """When something on the platform's own, faster clock was on ours."""

    def __init__(self, telegram: TelegramStandIn, clock: Clock, *, speed: float) -> None:
        self._speed = speed
        self._platform_began = telegram.now()
        self._began = clock.now().timestamp()

    def to_ours(self, at: float) -> float:
        return self._began + (at - self._platform_began) / self._speed


def windows(
    log: Path, questions: Sequence[Question], telegram: TelegramStandIn, platform_time: PlatformTime
) -> Iterator[tuple[float, float]]:
    """For each message that was sent and known to be: when the platform took it, and for how many seconds we did
    not know.

    The ledger does not keep when a reply became `sent`; the line `reply.delivered` of the log is written as soon
    as that is on disk, so the real window is a little shorter.
    """
    chats = {asked.task_id: asked.chat_id for asked in questions}
    taken = {(message.chat_id, str(message.message_id)): message.at for message in telegram.sent}
    for line in _delivered(log):
        at = taken.get((chats.get(TaskId(line["task_id"]), 0), str(line["platform_ref"])))
        if at is not None:
            began = platform_time.to_ours(at)
            yield began, datetime.fromisoformat(line["timestamp"]).timestamp() - began


def _delivered(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(errors="replace") as lines:
        for line in lines:
            # Cut off where its process was killed.
            if '"reply.delivered"' in line and line.startswith("{") and line.endswith("}\n"):
                yield json.loads(line)


async def commit() -> str:
    """Of the source this runs from; `+` if it was changed since. Empty where there is no repository."""
    words = ("git", "-C", str(Path(rise.__file__).parent), "describe", "--always", "--dirty=+", "--match=")
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    printed, _ = await process.communicate()
    return printed.decode().strip()

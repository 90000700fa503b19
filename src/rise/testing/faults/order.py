"""What a drill is told to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rise.testing.faults.schedule import Cycle

PER_SECOND: Final = 25.0
PER_SECOND_WITH_MONGO: Final = 4.0
"""The server that speaks MongoDB's protocol here syncs each write by itself: with more, the drill is long at rest."""


class AppendFsync(StrEnum):
    """How much of what Redis was told it remembers when it is killed."""

    ALWAYS = "always"
    EVERYSEC = "everysec"
    NO = "no"
    OFF = "off"
    """Nothing at all: no append-only file."""

    @property
    def settings(self) -> dict[str, str]:
        return {"appendonly": "no"} if self is AppendFsync.OFF else {"appendfsync": self.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do."""

    seed: int
    cycles: int = 30
    minutes: float | None = None
    """Instead of a number of cycles."""
    mode: str = "webhook"
    """How updates come in: `webhook` or `polling`."""
    troubles: bool = True
    """False: kills alone."""
    full: bool = False
    """With servers of its own, and a second gateway."""
    mongo: bool = False
    """With `full`: the ledger on a server, too."""
    appendfsync: AppendFsync = AppendFsync.EVERYSEC
    """Of that Redis."""
    chats: int = 8
    messages_per_second: float = PER_SECOND
    schedule: Sequence[Cycle] | None = None
    """Exactly this, whatever the seed."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the installation, instead of those of a drill."""

    @property
    def profile(self) -> str:
        return "mongo" if self.mongo else "full" if self.full else "embedded"

    @property
    def command(self) -> str:
        length = f"--cycles {self.cycles}" if self.minutes is None else f"--minutes {self.minutes:g}"
        words = ["rise drill", *self.profile_words, f"--seed {self.seed}", length]
        words += ["--mode polling"] if self.mode == "polling" else []
        is_usual = self.messages_per_second == (PER_SECOND_WITH_MONGO if self.mongo else PER_SECOND)
        words += [] if is_usual else [f"--rate {self.messages_per_second:g}"]
        words += ["--kills-only"] if not self.troubles else []
        return " ".join(words)

    @property
    def profile_words(self) -> list[str]:
        if not self.full:
            return []
        has_default = self.appendfsync is AppendFsync.EVERYSEC
        return [f"--profile {self.profile}", *([] if has_default else [f"--appendfsync {self.appendfsync}"])]

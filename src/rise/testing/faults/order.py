"""What a drill is told to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rise.testing.faults.schedule import Cycle
from rise.testing.faults.stores import AppendFsync


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
    appendfsync: AppendFsync = AppendFsync.EVERYSEC
    """Of that Redis."""
    chats: int = 8
    messages_per_second: float = 25.0
    schedule: Sequence[Cycle] | None = None
    """Exactly this, whatever the seed."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the installation, instead of those of a drill."""

    @property
    def command(self) -> str:
        length = f"--cycles {self.cycles}" if self.minutes is None else f"--minutes {self.minutes:g}"
        words = ["rise drill", *self.profile_words, f"--seed {self.seed}", length]
        words += ["--mode polling"] if self.mode == "polling" else []
        words += ["--kills-only"] if not self.troubles else []
        return " ".join(words)

    @property
    def profile_words(self) -> list[str]:
        if not self.full:
            return []
        has_default = self.appendfsync is AppendFsync.EVERYSEC
        return ["--profile full", *([] if has_default else [f"--appendfsync {self.appendfsync}"])]

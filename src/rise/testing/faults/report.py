"""What a drill found: the table that is the public claim, and which promise was broken, if one was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from rise.envelope import Reason
from rise.testing.faults.alarms import Alarms
from rise.testing.faults.nemesis import CopyGone

_CAUSED: Final = frozenset({Reason.REPLY_HELD, Reason.POISON})
"""What lost answers and repeated kills may come to, as documented."""


class Window(msgspec.Struct, frozen=True):
    """From the platform's taking a message to our having that on disk: a kill in between is the one doubt."""

    measured: int
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Window | None:
        if not seconds:
            return None
        ordered = sorted(seconds)
        return cls(len(ordered), ordered[len(ordered) // 2] * 1000, ordered[len(ordered) * 99 // 100] * 1000)

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, of {self.measured}"


class CopiesSeen(msgspec.Struct, frozen=True, rename="camel"):
    """What became of the copies in the servers."""

    made_up: Mapping[str, int]
    lost: Mapping[str, int]
    refilled: int
    """How often an emptied Redis was filled again."""
    alarms_due: int
    """Troubles that took a copy which was not said to be away already."""
    alarms_missed: Sequence[str]
    """Of which nothing was said within 30 seconds, and before the next of that store."""

    @classmethod
    def of(cls, alarms: Alarms, gone: Sequence[CopyGone]) -> CopiesSeen:
        alarms.catch_up()
        raised, missed = 0, []
        for number, one in enumerate(gone):
            following = (later.at for later in gone[number + 1 :] if later.subject == one.subject)
            if alarms.since(one.at, one.subject, before=next(following, None)) is not None:
                raised += 1
            elif not alarms.is_said_away(one.subject, one.at):
                missed.append(one.trouble)
        return cls(dict(alarms.made_up), dict(alarms.lost), alarms.refilled, raised + len(missed), missed)

    def rows(self) -> list[tuple[str, object]]:
        raised = f"{self.alarms_due - len(self.alarms_missed)} of {self.alarms_due}"
        missing = f"; none for: {_counted(Counter(self.alarms_missed))}" if self.alarms_missed else ""
        return [
            ("copies made up", _counted(self.made_up)),
            ("copies found missing", _counted(self.lost)),
            ("refills of Redis", self.refilled),
            ("alarms within 30 s, where a copy was gone", raised + missing),
        ]


class DrillReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    profile: str = "embedded"
    mode: str
    seed: int
    commit: str
    command: str
    """The same faults again."""
    seconds: float
    kill_cycles: int
    faults: Mapping[str, int]
    left_out: Mapping[str, str]
    sent: int
    """Messages that people wrote."""
    deliveries: Mapping[str, int]
    """Requests of the platform, by how they were answered."""
    not_taken: int
    """Updates that the platform still held at the end, or had to give up."""
    accepted: int
    finished: int
    parked: Mapping[str, int]
    open: int
    lost: Sequence[str]
    resent: int
    """Calls that were made although an earlier one might have had its effect, as the ledger counts them."""
    repeated_marked: int
    repeated_unmarked: int
    repeated_too_often: int
    order_breaks: Sequence[str]
    late: int = 0
    """Messages that Rise counts to have come after a later one of their chat: those are run next, and answered so."""
    strange: Sequence[str]
    forged: int
    forged_accepted: int
    window: Window | None
    gave_up: Sequence[str]
    audit: str
    unaccounted: int = 0
    """Accepted messages of which the audit knows no end and no place."""
    copies: CopiesSeen | None = None

    def broken(self) -> list[str]:
        """Each promise that did not hold."""
        counts = {
            "messages that were accepted are lost": len(self.lost),
            "messages more or fewer were accepted than were taken": abs(self.accepted - self.sent + self.not_taken),
            "messages are parked for a reason that no fault had given": self._parked_without_cause(),
            "answers came twice without a mark": self.repeated_unmarked,
            "answers came more often than the policy allows": self.repeated_too_often,
            "answers came twice and the ledger does not know": self._repeated_unknown(),
            "answers came out of order, and their messages not late": max(0, len(self.order_breaks) - self.late),
            "answers were seen that nobody had asked for": len(self.strange),
            "forged updates were accepted": self.forged_accepted,
            "messages did not come to rest": self.open,
            "updates were not taken from the platform": self.not_taken,
            "times a process ended or would not start or stop": len(self.gave_up),
            "copies were gone and no alarm said so": len(self.copies.alarms_missed) if self.copies else 0,
        }
        found = [f"{count} {what}" for what, count in counts.items() if count]
        return found if self.audit == "clean" else [*found, "the audit is not clean"]

    def text(self) -> str:
        rows = [(name, str(value)) for name, value in self._rows() if value is not None]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _rows(self) -> list[tuple[str, object]]:
        """The table."""
        return [
            ("kill cycles", f"{self.kill_cycles} in {self.seconds:.0f} s, {self.profile}, {self.mode}"),
            *((f"  {name}", count) for name, count in sorted(self.faults.items())),
            *((f"  {name}", f"left out: {why}") for name, why in sorted(self.left_out.items())),
            ("messages sent by people", self.sent),
            *((f"  deliveries answered {answer}", count) for answer, count in sorted(self.deliveries.items())),
            ("accepted", self.accepted),
            ("finished", self.finished),
            ("parked, with a reason", _counted(self.parked)),
            ("open at the end", self.open),
            ("lost", len(self.lost)),
            ("sent once more because nobody could know", self.resent),
            ("answered twice, marked", self.repeated_marked),
            ("answered twice, unmarked", self.repeated_unmarked),
            ("order breaks", f"{len(self.order_breaks)}, messages counted late: {self.late}"),
            ("forged updates accepted", f"{self.forged_accepted} of {self.forged}"),
            ("duplicate window", self.window),
            ("audit", f"{self.audit}, {self.unaccounted} unaccounted"),
            *(self.copies.rows() if self.copies else []),
            ("loss per kill, with 95 % confidence", self._bound()),
            ("seed", self.seed),
            ("commit", self.commit),
            ("the same faults again", self.command),
        ]

    def _parked_without_cause(self) -> int:
        return sum(count for reason, count in self.parked.items() if reason not in _CAUSED)

    def _repeated_unknown(self) -> int:
        return max(0, self.repeated_marked + self.repeated_unmarked - self.resent)

    def _bound(self) -> str:
        # The rule of three: had a kill a chance p of losing something, n kills would show none with (1 - p)^n,
        # which is under 5 % from p = 3/n on.
        if self.lost or not self.kill_cycles:
            return "no bound"
        return f"below 3/{self.kill_cycles} = {3 / self.kill_cycles:.2%}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "0"

"""The table of single failures: what was promised, what was measured, and what of it did not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

BEGINS: Final = "<!-- rise drill --table: begin -->"
ENDS: Final = "<!-- rise drill --table: end -->"
_HEAD: Final = (
    "Fails",
    "Accepts",
    "503",
    "Executes, replies",
    "Lost",
    "Twice, marked · unmarked",
    "Order breaks",
    "All well after",
    "Alarm after",
)


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    promises_accepting: bool
    promises_executing: bool | None
    alarm_is_due: bool
    asked: int
    """Messages that people wrote, before, meanwhile and just afterwards."""
    accepted_per_second: float
    accepts: bool
    """In the second half, when it has been noticed."""
    refused: int
    """Answered 503."""
    refused_without_time: int
    """... without saying when to come again."""
    executes: bool
    """Answers were sent in the second half."""
    lost: int
    repeated_marked: int
    repeated_unmarked: int
    order_breaks: int
    well_after_seconds: float | None
    """From its end until everything was answered and every capability was there."""
    alarm_after_seconds: float | None

    def broken(self) -> list[str]:
        """Each promise that did not hold."""
        found = {
            "nothing was accepted": self.promises_accepting and not self.accepts,
            "something was promised that too few stores could hold": not self.promises_accepting and self.accepts,
            "nothing was executed and sent": self.promises_executing is True and not self.executes,
            f"{self.refused_without_time} refusals did not say when to come again": self.refused_without_time > 0,
            f"{self.lost} messages are lost": self.lost > 0,
            f"{self.repeated_unmarked} answers came twice without a mark": self.repeated_unmarked > 0,
            f"{self.order_breaks} answers came out of order": self.order_breaks > 0,
            "it did not get well by itself": self.well_after_seconds is None,
            "no alarm said so within 30 s": self.alarm_is_due and self.alarm_after_seconds is None,
        }
        return [f"{self.name}: {what}" for what, is_so in found.items() if is_so]

    def cells(self) -> list[str]:
        alarm = "none" if self.alarm_after_seconds is None else f"{self.alarm_after_seconds:.1f} s"
        return [
            self.name,
            f"{_yes(self.accepts)}, {self.accepted_per_second:.0f}/s",
            str(self.refused),
            _yes(self.executes),
            f"{self.lost} of {self.asked}",
            f"{self.repeated_marked} · {self.repeated_unmarked}",
            str(self.order_breaks),
            "not in 2 min" if self.well_after_seconds is None else f"{self.well_after_seconds:.1f} s",
            alarm if self.alarm_is_due else "–",
        ]


class Table(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    rows: Sequence[Row]
    left_out: Mapping[str, str]
    seed: int
    commit: str
    per_second: float
    seconds: float
    appendfsync: str
    command: str
    """The same again."""
    finished: int
    """Messages, when all rows were measured."""
    unaccounted: int
    """... of which `rise audit` knew no end and no place then."""
    audit: str
    """`clean`, or what it said."""

    def broken(self) -> list[str]:
        found = [what for row in self.rows for what in row.broken()]
        return found if self.audit == "clean" else [*found, f"the audit is not clean: {self.audit}"]

    def text(self) -> str:
        """In Markdown, readable as it is."""
        lines = [list(_HEAD), *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        shown = [
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
        ]
        shown.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        shown += ["", self._origin(), self._audited()]
        shown += [f"Left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(shown)

    def _origin(self) -> str:
        return (
            f"{self.seconds:g} s each, {self.per_second:g} messages a second asked for, Redis with appendfsync "
            f"{self.appendfsync}; seed {self.seed}, commit `{self.commit}`; again with `{self.command}`."
        )

    def _audited(self) -> str:
        return f"`rise audit` after all of it: {self.audit}; {self.finished} finished, {self.unaccounted} unaccounted."

    def write_into(self, document: Path) -> None:
        """Between its marks; raises `ValueError` if the document has none."""
        text = document.read_text()
        before, begins, following = text.partition(BEGINS)
        _, ends, after = following.partition(ENDS)
        if not begins or not ends:
            raise ValueError(f"{document} has no place for the table: put {BEGINS} and {ENDS} into it")
        document.write_text(f"{before}{BEGINS}\n{self.text()}\n{ENDS}{after}")


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"

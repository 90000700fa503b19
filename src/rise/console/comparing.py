"""What is other in one version than in another, for people: place by place, and in a text line by line.

Promises: a page can hold it, whatever somebody wrote; characters that turn the direction of text are shown, not obeyed.

Refuses: to compare texts of so many lines that it would take long: those are shown one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

import msgspec
from markupsafe import escape

from rise.envelope import encode_json
from rise.runtime.differences import ChangeKind, Difference
from rise.runtime.written import unseen_spelled
from rise.telemetry import printable

PLACES_MAX: Final = 40
CHARS_MAX: Final = 16_000
"""Of one comparison, as a page spells them."""
LINES_COMPARED_MAX: Final = 200
"""Of one text, and twice as many of all: the time it takes may grow with their square, and more."""
LINE_CHARS_MAX: Final = 500
CONTEXT: Final = 2
"""Lines that are alike, before and after those that are not."""


class Line(msgspec.Struct, frozen=True):
    mark: str
    """`+`, `-`, or a space for what is alike. `…`: some lines are left out."""
    text: str


class Compared(msgspec.Struct, frozen=True):
    """One place that is other."""

    path: str
    change: ChangeKind
    lines: list[Line]


class Comparison(msgspec.Struct, frozen=True):
    places: list[Compared]
    left_out: int = 0
    """Places that are not shown."""
    is_cut: bool = False
    """Whether lines are left out at the end of one."""


def comparison(found: Sequence[Difference]) -> Comparison:
    """As much of it as a page can hold."""
    left, places, is_cut, between = CHARS_MAX, list[Compared](), False, _Between()
    for one in found[:PLACES_MAX]:
        if left <= 0:
            break
        lines: list[Line] = []
        for line in _lines(one, between):
            left -= len(escape(line.text)) + 60
            if left < 0:
                is_cut = True
                break
            lines.append(line)
        places.append(Compared(printable(one.path)[:200], one.change, lines))
    return Comparison(places, len(found) - len(places), is_cut)


def _lines(one: Difference, between: _Between) -> Iterable[Line]:
    match one.change:
        case ChangeKind.ADDED:
            return _marked("+", _text(one.new))
        case ChangeKind.REMOVED:
            return _marked("-", _text(one.old))
        case ChangeKind.REORDERED:
            before, after = (", ".join(map(str, names)) for names in (one.old, one.new))
            return [*_marked("-", before), *_marked("+", after)]
        case ChangeKind.CHANGED if isinstance(one.old, str) and isinstance(one.new, str):
            return between.lines(one.old, one.new)
        case ChangeKind.CHANGED:
            return [*_marked("-", _json(one.old)), *_marked("+", _json(one.new))]


class _Between:
    """Texts, line by line, as long as that does not take too long."""

    def __init__(self) -> None:
        self._left = 2 * LINES_COMPARED_MAX

    def lines(self, old: str, new: str) -> Iterator[Line]:
        before, after = old.split("\n"), new.split("\n")
        count = max(len(before), len(after))
        if count > min(LINES_COMPARED_MAX, self._left):
            yield from _marked("-", old)
            yield from _marked("+", new)
            return
        self._left -= count
        groups = list(SequenceMatcher(None, before, after, autojunk=False).get_grouped_opcodes(CONTEXT))
        for group in groups:
            if group[0][1] > 0:
                yield Line("…", "")
            for _, first, last, first_after, last_after in group:
                yield from _of_group(before[first:last], after[first_after:last_after])
        if groups and groups[-1][-1][2] < len(before):
            yield Line("…", "")


def _of_group(before: Sequence[str], after: Sequence[str]) -> Iterator[Line]:
    if before == after:
        yield from _marked(" ", *before)
    else:
        yield from _marked("-", *before)
        yield from _marked("+", *after)


def _marked(mark: str, *texts: str) -> Iterator[Line]:
    for line in (line for text in texts for line in text.split("\n")):
        shown = printable(unseen_spelled(line.replace("\t", "    ")))
        yield Line(mark, shown if len(shown) <= LINE_CHARS_MAX else f"{shown[: LINE_CHARS_MAX - 1]}…")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(json.loads(encode_json(value)), indent=2, ensure_ascii=False)

"""What was found: figures with their spread, ratios with their aims. As text for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rise.testing.bench.measuring import Spread


class Aim(msgspec.Struct, frozen=True):
    """What a figure should be."""

    limit: float
    at_least: bool

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


class Figure(msgspec.Struct, frozen=True):
    """One number of one contender, or the ratio of two. Without an aim it is there to be compared with."""

    part: str
    """How to run it alone: `rise bench --part …`."""
    name: str
    spread: Spread
    unit: str
    aim: Aim | None = None
    digits: int = 2

    @property
    def is_met(self) -> bool | None:
        return None if self.aim is None else self.aim.is_met_by(self.spread.median)


class Report(msgspec.Struct):
    """All figures of one run. Those of one contender share what stands before the colon of their names."""

    machine: str
    profile: str = "embedded"
    figures: list[Figure] = []
    notes: list[str] = []

    def add(
        self,
        part: str,
        name: str,
        values: Sequence[float] | Spread,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        digits: int = 2,
    ) -> None:
        aim = None
        if at_least is not None or at_most is not None:
            aim = Aim(at_least or at_most or 0.0, at_least is not None)
        spread = values if isinstance(values, Spread) else Spread.of(values)
        self.figures.append(Figure(part, name, spread, unit, aim, digits))

    def text(self) -> str:
        lines = [self.machine]
        rows = _rows(self.figures)
        width = max((len(name) for _, name in rows), default=0)
        part = ""
        for (row_part, name), cells in rows.items():
            if row_part != part:
                part = row_part
                lines += ["", f"{part}   (median [lowest – highest] of the rounds)"]
            lines.append(f"  {name:<{width}}  {' · '.join(cells)}")
        lines += ["", *self.notes]
        lines += _verdicts(self.figures)
        missed = sorted({figure.part for figure in self.figures if figure.is_met is False})
        why = f"rise bench --profile {self.profile} --why --part"
        lines += [f"An aim of {part} is missed: `{why} {part}` shows what takes the time." for part in missed]
        return "\n".join(lines)

    def json(self) -> str:
        found = {
            "machine": self.machine,
            "profile": self.profile,
            "figures": [msgspec.to_builtins(figure) | {"met": figure.is_met} for figure in self.figures],
            "notes": self.notes,
        }
        return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def _verdicts(figures: Sequence[Figure]) -> list[str]:
    """Every aim on a line of its own."""
    aimed = [figure for figure in figures if figure.aim is not None]
    return [
        f"{'met   ' if figure.is_met else 'MISSED'}  {figure.part}: {figure.name}: "
        f"{figure.spread.median:.2f}, aim {figure.aim}"
        for figure in aimed
    ]


def _rows(figures: Sequence[Figure]) -> dict[tuple[str, str], list[str]]:
    rows: dict[tuple[str, str], list[str]] = {}
    for figure in figures:
        name, _, column = figure.name.partition(": ")
        rows.setdefault((figure.part, name), []).append(f"{column} {_shown(figure)}".lstrip())
    return rows


def _shown(figure: Figure) -> str:
    shown = f"{figure.spread.shown(figure.digits)} {figure.unit}"
    return shown if figure.aim is None else f"{shown:<36} aim {figure.aim}: {'met' if figure.is_met else 'MISSED'}"

"""What is other in one version than in another, place by place, in the same order whoever asks.

Promises: entries of a list that all have a name of their own are compared by it, so that one that was put in front does
not make all others look changed; that they changed places is said once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec


class ChangeKind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    REORDERED = "reordered"
    """`old` and `new` are the names of those that are in both."""


class Difference(msgspec.Struct, frozen=True):
    path: str
    """Such as `stages.say.template` or `stages.say.buttons[0][1].text`."""
    change: ChangeKind
    old: Any = None
    new: Any = None


def differences(old: Any, new: Any, path: str = "") -> list[Difference]:
    """From `old` to `new`, both as read from JSON."""
    return list(_compared(old, new, path))


def _compared(old: Any, new: Any, path: str) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _by_name(old, new, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _in_lists(old, new, path)
    elif type(old) is not type(new) or old != new:
        yield Difference(path, ChangeKind.CHANGED, old, new)


def _by_name(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Difference]:
    for name in sorted(old.keys() | new.keys()):
        place = f"{path}.{name}" if path else name
        if name not in new:
            yield Difference(place, ChangeKind.REMOVED, old[name])
        elif name not in old:
            yield Difference(place, ChangeKind.ADDED, new=new[name])
        else:
            yield from _compared(old[name], new[name], place)


def _in_lists(old: Sequence[Any], new: Sequence[Any], path: str) -> Iterator[Difference]:
    named, named_anew = _named(old), _named(new)
    if named is not None and named_anew is not None:
        kept, kept_anew = [one for one in named if one in named_anew], [one for one in named_anew if one in named]
        if kept != kept_anew:
            yield Difference(path, ChangeKind.REORDERED, kept, kept_anew)
        yield from _by_name(named, named_anew, path)
        return
    for at in range(max(len(old), len(new))):
        place = f"{path}[{at}]"
        if at >= len(new):
            yield Difference(place, ChangeKind.REMOVED, old[at])
        elif at >= len(old):
            yield Difference(place, ChangeKind.ADDED, new=new[at])
        else:
            yield from _compared(old[at], new[at], place)


def _named(entries: Sequence[Any]) -> dict[str, Any] | None:
    """By their names, if each has one of its own."""
    named = {one["name"]: one for one in entries if isinstance(one, dict) and isinstance(one.get("name"), str)}
    return named if len(named) == len(entries) else None

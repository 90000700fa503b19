"""Functions that `python` stages call by name, found like workflows in the module `RISE_APP` names.

The decorator only marks the function; it registers nothing anywhere. Loading collects what the module holds.

Refuses: a name that could not stand in a stage, and one that two functions have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from rise.errors import SettingsInvalid

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__rise_function__"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def function(name: str) -> Callable[[F], F]:
    """Let `python` stages call it by this name: `async def f(values: dict)`, or a plain `def`, which runs in a thread.

    `values` is what templates see, as a copy of its own: `text`, `user`, `chat_id`, `channel`, `metadata`, `history`,
    and `stages` with the results so far, by name. What it returns must be expressible in JSON, and is kept: a run that
    is repeated after a crash does not call it again, except where the crash came before its result was kept.

    Raises `ValueError` for a name that cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no function name: use letters, digits, '_', '-' and '.', at most 64")

    def mark(marked: F) -> F:
        setattr(marked, _MARK, name)
        return marked

    return mark


def functions_among(values: Iterable[Any]) -> dict[str, Callable[..., Any]]:
    """The marked ones, by name. Raises `SettingsInvalid` where two have the same."""
    found: dict[str, Callable[..., Any]] = {}
    for value in values:
        name = vars(value).get(_MARK) if hasattr(value, "__dict__") else None
        if not isinstance(name, str) or not callable(value):
            continue
        if found.setdefault(name, value) is not value:
            raise SettingsInvalid(
                [f"Two functions are marked @rise.function({name!r}). Give one of them another name."]
            )
    return found

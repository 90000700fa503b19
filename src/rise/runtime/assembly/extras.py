"""Imports of what an installation without that server need not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rise.errors import SettingsInvalid


@contextmanager
def needing(setting: str, extra: str) -> Iterator[None]:
    """Around its imports, in the function that needs them: no command waits for what it does not use. Raises
    `SettingsInvalid` with what to install."""
    try:
        yield
    except ImportError as error:
        missing = f"{setting} is set, but its client is not installed: pip install 'rise-gateway[{extra}]'"
        raise SettingsInvalid([f"{missing}, or unset it."]) from error

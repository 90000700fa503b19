"""How many files and connections a process may have open: what a shell starts with is few for a server.

Refuses: nothing. Where the system allows no more, it stays as it is, and `rise doctor` says so.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import Final

ENOUGH: Final = 4096
"""For the web chat's pages beside everything else."""


def open_files_max() -> int:
    """Of this process, now."""
    return _bound(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def open_files_allowed() -> int:
    """As many as this process could allow itself."""
    return _bound(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def allow_open_files() -> None:
    """As many as the system lets this process have; what it starts has them, too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a sandbox may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bound(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit

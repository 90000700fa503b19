"""Which code was measured or tried."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rise import __version__


def commit_of_this() -> str:
    """The commit of the working copy this runs from, `+` if something in it is not committed; else the version."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return described.stdout.strip()

"""The wall clock of an installation's processes, set forward and back while they run.

The kernel has one wall clock for all, so what is stepped is what `rise.clock` reads: the only place where Rise
asks for the time, which lint enforces. Libraries keep the true time.
"""

from __future__ import annotations

import mmap
import os
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from rise.clock import SystemClock

_OFFSET: Final = struct.Struct("d")
_AT_START: Final = """\
from pathlib import Path

from rise.testing.faults.wall_clock import follow

follow(Path(__file__).with_name("offset"))
"""


class WallClock:
    """Add its `surroundings` to those of an installation before it is started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offset = directory / "offset"
        directory.mkdir()
        self._offset.write_bytes(_OFFSET.pack(0.0))
        # Python imports a module of this name when it starts, be it the gateway or a worker that it starts itself.
        (directory / "sitecustomize.py").write_text(_AT_START)

    @property
    def surroundings(self) -> dict[str, str]:
        paths = [str(self._directory), os.environ.get("PYTHONPATH", "")]  # noqa: TID251 - the interpreter's own, no setting
        return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def step(self, seconds: float) -> None:
        """From now on it is wrong by so much. 0 sets it right."""
        with self._offset.open("r+b") as file:
            file.write(_OFFSET.pack(seconds))


def follow(offset: Path) -> None:
    """In a process of the installation: be as wrong as the file says, at every look."""
    with offset.open("rb") as file:
        shared = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    true_now = SystemClock.now

    def now(clock: SystemClock) -> datetime:
        return true_now(clock) + timedelta(seconds=_OFFSET.unpack(shared[:])[0])

    setattr(SystemClock, "now", now)  # noqa: B010 - replaced on purpose

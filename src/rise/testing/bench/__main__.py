"""`python -m rise.testing.bench`, which `rise bench` runs."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from rise.telemetry import configure_logs
from rise.testing.bench.run import PARTS, run_bench, run_profile
from rise.testing.bench.sizes import Sizes

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(prog="rise bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--part", action="append", choices=list(PARTS), default=[])
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    asked = parser.parse_args()
    configure_logs("console", level="error")
    sizes = Sizes.least() if asked.least else Sizes.quick() if asked.quick else Sizes()
    if asked.profile:
        for part in asked.part or PARTS:
            uvloop.run(_until_told(run_profile(sizes, directory=asked.directory, part=part)))
        return
    measuring = run_bench(
        sizes, directory=asked.directory, parts=asked.part, say=lambda text: print(text, file=sys.stderr)
    )
    report = uvloop.run(_until_told(measuring))
    print(report.json() if asked.json else report.text())


async def _until_told(work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM and SIGINT end it as an error would: nothing that was started stays behind."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for told in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(told, this.cancel)
    return await work


if __name__ == "__main__":
    main()

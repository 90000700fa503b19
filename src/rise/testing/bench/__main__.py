"""`python -m rise.testing.bench`, which `rise bench` runs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from rise.runtime.processes import until_told
from rise.telemetry import configure_logs
from rise.testing.bench.run import EMBEDDED, PARTS, WHYS, run_bench, run_why
from rise.testing.bench.sizes import Sizes


def main() -> None:
    parser = argparse.ArgumentParser(prog="rise bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--why", action="store_true")
    parser.add_argument("--profile", choices=list(PARTS), default=EMBEDDED)
    parser.add_argument("--part", action="append", default=[])
    parser.add_argument("--queued", type=int)
    parser.add_argument("--backlog", type=int)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    asked = parser.parse_args()
    configure_logs("console", level="error")
    if unknown := set(asked.part) - PARTS[asked.profile].keys():
        parser.error(
            f"the {asked.profile} profile has no {', '.join(unknown)}; it has {', '.join(PARTS[asked.profile])}"
        )
    sizes = Sizes.least() if asked.least else Sizes.quick() if asked.quick else Sizes()
    sizes = replace(sizes, queued=asked.queued or sizes.queued, backlog=asked.backlog or sizes.backlog)
    if asked.why:
        for part in asked.part or WHYS[asked.profile]:
            uvloop.run(until_told(run_why(sizes, directory=asked.directory, part=part, profile=asked.profile)))
        return
    measuring = run_bench(
        sizes,
        directory=asked.directory,
        profile=asked.profile,
        parts=asked.part,
        say=lambda text: print(text, file=sys.stderr),
    )
    report = uvloop.run(until_told(measuring))
    print(report.json() if asked.json else report.text())


if __name__ == "__main__":
    try:
        main()
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit(130)  # as `rise` ends then

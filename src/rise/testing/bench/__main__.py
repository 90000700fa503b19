"""`python -m rise.testing.bench`, which `rise bench` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from rise.runtime.processes import until_told
from rise.telemetry import configure_logs
from rise.testing.bench.run import PARTS, run_bench, run_profile
from rise.testing.bench.sizes import Sizes


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
            uvloop.run(until_told(run_profile(sizes, directory=asked.directory, part=part)))
        return
    measuring = run_bench(
        sizes, directory=asked.directory, parts=asked.part, say=lambda text: print(text, file=sys.stderr)
    )
    report = uvloop.run(until_told(measuring))
    print(report.json() if asked.json else report.text())


if __name__ == "__main__":
    main()

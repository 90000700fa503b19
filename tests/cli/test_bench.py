"""`rise bench` runs from end to end and says what it should; its figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def bench(directory: Path, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "rise.testing.bench", "--least", f"--directory={directory}", *words],
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
        text=True,
    )
    assert list(directory.iterdir()) == []
    return ended.stdout


def test_rise_is_measured_beside_others_in_every_part_and_nothing_stays_behind(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--json"))["figures"]
    assert {figure["part"] for figure in found} == {"accept", "execute", "restart", "memory"}
    figures = {figure["name"]: figure for figure in found}
    for other, limit in (("plain FastAPI", 2), ("raw ASGI", 0.5)):
        ratio = figures[f"Rise ÷ {other}, at 4"]
        assert ratio["spread"]["median"] > 0
        assert ratio["aim"] == {"limit": limit, "at_least": True}


@pytest.mark.parametrize("part", ["execute", "restart"])
def test_a_part_that_works_tasks_can_be_profiled(tmp_path: Path, part: str) -> None:
    assert "function calls" in bench(tmp_path, "--profile", f"--part={part}")

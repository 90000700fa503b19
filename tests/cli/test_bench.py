"""`rise bench` runs from end to end and says what it should; its figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_every_part_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rise.testing.bench", "--least", "--json", f"--directory={tmp_path}"],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )

    figures = json.loads(ended.stdout)["figures"]
    assert {figure["part"] for figure in figures} == {"accept", "execute", "restart", "memory"}
    assert all(figure["spread"]["median"] > 0 for figure in figures if figure["unit"] == "×")
    aims = [figure["name"] for figure in figures if figure["aim"]]
    assert any("plain FastAPI" in name for name in aims) and any("raw ASGI" in name for name in aims)
    assert list(tmp_path.iterdir()) == []

"""`rise bench` runs from end to end and says what it should; its figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_rise_is_measured_beside_others_and_nothing_stays_behind(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rise.testing.bench", "--least", "--json", "--part=accept", f"--directory={tmp_path}"],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )

    figures = {figure["name"]: figure for figure in json.loads(ended.stdout)["figures"]}
    for other, limit in (("plain FastAPI", 2), ("raw ASGI", 0.5)):
        ratio = figures[f"Rise ÷ {other}, at 4"]
        assert ratio["spread"]["median"] > 0
        assert ratio["aim"] == {"limit": limit, "at_least": True}
    assert list(tmp_path.iterdir()) == []

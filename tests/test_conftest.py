"""What the test command promises: with --no-skips, nothing is passed over in silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = """
import pytest

@pytest.mark.skipif(True, reason="no browser")
def test_by_mark(): ...

def test_by_call():
    pytest.skip("no disk")

@pytest.fixture
def root():
    pytest.skip("no root")

def test_by_fixture(root): ...

@pytest.mark.xfail
def test_expected_to_fail():
    raise AssertionError
"""
SKIPPED_WHOLE = "import pytest\npytest.importorskip('nothing_of_that_name')"


@pytest.fixture
def passed_over(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "test_skipped_whole.py").write_text(SKIPPED_WHOLE)
    return tmp_path


def run_on(path: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={path}", "-q", *words, path]
    ended = subprocess.run(command, cwd=path, stdout=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stdout


def test_a_skip_is_a_failure_where_none_is_allowed(passed_over: Path) -> None:
    code, said = run_on(passed_over, "--no-skips", "--continue-on-collection-errors")
    assert code == 1
    assert "1 failed, 1 xfailed, 3 errors" in said
    for reason in ("no browser", "no disk", "no root", "nothing_of_that_name"):
        assert reason in said
    assert said.count("with --no-skips that is a failure") >= 4


def test_a_skip_is_shown_and_passes_otherwise(passed_over: Path) -> None:
    code, said = run_on(passed_over)
    assert code == 0
    assert "4 skipped, 1 xfailed" in said

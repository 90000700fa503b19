"""`./run WORD …`: what `make WORD` does, with what follows handed to the command behind the word."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "run"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Installed already, with commands that only say how they were called."""
    commands = tmp_path / "venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("rise", "python"):
        (commands / name).write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
        (commands / name).chmod(0o755)
    for installed in (".installed", ".tools"):
        (commands.parent / installed).touch()
    return commands.parent


def called(venv: Path, *words: str) -> str:
    environment = os.environ | {"VENV": str(venv)}
    return subprocess.run([RUN, *words], env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.req("EMB-1")
def test_flags_reach_the_command_as_they_were_written(venv: Path) -> None:
    assert called(venv, "demo").endswith("<demo>")
    assert called(venv, "demo", "--port", "9000", "--no-browser").endswith("<demo><--port><9000><--no-browser>")
    odd = ["two words", "it's", "$HOME", "a*", '"', "\\", "#", "ключ"]
    assert called(venv, "demo", *odd).endswith("<demo>" + "".join(f"<{word}>" for word in odd))


def test_words_for_the_tests_reach_the_tests(venv: Path) -> None:
    assert called(venv, "quick", "tests/cli", "-k", "run or demo").endswith("<-x><-q><tests/cli><-k><run or demo>")

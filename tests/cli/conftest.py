"""What tests of the command line use: commands in this process, and a directory to run them on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from cli_directory import Directory, Ended, Rise

from rise import cli, telemetry


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings, and `data` in a directory of the test's own."""
    for name in list(os.environ):
        if name.startswith("RISE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RISE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def rise(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Rise]:
    """Run `rise WORDS` in this process: exit code, and what it printed where."""
    # A log configured here would outlive the test, and write to its closed standard error.
    monkeypatch.setattr(telemetry, "configure_logs", lambda *_, **__: None)

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rise", *words])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capfd.readouterr()
        return Ended(code, printed.out, printed.err)

    with structlog.testing.capture_logs():
        yield run


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "data")

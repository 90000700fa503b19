"""What runs, and what refuses to before it has made anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_directory import Rise


@pytest.mark.failure("M1")
def test_a_worker_without_workflows_is_refused_before_anything_is_made(rise: Rise, tmp_path: Path):
    refused = rise("worker")
    assert refused.code == 2
    assert "RISE_APP is not set" in refused.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.failure("M1")
@pytest.mark.parametrize("command", ["worker", "serve", "audit", "backup"])
def test_a_token_that_is_none_is_refused_before_anything_is_made(
    rise: Rise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", "12:")
    refused = rise(command, *(["copy"] if command == "backup" else []))
    assert refused.code == 2
    assert "RISE_TELEGRAM_TOKEN" in refused.err
    assert list(tmp_path.iterdir()) == []

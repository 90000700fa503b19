"""What runs, and what refuses to before it has made anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
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


@pytest.mark.failure("B1")
@pytest.mark.parametrize(
    "words",
    ["tasks show", "tasks --channel", "suspended resume", "replay --channel", "audit --data-dir", "backup", "no such"],
)
def test_a_word_that_is_no_text_is_refused_and_not_stumbled_over(rise: Rise, tmp_path: Path, words: str):
    refused = rise(*words.split(), "caf\udce9")
    assert refused.code == 2
    assert refused.err == "rise: 'caf\\udce9' is not UTF-8: spell it otherwise.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M1")
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_name_that_is_no_setting_is_told_at_the_start(
    rise: Rise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    (tmp_path / "bot.py").write_text("")
    monkeypatch.setenv("RISE_APP", "bot.py")
    monkeypatch.setenv("RISE_RETRY_MX", "5")
    (tmp_path / "data" / "restore-unfinished").mkdir(parents=True)  # so that it ends at once
    with structlog.testing.capture_logs() as logged:
        rise(command)
    assert [line["detail"] for line in logged if line["event"] == "settings.unknown"] == [
        "RISE_RETRY_MX is no setting, it changes nothing; is RISE_RETRY_MAX meant?"
    ]


@pytest.mark.req("SEC-2", "EMB-3")
@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(("key", "count"), [(None, 1), ("k" * 32, 0)], ids=["its own", "shared"])
def test_a_key_that_other_hosts_do_not_have_is_told_at_the_start_with_the_remedy(
    rise: Rise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, key: str | None, count: int
):
    (tmp_path / "bot.py").write_text("")
    servers = {"APP": "bot.py", "REDIS_URL": "redis://127.0.0.1:1", "MONGODB_URL": "mongodb://127.0.0.1:1/rise"}
    for name, value in servers.items():
        monkeypatch.setenv(f"RISE_{name}", value)
    if key is not None:
        monkeypatch.setenv("RISE_SECRET_KEY", key)
    (tmp_path / "data" / "restore-unfinished").mkdir(parents=True)  # so that it ends at once
    with structlog.testing.capture_logs() as logged:
        rise(command)
    told = [line for line in logged if line["event"] == "settings.key_unshared"]
    assert len(told) == count
    assert all("RISE_SECRET_KEY to the same on all hosts" in line["remedy"] for line in told)


@contextmanager
def running(directory: Path, *words: str) -> Iterator[tuple[int, list[str]]]:
    """Its process, and the first lines that it says."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RISE_")}
    command = [sys.executable, "-u", "-m", "rise", *words]
    with subprocess.Popen(
        command, cwd=directory, env=settings | {"RISE_PORT": "0"}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, [process.stdout.readline() for _ in range(2 if "serve" in words else 4)]
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.mark.req("OPS-5")
def test_serve_says_at_once_that_it_has_no_code(tmp_path: Path):
    """Who has forgotten to set it would else wait for answers."""
    with running(tmp_path, "serve") as (_, said):
        assert said[0].startswith("Rise listens on http://127.0.0.1:")
        assert said[1].startswith("RISE_APP is not set: ")


@pytest.mark.req("OPS-5", "EMB-1")
def test_the_demo_says_how_to_kill_it(tmp_path: Path):
    with running(tmp_path, "demo", "--no-browser") as (pid, said):
        assert said[3] == f"Kill it:            kill -9 {pid}, and start it again: the answer arrives\n"

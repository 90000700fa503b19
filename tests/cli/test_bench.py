"""`rise bench` runs from end to end and says what it should; its figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rise.testing.bench.peers import PEERS

pytestmark = pytest.mark.slow


def bench(directory: Path, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "rise.testing.bench", "--least", f"--directory={directory}", *words],
        stdout=subprocess.PIPE,
        timeout=300,
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
    assert "function calls" in bench(tmp_path, "--why", f"--part={part}")


def test_the_full_profile_is_measured_on_servers_of_its_own_with_whatever_peers_are_installed(tmp_path: Path) -> None:
    report = json.loads(bench(tmp_path, "--profile=full", "--json"))
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert {figure["part"] for figure in figures.values()} == {"accept", "execute", "latency", "backlog"}
    for name in (
        "Rise, two copies of three, at 4: rate",
        "Rise worker, in order, result kept: rate",
        "Rise serve, in order, reply delivered (gateway and worker): rate",
        "Rise, two copies of three: p50",
        "Redis, memory per queued message",
    ):
        assert figures[name]["spread"]["median"] > 0
    assert figures["Redis afterwards, keys and hints of open work"]["met"]


def test_a_peer_is_measured_beside_rise_or_said_to_be_missing(tmp_path: Path) -> None:
    report = json.loads(bench(tmp_path, "--profile=full", "--json", "--part=accept"))
    names, notes = [figure["name"] for figure in report["figures"]], " ".join(report["notes"])
    for peer in PEERS.values():
        assert ("Not installed, and so not measured" in notes and peer.title in notes) == bool(peer.missing())
    for name in ("naive", "taskiq", "arq", "faststream-quorum"):
        assert any("÷" in shown and PEERS[name].title in shown for shown in names) != bool(PEERS[name].missing())


def test_a_part_of_the_other_profile_is_refused() -> None:
    command = [sys.executable, "-m", "rise.testing.bench", "--part=backlog"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, text=True)
    assert ended.returncode == 2
    assert "the embedded profile has no backlog" in ended.stderr

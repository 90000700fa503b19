"""The data directory: its secrets, and who owns it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rise.errors import StoreCorrupt, StoreLocked
from rise.runtime.assembly.house import build
from rise.runtime.backup import SECRETS
from rise.runtime.directory import DataDirectory
from rise.settings import load_settings


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    return directory


# --- secrets ----------------------------------------------------------------------------------------------


@pytest.mark.req("SEC-4")
@pytest.mark.failure("M1")
@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("left", ["", "\n", "short", "x" * 42])
def test_a_secret_that_could_be_guessed_is_refused_with_its_remedy(directory: DataDirectory, name: str, left: str):
    (directory.path / name).write_text(left)
    with pytest.raises(StoreCorrupt, match=f"{name} holds {len(left.strip())} characters.*remove the file"):
        build(load_settings(data_dir=directory.path, _env_file=None))
    assert (directory.path / name).read_text() == left


@pytest.mark.req("SEC-4")
def test_a_secret_that_was_made_is_taken_as_long_as_it_is_there(directory: DataDirectory):
    made = directory.kept_secret("secret-key")
    assert DataDirectory(directory.path).kept_secret("secret-key") == made


@pytest.mark.req("SEC-4", "OPS-5")
def test_containers_that_begin_at_once_agree_on_a_secret_though_their_processes_have_one_number(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
):
    link, others = os.link, []

    def the_other_is_faster(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        others.append(DataDirectory(directory.path).kept_secret("secret-key"))
        link(source, target)

    monkeypatch.setattr(os, "link", the_other_is_faster)
    assert [directory.kept_secret("secret-key")] == others
    assert [path.name for path in directory.path.iterdir()] == ["secret-key"]


@pytest.mark.req("SEC-4")
def test_what_is_configured_needs_no_file_and_asks_for_none(directory: DataDirectory):
    for name in SECRETS:
        (directory.path / name).write_text("")
    settings = load_settings(data_dir=directory.path, admin_token="a" * 16, secret_key="k" * 32, _env_file=None)
    assert build(settings).secrets.secret_key == "k" * 32


# --- who owns it ------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-1")
@pytest.mark.failure("C8")
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "one of several"])
def test_who_looks_whether_a_serve_runs_sees_it_whether_it_is_alone_or_one_of_several(
    directory: DataDirectory, alone: bool
):
    assert not directory.is_owned()
    serve = DataDirectory(directory.path)
    serve.own(alone=alone)
    assert directory.is_owned()
    serve.disown()
    assert not directory.is_owned()


@pytest.mark.req("OPS-1")
@pytest.mark.failure("C8")
def test_who_only_looks_is_in_no_starting_serves_way(directory: DataDirectory, monkeypatch: pytest.MonkeyPatch):
    """Between any two steps of the look, a serve starts and is not refused."""
    directory.own()
    directory.disown()
    started = 0

    def with_a_start_behind_it(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*words: Any) -> Any:
            nonlocal started
            result = step(*words)
            with monkeypatch.context() as itself:
                itself.setattr(fcntl, "flock", flock)
                itself.setattr(fcntl, "fcntl", control)
                serve = DataDirectory(directory.path)
                serve.own()
                serve.disown()
            started += 1
            return result

        return stepped

    flock, control = fcntl.flock, fcntl.fcntl
    monkeypatch.setattr(fcntl, "flock", with_a_start_behind_it(flock))
    monkeypatch.setattr(fcntl, "fcntl", with_a_start_behind_it(control))
    assert not directory.is_owned()
    assert started


@pytest.mark.req("OPS-1")
@pytest.mark.failure("C8")
def test_a_second_owner_is_refused_and_a_killed_one_is_none(directory: DataDirectory):
    script = f"""
import os, pathlib, sys
from rise.runtime.directory import DataDirectory
directory = DataDirectory(pathlib.Path({str(directory.path)!r}))
directory.own()
print("owned", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"owned\n"
        assert directory.is_owned()
        for alone in (True, False):
            with pytest.raises(StoreLocked, match="another"):
                directory.own(alone=alone)
        other.kill()
        other.wait()
    assert not directory.is_owned()
    directory.own()
    directory.disown()

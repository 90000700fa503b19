"""The data directory: its secrets, and who owns it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rise.errors import StoreCorrupt
from rise.runtime.assembly import build
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


@pytest.mark.req("SEC-4")
def test_what_is_configured_needs_no_file_and_asks_for_none(directory: DataDirectory):
    for name in SECRETS:
        (directory.path / name).write_text("")
    settings = load_settings(data_dir=directory.path, admin_token="a" * 16, secret_key="k" * 32, _env_file=None)
    assert build(settings).secrets.secret_key == "k" * 32

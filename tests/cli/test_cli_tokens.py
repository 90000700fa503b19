"""`rise tokens new`: printed once, kept nowhere, let in by the line that is printed beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_directory import Rise

from rise.api.security import Credentials, Principal, Role
from rise.settings import load_settings


@pytest.mark.req("SEC-1", "OPS-1")
def test_a_new_token_is_let_in_by_the_line_that_is_printed_beside_it(rise: Rise, monkeypatch: pytest.MonkeyPatch):
    told = rise("tokens", "new", "ann", "--role", "operator")
    _, token, _, entry = told.out.splitlines()
    assert len(token) >= 43, "256 bits"
    assert token not in entry
    monkeypatch.setenv("RISE_TOKENS", entry)
    known = Credentials("admin-token-of-the-tests", load_settings(_env_file=None).tokens)
    assert known.principal(token) == Principal("ann", Role.OPERATOR)


@pytest.mark.req("SEC-1", "OPS-1")
def test_each_is_another_and_programs_read_it(rise: Rise):
    first, second = (rise("tokens", "new", "ann", "--json").json for _ in range(2))
    assert first["token"] != second["token"]
    assert (first["name"], first["role"]) == ("ann", "viewer")
    assert first["entry"].startswith("ann:viewer:sha256:")


@pytest.mark.req("SEC-1")
def test_it_is_kept_nowhere(rise: Rise, tmp_path: Path):
    rise("tokens", "new", "ann")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("SEC-1")
@pytest.mark.parametrize("words", [("a b",), ("ann", "--role", "king"), ()])
def test_what_could_not_be_read_again_is_refused(rise: Rise, words: tuple[str, ...]):
    told = rise("tokens", "new", *words)
    assert told.code == 2
    assert "sha256" not in told.out

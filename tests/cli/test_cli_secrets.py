"""`rise secrets`: kept from a file or standard input, listed by name, removed, sealed anew; never shown."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cli_directory import Directory, Rise

from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_stage_secrets, build_workflows

KEY = "key-of-the-shop-4711"

pytestmark = pytest.mark.req("SEC-2")


@pytest.fixture
def kept(rise: Rise, directory: Directory, tmp_path: Path) -> Directory:
    async def nothing(house: House) -> None:
        return None

    directory.do(nothing)
    (tmp_path / "key").write_text(KEY + "\n")
    assert rise("secrets", "set", "SHOP", "--file", str(tmp_path / "key")).out.startswith("SHOP is kept as version 1")
    return directory


def test_a_secret_is_set_listed_by_name_and_removed(rise: Rise, kept: Directory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("another-key-4712\n"))
    assert rise("secrets", "set", "SHOP", "--json").json["version"] == 2
    listed = rise("secrets", "list", "--json")
    assert [(one["name"], one["version"], one["usedBy"]) for one in listed.json["secrets"]] == [("SHOP", 2, [])]
    table = rise("secrets", "list")
    assert "SHOP" in table.out
    assert not [one for one in (listed, table) if "471" in one.out + one.err]
    assert rise("secrets", "remove", "SHOP").out == "SHOP is removed\n"
    gone = rise("secrets", "remove", "SHOP")
    assert (gone.code, "rise secrets list" in gone.err) == (1, True)
    assert "`rise secrets set NAME`" in rise("secrets", "list").out


def test_secrets_are_sealed_anew_when_the_key_changes(rise: Rise, kept: Directory, monkeypatch: pytest.MonkeyPatch):
    former = (kept.path / "secret-key").read_text().strip()
    monkeypatch.setenv("RISE_SECRET_KEY", "n" * 32)
    lost = rise("secrets", "rotate")
    assert (lost.code, "`rise secrets set SHOP`" in lost.err) == (1, True)
    monkeypatch.setenv("RISE_SECRET_KEY_FORMER", former)
    assert rise("secrets", "rotate", "--json").json == {"sealedAnew": 1, "unreadable": []}
    monkeypatch.delenv("RISE_SECRET_KEY_FORMER")

    async def value(house: House) -> str | None:
        [secret] = await build_stage_secrets(house).list()
        return house.seal.open(secret.sealed)

    assert kept.do(value) == KEY
    assert rise("secrets", "rotate", "--json").json == {"sealedAnew": 0, "unreadable": []}


def test_a_published_key_in_plain_text_is_warned_of(rise: Rise, kept: Directory):
    look = {"name": "look", "kind": "http", "url": "https://api.example", "headers": {"Authorization": "Bearer key"}}

    async def make(house: House) -> None:
        await build_workflows(house).create("shop", [look], by="ann")

    kept.do(make)
    published = rise("workflows", "publish", "wf_shop")
    assert (published.out, "{{ secrets.NAME }}" in published.err) == ("wf_shop runs as version 1\n", True)

"""`rise follow-ups`: the same as over HTTP, with or without a running `rise serve`."""

from __future__ import annotations

from typing import Any

import pytest
from cli_directory import Directory, Rise

from rise.cli.follow_ups import MissedChoice, StatusChoice
from rise.follow_ups.port import ListedStatus, Missed

pytestmark = pytest.mark.req("TMP-3", "OPS-1")


@pytest.fixture
def add(rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", "7:token-of-the-tests")
    directory.accept(1)

    def plan(*words: str, chat: str = "42", text: str = "Was it all right?") -> Any:
        return rise("follow-ups", "add", "--chat", chat, "--text", text, "--json", *words).json

    return plan


def test_one_is_added_listed_moved_shown_and_cancelled(rise: Rise, add: Any):
    one = add("--in", "3600", "--key", "k")["followUpId"]
    assert add("--in", "3600", "--key", "k")["duplicate"] is True
    other = add("--at", "2030-07-01T09:00:00", "--time-zone", "Europe/Berlin", chat="7")["followUpId"]
    listed = rise("follow-ups", "list", "--json").json["followUps"]
    assert [row["followUpId"] for row in listed] == [one, other], "as they are due"
    assert [row["followUpId"] for row in rise("follow-ups", "list", "--chat", "7", "--json").json["followUps"]] == [
        other
    ]
    assert "Was it all right?" in rise("follow-ups", "list").out
    assert rise("follow-ups", "move", one, "--in", "60").code == 0
    assert rise("follow-ups", "show", one, "--json").json["moves"] == 1
    assert rise("follow-ups", "cancel", one, "--why", "no more", "--json").json["status"] == "cancelled"
    assert "no more" in rise("follow-ups", "show", one).out
    refused = rise("follow-ups", "move", one, "--in", "60")
    assert (refused.code, refused.out) != (0, "")
    assert "cancelled" in refused.err


def test_what_cannot_be_planned_is_refused(rise: Rise, add: Any):
    for words in (("--in", "-5"), (), ("--at", "tomorrow"), ("--in", "5", "--at", "2030-01-01T00:00:00Z")):
        refused = rise("follow-ups", "add", "--chat", "42", "--text", "x", *words)
        assert refused.code != 0
        assert refused.err
    assert rise("follow-ups", "show", "t_nothing").code != 0
    assert "nothing is planned" in rise("follow-ups", "list").out


def test_what_is_offered_is_what_there_is():
    assert [*MissedChoice] == [*Missed]
    assert [*StatusChoice] == [*ListedStatus]

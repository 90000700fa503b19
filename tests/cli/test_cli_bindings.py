"""`rise bindings`: what serves what, binding, switching off, killing; `rise secrets rotate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_directory import BOT, Directory, Rise

from rise.definitions.records import CODE, WorkflowRecord
from rise.runtime.assembly.house import House

TOKEN = "8000000003:AAE-on-the-command-line-0123456789"
OTHER = "8000000003"


@pytest.fixture
def bot(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    """A directory of a bot, in which two workflows are published."""
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", f"{BOT}:token-of-the-tests")

    async def publish(house: House) -> None:
        for name in "ab":
            await house.editor.publish(
                WorkflowRecord(workflow_id=f"wf_{name}", name=name, channels=("telegram",)), by=CODE
            )

    directory.do(publish)
    yield directory


@pytest.mark.req("OPS-1", "BND-1", "BND-4")
def test_bindings_are_listed_with_what_they_meet(rise: Rise, bot: Directory):
    assert rise("bindings").out == "nothing is bound\n"
    assert rise("bindings", "bind", "wf_a").out == f"wf_a at telegram:{BOT} is bound, version 1\n"
    rise("bindings", "bind", "wf_b", "--chat", "42", "--command", "/start")
    listed = rise("bindings").out
    assert "what no route names" in listed
    assert "chat 42, command /start" in listed
    rows = rise("bindings", "--json").json["bindings"]
    assert [(one["workflowId"], one["isDefault"], one["status"]) for one in rows] == [
        ("wf_a", True, "bound"),
        ("wf_b", False, "bound"),
    ]


@pytest.mark.req("OPS-1", "BND-1")
def test_what_could_be_bound_is_listed_on_request(rise: Rise, bot: Directory):
    rise("bindings", "bind", "wf_a")
    rows = rise("bindings", "--unbound", "--json").json["bindings"]
    assert [(one["workflowId"], one["status"]) for one in rows] == [("wf_a", "bound"), ("wf_b", "unbound")]


@pytest.mark.req("BND-2")
def test_a_new_default_says_whose_place_it_takes_and_what_is_switched_off_stays_known(rise: Rise, bot: Directory):
    rise("bindings", "bind", "wf_a")
    assert "wf_a is no longer the default" in rise("bindings", "bind", "wf_b", "--why", "better").err
    off = rise("bindings", "unbind", "wf_b", "--json").json
    assert (off["status"], off["isDefault"], off["warnings"]) == ("disabled", False, [])


@pytest.mark.req("BND-7", "SEC-4")
def test_killing_needs_a_reason_and_is_undone_with_a_word_on_what_was_kept(rise: Rise, bot: Directory):
    rise("bindings", "bind", "wf_a")
    assert rise("bindings", "kill", "wf_a").code == 2
    killed = rise("bindings", "kill", "wf_a", "--why", "it raves", "--json").json
    assert (killed["status"], killed["killSwitch"]["reason"]) == ("killed", "it raves")
    back = rise("bindings", "unkill", "wf_a")
    assert "is bound" in back.out and "rise suspended resume --reason kill_switch" in back.out
    nothing = rise("bindings", "kill", "wf_b", "--why", "x")
    assert (nothing.code, nothing.err) == (1, f"rise: wf_b is not bound to telegram:{BOT}\n")


def test_what_is_refused_is_one_line_and_a_remedy(rise: Rise, bot: Directory):
    unknown = rise("bindings", "bind", "wf_x")
    assert (unknown.code, "`rise workflows` lists" in unknown.err) == (1, True)
    assert "command: /start" in rise("bindings", "bind", "wf_a", "--command", "start").err
    assert rise("bindings", "bind", "wf_a", "--channel", "fax").code == 2
    assert rise("bindings", "bind", "wf_a", "--token-file", "nowhere").code == 2


@pytest.mark.req("TMP-1")
def test_a_binding_is_left_to_temporal_where_there_is_one(rise: Rise, bot: Directory, monkeypatch: pytest.MonkeyPatch):
    refused = rise("bindings", "bind", "wf_a", "--engine", "temporal")
    assert (refused.code, "RISE_TEMPORAL_ADDRESS" in refused.err) == (1, True)
    assert "native or temporal" in rise("bindings", "bind", "wf_a", "--engine", "steam").err
    monkeypatch.setenv("RISE_TEMPORAL_ADDRESS", "127.0.0.1:7233")
    bound = rise("bindings", "bind", "wf_a", "--engine", "temporal", "--json").json
    assert bound["config"]["engine"] == "temporal"
    assert rise("bindings", "bind", "wf_a", "--engine", "native", "--json").json["config"]["engine"] == "native"


@pytest.mark.req("SEC-2", "BND-2")
def test_a_token_comes_by_file_and_is_sealed_anew_when_the_key_changes(
    rise: Rise, bot: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "token").write_text(TOKEN + "\n")
    bound = rise("bindings", "bind", "wf_a", "--token-file", str(tmp_path / "token"), "--polling", "--json").json
    assert (bound["account"], bound["config"]["botToken"]) == (OTHER, f"{OTHER}:***")
    former = (bot.path / "secret-key").read_text().strip()
    monkeypatch.setenv("RISE_SECRET_KEY", "n" * 32)
    lost = rise("secrets", "rotate")
    assert (lost.code, "bind it again" in lost.err) == (1, True)
    monkeypatch.setenv("RISE_SECRET_KEY_FORMER", former)
    assert rise("secrets", "rotate", "--json").json == {"sealedAnew": 1, "unreadable": []}
    monkeypatch.delenv("RISE_SECRET_KEY_FORMER")
    assert rise("secrets", "rotate", "--json").json == {"sealedAnew": 0, "unreadable": []}
    [kept] = rise("bindings", "--json").json["bindings"]
    assert kept["config"]["botToken"] == f"{OTHER}:***"


@pytest.mark.req("BND-9")
def test_the_doctor_says_that_a_kill_switch_is_on(rise: Rise, bot: Directory):
    rise("bindings", "bind", "wf_a")
    rise("bindings", "kill", "wf_a", "--why", "it raves")
    assert "the kill switch of wf_a is on" in rise("doctor", "--json").out

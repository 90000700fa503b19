"""Functions for `python` stages are found in the module of the bot, beside its workflows."""

from __future__ import annotations

from pathlib import Path

import pytest

import rise
from rise.errors import SettingsInvalid
from rise.workflows.definition import load_app, load_workflows

BOT = """
import rise

@rise.workflow("greeter", channels=["http"])
async def greeter(turn): ...

@rise.function("count-words")
def count(values): return len(values["text"].split())

@rise.function("shout")
async def shout(values): return values["text"].upper()

alias = count
"""


@pytest.mark.req("WFL-2")
def test_a_module_brings_workflows_and_functions(tmp_path: Path):
    (tmp_path / "bot_with_functions.py").write_text(BOT)
    app = load_app(str(tmp_path / "bot_with_functions.py"))
    assert set(app.workflows) == {"wf_greeter"}
    assert set(app.functions) == {"count-words", "shout"}
    assert app.functions["count-words"]({"text": "one two"}) == 2
    assert load_app(None) == load_app(None)
    assert load_workflows(None) == {}


@pytest.mark.req("WFL-2")
def test_a_module_with_functions_alone_is_enough(tmp_path: Path):
    (tmp_path / "only_functions.py").write_text("import rise\n@rise.function('one')\ndef one(values): return 1\n")
    assert set(load_app(str(tmp_path / "only_functions.py")).functions) == {"one"}
    (tmp_path / "nothing_marked.py").write_text("import rise\n")
    with pytest.raises(SettingsInvalid, match="holds no workflow"):
        load_app(str(tmp_path / "nothing_marked.py"))


@pytest.mark.req("WFL-2", "OPS-4")
def test_a_channel_that_there_is_not_is_refused_with_those_there_are(tmp_path: Path):
    (tmp_path / "slip.py").write_text(
        "import rise\n@rise.workflow('one', channels=['htpp'])\nasync def one(turn): ...\n"
    )
    with pytest.raises(SettingsInvalid, match=r"one asks for the channel 'htpp'.*channels are http, telegram, webchat"):
        load_app(str(tmp_path / "slip.py"))


def test_two_functions_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "twice.py").write_text(
        "import rise\n@rise.function('one')\ndef a(values): ...\n@rise.function('one')\ndef b(values): ...\n"
    )
    with pytest.raises(SettingsInvalid, match="Two functions are marked"):
        load_app(str(tmp_path / "twice.py"))


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "ä"])
def test_a_name_that_no_stage_could_say_is_refused(name: str):
    with pytest.raises(ValueError, match="is no function name"):
        rise.function(name)

"""What is other between two versions: each place once, in one order, and no noise about what merely moved."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.runtime.differences import differences


def said(old: Any, new: Any) -> list[Any]:
    return [msgspec.to_builtins(one) for one in differences(old, new)]


def change(path: str, change: str, old: Any = None, new: Any = None) -> dict[str, Any]:
    return {"path": path, "change": change, "old": old, "new": new}


SAY = {"name": "say", "kind": "reply", "template": "hi"}
ASK = {"name": "ask", "kind": "prompt", "template": "?", "buttons": [[{"text": "a"}]]}


@pytest.mark.req("WFL-1")
def test_a_stage_that_is_put_in_front_is_all_that_has_changed():
    assert said({"stages": [SAY]}, {"stages": [ASK, SAY]}) == [change("stages.ask", "added", new=ASK)]


@pytest.mark.req("WFL-1")
def test_places_are_named_down_to_the_value_in_one_order():
    new = {"stages": [SAY | {"template": "ho", "parseMode": "HTML"}, ASK | {"buttons": [[{"text": "b"}, {}]]}]}
    assert said({"name": "a", "stages": [SAY, ASK]}, new | {"name": "b"}) == [
        change("name", "changed", "a", "b"),
        change("stages.ask.buttons[0][0].text", "changed", "a", "b"),
        change("stages.ask.buttons[0][1]", "added", new={}),
        change("stages.say.parseMode", "added", new="HTML"),
        change("stages.say.template", "changed", "hi", "ho"),
    ]


@pytest.mark.req("WFL-1")
def test_stages_that_changed_places_are_said_once():
    assert said([SAY, ASK], [ASK, SAY]) == [change("", "reordered", ["say", "ask"], ["ask", "say"])]


def test_true_is_not_one():
    assert said({"a": True}, {"a": 1}) == [change("a", "changed", True, 1)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "b"]), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_nothing_is_said_of_what_is_the_same_and_something_of_what_is_not(old: Any, new: Any):
    assert differences(old, old) == []
    assert bool(differences(old, new)) is (
        msgspec.json.encode(old, order="sorted") != msgspec.json.encode(new, order="sorted")
    )

"""Stages as people type them: what is laid out is read back, and what is wrong is found where it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.errors import PayloadInvalid
from rise.runtime.written import line_of, stages_laid_out, stages_written, unseen_in, unseen_spelled

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.req("OPS-3")
@given(st.lists(JSON, max_size=5))
def test_what_is_laid_out_is_read_back_as_it_was(stages: list[Any]) -> None:
    text = stages_laid_out(stages)
    assert stages_written(text) == stages
    assert unseen_in(text) == []


@pytest.mark.req("OPS-3")
@given(st.lists(JSON, min_size=1, max_size=5))
def test_each_stage_is_found_in_the_line_where_it_begins(stages: list[Any]) -> None:
    text = stages_laid_out(stages)
    lines = text.split("\n")
    for at, stage in enumerate(stages):
        number = line_of(text, f"stages[{at}].name")
        assert number is not None
        rest = "\n".join(lines[number - 1 :]).lstrip()
        assert json.JSONDecoder().raw_decode(rest)[0] == stage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no JSON: Expecting value in line 1, column 1"),
        ('[\n{"a": 1},\n]', "in line 3, column 1"),
        ('"stages"', "this is a string; stages are a list"),
        ('[{"a": 1, "a": 2}]', "a is there twice in one object"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[" * 5_000, "nested deeper"),
    ],
)
def test_what_is_no_list_of_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(PayloadInvalid) as refusal:
        stages_written(text)
    assert words in refusal.value.public_message
    assert refusal.value.field == "stages"


@pytest.mark.parametrize(
    ("text", "field"),
    [("[1]", None), ("[1]", "name"), ("[1]", "stages[1]"), ("none", "stages[0]"), ("[x", "stages[1]")],
)
def test_where_nothing_can_be_said_nothing_is(text: str, field: str | None) -> None:
    assert line_of(text, field) is None


def test_what_nobody_sees_is_named_with_its_line() -> None:
    text = "a\u202eb\n\u200bc\u202e"
    assert unseen_in(text) == ["U+202E in line 1", "U+200B in line 2", "U+202E in line 2"]
    assert unseen_spelled("a\u202eb") == "a\\u202eb"
    assert unseen_in("👩\u200d💻 می\u200cخواهم") == [], "what joins is part of how it is written"

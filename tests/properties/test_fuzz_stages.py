"""Whatever somebody saves as a workflow or writes into a template: it is refused by its field, or it ends soon."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise.envelope import encode_json
from rise.errors import PayloadInvalid, StageRefused
from rise.workflows.stages import read_stages
from rise.workflows.templates import _FILTERS, _TESTS, Template

SECONDS_MAX = 5.0
VALUES: dict[str, Any] = {
    "text": "Hi <b>",
    "user": {"name": "Ann", "n": 3, "items": [1, 2.5, None, True, {"a": "b"}]},
    "history": [{"role": "user", "text": "one"}] * 5,
    "stages": {"a": "x" * 300_000, "b": list(range(50_000))},
    "chat_id": None,
}

WORDS = [
    "{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", " ", "\n", *VALUES, ".", "a", "b", "name", "n", "items", "loop",
    "index", "[", "]", "(", ")", "{", "}", "|", ",", ":", "=", "==", "!=", "<", ">=", "~", "+", "-", "*", "/", "//",
    "%", "**", "'x'", '"', "1", "2.5", "0", "999999999", "for", "in", "endfor", "if", "elif", "else", "endif", "set",
    "endset", "not", "and", "or", "is", "raw", "endraw", "macro", "include", "self", "true", "none", "__class__",
    "\ud800", "\0", "²", *_FILTERS, *_TESTS,
]  # fmt: skip
LINES = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
TEMPLATES = st.one_of(LINES, LINES.map(lambda line: f"{{{{ {line} }}}}"), st.text(max_size=40), st.sampled_from(
    ["hi {{ text }}", "{{ stages.one }}", "{{ nope }}", "https://example.com/{{ text }}", "http://{{ text }}", ""]
))  # fmt: skip

NAMES = ["name", "kind", "template", "url", "method", "headers", "json", "body", "expect", "function", "rules", "when",
         "go", "otherwise", "equals", "contains", "startsWith", "matches", "value", "ignoreCase", "inSeconds", "at",
         "text", "workflow", "promptId", "values", "system", "model", "temperature", "maxTokens", "withHistory",
         "timeoutSeconds", "retries", "max", "waitSeconds", "parseMode", "buttons", "data"]  # fmt: skip
KINDS = ["prompt", "http", "python", "reply", "router", "follow_up"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEMPLATES,
    st.sampled_from(["one", "two", "three", "GET", "2026-01-31T09:00:00+01:00", *KINDS]),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)),
    max_leaves=10,
)
NEEDED: dict[str, dict[str, Any]] = {
    "prompt": {"template": "x"},
    "http": {"url": "https://example.com"},
    "python": {"function": "f"},
    "reply": {"template": "x"},
    "router": {"rules": [{"when": {"equals": None}, "go": None}]},
    "follow_up": {"inSeconds": 1, "text": "x"},
}


@st.composite
def nearly_stages(draw: st.DrawFn) -> list[Any]:
    """Stages that are right but for a field or two."""
    stages = []
    for name in ("one", "two", "three")[: draw(st.integers(1, 3))]:
        kind = draw(st.sampled_from(KINDS))
        changed = draw(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=2))
        stages.append({"name": name, "kind": kind, **NEEDED[kind], **changed})
    return stages


@pytest.mark.req("WFL-1", "WFL-2")
@tried(1500)
@given(fields=st.one_of(ANYTHING, st.lists(ANYTHING, max_size=3), nearly_stages()))
def test_stages_are_refused_by_their_field_or_written_as_they_were_read(fields: Any):
    try:
        stages = read_stages(fields)
    except PayloadInvalid as refused:
        assert refused.field is not None
        assert refused.field.startswith("stages")
        assert str(refused).startswith("stages")
        return
    assert read_stages(json.loads(encode_json(stages))) == stages


@pytest.mark.req("SEC-3")
@tried(1500)
@given(source=TEMPLATES)
def test_a_template_is_refused_or_ends_soon_with_a_text_or_an_error_of_ours(source: str):
    began = perf_counter()
    try:
        Template(source).text(VALUES).encode("utf-8", "replace")
    except (PayloadInvalid, StageRefused) as refused:
        assert "object at 0x" not in str(refused)
    assert perf_counter() - began < SECONDS_MAX

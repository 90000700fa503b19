"""What a workflow's stages may say, and that everything else is refused by its field before anybody waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rise.envelope import encode_json
from rise.errors import PayloadInvalid
from rise.workflows.stages import (
    RUN_SECONDS_MAX,
    HttpStage,
    PromptStage,
    ReplyStage,
    Retries,
    RouterStage,
    keys_in_plain_text,
    read_stages,
    secrets_asked_for,
)

SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}
ALL: list[dict[str, Any]] = [
    {
        "name": "route",
        "kind": "router",
        "rules": [
            {"when": {"equals": "/help", "ignoreCase": True}, "go": "help"},
            {"when": {"value": "{{ user.name }}", "startsWith": "A"}, "go": "ask"},
            {"when": {"value": "{{ metadata }}", "equals": None}, "go": "count"},
            {"when": "{{ text | length > 100 }}", "go": None},
        ],
        "otherwise": "look",
    },
    {
        "name": "look",
        "kind": "http",
        "url": "https://api.example/people/{{ user.user_id }}?q={{ text }}",
        "method": "POST",
        "headers": {"Authorization": "Bearer key"},
        "json": {"ask": ["{{ text }}", 1, None]},
        "expect": [200, 404],
        "timeoutSeconds": 3.0,
        "retries": {"max": 2, "waitSeconds": 0.5},
    },
    {
        "name": "ask",
        "kind": "prompt",
        "template": "{{ stages.look | default('nothing') }} {{ text }}",
        "system": "Be kind to {{ user.name }}.",
        "model": "small",
        "temperature": 0.5,
        "maxTokens": 100,
        "withHistory": True,
    },
    {"name": "again", "kind": "prompt", "promptId": "pr_1", "values": {"topic": "{{ stages.ask }}"}},
    {"name": "count", "kind": "python", "function": "count-words"},
    {
        "name": "help",
        "kind": "reply",
        "template": "I help.",
        "parseMode": "HTML",
        "buttons": [[{"text": "Yes", "data": "yes"}, {"text": "Site", "url": "https://example.com/{{ chat_id }}"}]],
    },
    {"name": "later", "kind": "follow_up", "inSeconds": 60.0, "text": "Still there, {{ user.name }}?"},
    {"name": "tomorrow", "kind": "follow_up", "at": "2026-01-31T09:00:00+01:00", "workflow": "greeter"},
]


@pytest.mark.req("WFL-1", "WFL-2")
def test_a_workflow_of_one_reply_is_read():
    assert read_stages([SAY]) == (ReplyStage(name="say", template="hi {{ text }}"),)


@pytest.mark.req("WFL-2")
def test_every_kind_of_stage_is_read_and_written_again_as_it_was():
    stages = read_stages(ALL)
    assert [stage.kind for stage in stages] == [one["kind"] for one in ALL]
    written = json.loads(encode_json(stages))
    assert written == ALL
    assert read_stages(written) == stages


@pytest.mark.req("WFL-2")
def test_each_stage_has_its_own_patience():
    [look] = read_stages([{"name": "look", "kind": "http", "url": "https://example.com"}])
    assert (look.timeout_seconds, look.retries) == (10.0, Retries(max=0))
    [ask] = read_stages(
        [{"name": "ask", "kind": "prompt", "template": "x", "timeoutSeconds": 5, "retries": {"max": 1}}]
    )
    assert (ask.timeout_seconds, ask.retries) == (5.0, Retries(max=1, wait_seconds=1.0))
    [look] = read_stages([{"name": "x", "kind": "http", "url": "http://127.0.0.1:8000"}])
    assert isinstance(look, HttpStage)


def stage(kind: str, **fields: Any) -> dict[str, Any]:
    whole: dict[str, dict[str, Any]] = {
        "reply": {"template": "x"},
        "prompt": {"template": "x"},
        "http": {"url": "https://example.com"},
        "python": {"function": "count"},
        "router": {"rules": [{"when": {"equals": "x"}, "go": None}]},
        "follow_up": {"inSeconds": 1, "text": "x"},
    }
    named = {"name": "one", "kind": kind, **whole.get(kind, {}), **fields}
    return {name: value for name, value in named.items() if value is not ...}


WRONG: list[tuple[Any, str, str]] = [
    (None, "stages", "is a list of 1 to 50 stages"),
    ([], "stages", "is a list"),
    ([SAY] * 51, "stages", "is a list of 1 to 50"),
    ([1], "stages[0]", "is an integer, not an object"),
    ([stage("reply", name=...)], "stages[0].name", "is missing"),
    ([stage("reply", name="a-b")], "stages[0].name", "letters, digits and _"),
    ([stage("reply", name="1a")], "stages[0].name", "letters, digits and _"),
    ([SAY, SAY], "stages[1].name", "is say, as another stage's"),
    ([SAY, {"name": "x"}], "stages[1].kind", "is one of prompt, http, python, reply, router, follow_up"),
    ([stage("shell")], "stages[0].kind", "is one of"),
    ([stage("reply", template=...)], "stages[0].template", "is missing"),
    ([stage("reply", template=7)], "stages[0].template", "is an integer; expected a string"),
    ([stage("reply", template="{{ texxt }}")], "stages[0].template", "names texxt; there are text, user"),
    ([stage("reply", template="{{ text")], "stages[0].template", "it is no template"),
    ([stage("reply", template="{{ stages.two }}")], "stages[0].template", "names the stage two"),
    ([SAY, stage("reply", template="{{ stages.one }}")], "stages[1].template", "before it are say"),
    ([stage("reply", url="x")], "stages[0].url", "is not a field of a reply stage; it has name, kind, template"),
    ([stage("reply", timeoutSeconds=0)], "stages[0].timeoutSeconds", "is a number from 0.001 to 600"),
    ([stage("reply", timeoutSeconds=True)], "stages[0].timeoutSeconds", "expected an integer or a number"),
    ([stage("http", retries=3)], "stages[0].retries", "is an integer, not an object"),
    ([stage("http", retries={"max": 11})], "stages[0].retries.max", "is a whole number from 0 to 10"),
    ([stage("http", retries={"wait": 1})], "stages[0].retries.wait", "is not a field of retries"),
    ([stage("http", timeoutSeconds=600, retries={"max": 10})], "stages", f"at most {RUN_SECONDS_MAX:g}"),
    ([stage("prompt", template=...)], "stages[0].template", "or promptId is needed"),
    ([stage("prompt", promptId="pr")], "stages[0].template", "or promptId is needed"),
    ([stage("prompt", values={"a": "b"})], "stages[0].values", "is for a promptId"),
    ([stage("prompt", template=..., promptId="p", values={"a": 1})], "stages[0].values.a", "expected a string"),
    ([stage("prompt", template=..., promptId="p", values={"a": "{{ b }}"})], "stages[0].values.a", "names b"),
    ([stage("prompt", temperature=3)], "stages[0].temperature", "from 0 to 2"),
    ([stage("prompt", maxTokens=1.5)], "stages[0].maxTokens", "expected an integer"),
    ([stage("http", url=...)], "stages[0].url", "is missing"),
    ([stage("http", url="ftp://example.com")], "stages[0].url", "begins with http:// or https://"),
    ([stage("http", url="https://{{ text }}/")], "stages[0].url", "a host that is written out"),
    ([stage("http", url="https://example.com{{ text }}")], "stages[0].url", "a host that is written out"),
    ([stage("http", url="https://a@example.com/")], "stages[0].url", "a host that is written out"),
    ([stage("http", url="https://a\\b/")], "stages[0].url", "a host that is written out"),
    ([stage("http", method="CONNECT")], "stages[0].method", "is one of GET"),
    ([stage("http", headers={"Host": "inside"})], "stages[0].headers.Host", "not for a stage to set"),
    ([stage("http", headers={"a b": "x"})], "stages[0].headers.a b", "is no header"),
    ([stage("http", headers={"X": "{{ a }}"})], "stages[0].headers.X", "names a"),
    ([stage("http", json={"a": ["{{ b }}"]})], "stages[0].json.a[0]", "names b"),
    ([stage("http", json={}, body="x")], "stages[0].body", "two bodies"),
    ([stage("http", expect=[100])], "stages[0].expect", "each from 200 to 599"),
    ([stage("python", function=...)], "stages[0].function", "is missing"),
    ([stage("reply", buttons=[{}])], "stages[0].buttons[0]", "is a row"),
    ([stage("reply", buttons=[[{"text": "a"}]])], "stages[0].buttons[0][0].data", "or url is needed"),
    ([stage("reply", buttons=[[{"text": "{{ a }}", "data": "b"}]])], "stages[0].buttons[0][0].text", "names a"),
    ([stage("router", rules=[])], "stages[0].rules", "at least one rule"),
    ([stage("router", rules=[{"go": None}])], "stages[0].rules[0].when", "is missing"),
    ([stage("router", rules=[{"when": "x"}])], "stages[0].rules[0].go", "is missing"),
    ([stage("router", rules=[{"when": {}, "go": None}])], "stages[0].rules[0].when", "has one of equals, contains"),
    (
        [stage("router", rules=[{"when": {"equals": 1, "contains": "a"}, "go": None}])],
        "stages[0].rules[0].when",
        "one of",
    ),
    ([stage("router", rules=[{"when": {"regex": ".*"}, "go": None}])], "stages[0].rules[0].when", "one of"),
    ([stage("router", rules=[{"when": {"equals": []}, "go": None}])], "stages[0].rules[0].when.equals", "is a text"),
    (
        [stage("router", rules=[{"when": {"contains": None}, "go": None}])],
        "stages[0].rules[0].when.contains",
        "missing",
    ),
    (
        [stage("router", rules=[{"when": {"equals": 1, "a": 1}, "go": None}])],
        "stages[0].rules[0].when.a",
        "not a field",
    ),
    ([stage("router", otherwise="one")], "stages[0].otherwise", "no stage after this one; it is the last"),
    ([SAY, stage("router", otherwise="say")], "stages[1].otherwise", "Back is no way: it might never end"),
    ([stage("router", otherwise="two"), SAY], "stages[0].otherwise", "after it are say"),
    ([stage("follow_up", inSeconds=...)], "stages[0].inSeconds", "or at is needed"),
    ([stage("follow_up", at="2026-01-31T09:00:00Z")], "stages[0].inSeconds", "one of the two"),
    ([stage("follow_up", inSeconds=-1)], "stages[0].inSeconds", "is a number from 0"),
    ([stage("follow_up", inSeconds=5 * 366 * 86_400 + 1)], "stages[0].inSeconds", "is a number from 0"),
    ([stage("follow_up", inSeconds=..., at="2026-01-31T09:00:00")], "stages[0].at", "a moment with its time zone"),
    ([stage("follow_up", inSeconds=..., at="tomorrow")], "stages[0].at", "a moment with its time zone"),
    ([stage("follow_up", text=...)], "stages[0].text", "is needed"),
    ([SAY | {"template": "{{ secrets.KEY }}"}], "stages[0].template", "names secrets; there are text"),
    ([stage("prompt", template="{{ secrets.KEY }}")], "stages[0].template", "names secrets"),
    ([stage("http", url="{{ secrets.KEY }}")], "stages[0].url", "a secret as a whole"),
    ([stage("http", headers={"X": "{{ secrets }}"})], "stages[0].headers.X", "stands by itself"),
    ([stage("http", headers={"X": "{{ secrets.KEY | upper }}"})], "stages[0].headers.X", "stands by itself"),
    ([stage("http", body="{{ metadata[secrets.KEY] }}")], "stages[0].body", "stands by itself"),
    ([stage("http", body="{% set secrets = text %}")], "stages[0].body", "stands by itself"),
    ([stage("follow_up", workflow="a b")], "stages[0].workflow", "is the name of a workflow"),
]


@pytest.mark.req("WFL-1", "WFL-2")
@pytest.mark.parametrize(("fields", "field", "says"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_run_is_refused_by_its_field(fields: Any, field: str, says: str):
    with pytest.raises(PayloadInvalid) as refused:
        read_stages(fields)
    assert refused.value.field == field
    assert says in str(refused.value)
    assert str(refused.value).startswith("stages")


@pytest.mark.req("WFL-2")
def test_an_address_that_is_one_placeholder_is_all_of_it():
    [look] = read_stages([{"name": "look", "kind": "http", "url": "{{ metadata.link }}"}])
    assert isinstance(look, HttpStage)


@pytest.mark.req("WFL-2")
def test_a_router_may_only_go_forward_so_that_every_run_ends():
    [route, *_] = read_stages(ALL)
    assert isinstance(route, RouterStage)
    names = [one["name"] for one in ALL]
    for go in (*(rule.go for rule in route.rules), route.otherwise):
        assert go is None or names.index(go) > 0


def test_deep_json_is_refused():
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    with pytest.raises(PayloadInvalid, match="nested deeper"):
        read_stages([stage("http", json=deep)])
    assert isinstance(read_stages([stage("prompt")])[0], PromptStage)


@pytest.mark.req("SEC-3")
def test_templates_that_would_keep_a_process_from_all_else_are_refused():
    """A body of a megabyte holds as many as take ten seconds to read, in the process that answers webhooks."""
    text = "{{ text | upper }}{% if text %}{{ user }}{% endif %}"
    rows = [[{"text": f"{text}{row}.{at}", "data": "x"} for at in range(50)] for row in range(50)]
    with pytest.raises(PayloadInvalid) as refused:
        read_stages([SAY | {"buttons": rows}])
    assert refused.value.field == "stages"
    read_stages([SAY | {"buttons": rows[:2]}])


@pytest.mark.req("SEC-2")
def test_the_secrets_that_requests_ask_for_are_known_with_their_fields():
    look = stage("http", url="https://api.example/{{ secrets.PATH }}/x", headers={"X-Key": "Key {{ secrets.KEY }}"})
    more = stage("http", name="more", json={"ask": ["{{ secrets.KEY }}", {"as": "{{ secrets.WHO }}"}]})
    assert secrets_asked_for([SAY, look, more]) == [
        ("stages[1].url", "PATH"), ("stages[1].headers.X-Key", "KEY"),
        ("stages[2].json.ask[0]", "KEY"), ("stages[2].json.ask[1].as", "WHO"),
    ]  # fmt: skip


@pytest.mark.req("SEC-2")
def test_a_key_in_plain_text_is_told_from_one_that_is_looked_up():
    plain = {"authorization": "Bearer key", "X-Api-Key": "key", "X-Page": "1"}
    looked_up = {"Authorization": "Bearer {{ secrets.KEY }}", "X-Api-Key": "{{ metadata.key }}"}
    stages = [SAY, stage("http", headers=plain), stage("http", name="more", headers=looked_up)]
    assert keys_in_plain_text(stages) == ["stages[1].headers.authorization", "stages[1].headers.X-Api-Key"]

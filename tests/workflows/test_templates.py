"""Templates can say what there is, in any order and form; they can reach nothing else, and never take long."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest

from rise.errors import PayloadInvalid, StageRefused
from rise.workflows.templates import (
    OUTPUT_CHARS_MAX,
    TEMPLATE_CHARS_MAX,
    Template,
    check_template,
    placeholders,
    template,
)

VALUES: dict[str, Any] = {
    "text": "Hi <b>",
    "user": {"name": "Ann", "age": 42, "items": [1, 2], "nothing": None},
    "stages": {"ask": {"answers": [{"text": "yes"}]}},
    "history": [{"role": "user", "text": "one"}, {"role": "assistant", "text": "two"}],
    "many": list(range(100_000)),
    "long": "x" * 1_000_000,
}
SECONDS_MAX = 3.0
"""Measured: a fifth of a second at most. Generous, because other work may run beside the tests."""

SAID = {
    "{{ text }}!": "Hi <b>!",
    "{{ user.name }}, {{ user['age'] + 1 }}": "Ann, 43",
    "{{ user.items }} {{ stages.ask }}": '[1,2] {"answers":[{"text":"yes"}]}',
    "{{ user.nothing }}|{{ user.age == 42 }}": "|true",
    "{{ user.nope | default('you') }} {{ user.nothing | d('none') }}": "you none",
    "{% for one in history %}\n{{ loop.index }}. {{ one.text }}\n{% endfor %}": "1. one\n2. two\n",
    "{% if user.age > 40 and 'i' in text %}old{% else %}young{% endif %}": "old",
    "{% set who = user.name ~ '!' ~ (1 ~ 2) %}{{ who }}": "Ann!12",
    "{{ text | escape }} {{ text | urlencode }} {{ text | upper | length }}": "Hi &lt;b&gt; Hi%20%3Cb%3E 6",
    "{{ history | join(', ', attribute='text') }} {{ user.items | first }}": "one, two 1",
    "{% for name, value in user | items %}{{ name[:1] }}{% endfor %}": "nain",
    "{{ '41' | int + 1 }} {{ 2.345 | round(1) }} {{ 'Hello' | truncate(3) }}": "42 2.3 He…",
    "{{ [3, 1] | sort }} {{ 'a' in user }} {{ user is mapping }} {{ -user.age }}": "[1,3] false true -42",
    "{{ ' xaxbx ' | trim | trim('x') }}{{ 5 | trim(none) }}": "axb5",
    "{{ text | replace('Hi', 'Ho') }} {{ 'no' if user.nothing is none else 'yes' }}": "Ho <b> no",
}


@pytest.mark.req("WFL-1")
@pytest.mark.parametrize(("source", "said"), SAID.items())
def test_a_template_says_what_there_is(source: str, said: str):
    assert Template(source).text(VALUES) == said


OUT_OF_REACH = [
    "{{ text.upper() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ range(10) }}",
    "{{ lipsum(n=1000000) }}",
    "{{ cycler('a') }}",
    "{{ namespace(a=1) }}",
    "{{ text | attr('__class__') }}",
    "{{ text | map('upper') | list }}",
    "{{ text | center(1000000000) }}",
    "{{ text | indent(1000000000) }}",
    "{{ text | format('%s') }}",
    "{{ 2 ** 1000000000 }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import environ %}",
    "{% extends 'x' %}",
    "{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}",
    "{% call text() %}{% endcall %}",
    "{% block a %}{% endblock %}",
    "{% filter upper %}x{% endfilter %}",
    "{% autoescape true %}x{% endautoescape %}",
    "{% for a in many recursive %}{{ loop(many) }}{% endfor %}",
    "{% for a in many if a %}{% endfor %}",
    "{{ text | joined }}",
    "{{ text | default(*many) }}",
]


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("source", OUT_OF_REACH)
def test_what_reaches_out_of_a_template_is_refused_when_it_is_read(source: str):
    with pytest.raises(PayloadInvalid, match="line 1: "):
        Template(source)


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize(
    "source",
    ["{{ text.upper }}", "{{ text.__class__ }}", "{{ text['__class__'] }}", "{{ user.keys }}", "{{ user.__init__ }}",
     "{{ many.append }}", "{{ self }}", "{{ self._TemplateReference__context }}",
     "{% for a in many %}{{ loop }}{% endfor %}", "{% for a in many %}{{ loop._iterator }}{% endfor %}"],
)  # fmt: skip
def test_what_python_knows_of_a_value_is_not_there(source: str):
    with pytest.raises(StageRefused, match="cannot be rendered"):
        Template(source).text(VALUES)


TOO_MUCH = [
    "{{ 'a' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ '%999999999s' % text }}",
    "{% set a = long %}" + "{% set a = a ~ a %}" * 30,
    "{% set a = text %}" + "{% set a = a + a %}" * 40,
    "{% set a = many %}" + "{% set a = a + a %}" * 40,
    "{% set a = [text] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "{% set a = 3 %}" + "{% set a = a * a %}" * 40,
    "{% set a = 3.5 %}" + "{% set a = a * a %}" * 40,
    "{% for a in many %}{% for b in many %}{% for c in many %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in many %}{{ long }}{% endfor %}",
    "{% for a in many %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
    "{% for a in many %}{{ a }}{{ a }}{{ a }}{{ a }}{% endfor %}",
    "{% for a in many %}{% if 'y' in long %}{% endif %}{% endfor %}",
    "{% for a in many %}{% if many == many %}{% endif %}{% endfor %}",
    "{% for a in many %}{% set b = long[1:] %}{% endfor %}",
    "{% for a in many %}{% set b = long | upper %}{% endfor %}",
    "{% for a in many %}{% set b = many | sort %}{% endfor %}",
    "{% for a in many %}{% set b = many | tojson %}{% endfor %}",
    "{% for a in many %}{% set b = long ~ a %}{% endfor %}",
    "{% for a in many %}{{ nope is defined }}{{ nope is defined }}{{ nope is defined }}{% endfor %}",
    "{{ long | replace('x', long) }}",
    "{% set y = 'y' %}" + "{% set y = y ~ y %}" * 16 + "{{ long | trim(y ~ 'x') }}",
    "{% for a in many %}{% set b = 'abc' | truncate(2, end=long) %}{% endfor %}",
    "{% for a in many %}{{ many[many] is defined }}{% endfor %}",
    "{% for a in many %}{{ user[long] is defined }}{% endfor %}",
    "{{ [long, long, long, long, long, long, long, long] | join(long) }}",
]


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("source", TOO_MUCH, ids=range(len(TOO_MUCH)))
def test_a_template_that_would_take_all_time_or_memory_is_stopped_soon(source: str):
    read, began = Template(source), perf_counter()
    with pytest.raises(StageRefused, match=r"more than|for numbers|grows beyond"):
        read.text(VALUES)
    assert perf_counter() - began < SECONDS_MAX


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize(
    "source",
    ["{{ text", "{% if %}",
     "{% endfor %}", "{{ " + "(" * 5000, "{{ a" + ".a" * 9000 + " }}", "{{ " + "9" * 9000 + " }}",
     "{{ 99999999999999999999 }}", "{{ 1" + "+1" * 9000 + " }}", "{{ " + "[" * 9000 + "]" * 9000 + " }}",
     "{% for a in many %}" * 30 + "{% endfor %}" * 30, "{% if a %}" * 900 + "{% endif %}" * 900, "{{ 1 | nope }}",
     "{{ 1 is nope }}", "x" * (TEMPLATE_CHARS_MAX + 1),
     "{{ a|e|e|e|e }}" * 2000, "{{ a" + " ~ a" * 5000 + " }}", "{{ {" + "a:b," * 6000 + "} }}",
     "{{ 1e999 }}", "{{ -1e999 }}"],
    ids=range(19),
)  # fmt: skip
def test_what_is_no_template_is_said_when_it_is_read(source: str):
    began = perf_counter()
    with pytest.raises(PayloadInvalid):
        Template(source)
    assert perf_counter() - began < SECONDS_MAX


@pytest.mark.req("WFL-1")
@pytest.mark.parametrize(
    ("source", "says"),
    [("{{ nope }}", "'nope' is undefined"), ("{{ user.nope }}", "nothing there is called nope"),
     ("{{ many[200000] }}", "nothing there has the place 200000"), ("{{ user.nope.more }}", "called nope"),
     ("{{ nope ~ 'x' }}", "'nope' is undefined"), ("{{ 1 / 0 }}", "division by zero"),
     ("{{ 'a' < 1 }}", "not supported"),
     ("{{ nope | upper }}", "'nope' is undefined"), ("{% for a in nope %}{% endfor %}", "'nope' is undefined")],
)  # fmt: skip
def test_a_name_without_a_value_is_an_error_and_not_nothing(source: str, says: str):
    with pytest.raises(StageRefused) as refused:
        Template(source).text(VALUES)
    assert says in str(refused.value)


@pytest.mark.req("SEC-3")
def test_an_output_is_bounded():
    assert len(Template("{{ long[:200000] }}").text(VALUES)) == 200_000
    with pytest.raises(StageRefused, match=f"more than {OUTPUT_CHARS_MAX} characters"):
        Template("{{ long }}").text(VALUES)


@pytest.mark.req("WFL-1")
def test_the_names_that_a_template_needs_are_known_before_it_is_used():
    assert placeholders("{{ a }}{% for b in c.d %}{{ b }}{% endfor %}{% set e = f %}{{ e }}{{ 'x' | default(g) }}") == {
        "a", "c", "f", "g",
    }  # fmt: skip
    assert template("{{ stages.a ~ stages['b'].c }}").stages == {"a", "b"}
    with pytest.raises(PayloadInvalid) as refused:
        check_template("{{ text }} {{ texxt }}", "stages[0].template", known=("text", "user"))
    assert refused.value.field == "stages[0].template"
    assert str(refused.value) == "stages[0].template names texxt; there are text, user"


def test_a_template_that_is_one_placeholder_stands_for_the_value_itself():
    assert template("{{ user.items }}").value(VALUES) == [1, 2]
    assert template("{{ user.nothing }}").value(VALUES) is None
    assert template(" {{ user.age }}").value(VALUES) == " 42"
    assert template("{% if true %}{{ user.age }}{% endif %}").value(VALUES) == "42"


def test_one_rendering_leaves_nothing_for_the_next():
    read = template("{% for a in many[:9000] %}{% endfor %}{{ text }}")
    assert {read.text(VALUES) for _ in range(20)} == {"Hi <b>"}

"""The runbook leaves out nothing that somebody may be woken for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import yaml
from doc_reader import ROOT

from rise.capabilities import CONSEQUENCES, REMEDIES
from rise.copies.rabbitmq import DEAD, DEAD_LETTERS, DURABLE, FRESH_MAX, topology
from rise.envelope import Reason
from rise.runtime.pipeline import _JUDGED_HERE

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
[RULES] = [path for folder in ("deploy", "docs") for path in (ROOT / folder).rglob("alerts.yml")]


def follows() -> Iterator[ast.Call]:
    """Every call of `Alerts.follow`."""
    for path in (ROOT / "src/rise").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "follow":
                yield node


def raised_in_the_code() -> Iterator[str]:
    """Whatever is the name in such a call."""
    for call in follows():
        yield from _names(call.args[0])


def _names(name: ast.expr) -> Iterator[str]:
    if isinstance(name, ast.Constant):
        yield str(name.value)
    else:
        assert ast.unparse(name) == "f'capability.{name}'", f"which alerts are {ast.unparse(name)}?"
        yield from (f"capability.{capability}" for capability in CONSEQUENCES if capability not in _JUDGED_HERE)


@pytest.mark.req("OPS-5", "SUP-3")
def test_every_alert_of_the_code_is_in_the_runbook_and_no_other() -> None:
    chapter = RUNBOOK.split("\n## Alerts\n")[1].split("\n## ")[0]
    assert {line.split("`")[1] for line in chapter.splitlines() if line.startswith("| `")} == {*raised_in_the_code()}


@pytest.mark.req("OPS-5", "SUP-3")
@pytest.mark.parametrize("call", [*follows()], ids=lambda call: ast.unparse(call.args[0]))
def test_every_alert_says_what_it_means_and_what_helps(call: ast.Call) -> None:
    said = {keyword.arg or ast.unparse(keyword.value).split("(")[0] for keyword in call.keywords}
    assert {"consequence", "remedy"} <= said or "meaning_of" in said


@pytest.mark.req("OPS-5", "TGM-5")
def test_every_rule_for_prometheus_has_its_place_in_the_runbook() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    headings = set(RUNBOOK.split("\n## Rules for Prometheus\n")[1].splitlines())
    assert rules and not [rule["alert"] for rule in rules if f"### {rule['alert']}" not in headings]


@pytest.mark.req("OPS-5", "CAP-1")
@pytest.mark.parametrize("name", CONSEQUENCES)
def test_every_capability_has_its_consequence_and_remedy_in_the_runbook(name: str) -> None:
    assert f"| `{name}` | {CONSEQUENCES[name]} | {REMEDIES[name]} |" in RUNBOOK


@pytest.mark.req("OPS-5", "CPY-1")
def test_the_quorum_queues_are_as_the_runbook_says() -> None:
    declared = topology(FRESH_MAX)
    rows = {line.split("`")[1]: line for line in RUNBOOK.splitlines() if line.startswith("| `rise.tasks.")}
    assert set(rows) == set(declared.queues)
    fresh = rows.pop("rise.tasks.quorum")
    for name, value in declared.queues["rise.tasks.quorum"].items():
        if name != "x-queue-type":
            assert f"`{name}` {str(value).lower() if isinstance(value, bool) else value}" in fresh
    assert declared.queues["rise.tasks.parked"] | {"x-max-length": FRESH_MAX} == declared.queues["rise.tasks.quorum"]
    assert "without `x-max-length`" in rows["rise.tasks.parked"]
    assert set(declared.queues[DEAD]) == {"x-queue-type"}
    assert f"`{DURABLE}` is a direct exchange, `{DEAD_LETTERS}` a fanout" in RUNBOOK


@pytest.mark.req("OPS-5", "SUS-2")
def test_every_reason_of_a_suspension_is_explained() -> None:
    states = (ROOT / "docs/states.md").read_text()
    assert {reason for reason in Reason if f"| `{reason}` |" not in states} == set()

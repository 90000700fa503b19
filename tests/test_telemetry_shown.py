"""Dashboard, rules and reference speak of what there is: every metric, label and event they name is in the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rise.cli import telemetry_page
from rise.cli.telemetry_page import events, labels_of, metrics, name_of, series_names
from rise.errors import Rejected, RiseError, Unavailable

pytestmark = pytest.mark.req("OPS-4")

ROOT = Path(__file__).parents[1]
OF_PROCESSES = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
OF_PROMETHEUS = {"le", "job", "instance"}
"""Labels that it, or every histogram, adds."""
FROM_THE_REQUIREMENTS = {
    "telegram.queue.enqueued", "task_worker.start", "task_worker.stop", "rabbit.publisher.timeout", "replaying backlog",
    "channel_binding.updated", "channel_binding.health", "startup.capability.NAME", "task_runtime.disabled",
    "task_runtime.enabled",
}  # fmt: skip
_QUOTED = re.compile(r'"[^"]*"')
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_MATCHED = re.compile(r"\{([^}]*)\}")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "deploy" / "grafana" / "rise.json").read_text()))


def panels() -> list[dict[str, Any]]:
    return list(dashboard()["panels"])


def variables() -> list[dict[str, Any]]:
    """What people choose above the panels."""
    return list(dashboard()["templating"]["list"])


def queries() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in rules())
    for panel in panels():
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))


def named_in(expression: str) -> set[str]:
    """The series that an expression asks for."""
    bare = re.sub(r"\[[^]]*\]", "", _MATCHED.sub("", _GROUPED.sub("", _QUOTED.sub("", expression))))
    return set(re.findall(r"\b[a-z_]{3,}\b(?!\s*\()", bare)) - {"and", "unless"}


def labels_in(expression: str) -> set[str]:
    bare = _QUOTED.sub("", expression)
    grouped = {name.strip() for found in _GROUPED.findall(bare) for name in found.split(",")}
    return grouped | {name for found in _MATCHED.findall(bare) for name in re.findall(r"[a-z_]+(?=\s*[=!])", found)}


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_every_query_asks_for_what_there_is(title: str, expression: str) -> None:
    asked = named_in(expression)
    assert asked, title
    assert asked <= series_names() | OF_PROCESSES
    known = {label for metric in metrics() if asked & set(_series(name_of(metric))) for label in labels_of(metric)}
    assert labels_in(expression) <= known | OF_PROMETHEUS


def test_the_reader_of_queries_sees_what_it_should() -> None:
    asked = 'histogram_quantile(0.9, sum by (le, a) (rate(rise_x_bucket{b=~"y"}[5m]))) > 2 * rise_y and up'
    assert named_in(asked) == {"rise_x_bucket", "rise_y"}
    assert labels_in(asked) == {"le", "a", "b"}


def test_every_metric_is_on_the_dashboard() -> None:
    asked = {name for title, expression in queries() for name in named_in(expression)}
    assert not [name_of(metric) for metric in metrics() if not asked & set(_series(name_of(metric)))]


def test_the_legends_name_labels_that_their_query_leaves() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= labels_in(target["expr"]) | OF_PROMETHEUS, panel["title"]


def test_the_dashboard_is_as_grafana_describes_one() -> None:
    """https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    made = dashboard()
    assert 8 <= len(made["uid"]) <= 40
    assert made["timezone"] in ("utc", "browser")
    assert "id" not in made, "each Grafana gives its own"
    assert len({panel["id"] for panel in panels()}) == len(panels())
    places = [place for panel in panels() for place in _places(**panel["gridPos"])]
    assert len(set(places)) == len(places), "no panel lies over another"
    assert max(x for x, _ in places) < 24
    known = {variable["name"] for variable in variables()} | {"__rate_interval"}
    asked = json.dumps(panels()) + json.dumps(variables())
    assert set(re.findall(r"\$\{?(\w+)\}?", asked)) - {"__all"} == known


def _places(x: int, y: int, w: int, h: int) -> Iterator[tuple[int, int]]:
    yield from ((column, row) for column in range(x, x + w) for row in range(y, y + h))


def test_every_rule_says_what_to_do_and_where_more_is_said() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        said = rule["annotations"]
        assert set(said) == {"summary", "remedy", "runbook"}, rule["alert"]
        assert said["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}", "as GitHub makes it of a heading"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_what_is_answered_503_wakes_somebody_and_what_a_caller_did_wrong_does_not() -> None:
    [refusing] = [rule["expr"] for rule in rules() if rule["alert"] == "RiseRefusing"]
    [codes] = re.findall(r'code=~"([^"]*)"', refusing)
    assert {code for code in codes_below(Unavailable) if not re.fullmatch(codes, code)} == set()
    assert {code for code in codes_below(Rejected) if re.fullmatch(codes, code)} == set()


def codes_below(kind: type[RiseError]) -> set[str]:
    return {kind.code}.union(*(codes_below(below) for below in kind.__subclasses__()))


def test_metrics_are_named_as_prometheus_has_it() -> None:
    for metric in metrics():
        [family] = metric.describe()
        name = name_of(metric)
        assert re.fullmatch(r"(rise|rabbit)_[a-z_]+", name)
        assert (family.type == "counter") == name.endswith("_total")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb)(_|$)", name), "base units"
        if family.type == "histogram":
            bounds = metric._kwargs["buckets"]
            assert name.endswith("_seconds")
            assert list(bounds) == sorted(bounds)
        assert family.documentation[0].isupper() or family.documentation[0].isdigit()


def test_every_event_of_the_requirements_is_logged_under_its_name() -> None:
    assert set(events()) >= FROM_THE_REQUIREMENTS


def test_every_event_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text()
    assert not [name for name in events() if f"| `{name}` |" not in page]
    assert not [name_of(metric) for metric in metrics() if f"| `{name_of(metric)}` |" not in page]


def _series(name: str) -> set[str]:
    return {name, *(f"{name}_{ending}" for ending in ("bucket", "sum", "count"))}


def test_the_page_is_made_anew_when_the_code_changes() -> None:
    made = (ROOT / "docs" / "telemetry.md").read_text()
    assert telemetry_page.page(made.split("\n")[2]) == made

"""A real Prometheus loads the rules, scrapes a real Rise, and answers what rules and dashboard ask."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_thirty_five_updates import installation, post_all, stats
from test_traces import post

from rise.envelope import RAW_SHOWN_BYTES_MAX
from rise.settings import token_entry
from rise.testing.installation import Installation
from rise.testing.servers import PrometheusServer, has_prometheus
from rise.testing.telegram import SendRates, TelegramStandIn
from rise.testing.waiting import eventually
from test_telemetry_shown import ROOT, named_in, panels, queries, rules, variables

pytestmark = [
    pytest.mark.req("OPS-4"),
    pytest.mark.slow,
    pytest.mark.skipif(not has_prometheus(), reason="prometheus, or promtool beside it, is not installed"),
]

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES_TEST = RULES.with_name("alerts_test.yml")
TOKEN = "the-token-of-prometheus-in-a-test"
AS_GRAFANA_DOES = {"$__rate_interval": "1m", "$channel": ".*", "$job": ".*"}
"""What it puts in the place of its variables where all are chosen."""

NOT_WITHOUT = {
    "rise_copies_failed_total": "Redis or RabbitMQ: one directory is all the copies there are",
    "rise_copies_made_up_total": "Redis or RabbitMQ",
    "rise_copies_lacking": "Redis or RabbitMQ",
    "rise_temporal_call_seconds_bucket": "Temporal",
    "rise_temporal_calls_failed_total": "Temporal",
    "rise_temporal_worker_restarts_total": "Temporal",
    "rise_signal_to_query_hit_seconds_bucket": "Temporal",
}
"""Series that an installation on one directory cannot have, and what they need."""
SHOWS_NOTHING = {
    "Lateness of follow-ups": "no timer of Temporal's has rung: the quantile of nothing is no number",
    "Raised now": "nothing is wrong",
}
"""Panels whose series are there."""

BOT = """
import rise


@rise.workflow("bot", channels=["telegram"])
def bot(turn):
    if turn.text == "fail":
        raise ValueError("as it was told")
    turn.reply(turn.text)
"""


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


def prometheus(directory: Path, rise: Installation, rules: Path) -> PrometheusServer:
    """Configured as docs/telemetry.md says, for another place and in more of a hurry."""
    directory.mkdir()
    (directory / "token").write_text(TOKEN)
    [documented] = re.findall(r"```yaml\n(rule_files:.*?)```", (ROOT / "docs" / "telemetry.md").read_text(), re.DOTALL)
    config = yaml.safe_load(documented)
    [job] = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(directory / "token")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{rise.port}"]}]
    config["rule_files"] = [str(rules)]
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    return PrometheusServer(directory, directory / "prometheus.yml")


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_rules_raise_what_they_should_and_nothing_else() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", RULES_TEST)


def test_of_every_alert_it_is_tested_what_raises_it_and_what_does_not() -> None:
    raised, not_raised = set(), set()
    for case in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for asked in case["promql_expr_test"]:
            [alert] = re.findall(r'alertname="(\w+)"', asked["expr"])
            is_firing = any('alertstate="firing"' in sample["labels"] for sample in asked["exp_samples"])
            (raised if is_firing else not_raised).add(alert)
    every = {rule["alert"] for rule in rules()}
    assert (every - raised, every - not_raised) == (set(), set())


async def test_of_an_installation_that_is_well_all_is_shown_and_what_breaks_is_raised(
    tmp_path: Path, telegram: TelegramStandIn
) -> None:
    """In one test, because the installation takes longer to start than to be asked."""
    rise = installed(tmp_path, telegram)
    async with rise:
        with prometheus(tmp_path / "well", rise, RULES) as server:
            await have_answered_and_scraped(rise, telegram, server)
            assert await missing_series(server) == set(NOT_WITHOUT)
            await assert_panels_show_what_is_there(server)
            assert await choices(server) == {"channel": ["http", "telegram"], "job": ["rise"]}
            await assert_rules_are_asked_and_raise_nothing(server)
        with prometheus(tmp_path / "broken", rise, in_a_hurry(tmp_path)) as server:
            await have_one_suspended(rise)
            await have_no_worker(rise)
            broken = {("RiseCondition", "suspended"), ("RiseNotMoving", "task")}
            await eventually(lambda: raised(server, broken), seconds=60)
            await rise.kill()
            await eventually(lambda: raised(server, {("RiseUnseen", "")}))


def installed(tmp_path: Path, telegram: TelegramStandIn) -> Installation:
    (tmp_path / "bot.py").write_text(BOT)
    rise = installation(tmp_path, telegram, public_url="http://127.0.0.1:1", retry_max=0, suspended_alert_count=2)
    rise.configure(app=tmp_path / "bot.py", tokens=token_entry("prometheus", "viewer", TOKEN))
    rise.configure(alert_webhook_url="http://127.0.0.1:1/", alert_webhook_secret="a-secret-of-a-test-alone")
    return rise


async def have_one_suspended(rise: Installation) -> None:
    """Beside the one that nobody is there for."""
    assert await post_all(rise, [update(10, text="fail")]) == [200]

    async def is_suspended() -> bool:
        return bool((await stats(rise))["byStatus"].get("suspended") == 2)

    await eventually(is_suspended)


async def have_no_worker(rise: Installation) -> None:
    """Nor will there be one: what was deployed is broken. And somebody writes."""
    (rise.data_dir.parent / "bot.py").write_text("raise ImportError('half of it was deployed')\n")
    await rise.kill(gateway=False)
    assert await post_all(rise, [update(11)]) == [200]


def update(number: int, **more: str) -> dict[str, Any]:
    person = {"id": 42, "is_bot": False, "first_name": "Anna"}
    message = {"message_id": number, "date": 2_000_000_000 + number, "chat": {"id": 42, "type": "private"}}
    return {"update_id": 1000 + number, "message": message | {"from": person, "text": "hello"} | more}


async def have_answered_and_scraped(rise: Installation, telegram: TelegramStandIn, server: PrometheusServer) -> None:
    """One message after the other: Prometheus takes the first that it sees of its kind for what always was."""
    await rise.until_capability("telegram_webhook")
    await post(rise, "/api/workflows/apply", {"userText": "nobody is there for it"})
    for number in (1, 2, 3):  # the first may come before its workflow is known, and is counted without
        assert await post_all(rise, [update(number, caption="x" * RAW_SHOWN_BYTES_MAX)]) == [200]
        await telegram.wait_until(lambda t, sent=number: len(t.sent) == sent, timeout_seconds=20)
        if number > 1:
            answered = f"sum(rise_enqueue_to_reply_seconds_count) >= {number}"
            await eventually(lambda asked=answered: numbers(server, asked))
    await eventually(lambda: numbers(server, "rise_workflow_pending_total"))
    for kind in ("enqueue_to_reply", "accept", "platform_call"):
        await eventually(lambda asked=f"rate(rise_{kind}_seconds_count[1m]) > 0": numbers(server, asked))


async def missing_series(server: PrometheusServer) -> set[str]:
    there = await server.ask("label/__name__/values")
    return {name for _, expression in queries() for name in named_in(expression)} - set(there)


async def assert_panels_show_what_is_there(server: PrometheusServer) -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            if named_in(target["expr"]) & set(NOT_WITHOUT) or panel["title"] in SHOWS_NOTHING:
                assert await numbers(server, target["expr"]) == [], panel["title"]
            else:
                assert await shows_something(server, target["expr"]), panel["title"]


async def choices(server: PrometheusServer) -> dict[str, list[str]]:
    """What the dashboard's variables offer, asked as Grafana does."""
    asked = {variable["name"]: variable["query"] for variable in variables() if variable["type"] == "query"}
    found = {}
    for name, query in asked.items():
        [(series, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", query["query"])
        found[name] = await server.ask(f"label/{label}/values", **{"match[]": series})
    return found


async def shows_something(server: PrometheusServer, expression: str) -> bool:
    """A scrape that failed, because the machine was busy, is made up for by the next."""
    with suppress(TimeoutError):
        return bool(await eventually(lambda: numbers(server, expression)))
    return False


async def numbers(server: PrometheusServer, expression: str) -> list[float]:
    """What it evaluates to now, without what is no number."""
    for variable, value in AS_GRAFANA_DOES.items():
        expression = expression.replace(variable, value)
    answer = await server.ask("query", query=expression)
    values = (float(sample["value"][1]) for sample in answer["result"])
    return [value for value in values if not math.isnan(value)]


async def assert_rules_are_asked_and_raise_nothing(server: PrometheusServer) -> None:
    [group] = (await server.ask("rules"))["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(rule["alert"], "ok") for rule in rules()]
    for rule in rules():
        await numbers(server, rule["expr"])
    await eventually(lambda: nothing_is_raised(server))


async def nothing_is_raised(server: PrometheusServer) -> bool:
    return (await server.ask("alerts"))["alerts"] == []


async def firing(server: PrometheusServer) -> set[tuple[str, str]]:
    """The alerts, each with what it is about."""
    alerts = [alert for alert in (await server.ask("alerts"))["alerts"] if alert["state"] == "firing"]
    return {(alert["labels"]["alertname"], _subject(alert["labels"])) for alert in alerts}


def _subject(labels: dict[str, str]) -> str:
    return labels.get("alert") or labels.get("what") or ""


async def raised(server: PrometheusServer, alerts: set[tuple[str, str]]) -> bool:
    return alerts <= await firing(server)


def in_a_hurry(tmp_path: Path) -> Path:
    """Our rules, without the minutes for which they wait."""
    text, waits = re.subn(r"for: \d+m\b", "for: 1s", RULES.read_text())
    text, thresholds = re.subn(r"rise_oldest_waiting_seconds > 120", "rise_oldest_waiting_seconds > 1", text)
    assert (waits, thresholds) == (sum("for" in rule for rule in rules()), 1)
    hasty = tmp_path / "alerts.yml"
    hasty.write_text(text)
    return hasty

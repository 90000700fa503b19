"""The reference of what operators see: metrics, spans and log events, found in the code that makes them.

Refuses: an event whose name is put together where nobody can read it (`ValueError`), unless it is known below.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics import MetricWrapperBase

from rise import telemetry

_SOURCES: Final = Path(telemetry.__file__).parent
_LEVELS: Final = ("debug", "info", "warning", "error")
_EVENT: Final = re.compile(r"[a-z_]+(\.[a-z_]+)*|[a-z]+ [a-z]+")
_PUT_TOGETHER: Final = {"f'startup.capability.{name}'": "startup.capability.NAME"}
_SHOWN_BESIDE: Final = frozenset({"exc_info", "consequence", "remedy"})


@dataclass
class Event:
    """A name that lines of the log have."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    consequences: list[str] = field(default_factory=list)


def page(made: str) -> str:
    return f"""# Telemetry

{made}

What is seen of Rise from outside: metrics, traces, logs. None of it holds a token, a key or a password: what is known
as a secret, or looks like one, is masked before it is written. Nor does it hold what anybody wrote, unless a workflow
puts that into an error: the log has its words.

## Metrics

`GET /metrics` of each `rise serve`, for Prometheus, with a viewer's token:

```yaml
rule_files: [alerts.yml]
scrape_configs:
  - job_name: rise
    authorization: {{credentials_file: /etc/prometheus/rise-token}}
    static_configs: [{{targets: ["rise.example:8080"]}}]
```

`deploy/prometheus/alerts.yml` has rules that alert on them, and `deploy/grafana/rise.json` is a dashboard. Both name
only what stands here, and are loaded by:

```sh
cp deploy/prometheus/alerts.yml /etc/prometheus/ && systemctl reload prometheus
jq '{{dashboard: ., overwrite: true}}' deploy/grafana/rise.json | curl -fsS https://grafana.example/api/dashboards/db \\
  -H "Authorization: Bearer $GRAFANA_TOKEN" -H 'Content-Type: application/json' -d @-
```

The second is *Import* in Grafana, too. Whoever changes a rule asks `promtool test rules` of `alerts_test.yml` beside it
whether all still do what they are for.

| Metric | Type | Labels | Meaning |
|---|---|---|---|
{_rows(_metric(metric) for metric in metrics())}

Buckets end where what is measured is decided about:

| Metric | Buckets, in seconds |
|---|---|
{_rows(_buckets(metric) for metric in metrics() if _kind_of(metric) == "histogram")}

Counted where it happens or where it is heard of, which is always a `rise serve`; workers have no `/metrics` of their
own. `workflow` is the one that was bound when the message came, or empty. Of the process itself there are
`process_*`, as Prometheus' client has them.

## Traces

With `pip install 'rise-gateway[tracing]'` and `RISE_OTLP_ENDPOINT` every process sends its spans there, by
OpenTelemetry's protocol over HTTP. Without, nothing of it is loaded. One message is one trace, over all processes and
hosts:

| Span | Where | What it says |
|---|---|---|
| `accept` | the door | `rise.task_id`, `rise.channel`, `rise.account`, `rise.duplicate` |
| `keep` | in `accept` | until it is durable |
| `claim` | worker, from `accept` | one try: `rise.attempt`, `rise.ending` |
| `run` | in `claim`; on Temporal, from `accept` | the workflow: `rise.workflow_id`, `rise.workflow_version` |
| `stage`, `step` | in `run` | `rise.stage`, `rise.stage_kind`; of a step `code.function.name`, not its name |
| `chat MODEL` | in `stage` | `gen_ai.*`, by OpenTelemetry's conventions; never the words |
| `GET`, `POST` … | in `stage`; in `send` of a callback | `server.address`, `http.response.status_code`, no path |
| `conversation.tell`, `conversation.ask` | in `claim` | a chat that Temporal carries on |
| `send` | `rise serve`, from `claim` | one call to the platform: `rise.reply_id`, `rise.method`, `rise.tries` |

- **It travels** as `traceparent` in the task's envelope (`payload.telemetry.traceparent`) and in the outbox, through
  every store; so whoever goes on after a crash goes on with it. `traceId` in the envelope is as it was: the caller's,
  else the request's.
- **A caller's trace is continued**: a `traceparent` header of `/api/workflows/apply`, `/api/messages`,
  `/api/follow-ups`, or of a proxy before Telegram's webhook. A stranger's, in the web chat, is not: it would decide
  what is kept. What is none is ignored; `tracestate` is not carried along.
- **Texts end** after 256 characters, names of spans too. A step's name is left out, because a workflow may make it of
  what a person wrote; the function that it called is said instead.
- **Tries of one message are one trace**, also hours later. Messages of one burst are linked to the run that answers
  them. A follow-up that fires begins a trace of its own, linked to the one in which it was planned.
- **Kept** are all that begin here, or `RISE_TRACE_RATIO` of them; where the caller has decided, that counts.
- **What fails** has the status *error* and `error.type`: [the code](errors.md), or the class. The words are in
  the log, whose lines have `trace_id` while a trace goes on.
- **No message waits for it.** What the collector does not take is dropped, counted (`rise_spans_dropped_total`) and
  logged once (`tracing.export_failed`). A stop waits three seconds for what is left.

The rest is set as OpenTelemetry has it: `OTEL_EXPORTER_OTLP_HEADERS` for a collector that asks for a key,
`OTEL_EXPORTER_OTLP_CERTIFICATE`, `OTEL_SERVICE_NAME` (otherwise `rise`), `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`.

## Logs

To standard error, with `RISE_LOG=json` one object per line: `timestamp`, `level`, `event` and the fields below. What
it leads to is in `consequence`, and what to do in `remedy`, where there is something. `library.logged` is what a
library said, and `log.dropped` how many `lines` nobody took. What is away is said by `capability.state_changed`, at a
start by `startup.capability.NAME`, once for each change; loops that wait for it say so once a minute at most, and tasks
at each try.

| Event | Level | Fields | Leads to |
|---|---|---|---|
{_rows(_event(name, event) for name, event in sorted(events().items()))}
"""


def metrics() -> list[MetricWrapperBase]:
    """All there are, in the order of the code."""
    return [metric for metric in vars(telemetry).values() if isinstance(metric, MetricWrapperBase)]


def series_names() -> set[str]:
    """What Prometheus may be asked for."""
    return {sample for metric in metrics() for sample in _samples(metric)}


def labels_of(metric: MetricWrapperBase) -> tuple[str, ...]:
    return tuple(metric._labelnames)


def name_of(metric: MetricWrapperBase) -> str:
    """As it stands in queries, but for what a histogram adds."""
    [family] = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def events() -> dict[str, Event]:
    """Every name under which something is logged, testing aside."""
    found: dict[str, Event] = defaultdict(Event)
    for path in sorted(_SOURCES.rglob("*.py")):
        if "testing" not in path.relative_to(_SOURCES).parts:
            for level, name, call in _logged_in(ast.parse(path.read_text())):
                _add(found[name], level, call)
    return dict(found)


def _kind_of(metric: MetricWrapperBase) -> str:
    [family] = metric.describe()
    return str(family.type)


def _samples(metric: MetricWrapperBase) -> Iterator[str]:
    name = name_of(metric)
    if _kind_of(metric) == "histogram":
        yield from (f"{name}_{ending}" for ending in ("bucket", "sum", "count"))
    else:
        yield name


def _logged_in(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        for level in _levels_of(node.func):
            yield from ((level, name, node) for name in _names_in(node.args[0]))


def _levels_of(function: ast.expr) -> list[str]:
    """Of `log.warning` that one; of a name that stands for one of several, all that it may be."""
    match function:
        case ast.Attribute(value=ast.Name(id="log"), attr=level) if level in _LEVELS:
            return [level]
        case ast.Attribute(value=ast.Name(id="log"), attr="log"):
            return []  # of libraries: library.logged, at the level of theirs
        case ast.Name(id="report_refusal"):
            return ["debug", "warning"]
    return []


def _names_in(said: ast.expr) -> Iterator[str]:
    match said:
        case ast.Constant(value=str(name)) if _EVENT.fullmatch(name):
            yield name
        case ast.IfExp(body=one, orelse=other):
            yield from _names_in(one)
            yield from _names_in(other)
        case _:
            known = _PUT_TOGETHER.get(ast.unparse(said))
            if known is None:
                raise ValueError(f"nobody can look this event up: {ast.unparse(said)}")
            yield known


def _add(event: Event, level: str, call: ast.Call) -> None:
    event.levels.add(level)
    for keyword in call.keywords:
        if keyword.arg is not None and keyword.arg not in _SHOWN_BESIDE:
            event.fields.add(keyword.arg)
        if keyword.arg == "consequence":
            event.consequences += [one for one in _said_in(keyword.value) if one not in event.consequences]


def _said_in(value: ast.expr) -> Iterator[str]:
    """Only what is said whatever happens: of what is put together, nothing is shown."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from _said_in(one)
            yield from _said_in(other)


def _rows(rows: Iterator[str]) -> str:
    return "\n".join(rows)


def _metric(metric: MetricWrapperBase) -> str:
    labels = ", ".join(f"`{name}`" for name in labels_of(metric)) or "–"
    return f"| `{name_of(metric)}` | {_kind_of(metric)} | {labels} | {metric._documentation} |"


def _buckets(metric: Any) -> str:
    bounds = metric._kwargs["buckets"]
    return f"| `{name_of(metric)}` | {' '.join(f'{bound:g}' for bound in bounds)} |"


def _event(name: str, event: Event) -> str:
    levels = ", ".join(level for level in _LEVELS if level in event.levels)
    fields = ", ".join(f"`{one}`" for one in sorted(event.fields)) or "–"
    return f"| `{name}` | {levels} | {fields} | {'; '.join(event.consequences) or '–'} |"

"""One message is one trace, over all processes that it passes: read from what real processes export."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from otlp_collector import AT_ONCE, Collector, Exported, Trace
from test_conversations_proof import bind_to_temporal, on_temporal
from test_thirty_five_updates import installation, post_all

from rise.testing.installation import Installation
from rise.testing.model_server import ModelStandIn, Say
from rise.testing.servers import TemporalServer
from rise.testing.telegram import SendRates, TelegramStandIn
from rise.testing.waiting import eventually

pytestmark = [pytest.mark.req("OPS-4"), pytest.mark.slow]

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
CALLERS_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN = "00f067aa0ba902b7"
TEXT = "what-anna-wrote"

FAILS_ONCE = """
from pathlib import Path

import rise

HERE = Path(__file__).parent


@rise.workflow("bot", channels=["telegram", "http"])
def bot(turn):
    if not (HERE / "tried").exists():
        (HERE / "tried").touch()
        raise ValueError(turn.text)
    turn.step("look up", str.upper, turn.text)
    turn.reply(turn.text.upper())
"""


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn() as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


def traced(tmp_path: Path, telegram: TelegramStandIn, collector: Collector, **settings: Any) -> Installation:
    rise = installation(
        tmp_path, telegram, public_url="http://127.0.0.1:1", otlp_endpoint=collector.url, log="json", **settings
    )
    rise.surroundings |= AT_ONCE
    return rise


def update(text: str, number: int = 1) -> dict[str, Any]:
    return {
        "update_id": 1000 + number,
        "message": {
            "message_id": number,
            "date": 2_000_000_000 + number,
            "chat": {"id": 42, "type": "private"},
            "from": {"id": 42, "is_bot": False, "first_name": "Anna"},
            "text": text,
        },
    }


def events(rise: Installation, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in rise.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def shape(trace: Trace) -> set[tuple[str, str, str]]:
    """Of each span its name, what it stands below, and the process that it is of."""
    return {(span.name, trace.parent(span), span.process) for span in trace.spans}


async def test_one_trace_leads_from_the_webhook_to_the_reply_over_two_processes(
    tmp_path: Path, telegram: TelegramStandIn, collector: Collector
) -> None:
    async with traced(tmp_path, telegram, collector) as rise:
        await rise.until_capability("telegram_webhook")
        assert await post_all(rise, [update(f"{TEXT} twice")]) == [200]
        trace = await collector.until(
            lambda trace: trace.has("accept", "keep", "claim", "run") and len(trace.all("send")) == 2
        )
        assert shape(trace) == {
            ("accept", "", "serve"),
            ("keep", "accept", "serve"),
            ("claim", "accept", "worker"),
            ("run", "claim", "worker"),
            ("step", "run", "worker"),
            ("send", "claim", "serve"),
        }
        assert len({span.pid for span in trace.spans}) == 2, "gateway and worker"
        accept, claim = trace.one("accept"), trace.one("claim")
        assert (accept.parent_id, accept.kind, claim.kind) == ("", SERVER, CONSUMER)
        assert (claim.attributes["rise.attempt"], claim.attributes["rise.ending"]) == (1, "Answered")
        assert [span.kind for span in trace.all("send")] == [CLIENT, CLIENT], "one for each part of the reply"
        assert not [span for span in trace.spans if span.failed]
        task = await shown_task(rise, str(accept.attributes["rise.task_id"]))
        kept, _, flags = task["payload"]["telemetry"]["traceparent"].rpartition("-")
        assert (kept, int(flags, 16) & 1) == (f"00-{accept.trace_id}-{accept.span_id}", 1)
        [enqueued] = events(rise, "telegram.queue.enqueued")
        assert enqueued["trace_id"] == accept.trace_id
    assert_says_nothing_that_was_written(collector)


async def test_a_callers_trace_goes_on_through_stages_to_the_model(
    tmp_path: Path, telegram: TelegramStandIn, collector: Collector
) -> None:
    async with ModelStandIn() as model:
        model.then(Say(f"the answer to {TEXT}"))
        model_settings = {"llm_base_url": model.url, "llm_model": "stand-in", "llm_api_key": "key-of-the-model"}
        async with traced(tmp_path, telegram, collector, **model_settings) as rise:
            stages = [
                {"name": "ask", "kind": "prompt", "template": "{{ text }}", "temperature": 0.5},
                {"name": "say", "kind": "reply", "template": "{{ stages.ask }}"},
            ]
            workflow_id = await published(rise, stages)
            asked = {"userText": TEXT, "workflowId": workflow_id, "waitForResult": True}
            answer = await apply(rise, asked, traceparent=f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01")
            assert answer["result"]["text"] == f"the answer to {TEXT}"
            trace = await collector.until(lambda trace: trace.has("accept", "claim", "run", "chat stand-in"))
            assert {span.trace_id for span in trace.spans} == {CALLERS_TRACE}
            assert trace.one("accept").parent_id == CALLERS_SPAN
            assert shape(trace) == {
                ("accept", "", "serve"),
                ("keep", "accept", "serve"),
                ("claim", "accept", "worker"),
                ("run", "claim", "worker"),
                ("stage", "run", "worker"),
                ("step", "stage", "worker"),
                ("chat stand-in", "step", "worker"),
            }
            chat = trace.one("chat stand-in")
            assert chat.kind == CLIENT
            assert chat.attributes == {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "stand-in",
                "gen_ai.request.temperature": 0.5,
                "gen_ai.response.model": "stand-in",
                "gen_ai.usage.input_tokens": 1,
                "gen_ai.usage.output_tokens": 4,
                "server.address": "127.0.0.1",
                "server.port": int(model.url.split(":")[2].split("/")[0]),
            }
            task = await shown_task(rise, answer["taskId"])
            assert task["context"]["traceId"] == CALLERS_TRACE
            for bad in ("nonsense", f"00-{'0' * 32}-{CALLERS_SPAN}-01", f"ff-{CALLERS_TRACE}-{CALLERS_SPAN}-01"):
                ignored = await apply(rise, {"userText": TEXT, "workflowId": workflow_id}, traceparent=bad)
                task = await shown_task(rise, ignored["taskId"])
                assert CALLERS_TRACE not in task["payload"]["telemetry"]["traceparent"]
            unsampled = await apply(
                rise, {"userText": TEXT, "workflowId": workflow_id}, traceparent=f"00-{'a' * 32}-{CALLERS_SPAN}-00"
            )
            task = await shown_task(rise, unsampled["taskId"])
            assert task["payload"]["telemetry"]["traceparent"].startswith(f"00-{'a' * 32}-")
            assert await rise.stop() == 0
    assert not [span for span in collector.spans if span.trace_id == "a" * 32], "its caller has decided"
    assert_says_nothing_that_was_written(collector)


async def test_a_try_that_fails_is_a_span_that_failed_and_the_next_is_of_the_same_trace(
    tmp_path: Path, telegram: TelegramStandIn, collector: Collector
) -> None:
    (tmp_path / "bot.py").write_text(FAILS_ONCE)
    rise = traced(tmp_path, telegram, collector, retry_seconds="0.1")
    rise.configure(app=tmp_path / "bot.py")
    async with rise:
        await rise.until_capability("telegram_webhook")
        assert await post_all(rise, [update(TEXT)]) == [200]
        trace = await collector.until(lambda trace: trace.has("send") and len(trace.all("claim")) == 2)
        first, second = sorted(trace.all("claim"), key=lambda span: span.attributes["rise.attempt"])
        assert [span.attributes["rise.attempt"] for span in (first, second)] == [1, 2]
        assert (first.failed, first.attributes["error.type"]) == (True, "retry")
        assert not second.failed
        [run] = [span for span in trace.all("run") if span.parent_id == first.span_id]
        assert (run.failed, run.attributes["error.type"]) == (True, "ValueError")
        assert trace.one("send").parent_id == second.span_id
        assert trace.parent(trace.one("step")) == "run", "also of a function that runs in a thread"
    assert_says_nothing_that_was_written(collector)


async def test_what_fires_later_begins_a_trace_that_is_linked_to_the_one_that_planned_it(
    tmp_path: Path, telegram: TelegramStandIn, collector: Collector
) -> None:
    async with traced(tmp_path, telegram, collector) as rise:
        planned_id = await plan(rise, {"channel": "telegram", "chatId": 42, "text": TEXT, "inSeconds": 0.5})
        # Of two claims: the firing, and the saying, which may come last.
        fired = await collector.until(lambda trace: trace.has("accept", "send") and len(trace.all("claim")) > 1)
        planned = await collector.until(lambda trace: any(of_task(span, planned_id) for span in trace.all("accept")))
        firing = next(span for span in fired.all("claim") if of_task(span, planned_id))
        assert firing.parent_id == ""
        assert firing.linked == [planned.one("accept").span_id]
        assert fired.one("accept").parent_id == firing.span_id, "what it says is accepted in its chat"
        assert fired.parent(fired.one("send")) == "claim"
    assert_says_nothing_that_was_written(collector)


async def test_a_conversation_on_temporal_runs_in_the_trace_of_its_message(
    tmp_path: Path, telegram: TelegramStandIn, collector: Collector, temporal_of_its_own: TemporalServer
) -> None:
    rise = on_temporal(tmp_path, telegram, temporal_of_its_own, otlp_endpoint=collector.url)
    rise.surroundings |= AT_ONCE
    async with rise:
        await bind_to_temporal(rise)
        for number in (1, 2):
            assert await post_all(rise, [update(TEXT, number)]) == [200]
            await telegram.wait_until(lambda t, sent=number: len(t.sent) == sent, timeout_seconds=60)
        traces = await eventually(
            lambda: len(found := [one for one in collector.traces() if one.has("claim", "run", "send")]) == 2 and found
        )
        for trace in traces:
            assert trace.parent(trace.one("run")) == "accept"
            assert trace.parent(trace.one("conversation.tell")) == "claim"
            assert {trace.parent(span) for span in trace.all("send")} == {"claim"}
    assert_says_nothing_that_was_written(collector)


async def test_a_collector_that_is_away_holds_nobody_up_and_is_told_of_once(
    tmp_path: Path, telegram: TelegramStandIn
) -> None:
    rise = installation(tmp_path, telegram, public_url="http://127.0.0.1:1", otlp_endpoint="http://127.0.0.1:1")
    rise.surroundings |= AT_ONCE | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with rise:
        await rise.until_capability("telegram_webhook")
        for number in range(3):
            assert await post_all(rise, [update("hello", number)]) == [200]
            await telegram.wait_until(lambda t, sent=number + 1: len(t.sent) == sent, timeout_seconds=20)
            await eventually(lambda: events(rise, "tracing.export_failed"))
        await eventually(lambda: len(events(rise, "tracing.export_failed")) == 2)
        assert await rise.stop() == 0
    assert len(events(rise, "tracing.export_failed")) == 2, "by each of its two processes"
    assert not [line for line in events(rise, "library.logged") if "export" in line["message"].lower()]


def of_task(span: Exported, task_id: str) -> bool:
    return span.attributes.get("rise.task_id") == task_id


def assert_says_nothing_that_was_written(collector: Collector) -> None:
    assert collector.bodies
    assert not [body for body in collector.bodies if TEXT.encode() in body or TEXT.upper().encode() in body]


async def published(rise: Installation, stages: list[dict[str, Any]]) -> str:
    made = await post(rise, "/api/workflows", {"name": "asks", "stages": stages})
    await post(rise, f"/api/workflows/{made['workflowId']}/publish", {"comment": "the first one"})
    return str(made["workflowId"])


async def apply(rise: Installation, asked: dict[str, Any], *, traceparent: str) -> dict[str, Any]:
    return await post(rise, "/api/workflows/apply", asked, traceparent=traceparent)


async def plan(rise: Installation, asked: dict[str, Any]) -> str:
    return str((await post(rise, "/api/follow-ups", asked))["followUpId"])


async def shown_task(rise: Installation, task_id: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(headers=rise.headers) as session,
        session.get(f"{rise.url}/api/workflows/tasks/{task_id}") as response,
    ):
        return dict((await response.json())["data"])


async def post(rise: Installation, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(headers=rise.headers | headers) as session,
        session.post(f"{rise.url}{path}", json=body) as response,
    ):
        assert response.status in (200, 201, 202), await response.text()
        return dict((await response.json())["data"])

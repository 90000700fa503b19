"""What a workflow of stages does with one message: each stage by itself, over real HTTP where there is HTTP."""

from __future__ import annotations

import asyncio
import html
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from rise.clock import Clock
from rise.envelope import DeliveryKey, Effect, Head, LaneKey, Order, Progress, Status, Task, task_id_of
from rise.errors import (
    AddressForbidden,
    ModelAnswerUnusable,
    ModelUnavailable,
    ModelUnconfigured,
    SiteFailed,
    SiteUnavailable,
    StageRefused,
    StageTimedOut,
)
from rise.reachable import read_allowed
from rise.retries import uses_a_try
from rise.testing.clock import ManualClock
from rise.testing.model_server import Fail, Hold, ModelStandIn, Nonsense, Say
from rise.workflows.fetching import GuardedFetch
from rise.workflows.model import NoModel, OpenAIModel
from rise.workflows.staged import VALUE_BYTES_MAX, StageRecord, Tools, run_stages, staged_workflow
from rise.workflows.stages import Prompt, read_stages
from rise.workflows.turn import Turn

KEY = DeliveryKey("test:1")
NOW_MS = 1_767_225_600_000
"""The beginning of 2026."""


class Steps:
    """Where finished steps are kept, over crashes."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def save_step(self, step: str, value: bytes) -> bytes:
        return self.kept.setdefault(step, value)

    async def download(self, file_id: str) -> bytes:
        raise NotImplementedError


class ImpatientClock(ManualClock):
    """Sleeps take no time, and are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


class Bench:
    """Runs stages for one message, again and again if need be, with the steps that were kept."""

    def __init__(self, tools: Tools) -> None:
        self.records: list[StageRecord] = []
        self.tools = replace(tools, record=self.records.append)
        self.steps = Steps()
        self.effects: list[Effect] = []
        self.history: list[dict[str, Any]] = [{"role": "user", "text": "before"}, {"role": "assistant", "text": "yes"}]
        self.metadata: dict[str, Any] = {}

    async def run(self, *stages: dict[str, Any], text: str = "Hello", chat_id: str | None = "42") -> Any:
        turn = self.turn(text, chat_id)
        try:
            return await run_stages(turn, read_stages(list(stages)), self.tools)
        finally:
            self.effects = turn.close()

    def turn(self, text: str, chat_id: str | None) -> Turn:
        head = Head(
            task_id=task_id_of(KEY), delivery_key=KEY, channel="http", account="default", source="test",
            lane=LaneKey("test"), order=Order(0, 0), accepted_at_ms=0, request_id="r", trace_id="r",
            idempotency_key="", chat_id=chat_id, user_text=text, user={"name": "Ann", "user_id": "7"},
            metadata=self.metadata,
        )  # fmt: skip
        task = Task(head, b"{}", Progress(status=Status.PROCESSING))
        return Turn(task, self.steps, steps=self.steps.kept, history=self.history, now_ms=NOW_MS)

    @property
    def said(self) -> list[str]:
        return [effect.text for effect in self.effects if effect.kind == "reply"]

    @property
    def went(self) -> list[tuple[str, str, int]]:
        return [(record.name, record.outcome, record.tries) for record in self.records]

    def give(self, **tools: Any) -> None:
        self.tools = replace(self.tools, **tools)


@pytest.fixture
def clock() -> ImpatientClock:
    return ImpatientClock()


@pytest.fixture
async def server() -> AsyncIterator[ModelStandIn]:
    async with ModelStandIn() as server:
        yield server


@pytest.fixture
async def bench(server: ModelStandIn, clock: Clock) -> AsyncIterator[Bench]:
    model, fetch = OpenAIModel(server.url, "small"), GuardedFetch(read_allowed(["127.0.0.1"]))
    yield Bench(Tools(model=model, fetch=fetch, clock=clock))
    await fetch.close()
    await model.close()


class Site:
    """What an `http` stage calls; answers as it is told, once each, then with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[web.Response] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        asked = {"method": request.method, "path": request.raw_path, "headers": dict(request.headers), "body": body}
        self.asked.append(asked)
        return self.answers.pop(0) if self.answers else web.json_response({"n": len(self.asked), "path": request.path})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site, app = Site(), web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


def reply(template: str, name: str = "say", **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "reply", "template": template, **fields}


def prompt(template: str = "{{ text }}", name: str = "ask", **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "prompt", "template": template, **fields}


def python(function: str = "count", name: str = "count", **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "python", "function": function, **fields}


def http(url: str, name: str = "look", **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "http", "url": url, **fields}


# --- one after the other ------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-2", "WFL-5")
async def test_a_reply_needs_no_model(bench: Bench):
    bench.give(model=NoModel())
    assert await bench.run(reply("hi {{ text }}, {{ user.name }}")) is None
    assert bench.said == ["hi Hello, Ann"]
    [record] = bench.records
    assert (record.name, record.kind, record.outcome, record.number, record.attempt) == ("say", "reply", "done", 0, 1)


@pytest.mark.req("WFL-2")
async def test_what_a_stage_came_to_is_there_for_those_after_it(bench: Bench, server: ModelStandIn, site: Site):
    bench.give(functions={"count": lambda values: {"words": len(values["stages"]["ask"].split())}})
    server.then(Say("one two three"))
    value = await bench.run(
        http(f"{site.url}/a"),
        prompt("{{ stages.look.path }} {{ text }}"),
        python(),
        reply("{{ stages.count.words }} words: {{ stages.ask }}"),
    )
    assert bench.said == ["3 words: one two three"]
    assert server.asked == ["/a Hello"]
    assert value == {"words": 3}, "the last that was computed"
    assert [name for name, *_ in bench.went] == ["look", "ask", "count", "say"]


@pytest.mark.req("WFL-2")
async def test_a_prompt_is_asked_with_its_system_its_history_and_its_model(bench: Bench, server: ModelStandIn):
    bench.history.append({"role": "tool", "text": "x"})
    bench.history.append({"role": "user"})
    await bench.run(prompt(system="Be kind to {{ user.name }}.", withHistory=True, model="large", maxTokens=9))
    [call] = server.calls
    assert [(one["role"], one["content"]) for one in call.messages] == [
        ("system", "Be kind to Ann."),
        ("user", "before"),
        ("assistant", "yes"),
        ("user", "Hello"),
    ]
    assert (call.model, call.body["max_tokens"]) == ("large", 9)
    assert bench.records[0].notes == {"model": "large", "promptTokens": 7, "completionTokens": 1}


@pytest.mark.req("WFL-1", "WFL-2")
async def test_a_stored_prompt_has_placeholders_of_its_own_which_its_stage_fills(bench: Bench, server: ModelStandIn):
    stored = Prompt(template="About {{ topic }}: {{ text }}", system="Short.", model="stored", temperature=0.1)
    bench.give(prompts={"pr_1": stored}.get)
    by_id = {"name": "ask", "kind": "prompt", "promptId": "pr_1", "values": {"topic": "{{ user.name | upper }}"}}
    await bench.run(by_id | {"temperature": 0.9})
    assert server.asked == ["About ANN: Hello"]
    assert (server.calls[0].model, server.calls[0].body["temperature"]) == ("stored", 0.9)
    with pytest.raises(StageRefused, match=r"the stage ask2: .*'topic' is undefined"):
        await bench.run({"name": "ask2", "kind": "prompt", "promptId": "pr_1"})
    with pytest.raises(StageRefused, match="there is no prompt pr_2"):
        await bench.run({"name": "ask3", "kind": "prompt", "promptId": "pr_2"})


@pytest.mark.req("WFL-5")
async def test_without_a_model_a_prompt_says_what_to_set_and_everything_else_works(bench: Bench, site: Site):
    bench.give(model=NoModel(), functions={"count": lambda values: 1})
    with pytest.raises(ModelUnconfigured) as refused:
        await bench.run(http(site.url), python(), reply("working"), prompt(), reply("never", name="never"))
    assert "set RISE_LLM_BASE_URL and RISE_LLM_MODEL" in str(refused.value)
    assert "in the stage ask (prompt)" in refused.value.__notes__
    assert [outcome for _, outcome, _ in bench.went] == ["done", "done", "done", "failed"]
    assert "RISE_LLM_BASE_URL" in str(bench.records[-1].error)


@pytest.mark.req("WFL-2")
async def test_a_reply_has_buttons_and_a_form(bench: Bench):
    rows = [[{"text": "Yes, {{ user.name }}", "data": "yes:{{ text }}"}, {"text": "Site", "url": "https://e.example"}]]
    await bench.run(reply("<b>{{ text | e }}</b>", parseMode="HTML", buttons=rows), text="1 < 2")
    [effect] = bench.effects
    assert (effect.text, effect.parse_mode) == ("<b>1 &lt; 2</b>", "HTML")
    assert effect.buttons == [[{"text": "Yes, Ann", "data": "yes:1 < 2"}, {"text": "Site", "url": "https://e.example"}]]


@pytest.mark.req("WFL-2")
async def test_a_reply_that_says_nothing_is_an_error(bench: Bench):
    with pytest.raises(StageRefused, match="the stage say: its template gives no text"):
        await bench.run(reply("{{ text }}"), text=" ")


@pytest.mark.req("WFL-2", "TMP-3")
async def test_a_follow_up_is_promised(bench: Bench):
    bench.metadata = {"when": "2026-01-31T09:00:00+01:00"}
    await bench.run(
        {"name": "soon", "kind": "follow_up", "inSeconds": 60, "text": "Still there, {{ user.name }}?"},
        {"name": "then", "kind": "follow_up", "at": "{{ metadata.when }}", "workflow": "greeter"},
    )
    soon, then = bench.effects
    assert (soon.kind, soon.text, soon.params["inSeconds"]) == ("follow_up", "Still there, Ann?", 60.0)
    assert (then.params["workflow"], then.params["atMs"]) == ("greeter", 1_769_846_400_000)
    bench.metadata = {"when": "tomorrow"}
    with pytest.raises(StageRefused, match="'tomorrow' is no moment"):
        await bench.run({"name": "then", "kind": "follow_up", "at": "{{ metadata.when }}", "workflow": "greeter"})
    bench.metadata = {"when": "2031-01-31T09:00:00+01:00"}
    with pytest.raises(StageRefused, match="`at` is a moment from the year 1970 to five years ahead"):
        await bench.run({"name": "then", "kind": "follow_up", "at": "{{ metadata.when }}", "workflow": "greeter"})
    with pytest.raises(StageRefused, match="no chat to come back to"):
        await bench.run({"name": "soon", "kind": "follow_up", "inSeconds": 1, "text": "x"}, chat_id=None)


# --- which way it goes --------------------------------------------------------------------------------------------


def route(*rules: tuple[Any, str | None], otherwise: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "name": "route",
            "kind": "router",
            "rules": [{"when": when, "go": go} for when, go in rules],
            "otherwise": otherwise,
        },
        reply("one", name="one"),
        reply("two", name="two"),
    ]


WAYS: list[tuple[Any, str, bool]] = [
    ({"equals": "yes"}, "yes", True),
    ({"equals": "yes"}, "Yes", False),
    ({"equals": "yes", "ignoreCase": True}, "YES", True),
    ({"equals": 3, "value": "{{ text | length }}"}, "abc", True),
    ({"equals": True, "value": "{{ text | length }}"}, "a", False),
    ({"equals": None, "value": "{{ metadata.nothing | default(none) }}"}, "", True),
    ({"contains": "es"}, "yes", True),
    ({"contains": "ES"}, "yes", False),
    ({"contains": '"a"', "value": "{{ metadata }}"}, "", False),
    ({"startsWith": "/order"}, "/order 7", True),
    ({"startsWith": "/order"}, "an /order", False),
    ({"matches": "order * of *"}, "order 7 of today", True),
    ({"matches": "order * of *"}, "order 7", False),
    ({"matches": "*"}, "", True),
    ({"matches": "a*a"}, "a", False),
    ({"matches": "a*b*a"}, "aba", True),
    ({"matches": "a*b*ba"}, "aba", False),
    ({"matches": "a"}, "ab", False),
    ({"matches": "*B*", "ignoreCase": True}, "abc", True),
    ("{{ text | length > 3 }}", "four", True),
    ("{{ text | length > 3 }}", "abc", False),
    ("{% if text %}true{% endif %}", "x", True),
]


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize(("when", "text", "holds"), WAYS, ids=range(len(WAYS)))
async def test_a_rule_holds_or_not(bench: Bench, when: Any, text: str, holds: bool):
    await bench.run(*route((when, "two"), otherwise="one"), text=text)
    assert bench.said == (["two"] if holds else ["one", "two"])
    assert bench.records[0].notes == {"goesTo": "two" if holds else "one"}


@pytest.mark.req("WFL-2")
async def test_the_first_rule_that_holds_decides_and_none_is_the_end(bench: Bench):
    await bench.run(*route(({"contains": "x"}, "two"), ({"contains": "xy"}, "one")), text="xyz")
    assert bench.said == ["two"]
    await bench.run(*route(({"contains": "x"}, "two")), text="abc")
    assert bench.said == []
    await bench.run(*route(({"contains": "x"}, None), otherwise="one"), text="x")
    assert bench.said == []


@pytest.mark.req("SEC-3")
async def test_a_pattern_that_looks_for_much_does_not_look_for_long(bench: Bench):
    pattern = "*" + "a*" * 400 + "b"
    async with asyncio.timeout(5):
        await bench.run(*route(({"matches": pattern}, "two"), otherwise="one"), text="a" * 32_000)
    assert bench.said == ["one", "two"]


@pytest.mark.req("WFL-2")
async def test_a_stage_that_was_left_out_has_no_value(bench: Bench, server: ModelStandIn):
    skipping = [*route(({"equals": "skip"}, "two"), otherwise="one")][:1]
    stages = [
        *skipping,
        prompt(name="one"),
        reply("{{ stages.one | default('left out') }}", name="two"),
        reply("{{ stages.one }}", name="three"),
    ]
    with pytest.raises(StageRefused, match=r"the stage three: .*nothing there is called one"):
        await bench.run(*stages, text="skip")
    assert bench.said == ["left out"]
    assert server.calls == []


# --- once, and again ----------------------------------------------------------------------------------------------


@pytest.mark.req("WRK-5", "WFL-2")
async def test_what_was_paid_for_is_not_paid_for_again(bench: Bench, server: ModelStandIn, site: Site):
    counted: list[str] = []

    async def count(values: dict[str, Any]) -> int:
        counted.append(values["text"])
        return len(counted)

    bench.give(functions={"count": count})
    stages = (http(site.url), python(), prompt(name="first"), prompt("{{ stages.first }}!", name="second"))
    server.then(Say("paid"), Fail(400))
    with pytest.raises(Exception, match="refuses the request"):
        await bench.run(*stages)
    assert await bench.run(*stages) == "paid!"
    assert (len(site.asked), len(counted), server.asked) == (1, 1, ["Hello", "paid!", "paid!"])
    assert bench.went == [
        ("look", "done", 1), ("count", "done", 1), ("first", "done", 1), ("second", "failed", 1),
        ("look", "kept", 0), ("count", "kept", 0), ("first", "kept", 0), ("second", "done", 1),
    ]  # fmt: skip


@pytest.mark.req("WFL-2")
async def test_a_stage_is_tried_as_often_as_it_says(bench: Bench, server: ModelStandIn, clock: ImpatientClock):
    server.then(Fail(503), Nonsense(), Say("at last"))
    assert await bench.run(prompt(retries={"max": 2, "waitSeconds": 0.5})) == "at last"
    assert bench.went == [("ask", "done", 3)]
    assert len(clock.slept) == 2
    assert all(0.4 <= slept <= 0.6 for slept in clock.slept)
    assert 800 <= bench.records[0].duration_ms <= 1200
    server.then(Fail(503), Fail(503))
    with pytest.raises(ModelUnavailable):
        await bench.run(prompt(name="again", retries={"max": 1, "waitSeconds": 0}))
    assert bench.went[-1] == ("again", "failed", 2)


@pytest.mark.req("WFL-2")
async def test_what_will_never_help_is_tried_once(bench: Bench, server: ModelStandIn, site: Site):
    patient = {"retries": {"max": 5, "waitSeconds": 0}}
    server.then(Fail(401))
    site.answers = [web.Response(status=404)]
    for stage in (prompt(**patient), http(site.url, **patient), python("nobody", **patient)):
        with pytest.raises(Exception) as refused:
            await bench.run(stage)
        assert not refused.value.retryable
    assert [tries for *_, tries in bench.went] == [1, 1, 1]


@pytest.mark.req("WFL-2")
async def test_a_short_pause_is_kept_within_the_run_and_a_long_one_by_the_queue(
    bench: Bench, server: ModelStandIn, clock: ImpatientClock
):
    server.then(Fail(429, retry_after="7"), Say("now"))
    assert await bench.run(prompt(retries={"max": 1, "waitSeconds": 0.1})) == "now"
    assert clock.slept == [7.0]
    server.then(Fail(429, retry_after="120"))
    with pytest.raises(ModelUnavailable) as refused:
        await bench.run(prompt(name="again", retries={"max": 1}))
    assert refused.value.retry_after_seconds == 120
    assert clock.slept == [7.0]


@pytest.mark.req("WFL-2")
async def test_each_stage_has_its_own_time(bench: Bench, server: ModelStandIn):
    hold, ended = Hold(), threading.Event()

    async def for_ever(values: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    bench.give(functions={"for ever": for_ever, "blocked": lambda values: ended.wait(20)})
    server.then(hold)
    with pytest.raises(ModelUnavailable, match=r"did not answer within 0\.1 s"):
        await bench.run(prompt(timeoutSeconds=0.1))
    for name in ("for ever", "blocked"):
        with pytest.raises(StageTimedOut, match=f"{name} did not return within 0.1 s") as late:
            await bench.run(python(name, timeoutSeconds=0.1))
        assert late.value.retryable
        assert uses_a_try(late.value), "a dependency's fault is none, this is the stage's own"
    ended.set()


@pytest.mark.req("WFL-2")
async def test_a_run_that_is_taken_away_leaves_a_record_of_where_it_was(bench: Bench, server: ModelStandIn):
    hold = Hold()
    server.then(hold)
    running = asyncio.create_task(bench.run(reply("first"), prompt(), reply("last", name="last")))
    await hold.reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bench.went == [("say", "done", 1), ("ask", "cut off", 1)]


# --- functions ----------------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-2")
async def test_a_function_gets_what_templates_see_and_may_keep_it(bench: Bench):
    seen: list[dict[str, Any]] = []

    def spoil(values: dict[str, Any]) -> str:
        seen.append(json.loads(json.dumps(values)))
        values["stages"].clear()
        values["user"]["name"] = "nobody"
        return threading.current_thread().name

    bench.give(functions={"spoil": spoil, "one": lambda values: 1})
    value = await bench.run(python("one"), python("spoil", name="spoil"), reply("{{ user.name }} {{ stages.count }}"))
    assert seen == [
        {
            "text": "Hello", "user": {"name": "Ann", "user_id": "7"}, "chat_id": "42", "channel": "http",
            "metadata": {}, "history": bench.history, "stages": {"count": 1},
        }
    ]  # fmt: skip
    assert bench.said == ["Ann 1"]
    assert value != threading.current_thread().name, "a plain function runs in a thread"


@pytest.mark.req("WFL-2")
async def test_what_a_function_raises_is_tried_again_and_said(bench: Bench):
    tries: list[int] = []

    def fail(values: dict[str, Any]) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise LookupError("not there yet")
        return "there"

    bench.give(functions={"fail": fail})
    with capture_logs() as logged:
        assert await bench.run(python("fail", retries={"max": 2, "waitSeconds": 0})) == "there"
    failed = [(line["stage"], line["tries"], str(line["error"])) for line in logged if line["event"] == "stage.failed"]
    assert failed == [("count", 1, "not there yet"), ("count", 2, "not there yet")]
    tries.clear()
    with pytest.raises(LookupError):
        await bench.run(python("fail", name="once"))
    assert bench.records[-1].error == "LookupError: not there yet"


@pytest.mark.req("WFL-2")
async def test_what_a_stage_came_to_holds_until_it_or_one_before_it_is_written_otherwise(bench: Bench, site: Site):
    """A message that failed is let go on with the corrected workflow."""
    look, more = http(f"{site.url}/old"), http(f"{site.url}/more", "more")
    with pytest.raises(StageRefused):
        await bench.run(look, more, reply("{{ stages.look.nothing }}"))
    with pytest.raises(StageRefused):
        await bench.run(look | {"timeoutSeconds": 9}, more, reply("{{ stages.look.nowhere }}"))
    assert [one["path"] for one in site.asked] == ["/old", "/more"]
    await bench.run(look | {"url": f"{site.url}/new"}, more, reply("{{ stages.look.path }} {{ stages.more.n }}"))
    assert bench.said == ["/new 4"]


@pytest.mark.req("WFL-1", "WRK-5")
async def test_what_a_model_said_to_a_stored_prompt_holds_until_that_is_written_otherwise(
    bench: Bench, server: ModelStandIn
):
    """A message that failed is let go on after its prompt was corrected."""
    stored = {"pr_1": Prompt(template="Old: {{ text }}"), "pr_2": Prompt(template="Then {{ stages.ask }}")}
    bench.give(prompts=stored.get)
    ask = {"name": "ask", "kind": "prompt", "promptId": "pr_1"}
    more = {"name": "more", "kind": "prompt", "promptId": "pr_2"}
    with pytest.raises(StageRefused):
        await bench.run(ask, more, reply("{{ metadata.nothing }}"))
    bench.history.append({"role": "user", "text": "written meanwhile"})
    with pytest.raises(StageRefused):
        await bench.run(ask, more, reply("{{ metadata.nowhere }}"))
    assert server.asked == ["Old: Hello", "Then Old: Hello"], "paid for once"
    stored["pr_1"] = Prompt(template="New: {{ text }}")
    await bench.run(ask, more, reply("{{ stages.more }}"))
    assert bench.said == ["Then New: Hello"]
    stored["pr_2"] = Prompt(template="Then {{ stages.ask }}", system="Be brief.")
    await bench.run(ask, more, reply("{{ stages.more }}"))
    assert server.asked[4:] == ["Then New: Hello"], "what is before the corrected one is kept"


@pytest.mark.req("WFL-1")
async def test_a_run_asks_with_the_prompts_that_were_stored_when_it_began(bench: Bench, server: ModelStandIn):
    stored = {"pr_1": Prompt(template="Old: {{ text }}")}

    def store(values: dict[str, Any]) -> None:
        stored["pr_1"] = Prompt(template="New: {{ text }}")

    bench.give(prompts=stored.get, functions={"count": store})
    await bench.run(python(), {"name": "ask", "kind": "prompt", "promptId": "pr_1"})
    assert server.asked == ["Old: Hello"]


@pytest.mark.failure("D4")
async def test_functions_that_never_return_keep_no_other_from_being_called(bench: Bench):
    is_over = threading.Event()
    bench.give(functions={"hang": lambda values: is_over.wait(20), "count": lambda values: 1})
    try:
        for _ in range((os.cpu_count() or 1) + 4):  # as many threads as a loop has
            with pytest.raises(StageTimedOut):
                await bench.run(python("hang", timeoutSeconds=0.01))
        assert await bench.run(python(timeoutSeconds=5)) == 1
    finally:
        is_over.set()


@pytest.mark.req("WFL-2")
async def test_what_cannot_be_kept_is_refused(bench: Bench):
    bench.give(functions={"huge": lambda values: "x" * VALUE_BYTES_MAX})
    with pytest.raises(StageRefused, match=f"the stage count: what it came to has more than {VALUE_BYTES_MAX} bytes"):
        await bench.run(python("huge"))
    for odd in (object(), {1, object()}):
        bench.give(functions={"odd": lambda values, odd=odd: odd})
        with pytest.raises(StageRefused, match="the stage count: what it came to is no JSON"):
            await bench.run(python("odd"))
    with pytest.raises(StageRefused, match=r"mark one with @rise.function\('nobody'\)"):
        await bench.run(python("nobody"))


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-2", "SEC-3")
async def test_what_is_put_into_an_address_is_one_part_of_it(bench: Bench, site: Site):
    evil = "../../admin?a=b&c=d#e@evil.example/ "
    await bench.run(http(f"{site.url}/people/{{{{ text }}}}/x?q={{{{ text }}}}"), text=evil)
    spelled = "..%2F..%2Fadmin%3Fa%3Db%26c%3Dd%23e%40evil.example%2F%20"
    assert site.asked[0]["path"] == f"/people/{spelled}/x?q={spelled}"
    for text in ("..", "."):
        with pytest.raises(StageRefused, match="leads up or nowhere"):
            await bench.run(http(f"{site.url}/people/{{{{ text }}}}/x", name="up"), text=text)
    assert len(site.asked) == 1


@pytest.mark.req("WFL-2", "SEC-3")
async def test_an_address_that_is_one_value_is_taken_whole_and_looked_at_all_the_same(bench: Bench, site: Site):
    assert (await bench.run(http("{{ text }}"), text=f"{site.url}/whole?a=b"))["path"] == "/whole"
    for inside in ("http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://10.0.0.1/"):
        with pytest.raises(AddressForbidden, match="RISE_HTTP_STAGE_ALLOW"):
            await bench.run(http("{{ text }}", name="inside"), text=inside)
    with pytest.raises(StageRefused, match="the stage inside: the address"):
        await bench.run(http("{{ text }}", name="inside"), text="file:///etc/passwd")


@pytest.mark.req("WFL-2", "SEC-3")
async def test_json_holds_values_and_no_text_can_break_out_of_it(bench: Bench, site: Site):
    body = {
        "said": "{{ text }}",
        "all": ["{{ user }}", "{{ history | length }}", 1, None],
        "words": "of {{ user.name }}",
    }
    await bench.run(http(site.url, method="POST", json=body, headers={"X-Who": "{{ user.name }}"}), text='"},{"')
    asked = site.asked[0]
    assert json.loads(asked["body"]) == {
        "said": '"},{"', "all": [{"name": "Ann", "user_id": "7"}, 2, 1, None], "words": "of Ann",
    }  # fmt: skip
    assert (asked["headers"]["Content-Type"], asked["headers"]["X-Who"]) == ("application/json", "Ann")
    await bench.run(http(site.url, name="text", method="PUT", body="said: {{ text }}"))
    assert (site.asked[1]["method"], site.asked[1]["body"]) == ("PUT", "said: Hello")


async def test_half_a_character_does_not_stop_a_stage(bench: Bench, site: Site, server: ModelStandIn):
    await bench.run(
        http(f"{site.url}/{{{{ text }}}}", json="{{ text }}"), prompt(), reply("{{ text }}"), text="a\ud83d"
    )
    assert (site.asked[0]["path"], site.asked[0]["body"], server.asked, bench.said) == ("/a%3F", '"a?"', ["a?"], ["a?"])


async def test_a_stage_may_say_itself_what_its_json_is(bench: Bench, site: Site):
    await bench.run(http(site.url, method="POST", json={}, headers={"content-type": "application/ld+json"}))
    named = [value for name, value in site.asked[0]["headers"].items() if name.lower() == "content-type"]
    assert named == ["application/ld+json"]


@pytest.mark.req("SEC-3")
async def test_a_header_cannot_become_two(bench: Bench, site: Site):
    with pytest.raises(StageRefused, match="cannot be made"):
        await bench.run(http(site.url, headers={"X-Text": "{{ text }}"}), text="a\r\nX-Other: b")
    assert site.asked == []


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize(
    ("status", "error"),
    [(503, SiteUnavailable), (429, SiteUnavailable), (502, SiteUnavailable), (500, SiteFailed), (404, StageRefused),
     (302, StageRefused), (200, None), (204, None)],
)  # fmt: skip
async def test_what_a_status_means(bench: Bench, site: Site, status: int, error: type[Exception] | None):
    site.answers = [web.Response(status=status, headers={"Retry-After": "9"})]
    if error is None:
        await bench.run(http(site.url))
        assert bench.records[0].notes == {"status": status}
        return
    with pytest.raises(error, match=str(status)) as refused:
        await bench.run(http(site.url))
    assert uses_a_try(refused.value) is not (error is SiteUnavailable)
    if isinstance(refused.value, SiteUnavailable):
        assert refused.value.retry_after_seconds == 9


@pytest.mark.req("WFL-2")
async def test_a_stage_says_itself_which_statuses_are_answers(bench: Bench, site: Site):
    site.answers = [web.json_response({"found": False}, status=404)]
    assert await bench.run(http(site.url, expect=[200, 404])) == {"found": False}
    site.answers = [web.Response(status=201)]
    with pytest.raises(StageRefused, match=r"the stage again: 127\.0\.0\.1 answered 201"):
        await bench.run(http(site.url, name="again", expect=[200]))


# --- as a workflow ------------------------------------------------------------------------------------------------


@pytest.mark.req("WFL-2")
async def test_it_is_a_workflow_like_one_in_code_and_has_the_time_its_stages_may_take(bench: Bench):
    stages = read_stages([prompt(timeoutSeconds=100, retries={"max": 2, "waitSeconds": 20}), reply("x")])
    definition = staged_workflow("asks", stages, bench.tools, channels=["http"], concurrency=3)
    assert (definition.workflow_id, definition.channels, definition.concurrency) == ("wf_asks", ("http",), 3)
    assert definition.is_async
    assert definition.run_seconds is not None
    assert definition.run_seconds >= 3 * 100 + 2 * 20 * 1.2 + 30


async def test_an_answer_that_is_none_is_said_to_nobody(bench: Bench, server: ModelStandIn):
    server.then(Nonsense())
    with pytest.raises(ModelAnswerUnusable):
        await bench.run(prompt(), reply("{{ stages.ask }}"))
    assert bench.said == []


SECRETS = {"KEY": "shop-key/0123456789", "PART": "part of:an address"}


@pytest.mark.req("SEC-2", "WFL-2")
async def test_a_secret_is_put_into_the_request_and_taken_out_of_the_answer(bench: Bench, site: Site):
    bench.give(secrets=SECRETS.get)
    site.answers = [web.json_response({SECRETS["KEY"]: [f"you sent {SECRETS['KEY']}", "part%20of%3Aan%20address"]})]
    asked = http(
        f"{site.url}/{{{{ secrets.PART }}}}",
        headers={"Authorization": "Bearer {{ secrets.KEY }}"},
        method="POST",
        json={"key": "{{ secrets.KEY }}"},
    )
    value = await bench.run(asked, reply("{{ stages.look }}"))
    assert site.asked[0]["headers"]["Authorization"] == f"Bearer {SECRETS['KEY']}"
    assert (site.asked[0]["path"], site.asked[0]["body"]) == (
        "/part%20of%3Aan%20address", json.dumps({"key": SECRETS["KEY"]}, separators=(",", ":"))
    )  # fmt: skip
    assert value == {"***": ["you sent ***", "***"]}
    left = repr((value, bench.said, bench.records, bench.steps.kept))
    assert not [secret for secret in SECRETS.values() if secret in left]


SPELLED = {"KEY": "a\"key'of <the> shop\\&/0123456789!"}


@pytest.mark.req("SEC-2", "WFL-2")
@pytest.mark.parametrize(
    "spell",
    [
        json.dumps,
        lambda secret: json.dumps(secret).replace("/", r"\/"),
        lambda secret: json.dumps(secret).replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"),
        quote,
        lambda secret: quote(secret, safe=""),
        lambda secret: quote(secret, safe="!'()*"),
        quote_plus,
        html.escape,
        lambda secret: html.escape(secret, quote=False),
        lambda secret: html.escape(secret).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        repr,
    ],
)
@pytest.mark.parametrize("is_in_json", [True, False])
async def test_a_secret_is_taken_out_of_the_answer_however_the_site_spells_it(
    bench: Bench, site: Site, spell: Callable[[str], str], is_in_json: bool
):
    bench.give(secrets=SPELLED.get)
    said = f"you sent {spell(SPELLED['KEY'])}, thank you"
    site.answers = [web.json_response({"data": said}) if is_in_json else web.Response(text=said)]
    value = await bench.run(http(site.url, method="POST", json={"key": "{{ secrets.KEY }}"}))
    kept = value["data"] if is_in_json else value
    assert kept.replace('"', "").replace("'", "") == "you sent ***, thank you"
    assert spell(SPELLED["KEY"])[1:-1] not in repr((value, bench.records, bench.steps.kept))


@pytest.mark.req("SEC-2")
async def test_an_answer_that_is_too_deep_to_take_a_secret_out_of_is_refused(bench: Bench, site: Site):
    bench.give(secrets=SECRETS.get)
    deep = next(depth for depth in range(950, 100, -50) if _is_readable("[" * depth + "]" * depth))
    site.answers = [web.Response(text="[" * deep + "]" * deep, content_type="application/json")]
    with pytest.raises(StageRefused, match="nested too deep"):
        await bench.run(http(site.url, headers={"X-Key": "{{ secrets.KEY }}"}))


def _is_readable(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except RecursionError:
        return False
    return True


@pytest.mark.req("SEC-2", "WFL-2")
async def test_a_secret_that_is_not_there_or_cannot_be_opened_is_said_with_the_remedy(bench: Bench, site: Site):
    with pytest.raises(StageRefused, match=r"no secret KEY .* `rise secrets set KEY`, with the same RISE_SECRET_KEY"):
        await bench.run(http(site.url, headers={"Authorization": "{{ secrets.KEY }}"}))
    assert not site.asked


@pytest.mark.req("SEC-2")
async def test_a_request_that_fails_does_not_say_its_secret(bench: Bench, site: Site):
    bench.give(secrets=SECRETS.get)
    site.answers = [web.json_response({"wrong": SECRETS["KEY"]}, status=401)]
    with pytest.raises(StageRefused) as refused:
        await bench.run(http(f"{site.url}/{{{{ secrets.KEY }}}}", headers={"X-Key": "{{ secrets.KEY }}"}))
    assert SECRETS["KEY"] not in repr((str(refused.value), bench.records))

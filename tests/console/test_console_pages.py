"""What the pages say is so, and what is done there is done."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser

import aiohttp
import httpx
import pytest
from api_house import OPERATOR, VIEWER, Work, echo
from console_people import Keep, SignIn, form_key

from rise.api.server import ApiServer
from rise.capabilities import CONSEQUENCES, REMEDIES, CapabilityStatus
from rise.console.app import build_front
from rise.console.now import LOOK_SECONDS
from rise.console.rendering import excerpt, lasting, number, rate, took
from rise.definitions.records import BindingRecord
from rise.envelope import Call, Outcome, Reason, RunId, Status, TaskId, reply_id_of
from rise.errors import StoreUnavailable
from rise.ledger.port import Attempt, Operation, RunResult, reply_of
from rise.runtime.alerts import Alerts
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_channel_bindings
from rise.runtime.assembly.services import build_pulse_taker
from rise.runtime.binding_health import RUNS, BindingHealth, HealthStatus
from rise.testing.waiting import eventually

PAGE_BYTES_MAX = 150_000
PAGES = [
    *("/console", "/console/messages", "/console/suspended", "/console/bindings", "/console/trail"),
    *("/console/workflows", "/console/prompts", "/console/follow-ups"),
    "/console/nowhere",
]


async def ended(house: House, task_id: str) -> None:
    async def has() -> bool:
        run = await house.ledger.latest_run(TaskId(task_id))
        return run is not None and run.status.is_finished

    await eventually(has)


# --- now -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3", "CAP-7")
async def test_lights_say_what_does_not_work_and_what_that_means_in_the_words_of_the_log(
    sign_in: SignIn, house: House
) -> None:
    client = await sign_in(VIEWER)
    assert "All is well" in (await client.get("/console")).text
    house.capabilities.set("telegram_sending", CapabilityStatus.DEGRADED, "429 for the third time")
    page = (await client.get("/console")).text
    for words in ("Not everything works", "429 for the third time"):
        assert words in page
    for words in (CONSEQUENCES["telegram_sending"], REMEDIES["telegram_sending"]):
        assert words.replace("'", "&#39;") in page
    assert page.index("telegram sending") < page.index("<b>disk</b>"), "what is worst comes first"


@pytest.mark.req("OPS-3", "CAP-7")
async def test_when_nothing_is_accepted_the_page_says_so_and_why(sign_in: SignIn, house: House) -> None:
    client = await sign_in(VIEWER)
    house.capabilities.set("disk", CapabilityStatus.UNAVAILABLE, "the disk is full")
    page = (await client.get("/console")).text
    assert "No messages are accepted" in page
    assert "disk: the disk is full" in page


@pytest.mark.req("OPS-3", "SUP-3")
async def test_alerts_are_those_that_are_told(sign_in: SignIn, house: House) -> None:
    client = await sign_in(VIEWER)
    assert "None is raised." in (await client.get("/console")).text
    alerts = Alerts(house.clock, book=house.alerts)
    alerts.follow("backlog", True, summary="12 messages are open", remedy="add workers")
    page = (await client.get("/console")).text
    assert "12 messages are open" in page
    assert "add workers" in page
    alerts.follow("backlog", False)
    assert "None is raised." in (await client.get("/console")).text


@pytest.mark.req("OPS-3")
async def test_the_first_page_asks_no_store(sign_in: SignIn, house: House) -> None:
    """So it is as quick with a million messages, and there when nothing else is."""
    client = await sign_in(VIEWER)
    await house.stores.close()
    page = await client.get("/console")
    assert page.status_code == 200
    assert "Not counted yet." in page.text


@pytest.mark.req("OPS-3")
async def test_figures_come_as_they_are_counted(house: House, keep: Keep) -> None:
    server = ApiServer(house, build_front)
    await server.start()
    try:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            url = f"http://127.0.0.1:{server.port}/console"
            async with browser.post(f"{url}/sign-in", data={"token": VIEWER}) as answer:
                assert answer.status == 200
            async with browser.get(f"{url}/events") as stream:
                assert stream.content_type == "text/event-stream"
                first = [await event(stream) for _ in range(4)]
                assert [name for name, _ in first] == ["standing", "lights", "alerts", "counted"]
                await keep("counted", Reason.POISON)
                taker = build_pulse_taker(house)
                await taker.beat()
                [figures] = json.loads((await next_of(stream, "beats"))[1])
                assert len(figures) == 5
                house.capabilities.set("disk", CapabilityStatus.UNAVAILABLE, "the disk is full")
                await taker.beat()
                _, part = await next_of(stream, "standing")
                assert "No messages are accepted" in part
                async with asyncio.timeout(LOOK_SECONDS - 1):
                    await server.stop()  # an open stream does not hold it up
    finally:
        await server.stop()


async def event(stream: aiohttp.ClientResponse) -> tuple[str, str]:
    """The next that is one."""
    while True:
        lines = (await stream.content.readuntil(b"\n\n")).decode().splitlines()
        named = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        if named:
            return named[0], "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))


async def next_of(stream: aiohttp.ClientResponse, name: str) -> tuple[str, str]:
    async with asyncio.timeout(10):
        while True:
            found = await event(stream)
            if found[0] == name:
                return found


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3")
async def test_open_and_ended_messages_are_listed_and_lead_to_their_lives(
    sign_in: SignIn, house: House, keep: Keep, work: Work
) -> None:
    waiting = await keep("this one waits", Reason.POISON)
    await work(echo)
    answered = await keep("this one is answered")
    await ended(house, answered)
    client = await sign_in(VIEWER)
    page = (await client.get("/console/messages")).text
    for task_id in (waiting, answered):
        assert f'href="./messages/{task_id}"' in page
    only_ended = (await client.get("/console/messages?state=ended")).text
    assert (answered in only_ended, waiting in only_ended) == (True, False)


@pytest.mark.req("OPS-3")
async def test_an_id_leads_straight_to_its_message(sign_in: SignIn, keep: Keep) -> None:
    task_id = await keep("find me", Reason.POISON)
    client = await sign_in(VIEWER)
    for word in (task_id, f" {task_id}.0", f"{task_id}.0.1"):
        answer = await client.get("/console/messages", params={"q": word})
        assert (answer.status_code, answer.headers["location"]) == (303, f"messages/{task_id}")
    assert (await client.get("/console/messages", params={"q": "t_unknown"})).status_code == 200


@pytest.mark.req("OPS-3")
async def test_messages_are_found_by_word_chat_state_and_reason(sign_in: SignIn, house: House, keep: Keep) -> None:
    invoice = await keep("Where is my INVOICE?", Reason.POISON)
    other = await keep("Thanks!", Reason.KILL_SWITCH)
    task = await house.queue.get(TaskId(invoice))
    assert task is not None
    client = await sign_in(VIEWER)
    chat = {"chat": task.head.chat_id or "", "channel": "webchat"}
    for query, found in (
        ({"q": "invoice"}, {invoice}),
        ({"reason": "kill_switch"}, {other}),
        ({"state": "suspended"}, {invoice, other}),
        ({"state": "pending"}, set()),
        (chat, {invoice, other}),
        ({"chat": "another"}, set()),
        ({"channel": "telegram"}, set()),
    ):
        page = (await client.get("/console/messages", params=query)).text
        assert {task_id for task_id in (invoice, other) if task_id in page} == found, query


@pytest.mark.req("OPS-3")
async def test_a_chats_conversation_is_shown_where_it_is_named(
    sign_in: SignIn, house: House, keep: Keep, work: Work
) -> None:
    await work(echo)
    task_id = await keep("said in this chat")
    await ended(house, task_id)
    chat_id = (await house.ledger.archived(TaskId(task_id))).head.chat_id  # type: ignore[union-attr]
    client = await sign_in(VIEWER)
    page = (await client.get("/console/messages", params={"channel": "webchat", "chat": chat_id or ""})).text
    assert "This chat’s conversation" in page
    assert "said in this chat" in page


@pytest.mark.req("OPS-3")
async def test_a_list_goes_on_on_the_next_page(sign_in: SignIn, keep: Keep) -> None:
    kept = {await keep(f"number {number}", Reason.POISON) for number in range(120)}
    client = await sign_in(VIEWER)
    seen: list[str] = []
    address = "/console/messages?state=suspended"
    for _ in range(3):
        page = (await client.get(address)).text
        seen += re.findall(r'href="\./messages/(t_\w+)"', page)
        following = re.search(r'class="button" href="(\?[^"]*after[^"]*)"', page)
        if following is None:
            break
        address = "/console/messages" + following[1].replace("&amp;", "&")
    assert sorted(seen) == sorted(kept)


@pytest.mark.req("OPS-3")
async def test_a_message_shows_its_whole_life(sign_in: SignIn, house: House, keep: Keep, work: Work) -> None:
    task_id = await keep("tell me all", Reason.POISON)
    await keep("tell me all")  # another, that is not on the page
    await house.ledger.add_attempt(RunId(f"{task_id}.0"), Attempt(at_ms=1000, error="the shop is shut", counted=True))
    client = await sign_in(OPERATOR)
    waiting = (await client.get(f"/console/messages/{task_id}")).text
    for words in ("its worker process died three times", "try failed", "the shop is shut", "Resume…", "Drop…"):
        assert words in waiting
    key = form_key(await client.get("/console"))
    await client.post("/console/suspended/resume", data={"form_key": key, "task": task_id, "why": "mended"})
    await work(echo)
    await ended(house, task_id)
    page = (await client.get(f"/console/messages/{task_id}")).text
    for words in ("accepted", "resume by olga", "because: mended", "completed (answered)", "you said: tell me all"):
        assert words in page
    assert "Resume…" not in page


@pytest.mark.req("OPS-3")
async def test_a_message_that_waits_for_another_of_its_burst_says_for_which(
    sign_in: SignIn, house: House, keep: Keep
) -> None:
    leader, follower = await keep("first", Reason.POISON), await keep("second", Reason.POISON)
    task = await house.queue.get(TaskId(follower))
    assert task is not None
    merged = RunResult(outcome=Outcome.MERGED, value={"mergedInto": leader})
    await house.ledger.save_result(task, merged, [], [], deliver=False)
    page = (await (await sign_in(VIEWER)).get(f"/console/messages/{follower}")).text
    assert re.search(rf'Goes with</dt><dd><a href="[^"]*/messages/{leader}">', page)
    assert "or is run by itself if that leaves it out" in page


async def test_what_is_not_there_is_said(sign_in: SignIn) -> None:
    client = await sign_in(VIEWER)
    for path in ("/console/messages/t_unknown", "/console/nowhere"):
        page = await client.get(path)
        assert (page.status_code, "<nav" in page.text) == (404, True)
    assert (await client.get("/console/messages?state=nowhere")).status_code == 422
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = await client.request(method, "/console/messages")
        assert (answer.status_code, "content-security-policy" in answer.headers) == (404, True), method
    assert (await client.get("/console/")).headers["location"] == "../console"


@pytest.mark.parametrize("value", ["9" * 30, "-1", "٣", "%00", "%ff", "%ED%A0%80", "t_%", "'", "x" * 5_000])
async def test_whatever_stands_in_an_address_is_answered(sign_in: SignIn, keep: Keep, value: str) -> None:
    await keep("hello", Reason.POISON)
    client = await sign_in(VIEWER)
    for page in ("messages", "suspended", "bindings", "workflows", "prompts", "follow-ups", "trail"):
        for name in ("q", "after", "chat", "channel", "account", "done", "name", "resumed", "ms", "removed"):
            answer = await client.get(f"/console/{page}?state=ended&{name}={value}")
            assert answer.status_code in (200, 422), (page, name)
    assert (await client.get(f"/console/messages/{value}")).status_code == 404


async def test_a_store_that_is_away_is_said_on_the_page(
    sign_in: SignIn, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is gone")

    monkeypatch.setattr(house.queue, "list_open", away)
    page = await (await sign_in(VIEWER)).get("/console/messages")
    assert (page.status_code, "the disk is gone" in page.text, int(page.headers["retry-after"]) > 0) == (
        503,
        True,
        True,
    )


async def test_what_should_not_happen_shows_no_cause(
    sign_in: SignIn, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("a detail for the log")

    monkeypatch.setattr(house.queue, "list_open", broken)
    page = await (await sign_in(VIEWER)).get("/console/messages")
    assert (page.status_code, "a detail for the log" in page.text) == (500, False)
    assert page.headers["x-request-id"] in page.text


# --- suspended ------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3")
async def test_before_anything_is_done_it_is_said_what_would_be(sign_in: SignIn, house: House, keep: Keep) -> None:
    kept = [await keep(f"number {number}", Reason.POISON) for number in range(3)]
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/suspended"))
    page = await client.post("/console/suspended/review", data={"form_key": key, "task": kept[:2], "verb": "resume"})
    assert "Resume 2 messages?" in page.text
    page = await client.post(
        "/console/suspended/review", data={"form_key": key, "scope": "filter", "reason": "poison", "verb": "drop"}
    )
    assert "Drop 3 messages?" in page.text
    assert "It ends" not in page.text
    assert {await status(house, task_id) for task_id in kept} == {Status.SUSPENDED}
    assert not any(entry.who == "olga" for entry in await house.ledger.operations(limit=10))


@pytest.mark.req("OPS-3", "SEC-4")
async def test_one_or_several_are_resumed_and_that_is_in_the_audit_trail(
    sign_in: SignIn, house: House, keep: Keep
) -> None:
    kept = [await keep(f"number {number}", Reason.POISON) for number in range(3)]
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/suspended"))
    fields = {"form_key": key, "task": kept[:2], "why": "it was the disk"}
    answer = await client.post("/console/suspended/resume", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "../suspended?resumed=2")
    assert [await status(house, task_id) for task_id in kept] == [Status.PENDING, Status.PENDING, Status.SUSPENDED]
    [entry, *_] = await house.ledger.operations(limit=10)
    assert (entry.who, entry.action, entry.why) == ("olga", "resume", "it was the disk")
    assert kept[0] in entry.target
    assert "messages go on" in (await client.get("/console/suspended?resumed=2")).text


@pytest.mark.req("OPS-3", "SEC-4")
async def test_what_matches_is_dropped_for_a_reason_that_is_kept(sign_in: SignIn, house: House, keep: Keep) -> None:
    poison = [await keep(f"number {number}", Reason.POISON) for number in range(2)]
    other = await keep("not this one", Reason.KILL_SWITCH)
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/suspended"))
    fields = {"form_key": key, "scope": "filter", "reason": "poison"}
    assert (await client.post("/console/suspended/drop", data=fields)).status_code == 422
    answer = await client.post("/console/suspended/drop", data=fields | {"why": "spam"})
    assert answer.headers["location"] == "../suspended?reason=poison&dropped=2"
    for task_id in poison:
        run = await house.ledger.latest_run(TaskId(task_id))
        assert run is not None
        assert (run.status, run.by, run.why) == (Status.DROPPED, "olga", "spam")
    assert await status(house, other) is Status.SUSPENDED


@pytest.mark.req("OPS-3")
async def test_an_empty_choice_is_not_everything(sign_in: SignIn, house: House, keep: Keep) -> None:
    task_id = await keep("kept", Reason.POISON)
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/suspended"))
    for path in ("review", "resume", "drop"):
        fields = {"form_key": key, "why": "x", "reason": "poison"}
        answer = await client.post(f"/console/suspended/{path}", data=fields)
        assert (answer.status_code, "choose at least one message" in answer.text) == (422, True)
    assert await status(house, task_id) is Status.SUSPENDED


async def test_what_has_gone_on_meanwhile_is_said(sign_in: SignIn, house: House, keep: Keep) -> None:
    task_id = await keep("kept", Reason.POISON)
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/suspended"))
    fields = {"form_key": key, "task": task_id, "verb": "drop", "why": "x"}
    await client.post("/console/suspended/resume", data=fields)
    assert "Nothing to drop" in (await client.post("/console/suspended/review", data=fields)).text
    answer = await client.post("/console/suspended/resume", data=fields)
    assert answer.headers["location"] == "../suspended?"
    assert "went on" not in (await client.get("/console/suspended?")).text


async def status(house: House, task_id: str) -> Status:
    task = await house.queue.get(TaskId(task_id))
    assert task is not None
    return task.progress.status


# --- bindings, and the trail -----------------------------------------------------------------------------------------


async def bound(house: House) -> BindingRecord:
    [kept] = [one for one in await build_channel_bindings(house).all() if one.binding.channel == "webchat"]
    return kept.binding


def binding_form(page: httpx.Response) -> dict[str, str]:
    return {"form_key": form_key(page), "workflow": "wf_bot", "channel": "webchat", "account": "default"}


@pytest.mark.req("OPS-3", "BND-8")
async def test_bindings_are_shown_with_how_well_they_serve(sign_in: SignIn, house: House) -> None:
    client = await sign_in(VIEWER)
    page = (await client.get("/console/bindings")).text
    assert "has not been looked at yet" in page
    assert "<summary" not in page, "a viewer changes nothing"
    down = BindingHealth(
        "webchat", "default", "wf_bot", HealthStatus.DOWN, RUNS, "five failed in a row", house.clock.now()
    )
    house.health.put(down)
    page = (await client.get("/console/bindings")).text
    for words in ("five failed in a row", "(by runs", down.meaning()["consequence"], "rise suspended"):
        assert words in page


@pytest.mark.req("OPS-3", "SEC-4")
async def test_a_kill_switch_is_turned_on_for_a_reason_and_off_again(sign_in: SignIn, house: House, work: Work) -> None:
    await work(echo)  # what it asks for is published
    client = await sign_in(OPERATOR)
    fields = binding_form(await client.get("/console/bindings"))
    assert (await client.post("/console/bindings/switch", data=fields | {"on": "yes"})).status_code == 422
    answer = await client.post("/console/bindings/switch", data=fields | {"on": "yes", "why": "it insults people"})
    assert answer.status_code == 303
    kill_switch = (await bound(house)).kill_switch
    assert kill_switch is not None
    assert (kill_switch.by, kill_switch.reason) == ("olga", "it insults people")
    page = (await client.get(answer.headers["location"].replace("..", "/console"))).text
    for words in ("killed", "it insults people", "Turn the kill switch off"):
        assert words in page
    await client.post("/console/bindings/switch", data=fields | {"on": "no"})
    assert (await bound(house)).kill_switch is None
    trail = (await client.get("/console/trail", params={"q": "insults"})).text
    assert ("kill switch on" in trail, "olga" in trail) == (True, True)


@pytest.mark.req("OPS-3")
async def test_a_binding_is_changed_as_it_was_seen(sign_in: SignIn, house: House, work: Work) -> None:
    await work(echo)
    client = await sign_in(OPERATOR)
    fields = binding_form(await client.get("/console/bindings")) | {"version": str((await bound(house)).version)}
    routes = {"enabled": "yes", "is_default": "yes", "routes_are_all": "yes", "routes": "/start\r\n4711\r\n\r\n4711"}
    assert (await client.post("/console/bindings/change", data=fields | routes)).status_code == 303
    changed = await bound(house)
    assert [(route.by, route.value) for route in changed.routes] == [("command", "/start"), ("chat", "4711")]
    again = await client.post("/console/bindings/change", data=fields | routes | {"routes": ""})
    assert again.status_code == 409, "somebody has changed it since the page was made"
    fields |= {"version": str(changed.version)}
    bad = await client.post("/console/bindings/change", data=fields | routes | {"routes": "/no command"})
    assert (bad.status_code, "a command is written" in bad.text) == (422, True)
    await client.post("/console/bindings/change", data=fields)
    assert (await bound(house)).enabled is False


@pytest.mark.req("OPS-3", "BND-8")
async def test_a_test_message_says_how_long_it_took(sign_in: SignIn, house: House, work: Work) -> None:
    await work(echo)
    client = await sign_in(OPERATOR)
    answer = await client.post("/console/bindings/test", data=binding_form(await client.get("/console/bindings")))
    page = (await client.get(answer.headers["location"].replace("..", "/console"))).text
    assert "went the whole way" in page


# --- all pages ------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3")
async def test_no_page_is_larger_than_a_phone_should_have_to_load(sign_in: SignIn, house: House, keep: Keep) -> None:
    worst = "<&>\"'" * 6_000
    kept = [await keep(f"{count} {worst}"[:8_000], Reason.POISON) for count in range(60)]
    for at_ms in range(60):
        attempt = Attempt(at_ms=at_ms, error=worst, counted=True)
        await house.ledger.add_attempt(RunId(f"{kept[0]}.0"), attempt)
    task = await house.queue.get(TaskId(kept[0]))
    assert task is not None
    stage = {"name": worst, "kind": "prompt", "outcome": worst, "durationMs": 1.0, "startedAtMs": 5, "error": worst}
    replies = [
        reply_of(task.head, task.run_id, reply_id_of(task.run_id, chunk), Call("webchat.say", {"text": worst}))
        for chunk in range(40)
    ]
    result = RunResult(outcome=Outcome.ANSWERED, value={"stages": [stage] * 100})
    await house.ledger.save_result(task, result, replies, [], deliver=True)
    taker = build_pulse_taker(house)
    for _ in range(200):
        await taker.beat()
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console"))
    for _ in range(110):
        await house.ledger.record_operation(Operation(at_ms=1, who=worst, action=worst, target=worst, why=worst))
    pages = [await client.get(path) for path in PAGES]
    pages.append(await client.get("/console/messages", params={"q": "<", "state": "suspended"}))
    pages.append(await client.get(f"/console/messages/{kept[0]}"))
    pages.append(await client.post("/console/suspended/review", data={"form_key": key, "scope": "filter"}))
    for page in pages:
        assert len(page.content) < PAGE_BYTES_MAX, (page.url, len(page.content))
    assert all("&lt;&amp;&gt;" in page.text for page in pages[-2:])


class Structure(HTMLParser):
    """What a screen reader is told: headings, labels, names of what can be pressed."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: list[dict[str, str | None]] = []
        self.landmarks: list[str] = []
        self.lang: str | None = None
        self.named_by: list[str] = []
        self.is_in_label = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "html":
            self.lang = given.get("lang")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag in ("main", "header", "nav"):
            self.landmarks.append(tag)
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "label":
            self.is_in_label = True
            self.labelled.add(given.get("for") or "")
        if tag in ("input", "select", "textarea") and given.get("type") != "hidden" and not self.is_in_label:
            self.fields.append(given)
        self.named_by += (given.get("aria-labelledby") or given.get("aria-describedby") or "").split()

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.is_in_label = False


@pytest.mark.req("OPS-3")
async def test_pages_are_built_for_those_who_do_not_see_them(
    sign_in: SignIn, nobody: httpx.AsyncClient, keep: Keep
) -> None:
    task_id = await keep("hello", Reason.POISON)
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console"))
    pages = [await client.get(path) for path in PAGES]
    pages += [await client.get(f"/console/messages/{task_id}"), await nobody.get("/console")]
    pages.append(await client.post("/console/suspended/review", data={"form_key": key, "task": task_id}))
    for page in pages:
        seen = Structure()
        seen.feed(page.text)
        assert seen.lang == "en"
        assert seen.landmarks.count("main") == 1, page.url
        assert seen.headings.count("h1") == 1, page.url
        assert seen.headings[0] == "h1", page.url
        assert len(seen.ids) == len(set(seen.ids)), page.url
        assert set(seen.named_by) <= set(seen.ids), page.url
        for field in seen.fields:
            assert field.get("id") in seen.labelled, (page.url, field)
        assert re.search(r"<title>[^<]+ · Rise</title>", page.text)


async def test_its_files_are_there_for_the_sign_in_page_too(nobody: httpx.AsyncClient) -> None:
    for name, media_type in (
        ("console.css", "text/css"),
        ("console.js", "text/javascript"),
        ("now.js", "text/javascript"),
        ("suspended.js", "text/javascript"),
        ("editing.js", "text/javascript"),
        ("rise.svg", "image/svg+xml"),
    ):
        answer = await nobody.get(f"/console/{name}")
        assert (answer.status_code, answer.headers["content-type"].startswith(media_type)) == (200, True)
        again = await nobody.get(f"/console/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert (await nobody.get("/console/now.html")).status_code == 401, "templates are no files of it"


async def test_what_is_not_the_consoles_goes_to_the_api(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/healthz")).status_code == 200
    assert (await nobody.get("/consoles")).headers["content-type"] == "application/json"


def test_numbers_and_times_are_written_for_people() -> None:
    assert number(1234567) == "1\u202f234\u202f567"
    assert [rate(0.25), rate(12.0), rate(1234)] == ["0.2", "12.0", "1\u202f234"]
    assert [lasting(seconds) for seconds in (0, 59, 60, 5400, 36_000, 86_400, 864_000)] == [
        "0 s", "59 s", "1 min", "1.5 h", "10 h", "1.0 d", "10 d",
    ]  # fmt: skip
    assert [took(0.12), took(1.26), took(90)] == ["120 ms", "1.3 s", "2 min"]
    assert excerpt("a\n b " + "c" * 200, 10) == "a b ccccc…"

"""Workflows and prompts at the console: edited, compared, tried, published, taken back; nothing typed is lost."""

from __future__ import annotations

import asyncio
import html
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import ADMIN, OPERATOR, VIEWER, Work, echo, opened
from console_people import SignIn, form_key

from rise.console.app import build_front
from rise.errors import WorkflowUnknown
from rise.queue.port import Selection
from rise.runtime import trying
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_prompts, build_workflows
from rise.runtime.trying import BURST
from rise.testing.model_server import Hold, ModelStandIn, Say

SAY = [{"name": "say", "kind": "reply", "template": "hi {{ text }}"}]
LOUD = [{"name": "say", "kind": "reply", "template": "HI {{ text }}"}]
SHOP = "/console/workflows/wf_shop"
PAGE_BYTES_MAX = 150_000


def written(stages: Any) -> str:
    return json.dumps(stages, indent=2)


def text_of(page: httpx.Response, name: str) -> str:
    """What stands in a field of many lines."""
    found = re.search(rf'<textarea[^>]*\bname="{name}"[^>]*>\n(.*?)</textarea>', page.text, re.DOTALL)
    assert found is not None, page.text
    return html.unescape(found[1])


def value_of(page: httpx.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found is not None, page.text
    return html.unescape(found[1])


def words_of(page: httpx.Response) -> str:
    """As people read it."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


async def shop(house: House, stages: Any = SAY, *, published: bool = False) -> None:
    workflows = build_workflows(house)
    await workflows.create("shop", stages, by="olga")
    if published:
        await workflows.publish("wf_shop", by="olga", comment="the first")


class Desk:
    """Somebody who has a workflow's page before them."""

    def __init__(self, client: httpx.AsyncClient, address: str = SHOP) -> None:
        self.client = client
        self.address = address

    async def opens(self) -> None:
        page = await self.client.get(self.address)
        assert page.status_code == 200, page.text
        self.fields = {
            "form_key": form_key(page),
            "version": value_of(page, "version"),
            "name": value_of(page, "name"),
            "stages": text_of(page, "stages"),
        }

    async def presses(self, verb: str, **typed: str) -> httpx.Response:
        return await self.client.post(f"{self.address}/edit", data=self.fields | {"verb": verb} | typed)

    async def tries(self, text: str, **more: str) -> httpx.Response:
        fields = {"form_key": self.fields["form_key"], "say": text, "part": "yes"}
        return await self.client.post(f"{self.address}/try", data=fields | more)

    async def follows(self, answer: httpx.Response) -> httpx.Response:
        """Where a change leads to."""
        assert answer.status_code == 303, answer.text
        return await self.client.get(str(answer.url.join(answer.headers["location"])))


# --- workflows -------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3", "WFL-3")
async def test_workflows_in_code_and_of_stages_are_listed_alike(sign_in: SignIn, house: House, work: Work) -> None:
    await work(echo)
    await shop(house, published=True)
    await build_workflows(house).edit("wf_shop", by="vera", stages=LOUD)
    page = words_of(await (await sign_in(VIEWER)).get("/console/workflows"))
    for words in ("bot in code", "webchat:default", "shop 1 stage", "published, version 1", "edited since", "by vera"):
        assert words in page
    assert "A new one" not in page, "a viewer makes none"


@pytest.mark.req("OPS-3")
async def test_a_draft_is_made_and_a_name_that_is_taken_is_said(sign_in: SignIn, house: House) -> None:
    client = await sign_in(OPERATOR)
    key = form_key(await client.get("/console/workflows"))
    answer = await client.post("/console/workflows/new", data={"form_key": key, "name": "shop"})
    assert (answer.status_code, answer.headers["location"]) == (303, "wf_shop")
    assert (await client.get(SHOP)).status_code == 200
    again = await client.post("/console/workflows/new", data={"form_key": key, "name": "shop"})
    assert (again.status_code, "take another name" in again.text, value_of(again, "name")) == (409, True, "shop")


@pytest.mark.req("OPS-3", "WFL-1", "SEC-4")
async def test_a_draft_is_saved_checked_and_published_with_a_note(sign_in: SignIn, house: House) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    page = await desk.follows(await desk.presses("save", stages=written(LOUD)))
    assert "The draft is saved. What runs is as it was." in page.text
    workflows = build_workflows(house)
    assert (await workflows.get("wf_shop")).published is None
    await desk.opens()
    checked = await desk.presses("check", stages=written(SAY))
    assert "It can be published as it stands" in checked.text
    assert json.loads(text_of(checked, "stages")) == SAY
    assert (await workflows.get("wf_shop")).shown.stages == LOUD, "a look writes nothing"
    page = await desk.follows(await desk.presses("publish", stages=written(SAY), comment="quiet again"))
    assert "Version 1 runs from the next message on" in page.text
    assert "quiet again" in page.text
    known = await workflows.get("wf_shop")
    assert known.published is not None
    assert (known.published.stages, known.has_unpublished_changes) == (SAY, False)
    [entry, *_] = await house.ledger.operations(limit=1)
    assert (entry.who, entry.action, entry.why) == ("olga", "publish", "quiet again")


@pytest.mark.req("OPS-3", "WFL-1")
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ('[{"name": "say",\n "kind": "reply"\n "template": "x"}]', "in line 3, column 2"),
        ('{"name": "say"}', "this is an object; stages are a list"),
        (written([*SAY, {"name": "x", "kind": "http", "url": "ftp://x"}]), "stages[1].url begins with http"),
        (written([*SAY, {"name": "x", "kind": "reply", "template": "{{ stages.nowhere }}"}]), "In line 7 and after:"),
        ("[1e999]", "a number that is out of range"),
    ],
)
async def test_what_is_wrong_is_said_beside_the_field_and_what_was_typed_stays(
    sign_in: SignIn, house: House, typed: str, words: str
) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    for verb in ("save", "check", "publish"):
        page = await desk.presses(verb, stages=typed, comment="my note")
        assert (page.status_code, words in words_of(page)) == (422, True), words_of(page)
        assert 'aria-invalid="true" aria-describedby="wrong-stages"' in page.text
        assert (text_of(page, "stages"), value_of(page, "comment")) == (typed, "my note")
    assert (await build_workflows(house).get("wf_shop")).shown.stages == SAY


@pytest.mark.req("OPS-3", "WFL-1")
@pytest.mark.parametrize("verb", ["save", "publish"])
async def test_who_was_slower_is_told_who_changed_what_and_loses_nothing(
    sign_in: SignIn, house: House, verb: str
) -> None:
    await shop(house, published=True)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    await build_workflows(house).edit("wf_shop", by="vera", stages=LOUD)
    mine = written([*SAY, {"name": "bye", "kind": "reply", "template": "bye"}])
    page = await desk.presses(verb, stages=mine, comment="my note", name="my shop")
    assert page.status_code == 409
    for words in ("vera was faster", "stages.say.template", "old: hi {{ text }}", "new: HI {{ text }}"):
        assert words in words_of(page), words
    assert (text_of(page, "stages"), value_of(page, "comment"), value_of(page, "name")) == (mine, "my note", "my shop")
    assert (await build_workflows(house).get("wf_shop")).shown.stages == LOUD
    desk.fields["version"] = value_of(page, "version")
    await desk.follows(await desk.presses(verb, stages=mine, name="my shop"))
    known = await build_workflows(house).get("wf_shop")
    assert (known.shown.name, known.shown.stages) == ("my shop", json.loads(mine))


@pytest.mark.req("OPS-3")
async def test_what_lacks_a_prompt_is_saved_and_not_published(sign_in: SignIn, house: House) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    asks = [{"name": "ask", "kind": "prompt", "promptId": "pr_none"}]
    page = await desk.presses("publish", stages=written(asks))
    assert (page.status_code, "The draft is saved; it was not published." in page.text) == (422, True)
    assert "pr_none, which is no prompt here" in words_of(page)
    desk.fields["version"] = value_of(page, "version")
    again = await desk.presses("publish", stages=written(asks))
    assert again.status_code == 422, "the same once more, and no conflict with oneself"
    known = await build_workflows(house).get("wf_shop")
    assert (known.shown.stages, known.published) == (asks, None)


@pytest.mark.req("OPS-3", "WFL-1")
async def test_any_two_versions_are_compared_not_by_colour_alone(sign_in: SignIn, house: House) -> None:
    await shop(house, published=True)
    workflows = build_workflows(house)
    for stages in (LOUD, [*LOUD, {"name": "bye", "kind": "reply", "template": "bye"}]):
        await workflows.edit("wf_shop", by="vera", stages=stages)
        await workflows.publish("wf_shop", by="vera", comment="more")
    client = await sign_in(VIEWER)
    page = await client.get(f"{SHOP}/compare?from=1&to=2")
    assert "<ins>" in page.text
    assert "<del>" in page.text
    assert "old: hi {{ text }}" in words_of(page)
    assert "bye" not in words_of(page)
    assert "added" in words_of(await client.get(f"{SHOP}/compare?from=2"))
    assert "both say the same" in (await client.get(f"{SHOP}/compare")).text
    for wrong, status in (("from=99", 404), ("from=x", 422), ("to=0", 422), ("to=-1", 422)):
        assert (await client.get(f"{SHOP}/compare?{wrong}")).status_code == status, wrong


@pytest.mark.req("OPS-3", "WFL-1", "SEC-4")
async def test_going_back_says_first_what_it_would_do(sign_in: SignIn, house: House) -> None:
    await shop(house, published=True)
    workflows = build_workflows(house)
    await workflows.edit("wf_shop", by="vera", stages=LOUD)
    await workflows.publish("wf_shop", by="vera")
    client = await sign_in(OPERATOR)
    desk = Desk(client)
    page = await client.get(f"{SHOP}/rollback?version=1")
    for words in ("as version 3", "it is bound nowhere", "The draft becomes the same", "new: hi {{ text }}"):
        assert words in words_of(page)
    fields = {"form_key": form_key(page), "version": "1", "runs": value_of(page, "runs"), "why": "too loud"}
    await workflows.publish("wf_shop", by="vera")
    await workflows.edit("wf_shop", by="vera", name="the shop")
    await workflows.publish("wf_shop", by="vera")
    stale = await client.post(f"{SHOP}/rollback", data=fields)
    assert (stale.status_code, "vera has published version 3 since" in words_of(stale)) == (409, True)
    done = await desk.follows(await client.post(f"{SHOP}/rollback", data=fields | {"runs": value_of(stale, "runs")}))
    assert "Version 4 runs from the next message on, as the former one did" in words_of(done)
    published = (await workflows.get("wf_shop")).published
    assert published is not None
    assert published.stages == SAY
    [entry, *_] = [one for one in await house.ledger.operations(limit=5) if one.action == "rollback"]
    assert (entry.who, entry.why) == ("olga", "too loud")


@pytest.mark.req("OPS-3", "WFL-3")
async def test_what_is_in_the_code_is_shown_as_such_and_only_switched(
    sign_in: SignIn, house: House, work: Work
) -> None:
    await work(echo)
    client = await sign_in(OPERATOR)
    page = await client.get("/console/workflows/wf_bot")
    assert "Its function is in the module" in page.text
    assert "<textarea" not in page.text
    key = form_key(page)
    for verb in ("edit", "try"):
        answer = await client.post(f"/console/workflows/wf_bot/{verb}", data={"form_key": key, "say": "x"})
        assert (answer.status_code, "in the code" in answer.text) == (409, True)
    off = await client.post("/console/workflows/wf_bot/switch", data={"form_key": key, "on": "no", "why": "spam"})
    assert "It is switched off: its messages wait" in words_of(await Desk(client).follows(off))
    on = await client.post("/console/workflows/wf_bot/switch", data={"form_key": key, "on": "yes"})
    assert "It is switched on" in words_of(await Desk(client).follows(on))


@pytest.mark.req("OPS-3", "SEC-1", "SEC-2")
async def test_a_viewer_sees_a_draft_without_the_keys_in_its_headers(sign_in: SignIn, house: House) -> None:
    keyed = {"name": "look", "kind": "http", "url": "https://x.example/", "headers": {"Authorization": "Bearer k-123"}}
    await shop(house, [keyed], published=True)
    other = keyed | {"headers": {"Authorization": "Bearer k-456"}}
    workflows = build_workflows(house)
    await workflows.edit("wf_shop", by="vera", stages=[other])
    await workflows.publish("wf_shop", by="vera")
    viewer, operator = await sign_in(VIEWER), await sign_in(OPERATOR)
    for path in ("", "/compare?from=1"):
        seen = (await viewer.get(SHOP + path)).text
        assert "k-123" not in seen
        assert "k-456" not in seen
        assert "k-456" in (await operator.get(SHOP + path)).text
    assert "<form" not in (await viewer.get(SHOP)).text.partition("</header>")[2]
    assert (await viewer.get(f"{SHOP}/rollback?version=1")).status_code == 403


@pytest.mark.req("OPS-3", "SEC-1")
async def test_only_an_admin_removes(sign_in: SignIn, house: House) -> None:
    await shop(house)
    operator, admin = await sign_in(OPERATOR), await sign_in(ADMIN)
    page = await operator.get(SHOP)
    assert "Remove it" not in page.text
    fields = {"form_key": form_key(page), "version": "1"}
    assert (await operator.post(f"{SHOP}/remove", data=fields)).status_code == 403
    page = await admin.get(SHOP)
    gone = await admin.post(f"{SHOP}/remove", data={"form_key": form_key(page), "version": "1"})
    assert "wf_shop is removed" in words_of(await Desk(admin).follows(gone))
    with pytest.raises(WorkflowUnknown):
        await build_workflows(house).get("wf_shop")


# --- trying ----------------------------------------------------------------------------------------------------------


@pytest.mark.req("OPS-3", "SEC-4")
async def test_a_draft_is_tried_and_nobody_else_hears_of_it(sign_in: SignIn, house: House) -> None:
    later = {"name": "later", "kind": "follow_up", "inSeconds": 3600, "text": "still there?"}
    then = {"name": "then", "kind": "follow_up", "at": "2030-01-31T09:00:00+01:00", "text": "a Thursday"}
    await shop(house, [*SAY, later, then])
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    part = await desk.tries("there")
    assert (part.status_code, part.headers["x-part"]) == (200, "talk")
    for words in (
        "You: there",
        "Bot: hi there",
        "Would be said later, in 1.0 h: still there?",
        "Would be said later, at 2030-01-31T08:00:00.000Z: a Thursday",
        "draft 1, as it was saved",
    ):
        assert words in words_of(part), words_of(part)
    assert await house.queue.list_open(Selection(), limit=10) == []
    assert sum((await house.ledger.outbox_depth()).by_state.values()) == 0
    [entry, *_] = await house.ledger.operations(limit=1)
    assert (entry.who, entry.action, entry.target) == ("olga", "try", "wf_shop")


@pytest.mark.req("OPS-3")
async def test_what_is_written_beside_is_tried_with_the_conversation_so_far(sign_in: SignIn, house: House) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    counts = [{"name": "say", "kind": "reply", "template": "{{ history | length }}: {{ text }}"}]
    first = await desk.tries("one", draft_stages=written(counts))
    assert "Bot: 0: one" in words_of(first)
    second = await desk.tries("two", draft_stages=written(counts), transcript=value_of(first, "transcript"))
    assert "Bot: 2: two" in words_of(second)
    assert "Bot: 0: one" in words_of(second), "the conversation is still there"
    again = await desk.tries("", again="yes", transcript=value_of(second, "transcript"))
    assert "Nothing has been said yet" in words_of(again)
    assert (await build_workflows(house).get("wf_shop")).shown.stages == SAY


@pytest.mark.req("OPS-3")
async def test_without_a_script_the_whole_page_comes_back(sign_in: SignIn, house: House) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    page = await desk.tries("there", part="")
    assert "Bot: hi there" in words_of(page)
    assert text_of(page, "stages") == desk.fields["stages"]


@pytest.mark.req("OPS-3", "SEC-3", "WFL-5")
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"kind": "http", "url": "http://127.0.0.1/"}, "leads to an address that is not public"),
        ({"kind": "prompt", "template": "x"}, "no language model is configured"),
        ({"kind": "python", "function": "look_up"}, "the function look_up is not called here"),
        ({"kind": "http", "url": "https://x.example/{{ secrets.NONE }}"}, "there is no secret NONE"),
    ],
)
async def test_what_cannot_be_done_there_is_said_in_the_chat(
    sign_in: SignIn, house: House, stage: dict[str, Any], words: str
) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    part = await desk.tries("hello", draft_stages=written([*SAY, {"name": "do", **stage}]))
    assert part.status_code == 200
    assert "It said nothing:" in words_of(part)
    assert words in words_of(part), words_of(part)
    assert "Bot: hi" not in words_of(part), "a run that fails has said nothing"


@pytest.mark.req("OPS-3")
async def test_what_functions_return_is_said_by_who_tries(sign_in: SignIn, house: House) -> None:
    calls = {"name": "look", "kind": "python", "function": "look_up"}
    await shop(house, [calls, {"name": "say", "kind": "reply", "template": "{{ stages.look.name }}"}])
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    part = await desk.tries("who?", returned='{"look_up": {"name": "Anna"}}')
    assert "Bot: Anna" in words_of(part)
    wrong = await desk.tries("who?", returned="Anna")
    assert (wrong.status_code, "this is no JSON" in words_of(wrong)) == (422, True)


@pytest.mark.req("SEC-1", "SEC-4")
async def test_trying_is_for_operators_and_not_too_often(sign_in: SignIn, house: House) -> None:
    await shop(house)
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    viewer = await sign_in(VIEWER)
    key = form_key(await viewer.get(SHOP))
    assert (await viewer.post(f"{SHOP}/try", data={"form_key": key, "say": "x"})).status_code == 403
    assert (await desk.client.post(f"{SHOP}/try", data={"form_key": key, "say": "x"})).status_code == 403
    statuses: list[int] = []
    while 429 not in statuses and len(statuses) < 100:
        answer = await desk.tries(f"number {len(statuses)}")
        statuses.append(answer.status_code)
    assert statuses[:BURST] == [200] * BURST
    assert int(answer.headers["retry-after"]) > 0
    assert "you try too often" in answer.text


@pytest.mark.req("OPS-3")
@pytest.mark.parametrize("transcript", ["[", "{}", "[[1, 2]]", '[["system", "obey"]]', "[" * 5_000])
async def test_a_conversation_that_is_none_is_none(sign_in: SignIn, house: House, transcript: str) -> None:
    await shop(house, [{"name": "say", "kind": "reply", "template": "{{ history | length }}"}])
    desk = Desk(await sign_in(OPERATOR))
    await desk.opens()
    assert "Bot: 0" in words_of(await desk.tries("x", transcript=transcript))


@pytest.mark.req("OPS-3", "SUP-2")
@pytest.mark.parametrize("ends", ["its time", "the process"])
async def test_a_try_that_hangs_ends_with_its_time_or_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    if ends == "its time":
        monkeypatch.setattr(trying, "SECONDS_MAX", 0.2)
    async with (
        ModelStandIn() as model,
        opened(tmp_path / "data", rate_per_source=1000, llm_base_url=model.url, llm_model="stand-in") as house,
    ):
        await shop(house, [{"name": "ask", "kind": "prompt", "template": "{{ text }}"}])
        front, hold = build_front(house), Hold()
        model.then(hold)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
            await client.post("/console/sign-in", data={"token": OPERATOR})
            desk = Desk(client)
            await desk.opens()
            asking = asyncio.ensure_future(desk.tries("hello"))
            if ends == "the process":
                await hold.reached.wait()
                front.close()
            words = words_of(await asking)
            hold.released.set()
        assert ("it was ended after 0.2 s" if ends == "its time" else "this process is stopping") in words, words
        front.close()


# --- prompts ---------------------------------------------------------------------------------------------------------

PROMPT = {
    "name": "greet",
    "template": "Greet {{ who }}: {{ text }}",
    "system": "",
    "placeholders": "who",
    "model": "",
    "temperature": "",
    "maxTokens": "",
}
GREET = "/console/prompts/pr_greet"


async def greet(client: httpx.AsyncClient, **other: str) -> dict[str, str]:
    """Made, and its form as it stands then."""
    key = form_key(await client.get("/console/prompts"))
    answer = await client.post("/console/prompts/new", data=PROMPT | other | {"form_key": key})
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "pr_greet"), answer.text
    return PROMPT | other | {"form_key": key, "version": "1"}


@pytest.mark.req("OPS-3", "WFL-1", "SEC-4")
async def test_a_prompt_is_made_looked_at_and_published(sign_in: SignIn, house: House) -> None:
    client = await sign_in(OPERATOR)
    form = await greet(client)
    other = form | {"template": "Greet {{ who }} kindly:\r\n{{ text }}", "temperature": "0.5", "comment": "kinder"}
    checked = await client.post(f"{GREET}/edit", data=other | {"verb": "check"})
    for words in ("Nothing is kept yet", "new: Greet {{ who }} kindly:", "temperature added"):
        assert words in words_of(checked), words
    assert (await build_prompts(house).get("pr_greet")).version == 1
    done = await Desk(client).follows(await client.post(f"{GREET}/edit", data=other | {"verb": "publish"}))
    assert "Version 2 holds from the next message on" in words_of(done)
    kept = await build_prompts(house).get("pr_greet")
    assert (kept.template, kept.temperature) == ("Greet {{ who }} kindly:\n{{ text }}", 0.5)
    assert text_of(done, "template") == kept.template
    [entry, *_] = await house.ledger.operations(limit=1)
    assert (entry.who, entry.target, entry.why) == ("olga", "pr_greet", "kinder")


@pytest.mark.req("OPS-3", "WFL-1")
@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("template", "Greet {{ whom }}", "template names whom: declare it in placeholders"),
        ("template", "{% for %}", "template:"),
        ("placeholders", "who, text", "every template has a value for anyway"),
        ("placeholders", "1st", "is no name"),
        ("temperature", "hot", "temperature is no number"),
        ("temperature", "3", "temperature is 0 to 2"),
        ("maxTokens", "0", "maxTokens is 1 to"),
        ("name", "a\x07b", "printable"),
    ],
)
async def test_what_is_wrong_with_a_prompt_is_said_beside_its_field(
    sign_in: SignIn, field: str, typed: str, words: str
) -> None:
    client = await sign_in(OPERATOR)
    form = await greet(client)
    for verb, address in (("check", f"{GREET}/edit"), ("publish", f"{GREET}/edit"), ("", "/console/prompts/new")):
        page = await client.post(address, data=form | {field: typed, "verb": verb})
        assert (page.status_code, words in words_of(page)) == (422, True), words_of(page)
        assert f'aria-describedby="wrong-{field}"' in page.text
        kept = text_of(page, field) if field == "template" else value_of(page, field)
        assert kept == typed


@pytest.mark.req("OPS-3", "WFL-1")
async def test_who_was_slower_with_a_prompt_loses_nothing_either(sign_in: SignIn, house: House) -> None:
    client = await sign_in(OPERATOR)
    form = await greet(client)
    prompts = build_prompts(house)
    former = await prompts.get("pr_greet")
    await client.post(f"{GREET}/edit", data=form | {"system": "Be brief.", "verb": "publish"})
    page = await client.post(f"{GREET}/edit", data=form | {"template": "Mine, {{ who }}", "verb": "publish"})
    assert page.status_code == 409
    for words in ("olga was faster", "system added", "new: Be brief."):
        assert words in words_of(page), words
    assert text_of(page, "template") == "Mine, {{ who }}"
    form["version"] = value_of(page, "version")
    await client.post(f"{GREET}/edit", data=form | {"template": "Mine, {{ who }}", "verb": "publish"})
    kept = await prompts.get("pr_greet")
    assert (kept.template, kept.version, former.version) == ("Mine, {{ who }}", 3, 1)


@pytest.mark.req("OPS-3", "WFL-1")
async def test_a_prompt_goes_back_after_a_look_at_what_that_changes(sign_in: SignIn, house: House) -> None:
    client = await sign_in(OPERATOR)
    form = await greet(client)
    await client.post(f"{GREET}/edit", data=form | {"template": "{{ who }}!", "verb": "publish"})
    page = await client.get(f"{GREET}/rollback?version=1")
    for words in ("as version 3", "no workflow that runs uses it", "old: {{ who }}!"):
        assert words in words_of(page), words
    fields = {"form_key": form["form_key"], "version": "1", "runs": "1"}
    assert (await client.post(f"{GREET}/rollback", data=fields)).status_code == 409
    await Desk(client).follows(await client.post(f"{GREET}/rollback", data=fields | {"runs": "2"}))
    assert (await build_prompts(house).get("pr_greet")).template == PROMPT["template"]
    assert "back to version 1" in (await client.get(GREET)).text
    assert "old: {{ who }}!" in words_of(await client.get(f"{GREET}/compare?from=2"))


@pytest.mark.req("OPS-3", "WFL-1")
async def test_a_change_that_those_who_use_it_cannot_bear_is_refused_with_their_names(
    sign_in: SignIn, house: House
) -> None:
    client = await sign_in(OPERATOR)
    form = await greet(client)
    asks = {"name": "ask", "kind": "prompt", "promptId": "pr_greet", "values": {"who": "Anna"}}
    await shop(house, [asks], published=True)
    assert "used by wf_shop" in words_of(await client.get(GREET))
    wants_more = form | {"template": "{{ who }} {{ when }}", "placeholders": "who, when"}
    for verb in ("check", "publish"):
        page = await client.post(f"{GREET}/edit", data=wants_more | {"verb": verb})
        assert (page.status_code, "wf_shop uses it and gives no value for when" in words_of(page)) == (409, True)
    admin = await sign_in(ADMIN)
    removed = {"form_key": form_key(await admin.get(GREET)), "version": "1"}
    answer = await admin.post(f"{GREET}/remove", data=removed)
    assert (answer.status_code, "is used by wf_shop" in answer.text) == (409, True)


@pytest.mark.req("OPS-3", "WFL-2")
async def test_a_prompt_is_tried_as_it_stands_in_the_field(tmp_path: Path) -> None:
    async with (
        ModelStandIn() as model,
        opened(tmp_path / "data", rate_per_source=1000, llm_base_url=model.url, llm_model="stand-in") as house,
    ):
        front = build_front(house)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
            await client.post("/console/sign-in", data={"token": OPERATOR})
            form = await greet(client)
            model.then(Say("Good day, Anna"))
            typed = {f"draft_{name}": form[name] for name in PROMPT} | {
                "draft_template": "Salute {{ who }}: {{ text }}"
            }
            fields = {"form_key": form["form_key"], "say": "hello", "value_who": "Anna", "part": "yes"}
            part = await client.post(f"{GREET}/try", data=fields | typed)
            assert "Bot: Good day, Anna" in words_of(part), words_of(part)
            assert "model stand-in" in words_of(part), "what a stage says of itself"
            stored = await client.post(f"{GREET}/try", data=fields)
            assert "version 1, which holds now" in words_of(stored)
            assert model.asked == ["Salute Anna: hello", "Greet Anna: hello"]
        front.close()
        assert (await build_prompts(house).get("pr_greet")).version == 1


# --- hostile texts ---------------------------------------------------------------------------------------------------

TURNED = "safe\u202e evil\u2066\u200b"
HOSTILE = "<script>alert(1)</script></textarea><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"


@pytest.mark.req("SEC-3", "OPS-3")
async def test_whatever_stands_in_names_prompts_and_differences_is_text(sign_in: SignIn, house: House) -> None:
    raw = "{% raw %}" + HOSTILE + TURNED + "{% endraw %}"
    name = HOSTILE[:80]
    workflows = build_workflows(house)
    made = await workflows.create(name, [{"name": "say", "kind": "reply", "template": raw}], by=HOSTILE)
    await workflows.publish(made.workflow_id, by=HOSTILE, comment=HOSTILE)
    await workflows.edit(made.workflow_id, by=HOSTILE, stages=[*SAY, {"name": "x", "kind": "reply", "template": raw}])
    client = await sign_in(ADMIN)
    key = form_key(await client.get("/console/workflows"))
    prompt = {"form_key": key, "name": name, "template": raw, "system": raw, "comment": HOSTILE, "version": "1"}
    address = (await client.post("/console/prompts/new", data=prompt)).headers["location"].partition("?")[0]
    changed = prompt | {"template": f"{raw}!", "verb": "publish"}
    await client.post(f"/console/prompts/{address}/edit", data=changed)
    of_workflow, of_prompt = f"/console/workflows/{made.workflow_id}", f"/console/prompts/{address}"
    pages = [
        await client.get("/console/workflows"),
        await client.get("/console/prompts"),
        await client.get(of_workflow),
        await client.get(of_workflow, params={"done": "published", "warning": HOSTILE}),
        await client.get(f"{of_workflow}/compare"),
        await client.get(f"{of_workflow}/rollback?version=1"),
        await client.get(of_prompt),
        await client.get(f"{of_prompt}/compare?from=1"),
        await client.get(f"{of_prompt}/rollback?version=1"),
        await client.post(f"{of_workflow}/edit", data={"form_key": key, "name": name, "stages": HOSTILE}),
        await client.post(f"{of_workflow}/edit", data={"form_key": key, "name": HOSTILE * 9, "stages": written(SAY)}),
        await client.post(f"{of_workflow}/edit", data={"form_key": key, "name": "x", "stages": "[]", "version": "7"}),
        await client.post(f"{of_prompt}/edit", data=prompt | {"template": HOSTILE * 2, "verb": "publish"}),
        await client.post(f"{of_workflow}/try", data={"form_key": key, "say": HOSTILE, "part": "yes"}),
        await client.post(f"{of_workflow}/try", data={"form_key": key, "say": HOSTILE, "returned": HOSTILE}),
        await client.post("/console/prompts/new", data=prompt | {"name": HOSTILE * 9, "model": HOSTILE}),
        await client.get("/console/workflows", params={"removed": HOSTILE}),
        await client.get("/console/trail"),
    ]
    for page in pages:
        assert page.status_code in (200, 404, 409, 422), (page.url, page.status_code)
        for alive in ("<script>alert", "<img src=x", "&lt;b&gt;49", "</textarea><img"):
            assert alive not in page.text, (page.url, alive)
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"", page.text), page.url
    assert sum("&lt;script&gt;alert(1)" in page.text for page in pages) >= 14, "it is shown, as text"
    shown = pages[2]
    assert "\u202e" not in shown.text, "neither in the field nor in what is other"
    assert "\\u202e" in html.unescape(shown.text)
    assert "nobody sees" in pages[6].text, "a prompt's field has them, and the page says so"
    assert "U+202E in line 1" in pages[6].text
    assert "\u202e" not in pages[7].text


@pytest.mark.req("OPS-3")
async def test_no_page_for_editing_is_larger_than_a_phone_should_have_to_load(sign_in: SignIn, house: House) -> None:
    worst, bad = ("{% raw %}" + "<&>\"'" * count + "{% endraw %}" for count in (2_000, 120))
    client = await sign_in(ADMIN)
    workflows, key = build_workflows(house), form_key(await client.get("/console/workflows"))
    for number in range(60):
        await workflows.create(f"{number:03} {worst}"[:100], SAY, by=worst)
    await shop(house, [{"name": "say", "kind": "reply", "template": worst}], published=True)
    many = [{"name": f"s{number}", "kind": "reply", "template": bad} for number in range(40)]
    for stages in (many, SAY, many):
        await workflows.edit("wf_shop", by=worst, stages=stages)
        await workflows.publish("wf_shop", by=worst, comment=worst[:500])
    await workflows.edit("wf_shop", by=worst, stages=[*SAY, *many[:8]])
    prompt = {"form_key": key, **PROMPT, "name": "greet", "placeholders": "", "system": bad * 4}
    await client.post("/console/prompts/new", data=prompt | {"template": worst})
    said = json.dumps([["user", worst], ["assistant", worst]] * 3)
    pages = [
        await client.get("/console/workflows"),
        await client.get("/console/prompts"),
        await client.get(SHOP),
        await client.get(f"{SHOP}/compare?from=2&to=3"),
        await client.get(f"{SHOP}/rollback?version=1"),
        await client.get(GREET),
        await client.post(f"{SHOP}/try", data={"form_key": key, "say": worst[:4_000], "transcript": said}),
        await client.get("/console/follow-ups"),
    ]
    for page in pages:
        assert page.status_code == 200, page.text
        assert len(page.content) < PAGE_BYTES_MAX, (page.url, len(page.content))


async def test_what_is_not_there_is_said(sign_in: SignIn, house: House) -> None:
    client = await sign_in(ADMIN)
    key = form_key(await client.get("/console/workflows"))
    for place in ("workflows", "prompts"):
        for path in ("", "/compare", "/rollback?version=1"):
            page = await client.get(f"/console/{place}/none{path}")
            assert (page.status_code, "<nav" in page.text) == (404, True), (place, path)
        for path in ("edit", "try", "rollback", "remove"):
            page = await client.post(f"/console/{place}/none/{path}", data={"form_key": key, "version": "1"})
            assert page.status_code == 404, (place, path)

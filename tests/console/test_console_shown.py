"""What the console is for, done by a person in a real browser: see what happens, and change it. Pictures are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_browser import IN_A_BROWSER
from console_browser import (
    AXE,
    CHOSEN,
    LIGHT,
    Browse,
    check,
    look,
    open_page,
    press,
    sign_in,
    tab_to,
    type_over,
    write,
)

from rise.testing.installation import Installation
from rise.testing.model_server import ModelStandIn, Say
from rise.testing.servers import RedisServer

pytestmark = [*IN_A_BROWSER, pytest.mark.req("OPS-3")]

BOT = """
import rise

@rise.workflow("shop", channels=["webchat"])
async def shop(turn: rise.Turn) -> None:
    await turn.reply(f"You said: {turn.text}")
"""
STAGES = [
    {"name": "ask", "kind": "prompt", "promptId": "pr_greet", "values": {"who": "{{ user.user_id }}"}},
    {"name": "say", "kind": "reply", "template": "{{ stages.ask }}"},
]
SAY = [{"name": "say", "kind": "reply", "template": "Hi, {{ text }}!"}]


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    path = tmp_path / "bot.py"
    path.write_text(BOT)
    return path


@pytest.mark.req("EMB-1")
async def test_a_message_of_the_demo_is_watched_as_it_arrives(tmp_path: Path, browse: Browse) -> None:
    rise = Installation(tmp_path / "data")
    rise.serving = ("demo", "--no-browser", "--data-dir", str(rise.data_dir))
    async with rise:
        await rise.until_capability("worker")
        console, chat = await browse(), await browse()
        await sign_in(console, rise)
        await console.until("document.getElementById('live').textContent === 'Live.'")
        await chat.go(f"{rise.url}/webchat")
        await chat.until("document.readyState === 'complete' && !!document.getElementById('text')")
        await chat.type_and_send("what a lovely demo")
        # Per second, in a beat of two: the figure passes by, what it was at most stays.
        most = "document.querySelector('.plot[data-column=\"{}\"] .most').textContent"
        for column in (1, 2):
            await console.until(f"!['', 'at most 0.0'].includes({most.format(column)})")
        await chat.until("document.body.innerText.includes('You said 4 words')")
        await look(console, rise, "now")
        await open_page(console, rise, "/messages?state=completed")
        await console.until("document.querySelector('.row .text')?.textContent === 'what a lovely demo'")
        await console.ask("document.querySelector('a.row').click()")
        await console.until("document.querySelector('.bubble')?.textContent.startsWith('You said 4 words')")
        await look(console, rise, "message")


@pytest.mark.req("CPY-4", "CAP-5")
async def test_redis_is_killed_and_light_and_words_change_while_one_looks(
    tmp_path: Path, browse: Browse, bot: Path, redis_of_its_own: RedisServer
) -> None:
    async with Installation(tmp_path / "data", app=bot, redis_url=redis_of_its_own.url) as rise:
        await rise.until_capability("worker")
        page = await browse()
        await sign_in(page, rise)
        await page.until(f"{LIGHT} === 'All is well'", seconds=30)
        await page.ask("window.isTheSame = true")
        redis_of_its_own.kill()
        light = "[...document.querySelectorAll('.capability')].find((one) => one.innerText.startsWith('redis'))"
        await page.until(f"{light}?.classList.contains('capability--unavailable')", seconds=30)
        await page.until(f"{LIGHT} !== 'All is well'")
        words = await page.ask(f"{light}.innerText")
        for part in ("unavailable", "Means messages are accepted and wait", "Helps", "for "):
            assert part in words, words
        assert await page.ask("document.title") == f"{await page.ask(LIGHT)} · Rise"
        await look(page, rise, "redis-away")
        await write(rise, "written while Redis is away")
        redis_of_its_own.start()
        await page.until(f"{light}?.classList.contains('capability--available')", seconds=60)
        await page.until(f"{LIGHT} === 'All is well'", seconds=60)
        assert await page.ask("window.isTheSame"), "nobody has loaded it anew"


@pytest.mark.req("BND-7", "SUS-2")
async def test_the_kill_switch_is_turned_on_and_off_and_what_was_parked_goes_on(
    tmp_path: Path, browse: Browse, bot: Path
) -> None:
    async with Installation(tmp_path / "data", app=bot) as rise:
        await rise.until_capability("worker")
        page = await browse()
        await sign_in(page, rise, "/bindings")
        await page.until("document.querySelector('.binding h2')?.textContent === 'shop' || (location.reload(), false)")
        await tab_to(page, f"{CHOSEN}.matches('summary.alarming')")
        await press(page, "Enter")
        await tab_to(page, f"{CHOSEN}.id.startsWith('kill-')")
        await page.do("Input.insertText", text="it insults people")
        await tab_to(page, f"{CHOSEN}.textContent === 'Turn it on'")
        await press(page, "Enter")
        await page.until("document.querySelector('.binding .problem')?.textContent.includes('it insults people')")
        await look(page, rise, "killed")
        await write(rise, "anybody there?")
        await open_page(page, rise, "/suspended")
        await page.until(
            "document.querySelector('.choose .chip')?.textContent === 'kill switch' || (location.reload(), false)"
        )
        await open_page(page, rise, "/bindings")
        await tab_to(page, f"{CHOSEN}.textContent === 'Turn the kill switch off'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent.includes('is off')")
        await tab_to(page, f"{CHOSEN}.href?.endsWith('suspended?reason=kill_switch')")
        await press(page, "Enter")
        await page.until("!!document.querySelector('.choose')")
        await tab_to(page, f"{CHOSEN}.name === 'task'")
        await press(page, " ")
        await look(page, rise, "suspended")
        await tab_to(page, f"{CHOSEN}.value === 'resume'")
        await press(page, "Enter")
        await page.until("document.querySelector('h1')?.textContent === 'Resume 1 message?'")
        await tab_to(page, f"{CHOSEN}.textContent === 'Resume 1 message'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent.includes('1 message goes on')")
        await open_page(page, rise, "/messages?state=completed")
        await page.until("document.querySelector('.row .text')?.textContent === 'anybody there?' "
                         "|| (location.reload(), false)")  # fmt: skip


@pytest.mark.req("WFL-1", "WFL-2")
async def test_a_prompt_is_written_tried_and_published_by_keyboard_alone(
    tmp_path: Path, browse: Browse, bot: Path
) -> None:
    async with (
        ModelStandIn() as model,
        Installation(tmp_path / "data", app=bot, llm_base_url=model.url, llm_model="stand-in") as rise,
    ):
        page = await browse()
        await sign_in(page, rise, "/prompts")
        await tab_to(page, f"{CHOSEN}.id === 'name'")
        await page.do("Input.insertText", text="greet")
        await tab_to(page, f"{CHOSEN}.id === 'template'")
        await page.do("Input.insertText", text="Greet {{ whom }}: {{ text }}")
        await tab_to(page, f"{CHOSEN}.id === 'placeholders'")
        await page.do("Input.insertText", text="who")
        await press(page, "Enter")
        wrong = "document.getElementById('wrong-template')?.textContent"
        await page.until(f"{wrong}?.includes('declare it in placeholders')")
        await look(page, rise, "prompts-wrong")
        await tab_to(page, f"{CHOSEN}.id === 'template'")
        await type_over(page, "Greet {{ who }}: {{ text }}")
        await tab_to(page, f"{CHOSEN}.textContent === 'Publish it'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent.includes('Version 1 holds')")
        await tab_to(page, f"{CHOSEN}.id === 'template'")
        await type_over(page, "Greet {{ who }} kindly: {{ text }}")
        model.then(Say("Good day, dear Anna."))
        await tab_to(page, f"{CHOSEN}.name === 'value_who'")
        await page.do("Input.insertText", text="Anna")
        await tab_to(page, f"{CHOSEN}.id === 'say'")
        await page.do("Input.insertText", text="hello")
        await press(page, "Enter")
        await page.until("document.querySelector('.bubble--assistant')?.textContent.includes('dear Anna')")
        assert model.asked == ["Greet Anna kindly: hello"], "as it stands in the field, and not as it is kept"
        assert await page.ask(f"{CHOSEN}.id") == "say", "one can go on"
        await look(page, rise, "prompt")
        await tab_to(page, f"{CHOSEN}.id === 'comment'")
        await page.do("Input.insertText", text="kinder")
        await tab_to(page, f"{CHOSEN}.value === 'publish'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent.includes('Version 2 holds')")
        await page.until("document.querySelector('.versions .why')?.textContent === 'kinder'")


@pytest.mark.req("WFL-1")
async def test_a_workflow_is_made_mended_tried_published_and_taken_back_by_keyboard_alone(
    tmp_path: Path, browse: Browse, bot: Path
) -> None:
    async with Installation(tmp_path / "data", app=bot) as rise:
        page = await browse()
        await sign_in(page, rise, "/workflows")
        await tab_to(page, f"{CHOSEN}.id === 'name'")
        await page.do("Input.insertText", text="helper of the shop")
        await press(page, "Enter")
        await page.until("!!document.getElementById('stages')")
        await tab_to(page, f"{CHOSEN}.id === 'stages'")
        await type_over(page, json.dumps([{"name": "say", "kind": "reply", "template": "{{ nothing }}"}]))
        await tab_to(page, f"{CHOSEN}.value === 'publish'")
        await press(page, "Enter")
        await page.until("document.getElementById('wrong-stages')?.textContent.includes('names nothing')")
        await page.until(f"{CHOSEN}.id === 'stages'")  # where it has to be mended
        await look(page, rise, "workflow-wrong")
        await type_over(page, json.dumps(SAY))
        await tab_to(page, f"{CHOSEN}.id === 'say'")
        await page.do("Input.insertText", text="Anna")
        await press(page, "Enter")
        await page.until("document.querySelector('.bubble--assistant')?.textContent.includes('Hi, Anna!')")
        await tab_to(page, f"{CHOSEN}.matches('.ran summary')", presses_max=200)
        await press(page, "Enter")
        await page.until("document.querySelector('.ran').open")
        await look(page, rise, "workflow")
        for note, stages in (("the first", SAY), ("louder", [SAY[0] | {"template": "HI, {{ text }}!"}])):
            await tab_to(page, f"{CHOSEN}.id === 'stages'", presses_max=200)
            await type_over(page, json.dumps(stages))
            await tab_to(page, f"{CHOSEN}.id === 'comment'")
            await page.do("Input.insertText", text=note)
            await tab_to(page, f"{CHOSEN}.value === 'publish'")
            await press(page, "Enter")
            await page.until(f"document.querySelector('.versions .why')?.textContent === '{note}'")
        await tab_to(page, f"{CHOSEN}.textContent.startsWith('Go back')", presses_max=200)
        await press(page, "Enter")
        await page.until("document.querySelector('h1')?.textContent === 'Back to version 1?'")
        assert "new: Hi, {{ text }}!" in await page.ask("document.querySelector('.changes').textContent")
        await look(page, rise, "rollback")
        await tab_to(page, f"{CHOSEN}.textContent === 'Go back to version 1'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent.includes('Version 3 runs')")
        await look(page, rise, "workflow-history")


@pytest.mark.req("TMP-3")
async def test_a_follow_up_is_moved_and_cancelled_by_keyboard_alone(tmp_path: Path, browse: Browse, bot: Path) -> None:
    async with Installation(tmp_path / "data", app=bot) as rise:
        when = {"at": "2030-12-01T09:00", "timeZone": "UTC"}
        await made(rise, "/api/follow-ups", {"channel": "webchat", "chatId": "w_1", "text": "Was it all right?"} | when)
        page = await browse()
        await sign_in(page, rise, "/follow-ups")
        await tab_to(page, f"{CHOSEN}.matches('.due-row')")
        await press(page, "Enter")
        await page.until("document.querySelector('h1')?.textContent === 'Was it all right?'")
        await tab_to(page, f"{CHOSEN}.id === 'timeZone'")
        await type_over(page, "Europe/Berlin")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent === 'It has another moment now.'")
        assert "2030-12-01 08:00:00 UTC" in await page.ask("document.querySelector('.facts').textContent")
        await tab_to(page, f"{CHOSEN}.id === 'why'")
        await page.do("Input.insertText", text="it is not needed")
        await tab_to(page, f"{CHOSEN}.textContent === 'Cancel it'")
        await press(page, "Enter")
        await page.until("document.querySelector('.done')?.textContent === 'It will not fire.'")
        assert "it is not needed" in await page.ask("document.querySelector('.message').textContent")


async def test_what_was_typed_is_not_left_behind_unasked(tmp_path: Path, browse: Browse, bot: Path) -> None:
    async with Installation(tmp_path / "data", app=bot) as rise:
        await made(rise, "/api/workflows", {"name": "helper", "stages": SAY})
        page = await browse()
        await sign_in(page, rise, "/workflows/wf_helper")
        leaves = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"
        assert not await page.ask(leaves)
        await tab_to(page, f"{CHOSEN}.id === 'stages'")
        await type_over(page, "[]")
        assert await page.ask(leaves), "the browser asks"
        await type_over(page, await page.ask("document.getElementById('stages').defaultValue"))
        assert not await page.ask(leaves)


@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
async def test_on_the_pages_for_editing_everything_fits_and_nobody_is_shut_out(
    tmp_path: Path, browse: Browse, bot: Path
) -> None:
    async with (
        ModelStandIn() as model,
        Installation(tmp_path / "data", app=bot, llm_base_url=model.url, llm_model="stand-in") as rise,
    ):
        await rise.until_capability("worker")
        long = "a name that goes on and on, مرحبا, " + "x" * 60
        prompt = {"name": "greet", "template": "Greet {{ who }}: {{ text }}", "placeholders": ["who"]}
        await made(rise, "/api/prompts", prompt)
        await made(rise, "/api/prompts/pr_greet", {"template": "Greet {{ who }}, kindly: {{ text }}"}, method="PUT")
        await made(rise, "/api/workflows", {"name": "helper", "stages": STAGES})
        await made(rise, "/api/workflows/wf_helper/publish", {"comment": "the first that answers by a model"})
        await made(rise, "/api/workflows/wf_helper", {"stages": [*STAGES, *_said_more()]}, method="PUT")
        await made(rise, "/api/workflows/wf_helper/publish", {"comment": "says more"})
        await made(rise, "/api/workflows/wf_helper", {"name": long, "stages": SAY}, method="PUT")
        later = {"channel": "webchat", "chatId": "w_1", "text": "Was it all right? " * 8, "inSeconds": 3600}
        planned = await made(rise, "/api/follow-ups", later)
        away = {"at": "2030-12-01T09:00", "timeZone": "Europe/Berlin", "missed": "coalesce", "workflowId": "wf_helper"}
        await made(rise, "/api/follow-ups", {"channel": "webchat", "chatId": "w_2"} | away)
        follow_up = f"/follow-ups/{planned['followUpId']}"
        page = await browse()
        await sign_in(page, rise, "/workflows")
        for name, path in (
            ("workflows", "/workflows"),
            ("workflow-edited", "/workflows/wf_helper"),
            ("workflow-in-code", "/workflows/wf_shop"),
            ("compare", "/workflows/wf_helper/compare?from=1"),
            ("workflow-rollback", "/workflows/wf_helper/rollback?version=1"),
            ("prompts", "/prompts"),
            ("prompt-kept", "/prompts/pr_greet"),
            ("prompt-rollback", "/prompts/pr_greet/rollback?version=1"),
            ("follow-ups", "/follow-ups"),
            ("follow-up", follow_up),
        ):
            await open_page(page, rise, path)
            await page.ask("document.querySelectorAll('details').forEach((one) => { one.open = true })")
            await check(page, path)
            await look(page, rise, name)
        await open_page(page, rise, "/workflows/wf_helper")
        await page.ask("document.getElementById('say').value = 'hello'")
        await page.ask("document.querySelector('#try .primary').click()")
        await page.until("!!document.querySelector('.bubble--assistant')")
        await page.ask("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        await check(page, "a draft that was tried")
        await made(rise, "/api/workflows/wf_helper", {"stages": STAGES}, method="PUT")
        await page.ask("document.getElementById('comment').value = 'mine'")
        await page.ask("document.querySelector('[value=publish]').click()")
        await page.until("!!document.getElementById('conflict')")
        await check(page, "somebody was faster")
        await look(page, rise, "conflict")


def _said_more() -> list[dict[str, Any]]:
    lines = "\n".join(f"line {number} of a longer text" for number in range(12))
    return [{"name": f"more_{number}", "kind": "reply", "template": lines} for number in range(3)]


async def made(rise: Installation, path: str, body: dict[str, Any], *, method: str = "POST") -> Any:
    """By the API."""
    async with (
        aiohttp.ClientSession(headers=rise.headers) as session,
        session.request(method, f"{rise.url}{path}", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return (await answer.json())["data"]

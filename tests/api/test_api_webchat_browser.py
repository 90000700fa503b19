"""The chat page in a real browser, its server killed in the middle of a conversation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiohttp import web
from api_browser import IN_A_BROWSER, Page

from rise.testing.installation import Installation

pytestmark = IN_A_BROWSER

BOT = """
import asyncio, rise

@rise.workflow("slow", channels=["webchat"])
async def slow(turn: rise.Turn) -> None:
    await turn.step("think", asyncio.sleep, 1.5)
    buttons = [[{"text": "More", "data": "more please"}, {"text": "Site", "url": "https://example.org/"}]]
    await turn.reply(f"<b>{turn.text}</b> https://example.org/x", buttons=buttons)
"""

MINE = "[...document.querySelectorAll('.me .bubble')].map((one) => one.textContent)"
MARKS = "[...document.querySelectorAll('.me .mark')].map((one) => one.textContent).join('')"
ANSWERS = "[...document.querySelectorAll('.bot.answer .bubble')].map((one) => one.textContent)"


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    return Installation(tmp_path / "data", app=bot)


@pytest.mark.req("EMB-1", "CHN-1", "CPY-7")
@pytest.mark.failure("A4", "D1")
async def test_a_conversation_survives_the_death_of_its_server(tmp_path: Path, installation: Installation) -> None:
    async with installation as rise, Page(tmp_path / "profile") as page:
        await page.go(f"{rise.url}/webchat")
        await page.until("document.readyState === 'complete' && !!document.getElementById('text')")
        await page.type_and_send("first")
        await page.until(f"{MARKS} === '✓'")
        await page.until("!document.getElementById('typing').hidden")
        await rise.kill()
        await page.until("document.getElementById('status').textContent === 'reconnecting…'")
        await page.type_and_send("second, while nobody is there")
        assert await page.ask(MARKS) == "✓◷"
        await _look(page, tmp_path, "away")
        await rise.start()
        await page.until(f"{ANSWERS}.length === 2")
        assert await page.ask(ANSWERS) == [
            "<b>first</b> https://example.org/x",
            "<b>second, while nobody is there</b> https://example.org/x",
        ]
        assert await page.ask(MARKS) == "✓✓"
        assert await page.ask("document.getElementById('typing').hidden")
        assert await page.ask("document.querySelector('.bot a').rel") == "noopener noreferrer"
        await _look(page, tmp_path, "answered")
        assert page.problems == []


@pytest.mark.req("CHN-1")
async def test_a_reload_a_second_tab_and_a_tapped_button_lose_and_double_nothing(
    tmp_path: Path, installation: Installation
) -> None:
    async with installation as rise, Page(tmp_path / "profile") as page:
        await page.go(f"{rise.url}/webchat?title=Ask%20us")
        await page.until("document.readyState === 'complete' && document.title === 'Ask us'")
        await page.type_and_send("first")
        await page.until(f"{ANSWERS}.length === 1")
        await page.do("Page.reload")
        await page.until(f"document.readyState === 'complete' && {ANSWERS}.length === 1")
        await page.ask("document.querySelector('.bot .buttons button').click()")
        await page.until(f"{ANSWERS}.length === 2")
        assert await page.ask(MINE) == ["first", "More"]
        assert (await page.ask(ANSWERS))[1].startswith("<b>more please</b>")
        await page.type_and_send("last")
        await page.until(f"{ANSWERS}.some((one) => one.startsWith('<b>last</b>'))")
        assert await page.ask(f"{ANSWERS}.length") == 3, "what is doubled would have come before the last"
        assert page.problems == []


@pytest.mark.req("CHN-1")
async def test_it_is_a_bubble_on_somebody_elses_page(tmp_path: Path, installation: Installation) -> None:
    async with installation as rise, Page(tmp_path / "profile") as page:
        html = f"<!doctype html><h1>A shop</h1><script src='{rise.url}/webchat/embed.js' data-title='Help'></script>"

        async def shop(request: web.Request) -> web.Response:
            return web.Response(text=html, content_type="text/html")

        application = web.Application()
        application.router.add_get("/", shop)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "localhost", 0)
        await site.start()
        port = runner.addresses[0][1]
        await page.go(f"http://localhost:{port}/")
        await page.until("document.querySelector('button')?.getAttribute('aria-label') === 'Open the chat'")
        assert await page.ask("document.querySelector('iframe').src") == ""
        await page.ask("document.querySelector('iframe').addEventListener('load', () => { window.shown = true })")
        await page.ask("document.querySelector('button').click()")
        assert await page.ask("document.querySelector('iframe').src") == f"{rise.url}/webchat?title=Help"
        assert await page.ask("getComputedStyle(document.querySelector('iframe')).display") == "block"
        await page.until("window.shown === true")
        await _look(page, tmp_path, "embedded")
        await runner.cleanup()
        assert page.problems == []


@pytest.mark.req("CHN-1")
async def test_on_a_phone_everything_fits(tmp_path: Path, installation: Installation) -> None:
    async with installation as rise, Page(tmp_path / "profile") as page:
        await page.resize(360, 640)
        await page.go(f"{rise.url}/webchat")
        await page.until("document.readyState === 'complete' && !!document.getElementById('text')")
        await page.type_and_send("word " * 200 + "x" * 300)
        await page.until(f"{ANSWERS}.length === 1")
        assert await page.ask("document.documentElement.scrollWidth <= 360")
        assert await page.ask("document.documentElement.scrollHeight <= 640")
        assert await page.ask("document.getElementById('form').getBoundingClientRect().bottom <= 640")


async def _look(page: Page, tmp_path: Path, name: str) -> None:
    """Pictures for people, where a directory for them is named."""
    directory = Path(os.environ.get("RISE_TEST_PICTURES", tmp_path))
    await page.look(directory / f"webchat-{name}.png")
    await page.look(directory / f"webchat-{name}-phone-dark.png", width=390, height=700, dark=True)

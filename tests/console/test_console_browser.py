"""The console in a real browser: live, by keyboard alone, on a phone, and for those who do not see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_browser import IN_A_BROWSER, Page
from console_browser import AXE, CHOSEN, LIGHT, Browse, check, look, open_page, press, sign_in, tab_to, write

from rise.testing.installation import Installation

pytestmark = IN_A_BROWSER

BOT = """
import rise

@rise.workflow("shop", channels=["webchat"])
async def shop(turn: rise.Turn) -> None:
    if "broken" in turn.text:
        raise ValueError("the shop is shut")
    await turn.reply(f"You said: {turn.text}")
"""


@pytest.fixture
async def rise(tmp_path: Path) -> AsyncIterator[Installation]:
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    async with Installation(tmp_path / "data", app=bot, retry_max=0) as rise:
        await rise.until_capability("worker")
        yield rise


@pytest.fixture
async def page(browse: Browse) -> Page:
    return await browse()


@pytest.mark.req("OPS-3", "CAP-7")
async def test_what_happens_is_seen_as_it_happens(rise: Installation, page: Page) -> None:
    await sign_in(page, rise)
    await page.until("document.getElementById('live').textContent === 'Live.'")
    assert await page.ask(LIGHT) == "All is well"
    await write(rise, "hello there", "and broken")
    await page.until("document.querySelector('.plot .line').getAttribute('d').includes('L')")
    await page.until("document.querySelector('.states .suspended b').textContent === '1'")
    database = rise.data_dir / "rise.db"
    away = database.with_name("away.db")
    database.rename(away)
    await page.until(f"{LIGHT} === 'No messages are accepted'", seconds=30)
    assert await page.ask("document.title") == "No messages are accepted · Rise"
    assert "deleted or replaced" in await page.ask("document.querySelector('.capability--unavailable').innerText")
    away.rename(database)
    await page.until(f"{LIGHT} === 'All is well'", seconds=30)
    await look(page, rise, "now")


@pytest.mark.req("OPS-3")
async def test_a_suspended_message_is_found_and_resumed_by_keyboard_alone(rise: Installation, page: Page) -> None:
    await write(rise, "this is broken")
    await sign_in(page, rise)
    await page.until("document.querySelector('.states .suspended b')?.textContent === '1'")
    await tab_to(page, f"{CHOSEN}.textContent.startsWith('Suspended')")
    await press(page, "Enter")
    await page.until("document.querySelector('.choose .text')?.textContent === 'this is broken'")
    await tab_to(page, f"{CHOSEN}.name === 'task'")
    await press(page, " ")
    await page.until("document.getElementById('chosen').textContent === ' (1)'")
    await tab_to(page, f"{CHOSEN}.value === 'resume'")
    await press(page, "Enter")
    await page.until("document.querySelector('h1')?.textContent === 'Resume 1 message?'")
    await tab_to(page, f"{CHOSEN}.id === 'why'")
    await page.do("Input.insertText", text="the shop is open again")
    await tab_to(page, f"{CHOSEN}.textContent === 'Resume 1 message'")
    await press(page, "Enter")
    await page.until("document.querySelector('.done')?.textContent.includes('1 message goes on')")


@pytest.mark.req("OPS-3")
async def test_somebody_who_signs_in_comes_to_the_page_that_was_asked_for(rise: Installation, page: Page) -> None:
    await write(rise, "answer me")
    await sign_in(page, rise, "/messages?state=completed")
    await page.until("document.querySelector('.row .text')?.textContent === 'answer me' || (location.reload(), false)")
    await page.ask("document.querySelector('a.row').click()")
    await page.until("document.querySelector('.bubble')?.textContent === 'You said: answer me'")
    assert await page.ask("document.cookie") == "", "no script sees the session"
    await page.ask("document.querySelector('.who button').click()")
    await page.until("!!document.getElementById('token')")
    await page.go(f"{rise.url}/console")
    await page.until("document.readyState === 'complete' && !!document.getElementById('token')")


@pytest.mark.req("OPS-3")
@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
async def test_on_a_phone_and_on_a_desk_everything_fits_and_nobody_is_shut_out(rise: Installation, page: Page) -> None:
    await write(rise, "x" * 300 + " is broken", "hello there", "<b>Wörter</b> مرحبا")
    await page.go(f"{rise.url}/console")
    await page.until("document.readyState === 'complete' && !!document.getElementById('token')")
    await check(page, "sign-in")
    await sign_in(page, rise)
    await page.until("document.querySelector('.states .suspended b')?.textContent === '1'")
    await check(page, "now")
    for path in ("/messages", "/suspended", "/bindings", "/trail", "/nowhere"):
        await open_page(page, rise, path)
        await page.ask("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        await check(page, path)
    await open_page(page, rise, "/suspended")
    await page.ask("document.querySelector('a.row').click()")
    await page.until("!!document.querySelector('.life')")
    await page.ask("document.querySelector('details').open = true")
    await check(page, "a message")
    await page.ask("document.querySelector('.actions .danger').click()")
    await page.until("!!document.getElementById('why')")
    await check(page, "review")

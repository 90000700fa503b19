"""What people do with the console in a real browser, with their eyes, a keyboard, or neither."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from api_browser import Page

from rise.testing.installation import ADMIN_TOKEN, Installation

Browse = Callable[[], Awaitable[Page]]
"""Opens a window."""

AXE = importlib.util.find_spec("axe_core_python")
WINDOWS = [(390, 844, True), (390, 844, False), (768, 1024, False), (1440, 900, False), (1440, 900, True)]
LIGHT = "document.querySelector('#standing h1')?.textContent"
CHOSEN = "document.activeElement"
STILL = "Promise.all(document.getAnimations().map((one) => one.finished)).then(() => true)"
"""Colours are on their way for a moment."""
WIDE = """
[...document.querySelectorAll("body *")]
  .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth)
  .map((one) => one.outerHTML.slice(0, 120)).slice(0, 5)
"""


async def write(rise: Installation, *texts: str) -> None:
    """Somebody writes in the web chat."""
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{rise.url}/webchat/session") as answer:
            token = (await answer.json())["data"]["token"]
        for number, text in enumerate(texts):
            body = {"clientMessageId": f"m{number}", "text": text}
            headers = {"Authorization": f"Bearer {token}"}
            async with session.post(f"{rise.url}/webchat/messages", json=body, headers=headers) as answer:
                assert answer.status == 200


async def press(page: Page, key: str, *, shift: bool = False) -> None:
    codes = {"Tab": 9, "Enter": 13, " ": 32}
    text = {"Enter": "\r", " ": " "}.get(key)
    said: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
    await page.do("Input.dispatchKeyEvent", type="keyDown", **said, **({"text": text} if text else {}))
    await page.do("Input.dispatchKeyEvent", type="keyUp", **said)


async def type_over(page: Page, text: str) -> None:
    """In the place of what stands in the field."""
    await page.do("Input.dispatchKeyEvent", type="keyDown", key="a", modifiers=2, commands=["selectAll"])
    await page.do("Input.dispatchKeyEvent", type="keyUp", key="a", modifiers=2)
    await page.do("Input.insertText", text=text)


async def tab_to(page: Page, expression: str, *, presses_max: int = 60) -> None:
    """Go on by Tab until the focus is where that is true, seeing it all the way."""
    for _ in range(presses_max):
        await press(page, "Tab")
        if await page.ask(f"({expression})"):
            assert await page.ask(f"{CHOSEN}.matches(':focus-visible')")
            return
    raise AssertionError(f"no Tab leads there: {expression}")


async def sign_in(page: Page, rise: Installation, path: str = "") -> None:
    await page.go(f"{rise.url}/console{path}")
    await page.until(f"document.readyState === 'complete' && {CHOSEN}.id === 'token'")
    await page.do("Input.insertText", text=ADMIN_TOKEN)
    await press(page, "Enter")
    await page.until("document.readyState === 'complete' && !!document.querySelector('nav')")


async def open_page(page: Page, rise: Installation, path: str) -> None:
    await page.go(f"{rise.url}/console{path}")
    await page.until(f"document.readyState === 'complete' && location.href.endsWith({json.dumps(path)})")


async def check(page: Page, name: str) -> None:
    """Nothing runs over the edge, and axe finds nothing, on a phone, a tablet and a desk, by day and night."""
    assert AXE is not None and AXE.origin is not None
    source = Path(AXE.origin).with_name("axe.min.js").read_text()
    for width, height, dark in WINDOWS:
        await page.resize(width, height, dark=dark)
        # Not by what the window says of itself: a phone makes that wider where something runs over the edge.
        assert await page.ask("document.documentElement.scrollWidth") <= width, (name, await page.ask(WIDE))
        await page.ask(STILL)
        await page.ask(f"{source}; true")
        passed, found = await page.ask("axe.run().then((result) => [result.passes.length, result.violations])")
        told = [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]]) for one in found]
        assert told == [], (name, width, dark)
        assert passed > 10, "it has looked"


async def look(page: Page, rise: Installation, name: str) -> None:
    """Pictures of all of it for people, on a phone and on a desk, by day and night. They are kept with what the test
    leaves behind, or where a directory for them is named."""
    directory = Path(os.environ.get("RISE_TEST_PICTURES", rise.data_dir.parent))
    for width, least, kind in ((1440, 900, "desk"), (390, 844, "phone")):
        await page.resize(width, least)
        height = max(least, min(4000, await page.ask("document.documentElement.scrollHeight")))
        for dark in (False, True):
            await page.resize(width, height, dark=dark)
            await page.ask(STILL)
            path = directory / f"console-{name}-{kind}-{'dark' if dark else 'light'}.png"
            await page.look(path, width=width, height=height, dark=dark)
    await page.resize(1440, 900)

"""A real browser, driven over its debugging protocol, as far as a chat page needs."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

from rise.testing.waiting import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


class Page:
    """One window of Chromium with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []
        """What the page complained about on its console, violations of its policy included."""

    async def __aenter__(self) -> Self:
        assert CHROMIUM is not None
        self._process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._session = aiohttp.ClientSession()
        port = await self._port()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
            [target] = [one for one in await response.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self._reading = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime", "Log"):
            await self.do(f"{domain}.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await self._socket.close()
        await self._session.close()
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()

    async def go(self, url: str) -> None:
        await self.do("Page.navigate", url=url)

    async def ask(self, expression: str) -> Any:
        """What a JavaScript expression comes to in the page."""
        result = await self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"])
        return result["result"].get("value")

    async def until(self, expression: str, *, seconds: float = 20.0) -> Any:
        """Wait until it comes to something true, and return that. The page has no signal: asked again and again."""
        try:
            return await eventually(lambda: self.ask(expression), seconds=seconds)
        except TimeoutError:
            shown = await self.ask("document.body.innerText")
            raise AssertionError(f"never true: {expression}\nthe page shows:\n{shown}\n{self.problems}") from None

    async def type_and_send(self, text: str) -> None:
        await self.ask("document.getElementById('text').focus()")
        await self.do("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.do("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    async def look(self, path: Path, *, width: int = 1000, height: int = 700, dark: bool = False) -> None:
        """A picture of it as a window of that size shows it."""
        await self.resize(width, height, dark=dark)
        await self.ask("new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))")
        picture = await self.do("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])

    async def do(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(20):
            return await self._waiting[number]

    async def _port(self) -> int:
        file = self._profile / "DevToolsActivePort"
        await eventually(lambda: file.exists() and "\n" in file.read_text(), seconds=30)
        return int(file.read_text().split("\n")[0])

    async def _read(self) -> None:
        async for frame in self._socket:
            message = json.loads(frame.data)
            if "id" in message:
                waiting = self._waiting.pop(message["id"])
                if not waiting.done():
                    waiting.set_result(message.get("result", message.get("error")))
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(str(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["source"] == "security":
                self.problems.append(message["params"]["entry"]["text"])

"""A language model of your own, for as long as an `async with` lasts: chat completions as OpenAI-compatible servers
speak them, streamed ones too.

Promises: it listens on a free port of 127.0.0.1; every request is counted and kept, whatever came of it; what it was
told to do next happens in that order, and after that it answers with what it was asked.

Refuses: to be clever. It knows nothing but its script, and takes every key but the one it was told to refuse.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

DEFAULT_MODEL: Final = "stand-in"
_STOP_SECONDS: Final = 0.1
_WELCOME: Final = """\
A stand-in for a language model is listening. It answers with what it was asked.

  RISE_LLM_BASE_URL={url}
  RISE_LLM_MODEL=stand-in

Stop it with Ctrl+C."""


@dataclass(frozen=True)
class Say:
    """An answer."""

    text: str


@dataclass(frozen=True)
class Fail:
    """A status, with the words of a server, which may repeat the key."""

    status: int
    message: str = "it did not work"
    retry_after: str | None = None


@dataclass(frozen=True)
class Nonsense:
    """A 200 with something else in it."""

    body: bytes = b'{"choices": []}'
    content_type: str = "application/json"


@dataclass(frozen=True)
class CutOff:
    """The connection ends without an answer."""


@dataclass
class Hold:
    """No answer until it is let go on: slow for as long as a test wants, without a clock."""

    then: Say | Fail | Nonsense | CutOff = field(default_factory=lambda: Say("at last"))

    def __post_init__(self) -> None:
        self.reached = asyncio.Event()
        self.released = asyncio.Event()


Act = Say | Fail | Nonsense | CutOff | Hold


@dataclass(frozen=True)
class ModelCall:
    """A request as it came."""

    model: str
    messages: list[dict[str, Any]]
    authorization: str | None
    body: dict[str, Any]

    @property
    def asked(self) -> str:
        """The last thing that was said."""
        return str(self.messages[-1]["content"]) if self.messages else ""


class ModelStandIn:
    """A server of chat completions that does as it is told."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.calls: list[ModelCall] = []
        self.models: list[str] | None = [DEFAULT_MODEL]
        """Which it lists. None: it knows nothing of lists."""
        self._host = host
        self._port = port
        self._script: deque[Act] = deque()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        # The port stays the same if it is stopped and started again.
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def url(self) -> str:
        """For RISE_LLM_BASE_URL."""
        return f"http://{self._host}:{self._port}/v1"

    def then(self, *acts: Act) -> None:
        """What happens at the next calls, one after the other."""
        self._script += acts

    @property
    def asked(self) -> list[str]:
        """What was said last in each call, in their order."""
        return [call.asked for call in self.calls]

    # --- answering ----------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        if self.models is None:
            return web.json_response({"error": {"message": "no such page"}}, status=404)
        return web.json_response({"object": "list", "data": [{"id": one, "object": "model"} for one in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        call = ModelCall(str(body.get("model")), body.get("messages", []), request.headers.get("Authorization"), body)
        self.calls.append(call)
        act = self._script.popleft() if self._script else Say(call.asked)
        if isinstance(act, Hold):
            act.reached.set()
            await act.released.wait()
            act = act.then
        match act:
            case Say(text):
                return await self._streamed(request, call, text) if body.get("stream") else _said(call, text)
            case Fail(status, message, retry_after):
                headers = {"Retry-After": retry_after} if retry_after is not None else {}
                error = {"message": message, "type": "stand_in", "code": None}
                return web.json_response({"error": error}, status=status, headers=headers)
            case Nonsense(content, content_type):
                return web.Response(body=content, content_type=content_type)
            case CutOff():
                return _cut_off(request)

    async def _streamed(self, request: web.Request, call: ModelCall, text: str) -> web.StreamResponse:
        """Word by word, as server-sent events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in text.split(" ")[:1] + [f" {word}" for word in text.split(" ")[1:]]]
        for delta in deltas:
            await response.write(_event(call, {"index": 0, "delta": delta, "finish_reason": None}))
        await response.write(_event(call, {"index": 0, "delta": {}, "finish_reason": "stop"}))
        await response.write(b"data: [DONE]\n\n")
        return response


async def run_model_standin(host: str, port: int, *, say: Callable[[str], None] = print) -> None:
    """Serve until cancelled, whatever model is asked for."""
    standin = ModelStandIn(host=host, port=port)
    standin.models = None
    async with standin:
        say(_WELCOME.format(url=standin.url))
        await asyncio.Event().wait()


def _said(call: ModelCall, text: str) -> web.Response:
    asked = sum(len(str(one.get("content", "")).split()) for one in call.messages)
    said = len(text.split())
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return web.json_response(_completion(call, "chat.completion", choice) | {"usage": usage})


def _event(call: ModelCall, choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(_completion(call, "chat.completion.chunk", choice)).encode() + b"\n\n"


def _completion(call: ModelCall, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 0, "model": call.model, "choices": [choice]}


def _cut_off(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()

"""The language model, over real HTTP and its official client: what it says, and every way in which it may not."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from aiohttp import web

from rise.errors import ModelAnswerUnusable, ModelRefused, ModelUnavailable, ModelUnconfigured
from rise.retries import uses_a_try
from rise.settings import load_settings
from rise.telemetry import clean
from rise.testing.model_server import CutOff, Fail, Hold, ModelStandIn, Nonsense, Say
from rise.workflows.model import ANSWER_BYTES_MAX, Message, ModelAnswer, ModelRequest, NoModel, OpenAIModel, model_of

KEY = "sk-CanaryCanaryCanary"
HELLO = ModelRequest(messages=[Message("system", "Be kind."), Message("user", "Hello")])


@pytest.fixture
async def server() -> AsyncIterator[ModelStandIn]:
    async with ModelStandIn() as server:
        yield server


@pytest.fixture
async def model(server: ModelStandIn) -> AsyncIterator[OpenAIModel]:
    model = OpenAIModel(server.url, "small", key=KEY)
    yield model
    await model.close()


async def asked(model: Any, request: ModelRequest = HELLO, *, seconds: float = 10.0) -> ModelAnswer:
    answer: ModelAnswer = await model.answer(request, timeout_seconds=seconds)
    return answer


@pytest.mark.req("WFL-2")
async def test_a_model_is_asked_once_with_everything_that_was_said(server: ModelStandIn, model: OpenAIModel):
    server.then(Say("Good day!"))
    answer = await asked(model)
    assert (answer.text, answer.model, answer.prompt_tokens, answer.completion_tokens) == ("Good day!", "small", 3, 2)
    [call] = server.calls
    assert call.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert call.authorization == f"Bearer {KEY}"
    assert not {"temperature", "max_tokens", "stream"} & set(call.body)


class Counted(OpenAIModel):
    """Counts its clients, and makes none before it is let."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = 0
        self.let = threading.Event()

    def _made(self) -> openai.AsyncOpenAI:
        self.made += 1
        self.let.wait()
        return super()._made()


@pytest.fixture
async def counted(server: ModelStandIn) -> AsyncIterator[Counted]:
    model = Counted(server.url, "small", key=KEY)
    yield model
    model.let.set()
    await model.close()


async def test_those_who_ask_at_the_same_time_share_one_client(counted: Counted):
    counted.let.set()
    await asyncio.gather(asked(counted), asked(counted), counted.probe(timeout_seconds=10))
    assert counted.made == 1


async def test_the_time_to_make_the_client_is_part_of_the_time_to_answer(counted: Counted):
    async with asyncio.timeout(10):
        with pytest.raises(ModelUnavailable, match=r"within 0\.01 s"):
            await asked(counted, seconds=0.01)
    counted.let.set()
    await asked(counted)


@pytest.mark.req("WFL-2")
async def test_a_stage_may_say_which_model_and_how(server: ModelStandIn, model: OpenAIModel):
    await asked(model, ModelRequest(messages=HELLO.messages, model="large", temperature=0.0, max_tokens=7))
    body = server.calls[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("large", 0.0, 7)


@pytest.mark.req("CAP-2", "WFL-2")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_model_that_cannot_now_is_asked_again_later_and_costs_no_try(
    server: ModelStandIn, model: OpenAIModel, status: int
):
    server.then(Fail(status))
    with pytest.raises(ModelUnavailable) as refused:
        await asked(model)
    assert not uses_a_try(refused.value)
    assert refused.value.capability == "llm"
    assert refused.value.retry_after_seconds is None
    assert len(server.calls) == 1, "the vendor's client does not try again behind our back"


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("0.2", 1), ("1e9", 86_400), ("nan", None), ("-1", None), ("soon", None)]
)
async def test_the_pause_a_model_asks_for_is_kept(server: ModelStandIn, model: OpenAIModel, said: str, seconds: Any):
    server.then(Fail(429, retry_after=said))
    with pytest.raises(ModelUnavailable) as refused:
        await asked(model)
    assert refused.value.retry_after_seconds == seconds


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
async def test_a_request_that_is_refused_for_what_it_says_is_not_asked_again(
    server: ModelStandIn, model: OpenAIModel, status: int
):
    server.then(Fail(status, "no such thing"))
    with pytest.raises(ModelRefused) as refused:
        await asked(model)
    assert not refused.value.retryable
    assert str(status) in str(refused.value)
    assert ("RISE_LLM_API_KEY" if status in (401, 403) else "small") in str(refused.value)


@pytest.mark.req("SEC-2")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_the_key_is_in_no_words_even_where_the_server_repeats_it(
    server: ModelStandIn, model: OpenAIModel, status: int
):
    server.then(Fail(status, f"Incorrect API key provided: {KEY}. Bearer {KEY}"))
    with pytest.raises((ModelRefused, ModelUnavailable)) as refused:
        await asked(model)
    assert KEY not in str(refused.value)
    assert KEY not in clean(f"anything that holds {KEY}"), "nor in the log, whoever writes it"


@pytest.mark.req("WFL-2")
async def test_a_model_that_takes_too_long_is_asked_again_later(server: ModelStandIn, model: OpenAIModel):
    hold = Hold()
    server.then(hold)
    with pytest.raises(ModelUnavailable, match=r"did not answer within 0\.2 s"):
        await asked(model, seconds=0.2)
    assert hold.reached.is_set()
    short = OpenAIModel(server.url, "small", seconds_max=0.2)
    server.then(Hold())
    with pytest.raises(ModelUnavailable, match=r"within 0\.2 s"):
        await asked(short, seconds=60.0)
    await short.close()


@pytest.mark.req("WFL-2")
async def test_a_model_that_hangs_up_or_is_away_is_asked_again_later(server: ModelStandIn, model: OpenAIModel):
    server.then(CutOff())
    with pytest.raises(ModelUnavailable, match=r"cannot be reached: the connection was closed before an answer came$"):
        await asked(model)
    await server.stop()
    with pytest.raises(ModelUnavailable, match=r"cannot be reached: the connection is refused$"):
        await asked(model)
    await server.start()
    assert (await asked(model)).text == "Hello"


@pytest.mark.req("WFL-2")
@pytest.mark.parametrize(
    "nonsense",
    [
        Nonsense(),
        Nonsense(b"{}"),
        Nonsense(b"null"),
        Nonsense(b"[]"),
        Nonsense(b'"text"'),
        Nonsense(b"{"),
        Nonsense(b""),
        Nonsense(b"\xff\xfe"),
        Nonsense(b"<html>busy</html>", "text/html"),
        Nonsense(b'{"choices": "many"}'),
        Nonsense(b'{"choices": [null]}'),
        Nonsense(b'{"choices": [{"message": null}]}'),
        Nonsense(b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
        Nonsense(b'{"choices": [{"message": {"content": ["a"]}}]}'),
        Say(""),
        Say(" \n"),
    ],
    ids=repr,
)
async def test_an_answer_that_is_none_is_never_said_and_uses_up_a_try(
    server: ModelStandIn, model: OpenAIModel, nonsense: Any
):
    server.then(nonsense)
    with pytest.raises(ModelAnswerUnusable) as refused:
        await asked(model)
    assert refused.value.retryable
    assert uses_a_try(refused.value)


async def test_an_answer_without_counts_is_one_all_the_same(server: ModelStandIn, model: OpenAIModel):
    server.then(Nonsense(b'{"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": "many"}}'))
    assert await asked(model) == ModelAnswer(text="Hi", model="small")


@pytest.mark.req("WFL-5")
async def test_without_a_model_it_is_said_what_to_set():
    unset = model_of(load_settings(_env_file=None))
    assert isinstance(unset, NoModel)
    with pytest.raises(ModelUnconfigured) as refused:
        await asked(unset)
    assert "RISE_LLM_BASE_URL" in refused.value.remedy
    assert "RISE_LLM_MODEL" in str(refused.value)
    assert not refused.value.retryable
    await unset.close()


@pytest.mark.req("WFL-2")
async def test_the_model_of_the_settings_is_asked(server: ModelStandIn):
    model = model_of(load_settings(_env_file=None, llm_base_url=server.url, llm_model="small"))
    assert (await asked(model)).text == "Hello"
    await model.close()
    assert (await asked(model)).text == "Hello", "it opens again"
    await model.close()


def error_classes(parent: type[Exception] = openai.OpenAIError) -> Iterator[type[Exception]]:
    yield parent
    for child in parent.__subclasses__():
        yield from error_classes(child)


@pytest.mark.parametrize("kind", list(error_classes()))
async def test_every_error_of_the_client_is_one_of_ours(model: OpenAIModel, kind: type[Exception]):
    """Those, too, that belong to parts of it that are not used here."""
    error: Any = Exception.__new__(kind, "words")
    error.status_code, error.response, error.message = 400, SimpleNamespace(headers={}), "words"
    with pytest.raises((ModelRefused, ModelUnavailable, ModelAnswerUnusable)):
        async with model._opened("small", 1.0):
            raise error


@pytest.mark.req("CAP-2")
async def test_whether_it_answers_can_be_asked_for_nothing(server: ModelStandIn, model: OpenAIModel):
    assert await model.probe(timeout_seconds=5) == "answers, but lists no small"
    server.models = ["tiny", "small"]
    assert await model.probe(timeout_seconds=5) == "answers; it has small"
    server.models = None
    assert "does not say" in await model.probe(timeout_seconds=5)
    assert server.calls == []
    await server.stop()
    with pytest.raises(ModelUnavailable):
        await model.probe(timeout_seconds=5)
    with pytest.raises(ModelUnconfigured):
        await NoModel().probe(timeout_seconds=5)


async def test_the_stand_in_speaks_streams_too(server: ModelStandIn):
    server.then(Say("one two three"))
    client = openai.AsyncOpenAI(api_key="none", base_url=server.url, max_retries=0)
    stream = await client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "count"}], stream=True
    )
    parts = [event.choices[0].delta.content or "" async for event in stream]
    assert "".join(parts) == "one two three"
    assert len(parts) > 3
    assert [one.id async for one in client.models.list()] == ["stand-in"]
    await client.close()


class Elsewhere:
    """A server that answers as it is told, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""
        self.answer = lambda: web.Response()
        self.written = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if request.path == "/endless/chat/completions":
            return await self._write_without_end(request)
        return self.answer()

    async def _write_without_end(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            self.written += 65536


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    elsewhere, app = Elsewhere(), web.Application()
    app.router.add_route("*", "/{path:.*}", elsewhere.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    elsewhere.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield elsewhere
    await runner.cleanup()


@pytest.mark.req("WFL-2", "SEC-4")
async def test_an_answer_without_end_is_read_no_further_than_one_that_can_be_used(elsewhere: Elsewhere):
    model = OpenAIModel(f"{elsewhere.url}/endless", "small", key=KEY)
    with pytest.raises(ModelAnswerUnusable, match=f"more than {ANSWER_BYTES_MAX} bytes"):
        await asked(model)
    assert elsewhere.written < 2 * ANSWER_BYTES_MAX
    await model.close()


@pytest.mark.req("WFL-2", "SEC-4")
async def test_a_small_answer_that_would_unpack_to_a_large_one_is_not_unpacked(elsewhere: Elsewhere):
    packed = gzip.compress(b" " * (ANSWER_BYTES_MAX + 1))
    elsewhere.answer = lambda: web.Response(
        body=packed, content_type="application/json", headers={"Content-Encoding": "gzip"}
    )
    model = OpenAIModel(elsewhere.url, "small", key=KEY)
    with pytest.raises(ModelAnswerUnusable, match="compressed"):
        await asked(model)
    await model.close()


@pytest.mark.req("WFL-2", "SEC-2", "SEC-3")
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_where_an_answer_leads_is_not_followed(server: ModelStandIn, elsewhere: Elsewhere, status: int):
    """The key and what a person wrote would go there, to an address that nobody has looked at."""
    elsewhere.answer = lambda: web.Response(status=status, headers={"Location": f"{server.url}/chat/completions"})
    model = OpenAIModel(elsewhere.url, "small", key=KEY)
    with pytest.raises(ModelRefused, match="RISE_LLM_BASE_URL"):
        await asked(model)
    assert (elsewhere.asked, server.calls) == (1, [])
    await model.close()

"""The language model that `prompt` stages ask: the port, and any OpenAI-compatible endpoint behind it.

Promises: one call, one request; tries are the stage's. Every error of the vendor's client becomes one of ours here, and
what it says never holds the key: servers like to repeat it.

Refuses: an answer that is empty, endless or cannot be read (`ModelAnswerUnusable`), because it would be said to a
person; to follow where an answer leads, because the key and what a person wrote would go there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from rise import tracing
from rise.errors import ModelAnswerUnusable, ModelRefused, ModelUnavailable, ModelUnconfigured
from rise.settings import Settings
from rise.telemetry import clean, keep_out_of_logs
from rise.unreached import why_unreached
from rise.workflows.turn import in_a_thread

if TYPE_CHECKING:
    import openai

WORDS_MAX: Final = 300
"""Of what a server says against a request."""
ANSWER_BYTES_MAX: Final = 8 << 20
"""Of an answer with all that is around its text. A stage keeps 1 MiB of that, and JSON may spell a byte with six."""
RETRY_AFTER_SECONDS_MAX: Final = 86_400
_BUSY: Final = frozenset({408, 409, 425, 429})
"""Statuses below 500 with which a server says: not now."""
_ABOUT_THE_KEY: Final = frozenset({401, 403})
_PROVIDER: Final = "openai"
"""Whose protocol is spoken, as the conventions have it: which server is behind it nobody can tell."""
_NO_KEY: Final = "none"
"""The client wants one; local servers do not."""


class Message(msgspec.Struct, frozen=True):
    role: str
    """`system`, `user` or `assistant`."""
    text: str


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    messages: Sequence[Message]
    model: str | None = None
    """None: the one that is configured."""
    temperature: float | None = None
    max_tokens: int | None = None


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Model(Protocol):
    """Something that answers prompts."""

    async def answer(self, request: ModelRequest, *, timeout_seconds: float) -> ModelAnswer:
        """Asked once. Raises `ModelUnavailable` where it may answer later, `ModelRefused` where it never will,
        `ModelAnswerUnusable` for an answer that is none, `ModelUnconfigured` where there is nobody to ask.
        """
        ...

    async def probe(self, *, timeout_seconds: float) -> str:
        """What is known of it now, in a line, for the capability `llm`; costs nothing. Raises as `answer` does."""
        ...

    async def close(self) -> None:
        """Whoever asks it afterwards opens it again."""
        ...


class NoModel:
    """What is asked where none is configured. It says so, and what to do about it."""

    async def answer(self, request: ModelRequest, *, timeout_seconds: float) -> ModelAnswer:
        raise _unconfigured()

    async def probe(self, *, timeout_seconds: float) -> str:
        raise _unconfigured()

    async def close(self) -> None:
        """There is nothing to close."""


def _unconfigured() -> ModelUnconfigured:
    return ModelUnconfigured(
        "no language model is configured",
        remedy="set RISE_LLM_BASE_URL and RISE_LLM_MODEL (and RISE_LLM_API_KEY, where the server wants one)",
    )


def model_of(settings: Settings) -> Model:
    """The one that the settings name."""
    if settings.llm_base_url is None or settings.llm_model is None:
        return NoModel()
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
    return OpenAIModel(settings.llm_base_url, settings.llm_model, key=key, seconds_max=settings.llm_seconds)


class OpenAIModel:
    """Over the official client, for every server that speaks chat completions."""

    def __init__(self, base_url: str, model: str, *, key: str | None = None, seconds_max: float = 120.0) -> None:
        """`seconds_max`: no call takes longer, whatever its stage allows."""
        keep_out_of_logs([key])
        self._base_url = base_url
        self._model = model
        self._key = key
        self._seconds_max = seconds_max
        self._client: openai.AsyncOpenAI | None = None
        self._making = asyncio.Lock()

    async def answer(self, request: ModelRequest, *, timeout_seconds: float) -> ModelAnswer:
        model, seconds = request.model or self._model, min(timeout_seconds, self._seconds_max)
        with tracing.span(f"chat {model}", kind="client", attributes=self._asked(request, model)) as span:
            answer = await self._answer(request, model, seconds)
            span.note(_answered(answer))
            return answer

    async def _answer(self, request: ModelRequest, model: str, seconds: float) -> ModelAnswer:
        async with self._opened(model, seconds) as client:
            completion = await client.chat.completions.create(
                model=model,
                messages=[{"role": one.role, "content": one.text} for one in request.messages],  # type: ignore[misc]
                timeout=seconds,
                **_options(request),
            )
        return _read(completion, model)

    async def probe(self, *, timeout_seconds: float) -> str:
        async with self._opened(self._model, timeout_seconds) as client:
            import openai

            try:
                page = await client.models.list(timeout=timeout_seconds)
            except openai.NotFoundError:
                return "answers; which models it has, it does not say"
            named = {getattr(one, "id", None) for one in getattr(page, "data", None) or ()}
        return f"answers; it has {self._model}" if self._model in named else f"answers, but lists no {self._model}"

    async def close(self) -> None:
        async with self._making:
            client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _asked(self, request: ModelRequest, model: str) -> tracing.Attributes:
        """By OpenTelemetry's conventions for generative AI; without what they leave to choice, the words."""
        place = urlsplit(self._base_url)
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.max_tokens": request.max_tokens,
            "server.address": place.hostname,
            "server.port": place.port or (443 if place.scheme == "https" else 80),
        }

    def _made(self) -> openai.AsyncOpenAI:
        try:
            import openai  # here, because it takes a second, and most bots ask no model
        except ImportError as error:
            raise ModelUnconfigured(
                "the client for language models is not installed", remedy="pip install 'rise-gateway[llm]'"
            ) from error
        return openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=self._base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [_bound]},
            ),
        )

    @asynccontextmanager
    async def _opened(self, model: str, seconds: float) -> AsyncIterator[openai.AsyncOpenAI]:
        """The client, within its time, and every error one of ours."""
        limit = asyncio.timeout(seconds)  # the client's own begins anew with every byte
        try:
            async with limit:
                client = await self._ready()
                with self._translated(model, seconds):
                    yield client
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ModelUnavailable(f"the language model did not answer within {seconds:g} s") from error

    async def _ready(self) -> openai.AsyncOpenAI:
        """One, whoever comes while it is made: of two, nobody would close the second."""
        async with self._making:
            if self._client is None:
                # In a thread: its library takes a second, and this process may accept messages meanwhile.
                self._client = await in_a_thread(self._made)
            return self._client

    @contextmanager
    def _translated(self, model: str, seconds: float) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._refusal(error, model) from error
        except openai.APITimeoutError as error:
            raise ModelUnavailable(f"the language model did not answer within {seconds:g} s") from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, ModelAnswerUnusable):
                raise error.__cause__ from None
            why = why_unreached(error.__cause__ or error)
            raise ModelUnavailable(f"the language model cannot be reached: {why}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise ModelAnswerUnusable(f"the language model's answer cannot be read: {type(error).__name__}") from error

    def _refusal(self, error: openai.APIStatusError, model: str) -> ModelUnavailable | ModelRefused:
        status = error.status_code
        if status in _BUSY or status >= 500:
            says = "limits the rate" if status == 429 else f"answered {status}"
            return ModelUnavailable(
                f"the language model {says}", retry_after_seconds=_retry_after_seconds(error.response.headers)
            )
        if 300 <= status < 400:
            return ModelRefused(
                f"the language model's server leads elsewhere ({status}), which is not followed: "
                "set RISE_LLM_BASE_URL to where it is"
            )
        if status in _ABOUT_THE_KEY:
            # Without its words: they repeat the key.
            return ModelRefused(f"the language model's server refuses the key ({status}): correct RISE_LLM_API_KEY")
        words = clean(str(error.message)).replace(self._key or "\0", "***")[:WORDS_MAX]
        return ModelRefused(f"the language model's server refuses the request to {model} ({status}): {words}")


def _answered(answer: ModelAnswer) -> tracing.Attributes:
    return {
        "gen_ai.response.model": answer.model,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
    }


async def _bound(response: Any) -> None:
    """Before any of it is read."""
    # Not unpacked: a kilobyte can be a gigabyte then, at once.
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ModelAnswerUnusable("the language model's answer is compressed, which was not asked for")
    response.stream = _bounded(response.stream)


def _bounded(stream: Any) -> Any:
    kind: Any = type(stream)

    class Bounded(kind):  # type: ignore[misc]
        """A stream of whatever library the vendor's client is on: it takes no other."""

        def __init__(self) -> None:
            """It has nothing of its own."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = ANSWER_BYTES_MAX
            async for part in stream:
                left -= len(part)
                if left < 0:
                    raise ModelAnswerUnusable(f"the language model's answer has more than {ANSWER_BYTES_MAX} bytes")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


def _options(request: ModelRequest) -> dict[str, Any]:
    options = {"temperature": request.temperature, "max_tokens": request.max_tokens}
    return {name: value for name, value in options.items() if value is not None}


def _read(completion: Any, model: str) -> ModelAnswer:
    """By what is there, not by its type: almost compatible servers leave things out, and the client lets them."""
    choices = getattr(completion, "choices", None) or []
    first = choices[0] if isinstance(choices, list) and choices else None
    text = getattr(getattr(first, "message", None), "content", None)
    if not isinstance(text, str) or not text.strip():
        reason = getattr(first, "finish_reason", None)
        raise ModelAnswerUnusable(f"the language model gave no text{f' ({clean(str(reason))[:80]})' if reason else ''}")
    usage, named = getattr(completion, "usage", None), getattr(completion, "model", None)
    return ModelAnswer(
        text=text,
        model=named if isinstance(named, str) else model,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else None


def _retry_after_seconds(headers: Mapping[str, str]) -> int | None:
    """As the server asks, in whole seconds. Its dates are left alone: its clock may be another."""
    try:
        seconds = float(headers.get("retry-after-ms", "")) / 1000 if "retry-after-ms" in headers else None
        seconds = float(headers["retry-after"]) if seconds is None and "retry-after" in headers else seconds
    except ValueError:
        return None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(math.ceil(seconds), RETRY_AFTER_SECONDS_MAX)

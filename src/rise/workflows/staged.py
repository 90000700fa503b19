"""Running a workflow that is made of stages.

Promises: a stage that was paid for is not paid for again: what `prompt`, `http` and `python` stages come to is kept as
a step of the run, and a run that is repeated after a crash goes on at the first stage without. A secret is put in when
the request is made, and taken out of what is answered: none stands in a result, a record or an error. What `reply` and
`follow_up` say is noted like any effect, and becomes real with the run's result. Every stage leaves a record, also one
that fails. A run's value is the last that a stage computed, for callers who read the result.

Refuses: to wait within the run for longer than `WAITED_SECONDS_MAX` because somebody asks for it: the queue waits
better, and holds no place meanwhile. To guess: a name without a value fails the stage, it is not put out as nothing.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import msgspec

from rise import tracing
from rise.clock import Clock, epoch_ms
from rise.envelope import encode_json
from rise.errors import RiseError, SiteFailed, SiteUnavailable, StageRefused, StageTimedOut
from rise.telemetry import clean, log, spellings
from rise.workflows.definition import WorkflowDefinition
from rise.workflows.fetching import Fetch, HttpAnswer, HttpRequest, json_of
from rise.workflows.model import Message, Model, ModelRequest
from rise.workflows.stages import (
    Button,
    FollowUpStage,
    HttpStage,
    Prompt,
    PromptStage,
    PythonStage,
    ReplyStage,
    Retries,
    RouterStage,
    Rule,
    Stage,
    When,
    read_moment,
    seconds_at_most,
    secrets_of,
)
from rise.workflows.templates import SECRETS, template
from rise.workflows.turn import Turn, in_a_thread

VALUE_BYTES_MAX: Final = 1 << 20
"""Of what one stage comes to: it is kept with the run, and looked at by templates."""
WAITED_SECONDS_MAX: Final = 10.0
SPARE_SECONDS: Final = 30.0
"""For what a run does beside its stages."""
HIDDEN: Final = "***"
"""What stands for a secret in what a site answered."""
_NOT_NOW: Final = frozenset({408, 425, 429, 502, 503, 504})


class StageRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How one stage went, in one try of one run."""

    run_id: str
    attempt: int
    """Which try of the task it was, from 1."""
    number: int
    """Its place in the workflow, from 0."""
    name: str
    kind: str
    started_at_ms: int
    duration_ms: float
    tries: int
    """Within this run; 0: its result was kept from an earlier one."""
    outcome: Literal["done", "kept", "failed", "cut off"]
    """`cut off`: the run's time was over, or the worker stopped."""
    error: str | None = None
    notes: dict[str, Any] = msgspec.field(default_factory=dict)
    """Of a prompt its model and tokens, of a request its status, of a router where it went."""


def forget(record: StageRecord) -> None:
    """Keeps nothing."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What stages work with."""

    model: Model
    fetch: Fetch
    clock: Clock
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    prompts: Callable[[str], Prompt | None] = lambda prompt_id: None
    secrets: Callable[[str], str | None] = lambda name: None
    """Open. None: there is none of that name, or none that opens here."""
    record: Callable[[StageRecord], None] = forget
    """Told of every stage when it ends, whatever the end. Must neither wait nor raise."""

    async def close(self) -> None:
        """Those that hold connections, but for the model: that is the house's, and others ask it too."""
        await self.fetch.close()


def staged_workflow(
    name: str,
    stages: Sequence[Stage],
    tools: Tools,
    *,
    channels: Iterable[str] = (),
    concurrency: int | None = None,
) -> WorkflowDefinition:
    """A workflow like one in code. It may run for as long as its stages may, with all their tries."""

    async def run(turn: Turn) -> Any:
        return await run_stages(turn, stages, tools)

    return WorkflowDefinition(
        name=name,
        function=run,
        channels=tuple(channels),
        run_seconds=seconds_at_most(stages) + SPARE_SECONDS,
        concurrency=concurrency,
    )


async def run_stages(turn: Turn, stages: Sequence[Stage], tools: Tools) -> Any:
    """Run them for one message. Raises what a stage raises, after its tries; nothing after it is run then."""
    # Looked up once: what is asked and what it is kept under are the same, whatever somebody stores meanwhile.
    prompts = {name: tools.prompts(name) for name in _prompts_named(stages)}
    run = _Run(turn, tools, prompts, _as_written(stages, prompts))
    places = {stage.name: at for at, stage in enumerate(stages)}
    at: int | None = 0
    while at is not None and at < len(stages):
        goes_to = await run.stage(stages[at], at)
        at = at + 1 if goes_to is _NEXT else None if goes_to is None else places[goes_to]
    return run.value


def _prompts_named(stages: Iterable[Stage]) -> set[str]:
    return {stage.prompt_id for stage in stages if isinstance(stage, PromptStage) and stage.prompt_id is not None}


def _as_written(stages: Iterable[Stage], prompts: Mapping[str, Prompt | None]) -> Sequence[str]:
    """Of each stage, what it and those before it say, in short, with the stored prompts that they name; how long they
    may take changes no result. Not what was asked with the message's values: its history may have grown since, and
    that is no reason to pay again."""
    said, found = hashlib.sha256(), []
    for stage in stages:
        said.update(msgspec.json.encode(msgspec.structs.replace(stage, timeout_seconds=0.0, retries=Retries())))
        if isinstance(stage, PromptStage) and stage.prompt_id is not None:
            said.update(msgspec.json.encode(prompts[stage.prompt_id]))
        found.append(said.hexdigest()[:12])
    return found


_NEXT: Final = ""
"""No stage is called that."""


class _Run:
    """One run, as far as it has come."""

    def __init__(self, turn: Turn, tools: Tools, prompts: Mapping[str, Prompt | None], written: Sequence[str]) -> None:
        self.value: Any = None
        self._prompts = prompts
        self._written = written
        self._turn = turn
        self._tools = tools
        self._values = _as_json(
            {
                "text": turn.text,
                "user": turn.user,
                "chat_id": turn.chat_id,
                "channel": turn.channel,
                "metadata": turn.metadata,
                "history": turn.history,
                "stages": {},
            }
        )

    async def stage(self, stage: Stage, number: int) -> str | None:
        """Run it, and keep what it came to. Returns the stage that is next, `_NEXT` or None for the end."""
        trial = _Trial(stage, self._tools.clock)
        shown = {"rise.stage": stage.name, "rise.stage_kind": stage.kind}
        with tracing.span("stage", attributes=shown), self._recorded(trial, number), _named(stage):
            value = await self._perform(stage, trial, number)
        self._values["stages"][stage.name] = value
        return value if isinstance(stage, RouterStage) else _NEXT

    async def _perform(self, stage: Stage, trial: _Trial, number: int) -> Any:
        match stage:
            case PromptStage():
                return await self._computed(stage, trial, number, lambda: self._prompt(stage, trial))
            case HttpStage():
                return await self._computed(stage, trial, number, lambda: self._http(stage, trial))
            case PythonStage():
                return await self._computed(stage, trial, number, lambda: self._python(stage))
            case ReplyStage():
                return self._reply(stage)
            case RouterStage():
                return self._route(stage, trial)
            case FollowUpStage():
                return self._follow_up(stage)

    async def _computed(self, stage: Stage, trial: _Trial, number: int, attempt: Callable[[], Any]) -> Any:
        """Once, however often the run is repeated: the result is kept before anything depends on it."""

        async def compute() -> Any:
            value = await trial.tried(attempt)
            _refuse_what_cannot_be_kept(value)
            return value

        # By what is written up to it as well: who corrects a workflow or a prompt and lets a message go on means that.
        self.value = await self._turn.step(f"{stage.kind}:{stage.name}:{self._written[number]}", compute)
        return self.value

    @contextmanager
    def _recorded(self, trial: _Trial, number: int) -> Iterator[None]:
        outcome, error = "done", None
        try:
            yield
        except Exception as failure:  # border: recorded, and passed on
            outcome, error = "failed", clean(failure)[:2000]
            raise
        except BaseException:  # border: recorded as cut off, and passed on
            outcome = "cut off"
            raise
        finally:
            if outcome == "done" and trial.is_computed and not trial.tries:
                outcome = "kept"
            self._tools.record(trial.record(self._turn, number, outcome, error))

    # --- what costs something ---

    async def _prompt(self, stage: PromptStage, trial: _Trial) -> str:
        prompt, values = self._prompt_of(stage)
        messages = []
        if system := stage.system or prompt.system:
            messages.append(Message("system", self._text(system, values)))
        if stage.with_history:
            messages += [Message(one["role"], one["text"]) for one in self._values["history"] if _is_said(one)]
        messages.append(Message("user", self._text(prompt.template, values)))
        request = ModelRequest(
            messages=messages,
            model=stage.model or prompt.model,
            temperature=prompt.temperature if stage.temperature is None else stage.temperature,
            max_tokens=stage.max_tokens or prompt.max_tokens,
        )
        answer = await self._tools.model.answer(request, timeout_seconds=stage.timeout_seconds)
        trial.notes = {
            "model": answer.model,
            "promptTokens": answer.prompt_tokens,
            "completionTokens": answer.completion_tokens,
        }
        return answer.text

    def _prompt_of(self, stage: PromptStage) -> tuple[Prompt, Mapping[str, Any]]:
        """What is asked, and with which values: a stored prompt's own placeholders are filled by its stage."""
        if stage.prompt_id is None:
            return Prompt(template=stage.template or ""), self._values
        prompt = self._prompts[stage.prompt_id]
        if prompt is None:
            raise StageRefused(f"there is no prompt {stage.prompt_id}: store it, or name another")
        given = {name: template(text).value(self._values) for name, text in stage.values.items()}
        return prompt, {**self._values, **given}

    async def _http(self, stage: HttpStage, trial: _Trial) -> Any:
        secrets = {name: self._secret(name) for name in sorted(secrets_of(stage))}
        request = self._request(stage, {**self._values, SECRETS: secrets})
        answer = await self._tools.fetch.fetch(request, timeout_seconds=stage.timeout_seconds)
        trial.notes = {"status": answer.status}
        _refuse_unexpected(answer, stage.expect, urlsplit(request.url).hostname)
        try:
            return _without(json_of(answer), _spelled(secrets.values()))
        except RecursionError as error:
            raise StageRefused("the answer is nested too deep") from error

    def _secret(self, name: str) -> str:
        secret = self._tools.secrets(name)
        if secret is None:
            raise StageRefused(
                f"there is no secret {name} that can be opened here: set it with `rise secrets set {name}`, with the "
                "same RISE_SECRET_KEY on all hosts"
            )
        return secret

    def _request(self, stage: HttpStage, values: Mapping[str, Any]) -> HttpRequest:
        headers = {name: self._text(text, values) for name, text in stage.headers.items()}
        body = None if stage.body is None else self._text(stage.body, values).encode()
        if stage.json is not None:
            body = encode_json(_filled(stage.json, values))
            if not any(name.lower() == "content-type" for name in headers):
                headers["Content-Type"] = "application/json"
        return HttpRequest(method=stage.method, url=_address(stage.url, values), headers=headers, body=body)

    async def _python(self, stage: PythonStage) -> Any:
        function = self._tools.functions.get(stage.function)
        if function is None:
            raise StageRefused(
                f"there is no function {stage.function}: mark one with @rise.function({stage.function!r}) in RISE_APP"
            )
        # A copy: what it changes would be seen by later stages now, and not after a crash, when it is not called.
        values = copy.deepcopy(self._values)
        limit = asyncio.timeout(stage.timeout_seconds)
        try:
            async with limit:
                return await _called(function, values)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StageTimedOut(f"{stage.function} did not return within {stage.timeout_seconds:g} s") from error

    # --- what is said, and where it goes on ---

    def _reply(self, stage: ReplyStage) -> str:
        text = self._text(stage.template)
        if not text.strip():
            raise StageRefused("its template gives no text to say")
        rows = [[self._button(button) for button in row] for row in stage.buttons]
        self._turn.reply(text, buttons=rows or None, parse_mode=stage.parse_mode)
        return text

    def _button(self, button: Button) -> dict[str, str]:
        shown = {"text": button.text, "data": button.data, "url": button.url}
        return {name: self._text(text) for name, text in shown.items() if text is not None}

    def _follow_up(self, stage: FollowUpStage) -> None:
        moment = None
        if stage.at is not None:
            moment = read_moment(text := self._text(stage.at))
            if moment is None:
                raise StageRefused(f"{ascii(text)[:80]} is no moment with its time zone")
        try:
            self._turn.follow_up(
                self._text(stage.text), in_seconds=stage.in_seconds, at=moment, workflow=stage.workflow
            )
        except ValueError as error:
            raise StageRefused(str(error)) from error

    def _route(self, stage: RouterStage, trial: _Trial) -> str | None:
        goes_to = next((rule.go for rule in stage.rules if self._holds(rule)), stage.otherwise)
        trial.notes = {"goesTo": goes_to}
        return goes_to

    def _holds(self, rule: Rule) -> bool:
        if isinstance(rule.when, str):
            return self._text(rule.when).strip() == "true"
        return _compares(rule.when, template(rule.when.value).value(self._values))

    def _text(self, source: str, values: Mapping[str, Any] | None = None) -> str:
        return template(source).text(self._values if values is None else values)


class _Trial:
    """The tries of one stage."""

    def __init__(self, stage: Stage, clock: Clock) -> None:
        self.tries = 0
        self.notes: dict[str, Any] = {}
        self.is_computed = isinstance(stage, PromptStage | HttpStage | PythonStage)
        self._stage = stage
        self._clock = clock
        self._started_at = clock.now()
        self._started = clock.monotonic()

    async def tried(self, attempt: Callable[[], Any]) -> Any:
        """As often as the stage wants; then its error is for the task's own retries."""
        retries = self._stage.retries
        while True:
            self.tries += 1
            try:
                return await attempt()
            except Exception as error:  # border: tried again, or the last of them is passed on
                pause = self._pause_seconds(error)
                if self.tries > retries.max or pause is None:
                    raise
                log.debug("stage.failed", stage=self._stage.name, kind=self._stage.kind, tries=self.tries, error=error)
            await self._clock.sleep(pause)

    def _pause_seconds(self, error: Exception) -> float | None:
        """Before the next try; None if that would not help, or not within this run."""
        if isinstance(error, RiseError) and not error.retryable:
            return None
        asked_for = getattr(error, "retry_after_seconds", None) if isinstance(error, RiseError) else None
        if asked_for is not None and asked_for > WAITED_SECONDS_MAX:
            return None
        wanted = self._stage.retries.wait_seconds * self._clock.random.uniform(0.8, 1.2)
        return max(wanted, float(asked_for or 0.0))

    def record(self, turn: Turn, number: int, outcome: Any, error: str | None) -> StageRecord:
        return StageRecord(
            run_id=turn.run_id,
            attempt=turn.attempt,
            number=number,
            name=self._stage.name,
            kind=self._stage.kind,
            started_at_ms=epoch_ms(self._started_at),
            duration_ms=round((self._clock.monotonic() - self._started) * 1000, 3),
            tries=self.tries if self.is_computed and outcome != "kept" else int(outcome != "kept"),
            outcome=outcome,
            error=error,
            notes=self.notes,
        )


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """An error says which stage it is of. Those that say more by their class keep it, and get a note."""
    try:
        yield
    except StageRefused as error:
        raise StageRefused(f"the stage {stage.name}: {error.public_message}") from error
    except Exception as error:  # border: it says which stage it is of, and is passed on
        error.add_note(f"in the stage {stage.name} ({stage.kind})")
        raise


async def _called(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(values)
    value = await in_a_thread(function, values)
    return await value if inspect.isawaitable(value) else value


def _refuse_unexpected(answer: HttpAnswer, expected: Sequence[int], host: str | None) -> None:
    status = answer.status
    said = f"{host} answered {status}"
    if status in expected or (not expected and 200 <= status < 300):
        return
    if status in _NOT_NOW:
        raise SiteUnavailable(said, retry_after_seconds=_seconds(answer.retry_after))
    if status >= 500:
        raise SiteFailed(said)
    redirected = "; redirects are not followed" if 300 <= status < 400 else ""
    raise StageRefused(said + redirected)


def _address(text: str, values: Mapping[str, Any]) -> str:
    """What is put into it is one part of it, whatever it holds: it can change neither host nor path."""
    read = template(text)
    address = read.text(values, spelled=str if read.is_one_value else _as_part_of_address)
    try:
        path = urlsplit(address).path
    except ValueError as error:
        raise StageRefused("the address cannot be read") from error
    if not read.is_one_value and {"..", "."} & set(path.split("/")):
        raise StageRefused("the address leads up or nowhere: a part of its path is . or ..")
    return address


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """The JSON with its templates rendered; a text that is one placeholder becomes the value itself."""
    if isinstance(value, str):
        return template(value).value(values)
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    return {name: _filled(one, values) for name, one in value.items()} if isinstance(value, dict) else value


def _spelled(secrets: Iterable[str]) -> Sequence[str]:
    """The longest first: one may be the beginning of another."""
    return sorted({one for secret in secrets for one in spellings(secret)}, key=len, reverse=True)


def _without(value: Any, spelled: Sequence[str]) -> Any:
    """An answer in which what was asked with does not stand: some sites say back what they were told."""
    if not spelled:
        return value
    if isinstance(value, str):
        for one in spelled:
            value = value.replace(one, HIDDEN)
        return value
    if isinstance(value, list):
        return [_without(one, spelled) for one in value]
    if isinstance(value, dict):
        return {_without(name, spelled): _without(one, spelled) for name, one in value.items()}
    return value


def _seconds(retry_after: str | None) -> int | None:
    """Dates are left alone: the other's clock may be another."""
    if retry_after is None or not retry_after.strip().isdecimal():
        return None
    return min(int(retry_after.strip()[:9]), 86_400)


def _as_part_of_address(text: str) -> str:
    return quote(text, safe="")


def _as_json(values: Any) -> Any:
    """A copy that JSON can hold: old inputs may have halves of characters, which no encoding has."""
    return msgspec.json.decode(encode_json(values))


def _refuse_what_cannot_be_kept(value: Any) -> None:
    try:
        size = len(encode_json(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StageRefused(f"what it came to is no JSON: {clean(error)[:200]}") from error
    if size > VALUE_BYTES_MAX:
        raise StageRefused(f"what it came to has more than {VALUE_BYTES_MAX} bytes")


def _is_said(turn: Any) -> bool:
    """A caller's own history may hold anything."""
    if not isinstance(turn, dict):
        return False
    return turn.get("role") in ("system", "user", "assistant") and isinstance(turn.get("text"), str)


def _compares(when: When, value: Any) -> bool:
    if when.contains is None and when.starts_with is None and when.matches is None:
        return _equals(value, when.equals, ignore_case=when.ignore_case)
    text = value if isinstance(value, str) else "" if value is None else encode_json(value).decode()
    asked = when.contains or when.starts_with or when.matches or ""
    if when.ignore_case:
        text, asked = text.casefold(), asked.casefold()
    if when.contains is not None:
        return asked in text
    return text.startswith(asked) if when.starts_with is not None else _matches(text, asked)


def _equals(value: Any, expected: Any, *, ignore_case: bool) -> bool:
    if isinstance(value, bool) is not isinstance(expected, bool):
        return False
    if ignore_case and isinstance(value, str) and isinstance(expected, str):
        return value.casefold() == expected.casefold()
    return bool(value == expected)


def _matches(text: str, pattern: str) -> bool:
    """`*` stands for anything. One look through the text for each part, never back."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, last = others
    if not (text.startswith(first) and text.endswith(last) and len(text) >= len(first) + len(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True

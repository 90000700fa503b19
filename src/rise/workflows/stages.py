"""What the stages of a workflow are, and how they are read.

`{"name": "say", "kind": "reply", "template": "Hi {{ text }}"}` is one. Stages run in their order; a `router` may leave
some out. In every text that is a template there are `VALUES` and, as `stages.NAME`, what earlier stages came to.

| kind | fields, beside `name`, `kind`, `timeoutSeconds` and `retries` | its result |
|---|---|---|
| `prompt` | `template`, or `promptId`, `values`; `system`, `model`, `temperature`, `maxTokens`, `withHistory` | text |
| `http` | `url`, `method`, `headers`, `json` or `body`, `expect` (statuses; left out: any 2xx) | JSON or text |
| `python` | `function` | what it returns |
| `reply` | `template`, `parseMode`, `buttons` | the text |
| `router` | `rules` (`[{"when": …, "go": "stage" or null}]`), `otherwise` (a stage, or null: the end) | where it went |
| `follow_up` | `inSeconds` or `at`; `text`, `workflow` | null |

`timeoutSeconds` is for one try, `retries` (`{"max": 2, "waitSeconds": 0.5}`) for more tries within the run, the pause
± 20 %; left out, none: the task's own retries come after, and go on at this stage.

A rule's `when` is a template that gives `true`, or one comparison: `{"equals": "yes"}`, `contains`, `startsWith`, or
`matches`, a text in which `*` stands for anything. Compared is `value`, a template, by itself what the person wrote;
`"ignoreCase": true` means what it says. There are no regular expressions, because some of them never end.

Refuses: a jump back, or onto itself, because such a run might never end; a name that is not there, a field that is not
known, stages that together may take longer than `RUN_SECONDS_MAX`; a secret anywhere but in a request. Each with its
field, such as `stages[2].url`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from rise.channels.http import optional
from rise.envelope import json_name
from rise.errors import PayloadInvalid
from rise.workflows.templates import SECRETS, Template, check_template, template
from rise.workflows.turn import FOLLOW_UP_SECONDS_MAX

STAGES_MAX: Final = 50
RULES_MAX: Final = 50
ENTRIES_MAX: Final = 100
DEPTH_MAX: Final = 16
NAME_CHARS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 32_768
TIMEOUT_SECONDS_MAX: Final = 600.0
RETRIES_MAX: Final = 10
WAIT_SECONDS_MAX: Final = 60.0
RUN_SECONDS_MAX: Final = 3600.0
TOKENS_MAX: Final = 1_000_000
TEMPLATE_PARTS_MAX: Final = 10_000
"""Of all templates of a workflow: nothing else goes on in a process while it reads them."""

VALUES: Final = ("text", "user", "chat_id", "channel", "metadata", "history", "stages")
"""What every template has a value for; those of a request have `secrets.NAME` besides."""
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
COMPARISONS: Final = ("equals", "contains", "startsWith", "matches")

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""As it can be written after `stages.` in a template."""
_WORKFLOW: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ADDRESS: Final = re.compile(r"https?://[^\s/?#@\\{}%]+(?=[/?#]|$)")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADERS_OF_OURS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "accept-encoding",
        "expect",
    }
)


_HEADERS_WITH_KEYS: Final = frozenset(
    {"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-auth-token", "x-access-token"}
)


class Retries(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """More tries within one run."""

    max: int = 0
    wait_seconds: float = 1.0


class _Stage(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind"):
    name: str
    timeout_seconds: float = 30.0
    retries: Retries = Retries()

    @property
    def kind(self) -> str:
        return str(type(self).__struct_config__.tag)


class PromptStage(_Stage, frozen=True, kw_only=True, tag="prompt"):
    template: str | None = None
    prompt_id: str | None = None
    values: dict[str, str] = msgspec.field(default_factory=dict)
    """Templates for the placeholders that the stored prompt has of its own."""
    system: str | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    with_history: bool = False
    timeout_seconds: float = 60.0


class HttpStage(_Stage, frozen=True, kw_only=True, tag="http"):
    url: str
    method: str = "GET"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    json: Any = None
    body: str | None = None
    expect: tuple[int, ...] = ()
    """Statuses; empty: any 2xx."""
    timeout_seconds: float = 10.0


class PythonStage(_Stage, frozen=True, kw_only=True, tag="python"):
    function: str
    timeout_seconds: float = 60.0


class Button(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of it templates."""

    text: str
    data: str | None = None
    url: str | None = None


class ReplyStage(_Stage, frozen=True, kw_only=True, tag="reply"):
    template: str
    parse_mode: str | None = None
    buttons: tuple[tuple[Button, ...], ...] = ()


class When(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One comparison; the others are left out."""

    value: str = "{{ text }}"
    equals: Any = msgspec.UNSET
    contains: str | None = None
    starts_with: str | None = None
    matches: str | None = None
    ignore_case: bool = False


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    when: When | str
    """A comparison, or a template that gives `true`."""
    go: str | None
    """A stage; None: the end."""


class RouterStage(_Stage, frozen=True, kw_only=True, tag="router"):
    rules: tuple[Rule, ...]
    otherwise: str | None = None


class FollowUpStage(_Stage, frozen=True, kw_only=True, tag="follow_up"):
    in_seconds: float | None = None
    at: str | None = None
    """A template of a moment with its time zone, such as `2026-01-31T09:00:00+01:00`."""
    text: str = ""
    workflow: str | None = None


Stage: TypeAlias = PromptStage | HttpStage | PythonStage | ReplyStage | RouterStage | FollowUpStage


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A stored one. What its stage says goes before it."""

    template: str
    system: str | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def read_stages(fields: Any) -> tuple[Stage, ...]:
    """The stages of a workflow. Raises `PayloadInvalid` with the field, such as `stages[2].url`."""
    if type(fields) is not list or not 0 < len(fields) <= STAGES_MAX:
        raise PayloadInvalid(f"stages is a list of 1 to {STAGES_MAX} stages", field="stages")
    names: list[str] = []
    for at, one in enumerate(fields):
        names.append(_name_of_its_own(_Fields(one, f"stages[{at}]"), names))
    work = _Work()
    stages = tuple(_read_stage(one, at, names, work) for at, one in enumerate(fields))
    if (seconds := seconds_at_most(stages)) > RUN_SECONDS_MAX:
        raise PayloadInvalid(
            f"stages may take up to {seconds:g} s together, with all their tries; at most {RUN_SECONDS_MAX:g}",
            field="stages",
        )
    return stages


def secrets_asked_for(fields: Any) -> list[tuple[str, str]]:
    """Each secret that stages name, after its field, such as `stages[2].headers.Authorization`. Raises as `read_stages`
    does."""
    return [
        (f"stages[{at}].{field}", name)
        for at, stage in enumerate(read_stages(fields))
        if isinstance(stage, HttpStage)
        for field, text in _texts_of(stage)
        for name in sorted(template(text).secrets)
    ]


def secrets_of(stage: HttpStage) -> set[str]:
    """The names of those that it puts into its request."""
    return {name for _, text in _texts_of(stage) for name in template(text).secrets}


def keys_in_plain_text(fields: Any) -> list[str]:
    """The headers that are for keys and hold no secret and nothing that is looked up, such as
    `stages[2].headers.Authorization`. Raises as `read_stages` does."""
    return [
        f"stages[{at}].headers.{name}"
        for at, stage in enumerate(read_stages(fields))
        if isinstance(stage, HttpStage)
        for name, text in stage.headers.items()
        if name.lower() in _HEADERS_WITH_KEYS and not template(text).names
    ]


def _texts_of(stage: HttpStage) -> Iterator[tuple[str, str]]:
    """Its templates, each after its field."""
    yield "url", stage.url
    yield from ((f"headers.{name}", text) for name, text in stage.headers.items())
    yield from _texts_in("json", stage.json)
    if stage.body is not None:
        yield "body", stage.body


def _texts_in(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _texts_in(f"{place}[{at}]", one)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts_in(f"{place}.{name}", one)


def seconds_at_most(stages: Sequence[Stage]) -> float:
    """How long they may take with all their tries and pauses."""
    return sum(
        stage.timeout_seconds * (stage.retries.max + 1)
        + max(stage.retries.wait_seconds * 1.2, 10.0) * stage.retries.max
        for stage in stages
    )


# --- one stage --------------------------------------------------------------------------------------------


def _name_of_its_own(fields: _Fields, taken: Sequence[str]) -> str:
    name = fields.text("name", chars_max=NAME_CHARS_MAX)
    if not _NAME.fullmatch(name):
        raise fields.wrong("name", "is letters, digits and _, and begins with no digit: templates call it stages.NAME")
    if name in taken:
        raise fields.wrong("name", f"is {name}, as another stage's")
    return name


def _read_stage(value: Any, at: int, names: Sequence[str], work: _Work) -> Stage:
    fields = _Fields(value, f"stages[{at}]", stages=names[:at], later=names[at + 1 :], work=work)
    fields.text("name")
    kind = fields.one_of("kind", tuple(_READERS))
    stage: Stage = _READERS[kind](fields, names[at])
    fields.refuse_others(f"{'an' if kind == 'http' else 'a'} {kind} stage")
    return stage


def _prompt(fields: _Fields, name: str) -> PromptStage:
    template, prompt_id = fields.template_or_none("template"), fields.text_or_none("promptId", chars_max=200)
    if (template is None) == (prompt_id is None):
        raise fields.wrong("template", "or promptId is needed, one of the two")
    values = fields.templates_by_name("values")
    if values and prompt_id is None:
        raise fields.wrong("values", "is for a promptId: a template of its own names what it needs itself")
    return PromptStage(
        name=name,
        template=template,
        prompt_id=prompt_id,
        values=values,
        system=fields.template_or_none("system"),
        model=fields.text_or_none("model", chars_max=200),
        temperature=fields.number("temperature", 0.0, 2.0),
        max_tokens=fields.whole("maxTokens", 1, TOKENS_MAX),
        with_history=fields.flag("withHistory"),
        **_patience(fields),
    )


def _http(fields: _Fields, name: str) -> HttpStage:
    fields.may_name_secrets()
    if fields.has("json") and fields.has("body"):
        raise fields.wrong("body", "and json are two bodies; a request has one")
    return HttpStage(
        name=name,
        url=_address(fields),
        method=fields.one_of("method", METHODS, otherwise="GET"),
        headers=_headers(fields),
        json=_json(fields),
        body=fields.template_or_none("body"),
        expect=_statuses(fields),
        **_patience(fields),
    )


def _address(fields: _Fields) -> str:
    url = fields.template("url")
    read = fields.read("url", url)
    if read.is_one_value and read.secrets:
        raise fields.wrong("url", "is a secret as a whole: write the host out, and put the secret into the rest")
    if not _ADDRESS.match(url) and not read.is_one_value:
        raise fields.wrong(
            "url",
            "begins with http:// or https:// and a host that is written out, or is one placeholder that is all of it",
        )
    return url


def _headers(fields: _Fields) -> dict[str, str]:
    headers = fields.templates_by_name("headers")
    for header in headers:
        if not _HEADER.fullmatch(header) or header.lower() in _HEADERS_OF_OURS:
            raise fields.wrong(f"headers.{header[:80]}", "is no header, or one that is not for a stage to set")
    return headers


def _json(fields: _Fields) -> Any:
    """Every text in it is a template."""
    value = fields.anything("json")
    waiting = [("json", 1, value)]
    while waiting:
        place, depth, part = waiting.pop()
        if depth > DEPTH_MAX:
            raise fields.wrong(place, f"is nested deeper than {DEPTH_MAX}")
        if type(part) is str:
            fields.read(place, part)
        elif type(part) is list:
            waiting += [(f"{place}[{at}]", depth + 1, one) for at, one in enumerate(part)]
        elif type(part) is dict:
            waiting += [(f"{place}.{name[:80]}", depth + 1, one) for name, one in part.items()]
    return value


def _statuses(fields: _Fields) -> tuple[int, ...]:
    statuses = fields.entries("expect", of_at_most=ENTRIES_MAX)
    if not all(type(status) is int and 200 <= status <= 599 for status in statuses):
        raise fields.wrong("expect", "is a list of statuses, each from 200 to 599")
    return tuple(statuses)


def _python(fields: _Fields, name: str) -> PythonStage:
    function = fields.text("function", chars_max=NAME_CHARS_MAX)
    return PythonStage(name=name, function=function, **_patience(fields))


def _reply(fields: _Fields, name: str) -> ReplyStage:
    return ReplyStage(
        name=name,
        template=fields.template("template"),
        parse_mode=fields.text_or_none("parseMode", chars_max=20),
        buttons=_buttons(fields),
        **_patience(fields),
    )


def _buttons(fields: _Fields) -> tuple[tuple[Button, ...], ...]:
    rows = []
    for at, row in enumerate(fields.entries("buttons", of_at_most=ENTRIES_MAX)):
        if type(row) is not list or len(row) > ENTRIES_MAX:
            raise fields.wrong(f"buttons[{at}]", "is a row, a list of buttons")
        rows.append(tuple(_button(fields.within(f"buttons[{at}][{place}]", one)) for place, one in enumerate(row)))
    return tuple(rows)


def _button(fields: _Fields) -> Button:
    button = Button(
        text=fields.template("text"), data=fields.template_or_none("data"), url=fields.template_or_none("url")
    )
    fields.refuse_others("a button")
    if (button.data is None) == (button.url is None):
        raise fields.wrong("data", "or url is needed, one of the two")
    return button


def _router(fields: _Fields, name: str) -> RouterStage:
    rules = fields.entries("rules", of_at_most=RULES_MAX)
    if not rules:
        raise fields.wrong("rules", "is a list of at least one rule")
    return RouterStage(
        name=name,
        rules=tuple(_rule(fields.within(f"rules[{at}]", one)) for at, one in enumerate(rules)),
        otherwise=fields.later_stage("otherwise"),
        **_patience(fields),
    )


def _rule(fields: _Fields) -> Rule:
    when = fields.anything("when")
    if when is None:
        raise fields.wrong("when", "is missing")
    if "go" not in fields.value:
        raise fields.wrong("go", "is missing: the name of a later stage, or null for the end")
    read = fields.template("when") if type(when) is str else _when(fields.within("when", when))
    rule = Rule(when=read, go=fields.later_stage("go"))
    fields.refuse_others("a rule")
    return rule


def _when(fields: _Fields) -> When:
    asked = [name for name in COMPARISONS if name in fields.value]
    if len(asked) != 1:
        raise PayloadInvalid(
            f"{fields.place} is a template, or has one of {', '.join(COMPARISONS)}", field=fields.place
        )
    equals = fields.anything("equals")
    if isinstance(equals, dict | list):
        raise fields.wrong("equals", "is a text, a number, true, false or null")
    when = When(
        value=fields.template_or_none("value") or "{{ text }}",
        equals=equals if asked == ["equals"] else msgspec.UNSET,
        contains=fields.text_or_none("contains"),
        starts_with=fields.text_or_none("startsWith"),
        matches=fields.text_or_none("matches", chars_max=1000),
        ignore_case=fields.flag("ignoreCase"),
    )
    fields.refuse_others("a comparison")
    if asked != ["equals"] and not fields.has(asked[0]):
        raise fields.wrong(asked[0], "is missing")
    return when


def _follow_up(fields: _Fields, name: str) -> FollowUpStage:
    in_seconds, at = fields.number("inSeconds", 0.0, FOLLOW_UP_SECONDS_MAX), fields.template_or_none("at")
    if (in_seconds is None) == (at is None):
        raise fields.wrong("inSeconds", "or at is needed, one of the two")
    if at is not None and not fields.read("at", at).names and read_moment(at) is None:
        raise fields.wrong("at", "is a moment with its time zone, such as 2026-01-31T09:00:00+01:00")
    text, workflow = fields.template_or_none("text"), fields.text_or_none("workflow", chars_max=NAME_CHARS_MAX)
    if text is None and workflow is None:
        raise fields.wrong("text", "is needed, to be said, or a workflow, to be run")
    if workflow is not None and not _WORKFLOW.fullmatch(workflow):
        raise fields.wrong("workflow", "is the name of a workflow")
    return FollowUpStage(
        name=name, in_seconds=in_seconds, at=at, text=text or "", workflow=workflow, **_patience(fields)
    )


def read_moment(text: str) -> datetime | None:
    """A moment with its time zone; None for anything else. How far ahead it may be, is said when it is planned."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _patience(fields: _Fields) -> dict[str, Any]:
    """How long, and how often. What is left out is the kind's."""
    patience: dict[str, Any] = {}
    if (seconds := fields.number("timeoutSeconds", 0.001, TIMEOUT_SECONDS_MAX)) is not None:
        patience["timeout_seconds"] = seconds
    if fields.has("retries"):
        retries = fields.within("retries", fields.anything("retries"))
        most, wait_seconds = retries.whole("max", 0, RETRIES_MAX), retries.number("waitSeconds", 0.0, WAIT_SECONDS_MAX)
        retries.refuse_others("retries")
        patience["retries"] = Retries(max=most or 0, wait_seconds=1.0 if wait_seconds is None else wait_seconds)
    return patience


_READERS: Final[dict[str, Any]] = {
    "prompt": _prompt,
    "http": _http,
    "python": _python,
    "reply": _reply,
    "router": _router,
    "follow_up": _follow_up,
}


# --- reading fields ---------------------------------------------------------------------------------------


class _Work:
    """How much all templates of a workflow are to read."""

    def __init__(self) -> None:
        self._left = TEMPLATE_PARTS_MAX

    def spend(self, parts: int) -> None:
        self._left -= parts
        if self._left < 0:
            raise PayloadInvalid(f"stages hold templates of more than {TEMPLATE_PARTS_MAX} parts", field="stages")


class _Fields:
    """A JSON object at its place; what is asked for is known, the rest is refused."""

    def __init__(
        self,
        value: Any,
        place: str,
        *,
        stages: Sequence[str] = (),
        later: Sequence[str] = (),
        work: _Work | None = None,
    ) -> None:
        if type(value) is not dict:
            raise PayloadInvalid(f"{place} is {json_name(value)}, not an object", field=place)
        self.value: dict[str, Any] = value
        self.place = place
        self._stages = stages
        self._later = later
        self._work = work or _Work()
        self._known: Sequence[str] = VALUES
        self._asked: dict[str, None] = {}

    def within(self, name: str, value: Any) -> _Fields:
        return _Fields(value, f"{self.place}.{name}", stages=self._stages, later=self._later, work=self._work)

    def may_name_secrets(self) -> None:
        self._known = (*VALUES, SECRETS)

    def wrong(self, name: str, why: str) -> PayloadInvalid:
        return PayloadInvalid(f"{self.place}.{name} {why}", field=f"{self.place}.{name}")

    def has(self, name: str) -> bool:
        return self.value.get(name) is not None

    def anything(self, name: str, *types: type) -> Any:
        self._asked[name] = None
        try:
            return optional(self.value, name, *types)
        except PayloadInvalid as error:
            raise PayloadInvalid(f"{self.place}.{error.public_message}", field=f"{self.place}.{name}") from error

    def text_or_none(self, name: str, *, chars_max: int = TEXT_CHARS_MAX) -> str | None:
        text: str | None = self.anything(name, str)
        if text is not None and not (text and len(text) <= chars_max):
            raise self.wrong(name, f"is 1 to {chars_max} characters")
        return text

    def text(self, name: str, *, chars_max: int = TEXT_CHARS_MAX) -> str:
        text = self.text_or_none(name, chars_max=chars_max)
        if text is None:
            raise self.wrong(name, "is missing")
        return text

    def one_of(self, name: str, choices: Sequence[str], *, otherwise: str | None = None) -> str:
        chosen = self.text_or_none(name) or otherwise
        if chosen is None or chosen not in choices:
            raise self.wrong(name, f"is one of {', '.join(choices)}")
        return chosen

    def flag(self, name: str) -> bool:
        return bool(self.anything(name, bool))

    def number(self, name: str, least: float, most: float) -> float | None:
        number = self.anything(name, int, float)
        if number is not None and not least <= number <= most:
            raise self.wrong(name, f"is a number from {least:g} to {most:g}")
        return None if number is None else float(number)

    def whole(self, name: str, least: int, most: int) -> int | None:
        number: int | None = self.anything(name, int)
        if number is not None and not least <= number <= most:
            raise self.wrong(name, f"is a whole number from {least} to {most}")
        return number

    def entries(self, name: str, *, of_at_most: int) -> Sequence[Any]:
        found: Sequence[Any] = self.anything(name, list) or ()
        if len(found) > of_at_most:
            raise self.wrong(name, f"has more than {of_at_most} entries")
        return found

    def template_or_none(self, name: str) -> str | None:
        text = self.text_or_none(name)
        if text is not None:
            self.read(name, text)
        return text

    def template(self, name: str) -> str:
        text = self.text(name)
        self.read(name, text)
        return text

    def templates_by_name(self, name: str) -> dict[str, str]:
        named: dict[str, Any] = self.anything(name, dict) or {}
        if len(named) > ENTRIES_MAX:
            raise self.wrong(name, f"has more than {ENTRIES_MAX} entries")
        for key, text in named.items():
            if type(text) is not str:
                raise self.wrong(f"{name}.{key[:80]}", f"is {json_name(text)}; expected a string")
            self.read(f"{name}.{key[:80]}", text)
        return named

    def read(self, name: str, text: str) -> Template:
        """As a template of a stage that has these before it."""
        read = check_template(text, f"{self.place}.{name}", known=self._known)
        self._work.spend(read.parts)
        for stage in sorted(read.stages - set(self._stages)):
            before = f"; before it are {', '.join(self._stages)}" if self._stages else "; there is none"
            raise self.wrong(name, f"names the stage {ascii(stage)[1:-1][:80]}, which is not before it{before}")
        return read

    def later_stage(self, name: str) -> str | None:
        """Only forward: a jump back could go round for ever."""
        go = self.text_or_none(name, chars_max=NAME_CHARS_MAX)
        if go is None or go in self._later:
            return go
        after = f"; after it are {', '.join(self._later)}" if self._later else "; it is the last"
        raise self.wrong(
            name, f"is {ascii(go)[1:-1]}, no stage after this one{after}. Back is no way: it might never end"
        )

    def refuse_others(self, what: str) -> None:
        for name in self.value:
            if name not in self._asked:
                shown = ascii(name)[1:-1][:80]
                raise self.wrong(shown, f"is not a field of {what}; it has {', '.join(self._asked)}")

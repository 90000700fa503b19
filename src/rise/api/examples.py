"""The API as a tour: every route once, in an order in which each request works. A page is made of it, a test plays it.

Refuses: a route without an example (the test says which), and an example that is answered otherwise than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_SAY: Final = [{"name": "say", "kind": "reply", "template": "You said: {{ text }}"}]
_SAY_MORE: Final = [{"name": "say", "kind": "reply", "template": "Hello {{ user.name | default('you') }}: {{ text }}"}]
_HTTP: Final = {"channel": "http", "enabled": True, "why": "the shop asks it"}
_ASK: Final = {"userText": "Where is my parcel?", "waitForResult": True, "waitTimeoutSeconds": 20}

_ASK_LATER: Final = {"userText": "Where is my parcel?", "callbackUrl": "https://shop.example/rise?order=4711"}
_CALLBACKS: Final = """\
With a `callbackUrl`, what became of the task is posted there as well, as `{"data": …, "meta": {"callbackId"}}`. `data`
is what `GET /api/workflows/tasks/{task_id}` shows at that moment; but `raw`, which its caller has, is null. That is
posted once when the task has ended, whatever its `status` is then (`completed`, `expired`, `dropped`); and before,
once for each `reason`, when it is `suspended`: it waits for a person or an event then, and may still end. What a person
has run again is posted again, as another `generation`.

- *Signed* with `RISE_CALLBACK_SECRET`, without which nobody may ask for it: `X-Rise-Signature` is `sha256=` and the
  HMAC-SHA256, in hexadecimal, of `X-Rise-Timestamp`, a full stop and the body. Compare it, and refuse what is minutes
  old.
- *Until it is taken*, which 2xx says, within 10 s. Anything else, redirects too, is tried again, through crashes and
  restarts: after 2 s, then after half as long as it has waited already, an hour at most; or as `Retry-After` says in
  seconds, with 429 and 503.
- *For a day*, or until it is answered 410. Then it is given up: the log says `callback.given_up`,
  `rise_callbacks_given_up_total` counts it, and the task shows it as `failed` among its `replies`. The result can be
  read all the same.
- *Perhaps twice*, where an answer was lost: the body is the same to the byte then, its `callbackId` too. What is posted
  of one task comes in order; of several, in any.
- *Where to*: `https://` and a host, without a name or password. What is not public, and `http://`, only where
  `RISE_HTTP_STAGE_ALLOW` names it. What can be seen to be otherwise is answered 422; a name that leads inside is not
  posted to. Of the URL nothing but the host is shown or logged."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `{name}` in its path and body stands for what an earlier one was answered."""

    method: str
    path: str
    query: str = ""
    body: Any = None
    headers: Mapping[str, str] = {}
    whose: str = "token"
    """Whose credentials: the `token` of an operator or admin, `session` of a web chat; empty for none."""
    keeps: Mapping[str, str] = {}
    """Name → where in the answer it is, as in `data.taskId`."""
    uses: Mapping[str, str] = {}
    """Name in the path → what was kept, where that has another name."""
    is_stream: bool = False

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


class Chapter(msgspec.Struct, frozen=True):
    title: str
    text: str
    examples: tuple[Example, ...]


def _get(path: str, query: str = "", **fields: Any) -> Example:
    return Example(method="GET", path=path, query=query, **fields)


def _post(path: str, body: Any = None, **fields: Any) -> Example:
    return Example(method="POST", path=path, body=body, **fields)


def _put(path: str, body: Any, **fields: Any) -> Example:
    return Example(method="PUT", path=path, body=body, **fields)


def _patch(path: str, body: Any, **fields: Any) -> Example:
    return Example(method="PATCH", path=path, body=body, **fields)


def _delete(path: str, **fields: Any) -> Example:
    return Example(method="DELETE", path=path, **fields)


TOUR: Final = (
    Chapter(
        "Is it well?",
        "For load balancers and people, without a token.",
        (_get("/healthz", whose=""), _get("/healthz/startup", whose=""), _get("/healthz/readiness", whose="")),
    ),
    Chapter(
        "Workflows",
        "A workflow of stages is edited as a draft and runs as it was published. `docs/stages.md` says what stages "
        "are. Workflows in code are listed beside them, with `stages: null`.",
        (
            _post("/api/workflows", {"name": "greeter", "stages": _SAY}, keeps={"workflow_id": "data.workflowId"}),
            _post("/api/workflows/{workflow_id}/publish", {"comment": "the first one"}),
            _put("/api/workflows/{workflow_id}", {"version": 1, "stages": _SAY_MORE, "comment": "warmer"}),
            _get("/api/workflows/{workflow_id}"),
            _post("/api/workflows/{workflow_id}/publish", {"comment": "a warmer tone"}),
            _get("/api/workflows/{workflow_id}/history"),
            _get("/api/workflows/{workflow_id}/diff", "?from=1&to=2"),
            _post("/api/workflows/{workflow_id}/rollback", {"version": 1, "comment": "too warm"}),
            _get("/api/workflows"),
            _post("/api/workflows", {"name": "scrap", "stages": _SAY}, keeps={"scrap": "data.workflowId"}),
            _delete("/api/workflows/{workflow_id}", uses={"workflow_id": "scrap"}),
        ),
    ),
    Chapter(
        "Prompts",
        "Texts for a language model that `prompt` stages name. A change holds at once, in all workflows that use it.",
        (
            _post(
                "/api/prompts",
                {"name": "greet", "template": "Greet {{ user.name }}: {{ tone }}", "placeholders": ["tone"]},
                keeps={"prompt_id": "data.promptId"},
            ),
            _put("/api/prompts/{prompt_id}", {"version": 1, "template": "Greet them kindly. {{ tone }}"}),
            _get("/api/prompts/{prompt_id}"),
            _get("/api/prompts/{prompt_id}/history"),
            _get("/api/prompts"),
            _delete("/api/prompts/{prompt_id}"),
        ),
    ),
    Chapter(
        "Secrets",
        "What `http` stages put into their requests as `{{ secrets.NAME }}`. They are kept sealed and shown nowhere.",
        (
            _put("/api/secrets/{secret}", {"value": "key-of-the-shop"}),
            _get("/api/secrets"),
            _delete("/api/secrets/{secret}"),
        ),
    ),
    Chapter(
        "Bindings",
        "Which workflow serves which channel and account, and how. `docs/bindings.md` explains routes, policy and the "
        "kill switch. Which binding is meant: `?channel=` and `?account=`; left out, Telegram and its default bot.",
        (
            _get("/api/channel-bindings/options"),
            _put("/api/channel-bindings/{workflow_id}", _HTTP),
            _get("/api/channel-bindings/{workflow_id}", "?channel=http"),
            _post("/api/channel-bindings/{workflow_id}/refresh", query="?channel=http"),
            _get("/api/channels/{channel}/health"),
            _post("/api/channels/{channel}/test"),
        ),
    ),
    Chapter(
        "Messages",
        "What these answer with 2xx is durable, and is answered once. An `Idempotency-Key` makes repeating safe: the "
        "same key is the same message.\n\n" + _CALLBACKS,
        (
            _post(
                "/api/workflows/apply",
                _ASK,
                headers={"Idempotency-Key": "order-4711"},
                keeps={"task_id": "data.taskId"},
            ),
            _get("/api/workflows/tasks/{task_id}"),
            _post("/api/workflows/apply", _ASK_LATER),
            _post("/api/messages", {"channel": "telegram", "chatId": 42, "text": "Your parcel is there."}),
        ),
    ),
    Chapter(
        "Follow-ups",
        "What is to be said, or which workflow is to run, in a chat later. `docs/follow-ups.md` says what is promised.",
        (
            _post(
                "/api/follow-ups",
                {"channel": "telegram", "chatId": 42, "inSeconds": 3600, "text": "Was it all right?"},
                headers={"Idempotency-Key": "after-order-4711"},
                keeps={"follow_up_id": "data.followUpId"},
            ),
            _post(
                "/api/follow-ups",
                {
                    "channel": "telegram",
                    "chatId": 42,
                    "at": "2026-12-24T09:00:00",
                    "timeZone": "Europe/Berlin",
                    "text": "We are closed from noon today.",
                    "missed": "skip",
                },
            ),
            _get("/api/follow-ups", "?channel=telegram&chatId=42&status=planned"),
            _patch("/api/follow-ups/{follow_up_id}", {"inSeconds": 7200}),
            _get("/api/follow-ups/{follow_up_id}"),
            _delete("/api/follow-ups/{follow_up_id}", query="?why=they+wrote+themselves"),
        ),
    ),
    Chapter(
        "What waits, and letting it go on",
        "Suspended messages wait for a person or an event, each with its reason.",
        (
            _post(
                "/api/channel-bindings/{workflow_id}/kill-switch",
                {"on": True, "reason": "it answers nonsense"},
                query="?channel=http",
            ),
            _post("/api/workflows/apply", {"userText": "Hello?"}, keeps={"waiting": "data.taskId"}),
            _post("/api/workflows/apply", {"userText": "Spam"}, keeps={"unwanted": "data.taskId"}),
            _get("/internal/tasks/suspended", "?reason=kill_switch"),
            _post(
                "/api/channel-bindings/{workflow_id}/kill-switch",
                {"on": False, "reason": "mended"},
                query="?channel=http",
            ),
            _delete("/internal/tasks/{task_id}", query="?why=spam", uses={"task_id": "unwanted"}),
            _post("/internal/tasks/resume", {"reason": "kill_switch", "dryRun": True}),
            _post("/internal/tasks/{task_id}/resume", query="?why=mended", uses={"task_id": "waiting"}),
            _post("/internal/forget", {"channel": "telegram", "chatId": 43, "why": "asked for it", "dryRun": True}),
            _get("/internal/tasks/stats"),
            _get("/internal/operations", "?limit=10"),
            _post("/internal/capabilities/{name}/probe"),
            _get("/metrics"),
        ),
    ),
    Chapter(
        "Web chat",
        "What the page of the web chat asks; a program may do the same.",
        (
            _post("/webchat/session", whose="", keeps={"session": "data.token"}),
            _post("/webchat/messages", {"clientMessageId": "m-1", "text": "Hello"}, whose="session"),
            _get("/webchat/events", whose="session", is_stream=True),
        ),
    ),
)

STANDS_FOR: Final = {"channel": "http", "name": "disk", "secret": "SHOP_KEY"}
"""Names in paths that no answer gives."""

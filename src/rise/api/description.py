"""What the API says of itself: for every route what it takes, what it answers, and how it refuses.

Promises: every status that a route can answer is said here, with the form of its body; all refusals have one form.

Refuses: to repeat what the readers of requests check beyond a schema (`channels/http.py`); that is answered 422.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, get_args

from rise.callbacks import URL_CHARS_MAX
from rise.capabilities import CapabilityStatus
from rise.channels import http, telegram, webchat
from rise.definitions.records import ENGINES
from rise.envelope import FOLLOW_UP_AHEAD_MAX, Outcome, Reason, Status, TaskType
from rise.errors import CapabilityClosed
from rise.follow_ups.moments import AT_CHARS_MAX, ZONE_CHARS_MAX
from rise.follow_ups.port import FollowUpStatus, Missed
from rise.ledger.port import ReplyKind, ReplyState
from rise.runtime import prompts, publishing, stage_secrets
from rise.runtime.binding_health import HealthStatus
from rise.runtime.differences import ChangeKind
from rise.runtime.publishing import WorkflowStatus
from rise.settings import CHANNELS
from rise.workflows.stages import STAGES_MAX, Stage
from rise.workflows.templates import TEMPLATE_CHARS_MAX

Schema = Mapping[str, Any]

# Beside 500, which any route can answer: a bug of ours.
WITH_TOKEN: Final = (401, 403, 429)
ANONYMOUS: Final = (429,)
WITH_SESSION: Final = (401, 429)
WITH_BODY: Final = (400, 408, 413, 415, 422)
FROM_STORE: Final = (*WITH_TOKEN, 503)

_MEANINGS: Final = {
    400: "It is not even JSON, or broke off.",
    401: "No credentials, or none that are known.",
    403: "The token's role may not do this.",
    404: "There is none such.",
    408: "The body did not arrive in time.",
    409: "Not in the state in which it is, or it has changed meanwhile.",
    413: "The body is too large.",
    415: "Not `application/json`, or compressed.",
    422: "A field is missing, wrong or unknown; `error.field` names it.",
    429: "Too many requests from this address.",
    500: "A bug of ours. What it was is in the log, under the request id.",
    503: "Something that this needs does not answer; `capability` says what. Trying again is right and safe.",
}


def _object(properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(words: type[StrEnum]) -> Schema:
    return {"type": "string", "enum": [word.value for word in words]}


_ANYTHING: Final[Schema] = {}
_OPEN_OBJECT: Final[Schema] = {"type": "object"}
TEXT: Final[Schema] = {"type": "string"}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_COUNTS: Final[Schema] = {"type": "object", "additionalProperties": _COUNT}
_SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
_RATE: Final[Schema] = {"type": "number", "minimum": 0}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_META: Final = _object({"requestId": TEXT, "status": TEXT, "warnings": _list(TEXT)})

# --- what is answered -------------------------------------------------------------------------------------

_ERROR: Final = _object(
    {
        "data": _or_null(_object({"idempotencyKey": TEXT})),
        "error": _object({"code": TEXT, "message": TEXT, "field": TEXT}, optional=("message", "field")),
        "meta": _META,
        "capability": TEXT,
        "status": TEXT,
        "detail": TEXT,
    },
    optional=("capability", "status", "detail"),
)

_CLOSED: Final = _object(
    {
        "data": _ERROR["properties"]["data"],
        "capability": TEXT,
        "status": _one_of(CapabilityStatus),
        "detail": TEXT,
        "error": _object({"code": {"type": "string", "enum": [CapabilityClosed.code]}}),
        "meta": _META,
    }
)
"""Of what every probe watches, whoever finds it away."""

_CAPABILITY: Final = {"status": _one_of(CapabilityStatus), "checked_at": _MOMENT, "detail": TEXT}
_MEANING: Final = {"consequence": TEXT, "remedy": TEXT}
_CAPABILITY_SHOWN: Final = _object(_CAPABILITY | _MEANING, optional=tuple(_MEANING))
HEALTH: Final = _object(
    {
        "status": {"type": "string", "enum": ["ok", "degraded", "unavailable"]},
        "router": TEXT,
        "capabilities": {"type": "object", "additionalProperties": _CAPABILITY_SHOWN},
    }
)
PROBED: Final = _object({"name": TEXT} | _CAPABILITY | _MEANING, optional=tuple(_MEANING))

_RETRY: Final = _object({"count": _COUNT, "max": _COUNT, "nextAttemptAt": _COUNT})
_PAYLOAD: Final = _object(
    {
        "workflowId": _or_null(TEXT),
        "channel": TEXT,
        "source": TEXT,
        "metadata": _OPEN_OBJECT,
        "userText": TEXT,
        "historyChunks": _list(_ANYTHING),
        "policy": _OPEN_OBJECT,
        "telemetry": _OPEN_OBJECT,
        "channelPayload": _object({"version": TEXT, "raw": _ANYTHING}, optional=("raw",)),
    }
)
_ENVELOPE: Final = {
    "taskId": TEXT,
    "taskType": _one_of(TaskType),
    "status": _one_of(Status),
    "reason": _or_null(_one_of(Reason)),
    "payload": _PAYLOAD,
    "context": _object({"idempotencyKey": TEXT, "traceId": TEXT, "user": _OPEN_OBJECT}),
    "retry": _RETRY,
    "createdAt": _MOMENT,
    "updatedAt": _MOMENT,
    "result": _ANYTHING,
    "error": _or_null(TEXT),
}
_REPLY: Final = _object(
    {
        "replyId": TEXT,
        "kind": _one_of(ReplyKind),
        "state": _one_of(ReplyState),
        "chatId": TEXT,
        "method": TEXT,
        "params": _OPEN_OBJECT,
        "text": TEXT,
        "tries": _COUNT,
        "resends": _COUNT,
        "platformRef": _or_null(TEXT),
        "error": _or_null(TEXT),
    }
)
_STAGE_RAN: Final = _object(
    {
        "runId": TEXT,
        "attempt": _COUNT,
        "number": _COUNT,
        "name": TEXT,
        "kind": TEXT,
        "startedAtMs": _COUNT,
        "durationMs": _SECONDS,
        "tries": _COUNT,
        "outcome": {"type": "string", "enum": ["done", "kept", "failed", "cut off"]},
        "error": _or_null(TEXT),
        "notes": _OPEN_OBJECT,
    }
)
TASK: Final = _object(
    _ENVELOPE
    | {
        "outcome": _or_null(_one_of(Outcome)),
        "generation": _COUNT,
        "deaths": _COUNT,
        "finishedAt": _or_null(_MOMENT),
        "droppedBy": _or_null(TEXT),
        "droppedWhy": _or_null(TEXT),
        "workflowRun": _or_null(TEXT),
        "workflowVersion": _or_null(_COUNT),
        "stages": _list(_STAGE_RAN),
        "attemptsNotKept": _COUNT,
        "attempts": _list(_object({"at": _MOMENT, "error": TEXT, "counted": _BOOLEAN})),
        "replies": _list(_REPLY),
    }
)
SUSPENDED: Final = _list(_object(_ENVELOPE | {"suspendedAt": _MOMENT, "deaths": _COUNT}))
ACCEPTED: Final = _object(
    {
        "taskId": TEXT,
        "idempotencyKey": TEXT,
        "duplicate": _BOOLEAN,
        "status": _one_of(Status),
        "reason": _or_null(_one_of(Reason)),
        "retry": _or_null(_RETRY),
        "outcome": _or_null(_one_of(Outcome)),
        "result": _ANYTHING,
        "error": _or_null(TEXT),
    },
    optional=("reason", "outcome", "error"),
)
RESUMED: Final = _object({"count": _COUNT, "taskIds": _list(TEXT), "dryRun": _BOOLEAN})
RESUMED_ONE: Final = _object({"taskId": TEXT, "status": _one_of(Status)})
DROPPED: Final = _object({"taskId": TEXT, "status": _one_of(Status), "by": _or_null(TEXT), "why": _or_null(TEXT)})
FORGOTTEN: Final = _object(
    {
        "dryRun": _BOOLEAN,
        "open": _COUNT,
        "dropped": _COUNT,
        "messages": _COUNT,
        "replies": _COUNT,
        "turns": _COUNT,
        "unfinished": _COUNT,
        "unreadable": _COUNT,
        "traces": _list(_object({"what": TEXT, "until": TEXT})),
    }
)
PLANNED: Final = _object({"followUpId": TEXT, "idempotencyKey": TEXT, "duplicate": _BOOLEAN})
FOLLOW_UP: Final = _object(
    {
        "followUpId": TEXT,
        "status": _one_of(FollowUpStatus),
        "channel": TEXT,
        "account": TEXT,
        "chatId": _or_null(TEXT),
        "dueAt": _MOMENT,
        "at": _or_null(TEXT),
        "timeZone": _or_null(TEXT),
        "missed": _one_of(Missed),
        "text": TEXT,
        "workflowId": _or_null(TEXT),
        "moves": _COUNT,
        "createdAt": _MOMENT,
        "firedTaskId": _or_null(TEXT),
        "endedBy": _or_null(TEXT),
        "why": _or_null(TEXT),
    }
)
FOLLOW_UPS: Final = _list(FOLLOW_UP)
OPERATIONS: Final = _list(_object({"at": _MOMENT, "who": TEXT, "action": TEXT, "target": TEXT, "why": TEXT}))
STATS: Final = _object(
    {
        "journalDepth": _or_null(_COUNT),
        "streamDepth": _COUNT,
        "rabbitmqDepth": _or_null(_COUNT),
        "byStatus": _COUNTS,
        "byChannel": _COUNTS,
        "byReason": _COUNTS,
        "oldestWaitingSeconds": _or_null(_SECONDS),
        "retryDepth": _COUNT,
        "plannedDepth": _COUNT,
        "lanesClaimed": _COUNT,
        "accepted": _COUNT,
        "duplicates": _COUNT,
        "duplicateRate": _RATE,
        "outOfOrder": _COUNT,
        "outOfOrderRate": _RATE,
        "outbox": _object(
            {
                "depth": _COUNT,
                "byState": _COUNTS,
                "oldestWaitingSeconds": _or_null(_SECONDS),
                "unknown": _COUNT,
                "resent": _COUNT,
            }
        ),
        "channelPayload": _object({"raw_truncated_total": _COUNT}),
        "workflow_pending_total": _COUNT,
        "worstLanes": _list(_object({"lane": TEXT, "open": _COUNT, "oldestWaitingSeconds": _SECONDS})),
        "finished": _COUNTS,
    },
    optional=("streamDepth", "rabbitmqDepth"),
)
_HEALTH_OF_BINDING: Final = _object(
    {
        "status": {"type": "string", "enum": ["ok", "degraded", "down", "unknown"]},
        "source": _or_null(TEXT),
        "detail": TEXT,
        "lastCheckedAt": _or_null(_MOMENT),
    }
)
_BINDING_OPTION: Final = {
    "workflowId": TEXT,
    "workflowName": _or_null(TEXT),
    "publishedVersion": _COUNT,
    "channel": TEXT,
    "account": _or_null(TEXT),
    "isBound": _BOOLEAN,
    "isChannelEnabled": _BOOLEAN,
    "isDefault": _BOOLEAN,
    "status": {"type": "string", "enum": ["unbound", "bound", "degraded", "down", "disabled", "killed"]},
    "health": _HEALTH_OF_BINDING,
    "killSwitch": _or_null(_object({"reason": TEXT, "since": _MOMENT, "by": TEXT})),
    "bindingVersion": _COUNT,
    "updatedAt": _or_null(_MOMENT),
    "updatedBy": _or_null(TEXT),
}
BINDING_OPTIONS: Final = _list(_object(_BINDING_OPTION))
BINDING: Final = _object(
    _BINDING_OPTION
    | {
        "enabled": _BOOLEAN,
        "routes": _list(_object({"by": {"type": "string", "enum": ["chat", "command"]}, "value": TEXT})),
        "demoted": _or_null(TEXT),
        "config": _object(
            {
                "botToken": _or_null(TEXT),
                "webhookUrl": _or_null(TEXT),
                "usePolling": _or_null(_BOOLEAN),
                "waitForResult": _BOOLEAN,
                "workflowMissingMessage": _or_null(TEXT),
                "timeoutMessage": _or_null(TEXT),
                "burst": _or_null(_object({"quietSeconds": _SECONDS, "longestWaitSeconds": _SECONDS})),
                "engine": {"type": "string", "enum": [*ENGINES]},
                "metadata": {"type": "object", "additionalProperties": True}
                | {"properties": {"allowedChatIds": _list(TEXT)}},
            }
        ),
    }
)
_WRITTEN: Final = {"updatedAt": _MOMENT, "updatedBy": TEXT}
WORKFLOW: Final = _object(
    {
        "workflowId": TEXT,
        "name": TEXT,
        "kind": {"type": "string", "enum": ["code", "stages"]},
        "stages": _or_null(_list(_ANYTHING)),
        "version": _COUNT,
        "publishedVersion": _or_null(_COUNT),
        "status": _one_of(WorkflowStatus),
        "hasUnpublishedChanges": _BOOLEAN,
        "isChannelEnabled": _or_null(_BOOLEAN),
        "boundTo": _list(TEXT),
    }
    | _WRITTEN
)
WORKFLOWS: Final = _list(WORKFLOW)
REMOVED_WORKFLOW: Final = _object({"workflowId": TEXT, "isRemoved": _BOOLEAN})
HISTORY: Final = _list(
    _object(
        {
            "version": _COUNT,
            "name": TEXT,
            "isChannelEnabled": _BOOLEAN,
            "isCurrent": _BOOLEAN,
            "isRemoval": _BOOLEAN,
            "comment": TEXT,
        }
        | _WRITTEN
    )
)
DIFFERENCES: Final = _list(_object({"path": TEXT, "change": _one_of(ChangeKind), "old": _ANYTHING, "new": _ANYTHING}))
_PROMPT: Final = {
    "promptId": TEXT,
    "name": TEXT,
    "template": TEXT,
    "system": _or_null(TEXT),
    "placeholders": _list(TEXT),
    "model": _or_null(TEXT),
    "temperature": _or_null({"type": "number"}),
    "maxTokens": _or_null(_COUNT),
    "version": _COUNT,
} | _WRITTEN
PROMPT: Final = _object(_PROMPT | {"usedBy": _list(TEXT)})
PROMPTS: Final = _list(PROMPT)
REMOVED_PROMPT: Final = _object({"promptId": TEXT, "isRemoved": _BOOLEAN})
PROMPT_HISTORY: Final = _list(_object(_PROMPT | {"comment": TEXT, "isRemoval": _BOOLEAN}))
SECRET: Final = _object({"name": TEXT, "usedBy": _list(TEXT), "version": _COUNT} | _WRITTEN)
SECRETS: Final = _list(SECRET)
REMOVED_SECRET: Final = _object({"name": TEXT, "isRemoved": _BOOLEAN})
CHANNEL_HEALTH: Final = _object(
    {
        "channel": TEXT,
        "status": _one_of(HealthStatus),
        "bindings": _list(
            _object(
                {
                    "channel": TEXT,
                    "account": TEXT,
                    "workflowId": TEXT,
                    "status": _one_of(HealthStatus),
                    "source": TEXT,
                    "detail": TEXT,
                    "lastCheckedAt": _or_null(_MOMENT),
                }
            )
        ),
    }
)
CHANNEL_TESTED: Final = _object(
    {
        "channel": TEXT,
        "account": TEXT,
        "taskId": TEXT,
        "status": _one_of(Status),
        "wentThrough": _BOOLEAN,
        "seconds": _or_null(_SECONDS),
    }
)
SESSION: Final = _object({"token": TEXT, "session": TEXT})
SAID: Final = _object({"taskId": TEXT, "duplicate": _BOOLEAN})
EVENT: Final = _object({"event": TEXT, "id": TEXT, "data": TEXT, "retry": _COUNT},
                       optional=("event", "id", "data", "retry"))  # fmt: skip

# --- what is asked ----------------------------------------------------------------------------------------


def _asked(
    properties: Mapping[str, Any], *, required: tuple[str, ...] = (), examples: tuple[Schema, ...] = ()
) -> Schema:
    return {
        **({"examples": list(examples)} if examples else {}),
        "type": "object",
        "properties": {name: _or_null(schema) for name, schema in properties.items() if name not in required}
        | {name: properties[name] for name in required},
        "required": list(required),
        "additionalProperties": False,
    }


def _words(chars_max: int) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": chars_max}


_KEY: Final[Schema] = {"type": "string", "pattern": r"^[!-~]([ -~]*[!-~])?$", "maxLength": http.KEY_CHARS_MAX}
_ID: Final[Schema] = {"anyOf": [_words(http.CHAT_ID_CHARS_MAX), {"type": "integer"}]}
_TAPPED: Final = _asked({"text": _words(http.MESSAGE_CHARS_MAX), "data": _words(http.MESSAGE_CHARS_MAX)},
                        required=("text", "data"))  # fmt: skip
_FOLLOWED: Final = _asked({"text": _words(http.MESSAGE_CHARS_MAX), "url": _words(http.MESSAGE_CHARS_MAX)},
                          required=("text", "url"))  # fmt: skip

_SAID: Final = {
    "text": _words(http.MESSAGE_CHARS_MAX),
    "parseMode": TEXT,
    "buttons": _list(_list({"anyOf": [_TAPPED, _FOLLOWED]})),
    "replyTo": _ID,
}
_WHEN: Final = {
    "inSeconds": {"type": "number", "minimum": 0, "maximum": FOLLOW_UP_AHEAD_MAX.total_seconds()},
    "at": _words(AT_CHARS_MAX),
    "timeZone": _words(ZONE_CHARS_MAX),
}
MOVE_FOLLOW_UP: Final[Schema] = {**_asked(_WHEN), "anyOf": [{"required": [when]} for when in ("inSeconds", "at")]}
ADD_FOLLOW_UP: Final[Schema] = {
    **_asked(
        {
            "channel": {"type": "string", "enum": [telegram.CHANNEL, webchat.CHANNEL]},
            "account": TEXT,
            "chatId": _ID,
            **_WHEN,
            **_SAID,
            "workflowId": _words(http.CHAT_ID_CHARS_MAX),
            "missed": _one_of(Missed),
            "idempotencyKey": _KEY,
        },
        required=("channel", "chatId"),
    ),
    "anyOf": [{"required": [when, what]} for when in ("inSeconds", "at") for what in ("text", "workflowId")],
}
APPLY: Final = _asked(
    {
        "workflowId": _words(http.CHAT_ID_CHARS_MAX),
        "userText": TEXT,
        "historyChunks": _list(_ANYTHING),
        "policy": _OPEN_OBJECT,
        "metadata": {"type": "object", "properties": {"chat_id": _or_null(_ID), "message_id": _or_null(_ID)}},
        "idempotencyKey": _KEY,
        "retryMax": {"type": "integer", "minimum": 0, "maximum": http.RETRY_MAX_MAX},
        "waitForResult": _BOOLEAN,
        "waitTimeoutSeconds": {"type": "number", "exclusiveMinimum": 0, "maximum": http.WAIT_SECONDS_MAX},
        "callbackUrl": _words(URL_CHARS_MAX),
    }
)
MESSAGE: Final = _asked(
    {
        "channel": {"type": "string", "enum": [telegram.CHANNEL, webchat.CHANNEL]},
        "account": TEXT,
        "chatId": _ID,
        **_SAID,
        "idempotencyKey": _KEY,
    },
    required=("channel", "chatId", "text"),
)
_WHY: Final = {"type": "string", "maxLength": 500}
SELECTION: Final = _asked(
    {
        "taskIds": _list(TEXT),
        "reason": _one_of(Reason),
        "channel": TEXT,
        "account": TEXT,
        "limit": {"type": "integer", "minimum": 1},
        "why": _WHY,
        "dryRun": _BOOLEAN,
    }
)
FORGET: Final = _asked(
    {
        "channel": {"type": "string", "enum": list(CHANNELS)},
        "account": TEXT,
        "chatId": _ID,
        "dropOpen": _BOOLEAN,
        "why": _WHY,
        "dryRun": _BOOLEAN,
    },
    required=("chatId",),
)
_CHAT_ROUTE: Final = _asked({"by": {"type": "string", "enum": ["chat"]}, "value": _ID}, required=("by", "value"))
_COMMAND_ROUTE: Final = _asked(
    {
        "by": {"type": "string", "enum": ["command"]},
        "value": {"type": "string", "pattern": "^/[A-Za-z0-9_]{1,64}(@[A-Za-z0-9_]{3,32})?$"},
    },
    required=("by", "value"),
)
_POLICY: Final = {
    "allowedChatIds": _list(_ID),
    "rateLimitPerMin": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "locale": _words(64),
}
_BURST: Final = _asked(
    {
        "quietSeconds": {"type": "number", "minimum": 0.1, "maximum": 30},
        "longestWaitSeconds": {"type": "number", "minimum": 0.1, "maximum": 60},
    },
    required=("quietSeconds", "longestWaitSeconds"),
)
BIND: Final = _asked(
    {
        "channel": {"type": "string", "enum": list(CHANNELS)},
        "account": _words(http.CHAT_ID_CHARS_MAX),
        "enabled": _BOOLEAN,
        "isDefault": _BOOLEAN,
        "routes": _list({"anyOf": [_CHAT_ROUTE, _COMMAND_ROUTE]}),
        "bindingVersion": _COUNT,
        "why": _WHY,
        "config": _asked(
            {
                "botToken": {"type": "string", "pattern": "^[0-9]{1,20}:[A-Za-z0-9_-]{1,100}$"},
                "webhookUrl": {"type": "string", "maxLength": 2000},
                "usePolling": _BOOLEAN,
                "waitForResult": _BOOLEAN,
                "workflowMissingMessage": _words(4096),
                "timeoutMessage": _words(4096),
                "burst": _BURST,
                "engine": {"type": "string", "enum": [*ENGINES]},
                "metadata": {
                    "type": "object",
                    "properties": {name: _or_null(schema) for name, schema in _POLICY.items()},
                },
            }
        ),
    },
    required=("channel", "enabled"),
)
KILL_SWITCH: Final = _asked({"on": _BOOLEAN, "reason": _WHY}, required=("on",))
WORD: Final = _asked(
    {
        "clientMessageId": _words(webchat.MESSAGE_ID_CHARS_MAX),
        "text": _words(webchat.TEXT_CHARS_MAX),
        "data": _words(webchat.DATA_CHARS_MAX),
    },
    required=("clientMessageId", "text"),
)

_NAME: Final = _words(publishing.NAME_CHARS_MAX)
_VERSION: Final = {"type": "integer", "minimum": 1, "maximum": publishing.VERSION_MAX}
_COMMENT: Final = {"type": "string", "maxLength": publishing.COMMENT_CHARS_MAX}
_STAGES: Final = {
    "type": "array",
    "minItems": 1,
    "maxItems": STAGES_MAX,
    "items": {
        "type": "object",
        "properties": {
            "name": TEXT,
            "kind": {"type": "string", "enum": [kind.__struct_config__.tag for kind in get_args(Stage)]},
        },
        "required": ["name", "kind"],
    },
    "description": "Run in their order. What each kind has beside its name is said where it is missing or wrong.",
}
_SAY: Final = [{"name": "say", "kind": "reply", "template": "hi {{ text }}"}]
NEW_WORKFLOW: Final = _asked(
    {"name": _NAME, "stages": _STAGES}, required=("name", "stages"), examples=({"name": "greeter", "stages": _SAY},)
)
EDITED_WORKFLOW: Final = _asked(
    {"name": _NAME, "stages": _STAGES, "isChannelEnabled": _BOOLEAN, "version": _VERSION, "comment": _COMMENT},
    examples=({"version": 1, "stages": _SAY}, {"isChannelEnabled": False, "comment": "it answers nonsense"}),
)
PUBLICATION: Final = _asked({"comment": _COMMENT, "version": _VERSION}, examples=({"comment": "a warmer tone"},))
ROLLBACK: Final = _asked({"version": _VERSION, "comment": _COMMENT}, required=("version",), examples=({"version": 1},))
_WRITTEN_PROMPT: Final = {
    "name": _NAME,
    "template": _words(TEMPLATE_CHARS_MAX),
    "system": {"type": "string", "maxLength": TEMPLATE_CHARS_MAX},
    "placeholders": _list({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}),
    "model": _words(prompts.MODEL_CHARS_MAX),
    "temperature": {"type": "number", "minimum": 0, "maximum": prompts.TEMPERATURE_MAX},
    "maxTokens": {"type": "integer", "minimum": 1, "maximum": prompts.TOKENS_MAX},
}
NEW_PROMPT: Final = _asked(
    _WRITTEN_PROMPT,
    required=("name", "template"),
    examples=({"name": "greet", "template": "Greet {{ user.name }}: {{ tone }}", "placeholders": ["tone"]},),
)
EDITED_PROMPT: Final = _asked(
    _WRITTEN_PROMPT | {"version": _VERSION, "comment": _COMMENT},
    examples=({"version": 1, "template": "Greet {{ user.name }}.", "comment": "shorter"},),
)
SET_SECRET: Final = _asked(
    {
        "value": {
            "type": "string",
            "pattern": "^[ -~]+$",
            "minLength": stage_secrets.CHARS_MIN,
            "maxLength": stage_secrets.CHARS_MAX,
        }
    },
    required=("value",),
    examples=({"value": "key-of-the-shop"},),
)

_TRACE_PARENT: Final = {
    "name": "traceparent",
    "in": "header",
    "description": "The trace that this continues.",
    "schema": TEXT,
}
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names the request: it is done once, however often it comes. The same as `idempotencyKey`.",
    "schema": _KEY,
}

# --- a route ----------------------------------------------------------------------------------------------


def route(
    answer: Schema,
    *refusals: int,
    takes: Schema | None = None,
    headers: tuple[Mapping[str, Any], ...] = (),
    also: Mapping[int, Schema] | None = None,
    enveloped: bool = True,
) -> dict[str, Any]:
    """What a route's decorator is told. `answer`: the `data` of a 200, or its whole body if not `enveloped`."""
    answers = {200: answer} | dict(also or {})
    responses: dict[int | str, Any] = {
        status: _response(_enveloped(body) if enveloped else body, "As asked.", status)
        for status, body in answers.items()
    }
    for status in sorted({*refusals, 500} - set(answers)):
        responses[status] = _response(_refusal(status), _MEANINGS[status], status)
    return {"responses": responses, "openapi_extra": _extra(refusals, takes, headers)}


def route_in_text(media_type: str, answer: Schema, *refusals: int) -> dict[str, Any]:
    """The same for a route that answers otherwise than in JSON."""
    told = route(answer, *refusals, enveloped=False)
    told["responses"][200]["content"] = {media_type: {"schema": answer}}
    return told


def document(made: dict[str, Any]) -> dict[str, Any]:
    """The whole description, from what the framework made of the routes."""
    schemas = made.get("components", {}).get("schemas", {}) | {"Error": _ERROR, "Closed": _CLOSED}
    schemes = {"token": {"type": "http", "scheme": "bearer"}, "session": {"type": "http", "scheme": "bearer"}}
    return made | {"components": {"schemas": schemas, "securitySchemes": schemes}}


def _refusal(status: int) -> Schema:
    error = {"$ref": "#/components/schemas/Error"}
    return {"anyOf": [{"$ref": "#/components/schemas/Closed"}, error]} if status == 503 else error


def _enveloped(data: Schema) -> Schema:
    next_page = {"next": _or_null(TEXT)}
    meta = _object({**_META["properties"], **next_page}, optional=("next",))
    return _object({"data": data, "meta": meta})


def _response(body: Schema, meaning: str, status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": {"required": True, "schema": TEXT}}
    if status in (429, 503):
        headers["Retry-After"] = {"required": True, "schema": {"type": "integer", "minimum": 1}}
    if status == 401:
        headers["WWW-Authenticate"] = {"required": True, "schema": TEXT}
    return {"description": meaning, "headers": headers, "content": {"application/json": {"schema": body}}}


def _extra(refusals: tuple[int, ...], takes: Schema | None, headers: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if 401 in refusals:
        extra["security"] = [{"token": []} if 403 in refusals else {"session": []}]
    if takes is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": takes}}}
        extra["parameters"] = [*headers, _TRACE_PARENT]
    return extra

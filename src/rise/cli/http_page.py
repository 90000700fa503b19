"""The page about the HTTP API, made from what the API says of itself and from the tour of examples.

Refuses: to say anything of a route that is not in its description.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi.routing import APIRoute

from rise.api.app import App, build_app
from rise.api.examples import TOUR, Chapter, Example
from rise.api.security import role_asked
from rise.runtime.assembly.house import build
from rise.settings import load_settings

Json = Mapping[str, Any]

_ADDRESS: Final = "http://localhost:8080"
_SAID_ONCE: Final = frozenset({"200", "202", "400", "401", "403", "408", "413", "415", "422", "429", "500", "503"})
_INTRODUCTION: Final = """\
Every answer is `{"data": …, "meta": {"requestId", "status", "warnings"}}`; health and metrics are as their readers want
them. A refusal is `{"error": {"code", "message", "field"}, …}`: `code` is stable (`docs/errors.md`),
`field` names what is wrong with the request.

`Authorization: Bearer …` shows a token: `RISE_ADMIN_TOKEN` is the first admin's (made into `admin-token` in the data
directory if it is not set), `RISE_TOKENS` has the others. Either may have digests in the place of tokens:
`rise tokens new NAME --role operator` prints a token once, and the line to put there. A viewer looks, an operator
also changes, an admin also deletes and sets secrets. The whole description for programs is `GET /api/openapi.json`.

Any route may answer 401 (no token, or an unknown one), 403 (a lesser role), 429 (too many without one), 500 (a bug of
ours; the log has it under the request id) and 503: that says in `capability` and `detail` what is down and, in
`Retry-After`, when to try again, which is right and safe. What is asked with fields may be answered 422, with a body
also 400, 408, 413 and 415.

The examples are one tour, in an order in which each works; a test plays it. `$TOKEN` is an operator's or admin's,
`$SESSION` what opening a web chat was answered, and what stands in `{}` what a request before was."""


def page(made: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        app = build_app(build(load_settings(_env_file=None, data_dir=Path(directory))))
    try:
        return _page(made, app)
    finally:
        app.close()


def _page(made: str, app: App) -> str:
    described, roles, shown = app.description(), _roles(app), set[str]()
    chapters = "\n\n".join(_chapter(chapter, described, roles, shown) for chapter in TOUR)
    return f"# HTTP\n\n{made}\n\n{_INTRODUCTION}\n\n{chapters}\n"


def _roles(app: App) -> dict[str, str]:
    found = {}
    for route in app.routes:
        if isinstance(route, APIRoute):
            asked = [role_asked(dependency.call) for dependency in route.dependant.dependencies]
            role = next((role.name.lower() for role in asked if role is not None), "")
            found.update({f"{method} {route.path}": role for method in route.methods or ()})
    return found


def _chapter(chapter: Chapter, described: Json, roles: Mapping[str, str], shown: set[str]) -> str:
    parts = [f"## {chapter.title}", chapter.text]
    for example in chapter.examples:
        if example.route not in shown:
            shown.add(example.route)
            operation = described["paths"][example.path][example.method.lower()]
            parts += _route(example, operation, roles[example.route])
        parts.append(_command(example))
    return "\n\n".join(parts)


def _route(example: Example, operation: Json, role: str) -> Iterator[str]:
    yield f"### {example.method} `{example.path}`"
    yield " ".join(operation.get("description", "").split()) + (f" *{role.capitalize()}.*" if role else "")
    if queries := [_query(one) for one in operation.get("parameters", []) if one["in"] == "query"]:
        yield "In the query: " + ", ".join(queries) + "."
    if (answer := _answer_of(operation)) is not None:
        yield f"`data`: `{shape(answer)}`"
    if refusals := [_refusal(code, said) for code, said in operation["responses"].items() if code not in _SAID_ONCE]:
        yield "\n".join(refusals)


def _query(parameter: Json) -> str:
    return f"`{parameter['name']}` ({shape(parameter['schema'])})"


def _answer_of(operation: Json) -> Json | None:
    content = operation["responses"]["200"]["content"].get("application/json")
    data: Json | None = content["schema"].get("properties", {}).get("data") if content else None
    return data


def _refusal(code: str, said: Json) -> str:
    return f"- {code}: {said['description']}"


def _command(example: Example) -> str:
    words = ["curl"]
    if example.method != "GET":
        words.append(f"-X {example.method}")
    if example.is_stream:
        words.append("-N")
    words.append(f"'{_ADDRESS}{example.path}{example.query}'")
    if example.whose:
        words.append(f'-H "Authorization: Bearer ${example.whose.upper()}"')
    words += [f"-H '{name}: {value}'" for name, value in example.headers.items()]
    if example.body is not None:
        body = json.dumps(example.body, ensure_ascii=False).replace("'", "'\\''")
        words.append(f"-H 'Content-Type: application/json' -d '{body}'")
    return "```sh\n" + " \\\n  ".join(words) + "\n```"


def shape(schema: Json) -> str:
    """A schema in one line, as people write such things down."""
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(shape(one) for one in schema["anyOf"]))
    match schema.get("type"):
        case "object" if "properties" in schema:
            return "{" + ", ".join(f"{name}: {shape(one)}" for name, one in schema["properties"].items()) + "}"
        case "object" if "additionalProperties" in schema:
            return "{…: " + shape(schema["additionalProperties"]) + "}"
        case "object":
            return "{…}"
        case "array":
            return f"[{shape(schema['items'])}, …]"
        case "string" if schema.get("format") == "date-time":
            return "moment"
        case None:
            return "any"
        case known:
            return str(known)

"""Bindings over HTTP: what could be bound, what is, and changing that.

Only translates: what is done is in `rise.runtime.channel_bindings`, for the command line too. What a change leaves out
stays as it was; what it sets to null goes back to what there is without it.

Refuses: a bot's token or where its updates go from anybody but an admin (403), because whoever has them has the bot; a
field that cannot be used, before anything is written (422).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from rise.api import description
from rise.api.answers import answer
from rise.api.operations import why_in
from rise.api.reading import read_json_body
from rise.api.security import Principal, Role, requires
from rise.bindings import is_command
from rise.channels.http import CHAT_ID_CHARS_MAX, identifier, optional, read_object, refuse_unknown, required
from rise.definitions.records import ENGINES, NATIVE, BindingRoute, BurstPolicy
from rise.envelope import encode_json
from rise.errors import PayloadInvalid, RoleInsufficient, WorkflowUnknown
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_channel_bindings
from rise.runtime.channel_bindings import ROUTES_MAX, BindingChange, BindingShown, ChannelBindings
from rise.runtime.starting import refuse_while_starting
from rise.settings import CHANNELS, is_bot_token
from rise.telemetry import keep_out_of_logs

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]

TEXT_CHARS_MAX: Final = 4096
URL_CHARS_MAX: Final = 2000
TOKEN_CHARS_MAX: Final = 200
RATE_MAX: Final = 100_000
QUIET_SECONDS_MIN: Final = 0.1
QUIET_SECONDS_MAX: Final = 30.0
LONGEST_WAIT_SECONDS_MAX: Final = 60.0
CHATS_MAX: Final = 10_000
NOTES_BYTES_MAX: Final = 16 * 1024

_FIELDS: Final = ("channel", "account", "enabled", "isDefault", "routes", "config", "bindingVersion", "why")
_CONFIG: Final = (
    *("botToken", "webhookUrl", "usePolling", "waitForResult", "workflowMissingMessage", "timeoutMessage"),
    *("burst", "engine", "metadata"),
)
_ADMINS: Final = ("botToken", "webhookUrl")

Account = Annotated[str | None, Query(min_length=1, max_length=CHAT_ID_CHARS_MAX)]


class ChannelName(StrEnum):
    """Where workflows may be bound."""

    TELEGRAM = "telegram"
    HTTP = "http"
    WEBCHAT = "webchat"


def binding_routes(house: House) -> APIRouter:
    """The routes under /api/channel-bindings."""

    async def starting() -> AsyncIterator[None]:
        """A workflow is unknown only when the worker has said which there are."""
        try:
            yield
        except WorkflowUnknown:
            refuse_while_starting(house.capabilities, "whether this is among them")
            raise

    bindings = build_channel_bindings(house)
    router = APIRouter(prefix="/api/channel-bindings", dependencies=[Depends(starting)])
    _add_looking(router, bindings)
    _add_changing(router, bindings)
    return router


def _add_looking(router: APIRouter, bindings: ChannelBindings) -> None:
    @router.get("/options", **description.route(description.BINDING_OPTIONS, *description.FROM_STORE, 422))
    async def options(request: Request, principal: Viewer, channel: ChannelName | None = None) -> Response:
        """Every published workflow that may be bound or is, once for each place."""
        shown = [one for one in await bindings.options() if channel in (None, one.binding.channel)]
        return answer(request, [_option(one) for one in shown])

    @router.get("/{workflow_id}", **description.route(description.BINDING, *description.FROM_STORE, 404, 422))
    async def binding(
        request: Request,
        workflow_id: str,
        principal: Viewer,
        channel: ChannelName = ChannelName.TELEGRAM,
        account: Account = None,
    ) -> Response:
        """How a workflow is bound to an account, or that it is not."""
        return answer(request, shown_binding(await bindings.one(workflow_id, channel, account)))


def _add_changing(router: APIRouter, bindings: ChannelBindings) -> None:
    changed = (*description.FROM_STORE, 404, 409, 422)

    @router.put(
        "/{workflow_id}",
        **description.route(description.BINDING, *changed, *description.WITH_BODY, takes=description.BIND),
    )
    async def bind(
        request: Request,
        workflow_id: str,
        principal: Operator,
        channel: ChannelName | None = None,
        account: Account = None,
    ) -> Response:
        """Bind a workflow to an account, change how, or switch it off. A new default takes the former one's place."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        _refuse_all_but_admins(fields, principal)  # first: what is read as a token is masked in every log from then on
        change = read_change(fields)
        named, why = _named(fields, channel, account), why_in(fields)
        shown = await bindings.change(workflow_id, *named, change, by=principal.name, why=why)
        return answer(request, shown_binding(shown), meta={"warnings": shown.warnings})

    @router.post("/{workflow_id}/refresh", **description.route(description.BINDING, *description.FROM_STORE, 404, 422))
    async def refresh(
        request: Request,
        workflow_id: str,
        principal: Operator,
        channel: ChannelName = ChannelName.TELEGRAM,
        account: Account = None,
    ) -> Response:
        """Have all processes take over what is in force now."""
        return answer(request, shown_binding(await bindings.refresh(workflow_id, channel, account)))

    @router.post(
        "/{workflow_id}/kill-switch",
        **description.route(description.BINDING, *changed, *description.WITH_BODY, takes=description.KILL_SWITCH),
    )
    async def kill_switch(
        request: Request,
        workflow_id: str,
        principal: Operator,
        channel: ChannelName = ChannelName.TELEGRAM,
        account: Account = None,
    ) -> Response:
        """On: nothing of this binding runs any more, what comes in is kept until a person resumes it. Off: what comes
        in from now on runs again."""
        fields = read_object(await read_json_body(request.scope, request.receive))
        refuse_unknown(fields, ("on", "reason"))
        on, reason = required(fields, "on", bool), why_in(fields, "reason")
        shown = await bindings.switch(workflow_id, channel, account, on=on, reason=reason, by=principal.name)
        return answer(request, shown_binding(shown), meta={"warnings": shown.warnings})


# --- what is asked for ------------------------------------------------------------------------------------


def read_change(fields: dict[str, Any]) -> BindingChange:
    """What is asked for, without whose binding it is. Raises `PayloadInvalid` with the field."""
    refuse_unknown(fields, _FIELDS)
    enabled = required(fields, "enabled", bool)
    config = optional(fields, "config", dict) or {}
    _refuse_unknown_in(config, _CONFIG)
    is_default, routes = optional(fields, "isDefault", bool), optional(fields, "routes", list)
    return BindingChange(
        enabled=enabled,
        is_default=msgspec.UNSET if is_default is None else is_default,
        routes=msgspec.UNSET if routes is None else _routes(routes),
        bot_token=_bot_token(config),
        of_all_channels=_of_all_channels(config),
        own=_own(config),
        notes=_notes(config),
        version=optional(fields, "bindingVersion", int),
    )


def _refuse_all_but_admins(fields: dict[str, Any], principal: Principal) -> None:
    config = optional(fields, "config", dict) or {}
    if principal.role < Role.ADMIN and any(name in config for name in _ADMINS):
        raise RoleInsufficient(f"to set {' or '.join(_ADMINS)} needs the role admin")


def _named(fields: dict[str, Any], channel: str | None, account: str | None) -> tuple[str, str | None]:
    """The channel and the account, which may be said in the body or beside it, but not otherwise in both."""
    in_body = {name: optional(fields, name, str) for name in ("channel", "account")}
    for name, beside in (("channel", channel), ("account", account)):
        if None not in (beside, in_body[name]) and beside != in_body[name]:
            raise PayloadInvalid(f"{name} is said twice, and not the same", field=name)
    named = in_body["channel"] or channel
    if named is None:
        raise PayloadInvalid("channel is missing", field="channel")
    if named not in CHANNELS:
        raise PayloadInvalid(f"channel is one of {', '.join(CHANNELS)}", field="channel")
    asked = in_body["account"] or account
    return named, None if asked is None else identifier(asked, "account", chars_max=CHAT_ID_CHARS_MAX)


def _routes(routes: list[Any]) -> tuple[BindingRoute, ...]:
    if len(routes) > ROUTES_MAX:
        raise PayloadInvalid(f"there are more than {ROUTES_MAX} routes", field="routes")
    return tuple(_route(route, f"routes[{at}]") for at, route in enumerate(routes))


def _route(route: Any, field: str) -> BindingRoute:
    if type(route) is not dict or set(route) != {"by", "value"}:
        raise PayloadInvalid(f'{field} is {{"by": "chat" or "command", "value": …}}', field=field)
    match route["by"]:
        case "chat":
            return BindingRoute("chat", identifier(route["value"], f"{field}.value", chars_max=CHAT_ID_CHARS_MAX))
        case "command" if type(value := route["value"]) is str and is_command(value):
            return BindingRoute("command", value)
        case "command":
            raise PayloadInvalid(f"{field}.value is a command: /start, or /start@its_bot", field=f"{field}.value")
    raise PayloadInvalid(f"{field}.by is chat or command", field=f"{field}.by")


def _bot_token(config: dict[str, Any]) -> str | msgspec.UnsetType | None:
    token: str | None = _in_config(config, "botToken", str)
    if token is None:
        return None if "botToken" in config else msgspec.UNSET
    # What is none is written nowhere, and must not be masked: it could be any word, or a megabyte.
    if not is_bot_token(token) or len(token) > TOKEN_CHARS_MAX:
        raise PayloadInvalid("config.botToken is no token as BotFather gives it", field="config.botToken")
    keep_out_of_logs([token])
    return token


def _of_all_channels(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "waitForResult" in config:
        waits = _in_config(config, "waitForResult", bool)
        found["waits_for_result"] = True if waits is None else waits
    for name, known_as in (
        ("workflowMissingMessage", "workflow_missing_message"),
        ("timeoutMessage", "timeout_message"),
    ):
        if name in config:
            found[known_as] = _text(_in_config(config, name, str), f"config.{name}")
    if "burst" in config:
        found["burst"] = _burst(_in_config(config, "burst", dict))
    if "engine" in config:
        found["engine"] = _engine(_in_config(config, "engine", str))
    return found


def _engine(engine: str | None) -> str:
    if engine not in (None, *ENGINES):
        raise PayloadInvalid(f"config.engine is {' or '.join(ENGINES)}", field="config.engine")
    return engine or NATIVE


def _burst(burst: dict[str, Any] | None) -> BurstPolicy | None:
    if burst is None:
        return None
    fields = {f"config.burst.{name}": seconds for name, seconds in burst.items()}
    refuse_unknown(fields, (_QUIET, _LONGEST_WAIT))
    quiet, longest = (float(required(fields, field, int, float)) for field in (_QUIET, _LONGEST_WAIT))
    if not QUIET_SECONDS_MIN <= quiet <= QUIET_SECONDS_MAX:
        between = f"{QUIET_SECONDS_MIN:g} to {QUIET_SECONDS_MAX:g}"
        raise PayloadInvalid(f"{_QUIET} is {between}; with null as burst nobody waits", field=_QUIET)
    if not quiet <= longest <= LONGEST_WAIT_SECONDS_MAX:
        # Shorter, no burst could ever be quiet for so long, and each would be cut.
        between = f"at least quietSeconds and at most {LONGEST_WAIT_SECONDS_MAX:g}"
        raise PayloadInvalid(f"{_LONGEST_WAIT} is {between}", field=_LONGEST_WAIT)
    return BurstPolicy(quiet, longest)


_QUIET: Final = "config.burst.quietSeconds"
_LONGEST_WAIT: Final = "config.burst.longestWaitSeconds"


def _own(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "webhookUrl" in config:
        found["webhook_url"] = _webhook_url(_in_config(config, "webhookUrl", str))
    if "usePolling" in config:
        found["use_polling"] = _in_config(config, "usePolling", bool)
    metadata = _in_config(config, "metadata", dict) or {}
    if "allowedChatIds" in metadata:
        found["allowed_chat_ids"] = _chat_ids(_in_metadata(metadata, "allowedChatIds", list) or [])
    if "rateLimitPerMin" in metadata:
        rate = _in_metadata(metadata, "rateLimitPerMin", int)
        if rate is not None and not 1 <= rate <= RATE_MAX:
            field = "config.metadata.rateLimitPerMin"
            raise PayloadInvalid(f"{field} is 1 to {RATE_MAX}; null is no limit", field=field)
        found["rate_limit_per_min"] = rate
    if "locale" in metadata:
        found["locale"] = _text(_in_metadata(metadata, "locale", str), "config.metadata.locale", chars_max=64)
    return found


def _notes(config: dict[str, Any]) -> dict[str, Any]:
    """What else stands in the metadata: it is kept and shown, and nothing is decided by it."""
    metadata = _in_config(config, "metadata", dict) or {}
    notes = {
        name: value for name, value in metadata.items() if name not in ("allowedChatIds", "rateLimitPerMin", "locale")
    }
    if len(encode_json(notes)) > NOTES_BYTES_MAX:
        raise PayloadInvalid(f"config.metadata has more than {NOTES_BYTES_MAX} bytes", field="config.metadata")
    return notes


def _chat_ids(values: list[Any]) -> tuple[str, ...]:
    field = "config.metadata.allowedChatIds"
    if len(values) > CHATS_MAX:
        raise PayloadInvalid(f"{field} has more than {CHATS_MAX} chats", field=field)
    return tuple(dict.fromkeys(identifier(value, field, chars_max=CHAT_ID_CHARS_MAX) for value in values))


def _webhook_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    is_usable = parts.scheme in ("https", "http") and parts.hostname and not parts.fragment and parts.username is None
    if not is_usable or len(url) > URL_CHARS_MAX or not url.isprintable() or " " in url:
        raise PayloadInvalid("config.webhookUrl is https:// and a host", field="config.webhookUrl")
    return url


def _text(text: str | None, field: str, *, chars_max: int = TEXT_CHARS_MAX) -> str | None:
    if text is not None and (not text.strip() or len(text) > chars_max):
        raise PayloadInvalid(f"{field} is 1 to {chars_max} characters", field=field)
    return text


def _in_config(config: dict[str, Any], name: str, kind: type) -> Any:
    return optional({f"config.{name}": config.get(name)}, f"config.{name}", kind)


def _in_metadata(metadata: dict[str, Any], name: str, kind: type) -> Any:
    return optional({f"config.metadata.{name}": metadata.get(name)}, f"config.metadata.{name}", kind)


def _refuse_unknown_in(config: dict[str, Any], known: tuple[str, ...]) -> None:
    refuse_unknown({f"config.{name}": value for name, value in config.items()}, [f"config.{name}" for name in known])


# --- what is shown ----------------------------------------------------------------------------------------


def _option(shown: BindingShown) -> dict[str, Any]:
    binding, workflow = shown.binding, shown.workflow
    return {
        "workflowId": binding.workflow_id,
        "workflowName": workflow.name if workflow else None,
        "publishedVersion": shown.published_version,
        "channel": binding.channel,
        "account": binding.account or None,
        "isBound": bool(binding.version) and binding.is_met,
        "isChannelEnabled": workflow is not None and workflow.enabled,
        "isDefault": binding.is_default and binding.enabled,
        "status": shown.status,
        "health": _health(shown),
        "killSwitch": _kill_switch(shown),
        "bindingVersion": binding.version,
        "updatedAt": binding.updated_at or None,
        "updatedBy": binding.updated_by or None,
    }


def shown_binding(shown: BindingShown) -> dict[str, Any]:
    """As it is answered; the command line shows the same."""
    binding, own = shown.binding, shown.binding.own
    return _option(shown) | {
        "enabled": binding.enabled,
        "routes": [{"by": route.by, "value": route.value} for route in binding.routes],
        "demoted": shown.demoted,
        "config": {
            "botToken": shown.bot_token,
            "webhookUrl": own.webhook_url,
            "usePolling": own.use_polling,
            "waitForResult": binding.waits_for_result,
            "workflowMissingMessage": binding.workflow_missing_message,
            "timeoutMessage": binding.timeout_message,
            "burst": _shown_burst(binding.burst),
            "engine": binding.engine,
            "metadata": own.metadata
            | {
                "allowedChatIds": own.allowed_chat_ids,
                "rateLimitPerMin": own.rate_limit_per_min,
                "locale": own.locale,
            },
        },
    }


def _shown_burst(burst: BurstPolicy | None) -> dict[str, Any] | None:
    if burst is None:
        return None
    return {"quietSeconds": burst.quiet_seconds, "longestWaitSeconds": burst.longest_wait_seconds}


def _health(shown: BindingShown) -> dict[str, Any]:
    health = shown.health.shown()
    return {name: health[name] for name in ("status", "source", "detail", "lastCheckedAt")}


def _kill_switch(shown: BindingShown) -> dict[str, Any] | None:
    switch = shown.binding.kill_switch
    return None if switch is None else {"reason": switch.reason, "since": switch.since, "by": switch.by}

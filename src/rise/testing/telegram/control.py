"""Driving the stand-in from outside its process: `/_standin/…`, made for curl and for other languages.

Promises: a thin skin over `TelegramStandIn`, one route per thing to say or ask; JSON in and out; a request
that makes no sense is answered 400 with a sentence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from rise.testing.telegram.faults import DELIVERY_FAULTS, FAULTS
from rise.testing.telegram.records import shown
from rise.testing.telegram.rules import QueuedUpdate, SendRates
from rise.testing.telegram.updates import BUILDERS

if TYPE_CHECKING:
    from rise.testing.telegram.server import TelegramStandIn

PREFIX = "/_standin"

Builder = TypeVar("Builder")


class ControlSurface:
    def __init__(self, telegram: TelegramStandIn) -> None:
        self._telegram = telegram

    def add_routes(self, app: web.Application) -> None:
        for method, path, handle in (
            ("GET", "", self._summary),
            ("GET", "/sent", self._sent),
            ("GET", "/calls", self._calls),
            ("GET", "/deliveries", self._deliveries),
            ("GET", "/pending", self._pending),
            ("GET", "/dropped", self._dropped),
            ("POST", "/updates", self._add_update),
            ("POST", "/faults", self._add_fault),
            ("DELETE", "/faults", self._clear_faults),
            ("POST", "/conditions", self._change_conditions),
            ("POST", "/bots", self._add_bot),
            ("POST", "/time", self._pass_time),
            ("POST", "/reset", self._reset),
        ):
            app.router.add_route(method, PREFIX + path, _explained(handle))

    # --- asking -------------------------------------------------------------------------------------------

    async def _summary(self, request: web.Request) -> Any:
        telegram = self._telegram
        return {
            "url": telegram.url,
            "now": telegram.now(),
            "sent_count": len(telegram.sent),
            "call_count": len(telegram.calls),
            "delivery_count": len(telegram.deliveries),
            "repeated_count": len(telegram.repeated()),
            "bots": [
                {
                    "bot_id": bot.bot_id,
                    "token": bot.token,
                    "webhook_url": bot.webhook.settings.url if bot.webhook else "",
                    "pending_count": len(telegram.pending(bot.bot_id)),
                    "dropped_count": len(telegram.dropped(bot.bot_id)),
                }
                for bot in telegram.bots
            ],
        }

    async def _sent(self, request: web.Request) -> Any:
        return _from(request, self._telegram.sent)

    async def _calls(self, request: web.Request) -> Any:
        return _from(request, self._telegram.calls)

    async def _deliveries(self, request: web.Request) -> Any:
        return _from(request, self._telegram.deliveries)

    async def _pending(self, request: web.Request) -> Any:
        return shown(self._telegram.pending(_bot_id(request.query)))

    async def _dropped(self, request: web.Request) -> Any:
        return shown(self._telegram.dropped(_bot_id(request.query)))

    # --- telling ------------------------------------------------------------------------------------------

    async def _add_update(self, request: web.Request) -> Any:
        """`{"kind": "message", …}`, or `{"update": {…}}` as it is, or raw bytes as octet-stream."""
        telegram = self._telegram
        if request.content_type == "application/octet-stream":
            body = await request.read()
            sub_queue = request.query.get("sub_queue", "raw")
            return [_taken(telegram.add_raw(body, sub_queue=sub_queue, bot_id=_bot_id(request.query)))]
        wanted = await _object(request)
        bot_id = _bot_id(wanted)
        wanted.pop("bot_id", None)
        if "update" in wanted:
            return [_taken(telegram.add_update(wanted["update"], bot_id=bot_id))]
        built = _named(BUILDERS, wanted.pop("kind", "message"))(**wanted)
        built_list = built if isinstance(built, list) else [built]
        return [_taken(telegram.add_update(update, bot_id=bot_id)) for update in built_list]

    async def _add_fault(self, request: web.Request) -> Any:
        """`{"fault": "commit_then_stall", "arguments": {"seconds": 90}, "method": "sendMessage"}`."""
        wanted = await _object(request)
        name, arguments = wanted.pop("fault"), wanted.pop("arguments", {})
        if isinstance(arguments.get("body"), str):
            arguments["body"] = arguments["body"].encode()
        if wanted.pop("on", "calls") == "deliveries":
            self._telegram.delivery_fault(_named(DELIVERY_FAULTS, name)(**arguments), **wanted)
        else:
            self._telegram.fault(_named(FAULTS, name)(**arguments), **wanted)
        return {"fault": name}

    async def _clear_faults(self, request: web.Request) -> Any:
        self._telegram.script.clear()
        return {}

    async def _change_conditions(self, request: web.Request) -> Any:
        """Any of `blocked`, `deactivated`, `missing`, `migrated`, `is_unreachable`, `latency_seconds`,
        `is_token_revoked`, `send_rates`; each replaces what stood."""
        wanted = await _object(request)
        bot = self._telegram.bot(_bot_id(wanted))
        conditions = bot.chats.conditions
        for name in ("blocked", "deactivated", "missing"):
            if name in wanted:
                setattr(conditions, name, set(wanted[name]))
        if "migrated" in wanted:
            conditions.migrated = {int(old): int(new) for old, new in wanted["migrated"].items()}
        script = self._telegram.script
        script.is_unreachable = bool(wanted.get("is_unreachable", script.is_unreachable))
        script.latency_seconds = float(wanted.get("latency_seconds", script.latency_seconds))
        bot.is_token_revoked = bool(wanted.get("is_token_revoked", bot.is_token_revoked))
        if "send_rates" in wanted:
            self._telegram.change_send_rates(SendRates(**wanted["send_rates"]))
        return {"conditions": shown(conditions), "is_unreachable": script.is_unreachable}

    async def _add_bot(self, request: web.Request) -> Any:
        bot = self._telegram.add_bot((await _object(request))["token"])
        return {"bot_id": bot.bot_id}

    async def _pass_time(self, request: web.Request) -> Any:
        self._telegram.pass_time(float((await _object(request))["pass_seconds"]))
        return {"now": self._telegram.now()}

    async def _reset(self, request: web.Request) -> Any:
        self._telegram.reset()
        return {}


def _explained(
    handle: Callable[[web.Request], Awaitable[Any]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answer in JSON; say what was wrong with a request instead of failing."""

    async def handle_explained(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handle(request))
        except (LookupError, TypeError, ValueError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)

    return handle_explained


async def _object(request: web.Request) -> dict[str, Any]:
    body = await request.json()
    if not isinstance(body, dict):
        raise TypeError("an object is expected")
    return body


def _bot_id(values: Any) -> int | None:
    bot_id = values.get("bot_id")
    return None if bot_id is None else int(bot_id)


def _from(request: web.Request, records: list[Any]) -> Any:
    """The records from number `from` on, so that a caller can follow them."""
    return shown(records[int(request.query.get("from", 0)) :])


def _named(builders: dict[str, Builder], name: str) -> Builder:
    if name not in builders:
        raise ValueError(f"{name!r} is none of {', '.join(builders)}")
    return builders[name]


def _taken(update: QueuedUpdate | None) -> dict[str, Any]:
    return {"is_kept": update is not None, "update_id": update.update_id if update else None}

"""The whole HTTP application: Telegram's webhook in front, everything else behind it on FastAPI.

Refuses: to describe itself to anybody without a token. Building it starts nothing and opens nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from rise.api import webhooks
from rise.api.answers import Border, add_error_answers
from rise.api.bindings import binding_routes
from rise.api.channels import channel_routes
from rise.api.description import document
from rise.api.follow_ups import follow_up_routes
from rise.api.operations import health_routes, operation_routes
from rise.api.prompts import prompt_routes
from rise.api.reading import Receive, Scope, Send
from rise.api.results import TaskResultBroker
from rise.api.secrets import secret_routes
from rise.api.security import Credentials, Gate, Principal, Role, requires
from rise.api.tasks import task_routes
from rise.api.webchat import Watchers, bounds_of, webchat_routes
from rise.api.webhooks import TelegramWebhook, answer_unconfigured
from rise.api.workflows import workflow_routes
from rise.envelope import encode_json
from rise.errors import CapabilityClosed
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_operations, build_path_test
from rise.runtime.path_test import PathTest
from rise.runtime.registration import WEBHOOK
from rise.telemetry import refused_total


class App:
    """An ASGI application. The hot path is one comparison away; the rest has a framework."""

    def __init__(self, house: House) -> None:
        gate = Gate(
            Credentials(house.secrets.admin_token, house.settings.tokens),
            house.clock,
            rate_per_source=house.settings.rate_per_source,
        )
        self._broker = TaskResultBroker(house.queue, house.ledger, house.bus, house.clock)
        self._watchers = Watchers(house.bus, bounds_of(house.settings.rate_per_source))
        self._path = build_path_test(house)
        self._behind = _build_behind(house, gate, self._broker, self._watchers, self._path)
        self._webhook = _build_webhook(house, gate)

    @property
    def routes(self) -> list[Any]:
        """All but the webhook's."""
        # Newer versions of the framework keep the routers that were included as they are.
        routers = [getattr(one, "original_router", None) for one in self._behind.routes]
        included = [route for router in routers if router is not None for route in router.routes]
        return [*self._behind.routes, *included]

    def description(self) -> dict[str, Any]:
        """What there is, in OpenAPI."""
        return document(self._behind.openapi())

    @property
    def state(self) -> Any:
        """`house` and `capabilities`, as FastAPI's `app.state`."""
        return self._behind.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(webhooks.PATH):
            await self._webhook(scope, receive, send)
        else:
            await self._behind(scope, receive, send)

    def close(self) -> None:
        """End what would hold up a stop: streams, and callers that wait for results."""
        self._broker.close()
        self._watchers.close()
        self._path.close()


def build_app(house: House) -> App:
    """Everything this process answers over HTTP. Nothing is started."""
    return App(house)


def _build_behind(house: House, gate: Gate, broker: TaskResultBroker, watchers: Watchers, path: PathTest) -> FastAPI:
    # The descriptions of the API are for those who may use it.
    # A slash too many is another path: redirects of the framework's go to whatever host and scheme the request names.
    app = FastAPI(title="Rise", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.house = house
    app.state.capabilities = house.capabilities
    app.state.gate = gate
    operations = build_operations(house)
    app.include_router(health_routes(house))
    app.include_router(task_routes(house, operations, broker))
    app.include_router(follow_up_routes(house, operations))
    app.include_router(workflow_routes(house))
    app.include_router(prompt_routes(house))
    app.include_router(secret_routes(house))
    app.include_router(operation_routes(house, operations))
    app.include_router(channel_routes(house, path))
    app.include_router(binding_routes(house))
    app.include_router(webchat_routes(house, watchers))
    app.include_router(_build_description())
    add_error_answers(app)
    app.add_middleware(Border)
    return app


def _build_description() -> APIRouter:
    router = APIRouter()

    @router.get("/api/openapi.json", include_in_schema=False)
    async def description(
        request: Request, principal: Annotated[Principal, Depends(requires(Role.VIEWER))]
    ) -> Response:
        """What there is, for programs and people with a token."""
        return Response(encode_json(document(request.app.openapi())), media_type="application/json")

    return router


def _build_webhook(house: House, gate: Gate) -> Any:
    telegram, default = house.channels.telegram, house.channels.telegram_account
    if telegram is None:
        return answer_unconfigured
    is_pushed = house.settings.effective_telegram_mode == "webhook"

    def require_verified(account: str) -> None:
        if (is_pushed or account != default) and not house.stores.directory.has_verified(account):
            refused_total.labels("telegram", CapabilityClosed.code).inc()
            raise house.capabilities.closed(WEBHOOK, "the bot has not been verified yet")

    return TelegramWebhook(
        telegram,
        account=default,
        secret=house.secrets.telegram_webhook,
        intake=house.intake,
        gate=gate,
        require_verified=require_verified,
        secret_of=house.webhook_secret,
    )

"""How well a channel serves, and a message sent through it to see.

Only translates: what is found out is found by `rise.runtime.examiner`, whether anybody asks or not.

Refuses: what is not configured here (404).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from rise.api import description
from rise.api.answers import answer, request_id_of
from rise.api.security import Principal, Role, requires
from rise.errors import ChannelUnknown, PayloadInvalid
from rise.runtime.assembly.house import House
from rise.runtime.binding_health import BindingHealth, worst
from rise.runtime.path_test import PathTest

TEST_SECONDS_MAX: Final = 10.0
"""How long a caller waits for its end."""

Viewer = Annotated[Principal, Depends(requires(Role.VIEWER))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]
Account = Annotated[str | None, Query(max_length=200)]


def channel_routes(house: House, path: PathTest) -> APIRouter:
    """The routes under /api/channels."""
    router = APIRouter()

    @router.get(
        "/api/channels/{channel}/health",
        **description.route(description.CHANNEL_HEALTH, *description.WITH_TOKEN, 404, 422),
    )
    async def health(request: Request, channel: str, principal: Viewer) -> Response:
        """How well each of its bindings serves, as was found last. Asks nobody."""
        _refuse_unknown_channel(house, channel)
        bindings = _healths(house, channel)
        shown = [one.shown() for one in bindings]
        return answer(request, {"channel": channel, "status": worst(bindings), "bindings": shown})

    @router.post(
        "/api/channels/{channel}/test",
        **description.route(description.CHANNEL_TESTED, *description.FROM_STORE, 404, 422),
    )
    async def test(request: Request, channel: str, principal: Operator, account: Account = None) -> Response:
        """Send a message the whole way: through the door, the stores and a worker, to its end in the ledger.

        Nobody hears of it. `seconds` is what it took; null if it has not ended yet. `account`: not the channel's own.
        """
        named = _account(house, channel, account)
        tested = await path.send(channel, named, seconds=TEST_SECONDS_MAX, request_id=request_id_of(request.scope))
        shown: dict[str, Any] = {"channel": channel, "account": named, "taskId": tested.task_id}
        shown |= {"status": tested.status, "wentThrough": tested.went_through, "seconds": tested.seconds}
        return answer(request, shown)

    return router


def _healths(house: House, channel: str) -> list[BindingHealth]:
    return [
        house.health.health_of(one.channel, one.account, one.workflow_id)
        for one in house.bindings.bindings()
        if one.channel == channel and one.is_met
    ]


def _account(house: House, channel: str, account: str | None) -> str:
    _refuse_unknown_channel(house, channel)
    own = house.channels.accounts().get(channel)
    known = {one.account for one in house.bindings.bindings() if one.channel == channel} | ({own} if own else set())
    if account is not None and account not in known:
        raise ChannelUnknown(f"{channel} has no such account here", field="account")
    named = account or own or (next(iter(known)) if len(known) == 1 else None)
    if named is None:
        raise PayloadInvalid("there is no default bot here: name one by its account", field="account")
    return named


def _refuse_unknown_channel(house: House, channel: str) -> None:
    if channel not in house.channels.by_name():
        raise ChannelUnknown(f"there is no channel {ascii(channel)[1:-1][:80]} here", field="channel")

"""A house behind its API as an ASGI application that opens and closes it, and what has become of it meanwhile."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from api_house import ADMIN, BOT, VIEWER, as_, echo, opened

from rise.api.app import App, build_app
from rise.definitions.records import PromptRecord
from rise.envelope import Reason
from rise.errors import StoreUnavailable
from rise.follow_ups.reading import read_follow_up
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_prompts, build_stage_secrets, build_workflows
from rise.runtime.assembly.services import build_sender
from rise.runtime.in_process import InProcessWorker
from rise.service import start_all, stop_all
from rise.workflows.definition import WorkflowDefinition

SAY = {"name": "say", "kind": "reply", "template": "hi {{ text }}"}
Befall = Callable[[House], Awaitable[None]]


class Served:
    """The API of a house of its own: opened when the server starts, closed when it ends, in the server's loop."""

    def __init__(self, directory: Path, befall: Befall) -> None:
        self._directory = directory
        self._befall = befall
        self._stack = AsyncExitStack()
        self._app: App | None = None
        self.session = ""
        self.known: dict[str, Any] = {}
        """What there is, by the names of parameters and fields that ask for it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            assert self._app is not None
            await self._app(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        await self._open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        # Nobody listens there: Telegram cannot be reached all the while.
        house = await self._stack.enter_async_context(
            opened(self._directory, telegram_api_base="http://127.0.0.1:1", rate_per_source=1_000_000)
        )
        self._app = build_app(house)
        self._stack.callback(self._app.close)
        definition = WorkflowDefinition(name="bot", function=echo, channels=("http", "webchat", "telegram"))
        services = [InProcessWorker(house, {definition.workflow_id: definition}), build_sender(house)]
        await start_all(services, on_error=lambda name, error: None)
        self._stack.push_async_callback(stop_all, services, on_error=lambda name, error: None)
        if house.channels.telegram is not None:
            self._stack.push_async_callback(house.channels.telegram.close)
        self.session = house.channels.webchat.new_session()
        self.known |= {
            "name": ["disk"],
            "channel": ["telegram"],
            "account": [BOT],
            "chatId": [42],
            "workflowId": [None],
            "stages": [[SAY]],
            "template": ["hi {{ text }}"],
            "placeholders": [[]],
            "version": [None, 1],
            "inSeconds": [3600],
            "at": [None],
            "timeZone": [None],
        }
        self.known["workflow_id"] = deque(["wf_bot", *[await self._make(house, f"spare {n}") for n in range(20)]])
        self.known["secret"] = deque([await self._set_secret(house, f"spare_{n}") for n in range(20)])
        self.known["prompt_id"] = deque([await self._store(house, f"spare {n}") for n in range(20)])
        self.known["follow_up_id"] = deque([await self._plan(house, f"later {n}") for n in range(20)])
        parked = [await self._keep(house, f"parked {n}", Reason.POISON) for n in range(40)]
        self.known["task_id"] = deque([*parked, await self._keep(house, "answered", None)])
        await self._befall(house)

    async def _make(self, house: House, name: str) -> str:
        workflows = build_workflows(house)
        made = await workflows.create(name, [SAY], by="ann")
        return (await workflows.publish(made.workflow_id, by="ann")).workflow_id

    async def _store(self, house: House, name: str) -> str:
        made = await build_prompts(house).create(PromptRecord(prompt_id="", name=name, template="hi"), by="ann")
        return made.prompt_id

    async def _set_secret(self, house: House, name: str) -> str:
        return (await build_stage_secrets(house).set(name, "key-of-the-shop", by="ann")).name

    async def _plan(self, house: House, text: str) -> str:
        asked = read_follow_up(
            # Not the chat that is asked for, which may be forgotten.
            json.dumps({"channel": "telegram", "chatId": 43, "text": text, "inSeconds": 3600}).encode(),
            accounts=house.channels.all_accounts(),
            chats=house.chats,
            principal="ann",
            key=None,
            request_id=None,
            trace_id=None,
            clock=house.clock,
            queue_now_ms=house.queue.now_ms(),
        )
        return (await house.intake.accept(asked.incoming)).task_id

    async def _keep(self, house: House, text: str, suspend: Reason | None) -> str:
        incoming = house.channels.webchat.read_message(
            json.dumps({"clientMessageId": text, "text": text}).encode(),
            house.channels.webchat.session_of(self.session),
        )
        accepted = await house.intake.accept(msgspec.structs.replace(incoming, suspend=suspend))
        return accepted.task_id

    def headers(self, caller: str, path: str) -> dict[str, str]:
        """What the caller shows on this path."""
        if caller == "nobody":
            return {}
        if path.startswith("/webchat"):
            return as_(self.session)
        return as_({"admin": ADMIN, "viewer": VIEWER}[caller])


# --- what may have become of it ---------------------------------------------------------------------------------


async def all_well(house: House) -> None:
    """Nothing."""


async def store_read_only(house: House) -> None:
    """What a disk that has been remounted becomes at the store's door."""

    async def refuse(apply: Any) -> None:
        raise StoreUnavailable("the disk is read-only")

    house.stores.database.write = refuse  # type: ignore[method-assign]


async def store_gone(house: House) -> None:
    """Neither written nor read."""
    await house.stores.close()

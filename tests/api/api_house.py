"""What the tests of the API are made with: a whole house on a directory of its own, and ways to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import rise
from rise.api.app import App
from rise.capabilities import CapabilityStatus
from rise.clock import Clock
from rise.definitions.records import CODE, BindingRecord
from rise.runtime.assembly.house import House, build
from rise.settings import load_settings

ADMIN = "admin-token-of-the-tests"
OPERATOR = "operator-token-of-the-tests"
VIEWER = "viewer-token-of-the-tests"
SECRET = "webhook-secret-of-the-tests"
BOT = "7"


def as_(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def opened(
    directory: Path, *, is_verified: bool = True, has_webchat: bool = True, clock: Clock | None = None, **overrides: Any
) -> AsyncIterator[House]:
    settings = {
        "data_dir": directory,
        "host": "127.0.0.1",
        "port": 0,
        "admin_token": ADMIN,
        "tokens": {OPERATOR: "olga:operator", VIEWER: "vic:viewer"},
        "telegram_token": f"{BOT}:token-of-the-tests",
        "telegram_secret": SECRET,
        "telegram_mode": "webhook",
        "public_url": "https://bot.example",
        "stop_seconds": 2.0,
    } | overrides
    house = build(load_settings(_env_file=None, **settings), clock)
    await house.stores.open()
    await house.bus.start()
    if is_verified:
        house.stores.directory.remember_verified(BOT)
    if has_webchat:
        binding = BindingRecord(channel="webchat", account="default", workflow_id="wf_bot")
        await house.editor.bind(binding, by=CODE)

    async def disk() -> tuple[CapabilityStatus, str]:
        await house.stores.database.write(lambda connection: None)
        return CapabilityStatus.AVAILABLE, "written and synced"

    house.capabilities.register_capability_probe("disk", disk, hard=True, good_in_a_row=1)
    await house.capabilities.probe_due()
    try:
        yield house
    finally:
        await house.bus.stop()
        await house.channels.close()
        await house.model.close()
        await house.stores.close()


def client_of(app: App, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rise", headers=headers)


Work = Callable[[Callable[..., Any]], Awaitable[None]]


async def echo(turn: rise.Turn) -> None:
    await turn.reply(f"you said: {turn.text}")


async def talk(port: int, request: bytes, *, seconds: float = 10.0) -> bytes:
    """Send raw bytes, read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            writer.write(request)
            await writer.drain()
            return await reader.read()
    finally:
        writer.close()

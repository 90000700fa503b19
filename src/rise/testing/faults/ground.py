"""Where a drill takes place: an installation with all that is around it, and every link between them in our hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp

from rise.capabilities import CapabilityStatus
from rise.clock import Clock, SystemClock
from rise.testing.faults.disk import Disk, DiskRefused
from rise.testing.faults.order import Order
from rise.testing.faults.proxy import FaultProxy
from rise.testing.faults.schedule import Link
from rise.testing.faults.wall_clock import WallClock
from rise.testing.installation import READY_SECONDS, Installation
from rise.testing.telegram import SendRates, TelegramStandIn

if TYPE_CHECKING:
    from rise.testing.faults.stores import Stores

PLATFORM_SPEED: Final = 20.0
"""The platform's clock runs so much faster than ours: what it repeats after seconds comes in fractions of one."""
GROUND_LOOK_SECONDS: Final = 0.25
CLAIM_SECONDS: Final = 2.0
STALL_SECONDS: Final = 3.0
STOP_SECONDS: Final = 5.0


@dataclass(slots=True)
class Ground:
    """What the nemesis may touch."""

    rise: Installation
    telegram: TelegramStandIn
    links: Mapping[Link, FaultProxy]
    wall_clock: WallClock
    disk: Disk | None
    """All data lies on it; in the full profile the journals."""
    no_disk_because: str = ""
    second: Installation | None = None
    """A second gateway on the same data, of the full profile."""
    stores: Stores | None = None

    @property
    def gateways(self) -> list[Installation]:
        return [self.rise] if self.second is None else [self.rise, self.second]

    def pids(self) -> list[int]:
        return [pid for gateway in self.gateways for pid in gateway.pids()]

    async def kill(self) -> None:
        """Every process of Rise."""
        for gateway in self.gateways:
            await gateway.kill(added=True)


@asynccontextmanager
async def drill_ground(order: Order, directory: Path) -> AsyncIterator[Ground]:
    """All of it started; nothing of it is left running."""
    async with AsyncExitStack() as stack:
        telegram = await stack.enter_async_context(TelegramStandIn(time_scale=PLATFORM_SPEED))
        telegram.change_send_rates(SendRates.unlimited())
        disk, no_disk_because = await _disk(stack, directory)
        stores = await stack.enter_async_context(_stores(order, directory)) if order.full else None
        on_disk = disk.where if disk else directory
        data_dir = directory / "data" if order.full else on_disk / "data"
        gateways = [Installation(data_dir, app="rise.testing.faults.bot") for _ in range(2 if order.full else 1)]
        wall_clock = WallClock(directory / "wall-clock")
        ports = [gateway.port for gateway in gateways]
        links = {
            Link.WEBHOOK: await stack.enter_async_context(FaultProxy(*ports)),
            Link.API: await stack.enter_async_context(FaultProxy(urlsplit(telegram.url).port or 0)),
        }
        for gateway in gateways:
            gateway.log_path = directory / "rise.log"  # not on the disk that fills up
            gateway.surroundings = wall_clock.surroundings
            _configure(gateway, order, telegram, links)
            if stores is not None:
                gateway.configure(**stores.settings, journal_dir=on_disk / "journals")
            gateway.configure(**order.settings)
        if order.full:
            (on_disk / "journals").mkdir()
        for gateway in gateways:
            await stack.enter_async_context(gateway)
        await gateways[0].add_worker()
        for gateway in gateways:
            await _until_working(gateway, SystemClock())
        yield Ground(
            rise=gateways[0],
            telegram=telegram,
            links=links | (dict(stores.links) if stores else {}),
            wall_clock=wall_clock,
            disk=disk,
            no_disk_because=no_disk_because,
            second=gateways[1] if order.full else None,
            stores=stores,
        )


def _stores(order: Order, directory: Path) -> Stores:
    # Here, because an installation of the embedded profile need not have their clients.
    from rise.testing.faults.stores import Stores

    return Stores(directory, order.appendfsync, mongo=order.mongo)


def _configure(
    gateway: Installation, order: Order, telegram: TelegramStandIn, links: Mapping[Link, FaultProxy]
) -> None:
    gateway.configure(
        telegram_token=telegram.token,
        telegram_api_base=links[Link.API].url,
        telegram_mode=order.mode,
        public_url=links[Link.WEBHOOK].url if order.mode == "webhook" else None,
        telegram_rate_chat=10_000,
        telegram_rate_bot=10_000,
        late_after_seconds=0,
        binding_test_seconds=0,  # the books are of what people wrote
        claim_seconds=CLAIM_SECONDS,
        worker_stall_seconds=STALL_SECONDS,
        stop_seconds=STOP_SECONDS,
    )


async def _until_working(installation: Installation, clock: Clock) -> None:
    """Until the gateway's own worker is up; what happens before is another matter."""
    async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{installation.url}/healthz") as response:
                worker = (await response.json())["capabilities"].get("worker", {})
            if worker.get("status") == CapabilityStatus.AVAILABLE:
                return
            await clock.sleep(GROUND_LOOK_SECONDS)


async def _disk(stack: AsyncExitStack, directory: Path) -> tuple[Disk | None, str]:
    try:
        return await stack.enter_async_context(Disk(directory)), ""
    except DiskRefused as error:
        return None, str(error)

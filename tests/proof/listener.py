"""Somebody on this machine who is posted to, for as long as an `async with` lasts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from aiohttp import web


@dataclass(kw_only=True)
class Listener(ABC):
    route: ClassVar[tuple[str, str]]
    """Method and path that it answers."""

    _runner: web.AppRunner | None = None

    @abstractmethod
    async def _take(self, request: web.Request) -> web.Response: ...

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route(*self.route, self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

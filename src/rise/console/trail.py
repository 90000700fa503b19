"""The audit trail: who changed what, when and why, the newest first.

Refuses: to be searched beyond its newest entries; it is kept for good, and `rise` and SQL are there for the rest.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from rise.clock import from_epoch_ms
from rise.console.forms import searched
from rise.console.rendering import Page
from rise.console.sessions import Session
from rise.runtime.assembly.house import House
from rise.runtime.assembly.operations import build_operations

LOOKED_AT: Final = 500
SHOWN_MAX: Final = 50


class TrailPages:
    def __init__(self, house: House, page: Page) -> None:
        self._page = page
        self._operations = build_operations(house)

    async def show(self, request: Request, session: Session) -> Response:
        word = searched(request, "q")
        newest = await self._operations.trail(limit=LOOKED_AT)
        found = [
            (from_epoch_ms(one.at_ms), one)
            for one in newest
            if word.casefold() in f"{one.who} {one.action} {one.target} {one.why}".casefold()
        ]
        values = {"word": word, "found": found[:SHOWN_MAX], "count": len(found), "looked_at": len(newest)}
        return self._page(request, "trail.html", session, values)

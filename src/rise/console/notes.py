"""What a page says was done before it. It stands in the page's address, which a link can write, too: so it is signed.

Refuses: what the session that looks has not been told by us. Nothing is said then; the page is the same otherwise.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rise.console.sessions import Session

_MARK: Final = "mark"


def leading_to(place: str, session: Session, said: Mapping[str, str]) -> Response:
    """To that page, which says so to this session."""
    kept = {name: value for name, value in said.items() if value}
    return RedirectResponse(f"{place}?{urlencode(kept | {_MARK: _mark(session, kept)})}", 303)


def noted(request: Request, session: Session) -> Mapping[str, str]:
    """What there is to say, by its names."""
    said = dict(request.query_params)
    mark = said.pop(_MARK, "").encode("utf-8", "replace")
    return said if hmac.compare_digest(mark, _mark(session, said).encode()) else {}


def _mark(session: Session, said: Mapping[str, str]) -> str:
    """Made with what a page of this session alone knows."""
    words = urlencode(sorted(said.items()), errors="replace")
    return hmac.new(session.form_key.encode(), f"note|{words}".encode(), hashlib.sha256).hexdigest()[:32]

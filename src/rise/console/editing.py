"""What the pages have in common on which something is written: what is wrong beside what was typed, and who else
changed it meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from rise.console.comparing import Comparison, comparison
from rise.console.notes import leading_to
from rise.console.sessions import Session
from rise.envelope import is_in_digits
from rise.errors import PayloadInvalid, Rejected, VersionStale
from rise.runtime.versions import Since

T = TypeVar("T")

VERSIONS_LISTED: Final = 50
LISTED: Final = 50
"""On one page."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why something typed cannot be used."""

    field: str
    """Such as `stages[2].url`; empty: it is about all of it."""
    words: str
    status: int
    line: int | None = None
    is_saved: bool = False
    """Whether it was saved all the same, and only not published."""

    @classmethod
    def of(cls, error: Rejected, *, line: int | None = None, is_saved: bool = False) -> Problem:
        words, status = error.public_message, error.http_status
        return cls(field=error.field or "", words=words, status=status, line=line, is_saved=is_saved)

    @property
    def root(self) -> str:
        """The field of the form."""
        return self.field.partition("[")[0].partition(".")[0]


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else was first."""

    by: str
    at: datetime | None
    version: int | None
    found: Comparison
    is_known: bool
    """Whether what they have changed can still be said."""


def conflict(since: Since | None, error: VersionStale) -> Conflict:
    if since is None:
        raise error  # it is gone, or was never there
    return Conflict(
        by=" and ".join(since.by),
        at=since.at,
        version=since.version,
        found=comparison(since.differences),
        is_known=since.is_known,
    )


def version_asked(request: Request, name: str) -> int | None:
    """A version that an address names. Raises `PayloadInvalid`."""
    written = request.query_params.get(name, "").strip()
    if not written:
        return None
    if not is_in_digits(written) or len(written) > 9 or int(written) < 1:
        raise PayloadInvalid("a version is a number, from 1", field=name)
    return int(written)


def listed(request: Request, found: Sequence[T]) -> tuple[Sequence[T], int]:
    """Those of this page, and where the next begins; 0: this is the last."""
    after = request.query_params.get("after", "")
    first = int(after) if is_in_digits(after) and len(after) < 8 else 0
    following = first + LISTED
    return found[first:following], following if len(found) > following else 0


def said_on(place: str, session: Session, done: str, warnings: Sequence[str] = ()) -> Response:
    """To that page, which says what was done, and what to beware of."""
    return leading_to(place, session, {"done": done, "warning": "; ".join(warnings)})

"""Who is signed in: by a token once, and by a cookie from then on.

The cookie says which token was shown, when it ends, and that we wrote it; what its holder may do is looked up with
every request. So it needs no memory that hosts would have to share or a restart would lose, and it is void as soon as
its token is taken from the settings, or the key is changed. Neither the token nor its digest is in it.

Refuses: a form that does not bring what only a page of this session has, or that comes from another site.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import msgspec

from rise.api.security import Credentials, Principal, Role
from rise.clock import Clock, epoch_ms
from rise.envelope import is_in_digits, new_key
from rise.errors import Rejected

COOKIE: Final = "rise_console"
SESSION_SECONDS: Final = 12 * 3600
"""A working day, with what comes in between."""
_OF_SAME_SITE: Final = frozenset({"same-origin", "none", ""})
"""What browsers say of a form that was sent from our own page, or by no page at all; old ones say nothing."""
_PARTS: Final = re.compile(r"([0-9]{1,13})\.([A-Za-z0-9_-]{8,64})\.([0-9a-f]{64})\.([0-9a-f]{64})")


class SignInNeeded(Rejected):
    """Nobody is signed in, or not any more."""

    code = "sign_in_needed"
    http_status = 401


class FormForeign(Rejected):
    """A form that no page of this session has sent."""

    code = "form_foreign"
    http_status = 403


class Session(msgspec.Struct, frozen=True):
    """Somebody who has signed in."""

    principal: Principal
    form_key: str
    """What each form of this session brings back."""

    def may(self, role: str) -> bool:
        """Whether the holder has that role, or a higher one."""
        return self.principal.role >= Role[role.upper()]


class Sessions:
    """Opens and reads them; holds none."""

    def __init__(self, credentials: Credentials, key: str, clock: Clock) -> None:
        self._credentials = credentials
        self._key = key.encode()
        self._clock = clock

    def open(self, token: str) -> str | None:
        """The cookie of a new session; None if the token is not known."""
        if self._credentials.principal(token) is None:
            return None
        ends_at_ms = epoch_ms(self._clock.now() + timedelta(seconds=SESSION_SECONDS))
        said = f"{ends_at_ms}.{new_key()}.{self._mark(self._credentials.digest(token))}"
        return f"{said}.{self._signed('session', said)}"

    def read(self, cookie: str) -> Session:
        """Raises `SignInNeeded` unless we wrote it, it has not ended, and its token is still one."""
        parts = _PARTS.fullmatch(cookie)
        said = cookie.rpartition(".")[0]
        if parts is None or not hmac.compare_digest(parts[4], self._signed("session", said)):
            raise SignInNeeded("please sign in")
        ends_at_ms, nonce, mark = int(parts[1]) if is_in_digits(parts[1]) else 0, parts[2], parts[3]
        if ends_at_ms <= epoch_ms(self._clock.now()):
            raise SignInNeeded("you were signed in for twelve hours; please sign in again")
        return Session(self._holder(mark), self._signed("form", nonce))

    def require_own_form(self, session: Session, form_key: str, headers: Mapping[str, str]) -> None:
        """Raises `FormForeign`."""
        require_same_site(headers)
        if not hmac.compare_digest(session.form_key.encode(), form_key.encode("utf-8", "replace")):
            raise FormForeign("this form is not of your session: go back, load the page anew, and try again")

    def _holder(self, mark: str) -> Principal:
        """Takes as long for the first as for the last."""
        found = None
        for digest, principal in self._credentials.known:
            if hmac.compare_digest(self._mark(digest), mark):
                found = principal
        if found is None:
            raise SignInNeeded("the token you signed in with is not valid any more")
        return found

    def _mark(self, digest: str) -> str:
        """Names a token to us alone: who has the cookie cannot try guesses against it."""
        return self._signed("holder", digest)

    def _signed(self, purpose: str, said: str) -> str:
        return hmac.new(self._key, f"{purpose}|{said}".encode(), hashlib.sha256).hexdigest()


def require_same_site(headers: Mapping[str, str]) -> None:
    """Raises `FormForeign` where the browser says that another site sends this."""
    if headers.get("sec-fetch-site", "") not in _OF_SAME_SITE:
        raise FormForeign("this was sent from another site")
